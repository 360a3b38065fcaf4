"""The off-policy agent: one part in every socket, the state of a run, how it acts and how it learns."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int, PyTree

from qscape.errors import WrongPart
from qscape.nets import Actor
from qscape.nets.batch_norm import split_statistics
from qscape.nets.heads import Snapped
from qscape.offpolicy import plain
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import (
    ActingStep,
    ActionSelector,
    Architecture,
    BootstrapValue,
    BoundNetworks,
    Context,
    Nets,
    Network,
    Normaliser,
    PartState,
    PolicyLoss,
    Regulariser,
    Relabelling,
    Representation,
    Reset,
    Scaling,
    Schedule,
    StatefulPart,
    TargetUpdate,
    Value,
    Version,
    bind_critics,
    bind_network,
    bind_points,
)
from qscape.offpolicy.state import ActingState, State
from qscape.ops.devices import replicate
from qscape.ops.nearest import ActionTable
from qscape.replay.base import Replay
from qscape.replay.storage import Layout, ReplayState, Storage, valid_rows
from qscape.replay.uniform import Uniform
from qscape.types import AgentT, Bound, Event, Key, Metrics, Part, Policy, Spec, Transition, stream

LEARNING_SOCKETS = ("representation", "policy_loss", "selector")


@dataclasses.dataclass(frozen=True, eq=False)
class Agent(Bound):
    """One part in every socket, and the settings of the base. Holds no arrays; hashed by identity.

    Attributes:
        recipe: the recipe that it was built from, `base+part+part`.
        base: settings that all off-policy agents have.
        representation, network, ..., relabelling: the part in each socket.
        regularisers: parts that add terms to the losses, in the order of the recipe.
        modifiers: parts that only override fields of the base.
        spec: the task; None until `on` binds the agent to one.
    """

    recipe: str = "td3"
    base: Base = Base()
    representation: Representation = plain.Plain()
    network: Network = plain.MLPNetwork()
    value: Value = plain.ScalarValue()
    replay: Replay = Uniform()
    bootstrap: BootstrapValue = plain.MinTarget()
    target_update: TargetUpdate = plain.Polyak()
    policy_loss: PolicyLoss = plain.DPG()
    selector: ActionSelector = plain.Single()
    regularisers: tuple[Regulariser, ...] = ()
    schedule: Schedule = plain.EveryStep()
    reset: Reset = plain.NoReset()
    normaliser: Normaliser = plain.Raw()
    scaling: Scaling = plain.RawRewards()
    relabelling: Relabelling = plain.TrueGoals()
    modifiers: tuple[Part, ...] = ()
    spec: Spec | None = None

    # --- what the agent is made of ----------------------------------------------------------------

    @property
    def index_actions(self) -> bool:
        """True: a discrete action is passed by its index; False: as a row of an action table."""
        return self.selector.indexes_actions

    def conflict(self) -> str | None:
        """Check that the parts have the capabilities that other parts need, then ask every part itself.

        Returns:
            One sentence that says why the parts do not work together; None if they do.
        """
        selector, policy_loss = self.selector, self.policy_loss
        if not selector.has_actor:
            for part in self.stateful_parts.values():
                if part.needs_actor:
                    return (
                        f"{selector.name} has no actor that {part.name} could act on; "
                        "leave one of the two out."
                    )
        if policy_loss.needs_single_policy and not selector.has_single_policy:
            return (
                f"{policy_loss.name} improves one policy and {selector.name} does not act by one; "
                "leave one of them out."
            )
        valuing = [part for part in (policy_loss, selector) if part.values_next_state]
        if len(valuing) == 2:
            return f"{policy_loss.name} and {selector.name} both value the next state; leave one of them out."
        if valuing and self.network.trains_on_joint_batch:
            return (
                f"{self.network.name} trains critics on (s, a) and (s', a') as one batch, and "
                f"{valuing[0].name} has no a'; leave one of them out."
            )
        if valuing and not self.value.learns_from_values:
            return (
                f"{valuing[0].name} values the next state by a number, and {self.value.name} learns from a "
                "distribution; leave one of them out, or take hl_gauss."
            )
        if why := self._explain_index_conflict():
            return why
        if selector.values_next_state and not self.bootstrap.takes_minimum:
            return (
                f"{selector.name} values the next state itself, and {self.bootstrap.name} would not be used; "
                "leave one of them out."
            )
        if selector.climbs_surrogates and not policy_loss.climbs_q:
            return (
                f"{policy_loss.name} does not climb the slope of Q, and {selector.name}'s actors climb "
                "that of surrogates; leave one of them out."
            )
        return super().conflict()

    def _explain_index_conflict(self) -> str | None:
        """Return why a part cannot work with, or without, indices as actions; None if all can."""
        rep, selector = self.representation, self.selector
        if not selector.indexes_actions:
            if rep.indexes_actions:
                return (
                    f"{selector.name} chooses among vectors, and the critics of {rep.name} value actions by "
                    "their index; take td3 as the base."
                )
            return None
        if not rep.indexes_actions:
            return f"{rep.name} embeds actions as vectors, and here an action is an index; leave it out."
        for part in self.regularisers:
            if part.differentiates_actions:
                return f"{part.name} needs ∂Q/∂a, and here an action is an index; leave it out."
        return None

    def on(self: AgentT, spec: Spec) -> AgentT:
        """Bind the agent to a task, see `Bound.on`. A discount by the time limit becomes a number."""
        bound = super().on(spec)
        return dataclasses.replace(bound, base=bound.base.with_time_limit(spec.time_limit))

    def fits(self, spec: Spec) -> str | None:
        rep, selector = self.representation, self.selector
        if spec.frame is not None:
            for part in self.parts.values():
                if not part.takes_images:
                    advice = (
                        "take a recipe with conv in its place" if part is rep else f"leave {part.name} out"
                    )
                    return (
                        f"{part.name} is for vectors, and it shows images {spec.frame}; {advice}, or, if "
                        "they are boards, take gymnasium.wrappers.FlattenObservation."
                    )
        if spec.table is not None:
            for part in self.stateful_parts.values():
                if not part.takes_tables:
                    return (
                        f"{part.name} needs continuous actions, and those of this environment are a table; "
                        f"leave {part.name} out."
                    )
        if self.base.discount_rule == "time_limit" and spec.time_limit is None:
            return (
                "base.discount_rule = time_limit, and it has no known time limit: give it one "
                "(max_episode_steps), or set base.discount_rule = fixed."
            )
        if spec.mask is not None and self.base.replay_observations == "bfloat16":
            return (
                "base.replay_observations = bfloat16 would round the action masks that are stored behind "
                "observations: take float32."
            )
        if spec.frame is not None and rep.indexes_actions and not self.network.has_plain_layers:
            return f"{self.network.name} makes layers for vectors, and it shows images; leave it out."
        if spec.actor_size is not None and not rep.splits_observations:
            return (
                f"{rep.name} embeds observations for actor and critics together, and here some entries are "
                f"for critics only; leave {rep.name} out, or let the actor see all of the observation."
            )
        if spec.actor_size is not None and not selector.has_single_policy:
            return (
                f"{selector.name} lets critics choose the action that is executed, and here they see more "
                f"than the actor may; leave {selector.name} out, or let the actor see all of the observation."
            )
        return super().fits(spec)

    @property
    def parts(self) -> dict[str, Part]:
        """All parts by name, in the order in which they are initialised."""
        filled = (
            self.representation,
            self.network,
            self.value,
            self.normaliser,
            self.selector,
            self.policy_loss,
            self.bootstrap,
            self.target_update,
            self.replay,
            *self.regularisers,
            self.schedule,
            self.reset,
            self.scaling,
            self.relabelling,
            *self.modifiers,
        )
        return {part.name: part for part in filled}

    @property
    def derived_columns(self) -> frozenset[str]:
        """Batch columns that replay computes from neighbouring rows, for all parts together."""
        return frozenset().union(*(part.derived_columns for part in self.parts.values()))

    @property
    def sampling_options(self) -> tuple[int, float, frozenset[str], bool]:
        """Last arguments of `rows_at`.

        These are n of the n-step returns, the discount, the derived columns, and whether the critics
        bootstrap at time limits.
        """
        base = self.base
        return base.n_step, base.discount, self.derived_columns, base.bootstrap_at_time_limits

    @property
    def stateful_parts(self) -> dict[str, StatefulPart]:
        """The parts that may have arrays in the state, by name."""
        return {name: part for name, part in self.parts.items() if isinstance(part, StatefulPart)}

    def layout(self, envs: int = 1) -> Layout:
        """Return how replay packs a transition of E environments, with the columns that parts declare."""
        columns: dict[str, tuple[int, ...]] = {}
        for part in self.parts.values():
            columns |= part.columns(self.task)
        return Layout(
            observation_size=self.task.row_size,
            action_size=self.task.action_size,
            columns=tuple(sorted(columns.items())),
            stores_next=self.base.next_observation == "stored",
            envs=envs,
            capacity=self.base.replay_capacity,
            observations=self.base.replay_observations,
            pixels=self.task.pixels,
        )

    def init_replay(self, layout: Layout) -> tuple[Storage, ReplayState]:
        """Allocate an empty replay.

        Raises:
            RunError: the machine has not enough memory left.
        """
        storage, replay_state = self.replay.init(layout)
        return storage, replay_state._replace(scaling=self.scaling.init_state(layout.envs))

    def init_replay_state(self, layout: Layout) -> ReplayState:
        """Return the state of an empty replay, without its storage."""
        return self.replay.init_state(layout)._replace(scaling=self.scaling.init_state(layout.envs))

    def insert(
        self, layout: Layout, storage: Storage, replay_state: ReplayState, new: Transition
    ) -> tuple[Storage, ReplayState]:
        """Store the valid rows of one step of each environment; the scaling sees their rewards."""
        storage, replay_state = self.replay.insert(layout, storage, replay_state, new)
        ended, valid = jnp.logical_or(new.terminated, new.truncated), valid_rows(layout, new)
        step = replicate((jnp.float32(new.reward), ended, valid))
        scaling = self.scaling.observe(replay_state.scaling, *step, self.base)
        return storage, replay_state._replace(scaling=scaling)

    @property
    def nets(self) -> Nets:
        """Builders of networks for this agent and its task."""
        rep, spec = self.representation, self.task

        def architecture(conditioning: int | None) -> Architecture:
            if conditioning is None:
                return Architecture(self.base, self.network, self.value)
            return plain.make_mlp_architecture(self.base)

        return Nets(
            actor=lambda key, conditioning=None: rep.actor(
                key, architecture(conditioning), spec.of_actor, conditioning or 0
            ),
            critic=lambda key, conditioning=None: rep.critic(
                key, architecture(conditioning), spec, conditioning or 0
            ),
            torso=lambda key, size: self.network.torso(key, size, "actor", self.base),
        )

    # --- the state --------------------------------------------------------------------------------

    def init(self, key: Key, actor: PyTree | None = None) -> State:
        """Make the state of a new run. Slow copies start equal to their originals.

        Args:
            key: the run's key.
            actor: actors to start from, e.g. of another run; None: new ones.

        Returns:
            A state whose every leaf has a buffer of its own, so that it can be donated.

        Raises:
            UsageError: a part has `params`, but its socket has no `learn` step.
        """
        spec, nets = self.task, self.nets
        if actor is None:
            actor = self.selector.actors(stream(key, f"{self.selector.name}.actors"), nets, spec)
        keys = jax.random.split(stream(key, "critics"), self.base.critics)
        critics = [nets.critic(k) for k in keys]
        part_states: dict[str, PartState] = {}
        for name, part in self.stateful_parts.items():
            known_actor = None if part in (self.representation, self.selector) else actor
            part_state = part.init(stream(key, f"{name}.init"), nets, spec, self.base, known_actor)
            if part_state.params is not None and part.socket not in LEARNING_SOCKETS:
                learning = ", ".join(LEARNING_SOCKETS)
                raise WrongPart(
                    f"The part '{name}' is wrong in init: it returns `params`, and only a {learning} has a "
                    "`learn` step for them; use `actor_params` or `extra`.",
                    part=name,
                )
            if part_state != PartState():
                part_states[name] = part_state

        def begin(actor: PyTree, critics: PyTree, part_states: dict[str, PartState]) -> State:
            # Running statistics have no optimiser.
            optimised: dict[str, PyTree] = {
                "actor": split_statistics(actor)[0],
                "critics": split_statistics(critics)[0],
            }
            for name, part_state in part_states.items():
                kinds = "params", "actor_params"
                optimised |= {f"{name}.{kind}": getattr(part_state, kind) for kind in kinds}
            state = State(
                actor=actor,
                actor_target=actor if self.base.target_actor else None,
                critics=critics,
                critics_target=critics if self.network.keeps_target_critics else [],
                part_states=part_states,
                optimisers={
                    name: self.optimiser(name).init(params)
                    for name, params in optimised.items()
                    if params is not None
                },
                updates=jnp.zeros((), jnp.int32),
                env_steps=jnp.zeros((), jnp.int32),
            )
            # Donation needs every leaf in a buffer of its own: copies and Adam's zeros share theirs.
            return jax.tree.map(lambda x: jnp.array(x, copy=True), state)

        # A program that is given what XLA could not allocate never ends, so that error comes first.
        jax.block_until_ready((actor, critics, part_states))
        # One program, which rounds nothing: each copy and each zero by itself would be a program of its own.
        return jax.jit(begin)(actor, critics, part_states)

    def reinitialise(self, state: State, key: Key) -> State:
        """Make new networks and optimiser states; keep the counters and the normaliser's statistics.

        Called by `reset` parts during an update.
        """
        initial, name = self.init(key), self.normaliser.name
        kept = {name: state.part_states[name]} if name in state.part_states else {}
        return initial._replace(
            part_states=initial.part_states | kept, updates=state.updates, env_steps=state.env_steps
        )

    def optimiser(self, name: str) -> optax.GradientTransformation:
        """Return the optimiser of "actor", "critics", "PART.params" or "PART.actor_params"."""
        base = self.base
        if name == "actor":
            b1 = base.adam_b1 if base.actor_adam_b1 is None else base.actor_adam_b1
            decay = base.actor_weight_decay
            return base.optimiser(base.actor_learning_rate, decay, b1, base.adam_b2, delayed=True)
        if name == "critics":
            betas = base.adam_b1, base.adam_b2
            each = base.critic_clip == "each"
            return base.optimiser(
                base.critic_learning_rate, base.critic_weight_decay, *betas, clips_each=each
            )
        owner, kind = name.split(".")
        part = self.stateful_parts[owner]
        params, actor_params = part.learning_rates(base)
        if kind == "params":
            return base.optimiser(params, **part.optimiser_options(base))
        return base.optimiser(actor_params, delayed=True, **part.actor_optimiser_options(base))

    def functions(
        self, state: State, event: Event, trains_actors: bool = False, beside: Array | None = None
    ) -> Context:
        """Return the state's networks as functions of normalised observations and actions.

        Parts receive the result as `context`.

        Args:
            event: which update this is.
            trains_actors: actors with batch normalisation normalise by the batch that they are called with.
                For the policy's own loss only; everybody else sees running statistics.
            beside: normalised observations [B, S + M] that join that batch; None: none do.
        """
        online = ActingState(state.actor, state.critics, state.part_states)
        networks, rep = self._networks(online, event, trains_actors, beside), self.representation
        if self.network.keeps_target_critics:
            encoder = rep.encoder_params(state.part(rep), "target")
            q_target = hide_mask(bind_critics(rep, encoder, state.critics_target), self.task)
            points = hide_mask(bind_points(rep, state.critics_target), self.task)
            networks = networks._replace(q_target=q_target, points_target=points)
        context = self._with_policies(networks, online)
        if not self.base.target_actor:
            return context
        slow = networks._replace(
            bind=partial(networks.bind, which="target"), q=networks.q_target, points=networks.points_target
        )
        policy_target = self.selector.policy(state.actor_target, state.part(self.selector), slow)
        return context._replace(policy_target=policy_target)

    def _networks(
        self, acting: ActingState, event: Event, trains_actors: bool = False, beside: Array | None = None
    ) -> BoundNetworks:
        """Return the online networks as functions; the online critics are the target critics, too."""
        rep, rep_state = self.representation, acting.part(self.representation)
        beside = None if beside is None else self.task.actor_part(beside)
        table = make_action_table(self.task, self.base.nearest, self.base.nearest_probes)

        def bind(module: PyTree, which: Version = "fixed", settled: bool = not trains_actors) -> Callable:
            encoder = rep.encoder_params(rep_state, which)
            function = bind_network(rep, encoder, module, not settled, beside)
            if not isinstance(module, Actor):
                return hide_mask(function, self.task)
            function = hide_privileged(function, self.task)
            return snap_policy(function, table, self.task) if table else function

        encoder = rep.encoder_params(rep_state, "fixed")
        q, levels = (
            hide_mask(bind_critics(rep, encoder, acting.critics, read=read), self.task)
            for read in (None, self.value.levels)
        )
        points = hide_mask(bind_points(rep, acting.critics), self.task)
        bound = q, q, levels, points, points, bind
        return BoundNetworks(*bound, self.nets, event, self.task, self.base, table)

    def _with_policies(self, networks: BoundNetworks, acting: ActingState) -> Context:
        """Return networks with the policies that the selector makes of them."""

        def policy_of(actor: PyTree) -> Policy:
            return self.selector.policy(actor, acting.part(self.selector), networks)

        policy = policy_of(acting.actor)
        return Context(**vars(networks), policy=policy, policy_target=policy, policy_of=policy_of)

    def update(
        self,
        layout: Layout,
        state: State,
        storage: Storage,
        replay_state: ReplayState,
        key: Key,
    ) -> tuple[State, ReplayState, Metrics]:
        """Make one update from replay: see `qscape.offpolicy.update.update`; here metrics are one dict."""
        from qscape.offpolicy.update import update  # which is about agents, and imports this file

        state, replay_state, metrics, of_actors = update(self, layout, state, storage, replay_state, key)
        return state, replay_state, metrics | of_actors

    # --- acting -----------------------------------------------------------------------------------

    def acting(self, state: State) -> ActingState:
        """Return the part of a state that acting needs."""
        needed = {p.name for p in (self.representation, self.selector, self.normaliser)}
        return ActingState(
            state.actor, state.critics, {k: v for k, v in state.part_states.items() if k in needed}
        )

    def act(
        self,
        acting: ActingState,
        noise_state: PyTree,
        obs: Array,
        first: Array,
        env_steps: Int[Array, ""] | int,
        key: Key,
        mode: str = "evaluate",
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """Select actions for the raw observations of E environments.

        Args:
            noise_state: the state of the exploration noise (`selector.init_noise`), or None.
            obs: raw observations [E, S].
            first: [E], true where an episode starts; the noise of that environment starts again.
            env_steps: environment steps made so far. They count the draws: the same key and the same number
                of steps give the same action.
            key: the run's key for acting.
            mode: "evaluate" (the policy's mode), "explore" or "warm_up" (uniform actions); static.

        Returns:
            Actions [E, A] in [-1, 1], further columns for replay, and the next noise state.
        """
        steps = jnp.asarray(env_steps, jnp.int32)
        part_state, context, obs = self._acting_context(acting, obs, steps)
        key = stream(jax.random.fold_in(key, steps), f"{self.selector.name}.act.{mode}")
        step = ActingStep(obs, first, noise_state, key, mode)
        return self.selector.act(acting.actor, part_state, context, step)

    def proposals(self, acting: ActingState, obs: Array) -> Array:
        """Return the L actions [B, L, A] that acting chooses from at raw observations [B, S]; no noise."""
        part_state, context, obs = self._acting_context(acting, obs, jnp.zeros((), jnp.int32))
        return self.selector.proposals(acting.actor, part_state, context, obs)

    def listed_proposals(self, acting: ActingState, obs: Array) -> Array:
        """Return the proposals [B, L, A] as a selector with surrogates shows them to later networks."""
        _, context, obs = self._acting_context(acting, obs, jnp.zeros((), jnp.int32))
        selector: Any = self.selector
        return selector.listed(acting.actor, context, obs)

    def _acting_context(
        self, acting: ActingState, obs: Array, steps: Array
    ) -> tuple[PartState, Context, Array]:
        """Return the selector's state, the context while acting, and normalised observations."""
        obs = self.task.change_visible(partial(self.normaliser.apply, acting.part(self.normaliser)), obs)
        no = jnp.array(False)
        networks = self._networks(acting, Event(steps, steps, no, no))
        return acting.part(self.selector), self._with_policies(networks, acting), obs

    @property
    def normalises(self) -> bool:
        """Whether the normaliser changes observations."""
        return self.normaliser.changes_observations

    def see(self, state: State, obs: Array, resetting: ArrayLike | None = None) -> State:
        """Update the normaliser's statistics by the raw observations [E, S] that are acted on next.

        `resetting`: True where the next step only resets the environment [E]; None: nowhere.
        """
        if not self.normalises:
            return state
        name, obs = self.normaliser.name, self.task.visible(obs)
        weight = None if resetting is None else jnp.where(resetting, 0.0, 1.0)
        return state.with_part(name, self.normaliser.update_statistics(state.part_states[name], obs, weight))


def hide_privileged(policy: Callable, spec: Spec) -> Callable:
    """Return a policy that gets whole observations and sees the actor's part of them."""
    if spec.actor_size is None and spec.mask is None:
        return policy
    return lambda obs, conditioning=None: policy(spec.actor_part(obs), conditioning)


def hide_mask(value: Callable, spec: Spec) -> Callable:
    """Return a function of (obs, action, ...) that gets whole observations, and does not see their masks."""
    if spec.mask is None:
        return value
    return lambda obs, *others: value(spec.visible(obs), *others)


def snap_policy(policy: Callable, table: ActionTable, spec: Spec) -> Callable:
    """Return a policy whose actions are those of `policy`, moved to the nearest valid rows of the table."""
    return lambda obs, conditioning=None: Snapped(policy(obs, conditioning), table, spec.mask_words(obs))


@lru_cache(maxsize=8)
def make_action_table(spec: Spec, nearest: Literal["exact", "clustered"], probes: int) -> ActionTable | None:
    """Return the search in the task's action table, made once per task; None for continuous actions."""
    return None if spec.table is None else ActionTable(spec.table, nearest, probes, spec.mask)
