"""SAC with SAVGO in one file, to be read from top to bottom; read `sac.py` first.

SAVGO (arXiv 2605.00787) keeps SAC's critics and entropy bonus, and replaces the policy's loss. SAC follows
the action gradient ∂Q/∂a at the policy's own action. SAVGO does not use it: - An encoder f(s, a) learns
embeddings in which pairs of similar value are close. The cosine of two embeddings
  regresses to a similarity that is 1 for equal values and -1 for distant ones, mixed half and half with the
  cosine of the successor pairs.
- For each state, K candidate actions are sampled, embedded and evaluated. - A kernel weighs each candidate's
value by the cosine of its embedding to that of the policy's own action. The
  policy maximises the weighted value, through its own embedding.

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
LOG_STD_MIN, LOG_STD_MAX = -5.0, 1.0
TARGET_RATE = 0.005  # τ of Polyak averaging, of critics and encoder
JITTER = 0.2  # noise on candidates, and on the next action in the encoder's target
EXPONENT = 1.5  # λ: how fast similarity decreases with the gap between two values
GAP_QUANTILE, GAP_RATE = (
    0.95,
    0.005,
)  # quantile of the gaps that defines β, and the rate of β's running average
MIXING = 0.5  # weight m of the successor pairs' cosine
THRESHOLD = 0.2  # error at which the encoder's loss changes from quadratic to linear
TAU, TAU_END, TAU_HORIZON = (
    1.0,
    0.3,
    200_000,
)  # kernel temperature, from TAU to TAU_END over this many environment steps
UNIFORM = 0.05  # share of the kernel's weights that is uniform

# Gradients are clipped; the critics' weights decay, by a term in the gradient.
clip = optax.clip_by_global_norm(5.0)
critics_optimiser = optax.chain(clip, optax.add_decayed_weights(1e-4), make_adam(3e-4))
actor_optimiser = optax.chain(clip, make_adam(3e-4))
encoder_optimiser = alpha_optimiser = optax.chain(clip, make_adam(1e-3))


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


def network(layers, x):
    """Linear layers with ReLU between them."""
    for layer in layers[:-1]:
        x = jax.nn.relu(linear(layer, x))
    return linear(layers[-1], x)


def network_of_many(layers, obs, actions):
    """The same for K actions [B, K, A] of each state [B, S]; its share of layer 1 is computed once."""
    (weight, bias), *rest = layers
    of_obs, of_action = jnp.split(weight, [obs.shape[-1]], axis=1)
    first = product(obs, of_obs)[:, None] + product(actions, of_action) + bias
    return network(rest, jax.nn.relu(first))


def policy(actor, obs):
    """Mean and log standard deviation of u; the layer before the two heads has no activation."""
    *torso, mean, log_std = actor
    h = network(torso, obs)
    raw = linear(log_std, h)
    log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (jnp.tanh(raw) + 1.0)
    return linear(mean, h), log_std


def sample(mean, log_std, key):
    """An action, differentiable in mean and log_std, and its log-probability."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    action = jnp.tanh(u)
    z = (u - mean) * jnp.exp(-log_std)
    log_normal = -0.5 * z**2 - log_std - 0.5 * math.log(2.0 * math.pi)
    log_slope = 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))  # log(1 - tanh²u)
    return action, (log_normal - log_slope).sum(-1)


def sample_candidates(mean, log_std, key):
    """A sample of the policy plus noise: candidates cover more than the policy."""
    k_policy, k_jitter = jax.random.split(key)
    action, _ = sample(mean, log_std, k_policy)
    return jnp.clip(action + JITTER * jax.random.normal(k_jitter, action.shape), -1.0, 1.0)


def min_value(critics, obs, action):
    """min(Q1, Q2)."""
    pair = jnp.concatenate([obs, action], -1)
    one, two = (network(critic, pair)[..., 0] for critic in critics)
    return jnp.minimum(one, two)


def embed(encoder, obs, action):
    """The embedding of a pair (s, a): a unit vector."""
    return unit(network(encoder, jnp.concatenate([obs, action], -1)))


def unit(z):
    """z / ‖z‖."""
    return z / jnp.sqrt(jnp.maximum((z**2).sum(-1, keepdims=True), 1e-24))


# --- the state of an agent ------------------------------------------------------------------------------


class State(NamedTuple):
    """Networks, optimiser states and counters."""

    actor: list
    critics: list  # of two
    critics_target: list
    encoder: list
    encoder_target: list
    gap_scale: jax.Array  # β, the running scale of value gaps; 0: not set yet
    log_alpha: jax.Array
    actor_adam: tuple
    critics_adam: tuple
    encoder_adam: tuple
    alpha_adam: tuple
    updates: jax.Array
    env_steps: jax.Array  # made so far; the training loop counts them


def init(
    key, observation_size, action_size, hidden=(256, 256), encoder_hidden=(256, 256, 256), embedding=256
):
    """The initial state. Targets start equal to the online networks, the temperature α at 1."""
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
    """The action in evaluations."""
    return jnp.tanh(policy(state.actor, obs)[0])


def explore(state, obs, step, key):
    """The action in training, at environment step `step`: a sample of the policy."""
    key, _ = jax.random.split(stream(jax.random.fold_in(key, step), "single.act.explore"))
    return sample(*policy(state.actor, obs), key)[0]


# --- one update ------------------------------------------------------------------------------------


class Transitions(NamedTuple):
    """All transitions in replay, a row each. `terminated` is 0 where only a time limit ended the episode."""

    obs: jax.Array  # [N, S]
    action: jax.Array  # [N, A]
    reward: jax.Array  # [N]
    terminated: jax.Array  # [N]
    next_obs: jax.Array  # [N, S]


