"""Run one job in this process or several in parallel, and show their progress."""

import contextlib
import dataclasses
import os
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator
from datetime import timedelta
from functools import partial

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from qscape import tracking, trusted
from qscape.errors import LostProcess, RunError, UsageError, one_line
from qscape.jobs.pace import PERIOD, RemainingTime
from qscape.jobs.pool import Failure, LocalWorker, Pool
from qscape.jobs.roll_call import RollCall
from qscape.jobs.worker import Job, run_job, run_together
from qscape.report.labels import shorten_labels
from qscape.report.numbers import format_return
from qscape.run import events as ev
from qscape.run.folder import resumable_save
from qscape.run.plan import Prepared
from qscape.run.processes import Place
from qscape.system import count_cores

WIDE = 170  # columns of output into a file or a pipe
GIB = 2**30


def run_all(
    jobs: list[Job], together: bool = False, quiet: bool = False, prepared: Prepared | None = None
) -> int:
    """Run jobs: one in this process, several one per core, or `together` in one program.

    Args:
        jobs: the jobs.
        together: run them in one program.
        quiet: show no progress, only warnings, failures and the last lines.
        prepared: what `prepare` returned for the plan of the first job; None: it is not prepared yet.

    Returns:
        The exit code: 0, or 130 after an interrupt.

    Raises:
        UsageError: runs failed, all of them by a usage error.
        RunError: a run failed.
    """
    workers = len(jobs) if together else min(count_cores(), len(jobs))
    screen, failures = Screen(quiet, len(jobs), workers), {}
    with screen:
        if together:
            for k, event in run_together(jobs, prepared):
                screen.show(k, event)
        elif len(jobs) == 1:
            try:
                for event in run_job(jobs[0], prepared):
                    screen.show(0, event)
            except RunError:
                screen.print_kept(0, jobs[0])
                raise
        else:
            pool = Pool(iter(enumerate(jobs)), workers)
            for k, event in pool.events():
                if isinstance(event, Failure):
                    failures[k] = event
                    screen.print_failure(jobs[k], event.why)
                    screen.print_kept(k, jobs[k])
                elif event is not None:
                    screen.show(k, event)
            screen.interrupted |= pool.stopping
    screen.print_summary(jobs, failures, together)
    if failures:
        first = min(failures)
        asked = all(failure.status == UsageError.status for failure in failures.values())
        kind = UsageError if asked else RunError
        why = failures[first].why
        raise kind(f"{len(failures)} of {len(jobs)} runs failed; {jobs[first].folder}: {why}")
    return 130 if screen.interrupted else 0


def run_among(job: Job, place: Place, quiet: bool = False) -> int:
    """Run a job over several processes, of which this is one; process 0 shows the progress.

    The run is in a worker process, since JAX ends processes without an error if another one is gone.

    Returns:
        The exit code: 0, or 130 after an interrupt.

    Raises:
        UsageError: as for `RollCall`, or the job is impossible.
        RunError: as for `RollCall`, the run failed, or another process is gone.
    """
    screen, failure = Screen(quiet), None
    if place.number:
        screen.say(f"{place}: process 0 shows the progress and writes {job.folder}")
    with RollCall(place, job) as call, screen:
        pool = Pool(iter([(0, call.job)]), 1, partial(LocalWorker, alone=True))
        call.watch(lambda: [worker.kill() for worker in [*pool.running.values()]])
        for _, event in pool.events():
            if isinstance(event, Failure):
                failure = event
            elif event is not None and place.number == 0:
                screen.show(0, event)
            screen.interrupted |= isinstance(event, ev.Ended) and event.interrupted
        screen.interrupted |= pool.stopping
        if failure is not None:
            if place.number == 0:
                screen.print_kept(0, job)
            if failure.lost and (gone := call.find_gone()):
                raise LostProcess(f"{gone}. The last save stays.")
            raise (UsageError if failure.status == UsageError.status else RunError)(failure.why)
    if place.number == 0:
        screen.print_summary([job])
    return 130 if screen.interrupted else 0


def name_column() -> Column:
    """Build the column of a bar's name, which is cut so that the numbers beside it fit on the screen."""
    return Column(ratio=1, no_wrap=True, overflow="ellipsis")


class TimeLeftColumn(ProgressColumn):
    """The time that is left by the pace of the run; unknown at first."""

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        return Text("-:--:--" if left is None else clock(left), style="progress.remaining")


