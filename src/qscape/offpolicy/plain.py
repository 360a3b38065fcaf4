"""The plain default of every socket. An agent with defaults everywhere is TD3; with `soft`, SAC."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from qscape.errors import UsageError
from qscape.nets import Actor, Critic, Head, Projected, Stage, Trunk, make_head
from qscape.nets.heads import Point, raw
from qscape.nets.mlp import MLP
from qscape.offpolicy.base import Base
from qscape.offpolicy.exploration import at_rest, explored, uniform_action
from qscape.offpolicy.sockets import (
    EpisodeEnd,
    Fns,
    Follow,
    Improvement,
    Maximiser,
    Nets,
    Normaliser,
    Own,
    Representation,
    Restart,
    Schedule,
    StepEnd,
    TargetRule,
    objective,
)
from qscape.types import Batch, Dist, Event, Key, Metrics, Policy, QFn, Scalar, Spec, setting


@dataclasses.dataclass(frozen=True)
class Plain(Representation):
    """Networks see the raw observation and action."""

    name: ClassVar[str] = "plain"

    def view(self, own: Own, which: str) -> None:
        return None

    def actor_inputs_at(self, view: PyTree, obs: Array) -> list[Array]:
        return []

    def critic_inputs_at(self, view: PyTree, obs: Array, action: Array) -> list[Array]:
        return []

    def actor(self, key: Key, base: Base, spec: Spec, context: int = 0) -> Actor:
        k_trunk, k_head = jax.random.split(key)
        sizes = (spec.observation_size + context, *base.actor_hidden)
        return Actor(Stage(), Trunk(k_trunk, sizes, base.actor_activation), head(k_head, base, spec))

    def critic(self, key: Key, base: Base, spec: Spec, context: int = 0) -> Critic:
        sizes = (spec.observation_size + spec.action_size + context, *base.critic_hidden, 1)
        return Critic(Stage(), MLP(key, sizes, base.critic_activation))


def head(key: Key, base: Base, spec: Spec) -> Head:
    """The action head that the base asks for."""
    width, bounds = base.actor_hidden[-1], (base.log_std_bound, base.log_std_min, base.log_std_max)
    if not base.actor_projection:
        return make_head(key, base.head, width, spec.action_size, *bounds)
    k_linear, key = jax.random.split(key)
    linear = eqx.nn.Linear(width, width, key=k_linear)
    return Projected(linear, make_head(key, base.head, width, spec.action_size, *bounds))


@dataclasses.dataclass(frozen=True)
class MinTarget(TargetRule):
    """The least of the target critics (clipped double Q-learning; TD3, Eq. 10)."""

    name: ClassVar[str] = "min_target"

    def bootstrap(self, own: Own, qs: list[Array], bonus: Array | None) -> Array:
        return add_bonus(jnp.stack(qs, -1).min(-1), bonus)


def add_bonus(value: Array, bonus: Array | None) -> Array:
    """Value plus the entropy bonus, if there is one."""
    return value if bonus is None else value + bonus


@dataclasses.dataclass(frozen=True)
class Polyak(Follow):
    """Targets move a small step towards the online networks."""

    name: ClassVar[str] = "polyak"
    rate: float = setting(0.005, "Share of the online networks taken over.", tune=(1e-3, 0.1, "log"))
    when: Literal["actor", "always"] = setting("actor", "At the actor's updates (TD3) or at every one (SAC).")

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise UsageError(f"polyak.rate is {self.rate}; it must lie in [0, 1].")

    def follow(self, online: PyTree, target: PyTree, event: Event) -> PyTree:
        def move() -> PyTree:
            return optax.incremental_update(online, target, self.rate)

        if self.when == "always":
            return move()
        return jax.lax.cond(event.actor_moved, move, lambda: target)


def density_unused(name: str, base_recipe: str, base: Base) -> str | None:
    """The objection of an improvement that moves the mode alone to a policy that would be sampled from."""
    if base.head == "deterministic":
        return None
    return (
        f"{name} moves the mode of a policy only, nothing would train the spread of base.head = gaussian: "
        f"write {base_recipe} with base.head = deterministic, or sac."
    )


@dataclasses.dataclass(frozen=True)
class DPG(Improvement):
    """Climb ∂Q/∂a at the policy's own action (deterministic policy gradient)."""

    name: ClassVar[str] = "dpg"

    def objection(self, present: frozenset[str], base: Base) -> str | None:
        return density_unused("DPG", "td3", base)

    def loss(
        self, policy: Policy, q: QFn, tuned: PyTree, own: Own, fns: Fns, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics]:
        obs = batch.observation
        value = objective(fns.base, q(obs, policy(obs).mode())).mean()
        return -value, {"actor_value": value}

    def target_values(
        self, policy: Policy, own: Own, fns: Fns, next_obs: Array, key: Key
    ) -> tuple[list[Array], None]:
        return fns.q_target(next_obs, policy(next_obs).mode()), None


