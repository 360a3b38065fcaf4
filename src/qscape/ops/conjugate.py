"""Conjugate gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def conjugate_gradient(
    product: Callable[[Array], Array],
    b: Float[Array, " n"],
    iterations: int,
    tolerance: float = 1e-10,
) -> Float[Array, " n"]:
    """x with `product(x)` ≈ b for a symmetric positive definite product, from x = 0.

    Stops after `iterations` steps, or as soon as the squared residual falls below `tolerance`.
    """

    def unfinished(carry: tuple) -> Array:
        i, _, _, _, squared = carry
        return (i < iterations) & (squared >= tolerance)

    def step(carry: tuple) -> tuple:
        i, x, residual, direction, squared = carry
        curved = product(direction)
        length = squared / (direction @ curved)
        residual = residual - length * curved
        after = residual @ residual
        return i + 1, x + length * direction, residual, residual + after / squared * direction, after

    return jax.lax.while_loop(unfinished, step, (0, jnp.zeros_like(b), b, b, b @ b))[1]
