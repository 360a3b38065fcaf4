"""TD3 with PAVE in one file, to be read from top to bottom; read `td3.py` first.

PAVE (Lee, Kwak, Kim, Hwang, ICML 2026, arXiv 2601.22970) leaves the actor alone and teaches the critics to be
climbed calmly. The actor follows the arrows g(s, a) = ∂Q/∂a. Where they turn sharply from one state to the
next, so does the action. Three terms join the critics' loss: arrows alike near a state (MPR), arrows alike
from a state to its successor (VFC), and a value that curves down along a random direction of the action
(Curv), so that there is a peak and not a ridge to wander on. Second derivatives ask for a smooth activation:
SiLU in place of ReLU.

Actions live in [-1, 1]. A network is a list of layers, a layer is a pair (W [out, in], b [out]).
"""

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qscape.ops.product import product
from qscape.ops.silu import silu
from qscape.types import stream

DISCOUNT = 0.99
POLICY_DELAY = 2  # critic updates per actor update
TARGET_NOISE, TARGET_NOISE_CLIP = 0.2, 0.5
EXPLORATION_NOISE = 0.1
TARGET_RATE = 0.005  # share of the online networks that the targets take over
MIXED_PARTIAL, VECTOR_FIELD, CURVATURE = 0.1, 0.1, 0.01  # the weights λ1, λ2, λ3
SIGMA = 0.01  # how far "near a state" is
DELTA = 1.0  # how strongly the value should curve down
adam = optax.adam(3e-4)


# --- networks --------------------------------------------------------------------------------------


def make_network(key, *sizes):
    """Linear layers; every weight and bias is uniform in ±1/√fan_in."""
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        key, k_weight, k_bias = jax.random.split(key, 3)
        bound = fan_in**-0.5
        weight = jax.random.uniform(k_weight, (fan_out, fan_in), minval=-bound, maxval=bound)
        layers.append((weight, jax.random.uniform(k_bias, (fan_out,), minval=-bound, maxval=bound)))
    return layers


def linear(layer, x):
    weight, bias = layer
    return product(x, weight) + bias


def policy(actor, obs):
    """The action [B, A]."""
    h = obs
    for layer in actor[:-1]:
        h = silu(linear(layer, h))
    return jnp.tanh(linear(actor[-1], h))


def values(critics, obs, action):
    """Q(s, a) of both critics [B, 2]."""
    heads = []
    for critic in critics:
        h = jnp.concatenate([obs, action], -1)
        for layer in critic[:-1]:
            h = silu(linear(layer, h))
        heads.append(linear(critic[-1], h))
    return jnp.concatenate(heads, -1)


def slopes(critics, obs, action):
    """g(s, a) = ∂Q/∂a of both critics, a pair of [B, A]."""
    return [jax.grad(lambda a, j=j: values(critics, obs, a)[:, j].sum())(action) for j in (0, 1)]


# --- what an agent is ------------------------------------------------------------------------------


class State(NamedTuple):
    actor: list
    actor_target: list
    critics: list  # of two
    critics_target: list
    actor_adam: tuple
    critics_adam: tuple
    updates: jax.Array


def init(key, observation_size, action_size, hidden=(256, 256)):
    """Targets start equal to their originals."""
    k_actor, k_1, k_2 = jax.random.split(key, 3)
    actor = make_network(k_actor, observation_size, *hidden, action_size)
    critics = [make_network(k, observation_size + action_size, *hidden, 1) for k in (k_1, k_2)]
    networks = actor, actor, critics, critics
    return State(*networks, adam.init(actor), adam.init(critics), jnp.zeros((), jnp.int32))


# --- acting ----------------------------------------------------------------------------------------


def act(state, obs):
    """What the policy does when it is evaluated."""
    return policy(state.actor, obs)


def explore(state, obs, step, key):
    """What it does while it learns, at environment step `step`: the same and Gaussian noise."""
    _, key = jax.random.split(stream(jax.random.fold_in(key, step), "single.act.explore"))
    action = policy(state.actor, obs)
    return jnp.clip(action + EXPLORATION_NOISE * jax.random.normal(key, action.shape), -1.0, 1.0)


