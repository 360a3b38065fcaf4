"""Linear layers on batches and on lists of inputs."""

import dataclasses
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.ops.norm import layer_norm
from qscape.ops.product import product
from qscape.types import Key

# One array, or a tuple that stands for its concatenation (see `concatenate_inputs`).
Inputs: TypeAlias = Array | tuple[Array, ...]


class OfGivenLength(eqx.Module):
    """A module with parameters of a given length, which `project` restores after every optimiser step."""

    def projected(self) -> "OfGivenLength":
        """Return the module with its parameters at their length."""
        raise NotImplementedError


class UnitLinear(OfGivenLength):
    """A linear layer in which the weight vector of every output unit has length 1.

    Attributes:
        weight: [o, i], rows of length 1.
        bias: [o], free; None: no bias.
    """

    weight: Float[Array, "o i"]
    bias: Float[Array, " o"] | None = None

    def projected(self) -> "UnitLinear":
        length = jnp.linalg.norm(self.weight, axis=-1, keepdims=True)
        return dataclasses.replace(self, weight=self.weight / jnp.maximum(length, 1e-8))


class LayerNorm(eqx.Module):
    """y = scale (x − mean) / √(variance + ε) + shift over the last axis.

    Attributes:
        scale, shift: learned; they start at 1 and 0.
        epsilon: ε.
    """

    scale: Float[Array, " n"]
    shift: Float[Array, " n"]
    epsilon: float = eqx.field(static=True)

    def __init__(self, size: int, epsilon: float = 1e-5) -> None:
        self.scale, self.shift, self.epsilon = jnp.ones(size), jnp.zeros(size), epsilon

    def __call__(self, x: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
        return self.scale * layer_norm(x, self.epsilon) + self.shift


class SampleNorm(eqx.Module):
    """y = scale (x − mean) / (std + ε) + shift over the last axis, std that of a sample (n − 1).

    Attributes:
        scale, shift: learned; they start uniform in [0, 1] and at 0.
    """

    scale: Float[Array, " n"]
    shift: Float[Array, " n"]

    def __init__(self, key: Key, size: int) -> None:
        self.scale, self.shift = jax.random.uniform(key, (size,)), jnp.zeros(size)

    def __call__(self, x: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
        centred = x - x.mean(-1, keepdims=True)
        # The root of 0 has no gradient, and features that are all 0 are not rare behind a ReLU.
        variance = jnp.square(centred).sum(-1, keepdims=True) / max(x.shape[-1] - 1, 1)
        std = jnp.where(variance > 0.0, jnp.sqrt(jnp.where(variance > 0.0, variance, 1.0)), 0.0)
        return self.scale * centred / (std + 1e-5) + self.shift


@runtime_checkable
class LinearLike(Protocol):
    """A module that stands for a linear layer, such as the output block of a residual network."""

    def __call__(self, x: Inputs) -> Float[Array, "*b o"]: ...


Linear: TypeAlias = eqx.nn.Linear | UnitLinear | LinearLike
Tree = TypeVar("Tree")


def project(tree: Tree) -> Tree:
    """Return a tree of networks in which all parameters of a given length have it."""

    def restore(module: Any) -> Any:
        return module.projected() if isinstance(module, OfGivenLength) else module

    return jax.tree.map(restore, tree, is_leaf=lambda x: isinstance(x, OfGivenLength))


@jax.jit
def start_unit(layer: UnitLinear) -> UnitLinear:
    """Return a new layer with rows of length 1, by one program."""
    return layer.projected()


def find_decayed(tree: Tree, matrices_only: bool) -> Tree:
    """Return a tree of networks with True where weight decay acts, for `optax.masked`.

    It skips the weights of `UnitLinear`, whose length is given.

    Args:
        matrices_only: it also skips biases and other vectors.
    """

    def skip_unit_rows(module: Any) -> Any:
        return eqx.tree_at(lambda m: m.weight, module, False) if isinstance(module, UnitLinear) else module

    found = jax.tree.map(lambda x: x.ndim > 1 or not matrices_only, tree)
    return jax.tree.map(skip_unit_rows, found, is_leaf=lambda x: isinstance(x, UnitLinear))


def dense(layer: Linear, x: Inputs) -> Float[Array, "*b o"]:
    """Apply a linear layer, with or without bias, to a batch, as one matrix product.

    Equinox's own call takes one vector. Another module that stands for a linear layer is called itself.

    A tuple of inputs stands for their concatenation along the last axis. Each is multiplied by its own
    columns of the weight, and the products are broadcast: an observation [B, 1, S] beside K actions
    [B, K, A] is multiplied once, not K times.
    """
    if not isinstance(layer, eqx.nn.Linear | UnitLinear):
        return layer(x)
    if not isinstance(x, tuple):
        y = product(x, layer.weight)
    else:
        *ends, _ = accumulate(part.shape[-1] for part in x)
        weights = jnp.split(layer.weight, ends, axis=1)
        first, *others = (product(part, weight) for part, weight in zip(x, weights, strict=True))
        y = sum(others, first)
    return y if layer.bias is None else y + layer.bias


def concatenate_inputs(parts: Sequence[Inputs]) -> Inputs:
    """Concatenate inputs along the last axis; if leading axes differ ([B, 1, i], [B, K, j]), keep a tuple."""
    flat = [x for part in parts for x in (part if isinstance(part, tuple) else (part,))]
    if len({x.shape[:-1] for x in flat}) > 1:
        return tuple(flat)
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, -1)


def join_inputs(x: Inputs) -> Array:
    """Concatenate a tuple of inputs along the last axis, with leading axes broadcast."""
    if not isinstance(x, tuple):
        return x
    leading = jnp.broadcast_shapes(*(part.shape[:-1] for part in x))
    return jnp.concatenate([jnp.broadcast_to(part, (*leading, part.shape[-1])) for part in x], -1)


def fold_batch_norm(
    layer: eqx.nn.Linear, mean: Float[Array, " i"], covariance: Float[Array, "i i"], epsilon: float = 1e-5
) -> eqx.nn.Linear:
    """Return a linear layer that computes the batch normalisation of W x + b, without trained scale and
    shift.

    `mean` and `covariance` are those of the inputs x; the outputs then have mean 0 and variance 1.
    """
    variance = ((layer.weight @ covariance) * layer.weight).sum(-1)
    weight = layer.weight * jax.lax.rsqrt(variance + epsilon)[:, None]
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (weight, -weight @ mean))
