"""Selectors that refine the action of one actor under the critics, without a gradient of Q.

The refined action is executed and stored in replay. The actor learns as ever.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.nets.heads import Point, unsnap
from qscape.offpolicy.exploration import add_noise, apply_epsilon_greedy, sample_noise
from qscape.offpolicy.plain import Single, smooth_target_policy
from qscape.offpolicy.sockets import ActingStep, Composition, Context, PartState
from qscape.types import Dist, Key, Policy, setting

FIXED = 0  # seed of the key of landscapes, which have none


@dataclasses.dataclass(frozen=True)
class Refiner(Single):
    """Base of selectors that execute one actor's action after `refine` has improved it."""

    repeats_noise: ClassVar[bool] = False

    apply_at: Literal["collect", "act", "all"] = setting(
        "collect",
        "Actions that are refined: those that training executes, those of evaluations too (act), or also the "
        "target's at the next state (all).",
    )

    @property
    def has_single_policy(self) -> bool:  # type: ignore[override]
        """Whether evaluations execute the actor's own action."""
        return self.apply_at == "collect"

    def conflict(self, agent: Composition) -> str | None:
        if self.apply_at == "all" and agent.base.head != "deterministic":
            return (
                f"{self.name}.apply_at = all refines a', whose density a stochastic policy needs in its "
                f"target; set {self.name}.apply_at = act, or write td3+{self.name}."
            )
        return None

    def refine(
        self,
        state: PartState,
        context: Context,
        obs: Float[Array, "*b S"],
        action: Float[Array, "*b A"],
        key: Key,
    ) -> Float[Array, "*b A"]:
        """Return a better action by Q, in [-1, 1] and snapped to the action table, without gradient."""

        def values(candidate: Array) -> list[Array]:
            return context.q(obs, context.snap(candidate, obs))

        return jax.lax.stop_gradient(context.snap(self.improve(state, values, action, key), obs))

    def improve(
        self, state: PartState, values: Callable[[Array], list[Array]], action: Float[Array, "*b A"], key: Key
    ) -> Float[Array, "*b A"]:
        """Return a better action in [-1, 1], which `refine` snaps.

        Args:
            values: the critics' values of actions; Q sees rows of the action table if there is one.
        """
        raise NotImplementedError

    def proposals(self, actor: PyTree, state: PartState, context: Context, obs: Array) -> Array:
        """Return the actor's action and, if evaluations refine it, the refined one."""
        own = context.bind(actor)(obs).mode()
        if self.apply_at == "collect":
            return own[..., None, :]
        return jnp.stack([own, self.refine(state, context, obs, own, jax.random.key(FIXED))], -2)

    def target_policy(
        self,
        actor: PyTree,
        actor_target: PyTree,
        state: PartState,
        context: Context,
        next_obs: Array,
        key: Key,
    ) -> Policy:
        """Return the target policy; with `apply_at` all, the online critics refine its smoothed action."""
        k_smooth, k_refine = jax.random.split(key)
        policy = smooth_target_policy(context, k_smooth)
        if self.apply_at != "all":
            return policy

        def refined(obs: Array) -> Dist:
            dist = policy(obs)
            return Point(dist.features, self.refine(state, context, obs, dist.mode(), k_refine))

        return refined

    def decide(
        self, actor: PyTree, state: PartState, context: Context, step: ActingStep
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """Refine the action after exploration noise was added; ε-greedy actions replace refined ones."""
        obs = step.observation
        dist = context.policy(obs)
        k_refine, k_sample, k_noise, k_uniform = jax.random.split(step.key, 4)
        if step.mode == "evaluate":
            action = dist.mode()
            if self.apply_at != "collect":
                action = self.refine(state, context, obs, action, k_refine)
            return action, {}, step.noise_state
        # As in `Single.decide`: noise on a row of an action table might be snapped back to this row.
        action = (unsnap(dist) if context.base.exploration_noise else dist).sample(k_sample)[0]
        noise, noise_state = sample_noise(context, step.noise_state, step.first, action.shape, k_noise)
        action = add_noise(context, obs, action, noise)
        action = self.refine(state, context, obs, action, k_refine)
        if context.base.epsilon_mode == "greedy":
            action = apply_epsilon_greedy(context, obs, action, k_uniform)
        return action, {}, noise_state
