"""The update of every on-policy agent: one pure function that reads like a paper's pseudo-code."""

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.onpolicy.sockets import Rollout, Samples, Steps
from qscape.onpolicy.state import State
from qscape.ops.surrogate import explained_variance, mean
from qscape.types import Key, Metrics, Scalar, stream

if TYPE_CHECKING:
    from qscape.onpolicy.agent import Agent


def update(
    agent: "Agent", state: State, rollout: Rollout, progress: Scalar | float, key: Key
) -> tuple[State, Metrics]:
    """Learn from one rollout, which the present policy has made.

    Args:
        state: networks, optimisers, counters.
        rollout: T steps of E environments, raw.
        progress: the share of the run that is over, in [0, 1]; what annealing follows.
        key: the run's key; it never advances, the update's number is folded in.

    Returns:
        The new state, and metrics: means over the steps of the optimiser.
    """
    number = state.updates + 1
    key = jax.random.fold_in(key, number)
    state = state._replace(updates=number)
    base, policy_update = agent.base, agent.policy_update

    # 1. what the networks say of the rollout, by the parameters that made it
    obs = agent.normalised(state.part_states, rollout.observation)
    views = agent.views(state.part_states, state.networks, obs)
    log_prob = views.dist.log_prob(rollout.action)
    next_value = None
    if views.value is not None:
        next_obs = agent.normalised(state.part_states, rollout.next_observation)
        next_value = agent.value(state.part_states, state.networks, next_obs)

    # 2. advantages and targets, once
    weight = None if rollout.valid is None else rollout.valid.astype(jnp.float32)
    over = _over(rollout)
    ended = over.at[-1].set(1.0)  # nothing comes after the last row here
    over = ended if base.episodes else over  # all environments begin anew with the next rollout
    terminated = rollout.terminated.astype(jnp.float32)
    steps = Steps(rollout.reward, views.value, next_value, terminated, ended, weight, over)
    state, advantage, target = _estimate(agent, state, steps)

    # 3. actor and critic learn
    columns = Samples(obs, rollout.action, log_prob, advantage, target, views.value, weight)
    samples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), columns)
    context = agent.functions(state, progress, stream(key, f"{policy_update.name}.improve"))
    state, metrics = policy_update.improve(context, state, samples)

    # 4. observation statistics move
    state = agent.see(state, rollout.observation, weight)
    metrics["return_target"] = mean(samples.target, samples.weight)
    lengths = jnp.linalg.norm(views.dist.features, axis=-1).reshape(-1)
    metrics["feature_norm"] = mean(lengths, samples.weight)
    if agent.task.choices:
        metrics["entropy_share"] = metrics["entropy"] / math.log(agent.task.choices)
    if samples.value is not None:
        metrics["explained_variance"] = explained_variance(samples.value, samples.target, samples.weight)
    if base.anneal:
        metrics["learning_rate"] = context.rate
    return state, metrics


def _over(rollout: Rollout) -> Float[Array, "T E"]:
    """1 where the next row belongs to another episode, or is no step."""
    over = rollout.terminated | rollout.truncated
    if rollout.valid is not None:
        over = over.at[:-1].set(over[:-1] | ~rollout.valid[1:])
    return over.astype(jnp.float32)


def _estimate(agent: "Agent", state: State, steps: Steps) -> tuple[State, Array, Array]:
    """Advantages and the critic's targets; what estimator and scaling remember moves on."""
    estimator, scaling = agent.estimator, agent.scaling
    part_states = dict(state.part_states)
    reward, part_states[scaling.name] = scaling.rewards(part_states.get(scaling.name), agent.base, steps)
    steps = steps._replace(reward=reward)
    unit = scaling.values(part_states.get(scaling.name))
    if unit is not None and steps.value is not None and steps.next_value is not None:
        steps = steps._replace(value=steps.value * unit, next_value=steps.next_value * unit)
    advantage, target, part_states[estimator.name] = estimator.estimate(
        part_states.get(estimator.name), agent.base, steps
    )
    part_states[scaling.name] = scaling.see(part_states[scaling.name], target, steps.weight)
    target = target if unit is None else target / unit
    return (
        state._replace(part_states={k: v for k, v in part_states.items() if v is not None}),
        advantage,
        target,
    )
