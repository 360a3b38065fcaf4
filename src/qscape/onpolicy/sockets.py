"""The interfaces: what a part of an on-policy agent may do, and what it is given to do it with.

A part is a frozen dataclass; its fields are its hyperparameters, its documentation and its flags. What it
learns or remembers lives in the state and is moved by nobody but the trunk.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, PyTree

from qscape.onpolicy.base import Base
from qscape.onpolicy.state import State
from qscape.types import Key, Metrics, Part, Scalar, Spec


@runtime_checkable
class Distribution(Protocol):
    """What an actor says of observations [B, S]."""

    @property
    def features(self) -> Array: ...  # [B, d], what the action layer sees
    def mode(self) -> Array: ...
    def sample(self, key: Key) -> tuple[Array, Array]: ...  # action, log-probability
    def log_prob(self, action: Array) -> Array: ...
    def entropy(self) -> Array: ...
    def kl(self, new: Any) -> Array: ...  # KL(self ‖ new) of another of its kind


class Rollout(NamedTuple):
    """T steps of E environments, as the present policy made them."""

    observation: Float[Array, "T E S"]
    action: Float[Array, "T E A"]  # in [-1, 1], or the index of a discrete action
    reward: Float[Array, "T E"]
    terminated: Bool[Array, "T E"]
    truncated: Bool[Array, "T E"]
    next_observation: Float[Array, "T E S"]  # the true successor, also at an end
    valid: Bool[Array, "T E"] | None = None  # None: every row is a step


class Steps(NamedTuple):
    """What an estimator sees of a rollout."""

    reward: Float[Array, "T E"]
    value: Float[Array, "T E"] | None  # by the critic that collected it; None without a critic
    next_value: Float[Array, "T E"] | None
    terminated: Float[Array, "T E"]
    ended: Float[Array, "T E"]  # 1 where the next row belongs to another episode, or to none
    weight: Float[Array, "T E"] | None  # 0 for rows that are no steps; None: all are
    over: Float[Array, "T E"]  # 1 where the episode of a row is over; at the last row it may go on


class Samples(NamedTuple):
    """N steps as an improvement sees them, in no order."""

    observation: Float[Array, "N S"]  # normalised
    action: Float[Array, "N A"]
    log_prob: Float[Array, " N"]  # by the policy that collected them
    advantage: Float[Array, " N"]
    target: Float[Array, " N"]  # of the critic
    value: Float[Array, " N"] | None  # by the critic that collected them
    weight: Float[Array, " N"] | None  # 0 for rows that are no steps; None: all are


class Views(NamedTuple):
    """The networks at one batch of observations."""

    dist: Distribution
    value: Float[Array, " B"] | None
    penalty: Float[Array, " B"] | None  # that the head adds to the loss


class Context(NamedTuple):
    """What an improvement receives."""

    views: Callable[..., Views]  # (networks, normalised observations) -> Views
    dist: Callable[..., Distribution]  # ((torso, head), observations): the actor alone
    value: Callable[..., Array]  # (critic, observations) -> values, of a critic with a torso of its own
    base: Base
    rate: Scalar  # the learning rate of this update
    key: Key  # of this update and improvement


class StatefulPart(Part):
    """What every part with a place in the state has in common."""

    def init_state(self, spec: Spec, envs: int) -> PyTree:
        """What the part remembers at the start, moved by no gradient; None: nothing."""
        return None


class FeatureExtractor(StatefulPart):
    """Features of an observation."""

    socket: ClassVar[str] = "extractor"

    def init(self, key: Key, spec: Spec, base: Base, widths: tuple[int, ...]) -> PyTree:
        """A fresh network; called on observations [B, S], it gives features [B, F]."""
        raise NotImplementedError

    def width(self, spec: Spec, base: Base, widths: tuple[int, ...]) -> int:
        """F."""
        raise NotImplementedError


class ActionHead(StatefulPart):
    """A distribution over actions from a torso's features."""

    socket: ClassVar[str] = "head"

    def init(self, key: Key, spec: Spec, base: Base, width: int) -> tuple[PyTree, PyTree]:
        """What the head learns, and what stays as it is for ever (None: nothing)."""
        raise NotImplementedError

    def dist(self, learned: PyTree, fixed: PyTree, features: Array) -> tuple[Distribution, Array | None]:
        """The distribution at features [B, F], and a term of the loss [B]."""
        raise NotImplementedError

    def layer(self, learned: PyTree, fixed: PyTree) -> Float[Array, "K d"] | None:
        """The action layer W of a discrete policy, a row an action; None where there is none."""
        return None

    def damage(self, fixed: PyTree) -> str | None:
        """What is wrong with a fixed layer that came out of a save; None: nothing."""
        return None


class Estimator(StatefulPart):
    """Advantages and the critic's targets."""

    socket: ClassVar[str] = "estimator"
    critic: ClassVar[bool] = True  # does it ask for values?

    def estimate(self, state: PyTree, base: Base, steps: Steps) -> tuple[Array, Array, PyTree]:
        """Advantages [T, E], targets [T, E], and what the part remembers afterwards."""
        raise NotImplementedError


class PolicyUpdate(StatefulPart):
    """How actor and critic learn from a rollout."""

    socket: ClassVar[str] = "policy_update"
    shares: ClassVar[bool] = True  # may actor and critic have one torso?
    adds_head_penalty: ClassVar[bool] = True  # does the head's L2 term enter the loss?

    def optimised(self, networks: PyTree) -> dict[str, PyTree]:
        """By name, the parameters that each optimiser moves."""
        raise NotImplementedError

    def improve(self, context: Context, state: State, samples: Samples) -> tuple[State, Metrics]:
        """The state after learning from the samples."""
        raise NotImplementedError


class Scaling(StatefulPart):
    """How rewards and returns are scaled."""

    socket: ClassVar[str] = "scaling"

    def rewards(self, state: PyTree, base: Base, steps: Steps) -> tuple[Array, PyTree]:
        """The rewards [T, E] that the estimator sees, and what the part remembers afterwards."""
        return steps.reward, state

    def values(self, state: PyTree) -> Array | None:
        """What the critic's unit is worth in returns; None: 1."""
        return None

    def see(self, state: PyTree, returns: Array, weight: Array | None) -> PyTree:
        """Fold in the returns [T, E] of a rollout, after their use."""
        return state


@runtime_checkable
class Normaliser(Protocol):
    """Observation normalisation, as the off-policy agents have it. It stands still during a rollout."""

    @property
    def name(self) -> str: ...
    def init(self, key: Key, nets: Any, spec: Spec, base: Any, actor: Any) -> PyTree: ...
    def update_from_rollout(self, state: Any, obs: Array, weight: Array | None) -> PyTree: ...
    def apply(self, state: Any, obs: Array) -> Array: ...
