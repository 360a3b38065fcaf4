"""The checks of `qscape check` that need an environment alone: they run it as training would.

Each check yields findings, one line for the user. `jobs/check.py` calls them in a process of their own, and
adds what needs an agent.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import jax
import numpy as np
from gymnasium.vector import VectorEnv

from qscape.envs import conformance
from qscape.envs.adapter import EnvAdapter, Episode, make
from qscape.envs.answers import SUCCESS
from qscape.envs.patience import Call
from qscape.envs.precision import FAR
from qscape.envs.repeats import (
    AFTER_RESET,
    Difference,
    compare_restored,
    compare_starts,
    compare_steps,
    describe_false_snapshot,
    make_draw,
)
from qscape.envs.spaces import name_entry
from qscape.errors import BrokenEnv, NotFinite, QscapeError, UnfitEnv, WrongEnv, describe

Verdict = Literal["ok", "warn", "FAIL", "skip"]
MARGIN = 1e-5  # by how much of its bound an observation may lie outside: float32 rounds
LARGE, SMALL = 100.0, 1e-3  # rewards of a step beyond which losses have another scale than in the papers
WIDE = 10.0  # spread of an observation from which networks learn better from normalised ones
SHARE = 8.0  # the most seconds that one check plays
FEW = 30  # steps from which no scale is judged
CONFORMANCE_STEPS = 1_600


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        name: the check.
        verdict: "ok"; "warn": training works, and a promise does not hold or an agent will learn badly;
            "FAIL": what is learned would be wrong, or the run would end; "skip": not checked.
        detail: a sentence.
        remedy: what would help; "" if nothing is wrong.
    """

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:<4}  {self.name}: {self.detail}" + (f"; {self.remedy}" if self.remedy else "")


class Peek(gym.Wrapper):
    """Keeps what an environment answers, as it answers it.

    Attributes:
        shown: copies of the observations.
        reused: did an observation share memory with the one before it?
        infos: the keys of infos, with the types of their values.
        rewards, flags: the types of rewards, and of `terminated` and `truncated`.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.shown: list[Any] = []
        self.reused = False
        self.infos: dict[str, set[str]] = {}
        self.rewards: set[str] = set()
        self.flags: set[str] = set()
        self._last: list[np.ndarray] = []

    def reset(self, **options: Any) -> Any:
        """Reset the environment."""
        observation, info = self.env.reset(**options)
        self._keep(observation, info)
        return observation, info

    def step(self, action: Any) -> Any:
        """Step the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._keep(observation, info)
        self.rewards.add(type(reward).__name__)
        self.flags |= {type(terminated).__name__, type(truncated).__name__}
        return observation, reward, terminated, truncated, info

    def _keep(self, observation: Any, info: Any) -> None:
        leaves = [leaf for leaf in jax.tree.leaves(observation) if isinstance(leaf, np.ndarray)]
        pairs = itertools.product(leaves, self._last)
        self.reused = self.reused or any(np.shares_memory(*pair) for pair in pairs)
        self._last = leaves
        self.shown.append(jax.tree.map(np.array, observation))
        for key, value in (info if isinstance(info, Mapping) else {}).items():
            self.infos.setdefault(str(key), set()).add(type(value).__name__)


