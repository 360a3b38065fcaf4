"""What networks of residual blocks have in common."""

from typing import Any, ClassVar

from qscape.nets import Features
from qscape.nets.layers import Linear
from qscape.nets.orthogonal import orthogonal_linear
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Composition, Network, Output, Role
from qscape.types import Key


def explain_unequal_widths(name: str, base: Base) -> str | None:
    """Return why the residual blocks of a network cannot have these widths; None: they can."""
    for field in ("actor_hidden", "critic_hidden"):
        widths = getattr(base, field)
        if len(set(widths)) > 1:
            return (
                f"base.{field} is {widths}, and the blocks of {name} all have one width: write it "
                f"once for each block, such as {(widths[0],) * len(widths)}."
            )
    return None


class BlockNetwork(Network):
    """Base of networks with residual blocks: one entry of `base.critic_hidden` for each block.

    Attributes:
        make_torso: makes the hidden layers: `(key, size, widths, activation)`.
        gains: gain of the orthogonal output layers, by what they compute.
    """

    curves_critics: ClassVar[bool] = True  # layer norms, unit vectors
    make_torso: ClassVar[Any]
    gains: ClassVar[dict[str, float]] = {"critic": 1.0, "mean": 1.0, "log_std": 1.0}

    def conflict(self, agent: Composition) -> str | None:
        return explain_unequal_widths(self.name, agent.base)

    def torso(self, key: Key, size: int, role: Role, base: Base) -> Features:
        if role == "actor":
            return self.make_torso(key, size, base.actor_hidden, base.actor_activation)
        return self.make_torso(key, size, base.critic_hidden, base.critic_activation)

    def output(self, key: Key, size: int, outputs: int, role: Output, base: Base) -> Linear:
        return orthogonal_linear(key, size, outputs, self.gains[role])
