"""Processes that share a run meet before it begins, and notice when one of them is gone.

    --processes HOST:PORT,COUNT,NUMBER     by hand
    --processes slurm                      in every task of `srun`

`jax.distributed` ends a process that waits for too long, and all processes when one of them dies, without a
Python error and without a name. So each process calls the roll before it starts: process 0 listens at
HOST:PORT, the others connect, tell who they are and what they are about to run, and process 0 lets all of
them go or says to all of them why not. The worker of each (`qscape.jobs.worker`) then joins the others
through JAX, at a port that process 0 found free. The connections stay open: one that closes without a
farewell says which process is gone, and the workers of the others are ended, if they do not end themselves.
"""

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from qscape.errors import Mismatch, QscapeError, Unreachable
from qscape.jobs.worker import Job
from qscape.run.folder import origin_of_code
from qscape.run.processes import Place

MOST = 2**20  # bytes of a line
PAUSE = 0.2  # seconds between two attempts to connect
NEWS = 2.0  # seconds in which a worker that lost another process hears which one
GRACE = 60.0  # seconds in which a worker has to end by itself when another process is gone
Record = dict[str, Any]


class RollCall:
    """Context manager: all processes of a run have met inside the `with` block.

    Args:
        place: of this process; its address is where process 0 waits for the others.
        job: what it is about to run, which must be the same in all.

    Attributes:
        place: of this process.
        job: with the place at which JAX joins the processes; after the roll call.
        gone: a sentence about the first process that ended before its time; "" if none did.

    Raises:
        UsageError: the processes have other versions, or other jobs, or two have one number.
        RunError: one is missing, or the port is taken.
    """

    def __init__(self, place: Place, job: Job) -> None:
        self.place, self.gone = place, ""
        self.host, _, port = place.address.rpartition(":")
        self.port = int(port)
        asked = job.to_json() | {"command": ""}
        self.job = job
        self.about: Record = {"number": place.number, "host": socket.gethostname()}
        self.about |= {"count": place.count, "code": origin_of_code(), "job": json.loads(json.dumps(asked))}
        self.others: dict[int, _Line] = {}  # of process 0 all others, of another one process 0
        self._names = {place.number: self.about["host"]}
        self._on_gone: Callable[[], object] = lambda: None
        self._over = False

    def __enter__(self) -> "RollCall":
        try:
            port = self._call() if self.place.number == 0 else self._answer()
        except BaseException:
            self._close()
            raise
        place = dataclasses.replace(self.place, address=f"{self.host}:{port}")
        self.job = dataclasses.replace(self.job, place=place)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over = True
        if kind is None:
            for line in self.others.values():
                line.send({"farewell": True})
        self._close()

    def _close(self) -> None:
        for line in self.others.values():
            line.close()

    # --- meeting ------------------------------------------------------------------------------------

    def _call(self) -> int:
        """Wait for all others, let them go, and return the port at which JAX joins them."""
        end = time.monotonic() + self.place.seconds
        try:
            with _listen(self.port) as door:
                for line, about in _visitors(door, end):
                    if why := self._doubt(about):
                        line.send({"refused": why, "status": Mismatch.status})
                        line.close()
                        raise Mismatch(why, field="processes")
                    self.others[about["number"]] = line
                    self._names[about["number"]] = about["host"]
                    if len(self.others) == self.place.count - 1:
                        break
            self._refuse_missing()
        except QscapeError as problem:
            for line in self.others.values():
                line.send({"refused": str(problem), "status": problem.status})
            raise
        port = _free_port()
        for line in self.others.values():
            line.send({"port": port, "hosts": self._names})
        return port

    def _refuse_missing(self) -> None:
        """Raise a RunError if a process has not come."""
        missing = [str(k) for k in range(self.place.count) if k not in self._names]
        if missing:
            which = f"process {missing[0]}" if len(missing) == 1 else f"processes {', '.join(missing)}"
            have = "has" if len(missing) == 1 else "have"
            raise Unreachable(
                f"{which} of {self.place.count} {have} not joined within {self.place.seconds:g} seconds "
                f"(--join-seconds) at {self.host}:{self.port}; start all of them with the same command, each "
                "with its own number.",
                field="processes",
            )

    def _doubt(self, about: Record) -> str:
        """Return why a process cannot join, as a sentence; "" if it can."""
        number, where = about["number"], f"process {about['number']} ({about['host']})"
        if number in self._names or not 0 <= number < self.place.count:
            return (
                f"two processes say that they are process {number}, on {self._names.get(number)} and on "
                f"{about['host']}; give each its own number."
            )
        here = f"process 0 ({self.about['host']})"
        for name, there, own in _differences(about, self.about, ("count", "code", "job")):
            return (
                f"{where} and {here} differ: {name} is {there} and {own}; install the same versions, and "
                "give the same command to all."
            )
        return ""

    def _answer(self) -> int:
        """Tell process 0 that this one is here, and return the port at which JAX joins them."""
        end = time.monotonic() + self.place.seconds
        line = _connect(self.host, self.port, end)
        if line is None:
            raise Unreachable(
                f"process 0 of {self.place.count} does not answer at {self.host}:{self.port} within "
                f"{self.place.seconds:g} seconds (--join-seconds); start it there, or check the address.",
                field="processes",
            )
        self.others[0] = line
        line.send(self.about)
        # Process 0 may have come later than this one, and decides when the time is over.
        answer = line.read(2 * self.place.seconds + GRACE) or {
            "refused": f"process 0 of {self.place.count} ended before all had joined; see what it printed."
        }
        if why := answer.get("refused"):
            kind = Mismatch if answer.get("status") == Mismatch.status else Unreachable
            raise kind(why, field="processes")
        self._names = {int(number): host for number, host in answer["hosts"].items()}
        return answer["port"]

    # --- noticing -----------------------------------------------------------------------------------

    def watch(self, on_gone: Callable[[], object]) -> None:
        """Call a function, in a thread, some time after another process has ended before its time."""
        self._on_gone = on_gone
        for number, line in self.others.items():
            threading.Thread(target=self._listen_to, args=(number, line), daemon=True).start()

    def find_gone(self) -> str:
        """Return the sentence `gone`, after a moment: the news may come a little later than its effect."""
        end = time.monotonic() + NEWS
        while not self.gone and time.monotonic() < end:
            time.sleep(PAUSE / 4)
        return self.gone

    def _listen_to(self, number: int, line: "_Line") -> None:
        while (said := line.read(None)) is not None:
            if said.get("farewell"):
                return
            number = said.get("gone", number)
            break
        if self._over or self.gone:
            return
        name = f"process {number} of {self.place.count} ({self._names.get(number)})"
        self.gone = f"{name} has ended; see what it printed"
        for other in self.others.values():
            other.send({"gone": number})
        time.sleep(GRACE)
        if not self._over:
            self._on_gone()


