"""Returns and advantages of a rollout: time runs along the first axis, environments along the second."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gae(
    reward: Float[Array, "T E"],
    value: Float[Array, "T E"],
    next_value: Float[Array, "T E"],
    terminated: Float[Array, "T E"],
    ended: Float[Array, "T E"],
    discount: float,
    decay: float,
) -> Float[Array, "T E"]:
    """Generalised advantage estimation (Schulman et al. 2016, Eq. 16).

    δ_t = r_t + γ (1 - terminated_t) v(s_{t+1}) - v(s_t);  A_t = δ_t + (1 - ended_t) γ λ A_{t+1}

    Args:
        value, next_value: v(s_t) and v(s_{t+1}); the latter of the true last observation at an end.
        terminated: 1 for a real end, which alone cuts the bootstrap.
        ended: 1 where the following row belongs to another episode: terminated, truncated, or unfinished.
        discount, decay: γ and λ.
    """
    delta = reward + discount * (1.0 - terminated) * next_value - value

    def back(after: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, ended = step
        advantage = delta + (1.0 - ended) * discount * decay * after
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(delta[0]), (delta, ended), reverse=True)[1]


def discounted_returns(
    reward: Float[Array, "T E"],
    bootstrap: Float[Array, ""] | float,
    terminated: Float[Array, "T E"],
    ended: Float[Array, "T E"],
    discount: float,
) -> Float[Array, "T E"]:
    """G_t = r_t + γ G_{t+1} within an episode; one that is cut short goes on with the value `bootstrap`.

    This is GAE with λ = 1 and a value function of 0 that says `bootstrap` where an episode is cut.
    """
    zero = jnp.zeros_like(reward)
    return gae(reward, zero, ended * bootstrap, terminated, ended, discount, 1.0)


def running_returns(
    reward: Float[Array, "T E"], ended: Float[Array, "T E"], before: Float[Array, " E"], discount: float
) -> tuple[Float[Array, "T E"], Float[Array, " E"]]:
    """The discounted sum of past rewards at every step, from `before` on, and what it is afterwards.

    It starts again after an end. Its spread is the scale of rewards (Gymnasium's `NormalizeReward`).
    """

    def forth(sum_: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, ended = step
        sum_ = sum_ * discount + reward
        return sum_ * (1.0 - ended), sum_

    after, sums = jax.lax.scan(forth, before, (reward, ended))
    return sums, after
