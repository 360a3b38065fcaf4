"""Plots of runs with matplotlib. Drawing functions take axes and return them, to be restyled."""

import re
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qscape.report import curves, require_extra
from qscape.report.charts import Chart, Line, Points, choose_styles
from qscape.tracking import track

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES: Mapping[str, Any] = {
    "solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (6, 2))
}  # fmt: skip
MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "cross": "P",
    "triangle-left": "<", "triangle-right": ">", "hexagon": "h", "star": "*", "x": "X", "x-thin": "x",
}  # fmt: skip
SHADES = "viridis"  # monotonic for colour-blind readers and in grey
MANY = 500  # points that are one picture in a vector file


def draw_learning_curves(rows: "pd.DataFrame", ax: "Axes | None" = None, **more: Any) -> "Axes":
    """Draw the learning curves of one environment: interquartile mean over seeds with a 95% band.

    Args:
        rows: evaluations of one policy (`statistics.select_policy`) in one environment.
        ax: axes to draw on; None: new ones.
        more: arguments of `curves.learning_curves_chart`.
    """
    return draw_chart(curves.learning_curves_chart(rows, **more), ax or new_figure().subplots())


def draw_overview(
    rows: "pd.DataFrame",
    *,
    published: "pd.DataFrame | None" = None,
    scores: "Mapping[str, np.ndarray] | None" = None,
    each: bool = False,
    metric: str = "return",
    styles: curves.Styles | None = None,
) -> "Figure":
    """Draw a panel of learning curves for each environment, and a profile if there are normalised scores.

    Args: as `curves.learning_curves_chart`; `scores`: normalised scores [R, T] by label, or None.
    """
    envs = sorted(rows["env"].unique())
    panels = len(envs) + bool(scores)
    columns = min(panels, 3)
    lines = -(-panels // columns)
    below = 0.4 * (rows["label"].nunique() + (0 if published is None else published["method"].nunique()))
    figure = new_figure((5.6 * columns, (4.2 + below) * lines))
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    styles = styles or choose_styles(rows["label"].tolist())
    for env, ax in zip(track(envs, "learning curves"), axes, strict=False):
        of_env = rows[rows["env"] == env]
        draw_learning_curves(of_env, ax, published=published, each=each, styles=styles, metric=metric)
    if scores:
        draw_chart(curves.profile_chart(scores, styles), axes[len(envs)])
    for ax in axes[panels:]:
        ax.remove()
    return figure


def draw_chart(chart: Chart, ax: "Axes") -> "Axes":
    """Draw a chart on axes, with a bar for the first values that are colours and have a title."""
    for trace in chart.traces:
        if isinstance(trace, Line):
            _draw_line(trace, ax)
        else:
            _draw_points(trace, ax)
    for axis, of in ((ax.xaxis, chart.x), (ax.yaxis, chart.y)):
        if of.log:
            axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        if of.range:
            axis.axes.set(**{f"{axis.axis_name}lim": of.range})
        if of.from_zero:
            axis.axes.set(**{f"{axis.axis_name}lim": (0, None)})
        if of.steps:
            axis.set_major_formatter(_step_formatter())
        if of.percent:
            axis.set_major_formatter("{x:.0%}")
    if chart.square:
        ax.set_aspect("equal", adjustable="datalim")
    style_axes(ax, chart.title, chart.x.title, chart.y.title)
    ax.title.set_fontsize(10)
    return ax


def _draw_line(line: Line, ax: "Axes") -> None:
    style = {"color": line.colour, "lw": line.width, "ls": DASHES[line.dash], "alpha": line.opacity}
    ax.plot(line.x, line.y, marker="." if line.dots else None, label=wrap_label(line.name), **style)
    if line.band is not None:
        ax.fill_between(line.x, *line.band, color=line.colour, alpha=0.18, lw=0)


def _draw_points(points: Points, ax: "Axes") -> None:
    style: dict[str, Any] = {"color": points.colour}
    if points.shades:
        style = {"c": points.colour, "cmap": SHADES, "vmin": points.shades.low, "vmax": points.shades.high}
    style |= {"edgecolor": points.edge or "none", "lw": 0.8 if points.edge else 0}
    drawn = ax.scatter(
        points.x, points.y, s=0.6 * points.size**2, marker=MARKERS[points.symbol], alpha=points.opacity,
        label=wrap_label(points.name), rasterized=len(points.x) > MANY, **style,
    )  # fmt: skip
    if points.x_ends is not None:
        ax.hlines(points.y, *points.x_ends, color=points.colour, alpha=0.45)
    if points.y_ends is not None:
        ax.vlines(points.x, *points.y_ends, color=points.colour, alpha=0.45)
    if points.shades and points.shades.title:
        ax.figure.colorbar(drawn, ax=ax, label=points.shades.title)


def set_notes(figure: "Figure", *notes: str) -> None:
    """Write sentences above all panels; empty ones are left out."""
    if lines := [textwrap.fill(note, int(13 * figure.get_figwidth())) for note in notes if note]:
        figure.suptitle("\n".join(lines).replace("$", r"\$"), fontsize=9)


def new_figure(size: tuple[float, float] = (6.4, 5.0)) -> "Figure":
    """Create a figure outside pyplot's state: no window, and the caller's backend stays.

    Raises:
        UsageError: matplotlib is missing.
    """
    with require_extra("Pictures"):
        from matplotlib.figure import Figure
    return Figure(size, layout="constrained")


def _step_formatter() -> Any:
    """Return ticks as 50k and 1M."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def style_axes(ax: "Axes", title: str, x: str, y: str) -> None:
    """Set title, axis labels, grid and a legend below the axes."""
    ax.set_title(wrap_label(title))
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16))


def add_break_points(label: str) -> str:
    """Insert spaces between the fields of a label, at which a line may break."""
    return re.sub(r",(?=[a-z_]+\.)", ", ", label)


def wrap_label(label: str) -> str:
    """Wrap a long label and escape its dollar signs, which matplotlib would read as formulas."""
    return textwrap.fill(add_break_points(label), 60, break_on_hyphens=False).replace("$", r"\$")
