"""Greedy-AC: the policy maximises the likelihood of the best proposals (Neumann et al. 2023, arXiv
1810.09103).

A baseline of SAVO (arXiv 2410.11833): one critic, no delay, a target action sampled from the policy.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Array, PyTree

from qscape.methods._greedy import BestDraws
from qscape.nets.heads import unsnap
from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import explain_second_policy
from qscape.offpolicy.sockets import Composition, Context, Nets, PartState
from qscape.types import Batch, Key, Metrics, Policy, QFn, Scalar, Spec


@dataclasses.dataclass(frozen=True)
class GreedyAC(BestDraws):
    """A stochastic policy imitates the best of many samples from a second, more random one."""

    name: ClassVar[str] = "greedy_ac"

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return {
            "head": "gaussian",
            "critics": 1,
            "policy_delay": 1,
            "target_actor": False,
            "target_noise": 0.0,
            "exploration_noise": 0.0,
        }

    def conflict(self, agent: Composition) -> str | None:
        if agent.base.head != "gaussian":
            return (
                "greedy_ac needs a policy with a density: base.head = gaussian, or greedy_td3 in its place."
            )
        return explain_second_policy(self.name, agent.network)

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """Start the proposal policy as a copy of the policy."""
        return PartState(actor_params=actor)

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
        """Return −mean log π(a*|s) plus the loss of the proposal policy."""

        def fit(best: Array) -> Scalar:
            return -unsnap(policy(batch.observation)).log_prob(best).mean()

        return self.follow(actor_params, q, context, batch.observation, fit, key)

    def next_action(
        self, policy: Policy, state: PartState, context: Context, next_obs: Array, key: Key
    ) -> tuple[Array, None]:
        """Return an action sampled from the policy."""
        return policy(next_obs).sample(key)[0], None
