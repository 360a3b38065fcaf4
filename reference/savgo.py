"""SAC with SAVGO in one file, to be read from top to bottom; read `sac.py` first.

SAVGO (arXiv 2605.00787) keeps SAC's critics and its pay for randomness, and replaces the way the policy gets
better. SAC follows the slope ∂Q/∂a at the policy's own action. SAVGO never asks for that slope:
- an encoder f(s, a) learns a map on which pairs with close values lie close together: the cosine of two
  embeddings goes to 1 where the values agree and to -1 where they are far apart, and half of what it
  goes to is the cosine of the pairs that come next,
- for each state K candidate actions are drawn and looked up: where they lie on the map, and their values,
- the policy's own action lies on the map too; the nearer a candidate, the more its value counts, and the
  policy moves its action on the map until the values that count are the high ones.

Actions live in [-1, 1]. A network is a list of layers, a layer is a pair (W [out, in], b [out]).
"""

import math
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qscape.ops.product import product
from qscape.types import stream

DISCOUNT = 0.99
LOG_STD_MIN, LOG_STD_MAX = -5.0, 1.0
TARGET_RATE = 0.005  # share of the online critics and encoder that the targets take over
JITTER = 0.2  # noise on candidates, and on the next action that the encoder sees
EXPONENT = 1.5  # how fast similarity falls with the gap between two values
GAP_QUANTILE, GAP_RATE = 0.95, 0.005  # what counts as a large gap, and how fast that changes
MIXING = 0.5  # how much of the similarity is that of the next pairs
THRESHOLD = 0.2  # where the encoder's loss turns from square to linear
TAU, TAU_END, TAU_HORIZON = 1.0, 0.3, 200_000  # the kernel gets sharper over this many environment steps
UNIFORM = 0.05  # share of its weights that stays uniform

# Gradients are clipped; the critics' weights decay, by a term in the gradient.
clip = optax.clip_by_global_norm(5.0)
critics_optimiser = optax.chain(clip, optax.add_decayed_weights(1e-4), optax.adam(3e-4))
actor_optimiser = optax.chain(clip, optax.adam(3e-4))
encoder_optimiser = alpha_optimiser = optax.chain(clip, optax.adam(1e-3))


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


def network(layers, x):
    """ReLU between the layers."""
    for layer in layers[:-1]:
        x = jax.nn.relu(linear(layer, x))
    return linear(layers[-1], x)


def network_of_many(layers, obs, actions):
    """The same for K actions [B, K, A] of each state: its share of the first layer is multiplied once."""
    (weight, bias), *rest = layers
    of_obs, of_action = jnp.split(weight, [obs.shape[-1]], axis=1)
    first = product(obs, of_obs)[:, None] + product(actions, of_action) + bias
    return network(rest, jax.nn.relu(first))


def policy(actor, obs):
    """Mean and log standard deviation of u; the layer before the two heads has no activation."""
    *trunk, mean, log_std = actor
    h = network(trunk, obs)
    raw = linear(log_std, h)
    log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (jnp.tanh(raw) + 1.0)
    return linear(mean, h), log_std


