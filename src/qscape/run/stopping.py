"""Signals as requests to stop: a run ends at its next step, with all that it has learned."""

import signal
import threading
from typing import Any

from qscape.run.loop import Loop


class StopOnSignal:
    """For as long as the context is open, the first signal of each kind asks the trainer to stop, the second
    does what it did before. Python hears signals in its main thread only; in another nothing is changed.

    Attributes:
        asked: did a signal come?
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self.signals = numbers
        self.trainer: Loop | None = None
        self.before: dict[int, Any] = {}
        self.asked = False

    def attach(self, trainer: Loop) -> None:
        """Who is to be asked; until then a signal is a KeyboardInterrupt."""
        self.trainer = trainer

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._ask) for number in self.signals}
        return self

    def _ask(self, number: int, frame: Any) -> None:
        if self.trainer is None:
            raise KeyboardInterrupt
        self.asked = True
        self.trainer.stop()
        signal.signal(number, self.before[number])

    def __exit__(self, *problem: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
