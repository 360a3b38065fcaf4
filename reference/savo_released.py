"""TD3 with SAVO as its authors released it, in one file, to be read from top to bottom.

`reference/savo.py` follows the text of the paper (Jain et al. 2024, arXiv 2410.11833); read it first. The
released code differs in many points. This file has those that change the update: target actors, among whose
proposals the target critics choose, and smoothing of the choice; surrogates that are fitted to the target
critics; clipped gradients; networks that start near zero, normalise the actors' features, and modulate behind
their activations.

`update` is for continuous actions. `update_table` is for discrete ones, each of which has a vector, a row of
a table. There all actors climb surrogates, the first one too, at vectors that are no rows; only critics see
rows.

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
POLICY_DELAY = 2  # critic updates per actor update
TARGET_RATE = 0.005  # Polyak averaging of all target networks
ACTORS = 3
SUMMARY, ENCODER = 16, 64  # width of the summary of earlier proposals, and of the layers that make it
SMOOTHING, SMOOTHING_BOUND = 0.2, 0.5
CLIP = 1.0  # bound on the norm of each gradient
OU_RATE, OU_SIZE = 0.15, 0.2
EPSILON_END, EPSILON_DECAY, WARMUP = 0.01, 25_000, 10_000
adam, clip = make_adam(3e-4), optax.clip_by_global_norm(CLIP)
stop_gradient = jax.lax.stop_gradient


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


def orthogonal(key, fan_in, fan_out, gain):
    """A weight matrix with orthonormal rows or columns, times a gain."""
    return jax.nn.initializers.orthogonal(gain)(key, (fan_out, fan_in))


def make_small(key, *sizes):
    """The same with orthogonal weights of gain √2 and biases 0; the last weight has gain 0.001."""
    layers = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        key, k = jax.random.split(key)
        layers.append((orthogonal(k, fan_in, fan_out, 2.0**0.5), jnp.zeros(fan_out)))
    ((_, bias),) = make_network(key, *sizes[-2:])
    return [*layers, (orthogonal(key, *sizes[-2:], 0.001), bias)]


def linear(layer, x):
    """x Wᵀ + b."""
    weight, bias = layer
    return product(x, weight) + bias


def network(layers, x):
    """ReLU layers and a linear layer."""
    for layer in layers[:-1]:
        x = jax.nn.relu(linear(layer, x))
    return linear(layers[-1], x)


def features(layers, x, modulation=None):
    """What the hidden layers compute. `modulation` is a pair (scale, shift) for each, behind its ReLU."""
    for number, layer in enumerate(layers):
        x = jax.nn.relu(linear(layer, x))
        if modulation is not None:
            scale, shift = modulation[number]
            x = scale * x + shift
    return x


class Norm(NamedTuple):
    """Scale [n] and shift [n] of normalised features."""

    scale: jax.Array
    shift: jax.Array


def normalise(norm, x):
    """Features with mean 0 and the standard deviation of a sample 1, scaled and shifted."""
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).sum(-1, keepdims=True) / (x.shape[-1] - 1)
    std = jnp.where(variance > 0.0, jnp.sqrt(jnp.where(variance > 0.0, variance, 1.0)), 0.0)
    return norm.scale * centred / (std + 1e-5) + norm.shift


class Actor(NamedTuple):
    """Hidden layers, the norm of their features, and the output layer."""

    hidden: list
    norm: Norm
    out: tuple


class Critic(NamedTuple):
    """Hidden layers and the output layer."""

    hidden: list
    out: tuple


class Conditioned(NamedTuple):
    """An actor or critic conditioned on earlier proposals: a summary modulates its layers (FiLM)."""

    net: Actor | Critic
    element: list  # the network on each proposal
    final: list  # the network on the greatest of each feature over the proposals
    film: list  # for each hidden layer, a layer from summary to scale and shift


def make_actor(key, *sizes):
    """An actor of these sizes; the norm's scales are uniform in [0, 1]."""
    *hidden, out = make_small(key, *sizes)
    scale = jax.random.uniform(stream(key, "scale"), (sizes[-2],))
    return Actor(hidden, Norm(scale, jnp.zeros(sizes[-2])), out)


def make_critic(key, *sizes):
    """A critic or surrogate of these sizes."""
    *hidden, out = make_small(key, *sizes)
    return Critic(hidden, out)


