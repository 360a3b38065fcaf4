"""Best point: no actor; the action is the highest control point of a critic (Q3C, arXiv 2510.18828)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.nets.heads import Point
from qscape.offpolicy.plain import Single, smooth_dist
from qscape.offpolicy.sockets import (
    ActorlessSelector,
    BoundNetworks,
    Composition,
    Context,
    Nets,
    PartState,
    PointsFn,
)
from qscape.types import Key, Policy, Spec


@dataclasses.dataclass(frozen=True)
class BestPoint(ActorlessSelector, Single):
    """Executes the highest control point of the first critic, the first one of equals."""

    name: ClassVar[str] = "best_point"
    acts_by_points: ClassVar[bool] = True

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return {"target_actor": False}

    def conflict(self, agent: Composition) -> str | None:
        if not agent.representation.makes_points:
            return (
                f"best_point acts by the points of a critic, and {agent.representation.name} makes critics "
                "without them; add control_points."
            )
        if agent.base.head != "deterministic":
            return "best_point has no policy whose entropy could be kept; write q3c, or td3 as the base."
        if agent.base.actor_objective != "first":
            return (
                f"best_point acts by the first critic, and base.actor_objective is "
                f"{agent.base.actor_objective}; set base.actor_objective = first."
            )
        return None

    def actors(self, key: Key, nets: Nets, spec: Spec) -> Any:
        return None

    def policy(self, actor: PyTree, state: PartState, context: BoundNetworks) -> Policy:
        return greedy_policy(context.points)

    def proposals(self, actor: PyTree, state: PartState, context: Context, obs: Array) -> Array:
        """Return the N points of the first critic."""
        return context.points(obs)[0][0]

    def target_policy(
        self,
        actor: PyTree,
        actor_target: PyTree,
        state: PartState,
        context: Context,
        next_obs: Array,
        key: Key,
    ) -> Policy:
        """Return the highest point of the first target critic, smoothed by noise."""
        greedy = greedy_policy(context.points_target)
        if not context.base.target_noise:
            return greedy
        return lambda obs: smooth_dist(context, obs, greedy(obs), key)


def greedy_policy(points: PointsFn) -> Policy:
    """Return the policy of the highest point of the first critic."""

    def policy(obs: Float[Array, "*b S"]) -> Point:
        proposed, heights = points(obs)[0]
        best = heights.argmax(-1)[..., None, None]
        return Point(obs, jnp.take_along_axis(proposed, best, -2)[..., 0, :])

    return policy
