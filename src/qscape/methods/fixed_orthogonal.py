"""A fixed action layer with orthogonal rows."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from qscape.onpolicy.heads import FixedHead
from qscape.ops.etf import haar_frame


@dataclasses.dataclass(frozen=True)
class FixedOrthogonal(FixedHead):
    """The action layer has orthogonal rows of one length, never trained.

    Softmax sees rows less their mean, and those of orthogonal rows are a simplex ETF of squared length
    E_W (K - 1) / K: with energy K / (K - 1) this head equals an ETF of energy 1, up to its orientation.
    """

    name: ClassVar[str] = "fixed_orthogonal"

    def draw(self, rng: np.random.Generator, actions: int, width: int) -> Float[np.ndarray, "K d"]:
        return np.sqrt(self.energy) * haar_frame(rng, width, actions).T

    def least(self, actions: int) -> int:
        return actions

    def damage(self, fixed: Array) -> str | None:
        w = np.asarray(fixed, np.float64)
        if np.allclose(w @ w.T, self.energy * np.eye(len(w)), atol=1e-4 * self.energy):
            return None
        return f"the rows of its fixed action layer are not orthogonal with squared length {self.energy}"
