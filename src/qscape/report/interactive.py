"""Charts as interactive plotly charts for a web page.

The page sets the colours of text and background (see `page.render_document`); a chart sets those of its data.
"""

from typing import Any

from qscape.report import require_extra
from qscape.report.charts import Axis, Chart, Line, Points
from qscape.report.page import make_translucent, wrap_for_plotly

with require_extra("Pages"):
    import numpy as np
    from plotly.graph_objects import Figure

SHADES = "Viridis"  # monotonic for colour-blind readers and in grey
BAR = {"thickness": 12, "outlinewidth": 0, "title": {"side": "right", "font": {"size": 12}}}


def render_chart(chart: Chart) -> Figure:
    """Draw a chart for a page. Its title is left out: a page has it above or below the chart.

    A click in the legend toggles a trace with its group and its band.
    """
    x, y = (_render_axis(axis) for axis in (chart.x, chart.y))
    if chart.square:
        x, y = x | {"constrain": "domain"}, y | {"constrain": "domain", "scaleanchor": "x"}
    hovermode = "x unified" if chart.compare else "closest"
    layout = {"template": "none", "showlegend": True, "xaxis": x, "yaxis": y, "hovermode": hovermode}
    made = Figure(layout=layout)
    for trace in chart.traces:
        if isinstance(trace, Line) and trace.band is not None:
            made.add_scatter(**_render_band(trace))
        shown = _render_line(trace) if isinstance(trace, Line) else _render_points(trace)
        made.add_scatter(
            x=trace.x, y=trace.y, name=wrap_for_plotly(trace.name), showlegend=bool(trace.name),
            legendgroup=trace.group or None, **shown, **_render_hover(trace, chart),
        )  # fmt: skip
    return made


def _render_band(line: Line) -> dict[str, Any]:
    low, high = map(np.asarray, line.band or ())
    return {
        "x": np.concatenate([line.x, line.x[::-1]]), "y": np.concatenate([low, high[::-1]]), "fill": "toself",
        "mode": "lines", "line": {"width": 0}, "fillcolor": make_translucent(line.colour),
        "hoverinfo": "skip", "showlegend": False, "legendgroup": line.group or None,
    }  # fmt: skip


def _render_line(line: Line) -> dict[str, Any]:
    style = {"color": line.colour, "width": line.width, "dash": line.dash}
    return {"mode": "lines+markers" if line.dots else "lines", "line": style, "opacity": line.opacity}


def _render_points(points: Points) -> dict[str, Any]:
    marker: dict[str, Any] = {"size": points.size, "symbol": points.symbol, "opacity": points.opacity}
    marker |= {"color": points.colour}
    if points.edge:
        marker["line"] = {"width": 1, "color": points.edge}
    if points.shades:
        low, high, title = points.shades
        marker |= {"colorscale": SHADES, "cmin": low, "cmax": high}
        if title:
            marker["colorbar"] = {**BAR, "title": {**BAR["title"], "text": title}}
    style: dict[str, Any] = {"mode": "markers", "marker": marker}
    for name, at, ends in (("error_x", points.x, points.x_ends), ("error_y", points.y, points.y_ends)):
        if ends is not None:
            above, below = np.subtract(ends[1], at), np.subtract(at, ends[0])
            style[name] = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return style


def _render_hover(trace: Line | Points, chart: Chart) -> dict[str, Any]:
    """Return what a page shows of a trace at the reader's place."""
    x, y = (".0%" if axis.percent else ",.5~r" for axis in (chart.x, chart.y))
    if chart.compare and trace.name:
        ends = trace.band if isinstance(trace, Line) else trace.y_ends
        if ends is None:
            return {"hovertemplate": f"%{{y:{y}}}"}
        between = f" [%{{customdata[0]:{y}}}, %{{customdata[1]:{y}}}]"
        return {"hovertemplate": f"%{{y:{y}}}{between}", "customdata": np.stack(ends, 1)}
    if chart.compare or isinstance(trace, Line):
        return {"hoverinfo": "skip"}
    names = [axis.name or axis.title for axis in (chart.x, chart.y)]
    text = "%{text}<br>" if trace.texts else ""
    value = f"<br>Q %{{marker.color:{y}}}" if trace.shades else ""
    hover = f"{text}{names[0]} %{{x:{x}}}<br>{names[1]} %{{y:{y}}}{value}<extra></extra>"
    return {"hovertemplate": hover, "text": [wrap_for_plotly(text) for text in trace.texts] or None}


def _render_axis(axis: Axis) -> dict[str, Any]:
    shown: dict[str, Any] = {"title": axis.title}
    if axis.range:
        shown["range"] = axis.range
    if axis.from_zero:
        shown["rangemode"] = "tozero"
    if axis.log:
        shown |= {"type": "log", "exponentformat": "power", "dtick": 1}
    if axis.steps:
        shown["tickformat"] = "~s"
    if axis.percent:
        shown["tickformat"] = ".0%"
    return shown
