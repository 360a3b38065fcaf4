"""Adam, with the bias correction right in float32."""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from qscape.ops.in_place import zero_after


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Return Adam's step before the learning rate (Kingma and Ba 2015, Algorithm 1); the state is Optax's.

    Optax computes the correction 1 − b^t as written. In float32 that of b2 = 0.999 is 1.3e-5 off at the first
    step; `-expm1(t log b)` is exact to rounding.
    """
    moments = optax.scale_by_adam(b1, b2, eps)

    def correct(moment: PyTree, decay: float, count: Int[Array, ""]) -> PyTree:
        share = -jnp.expm1(count * math.log(decay))
        return jax.tree.map(lambda m: m / share, moment)

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        state = moments.update(updates, state)[1]
        # No parameter moves before the last gradient is known, so it moves in place: some gradients need the
        # parameters of a later layer.
        count = state.count + zero_after(updates)
        mean, square = correct(state.mu, b1, count), correct(state.nu, b2, count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, square), state

    return optax.GradientTransformation(moments.init, update)


def make_adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
    """Make Adam."""
    return optax.chain(scale_by_adam(b1, b2), optax.scale_by_learning_rate(learning_rate))
