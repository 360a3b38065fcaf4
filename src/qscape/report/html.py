"""A comparison of runs as one page to put in front of one's group: `qscape compare RUNS --html FILE`."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qscape.report import draft as drafts
from qscape.report import extra, findings, interactive, page, records, runs, tables, words
from qscape.report.draft import Draft
from qscape.report.page import prose
from qscape.report.records import NOTHING
from qscape.report.tables import Comparison
from qscape.report.words import digits_of, interval, number

with extra("Pages"):
    import pandas as pd

LARGEST = 100_000  # episodes in the page's evaluations.csv; beyond, a row is a whole evaluation
NAMED = 4  # agents or environments in the title

FOOTER = (
    "<footer>Made by qscape compare --html. Intervals are percentiles of a stratified bootstrap over seeds. "
    "The page is whole in itself and needs no network.</footer>"
)


def report(made: Comparison, reference: Sequence[str] = (), reps: int = 2000) -> str:
    """A comparison and all that its run folders hold, as the text of one HTML file.

    `made`: what `tables.compare` found; the folders of its runs are read once more. `reference`: names of
    published curves. `reps`: bootstrap resamples.

    Raises:
        UsageError: an unknown published curve.
    """
    draft = drafts.begin(made, reference, reps)
    leaders(draft)
    curves(draft)
    profile(draft)
    findings.smoothness(draft)
    findings.landscapes(draft)
    findings.embeddings(draft)
    findings.collapse(draft)
    settings(draft)
    files = downloads(draft)
    origin(draft)
    title = (
        f"{_listed(sorted(made.rows['recipe'].unique()), 'agents')} on {_listed(draft.envs, 'environments')}"
    )
    body = "".join(html for *_, html in draft.sections)
    return page.document(
        title, f"{header(draft, title)}<main>\n{summary(draft)}{body}</main>\n{FOOTER}", draft.figures, files
    )


def _listed(names: Sequence[str], what: str) -> str:
    if len(names) > NAMED:
        return f"{len(names)} {what}"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def header(draft: Draft, title: str) -> str:
    """Title, what was compared, and links to what follows."""
    counts = {"run": len(draft.runs), "agent": len(draft.styles), "environment": len(draft.envs)}
    said = " · ".join(f"{n} {what}{'s' if n != 1 else ''}" for what, n in counts.items())
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    links = page.contents((name, title) for name, title, _ in draft.sections)
    return f'<header><h1>{prose(title)}</h1><p class="quiet">{said} · {made}</p>{links}</header>\n'


# --- what the evaluations say -------------------------------------------------------------------------


def summary(draft: Draft) -> str:
    """Who leads where, and what a reader has to know."""
    said = "".join(f"<li>{prose(sentence)}</li>" for sentence in words.summary(draft.made))
    notes = "".join(f"<li>{prose(note)}</li>" for note in draft.notes)
    box = f'<div class="notes"><strong>To know</strong><ul>{notes}</ul></div>' if notes else ""
    return page.section("summary", "Summary", f'<ul class="lead">{said}</ul>', box)


def leaders(draft: Draft) -> None:
    """Tables with intervals: each environment, all of them together, pair by pair."""
    made = draft.made
    of = "each run's best evaluation" if made.score == "best" else "the last evaluations of each run"
    said = f"<p>Ranked by {of}: interquartile mean (IQM) over seeds, with its 95% bootstrap interval.</p>"
    parts = [_environment(made, env) for env in draft.envs]
    if len(made.aggregate):
        parts.append(_over_environments(made))
    if len(made.improvement):
        columns = ["pair", "probability", "95% interval", "environments"]
        rows = [
            [
                f"{row['x']} > {row['y']}",
                number(row["probability"], 2),
                interval(row["probability_low"], row["probability_high"], 2),
                row["environments"],
            ]
            for row in made.improvement.to_dict("records")
        ]
        caption = f"That a run of the first scores higher than one of the second; {made.score} scores."
        parts += [
            "<h3>Probability of improvement</h3>",
            page.table(columns, rows, numbers=range(1, 4), caption=caption),
        ]
    draft.section("leaders", "Leaders", said, *parts)


def _environment(made: Comparison, env: str) -> str:
    of = made.per_env[made.per_env["env"] == env].sort_values(f"{made.score}_iqm", ascending=False)
    rows = [
        [
            row["label"], *_estimate(row, made.score), number(row["best_iqm"]), row["seeds"],
            f"{row['steps']:,}", row["policy"],
        ]
        for row in of.to_dict("records")
    ]  # fmt: skip
    if len(made.published):
        rows += [
            [
                f"{row['method']} on {row['env']}", number(row["iqm"]), NOTHING,
                _spread(row["mean"], row["sd"]), NOTHING, row["seeds"], f"{row['step']:,}", "published",
            ]
            for row in made.published[made.published["our_env"] == env].to_dict("records")
        ]  # fmt: skip
    columns = [
        "agent", f"{made.score} IQM", "95% interval", "mean ± std", "best IQM", "seeds", "steps", "policy"
    ]  # fmt: skip
    return f"<h3>{prose(env)}</h3>" + page.table(columns, rows, numbers=range(1, 7), best=[0])


def _estimate(row: Mapping[Any, Any], score: str) -> list[str]:
    """Interquartile mean, its interval, mean with deviation, with as many decimals."""
    value = row[f"{score}_iqm"]
    between = interval(row[f"{score}_iqm_low"], row[f"{score}_iqm_high"], digits_of(value))
    return [number(value), between, _spread(row[f"{score}_mean"], row[f"{score}_std"])]


def _spread(mean: float, std: float) -> str:
    return number(mean) if std != std else f"{number(mean)} ± {number(std, digits_of(mean))}"


def _over_environments(made: Comparison) -> str:
    ranked: Sequence[Any] = made.aggregate.sort_values("iqm", ascending=False).to_dict("records")
    rows = [
        [
            row["label"], number(row["iqm"], 3), interval(row["iqm_low"], row["iqm_high"], 3),
            *(number(row[name], 3) for name in ("mean", "median", "optimality_gap")),
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


def curves(draft: Draft) -> None:
    """Learning curves of every environment."""
    rows = draft.made.rows
    placed = [
        draft.figure(
            interactive.learning_curves(
                rows[rows["env"] == env], draft.published, draft.styles, draft.reps, draft.made.metric
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
    draft.section("curves", "Learning curves", said, page.charts(*placed))


def profile(draft: Draft) -> None:
    """The performance profile, where there are normalised scores."""
    if draft.made.scores:
        made = interactive.profile(draft.made.scores, draft.styles, draft.reps)
        one = draft.made.aggregate["one_is"].iloc[0]
        said = f"Normalised {draft.made.score} scores: 0 is a random policy, 1 is {one}. Higher is better."
        draft.section("profile", "Performance profile", page.charts(draft.figure(made, said)))


# --- where it comes from ------------------------------------------------------------------------------


def settings(draft: Draft) -> None:
    """The settings in which agents differ."""
    columns, rows = records.differing_settings(draft.runs)
    said = "In these the agents differ; a part's fields are compared among the agents that have the part."
    if not rows:
        said = "The agents were given the same settings."
    draft.section("settings", "Settings", f"<p>{said}</p>", page.table(columns, rows) if rows else "")


def downloads(draft: Draft) -> dict[str, str]:
    """Raw data; gives the files behind the buttons."""
    evaluations, row = raw(draft)
    files = {
        "evaluations.csv": evaluations,
        "comparison.csv": tables.to_csv(draft.made),
        "comparison.json": tables.to_json(draft.made),
    }
    links = "".join(f"<li>{page.download_link(name)}</li>" for name in files)
    said = f"<p>Every run's evaluations (a row is {row}), and the tables above.</p>"
    draft.section("data", "Data", said, f'<ul class="downloads">{links}</ul>')
    return files


def raw(draft: Draft) -> tuple[str, str]:
    """The evaluations of the compared runs as CSV, and what a row of it is."""
    frames, heads = [], ["run", "label", "env", "seed"]
    for run in draft.runs:
        _, rows = runs.episodes(Path(run.folder))
        frames.append(rows.assign(run=run.folder, label=run.label, env=run.env, seed=run.seed))
    found = pd.concat(frames, ignore_index=True)
    if len(found) > LARGEST:
        found = found.groupby([*heads, "step", "policy"], sort=False).mean(numeric_only=True)
        return found.drop(columns="episode").reset_index().to_csv(index=False), "an evaluation"
    return found[[*heads, *(name for name in found if name not in heads)]].to_csv(index=False), "an episode"


def origin(draft: Draft) -> None:
    """Versions, machine, and the runs with the commands that made them."""
    commands = [
        [run.folder, run.label, run.env, run.seed, run.record.get("command", NOTHING)] for run in draft.runs
    ]
    draft.section(
        "origin",
        "Versions and machine",
        page.table(["what", "value"], records.origins(draft.runs)),
        f"<details><summary>The {len(commands)} runs and their commands</summary>",
        page.table(["folder", "agent", "environment", "seed", "command"], commands, numbers=[3]),
        "</details>",
    )
