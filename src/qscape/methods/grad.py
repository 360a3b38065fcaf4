"""GRAD: the second difference of actions, relative to their distance (Grad-CAPS; Lee, Cao, Dao, Chen, Wu,
IROS 2024, arXiv 2407.04315), in the form of its comparison with PAVE (Lee et al. 2026, arXiv 2601.22970).
"""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, PyTree

from qscape.methods._three_states import ThreeInARow
from qscape.offpolicy.sockets import Context, PartState
from qscape.ops.smooth import second_difference
from qscape.types import LOSS_WEIGHT, Batch, Key, Metrics, Scalar, setting


@dataclasses.dataclass(frozen=True)
class GRAD(ThreeInARow):
    """Penalises the second difference of the actions in three consecutive states."""

    name: ClassVar[str] = "grad"

    temporal: float = setting(1.0, "λT: weight of the second difference.", **LOSS_WEIGHT)

    def actor(
        self, actor_params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Return λT times the weighted second difference of m(s⁻), m(s), m(s'), with m the deterministic
        action."""
        if not self.temporal:
            return None

        def mode(obs: Array) -> Array:
            return context.policy(obs).mode()

        extra = batch.extra
        second_difference_loss = second_difference(
            mode(extra[self.previous]), mode(batch.observation), mode(extra["successor"])
        )
        return self.temporal * second_difference_loss, {"grad_temporal": second_difference_loss}
