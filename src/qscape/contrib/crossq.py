"""CrossQ (arXiv 1902.05605): batch normalisation in place of target critics; CrossQ+WN (arXiv 2502.07523).

Bhatt, Palenicek et al., "CrossQ: Batch Normalization in Deep Reinforcement Learning for Greater Sample
Efficiency and Simplicity", ICLR 2024. Palenicek et al., "Scaling Off-Policy Reinforcement Learning with Batch
and Weight Normalization", 2025. The details are those of CrossQ's released code.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from qscape.contrib._batch_norm import BatchNormNetwork
from qscape.contrib._batch_norm_torso import BatchNormTorso
from qscape.nets.batch_norm import BatchNorm
from qscape.nets.initial import lecun_linear
from qscape.nets.layers import Linear, UnitLinear, start_unit
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Composition, Output, Role
from qscape.types import Key, setting


@dataclasses.dataclass(frozen=True)
class CrossQ(BatchNormNetwork):
    """Batch renormalisation after every activation. The critics value the next state themselves.

    In the critics' step the rows (s, a) and (s', a') are one batch, so that both are normalised alike.
    """

    name: ClassVar[str] = "crossq"

    target_critics: bool = setting(
        False, "Keep target critics; off: the critics that are trained value the next state."
    )
    renorm_after: int | None = setting(
        100_000,
        "Batches after which batch statistics are corrected towards running ones; None: never.",
        within=">= 1",
    )

    @property
    def keeps_target_critics(self) -> bool:  # type: ignore[override]
        return self.target_critics

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return {
            "critic_hidden": (2048, 2048),
            "actor_learning_rate": 1e-3,
            "critic_learning_rate": 1e-3,
            "policy_delay": 3,
            "warmup": 5_000,
            "actor_objective": "min",
            "critic_loss_scale": 0.5,
            "target_actor": False,
            "log_std_min": -20.0,
            "adam_b1": 0.5,
        }

    def torso(self, key: Key, size: int, role: Role, base: Base) -> BatchNormTorso:
        return self.make_torso(key, size, role, base, lecun_linear, self.make_norm, before=False)

    def make_norm(self, size: int) -> BatchNorm:
        """Make one layer of batch renormalisation."""
        return BatchNorm(size, renorm_after=self.renorm_after)

    def output(self, key: Key, size: int, outputs: int, role: Output, base: Base) -> Linear:
        return lecun_linear(key, size, outputs)


@dataclasses.dataclass(frozen=True)
class CrossQWN(CrossQ):
    """CrossQ with hidden weight vectors of length 1 and target critics, for many updates per step."""

    name: ClassVar[str] = "crossq_wn"

    target_critics: bool = setting(
        True, "Keep target critics; off: the critics that are trained value the next state."
    )
    project_last: bool = setting(
        False, "Also keep the weight vectors of the output layers at length 1, as in the code of XQC."
    )

    @property
    def has_linear_outputs(self) -> bool:
        return not self.project_last

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return {
            **super().overrides(agent),
            "critic_hidden": (512, 512),
            "actor_learning_rate": 3e-4,
            "critic_learning_rate": 3e-4,
            "adam_b1": 0.9,
            "decay": "decoupled",
            "decay_what": "weights",
            "actor_weight_decay": 0.01,
            "critic_weight_decay": 0.01,
        }

    def torso(self, key: Key, size: int, role: Role, base: Base) -> BatchNormTorso:
        return self.make_torso(key, size, role, base, make_unit_linear, self.make_norm, before=False)

    def output(self, key: Key, size: int, outputs: int, role: Output, base: Base) -> Linear:
        return (make_unit_linear if self.project_last else lecun_linear)(key, size, outputs)


def make_unit_linear(key: Key, size: int, outputs: int) -> UnitLinear:
    """Make a linear layer whose weight vectors have length 1, with a bias that starts at 0."""
    return start_unit(UnitLinear(lecun_linear(key, size, outputs).weight, jnp.zeros(outputs)))
