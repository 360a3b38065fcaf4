"""HL-Gauss: critics classify the target number instead of regressing to it (arXiv 2403.03950).

Farebrother et al., "Stop Regressing: Training Value Functions via Classification for Scalable Deep RL", 2024;
the loss is that of Imani and White, 2018, arXiv 1806.04613.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.contrib._support import SupportedValue
from qscape.offpolicy.base import Base
from qscape.ops.distributional import gaussian_histogram
from qscape.types import Metrics, Scalar, setting


@dataclasses.dataclass(frozen=True)
class HLGauss(SupportedValue):
    """The target number becomes a Gaussian histogram; Q is the mean of the predicted histogram.

    Targets are numbers, so that it works with every rule of bootstrapping.
    """

    name: ClassVar[str] = "hl_gauss"
    sigma: float = setting(
        0.75, "Standard deviation of the histogram, in bins.", within="> 0", tune=(0.3, 3.0)
    )

    @property
    def points(self) -> Float[Array, " n"]:
        """The centres of the bins."""
        edges = jnp.linspace(self.low, self.high, self.atoms + 1)
        return (edges[1:] + edges[:-1]) / 2

    @property
    def saturation(self) -> Float[Array, ""]:
        """As of every support, but no further than the mean that fits a target beyond the end."""
        beyond = self.histogram(jnp.array(self.high)) @ self.points - (self.low + self.high) / 2
        return jnp.minimum(super().saturation, (1 - 1e-3) * beyond)

    def histogram(self, target: Float[Array, "*b"]) -> Float[Array, "*b n"]:
        """Returns the probabilities of the bins for a target."""
        width = (self.high - self.low) / self.atoms
        return gaussian_histogram(target, self.low, self.high, self.atoms, self.sigma * width)

    def loss(
        self, raw: Float[Array, "B J n"], target: Float[Array, "B K"], base: Base
    ) -> tuple[Scalar, Metrics]:
        """Returns the cross-entropy against the histogram of the target."""
        clipped = ((target < self.low) | (target > self.high)).mean()
        return self.fit(raw, self.histogram(target), clipped)
