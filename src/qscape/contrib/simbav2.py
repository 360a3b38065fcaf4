"""SimbaV2: features and weights on the unit sphere (arXiv 2502.15280).

Lee et al., "Hyperspherical Normalization for Scalable Deep Reinforcement Learning", ICML 2025.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from qscape.contrib._blocks import BlockNetwork
from qscape.contrib._residual import SIMBA_SIZES, SphereOutput, SphereTorso
from qscape.nets.layers import Linear
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Composition, Output
from qscape.types import Key


@dataclasses.dataclass(frozen=True)
class SimbaV2(BlockNetwork):
    """Residual steps on the unit sphere; every weight vector has length 1, learned scalers set the sizes.

    After each optimiser step the weight vectors are divided by their lengths.
    """

    name: ClassVar[str] = "simbav2"
    make_torso: ClassVar[Any] = SphereTorso

    @property
    def has_linear_outputs(self) -> bool:
        return False

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return SIMBA_SIZES | {
            "log_std_bound": "tanh",
            "log_std_min": -10.0,
            # Weights have length 1, and scalers are not decayed.
            "actor_weight_decay": 0.0,
            "critic_weight_decay": 0.0,
        }

    def output(self, key: Key, size: int, outputs: int, role: Output, base: Base) -> Linear:
        return SphereOutput(key, size, outputs)
