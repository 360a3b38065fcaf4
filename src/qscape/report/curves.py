"""Charts of runs: learning curves, profiles, smoothness against return, and measures over training."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from qscape.report import marks, name_steps, references, require_extra, statistics
from qscape.report.charts import GREYS, Axis, Chart, Line, Points, Style, choose_styles
from qscape.report.intervals import FEWEST

with require_extra("Charts"):
    import numpy as np
    import pandas as pd

PUBLISHED = ("dash", "dot", "dashdot", "longdash")  # of published curves: one more than there are greys

Styles = Mapping[str, Style]


def learning_curves_chart(
    rows: pd.DataFrame,
    *,
    published: pd.DataFrame | None = None,
    each: bool = False,
    styles: Styles | None = None,
    metric: str = "return",
) -> Chart:
    """Describe the learning curves of one environment: interquartile mean over seeds with a 95% band.

    Args:
        rows: evaluations of one policy (`statistics.select_policy`) in one environment.
        published: curves of `references.load_published`, drawn in grey up to our last step.
        each: a thin line for each run instead of the band, as of fewer than five runs always.
        styles: style of each label; None: `choose_styles`.
        metric: the metric that `statistics.select_metric` put into `rows`.
    """
    styles = styles or choose_styles(rows["label"].tolist())
    (env,) = rows["env"].unique()
    grid, traces, banded = statistics.common_grid(rows), [], False
    for label, group in rows.groupby("label"):
        values, style = statistics.align_to_grid(group, grid), styles[str(label)]
        n, estimate = len(values), statistics.estimate_columns(values)
        name, band = _count_seeds(str(label), n), None
        if n > 1 and (each or n < FEWEST):
            thin: dict[str, Any] = {"width": 0.8, "opacity": 0.45, "size": 5.0}
            traces += [_curve(grid, run, "", style, group=name, **thin) for run in values]
        elif n >= FEWEST:
            banded, band = True, (estimate.low, estimate.high)
        traces.append(_curve(grid, estimate.value, name, style, group=name, band=band))
    if published is not None:
        traces += _list_published(published, env, grid[-1])
    y = f"{statistics.METRIC_NAMES[metric]} (IQM{', 95% band' if banded else ''})"
    return Chart(env, Axis(name_steps(env), steps=True), Axis(y), traces, compare=True)


def _count_seeds(label: str, seeds: int) -> str:
    return f"{label} ({seeds} seed{'s' if seeds > 1 else ''})"


def _curve(
    x: Any,
    y: Any,
    name: str,
    style: Style,
    *,
    band: Any = None,
    width: float = 2.0,
    size: float = 8.0,
    opacity: float = 1.0,
    group: str = "",
) -> Line | Points:
    """Return a line through the finite values, or the only one of them as a point of a size."""
    finite = np.isfinite(y)
    x, y = np.asarray(x)[finite], np.asarray(y)[finite]
    ends = band and tuple(end[finite] for end in band)
    if len(x) == 1:
        return Points(x, y, name, style.colour, size, opacity=opacity, group=group, y_ends=ends)
    return Line(x, y, name, style.colour, width, style.dash, opacity=opacity, group=group, band=ends)


def _list_published(published: pd.DataFrame, env: str, last: float) -> list[Line | Points]:
    theirs = references.select_published(published, env)
    theirs = theirs[theirs["step"] <= last]
    traces = []
    for k, method in enumerate(sorted(published["method"].unique())):  # the same line in every chart
        curve = theirs[theirs["method"] == method]
        if not curve.empty:
            about = curve.iloc[0]
            source = f"{about['source']} ({about['licence']})"
            name = f"{references.name_curve(about, env)}, {about['protocol']}; {source}"
            style = Style(GREYS[k % len(GREYS)], PUBLISHED[k % len(PUBLISHED)], "circle")
            traces.append(_curve(curve["step"], curve["curve"], name, style, width=1.4))
    return traces


def profile_chart(scores: Mapping[str, np.ndarray], styles: Styles) -> Chart:
    """Describe performance profiles of normalised scores [R, T] by label: the share of runs above each
    score.
    """
    taus = statistics.profile_thresholds(scores.values())
    profiles = {label: statistics.performance_profile(x, taus) for label, x in scores.items()}
    return Chart(
        "Performance profile",
        Axis("normalised score τ (0: random policy)"),
        Axis("share of runs with score > τ", range=(-0.02, 1.02), percent=True),
        [
            _curve(taus, profile.value, label, styles[label], group=label, band=(profile.low, profile.high))
            for label, profile in profiles.items()
        ],
        compare=True,
    )


def pareto_chart(runs: pd.DataFrame, styles: Styles) -> Chart:
    """Describe smoothness against return in one environment.

    Large points: interquartile mean over seeds with 95% intervals (five and more); small ones: the seeds. A
    line joins the agents that no other agent beats in both, if all have several seeds.

    Args:
        runs: env, label, seed, sm and return of each run.
        styles: style of each label.
    """
    traces: list[Line | Points] = []
    centres = {}
    for label, group in runs.groupby("label"):
        name, (colour, _, symbol) = str(label), styles[str(label)]
        (x, y), seeds = group[["sm", "return"]].to_numpy(float).T, group["seed"]
        estimate = statistics.estimate_columns(np.stack([x, y], 1))
        centres[name] = estimate.value
        texts = [f"{name}, seed {seed}" for seed in seeds]
        traces.append(Points(x, y, "", colour, 6, symbol, 0.45, group=name, texts=texts))
        x_ends, y_ends = zip(estimate.low[:, None], estimate.high[:, None], strict=True)
        ends: dict[str, Any] = {"x_ends": x_ends, "y_ends": y_ends} if len(group) >= FEWEST else {}
        (x, y), legend = estimate.value[:, None], _count_seeds(name, len(group))
        traces.append(Points(x, y, legend, colour, 13, symbol, group=name, texts=[name], **ends))
    x, y = np.transpose([centres[name] for name in find_pareto_front(centres)])
    if len(x) > 1 and runs.groupby("label").size().min() > 1:  # one seed says nothing about the next one
        traces.append(Line(x, y, "Pareto front", GREYS[1], 1.5, "dot"))
    x_axis = Axis("sm (lower is smoother)", "sm", from_zero=True)
    return Chart(f"Smoothness against return in {runs['env'].iloc[0]}", x_axis, Axis("return"), traces)


def find_pareto_front(centres: Mapping[str, np.ndarray]) -> list[str]:
    """Return the labels that no other label beats in both sm (lower) and return (higher), sorted by sm.

    `centres`: (sm, return) by label.
    """
    front: list[str] = []
    for name in sorted(centres, key=lambda name: (centres[name][0], -centres[name][1])):
        if not front or centres[name][1] > centres[front[-1]][1]:
            front.append(name)
    return front


def training_charts(agents: Mapping[str, Mapping[str, Any]]) -> list[Chart]:
    """Describe the mean gap and the mean number of local optima at each save of each agent.

    Where no optima were counted, as among indices and in large tables, there is no second chart.

    `agents`: results of `measure_landscapes`, by agent; one with a single save is a point.
    """
    same = f"mean over the same {next(iter(agents.values()))['summary']['states']} states"
    charts = [_training_chart(agents, f"Optimality gap: {same}", "% of Q's range", _mean_gap)]
    if any(agent["summary"]["optima"] for agent in agents.values()):
        charts.append(_training_chart(agents, f"Local optima: {same}", "local optima", _mean_optima))
    return charts


def _mean_gap(summary: Mapping[str, Any]) -> float:
    return 100 * summary["action"]["share"]["mean"]


def _mean_optima(summary: Mapping[str, Any]) -> float:
    return summary["optima"]["mean"] if summary["optima"] else math.nan


def _training_chart(
    agents: Mapping[str, Mapping[str, Any]], title: str, y: str, of: Callable[[Mapping[str, Any]], float]
) -> Chart:
    names = marks.shown_names(agents)
    styles = choose_styles([*names], names)
    lines = []
    for name, agent in agents.items():
        moments = agent.get("over_training", [agent])
        x, values = zip(*((moment["step"], of(moment["summary"])) for moment in moments), strict=True)
        lines.append(Line(x, values, name, styles[name].colour, dash=styles[name].dash, dots=True))
    x_axis = Axis(marks.name_steps(agents), steps=True)
    return Chart(title, x_axis, Axis(y, from_zero=True), lines, compare=True)
