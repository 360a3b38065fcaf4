"""The command `qscape compare RUNS...`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.text import Text

from qscape.cli import options
from qscape.cli.output import refuse_same, save_figure, save_text
from qscape.cli.running import (
    plain_console,
    print_notes,
    print_table,
    print_written,
    require_positive,
    show_tracks,
)
from qscape.report.numbers import digits_of
from qscape.types import setting

if TYPE_CHECKING:
    from qscape.report.tables import Comparison

ACROSS, HIGH = 90, 12  # width and height of the curves in a terminal, in characters, at most


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Flags of `qscape compare`."""

    csv: str | None = setting(None, "Write the table of environments as CSV.")
    latex: str | None = setting(None, "Write the table of environments in LaTeX (booktabs).")
    json: str | None = setting(None, "Write all tables as JSON.")
    png: str | None = setting(None, "Plot learning curves and profiles; the suffix selects png, svg or pdf.")
    html: str | None = setting(None, "Write a self-contained HTML report with charts and raw data.")
    reference: str = setting("", "Published curves to compare with, comma-separated: sac,td3,simbav2-utd2.")
    final: int = setting(1, "Number of last evaluations whose mean is the final score of a run.")
    best: bool = setting(False, "Rank by the best evaluation of each run instead of the final one.")
    policy: Literal["kept", "current"] = setting(
        "kept", "Evaluated policy. kept: the best one kept by checkpoints, else the current one."
    )
    smooth: float = setting(0.0, "Weight of past evaluations in exponentially smoothed returns; 0: none.")
    metric: Literal["return", "success"] | None = setting(
        None,
        "Compared quantity. success: share of successful episodes, in percent. None: success if all "
        "environments set goals, else return.",
    )
    unequal: bool = setting(False, "Also compare runs of unequal budgets, and unfinished ones.")
    normalise: Literal["td3", "d4rl", "best"] = setting(
        "td3", "Agent with score 1: TD3 after 1M steps, D4RL's expert, or the best agent compared."
    )
    threshold: float | None = setting(
        None, "Also show the first evaluation that reaches this return (stop epoch): the mean over runs."
    )


def main(argv: list[str]) -> int:
    """Compare runs, groups and whole studies."""
    from qscape.report import runs, statistics, tables

    paths, rest = options.positionals(argv, "RUNS", "qscape compare")
    given: Any = options.parse(CompareOptions(), rest, "qscape compare RUNS")
    require_positive(given, "final")
    refuse_same(given.csv, given.latex, given.json, given.png, given.html)
    names = [name for name in given.reference.lower().replace(" ", "").split(",") if name]
    with show_tracks():
        read = runs.read_runs(paths)
        of_returns = names or given.threshold is not None
        metric = "return" if of_returns else statistics.default_metric(read.runs)
        made = tables.compare(
            read.frame,
            policy=given.policy,
            final=given.final,
            best=given.best,
            unequal=given.unequal,
            normalise=given.normalise,
            metric=given.metric or metric,
            smooth=given.smooth,
            reference=names,
            threshold=given.threshold,
        )
    made = made._replace(notes=read.skipped + made.notes)
    shown, console = tables.shorten(made), plain_console()
    print_comparison(console, shown, given)
    for file, text in (
        (given.csv, tables.to_csv(made)),
        (given.latex, tables.to_latex(shown)),
        (given.json, tables.to_json(made)),
    ):
        if file:
            save_text(text, file)
    with show_tracks():
        if given.png:
            draw_comparison(shown, names, given)
        if given.html:
            from qscape.report import html  # imports plotly, which is slow, only when it is needed

            save_text(html.render_report(made, read.runs, names), given.html)
    print_written(console, given.csv, given.latex, given.json, given.png, given.html)
    return 0


