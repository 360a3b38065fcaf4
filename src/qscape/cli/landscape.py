"""The command `qscape landscape RUN`."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qscape.cli import options
from qscape.cli.output import refuse_ending, refuse_same, save_figure, save_text
from qscape.cli.running import plain_console, print_notes, print_written, show_tracks, table
from qscape.errors import Conflict
from qscape.types import setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class LandscapeOptions:
    """Flags of `qscape landscape`."""

    kind: Literal["values", "curvature"] = setting(
        "values",
        "values: Q over actions. curvature: ‖∂²Q/∂s∂a‖ and the largest eigenvalue of ∂²Q/∂a², over one "
        "dimension of the observation and one of the action.",
    )
    state_from: tuple[str, ...] = setting(
        (),
        "EPISODE:STEP of the states to plot. widest: the 5 states where later proposals gain most over the "
        "first. Empty: those with the median, the 90% and the largest gap (curvature: ‖∂²Q/∂s∂a‖).",
    )
    plane: str | None = setting(
        None,
        "Plane through action space: pca (of the actions taken), proposals, random, or dimensions I,J or I. "
        "None: chosen by the number of action dimensions. curvature: I,J, dimensions of observation and "
        "action; None: those with the largest |∂²Q/∂s_I∂a_J|.",
    )
    states: int = setting(100, "Number of visited states in the summary.")
    q: Literal["objective", "first", "min", "mean"] = setting(
        "objective", "Value of the critics: the actor's objective, the first critic, the minimum or the mean."
    )
    grid: int | None = setting(
        None,
        "Grid points along each axis of the plot; None: 2001 on a line, 101 on a plane, 51 of a curvature.",
    )
    episodes: int = setting(10, "Number of evaluation episodes that visit the states.")
    seed: int = setting(1000, "Sub-environment i is seeded with this plus i.")
    over_training: bool = setting(False, "Also measure the same states at every save of the run.")
    current: bool = setting(False, "Use the current policy even if checkpoints keep a better one.")
    png: str | None = setting(
        None,
        "Plot file; the suffix selects png, svg or pdf. None: RUN/inspect/landscape.png (curvature.png).",
    )
    html: str | None = setting(None, "Write a self-contained interactive HTML page.")
    json: str | None = setting(
        None, "File for the results as JSON; None: RUN/inspect/landscape.json (curvature.json)."
    )


def main(argv: list[str]) -> int:
    """Measure how far a run's actions lie below the best ones under its Q, and plot Q around them."""
    paths, rest = options.positionals(argv, "RUN", "qscape landscape")
    given: Any = options.parse(LandscapeOptions(), rest, "qscape landscape RUN")
    refuse_same(given.json, given.png, given.html)
    if given.kind == "curvature" and given.over_training:
        raise Conflict(
            "--over-training follows Q over actions; leave it out, or leave out --kind curvature.",
            field="over_training",
        )

    from qscape.inspect import store
    from qscape.inspect.landscape import to_jsonable
    from qscape.report.runs import find_runs

    draw = _load_pictures(given.kind)
    folders = find_runs(paths)
    if len(folders) > 2:
        raise Conflict(
            f"qscape landscape takes one run, or two to compare, not {len(folders)}; "
            f"e.g. {folders[0]} {folders[1]}."
        )
    # Reports a missing package before the long search.
    to_html = _load_page(given.kind) if given.html else None
    if given.png:
        refuse_ending(given.png)
    is_curvature = given.kind == "curvature"
    with show_tracks():
        findings = (_measure_curvature if is_curvature else _measure_values)(folders, given)
    console = plain_console()
    measured = [findings, findings["other"]] if len(folders) > 1 else [findings]
    for folder, of in zip(folders, measured, strict=True):
        place = f" in {folder}" if len(folders) > 1 else ""
        (print_curvature if is_curvature else print_findings)(console, of, place)
    plain, name = to_jsonable(findings), "curvature" if is_curvature else "landscape"
    written: list[str] = []
    if given.json:
        save_text(store.to_json(plain), given.json)
        written.append(given.json)
    else:  # of two agents each, so that a report shows both at the same states
        kept = [plain["other"], plain] if "other" in plain else [plain]
        for folder, of in zip(reversed(folders), kept, strict=True):
            files, notes = store.keep_findings(folder, name, of, needed=not given.png)
            written += map(str, files)
            print_notes(console, notes)
    file = Path(given.png or folders[0] / "inspect" / f"{name}.png")
    for suffix, figure in draw(findings).items():
        written.append(str(file.with_stem(file.stem + suffix)) if suffix else given.png or str(file))
        save_figure(figure, written[-1])
    if to_html:
        save_text(to_html(findings), given.html)
        written.append(given.html)
    print_written(console, *written)
    return 0


