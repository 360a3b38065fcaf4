"""TD7 in one file, to be read from top to bottom; read `td3.py` first.

Fujimoto, Chang, Smith, Gu, Precup, Meger 2023, arXiv 2306.02451. TD3, and
- SALE: encoders f(s) = z_s and g(z_s, a) = z_sa learn to predict f(s'); frozen copies of them feed actor and
  critics further inputs,
- the bootstrapped value is clipped to the range of targets seen so far,
- LAP: transitions with large errors are drawn more often, and the loss is of the Huber kind,
- targets are copied whole every 250 updates, and the frozen encoders move up by one at the same time.
Policy checkpoints, which decide when to update and what to evaluate, are no matter of an update.

Actions live in [-1, 1]. A network is a list of layers, a layer is a pair (W [out, in], b [out]).
"""

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qscape.ops.product import product
from qscape.types import stream

DISCOUNT = 0.99
POLICY_DELAY = 2  # critic updates per actor update
SYNC_EVERY = 250  # updates between two hard copies
TARGET_NOISE, TARGET_NOISE_CLIP = 0.2, 0.5
EXPLORATION_NOISE = 0.1
PRIORITY_EXPONENT, MIN_PRIORITY = 0.4, 1.0
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


def avg_l1_norm(x):
    """Every row divided by its mean absolute entry."""
    return x / jnp.maximum(jnp.abs(x).mean(-1, keepdims=True), 1e-8)


def layers(network, activation, x):
    """Linear layers with an activation between them."""
    for layer in network[:-1]:
        x = activation(linear(layer, x))
    return linear(network[-1], x)


class Encoder(NamedTuple):
    f: list
    g: list


def embed_state(encoder, obs):
    """z_s [B, Z]."""
    return avg_l1_norm(layers(encoder.f, jax.nn.elu, obs))


def embed_pair(encoder, z_s, action):
    """z_sa [B, Z]; not normalised, for what it predicts is."""
    return layers(encoder.g, jax.nn.elu, jnp.concatenate([z_s, action], -1))


def policy(actor, obs, z_s):
    """The action [B, A]. The first layer reads s alone; its normalised output and z_s enter the others."""
    phi = avg_l1_norm(linear(actor[0], obs))
    return jnp.tanh(layers(actor[1:], jax.nn.relu, jnp.concatenate([phi, z_s], -1)))


def values(critics, obs, action, z_sa, z_s):
    """Q(s, a) of both critics [B, 2]. The first layer reads (s, a) alone."""
    heads = []
    for critic in critics:
        phi = avg_l1_norm(linear(critic[0], jnp.concatenate([obs, action], -1)))
        heads.append(layers(critic[1:], jax.nn.elu, jnp.concatenate([phi, z_sa, z_s], -1)))
    return jnp.concatenate(heads, -1)


# --- what an agent is ------------------------------------------------------------------------------


class State(NamedTuple):
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
    clip_low: jax.Array  # what the bootstrapped value is clipped to
    clip_high: jax.Array
    priorities: jax.Array  # [N], N a power of two; 0 where no transition is
    max_priority: jax.Array  # what a new transition gets
    updates: jax.Array


def init(key, observation_size, action_size, priorities, hidden=(256, 256), embedding=256):
    """Every copy starts equal to its original. Both nets of the encoder have the hidden widths too."""
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
    bounds = jnp.array(1e8), jnp.array(-1e8), jnp.zeros(()), jnp.zeros(())
    return State(*networks, *adams, *bounds, priorities, jnp.ones(()), jnp.zeros((), jnp.int32))


# --- acting ----------------------------------------------------------------------------------------


def act(state, obs):
    """What the policy does when it is evaluated: the online actor on the frozen encoder."""
    return policy(state.actor, obs, embed_state(state.encoder_fixed, obs))


def explore(state, obs, step, key):
    """What it does while it learns, at environment step `step`: the same and Gaussian noise."""
    _, key = jax.random.split(stream(jax.random.fold_in(key, step), "single.act.explore"))
    action = act(state, obs)
    return jnp.clip(action + EXPLORATION_NOISE * jax.random.normal(key, action.shape), -1.0, 1.0)


# --- prioritised replay ----------------------------------------------------------------------------


class Transitions(NamedTuple):
    """Everything in memory, one row a transition. `terminated` is 0 where only the time was up."""

    obs: jax.Array  # [N, S]
    action: jax.Array  # [N, A]
    reward: jax.Array  # [N]
    terminated: jax.Array  # [N]
    next_obs: jax.Array  # [N, S]


