# /// script
# requires-python = ">=3.11"
# dependencies = ["rliable==1.2.*", "pandas<3"]  # its arch cannot be imported beside pandas 3
# ///
"""Write `rliable_numbers.json` beside this file: what rliable computes, for `test_report.py` to compare with.

The package of Agarwal et al. (arXiv 2108.13264) has had no release since 2024 and excludes pandas 3. So the
tests do not import it, and this script runs in an environment of its own:

    uv run tests/rliable_numbers.py

or, without uv, `pip install "rliable==1.2.*" "pandas<3"` in a new virtual environment and `python` in it.

The file holds the scores too, so that nothing depends on how numpy draws them. Intervals are drawn after
`np.random.seed(0)`: rliable 1.2.0 takes a `random_state` and ignores it. It draws from numpy's global state.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
from rliable import library, metrics

FILE = Path(__file__).with_suffix(".json")
PACKAGES = ("rliable", "numpy", "scipy", "arch", "pandas")
SEED, REPS = 0, 200
AGGREGATES = {  # the names in qscape's METRICS
    "iqm": metrics.aggregate_iqm,
    "mean": metrics.aggregate_mean,
    "median": metrics.aggregate_median,
    "optimality_gap": metrics.aggregate_optimality_gap,
}
TAUS = [-1.0, -0.7, -0.3, 0.0, 0.3, 0.7, 1.0]


def aggregates(scores: np.ndarray) -> np.ndarray:
    """Return the aggregates of scores [R, T], in the order of AGGREGATES."""
    return np.array([metric(scores) for metric in AGGREGATES.values()])


def interval(scores: Any, function: Any) -> list:
    """Return the bounds of a function of scores; of a list of scores, each is resampled by itself."""
    np.random.seed(SEED)  # noqa: NPY002
    _, found = library.get_interval_estimates({"": scores}, function, reps=REPS)
    return found[""].tolist()


def compare(runs: int) -> dict[str, Any]:
    """Return the numbers of two agents on three tasks: `runs` runs of x, one more of y, with ties."""
    rng = np.random.default_rng(runs)
    x, y = rng.normal(size=(runs, 3)).round(1), rng.normal(size=(runs + 1, 3)).round(1)
    first = [x[:, :1], y[:, :1]]

    def improvement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([metrics.probability_of_improvement(a, b)])

    def profile(scores: np.ndarray) -> np.ndarray:
        return library.score_distributions(scores, np.array(TAUS))

    return {
        "x": x.tolist(),
        "y": y.tolist(),
        "aggregates": dict(zip(AGGREGATES, aggregates(x).tolist(), strict=True)),
        "aggregates_interval": interval(x, aggregates),
        "improvement": improvement(x, y).item(),
        "improvement_on_first_task": improvement(*first).item(),
        "improvement_on_first_task_interval": interval(first, improvement),
        "profile": profile(x).tolist(),
        "profile_interval": interval(x, profile),
    }


def curve() -> dict[str, Any]:
    """Return the interquartile means of 8 runs at 4 steps, each step by itself."""
    values = np.random.default_rng(1).normal(size=(8, 4))

    def means(x: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(x[:, [k]]) for k in range(x.shape[1])])

    return {"values": values.tolist(), "iqm": means(values).tolist(), "interval": interval(values, means)}


def main() -> None:
    """Write the file."""
    made = {
        "about": "made by tests/rliable_numbers.py; intervals are drawn after np.random.seed(0), "
        "because rliable 1.2.0 ignores its argument random_state",
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "seed": SEED,
        "reps": REPS,
        "taus": TAUS,
        "runs": {str(runs): compare(runs) for runs in (2, 3, 5, 8, 10)},
        "curve": curve(),
    }
    FILE.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