class Screen:
    """Progress bars on a terminal, plain lines elsewhere.

    Args:
        quiet: show no progress, only warnings, failures and the last lines.
        runs: the number of runs.
        workers: how many of them run side by side.
    """

    def __init__(self, quiet: bool = False, runs: int = 1, workers: int = 1) -> None:
        self.console = plain_console()
        self.quiet, self.runs, self.workers = quiet, runs, workers
        self.progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=name_column()),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[score]}"),
            TimeLeftColumn(),
            console=self.console,
            expand=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.paces: dict[int, RemainingTime] = {}
        self.tasks: dict[int, TaskID] = {}
        self.names: dict[int, str] = {}
        self.ended: dict[int, ev.Ended] = {}
        self.scores: dict[int, ev.Evaluated] = {}
        self.interrupted = self.estimated = False

    def __enter__(self) -> "Screen":
        self.progress.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.progress.stop()

    def say(self, line: str, style: str | None = None) -> None:
        """Print a line about the progress."""
        if not self.quiet:
            self.console.print(line, style=style, soft_wrap=True)

    def show(self, k: int, event: ev.RunEvent) -> None:
        """Show one event of run k."""
        self.paces.setdefault(k, RemainingTime()).take(event)
        if isinstance(event, ev.Started):
            self._add_run(k, event)
        elif isinstance(event, ev.Progressed):
            self._measure(k, event)
        elif isinstance(event, ev.Logged):
            for warning in event.warnings:
                self.console.print(
                    f"{self.names[k]}  step {event.step:>9,}  {warning}", style="yellow", soft_wrap=True
                )
        elif isinstance(event, ev.Evaluated):
            self.scores[k] = event
            which = f" ({event.policy} policy)" if event.policy != "current" else ""
            n, success = len(event.returns), event.success
            first = "" if success is None else f"success {success:>4.0%}  "
            score = f"return {format_return(event.mean)}" if success is None else first.strip()
            self.progress.update(self.tasks[k], completed=event.step, score=score)
            probed = "".join(f"  {name} {sum(v) / len(v):.4g}" for name, v in event.probes.items())
            self.say(
                f"{self.names[k]}  step {event.step:>9,}  {first}return {format_return(event.mean):>10}  "
                f"over {n} episodes{which}{probed}"
            )
        elif isinstance(event, ev.Ended):
            self.ended[k] = event
            self.interrupted |= event.interrupted
            self.progress.update(self.tasks[k], completed=event.step)

    def _add_run(self, k: int, event: ev.Started) -> None:
        rest = f"{event.env} seed {event.seed}"
        self.names[k] = f"{shorten_labels([event.label])[0][event.label]} {rest}"
        self.tasks[k] = self.progress.add_task(
            self.names[k],
            total=event.steps,
            completed=event.step,
            speed="compiling",
            score="",
            left=None,
        )
        if k == 0 or event.step:
            self.say(f"{event.label} {rest}  {event.steps:,} steps", style="bold")
            for note in event.notes:
                self.say(f"  {one_line(note)}", style="dim")
        if self.quiet:
            for warning in dict.fromkeys(event.warnings):
                line = f"{self.names[k]}  step {event.step:>9,}  {one_line(warning)}"
                self.console.print(line, style="yellow", soft_wrap=True)

    def _measure(self, k: int, event: ev.Progressed) -> None:
        """Move the bar of run k. Once its pace is known, say how long the command takes."""
        task, pace = self.progress.tasks[self.tasks[k]], self.paces[k]
        left = pace.left(event.step, int(task.total or 0))
        self.progress.update(task.id, completed=event.step, left=left)
        if not pace.speed or left is None:
            return
        self.progress.update(task.id, speed=f"{pace.speed:,.{0 if pace.speed >= 10 else 1}f} steps/s")
        if left and not self.estimated:
            self.estimated = True
            self.say(f"{self.names[k]}  {self._describe_cost(pace.speed, left, event)}", style="dim")

    def _describe_cost(self, speed: float, left: float, event: ev.Progressed) -> str:
        """Describe how long a run and the whole command still take, and the memory of the run."""
        line = f"about {clock(left)} left at {speed:,.1f} steps/s"
        if event.memory:
            line += f", {event.memory / GIB:.1f} GiB of memory"
        if event.device_memory:
            line += f", {event.device_memory / GIB:.1f} GiB of the accelerator's"
        if self.runs > self.workers:
            rounds = -(-self.runs // self.workers)
            line += f"; {self.runs} runs, {self.workers} at a time: about {clock(rounds * left)}"
        return line

    def print_failure(self, job: Job, why: str) -> None:
        """Report that a run failed; the others continue."""
        self.console.print(f"failed {job.folder}: {why}", style="red", soft_wrap=True)

    def print_kept(self, k: int, job: Job) -> None:
        """Print which save of a run that failed is kept, and the command that continues from it."""
        newest = resumable_save(job.folder) if k in self.names else None
        if newest:
            command = _resume_command(job)
            text = f"the save of step {int(newest.name):,} is kept; to continue: {command}"
            self.console.print(text, soft_wrap=True)

    def print_summary(self, jobs: list[Job], failed: Collection[int] = (), together: bool = False) -> None:
        """Print the state of each run but the `failed` ones, and how to continue interrupted ones.

        `together`: they are one program, and continue with one command.
        """
        for k, job in enumerate(jobs):
            if self.interrupted and k not in self.ended and k not in failed:
                state = "ended at once" if k in self.names else "not started"  # by a second Ctrl-C
                self.console.print(f"{state}: {job.folder}", soft_wrap=True)
                self.print_kept(k, job)
        for k, end in sorted(self.ended.items()):
            rate = end.step / end.seconds if end.seconds else 0.0
            state = "interrupted" if end.interrupted else "done"
            self.console.print(
                f"{state}: {jobs[k].folder}  {end.step:,} steps, {end.updates:,} updates, "
                f"{end.seconds:,.0f} s ({rate:,.0f} steps/s)",
                soft_wrap=True,
            )
            if end.why:
                self.console.print(f"  ended by {end.why}", soft_wrap=True)
            if end.interrupted and not together:
                self.console.print(f"  to continue: {_resume_command(jobs[k])}", soft_wrap=True)
        if together and any(end.interrupted for end in self.ended.values()):
            group = dataclasses.replace(jobs[0], folder=jobs[0].folder.parent)
            self.console.print(f"to continue all: {_resume_command(group)}", soft_wrap=True)


def _resume_command(job: Job) -> str:
    """Return the command that continues a run, with its loggers, which a folder never names."""
    loggers = f" --log {shlex.join(job.trackers)}" if job.trackers else ""
    return f"qscape resume {shlex.quote(str(job.folder))}{loggers}{trusted.flag()}"


@contextlib.contextmanager
def show_tracks() -> Iterator[None]:
    """Show the work that `tracking` is told of as bars with the time left, inside the `with` block.

    The bars are on standard error and vanish at the end; if that is no terminal, there are none. Nothing may
    be printed inside the block.
    """
    console = SafeConsole(stderr=True, markup=False, highlight=False)
    bars = Progress(
        TextColumn("{task.description}", markup=False, table_column=name_column()),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        expand=True,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal,
        speed_estimate_period=PERIOD,
    )

    @contextlib.contextmanager
    def show(total: int, what: str) -> Iterator[tracking.Tick]:
        task = bars.add_task(what, total=total)
        yield lambda: bars.advance(task)
        bars.remove_task(task)

    with bars, tracking.shown_by(show):
        yield


@contextlib.contextmanager
def show_elapsed(console: Console, what: str) -> Iterator[None]:
    """Show a line with the time that has passed, below what is printed inside the `with` block.

    For work whose pieces take unequal times, so that no time left is known. On a terminal only.
    """
    line = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal,
    )
    with line:
        line.add_task(what, total=None)
        yield


