"""Environments as pure JAX functions, and a wrapper that makes Gymnasium environments of them.

The interface of one environment; `vmap` makes many of it:

    state, observation = env.reset(key)
    state, outcome = env.step(state, action, key)

`env` is a `JaxEnv`, a pytree whose leaves are its tables. Pass it to a compiled function as an argument:
closed over, a table of 500,000 items would become a constant of the program. `state` is a NamedTuple of
arrays. `outcome` is an `Outcome`; its observation is the true successor. `action` is an index if
`env.action_space` is Discrete, and a vector of indices if it is MultiDiscrete or MultiBinary. `step` does not
reset a finished episode. Two helpers do:

    state, observation, outcome = step_autoreset(env, state, action, key)  # inside scan
    results = play(env, policy, key, episodes=10)  # whole episodes, to evaluate

`find_jax_env(gym_env)` returns the `JaxEnv` behind a Gymnasium environment.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeAlias

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from jaxtyping import Array, Bool, Float, Int, PyTree

from qscape.errors import BrokenEnv, QscapeError, UsageError, WrongEnv, one_line
from qscape.masks import ActionMask
from qscape.types import Key, stream

ActionSpace: TypeAlias = spaces.Discrete | spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary


class Outcome(NamedTuple):
    """The result of one step.

    Attributes:
        observation: the true successor s', also in the last step of an episode.
        reward: in the environment's units.
        terminated: the episode reached a terminal state; cuts the bootstrap.
        truncated: the time limit was reached; does not cut the bootstrap. Both may be true, as in Gymnasium.
        success: did this step reach the goal? Always False if `reports_success` is False.
    """

    observation: Float[Array, " S"]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    success: Bool[Array, ""]


class JaxEnv(eqx.Module):
    """An environment as pure functions of its state. Subclasses define the spaces, `reset` and `step`.

    Attributes:
        reports_success: does `Outcome.success` mean anything?
        time_limit: steps after which an episode is truncated.
    """

    reports_success: ClassVar[bool] = False
    time_limit: int = eqx.field(static=True, kw_only=True)

    @property
    def observation_space(self) -> spaces.Box:
        """The space of one observation [S]."""
        raise NotImplementedError

    @property
    def action_space(self) -> ActionSpace:
        """The space of one action."""
        raise NotImplementedError

    @property
    def action_table(self) -> Float[np.ndarray, "N d"] | None:
        """A vector for each action of a large discrete set; None if the set is small or continuous."""
        return None

    @property
    def actor_size(self) -> int | None:
        """Actors see the first entries of an observation, this many; critics see all. None: both see all."""
        return None

    @property
    def mask(self) -> ActionMask | None:
        """How the valid actions are packed; None: all are valid.

        With a mask, `reset` and `step` return observations [S + M]: `observation_space` describes the first
        S entries, and `mask.pack(valid)` makes the others. Every state needs a valid action; in a terminal
        state it may be any.
        """
        return None

    def reset(self, key: Key) -> tuple[PyTree, Float[Array, " S"]]:
        """The state and the first observation [S] of a new episode."""
        raise NotImplementedError

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, Outcome]:
        """One step: the new state and its `Outcome`. It does not reset a finished episode."""
        raise NotImplementedError

    def draw(self, state: PyTree) -> np.ndarray | None:
        """An image `[H, W, 3]` (uint8) of a state, made on the host; None if there is none."""
        return None

    def reset_from_options(self, options: dict[str, Any]) -> tuple[PyTree, Array] | None:
        """The start of an episode that Gymnasium's `reset(options=...)` asks for; None: a random one."""
        return None


