"""The command `qscape watch RUN`."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from qscape.cli import options
from qscape.cli.running import plain_console, table
from qscape.errors import OutOfRange, QscapeError, UnfitAgent, one_line
from qscape.report.numbers import format_return
from qscape.run.folder import in_use, newest_save, read_record, run_folders, unfinished
from qscape.run.logs import read_evaluations, read_metrics
from qscape.types import setting

SLICE = 81  # points of the curve of Q
ACROSS, HIGH = 110, 16  # width and height of a chart in characters, at most


@dataclasses.dataclass(frozen=True)
class WatchOptions:
    """Flags of `qscape watch`."""

    every: float = setting(2.0, "Seconds between two updates of the screen.", within="> 0")
    show: str = setting("q", "Metric plotted below the returns, such as critic_loss or actor_loss.")
    dim: int = setting(0, "Action dimension along which Q is plotted.")
    once: bool = setting(False, "Print once and exit.")


def main(argv: list[str]) -> int:
    """Show a run, or the seeds of a group, during training: curves, Q at a state, rates."""
    path, given = options.parse_after(WatchOptions(), argv, "RUN", "qscape watch")
    from qscape.report import terminal  # noqa: F401  reports a missing extra before anything is drawn

    folders, console = run_folders(Path(path)), plain_console()
    slices = QSlice(folders[0], given.dim)
    if given.once or not console.is_terminal:
        console.print(render(folders, slices, given.show, console))
        return 0
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(render(folders, slices, given.show, console), refresh=True)
                if not any(in_use(folder) or unfinished(folder) for folder in folders):
                    break
                time.sleep(given.every)
        except KeyboardInterrupt:
            pass
    console.print(render(folders, slices, given.show, console))  # stays on the terminal after the live screen
    return 0


def render(folders: list[Path], slices: "QSlice", metric: str, console: Console) -> Group:
    """Render the present state of the runs: table, curves and Q."""
    looks = [RunView(folder) for folder in folders]
    columns = ["run", "agent", "step", "of", "steps/s", "left", "return", "state"]
    rows = [look.row() for look in looks]
    if any(look.by_success for look in looks):
        at = columns.index("return")
        columns.insert(at, "success")
        for look, row in zip(looks, rows, strict=True):
            row.insert(at, look.latest("success"))
    parts: list[Any] = [table("", columns, rows)]
    parts += [Text(note, style="dim") for look in looks for note in look.notes]
    width, height = min(console.width, ACROSS), HIGH
    if console.is_terminal:
        height = max(8, min(HIGH, (console.height - 5 - len(looks)) // 3))
    measure = "success" if all(look.by_success for look in looks) else "return"
    scores = [look.curve(policy, measure) for look in looks for policy in look.policies()]
    values = [look.metric(metric) for look in looks]
    span = (0, max(look.record["steps"] for look in looks))
    steps = "updates" if all(look.record.get("dataset") for look in looks) else "environment steps"
    for title, curves in ((f"evaluation {measure}", scores), (metric, values)):
        curves = [c for c in curves if len(c[1])]
        parts.append(_chart(title, steps, curves, width, height, span))
    logged = {name for look in looks for row in look.logged for name in row} - {"step"}
    if logged and metric not in logged:
        there = f"no run has logged {metric} yet; --show takes {', '.join(sorted(logged))}."
        parts.append(Text(one_line(there), style="dim"))
    parts.append(slices.chart(width, height))
    return Group(*parts)


class RunView:
    """The contents of a run's files at one moment, without damaged and incomplete lines.

    Attributes:
        by_success: whether success is what counts: the environment sets goals and has reported it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, read_record(folder)
        metrics, evaluations = read_metrics(folder), read_evaluations(folder)
        self.logged = [row for _, row in metrics.lines]
        self.evaluated: dict[str, dict[int, list[dict[str, str]]]] = {}  # policy -> step -> its episodes
        for _, row in evaluations.lines:
            of = self.evaluated.setdefault(row["policy"], {})
            of.setdefault(int(row["step"]), []).append(row)
        reported = any(row["success"] for _, row in evaluations.lines)
        self.by_success = reported and self.record.get("goals", False)
        self.notes = metrics.notes + evaluations.notes

    def policies(self) -> list[str]:
        """Return the evaluated policies: the current one, and the kept one if the agent keeps one."""
        return [*self.evaluated] or ["current"]

    def curve(self, policy: str, measure: str) -> tuple[str, list[float], list[float]]:
        """Return name, steps and mean "return" or "success" of a policy's evaluations."""
        evaluated = self.evaluated.get(policy, {})
        name = f"seed {self.record['seed']}" + (f", {policy}" if len(self.evaluated) > 1 else "")
        means = [sum(float(row[measure] or 0) for row in rows) / len(rows) for rows in evaluated.values()]
        return name, [*evaluated], means

    def latest(self, measure: str) -> str:
        """Return the last "return" or "success" as text, of the kept policy if there is one."""
        means = self.curve(self.policies()[-1], measure)[2]
        if not means or (measure == "success" and not self.by_success):
            return "-"
        return f"{means[-1]:.0%}" if measure == "success" else format_return(means[-1])

    def metric(self, name: str) -> tuple[str, list[float], list[float]]:
        """Return name, steps and values of a logged metric; values that are not finite are left out."""
        rows = [(row["step"], row[name]) for row in self.logged if name in row]
        rows = [(step, x) for step, x in rows if x is not None and math.isfinite(x)]
        return f"seed {self.record['seed']}", [r[0] for r in rows], [r[1] for r in rows]

    def row(self) -> list[str]:
        """Return the run's row of the table."""
        newest = self.logged[-1] if self.logged else {}
        step, steps = newest.get("step", 0), self.record["steps"]
        speed = newest.get("steps_per_second")
        speed = math.nan if speed is None else speed  # null in the file where it was not finite
        running = in_use(self.folder)
        left = (steps - step) / speed if running and speed else math.nan
        minutes, seconds = divmod(0 if math.isnan(left) else round(left), 60)
        state = "training" if running else "stopped" if unfinished(self.folder) else "done"
        return [
            str(self.folder), self.record["label"], f"{step:,}", f"{steps:,}",
            "-" if math.isnan(speed) else f"{speed:,.0f}",
            "-" if math.isnan(left) else f"{minutes}:{seconds:02}",
            self.latest("return"), state,
        ]  # fmt: skip


