"""Returns and advantages of rollouts [T, E]: T steps of E environments."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gae(
    reward: Float[Array, "T E"],
    value: Float[Array, "T E"],
    next_value: Float[Array, "T E"],
    terminated: Float[Array, "T E"],
    segment_end: Float[Array, "T E"],
    discount: float,
    decay: float,
) -> Float[Array, "T E"]:
    """Generalised advantage estimation (Schulman et al. 2016, Eq. 16).

    δ_t = r_t + γ (1 - terminated_t) v(s_{t+1}) - v(s_t);  A_t = δ_t + (1 - segment_end_t) γ λ A_{t+1}

    Args:
        reward: r_t.
        value, next_value: v(s_t) and v(s_{t+1}); s_{t+1} is the true last observation at an episode's end.
        terminated: 1 at a terminal state, which cuts the bootstrap.
        segment_end: 1 where the next row does not continue the episode: terminated, truncated, or the last
            row.
        discount: γ.
        decay: λ.
    """
    delta = reward + discount * (1.0 - terminated) * next_value - value

    def accumulate_backwards(after: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, segment_end = step
        advantage = delta + (1.0 - segment_end) * discount * decay * after
        return advantage, advantage

    return jax.lax.scan(accumulate_backwards, jnp.zeros_like(delta[0]), (delta, segment_end), reverse=True)[1]


def discounted_returns(
    reward: Float[Array, "T E"],
    bootstrap: Float[Array, ""] | float,
    terminated: Float[Array, "T E"],
    segment_end: Float[Array, "T E"],
    discount: float,
) -> Float[Array, "T E"]:
    """G_t = r_t + γ G_{t+1} within an episode; an episode that is cut short is bootstrapped with `bootstrap`.

    It equals GAE with λ = 1 and v = 0, except that v is `bootstrap` after the last row of a segment.
    Arguments as in `gae`.
    """
    zero = jnp.zeros_like(reward)
    return gae(reward, zero, segment_end * bootstrap, terminated, segment_end, discount, 1.0)


def running_returns(
    reward: Float[Array, "T E"], done: Float[Array, "T E"], before: Float[Array, " E"], discount: float
) -> tuple[Float[Array, "T E"], Float[Array, " E"]]:
    """Discounted sums of past rewards, R_t = γ R_{t-1} + r_t, restarted after each episode.

    Their standard deviation is the scale of rewards. The sum is the same however an episode ends; that of
    Gymnasium's `NormalizeReward` (1.4) is not: it leaves the past out of a step that terminates.

    Args:
        reward: r_t.
        done: 1 in the last step of an episode.
        before: R before the first row.
        discount: γ.

    Returns:
        R_t at every step, and R after the last row (0 if it ended an episode).
    """

    def accumulate(sum_: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = step
        sum_ = sum_ * discount + reward
        return sum_ * (1.0 - done), sum_

    after, sums = jax.lax.scan(accumulate, before, (reward, done))
    return sums, after
