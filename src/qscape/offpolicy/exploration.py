"""Exploration: Gaussian or Ornstein-Uhlenbeck noise times ε(t), or ε-greedy actions.

The default is TD3's Gaussian noise of constant size. SAVO and its baselines use an Ornstein-Uhlenbeck process
whose factor ε decays from 1 to 0.01 (arXiv 2410.11833, Algorithm 1 and Table 2). FastTD3's environments each
draw a standard deviation for an episode (arXiv 2505.22642). FlashSAC keeps the noise of its samples for
several steps (arXiv 2604.04539).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Context
from qscape.types import Key, Scalar

PAPER_STEPS = 3_000_000  # length of run that `base.epsilon_decay` is a fraction of, if no run is known

# Base fields that SAVO and its baselines override.
OU_NOISE: Mapping[str, Any] = {"exploration": "ou", "exploration_noise": 0.2, "epsilon_end": 0.01}


def epsilon(base: Base, env_steps: Int[Array, ""] | int) -> Scalar:
    """Return ε at an environment step; it decays linearly from the end of the random phase on."""
    share = base.epsilon_decay
    length = share * PAPER_STEPS if share <= 1 else share
    passed = jnp.clip((env_steps - base.warmup) / length, 0.0, 1.0)
    return base.epsilon_start + (base.epsilon_end - base.epsilon_start) * passed


def init_noise(base: Base | None, *shape: int) -> Float[Array, "..."] | None:
    """Return the state of the noise at its start; None for noise without a state.

    Ornstein-Uhlenbeck processes start at 0. The standard deviation of an environment is 0 until it is drawn.

    Args:
        base: the agent's settings; None for an agent that only evaluates.
        shape: environments, processes per environment if several, action size.
    """
    if base is None or base.exploration == "gaussian":
        return None
    return jnp.zeros(shape if base.exploration == "ou" else (shape[0], *[1] * (len(shape) - 1)))


def sample_noise(
    context: Context,
    noise_state: Float[Array, "E ..."] | None,
    first: Bool[Array, " E"],
    shape: tuple[int, ...],
    key: Key,
) -> tuple[Float[Array, "E *n A"] | None, Float[Array, "E ..."] | None]:
    """Sample exploration noise. An OU process starts at 0 with each episode.

    It is x ← (1 − θ) x + σ N(0, I), and ε x the noise; if ε scales increments, the noise is x itself, with
    x ← x + ε (−θ x + σ N(0, I)), as SAVO's released code has it. At a small ε its standard deviation falls
    with √ε, and not with ε.

    Args:
        noise_state: what `init_noise` or an earlier call returned: the processes' values [E, ..., A], the
            environments' standard deviations [E, ..., 1], or None.
        first: true for environments whose episode starts now.
        shape: of the noise; it begins with E.

    Returns:
        The noise, scaled by ε, or None if `base.exploration_noise` is 0; and the next noise state.
    """
    base = context.base
    if not base.exploration_noise:
        return None, noise_state
    before = init_noise(base, *shape) if noise_state is None else noise_state
    first = first.reshape(-1, *[1] * (len(shape) - 1))
    if base.exploration == "per_environment" and before is not None:
        key, k_size = jax.random.split(key)
        drawn = jax.random.uniform(k_size, before.shape, minval=base.noise_min, maxval=base.noise_max)
        # 0: nothing was drawn for an episode that began in the random phase.
        noise_state = jnp.where(first | (before == 0.0), drawn, before)
        noise = noise_state * jax.random.normal(key, shape)
    else:
        noise = base.exploration_noise * jax.random.normal(key, shape)
        if base.exploration == "ou" and before is not None:
            before = jnp.where(first, 0.0, before)
            if base.epsilon_mode == "increment":
                increment = noise - base.ou_rate * before
                noise = before + epsilon(base, context.event.env_steps) * increment
                return noise, noise
            noise = noise_state = (1.0 - base.ou_rate) * before + noise
    if base.epsilon_mode == "noise" and base.epsilon_start == base.epsilon_end == 1.0:
        return noise, noise_state
    size = 1.0 if base.epsilon_mode == "greedy" else epsilon(base, context.event.env_steps)
    return size * noise, noise_state


def add_noise(
    context: Context, obs: Array, action: Float[Array, "*b A"], noise: Float[Array, "*b A"] | None
) -> Float[Array, "*b A"]:
    """Return the action plus noise, clipped to [-1, 1] and snapped to the action table; None: no noise."""
    return action if noise is None else context.snap(jnp.clip(action + noise, -1.0, 1.0), obs)


def explore(
    context: Context,
    obs: Float[Array, "E S"],
    action: Float[Array, "E A"],
    noise_state: Float[Array, "E ..."] | None,
    first: Array,
    key: Key,
) -> tuple[Float[Array, "E A"], Float[Array, "E ..."] | None]:
    """Add exploration to a selected action; return the action to execute and the next noise state."""
    greedy = context.base.epsilon_mode == "greedy"
    key, k_uniform = jax.random.split(key) if greedy else (key, key)
    noise, noise_state = sample_noise(context, noise_state, first, action.shape, key)
    action = add_noise(context, obs, action, noise)
    return (apply_epsilon_greedy(context, obs, action, k_uniform) if greedy else action), noise_state


class HeldNoise(NamedTuple):
    """Noise of a policy's samples that is kept for some steps.

    Attributes:
        noise: the draw of N(0, I) of each environment.
        left: for how many more steps it is kept; the same for all environments.
        added: the state of the noise that is added to the action (`init_noise`).
    """

    noise: Float[Array, "E A"]
    left: Int[Array, " E"]
    added: Float[Array, "E ..."] | None


def init_held_noise(base: Base, envs: int, size: int) -> HeldNoise:
    """Return the state before any noise was drawn."""
    return HeldNoise(jnp.zeros((envs, size)), jnp.zeros(envs, jnp.int32), init_noise(base, envs, size))


def hold_noise(base: Base, held: HeldNoise, key: Key) -> HeldNoise:
    """Return the noise of the next step: as it was, or a new draw after its k steps (FlashSAC).

    One k is drawn for all environments. An episode's end does not renew the noise.
    """
    k_length, k_noise = jax.random.split(key)
    steps = draw_repeats(jax.random.uniform(k_length), base.noise_repeat, base.noise_repeat_power)
    is_over = held.left == 0
    noise = jnp.where(is_over[:, None], jax.random.normal(k_noise, held.noise.shape), held.noise)
    return held._replace(noise=noise, left=jnp.where(is_over, steps, held.left) - 1)


def draw_repeats(u: Float[Array, "*b"], most: int, power: float) -> Int[Array, "*b"]:
    """Return k in 1..`most` with P(k) = k^-power / Σ j^-power, at uniform numbers u in [0, 1)."""
    weights = np.arange(1, most + 1, dtype=np.float64) ** -power
    below = jnp.asarray(np.cumsum(weights)[:-1] / weights.sum(), jnp.float32)
    return 1 + (u[..., None] >= below).sum(-1, dtype=jnp.int32)


def apply_epsilon_greedy(
    context: Context, obs: Float[Array, "E S"], action: Float[Array, "E A"], key: Key
) -> Float[Array, "E A"]:
    """Replace each environment's action by a uniformly random one with probability ε."""
    k_when, k_what = jax.random.split(key)
    is_uniform = jax.random.uniform(k_when, action.shape[:1]) < epsilon(context.base, context.event.env_steps)
    return jnp.where(is_uniform[:, None], context.spec.draw_actions(obs, k_what), action)
