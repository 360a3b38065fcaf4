"""Start states that are computed once, for environments whose reset costs more than many steps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, PyTree

from qscape.envs.native import JaxEnv, Outcome
from qscape.errors import UsageError
from qscape.types import Key

CHUNK, SEED = 64, 0  # resets side by side; seed of the starts, in training as in evaluation


class StartPool(JaxEnv):
    """The environment `inner`, whose episodes begin in one of N start states.

    Auto-reset inside a compiled program computes a reset in every step, because all branches are computed
    under `vmap`. Here a reset reads a row of a table.

    Attributes:
        inner: the environment.
        states: N states after a reset; every leaf leads with N.
        observations: the first observations.
    """

    inner: JaxEnv
    states: PyTree
    observations: Float[Array, "N S"]

    @property
    def reports_success(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.reports_success

    @property
    def observation_space(self) -> spaces.Box:
        return self.inner.observation_space

    @property
    def action_space(self) -> spaces.Discrete | spaces.Box:
        return self.inner.action_space

    @property
    def action_table(self) -> Float[np.ndarray, "N d"] | None:
        return self.inner.action_table

    @property
    def actor_size(self) -> int | None:
        return self.inner.actor_size

    def reset(self, key: Key) -> tuple[PyTree, Float[Array, " S"]]:
        """One of the starts. Random numbers that its state would draw later are drawn anew."""
        key_row, key_state = jax.random.split(key)
        row = jax.random.randint(key_row, (), 0, len(self.observations))
        state = jax.tree.map(lambda leaf: leaf[row], self.states)
        renew = getattr(self.inner, "renew", None)
        return renew(state, key_state) if renew else state, self.observations[row]

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, Outcome]:
        """A step of the inner environment, with the time limit of this one."""
        return dataclasses.replace(self.inner, time_limit=self.time_limit).step(state, action, key)

    def draw(self, state: PyTree) -> np.ndarray | None:
        return self.inner.draw(state)

    def reset_from_options(self, options: dict[str, Any]) -> tuple[PyTree, Array] | None:
        return self.inner.reset_from_options(options)


def make_pool(env: JaxEnv, size: int) -> StartPool:
    """Compute the starts, `CHUNK` at a time.

    Args:
        env: the environment.
        size: N, how many starts.

    Raises:
        UsageError: `size` is no number of 1 or more.
    """
    if not isinstance(size, int) or size < 1:
        raise UsageError(f"start_pool is {size!r}: it has to be 1 or more", field="env_args")
    chunk = min(size, CHUNK)
    keys = jax.random.split(jax.random.key(SEED), (-(-size // chunk), chunk))
    reset = jax.jit(lambda env, keys: jax.vmap(env.reset)(keys))
    chunks = [reset(env, row) for row in keys]
    states, observations = jax.tree.map(lambda *parts: jnp.concatenate(parts)[:size], *chunks)
    return StartPool(inner=env, states=states, observations=observations, time_limit=env.time_limit)
