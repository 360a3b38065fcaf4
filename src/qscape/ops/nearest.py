"""Nearest rows of an action table: map a proposal in R^d to one of N actions (SAVO, arXiv 2410.11833).

The search maximises x·R_n − ½|R_n|², which has the same order as −|R_n − x|² and is one matrix product. If
its rounding error leaves the answer open, all rows are compared by differences. Long tables are searched in
chunks of rows. The option `clustered` searches only the clusters with the nearest centres (an inverted file)
and may miss the nearest row.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qscape.errors import OutOfRange
from qscape.masks import ActionMask

CHUNK = 16_384  # rows in one product
QUERIES = 16  # in one product on a CPU, at most, so that the scores stay in its cache for the reductions
CANDIDATE_QUERIES = 64  # whose candidates' vectors are compared at once
ROUNDING = 8 * float(np.finfo(np.float32).eps)  # error bound of a product, relative to the sum of its terms
EXACT = jax.lax.Precision.HIGHEST  # by default accelerators round the factors


class Clusters(NamedTuple):
    """An inverted file: the table's rows, sorted by cluster.

    Attributes:
        centres: of the K clusters.
        rows, half: the sorted rows R_n and ½|R_n|², followed by `longest` rows of padding.
        order: index of each sorted row in the table; rows of a cluster keep the table's order.
        starts, sizes: first row and number of rows of each cluster, among the sorted rows.
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
    """N actions as vectors, and the search for the nearest one. Holds numpy arrays; static under jit.

    Attributes:
        rows: the vectors, in [-1, 1].
        search: "exact" or "clustered".
        probes: number of clusters that a clustered search reads.
        mask: how the valid rows of a state are packed; None: all rows are valid in all states.
    """

    rows: Float[np.ndarray, "N d"]
    search: Literal["exact", "clustered"] = "exact"
    probes: int = 16
    mask: ActionMask | None = None

    @cached_property
    def centre(self) -> Float[np.ndarray, " d"]:
        """The median in every dimension, which is subtracted before products to reduce their rounding error.

        A mean would follow a single outlier, and products could not tell the other rows apart.
        """
        return np.median(self.rows, axis=0)

    @cached_property
    def clusters(self) -> Clusters:
        """The inverted file of the centred rows; built once, and deterministic."""
        return build_clusters(self.rows - self.centre)

    @cached_property
    def order(self) -> Int[np.ndarray, " N"]:
        """Indices that sort the rows lexicographically."""
        return np.lexsort(self.rows.T[::-1]).astype(np.int32)

    def nearest(
        self, x: Float[Array, "*b d"], k: int = 1, words: Float[Array, "*c M"] | None = None
    ) -> Int[Array, "*b k"]:
        """Return indices of the k rows nearest to x, nearest first; exact search breaks ties by the lowest
        index.

        Args:
            x: vectors.
            k: how many rows.
            words: packed masks of the states, and *c ends *b: only their valid rows are searched. If fewer
                than k are valid (or, clustered, are found), the nearest one fills up. None: all rows.

        Raises:
            UsageError: the table has fewer than k rows.
        """
        if k > len(self.rows):
            raise OutOfRange(f"The {k} nearest of {len(self.rows)} actions are asked for; there are too few.")

        @jax.custom_batching.custom_vmap
        def search(x: Float[Array, "*b d"], words: Float[Array, "*b M"] | None) -> Int[Array, "*b k"]:
            queries = x.reshape(-1, x.shape[-1])
            flat = None if words is None else words.reshape(-1, words.shape[-1])
            if flat is not None:
                index = self._search_valid(queries, flat, k)
            elif self.search == "exact":
                index = search_exactly(self.rows, self.centre, queries, k)
            else:
                index = search_clusters(self.clusters, queries - self.centre, k, self.probes)
            return index.reshape(*x.shape[:-1], k)

        @search.def_vmap
        def _(size: int, batched: list, x: Array, words: Array | None) -> tuple[Array, bool]:
            # One search with more queries, so that its `cond` stays a `cond`.
            if words is not None:
                x, words = (
                    part if is_batched else jnp.broadcast_to(part, (size, *part.shape))
                    for part, is_batched in zip((x, words), batched, strict=True)
                )
            return search(x, words), True

        if words is not None:
            words = jnp.broadcast_to(words, (*x.shape[:-1], words.shape[-1]))
        return search(x, words)

    def _search_valid(self, x: Float[Array, "q d"], words: Float[Array, "q M"], k: int) -> Int[Array, "q k"]:
        """Return indices of the k nearest valid rows."""
        assert self.mask is not None
        if self.mask.candidates is not None:
            return search_candidates(self.rows, *self.mask.members(words), x, k)
        allowed = Allowed(self.mask, words)
        if self.search == "exact":
            return search_exactly(self.rows, self.centre, x, k, allowed)
        return search_clusters(self.clusters, x - self.centre, k, self.probes, allowed)

    def at(self, index: Int[Array, "*i"]) -> Float[Array, "*i d"]:
        """Return the rows at the given indices."""
        return jnp.asarray(self.rows)[index]

    def index(self, rows: Float[Array, "*b d"]) -> Int[Array, " *b"]:
        """Return the indices of rows that equal rows of the table bit by bit; undefined for other vectors."""
        table, order, n = jnp.asarray(self.rows), jnp.asarray(self.order), len(self.rows)
        queries = rows.reshape(-1, rows.shape[-1])

        def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) // 2
            row = table[order[middle]]
            first = (row != queries).argmax(-1, keepdims=True)  # 0 if they are equal; then neither is below
            below = (jnp.take_along_axis(row, first, -1) < jnp.take_along_axis(queries, first, -1))[:, 0]
            return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

        ends = jnp.zeros(len(queries), jnp.int32), jnp.full(len(queries), n - 1, jnp.int32)
        low, _ = jax.lax.fori_loop(0, (n - 1).bit_length(), halve, ends)
        return order[low].reshape(rows.shape[:-1])

    def snap(
        self, x: Float[Array, "*b d"], words: Float[Array, "*c M"] | None = None
    ) -> Float[Array, "*b d"]:
        """Return the nearest row, bit by bit; the gradient passes straight through. `words`:
        as in `nearest`.
        """
        still = jax.lax.stop_gradient(x)
        return self.at(self.nearest(still, words=words)[..., 0]) + (x - still)


