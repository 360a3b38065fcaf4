"""The interfaces of an off-policy agent's parts, and the context that parts compute with.

A part is a frozen dataclass. Its fields are its hyperparameters, its flags and its documentation. Its arrays
lie in the agent's state as its `PartState`; only the update (`offpolicy/update.py`) changes them. A part
receives networks as functions (`Context`), so it works with every representation. Methods that a part need
not define have a default that does nothing and adds nothing to the compiled program.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from qscape.nets import Actor, Body, Conditioning, Critic, Features, InputStage
from qscape.nets.batch_norm import has_statistics
from qscape.nets.heads import Deterministic, Gaussian, Head, Projected
from qscape.nets.layers import Linear
from qscape.offpolicy.base import Base
from qscape.offpolicy.state import PartState, State
from qscape.ops.nearest import ActionTable
from qscape.ops.td import td_target
from qscape.types import Batch, Event, Key, Metrics, Part, Policy, QFn, Scalar, Spec, split_key

Net = TypeVar("Net", Actor, Critic)
Version = Literal["online", "fixed", "target"]
Role = Literal["actor", "critic"]
Output = Literal["critic", "mean", "log_std"]
# Observations [*b, S] -> for each critic its points [*b, N, A] and their heights [*b, N].
PointsFn = Callable[[Array], list[tuple[Array, Array]]]


class Nets(NamedTuple):
    """Builders of networks.

    With `conditioning`, the width of a further input, possibly 0, they build for a part's own use: multilayer
    perceptrons with one output, whatever the agent's `network` and `value` are.

    Attributes:
        actor: `(key, conditioning=None)` returns a new actor.
        critic: `(key, conditioning=None)` returns a new critic.
        torso: `(key, size)` returns hidden layers like the actor's, on `size` numbers.
    """

    actor: Callable[..., Actor]
    critic: Callable[..., Critic]
    torso: Callable[[Key, int], Features]


# typing.Self, which beartype does not check in functions
NetworksT = TypeVar("NetworksT", bound="BoundNetworks")


@dataclasses.dataclass(frozen=True, eq=False)
class BoundNetworks:
    """The agent's networks as functions, and its settings: what a policy is made of.

    Representations keep up to three versions of their encoder. "fixed" feeds the online networks and "target"
    the target networks; with a representation without parameters all versions are the same.

    Attributes:
        q: the online critics, (obs [..., S], action [..., A]) -> a list of values [...], one per critic.
        q_target: the target critics in the same form; while the agent acts, the online critics.
        levels: the online critics as m numbers each, whose mean is the value: (obs, action) -> a list of
            [..., m], one per critic; see `Value.levels`.
        points: the points of the online critics and their heights, obs [..., S] -> a list of pairs, one per
            critic; see `Representation.propose`.
        points_target: those of the target critics; while the agent acts, of the online critics.
        bind: `(module, which="fixed")` makes a function of an actor or critic module:
            `(obs[, action][, conditioning])` -> distribution, or values [...]. While actors improve, those
            with batch normalisation normalise by the batch, but not with `settled=True`.
        nets: builders of networks.
        event: the counters of this update.
        spec: the task.
        base: the agent's settings.
        table: the search in `spec.table`; None if actions are continuous.
    """

    q: QFn
    q_target: QFn
    levels: QFn
    points: PointsFn
    points_target: PointsFn
    bind: Callable[..., Callable]
    nets: Nets
    event: Event
    spec: Spec
    base: Base
    table: ActionTable | None

    def _replace(self: NetworksT, **changes: Any) -> NetworksT:
        """Return the same with other fields, as a NamedTuple does."""
        return dataclasses.replace(self, **changes)

    @property
    def settled(self: NetworksT) -> NetworksT:
        """The same, but actors with batch normalisation use running statistics also while they improve."""
        return self._replace(bind=partial(self.bind, settled=True))

    def snap(self, action: Array, obs: Array) -> Array:
        """Return the nearest valid row of the action table, with the gradient passed straight through.

        Without a table it returns the action itself.

        Args:
            action: [*b, A].
            obs: observations [*c, S] of the states, which say which rows are valid; *c ends *b.
        """
        return action if self.table is None else self.table.snap(action, self.spec.mask_words(obs))


@dataclasses.dataclass(frozen=True, eq=False)
class Context(BoundNetworks):
    """The agent at one stage of an update, or while it acts: its networks, and the policies made of them.

    Attributes:
        policy: the online policy, obs [..., S] -> distribution.
        policy_target: the target policy; the online policy if the base keeps no target actor, and while the
            agent acts.
        policy_of: the policy of other actor parameters, such as a slow copy.
    """

    policy: Policy
    policy_target: Policy
    policy_of: Callable[[PyTree], Policy]


class ActingStep(NamedTuple):
    """What the actions of E environments at one step depend on, beside the networks.

    Attributes:
        observation: normalised, [E, S].
        first: True where an episode starts at this observation.
        noise_state: the state of the exploration noise, or None.
        key: the key of this step.
        mode: "evaluate" (the policy's mode, no noise), "explore" or "warm_up" (uniform actions); static.
    """

    observation: Float[Array, "E S"]
    first: Bool[Array, " E"]
    noise_state: PyTree
    key: Key
    mode: str


@runtime_checkable
class Composition(Protocol):
    """An off-policy agent as `overrides`, `conflict` and `notes` see it: its settings and its parts."""

    @property
    def base(self) -> Base: ...
    @property
    def representation(self) -> "Representation": ...
    @property
    def network(self) -> "Network": ...
    @property
    def value(self) -> "Value": ...
    @property
    def bootstrap(self) -> "BootstrapValue": ...
    @property
    def target_update(self) -> "TargetUpdate": ...
    @property
    def policy_loss(self) -> "PolicyLoss": ...
    @property
    def selector(self) -> "ActionSelector": ...
    @property
    def regularisers(self) -> "tuple[Regulariser, ...]": ...
    @property
    def normaliser(self) -> "Normaliser": ...


class StatefulPart(Part):
    """A part that may have arrays in the agent's state.

    Attributes:
        needs_actor: the part acts on an actor network, so it is refused beside a selector without one.
        takes_tables: the part works where actions are rows of an action table.
    """

    needs_actor: ClassVar[bool] = False
    takes_tables: ClassVar[bool] = True

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """Make the part's arrays. Called when a state is made, and again when networks are reset.

        Args:
            actor: the new actor, to start slow copies from; None for the representation and the selector,
                and for agents without an actor.
        """
        return PartState()

    def learn(
        self, params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, PyTree]:
        """Compute the loss of the part's own networks.

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
        """Return Adam's learning rates of `params` and of `actor_params`."""
        return base.critic_learning_rate, base.actor_learning_rate

    def optimiser_options(self, base: Base) -> Mapping[str, Any]:
        """Return further arguments of `Base.optimiser` for `params`, such as `b1` or `gradient_clip`."""
        return {}

    def actor_optimiser_options(self, base: Base) -> Mapping[str, Any]:
        """Return further arguments of `Base.optimiser` for `actor_params`."""
        return {}


class Network(StatefulPart):
    """Builds the hidden layers of actor and critics, and their output layers.

    Attributes:
        trains_on_joint_batch: the critics have batch normalisation. In the critics' step they see the rows
            (s, a) and (s', a') as one batch.
        refreshes_actor: when the running statistics of an actor with batch normalisation move: with each step
            of the actor, or with every update.
        actor_rows: which observations an actor with batch normalisation is normalised by while it improves:
            s, or as the critics by s and s' together.
        keeps_target_critics: False: there are no target critics, and critics value the next state themselves.
        has_plain_layers: the hidden layers are those that the base describes, and nothing else.
        drops_units: the critics have dropout, which is on in their loss, in the target critics and where the
            actor climbs the critics; it is off for everybody else.
        curves_critics: the critics have second derivatives whatever their activation is.
    """

    socket: ClassVar[str] = "network"
    trains_on_joint_batch: ClassVar[bool] = False
    refreshes_actor: ClassVar[Literal["actor", "always"]] = "actor"
    actor_rows: ClassVar[Literal["now", "both"]] = "now"
    keeps_target_critics: ClassVar[bool] = True
    has_plain_layers: ClassVar[bool] = False
    drops_units: ClassVar[bool] = False
    curves_critics: ClassVar[bool] = False

    @property
    def has_linear_outputs(self) -> bool:
        """Whether its output layers are single linear layers with free weights."""
        return True

    def torso(self, key: Key, size: int, role: Role, base: Base) -> Features:
        """Make the hidden layers.

        Args:
            size: length of their input.
            role: "actor" or "critic"; `base.actor_hidden` or `base.critic_hidden` are their widths.

        Returns:
            Hidden layers; their features are as long as the last width.
        """
        raise NotImplementedError

    def notes(self, agent: Composition) -> list[str]:
        """Say which layer options that the user set are for plain layers only."""
        options, usual = ("actor_norm", "critic_norm", "init", "actor_output_std"), Base()
        moved = [name for name in options if getattr(agent.base, name) != getattr(usual, name)]
        return [f"{self.name} makes layers of its own, without base.{name}" for name in moved]

    def output(self, key: Key, size: int, outputs: int, role: Output, base: Base) -> Linear:
        """Make an output layer on `size` features: of a critic, or for "mean" or "log_std" of an actor."""
        return eqx.nn.Linear(size, outputs, key=key)


class Value(StatefulPart):
    """What a critic computes, how that becomes the value Q, and the loss that trains it.

    Everything but the critics' own loss and target sees Q only.

    Attributes:
        learns_from_values: a target is a number, so that critics can learn from values that no critic
            computed, such as V of implicit Q-learning.
        uses_critic_loss: its loss is the one that `base.critic_loss` names.
        curves_critics: Q has second derivatives whatever the critics' activation is.
    """

    socket: ClassVar[str] = "value"
    learns_from_values: ClassVar[bool] = True
    uses_critic_loss: ClassVar[bool] = False
    curves_critics: ClassVar[bool] = False

    def notes(self, agent: Composition) -> list[str]:
        if self.uses_critic_loss or agent.base.critic_loss == Base().critic_loss:
            return []
        return [f"{self.name} has a loss of its own: base.critic_loss = {agent.base.critic_loss} is not used"]

    @property
    def outputs(self) -> int:
        """n, the number of outputs of a critic."""
        return 1

    def read(self, raw: Float[Array, "*b n"]) -> Float[Array, "*b"]:
        """Return Q of the n outputs."""
        raise NotImplementedError

    def levels(self, raw: Float[Array, "*b n"]) -> Float[Array, "*b m"]:
        """Return m numbers whose mean is Q, to compare critics level by level; by default Q alone."""
        return self.read(raw)[..., None]

    def target(
        self,
        raw: Float[Array, "B J n"],
        rule: "BootstrapRule",
        bonus: Float[Array, " B"] | None,
        batch: Batch,
    ) -> PyTree:
        """Compute what the critics learn from the next state. Its gradient is stopped by the caller.

        Args:
            raw: outputs of the J target critics at the next state and action.
            rule: how the target critics together value the next state.
            bonus: the entropy bonus; None without one.
            batch: the transitions.

        Returns:
            The target in the form that `loss` and `target_mean` take; by default numbers y [B, K].
        """
        value = self.next_values(raw, rule)
        of_rows = (slice(None), *[None] * (value.ndim - 1))
        value = value if bonus is None else value + bonus[of_rows]
        reward, terminated, discount = (
            jnp.broadcast_to(x, value.shape[:1])[of_rows]
            for x in (batch.reward, batch.terminated, batch.discount)
        )
        return td_target(reward, terminated, discount, value)

    def next_values(self, raw: Float[Array, "B J n"], rule: "BootstrapRule") -> Float[Array, "B K *m"]:
        """Return the values of the next state that `target` moves by bonus, discount and reward."""
        return rule.value(self.read(raw))

    def target_mean(self, target: PyTree) -> Float[Array, "B K"]:
        """Return the number that a target stands for."""
        return target

    def loss(self, raw: Float[Array, "B J n"], target: PyTree, base: Base) -> tuple[Scalar, Metrics]:
        """Compute the critics' loss, summed over critics, and metrics of it.

        Args:
            raw: outputs of the critics at the batch; the gradient reaches them.
            target: what `target` returned.
        """
        raise NotImplementedError


class Architecture(NamedTuple):
    """What networks of an agent are made of; representations build actor and critics with it.

    Attributes:
        base: the settings.
        network: hidden layers and output layers.
        value: what a critic computes.
    """

    base: Base
    network: Network
    value: Value

    def head(self, key: Key, spec: Spec) -> Head:
        """Make the action head that `base.head` names, behind a linear projection if the base has one."""
        base, width = self.base, self.base.actor_hidden[-1]
        projection = None
        if base.actor_projection:
            k_linear, key = jax.random.split(key)
            projection = eqx.nn.Linear(width, width, key=k_linear)

        def output(key: Key, role: Output) -> Linear:
            return self.network.output(key, width, spec.action_size, role, base)

        if base.head == "deterministic":
            head = Deterministic(output(key, "mean"))
        else:
            k_mean, k_std = jax.random.split(key)
            bounds = base.log_std_bound, base.log_std_min, base.log_std_max
            head = Gaussian(output(k_mean, "mean"), output(k_std, "log_std"), *bounds)
        return head if projection is None else Projected(projection, head)

    def actor(self, stage: InputStage, size: int, k_torso: Key, k_head: Key, spec: Spec) -> Actor:
        """Make an actor behind a stage that computes `size` numbers."""
        return Actor(stage, self.network.torso(k_torso, size, "actor", self.base), self.head(k_head, spec))

    def critic(self, stage: InputStage, size: int, key: Key) -> Critic:
        """Make a critic behind a stage that computes `size` numbers."""
        k_torso, k_out = jax.random.split(key)
        base, outputs = self.base, self.value.outputs
        torso = self.network.torso(k_torso, size, "critic", base)
        out = self.network.output(k_out, base.critic_hidden[-1], outputs, "critic", base)
        return Critic(stage, Body(torso, out), self.value)


class Representation(StatefulPart):
    """Builds actor and critics, and embeds what they see of observation and action.

    Attributes:
        joint_loss_weight: weight β of the part's own loss in the critics' loss, if the critics' step trains
            the encoder too; None: the encoder has a step of its own.
        has_smooth_critics: the part itself chooses activations that have second derivatives.
        splits_observations: actors may see less of an observation than critics, because no network embeds it
            for both.
        indexes_actions: critics compute an output for each discrete action, which is passed by its index.
        makes_points: critics propose N actions of a state, one of which is their maximum: see `propose`.
    """

    socket: ClassVar[str] = "representation"
    takes_images: ClassVar[bool] = False
    joint_loss_weight: ClassVar[float | None] = None
    has_smooth_critics: ClassVar[bool] = False
    splits_observations: ClassVar[bool] = False
    indexes_actions: ClassVar[bool] = False
    makes_points: ClassVar[bool] = False

    def encoder_params(self, state: PartState, which: Version) -> PyTree:
        """Return the encoder that embeddings are computed with.

        Args:
            which: "online", the encoder that learns; "fixed", the one that feeds the online actor and
                critics; "target", the one that feeds the target networks.
        """
        raise NotImplementedError

    def actor_embeddings(self, encoder: PyTree, obs: Array) -> list[Array]:
        """Embed observations [..., S] for the actor; it sees these beside the observation."""
        raise NotImplementedError

    def critic_embeddings(self, encoder: PyTree, obs: Array, action: Array) -> list[Array]:
        """Embed observations [..., S] and actions [..., A] for critics, which see these beside both."""
        raise NotImplementedError

    def augment(self, batch: Batch, spec: Spec, key: Key) -> Batch:
        """Return the batch of an update with its observations changed at random.

        Every loss sees this one, but the newest transitions that a regulariser asks for stay as they are.

        Args:
            batch: B normalised transitions.
            spec: the task.
        """
        return batch

    def adapt_network(self, encoder: PyTree, net: Net) -> Net:
        """Return the network with layers adapted to the encoder, if some layer depends on it."""
        return net

    def actor(self, key: Key, architecture: Architecture, spec: Spec, conditioning: int = 0) -> Actor:
        """Make a new actor; `conditioning` is the width of a vector that joins the input of its torso."""
        raise NotImplementedError

    def critic(self, key: Key, architecture: Architecture, spec: Spec, conditioning: int = 0) -> Critic:
        """Make a new critic; `conditioning` is as for the actor."""
        raise NotImplementedError

    def propose(
        self, critic: Critic, obs: Float[Array, "*b S"]
    ) -> tuple[Float[Array, "*b N A"], Float[Array, "*b N"]]:
        """Return the points of a critic that this part made, and their heights; only with `makes_points`."""
        raise NotImplementedError(f"critics of {self.name} have no points")

    def penalty(
        self, actor: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Compute a term of the actor's loss that depends on the actor's own layers.

        Args:
            actor: one actor, or a list of actors.

        Returns:
            The term and its metrics; None if there is no such term.
        """
        return None

    def post_update(self, state: PartState, batch: Batch, event: Event) -> PartState:
        """Return the part's state after an update of all networks, e.g. with copies made at a sync.

        Args:
            batch: the B normalised transitions of this update.
        """
        return state


class BootstrapValue(StatefulPart):
    """Says how the target critics together value the next state.

    Attributes:
        takes_minimum: the value is the minimum of all target critics, and nothing else.
    """

    socket: ClassVar[str] = "bootstrap"
    takes_minimum: ClassVar[bool] = False

    def weights(self, state: PartState, qs: Float[Array, "B J"], key: Key) -> Float[Array, "B K J"]:
        """Weigh the target critics.

        Args:
            qs: the values of the J target critics at the next state and action.
            key: a key of this update.

        Returns:
            The weight of target critic j in the target of critic k; K is 1 if all have the same target.
        """
        raise NotImplementedError

    def bound(self, state: PartState, value: Array) -> Array:
        """Return values of the next state within bounds; without an entropy bonus."""
        return value

    def value(self, state: PartState, qs: Float[Array, "B J"], key: Key) -> Float[Array, "B K"]:
        """Return the bounded value of the next state, for critics that learn from numbers."""
        return self.bound(state, (self.weights(state, qs, key) * qs[:, None]).sum(-1))

    def post_update(self, state: PartState, target_values: Float[Array, "B K"], event: Event) -> PartState:
        """Return the part's state after an update; `target_values` are the targets y of the critics."""
        return state


class BootstrapRule(NamedTuple):
    """The methods of a `BootstrapValue` with the state and the key of one update.

    Attributes:
        weights: qs [B, J] -> weights [B, K, J].
        bound: values [...] -> bounded values [...].
        value: qs [B, J] -> bounded values [B, K].
    """

    weights: Callable[[Array], Array]
    bound: Callable[[Array], Array]
    value: Callable[[Array], Array]

    def move(self, outcomes: Float[Array, "*#b n"], mean: Float[Array, "*#b"]) -> Float[Array, "*#b n"]:
        """Return the outcomes of a distribution, moved together until its mean is within the bounds.

        The mean is a value; single outcomes may lie beyond the bounds of values.
        """
        bounded = self.bound(mean)  # a part without bounds returns its argument
        return outcomes if bounded is mean else outcomes + (bounded - mean)[..., None]


class TargetUpdate(StatefulPart):
    """Moves the target networks.

    Attributes:
        averages: the target networks are moving averages.
    """

    socket: ClassVar[str] = "target_update"
    averages: ClassVar[bool] = False
    only_if: ClassVar[Mapping[str, str]] = {
        "network.keeps_target_critics or base.target_actor": (
            "without target networks, of which {agent.network.name} keeps none"
        )
    }

    def target_update(self, online: PyTree, target: PyTree, event: Event) -> PyTree:
        """Return the target networks after this update.

        Args:
            online: the tuple (actor, critics) after their steps; the actor is None without a target actor.
            target: the target networks in the same form.
        """
        raise NotImplementedError


class PolicyLoss(StatefulPart):
    """Improves a policy by values, and says which values of the next state the critics learn from.

    Attributes:
        climbs_q: the loss follows ∂Q/∂a, so that it can be given another value function to climb.
        values_next_state: the part itself values the next state, by `next_value`.
        needs_single_policy: the loss trains one policy, and refuses a selector that does not act by one.
        improves_samples: the loss improves actions that the policy samples, not its mode only.
        maximises_entropy: the loss keeps the policy stochastic, so that it explores without added noise.
        has_second_policy: it trains a policy of its own beside the one that acts, with a Gaussian head.
        has_temperature: it does so by a temperature α, and has the fields that `soft` has for it.
    """

    socket: ClassVar[str] = "policy_loss"
    climbs_q: ClassVar[bool] = True
    values_next_state: ClassVar[bool] = False
    needs_single_policy: ClassVar[bool] = False
    improves_samples: ClassVar[bool] = False
    maximises_entropy: ClassVar[bool] = False
    has_second_policy: ClassVar[bool] = False
    has_temperature: ClassVar[bool] = False

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
        """Compute the loss of one actor. Called at every actor update, once per objective of the selector.

        Args:
            policy: the policy to improve; the gradient reaches its actor.
            q: the value functions that it climbs, as a list of heads [B].
            actor_params: the part's `actor_params`; only the first objective's gradient moves them.
            state: the part's state.

        Returns:
            The loss and its metrics.
        """
        raise NotImplementedError

    def next_action(
        self, policy: Policy, state: PartState, context: Context, next_obs: Array, key: Key
    ) -> tuple[Array, Array | None]:
        """Select the action of the next state that the critics' target values.

        Args:
            policy: the selector's target policy.
            next_obs: [B, S].

        Returns:
            The action [B, A], by default the policy's mode, and the entropy bonus -α log π [B] of soft agents
            or None.
        """
        return policy(next_obs).mode(), None

    def next_value(self, state: PartState, next_obs: Array) -> Array | None:
        """Return values V [B] of the next state that take the place of the target critics'; None: theirs."""
        return None

    def critics_learn(self, event: Event) -> Array | None:
        """Return whether the critics step in this update; None: they step in every update."""
        return None

    def post_update(self, state: PartState, actor: PyTree, event: Event) -> PartState:
        """Return the part's state after an update of all networks; `actor` is the actor after its step."""
        return state


class ActionSelector(StatefulPart):
    """Selects actions: one actor's, or the best of several proposals.

    Attributes:
        has_actor: the selector trains at least one actor network.
        has_single_policy: the selector executes the action of one actor, and does not choose among several.
        climbs_surrogates: actors climb other value functions than Q, which the policy loss must support.
        indexes_actions: an action is the index of one of N discrete actions, as a float [..., 1].
        values_next_state: the part itself values the next state, by `next_value`.
        repeats_noise: it can keep the noise of a Gaussian policy for several steps (`base.noise_repeat`).
        acts_by_points: the selector executes a point of the first critic, see `Representation.makes_points`.
        why_deterministic: what the selector does, if `base.head` has to be deterministic for it; else "".
        why_unsmoothed: what it does, if `base.target_noise` has to be 0 for it; else "".
    """

    socket: ClassVar[str] = "selector"
    has_actor: ClassVar[bool] = True
    has_single_policy: ClassVar[bool] = True
    climbs_surrogates: ClassVar[bool] = False
    indexes_actions: ClassVar[bool] = False
    values_next_state: ClassVar[bool] = False
    repeats_noise: ClassVar[bool] = False
    acts_by_points: ClassVar[bool] = False
    why_deterministic: ClassVar[str] = ""
    why_unsmoothed: ClassVar[str] = ""

    def conflict(self, agent: Composition) -> str | None:
        if self.why_deterministic and agent.base.head != "deterministic":
            return f"{self.name} {self.why_deterministic}; write td3+{self.name}."
        if self.why_unsmoothed and agent.base.target_noise:
            return f"{self.name} {self.why_unsmoothed}: base.target_noise = 0 with {self.name}."
        return super().conflict(agent)

    def actors(self, key: Key, nets: Nets, spec: Spec) -> PyTree:
        """Make what the actor step moves: one actor, a list of actors, or None without `has_actor`."""
        if self.has_actor:
            raise NotImplementedError

    def policy(self, actor: PyTree, state: PartState, context: BoundNetworks) -> Policy:
        """Return the one policy of these actors that all other parts see as `context.policy`."""
        raise NotImplementedError

    def proposals(self, actor: PyTree, state: PartState, context: Context, obs: Array) -> Array:
        """Return the L actions [B, L, A] to choose from at `obs` [B, S], without noise, for landscapes."""
        return self.policy(actor, state, context)(obs).mode()[..., None, :]

    def actor_objectives(
        self, actor: PyTree, state: PartState, context: Context, batch: Batch
    ) -> list[tuple[Policy, QFn]]:
        """Return every actor's policy and the value function that `PolicyLoss.loss` improves it by.

        Called at every actor update, only if `actors` made some.
        """
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
        """Return the policy whose action at the next state the critics' target values.

        Target smoothing is applied here if the base asks for it.

        Args:
            actor_target: the target actors; None if the base keeps none.
            next_obs: [B, S].
        """
        raise NotImplementedError

    def next_value(self, state: PartState, context: Context, next_obs: Array, key: Key) -> Array | None:
        """Return values [B] of the next state that take the place of `target_policy`; None: there are none.

        Args:
            state: the part's state.
            next_obs: [B, S].
        """
        return None

    def training_batch(self, batch: Batch) -> Batch:
        """Return the batch that everything learns from, e.g. with another action of each transition."""
        return batch

    def act(
        self, actor: PyTree, state: PartState, context: Context, step: ActingStep
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """Select the actions of E parallel environments at one step.

        Returns:
            Actions [E, A] in [-1, 1], further replay columns by name [E, ...], and the next noise state.
        """
        if step.mode == "warm_up":
            return self.warm_up(context.spec, step)
        return self.decide(actor, state, context, step)

    def warm_up(self, spec: Spec, step: ActingStep) -> tuple[Array, dict[str, Array], PyTree]:
        """Return what `act` does for uniform actions; by default without columns."""
        return spec.draw_actions(step.observation, step.key), {}, step.noise_state

    def decide(
        self, actor: PyTree, state: PartState, context: Context, step: ActingStep
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """Return what `act` does in the modes "evaluate" and "explore"."""
        raise NotImplementedError

    def measure(
        self, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[PartState, Metrics]:
        """Measure the critics. Called at every update after their step, only if `init` returned a state.

        For moving averages of what the critics say; no gradient is taken.

        Returns:
            The part's next state, and metrics.
        """
        return state, {}

    def init_noise(self, spec: Spec, envs: int, base: Base | None = None) -> PyTree:
        """Return the initial state of the exploration noise of E environments, or None if it has no state.

        Args:
            base: the agent's settings; None for an agent that only evaluates, whose noise has no state.
        """
        return None

    def post_update(self, state: PartState, actor: PyTree, event: Event) -> PartState:
        """Return the part's state after an update of all networks; `actor`: the actors after their step."""
        return state


class ActorlessSelector(ActionSelector):
    """Base of selectors whose actions come from critics or from networks of their own, not from an actor."""

    has_actor: ClassVar[bool] = False
    has_single_policy: ClassVar[bool] = False


class Regulariser(StatefulPart):
    """Adds terms to the losses of critics or actor. An agent may have any number of regularisers.

    Attributes:
        differentiates_actions: a term needs ∂Q/∂a, which discrete actions do not have.
    """

    socket: ClassVar[str] = "regulariser"
    differentiates_actions: ClassVar[bool] = False

    @property
    def newest(self) -> int | None:
        """N, if the part reads a second batch, uniform from the newest N transitions; None: it reads none.

        Transitions of the random phase are not among them. The batch is in `batch.extra`, under the part's
        name: "NAME.observation" [B, S], normalised, "NAME.action" [B, A], and "NAME.filled" [B], which is 0
        in every row as long as there are fewer than B such transitions, else 1.
        """
        return None

    def critic(
        self, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Compute a term of the critics' loss. Called at every update.

        Args:
            context: its `q` are the critics that are being trained; the gradient reaches only them.

        Returns:
            The term and its metrics; None if there is no such term.
        """
        return None

    def actor(
        self, actor_params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Compute a term of the actor's loss. Called at every actor update.

        Args:
            actor_params: the part's `actor_params`; the gradient moves them together with the actor.

        Returns:
            The term and its metrics; None if there is no such term.
        """
        return None

    def post_update(self, state: PartState, actor: PyTree, event: Event) -> PartState:
        """Return the part's state after an update of all networks; `actor` is the actor after its step."""
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
        success: its success, from 0 to 1, where the agent relabels goals and the environment reports success:
            a policy is then judged by it; None: by the return.
        first_report: whether no episode before it reported success, so that all of them count as failures.
    """

    length: int
    ret: float
    update: int
    success: float | None = None
    first_report: bool = False


class Schedule(StatefulPart):
    """Decides when updates run and when the current policy is kept. Runs on the host, with plain numbers.

    Attributes:
        keeps_best_policy: evaluation and export use the kept policy, not the current one.
        learns_by_steps: updates follow from the number of steps alone, so that they are known before a step.
            A subclass with an `updates_due` of its own says so again.
        learns_between_episodes: only ends of episodes bring updates or keep a policy; steps never do. The
            steps of an episode can then be one program.
    """

    socket: ClassVar[str] = "schedule"
    keeps_best_policy: ClassVar[bool] = False
    learns_by_steps: ClassVar[bool] = False
    learns_between_episodes: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "updates_due" in vars(cls) and "learns_by_steps" not in vars(cls):
            cls.learns_by_steps = False  # what holds for the method that it replaces may not hold for its own

    def start(self) -> dict[str, Any]:
        """Return the schedule's counters at the start of a run. They must be JSON-able: saves hold them."""
        raise NotImplementedError

    def updates_due(
        self, state: dict[str, Any], event: StepEnd | EpisodeEnd, base: Base
    ) -> tuple[dict[str, Any], int, bool]:
        """Return the number of updates due. Called after every step and at the end of every episode.

        Returns:
            The next counters, the number of updates to run now, and whether to keep the acting state before
            they run.
        """
        raise NotImplementedError


class Reset(StatefulPart):
    """Re-initialises networks during a run."""

    socket: ClassVar[str] = "reset"

    def reset(self, state: State, make_initial_state: Callable[[], State], event: Event, base: Base) -> State:
        """Return the state that an update begins with, with networks re-initialised if a reset is due.

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

    def update_statistics(self, state: PartState, obs: Array, weight: Array | None = None) -> PartState:
        """Fold in raw observations [E, S] before the agent acts on them, or those of a whole rollout.

        Args:
            weight: 0 for rows that are not acted on, since the next step only resets their environment, else
                1, [E]; None: all rows count.
        """
        return state

    def apply(self, state: PartState, obs: Array) -> Array:
        """Return normalised observations [..., S]."""
        return obs


class Scaling(Part):
    """Scales the rewards of a batch. Replay stays raw; what the part keeps lies in `ReplayState.scaling`.

    Attributes:
        changes_rewards: False only for the default, which leaves rewards as they are.
    """

    socket: ClassVar[str] = "scaling"
    changes_rewards: ClassVar[bool] = True

    def init_state(self, envs: int) -> PyTree:
        """Return what the part keeps before the first step of E environments; None: nothing."""
        return None

    def observe(
        self,
        state: PyTree,
        reward: Float[Array, " E"],
        over: Bool[Array, " E"],
        valid: Bool[Array, " E"],
        base: Base,
    ) -> PyTree:
        """Return the state after a step of E environments. Called once per step, when replay stores it.

        Args:
            reward: in the environment's units.
            over: whether the episode ended with this step, in whatever way.
            valid: False where no step was made.
        """
        return state

    def divisor(self, state: PyTree) -> Scalar | None:
        """Return the number that all rewards of a batch are divided by; None: they stay as they are."""
        return None


class Relabelling(Part):
    """Gives the transitions of an episode that has ended other goals, which were achieved in it.

    The relabelled rows stand in replay beside the real ones. Runs on the host, between two steps.

    Attributes:
        changes_goals: False only for the default, which leaves goals as they are.
    """

    socket: ClassVar[str] = "relabelling"
    changes_goals: ClassVar[bool] = True

    def draw_goals(self, rng: np.random.Generator, length: int) -> list[Int[np.ndarray, " L"]]:
        """Return the goals of relabelled copies of an episode of L steps.

        Args:
            rng: a generator of this episode's own.
            length: L.

        Returns:
            For every copy the number, from 0 to L - 1, of the step after which the goal of each row was
            achieved [L]. Consecutive rows with the same number are one stretch: sums of n rewards do not
            reach beyond it.
        """
        raise NotImplementedError

    def conflict(self, agent: Any) -> str | None:
        if self.changes_goals and not agent.base.bootstrap_at_time_limits:
            return (
                f"{self.name} ends stretches of rows as time limits end episodes, and "
                "base.bootstrap_at_time_limits is off; leave one of the two out."
            )
        return super().conflict(agent)

    def fits(self, spec: Spec, base: Base) -> str | None:
        if self.changes_goals and spec.goal_size is None:
            return (
                f"{self.name} gives transitions other goals, and it shows none: it needs observations that "
                "are a Dict of observation, achieved_goal and desired_goal, and a method compute_reward; "
                f"leave {self.name} out."
            )
        return super().fits(spec, base)


def bind_network(
    representation: Representation,
    encoder: PyTree,
    module: Actor | Critic,
    trains_actors: bool = False,
    beside: Array | None = None,
) -> Callable:
    """Return an actor or critic module as a function of normalised observations and actions.

    Args:
        trains_actors: an actor with batch normalisation normalises by the batch.
        beside: observations [B, S] that are normalised together with those that the actor is then called
            with; None: no others.

    Returns:
        For an actor `(obs, conditioning=None)` -> distribution, for a critic
        `(obs, action, conditioning=None)` -> values [...].
    """
    if isinstance(module, Actor):

        def policy(obs: Array, conditioning: Conditioning | None = None):
            actor = representation.adapt_network(encoder, module)
            if trains_actors and has_statistics(module):
                rows, count = obs, None
                if beside is not None:
                    rows, count = jnp.concatenate([obs, beside]), len(obs)
                return actor.train(rows, representation.actor_embeddings(encoder, rows), count)[0]
            return actor(obs, representation.actor_embeddings(encoder, obs), conditioning)

        return policy

    def value(obs: Array, action: Array, conditioning: Conditioning | None = None) -> Array:
        embeddings = representation.critic_embeddings(encoder, obs, action)
        return representation.adapt_network(encoder, module)(obs, action, embeddings, conditioning)

    return value


def bind_critics(
    representation: Representation,
    encoder: PyTree,
    critics: list[Critic],
    key: Key | None = None,
    read: Callable[[Array], Array] | None = None,
) -> QFn:
    """Return critics as one function; all of them share embeddings that are computed once.

    Args:
        key: draws the masks of dropout, the same at every call; None: nothing is dropped.
        read: makes the result of a critic's outputs; None: its value.
    """

    def q(obs: Array, action: Array) -> list[Array]:
        embeddings = representation.critic_embeddings(encoder, obs, action)
        adapted = [representation.adapt_network(encoder, critic) for critic in critics]
        seen = obs, action, embeddings
        return [
            critic(*seen, key=k) if read is None else read(critic.outputs(*seen, key=k))
            for critic, k in zip(adapted, split_key(key, len(critics)), strict=True)
        ]

    return q


def bind_points(representation: Representation, critics: list[Critic]) -> PointsFn:
    """Return the points of critics as one function."""
    return lambda obs: [representation.propose(critic, obs) for critic in critics]


def combine_heads(base: Base, heads: list[Array]) -> Array:
    """Return the value [...] that the actor climbs: the first head, the minimum or the mean of all heads."""
    if base.actor_objective == "first" or len(heads) == 1:
        return heads[0]
    stacked = jnp.stack(heads, -1)
    return stacked.min(-1) if base.actor_objective == "min" else stacked.mean(-1)
