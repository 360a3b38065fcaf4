"""One update of an on-policy agent, as a pure function that reads like a paper's pseudo-code."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.onpolicy.agent import Agent
from qscape.onpolicy.sockets import RolloutSamples, Successors, Trajectory
from qscape.onpolicy.state import State
from qscape.ops.devices import replicate, split_batch
from qscape.ops.surrogate import explained_variance, weighted_mean
from qscape.types import Key, Metrics, Scalar, Transition, stream


def update(
    agent: Agent, state: State, rollout: Transition, progress: Scalar | float, key: Key
) -> tuple[State, Metrics]:
    """Train the agent on one rollout of its current policy.

    Args:
        agent: the parts and settings; static.
        state: networks, optimiser states, counters.
        rollout: T steps of E environments, with raw observations.
        progress: the share of the run that is done, in [0, 1]; annealing follows it.
        key: the run's key. It never changes; the number of the update is folded in.

    Returns:
        The new state, and metrics: means over the optimiser steps.
    """
    number = state.updates + 1
    key = jax.random.fold_in(key, number)
    state = state._replace(updates=number)
    base, policy_update = agent.base, agent.policy_update
    rollout = split_batch(rollout, axis=1)

    done = _find_episode_ends(rollout)
    segment_end = done.at[-1].set(1.0)  # no row follows the last one

    # 1. Log-probabilities and values under the parameters that collected the rollout.
    obs = agent.normalise_obs(state.part_states, rollout.observation)
    next_obs = agent.normalise_obs(state.part_states, rollout.next_observation)
    outputs = agent.apply_networks(state.part_states, state.networks, obs)
    log_prob = outputs.dist.log_prob(rollout.action)
    context = agent.make_context(state, progress, stream(key, f"{policy_update.name}.improve"))
    value, next_value = outputs.value, None
    if value is not None:
        next_value = agent.value(state.part_states, state.networks, next_obs)
    elif policy_update.has_own_critic and agent.estimator.needs_critic:
        keys = jax.random.split(stream(key, f"{policy_update.name}.values"))
        value, next_value = (
            policy_update.values(context, state.networks, x.reshape(-1, x.shape[-1]), k).reshape(x.shape[:2])
            for x, k in zip((obs, next_obs), keys, strict=True)
        )
        # Values of drawn actions differ from draw to draw; in an episode one state has one value.
        next_value = jnp.where(segment_end > 0, next_value, jnp.roll(value, -1, 0))

    # 2. Advantages and targets, once per rollout.
    weight = None if rollout.valid is None else rollout.valid.astype(jnp.float32)
    done = segment_end if base.episodes else done  # with whole episodes, every rollout starts with a reset
    terminated = rollout.terminated.astype(jnp.float32)
    trajectory = Trajectory(rollout.reward, value, next_value, terminated, segment_end, weight, done)
    state, advantage, target, scale = _estimate_advantages(agent, state, trajectory)

    # 3. Actor and critic are trained.
    columns = RolloutSamples(obs, rollout.action, log_prob, advantage, target, value, weight)
    raw = rollout._replace(terminated=terminated)
    if (unroll := policy_update.unroll_length) and next_value is not None:
        successors = Successors(scale(rollout.reward), next_obs, terminated, segment_end)
        columns, raw = _cut_unrolls(columns._replace(successors=successors), raw, unroll)
    samples, transitions = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (columns, raw))
    # With several devices each gets the whole rollout once, since minibatches are drawn from all of it.
    samples = replicate(samples)
    samples = samples if base.batch_size else split_batch(samples)
    state, metrics = policy_update.improve(context._replace(scale=scale), state, samples, transitions)

    part = agent.refiner
    if part.name in state.part_states:
        k_learn = stream(key, f"{part.name}.learn")
        own, more = part.learn(state.part_states[part.name], base, context.rate, samples, k_learn)
        state = state._replace(part_states=state.part_states | {part.name: own})
        metrics = metrics | more

    # 4. Observation statistics move last, so that PPO's first probability ratio is exactly 1.
    state = agent.update_normaliser(state, rollout.observation, weight)
    metrics["return_target"] = weighted_mean(samples.target, samples.weight)
    lengths = jnp.linalg.norm(outputs.dist.features, axis=-1)
    lengths = lengths.reshape(advantage.size, -1).mean(-1)  # over the heads of a product
    metrics["feature_norm"] = weighted_mean(lengths, None if weight is None else weight.reshape(-1))
    if (actions := math.prod(agent.task.index_sizes or ())) > 1:
        metrics["entropy_share"] = metrics["entropy"] / math.log(actions)
    if samples.value is not None:
        metrics["explained_variance"] = explained_variance(samples.value, samples.target, samples.weight)
    if base.anneal:
        metrics["learning_rate"] = context.rate
    return state, metrics


def _find_episode_ends(rollout: Transition) -> Float[Array, "T E"]:
    """Return 1 where the next row belongs to another episode or is no environment step, else 0."""
    done = rollout.terminated | rollout.truncated
    if rollout.valid is not None:
        done = done.at[:-1].set(done[:-1] | ~rollout.valid[1:])
    return done.astype(jnp.float32)


def _cut_unrolls(columns: RolloutSamples, raw: Transition, unroll: int) -> tuple[RolloutSamples, Transition]:
    """Return the rows [T, E] of a rollout as unrolls [⌈T / U⌉ E, U], with what followed them.

    If U does not divide T, the last unroll of every environment ends with rows of weight 0.
    """
    rows, envs = columns.advantage.shape
    missing = -rows % unroll
    if missing and columns.weight is None:
        columns = columns._replace(weight=jnp.ones((rows, envs)))

    def cut(x: Array, mode: str = "edge") -> Array:
        x = jnp.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)], mode)
        x = x.reshape(-1, unroll, *x.shape[1:]).swapaxes(1, 2)
        return x.reshape(-1, unroll, *x.shape[3:])

    weight = None if columns.weight is None else cut(columns.weight, "constant")
    columns, raw = jax.tree.map(cut, (columns, raw))
    successors = columns.successors
    assert successors is not None
    segment_end = successors.segment_end.at[:, -1].set(1.0)
    return columns._replace(weight=weight, successors=successors._replace(segment_end=segment_end)), raw


def _estimate_advantages(
    agent: Agent, state: State, trajectory: Trajectory
) -> tuple[State, Array, Array, Callable[[Array], Array]]:
    """Return the state with the new states of scaling and estimator; advantages and critic targets [T, E];
    `scale`.

    Targets are in the critic's unit, and `scale` brings rewards into it (`UpdateContext.scale`).
    """
    estimator, scaling = agent.estimator, agent.scaling
    part_states = dict(state.part_states)
    reward, part_states[scaling.name] = scaling.scale_rewards(
        part_states.get(scaling.name), agent.base, trajectory
    )
    trajectory, in_use = trajectory._replace(reward=reward), part_states[scaling.name]
    scale = scaling.value_scale(in_use)
    if scale is not None and trajectory.value is not None and trajectory.next_value is not None:
        trajectory = trajectory._replace(
            value=trajectory.value * scale, next_value=trajectory.next_value * scale
        )
    advantage, target, part_states[estimator.name] = estimator.estimate(
        part_states.get(estimator.name), agent.base, trajectory
    )
    part_states[scaling.name] = scaling.update(part_states[scaling.name], target, trajectory.weight)
    if scale is not None:
        target = target / scale

    def to_critic_unit(reward: Array) -> Array:
        scaled = scaling.apply(in_use, reward)
        return scaled if scale is None else scaled / scale

    return (
        state._replace(part_states={k: v for k, v in part_states.items() if v is not None}),
        advantage,
        target,
        to_critic_unit,
    )
