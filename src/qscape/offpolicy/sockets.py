"""The interfaces: what a part of an off-policy agent may do, and what it is given to do it with.

A part is a frozen dataclass; its fields are its hyperparameters, its documentation and its flags. What
it learns lives in the state, as its `PartState`, and is moved by nobody but the trunk. A part receives
functions (`Context`), never networks, so it works with every representation. Each method here has a default
that does nothing and costs nothing.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.nets import Actor, Conditioning, Critic
from qscape.offpolicy.base import Base
from qscape.offpolicy.state import PartState, State
from qscape.ops.nearest import ActionTable
from qscape.types import Batch, Event, Key, Metrics, Part, Policy, QFn, Scalar, Spec

Net = TypeVar("Net", Actor, Critic)


class Nets(NamedTuple):
    """Builders of networks in the agent's architecture."""

    actor: Callable[..., Actor]  # (key, context=0)
    critic: Callable[..., Critic]  # (key, context=0)


class Context(NamedTuple):
    """All that a part receives. In TD7 the fixed view holds the frozen encoders."""

    policy: Policy  # online, on the fixed view
    policy_target: Policy  # target actor on the target view; the online policy where there is none
    q: QFn  # online critics, fixed view
    q_target: QFn  # target critics, target view
    policy_of: Callable[[PyTree], Policy]  # of other actors, e.g. a slow copy: as the maximiser makes one
    bind: Callable[..., Callable]  # (module, which="fixed") -> (obs[, action][, context]) -> Dist | [B]
    nets: Nets
    event: Event
    spec: Spec
    base: Base
    table: ActionTable | None = None  # the search in `spec.table`

    def snap(self, action: Array) -> Array:
        """The nearest action that there is: a row of the table, with the gradient straight through."""
        return action if self.table is None else self.table.snap(action)


@runtime_checkable
class Composition(Protocol):
    """An off-policy agent as `overrides`, `conflict` and `notes` see it: its settings and its parts."""

    @property
    def base(self) -> Base: ...
    @property
    def representation(self) -> "Representation": ...
    @property
    def policy_loss(self) -> "PolicyLoss": ...
    @property
    def selector(self) -> "ActionSelector": ...
    @property
    def normaliser(self) -> "Normaliser": ...


class StatefulPart(Part):
    """What every part with a place in the state has in common.

    Attributes:
        needs_actor: the part acts on an actor network, so it is refused beside a selector without one.
    """

    needs_actor: ClassVar[bool] = False

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """What the part carries at the start; `actor` is None for representation and maximiser."""
        return PartState()

    def learn(
        self, params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, PyTree]:
        """Loss of the part's own networks. Called once per update, only if `init` returned `params`.

        Returns:
            The loss, which is differentiated with respect to `params`; metrics; and the new `extra` state,
            which is `state.extra` where learning does not change it.
        """
        raise NotImplementedError(f"{self.name} has `params` but defines no loss for them")

    def learning_rates(self, base: Base) -> tuple[float, float]:
        """Adam's rates for `params` and `actor_params`."""
        return base.critic_learning_rate, base.actor_learning_rate