def print_comparison(console: Console, made: "Comparison", given: Any) -> None:
    """Print a table per environment, those over environments, and the notes for the reader."""
    from qscape.report import statistics
    from qscape.report.intervals import FEWEST
    from qscape.report.labels import describe_shared

    if made.shared:
        console.print(f"{describe_shared(made.shared)}\n", soft_wrap=True)
    last = f"mean of the last {given.final} evaluations" if given.final > 1 else "last evaluation"
    said = {"final": f"final: {last}", "best": f"best: highest evaluation of each run; final: {last}"}
    score, other = made.score, "final" if made.score == "best" else "best"
    for env, group in made.per_env.groupby("env"):
        rows = [
            [row["label"], row["policy"], str(row["seeds"]), f"{row['steps']:,}",
             _estimate(*(row[f"{score}{end}"] for end in ("_iqm", "_iqm_low", "_iqm_high", "_min", "_max"))),
             _mean(row[f"{score}_mean"], row[f"{score}_std"]), _number(row[f"{other}_iqm"]),
             *_stop_epoch(row)]
            for row in group.to_dict("records")
        ]  # fmt: skip
        if len(made.published):
            theirs = made.published[made.published["our_env"] == env]
            rows += [
                [f"{row['method']} on {row['env']}", "published", str(row["seeds"]), f"{row['step']:,}",
                 *([_number(row["iqm"]), _mean(row["mean"], row["sd"]), "-"] if score == "final" else
                   ["-", "-", _number(row["iqm"])]),  # published are final scores
                 *(["-"] if given.threshold is not None else [])]
                for row in theirs.to_dict("records")
            ]  # fmt: skip
        columns = ["label", "policy", "seeds", "steps"]
        has_range = made.per_env["seeds"].between(2, FEWEST - 1).any()
        columns += [
            f"{score} IQM [95%]{' (range)' if has_range else ''}",
            f"{score} mean ± std",
            f"{other} IQM",
        ]
        columns += [] if given.threshold is None else [f"stop epoch at {given.threshold:g}"]
        print_table(console, f"{env}: {statistics.METRIC_NAMES[made.metric]}; {said[score]}", columns, rows)
        if console.is_terminal:
            print_curves(console, made, str(env))
    if len(made.aggregate):
        names = ["iqm", "mean", "median", "optimality_gap"]
        rows = [
            [row["label"], str(row["seeds"]), str(row["environments"])]
            + [_estimate(row[m], row[f"{m}_low"], row[f"{m}_high"], digits=3) for m in names]
            for row in made.aggregate.to_dict("records")
        ]
        columns = ["label", "seeds", "envs", "IQM [95%]", "mean", "median", "optimality gap"]
        title = f"Normalised {made.score} scores; 0: random policy, 1: {made.aggregate['one_is'].iloc[0]}"
        print_table(console, title, columns, rows)
    if len(made.improvement):
        rows = [
            [f"{row['x']} > {row['y']}", str(row["environments"]),
             _estimate(row["probability"], row["probability_low"], row["probability_high"], digits=2)]
            for row in made.improvement.to_dict("records")
        ]  # fmt: skip
        title = f"Probability that a run of the first scores higher; {made.score} scores"
        print_table(console, title, ["pair", "envs", "probability [95%]"], rows)
    print_notes(console, made.notes)


def print_curves(console: Console, made: "Comparison", env: str) -> None:
    """Print the learning curves of an environment, as far as a terminal can show them apart."""
    from qscape.report import name_steps, statistics, terminal

    rows = made.rows[made.rows["env"] == env]
    grid = statistics.common_grid(rows)
    if len(grid) < 2 or rows["label"].nunique() > len(terminal.COLOURS):
        return
    curves = []
    for label, group in rows.groupby("label"):
        values = statistics.estimate_columns(statistics.align_to_grid(group, grid)).value
        curves.append(terminal.Curve(str(label), grid.tolist(), values.tolist()))
    title = f"{statistics.METRIC_NAMES[made.metric]}, interquartile mean"
    size, span = (min(console.width, ACROSS), HIGH), (float(grid[0]), float(grid[-1]))
    console.print(Text.from_ansi(terminal.render_chart(title, name_steps(env), curves, *size, span)))
    console.print()


def draw_comparison(made: "Comparison", names: list[str], given: Any) -> None:
    """Draw learning curves and profiles into the file of `--png`."""
    from qscape.report import figures, references, statistics
    from qscape.report.labels import describe_shared

    published = references.load_published(names) if names else None
    labels = [*made.names] or made.rows["label"].tolist()
    figure = figures.draw_overview(
        made.rows,
        published=published,
        scores=made.scores,
        metric=made.metric,
        styles=figures.line_styles(labels, made.names),
    )
    smoothed = statistics.smoothing_note(given.smooth) if given.smooth else ""
    figures.set_notes(figure, describe_shared(made.shared), smoothed)
    save_figure(figure, given.png)


def _stop_epoch(row: Mapping[Any, Any]) -> list[str]:
    """Return the cell of the stop epoch; none without a threshold."""
    if "stop_epoch" not in row:
        return []
    return [f"{_number(row['stop_epoch'], 1)} ({row['stopped']} of {row['seeds']})"]


def _number(x: float, digits: int | None = None) -> str:
    return "-" if x != x else f"{x:,.{digits_of(x) if digits is None else digits}f}"


def _estimate(
    value: float,
    low: float,
    high: float,
    least: float = math.nan,
    greatest: float = math.nan,
    digits: int | None = None,
) -> str:
    """Return the cell of a mean with its interval, or with the range of runs that are too few for one."""
    digits = digits_of(value) if digits is None else digits
    if low == low:
        return f"{_number(value, digits)} [{_number(low, digits)}, {_number(high, digits)}]"
    if least < greatest:
        return f"{_number(value, digits)} ({_number(least, digits)} to {_number(greatest, digits)})"
    return _number(value, digits)


def _mean(mean: float, std: float) -> str:
    return _number(mean) if std != std else f"{_number(mean)} ± {_number(std, digits_of(mean))}"
