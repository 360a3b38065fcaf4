"""C51: critics compute a categorical distribution of the return (arXiv 1707.06887).

Bellemare, Dabney and Munos, "A Distributional Perspective on Reinforcement Learning", 2017. With actions in
R^A as in SimbaV2 (arXiv 2502.15280), XQC (arXiv 2509.25174) and FastTD3 (arXiv 2505.22642).
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.contrib._support import SupportedValue
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import BootstrapRule
from qscape.ops.distributional import project_onto_atoms
from qscape.types import Batch, Metrics, Scalar


class AtomTarget(NamedTuple):
    """The target distribution of the critics.

    Attributes:
        probabilities: on the atoms; K is 1 if all critics have the same target.
        clipped: the share of the probability that moved beyond the support.
    """

    probabilities: Float[Array, "B K n"]
    clipped: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class C51(SupportedValue):
    """The return has a distribution over equally spaced atoms; Q is its mean.

    The target moves the atoms, T_k = r + γ (1 − d) (z_k + bonus), with the probabilities that the target
    critics give them. Which critic's: `bootstrap` weighs them; the default takes the critic with the smallest
    mean.
    """

    name: ClassVar[str] = "c51"
    learns_from_values: ClassVar[bool] = False

    @property
    def points(self) -> Float[Array, " n"]:
        return jnp.linspace(self.low, self.high, self.atoms)

    def target(
        self,
        raw: Float[Array, "B J n"],
        rule: BootstrapRule,
        bonus: Float[Array, " B"] | None,
        batch: Batch,
    ) -> AtomTarget:
        """Projects the moved atoms of the weighted mixture of the target critics onto the support."""
        mixture = jnp.einsum("bkj,bjn->bkn", rule.weights(self.read(raw)), jax.nn.softmax(raw))
        value = rule.move(self.points[None, None], (mixture * self.points).sum(-1))
        value = value if bonus is None else value + bonus[:, None, None]
        kept = (1.0 - batch.terminated) * batch.discount
        positions = jnp.broadcast_to(batch.reward[:, None, None] + kept[:, None, None] * value, mixture.shape)
        beyond = (positions < self.low) | (positions > self.high)
        clipped = jnp.where(beyond, mixture, 0.0).sum(-1).mean()
        return AtomTarget(project_onto_atoms(mixture, positions, self.low, self.high), clipped)

    def target_mean(self, target: AtomTarget) -> Float[Array, "B K"]:
        return (target.probabilities * self.points).sum(-1)

    def loss(self, raw: Float[Array, "B J n"], target: AtomTarget, base: Base) -> tuple[Scalar, Metrics]:
        """Returns the cross-entropy against the target distribution."""
        return self.fit(raw, target.probabilities, target.clipped)
