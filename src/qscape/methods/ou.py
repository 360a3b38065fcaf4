"""Ornstein-Uhlenbeck exploration for agents with one actor, as in SAVO's paper (arXiv 2410.11833)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from qscape.offpolicy.exploration import OU_NOISE
from qscape.types import Part


@dataclasses.dataclass(frozen=True)
class OU(Part):
    """Explores by Ornstein-Uhlenbeck noise times ε, which decays from 1 to 0.01, instead of Gaussian
    noise."""

    name: ClassVar[str] = "ou"
    socket: ClassVar[str] = "modifier"

    def overrides(self, agent: Any) -> Mapping[str, Any]:
        return OU_NOISE