@dataclasses.dataclass
class CheckedEnv:
    """The environment under test, made as a run makes it.

    Attributes:
        env: as for `make`; a function may also return a vector environment.
        args: arguments of the environment.
        envs: environments side by side.
        vectorise: how they are stepped.
        deadline: when all checks have to be over, by `time.monotonic`.
        env_id: its name.
        called: that an environment is being made; None: it is not.
        index_actions: do only agents with actions by index fit?
        is_vector: does a function make vector environments? None: it was not called yet.
        opened: all adapters that are open.
    """

    env: Any
    args: Mapping[str, Any]
    envs: int = 1
    vectorise: Any = "sync"
    deadline: float = float("inf")
    env_id: str = ""
    called: Call | None = None
    index_actions: bool = False
    is_vector: bool | None = None
    opened: list[EnvAdapter] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        name = self.env if isinstance(self.env, str) else getattr(self.env, "__name__", "")
        self.env_id = name if name.isprintable() and name != "<lambda>" else "the environment"

    @property
    def left(self) -> float:
        """Seconds that are left, but at most the share of one check."""
        return min(SHARE, self.deadline - time.monotonic())

    @property
    def callers(self) -> list[Any]:
        """All that calls an environment."""
        return [self, *self.opened]

    def open(self, envs: int | None = None, seed: int = 0, index_actions: bool | None = None) -> EnvAdapter:
        """Make another copy of the environment, or E of them.

        Args:
            envs: E; None: as many as the run has.
            seed: of the first reset.
            index_actions: pass discrete actions by index; None: as was found to fit.

        Raises:
            UsageError: it cannot be made, or its spaces do not fit.
        """
        by_index = self.index_actions if index_actions is None else index_actions
        self.called = Call("its constructor", time.monotonic())
        try:
            adapter = self._make(self.envs if envs is None else envs, seed, by_index)
        finally:
            self.called = None
        self.opened.append(adapter)
        return adapter

    def _make(self, envs: int, seed: int, index_actions: bool) -> EnvAdapter:
        made: Any = None
        if callable(self.env) and self.is_vector is not False:
            with contextlib.suppress(Exception):  # `make` calls it again, and says what is wrong
                made = self.env(**self.args)
                self.is_vector = isinstance(made, VectorEnv)
                if not self.is_vector:
                    made.close()
            if self.is_vector:
                return make(made, seed=seed, index_actions=index_actions)
        vectorise = self.vectorise if envs > 1 else "sync"
        env: Any = self.env
        return make(env, envs, self.args, seed=seed, vectorise=vectorise, index_actions=index_actions)

    def close(self, adapter: EnvAdapter) -> None:
        """Close an adapter."""
        self.opened = [one for one in self.opened if one is not adapter]
        adapter.close()


@dataclasses.dataclass
class RandomSteps:
    """Random steps of an adapter. Arrays lead with the steps.

    Attributes:
        rows: observations [n, S], the true successors.
        reward: of all environments, [n].
        terminated, truncated: [n].
        episodes: those that ended.
        seconds: of a step, the median.
    """

    rows: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    episodes: list[Episode]
    seconds: float


def play(adapter: EnvAdapter, steps: int, seconds: float) -> RandomSteps:
    """Reset an adapter and make random steps, until there are enough or the time is over.

    The time begins after the first step, in which some environments compile what they run.
    """
    draw, start = make_draw(), float("inf")
    rows, numbers, episodes, times = [adapter.reset()], [], [], []
    for _ in range(steps):
        action, begun = draw(adapter), time.perf_counter()
        step = adapter.step(action)
        times.append(time.perf_counter() - begun)
        new = step.transition
        rows.append(new.next_observation[new.valid])
        numbers.append([x[new.valid] for x in (new.reward, new.terminated, new.truncated)])
        episodes += step.finished
        start = min(start, time.monotonic())
        if time.monotonic() - start > seconds:
            break
    reward, terminated, truncated = map(np.concatenate, zip(*numbers, strict=True))
    return RandomSteps(np.concatenate(rows), reward, terminated, truncated, episodes, float(np.median(times)))


def open_first(subject: CheckedEnv) -> tuple[EnvAdapter | None, list[Finding]]:
    """Open the environment, by the kind of agents that it fits.

    Returns:
        The adapter, or None if no agent can be trained on it; and what was found.

    Raises:
        UsageError: there is no such environment, or its arguments are wrong.
    """
    problems: list[QscapeError] = []
    for by_index in (False, True):
        try:
            adapter = subject.open(index_actions=by_index)
        except (UnfitEnv, WrongEnv) as problem:
            problems.append(problem)
            continue
        subject.index_actions = by_index
        return adapter, [Finding("spaces", "ok", _describe_spaces(adapter))]
    return None, [Finding("spaces", "FAIL", str(problems[0]).rstrip("."), "no agent can be trained on it")]


