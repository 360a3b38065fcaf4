"""Writes run folders with given evaluations, in the form in which `qscape train` writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qscape.run.sinks import EVALUATION_COLUMNS

Points = Mapping[int, Sequence[float]]  # returns of the episodes of each evaluation, by step


def write_run(
    folder: Path | str,
    *,
    label: str = "td3",
    env: str = "Ant-v5",
    seed: int = 0,
    returns: Points = {0: [1.0], 10: [2.0]},  # noqa: B006
    kept: Points | None = None,
    steps: int | None = None,
    env_args: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    sm: Mapping[int, float] | None = None,
    success: Mapping[int, Sequence[float]] | None = None,
    found: Mapping[str, Any] | None = None,
) -> Path:
    """Write run.json, evaluations.csv and files of `inspect`.

    Args:
        folder: the run folder, which must not exist.
        returns: returns of the current policy's episodes, by step of the evaluation.
        kept: returns of the kept policy's episodes, by step; None: no kept policy.
        steps: total of the run; None: the step of the last evaluation.
        record: further fields of run.json.
        sm: a probe's measurement at each step; None: no probe.
        success: success of the episodes, by step; None: not reported.
        found: content of inspect/NAME.json, by name.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    record = {
        "recipe": label.split("[")[0],
        "label": label,
        "env": env,
        "seed": seed,
        "steps": steps or max(returns),
        "env_args": dict(env_args or {}),
    } | dict(record or {})
    (folder / "run.json").write_text(json.dumps(record))
    lines = [",".join([*EVALUATION_COLUMNS, *(["sm"] if sm else [])])]
    for policy, points in (("current", returns), ("kept", kept or {})):
        for step, values in points.items():
            probed = f",{sm[step]}" if sm else ""
            for k, value in enumerate(values):
                made_it = success[step][k] if success else ""
                lines.append(f"{step},{policy},{k},{value},7,{made_it},0.1{probed}")
    (folder / "evaluations.csv").write_text("\n".join(lines) + "\n")
    for name, what in (found or {}).items():
        (folder / "inspect").mkdir(exist_ok=True)
        (folder / "inspect" / f"{name}.json").write_text(json.dumps(what))
    return folder