class JaxWrapper(JaxEnv):
    """The environment `inner`, of which subclasses change something. All else is passed on."""

    inner: JaxEnv

    @property
    def reports_success(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.reports_success

    @property
    def mask(self) -> ActionMask | None:
        return self.inner.mask

    @property
    def limited(self) -> JaxEnv:
        """The inner environment with the time limit of this one."""
        return dataclasses.replace(self.inner, time_limit=self.time_limit)

    @property
    def observation_space(self) -> spaces.Box:
        return self.inner.observation_space

    @property
    def action_space(self) -> ActionSpace:
        return self.inner.action_space

    @property
    def action_table(self) -> Float[np.ndarray, "N d"] | None:
        return self.inner.action_table

    @property
    def actor_size(self) -> int | None:
        return self.inner.actor_size

    def reset(self, key: Key) -> tuple[PyTree, Float[Array, " S"]]:
        return self.inner.reset(key)

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, Outcome]:
        return self.limited.step(state, action, key)

    def draw(self, state: PyTree) -> np.ndarray | None:
        return self.inner.draw(state)

    def reset_from_options(self, options: dict[str, Any]) -> tuple[PyTree, Array] | None:
        return self.inner.reset_from_options(options)


def reset_all(env: JaxEnv, keys: Key) -> tuple[PyTree, Float[Array, "E S"]]:
    """Start an episode in each of E environments, one for each key.

    Raises:
        RunError: the environment's code raised an error while it was traced. UsageError: it returned
            something else than `JaxEnv` says.
    """
    state, observation = _trace(env, "reset", "(state, observation)", jax.vmap(env.reset), keys)
    _check_rows(env, "reset", {"observation": observation})
    # A literal such as 0 in a new state would need a program of its own: after a step its type is another.
    return jax.tree.map(_strong, state), _strong(observation)


def step_all(env: JaxEnv, state: PyTree, action: Array, keys: Key) -> tuple[PyTree, Outcome]:
    """Step E environments; the counterpart of `reset_all`, with its errors.

    In a terminal state no action is taken, so all of them count as valid if the environment allows none.
    """
    state, outcome = _trace(env, "step", "(state, Outcome)", jax.vmap(env.step), state, action, keys)
    if not isinstance(outcome, Outcome):
        raise WrongEnv(f"{type(env).__name__}.step must return (state, Outcome).")
    _check_rows(env, "step", outcome._asdict())
    if (mask := env.mask) is None:
        return state, outcome
    seen, words = outcome.observation[:, : -mask.width], outcome.observation[:, -mask.width :]
    over = outcome.terminated[:, None] & jnp.isnan(words).any(-1, keepdims=True)
    words = jnp.where(over, mask.pack(np.ones(mask.actions, bool)), words)
    return state, outcome._replace(observation=jnp.concatenate([seen, words], -1))


def _check_rows(env: JaxEnv, method: str, made: dict[str, Any]) -> None:
    """Raise UsageError if an array [E, ...] that a method made is not of the form that `Outcome` says."""
    name, shape = type(env).__name__, env.observation_space.shape
    if len(shape) != 1:
        raise WrongEnv(
            f"{name}: environments in JAX show vectors, and its observation_space has the shape {shape}: "
            "flatten its observations."
        )
    size = shape[0] + (0 if env.mask is None else env.mask.width)
    for field, rows in made.items():
        wanted = [size] if field == "observation" else []
        is_flag = field in ("terminated", "truncated", "success")
        if rows is None or [*rows.shape[1:]] != wanted or (is_flag and rows.dtype != bool):
            found = rows if rows is None else f"{rows.dtype}{[*rows.shape[1:]]}"
            right = f"{'bool' if is_flag else 'float32'}{wanted}"
            raise WrongEnv(f"{name}.{method}: {field} is {found}; it must be {right}.")


def _strong(x: Array) -> Array:
    """An array whose type is its own, and not that of a Python number."""
    return jax.lax.convert_element_type(x, x.dtype) if getattr(x, "weak_type", False) else x


def step_key(episode: Key, step: Array) -> Key:
    """The key of a step, counted from 1, of an episode whose `reset` had the key `episode`.

    It is below a stream of its own: a `reset` that splits its key would otherwise use keys of first steps.
    """
    return jax.random.fold_in(stream(episode, "step"), step)


