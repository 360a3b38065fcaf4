"""Improvements by minibatches of gradient descent: the policy gradient (REINFORCE, A2C) and PPO."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from qscape.errors import UsageError
from qscape.onpolicy.sockets import Context, PolicyUpdate, Samples, Views
from qscape.onpolicy.state import Networks, State
from qscape.ops.surrogate import (
    clipped_surrogate,
    clipped_value_loss,
    kl_estimate,
    mean,
    standardised,
)
from qscape.types import Key, Metrics, Scalar, setting

Loss = Callable[[Networks, Samples], tuple[Scalar, Metrics]]


class _Descent(PolicyUpdate):
    """Passes over the samples in minibatches, one step each. Abstract: `terms` is missing."""

    @property
    def stop_above(self) -> float | None:
        """No further step once the estimated KL exceeds this; None: never."""
        return None

    def terms(self, views: Views, batch: Samples) -> tuple[Array, Array | None, Metrics]:
        """The policy's loss [B], the critic's [B] (None without one), and metrics."""
        raise NotImplementedError

    def optimised(self, networks: Networks) -> dict[str, PyTree]:
        return {"networks": networks}

    def improve(self, context: Context, state: State, samples: Samples) -> tuple[State, Metrics]:
        base, optimiser = context.base, context.base.descent()

        def loss(networks: Networks, batch: Samples) -> tuple[Scalar, Metrics]:
            views = context.views(networks, batch.observation)
            policy, value, metrics = self.terms(views, batch)
            entropy = mean(views.dist.entropy(), batch.weight)
            total = mean(policy, batch.weight)
            metrics = metrics | {"policy_loss": total, "entropy": entropy}
            if value is not None:
                metrics["value_loss"] = mean(value, batch.weight)
                total = total + base.value_coefficient * metrics["value_loss"]
            if base.entropy_coefficient:
                total = total - base.entropy_coefficient * entropy
            if views.penalty is not None:
                total = total + mean(views.penalty, batch.weight)
            return total, metrics

        def step(networks: Networks, moments: PyTree, batch: Samples) -> tuple[Networks, PyTree, Metrics]:
            gradient, metrics = jax.grad(loss, has_aux=True)(networks, batch)
            squares = [jnp.square(g).sum() for g in jax.tree.leaves(gradient)]
            metrics["gradient_norm"] = jnp.sqrt(jnp.stack(squares).sum())
            direction, moments = optimiser.update(gradient, moments)
            return descend(networks, direction, context.rate), moments, metrics

        plan = Minibatches(len(samples.advantage), base.batch_size, base.passes, samples.weight)
        networks, moments, metrics = plan.run(
            step, (state.networks, state.optimisers["networks"]), samples, context.key, self.stop_above
        )
        return state._replace(networks=networks, optimisers={"networks": moments}), metrics


def descend(params: PyTree, direction: PyTree, rate: Scalar) -> PyTree:
    """One step against a direction."""
    return jax.tree.map(lambda p, d: p + -rate * d, params, direction)


class Minibatches(NamedTuple):
    """How N samples are gone through: `passes` times in a new random order, `size` at a time.

    A remainder that is smaller than a minibatch joins the last one. Where samples have weights, those of
    weight 0 come last in the order and fill up that last minibatch.
    """

    samples: int
    size: int  # 0: all at once
    passes: int
    weight: Float[Array, " N"] | None

    def run(
        self, step: Callable, carry: tuple, samples: Samples, key: Key, stop_above: float | None
    ) -> tuple[PyTree, PyTree, Metrics]:
        """Takes every step; returns the carry and the mean of the metrics over the steps taken."""
        sums = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, *carry, self._last(samples))[2]
        )
        start = (*carry, sums, jnp.zeros(()), jnp.array(False))

        def guarded(carry: tuple, batch: Samples) -> tuple:
            params, moments, sums, taken, stopped = carry
            if stop_above is None:
                return (*_counted(step(params, moments, batch), sums, taken), stopped)

            def go() -> tuple:
                *after, said = step(params, moments, batch)
                over = said["approx_kl"] > stop_above  # before this step, which is not taken then
                kept = jax.tree.map(
                    lambda new, old: jnp.where(over, old, new), tuple(after), (params, moments)
                )
                return (*_counted((*kept, said), sums, taken), over)

            return jax.lax.cond(stopped, lambda: carry, go)

        def one_pass(number: Array, carry: tuple) -> tuple:
            order = self._order(jax.random.fold_in(key, number))
            return self._walk(guarded, carry, samples, order)

        if self.passes == 1:
            carry = one_pass(jnp.zeros((), jnp.int32), start)
        else:
            carry = jax.lax.fori_loop(0, self.passes, one_pass, start)
        params, moments, sums, taken, _ = carry
        return params, moments, jax.tree.map(lambda x: x / jnp.maximum(taken, 1.0), sums)

    def _order(self, key: Key) -> Int[Array, " N"]:
        """A random order; samples of weight 0 come last."""
        if not self.size and self.weight is None:
            return jnp.arange(self.samples)
        draws = jax.random.uniform(key, (self.samples,))
        return jnp.argsort(draws if self.weight is None else jnp.where(self.weight > 0, draws, 2.0))

    def _walk(self, step: Callable, carry: tuple, samples: Samples, order: Array) -> tuple:
        if not self.size:
            return step(carry, samples)
        size, rest = self.size, self.samples % self.size
        if self.weight is None and not rest:
            chunks = order.reshape(-1, size)
            return jax.lax.scan(lambda c, i: (step(c, take(samples, i)), None), carry, chunks)[0]
        used = self.samples if self.weight is None else self.weight.sum().astype(jnp.int32)
        whole = jnp.maximum(used // size, 1) - 1  # all but the last minibatch, which may be longer
        padded = jnp.concatenate([order, jnp.zeros(2 * size, order.dtype)])

        def one(j: Array, carry: tuple) -> tuple:
            return step(carry, take(samples, jax.lax.dynamic_slice(padded, (j * size,), (size,))))

        carry = jax.lax.fori_loop(0, whole, one, carry)
        wide = 2 * size - 1
        last = take(samples, jax.lax.dynamic_slice(padded, (whole * size,), (wide,)))
        return step(carry, last._replace(weight=(jnp.arange(wide) < used - whole * size).astype(jnp.float32)))

    def _last(self, samples: Samples) -> Samples:
        """A minibatch, to find out the names of metrics."""
        return samples if not self.size else take(samples, jnp.zeros(self.size, jnp.int32))


def take(samples: Samples, i: Int[Array, " B"]) -> Samples:
    """The samples at some indices."""
    return jax.tree.map(lambda x: x[i], samples)


def _counted(after: tuple, sums: Metrics, taken: Array) -> tuple:
    params, moments, said = after
    return params, moments, jax.tree.map(jnp.add, sums, said), taken + 1.0


@dataclasses.dataclass(frozen=True)
class PolicyGradient(_Descent):
    """-log π(a|s) A (REINFORCE, A2C)."""

    name: ClassVar[str] = "policy_gradient"

    def terms(self, views: Views, batch: Samples) -> tuple[Array, Array | None, Metrics]:
        value = None if views.value is None else jnp.square(batch.target - views.value)
        return -views.dist.log_prob(batch.action) * batch.advantage, value, {}


@dataclasses.dataclass(frozen=True)
class Clipped(_Descent):
    """The clipped surrogate (PPO, Schulman et al. 2017): no gain from moving the ratio beyond 1 ± ε."""

    name: ClassVar[str] = "clipped"
    bound: float = setting(0.2, "ε: how far the probability ratio may move.", tune=(0.05, 0.4))
    value_bound: float | None = setting(None, "How far the value may move; None: as far as it likes.")
    normalise_advantages: bool = setting(True, "Standardise the advantages of each minibatch.")
    target_kl: float | None = setting(
        None, "Stop learning from a rollout once the estimated KL exceeds 1.5 times this; None: never."
    )

    def __post_init__(self) -> None:
        for name in ("bound", "value_bound", "target_kl"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UsageError(f"clipped.{name} is {getattr(self, name)}; it must be above 0.")

    @property
    def stop_above(self) -> float | None:
        """No further step once the estimated KL exceeds this."""
        return None if self.target_kl is None else 1.5 * self.target_kl

    def terms(self, views: Views, batch: Samples) -> tuple[Array, Array | None, Metrics]:
        advantage = batch.advantage
        if self.normalise_advantages:
            advantage = standardised(advantage, batch.weight)
        log_ratio = views.dist.log_prob(batch.action) - batch.log_prob
        outside = (jnp.abs(jnp.exp(log_ratio) - 1.0) > self.bound).astype(jnp.float32)
        metrics = {
            "approx_kl": mean(kl_estimate(log_ratio), batch.weight),
            "clip_fraction": mean(outside, batch.weight),
        }
        value = None
        if views.value is not None and self.value_bound is None:
            value = jnp.square(batch.target - views.value)
        elif views.value is not None:
            assert batch.value is not None
            assert self.value_bound is not None
            value = clipped_value_loss(views.value, batch.value, batch.target, self.value_bound)
        return clipped_surrogate(log_ratio, advantage, self.bound), value, metrics
