"""Learning curves from the evaluations of run folders."""

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qscape.errors import RunError, UsageError

# Okabe and Ito's palette: told apart by people with any kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


class Curve(NamedTuple):
    """Mean return of each evaluation of one run."""

    label: str
    env: str
    seed: int
    steps: list[int]
    returns: list[float]


def read_curve(folder: Path) -> Curve:
    """The evaluation curve of a run: of the kept policy where checkpoints keep one.

    Raises:
        RunError: the folder holds no readable evaluations.
    """
    try:
        record = json.loads((folder / "run.json").read_text())
        with (folder / "evaluations.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        kept = any(row["policy"] == "kept" for row in rows)
        points: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            if row["policy"] == ("kept" if kept else "current"):
                points[int(row["step"])].append(float(row["return"]))
        label, env, seed = record["label"], record["env"], record["seed"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise RunError(f"{folder} holds no readable evaluations ({problem}).") from problem
    if not points:
        raise RunError(f"{folder} holds no evaluation yet.")
    steps = sorted(points)
    return Curve(label, env, seed, steps, [sum(points[s]) / len(points[s]) for s in steps])


def draw_curves(curves: Sequence[Curve]) -> Any:
    """A figure with one panel per environment: thin lines are runs, thick ones their mean.

    Raises:
        UsageError: matplotlib is missing.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as problem:
        raise UsageError('Pictures need the extra: pip install "qscape[report]".') from problem
    envs = sorted({c.env for c in curves})
    labels = sorted({c.label for c in curves})
    figure, axes = plt.subplots(
        1, len(envs), figsize=(6.4 * len(envs), 4.2), squeeze=False, layout="constrained"
    )
    for ax, env in zip(axes[0], envs, strict=True):
        for k, label in enumerate(labels):
            mine = [c for c in curves if c.env == env and c.label == label]
            if mine:
                _draw_runs(ax, mine, COLOURS[k % len(COLOURS)])
        ax.set_title(env)
        ax.set_xlabel("environment steps")
        ax.set_ylabel("evaluation return (mean over episodes)")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize="small")
    return figure


def _draw_runs(ax: Any, curves: Sequence[Curve], colour: str) -> None:
    n = len(curves)
    label = f"{curves[0].label} ({n} seed{'s' if n > 1 else ''})"
    for curve in curves:
        alone = n == 1
        ax.plot(
            curve.steps, curve.returns, color=colour, lw=1.8 if alone else 0.8, alpha=1.0 if alone else 0.45,
            label=label if alone else None,
        )  # fmt: skip
    if n > 1:
        shared = sorted(set.intersection(*(set(c.steps) for c in curves)))
        values = [dict(zip(c.steps, c.returns, strict=True)) for c in curves]
        ax.plot(shared, [sum(v[s] for v in values) / n for s in shared], color=colour, lw=2.2, label=label)
