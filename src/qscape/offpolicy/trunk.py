"""The update of every off-policy agent: one pure function that reads like a paper's pseudo-code."""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from qscape.offpolicy.sockets import Fns, Part, bind_critics
from qscape.offpolicy.state import State
from qscape.ops.td import CRITIC_LOSSES, td_target
from qscape.replay.memory import OBSERVATIONS, Index, Layout, rows_at
from qscape.types import Batch, Event, Key, Metrics, Piece, stream

if TYPE_CHECKING:
    from qscape.offpolicy.agent import Agent


def update(
    agent: "Agent", layout: Layout, state: State, rows: Array, index: Index, key: Key
) -> tuple[State, Index, Metrics]:
    """One update from replay.

    Args:
        layout: how the rows are packed; static.
        state: networks, optimisers, counters.
        rows: replay's packed transitions; only read.
        index: replay's positions and priorities.
        key: the run's key; it never advances, the update's number is folded in.

    Returns:
        The new state, the new index, and metrics (-inf for what this update did not compute).
    """
    base, replay = agent.base, agent.replay
    number = state.updates + 1
    key = jax.random.fold_in(key, number)
    event = Event(number, state.env_steps, number % base.policy_delay == 0, number % base.sync_every == 0)
    state = state._replace(updates=number)
    metrics: Metrics = {}

    # 1. sample
    picked = replay.sample(layout, rows, index, stream(key, f"{replay.name}.sample"), base.batch_size)
    now = Now(agent, _batch(agent, state, rows_at(layout, rows, index, picked, *agent.reads)), event, key)

    # 2. representation and improvement learn
    if agent.representation.joint is None:
        state = _learn(now, state, agent.representation, metrics)
    state = _learn(now, state, agent.improvement, metrics)

    # 3. critics regress to the target
    y = _target(now, state)
    state, td_error = _critics(now, state, y, metrics)

    # 4. priorities
    index = replay.update(index, picked, td_error)

    # 5. the maximiser learns, on the stepped critics
    state = _learn(now, state, agent.maximiser, metrics)

    # 6. every policy_delay-th time the actors climb
    if state.actor is not None:
        state = _actors(now, state, metrics)

    # 7. targets follow
    state = _follow(now, state)
    state = _after(now, state, y, metrics)

    # 8. some agents begin anew now and then
    state = _restart(now, state)
    return state, replay.after(index, event), metrics


class Now(NamedTuple):
    """What the stages of one update share."""

    agent: "Agent"
    batch: Batch
    event: Event
    key: Key  # of this update

    def stream(self, part: Piece, method: str) -> Key:
        """The random stream of one of a part's methods."""
        return stream(self.key, f"{part.name}.{method}")

    def fns(self, state: State) -> Fns:
        """The networks as they are at this stage."""
        return self.agent.functions(state, self.event)


def _batch(agent: "Agent", state: State, batch: Batch) -> Batch:
    """The batch with every observation in it normalised; replay itself stays raw."""
    if not agent.normalises:
        return batch
    apply = partial(agent.normaliser.apply, state.of(agent.normaliser))
    extra = {k: apply(v) if k in OBSERVATIONS else v for k, v in batch.extra.items()}
    return batch._replace(
        observation=apply(batch.observation), next_observation=apply(batch.next_observation), extra=extra
    )


def _learn(now: Now, state: State, part: Part, metrics: Metrics) -> State:
    """A part's own gradient step, if it carries networks of its own."""
    own = state.of(part)
    if own.learned is None:
        return state
    fns, key = now.fns(state), now.stream(part, "learn")
    gradient, said = jax.grad(lambda x: part.learn(x, own, fns, now.batch, key), has_aux=True)(own.learned)
    metrics |= said
    return _step(now, state, f"{part.name}.learned", own.learned, gradient)


def _target(now: Now, state: State) -> Float[Array, " B"]:
    """y: reward plus the discounted, bootstrapped value of the next state; no gradient."""
    agent, batch, fns = now.agent, now.batch, now.fns(state)
    obs, maximiser, improvement = batch.next_observation, agent.maximiser, agent.improvement
    actors = (state.actor, state.actor_target)
    policy = maximiser.target(*actors, state.of(maximiser), fns, obs, now.stream(maximiser, "target"))
    heads, bonus = improvement.target_values(
        policy, state.of(improvement), fns, obs, now.stream(improvement, "target_values")
    )
    value = agent.target.bootstrap(state.of(agent.target), heads, bonus)
    return jax.lax.stop_gradient(td_target(batch.reward, batch.terminated, batch.discount, value))


