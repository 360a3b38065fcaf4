"""An implicit policy: noise is an input of the actor, so that the action may have any distribution.

Yang, Wang, Zheng, Feng and Zhou, "A Behavior Regularized Implicit Policy for Offline Reinforcement Learning",
2022, arXiv 2202.09673. `qscape.contrib.rip` is the policy loss of that paper.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.nets import Actor, Conditioning
from qscape.nets.heads import Snapped, unsnap
from qscape.offpolicy.plain import Single
from qscape.offpolicy.sockets import ActingStep, BoundNetworks, Composition, Context, Nets, PartState
from qscape.types import Dist, Key, Policy, Spec, setting


@dataclasses.dataclass(frozen=True)
class ImplicitDist:
    """The distribution of π(s, ε) at observations [*b, S], with ε ~ N(0, I) clipped to ±`clip`.

    Attributes:
        network: noise [*b, n] -> the distribution of a deterministic head.
        shape: that of the noise, (*b, n).
        clip: bound of every entry of the noise.
    """

    network: Callable[[Array], Dist]
    shape: tuple[int, ...]
    clip: float

    @property
    def features(self) -> Float[Array, "*b h"]:
        """The last hidden layer at ε = 0."""
        return self.network(jnp.zeros(self.shape)).features

    def mode(self) -> Float[Array, "*b A"]:
        """Return the action at ε = 0."""
        return self.network(jnp.zeros(self.shape)).mode()

    def sample(self, key: Key) -> tuple[Float[Array, "*b A"], Float[Array, "*b"]]:
        """Return a sampled action, through which gradients flow; the zeros stand for a density that is
        unknown.
        """
        noise = jnp.clip(jax.random.normal(key, self.shape), -self.clip, self.clip)
        return self.network(noise).mode(), jnp.zeros(self.shape[:-1])

    def log_prob(self, action: Float[Array, "*b A"]) -> Float[Array, "*b"]:
        raise TypeError("an implicit policy has no density")


@dataclasses.dataclass(frozen=True)
class Implicit(Single):
    """The actor maps observation and noise to an action, π(s, ε); critics learn the mean over many samples.

    The value of the next state s' is the mean over N pairs of a perturbed s' and an action there:

        V(s') = 1/N Σ_i [w min_j Q'_j(s', a_i) + (1 − w) max_j Q'_j(s', a_i)],   a_i = π'(s' + δ_i, ε_i)

    with δ_1 = 0 and δ_i ~ N(0, σ²) clipped.
    """

    name: ClassVar[str] = "implicit"
    takes_images: ClassVar[bool] = False
    values_next_state: ClassVar[bool] = True
    why_deterministic: ClassVar[str] = "draws its noise before the actor, not behind it"
    why_unsmoothed: ClassVar[str] = "smooths its target by noise on s'"

    noise_size: int | None = setting(
        None, "n: length of the noise; None: min(10, ⌊S/2⌋), S the length of the observation.", within=">= 0"
    )
    noise_clip: float = setting(3.0, "Bound of every entry of the noise.", within="> 0")
    target_samples: int = setting(
        50, "N: actions that value the next state.", within=">= 1", tune=("choice", 1, 10, 50)
    )
    least_weight: float = setting(
        0.75, "w: weight of the least target critic; the greatest has 1 − w.", within="[0, 1]"
    )
    state_noise: float = setting(
        3e-4, "σ: standard deviation of the noise on s', of all samples but the first.", within=">= 0"
    )
    state_noise_clip: float = setting(0.05, "Bound of the noise on s'.", within=">= 0")
    critics_see_noise: bool = setting(
        False, "The target critics value the action at the perturbed s', not at s' (not said in the paper)."
    )
    value_limit: float = setting(2000.0, "A target whose |V(s')| reaches this is the reward.", within="> 0")
    evaluation: Literal["sample", "zero"] = setting(
        "sample", "The action of an evaluation: sampled, or at ε = 0, which can be exported (our choice)."
    )

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        """Turn off TD3's target smoothing: noise on s' takes its place."""
        return {"target_noise": 0.0}

    def conflict(self, agent: Composition) -> str | None:
        loss = agent.policy_loss
        if (why := super().conflict(agent)) or loss.improves_samples:
            return why
        return (
            f"implicit has to improve actions at all noise, and {loss.name} improves a mode only; "
            "write td3+implicit or rip."
        )

    def notes(self, agent: Composition) -> list[str]:
        if agent.network.has_plain_layers:
            return []
        return [f"implicit's actor has plain hidden layers; those of {agent.network.name} are the critics'"]

    def length(self, spec: Spec) -> int:
        """Return n, the length of the noise."""
        return min(10, spec.of_actor.observation_size // 2) if self.noise_size is None else self.noise_size

    def actors(self, key: Key, nets: Nets, spec: Spec) -> Actor:
        return nets.actor(key, conditioning=self.length(spec))

    def policy(self, actor: PyTree, state: PartState, context: BoundNetworks) -> Policy:
        network, length = context.bind(actor), self.length(context.spec)

        def policy(obs: Array) -> Dist:
            def at(noise: Array) -> Dist:
                return unsnap(network(obs, Conditioning(concat=noise)))

            dist = ImplicitDist(at, (*obs.shape[:-1], length), self.noise_clip)
            table = context.table
            return dist if table is None else Snapped(dist, table, context.spec.mask_words(obs))

        return policy

    def next_value(self, state: PartState, context: Context, next_obs: Array, key: Key) -> Array:
        """Return V(s'), the mean over perturbed states and sampled actions; 0 from `value_limit` on."""
        k_state, k_noise = jax.random.split(key)
        spec, copies = context.spec, (self.target_samples - 1, *next_obs.shape)
        noise = self.state_noise * jax.random.normal(k_state, (*copies[:-1], spec.observation_size))
        noise = jnp.clip(noise, -self.state_noise_clip, self.state_noise_clip)
        moved = spec.change_visible(lambda x: x + noise, jnp.broadcast_to(next_obs, copies))
        near = jnp.concatenate([next_obs[None], moved])
        action, _ = context.policy_target(near).sample(k_noise)
        seen = near if self.critics_see_noise else next_obs[None]
        heads = jnp.stack(context.q_target(seen, action), -1)
        value = (self.least_weight * heads.min(-1) + (1.0 - self.least_weight) * heads.max(-1)).mean(0)
        return jnp.where(jnp.abs(value) < self.value_limit, value, 0.0)

    def decide(
        self, actor: PyTree, state: PartState, context: Context, step: ActingStep
    ) -> tuple[Array, dict[str, Array], PyTree]:
        if step.mode == "evaluate" and self.evaluation == "sample":
            return context.policy(step.observation).sample(step.key)[0], {}, step.noise_state
        return super().decide(actor, state, context, step)
