"""Base of regularisers that compare actions in three consecutive states (GRAD, ASAP)."""

import dataclasses
from typing import ClassVar

from qscape.offpolicy.sockets import Regulariser
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class ThreeInARow(Regulariser):
    """A regulariser of the actor that reads the previous and the next state of each state of a batch."""

    needs_actor: ClassVar[bool] = True

    across_resets: bool = setting(
        False,
        "At the first step of an episode use the last state of the previous episode as the previous state, "
        "like the released code; off: use the state itself.",
    )

    @property
    def derived_columns(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"successor", self.previous})

    @property
    def previous(self) -> str:
        """The name of the column that holds the previous observation."""
        return "last_observation" if self.across_resets else "previous_observation"
