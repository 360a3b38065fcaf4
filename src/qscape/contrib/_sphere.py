"""Geometry of the unit sphere S^{D-1}: tangent vectors, exponential and logarithmic map."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.ops.norm import unit
from qscape.types import Key

TINY = 1e-12  # lengths below this count as 0


def project_to_tangent(point: Float[Array, "*b D"], vector: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    """v − (pᵀv) p, the part of a vector that is tangent to the sphere at p."""
    return vector - (point * vector).sum(-1, keepdims=True) * point


def exponential(point: Float[Array, "*b D"], tangent: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    """Exp_p(u) = p cos‖u‖ + (u / ‖u‖) sin‖u‖, divided by its length: ‖u‖ along the great circle from p."""
    length = jnp.linalg.norm(tangent, axis=-1, keepdims=True)
    return unit(point * jnp.cos(length) + tangent * (jnp.sin(length) / jnp.maximum(length, TINY)))


def logarithm(
    point: Float[Array, "*b D"], other: Float[Array, "*b D"], margin: float = 1e-6
) -> Float[Array, "*b D"]:
    """Log_p(x) = (θ / ‖v‖) v with v = x − (pᵀx) p and θ = arccos(pᵀx): the tangent with Exp_p(Log_p(x)) = x.

    Args:
        margin: pᵀx is bounded by ±(1 − margin), so that θ keeps its digits.
    """
    cosine = (point * other).sum(-1, keepdims=True)
    angle = jnp.arccos(jnp.clip(cosine, -1.0 + margin, 1.0 - margin))
    tangent = project_to_tangent(point, other)
    return tangent * (angle / jnp.maximum(jnp.linalg.norm(tangent, axis=-1, keepdims=True), TINY))


def sample_uniform_direction(key: Key, shape: tuple[int, ...]) -> Float[Array, "*b D"]:
    """Uniformly distributed points of the sphere."""
    return unit(jax.random.normal(key, shape))


def perturb_direction(point: Float[Array, "*b D"], precision: float, key: Key) -> Float[Array, "*b D"]:
    """Adds noise N(0, I/κ) in the tangent space and divides by the length; κ is the `precision`.

    A rough stand-in for a von Mises-Fisher distribution of concentration κ, which is narrower.
    """
    noise = jax.random.normal(key, point.shape) / jnp.sqrt(precision)
    return unit(point + project_to_tangent(point, noise))