def make_conditioned(make, key, action_size, observation_size, *sizes):
    """An actor or critic of these sizes, with the networks that condition it."""
    k_net, k_element, k_final, k_film = jax.random.split(key, 4)
    film = []
    for width in sizes[1:-1]:
        k_film, *halves = jax.random.split(k_film, 3)
        weight = [orthogonal(k, SUMMARY, width, 2.0**0.5) for k in halves]
        film.append((jnp.concatenate(weight), jnp.zeros(2 * width)))
    element = make_network(k_element, action_size + observation_size, ENCODER, ENCODER)
    final = make_network(k_final, ENCODER, ENCODER, SUMMARY)
    return Conditioned(make(k_net, *sizes), element, final, film)


def modulation(net, obs, earlier):
    """Scales and shifts of `net`'s layers, given earlier proposals [i, B, A] at `obs`."""
    obs = jnp.broadcast_to(obs, (*earlier.shape[:-1], obs.shape[-1]))
    x = jnp.moveaxis(jnp.concatenate([earlier, obs], -1), 0, -2)
    summary = network(net.final, network(net.element, x).max(-2))
    return [jnp.split(linear(layer, summary), 2, -1) for layer in net.film]


def act_by(actor, obs, film=None):
    """The action [B, A] of one actor."""
    return jnp.tanh(linear(actor.out, normalise(actor.norm, features(actor.hidden, obs, film))))


def propose(actors, obs):
    """The proposals [L, B, A]. No gradient passes from later proposals to earlier ones."""
    first, *later = actors
    proposals = [act_by(first, obs)]
    for actor in later:
        film = modulation(actor, obs, stop_gradient(jnp.stack(proposals)))
        proposals.append(act_by(actor.net, obs, film))
    return jnp.stack(proposals)


def value(critic, obs, action, film=None):
    """Q(s, a) [B] of one critic; of a list of actions [n, B, A]: [n, B]."""
    obs = jnp.broadcast_to(obs, (*action.shape[:-1], obs.shape[-1]))
    return linear(critic.out, features(critic.hidden, jnp.concatenate([obs, action], -1), film))[..., 0]


def surrogate_value(surrogate, obs, action, earlier):
    """Ψ̂(s, a) [B] after these earlier proposals; of a list of actions [n, B, A]: [n, B]."""
    return value(surrogate.net, obs, action, modulation(surrogate, obs, earlier))


def choose(critic, obs, proposals):
    """The proposals [B, A] with the greatest value of a critic."""
    best = value(critic, obs, stop_gradient(proposals)).argmax(0)
    return jnp.take_along_axis(proposals, best[None, :, None], 0)[0]


# --- the state of an agent ------------------------------------------------------------------------------


class State(NamedTuple):
    """Networks, optimiser states and counters."""

    actors: list
    actors_target: list
    critics: list  # of two
    critics_target: list
    surrogates: list  # one for each actor but the first; on a table one for that, too, a plain critic
    actors_adam: tuple
    critics_adam: tuple
    surrogates_adam: tuple
    updates: jax.Array


def init(key, observation_size, action_size, hidden=(256, 256), on_table=False):
    """The initial state. Target networks start equal to the online networks."""
    k_first, k_1, k_2, *keys = jax.random.split(key, 3 + 2 * (ACTORS - 1))
    sizes = action_size, observation_size
    of_critic = sum(sizes), *hidden, 1
    actors = [make_actor(k_first, observation_size, *hidden, action_size)]
    critics = [make_critic(k, *of_critic) for k in (k_1, k_2)]
    surrogates = [make_critic(stream(key, "first"), *of_critic)] if on_table else []
    for k_actor, k_surrogate in zip(keys[::2], keys[1::2], strict=True):
        actors.append(make_conditioned(make_actor, k_actor, *sizes, observation_size, *hidden, action_size))
        surrogates.append(make_conditioned(make_critic, k_surrogate, *sizes, *of_critic))
    moments = (adam.init(net) for net in (actors, critics, surrogates))
    return State(actors, actors, critics, critics, surrogates, *moments, jnp.zeros((), jnp.int32))


# --- acting ----------------------------------------------------------------------------------------


