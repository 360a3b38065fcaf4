"""The update of every off-policy agent: one pure function that reads like a paper's pseudo-code."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from qscape.offpolicy.assembly import Assembly
from qscape.offpolicy.sockets import Context, StatefulPart, bind_critics
from qscape.offpolicy.state import State
from qscape.ops.devices import split_batch
from qscape.ops.td import CRITIC_LOSSES, td_target
from qscape.replay.storage import OBSERVATIONS, Layout, ReplayState, rows_at
from qscape.types import Batch, Event, Key, Metrics, Part, stream


def update(
    agent: Assembly,
    layout: Layout,
    state: State,
    storage: Array,
    replay_state: ReplayState,
    key: Key,
    previous: Metrics | None = None,
) -> tuple[State, ReplayState, Metrics]:
    """Make one update from replay. Called by `cycle.learn`, through `Agent.update`.

    Args:
        agent: bound to its task; static.
        layout: how a transition is packed into a row of the storage; static.
        state: networks, optimiser states, counters.
        storage: packed transitions of the replay; only read.
        replay_state: write positions, sizes and priorities of the replay.
        key: the run's key; it never advances, the update's number is folded in.
        previous: metrics of the previous update; None before the first.

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
    batch = split_batch(rows_at(layout, storage, replay_state, picked, *agent.sampling_options))
    stage = Stage(agent, _normalise_batch(agent, state, batch), event, key)

    # 2. representation and policy loss learn
    if agent.representation.joint_loss_weight is None:
        state = _learn_part(stage, state, agent.representation, metrics)
    state = _learn_part(stage, state, agent.policy_loss, metrics)

    # 3. critics regress to the target
    y = _td_targets(stage, state)
    state, td_error = _step_critics(stage, state, y, metrics)

    # 4. priorities
    replay_state = replay.update_priorities(replay_state, picked, td_error)

    # 5. the selector learns, on the stepped critics
    state = _learn_part(stage, state, agent.selector, metrics)

    # 6. every policy_delay-th time the actors step
    if state.actor is not None:
        state = _step_actors(stage, state, metrics, previous or {})

    # 7. target networks and slow copies update
    state = _update_targets(stage, state)
    state = _post_update(stage, state, y)

    # 8. a `reset` part may re-initialise networks
    state = _reset_networks(stage, state)
    return state, replay.post_update(replay_state, event), metrics


class Stage(NamedTuple):
    """The values that all stages of one update share.

    Attributes:
        agent: the agent.
        batch: the sampled transitions, with normalised observations.
        event: the number of this update, and what is due at it.
        key: the key of this update.
    """

    agent: Assembly
    batch: Batch
    event: Event
    key: Key

    def stream(self, part: Part, method: str) -> Key:
        """Return the key for one method of a part."""
        return stream(self.key, f"{part.name}.{method}")

    def context(self, state: State) -> Context:
        """Return the networks of a state as functions."""
        return self.agent.functions(state, self.event)


def _normalise_batch(agent: Assembly, state: State, batch: Batch) -> Batch:
    """Normalise every observation of a batch; replay stores raw observations."""
    if not agent.normalises:
        return batch
    apply = partial(agent.normaliser.apply, state.part(agent.normaliser))
    extra = {k: apply(v) if k in OBSERVATIONS else v for k, v in batch.extra.items()}
    return batch._replace(
        observation=apply(batch.observation), next_observation=apply(batch.next_observation), extra=extra
    )


