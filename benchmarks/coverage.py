"""Measure how often intervals hold the true value, and how often equal agents are told apart.

    python benchmarks/coverage.py            # six minutes on one core
    python benchmarks/coverage.py --tables   # the tables of docs/how-to/compare.md alone

Runs are drawn from five distributions whose true interquartile mean is known. For 3, 5, 10 and 20 runs the
candidates for `qscape.report.intervals` are tried on the same draws, and then what was chosen: over several
tasks, for the probability that one agent scores higher, and for the sentence that one agent is better. Writes
results/coverage.json, and the tables of docs/how-to/compare.md from it.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from blocks import RESULTS, ROOT, table, write_table
from scipy.special import ndtr, ndtri, stdtrit

from qscape.report import intervals, statistics
from qscape.report.intervals import CONFIDENCE, Estimate

PAGE = ROOT / "docs" / "how-to" / "compare.md"
FILE = RESULTS / "coverage.json"
SEED, SAMPLES, RESAMPLES, LARGE = 0, 4_000, 1_000, 4_000_000
RUNS, ARMS, TASKS = (3, 5, 10, 20), (3, 10), (3, 10)
SHIFTS = (0.0, 0.5, 1.0, 2.0, 4.0)  # in standard deviations
TAIL = (1 - CONFIDENCE) / 2
EXACT = 1e-9  # rounding of equal numbers

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "exponential": lambda rng, size: rng.exponential(size=size),
    # A fifth of the runs learns nothing.
    "stuck": lambda rng, size: (rng.random(size) >= 0.2) + rng.normal(0.0, 0.1, size),
    "two modes": lambda rng, size: 3.0 * (rng.random(size) < 0.5) + rng.normal(size=size),
    # The success rate over ten episodes that succeed nine times of ten.
    "ties": lambda rng, size: rng.binomial(10, 0.9, size) / 10,
}


# --- candidates: of runs [N, R], the interval of each of N samples ---------------------------------------


def trimmed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the interquartile mean over the last axis, and its winsorised (Tukey-McLaughlin) error."""
    n = x.shape[-1]
    cut, ordered = n // 4, np.sort(x, axis=-1)
    winsorised = np.clip(ordered, ordered[..., cut : cut + 1], ordered[..., n - cut - 1 : n - cut])
    error = winsorised.std(-1, ddof=1) * np.sqrt(n) / (n - 2 * cut)
    return ordered[..., cut : n - cut].mean(-1), error


