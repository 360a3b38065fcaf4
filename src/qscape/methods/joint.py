"""Joint proposals: one network proposes a whole list (an ablation of SAVO, arXiv 2410.11833)."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.methods._proposals import ProposalSelector
from qscape.nets import Actor, Conditioning, Deterministic, Projected
from qscape.nets.heads import Point, unsnap
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import BoundNetworks, Composition, Context, Nets, PartState
from qscape.types import Batch, Columns, Dist, Key, Metrics, Policy, QFn, Scalar, Spec, setting


@dataclasses.dataclass(frozen=True)
class Joint(ProposalSelector):
    """One actor outputs L actions; Q chooses among them, and the chosen one climbs Q."""

    name: ClassVar[str] = "joint"
    why_deterministic: ClassVar[str] = "splits a deterministic output into actions"
    why_unsmoothed: ClassVar[str] = "does not smooth its target"

    list_length: int = setting(3, "L: actions in the output.", within=">= 1", tune=("choice", 2, 3, 5))
    climbs_by: Literal["max", "mean", "critic"] = setting(
        "max",
        "Climb the value of the best proposal, the mean value of all proposals, or (critic, SAVO's code) a "
        "critic of the whole list, which is fitted to the value of the executed one.",
    )
    noise: Literal["both", "proposals"] = setting(  # type: ignore[assignment]
        "both", "Exploration noise is added to each proposal and again to the choice, or to proposals only."
    )

    def length(self) -> int:
        return self.list_length

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return {**super().overrides(agent), "target_actor": False, "target_noise": 0.0}

    def conflict(self, agent: Composition) -> str | None:
        if not agent.network.has_linear_outputs:
            return f"joint splits a linear output layer, which {agent.network.name} has not; leave it out."
        return super().conflict(agent)

    def columns(self, spec: Spec) -> Columns:
        return {"proposals": (self.list_length, spec.action_size)} if self.climbs_by == "critic" else {}

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """Make two critics of whole lists, if the actor climbs one."""
        if self.climbs_by != "critic":
            return PartState()
        further = (self.list_length - 1) * spec.action_size
        return PartState(params=[nets.critic(k, conditioning=further) for k in jax.random.split(key)])

    def learn(
        self, params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, None]:
        """Return the loss of the regression of both critics of lists to the least target critic's value of
        the executed action."""
        obs, listed = batch.observation, batch.extra["proposals"]
        target = jax.lax.stop_gradient(jnp.stack(context.q_target(obs, batch.action)).min(0))
        said = self._list_values(params, context, obs, listed.reshape(len(listed), -1))
        loss = jnp.square(jnp.stack(said) - target).mean(1).sum()
        return loss, {"list_loss": loss}, None

    def _list_values(
        self, params: PyTree, context: Context, obs: Array, listed: Float[Array, "B LA"]
    ) -> list[Array]:
        """Return the value [B] of whole lists by each of the critics of lists."""
        first, others = jnp.split(listed, [context.spec.action_size], -1)
        return [context.bind(critic)(obs, first, Conditioning(concat=others)) for critic in params]

    def actors(self, key: Key, nets: Nets, spec: Spec) -> Actor:
        """Make an actor whose last layer outputs L actions."""
        # Every action's rows begin as those of an actor of its own, as the agent's settings initialise them.
        actors = [nets.actor(k) for k in jax.random.split(key, self.list_length)]
        outs = [_output_layer(actor) for actor in actors]
        sizes = outs[0].in_features, self.list_length * spec.action_size
        wide = eqx.filter_eval_shape(eqx.nn.Linear, *sizes, key=key)  # shapes: it draws nothing
        rows = [jnp.concatenate(of) for of in zip(*((out.weight, out.bias) for out in outs), strict=True)]
        wide = eqx.tree_at(lambda layer: (layer.weight, layer.bias), wide, rows)
        return eqx.tree_at(_output_layer, actors[0], wide)

    def propose(
        self, actor: PyTree, context: BoundNetworks, obs: Array, key: Key | None = None
    ) -> list[Dist]:
        dist = context.bind(actor)(obs)
        actions = jnp.split(unsnap(dist).mode(), self.list_length, -1)
        return [Point(dist.features, context.snap(action, obs)) for action in actions]

    def actor_objectives(
        self, actor: PyTree, state: PartState, context: Context, batch: Batch
    ) -> list[tuple[Policy, QFn]]:
        if self.climbs_by == "max":
            return [(context.policy, context.q)]
        if self.climbs_by == "critic":
            return [
                (
                    lambda obs: unsnap(context.bind(actor)(obs)),
                    partial(self._list_values, state.params, context),
                )
            ]

        def share(obs: Array, action: Array) -> list[Array]:
            return [head / self.list_length for head in context.q(obs, action)]

        def member(i: int) -> Policy:
            return lambda obs: self.propose(actor, context, obs)[i]

        return [(member(i), share) for i in range(self.list_length)]

    def target_policy(
        self,
        actor: PyTree,
        actor_target: PyTree,
        state: PartState,
        context: Context,
        next_obs: Array,
        key: Key,
    ) -> Policy:
        return context.policy_target


def _output_layer(actor: Actor) -> eqx.nn.Linear:
    """Return the linear layer below the tanh."""
    head = actor.head.head if isinstance(actor.head, Projected) else actor.head
    assert isinstance(head, Deterministic)
    assert isinstance(head.out, eqx.nn.Linear)
    return head.out
