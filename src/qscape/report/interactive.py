"""Plots of runs for a web page: the plots of `figures` as interactive plotly charts.

The page sets the colours of text and background (see `page.render_document`); a chart sets those of its data.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qscape.report import name_steps, references, require_extra, statistics
from qscape.report.charts import Axis, Chart, Line
from qscape.report.figures import COLOURS, GREYS
from qscape.report.intervals import FEWEST
from qscape.report.labels import number_agents
from qscape.report.page import make_translucent, wrap_for_plotly

with require_extra("Pages"):
    import numpy as np
    import pandas as pd
    from plotly.graph_objects import Figure

DASHES = ("solid", "dashdot", "dash", "dot")  # change once all colours are used
PUBLISHED = ("dash", "dot", "dashdot", "longdash")  # of published curves: one more than there are greys
SYMBOLS = ("circle", "square", "diamond", "triangle-up")  # of markers, where lines have these dashes
SHADES = "Viridis"  # monotonic for colour-blind readers and in grey
STEPS = {"title": "environment steps", "tickformat": "~s"}
BAR = {"thickness": 12, "outlinewidth": 0, "title": {"side": "right", "font": {"size": 12}}}

LineStyle = Mapping[str, Any]  # colour and dash


def make_line_styles(labels: Sequence[str], names: Mapping[str, str] = {}) -> dict[str, LineStyle]:
    """Choose colour and dash of each agent; arguments and keys are those of `number_agents`."""
    return {
        name: {"color": COLOURS[k % len(COLOURS)], "dash": DASHES[k // len(COLOURS) % len(DASHES)]}
        for name, k in number_agents(labels, names).items()
    }


def empty_chart(x: Mapping[str, Any], y: Mapping[str, Any], **layout: Any) -> Figure:
    """Create a chart with the given axes and no data."""
    return Figure(layout={"template": "none", "showlegend": True, "xaxis": x, "yaxis": y, **layout})


def learning_curves_chart(
    rows: pd.DataFrame,
    published: pd.DataFrame | None,
    styles: Mapping[str, LineStyle],
    metric: str = "return",
) -> Figure:
    """Draw the learning curves of one environment: interquartile mean over seeds with a 95% band,
    and each run where there are fewer than five.

    A click in the legend toggles a curve with its band. `rows`, `published` and `metric` as in
    `figures.draw_learning_curves`.
    """
    (env,) = rows["env"].unique()
    steps, returns = STEPS | {"title": name_steps(env)}, {"title": f"{statistics.METRIC_NAMES[metric]} (IQM)"}
    chart = empty_chart(steps, returns, hovermode="x unified")
    grid = statistics.common_grid(rows)
    for name, group in rows.groupby("label"):
        values = statistics.align_to_grid(group, grid)
        seeds = f"{len(values)} seed{'s' if len(values) > 1 else ''}"
        estimate = statistics.estimate_columns(values)
        if 1 < len(values) < FEWEST:
            _add_runs(chart, grid, values, f"{name} ({seeds})", styles[str(name)])
        _add_curve_with_band(chart, grid, estimate, f"{name} ({seeds})", styles[str(name)], ",.5~r")
    if published is not None:
        _add_published(chart, published, str(env), float(grid[-1]))
    return chart


def _add_runs(chart: Figure, x: np.ndarray, values: np.ndarray, name: str, style: LineStyle) -> None:
    """Add a thin line for each run, or points; one click in the legend hides them with the curve."""
    for run in values:
        at = np.isfinite(run)
        chart.add_scatter(
            x=x[at], y=run[at], mode="markers" if at.sum() == 1 else "lines", opacity=0.45,
            line={"width": 0.8, **style}, hoverinfo="skip", showlegend=False, legendgroup=name,
        )  # fmt: skip


def _add_curve_with_band(
    chart: Figure, x: np.ndarray, estimate: statistics.Estimate, name: str, style: LineStyle, form: str
) -> None:
    """Add a line and its band, or a point and its interval; one click in the legend hides both."""
    finite = np.isfinite(estimate.value)
    x, value, low, high = (np.asarray(part, float)[finite] for part in (x, *estimate))
    with_band = bool(np.isfinite(low).any())
    is_point = len(x) == 1
    if with_band and not is_point:
        chart.add_scatter(
            x=np.concatenate([x, x[::-1]]), y=np.concatenate([low, high[::-1]]), fill="toself", mode="lines",
            line={"width": 0}, fillcolor=make_translucent(style["color"]), hoverinfo="skip", showlegend=False,
            legendgroup=name,
        )  # fmt: skip
    interval = f" [%{{customdata[0]:{form}}}, %{{customdata[1]:{form}}}]" if with_band else ""
    error = {"type": "data", "symmetric": False, "array": high - value, "arrayminus": value - low}
    chart.add_scatter(
        x=x, y=value, mode="markers" if is_point else "lines", line={"width": 2, **style},
        error_y=error if with_band and is_point else None,
        name=wrap_for_plotly(name), legendgroup=name,
        customdata=np.stack([low, high], 1) if with_band else None, hovertemplate=f"%{{y:{form}}}{interval}",
    )  # fmt: skip


def _add_published(chart: Figure, published: pd.DataFrame, env: str, last: float) -> None:
    """Add published curves in grey, up to our last step."""
    theirs = references.select_published(published, env)
    theirs = theirs[theirs["step"] <= last]
    for k, method in enumerate(sorted(published["method"].unique())):  # the same line in every chart
        curve = theirs[theirs["method"] == method]
        if curve.empty:
            continue
        name = wrap_for_plotly(references.name_curve(curve.iloc[0], env))
        chart.add_scatter(
            x=curve["step"].to_numpy(), y=curve["curve"].to_numpy(), name=name,
            hovertemplate="%{y:,.5~r}", mode="lines" if len(curve) > 1 else "markers",
            line={"color": GREYS[k % len(GREYS)], "dash": PUBLISHED[k % len(PUBLISHED)], "width": 1.5},
        )  # fmt: skip


def profile_chart(scores: Mapping[str, np.ndarray], styles: Mapping[str, LineStyle]) -> Figure:
    """Draw performance profiles of normalised scores [R, T] by label."""
    y = {"title": "share of runs with score > τ", "range": [-0.02, 1.02], "tickformat": ".0%"}
    chart = empty_chart({"title": "normalised score τ"}, y, hovermode="x unified")
    taus = statistics.profile_thresholds(scores.values())
    for name, x in scores.items():
        estimate = statistics.performance_profile(x, taus)
        _add_curve_with_band(chart, taus, estimate, name, styles[name], ".0%")
    return chart


def pareto_chart(runs: pd.DataFrame, styles: Mapping[str, LineStyle]) -> Figure:
    """Draw smoothness against return in one environment.

    Large markers: interquartile mean over seeds with 95% intervals (five and more); small ones: the seeds. A
    line joins the agents that no other agent beats in both, if all have several seeds.

    Args:
        runs: label, seed, sm and return of each run.
        styles: colour and dash of each label; the dash selects the symbol.
    """
    chart = empty_chart({"title": "sm (lower is smoother)", "rangemode": "tozero"}, {"title": "return"})
    centres = {}
    for name, group in runs.groupby("label"):
        colour, symbol = styles[str(name)]["color"], SYMBOLS[DASHES.index(styles[str(name)]["dash"])]
        hover = "<br>sm %{x:.4g}<br>return %{y:,.5~r}<extra></extra>"
        estimate = statistics.estimate_columns(group[["sm", "return"]].to_numpy(float))
        centres[str(name)] = estimate.value
        chart.add_scatter(
            x=group["sm"].to_numpy(), y=group["return"].to_numpy(), mode="markers", opacity=0.45,
            marker={"size": 6, "color": colour, "symbol": symbol}, legendgroup=name, showlegend=False,
            customdata=group["seed"].to_numpy(),
            hovertemplate=f"{wrap_for_plotly(name)}, seed %{{customdata}}{hover}",
        )  # fmt: skip
        bars = [
            {"type": "data", "symmetric": False, "array": [h - v], "arrayminus": [v - low], "color": colour}
            for v, low, h in zip(*estimate, strict=True)
        ]
        chart.add_scatter(
            x=estimate.value[:1], y=estimate.value[1:], mode="markers",
            marker={"size": 13, "color": colour, "symbol": symbol},
            error_x=bars[0] if len(group) >= FEWEST else None,
            error_y=bars[1] if len(group) >= FEWEST else None,
            name=wrap_for_plotly(f"{name} ({len(group)} seed{'s' if len(group) > 1 else ''})"),
            legendgroup=name, hovertemplate=wrap_for_plotly(name) + hover,
        )  # fmt: skip
    front = np.array([centres[name] for name in find_pareto_front(centres)])
    if len(front) > 1 and runs.groupby("label").size().min() > 1:  # one seed says nothing about the next one
        line = {"color": GREYS[1], "dash": "dot", "width": 1.5}
        chart.add_scatter(
            x=front[:, 0], y=front[:, 1], mode="lines", line=line, name="Pareto front", hoverinfo="skip"
        )
    return chart


def find_pareto_front(centres: Mapping[str, np.ndarray]) -> list[str]:
    """Return the labels that no other label beats in both sm (lower) and return (higher), sorted by sm.

    `centres`: (sm, return) by label.
    """
    front: list[str] = []
    for name in sorted(centres, key=lambda name: (centres[name][0], -centres[name][1])):
        if not front or centres[name][1] > centres[front[-1]][1]:
            front.append(name)
    return front


# --- any chart ----------------------------------------------------------------------------------------


def render_chart(chart: Chart) -> Figure:
    """Draw a chart for a page. Its title is left out: a page has it below the chart."""
    x, y = (_render_axis(axis) for axis in (chart.x, chart.y))
    if chart.square:
        x, y = x | {"constrain": "domain"}, y | {"constrain": "domain", "scaleanchor": "x"}
    made = empty_chart(x, y, hovermode="x unified" if chart.compare else "closest")
    names = [axis.name or axis.title for axis in (chart.x, chart.y)]
    hover = f"{names[0]} %{{x:.4g}}<br>{names[1]} %{{y:.4g}}"
    for trace in chart.traces:
        style: dict[str, Any] = {"x": trace.x, "y": trace.y, "name": wrap_for_plotly(trace.name)}
        style |= {"legendgroup": trace.group or None, "showlegend": bool(trace.name)}
        if isinstance(trace, Line):
            line = {"color": trace.colour, "width": trace.width, "dash": trace.dash}
            style |= {"mode": "lines+markers" if trace.dots else "lines", "line": line}
            style |= {"hovertemplate": "%{y:.4g}"} if chart.compare else {"hoverinfo": "skip"}
        else:
            marker: dict[str, Any] = {"size": trace.size, "symbol": trace.symbol, "opacity": trace.opacity}
            marker |= {"color": trace.colour}
            if trace.edge:
                marker["line"] = {"width": 1, "color": trace.edge}
            if trace.shades:
                low, high, title = trace.shades
                marker |= {"colorscale": SHADES, "cmin": low, "cmax": high}
                if title:
                    marker["colorbar"] = {**BAR, "title": {**BAR["title"], "text": title}}
            value = "<br>Q %{marker.color:.4g}" if trace.shades else ""
            style |= {"mode": "markers", "marker": marker, "hovertemplate": f"{hover}{value}<extra></extra>"}
        made.add_scatter(**style)
    return made


def _render_axis(axis: Axis) -> dict[str, Any]:
    shown: dict[str, Any] = {"title": axis.title}
    if axis.range:
        shown["range"] = axis.range
    if axis.log:
        shown |= {"type": "log", "exponentformat": "power", "dtick": 1}
    if axis.steps:
        shown["tickformat"] = STEPS["tickformat"]
    return shown
