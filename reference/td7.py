"""TD7 in one file, to be read from top to bottom; read `td3.py` first.

Fujimoto, Chang, Smith, Gu, Precup, Meger 2023, arXiv 2306.02451. TD7 adds to TD3: - SALE: encoders f(s) = z_s
and g(z_s, a) = z_sa learn to predict f(s'). Fixed copies of them give actor and critics
  further inputs.
- Value clipping: the bootstrapped value is clipped to the range of targets seen so far. - LAP: transitions
with large TD errors are sampled more often, and the loss has the Huber gradient. - Hard target updates:
targets are copied every 250 updates, when the fixed encoders also move up by one. Policy checkpoints decide
when updates are made and which policy is evaluated; they are not part of the update.

Actions are in [-1, 1]. A network is a list of layers; a layer is a pair (W [out, in], b [out]).
"""

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qscape.ops.adam import make_adam
from qscape.ops.elu import elu
from qscape.ops.product import product
from qscape.types import stream

DISCOUNT = 0.99
POLICY_DELAY = 2  # critic updates per actor update
SYNC_EVERY = 250  # updates between two hard target updates
TARGET_NOISE, TARGET_NOISE_CLIP = 0.2, 0.5
EXPLORATION_NOISE = 0.1
PRIORITY_EXPONENT, MIN_PRIORITY = 0.4, 1.0
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


def avg_l1_norm(x):
    """Each row divided by its mean absolute entry."""
    return x / jnp.maximum(jnp.abs(x).mean(-1, keepdims=True), 1e-8)


def layers(network, activation, x):
    """Linear layers with an activation between them."""
    for layer in network[:-1]:
        x = activation(linear(layer, x))
    return linear(network[-1], x)


class Encoder(NamedTuple):
    """SALE's encoders: z_s = f(s), z_sa = g(z_s, a)."""

    f: list
    g: list


def embed_state(encoder, obs):
    """z_s [B, Z]."""
    return avg_l1_norm(layers(encoder.f, elu, obs))


def embed_pair(encoder, z_s, action):
    """z_sa [B, Z]; not normalised, because its target z_s is."""
    return layers(encoder.g, elu, jnp.concatenate([z_s, action], -1))


def policy(actor, obs, z_s):
    """The action [B, A]. The first layer sees only s; its normalised output and z_s enter the others."""
    phi = avg_l1_norm(linear(actor[0], obs))
    return jnp.tanh(layers(actor[1:], jax.nn.relu, jnp.concatenate([phi, z_s], -1)))


def values(critics, obs, action, z_sa, z_s):
    """Q(s, a) of both critics [B, 2]. The first layer sees only (s, a)."""
    heads = []
    for critic in critics:
        phi = avg_l1_norm(linear(critic[0], jnp.concatenate([obs, action], -1)))
        heads.append(layers(critic[1:], elu, jnp.concatenate([phi, z_sa, z_s], -1)))
    return jnp.concatenate(heads, -1)


# --- the state of an agent ------------------------------------------------------------------------------


class State(NamedTuple):
    """Networks, optimiser states and counters."""

    actor: list
    actor_target: list
    critics: list  # of two
    critics_target: list
    encoder: Encoder
    encoder_fixed: Encoder  # feeds actor and critics
    encoder_fixed_target: Encoder  # feeds their targets
    actor_adam: tuple
    critics_adam: tuple
    encoder_adam: tuple
    target_min: jax.Array  # of all targets y so far
    target_max: jax.Array
    clip_low: jax.Array  # bounds of the bootstrapped value
    clip_high: jax.Array
    priorities: jax.Array  # [N], N a power of two; 0 for empty rows
    max_priority: jax.Array  # priority of a new transition
    updates: jax.Array


def init(key, observation_size, action_size, priorities, hidden=(256, 256), embedding=256):
    """The initial state. Copies start equal to their originals. Both encoders also have the hidden widths."""
    k_f, k_g, k_phi, k_actor, k_1, k_2 = jax.random.split(key, 6)
    encoder = Encoder(
        make_network(k_f, observation_size, *hidden, embedding),
        make_network(k_g, embedding + action_size, *hidden, embedding),
    )
    actor = make_network(k_phi, observation_size, hidden[0])
    actor += make_network(k_actor, hidden[0] + embedding, *hidden, action_size)
    critics = []
    for k in (k_1, k_2):
        k_phi, k_rest = jax.random.split(k)
        critic = make_network(k_phi, observation_size + action_size, hidden[0])
        critics.append(critic + make_network(k_rest, hidden[0] + 2 * embedding, *hidden, 1))
    networks = actor, actor, critics, critics, encoder, encoder, encoder
    adams = adam.init(actor), adam.init(critics), adam.init(encoder)
    bounds = jnp.array(jnp.inf), jnp.array(-jnp.inf), jnp.zeros(()), jnp.zeros(())
    return State(*networks, *adams, *bounds, priorities, jnp.ones(()), jnp.zeros((), jnp.int32))


# --- acting ----------------------------------------------------------------------------------------


def act(state, obs):
    """The action in evaluations: the online actor on the fixed encoder."""
    return policy(state.actor, obs, embed_state(state.encoder_fixed, obs))


def explore(state, obs, step, key):
    """The action in training, at environment step `step`: the policy's action plus Gaussian noise."""
    _, key = jax.random.split(stream(jax.random.fold_in(key, step), "single.act.explore"))
    action = act(state, obs)
    return jnp.clip(action + EXPLORATION_NOISE * jax.random.normal(key, action.shape), -1.0, 1.0)


# --- prioritised replay ----------------------------------------------------------------------------


