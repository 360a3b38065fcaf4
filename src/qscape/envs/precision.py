"""Observations whose mean is large beside their spread, such as clocks and places on a map.

Agents see observations in float32, which keeps seven digits. What an entry tells lies in its changes, and
where the mean is 10,000 times as large and more, most of their digits are gone before anything subtracts it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from jaxtyping import Float

from qscape.envs.spaces import name_entry

FAR = 1e4  # |mean| / spread from which float32 loses digits of an observation
ENOUGH, MOST = 50, 1_000  # observations from which a mean is judged, and of which it is made

Leaves = Sequence[tuple[tuple[str, ...], Box]]


class Precision:
    """Mean and spread of the first observations, in float64.

    Attributes:
        seen: how many observations there were.
    """

    def __init__(self, leaves: Leaves):
        """Begin without an observation; `leaves`: those of the space, as of `EnvAdapter.leaves`."""
        self.leaves, self.seen = leaves, 0
        self._first: Float[np.ndarray, " S"] | None = None
        self._sum = self._squares = np.zeros(0)

    def see(self, observation: Any, rows: int) -> None:
        """Take n observations as the environment returns them; nothing after `MOST`."""
        if self.seen >= MOST or not rows:
            return
        columns = []
        for path, _ in self.leaves:
            value = observation
            for key in path:
                value = value[key]
            columns.append(np.asarray(value, np.float64).reshape(rows, -1))
        given = np.concatenate(columns, axis=1)
        if self._first is None:
            self._first = given[0]
            self._sum, self._squares = np.zeros((2, given.shape[1]))
        moved = given - self._first  # so that squares do not lose what is looked for
        self._sum = self._sum + moved.sum(0)
        self._squares = self._squares + (moved**2).sum(0)
        self.seen += rows

    def warning(self, name: str, where: str = "the environment") -> str | None:
        """Return a sentence for the user about the entry of which most is lost; None if there is none.

        Args:
            name: of the environment or the dataset.
            where: where the mean can be subtracted.
        """
        if self._first is None or self.seen < ENOUGH:
            return None
        mean = self._first + self._sum / self.seen
        spread = np.sqrt(np.maximum(self._squares / self.seen - (self._sum / self.seen) ** 2, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(spread > 0, np.abs(mean) / spread, 0)
        if not (ratio > FAR).any():
            return None
        entry, others = int(np.argmax(ratio)), int((ratio > FAR).sum()) - 1
        more = f" (and {others} other {'entry' if others == 1 else 'entries'})" if others else ""
        step = abs(float(np.spacing(np.float32(mean[entry]))))
        return (
            f"{name}: {name_entry(self.leaves, entry)}{more} lies around {mean[entry]:.6g} with a spread of "
            f"{spread[entry]:.2g}, and agents see float32, which knows steps of {step:.2g} there: subtract "
            f"{mean[entry]:.6g} in {where}, in float64"
        )


def watched(
    flatten: Callable[[Any, int], np.ndarray], precision: Precision
) -> Callable[[Any, int], np.ndarray]:
    """Return a function that does what `flatten` does, and shows what it is given to `precision`."""

    def flatten_and_see(observation: Any, rows: int) -> np.ndarray:
        made = flatten(observation, rows)  # first, since it refuses what is no number
        precision.see(observation, rows)
        return made

    return flatten_and_see


def judge_columns(columns: Mapping[str, np.ndarray], space: Box, name: str) -> list[str]:
    """Return the warning on the observations `[N, S]` of a file, in a list."""
    precision, rows = Precision([((), space)]), columns["observations"]
    picked = rows[:: max(1, len(rows) // (MOST - 1))]  # of the whole file: a clock goes on
    precision.see(picked, len(picked))
    warning = precision.warning(name, "the file")
    return [] if warning is None else [warning]
