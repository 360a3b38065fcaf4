"""Penalties on how actions change, each over a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def half_mse(x: Float[Array, "B A"], y: Float[Array, "B A"]) -> Float[Array, ""]:
    """½ · mean over batch and dimensions of (x - y)²; both sides carry gradient."""
    return 0.5 * jnp.square(x - y).mean()


def second_difference(
    before: Float[Array, "B A"], now: Float[Array, "B A"], after: Float[Array, "B A"]
) -> Float[Array, ""]:
    """How far three actions in a row are from a straight line, where they do not go far anyway (GRAD).

    ½ (2 now - after - before)² · tanh((after - before + 1e-4)⁻²), element by element, then the mean. The
    weight, which carries no gradient, is about 1 for displacements below ½ and falls beyond.
    """
    weight = jax.lax.stop_gradient(jnp.tanh(jnp.square(1.0 / (after - before + 1e-4))))
    return (0.5 * jnp.square(2.0 * now - after - before) * weight).mean()
