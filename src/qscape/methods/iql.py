"""Implicit Q-learning: the critics never value an action outside the data.

Kostrikov, Nair and Levine, "Offline Reinforcement Learning with Implicit Q-Learning", 2021, arXiv 2110.06169.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.nets import MLP
from qscape.nets.heads import unsnap
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Composition, Context, Nets, PartState, PolicyLoss
from qscape.types import Batch, Key, Metrics, Policy, QFn, Scalar, Spec, setting


def expectile_loss(difference: Float[Array, "*b"], expectile: float) -> Float[Array, "*b"]:
    """Returns |τ − 1(u < 0)| u² (Eq. 3). With u = x − v its minimiser v is the τ-expectile of x."""
    weight = jnp.where(difference < 0, 1.0 - expectile, expectile)
    return weight * jnp.square(difference)


@dataclasses.dataclass(frozen=True)
class IQL(PolicyLoss):
    """V(s) is an upper expectile of Q over the data's actions; the policy imitates advantageous actions.

    A Gaussian head maximises the likelihood of the data's actions. A deterministic head minimises the squared
    distance to them, which is the likelihood of a Gaussian of fixed width.
    """

    name: ClassVar[str] = "iql"
    takes_images: ClassVar[bool] = False
    climbs_q: ClassVar[bool] = False
    values_next_state: ClassVar[bool] = True
    expectile: float = setting(
        0.7,
        "Expectile τ: 0.5 is the mean over the data, 1 its best action.",
        within="(0, 1)",
        tune=(0.5, 0.95),
    )
    temperature: float = setting(
        3.0,
        "β: inverse temperature of the advantage weights exp(β A).",
        within=">= 0",
        tune=(0.5, 10.0, "log"),
    )
    max_weight: float = setting(100.0, "Upper bound of the advantage weights.", within="> 0")

    def notes(self, agent: Composition) -> list[str]:
        """Says that V takes the place of the part that values the next state by target critics."""
        if agent.bootstrap.takes_minimum:
            return []
        return [f"iql values the next state by V: {agent.bootstrap.name} is not used"]

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """Makes V, an MLP of the observation with the critics' widths."""
        sizes = (spec.observation_size, *base.critic_hidden, 1)
        return PartState(params=MLP(key, sizes, base.critic_activation))

    def learn(
        self, params: MLP, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, None]:
        """Returns L_V = |τ − 1(u < 0)| u², u = min Q̄(s, a) − V(s), at the data's actions (Eq. 5)."""
        value = params(context.spec.visible(batch.observation))[..., 0]
        loss = expectile_loss(_min_target_q(context, batch) - value, self.expectile).mean()
        return loss, {"v": value.mean()}, None

    def next_value(self, state: PartState, next_obs: Array) -> Array:
        """Returns V(s'), so that Q regresses to r + γ V(s') (Eq. 6)."""
        return state.params(next_obs)[..., 0]

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
        """Returns −exp(β (min Q̄(s, a) − V(s))) log π(a | s), with a bounded weight (Eq. 7)."""
        value = state.params(context.spec.visible(batch.observation))[..., 0]
        advantage = _min_target_q(context, batch) - value
        weight = jnp.minimum(jnp.exp(self.temperature * advantage), self.max_weight)
        dist = unsnap(policy(batch.observation))
        if context.base.head == "gaussian":
            distance = -dist.log_prob(batch.action)
        else:
            distance = jnp.square(dist.mode() - batch.action).sum(-1)
        metrics = {"advantage": advantage.mean(), "imitation_weight": weight.mean()}
        return (jax.lax.stop_gradient(weight) * distance).mean(), metrics


def _min_target_q(context: Context, batch: Batch) -> Float[Array, " B"]:
    """Returns the minimum of the target critics at the data's actions [B], without gradient."""
    return jax.lax.stop_gradient(jnp.stack(context.q_target(batch.observation, batch.action), -1).min(-1))