class Allowed(NamedTuple):
    """The valid rows of each query, as bits.

    Attributes:
        mask: how they are packed.
        words: the packed bits.
    """

    mask: ActionMask
    words: Float[Array, "q M"]


def search_candidates(
    rows: Float[np.ndarray, "N d"],
    index: Int[Array, "q K"],
    valid: Bool[Array, "q K"],
    x: Float[Array, "q d"],
    k: int,
) -> Int[Array, "q k"]:
    """Return indices of the k nearest of the valid rows `index`, which ascend; the nearest one fills up."""

    def search_one(query: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        index, valid, x = query
        return jnp.where(valid, -jnp.square(jnp.asarray(rows)[index] - x).sum(-1), -jnp.inf), index

    # In blocks: the vectors of all candidates of all queries are too large for the cache.
    value, index = jax.lax.map(search_one, (index, valid, x), batch_size=CANDIDATE_QUERIES)
    best, place = _top_k(value, min(k, value.shape[-1]))
    found = _fill(best, jnp.take_along_axis(index, place, -1))
    return jnp.concatenate([found, jnp.repeat(found[:, :1], k - found.shape[1], 1)], 1)


def _fill(value: Float[Array, "q k"], index: Int[Array, "q k"]) -> Int[Array, "q k"]:
    """Return the indices, with the first one in place of those whose row is not valid (its value is -inf)."""
    return jnp.where(value == -jnp.inf, jax.lax.slice_in_dim(index, 0, 1, axis=1), index)


def search_exactly(
    rows: Float[np.ndarray, "N d"],
    centre: Float[np.ndarray, " d"],
    x: Float[Array, "q d"],
    k: int,
    allowed: Allowed | None = None,
) -> Int[Array, "q k"]:
    """Return indices of the k nearest of all rows, or of those allowed, in chunks of at most CHUNK rows."""
    n = len(rows)
    count = -(-n // CHUNK)
    chunk = -(-n // count)
    around = rows - centre
    half = 0.5 * np.square(around).sum(1)
    if count == 1:
        found = _search_shard(Shard(*map(jnp.asarray, (rows, around, half))), centre, x, k, allowed)
        return found[1] if allowed is None else _fill(*found)
    rest = count * chunk - n
    filled = (np.pad(part, ((0, rest), (0, 0)), mode="edge") for part in (rows, around))
    high = np.pad(half, (0, rest), constant_values=np.inf)  # padding is never nearest

    def search_chunk(
        best: tuple[Array, Array], chunk_and_start: tuple[Shard, Array]
    ) -> tuple[tuple[Array, Array], None]:
        part, first = chunk_and_start
        value, index = _search_shard(part, centre, x, min(k, chunk), allowed, first)
        value, index = jnp.concatenate([best[0], value], 1), jnp.concatenate([best[1], first + index], 1)
        value, place = _top_k(value, k)  # earlier chunks come first, so ties keep the lowest index
        return (value, jnp.take_along_axis(index, place, 1)), None

    none = jnp.full((x.shape[0], k), -jnp.inf), jnp.zeros((x.shape[0], k), jnp.int32)
    parts = (jnp.asarray(part).reshape(count, chunk, *part.shape[1:]) for part in (*filled, high))
    found = jax.lax.scan(search_chunk, none, (Shard(*parts), jnp.arange(count) * chunk))[0]
    return found[1] if allowed is None else _fill(*found)


class Shard(NamedTuple):
    """A chunk of the table.

    Attributes:
        rows: R_n.
        around: the centred rows.
        half: ½|R_n|² of the centred rows; infinite for padding.
    """

    rows: Float[Array, "n d"]
    around: Float[Array, "n d"]
    half: Float[Array, " n"]


def _search_shard(
    part: Shard, centre: np.ndarray, x: Array, k: int, allowed: Allowed | None = None, first: Array | int = 0
) -> tuple[Array, Array]:
    """Return −|R_n − x|² [q, k] of the k nearest rows of the chunk, and their indices in it.

    Rows that are not allowed have the value −∞. `first`: index of the chunk's first row in the table.
    """
    if not isinstance(x.shape[0], int):  # in an exported policy, whose batch size is open
        # A file would always compute both branches.
        return _search_by_differences(part, x, _valid_rows(part, allowed, first), k)

    def find(query: tuple[Array, Array | None]) -> tuple[Array, Array]:
        x, words = query
        of_block = None if allowed is None or words is None else allowed._replace(words=words)
        return _search_by_products(part, centre, x, _valid_rows(part, of_block, first), k)

    words = None if allowed is None else allowed.words
    if len(x) <= QUERIES or jax.default_backend() != "cpu":
        return find((x, words))
    blocks = -(-len(x) // QUERIES)
    each = -(-len(x) // blocks)

    def split(rows: Array) -> Array:
        padded = jnp.pad(rows, ((0, blocks * each - len(x)), (0, 0)), mode="edge")
        return padded.reshape(blocks, each, -1)

    result = jax.lax.map(find, jax.tree.map(split, (x, words)))
    return jax.tree.map(lambda part: part.reshape(-1, k)[: len(x)], result)


def _valid_rows(part: Shard, allowed: Allowed | None, first: Array | int) -> Bool[Array, "q n"] | None:
    """Return which rows of a chunk are valid for each query; None: all."""
    if allowed is None:
        return None
    if len(part.rows) == allowed.mask.actions:
        return allowed.mask.unpack(allowed.words)
    return allowed.mask.at(allowed.words, first + jnp.arange(len(part.rows)))


def _search_by_products(
    part: Shard, centre: np.ndarray, x: Array, valid: Array | None, k: int
) -> tuple[Array, Array]:
    """Search as `_search_shard`, by one matrix product; for a few queries.

    The product cannot distinguish rows whose distances differ by less than its rounding error. If the k-th
    and the next row are that close for any query, all rows are compared by differences.
    """
    if k == len(part.rows):
        return _search_by_differences(part, x, valid, k)
    moved = x - centre
    score = _scores(part.around, part.half, moved)
    score = score if valid is None else jnp.where(valid, score, -jnp.inf)
    if k == 1:
        value, index = _top_k(score, 1)
        last = value
        after = jnp.where(jnp.arange(len(part.rows)) == index, -jnp.inf, score).max(-1, keepdims=True)
    else:
        # Without the barrier, XLA would sort all scores before the slices.
        value, index = jax.lax.optimization_barrier(_top_k(score, k + 1))
        last, after, index = value[:, -2:-1], value[:, -1:], index[:, :-1]
    from_centre = jnp.square(moved).sum(-1, keepdims=True)
    size = from_centre + jnp.maximum(from_centre - 2 * last, 0.0)  # |x|² + |R − x|² bounds the sum of terms
    is_clear = after < last - ROUNDING * size
    if valid is not None:  # a query without so many valid rows has nothing to confuse them with
        is_clear |= after == -jnp.inf
    is_clear = is_clear.all()

    def by_products() -> tuple[Array, Array]:
        distance = jnp.square(part.rows[index] - x[:, None]).sum(-1)
        if valid is not None:
            distance = jnp.where(jnp.take_along_axis(valid, index, -1), distance, jnp.inf)
        if k == 1:
            return -distance, index
        distance, ordered = jax.lax.sort((distance, index), num_keys=2)  # ties by the lowest index
        return -distance, ordered

    return jax.lax.cond(is_clear, by_products, lambda: _search_by_differences(part, x, valid, k))


def _search_by_differences(part: Shard, x: Array, valid: Array | None, k: int) -> tuple[Array, Array]:
    """Search as `_search_shard`, by Σ_j (R_nj − x_j)²; exact except for the rounding of each distance."""

    def add_column(distance: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
        of_rows, of_x = column
        return distance + jnp.square(of_rows - of_x[:, None]), None

    # Column by column: an array [q, N, d] is ten times as slow on a CPU.
    start = jnp.zeros((x.shape[0], 1)) + jnp.where(jnp.isinf(part.half), jnp.inf, 0.0)
    start = start if valid is None else jnp.where(valid, start, jnp.inf)
    distance, _ = jax.lax.scan(add_column, start, (part.rows.T, x.T))
    return _top_k(-distance, k)


def search_clusters(
    clusters: Clusters, x: Float[Array, "q d"], k: int, probes: int, allowed: Allowed | None = None
) -> Int[Array, "q k"]:
    """Return indices of the k nearest rows in the `probes` clusters with the nearest centres, one query at a
    time.

    Reads more clusters if that many might hold fewer than k rows together. Of `allowed` rows, only clusters
    that hold one are read; in these may be fewer than k, and then the nearest one fills up.
    """
    enough = int(np.searchsorted(np.cumsum(np.sort(clusters.sizes)), k)) + 1  # even if they are the smallest
    probes = min(max(probes, enough), len(clusters.sizes))
    centres, half = clusters.centres, 0.5 * np.square(clusters.centres).sum(1)
    rows, row_half, order, starts, sizes = (jnp.asarray(part) for part in clusters[1:-1])
    longest, places = clusters.longest, jnp.arange(clusters.longest)
    is_exported = not isinstance(x.shape[0], int)  # an exported policy leaves its batch size open

    def cut(part: Array, start: Array) -> Array:
        if is_exported:  # ONNX gathers rows, and has no slice that begins elsewhere for each query
            return part[start + places]
        return jax.lax.dynamic_slice_in_dim(part, start, longest)

    def each(search: Callable[..., Array], queries: Any) -> Array:
        return jax.vmap(search)(queries) if is_exported else jax.lax.map(search, queries)

    def search_one(query: tuple[Array, Array, Array | None]) -> Array:
        vector, clusters_near, words = query

        def score(cluster: Array) -> tuple[Array, Array]:
            start = starts[cluster]
            value = _scores(cut(rows, start), cut(row_half, start), vector)
            value = jnp.where(places < sizes[cluster], value, -jnp.inf)
            index = cut(order, start)
            if allowed is not None and words is not None:
                value = jnp.where(allowed.mask.at(words, index), value, -jnp.inf)
            return value, index

        value, index = (part.ravel() for part in jax.lax.map(score, clusters_near))
        best, place = _top_k(value, k)
        return index[place] if allowed is None else _fill(best[None], index[place][None])[0]

    if allowed is None:
        _, near = _top_k(_scores(centres, half, x), probes)
        return each(search_one, (x, near, None))
    members = clusters.starts[:, None] + np.minimum(np.arange(longest), clusters.sizes[:, None] - 1)
    members = jnp.asarray(clusters.order[members])  # the last row of a cluster fills up
    is_used = jnp.asarray(clusters.sizes > 0)

    def search_valid(query: tuple[Array, Array]) -> Array:
        vector, words = query
        held = allowed.mask.unpack(words)[members].any(1) & is_used
        _, near = _top_k(jnp.where(held, _scores(centres, half, vector), -jnp.inf), probes)
        return search_one((vector, near, words))

    return each(search_valid, (x, allowed.words))


def build_clusters(rows: Float[np.ndarray, "N d"], rounds: int = 10, sample: int = 50_000) -> Clusters:
    """Build √N clusters: k-means (Lloyd) on at most `sample` rows, then each row joins its nearest centre."""
    rng, k = np.random.default_rng(0), max(1, round(len(rows) ** 0.5))
    some = rows[rng.choice(len(rows), min(sample, len(rows)), replace=False)]
    centres = some[:k].copy()
    for _ in range(rounds):
        cluster = _nearest_centres(some, centres)
        sums, counts = np.zeros_like(centres), np.bincount(cluster, minlength=k)[:, None]
        np.add.at(sums, cluster, some)
        centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres).astype(rows.dtype)
    cluster = _nearest_centres(rows, centres)
    order, sizes = np.argsort(cluster, kind="stable").astype(np.int32), np.bincount(cluster, minlength=k)
    longest = int(sizes.max())
    pad = np.zeros((longest, rows.shape[1]), rows.dtype)  # so that a slice of the last cluster stays inside
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


def _nearest_centres(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the index of the nearest centre of each row."""
    half = 0.5 * np.square(centres).sum(1)
    parts = [(x[i : i + CHUNK] @ centres.T - half).argmax(1) for i in range(0, len(x), CHUNK)]
    return np.concatenate(parts)


def _scores(rows: np.ndarray | Array, half: np.ndarray | Array, x: Array) -> Array:
    """Return x·R_n − ½|R_n|², greatest where |R_n − x| is least."""
    return jnp.matmul(x, jnp.asarray(rows).T, precision=EXACT) - half


def _top_k(value: Array, k: int) -> tuple[Array, Array]:
    """Return the k greatest values along the last axis and their indices; ties by the lowest index."""
    if k == 1:  # two plain reductions: XLA's argmax takes five times as long on a CPU
        best = value.max(-1, keepdims=True)
        places = jnp.arange(value.shape[-1])
        # Of NaN none equals the best; the last index is one that exists.
        return best, jnp.where(value == best, places, places[-1]).min(-1, keepdims=True)
    best, places = jax.lax.top_k(value, k)
    return best, places
