"""The rules of the ledger: what the recorded runs say of every published number, and of every effect."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from blocks import RESULTS, show
from published import Row, read_published
from recorded import Run, at, read_json, read_runs
from scipy.special import ndtri

from qscape.report import intervals
from qscape.report.references import reference_scores, strip_version

SEEDS = intervals.FEWEST  # fewer seeds than this have no verdict, as they have no interval
WHOLE = 3  # so many runs of the paper's length count before more, and shorter, ones
LENGTH = 0.9  # nor has a run that is shorter than this share of the paper's
MARGIN = 0.2  # a number is reproduced if it is known to lie within this share of the published one
# In combined standard errors: a paper shows a difference from NEAR on, and ours differs from FAR on.
NEAR, FAR = 2.0, 3.0
SHORTER = ("base.updates_per_step", "base.epsilon_decay", "base.warmup")  # fields that shorten a run
FRAMES = 10_000_000  # steps of a run on images whose length the paper does not state: assumed
VERDICTS = ("reproduced", "not seen", "contradicted", "undecided", "too short", "not run")


class Ours(NamedTuple):
    """What we measured for one published number.

    Attributes:
        mean: mean over seeds.
        error: its standard error; NaN for one seed.
        half: half the width of its 95% interval; NaN for fewer than `SEEDS` seeds.
        seeds: number of runs.
        steps: environment steps of the runs that went into the number.
        least: the least seed.
        greatest: the greatest seed.
    """

    mean: float
    error: float
    half: float
    seeds: int
    steps: int
    least: float
    greatest: float


def judge(
    ours: Ours | None, published: float, error: float, largest: float, share: float, *, same: bool
) -> str:
    """Return the verdict on a number.

    Args:
        ours: our measurement; None if nothing is recorded.
        published: the paper's number.
        error: its standard error.
        largest: the largest that this error can be, whose multiple a different number must be away.
        share: our steps as a share of the paper's.
        same: whether our protocol is the paper's. Only then can a different number contradict the paper.
    """
    if ours is None:
        return "not run"
    if ours.seeds < SEEDS or share < LENGTH:
        return "too short"
    gap = abs(ours.mean - published)
    if gap + math.hypot(ours.half, ndtri(0.975) * error) <= MARGIN * abs(published):
        return "reproduced"
    if gap < FAR * math.hypot(ours.error, largest):
        return "undecided"
    return "contradicted" if same else "not seen"


def judge_effect(low: float, high: float, sign: float, *, seeds: int, share: float, same: bool) -> str:
    """Return the verdict on a difference between two agents.

    Args:
        low: lower end of the 95% interval of our difference.
        high: its upper end.
        sign: sign of the published difference.
        seeds: the smaller number of seeds of the two.
        share: our steps as a share of the paper's.
        same: as in `judge`.
    """
    if seeds < SEEDS or share < LENGTH:
        return "too short"
    if low <= 0 <= high:
        return "undecided"
    if (low > 0) == (sign > 0):
        return "reproduced"
    return "contradicted" if same else "not seen"


def summarise(values: np.ndarray, steps: int) -> Ours:
    """Summarise one number for each seed, or for each seed and episode.

    All runs are evaluated from the same first states. So the error of the mean has two sources: the seeds,
    and the choice of first states.

    Args:
        values: array [seeds] or [seeds, episodes].
        steps: environment steps of the runs.
    """
    means = values.reshape(len(values), -1).mean(1)
    of_seeds = intervals.mean(means[:, None])
    made = of_seeds
    if values.ndim == 2 and values.shape[1] > 1 and len(means) > 1:
        of_states = intervals.mean(values.mean(0)[:, None])
        made = of_seeds._replace(**add_parts(of_seeds, of_states))
    half = float(intervals.estimate(made).high - made.value)
    error = math.sqrt(made.variances.sum())
    return Ours(float(made.value), error, half, len(means), steps, float(means.min()), float(means.max()))


def add_parts(a: intervals.Spread, b: intervals.Spread) -> dict[str, np.ndarray]:
    """Return the parts of the variance of a sum or a difference."""
    pairs = {name: (getattr(a, name), getattr(b, name)) for name in ("variances", "freedoms")}
    return {name: np.concatenate(pair) for name, pair in pairs.items()}


def welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Return the difference of two means and its 95% interval, by Welch's t; one number for each seed.

    The bounds are NaN for fewer than `SEEDS` seeds.
    """
    one, two = (intervals.mean(x[:, None]) for x in (a, b))
    gap = one._replace(value=one.value - two.value, runs=min(one.runs, two.runs), **add_parts(one, two))
    value, low, high = intervals.estimate(gap)
    return float(value), float(low), float(high)


