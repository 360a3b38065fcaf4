"""The geometry of values: similar state-action pairs, and a kernel over actions (SAVGO, arXiv 2605.00787).

Two pairs are similar where their values are close. `encoder_loss` teaches embeddings that similarity; the
kernel weighs candidate actions by how near they are to the policy's own action among the embeddings.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from qscape.ops.quantile import quantile

QUANTILE = 0.95  # of the value gaps: the gap that counts as large


# --- what the encoder learns ------------------------------------------------------------------------


def value_gaps(value: Float[Array, " B"]) -> Float[Array, "B B"]:
    """Return G_ij = |u_i - u_j|."""
    return jnp.abs(value[:, None] - value[None, :])


def gap_scale(gaps: Float[Array, "B B"]) -> Float[Array, ""]:
    """Return β of one batch: the 0.95 quantile of all gaps, the zeros of the diagonal included, plus
    1e-6."""
    return quantile(gaps.ravel(), QUANTILE) + 1e-6


def update_scale(scale: Float[Array, ""], batch: Float[Array, ""], rate: float) -> Float[Array, ""]:
    """Return the next running β <- (1 - rate) β + rate β_batch; the batch's β if β is 0, its initial
    value."""
    return jnp.where(scale > 0.0, (1.0 - rate) * scale + rate * batch, batch)


def similarity(
    gaps: Float[Array, "B B"], scale: Float[Array, ""] | float, exponent: float
) -> Float[Array, "B B"]:
    """Return T_ij = 1 - 2 clip(G_ij / β, 0, 1)^λ, in [-1, 1]: 1 for equal values, -1 for a gap of β or
    more."""
    return 1.0 - 2.0 * jnp.clip(gaps / scale, 0.0, 1.0) ** exponent


def bootstrap_similarity(
    now: Float[Array, "B B"],
    next_embedding: Float[Array, "B H"],
    terminated: Float[Array, " B"],
    discount: Float[Array, " B"] | float,
    mixing: float,
) -> Float[Array, "B B"]:
    """Return Y_ij = (1 - m) T_ij + m γ (1 - d_i) z'_i · z'_j: pairs are also similar if they lead to similar
    ones.

    `next_embedding` are unit vectors. (1 - d_i) is that of row i, so Y is not symmetric. Where an episode
    ends, T keeps its weight (1 - m).
    """
    later = next_embedding @ next_embedding.T
    alive = jnp.broadcast_to(discount * (1.0 - terminated), terminated.shape)
    return (1.0 - mixing) * now + mixing * alive[:, None] * later


def smooth_l1(error: Float[Array, "*n"], threshold: float) -> Float[Array, "*n"]:
    """Return e² / 2b where |e| < b, else |e| - b / 2: the Huber function divided by b."""
    return optax.huber_loss(error, delta=threshold) / threshold


def encoder_loss(
    embedding: Float[Array, "B H"], target: Float[Array, "B B"], threshold: float
) -> Float[Array, ""]:
    """Return the mean of smoothL1(z_i · z_j - Y_ij) over the B (B - 1) ordered pairs i ≠ j of unit
    embeddings."""
    rows = len(embedding)
    each = smooth_l1(embedding @ embedding.T - target, threshold)
    return jnp.where(jnp.eye(rows, dtype=bool), 0.0, each).sum() / (rows * (rows - 1))


# --- the kernel over candidates ---------------------------------------------------------------------


def anneal_temperature(steps: Int[Array, ""], start: float, end: float, horizon: int) -> Float[Array, ""]:
    """Return τ = end + ½ (start - end) (1 + cos π p) with p = min(1, steps / horizon)."""
    part = jnp.minimum(1.0, steps / horizon)
    return end + 0.5 * (start - end) * (1.0 + jnp.cos(jnp.pi * part))


def spread(cosines: Float[Array, "B K"], floor: float = 1e-4) -> Float[Array, " B"]:
    """Return max(std_k S, floor), with K - 1 in the denominator.

    The gradient is 0, not NaN, where all candidates are equally near.
    """
    variance = jnp.square(cosines - cosines.mean(-1, keepdims=True)).sum(-1) / (cosines.shape[-1] - 1)
    return jnp.sqrt(jnp.maximum(variance, floor**2))


def kernel_weights(
    cosines: Float[Array, "B K"], temperature: Float[Array, "*b"], uniform: float
) -> Float[Array, "B K"]:
    """Return W_k = (1 - ε) softmax_k(S_k / τ) + ε / K. `temperature` is one number, or `[B, 1]`."""
    return (1.0 - uniform) * jax.nn.softmax(cosines / temperature, -1) + uniform / cosines.shape[-1]


def kernel_value(
    weights: Float[Array, "B K"], value: Float[Array, "B K"], center: bool = False
) -> Float[Array, " B"]:
    """Return Q̂ = Σ_k W_k (q_k - κ sg[Σ_k W_k q_k]). Centring (κ = 1) makes it 0 and leaves its gradient as
    it is, because the weights sum to 1."""
    if center:
        value = value - jax.lax.stop_gradient((weights * value).sum(-1, keepdims=True))
    return (weights * value).sum(-1)
