"""Equations of an action-value landscape Q(s, ·) over [-1, 1]^A: peaks, optimality gap, ascent, planes.

The optimality gap is Eq. 4 and the truncation is Section 4.2 of Jain et al. 2024, "Mitigating Suboptimality
of Deterministic Policy Gradients in Complex Q-functions" (SAVO), arXiv 2410.11833. The paper does not define
how peaks are counted and where planes lie; this module does.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

PROMINENT = 0.01  # least prominence of a peak that counts, as a share of Q's range


def optimality_gap(best: Float[np.ndarray, "*b"], value: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Return Δ(s, a) = max_a' Q(s, a') - Q(s, a), in units of Q (Eq. 4)."""
    return best - value


def proposal_floors(proposals_q: Float[np.ndarray, "*b L"]) -> Float[np.ndarray, "*b L-1"]:
    """Return τ_i(s) = max_{j<i} Q(s, a_j) for i = 1 .. L-1, in units of Q (Section 4.2).

    Ψ_i = max{Q, τ_i} is flat wherever Q is below the best of the first i proposals. τ_i rises with i, so Ψ_i
    never has more local optima than Ψ_{i-1} (Theorem 4.2). `proposals_q` are the values of L proposals.
    """
    return np.maximum.accumulate(proposals_q, -1)[..., :-1]


# --- local optima -----------------------------------------------------------------------------------------


class Peaks(NamedTuple):
    """Local optima, the highest first.

    Attributes:
        node: their indices among the nodes.
        prominence: the descent from each peak that is needed to reach a higher one; for the highest, its
            height above the lowest node.
    """

    node: Int[np.ndarray, " P"]
    prominence: Float[np.ndarray, " P"]

    def above(self, least: float) -> "Peaks":
        """Return the peaks of prominence greater than `least`."""
        keep = self.prominence > least
        return Peaks(self.node[keep], self.prominence[keep])


def find_peaks(values: Float[np.ndarray, " N"], edges: Int[np.ndarray, "E 2"]) -> Peaks:
    """Find the strict local maxima of values on a graph.

    Boundary nodes just have fewer neighbours. A plateau counts as one peak if all its neighbours are lower,
    and as none if a neighbour is higher or if it is the whole graph. Nodes with value NaN are left out.

    Args:
        values: of the nodes.
        edges: pairs of neighbours, each pair once (`grid_edges`, `nearest_edges`).
    """
    is_node = np.isfinite(values)
    edges = edges[is_node[edges].all(1)]
    # A total order turns each plateau into one peak and steps of height 0; the latter have prominence 0.
    order = np.argsort(values, kind="stable")
    rank = np.empty(len(values), int)
    rank[order] = np.arange(len(values))
    up = rank.copy()
    for a, b in (edges.T, edges.T[::-1]):
        np.maximum.at(up, a, rank[b])
    basin = order[up]  # the highest neighbour, and in the loop its peak
    while not np.array_equal(higher := basin[basin], basin):
        basin = higher
    # Only edges between different basins can be passes.
    tops, label = np.unique(basin[is_node], return_inverse=True)
    labels = np.full(len(values), -1)
    labels[is_node] = label
    floors = np.full(len(tops), np.inf)
    np.minimum.at(floors, label, values[is_node])
    between = np.sort(labels[edges], axis=1)
    saddles = values[edges].min(1)
    apart = between[:, 0] != between[:, 1]
    prominence = find_prominences(values[tops], floors, between[apart], saddles[apart])
    by_height = np.argsort(-values[tops], kind="stable")
    return Peaks(tops[by_height], prominence[by_height]).above(0.0)


