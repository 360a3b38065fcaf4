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
    layout: Layout,
    rows: Storage,
    replay_state: ReplayState,
    key: Key,
    n: int,
    newest: Int[Array, ""] | None = None,
) -> Int[Array, " n"]:
    """Draw n rows with replacement, uniformly from the valid rows of all rings.

    Args:
        newest: draw from the last so many rows of every ring only, at least one; None: from all.

    If next observations are derived, draws that hit a pad or the head of a ring are repeated. These are 1 in
    L + 1 rows for episodes of length L, so that one or two rounds are usual; the probability that a draw
    needs more than 64 is below 2^-64.
    """
    if layout.stores_next:
        return _sample_rows_in_use(layout, replay_state, key, n, newest)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        count, _, valid = carry
        return (count < ROUNDS) & ~jnp.all(valid)

    def draw_again(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, i, valid = carry
        drawn = _sample_rows_in_use(layout, replay_state, jax.random.fold_in(key, count), n, newest)
        i = jnp.where(valid, i, drawn)
        return count + 1, i, storage.take_numbers(rows, i, layout.slices["valid"])[:, 0] > 0

    start = jnp.zeros((), jnp.int32), jnp.zeros(n, jnp.int32), jnp.zeros(n, bool)
    return jax.lax.while_loop(unfinished, draw_again, start)[1]


def _sample_rows_in_use(
    layout: Layout, replay_state: ReplayState, key: Key, n: int, newest: Int[Array, ""] | None
) -> Array:
    size = replay_state.size
    if newest is not None:
        size = jnp.minimum(size, jnp.maximum(newest, 1))
    if layout.envs == 1:
        u = jax.random.randint(key, (n,), 0, size[0], jnp.int32)
        return u if newest is None else (replay_state.position[0] - 1 - u) % layout.ring
    ends = jnp.cumsum(size, dtype=jnp.int32)
    u = jax.random.randint(key, (n,), 0, ends[-1], jnp.int32)
    ring = jnp.searchsorted(ends, u, side="right").astype(jnp.int32)
    place = u - (ends - size)[ring]
    if newest is not None:
        place = (replay_state.position[ring] - 1 - place) % layout.ring
    return ring * layout.ring + place