def draw(priorities, key, n):
    """n rows, each the first whose cumulative priority reaches u times the total, u uniform.

    The sums are those of a binary tree: 32-bit numbers summed one after the other would be too coarse
    for a million rows. (At most 4096 rows here; the agent takes a second u for more.)
    """
    sums = [priorities]
    while len(sums[-1]) > 1:
        sums.append(sums[-1][0::2] + sums[-1][1::2])
    u = jax.random.uniform(key, (2, n))[0]
    row, rest = jnp.zeros(n, jnp.int32), u * sums[-1]
    for level in reversed(sums[:-1]):
        left, right = level[2 * row], level[2 * row + 1]
        go_right = (rest > left) & (right > 0)  # the second: rounding must not lead to an empty row
        row, rest = 2 * row + go_right, jnp.where(go_right, rest - left, rest)
    return row


def write(priorities, rows, new):
    """Set the priorities of rows; where one was drawn twice, its last error counts."""
    last = jnp.full(len(priorities), -1).at[rows].max(jnp.arange(len(rows)))
    return jnp.where(last >= 0, new[last], priorities)


# --- one update ------------------------------------------------------------------------------------


def update(state, memory, key, batch_size=256):
    """One update. `key` is the same every time; the update's number makes its random numbers."""
    number = state.updates + 1
    key = jax.random.fold_in(key, number)

    # One batch for everything.
    i = draw(state.priorities, stream(key, "lap.sample"), batch_size)
    obs, action, reward, terminated, next_obs = (column[i] for column in memory)

    # The encoder learns to predict the embedding of the next state.
    def encoder_loss(encoder):
        prediction = embed_pair(encoder, embed_state(encoder, obs), action)
        return ((prediction - jax.lax.stop_gradient(embed_state(encoder, next_obs))) ** 2).mean()

    step, encoder_adam = adam.update(jax.grad(encoder_loss)(state.encoder), state.encoder_adam)
    encoder = optax.apply_updates(state.encoder, step)

    # The target, on the older frozen encoder; the next value is clipped, the target is not.
    next_z_s = embed_state(state.encoder_fixed_target, next_obs)
    next_action = policy(state.actor_target, next_obs, next_z_s)
    noise = TARGET_NOISE * jax.random.normal(stream(key, "single.target"), next_action.shape)
    noise = jnp.clip(noise, -TARGET_NOISE_CLIP, TARGET_NOISE_CLIP)
    next_action = jnp.clip(next_action + noise, -1.0, 1.0)
    next_z_sa = embed_pair(state.encoder_fixed_target, next_z_s, next_action)
    next_value = values(state.critics_target, next_obs, next_action, next_z_sa, next_z_s).min(-1)
    y = reward + (1.0 - terminated) * DISCOUNT * jnp.clip(next_value, state.clip_low, state.clip_high)
    target_min, target_max = jnp.minimum(state.target_min, y.min()), jnp.maximum(state.target_max, y.max())

    # Both critics regress to it, on the newer frozen encoder: x²/2 for errors below 1, else x (not
    # shifted: only the gradient is Huber's), summed over the critics, averaged over the batch.
    z_s = embed_state(state.encoder_fixed, obs)
    z_sa = embed_pair(state.encoder_fixed, z_s, action)

    def critic_loss(critics):
        error = jnp.abs(values(critics, obs, action, z_sa, z_s) - y[:, None])
        return jnp.where(error < 1.0, 0.5 * error**2, error).sum(-1).mean(), error

    gradient, error = jax.grad(critic_loss, has_aux=True)(state.critics)
    step, critics_adam = adam.update(gradient, state.critics_adam)
    critics = optax.apply_updates(state.critics, step)

    # The rows' priorities, from the errors before that step.
    new = jnp.maximum(error.max(-1), MIN_PRIORITY) ** PRIORITY_EXPONENT
    priorities = write(state.priorities, i, new)
    max_priority = jnp.maximum(state.max_priority, new.max())

    # Every second time the actor climbs the mean of the stepped critics. The gradient passes through g
    # into the action; nothing but the actor moves.
    def actor_loss(actor):
        chosen = policy(actor, obs, z_s)
        return -values(critics, obs, chosen, embed_pair(state.encoder_fixed, z_s, chosen), z_s).mean()

    def climb():
        step, actor_adam = adam.update(jax.grad(actor_loss)(state.actor), state.actor_adam)
        return optax.apply_updates(state.actor, step), actor_adam

    actor, actor_adam = jax.lax.cond(
        number % POLICY_DELAY == 0, climb, lambda: (state.actor, state.actor_adam)
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

    # Every 250th time everything that waited moves up, in this order.
    def sync(state):
        return state._replace(
            actor_target=state.actor,
            critics_target=state.critics,
            encoder_fixed_target=state.encoder_fixed,
            encoder_fixed=state.encoder,
            clip_low=state.target_min,
            clip_high=state.target_max,
            max_priority=state.priorities.max(),  # it may fall
        )

    return jax.lax.cond(number % SYNC_EVERY == 0, sync, lambda state: state, state)
