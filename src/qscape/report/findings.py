"""Sections of a report about what inspecting commands and probes found; none where they found nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qscape.report import extra, interactive, landscape_charts, page, records
from qscape.report.draft import Draft
from qscape.report.page import prose, text
from qscape.report.records import Run

with extra("Pages"):
    import numpy as np
    import pandas as pd

MOST = 12  # pictures of one kind, with those of the run that reaches it: the page stays one

Pictures = Iterable[tuple[str, Any]]  # a sentence and a chart


def smoothness(draft: Draft) -> None:
    """Smoothness against return, from `qscape smoothness` or `--probe smoothness`."""
    if draft.made.metric != "return":
        return
    points = smoothness_of_runs(draft.made.rows, draft.runs)
    if points.empty:
        return
    placed = [
        draft.figure(interactive.pareto(group, draft.styles, draft.reps), "", str(env))
        for env, group in points.groupby("env")
    ]
    said = (
        "<p>sm sums the amplitudes of the actions' spectrum, each times its frequency: <strong>lower is "
        "smoother</strong>, so the best agents stand at the top left. Large: interquartile mean over seeds "
        "with 95% intervals; small: the seeds.</p>"
    )
    draft.section("smoothness", "Smoothness against return", said, page.charts(*placed))


def smoothness_of_runs(rows: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """env, label, seed, sm, return of each run: means over the episodes that `qscape smoothness` played, else
    over those of the last evaluation, where it was probed."""
    found = []
    probed = rows.dropna(subset="sm") if "sm" in rows else rows.iloc[:0]
    for run in runs:
        try:
            episodes = run.found["smoothness"]["per_episode"]
            sm, score = (float(np.mean(episodes[name])) for name in ("sm", "return"))
        except (KeyError, TypeError, ValueError):
            own = probed[probed["run"] == run.folder]
            if own.empty:
                continue
            sm, score = own.sort_values("step").iloc[-1][["sm", "return"]]
        found.append({"env": run.env, "label": run.label, "seed": run.seed, "sm": sm, "return": score})
    return pd.DataFrame(found)


def landscapes(draft: Draft) -> None:
    """Q over actions, from `qscape landscape`."""

    def draw(found: Mapping[str, Any]) -> Pictures:
        for fields in found["landscapes"]:
            survey = fields["survey"]
            share = f", {survey['gap'] / survey['span']:.1%} of Q's range" if survey["span"] else ""
            episode, _, step = fields["place"].partition(":")
            state = f"Episode {episode}, step {step}: the" if step else "The"
            said = f"{state} action lies {survey['gap']:.3g} below the best Q found{share}."
            yield said, landscape_charts.chart(fields)

    said = "Q over the actions at states that the agent visited: what it does, and what would be best."
    _findings(draft, "landscape", "landscapes", "Landscapes of Q", said, draw)


def embeddings(draft: Draft) -> None:
    """The geometry of values that SAVGO learned, from `qscape embedding`."""
    said = "A learned geometry of pairs of state and action, where close pairs are to have close values."
    _findings(draft, "embedding", "embeddings", "Embeddings", said, interactive.embedding)


def collapse(draft: Draft) -> None:
    """Action collapse over training, from `qscape collapse`."""
    said = "How near the features and the action layer of a discrete policy came to one simplex."
    _findings(draft, "collapse", "collapse", "Action collapse", said, interactive.collapse)


def _findings(
    draft: Draft, kind: str, name: str, title: str, said: str, draw: Callable[[Mapping[str, Any]], Pictures]
) -> None:
    """The pictures of the first run of each agent and environment that holds a finding of a kind."""
    parts: list[str] = []
    shown = pictures = 0
    for run in records.first_with(draft.runs, kind):
        if pictures >= MOST:
            break
        try:
            drawn = list(draw(run.found[kind]))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            draft.notes.append(f"skipped {run.folder}/inspect/{kind}.json: it is not of this qscape {kind}.")
            continue
        shown, pictures = shown + 1, pictures + len(drawn)
        step = run.found[kind].get("step")
        at = f", step {step:,}" if isinstance(step, int) else ""
        parts.append(f"<h3>{prose(f'{run.label} on {run.env}, seed {run.seed}{at}')}</h3>")
        parts.append(page.charts(*(draft.figure(chart, caption) for caption, chart in drawn)))
    if not shown:
        return
    holding = sum(kind in run.found for run in draft.runs)
    if holding > shown:
        said += f" Shown: {shown} of the {holding} runs that qscape {kind} looked at."
    draft.section(name, title, f"<p>{text(said)}</p>", *parts)
