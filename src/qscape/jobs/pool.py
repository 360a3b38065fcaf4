"""Jobs in parallel: workers that run one job each, and the pool that keeps them busy.

On a CPU one process per core, each with one XLA thread, is the fastest way to run many seeds.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any, NamedTuple, Protocol, runtime_checkable

from qscape import system
from qscape.errors import RunError
from qscape.jobs.worker import INTERRUPTED, Job
from qscape.run import events as ev
from qscape.run.folder import COMMAND
from qscape.run.stopping import ENDING, take_signals

ASK_AGAIN = 1.0  # seconds between two requests for a job when none can start, unless a worker ends


class Failure(NamedTuple):
    """A failed job.

    Attributes:
        why: the reason, as a sentence.
        lost: the worker vanished; another one may continue from the last save.
        status: exit status of the error.
    """

    why: str
    lost: bool = False
    status: int = RunError.status


@runtime_checkable
class Worker(Protocol):
    """The interface of a worker, which runs one job."""

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the job's events as JSON until it ends; the last event of a failed job has kind "Failed"."""
        ...

    def stop(self) -> None:
        """Ask the job to save and end."""
        ...

    def kill(self) -> None:
        """End the job now, without a save."""
        ...


class LocalWorker:
    """A worker in a process of its own. It saves and ends when this process ends.

    Args:
        job: the job to run.
        log: file that its standard error is appended to; None: standard error is shown.
        alone: no other worker shares the machine: it has as many threads and as much of an accelerator's
            memory as a run in this process. False: one XLA thread.
    """

    def __init__(self, job: Job, log: Path | None = None, alone: bool = False) -> None:
        # Workers share an accelerator's memory; by default, JAX reserves most of it per process.
        mine, fixed = ({}, {}) if alone else ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, {"NPROC": "1"})
        with log.open("a") if log else contextlib.nullcontext() as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "qscape.jobs.worker"],  # -P: no module of the current folder,
                stdin=subprocess.PIPE,  # the worker ends when this pipe closes
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**mine, **os.environ, **fixed, COMMAND: job.command},
                **system.detached(),  # Ctrl-C reaches the worker only through the pool
            )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process has died; `events` reports it
            self.process.stdin.write(json.dumps(job.to_json()) + "\n")
            self.process.stdin.flush()

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the job's events as JSON.

        If the process ends without its last event, a further one has its exit status and `lost`.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        kind = None
        for line in self.process.stdout:
            if line.endswith("\n"):  # the last line of a killed worker may be incomplete
                data = json.loads(line)
                kind = data["kind"]
                yield data
        code = self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        over = kind == "Failed" or (code == 0 and kind == "Ended")
        if not over and code != INTERRUPTED:
            how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
            yield {"kind": "Failed", "why": f"its process {how}", "lost": True}

    def stop(self) -> None:
        """Ask the job to save and end."""
        system.ask_to_stop(self.process)

    def kill(self) -> None:
        """End the job now, without a save."""
        self.process.kill()


class Pool:
    """Runs jobs, at most `workers` at a time.

    Args:
        jobs: yields a number and a job, or None if no job can start now and the pool should ask again later.
            The pool asks for the next one whenever a worker is free, but after a None not for `ASK_AGAIN`
            seconds: an answer may take long, and events wait for it.
        workers: maximal number of running jobs.
        start: makes a worker for a job.

    Attributes:
        running: the workers of running jobs, by number.
        stopping: whether `stop` was called; then no further job starts.
    """

    def __init__(
        self,
        jobs: Iterator[tuple[int, Job] | None],
        workers: int,
        start: Callable[[Job], Worker] = LocalWorker,
    ) -> None:
        self.jobs, self.workers, self.start = jobs, workers, start
        self.running: dict[int, Worker] = {}
        self.stopping = False
        self._asks_from = 0.0  # the time from which the pool asks for jobs
        self._queue: Queue[tuple[int, dict[str, Any] | None]] = Queue()

    def stop(self, *_: object) -> None:
        """Ask the workers to save and end; a second call kills them. Also the handler of signals."""
        for worker in [*self.running.values()]:
            worker.kill() if self.stopping else worker.stop()
        self.stopping = True

    def events(self) -> Iterator[tuple[int, ev.RunEvent | Failure | None]]:
        """Run the jobs until all are done. In the main thread, SIGINT, SIGTERM and SIGHUP stop it.

        Yields:
            The number of a job and one of its events. The last event of a job is None: its worker has ended.
        """
        try:
            with _handle_signals(self.stop):
                while self._fill() or self.running:
                    with contextlib.suppress(Empty):
                        k, data = self._queue.get(timeout=ASK_AGAIN)
                        if data is None:
                            del self.running[k]
                            self._asks_from = 0.0
                        # A worker that was stopped while it started reports a loss, which is no failure.
                        if not (self.stopping and data and data.get("lost")):
                            yield k, _parse_event(data)
        finally:
            for worker in self.running.values():
                worker.stop()

    def _fill(self) -> bool:
        """Start jobs while workers are free. Returns whether further jobs may follow."""
        while len(self.running) < self.workers and not self.stopping:
            if time.monotonic() < self._asks_from:
                break
            try:
                given = next(self.jobs)
            except StopIteration:
                return False
            if given is None:
                self._asks_from = time.monotonic() + ASK_AGAIN
                break
            k, job = given
            self.running[k] = self.start(job)
            if self.stopping:  # a signal came while the worker started
                self.running[k].stop()
            threading.Thread(target=self._listen, args=(k, self.running[k]), daemon=True).start()
        return not self.stopping

    def _listen(self, k: int, worker: Worker) -> None:
        """Put the events of worker k into the queue, then None. Runs in a thread for each worker."""
        try:
            for data in worker.events():
                self._queue.put((k, data))
        except Exception as problem:
            self._queue.put((k, {"kind": "Failed", "why": f"{type(problem).__name__}: {problem}"}))
        finally:
            self._queue.put((k, None))


def _parse_event(data: dict[str, Any] | None) -> ev.RunEvent | Failure | None:
    """Convert an event from JSON; None stays None."""
    if data is None:
        return None
    if data["kind"] == "Failed":
        return Failure(data["why"], data.get("lost", False), data.get("status", RunError.status))
    return ev.from_json(data)


@contextlib.contextmanager
def _handle_signals(handler: Callable[..., None]) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP inside the `with` block, as `take_signals` does."""
    before = take_signals(ENDING, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
