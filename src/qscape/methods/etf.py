"""ACPG: the action layer fixed to a simplex equiangular tight frame ("Imitate Optimal Policy: Prevail and
Induce Action Collapse in Policy Gradient", arXiv 2509.02737)."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from qscape.onpolicy.heads import FixedHead
from qscape.ops.etf import haar_frame, is_simplex_etf, simplex_etf


@dataclasses.dataclass(frozen=True)
class ETF(FixedHead):
    """The action layer is a random simplex ETF: drawn once, saved with the run, never trained (ACPG).

    With ‖h‖² ≤ E_H the best feature of a state whose optimal action is k is √(E_H / E_W) w_k (Theorem 1).
    """

    name: ClassVar[str] = "etf"

    def draw(self, rng: np.random.Generator, actions: int, width: int) -> Float[np.ndarray, "K d"]:
        return simplex_etf(actions, haar_frame(rng, width, actions - 1), self.energy)

    def least(self, actions: int) -> int:
        return actions - 1

    def damage(self, fixed: Array) -> str | None:
        if is_simplex_etf(np.asarray(fixed), self.energy):
            return None
        return f"its fixed action layer is no simplex ETF with rows of squared length {self.energy}"
