"""The default part of every socket. An agent with defaults everywhere is TD3; with `Soft` it is SAC."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from qscape.nets import Actor, Critic, InputStage, Torso
from qscape.nets.heads import Point, unsnap, with_density
from qscape.nets.initial import normal_linear, xavier_linear
from qscape.nets.layers import Linear
from qscape.nets.orthogonal import orthogonal_linear, orthogonal_torso, small_linear
from qscape.offpolicy.base import Base
from qscape.offpolicy.exploration import (
    add_noise,
    explore,
    hold_noise,
    init_held_noise,
    init_noise,
)
from qscape.offpolicy.sockets import (
    ActingStep,
    ActionSelector,
    Architecture,
    BootstrapValue,
    BoundNetworks,
    Composition,
    Context,
    EpisodeEnd,
    Nets,
    Network,
    Normaliser,
    Output,
    PartState,
    PolicyLoss,
    Relabelling,
    Representation,
    Reset,
    Role,
    Scaling,
    Schedule,
    StepEnd,
    TargetUpdate,
    Value,
    Version,
    combine_heads,
)
from qscape.ops.td import CRITIC_LOSSES, huber_loss
from qscape.types import Batch, Dist, Event, Key, Metrics, Policy, QFn, Scalar, Spec, setting


@dataclasses.dataclass(frozen=True)
class Plain(Representation):
    """Actor and critics see observation and action without embeddings."""

    name: ClassVar[str] = "plain"
    splits_observations: ClassVar[bool] = True

    def encoder_params(self, state: PartState, which: Version) -> PyTree:
        return None

    def actor_embeddings(self, encoder: PyTree, obs: Array) -> list[Array]:
        return []

    def critic_embeddings(self, encoder: PyTree, obs: Array, action: Array) -> list[Array]:
        return []

    def actor(self, key: Key, architecture: Architecture, spec: Spec, conditioning: int = 0) -> Actor:
        k_torso, k_head = jax.random.split(key)
        return architecture.actor(InputStage(), spec.observation_size + conditioning, k_torso, k_head, spec)

    def critic(self, key: Key, architecture: Architecture, spec: Spec, conditioning: int = 0) -> Critic:
        return architecture.critic(InputStage(), spec.observation_size + spec.action_size + conditioning, key)


@dataclasses.dataclass(frozen=True)
class MLPNetwork(Network):
    """Plain hidden layers with the base's widths, activations, layer norms and initialisation."""

    name: ClassVar[str] = "mlp"
    has_plain_layers: ClassVar[bool] = True

    def notes(self, agent: Composition) -> list[str]:
        return []

    def torso(self, key: Key, size: int, role: Role, base: Base) -> Any:
        hidden, activation, norm = {
            "actor": (base.actor_hidden, base.actor_activation, base.actor_norm),
            "critic": (base.critic_hidden, base.critic_activation, base.critic_norm),
        }[role]
        sizes, norms = (size, *hidden), (norm == "layer", norm == "last")
        if base.init in ("orthogonal", "small"):
            return orthogonal_torso(key, sizes, activation, *norms)
        linear = eqx.nn.Linear if base.init == "default" else lambda i, o, key: xavier_linear(key, i, o)
        return Torso(key, sizes, activation, norms[0], linear, norms[1])

    def output(self, key: Key, size: int, outputs: int, role: Output, base: Base) -> Linear:
        if role != "critic" and base.actor_output_std is not None:
            return normal_linear(key, size, outputs, base.actor_output_std)
        if base.init == "default":
            return super().output(key, size, outputs, role, base)
        if base.init == "xavier":
            return xavier_linear(key, size, outputs)
        if base.init == "small":
            return small_linear(key, size, outputs)
        return orthogonal_linear(key, size, outputs, 1.0 if role == "critic" else 0.01)


@dataclasses.dataclass(frozen=True)
class ScalarValue(Value):
    """A critic computes the value itself, and learns it by the loss of the TD errors."""

    name: ClassVar[str] = "scalar"
    uses_critic_loss: ClassVar[bool] = True

    def read(self, raw: Float[Array, "*b n"]) -> Float[Array, "*b"]:
        return raw[..., 0]

    def loss(self, raw: Float[Array, "B J n"], target: PyTree, base: Base) -> tuple[Scalar, Metrics]:
        td_error = self.read(raw) - target
        if base.critic_loss == "huber":
            return huber_loss(td_error, base.huber_threshold), {}
        return CRITIC_LOSSES[base.critic_loss](td_error), {}


def make_mlp_architecture(base: Base) -> Architecture:
    """Return the architecture of a part's own networks: multilayer perceptrons with one output."""
    return Architecture(base, MLPNetwork(), ScalarValue())


