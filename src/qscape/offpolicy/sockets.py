"""The interfaces of an off-policy agent's parts, and the context that parts compute with.

A part is a frozen dataclass. Its fields are its hyperparameters, its flags and its documentation. Its arrays
lie in the agent's state as its `PartState`; only the update (`offpolicy/update.py`) changes them. A part
receives networks as functions (`Context`), so it works with every representation. Methods that a part need
not define have a default that does nothing and adds nothing to the compiled program.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.nets import Actor, Conditioning, Critic
from qscape.offpolicy.base import Base
from qscape.offpolicy.state import PartState, State
from qscape.ops.nearest import ActionTable
from qscape.types import Batch, Event, Key, Metrics, Part, Policy, QFn, Scalar, Spec

Net = TypeVar("Net", Actor, Critic)
Version = Literal["online", "fixed", "target"]


class Nets(NamedTuple):
    """Builders of networks in the agent's architecture.

    Attributes:
        actor: `(key, conditioning=0)` returns a new actor.
        critic: `(key, conditioning=0)` returns a new critic. `conditioning` is the width of a further input.
    """

    actor: Callable[..., Actor]
    critic: Callable[..., Critic]


class Context(NamedTuple):
    """The agent at one stage of an update, or while it acts: its networks as functions, and its settings.

    Representations keep up to three versions of their encoder. "fixed" feeds the online networks and "target"
    the target networks; with a representation without parameters all versions are the same.

    Attributes:
        policy: the online policy, obs [..., S] -> distribution.
        policy_target: the target policy; the online policy if the base keeps no target actor.
        q: the online critics, (obs [..., S], action [..., A]) -> a list of values [...], one per critic.
        q_target: the target critics in the same form.
        policy_of: the policy of other actor parameters, such as a slow copy.
        bind: `(module, which="fixed")` makes a function of an actor or critic module:
            `(obs[, action][, conditioning])` -> distribution, or values [...].
        nets: builders of networks.
        event: the counters of this update.
        spec: the task.
        base: the agent's settings.
        table: the search in `spec.table`; None if actions are continuous.
    """

    policy: Policy
    policy_target: Policy
    q: QFn
    q_target: QFn
    policy_of: Callable[[PyTree], Policy]
    bind: Callable[..., Callable]
    nets: Nets
    event: Event
    spec: Spec
    base: Base
    table: ActionTable | None = None

    def snap(self, action: Array) -> Array:
        """Returns the nearest row of the action table, with the gradient passed straight through.

        Without a table it returns the action itself.
        """
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
    """A part that may have arrays in the agent's state.

    Attributes:
        needs_actor: the part acts on an actor network, so it is refused beside a selector without one.
    """

    needs_actor: ClassVar[bool] = False

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """Makes the part's arrays. Called when a state is made, and again when networks are reset.

        Args:
            actor: the new actor, to start slow copies from; None for the representation and the selector,
                which are initialised before there is one, and for agents without an actor.
        """
        return PartState()

    def learn(
        self, params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, PyTree]:
        """Computes the loss of the part's own networks.

        Called once per update, only if `init` returned `params`, and only for the representation, the policy
        loss (both before the critics' step) and the selector (after it).

        Args:
            params: the part's `params`, which the loss is differentiated with respect to.
            state: the part's state before the step.
            context: the other networks; no gradient reaches them.
            batch: B normalised transitions.
            key: a key of this part, method and update.

        Returns:
            The loss, metrics, and the next `extra` state: `state.extra` if learning does not change it.
        """
        raise NotImplementedError(f"{self.name} has `params` but defines no loss for them")

    def learning_rates(self, base: Base) -> tuple[float, float]:
        """Returns Adam's learning rates of `params` and of `actor_params`."""
        return base.critic_learning_rate, base.actor_learning_rate


class Representation(StatefulPart):
    """Builds actor and critics, and embeds what they see of observation and action.

    Attributes:
        joint_loss_weight: weight β of the part's own loss in the critics' loss, if the critics' step trains
            the encoder too; None: the encoder has a step of its own.
        has_smooth_critics: the part itself chooses activations that have second derivatives.
        splits_observations: actors may see less of an observation than critics, because no network embeds it
            for both.
    """

    socket: ClassVar[str] = "representation"
    joint_loss_weight: ClassVar[float | None] = None
    has_smooth_critics: ClassVar[bool] = False
    splits_observations: ClassVar[bool] = False

    def encoder_params(self, state: PartState, which: Version) -> PyTree:
        """Returns the encoder that embeddings are computed with.

        Args:
            which: "online", the encoder that learns; "fixed", the one that feeds the online actor and
                critics; "target", the one that feeds the target networks.
        """
        raise NotImplementedError

    def actor_embeddings(self, encoder: PyTree, obs: Array) -> list[Array]:
        """Embeds observations [..., S] for the actor; it sees these beside the observation."""
        raise NotImplementedError

    def critic_embeddings(self, encoder: PyTree, obs: Array, action: Array) -> list[Array]:
        """Embeds observations [..., S] and actions [..., A] for critics, which see these beside both."""
        raise NotImplementedError

    def adapt_network(self, encoder: PyTree, net: Net) -> Net:
        """Returns the network with layers adapted to the encoder, if some layer depends on it."""
        return net

    def actor(self, key: Key, base: Base, spec: Spec, conditioning: int = 0) -> Actor:
        """Makes a new actor; `conditioning` is the width of a vector that joins the input of its torso."""
        raise NotImplementedError

    def critic(self, key: Key, base: Base, spec: Spec, conditioning: int = 0) -> Critic:
        """Makes a new critic; `conditioning` is as for the actor."""
        raise NotImplementedError

    def penalty(
        self, actor: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Computes a term of the actor's loss that depends on the actor's own layers.

        Args:
            actor: one actor, or a list of actors.

        Returns:
            The term and its metrics; None if there is no such term.
        """
        return None

    def post_update(self, state: PartState, batch: Batch, event: Event) -> PartState:
        """Returns the part's state after an update of all networks, e.g. with copies made at a sync.

        Args:
            batch: the B normalised transitions of this update.
        """
        return state


class BootstrapValue(StatefulPart):
    """Reduces the target critics' heads at the next state to one bootstrap value."""

    socket: ClassVar[str] = "bootstrap"

    def value(self, state: PartState, qs: list[Array], bonus: Array | None) -> Array:
        """Computes the value of the next state.

        Args:
            qs: one value [B] for each target critic.
            bonus: the entropy bonus [B] that a soft agent adds; None without one.

        Returns:
            V [B] of the target y = r + γ (1 - terminated) V.
        """
        raise NotImplementedError

    def post_update(self, state: PartState, target_values: Float[Array, " B"], event: Event) -> PartState:
        """Returns the part's state after an update; `target_values` are the targets y [B] of the critics."""
        return state


class TargetUpdate(StatefulPart):
    """Moves the target networks."""

    socket: ClassVar[str] = "target_update"

    def target_update(self, online: PyTree, target: PyTree, event: Event) -> PyTree:
        """Returns the target networks after this update.

        Args:
            online: the tuple (actor, critics) after their steps; the actor is None without a target actor.
            target: the target networks in the same form.
        """
        raise NotImplementedError


class PolicyLoss(StatefulPart):
    """Improves a policy by values, and says which values of the next state the critics learn from.

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
        """Computes the loss of one actor. Called at every actor update, once per objective of the selector.

        Args:
            policy: the policy to improve; the gradient reaches its actor.
            q: the value functions that it climbs, as a list of heads [B].
            actor_params: the part's `actor_params`; only the first objective's gradient moves them.
            state: the part's state.

        Returns:
            The loss and its metrics.
        """
        raise NotImplementedError

    def target_values(
        self, policy: Policy, state: PartState, context: Context, next_obs: Array, key: Key
    ) -> tuple[list[Array], Array | None]:
        """Computes the values of the next state, for the critics' target.

        Args:
            policy: the selector's target policy.
            next_obs: [B, S].

        Returns:
            One value [B] per target critic, by default of the policy's mode, and the entropy bonus
            -α log π [B] of soft agents or None.
        """
        return context.q_target(next_obs, policy(next_obs).mode()), None

    def post_update(self, state: PartState, actor: PyTree, event: Event) -> PartState:
        """Returns the part's state after an update of all networks; `actor` is the actor after its step."""
        return state


class ActionSelector(StatefulPart):
    """Selects actions: one actor's, or the best of several proposals.

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
        """Makes what the actor step moves: one actor, a list of actors, or None."""
        raise NotImplementedError

    def policy(self, actor: PyTree, state: PartState, context: Context) -> Policy:
        """Returns the one policy of these actors that all other parts see as `context.policy`.

        It is called while the context is made: `context.policy`, `policy_target` and `policy_of` are not
        available to it.
        """
        raise NotImplementedError

    def proposals(self, actor: PyTree, state: PartState, context: Context, obs: Array) -> Array:
        """Returns the L actions [B, L, A] to choose from at `obs` [B, S], without noise, for landscapes."""
        return self.policy(actor, state, context)(obs).mode()[..., None, :]

    def actor_objectives(
        self, actor: PyTree, state: PartState, context: Context, batch: Batch
    ) -> list[tuple[Policy, QFn]]:
        """Returns every actor's policy and the value function that `PolicyLoss.loss` improves it by."""
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
        """Returns the policy whose action at the next state the critics' target values.

        Target smoothing is applied here if the base asks for it.

        Args:
            actor_target: the target actors; None if the base keeps none.
            next_obs: [B, S].
        """
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
        """Selects the actions of E parallel environments.

        Args:
            noise_state: the state of the exploration noise, or None.
            obs: normalised observations [E, S].
            first: [E], true where an episode starts at this observation.
            mode: "evaluate" (the policy's mode, no noise), "explore" or "warm_up" (uniform); static.

        Returns:
            Actions [E, A] in [-1, 1], further replay columns by name [E, ...], and the next noise state.
        """
        raise NotImplementedError

    def init_noise(self, spec: Spec, envs: int, base: Base | None = None) -> PyTree:
        """Returns the initial state of the exploration noise of E environments, or None if it has no state.

        Args:
            base: the agent's settings; None for an agent that only evaluates, whose noise has no state.
        """
        return None

    def post_update(self, state: PartState, actor: PyTree, event: Event) -> PartState:
        """Returns the part's state after an update of all networks; `actor`: the actors after their step."""
        return state


class Regulariser(StatefulPart):
    """Adds terms to the losses of critics or actor. An agent may have any number of regularisers."""

    socket: ClassVar[str] = "regulariser"

    def critic(
        self, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Computes a term of the critics' loss. Called at every update.

        Args:
            context: its `q` are the critics that are being trained; the gradient reaches only them.

        Returns:
            The term and its metrics; None if there is no such term.
        """
        return None

    def actor(
        self, actor_params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Computes a term of the actor's loss. Called at every actor update.

        Args:
            actor_params: the part's `actor_params`; the gradient moves them together with the actor.

        Returns:
            The term and its metrics; None if there is no such term.
        """
        return None

    def post_update(self, state: PartState, actor: PyTree, event: Event) -> PartState:
        """Returns the part's state after an update of all networks; `actor` is the actor after its step."""
        return state


class StepEnd(NamedTuple):
    """A step of the vector environment has ended; `steps` of its E rows were steps, the others resets."""

    steps: int


class EpisodeEnd(NamedTuple):
    """An episode of one environment has ended.

    Attributes:
        length: steps of the episode.
        ret: its undiscounted return.
        update: number of updates made so far, with those that are due before the next action.
    """

    length: int
    ret: float
    update: int


class Schedule(StatefulPart):
    """Decides when updates run and when the current policy is kept. Runs on the host, with plain numbers.

    Attributes:
        keeps_best_policy: evaluation and export use the kept policy, not the current one.
    """

    socket: ClassVar[str] = "schedule"
    keeps_best_policy: ClassVar[bool] = False

    def start(self) -> dict[str, Any]:
        """Returns the schedule's counters at the start of a run. They must be JSON-able: saves hold them."""
        raise NotImplementedError

    def updates_due(
        self, state: dict[str, Any], event: StepEnd | EpisodeEnd, base: Base
    ) -> tuple[dict[str, Any], int, bool]:
        """Called after every step and at the end of every episode.

        Returns:
            The next counters, the number of updates to run now, and whether to keep the acting state before
            they run.
        """
        raise NotImplementedError


class Reset(StatefulPart):
    """Re-initialises networks during a run."""

    socket: ClassVar[str] = "reset"

    def reset(self, state: State, make_initial_state: Callable[[], State], event: Event, base: Base) -> State:
        """Returns the state after an update, with networks re-initialised if a reset is due.

        Args:
            make_initial_state: makes a state with new networks and optimisers; counters and the normaliser's
                statistics are those of `state`.
        """
        return state


class Normaliser(StatefulPart):
    """Normalises observations. Replay stays raw; a batch is normalised before any part sees it.

    Attributes:
        changes_observations: False only for the default, which returns observations as they are.
    """

    socket: ClassVar[str] = "normaliser"
    changes_observations: ClassVar[bool] = True

    def update_statistics(self, state: PartState, obs: Array) -> PartState:
        """Folds in the raw observations [E, S] of one step. Called before the agent acts on them."""
        return state

    def apply(self, state: PartState, obs: Array) -> Array:
        """Returns normalised observations [..., S]."""
        return obs


def bind_network(representation: Representation, encoder: PyTree, module: Actor | Critic) -> Callable:
    """Returns an actor or critic module as a function of normalised observations and actions.

    Returns:
        For an actor `(obs, conditioning=None)` -> distribution, for a critic
        `(obs, action, conditioning=None)` -> values [...].
    """
    if isinstance(module, Actor):

        def policy(obs: Array, conditioning: Conditioning | None = None):
            return representation.adapt_network(encoder, module)(
                obs, representation.actor_embeddings(encoder, obs), conditioning
            )

        return policy

    def value(obs: Array, action: Array, conditioning: Conditioning | None = None) -> Array:
        return bind_critics(representation, encoder, [module], conditioning)(obs, action)[0]

    return value


def bind_critics(
    representation: Representation,
    encoder: PyTree,
    critics: list[Critic],
    conditioning: Conditioning | None = None,
) -> QFn:
    """Returns critics as one function; all of them share embeddings that are computed once."""

    def q(obs: Array, action: Array) -> list[Array]:
        embeddings = representation.critic_embeddings(encoder, obs, action)
        return [
            representation.adapt_network(encoder, critic)(obs, action, embeddings, conditioning)
            for critic in critics
        ]

    return q


def combine_heads(base: Base, heads: list[Array]) -> Array:
    """Returns the value [...] that the actor climbs: the first head, the minimum or the mean of all heads."""
    if base.actor_objective == "first" or len(heads) == 1:
        return heads[0]
    stacked = jnp.stack(heads, -1)
    return stacked.min(-1) if base.actor_objective == "min" else stacked.mean(-1)