class LiveBoard:
    """The state of many runs: one live table on a terminal, lines elsewhere.

    The base of the boards of `qscape study` and `qscape tune`, which implement `short_table`.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(line, soft_wrap=True)

    def short_table(self) -> RenderableType:
        """Build the table that fits on the screen."""
        raise NotImplementedError

    def live(self) -> contextlib.AbstractContextManager[object]:
        """Show the table inside the `with` block, on a terminal."""
        if not self.console.is_terminal:
            return contextlib.nullcontext()
        return Live(
            console=self.console, get_renderable=self.short_table, refresh_per_second=2, transient=True
        )


class SafeConsole(Console):
    """A console that survives a closed pipe, and that no name, label or error text can take over.

    `qscape train … | head` continues training silently. Control characters are printed as escapes, since a
    terminal would obey them.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                lines = segment.text.split("\n")
                yield Segment("\n".join(map(one_line, lines)), segment.style)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def plain_console() -> Console:
    """Create a console that prints square brackets as they are; labels and folders of runs contain some.

    In a file or a pipe the width is 170 columns, so that tables are not folded.
    """
    console = SafeConsole(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    return console


def clock(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def table(title: str, columns: list[str], rows: Iterator[list[str]] | list[list[str]]) -> Table:
    """Build a plain table; the first column is aligned left, the others right."""
    made = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for k, name in enumerate(columns):
        made.add_column(name, justify="left" if k == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def print_table(console: Console, title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a plain table and an empty line."""
    console.print(table(title, columns, rows))
    console.print()


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """Print sentences for the reader, in yellow, a line each."""
    for note in notes:
        console.print(note, style="yellow", soft_wrap=True)


def print_written(console: Console, *files: object) -> None:
    """Print a line for each written file; None is skipped."""
    for file in files:
        if file:
            console.print(f"written: {file}", soft_wrap=True)
