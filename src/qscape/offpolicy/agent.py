"""The off-policy agent: parts that are assembled, and the update that trains them."""

import dataclasses

from jaxtyping import Array

from qscape.offpolicy.assembly import Assembly
from qscape.offpolicy.state import State
from qscape.offpolicy.update import update
from qscape.replay.storage import Layout, ReplayState
from qscape.types import Key, Metrics


@dataclasses.dataclass(frozen=True, eq=False)
class Agent(Assembly):
    """One part in every socket, the settings of the base, and the update. See `Assembly` for the fields."""

    def update(
        self,
        layout: Layout,
        state: State,
        storage: Array,
        replay_state: ReplayState,
        key: Key,
        previous: Metrics | None = None,
    ) -> tuple[State, ReplayState, Metrics]:
        """Make one update from replay: see `qscape.offpolicy.update.update`."""
        return update(self, layout, state, storage, replay_state, key, previous)
