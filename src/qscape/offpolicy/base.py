"""The settings every off-policy agent has. Parts may override them; a user's own word wins over both."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import optax

from qscape.errors import UsageError
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class Base:
    """Fields of the base algorithm; the defaults are TD3's."""

    discount: float = setting(0.99, "Discount factor γ.", tune=(0.9, 0.999))
    batch_size: int = setting(256, "Transitions in one update.", tune=("choice", 64, 128, 256, 512))
    n_step: int = setting(1, "Rewards summed before bootstrapping.", tune=("choice", 1, 3, 5))
    replay_capacity: int = setting(1_000_000, "Transitions kept; the oldest are overwritten.")
    next_observation: Literal["stored", "derived"] = setting(
        "stored", "'derived' reads s' from the following row and halves the replay's memory."
    )
    warmup: int = setting(25_000, "Environment steps of uniformly random actions before learning.")
    warmup_to_episode_end: bool = setting(False, "Let the random phase last until an episode ends.")
    bootstrap_at_time_limits: bool = setting(
        True, "Value what lies beyond a time limit; off: a time limit ends the return like a real end."
    )
    updates_per_step: float = setting(1.0, "Updates per environment step.", tune=("choice", 0.5, 1.0, 2.0))

    actor_hidden: tuple[int, ...] = setting((256, 256), "Widths of the actor's hidden layers.")
    critic_hidden: tuple[int, ...] = setting((256, 256), "Widths of the critics' hidden layers.")
    actor_activation: Literal["relu", "elu", "silu", "tanh"] = setting("relu", "Activation of the actor.")
    actor_projection: bool = setting(
        False, "One more layer, without activation, between the actor's hidden layers and its head."
    )
    critic_activation: Literal["relu", "elu", "silu", "tanh"] = setting("relu", "Activation of the critics.")
    critics: int = setting(2, "Number of critics.")
    head: Literal["deterministic", "gaussian"] = setting("deterministic", "Kind of action head.")
    log_std_bound: Literal["clip", "tanh"] = setting("clip", "How the log standard deviation is bounded.")
    log_std_min: float = setting(-5.0, "Least log standard deviation of a gaussian head.")
    log_std_max: float = setting(2.0, "Greatest log standard deviation of a gaussian head.")

    actor_learning_rate: float = setting(3e-4, "Adam's rate for the actor.", tune=(1e-5, 1e-2, "log"))
    critic_learning_rate: float = setting(3e-4, "Adam's rate for the critics.", tune=(1e-5, 1e-2, "log"))
    gradient_clip: float | None = setting(
        None, "Greatest global gradient norm, per optimiser; None: no clip."
    )
    critic_weight_decay: float = setting(0.0, "L2 added to the critics' gradient before Adam.")
    actor_weight_decay: float = setting(0.0, "L2 added to the actor's gradient before Adam.")

    critic_loss: Literal["mse", "lap_huber", "pal"] = setting("mse", "Loss of the TD errors.")
    critic_loss_scale: float = setting(1.0, "Factor of the critics' TD loss.")
    policy_delay: int = setting(2, "Critic updates per actor update.", tune=("choice", 1, 2, 4))
    actor_objective: Literal["first", "min", "mean"] = setting("first", "Which critics the actor climbs.")
    target_actor: bool = setting(True, "Keep a slow copy of the actor for the target action.")
    target_noise: float = setting(0.2, "Standard deviation of target-policy smoothing.", tune=(0.05, 0.5))
    target_noise_clip: float = setting(0.5, "Bound on the smoothing noise.")
    exploration_noise: float = setting(
        0.1, "Standard deviation of noise added when acting; of one step's share for `ou`.", tune=(0.02, 0.5)
    )
    exploration: Literal["gaussian", "ou"] = setting(
        "gaussian", "Noise that is new in each step, or an Ornstein-Uhlenbeck process."
    )
    ou_rate: float = setting(0.15, "θ of the process: what it loses of itself in a step.")
    epsilon_start: float = setting(1.0, "Factor ε of the noise at the end of the random phase.")
    epsilon_end: float = setting(1.0, "Factor ε of the noise when it has decayed.")
    epsilon_decay: float = setting(
        1 / 6, "How long ε takes from start to end: up to 1, a share of the run; above, environment steps."
    )
    epsilon_mode: Literal["noise", "greedy"] = setting(
        "noise", "ε scales the noise; or it is the probability of a uniformly random action."
    )
    nearest: Literal["exact", "clustered"] = setting(
        "exact", "Search in an action table: all of it, or only the nearest clusters of it."
    )
    nearest_probes: int = setting(16, "Clusters that a clustered search looks into.")
    sync_every: int = setting(250, "Updates between synchronisation events.")

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "n_step",
            "replay_capacity",
            "critics",
            "policy_delay",
            "sync_every",
            "nearest_probes",
        ):
            if getattr(self, name) < 1:
                raise UsageError(f"base.{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("actor_learning_rate", "critic_learning_rate", "updates_per_step", "critic_loss_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"base.{name} is {getattr(self, name)}; it must be a number above 0.")
        decays = ("critic_weight_decay", "actor_weight_decay")
        for name in ("warmup", "target_noise", "target_noise_clip", "exploration_noise", *decays):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"base.{name} is {getattr(self, name)}; it must be a number, 0 or more.")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise UsageError(f"base.gradient_clip is {self.gradient_clip}; it must be above 0, or None.")
        for name in ("discount", "ou_rate", "epsilon_start", "epsilon_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"base.{name} is {getattr(self, name)}; it must lie in [0, 1].")
        if not 0 < self.epsilon_decay < math.inf:
            raise UsageError(f"base.epsilon_decay is {self.epsilon_decay}; it must be a number above 0.")
        if self.epsilon_mode == "greedy" and self.epsilon_end == 1:
            raise UsageError(
                "base.epsilon_mode is greedy and base.epsilon_end 1: all actions would be random for ever; "
                "set base.epsilon_end below 1, such as 0.01."
            )
        if not self.log_std_min < self.log_std_max:
            raise UsageError(
                f"base.log_std_min is {self.log_std_min}; it must be below log_std_max = {self.log_std_max}."
            )
        for name in ("actor_hidden", "critic_hidden"):
            widths = getattr(self, name)
            if not widths or min(widths) < 1:
                raise UsageError(f"base.{name} is {widths}; it needs at least one width, each at least 1.")

    def find_learning_start(self) -> tuple[str, int]:
        """The field that says how many steps are made before the first update, and its value."""
        return "warmup", self.warmup

    def shorten_for_run(self, steps: int, asked: Collection[str] = ()) -> Mapping[str, Any]:
        """Fields for a run that is too short for the usual warm-up: a fifth of it."""
        return {"warmup": steps // 5}

    def scale_to_run(self, steps: int) -> Mapping[str, Any]:
        """Fields that are a share of a run of that length, in steps."""
        if self.epsilon_start == self.epsilon_end or self.epsilon_decay > 1:
            return {}
        return {"epsilon_decay": float(max(2, round(self.epsilon_decay * steps)))}

    def optimiser(self, learning_rate: float, weight_decay: float = 0.0) -> optax.GradientTransformation:
        """Clip, then L2, then Adam (b1 0.9, b2 0.999, ε 1e-8); what is off costs nothing."""
        steps = []
        if self.gradient_clip is not None:
            steps.append(optax.clip_by_global_norm(self.gradient_clip))
        if weight_decay:
            steps.append(optax.add_decayed_weights(weight_decay))
        return optax.chain(*steps, optax.adam(learning_rate))
