"""The plain default of every socket."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.errors import UsageError
from qscape.nets.conv import Convolutions, layout, least
from qscape.nets.orthogonal import orthogonal_torso
from qscape.onpolicy.base import Base
from qscape.onpolicy.sockets import Estimator, FeatureExtractor, Scaling, Steps
from qscape.ops.returns import discounted_returns, gae
from qscape.ops.running import merge, moments
from qscape.types import Key, Part, Spec, setting


@dataclasses.dataclass(frozen=True)
class Plain(FeatureExtractor):
    """Linear layers with an activation behind each; on images the Nature DQN's convolutions before them."""

    name: ClassVar[str] = "plain"
    image_hidden: tuple[int, ...] = setting((512,), "Widths of the linear layers behind convolutions.")

    def __post_init__(self) -> None:
        if not self.image_hidden or min(self.image_hidden) < 1:
            raise UsageError(
                f"plain.image_hidden is {self.image_hidden}; it needs at least one width, each at least 1."
            )

    def fits(self, spec: Spec, base: Base) -> str | None:
        if spec.frame is None:
            return None
        size = layout(spec.frame)[1][:2]
        if min(size) >= least():
            return None
        return f"its convolutions need images of at least {least()} × {least()}, and these are {spec.frame}."

    def init(self, key: Key, spec: Spec, base: Base, widths: tuple[int, ...]) -> PyTree:
        if spec.frame is not None:
            return Convolutions(key, spec.frame, self.image_hidden)
        return orthogonal_torso(key, (spec.observation_size, *widths), base.activation)

    def width(self, spec: Spec, base: Base, widths: tuple[int, ...]) -> int:
        return widths[-1] if spec.frame is None else self.image_hidden[-1]


@dataclasses.dataclass(frozen=True)
class GAE(Estimator):
    """Generalised advantage estimation (Schulman et al. 2016)."""

    name: ClassVar[str] = "gae"
    decay: float = setting(0.95, "λ: 0 trusts the critic alone, 1 the rewards alone.", tune=(0.8, 1.0))

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise UsageError(f"gae.decay is {self.decay}; it must lie in [0, 1].")

    def estimate(self, state: PyTree, base: Base, steps: Steps) -> tuple[Array, Array, PyTree]:
        assert steps.value is not None
        assert steps.next_value is not None
        ends = steps.terminated, steps.ended
        advantage = gae(steps.reward, steps.value, steps.next_value, *ends, base.discount, self.decay)
        return advantage, advantage + steps.value, state


@dataclasses.dataclass(frozen=True)
class MonteCarlo(Estimator):
    """Discounted returns, without a critic (REINFORCE); one cut short goes on with the mean return so far."""

    name: ClassVar[str] = "monte_carlo"
    critic: ClassVar[bool] = False
    standardise: bool = setting(
        True, "Subtract the running mean of earlier returns and divide by their standard deviation."
    )

    def init_state(self, spec: Spec, envs: int) -> PyTree:
        return moments(1)._replace(seen=jnp.zeros(()))

    def estimate(self, state: PyTree, base: Base, steps: Steps) -> tuple[Array, Array, PyTree]:
        ends = steps.terminated, steps.ended
        returns = discounted_returns(steps.reward, state.mean[0], *ends, base.discount)
        advantage = returns
        if self.standardise:  # by what was seen before, then it is seen: the order matters
            advantage = (returns - state.mean[0]) / jnp.sqrt(state.var[0] + 1e-8)
        weight = None if steps.weight is None else steps.weight.reshape(-1)
        return advantage, returns, merge(state, returns.reshape(-1, 1), weight)


@dataclasses.dataclass(frozen=True)
class AsTheyAre(Scaling):
    """Rewards as they are."""

    name: ClassVar[str] = "as_they_are"


@dataclasses.dataclass(frozen=True)
class Raw(Part):
    """Observations as they are."""

    name: ClassVar[str] = "raw"
    socket: ClassVar[str] = "normaliser"