def _critics(
    now: Now, state: State, y: Float[Array, " B"], metrics: Metrics
) -> tuple[State, Float[Array, "B heads"]]:
    """The critics' step (and the encoder's, where they share a loss); TD errors from before it."""
    agent, batch, base, rep = now.agent, now.batch, now.agent.base, now.agent.representation
    fns, mine, joint = now.fns(state), state.of(rep), rep.joint

    def loss(moved: tuple[PyTree, PyTree]) -> tuple[Array, tuple[Array, Metrics]]:
        critics, learned = moved
        view = rep.view(mine if joint is None else mine._replace(learned=learned), "fixed")
        q = bind_critics(rep, view, critics)
        heads = q(batch.observation, batch.action)
        td_error = jnp.stack(heads, -1) - y[:, None]
        total = base.critic_loss_scale * CRITIC_LOSSES[base.critic_loss](td_error)
        said: Metrics = {"critic_loss": total, "q": heads[0].mean()}
        for part in agent.regularisers:
            term = part.critic(state.of(part), fns._replace(q=q), batch, now.stream(part, "critic"))
            total, said = _add(total, said, term)
        if joint is not None:
            term = rep.learn(learned, mine, fns, batch, now.stream(rep, "learn"))
            total, said = total + joint * term[0], said | term[1]
        return total, (td_error, said)

    moved = (state.critics, None if joint is None else mine.learned)
    gradient, (td_error, said) = jax.grad(loss, has_aux=True)(moved)
    metrics |= said
    state = _step(now, state, "critics", state.critics, gradient[0])
    if joint is not None:
        state = _step(now, state, f"{rep.name}.learned", mine.learned, gradient[1])
    return state, td_error


def _actors(now: Now, state: State, metrics: Metrics) -> State:
    """The actors' step and that of everything tuned along with them."""
    tuned = {name: own.tuned for name, own in state.own.items() if own.tuned is not None}

    def move() -> tuple[State, Metrics]:
        gradient, said = jax.grad(lambda x: _actor_loss(now, state, *x), has_aux=True)((state.actor, tuned))
        moved = _step(now, state, "actor", state.actor, gradient[0])
        for name, value in tuned.items():
            moved = _step(now, moved, f"{name}.tuned", value, gradient[1][name])
        return moved, said

    if now.agent.base.policy_delay == 1:
        state, said = move()
    else:
        blank = jax.tree.map(lambda x: jnp.full(x.shape, -jnp.inf), jax.eval_shape(move)[1])
        state, said = jax.lax.cond(now.event.actor_moved, move, lambda: (state, blank))
    metrics |= said
    return state


def _actor_loss(now: Now, state: State, actor: PyTree, tuned: dict[str, PyTree]) -> tuple[Array, Metrics]:
    """Sum over the climbs and the actor regularisers; only the first climb moves what is tuned."""
    agent, batch, state = now.agent, now.batch, state._replace(actor=actor)
    fns, part = now.fns(state), agent.improvement
    total, said = jnp.zeros(()), {}
    climbs = agent.maximiser.climbs(actor, state.of(agent.maximiser), fns, batch)
    for number, (policy, q) in enumerate(climbs):
        mine = tuned.get(part.name)
        mine = mine if number == 0 else jax.lax.stop_gradient(mine)
        key = jax.random.fold_in(now.stream(part, "loss"), number)
        value, found = part.loss(policy, q, mine, state.of(part), fns, batch, key)
        later = f"_{number}" if number else ""  # the first climb's metrics keep their names
        total, said = total + value, said | {f"{name}{later}": v for name, v in found.items()}
    rep = agent.representation
    term = rep.penalty(actor, state.of(rep), fns, batch, now.stream(rep, "penalty"))
    total, said = _add(total, said, term)
    for reg in agent.regularisers:
        term = reg.actor(tuned.get(reg.name), state.of(reg), fns, batch, now.stream(reg, "actor"))
        total, said = _add(total, said, term)
    return total, said | {"actor_loss": total}


def _follow(now: Now, state: State) -> State:
    """Target networks move as the agent's `follow` says."""
    online = (None if state.actor_target is None else state.actor, state.critics)
    target = (state.actor_target, state.critics_target)
    actor_target, critics_target = now.agent.follow.follow(online, target, now.event)
    return state._replace(actor_target=actor_target, critics_target=critics_target)


def _after(now: Now, state: State, y: Float[Array, " B"], metrics: Metrics) -> State:
    """Moving averages, slow copies and bounds of every part. The target rule is told y, the representation
    the batch, the others the metrics: what their own losses found is among them."""
    own, told = dict(state.own), {now.agent.target.name: y, now.agent.representation.name: now.batch}
    for name, part in now.agent.learners.items():
        if name in own:
            own[name] = part.after(own[name], told.get(name, metrics), state.actor, now.event)
    return state._replace(own=own)


def _restart(now: Now, state: State) -> State:
    """Networks begin anew where the agent's `restart` says so."""
    part = now.agent.restart
    return part.restart(
        state, lambda: now.agent.anew(state, now.stream(part, "restart")), now.event, now.agent.base
    )


def _step(now: Now, state: State, name: str, params: PyTree, gradient: PyTree) -> State:
    """One optimiser step of "actor", "critics", or a part's "NAME.learned" or "NAME.tuned"."""
    updates, moments = now.agent.optimiser(name).update(gradient, state.optimisers[name], params)
    params = optax.apply_updates(params, updates)
    state = state._replace(optimisers=state.optimisers | {name: moments})
    if name in ("actor", "critics"):
        return state._replace(**{name: params})
    part, kind = name.split(".")
    return state._replace(own=state.own | {part: state.own[part]._replace(**{kind: params})})


def _add(total: Array, said: Metrics, term: tuple[Array, Metrics] | None) -> tuple[Array, Metrics]:
    return (total, said) if term is None else (total + term[0], said | term[1])
