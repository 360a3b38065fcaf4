"""Wire fitting: a value function that interpolates control points, and losses that keep these apart.

Baird and Klopf 1993; Q3C (arXiv 2510.18828) with the smoothing and the separations of its released code.
Points are [*b, N, A], their heights [*b, N].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LEAST = 1e-6  # of squared distances, and what is added to them


def wire_weights(
    points: Float[Array, "*#b N A"],
    heights: Float[Array, "*#b N"],
    action: Float[Array, "*b A"],
    smoothing: Float[Array, ""] | float,
    normalise: bool,
) -> Float[Array, "*b N"]:
    """Return the weight w_i = 1 / (max(|P_i − a|², 1e-6) + 1e-6 + C (y_max − y_i)) of every point.

    Args:
        points, heights: P and y; leading axes are broadcast with those of the action.
        action: a.
        smoothing: C; low points weigh less than near ones.
        normalise: heights are scaled to [0, 1] in the difference y_max − y_i.
    """
    distance = jnp.maximum(jnp.square(points - action[..., None, :]).sum(-1), LEAST)
    highest = heights.max(-1, keepdims=True)
    below = highest - heights
    if normalise:
        below = below / (highest - heights.min(-1, keepdims=True) + LEAST)
    return 1.0 / (distance + LEAST + smoothing * below)


def interpolate(
    heights: Float[Array, "*#b N"], weights: Float[Array, "*b N"], nearest: int
) -> Float[Array, "*b"]:
    """Return Q(s, a), the mean height of the k points of greatest weight; see `wire_weights`.

    Q is nowhere above the greatest height, and is that at the highest point but for about 2e-6 of the
    differences of heights.

    Args:
        nearest: k. By weight, not by distance: a high point further off may be among them.
    """
    top, which = jax.lax.top_k(weights, nearest)
    of_top = jnp.take_along_axis(jnp.broadcast_to(heights, weights.shape), which, -1)
    return (top * of_top).sum(-1) / top.sum(-1)


def _distances(points: Float[Array, "*b N A"]) -> Float[Array, "*b N N"]:
    """Return the distances of all pairs; 0 on the diagonal, and with a gradient where points coincide."""
    square = jnp.square(points[..., :, None, :] - points[..., None, :, :]).sum(-1)
    apart = jnp.sqrt(jnp.maximum(square, 1e-12))
    return jnp.where(jnp.eye(points.shape[-2], dtype=bool), 0.0, apart)


def repulsion(points: Float[Array, "*b N A"]) -> Float[Array, "*b"]:
    """Return the mean of 1 / (d_ij + 1e-6) over all pairs i ≠ j."""
    count = points.shape[-2]
    inverse = jnp.where(jnp.eye(count, dtype=bool), 0.0, 1.0 / (_distances(points) + LEAST))
    return inverse.sum((-2, -1)) / (count * (count - 1))


def near_pairs(points: Float[Array, "*b N A"]) -> Float[Array, "*b"]:
    """Return −1/N times the sum of the 2N least of all N² distances d_ij.

    N of these are the zeros d_ii, so that the N/2 nearest pairs count, each of them twice, as in the released
    code, whose mask of the diagonal has no effect.
    """
    count = points.shape[-2]
    flat = _distances(points).reshape(*points.shape[:-2], count * count)
    return jax.lax.top_k(-flat, 2 * count)[0].sum(-1) / count


def maximin(points: Float[Array, "*b N A"]) -> Float[Array, "*b"]:
    """Return minus the mean over i of a soft minimum over j ≠ i of d_ij + 1e-6, of sharpness 100."""
    apart = _distances(points) + LEAST
    logits = jnp.where(jnp.eye(points.shape[-2], dtype=bool), -jnp.inf, -100.0 * apart)
    return -(apart * jax.nn.softmax(logits, -1)).sum(-1).mean(-1)


SEPARATIONS: dict[str, Callable[[Array], Array]] = {
    "repulsion": repulsion,
    "near_pairs": near_pairs,
    "maximin": maximin,
}
