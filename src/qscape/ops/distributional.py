"""Distributions of returns: projections onto atoms, histograms of a number, and quantile regression."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Rows of which all pairs of quantiles are in memory at once: those of a whole batch would take most of the
# time of an update on a CPU. Large batches have larger pieces, since pieces follow one another on a GPU.
PIECE, MOST_PIECES = 16, 16


def project_onto_atoms(
    probabilities: Float[Array, "*b n"],
    positions: Float[Array, "*b n"],
    low: float,
    high: float,
) -> Float[Array, "*b n"]:
    """Move probability at any positions onto n equally spaced atoms from `low` to `high`.

    A position beyond the ends counts as the end. Probability between two atoms is split between them in
    inverse proportion to the distances, so that the mean stays (C51; Bellemare et al. 2017, arXiv 1707.06887,
    Eq. 7). Probability on an atom stays there.
    """
    # Fused with the softmax before it or after it, the product takes XLA minutes to compile for a GPU.
    probabilities, positions = jax.lax.optimization_barrier((probabilities, positions))
    n = probabilities.shape[-1]
    place = (jnp.clip(positions, low, high) - low) * ((n - 1) / (high - low))
    # Atom i gets max(0, 1 - |place - i|) of each probability: a product with a matrix of hats, no scatter.
    hats = jnp.maximum(0.0, 1.0 - jnp.abs(place[..., None, :] - jnp.arange(n)[:, None]))
    return jax.lax.optimization_barrier((hats * probabilities[..., None, :]).sum(-1))


def gaussian_histogram(
    y: Float[Array, "*b"], low: float, high: float, bins: int, sigma: float
) -> Float[Array, "*b n"]:
    """Return the probability that N(y, sigma²), cut off at `low` and `high`, gives to equal bins between
    them.

    `y` is clipped to the ends first. (HL-Gauss; Farebrother et al. 2024, arXiv 2403.03950, Eq. 4.)
    """
    edges = jnp.linspace(low, high, bins + 1)
    below = jax.scipy.stats.norm.cdf((edges - jnp.clip(y, low, high)[..., None]) / sigma)
    return (below[..., 1:] - below[..., :-1]) / (below[..., -1:] - below[..., :1])


def cross_entropy(logits: Float[Array, "*#b n"], probabilities: Float[Array, "*#b n"]) -> Float[Array, "*#b"]:
    """Return -Σ p log softmax(logits); leading axes are broadcast."""
    return -(probabilities * jax.nn.log_softmax(logits)).sum(-1)


def quantile_levels(n: int) -> Float[Array, " n"]:
    """Return the levels τ_i = (i + 1/2) / n that n quantiles stand for."""
    return (jnp.arange(n) + 0.5) / n


def quantile_huber_loss(quantiles: Float[Array, "B J n"], y: Float[Array, "B #J m"]) -> Float[Array, "J n"]:
    """Return |τ_i − 1{y_k < θ_i}| · Huber(y_k − θ_i) of every quantile θ_i, averaged over rows and targets k.

    The threshold of Huber's loss is 1. No gradient reaches y. (QR-DQN; Dabney et al. 2018, arXiv 1710.10044,
    Eq. 10.)
    """
    return _quantile_huber_loss(quantiles, jax.lax.stop_gradient(y))


@jax.custom_vjp
def _quantile_huber_loss(quantiles: Array, y: Array) -> Array:
    return _loss_and_slope(quantiles, y)[0]


def _loss_and_slope(quantiles: Array, y: Array) -> tuple[Array, Array]:
    """Return the loss, [J, n], and each row's part of its derivative by the quantiles, [B, J, n]."""
    levels = quantile_levels(quantiles.shape[-1])[:, None]

    def row(own_and_y: tuple[Array, Array]) -> tuple[Array, Array]:
        own, y = own_and_y
        difference = y[:, None, :] - own[:, :, None]
        size = jnp.abs(difference)
        weight = jnp.where(difference < 0, 1.0 - levels, levels)
        huber = jnp.where(size < 1.0, 0.5 * jnp.square(difference), size - 0.5)
        return (weight * huber).mean(-1), -(weight * jnp.clip(difference, -1.0, 1.0)).mean(-1)

    loss, slope = jax.lax.map(row, (quantiles, y), batch_size=max(PIECE, len(y) // MOST_PIECES))
    return loss.mean(0), slope / len(slope)


def _pull_back(slope: Array, gradient: Array) -> tuple[Array, None]:
    return slope * gradient, None


_quantile_huber_loss.defvjp(_loss_and_slope, _pull_back)
