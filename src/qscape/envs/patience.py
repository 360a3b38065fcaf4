"""Notice calls of environments that do not return, and end them where that is possible."""

import ctypes
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

TICK = 0.5  # seconds between two looks
ALARM = getattr(signal, "SIGVTALRM", None)  # wakes the main thread; Windows has none


class Hung(BaseException):
    """Raised within a call of an environment that took too long; no `except Exception` there catches it."""


class Call(NamedTuple):
    """A call of an environment that has not returned yet.

    Attributes:
        what: "reset", "step", or another word for it.
        since: when it began, by `time.monotonic`.
        thread: which thread made it.
    """

    what: str
    since: float
    thread: int = 0


@runtime_checkable
class Caller(Protocol):
    """What calls an environment, such as an `EnvAdapter`.

    Attributes:
        env_id: the environment's name.
        called: the call that has not returned yet; None: there is none.
    """

    env_id: str
    called: Call | None


class Patience:
    """Context manager: a thread looks at calls of environments, and says which one takes too long.

    Time in which the whole process stood still, as in a debugger, does not count.

    Args:
        callers: returns what calls environments; asked at every look.
        seconds: how long a call may take; 0: as long as it likes.
        hung: called in the thread, once, with the caller and its call that has taken longer.
    """

    def __init__(
        self, callers: Callable[[], Iterable[Caller]], seconds: float, hung: Callable[[Caller, Call], object]
    ) -> None:
        self.callers, self.seconds, self.hung = callers, seconds, hung
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Patience":
        if self.seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._over.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _look(self) -> None:
        tick = min(TICK, self.seconds / 4)
        before: Call | None = None
        waited, last = 0.0, time.monotonic()
        while not self._over.wait(tick):
            now = time.monotonic()
            passed, last = min(now - last, 2 * tick), now
            running = [(caller, caller.called) for caller in self.callers()]
            caller, call = next(((c, call) for c, call in running if call is not None), (None, None))
            waited = waited + passed if call is not None and call == before else 0.0
            before = call
            if caller is not None and call is not None and waited >= self.seconds:
                self.hung(caller, call)
                return


class Alarm:
    """Context manager: `ring` raises `Hung` within a call that does not return.

    In the main thread a signal interrupts what waits in the system, such as a sleep or a socket. Another
    thread sees the exception when it runs Python code again. Neither reaches code in C that loops.
    """

    def __init__(self) -> None:
        self._call: Call | None = None
        self._caller: Caller | None = None
        self._before: Any = None

    def __enter__(self) -> "Alarm":
        if ALARM is not None and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(ALARM, self._handle)
        return self

    def __exit__(self, *problem: object) -> None:
        if self._before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(ALARM, self._before)  # pyright: ignore[reportArgumentType]
            self._before = None

    def ring(self, caller: Caller, call: Call) -> None:
        """Raise `Hung` within a call, from another thread; nothing happens if it returns first."""
        self._caller, self._call = caller, call
        if call.thread == threading.main_thread().ident:
            if self._before is not None:
                signal.pthread_kill(call.thread, ALARM)  # pyright: ignore[reportArgumentType]
        elif caller.called is call:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(call.thread), ctypes.py_object(Hung))

    def _handle(self, number: int, frame: Any) -> None:
        if self._call is not None and self._caller is not None and self._caller.called is self._call:
            raise Hung


def describe_hung(name: str, what: str, seconds: float) -> str:
    """Return the sentence about a call of an environment that does not return."""
    return f"{name} did not return from {what} within {seconds:g} seconds"