def explore(state, noise, obs, first, step, key):
    """What it does while it learns: (action, proposals, noise), for continuous actions.

    There is a noise process for every actor, [E, 3, A], which begins at zero with an episode (`first` [E]),
    and no further one for the choice. ε scales the steps of a process, not its values.
    """
    keys = jax.random.split(stream(jax.random.fold_in(key, step), "savo.act.explore"), ACTORS + 3)
    noise = jnp.where(first[:, None, None], 0.0, noise)
    epsilon = 1.0 + (EPSILON_END - 1.0) * jnp.clip((step - WARMUP) / EPSILON_DECAY, 0.0, 1.0)
    noise += epsilon * (OU_SIZE * jax.random.normal(keys[1], noise.shape) - OU_RATE * noise)
    proposals = jnp.clip(propose(state.actors, obs) + jnp.moveaxis(noise, 1, 0), -1.0, 1.0)
    return choose(state.critics[0], obs, proposals), jnp.moveaxis(proposals, 0, 1), noise


# --- one update, for continuous actions --------------------------------------------------------------


class Transitions(NamedTuple):
    """Everything in memory, one row a transition. `terminated` is 0 where only the time was up."""

    obs: jax.Array  # [N, S]
    action: jax.Array  # [N, A], what was executed
    reward: jax.Array  # [N]
    terminated: jax.Array  # [N]
    next_obs: jax.Array  # [N, S]
    proposals: jax.Array  # [N, 3, A], what it was chosen from, noise included


def sample(transitions, key, batch_size):
    """A batch, uniformly and with replacement; the proposals as [3, B, A]."""
    i = jax.random.randint(stream(key, "uniform.sample"), (batch_size,), 0, len(transitions.reward))
    *columns, proposals = (column[i] for column in transitions)
    return *columns, jnp.moveaxis(proposals, 1, 0)


def least(critics, obs, action):
    """The minimum of the critics at an action [B, A] or at a list of actions."""
    return jnp.stack([value(critic, obs, action) for critic in critics]).min(0)


def step_critics(state, obs, action, y):
    """Both critics regress to y; the gradient of each is clipped by itself."""

    def critic_loss(critics):
        heads = jnp.stack([value(critic, obs, action) for critic in critics], -1)
        return ((heads - y[:, None]) ** 2).sum(-1).mean()

    gradients = [
        clip.update(gradient, clip.init(None))[0] for gradient in jax.grad(critic_loss)(state.critics)
    ]
    step, critics_adam = adam.update(gradients, state.critics_adam)
    return optax.apply_updates(state.critics, step), critics_adam


def step_clipped(loss, networks, moments):
    """Networks and moments after a step down the gradient of a loss, which is clipped as a whole."""
    gradient, _ = clip.update(jax.grad(loss)(networks), clip.init(None))
    step, moments = adam.update(gradient, moments)
    return optax.apply_updates(networks, step), moments


def step_actors_and_targets(state, critics, critics_adam, surrogates, surrogates_adam, actor_loss, number):
    """At every second update, the actors climb; then all target networks move."""

    def move():
        actors, actors_adam = step_clipped(actor_loss, state.actors, state.actors_adam)
        targets = update_target(state.actors_target, actors), update_target(state.critics_target, critics)
        return actors, actors_adam, *targets

    def wait():
        return state.actors, state.actors_adam, state.actors_target, state.critics_target

    moved = jax.lax.cond(number % POLICY_DELAY == 0, move, wait)
    actors, actors_adam, actors_target, critics_target = moved
    moments = actors_adam, critics_adam, surrogates_adam
    return State(actors, actors_target, critics, critics_target, surrogates, *moments, number)


