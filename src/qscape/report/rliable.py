"""The intervals of rliable 1.2.0: the stratified percentile bootstrap. Tables and pictures do not use them.

Such a 95% interval holds the true value of five runs in 90% of cases, of three in 74%
(`benchmarks/coverage.py`). They are here for comparison with papers that print them. The numbers equal those
of rliable after `np.random.seed(0)` alone, since it takes a `random_state` and ignores it: it draws from
numpy's global state.
"""

from collections.abc import Callable, Sequence

import numpy as np

from qscape.report.intervals import CONFIDENCE, Estimate
from qscape.report.statistics import METRICS


def bootstrap(scores: Sequence[np.ndarray], function: Callable, reps: int = 2000, seed: int = 0) -> Estimate:
    """Estimate a function of one score matrix, or of several that are resampled independently.

    Runs are drawn anew with replacement, for every task by itself. The interval goes from the 2.5% to the
    97.5% percentile of the resampled estimates; it is NaN for a single run.

    Args:
        scores: matrices [R, T] of R runs (or episodes) and T tasks, each with R of its own.
        function: of the matrices; gives a number or an array.
        reps: number of resamples.
        seed: of the resamples: the same scores give the same interval.
    """
    value = np.asarray(function(*scores))
    if min(map(len, scores)) < 2:
        nothing = np.full(value.shape, np.nan)
        return Estimate(value, nothing, nothing)
    draw = np.random.RandomState(seed).choice

    def resample(x: np.ndarray) -> np.ndarray:
        return np.take_along_axis(x, draw(len(x), x.shape), axis=0)

    resampled = [function(*map(resample, scores)) for _ in range(reps)]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled, [tail, 100 - tail], axis=0)
    return Estimate(value, low, high)


def estimate_aggregates(scores: np.ndarray, reps: int = 2000, seed: int = 0) -> dict[str, Estimate]:
    """Estimate what `statistics.estimate_aggregates` does, all from the same resamples of scores [R, T]."""

    def all_metrics(x: np.ndarray) -> np.ndarray:
        return np.array([of(x).value for of in METRICS.values()])

    estimate = bootstrap([scores], all_metrics, reps, seed)
    return {name: Estimate(*(part[k] for part in estimate)) for k, name in enumerate(METRICS)}
