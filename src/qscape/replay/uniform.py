"""Uniform replay: every transition in memory is drawn with the same probability."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qscape.replay import storage
from qscape.replay.storage import Layout, ReplayState, Rows, Storage
from qscape.types import Event, Key, Part

ROUNDS = 64


@dataclasses.dataclass(frozen=True)
class Uniform(Part):
    """Replay as in DQN, TD3 and SAC: with replacement, uniform over all transitions in memory."""

    name: ClassVar[str] = "uniform"
    socket: ClassVar[str] = "replay"

    def init(self, layout: Layout) -> tuple[Storage, ReplayState]:
        return storage.create(layout), self.init_state(layout)

    def init_state(self, layout: Layout) -> ReplayState:
        """That of an empty memory."""
        return storage.create_state(layout)

    def insert(
        self, layout: Layout, rows: Storage, replay_state: ReplayState, new: Rows, mask: Bool[Array, " E"]
    ) -> tuple[Storage, ReplayState]:
        return storage.insert(layout, rows, replay_state, new, mask)

    def sample(
        self, layout: Layout, rows: Storage, replay_state: ReplayState, key: Key, batch_size: int
    ) -> Int[Array, " B"]:
        return draw(layout, rows, replay_state, key, batch_size)

    def update(
        self, replay_state: ReplayState, i: Int[Array, " B"], td_error: Float[Array, "B critics"]
    ) -> ReplayState:
        return replay_state

    def post_update(self, replay_state: ReplayState, event: Event) -> ReplayState:
        return replay_state


def draw(layout: Layout, rows: Storage, replay_state: ReplayState, key: Key, n: int) -> Int[Array, " n"]:
    """n rows with replacement, uniform over the valid rows of all rings.

    Where the next observation is derived, rows in use that are no transitions are drawn again. They are
    1 in L + 1 for episodes of length L, so that mostly one or two rounds do; that more than 64 would be
    needed has a probability below 2^-64 for each draw.
    """
    if layout.stores_next:
        return _rows_in_use(layout, replay_state, key, n)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        count, _, valid = carry
        return (count < ROUNDS) & ~jnp.all(valid)

    def draw_again(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, i, valid = carry
        i = jnp.where(valid, i, _rows_in_use(layout, replay_state, jax.random.fold_in(key, count), n))
        return count + 1, i, storage.take(rows, i, layout.slices["valid"])[:, 0] > 0

    start = jnp.zeros((), jnp.int32), jnp.zeros(n, jnp.int32), jnp.zeros(n, bool)
    return jax.lax.while_loop(unfinished, draw_again, start)[1]


def _rows_in_use(layout: Layout, replay_state: ReplayState, key: Key, n: int) -> Array:
    if layout.envs == 1:
        return jax.random.randint(key, (n,), 0, replay_state.size[0], jnp.int32)
    ends = jnp.cumsum(replay_state.size, dtype=jnp.int32)
    u = jax.random.randint(key, (n,), 0, ends[-1], jnp.int32)
    ring = jnp.searchsorted(ends, u, side="right").astype(jnp.int32)
    return ring * layout.ring + u - (ends - replay_state.size)[ring]
