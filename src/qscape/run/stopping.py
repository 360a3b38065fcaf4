"""Signals as requests to stop: the run saves and ends at its next step."""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any

from qscape.run.session import Session

HANGUP = getattr(signal, "SIGHUP", None)  # the end of a terminal; Windows has none
ENDING = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))  # end a run after a save


def take_signals(numbers: Iterable[signal.Signals], handler: Callable[[int, Any], Any]) -> dict[int, Any]:
    """Call `handler` when one of these signals arrives; return the handlers before, by signal.

    Python delivers signals in its main thread only; in another thread nothing changes. SIGHUP stays ignored
    where it is, as below `nohup`. The first one cuts the process off its terminal; a shell sends further
    ones, which are ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}

    terminals = [d for d in (0, 1, 2) if os.isatty(d)]  # not to be told any more after SIGHUP

    def handle(number: int, frame: Any) -> None:
        if number == HANGUP:
            signal.signal(number, signal.SIG_IGN)
            _leave(terminals)
        handler(number, frame)

    taken = [n for n in numbers if n != HANGUP or signal.getsignal(n) is not signal.SIG_IGN]
    return {number: signal.signal(number, handle) for number in taken}


def _leave(terminals: Iterable[int]) -> None:
    """Redirect file descriptors of a terminal that is gone to nowhere: writing to them would fail."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in terminals:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


class StopOnSignal:
    """Context manager: signals ask the trainer to stop; a second SIGINT before its save has its old effect.

    After the save there is nothing left to end, and a SIGINT would only disturb how the run is closed. A
    further SIGTERM or SIGHUP only asks again: a worker gets one from a pool that stops, and sends itself
    one when the pool's process is gone, which must not end it in its save. `take_signals` says where signals
    change nothing.

    Args:
        numbers: the signals, such as SIGINT.
        last: whether the process ends soon after the block; then a SIGINT after the first one has no effect
            there either.

    Attributes:
        asked: whether a signal arrived.
        interrupted: whether a SIGINT did.
    """

    def __init__(self, *numbers: signal.Signals, last: bool = False) -> None:
        self.signals, self.last = numbers, last
        self.trainer: Session | None = None
        self.before: dict[int, Any] = {}
        self.asked = self.interrupted = False

    def attach(self, trainer: Session) -> None:
        """Set the trainer that a signal stops. Before this call, a signal raises KeyboardInterrupt.

        Python swallows that inside callbacks of its garbage collector, one of which is JAX's; then the
        trainer is stopped here.
        """
        self.trainer = trainer
        if self.asked:
            trainer.stop()

    def __enter__(self) -> "StopOnSignal":
        self.before = take_signals(self.signals, self._ask)
        return self

    def _ask(self, number: int, frame: Any) -> None:
        again = self.interrupted and number == signal.SIGINT
        self.asked, self.interrupted = True, self.interrupted or number == signal.SIGINT
        if self.trainer is None:
            raise KeyboardInterrupt
        if not again:
            self.trainer.stop()
        elif not self.trainer.over:
            signal.signal(number, self.before[number])
            signal.raise_signal(signal.Signals(number))

    def __exit__(self, *problem: object) -> None:
        for number, handler in self.before.items():
            quiet = self.last and self.interrupted and number == signal.SIGINT
            signal.signal(number, _ignore if quiet else handler)


def _ignore(number: int, frame: Any) -> None:
    """Do nothing at a signal. Processes that are started here do not inherit it, as they would SIG_IGN."""