def _load_pictures(kind: str) -> Callable[[dict[str, Any]], dict[str, "Figure"]]:
    """Return the function that draws findings: figures by what is added to the name of their file."""
    if kind == "curvature":
        from qscape.report.curvature import draw_curvature

        return lambda findings: {"": draw_curvature(findings)}
    from qscape.report.landscapes import draw_findings, draw_surrogates
    from qscape.report.marks import name_agents

    def draw(findings: dict[str, Any]) -> dict[str, "Figure"]:
        agents = name_agents(findings).values()
        climbed = [x for agent in agents for x in agent["landscapes"] if x["surrogates"]]
        return {"": draw_findings(findings)} | ({"-surrogates": draw_surrogates(climbed)} if climbed else {})

    return draw


def _load_page(kind: str) -> Callable[[dict[str, Any]], str]:
    if kind == "curvature":
        from qscape.report.curvature_page import render_page
    else:
        from qscape.report.landscape_page import render_page

    return render_page


def _measure_values(folders: Sequence[Path], given: Any) -> dict[str, Any]:
    """Measure one run or two, at all their saves with `--over-training`."""
    from qscape.inspect.landscapes import measure_landscapes
    from qscape.inspect.trained_agent import load_history, load_trained_agent

    agents = [load_trained_agent(folder, given.current) for folder in folders]
    saves = [load_history(agent, given.current) if given.over_training else [agent] for agent in agents]
    return _measure(measure_landscapes, given, saves[0], saves[1] if len(saves) > 1 else ())


def _measure_curvature(folders: Sequence[Path], given: Any) -> dict[str, Any]:
    """Measure the second derivatives of one run or two."""
    from qscape.inspect.curvature import measure_curvature
    from qscape.inspect.trained_agent import load_trained_agent

    agents = [load_trained_agent(folder, given.current) for folder in folders]
    return _measure(measure_curvature, given, agents[0], agents[1] if len(agents) > 1 else None)


def _measure(measure: Callable[..., dict[str, Any]], given: Any, one: Any, other: Any) -> dict[str, Any]:
    """Return what `measure` finds in one run, and beside another, at the states and planes of the flags."""
    places = given.states, given.state_from, given.plane
    numbers: Any = {"points": given.grid, "episodes": given.episodes, "seed": given.seed}
    return measure(one, *places, q=given.q, **numbers, other=other)


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
    console.print(_heading(findings, place), soft_wrap=True)
    console.print(table("gap: best Q found minus Q; share: of Q's range", columns, rows))
    if optima := summary["optima"]:
        console.print(
            f"local optima: {optima['mean']:.2f} on average, {optima['max']:.0f} at most, several in "
            f"{_percent(summary['several'])} of {summary['states']} states",
            soft_wrap=True,
        )
    if optima and summary["surrogates"]:
        counts = {"Q": optima}
        start = len(summary["proposals"]) - len(summary["surrogates"])  # 0 where Ψ_0 is learned, too
        for i, counted in enumerate(summary["surrogates"], start):
            counts[f"Ψ{i} exact"] = counted["exact_optima"]
            if counted["learned_optima"]:
                counts[f"Ψ{i} learned"] = counted["learned_optima"]
        rows = [[name, *(_number(spread[key]) for key in SPREAD)] for name, spread in counts.items()]
        console.print(table("local optima", ["", *SPREAD.values()], rows))
    if rank := summary["rank"]:
        console.print(f"rank of the action: {rank['p50']:,.0f} at the median, {rank['p90']:,.0f} at 90%")


def print_curvature(console: "Console", findings: dict[str, Any], place: str = "") -> None:
    """Print both quantities at the agent's action, over the visited states.

    `place`: where the run is, for the heading.
    """
    from qscape.report.curvature import NAMES, describe_method

    summary = findings["summary"]
    rows = [[name, *(_number(summary[kind][key]) for key in SPREAD)] for kind, name in NAMES.items()]
    console.print(_heading(findings, place), soft_wrap=True)
    console.print(table("at the agent's action", ["", *SPREAD.values()], rows))
    console.print(
        f"the eigenvalue is negative in {_percent(summary['concave'])} of {summary['states']} states",
        soft_wrap=True,
    )
    console.print(describe_method(findings), soft_wrap=True)


def _heading(findings: dict[str, Any], place: str) -> str:
    return f"{findings['label']} on {findings['env']}, step {findings['step']:,}{place}"


SPREAD = {"mean": "mean", "p50": "median", "p90": "90%", "max": "max"}


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _number(x: float) -> str:
    return f"{x:,.4g}"
