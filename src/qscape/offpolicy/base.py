"""The settings that every off-policy agent has. Parts may override them; a user's own value wins."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Literal

import optax

from qscape.errors import UsageError
from qscape.types import check_ranges, setting


@dataclasses.dataclass(frozen=True)
class Base:
    """Settings of the base algorithm; the defaults are TD3's.

    Raises:
        UsageError: a value is out of its range.
    """

    discount: float = setting(0.99, "Discount factor γ.", within="[0, 1]", tune=(0.9, 0.999))
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

    actor_hidden: tuple[int, ...] = setting((256, 256), "Widths of the actor's hidden layers.", within=">= 1")
    critic_hidden: tuple[int, ...] = setting(
        (256, 256), "Widths of the critics' hidden layers.", within=">= 1"
    )
    actor_activation: Literal["relu", "elu", "silu", "tanh"] = setting(
        "relu", "Activation of the actor's hidden layers."
    )
    actor_projection: bool = setting(
        False, "Add a linear layer without activation between the actor's hidden layers and its head."
    )
    critic_activation: Literal["relu", "elu", "silu", "tanh"] = setting(
        "relu", "Activation of the critics' hidden layers."
    )
    critics: int = setting(2, "Number of critics.", within=">= 1")
    head: Literal["deterministic", "gaussian"] = setting(
        "deterministic", "Action head: one action per state, or a squashed normal distribution."
    )
    log_std_bound: Literal["clip", "tanh"] = setting(
        "clip", "How the log standard deviation is kept in its bounds."
    )
    log_std_min: float = setting(-5.0, "Lower bound of the log standard deviation.")
    log_std_max: float = setting(2.0, "Upper bound of the log standard deviation.")

    actor_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the actor.", within="> 0", tune=(1e-5, 1e-2, "log")
    )
    critic_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the critics.", within="> 0", tune=(1e-5, 1e-2, "log")
    )
    gradient_clip: float | None = setting(
        None,
        "Clip the global norm of each optimiser's gradient to this; None: no clipping.",
        within="(0, inf]",
    )
    critic_weight_decay: float = setting(
        0.0, "Weight decay added to the critics' gradient before Adam.", within=">= 0"
    )
    actor_weight_decay: float = setting(
        0.0, "Weight decay added to the actor's gradient before Adam.", within=">= 0"
    )

    critic_loss: Literal["mse", "lap_huber", "pal"] = setting(
        "mse", "Loss of the TD errors: mean squared, LAP's Huber loss, or PAL."
    )
    critic_loss_scale: float = setting(
        1.0, "Factor of the critics' TD loss, relative to regularisers.", within="> 0"
    )
    policy_delay: int = setting(
        2, "Critic updates per actor update.", within=">= 1", tune=("choice", 1, 2, 4)
    )
    actor_objective: Literal["first", "min", "mean"] = setting(
        "first", "Value that the actor climbs: the first critic, the minimum or the mean."
    )
    target_actor: bool = setting(True, "Keep a target actor, which selects the action at the next state.")
    target_noise: float = setting(
        0.2, "Standard deviation of target policy smoothing; 0: none.", within=">= 0", tune=(0.05, 0.5)
    )
    target_noise_clip: float = setting(0.5, "Bound on the smoothing noise.", within=">= 0")
    exploration_noise: float = setting(
        0.1,
        "Standard deviation of exploration noise; for `ou` of the noise of one step.",
        within=">= 0",
        tune=(0.02, 0.5),
    )
    exploration: Literal["gaussian", "ou"] = setting(
        "gaussian", "Exploration noise: independent in each step, or an Ornstein-Uhlenbeck process."
    )
    ou_rate: float = setting(
        0.15, "Mean-reversion rate θ of the OU noise: x ← (1 − θ) x + σ N(0, 1).", within="[0, 1]"
    )
    epsilon_start: float = setting(1.0, "ε when the random phase ends.", within="[0, 1]")
    epsilon_end: float = setting(1.0, "ε after its decay.", within="[0, 1]")
    epsilon_decay: float = setting(
        1 / 6,
        "Length of ε's linear decay: a fraction of the run up to 1, else environment steps.",
        within="> 0",
    )
    epsilon_mode: Literal["noise", "greedy"] = setting(
        "noise", "ε scales the noise, or (greedy) is the probability of a uniformly random action."
    )
    nearest: Literal["exact", "clustered"] = setting(
        "exact", "Nearest-neighbour search in an action table: over all rows, or the nearest clusters."
    )
    nearest_probes: int = setting(16, "Clusters that a clustered search visits.", within=">= 1")
    sync_every: int = setting(
        250,
        "Updates between syncs: copies of periodic targets, SALE's encoders, LAP's maximum.",
        within=">= 1",
    )

    def __post_init__(self) -> None:
        check_ranges(self, "base")
        if self.epsilon_mode == "greedy" and self.epsilon_end == 1:
            raise UsageError(
                "base.epsilon_mode is greedy and base.epsilon_end 1: all actions would be random for ever; "
                "set base.epsilon_end below 1, such as 0.01."
            )
        if not self.log_std_min < self.log_std_max:
            raise UsageError(
                f"base.log_std_min is {self.log_std_min}; it must be below log_std_max = {self.log_std_max}."
            )

    def find_learning_start(self) -> tuple[str, int]:
        """Returns the name and the value of the field that says when the first update is made, in steps."""
        return "warmup", self.warmup

    def shorten_for_run(self, steps: int, asked: Collection[str] = ()) -> Mapping[str, Any]:
        """Returns fields for a run of `steps` that is too short for the default warm-up: a fifth of it.

        Args:
            asked: fields that the user has set.
        """
        return {"warmup": steps // 5}

    def scale_to_run(self, steps: int) -> Mapping[str, Any]:
        """Returns the fields that are a fraction of the run, converted to steps of a run of that length."""
        if self.epsilon_start == self.epsilon_end or self.epsilon_decay > 1:
            return {}
        return {"epsilon_decay": float(max(2, round(self.epsilon_decay * steps)))}

    def optimiser(self, learning_rate: float, weight_decay: float = 0.0) -> optax.GradientTransformation:
        """Makes the optimiser: gradient clipping, weight decay, Adam (b1 0.9, b2 0.999, ε 1e-8)."""
        steps = []
        if self.gradient_clip is not None:
            steps.append(optax.clip_by_global_norm(self.gradient_clip))
        if weight_decay:
            steps.append(optax.add_decayed_weights(weight_decay))
        return optax.chain(*steps, optax.adam(learning_rate))
