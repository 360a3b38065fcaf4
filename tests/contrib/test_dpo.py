"""DPO: the sampler and its balance, by the numbers of a small table."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_savo import flat_batch, functions, make, state_of

from qscape.agents import build
from qscape.contrib.dpo import LOG_Z_SCALE, Sampler, find_factors
from qscape.errors import UsageError
from qscape.types import Spec

KEY = jax.random.key(0)
Q = np.array([[1.0, 0.0], [0.0, 2.0]])  # of two components with two values each
CHOICES = np.array([*itertools.product(range(2), range(2))])
GRID = np.float32(2 * CHOICES - 1)
TASK = Spec(5, 2, GRID)


def exact(alpha: float):
    """log Z, the joint probabilities, and log-probabilities of the first and of the second component."""
    weight = np.exp(Q / alpha)
    joint = weight / weight.sum()
    first = joint.sum(1)
    return np.log(weight.sum()), joint, np.log(first), np.log(joint / first[:, None])


def sampler_of(log_z: float, first, second) -> Sampler:
    """A sampler that has these probabilities in every state."""
    made = jax.tree.map(jnp.zeros_like, Sampler(KEY, 5, [2, 2], (4,)))
    made = eqx.tree_at(lambda s: s.normaliser.out.bias, made, jnp.float32([log_z / LOG_Z_SCALE]))
    made = eqx.tree_at(lambda s: s.components[0].out.bias, made, jnp.float32(first))
    hands_on = jnp.zeros((4, 7)).at[0, 5].set(1.0).at[1, 6].set(1.0)  # the one-hot first component
    made = eqx.tree_at(lambda s: s.components[1].torso.layers[0].weight, made, hands_on)
    weight = jnp.zeros((2, 4)).at[:, :2].set(jnp.float32(second).T)
    return eqx.tree_at(lambda s: s.components[1].out.weight, made, weight)


def test_the_numbers_of_the_small_table():
    log_z, joint, first, second = exact(1.0)
    assert log_z == pytest.approx(2.493812, abs=1e-6)
    np.testing.assert_allclose(joint, [[0.224515, 0.082595], [0.082595, 0.610296]], atol=1e-6)
    np.testing.assert_allclose(np.exp(first), [0.307110, 0.692890], atol=1e-6)
    np.testing.assert_allclose(np.exp(second), [[0.731059, 0.268941], [0.119203, 0.880797]], atol=1e-6)
    obs, index, energy = jnp.zeros((4, 5)), jnp.asarray(CHOICES), jnp.asarray(Q.ravel(), jnp.float32)
    balanced = sampler_of(log_z, first, second)
    np.testing.assert_allclose(jnp.exp(balanced.log_prob(obs, index)), joint.ravel(), rtol=1e-5)
    np.testing.assert_allclose(balanced.imbalance(obs, index, energy), 0.0, atol=1e-5)
    uniform = sampler_of(0.0, [0.0, 0.0], np.zeros((2, 2)))
    assert float(jnp.square(uniform.imbalance(obs, index, energy)).mean()) == pytest.approx(
        5.251254, abs=1e-5
    )
    np.testing.assert_array_equal(balanced.mode(obs), [[1, 1]] * 4)


def test_samples_have_the_joint_probabilities_and_a_share_is_uniform():
    log_z, joint, first, second = exact(1.0)
    made, obs = sampler_of(log_z, first, second), jnp.zeros((20_000, 5))
    for uniform in (0.0, 0.5):
        index, log_prob = made.sample(obs, KEY, uniform)
        found = np.bincount(2 * index[:, 0] + index[:, 1], minlength=4) / 20_000
        mixed = lambda p: (1 - uniform) * np.exp(p) + uniform / 2  # noqa: B023, E731
        wanted = mixed(first)[:, None] * mixed(second)
        np.testing.assert_allclose(found, wanted.ravel(), atol=0.015)
        np.testing.assert_allclose(log_prob, np.log(joint)[index[:, 0], index[:, 1]], atol=1e-4)


def q_of_table(obs, action):
    """The twins: the least one is Q."""
    i, j = ((action[..., m] > 0).astype(jnp.int32) for m in range(2))
    value = jnp.asarray(Q, jnp.float32)[i, j]
    return [value + 1.0, value]


@pytest.mark.parametrize(("alpha", "soft_value"), [(1.0, 2.493812), (0.5, 2.079342)])
def test_the_sampler_learns_the_distribution_and_the_soft_value(alpha, soft_value):
    agent = make("td3+dpo", spec=TASK, temperature=alpha, hidden=(16,), uniform=0.2)
    part, batch = agent.selector, flat_batch(0, size=32, width=2)
    batch = batch._replace(observation=jnp.zeros((32, 5)))
    context, state = functions(agent)._replace(q=q_of_table), state_of(agent).part(part)
    optimiser = optax.adam(1e-2)

    def step(number, carry):
        params, moments = carry
        now, key = state._replace(params=params), jax.random.fold_in(KEY, number)
        gradient = jax.grad(lambda p: part.learn(p, now, context, batch, key)[0])(params)
        updates, moments = optimiser.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    learned, _ = jax.jit(
        lambda: jax.lax.fori_loop(0, 800, step, (state.params, optimiser.init(state.params)))
    )()
    found = jnp.exp(learned.log_prob(jnp.zeros((4, 5)), jnp.asarray(CHOICES)))
    np.testing.assert_allclose(found, exact(alpha)[1].ravel(), atol=0.02)
    state = state._replace(params=learned, extra=learned.normaliser)
    value = part.next_value(state, context, jnp.zeros((1, 5)), KEY)
    np.testing.assert_allclose(value, soft_value, atol=0.02)


def test_actions_are_rows_of_the_table():
    agent = make("td3+dpo", spec=TASK, hidden=(8,))
    state, obs = state_of(agent), jax.random.normal(KEY, (64, 5))
    act = lambda key, mode: agent.act(agent.acting(state), None, obs, jnp.ones(64, bool), 0, key, mode)[0]  # noqa: E731
    rows = np.asarray(act(KEY, "explore"))
    assert {tuple(row) for row in rows.tolist()} <= {tuple(row) for row in GRID.tolist()}
    assert len(np.unique(rows, axis=0)) > 1
    evaluated = act(KEY, "evaluate")
    np.testing.assert_array_equal(evaluated, act(jax.random.key(1), "evaluate"))
    dist = functions(agent, state).policy(obs)
    action, log_prob = dist.sample(KEY)
    np.testing.assert_allclose(dist.log_prob(action), log_prob, rtol=1e-5)


def test_tables_that_are_products():
    values = find_factors(np.float32([[0, 5, 1], [0, 7, 1], [2, 5, 1], [2, 7, 1]]))
    assert [v.tolist() for v in values] == [[0, 2], [5, 7], [1]]
    assert find_factors(GRID[:3]) is None


@pytest.mark.parametrize(
    ("spec", "says"),
    [(Spec(5, 2), "are continuous; take sac"), (Spec(5, 2, GRID[:3]), "not all combinations")],
)
def test_tasks_that_do_not_fit(spec, says):
    with pytest.raises(UsageError, match=says):
        make("td3+dpo", spec=spec)


def test_a_gaussian_base_is_refused():
    with pytest.raises(UsageError, match="write td3\\+dpo"):
        build("sac+dpo")
