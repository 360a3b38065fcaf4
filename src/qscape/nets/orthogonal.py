"""Orthogonal initialisation."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from qscape.nets.mlp import Torso
from qscape.types import Key


def orthogonal_linear(key: Key, fan_in: int, fan_out: int, gain: float) -> eqx.nn.Linear:
    """Return a linear layer whose weight has orthonormal rows or columns, times `gain`; the bias is 0."""

    # Sequential under vmap: jaxlib distributes a batch of decompositions over XLA's threads and waits on one
    # of them. On a CPU, as many batches as there are threads then deadlock.
    @jax.custom_batching.sequential_vmap
    def draw(key: Key) -> Array:
        return jax.nn.initializers.orthogonal(gain)(key, (fan_out, fan_in))

    layer = eqx.filter_eval_shape(eqx.nn.Linear, fan_in, fan_out, key=key)  # shapes: it draws nothing
    return eqx.tree_at(lambda x: (x.weight, x.bias), layer, (draw(key), jnp.zeros(fan_out)))


def orthogonal_torso(
    key: Key, sizes: Sequence[int], activation: str, normalise: bool = False, normalise_last: bool = False
) -> Torso:
    """Return a torso with orthogonal weights of gain √2 and biases 0; arguments as in `Torso`."""

    def linear(fan_in: int, fan_out: int, key: Key) -> eqx.nn.Linear:
        return orthogonal_linear(key, fan_in, fan_out, 2.0**0.5)

    return Torso(key, sizes, activation, normalise, linear, normalise_last)


def small_linear(key: Key, fan_in: int, fan_out: int) -> eqx.nn.Linear:
    """Return a linear layer with orthogonal weights of gain 0.001; biases are uniform in ±1/√fan_in."""
    k_weight, k_bias = jax.random.split(key)
    layer, bound = orthogonal_linear(k_weight, fan_in, fan_out, 0.001), fan_in**-0.5
    bias = jax.random.uniform(k_bias, (fan_out,), minval=-bound, maxval=bound)
    return eqx.tree_at(lambda x: x.bias, layer, bias)
