"""What all networks are made of."""

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.ops.product import product

Inputs: TypeAlias = Array | tuple[Array, ...]  # one array, or several that stand side by side: see `joined`


def dense(layer: eqx.nn.Linear, x: Inputs) -> Float[Array, "*b o"]:
    """Apply a linear layer to a batch as one matrix product (Equinox's own call takes one vector).

    Of several inputs each is multiplied by its own columns of the weight, and the products are broadcast:
    what is the same for K actions of a state is multiplied once, not K times.
    """
    assert layer.bias is not None
    if not isinstance(x, tuple):
        return product(x, layer.weight) + layer.bias
    *ends, _ = accumulate(part.shape[-1] for part in x)
    weights = jnp.split(layer.weight, ends, axis=1)
    first, *others = (product(part, weight) for part, weight in zip(x, weights, strict=True))
    return sum(others, first) + layer.bias


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Inputs side by side: one array; or as they are, where leading axes differ: [B, 1, i], [B, K, j]."""
    flat = [x for part in parts for x in (part if isinstance(part, tuple) else (part,))]
    if len({x.shape[:-1] for x in flat}) > 1:
        return tuple(flat)
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, -1)


def standardised(
    layer: eqx.nn.Linear, mean: Float[Array, " i"], covariance: Float[Array, "i i"], epsilon: float = 1e-5
) -> eqx.nn.Linear:
    """The layer with outputs of mean 0 and variance 1 where its inputs have this mean and covariance: batch
    normalisation of W x + b, without learned scale or shift, as a layer of its own."""
    variance = ((layer.weight @ covariance) * layer.weight).sum(-1)
    weight = layer.weight * jax.lax.rsqrt(variance + epsilon)[:, None]
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (weight, -weight @ mean))