def update(state, transitions, key, batch_size=256):
    """The state after one update. `key` is the run's and never changes; the update's number is folded in."""
    number = state.updates + 1
    key = jax.random.fold_in(key, number)
    obs, action, reward, terminated, next_obs, proposals = sample(transitions, key, batch_size)

    # The target: the first target critic chooses among the target actors' proposals, the choice is smoothed,
    # and the minimum of the target critics values it.
    next_action = choose(state.critics_target[0], next_obs, propose(state.actors_target, next_obs))
    noise = SMOOTHING * jax.random.normal(stream(key, "savo.target"), next_action.shape)
    noise = jnp.clip(noise, -SMOOTHING_BOUND, SMOOTHING_BOUND)
    next_action = jnp.clip(next_action + noise, -1.0, 1.0)
    next_values = [value(critic, next_obs, next_action) for critic in state.critics_target]
    y = reward + (1.0 - terminated) * DISCOUNT * jnp.stack(next_values, -1).min(-1)
    critics, critics_adam = step_critics(state, obs, action, y)

    # Each surrogate regresses to max(t, τ): t is the minimum of the target critics, τ the greatest t of the
    # earlier proposals. It does so at two points, the executed action and the next proposal.
    points = jnp.concatenate([action[None], proposals])
    t = least(state.critics_target, obs, points)

    def surrogate_loss(surrogates):
        loss = jnp.zeros(())
        for j, surrogate in enumerate(surrogates, 1):
            best = t[1 : j + 1].max(0)
            goal = jnp.maximum(jnp.stack([t[0], t[j + 1]]), best)
            guess = surrogate_value(surrogate, obs, jnp.stack([action, proposals[j]]), proposals[:j])
            loss += ((guess - goal) ** 2).mean(1).sum()
        return loss / (2 * len(surrogates))

    surrogates, surrogates_adam = step_clipped(surrogate_loss, state.surrogates, state.surrogates_adam)

    # The first actor climbs the first critic, the others their surrogates.
    def actor_loss(actors):
        fresh = propose(actors, obs)
        loss = -value(critics[0], obs, fresh[0]).mean()
        for j, surrogate in enumerate(surrogates, 1):
            loss -= surrogate_value(surrogate, obs, fresh[j], stop_gradient(fresh[:j])).mean()
        return loss

    learned = critics, critics_adam, surrogates, surrogates_adam
    return step_actors_and_targets(state, *learned, actor_loss, number)


# --- one update, on a table of actions ---------------------------------------------------------------


def snap(table, action):
    """The rows of a table [N, A] that are nearest to vectors [..., A]."""
    return table[jnp.square(table - action[..., None, :]).sum(-1).argmin(-1)]


def update_table(state, transitions, table, key, batch_size=256):
    """The same where actions are rows of a table; stored proposals are vectors that are no rows."""
    number = state.updates + 1
    key = jax.random.fold_in(key, number)
    obs, action, reward, terminated, next_obs, proposals = sample(transitions, key, batch_size)

    # The target: critics choose among the rows of the target actors' proposals. Nothing is smoothed.
    next_rows = snap(table, propose(state.actors_target, next_obs))
    next_action = choose(state.critics_target[0], next_obs, next_rows)
    next_values = [value(critic, next_obs, next_action) for critic in state.critics_target]
    y = reward + (1.0 - terminated) * DISCOUNT * jnp.stack(next_values, -1).min(-1)
    critics, critics_adam = step_critics(state, obs, action, y)

    # All surrogates regress, the first one to t itself. t is of rows; their inputs are the vectors.
    t = least(state.critics_target, obs, jnp.concatenate([action[None], snap(table, proposals)]))

    def climbed(surrogates, j, point, proposals):
        if j == 0:
            return value(surrogates[0], obs, point)
        return surrogate_value(surrogates[j], obs, point, proposals[:j])

    def surrogate_loss(surrogates):
        loss = jnp.zeros(())
        for j in range(len(surrogates)):
            goal = jnp.stack([t[0], t[j + 1]])
            goal = jnp.maximum(goal, t[1 : j + 1].max(0)) if j else goal
            guess = climbed(surrogates, j, jnp.stack([action, proposals[j]]), proposals)
            loss += ((guess - goal) ** 2).mean(1).sum()
        return loss / (2 * len(surrogates))

    surrogates, surrogates_adam = step_clipped(surrogate_loss, state.surrogates, state.surrogates_adam)

    # Every actor climbs its surrogate at its own vector, and none of them a critic.
    def actor_loss(actors):
        fresh = propose(actors, obs)
        loss = jnp.zeros(())
        for j in range(len(surrogates)):
            loss -= climbed(surrogates, j, fresh[j], stop_gradient(fresh)).mean()
        return loss

    learned = critics, critics_adam, surrogates, surrogates_adam
    return step_actors_and_targets(state, *learned, actor_loss, number)


def update_target(target, online):
    """Polyak averaging: target ← (1 - τ) target + τ online."""
    return jax.tree.map(lambda old, new: TARGET_RATE * new + (1.0 - TARGET_RATE) * old, target, online)