def find_prominences(
    heights: Float[np.ndarray, " P"],
    floors: Float[np.ndarray, " P"],
    edges: Int[np.ndarray, "E 2"],
    saddles: Float[np.ndarray, " E"],
) -> Float[np.ndarray, " P"]:
    """Return the prominence of each peak: its height above the highest pass to a higher peak.

    Args:
        heights: of the peaks.
        floors: the lowest value in each peak's basin; the highest peak's prominence is measured from the
            lowest.
        edges: pairs of peaks that a path connects.
        saddles: the lowest value on each path.
    """
    prominence, floors = np.zeros(len(heights)), floors.copy()
    parent = np.arange(len(heights))

    def find_root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for k in np.argsort(-saddles, kind="stable"):  # from the highest pass downwards
        a, b = (find_root(node) for node in edges[k])
        if a == b:
            continue
        if heights[a] < heights[b]:
            a, b = b, a
        prominence[b] = heights[b] - saddles[k]
        parent[b], floors[a] = a, min(floors[a], floors[b])
    is_root = parent == np.arange(len(heights))
    prominence[is_root] = (heights - floors)[is_root]
    return prominence


def prominence_threshold(low: float, high: float, share: float = 0.0) -> float:
    """Return the prominence that a peak of values in [low, high] must exceed to count.

    It is `share` of the range, and at least what rounding of float32 values of this size can cause.
    """
    rounding = 8 * np.finfo(np.float32).eps * max(abs(low), abs(high))
    return float(max(share * (high - low), 1e-9 * (high - low), rounding))


def grid_edges(shape: tuple[int, ...]) -> Int[np.ndarray, "E 2"]:
    """Return all pairs of neighbours on a grid, diagonal ones included, as flat indices; each pair once."""
    index = np.arange(np.prod(shape)).reshape(shape)
    pairs = []
    for step in itertools.product((-1, 0, 1), repeat=len(shape)):
        if step > (0,) * len(shape):
            here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, shape, strict=True))
            there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, shape, strict=True))
            pairs.append(np.stack([index[here].ravel(), index[there].ravel()], 1))
    return np.concatenate(pairs)


def nearest_edges(
    points: Float[np.ndarray, "N d"], k: int = 10, among: Bool[np.ndarray, " N"] | None = None
) -> Int[np.ndarray, "E 2"]:
    """Return pairs that connect each point with its k nearest points (Euclidean); each pair once.

    `among`: the points that count; the others are in no pair.
    """
    counts = np.ones(len(points), bool) if among is None else among
    nearest = np.asarray(_find_nearest(jnp.asarray(points, jnp.float32), counts, min(k, len(points) - 1)))
    pairs = np.stack([np.repeat(np.arange(len(points)), nearest.shape[1]), nearest.ravel()], 1)
    pairs = pairs[counts[pairs].all(1)]
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    return pairs[pairs[:, 0] != pairs[:, 1]]


@partial(jax.jit, static_argnames="k")
def _find_nearest(rows: Float[Array, "N d"], counts: Bool[Array, " N"], k: int) -> Int[Array, "N k1"]:
    def find(row: Array) -> Array:
        return jax.lax.top_k(jnp.where(counts, -jnp.square(rows - row).sum(-1), -jnp.inf), k + 1)[1]

    return jax.lax.map(find, rows, batch_size=64)


# --- gradient ascent ----------------------------------------------------------------------------------------


def ascend_gradient(
    q: Callable[[Array], Array], start: Float[Array, "N A"], steps: int = 100, size: float = 0.05
) -> tuple[Float[Array, "N A"], Float[Array, " N"]]:
    """Ascend the gradient of Q inside [-1, 1]^A from N starts at once; no value ever decreases.

    Args:
        q: values [N] of actions [N, A].
        start: the initial actions.
        steps: number of steps tried. A step along the gradient is taken if the value increases; then the next
            is 1.2 times as long, else half as long.
        size: length of the first step.

    Returns:
        The final actions and their values.
    """
    gradient_of = jax.value_and_grad(lambda a: (lambda v: (v.sum(), v))(q(a)), has_aux=True)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        action, value, gradient, length = carry
        norm = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
        tried = jnp.clip(action + length * gradient / jnp.maximum(norm, 1e-30), -1.0, 1.0)
        (_, new_value), new_gradient = gradient_of(tried)
        is_higher = new_value > value
        return (
            jnp.where(is_higher[:, None], tried, action),
            jnp.where(is_higher, new_value, value),
            jnp.where(is_higher[:, None], new_gradient, gradient),
            jnp.where(is_higher[:, None], 1.2 * length, 0.5 * length),
        ), None

    (_, value), gradient = gradient_of(start)
    carry = (start, value, gradient, jnp.full((len(start), 1), size))
    (action, value, *_), _ = jax.lax.scan(step, carry, None, length=steps)
    return action, value


