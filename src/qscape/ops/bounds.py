"""Bounds on the length of feature vectors, ‖h‖² ≤ E (action collapse, arXiv 2509.02737). E is `energy`."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def safe_norm(x: Float[Array, "*b d"], floor: float = 1e-12) -> Float[Array, "*b 1"]:
    """Return max(‖x‖, floor) along the last axis; its gradient at 0 is 0, not NaN."""
    return jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), floor**2))


def leave_unbounded(x: Float[Array, "*b d"], energy: float) -> Float[Array, "*b d"]:
    """Return h = g: no bound."""
    return x


def project_to_ball(x: Float[Array, "*b d"], energy: float) -> Float[Array, "*b d"]:
    """Return h = g min(1, √E / ‖g‖): projection into the ball. Outside it,
    the gradient has no radial part.
    """
    return x * jnp.minimum(1.0, jnp.sqrt(energy) / safe_norm(x))


def project_to_sphere(x: Float[Array, "*b d"], energy: float) -> Float[Array, "*b d"]:
    """Return h = √E g / max(‖g‖, 1e-6): projection onto the sphere."""
    return jnp.sqrt(energy) * x / safe_norm(x, 1e-6)


# "l2" does not change the features; the head adds λ mean‖g‖² to the loss.
BOUNDS = {
    "none": leave_unbounded,
    "ball": project_to_ball,
    "sphere": project_to_sphere,
    "l2": leave_unbounded,
}
