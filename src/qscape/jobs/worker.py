"""A job: one run to train or resume.

`run_job` runs it in this process. `python -m qscape.jobs.worker` reads a job from standard input and writes
its events to standard output, one JSON object a line.
"""

import atexit
import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax

from qscape import system, trusted
from qscape.agents import plugins, register
from qscape.envs import kept_spaces
from qscape.errors import BrokenEnv, LostProcess, QscapeError, RunError, describe, memory_error
from qscape.run import events as ev
from qscape.run import processes
from qscape.run.folder import command
from qscape.run.plan import Plan, Prepared, from_json
from qscape.run.processes import Place
from qscape.run.session import Session
from qscape.run.stopping import ENDING, StopOnSignal
from qscape.run.trackers import Tracking
from qscape.run.training import resume, resume_together, train, train_together
from qscape.values import encode_args


@dataclasses.dataclass(frozen=True)
class Job:
    """A job for a worker.

    Attributes:
        kind: "train" trains `plan` into `folder`; "resume" continues the run in `folder` up to `steps`.
        folder: the run folder.
        plan: the plan; None with "resume".
        steps: new total of environment steps; None: that of the run, or of the plan.
        overwrite: replace a run that is in the folder.
        trackers: further loggers: "wandb", "trackio", "mlflow", or `module:Class`.
        tracking: with "train": how they name the run.
        save, empty_replay, save_shards: with "resume": as for `resume`.
        place: this process among those that share the run; None: it is the only one.
        command: the command line that the user typed, for run.json; it goes with the job to other machines.
    """

    kind: str
    folder: Path
    plan: Plan | None = None
    steps: int | None = None
    overwrite: bool = False
    save: int | None = None
    empty_replay: bool = False
    save_shards: bool | None = None
    trackers: list[str] = dataclasses.field(default_factory=list)
    tracking: Tracking | None = None
    place: Place | None = None
    command: str = dataclasses.field(default_factory=command)

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON, with the parts `module:Class` and the code that this process allows."""
        allowed = {
            "parts": plugins.places(),
            "trusted": trusted.trusted_places(),
            "other_spaces": kept_spaces.accepts_others(),
        }
        data: dict[str, Any] = dataclasses.asdict(self) | {"folder": str(self.folder)} | allowed
        if self.plan is not None:
            data["plan"]["env_args"] = encode_args(self.plan.env_args)
        return data

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Job":
        """Return the job that `to_json` wrote; register the same parts and allow the same code here.

        Raises:
            UsageError: a part cannot be imported here.
        """
        data = dict(data)
        trusted.trust(*data.pop("trusted"))
        if data.pop("other_spaces"):
            kept_spaces.accept_others()
        for place in data.pop("parts"):
            register(place)
        plan = data["plan"] and from_json(data["plan"])
        tracking = data["tracking"] and Tracking.from_json(data["tracking"])
        place = data["place"] and Place(**data["place"])
        folder = Path(data["folder"])
        made: dict[str, Any] = {"folder": folder, "plan": plan, "tracking": tracking, "place": place}
        return Job(**data | made)


def leave(why: str) -> None:
    """End the process with an error, while its main thread hangs in an environment."""
    print(f"qscape: {why}", file=sys.stderr, flush=True)
    os._exit(BrokenEnv.status)


def run_job(
    job: Job, prepared: Prepared | None = None, leave: Callable[[str], object] = leave
) -> Iterator[ev.RunEvent]:
    """Run a job and yield its events.

    SIGINT, SIGTERM and SIGHUP make the run save and end; a second SIGINT ends it at once.

    Args:
        job: the job.
        prepared: with "train": what `prepare` returned for its plan; None: it is not prepared yet.
        leave: ends the process if an environment hangs that nothing can interrupt.

    Raises:
        RunError: the environment called `sys.exit`, or the run failed otherwise.
    """
    with _exits_are_errors(), StopOnSignal(*ENDING, last=True) as asked:
        options = _options(job, partial(_attach, asked, leave), prepared)
        if job.kind == "train":
            assert job.plan is not None
            yield from train(job.plan, job.folder, **options)
        else:
            yield from resume(job.folder, job.steps, **options)


def _options(job: Job, on_trainer: Callable[..., None], prepared: Any) -> dict[str, Any]:
    """Return the options of a job's training or resuming, which are those of several jobs in one program."""
    shared = {"trackers": job.trackers, "on_trainer": on_trainer}
    if job.kind == "train":
        return shared | {"overwrite": job.overwrite, "tracking": job.tracking, "prepared": prepared}
    return shared | {name: getattr(job, name) for name in ("save", "empty_replay", "save_shards")}