class _Line:
    """JSON lines over a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6)):
            if hasattr(socket, name):  # a host that is cut off closes no connection
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
        self.file = connection.makefile("rb")

    def send(self, record: Record) -> None:
        """Send a line; do nothing if the other side is gone."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(record).encode() + b"\n")

    def read(self, seconds: float | None) -> Record | None:
        """Return the next line; None if there comes none in that time, or the other side is gone."""
        with contextlib.suppress(OSError, ValueError):
            self.connection.settimeout(seconds)
            said = json.loads(self.file.readline(MOST))
            return said if isinstance(said, dict) else None
        return None

    def close(self) -> None:
        """End the connection, also for a thread that reads from it."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("", port), backlog=128)
    except OSError as problem:
        raise Unreachable(
            f"process 0 cannot listen at port {port} ({problem.strerror}); end the other process 0, or "
            "choose another port.",
            field="processes",
        ) from problem


def _visitors(door: socket.socket, end: float) -> Iterator[tuple[_Line, Record]]:
    """Yield the processes that connect, with what they say, until it is too late."""
    while (left := end - time.monotonic()) > 0:
        door.settimeout(left)
        try:
            line = _Line(door.accept()[0])
        except TimeoutError:
            return
        about = line.read(min(left, 10.0))
        if about is not None and isinstance(about.get("number"), int) and "host" in about:
            yield line, about
        else:  # something else that tries ports
            line.close()


def _connect(host: str, port: int, end: float) -> _Line | None:
    """Return a connection; None if nobody listens there in time."""
    while (left := end - time.monotonic()) > 0:
        try:
            return _Line(socket.create_connection((host, port), timeout=left))
        except OSError:
            time.sleep(min(PAUSE, left))
    return None


def _free_port() -> int:
    with socket.create_server(("", 0)) as found:
        return found.getsockname()[1]


def _differences(there: Any, here: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name and both values of each entry that differs between two JSON objects."""
    for name in names or sorted({*there, *here}):
        a, b = there.get(name), here.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b)
        elif a != b:
            yield name, a, b
