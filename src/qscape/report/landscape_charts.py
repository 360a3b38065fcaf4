"""One landscape as an interactive plotly chart: the plot of `landscapes` with values on hover."""

import base64
from collections.abc import Mapping
from typing import Any

from qscape.report import require_extra
from qscape.report.marks import SHADES, Mark, axis_name, choose_look, list_marks
from qscape.report.page import wrap_for_plotly

with require_extra("Pages"):
    import numpy as np

ARROWS = "rgba(255, 255, 255, 0.8)"
VALID = "rgba(0, 158, 115, 0.14)"
ENTRIES = 3_000  # entries of a table in a chart, at most: each is an element of the page
NUMBERS = 8  # dimensions of an action in a hover text, at most


def landscape_chart(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Draw one landscape as a plotly figure (data and layout).

    `fields`: `Landscape.to_dict()`, or an entry of `landscapes` in landscape.json.
    """
    traces, layout = {"line": _line, "plane": _plane, "table": _table}[fields["kind"]](fields)
    flat = fields["kind"] == "plane" or len(fields["grid"]) == 2
    traces += [_mark(mark, mark.at[:, 1] if flat else mark.q) for mark in list_marks(fields)]
    return {"data": traces, "layout": {"hovermode": "closest", **layout}}


def _line(fields: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return Q above, its slope below: where the slope is positive, gradient ascent moves to the right."""
    (x,), (name,), (title,) = fields["grid"], _axis_names(fields), _axis_titles(fields)
    slope = np.asarray(fields["arrows"], float).reshape(-1, 2)
    hover = f"{name} %{{x:.3f}}<br>%{{meta}} %{{y:.4g}}<extra></extra>"
    style = {"mode": "lines", "showlegend": False, "hovertemplate": hover}
    traces = [
        {
            **style, "x": encode_array(x), "y": encode_array(fields["q"]), "meta": "Q",
            "line": {"color": "#333333", "width": 2},
        },
        {
            **style, "x": encode_array(slope[:, 0]), "y": encode_array(slope[:, 1]), "yaxis": "y2",
            "meta": "slope", "line": {"color": "#0072B2", "width": 1.5},
        },
        *_surrogate_traces(fields),
    ]  # fmt: skip
    layout = {
        "hovermode": "x",
        "xaxis": {"title": title, "anchor": "y2", "range": _range_with_margin(x)},
        "yaxis": {"title": "Q", "domain": [0.36, 1.0]},
        "shapes": [
            {
                "type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": VALID,
                "x0": low, "x1": high, "y0": 0, "y1": 1, "yref": "paper",
            }
            for low, high in fields.get("valid", ())  # older files lack it
        ],
        "yaxis2": {"title": "slope ∂Q/∂a", "domain": [0.0, 0.27], "zerolinecolor": "#979797"},
    }  # fmt: skip
    return traces, layout


def _surrogate_traces(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return SAVO's surrogates Ψ_i and the learned Ψ̂_i, hidden until one clicks on the name."""
    traces = []
    for i, surrogate in enumerate(fields.get("surrogates", ()), 1):  # older files lack it
        shade = SHADES[1:][(i - 1) % len(SHADES[1:])]
        for name, q, dash in ((f"Ψ<sub>{i}</sub> = max(Q, τ<sub>{i}</sub>)", surrogate["exact"], "solid"),
                              (f"learned Ψ<sub>{i}</sub>", surrogate["learned"], "dash")):  # fmt: skip
            if q is not None:
                traces.append({
                    "mode": "lines", "name": name, "visible": "legendonly",
                    "x": encode_array(fields["grid"][0]), "y": encode_array(q),
                    "line": {"color": shade, "width": 2, "dash": dash},
                    "hovertemplate": "%{fullData.name} %{y:.4g}<extra></extra>",
                })  # fmt: skip
    return traces


def _plane(fields: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return Q as colours and contours, its gradient as arrows."""
    (x, y), names, titles = fields["grid"], _axis_names(fields), _axis_titles(fields)
    hover = f"{names[0]} %{{x:.3f}}<br>{names[1]} %{{y:.3f}}<br>Q %{{z:.4g}}<extra></extra>"
    surface = {
        "type": "contour", "x": encode_array(x), "y": encode_array(y),
        "z": encode_array(np.asarray(fields["q"], float).T),
        "ncontours": 14, "contours": {"coloring": "heatmap"}, "connectgaps": False,
        "line": {"color": "rgba(255, 255, 255, 0.45)", "width": 0.6}, "hovertemplate": hover, **_colour_bar(),
    }  # fmt: skip
    square = 0.4 < np.ptp(x) / np.ptp(y) < 2.5  # a narrower plot with equal scales would be unreadable
    axis = {"constrain": "domain", "showgrid": False, "zeroline": False}
    layout = {
        "xaxis": {**axis, "title": titles[0], "range": _range_with_margin(x)},
        # A fixed margin: with tied axes plotly's automatic margins do not converge.
        "yaxis": {**axis, "title": titles[1], "range": _range_with_margin(y), "automargin": False}
        | ({"scaleanchor": "x"} if square else {}),
        "margin": {"l": 66},
    }
    return [surface, *_gradient_traces(fields)], layout


def _gradient_traces(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return arrows along ∇ₐQ, each centred at its point, with a length proportional to the root of the
    slope.

    The root makes steep and gentle slopes visible side by side; the longest arrows nearly touch.
    """
    arrows = np.asarray(fields["arrows"], float).reshape(-1, 4)
    slope = np.linalg.norm(arrows[:, 2:], axis=1, keepdims=True)
    arrows, slope = arrows[slope[:, 0] > 0], slope[slope[:, 0] > 0]
    if not len(arrows):
        return []
    apart = min(np.diff(np.unique(arrows[:, k].round(6))).min(initial=2.0) for k in (0, 1))
    half = 0.45 * apart * arrows[:, 2:] / slope * np.sqrt(slope / slope.max())
    ends = np.stack([arrows[:, :2] - half, arrows[:, :2] + half, np.full_like(half, np.nan)], 1).reshape(
        -1, 2
    )
    head = np.tile(np.array([0, 6, 0], np.uint8), len(arrows))
    group = {"legendgroup": "gradient", "name": "gradient field", "hoverinfo": "skip"}
    drawn = {
        **group, "x": encode_array(ends[:, 0]), "y": encode_array(ends[:, 1]), "showlegend": False,
        "mode": "lines+markers", "line": {"color": ARROWS, "width": 1.1},
        "marker": {"symbol": "arrow", "angleref": "previous", "size": encode_array(head), "color": ARROWS},
    }  # fmt: skip
    # White arrows would be invisible in the legend of a light page, so the legend shows a grey line.
    key = {**group, "mode": "lines", "x": [None], "y": [None], "line": {"color": "#979797", "width": 2}}
    return [drawn, key]


def _table(fields: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the entries of a table on its principal components; high ones are drawn over low and invalid
    ones.
    """
    q, grid = np.asarray(fields["q"], float), np.asarray(fields["grid"], float)
    order = np.argsort(np.where(np.isnan(q), -np.inf, q), kind="stable")
    order = order[np.linspace(0, len(q) - 1, min(len(q), ENTRIES)).astype(int)]
    titles = _axis_titles(fields)
    y = q if len(grid) == 1 else grid[1]
    dots = {
        "mode": "markers", "x": encode_array(grid[0][order]), "y": encode_array(y[order]),
        "showlegend": False,
        "marker": {
            "color": encode_array(q[order]), "size": float(np.clip(300 / np.sqrt(len(order)), 4, 11)),
            "line": {"color": "#979797", "width": 0.5}, **_colour_bar(),
        },
        "hovertemplate": "Q %{marker.color:.4g}<extra></extra>",
    }  # fmt: skip
    layout = {
        "xaxis": {"title": titles[0], "zeroline": False},
        "yaxis": {"title": "Q" if len(titles) == 1 else titles[1], "zeroline": False},
    }
    return [dots], layout


def _mark(mark: Mark, y: "np.ndarray") -> dict[str, Any]:
    symbol, size, colour = choose_look(mark)
    bare = mark.kind in ("optima", "chosen")
    hollow = mark.kind == "chosen" or (mark.off and mark.kind != "optima")
    hover = [f"{wrap_for_plotly(mark.name)}<br>action {format_action(a)}" for a in mark.action]
    return {
        "mode": "markers", "name": wrap_for_plotly(mark.name), "x": mark.at[:, 0].tolist(), "y": y.tolist(),
        "text": hover, "customdata": mark.q.tolist(), "cliponaxis": False,
        "hovertemplate": "%{text}<br>Q %{customdata:.4g}<extra></extra>",
        "marker": {
            "symbol": symbol + "-open" * hollow, "size": size, "color": colour,
            "line": {"color": colour if bare or hollow else "#000000", "width": 2 if bare or hollow else 1},
        },
    }  # fmt: skip


def format_action(action: Any) -> str:
    """Format the numbers of an action, at most the first eight."""
    shown = ", ".join(f"{x:.3f}".replace("-", "−") for x in action[:NUMBERS])
    return f"({shown}{', …' if len(action) > NUMBERS else ''})"


def encode_array(values: Any) -> dict[str, Any]:
    """Encode an array in plotly.js's base64 form: bytes unchanged, all other types as float32."""
    array = np.asarray(values)
    array = array if array.dtype == np.uint8 else array.astype("<f4")
    shape = {"shape": ",".join(map(str, array.shape))} if array.ndim > 1 else {}
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": "u1" if array.dtype == np.uint8 else "f4", "bdata": data} | shape


def _axis_names(fields: Mapping[str, Any]) -> list[str]:
    return [wrap_for_plotly(name, 60) for name in fields["plane"]["names"]]


def _axis_titles(fields: Mapping[str, Any]) -> list[str]:
    """Return names of the axes, in two lines."""
    lines = (axis_name(fields, k, "\n").splitlines() for k in range(len(_axis_names(fields))))
    return ["<br>".join(wrap_for_plotly(line, 60) for line in axis) for axis in lines]


def _colour_bar() -> dict[str, Any]:
    """Colour scale of Q with a horizontal bar above the chart, which fits a narrow screen."""
    bar = {
        "tickprefix": "Q ", "showtickprefix": "first",
        "orientation": "h", "thickness": 10, "outlinewidth": 0, "x": 0.5, "y": 1.0,
        "yanchor": "bottom", "len": 1.0, "nticks": 5, "tickangle": 0,
    }  # fmt: skip
    return {"colorscale": "Cividis", "colorbar": bar, "showscale": True}


def _range_with_margin(x: Any) -> list[float]:
    """Return an axis range with room for marks on the border."""
    low, high = float(np.min(x)), float(np.max(x))
    return [low - 0.03 * (high - low), high + 0.03 * (high - low)]
