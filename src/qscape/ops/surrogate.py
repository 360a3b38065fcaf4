"""Losses of on-policy learning, per sample, and the weighted mean that makes one number of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def mean(x: Float[Array, " B"], weight: Float[Array, " B"] | None = None) -> Float[Array, ""]:
    """Mean of x, over those rows alone that weigh 1 where weights (0 or 1) are given."""
    return x.mean() if weight is None else (x * weight).sum() / jnp.maximum(weight.sum(), 1.0)


def standardised(
    x: Float[Array, " B"], weight: Float[Array, " B"] | None = None, epsilon: float = 1e-8
) -> Float[Array, " B"]:
    """(x - mean) / (std + ε) with the sample's standard deviation (ddof 1); 0 for a single row."""
    centred = x - mean(x, weight)
    rows = x.size if weight is None else weight.sum()
    squares = jnp.square(centred) if weight is None else weight * jnp.square(centred)
    return centred / (jnp.sqrt(squares.sum() / jnp.maximum(rows - 1.0, 1.0)) + epsilon)


def clipped_surrogate(
    log_ratio: Float[Array, " B"], advantage: Float[Array, " B"], bound: float
) -> Float[Array, " B"]:
    """-min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) with ρ = exp(log ratio) (PPO, Eq. 7)."""
    ratio = jnp.exp(log_ratio)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - bound, 1.0 + bound) * advantage)


def clipped_value_loss(
    value: Float[Array, " B"], old: Float[Array, " B"], target: Float[Array, " B"], bound: float
) -> Float[Array, " B"]:
    """max((R - v)², (R - v_old - clip(v - v_old, -ε, ε))²): the value may move by ε and gain no more."""
    near = old + jnp.clip(value - old, -bound, bound)
    return jnp.maximum(jnp.square(target - value), jnp.square(target - near))


def kl_estimate(log_ratio: Float[Array, " B"]) -> Float[Array, " B"]:
    """(ρ - 1) - log ρ: unbiased for KL(old ‖ new) over samples of the old policy, and never negative."""
    return jnp.expm1(log_ratio) - log_ratio


def explained_variance(
    value: Float[Array, " B"], target: Float[Array, " B"], weight: Float[Array, " B"] | None = None
) -> Float[Array, ""]:
    """1 - Var(R - v) / Var(R): 1 for a perfect critic, 0 for one that knows only the mean."""

    def variance(x: Array) -> Array:
        return mean(jnp.square(x - mean(x, weight)), weight)

    spread = variance(target)
    share = variance(target - value) / jnp.where(spread > 0, spread, 1.0)
    return jax.lax.stop_gradient(jnp.where(spread > 0, 1.0 - share, 0.0))
