"""Bounds on the length of feature vectors (action collapse: ‖h‖² ≤ E_H)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def safe_norm(x: Float[Array, "*b d"], floor: float = 1e-12) -> Float[Array, "*b 1"]:
    """‖x‖, at least `floor`; its gradient at 0 is 0, where that of a bare norm is NaN."""
    return jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), floor**2))


def unbounded(x: Float[Array, "*b d"], energy: float) -> Float[Array, "*b d"]:
    """h = g."""
    return x


def ball(x: Float[Array, "*b d"], energy: float) -> Float[Array, "*b d"]:
    """h = g min(1, √E / ‖g‖): the projection into the ball. Outside, its gradient has no radial part."""
    return x * jnp.minimum(1.0, jnp.sqrt(energy) / safe_norm(x))


def sphere(x: Float[Array, "*b d"], energy: float) -> Float[Array, "*b d"]:
    """h = √E g / max(‖g‖, 1e-6)."""
    return jnp.sqrt(energy) * x / safe_norm(x, 1e-6)


# "l2" leaves the feature alone and adds λ mean‖g‖² to the loss.
BOUNDS = {"none": unbounded, "ball": ball, "sphere": sphere, "l2": unbounded}
