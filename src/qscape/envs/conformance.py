"""Check that an environment keeps the protocol of `JaxEnv` and Gymnasium.

    python -m qscape.envs.conformance brax/ant --env.backend spring --steps 10000

It prints a line for each check, with PASS, FAIL or skip. The exit code is 0 if no check failed, 1 if one did,
2 if the environment cannot be made. An environment without a `JaxEnv` gets the checks of Gymnasium's side.
In Python: `check("brax/ant", {"backend": "spring"})`.
"""

import argparse
import ast
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, PyTree

from qscape.envs.build import build_env
from qscape.envs.masks import declared_by, find_mask
from qscape.envs.native import GymnasiumEnv, JaxEnv, Outcome, find_jax_env, step_autoreset, step_key
from qscape.envs.spaces import FactoredActions, is_bounded, list_sizes, true_bounds
from qscape.errors import OutOfRange, QscapeError, UnfitEnv, UsageError, WrongValue, describe
from qscape.types import stream

ENVS = 8  # environments side by side
ROWS = 32  # steps that are computed side by side, to compare them with single ones
FACE_STEPS = 300  # steps of the Gymnasium environment
# |x - y| <= ABSOLUTE + RELATIVE |y|: a step from the same state, computed alone and beside others. XLA adds
# in another order there, and a contact solver may stop an iteration earlier.
ABSOLUTE, RELATIVE = 1e-3, 1e-3


class Result(NamedTuple):
    """One check: its name, how it ended, and a sentence about it."""

    name: str
    verdict: Literal["PASS", "FAIL", "skip"]
    detail: str


class Broken(Exception):
    """A check failed; the message says how."""


class Record(NamedTuple):
    """T steps of E environments with auto-reset, on the host. Arrays lead with [T, E].

    Attributes:
        state: before the step.
        action: of the step.
        outcome: of the step, with the true successor.
        shown: the observation to act on next.
    """

    state: PyTree
    action: np.ndarray
    outcome: Outcome
    shown: np.ndarray


@dataclasses.dataclass
class Subject:
    """The environment under test, and the episodes that the checks look at.

    Attributes:
        make: makes the Gymnasium environment.
        env: one of them.
        native: its `JaxEnv`, or None.
        steps: number of random steps.
    """

    make: Callable[[], gym.Env]
    env: gym.Env
    native: JaxEnv | None
    steps: int

    def __post_init__(self) -> None:
        self.actions = np.random.default_rng(0)
        self.record: Record | None = None
        env, bare = self.env, self.env.unwrapped
        face = bare if isinstance(bare, GymnasiumEnv) else None
        spaces_of = env.observation_space, env.action_space
        self.masks = find_mask(type(bare).__name__, *spaces_of, face, declared_by(env), False, True)[1]

    @property
    def jax(self) -> JaxEnv:
        """The `JaxEnv`; only checks that need one read it."""
        assert self.native is not None
        return self.native

    def draw_actions(self, *shape: int) -> np.ndarray:
        """Return random actions of the action space, uniform; the bounds of the space are never exceeded."""
        space: Any = self.env.action_space
        if sizes := list_sizes(space):
            index = self.actions.integers(0, sizes, (int(np.prod(shape)), len(sizes)))
            return _to_action(space, index).reshape((*shape, *space.shape)).astype(space.dtype)
        if not is_bounded(space):
            raise UnfitEnv(f"actions are {space}: they have to be discrete or a bounded Box")
        low, high = space.low.astype(float), space.high.astype(float)
        drawn = self.actions.uniform(low, high, (*shape, *space.shape))
        return np.clip(drawn.astype(space.dtype), space.low, space.high)

    def draw_action(self, observation: Any, info: Mapping[str, Any]) -> np.ndarray:
        """Return a random action that is valid after the last observation and info of the Gymnasium
        environment.
        """
        if self.masks is None:
            return self.draw_actions()
        space: Any = self.env.action_space
        given = {key: [value] for key, value in info.items()}
        words = self.masks.read([observation], given, np.array([True]))
        valid = np.asarray(self.masks.mask.unpack(jnp.asarray(words)))[0]
        parts = np.split(valid, np.cumsum(list_sizes(space))[:-1])
        index = np.array([[self.actions.choice(np.flatnonzero(part)) for part in parts]])
        return _to_action(space, index)[0].astype(space.dtype)