def _describe_spaces(adapter: EnvAdapter) -> str:
    spec = adapter.spec
    low, high = adapter.observation_bounds
    bounded = int((np.isfinite(low) & np.isfinite(high)).sum())
    seen = f"observations {adapter.form}, {spec.observation_size} numbers, {bounded} of them bounded"
    if spec.index_sizes is not None:
        done = f"actions by index, of {' × '.join(f'{n:,}' for n in spec.index_sizes)}"
    elif spec.table is not None:
        done = f"actions by a table of {len(spec.table):,}"
    else:
        done = f"{spec.action_size} continuous actions"
    masks = "" if spec.mask is None else ", of which masks say which are valid"
    mode = f"; {adapter.envs} environments, reset by {adapter.autoreset}" if adapter.autoreset else ""
    return f"{seen}; {done}{masks}{mode}"


def check_answers(subject: CheckedEnv, adapter: EnvAdapter, steps: int = 1_000) -> Iterator[Finding]:
    """Play random steps, and look at all that the environment answers."""
    peek = None
    if adapter.envs == 1 and isinstance(adapter.env, gym.Env):
        peek = Peek(adapter.env)
        watched = EnvAdapter(peek, env_id=adapter.env_id, index_actions=subject.index_actions)
        subject.opened.append(watched)
        adapter = watched
    try:
        played = play(adapter, steps, subject.left)
    except NotFinite as problem:
        yield Finding(
            "finite numbers",
            "FAIL",
            str(problem),
            "find the step that makes it, or end the episode there (terminated) with a finite reward",
        )
        return
    except BrokenEnv as problem:
        yield Finding("steps", "FAIL", str(problem).rstrip("."), "training would end there")
        return
    count = len(played.reward)
    yield Finding("finite numbers", "ok", f"{count:,} random steps, all observations and rewards are finite")
    yield _find_bounds(adapter, played)
    if count < FEW:
        yield Finding(
            "scales", "skip", f"{count:,} random steps are too few to judge scales and ends of episodes"
        )
    else:
        if peek is not None:
            yield _find_precision(adapter, peek)
        yield _find_scale(adapter, played)
        yield _find_rewards(played)
        yield _find_ends(adapter, played)
    yield _find_success(played, peek)
    yield _find_actions(adapter)
    if peek is not None:
        yield from _find_buffers(peek)


def _find_bounds(adapter: EnvAdapter, played: RandomSteps) -> Finding:
    seen = played.rows[:, : adapter.spec.observation_size].astype(float)
    low, high = (bound.astype(float) for bound in adapter.observation_bounds)
    slack = MARGIN * np.maximum(
        1.0, np.maximum(*(np.where(np.isfinite(b), np.abs(b), 0) for b in (low, high)))
    )
    outside = (seen < low - slack) | (seen > high + slack)
    if not outside.any():
        return Finding("observations inside their bounds", "ok", f"all of {len(seen):,} observations")
    step, entry = map(int, np.argwhere(outside)[0])
    return Finding(
        "observations inside their bounds",
        "warn",
        f"{name_entry(adapter.leaves, entry)} is {seen[step, entry]:.6g}, outside [{low[entry]:.6g}, "
        f"{high[entry]:.6g}], in {outside.any(1).mean():.0%} of the observations",
        "agents learn from them as they are; write the true bounds, or -inf and inf, into observation_space",
    )


def _find_precision(adapter: EnvAdapter, peek: Peek) -> Finding:
    """Look for entries whose mean is so large beside their spread that float32 cannot tell them apart."""
    name, rows = "precision", _flatten(adapter, peek.shown)
    if rows is None:
        return Finding(name, "ok", "images are kept as bytes")
    mean, spread = rows.mean(0), rows.std(0)
    far = (spread > 0) & (np.abs(mean) > FAR * spread)
    kinds = ", ".join(sorted({str(box.dtype) for _, box in adapter.leaves}))
    if not far.any():
        return Finding(name, "ok", f"{kinds}, which agents see as float32")
    entry = int(np.argmax(np.where(far, np.abs(mean) / np.where(spread > 0, spread, 1), 0)))
    return Finding(
        name,
        "warn",
        f"{name_entry(adapter.leaves, entry)} has the mean {mean[entry]:.6g} and the spread "
        f"{spread[entry]:.2g}: float32 keeps 7 digits, so that its changes are lost",
        f"subtract {mean[entry]:.6g} in the environment",
    )


