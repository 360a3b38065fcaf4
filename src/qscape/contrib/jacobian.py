"""Action Jacobian penalty: how fast the action changes with the observation (Xie, Karol, Hodgins 2026, arXiv
2602.18312).

The paper adds the penalty to PPO's loss, in motion imitation; here it joins the loss of off-policy actors.
"""

import dataclasses
from typing import ClassVar

import jax
from jaxtyping import Array, PyTree

from qscape.offpolicy.sockets import Context, PartState, Regulariser
from qscape.ops.smooth import squared_jacobian
from qscape.types import Batch, Key, Metrics, Scalar, setting


@dataclasses.dataclass(frozen=True)
class ActionJacobian(Regulariser):
    """Penalises the squared Jacobian of the action with respect to the observation."""

    name: ClassVar[str] = "jacobian"
    needs_actor: ClassVar[bool] = True

    weight: float = setting(
        0.01, "w: weight of the squared Jacobian (inferred).", within=">= 0", tune=(1e-4, 1.0, "log")
    )

    def actor(
        self, actor_params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Return w mean ‖∂m(s)/∂s‖² over the batch, with m the deterministic action."""
        if not self.weight:
            return None
        obs, spec = batch.observation, context.spec

        def mode(seen: Array) -> Array:
            return context.policy(spec.change_visible(lambda _: seen, obs)).mode()

        square = squared_jacobian(*jax.vjp(mode, spec.visible(obs))).mean()
        return self.weight * square, {"jacobian_square": square}