def _trace(env: JaxEnv, name: str, wanted: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """The two things that a method of the environment returns; `wanted` names them."""
    try:
        made = call(*arguments)
    except QscapeError:
        raise
    except Exception as problem:
        why = f"{type(problem).__name__}: {one_line(str(problem).partition(chr(10))[0])}"
        raise BrokenEnv(f"{type(env).__name__}.{name} broke while JAX traced it ({why}).") from problem
    if not (isinstance(made, tuple) and len(made) == 2):
        raise WrongEnv(f"{type(env).__name__}.{name} must return {wanted}.")
    return made


def step_autoreset(
    env: JaxEnv, state: PyTree, action: Array, key: Key
) -> tuple[PyTree, Float[Array, " S"], Outcome]:
    """One step, and a reset if it ended the episode (Gymnasium's same-step autoreset).

    Returns:
        The new state, the observation to act on next, and the step's outcome with the true successor.
    """
    key_step, key_reset = jax.random.split(key)
    after, outcome = env.step(state, action, key_step)
    done = outcome.terminated | outcome.truncated
    new = env.reset(key_reset)
    state, observation = jax.tree.map(partial(jnp.where, done), new, (after, outcome.observation))
    return state, observation, outcome


class Episodes(NamedTuple):
    """Results of n episodes.

    Attributes:
        ret: undiscounted return.
        length: number of steps.
        success: did any step report success?
    """

    ret: Float[Array, " n"]
    length: Int[Array, " n"]
    success: Bool[Array, " n"]


@eqx.filter_jit
def play(env: JaxEnv, policy: Callable[[PyTree, Array, Key], Array], key: Key, episodes: int) -> Episodes:
    """Play whole episodes side by side, to evaluate a scripted policy (agents: `run.episodes`).

    Args:
        env: the environment.
        policy: (state, observation [S], key) -> action, for one environment; it may use the state.
        key: makes all random numbers.
        episodes: how many; static.
    """

    def play_one(key: Key) -> Episodes:
        state, observation = env.reset(jax.random.fold_in(key, 0))
        start = Episodes(jnp.float32(0), jnp.int32(0), jnp.bool_(False))

        def step(carry: tuple, t: Array) -> tuple[tuple, None]:
            state, observation, alive, played = carry
            key_act, key_step = jax.random.split(jax.random.fold_in(key, t))
            state, outcome = env.step(state, policy(state, observation, key_act), key_step)
            played = Episodes(
                played.ret + jnp.where(alive, outcome.reward, 0),
                played.length + alive,
                played.success | (alive & outcome.success),
            )
            alive &= ~(outcome.terminated | outcome.truncated)
            return (state, outcome.observation, alive, played), None

        carry = (state, observation, jnp.bool_(True), start)
        (*_, played), _ = jax.lax.scan(step, carry, jnp.arange(1, env.time_limit + 1))
        return played

    return jax.vmap(play_one)(jax.random.split(key, episodes))


def find_jax_env(env: gym.Env | VectorEnv) -> JaxEnv | None:
    """The `JaxEnv` that does what a Gymnasium environment does, with the latter's time limit.

    None if there is none: the environment is no `GymnasiumEnv`, one of its wrappers may change what it does,
    or the copies of a vector environment differ.
    """
    if type(env) is SyncVectorEnv:
        first, *others = map(find_jax_env, env.envs)
        return first if all(_is_same(first, other) for other in others) else None
    limits = []
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, TimeLimit | OrderEnforcing | PassiveEnvChecker):
            return None
        limits += [env._max_episode_steps] if isinstance(env, TimeLimit) else []
        env = env.env
    if not isinstance(env, GymnasiumEnv):
        return None
    if (type(env).reset, type(env).step) != (GymnasiumEnv.reset, GymnasiumEnv.step):
        return None
    limit = min(limits, default=env.native.time_limit)
    return env.native if limit == env.native.time_limit else dataclasses.replace(env.native, time_limit=limit)


