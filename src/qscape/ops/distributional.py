"""Distributions of returns: projections onto atoms, histograms of a number, and quantile regression."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def project_onto_atoms(
    probabilities: Float[Array, "*b n"],
    positions: Float[Array, "*b n"],
    low: float,
    high: float,
) -> Float[Array, "*b n"]:
    """Moves probability at any positions onto n equally spaced atoms from `low` to `high`.

    A position beyond the ends counts as the end. Probability between two atoms is split between them in
    inverse proportion to the distances, so that the mean stays (C51; Bellemare et al. 2017, arXiv 1707.06887,
    Eq. 7). Probability on an atom stays there.
    """
    n = probabilities.shape[-1]
    place = (jnp.clip(positions, low, high) - low) * ((n - 1) / (high - low))
    # Atom i gets max(0, 1 - |place - i|) of each probability: a product with a matrix of hats, no scatter.
    hats = jnp.maximum(0.0, 1.0 - jnp.abs(place[..., None, :] - jnp.arange(n)[:, None]))
    return (hats * probabilities[..., None, :]).sum(-1)


def gaussian_histogram(
    y: Float[Array, "*b"], low: float, high: float, bins: int, sigma: float
) -> Float[Array, "*b n"]:
    """The probability that N(y, sigma²), cut off at `low` and `high`, gives to equal bins between them.

    `y` is clipped to the ends first. (HL-Gauss; Farebrother et al. 2024, arXiv 2403.03950, Eq. 4.)
    """
    edges = jnp.linspace(low, high, bins + 1)
    below = jax.scipy.stats.norm.cdf((edges - jnp.clip(y, low, high)[..., None]) / sigma)
    return (below[..., 1:] - below[..., :-1]) / (below[..., -1:] - below[..., :1])


def cross_entropy(logits: Float[Array, "*#b n"], probabilities: Float[Array, "*#b n"]) -> Float[Array, "*#b"]:
    """-Σ p log softmax(logits); leading axes are broadcast."""
    return -(probabilities * jax.nn.log_softmax(logits)).sum(-1)


def quantile_levels(n: int) -> Float[Array, " n"]:
    """The levels τ_i = (i + 1/2) / n that n quantiles stand for."""
    return (jnp.arange(n) + 0.5) / n


def quantile_huber(quantiles: Float[Array, "*#b n"], y: Float[Array, "*#b m"]) -> Float[Array, "*#b n m"]:
    """|τ_i − 1{y_k < θ_i}| · Huber(y_k − θ_i) of every quantile i and target k, with threshold 1.

    (QR-DQN; Dabney et al. 2018, arXiv 1710.10044, Eq. 10.)
    """
    difference = y[..., None, :] - quantiles[..., :, None]
    size = jnp.abs(difference)
    huber = jnp.where(size < 1.0, 0.5 * jnp.square(difference), size - 0.5)
    below = (jax.lax.stop_gradient(difference) < 0).astype(quantiles.dtype)
    return jnp.abs(quantile_levels(quantiles.shape[-1])[:, None] - below) * huber