def draw(mean, log_std, key):
    """An action, differentiable in mean and log_std, and its log-probability."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    action = jnp.tanh(u)
    z = (u - mean) * jnp.exp(-log_std)
    log_normal = -0.5 * z**2 - log_std - 0.5 * math.log(2.0 * math.pi)
    log_slope = 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))  # log(1 - tanh²u)
    return action, (log_normal - log_slope).sum(-1)


def jittered(mean, log_std, key):
    """A draw with some noise more: the kernel has to look further than the policy does."""
    k_policy, k_jitter = jax.random.split(key)
    action, _ = draw(mean, log_std, k_policy)
    return jnp.clip(action + JITTER * jax.random.normal(k_jitter, action.shape), -1.0, 1.0)


def least_value(critics, obs, action):
    """min(Q1, Q2)."""
    pair = jnp.concatenate([obs, action], -1)
    one, two = (network(critic, pair)[..., 0] for critic in critics)
    return jnp.minimum(one, two)


def embed(encoder, obs, action):
    """Where a pair lies on the map: a unit vector."""
    return unit(network(encoder, jnp.concatenate([obs, action], -1)))


def unit(z):
    return z / jnp.sqrt(jnp.maximum((z**2).sum(-1, keepdims=True), 1e-24))


# --- what an agent is ------------------------------------------------------------------------------


class State(NamedTuple):
    actor: list
    critics: list  # of two
    critics_target: list
    encoder: list
    encoder_target: list
    gap_scale: jax.Array  # the gap between values that counts as large; 0: not known yet
    log_alpha: jax.Array
    actor_adam: tuple
    critics_adam: tuple
    encoder_adam: tuple
    alpha_adam: tuple
    updates: jax.Array
    env_steps: jax.Array  # made in the environment so far; whoever makes them counts


def init(
    key, observation_size, action_size, hidden=(256, 256), encoder_hidden=(256, 256, 256), embedding=256
):
    """Targets start equal to their originals, the temperature of the entropy at 1."""
    k_actor, k_std, k_1, k_2, k_encoder = jax.random.split(key, 5)
    actor = make_network(k_actor, observation_size, *hidden, hidden[-1], action_size)
    actor += make_network(k_std, hidden[-1], action_size)
    pair = observation_size + action_size
    critics = [make_network(k, pair, *hidden, 1) for k in (k_1, k_2)]
    encoder = make_network(k_encoder, pair, *encoder_hidden, embedding)
    log_alpha = jnp.zeros(())
    optimisers = (
        actor_optimiser.init(actor),
        critics_optimiser.init(critics),
        encoder_optimiser.init(encoder),
        alpha_optimiser.init(log_alpha),
    )
    return State(
        actor, critics, critics, encoder, encoder, jnp.zeros(()), log_alpha, *optimisers,
        *jnp.zeros((2,), jnp.int32),
    )  # fmt: skip


# --- acting: as SAC ----------------------------------------------------------------------------------


def act(state, obs):
    """What the policy does when it is evaluated."""
    return jnp.tanh(policy(state.actor, obs)[0])


def explore(state, obs, step, key):
    """What it does while it learns, at environment step `step`: it draws from itself."""
    key, _ = jax.random.split(stream(jax.random.fold_in(key, step), "single.act.explore"))
    return draw(*policy(state.actor, obs), key)[0]


# --- one update ------------------------------------------------------------------------------------


class Transitions(NamedTuple):
    """Everything in memory, one row a transition. `terminated` is 0 where only the time was up."""

    obs: jax.Array  # [N, S]
    action: jax.Array  # [N, A]
    reward: jax.Array  # [N]
    terminated: jax.Array  # [N]
    next_obs: jax.Array  # [N, S]


def update(state, memory, key, batch_size=256, candidates=128):
    """One update. `key` is the same every time; the update's number makes its random numbers."""
    number = state.updates + 1
    key = jax.random.fold_in(key, number)
    alpha = jnp.exp(state.log_alpha)

    # A batch, uniformly with replacement.
    i = jax.random.randint(stream(key, "uniform.sample"), (batch_size,), 0, len(memory.reward))
    obs, action, reward, terminated, next_obs = (column[i] for column in memory)
    alive = 1.0 - terminated

    # --- the map ---------------------------------------------------------------------------------------

    # How far apart the values of every two pairs are, measured by the gap that counts as large.
    value = reward + DISCOUNT * alive * least_value(state.critics_target, obs, action)
    gap = jnp.abs(value[:, None] - value)
    ordered, at = jnp.sort(gap.ravel()), GAP_QUANTILE * (gap.size - 1)
    below, above = ordered[int(at)], ordered[int(at) + 1]
    large = below + (at - int(at)) * (above - below) + 1e-6
    gap_scale = jnp.where(state.gap_scale > 0.0, (1.0 - GAP_RATE) * state.gap_scale + GAP_RATE * large, large)
    similarity = 1.0 - 2.0 * jnp.clip(gap / gap_scale, 0.0, 1.0) ** EXPONENT  # 1: equal, -1: far apart

    # Half of what a cosine should be is this, and half is the cosine of the next two pairs, now.
    next_action = jittered(*policy(state.actor, next_obs), stream(key, "savgo.learn"))
    z_next = embed(state.encoder_target, next_obs, next_action)
    wanted = (1.0 - MIXING) * similarity + MIXING * (DISCOUNT * alive)[:, None] * (z_next @ z_next.T)

    # The cosine of a pair with itself is 1 in any case and does not count.
    def encoder_loss(encoder):
        z = embed(encoder, obs, action)
        each = optax.huber_loss(z @ z.T - wanted, delta=THRESHOLD) / THRESHOLD
        others = jnp.where(jnp.eye(batch_size, dtype=bool), 0.0, each)
        return others.sum() / (batch_size * (batch_size - 1))

    gradient = jax.grad(encoder_loss)(state.encoder)
    step, encoder_adam = encoder_optimiser.update(gradient, state.encoder_adam, state.encoder)
    encoder = optax.apply_updates(state.encoder, step)

    # --- the critics, as in SAC --------------------------------------------------------------------------

    next_action, next_log_prob = draw(*policy(state.actor, next_obs), stream(key, "savgo.target_values"))
    next_value = least_value(state.critics_target, next_obs, next_action)
    y = reward + alive * DISCOUNT * (next_value - alpha * next_log_prob)

    def critic_loss(critics):
        pair = jnp.concatenate([obs, action], -1)
        heads = jnp.concatenate([network(critic, pair) for critic in critics], -1)
        return ((heads - y[:, None]) ** 2).sum(-1).mean()

    gradient = jax.grad(critic_loss)(state.critics)
    step, critics_adam = critics_optimiser.update(gradient, state.critics_adam, state.critics)
    critics = optax.apply_updates(state.critics, step)

    # --- the policy -------------------------------------------------------------------------------------

    # Candidates [B, K, A] of every state: where they lie on the slow map, and what slow critics give them.
    k_own, k_candidates = jax.random.split(jax.random.fold_in(stream(key, "savgo.loss"), 0))
    mean, log_std = policy(state.actor, obs)
    shape = (batch_size, candidates, action.shape[-1])
    many = [jnp.broadcast_to(x[:, None], shape) for x in (mean, log_std)]
    drawn = jittered(*many, k_candidates)
    z_drawn = unit(network_of_many(state.encoder_target, obs, drawn))
    one, two = (network_of_many(critic, obs, drawn)[..., 0] for critic in state.critics_target)
    value_drawn = jnp.minimum(one, two)

    part = jnp.minimum(1.0, state.env_steps / TAU_HORIZON)
    tau = TAU_END + 0.5 * (TAU - TAU_END) * (1.0 + jnp.cos(jnp.pi * part))

    # All of the gradient goes from the weights through the map to the policy's own action.
    def actor_loss(actor):
        own, log_prob = draw(*policy(actor, obs), k_own)
        near = jnp.clip(jnp.einsum("bh,bkh->bk", embed(encoder, obs, own), z_drawn), -1.0, 1.0)
        weights = (1.0 - UNIFORM) * jax.nn.softmax(near / tau, -1) + UNIFORM / candidates
        return (alpha * log_prob).mean() - (weights * value_drawn).sum(-1).mean(), log_prob

    gradient, log_prob = jax.grad(actor_loss, has_aux=True)(state.actor)
    step, actor_adam = actor_optimiser.update(gradient, state.actor_adam, state.actor)
    actor = optax.apply_updates(state.actor, step)

    # The pay for randomness rises where the policy is less random than wanted, as in SAC.
    def alpha_loss(log_alpha):
        return -(log_alpha * (log_prob - action.shape[-1])).mean()

    gradient = jax.grad(alpha_loss)(state.log_alpha)
    step, alpha_adam = alpha_optimiser.update(gradient, state.alpha_adam, state.log_alpha)
    log_alpha = optax.apply_updates(state.log_alpha, step)

    # The targets follow a little (Polyak averaging): the critics and the map.
    critics_target, encoder_target = jax.tree.map(
        lambda old, new: TARGET_RATE * new + (1.0 - TARGET_RATE) * old,
        (state.critics_target, state.encoder_target),
        (critics, encoder),
    )
    optimisers = actor_adam, critics_adam, encoder_adam, alpha_adam
    return State(
        actor, critics, critics_target, encoder, encoder_target, gap_scale, log_alpha, *optimisers, number,
        state.env_steps,
    )  # fmt: skip
