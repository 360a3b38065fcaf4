"""The one way to make an interval: the stratified percentile bootstrap.

Runs are drawn anew with replacement, for every task by itself. The random numbers are those of rliable 1.2.0
after `np.random.seed(0)`, because it ignores its argument `random_state`. The interval goes from the 2.5% to
the 97.5% percentile of the resampled estimates. Tables, curves, pages and model cards all have their
intervals from here, and call them `INTERVAL`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95
INTERVAL = "95% percentile-bootstrap interval"


class Estimate(NamedTuple):
    """A number or an array with its 95% interval; the bounds of a single run are NaN."""

    value: Any
    low: Any
    high: Any


def bootstrap(scores: Sequence[np.ndarray], function: Callable, reps: int, seed: int = 0) -> Estimate:
    """Estimate a function of one score matrix, or of several that are resampled independently.

    Args:
        scores: matrices [R, T] of R runs (or episodes) and T tasks, each with R of its own.
        function: of the matrices; gives a number or an array.
        reps: number of resamples; 0: no interval.
        seed: of the resamples: the same scores give the same interval.
    """
    value = np.asarray(function(*scores))
    if reps == 0 or min(map(len, scores)) < 2:
        nothing = np.full(value.shape, np.nan)
        return Estimate(value, nothing, nothing)
    draw = np.random.RandomState(seed).choice

    def resample(x: np.ndarray) -> np.ndarray:
        return np.take_along_axis(x, draw(len(x), x.shape), axis=0)

    resampled = [function(*map(resample, scores)) for _ in range(reps)]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled, [tail, 100 - tail], axis=0)
    return Estimate(value, low, high)
