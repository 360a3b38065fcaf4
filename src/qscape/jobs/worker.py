"""A job: one run to train or resume, here or in a process of its own that tells its events as JSON lines."""

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qscape.agents import plugins, register
from qscape.errors import QscapeError
from qscape.jobs.estimate import measure_costs
from qscape.run import events as ev
from qscape.run.plan import Plan, from_json
from qscape.run.stopping import StopOnSignal
from qscape.run.training import resume, train, train_together


@dataclasses.dataclass(frozen=True)
class Job:
    """A job for a worker process: `kind` "train" runs a plan into a folder, "resume" continues the run in a
    folder up to `steps`, "measure" measures the costs of a plan and writes nothing."""

    kind: str
    folder: Path
    plan: Plan | None = None
    steps: int | None = None
    overwrite: bool = False
    trackers: list[str] = dataclasses.field(default_factory=list)
    trusted: bool = False  # did the user name the environment of the run to resume, as in a study file?

    def to_json(self) -> dict[str, Any]:
        """The job as JSON, with the parts that the user's process registered by their place."""
        return dataclasses.asdict(self) | {"folder": str(self.folder), "parts": plugins.places()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Job":
        """The job that `to_json` wrote. Registers the same parts.

        Raises:
            UsageError: a part cannot be imported here.
        """
        data = dict(data)
        for place in data.pop("parts"):
            register(place)
        plan = data["plan"] and from_json(data["plan"])
        return Job(**data | {"folder": Path(data["folder"]), "plan": plan})


def run_job(job: Job) -> Iterator[ev.RunEvent]:
    """Run a job. SIGINT and SIGTERM make it save and end; a second SIGINT ends it at once."""
    with StopOnSignal(signal.SIGINT, signal.SIGTERM) as asked:
        if job.kind == "measure":
            assert job.plan is not None
            yield measure_costs(job.plan)
        elif job.kind == "train":
            assert job.plan is not None
            yield from train(
                job.plan, job.folder, overwrite=job.overwrite, trackers=job.trackers, on_trainer=asked.attach
            )
        else:
            yield from resume(
                job.folder, job.steps, trackers=job.trackers, on_trainer=asked.attach, trusted=job.trusted
            )


def run_together(jobs: list[Job]) -> Iterator[tuple[int, ev.RunEvent]]:
    """Train plans that differ in their seed only, in one program; signals as in `run_job`."""
    plans, places = [job.plan for job in jobs if job.plan], [job.folder for job in jobs]
    first = jobs[0]
    with StopOnSignal(signal.SIGINT, signal.SIGTERM) as asked:
        yield from train_together(
            plans, places, overwrite=first.overwrite, trackers=first.trackers, on_trainer=asked.attach
        )


INTERRUPTED = 130  # exit code of a worker that was stopped before there was anything to save
PATIENCE = 300.0  # seconds to save in, once nobody listens any more


def main() -> None:
    """Do the job that standard input names in its first line, and tell its events on standard output.

    When standard input ends, whoever wanted the job done is gone: the run saves and ends.
    """
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else prints must not mix with the events
    line = sys.stdin.readline()
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(data: dict[str, Any]) -> None:
        try:
            out.write(json.dumps(data) + "\n")
        except BrokenPipeError:  # nobody listens any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())

    try:
        for event in run_job(Job.from_json(json.loads(line))):
            tell(ev.to_json(event))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except QscapeError as problem:
        tell({"kind": "Failed", "why": str(problem), "code": problem.code})
        sys.exit(problem.code)
    except Exception as problem:  # a fault in an environment, or ours: its traceback is worth seeing
        tell({"kind": "Failed", "why": f"{type(problem).__name__}: {problem}"})
        raise


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)


if __name__ == "__main__":
    main()
