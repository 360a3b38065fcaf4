"""The dual policy of BRO: an optimistic policy explores, another one is improved and evaluated.

Nauman et al., "Bigger, Regularized, Optimistic", NeurIPS 2024, arXiv 2405.16158, with the settings of the
released code. The explorer moves the policy N(μ, σ²), before its tanh, by a network of its own:

    μ_o = μ + f(s, μ),   σ_o = 0.75 σ
    loss of f = −mean(mean_j q_j + o · mean_j |q_j − mean_j q_j|) + w · mean KL,   KL = Σ (μ_o − μ)² / (2 σ²)

q_j are the critics' values, of quantile critics every quantile, at a sample of the explorer. With two critics
the second mean is |q₁ − q₂| / 2. Optimism o and the weight w are learned so that the KL divergence per action
dimension comes to a target: where it is greater, o falls and w rises.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from qscape.nets import Features
from qscape.nets.heads import Snapped, SquashedNormal, unsnap
from qscape.nets.layers import dense
from qscape.nets.orthogonal import orthogonal_linear
from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import Single, explain_second_policy
from qscape.offpolicy.sockets import Composition, Context, Nets, PartState
from qscape.types import Batch, Dist, Key, Metrics, Policy, Scalar, Spec, setting

MIDDLE, REACH = -10.0, 8.75  # o and w lie between e^-10 and e^7.5


class Explorer(eqx.Module):
    """Moves the mean of a normal policy; `out` has no bias."""

    torso: Features
    out: eqx.nn.Linear

    def __call__(self, obs: Float[Array, "*b S"], dist: SquashedNormal, std_factor: float) -> SquashedNormal:
        features = self.torso(jnp.concatenate([obs, dist.mean], -1))
        mean, log_std = dist.mean + dense(self.out, features), dist.log_std + math.log(std_factor)
        return dataclasses.replace(dist, mean=mean, log_std=log_std)


class Multipliers(NamedTuple):
    """Optimism and the weight of the KL divergence, as ξ of `bounded`, and the optimiser's state of both."""

    free: Float[Array, "2"]
    optimiser: PyTree


def bounded(free: Array) -> Array:
    """Returns exp(−10 + 8.75 (1 + tanh ξ))."""
    return jnp.exp(MIDDLE + REACH * (1.0 + jnp.tanh(free)))


def unbounded(value: float) -> float:
    """Returns the ξ at which `bounded` is `value`."""
    return math.atanh((math.log(value) - MIDDLE) / REACH - 1.0)


def before_tanh(dist: Dist) -> SquashedNormal:
    """Returns the normal distribution behind a policy's actions."""
    normal = unsnap(dist)
    assert isinstance(normal, SquashedNormal)
    return normal


@dataclasses.dataclass(frozen=True)
class DualPolicy(Single):
    """A second, optimistic policy explores; evaluation and the critics' target are of the first one."""

    name: ClassVar[str] = "dual_policy"
    takes_images: ClassVar[bool] = False

    std_factor: float = setting(0.75, "Explorer's standard deviation over the policy's.", within="> 0")
    kl_target: float = setting(
        0.05,
        "KL divergence per action dimension that optimism and its weight are tuned to.",
        within="> 0",
        tune=(0.01, 0.5, "log"),
    )
    optimism: float = setting(1.0, "o at the start of a run.", within="(0, 1000]")
    kl_weight: float = setting(0.25, "w at the start of a run.", within="(0, 1000]")
    learning_rate: float = setting(3e-5, "Adam's learning rate of o and w.", within=">= 0")
    adam_b1: float = setting(0.5, "Adam's b1 for o and w.", within="[0, 1)")

    def conflict(self, agent: Composition) -> str | None:
        if agent.base.head != "gaussian":
            return "dual_policy moves the mean of a normal policy: base.head = gaussian, as sac has it."
        if agent.base.critics < 2:
            return "dual_policy explores where critics differ: base.critics = 2 or more."
        return explain_second_policy(self.name, agent.network)

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """Makes the explorer, with hidden layers like the actor's on observation and mean, and o and w."""
        k_torso, k_out = jax.random.split(key)
        torso = nets.torso(k_torso, spec.of_actor.observation_size + spec.action_size)
        out = orthogonal_linear(k_out, base.actor_hidden[-1], spec.action_size, 0.01)
        out = eqx.tree_at(lambda layer: layer.bias, out, None)
        free = jnp.array([unbounded(self.optimism), unbounded(self.kl_weight)], jnp.float32)
        return PartState(
            params=Explorer(torso, out), extra=Multipliers(free, self._optimiser(base).init(free))
        )

    def learning_rates(self, base: Base) -> tuple[float, float]:
        return base.actor_learning_rate, base.actor_learning_rate

    def optimiser_options(self, base: Base) -> Mapping[str, Any]:
        b1 = base.adam_b1 if base.actor_adam_b1 is None else base.actor_adam_b1
        return {"weight_decay": base.actor_weight_decay, "b1": b1, "b2": base.adam_b2}

    def _optimiser(self, base: Base) -> optax.GradientTransformation:
        return base.optimiser(self.learning_rate, b1=self.adam_b1)

    def behaviour_policy(self, params: Explorer, context: Context) -> Policy:
        """Returns the policy that the explorer moves; evaluation is of the unmoved one."""

        def policy(obs: Array) -> Dist:
            dist = context.policy(obs)
            moved = params(context.spec.actor_part(obs), before_tanh(dist), self.std_factor)
            return dataclasses.replace(dist, raw=moved) if isinstance(dist, Snapped) else moved

        return policy

    def learn(
        self, params: Explorer, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, Multipliers]:
        """Returns the explorer's loss, by the policy before this update's step, and the next o and w."""
        obs, spec, multipliers = batch.observation, context.spec, state.extra
        dist = self.behaviour_policy(params, context)(obs)
        action, _ = dist.sample(key)
        levels = jnp.stack(context.levels(obs, action))
        middle = levels.mean(0)
        spread = jnp.abs(levels - middle).mean(0)
        policy = before_tanh(context.policy(obs))
        shift = (before_tanh(dist).mean - policy.mean) / jnp.exp(policy.log_std)
        kl = jnp.square(shift).sum(-1).mean() / 2.0
        optimism, weight = bounded(multipliers.free)
        loss = weight * kl - (middle + optimism * spread).mean()

        def miss(free: Array) -> Array:
            optimism, weight = bounded(free)
            return (optimism - weight) * (kl / spec.action_size - self.kl_target)

        step, optimiser = self._optimiser(context.base).update(
            jax.grad(miss)(multipliers.free), multipliers.optimiser, multipliers.free
        )
        metrics = {"explorer_loss": loss, "explorer_kl": kl, "optimism": optimism, "kl_weight": weight}
        return loss, metrics, Multipliers(multipliers.free + step, optimiser)
