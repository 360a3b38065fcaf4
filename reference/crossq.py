"""CrossQ in one file, to be read from top to bottom; read `sac.py` first.

CrossQ (Bhatt, Palenicek et al. 2024, arXiv 1902.05605) is SAC without target critics. Batch normalisation in
the critics makes that stable, if (s, a) and (s', a') pass through the critics as one batch: then the values
that are learned and the values that are learned from are normalised alike. The critics are wide, Adam forgets
faster, and the actor moves at every third update. Details as in the authors' code.

Actions are in [-1, 1]. A layer is a pair (W [out, in], b [out]).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qscape.ops.adam import make_adam
from qscape.types import stream
from reference.sac import DISCOUNT, linear
from reference.sac import make_network as make_layers

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
POLICY_DELAY = 3  # critic updates per actor update
EPSILON, MOMENTUM = 1e-3, 0.99
PLAIN_BATCHES = 100_000  # batch statistics are corrected after so many batches
MAX_RATIO, MAX_DISTANCE = 3.0, 5.0  # bounds of the correction
adam = make_adam(1e-3, b1=0.5)
alpha_adam = make_adam(1e-3)


# --- networks ------------------------------------------------------------------------------------------


class Network(NamedTuple):
    """What a gradient trains."""

    layers: list  # hidden linear layers
    norms: list  # (scale, shift) of the batch normalisation of the input and of each layer
    heads: list  # output layers


class Seen(NamedTuple):
    """Running statistics of one batch normalisation, which no gradient moves."""

    mean: jax.Array
    variance: jax.Array
    batches: jax.Array


def make_network(key, sizes, heads):
    """Make a network with hidden layers of these sizes, and its statistics."""
    k_layers, *k_heads = jax.random.split(key, 1 + len(heads))
    head_layers = [make_layers(k, sizes[-1], n)[0] for k, n in zip(k_heads, heads, strict=True)]
    norms = [(jnp.ones(n), jnp.zeros(n)) for n in sizes]
    seen = [Seen(jnp.zeros(n), jnp.ones(n), jnp.zeros((), jnp.int32)) for n in sizes]
    return Network(make_layers(k_layers, *sizes), norms, head_layers), seen


def normalise(norm, x, mean, variance):
    """scale (x − mean) / √(variance + ε) + shift."""
    scale, shift = norm
    return scale * (x - mean) * jax.lax.rsqrt(variance + EPSILON) + shift


def normalise_batch(norm, seen, x):
    """Batch renormalisation of x, and the new running statistics."""
    mean = x.mean(0)
    variance = jnp.square(x - mean).mean(0)
    # After many batches, the batch's mean and variance are moved towards the running ones, within bounds.
    ratio = jax.lax.stop_gradient(jnp.sqrt((variance + EPSILON) / (seen.variance + EPSILON)))
    distance = jax.lax.stop_gradient((mean - seen.mean) / jnp.sqrt(seen.variance + EPSILON))
    ratio = jnp.clip(ratio, 1 / MAX_RATIO, MAX_RATIO)
    distance = jnp.clip(distance, -MAX_DISTANCE, MAX_DISTANCE)
    deviation = jnp.sqrt(jnp.maximum(variance, 1e-24))  # a unit that is off has no NaN in its gradient
    renormalised = mean - distance * deviation / ratio, variance / jnp.square(ratio)
    late = seen.batches >= PLAIN_BATCHES
    used_mean = jnp.where(late, renormalised[0], mean)
    used_variance = jnp.where(late, renormalised[1], variance)
    seen = Seen(
        jax.lax.stop_gradient(MOMENTUM * seen.mean + (1.0 - MOMENTUM) * mean),
        jax.lax.stop_gradient(MOMENTUM * seen.variance + (1.0 - MOMENTUM) * variance),
        seen.batches + 1,
    )
    return normalise(norm, x, used_mean, used_variance), seen


def features(network, seen, x):
    """The last hidden layer, normalised by the running statistics."""
    first, *norms = zip(network.norms, seen, strict=True)
    h = normalise(first[0], x, *first[1][:2])
    for layer, (norm, old) in zip(network.layers, norms, strict=True):
        h = normalise(norm, jax.nn.relu(linear(layer, h)), *old[:2])
    return h


def train_features(network, seen, x):
    """The last hidden layer, normalised by the batch, and the new running statistics."""
    first, *norms = zip(network.norms, seen, strict=True)
    h, new = normalise_batch(*first, x)
    moved = [new]
    for layer, (norm, old) in zip(network.layers, norms, strict=True):
        h, new = normalise_batch(norm, old, jax.nn.relu(linear(layer, h)))
        moved.append(new)
    return h, moved


def policy(actor, h):
    """Mean and log standard deviation [B, A] of u, where the action is tanh(u)."""
    mean, log_std = (linear(head, h) for head in actor.heads)
    return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)


def sample(mean, log_std, key):
    """An action [B, A] and its log-probability [B]."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    action = jnp.tanh(u)
    z = (u - mean) * jnp.exp(-log_std)
    log_normal = -0.5 * z**2 - log_std - 0.5 * math.log(2.0 * math.pi)
    log_slope = 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))
    return action, (log_normal - log_slope).sum(-1)


