"""Ranks of numbers, and the correlation of ranks."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def rank_correlation(x: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, ""]:
    """Return Spearman's rank correlation; ties take their mean rank, and a constant side gives 0."""
    a, b = (ranks(v) - (len(v) + 1) / 2 for v in (x, y))
    norm = jnp.sqrt(jnp.square(a).sum()) * jnp.sqrt(jnp.square(b).sum())  # one root of both overflows
    return jnp.where(
        norm > 0.0, (a * b).sum() / jnp.maximum(norm, 0.25), 0.0
    )  # the least norm is 0.5, of two numbers


def ranks(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return ranks from 1; equal numbers share the mean of theirs."""
    ordered = jnp.sort(x)
    before, upto = (jnp.searchsorted(ordered, x, side=side) for side in ("left", "right"))
    return 0.5 * (before + upto + 1)
