"""Signals as requests to stop: the run saves and ends at its next step."""

import signal
import threading
from typing import Any

from qscape.run.loop import Loop


class StopOnSignal:
    """Context manager: the first signal of each kind asks the trainer to stop; the second has its old effect.

    Python delivers signals in its main thread only; in another thread the context changes nothing.

    Args:
        numbers: the signals, such as SIGINT.

    Attributes:
        asked: whether a signal arrived after `attach`.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self.signals = numbers
        self.trainer: Loop | None = None
        self.before: dict[int, Any] = {}
        self.asked = False

    def attach(self, trainer: Loop) -> None:
        """Set the trainer that a signal stops. Before this call, a signal raises KeyboardInterrupt."""
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
