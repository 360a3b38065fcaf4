"""DQN in one file, to be read from top to bottom.

Deep Q-network (Mnih et al., Nature 2015) with double Q-learning (van Hasselt, Guez, Silver 2016,
arXiv 1509.06461). One network computes the values of all N actions in one pass. The agent takes the action of
the greatest value, or with probability ε a random one. A target network, which is a copy made every 128
updates, values the next state. The online network chooses the action there, so that errors that look good are
not chosen and valued by the same network.

Returns here are of one step; `dqn` sums three by default (`base.n_step`), before they enter an update.

A network is a list of layers; a layer is a pair (W [out, in], b [out]).
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
DOUBLE = True  # False: the target network also chooses the next action
SYNC_EVERY = 128  # updates between copies of the target network
WARMUP = 1_000  # steps with random actions, before ε begins to fall
EPSILON_END, EPSILON_STEPS = 0.04, 10_000
adam = optax.chain(optax.clip_by_global_norm(10.0), make_adam(1e-3))


# --- the network -----------------------------------------------------------------------------------


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


def values(network, obs):
    """Q(s, ·) [B, N]."""
    h = obs
    for layer in network[:-1]:
        h = jax.nn.relu(linear(layer, h))
    return linear(network[-1], h)


class State(NamedTuple):
    """Networks, optimiser state and a counter."""

    critics: list  # one network
    critics_target: list
    critics_adam: tuple
    updates: jax.Array


def init(key, observation_size, actions, hidden=(256, 256)):
    """The initial state. The target network starts equal to the online network."""
    network = make_network(key, observation_size, *hidden, actions)
    return State(network, network, adam.init(network), jnp.zeros((), jnp.int32))


# --- acting ----------------------------------------------------------------------------------------


def act(state, obs):
    """The action in evaluations, an index [B, 1]."""
    return values(state.critics, obs).argmax(-1)[:, None].astype(jnp.float32)


def explore(state, obs, step, key):
    """The action in training, at environment step `step`: ε-greedy, with an ε that falls linearly."""
    key = stream(jax.random.fold_in(key, step), "argmax.act.explore")
    k_when, k_what = jax.random.split(key)
    passed = jnp.clip((step - WARMUP) / EPSILON_STEPS, 0.0, 1.0)
    epsilon = 1.0 + (EPSILON_END - 1.0) * passed
    is_random = jax.random.uniform(k_when, obs.shape[:1]) < epsilon
    actions = state.critics[-1][1].shape[0]
    random = jax.random.randint(k_what, (len(obs), 1), 0, actions).astype(jnp.float32)
    return jnp.where(is_random[:, None], random, act(state, obs))


# --- one update ------------------------------------------------------------------------------------


def update(state, transitions, key, batch_size=64):
    """The state after one update. `key` is the run's and never changes; the update's number is folded in.

    The transitions are those of `reference.td3`, with indices as actions [N, 1].
    """
    number = state.updates + 1
    key = jax.random.fold_in(key, number)

    # Sample a batch uniformly, with replacement.
    i = jax.random.randint(stream(key, "uniform.sample"), (batch_size,), 0, len(transitions.reward))
    obs, action, reward, terminated, next_obs = (column[i] for column in transitions)

    # The target: the reward plus the target network's value of the action that the online network chooses.
    chooser = state.critics if DOUBLE else state.critics_target
    next_action = values(chooser, next_obs).argmax(-1)
    y = reward + (1.0 - terminated) * DISCOUNT * take(values(state.critics_target, next_obs), next_action)

    # The value of the action that was taken regresses to y; errors beyond 1 pull no harder (the Huber loss).
    def loss(network):
        return optax.huber_loss(take(values(network, obs), action[:, 0].astype(jnp.int32)) - y).mean()

    step, critics_adam = adam.update(jax.grad(loss)(state.critics), state.critics_adam)
    critics = optax.apply_updates(state.critics, step)

    # The target network becomes a copy now and then.
    is_due = number % SYNC_EVERY == 0
    target = jax.lax.cond(is_due, lambda: critics, lambda: state.critics_target)
    return State(critics, target, critics_adam, number)


def take(values, action):
    """The entries [B] of values [B, N] that belong to the actions [B]."""
    return jnp.take_along_axis(values, action[:, None], -1)[:, 0]
