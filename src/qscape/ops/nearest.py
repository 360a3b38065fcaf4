"""Nearest rows of an action table: how a proposal in R^d becomes one of N actions (SAVO, arXiv 2410.11833).

The search maximises x·R_n − ½|R_n|², which has the order of −|R_n − x|² and is one matrix product; where its
rounding leaves the answer open, all rows are compared by differences. Where the table is long, this is done
in chunks of rows; the option `clustered` looks only into the clusters whose centres lie nearest (an inverted
file) and may miss the nearest row.
"""

import dataclasses
from functools import cached_property, partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qscape.errors import UsageError

CHUNK = 16_384  # rows of one product
QUERIES = 64  # of one product on a CPU, at most: its scores stay in the cache for the reductions
ROUNDING = 8 * float(np.finfo(np.float32).eps)  # of a product, relative to what is added up in it
EXACT = jax.lax.Precision.HIGHEST  # accelerators would otherwise round the factors


class Clusters(NamedTuple):
    """An inverted file: the table's rows in the order of their clusters.

    Attributes:
        centres: of the K clusters.
        rows, half: the sorted rows R_n and ½|R_n|²; `longest` rows of padding follow, which never win.
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
    def centre(self) -> Float[np.ndarray, " d"]:
        """The median in every dimension; products of what is left beside it round least. A mean would follow
        a single far row, and leave the others where products cannot tell them apart."""
        return np.median(self.rows, axis=0)

    @cached_property
    def clusters(self) -> Clusters:
        """The inverted file around the centre; made once, always the same for the same table."""
        return clustered(self.rows - self.centre)

    @cached_property
    def order(self) -> Int[np.ndarray, " N"]:
        """The rows in the order of their first numbers, then of their second, and so on."""
        return np.lexsort(self.rows.T[::-1]).astype(np.int32)

    def nearest(self, x: Float[Array, "*b d"], k: int = 1) -> Int[Array, "*b k"]:
        """Indices of the k rows nearest to x, nearest first; of equals the lowest, if exact.

        Raises:
            UsageError: there are fewer than k rows.
        """
        if k > len(self.rows):
            raise UsageError(f"The {k} nearest of {len(self.rows)} actions are asked for; there are too few.")

        @jax.custom_batching.custom_vmap
        def search(x: Float[Array, "*b d"]) -> Int[Array, "*b k"]:
            queries = x.reshape(-1, x.shape[-1])
            if self.search == "exact":
                found = exact(self.rows, self.centre, queries, k)
            else:
                found = probed(self.clusters, queries - self.centre, k, self.probes)
            return found.reshape(*x.shape[:-1], k)

        @search.def_vmap
        def _(_size: int, _batched: list[bool], x: Float[Array, "n *b d"]) -> tuple[Array, bool]:
            return search(x), True  # more queries of one search, whose `cond` stays a `cond`

        return search(x)

    def at(self, index: Int[Array, "*i"]) -> Float[Array, "*i d"]:
        """The rows of these indices."""
        return jnp.asarray(self.rows)[index]

    def index(self, rows: Float[Array, "*b d"]) -> Int[Array, " *b"]:
        """Which rows of the table these are, to the bit; undefined for a vector that is none of them."""
        table, order, n = jnp.asarray(self.rows), jnp.asarray(self.order), len(self.rows)
        queries = rows.reshape(-1, rows.shape[-1])

        def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) // 2
            found = table[order[middle]]
            first = (found != queries).argmax(-1, keepdims=True)  # of equals the 0th: neither is below
            below = (jnp.take_along_axis(found, first, -1) < jnp.take_along_axis(queries, first, -1))[:, 0]
            return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

        ends = jnp.zeros(len(queries), jnp.int32), jnp.full(len(queries), n - 1, jnp.int32)
        low, _ = jax.lax.fori_loop(0, (n - 1).bit_length(), halve, ends)
        return order[low].reshape(rows.shape[:-1])

    def snap(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The nearest row, to the bit; the gradient passes straight through to x."""
        still = jax.lax.stop_gradient(x)
        return self.at(self.nearest(still)[..., 0]) + (x - still)


