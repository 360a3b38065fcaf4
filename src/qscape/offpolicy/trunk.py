"""The update of every off-policy agent: one pure function that reads like a paper's pseudo-code."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from qscape.offpolicy import plain
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import (
    Fns,
    Follow,
    Improvement,
    Maximiser,
    Nets,
    Normaliser,
    Own,
    Part,
    Regulariser,
    Representation,
    Schedule,
    TargetRule,
    bind,
    bind_critics,
)
from qscape.offpolicy.state import Acting, State
from qscape.ops.td import CRITIC_LOSSES, td_target
from qscape.replay.lap import LAP
from qscape.replay.memory import Index, Layout, rows_at
from qscape.replay.uniform import Uniform
from qscape.types import Batch, Event, Key, Metrics, Piece, Spec, stream

LEARNING_SOCKETS = ("representation", "improvement", "maximiser")


@dataclasses.dataclass(frozen=True, eq=False)
class Agent:
    """One part in every socket, and the settings of the base. Holds no arrays; hashed by identity.

    Attributes:
        recipe: the name it was made from, `base+part+part`.
        spec: the task; None until `on` binds the agent to one.
    """

    recipe: str = "td3"
    base: Base = Base()
    representation: Representation = plain.Plain()
    replay: Uniform | LAP = Uniform()
    target: TargetRule = plain.MinTarget()
    follow: Follow = plain.Polyak()
    improvement: Improvement = plain.DPG()
    maximiser: Maximiser = plain.Single()
    regularisers: tuple[Regulariser, ...] = ()
    schedule: Schedule = plain.EveryStep()
    normaliser: Normaliser = plain.Raw()
    modifiers: tuple[Piece, ...] = ()  # parts that only override fields of the base
    spec: Spec | None = None

    # --- what the agent is made of ----------------------------------------------------------------

    def on(self, spec: Spec) -> "Agent":
        """The agent bound to a task."""
        return dataclasses.replace(self, spec=spec)

    @property
    def task(self) -> Spec:
        """The task the agent is bound to.

        Raises:
            ValueError: it is bound to none.
        """
        if self.spec is None:
            raise ValueError("this agent is bound to no task yet: use agent.on(spec)")
        return self.spec

    @property
    def parts(self) -> dict[str, Piece]:
        """All parts by name, in the order in which they are initialised."""
        filled = (
            self.representation,
            self.normaliser,
            self.maximiser,
            self.improvement,
            self.target,
            self.follow,
            self.replay,
            *self.regularisers,
            self.schedule,
            *self.modifiers,
        )
        return {part.name: part for part in filled}

    @property
    def learners(self) -> dict[str, Part]:
        """The parts that may carry something in the state."""
        return {name: part for name, part in self.parts.items() if isinstance(part, Part)}

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
            actor=lambda key, context=0: rep.actor(key, base, spec, context),
            critic=lambda key, context=0: rep.critic(key, base, spec, context),
        )

    # --- the state --------------------------------------------------------------------------------

    def init(self, key: Key) -> State:
        """A fresh state. Every slow copy starts equal to its original, in buffers of its own."""
        spec, nets = self.task, self.nets
        actor = self.maximiser.actors(stream(key, f"{self.maximiser.name}.actors"), nets, spec)
        keys = jax.random.split(stream(key, "critics"), self.base.critics)
        critics = [nets.critic(k) for k in keys]
        own: dict[str, Own] = {}
        for name, part in self.learners.items():
            seen = None if part in (self.representation, self.maximiser) else actor
            mine = part.init(stream(key, f"{name}.init"), nets, spec, self.base, seen)
            if mine.learned is not None and part.socket not in LEARNING_SOCKETS:
                raise TypeError(f"{name}: only parts in {', '.join(LEARNING_SOCKETS)} have a `learn` step")
            if mine != Own():
                own[name] = mine
        optimised: dict[str, PyTree] = {"actor": actor, "critics": critics}
        for name, mine in own.items():
            optimised |= {f"{name}.{kind}": getattr(mine, kind) for kind in ("learned", "tuned")}
        state = State(
            actor=actor,
            actor_target=actor if self.base.target_actor else None,
            critics=critics,
            critics_target=critics,
            own=own,
            optimisers={
                name: self._optimiser(name).init(params)
                for name, params in optimised.items()
                if params is not None
            },
            updates=jnp.zeros((), jnp.int32),
            env_steps=jnp.zeros((), jnp.int32),
        )
        # Donation needs every leaf in a buffer of its own: copies and Adam's zeros share theirs.
        return jax.tree.map(lambda x: jnp.array(x, copy=True), state)

    def _optimiser(self, name: str) -> optax.GradientTransformation:
        """The optimiser of "actor", "critics", or a part's "NAME.learned" or "NAME.tuned"."""
        base = self.base
        if name == "actor":
            return base.optimiser(base.actor_learning_rate, base.actor_weight_decay)
        if name == "critics":
            return base.optimiser(base.critic_learning_rate, base.critic_weight_decay)
        part, kind = name.split(".")
        learned, tuned = self.learners[part].learning_rates(base)
        return base.optimiser(learned if kind == "learned" else tuned)

    def _step(self, state: State, name: str, params: PyTree, gradient: PyTree) -> tuple[PyTree, PyTree]:
        """One optimiser step: (new parameters, new optimiser state)."""
        updates, moments = self._optimiser(name).update(gradient, state.optimisers[name], params)
        return optax.apply_updates(params, updates), moments

    def functions(self, state: State, event: Event) -> Fns:
        """The state's networks as functions of observation and action."""
        rep, mine = self.representation, state.own.get(self.representation.name, Own())

        def bound(module: PyTree, which: str = "fixed") -> Callable:
            return bind(rep, rep.view(mine, which), module)

        fns = Fns(
            policy=_missing,
            policy_target=_missing,
            q=bind_critics(rep, rep.view(mine, "fixed"), state.critics),
            q_target=bind_critics(rep, rep.view(mine, "target"), state.critics_target),
            bind=bound,
            nets=self.nets,
            event=event,
            spec=self.task,
            base=self.base,
        )
        own = state.own.get(self.maximiser.name, Own())
        policy = self.maximiser.policy(state.actor, own, fns)
        if not self.base.target_actor:
            return fns._replace(policy=policy, policy_target=policy)
        slow = fns._replace(bind=partial(bound, which="target"), q=fns.q_target)
        return fns._replace(policy=policy, policy_target=self.maximiser.policy(state.actor_target, own, slow))

    # --- acting -----------------------------------------------------------------------------------

    def acting(self, state: State) -> Acting:
        """All that acting needs of a state."""
        needed = {p.name for p in (self.representation, self.maximiser, self.normaliser)}
        return Acting(state.actor, state.critics, {k: v for k, v in state.own.items() if k in needed})

    def act(
        self,
        acting: Acting,
        memory: PyTree,
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
        obs = self.normaliser.apply(acting.own.get(self.normaliser.name, Own()), obs)
        steps = jnp.asarray(env_steps, jnp.int32)
        no = jnp.array(False)
        stand_in = State(
            acting.actor, acting.actor, acting.critics, acting.critics, acting.own, {}, steps, steps
        )
        fns = self.functions(stand_in, Event(steps, steps, no, no))
        own = acting.own.get(self.maximiser.name, Own())
        key = stream(jax.random.fold_in(key, steps), f"{self.maximiser.name}.act.{mode}")
        return self.maximiser.act(acting.actor, own, fns, memory, obs, first, key, mode)

    @property
    def normalises(self) -> bool:
        """Does the normaliser do anything?"""
        return not isinstance(self.normaliser, plain.Raw)

    def see(self, state: State, obs: Array) -> State:
        """Let the normaliser see the observations [E, S] that are about to be acted on."""
        if not self.normalises:
            return state
        name = self.normaliser.name
        return state._replace(own=state.own | {name: self.normaliser.see(state.own[name], obs)})

    # --- the update -------------------------------------------------------------------------------

    def update(
        self, layout: Layout, state: State, rows: Array, index: Index, key: Key
    ) -> tuple[State, Index, Metrics]:
        """One update from replay.

        Args:
            rows, index: replay's packed transitions (only read) and its positions and priorities.
            key: the run's key; it never advances, the update's number is folded in.
        """
        base = self.base
        number = state.updates + 1
        key = jax.random.fold_in(key, number)
        event = Event(number, state.env_steps, number % base.policy_delay == 0, number % base.sync_every == 0)
        state = state._replace(updates=number)

        # 1. sample
        name = self.replay.name
        picked = self.replay.sample(layout, rows, index, stream(key, f"{name}.sample"), base.batch_size)
        batch = self._batch(layout, state, rows, index, picked)

        # 2. representation and improvement learn
        metrics: Metrics = {}
        if self.representation.joint is None:
            state = self._learn(self.representation, state, batch, event, key, metrics)
        state = self._learn(self.improvement, state, batch, event, key, metrics)

        # 3. critics regress to the target
        y = jax.lax.stop_gradient(self._target(state, batch, event, key))
        state, td_error = self._critics(state, batch, y, event, key, metrics)

        # 4. priorities
        index = self.replay.update(index, picked, td_error)

        # 5. the maximiser learns, on the stepped critics
        state = self._learn(self.maximiser, state, batch, event, key, metrics)

        # 6. every policy_delay-th time the actors climb
        if state.actor is not None:
            state = self._actors(state, batch, event, key, metrics)

        # 7. targets follow
        state = self._follow(state, event)
        state = self._after(state, y, event)
        return state, self.replay.after(index, event), metrics

    def _batch(self, layout: Layout, state: State, rows: Array, index: Index, picked: Array) -> Batch:
        derived = frozenset().union(*(part.derived for part in self.parts.values()))
        batch = rows_at(layout, rows, index, picked, self.base.n_step, self.base.discount, derived)
        own = state.own.get(self.normaliser.name)
        if own is None:
            return batch
        apply = partial(self.normaliser.apply, own)
        extra = {k: apply(v) if k in derived else v for k, v in batch.extra.items()}
        return batch._replace(
            observation=apply(batch.observation), next_observation=apply(batch.next_observation), extra=extra
        )

    def _learn(
        self, part: Part, state: State, batch: Batch, event: Event, key: Key, metrics: Metrics
    ) -> State:
        """A part's own gradient step, if it carries networks of its own."""
        own = state.own.get(part.name, Own())
        if own.learned is None:
            return state
        loss = partial(part.learn, own=own, fns=self.functions(state, event), batch=batch)
        (_, said), gradient = jax.value_and_grad(
            lambda learned: loss(learned, key=stream(key, f"{part.name}.learn")), has_aux=True
        )(own.learned)
        metrics |= said
        name = f"{part.name}.learned"
        learned, moments = self._step(state, name, own.learned, gradient)
        return state._replace(
            own=state.own | {part.name: own._replace(learned=learned)},
            optimisers=state.optimisers | {name: moments},
        )

    def _target(self, state: State, batch: Batch, event: Event, key: Key) -> Array:
        """y [B]: reward plus the discounted, bootstrapped value of the next state."""
        fns, own = self.functions(state, event), state.own
        policy = self.maximiser.target(
            state.actor,
            state.actor_target,
            own.get(self.maximiser.name, Own()),
            fns,
            batch.next_observation,
            stream(key, f"{self.maximiser.name}.target"),
        )
        heads, bonus = self.improvement.target_values(
            policy,
            own.get(self.improvement.name, Own()),
            fns,
            batch.next_observation,
            stream(key, f"{self.improvement.name}.target_values"),
        )
        value = self.target.bootstrap(own.get(self.target.name, Own()), heads, bonus)
        return td_target(batch.reward, batch.terminated, batch.discount, value)

    def _critics(
        self, state: State, batch: Batch, y: Array, event: Event, key: Key, metrics: Metrics
    ) -> tuple[State, Array]:
        """The critics' step; TD errors [B, heads] from before it."""
        fns, rep = self.functions(state, event), self.representation
        mine = state.own.get(rep.name, Own())
        joint = rep.joint is not None and mine.learned is not None

        def loss(moved: tuple[PyTree, PyTree]):
            critics, learned = moved
            view = rep.view(mine._replace(learned=learned) if joint else mine, "fixed")
            q = bind_critics(rep, view, critics)
            heads = q(batch.observation, batch.action)
            td_error = jnp.stack(heads, -1) - y[:, None]
            total = base.critic_loss_scale * CRITIC_LOSSES[base.critic_loss](td_error)
            said = {"critic_loss": total, "q": heads[0].mean()}
            for part in self.regularisers:
                own = state.own.get(part.name, Own())
                term = part.critic(own, fns._replace(q=q), batch, stream(key, f"{part.name}.critic"))
                total, said = _add(total, said, term)
            if joint and rep.joint is not None:
                term = rep.learn(learned, mine, fns, batch, stream(key, f"{rep.name}.learn"))
                total, said = total + rep.joint * term[0], said | term[1]
            return total, (td_error, said)

        base = self.base
        moved = (state.critics, mine.learned if joint else None)
        gradient, (td_error, said) = jax.grad(loss, has_aux=True)(moved)
        metrics |= said
        critics, moments = self._step(state, "critics", state.critics, gradient[0])
        state = state._replace(critics=critics, optimisers=state.optimisers | {"critics": moments})
        if joint:
            name = f"{rep.name}.learned"
            learned, moments = self._step(state, name, mine.learned, gradient[1])
            state = state._replace(
                own=state.own | {rep.name: mine._replace(learned=learned)},
                optimisers=state.optimisers | {name: moments},
            )
        return state, td_error

    def _actors(self, state: State, batch: Batch, event: Event, key: Key, metrics: Metrics) -> State:
        """The actors' step and that of everything tuned along with them."""
        tuned = {name: own.tuned for name, own in state.own.items() if own.tuned is not None}

        def loss(moved: tuple[PyTree, dict[str, PyTree]]):
            actor, tuned = moved
            return self._actor_loss(state._replace(actor=actor), tuned, batch, event, key)

        def move():
            gradient, said = jax.grad(loss, has_aux=True)((state.actor, tuned))
            actor, moments = self._step(state, "actor", state.actor, gradient[0])
            optimisers, own = {"actor": moments}, {}
            for name, value in tuned.items():
                kind = f"{name}.tuned"
                value, optimisers[kind] = self._step(state, kind, value, gradient[1][name])
                own[name] = state.own[name]._replace(tuned=value)
            return actor, own, optimisers, said

        if self.base.policy_delay == 1:
            actor, own, optimisers, said = move()
        else:
            names = {"actor", *(f"{name}.tuned" for name in tuned)}
            blank = jax.tree.map(lambda x: jnp.full(x.shape, -jnp.inf), jax.eval_shape(move)[3])
            still = (
                state.actor,
                {name: state.own[name] for name in tuned},
                {name: state.optimisers[name] for name in names},
                blank,
            )
            actor, own, optimisers, said = jax.lax.cond(event.actor_moved, move, lambda: still)
        metrics |= said
        return state._replace(actor=actor, own=state.own | own, optimisers=state.optimisers | optimisers)

    def _actor_loss(self, state: State, tuned: dict[str, PyTree], batch: Batch, event: Event, key: Key):
        """Sum over the climbs and the actor regularisers; only the first climb moves what is tuned."""
        fns, part = self.functions(state, event), self.improvement
        own = state.own.get(part.name, Own())
        climbs = self.maximiser.climbs(state.actor, state.own.get(self.maximiser.name, Own()), fns, batch)
        total, said = jnp.zeros(()), {}
        for number, (policy, q) in enumerate(climbs):
            mine = tuned.get(part.name)
            mine = mine if number == 0 else jax.lax.stop_gradient(mine)
            climb_key = jax.random.fold_in(stream(key, f"{part.name}.loss"), number)
            value, metrics = part.loss(policy, q, mine, own, fns, batch, climb_key)
            total, said = total + value, metrics | said
        for reg in self.regularisers:
            own = state.own.get(reg.name, Own())
            term = reg.actor(tuned.get(reg.name), own, fns, batch, stream(key, f"{reg.name}.actor"))
            total, said = _add(total, said, term)
        return total, said | {"actor_loss": total}

    def _follow(self, state: State, event: Event) -> State:
        online, target = (state.actor, state.critics), (state.actor_target, state.critics_target)
        if state.actor_target is None:
            online = (None, state.critics)
        actor_target, critics_target = self.follow.follow(online, target, event)
        return state._replace(actor_target=actor_target, critics_target=critics_target)

    def _after(self, state: State, y: Array, event: Event) -> State:
        own = dict(state.own)
        for name in own:
            part = self.learners[name]
            own[name] = part.after(own[name], y if part is self.target else None, state.actor, event)
        return state._replace(own=own)


def _add(total: Array, said: Metrics, term: tuple[Array, Metrics] | None) -> tuple[Array, Metrics]:
    return (total, said) if term is None else (total + term[0], said | term[1])


def _missing(*args: Any) -> Any:
    raise RuntimeError("a maximiser's policy asked for itself")
