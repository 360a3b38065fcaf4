"""A fixed random action layer, the baseline for `etf`."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from qscape.onpolicy.heads import FixedHead
from qscape.ops.etf import gaussian_rows


@dataclasses.dataclass(frozen=True)
class FixedGaussian(FixedHead):
    """The action layer has Gaussian rows, scaled to squared length E_W, and is never trained."""

    name: ClassVar[str] = "fixed_gaussian"

    def draw_layer(self, rng: np.random.Generator, actions: int, width: int) -> Float[np.ndarray, "K d"]:
        return gaussian_rows(rng, actions, width, self.energy)
