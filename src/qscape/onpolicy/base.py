"""The settings of every on-policy agent. A part may override a default; a value that the user gave wins."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Literal

import optax

from qscape.errors import OutOfRange
from qscape.ops.adam import scale_by_adam
from qscape.types import LEARNING_RATE, check_ranges, setting

# When fields do something, for `setting(only_if=...)`.
HAS_CRITIC = {"has_critic": "without a critic, and {agent.estimator.name} needs none"}
# A refiner may have critics of that size.
OWN_TORSO = {
    "refiner.has_critics or has_critic": HAS_CRITIC["has_critic"],
    "refiner.has_critics or has_critic_torso": (
        "with a critic that is one layer on the actor's torso (base.shared_torso)"
    ),
}
HAS_LAYERS = {
    "extractor.images=flat or not spec.frame": (
        "with convolutions, after which plain.image_hidden has the widths"
    )
}


@dataclasses.dataclass(frozen=True)
class Base:
    """Hyperparameters that are not specific to one part. The defaults are those of PPO.

    Raises:
        UsageError: a value is out of its range, or a minibatch is larger than a rollout.
    """

    discount: float = setting(0.99, "Discount factor γ, in [0, 1].", within="[0, 1]", tune=(0.9, 0.999))
    rollout: int = setting(
        2_048,
        "Environment steps between updates, over all environments; an upper bound if base.episodes is set.",
        within=">= 1",
    )
    episodes: int = setting(
        0, "Whole episodes between two updates; 0: a fixed number of steps (base.rollout).", within=">= 0"
    )
    batch_size: int = setting(
        64,
        "Samples in one minibatch; 0: the whole rollout.",
        within=">= 0",
        tune=("choice", 32, 64, 128, 256),
    )
    passes: int = setting(
        10, "Passes (epochs) over one rollout.", within=">= 1", tune=("choice", 1, 4, 10, 20)
    )

    actor_hidden: tuple[int, ...] = setting(
        (64, 64), "Widths of the actor's hidden layers.", within=">= 1", only_if=HAS_LAYERS
    )
    critic_hidden: tuple[int, ...] = setting(
        (64, 64), "Widths of the critic's hidden layers.", within=">= 1", only_if=HAS_LAYERS | OWN_TORSO
    )
    activation: Literal["relu", "elu", "silu", "tanh"] = setting(
        "tanh", "Activation of the hidden layers of actor and critic.", only_if=HAS_LAYERS
    )
    shared_torso: bool | None = setting(
        None,
        "Make the critic one linear layer on the actor's torso; None: on images only (not with trpo).",
        only_if=HAS_CRITIC,
    )

    optimiser: Literal["adam", "rmsprop"] = setting("adam", "Optimiser of actor and critic.")
    learning_rate: float = setting(3e-4, "Learning rate.", **LEARNING_RATE)
    anneal: bool = setting(False, "Decrease the learning rate linearly to 0 over the run.")
    optimiser_epsilon: float = setting(
        1e-5, "ε of Adam or RMSprop, added outside the square root.", within="> 0"
    )
    gradient_clip: float | None = setting(
        0.5, "Clip gradients to this global norm; None: no clipping.", within="(0, inf]"
    )
    value_coefficient: float = setting(
        0.5,
        "Weight of the critic's loss in the total loss.",
        within=">= 0",
        tune=(0.1, 1.0),
        only_if=HAS_CRITIC
        | {
            "policy_update.weighs_critic_loss": (
                "with {agent.policy_update.name}, whose critic has a loss of its own"
            )
        },
    )
    entropy_coefficient: float = setting(
        0.0, "Weight of the entropy bonus in the total loss.", within=">= 0", tune=(0.0, 0.05)
    )
    exploration: float = setting(
        0.0, "Probability of a uniformly random action in a rollout (discrete actions only).", within="[0, 1]"
    )

    def __post_init__(self) -> None:
        check_ranges(self, "base")
        if self.batch_size > self.rollout:
            raise OutOfRange(
                f"base.batch_size is {self.batch_size} and base.rollout {self.rollout}: a minibatch is drawn "
                "from one rollout; make it smaller, or the rollout longer.",
                part="base",
                field="batch_size",
            )

    def find_learning_start(self) -> tuple[str, int]:
        """Return the name of the field that sets when the first update is made, and the steps made before it.

        The number is 0 if it is not known before the run, as with whole episodes. Called when a run is
        planned.
        """
        return ("episodes", 0) if self.episodes else ("rollout", self.rollout)

    def shorten_for_run(self, steps: int, asked: Collection[str] = ()) -> Mapping[str, Any]:
        """Return new values of fields for a run of only `steps` environment steps.

        The rollout becomes a fifth of the run, and a minibatch at most a rollout.

        Args:
            steps: length of the run in environment steps.
            asked: fields that the user set. If `batch_size` is among them, it stays, and the rollout holds at
                least one minibatch.
        """
        rollout = max(1, steps // 5)
        if "batch_size" in asked:
            return {"rollout": max(rollout, min(self.batch_size, steps))}
        size = rollout if rollout > 1 else 0  # a single sample has no standardised advantage
        return {"rollout": rollout} | ({"batch_size": size} if self.batch_size > rollout else {})

    def scale_to_envs(self, envs: int) -> Mapping[str, Any]:
        """Return new values of fields that count steps of E environments at once; here there are none."""
        return {}

    def scale_to_run(self, steps: int) -> Mapping[str, Any]:
        """Return new values, in steps, of fields that were given as a share of the run;
        here there are none.
        """
        return {}

    def make_optimiser(self) -> optax.GradientTransformation:
        """Make gradient clipping, then Adam or RMSprop; `descent.apply_step` applies the learning rate."""
        steps = []
        if self.gradient_clip is not None:
            steps.append(optax.clip_by_global_norm(self.gradient_clip))
        if self.optimiser == "adam":
            return optax.chain(*steps, scale_by_adam(eps=self.optimiser_epsilon))
        rms = optax.scale_by_rms(decay=0.99, eps=self.optimiser_epsilon, eps_in_sqrt=False)
        return optax.chain(*steps, rms)
