"""RIP: climb Q, and let a discriminator keep the policy's actions close to the data.

Yang, Wang, Zheng, Feng and Zhou, "A Behavior Regularized Implicit Policy for Offline Reinforcement Learning",
2022, arXiv 2202.09673. Its code was not found; the defaults are those of the first author's later release of
an implicit policy. The policy of the paper is the part `implicit`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from qscape.nets import MLP
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Composition, Context, Nets, PartState, PolicyLoss, combine_heads
from qscape.types import LEARNING_RATE, Batch, Event, Key, Metrics, Policy, QFn, Scalar, Spec, setting

LARGEST = 1.0 - 1e-6  # actions at their bounds have no finite arctanh


def logits(discriminator: MLP, obs: Float[Array, "B S"], action: Float[Array, "B A"]) -> Float[Array, " B"]:
    """Return the logit of "this pair is from the data", by s and arctanh(a), the action before its tanh."""
    raw = jnp.arctanh(jnp.clip(action, -LARGEST, LARGEST))
    return discriminator(jnp.concatenate([obs, raw], -1))[..., 0]


def cross_entropy(logit: Float[Array, " B"], label: Array | float) -> Scalar:
    """Return the mean of −[y log σ(x) + (1 − y) log(1 − σ(x))], y the label and x the logit."""
    return optax.sigmoid_binary_cross_entropy(logit, jnp.broadcast_to(label, logit.shape)).mean()


@dataclasses.dataclass(frozen=True)
class RIP(PolicyLoss):
    """The loss is −(λ / Q_avg) min_j Q_j(s, a) + BCE(D(s, a), 1) with a ~ π(s); D tells data from policy.

    Q_avg is a running mean of |Q| at the data. During the first updates only the discriminator's term moves
    the policy, and the critics stand still.
    """

    name: ClassVar[str] = "rip"
    takes_images: ClassVar[bool] = False
    takes_tables: ClassVar[bool] = False
    needs_actor: ClassVar[bool] = True
    needs_single_policy: ClassVar[bool] = True
    improves_samples: ClassVar[bool] = True

    weight: float = setting(
        10.0,
        "λ: weight of Q / Q_avg beside the discriminator's term.",
        within=">= 0",
        tune=(0.1, 100.0, "log"),
    )
    average_rate: float = setting(0.005, "Weight of a batch in the running mean Q_avg.", within="[0, 1]")
    initial_average: float = setting(1.0, "Q_avg at the start (inferred).", within="> 0")
    imitation_updates: int = setting(
        40_000, "Updates at the start without Q: the policy imitates, the critics wait.", within=">= 0"
    )
    least_label: float = setting(
        0.8, "Labels of the data are uniform between this and 1; those of the policy are 0.", within="[0, 1]"
    )
    hidden: tuple[int, ...] = setting(
        (400, 300), "Widths of the discriminator's hidden layers (inferred).", within=">= 1"
    )
    learning_rate: float = setting(2e-4, "Adam's learning rate of the discriminator.", **LEARNING_RATE)
    adam_b1: float = setting(0.4, "Adam's b1 of the discriminator.", within="(0, 1)")

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        """Set that Q is the least of the critics."""
        return {"actor_objective": "min"}

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """Make the discriminator, an MLP of observation and action, and Q_avg."""
        sizes = (spec.observation_size + spec.action_size, *self.hidden, 1)
        return PartState(params=MLP(key, sizes, "leaky_relu"), extra=jnp.float32(self.initial_average))

    def learning_rates(self, base: Base) -> tuple[float, float]:
        return self.learning_rate, base.actor_learning_rate

    def optimiser_options(self, base: Base) -> Mapping[str, Any]:
        return {"b1": self.adam_b1}

    def learn(
        self, params: MLP, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, Array]:
        """Return the discriminator's loss: the mean of the cross-entropies of data and policy."""
        k_policy, k_label = jax.random.split(key)
        obs = batch.observation
        drawn = jax.lax.stop_gradient(context.policy(obs).sample(k_policy)[0])
        label = jax.random.uniform(k_label, batch.reward.shape, minval=self.least_label)
        of_data, of_policy = logits(params, obs, batch.action), logits(params, obs, drawn)
        loss = 0.5 * (cross_entropy(of_data, label) + cross_entropy(of_policy, 0.0))
        scale = jnp.abs(combine_heads(context.base, context.q(obs, batch.action))).mean()
        rate = jnp.where(self.critics_learn(context.event), self.average_rate, 0.0)
        average = (1.0 - rate) * state.extra + rate * scale
        metrics = {
            "discriminator_loss": loss,
            "data_probability": jax.nn.sigmoid(of_data).mean(),
            "policy_probability": jax.nn.sigmoid(of_policy).mean(),
            "q_average": average,
        }
        return loss, metrics, average

    def critics_learn(self, event: Event) -> Array:
        return event.update > self.imitation_updates

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
        obs = batch.observation
        action, _ = policy(obs).sample(key)
        value = combine_heads(context.base, q(obs, action)).mean()
        adversarial = cross_entropy(logits(state.params, obs, action), 1.0)
        weight = jnp.where(self.critics_learn(context.event), self.weight / state.extra, 0.0)
        return adversarial - weight * value, {"actor_value": value, "adversarial_loss": adversarial}
