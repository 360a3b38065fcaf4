"""Start states that are computed once, for environments whose reset costs more than many steps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.envs.native import JaxEnv, JaxWrapper, reset_all
from qscape.errors import OutOfRange
from qscape.types import Key

CHUNK, SEED = 64, 0  # resets side by side; seed of the starts, in training as in evaluation


class StartPool(JaxWrapper):
    """The environment `inner`, whose episodes begin in one of N start states.

    Auto-reset inside a compiled program computes a reset of all environments in every step in which an
    episode ends. Here a reset reads a row of a table.

    Attributes:
        inner: the environment.
        states: N states after a reset; every leaf leads with N.
        observations: the first observations.
    """

    states: PyTree
    observations: Float[Array, "N S"]

    def reset(self, key: Key) -> tuple[PyTree, Float[Array, " S"]]:
        """One of the starts. Random numbers that its state would draw later are drawn anew."""
        key_row, key_state = jax.random.split(key)
        row = jax.random.randint(key_row, (), 0, len(self.observations))
        state = jax.tree.map(lambda leaf: leaf[row], self.states)
        renew = getattr(self.inner, "renew", None)
        return renew(state, key_state) if renew else state, self.observations[row]


def make_pool(env: JaxEnv, size: int) -> StartPool:
    """Compute the starts, `CHUNK` at a time.

    Args:
        env: the environment.
        size: N, how many starts.

    Raises:
        UsageError: `size` is no number of 1 or more.
    """
    if not isinstance(size, int) or size < 1:
        raise OutOfRange(f"start_pool is {size!r}: it has to be 1 or more", field="env_args")
    chunk = min(size, CHUNK)
    keys = jax.random.split(jax.random.key(SEED), (-(-size // chunk), chunk))
    reset = jax.jit(reset_all)
    chunks = [reset(env, row) for row in keys]
    states, observations = jax.tree.map(lambda *parts: jnp.concatenate(parts)[:size], *chunks)
    return StartPool(inner=env, states=states, observations=observations, time_limit=env.time_limit)
