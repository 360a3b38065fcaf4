"""TRPO: a natural-gradient step within a bound on the mean KL (Schulman et al. 2015, arXiv 1502.05477)."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Bool, Float, Int, PyTree

from qscape.onpolicy.base import Base
from qscape.onpolicy.descent import apply_step
from qscape.onpolicy.sockets import PolicyUpdate, RolloutSamples, Transitions, UpdateContext
from qscape.onpolicy.state import Networks, State
from qscape.ops.surrogate import standardise_advantages, weighted_mean
from qscape.types import Metrics, Scalar, setting


class LineSearch(NamedTuple):
    """State of the backtracking line search.

    Attributes:
        tries: steps tried so far.
        accepted: did the last step tried satisfy both conditions?
        params: the accepted actor parameters, else those before the update.
        kl: mean KL(old ‖ params) in nats.
        loss: surrogate loss at `params`.
    """

    tries: Int[Array, ""]
    accepted: Bool[Array, ""]
    params: Float[Array, " n"]
    kl: Float[Array, ""]
    loss: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class TrustRegion(PolicyUpdate):
    """One natural-gradient step of the actor under mean KL(old ‖ new) ≤ δ; then the critic is trained.

    maximise E[ρ A] subject to E[KL(π_old ‖ π)] ≤ δ, solved by conjugate gradients and a backtracking line
    search (Schulman et al. 2015, Appendix C).
    """

    name: ClassVar[str] = "trust_region"
    allows_shared_torso: ClassVar[bool] = False
    weighs_critic_loss: ClassVar[bool] = False
    adds_head_penalty: ClassVar[bool] = False
    max_kl: float = setting(
        0.01, "Bound δ on the mean KL(old ‖ new), in nats.", within="> 0", tune=(1e-3, 0.1, "log")
    )
    damping: float = setting(
        0.1, "Constant added to the diagonal of the Fisher matrix.", within=">= 0", tune=(1e-3, 1.0, "log")
    )
    iterations: int = setting(10, "Iterations of conjugate gradients, at most.", within=">= 1")
    backtrack: float = setting(
        0.8, "Factor by which the line search shortens a rejected step.", within="(0, 1)"
    )
    tries: int = setting(
        10, "Steps that the line search tries; if all are rejected, the policy stays as it is.", within=">= 1"
    )
    critic_steps: int = setting(
        20, "Optimiser steps of the critic per update, each on the whole rollout.", within=">= 0"
    )

    def conflict(self, agent: Any) -> str | None:
        base: Base = agent.base
        if base.shared_torso:
            return "a trust region needs an actor of its own: base.shared_torso = False."
        if base.batch_size or base.passes != 1:
            return (
                "a trust region takes one step on a whole rollout: base.batch_size = 0 and base.passes = 1."
            )
        if base.entropy_coefficient:
            return "a trust region has no entropy bonus: base.entropy_coefficient = 0."
        return None

    def optimised_params(self, networks: Networks) -> dict[str, PyTree]:
        return {"critic": networks.critic}

    def improve(
        self, context: UpdateContext, state: State, samples: RolloutSamples, transitions: Transitions
    ) -> tuple[State, Metrics]:
        networks, metrics = self._update_actor(context, state.networks, samples)
        critic, moments = self._update_critic(context, networks.critic, state.optimisers["critic"], samples)
        networks = networks._replace(critic=critic)
        return state._replace(networks=networks, optimisers={"critic": moments}), metrics

    def _update_actor(
        self, context: UpdateContext, networks: Networks, samples: RolloutSamples
    ) -> tuple[Networks, Metrics]:
        """The networks after the actor's step, and metrics. A fixed action layer does not move."""
        weight = samples.weight
        advantage = standardise_advantages(samples.advantage, weight, epsilon=1e-8)
        start, unravel = ravel_pytree((networks.torso, networks.head))
        old = context.distribution((networks.torso, networks.head), samples.observation)

        def loss(params: Array) -> Scalar:
            dist = context.distribution(unravel(params), samples.observation)
            ratio = jnp.exp(dist.log_prob(samples.action) - samples.log_prob)
            return -weighted_mean(ratio * advantage, weight)

        def kl(params: Array) -> Scalar:
            return weighted_mean(old.kl(context.distribution(unravel(params), samples.observation)), weight)

        before, gradient = jax.value_and_grad(loss)(start)
        step, result = self.find_step(loss, kl, start, before, gradient)
        torso, head = unravel(result.params)
        metrics = {
            "policy_loss": before,
            "entropy": weighted_mean(old.entropy(), weight),
            "kl": result.kl,
            "surrogate_gain": before - result.loss,
            "step_taken": result.accepted.astype(jnp.float32),
            "step_norm": jnp.linalg.norm(step),
        }
        return networks._replace(torso=torso, head=head), metrics

    def find_step(
        self,
        loss: Callable[[Array], Scalar],
        kl: Callable[[Array], Scalar],
        start: Float[Array, " n"],
        before: Scalar,
        gradient: Float[Array, " n"],
    ) -> tuple[Float[Array, " n"], LineSearch]:
        """The full step β s, and the result of the line search along it.

        s = -F⁻¹ q with q the gradient, β = √(2 δ / sᵀ F s), F v = ∇(∇KL · v) + damping v. The search accepts
        the first step β backtrack^i s with KL < δ and a lower loss.

        Args:
            loss: surrogate loss of flat actor parameters.
            kl: mean KL from the old policy to the one with these parameters.
            start: the old parameters, where the KL is 0.
            before: loss at `start`.
            gradient: of the loss at `start`.
        """

        def fisher(v: Array) -> Array:
            return jax.jvp(jax.grad(kl), (start,), (v,))[1] + self.damping * v

        # Stops when the squared residual falls below 1e-10.
        direction = -cg(fisher, gradient, tol=0.0, atol=1e-5, maxiter=self.iterations)[0]
        curvature = direction @ fisher(direction)
        full = jnp.sqrt(2.0 * self.max_kl / jnp.maximum(curvature, 1e-12)) * direction

        def is_unfinished(search: LineSearch) -> Array:
            return (search.tries < self.tries) & ~search.accepted

        def try_step(search: LineSearch) -> LineSearch:
            params = start + self.backtrack ** search.tries.astype(jnp.float32) * full
            new_kl, new_loss = kl(params), loss(params)
            accepted = (new_kl < self.max_kl) & (new_loss < before)
            pairs = ((params, start), (new_kl, 0.0), (new_loss, before))
            return LineSearch(search.tries + 1, accepted, *(jnp.where(accepted, x, y) for x, y in pairs))

        initial = LineSearch(jnp.array(0), jnp.array(False), start, jnp.zeros(()), before)
        return full, jax.lax.while_loop(is_unfinished, try_step, initial)

    def _update_critic(
        self, context: UpdateContext, critic: PyTree, moments: PyTree, samples: RolloutSamples
    ) -> tuple[PyTree, PyTree]:
        """The critic and its optimiser state after `critic_steps` steps on the squared error."""
        optimiser = context.base.make_optimiser()

        def loss(critic: PyTree) -> Scalar:
            value = context.value(critic, samples.observation)
            return weighted_mean(jnp.square(samples.target - value), samples.weight)

        def step(_: Array, carry: tuple[PyTree, optax.OptState]) -> tuple[PyTree, optax.OptState]:
            critic, moments = carry
            direction, moments = optimiser.update(jax.grad(loss)(critic), moments)
            return apply_step(critic, direction, context.rate), moments

        return jax.lax.fori_loop(0, self.critic_steps, step, (critic, moments))