def with_time_limit(env: Any) -> Any:
    """A Gymnasium environment whose episodes end where those of its `JaxEnv` do, if it is made of one.

    `GymnasiumEnv` truncates nothing, so one without a `TimeLimit` gets that of the `JaxEnv`; the copies of a
    `SyncVectorEnv` get theirs in place.
    """
    if type(env) is SyncVectorEnv:
        env.envs = [with_time_limit(one) for one in env.envs]
        return env
    native = find_jax_env(env)
    if native is None or env.has_wrapper_attr("_max_episode_steps"):
        return env
    return TimeLimit(env, native.time_limit)


def _is_same(one: JaxEnv | None, other: JaxEnv | None) -> bool:
    """Are both the same environment with the same tables?"""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    tables = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a is b or np.array_equal(a, b) for a, b in tables)


@jax.jit
def _reset(native: JaxEnv, seed: Array) -> tuple[PyTree, Array]:
    """`native.reset` with a key made of the episode's seed."""
    return native.reset(jax.random.key(seed))


@jax.jit
def _step(native: JaxEnv, state: PyTree, action: Array, seed: Array, step: Array) -> tuple[PyTree, Outcome]:
    return native.step(state, action, step_key(jax.random.key(seed), step))


class NoRenderMode(UsageError, TypeError):
    """A render mode that an environment lacks; a TypeError, after which other libraries try without one."""


class GymnasiumEnv(gym.Env):
    """A Gymnasium environment made of a `JaxEnv`.

    Gymnasium's `TimeLimit` truncates episodes; `with_time_limit` adds one where there is none. All state is
    numpy arrays and plain numbers, so snapshots are exact. Snapshots store the attributes under these names.

    Attributes:
        native: the `JaxEnv`.
        state: its state, as numpy arrays; None before the first reset.
        episode_seed: seed of the current episode's random numbers.
        steps: steps of the current episode.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, native: JaxEnv, render_mode: str | None = None):
        if render_mode not in (None, *self.metadata["render_modes"]):
            known = ", ".join(self.metadata["render_modes"]) or "none"
            raise NoRenderMode(f"{type(self).__name__} has no render_mode {render_mode!r}: it has {known}")
        self.native, self.render_mode = native, render_mode
        self.observation_space, self.action_space = native.observation_space, native.action_space
        self.state: Any = None
        self.episode_seed = np.uint32(0)
        self.steps = 0

    @property
    def action_table(self) -> Float[np.ndarray, "N d"] | None:
        """A vector for each action of a large discrete set; None if the set is small or continuous."""
        return self.native.action_table

    @property
    def actor_size(self) -> int | None:
        """How many entries of an observation actors see; None: all."""
        return self.native.actor_size

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.episode_seed, self.steps = self.np_random.integers(2**32, dtype=np.uint32), 0
        start = self.native.reset_from_options(options or {}) or _reset(self.native, self.episode_seed)
        self.state, observation = jax.tree.map(np.asarray, start)
        return self._split_mask(observation)

    def step(self, action: Any):
        self.steps += 1
        result = _step(self.native, self.state, np.asarray(action), self.episode_seed, np.uint32(self.steps))
        self.state, outcome = jax.tree.map(np.asarray, result)
        observation, info = self._split_mask(outcome.observation)
        info |= {"success": bool(outcome.success)} if self.native.reports_success else {}
        return observation, float(outcome.reward), bool(outcome.terminated), False, info

    def _split_mask(self, row: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """What networks see of an observation, and an info with the valid actions if there is a mask."""
        mask = self.native.mask
        if mask is None:
            return row, {}
        words = row[-mask.width :]
        valid = (
            np.zeros(mask.actions, bool)
            if np.isnan(words).any()
            else np.asarray(mask.unpack(jnp.asarray(words)))
        )
        return row[: -mask.width], {"action_mask": valid}

    def render(self) -> np.ndarray | None:
        return self.native.draw(self.state) if self.render_mode == "rgb_array" else None