class Representation(StatefulPart):
    """What the networks see of observation and action, and how they are built on it.

    Attributes:
        has_smooth_critics: the part itself chooses activations that have second derivatives.
    """

    socket: ClassVar[str] = "representation"
    has_smooth_critics: ClassVar[bool] = False
    joint: ClassVar[float | None] = None  # weight β where the critic loss also moves `params`

    def view(self, state: PartState, which: str) -> PyTree:
        """The parameters to embed with: "online", "fixed" or "target"."""
        raise NotImplementedError

    def actor_inputs_at(self, view: PyTree, obs: Array) -> list[Array]:
        """Embeddings that the actor sees beside the observation."""
        raise NotImplementedError

    def critic_inputs_at(self, view: PyTree, obs: Array, action: Array) -> list[Array]:
        """Embeddings that critics see beside observation and action."""
        raise NotImplementedError

    def fit(self, view: PyTree, net: Net) -> Net:
        """The network as it is with this view, where one of its layers depends on it."""
        return net

    def actor(self, key: Key, base: Base, spec: Spec, conditioning: int = 0) -> Actor:
        """A fresh actor; `conditioning` is the width of a conditioning vector joined to its trunk's input."""
        raise NotImplementedError

    def critic(self, key: Key, base: Base, spec: Spec, conditioning: int = 0) -> Critic:
        """A fresh critic."""
        raise NotImplementedError

    def penalty(
        self, actor: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Added to the actor's loss, where actors (one, or a list) are to keep something small."""
        return None

    def post_update(self, state: PartState, batch: Batch, event: Event) -> PartState:
        """The part's state after an update of all networks: copies, statistics of the update's batch."""
        return state


class BootstrapValue(StatefulPart):
    """How the values at the next state become one bootstrap value."""

    socket: ClassVar[str] = "bootstrap"

    def value(self, state: PartState, qs: list[Array], bonus: Array | None) -> Array:
        """Value of the next state [B] from the target critics' heads and an entropy bonus."""
        raise NotImplementedError

    def post_update(self, state: PartState, target_values: Float[Array, " B"], event: Event) -> PartState:
        """The part's state after an update; `target_values` are the y [B] that the critics regressed to."""
        return state


class TargetUpdate(StatefulPart):
    """When and how target networks follow."""

    socket: ClassVar[str] = "target_update"

    def target_update(self, online: PyTree, target: PyTree, event: Event) -> PyTree:
        """The target networks after this update."""
        raise NotImplementedError


class PolicyLoss(StatefulPart):
    """How a policy gets better from values.

    Attributes:
        climbs_q: the loss follows ∂Q/∂a, so that it can be given another value function to climb.
        needs_single_policy: the loss trains one policy, and refuses a selector that does not act by one.
        maximises_entropy: the loss keeps the policy stochastic, so that it explores without added noise.
    """

    socket: ClassVar[str] = "policy_loss"
    climbs_q: ClassVar[bool] = True
    needs_single_policy: ClassVar[bool] = False
    maximises_entropy: ClassVar[bool] = False

    def loss(
        self,
        policy: Policy,
        q: QFn,
        actor_params: PyTree,
        state: PartState,
        context: Context,
        batch: Batch,
        key: Key,
    ) -> tuple[Scalar, Metrics]:
        """Loss of one climb; its gradient moves (actor, tuned)."""
        raise NotImplementedError

    def target_values(
        self, policy: Policy, state: PartState, context: Context, next_obs: Array, key: Key
    ) -> tuple[list[Array], Array | None]:
        """Target critics' heads at the next state and a bonus (soft agents: -α log π)."""
        raise NotImplementedError

    def post_update(self, state: PartState, actor: PyTree, event: Event) -> PartState:
        """The part's state after an update of all networks; `actor` is the actor after its step."""
        return state


class ActionSelector(StatefulPart):
    """Which action is taken: one actor's, or the best of many proposals.

    Attributes:
        has_actor: the selector trains at least one actor network.
        has_single_policy: the selector executes the action of one actor, and does not choose among several.
        climbs_surrogates: actors climb other value functions than Q, which the policy loss must support.
    """

    socket: ClassVar[str] = "selector"
    has_actor: ClassVar[bool] = True
    has_single_policy: ClassVar[bool] = True
    climbs_surrogates: ClassVar[bool] = False

    def actors(self, key: Key, nets: Nets, spec: Spec) -> PyTree:
        """What the actor step moves: one actor, a list of them, or None."""
        raise NotImplementedError

    def policy(self, actor: PyTree, state: PartState, context: Context) -> Policy:
        """The one policy that everybody else sees."""
        raise NotImplementedError

    def proposals(self, actor: PyTree, state: PartState, context: Context, obs: Array) -> Array:
        """The L actions [B, L, A] it picks from at `obs` [B, S], without noise; for the landscape to show."""
        return self.policy(actor, state, context)(obs).mode()[..., None, :]

    def actor_objectives(
        self, actor: PyTree, state: PartState, context: Context, batch: Batch
    ) -> list[tuple[Policy, QFn]]:
        """What is improved on what: each pair goes to `Improvement.loss`."""
        raise NotImplementedError

    def target_policy(
        self,
        actor: PyTree,
        actor_target: PyTree,
        state: PartState,
        context: Context,
        next_obs: Array,
        key: Key,
    ) -> Policy:
        """The policy at the next state, smoothed before it picks (SAVO: after)."""
        raise NotImplementedError

    def act(
        self,
        actor: PyTree,
        state: PartState,
        context: Context,
        noise_state: PyTree,
        obs: Array,
        first: Array,
        key: Key,
        mode: str,
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """Actions [E, A], emitted columns, and what acting remembers per environment (noise).

        Args:
            obs: `[E, S]` normalised observations. `first` `[E]`: does an episode start here?
            mode: "evaluate" (the mode, no noise), "explore" or "warm_up" (uniform).
        """
        raise NotImplementedError

    def init_noise(self, spec: Spec, envs: int, base: Base | None = None) -> PyTree:
        """What acting remembers at the start; None where it remembers nothing. Without a base: what it takes
        to evaluate."""
        return None

    def post_update(self, state: PartState, actor: PyTree, event: Event) -> PartState:
        """The part's state after an update of all networks; `actor` is the actors after their step."""
        return state


class Regulariser(StatefulPart):
    """Terms added to the losses of critics or actor. None means: no such term."""

    socket: ClassVar[str] = "regulariser"

    def critic(
        self, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Added to the critics' loss; the gradient reaches only the critics."""
        return None

    def actor(
        self, actor_params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Added to the actor's loss; the gradient reaches (actor, tuned)."""
        return None

    def post_update(self, state: PartState, actor: PyTree, event: Event) -> PartState:
        """The part's state after an update of all networks; `actor` is the actor after its step."""
        return state


class StepEnd(NamedTuple):
    """One step of the (vector) environment is over; `steps` of its rows were real ones."""

    steps: int


class EpisodeEnd(NamedTuple):
    """An episode of one environment is over; `update` updates were made so far."""

    length: int
    ret: float
    update: int


class Schedule(StatefulPart):
    """Host side: when updates happen and when the acting state is kept. Plain numbers only."""

    socket: ClassVar[str] = "schedule"
    keeps: ClassVar[bool] = False  # does evaluation use the kept acting state?

    def start(self) -> dict[str, Any]:
        """The schedule's own numbers at the start (JSON-able)."""
        raise NotImplementedError

    def due(
        self, state: dict[str, Any], event: StepEnd | EpisodeEnd, base: Base
    ) -> tuple[dict[str, Any], int, bool]:
        """New numbers, updates to run now, and whether to keep the acting state before them."""
        raise NotImplementedError


class Reset(StatefulPart):
    """When networks begin anew."""

    socket: ClassVar[str] = "reset"

    def reset(self, state: State, fresh: Callable[[], State], event: Event, base: Base) -> State:
        """The state after an update. `fresh` makes one as at the start of a run, which goes on counting."""
        return state


class Normaliser(StatefulPart):
    """Observation normalisation. Replay stays raw; a batch is normalised before any part sees it.

    Attributes:
        changes_observations: False only for the default, which returns observations as they are.
    """

    socket: ClassVar[str] = "normaliser"
    changes_observations: ClassVar[bool] = True

    def see(self, state: PartState, obs: Array) -> PartState:
        """Fold in the observations `[E, S]` that are acted on."""
        return state

    def apply(self, state: PartState, obs: Array) -> Array:
        """The observation as networks see it."""
        return obs


def bind(representation: Representation, view: PyTree, module: Actor | Critic) -> Callable:
    """A network as a function of raw (normalised) observation and action."""
    if isinstance(module, Actor):

        def policy(obs: Array, conditioning: Conditioning | None = None):
            return representation.fit(view, module)(
                obs, representation.actor_inputs_at(view, obs), conditioning
            )

        return policy

    def value(obs: Array, action: Array, conditioning: Conditioning | None = None) -> Array:
        return bind_critics(representation, view, [module], conditioning)(obs, action)[0]

    return value


def bind_critics(
    representation: Representation,
    view: PyTree,
    critics: list[Critic],
    conditioning: Conditioning | None = None,
) -> QFn:
    """Critics as one function; the embeddings are made once and shared by all heads."""

    def q(obs: Array, action: Array) -> list[Array]:
        embeddings = representation.critic_inputs_at(view, obs, action)
        return [representation.fit(view, critic)(obs, action, embeddings, conditioning) for critic in critics]

    return q


def objective(base: Base, heads: list[Array]) -> Array:
    """What the actor climbs, of the critics' heads: the first, the least or the mean."""
    if base.actor_objective == "first" or len(heads) == 1:
        return heads[0]
    stacked = jnp.stack(heads, -1)
    return stacked.min(-1) if base.actor_objective == "min" else stacked.mean(-1)