def resample(x: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return interquartile mean and error of the resamples of each sample, [N, B]."""
    parts = []
    for some in np.array_split(x, max(1, len(x) // 250)):
        at = rng.integers(0, x.shape[1], (len(some), RESAMPLES * x.shape[1]))
        drawn = np.take_along_axis(some, at, axis=1).reshape(len(some), RESAMPLES, x.shape[1])
        parts.append(trimmed(drawn))
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


def around(value: np.ndarray, half: np.ndarray) -> Estimate:
    """Return value ± half."""
    return Estimate(value, value - half, value + half)


def percentile(x: np.ndarray, means: np.ndarray, errors: np.ndarray) -> Estimate:
    """Return the percentile bootstrap, which is rliable's."""
    return Estimate(trimmed(x)[0], *np.percentile(means, [100 * TAIL, 100 - 100 * TAIL], axis=1))


def bca(x: np.ndarray, means: np.ndarray, errors: np.ndarray) -> Estimate:
    """Return Efron's bias-corrected and accelerated bootstrap."""
    value = trimmed(x)[0]
    left = np.stack([trimmed(np.delete(x, k, axis=1))[0] for k in range(x.shape[1])], axis=1)
    off = left.mean(1, keepdims=True) - left
    size = 6 * (off**2).sum(1) ** 1.5
    speed = np.divide((off**3).sum(1), size, out=np.zeros(len(x)), where=size > 0)
    below = (means < value[:, None]).mean(1) + (means == value[:, None]).mean(1) / 2
    bias = ndtri(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    ordered, bounds = np.sort(means, axis=1), []
    for z in (ndtri(TAIL), -ndtri(TAIL)):
        share = ndtr(bias + (bias + z) / (1 - speed * (bias + z)))
        at = np.clip(np.round(share * (RESAMPLES - 1)), 0, RESAMPLES - 1).astype(int)
        bounds.append(ordered[np.arange(len(x)), at])
    return Estimate(value, *bounds)


def studentised(x: np.ndarray, means: np.ndarray, errors: np.ndarray) -> Estimate:
    """Return the studentised bootstrap; a resample of equal runs has no t and is left out."""
    value, error = trimmed(x)
    t = np.divide(means - value[:, None], errors, out=np.full(means.shape, np.nan), where=errors > EXACT)
    t[np.isnan(t).all(1), 0] = 0.0  # all runs are equal
    low, high = np.nanpercentile(t, [100 * TAIL, 100 - 100 * TAIL], axis=1)
    return Estimate(value, value - high * error, value - low * error)


def winsorised_t(x: np.ndarray, means: np.ndarray, errors: np.ndarray) -> Estimate:
    """Return t on the trimmed mean with its winsorised variance (Tukey and McLaughlin)."""
    n = x.shape[1]
    value, error = trimmed(x)
    return around(value, stdtrit(n - 2 * (n // 4) - 1, 1 - TAIL) * error)


def yuen(x: np.ndarray, means: np.ndarray, errors: np.ndarray) -> Estimate:
    """Return the same with the divisors of Yuen's test."""
    n = x.shape[1]
    kept = n - 2 * (n // 4)
    made = winsorised_t(x, means, errors)
    return around(made.value, (made.high - made.value) * np.sqrt((n - 1) / n * kept / (kept - 1)))


def t_of_mean(x: np.ndarray, means: np.ndarray, errors: np.ndarray) -> Estimate:
    """Return Student's t over the runs, of the mean without trimming."""
    half = stdtrit(x.shape[1] - 1, 1 - TAIL) * x.std(1, ddof=1) / np.sqrt(x.shape[1])
    return around(x.mean(1), half)


def chosen(x: np.ndarray, means: np.ndarray, errors: np.ndarray) -> Estimate:
    """Return the interval of qscape, for 3 runs, too, which it does not show."""
    return intervals.estimate(intervals.interquartile_mean(x.T[:, None]), fewest=2)


CANDIDATES: dict[str, Callable[..., Estimate]] = {
    "percentile": percentile,
    "BCa": bca,
    "studentised": studentised,
    "trimmed t": winsorised_t,
    "trimmed t, Yuen": yuen,
    "t of the mean": t_of_mean,
    "qscape": chosen,
}


def holds(made: Estimate, true: float) -> float:
    """Return the share of intervals that hold the true value."""
    return float(np.mean((made.low <= true + EXACT) & (made.high >= true - EXACT)))


def middle(x: np.ndarray) -> float:
    """Return the interquartile mean of many values."""
    cut = len(x) // 4
    return float(np.sort(x)[cut : len(x) - cut].mean())


# --- simulations ----------------------------------------------------------------------------------------


def try_candidates(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield the coverage and the relative width of every candidate."""
    for name, draw in DISTRIBUTIONS.items():
        many = draw(rng, (LARGE,))
        true = {"t of the mean": float(many.mean())}
        for runs in RUNS:
            x = draw(rng, (SAMPLES, runs))
            resampled = resample(x, rng)
            made = {candidate: of(x, *resampled) for candidate, of in CANDIDATES.items()}
            width = {candidate: float(np.median(one.high - one.low)) for candidate, one in made.items()}
            yield {
                "distribution": name,
                "runs": runs,
                "coverage": {c: holds(one, true.get(c, middle(many))) for c, one in made.items()},
                "width": {c: wide / width["percentile"] for c, wide in width.items()},
            }


def try_aggregates(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield the coverage of the aggregates over tasks with different levels and spreads."""
    for name, draw in DISTRIBUTIONS.items():
        for tasks, runs in itertools.product(TASKS, (r for r in RUNS if r >= intervals.FEWEST)):
            level, scale = np.linspace(0.0, 1.0, tasks), np.linspace(0.2, 0.6, tasks)
            many = level[:, None] + scale[:, None] * draw(rng, (tasks, LARGE // tasks))
            true = {
                "iqm": middle(many.ravel()),
                "mean": many.mean(),
                "median": np.median(many.mean(1)),
                "optimality_gap": 1 - np.minimum(many, 1).mean(),
            }
            x = level[:, None] + scale[:, None] * draw(rng, (runs, tasks, SAMPLES))
            made = {metric: intervals.estimate(of(x)) for metric, of in statistics.METRICS.items()}
            yield {
                "distribution": name,
                "tasks": tasks,
                "runs": runs,
                "coverage": {metric: holds(one, true[metric]) for metric, one in made.items()},
            }


def try_improvement(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield the coverage of the probability that a run of one agent scores higher than one of another."""
    for name, draw in DISTRIBUTIONS.items():
        spread = draw(rng, (LARGE,)).std()
        for runs in (r for r in RUNS if r >= intervals.FEWEST):
            for shift in SHIFTS:
                # A shift of tied values must not break their ties by rounding.
                a, b = (np.round(draw(rng, (LARGE,)) + more, 6) for more in (shift * spread, 0.0))
                b.sort()
                true = np.mean([np.searchsorted(b, a, side) for side in ("left", "right")]) / LARGE
                x, y = (np.round(draw(rng, (runs, SAMPLES)) + more, 6) for more in (shift * spread, 0.0))
                yield {
                    "distribution": name,
                    "runs": runs,
                    "shift": shift,
                    "true": float(true),
                    "coverage": holds(statistics.probability_of_improvement([x], [y]), float(true)),
                }


def try_claims(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield how often equal agents are told apart.

    best: the sentence on the best and the next of several equal agents. two: on two equal agents, as if all
    others were far behind. any: one of all pairs of several equal agents.
    """
    spreads = {name: (draw, 1.0) for name, draw in DISTRIBUTIONS.items()}
    spreads["normal, spreads of 1 to 3"] = DISTRIBUTIONS["normal"], 3.0
    for (name, (draw, widest)), arms in itertools.product(spreads.items(), ARMS):
        for runs in (r for r in RUNS if r >= intervals.FEWEST):
            scale = np.linspace(1.0, widest, arms)[:, None]
            x = draw(rng, (runs, arms, SAMPLES)) * scale if widest > 1 else draw(rng, (runs, arms, SAMPLES))
            value = intervals.interquartile_mean(x[:, None]).value
            first, second = np.argsort(-value, axis=0)[:2]
            every = np.arange(SAMPLES)
            best = statistics.probability_of_improvement([x[:, first, every]], [x[:, second, every]])
            said = np.array(
                [
                    statistics.is_better(statistics.probability_of_improvement([x[:, i]], [x[:, j]]))
                    for i, j in itertools.permutations(range(arms), 2)
                ]
            )
            yield {
                "distribution": name,
                "arms": arms,
                "runs": runs,
                "best": float(np.mean(statistics.is_better(best))),
                "two": float(np.mean(said[0]) + np.mean(said[arms - 1])),
                "any": float(np.mean(said.any(0))),
            }


# --- tables ---------------------------------------------------------------------------------------------


def coverage_table(found: dict[str, Any]) -> str:
    """Format the coverage of every candidate, and its width as a multiple of the percentile bootstrap's."""
    names = [*CANDIDATES]
    rows = [
        [
            row["distribution"],
            str(row["runs"]),
            *(
                f"{row['coverage'][c]:.2f}" + ("" if c == names[0] else f" ({row['width'][c]:.1f})")
                for c in names
            ),
        ]
        for row in found["candidates"]
    ]
    return table(["runs drawn from", "runs", *names], rows)


def claims_table(found: dict[str, Any]) -> str:
    """Format the largest share of false claims over all distributions."""
    rows = []
    for arms, runs in itertools.product(ARMS, RUNS):
        of = [row for row in found["claims"] if (row["arms"], row["runs"]) == (arms, runs)]
        if of:
            worst = (max(row[kind] for row in of) for kind in ("best", "two", "any"))
            rows.append([str(arms), str(runs), *(f"{share:.3f}" for share in worst)])
    names = ["agents", "runs of each", "best and next", "two alone", "any pair, not said"]
    return table(names, rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"coverage": coverage_table, "claims": claims_table}


def simulate() -> dict[str, Any]:
    """Run all simulations."""
    parts = {
        "candidates": try_candidates,
        "aggregates": try_aggregates,
        "improvement": try_improvement,
        "claims": try_claims,
    }
    about = {"seed": SEED, "samples": SAMPLES, "resamples": RESAMPLES, "confidence": CONFIDENCE}
    return {"about": about, **{name: [*of(np.random.default_rng(SEED))] for name, of in parts.items()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="write the tables of the recorded results")
    if not parser.parse_args().tables:
        FILE.write_text(json.dumps(simulate(), indent=1) + "\n", encoding="utf-8")
    results = json.loads(FILE.read_text())
    for name, of in TABLES.items():
        write_table(PAGE, name, of(results))
