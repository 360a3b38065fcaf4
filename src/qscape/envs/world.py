"""E copies of a `JaxEnv` side by side, as training inside one compiled program steps them."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from qscape.envs.native import JaxEnv, Outcome, step_autoreset
from qscape.types import Key, Scalar, stream


class World(NamedTuple):
    """The state of E environments and of their current episodes.

    Attributes:
        state: the environments' states, with a leading axis E.
        observation: what the agent acts on next.
        ret: undiscounted return of the current episode so far.
        length: steps of the current episode so far; 0 if the next action starts it.
    """

    state: PyTree
    observation: Float[Array, "E S"]
    ret: Float[Array, " E"]
    length: Int[Array, " E"]


class EpisodeEnds(NamedTuple):
    """Which episodes ended in a step (or in T steps), and their statistics.

    Attributes:
        done: did the episode end in this step?
        ret: undiscounted return of the episode up to this step.
        length: steps of the episode up to this step.
    """

    done: Bool[Array, "*T E"]
    ret: Float[Array, "*T E"]
    length: Int[Array, "*T E"]

    def num_episodes(self) -> Int[Array, ""]:
        """The number of episodes that ended."""
        return self.done.sum()

    def mean_return(self) -> Scalar:
        """Mean return of the episodes that ended; NaN if none did."""
        return jnp.where(self.done, self.ret, 0.0).sum() / self.num_episodes()


def reset_world(env: JaxEnv, envs: int, key: Key) -> World:
    """Start an episode in each of `envs` environments."""
    state, observation = jax.vmap(env.reset)(jax.random.split(key, envs))
    return World(state, observation, jnp.zeros(envs), jnp.zeros(envs, jnp.int32))


def step_world(
    env: JaxEnv, world: World, action: Array, env_steps: Int[Array, ""], key: Key
) -> tuple[World, Outcome, EpisodeEnds]:
    """Step E environments; those whose episode ended start a new one (same-step autoreset).

    Args:
        env: the environment.
        world: the state of its E copies.
        action: `[E, ...]`, in the environment's units.
        env_steps: environment steps made so far; folded into the key.
        key: the run's key, which never changes.

    Returns:
        The new world, the outcomes (with the true successors), and which episodes ended.
    """
    keys = jax.random.split(stream(jax.random.fold_in(key, env_steps), "world.step"), len(world.length))
    state, observation, outcome = jax.vmap(partial(step_autoreset, env))(world.state, action, keys)
    done = outcome.terminated | outcome.truncated
    ended = EpisodeEnds(done, world.ret + outcome.reward, world.length + 1)
    world = World(state, observation, jnp.where(done, 0.0, ended.ret), jnp.where(done, 0, ended.length))
    return world, outcome, ended
