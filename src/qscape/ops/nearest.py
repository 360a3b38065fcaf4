"""Nearest rows of an action table: how a proposal in R^d becomes one of N actions (SAVO, arXiv 2410.11833).

The search maximises x·R_n − ½|R_n|², which has the order of −|R_n − x|² and is one matrix product. Where
the table is long, the product is made in chunks of rows; the option `clustered` looks only into the clusters
whose centres lie nearest (an inverted file) and may miss the nearest row.
"""

import dataclasses
from functools import cached_property, partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

CHUNK = 16_384  # rows of one product
QUERIES = 64  # of one product on a CPU, at most: its scores stay in the cache for the reductions
FEW = 8  # rows whose distances are taken by differences where products leave it open
ROUNDING = 8 * float(np.finfo(np.float32).eps)  # of a product, relative
EXACT = jax.lax.Precision.HIGHEST  # accelerators would otherwise round the factors


class Clusters(NamedTuple):
    """An inverted file: the table's rows in the order of their clusters.

    Attributes:
        centres: of the K clusters.
        rows, half: the sorted rows and ½|R_n|²; `longest` rows of padding follow, which never win.
        order: where each sorted row stands in the table; rows of a cluster keep the table's order.
        starts, sizes: of each cluster in the sorted rows.
        longest: the greatest size.
    """

    centres: Float[np.ndarray, "K d"]
    rows: Float[np.ndarray, "N d"]
    half: Float[np.ndarray, " N"]
    order: Int[np.ndarray, " N"]
    starts: Int[np.ndarray, " K"]
    sizes: Int[np.ndarray, " K"]
    longest: int