def _flatten(adapter: EnvAdapter, shown: Sequence[Any]) -> np.ndarray | None:
    """Return observations as rows of float64 in the order of the adapter's; None of images."""
    if adapter.spec.frame is not None:
        return None
    rows = []
    for observation in shown:
        parts = []
        for path, _ in adapter.leaves:
            part = observation
            for key in path:
                part = part[key]
            parts.append(np.asarray(part, np.float64).ravel())
        rows.append(np.concatenate(parts))
    return np.stack(rows)


def _find_scale(adapter: EnvAdapter, played: RandomSteps) -> Finding:
    name = "scale of observations"
    if adapter.spec.frame is not None:
        return Finding(name, "ok", "pixels, from 0 to 255")
    seen = played.rows[:, : adapter.spec.observation_size].astype(float)
    spread = seen.std(0)
    still = int((spread == 0).sum())
    detail = f"numbers from {seen.min():.4g} to {seen.max():.4g}" + (
        f", {still} of {len(spread)} never changed" if still else ""
    )
    if still == len(spread):
        return Finding(name, "warn", f"{detail}: nothing can be seen", "check that the environment moves")
    ratio = spread.max() / spread[spread > 0].min()
    if spread.max() > WIDE or ratio > 1e3:
        entry = int(spread.argmax())
        detail += f"; {name_entry(adapter.leaves, entry)} has the spread {spread[entry]:.3g}"
        return Finding(name, "warn", detail, "add +normalise to the recipe, such as td3+normalise")
    return Finding(name, "ok", detail)


def _find_rewards(played: RandomSteps) -> Finding:
    name, size = "scale of rewards", np.abs(played.reward)
    detail = f"from {played.reward.min():.4g} to {played.reward.max():.4g}, mean {played.reward.mean():.4g}"
    if not size.any():
        return Finding(
            name,
            "warn",
            f"all rewards of {len(size):,} random steps are 0",
            "a sparse task needs exploration or a denser reward; look whether it can be solved at all",
        )
    if size.max() > LARGE:
        return Finding(
            name,
            "warn",
            f"{detail}: large for losses, temperatures and regularisers of Q such as pave",
            "add +reward_scale to an off-policy recipe (td3+pave+reward_scale), or +scale_rewards to an "
            "on-policy one (ppo+scale_rewards)",
        )
    if size.max() < SMALL:
        return Finding(
            name,
            "warn",
            f"{detail}: small beside exploration bonuses and noise",
            "add +reward_scale to an off-policy recipe, or +scale_rewards to an on-policy one, or multiply "
            "the rewards",
        )
    return Finding(name, "ok", detail)


def _find_ends(adapter: EnvAdapter, played: RandomSteps) -> Finding:
    name, episodes, limit = "ends of episodes", played.episodes, adapter.time_limit
    lengths = [episode.length for episode in episodes]
    known = "no time limit is known" if limit is None else f"the time limit is {limit:,} steps"
    detail = (
        f"{int(played.terminated.sum())} terminated and {int(played.truncated.sum())} truncated in "
        f"{len(played.reward):,} random steps; {known}"
    )
    if not episodes and limit is None:
        return Finding(
            name,
            "warn",
            f"{detail}: td7, reinforce and others that learn when an episode ends may never learn, and "
            "evaluations may never end",
            "set one: --env.max-episode-steps 1000",
        )
    same = len(set(lengths)) == 1 and len(lengths) > 2 and lengths[0] > 5
    if same and played.terminated.sum() == len(lengths):
        return Finding(
            name,
            "warn",
            f"{detail}: every episode terminated after exactly {lengths[0]} steps, as if a time limit did it",
            "a time limit is truncated=True, terminated=False; else agents learn that the future ends there",
        )
    both = int((played.terminated & played.truncated).sum())
    return Finding(name, "ok", detail + (f"; {both} both, which count as terminated" if both else ""))


def _find_success(played: RandomSteps, peek: Peek | None) -> Finding:
    name = "infos"
    reported = [episode.success for episode in played.episodes if episode.success is not None]
    keys = sorted(peek.infos) if peek else []
    listed = f"keys {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}" if keys else "no keys"
    if peek is None:
        listed = "not looked at"
    if reported or any(key in SUCCESS for key in keys):
        return Finding(name, "ok", f"{listed}; success is reported, {len(reported)} episodes of it")
    return Finding(name, "ok", f'{listed}; no success: a wrapper may write info["success"]')


