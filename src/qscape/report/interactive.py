"""Plots of runs for a web page: the plots of `figures` as interactive plotly charts.

The page sets the colours of text and background (see `page.render_document`); a chart sets those of its data.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qscape.report import name_steps, references, require_extra, statistics
from qscape.report.collapse import FLOOR, METRICS, metric_over_saves, note_trivial
from qscape.report.embeddings import target_cosines
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
        name = f"{method}, published: {curve['env'].iloc[0]}, {curve['seeds'].iloc[0]} seeds"
        chart.add_scatter(
            x=curve["step"].to_numpy(), y=curve["curve"].to_numpy(), name=wrap_for_plotly(name),
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


# --- results of inspection commands -------------------------------------------------------------------


def embedding_charts(findings: Mapping[str, Any]) -> list[tuple[str, Figure]]:
    """Draw the three charts of `embeddings`, each with a caption."""
    gap, cosine = (np.asarray(findings["pairs"][k], float) for k in ("difference", "cosine"))
    pairs = empty_chart(
        {"title": "difference of value |q − q′|"},
        {"title": "cosine of the embeddings", "range": [-1.05, 1.05]},
    )
    pairs.add_scatter(
        x=gap, y=cosine, mode="markers", marker={"size": 4, "color": COLOURS[0], "opacity": 0.35},
        name="pairs of state and action", hovertemplate="|q − q′| %{x:.3g}<br>cosine %{y:.3f}<extra></extra>",
    )  # fmt: skip
    if findings["gap_scale"]:
        x, wanted, name = target_cosines(findings)
        line = {"color": COLOURS[1], "width": 2}
        pairs.add_scatter(x=x, y=wanted, mode="lines", line=line, name=name)
    return [
        (
            f"Close values, close pairs? Rank correlation {findings['rank_correlation']:.2f} (−1: perfect).",
            pairs,
        ),
        ("The actions of one state on the two main axes of their embeddings.", _action_map_chart(findings)),
        (
            "What the kernel weighs: the candidates of that state; 1 is a uniform weight.",
            _kernel_chart(findings),
        ),
    ]


def _action_map_chart(findings: Mapping[str, Any]) -> Figure:
    actions, candidates, own = findings["actions"], findings["candidates"], findings["own"]
    values = np.concatenate([actions["value"], candidates["value"], [own["value"]]])
    shade = {"colorscale": SHADES, "cmin": values.min(), "cmax": values.max()}
    shares = [f"{share:.0%} of the variance" for share in findings["explained"]]
    chart = empty_chart({"title": f"first component ({shares[0]})"}, {"title": f"second ({shares[1]})"})
    ring = {"width": 1, "color": "#000000"}
    drawn = (
        (actions["at"], actions["value"], "actions, uniform over the box",
         {"size": 5, "colorbar": {**BAR, "title": {**BAR["title"], "text": "Q"}}}),
        (candidates["at"], candidates["value"], "candidates", {"size": 8, "line": ring}),
        ([own["at"]], [own["value"]], "the policy's action",
         {"size": 17, "symbol": "star", "line": {"width": 1.5, "color": COLOURS[1]}}),
    )  # fmt: skip
    for at, value, name, marker in drawn:
        x, y = np.transpose(at)
        chart.add_scatter(
            x=x, y=y, mode="markers", name=name, marker={"color": value, **shade, **marker},
            hovertemplate="Q %{marker.color:.4g}<extra></extra>",
        )  # fmt: skip
    return chart


def _kernel_chart(findings: Mapping[str, Any]) -> Figure:
    candidates = findings["candidates"]
    weight = len(candidates["weight"]) * np.asarray(candidates["weight"], float)
    chart = empty_chart(
        {"title": "cosine to the policy's action"}, {"title": "weight × number of candidates"}
    )
    bar = {**BAR, "title": {**BAR["title"], "text": "Q"}}
    marker = {"size": 8, "color": candidates["value"], "colorscale": SHADES, "colorbar": bar}
    chart.add_scatter(
        x=candidates["cosine"], y=weight, mode="markers", marker=marker, name="candidates",
        hovertemplate="cosine %{x:.3f}<br>weight %{y:.3f}<br>Q %{marker.color:.4g}<extra></extra>",
    )  # fmt: skip
    chart.add_hline(1.0, line={"color": GREYS[1], "dash": "dash", "width": 1})
    return chart


def collapse_charts(record: Mapping[str, Any]) -> list[tuple[str, Figure]]:
    """Draw the three charts of `collapse`, each with a caption."""
    steps, note = metric_over_saves(record, "step"), note_trivial(record)
    angles = empty_chart(STEPS, {"title": "cosine, or distance"}, hovermode="x unified")
    lines = {"max_angle_h": "|cos − ideal|, class means", "max_angle_w": "|cos − ideal|, rows of W"}
    for k, (name, title) in enumerate({**lines, "alignment": "alignment cos(h, w)"}.items()):
        _add_line(angles, steps, metric_over_saves(record, name), title, COLOURS[k])
    metrics = empty_chart(
        STEPS,
        {"title": "metric", "type": "log", "exponentformat": "power", "dtick": 1},
        hovermode="x unified",
    )
    for k, name in enumerate(METRICS):
        _add_line(
            metrics,
            steps,
            np.maximum(metric_over_saves(record, name), FLOOR),
            name.replace("_", " "),
            COLOURS[k],
        )
    return [
        ("How far the angles are from those of a simplex, and how well features and rows align.", angles),
        (" ".join(filter(None, ["Distance from a perfect collapse; 0 is perfect.", note])), metrics),
        (
            "Features of the most frequent actions in the plane of their simplex; lines: rows of W.",
            _simplex_chart(record),
        ),
    ]


def _add_line(chart: Figure, x: np.ndarray, y: np.ndarray, name: str, colour: str) -> None:
    style = {"color": colour, "width": 2}
    chart.add_scatter(x=x, y=y, mode="lines+markers", name=name, line=style, hovertemplate="%{y:.4g}")


def _simplex_chart(record: Mapping[str, Any]) -> Figure:
    points, actions = np.asarray(record["points"], float).reshape(-1, 2), np.asarray(record["actions"])
    even = {"scaleanchor": "x", "constrain": "domain"}
    chart = empty_chart(
        {"title": "first axis of the plane", "constrain": "domain"}, {"title": "second", **even}
    )
    for k, action in enumerate(record["shown"]):
        name, selected, (x, y) = f"action {int(action)}", points[actions == action], record["rows"][k]
        marker = {"size": 5, "opacity": 0.4, "color": COLOURS[k]}
        chart.add_scatter(
            x=selected[:, 0], y=selected[:, 1], mode="markers", marker=marker, name=name, legendgroup=name,
            hovertemplate="(%{x:.3g}, %{y:.3g})",
        )  # fmt: skip
        row = {"color": COLOURS[k], "width": 2}
        chart.add_scatter(
            x=[0, x], y=[0, y], mode="lines", line=row, legendgroup=name, showlegend=False, hoverinfo="skip"
        )
    x, y = np.asarray(record["means"], float).reshape(-1, 2).T
    marker = {"symbol": "x", "size": 9, "color": "#000000"}
    chart.add_scatter(
        x=x, y=y, mode="markers", marker=marker, name="means", hovertemplate="(%{x:.3g}, %{y:.3g})"
    )
    return chart
