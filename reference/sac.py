"""SAC in one file, to be read from top to bottom; read `td3.py` first.

Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905) with a learned temperature. The policy is random,
a = tanh(u) with u ~ N(mean, std²), and is rewarded for its entropy: it maximises Q - α log π. The
temperature α is trained such that the entropy is about -A. There is no target actor, no delay and no noise.

Actions are in [-1, 1]. A network is a list of layers; a layer is a pair (W [out, in], b [out]).
"""

import math
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qscape.ops.adam import make_adam
from qscape.ops.product import product
from qscape.types import stream

DISCOUNT = 0.99
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
TARGET_RATE = 0.005  # share of the online critics that the targets take over
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
    """Mean and log standard deviation [B, A] of u; the last two layers are the two heads."""
    *hidden, mean, log_std = actor
    h = obs
    for layer in hidden:
        h = jax.nn.relu(linear(layer, h))
    return linear(mean, h), jnp.clip(linear(log_std, h), LOG_STD_MIN, LOG_STD_MAX)


def sample(actor, obs, key):
    """An action [B, A], differentiable in the actor, and its log-probability [B]."""
    mean, log_std = policy(actor, obs)
    u = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    action = jnp.tanh(u)
    z = (u - mean) * jnp.exp(-log_std)
    log_normal = -0.5 * z**2 - log_std - 0.5 * math.log(2.0 * math.pi)
    # Change of variables: subtract log |da/du| = log(1 - tanh²u), in a form that never overflows.
    log_slope = 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))
    return action, (log_normal - log_slope).sum(-1)


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
    critics: list  # of two
    critics_target: list
    log_alpha: jax.Array
    actor_adam: tuple
    critics_adam: tuple
    alpha_adam: tuple
    updates: jax.Array


def init(key, observation_size, action_size, hidden=(256, 256)):
    """The initial state. Target critics start equal to the online critics, the temperature α at 1."""
    k_actor, k_std, k_1, k_2 = jax.random.split(key, 4)
    actor = make_network(k_actor, observation_size, *hidden, action_size)
    actor += make_network(k_std, hidden[-1], action_size)
    critics = [make_network(k, observation_size + action_size, *hidden, 1) for k in (k_1, k_2)]
    log_alpha = jnp.zeros(())
    adams = adam.init(actor), adam.init(critics), adam.init(log_alpha)
    return State(actor, critics, critics, log_alpha, *adams, jnp.zeros((), jnp.int32))


# --- acting ----------------------------------------------------------------------------------------


def act(state, obs):
    """The action in evaluations."""
    return jnp.tanh(policy(state.actor, obs)[0])


def explore(state, obs, step, key):
    """The action in training, at environment step `step`: a sample of the policy."""
    key, _ = jax.random.split(stream(jax.random.fold_in(key, step), "single.act.explore"))
    return sample(state.actor, obs, key)[0]


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
    alpha = jnp.exp(state.log_alpha)

    # Sample a batch uniformly, with replacement.
    i = jax.random.randint(stream(key, "uniform.sample"), (batch_size,), 0, len(transitions.reward))
    obs, action, reward, terminated, next_obs = (column[i] for column in transitions)

    # The target: the reward plus the minimum of the target critics plus the entropy bonus.
    next_action, next_log_prob = sample(state.actor, next_obs, stream(key, "soft.target_values"))
    next_value = values(state.critics_target, next_obs, next_action).min(-1)
    y = reward + (1.0 - terminated) * DISCOUNT * (next_value - alpha * next_log_prob)

    # Both critics regress to y: squared errors, summed over the critics, averaged over the batch.
    def critic_loss(critics):
        return ((values(critics, obs, action) - y[:, None]) ** 2).sum(-1).mean()

    step, critics_adam = adam.update(jax.grad(critic_loss)(state.critics), state.critics_adam)
    critics = optax.apply_updates(state.critics, step)

    # The actor maximises the minimum of the critics plus its entropy, through its own sample.
    def actor_loss(actor):
        drawn, log_prob = sample(actor, obs, jax.random.fold_in(stream(key, "soft.loss"), 0))
        return (alpha * log_prob - values(critics, obs, drawn).min(-1)).mean(), log_prob

    gradient, log_prob = jax.grad(actor_loss, has_aux=True)(state.actor)
    step, actor_adam = adam.update(gradient, state.actor_adam)
    actor = optax.apply_updates(state.actor, step)

    # The temperature rises if the entropy is below its target -A.
    def alpha_loss(log_alpha):
        return -(log_alpha * (log_prob - action.shape[-1])).mean()

    step, alpha_adam = adam.update(jax.grad(alpha_loss)(state.log_alpha), state.alpha_adam)
    log_alpha = optax.apply_updates(state.log_alpha, step)

    # The target critics move by Polyak averaging.
    critics_target = jax.tree.map(
        lambda old, new: TARGET_RATE * new + (1.0 - TARGET_RATE) * old, state.critics_target, critics
    )
    adams = actor_adam, critics_adam, alpha_adam
    return State(actor, critics, critics_target, log_alpha, *adams, number)
