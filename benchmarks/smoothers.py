"""Write the tables of smooth methods of docs/methods/smooth-actors.md from the recorded runs.

python benchmarks/smoothers.py

Reads results/learning/smoothers.tar.xz and pave.tar.xz, and the geometry of Q from the files
results/smoothness/smoothers-*.json, which `qscape smoothness RUN... --json FILE` writes.
"""

from typing import Any

import numpy as np
from blocks import RESULTS, ROOT, show, table, write_table
from recorded import Run, read_json, read_runs

from qscape.report.intervals import estimate, interquartile_mean
from qscape.report.labels import shorten_labels

PAGE = ROOT / "docs" / "methods" / "smooth-actors.md"
TABLES = {  # of the page: task, and base of its agents
    "smoothers-pendulum-sac": ("Pendulum-v1", "sac"),
    "smoothers-pendulum-td3": ("Pendulum-v1", "td3"),
}
STUDIES = ("smoothers", "pave")
GEOMETRY = ("mixed_norm_mean", "negative_definite")  # means over the points of a run
MEASURES = ("return", "sm")  # of an episode


def runs_of(task: str, base: str) -> dict[str, list[Run]]:
    """Return the runs of a task by the label of their agent, in the order of their oscillation."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(read_runs(), key=lambda run: run.seed):
        parts = run.label.partition("[")[0].split("+")
        if run.study in STUDIES and (run.env, parts[0]) == (task, base):
            groups.setdefault(run.label, []).append(run)
    middle = {label: interquartile_mean(ends(runs, "sm")[:, None]).value for label, runs in groups.items()}
    return {label: groups[label] for label in sorted(groups, key=lambda label: float(middle[label]))}


def ends(runs: list[Run], measure: str) -> np.ndarray:
    """Return a measure of the last evaluation of each run, the mean over episodes [runs]."""
    return np.array([run.evaluations[measure][-1].mean() for run in runs])


def curvatures() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the measured geometry of Q: task and label -> one entry for each run."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in sorted((RESULTS / "smoothness").glob("smoothers-*.json")):
        for run in read_json(f"smoothness/{file.name}")["runs"]:
            found.setdefault((run["env"], run["label"]), []).append(run["geometry"])
    return found


def interval(values: np.ndarray) -> str:
    """Format an interquartile mean over runs with its interval."""
    value, low, high = (float(x) for x in estimate(interquartile_mean(values[:, None])))
    bounds = "" if np.isnan(low) else f" [{show(low, like=value)}, {show(high, like=value)}]"
    return f"{show(value)}{bounds}"


def tables(task: str, base: str) -> str:
    """Format the two tables of a task: agents, and below them each of their seeds."""
    geometry, groups = curvatures(), runs_of(task, base)
    names, _ = shorten_labels(groups)  # all have the preset of the paper
    rows, seeds = [], []
    for label, runs in groups.items():
        values = [ends(runs, measure) for measure in MEASURES]
        shapes = geometry.get((task, label), [])
        means = [show(np.mean([of[name] for of in shapes])) if shapes else "–" for name in GEOMETRY]
        rows.append([f"`{names[label]}`", str(len(runs)), *map(interval, values), *means])
        seeds.append([f"`{names[label]}`", *(", ".join(map(show, of)) for of in values)])
    head = ["agent", "seeds", "return", "`sm`", "mean ‖H_sa‖", "H_aa negative definite"]
    each = table(["agent", "return of each seed", "`sm` of each seed"], seeds)
    folded = f'<details markdown="1">\n<summary>Each seed</summary>\n\n{each}\n</details>\n'
    return f"{table(head, rows)}\n{folded}"


def main() -> None:
    for name, (task, base) in TABLES.items():
        write_table(PAGE, name, tables(task, base))


if __name__ == "__main__":
    main()
