"""Every critic has a target of its own, as in FastSAC (arXiv 2512.01996)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.offpolicy.sockets import BootstrapValue, PartState
from qscape.types import Key


@dataclasses.dataclass(frozen=True)
class OwnTarget(BootstrapValue):
    """Each critic learns from its own target critic, so that no minimum makes values pessimistic."""

    name: ClassVar[str] = "own_target"

    def weights(self, state: PartState, qs: Float[Array, "B J"], key: Key) -> Float[Array, "B J J"]:
        rows, critics = qs.shape
        return jnp.broadcast_to(jnp.eye(critics), (rows, critics, critics))