def _find_actions(adapter: EnvAdapter) -> Finding:
    name, spec = "scale of actions", adapter.spec
    if spec.low is None or spec.high is None or spec.index_sizes is not None:
        return Finding(name, "ok", "discrete")
    low, high = spec.low.astype(float), spec.high.astype(float)
    if (fixed := np.flatnonzero(low == high)).size:
        return Finding(
            name,
            "warn",
            f"dimension {fixed[0]} of the action has the same bound below and above, {low[fixed[0]]:.4g}",
            "leave it out of action_space",
        )
    shown = f"from {low.min():.4g} to {high.max():.4g}; agents act in [-1, 1], which is scaled to the bounds"
    return Finding(name, "ok", shown)


def _find_buffers(peek: Peek) -> Iterator[Finding]:
    detail = "every observation is an array of its own"
    if peek.reused:
        detail = "observations share memory with the one before; qscape copies each"
    yield Finding("buffers", "ok", detail)
    odd = sorted(peek.flags - {"bool", "bool_"})
    if odd:
        yield Finding(
            "types of answers",
            "warn",
            f"terminated and truncated are {', '.join(sorted(peek.flags))}",
            "return True or False",
        )
    odd = sorted(peek.rewards - {"float", "int", "float64", "float32", "int64", "int32", "bool", "bool_"})
    if odd:
        yield Finding("types of answers", "warn", f"rewards are {', '.join(odd)}", "return a float")


def check_copies(subject: CheckedEnv, adapter: EnvAdapter) -> Iterator[Finding]:
    """Open as many copies as a run with evaluations has, as long as that is quick."""
    name, copies = "number of copies", 1
    wanted = 2 if subject.is_vector else 11
    begun = time.monotonic()
    opened: list[EnvAdapter] = []
    try:
        while copies < wanted:
            opened.append(subject.open(None if subject.is_vector else 1))
            opened[-1].reset()
            copies += 1
            if time.monotonic() - begun > subject.left / 3:
                break
    except QscapeError as problem:
        few = "--eval-every 0" if copies == 1 else f"--eval-episodes {copies - 1}, or --eval-every 0"
        yield Finding(
            name,
            "FAIL",
            f"only {copies} can be open at a time ({str(problem).rstrip('.')}), and a run opens one to train "
            "in and up to 10 to evaluate in",
            f"train with --envs 1 {few}",
        )
        return
    finally:
        for one in opened:
            with contextlib.suppress(QscapeError):
                subject.close(one)
    yield Finding(name, "ok", f"{copies} were open side by side")


def check_seeds(subject: CheckedEnv, steps: int = 60) -> Iterator[Finding]:
    """Compare two copies with equal seeds, over resets with and without one."""
    name = "equal seeds"
    with _pair(subject) as (one, other):
        first, second = one.reset(), other.reset()
        difference = compare_starts(first, second) or compare_steps(one, other, make_draw(), steps)
        if difference is not None:
            yield Finding(name, "warn", *_explain_seeds(subject, difference, steps))
            return
        for _ in range(2):  # a reset right after a reset, too
            if compare_starts(one.reset(), other.reset()) or compare_steps(one, other, make_draw(1), 10):
                yield Finding(name, "warn", *_explain_seeds(subject, Difference(AFTER_RESET, 0), steps))
                return
        one.reseed(one.seed)
        if compare_starts(one.reset(), first):
            yield Finding(
                name,
                "warn",
                "one copy that is reset again with the same seed starts elsewhere, so evaluations differ",
                "let reset(seed=...) forget all that was before",
            )
            return
    yield Finding(name, "ok", f"two copies made the same {steps} steps, and the same after further resets")


