"""TD3 with PAVE in one file, to be read from top to bottom; read `td3.py` first.

PAVE (Lee, Kwak, Kim, Hwang, ICML 2026, arXiv 2601.22970) does not change the actor. It regularises the
critics. The actor follows the action gradient g(s, a) = ∂Q/∂a; where that changes sharply from one state to
the next, so does the action. Three terms are added to the critics' loss: the mixed-partial term (MPR) keeps g
similar between nearby states, the vector-field term (VFC) keeps it similar between a state and its successor,
and the curvature term (Curv) makes Q concave along a random action direction, so that it has a peak instead
of a ridge. Second derivatives need a smooth activation: SiLU instead of ReLU.

Actions are in [-1, 1]. A network is a list of layers; a layer is a pair (W [out, in], b [out]).
"""

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qscape.ops.adam import make_adam
from qscape.ops.product import product
from qscape.ops.silu import silu
from qscape.types import stream

DISCOUNT = 0.99
POLICY_DELAY = 2  # critic updates per actor update
TARGET_NOISE, TARGET_NOISE_CLIP = 0.2, 0.5
EXPLORATION_NOISE = 0.1
TARGET_RATE = 0.005  # τ of Polyak averaging
MIXED_PARTIAL, VECTOR_FIELD, CURVATURE = 0.1, 0.1, 0.01  # weights λ1, λ2, λ3
SIGMA = 0.01  # standard deviation of the noise that makes a nearby state
DELTA = 1.0  # margin δ: the curvature should be at most -δ
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


def action_gradients(critics, obs, action):
    """g(s, a) = ∂Q/∂a of both critics, a pair of [B, A]."""
    return [jax.grad(lambda a, j=j: values(critics, obs, a)[:, j].sum())(action) for j in (0, 1)]


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

    # A nearby state for each state, and a random direction ±1 of the action; the same for both critics.
    k_noise, k_direction = jax.random.split(stream(key, "pave.critic"))
    near = obs + SIGMA * jax.random.normal(k_noise, obs.shape)
    direction = jax.random.rademacher(k_direction, action.shape, jnp.float32)

    # Both critics regress to y: squared errors, summed over the critics, averaged over the batch. PAVE's
    # terms are added. The derivative of the action gradient along the direction v is H v; the curvature is
    # vᵀHv.
    def critic_loss(critics):
        td = ((values(critics, obs, action) - y[:, None]) ** 2).sum(-1).mean()
        gradients, hessian_vector = jax.jvp(
            lambda a: action_gradients(critics, obs, a), (action,), (direction,)
        )
        nearby, successor = (
            action_gradients(critics, near, action),
            action_gradients(critics, next_obs, action),
        )
        mixed_partial = sum(((gradients[j] - nearby[j]) ** 2).mean() for j in (0, 1))
        vector_field = sum(((gradients[j] - successor[j]) ** 2).mean() for j in (0, 1))
        curvatures = [(hessian_vector[j] * direction).sum(-1) for j in (0, 1)]
        curvature = sum(jax.nn.relu(curvatures[j] + DELTA).mean() for j in (0, 1))
        return td + (MIXED_PARTIAL * mixed_partial + VECTOR_FIELD * vector_field + CURVATURE * curvature)

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
