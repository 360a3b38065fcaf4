"""Imitation of executed actions that Q prefers to the actor's: the second half of EAS-TD3 (Ma et al. 2022,
arXiv 2201.04286). It works with every selector by which another action than the actor's own is executed.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from qscape.offpolicy.sockets import Context, PartState, Regulariser
from qscape.types import Batch, Key, Metrics, Scalar, setting


@dataclasses.dataclass(frozen=True)
class Imitate(Regulariser):
    """Draws the actor towards executed actions of a recent archive that the first critic prefers."""

    name: ClassVar[str] = "imitate"
    needs_actor: ClassVar[bool] = True

    weight: float = setting(1.0, "c_e: weight of the term.", within=">= 0", tune=(0.1, 10.0, "log"))
    archive: int = setting(
        100_000,
        "Newest transitions after the random phase that are imitated.",
        within=">= 1",
        tune=("choice", 2_000, 20_000, 100_000),
    )

    @property
    def newest(self) -> int:
        return self.archive

    def actor(
        self, actor_params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics]:
        """Returns c_e mean 1[Q_1(s, a) > Q_1(s, π(s))] ‖π(s) − a‖² / A over a batch from the archive.

        It is 0 while the archive is smaller than a batch. Rejected rows count as 0 in the mean.
        """
        obs, action = batch.extra["imitate.observation"], batch.extra["imitate.action"]
        mine = context.policy(obs).mode()
        is_better = context.q(obs, action)[0] > context.q(obs, jax.lax.stop_gradient(mine))[0]
        accepted = jax.lax.stop_gradient(is_better * batch.extra["imitate.filled"])
        loss = (accepted * jnp.square(mine - action).mean(-1)).mean()
        return self.weight * loss, {"imitation_loss": loss, "imitated": accepted.mean()}
