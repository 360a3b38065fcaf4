"""SimbaV2 in one file, to be read from top to bottom; read `sac.py` first.

SimbaV2 (Lee et al. 2025, arXiv 2502.15280) is SAC with networks whose features and weight vectors lie on the
unit sphere, and with critics that compute a categorical distribution of the return. Learned scalers take over
the sizes, and every residual block is a step on the sphere. Learning rates fall linearly. The scaling of
rewards and observations, which belongs to the method, is left out here.

Actions are in [-1, 1]. A weight is a matrix [out, in] whose rows have length 1.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qscape.ops.adam import make_adam
from qscape.ops.product import product
from qscape.types import stream

DISCOUNT = 0.99
LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0
TARGET_RATE = 0.005
SHIFT = 3.0  # the constant that joins the input before it is put on the sphere
ATOMS, LOW, HIGH = 101, -5.0, 5.0
UPDATES = 1_000_000  # updates over which the learning rates halve
adam = make_adam(optax.linear_schedule(1e-4, 5e-5, UPDATES))


# --- networks ------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A step on the sphere."""

    up: jax.Array
    up_scaler: jax.Array
    down: jax.Array
    step_scaler: jax.Array


class Head(NamedTuple):
    """An output layer."""

    first: jax.Array
    scaler: jax.Array
    second: jax.Array
    bias: jax.Array


class Network(NamedTuple):
    """Hidden layers and output layers."""

    embed: jax.Array
    scaler: jax.Array
    blocks: list
    heads: list


def make_weight(key, fan_out, fan_in):
    """A weight from an orthogonal start; where it has more rows than columns, rows are made unit length."""
    return unit_rows(jax.nn.initializers.orthogonal()(key, (fan_out, fan_in)))


def make_network(key, size, width, blocks, heads):
    """Make a network; a scaler's parameter starts where its learning speed is right (`scaled`)."""
    keys = iter(jax.random.split(key, 1 + 2 * blocks + 2 * len(heads)))
    start = (2 / width) ** 0.5
    return Network(
        make_weight(next(keys), width, size + 1),
        jnp.full(width, start),
        [
            Block(
                make_weight(next(keys), 4 * width, width),
                jnp.full(4 * width, start / 2),
                make_weight(next(keys), width, 4 * width),
                jnp.full(width, width**-0.5),
            )
            for _ in range(blocks)
        ],
        [
            Head(
                make_weight(next(keys), width, width),
                jnp.ones(width),
                make_weight(next(keys), outputs, width),
                jnp.zeros(outputs),
            )
            for outputs in heads
        ],
    )


def unit_rows(weight):
    """Divide every row by its length."""
    length = jnp.linalg.norm(weight, axis=-1, keepdims=True)
    return weight / jnp.maximum(length, 1e-8)


def project(networks):
    """Divide every row of every weight by its length."""
    return jax.tree.map(lambda x: unit_rows(x) if x.ndim == 2 else x, networks)


