"""Uniform replay: every transition in memory is drawn with the same probability."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qscape.replay import memory
from qscape.replay.memory import Index, Layout, Memory, Rows
from qscape.types import Event, Key, Piece

ROUNDS = 64


@dataclasses.dataclass(frozen=True)
class Uniform(Piece):
    """Replay as in DQN, TD3 and SAC: with replacement, uniform over all transitions in memory."""

    name: ClassVar[str] = "uniform"
    socket: ClassVar[str] = "replay"

    def init(self, layout: Layout) -> tuple[Memory, Index]:
        return memory.create(layout), self.index(layout)

    def index(self, layout: Layout) -> Index:
        """That of an empty memory."""
        return memory.create_index(layout)

    def insert(
        self, layout: Layout, rows: Memory, index: Index, new: Rows, mask: Bool[Array, " E"]
    ) -> tuple[Memory, Index]:
        return memory.insert(layout, rows, index, new, mask)

    def sample(
        self, layout: Layout, rows: Memory, index: Index, key: Key, batch_size: int
    ) -> Int[Array, " B"]:
        return draw(layout, rows, index, key, batch_size)

    def update(self, index: Index, i: Int[Array, " B"], td_error: Float[Array, "B critics"]) -> Index:
        return index

    def after(self, index: Index, event: Event) -> Index:
        return index


def draw(layout: Layout, rows: Memory, index: Index, key: Key, n: int) -> Int[Array, " n"]:
    """n rows with replacement, uniform over the valid rows of all rings.

    Where the next observation is derived, rows in use that are no transitions are drawn again. They are
    1 in L + 1 for episodes of length L, so that mostly one or two rounds do; that more than 64 would be
    needed has a probability below 2^-64 for each draw.
    """
    if layout.stores_next:
        return _rows_in_use(layout, index, key, n)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        count, _, valid = carry
        return (count < ROUNDS) & ~jnp.all(valid)

    def draw_again(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, i, valid = carry
        i = jnp.where(valid, i, _rows_in_use(layout, index, jax.random.fold_in(key, count), n))
        return count + 1, i, memory.take(rows, i, layout.slices["valid"])[:, 0] > 0

    start = jnp.zeros((), jnp.int32), jnp.zeros(n, jnp.int32), jnp.zeros(n, bool)
    return jax.lax.while_loop(unfinished, draw_again, start)[1]


def _rows_in_use(layout: Layout, index: Index, key: Key, n: int) -> Array:
    if layout.envs == 1:
        return jax.random.randint(key, (n,), 0, index.size[0], jnp.int32)
    ends = jnp.cumsum(index.size, dtype=jnp.int32)
    u = jax.random.randint(key, (n,), 0, ends[-1], jnp.int32)
    ring = jnp.searchsorted(ends, u, side="right").astype(jnp.int32)
    return ring * layout.ring + u - (ends - index.size)[ring]