@dataclasses.dataclass(frozen=True)
class Entropic(Improvement):
    """What all share that pay the policy for staying random: the entropy's weight α, fixed or learned."""

    temperature: float | None = setting(
        None, "Fixed entropy weight α; None: learned.", tune=(0.01, 1.0, "log")
    )
    initial_temperature: float = setting(1.0, "Start of the learned α.")
    target_entropy: float | None = setting(
        None, "Target of the learned α; None: minus the action's dimension."
    )
    learning_rate: float = setting(3e-4, "Adam's rate for log α.", tune=(1e-5, 1e-2, "log"))

    def __post_init__(self) -> None:
        name = self.name
        if self.temperature is not None and self.temperature < 0:
            raise UsageError(f"{name}.temperature is {self.temperature}; it must be 0 or more.")
        if self.initial_temperature <= 0:
            raise UsageError(f"{name}.initial_temperature is {self.initial_temperature}; it must be above 0.")
        if not 0 <= self.learning_rate < math.inf:
            raise UsageError(f"{name}.learning_rate is {self.learning_rate}; it must be 0 or more.")

    def objection(self, present: frozenset[str], base: Base) -> str | None:
        if base.head != "gaussian":
            return "soft improvement needs a policy with a density: base.head = gaussian, or td3 as the base."
        if base.target_noise:
            return "target smoothing takes the entropy out of the target: base.target_noise = 0 with sac."
        return None

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> Own:
        if self.temperature is not None:
            return Own()
        return Own(tuned=jnp.array(math.log(self.initial_temperature), jnp.float32))

    def learning_rates(self, base: Base) -> tuple[float, float]:
        return base.critic_learning_rate, self.learning_rate

    def alpha(self, tuned: PyTree) -> Array:
        """The entropy weight; no gradient flows into it."""
        return jnp.asarray(self.temperature) if tuned is None else jax.lax.stop_gradient(jnp.exp(tuned))

    def tuning(self, tuned: PyTree, log_prob: Array, spec: Spec) -> tuple[Array | float, Metrics]:
        """Loss of a learned α, which falls where the policy is more random than wanted; and what to log."""
        said: Metrics = {"entropy": -log_prob.mean()}
        if tuned is None:
            return 0.0, said
        wanted = -spec.action_size if self.target_entropy is None else self.target_entropy
        loss = -(tuned * jax.lax.stop_gradient(log_prob + wanted)).mean()
        return loss, said | {"temperature": self.alpha(tuned)}

    def target_values(
        self, policy: Policy, own: Own, fns: Fns, next_obs: Array, key: Key
    ) -> tuple[list[Array], Array]:
        action, log_prob = policy(next_obs).sample(key)
        return fns.q_target(next_obs, action), -self.alpha(own.tuned) * log_prob


