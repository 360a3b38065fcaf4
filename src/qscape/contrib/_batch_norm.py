"""What networks with batch normalisation have in common."""

from collections.abc import Callable
from typing import ClassVar

from qscape.contrib._batch_norm_torso import BatchNormTorso
from qscape.nets.batch_norm import BatchNorm
from qscape.nets.layers import Linear
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Composition, Network, Role
from qscape.types import Key


class BatchNormNetwork(Network):
    """Base of networks whose critics normalise (s, a) and (s', a') as one batch."""

    trains_on_joint_batch: ClassVar[bool] = True

    def conflict(self, agent: Composition) -> str | None:
        if agent.base.batch_size < 2:
            return (
                f"{self.name} normalises by the batch, and base.batch_size is {agent.base.batch_size}; "
                "take at least 2."
            )
        return None

    def notes(self, agent: Composition) -> list[str]:
        notes = super().notes(agent)
        if agent.normaliser.changes_observations:
            twice = agent.normaliser.name
            notes.append(f"{self.name} normalises its input itself; {twice} beside it is redundant")
        moves = agent.target_update
        if not moves.averages and not (self.keeps_target_critics or agent.base.target_actor):
            notes.append(f"{self.name} keeps no targets of actor and critics, so {moves.name} moves none")
        return notes

    def make_torso(
        self,
        key: Key,
        size: int,
        role: Role,
        base: Base,
        make_layer: Callable[[Key, int, int], Linear],
        make_norm: Callable[[int], BatchNorm],
        before: bool,
    ) -> BatchNormTorso:
        """Makes hidden layers of the base's widths; the last three arguments as in `BatchNormTorso`."""
        actor = role == "actor"
        hidden = base.actor_hidden if actor else base.critic_hidden
        activation = base.actor_activation if actor else base.critic_activation
        return BatchNormTorso(key, (size, *hidden), activation, make_layer, make_norm, before)
