"""Quantile critics, with the truncated mixture of TQC and the losses of TQC and BRO.

Kuznetsov et al., "Controlling Overestimation Bias with Truncated Mixture of Continuous Distributional
Quantile Critics", 2020, arXiv 2005.04269. Nauman et al., BRO, 2024, arXiv 2405.16158.
"""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import BootstrapRule, Composition, Value
from qscape.ops.distributional import quantile_huber_loss
from qscape.types import Metrics, Scalar, setting


@dataclasses.dataclass(frozen=True)
class Quantile(Value):
    """Each critic computes n quantiles of the return; Q is their mean.

    The target is a set of quantiles. With `drop`, the quantiles of all target critics are pooled and the
    largest `drop` per critic are left out (TQC). Without, `bootstrap` weighs the critics' quantiles, each
    with those of the same level.
    """

    name: ClassVar[str] = "quantile"
    learns_from_values: ClassVar[bool] = False

    quantiles: int = setting(25, "Quantiles of each critic.", within=">= 1", tune=("choice", 25, 50, 100))
    drop: int | None = setting(
        None, "Quantiles per critic that are left out at the top of the pool; None: no pool.", within=">= 0"
    )
    loss_sum: Literal["mean", "sum"] = setting(
        "mean", "Over a critic's own quantiles the loss is averaged (TQC) or summed (BRO)."
    )

    def conflict(self, agent: Composition) -> str | None:
        if self.drop is None:
            return None
        if self.drop >= self.quantiles:
            return (
                f"quantile.drop is {self.drop} and quantile.quantiles {self.quantiles}: nothing would be "
                "left; drop fewer."
            )
        if not agent.bootstrap.takes_minimum:
            return (
                f"quantile.drop pools the target critics, which {agent.bootstrap.name} would weigh; "
                "leave one of them out."
            )
        return None

    @property
    def outputs(self) -> int:
        return self.quantiles

    def read(self, raw: Float[Array, "*b n"]) -> Float[Array, "*b"]:
        return raw.mean(-1)

    def levels(self, raw: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
        """Return the quantiles."""
        return raw

    def next_values(self, raw: Float[Array, "B J n"], rule: BootstrapRule) -> Float[Array, "B K m"]:
        """Return m quantiles of the next state."""
        if self.drop is None:
            quantiles = jnp.einsum("bkj,bjn->bkn", rule.weights(self.read(raw)), raw)
            return rule.move(quantiles, self.read(quantiles))
        critics = raw.shape[1]
        pool = jnp.sort(raw.reshape(len(raw), -1))
        return pool[:, None, : critics * (self.quantiles - self.drop)]

    def target_mean(self, target: Float[Array, "B K m"]) -> Float[Array, "B K"]:
        return target.mean(-1)

    def loss(
        self, raw: Float[Array, "B J n"], target: Float[Array, "B K m"], base: Base
    ) -> tuple[Scalar, Metrics]:
        """Return the quantile Huber loss of every own quantile and target quantile.

        It is averaged over rows and target quantiles. Over critics it is averaged with `loss_sum` mean, as in
        TQC, and summed with sum, as in BRO.
        """
        each = quantile_huber_loss(raw, target)
        return each.sum() if self.loss_sum == "sum" else each.mean(), {}