@dataclasses.dataclass(frozen=True, eq=False)
class ActionTable:
    """N actions as vectors, and the search among them. Holds numpy arrays: static under jit.

    Attributes:
        rows: the vectors, in [-1, 1].
        search: "exact" or "clustered".
        probes: clusters looked into where the search is clustered.
    """

    rows: Float[np.ndarray, "N d"]
    search: Literal["exact", "clustered"] = "exact"
    probes: int = 16

    @cached_property
    def half(self) -> Float[np.ndarray, " N"]:
        """½|R_n|² of every row."""
        return 0.5 * np.square(self.rows).sum(1)

    @cached_property
    def clusters(self) -> Clusters:
        """The inverted file; made once, always the same for the same table."""
        return clustered(self.rows)

    def nearest(self, x: Float[Array, "*b d"], k: int = 1) -> Int[Array, "*b k"]:
        """Indices of the k rows nearest to x, nearest first; of equals the lowest, if exact."""

        @jax.custom_batching.custom_vmap
        def search(x: Float[Array, "*b d"]) -> Int[Array, "*b k"]:
            queries = x.reshape(-1, x.shape[-1])
            if self.search == "exact":
                found = exact(self.rows, self.half, queries, k)
            else:
                found = probed(self.clusters, queries, k, min(self.probes, len(self.clusters.sizes)))
            return found.reshape(*x.shape[:-1], k)

        @search.def_vmap
        def _(_size: int, _batched: list[bool], x: Float[Array, "n *b d"]) -> tuple[Array, bool]:
            return search(x), True  # more queries of one search, whose `cond` stays a `cond`

        return search(x)

    def at(self, index: Int[Array, "*i"]) -> Float[Array, "*i d"]:
        """The rows of these indices."""
        return jnp.asarray(self.rows)[index]

    def snap(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The nearest row, to the bit; the gradient passes straight through to x."""
        still = jax.lax.stop_gradient(x)
        return self.at(self.nearest(still)[..., 0]) + (x - still)


def exact(
    rows: Float[np.ndarray, "N d"], half: Float[np.ndarray, " N"], x: Float[Array, "q d"], k: int
) -> Int[Array, "q k"]:
    """The k best rows by products with all of them, CHUNK rows at a time."""
    n, d = rows.shape
    chunk = min(CHUNK, n)
    count = -(-n // chunk)
    if count == 1:
        return _found(jnp.asarray(rows), half, x, k)[1]
    rest = count * chunk - n
    padded = np.pad(rows, ((0, rest), (0, 0)), mode="edge")  # not nearer than the last row, nor before it
    high = np.pad(half, (0, rest), constant_values=np.inf)

    def look(best: tuple[Array, Array], one: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        part, part_half, first = one
        value, index = _found(part, part_half, x, min(k, chunk))
        value, index = jnp.concatenate([best[0], value], 1), jnp.concatenate([best[1], first + index], 1)
        value, place = _top(value, k)  # what was found before comes first: of equals the lowest stays
        return (value, jnp.take_along_axis(index, place, 1)), None

    none = jnp.full((x.shape[0], k), -jnp.inf), jnp.zeros((x.shape[0], k), jnp.int32)
    chunks = padded.reshape(count, chunk, d), high.reshape(count, chunk), np.arange(count) * chunk
    return jax.lax.scan(look, none, jax.tree.map(jnp.asarray, chunks))[0][1]


def _found(rows: Array, half: np.ndarray | Array, x: Array, k: int) -> tuple[Array, Array]:
    """The k best of these rows and how good they are."""
    find = partial(_found_at_once, rows, half, k=k)
    if not isinstance(x.shape[0], int):  # an exported policy leaves the number of queries open
        return find(x)
    if len(x) <= QUERIES or jax.default_backend() != "cpu":
        return find(x)
    blocks = -(-len(x) // QUERIES)
    each = -(-len(x) // blocks)
    padded = jnp.pad(x, ((0, blocks * each - len(x)), (0, 0)), mode="edge")
    found = jax.lax.map(find, padded.reshape(blocks, each, -1))
    return jax.tree.map(lambda part: part.reshape(-1, k)[: len(x)], found)


def _found_at_once(rows: Array, half: np.ndarray | Array, x: Array, k: int) -> tuple[Array, Array]:
    """The same in one product.

    The product cannot tell rows apart whose distances from x differ by less than its rounding. So the single
    nearest is taken, where several are that close, by differences among the best few.
    """
    score = _scores(rows, half, x)
    value, index = _top(score, k)
    if k > 1:
        return value, index
    others = jnp.where(jnp.arange(len(rows)) == index, -jnp.inf, score).max(-1, keepdims=True)

    def among_few() -> Array:
        few = jax.lax.top_k(_scores(rows, half, x), min(FEW, len(rows)))[1]
        few = jnp.sort(few)  # of equals the first is taken: the lowest
        place = jnp.square(rows[few] - x[:, None]).sum(-1).argmin(-1, keepdims=True)
        return jnp.take_along_axis(few, place, -1)

    clear = (others < value - ROUNDING * (1.0 + jnp.abs(value))).all()
    index = jax.lax.cond(clear, lambda: index, among_few)
    return -jnp.square(rows[index[:, 0]] - x).sum(-1, keepdims=True), index


def probed(clusters: Clusters, x: Float[Array, "q d"], k: int, probes: int) -> Int[Array, "q k"]:
    """The k best rows of the `probes` clusters whose centres are nearest, one query after the other."""
    centres, half = clusters.centres, 0.5 * np.square(clusters.centres).sum(1)
    _, near = _top(_scores(centres, half, x), probes)
    rows, row_half, order, starts, sizes = (jnp.asarray(part) for part in clusters[1:-1])
    longest, places = clusters.longest, jnp.arange(clusters.longest)

    def look(query: tuple[Array, Array]) -> Array:
        one, clusters_near = query

        def score(cluster: Array) -> tuple[Array, Array]:
            start = starts[cluster]
            part = jax.lax.dynamic_slice_in_dim(rows, start, longest)
            value = _scores(part, jax.lax.dynamic_slice_in_dim(row_half, start, longest), one)
            value = jnp.where(places < sizes[cluster], value, -jnp.inf)
            return value, jax.lax.dynamic_slice_in_dim(order, start, longest)

        value, index = (part.ravel() for part in jax.lax.map(score, clusters_near))
        return index[_top(value, k)[1]]

    return jax.lax.map(look, (x, near))


def clustered(rows: Float[np.ndarray, "N d"], rounds: int = 10, sample: int = 50_000) -> Clusters:
    """√N clusters by Lloyd's algorithm on at most `sample` rows; then every row joins its nearest centre."""
    rng, k = np.random.default_rng(0), max(1, round(len(rows) ** 0.5))
    some = rows[rng.choice(len(rows), min(sample, len(rows)), replace=False)]
    centres = some[:k].copy()
    for _ in range(rounds):
        home = _homes(some, centres)
        sums, counts = np.zeros_like(centres), np.bincount(home, minlength=k)[:, None]
        np.add.at(sums, home, some)
        centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres).astype(rows.dtype)
    home = _homes(rows, centres)
    order, sizes = np.argsort(home, kind="stable").astype(np.int32), np.bincount(home, minlength=k)
    longest = int(sizes.max())
    pad = np.zeros((longest, rows.shape[1]), rows.dtype)  # a slice of the last cluster must not slide back
    ordered = np.concatenate([rows[order], pad])
    return Clusters(
        centres=centres,
        rows=ordered,
        half=0.5 * np.square(ordered).sum(1),
        order=np.concatenate([order, np.zeros(longest, np.int32)]),
        starts=(np.cumsum(sizes) - sizes).astype(np.int32),
        sizes=sizes.astype(np.int32),
        longest=longest,
    )


def _homes(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centre of every row."""
    half = 0.5 * np.square(centres).sum(1)
    parts = [(x[i : i + CHUNK] @ centres.T - half).argmax(1) for i in range(0, len(x), CHUNK)]
    return np.concatenate(parts)


def _scores(rows: np.ndarray | Array, half: np.ndarray | Array, x: Array) -> Array:
    """x·R_n − ½|R_n|²: greatest where |R_n − x| is least."""
    return jnp.matmul(x, jnp.asarray(rows).T, precision=EXACT) - half


def _top(value: Array, k: int) -> tuple[Array, Array]:
    """The k greatest of the last axis and where they stand; of equals the first."""
    if k == 1:  # two plain reductions: XLA's argmax takes five times as long on a CPU
        best = value.max(-1, keepdims=True)
        places = jnp.arange(value.shape[-1])
        return best, jnp.where(value == best, places, value.shape[-1]).min(-1, keepdims=True)
    return jax.lax.top_k(value, k)
