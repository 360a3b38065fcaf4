"""`qscape study run STUDY` and `qscape study status STUDY`."""

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from qscape import trusted
from qscape.cli import options
from qscape.cli.running import LiveBoard, clock, plain_console, require_positive, table
from qscape.errors import Conflict, MissingArgument, RunsFailed, UnknownName
from qscape.jobs.pool import Failure, LocalWorker, Pool, Worker
from qscape.jobs.progress import RunProgress, StudyProgress
from qscape.jobs.study import Study, find_study, read_study, write_rows
from qscape.jobs.worker import Job
from qscape.report.labels import describe_shared, describe_shortened, shorten_labels
from qscape.report.numbers import format_return
from qscape.run import events as ev
from qscape.system import count_cores
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class StatusOptions:
    """Flags of `qscape study status`."""

    budget: str | None = setting(
        None, "Budget of the file to take: quick, short, full or paper. None: the only one, or else full."
    )
    runs: str = setting("runs", "Folder that holds the studies' folders.")


@dataclasses.dataclass(frozen=True)
class StudyOptions(StatusOptions):
    """Flags of `qscape study run`."""

    workers: int | None = setting(None, "Runs side by side; None: one to a core, or 64 SLURM jobs.")
    ray: str | None = setting(None, "Address of a Ray cluster; auto: a local one.")
    slurm: bool = setting(False, "Run each run as a SLURM job.")
    slurm_args: tuple[str, ...] = setting((), "Arguments of these jobs, e.g. partition=cpu time=240.")


def main(argv: list[str]) -> int:
    """Run a study, or print the state of its runs. Returns the exit code."""
    what, rest = options.positional(argv, "run|status STUDY", "qscape study", flags_for="run")
    if what not in ("run", "status"):
        raise UnknownName(
            f"qscape study has no '{what}'; write qscape study run STUDY or study status STUDY."
        )
    flags = StudyOptions() if what == "run" else StatusOptions()
    if rest[:1] in (["-h"], ["--help"]):
        options.parse(flags, rest, f"qscape study {what} STUDY")
    if not rest or rest[0].startswith("-"):
        raise MissingArgument(
            f"qscape study {what} needs a study first: demo, or a file such as my-study.toml."
        )
    given: Any = options.parse(flags, rest[1:], f"qscape study {what} STUDY")
    board = StudyBoard(read_study(find_study(rest[0]), given.budget, Path(given.runs)), plain_console())
    if what == "status":
        board.console.print(board.table())
        for failed in board.progress.of("failed"):
            board.console.print(f"failed: {failed.why}", style="red", soft_wrap=True)
        return 0
    require_positive(given, "workers")
    if given.slurm and given.ray is not None:
        raise Conflict("--slurm and --ray both say where the runs are; leave one of them out.", field="slurm")
    if given.slurm_args and not given.slurm:
        raise Conflict("--slurm-args are arguments of SLURM jobs; add --slurm.", field="slurm_args")
    return run(board, given, shlex.join(["qscape", "study", *argv]))


def run(board: "StudyBoard", given: StudyOptions, command: str) -> int:
    """Run the runs of a study that are not finished.

    Args:
        board: the study on the screen.
        given: the flags.
        command: the command line, printed if the study was interrupted.

    Returns:
        The exit code: 0, or 130 after an interrupt.

    Raises:
        RunError: runs failed.
    """
    progress, say = board.progress, board.say
    for line in board.beginning():
        say(line)
    write_rows(progress.study)
    interrupted = False
    if progress.of("waiting", "elsewhere"):
        with engine(given, progress.study.folder) as (start, workers):
            pool = Pool(progress.jobs(), workers, start)
            board.workers = workers
            with board.live():
                for k, event in pool.events():
                    board.take(k, event)
            interrupted = pool.stopping
        board.console.print(board.table())
    failed = progress.of("failed")
    for run in failed:
        say(f"failed {run.row.folder}: {run.why}")
    if interrupted and progress.of("waiting", "elsewhere"):
        say(f"to continue: {command}{trusted.flag()}")
        return 130
    if failed:
        raise RunsFailed(f"{len(failed)} of {len(progress.runs)} runs failed; see above.")
    return 0


@contextlib.contextmanager
def engine(given: StudyOptions, folder: Path) -> Iterator[tuple[Callable[[Job], Worker], int]]:
    """Yield a function that starts a worker for a job, and the maximal number of workers.

    Workers run on the Ray cluster that the flags name, as SLURM jobs, or on this machine. The Ray cluster is
    left at the end of the `with` block.
    """
    if given.slurm:
        from qscape.jobs.slurm import Slurm

        slurm = Slurm(folder, given.workers, given.slurm_args)
        yield slurm.start, slurm.workers
        return
    if given.ray is None:
        yield partial(LocalWorker, log=folder / "workers.log"), given.workers or count_cores()
        return
    from qscape.jobs.cluster import Cluster

    with Cluster(given.ray, folder, given.workers) as cluster:
        yield cluster.start, cluster.workers


