"""TRPO: the largest step along the natural gradient that keeps the policy near (Schulman et al. 2015)."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from qscape.errors import UsageError
from qscape.onpolicy.base import Base
from qscape.onpolicy.descent import descend
from qscape.onpolicy.sockets import Context, PolicyUpdate, Samples
from qscape.onpolicy.state import Networks, State
from qscape.ops.conjugate import conjugate_gradient
from qscape.ops.surrogate import mean, standardised
from qscape.types import Metrics, Scalar, setting


class Search(NamedTuple):
    """A line search: where it is, and what it has found."""

    tries: Int[Array, ""]
    found: Bool[Array, ""]
    params: Float[Array, " n"]
    kl: Float[Array, ""]
    loss: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class TrustRegion(PolicyUpdate):
    """A natural-gradient step within a bound on the mean KL, found by line search; then the critic learns."""

    name: ClassVar[str] = "trust_region"
    shares: ClassVar[bool] = False
    adds_head_penalty: ClassVar[bool] = False
    max_kl: float = setting(0.01, "δ: bound on the mean KL(old ‖ new).", tune=(1e-3, 0.1, "log"))
    damping: float = setting(0.1, "Added to the diagonal of the Fisher matrix.", tune=(1e-3, 1.0, "log"))
    iterations: int = setting(10, "Steps of conjugate gradients.")
    backtrack: float = setting(0.8, "Factor of the step at each further try.")
    tries: int = setting(10, "Steps tried before the policy stays as it is.")
    critic_steps: int = setting(20, "Steps of the critic, each on the whole rollout.")

    def __post_init__(self) -> None:
        if not 0 < self.max_kl < float("inf"):
            raise UsageError(f"trust_region.max_kl is {self.max_kl}; it must be above 0.")
        if not 0 < self.backtrack < 1:
            raise UsageError(f"trust_region.backtrack is {self.backtrack}; it must lie between 0 and 1.")
        for name, least in (("damping", 0), ("iterations", 1), ("tries", 1), ("critic_steps", 0)):
            if not getattr(self, name) >= least:
                raise UsageError(
                    f"trust_region.{name} is {getattr(self, name)}; it must be at least {least}."
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

    def optimised(self, networks: Networks) -> dict[str, PyTree]:
        return {"critic": networks.critic}

    def improve(self, context: Context, state: State, samples: Samples) -> tuple[State, Metrics]:
        networks, metrics = self._actor(context, state.networks, samples)
        critic, moments = self._critic(context, networks.critic, state.optimisers["critic"], samples)
        networks = networks._replace(critic=critic)
        return state._replace(networks=networks, optimisers={"critic": moments}), metrics

    def _actor(self, context: Context, networks: Networks, samples: Samples) -> tuple[Networks, Metrics]:
        """Gradient, direction, line search. A fixed action layer has no part in it."""
        weight = samples.weight
        advantage = standardised(samples.advantage, weight, epsilon=1e-8)
        start, unravel = ravel_pytree((networks.torso, networks.head))
        old = context.dist((networks.torso, networks.head), samples.observation)

        def loss(params: Array) -> Scalar:
            dist = context.dist(unravel(params), samples.observation)
            ratio = jnp.exp(dist.log_prob(samples.action) - samples.log_prob)
            return -mean(ratio * advantage, weight)

        def kl(params: Array) -> Scalar:
            return mean(old.kl(context.dist(unravel(params), samples.observation)), weight)

        before, gradient = jax.value_and_grad(loss)(start)
        step, found = self.step(loss, kl, start, before, gradient)
        torso, head = unravel(found.params)
        metrics = {
            "policy_loss": before,
            "entropy": mean(old.entropy(), weight),
            "kl": found.kl,
            "surrogate_gain": before - found.loss,
            "step_taken": found.found.astype(jnp.float32),
            "step_norm": jnp.linalg.norm(step),
        }
        return networks._replace(torso=torso, head=head), metrics

    def step(
        self,
        loss: Callable[[Array], Scalar],
        kl: Callable[[Array], Scalar],
        start: Float[Array, " n"],
        before: Scalar,
        gradient: Float[Array, " n"],
    ) -> tuple[Float[Array, " n"], Search]:
        """The full step β s with s = -F⁻¹ q, β = √(2 δ / sᵀ F s), and the first β 0.8^i s within the bound.

        F v = ∇(∇KL · v) + damping v; its Hessian is taken at `start`, where the KL itself is 0.
        """

        def fisher(v: Array) -> Array:
            return jax.jvp(jax.grad(kl), (start,), (v,))[1] + self.damping * v

        direction = -conjugate_gradient(fisher, gradient, self.iterations)
        curvature = direction @ fisher(direction)
        full = jnp.sqrt(2.0 * self.max_kl / jnp.maximum(curvature, 1e-12)) * direction

        def unfinished(search: Search) -> Array:
            return (search.tries < self.tries) & ~search.found

        def attempt(search: Search) -> Search:
            params = start + self.backtrack ** search.tries.astype(jnp.float32) * full
            far, after = kl(params), loss(params)
            good = (far < self.max_kl) & (after < before)
            chosen = (jnp.where(good, x, y) for x, y in ((params, start), (far, 0.0), (after, before)))
            return Search(search.tries + 1, good, *chosen)

        nothing = Search(jnp.array(0), jnp.array(False), start, jnp.zeros(()), before)
        return full, jax.lax.while_loop(unfinished, attempt, nothing)

    def _critic(
        self, context: Context, critic: PyTree, moments: PyTree, samples: Samples
    ) -> tuple[PyTree, PyTree]:
        """The critic regresses to the targets."""
        optimiser = context.base.descent()

        def loss(critic: PyTree) -> Scalar:
            value = context.value(critic, samples.observation)
            return mean(jnp.square(samples.target - value), samples.weight)

        def one(_: Array, carry: tuple[PyTree, optax.OptState]) -> tuple[PyTree, optax.OptState]:
            critic, moments = carry
            direction, moments = optimiser.update(jax.grad(loss)(critic), moments)
            return descend(critic, direction, context.rate), moments

        return jax.lax.fori_loop(0, self.critic_steps, one, (critic, moments))