class QSlice:
    """Q along one action dimension, or at every index, at the first state of an evaluation; newest save.

    The agent is built and compiled once; a newer save only replaces the networks.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder, self.dim = folder, dim
        self.seen: Path | None = None
        self.trained: Any = None
        self.drawn: tuple[str, list[Any]] = ("Q: there is no save yet", [])

    def chart(self, width: int, height: int) -> Text:
        """Render the chart, or the reason why there is none.

        Raises:
            UsageError: the action has no such dimension.
        """
        newest = None
        try:
            newest = newest_save(self.folder)
            if newest is not None and newest != self.seen and self.trained is None:
                self._build_agent()
        except QscapeError as problem:  # training continues, so watching continues too
            # To build an agent takes time from the training: the next attempt is at the next save.
            newest, self.seen, self.drawn = None, newest, (str(problem), [])
        if self.trained is not None and not 0 <= self.dim < self.trained.agent.task.action_size:
            last = self.trained.agent.task.action_size - 1
            raise OutOfRange(f"--dim is {self.dim}; actions have dimensions 0 to {last}.", field="dim")
        try:
            if newest is not None and newest != self.seen:
                self.drawn, self.seen = self._read_q(newest), newest
        except QscapeError as problem:
            self.drawn = (str(problem), [])
        title, curves = self.drawn
        if not curves:
            return Text(title, style="dim")
        x, span = f"dimension {self.dim} of the action, in [-1, 1]", (-1, 1)
        if self.surveyor.table is not None:
            x, span = "index of the action", (0, len(self.surveyor.table) - 1)
        return _chart(title, x, curves, width, height, span)

    def _build_agent(self) -> None:
        from qscape.inspect.survey import Surveyor
        from qscape.inspect.trained_agent import load_trained_agent

        trained = load_trained_agent(self.folder, current=True)
        trained.require_q("a slice of the landscape")
        if trained.agent.task.table is not None:
            raise UnfitAgent("Q over an action table is plotted by: qscape landscape RUN.")
        adapter = trained.make()
        self.obs = np.asarray(adapter.reset(), np.float32)[0]
        adapter.close()
        self.trained, self.surveyor = trained, Surveyor(trained.agent)

    def _read_q(self, newest: Path) -> tuple[str, list[Any]]:
        from qscape.run.policy import read_acting

        acting, step, _ = read_acting(newest, self.trained.agent, current=True)
        proposals = np.asarray(self.trained.agent.proposals(acting, self.obs[None]))[0]
        title = f"Q at the first state of an evaluation, save of step {step:,}"
        if self.surveyor.table is not None:
            q = self.surveyor.entries(acting, self.obs)
            valid, greedy = np.flatnonzero(np.isfinite(q)), int(proposals[0, 0])
            return title, [
                ("Q", valid.tolist(), q[valid].tolist(), "x"),
                ("the agent", [greedy], [float(q[greedy])], "●"),
            ]
        x = np.linspace(-1, 1, SLICE)
        line = np.repeat(proposals[:1], SLICE, 0)
        line[:, self.dim] = x
        q, at = (self.surveyor.q(acting, self.obs, rows).tolist() for rows in (line, proposals))
        curves: list[Any] = [("Q", x.tolist(), q)]
        for k, (action, value) in enumerate(zip(proposals, at, strict=True)):
            name = "the actor" if len(proposals) == 1 else f"proposal {k}"
            curves.append((name, [float(action[self.dim])], [value], "●"))
        return title, curves


def _chart(title: str, x: str, curves: list[Any], width: int, height: int, span: tuple[float, float]) -> Text:
    from qscape.report import terminal

    if not curves:
        return Text(f"{title}: nothing yet", style="dim")
    lines = [terminal.Curve(*curve) for curve in curves]
    return Text.from_ansi(terminal.render_chart(title, x, lines, width, height, span))
