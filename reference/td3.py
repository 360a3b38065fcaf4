"""TD3 in one file, to be read from top to bottom. Start here.

Twin delayed deep deterministic policy gradient (Fujimoto, van Hoof, Meger 2018, arXiv 1802.09477), with the
settings of the authors' current code. A deterministic actor maximises the value that a critic has learned.
Three changes to DDPG reduce overestimation: the target uses the minimum of two critics, noise on the target
action smooths sharp peaks, and the actor is updated only at every second update of the critics.

Actions are in [-1, 1]. A network is a list of layers; a layer is a pair (W [out, in], b [out]).
"""

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qscape.ops.adam import make_adam
from qscape.ops.product import product
from qscape.types import stream

DISCOUNT = 0.99
POLICY_DELAY = 2  # critic updates per actor update
TARGET_NOISE, TARGET_NOISE_CLIP = 0.2, 0.5
EXPLORATION_NOISE = 0.1
TARGET_RATE = 0.005  # τ of Polyak averaging
adam = make_adam(3e-4)


# --- networks --------------------------------------------------------------------------------------


def make_network(key, *sizes):
    """Make linear layers of these sizes; weights and biases are uniform in ±1/√fan_in."""
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        key, k_weight, k_bias = jax.random.split(key, 3)
        bound = fan_in**-0.5
        weight = jax.random.uniform(k_weight, (fan_out, fan_in), minval=-bound, maxval=bound)
        layers.append((weight, jax.random.uniform(k_bias, (fan_out,), minval=-bound, maxval=bound)))
    return layers


def linear(layer, x):
    """x Wᵀ + b."""
    weight, bias = layer
    return product(x, weight) + bias


def policy(actor, obs):
    """The action [B, A]."""
    h = obs
    for layer in actor[:-1]:
        h = jax.nn.relu(linear(layer, h))
    return jnp.tanh(linear(actor[-1], h))


def values(critics, obs, action):
    """Q(s, a) of both critics [B, 2]."""
    heads = []
    for critic in critics:
        h = jnp.concatenate([obs, action], -1)
        for layer in critic[:-1]:
            h = jax.nn.relu(linear(layer, h))
        heads.append(linear(critic[-1], h))
    return jnp.concatenate(heads, -1)


# --- the state of an agent ------------------------------------------------------------------------------


class State(NamedTuple):
    """Networks, optimiser states and counters."""

    actor: list
    actor_target: list
    critics: list  # of two
    critics_target: list
    actor_adam: tuple
    critics_adam: tuple
    updates: jax.Array


def init(key, observation_size, action_size, hidden=(256, 256)):
    """The initial state. Target networks start equal to the online networks."""
    k_actor, k_1, k_2 = jax.random.split(key, 3)
    actor = make_network(k_actor, observation_size, *hidden, action_size)
    critics = [make_network(k, observation_size + action_size, *hidden, 1) for k in (k_1, k_2)]
    networks = actor, actor, critics, critics
    return State(*networks, adam.init(actor), adam.init(critics), jnp.zeros((), jnp.int32))


# --- acting ----------------------------------------------------------------------------------------


def act(state, obs):
    """The action in evaluations."""
    return policy(state.actor, obs)


def explore(state, obs, step, key):
    """The action in training, at environment step `step`: the policy's action plus Gaussian noise."""
    _, key = jax.random.split(stream(jax.random.fold_in(key, step), "single.act.explore"))
    action = policy(state.actor, obs)
    return jnp.clip(action + EXPLORATION_NOISE * jax.random.normal(key, action.shape), -1.0, 1.0)


# --- one update ------------------------------------------------------------------------------------


class Transitions(NamedTuple):
    """All transitions in replay, a row each. `terminated` is 0 where only a time limit ended the episode."""

    obs: jax.Array  # [N, S]
    action: jax.Array  # [N, A]
    reward: jax.Array  # [N]
    terminated: jax.Array  # [N]
    next_obs: jax.Array  # [N, S]


def update(state, transitions, key, batch_size=256):
    """The state after one update. `key` is the run's and never changes; the update's number is folded in."""
    number = state.updates + 1
    key = jax.random.fold_in(key, number)

    # Sample a batch uniformly, with replacement.
    i = jax.random.randint(stream(key, "uniform.sample"), (batch_size,), 0, len(transitions.reward))
    obs, action, reward, terminated, next_obs = (column[i] for column in transitions)

    # The target: the reward plus the minimum of the target critics at a noisy target action.
    next_action = policy(state.actor_target, next_obs)
    noise = TARGET_NOISE * jax.random.normal(stream(key, "single.target"), next_action.shape)
    noise = jnp.clip(noise, -TARGET_NOISE_CLIP, TARGET_NOISE_CLIP)
    next_action = jnp.clip(next_action + noise, -1.0, 1.0)
    next_value = values(state.critics_target, next_obs, next_action).min(-1)
    y = reward + (1.0 - terminated) * DISCOUNT * next_value

    # Both critics regress to y: squared errors, summed over the critics, averaged over the batch.
    def critic_loss(critics):
        return ((values(critics, obs, action) - y[:, None]) ** 2).sum(-1).mean()

    step, critics_adam = adam.update(jax.grad(critic_loss)(state.critics), state.critics_adam)
    critics = optax.apply_updates(state.critics, step)

    # At every second update, the actor maximises the first critic, and the targets move.
    def actor_loss(actor):
        return -values(critics, obs, policy(actor, obs))[:, 0].mean()

    def update_actor():
        step, actor_adam = adam.update(jax.grad(actor_loss)(state.actor), state.actor_adam)
        actor = optax.apply_updates(state.actor, step)
        return (
            actor,
            actor_adam,
            update_target(state.actor_target, actor),
            update_target(state.critics_target, critics),
        )

    def keep_actor():
        return state.actor, state.actor_adam, state.actor_target, state.critics_target

    is_due = number % POLICY_DELAY == 0
    actor, actor_adam, actor_target, critics_target = jax.lax.cond(is_due, update_actor, keep_actor)
    return State(actor, actor_target, critics, critics_target, actor_adam, critics_adam, number)


def update_target(target, online):
    """Polyak averaging: target ← (1 - τ) target + τ online."""
    return jax.tree.map(lambda old, new: TARGET_RATE * new + (1.0 - TARGET_RATE) * old, target, online)
