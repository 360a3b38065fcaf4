"""Penalties on the change of actions (CAPS, L2C2, ASAP, GRAD), averaged over a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def half_mse(x: Float[Array, "B A"], y: Float[Array, "B A"]) -> Float[Array, ""]:
    """Return ½ mean (x - y)² over batch and dimensions; gradients pass to x and y."""
    return 0.5 * jnp.square(x - y).mean()


def second_difference(
    before: Float[Array, "B A"], now: Float[Array, "B A"], after: Float[Array, "B A"]
) -> Float[Array, ""]:
    """Return the mean squared second difference of three consecutive actions, weighted by displacement
    (GRAD).

    ½ (2 now - after - before)² · tanh((after - before + 1e-4)⁻²), elementwise, then the mean. The weight
    carries no gradient; it is about 1 for displacements below ½ and decreases beyond.
    """
    weight = jax.lax.stop_gradient(jnp.tanh(jnp.square(1.0 / (after - before + 1e-4))))
    return (0.5 * jnp.square(2.0 * now - after - before) * weight).mean()