class StudyBoard(LiveBoard):
    """A study's runs on the screen: one live table on a terminal, else one line for each change."""

    def __init__(self, study: Study, console: Console) -> None:
        super().__init__(console)
        self.progress = StudyProgress(study, notice=self.changed)
        self.workers = 1
        self.estimated = False  # whether a line has told the time that is left
        self.labels, self.shared = shorten_labels(sorted({row.plan.label for row in study.rows}))

    def beginning(self) -> Iterator[str]:
        """Yield the first lines: the study, changed agents, and runs that other processes have."""
        yield f"{self.title()}; in {self.progress.study.folder}"
        yield from filter(None, [describe_shared(self.shared)])
        yield from describe_shortened(self.labels, self.shared)
        yield from self.progress.describe_changes()
        for run in self.progress.of("elsewhere"):
            yield line(run, self.labels)

    def take(self, k: int, event: ev.RunEvent | Failure | None) -> None:
        """Apply an event of run k; None: its worker has ended."""
        run = self.progress.runs[k]
        before = run.state
        run.take(event)
        for warning in event.warnings if isinstance(event, ev.Logged | ev.Started) else ():
            self.say(f"{name(run, self.labels)}: {warning}")
        if run.state != before or isinstance(event, ev.Started):
            self.changed(run)
        if (run.pace.speed or run.pace.whole) and not self.estimated:
            self.estimated = True
            self.say(self.cost())

    def changed(self, run: RunProgress) -> None:
        """Print the new state of a run, unless a live table shows it."""
        if not self.console.is_terminal:
            self.say(line(run, self.labels))

    def left(self) -> float | None:
        """Estimate the worker-seconds that are left; None before the speed of a run is known.

        An agent in an environment takes as long a step as its own runs so far, or else as all runs so far.
        Runs that have ended say more than those that learn: a short run is half start.
        """
        ended: dict[Path, list[float]] = {}
        taken: dict[Path, list[float]] = {}
        for run in self.progress.runs:
            for known, speed in ((ended, run.pace.whole), (taken, run.pace.speed)):
                if speed:
                    known.setdefault(run.row.folder.parent, []).append(1 / speed)
        if not (taken := taken | ended):
            return None
        step = {group: mean(of) for group, of in taken.items()}
        other = mean(step.values())
        return sum(
            (run.row.plan.steps - run.step) * step.get(run.row.folder.parent, other)
            for run in self.progress.of("waiting", "elsewhere", "running")
        )

    def cost(self) -> str:
        """Return the estimated time that is left, as text; "" before it is known."""
        left = self.left()
        if left is None:
            return ""
        busy = min(self.workers, len(self.progress.of("running", "waiting")) or 1)
        hours = f"{left / 3600:.2f} core-hours"
        return f"about {clock(left / busy)} left with {busy} worker{'s' * (busy > 1)} ({hours})"

    def counts(self) -> str:
        """Return the number of runs in each state, as text."""
        found = {state: len(self.progress.of(state)) for state in STATES}
        return (
            ", ".join(f"{n} {state}" for state, n in found.items() if n) + f" of {sum(found.values())} runs"
        )

    def table(self) -> Group:
        """Make the table of all runs."""
        return Group(Text(self.title()), runs_table(self.progress.runs, self.labels))

    def short_table(self) -> Group:
        """Make the table of as many runs as fit on the screen, the running ones first."""
        room = max(self.console.height - 4, 3)
        shown = self.progress.runs
        if len(shown) > room:
            shown = sorted(shown, key=lambda s: STATES.index(s.state))[:room]
        says = "; ".join(filter(None, [self.title(), self.cost()]))
        title = Text(says, overflow="ellipsis", no_wrap=True)
        made = runs_table(shown, self.labels)
        made.expand, made.columns[1].ratio, made.columns[1].no_wrap = True, 1, True
        made.columns[1].overflow = "ellipsis"
        return Group(title, made)

    def title(self) -> str:
        """Return the study's name and budget, and the number of runs in each state."""
        study = self.progress.study
        return f"{study.name} ({study.budget}): {self.counts()}"


# In the order in which `short_table` shows them.
STATES = ("running", "failed", "elsewhere", "waiting", "done")


def runs_table(runs: list[RunProgress], labels: Mapping[str, str]) -> Table:
    """Make a table with one row for each run; `labels`: the shown name of every label."""
    columns = ["environment", "agent", "seed", "state", "steps", "of", "steps/s", "return", "left"]
    made = table("", columns, [cells(s, labels) for s in runs])
    made.columns[1].justify = "left"
    return made


def cells(run: RunProgress, labels: Mapping[str, str]) -> list[str]:
    """Return the cells of a run's row in the table."""
    plan = run.row.plan
    speed = run.pace.speed if run.state == "running" else None
    return [
        run.row.folder.parents[1].name,
        labels[plan.label],
        str(plan.seed),
        run.state,
        f"{run.step:,}",
        f"{plan.steps:,}",
        f"{speed:,.0f}" if speed else "",
        "" if run.score is None else format_return(run.score),
        clock((plan.steps - run.step) / speed) if speed else "",
    ]


def line(run: RunProgress, labels: Mapping[str, str]) -> str:
    """Describe the state of a run in one line."""
    score = "" if run.score is None else f", return {format_return(run.score)}"
    says = {
        "running": f"{run.step:,} of {run.row.plan.steps:,} steps{score}",
        "done": f"{run.step:,} steps{score}",
        "elsewhere": f"another process trains {run.row.folder}; waiting for it",
        "failed": run.why,
        "waiting": f"{run.step:,} steps{score}; {run.why or 'stopped'}; to be continued",
    }
    return f"{run.state:<9} {name(run, labels)}  {says[run.state]}"


def name(run: RunProgress, labels: Mapping[str, str]) -> str:
    """Return the environment, agent and seed of a run as text."""
    return f"{run.row.folder.parents[1].name} {labels[run.row.plan.label]} seed {run.row.plan.seed}"
