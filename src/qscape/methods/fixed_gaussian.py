"""A fixed action layer without structure: what an ETF has to be compared with."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from qscape.onpolicy.heads import FixedHead
from qscape.ops.etf import gaussian_rows


@dataclasses.dataclass(frozen=True)
class FixedGaussian(FixedHead):
    """The action layer has random normal rows of one length, never trained."""

    name: ClassVar[str] = "fixed_gaussian"

    def draw(self, rng: np.random.Generator, actions: int, width: int) -> Float[np.ndarray, "K d"]:
        return gaussian_rows(rng, actions, width, self.energy)
