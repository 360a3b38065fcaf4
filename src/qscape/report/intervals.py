"""The one way to make an interval: t around a mean over runs, without random numbers.

`benchmarks/coverage.py` chose it among the bootstraps and other t intervals; docs/how-to/compare.md has the
table. A mean, trimmed or not, gets its standard error from the runs of every task by themselves, and
Student's t with Welch's degrees of freedom. A share (of runs above a score, of pairs that an agent wins) gets
its score interval, which does not shrink to nothing where all runs agree. Fewer than `FEWEST` runs have no
interval: it would say little. Tables, curves, pages and model cards all have their intervals from here, and
call them `INTERVAL`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

CONFIDENCE = 0.95
FEWEST = 5  # runs that an interval, and a claim that one agent is better, needs
INTERVAL = "95% t interval"


class Estimate(NamedTuple):
    """A number or an array with its 95% interval; the bounds of fewer than `FEWEST` runs are NaN."""

    value: Any
    low: Any
    high: Any


class Spread(NamedTuple):
    """A mean over runs, and how far it would be off with other runs.

    Attributes:
        value: the mean, an array of any shape [...].
        variances: its variance, in independent parts [T, ...], one for each task; NaN for one run.
        freedoms: degrees of freedom of each part [T].
        runs: number of runs.
    """

    value: np.ndarray
    variances: np.ndarray
    freedoms: np.ndarray
    runs: int


def mean(scores: np.ndarray) -> Spread:
    """Return the mean over runs and tasks of scores [R, T, ...]."""
    return _spread(scores.mean((0, 1)), scores, len(scores) - 1.0)


def median(scores: np.ndarray) -> Spread:
    """Return the median over tasks of the mean over runs, of scores [R, T, ...].

    Only the task in the middle counts, or the two of them.
    """
    means = scores.mean(0)
    tasks, order = len(means), np.argsort(means, axis=0, kind="stable")
    weights = np.zeros_like(means)
    for k in {(tasks - 1) // 2, tasks // 2}:
        np.put_along_axis(weights, order[k : k + 1], tasks / (1 + (tasks % 2 == 0)), axis=0)
    return _spread(np.median(means, axis=0), scores * weights, len(scores) - 1.0)


def interquartile_mean(scores: np.ndarray) -> Spread:
    """Return the mean of scores [R, T, ...], all tasks together, without their lowest and highest quarter.

    The quarter is rounded down, as in rliable. The standard error is that of Tukey and McLaughlin, from
    winsorised values. But it trims one run of every task fewer at each end than the mean does: of five runs
    there would be only three values left, with intervals twice as wide and still none for many ties.
    """
    runs, tasks = scores.shape[:2]
    ordered = np.sort(scores.reshape(runs * tasks, *scores.shape[2:]), axis=0)
    cut = len(ordered) // 4
    value = ordered[cut : len(ordered) - cut].mean(0)
    fewer = max(cut - tasks, 0)
    share = 1 - 2 * fewer / len(ordered)
    winsorised = np.clip(scores, ordered[fewer], ordered[len(ordered) - fewer - 1])
    return _spread(value, winsorised / share, runs * share - 1)


def _spread(value: np.ndarray, influence: np.ndarray, freedom: float) -> Spread:
    """Return a statistic that is, but for a constant, the mean of `influence` [R, T, ...] over R and T."""
    runs, tasks = influence.shape[:2]
    nothing = np.full(influence.shape[1:], np.nan)
    variances = influence.var(0, ddof=1) / (runs * tasks**2) if runs > 1 else nothing
    return Spread(np.asarray(value), variances, np.full(tasks, freedom), runs)


def estimate(spread: Spread, fewest: int = FEWEST) -> Estimate:
    """Return the interval of a mean; of fewer than `fewest` runs its bounds are NaN."""
    value, variances, freedoms, runs = spread
    total = variances.sum(0)
    weighted = (variances**2 / freedoms.reshape(-1, *[1] * (variances.ndim - 1))).sum(0)
    freedom = np.divide(total**2, weighted, out=np.full(total.shape, freedoms.sum()), where=weighted > 0)
    half = stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(total) * (1.0 if runs >= fewest else np.nan)
    return Estimate(*(part[()] for part in (value, value - half, value + half)))


def score_interval(share: Any, variance: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """Return the score interval of a share: every true share from which the seen one is not too far.

    Args:
        share: the seen share, between 0 and 1: a number or an array.
        variance: of the seen share, if the true one is that of the argument.
    """
    share = np.asarray(share, float)
    quantile = ndtri((1 + CONFIDENCE) / 2)
    ends = []
    for far in (0.0, 1.0):
        outside, inside = np.full(share.shape, far), share
        for _ in range(50):
            middle = (outside + inside) / 2
            reached = (share - middle) ** 2 <= quantile**2 * variance(middle)
            outside, inside = np.where(reached, outside, middle), np.where(reached, middle, inside)
        ends.append(inside)
    return Estimate(*(part[()] for part in (share, *ends)))