def shortest(label: str) -> str:
    """Take from a label the settings that only shorten a run."""
    recipe, _, rest = label.partition("[")
    kept = [field for field in rest.rstrip("]").split(",") if field.partition("=")[0] not in SHORTER]
    return f"{recipe}[{','.join(kept)}]" if any(kept) else recipe


def groups_of(row: Row) -> list[list[Run]]:
    """Return the recorded runs of the agent of a row, a list for each study and label, the best list first.

    They are those with the row's label, or else a shorter version of it; of equal labels the most seeds are
    best, and of equally many seeds the most episodes per evaluation.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in read_runs():
        if row.label and run.env == row.environment and shortest(run.label) == shortest(row.label):
            groups.setdefault((run.study, run.label), []).append(run)
    fit = {key: (key[1] == row.label, len(runs), episodes(runs)) for key, runs in groups.items()}
    return [groups[key] for key in sorted(groups, key=fit.__getitem__, reverse=True)]


def episodes(runs: list[Run]) -> int:
    """Return the number of episodes per evaluation."""
    return runs[0].evaluations["return"].shape[1]


def study_of(one: Row, two: Row) -> str:
    """Return the study that has the most seeds of both agents; "": no study has both.

    Agents of different studies differ in more than their parts, such as the initial states.
    """
    pairs = itertools.product(groups_of(one), groups_of(two))
    shared = [(min(len(a), len(b)), episodes(a), a[0].study) for a, b in pairs if a[0].study == b[0].study]
    return max(shared, default=(0, 0, ""))[2]


def smoothed(run: Run, k: int, every: int) -> float:
    """Return the return at evaluation k, smoothed as in the SAVGO paper: 0.85 of the past and 0.15 of now.

    `every`: the steps from one evaluation to the next; those between are left out, since more would lag less.
    """
    used = run.evaluations["step"][: k + 1] % every == 0
    first, *others = run.evaluations["return"][: k + 1].mean(1)[used]
    return functools.reduce(lambda past, now: 0.85 * past + 0.15 * now, others, first)


def score(run: Run, returns: np.ndarray) -> np.ndarray:
    """Normalise returns as D4RL does: 0 is a random policy, 100 an expert."""
    known = reference_scores().query("table == 'd4rl'").set_index("task").loc[strip_version(run.env)]
    return 100 * (returns - known["low"]) / (known["high"] - known["low"])


def solved(run: Run, k: int) -> float:
    """Return the epoch (1,000 steps) of the first evaluation on CartPole at 475 or better, or the last."""
    steps, means = run.evaluations["step"][: k + 1], run.evaluations["return"][: k + 1].mean(1)
    return float(np.append(steps[means >= 475.0], steps[-1])[0]) / 1000


METRICS: dict[str, Callable[[Run, int], Any]] = {  # of a run up to an evaluation: a number or [episodes]
    "return": lambda run, k: run.evaluations["return"][k],
    "success rate": lambda run, k: run.evaluations["success"][k],
    "sm": lambda run, k: run.evaluations["sm"][k],
    "highest evaluation of a run": lambda run, k: run.evaluations["return"][: k + 1].mean(1).max(),
    "best return": lambda run, k: run.evaluations["return"][: k + 1].mean(1).max(),
    "final return": lambda run, k: run.evaluations["return"][k],
    "epoch solved": solved,
    "smoothed return": functools.partial(smoothed, every=5_000),
    "smoothed return of a baseline": functools.partial(smoothed, every=10_000),
    "normalised score": lambda run, k: score(run, run.evaluations["return"][k]),
}
GEOMETRY = {
    "sup of the mixed derivative": "mixed_norm_sup",
    "share of negative definite H": "negative_definite",
    "mean gradient cosine": "gradient_cosine",
    "gradient flip rate": "gradient_flips",
}
HEADS = {"REINFORCE": "learnable", "REINFORCE+ACPG": "etf"}  # of results/action_collapse


def values_of(row: Row, study: str | None = None, until: float = math.inf) -> tuple[np.ndarray, int] | None:
    """Return our values for a number, [seeds] or [seeds, episodes], and their steps; None: no run.

    The runs that reach the last of these steps count, if they are `WHOLE` or more. Else all count up to the
    end of the shortest, so that a seed that went on is not compared with the others.

    Args:
        row: the published number.
        study: take runs of this study alone.
        until: take evaluations up to this step alone.
    """
    if row.metric in GEOMETRY:
        return geometry_of(row)
    if row.paper == "ACPG" and row.task == "CartPole (MLP)" and row.agent in HEADS:
        return cartpole_of(row.agent, row.metric, row.steps)
    groups = [runs for runs in groups_of(row) if study in (None, runs[0].study)]
    kind = " of a baseline" if row.metric == "smoothed return" and not row.agent.startswith("SAVGO") else ""
    metric = METRICS.get(row.metric + kind)
    if not groups or metric is None:
        return None
    until = min(row.steps or math.inf, until)
    whole = [run for run in groups[0] if run.evaluations["step"][-1] >= until]
    runs = whole if len(whole) >= WHOLE else groups[0]
    end = min(until, *(int(run.evaluations["step"][-1]) for run in runs))
    index = [at(run.evaluations, end) for run in runs]
    steps = min(int(run.evaluations["step"][k]) for run, k in zip(runs, index, strict=True))
    return np.array([metric(run, k) for run, k in zip(runs, index, strict=True)]), steps


def geometry_of(row: Row) -> tuple[np.ndarray, int] | None:
    """Return a measure of the geometry of Q, from the files of `qscape smoothness --json` in results."""
    of = row.label, row.environment.partition("(")[0], row.steps
    found = [
        (measured["geometry_environment_units"] or measured["geometry"])[GEOMETRY[row.metric]]
        for file in sorted((RESULTS / "smoothness").glob("*.json"))
        for measured in read_json(f"smoothness/{file.name}")["runs"]
        if (measured["label"], measured["env"], measured["step"]) == of
    ]
    return (np.array(found), row.steps) if found else None


def cut(row: dict, until: int) -> np.ndarray:
    """Return the mean returns of the rollouts of a seed on CartPole up to a step."""
    return np.array(row["curve"]["return"])[np.array(row["curve"]["steps"]) <= until]


def cartpole_of(agent: str, metric: str, until: int) -> tuple[np.ndarray, int] | None:
    """Return a measure of REINFORCE on CartPole by seed, up to a step, which is when unsolved seeds end."""
    rows = [r for n in (50, 10) for r in read_json(f"action_collapse/cartpole-{n}.json")["rows"]]
    rows = [r for r in rows if (r["algorithm"], r["head"]) == ("reinforce", HEADS[agent])]
    return np.array([CARTPOLE[metric](r, until) for r in rows]), until


CARTPOLE: dict[str, Callable[[dict, int], float]] = {  # of a seed up to a step; a rollout has eight episodes
    "best return": lambda r, until: float(((cut(r, until)[1:] + cut(r, until)[:-1]) / 2).max()),
    "final return": lambda r, until: float(cut(r, until)[-3:].mean()),
    "epoch solved": lambda r, until: min(r["solved_at"] or until, until) / 1000,
}


def same_protocol(row: Row) -> bool:
    """Whether our runs follow the paper's protocol: its versions of the tasks, settings and measure.

    TD7's tasks are of another version, SAVGO's baselines are of another library and are evaluated half as
    often, and ACPG's paper defines neither an epoch nor "solved". A supremum over our 200 episodes is greater
    than one over PAVE's ten.
    """
    if row.metric.startswith("sup "):
        return False
    return row.paper == "PAVE" or (row.paper == "SAVGO" and row.agent.startswith("SAVGO"))


class Entry(NamedTuple):
    """A published number with our measurement, the distance in combined standard errors, and the verdict."""

    row: Row
    ours: Ours | None
    share: float
    distance: float
    verdict: str


class Effect(NamedTuple):
    """A difference between two agents, as published and as measured [low, high], and the verdict."""

    row: Row
    agent: str
    base: str
    published: str
    ours: float
    low: float
    high: float
    seeds: tuple[int, int]
    share: float
    verdict: str


def enter(row: Row) -> Entry:
    """Compare one published number with the recorded runs."""
    if math.isnan(row.mean):
        effects = effects_of([row])
        share = effects[0].share if effects else math.nan
        return Entry(row, None, share, math.nan, effects[0].verdict if effects else "not run")
    found = values_of(row)
    if found is None:
        return Entry(row, None, math.nan, math.nan, "not run")
    ours = summarise(*found)
    share = ours.steps / (row.steps or FRAMES)
    distance = (ours.mean - row.mean) / math.hypot(ours.error, row.error)
    verdict = judge(ours, row.mean, row.error, row.largest_error, share, same=same_protocol(row))
    return Entry(row, ours, share, distance, verdict)


METHODS = {"TD7": ["TD7"], "PAVE": ["TD3+PAVE", "SAC+PAVE"], "SAVGO": ["SAVGO"], "ACPG": ["REINFORCE+ACPG"]}


def effects_of(rows: Iterable[Row]) -> list[Effect]:
    """Compare each paper's method with its baselines wherever the paper shows a difference and both ran.

    A paper shows a difference if it is more than two combined standard errors, or if it prints no spread.
    """
    rows, found = [*rows], []
    for row in rows:
        if math.isnan(row.mean):
            found += compare(row, *row.sides(), "higher", 1.0)
        elif row.agent in METHODS.get(row.paper, []):
            for other in rows:
                same = (*row[:3], row.metric, row.steps) == (*other[:3], other.metric, other.steps)
                gap = row.mean - other.mean
                if (
                    same
                    and other.agent not in METHODS[row.paper]
                    and abs(gap) > NEAR * math.hypot(row.error, other.error)
                ):
                    found += compare(row, row, other, show(gap, sign=True), gap)
    return found


def compare(row: Row, one: Row, two: Row, published: str, sign: float) -> list[Effect]:
    """Return the effect of agent `one` over agent `two`, if both have two seeds or more in one study."""
    study = study_of(one, two)
    pair = [values_of(one, study), values_of(two, study)]
    if None not in pair:  # at a step that both have
        until = min(found[1] for found in pair if found)
        pair = [values_of(one, study, until), values_of(two, study, until)]
    if pair[0] is None or pair[1] is None or min(len(found[0]) for found in pair if found) < 2:
        return []
    (a, steps), (b, others) = pair[0], pair[1]
    a, b = a.reshape(len(a), -1).mean(1), b.reshape(len(b), -1).mean(1)
    gap, low, high = welch(a, b)
    share = min(steps, others) / (row.steps or FRAMES)
    same = same_protocol(one) and same_protocol(two)
    verdict = judge_effect(low, high, sign, seeds=min(len(a), len(b)), share=share, same=same)
    return [Effect(row, one.agent, two.agent, published, gap, low, high, (len(a), len(b)), share, verdict)]


@functools.cache
def ledger() -> tuple[list[Entry], list[Effect]]:
    """Return all entries, in the order of published.csv, and all effects."""
    return [enter(row) for row in read_published()], effects_of(read_published())


def interval(ours: Ours | None) -> str:
    """Format a mean with its 95% interval, or with the least and the greatest seed of too few."""
    if ours is None:
        return ""
    if ours.seeds == 1:
        return show(ours.mean)
    if math.isnan(ours.half):
        return (
            f"{show(ours.mean)} ({' to '.join(show(x, like=ours.mean) for x in (ours.least, ours.greatest))})"
        )
    low, high = (show(ours.mean + way * ours.half, like=ours.mean) for way in (-1, 1))
    return f"{show(ours.mean)} [{low}, {high}]"