# --- lines and planes -------------------------------------------------------------------------------------


class Plane(NamedTuple):
    """A line (d = 1) or plane (d = 2) through action space.

    Attributes:
        origin: the action at coordinates 0.
        axes: orthonormal directions.
        names: labels of the axes.
    """

    origin: Float[np.ndarray, " A"]
    axes: Float[np.ndarray, "d A"]
    names: tuple[str, ...]

    def at(self, coordinates: Float[np.ndarray, "*b d"]) -> Float[np.ndarray, "*b A"]:
        """Return the actions at coordinates: origin + Σ_i c_i axis_i."""
        return self.origin + coordinates @ self.axes

    def coordinates(self, actions: Float[np.ndarray, "*b A"]) -> Float[np.ndarray, "*b d"]:
        """Return the coordinates of the orthogonal projections of actions."""
        return (actions - self.origin) @ self.axes.T

    def distance(self, actions: Float[np.ndarray, "*b A"]) -> Float[np.ndarray, "*b"]:
        """Return the Euclidean distances of actions from the plane."""
        return np.linalg.norm(actions - self.at(self.coordinates(actions)), axis=-1)

    def grid(self, n: int) -> list[Float[np.ndarray, " n"]]:
        """Return n equidistant coordinates along each axis, over the part of the plane inside [-1, 1]^A."""
        d, size = self.axes.shape
        # The corners of the section lie where d of the 2A faces meet.
        normals = np.concatenate([self.axes.T, -self.axes.T])
        offsets = np.concatenate([1 - self.origin, 1 + self.origin])
        meets = np.array(list(itertools.combinations(range(2 * size), d)))
        solvable = np.abs(np.linalg.det(normals[meets])) > 1e-9
        corners = np.linalg.solve(normals[meets[solvable]], offsets[meets[solvable], None])[..., 0]
        inside = (corners @ normals.T <= offsets + 1e-6).all(1)
        low, high = corners[inside].min(0), corners[inside].max(0)
        return [np.linspace(a, b, n) for a, b in zip(low, high, strict=True)]


def intersect_balls(
    line: Plane, centres: Float[np.ndarray, "n A"], radii: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "K 2"]:
    """Return the parts of a line inside the balls: disjoint intervals (start, end) of its coordinate, in
    order.
    """
    towards = centres - line.origin
    middle = towards @ line.axes[0]
    half = np.square(radii) - (np.square(towards).sum(1) - np.square(middle))  # squared
    middle, half = middle[half > 0], np.sqrt(half[half > 0])
    low, high = line.grid(2)[0]
    ends = np.clip(np.stack([middle - half, middle + half], 1), low, high)
    intervals: list[list[float]] = []
    for start, end in sorted(ends[ends[:, 0] < ends[:, 1]].tolist()):
        if intervals and start <= intervals[-1][1]:
            intervals[-1][1] = max(end, intervals[-1][1])
        else:
            intervals.append([start, end])
    return np.reshape(intervals, (-1, 2))


def span_axes(points: Float[np.ndarray, "P A"], d: int, least: float = 1e-6) -> Float[np.ndarray, "d A"]:
    """Return d orthonormal axes from the first point towards the other ones, by Gram-Schmidt.

    A point closer than `least` to the span of earlier ones is skipped. If the points do not suffice, the
    coordinate axes follow.
    """
    size = points.shape[1]
    axes: list[np.ndarray] = []
    for direction in [*(points[1:] - points[0]), *np.eye(size)]:
        for axis in axes:
            direction = direction - (direction @ axis) * axis
        length = np.linalg.norm(direction)
        if length >= least and len(axes) < d:
            axes.append(direction / length)
    return np.stack(axes)


def principal_axes(points: Float[np.ndarray, "N A"], d: int) -> Float[np.ndarray, "d A"]:
    """Return the d principal directions of points, by decreasing variance; the largest entry of each is
    positive.
    """
    centred = points - points.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1].T[::-1][:d]
    return axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
