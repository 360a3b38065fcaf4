"""The on-policy agent: parts that are assembled, and the update that trains them."""

import dataclasses

from qscape.onpolicy.assembly import Assembly
from qscape.onpolicy.state import State
from qscape.onpolicy.update import update
from qscape.types import Key, Metrics, Scalar, Transition


@dataclasses.dataclass(frozen=True, eq=False)
class Agent(Assembly):
    """One part in every socket, the settings of the base, and the update. See `Assembly` for the fields."""

    def update(
        self, state: State, rollout: Transition, progress: Scalar | float, key: Key
    ) -> tuple[State, Metrics]:
        """Train on one rollout: see `qscape.onpolicy.update.update`."""
        return update(self, state, rollout, progress, key)
