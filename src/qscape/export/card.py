"""The model card of an exported policy: task, results, and how to run it."""

import json
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qscape.errors import CannotRead, one_line
from qscape.export.c_header import HeaderCheck
from qscape.export.policy import CHECKED, OnnxCheck, PolicySource, describe
from qscape.inspect.store import write_atomically
from qscape.report import intervals
from qscape.run.evaluation import list_successes
from qscape.run.folder import origin
from qscape.sealed import read_json
from qscape.values import decode_args


def write_card(
    source: PolicySource,
    files: Sequence[Path],
    checked: OnnxCheck | None = None,
    header: HeaderCheck | None = None,
) -> Path:
    """Write FILE.md beside the first of the exported files and return its path.

    Raises:
        RunError: the file cannot be written.
    """
    card = files[0].with_suffix(".md")
    write_atomically(card, render_card(source, files, checked, header).encode())
    return card


def _describe_training(steps: int, record: Mapping[str, Any]) -> str:
    """Return what comes after "A policy": who trained it, how long and from what."""
    if library := record.get("imported"):
        return f"of {_text(library)}, imported into qscape, at step {steps:,}"
    began = f", which began with the networks of {_code(record['start'])}" if record.get("start") else ""
    if dataset := record.get("dataset"):
        data = f"by {steps:,} updates on the dataset {_code(dataset)}, without a step in an environment"
        return f"trained with qscape {data}{began}"
    return f"trained with qscape for {steps:,} steps{began}"


def render_card(
    source: PolicySource,
    files: Sequence[Path],
    checked: OnnxCheck | None = None,
    header: HeaderCheck | None = None,
    further: Sequence[str] = (),
) -> str:
    """Render the card in Markdown, with the header that model hubs read.

    `further`: lines below the results.
    """
    about, record, masks = describe(source), source.record, source.loaded.adapter.masks
    action, low_high = about["action"], "unbounded"
    if action["low"] is not None:
        low_high = f"{action['low']} to {action['high']}"
    elif action["table"] is not None:
        low_high = f"{len(action['table'])} discrete actions"
    elif action["index_sizes"] is not None:
        low_high = f"{' × '.join(map(str, action['index_sizes']))} discrete actions"
    lines = [
        *_hub_header(source, about),
        f"# {_text(about['label'])} on {_text(about['env'])}",
        "",
        f"A policy {_describe_training(about['step'], record)} "
        f"(seed {about['seed']}, the {about['policy']} policy).",
        "",
        "## Evaluation",
        "",
        describe_evaluation(source),
        "",
        *_describe_smoothness(source),
        *further,
        "## Task",
        "",
        f"- environment: {_code(about['env'])}"
        + (f" with {_code(decode_args(about['env_args']))}" if about["env_args"] else ""),
        f"- observation: {about['observation']['size']} numbers, float32, raw, as the environment gives them",
        f"- action: shape {action['shape']}, {low_high}, in the environment's units",
        *(
            [f"- action mask: {masks.entries} booleans, which actions are valid, as the environment says it"]
            if masks
            else []
        ),
        "",
        *(["## Files", "", *(f"- `{file.name}`" for file in files)] if files else []),
        *_describe_check(checked),
        *(["", f"The header in C: {describe_header(header)}."] if header else []),
        "",
        *_usage_example(files, about, masks.entries if masks else None),
        "## Agent",
        "",
        f"Recipe {_code(about['recipe'])}. "
        + ("; ".join(map(_text, record["moved"])) + "." if record.get("moved") else ""),
        "",
        "```json",
        json.dumps(record["settings"], indent=1),
        "```",
        "",
        "## Versions",
        "",
        *_describe_versions(record),
        "",
    ]
    return "\n".join(lines)


def describe_evaluation(source: PolicySource) -> str:
    """Describe the return over the episodes just run, with its interval; of goals the success first."""
    returns = [r.episode.ret for r in source.episodes]
    if not returns:
        return "Not evaluated: the policy was trained on a dataset without an environment."
    mean, low, high = intervals.estimate(intervals.mean(np.array(returns)[:, None]))
    between = "" if np.isnan(low) else f" [{low:,.1f}, {high:,.1f}]"
    interval = f"{intervals.INTERVAL} of the " if between else ""
    what = f", {interval}mean over {len(returns)} episodes" if len(returns) > 1 else " in one episode"
    length = np.mean([r.episode.length for r in source.episodes])
    success = find_success(source)
    first = "" if success is None else f"Goal reached in **{success:.0%}** of the episodes. "
    return f"{first}Return **{mean:,.1f}**{between}{what}; deterministic policy, mean length {length:,.0f}."


