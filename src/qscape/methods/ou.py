"""The exploration of SAVO's paper for agents with one actor."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from qscape.offpolicy.exploration import OU_NOISE
from qscape.types import Part


@dataclasses.dataclass(frozen=True)
class OU(Part):
    """Ornstein-Uhlenbeck noise, times ε that falls from 1 to 0.01, in place of Gaussian noise."""

    name: ClassVar[str] = "ou"
    socket: ClassVar[str] = "modifier"

    def overrides(self, agent: Any) -> Mapping[str, Any]:
        return OU_NOISE