def exact(
    rows: Float[np.ndarray, "N d"], centre: Float[np.ndarray, " d"], x: Float[Array, "q d"], k: int
) -> Int[Array, "q k"]:
    """The k nearest of all rows, at most CHUNK rows at a time."""
    n = len(rows)
    count = -(-n // CHUNK)
    chunk = -(-n // count)
    around = rows - centre
    half = 0.5 * np.square(around).sum(1)
    if count == 1:
        return _found(Shard(*map(jnp.asarray, (rows, around, half))), centre, x, k)[1]
    rest = count * chunk - n
    filled = (np.pad(part, ((0, rest), (0, 0)), mode="edge") for part in (rows, around))
    high = np.pad(half, (0, rest), constant_values=np.inf)  # these are never found

    def look(best: tuple[Array, Array], one: tuple[Shard, Array]) -> tuple[tuple[Array, Array], None]:
        part, first = one
        value, index = _found(part, centre, x, min(k, chunk))
        value, index = jnp.concatenate([best[0], value], 1), jnp.concatenate([best[1], first + index], 1)
        value, place = _top(value, k)  # what was found before comes first: of equals the lowest stays
        return (value, jnp.take_along_axis(index, place, 1)), None

    none = jnp.full((x.shape[0], k), -jnp.inf), jnp.zeros((x.shape[0], k), jnp.int32)
    parts = (jnp.asarray(part).reshape(count, chunk, *part.shape[1:]) for part in (*filled, high))
    return jax.lax.scan(look, none, (Shard(*parts), jnp.arange(count) * chunk))[0][1]


class Shard(NamedTuple):
    """Some rows, the same without the centre, and ½|R_n|² of these; infinite where a row only fills up."""

    rows: Float[Array, "n d"]
    around: Float[Array, "n d"]
    half: Float[Array, " n"]


def _found(part: Shard, centre: np.ndarray, x: Array, k: int) -> tuple[Array, Array]:
    """−|R_n − x|² of the k nearest of these rows, and where they stand."""
    if not isinstance(x.shape[0], int):  # an exported policy leaves the number of queries open
        return _by_differences(part, x, k)  # a file would compute both ways, always
    find = partial(_found_at_once, part, centre, k=k)
    if len(x) <= QUERIES or jax.default_backend() != "cpu":
        return find(x)
    blocks = -(-len(x) // QUERIES)
    each = -(-len(x) // blocks)
    padded = jnp.pad(x, ((0, blocks * each - len(x)), (0, 0)), mode="edge")
    found = jax.lax.map(find, padded.reshape(blocks, each, -1))
    return jax.tree.map(lambda part: part.reshape(-1, k)[: len(x)], found)


def _found_at_once(part: Shard, centre: np.ndarray, x: Array, k: int) -> tuple[Array, Array]:
    """The same of a few queries.

    The product cannot tell rows apart whose distances from x differ by less than its rounding. Where the k-th
    and the next are that close for any query, all rows are compared by differences.
    """
    if k == len(part.rows):
        return _by_differences(part, x, k)
    moved = x - centre
    score = _scores(part.around, part.half, moved)
    if k == 1:
        value, index = _top(score, 1)
        last = value
        after = jnp.where(jnp.arange(len(part.rows)) == index, -jnp.inf, score).max(-1, keepdims=True)
    else:
        # Of what is sliced XLA would sort all.
        value, index = jax.lax.optimization_barrier(_top(score, k + 1))
        last, after, index = value[:, -2:-1], value[:, -1:], index[:, :-1]
    from_centre = jnp.square(moved).sum(-1, keepdims=True)
    size = from_centre + jnp.maximum(from_centre - 2 * last, 0.0)  # |x|² + |R − x|² bounds what is added up
    clear = (after < last - ROUNDING * size).all()

    def by_products() -> tuple[Array, Array]:
        distance = jnp.square(part.rows[index] - x[:, None]).sum(-1)
        if k == 1:
            return -distance, index
        distance, ordered = jax.lax.sort((distance, index), num_keys=2)  # of equals the lowest comes first
        return -distance, ordered

    return jax.lax.cond(clear, by_products, lambda: _by_differences(part, x, k))


def _by_differences(part: Shard, x: Array, k: int) -> tuple[Array, Array]:
    """The same, exact but for the rounding of each distance."""

    def further(distance: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
        of_rows, of_x = column
        return distance + jnp.square(of_rows - of_x[:, None]), None

    # Column by column: [q, N, d] at once is ten times as slow on a CPU.
    start = jnp.zeros((x.shape[0], 1)) + jnp.where(jnp.isinf(part.half), jnp.inf, 0.0)
    distance, _ = jax.lax.scan(further, start, (part.rows.T, x.T))
    return _top(-distance, k)


def probed(clusters: Clusters, x: Float[Array, "q d"], k: int, probes: int) -> Int[Array, "q k"]:
    """The k best rows of the `probes` clusters whose centres are nearest, one query after the other.

    Of more clusters where that many might hold fewer than k rows together.
    """
    enough = int(np.searchsorted(np.cumsum(np.sort(clusters.sizes)), k)) + 1  # even of the smallest ones
    probes = min(max(probes, enough), len(clusters.sizes))
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
    best, places = jax.lax.top_k(value, k)
    return best, places