def _to_action(space: gym.Space, index: Any) -> Any:
    """Return indices [b, K] of values as actions of a discrete space; works on NumPy and JAX arrays."""
    factored = FactoredActions.from_space(space)
    return index[:, 0] + getattr(space, "start", 0) if factored is None else factored.from_indices(index)


def check(env_id: str, args: Mapping[str, Any] | None = None, steps: int = 10_000) -> list[Result]:
    """Run all checks on an environment.

    If its time limit is too long to be seen, the episodes are cut earlier, by `max_episode_steps`.

    Args:
        env_id: as in `qscape train --env`.
        args: arguments of the environment.
        steps: number of random steps, over `ENVS` environments.

    Raises:
        UsageError: the environment cannot be made.
    """
    args = dict(args or {})
    if steps < 20 * ENVS:
        raise OutOfRange(f"steps is {steps}: it has to be {20 * ENVS} or more", field="steps")
    env = build_env(env_id, args)
    native = find_jax_env(env)
    cut = steps // ENVS // 4
    if native is not None and native.time_limit > cut:
        args["max_episode_steps"] = cut
        env = build_env(env_id, args)
        native = find_jax_env(env)
    subject = Subject(lambda: build_env(env_id, args), env, native, steps)
    results: list[Result] = []
    for name, needs_jax, run in CHECKS:
        failed = any(r.verdict == "FAIL" and r.name == CHECKS[0][0] for r in results)
        if failed or (needs_jax and native is None):
            why = "it has no JaxEnv" if native is None else "the types are wrong, see above"
            results.append(Result(name, "skip", why))
            continue
        try:
            results.append(Result(name, "PASS", run(subject)))
        except (Broken, QscapeError) as problem:
            results.append(Result(name, "FAIL", str(problem)))
        except Exception as problem:  # of the environment
            results.append(Result(name, "FAIL", describe(problem)))
    return results


# Programs: each is compiled once, because a physics engine takes a minute to compile.


@jax.jit
def _reset(env: JaxEnv, keys: Array) -> tuple[PyTree, Array]:
    return jax.vmap(env.reset)(keys)


@jax.jit
def _step(env: JaxEnv, states: PyTree, actions: Array, keys: Array) -> tuple[PyTree, Outcome]:
    return jax.vmap(env.step)(states, actions, keys)


@jax.jit
def _scan(env: JaxEnv, start: tuple[PyTree, Array], actions: Array, keys: Array) -> tuple[PyTree, Any]:
    """Make steps with auto-reset: `actions` and `keys` lead with [T, E]; `start`: the states and what they
    show.

    Of an environment with a mask, other actions are drawn, which are valid.
    """

    def step(start: tuple[PyTree, Array], now: tuple[Array, Array]) -> tuple[PyTree, Any]:
        (state, shown), (action, keys) = start, now
        if (mask := env.mask) is not None:
            drawing = jax.vmap(lambda key: stream(key, "action"))(keys)
            index = jax.vmap(mask.sample)(shown[:, -mask.width :], drawing)
            action = _to_action(env.action_space, index).astype(action.dtype)
        after, shown, outcome = jax.vmap(step_autoreset, (None, 0, 0, 0))(env, state, action, keys)
        return (after, shown), (state, action, outcome, shown)

    return jax.lax.scan(step, start, (actions, keys))


