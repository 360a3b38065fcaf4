"""Plots of runs with matplotlib. Drawing functions take axes and return them, to be restyled."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qscape.report import name_steps, references, require_extra, statistics
from qscape.report.charts import Chart, Line
from qscape.report.intervals import FEWEST
from qscape.report.labels import number_agents
from qscape.tracking import track

with require_extra("Pictures"):
    import numpy as np
    import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinguishable with any kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Published curves are grey and dashed, so that they are not mistaken for the compared runs.
GREYS = ("#333333", "#6E6E6E", "#979797")
DASHES: tuple[Any, ...] = ("--", ":", (0, (6, 2, 1, 2)), (0, (2, 1)))  # of published curves
STROKES = ("-", "-.", "--", ":")  # change once all colours are used
SHADES = "viridis"  # monotonic for colour-blind readers and in grey
MARKERS = {"circle": "o", "star": "*", "x": "x"}
MANY = 500  # points that are one picture in a vector file

Styles = Mapping[str, Mapping[str, Any]]


def line_styles(labels: Sequence[str], names: Mapping[str, str] = {}) -> Styles:
    """Choose colour and line style of each agent; arguments and keys are those of `number_agents`."""
    return {
        name: {
            "color": COLOURS[k % len(COLOURS)],
            "ls": STROKES[k // len(COLOURS) % len(STROKES)],
            "lw": 2.0,
        }
        for name, k in number_agents(labels, names).items()
    }


def draw_learning_curves(
    rows: pd.DataFrame,
    ax: "Axes | None" = None,
    *,
    published: pd.DataFrame | None = None,
    each: bool = False,
    styles: Styles | None = None,
    metric: str = "return",
) -> "Axes":
    """Draw the learning curves of one environment: interquartile mean over seeds with a 95% band.

    Args:
        rows: evaluations of one policy (`statistics.select_policy`) in one environment.
        ax: axes to draw on; None: new ones.
        published: curves of `references.load_published`, drawn in grey up to our last step.
        each: draw a thin line for each run instead of the band, as of fewer than five runs always.
        styles: line properties by label; None: `line_styles`.
        metric: the metric that `statistics.select_metric` put into `rows`.
    """
    ax = ax or new_figure().subplots()
    styles = styles or line_styles(rows["label"].tolist())
    (env,) = rows["env"].unique()
    grid, banded = statistics.common_grid(rows), False
    for label, group in rows.groupby("label"):
        values, style = statistics.align_to_grid(group, grid), styles[str(label)]
        estimate = statistics.estimate_columns(values)
        n = len(values)
        if n > 1 and (each or n < FEWEST):
            for run in values:
                thin = {"color": style["color"], "lw": 0.8, "alpha": 0.45}
                ax.plot(grid, run, marker=_choose_marker(run), ms=4, **thin)
        elif n >= FEWEST:
            banded = True
            ax.fill_between(grid, estimate.low, estimate.high, color=style["color"], alpha=0.18, lw=0)
            if _choose_marker(estimate.value):
                at = np.isfinite(estimate.value)
                ax.vlines(grid[at], estimate.low[at], estimate.high[at], color=style["color"], alpha=0.45)
        name = wrap_label(f"{label} ({n} seed{'s' if n > 1 else ''})")
        ax.plot(grid, estimate.value, label=name, marker=_choose_marker(estimate.value), **style)
    if published is not None:
        _draw_published(ax, published, env, grid[-1])
    style_axes(
        ax, env, name_steps(env), f"{statistics.METRIC_NAMES[metric]} (IQM{', 95% band' if banded else ''})"
    )
    ax.xaxis.set_major_formatter(_step_formatter())
    return ax


def draw_profile(
    scores: Mapping[str, np.ndarray],
    ax: "Axes | None" = None,
    *,
    styles: Styles | None = None,
) -> "Axes":
    """Draw performance profiles of normalised scores [R, T] by label: the share of runs above each score."""
    ax = ax or new_figure().subplots()
    styles = styles or line_styles(list(scores))
    taus = statistics.profile_thresholds(scores.values())
    for label, x in scores.items():
        estimate = statistics.performance_profile(x, taus)
        ax.plot(taus, estimate.value, label=wrap_label(label), **styles[label])
        ax.fill_between(taus, estimate.low, estimate.high, color=styles[label]["color"], alpha=0.18, lw=0)
    style_axes(
        ax, "Performance profile", "normalised score τ (0: random policy)", "share of runs with score > τ"
    )
    ax.set_ylim(-0.02, 1.02)
    return ax


def draw_overview(
    rows: pd.DataFrame,
    *,
    published: pd.DataFrame | None = None,
    scores: Mapping[str, np.ndarray] | None = None,
    each: bool = False,
    metric: str = "return",
    styles: Styles | None = None,
) -> "Figure":
    """Draw a panel of learning curves for each environment, and a profile if there are normalised scores.

    Args: as `draw_learning_curves`; `scores`: normalised scores [R, T] by label, or None.
    """
    envs = sorted(rows["env"].unique())
    panels = len(envs) + bool(scores)
    columns = min(panels, 3)
    lines = -(-panels // columns)
    below = 0.4 * (rows["label"].nunique() + (0 if published is None else published["method"].nunique()))
    figure = new_figure((5.6 * columns, (4.2 + below) * lines))
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    styles = styles or line_styles(rows["label"].tolist())
    for env, ax in zip(track(envs, "learning curves"), axes, strict=False):
        of_env = rows[rows["env"] == env]
        draw_learning_curves(of_env, ax, published=published, each=each, styles=styles, metric=metric)
    if scores:
        draw_profile(scores, axes[len(envs)], styles=styles)
    for ax in axes[panels:]:
        ax.remove()
    return figure


def draw_chart(chart: Chart, ax: "Axes") -> "Axes":
    """Draw a chart on axes, with a bar for the first values that are colours and have a title."""
    for trace in chart.traces:
        label = wrap_label(trace.name)
        if isinstance(trace, Line):
            ls, marker = {"solid": "-", "dash": "--"}[trace.dash], "." if trace.dots else None
            ax.plot(trace.x, trace.y, color=trace.colour, lw=trace.width, ls=ls, marker=marker, label=label)
            continue
        style: dict[str, Any] = {"color": trace.colour}
        if trace.shades:
            style = {"c": trace.colour, "cmap": SHADES, "vmin": trace.shades.low, "vmax": trace.shades.high}
        if trace.symbol != "x":  # which is all rim
            style |= {"edgecolor": trace.edge or "none", "lw": 0.8 if trace.edge else 0}
        drawn = ax.scatter(
            trace.x, trace.y, s=0.6 * trace.size**2, marker=MARKERS[trace.symbol], alpha=trace.opacity,
            label=label, rasterized=len(trace.x) > MANY, **style,
        )  # fmt: skip
        if trace.shades and trace.shades.title:
            ax.figure.colorbar(drawn, ax=ax, label=trace.shades.title)
    for axis, of in ((ax.xaxis, chart.x), (ax.yaxis, chart.y)):
        if of.log:
            axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        if of.range:
            axis.axes.set(**{f"{axis.axis_name}lim": of.range})
        if of.steps:
            axis.set_major_formatter(_step_formatter())
    if chart.square:
        ax.set_aspect("equal", adjustable="datalim")
    style_axes(ax, chart.title, chart.x.title, chart.y.title)
    ax.title.set_fontsize(10)
    return ax


def set_notes(figure: "Figure", *notes: str) -> None:
    """Write sentences above all panels; empty ones are left out."""
    if lines := [textwrap.fill(note, int(13 * figure.get_figwidth())) for note in notes if note]:
        figure.suptitle("\n".join(lines).replace("$", r"\$"), fontsize=9)


def _choose_marker(values: Any) -> str | None:
    """Return a marker for a curve of a single point, which has no line; else None."""
    return "o" if np.isfinite(values).sum() == 1 else None


def _draw_published(ax: "Axes", published: pd.DataFrame, env: str, last: float) -> None:
    theirs = references.select_published(published, env)
    theirs = theirs[theirs["step"] <= last]
    for k, method in enumerate(sorted(published["method"].unique())):  # the same line in every panel
        curve = theirs[theirs["method"] == method]
        if curve.empty:
            continue
        about = curve.iloc[0]
        name = f"{references.name_curve(about, env)}, {about['protocol']}; {about['source']}"
        ax.plot(
            curve["step"], curve["curve"], color=GREYS[k % len(GREYS)], ls=DASHES[k % len(DASHES)],
            marker=_choose_marker(curve["curve"]), lw=1.4, zorder=1,
            label=wrap_label(name),
        )  # fmt: skip


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
    ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16))


def add_break_points(label: str) -> str:
    """Insert spaces between the fields of a label, at which a line may break."""
    return re.sub(r",(?=[a-z_]+\.)", ", ", label)


def wrap_label(label: str) -> str:
    """Wrap a long label and escape its dollar signs, which matplotlib would read as formulas."""
    return textwrap.fill(add_break_points(label), 60, break_on_hyphens=False).replace("$", r"\$")
