"""Q3C in one file, to be read from top to bottom; read `td3.py` first.

Q-learning without an actor (NeurIPS 2025, arXiv 2510.18828, as its authors released it), after the wire
fitting of Baird and Klopf 1993. Each critic proposes N actions per state, its control points, with a height
for each of them. Q(s, a) is a mean of the heights, weighted by how near the points are. So its maximum is the
highest point, and the greedy action is an argmax over N numbers. Everything else is TD3's.

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
POINTS, NEAREST = 20, 10  # N, and k: how many points are interpolated
SMOOTHING = 0.01  # C at the start
SEPARATION = 0.1  # weight of the separation
TARGET_NOISE, TARGET_NOISE_CLIP = 0.2, 0.5
EXPLORATION_NOISE = 0.1
TARGET_RATE = 0.005
CLIP = 10.0  # bound of the gradient of each critic
STEPS, WARMUP, UPDATES_PER_STEP = 1_000_000, 30_000, 0.25  # of the run, in environment steps


def rate(made):
    """The learning rate after so many updates: it falls with the fifth root of what is left of the run."""
    passed = WARMUP * UPDATES_PER_STEP / (STEPS * UPDATES_PER_STEP)
    left = jnp.maximum(1.0 - passed - (made + 1) / (STEPS * UPDATES_PER_STEP), 0.0)
    return 1e-3 * (0.1 + (1.0 - 0.1) * left**0.2)


adam = make_adam(rate)


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


class Critic(NamedTuple):
    """Two networks with nothing shared."""

    heights: list  # on an observation and a point
    points: list  # on an observation


def propose(critic, obs):
    """The points [B, N, A] of a critic and their heights [B, N]."""
    h = obs
    for layer in critic.points[:-1]:
        h = jax.nn.relu(linear(layer, h))
    h = jnp.tanh(linear(critic.points[-1], h))
    points = h.reshape(len(obs), POINTS, -1)
    # The first layer sees the observation once, and each of its points.
    (weight, bias), *others = critic.heights
    of_obs, of_point = jnp.split(weight, [obs.shape[-1]], axis=1)
    h = jax.nn.relu(product(obs[:, None], of_obs) + product(points, of_point) + bias)
    for layer in others[:-1]:
        h = jax.nn.relu(linear(layer, h))
    return points, linear(others[-1], h)[..., 0]


def value(critic, obs, action, smoothing):
    """Q(s, a) [B] of one critic."""
    points, heights = propose(critic, obs)
    distance = jnp.maximum(((points - action[:, None]) ** 2).sum(-1), 1e-6)
    highest, lowest = heights.max(-1, keepdims=True), heights.min(-1, keepdims=True)
    below = (highest - heights) / (highest - lowest + 1e-6)
    weights = 1.0 / (distance + 1e-6 + smoothing * below)
    top, which = jax.lax.top_k(weights, NEAREST)
    return (top * jnp.take_along_axis(heights, which, -1)).sum(-1) / top.sum(-1)


def values(critics, obs, action, smoothing):
    """Q(s, a) of both critics [B, 2]."""
    return jnp.stack([value(critic, obs, action, smoothing) for critic in critics], -1)


def crowding(points):
    """The mean inverse distance of two points of a state, averaged over the batch."""
    square = ((points[:, :, None] - points[:, None]) ** 2).sum(-1)
    itself = jnp.eye(POINTS, dtype=bool)
    distance = jnp.where(itself, 0.0, jnp.sqrt(jnp.maximum(square, 1e-12)))
    inverse = jnp.where(itself, 0.0, 1.0 / (distance + 1e-6))
    return (inverse.sum((-2, -1)) / (POINTS * (POINTS - 1))).mean()


# --- the state of an agent ------------------------------------------------------------------------------


class State(NamedTuple):
    """Networks, optimiser state and counters."""

    critics: list  # of two
    critics_target: list
    critics_adam: tuple
    smoothing: jax.Array  # C
    env_steps: jax.Array
    updates: jax.Array


def init(key, observation_size, action_size, hidden=(400, 300)):
    """The initial state. Target networks start equal to the online networks."""
    critics = []
    for k in jax.random.split(key):
        k_heights, k_points = jax.random.split(k)
        heights = make_network(k_heights, observation_size + action_size, *hidden, 1)
        critics.append(
            Critic(heights, make_network(k_points, observation_size, *hidden, POINTS * action_size))
        )
    counters = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return State(critics, critics, adam.init(critics), jnp.float32(SMOOTHING), *counters)


# --- acting ----------------------------------------------------------------------------------------


def best(critics, obs):
    """The highest point of the first critic [B, A]."""
    points, heights = propose(critics[0], obs)
    return jnp.take_along_axis(points, heights.argmax(-1)[:, None, None], 1)[:, 0]


def act(state, obs):
    """The action in evaluations."""
    return best(state.critics, obs)


def explore(state, obs, step, key):
    """The action in training, at environment step `step`: the greedy action plus Gaussian noise."""
    _, key = jax.random.split(stream(jax.random.fold_in(key, step), "best_point.act.explore"))
    action = best(state.critics, obs)
    return jnp.clip(action + EXPLORATION_NOISE * jax.random.normal(key, action.shape), -1.0, 1.0)


# --- one update ------------------------------------------------------------------------------------


def update(state, transitions, key, batch_size=256):
    """The state after one update. `key` is the run's and never changes; the update's number is folded in.

    The transitions are those of `reference.td3`; `state.env_steps` is the number of environment steps so far.
    """
    number = state.updates + 1
    key = jax.random.fold_in(key, number)

    # Sample a batch uniformly, with replacement.
    i = jax.random.randint(stream(key, "uniform.sample"), (batch_size,), 0, len(transitions.reward))
    obs, action, reward, terminated, next_obs = (column[i] for column in transitions)

    # The target: the minimum of the target critics near the highest point of the first of them. Both are
    # interpolated at the noisy action.
    next_action = best(state.critics_target, next_obs)
    noise = TARGET_NOISE * jax.random.normal(stream(key, "best_point.target"), next_action.shape)
    noise = jnp.clip(noise, -TARGET_NOISE_CLIP, TARGET_NOISE_CLIP)
    next_action = jnp.clip(next_action + noise, -1.0, 1.0)
    next_value = values(state.critics_target, next_obs, next_action, state.smoothing).min(-1)
    y = reward + (1.0 - terminated) * DISCOUNT * next_value

    # Both critics regress to y, and their points keep apart.
    def critic_loss(critics):
        error = ((values(critics, obs, action, state.smoothing) - y[:, None]) ** 2).sum(-1).mean()
        crowded = jnp.stack([crowding(propose(critic, obs)[0]) for critic in critics]).sum()
        return 0.5 * error + SEPARATION * (0.5 * crowded)

    gradient = [clip(one) for one in jax.grad(critic_loss)(state.critics)]
    step, critics_adam = adam.update(gradient, state.critics_adam)
    critics = optax.apply_updates(state.critics, step)
    critics_target = update_target(state.critics_target, critics)

    # The smoothing vanishes with the run.
    left = jnp.maximum(1.0 - state.env_steps / jnp.float32(STEPS), 0.0)
    return State(critics, critics_target, critics_adam, SMOOTHING * left**2, state.env_steps, number)


def clip(gradient):
    """The gradient of one critic, shortened to the bound of its norm."""
    return optax.clip_by_global_norm(CLIP).update(gradient, optax.EmptyState())[0]


def update_target(target, online):
    """Polyak averaging: target ← (1 - τ) target + τ online."""
    return jax.tree.map(lambda old, new: TARGET_RATE * new + (1.0 - TARGET_RATE) * old, target, online)
