"""Report sections about inspection results and probes; a section without results is left out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qscape.report import collapse, curves, embeddings, landscape_charts, page, records, require_extra
from qscape.report.charts import Chart
from qscape.report.draft import Draft
from qscape.report.page import escape, escape_with_breaks
from qscape.report.records import RunRecord

with require_extra("Pages"):
    import numpy as np
    import pandas as pd

MOST = 12  # no further run is shown once so many charts of one kind are on the page

Pictures = Iterable[tuple[str, Any]]  # caption and chart


def add_smoothness(draft: Draft) -> None:
    """Add smoothness against return, from `qscape smoothness` or `--probe smoothness`."""
    if draft.comparison.metric != "return":
        return
    points = collect_smoothness(draft.comparison.rows, draft.runs)
    shown = set() if points.empty else set(points["run"])
    draft.notes += [
        f"left out of smoothness: {run.folder}/inspect/smoothness.json is of another step or policy than "
        "the one compared; qscape smoothness measures the run again."
        for run in draft.runs
        if "smoothness" in run.findings and run.folder not in shown
    ]
    if points.empty:
        return
    placed = [
        draft.add_figure(curves.pareto_chart(group, draft.styles), "", str(env))
        for env, group in points.groupby("env")
    ]
    intro = (
        "<p>sm sums the amplitudes of the actions' spectrum, each times its frequency: <strong>lower is "
        "smoother</strong>, so the best agents stand at the top left. Large: interquartile mean over seeds "
        "with 95% intervals (five seeds and more); small: the seeds. Returns are not smoothed here.</p>"
    )
    draft.add_section("smoothness", "Smoothness against return", intro, page.charts(*placed))


def collect_smoothness(rows: pd.DataFrame, runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Collect run, env, label, seed, sm and return of each run.

    Returns are not smoothed. Uses the means over the episodes of `qscape smoothness` if it measured the
    policy and the step of a run's last row, else those of the last evaluation with the probe.
    """
    points = []
    probed = rows.dropna(subset="sm") if "sm" in rows else rows.iloc[:0]
    for run in runs:
        last = rows[rows["run"] == run.folder].sort_values("step")[["step", "policy"]].tail(1)
        try:
            found = run.findings["smoothness"]
            if [[found["step"], found["policy"]]] != last.to_numpy().tolist():
                raise KeyError("it is of another step or policy")
            sm, score = (float(np.mean(found["per_episode"][name])) for name in ("sm", "return"))
        except (KeyError, TypeError, ValueError):
            own = probed[probed["run"] == run.folder]
            if own.empty:
                continue
            raw = "unsmoothed" if "unsmoothed" in own else "return"
            sm, score = own.sort_values("step").iloc[-1][["sm", raw]]
        head = {"run": run.folder, "env": run.env, "label": run.label, "seed": run.seed}
        points.append({**head, "sm": sm, "return": score})
    return pd.DataFrame(points)


def add_landscapes(draft: Draft) -> None:
    """Add Q over actions, from `qscape landscape`."""

    def draw(findings: Mapping[str, Any]) -> Pictures:
        for fields in findings["landscapes"]:
            survey = fields["survey"]
            share = f", {survey['gap'] / survey['span']:.1%} of Q's range" if survey["span"] else ""
            episode, _, step = fields["place"].partition(":")
            state = f"Episode {episode}, step {step}: the" if step else "The"
            caption = f"{state} action lies {survey['gap']:.3g} below the best Q found{share}."
            yield caption, landscape_charts.landscape_chart(fields)

    intro = "Q over the actions at visited states: the agent's action, and the best one found."
    _add_findings(draft, "landscape", "landscapes", "Landscapes of Q", intro, draw)


def add_embeddings(draft: Draft) -> None:
    """Add the value geometry learned by SAVGO, from `qscape embedding`."""
    intro = "A learned geometry of state-action pairs, trained so that close pairs have close values."
    _add_findings(draft, "embedding", "embeddings", "Embeddings", intro, _render(embeddings.embedding_charts))


def add_collapse(draft: Draft) -> None:
    """Add action collapse over training, from `qscape collapse`."""
    intro = "The distance of a discrete policy's features and action layer from one common simplex."
    _add_findings(draft, "collapse", "collapse", "Action collapse", intro, _render(collapse.collapse_charts))


def _render(describe: Callable[[Mapping[str, Any]], list[Chart]]) -> Callable[[Mapping[str, Any]], Pictures]:
    """Return a function that draws the charts of `describe`, each above its title."""
    return lambda findings: [(f"{c.title}.", c) for c in describe(findings)]


def _add_findings(
    draft: Draft, kind: str, name: str, title: str, intro: str, draw: Callable[[Mapping[str, Any]], Pictures]
) -> None:
    """Add the charts of one kind of result, for the first run of each agent and environment that has it."""
    parts: list[str] = []
    shown = pictures = 0
    for run in records.first_runs_with(draft.runs, kind):
        if pictures >= MOST:
            break
        try:
            drawn = list(draw(run.findings[kind]))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            file = f"{run.folder}/inspect/{kind}.json"
            draft.notes.append(f"skipped {file}: it is not a result of this version of qscape {kind}.")
            continue
        shown, pictures = shown + 1, pictures + len(drawn)
        step = run.findings[kind].get("step")
        at = f", step {step:,}" if isinstance(step, int) else ""
        parts.append(f"<h3>{escape_with_breaks(f'{run.label} on {run.env}, seed {run.seed}{at}')}</h3>")
        parts.append(page.charts(*(draft.add_figure(chart, caption) for caption, chart in drawn)))
    if not shown:
        return
    holding = sum(kind in run.findings for run in draft.runs)
    if holding > shown:
        intro += f" Shown: {shown} of the {holding} runs measured by qscape {kind}."
    draft.add_section(name, title, f"<p>{escape(intro)}</p>", *parts)
