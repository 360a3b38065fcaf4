"""The interfaces of an on-policy agent's parts, and the arrays that they pass to each other.

A part is a frozen dataclass. Its fields are its hyperparameters, its documentation and its flags. Its arrays
live in `State.part_states`; only `onpolicy.update` replaces them.

Shapes: T rollout steps, E environments, N = T E samples, B rows of a minibatch, S observation size, A action
size, K discrete actions, F features of the torso, d features of the action layer.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, PyTree

from qscape.onpolicy.base import Base
from qscape.onpolicy.state import State
from qscape.types import Key, Metrics, Part, Scalar, Spec, Transition


@runtime_checkable
class Distribution(Protocol):
    """A batch of distributions over actions, one for each observation."""

    @property
    def features(self) -> Array:
        """The input of the action layer, `[*b, d]`."""
        ...

    def mode(self) -> Array:
        """Return the most likely action, `[*b, A]`; evaluations execute it."""
        ...

    def sample(self, key: Key) -> tuple[Array, Array]:
        """Return a random action `[*b, A]` and its log-probability `[*b]`."""
        ...

    def log_prob(self, action: Array) -> Array:
        """Return log π(a | s) `[*b]` of actions `[*b, A]`, in nats."""
        ...

    def entropy(self) -> Array:
        """Return H(π(· | s)) `[*b]`, in nats."""
        ...

    def kl(self, new: Any) -> Array:
        """Return KL(self ‖ new) `[*b]`, in nats; `new` is a distribution of the same class."""
        ...


@runtime_checkable
class Maskable(Distribution, Protocol):
    """A distribution over discrete actions of which some may be invalid."""

    def masked(self, valid: Array) -> Distribution:
        """Return the distribution given that the action is valid; a bool for each logit `[*b, K]`."""
        ...


class Trajectory(NamedTuple):
    """A rollout as the scaling and the estimator see it; flags are floats, 0 or 1.

    Attributes:
        value: v(s_t) of the critic before the update; None without a critic.
        next_value: v(s_{t+1}) of the true successor; None without a critic.
        terminated: 1 where the episode ended in a terminal state.
        segment_end: 1 where the next row does not continue this one: the episode is over, the next row is no
            step, or this is the last row. λ-returns are not carried across it.
        weight: 0 for rows that are no environment steps; None: all rows are steps.
        done: 1 where the next rollout step begins another episode. Unlike `segment_end` it is 0 in the last
            row if that episode continues in the next rollout.
    """

    reward: Float[Array, "T E"]
    value: Float[Array, "T E"] | None
    next_value: Float[Array, "T E"] | None
    terminated: Float[Array, "T E"]
    segment_end: Float[Array, "T E"]
    weight: Float[Array, "T E"] | None
    done: Float[Array, "T E"]


class Successors(NamedTuple):
    """What followed N rollout steps, for advantages that are computed anew.

    Attributes:
        reward: in the critic's unit.
        observation: of the true successor, normalised if the agent normalises observations.
        terminated, segment_end: as in `Trajectory`, but segments end with an unroll too.
    """

    reward: Float[Array, " N"]
    observation: Float[Array, "N S"]
    terminated: Float[Array, " N"]
    segment_end: Float[Array, " N"]


class RolloutSamples(NamedTuple):
    """N rollout steps as a `PolicyUpdate` sees them, in no particular order, or unroll after unroll.

    Attributes:
        observation: normalised, if the agent normalises observations.
        log_prob: log π_old(a | s) under the policy that collected the rollout.
        advantage: by the estimator, not standardised.
        target: regression target of the critic.
        value: v_old(s) of the critic before the update; None without a critic.
        weight: 0 for rows that are no environment steps; None: all rows are steps.
        successors: what followed each step; None unless the samples are unrolls
            (`PolicyUpdate.unroll_length`).
    """

    observation: Float[Array, "N S"]
    action: Float[Array, "N A"]
    log_prob: Float[Array, " N"]
    advantage: Float[Array, " N"]
    target: Float[Array, " N"]
    value: Float[Array, " N"] | None
    weight: Float[Array, " N"] | None
    successors: Successors | None = None


class NetworkOutputs(NamedTuple):
    """The networks' outputs at a batch of observations.

    Attributes:
        dist: the policy's distribution over actions.
        value: v(s); None without a critic.
        penalty: a term that the head adds to the loss of each row; None: no such term.
    """

    dist: Distribution
    value: Float[Array, "*b"] | None
    penalty: Float[Array, "*b"] | None


class UpdateContext(NamedTuple):
    """Everything a `PolicyUpdate` may use beside the state and the samples.

    Attributes:
        normalise: raw observations to those that all other functions here take, by the statistics of now.
        scale: rewards in the environment's unit to the critic's unit, by the statistics of now.
        apply_networks: (networks, observations [B, S]) to `NetworkOutputs`.
        distribution: ((torso, head), observations [B, S]) to the policy's `Distribution`, without the critic.
        value: (critic, observations [B, S]) to values [B], for a critic that does not share the torso.
        estimate: a trajectory in the critic's unit to advantages and targets [T, E], by the agent's
            estimator.
        spec: the task.
        base: the settings.
        progress: the share of the run that is done, in [0, 1]; a part that uses it says so by
            `PolicyUpdate.follows_progress`.
        rate: learning rate of this update, after annealing.
        key: random key of this update and this part.
    """

    normalise: Callable[[Array], Array]
    scale: Callable[[Array], Array]
    apply_networks: Callable[..., NetworkOutputs]
    distribution: Callable[..., Distribution]
    value: Callable[..., Array]
    estimate: Callable[[Trajectory], tuple[Array, Array]]
    spec: Spec
    base: Base
    progress: Scalar | float
    rate: Scalar
    key: Key


class StatefulPart(Part):
    """A part that may keep arrays in `State.part_states`."""

    def init_state(self, spec: Spec, envs: int) -> PyTree:
        """Return the part's initial state for `envs` environments, or None if it keeps no state.

        Called once, when the agent's state is made. No gradient moves it.
        """
        return None


class FeatureExtractor(StatefulPart):
    """Builds the torso of actor and critic, which maps observations to features."""

    socket: ClassVar[str] = "extractor"

    def init(self, key: Key, spec: Spec, base: Base, widths: tuple[int, ...]) -> PyTree:
        """Return a new network that maps observations [*b, S] to features [*b, F].

        Args:
            widths: of the hidden layers; `base.actor_hidden` or `base.critic_hidden`.
        """
        raise NotImplementedError

    def width(self, spec: Spec, base: Base, widths: tuple[int, ...]) -> int:
        """Return F, the number of features that a network of `init` returns."""
        raise NotImplementedError


class ActionHead(StatefulPart):
    """Maps features of the torso to a distribution over actions."""

    socket: ClassVar[str] = "head"

    def init(self, key: Key, spec: Spec, base: Base, width: int) -> tuple[PyTree, PyTree]:
        """Return the trained parameters, and the fixed action layer (None if the action layer is trained).

        Args:
            width: F, the number of features of the torso.

        Raises:
            UsageError: the layer cannot be built on that many features.
        """
        raise NotImplementedError

    def distribution(
        self, params: PyTree, fixed_layer: PyTree, features: Array
    ) -> tuple[Distribution, Array | None]:
        """Return the distribution at features [*b, F], and a penalty [*b] that is added to the loss,
        or None.
        """
        raise NotImplementedError

    @property
    def feature_bound(self) -> float | None:
        """The bound on ‖h‖² of the features h before the action layer; None if they are not bounded."""
        return None

    def action_layer(self, params: PyTree, fixed_layer: PyTree) -> Float[Array, "K d"] | None:
        """Return the weight W of the action layer, a row for each discrete action; None for continuous
        actions.
        """
        return None

    def explain_damage(self, fixed_layer: PyTree) -> str | None:
        """Return what is wrong with a fixed layer that was read from a save; None if nothing is."""
        return None


class Estimator(StatefulPart):
    """Computes advantages and the critic's regression targets."""

    socket: ClassVar[str] = "estimator"
    needs_critic: ClassVar[bool] = True  # without it the agent has no critic, and values are None

    def estimate(self, state: PyTree, base: Base, trajectory: Trajectory) -> tuple[Array, Array, PyTree]:
        """Return advantages [T, E], targets [T, E] and the part's new state. Called once per update."""
        raise NotImplementedError


