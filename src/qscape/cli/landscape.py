"""The command `qscape landscape RUN`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qscape.cli import options
from qscape.cli.output import refuse_ending, refuse_same, save_figure, save_text
from qscape.cli.running import plain_console, print_notes, print_written, show_tracks, table
from qscape.errors import Conflict
from qscape.types import setting

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class LandscapeOptions:
    """Flags of `qscape landscape`."""

    state_from: tuple[str, ...] = setting(
        (),
        "EPISODE:STEP of the states to plot. widest: the 5 states where later proposals gain most over the "
        "first. Empty: those with the median, the 90% and the largest gap.",
    )
    plane: str | None = setting(
        None,
        "Plane through action space: pca (of the actions taken), proposals, random, or dimensions I,J or I. "
        "None: chosen by the number of action dimensions.",
    )
    states: int = setting(100, "Number of visited states in the summary.")
    q: Literal["objective", "first", "min", "mean"] = setting(
        "objective", "Value of the critics: the actor's objective, the first critic, the minimum or the mean."
    )
    grid: int | None = setting(
        None, "Grid points along each axis of the plot; None: 2001 on a line, 101 on a plane."
    )
    episodes: int = setting(10, "Number of evaluation episodes that visit the states.")
    seed: int = setting(1000, "Sub-environment i is seeded with this plus i.")
    over_training: bool = setting(False, "Also measure the same states at every save of the run.")
    current: bool = setting(False, "Use the current policy even if checkpoints keep a better one.")
    png: str | None = setting(
        None, "Plot file; the suffix selects png, svg or pdf. None: RUN/inspect/landscape.png."
    )
    html: str | None = setting(None, "Write a self-contained interactive HTML page.")
    json: str | None = setting(None, "File for the results as JSON; None: RUN/inspect/landscape.json.")


def main(argv: list[str]) -> int:
    """Measure how far a run's actions lie below the best ones under its Q, and plot Q around them."""
    paths, rest = options.positionals(argv, "RUN", "qscape landscape")
    given: Any = options.parse(LandscapeOptions(), rest, "qscape landscape RUN")
    refuse_same(given.json, given.png, given.html)

    from qscape.inspect import store
    from qscape.inspect.landscape import to_jsonable
    from qscape.inspect.landscapes import measure_landscapes
    from qscape.inspect.trained_agent import load_history, load_trained_agent
    from qscape.report.landscapes import draw_findings, draw_surrogates
    from qscape.report.marks import name_agents
    from qscape.report.runs import find_runs

    folders = find_runs(paths)
    if len(folders) > 2:
        raise Conflict(
            f"qscape landscape takes one run, or two to compare, not {len(folders)}; "
            f"e.g. {folders[0]} {folders[1]}."
        )
    to_html = _load_page() if given.html else None  # reports a missing package before the long search
    if given.png:
        refuse_ending(given.png)
    agents = [load_trained_agent(folder, given.current) for folder in folders]
    saves = [load_history(agent, given.current) if given.over_training else [agent] for agent in agents]
    with show_tracks():
        findings = measure_landscapes(
            saves[0],
            given.states,
            given.state_from,
            given.plane,
            q=given.q,
            points=given.grid,
            episodes=given.episodes,
            seed=given.seed,
            other=saves[1] if len(saves) > 1 else (),
        )
    console = plain_console()
    measured = [findings, findings["other"]] if len(folders) > 1 else [findings]
    for folder, of in zip(folders, measured, strict=True):
        print_findings(console, of, f" in {folder}" if len(folders) > 1 else "")
    plain = to_jsonable(findings)
    written: list[str] = []
    if given.json:
        save_text(store.to_json(plain), given.json)
        written.append(given.json)
    else:  # of two agents each, so that a report shows both at the same states
        kept = [plain["other"], plain] if "other" in plain else [plain]
        for folder, of in zip(reversed(folders), kept, strict=True):
            files, notes = store.keep_findings(folder, "landscape", of, needed=not given.png)
            written += map(str, files)
            print_notes(console, notes)
    written.append(given.png or str(folders[0] / "inspect" / "landscape.png"))
    save_figure(draw_findings(findings), written[-1])
    climbed = [x for agent in name_agents(findings).values() for x in agent["landscapes"] if x["surrogates"]]
    if climbed:
        file = Path(written[-1])
        written.append(str(file.with_stem(f"{file.stem}-surrogates")))
        save_figure(draw_surrogates(climbed), written[-1])
    if to_html:
        save_text(to_html(findings), given.html)
        written.append(given.html)
    print_written(console, *written)
    return 0


def _load_page() -> Callable[[dict[str, Any]], str]:
    from qscape.report.landscape_page import render_page

    return render_page


def print_findings(console: "Console", findings: dict[str, Any], place: str = "") -> None:
    """Print the gaps of the action and of each proposal, and the local optima of Q and of the surrogates.

    `place`: where the run is, for the heading.
    """
    from qscape.report.marks import list_gaps

    summary = findings["summary"]
    columns = ["", "mean gap", *list(SPREAD.values())[1:], "mean share", "90%"]
    rows = [
        [
            name,
            *(_number(spread["gap"][key]) for key in SPREAD),
            _percent(spread["share"]["mean"]),
            _percent(spread["share"]["p90"]),
        ]
        for name, spread in list_gaps(summary).items()
    ]
    heading = f"{findings['label']} on {findings['env']}, step {findings['step']:,}{place}"
    console.print(heading, soft_wrap=True)
    console.print(table("gap: best Q found minus Q; share: of Q's range", columns, rows))
    if optima := summary["optima"]:
        console.print(
            f"local optima: {optima['mean']:.2f} on average, {optima['max']:.0f} at most, several in "
            f"{_percent(summary['several'])} of {summary['states']} states",
            soft_wrap=True,
        )
    if optima and summary["surrogates"]:
        counts = {"Q": optima}
        for i, counted in enumerate(summary["surrogates"], 1):
            counts[f"Ψ{i} exact"] = counted["exact_optima"]
            if counted["learned_optima"]:
                counts[f"Ψ{i} learned"] = counted["learned_optima"]
        rows = [[name, *(_number(spread[key]) for key in SPREAD)] for name, spread in counts.items()]
        console.print(table("local optima", ["", *SPREAD.values()], rows))
    if rank := summary["rank"]:
        console.print(f"rank of the action: {rank['p50']:,.0f} at the median, {rank['p90']:,.0f} at 90%")


SPREAD = {"mean": "mean", "p50": "median", "p90": "90%", "max": "max"}


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _number(x: float) -> str:
    return f"{x:,.4g}"
