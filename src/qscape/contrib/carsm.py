"""CARSM: a policy gradient of factored discrete actions from swapped actions that a critic values.

Yue, Tang, Yin, Zhou 2020, "Discrete Action On-Policy Learning with Action-Value Critic", AISTATS, arXiv
2002.03534. The estimator is in `qscape.contrib._swap`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from qscape.contrib._swap import draw_noise, swap_gradient, swapped_actions
from qscape.nets.layers import dense
from qscape.nets.orthogonal import orthogonal_linear, orthogonal_torso
from qscape.onpolicy.base import Base
from qscape.onpolicy.descent import apply_step
from qscape.onpolicy.sockets import PolicyUpdate, RolloutSamples, Transitions, UpdateContext
from qscape.onpolicy.state import Networks, State
from qscape.ops.categorical import LEAST
from qscape.ops.surrogate import weighted_mean
from qscape.types import Key, Metrics, Scalar, Spec, setting

MOST_NUMBERS = 2**32  # of one hidden layer, 4 bytes each, when all swaps are valued


class Memory(NamedTuple):
    """The latest transitions, a ring of M rows, in the environment's units.

    Attributes:
        weight: 0 for rows that hold no environment step.
    """

    observation: Float[Array, "M S"]
    action: Float[Array, "M K"]
    reward: Float[Array, " M"]
    terminated: Float[Array, " M"]
    next_observation: Float[Array, "M S"]
    weight: Float[Array, " M"]


class CarsmState(NamedTuple):
    """The part's state.

    Attributes:
        target: the target critic.
        memory: the latest transitions.
        written: rows written so far.
        entropy: factor of the entropy coefficient.
    """

    target: PyTree
    memory: Memory
    written: Int[Array, ""]
    entropy: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class CARSM(PolicyUpdate):
    """Ascends E_a[Q(s, a)] along the swap estimator; the critic Q(s, a) replaces v(s).

    The critic learns from the returns of the rollout and from one-step targets of earlier transitions. v(s)
    is the mean of Q over actions that are drawn from the policy.
    """

    name: ClassVar[str] = "carsm"
    allows_shared_torso: ClassVar[bool] = False
    weighs_critic_loss: ClassVar[bool] = False
    has_own_critic: ClassVar[bool] = True
    critic_steps: int = setting(50, "Optimiser steps of the critic per update.", within=">= 1")
    memory: int = setting(100_000, "Transitions that are kept for the critic.", within=">= 1")
    replayed: int = setting(2_048, "Earlier transitions in the critic's loss at an update.", within=">= 1")
    value_samples: int = setting(
        100, "Actions drawn from the policy for v(s), the mean of Q over them.", within=">= 1"
    )
    rate: float = setting(
        0.005, "Share of the critic that moves into the target critic at each of its steps.", within="(0, 1]"
    )
    entropy_decay: float = setting(
        0.5,
        "Each update multiplies the entropy coefficient by 1 - this × the share of the run.",
        within="[0, 1]",
    )
    action_input: Literal["scaled", "one_hot"] = setting(
        "scaled", "How the critic sees an action: each index scaled to [-1, 1], or one-hot."
    )

    def overrides(self, agent: Any) -> Mapping[str, Any]:
        return {
            "episodes": 0,
            "rollout": 2_048,
            "batch_size": 0,
            "passes": 1,
            "optimiser": "adam",
            "learning_rate": 0.01,
            "anneal": True,
            "optimiser_epsilon": 1e-8,
            "gradient_clip": None,
            "entropy_coefficient": 0.01,
        }

    def conflict(self, agent: Any) -> str | None:
        base: Base = agent.base
        if agent.recipe.split("+")[0] == "trpo":
            return "carsm takes the place of the trust region, so nothing of trpo is left; write ppo+carsm."
        if not agent.estimator.needs_critic:
            by = agent.estimator.name
            return f"carsm's returns are bootstrapped with its critic, not by {by}; write ppo+carsm."
        if base.shared_torso:
            return "carsm's critic has a torso of its own: base.shared_torso = False."
        if base.exploration:
            return "carsm needs actions of the policy itself: base.exploration = 0."
        if base.batch_size or base.passes != 1 or base.episodes:
            return (
                "carsm takes one step on a whole rollout of a fixed length: base.batch_size = 0, "
                "base.passes = 1 and base.episodes = 0."
            )
        return None

    def fits(self, spec: Spec, base: Base) -> str | None:
        if not spec.index_sizes:
            return (
                "carsm needs discrete actions, and those of this environment are continuous; use --env-args "
                "action_levels=11, which divides each dimension into 11 levels."
            )
        if spec.frame is not None:
            return "carsm's critic takes vectors, and the observations of this environment are images."
        most = max(spec.index_sizes)
        swaps = most * (most - 1) // 2
        if swaps * base.rollout * max(base.critic_hidden) > MOST_NUMBERS:
            return (
                f"carsm values {swaps:,} swaps of {most} values at each of a rollout's {base.rollout:,} "
                "steps, which takes more than 16 GiB; set a shorter base.rollout, or leave carsm out."
            )
        return None

    def notes(self, agent: Any) -> list[str]:
        decay = getattr(agent.estimator, "decay", 1.0)
        if decay == 1.0:
            return []
        return [f"carsm's paper uses the whole return of an action: gae.decay = 1 (it is {decay:g})."]

    @property
    def follows_progress(self) -> bool:
        return self.entropy_decay > 0

    # --- the critic -------------------------------------------------------------------------------------

    def init_critic(self, key: Key, spec: Spec, base: Base) -> tuple[PyTree, CarsmState]:
        k_torso, k_out = jax.random.split(key)
        sizes = spec.index_sizes or ()
        width = len(sizes) * (max(sizes) if self.action_input == "one_hot" else 1)
        layers = (spec.observation_size + width, *base.critic_hidden)
        torso = orthogonal_torso(k_torso, layers, base.activation)
        critic = (torso, orthogonal_linear(k_out, base.critic_hidden[-1], 1, 1.0))
        rows = jnp.zeros((self.memory, spec.row_size))
        column = jnp.zeros(self.memory)
        memory = Memory(rows, jnp.zeros((self.memory, len(sizes))), column, column, rows, column)
        return critic, CarsmState(critic, memory, jnp.zeros((), jnp.int32), jnp.ones(()))

    def action_values(self, spec: Spec, critic: PyTree, obs: Array, action: Array) -> Float[Array, "*b"]:
        """Q(s, a) of observations [*b, S] and actions [*b, K]; obs may lack leading axes of the actions."""
        sizes = np.asarray(spec.index_sizes)
        if self.action_input == "one_hot":
            seen = jax.nn.one_hot(action.astype(jnp.int32), sizes.max())
            seen = seen.reshape(*action.shape[:-1], -1)
        else:
            seen = 2.0 * action / np.maximum(sizes - 1, 1) - 1.0
        obs = spec.visible(obs)
        obs = jnp.broadcast_to(obs, (*action.shape[:-1], obs.shape[-1]))
        torso, out = critic
        return dense(out, torso(jnp.concatenate([obs, seen], -1)))[..., 0]

    def values(self, context: UpdateContext, networks: Networks, obs: Array, key: Key) -> Float[Array, " N"]:
        return self._mean_value(context, networks, networks.critic, obs, key)

    def _mean_value(
        self, context: UpdateContext, networks: Networks, critic: PyTree, obs: Array, key: Key
    ) -> Float[Array, " N"]:
        """The mean of Q(s, a) over `value_samples` actions of the policy, at observations [N, S]."""
        dist = context.distribution((networks.torso, networks.head), obs)

        def value(sum_: Array, key: Key) -> tuple[Array, None]:
            return sum_ + self.action_values(context.spec, critic, obs, dist.sample(key)[0]), None

        keys = jax.random.split(key, self.value_samples)
        return jax.lax.scan(value, jnp.zeros(len(obs)), keys)[0] / self.value_samples

    # --- an update --------------------------------------------------------------------------------------

    def optimised_params(self, networks: Networks) -> dict[str, PyTree]:
        return {"actor": (networks.torso, networks.head), "critic": networks.critic}

    def improve(
        self, context: UpdateContext, state: State, samples: RolloutSamples, transitions: Transitions
    ) -> tuple[State, Metrics]:
        k_rows, k_values, k_noise = jax.random.split(context.key, 3)
        own: CarsmState = state.part_states[self.name]
        weight = jnp.ones_like(samples.target) if samples.weight is None else samples.weight
        obs, reward, terminated, next_obs = transitions
        rows = Memory(obs, samples.action, reward, terminated, next_obs, weight)
        memory, written = self._remember(own, rows)
        # The critic first, so that the actor's step sees what this rollout taught.
        known = jnp.minimum(written, self.memory)
        drawn = jax.random.randint(k_rows, (self.replayed,), 0, known)
        old = jax.tree.map(lambda x: x[drawn], memory)
        next_obs = context.normalise(old.next_observation)
        after = self._mean_value(context, state.networks, own.target, next_obs, k_values)
        bootstrap = context.base.discount * (1.0 - old.terminated) * after
        batch = samples.observation, samples.action, samples.target, weight
        later = (
            context.normalise(old.observation),
            old.action,
            context.scale(old.reward) + bootstrap,
            old.weight,
        )
        union = jax.tree.map(lambda *x: jnp.concatenate(x), batch, later)
        critic, target, moments, value_loss = self._update_critic(
            context, state.networks.critic, own.target, state.optimisers["critic"], union
        )
        networks = state.networks._replace(critic=critic)
        factor = own.entropy * (1.0 - self.entropy_decay * context.progress)
        gradient, metrics = self._actor_gradient(context, networks, samples, factor, k_noise)
        direction, actor_moments = context.base.make_optimiser().update(gradient, state.optimisers["actor"])
        torso, head = apply_step((networks.torso, networks.head), direction, context.rate)
        networks = networks._replace(torso=torso, head=head)
        part_states = state.part_states | {self.name: CarsmState(target, memory, written, factor)}
        optimisers = {"actor": actor_moments, "critic": moments}
        metrics |= {"value_loss": value_loss, "gradient_norm": optax.tree.norm(gradient)}
        return state._replace(networks=networks, part_states=part_states, optimisers=optimisers), metrics

    def _remember(self, own: CarsmState, rows: Memory) -> tuple[Memory, Int[Array, ""]]:
        """The ring with N further rows, of which the last `memory` stay, and the number of rows written."""
        count = len(rows.weight)
        kept = jax.tree.map(lambda x: x[-self.memory :], rows)
        start = own.written + count - len(kept.weight)
        at = (start + jnp.arange(len(kept.weight))) % self.memory
        return jax.tree.map(lambda ring, x: ring.at[at].set(x), own.memory, kept), own.written + count

    def _update_critic(
        self,
        context: UpdateContext,
        critic: PyTree,
        target: PyTree,
        moments: PyTree,
        batch: tuple[Array, ...],
    ) -> tuple[PyTree, PyTree, PyTree, Scalar]:
        """Critic, target critic and optimiser after `critic_steps` steps, and the loss before the last.

        `batch`: normalised observations, actions, regression targets and weights.
        """
        obs, action, wanted, weight = batch
        optimiser = context.base.make_optimiser()

        def loss(critic: PyTree) -> Scalar:
            q = self.action_values(context.spec, critic, obs, action)
            return weighted_mean(jnp.square(wanted - q), weight)

        def step(_: Array, carry: tuple) -> tuple:
            critic, target, moments, _ = carry
            error, gradient = jax.value_and_grad(loss)(critic)
            direction, moments = optimiser.update(gradient, moments)
            critic = apply_step(critic, direction, context.rate)
            target = jax.tree.map(lambda old, new: old + self.rate * (new - old), target, critic)
            return critic, target, moments, error

        return jax.lax.fori_loop(0, self.critic_steps, step, (critic, target, moments, jnp.zeros(())))

    def _actor_gradient(
        self, context: UpdateContext, networks: Networks, samples: RolloutSamples, factor: Scalar, key: Key
    ) -> tuple[PyTree, Metrics]:
        """The gradient of the actor's loss by (torso, head), and metrics.

        L = -mean over samples, factors and values of φ g - c_e mean over samples and factors of H(π_k); g is
        that of `swap_gradient`, which no gradient passes.
        """
        valid, spec = _valid(context.spec), context.spec
        actor, action = (networks.torso, networks.head), samples.action.astype(jnp.int32)
        logits = _logits(context.distribution(actor, samples.observation))
        is_held = logits > 0.5 * LEAST  # neither masked nor a value that a factor lacks
        noise = draw_noise(key, logits, action, valid)
        swapped = swapped_actions(noise, logits, valid)
        q = self.action_values(spec, networks.critic, samples.observation, swapped)
        g = jax.lax.stop_gradient(swap_gradient(noise, action, swapped, samples.target, q, valid))

        def loss(actor: tuple[PyTree, PyTree]) -> tuple[Scalar, Metrics]:
            torso, head = actor
            after = networks._replace(torso=torso, head=head)
            outputs = context.apply_networks(after, samples.observation)
            ascent = (jnp.where(is_held, _logits(outputs.dist), 0.0) * g).sum((-2, -1)) / valid.sum()
            policy = -weighted_mean(ascent, samples.weight)
            entropy = weighted_mean(outputs.dist.entropy(), samples.weight)
            bonus = context.base.entropy_coefficient * factor * entropy / len(valid)
            penalty = outputs.penalty
            total = policy - bonus + (0.0 if penalty is None else weighted_mean(penalty, samples.weight))
            return total, {"policy_loss": policy, "entropy": entropy}

        gradient, metrics = jax.grad(loss, has_aux=True)(actor)
        moved = (swapped != action).any((0, -1)).astype(jnp.float32)
        return gradient, metrics | {"swapped": weighted_mean(moved, samples.weight)}


def _valid(spec: Spec) -> Bool[np.ndarray, "K C"]:
    """Which of C values each factor has."""
    sizes = np.asarray(spec.index_sizes)
    return np.arange(sizes.max()) < sizes[:, None]


def _logits(dist: Any) -> Float[Array, "N K C"]:
    """The logits of a distribution; those of a single set of actions are one factor."""
    return dist.logits if dist.logits.ndim == 3 else dist.logits[:, None]
