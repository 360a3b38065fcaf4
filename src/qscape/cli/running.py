"""Run one job here, or several side by side, and show how they get on."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from queue import Queue

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qscape.errors import RunError
from qscape.run import events as ev
from qscape.run.worker import Job, run_job


def run_all(jobs: list[Job]) -> int:
    """Run jobs: one in this process, several one to a core. Returns the exit code."""
    screen = Screen()
    with screen:
        if len(jobs) == 1:
            for event in run_job(jobs[0]):
                screen.show(0, event)
            failures: dict[int, str] = {}
        else:
            failures = run_side_by_side(jobs, screen)
    screen.summary(jobs)
    if failures:
        first = next(iter(failures))
        raise RunError(f"{len(failures)} of {len(jobs)} runs failed; {jobs[first].folder}: {failures[first]}")
    return 130 if screen.interrupted else 0


def run_side_by_side(jobs: list[Job], screen: "Screen") -> dict[int, str]:
    """One process to a core, each with one XLA thread: on CPU the fastest way to many seeds."""
    waiting = list(enumerate(jobs))
    running: dict[int, subprocess.Popen[str]] = {}
    failures: dict[int, str] = {}
    told: Queue[tuple[int, str | None]] = Queue()
    cores = len(os.sched_getaffinity(0))
    stopping = False

    def stop(*_: object) -> None:
        """Asked once, the workers save and end; asked twice, they end."""
        nonlocal stopping
        for process in running.values():
            process.kill() if stopping else process.terminate()
        stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while running or (waiting and not stopping):
            while waiting and len(running) < cores and not stopping:
                k, job = waiting.pop(0)
                running[k] = start_worker(job)
                threading.Thread(target=_listen, args=(k, running[k], told), daemon=True).start()
            k, line = told.get()
            if line is None:
                if running.pop(k).wait() and k not in failures and not stopping:
                    failures[k] = "its process ended without a word"
                continue
            data = json.loads(line)
            if data["kind"] == "Failed":
                failures[k] = data["why"]
                screen.failed(k, jobs[k], data["why"])
                continue
            screen.show(k, ev.from_json(data))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in running.values():
            process.terminate()
    screen.interrupted |= stopping
    return failures


def start_worker(job: Job) -> subprocess.Popen[str]:
    """A process of its own for a job, with one XLA thread."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qscape.run.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NPROC": "1"},
        start_new_session=True,  # the terminal's Ctrl-C is ours to pass on
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(job.to_json()))
    process.stdin.close()
    return process


def _listen(k: int, process: subprocess.Popen[str], told: "Queue[tuple[int, str | None]]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        told.put((k, line))
    told.put((k, None))


class Screen:
    """Progress bars on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.console = plain_console()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[score]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[int, tuple] = {}
        self.names: dict[int, str] = {}
        self.ended: dict[int, ev.Ended] = {}
        self.scores: dict[int, ev.Evaluated] = {}
        self.interrupted = False

    def __enter__(self) -> "Screen":
        self.progress.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.progress.stop()

    def show(self, k: int, event: ev.RunEvent) -> None:
        """Show one event of run k."""
        if isinstance(event, ev.Started):
            self._begin(k, event)
        elif isinstance(event, ev.Logged):
            speed = f"{event.metrics['steps_per_second']:,.0f} steps/s"
            self.progress.update(self.tasks[k][0], completed=event.step, speed=speed)
        elif isinstance(event, ev.Evaluated):
            self.scores[k] = event
            which = f" ({event.policy} policy)" if event.policy != "current" else ""
            n = len(event.returns)
            self.progress.update(self.tasks[k][0], completed=event.step, score=f"return {event.mean:,.1f}")
            self.console.print(
                f"{self.names[k]}  step {event.step:>9,}  return {event.mean:>10,.1f}  over {n} episodes"
                f"{which}",
                soft_wrap=True,
            )
        elif isinstance(event, ev.Ended):
            self.ended[k] = event
            self.interrupted |= event.interrupted
            self.progress.update(self.tasks[k][0], completed=event.step)

    def _begin(self, k: int, event: ev.Started) -> None:
        self.names[k] = f"{event.label} {event.env} seed {event.seed}"
        task = self.progress.add_task(
            self.names[k], total=event.steps, completed=event.step, speed="compiling", score=""
        )
        self.tasks[k] = (task, event)
        if k == 0 or event.step:
            self.console.print(f"{self.names[k]}  {event.steps:,} steps", style="bold")
            for note in event.notes:
                self.console.print(f"  {note}", style="dim", soft_wrap=True)

    def failed(self, k: int, job: Job, why: str) -> None:
        """Say that a run failed; the others go on."""
        self.console.print(f"failed {job.folder}: {why}", style="red", soft_wrap=True)

    def summary(self, jobs: list[Job]) -> None:
        """What was done, and how to go on."""
        for k, job in enumerate(jobs):
            if self.interrupted and k not in self.ended:
                self.console.print(f"not begun: {job.folder}", soft_wrap=True)
        for k, end in sorted(self.ended.items()):
            rate = end.step / end.seconds if end.seconds else 0.0
            state = "interrupted" if end.interrupted else "done"
            self.console.print(
                f"{state}: {jobs[k].folder}  {end.step:,} steps, {end.updates:,} updates, "
                f"{end.seconds:,.0f} s ({rate:,.0f} steps/s)",
                soft_wrap=True,
            )
            if end.interrupted:
                folder = shlex.quote(str(jobs[k].folder))
                self.console.print(f"  to go on: qscape resume {folder}", soft_wrap=True)


def plain_console() -> Console:
    """A console that leaves square brackets alone: labels of runs, and so their folders, hold some."""
    return Console(markup=False, highlight=False)


def table(title: str, columns: list[str], rows: Iterator[list[str]] | list[list[str]]) -> Table:
    """A plain table."""
    made = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for k, name in enumerate(columns):
        made.add_column(name, justify="left" if k == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
