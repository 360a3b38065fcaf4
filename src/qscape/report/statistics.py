"""Statistics for few runs, after Agarwal et al., "Deep RL at the edge of the statistical precipice".

arXiv 2108.13264. The numbers equal those of their package rliable 1.2.0, which cannot be imported
beside pandas 3; the tests have them in a file. A score matrix is [R, T]: runs (seeds) × tasks (environments).
Intervals are those of `intervals`; those of rliable are in `rliable`.
"""

from collections.abc import Callable, Iterable, Sequence

from qscape.errors import OutOfRange, UnfitEnv
from qscape.report import intervals, require_extra
from qscape.report.intervals import FEWEST, Estimate
from qscape.report.runs import RunRecord

with require_extra("Statistics"):
    import numpy as np
    import pandas as pd


METRICS: dict[str, Callable[[np.ndarray], intervals.Spread]] = {  # of scores [R, T]
    "iqm": intervals.interquartile_mean,
    "mean": intervals.mean,
    "median": intervals.median,
    "optimality_gap": lambda x: intervals.mean(1 - np.minimum(x, 1)),
}


# --- from evaluations to scores -----------------------------------------------------------------------

METRIC_NAMES = {"return": "evaluation return", "success": "success rate (%)"}


def default_metric(runs: Iterable[RunRecord]) -> str:
    """Return by what runs are compared: "success" if all are of environments that set goals and report it."""
    by_goals = (run.record.get("goals") and run.episodes["success"].notna().any() for run in runs)
    return "success" if all(by_goals) else "return"


def select_metric(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the runs with the chosen metric in the column `return`: "return", or "success" in percent.

    Raises:
        UsageError: an environment reports no success in any evaluation.
    """
    if metric == "return":
        return runs
    reports = runs["success"].notna().groupby(runs["env"]).any()
    if not reports.all():
        silent = ", ".join(sorted(reports.index[~reports]))
        raise UnfitEnv(f"--metric success: {silent} reports no success; compare by return.", field="metric")
    # Some environments report success only in successful episodes: an evaluation without a report has none.
    return runs.assign(**{"return": 100 * runs["success"].fillna(0.0)})


def select_policy(runs: pd.DataFrame, policy: str = "kept") -> pd.DataFrame:
    """Select one policy per run: "kept" (the current one where a run keeps none) or "current"."""
    if policy == "current":
        return runs[runs["policy"] == "current"]
    keeps = (runs["policy"] == "kept").groupby(runs["run"]).transform("any")
    return runs[runs["policy"] == np.where(keeps, "kept", "current")]


def label_policies(runs: pd.DataFrame) -> pd.DataFrame:
    """Return all evaluations; runs that keep a policy get the policy's name in their label."""
    keeps = (runs["policy"] == "kept").groupby(runs["run"]).transform("any")
    label = runs["label"].where(~keeps, runs["label"] + ", " + runs["policy"] + " policy")
    run = runs["run"].where(~keeps, runs["run"] + ", " + runs["policy"])
    return runs.assign(label=label, run=run)


def smooth_returns(runs: pd.DataFrame, weight: float) -> pd.DataFrame:
    """Smooth the returns of each run and policy: x̃ <- w x̃ + (1 - w) x per evaluation, starting with x̃ = x.

    The column `unsmoothed` then holds x.

    Raises:
        UsageError: w lies outside [0, 1).
    """
    if not 0 <= weight < 1:
        raise OutOfRange(f"--smooth is {weight}; it must lie in [0, 1).", field="smooth")
    if not weight:
        return runs
    rows = runs.sort_values("step", kind="stable")
    mean = rows.groupby(["run", "policy"])["return"].transform(
        lambda x: x.ewm(alpha=1 - weight, adjust=False).mean()
    )
    return runs.assign(**{"return": mean, "unsmoothed": runs["return"]})


def smoothing_note(weight: float) -> str:
    """Return the note for readers of smoothed returns."""
    return f"All returns are smoothed: {weight:g} of the past plus {1 - weight:g} of each evaluation."


def final_scores(rows: pd.DataFrame, last: int = 1) -> pd.DataFrame:
    """Compute env, label, seed and score of each run: the mean of its last `last` evaluations.

    Raises:
        UsageError: a run has fewer evaluations.
    """
    tail = rows.sort_values("step").groupby("run").tail(last)
    counts = tail.groupby("run").size()
    if counts.min() < last:
        raise OutOfRange(
            f"--final {last} needs {last} evaluations of each run, but {counts.idxmin()} "
            f"has {counts.min()}; use --final {counts.min()} or less.",
            field="final",
        )
    return _score_runs(tail, "mean")


def best_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute env, label, seed and score of each run: its best evaluation, never below its final one."""
    return _score_runs(rows, "max")


def stop_epochs(rows: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Compute env, label, seed and score of each run: the number of its first evaluation that is solved.

    Evaluations after step 0 are counted from 1; one is solved if its mean return is `threshold` or more. NaN:
    none is.

    Raises:
        UsageError: the threshold is not finite.
    """
    if not np.isfinite(threshold):
        raise OutOfRange(
            f"--threshold is {threshold}; it must be a finite return, like 200.", field="threshold"
        )
    ordered = rows[rows["step"] > 0].sort_values("step")
    number = ordered.groupby("run").cumcount() + 1
    return _score_runs(ordered.assign(**{"return": number.where(ordered["return"] >= threshold)}), "min")


def _score_runs(rows: pd.DataFrame, how: str) -> pd.DataFrame:
    keys = ["env", "label", "seed", "run"]
    return rows.groupby(keys)["return"].agg(how).rename("score").reset_index()


def score_matrix(scores: pd.DataFrame, label: str, envs: Sequence[str]) -> np.ndarray:
    """Return the scores [R, T] of a label; with unequal numbers of seeds the first R of each environment."""
    columns = scores_by_env(scores, label, envs)
    n = min(map(len, columns))
    return np.stack([c[:n] for c in columns], axis=1)


def scores_by_env(scores: pd.DataFrame, label: str, envs: Sequence[str]) -> list[np.ndarray]:
    """Return the scores [R_t] of a label in each environment, in the order of seeds."""
    return [
        scores[(scores["label"] == label) & (scores["env"] == env)].sort_values("seed")["score"].to_numpy()
        for env in envs
    ]


# --- estimates with intervals -------------------------------------------------------------------------


def estimate_aggregates(scores: np.ndarray) -> dict[str, Estimate]:
    """Estimate interquartile mean, mean, median and optimality gap of scores [R, T].

    The optimality gap (mean distance to 1 of scores clipped at 1) is meaningful for normalised scores only.
    With fewer than four scores the interquartile mean is the mean.
    """
    return {name: intervals.estimate(of(scores)) for name, of in METRICS.items()}


def probability_of_improvement(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> Estimate:
    """Estimate P(X > Y) + P(X = Y) / 2 for a run of each, averaged over tasks (Mann-Whitney U).

    The interval is Newcombe's score interval (Statistics in Medicine 2006, method 5) with a correction for
    continuity, half a pair at each end. No number of pairs that one agent wins makes it vanish.

    Args:
        x: for every task the scores [R_t, ...] of one agent.
        y: the scores [S_t, ...] of the other one; numbers of runs may differ between tasks.
    """
    pairs = [*zip(x, y, strict=True)]
    shares = [np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b), axis=(0, 1)) for a, b in pairs]
    wins = np.mean(shares, axis=0)
    if min(map(len, (*x, *y))) < FEWEST:
        return Estimate(wins, np.full_like(wins, np.nan)[()], np.full_like(wins, np.nan)[()])
    runs = np.array([(len(a), len(b)) for a, b in pairs])

    def variance(share: np.ndarray) -> np.ndarray:
        spread = (1 - share) / (2 - share) + share / (1 + share)
        factors = [(1 + (m + n) / 2 * spread - spread) / (m * n) for m, n in runs]
        return share * (1 - share) * np.mean(factors, axis=0) / len(runs)

    half = np.mean([0.5 / (m * n) for m, n in runs]) / len(runs)
    low, high = (np.clip(wins + side, 0.0, 1.0) for side in (-half, half))
    bounds = intervals.score_interval(low, variance).low, intervals.score_interval(high, variance).high
    return Estimate(wins, *bounds)


