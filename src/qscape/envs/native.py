"""Environments as pure JAX functions, and the Gymnasium face of one.

The protocol, for one environment; `vmap` makes many of it:

    state, observation = env.reset(key)
    state, outcome = env.step(state, action, key)

`env` is a `Native`: a pytree whose leaves are its tables, so pass it to a compiled function as an argument
(closed over, a table of 500,000 items would become a constant of the program). `state` is a NamedTuple of
arrays. `outcome` is an `Outcome`; its observation is the true successor. `action` is an index where
`env.action_space` is Discrete. An ended episode is not begun again by `step`; two helpers do what loops want:

    state, observation, outcome = step_autoreset(env, state, action, key)  # inside scan
    played = play(env, policy, key, episodes)  # whole episodes, to evaluate

`native_of(gym_env)` finds the pure functions behind a Gymnasium environment.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int, PyTree

from qscape.errors import UsageError
from qscape.types import Key


class Outcome(NamedTuple):
    """What one step answered.

    Attributes:
        observation: the true successor, also where the episode ended.
        terminated: a real end; the bootstrap is cut.
        truncated: the time limit; the bootstrap is not cut. Both may be true, as in Gymnasium.
        success: did this step reach the goal? Always False where `reports_success` is.
    """

    observation: Float[Array, " S"]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    success: Bool[Array, ""]


class Native(eqx.Module):
    """A JAX-native environment: what subclasses fill in."""

    reports_success: ClassVar[bool] = False
    time_limit: int = eqx.field(static=True, kw_only=True)  # steps after which an episode is truncated

    @property
    def observation_space(self) -> spaces.Box:
        raise NotImplementedError

    @property
    def action_space(self) -> spaces.Discrete | spaces.Box:
        raise NotImplementedError

    @property
    def action_table(self) -> Float[np.ndarray, "N d"] | None:
        """The representation of every action of a large discrete set."""
        return None

    def reset(self, key: Key) -> tuple[PyTree, Float[Array, " S"]]:
        """A new episode."""
        raise NotImplementedError

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, Outcome]:
        """One step of an episode."""
        raise NotImplementedError

    def draw(self, state: PyTree) -> np.ndarray | None:
        """The picture `[H, W, 3]` (uint8) of a state, on the host; None where there is nothing to see."""
        return None

    def begin(self, options: dict[str, Any]) -> tuple[PyTree, Array] | None:
        """An episode that `reset(options=...)` of the face asks for; None: a random one."""
        return None


def step_autoreset(
    env: Native, state: PyTree, action: Array, key: Key
) -> tuple[PyTree, Float[Array, " S"], Outcome]:
    """One step, and a new episode where it ended the old one (Gymnasium's same-step autoreset).

    Returns:
        The state and the observation to act on next, and the outcome of the step (with the true successor).
    """
    key_step, key_reset = jax.random.split(key)
    after, outcome = env.step(state, action, key_step)
    over = outcome.terminated | outcome.truncated
    new = env.reset(key_reset)
    state, observation = jax.tree.map(partial(jnp.where, over), new, (after, outcome.observation))
    return state, observation, outcome


class Played(NamedTuple):
    """Episodes that `play` played, a row each."""

    ret: Float[Array, " n"]  # undiscounted
    length: Int[Array, " n"]
    success: Bool[Array, " n"]  # did one step report it?


@eqx.filter_jit
def play(env: Native, policy: Callable[[PyTree, Array, Key], Array], key: Key, episodes: int) -> Played:
    """Plays `episodes` whole episodes side by side.

    Args:
        policy: (state, observation [S], key) -> action, for one environment. A policy that learns ignores the
            state; a scripted one may look at it.
    """

    def one(key: Key) -> Played:
        state, observation = env.reset(jax.random.fold_in(key, 0))
        begun = Played(jnp.float32(0), jnp.int32(0), jnp.bool_(False))

        def step(carry: tuple, t: Array) -> tuple[tuple, None]:
            state, observation, alive, played = carry
            key_act, key_step = jax.random.split(jax.random.fold_in(key, t))
            state, outcome = env.step(state, policy(state, observation, key_act), key_step)
            played = Played(
                played.ret + jnp.where(alive, outcome.reward, 0),
                played.length + alive,
                played.success | (alive & outcome.success),
            )
            alive &= ~(outcome.terminated | outcome.truncated)
            return (state, outcome.observation, alive, played), None

        carry = (state, observation, jnp.bool_(True), begun)
        (*_, played), _ = jax.lax.scan(step, carry, jnp.arange(1, env.time_limit + 1))
        return played

    return jax.vmap(one)(jax.random.split(key, episodes))


def native_of(env: gym.Env) -> Native | None:
    """The pure functions behind a Gymnasium environment, with its time limit; None where there are none."""
    face = env.unwrapped
    if not isinstance(face, Face):
        return None
    limit = env.spec.max_episode_steps if env.spec is not None else None
    return face.native if limit is None else dataclasses.replace(face.native, time_limit=limit)


@jax.jit
def _begin(native: Native, seed: Array) -> tuple[PyTree, Array]:
    return native.reset(jax.random.key(seed))


@jax.jit
def _advance(
    native: Native, state: PyTree, action: Array, seed: Array, step: Array
) -> tuple[PyTree, Outcome]:
    return native.step(state, action, jax.random.fold_in(jax.random.key(seed), step))


class Face(gym.Env):
    """A `Native` as a Gymnasium environment.

    Time limits are left to Gymnasium's `TimeLimit`, as everywhere (`max_episode_steps`). All it remembers is
    numpy and plain numbers, so a snapshot is exact: what the episode's key is made of, the steps, the state.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, native: Native, render_mode: str | None = None):
        if render_mode not in (None, *self.metadata["render_modes"]):
            known = ", ".join(self.metadata["render_modes"]) or "none"
            raise UsageError(f"{type(self).__name__} has no render_mode {render_mode!r}: it has {known}")
        self.native, self.render_mode = native, render_mode
        self.observation_space, self.action_space = native.observation_space, native.action_space
        self.state: Any = None
        self.episode_seed = np.uint32(0)
        self.steps = 0

    @property
    def action_table(self) -> Float[np.ndarray, "N d"] | None:
        """The representation of every action of a large discrete set; None where the set is small."""
        return self.native.action_table

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.episode_seed, self.steps = self.np_random.integers(2**32, dtype=np.uint32), 0
        begun = self.native.begin(options or {}) or _begin(self.native, self.episode_seed)
        self.state, observation = jax.tree.map(np.asarray, begun)
        return observation, {}

    def step(self, action: Any):
        self.steps += 1
        done = _advance(self.native, self.state, np.asarray(action), self.episode_seed, np.uint32(self.steps))
        self.state, outcome = jax.tree.map(np.asarray, done)
        info = {"success": bool(outcome.success)} if self.native.reports_success else {}
        return outcome.observation, float(outcome.reward), bool(outcome.terminated), False, info

    def render(self) -> np.ndarray | None:
        return self.native.draw(self.state) if self.render_mode == "rgb_array" else None
