"""What regularisers share that look at three states in a row (GRAD, ASAP)."""

import dataclasses
from typing import ClassVar

from qscape.offpolicy.sockets import Regulariser
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class ThreeInARow(Regulariser):
    """A regulariser of the actor that sees the state before and the state after each state of a batch."""

    needs_actor: ClassVar[bool] = True

    across_resets: bool = setting(
        False,
        "At the first step of an episode take the last state of the episode before as the previous one, like "
        "the released code; off: the state itself.",
    )

    @property
    def derived_columns(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"successor", self.previous})

    @property
    def previous(self) -> str:
        """The column that holds the previous observation."""
        return "last_observation" if self.across_resets else "previous_observation"
