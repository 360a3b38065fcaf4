"""Write the tables of studies into their pages from the recorded runs: each agent, and below it each seed.

python benchmarks/study_tables.py

Reads results/learning, and the geometry of Q from the files results/smoothness/smoothers-*.json, which
`qscape smoothness RUN... --json FILE` writes.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from blocks import RESULTS, ROOT, show, table, write_table
from recorded import Run, read_json, read_runs

from qscape.report.intervals import estimate, interquartile_mean
from qscape.report.labels import shorten_labels


class Table(NamedTuple):
    """A table of a page.

    Attributes:
        page: its file.
        env: the task.
        studies: the archives of the runs.
        base: only agents whose recipe begins with this part; None: all.
        measures: of an episode, as `recorded.COLUMNS`; the agents are in the order of the last.
    """

    page: Path
    env: str
    studies: tuple[str, ...]
    base: str | None = None
    measures: tuple[str, ...] = ("return",)


METHODS = ROOT / "docs" / "methods"


def smooth(env: str, base: str) -> Table:
    """Return a table of smooth methods on one base."""
    studies, measures = ("smoothers", "pave"), ("return", "sm")
    return Table(METHODS / "smooth-actors.md", env, studies, base, measures)


TABLES = {
    "smoothers-pendulum-sac": smooth("Pendulum-v1", "sac"),
    "smoothers-pendulum-td3": smooth("Pendulum-v1", "td3"),
    "smoothers-reacher-sac": smooth("Reacher-v5", "sac"),
}
GEOMETRY = ("mixed_norm_mean", "negative_definite")  # means over the points of a run
HEADS = {"sm": "`sm`"}  # of columns, where they differ from the measure's name
FALLING = ("return", "success")  # the best has the largest


def runs_of(of: Table) -> dict[str, list[Run]]:
    """Return the runs of a table by the label of their agent, the best first."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(read_runs(), key=lambda run: run.seed):
        base = run.label.partition("[")[0].split("+")[0]
        if run.study in of.studies and run.env == of.env and of.base in (None, base):
            groups.setdefault(run.label, []).append(run)
    last = of.measures[-1]
    middle = {label: interquartile_mean(ends(runs, last)[:, None]).value for label, runs in groups.items()}
    order = sorted(groups, key=lambda label: float(middle[label]), reverse=last in FALLING)
    return {label: groups[label] for label in order}


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


def tables(of: Table) -> str:
    """Format the two tables of a task: agents, and below them each of their seeds.

    There are columns on the shape of Q if it was measured for any agent.
    """
    groups, measured = runs_of(of), curvatures()
    geometry = {label: measured[of.env, label] for label in groups if (of.env, label) in measured}
    names, _ = shorten_labels(groups)  # what all have is left out
    rows, seeds = [], []
    for label, runs in groups.items():
        values = [ends(runs, measure) for measure in of.measures]
        row = [f"`{names[label]}`", str(len(runs)), *map(interval, values)]
        if geometry:
            shapes = geometry.get(label, [])
            means = [np.mean([shape[name] for shape in shapes]) for name in GEOMETRY if shapes]
            row += [show(float(mean)) for mean in means] or ["–"] * len(GEOMETRY)
        rows.append(row)
        seeds.append([f"`{names[label]}`", *(", ".join(map(show, each)) for each in values)])
    heads = [HEADS.get(measure, measure) for measure in of.measures]
    shape = ["mean ‖H_sa‖", "H_aa negative definite"] if geometry else []
    each = table(["agent", *(f"{head} of each seed" for head in heads)], seeds)
    folded = f'<details markdown="1">\n<summary>Each seed</summary>\n\n{each}\n</details>\n'
    return f"{table(['agent', 'seeds', *heads, *shape], rows)}\n{folded}"


def main() -> None:
    for name, of in TABLES.items():
        write_table(of.page, name, tables(of))


if __name__ == "__main__":
    main()
