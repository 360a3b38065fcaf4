"""A comparison of runs as one self-contained HTML page: `qscape compare RUNS --html FILE`."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from qscape.report import curves, findings, page, records, require_extra, tables, words
from qscape.report import draft as drafts
from qscape.report.draft import Draft
from qscape.report.intervals import FEWEST, INTERVAL
from qscape.report.labels import describe_shared
from qscape.report.numbers import digits_of
from qscape.report.page import escape_with_breaks
from qscape.report.records import NO_VALUE
from qscape.report.runs import RunRecord, identify_run
from qscape.report.tables import Comparison
from qscape.report.words import format_interval, format_number
from qscape.tracking import track

with require_extra("Pages"):
    import pandas as pd

LARGEST = 100_000  # episodes in the page's evaluations.csv; with more, a row is a whole evaluation
NAMED = 4  # agents or environments listed in the title; more are counted

FOOTER = (
    f"<footer>Made by qscape compare --html. Every interval of a mean is a {INTERVAL} over seeds, stratified "
    f"by environment; those of shares are score intervals. Fewer than {FEWEST} seeds have none. The page is "
    "self-contained and needs no network.</footer>"
)


def render_report(comparison: Comparison, runs: Sequence[RunRecord], reference: Sequence[str] = ()) -> str:
    """Render a comparison and the contents of its run folders as one HTML file.

    Args:
        comparison: the result of `tables.compare`.
        runs: the run folders, of `runs.read_runs`; those that are not compared are left out.
        reference: names of published curves.

    Raises:
        UsageError: a published curve is unknown.
    """
    full, comparison = comparison, tables.shorten(comparison)
    draft = drafts.begin_draft(comparison, runs, reference)
    add_leaders(draft)
    add_curves(draft)
    add_profile(draft)
    findings.add_smoothness(draft)
    findings.add_landscapes(draft)
    findings.add_embeddings(draft)
    findings.add_collapse(draft)
    add_settings(draft)
    files = add_downloads(draft, full)
    add_origin(draft)
    agents = _join_names(sorted(comparison.rows["recipe"].unique()), "agents")
    title = f"{agents} on {_join_names(draft.envs, 'environments')}"
    body = "".join(html for *_, html in draft.sections)
    return page.render_document(
        title,
        f"{render_header(draft, title)}<main>\n{render_summary(draft)}{body}</main>\n{FOOTER}",
        draft.figures,
        files,
    )


def _join_names(names: Sequence[str], what: str) -> str:
    if len(names) > NAMED:
        return f"{len(names)} {what}"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def render_header(draft: Draft, title: str) -> str:
    """Render the title, the number of runs, agents and environments, and links to the sections."""
    counts = {"run": len(draft.runs), "agent": len(draft.styles), "environment": len(draft.envs)}
    facts = " · ".join(f"{n} {what}{'s' if n != 1 else ''}" for what, n in counts.items())
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    links = page.contents((name, title) for name, title, _ in draft.sections)
    lines = filter(None, [f"{facts} · {date}", describe_shared(draft.comparison.shared)])
    said = "".join(f'<p class="quiet">{escape_with_breaks(line)}</p>' for line in lines)
    return f"<header><h1>{escape_with_breaks(title)}</h1>{said}{links}</header>\n"


# --- results ------------------------------------------------------------------------------------------


def render_summary(draft: Draft) -> str:
    """Render the ranking in sentences and the notes for the reader."""
    sentences = "".join(
        f"<li>{escape_with_breaks(sentence)}</li>"
        for sentence in words.summarise_comparison(draft.comparison)
    )
    notes = "".join(f"<li>{escape_with_breaks(note)}</li>" for note in draft.notes)
    box = f'<div class="notes"><strong>To know</strong><ul>{notes}</ul></div>' if notes else ""
    return page.section("summary", "Summary", f'<ul class="lead">{sentences}</ul>', box)


def add_leaders(draft: Draft) -> None:
    """Add tables with intervals: per environment, over environments, and pairwise."""
    comparison = draft.comparison
    of = "each run's best evaluation" if comparison.score == "best" else "the last evaluations of each run"
    intro = f"<p>Ranked by {of}: interquartile mean (IQM) over seeds, with its {INTERVAL}, or "
    intro += f"the range of fewer than {FEWEST} seeds, in brackets.</p>"
    parts = [_environment_table(comparison, env) for env in draft.envs]
    if len(comparison.aggregate):
        parts.append(_aggregate_table(comparison))
    if len(comparison.improvement):
        columns = ["pair", "probability", "95% interval", "environments"]
        rows = [
            [
                f"{row['x']} > {row['y']}",
                format_number(row["probability"], 2),
                format_interval(row["probability_low"], row["probability_high"], 2),
                row["environments"],
            ]
            for row in comparison.improvement.to_dict("records")
        ]
        caption = "Probability that a run of the first agent scores higher than one of the second; "
        caption += (
            f"{comparison.score} scores. Each pair stands for itself: of many pairs of equal agents, some "
        )
        caption += "intervals miss 0.5 by chance."
        parts += [
            "<h3>Probability of improvement</h3>",
            page.table(columns, rows, numbers=range(1, 4), caption=caption),
        ]
    draft.add_section("leaders", "Leaders", intro, *parts)


def _environment_table(comparison: Comparison, env: str) -> str:
    score, other = ("best", "final") if comparison.score == "best" else ("final", "best")
    of = comparison.per_env[comparison.per_env["env"] == env].sort_values(f"{score}_iqm", ascending=False)
    rows = [
        [
            row["label"], *_estimate_cells(row, score), format_number(row[f"{other}_iqm"]),
            row["seeds"], f"{row['steps']:,}", row["policy"],
        ]
        for row in of.to_dict("records")
    ]  # fmt: skip
    if len(comparison.published):
        published = comparison.published[comparison.published["our_env"] == env].to_dict("records")
        rows += [
            [
                f"{row['method']} on {row['env']}", *_published_cells(row, score), row["seeds"],
                f"{row['step']:,}", "published",
            ]
            for row in published
        ]  # fmt: skip
    columns = [
        "agent", f"{score} IQM", "95% interval", "mean ± std", f"{other} IQM", "seeds", "steps", "policy"
    ]  # fmt: skip
    return f"<h3>{escape_with_breaks(env)}</h3>" + page.table(columns, rows, numbers=range(1, 7), best=[0])


def _published_cells(row: Mapping[Any, Any], score: str) -> list[str]:
    """Format a published result, which is of final evaluations, below the columns of `score`."""
    iqm = format_number(row["iqm"])
    if score == "best":
        return [NO_VALUE, NO_VALUE, NO_VALUE, iqm]
    return [iqm, NO_VALUE, _mean_and_std(row["mean"], row["sd"]), NO_VALUE]


def _estimate_cells(row: Mapping[Any, Any], score: str) -> list[str]:
    """Format interquartile mean, interval or range, and mean ± std with the same number of decimals."""
    value = row[f"{score}_iqm"]
    between = format_interval(row[f"{score}_iqm_low"], row[f"{score}_iqm_high"], digits_of(value))
    if 1 < row["seeds"] < FEWEST:
        between = f"({format_interval(row[f'{score}_min'], row[f'{score}_max'], digits_of(value))})"
    return [format_number(value), between, _mean_and_std(row[f"{score}_mean"], row[f"{score}_std"])]


def _mean_and_std(mean: float, std: float) -> str:
    return (
        format_number(mean)
        if std != std
        else f"{format_number(mean)} ± {format_number(std, digits_of(mean))}"
    )


def _aggregate_table(comparison: Comparison) -> str:
    ranked: Sequence[Any] = comparison.aggregate.sort_values("iqm", ascending=False).to_dict("records")
    rows = [
        [
            row["label"], format_number(row["iqm"], 3), format_interval(row["iqm_low"], row["iqm_high"], 3),
            *(format_number(row[name], 3) for name in ("mean", "median", "optimality_gap")),
            row["seeds"], row["environments"],
        ]
        for row in ranked
    ]  # fmt: skip
    columns = [
        "agent", "IQM", "95% interval", "mean", "median", "optimality gap", "seeds", "environments"
    ]  # fmt: skip
    caption = f"Normalised {comparison.score} scores; 0: a random policy, 1: {ranked[0]['one_is']}."
    table = page.table(columns, rows, numbers=range(1, 8), best=[0], caption=caption)
    return f"<h3>Over environments</h3>{table}"


def add_curves(draft: Draft) -> None:
    """Add the learning curves of every environment."""
    rows = draft.comparison.rows
    placed = [
        draft.add_figure(
            curves.learning_curves_chart(
                rows[rows["env"] == env],
                published=draft.published,
                styles=draft.styles,
                metric=draft.comparison.metric,
            ),
            "",
            env,
        )
        for env in track(draft.envs, "learning curves")
    ]
    intro = (
        f"<p>Interquartile mean over seeds with a 95% band, or with the runs of fewer than {FEWEST} seeds. "
        "Click on a name to hide its curve, double-click to show it alone.</p>"
    )
    draft.add_section("curves", "Learning curves", intro, page.charts(*placed))


def add_profile(draft: Draft) -> None:
    """Add the performance profile if there are normalised scores."""
    if draft.comparison.scores:
        chart = curves.profile_chart(draft.comparison.scores, draft.styles)
        scale = draft.comparison.aggregate["one_is"].iloc[0]
        caption = f"Normalised {draft.comparison.score} scores: 0 is a random policy, 1 is {scale}. "
        caption += "Higher is better."
        draft.add_section("profile", "Performance profile", page.charts(draft.add_figure(chart, caption)))


# --- settings, data and origin ------------------------------------------------------------------------


def add_settings(draft: Draft) -> None:
    """Add the settings in which the agents differ."""
    columns, rows = records.differing_settings(draft.runs)
    intro = (
        "The parts of every agent, and the settings that differ; a part's fields are compared among the "
        "agents that have the part."
    )
    if len(rows) == 1:  # that of the parts
        intro = "All agents have the same settings."
    draft.add_section("settings", "Settings", f"<p>{intro}</p>", page.table(columns, rows))


def add_downloads(draft: Draft, comparison: Comparison) -> dict[str, str]:
    """Add the section of raw data and return the files behind its buttons, with the full labels."""
    evaluations, row = evaluations_csv(draft)
    files = {
        "evaluations.csv": evaluations,
        "comparison.csv": tables.to_csv(comparison),
        "comparison.json": tables.to_json(comparison),
    }
    links = "".join(f"<li>{page.download_link(name)}</li>" for name in files)
    intro = f"<p>Every run's evaluations (a row is {row}), and the tables above.</p>"
    draft.add_section("data", "Data", intro, f'<ul class="downloads">{links}</ul>')
    return files


def evaluations_csv(draft: Draft) -> tuple[str, str]:
    """Format the evaluations of the compared runs as CSV.

    Returns:
        The CSV, and the meaning of a row: "an episode", or "an evaluation" if there are over 100,000
            episodes.
    """
    frames, heads = [], ["run", "label", "env", "seed"]
    for run in draft.runs:
        head = identify_run(run.folder, run.record)  # with the full label
        frames.append(run.episodes.assign(**head).drop(columns="recipe"))
    frame = pd.concat(frames, ignore_index=True)
    if len(frame) > LARGEST:
        frame = frame.groupby([*heads, "step", "policy"], sort=False).mean(numeric_only=True)
        return frame.drop(columns="episode").reset_index().to_csv(index=False), "an evaluation"
    return frame[[*heads, *(name for name in frame if name not in heads)]].to_csv(index=False), "an episode"


def add_origin(draft: Draft) -> None:
    """Add versions, machine, and the runs with the commands that started them."""
    commands = [
        [run.folder, run.label, run.env, run.seed, run.record.get("command", NO_VALUE)] for run in draft.runs
    ]
    draft.add_section(
        "origin",
        "Versions and machine",
        page.table(["what", "value"], records.list_origins(draft.runs)),
        f"<details><summary>The {len(commands)} runs and their commands</summary>",
        page.table(["folder", "agent", "environment", "seed", "command"], commands, numbers=[3]),
        "</details>",
    )
