"""Charts of the results of `qscape.inspect.collapse`. Never imports jax."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qscape.report import require_extra
from qscape.report.charts import COLOURS, Axis, Chart, Line, Points
from qscape.report.figures import draw_chart, new_figure, wrap_label

with require_extra("Pictures of action collapse"):
    import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
METRICS = ("equinorm_h", "equiangularity_h", "max_angle_h", "within_variation", "self_duality")
TRIVIAL = ("equinorm_h", "equiangularity_h", "max_angle_h")  # 0 for two actions
FLOOR = 1e-4  # lowest value of a metric on the logarithmic axis


def note_trivial(record: Record) -> str:
    """Say which metrics mean nothing where only two actions occur; "" if more do at the last save.

    It is a sentence without its full stop.
    """
    if record["history"][-1].get("classes") != 2:
        return ""
    names = " and ".join(", ".join(name.replace("_", " ") for name in TRIVIAL).rsplit(", ", 1))
    return f"Two actions occur, and the means of two always are opposite: {names} are 0 whatever is learned"


def draw_collapse(records: Sequence[Record]) -> "Figure":
    """Draw the charts of `collapse_charts`, a row for each run."""
    figure = new_figure((14.0, 4.4 * len(records)))
    for axes, record in zip(figure.subplots(len(records), 3, squeeze=False), records, strict=True):
        for chart, ax in zip(collapse_charts(record), axes, strict=True):
            draw_chart(chart, ax)
        run = f"{record['label']}, {record['env']}, seed {record['seed']}"
        axes[0].title.set_text(f"{wrap_label(run)}\n{axes[0].get_title()}")
    return figure


def collapse_charts(record: Record) -> list[Chart]:
    """Describe angles and metrics over training, and features in the simplex's plane."""
    return [_angles_chart(record), _metrics_chart(record), _plane_chart(record)]


def metric_over_saves(record: Record, name: str) -> "np.ndarray":
    """Return a metric at each save of a run; NaN where it is undefined."""
    return np.array([math.nan if row[name] is None else row[name] for row in record["history"]], float)


def _angles_chart(record: Record) -> Chart:
    """Describe the mean deviation of cosines from those of a simplex, and the alignment of features and W."""
    names = {
        "max_angle_h": "|cos − ideal|, class means",
        "max_angle_w": "|cos − ideal|, rows of W",
        "alignment": "alignment cos(h, w)",
    }
    return Chart(
        "How far the angles are from those of a simplex, and how well features and rows align",
        Axis("environment steps", steps=True),
        Axis("cosine, or distance from the ideal cosine"),
        [_metric_line(record, column, name, k) for k, (column, name) in enumerate(names.items())],
        compare=True,
    )


def _metrics_chart(record: Record) -> Chart:
    """Describe metrics 1-5 on a logarithmic scale; 0 is a perfect collapse."""
    return Chart(
        ". ".join(filter(None, ["Distance from a perfect collapse; 0 is perfect", note_trivial(record)])),
        Axis("environment steps", steps=True),
        Axis("metric", log=True),
        [_metric_line(record, name, name.replace("_", " "), k, FLOOR) for k, name in enumerate(METRICS)],
        compare=True,
    )


def _metric_line(record: Record, column: str, name: str, k: int, least: float = -math.inf) -> Line:
    values = np.maximum(metric_over_saves(record, column), least)
    return Line(metric_over_saves(record, "step"), values, name, COLOURS[k], dots=True)


def _plane_chart(record: Record) -> Chart:
    """Describe the features of up to three actions, their means, and the directions of their rows of W."""
    points, actions = np.asarray(record["points"], float).reshape(-1, 2), np.asarray(record["actions"])
    traces: list[Line | Points] = []
    for k, action in enumerate(record["shown"]):
        name, (x, y) = f"action {int(action)}", record["rows"][k]
        at = points[actions == action]
        traces.append(Points(at[:, 0], at[:, 1], name, COLOURS[k], opacity=0.4, group=name))
        traces.append(Line([0.0, x], [0.0, y], "", COLOURS[k], group=name))
    means = np.asarray(record["means"], float).reshape(-1, 2)
    traces.append(Points(means[:, 0], means[:, 1], "means", "#000000", 9, "x"))
    return Chart(
        f"Features of {len(record['shown'])} actions in the plane of their simplex; lines: rows of W",
        Axis("first axis of the plane", "first"),
        Axis("second"),
        traces,
        square=True,
    )
