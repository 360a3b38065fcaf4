"""The mean of the target critics: no pessimism, as in BRO (Nauman et al. 2024, arXiv 2405.16158)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.offpolicy.sockets import BootstrapValue, PartState
from qscape.types import Key


@dataclasses.dataclass(frozen=True)
class MeanTarget(BootstrapValue):
    """All critics learn from the mean of the target critics; of distributions it is the even mixture.

    Quantile critics are averaged level by level.
    """

    name: ClassVar[str] = "mean_target"

    def weights(self, state: PartState, qs: Float[Array, "B J"], key: Key) -> Float[Array, "B 1 J"]:
        rows, critics = qs.shape
        return jnp.full((rows, 1, critics), 1.0 / critics)
