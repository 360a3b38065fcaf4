"""Notice calls of environments that do not return."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

TICK = 0.5  # seconds between two looks


class Call(NamedTuple):
    """A call of an environment that has not returned yet.

    Attributes:
        what: "reset", "step", or another word for it.
        since: when it began, by `time.monotonic`.
    """

    what: str
    since: float


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


def describe_hung(name: str, what: str, seconds: float) -> str:
    """Return the sentence about a call of an environment that does not return."""
    return f"{name} did not return from {what} within {seconds:g} seconds"
