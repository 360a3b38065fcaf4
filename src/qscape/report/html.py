"""A comparison of runs as one page to put in front of one's group: `qscape compare RUNS --html FILE`."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qscape.report import draft as drafts
from qscape.report import findings, interactive, page, records, require_extra, runs, tables, words
from qscape.report.draft import Draft
from qscape.report.page import escape_with_breaks
from qscape.report.records import NO_VALUE
from qscape.report.tables import Comparison
from qscape.report.words import digits_of, format_interval, format_number

with require_extra("Pages"):
    import pandas as pd

LARGEST = 100_000  # episodes in the page's evaluations.csv; beyond, a row is a whole evaluation
NAMED = 4  # agents or environments in the title

FOOTER = (
    "<footer>Made by qscape compare --html. Intervals are percentiles of a stratified bootstrap over seeds. "
    "The page is whole in itself and needs no network.</footer>"
)


def render_report(made: Comparison, reference: Sequence[str] = (), reps: int = 2000) -> str:
    """A comparison and all that its run folders hold, as the text of one HTML file.

    `comparison`: what `tables.compare` found; the folders of its runs are read once more. `reference`: names of
    published curves. `reps`: bootstrap resamples.

    Raises:
        UsageError: an unknown published curve.
    """
    draft = drafts.begin_draft(made, reference, reps)
    add_leaders(draft)
    add_curves(draft)
    add_profile(draft)
    findings.add_smoothness(draft)
    findings.add_landscapes(draft)
    findings.add_embeddings(draft)
    findings.add_collapse(draft)
    add_settings(draft)
    files = add_downloads(draft)
    add_origin(draft)
    title = f"{_join_names(sorted(made.rows['recipe'].unique()), 'agents')} on {_join_names(draft.envs, 'environments')}"
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
    """Title, what was compared, and links to what follows."""
    counts = {"run": len(draft.runs), "agent": len(draft.styles), "environment": len(draft.envs)}
    said = " · ".join(f"{n} {what}{'s' if n != 1 else ''}" for what, n in counts.items())
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    links = page.contents((name, title) for name, title, _ in draft.sections)
    return (
        f'<header><h1>{escape_with_breaks(title)}</h1><p class="quiet">{said} · {made}</p>{links}</header>\n'
    )


# --- what the evaluations say -------------------------------------------------------------------------


def render_summary(draft: Draft) -> str:
    """Who leads where, and what a reader has to know."""
    said = "".join(
        f"<li>{escape_with_breaks(sentence)}</li>"
        for sentence in words.summarise_comparison(draft.comparison)
    )
    notes = "".join(f"<li>{escape_with_breaks(note)}</li>" for note in draft.notes)
    box = f'<div class="notes"><strong>To know</strong><ul>{notes}</ul></div>' if notes else ""
    return page.section("summary", "Summary", f'<ul class="lead">{said}</ul>', box)


def add_leaders(draft: Draft) -> None:
    """Tables with intervals: each environment, all of them together, pair by pair."""
    made = draft.comparison
    of = "each run's best evaluation" if made.score == "best" else "the last evaluations of each run"
    said = f"<p>Ranked by {of}: interquartile mean (IQM) over seeds, with its 95% bootstrap interval.</p>"
    parts = [_environment_table(made, env) for env in draft.envs]
    if len(made.aggregate):
        parts.append(_aggregate_table(made))
    if len(made.improvement):
        columns = ["pair", "probability", "95% interval", "environments"]
        rows = [
            [
                f"{row['x']} > {row['y']}",
                format_number(row["probability"], 2),
                format_interval(row["probability_low"], row["probability_high"], 2),
                row["environments"],
            ]
            for row in made.improvement.to_dict("records")
        ]
        caption = f"That a run of the first scores higher than one of the second; {made.score} scores."
        parts += [
            "<h3>Probability of improvement</h3>",
            page.table(columns, rows, numbers=range(1, 4), caption=caption),
        ]
    draft.add_section("leaders", "Leaders", said, *parts)


def _environment_table(made: Comparison, env: str) -> str:
    of = made.per_env[made.per_env["env"] == env].sort_values(f"{made.score}_iqm", ascending=False)
    rows = [
        [
            row["label"], *_estimate_cells(row, made.score), format_number(row["best_iqm"]), row["seeds"],
            f"{row['steps']:,}", row["policy"],
        ]
        for row in of.to_dict("records")
    ]  # fmt: skip
    if len(made.published):
        rows += [
            [
                f"{row['method']} on {row['env']}", format_number(row["iqm"]), NO_VALUE,
                _mean_and_std(row["mean"], row["sd"]), NO_VALUE, row["seeds"], f"{row['step']:,}", "published",
            ]
            for row in made.published[made.published["our_env"] == env].to_dict("records")
        ]  # fmt: skip
    columns = [
        "agent", f"{made.score} IQM", "95% interval", "mean ± std", "best IQM", "seeds", "steps", "policy"
    ]  # fmt: skip
    return f"<h3>{escape_with_breaks(env)}</h3>" + page.table(columns, rows, numbers=range(1, 7), best=[0])


def _estimate_cells(row: Mapping[Any, Any], score: str) -> list[str]:
    """Interquartile mean, its interval, mean with deviation, with as many decimals."""
    value = row[f"{score}_iqm"]
    between = format_interval(row[f"{score}_iqm_low"], row[f"{score}_iqm_high"], digits_of(value))
    return [format_number(value), between, _mean_and_std(row[f"{score}_mean"], row[f"{score}_std"])]


def _mean_and_std(mean: float, std: float) -> str:
    return (
        format_number(mean)
        if std != std
        else f"{format_number(mean)} ± {format_number(std, digits_of(mean))}"
    )


def _aggregate_table(made: Comparison) -> str:
    ranked: Sequence[Any] = made.aggregate.sort_values("iqm", ascending=False).to_dict("records")
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
    caption = f"Normalised {made.score} scores; 0: a random policy, 1: {ranked[0]['one_is']}."
    drawn = page.table(columns, rows, numbers=range(1, 8), best=[0], caption=caption)
    return f"<h3>Over environments</h3>{drawn}"


def add_curves(draft: Draft) -> None:
    """Learning curves of every environment."""
    rows = draft.comparison.rows
    placed = [
        draft.add_figure(
            interactive.learning_curves_chart(
                rows[rows["env"] == env], draft.published, draft.styles, draft.reps, draft.comparison.metric
            ),
            "",
            env,
        )
        for env in draft.envs
    ]
    said = (
        "<p>Interquartile mean over seeds in its 95% bootstrap band. A click on a name hides its curve and "
        "its band, a double click leaves it alone.</p>"
    )
    draft.add_section("curves", "Learning curves", said, page.charts(*placed))


def add_profile(draft: Draft) -> None:
    """The performance profile, where there are normalised scores."""
    if draft.comparison.scores:
        made = interactive.profile_chart(draft.comparison.scores, draft.styles, draft.reps)
        one = draft.comparison.aggregate["one_is"].iloc[0]
        said = (
            f"Normalised {draft.comparison.score} scores: 0 is a random policy, 1 is {one}. Higher is better."
        )
        draft.add_section("profile", "Performance profile", page.charts(draft.add_figure(made, said)))


# --- where it comes from ------------------------------------------------------------------------------


def add_settings(draft: Draft) -> None:
    """The settings in which agents differ."""
    columns, rows = records.differing_settings(draft.runs)
    said = "In these the agents differ; a part's fields are compared among the agents that have the part."
    if not rows:
        said = "The agents were given the same settings."
    draft.add_section("settings", "Settings", f"<p>{said}</p>", page.table(columns, rows) if rows else "")


def add_downloads(draft: Draft) -> dict[str, str]:
    """Raw data; gives the files behind the buttons."""
    evaluations, row = evaluations_csv(draft)
    files = {
        "evaluations.csv": evaluations,
        "comparison.csv": tables.to_csv(draft.comparison),
        "comparison.json": tables.to_json(draft.comparison),
    }
    links = "".join(f"<li>{page.download_link(name)}</li>" for name in files)
    said = f"<p>Every run's evaluations (a row is {row}), and the tables above.</p>"
    draft.add_section("data", "Data", said, f'<ul class="downloads">{links}</ul>')
    return files


def evaluations_csv(draft: Draft) -> tuple[str, str]:
    """The evaluations of the compared runs as CSV, and what a row of it is."""
    frames, heads = [], ["run", "label", "env", "seed"]
    for run in draft.runs:
        _, rows = runs.read_episodes(Path(run.folder))
        frames.append(rows.assign(run=run.folder, label=run.label, env=run.env, seed=run.seed))
    found = pd.concat(frames, ignore_index=True)
    if len(found) > LARGEST:
        found = found.groupby([*heads, "step", "policy"], sort=False).mean(numeric_only=True)
        return found.drop(columns="episode").reset_index().to_csv(index=False), "an evaluation"
    return found[[*heads, *(name for name in found if name not in heads)]].to_csv(index=False), "an episode"


def add_origin(draft: Draft) -> None:
    """Versions, machine, and the runs with the commands that made them."""
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
