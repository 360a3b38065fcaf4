"""How fast a run learns, and so how long it still takes."""

import time
from collections import deque
from itertools import pairwise
from typing import NamedTuple

from qscape.run import events as ev

MEASURED = 5.0  # seconds of updates after which a run's time is estimated
PERIOD = 600.0  # the newest seconds of updates whose speed counts
SHARE = 0.25  # of a run, after which it is estimated although no policy that learnt was evaluated


class Sample(NamedTuple):
    """The steps made at a time in seconds, of which `evaluating` were spent on evaluations."""

    at: float
    step: int
    evaluating: float


class RemainingTime:
    """The speed of a run, told by its events.

    Random steps are faster than those that learn, and programs are compiled at the first updates. So time
    counts from two events on between which updates were made, and without its longest interval, in which a
    further program may have been compiled. Evaluations count with what the last one took.

    Attributes:
        speed: environment steps per second, evaluations included; None before it is known.
        whole: the same of the whole run, with the start of its process; None before the run has ended.
    """

    def __init__(self) -> None:
        self.speed: float | None = None
        self.whole: float | None = None
        self.start()
        self._begin(0, 0)

    def start(self) -> None:
        """Count the time of the whole run from now: its process starts."""
        self._heard = time.monotonic()
        self._taken = self._longest = 0.0
        self._first: int | None = None

    def _begin(self, steps: int, every: int) -> None:
        self._steps, self._every = steps, every
        self._samples: deque[Sample] = deque()
        self._before: ev.Progressed | None = None
        self._evaluated = -1  # the step of the last evaluation, and its seconds
        self._cost = self._evaluating = 0.0
        self._settled = False

    def take(self, event: ev.RunEvent) -> None:
        """Apply an event of the run."""
        self._count(event)
        if isinstance(event, ev.Started):
            self._begin(event.steps, event.evals_every)
        elif isinstance(event, ev.Evaluated):
            self._evaluating += event.seconds
            again = event.step == self._evaluated  # of the kept policy, beside the current one
            self._evaluated, self._cost = event.step, event.seconds + self._cost * again
            self._settled |= bool(self._samples)
        elif isinstance(event, ev.Progressed):
            if self._samples or (self._before and event.updates > self._before.updates):
                self._samples.append(Sample(time.monotonic(), event.step, self._evaluating))
                while self._samples[-1].at - self._samples[0].at > PERIOD:
                    self._samples.popleft()
                self._measure()
            self._before = event

    def _count(self, event: ev.RunEvent) -> None:
        """Count the time of the whole run without its longest interval: later runs find programs compiled."""
        now = time.monotonic()
        interval, self._heard = now - self._heard, now
        self._taken += interval
        if isinstance(event, ev.Started):
            self._first = event.step
            return
        self._longest = max(self._longest, interval)
        if isinstance(event, ev.Ended) and self._first is not None:
            steps, seconds = event.step - self._first, self._taken - self._longest
            self.whole = steps / seconds if steps > 0 and seconds > 0 else None

    def left(self, step: int, steps: int) -> float | None:
        """Return the seconds that the steps from `step` to `steps` take; None before the speed is known."""
        return None if self.speed is None else max(steps - step, 0) / self.speed

    def _measure(self) -> None:
        samples = [*self._samples]
        taken = [
            (after.at - before.at - (after.evaluating - before.evaluating), after.step - before.step)
            for before, after in pairwise(samples)
        ]
        is_known = self._settled or not self._every or samples[-1].step >= SHARE * self._steps
        if not is_known or sum(seconds for seconds, _ in taken) < MEASURED:
            return
        if len(taken) > 2:
            taken.remove(max(taken))
        seconds, steps = (sum(of) for of in zip(*taken, strict=True))
        if seconds > 0 and steps > 0:
            self.speed = 1 / (seconds / steps + (self._cost / self._every if self._every else 0.0))
