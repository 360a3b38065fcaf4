"""Penalties on the change of actions: CAPS, ASAP and GRAD averaged over a batch, Jacobians of its rows."""

from collections.abc import Callable

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


def squared_jacobian(output: Float[Array, "*b A"], back: Callable) -> Float[Array, "*b"]:
    """Return ‖∂y/∂x‖², the sum over all entries of each row's Jacobian, in A backward passes.

    Args:
        output: y of a function of x [*b, S] whose rows do not depend on each other.
        back: what `jax.vjp` returned beside y.
    """
    jacobian = jax.vmap(lambda one: back(jnp.broadcast_to(one, output.shape))[0])(jnp.eye(output.shape[-1]))
    return jnp.square(jacobian).sum((0, -1))
