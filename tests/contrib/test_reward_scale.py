"""Division of rewards by the scale of discounted reward sums."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box
from small import CAPACITY, A, S, fill, transitions
from test_contract import QUICK

from qscape import agents
from qscape.contrib.reward_scale import RewardScale
from qscape.data import Dataset
from qscape.offpolicy.base import Base
from qscape.run.engines import dataset as offline
from qscape.types import Spec

BASE = Base(discount=0.995)
REWARDS, OVER = [1.0, 1.0, 10.0, 1.0], [False, False, True, False]


def observe(part, state, reward, over, valid=None):
    reward = jnp.atleast_1d(jnp.float32(reward))
    valid = jnp.ones(reward.shape, bool) if valid is None else jnp.array(valid)
    return part.observe(state, reward, jnp.broadcast_to(jnp.array(over), reward.shape), valid, BASE)


def test_numbers_of_the_paper():
    """SimbaV2 with rewards 1, 1, 10 (over), 1; the first divisor is that of the bound."""
    bounded, free = RewardScale(), RewardScale(bound=None)
    states = [bounded.init_state(1), free.init_state(1)]
    sums, divisors = [], []
    for reward, over in zip(REWARDS, OVER, strict=True):
        states = [observe(part, s, reward, over) for part, s in zip((bounded, free), states, strict=True)]
        sums.append(float(states[0].sums[0]))
        divisors.append(float(bounded.divisor(states[0])))
    np.testing.assert_allclose(sums, [1.0, 1.995, 10.0, 10.95], rtol=1e-6)
    np.testing.assert_allclose(divisors, [0.2, 0.497650, 4.028663, 4.515070], rtol=2e-6)
    assert float(free.divisor(states[1])) == pytest.approx(4.515024, rel=1e-6)  # XQC
    assert 1.0 / float(free.divisor(states[1])) == pytest.approx(0.221483, rel=1e-5)


def test_each_environment_has_a_sum_and_resets_are_no_steps():
    part, rng = RewardScale(), np.random.default_rng(0)
    state, sums, seen = part.init_state(3), np.zeros(3), []
    for _ in range(40):
        reward, over, valid = rng.normal(2, 3, 3), rng.random(3) < 0.2, rng.random(3) < 0.8
        state = observe(part, state, reward, over, valid)
        sums = np.where(valid, 0.995 * (1 - over) * sums + reward, sums)
        seen += [*sums[valid]]
    np.testing.assert_allclose(state.sums, sums, rtol=1e-5)
    np.testing.assert_allclose(state.moments.mean[0], np.mean(seen), rtol=1e-4)
    np.testing.assert_allclose(state.moments.var[0], np.var(seen), rtol=1e-4)
    np.testing.assert_allclose(state.largest, np.abs(seen).max(), rtol=1e-6)


def make(recipe, **parts):
    small = {
        "actor_hidden": (8,),
        "critic_hidden": (8,),
        "batch_size": 16,
        "replay_capacity": CAPACITY,
        "critics": 1,
    }
    return agents.build(recipe, {"base": small, **parts}).on(Spec(S, A))


def test_an_update_equals_that_on_divided_rewards():
    """Replay stays raw, and priorities are those of TD errors in the unit of raw rewards."""
    agent, (memory, truncated) = make("td3+lap+reward_scale", lap={"min_priority": 1e-6}), transitions(0)
    layout = agent.layout(1)
    rows, index = fill(agent, memory, truncated)
    divisor = agent.scaling.divisor(index.scaling)
    assert divisor > 1.5
    reward = layout.slices["reward"].start
    np.testing.assert_array_equal(rows[:700, reward], memory.reward)
    state, key = agent.init(jax.random.key(0)), jax.random.key(1)
    update = jax.jit(partial(agent.update, layout)).lower(state, rows, index, key).compile(QUICK)
    scaled, raw, metrics = update(state, rows, index, key)
    assert metrics["reward_divisor"] == divisor
    one = agent.scaling.init_state(1)  # its divisor is 1
    divided = rows.at[:, reward].divide(divisor)
    same, small, _ = update(state, divided, index._replace(scaling=one), key)
    for x, y in zip(jax.tree.leaves(scaled), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-6)
    raw, small = (np.array(found.priorities.tree[-CAPACITY:]) for found in (raw, small))
    moved = (small > 0) & (small < 1)
    assert moved.sum() > 10
    np.testing.assert_allclose(raw[moved], small[moved] * divisor**0.4, rtol=1e-4)


def test_a_dataset_is_observed_as_it_is_stored():
    agent = make("td3+reward_scale")
    memory, truncated = transitions(0)
    _, expected = fill(agent, memory, truncated)
    boxes = Box(-np.inf, np.inf, (S,)), Box(-1.0, 1.0, (A,))
    ends = memory.terminated > 0, truncated
    columns = memory.obs, memory.action, memory.reward, *ends, memory.next_obs
    data = Dataset("recorded", *map(np.asarray, columns), *boxes)
    layout = agent.layout(1)
    _, index = offline.fill(agent, layout, *agent.init_replay(layout), data)
    for x, y in zip(jax.tree.leaves(index.scaling), jax.tree.leaves(expected.scaling), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)
