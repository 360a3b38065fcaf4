"""How actions are disturbed while an agent learns: Gaussian or Ornstein-Uhlenbeck noise times ε(t).

The default is TD3's Gaussian noise of constant size. The noise of SAVO and its baselines follows an
Ornstein-Uhlenbeck process, and ε falls from 1 to 0.01 (SAVO, arXiv 2410.11833, Algorithm 1 and Table 2).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Context
from qscape.types import Key, Scalar, Spec

PAPER_STEPS = 3_000_000  # of the runs from which `base.epsilon_decay` is a share, where no run is known

# What SAVO and its baselines move in the base.
OU_NOISE: Mapping[str, Any] = {"exploration": "ou", "exploration_noise": 0.2, "epsilon_end": 0.01}


def epsilon(base: Base, env_steps: Int[Array, ""] | int) -> Scalar:
    """ε at an environment step: from `epsilon_start` to `epsilon_end` in a line that begins where the random
    phase ends."""
    share = base.epsilon_decay
    length = share * PAPER_STEPS if share <= 1 else share
    passed = jnp.clip((env_steps - base.warmup) / length, 0.0, 1.0)
    return base.epsilon_start + (base.epsilon_end - base.epsilon_start) * passed


def init_noise(base: Base | None, *shape: int) -> Float[Array, "..."] | None:
    """The state of processes that have not begun; None where the noise has no state."""
    return jnp.zeros(shape) if base is not None and base.exploration == "ou" else None


def sample_noise(
    context: Context,
    noise_state: Float[Array, "E *n A"] | None,
    first: Bool[Array, " E"],
    shape: tuple[int, ...],
    key: Key,
) -> tuple[Float[Array, "E *n A"] | None, Float[Array, "E *n A"] | None]:
    """Noise of `shape` and the state of its process; None where the base asks for no noise.

    A process x ← (1 − θ) x + σ N(0, I) begins at 0 with its episode.
    """
    base = context.base
    if not base.exploration_noise:
        return None, noise_state
    noise = base.exploration_noise * jax.random.normal(key, shape)
    if base.exploration == "ou":
        before = jnp.zeros(shape) if noise_state is None else noise_state
        before = jnp.where(first.reshape(-1, *[1] * (len(shape) - 1)), 0.0, before)
        noise = noise_state = (1.0 - base.ou_rate) * before + noise
    if base.epsilon_mode == "noise" and base.epsilon_start == base.epsilon_end == 1.0:
        return noise, noise_state
    size = 1.0 if base.epsilon_mode == "greedy" else epsilon(base, context.event.env_steps)
    return size * noise, noise_state


def add_noise(
    context: Context, action: Float[Array, "*b A"], noise: Float[Array, "*b A"] | None
) -> Float[Array, "*b A"]:
    """The action with noise on it, back in the box and, where actions are discrete, at a real one."""
    return action if noise is None else context.snap(jnp.clip(action + noise, -1.0, 1.0))


def explore(
    context: Context,
    action: Float[Array, "E A"],
    noise_state: Float[Array, "E A"] | None,
    first: Array,
    key: Key,
) -> tuple[Float[Array, "E A"], Float[Array, "E A"] | None]:
    """A chosen action as it is executed while the agent learns, and the state of the noise."""
    greedy = context.base.epsilon_mode == "greedy"
    key, k_uniform = jax.random.split(key) if greedy else (key, key)
    noise, noise_state = sample_noise(context, noise_state, first, action.shape, key)
    action = add_noise(context, action, noise)
    return (apply_epsilon_greedy(context, action, k_uniform) if greedy else action), noise_state


def apply_epsilon_greedy(context: Context, action: Float[Array, "E A"], key: Key) -> Float[Array, "E A"]:
    """ε-greedy: with probability ε any action, each as likely."""
    k_when, k_what = jax.random.split(key)
    is_uniform = jax.random.uniform(k_when, action.shape[:1]) < epsilon(context.base, context.event.env_steps)
    return jnp.where(is_uniform[:, None], sample_uniform_action(context.spec, action, k_what), action)


def sample_uniform_action(spec: Spec, like: Float[Array, "*b _"], key: Key) -> Float[Array, "*b A"]:
    """Uniform actions, one for each row of `like`: in [-1, 1]^A, or rows of the action table."""
    if spec.table is not None:
        return jnp.asarray(spec.table)[jax.random.randint(key, like.shape[:-1], 0, len(spec.table))]
    return jax.random.uniform(key, (*like.shape[:-1], spec.action_size), minval=-1.0, maxval=1.0)