# --- one update ------------------------------------------------------------------------------------


class Transitions(NamedTuple):
    """Everything in memory, one row a transition. `terminated` is 0 where only the time was up."""

    obs: jax.Array  # [N, S]
    action: jax.Array  # [N, A]
    reward: jax.Array  # [N]
    terminated: jax.Array  # [N]
    next_obs: jax.Array  # [N, S]


def update(state, memory, key, batch_size=256):
    """One update. `key` is the same every time; the update's number makes its random numbers."""
    number = state.updates + 1
    key = jax.random.fold_in(key, number)

    # A batch, uniformly with replacement.
    i = jax.random.randint(stream(key, "uniform.sample"), (batch_size,), 0, len(memory.reward))
    obs, action, reward, terminated, next_obs = (column[i] for column in memory)

    # The target: reward, and the lesser of the target critics' values at a blurred target action.
    next_action = policy(state.actor_target, next_obs)
    noise = TARGET_NOISE * jax.random.normal(stream(key, "single.target"), next_action.shape)
    noise = jnp.clip(noise, -TARGET_NOISE_CLIP, TARGET_NOISE_CLIP)
    next_action = jnp.clip(next_action + noise, -1.0, 1.0)
    next_value = values(state.critics_target, next_obs, next_action).min(-1)
    y = reward + (1.0 - terminated) * DISCOUNT * next_value

    # A state near each state, and a direction of ±1 in the action, the same for both critics.
    k_noise, k_direction = jax.random.split(stream(key, "pave.critic"))
    near = obs + SIGMA * jax.random.normal(k_noise, obs.shape)
    direction = jax.random.rademacher(k_direction, action.shape, jnp.float32)

    # Both critics regress to the target: squared errors, summed over the critics, averaged over the batch.
    # On top come PAVE's terms. How the arrows change along the direction is one more derivative of theirs,
    # H v; its product with the direction is vᵀHv.
    def critic_loss(critics):
        td = ((values(critics, obs, action) - y[:, None]) ** 2).sum(-1).mean()
        here, turned = jax.jvp(lambda a: slopes(critics, obs, a), (action,), (direction,))
        beside, after = slopes(critics, near, action), slopes(critics, next_obs, action)
        mixed_partial = sum(((here[j] - beside[j]) ** 2).mean() for j in (0, 1))
        vector_field = sum(((here[j] - after[j]) ** 2).mean() for j in (0, 1))
        curved = [(turned[j] * direction).sum(-1) for j in (0, 1)]
        curvature = sum(jax.nn.relu(curved[j] + DELTA).mean() for j in (0, 1))
        return td + (MIXED_PARTIAL * mixed_partial + VECTOR_FIELD * vector_field + CURVATURE * curvature)

    step, critics_adam = adam.update(jax.grad(critic_loss)(state.critics), state.critics_adam)
    critics = optax.apply_updates(state.critics, step)

    # Every second time the actor climbs the first critic, and the targets follow a little.
    def actor_loss(actor):
        return -values(critics, obs, policy(actor, obs))[:, 0].mean()

    def climb():
        step, actor_adam = adam.update(jax.grad(actor_loss)(state.actor), state.actor_adam)
        actor = optax.apply_updates(state.actor, step)
        return actor, actor_adam, follow(state.actor_target, actor), follow(state.critics_target, critics)

    def rest():
        return state.actor, state.actor_adam, state.actor_target, state.critics_target

    moves = number % POLICY_DELAY == 0
    actor, actor_adam, actor_target, critics_target = jax.lax.cond(moves, climb, rest)
    return State(actor, actor_target, critics, critics_target, actor_adam, critics_adam, number)


def follow(target, online):
    """Polyak averaging."""
    return jax.tree.map(lambda old, new: TARGET_RATE * new + (1.0 - TARGET_RATE) * old, target, online)