def _explain_seeds(subject: CheckedEnv, difference: Difference, steps: int) -> tuple[str, str]:
    """Return what differs between two copies of one seed, and what would help."""
    remedy = "draw from self.np_random alone, which super().reset(seed=seed) seeds"
    if difference.what == AFTER_RESET:
        return f"{difference} of two copies with one seed differs", f"{remedy}, also without a new seed"
    if difference.step == 0:
        takes = "an environment that takes a seed of its own gets one by --env.seed 0"
        return f"{difference} of two copies with one seed differs", f"{remedy}; {takes}"
    # In turn, each copy is alone between its reset and its last step.
    rows = []
    with _pair(subject) as pair:
        for adapter in pair:
            adapter.reset()
            draw = make_draw()
            rows.append([adapter.step(draw(adapter)).transition.next_observation for _ in range(steps)])
    if np.array_equal(*map(np.stack, rows), equal_nan=True):
        return (
            f"{difference} of two copies with one seed differs if they are stepped side by side, and not one "
            "after the other: they share state",
            "keep state in the instance (self.x), not in the class, a module or np.random",
        )
    return f"{difference} of two copies with one seed differs", remedy


@contextlib.contextmanager
def _pair(subject: CheckedEnv) -> Iterator[tuple[EnvAdapter, EnvAdapter]]:
    """Open two copies of the environment, and close them after the `with` block."""
    with contextlib.ExitStack() as stack:
        pair = []
        for _ in range(2):
            pair.append(subject.open())
            stack.callback(subject.close, pair[-1])
        yield pair[0], pair[1]


def check_saves(subject: CheckedEnv, steps: int = 60) -> Iterator[Finding]:
    """Restore a snapshot of one copy into another one, in the middle of an episode."""
    name, draw = "save and restore", make_draw()
    with _pair(subject) as (one, other):
        other.reseed(other.seed + 17)
        for adapter in (other, one):  # both have a past, and another one
            adapter.reset()
            for _ in range(3):
                adapter.step(draw(adapter))
        why, difference = compare_restored(one, other, draw, steps)
        shown = one.env_id
    goes_on = "resumed runs begin a new episode there, and differ from uninterrupted ones"
    if why:
        remedy = (
            f"keep state in attributes that are numbers, arrays, lists, dicts or random generators; {goes_on}"
        )
        yield Finding(name, "warn", why.rstrip("."), remedy)
    elif difference is not None:
        yield Finding(
            name,
            "warn",
            describe_false_snapshot(shown, difference),
            f"keep all state in the instance; {goes_on}",
        )
    else:
        yield Finding(name, "ok", f"equal to the bit, and {steps} steps after it")


def check_jax(subject: CheckedEnv, adapter: EnvAdapter) -> Iterator[Finding]:
    """Run the conformance suite on an environment in JAX."""
    if adapter.jax_env is None or not (isinstance(subject.env, str) or callable(subject.env)):
        return
    env: Any = subject.env
    for result in conformance.check(env, subject.args, CONFORMANCE_STEPS):
        verdict: dict[str, Verdict] = {"PASS": "ok", "FAIL": "FAIL", "skip": "skip"}
        yield Finding(f"in JAX, {result.name}", verdict[result.verdict], result.detail)


def run_checks(subject: CheckedEnv, adapter: EnvAdapter) -> Iterator[Finding]:
    """Run the checks one after the other; what the environment raises becomes a finding.

    Args:
        subject: the environment.
        adapter: one that is open.
    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("random steps", lambda: check_answers(subject, adapter)),
        ("number of copies", lambda: check_copies(subject, adapter)),
        ("equal seeds", lambda: check_seeds(subject)),
        ("save and restore", lambda: check_saves(subject)),
        ("in JAX", lambda: check_jax(subject, adapter)),
    ]
    failed = False
    for name, check in checks:
        if failed:
            yield Finding(name, "skip", "see what failed above")
            continue
        for finding in guarded(name, check):
            failed |= finding.verdict == "FAIL" and name in ("random steps", "number of copies")
            yield finding


def guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds; an error of the environment is a finding as well."""
    try:
        yield from check()
    except QscapeError as problem:
        yield Finding(name, "FAIL", str(problem).rstrip("."), "training may end there, too")
    except Exception as problem:
        yield Finding(name, "FAIL", describe(problem), "training may end there, too")
    except SystemExit as problem:
        yield Finding(name, "FAIL", f"the environment ended the program ({describe(problem)})")
