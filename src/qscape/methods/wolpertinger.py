"""Wolpertinger: one actor, a few actions near its own, and Q chooses.

Dulac-Arnold et al. 2015 (arXiv 1512.07679) for discrete actions; for continuous ones as a baseline of SAVO
(arXiv 2410.11833).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.methods._proposals import ProposalSelector, bind_target_actors
from qscape.nets import Actor
from qscape.nets.heads import Point, unsnap
from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import smooth_action
from qscape.offpolicy.sockets import BoundNetworks, Composition, Context, Nets, PartState
from qscape.types import Batch, Dist, Key, Policy, QFn, Spec, setting


@dataclasses.dataclass(frozen=True)
class Wolpertinger(ProposalSelector):
    """Q chooses among the actor's action and samples around it, or among the nearest discrete actions."""

    name: ClassVar[str] = "wolpertinger"
    noise: ClassVar[str] = "choice"

    candidates: int = setting(
        3, "Actions to choose among, the actor's own included.", within=">= 1", tune=("choice", 3, 5, 10)
    )
    spread: float = setting(
        0.1, "Standard deviation of the samples (continuous actions).", within=">= 0", tune=(0.02, 0.5)
    )
    straight_through: bool = setting(
        True, "For action tables: climb Q at the nearest row; off: at the unsnapped action."
    )

    def length(self) -> int:
        return self.candidates

    def conflict(self, agent: Composition) -> str | None:
        if agent.base.head != "deterministic":
            return "wolpertinger draws around a deterministic action; write td3+wolpertinger."
        return None

    def fits(self, spec: Spec, base: Base) -> str | None:
        if spec.table is None or len(spec.table) >= self.candidates:
            return None
        return (
            f"wolpertinger.candidates is {self.candidates}; there are only {len(spec.table)} actions, "
            "and Q can choose among no more."
        )

    def actors(self, key: Key, nets: Nets, spec: Spec) -> Actor:
        return nets.actor(key)

    def propose(self, actor: PyTree, context: BoundNetworks, obs: Array, key: Key) -> list[Dist]:
        dist = context.bind(actor)(obs)
        return self.candidates_around(dist.features, obs, unsnap(dist).mode(), context, key)

    def candidates_around(
        self, features: Array, obs: Array, action: Array, context: BoundNetworks, key: Key
    ) -> list[Dist]:
        """Return the candidates at an action [*b, A]: the nearest valid rows, or itself and samples.

        The nearest row stands for those that are missing if fewer are valid.
        """
        if context.table is not None:
            still = jax.lax.stop_gradient(action)
            items = context.table.at(
                context.table.nearest(still, self.candidates, context.spec.mask_words(obs))
            )
            near = jnp.moveaxis(items, -2, 0) + (action - still)  # straight through, as in `snap`
        else:
            drawn = self.spread * jax.random.normal(key, (self.candidates - 1, *action.shape))
            near = jnp.concatenate([action[None], jnp.clip(action + drawn, -1.0, 1.0)])
        return [Point(features, candidate) for candidate in near]

    def actor_objectives(
        self, actor: PyTree, state: PartState, context: Context, batch: Batch
    ) -> list[tuple[Policy, QFn]]:
        """Let the actor climb Q at its own action, like TD3's."""
        policy = context.bind(actor)
        return [(policy if self.straight_through else lambda obs: unsnap(policy(obs)), context.q)]

    def target_policy(
        self,
        actor: PyTree,
        actor_target: PyTree,
        state: PartState,
        context: Context,
        next_obs: Array,
        key: Key,
    ) -> Policy:
        """Make candidates around the target actor's smoothed action; the online critics choose."""
        k_smooth, k_draw = jax.random.split(key)
        chosen, slow = bind_target_actors(actor, actor_target, context)

        def best(obs: Array) -> Dist:
            dist = slow.bind(chosen)(obs)
            action = unsnap(dist).mode()
            if context.base.target_noise:
                action = smooth_action(context.base, action, k_smooth)
            return self.best_proposal(
                context, obs, self.candidates_around(dist.features, obs, action, context, k_draw)
            )

        return best
