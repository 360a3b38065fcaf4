"""Behaviour cloning, alone or together with a policy gradient: TD3+BC, plain cloning, TD7's offline term.

TD3+BC: Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement Learning", 2021, arXiv 2106.06860.
TD7: Fujimoto et al. 2023, arXiv 2306.02451.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.nets.heads import unsnap
from qscape.offpolicy.plain import explain_untrained_spread
from qscape.offpolicy.sockets import Composition, Context, PartState, PolicyLoss, Regulariser, combine_heads
from qscape.types import LOSS_WEIGHT, Batch, Key, Metrics, Policy, QFn, Scalar, setting


def clone_distance(policy: Policy, batch: Batch) -> tuple[Array, Scalar]:
    """Return π(s) [B, A], not snapped to a table, and the mean of (π(s) − a)² over batch and dimensions."""
    action = unsnap(policy(batch.observation)).mode()
    return action, jnp.square(action - batch.action).mean()


@dataclasses.dataclass(frozen=True)
class BC(PolicyLoss):
    """Climbs Q and stays near the data: the loss is −α Q / mean|Q| + (π(s) − a)² (TD3+BC)."""

    name: ClassVar[str] = "bc"
    needs_actor: ClassVar[bool] = True
    alpha: float = setting(
        2.5, "Weight α of the scaled Q; 0: only imitate the data.", within=">= 0", tune=(0.0, 10.0)
    )

    def conflict(self, agent: Composition) -> str | None:
        return explain_untrained_spread("bc", "td3+bc", agent.base)

    def loss(
        self,
        policy: Policy,
        q: QFn,
        actor_params: PyTree,
        state: PartState,
        context: Context,
        batch: Batch,
        key: Key,
    ) -> tuple[Scalar, Metrics]:
        """Return −λ Q(s, π(s)) + (π(s) − a)² with λ = α / mean|Q(s, π(s))|, without gradient (Eq. 5 and
        6)."""
        action, clone = clone_distance(policy, batch)
        if not self.alpha:
            return clone, {"clone_distance": clone}
        value = combine_heads(context.base, q(batch.observation, context.snap(action, batch.observation)))
        scale = self.alpha / jax.lax.stop_gradient(jnp.abs(value).mean())
        return clone - scale * value.mean(), {"actor_value": value.mean(), "clone_distance": clone}


@dataclasses.dataclass(frozen=True)
class Clone(Regulariser):
    """Adds λ · mean|Q| · (π(s) − a)² to the actor's loss (TD7 on a dataset)."""

    name: ClassVar[str] = "clone"
    needs_actor: ClassVar[bool] = True
    weight: float = setting(0.1, "Weight λ of the distance to the data's actions.", **LOSS_WEIGHT)

    def actor(
        self, actor_params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics]:
        """Return λ · mean|Q(s, π(s))| · (π(s) − a)²; the mean, over the heads that the actor climbs, is
        constant."""
        action, clone = clone_distance(context.policy, batch)
        heads = context.q(batch.observation, context.snap(action, batch.observation))
        heads = heads[:1] if context.base.actor_objective == "first" else heads
        scale = jax.lax.stop_gradient(jnp.abs(jnp.stack(heads)).mean())
        return self.weight * scale * clone, {"clone_distance": clone}