def _attach(asked: StopOnSignal, leave: Callable[[str], object], session: Session) -> None:
    """Let signals stop a session, and let it end the process."""
    session.leave = leave
    asked.attach(session)


def run_together(jobs: list[Job], prepared: Prepared | None = None) -> Iterator[tuple[int, ev.RunEvent]]:
    """Run jobs whose plans differ in their seed only, in one program; signals act as in `run_job`.

    Args:
        jobs: the jobs, all of the same kind.
        prepared: what `prepare` returned for the first plan; None: it is not prepared yet.

    Yields:
        The index of a job and one of its events.
    """
    plans, places = [job.plan for job in jobs if job.plan], [job.folder for job in jobs]
    first = jobs[0]
    with _exits_are_errors(), StopOnSignal(*ENDING, last=True) as asked:
        options = _options(first, partial(_attach, asked, leave), prepared)
        if first.kind == "resume":
            yield from resume_together(places, first.steps, **options)
        else:
            yield from train_together(plans, places, **options)


@contextlib.contextmanager
def _exits_are_errors() -> Iterator[None]:
    """Turn the SystemExit of an environment into an error: as code 0 it would look like the end of a run."""
    try:
        yield
    except SystemExit as problem:
        raise BrokenEnv(f"the environment ended the program ({describe(problem)}).") from problem


INTERRUPTED = 130  # exit code of a worker that was stopped before its run began
PATIENCE = 300.0  # seconds that a worker may take to save after its parent process has ended


def main() -> None:
    """Run the job in the first line of standard input; write its events to standard output as JSON lines.

    The end of standard input means that the parent process has ended: then the run saves and ends.
    """
    system.collect_seldom()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # other output goes to standard error, so that it does not mix with the events
    line = sys.stdin.readline()
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(data: dict[str, Any]) -> None:
        try:
            out.write(json.dumps(data) + "\n")
        except BrokenPipeError:  # the parent process has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())

    def give_up(why: str) -> None:
        tell({"kind": "Failed", "why": why, "status": BrokenEnv.status})
        os._exit(BrokenEnv.status)

    try:
        job = Job.from_json(json.loads(line))
        with _among_others(job.place):
            for event in run_job(job, leave=give_up):
                tell(ev.to_json(event))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except QscapeError as problem:
        lost = isinstance(problem, LostProcess)
        tell({"kind": "Failed", "why": str(problem), "status": problem.status, "lost": lost})
        sys.exit(problem.status)
    except Exception as problem:
        if full := memory_error(problem):
            tell({"kind": "Failed", "why": str(full), "status": full.status})
            sys.exit(full.status)
        tell({"kind": "Failed", "why": describe(problem)})
        raise  # a bug in an environment or in qscape: the log shows its traceback


@contextlib.contextmanager
def _among_others(place: Place | None) -> Iterator[None]:
    """Share the run with other processes inside the `with` block; None: with none.

    Raises:
        RunError: another process is gone.
    """
    if place is None:
        yield
        return
    processes.join(place)
    atexit.register(os._exit, RunError.status)  # JAX would wait for the others, which wait for this one
    try:
        yield
    except jax.errors.JaxRuntimeError as problem:
        if memory_error(problem):
            raise
        raise LostProcess(f"{place}: another process does not answer ({describe(problem)}).") from problem
    processes.leave()
    atexit.unregister(os._exit)


def _end_with_parent() -> None:
    """Wait for the end of standard input, then make the run save and end; kill the process if it does not."""
    while os.read(0, 1024):
        pass
    system.signal_self(signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)


if __name__ == "__main__":
    main()
