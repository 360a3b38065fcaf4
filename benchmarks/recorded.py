"""The recorded runs of benchmarks/results: their evaluations, by study, environment and label."""

import csv
import functools
import json
from typing import NamedTuple

import numpy as np
from blocks import RESULTS
from collect import read_archive

from qscape.report import task_label

COLUMNS = ("return", "success", "sm")  # numbers of an episode


class Run(NamedTuple):
    """A recorded run.

    Attributes:
        study: archive of results/learning.
        env: environment id, with its arguments and the dataset that the run learned from.
        label: recipe with the settings that differ from its defaults.
        seed: random seed.
        evaluations: column -> array [evaluations, episodes], of the policy that the run keeps, if it keeps
            one; "step" is [evaluations].
    """

    study: str
    env: str
    label: str
    seed: int
    evaluations: dict[str, np.ndarray]


def read_evaluations(text: str) -> dict[str, np.ndarray]:
    """Read evaluations.csv; of a run that keeps a policy, the rows of the current one are left out."""
    rows = [*csv.DictReader(text.splitlines())]
    rows = [r for r in rows if r["policy"] == "kept"] or rows
    steps = sorted({int(r["step"]) for r in rows})
    found: dict[str, np.ndarray] = {"step": np.array(steps)}
    for name in COLUMNS:
        if any(r.get(name) for r in rows):  # an episode that reports no success has none
            of = {step: [float(r[name] or 0) for r in rows if int(r["step"]) == step] for step in steps}
            found[name] = np.array([of[step] for step in steps])
    return found


@functools.cache
def read_runs() -> list[Run]:
    """Read all recorded runs, in a fixed order."""
    runs = []
    for archive in sorted((RESULTS / "learning").glob("*.tar.xz")):
        contents = {name: data.decode() for name, data in read_archive(archive).items()}
        for name in (name for name in contents if name.endswith("/run.json")):
            record, folder = json.loads(contents[name]), name.removesuffix("run.json")
            about = folder.split("/")[0], task_label(record), record["label"], record["seed"]
            runs.append(Run(*about, read_evaluations(contents[f"{folder}evaluations.csv"])))
    return runs


@functools.cache
def read_json(name: str) -> dict:
    """Read a file of results/."""
    return json.loads((RESULTS / name).read_text())


def at(evaluations: dict[str, np.ndarray], steps: float) -> int:
    """Return the index of the last evaluation at or before a step.

    Raises:
        ValueError: there is none.
    """
    index = int(np.searchsorted(evaluations["step"], steps, side="right")) - 1
    if index < 0:
        raise ValueError(f"no evaluation at or before step {steps}")
    return index
