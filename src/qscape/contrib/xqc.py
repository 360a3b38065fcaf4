"""XQC: batch normalisation, unit weight vectors and a categorical critic (arXiv 2509.25174).

Palenicek et al., "XQC: Well-conditioned Optimization Accelerates Deep Reinforcement Learning", ICLR 2026. The
details are those of the released code.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from qscape.contrib._batch_norm import BatchNormNetwork
from qscape.contrib._batch_norm_torso import BatchNormTorso
from qscape.nets.batch_norm import BatchNorm
from qscape.nets.layers import Linear, UnitLinear, start_unit
from qscape.nets.orthogonal import orthogonal_linear
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Composition, Output, Role
from qscape.types import Key, setting


@dataclasses.dataclass(frozen=True)
class XQC(BatchNormNetwork):
    """Blocks of a linear layer without bias, batch normalisation and activation; all weight vectors have
    length 1.

    Target critics see the same joint batch and throw their statistics away. An actor's statistics move at
    every update, also where the actor does not step.
    """

    name: ClassVar[str] = "xqc"
    refreshes_actor: ClassVar[Literal["actor", "always"]] = "always"

    project_last: bool = setting(
        True, "Keep the weight vectors of the output layers at length 1 too; off: they are free."
    )

    @property
    def has_linear_outputs(self) -> bool:
        return not self.project_last

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return {
            "actor_hidden": (256,) * 4,
            "critic_hidden": (512,) * 4,
            "policy_delay": 3,
            "warmup": 5_000,
            "actor_objective": "min",
            "target_actor": False,
            "log_std_min": -10.0,
        }

    def torso(self, key: Key, size: int, role: Role, base: Base) -> BatchNormTorso:
        def layer(key: Key, size: int, outputs: int) -> UnitLinear:
            return start_unit(UnitLinear(orthogonal_linear(key, size, outputs, 2**0.5).weight))

        return self.make_torso(key, size, role, base, layer, BatchNorm, before=True)

    def output(self, key: Key, size: int, outputs: int, role: Output, base: Base) -> Linear:
        layer = orthogonal_linear(key, size, outputs, 1.0 if role == "log_std" else 2**0.5)
        return start_unit(UnitLinear(layer.weight, jnp.zeros(outputs))) if self.project_last else layer
