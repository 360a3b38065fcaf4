"""Uniform replay: every stored transition is sampled with the same probability."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from qscape.replay import storage
from qscape.replay.base import Replay
from qscape.replay.storage import Layout, ReplayState, Storage
from qscape.types import Key

ROUNDS = 64


@dataclasses.dataclass(frozen=True)
class Uniform(Replay):
    """Samples uniformly and with replacement from all stored transitions (DQN, TD3, SAC)."""

    name: ClassVar[str] = "uniform"

    def sample(
        self, layout: Layout, rows: Storage, replay_state: ReplayState, key: Key, batch_size: int
    ) -> Int[Array, " B"]:
        return sample_uniformly(layout, rows, replay_state, key, batch_size)


def sample_uniformly(
    layout: Layout, rows: Storage, replay_state: ReplayState, key: Key, n: int
) -> Int[Array, " n"]:
    """Draws n rows with replacement, uniformly from the valid rows of all rings.

    If next observations are derived, draws that hit a pad or the head of a ring are repeated. These are 1 in
    L + 1 rows for episodes of length L, so that one or two rounds are usual; the probability that a draw
    needs more than 64 is below 2^-64.
    """
    if layout.stores_next:
        return _sample_rows_in_use(layout, replay_state, key, n)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        count, _, valid = carry
        return (count < ROUNDS) & ~jnp.all(valid)

    def draw_again(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, i, valid = carry
        i = jnp.where(valid, i, _sample_rows_in_use(layout, replay_state, jax.random.fold_in(key, count), n))
        return count + 1, i, storage.take_numbers(rows, i, layout.slices["valid"])[:, 0] > 0

    start = jnp.zeros((), jnp.int32), jnp.zeros(n, jnp.int32), jnp.zeros(n, bool)
    return jax.lax.while_loop(unfinished, draw_again, start)[1]


def _sample_rows_in_use(layout: Layout, replay_state: ReplayState, key: Key, n: int) -> Array:
    if layout.envs == 1:
        return jax.random.randint(key, (n,), 0, replay_state.size[0], jnp.int32)
    ends = jnp.cumsum(replay_state.size, dtype=jnp.int32)
    u = jax.random.randint(key, (n,), 0, ends[-1], jnp.int32)
    ring = jnp.searchsorted(ends, u, side="right").astype(jnp.int32)
    return ring * layout.ring + u - (ends - replay_state.size)[ring]
