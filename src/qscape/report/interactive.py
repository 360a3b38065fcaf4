"""Pictures of runs for a page: what `figures` draws with matplotlib, in plotly, to be hovered and clicked.

Text and background are the page's own (see `page.document`): a figure sets the colours of its data alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qscape.report import extra, references, statistics
from qscape.report.collapse import FLOOR, METRICS, column
from qscape.report.embeddings import asked
from qscape.report.figures import COLOURS, GREYS
from qscape.report.page import faint, label

with extra("Pages"):
    import numpy as np
    import pandas as pd
    from plotly.graph_objects import Figure

DASHES = ("solid", "dashdot", "dash", "dot")  # of the labels beyond one turn through the colours
SHADES = "Viridis"  # in order also for colour-blind eyes, and in grey
STEPS = {"title": "environment steps", "tickformat": "~s"}
BAR = {"thickness": 12, "outlinewidth": 0, "title": {"side": "right", "font": {"size": 12}}}

Look = Mapping[str, Any]  # of a line: colour and dash


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """Colour and dash of each label, the same in every chart of a page."""
    return {
        name: {"color": COLOURS[k % len(COLOURS)], "dash": DASHES[k // len(COLOURS) % len(DASHES)]}
        for k, name in enumerate(sorted(set(labels)))
    }


def chart(x: Mapping[str, Any], y: Mapping[str, Any], **layout: Any) -> Figure:
    """An empty chart with these axes."""
    return Figure(layout={"template": "none", "showlegend": True, "xaxis": x, "yaxis": y, **layout})


def learning_curves(
    rows: pd.DataFrame,
    published: pd.DataFrame | None,
    styles: Mapping[str, Look],
    reps: int,
    metric: str = "return",
) -> Figure:
    """One environment: for each label the interquartile mean over seeds, and its 95% band, toggled together.

    `rows`, `published`, `metric`: as `figures.learning_curves` takes them.
    """
    (env,) = rows["env"].unique()
    made = chart(STEPS, {"title": f"{statistics.METRIC_NAMES[metric]} (IQM)"}, hovermode="x unified")
    grid = statistics.common_grid(rows)
    for name, group in rows.groupby("label"):
        values = statistics.on_grid(group, grid)
        seeds = f"{len(values)} seed{'s' if len(values) > 1 else ''}"
        estimate = statistics.curve(values, reps)
        _banded(made, grid, estimate, f"{name} ({seeds})", styles[str(name)], ",.1f")
    if published is not None:
        _published(made, published, str(env), float(grid[-1]))
    return made


def _banded(
    made: Figure, x: np.ndarray, found: statistics.Estimate, name: str, look: Look, form: str
) -> None:
    """A line in its band; one click in the legend hides both."""
    there = np.isfinite(found.value)
    x, value, low, high = (np.asarray(part, float)[there] for part in (x, *found))
    with_band = bool(np.isfinite(low).any())
    if with_band:
        made.add_scatter(
            x=np.concatenate([x, x[::-1]]), y=np.concatenate([low, high[::-1]]), fill="toself", mode="lines",
            line={"width": 0}, fillcolor=faint(look["color"]), hoverinfo="skip", showlegend=False,
            legendgroup=name,
        )  # fmt: skip
    interval = f" [%{{customdata[0]:{form}}}, %{{customdata[1]:{form}}}]" if with_band else ""
    made.add_scatter(
        x=x, y=value, mode="lines" if len(x) > 1 else "markers", line={"width": 2, **look}, name=label(name),
        legendgroup=name, customdata=np.stack([low, high], 1) if with_band else None,
        hovertemplate=f"%{{y:{form}}}{interval}",
    )  # fmt: skip


def _published(made: Figure, published: pd.DataFrame, env: str, last: float) -> None:
    """Curves of others, grey and broken, as far as ours go."""
    same = (published["env"].map(references.task) == references.task(env)) & (published["step"] <= last)
    for k, method in enumerate(sorted(published["method"].unique())):  # the same line in every chart
        theirs = published[same & (published["method"] == method)]
        if theirs.empty:
            continue
        name = f"{method}, published: {theirs['env'].iloc[0]}, {theirs['seeds'].iloc[0]} seeds"
        made.add_scatter(
            x=theirs["step"].to_numpy(), y=theirs["curve"].to_numpy(), name=label(name),
            hovertemplate="%{y:,.1f}", mode="lines" if len(theirs) > 1 else "markers",
            line={"color": GREYS[k % len(GREYS)], "dash": ("dash", "dot", "dashdot")[k % 3], "width": 1.5},
        )  # fmt: skip


def profile(scores: Mapping[str, np.ndarray], styles: Mapping[str, Look], reps: int) -> Figure:
    """Performance profiles of normalised scores [R, T] by label."""
    y = {"title": "share of runs with score > τ", "range": [-0.02, 1.02], "tickformat": ".0%"}
    made = chart({"title": "normalised score τ"}, y, hovermode="x unified")
    taus = statistics.thresholds(scores.values())
    for name, x in scores.items():
        found = statistics.performance_profile(x, taus, reps)
        _banded(made, taus, found, name, styles[name], ".0%")
    return made


def pareto(runs: pd.DataFrame, styles: Mapping[str, Look], reps: int) -> Figure:
    """Smoothness against return in one environment, from label, seed, sm and return of each run.

    Large: the interquartile mean over seeds with 95% intervals; small: the seeds. The line joins the agents
    that no other beats in both.
    """
    made = chart({"title": "sm (lower is smoother)", "rangemode": "tozero"}, {"title": "return"})
    ends = {}
    for name, group in runs.groupby("label"):
        look, numbers = styles[str(name)]["color"], "<br>sm %{x:.4g}<br>return %{y:,.1f}<extra></extra>"
        found = statistics.curve(group[["sm", "return"]].to_numpy(float), reps)
        ends[str(name)] = found.value
        made.add_scatter(
            x=group["sm"].to_numpy(), y=group["return"].to_numpy(), mode="markers", opacity=0.45,
            marker={"size": 6, "color": look}, legendgroup=name, showlegend=False,
            customdata=group["seed"].to_numpy(),
            hovertemplate=f"{label(name)}, seed %{{customdata}}{numbers}",
        )  # fmt: skip
        bars = [
            {"type": "data", "symmetric": False, "array": [h - v], "arrayminus": [v - low], "color": look}
            for v, low, h in zip(*found, strict=True)
        ]
        made.add_scatter(
            x=found.value[:1], y=found.value[1:], mode="markers", marker={"size": 13, "color": look},
            error_x=bars[0] if len(group) > 1 else None, error_y=bars[1] if len(group) > 1 else None,
            name=label(f"{name} ({len(group)} seed{'s' if len(group) > 1 else ''})"), legendgroup=name,
            hovertemplate=label(name) + numbers,
        )  # fmt: skip
    front = np.array([ends[name] for name in not_dominated(ends)])
    if len(front) > 1:
        line = {"color": GREYS[1], "dash": "dot", "width": 1.5}
        made.add_scatter(
            x=front[:, 0], y=front[:, 1], mode="lines", line=line, name="Pareto front", hoverinfo="skip"
        )
    return made


def not_dominated(ends: Mapping[str, np.ndarray]) -> list[str]:
    """Labels that no other beats in both sm (lower) and return (higher), by sm."""
    front: list[str] = []
    for name in sorted(ends, key=lambda name: (ends[name][0], -ends[name][1])):
        if not front or ends[name][1] > ends[front[-1]][1]:
            front.append(name)
    return front


# --- what inspecting commands found ---------------------------------------------------------------------


def embedding(found: Mapping[str, Any]) -> list[tuple[str, Figure]]:
    """The three pictures of `embeddings`, with a sentence for each."""
    gap, cosine = (np.asarray(found["pairs"][k], float) for k in ("difference", "cosine"))
    pairs = chart(
        {"title": "difference of value |q − q′|"},
        {"title": "cosine of the embeddings", "range": [-1.05, 1.05]},
    )
    pairs.add_scatter(
        x=gap, y=cosine, mode="markers", marker={"size": 4, "color": COLOURS[0], "opacity": 0.35},
        name="pairs of state and action", hovertemplate="|q − q′| %{x:.3g}<br>cosine %{y:.3f}<extra></extra>",
    )  # fmt: skip
    if found["gap_scale"]:
        x, wanted, name = asked(found)
        line = {"color": COLOURS[1], "width": 2}
        pairs.add_scatter(x=x, y=wanted, mode="lines", line=line, name=name)
    return [
        (
            f"Close values, close pairs? Rank correlation {found['rank_correlation']:.2f} (−1: perfect).",
            pairs,
        ),
        ("The actions of one state on the two main axes of their embeddings.", _map_of_actions(found)),
        ("What the kernel weighs: the candidates of that state; 1 is a uniform weight.", _kernel(found)),
    ]


def _map_of_actions(found: Mapping[str, Any]) -> Figure:
    actions, candidates, own = found["actions"], found["candidates"], found["own"]
    values = np.concatenate([actions["value"], candidates["value"], [own["value"]]])
    shade = {"colorscale": SHADES, "cmin": values.min(), "cmax": values.max()}
    shares = [f"{share:.0%} of the variance" for share in found["explained"]]
    made = chart({"title": f"first component ({shares[0]})"}, {"title": f"second ({shares[1]})"})
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
        made.add_scatter(
            x=x, y=y, mode="markers", name=name, marker={"color": value, **shade, **marker},
            hovertemplate="Q %{marker.color:.4g}<extra></extra>",
        )  # fmt: skip
    return made


def _kernel(found: Mapping[str, Any]) -> Figure:
    candidates = found["candidates"]
    weight = len(candidates["weight"]) * np.asarray(candidates["weight"], float)
    made = chart({"title": "cosine to the policy's action"}, {"title": "weight × number of candidates"})
    bar = {**BAR, "title": {**BAR["title"], "text": "Q"}}
    marker = {"size": 8, "color": candidates["value"], "colorscale": SHADES, "colorbar": bar}
    made.add_scatter(
        x=candidates["cosine"], y=weight, mode="markers", marker=marker, name="candidates",
        hovertemplate="cosine %{x:.3f}<br>weight %{y:.3f}<br>Q %{marker.color:.4g}<extra></extra>",
    )  # fmt: skip
    made.add_hline(1.0, line={"color": GREYS[1], "dash": "dash", "width": 1})
    return made


def collapse(record: Mapping[str, Any]) -> list[tuple[str, Figure]]:
    """The three pictures of `collapse`, with a sentence for each."""
    steps = column(record, "step")
    angles = chart(STEPS, {"title": "cosine, or distance"}, hovermode="x unified")
    lines = {"max_angle_h": "|cos − ideal|, class means", "max_angle_w": "|cos − ideal|, rows of W"}
    for k, (name, said) in enumerate({**lines, "alignment": "alignment cos(h, w)"}.items()):
        _line(angles, steps, column(record, name), said, COLOURS[k])
    metrics = chart(
        STEPS,
        {"title": "metric", "type": "log", "exponentformat": "power", "dtick": 1},
        hovermode="x unified",
    )
    for k, name in enumerate(METRICS):
        _line(metrics, steps, np.maximum(column(record, name), FLOOR), name.replace("_", " "), COLOURS[k])
    return [
        ("How far the angles are from those of a simplex, and how well features and rows align.", angles),
        ("Distance from a perfect collapse; 0 is perfect.", metrics),
        (
            "Features of the most frequent actions in the plane of their simplex; lines: rows of W.",
            _plane(record),
        ),
    ]


def _line(made: Figure, x: np.ndarray, y: np.ndarray, name: str, colour: str) -> None:
    look = {"color": colour, "width": 2}
    made.add_scatter(x=x, y=y, mode="lines+markers", name=name, line=look, hovertemplate="%{y:.4g}")


def _plane(record: Mapping[str, Any]) -> Figure:
    points, actions = np.asarray(record["points"], float).reshape(-1, 2), np.asarray(record["actions"])
    even = {"scaleanchor": "x", "constrain": "domain"}
    made = chart({"title": "first axis of the plane", "constrain": "domain"}, {"title": "second", **even})
    for k, action in enumerate(record["shown"]):
        name, mine, (x, y) = f"action {int(action)}", points[actions == action], record["rows"][k]
        marker = {"size": 5, "opacity": 0.4, "color": COLOURS[k]}
        made.add_scatter(
            x=mine[:, 0], y=mine[:, 1], mode="markers", marker=marker, name=name, legendgroup=name,
            hovertemplate="(%{x:.3g}, %{y:.3g})",
        )  # fmt: skip
        row = {"color": COLOURS[k], "width": 2}
        made.add_scatter(
            x=[0, x], y=[0, y], mode="lines", line=row, legendgroup=name, showlegend=False, hoverinfo="skip"
        )
    x, y = np.asarray(record["means"], float).reshape(-1, 2).T
    marker = {"symbol": "x", "size": 9, "color": "#000000"}
    made.add_scatter(
        x=x, y=y, mode="markers", marker=marker, name="means", hovertemplate="(%{x:.3g}, %{y:.3g})"
    )
    return made
