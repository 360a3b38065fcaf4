"""TD3 with SAVO in one file, to be read from top to bottom.

Successive actors for value optimisation (Jain et al. 2024, arXiv 2410.11833), on the update of
`reference/td3.py`. A single actor that follows the gradient of Q stops at the nearest peak. Here three actors
propose in turn. Each is conditioned on the earlier proposals and maximises a surrogate max(Q, τ), where τ is
the best value of the earlier proposals. A flat region has no gradient, so each surrogate is approximated by a
network. The critic selects among the proposals, both to act and in the target. There are no target actors and
no target noise.

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
TARGET_RATE = 0.005  # Polyak averaging of the target critics
ACTORS = 3
SUMMARY = 64  # width of the summary of earlier proposals
OU_RATE, OU_SIZE = 0.15, 0.2  # the exploration noise: x ← 0.85 x + 0.2 N(0, I)
EPSILON_END, EPSILON_DECAY, WARMUP = (
    0.01,
    500_000,
    25_000,
)  # the noise's factor falls linearly from 1, after the warm-up
adam = make_adam(3e-4)
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


def linear(layer, x):
    """x Wᵀ + b."""
    weight, bias = layer
    return product(x, weight) + bias


def network(layers, x, modulation=None):
    """ReLU layers and a linear layer. `modulation` is a pair (scale, shift) for each hidden layer (FiLM)."""
    for number, layer in enumerate(layers[:-1]):
        h = linear(layer, x)
        if modulation is not None:
            scale, shift = modulation[number]
            h = (1.0 + scale) * h + shift
        x = jax.nn.relu(h)
    return linear(layers[-1], x)


class Conditioned(NamedTuple):
    """A network conditioned on earlier proposals: a DeepSet summary modulates its layers (FiLM)."""

    layers: list
    element: list  # the DeepSet's network on each proposal
    final: list  # the DeepSet's network on their mean
    film: list  # for each hidden layer, a layer from summary to scale and shift


def make_conditioned(key, action_size, observation_size, *sizes):
    """A conditioned network whose main layers have these sizes."""
    k_net, k_element, k_final, k_film = jax.random.split(key, 4)
    layers, film = make_network(k_net, *sizes), []
    for width in sizes[1:-1]:
        k_film, k = jax.random.split(k_film)
        ((weight, bias),) = make_network(k, SUMMARY, 2 * width)
        film.append((0.1 * weight, 0.0 * bias))  # near the identity
    element = make_network(k_element, action_size + observation_size, SUMMARY, SUMMARY)
    return Conditioned(layers, element, make_network(k_final, SUMMARY, SUMMARY, SUMMARY), film)


def modulation(net, obs, earlier):
    """Scales and shifts of `net`'s layers, given earlier proposals [i, B, A] at `obs`."""
    obs = jnp.broadcast_to(obs, (*earlier.shape[:-1], obs.shape[-1]))
    x = jnp.moveaxis(jnp.concatenate([earlier, obs], -1), 0, -2)
    summary = network(net.final, network(net.element, x).mean(-2))
    return [jnp.split(linear(layer, summary), 2, -1) for layer in net.film]


def propose(actors, obs):
    """The proposals [3, B, A]. No gradient passes from later proposals to earlier ones."""
    first, *later = actors
    proposals = [jnp.tanh(network(first, obs))]
    for actor in later:
        earlier = stop_gradient(jnp.stack(proposals))
        proposals.append(jnp.tanh(network(actor.layers, obs, modulation(actor, obs, earlier))))
    return jnp.stack(proposals)


def value(critic, obs, action):
    """Q(s, a) [B] of one critic; of a list of actions [n, B, A]: [n, B]."""
    obs = jnp.broadcast_to(obs, (*action.shape[:-1], obs.shape[-1]))
    return network(critic, jnp.concatenate([obs, action], -1))[..., 0]


def surrogate_value(surrogate, obs, action, earlier):
    """Ψ̂(s, a) [B] after these earlier proposals; of a list of actions [n, B, A]: [n, B]."""
    film = modulation(surrogate, obs, earlier)
    obs = jnp.broadcast_to(obs, (*action.shape[:-1], obs.shape[-1]))
    return network(surrogate.layers, jnp.concatenate([obs, action], -1), film)[..., 0]


def choose(critics, obs, proposals):
    """Index of the proposal with the greatest value of the first critic [B]."""
    return value(critics[0], obs, stop_gradient(proposals)).argmax(0)


def select(proposals, index):
    """The proposals [B, A] at indices [B]."""
    return jnp.take_along_axis(proposals, index[None, :, None], 0)[0]


# --- the state of an agent ------------------------------------------------------------------------------


class State(NamedTuple):
    """Networks, optimiser states and counters."""

    actors: list
    critics: list  # of two
    critics_target: list
    surrogates: list  # one for each actor but the first
    actors_adam: tuple
    critics_adam: tuple
    surrogates_adam: tuple
    updates: jax.Array


def init(key, observation_size, action_size, hidden=(256, 256)):
    """The initial state. Target networks start equal to the online networks."""
    k_first, k_1, k_2, *keys = jax.random.split(key, 3 + 2 * (ACTORS - 1))
    sizes = action_size, observation_size
    actors = [make_network(k_first, observation_size, *hidden, action_size)]
    critics = [make_network(k, sum(sizes), *hidden, 1) for k in (k_1, k_2)]
    surrogates = []
    for k_actor, k_surrogate in zip(keys[::2], keys[1::2], strict=True):
        actors.append(make_conditioned(k_actor, *sizes, observation_size, *hidden, action_size))
        surrogates.append(make_conditioned(k_surrogate, *sizes, sum(sizes), *hidden, 1))
    networks = actors, critics, surrogates
    moments = (adam.init(net) for net in networks)
    return State(actors, critics, critics, surrogates, *moments, jnp.zeros((), jnp.int32))