def is_better(improvement: Estimate) -> np.ndarray:
    """Say whether the first of two agents is better: its interval lies above one half.

    `benchmarks/coverage.py` measures how often this is said of equal agents, for the best and the next of
    several. It holds for that one pair. Of all pairs of several agents, some would come out better by chance.
    """
    return improvement.low > 0.5


def profile_thresholds(scores: Iterable[np.ndarray], points: int = 101) -> np.ndarray:
    """Choose the thresholds of performance profiles: from 0 to 1, and as far as scores reach beyond."""
    values = np.concatenate([x.ravel() for x in scores])
    return np.linspace(min(0.0, values.min()), max(1.0, values.max()) * 1.02, points)


def performance_profile(scores: np.ndarray, taus: np.ndarray) -> Estimate:
    """Estimate the share of runs × tasks with a normalised score above each of `taus`, from scores [R, T].

    The interval is Wilson's. It takes all scores as draws of one kind, so it is too wide where tasks differ.
    """
    share = (scores.reshape(-1, 1) > taus).mean(axis=0)
    if len(scores) < FEWEST:
        return Estimate(share, np.full(share.shape, np.nan), np.full(share.shape, np.nan))
    return intervals.score_interval(share, lambda true: true * (1 - true) / scores.size)


# --- learning curves ----------------------------------------------------------------------------------


def common_grid(rows: pd.DataFrame, points: int = 200) -> np.ndarray:
    """Return the steps of all evaluations, thinned to at most `points`, with the first and the last."""
    steps = np.unique(rows["step"].to_numpy())
    return steps[np.unique(np.linspace(0, len(steps) - 1, min(points, len(steps))).round().astype(int))]


def align_to_grid(rows: pd.DataFrame, grid: np.ndarray) -> np.ndarray:
    """Return the returns [R, G] of runs at the steps of a grid: the last evaluation at or before each.

    NaN before a run's first evaluation and after its last one; nothing is extrapolated.
    """
    lines = []
    for _, run in rows.groupby(["seed", "run"]):
        run = run.sort_values("step")
        steps, returns = run["step"].to_numpy(), run["return"].to_numpy(dtype=float)
        at = np.searchsorted(steps, grid, side="right") - 1
        lines.append(np.where((at >= 0) & (grid <= steps[-1]), returns[np.maximum(at, 0)], np.nan))
    return np.stack(lines)


def estimate_columns(
    values: np.ndarray, of: Callable[[np.ndarray], intervals.Spread] = intervals.interquartile_mean
) -> Estimate:
    """Estimate the interquartile mean [G] over runs of values [R, G], each column separately.

    NaN where a run has no value.

    Args:
        values: one row per run.
        of: another mean of `intervals`.
    """
    whole = ~np.isnan(values).any(axis=0)
    parts = np.full((3, values.shape[1]), np.nan)
    parts[:, whole] = intervals.estimate(of(values[:, None, whole]))
    return Estimate(*parts)
