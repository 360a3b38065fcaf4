"""REINFORCE in one file, to be read from top to bottom.

The policy gradient with Monte Carlo returns (Williams 1992), as in Tianshou: whole episodes are collected,
their returns are standardised by the running moments of earlier returns, and a softmax policy is trained on
them in two passes of minibatches. There is no critic.

A return that is cut short, by a time limit or because the rollout is full, is bootstrapped with the mean of
the returns seen so far. A network is a list of layers; a layer is a pair (W [out, in], b [out]).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qscape.ops.adam import scale_by_adam
from qscape.ops.product import product
from qscape.types import stream

DISCOUNT = 0.95
BATCH_SIZE, PASSES = 64, 2
LEARNING_RATE = 1e-3
adam = scale_by_adam(eps=1e-8)


# --- networks --------------------------------------------------------------------------------------


def linear(layer, x):
    """x Wᵀ + b."""
    weight, bias = layer
    return product(x, weight) + bias


def log_probs(actor, obs):
    """log π(a | s) of all actions [..., K]."""
    for layer in actor[:-1]:
        obs = jax.nn.relu(linear(layer, obs))
    return jax.nn.log_softmax(linear(actor[-1], obs), -1)


def log_prob(actor, obs, action):
    """log π(a | s) of the actions [...]."""
    return jnp.take_along_axis(log_probs(actor, obs), action[..., None], -1)[..., 0]


# --- the state of an agent ------------------------------------------------------------------------------


class State(NamedTuple):
    """The policy, the optimiser state, the running moments of returns and the number of updates."""

    actor: list
    adam: tuple
    mean: jax.Array  # of the returns so far; initially 0
    var: jax.Array  # initially 1
    seen: jax.Array  # number of returns
    updates: jax.Array


class Rollout(NamedTuple):
    """T rows of E environments. `valid` is False for rows that are no environment steps."""

    obs: jax.Array  # [T, E, S]
    action: jax.Array  # [T, E]
    reward: jax.Array  # [T, E]
    terminated: jax.Array  # [T, E]
    truncated: jax.Array  # [T, E]
    valid: jax.Array  # [T, E]


# --- one update ------------------------------------------------------------------------------------


def update(state, rollout, key):
    """The state after one update. `key` is the run's and never changes; the update's number is folded in."""
    number = state.updates + 1
    key = stream(jax.random.fold_in(key, number), "policy_gradient.improve")
    valid = rollout.valid.astype(jnp.float32)

    # A segment ends where the episode ends, where the next row is no step, and at the last row.
    segment_end = rollout.terminated | rollout.truncated
    segment_end = (
        segment_end.at[:-1].set(segment_end[:-1] | ~rollout.valid[1:]).at[-1].set(True).astype(jnp.float32)
    )
    terminated = rollout.terminated.astype(jnp.float32)

    # The returns, from the last step to the first.
    def accumulate_backwards(after, row):
        reward, terminated, segment_end = row
        return_ = (
            reward
            + DISCOUNT * (1 - terminated) * (segment_end * state.mean)
            + (1 - segment_end) * DISCOUNT * after
        )
        return return_, return_

    rows = (rollout.reward, terminated, segment_end)
    _, returns = jax.lax.scan(accumulate_backwards, jnp.zeros_like(rollout.reward[0]), rows, reverse=True)

    # Standardise by the moments of earlier returns; these returns are added afterwards.
    advantage = (returns - state.mean) / jnp.sqrt(state.var + 1e-8)
    mean, var, seen = add_batch(state, returns.reshape(-1), valid.reshape(-1))

    # Two passes, each in a new random order; rows that are no steps come last.
    def flat(x):
        return x.reshape(-1, *x.shape[2:])

    obs, action, advantage, valid = flat(rollout.obs), flat(rollout.action), flat(advantage), flat(valid)
    steps = valid.sum().astype(jnp.int32)
    minibatches = jnp.maximum(steps // BATCH_SIZE, 1)  # the last one includes the remainder

    def learn_minibatch(carry, i, weight):
        actor, moments = carry

        def loss(actor):
            each = -log_prob(actor, obs[i], action[i]) * advantage[i]
            return (each * weight).sum() / jnp.maximum(weight.sum(), 1.0)

        step, moments = adam.update(jax.grad(loss)(actor), moments)
        return jax.tree.map(lambda p, d: p + -jnp.float32(LEARNING_RATE) * d, actor, step), moments

    def one_pass(number, carry):
        draws = jax.random.uniform(jax.random.fold_in(key, number), valid.shape)
        order = jnp.argsort(jnp.where(valid > 0, draws, 2.0))
        order = jnp.concatenate([order, jnp.zeros(2 * BATCH_SIZE, order.dtype)])

        def learn_full_minibatch(j, carry):
            i = jax.lax.dynamic_slice(order, (j * BATCH_SIZE,), (BATCH_SIZE,))
            return learn_minibatch(carry, i, valid[i])

        carry = jax.lax.fori_loop(0, minibatches - 1, learn_full_minibatch, carry)
        start = (minibatches - 1) * BATCH_SIZE
        i = jax.lax.dynamic_slice(order, (start,), (2 * BATCH_SIZE - 1,))
        return learn_minibatch(carry, i, (jnp.arange(len(i)) < steps - start).astype(jnp.float32))

    actor, moments = jax.lax.fori_loop(0, PASSES, one_pass, (state.actor, state.adam))
    return State(actor, moments, mean, var, seen, number)


def add_batch(state, x, weight):
    """Running mean, variance and count after a further batch (Chan et al. 1979)."""
    count = weight.sum()
    mean = weight @ x[:, None] / jnp.maximum(count, 1.0)
    var = weight @ (x[:, None] - mean) ** 2 / jnp.maximum(count, 1.0)
    seen, delta = state.seen + count, mean - state.mean
    total = jnp.maximum(seen, 1e-8)
    spread = state.var * state.seen + var * count + delta**2 * state.seen * count / total
    mean = state.mean + delta * count / total
    return mean[0], jnp.where(seen > 0, spread / total, state.var)[0], seen
