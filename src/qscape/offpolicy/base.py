"""The settings that every off-policy agent has. Parts may override them; a user's own value wins."""

import dataclasses
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Int

from qscape.errors import Conflict
from qscape.nets.layers import find_decayed
from qscape.ops.adam import scale_by_adam
from qscape.types import LEARNING_RATE, check_ranges, out_of_range, setting

# When fields do something, for `setting(only_if=...)`.
HAS_ACTOR = {"selector.has_actor": "with {agent.selector.name}, which has no actor"}
# Where critics choose among vectors without an actor, there may be a flow or a list that moves like one.
MOVES_WITH_ACTOR = {
    "selector.has_actor or not selector.indexes_actions or target_update.when=actor": (
        "without an actor, and without targets that move with one"
    )
}
HAS_SPREAD = {
    "head=gaussian or policy_loss.has_second_policy": "with a deterministic policy, base.head = deterministic"
}
SCHEDULED = {"schedule!=constant": "without a schedule, such as base.schedule = linear"}
DECAYS = {
    "actor_weight_decay or critic_weight_decay": (
        "without weight decay, such as base.critic_weight_decay = 0.01"
    )
}
EXPLORES = {"exploration_noise": "without exploration noise, such as base.exploration_noise = 0.1"}
EXPLORES_BY_EPSILON = {f"{claim} or epsilon_mode=greedy": why for claim, why in EXPLORES.items()}
OF_ENVIRONMENTS = EXPLORES | {
    "exploration=per_environment": "without noise of each environment, base.exploration = per_environment"
}
KEEPS_NOISE = {
    "head=gaussian": "with a deterministic policy, base.head = deterministic",
    "selector.repeats_noise": "with {agent.selector.name}, which draws fresh noise at every step",
}
HAS_TABLE = {"spec.table": "without an action table"}


