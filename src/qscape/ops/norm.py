"""Normalisations of feature vectors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def avg_l1_norm(x: Float[Array, "*batch n"], floor: float = 1e-8) -> Float[Array, "*batch n"]:
    """Return AvgL1Norm(x): divide by the mean absolute entry, along the last axis (TD7, Section 4).

    It has no parameters and does not centre. Gradients pass through the denominator.
    """
    return x / jnp.maximum(jnp.abs(x).mean(-1, keepdims=True), floor)


def layer_norm(x: Float[Array, "*batch n"], epsilon: float = 1e-5) -> Float[Array, "*batch n"]:
    """Normalise a layer without scale and shift: (x - mean) / √(var + ε) along the last axis."""
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + epsilon)


def batch_norm(
    x: Float[Array, "*batch n"],
    mean: Float[Array, " n"],
    variance: Float[Array, " n"],
    epsilon: float = 1e-5,
) -> Float[Array, "*batch n"]:
    """Normalise a batch by given statistics, without scale and shift: (x - mean) / √(variance + ε)."""
    return (x - mean) * jax.lax.rsqrt(variance + epsilon)


def unit(x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Return x / max(‖x‖₂, 1e-12), along the last axis; its gradient at 0 is finite."""
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def identity(x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Return x: no normalisation."""
    return x


NORMS = {"avg_l1": avg_l1_norm, "layer": layer_norm, "none": identity}
