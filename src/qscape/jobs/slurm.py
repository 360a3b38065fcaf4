"""Workers on a SLURM cluster. Needs the extra `slurm`, and a disk that all machines share.

A worker is a SLURM job, which submitit submits. On its node it runs the job of qscape in a process of its
own, like a local worker. Both sides talk by files in `STUDY/slurm`: the node appends the events; the head
says when to stop, and shows that it is alive. The run saves and ends before the time limit of its SLURM job,
and when the head is gone. The study submits a run that is not finished again; it continues from its save.
"""

import contextlib
import importlib
import json
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qscape.errors import MissingPackage, WrongValue, describe, need_extra
from qscape.jobs.pool import LocalWorker
from qscape.jobs.worker import Job
from qscape.system import safe_path

WORKERS = 64  # SLURM jobs at a time, if nothing is said
MINUTES = 240  # time limit of a SLURM job, if nothing is said; short ones wait less
LOOK = 1.0  # seconds between two looks at the files
PATIENCE = 300.0  # seconds without a sign of life after which the other side counts as gone
EVENTS, WISH, ALIVE = "events.jsonl", "wish", "alive"  # files of a job
END = {"kind": "End"}  # the last line of the events


class Slurm:
    """Starts workers as SLURM jobs.

    Args:
        folder: the study's folder, which all nodes see under the same path.
        workers: maximal number of SLURM jobs at a time; None: `WORKERS`.
        args: `name=value` of submitit's SLURM executor, such as `partition=cpu` and `time=60` (minutes).
            `cluster=local` runs the jobs on this machine instead, to try it.

    Raises:
        UsageError: submitit or SLURM is missing, or an argument is unknown.
    """

    def __init__(self, folder: Path, workers: int | None = None, args: Sequence[str] = ()) -> None:
        with need_extra("--slurm", "slurm"):
            submitit: Any = importlib.import_module("submitit")
        given = dict(map(_read_argument, args))
        self.workers = workers or WORKERS
        self.folder = folder.resolve() / "slurm"
        minutes = given.pop("time", MINUTES)
        if given.pop("cluster", "slurm") == "local":
            kind, given = submitit.LocalExecutor, {"timeout_min": minutes, **given}
        elif shutil.which("sbatch") is None:
            raise MissingPackage("--slurm: there is no sbatch here; run the study where jobs are submitted.")
        else:
            kind = submitit.SlurmExecutor
            given = {"time": minutes, "cpus_per_task": 1, "job_name": "qscape", **given}
        try:
            self.executor: Any = kind(self.folder)
            self.executor.update_parameters(**given)
        except Exception as problem:  # submitit raises errors of many classes here
            raise WrongValue(
                f"--slurm-args cannot be used ({describe(problem)}).", field="slurm_args"
            ) from problem

    def start(self, job: Job) -> "SlurmWorker":
        """Submit a job; it begins when SLURM has a free core."""
        return SlurmWorker(self, job)


def _read_argument(pair: str) -> tuple[str, Any]:
    """Read `name=value`; whole numbers become int."""
    name, sign, value = pair.partition("=")
    if not (sign and name.isidentifier() and value):
        raise WrongValue(
            f"--slurm-args {pair} is no name=value pair, like partition=cpu.", field="slurm_args"
        )
    return name, int(value) if value.isdecimal() else value


class SlurmWorker:
    """The head's side of a SLURM job; implements `pool.Worker`."""

    def __init__(self, slurm: Slurm, job: Job) -> None:
        self.place = slurm.folder / uuid.uuid4().hex[:12]
        self.place.mkdir(parents=True)
        self._show_life()
        job = replace(job, folder=job.folder.resolve())
        self.job: Any = None
        self.problem = ""
        try:
            with safe_path():
                self.job = slurm.executor.submit(work, job.to_json(), str(self.place))
        except Exception as problem:
            self.problem = f"SLURM did not take it ({describe(problem)})"

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the job's events as JSON.

        An error ends the events with one of kind "Failed"; `lost` is true if the SLURM job was lost.
        """
        if self.problem:
            yield {"kind": "Failed", "why": self.problem}
            return
        position = 0
        while True:
            over = self.job.done()  # before the file is read, so that no line is missed
            with contextlib.suppress(FileNotFoundError), (self.place / EVENTS).open("rb") as file:
                file.seek(position)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    position += len(line)
                    data = json.loads(line)
                    if data == END:
                        shutil.rmtree(self.place, ignore_errors=True)
                        return
                    yield data
            if over:
                break
            self._show_life()
            time.sleep(LOOK)
        if (self.place / WISH).exists() and not position:
            return  # it was stopped before it began
        why = f"its SLURM job {self.job.job_id} ended ({self.job.state}); see {self.place.parent}"
        yield {"kind": "Failed", "why": why, "lost": True}

    def stop(self) -> None:
        """Ask the job to save and end."""
        self._wish("stop")

    def kill(self) -> None:
        """End the job now, without a save."""
        self._wish("kill")

    def _wish(self, what: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # the job has ended
            (self.place / WISH).write_text(what)
        if self.job is not None and not (self.place / EVENTS).exists():
            self.job.cancel(check=False)

    def _show_life(self) -> None:
        (self.place / ALIVE).touch()


def work(data: dict[str, Any], place: str) -> None:
    """Run a job and write its events into a folder; the node's side of a SLURM job.

    Args:
        data: the job as JSON.
        place: the folder of the files by which both sides talk.
    """
    with (Path(place) / EVENTS).open("a", buffering=1) as out:
        worker = LocalWorker(Job.from_json(data))
        node = _Node(worker, Path(place))
        # submitit would end this process at once. SLURM sends one of the first two before the time limit.
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, node.leave)
        threading.Thread(target=node.obey, daemon=True).start()
        for event in worker.events():
            if event["kind"] != "EpisodeDone":  # frequent, and unused on the head
                out.write(json.dumps(event) + "\n")
        if node.left:
            why = "its SLURM job was told to leave; the run has saved"
            out.write(json.dumps({"kind": "Failed", "why": why, "lost": True}) + "\n")
        out.write(json.dumps(END) + "\n")


class _Node:
    """Stops the worker of a node, when the head or SLURM says so.

    Attributes:
        left: whether SLURM said so.
    """

    def __init__(self, worker: LocalWorker, place: Path) -> None:
        self.worker, self.place = worker, place
        self.left = self.stopping = False

    def leave(self, *_: object) -> None:
        """Save and end, since SLURM wants the node back. The handler of signals."""
        self.left = True
        self._stop()

    def obey(self) -> None:
        """Do what the head wishes, and stop when it is gone. Runs in a thread."""
        seen, since = 0, time.monotonic()
        while True:
            with contextlib.suppress(FileNotFoundError):
                wish = (self.place / WISH).read_text()
                self._stop()
                if wish == "kill":
                    self.worker.kill()
            with contextlib.suppress(FileNotFoundError):
                sign = os.stat(self.place / ALIVE).st_mtime_ns
                if sign != seen:
                    seen, since = sign, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                self._stop()
            time.sleep(LOOK)

    def _stop(self) -> None:
        if not self.stopping:
            self.stopping = True
            self.worker.stop()
