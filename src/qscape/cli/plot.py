"""The command `qscape plot RUNS... --png FILE`."""

import dataclasses
from typing import Literal

from qscape.cli import options
from qscape.cli.output import save_figure
from qscape.cli.running import plain_console, print_notes, show_tracks
from qscape.report.numbers import format_return
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Flags of `qscape plot`."""

    png: str = setting("curves.png", "Plot file; the suffix selects the format (png, svg, pdf).")
    policy: Literal["kept", "current", "both"] = setting(
        "kept", "Evaluated policy of agents with checkpoints. both: the kept and the current one."
    )
    metric: Literal["return", "success"] | None = setting(
        None,
        "Plotted quantity. success: share of successful episodes, in percent. None: success if all "
        "environments set goals, else return.",
    )
    smooth: float = setting(0.0, "Weight of past evaluations in exponentially smoothed returns; 0: none.")


def main(argv: list[str]) -> int:
    """Plot each run's learning curve as a thin line, and their interquartile mean; see `qscape compare`."""
    from qscape.report import figures, runs, statistics, tables
    from qscape.report.labels import describe_shared, describe_shortened, shorten_labels

    paths, rest = options.positionals(argv, "RUNS", "qscape plot")
    given = options.parse(PlotOptions(), rest, "qscape plot RUNS")
    with show_tracks():
        frame, skipped, read = runs.read_runs(paths)
    metric = given.metric or statistics.default_metric(read)
    frame = statistics.smooth_returns(statistics.select_metric(frame, metric), given.smooth)
    rows = (
        statistics.label_policies(frame)
        if given.policy == "both"
        else statistics.select_policy(frame, given.policy)
    )
    tables.refuse_repeated(rows.drop_duplicates(["run", "label"]))
    names, shared = shorten_labels(sorted(rows["label"].unique()))
    styles = figures.line_styles([*names], names)
    shown = rows.assign(label=rows["label"].map(names))
    with show_tracks():
        figure = figures.draw_overview(shown, each=True, metric=metric, styles=styles)
    smoothed = statistics.smoothing_note(given.smooth) if given.smooth else ""
    figures.set_notes(figure, describe_shared(shared), smoothed)
    save_figure(figure, given.png)
    best = statistics.final_scores(rows).nlargest(1, "score").iloc[0]
    console = plain_console()
    print_notes(console, [*skipped, *describe_shortened(names, shared)])
    where = f"{best['env']}, " if rows["env"].nunique() > 1 else ""
    what = statistics.METRIC_NAMES[metric]
    console.print(
        f"{given.png}: {frame['run'].nunique()} run(s); best final {what} {format_return(best['score'])} "
        f"({best['label']}, {where}seed {best['seed']})",
        soft_wrap=True,
    )
    return 0
