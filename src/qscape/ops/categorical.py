"""Categorical distributions over K actions, given logits. All use log-softmax, which is stable."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LEAST = -1e9  # logit of an action that is not valid: exp is 0, and 0 · log π stays 0


def mask(logits: Float[Array, "*b K"], valid: Bool[Array, "*b K"]) -> Float[Array, "*b K"]:
    """Return logits of π(a | s, a is valid); no gradient reaches the logits of other actions."""
    return jnp.where(valid, logits, LEAST)


def log_probs(logits: Float[Array, "*b K"]) -> Float[Array, "*b K"]:
    """Return log π(a | s) of all K actions."""
    return jax.nn.log_softmax(logits, -1)


def log_prob(logits: Float[Array, "*b K"], action: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """Return log π(a | s) of the given action indices."""
    return jnp.take_along_axis(log_probs(logits), action[..., None], -1)[..., 0]


def entropy(logits: Float[Array, "*b K"]) -> Float[Array, "*b"]:
    """Return H(π) = -Σ_a π(a) log π(a), in nats."""
    logs = log_probs(logits)
    return -(jnp.exp(logs) * logs).sum(-1)


def kl(old: Float[Array, "*b K"], new: Float[Array, "*b K"]) -> Float[Array, "*b"]:
    """Return KL(old ‖ new) = Σ_a π_old(a) (log π_old(a) - log π_new(a)), in nats."""
    logs = log_probs(old)
    return (jnp.exp(logs) * (logs - log_probs(new))).sum(-1)
