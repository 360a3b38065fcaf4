"""The assembled on-policy agents equal the straight-line files in `reference/` to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts import begin, build, rollout
from rows import slow

import reference.ppo
import reference.reinforce

KEY = jax.random.key(1)


def layers(modules):
    """Linear layers as pairs."""
    return [(layer.weight, layer.bias) for layer in modules]


def actor_of(networks):
    return layers([*networks.torso.layers, networks.head.layer])


def critic_of(networks):
    torso, out = networks.critic
    return layers([*torso.layers, out])


def same(x, y):
    """Are two trees equal to the bit?"""
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def program(agent):
    """The update without its metrics, which XLA would fuse with what they are made of."""
    return jax.jit(lambda state, made: agent.update(state, made, 0.0, KEY)[0])


@pytest.mark.parametrize("steps", [slow(40), 12])
def test_reinforce(steps):
    """Of 40 rows a last minibatch with a remainder; of 12 rows fewer steps than a minibatch has."""
    agent = build("reinforce")
    state = begin(agent)
    own, actor = state.part_states["monte_carlo"], actor_of(state.networks)
    start = (actor, reference.reinforce.adam.init(actor), own.mean[0], own.var[0], own.seen, state.updates)
    oracle_state, ours = reference.reinforce.State(*start), program(agent)
    oracle = jax.jit(lambda state, made: reference.reinforce.update(state, made, KEY))
    for number in range(3):
        made = rollout(number, steps=steps, masked=True)
        state = ours(state, made)
        columns = made.observation, made.action[..., 0].astype(jnp.int32), made.reward
        flat_made = reference.reinforce.Rollout(*columns, made.terminated, made.truncated, made.valid)
        oracle_state = oracle(oracle_state, flat_made)
        moments = state.optimisers["networks"][0]
        assert same(actor_of(state.networks), oracle_state.actor), f"at update {number}"
        assert same([actor_of(m) for m in (moments.mu, moments.nu)], oracle_state.adam[1:])
        own = state.part_states["monte_carlo"]
        assert same((own.mean[0], own.var[0], own.seen), oracle_state[2:5])
    assert not same(actor, actor_of(state.networks)), "something was learned"


@pytest.mark.parametrize("unroll", [0, 4])
def test_ppo(unroll):
    """With unrolls of 4, advantages are computed anew for each minibatch."""
    agent = build("ppo", clipped={"unroll": unroll}) if unroll else build("ppo")
    state = begin(agent)
    networks = actor_of(state.networks), critic_of(state.networks)
    oracle_state = reference.ppo.State(*networks, reference.ppo.adam.init(networks), state.updates)
    ours, oracle = program(agent), jax.jit(lambda state, made: reference.ppo.update(state, made, KEY, unroll))
    for number in range(3):
        made = rollout(number)
        state = ours(state, made)
        columns = made.observation, made.action[..., 0].astype(jnp.int32), made.reward
        ends = made.terminated, made.truncated, made.next_observation
        oracle_state = oracle(oracle_state, reference.ppo.Rollout(*columns, *ends))
        moments = state.optimisers["networks"][1]
        found = actor_of(state.networks), critic_of(state.networks)
        assert same(found, oracle_state[:2]), f"at update {number}"
        both = [(actor_of(m), critic_of(m)) for m in (moments.mu, moments.nu)]
        assert same(both, oracle_state.adam[1][1:])
    assert not same(networks, found), "something was learned"
