"""Equations of an action-value landscape Q(s, ·) over [-1, 1]^A: peaks, the optimality gap, climbing, planes.

Source: Jain et al. 2024, "Mitigating Suboptimality of Deterministic Policy Gradients in Complex
Q-functions" (SAVO), arXiv 2410.11833: the gap is their Eq. 4, the truncation that of Section 4.2. How peaks
are counted and where planes lie, the paper leaves open.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

PROMINENT = 0.01  # share of Q's range that a peak has to stand out by, to count as more than a ripple


def optimality_gap(best: Float[np.ndarray, "*b"], value: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Δ(s, a) = max_a' Q(s, a') - Q(s, a), in units of Q (Eq. 4)."""
    return best - value


def floors(proposals_q: Float[np.ndarray, "*b L"]) -> Float[np.ndarray, "*b L-1"]:
    """τ_i(s) = max_{j<i} Q(s, a_j) for i = 1 .. L-1, in units of Q (Section 4.2).

    Ψ_i = max{Q, τ_i} is Q with all flattened that is lower than the best of the first i proposals. The floors
    rise with i, so no Ψ_i has more local optima than the one before it (Theorem 4.2).
    """
    return np.maximum.accumulate(proposals_q, -1)[..., :-1]


# --- local optima -----------------------------------------------------------------------------------------


class Peaks(NamedTuple):
    """Local optima, the highest first.

    Attributes:
        node: `[P]` which nodes they are.
        prominence: `[P]` how far one has to go down from each to get to a higher one; of the highest, how
            far it lies above the lowest node.
    """

    node: Int[np.ndarray, " P"]
    prominence: Float[np.ndarray, " P"]

    def above(self, least: float) -> "Peaks":
        """Those that stand out by more than `least`."""
        keep = self.prominence > least
        return Peaks(self.node[keep], self.prominence[keep])


def peaks(values: Float[np.ndarray, " N"], edges: Int[np.ndarray, "E 2"]) -> Peaks:
    """Strict local optima of values on a graph.

    Boundary nodes only have fewer neighbours. A plateau counts once if all around it is lower, and not at
    all if something around it is higher or if it is everything. Nodes that are NaN are not there.

    Args:
        values: of the nodes.
        edges: pairs of neighbours, each pair once (`grid_edges`, `nearest_edges`).
    """
    there = np.isfinite(values)
    edges = edges[there[edges].all(1)]
    # A total order makes of each plateau one peak and steps of no height; those have prominence 0.
    order = np.argsort(values, kind="stable")
    rank = np.empty(len(values), int)
    rank[order] = np.arange(len(values))
    up = rank.copy()
    for a, b in (edges.T, edges.T[::-1]):
        np.maximum.at(up, a, rank[b])
    basin = order[up]  # the steepest neighbour, and from there on to the top
    while not np.array_equal(higher := basin[basin], basin):
        basin = higher
    # Between two basins only the highest pass counts, so a few edges are left of the graph.
    tops, label = np.unique(basin[there], return_inverse=True)
    labels = np.full(len(values), -1)
    labels[there] = label
    floors = np.full(len(tops), np.inf)
    np.minimum.at(floors, label, values[there])
    between = np.sort(labels[edges], axis=1)
    saddles = values[edges].min(1)
    apart = between[:, 0] != between[:, 1]
    prominence = prominences(values[tops], floors, between[apart], saddles[apart])
    found = np.argsort(-values[tops], kind="stable")
    return Peaks(tops[found], prominence[found]).above(0.0)


def prominences(
    heights: Float[np.ndarray, " P"],
    floors: Float[np.ndarray, " P"],
    edges: Int[np.ndarray, "E 2"],
    saddles: Float[np.ndarray, " E"],
) -> Float[np.ndarray, " P"]:
    """How far each peak stands out over the highest pass to a higher peak.

    Args:
        heights: of the peaks.
        floors: the lowest value around each; the highest peak stands out over the lowest of these.
        edges: pairs of peaks that a path joins; `saddles`: the lowest value on that path.
    """
    found, floors = np.zeros(len(heights)), floors.copy()
    parent = np.arange(len(heights))

    def top(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for k in np.argsort(-saddles, kind="stable"):  # flood the land and let the water sink
        a, b = (top(node) for node in edges[k])
        if a == b:
            continue
        if heights[a] < heights[b]:
            a, b = b, a
        found[b] = heights[b] - saddles[k]
        parent[b], floors[a] = a, min(floors[a], floors[b])
    last = parent == np.arange(len(heights))
    found[last] = (heights - floors)[last]
    return found


def ripple(low: float, high: float, share: float = 0.0) -> float:
    """The prominence up to which a peak of values in [low, high] is none: a share of their range, and never
    less than what rounding can make of float32 values of this size."""
    rounding = 8 * np.finfo(np.float32).eps * max(abs(low), abs(high))
    return float(max(share * (high - low), 1e-9 * (high - low), rounding))


def grid_edges(shape: tuple[int, ...]) -> Int[np.ndarray, "E 2"]:
    """Neighbours on a dense grid, diagonal ones included, as pairs of flat indices, each pair once."""
    index = np.arange(np.prod(shape)).reshape(shape)
    pairs = []
    for step in itertools.product((-1, 0, 1), repeat=len(shape)):
        if step > (0,) * len(shape):
            here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, shape, strict=True))
            there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, shape, strict=True))
            pairs.append(np.stack([index[here].ravel(), index[there].ravel()], 1))
    return np.concatenate(pairs)


