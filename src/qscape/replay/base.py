"""The interface of every replay: which transitions an update learns from."""

from typing import ClassVar

from jaxtyping import Array, Float, Int

from qscape.replay import storage
from qscape.replay.storage import Layout, ReplayState, Storage
from qscape.types import Event, Key, Part, Transition


class Replay(Part):
    """A part that stores transitions and chooses those of a batch. Its methods run under jit.

    The defaults store every step in rings of rows and keep no priorities; a replay must define `sample`.
    """

    socket: ClassVar[str] = "replay"

    def init(self, layout: Layout) -> tuple[Storage, ReplayState]:
        """Allocate an empty replay.

        Raises:
            RunError: the machine has not enough memory left.
        """
        return storage.create(layout), self.init_state(layout)

    def init_state(self, layout: Layout) -> ReplayState:
        """Return the positions, sizes and priorities of an empty replay, without its storage."""
        return storage.create_state(layout)

    def insert(
        self, layout: Layout, rows: Storage, replay_state: ReplayState, new: Transition
    ) -> tuple[Storage, ReplayState]:
        """Write the valid rows of one step of each environment, over the oldest rows once a ring is full."""
        return storage.insert(layout, rows, replay_state, new)

    def sample(
        self, layout: Layout, rows: Storage, replay_state: ReplayState, key: Key, batch_size: int
    ) -> Int[Array, " B"]:
        """Draw the rows of one batch; called at the beginning of every update."""
        raise NotImplementedError

    def update_priorities(
        self, replay_state: ReplayState, i: Int[Array, " B"], td_error: Float[Array, "B critics"]
    ) -> ReplayState:
        """Record the TD errors of the rows i of a batch, as they were before the critics' step."""
        return replay_state

    def post_update(self, replay_state: ReplayState, event: Event) -> ReplayState:
        """Return the replay's state after an update of all networks."""
        return replay_state
