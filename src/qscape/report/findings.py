"""Sections of a report about what inspecting commands and probes found; none where they found nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qscape.report import interactive, landscape_charts, page, records, require_extra
from qscape.report.draft import Draft
from qscape.report.page import escape, escape_with_breaks
from qscape.report.records import RunRecord

with require_extra("Pages"):
    import numpy as np
    import pandas as pd

MOST = 12  # pictures of one kind, with those of the run that reaches it: the page stays one

Pictures = Iterable[tuple[str, Any]]  # a sentence and a chart


def add_smoothness(draft: Draft) -> None:
    """Smoothness against return, from `qscape smoothness` or `--probe smoothness`."""
    if draft.comparison.metric != "return":
        return
    points = collect_smoothness(draft.comparison.rows, draft.runs)
    if points.empty:
        return
    placed = [
        draft.add_figure(interactive.pareto_chart(group, draft.styles, draft.reps), "", str(env))
        for env, group in points.groupby("env")
    ]
    said = (
        "<p>sm sums the amplitudes of the actions' spectrum, each times its frequency: <strong>lower is "
        "smoother</strong>, so the best agents stand at the top left. Large: interquartile mean over seeds "
        "with 95% intervals; small: the seeds.</p>"
    )
    draft.add_section("smoothness", "Smoothness against return", said, page.charts(*placed))


def collect_smoothness(rows: pd.DataFrame, runs: Sequence[RunRecord]) -> pd.DataFrame:
    """env, label, seed, sm, return of each run: means over the episodes that `qscape smoothness` played, else
    over those of the last evaluation, where it was probed."""
    found = []
    probed = rows.dropna(subset="sm") if "sm" in rows else rows.iloc[:0]
    for run in runs:
        try:
            episodes = run.findings["smoothness"]["per_episode"]
            sm, score = (float(np.mean(episodes[name])) for name in ("sm", "return"))
        except (KeyError, TypeError, ValueError):
            own = probed[probed["run"] == run.folder]
            if own.empty:
                continue
            sm, score = own.sort_values("step").iloc[-1][["sm", "return"]]
        found.append({"env": run.env, "label": run.label, "seed": run.seed, "sm": sm, "return": score})
    return pd.DataFrame(found)


def add_landscapes(draft: Draft) -> None:
    """Q over actions, from `qscape landscape`."""

    def draw(found: Mapping[str, Any]) -> Pictures:
        for fields in found["landscapes"]:
            survey = fields["survey"]
            share = f", {survey['gap'] / survey['span']:.1%} of Q's range" if survey["span"] else ""
            episode, _, step = fields["place"].partition(":")
            state = f"Episode {episode}, step {step}: the" if step else "The"
            said = f"{state} action lies {survey['gap']:.3g} below the best Q found{share}."
            yield said, landscape_charts.landscape_chart(fields)

    said = "Q over the actions at states that the agent visited: what it does, and what would be best."
    _add_findings(draft, "landscape", "landscapes", "Landscapes of Q", said, draw)


def add_embeddings(draft: Draft) -> None:
    """The geometry of values that SAVGO learned, from `qscape embedding`."""
    said = "A learned geometry of pairs of state and action, where close pairs are to have close values."
    _add_findings(draft, "embedding", "embeddings", "Embeddings", said, interactive.embedding_charts)


def add_collapse(draft: Draft) -> None:
    """Action collapse over training, from `qscape collapse`."""
    said = "How near the features and the action layer of a discrete policy came to one simplex."
    _add_findings(draft, "collapse", "collapse", "Action collapse", said, interactive.collapse_charts)


def _add_findings(
    draft: Draft, kind: str, name: str, title: str, said: str, draw: Callable[[Mapping[str, Any]], Pictures]
) -> None:
    """The pictures of the first run of each agent and environment that holds a finding of a kind."""
    parts: list[str] = []
    shown = pictures = 0
    for run in records.first_runs_with(draft.runs, kind):
        if pictures >= MOST:
            break
        try:
            drawn = list(draw(run.findings[kind]))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            draft.notes.append(f"skipped {run.folder}/inspect/{kind}.json: it is not of this qscape {kind}.")
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
        said += f" Shown: {shown} of the {holding} runs that qscape {kind} looked at."
    draft.add_section(name, title, f"<p>{escape(said)}</p>", *parts)