class PolicyUpdate(StatefulPart):
    """Trains actor and critic on one rollout."""

    socket: ClassVar[str] = "policy_update"
    allows_shared_torso: ClassVar[bool] = True  # may the critic share the actor's torso?
    adds_head_penalty: ClassVar[bool] = True  # is the head's L2 term part of the loss?
    weighs_critic_loss: ClassVar[bool] = True  # is the critic's loss weighed by base.value_coefficient?
    has_own_critic: ClassVar[bool] = False  # does it bring a critic of its own in place of v(s)?

    @property
    def unroll_length(self) -> int:
        """Return U: samples are unrolls, U consecutive steps of one environment each; 0: single steps."""
        return 0

    @property
    def follows_progress(self) -> bool:
        """Does the update use `UpdateContext.progress`? Then a run depends on its length from step one on."""
        return False

    def init_critic(self, key: Key, spec: Spec, base: Base) -> tuple[PyTree, PyTree]:
        """Return the critic's parameters and the part's initial state. Called only if `has_own_critic`."""
        raise NotImplementedError

    def values(self, context: UpdateContext, networks: PyTree, obs: Array, key: Key) -> Float[Array, " N"]:
        """Return v(s) of observations [N, S] under the current policy. Called only if `has_own_critic`."""
        raise NotImplementedError

    def optimised_params(self, networks: PyTree) -> dict[str, PyTree]:
        """Return the parameters that each optimiser moves, by the optimiser's name in `State.optimisers`."""
        raise NotImplementedError

    def improve(
        self, context: UpdateContext, state: State, samples: RolloutSamples, transitions: Transition
    ) -> tuple[State, Metrics]:
        """Return the state after training on the samples, and metrics. Called once per update.

        `transitions`: the rollout's steps in the same order, neither normalised nor scaled, with flags as
        floats; for critics that learn from what followed.
        """
        raise NotImplementedError


