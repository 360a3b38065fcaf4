"""Separate: a loss that keeps the control points of a critic apart (Q3C, arXiv 2510.18828)."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp

from qscape.offpolicy.sockets import Composition, Context, PartState, Regulariser
from qscape.ops.wire import SEPARATIONS
from qscape.types import Batch, Key, Metrics, Scalar, setting


@dataclasses.dataclass(frozen=True)
class Separate(Regulariser):
    """Adds c/2 times the crowding of every critic's points to the critics' loss."""

    name: ClassVar[str] = "separate"

    kind: Literal["repulsion", "near_pairs", "maximin"] = setting(
        "repulsion",
        "What is minimised: mean inverse distance, minus the distances of the nearest pairs (released as "
        "min_n_pair_distances), or minus every point's distance to its nearest one.",
    )
    weight: float = setting(0.1, "c: weight of the term; 0: none.", within=">= 0", tune=(1e-3, 1.0, "log"))

    def conflict(self, agent: Composition) -> str | None:
        if agent.representation.makes_points:
            return None
        return (
            f"separate moves the points of a critic, and {agent.representation.name} makes critics without "
            "them; add control_points and best_point."
        )

    def critic(
        self, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        if not self.weight:
            return None
        apart = SEPARATIONS[self.kind]
        crowding = jnp.stack([apart(points).mean() for points, _ in context.points(batch.observation)]).sum()
        return self.weight * (0.5 * crowding), {"crowding": crowding}
