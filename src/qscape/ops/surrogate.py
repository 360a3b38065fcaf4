"""Losses of on-policy methods, one number per sample, and their weighted mean."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def weighted_mean(x: Float[Array, " B"], weight: Float[Array, " B"] | None = None) -> Float[Array, ""]:
    """Return mean of x over the rows of weight 1; weights are 0 or 1, and None counts all rows."""
    return x.mean() if weight is None else (x * weight).sum() / jnp.maximum(weight.sum(), 1.0)


def standardise_advantages(
    x: Float[Array, " B"], weight: Float[Array, " B"] | None = None, epsilon: float = 1e-8
) -> Float[Array, " B"]:
    """Return (x - mean) / (std + ε), with ddof 1, over the rows of weight 1; 0 for a single row."""
    centred = x - weighted_mean(x, weight)
    rows = x.size if weight is None else weight.sum()
    squares = jnp.square(centred) if weight is None else weight * jnp.square(centred)
    return centred / (jnp.sqrt(squares.sum() / jnp.maximum(rows - 1.0, 1.0)) + epsilon)


def clipped_surrogate(
    log_ratio: Float[Array, " B"], advantage: Float[Array, " B"], bound: float
) -> Float[Array, " B"]:
    """Return -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) with log ρ = `log_ratio` and ε = `bound` (PPO, Eq. 7)."""
    ratio = jnp.exp(
        jnp.minimum(log_ratio, 80.0)
    )  # finite: an infinite ratio times an advantage of 0 is no number
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - bound, 1.0 + bound) * advantage)


def clipped_value_loss(
    value: Float[Array, " B"], old: Float[Array, " B"], target: Float[Array, " B"], bound: float
) -> Float[Array, " B"]:
    """Return max((R - v)², (R - v_old - clip(v - v_old, ±ε))²): moving v by more than ε = `bound` gains
    nothing.
    """
    near = old + jnp.clip(value - old, -bound, bound)
    return jnp.maximum(jnp.square(target - value), jnp.square(target - near))


def kl_estimate(log_ratio: Float[Array, " B"]) -> Float[Array, " B"]:
    """Return (ρ - 1) - log ρ, an unbiased, non-negative estimate of KL(old ‖ new) on samples of the old
    policy.
    """
    return jnp.expm1(log_ratio) - log_ratio


def explained_variance(
    value: Float[Array, " B"], target: Float[Array, " B"], weight: Float[Array, " B"] | None = None
) -> Float[Array, ""]:
    """Return 1 - Var(R - v) / Var(R): 1 for a perfect critic, 0 for one that predicts the mean.
    No gradient.
    """

    def variance(x: Array) -> Array:
        return weighted_mean(jnp.square(x - weighted_mean(x, weight)), weight)

    spread = variance(target)
    share = variance(target - value) / jnp.where(spread > 0, spread, 1.0)
    return jax.lax.stop_gradient(jnp.where(spread > 0, 1.0 - share, 0.0))
