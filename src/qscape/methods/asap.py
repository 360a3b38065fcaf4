"""ASAP: the policy is regularised towards the predictions of a slow copy of itself (Kwak, Hwang, AAAI 2026,
arXiv 2601.18479), in the form of its comparison with PAVE (Lee et al. 2026, arXiv 2601.22970).

A further head on the actor's features predicts the next action. Actor and head have a slow copy, and the
policy is regularised towards its predictions. GRAD's second difference is added.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from qscape.methods._three_states import ThreeInARow
from qscape.nets import dense
from qscape.nets.batch_norm import split_statistics
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Context, Nets, PartState
from qscape.ops.smooth import half_mse, second_difference
from qscape.types import LOSS_WEIGHT, Batch, Event, Key, Metrics, Scalar, Spec, setting


class SlowCopy(NamedTuple):
    """Slow copies (moving averages) of the actor and of the head that predicts the next action.

    Running statistics of batch normalisation are the actor's own: no average moves them.
    """

    actor: PyTree
    head: eqx.nn.Linear


@dataclasses.dataclass(frozen=True)
class ASAP(ThreeInARow):
    """A head predicts the next action; the policy is regularised towards its slow copy's prediction."""

    name: ClassVar[str] = "asap"

    prediction: float = setting(
        2.0, "λP: weight of the head's prediction loss.", within=">= 0", tune=(0.1, 10.0, "log")
    )
    spatial: float = setting(
        0.3,
        "λS: weight of the distance between the next action and its prediction.",
        within=">= 0",
        tune=(1e-3, 50.0, "log"),
    )
    temporal: float = setting(0.05, "λT: weight of the second difference.", **LOSS_WEIGHT)
    rate: float = setting(0.01, "Rate at which the slow copy follows actor and head.", within="[0, 1]")

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """Make the head, which the actor's loss trains, and a slow copy of actor and head."""
        head = eqx.nn.Linear(base.actor_hidden[-1], spec.action_size, key=key)
        return PartState(actor_params=head, extra=SlowCopy(actor, head))

    def actor(
        self, actor_params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Return λT · second difference + λS ½ mse(m(s'), sg p_slow(s)) + λP ½ mse(p(s), sg m(s'))."""
        stop, obs = jax.lax.stop_gradient, batch.observation
        now, after = context.policy(obs), context.policy(batch.extra["successor"]).mode()
        total, metrics = jnp.zeros(()), {}
        if self.temporal:
            before = context.policy(batch.extra[self.previous]).mode()
            metrics["asap_temporal"] = second_difference(before, now.mode(), after)
            total += self.temporal * metrics["asap_temporal"]
        if self.spatial:
            slow_actor, slow_head = state.extra
            predicted = predict_next_action(
                slow_head, context.policy_of(slow_actor)(obs).features, context.base
            )
            metrics["asap_spatial"] = half_mse(after, stop(predicted))
            total += self.spatial * metrics["asap_spatial"]
        if self.prediction:  # its gradient also reaches the actor's features
            metrics["asap_prediction"] = half_mse(
                predict_next_action(actor_params, now.features, context.base), stop(after)
            )
            total += self.prediction * metrics["asap_prediction"]
        return total, metrics

    def post_update(self, state: PartState, actor: PyTree, event: Event) -> PartState:
        """Move the slow copy at every update, also if the actor does not move."""
        online: Any = SlowCopy(actor, state.actor_params)
        online, statistics = split_statistics(online)
        moved = optax.incremental_update(online, split_statistics(state.extra)[0], self.rate)
        return state._replace(extra=eqx.combine(moved, statistics))


def predict_next_action(head: eqx.nn.Linear, features: Array, base: Base) -> Array:
    """Return p(s) [B, A]: with tanh on TD3; on SAC it is linear, although its target is a tanh's output."""
    raw = dense(head, features)
    return jnp.tanh(raw) if base.head == "deterministic" else raw
