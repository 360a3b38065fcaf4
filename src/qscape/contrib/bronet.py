"""BroNet: residual blocks with two layer norms (BRO, arXiv 2405.16158).

Nauman et al., "Bigger, Regularized, Optimistic: scaling for compute and sample-efficient continuous control",
NeurIPS 2024.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from qscape.contrib._blocks import BlockNetwork
from qscape.contrib._residual import BroTorso
from qscape.offpolicy.sockets import Composition


@dataclasses.dataclass(frozen=True)
class BroNet(BlockNetwork):
    """Residual blocks x + LayerNorm(W₂ relu(LayerNorm(W₁ x))) behind a normalised layer."""

    name: ClassVar[str] = "bronet"
    make_torso: ClassVar[Any] = BroTorso
    gains: ClassVar[dict[str, float]] = {"critic": 2**0.5, "mean": 2**0.5, "log_std": 1.0}

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return {
            "actor_hidden": (256,),
            "critic_hidden": (512, 512),
            "decay": "decoupled",
            "actor_weight_decay": 1e-4,
            "critic_weight_decay": 1e-4,
            "log_std_bound": "tanh",
            "log_std_min": -10.0,
        }
