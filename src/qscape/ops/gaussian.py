"""Diagonal Gaussians: the tanh-squashed one of soft actor-critic and Brax's PPO, and the plain one of PPO."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def log_std_tanh(raw: Float[Array, "*b A"], low: float, high: float) -> Float[Array, "*b A"]:
    """Return log σ = low + (high - low) (tanh(raw) + 1) / 2."""
    return low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)


LOG_STD_BOUNDS = {"clip": jnp.clip, "tanh": log_std_tanh}


def squashed_log_prob(
    pre_tanh: Float[Array, "*b A"],
    mean: Float[Array, "*#b A"],
    log_std: Float[Array, "*#b A"],
    density: Literal["exact", "released"] = "exact",
) -> Float[Array, "*b"]:
    """Return log-density of a = tanh(u), u ~ N(mean, std²), summed over the action's dimensions (SAC, App.
    C).

    Args:
        pre_tanh: u.
        mean, log_std: of u.
        density: "released" computes log(1 - tanh²u + 1e-6) instead, as the released code of SAVGO and PAVE.
    """
    z = (pre_tanh - mean) * jnp.exp(-log_std)
    log_normal = -0.5 * jnp.square(z) - log_std - 0.5 * math.log(2.0 * math.pi)
    if density == "released":
        return (log_normal - jnp.log(1.0 - jnp.square(jnp.tanh(pre_tanh)) + 1e-6)).sum(-1)
    return (log_normal - _log_jacobian(pre_tanh)).sum(-1)


def _log_jacobian(u: Array) -> Array:
    """Return log(1 - tanh²u), by a form that neither overflows nor loses digits in the tails."""
    return 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))


def squashed_entropy(mean: Float[Array, "*b A"], log_std: Float[Array, "*b A"]) -> Float[Array, "*b"]:
    """Return entropy of a = tanh(u), u ~ N(mean, std²), in nats, summed over independent dimensions.

    H(a) = H(u) + E log(1 - tanh²u); the expectation is computed by Gauss-Hermite quadrature.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(32)
    u = mean[..., None] + jnp.exp(log_std)[..., None] * nodes
    return normal_entropy(log_std) + (_log_jacobian(u) * (weights / weights.sum())).sum((-2, -1))


def normal_log_prob(
    x: Float[Array, "*b A"], mean: Float[Array, "*b A"], log_std: Float[Array, "*b A"]
) -> Float[Array, "*b"]:
    """Return log-density of N(mean, std²), summed over independent dimensions."""
    z = (x - mean) * jnp.exp(-log_std)
    return (-0.5 * jnp.square(z) - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def normal_entropy(log_std: Float[Array, "*b A"]) -> Float[Array, "*b"]:
    """Return entropy of N(·, std²) in nats, summed over independent dimensions."""
    return (log_std + 0.5 * (1.0 + math.log(2.0 * math.pi))).sum(-1)


def normal_kl(
    mean: Float[Array, "*b A"],
    log_std: Float[Array, "*b A"],
    other_mean: Float[Array, "*b A"],
    other_log_std: Float[Array, "*b A"],
) -> Float[Array, "*b"]:
    """Return KL(N(mean, std²) ‖ N(other)) in nats, summed over independent dimensions."""
    ratio = jnp.exp(2.0 * (log_std - other_log_std))
    gap = jnp.square((mean - other_mean) * jnp.exp(-other_log_std))
    return (other_log_std - log_std + 0.5 * (ratio + gap - 1.0)).sum(-1)
