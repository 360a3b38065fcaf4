"""A fixed action layer with orthogonal rows."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from qscape.onpolicy.heads import FixedHead
from qscape.ops.etf import haar_frame
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class FixedOrthogonal(FixedHead):
    """The action layer has random orthogonal rows of squared length E_W and is never trained.

    Softmax does not change if the mean row is subtracted from every row. Orthogonal rows less their mean are
    a simplex ETF of squared length E_W (K - 1) / K. So this head with energy K / (K - 1), or with `centred`,
    equals `etf` with energy 1, up to rotation. Needs d ≥ K features.
    """

    name: ClassVar[str] = "fixed_orthogonal"
    centred: bool = setting(False, "E_W is the squared length of the rows less their mean, as that of etf.")

    def row_energy(self, actions: int) -> float:
        """Return the squared length of the rows of the action layer."""
        return self.energy * actions / (actions - 1) if self.centred else self.energy

    def draw_layer(self, rng: np.random.Generator, actions: int, width: int) -> Float[np.ndarray, "K d"]:
        return np.sqrt(self.row_energy(actions)) * haar_frame(rng, width, actions).T

    def min_features(self, actions: int) -> int:
        return actions

    def explain_damage(self, fixed_layer: Array) -> str | None:
        w = np.asarray(fixed_layer, np.float64)
        energy = self.row_energy(len(w))
        if np.allclose(w @ w.T, energy * np.eye(len(w)), atol=1e-4 * energy):
            return None
        return f"the rows of its fixed action layer are not orthogonal with squared length {energy:g}"
