"""The settings every on-policy agent has. Parts may override them; a user's own word wins over both."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import optax

from qscape.errors import UsageError
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class Base:
    """Fields of the base algorithm; the defaults are PPO's."""

    discount: float = setting(0.99, "Discount factor γ.", tune=(0.9, 0.999))
    rollout: int = setting(
        2_048,
        "Environment steps between updates, over all environments; with episodes: the most there may be.",
    )
    episodes: int = setting(0, "Whole episodes between updates; 0: a fixed number of steps.")
    batch_size: int = setting(
        64, "Steps in one minibatch; 0: the whole rollout.", tune=("choice", 32, 64, 128, 256)
    )
    passes: int = setting(10, "Passes over a rollout.", tune=("choice", 1, 4, 10, 20))

    actor_hidden: tuple[int, ...] = setting((64, 64), "Widths of the actor's hidden layers.")
    critic_hidden: tuple[int, ...] = setting((64, 64), "Widths of the critic's hidden layers.")
    activation: Literal["relu", "elu", "silu", "tanh"] = setting("tanh", "Activation of actor and critic.")
    shared_torso: bool | None = setting(
        None, "Let the critic be one linear layer on the actor's torso; None: on images only (not with trpo)."
    )

    optimiser: Literal["adam", "rmsprop"] = setting("adam", "Kind of optimiser.")
    learning_rate: float = setting(3e-4, "The optimiser's rate.", tune=(1e-5, 1e-2, "log"))
    anneal: bool = setting(False, "Let the rate fall to 0 along a straight line over the run.")
    optimiser_epsilon: float = setting(1e-5, "ε of Adam or RMSprop, outside the root.")
    gradient_clip: float | None = setting(0.5, "Greatest global gradient norm; None: no clip.")
    value_coefficient: float = setting(0.5, "Weight of the critic's loss.", tune=(0.1, 1.0))
    entropy_coefficient: float = setting(0.0, "Weight of the entropy bonus.", tune=(0.0, 0.05))
    exploration: float = setting(
        0.0, "Share of uniformly random actions (discrete actions); stored as if the policy had chosen them."
    )

    def __post_init__(self) -> None:
        for name in ("rollout", "passes"):
            if getattr(self, name) < 1:
                raise UsageError(f"base.{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("episodes", "batch_size", "value_coefficient", "entropy_coefficient"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"base.{name} is {getattr(self, name)}; it must be a number, 0 or more.")
        for name in ("learning_rate", "optimiser_epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"base.{name} is {getattr(self, name)}; it must be a number above 0.")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise UsageError(f"base.gradient_clip is {self.gradient_clip}; it must be above 0, or None.")
        for name in ("discount", "exploration"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"base.{name} is {getattr(self, name)}; it must lie in [0, 1].")
        for name in ("actor_hidden", "critic_hidden"):
            widths = getattr(self, name)
            if not widths or min(widths) < 1:
                raise UsageError(f"base.{name} is {widths}; it needs at least one width, each at least 1.")
        if self.batch_size > self.rollout:
            raise UsageError(
                f"base.batch_size is {self.batch_size} and base.rollout {self.rollout}: a minibatch is drawn "
                "from one rollout; make it smaller, or the rollout longer."
            )

    def waits(self) -> tuple[str, int]:
        """The field that says what comes before the first update, and how many steps that are for certain."""
        return ("episodes", 0) if self.episodes else ("rollout", self.rollout)

    def fitted(self, steps: int, asked: Collection[str] = ()) -> Mapping[str, Any]:
        """Fields for a run that is too short for the usual rollout: a fifth of it; minibatches that fit, or
        where the user `asked` for their size, a rollout that holds one."""
        rollout = max(1, steps // 5)
        if "batch_size" in asked:
            return {"rollout": max(rollout, min(self.batch_size, steps))}
        return {"rollout": rollout} | ({"batch_size": rollout} if self.batch_size > rollout else {})

    def shares(self, steps: int) -> Mapping[str, Any]:
        """Fields that are a share of a run of that length, in steps."""
        return {}

    def descent(self) -> optax.GradientTransformation:
        """Clip, then Adam's or RMSprop's direction; the rate is applied by who takes the step."""
        steps = []
        if self.gradient_clip is not None:
            steps.append(optax.clip_by_global_norm(self.gradient_clip))
        if self.optimiser == "adam":
            return optax.chain(*steps, optax.scale_by_adam(eps=self.optimiser_epsilon))
        rms = optax.scale_by_rms(decay=0.99, eps=self.optimiser_epsilon, eps_in_sqrt=False)
        return optax.chain(*steps, rms)
