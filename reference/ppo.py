"""PPO in one file, to be read from top to bottom.

Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) with the usual details: generalised
advantage estimation, advantages standardised in each minibatch, and gradient clipping. A time limit does not
cut the bootstrap: the return includes the value of the true last observation.

With `unroll` U, a minibatch holds whole unrolls: U consecutive steps of one environment. Advantages end with
an unroll and are computed anew in each minibatch, with the critic of then.

The policy is a softmax over K actions. A network is a list of layers; a layer is a pair (W [out, in], b
[out]).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qscape.ops.adam import scale_by_adam
from qscape.ops.product import product
from qscape.types import stream

DISCOUNT, DECAY = 0.99, 0.95
BATCH_SIZE, PASSES = 64, 10
BOUND = 0.2  # clipping range ε of the probability ratio
VALUE_COEFFICIENT = 0.5
LEARNING_RATE = 3e-4
adam = optax.chain(optax.clip_by_global_norm(0.5), scale_by_adam(eps=1e-5))


# --- networks --------------------------------------------------------------------------------------


def linear(layer, x):
    """x Wᵀ + b."""
    weight, bias = layer
    return product(x, weight) + bias


def forward(layers, x):
    """Linear layers with tanh between them."""
    for layer in layers[:-1]:
        x = jnp.tanh(linear(layer, x))
    return linear(layers[-1], x)


def log_prob(actor, obs, action):
    """log π(a | s) of the actions [...]."""
    every = jax.nn.log_softmax(forward(actor, obs), -1)
    return jnp.take_along_axis(every, action[..., None], -1)[..., 0]


def value(critic, obs):
    """v(s) [...]."""
    return forward(critic, obs)[..., 0]


# --- the state of an agent ------------------------------------------------------------------------------


class State(NamedTuple):
    """Networks, optimiser state and the number of updates."""

    actor: list
    critic: list
    adam: tuple  # state of the optimiser of actor and critic
    updates: jax.Array


class Rollout(NamedTuple):
    """T steps of E environments."""

    obs: jax.Array  # [T, E, S]
    action: jax.Array  # [T, E]
    reward: jax.Array  # [T, E]
    terminated: jax.Array  # [T, E]
    truncated: jax.Array  # [T, E]
    next_obs: jax.Array  # [T, E, S], the true successor


# --- one update ------------------------------------------------------------------------------------


def gae(reward, v, next_v, terminated, segment_end):
    """Advantages [T, E], from the last step to the first. Only a terminal state cuts the bootstrap."""
    delta = reward + DISCOUNT * (1.0 - terminated) * next_v - v

    def accumulate_backwards(after, row):
        delta, segment_end = row
        advantage = delta + (1.0 - segment_end) * DISCOUNT * DECAY * after
        return advantage, advantage

    return jax.lax.scan(accumulate_backwards, jnp.zeros_like(v[0]), (delta, segment_end), reverse=True)[1]


def update(state, rollout, key, unroll=0):
    """The state after one update. `key` is the run's and never changes; the update's number is folded in."""
    number = state.updates + 1
    key = stream(jax.random.fold_in(key, number), "clipped.improve")

    # Log-probabilities and values under the networks that collected the rollout.
    old_log_prob = log_prob(state.actor, rollout.obs, rollout.action)
    v, next_v = value(state.critic, rollout.obs), value(state.critic, rollout.next_obs)

    terminated = rollout.terminated.astype(jnp.float32)
    segment_end = (rollout.terminated | rollout.truncated).at[-1].set(True).astype(jnp.float32)
    advantage = gae(rollout.reward, v, next_v, terminated, segment_end)
    target = advantage + v

    # Passes over all steps, or unrolls, in minibatches, each pass in a new random order.
    columns = (rollout.obs, rollout.action, old_log_prob, advantage, target)
    columns = [x.reshape(-1, *x.shape[2:]) for x in columns]
    n, size = advantage.size, BATCH_SIZE
    if unroll:
        columns = (rollout.obs, rollout.action, old_log_prob)
        columns += (rollout.reward, terminated, segment_end, rollout.next_obs)
        columns = [jnp.swapaxes(x.reshape(-1, unroll, *x.shape[1:]), 1, 2) for x in columns]
        columns = [x.reshape(-1, *x.shape[2:]) for x in columns]  # [n, U, ...]
        columns[5] = columns[5].at[:, -1].set(1.0)
        n, size = n // unroll, BATCH_SIZE // unroll

    def advantages_anew(critic, obs, reward, terminated, segment_end, next_obs):
        rows = [value(critic, x.reshape(-1, x.shape[-1])).reshape(reward.shape) for x in (obs, next_obs)]
        advantage = gae(*(x.T for x in (reward, *rows, terminated, segment_end))).T
        return advantage.reshape(-1), (advantage + rows[0]).reshape(-1)

    def learn_minibatch(carry, i):
        networks, moments = carry
        obs, action, old, *rest = (x[i] for x in columns)
        advantage, target = advantages_anew(networks[1], obs, *rest) if unroll else rest
        obs, action, old = (
            x.reshape(target.shape + x.shape[2:]) if unroll else x for x in (obs, action, old)
        )

        def loss(networks):
            actor, critic = networks
            centred = advantage - advantage.mean()
            a = centred / (jnp.sqrt((centred**2).sum() / jnp.maximum(len(advantage) - 1.0, 1.0)) + 1e-8)
            ratio = jnp.exp(log_prob(actor, obs, action) - old)
            policy_loss = -jnp.minimum(ratio * a, jnp.clip(ratio, 1.0 - BOUND, 1.0 + BOUND) * a)
            value_loss = (target - value(critic, obs)) ** 2
            return policy_loss.mean() + VALUE_COEFFICIENT * value_loss.mean()

        step, moments = adam.update(jax.grad(loss)(networks), moments)
        return (jax.tree.map(lambda p, d: p + -jnp.float32(LEARNING_RATE) * d, networks, step), moments), None

    def one_pass(number, carry):
        order = jnp.argsort(jax.random.uniform(jax.random.fold_in(key, number), (n,)))
        return jax.lax.scan(learn_minibatch, carry, order.reshape(-1, size))[0]

    networks, moments = jax.lax.fori_loop(0, PASSES, one_pass, ((state.actor, state.critic), state.adam))
    return State(*networks, moments, number)