class Transitions(NamedTuple):
    """All transitions in replay, a row each. `terminated` is 0 where only a time limit ended the episode."""

    obs: jax.Array  # [N, S]
    action: jax.Array  # [N, A]
    reward: jax.Array  # [N]
    terminated: jax.Array  # [N]
    next_obs: jax.Array  # [N, S]


def sample_rows(priorities, key, n):
    """Sample n rows by priority: the first whose cumulative priority reaches u · total, u uniform.

    The sums are those of a binary tree, because a cumulative sum of float32 numbers would be too coarse for a
    million rows. (At most 4096 rows here; for more, the agent uses a second u.)
    """
    sums = [priorities]
    while len(sums[-1]) > 1:
        sums.append(sums[-1][0::2] + sums[-1][1::2])
    u = jax.random.uniform(key, (2, n))[0]
    row, rest = jnp.zeros(n, jnp.int32), u * sums[-1]
    for level in reversed(sums[:-1]):
        left, right = level[2 * row], level[2 * row + 1]
        go_right = (rest > left) & (right > 0)  # the latter: rounding must not lead to an empty row
        row, rest = 2 * row + go_right, jnp.where(go_right, rest - left, rest)
    return row


def write_priorities(priorities, rows, new):
    """Set the priorities of rows; if a row was sampled twice, its last error counts."""
    last = jnp.full(len(priorities), -1).at[rows].max(jnp.arange(len(rows)))
    return jnp.where(last >= 0, new[last], priorities)


# --- one update ------------------------------------------------------------------------------------


def update(state, transitions, key, batch_size=256):
    """The state after one update. `key` is the run's and never changes; the update's number is folded in."""
    number = state.updates + 1
    key = jax.random.fold_in(key, number)

    # Sample one batch, by priority, for all losses.
    i = sample_rows(state.priorities, stream(key, "lap.sample"), batch_size)
    obs, action, reward, terminated, next_obs = (column[i] for column in transitions)

    # The encoder learns to predict the embedding of the next state.
    def encoder_loss(encoder):
        prediction = embed_pair(encoder, embed_state(encoder, obs), action)
        return ((prediction - jax.lax.stop_gradient(embed_state(encoder, next_obs))) ** 2).mean()

    step, encoder_adam = adam.update(jax.grad(encoder_loss)(state.encoder), state.encoder_adam)
    encoder = optax.apply_updates(state.encoder, step)

    # The target, with the older fixed encoder; the next value is clipped, the target is not.
    next_z_s = embed_state(state.encoder_fixed_target, next_obs)
    next_action = policy(state.actor_target, next_obs, next_z_s)
    noise = TARGET_NOISE * jax.random.normal(stream(key, "single.target"), next_action.shape)
    noise = jnp.clip(noise, -TARGET_NOISE_CLIP, TARGET_NOISE_CLIP)
    next_action = jnp.clip(next_action + noise, -1.0, 1.0)
    next_z_sa = embed_pair(state.encoder_fixed_target, next_z_s, next_action)
    next_value = values(state.critics_target, next_obs, next_action, next_z_sa, next_z_s).min(-1)
    y = reward + (1.0 - terminated) * DISCOUNT * jnp.clip(next_value, state.clip_low, state.clip_high)
    target_min, target_max = jnp.minimum(state.target_min, y.min()), jnp.maximum(state.target_max, y.max())

    # Both critics regress to y, with the newer fixed encoder: x²/2 for errors below 1, else |x| (not shifted;
    # only the gradient is Huber's), summed over the critics, averaged over the batch.
    z_s = embed_state(state.encoder_fixed, obs)
    z_sa = embed_pair(state.encoder_fixed, z_s, action)

    def critic_loss(critics):
        error = jnp.abs(values(critics, obs, action, z_sa, z_s) - y[:, None])
        return jnp.where(error < 1.0, 0.5 * error**2, error).sum(-1).mean(), error

    gradient, error = jax.grad(critic_loss, has_aux=True)(state.critics)
    step, critics_adam = adam.update(gradient, state.critics_adam)
    critics = optax.apply_updates(state.critics, step)

    # The priorities of the rows, from the TD errors before that step.
    new = jnp.maximum(error.max(-1), MIN_PRIORITY) ** PRIORITY_EXPONENT
    priorities = write_priorities(state.priorities, i, new)
    max_priority = jnp.maximum(state.max_priority, new.max())

    # At every second update, the actor maximises the mean of the updated critics. The gradient passes through
    # g into the action; only the actor moves.
    def actor_loss(actor):
        chosen = policy(actor, obs, z_s)
        return -values(critics, obs, chosen, embed_pair(state.encoder_fixed, z_s, chosen), z_s).mean()

    def update_actor():
        step, actor_adam = adam.update(jax.grad(actor_loss)(state.actor), state.actor_adam)
        return optax.apply_updates(state.actor, step), actor_adam

    actor, actor_adam = jax.lax.cond(
        number % POLICY_DELAY == 0, update_actor, lambda: (state.actor, state.actor_adam)
    )

    state = state._replace(
        actor=actor,
        critics=critics,
        encoder=encoder,
        actor_adam=actor_adam,
        critics_adam=critics_adam,
        encoder_adam=encoder_adam,
        target_min=target_min,
        target_max=target_max,
        priorities=priorities,
        max_priority=max_priority,
        updates=number,
    )

    # At every 250th update, targets, fixed encoders and bounds move up, in this order.
    def sync(state):
        return state._replace(
            actor_target=state.actor,
            critics_target=state.critics,
            encoder_fixed_target=state.encoder_fixed,
            encoder_fixed=state.encoder,
            clip_low=state.target_min,
            clip_high=state.target_max,
            max_priority=state.priorities.max(),  # it may decrease
        )

    return jax.lax.cond(number % SYNC_EVERY == 0, sync, lambda state: state, state)
