"""ESA: extremum-seeking refinement of actions (Chang and Gao 2024, arXiv 2404.01598).

A sinusoid probes Q around the action that the policy chose, and the action moves to where Q answers in phase.
No gradient of Q is needed. On-policy agents have no Q: there ESA has two critics of its own, which learn from
the rollouts. docs/methods/refiners.md says what is inferred.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.contrib._extremum import ExtremumSeeking, unit_of, update_spread
from qscape.contrib._refine import Refiner
from qscape.nets.mlp import MLP
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Context, Nets, PartState
from qscape.onpolicy.base import Base as OnPolicyBase
from qscape.onpolicy.descent import Minibatches, apply_step
from qscape.onpolicy.sockets import ActionRefiner, RolloutSamples
from qscape.ops.surrogate import weighted_mean
from qscape.types import Batch, Key, Metrics, Scalar, Spec


@dataclasses.dataclass(frozen=True)
class ESA(ExtremumSeeking, Refiner):
    """Moves the policy's action by a sinusoidal probe of Q before it is executed."""

    name: ClassVar[str] = "esa"

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """Make the moving average of the spread of Q; 0 before the first update."""
        return PartState(extra=jnp.zeros(())) if self.scales_by_spread else PartState()

    def measure(
        self, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[PartState, Metrics]:
        """Follow the standard deviation, over the batch, of Q_1(s, a + K n) with n uniform in [-1, 1]."""
        shake = self.probe * jax.random.uniform(key, batch.action.shape, minval=-1.0, maxval=1.0)
        action = context.snap(jnp.clip(batch.action + shake, -1.0, 1.0), batch.observation)
        spread = update_spread(state.extra, context.q(batch.observation, action)[0])
        return state._replace(extra=spread), {"q_spread": spread}

    def improve(
        self, state: PartState, values: Callable[[Array], list[Array]], action: Float[Array, "*b A"], key: Key
    ) -> Float[Array, "*b A"]:
        """Return clip(a + v(N)). Draws no random number."""
        unit = unit_of(state.extra) if self.scales_by_spread else 1.0
        move = self.seek(lambda candidate: values(candidate)[0] / unit, action)
        return jnp.clip(action + move, -1.0, 1.0)


class RolloutCritics(NamedTuple):
    """The state of ESA on an on-policy agent.

    Attributes:
        critics: two networks Q(s, a).
        moments: the state of their optimiser.
        spread: moving average of the spread of Q; 0 before the first update, when nothing is refined.
    """

    critics: list[MLP]
    moments: PyTree
    spread: Scalar


def min_value(critics: list[MLP], obs: Float[Array, "*b S"], action: Float[Array, "*b A"]) -> Array:
    """Return the minimum [*b] of the critics at actions clipped to the action box."""
    return jnp.stack(_values(critics, obs, action)).min(0)


def _values(critics: list[MLP], obs: Array, action: Array) -> list[Array]:
    x = jnp.concatenate([obs, jnp.clip(action, -1.0, 1.0)], -1)
    return [critic(x)[..., 0] for critic in critics]


@dataclasses.dataclass(frozen=True)
class OnPolicyESA(ExtremumSeeking, ActionRefiner):
    """Moves the actions of rollouts by a sinusoidal probe of Q; two critics learn Q from the rollouts."""

    name: ClassVar[str] = "esa"

    def fits(self, spec: Spec, base: OnPolicyBase) -> str | None:
        if spec.index_sizes or spec.frame is not None:
            return "esa probes continuous actions at observations that are vectors; leave esa out."
        return None

    def init(self, key: Key, spec: Spec, base: OnPolicyBase) -> RolloutCritics:
        """Make two critics with the widths of the value's critic."""
        sizes = (spec.observation_size + spec.action_size, *base.critic_hidden, 1)
        critics: PyTree = [MLP(k, sizes, base.activation) for k in jax.random.split(key)]
        return RolloutCritics(critics, base.make_optimiser().init(critics), jnp.zeros(()))

    def refine(self, state: RolloutCritics, obs: Float[Array, "E S"], action: Float[Array, "E A"]) -> Array:
        """Return a + v(N), which the environment clips; a itself before the first update."""
        unit = unit_of(state.spread) if self.scales_by_spread else 1.0
        move = self.seek(lambda candidate: min_value(state.critics, obs, candidate) / unit, action)
        return jnp.where(state.spread > 0, action + move, action)

    def learn(
        self, state: RolloutCritics, base: OnPolicyBase, rate: Scalar, samples: RolloutSamples, key: Key
    ) -> tuple[RolloutCritics, Metrics]:
        """Fit both critics at the executed actions to the targets of the value's critic."""
        optimiser, (k_passes, k_probe) = base.make_optimiser(), jax.random.split(key)

        def loss(critics: list[MLP], batch: RolloutSamples) -> Scalar:
            q = _values(critics, batch.observation, batch.action)
            errors = [weighted_mean(jnp.square(x - batch.target), batch.weight) for x in q]
            return jnp.stack(errors).sum()

        def step(
            critics: list[MLP], moments: PyTree, batch: RolloutSamples
        ) -> tuple[list[MLP], PyTree, Metrics]:
            value, gradient = jax.value_and_grad(loss)(critics, batch)
            direction, moments = optimiser.update(gradient, moments)
            return apply_step(critics, direction, rate), moments, {"esa_loss": value}

        passes = Minibatches(len(samples.advantage), base.batch_size, base.passes, samples.weight)
        start = state.critics, state.moments
        critics, moments, metrics = passes.run_passes(step, start, samples, k_passes, None)
        shake = self.probe * jax.random.uniform(k_probe, samples.action.shape, minval=-1.0, maxval=1.0)
        q = min_value(critics, samples.observation, samples.action + shake)
        spread = update_spread(state.spread, q, samples.weight)
        return RolloutCritics(critics, moments, spread), metrics | {"q_spread": spread}