@dataclasses.dataclass(frozen=True)
class Soft(Entropic):
    """Maximise value plus entropy, by the reparametrised gradient (SAC)."""

    name: ClassVar[str] = "soft"

    def loss(
        self, policy: Policy, q: QFn, tuned: PyTree, own: Own, fns: Fns, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics]:
        obs = batch.observation
        action, log_prob = policy(obs).sample(key)
        value = objective(fns.base, q(obs, action))
        loss = (self.alpha(tuned) * log_prob - value).mean()
        tuning, said = self.tuning(tuned, log_prob, fns.spec)
        return loss + tuning, {"actor_value": value.mean()} | said


@dataclasses.dataclass(frozen=True)
class Single(Maximiser):
    """One actor; what it says is done."""

    name: ClassVar[str] = "single"

    def actors(self, key: Key, nets: Nets, spec: Spec) -> Actor:
        return nets.actor(key)

    def policy(self, actor: PyTree, own: Own, fns: Fns) -> Policy:
        return fns.bind(actor)

    def climbs(self, actor: PyTree, own: Own, fns: Fns, batch: Batch) -> list[tuple[Policy, QFn]]:
        return [(fns.policy, fns.q)]

    def target(
        self, actor: PyTree, actor_target: PyTree, own: Own, fns: Fns, next_obs: Array, key: Key
    ) -> Policy:
        return smoothed_target(fns, key)

    def memory(self, spec: Spec, envs: int, base: Base | None = None) -> PyTree:
        return at_rest(base, envs, spec.action_size)

    def act(
        self, actor: PyTree, own: Own, fns: Fns, memory: PyTree, obs: Array, first: Array, key: Key, mode: str
    ) -> tuple[Array, dict[str, Array], PyTree]:
        if mode == "warm_up":
            return uniform_action(fns.spec, obs, key), {}, memory
        dist = fns.policy(obs)
        if mode == "evaluate":
            return dist.mode(), {}, memory
        k_sample, k_noise = jax.random.split(key)
        action, memory = explored(fns, dist.sample(k_sample)[0], memory, first, k_noise)
        return action, {}, memory


def smooth(base: Base, action: Array, key: Key) -> Array:
    """Target-policy smoothing: clipped Gaussian noise, then the action box (TD3, Eq. 14)."""
    noise = base.target_noise * jax.random.normal(key, action.shape)
    noise = jnp.clip(noise, -base.target_noise_clip, base.target_noise_clip)
    return jnp.clip(action + noise, -1.0, 1.0)


def smoothed(fns: Fns, dist: Dist, key: Key) -> Dist:
    """The distribution's mode with smoothing noise; over a table the nearest row to that."""
    return Point(dist.features, fns.snap(smooth(fns.base, raw(dist).mode(), key)))


def smoothed_target(fns: Fns, key: Key) -> Policy:
    """The target policy, smoothed if the base asks for it."""
    if not fns.base.target_noise:
        return fns.policy_target
    return lambda obs: smoothed(fns, fns.policy_target(obs), key)


@dataclasses.dataclass(frozen=True)
class EveryStep(Schedule):
    """A fixed number of updates for every environment step."""

    name: ClassVar[str] = "every_step"
    every: int = setting(1, "Steps after which updates are made, as many as are due by then.")

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"every_step.every is {self.every}; it must be at least 1.")

    def start(self) -> dict[str, Any]:
        return {"steps": 0, "updates": 0}

    def due(
        self, own: dict[str, Any], event: StepEnd | EpisodeEnd, base: Base
    ) -> tuple[dict[str, Any], int, bool]:
        if isinstance(event, EpisodeEnd):
            return own, 0, False
        steps = own["steps"] + event.steps
        # From the whole, not by adding fractions up; the 1e-9 is for ratios that are no binary fractions.
        updates = int(steps // self.every * self.every * base.updates_per_step + 1e-9)
        return {"steps": steps, "updates": updates}, updates - own["updates"], False


@dataclasses.dataclass(frozen=True)
class Never(Restart):
    """Networks are made once."""

    name: ClassVar[str] = "never"


@dataclasses.dataclass(frozen=True)
class Raw(Normaliser):
    """Observations as they are."""

    name: ClassVar[str] = "raw"
