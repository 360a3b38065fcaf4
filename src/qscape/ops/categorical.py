"""Choices among K actions by logits; everything from log-softmax, never from the log of a softmax."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def log_probs(logits: Float[Array, "*b K"]) -> Float[Array, "*b K"]:
    """log π of every action."""
    return jax.nn.log_softmax(logits, -1)


def log_prob(logits: Float[Array, "*b K"], action: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """log π of the action taken."""
    return jnp.take_along_axis(log_probs(logits), action[..., None], -1)[..., 0]


def entropy(logits: Float[Array, "*b K"]) -> Float[Array, "*b"]:
    """H(π) in nats."""
    logs = log_probs(logits)
    return -(jnp.exp(logs) * logs).sum(-1)


def kl(old: Float[Array, "*b K"], new: Float[Array, "*b K"]) -> Float[Array, "*b"]:
    """KL(old ‖ new) in nats."""
    logs = log_probs(old)
    return (jnp.exp(logs) * (logs - log_probs(new))).sum(-1)
