"""Policy updates by minibatch gradient descent: the policy gradient (REINFORCE, A2C) and PPO."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from qscape.onpolicy.base import HAS_CRITIC
from qscape.onpolicy.sockets import (
    NetworkOutputs,
    PolicyUpdate,
    RolloutSamples,
    Trajectory,
    UpdateContext,
)
from qscape.onpolicy.state import Networks, State
from qscape.ops.devices import split_batch
from qscape.ops.order import argsort_draws
from qscape.ops.surrogate import (
    clipped_surrogate,
    clipped_value_loss,
    kl_estimate,
    standardise_advantages,
    weighted_mean,
)
from qscape.types import Key, Metrics, Scalar, Transition, setting


class _MinibatchDescent(PolicyUpdate):
    """Passes over the samples in minibatches, one optimiser step for each. Subclasses define `losses`.

    The total loss is mean(policy) + c_v mean(value) - c_e mean(entropy) + mean(penalty of the head).

    Where samples are unrolls, a minibatch holds whole ones, and their advantages and targets are computed
    anew in each, with the critic of then.
    """

    @property
    def kl_limit(self) -> float | None:
        """Stop training on a rollout once the estimated KL(old ‖ new) exceeds this, in nats; None: never."""
        return None

    def losses(self, outputs: NetworkOutputs, batch: RolloutSamples) -> tuple[Array, Array | None, Metrics]:
        """Return the policy's loss [B], the critic's loss [B] (None without a critic), and metrics."""
        raise NotImplementedError

    def optimised_params(self, networks: Networks) -> dict[str, PyTree]:
        return {"networks": networks}

    def improve(
        self, context: UpdateContext, state: State, samples: RolloutSamples, transitions: Transition
    ) -> tuple[State, Metrics]:
        base, optimiser = context.base, context.base.make_optimiser()

        def loss(networks: Networks, batch: RolloutSamples) -> tuple[Scalar, Metrics]:
            outputs = context.apply_networks(networks, batch.observation)
            if batch.successors is not None:
                batch = estimate_anew(context, networks, batch, outputs.value, self.unroll_length)
            policy, value, metrics = self.losses(outputs, batch)
            entropy = weighted_mean(outputs.dist.entropy(), batch.weight)
            total = weighted_mean(policy, batch.weight)
            metrics = metrics | {"policy_loss": total, "entropy": entropy}
            if value is not None:
                metrics["value_loss"] = weighted_mean(value, batch.weight)
                total = total + base.value_coefficient * metrics["value_loss"]
            if base.entropy_coefficient:
                total = total - base.entropy_coefficient * entropy
            if outputs.penalty is not None:
                total = total + weighted_mean(outputs.penalty, batch.weight)
            return total, metrics

        def step(
            networks: Networks, moments: PyTree, batch: RolloutSamples
        ) -> tuple[Networks, PyTree, Metrics]:
            gradient, metrics = jax.grad(loss, has_aux=True)(networks, batch)
            squares = [jnp.square(g).sum() for g in jax.tree.leaves(gradient)]
            metrics["gradient_norm"] = jnp.sqrt(jnp.stack(squares).sum())
            direction, moments = optimiser.update(gradient, moments)
            return apply_step(networks, direction, context.rate), moments, metrics

        unroll = 1 if samples.successors is None else self.unroll_length
        rows = len(samples.advantage)
        minibatches = Minibatches(rows, base.batch_size, base.passes, samples.weight, unroll)
        networks, moments, metrics = minibatches.run_passes(
            step, (state.networks, state.optimisers["networks"]), samples, context.key, self.kl_limit
        )
        return state._replace(networks=networks, optimisers={"networks": moments}), metrics


def apply_step(params: PyTree, direction: PyTree, rate: Scalar) -> PyTree:
    """Make one step of gradient descent: p ← p - rate · direction."""
    return jax.tree.map(lambda p, d: p + -rate * d, params, direction)


def estimate_anew(
    context: UpdateContext, networks: Networks, batch: RolloutSamples, value: Array | None, unroll: int
) -> RolloutSamples:
    """Return a minibatch of unrolls with the advantages and targets of the networks of now.

    Args:
        context, networks: as in `PolicyUpdate.improve`; no gradient moves the networks by this.
        batch: the samples, unroll after unroll.
        value: v(s) of the networks.
        unroll: U, the steps of an unroll.
    """
    assert batch.successors is not None
    assert value is not None
    after = batch.successors
    next_value = context.apply_networks(networks, after.observation).value
    columns = after.reward, value, next_value, after.terminated, after.segment_end
    in_time = jax.tree.map(lambda x: jax.lax.stop_gradient(x).reshape(-1, unroll).T, columns)
    estimated = context.estimate(Trajectory(*in_time, weight=None, done=in_time[-1]))
    advantage, target = (x.T.reshape(-1) for x in estimated)
    return batch._replace(advantage=advantage, target=target)


class Minibatches(NamedTuple):
    """Passes over N samples in minibatches, each pass in a new random order.

    A remainder that is smaller than a minibatch joins the last one. Samples of weight 0 come last in the
    order and pad the last minibatch. With unrolls, all of this is said of unrolls of U samples.

    Attributes:
        samples: N.
        size: samples in a minibatch, which has at least one unroll; 0: all N.
        passes: number of passes.
        weight: 0 for samples that do not count; None: all count.
        unroll: U; 1: single samples.
    """

    samples: int
    size: int
    passes: int
    weight: Float[Array, " N"] | None
    unroll: int = 1

    def run_passes(
        self, step: Callable, carry: tuple, samples: RolloutSamples, key: Key, kl_limit: float | None
    ) -> tuple[PyTree, PyTree, Metrics]:
        """Take all optimiser steps.

        Args:
            step: (params, optimiser state, minibatch) to (params, optimiser state, metrics).
            carry: the initial params and optimiser state.
            samples: all N samples.
            key: shuffles each pass.
            kl_limit: the step at which `approx_kl` exceeds it, and all later ones, are not taken; None: no
                limit.

        Returns:
            The params, the optimiser state, and the mean of the metrics over the steps. The step that the
            limit stops counts among these: its metrics say why.
        """
        sums = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(step, *carry, self._example_batch(samples))[2],
        )
        start = (*carry, sums, jnp.zeros(()), jnp.array(False))

        def step_unless_stopped(carry: tuple, batch: RolloutSamples) -> tuple:
            params, moments, sums, taken, stopped = carry
            if kl_limit is None:
                return (*_add_metrics(step(params, moments, batch), sums, taken), stopped)

            def take_step() -> tuple:
                *after, step_metrics = step(params, moments, batch)
                exceeded = step_metrics["approx_kl"] > kl_limit  # measured before this step
                kept = jax.tree.map(
                    lambda new, old: jnp.where(exceeded, old, new), tuple(after), (params, moments)
                )
                return (*_add_metrics((*kept, step_metrics), sums, taken), exceeded)

            return jax.lax.cond(stopped, lambda: carry, take_step)

        def one_pass(number: Array, carry: tuple) -> tuple:
            order = self._shuffle(jax.random.fold_in(key, number))
            return self._run_pass(step_unless_stopped, carry, samples, order)

        if self.passes == 1:
            carry = one_pass(jnp.zeros((), jnp.int32), start)
        else:
            carry = jax.lax.fori_loop(0, self.passes, one_pass, start)
        params, moments, sums, taken, _ = carry
        return params, moments, jax.tree.map(lambda x: x / jnp.maximum(taken, 1.0), sums)

    def _shuffle(self, key: Key) -> Int[Array, " n"]:
        """Return a random order of the n samples or unrolls; those of weight 0 come last."""
        unrolls, weight = self.samples // self.unroll, self._weight_unrolls()
        if not self.size and weight is None:
            return jnp.arange(unrolls)
        draws = jax.random.uniform(key, (unrolls,))
        if weight is None:
            return argsort_draws(draws)
        return jnp.argsort(jnp.where(weight > 0, draws, 2.0))

    def _weight_unrolls(self) -> Float[Array, " n"] | None:
        """Return 1 for each sample or unroll of which something counts, else 0; None: all count."""
        if self.weight is None or self.unroll == 1:
            return self.weight
        return self.weight.reshape(-1, self.unroll).max(1)

    def _run_pass(self, step: Callable, carry: tuple, samples: RolloutSamples, order: Array) -> tuple:
        """Make one pass over the samples in the given order, a step for each minibatch."""
        if not self.size:
            return step(carry, samples)
        size, weight = self._unrolls, self._weight_unrolls()
        if weight is None and not len(order) % size:
            chunks = order.reshape(-1, size)
            return jax.lax.scan(lambda c, i: (step(c, self._take(samples, i)), None), carry, chunks)[0]
        used = len(order) if weight is None else weight.sum().astype(jnp.int32)
        whole = jnp.maximum(used // size, 1) - 1  # all but the last minibatch, which may be longer
        padded = jnp.concatenate([order, jnp.zeros(2 * size, order.dtype)])

        def step_on_minibatch(j: Array, carry: tuple) -> tuple:
            return step(carry, self._take(samples, jax.lax.dynamic_slice(padded, (j * size,), (size,))))

        carry = jax.lax.fori_loop(0, whole, step_on_minibatch, carry)
        wide = 2 * size - 1
        last = self._take(samples, jax.lax.dynamic_slice(padded, (whole * size,), (wide,)))
        counts = (jnp.arange(wide) < used - whole * size).astype(jnp.float32)
        if self.unroll > 1:
            counts = jnp.repeat(counts, self.unroll) * (1.0 if last.weight is None else last.weight)
        return step(carry, last._replace(weight=counts))

    @property
    def _unrolls(self) -> int:
        """The samples or unrolls in a minibatch."""
        return max(self.size // self.unroll, 1)

    def _take(self, samples: RolloutSamples, i: Int[Array, " n"]) -> RolloutSamples:
        """Return the samples or unrolls at indices [n]; several devices take a share each."""
        if self.unroll > 1:
            i = (i[:, None] * self.unroll + jnp.arange(self.unroll)).reshape(-1)
        return take_samples(samples, i)

    def _example_batch(self, samples: RolloutSamples) -> RolloutSamples:
        """Return a minibatch of the right shape, to find the names and shapes of the metrics."""
        return samples if not self.size else self._take(samples, jnp.zeros(self._unrolls, jnp.int32))


def take_samples(samples: RolloutSamples, i: Int[Array, " B"]) -> RolloutSamples:
    """Return the samples at indices [B]; several devices take a share each."""
    return split_batch(jax.tree.map(lambda x: x[i], samples))


def _add_metrics(after: tuple, sums: Metrics, taken: Array) -> tuple:
    """Return params, optimiser state, sums with the metrics of a step added,
    and the number of steps taken.
    """
    params, moments, step_metrics = after
    return params, moments, jax.tree.map(jnp.add, sums, step_metrics), taken + 1.0


@dataclasses.dataclass(frozen=True)
class PolicyGradient(_MinibatchDescent):
    """The policy-gradient loss -log π(a|s) A (REINFORCE, A2C); the critic minimises (R - v(s))²."""

    name: ClassVar[str] = "policy_gradient"

    def losses(self, outputs: NetworkOutputs, batch: RolloutSamples) -> tuple[Array, Array | None, Metrics]:
        value = None if outputs.value is None else jnp.square(batch.target - outputs.value)
        return -outputs.dist.log_prob(batch.action) * batch.advantage, value, {}


@dataclasses.dataclass(frozen=True)
class Clipped(_MinibatchDescent):
    """The clipped surrogate loss of PPO: -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A), ρ = π(a|s) / π_old(a|s).

    Schulman et al. 2017, arXiv 1707.06347, Eq. 7. Moving ρ beyond 1 ± ε gains nothing.
    """

    name: ClassVar[str] = "clipped"
    bound: float = setting(
        0.2, "Clipping range ε of the probability ratio.", within="(0, inf]", tune=(0.05, 0.4)
    )
    value_bound: float | None = setting(
        None,
        "Clipping range of the critic's change in one update, in units of returns; None: no clipping.",
        within="(0, inf]",
    )
    normalise_advantages: bool = setting(True, "Standardise advantages within each minibatch.")
    unroll: int = setting(
        0,
        "Consecutive steps of one environment that stay together in a minibatch; advantages end with them "
        "and are computed anew in each minibatch, with the critic of then. 0: single steps, with advantages "
        "computed once over the whole rollout.",
        within=">= 0",
        only_if=HAS_CRITIC,
    )
    target_kl: float | None = setting(
        None,
        "Stop training on a rollout once the estimated KL exceeds 1.5 times this value; None: never.",
        within="(0, inf]",
    )

    def conflict(self, agent: Any) -> str | None:
        if self.normalise_advantages and agent.base.batch_size == 1:
            return (
                "advantages are standardised within a minibatch, which leaves 0 of a single one, and "
                "base.batch_size is 1; take at least 2, 0 for the whole rollout, or "
                "clipped.normalise_advantages = False."
            )
        return None

    @property
    def unroll_length(self) -> int:
        return self.unroll

    @property
    def kl_limit(self) -> float | None:
        """1.5 times `target_kl`; None: train on all minibatches."""
        return None if self.target_kl is None else 1.5 * self.target_kl

    def losses(self, outputs: NetworkOutputs, batch: RolloutSamples) -> tuple[Array, Array | None, Metrics]:
        advantage = batch.advantage
        if self.normalise_advantages:
            advantage = standardise_advantages(advantage, batch.weight)
        log_ratio = outputs.dist.log_prob(batch.action) - batch.log_prob
        outside = (jnp.abs(jnp.exp(log_ratio) - 1.0) > self.bound).astype(jnp.float32)
        metrics = {
            "approx_kl": weighted_mean(kl_estimate(log_ratio), batch.weight),
            "clip_fraction": weighted_mean(outside, batch.weight),
        }
        value = None
        if outputs.value is not None and self.value_bound is None:
            value = jnp.square(batch.target - outputs.value)
        elif outputs.value is not None:
            assert batch.value is not None
            assert self.value_bound is not None
            value = clipped_value_loss(outputs.value, batch.value, batch.target, self.value_bound)
        return clipped_surrogate(log_ratio, advantage, self.bound), value, metrics