def update(state, transitions, key, batch_size=256, candidates=128):
    """The state after one update. `key` is the run's and never changes; the update's number is folded in."""
    number = state.updates + 1
    key = jax.random.fold_in(key, number)
    alpha = jnp.exp(state.log_alpha)

    # Sample a batch uniformly, with replacement.
    i = jax.random.randint(stream(key, "uniform.sample"), (batch_size,), 0, len(transitions.reward))
    obs, action, reward, terminated, next_obs = (column[i] for column in transitions)
    alive = 1.0 - terminated

    # --- the encoder ---------------------------------------------------------------------------------------

    # Gaps between the values of all pairs, scaled by β, a running average of their 0.95 quantile.
    value = reward + DISCOUNT * alive * min_value(state.critics_target, obs, action)
    gap = jnp.abs(value[:, None] - value)
    ordered, at = jnp.sort(gap.ravel()), GAP_QUANTILE * (gap.size - 1)
    below, above = ordered[int(at)], ordered[int(at) + 1]
    batch_scale = below + (at - int(at)) * (above - below) + 1e-6
    gap_scale = jnp.where(
        state.gap_scale > 0.0, (1.0 - GAP_RATE) * state.gap_scale + GAP_RATE * batch_scale, batch_scale
    )
    similarity = 1.0 - 2.0 * jnp.clip(gap / gap_scale, 0.0, 1.0) ** EXPONENT  # 1: equal, -1: far apart

    # The target: half this similarity, half the cosine of the successor pairs.
    next_action = sample_candidates(*policy(state.actor, next_obs), stream(key, "savgo.learn"))
    z_next = embed(state.encoder_target, next_obs, next_action)
    target = (1.0 - MIXING) * similarity + MIXING * (DISCOUNT * alive)[:, None] * (z_next @ z_next.T)

    # The cosine of a pair with itself is always 1 and does not count.
    def encoder_loss(encoder):
        z = embed(encoder, obs, action)
        each = optax.huber_loss(z @ z.T - target, delta=THRESHOLD) / THRESHOLD
        off_diagonal = jnp.where(jnp.eye(batch_size, dtype=bool), 0.0, each)
        return off_diagonal.sum() / (batch_size * (batch_size - 1))

    gradient = jax.grad(encoder_loss)(state.encoder)
    step, encoder_adam = encoder_optimiser.update(gradient, state.encoder_adam, state.encoder)
    encoder = optax.apply_updates(state.encoder, step)

    # --- the critics, as in SAC --------------------------------------------------------------------------

    next_action, next_log_prob = sample(*policy(state.actor, next_obs), stream(key, "savgo.target_values"))
    next_value = min_value(state.critics_target, next_obs, next_action)
    y = reward + alive * DISCOUNT * (next_value - alpha * next_log_prob)

    def critic_loss(critics):
        pair = jnp.concatenate([obs, action], -1)
        heads = jnp.concatenate([network(critic, pair) for critic in critics], -1)
        return ((heads - y[:, None]) ** 2).sum(-1).mean()

    gradient = jax.grad(critic_loss)(state.critics)
    step, critics_adam = critics_optimiser.update(gradient, state.critics_adam, state.critics)
    critics = optax.apply_updates(state.critics, step)

    # --- the policy -------------------------------------------------------------------------------------

    # K candidates [B, K, A] for each state: their embeddings and values, by the target networks.
    k_own, k_candidates = jax.random.split(jax.random.fold_in(stream(key, "savgo.loss"), 0))
    mean, log_std = policy(state.actor, obs)
    shape = (batch_size, candidates, action.shape[-1])
    many = [jnp.broadcast_to(x[:, None], shape) for x in (mean, log_std)]
    candidate_actions = sample_candidates(*many, k_candidates)
    z_candidates = unit(network_of_many(state.encoder_target, obs, candidate_actions))
    one, two = (network_of_many(critic, obs, candidate_actions)[..., 0] for critic in state.critics_target)
    candidate_values = jnp.minimum(one, two)

    progress = jnp.minimum(1.0, state.env_steps / TAU_HORIZON)
    tau = TAU_END + 0.5 * (TAU - TAU_END) * (1.0 + jnp.cos(jnp.pi * progress))

    # The gradient passes from the kernel's weights through the encoder to the policy's own action.
    def actor_loss(actor):
        own, log_prob = sample(*policy(actor, obs), k_own)
        near = jnp.clip(jnp.einsum("bh,bkh->bk", embed(encoder, obs, own), z_candidates), -1.0, 1.0)
        weights = (1.0 - UNIFORM) * jax.nn.softmax(near / tau, -1) + UNIFORM / candidates
        return (alpha * log_prob).mean() - (weights * candidate_values).sum(-1).mean(), log_prob

    gradient, log_prob = jax.grad(actor_loss, has_aux=True)(state.actor)
    step, actor_adam = actor_optimiser.update(gradient, state.actor_adam, state.actor)
    actor = optax.apply_updates(state.actor, step)

    # The temperature rises if the entropy is below its target -A, as in SAC.
    def alpha_loss(log_alpha):
        return -(log_alpha * (log_prob - action.shape[-1])).mean()

    gradient = jax.grad(alpha_loss)(state.log_alpha)
    step, alpha_adam = alpha_optimiser.update(gradient, state.alpha_adam, state.log_alpha)
    log_alpha = optax.apply_updates(state.log_alpha, step)

    # The targets of critics and encoder move by Polyak averaging.
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
