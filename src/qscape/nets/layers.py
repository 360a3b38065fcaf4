"""Linear layers on batches and on lists of inputs."""

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.ops.product import product

# One array, or a tuple that stands for its concatenation (see `concatenate_inputs`).
Inputs: TypeAlias = Array | tuple[Array, ...]


def dense(layer: eqx.nn.Linear, x: Inputs) -> Float[Array, "*b o"]:
    """Apply a linear layer to a batch, as one matrix product. (Equinox's own call takes one vector.)

    A tuple of inputs stands for their concatenation along the last axis. Each is multiplied by its own
    columns of the weight, and the products are broadcast: an observation [B, 1, S] beside K actions
    [B, K, A] is multiplied once, not K times.
    """
    assert layer.bias is not None
    if not isinstance(x, tuple):
        return product(x, layer.weight) + layer.bias
    *ends, _ = accumulate(part.shape[-1] for part in x)
    weights = jnp.split(layer.weight, ends, axis=1)
    first, *others = (product(part, weight) for part, weight in zip(x, weights, strict=True))
    return sum(others, first) + layer.bias


def concatenate_inputs(parts: Sequence[Inputs]) -> Inputs:
    """Concatenate inputs along the last axis; if leading axes differ ([B, 1, i], [B, K, j]), keep a tuple."""
    flat = [x for part in parts for x in (part if isinstance(part, tuple) else (part,))]
    if len({x.shape[:-1] for x in flat}) > 1:
        return tuple(flat)
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, -1)


def fold_batch_norm(
    layer: eqx.nn.Linear, mean: Float[Array, " i"], covariance: Float[Array, "i i"], epsilon: float = 1e-5
) -> eqx.nn.Linear:
    """A linear layer that computes the batch normalisation of W x + b, without trained scale and shift.

    `mean` and `covariance` are those of the inputs x; the outputs then have mean 0 and variance 1.
    """
    variance = ((layer.weight @ covariance) * layer.weight).sum(-1)
    weight = layer.weight * jax.lax.rsqrt(variance + epsilon)[:, None]
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (weight, -weight @ mean))
