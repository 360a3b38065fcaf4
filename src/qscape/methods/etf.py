"""ACPG: fix the action layer to a simplex equiangular tight frame (ETF).

Zhou et al., "Imitate Optimal Policy: Prevail and Induce Action Collapse in Policy Gradient", arXiv
2509.02737.
"""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from qscape.onpolicy.heads import FixedHead
from qscape.ops.etf import haar_frame, is_simplex_etf, simplex_etf


@dataclasses.dataclass(frozen=True)
class ETF(FixedHead):
    """The action layer is a random simplex ETF that is drawn once, saved with the run and never trained.

    ‖w_k‖² = E_W and cos(w_i, w_j) = -1/(K - 1). Under ‖h‖² ≤ E_H, the optimal feature of a state whose
    optimal action is k is √(E_H / E_W) w_k (Theorem 1). Needs d ≥ K - 1 features.
    """

    name: ClassVar[str] = "etf"

    def draw_layer(self, rng: np.random.Generator, actions: int, width: int) -> Float[np.ndarray, "K d"]:
        return simplex_etf(actions, haar_frame(rng, width, actions - 1), self.energy)

    def min_features(self, actions: int) -> int:
        return actions - 1

    def explain_damage(self, fixed_layer: Array) -> str | None:
        if is_simplex_etf(np.asarray(fixed_layer), self.energy):
            return None
        return f"its fixed action layer is no simplex ETF with rows of squared length {self.energy}"
