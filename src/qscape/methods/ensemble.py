"""Ensemble: independent actors, and Q chooses (a baseline of SAVO, arXiv 2410.11833)."""

import dataclasses
from typing import ClassVar, Literal

import jax
from jaxtyping import Array, PyTree

from qscape.methods._proposals import ProposalSelector, bind_target_actors
from qscape.nets import Actor
from qscape.offpolicy.plain import smooth_dist, smooth_target_policy
from qscape.offpolicy.sockets import BoundNetworks, Context, Nets, PartState
from qscape.types import Batch, Dist, Key, Policy, QFn, Spec, setting


@dataclasses.dataclass(frozen=True)
class Ensemble(ProposalSelector):
    """Independently initialised actors that each climb Q; Q chooses among their actions."""

    name: ClassVar[str] = "ensemble"

    members: int = setting(3, "Number of actors.", within=">= 1", tune=("choice", 2, 3, 5))
    next_q: Literal["online", "target"] = setting(  # type: ignore[assignment]
        "online", "Critics that choose at s': the online or the target ones."
    )
    smoothing: Literal["each", "choice"] = setting(
        "each",
        "Target smoothing moves the action of each target actor, or the chosen one.",
        only_if={"base.target_noise": "without target smoothing, such as base.target_noise = 0.2"},
    )
    noise: Literal["both", "proposals"] = setting(  # type: ignore[assignment]
        "both", "Exploration noise is added to each proposal and again to the choice, or to proposals only."
    )

    def length(self) -> int:
        return self.members

    def actors(self, key: Key, nets: Nets, spec: Spec) -> list[Actor]:
        return [nets.actor(k) for k in jax.random.split(key, self.members)]

    def propose(self, actor: PyTree, context: BoundNetworks, obs: Array, key: Key) -> list[Dist]:
        return [context.bind(member)(obs) for member in actor]

    def actor_objectives(
        self, actor: PyTree, state: PartState, context: Context, batch: Batch
    ) -> list[tuple[Policy, QFn]]:
        return [(context.bind(member), context.q) for member in actor]

    def target_policy(
        self,
        actor: PyTree,
        actor_target: PyTree,
        state: PartState,
        context: Context,
        next_obs: Array,
        key: Key,
    ) -> Policy:
        """Smooth each target actor's action, of which the critics choose one, or smooths that one."""
        if not context.base.target_noise:
            return self.next_policy(actor, actor_target, context)
        if self.smoothing == "choice":
            policy = self.next_policy(actor, actor_target, context)
            return smooth_target_policy(context._replace(policy_target=policy), key)
        members, slow = bind_target_actors(actor, actor_target, context)

        def best(obs: Array) -> Dist:
            keys = jax.random.split(key, self.members)
            options = self.propose(members, slow, obs, key)
            options = [smooth_dist(context, obs, option, k) for option, k in zip(options, keys, strict=True)]
            return self.best_proposal(self.choosing_next(context), obs, options)

        return best
