"""FlashSAC in one file, to be read from top to bottom; read `sac.py` first.

FlashSAC (2026, arXiv 2604.04539) is SAC with residual networks whose weights, norms and logits stay bounded.
Every weight vector has length 1, the scales of the norms keep their lengths, and critics compute a
categorical distribution of the return. Critics and actor are normalised by the rows of s and of s' as one
batch. The noise of exploration is kept for several steps. The scaling of rewards, which belongs to the
method, is left out here.

Actions are in [-1, 1]. A weight is a matrix [out, in] whose rows have length 1.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qscape.ops.adam import make_adam
from qscape.ops.product import direct_product, product
from qscape.types import stream

DISCOUNT = 0.99
LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0
TARGET_RATE = 0.01
ATOMS, LOW, HIGH = 101, -5.0, 5.0
EPSILON, MOMENTUM = 1e-5, 0.99  # of batch normalisation
MOST_REPEATS, REPEAT_POWER = 16, 2.0  # steps that noise is kept for
ENTROPY = 0.5 * math.log(2.0 * math.pi * math.e * 0.15**2)  # per action dimension: that of N(0, 0.15²)
UPDATES = 1_000_000  # updates over which the learning rates halve
adam = make_adam(optax.cosine_decay_schedule(3e-4, UPDATES, 0.5))


# --- networks ------------------------------------------------------------------------------------------


class Norm(NamedTuple):
    """What a gradient trains of a batch normalisation."""

    scale: jax.Array
    shift: jax.Array


class Seen(NamedTuple):
    """Running statistics of one batch normalisation, which no gradient moves."""

    mean: jax.Array
    variance: jax.Array
    batches: jax.Array


class Block(NamedTuple):
    """A residual block."""

    up: jax.Array
    up_norm: Norm
    down: jax.Array
    down_norm: Norm


class Head(NamedTuple):
    """An output layer, whose bias is free."""

    weight: jax.Array
    bias: jax.Array


class Network(NamedTuple):
    """Hidden layers and output layers."""

    norm: Norm
    embed: jax.Array
    blocks: list
    post: jax.Array
    heads: list


def make_network(key, size, width, blocks, heads):
    """Make a network and its statistics: orthogonal weights, rows divided by their lengths."""
    keys = iter(jax.random.split(key, 1 + 2 * blocks + len(heads)))

    def weight(fan_out, fan_in):
        return unit_rows(jax.nn.initializers.orthogonal()(next(keys), (fan_out, fan_in)))

    def norm(size):
        return Norm(jnp.ones(size), jnp.zeros(size))

    wide = 4 * width
    network = Network(
        norm(size),
        weight(width, size),
        [Block(weight(wide, width), norm(wide), weight(width, wide), norm(width)) for _ in range(blocks)],
        jnp.ones(width),
        [Head(weight(outputs, width), jnp.zeros(outputs)) for outputs in heads],
    )
    sizes = (size, *(wide, width) * blocks)
    return network, [Seen(jnp.zeros(n), jnp.ones(n), jnp.zeros((), jnp.int32)) for n in sizes]


def unit_rows(weight):
    """Divide every row by its length."""
    length = jnp.linalg.norm(weight, axis=-1, keepdims=True)
    return weight / jnp.maximum(length, 1e-8)


def root_length(square, size):
    """The factor that gives a vector of this squared length the length √n."""
    return size**0.5 * jax.lax.rsqrt(square + 1e-8)


def unit_norm(norm):
    """Give scale and shift, as one vector, the length √n."""
    factor = root_length(jnp.square(norm.scale).sum() + jnp.square(norm.shift).sum(), len(norm.scale))
    return Norm(norm.scale * factor, norm.shift * factor)


def project(network):
    """Give everything but the biases of the heads its length."""
    return Network(
        unit_norm(network.norm),
        unit_rows(network.embed),
        [
            Block(unit_rows(b.up), unit_norm(b.up_norm), unit_rows(b.down), unit_norm(b.down_norm))
            for b in network.blocks
        ],
        network.post * root_length(jnp.square(network.post).sum(), len(network.post)),
        [Head(unit_rows(head.weight), head.bias) for head in network.heads],
    )


def normalise(norm, x, mean, variance):
    """scale (x − mean) / √(variance + ε) + shift."""
    return norm.scale * (x - mean) * jax.lax.rsqrt(variance + EPSILON) + norm.shift


def normalise_batch(norm, seen, x):
    """Batch normalisation of x, and the new running statistics, whose variance is that of a sample."""
    mean = x.mean(0)
    variance = jnp.square(x - mean).mean(0)
    unbiased = variance * (len(x) / (len(x) - 1))
    seen = Seen(
        jax.lax.stop_gradient(MOMENTUM * seen.mean + (1.0 - MOMENTUM) * mean),
        jax.lax.stop_gradient(MOMENTUM * seen.variance + (1.0 - MOMENTUM) * unbiased),
        seen.batches + 1,
    )
    return normalise(norm, x, mean, variance), seen


def train_features(network, seen, x):
    """The last hidden layer, normalised by the batch, and the new running statistics."""
    first, *others = seen
    x, new = normalise_batch(network.norm, first, x)
    h, moved = product(x, network.embed), [new]
    for block, up_seen, down_seen in zip(network.blocks, others[::2], others[1::2], strict=True):
        inner, new_up = normalise_batch(block.up_norm, up_seen, direct_product(h, block.up))
        outer, new_down = normalise_batch(
            block.down_norm, down_seen, direct_product(jax.nn.relu(inner), block.down)
        )
        h = h + jax.nn.relu(outer)
        moved += [new_up, new_down]
    return post_norm(network.post, h), moved


def features(network, seen, x):
    """The last hidden layer, normalised by the running statistics."""
    first, *others = seen
    h = product(normalise(network.norm, x, *first[:2]), network.embed)
    for block, up_seen, down_seen in zip(network.blocks, others[::2], others[1::2], strict=True):
        inner = normalise(block.up_norm, direct_product(h, block.up), *up_seen[:2])
        outer = normalise(block.down_norm, direct_product(jax.nn.relu(inner), block.down), *down_seen[:2])
        h = h + jax.nn.relu(outer)
    return post_norm(network.post, h)


def post_norm(weight, h):
    """Weight times h / √(mean h² + 1e-6)."""
    return weight * h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-6)


def output(head, h):
    """An output layer."""
    return product(h, head.weight) + head.bias


def values(raw):
    """Q: the means of the distributions with these logits."""
    return (jax.nn.softmax(raw) * jnp.linspace(LOW, HIGH, ATOMS)).sum(-1)


def policy(actor, h):
    """Mean and log standard deviation [B, A] of u, where the action is tanh(u)."""
    mean, raw = (output(head, h) for head in actor.heads)
    return mean, LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (jnp.tanh(raw) + 1.0)


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
    critics_target: list
    critics_target_seen: list  # those of the critics; nothing reads them
    log_alpha: jax.Array
    actor_adam: tuple
    critics_adam: tuple
    alpha_adam: tuple
    updates: jax.Array


def init(key, observation_size, action_size, hidden=(128, 128), critic_hidden=(256, 256)):
    """The initial state. The temperature α starts at 0.01."""
    k_actor, *k_critics = jax.random.split(key, 3)
    heads = (action_size, action_size)
    actor, actor_seen = make_network(k_actor, observation_size, hidden[0], len(hidden), heads)
    size = observation_size + action_size, critic_hidden[0], len(critic_hidden), (ATOMS,)
    critics, critics_seen = map(list, zip(*(make_network(k, *size) for k in k_critics), strict=True))
    log_alpha = jnp.array(math.log(0.01))
    adams = adam.init(actor), adam.init(critics), adam.init(log_alpha)
    both = critics, critics_seen
    return State(actor, actor_seen, *both, *both, log_alpha, *adams, jnp.zeros((), jnp.int32))


def act(state, obs):
    """The action in evaluations."""
    return jnp.tanh(policy(state.actor, features(state.actor, state.actor_seen, obs))[0])


def hold(noise, left, step, key):
    """The noise [E, A] at environment step `step`, and for how many more steps it is kept.

    It is drawn anew when it was kept for k steps, with a probability of k that falls with k².
    """
    k_sample, _ = jax.random.split(stream(jax.random.fold_in(key, step), "single.act.explore"))
    k_length, k_noise = jax.random.split(k_sample)
    weights = [k**-REPEAT_POWER for k in range(1, MOST_REPEATS + 1)]
    u, length, below = jax.random.uniform(k_length), 1, 0.0
    for weight in weights[:-1]:
        below += weight / sum(weights)
        length += (u >= below).astype(jnp.int32)
    new = jax.random.normal(k_noise, noise.shape)
    return jnp.where(left == 0, new, noise), jnp.where(left == 0, length, left) - 1


def explore(state, obs, step, key, noise=None, left=0):
    """The action in training: a sample of the policy with the noise that `hold` keeps, at first a new one."""
    mean, log_std = policy(state.actor, features(state.actor, state.actor_seen, obs))
    noise, _ = hold(jnp.zeros_like(mean) if noise is None else noise, left, step, key)
    return jnp.tanh(mean + jnp.exp(log_std) * noise)


# --- one update -------------------------------------------------------------------------------------------


def project_onto_atoms(probabilities, positions):
    """Move probability to the atoms: a position between two atoms gives to both, the nearer one more."""
    place = (jnp.clip(positions, LOW, HIGH) - LOW) * ((ATOMS - 1) / (HIGH - LOW))
    hats = jnp.maximum(0.0, 1.0 - jnp.abs(place[..., None, :] - jnp.arange(ATOMS)[:, None]))
    return (hats * probabilities[..., None, :]).sum(-1)


def update(state, transitions, key, batch_size=512):
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

    # (s, a) and (s', a') are one batch for critics and for target critics, whose new statistics are dropped.
    pairs = jnp.concatenate([jnp.concatenate([obs, next_obs]), jnp.concatenate([action, next_action])], -1)

    def logits(critics, seen):
        both = [train_features(critic, old, pairs) for critic, old in zip(critics, seen, strict=True)]
        raw = jnp.stack([output(c.heads[0], h) for c, (h, _) in zip(critics, both, strict=True)], 1)
        return raw, [moved for _, moved in both]

    # The target: the atoms, moved, with the probabilities of the target critic whose mean is smaller.
    raw = logits(state.critics_target, state.critics_target_seen)[0][batch_size:]
    smaller = jax.nn.one_hot(values(raw).argmin(-1), 2)
    chosen = jnp.einsum("bkj,bjn->bkn", smaller[:, None], jax.nn.softmax(raw))
    moved = jnp.linspace(LOW, HIGH, ATOMS) - (alpha * next_log_prob)[:, None]
    positions = reward[:, None] + ((1.0 - terminated) * DISCOUNT)[:, None] * moved
    target = project_onto_atoms(chosen, positions[:, None])

    # Both critics learn the target by cross-entropy, averaged over critics and batch.
    def critic_loss(critics):
        raw, moved = logits(critics, state.critics_seen)
        return -0.5 * (target * jax.nn.log_softmax(raw[:batch_size])).sum(-1).sum(-1).mean(), moved

    gradient, critics_seen = jax.grad(critic_loss, has_aux=True)(state.critics)
    step, critics_adam = adam.update(gradient, state.critics_adam)
    critics = [project(critic) for critic in optax.apply_updates(state.critics, step)]

    # The actor is normalised by s and s' together, and improves at s; the critics have running statistics.
    def actor_loss(actor, log_alpha):
        h, moved = train_features(actor, state.actor_seen, jnp.concatenate([obs, next_obs]))
        key_loss = jax.random.fold_in(stream(key, "soft.loss"), 0)
        drawn, log_prob = sample(*policy(actor, h[:batch_size]), key_loss)
        pair = jnp.concatenate([obs, drawn], -1)
        q = [
            values(output(critic.heads[0], features(critic, seen, pair)))
            for critic, seen in zip(critics, critics_seen, strict=True)
        ]
        loss = (alpha * log_prob - jnp.stack(q, -1).min(-1)).mean()
        # The temperature moves by how far the entropy is from that of N(0, 0.15²).
        error = jax.lax.stop_gradient(log_prob + ENTROPY * action.shape[-1])
        return loss - (jnp.exp(log_alpha) * error).mean(), moved

    def step_actor():
        gradient, actor_seen = jax.grad(actor_loss, (0, 1), has_aux=True)(state.actor, state.log_alpha)
        step, actor_adam = adam.update(gradient[0], state.actor_adam)
        alpha_step, alpha_adam = adam.update(gradient[1], state.alpha_adam)
        actor = project(optax.apply_updates(state.actor, step))
        return actor, actor_seen, optax.apply_updates(state.log_alpha, alpha_step), actor_adam, alpha_adam

    def wait():
        return state.actor, state.actor_seen, state.log_alpha, state.actor_adam, state.alpha_adam

    # At updates 1, 3, 5, ...
    actor, actor_seen, log_alpha, actor_adam, alpha_adam = jax.lax.cond(number % 2 == 1, step_actor, wait)

    # The target critics move by Polyak averaging; they are not projected.
    critics_target = jax.tree.map(
        lambda old, new: TARGET_RATE * new + (1.0 - TARGET_RATE) * old, state.critics_target, critics
    )
    adams = actor_adam, critics_adam, alpha_adam
    targets = critics_target, critics_seen
    return State(actor, actor_seen, critics, critics_seen, *targets, log_alpha, *adams, number)
