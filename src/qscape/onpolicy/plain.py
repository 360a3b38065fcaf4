"""The default part of every on-policy socket."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.nets.conv import Convolutions, Pixels, describe_small_image
from qscape.nets.orthogonal import orthogonal_torso
from qscape.onpolicy.base import Base
from qscape.onpolicy.sockets import ActionRefiner, Estimator, FeatureExtractor, Scaling, Trajectory
from qscape.ops.returns import discounted_returns, gae
from qscape.ops.running import add_batch, init_moments
from qscape.types import Key, Part, Spec, setting

IMAGES = {"spec.frame": "without images"}


@dataclasses.dataclass(frozen=True)
class Plain(FeatureExtractor):
    """A multilayer perceptron; on images, the convolutions of the Nature DQN and one linear layer.

    Weights are orthogonal with gain √2, biases 0.
    """

    name: ClassVar[str] = "plain"
    images: Literal["convolutions", "flat"] = setting(
        "convolutions",
        "Layers on images: convolutions and plain.image_hidden, or flat: base.actor_hidden on the pixels.",
        only_if=IMAGES,
    )
    image_hidden: tuple[int, ...] = setting(
        (512,),
        "Widths of the linear layers after the convolutions (images only).",
        within=">= 1",
        only_if=IMAGES
        | {
            "images!=flat or not spec.frame": (
                "with plain.images = flat, where base.actor_hidden has the widths"
            )
        },
    )

    def fits(self, spec: Spec, base: Base) -> str | None:
        if spec.frame is None or self.images == "flat":
            return None
        return describe_small_image(spec.frame)

    def init(self, key: Key, spec: Spec, base: Base, widths: tuple[int, ...]) -> PyTree:
        if spec.frame is not None and self.images == "convolutions":
            return Convolutions(key, spec.frame, self.image_hidden)
        torso = orthogonal_torso(key, (spec.observation_size, *widths), base.activation)
        return torso if spec.frame is None else Pixels(torso)

    def width(self, spec: Spec, base: Base, widths: tuple[int, ...]) -> int:
        is_flat = spec.frame is None or self.images == "flat"
        return widths[-1] if is_flat else self.image_hidden[-1]


@dataclasses.dataclass(frozen=True)
class GAE(Estimator):
    """Generalised advantage estimation: A_t = Σ_l (γ λ)^l δ_{t+l}; the critic's target is A_t + v(s_t).

    Schulman et al. 2016, arXiv 1506.02438; see `ops.returns.gae`.
    """

    name: ClassVar[str] = "gae"
    decay: float = setting(
        0.95, "λ: 0 uses one-step TD errors, 1 uses Monte Carlo returns.", within="[0, 1]", tune=(0.8, 1.0)
    )

    def estimate(self, state: PyTree, base: Base, trajectory: Trajectory) -> tuple[Array, Array, PyTree]:
        assert trajectory.value is not None
        assert trajectory.next_value is not None
        ends = trajectory.terminated, trajectory.segment_end
        advantage = gae(
            trajectory.reward, trajectory.value, trajectory.next_value, *ends, base.discount, self.decay
        )
        return advantage, advantage + trajectory.value, state


@dataclasses.dataclass(frozen=True)
class MonteCarlo(Estimator):
    """Discounted returns without a critic (REINFORCE).

    A return that is cut short by a time limit or the rollout's end is bootstrapped with the mean of all
    returns seen so far. The state is the running `Moments` of the returns.
    """

    name: ClassVar[str] = "monte_carlo"
    needs_critic: ClassVar[bool] = False
    standardise: bool = setting(
        True, "Standardise returns by the running mean and standard deviation of earlier returns."
    )

    def init_state(self, spec: Spec, envs: int) -> PyTree:
        return init_moments(1)._replace(seen=jnp.zeros(()))

    def estimate(self, state: PyTree, base: Base, trajectory: Trajectory) -> tuple[Array, Array, PyTree]:
        ends = trajectory.terminated, trajectory.segment_end
        returns = discounted_returns(trajectory.reward, state.mean[0], *ends, base.discount)
        advantage = returns
        if self.standardise:  # by the moments of earlier rollouts; this one is added afterwards
            advantage = (returns - state.mean[0]) / jnp.sqrt(state.var[0] + 1e-8)
        weight = None if trajectory.weight is None else trajectory.weight.reshape(-1)
        return advantage, returns, add_batch(state, returns.reshape(-1, 1), weight)


@dataclasses.dataclass(frozen=True)
class NoScaling(Scaling):
    """Rewards and returns are not scaled."""

    name: ClassVar[str] = "as_they_are"


@dataclasses.dataclass(frozen=True)
class AsDrawn(ActionRefiner):
    """Rollouts execute the actions that the policy drew."""

    name: ClassVar[str] = "as_drawn"
    has_critics: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class Raw(Part):
    """Observations are not normalised."""

    name: ClassVar[str] = "raw"
    socket: ClassVar[str] = "normaliser"
    changes_observations: ClassVar[bool] = False

    def init(self, key: Key, nets: Any, spec: Spec, base: Base, actor: Any) -> None:
        """Returns None: there are no statistics."""

    def update_statistics(self, state: None, obs: Array, weight: Array | None) -> None:
        """Returns None: there are no statistics."""

    def apply(self, state: None, obs: Array) -> Array:
        """Returns the observations as they are."""
        return obs
