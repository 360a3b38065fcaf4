"""The update of every off-policy agent: one pure function that reads like a paper's pseudo-code."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from qscape.nets import Actor, Critic
from qscape.nets.batch_norm import has_statistics, split_statistics, with_statistics
from qscape.nets.layers import project
from qscape.offpolicy.agent import Agent, hide_mask
from qscape.offpolicy.sockets import BootstrapRule, Context, StatefulPart, bind_critics, bind_points
from qscape.offpolicy.state import State
from qscape.ops.devices import split_batch
from qscape.ops.in_place import zero_after
from qscape.ops.td import td_target
from qscape.replay.storage import OBSERVATIONS, Layout, ReplayState, rows_at
from qscape.replay.uniform import sample_uniformly
from qscape.types import Batch, Event, Key, Metrics, Part, split_key, stream


def update(
    agent: Agent,
    layout: Layout,
    state: State,
    storage: Array,
    replay_state: ReplayState,
    key: Key,
) -> tuple[State, ReplayState, Metrics, Metrics]:
    """Make one update from replay. Called by `cycle.learn`, and by `Agent.update`.

    Args:
        agent: bound to its task; static.
        layout: how a transition is packed into a row of the storage; static.
        state: networks, optimiser states, counters.
        storage: packed transitions of the replay; only read.
        replay_state: write positions, sizes and priorities of the replay.
        key: the run's key; it never advances, the update's number is folded in.

    Returns:
        The new state, the new replay state, the metrics, and those of the actors' step: NaN between its
        delayed steps.
    """
    base, replay = agent.base, agent.replay
    number = state.updates + 1
    key = jax.random.fold_in(key, number)
    event = Event(number, state.env_steps, base.actor_moves(number), number % base.sync_every == 0)
    state = state._replace(updates=number)
    metrics: Metrics = {}
    of_actors: Metrics = {}

    # 0. a `reset` part may re-initialise networks
    state = _reset_networks(agent, state, event, key)

    # 1. sample
    picked = replay.sample(
        layout, storage, replay_state, stream(key, f"{replay.name}.sample"), base.batch_size
    )
    batch = split_batch(rows_at(layout, storage, replay_state, picked, *agent.sampling_options))
    divisor = agent.scaling.divisor(replay_state.scaling)
    if divisor is not None:
        batch = batch._replace(reward=batch.reward / divisor)
        metrics["reward_divisor"] = divisor
    representation = agent.representation
    batch = agent.selector.training_batch(_normalise_batch(agent, state, batch))
    batch = representation.augment(batch, agent.task, stream(key, f"{representation.name}.augment"))
    batch = _add_newest(Stage(agent, batch, event, key), layout, state, storage, replay_state)
    stage = Stage(agent, batch, event, key)

    # 2. representation and policy loss learn
    if representation.joint_loss_weight is None:
        state, of_representation = _learn_part(stage, state, representation)
        metrics |= of_representation
    state, of_policy_loss = _learn_part(stage, state, agent.policy_loss)

    # 3. critics regress to the target
    stepped, y, td_error, of_critics = _step_critics(stage, state)
    learn = agent.policy_loss.critics_learn(event)
    if learn is not None:  # running statistics move also where the critics do not
        waiting = state._replace(critics=with_statistics(state.critics, stepped.critics))
        stepped = jax.tree.map(partial(jnp.where, learn), stepped, waiting)
    state = stepped

    # 4. priorities, from TD errors in the unit of raw rewards
    td_error = td_error if divisor is None else td_error * divisor
    replay_state = replay.update_priorities(replay_state, picked, td_error)

    # 5. the selector learns, on the stepped critics
    state, of_selector = _learn_part(stage, state, agent.selector)
    state, measured = _measure(stage, state)
    metrics |= of_policy_loss | of_critics | of_selector | measured

    # 6. every policy_delay-th time the actors step
    if state.actor is not None:
        state, of_actors = _step_actors(stage, state)

    # 7. target networks and slow copies update; at a sync in place: not before all that reads them
    waited = zero_after((state.critics, state.actor)) == 0
    stage = stage._replace(event=event._replace(synced=event.synced & waited))
    state = _update_targets(stage, state)
    state = _post_update(stage, state, y)

    return state, replay.post_update(replay_state, event), metrics, of_actors


class Stage(NamedTuple):
    """The values that all stages of one update share.

    Attributes:
        agent: the agent.
        batch: the sampled transitions, with normalised observations.
        event: the number of this update, and what is due at it.
        key: the key of this update.
    """

    agent: Agent
    batch: Batch
    event: Event
    key: Key

    def stream(self, part: Part, method: str) -> Key:
        """Return the key for one method of a part."""
        return stream(self.key, f"{part.name}.{method}")

    def dropout(self, which: str) -> Key | None:
        """Return the key of the masks of dropout in one use of the critics; None without dropout."""
        network = self.agent.network
        return self.stream(network, f"dropout.{which}") if network.drops_units else None

    def context(self, state: State, trains_actors: bool = False) -> Context:
        """Return the networks of a state as functions; see `Agent.functions`."""
        joins = trains_actors and self.agent.network.actor_rows == "both"
        beside = self.batch.next_observation if joins else None
        return self.agent.functions(state, self.event, trains_actors, beside)


def _normalise_batch(agent: Agent, state: State, batch: Batch) -> Batch:
    """Normalise every observation of a batch; replay stores raw observations."""
    if not agent.normalises:
        return batch
    normalise = partial(agent.normaliser.apply, state.part(agent.normaliser))
    apply = partial(agent.task.change_visible, normalise)
    extra = {k: apply(v) if k in OBSERVATIONS else v for k, v in batch.extra.items()}
    return batch._replace(
        observation=apply(batch.observation), next_observation=apply(batch.next_observation), extra=extra
    )


def _add_newest(
    stage: Stage, layout: Layout, state: State, storage: Array, replay_state: ReplayState
) -> Batch:
    """Return the batch with the second batches that regularisers read from the newest transitions."""
    agent, batch, extra = stage.agent, stage.batch, {}
    for part in agent.regularisers:
        if part.newest is None:
            continue
        count = jnp.clip(state.env_steps - agent.base.warmup, 0, part.newest)
        key, size = stage.stream(part, "newest"), agent.base.batch_size
        picked = sample_uniformly(layout, storage, replay_state, key, size, count // layout.envs)
        drawn = split_batch(rows_at(layout, storage, replay_state, picked, 1, 1.0))
        filled = jnp.full(size, count >= size, jnp.float32)
        obs = _normalise_batch(agent, state, drawn).observation
        columns = {"observation": obs, "action": drawn.action, "filled": filled}
        extra |= {f"{part.name}.{column}": value for column, value in columns.items()}
    return batch._replace(extra={**batch.extra, **extra}) if extra else batch


def _learn_part(stage: Stage, state: State, part: StatefulPart) -> tuple[State, Metrics]:
    """Make a part's own gradient step, if the part has `params`; return the state and its metrics."""
    part_state = state.part(part)
    if part_state.params is None:
        return state, {}
    context, key = stage.context(state), stage.stream(part, "learn")

    def loss(params: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
        value, aux, extra = part.learn(params, part_state, context, stage.batch, key)
        return value, (aux, extra)

    gradient, (aux, extra) = jax.grad(loss, has_aux=True)(part_state.params)
    state = _with_extra(state, part, extra)
    return _optimise(stage, state, f"{part.name}.params", part_state.params, gradient), aux


def _measure(stage: Stage, state: State) -> tuple[State, Metrics]:
    """Let the selector follow the stepped critics, if it has a state; return the state and its metrics."""
    part = stage.agent.selector
    if part.name not in state.part_states:
        return state, {}
    part_state, aux = part.measure(
        state.part(part), stage.context(state), stage.batch, stage.stream(part, "measure")
    )
    return state.with_part(part.name, part_state), aux


def _with_extra(state: State, part: StatefulPart, extra: PyTree) -> State:
    """Replace the `extra` of one part."""
    return state.with_part(part.name, state.part(part)._replace(extra=extra))


class NextState(NamedTuple):
    """What the critics' target needs of the next state.

    Attributes:
        action: the target policy's action [B, A]; None if `value` is given.
        bonus: the entropy bonus [B]; None without one.
        value: values [B] that no critic computes; None: the target critics value the action.
    """

    action: Array | None = None
    bonus: Array | None = None
    value: Array | None = None


def _look_ahead(stage: Stage, state: State) -> NextState:
    """Choose the action of the next state, or value the next state without critics."""
    agent, context, obs = stage.agent, stage.context(state), stage.batch.next_observation
    selector, policy_loss = agent.selector, agent.policy_loss
    value = policy_loss.next_value(state.part(policy_loss), agent.task.visible(obs))
    if value is None:
        key = stage.stream(selector, "next_value")
        value = selector.next_value(state.part(selector), context, obs, key)
    if value is not None:
        return NextState(value=value)
    actors = (state.actor, state.actor_target)
    policy = selector.target_policy(
        *actors, state.part(selector), context, obs, stage.stream(selector, "target")
    )
    action, bonus = policy_loss.next_action(
        policy, state.part(policy_loss), context, obs, stage.stream(policy_loss, "target_values")
    )
    return NextState(action, bonus)


def _critic_outputs(
    stage: Stage, view: PyTree, state: State, critics: list[Critic], following: NextState, halves: str
) -> tuple[Float[Array, "rows J n"], list[Critic]]:
    """Compute the outputs of critics in their training step.

    With batch normalisation the rows (s, a) and (s', a') are one batch, whatever half is asked for.

    Args:
        view: the encoder that embeds (s, a).
        halves: "now" for the rows (s, a), "next" for the rows (s', a'), "both" for one after the other.

    Returns:
        The outputs, and the critics with new running statistics.
    """
    batch, rep, task = stage.batch, stage.agent.representation, stage.agent.task
    joint = stage.agent.network.trains_on_joint_batch
    rows: list[tuple[PyTree, Array, Array]] = []
    if halves != "next" or joint:
        rows.append((view, task.visible(batch.observation), batch.action))
    if halves != "now" or joint:
        assert following.action is not None
        target_view = rep.encoder_params(state.part(rep), "target")
        rows.append((target_view, task.visible(batch.next_observation), following.action))
    embeddings = [rep.critic_embeddings(*row) for row in rows]
    if not joint:
        keys = split_key(stage.dropout(halves), len(critics))
        raws = [
            jnp.stack(
                [
                    rep.adapt_network(row[0], critic).outputs(*row[1:], also, key=key)
                    for critic, key in zip(critics, keys, strict=True)
                ],
                1,
            )
            for row, also in zip(rows, embeddings, strict=True)
        ]
        return jnp.concatenate(raws), critics
    _, obs, action = zip(*rows, strict=True)
    joined = [jnp.concatenate(both) for both in zip(*embeddings, strict=True)]
    obs, action = jnp.concatenate(obs), jnp.concatenate(action)
    adapted = [rep.adapt_network(view, critic) for critic in critics]
    raws, moved = zip(*(critic.train(obs, action, joined) for critic in adapted), strict=True)
    raw, size = jnp.stack(raws, 1), len(batch.reward)
    return {"now": raw[:size], "next": raw[size:], "both": raw}[halves], list(moved)


def _targets(stage: Stage, state: State, following: NextState, raw: Array | None) -> PyTree:
    """Compute the critics' targets, without gradient.

    Args:
        raw: outputs [B, J, n] of the critics that value the next state; None if they do not.
    """
    agent, batch = stage.agent, stage.batch
    if raw is None:
        assert following.value is not None
        y = td_target(batch.reward, batch.terminated, batch.discount, following.value)
        return jax.lax.stop_gradient(y[:, None])
    part, part_state = agent.bootstrap, state.part(agent.bootstrap)
    key = stage.stream(part, "weights")

    def weights(qs: Float[Array, "B J"]) -> Float[Array, "B K J"]:
        return part.weights(part_state, qs, key)

    def value(qs: Float[Array, "B J"]) -> Float[Array, "B K"]:
        return part.value(part_state, qs, key)

    rule = BootstrapRule(weights, partial(part.bound, part_state), value)
    target = agent.value.target(raw, rule, following.bonus, batch)
    return jax.lax.stop_gradient(target)


def _fixed_targets(stage: Stage, state: State, following: NextState) -> PyTree:
    """Compute the targets by what the critics' step does not move; None: the critics themselves make them."""
    if following.value is not None:
        return _targets(stage, state, following, None)
    if not stage.agent.network.keeps_target_critics:
        return None
    rep = stage.agent.representation
    view = rep.encoder_params(state.part(rep), "fixed")
    raw, _ = _critic_outputs(stage, view, state, state.critics_target, following, "next")
    return _targets(stage, state, following, raw)


def _step_critics(
    stage: Stage, state: State
) -> tuple[State, Float[Array, "B K"], Float[Array, "B heads"], Metrics]:
    """Make a gradient step of the critics, and of the representation if it shares their loss.

    Returns:
        The new state, the targets as numbers, the TD errors q − y of every head before the step, and the
        metrics of the step.
    """
    agent, batch, base, rep = stage.agent, stage.batch, stage.agent.base, stage.agent.representation
    context, part_state, joint = stage.context(state), state.part(rep), rep.joint_loss_weight
    critics, statistics = split_statistics(state.critics)
    following = _look_ahead(stage, state)
    targets = _fixed_targets(stage, state, following)

    def loss(
        moved: tuple[PyTree, PyTree],
    ) -> tuple[Array, tuple[Array, Array, Metrics, PyTree, list[Critic]]]:
        online, params = eqx.combine(moved[0], statistics), moved[1]
        view = rep.encoder_params(
            part_state if joint is None else part_state._replace(params=params), "fixed"
        )
        halves = "both" if targets is None else "now"
        raw, trained = _critic_outputs(stage, view, state, online, following, halves)
        y = targets
        if targets is None:
            raw, next_raw = jnp.split(raw, 2)
            y = _targets(stage, state, following, next_raw)
        value, aux = agent.value.loss(raw, y, base)
        total = base.critic_loss_scale * value
        q = agent.value.read(raw)
        mean = agent.value.target_mean(y)
        terms: Metrics = {"critic_loss": total, "q": q[:, 0].mean()} | aux
        extra = part_state.extra
        evaluated = hide_mask(bind_critics(rep, view, online), agent.task)
        points = hide_mask(bind_points(rep, online), agent.task)
        learning = context._replace(q=evaluated, points=points)
        for part in agent.regularisers:
            term = part.critic(state.part(part), learning, batch, stage.stream(part, "critic"))
            total, terms = _add_term(total, terms, term)
        if joint is not None:
            value, aux, extra = rep.learn(params, part_state, context, batch, stage.stream(rep, "learn"))
            total, terms = total + joint * value, terms | aux
        return total, (q - mean, mean, terms, extra, trained)

    moved = (critics, None if joint is None else part_state.params)
    gradient, (td_error, y, terms, extra, trained) = jax.grad(loss, has_aux=True)(moved)
    state = _optimise(stage, state, "critics", with_statistics(state.critics, trained), gradient[0])
    if joint is not None:
        state = _with_extra(state, rep, extra)
        state = _optimise(stage, state, f"{rep.name}.params", part_state.params, gradient[1])
    return state, y, td_error, terms


def _step_actors(stage: Stage, state: State) -> tuple[State, Metrics]:
    """Make a gradient step of the actors and of all `actor_params`, if one is due at this update.

    Returns:
        The new state, and the metrics of the step; NaN without a step.
    """
    actor_params = {
        name: part_state.actor_params
        for name, part_state in state.part_states.items()
        if part_state.actor_params is not None
    }

    refreshed = state.actor
    if stage.agent.network.refreshes_actor == "always":
        refreshed = _refresh_actors(stage, state)

    names: list[str] = []
    stepped = ("actor", *(f"{name}.actor_params" for name in actor_params))

    def changed(state: State) -> tuple[PyTree, ...]:  # `cond` would copy all else
        optimisers = {name: state.optimisers[name] for name in stepped}
        return state.actor, optimisers, {name: state.part_states[name].actor_params for name in actor_params}

    def move() -> tuple[tuple[PyTree, ...], Metrics]:
        actor, statistics = split_statistics(state.actor)
        gradient, terms = jax.grad(
            lambda x: _actor_loss(stage, state, eqx.combine(x[0], statistics), x[1]), has_aux=True
        )((actor, actor_params))
        new = refreshed if refreshed is not state.actor else _refresh_actors(stage, state)
        moved = _optimise(stage, state, "actor", new, gradient[0])
        for name, value in actor_params.items():
            moved = _optimise(stage, moved, f"{name}.actor_params", value, gradient[1][name])
        names[:] = terms
        return changed(moved), terms

    def wait() -> tuple[tuple[PyTree, ...], Metrics]:  # traced after `move`, which fills `names`
        terms = dict.fromkeys(names, jnp.full((), jnp.nan, jnp.float32))
        return changed(state._replace(actor=refreshed)), terms

    delayed = stage.agent.base.policy_delay > 1
    new, terms = jax.lax.cond(stage.event.actor_moved, move, wait) if delayed else move()
    actor, optimisers, params = new
    part_states = {n: state.part_states[n]._replace(actor_params=value) for n, value in params.items()}
    stepped_state = state._replace(
        actor=actor,
        optimisers=state.optimisers | optimisers,
        part_states=state.part_states | part_states,
    )
    return stepped_state, terms


def _refresh_actors(stage: Stage, state: State) -> PyTree:
    """Return the actors with running statistics that took in the observations of the batch."""
    rep, obs = stage.agent.representation, stage.batch.observation
    if stage.agent.network.actor_rows == "both":
        obs = jnp.concatenate([obs, stage.batch.next_observation])
    obs = stage.agent.task.actor_part(obs)
    view = rep.encoder_params(state.part(rep), "fixed")

    def refresh(node: Any) -> Any:
        if not (isinstance(node, Actor) and has_statistics(node)):
            return node
        trained = rep.adapt_network(view, node).train(obs, rep.actor_embeddings(view, obs))[1]
        return with_statistics(node, trained)

    return jax.tree.map(refresh, state.actor, is_leaf=lambda node: isinstance(node, Actor))


def _actor_loss(
    stage: Stage, state: State, actor: PyTree, actor_params: dict[str, PyTree]
) -> tuple[Array, Metrics]:
    """Sum the losses of all objectives and the actor terms of the regularisers.

    The policy loss gets the gradient of its `actor_params` from the first objective only.
    """
    agent, batch, state = stage.agent, stage.batch, state._replace(actor=actor)
    context, part = stage.context(state), agent.policy_loss
    training = stage.context(state, trains_actors=True)
    if (key := stage.dropout("actor")) is not None:
        rep = agent.representation
        view = rep.encoder_params(state.part(rep), "fixed")
        training = training._replace(q=hide_mask(bind_critics(rep, view, state.critics, key), agent.task))
    total, terms = jnp.zeros(()), {}
    objectives = agent.selector.actor_objectives(actor, state.part(agent.selector), training, batch)
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
    """Update the target networks by the agent's `target_update`; running statistics are copied."""
    target = (state.actor_target, state.critics_target)
    online = (
        None if state.actor_target is None else state.actor,
        state.critics if stage.agent.network.keeps_target_critics else [],
    )
    online, statistics = split_statistics(online)
    moved = stage.agent.target_update.target_update(online, split_statistics(target)[0], stage.event)
    actor_target, critics_target = eqx.combine(moved, statistics)
    return state._replace(actor_target=actor_target, critics_target=critics_target)


def _post_update(stage: Stage, state: State, y: Float[Array, "B K"]) -> State:
    """Call `post_update` of every part that has a state, for slow copies, moving averages and bounds."""
    agent, event, part_states = stage.agent, stage.event, dict(state.part_states)
    if (name := agent.representation.name) in part_states:
        seen = agent.task.visible(stage.batch.observation)
        batch = stage.batch._replace(observation=seen)
        part_states[name] = agent.representation.post_update(part_states[name], batch, event)
    if (name := agent.bootstrap.name) in part_states:
        part_states[name] = agent.bootstrap.post_update(part_states[name], y, event)
    for part in (agent.selector, agent.policy_loss, *agent.regularisers):
        if part.name in part_states:
            part_states[part.name] = part.post_update(part_states[part.name], state.actor, event)
    return state._replace(part_states=part_states)


def _reset_networks(agent: Agent, state: State, event: Event, key: Key) -> State:
    """Re-initialise networks if the agent's `reset` part requires it before this update learns."""
    restart = stream(key, f"{agent.reset.name}.restart")
    return agent.reset.reset(state, lambda: agent.reinitialise(state, restart), event, agent.base)


def _optimise(stage: Stage, state: State, name: str, params: PyTree, gradient: PyTree) -> State:
    """Make one optimiser step of "actor", "critics", or a part's "NAME.params" or "NAME.actor_params".

    Running statistics keep the values that `params` has.
    """
    trained, statistics = split_statistics(params)
    updates, moments = stage.agent.optimiser(name).update(gradient, state.optimisers[name], trained)
    params = eqx.combine(project(optax.apply_updates(trained, updates)), statistics)
    state = state._replace(optimisers=state.optimisers | {name: moments})
    if name in ("actor", "critics"):
        return state._replace(**{name: params})
    part, kind = name.split(".")
    return state.with_part(part, state.part_states[part]._replace(**{kind: params}))


def _add_term(total: Array, terms: Metrics, term: tuple[Array, Metrics] | None) -> tuple[Array, Metrics]:
    return (total, terms) if term is None else (total + term[0], terms | term[1])
