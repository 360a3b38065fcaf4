"""Value geometry: similarity of state-action pairs, and a kernel over actions (SAVGO, arXiv 2605.00787).

Two pairs are similar if their values are close. `encoder_loss` trains embeddings whose cosines match that
similarity. The kernel weighs candidate actions by their embeddings' cosine to that of the policy's own
action.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from qscape.ops.quantile import quantile

QUANTILE = 0.95  # of the value gaps, defines β


# --- the encoder's targets and loss ------------------------------------------------------------------------


def value_gaps(value: Float[Array, " B"]) -> Float[Array, "B B"]:
    """G_ij = |u_i - u_j| of values u."""
    return jnp.abs(value[:, None] - value[None, :])


def gap_scale(gaps: Float[Array, "B B"]) -> Float[Array, ""]:
    """β of one batch: the 0.95 quantile of all B² gaps, the zero diagonal included, plus 1e-6."""
    return quantile(gaps.ravel(), QUANTILE) + 1e-6


def update_gap_scale(scale: Float[Array, ""], batch: Float[Array, ""], rate: float) -> Float[Array, ""]:
    """The running β ← (1 - rate) β + rate β_batch; the first batch sets it. 0: it is not set yet."""
    return jnp.where(scale > 0.0, (1.0 - rate) * scale + rate * batch, batch)


def similarity(
    gaps: Float[Array, "B B"], scale: Float[Array, ""] | float, exponent: float
) -> Float[Array, "B B"]:
    """T_ij = 1 - 2 clip(G_ij / β, 0, 1)^λ in [-1, 1]: 1 for equal values, -1 for a gap of β or more.

    `scale` is β, `exponent` is λ.
    """
    return 1.0 - 2.0 * jnp.clip(gaps / scale, 0.0, 1.0) ** exponent


def bootstrapped_similarity(
    now: Float[Array, "B B"],
    next_embedding: Float[Array, "B H"],
    terminated: Float[Array, " B"],
    discount: Float[Array, " B"] | float,
    mixing: float,
) -> Float[Array, "B B"]:
    """Y_ij = (1 - m) T_ij + m γ (1 - d_i) z'_i · z'_j: pairs are also similar if their successors are.

    Only the row's d_i enters, so Y is not symmetric. At an episode's end the weights sum to 1 - m.

    Args:
        now: T.
        next_embedding: z', unit vectors.
        terminated: d, 1 at a terminal state.
        discount: γ.
        mixing: m.
    """
    later = next_embedding @ next_embedding.T
    alive = jnp.broadcast_to(discount * (1.0 - terminated), terminated.shape)
    return (1.0 - mixing) * now + mixing * alive[:, None] * later


def smooth_l1(error: Float[Array, "*n"], threshold: float) -> Float[Array, "*n"]:
    """e² / 2b if |e| < b, else |e| - b / 2: the Huber loss divided by b = `threshold`."""
    return optax.huber_loss(error, delta=threshold) / threshold


def encoder_loss(
    embedding: Float[Array, "B H"], target: Float[Array, "B B"], threshold: float
) -> Float[Array, ""]:
    """Mean of smoothL1(z_i · z_j - Y_ij) over the B (B - 1) ordered pairs i ≠ j; z are unit vectors."""
    rows = len(embedding)
    each = smooth_l1(embedding @ embedding.T - target, threshold)
    return jnp.where(jnp.eye(rows, dtype=bool), 0.0, each).sum() / (rows * (rows - 1))


# --- the kernel over candidates ---------------------------------------------------------------------


def anneal_temperature(steps: Int[Array, ""], start: float, end: float, horizon: int) -> Float[Array, ""]:
    """Cosine schedule τ = end + ½ (start - end) (1 + cos π p) with p = min(1, steps / horizon)."""
    progress = jnp.minimum(1.0, steps / horizon)
    return end + 0.5 * (start - end) * (1.0 + jnp.cos(jnp.pi * progress))


def candidate_spread(near: Float[Array, "B K"], floor: float = 1e-4) -> Float[Array, " B"]:
    """Standard deviation (ddof 1) of the similarities S over candidates, at least `floor`.

    If all S are equal the gradient is 0, not NaN.
    """
    variance = jnp.square(near - near.mean(-1, keepdims=True)).sum(-1) / (near.shape[-1] - 1)
    return jnp.sqrt(jnp.maximum(variance, floor**2))


def kernel_weights(
    near: Float[Array, "B K"], temperature: Float[Array, "*b"], uniform: float
) -> Float[Array, "B K"]:
    """W_k = (1 - ε) softmax_k(S_k / τ) + ε / K.

    Args:
        near: S, cosines of the candidates to the policy's action.
        temperature: τ, a number or `[B, 1]`.
        uniform: ε.
    """
    return (1.0 - uniform) * jax.nn.softmax(near / temperature, -1) + uniform / near.shape[-1]


def kernel_value(
    weights: Float[Array, "B K"], value: Float[Array, "B K"], center: bool = False
) -> Float[Array, " B"]:
    """Q̂ = Σ_k W_k (q_k - κ sg[Σ_k W_k q_k]) with κ = 1 if `center`, else 0.

    Centring makes the value 0 and does not change the gradient, because the weights sum to 1.
    """
    if center:
        value = value - jax.lax.stop_gradient((weights * value).sum(-1, keepdims=True))
    return (weights * value).sum(-1)


# --- goodness of fit ---------------------------------------------------------------------


def rank_correlation(x: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, ""]:
    """Spearman's rank correlation; ties get their mean rank, and a constant x or y gives 0."""
    a, b = (ranks(v) - (len(v) + 1) / 2 for v in (x, y))
    norm = jnp.sqrt(jnp.square(a).sum()) * jnp.sqrt(
        jnp.square(b).sum()
    )  # not the root of the product: it overflows
    return jnp.where(norm > 0.0, (a * b).sum() / jnp.maximum(norm, 1.0), 0.0)


def ranks(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Ranks, from 1; equal numbers get their mean rank."""
    ordered = jnp.sort(x)
    before, upto = (jnp.searchsorted(ordered, x, side=side) for side in ("left", "right"))
    return 0.5 * (before + upto + 1)
