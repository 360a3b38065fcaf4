"""SimBa: layer-normalised residual blocks of four times the width (arXiv 2410.09754).

Lee et al., "SimBa: Simplicity Bias for Scaling Up Parameters in Deep Reinforcement Learning", ICLR 2025.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from qscape.contrib._blocks import BlockNetwork
from qscape.contrib._residual import SIMBA_SIZES, SimbaTorso
from qscape.offpolicy.sockets import Composition


@dataclasses.dataclass(frozen=True)
class Simba(BlockNetwork):
    """Residual blocks x + W₂ relu(W₁ LayerNorm(x)) behind a linear layer, and a layer norm at the end."""

    name: ClassVar[str] = "simba"
    make_torso: ClassVar[Any] = SimbaTorso

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return SIMBA_SIZES | {
            "decay": "decoupled",
            "actor_weight_decay": 0.01,
            "critic_weight_decay": 0.01,
            "log_std_bound": "tanh",
            "log_std_min": -10.0,
        }
