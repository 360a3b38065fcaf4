"""DroQ: critics with dropout and layer normalisation in place of REDQ's ensemble (arXiv 2110.02034).

Hiraoka et al., "Dropout Q-Functions for Doubly Efficient Reinforcement Learning", ICLR 2022.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from qscape.contrib._dropout import DropoutTorso
from qscape.nets import Features
from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import MLPNetwork
from qscape.offpolicy.sockets import Composition, Role
from qscape.types import Key, setting


@dataclasses.dataclass(frozen=True)
class DroQ(MLPNetwork):
    """Hidden layers of critics are linear, dropout, layer norm, activation; actors are plain.

    Units are dropped in the critics' loss, in the target critics and where the actor climbs the critics, with
    new masks each time. Everybody else sees critics without dropout.
    """

    name: ClassVar[str] = "droq"
    has_plain_layers: ClassVar[bool] = False
    drops_units: ClassVar[bool] = True

    rate: float = setting(
        0.01, "Probability that a unit is dropped.", within="[0, 1)", tune=(1e-4, 0.1, "log")
    )

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        many = {"updates_per_step": 20.0, "policy_delay": 20, "actor_objective": "mean"}
        return {"critic_norm": "layer", **many}

    def notes(self, agent: Composition) -> list[str]:
        valuing = [part.name for part in (agent.policy_loss, agent.selector) if part.values_next_state]
        return super().notes(agent) + [
            f"{name} values the next state itself, by target critics without dropout" for name in valuing
        ]

    def torso(self, key: Key, size: int, role: Role, base: Base) -> Features:
        plain = super().torso(key, size, role, base)
        return plain if role == "actor" else DropoutTorso(plain, self.rate)
