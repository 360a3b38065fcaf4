"""Temporal-difference losses, priorities and targets."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def mse_loss(td_error: Float[Array, "B heads"]) -> Float[Array, ""]:
    """Return mean squared TD error, summed over the critics (TD3)."""
    return jnp.square(td_error).sum(-1).mean()


def lap_huber(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x²/2 if |x| < 1, else |x| (LAP, Eq. 5). Its gradient is that of the Huber loss.

    The linear part is not shifted by -1/2, so the value jumps at 1; the gradient does not.
    """
    x = jnp.abs(x)
    return jnp.where(x < 1.0, 0.5 * jnp.square(x), x)


def lap_huber_loss(td_error: Float[Array, "B heads"]) -> Float[Array, ""]:
    """Return the loss for LAP's prioritised sampling: mean of `lap_huber`, summed over the critics."""
    return lap_huber(td_error).sum(-1).mean()


def pal_loss(td_error: Float[Array, "B heads"], alpha: float = 0.4) -> Float[Array, ""]:
    """Return PAL, the loss for uniform sampling with the same expected gradient as LAP (LAP, Eq. 10).

    x²/2 if |x| < 1, else |x|^(1+α)/(1+α); divided by the mean priority of the batch, which carries no
    gradient.
    """
    x = jnp.abs(td_error)
    # The power of max(x, 1), because the gradient of the unused branch must stay finite below 1.
    value = jnp.where(x < 1.0, 0.5 * jnp.square(x), jnp.maximum(x, 1.0) ** (1.0 + alpha) / (1.0 + alpha))
    scale = jax.lax.stop_gradient(lap_priority(td_error, alpha, 1.0).mean())
    return value.sum(-1).mean() / scale


CRITIC_LOSSES = {"mse": mse_loss, "lap_huber": lap_huber_loss, "pal": pal_loss}


def huber_loss(td_error: Float[Array, "B heads"], threshold: float) -> Float[Array, ""]:
    """Return mean Huber loss, summed over the critics: x²/2 if |x| < δ, else δ (|x| − δ/2);
    δ is `threshold`.
    """
    return optax.huber_loss(td_error, delta=threshold).sum(-1).mean()


def lap_priority(td_error: Float[Array, "B heads"], alpha: float, min_priority: float) -> Float[Array, " B"]:
    """Return priorities max(max_i |δ_i|, p_min)^α of the sampled rows (LAP, Eq. 6; TD7, Section 4.2)."""
    return jnp.maximum(jnp.abs(td_error).max(-1), min_priority) ** alpha


def td_target(
    reward: Float[Array, "*#b"],
    terminated: Float[Array, "*#b"],
    discount: Float[Array, "*#b"] | float,
    next_value: Float[Array, "*#b"],
) -> Float[Array, "*#b"]:
    """Return y = r + γ (1 - d) V(s'); d is 1 at a terminal state, and 0 at a time limit. Shapes are
    broadcast.
    """
    return reward + (1.0 - terminated) * discount * next_value
