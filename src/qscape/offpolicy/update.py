"""The update of every off-policy agent: one pure function that reads like a paper's pseudo-code."""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from qscape.offpolicy.sockets import Context, StatefulPart, bind_critics
from qscape.offpolicy.state import State
from qscape.ops.td import CRITIC_LOSSES, td_target
from qscape.replay.storage import OBSERVATIONS, Layout, ReplayState, rows_at
from qscape.types import Batch, Event, Key, Metrics, Part, stream

if TYPE_CHECKING:
    from qscape.offpolicy.agent import Agent


def update(
    agent: "Agent",
    layout: Layout,
    state: State,
    storage: Array,
    replay_state: ReplayState,
    key: Key,
    previous: Metrics | None = None,
) -> tuple[State, ReplayState, Metrics]:
    """Make one update from replay.

    Args:
        layout: how a transition is packed into a row of the storage; static.
        state: networks, optimiser states, counters.
        storage: packed transitions of the replay; only read.
        replay_state: write positions, sizes and priorities of the replay.
        key: the run's key; it never advances, the update's number is folded in.
        previous: metrics of the update before; None before the first.

    Returns:
        The new state, the new replay state, and the metrics. A metric that this update does not compute
        (those of the actor between its delayed steps) keeps its previous value, NaN at first.
    """
    base, replay = agent.base, agent.replay
    number = state.updates + 1
    key = jax.random.fold_in(key, number)
    event = Event(number, state.env_steps, number % base.policy_delay == 0, number % base.sync_every == 0)
    state = state._replace(updates=number)
    metrics: Metrics = {}

    # 1. sample
    picked = replay.sample(
        layout, storage, replay_state, stream(key, f"{replay.name}.sample"), base.batch_size
    )
    now = Now(
        agent,
        _batch(agent, state, rows_at(layout, storage, replay_state, picked, *agent.sampling_options)),
        event,
        key,
    )

    # 2. representation and improvement learn
    if agent.representation.joint_loss_weight is None:
        state = _learn(now, state, agent.representation, metrics)
    state = _learn(now, state, agent.policy_loss, metrics)

    # 3. critics regress to the target
    y = _target(now, state)
    state, td_error = _critics(now, state, y, metrics)

    # 4. priorities
    replay_state = replay.update_priorities(replay_state, picked, td_error)

    # 5. the maximiser learns, on the stepped critics
    state = _learn(now, state, agent.selector, metrics)

    # 6. every policy_delay-th time the actors climb
    if state.actor is not None:
        state = _actors(now, state, metrics, previous or {})

    # 7. targets follow
    state = _follow(now, state)
    state = _after(now, state, y)

    # 8. some agents begin anew now and then
    state = _restart(now, state)
    return state, replay.post_update(replay_state, event), metrics


class Now(NamedTuple):
    """What the stages of one update share."""

    agent: "Agent"
    batch: Batch
    event: Event
    key: Key  # of this update

    def stream(self, part: Part, method: str) -> Key:
        """The random stream of one of a part's methods."""
        return stream(self.key, f"{part.name}.{method}")

    def context(self, state: State) -> Context:
        """The networks as they are at this stage."""
        return self.agent.functions(state, self.event)


def _batch(agent: "Agent", state: State, batch: Batch) -> Batch:
    """The batch with every observation in it normalised; replay itself stays raw."""
    if not agent.normalises:
        return batch
    apply = partial(agent.normaliser.apply, state.part(agent.normaliser))
    extra = {k: apply(v) if k in OBSERVATIONS else v for k, v in batch.extra.items()}
    return batch._replace(
        observation=apply(batch.observation), next_observation=apply(batch.next_observation), extra=extra
    )