@dataclasses.dataclass(frozen=True)
class Base:
    """Settings of the base algorithm; the defaults are TD3's.

    Raises:
        UsageError: a value is out of its range.
    """

    discount: float = setting(0.99, "Discount factor γ.", within="[0, 1]", tune=(0.9, 0.999))
    discount_rule: Literal["fixed", "time_limit"] = setting(
        "fixed",
        "time_limit: γ follows from the time limit of T steps, as (T/5 − 1) / (T/5) within [0.95, 0.995]. "
        "A `discount` of your own wins over a recipe's rule.",
    )
    batch_size: int = setting(
        256,
        "Transitions drawn from replay for one update.",
        within=">= 1",
        tune=("choice", 64, 128, 256, 512),
    )
    n_step: int = setting(
        1,
        "n of n-step returns: rewards summed before bootstrapping.",
        within=">= 1",
        tune=("choice", 1, 3, 5),
    )
    replay_capacity: int = setting(
        1_000_000, "Transitions that replay holds; then new ones overwrite the oldest.", within=">= 1"
    )
    next_observation: Literal["stored", "derived"] = setting(
        "stored",
        "How replay holds s': in the row itself, or 'derived' from the following row with half the memory.",
    )
    replay_observations: Literal["float32", "bfloat16"] = setting(
        "float32",
        "How replay keeps observations: as they are, or rounded to 'bfloat16' (8 bits) in half the memory.",
    )
    warmup: int = setting(
        25_000, "Environment steps with uniformly random actions before learning starts.", within=">= 0"
    )
    warmup_to_episode_end: bool = setting(False, "Extend the random phase until an episode ends.")
    bootstrap_at_time_limits: bool = setting(
        True, "Bootstrap at time limits. If off, a time limit ends the return like a terminal state."
    )
    updates_per_step: float = setting(
        1.0, "Number of updates per environment step.", within="(0, 1000]", tune=("choice", 0.5, 1.0, 2.0)
    )
    counts: Literal["steps", "vector_steps"] = setting(
        "steps",
        "What `warmup` and `updates_per_step` count: environment steps, or steps of all E environments at "
        "once, which are E environment steps.",
    )

    actor_hidden: tuple[int, ...] = setting(
        (256, 256), "Widths of the actor's hidden layers.", within=">= 1", only_if=HAS_ACTOR
    )
    critic_hidden: tuple[int, ...] = setting(
        (256, 256), "Widths of the critics' hidden layers.", within=">= 1"
    )
    actor_activation: Literal["relu", "elu", "silu", "tanh", "gelu", "mish", "leaky_relu"] = setting(
        "relu",
        "Activation of the actor's hidden layers; gelu in its tanh form, leaky_relu with slope 0.01.",
        only_if=HAS_ACTOR,
    )
    actor_norm: Literal["none", "layer", "last"] = setting(
        "none",
        "Layer normalisation before each activation of the actor's hidden layers; last: only of the features "
        "that the last one computes (SAVO's code).",
        only_if=HAS_ACTOR,
    )
    actor_projection: bool = setting(
        False,
        "Add a linear layer without activation between the actor's hidden layers and its head.",
        only_if=HAS_ACTOR,
    )
    critic_activation: Literal["relu", "elu", "silu", "tanh", "gelu", "mish", "leaky_relu"] = setting(
        "relu", "Activation of the critics' hidden layers; gelu in its tanh form, leaky_relu with slope 0.01."
    )
    critic_norm: Literal["none", "layer"] = setting(
        "none", "Layer normalisation before each activation of the critics' hidden layers."
    )
    init: Literal["default", "orthogonal", "xavier", "small"] = setting(
        "default",
        "Initial weights of hidden and output layers: uniform in ±1/√fan_in; orthogonal with biases 0 and "
        "gain √2, 1 of critics' outputs and 0.01 of the actor's; Xavier uniform with biases 0; or (small, "
        "SAVO's code) orthogonal with gain √2 and, for all outputs, 0.001, whose biases stay uniform.",
    )
    actor_output_std: float | None = setting(
        None,
        "Initial weights of the actor's output layers are normal with this standard deviation, biases 0; 0: "
        "all are 0; None: as `init` says.",
        within=">= 0",
        only_if=HAS_ACTOR,
    )
    critics: int = setting(2, "Number of critics.", within=">= 1")
    head: Literal["deterministic", "gaussian"] = setting(
        "deterministic", "Action head: one action per state, or a squashed normal distribution."
    )
    log_std_bound: Literal["clip", "tanh"] = setting(
        "clip", "How the log standard deviation is kept in its bounds.", only_if=HAS_SPREAD
    )
    log_std_min: float = setting(-5.0, "Lower bound of the log standard deviation.", only_if=HAS_SPREAD)
    log_std_max: float = setting(2.0, "Upper bound of the log standard deviation.", only_if=HAS_SPREAD)

    actor_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the actor.", only_if=HAS_ACTOR, **LEARNING_RATE
    )
    critic_learning_rate: float = setting(3e-4, "Adam's learning rate of the critics.", **LEARNING_RATE)
    gradient_clip: float | None = setting(
        None,
        "Clip the global norm of each optimiser's gradient to this; None: no clipping.",
        within="(0, inf]",
    )
    critic_clip: Literal["joint", "each"] = setting(
        "joint",
        "`gradient_clip` bounds the gradient of all critics together, or of each by itself.",
        only_if={
            "gradient_clip": "without a bound on gradients, such as base.gradient_clip = 1",
            "critics!=1": "for a single critic, base.critics = 1",
        },
    )
    critic_weight_decay: float = setting(0.0, "Weight decay λ of the critics.", within=">= 0")
    actor_weight_decay: float = setting(0.0, "Weight decay λ of the actor.", within=">= 0", only_if=HAS_ACTOR)
    decay: Literal["l2", "decoupled"] = setting(
        "l2",
        "Weight decay adds λθ to the gradient before Adam, or (decoupled, AdamW) to Adam's step.",
        only_if=DECAYS,
    )
    decay_what: Literal["all", "weights"] = setting(
        "all",
        "What weight decay acts on: all parameters, or matrices only. It skips rows of unit length.",
        only_if=DECAYS,
    )
    adam_b1: float = setting(0.9, "Adam's b1 of actor and critics.", within="(0, 1)")
    actor_adam_b1: float | None = setting(
        None, "Adam's b1 of the actor; None: `adam_b1`.", within="(0, 1)", only_if=HAS_ACTOR
    )
    adam_b2: float = setting(0.999, "Adam's b2 of actor and critics.", within="(0, 1)")
    schedule: Literal["constant", "linear", "cosine", "delayed"] = setting(
        "constant",
        "How all learning rates change over the run; delayed: with the fifth root of what is left of it, the "
        "random phase included, so that they fall at its very end (Q3C).",
    )
    rate_end: float = setting(
        0.1,
        "Learning rates at the end of a schedule, as a fraction of those at its start.",
        within="[0, 1]",
        only_if=SCHEDULED,
    )
    schedule_updates: int | None = setting(
        None,
        "Updates until a schedule ends; None: the run's steps times `updates_per_step`.",
        within=">= 1",
        only_if=SCHEDULED,
    )
    actor_horizon: Literal["run", "updates"] = setting(
        "run",
        "When the schedule of the actor and of all that steps with it ends: with the run, or (updates, as in "
        "XQC) after as many of its own steps as the critics make, which a delayed actor does not reach.",
        only_if=SCHEDULED,
    )

    critic_loss: Literal["mse", "lap_huber", "pal", "huber"] = setting(
        "mse", "Loss of the TD errors: mean squared, LAP's Huber loss, PAL, or the Huber loss."
    )
    huber_threshold: float = setting(
        1.0,
        "TD error at which the loss `huber` turns from quadratic to linear.",
        within="> 0",
        only_if={"critic_loss=huber": "without Huber's loss, base.critic_loss = huber"},
    )
    critic_loss_scale: float = setting(
        1.0, "Factor of the critics' TD loss, relative to regularisers.", within="> 0"
    )
    policy_delay: int = setting(
        2,
        "Critic updates per actor update.",
        within=">= 1",
        tune=("choice", 1, 2, 4),
        only_if=MOVES_WITH_ACTOR,
    )
    policy_phase: int = setting(
        0,
        "Which of `policy_delay` updates moves the actor: 0 the last of them, 1 the first, 2 the second.",
        within=">= 0",
        only_if={"policy_delay!=1": "where the actor moves at every update, base.policy_delay = 1"}
        | MOVES_WITH_ACTOR,
    )
    actor_objective: Literal["first", "min", "mean"] = setting(
        "first", "Value that the actor climbs: the first critic, the minimum or the mean."
    )
    target_actor: bool = setting(
        True, "Keep a target actor, which selects the action at the next state.", only_if=HAS_ACTOR
    )
    target_noise: float = setting(
        0.2, "Standard deviation of target policy smoothing; 0: none.", within=">= 0", tune=(0.05, 0.5)
    )
    target_noise_clip: float = setting(
        0.5,
        "Bound on the smoothing noise.",
        within=">= 0",
        only_if={"target_noise": "without noise to clip, such as base.target_noise = 0.2"},
    )
    exploration_noise: float = setting(
        0.1,
        "Standard deviation of exploration noise; for `ou` of the noise of one step.",
        within=">= 0",
        tune=(0.02, 0.5),
        only_if={
            "exploration!=per_environment or not exploration_noise": (
                "beside noise of each environment, whose sizes base.noise_max bounds; 0 switches it off"
            )
        },
    )
    exploration: Literal["gaussian", "ou", "per_environment"] = setting(
        "gaussian",
        "Exploration noise: independent in each step, an Ornstein-Uhlenbeck process, or independent with a "
        "standard deviation that each environment draws at the start of an episode.",
        only_if=EXPLORES,
    )
    noise_min: float = setting(
        0.001,
        "Least standard deviation that `per_environment` draws, uniformly.",
        within=">= 0",
        only_if=OF_ENVIRONMENTS,
    )
    noise_max: float = setting(
        0.4,
        "Greatest standard deviation that `per_environment` draws.",
        within=">= 0",
        only_if=OF_ENVIRONMENTS,
    )
    ou_rate: float = setting(
        0.15,
        "Mean-reversion rate θ of the OU noise: x ← (1 − θ) x + σ N(0, 1).",
        within="[0, 1]",
        only_if=EXPLORES | {"exploration=ou": "without Ornstein-Uhlenbeck noise, base.exploration = ou"},
    )
    noise_repeat: int = setting(
        1,
        "Most steps for which a Gaussian policy keeps the noise of its sample: k in 1, 2, ... with a "
        "probability that is proportional to k^-`noise_repeat_power`; 1: each step has noise of its own.",
        within=">= 1",
        only_if=KEEPS_NOISE,
    )
    noise_repeat_power: float = setting(
        2.0,
        "How fast longer repetitions of the noise get rarer.",
        within=">= 0",
        only_if=KEEPS_NOISE | {"noise_repeat!=1": "without repeated noise, such as base.noise_repeat = 16"},
    )
    epsilon_start: float = setting(
        1.0, "ε when the random phase ends.", within="[0, 1]", only_if=EXPLORES_BY_EPSILON
    )
    epsilon_end: float = setting(1.0, "ε after its decay.", within="[0, 1]", only_if=EXPLORES_BY_EPSILON)
    epsilon_decay: float = setting(
        1 / 6,
        "Length of ε's linear decay: a fraction of the run up to 1, else environment steps.",
        within="> 0",
        only_if=EXPLORES_BY_EPSILON
        | {"moves_epsilon": "with an ε that stays, base.epsilon_end = base.epsilon_start"},
    )
    epsilon_mode: Literal["noise", "increment", "greedy"] = setting(
        "noise",
        "ε scales the noise, or the increments of the OU process (x ← x + ε (−θ x + σ N(0, 1)), so that it "
        "still strays as ε falls), or (greedy) is the probability of a uniformly random action.",
    )
    nearest: Literal["exact", "clustered"] = setting(
        "exact",
        "Nearest-neighbour search in an action table: over all rows, or the nearest clusters.",
        only_if=HAS_TABLE,
    )
    nearest_probes: int = setting(
        16,
        "Clusters that a clustered search visits.",
        within=">= 1",
        only_if=HAS_TABLE | {"nearest=clustered": "in an exact search, only with base.nearest = clustered"},
    )
    sync_every: int = setting(
        250,
        "Updates between syncs: copies of periodic targets, SALE's encoders, LAP's maximum.",
        within=">= 1",
    )

    def __post_init__(self) -> None:
        check_ranges(self, "base")
        if self.epsilon_mode == "greedy" and self.epsilon_end == 1:
            raise Conflict(
                "base.epsilon_mode is greedy and base.epsilon_end 1: all actions would be random for ever; "
                "set base.epsilon_end below 1, such as 0.01.",
                part="base",
                field="epsilon_end",
            )
        if self.epsilon_mode == "increment" and self.exploration != "ou":
            raise Conflict(
                f"base.epsilon_mode is increment and base.exploration {self.exploration}: only an "
                "Ornstein-Uhlenbeck process has increments; set base.exploration = ou.",
                part="base",
                field="epsilon_mode",
            )
        if self.noise_min > self.noise_max:
            why = f"it must be at most noise_max = {self.noise_max}."
            raise out_of_range(self, "base", "noise_min", why)
        if not self.log_std_min < self.log_std_max:
            why = f"it must be below log_std_max = {self.log_std_max}."
            raise out_of_range(self, "base", "log_std_min", why)

    @property
    def moves_epsilon(self) -> bool:
        """Whether ε changes."""
        return self.epsilon_start != self.epsilon_end

    def actor_moves(self, update: Int[Array, ""]) -> Bool[Array, ""]:
        """Return whether the update of this number, from 1, moves the actor."""
        return update % self.policy_delay == self.policy_phase % self.policy_delay

    def find_learning_start(self) -> tuple[str, int]:
        """Return the name and the value of the field that says when the first update is made, in steps."""
        return "warmup", self.warmup

    def shorten_for_run(self, steps: int, asked: Collection[str] = ()) -> Mapping[str, Any]:
        """Return fields for a run of `steps` that is too short for the default warm-up: a fifth of it.

        Args:
            asked: fields that the user has set.
        """
        return {"warmup": steps // 5}

    def scale_to_envs(self, envs: int) -> Mapping[str, Any]:
        """Return the fields that count steps of E environments at once, converted to environment steps."""
        if self.counts == "steps":
            return {}
        per_step = self.updates_per_step / envs
        return {"counts": "steps", "warmup": self.warmup * envs, "updates_per_step": per_step}

    def scale_to_run(self, steps: int) -> Mapping[str, Any]:
        """Return the fields that follow from the length of a run of `steps`.

        These are fields that are a fraction of the run, converted to steps, and the updates of a schedule.
        """
        fields: dict[str, Any] = {}
        if self.moves_epsilon and self.epsilon_decay <= 1:
            fields["epsilon_decay"] = float(max(2, round(self.epsilon_decay * steps)))
        if self.schedule != "constant" and self.schedule_updates is None:
            fields["schedule_updates"] = max(1, round(steps * self.updates_per_step))
        return fields

    def with_time_limit(self, time_limit: int | None) -> "Base":
        """Return the settings for a task with a time limit in steps (None: no limit is known)."""
        if self.discount_rule == "fixed" or time_limit is None:
            return self
        discount = min(max(1 - 5 / time_limit, 0.95), 0.995)  # TD-MPC2's rule
        return dataclasses.replace(self, discount=discount, discount_rule="fixed")

    def optimiser(
        self,
        learning_rate: float,
        weight_decay: float = 0.0,
        b1: float = 0.9,
        b2: float = 0.999,
        *,
        gradient_clip: float | None = None,
        clips_each: bool = False,
        delayed: bool = False,
    ) -> optax.GradientTransformation:
        """Make an optimiser: gradient clipping, Adam with ε 1e-8, weight decay, the scheduled learning rate.

        Args:
            learning_rate: at the start of the run.
            weight_decay: λ.
            b1, b2: Adam's decay rates.
            gradient_clip: bound on the gradient's norm in place of the field of that name; None: the field.
            clips_each: the parameters are a list of networks, and the bound holds for each of them.
            delayed: the optimiser steps with the actor only.

        Raises:
            UsageError: learning rates follow a schedule and the run's length is unknown.
        """
        norm = self.gradient_clip if gradient_clip is None else gradient_clip
        bound = clip_each if clips_each else optax.clip_by_global_norm
        clip = [] if norm is None else [bound(norm)]
        decay = []
        if weight_decay:
            mask = partial(find_decayed, matrices_only=self.decay_what == "weights")
            decay = [optax.add_decayed_weights(weight_decay, mask)]
        before, after = (decay, []) if self.decay == "l2" else ([], decay)
        rate = optax.scale_by_learning_rate(self._scheduled(learning_rate, delayed))
        return optax.chain(*clip, *before, optax.chain(scale_by_adam(b1, b2), *after, rate))

    def _scheduled(self, start: float, delayed: bool) -> float | optax.Schedule:
        """Return a learning rate: a number, or a function of the steps that its optimiser made."""
        if self.schedule == "constant":
            return start
        if self.schedule_updates is None:
            raise Conflict(
                f"base.schedule is {self.schedule} and nothing says how long the run is: train for a number "
                "of steps, or set base.schedule_updates.",
                part="base",
                field="schedule",
            )
        shortened = delayed and self.actor_horizon == "run"
        steps = max(1, round(self.schedule_updates / (self.policy_delay if shortened else 1)))
        if self.schedule == "linear":
            return optax.linear_schedule(start, self.rate_end * start, steps)
        if self.schedule == "delayed":
            before = self.warmup * self.updates_per_step / self.schedule_updates
            rate: Any = partial(delayed_rate, start, self.rate_end, before, steps)
            return rate
        return optax.cosine_decay_schedule(start, steps, self.rate_end)


def delayed_rate(start: float, end: float, before: float, steps: int, made: ArrayLike) -> Array:
    """Return the learning rate start · (end + (1 − end) p^0.2), p the share of the run that is left.

    Args:
        start: at the start of the run.
        end: share of it that is left at the end.
        before: share of the run that passes before the first step.
        steps: steps of the optimiser that a whole run would have.
        made: steps that were made before this one.
    """
    left = jnp.maximum(1.0 - before - (jnp.asarray(made) + 1) / steps, 0.0)
    return start * (end + (1.0 - end) * left**0.2)


def clip_each(norm: float) -> optax.GradientTransformation:
    """Return the clipping of a list of gradients, each of which gets at most this global norm."""
    one = optax.clip_by_global_norm(norm)

    def clip(gradients: Any, params: Any) -> Any:
        return [one.update(gradient, optax.EmptyState())[0] for gradient in gradients]

    return optax.stateless(clip)
