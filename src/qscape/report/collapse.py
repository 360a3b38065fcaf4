"""Plots of the results of `qscape.inspect.collapse`. Never imports jax."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qscape.report import require_extra
from qscape.report.figures import COLOURS, new_figure, style_axes

with require_extra("Pictures of action collapse"):
    import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
METRICS = ("equinorm_h", "equiangularity_h", "max_angle_h", "within_variation", "self_duality")
TRIVIAL = ("equinorm_h", "equiangularity_h", "max_angle_h")  # 0 for two actions
FLOOR = 1e-4  # lowest value of a metric on the logarithmic axis


def note_trivial(record: Record) -> str:
    """Say which metrics mean nothing where only two actions occur; "" if more do at the last save."""
    if record["history"][-1].get("classes") != 2:
        return ""
    names = " and ".join(", ".join(name.replace("_", " ") for name in TRIVIAL).rsplit(", ", 1))
    return f"Two actions occur, and the means of two always are opposite: {names} are 0 whatever is learned."


def draw_collapse(records: Sequence[Record]) -> "Figure":
    """Draw a row for each run: angles and metrics over training, features in the simplex's plane."""
    figure = new_figure((14.0, 4.4 * len(records)))
    for axes, record in zip(figure.subplots(len(records), 3, squeeze=False), records, strict=True):
        draw_angles(axes[0], record)
        draw_metrics(axes[1], record)
        draw_plane(axes[2], record)
    return figure


def metric_over_saves(record: Record, name: str) -> "np.ndarray":
    """Return a metric at each save of a run; NaN where it is undefined."""
    return np.array([math.nan if row[name] is None else row[name] for row in record["history"]], float)


def draw_angles(axes: "Axes", record: Record) -> None:
    """Draw the mean deviation of cosines from those of a simplex, and the alignment of features and W."""
    steps = metric_over_saves(record, "step")
    for k, (column, name) in enumerate((("max_angle_h", "class means"), ("max_angle_w", "rows of W"))):
        axes.plot(
            steps,
            metric_over_saves(record, column),
            color=COLOURS[k],
            marker=".",
            label=f"|cos - ideal|, {name}",
        )
    axes.plot(
        steps,
        metric_over_saves(record, "alignment"),
        color=COLOURS[2],
        marker=".",
        label="alignment cos(h, w)",
    )
    style_axes(
        axes,
        f"{record['label']}, {record['env']}, seed {record['seed']}",
        "environment steps",
        "cosine, or distance from the ideal cosine",
    )


def draw_metrics(axes: "Axes", record: Record) -> None:
    """Draw metrics 1-5 on a logarithmic scale; 0 is a perfect collapse."""
    for k, name in enumerate(METRICS):
        values = np.maximum(metric_over_saves(record, name), FLOOR)
        axes.plot(
            metric_over_saves(record, "step"),
            values,
            color=COLOURS[k],
            marker=".",
            label=name.replace("_", " "),
        )
    axes.set_yscale("log")
    title = " ".join(filter(None, ["Distance from a perfect collapse.", note_trivial(record)]))
    style_axes(axes, title, "environment steps", "metric")


def draw_plane(axes: "Axes", record: Record) -> None:
    """Draw the features of up to three actions, their means, and the directions of their rows of W."""
    points, actions = np.array(record["points"]).reshape(-1, 2), np.array(record["actions"])
    for k, action in enumerate(record["shown"]):
        selected = points[actions == action]
        axes.scatter(*selected.T, s=6, alpha=0.4, color=COLOURS[k], label=f"action {action}")
        x, y = record["rows"][k]
        axes.plot([0.0, x], [0.0, y], color=COLOURS[k], lw=1.5)
    axes.scatter(*np.array(record["means"]).reshape(-1, 2).T, marker="x", color="black", label="means")
    axes.set_aspect("equal", adjustable="datalim")
    title = f"Features of {len(record['shown'])} actions; lines: rows of W"
    style_axes(axes, title, "first axis of the plane", "second")