def _learn_part(stage: Stage, state: State, part: StatefulPart, metrics: Metrics) -> State:
    """Make a part's own gradient step, if the part has `params`. Adds its metrics to `metrics`."""
    part_state = state.part(part)
    if part_state.params is None:
        return state
    context, key = stage.context(state), stage.stream(part, "learn")

    def loss(params: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
        value, aux, extra = part.learn(params, part_state, context, stage.batch, key)
        return value, (aux, extra)

    gradient, (aux, extra) = jax.grad(loss, has_aux=True)(part_state.params)
    metrics |= aux
    state = _with_extra(state, part, extra)
    return _optimise(stage, state, f"{part.name}.params", part_state.params, gradient)


def _with_extra(state: State, part: StatefulPart, extra: PyTree) -> State:
    """Replace the `extra` of one part."""
    part_state = state.part(part)._replace(extra=extra)
    return state._replace(part_states=state.part_states | {part.name: part_state})


def _td_targets(stage: Stage, state: State) -> Float[Array, " B"]:
    """Compute the targets y = r + γ (1 − terminated) · value(s′), without gradient."""
    agent, batch, context = stage.agent, stage.batch, stage.context(state)
    obs, selector, policy_loss = batch.next_observation, agent.selector, agent.policy_loss
    actors = (state.actor, state.actor_target)
    policy = selector.target_policy(
        *actors, state.part(selector), context, obs, stage.stream(selector, "target")
    )
    heads, bonus = policy_loss.target_values(
        policy, state.part(policy_loss), context, obs, stage.stream(policy_loss, "target_values")
    )
    value = agent.bootstrap.value(state.part(agent.bootstrap), heads, bonus)
    return jax.lax.stop_gradient(td_target(batch.reward, batch.terminated, batch.discount, value))


def _step_critics(
    stage: Stage, state: State, y: Float[Array, " B"], metrics: Metrics
) -> tuple[State, Float[Array, "B heads"]]:
    """Make a gradient step of the critics, and of the representation if it shares their loss.

    Args:
        y: the targets.
        metrics: gets the metrics of the step.

    Returns:
        The new state, and the TD errors q − y of every head before the step.
    """
    agent, batch, base, rep = stage.agent, stage.batch, stage.agent.base, stage.agent.representation
    context, part_state, joint = stage.context(state), state.part(rep), rep.joint_loss_weight

    def loss(moved: tuple[PyTree, PyTree]) -> tuple[Array, tuple[Array, Metrics, PyTree]]:
        critics, params = moved
        view = rep.encoder_params(
            part_state if joint is None else part_state._replace(params=params), "fixed"
        )
        q = bind_critics(rep, view, critics)
        heads = q(batch.observation, batch.action)
        td_error = jnp.stack(heads, -1) - y[:, None]
        total = base.critic_loss_scale * CRITIC_LOSSES[base.critic_loss](td_error)
        terms: Metrics = {"critic_loss": total, "q": heads[0].mean()}
        extra = part_state.extra
        for part in agent.regularisers:
            term = part.critic(state.part(part), context._replace(q=q), batch, stage.stream(part, "critic"))
            total, terms = _add_term(total, terms, term)
        if joint is not None:
            value, aux, extra = rep.learn(params, part_state, context, batch, stage.stream(rep, "learn"))
            total, terms = total + joint * value, terms | aux
        return total, (td_error, terms, extra)

    moved = (state.critics, None if joint is None else part_state.params)
    gradient, (td_error, terms, extra) = jax.grad(loss, has_aux=True)(moved)
    metrics |= terms
    state = _optimise(stage, state, "critics", state.critics, gradient[0])
    if joint is not None:
        state = _with_extra(state, rep, extra)
        state = _optimise(stage, state, f"{rep.name}.params", part_state.params, gradient[1])
    return state, td_error


def _step_actors(stage: Stage, state: State, metrics: Metrics, previous: Metrics) -> State:
    """Make a gradient step of the actors and of all `actor_params`, if one is due at this update.

    Args:
        metrics: gets the metrics of the step; without a step, those in `previous`, or NaN.
        previous: metrics of the previous update.
    """
    actor_params = {
        name: part_state.actor_params
        for name, part_state in state.part_states.items()
        if part_state.actor_params is not None
    }

    names: list[str] = []

    def move() -> tuple[State, Metrics]:
        gradient, terms = jax.grad(lambda x: _actor_loss(stage, state, *x), has_aux=True)(
            (state.actor, actor_params)
        )
        moved = _optimise(stage, state, "actor", state.actor, gradient[0])
        for name, value in actor_params.items():
            moved = _optimise(stage, moved, f"{name}.actor_params", value, gradient[1][name])
        names[:] = terms
        return moved, terms

    def wait() -> tuple[State, Metrics]:  # traced after `move`, which fills `names`
        return state, {name: previous.get(name, jnp.full((), jnp.nan, jnp.float32)) for name in names}

    if stage.agent.base.policy_delay == 1:
        state, terms = move()
    else:
        state, terms = jax.lax.cond(stage.event.actor_moved, move, wait)
    metrics |= terms
    return state


def _actor_loss(
    stage: Stage, state: State, actor: PyTree, actor_params: dict[str, PyTree]
) -> tuple[Array, Metrics]:
    """Sum the losses of all objectives and the actor terms of the regularisers.

    The policy loss gets the gradient of its `actor_params` from the first objective only.
    """
    agent, batch, state = stage.agent, stage.batch, state._replace(actor=actor)
    context, part = stage.context(state), agent.policy_loss
    total, terms = jnp.zeros(()), {}
    objectives = agent.selector.actor_objectives(actor, state.part(agent.selector), context, batch)
    for number, (policy, q) in enumerate(objectives):
        params = actor_params.get(part.name)
        params = params if number == 0 else jax.lax.stop_gradient(params)
        key = jax.random.fold_in(stage.stream(part, "loss"), number)
        value, aux = part.loss(policy, q, params, state.part(part), context, batch, key)
        later = f"_{number}" if number else ""  # metrics of the first objective keep their names
        total, terms = total + value, terms | {f"{name}{later}": v for name, v in aux.items()}
    rep = agent.representation
    term = rep.penalty(actor, state.part(rep), context, batch, stage.stream(rep, "penalty"))
    total, terms = _add_term(total, terms, term)
    for reg in agent.regularisers:
        term = reg.actor(
            actor_params.get(reg.name), state.part(reg), context, batch, stage.stream(reg, "actor")
        )
        total, terms = _add_term(total, terms, term)
    return total, terms | {"actor_loss": total}


def _update_targets(stage: Stage, state: State) -> State:
    """Update the target networks by the agent's `target_update`."""
    online = (None if state.actor_target is None else state.actor, state.critics)
    target = (state.actor_target, state.critics_target)
    actor_target, critics_target = stage.agent.target_update.target_update(online, target, stage.event)
    return state._replace(actor_target=actor_target, critics_target=critics_target)


def _post_update(stage: Stage, state: State, y: Float[Array, " B"]) -> State:
    """Call `post_update` of every part that has a state, for slow copies, moving averages and bounds."""
    agent, event, part_states = stage.agent, stage.event, dict(state.part_states)
    if (name := agent.representation.name) in part_states:
        part_states[name] = agent.representation.post_update(part_states[name], stage.batch, event)
    if (name := agent.bootstrap.name) in part_states:
        part_states[name] = agent.bootstrap.post_update(part_states[name], y, event)
    for part in (agent.selector, agent.policy_loss, *agent.regularisers):
        if part.name in part_states:
            part_states[part.name] = part.post_update(part_states[part.name], state.actor, event)
    return state._replace(part_states=part_states)


def _reset_networks(stage: Stage, state: State) -> State:
    """Re-initialise networks if the agent's `reset` part requires it at this update."""
    part = stage.agent.reset
    return part.reset(
        state,
        lambda: stage.agent.reinitialise(state, stage.stream(part, "restart")),
        stage.event,
        stage.agent.base,
    )


def _optimise(stage: Stage, state: State, name: str, params: PyTree, gradient: PyTree) -> State:
    """Make one optimiser step of "actor", "critics", or a part's "NAME.params" or "NAME.actor_params"."""
    updates, moments = stage.agent.optimiser(name).update(gradient, state.optimisers[name], params)
    params = optax.apply_updates(params, updates)
    state = state._replace(optimisers=state.optimisers | {name: moments})
    if name in ("actor", "critics"):
        return state._replace(**{name: params})
    part, kind = name.split(".")
    return state._replace(
        part_states=state.part_states | {part: state.part_states[part]._replace(**{kind: params})}
    )


def _add_term(total: Array, terms: Metrics, term: tuple[Array, Metrics] | None) -> tuple[Array, Metrics]:
    return (total, terms) if term is None else (total + term[0], terms | term[1])
