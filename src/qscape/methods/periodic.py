"""Hard copies of the target networks at every sync (TD7)."""

import dataclasses
from typing import ClassVar

from jaxtyping import PyTree

from qscape.offpolicy.sockets import TargetUpdate
from qscape.ops.in_place import replace_if
from qscape.types import Event


@dataclasses.dataclass(frozen=True)
class Periodic(TargetUpdate):
    """Copies the online networks to the target networks every `base.sync_every` updates."""

    name: ClassVar[str] = "periodic"

    def target_update(self, online: PyTree, target: PyTree, event: Event) -> PyTree:
        return replace_if(event.synced, lambda _: online, target)
