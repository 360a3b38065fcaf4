"""An agent: one part in every socket, how its state begins, and how it acts."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from qscape.nets import Actor
from qscape.nets.heads import Snapped
from qscape.offpolicy import plain
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import (
    ActionSelector,
    BootstrapValue,
    Context,
    Nets,
    Normaliser,
    PartState,
    PolicyLoss,
    Regulariser,
    Representation,
    Reset,
    Schedule,
    StatefulPart,
    TargetUpdate,
    bind,
    bind_critics,
)
from qscape.offpolicy.state import ActingState, State
from qscape.offpolicy.update import update
from qscape.ops.nearest import ActionTable
from qscape.replay.lap import LAP
from qscape.replay.storage import Layout, ReplayState
from qscape.replay.uniform import Uniform
from qscape.types import Bound, Event, Key, Metrics, Part, Spec, stream

LEARNING_SOCKETS = ("representation", "policy_loss", "selector")


@dataclasses.dataclass(frozen=True, eq=False)
class Agent(Bound):
    """One part in every socket, and the settings of the base. Holds no arrays; hashed by identity.

    Attributes:
        recipe: the name it was made from, `base+part+part`.
        spec: the task; None until `on` binds the agent to one.
    """

    index_actions: ClassVar[bool] = False  # a discrete action is a row of its table

    recipe: str = "td3"
    base: Base = Base()
    representation: Representation = plain.Plain()
    replay: Uniform | LAP = Uniform()
    bootstrap: BootstrapValue = plain.MinTarget()
    target_update: TargetUpdate = plain.Polyak()
    policy_loss: PolicyLoss = plain.DPG()
    selector: ActionSelector = plain.Single()
    regularisers: tuple[Regulariser, ...] = ()
    schedule: Schedule = plain.EveryStep()
    reset: Reset = plain.NoReset()
    normaliser: Normaliser = plain.Raw()
    modifiers: tuple[Part, ...] = ()  # parts that only override fields of the base
    spec: Spec | None = None

    # --- what the agent is made of ----------------------------------------------------------------

    def on(self, spec: Spec) -> "Agent":
        """The agent bound to a task."""
        return dataclasses.replace(self, spec=spec)

    @property
    def parts(self) -> dict[str, Part]:
        """All parts by name, in the order in which they are initialised."""
        filled = (
            self.representation,
            self.normaliser,
            self.selector,
            self.policy_loss,
            self.bootstrap,
            self.target_update,
            self.replay,
            *self.regularisers,
            self.schedule,
            self.reset,
            *self.modifiers,
        )
        return {part.name: part for part in filled}

    @property
    def derived(self) -> frozenset[str]:
        """Columns that replay computes from its indices."""
        return frozenset().union(*(part.derived for part in self.parts.values()))

    @property
    def reads(self) -> tuple[int, float, frozenset[str], bool]:
        """How replay makes a batch: steps summed, discount, derived columns, is a time limit no end?"""
        base = self.base
        return base.n_step, base.discount, self.derived, base.bootstrap_at_time_limits

    @property
    def learners(self) -> dict[str, StatefulPart]:
        """The parts that may carry something in the state."""
        return {name: part for name, part in self.parts.items() if isinstance(part, StatefulPart)}

    def layout(self, envs: int = 1) -> Layout:
        """How replay packs a transition, the columns that parts declare included."""
        columns: dict[str, tuple[int, ...]] = {}
        for part in self.parts.values():
            columns |= part.columns(self.task)
        return Layout(
            observation_size=self.task.observation_size,
            action_size=self.task.action_size,
            columns=tuple(sorted(columns.items())),
            stores_next=self.base.next_observation == "stored",
            envs=envs,
            capacity=self.base.replay_capacity,
        )

    @property
    def nets(self) -> Nets:
        """Builders of networks in this agent's architecture."""
        rep, base, spec = self.representation, self.base, self.task
        return Nets(
            actor=lambda key, conditioning=0: rep.actor(key, base, spec, conditioning),
            critic=lambda key, conditioning=0: rep.critic(key, base, spec, conditioning),
        )

    # --- the state --------------------------------------------------------------------------------

    def init(self, key: Key, actor: PyTree | None = None) -> State:
        """A fresh state, around `actor` if one is there already.

        Every slow copy starts equal to its original, in buffers of its own.
        """
        spec, nets = self.task, self.nets
        if actor is None:
            actor = self.selector.actors(stream(key, f"{self.selector.name}.actors"), nets, spec)
        keys = jax.random.split(stream(key, "critics"), self.base.critics)
        critics = [nets.critic(k) for k in keys]
        part_state: dict[str, PartState] = {}
        for name, part in self.learners.items():
            seen = None if part in (self.representation, self.selector) else actor
            mine = part.init(stream(key, f"{name}.init"), nets, spec, self.base, seen)
            if mine.params is not None and part.socket not in LEARNING_SOCKETS:
                raise TypeError(f"{name}: only parts in {', '.join(LEARNING_SOCKETS)} have a `learn` step")
            if mine != PartState():
                part_state[name] = mine
        optimised: dict[str, PyTree] = {"actor": actor, "critics": critics}
        for name, mine in part_state.items():
            optimised |= {f"{name}.{kind}": getattr(mine, kind) for kind in ("params", "actor_params")}
        state = State(
            actor=actor,
            actor_target=actor if self.base.target_actor else None,
            critics=critics,
            critics_target=critics,
            part_states=part_state,
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

    def anew(self, state: State, key: Key) -> State:
        """A fresh state that goes on counting. What the normaliser has seen is no network: it stays."""
        fresh, seen = self.init(key), self.normaliser.name
        kept = {seen: state.part_states[seen]} if seen in state.part_states else {}
        return fresh._replace(
            part_states=fresh.part_states | kept, updates=state.updates, env_steps=state.env_steps
        )

    def optimiser(self, name: str) -> optax.GradientTransformation:
        """The optimiser of "actor", "critics", or a part's "NAME.params" or "NAME.actor_params"."""
        base = self.base
        if name == "actor":
            return base.optimiser(base.actor_learning_rate, base.actor_weight_decay)
        if name == "critics":
            return base.optimiser(base.critic_learning_rate, base.critic_weight_decay)
        part, kind = name.split(".")
        params, actor_params = self.learners[part].learning_rates(base)
        return base.optimiser(params if kind == "params" else actor_params)

    def functions(self, state: State, event: Event) -> Context:
        """The state's networks as functions of observation and action."""
        rep, mine = self.representation, state.part(self.representation)

        table = action_table(self.task, self.base.nearest, self.base.nearest_probes)

        def bound(module: PyTree, which: str = "fixed") -> Callable:
            function = bind(rep, rep.view(mine, which), module)
            return snapped(function, table) if table and isinstance(module, Actor) else function

        context = Context(
            policy=_missing,
            policy_target=_missing,
            policy_of=_missing,
            q=bind_critics(rep, rep.view(mine, "fixed"), state.critics),
            q_target=bind_critics(rep, rep.view(mine, "target"), state.critics_target),
            bind=bound,
            nets=self.nets,
            event=event,
            spec=self.task,
            base=self.base,
            table=table,
        )
        part_state = state.part(self.selector)
        policy = self.selector.policy(state.actor, part_state, context)
        context = context._replace(
            policy=policy,
            policy_target=policy,
            policy_of=lambda actor: self.selector.policy(actor, part_state, context),
        )
        if not self.base.target_actor:
            return context
        slow = context._replace(bind=partial(bound, which="target"), q=context.q_target)
        return context._replace(policy_target=self.selector.policy(state.actor_target, part_state, slow))

    # --- acting -----------------------------------------------------------------------------------

    def acting(self, state: State) -> ActingState:
        """All that acting needs of a state."""
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
        """Actions [E, A] in [-1, 1] for raw observations [E, S], columns for replay, new memory.

        Args:
            memory: what acting remembers (`maximiser.memory`); `first` [E] says where it is reset.
            env_steps: counts the draws: the same key and step give the same action.
            mode: "evaluate", "explore" or "warm_up"; static.
        """
        steps = jnp.asarray(env_steps, jnp.int32)
        part_state, context, obs = self._seen(acting, obs, steps)
        key = stream(jax.random.fold_in(key, steps), f"{self.selector.name}.act.{mode}")
        return self.selector.act(acting.actor, part_state, context, noise_state, obs, first, key, mode)

    def proposals(self, acting: ActingState, obs: Array) -> Array:
        """The actions [B, L, A] that acting picks from at raw observations [B, S], without noise."""
        part_state, context, obs = self._seen(acting, obs, jnp.zeros((), jnp.int32))
        return self.selector.proposals(acting.actor, part_state, context, obs)

    def _seen(self, acting: ActingState, obs: Array, steps: Array) -> tuple[PartState, Context, Array]:
        """What the maximiser carries, the functions it is given, and observations as networks see them."""
        obs = self.normaliser.apply(acting.part_states.get(self.normaliser.name, PartState()), obs)
        no = jnp.array(False)
        stand_in = State(
            acting.actor, acting.actor, acting.critics, acting.critics, acting.part_states, {}, steps, steps
        )
        context = self.functions(stand_in, Event(steps, steps, no, no))
        return acting.part_states.get(self.selector.name, PartState()), context, obs

    @property
    def normalises(self) -> bool:
        """Does the normaliser do anything?"""
        return not isinstance(self.normaliser, plain.Raw)

    def see(self, state: State, obs: Array) -> State:
        """Let the normaliser see the observations [E, S] that are about to be acted on."""
        if not self.normalises:
            return state
        name = self.normaliser.name
        return state._replace(
            part_states=state.part_states | {name: self.normaliser.see(state.part_states[name], obs)}
        )

    # --- learning ---------------------------------------------------------------------------------

    def update(
        self, layout: Layout, state: State, rows: Array, index: ReplayState, key: Key
    ) -> tuple[State, ReplayState, Metrics]:
        """One update from replay: see `update.update`."""
        return update(self, layout, state, rows, index, key)


def snapped(policy: Callable, table: ActionTable) -> Callable:
    """The policy over the table's rows."""
    return lambda obs, conditioning=None: Snapped(policy(obs, conditioning), table)


@lru_cache(maxsize=8)
def action_table(spec: Spec, nearest: Literal["exact", "clustered"], probes: int) -> ActionTable | None:
    """The search in the task's action table, made once; None where actions are continuous."""
    return None if spec.table is None else ActionTable(spec.table, nearest, probes)


def _missing(*args: Any) -> Any:
    raise RuntimeError("a maximiser's policy asked for itself")