def to_sphere(x):
    """x / ‖x‖."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-16))


def scaled(parameter, start, scale, x):
    """Multiply x by a factor that began at `start` and whose parameter began at `scale`."""
    return parameter * (start / scale) * x


def features(network, x):
    """The last hidden layer, a point of the sphere."""
    width, blocks = len(network.embed), len(network.blocks)
    x = jnp.concatenate([x, jnp.full((*x.shape[:-1], 1), SHIFT)], -1)
    h = to_sphere(scaled(network.scaler, 1.0, 1.0, product(to_sphere(x), network.embed)))
    for block in network.blocks:
        inner = jax.nn.relu(scaled(block.up_scaler, 1.0, 1.0, product(h, block.up))) + 1e-8
        aim = to_sphere(product(inner, block.down))
        h = to_sphere(h + scaled(block.step_scaler, 1 / (blocks + 1), width**-0.5, aim - h))
    return h


def output(head, h):
    """An output layer."""
    return product(scaled(head.scaler, 1.0, 1.0, product(h, head.first)), head.second) + head.bias


def logits(critics, obs, action):
    """The logits [B, ATOMS] of each critic."""
    pair = jnp.concatenate([obs, action], -1)
    return [output(critic.heads[0], features(critic, pair)) for critic in critics]


def values(raw):
    """Q: the means of the distributions with these logits."""
    return (jax.nn.softmax(raw) * jnp.linspace(LOW, HIGH, ATOMS)).sum(-1)


def policy(actor, obs):
    """Mean and log standard deviation [B, A] of u, where the action is tanh(u)."""
    h = features(actor, obs)
    mean, raw = (output(head, h) for head in actor.heads)
    return mean, LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (jnp.tanh(raw) + 1.0)


def sample(actor, obs, key):
    """An action [B, A], differentiable in the actor, and its log-probability [B]."""
    mean, log_std = policy(actor, obs)
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
    critics: list  # of two
    critics_target: list
    log_alpha: jax.Array
    actor_adam: tuple
    critics_adam: tuple
    alpha_adam: tuple
    updates: jax.Array


def init(key, observation_size, action_size, hidden=(128,), critic_hidden=(512, 512)):
    """The initial state. The temperature α starts at 0.01."""
    k_actor, *k_critics = jax.random.split(key, 3)
    heads = (action_size, action_size)
    actor = make_network(k_actor, observation_size, hidden[0], len(hidden), heads)
    size = observation_size + action_size
    critics = [make_network(k, size, critic_hidden[0], len(critic_hidden), (ATOMS,)) for k in k_critics]
    log_alpha = jnp.array(math.log(0.01))
    adams = adam.init(actor), adam.init(critics), adam.init(log_alpha)
    return State(actor, critics, critics, log_alpha, *adams, jnp.zeros((), jnp.int32))


def act(state, obs):
    """The action in evaluations."""
    return jnp.tanh(policy(state.actor, obs)[0])


def explore(state, obs, step, key):
    """The action in training, at environment step `step`: a sample of the policy."""
    key, _ = jax.random.split(stream(jax.random.fold_in(key, step), "single.act.explore"))
    return sample(state.actor, obs, key)[0]


# --- one update -------------------------------------------------------------------------------------------


def project_onto_atoms(probabilities, positions):
    """Move probability to the atoms: a position between two atoms gives to both, the nearer one more."""
    place = (jnp.clip(positions, LOW, HIGH) - LOW) * ((ATOMS - 1) / (HIGH - LOW))
    hats = jnp.maximum(0.0, 1.0 - jnp.abs(place[..., None, :] - jnp.arange(ATOMS)[:, None]))
    return (hats * probabilities[..., None, :]).sum(-1)


def update(state, transitions, key, batch_size=256):
    """The state after one update. `key` is the run's and never changes; the update's number is folded in."""
    number = state.updates + 1
    key = jax.random.fold_in(key, number)
    alpha = jnp.exp(state.log_alpha)

    # Sample a batch uniformly, with replacement.
    i = jax.random.randint(stream(key, "uniform.sample"), (batch_size,), 0, len(transitions.reward))
    obs, action, reward, terminated, next_obs = (column[i] for column in transitions)

    # The target: the atoms, moved, with the probabilities of the target critic whose mean is smaller.
    next_action, next_log_prob = sample(state.actor, next_obs, stream(key, "soft.target_values"))
    raw = jnp.stack(logits(state.critics_target, next_obs, next_action), 1)
    smaller = jax.nn.one_hot(values(raw).argmin(-1), 2)
    chosen = jnp.einsum("bkj,bjn->bkn", smaller[:, None], jax.nn.softmax(raw))
    moved = jnp.linspace(LOW, HIGH, ATOMS) - (alpha * next_log_prob)[:, None]
    positions = reward[:, None] + ((1.0 - terminated) * DISCOUNT)[:, None] * moved
    target = project_onto_atoms(chosen, positions[:, None])

    # Both critics learn the target by cross-entropy, summed over the critics, averaged over the batch.
    def critic_loss(critics):
        raw = jnp.stack(logits(critics, obs, action), 1)
        return -(target * jax.nn.log_softmax(raw)).sum(-1).sum(-1).mean()

    step, critics_adam = adam.update(jax.grad(critic_loss)(state.critics), state.critics_adam)
    critics = project(optax.apply_updates(state.critics, step))

    # The actor maximises the smaller mean plus its entropy. α moves by how far the entropy is from -A / 2.
    def actor_loss(actor, log_alpha):
        drawn, log_prob = sample(actor, obs, jax.random.fold_in(stream(key, "soft.loss"), 0))
        q = jnp.stack([values(raw) for raw in logits(critics, obs, drawn)], -1)
        tuning = -(jnp.exp(log_alpha) * jax.lax.stop_gradient(log_prob - 0.5 * action.shape[-1])).mean()
        return (alpha * log_prob - q.min(-1)).mean() + tuning

    gradient = jax.grad(actor_loss, (0, 1))(state.actor, state.log_alpha)
    step, actor_adam = adam.update(gradient[0], state.actor_adam)
    actor = project(optax.apply_updates(state.actor, step))
    step, alpha_adam = adam.update(gradient[1], state.alpha_adam)
    log_alpha = optax.apply_updates(state.log_alpha, step)

    # The target critics move by Polyak averaging; their rows are not made unit length again.
    critics_target = jax.tree.map(
        lambda old, new: TARGET_RATE * new + (1.0 - TARGET_RATE) * old, state.critics_target, critics
    )
    adams = actor_adam, critics_adam, alpha_adam
    return State(actor, critics, critics_target, log_alpha, *adams, number)
