"""Jobs side by side: workers that each do one job, and the pool that keeps them busy.

On CPU one process to a core, each with one XLA thread, is the fastest way to many seeds.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any, NamedTuple, Protocol, runtime_checkable

from qscape.errors import RunError
from qscape.jobs.worker import INTERRUPTED, Job
from qscape.run import events as ev
from qscape.run.folder import COMMAND, command

ASK_AGAIN = 1.0  # seconds until a job that could not begin is asked for again


class Failure(NamedTuple):
    """A job that broke. `lost`: its worker vanished, and another may go on from what it saved."""

    why: str
    lost: bool = False
    code: int = RunError.code


@runtime_checkable
class Worker(Protocol):
    """Something that does one job."""

    def told(self) -> Iterator[dict[str, Any]]:
        """Its events as JSON until it has ended; a job that broke ends with kind "Failed"."""
        ...

    def stop(self) -> None:
        """Ask it to save and end."""
        ...

    def kill(self) -> None:
        """End it now."""
        ...


class LocalWorker:
    """A process of its own, with one XLA thread. It saves and ends when this process is gone.

    Args:
        log: file that takes what it writes to standard error; None: it is shown.
    """

    def __init__(self, job: Job, log: Path | None = None) -> None:
        with log.open("a") if log else contextlib.nullcontext() as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qscape.jobs.worker"],
                stdin=subprocess.PIPE,  # stays open for as long as somebody wants the job done
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # On an accelerator several processes share the memory: none may take most of it at once.
                env={
                    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                    **os.environ,
                    "NPROC": "1",
                    COMMAND: command(),
                },
                start_new_session=True,  # the terminal's Ctrl-C is ours to pass on
            )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # dead already: `told` says so
            self.process.stdin.write(json.dumps(job.to_json()) + "\n")
            self.process.stdin.flush()

    def told(self) -> Iterator[dict[str, Any]]:
        """Its events; where it vanished without a word, how it ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        kind = None
        for line in self.process.stdout:
            if line.endswith("\n"):  # not so the last one of a worker that was killed
                data = json.loads(line)
                kind = data["kind"]
                yield data
        code = self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        if code and kind != "Failed" and code != INTERRUPTED:
            how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
            yield {"kind": "Failed", "why": f"its process {how}", "lost": True}

    def stop(self) -> None:
        """Ask it to save and end."""
        self.process.terminate()

    def kill(self) -> None:
        """End it now."""
        self.process.kill()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


class Pool:
    """Does jobs, up to `workers` at a time.

    Args:
        jobs: numbers and jobs, asked for whenever a worker is free; None: nothing can begin now, ask again.
        start: makes a worker for a job.
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
        self._told: Queue[tuple[int, dict[str, Any] | None]] = Queue()

    def stop(self, *_: object) -> None:
        """Asked once, the workers save and end; asked twice, they end."""
        for worker in [*self.running.values()]:
            worker.kill() if self.stopping else worker.stop()
        self.stopping = True

    def events(self) -> Iterator[tuple[int, ev.RunEvent | Failure | None]]:
        """What the jobs tell, with their numbers, until all are done. (number, None): its worker is gone.

        SIGINT and SIGTERM, where this is the main thread, stop the pool.
        """
        try:
            with _signals(self.stop):
                while self._fill() or self.running:
                    with contextlib.suppress(Empty):
                        k, data = self._told.get(timeout=ASK_AGAIN)
                        if data is None:
                            del self.running[k]
                        if not (self.stopping and data and data.get("lost")):  # killed while it started
                            yield k, _event(data)
        finally:
            for worker in self.running.values():
                worker.stop()

    def _fill(self) -> bool:
        """Begin what can begin. Is there more to come?"""
        while len(self.running) < self.workers and not self.stopping:
            try:
                given = next(self.jobs)
            except StopIteration:
                return False
            if given is None:
                break
            k, job = given
            self.running[k] = self.start(job)
            if self.stopping:  # since a moment ago
                self.running[k].stop()
            threading.Thread(target=self._listen, args=(k, self.running[k]), daemon=True).start()
        return not self.stopping

    def _listen(self, k: int, worker: Worker) -> None:
        try:
            for data in worker.told():
                self._told.put((k, data))
        except Exception as problem:
            self._told.put((k, {"kind": "Failed", "why": f"{type(problem).__name__}: {problem}"}))
        finally:
            self._told.put((k, None))


def _event(data: dict[str, Any] | None) -> ev.RunEvent | Failure | None:
    if data is None:
        return None
    if data["kind"] == "Failed":
        return Failure(data["why"], data.get("lost", False), data.get("code", RunError.code))
    return ev.from_json(data)


@contextlib.contextmanager
def _signals(handler: Callable[..., None]) -> Iterator[None]:
    """Let a handler take SIGINT and SIGTERM, where this thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