@dataclasses.dataclass(frozen=True)
class MinTarget(BootstrapValue):
    """The minimum of the target critics (clipped double Q-learning; TD3, Eq. 10)."""

    name: ClassVar[str] = "min_target"
    takes_minimum: ClassVar[bool] = True

    def weights(self, state: PartState, qs: Float[Array, "B J"], key: Key) -> Float[Array, "B 1 J"]:
        return jax.nn.one_hot(qs.argmin(-1), qs.shape[-1])[:, None]

    def value(self, state: PartState, qs: Float[Array, "B J"], key: Key) -> Float[Array, "B 1"]:
        return self.bound(state, qs.min(-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class Polyak(TargetUpdate):
    """Target networks are an exponential moving average: θ̄ ← (1 − ρ) θ̄ + ρ θ."""

    name: ClassVar[str] = "polyak"
    averages: ClassVar[bool] = True
    rate: float = setting(
        0.005, "ρ: weight of the online networks in the average.", within="[0, 1]", tune=(1e-3, 0.1, "log")
    )
    when: Literal["actor", "always"] = setting(
        "actor", "Move targets when the actor moves (TD3) or at every update (SAC)."
    )

    def notes(self, agent: Composition) -> list[str]:
        delay, has_actor = agent.base.policy_delay, agent.selector.has_actor
        if self.when == "always" or delay < (10 if has_actor else 3):  # TD3 has 2
            return []
        wait = ", with the actor" if has_actor else " (base.policy_delay)"
        return [f"targets move at one update in {delay}{wait}; polyak.when = always: at each one"]

    def target_update(self, online: PyTree, target: PyTree, event: Event) -> PyTree:
        def move() -> PyTree:
            return optax.incremental_update(online, target, self.rate)

        if self.when == "always":
            return move()
        return jax.lax.cond(event.actor_moved, move, lambda: target)


def explain_untrained_spread(name: str, base_recipe: str, base: Base) -> str | None:
    """Return why a loss of the mode alone cannot train a gaussian policy; None for a deterministic one."""
    if base.head == "deterministic":
        return None
    return (
        f"{name} moves the mode of a policy only, nothing would train the spread of base.head = gaussian: "
        f"write {base_recipe} with base.head = deterministic, or sac."
    )


def explain_second_policy(name: str, network: Network) -> str | None:
    """Return why a part cannot train a second policy beside a network; None: it can."""
    if not network.trains_on_joint_batch:
        return None
    return (
        f"{name} trains a second policy, and {network.name} keeps running statistics of one policy only; "
        "leave one of the two out."
    )


@dataclasses.dataclass(frozen=True)
class DPG(PolicyLoss):
    """The deterministic policy gradient: the loss is −mean Q(s, π(s)) (TD3)."""

    name: ClassVar[str] = "dpg"
    improves_samples: ClassVar[bool] = True

    noise: float = setting(
        0.0,
        "Standard deviation of Gaussian noise on the action in the actor's loss (SimBa's DDPG: 0.1).",
        within=">= 0",
    )

    def conflict(self, agent: Composition) -> str | None:
        return explain_untrained_spread("DPG", "td3", agent.base)

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
        dist, noise = policy(obs), None
        if self.noise:
            key, k_noise = jax.random.split(key)
            dist, noise = unsnap(dist), self.noise * jax.random.normal(k_noise, batch.action.shape)
        # The sample of a deterministic policy is its only action.
        action = add_noise(context, obs, dist.sample(key)[0], noise)
        value = combine_heads(context.base, q(obs, action)).mean()
        return -value, {"actor_value": value}


LEARNED = {"temperature=None": "with an α that is fixed, by {part.name}.temperature"}
WITHOUT_TARGET = {"target_entropy=None": "beside {part.name}.target_entropy"}


@dataclasses.dataclass(frozen=True)
class Entropic(PolicyLoss):
    """Base of policy losses with an entropy bonus of weight α, which is fixed or learned."""

    maximises_entropy: ClassVar[bool] = True
    has_temperature: ClassVar[bool] = True

    temperature: float | None = setting(
        None, "Entropy weight α; None: α is learned.", within=">= 0", tune=(0.01, 1.0, "log")
    )
    initial_temperature: float = setting(1.0, "Initial value of a learned α.", within="> 0", only_if=LEARNED)
    target_entropy: float | None = setting(
        None,
        "Entropy that a learned α aims at; None: `entropy_per_action` times the action's dimension.",
        only_if=LEARNED,
    )
    entropy_per_action: float = setting(
        -1.0,
        "Entropy that a learned α aims at for each entry of the action, without `target_entropy`.",
        only_if=LEARNED | WITHOUT_TARGET | {"target_std=None": "beside {part.name}.target_std"},
    )
    target_std: float | None = setting(
        None,
        "σ, if a learned α aims at the entropy of N(0, σ²) for each entry of the action, before tanh; None: "
        "at `entropy_per_action`.",
        within="> 0",
        only_if=LEARNED | WITHOUT_TARGET,
    )
    temperature_loss: Literal["log_alpha", "alpha"] = setting(
        "log_alpha",
        "What the loss of a learned α multiplies the entropy's error by: log α, or α itself.",
        only_if=LEARNED,
    )
    learning_rate: float = setting(
        3e-4, "Adam's learning rate of log α.", within=">= 0", tune=(1e-5, 1e-2, "log"), only_if=LEARNED
    )
    adam_b1: float = setting(0.9, "Adam's b1 for log α.", within="[0, 1)", only_if=LEARNED)
    density: Literal["exact", "released"] = setting(
        "exact",
        "log π of a = tanh(u): exact, or 'released', with log(1 - a² + 1e-6) as the code of SAVGO and PAVE.",
    )

    def conflict(self, agent: Composition) -> str | None:
        if agent.base.head != "gaussian":
            return "soft improvement needs a policy with a density: base.head = gaussian, or td3 as the base."
        if agent.base.target_noise:
            return "target smoothing takes the entropy out of the target: base.target_noise = 0 with sac."
        return None

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        if self.temperature is not None:
            return PartState()
        return PartState(actor_params=jnp.array(math.log(self.initial_temperature), jnp.float32))

    def learning_rates(self, base: Base) -> tuple[float, float]:
        return base.critic_learning_rate, self.learning_rate

    def actor_optimiser_options(self, base: Base) -> Mapping[str, Any]:
        return {"b1": self.adam_b1}

    def sample(self, dist: Dist, key: Key) -> tuple[Array, Array]:
        """Draw actions [B, A] and compute log π [B] as `density` says."""
        return with_density(dist, self.density).sample(key)

    def alpha(self, actor_params: PyTree) -> Array:
        """Return α without gradient; `actor_params` is log α, or None if α is fixed."""
        return (
            jnp.asarray(self.temperature)
            if actor_params is None
            else jax.lax.stop_gradient(jnp.exp(actor_params))
        )

    def aim(self, spec: Spec) -> float:
        """Return the entropy that a learned α aims at."""
        if self.target_entropy is not None:
            return self.target_entropy
        each = self.entropy_per_action
        if self.target_std is not None:
            each = 0.5 * math.log(2.0 * math.pi * math.e * self.target_std**2)
        return each * spec.action_size

    def tuning(self, actor_params: PyTree, log_prob: Array, spec: Spec) -> tuple[Array | float, Metrics]:
        """Compute the loss of α, −log α · (log π + target entropy) or with α, and metrics of the entropy.

        Args:
            actor_params: log α, or None if α is fixed; then the loss is 0.
            log_prob: log π [B] of actions that the policy sampled.
        """
        metrics: Metrics = {"entropy": -log_prob.mean()}
        if actor_params is None:
            return 0.0, metrics
        target = self.aim(spec)
        factor = actor_params if self.temperature_loss == "log_alpha" else jnp.exp(actor_params)
        loss = -(factor * jax.lax.stop_gradient(log_prob + target)).mean()
        return loss, metrics | {"temperature": self.alpha(actor_params)}

    def next_action(
        self, policy: Policy, state: PartState, context: Context, next_obs: Array, key: Key
    ) -> tuple[Array, Array]:
        action, log_prob = self.sample(policy(next_obs), key)
        return action, -self.alpha(state.actor_params) * log_prob


@dataclasses.dataclass(frozen=True)
class Soft(Entropic):
    """The soft policy gradient: the loss is mean(α log π(a|s) − Q(s, a)) with a ~ π (SAC)."""

    name: ClassVar[str] = "soft"

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
        action, log_prob = self.sample(policy(obs), key)
        value = combine_heads(context.base, q(obs, action))
        loss = (self.alpha(actor_params) * log_prob - value).mean()
        tuning, metrics = self.tuning(actor_params, log_prob, context.spec)
        return loss + tuning, {"actor_value": value.mean()} | metrics


@dataclasses.dataclass(frozen=True)
class Single(ActionSelector):
    """A single actor whose action is executed as is."""

    name: ClassVar[str] = "single"
    repeats_noise: ClassVar[bool] = True

    def actors(self, key: Key, nets: Nets, spec: Spec) -> PyTree:
        return nets.actor(key)

    def policy(self, actor: PyTree, state: PartState, context: BoundNetworks) -> Policy:
        return context.bind(actor)

    def actor_objectives(
        self, actor: PyTree, state: PartState, context: Context, batch: Batch
    ) -> list[tuple[Policy, QFn]]:
        return [(context.policy, context.q)]

    def target_policy(
        self,
        actor: PyTree,
        actor_target: PyTree,
        state: PartState,
        context: Context,
        next_obs: Array,
        key: Key,
    ) -> Policy:
        return smooth_target_policy(context, key)

    def behaviour_policy(self, params: PyTree, context: Context) -> Policy:
        """Return the policy that explores, before noise; `params` are the part's own."""
        return context.policy

    def init_noise(self, spec: Spec, envs: int, base: Base | None = None) -> PyTree:
        if base is not None and self.holds_noise(base):
            return init_held_noise(base, envs, spec.action_size)
        return init_noise(base, envs, spec.action_size)

    def holds_noise(self, base: Base) -> bool:
        """Return whether the noise of samples is kept for several steps."""
        return self.repeats_noise and base.head == "gaussian" and base.noise_repeat > 1

    def decide(
        self, actor: PyTree, state: PartState, context: Context, step: ActingStep
    ) -> tuple[Array, dict[str, Array], PyTree]:
        obs = step.observation
        if step.mode == "evaluate":
            return context.policy(obs).mode(), {}, step.noise_state
        dist: Any = self.behaviour_policy(state.params, context)(obs)
        k_sample, k_noise = jax.random.split(step.key)
        # Noise on a row of an action table whose rows lie far apart would be snapped back to this row.
        dist = unsnap(dist) if context.base.exploration_noise else dist
        if not self.holds_noise(context.base):
            drawn = dist.sample(k_sample)[0]
            action, noise_state = explore(context, obs, drawn, step.noise_state, step.first, k_noise)
            return action, {}, noise_state
        held = step.noise_state
        held = self.init_noise(context.spec, len(obs), context.base) if held is None else held
        held = hold_noise(context.base, held, k_sample)
        action, added = explore(context, obs, dist.at(held.noise), held.added, step.first, k_noise)
        return action, {}, held._replace(added=added)


def smooth_action(base: Base, action: Array, key: Key) -> Array:
    """Add clipped Gaussian noise to an action and clip the sum to [-1, 1] (TD3, Eq. 14)."""
    noise = base.target_noise * jax.random.normal(key, action.shape)
    noise = jnp.clip(noise, -base.target_noise_clip, base.target_noise_clip)
    return jnp.clip(action + noise, -1.0, 1.0)


def smooth_dist(context: Context, obs: Array, dist: Dist, key: Key) -> Dist:
    """Return a point distribution at the smoothed mode, snapped to the action table if there is one."""
    return Point(dist.features, context.snap(smooth_action(context.base, unsnap(dist).mode(), key), obs))


def smooth_target_policy(context: Context, key: Key) -> Policy:
    """Return the target policy, smoothed if `base.target_noise` is above 0."""
    if not context.base.target_noise:
        return context.policy_target
    return lambda obs: smooth_dist(context, obs, context.policy_target(obs), key)


@dataclasses.dataclass(frozen=True)
class EveryStep(Schedule):
    """A fixed number of updates per environment step."""

    name: ClassVar[str] = "every_step"
    learns_by_steps: ClassVar[bool] = True
    every: int = setting(
        1, "Run updates after every this many steps, as many as are due by then.", within=">= 1"
    )

    def start(self) -> dict[str, Any]:
        return {"steps": 0, "updates": 0}

    def updates_due(
        self, state: dict[str, Any], event: StepEnd | EpisodeEnd, base: Base
    ) -> tuple[dict[str, Any], int, bool]:
        if isinstance(event, EpisodeEnd):
            return state, 0, False
        steps = state["steps"] + event.steps
        # Computed from all steps, as fractions would add up rounding errors; 1e-9 is for ratios such as 0.1.
        updates = int(steps // self.every * self.every * base.updates_per_step + 1e-9)
        return {"steps": steps, "updates": updates}, updates - state["updates"], False


@dataclasses.dataclass(frozen=True)
class NoReset(Reset):
    """Networks are never reset."""

    name: ClassVar[str] = "never"


@dataclasses.dataclass(frozen=True)
class RawRewards(Scaling):
    """Rewards are not scaled."""

    name: ClassVar[str] = "as_they_are"
    changes_rewards: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class TrueGoals(Relabelling):
    """Transitions keep the goals that the environment set."""

    name: ClassVar[str] = "true_goals"
    changes_goals: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class Raw(Normaliser):
    """Observations are not normalised."""

    name: ClassVar[str] = "raw"
    changes_observations: ClassVar[bool] = False