def _step_rows(env: JaxEnv, states: PyTree, actions: np.ndarray, keys: Array) -> tuple[PyTree, Outcome]:
    """Do `_step` for any number of rows, `ROWS` at a time."""
    parts = []
    for start in range(0, len(actions), ROWS):
        rows = np.arange(start, start + ROWS).clip(max=len(actions) - 1)
        parts.append(
            _step(env, jax.tree.map(lambda x, rows=rows: x[rows], states), actions[rows], keys[rows])
        )
    return jax.tree.map(lambda *xs: np.concatenate(xs)[: len(actions)], *jax.device_get(parts))


def _keys(seed: int, *shape: int) -> Array:
    return jax.random.split(jax.random.key(seed), shape)


def _play_record(subject: Subject, keep: bool = True) -> Record:
    """Play `steps` random steps with auto-reset, once; `keep=False`: the first chunk of them, again."""
    if keep and subject.record is not None:
        return subject.record
    env, chunk = subject.jax, min(100, subject.steps // ENVS)
    subject.actions = np.random.default_rng(0)
    start = _reset(env, _keys(0, ENVS))
    rows: list[Record] = []
    for part in range(-(-subject.steps // (ENVS * chunk)) if keep else 1):
        actions = subject.draw_actions(chunk, ENVS)
        start, seen = _scan(env, start, actions, _keys(part + 1, chunk, ENVS))
        rows.append(Record(*jax.device_get(seen)))
    record = jax.tree.map(lambda *xs: np.concatenate(xs), *rows)
    if keep:
        subject.record = record
    return record


def _key_of(record: Record, step: int, env: int) -> Array:
    """Return the key of a step in `_play_record`."""
    chunk = min(100, len(record.action))
    return _keys(step // chunk + 1, chunk, ENVS)[step % chunk, env]


def _visible(env: JaxEnv, rows: Any) -> np.ndarray:
    """Return observations without the words of the action mask behind them."""
    return np.asarray(rows)[..., : env.observation_space.shape[0]]


# Checks: each returns a sentence, or raises Broken.


def check_types(subject: Subject) -> str:
    """Check that shapes and types are those of the spaces, and that a step does not change them."""
    env, key = subject.jax, jax.random.key(0)
    action = jax.eval_shape(jnp.asarray, subject.draw_actions())
    state, observation = jax.eval_shape(env.reset, key)
    after, outcome = jax.eval_shape(env.step, state, action, key)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise Broken(f"state{jax.tree_util.keystr(path)} is a typed key: keep jax.random.key_data of it")
    if jax.tree.structure(state) != jax.tree.structure(after):
        raise Broken("the state has another structure after a step than after a reset")
    for (path, old), (_, new) in zip(*map(jax.tree_util.tree_leaves_with_path, (state, after)), strict=True):
        if (old.shape, old.dtype, old.weak_type) != (new.shape, new.dtype, new.weak_type):
            raise Broken(
                f"state{jax.tree_util.keystr(path)} is {_type(old)} after a reset, {_type(new)} after a step"
            )
    shape = env.observation_space.shape
    if env.mask is not None:
        shape = (shape[0] + env.mask.width,)
    wanted = dict(
        zip(Outcome._fields, [(shape, jnp.float32), ((), jnp.float32), *[((), jnp.bool_)] * 3], strict=True)
    )
    found = outcome._asdict() | {"reset's observation": observation}
    for name, value in found.items():
        shape_wanted, dtype = wanted.get(name, wanted["observation"])
        value = jax.eval_shape(jnp.asarray, value)
        if (value.shape, value.dtype) != (shape_wanted, dtype) or value.weak_type:
            raise Broken(f"{name} is {_type(value)}, not {np.dtype(dtype)}{list(shape_wanted)}")
    return f"{len(jax.tree.leaves(state))} arrays of state, observation float32{list(shape)}"


def _type(value: Any) -> str:
    return f"{'weak ' if value.weak_type else ''}{value.dtype}{list(value.shape)}"


def check_determinism(subject: Subject) -> str:
    """Check that the same keys and actions give the same steps, to the bit."""
    first, again = _play_record(subject), _play_record(subject, keep=False)
    steps = len(again.action)
    for old, new in zip(*map(jax.tree.leaves, (first, again)), strict=True):
        if not np.array_equal(old[:steps], new, equal_nan=old.dtype.kind == "f"):
            raise Broken("two rollouts with the same keys and actions differ")
    return f"{steps * ENVS:,} steps twice, equal to the bit"


def check_ends(subject: Subject) -> str:
    """Check that an episode is truncated at the limit, only there, and terminated for other reasons."""
    env, outcome = subject.jax, _play_record(subject).outcome
    length, at_limit, lengths = np.zeros(ENVS, int), 0, []
    for terminated, truncated in zip(outcome.terminated, outcome.truncated, strict=True):
        length += 1
        wrong = truncated != (length == env.time_limit)
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise Broken(
                f"truncated is {truncated[i]} in step {length[i]}, and the limit is {env.time_limit}"
            )
        at_limit += int((terminated & truncated).sum())
        ended = terminated | truncated
        lengths += length[ended].tolist()
        length[ended] = 0
    terminated = int(outcome.terminated.sum())
    if terminated > 2 and at_limit == terminated:
        raise Broken(f"all {terminated} terminations are in the step of the limit, {env.time_limit}")
    if not lengths:
        raise Broken("no episode ended")
    return (
        f"{terminated} terminated, {int(outcome.truncated.sum())} truncated at {env.time_limit} steps, "
        f"mean length {np.mean(lengths):.0f}"
    )


def check_last_observation(subject: Subject) -> str:
    """Check that auto-reset reports the true last observation, and shows the first of the new episode."""
    record = _play_record(subject)
    ended = record.outcome.terminated | record.outcome.truncated
    # Not to the bit: XLA may compute a number twice, in two fusions.
    close = np.isclose(record.shown, record.outcome.observation, 1e-5, 1e-5, equal_nan=True)
    same: np.ndarray = np.all(close, axis=-1)
    if not same[~ended].all():
        raise Broken("within an episode, the observation to act on is not the successor")
    steps, envs = (index[:ROWS] for index in np.nonzero(ended))
    if not len(steps):
        raise Broken("no episode ended")
    keys = [
        jax.random.split(_key_of(record, t, i)) for t, i in zip(steps.tolist(), envs.tolist(), strict=True)
    ]
    before = jax.tree.map(lambda x: x[steps, envs], record.state)
    _, true = _step_rows(subject.jax, before, record.action[steps, envs], jnp.stack([k[0] for k in keys]))
    seen = (
        _visible(subject.jax, rows) for rows in (record.outcome.observation[steps, envs], true.observation)
    )
    _compare("the last observation", *seen)
    resets = jnp.stack([keys[min(i, len(keys) - 1)][1] for i in range(-(-len(keys) // ENVS) * ENVS)])
    first = np.concatenate(
        [_reset(subject.jax, resets[i : i + ENVS])[1] for i in range(0, len(resets), ENVS)]
    )
    _compare("the first observation", record.shown[steps, envs], first[: len(keys)])
    return f"{len(steps)} ends compared with a step and a reset of their own"


def check_bounds(subject: Subject) -> str:
    """Check that observations are inside the declared bounds."""
    space = subject.jax.observation_space
    seen = np.concatenate([_play_record(subject).outcome.observation, _play_record(subject).shown])
    return _inside(_visible(subject.jax, seen).reshape(-1, *space.shape), space)


def _inside(seen: np.ndarray, space: spaces.Box) -> str:
    low, high = true_bounds(space)
    slack = 1e-5 * (
        1 + np.abs(np.where(np.isfinite(low), low, 0)) + np.abs(np.where(np.isfinite(high), high, 0))
    )
    with np.errstate(invalid="ignore"):
        outside = np.nonzero((seen < low - slack) | (seen > high + slack))
    if len(outside[0]):
        where = tuple(int(axis[0]) for axis in outside)
        bounds = f"[{low[where[1:]]:.6g}, {high[where[1:]]:.6g}]"
        raise Broken(f"observation{list(where[1:])} is {seen[where]:.6g}, outside {bounds}")
    bounded = int((np.isfinite(low) | np.isfinite(high)).sum())
    return f"{bounded} of {low.size} numbers have a bound, and kept it"


def check_finite(subject: Subject) -> str:
    """Check that observations and rewards are finite over all random steps."""
    record = _play_record(subject)
    seen = _visible(subject.jax, record.outcome.observation)  # in a terminal state no action may be valid
    for name, values in (("observation", seen), ("reward", record.outcome.reward)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            raise Broken(f"{name} is {values[tuple(bad[0])]} in step {bad[0][0]} of environment {bad[0][1]}")
    low, high = record.outcome.reward.min(), record.outcome.reward.max()
    return f"{record.action.shape[0] * ENVS:,} steps, rewards {low:.4g} to {high:.4g}"


def check_starts(subject: Subject) -> str:
    """Check whether different keys lead to different starts; reported,
    because a task may have a single one.
    """
    _, seen = _reset(subject.jax, _keys(7, ENVS))
    return f"{len(np.unique(np.asarray(seen), axis=0))} different starts of {ENVS}"


class PlayedSteps(NamedTuple):
    """Steps of the Gymnasium environment. Arrays lead with the steps."""

    states: PyTree
    actions: np.ndarray
    keys: Array | None
    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    first: np.ndarray


def _play_face(subject: Subject) -> PlayedSteps:
    """Return episodes of the Gymnasium environment with random actions."""
    env, rows, states, keys = subject.make(), [], [], []
    bare: Any = env.unwrapped
    subject.actions = np.random.default_rng(0)
    observation, info = env.reset(seed=3)
    first = _flatten(env, observation)
    for _ in range(FACE_STEPS):
        action = subject.draw_action(observation, info)
        if subject.native is not None:
            states.append(bare.state)
            keys.append(step_key(jax.random.key(bare.episode_seed), bare.steps + 1))
        observation, reward, terminated, truncated, info = env.step(action)
        rows.append((action, _flatten(env, observation), reward, terminated, truncated))
        if terminated or truncated:
            observation, info = env.reset()
    env.close()
    action, observation, reward, terminated, truncated = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *states) if states else None
    together = jnp.stack(keys) if keys else None
    return PlayedSteps(stacked, action, together, observation, reward, terminated, truncated, first)


def _flatten(env: gym.Env, observation: Any) -> np.ndarray:
    """Return an observation as an array; the entries of a Dict in one row."""
    is_dict = isinstance(env.observation_space, spaces.Dict)
    # Copied, because an environment may write into the array that it gave.
    return np.array(spaces.flatten(env.observation_space, observation) if is_dict else observation)


def check_face(subject: Subject) -> str:
    """Check that the Gymnasium environment makes the steps of the `JaxEnv` under `vmap`, and ends where it
    does.
    """
    played = _play_face(subject)
    assert played.keys is not None
    _, pure = _step_rows(subject.jax, played.states, played.actions, played.keys)
    worst = _compare(
        "the observation under vmap", _visible(subject.jax, pure.observation), played.observation
    )
    worst = max(worst, _compare("the reward under vmap", pure.reward, played.reward))
    for name in ("terminated", "truncated"):
        ours, theirs = getattr(pure, name), getattr(played, name)
        if (ours != theirs).any():
            step = int(np.flatnonzero(ours != theirs)[0])
            raise Broken(f"step {step}: {name} is {theirs[step]} in Gymnasium and {ours[step]} in the JaxEnv")
    ends = int((played.terminated | played.truncated).sum())
    allowed = f"{ABSOLUTE:g} + {RELATIVE:g} |x|"
    return f"{FACE_STEPS} steps, {ends} ends; largest difference {worst:.1e} (allowed: {allowed})"


def _compare(what: str, ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    error = np.abs(ours - theirs)
    wrong = ~(error <= ABSOLUTE + RELATIVE * np.abs(theirs))
    if wrong.any():
        where = tuple(np.argwhere(wrong)[0])
        raise Broken(f"{what} is {ours[where]:.6g} and by a single step {theirs[where]:.6g}")
    return float(error.max(initial=0))


def check_gymnasium(subject: Subject) -> str:
    """Check that the Gymnasium environment repeats itself after the same seed; its numbers are finite and in
    bounds.
    """
    played, again = _play_face(subject), _play_face(subject)
    if not np.isfinite(played.observation).all() or not np.isfinite(played.reward).all():
        raise Broken("an observation or a reward is not finite")
    for name in ("first", "observation", "reward", "terminated", "truncated"):
        if not np.array_equal(getattr(played, name), getattr(again, name)):
            raise Broken(f"{name} differs between two rollouts with the same seed and actions")
    space = subject.env.observation_space
    space = spaces.flatten_space(space) if isinstance(space, spaces.Dict) else space
    if not isinstance(space, spaces.Box):
        raise Broken(f"observations are {space}: the suite checks Boxes and Dicts of them")
    if not all(
        space.dtype == x.dtype and space.shape == x.shape for x in (played.first, played.observation[0])
    ):
        raise Broken(f"observations are {played.first.dtype}{list(played.first.shape)}, the space is {space}")
    _inside(played.observation, space)
    return (
        f"{FACE_STEPS} steps twice, {played.terminated.sum()} terminated, {played.truncated.sum()} truncated"
    )


CHECKS: list[tuple[str, bool, Callable[[Subject], str]]] = [
    ("types and shapes are stable", True, check_types),
    ("same keys, same steps", True, check_determinism),
    ("truncated at the limit, terminated elsewhere", True, check_ends),
    ("auto-reset keeps the last observation", True, check_last_observation),
    ("observations inside their bounds", True, check_bounds),
    ("observations and rewards are finite", True, check_finite),
    ("starts", True, check_starts),
    ("vmap and the Gymnasium environment agree", True, check_face),
    ("the Gymnasium environment by itself", False, check_gymnasium),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m qscape.envs.conformance",
        description="Check that an environment keeps the protocol.",
        epilog="--env.NAME VALUE passes an argument to the environment.",
    )
    parser.add_argument("id", help="as in qscape train --env")
    parser.add_argument("--steps", type=int, default=10_000, help="random steps (10000)")
    given, rest = parser.parse_known_args(argv)
    try:
        results = check(given.id, _read_arguments(rest), given.steps)
    except UsageError as problem:
        print(problem, file=sys.stderr)
        return problem.status
    for result in results:
        print(f"{result.verdict}  {result.name}: {result.detail}")
    failed = sum(result.verdict == "FAIL" for result in results)
    print(f"{given.id}: {failed} of {len(results)} checks failed" if failed else f"{given.id} conforms")
    return int(failed > 0)


def _read_arguments(words: Sequence[str]) -> dict[str, Any]:
    """Return arguments of the environment from `--env.NAME VALUE`; a value that is no literal is a string."""
    args, words = {}, [part for word in words for part in word.split("=", 1)]
    if len(words) % 2 or not all(flag.startswith("--env.") for flag in words[::2]):
        raise WrongValue(f"not understood: {' '.join(words)}; arguments are written --env.NAME VALUE")
    for flag, value in zip(words[::2], words[1::2], strict=True):
        try:
            args[flag.removeprefix("--env.").replace("-", "_")] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            args[flag.removeprefix("--env.").replace("-", "_")] = value
    return args


if __name__ == "__main__":
    sys.exit(main())