# --- acting ----------------------------------------------------------------------------------------


def act(state, obs):
    """The action in evaluations."""
    proposals = propose(state.actors, obs)
    return select(proposals, choose(state.critics, obs, proposals))


def explore(state, noise, obs, first, step, key):
    """What it does while it learns: (action, proposals, noise). There is a noise process for every actor and
    one for the choice, [E, 4, A]; they begin at zero with an episode (`first` [E])."""
    keys = jax.random.split(stream(jax.random.fold_in(key, step), "savo.act.explore"), ACTORS + 3)
    noise = jnp.where(first[:, None, None], 0.0, noise)
    noise = (1.0 - OU_RATE) * noise + OU_SIZE * jax.random.normal(keys[1], noise.shape)
    epsilon = 1.0 + (EPSILON_END - 1.0) * jnp.clip((step - WARMUP) / EPSILON_DECAY, 0.0, 1.0)
    each = jnp.moveaxis(epsilon * noise, 1, 0)
    proposals = jnp.clip(propose(state.actors, obs) + each[:-1], -1.0, 1.0)
    action = select(proposals, choose(state.critics, obs, proposals))
    return jnp.clip(action + each[-1], -1.0, 1.0), jnp.moveaxis(proposals, 0, 1), noise


# --- one update ------------------------------------------------------------------------------------


class Transitions(NamedTuple):
    """Everything in memory, one row a transition. `terminated` is 0 where only the time was up."""

    obs: jax.Array  # [N, S]
    action: jax.Array  # [N, A], what was executed
    reward: jax.Array  # [N]
    terminated: jax.Array  # [N]
    next_obs: jax.Array  # [N, S]
    proposals: jax.Array  # [N, 3, A], what it was chosen from, noise included


def update(state, transitions, key, batch_size=256):
    """The state after one update. `key` is the run's and never changes; the update's number is folded in."""
    number = state.updates + 1
    key = jax.random.fold_in(key, number)

    # Sample a batch uniformly, with replacement.
    i = jax.random.randint(stream(key, "uniform.sample"), (batch_size,), 0, len(transitions.reward))
    obs, action, reward, terminated, next_obs, proposals = (column[i] for column in transitions)
    proposals = jnp.moveaxis(proposals, 1, 0)

    # The target: the reward plus the minimum of the target critics, at the proposal that the first critic
    # selects.
    next_proposals = propose(state.actors, next_obs)
    next_action = select(next_proposals, choose(state.critics, next_obs, next_proposals))
    next_values = [value(critic, next_obs, next_action) for critic in state.critics_target]
    y = reward + (1.0 - terminated) * DISCOUNT * jnp.stack(next_values, -1).min(-1)

    # Both critics regress to y: squared errors, summed over the critics, averaged over the batch.
    def critic_loss(critics):
        heads = jnp.stack([value(critic, obs, action) for critic in critics], -1)
        return ((heads - y[:, None]) ** 2).sum(-1).mean()

    step, critics_adam = adam.update(jax.grad(critic_loss)(state.critics), state.critics_adam)
    critics = optax.apply_updates(state.critics, step)

    # Each surrogate regresses to max(q, τ): q is the minimum of the updated critics, τ the greatest q of the
    # earlier proposals. It does so at two points, the executed action and the next proposal.
    points = jnp.concatenate([action[None], proposals])
    q = jnp.stack([value(critic, obs, points) for critic in critics]).min(0)

    def surrogate_loss(surrogates):
        loss = jnp.zeros(())
        for j, surrogate in enumerate(surrogates, 1):
            best = q[1 : j + 1].max(0)
            goal = jnp.maximum(jnp.stack([q[0], q[j + 1]]), best)
            guess = surrogate_value(surrogate, obs, jnp.stack([action, proposals[j]]), proposals[:j])
            loss += ((guess - goal) ** 2).mean(1).sum()
        return loss

    step, surrogates_adam = adam.update(jax.grad(surrogate_loss)(state.surrogates), state.surrogates_adam)
    surrogates = optax.apply_updates(state.surrogates, step)

    # At every second update, the first actor maximises the first critic and the others their surrogates.
    # Then the target critics move.
    def actor_loss(actors):
        fresh = propose(actors, obs)
        loss = -value(critics[0], obs, fresh[0]).mean()
        for j, surrogate in enumerate(surrogates, 1):
            loss -= surrogate_value(surrogate, obs, fresh[j], stop_gradient(fresh[:j])).mean()
        return loss

    def update_actor():
        step, actors_adam = adam.update(jax.grad(actor_loss)(state.actors), state.actors_adam)
        return (
            optax.apply_updates(state.actors, step),
            actors_adam,
            update_target(state.critics_target, critics),
        )

    def keep_actor():
        return state.actors, state.actors_adam, state.critics_target

    actors, actors_adam, critics_target = jax.lax.cond(number % POLICY_DELAY == 0, update_actor, keep_actor)
    moments = actors_adam, critics_adam, surrogates_adam
    return State(actors, critics, critics_target, surrogates, *moments, number)


def update_target(target, online):
    """Polyak averaging: target ← (1 - τ) target + τ online."""
    return jax.tree.map(lambda old, new: TARGET_RATE * new + (1.0 - TARGET_RATE) * old, target, online)
