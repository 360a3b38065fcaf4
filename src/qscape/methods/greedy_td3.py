"""Greedy-TD3: TD3 whose actor imitates the best of many proposals instead of following ∂Q/∂a.

A baseline of SAVO (arXiv 2410.11833); docs/methods/choosers.md says what differs from the authors' code.
"""

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.methods._greedy import BestDraws
from qscape.nets.heads import unsnap
from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import make_mlp_architecture
from qscape.offpolicy.sockets import Composition, Context, Nets, PartState, combine_heads
from qscape.types import Batch, Key, Metrics, Policy, QFn, Scalar, Spec, setting


@dataclasses.dataclass(frozen=True)
class GreedyTD3(BestDraws):
    """A deterministic actor imitates the best of many samples from a stochastic proposal policy."""

    name: ClassVar[str] = "greedy_td3"
    has_second_policy: ClassVar[bool] = True

    add_dpg: bool = setting(False, "Add the deterministic policy gradient of Q / mean|Q|.")

    def conflict(self, agent: Composition) -> str | None:
        if agent.base.head != "deterministic":
            return "greedy_td3 moves a deterministic actor; write td3+greedy_td3, or greedy_ac in its place."
        return None

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """Make the proposal policy, an actor with a Gaussian head."""
        k_net, k_head = jax.random.split(key)
        gaussian = make_mlp_architecture(dataclasses.replace(base, head="gaussian")).head(k_head, spec)
        return PartState(actor_params=eqx.tree_at(lambda net: net.head, nets.actor(k_net, 0), gaussian))

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
        """Return mean |μ(s) − a*|² plus the loss of the proposal policy."""
        action = unsnap(policy(batch.observation)).mode()

        def fit(best: Array) -> Scalar:
            return jnp.square(action - best).sum(-1).mean()

        total, metrics = self.follow(actor_params, q, context, batch.observation, fit, key)
        if self.add_dpg:
            value = combine_heads(context.base, q(batch.observation, context.snap(action, batch.observation)))
            total -= value.mean() / jax.lax.stop_gradient(jnp.abs(value).mean())
        return total, metrics
