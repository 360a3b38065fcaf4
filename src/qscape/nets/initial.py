"""Linear layers whose first weights are drawn from a distribution."""

import equinox as eqx
import jax
import jax.numpy as jnp

from qscape.types import Key


def he_linear(key: Key, size: int, outputs: int) -> eqx.nn.Linear:
    """Return a linear layer with weights from a truncated normal of variance 2 / size, and bias 0."""
    return _drawn(jax.nn.initializers.he_normal(in_axis=-1, out_axis=-2), key, size, outputs)


def lecun_linear(key: Key, size: int, outputs: int) -> eqx.nn.Linear:
    """Return a linear layer with weights from a truncated normal of variance 1 / size and bias 0, Flax's
    default.
    """
    return _drawn(jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2), key, size, outputs)


def xavier_linear(key: Key, size: int, outputs: int) -> eqx.nn.Linear:
    """Return a linear layer with weights uniform in ±√(6 / (size + outputs)) and bias 0."""
    return _drawn(jax.nn.initializers.xavier_uniform(in_axis=-1, out_axis=-2), key, size, outputs)


def normal_linear(key: Key, size: int, outputs: int, std: float) -> eqx.nn.Linear:
    """Return a linear layer with weights from N(0, std²) and bias 0."""
    return _drawn(jax.nn.initializers.normal(std), key, size, outputs)


def _drawn(draw: jax.nn.initializers.Initializer, key: Key, size: int, outputs: int) -> eqx.nn.Linear:
    layer = eqx.filter_eval_shape(eqx.nn.Linear, size, outputs, key=key)  # shapes: it draws nothing
    start = draw(key, (outputs, size), jnp.float32), jnp.zeros(outputs)
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, start)
