"""Hard copies of the target networks at every sync (TD7)."""

import dataclasses
from typing import ClassVar

import jax
from jaxtyping import PyTree

from qscape.offpolicy.sockets import TargetUpdate
from qscape.types import Event


@dataclasses.dataclass(frozen=True)
class Periodic(TargetUpdate):
    """Copies the online networks to the target networks every `base.sync_every` updates."""

    name: ClassVar[str] = "periodic"

    def target_update(self, online: PyTree, target: PyTree, event: Event) -> PyTree:
        return jax.lax.cond(event.synced, lambda: online, lambda: target)