def find_success(source: PolicySource) -> float | None:
    """Return the share of successful episodes; None: the environment sets no goals, or reports no success."""
    if not source.record.get("goals"):
        return None
    successes = list_successes([r.episode for r in source.episodes])
    return float(np.mean(successes)) if successes else None


def _text(value: Any) -> str:
    """Return text of a record in Markdown: one line, whose markup is shown and not obeyed."""
    return re.sub(r"([\\`*<>]|\](?=\())", r"\\\1", one_line(str(value)))


def _code(value: Any) -> str:
    """Return text of a record as code in Markdown."""
    return "`" + one_line(str(value)).replace("`", "'") + "`"


def _hub_header(source: PolicySource, about: dict[str, Any]) -> list[str]:
    returns = [r.episode.ret for r in source.episodes]
    env, label, recipe = (json.dumps(about[name], ensure_ascii=False) for name in ("env", "label", "recipe"))
    results = []
    if returns:  # an index needs metrics, or the hub refuses the card
        metrics = [f"{{type: mean_reward, value: {np.mean(returns):.2f}}}"]
        if (success := find_success(source)) is not None:
            metrics.insert(0, f"{{type: success_rate, value: {success:.2f}}}")
        results = [
            "model-index:",
            f"- name: {label}",
            "  results:",
            "  - task: {type: reinforcement-learning}",
            f"    dataset: {{name: {env}, type: {env}}}",
            f"    metrics: [{', '.join(metrics)}]",
        ]
    return [
        "---",
        "library_name: qscape",
        f"tags: [reinforcement-learning, {recipe}, {env}]",
        *results,
        "---",
        "",
    ]


def _describe_smoothness(source: PolicySource) -> list[str]:
    """Return the result of `qscape smoothness`, if the run folder holds one of this policy."""
    folder, loaded = source.folder, source.loaded
    file = folder / "inspect" / "smoothness.json"
    if not file.exists():
        return []
    try:
        found = read_json(file.read_bytes())
        if (found["step"], found["policy"]) != (loaded.step, loaded.policy):
            return []
        values = found["per_episode"]
        means = {name: float(np.mean(values[name])) for name in ("sm", "action_change", "oscillation")}
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise CannotRead(
            f"{file} cannot be read ({problem}); measure it again: qscape smoothness "
            f"{shlex.quote(str(folder))}."
        ) from problem
    means = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in means.items())
    return [f"Smoothness (lower is smoother): {means}.", ""]


def _describe_check(checked: OnnxCheck | None) -> list[str]:
    if checked is None:
        return []
    return [
        "",
        f"The ONNX file acts like the library: largest difference {checked.difference:.1e} on 1,000 "
        f"observations (the library differs from itself, single against batched, by {checked.rounding:.1e}). "
        f"One action took {checked.p50:.3f} ms (p50), {checked.p99:.3f} ms (p99), on one core.",
    ]


def describe_header(header: HeaderCheck) -> str:
    """Describe the check of a header in C, and the memory that it needs."""
    if header.difference is None:
        said = "not compared with the library, because there is no C compiler here"
    else:
        said = f"largest difference {header.difference:.1e} on {CHECKED:,} observations"
    return f"{said}; {header.constant_bytes:,} bytes of constants, {header.stack_bytes:,} bytes of stack"


def _usage_example(files: Sequence[Path], about: dict[str, Any], valid: int | None) -> list[str]:
    """Return the code that runs the ONNX file; `valid`: entries of its mask of actions, None without one."""
    onnx = next((f.name for f in files if f.suffix == ".onnx"), None)
    if onnx is None:
        return []
    inputs = '{"observation": observation' + (', "action_mask": valid}' if valid else "}")
    return [
        "```python",
        "import numpy as np",
        "import onnxruntime as ort",
        "",
        f'policy = ort.InferenceSession("{onnx}")',
        f"observation = np.zeros((1, {about['observation']['size']}), np.float32)  # [batch, S], raw",
        *([f"valid = np.ones((1, {valid}), bool)  # which actions are valid"] if valid else []),
        f"action = policy.run(None, {inputs})[0][0]  # as the environment takes it",
        "```",
        "",
    ]


def _describe_versions(record: Any) -> list[str]:
    trained, now = record.get("versions", {}), origin()["versions"]
    return [
        ("Imported" if record.get("imported") else "Trained")
        + " with "
        + ", ".join(_text(f"{k} {v}") for k, v in trained.items())
        + ".",
        f"Exported with qscape {now['qscape']}, jax {now['jax']}, Python {platform.python_version()}.",
    ]
