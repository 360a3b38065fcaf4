"""FastTD3 and FastSAC: large batches from many environments (arXiv 2505.22642 and 2512.01996).

Seo et al., "FastTD3: Simple, Fast, and Capable Reinforcement Learning for Humanoid Control", 2025, and
"Learning Sim-to-Real Humanoid Locomotion in 15 Minutes", 2025.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from qscape.offpolicy.sockets import Composition
from qscape.types import Part

# Learning starts after 10 steps of all environments.
BOTH: Mapping[str, Any] = {
    "counts": "vector_steps",
    "warmup": 10,
    "actor_hidden": (512, 256, 128),
    "decay": "decoupled",
}
TD3: Mapping[str, Any] = {
    **BOTH,
    "batch_size": 32_768,
    "updates_per_step": 2.0,
    "critic_hidden": (1024, 512, 256),
    "actor_output_std": 0.01,
    "critic_weight_decay": 0.1,
    "actor_weight_decay": 0.1,
    "policy_delay": 2,
    "target_actor": False,
    "actor_objective": "min",
    "target_noise": 0.001,
    "exploration": "per_environment",
}
SAC: Mapping[str, Any] = {
    **BOTH,
    "discount": 0.97,
    "batch_size": 8192,
    "updates_per_step": 8.0,
    "critic_hidden": (768, 384, 192),
    "actor_activation": "silu",
    "critic_activation": "silu",
    "actor_norm": "layer",
    "critic_norm": "layer",
    "actor_output_std": 0.0,
    "log_std_bound": "tanh",
    "log_std_max": 0.0,
    "critic_weight_decay": 0.001,
    "actor_weight_decay": 0.001,
    "adam_b2": 0.95,
    "policy_delay": 4,
    "policy_phase": 2,
    "actor_objective": "mean",
}


@dataclasses.dataclass(frozen=True)
class Fast(Part):
    """The base's settings of FastTD3, or of FastSAC beside a policy loss that maximises entropy."""

    name: ClassVar[str] = "fast"
    socket: ClassVar[str] = "modifier"

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return SAC if agent.policy_loss.maximises_entropy else TD3