# --- the state of an agent --------------------------------------------------------------------------------


class State(NamedTuple):
    """Networks, optimiser states and counters."""

    actor: Network
    actor_seen: list
    critics: list  # of two
    critics_seen: list
    log_alpha: jax.Array
    actor_adam: tuple
    critics_adam: tuple
    alpha_adam: tuple
    updates: jax.Array


def init(key, observation_size, action_size, hidden=(256, 256), critic_hidden=(2048, 2048)):
    """The initial state. The authors draw weights from a truncated normal of variance 1 / fan_in."""
    k_actor, *k_critics = jax.random.split(key, 3)
    actor, actor_seen = make_network(k_actor, (observation_size, *hidden), (action_size, action_size))
    sizes = (observation_size + action_size, *critic_hidden)
    critics, critics_seen = zip(*(make_network(k, sizes, (1,)) for k in k_critics), strict=True)
    critics, critics_seen, log_alpha = list(critics), list(critics_seen), jnp.zeros(())
    adams = adam.init(actor), adam.init(critics), alpha_adam.init(log_alpha)
    return State(actor, actor_seen, critics, critics_seen, log_alpha, *adams, jnp.zeros((), jnp.int32))


def act(state, obs):
    """The action in evaluations."""
    return jnp.tanh(policy(state.actor, features(state.actor, state.actor_seen, obs))[0])


def explore(state, obs, step, key):
    """The action in training, at environment step `step`: a sample of the policy."""
    key, _ = jax.random.split(stream(jax.random.fold_in(key, step), "single.act.explore"))
    return sample(*policy(state.actor, features(state.actor, state.actor_seen, obs)), key)[0]


# --- one update -------------------------------------------------------------------------------------------


def update(state, transitions, key, batch_size=256):
    """The state after one update. `key` is the run's and never changes; the update's number is folded in."""
    number = state.updates + 1
    key = jax.random.fold_in(key, number)
    alpha = jnp.exp(state.log_alpha)

    # Sample a batch uniformly, with replacement.
    i = jax.random.randint(stream(key, "uniform.sample"), (batch_size,), 0, len(transitions.reward))
    obs, action, reward, terminated, next_obs = (column[i] for column in transitions)

    # The next action, by an actor with running statistics.
    mean, log_std = policy(state.actor, features(state.actor, state.actor_seen, next_obs))
    next_action, next_log_prob = sample(mean, log_std, stream(key, "soft.target_values"))

    # Both halves are one batch. The second half values the next state; no gradient passes through the target.
    pairs = jnp.concatenate([jnp.concatenate([obs, next_obs]), jnp.concatenate([action, next_action])], -1)

    def critic_loss(critics):
        heads, moved = [], []
        for critic, seen in zip(critics, state.critics_seen, strict=True):
            h, new = train_features(critic, seen, pairs)
            heads.append(linear(critic.heads[0], h))
            moved.append(new)
        q, next_q = (half[..., 0] for half in jnp.split(jnp.stack(heads, 1), 2))
        next_value = next_q.min(-1) - alpha * next_log_prob
        y = jax.lax.stop_gradient(reward + (1.0 - terminated) * DISCOUNT * next_value)
        return 0.5 * ((q - y[:, None]) ** 2).sum(-1).mean(), moved

    gradient, critics_seen = jax.grad(critic_loss, has_aux=True)(state.critics)
    step, critics_adam = adam.update(gradient, state.critics_adam)
    critics = optax.apply_updates(state.critics, step)

    # The actor is normalised by the batch; the critics that judge it are not.
    def actor_loss(actor, log_alpha):
        h, moved = train_features(actor, state.actor_seen, obs)
        new_action, log_prob = sample(*policy(actor, h), jax.random.fold_in(stream(key, "soft.loss"), 0))
        pair = jnp.concatenate([obs, new_action], -1)
        q = [
            linear(critic.heads[0], features(critic, seen, pair))[..., 0]
            for critic, seen in zip(critics, critics_seen, strict=True)
        ]
        loss = (alpha * log_prob - jnp.stack(q, -1).min(-1)).mean()
        # The temperature moves by how far the entropy is from -A.
        tuning = -(jnp.exp(log_alpha) * jax.lax.stop_gradient(log_prob - action.shape[-1])).mean()
        return loss + tuning, moved

    def step_actor():
        gradient, actor_seen = jax.grad(actor_loss, (0, 1), has_aux=True)(state.actor, state.log_alpha)
        step, actor_adam = adam.update(gradient[0], state.actor_adam)
        alpha_step, new_alpha_adam = alpha_adam.update(gradient[1], state.alpha_adam)
        return (
            optax.apply_updates(state.actor, step),
            actor_seen,
            optax.apply_updates(state.log_alpha, alpha_step),
            actor_adam,
            new_alpha_adam,
        )

    def wait():
        return state.actor, state.actor_seen, state.log_alpha, state.actor_adam, state.alpha_adam

    actor, actor_seen, log_alpha, actor_adam, new_alpha_adam = jax.lax.cond(
        number % POLICY_DELAY == 0, step_actor, wait
    )
    return State(
        actor,
        actor_seen,
        critics,
        critics_seen,
        log_alpha,
        actor_adam,
        critics_adam,
        new_alpha_adam,
        number,
    )
