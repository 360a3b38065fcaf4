"""E copies of a JAX-native environment side by side, as training inside one compiled program steps them."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from qscape.envs.native import Native, Outcome, step_autoreset
from qscape.types import Key, Scalar, stream


class World(NamedTuple):
    """E environments: their states, what is acted on next, and their episodes so far."""

    state: PyTree
    observation: Float[Array, "E S"]
    ret: Float[Array, " E"]
    length: Int[Array, " E"]


class Ended(NamedTuple):
    """The episodes that ended; where `over` is False, the one that goes on."""

    over: Bool[Array, "*T E"]
    ret: Float[Array, "*T E"]
    length: Int[Array, "*T E"]

    def number(self) -> Int[Array, ""]:
        """How many these are."""
        return self.over.sum()

    def mean(self) -> Scalar:
        """Their mean return; NaN where none ended."""
        return jnp.where(self.over, self.ret, 0.0).sum() / self.number()


def begin(env: Native, envs: int, key: Key) -> World:
    """New episodes in E environments."""
    state, observation = jax.vmap(env.reset)(jax.random.split(key, envs))
    return World(state, observation, jnp.zeros(envs), jnp.zeros(envs, jnp.int32))


def advance(
    env: Native, world: World, action: Array, env_steps: Int[Array, ""], key: Key
) -> tuple[World, Outcome, Ended]:
    """One step of each, and a new episode where it ended the old one.

    Args:
        action: [E, ...], as the environment takes it.
        env_steps: made so far; the step's random numbers are made of it.
        key: the run's key.
    """
    keys = jax.random.split(stream(jax.random.fold_in(key, env_steps), "world.step"), len(world.length))
    state, observation, outcome = jax.vmap(partial(step_autoreset, env))(world.state, action, keys)
    over = outcome.terminated | outcome.truncated
    ended = Ended(over, world.ret + outcome.reward, world.length + 1)
    world = World(state, observation, jnp.where(over, 0.0, ended.ret), jnp.where(over, 0, ended.length))
    return world, outcome, ended