class Scaling(StatefulPart):
    """Scales rewards before the estimator, or returns after it. This default scales neither."""

    socket: ClassVar[str] = "scaling"

    def scale_rewards(self, state: PyTree, base: Base, trajectory: Trajectory) -> tuple[Array, PyTree]:
        """Return the rewards [T, E] that the estimator sees, and the part's new state."""
        return trajectory.reward, state

    def apply(self, state: PyTree, reward: Array) -> Array:
        """Return rewards as the estimator sees them, by the statistics in `state`."""
        return reward

    def value_scale(self, state: PyTree) -> Array | None:
        """Return the factor from the critic's unit to returns; None: 1. The critic's targets are divided by
        it.
        """
        return None

    def update(self, state: PyTree, returns: Array, weight: Array | None) -> PyTree:
        """Return the part's state after the returns [T, E] of a rollout; `weight` as in `Trajectory`."""
        return state


class ActionRefiner(StatefulPart):
    """Changes the actions that a rollout executes. This default executes what the policy drew.

    The policy's update takes the executed actions as samples of the policy that collected them.

    Attributes:
        has_critics: the part may have critics of its own, with the widths `base.critic_hidden`.
    """

    socket: ClassVar[str] = "refiner"
    has_critics: ClassVar[bool] = True

    def init(self, key: Key, spec: Spec, base: Base) -> PyTree:
        """Return the part's initial state, with networks and optimiser states of its own; None: it keeps
        none.
        """
        return None

    def refine(self, state: PyTree, obs: Array, action: Array) -> Array:
        """Return the actions [E, A] to execute at normalised observations in place of those that
        were drawn.
        """
        return action

    def learn(
        self, state: PyTree, base: Base, rate: Scalar, samples: RolloutSamples, key: Key
    ) -> tuple[PyTree, Metrics]:
        """Return the part's state after training on one rollout, and metrics. Called once per update.

        Args:
            rate: learning rate of this update, after annealing.
        """
        return state, {}


@runtime_checkable
class Normaliser(Protocol):
    """Observation normalisation (`methods/normalise.py`). Its statistics do not move during a rollout.

    A part whose `changes_observations` is False, as that of the default, leaves observations as they are.
    """

    @property
    def name(self) -> str:
        """The part's name in a recipe and in `State.part_states`."""
        ...

    def init(self, key: Key, nets: Any, spec: Spec, base: Base | Any, actor: Any) -> PyTree:
        """Return the initial statistics; on-policy agents pass None for `nets` and `actor`."""
        ...

    def update_statistics(self, state: Any, obs: Array, weight: Array | None) -> PyTree:
        """Return the statistics after observations [N, S]; rows of weight 0 do not count."""
        ...

    def apply(self, state: Any, obs: Array) -> Array:
        """Return normalised observations [*b, S]."""
        ...
