"""LSFlow: the policy is a flow on the unit sphere; critics learn values that noise on the sphere smooths.

Kong, Satish, Jiang, Kangaslahti, Ma, Chen, Song, Xu and Tambe, "Latent Spherical Flow Policy for
Reinforcement Learning with Combinatorial Actions", 2026, arXiv 2601.22211. In the paper a solver turns the
point c of the sphere into a combinatorial action. Here c becomes a continuous action; combinatorial solvers
are left out.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from qscape.contrib._sampling import Sampling
from qscape.contrib._sphere import (
    exponential,
    logarithm,
    perturb_direction,
    project_to_tangent,
    sample_uniform_direction,
)
from qscape.methods._proposals import FIXED, take_candidate
from qscape.nets import MLP, concatenate_inputs
from qscape.nets.heads import Point
from qscape.offpolicy.base import Base
from qscape.offpolicy.exploration import explore, init_noise
from qscape.offpolicy.sockets import (
    ActingStep,
    BoundNetworks,
    Composition,
    Context,
    Nets,
    PartState,
)
from qscape.types import LEARNING_RATE, Batch, Columns, Event, Key, Metrics, Policy, Scalar, Spec, setting

FREQUENCIES = 16
COLUMN = "intended_action"


class Velocity(eqx.Module):
    """The velocity u(s, z, t) of the flow, tangent to the sphere at z.

    Attributes:
        time: the layers on the features of the time t.
        body: the layers on s, z and the time.
    """

    time: MLP
    body: MLP

    def __init__(self, key: Key, observation_size: int, dimensions: int, hidden: tuple[int, ...]) -> None:
        """`dimensions` is D, the length of z."""
        k_time, k_body = jax.random.split(key)
        width = 2 * FREQUENCIES
        self.time = MLP(k_time, (width, width, width), "silu")
        self.body = MLP(k_body, (observation_size + dimensions + width, *hidden, dimensions), "silu")

    def __call__(
        self, obs: Float[Array, "*#b S"], z: Float[Array, "*b D"], t: Float[Array, "*#b"]
    ) -> Float[Array, "*b D"]:
        time = self.time(time_features(t))
        return project_to_tangent(z, self.body(concatenate_inputs([obs, z, time])))


def time_features(t: Float[Array, "*b"]) -> Float[Array, "*b 32"]:
    """Return sin(2^i π t) and cos(2^i π t) for i = 0..15."""
    turns = jnp.mod(t[..., None] * 2.0 ** jnp.arange(FREQUENCIES), 2.0)  # exact, unlike a product with π
    return jnp.concatenate([jnp.sin(jnp.pi * turns), jnp.cos(jnp.pi * turns)], -1)


def integrate(
    velocity: Callable[[Array, Array], Array], start: Float[Array, "*b D"], steps: int
) -> Float[Array, "*b D"]:
    """Follow a velocity u(z, t) on the sphere from t = 0 to 1, by Heun steps.

    The velocity at the end of a step is averaged with that at its beginning as it is, without transport.
    """
    dt = 1.0 / steps

    def step(i: Array, z: Array) -> Array:
        t = i * dt
        here = velocity(z, t)
        there = velocity(exponential(z, dt * here), t + dt)
        return exponential(z, dt * 0.5 * (here + there))

    return jax.lax.fori_loop(0, steps, step, start)


def flow_target(
    start: Float[Array, "*b D"], end: Float[Array, "*b D"], t: Float[Array, "*b"]
) -> tuple[Float[Array, "*b D"], Float[Array, "*b D"]]:
    """Return z_t on the great circle from `start` to `end`, and the velocity u* = Log_{z_t}(end) / (1 − t)
    there.
    """
    z = exponential(start, t[..., None] * logarithm(start, end))
    return z, logarithm(z, end) / (1.0 - t[..., None])


def trimmed_mean(values: Float[Array, "K *b"], share: float) -> Float[Array, "*b"]:
    """Return the mean over the first axis without the ⌊share · K⌋ least values."""
    return jnp.sort(values, axis=0)[math.floor(share * len(values)) :].mean(0)


class FlowState(NamedTuple):
    """What LSFlow keeps beside the flow.

    Attributes:
        slow: the target flow.
        mean, std: running statistics of the values at the target flow's actions.
    """

    slow: Velocity
    mean: Float[Array, ""]
    std: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class LSFlow(Sampling):
    """Draws actions from a flow on the sphere; Q chooses one of them, and noise on the sphere explores.

    A point c of the sphere S^{D-1}, with D = A + `extra_dimensions`, stands for the action whose entry i is
    √D c_i, clipped to [-1, 1]; the extra entries of c are not used. The environment gets the action of a
    perturbed point. The critics learn at the action that was intended, so that Q is smoothed.
    """

    name: ClassVar[str] = "lsflow"
    why_deterministic: ClassVar[str] = "has no density whose entropy could be kept"
    why_unsmoothed: ClassVar[str] = "smooths its target by noise on the sphere"

    extra_dimensions: int = setting(
        1,
        "Entries of c beyond those of the action (inferred); 0: all actions lie on a sphere, clipped.",
        within=">= 0",
    )
    flow_steps: int = setting(36, "Heun steps from noise to an action.", within=">= 1")
    hidden: tuple[int, ...] = setting((256, 256), "Hidden widths of the velocity.", within=">= 1")
    learning_rate: float = setting(4e-4, "Adam's learning rate of the velocity.", **LEARNING_RATE)
    flow_gradient_clip: float = setting(5.0, "Bound on the norm of the velocity's gradient.", within="> 0")
    rate: float = setting(
        0.005, "Rate at which the target flow follows, when the base's actor would move.", within="[0, 1]"
    )
    candidates: int = setting(12, "Actions that are drawn, of which min Q chooses one.", within=">= 1")
    precision: float = setting(
        28.0,
        "κ: noise on the sphere is N(0, I/κ) in the tangent space.",
        within="> 0",
        tune=(1.0, 100.0, "log"),
    )
    target_samples: int = setting(16, "Perturbed actions that value the next state.", within=">= 1")
    trimmed: float = setting(0.2, "Share of these values that is dropped, the least ones.", within="[0, 1)")
    temperature: float = setting(2.0, "λ of the weights at the start.", within="> 0")
    temperature_end: float = setting(0.8, "λ at the end of its linear schedule.", within="> 0")
    temperature_updates: int = setting(10_000, "Updates of the schedule.", within=">= 1")
    log_factor: float = setting(
        -0.5, "ℓ: log of a factor of the weights' exponent; the paper's code learns it, here it is fixed."
    )
    max_weight: float = setting(4.0, "Upper bound of the weights.", within="> 0")
    score_bound: float = setting(3.0, "Bound of the standardised values.", within="> 0")
    statistics_rate: float = setting(
        0.05, "Rate of the running mean and deviation of values, from 0 and 1 (inferred).", within="[0, 1]"
    )
    reward_updates: int = setting(8, "Updates at the start whose targets are the rewards.", within=">= 0")

    def conflict(self, agent: Composition) -> str | None:
        if agent.base.epsilon_mode == "greedy":
            return "lsflow learns at the action that it intended: base.epsilon_mode = noise with lsflow."
        return super().conflict(agent)

    def fits(self, spec: Spec, base: Base) -> str | None:
        if spec.table is not None:
            return (
                "lsflow draws continuous actions, and those of this environment are a table; solvers for "
                "discrete actions are left out: take td3+savo or td3+wolpertinger."
            )
        if self.dimensions(spec) < 2:
            return (
                "a sphere for one action entry has two points only: set lsflow.extra_dimensions to 1 or more."
            )
        return None

    def dimensions(self, spec: Spec) -> int:
        """Return D, the length of a point of the sphere."""
        return spec.action_size + self.extra_dimensions

    def columns(self, spec: Spec) -> Columns:
        """Declare the action before its perturbation, at which the critics learn."""
        return {COLUMN: (spec.action_size,)}

    def training_batch(self, batch: Batch) -> Batch:
        return batch._replace(action=batch.extra[COLUMN])

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        flow = Velocity(key, spec.observation_size, self.dimensions(spec), self.hidden)
        return PartState(params=flow, extra=FlowState(flow, jnp.float32(0.0), jnp.float32(1.0)))

    def optimiser_options(self, base: Base) -> Mapping[str, Any]:
        return {"gradient_clip": self.flow_gradient_clip}

    # --- drawing actions --------------------------------------------------------------------------

    def draw(
        self, flow: Velocity, spec: Spec, obs: Float[Array, "*b S"], number: int, key: Key
    ) -> Float[Array, "K *b D"]:
        """Draw K = `number` points of the sphere for each observation, without gradient."""
        flow = jax.lax.stop_gradient(flow)
        start = sample_uniform_direction(key, (number, *obs.shape[:-1], self.dimensions(spec)))
        return integrate(lambda z, t: flow(obs[None], z, t), start, self.flow_steps)

    def decode(self, point: Float[Array, "*b D"], spec: Spec) -> Float[Array, "*b A"]:
        """Return the action that a point of the sphere stands for."""
        scale = math.sqrt(self.dimensions(spec))
        return jnp.clip(scale * point[..., : spec.action_size], -1.0, 1.0)

    def choose(
        self, state: PartState, context: BoundNetworks, obs: Float[Array, "*b S"], key: Key
    ) -> Float[Array, "*b D"]:
        """Return the drawn point whose action has the greatest min Q."""
        points = self.draw(state.params, context.spec, obs, self.candidates, key)
        value = jnp.stack(context.q(obs[None], self.decode(points, context.spec))).min(0)
        return take_candidate(points, value.argmax(0))

    def policy(self, actor: PyTree, state: PartState, context: BoundNetworks) -> Policy:
        """Return the policy whose candidates are drawn by a fixed key, for measurements of the policy."""

        def policy(obs: Array) -> Point:
            point = self.choose(state, context, obs, jax.random.key(FIXED))
            return Point(obs, self.decode(point, context.spec))

        return policy

    def proposals(self, actor: PyTree, state: PartState, context: Context, obs: Array) -> Array:
        key = jax.random.key(FIXED)
        points = self.draw(state.params, context.spec, obs, self.candidates, key)
        return jnp.moveaxis(self.decode(points, context.spec), 0, -2)

    def init_noise(self, spec: Spec, envs: int, base: Base | None = None) -> PyTree:
        return init_noise(base, envs, spec.action_size)

    def warm_up(self, spec: Spec, step: ActingStep) -> tuple[Array, dict[str, Array], PyTree]:
        action, columns, noise_state = super().warm_up(spec, step)
        return action, columns | {COLUMN: action}, noise_state

    def decide(
        self, actor: PyTree, state: PartState, context: Context, step: ActingStep
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """Execute the action of the perturbed choice; an evaluation does not perturb it."""
        k_draw, k_perturb, k_noise = jax.random.split(step.key, 3)
        point = self.choose(state, context, step.observation, k_draw)
        intended = self.decode(point, context.spec)
        if step.mode == "evaluate":
            return intended, {COLUMN: intended}, step.noise_state
        action = self.decode(perturb_direction(point, self.precision, k_perturb), context.spec)
        obs = step.observation
        action, noise_state = explore(context, obs, action, step.noise_state, step.first, k_noise)
        return action, {COLUMN: intended}, noise_state

    # --- learning -----------------------------------------------------------------------------------

    def next_value(self, state: PartState, context: Context, next_obs: Array, key: Key) -> Array:
        """Return the trimmed mean of min Q' at perturbed actions of the target flow; at first 0."""
        k_draw, k_perturb = jax.random.split(key)
        points = self.draw(state.extra.slow, context.spec, next_obs, self.target_samples, k_draw)
        action = self.decode(perturb_direction(points, self.precision, k_perturb), context.spec)
        value = jnp.stack(context.q_target(next_obs[None], action)).min(0)
        return jnp.where(context.event.update > self.reward_updates, trimmed_mean(value, self.trimmed), 0.0)

    def weights(self, value: Float[Array, " B"], extra: FlowState, update: Array) -> Float[Array, " B"]:
        """Return min(exp(e^ℓ q̃ / λ), w_max); q̃ is the mean of two z-scores, by running and batch moments."""
        running = (value - extra.mean) / jnp.maximum(extra.std, 1e-6)
        own = (value - value.mean()) / jnp.maximum(value.std(), 1e-6)
        score = jnp.clip(0.5 * running + 0.5 * own, -self.score_bound, self.score_bound)
        passed = jnp.clip(update / self.temperature_updates, 0.0, 1.0)
        temperature = self.temperature + (self.temperature_end - self.temperature) * passed
        return jnp.minimum(jnp.exp(math.exp(self.log_factor) * score / temperature), self.max_weight)

    def learn(
        self, params: Velocity, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, FlowState]:
        """Return mean w ‖u(s, z_t, t) − u*‖², towards points that the target flow draws, weighted by Q'."""
        k_end, k_start, k_time = jax.random.split(key, 3)
        obs, spec = batch.observation, context.spec
        end = self.draw(state.extra.slow, spec, obs, 1, k_end)[0]
        value = jnp.stack(context.q_target(obs, self.decode(end, spec))).min(0)
        rate = self.statistics_rate
        extra = state.extra._replace(
            mean=optax.incremental_update(value.mean(), state.extra.mean, rate),
            std=optax.incremental_update(value.std(), state.extra.std, rate),
        )
        weight = jax.lax.stop_gradient(self.weights(value, extra, context.event.update))

        size = len(obs)
        early = jax.random.uniform(k_time, (size - size // 2,))
        t = jnp.clip(jnp.concatenate([early, 1.0 - early])[:size], 0.1, 0.9)
        z, target = flow_target(sample_uniform_direction(k_start, end.shape), end, t)
        loss = (weight * jnp.square(params(obs, z, t) - target).sum(-1)).mean()
        return loss, {"flow_loss": loss, "flow_weight": weight.mean(), "flow_value": value.mean()}, extra

    def post_update(self, state: PartState, actor: PyTree, event: Event) -> PartState:
        """Move the target flow, when an actor of the base would move."""
        slow = jax.lax.cond(
            event.actor_moved,
            lambda: optax.incremental_update(state.params, state.extra.slow, self.rate),
            lambda: state.extra.slow,
        )
        return state._replace(extra=state.extra._replace(slow=slow))
