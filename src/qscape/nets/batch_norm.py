"""Batch normalisation whose running statistics lie in the module, where no gradient moves them.

A network is called in evaluation mode: `net(...)` uses the running statistics as constants. Only the update
trains: `net.train(...)` normalises by the batch and also returns the network with new running statistics.
"""

from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

Tree = TypeVar("Tree")


class Statistics(NamedTuple):
    """Running statistics of a layer's inputs.

    Attributes:
        mean, variance: moving averages; the variance is the population's, unless the layer is `unbiased`.
        batches: how many batches were averaged.
    """

    mean: Float[Array, " n"]
    variance: Float[Array, " n"]
    batches: Int[Array, ""]


class BatchNorm(eqx.Module):
    """y = scale (x − mean) / √(variance + ε) + shift for each feature.

    In training, mean and variance are those of the batch and carry gradient. With `renorm_after`, they are
    corrected towards the running ones once that many batches were seen (batch renormalisation, Ioffe 2017,
    arXiv 1702.03275; as in CrossQ).

    Attributes:
        scale, shift: learned; they start at 1 and 0.
        statistics: running statistics, which start at mean 0 and variance 1.
        epsilon: ε.
        momentum: weight of the old running statistics in the moving average.
        renorm_after: number of batches with plain batch statistics; None: always plain.
        unbiased: the running variance averages the batches' B / (B − 1) times, as PyTorch's does.
    """

    scale: Float[Array, " n"]
    shift: Float[Array, " n"]
    statistics: Statistics
    epsilon: float = eqx.field(static=True)
    momentum: float = eqx.field(static=True)
    renorm_after: int | None = eqx.field(static=True)
    unbiased: bool = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        epsilon: float = 1e-3,
        momentum: float = 0.99,
        renorm_after: int | None = None,
        unbiased: bool = False,
    ) -> None:
        self.scale, self.shift = jnp.ones(size), jnp.zeros(size)
        self.statistics = Statistics(jnp.zeros(size), jnp.ones(size), jnp.zeros((), jnp.int32))
        self.epsilon, self.momentum, self.renorm_after = epsilon, momentum, renorm_after
        self.unbiased = unbiased

    def __call__(self, x: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
        """Normalise by the running statistics."""
        return self._normalise(x, self.statistics.mean, self.statistics.variance)

    def train(self, x: Float[Array, "*b n"]) -> tuple[Float[Array, "*b n"], "BatchNorm"]:
        """Normalise by the statistics of all rows of x; also return the layer with new running ones."""
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axes)
        variance = jnp.square(x - mean).mean(axes)  # E[x²] − E[x]² rounds away a spread far from 0
        used = mean, variance
        if self.renorm_after is not None:
            corrected = self.statistics.batches >= self.renorm_after
            used = jax.tree.map(
                lambda new, plain: jnp.where(corrected, new, plain), self._renormalise(*used), used
            )
        old, keep = self.statistics, self.momentum
        if self.unbiased:
            rows = x.size // x.shape[-1]
            variance = variance * (rows / (rows - 1))
        statistics = Statistics(
            jax.lax.stop_gradient(keep * old.mean + (1.0 - keep) * mean),
            jax.lax.stop_gradient(keep * old.variance + (1.0 - keep) * variance),
            old.batches + 1,
        )
        return self._normalise(x, *used), eqx.tree_at(lambda m: m.statistics, self, statistics)

    def _renormalise(self, mean: Array, variance: Array) -> tuple[Array, Array]:
        """Return the batch's mean and variance, corrected towards the running ones within bounds."""
        old, epsilon = self.statistics, self.epsilon
        ratio, distance = jax.lax.stop_gradient(
            (
                jnp.sqrt((variance + epsilon) / (old.variance + epsilon)),
                (mean - old.mean) / jnp.sqrt(old.variance + epsilon),
            )
        )
        ratio, distance = jnp.clip(ratio, 1 / 3, 3.0), jnp.clip(distance, -5.0, 5.0)
        deviation = jnp.sqrt(jnp.maximum(variance, 1e-24))  # a unit that is off has no NaN in its gradient
        return mean - distance * deviation / ratio, variance / jnp.square(ratio)

    def _normalise(self, x: Array, mean: Array, variance: Array) -> Array:
        return self.scale * (x - mean) * jax.lax.rsqrt(variance + self.epsilon) + self.shift


def is_statistics(node: Any) -> bool:
    """Say whether a node of a tree of networks is one layer's running statistics."""
    return isinstance(node, Statistics)


def split_statistics(tree: Tree) -> tuple[Tree, Tree]:
    """Split networks into what a gradient trains and the running statistics.

    Each half has None where the other has arrays; `equinox.combine` joins them again.
    """
    trained = jax.tree.map(lambda node: not is_statistics(node), tree, is_leaf=is_statistics)
    return eqx.partition(tree, trained)


def with_statistics(tree: Tree, source: PyTree) -> Tree:
    """Return networks with the running statistics of others of the same structure."""
    return eqx.combine(split_statistics(tree)[0], split_statistics(source)[1])


def has_statistics(tree: PyTree) -> bool:
    """Say whether some layer of the networks has running statistics."""
    return any(map(is_statistics, jax.tree.leaves(tree, is_leaf=is_statistics)))