def nearest_edges(points: Float[np.ndarray, "N d"], k: int = 10) -> Int[np.ndarray, "E 2"]:
    """The graph that joins each point with its k nearest (Euclidean) ones, each pair once."""
    rows, k = jnp.asarray(points, jnp.float32), min(k, len(points) - 1)

    def near(point: Array) -> Array:
        return jax.lax.top_k(-jnp.square(rows - point).sum(-1), k + 1)[1]

    found = np.asarray(jax.lax.map(near, rows, batch_size=64))
    pairs = np.stack([np.repeat(np.arange(len(rows)), k + 1), found.ravel()], 1)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    return pairs[pairs[:, 0] != pairs[:, 1]]


# --- climbing ---------------------------------------------------------------------------------------------


def ascend(
    q: Callable[[Array], Array], start: Float[Array, "N A"], steps: int = 100, size: float = 0.05
) -> tuple[Float[Array, "N A"], Float[Array, " N"]]:
    """Climb ∇ₐQ inside [-1, 1]^A from many starts at once; nobody ever ends lower than they began.

    Args:
        q: values [N] of actions [N, A].
        steps: tries. A step of length `size` along the gradient is taken if it leads up, and the next is
            longer; else it is halved.

    Returns:
        Where they end, and the values there.
    """
    slope = jax.value_and_grad(lambda a: (lambda v: (v.sum(), v))(q(a)), has_aux=True)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        action, value, gradient, length = carry
        norm = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
        tried = jnp.clip(action + length * gradient / jnp.maximum(norm, 1e-30), -1.0, 1.0)
        (_, reached), slope_there = slope(tried)
        up = reached > value
        return (
            jnp.where(up[:, None], tried, action),
            jnp.where(up, reached, value),
            jnp.where(up[:, None], slope_there, gradient),
            jnp.where(up[:, None], 1.2 * length, 0.5 * length),
        ), None

    (_, value), gradient = slope(start)
    begin = (start, value, gradient, jnp.full((len(start), 1), size))
    (action, value, *_), _ = jax.lax.scan(step, begin, None, length=steps)
    return action, value


# --- lines and planes -------------------------------------------------------------------------------------


class Plane(NamedTuple):
    """A line (d = 1) or plane (d = 2) through action space.

    Attributes:
        origin: `[A]` where all coordinates are 0.
        axes: `[d, A]` orthonormal directions.
        names: of the axes, for a picture.
    """

    origin: Float[np.ndarray, " A"]
    axes: Float[np.ndarray, "d A"]
    names: tuple[str, ...]

    def at(self, coordinates: Float[np.ndarray, "*b d"]) -> Float[np.ndarray, "*b A"]:
        """The actions at coordinates."""
        return self.origin + coordinates @ self.axes

    def coordinates(self, actions: Float[np.ndarray, "*b A"]) -> Float[np.ndarray, "*b d"]:
        """Where actions project to."""
        return (actions - self.origin) @ self.axes.T

    def distance(self, actions: Float[np.ndarray, "*b A"]) -> Float[np.ndarray, "*b"]:
        """How far off the plane actions lie."""
        return np.linalg.norm(actions - self.at(self.coordinates(actions)), axis=-1)

    def grid(self, n: int) -> list[Float[np.ndarray, " n"]]:
        """n coordinates along each axis, over all of the plane that lies in [-1, 1]^A."""
        d, size = self.axes.shape
        # The corners of the section are where d of the 2A faces meet.
        normals = np.concatenate([self.axes.T, -self.axes.T])
        offsets = np.concatenate([1 - self.origin, 1 + self.origin])
        meets = np.array(list(itertools.combinations(range(2 * size), d)))
        solvable = np.abs(np.linalg.det(normals[meets])) > 1e-9
        corners = np.linalg.solve(normals[meets[solvable]], offsets[meets[solvable], None])[..., 0]
        inside = (corners @ normals.T <= offsets + 1e-6).all(1)
        low, high = corners[inside].min(0), corners[inside].max(0)
        return [np.linspace(a, b, n) for a, b in zip(low, high, strict=True)]


def inside_balls(
    line: Plane, centres: Float[np.ndarray, "n A"], radii: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "K 2"]:
    """The parts of a line that lie in any of the balls: intervals of its coordinate, in order and apart."""
    towards = centres - line.origin
    middle = towards @ line.axes[0]
    half = np.square(radii) - (np.square(towards).sum(1) - np.square(middle))  # squared
    middle, half = middle[half > 0], np.sqrt(half[half > 0])
    low, high = line.grid(2)[0]
    ends = np.clip(np.stack([middle - half, middle + half], 1), low, high)
    found: list[list[float]] = []
    for start, end in sorted(ends[ends[:, 0] < ends[:, 1]].tolist()):
        if found and start <= found[-1][1]:
            found[-1][1] = max(end, found[-1][1])
        else:
            found.append([start, end])
    return np.reshape(found, (-1, 2))


def spanned(points: Float[np.ndarray, "P A"], d: int) -> Float[np.ndarray, "d A"]:
    """Orthonormal axes from the first point towards the later ones, by Gram and Schmidt.

    A point that leads nowhere new (closer than 1e-6 to what is spanned) is skipped; after the last one
    come the coordinate axes.
    """
    size = points.shape[1]
    axes: list[np.ndarray] = []
    for direction in [*(points[1:] - points[0]), *np.eye(size)]:
        for axis in axes:
            direction = direction - (direction @ axis) * axis
        length = np.linalg.norm(direction)
        if length >= 1e-6 and len(axes) < d:
            axes.append(direction / length)
    return np.stack(axes)


def principal(points: Float[np.ndarray, "N A"], d: int) -> Float[np.ndarray, "d A"]:
    """The d principal directions of points, the widest first; the largest entry of each is positive."""
    centred = points - points.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1].T[::-1][:d]
    return axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