def _learn(now: Now, state: State, part: StatefulPart, metrics: Metrics) -> State:
    """A part's own gradient step, if it carries networks of its own."""
    part_state = state.part(part)
    if part_state.params is None:
        return state
    context, key = now.context(state), now.stream(part, "learn")

    def loss(params: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
        value, learned, extra = part.learn(params, part_state, context, now.batch, key)
        return value, (learned, extra)

    gradient, (learned, extra) = jax.grad(loss, has_aux=True)(part_state.params)
    metrics |= learned
    state = _with_extra(state, part, extra)
    return _step(now, state, f"{part.name}.params", part_state.params, gradient)


def _with_extra(state: State, part: StatefulPart, extra: PyTree) -> State:
    """The state with another `extra` of one part."""
    part_state = state.part(part)._replace(extra=extra)
    return state._replace(part_states=state.part_states | {part.name: part_state})


def _target(now: Now, state: State) -> Float[Array, " B"]:
    """y: reward plus the discounted, bootstrapped value of the next state; no gradient."""
    agent, batch, context = now.agent, now.batch, now.context(state)
    obs, selector, policy_loss = batch.next_observation, agent.selector, agent.policy_loss
    actors = (state.actor, state.actor_target)
    policy = selector.target_policy(
        *actors, state.part(selector), context, obs, now.stream(selector, "target")
    )
    heads, bonus = policy_loss.target_values(
        policy, state.part(policy_loss), context, obs, now.stream(policy_loss, "target_values")
    )
    value = agent.bootstrap.value(state.part(agent.bootstrap), heads, bonus)
    return jax.lax.stop_gradient(td_target(batch.reward, batch.terminated, batch.discount, value))


def _critics(
    now: Now, state: State, y: Float[Array, " B"], metrics: Metrics
) -> tuple[State, Float[Array, "B heads"]]:
    """The critics' step (and the encoder's, where they share a loss); TD errors from before it."""
    agent, batch, base, rep = now.agent, now.batch, now.agent.base, now.agent.representation
    context, mine, joint = now.context(state), state.part(rep), rep.joint_loss_weight

    def loss(moved: tuple[PyTree, PyTree]) -> tuple[Array, tuple[Array, Metrics, PyTree]]:
        critics, params = moved
        view = rep.encoder_params(mine if joint is None else mine._replace(params=params), "fixed")
        q = bind_critics(rep, view, critics)
        heads = q(batch.observation, batch.action)
        td_error = jnp.stack(heads, -1) - y[:, None]
        total = base.critic_loss_scale * CRITIC_LOSSES[base.critic_loss](td_error)
        said: Metrics = {"critic_loss": total, "q": heads[0].mean()}
        extra = mine.extra
        for part in agent.regularisers:
            term = part.critic(state.part(part), context._replace(q=q), batch, now.stream(part, "critic"))
            total, said = _add(total, said, term)
        if joint is not None:
            value, learned, extra = rep.learn(params, mine, context, batch, now.stream(rep, "learn"))
            total, said = total + joint * value, said | learned
        return total, (td_error, said, extra)

    moved = (state.critics, None if joint is None else mine.params)
    gradient, (td_error, said, extra) = jax.grad(loss, has_aux=True)(moved)
    metrics |= said
    state = _step(now, state, "critics", state.critics, gradient[0])
    if joint is not None:
        state = _with_extra(state, rep, extra)
        state = _step(now, state, f"{rep.name}.params", mine.params, gradient[1])
    return state, td_error


def _actors(now: Now, state: State, metrics: Metrics, previous: Metrics) -> State:
    """Step the actors, and every parameter that follows the gradient of their loss."""
    actor_params = {
        name: part_state.actor_params
        for name, part_state in state.part_states.items()
        if part_state.actor_params is not None
    }

    names: list[str] = []

    def move() -> tuple[State, Metrics]:
        gradient, said = jax.grad(lambda x: _actor_loss(now, state, *x), has_aux=True)(
            (state.actor, actor_params)
        )
        moved = _step(now, state, "actor", state.actor, gradient[0])
        for name, value in actor_params.items():
            moved = _step(now, moved, f"{name}.actor_params", value, gradient[1][name])
        names[:] = said
        return moved, said

    def wait() -> tuple[State, Metrics]:  # traced after `move`, which knows the names
        return state, {name: previous.get(name, jnp.full((), jnp.nan)) for name in names}

    if now.agent.base.policy_delay == 1:
        state, said = move()
    else:
        state, said = jax.lax.cond(now.event.actor_moved, move, wait)
    metrics |= said
    return state


def _actor_loss(
    now: Now, state: State, actor: PyTree, actor_params: dict[str, PyTree]
) -> tuple[Array, Metrics]:
    """Sum over the climbs and the actor regularisers; only the first climb moves what is tuned."""
    agent, batch, state = now.agent, now.batch, state._replace(actor=actor)
    context, part = now.context(state), agent.policy_loss
    total, said = jnp.zeros(()), {}
    objectives = agent.selector.actor_objectives(actor, state.part(agent.selector), context, batch)
    for number, (policy, q) in enumerate(objectives):
        mine = actor_params.get(part.name)
        mine = mine if number == 0 else jax.lax.stop_gradient(mine)
        key = jax.random.fold_in(now.stream(part, "loss"), number)
        value, found = part.loss(policy, q, mine, state.part(part), context, batch, key)
        later = f"_{number}" if number else ""  # the first climb's metrics keep their names
        total, said = total + value, said | {f"{name}{later}": v for name, v in found.items()}
    rep = agent.representation
    term = rep.penalty(actor, state.part(rep), context, batch, now.stream(rep, "penalty"))
    total, said = _add(total, said, term)
    for reg in agent.regularisers:
        term = reg.actor(
            actor_params.get(reg.name), state.part(reg), context, batch, now.stream(reg, "actor")
        )
        total, said = _add(total, said, term)
    return total, said | {"actor_loss": total}


def _follow(now: Now, state: State) -> State:
    """Target networks move as the agent's `target_update` says."""
    online = (None if state.actor_target is None else state.actor, state.critics)
    target = (state.actor_target, state.critics_target)
    actor_target, critics_target = now.agent.target_update.target_update(online, target, now.event)
    return state._replace(actor_target=actor_target, critics_target=critics_target)


def _after(now: Now, state: State, y: Float[Array, " B"]) -> State:
    """Moving averages, slow copies and bounds of every part that has a state."""
    agent, event, part_states = now.agent, now.event, dict(state.part_states)
    if (name := agent.representation.name) in part_states:
        part_states[name] = agent.representation.post_update(part_states[name], now.batch, event)
    if (name := agent.bootstrap.name) in part_states:
        part_states[name] = agent.bootstrap.post_update(part_states[name], y, event)
    for part in (agent.selector, agent.policy_loss, *agent.regularisers):
        if part.name in part_states:
            part_states[part.name] = part.post_update(part_states[part.name], state.actor, event)
    return state._replace(part_states=part_states)


def _restart(now: Now, state: State) -> State:
    """Networks begin anew where the agent's `reset` says so."""
    part = now.agent.reset
    return part.reset(
        state, lambda: now.agent.reinitialise(state, now.stream(part, "restart")), now.event, now.agent.base
    )


def _step(now: Now, state: State, name: str, params: PyTree, gradient: PyTree) -> State:
    """One optimiser step of "actor", "critics", or a part's "NAME.params" or "NAME.actor_params"."""
    updates, moments = now.agent.optimiser(name).update(gradient, state.optimisers[name], params)
    params = optax.apply_updates(params, updates)
    state = state._replace(optimisers=state.optimisers | {name: moments})
    if name in ("actor", "critics"):
        return state._replace(**{name: params})
    part, kind = name.split(".")
    return state._replace(
        part_states=state.part_states | {part: state.part_states[part]._replace(**{kind: params})}
    )


def _add(total: Array, said: Metrics, term: tuple[Array, Metrics] | None) -> tuple[Array, Metrics]:
    return (total, said) if term is None else (total + term[0], said | term[1])
