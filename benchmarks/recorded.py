"""The recorded runs of benchmarks/results: their evaluations, by study, environment and label."""

import csv
import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from blocks import RESULTS
from collect import read_archive

POLICIES = ("kept", "current")
# Numbers of an episode.
COLUMNS = ("return", "success", "sm", "action_change", "optimality_gap_share", "local_optima")


class Run(NamedTuple):
    """A recorded run.

    Attributes:
        study: archive of results/learning.
        env: environment id.
        env_args: arguments of the environment.
        dataset: file name of the dataset that the run learned from; "" if it had an environment.
        label: recipe with the settings that differ from its defaults.
        seed: random seed.
        evaluations: column -> array [evaluations, episodes], of the policy that the run keeps, if it keeps
            one; "step" is [evaluations].
        current: the same of the current policy.
        seconds: wall seconds of training.
    """

    study: str
    env: str
    env_args: dict[str, Any]
    dataset: str
    label: str
    seed: int
    evaluations: dict[str, np.ndarray]
    current: dict[str, np.ndarray]
    seconds: float


def read_evaluations(text: str, policy: str) -> dict[str, np.ndarray]:
    """Read evaluations.csv; rows of another policy are left out, unless the run has no such policy."""
    rows = [*csv.DictReader(text.splitlines())]
    rows = [r for r in rows if r["policy"] == policy] or rows
    steps = sorted({int(r["step"]) for r in rows})
    found: dict[str, np.ndarray] = {"step": np.array(steps)}
    for name in COLUMNS:
        if any(r.get(name) for r in rows):  # an episode that reports no success has none
            of = {step: [float(r[name] or 0) for r in rows if int(r["step"]) == step] for step in steps}
            found[name] = np.array([of[step] for step in steps])
    return found


def read_seconds(text: str) -> float:
    """Return the wall seconds of training, from the lines of metrics.jsonl."""
    seconds, before = 0.0, 0
    for entry in map(json.loads, text.splitlines()):
        if entry.get("steps_per_second"):
            seconds += (entry["step"] - before) / entry["steps_per_second"]
        before = entry["step"]
    return seconds


@functools.cache
def read_runs() -> list[Run]:
    """Read all recorded runs, in a fixed order."""
    runs = []
    for archive in sorted((RESULTS / "learning").glob("*.tar.xz")):
        contents = {name: data.decode() for name, data in read_archive(archive).items()}
        for name in (name for name in contents if name.endswith("/run.json")):
            plan, folder = json.loads(contents[name]), name.removesuffix("run.json")
            study = folder.split("/")[0]
            policies = [read_evaluations(contents[f"{folder}evaluations.csv"], which) for which in POLICIES]
            seconds = read_seconds(contents[f"{folder}metrics.jsonl"])
            where = plan["env"], plan["env_args"], Path(plan.get("dataset") or "").name
            runs.append(Run(study, *where, plan["label"], plan["seed"], *policies, seconds))
    return runs


@functools.cache
def read_json(name: str) -> dict:
    """Read a file of results/."""
    return json.loads((RESULTS / name).read_text())


def at(evaluations: dict[str, np.ndarray], steps: float = 0) -> int:
    """Return the index of the last evaluation at or before a step; 0 steps: the last one of all."""
    index = int(np.searchsorted(evaluations["step"], steps or np.inf, side="right")) - 1
    if index < 0:
        raise ValueError(f"no evaluation at or before step {steps}")
    return index


def ends(study: str, env: str, label: str, *, metric: str = "return", steps: int = 0, current: bool = False):
    """Return the evaluation at a step of all runs of a study that went so far, [seeds, episodes].

    Args:
        study: archive of results/learning.
        env: environment id.
        label: label of the runs.
        metric: column of the evaluations.
        steps: environment steps; 0: the end of the shortest of these runs.
        current: take the current policy, not the kept one.
    """
    of = [r for r in read_runs() if (r.study, r.env, r.label) == (study, env, label)]
    steps = steps or length_of(study, env, label)
    tables = [r.current if current else r.evaluations for r in sorted(of, key=lambda r: r.seed)]
    return np.array([t[metric][at(t, steps)] for t in tables if t["step"][-1] >= steps])


def length_of(study: str, env: str, label: str = "") -> int:
    """Return the last step of the shortest recorded run of an arm (of all arms); 0: none is recorded."""
    return min(lengths_of(study, env, label), default=0)


def lengths_of(study: str, env: str, label: str = "") -> list[int]:
    """Return the last steps of the recorded runs of an arm (of all arms), ascending, each once."""
    of = [r for r in read_runs() if (r.study, r.env) == (study, env) and label in ("", r.label)]
    return sorted({int(r.evaluations["step"][-1]) for r in of})


def labels(study: str, env: str) -> list[str]:
    """Return the labels of a study's recorded runs in an environment, in alphabetical order."""
    return sorted({r.label for r in read_runs() if (r.study, r.env) == (study, env)})


def seeds_of(study: str, env: str, label: str = "") -> str:
    """Return the numbers of seeds of a study's recorded arms (or of one arm): 5, or 3 to 5."""
    found = [r.label for r in read_runs() if (r.study, r.env) == (study, env) and label in ("", r.label)]
    counts = Counter(found).values()
    return f"{min(counts)} to {max(counts)}" if len({*counts}) > 1 else str(min(counts))


def cartpole_rows(algorithm: str, head: str) -> list[dict]:
    """Return the recorded seeds of an algorithm and a head."""
    names = (f"action_collapse/cartpole-{of}.json" for of in ("50", "10", "ppo"))
    rows = [row for name in names for row in read_json(name)["rows"]]
    return [row for row in rows if (row["algorithm"], row["head"]) == (algorithm, head)]


def cut(row: dict, until: int) -> np.ndarray:
    """Return the mean returns of the rollouts of a seed up to a step."""
    curve = row["curve"]
    return np.array(curve["return"])[np.array(curve["steps"]) <= until]
