"""The on-policy update: returns, surrogates, trust regions and minibatches against numbers made by hand."""

import dataclasses
import re
from collections import Counter
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts import CONTINUOUS, DISCRETE, E, K, T, begin, build, compiled, rollout
from rows import slow, slow_except

from qscape import agents
from qscape.errors import UsageError
from qscape.nets.distributions import Categorical, Normal, TanhNormal
from qscape.nets.orthogonal import orthogonal_linear
from qscape.onpolicy.descent import Clipped, Minibatches
from qscape.onpolicy.plain import GAE, MonteCarlo
from qscape.onpolicy.sockets import NetworkOutputs, RolloutSamples, Trajectory
from qscape.onpolicy.trust_region import TrustRegion
from qscape.ops import surrogate
from qscape.ops.returns import discounted_returns, gae, running_returns
from qscape.ops.running import Moments, add_batch, init_moments
from qscape.types import Spec, Transition

column = lambda *x: jnp.array(x, jnp.float32)[:, None]  # noqa: E731


# --- returns and advantages -------------------------------------------------------------------------


def test_returns():
    ends = column(0, 0, 1)
    found = discounted_returns(column(1, 1, 1), 100.0, ends, ends, 0.95)[:, 0]
    np.testing.assert_allclose(found, [2.8525, 1.95, 1.0], rtol=1e-6)
    standardised = (found - found.mean()) / jnp.sqrt(found.var() + 1e-8)
    np.testing.assert_allclose(standardised, [1.214144, 0.020934, -1.235077], atol=1e-5)


@pytest.mark.parametrize(
    ("terminated", "advantage"),
    [(1.0, (2.358807, 1.555350, 0.7)), (0.0, (2.533946, 1.741569, 0.898))],
)
def test_gae_by_hand(terminated, advantage):
    v, after = column(0.5, 0.4, 0.3), column(0.4, 0.3, 0.2)
    found = gae(column(1, 1, 1), v, after, column(0, 0, terminated), column(0, 0, 1), 0.99, 0.95)
    np.testing.assert_allclose(found[:, 0], advantage, atol=1e-6)
    if terminated:
        np.testing.assert_allclose((found + v)[:, 0], [2.858807, 1.955350, 1.0], atol=1e-6)
        normal = surrogate.standardise_advantages(found[:, 0])
        np.testing.assert_allclose(normal, [0.989411, 0.020852, -1.010263], atol=1e-5)


def loop_gae(reward, value, after, terminated, ended, discount, decay):
    """A_t = Σ_l (γ λ)^l δ_{t+l} up to the end of the episode: a sum for each step."""
    found = np.zeros_like(reward)
    for env in range(reward.shape[1]):
        for t in range(len(reward)):
            for j in range(t, len(reward)):
                delta = reward[j, env] + discount * (1 - terminated[j, env]) * after[j, env] - value[j, env]
                found[t, env] += (discount * decay) ** (j - t) * delta
                if ended[j, env]:
                    break
    return found


def test_gae_equals_a_double_loop():
    rng = np.random.default_rng(0)
    reward, value, after = rng.normal(size=(3, 40, 3))
    terminated = (rng.random((40, 3)) < 0.1).astype(float)
    ended = np.maximum(terminated, rng.random((40, 3)) < 0.1)
    given = (reward, value, after, terminated, ended)
    found = gae(*(jnp.asarray(x, jnp.float32) for x in given), 0.97, 0.9)
    np.testing.assert_allclose(found, loop_gae(*given, 0.97, 0.9), atol=1e-4)


def test_a_return_cut_short_goes_on_with_the_mean_so_far():
    """Environment 0 is truncated at its second step and unfinished at the last; 1 has two steps, two pads."""
    reward = jnp.ones((4, 2))
    terminated = jnp.array([[0, 0], [0, 1], [0, 0], [0, 0]], jnp.float32)
    ended = jnp.array([[0, 0], [1, 1], [0, 1], [1, 1]], jnp.float32)
    weight = jnp.array([[1, 1], [1, 1], [1, 0], [1, 0]], jnp.float32)
    own = Moments(jnp.array([10.0]), jnp.array([4.0]), jnp.array(7.0))
    base = dataclasses.replace(build("reinforce").base, discount=0.5)
    steps = Trajectory(reward, None, None, terminated, ended, weight, ended)
    advantage, returns, after = MonteCarlo().estimate(own, base, steps)
    np.testing.assert_allclose(returns[:, 0], [4.0, 6.0, 4.0, 6.0])
    np.testing.assert_allclose(returns[:2, 1], [1.5, 1.0])
    np.testing.assert_allclose(advantage[:, 0], (np.array([4, 6, 4, 6]) - 10) / 2, rtol=1e-6)
    seen = np.array([4, 6, 4, 6, 1.5, 1.0])  # the pads are not seen
    assert after.seen == 13
    np.testing.assert_allclose(after.mean, (70 + seen.sum()) / 13, rtol=1e-6)
    plain, _, _ = MonteCarlo(standardise=False).estimate(own, base, steps)
    np.testing.assert_allclose(plain, returns)


def test_running_moments_of_batches():
    rng = np.random.default_rng(1)
    x, weight = rng.normal(3.0, 2.0, (50, 4)), (rng.random(50) < 0.7).astype(np.float32)
    m = init_moments(4)._replace(seen=jnp.zeros(()))
    for part in np.split(np.arange(50), (13, 20)):
        m = add_batch(m, jnp.asarray(x[part], jnp.float32), jnp.asarray(weight[part]))
    kept = x[weight > 0]
    np.testing.assert_allclose(m.mean, kept.mean(0), rtol=1e-5)
    np.testing.assert_allclose(m.var, kept.var(0), rtol=1e-5)
    untouched = add_batch(m, jnp.ones((3, 4)), jnp.zeros(3))
    np.testing.assert_allclose(untouched.var, m.var, rtol=1e-6)


def test_running_returns_go_on_over_rollouts():
    reward, ended = jnp.ones((5, 1)), column(0, 0, 1, 0, 0)
    whole, _ = running_returns(reward, ended, jnp.zeros(1), 0.5)
    np.testing.assert_allclose(whole[:, 0], [1, 1.5, 1.75, 1, 1.5])
    first, between = running_returns(reward[:2], ended[:2], jnp.zeros(1), 0.5)
    second, _ = running_returns(reward[2:], ended[2:], between, 0.5)
    np.testing.assert_allclose(jnp.concatenate([first, second]), whole)


# --- surrogates -------------------------------------------------------------------------------------


def test_clipped_surrogate():
    log_ratio = jnp.log(jnp.array([1.3, 0.8, 1.05]))
    loss = surrogate.clipped_surrogate(log_ratio, jnp.array([1.0, -1.0, 2.0]), 0.1)
    np.testing.assert_allclose(loss, [-1.1, 0.9, -2.1], rtol=1e-6)
    np.testing.assert_allclose(loss.mean(), -0.766667, rtol=1e-6)
    assert surrogate.clipped_surrogate(jnp.array(100.0), jnp.array(0.0), 0.1) == 0.0  # not inf times 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [
        (1.05, 2.0, -2.0 * 1.05),  # inside
        (1.30, 1.0, 0.0),  # gained enough
        (0.70, 1.0, -0.70),  # fell: it may come back
        (0.70, -1.0, 0.0),  # a bad action is rare enough
        (1.30, -1.0, 1.30),  # a bad action became likelier
    ],
)
def test_gradients_of_the_clipped_surrogate(ratio, advantage, gradient):
    """By the log-probability: -ρ A where the clip does not hold, else 0."""
    loss = lambda log_prob: surrogate.clipped_surrogate(log_prob, jnp.array(advantage), 0.2)  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(jnp.log(ratio)), gradient, rtol=1e-5)


def test_clipped_value_loss():
    loss = partial(surrogate.clipped_value_loss, old=jnp.array(0.5), target=jnp.array(1.0), bound=0.1)
    np.testing.assert_allclose(
        [loss(jnp.array(v)) for v in (0.9, 0.55, 0.4)], [0.16, 0.2025, 0.36], rtol=1e-5
    )


def test_terms_of_ppo():
    """The clip of values and the raw advantages, as fields ask for them."""
    value, old, target = jnp.array([0.9, 0.55]), jnp.array([0.5, 0.5]), jnp.array([1.0, 1.0])
    dist = Categorical(jnp.zeros((2, 1)), jnp.log(jnp.array([[0.65, 0.35], [0.4, 0.6]])))
    half = jnp.log(jnp.full(2, 0.5))
    batch = RolloutSamples(
        jnp.zeros((2, 1)), jnp.zeros((2, 1)), half, jnp.array([1.0, -1.0]), target, old, None
    )
    part = Clipped(bound=0.1, value_bound=0.1, normalise_advantages=False)
    policy, critic, metrics = part.losses(NetworkOutputs(dist, value, None), batch)
    np.testing.assert_allclose(policy, [-1.1, 0.9], rtol=1e-6)
    np.testing.assert_allclose(critic, [0.16, 0.2025], rtol=1e-5)
    assert metrics["clip_fraction"] == 1.0
    ratios = np.array([1.3, 0.8])
    np.testing.assert_allclose(metrics["approx_kl"], (ratios - 1 - np.log(ratios)).mean(), rtol=1e-5)
    normal, free, _ = Clipped(bound=10.0).losses(NetworkOutputs(dist, value, None), batch)
    np.testing.assert_allclose(normal, -ratios * np.array([1, -1]) / np.sqrt(2), rtol=1e-5)
    np.testing.assert_allclose(free, np.square([0.1, 0.45]), rtol=1e-5)


def test_standardised_with_weights():
    x, weight = jnp.array([1.0, 2.0, 4.0, 99.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    expected = (np.array([1, 2, 4]) - 7 / 3) / np.std([1, 2, 4], ddof=1)
    np.testing.assert_allclose(surrogate.standardise_advantages(x, weight)[:3], expected, rtol=1e-5)
    assert surrogate.standardise_advantages(x[:1])[0] == 0.0
    np.testing.assert_allclose(surrogate.weighted_mean(x, weight), 7 / 3, rtol=1e-6)


def test_distributions():
    logits, other = jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 1.0, 0.0])
    p, q = np.exp(logits) / np.exp(logits).sum(), np.exp(other) / np.exp(other).sum()
    a, b = Categorical(jnp.zeros(1), logits), Categorical(jnp.zeros(1), other)
    np.testing.assert_allclose(a.entropy(), -(p * np.log(p)).sum(), rtol=1e-6)
    np.testing.assert_allclose(a.kl(b), (p * np.log(p / q)).sum(), rtol=1e-5)
    assert a.mode() == 2.0
    drawn = jax.vmap(lambda k: a.sample(k)[0])(jax.random.split(jax.random.key(0), 20_000))[:, 0]
    np.testing.assert_allclose([(drawn == k).mean() for k in range(3)], p, atol=0.02)
    n = Normal(jnp.zeros(1), jnp.array([0.5, -1.0]), jnp.log(jnp.array([0.5, 2.0])))
    m = Normal(jnp.zeros(1), jnp.array([0.0, 0.0]), jnp.log(jnp.array([1.0, 1.5])))
    x = jax.vmap(lambda k: n.sample(k)[0])(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(-jax.vmap(n.log_prob)(x).mean(), n.entropy(), atol=0.03)
    np.testing.assert_allclose((jax.vmap(n.log_prob)(x) - jax.vmap(m.log_prob)(x)).mean(), n.kl(m), atol=0.03)


def test_tanh_of_a_normal_distribution():
    """Density, entropy and divergence against sums over the actions themselves."""
    mean, std = np.array([0.5, -1.5]), np.array([0.7, 0.3])
    n = TanhNormal(jnp.zeros(1), jnp.array(mean), jnp.log(jnp.array(std)))
    m = TanhNormal(jnp.zeros(1), jnp.array([0.0, -1.0]), jnp.log(jnp.array([1.0, 0.5])))
    edges = np.tanh(np.linspace(-6, 6, 200_001))
    a, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    entropy, kl = 0.0, 0.0
    for k in range(2):

        def density(dist, k=k):
            z = (np.arctanh(a) - float(dist.mean[k])) / np.exp(float(dist.log_std[k]))
            return np.exp(-z * z / 2) / np.exp(float(dist.log_std[k])) / np.sqrt(2 * np.pi) / (1 - a * a)

        p, q = density(n), density(m)
        np.testing.assert_allclose((p * widths).sum(), 1.0, rtol=1e-6)
        entropy -= (p * np.log(p.clip(1e-300)) * widths).sum()
        kl += (p * np.log(p.clip(1e-300) / q.clip(1e-300)) * widths).sum()
    np.testing.assert_allclose(n.entropy(), entropy, rtol=1e-5)
    np.testing.assert_allclose(n.kl(m), kl, rtol=1e-5)
    x = jax.vmap(lambda k: n.sample(k)[0])(jax.random.split(jax.random.key(0), 20_000))
    assert (abs(x) < 1).all()
    np.testing.assert_allclose(-jax.vmap(n.log_prob)(x).mean(), entropy, atol=0.03)
    np.testing.assert_allclose(n.mode(), np.tanh(mean), rtol=1e-6)


def test_a_squashed_policy_chooses_its_noise_by_the_state():
    """Brax's: the last layer has 2 A outputs, and the standard deviation is softplus(x) + 0.001."""
    agent = build("ppo", CONTINUOUS, learnable={"continuous": "tanh_normal"})
    state, obs = begin(agent), rollout(0, CONTINUOUS).observation
    layer, vector = state.networks.head.layer
    assert vector is None
    assert layer.weight.shape[0] == 2 * CONTINUOUS.action_size
    dist = agent.get_distribution(agent.acting(state), obs)
    np.testing.assert_allclose(jnp.exp(dist.log_std), np.log(2) + 0.001, atol=0.02)
    layer = eqx.tree_at(lambda x: x.weight, layer, layer.weight * 100)
    head = state.networks.head._replace(layer=(layer, None))
    state = state._replace(networks=state.networks._replace(head=head))
    dist = agent.get_distribution(agent.acting(state), obs)
    out = dist.features @ layer.weight.T
    np.testing.assert_allclose(dist.mode(), np.tanh(out[..., : CONTINUOUS.action_size]), rtol=1e-4, atol=1e-6)
    expected = np.log(np.log1p(np.exp(out[..., CONTINUOUS.action_size :])) + 0.001)
    np.testing.assert_allclose(dist.log_std, expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(dist.log_std) > 0.1
    assert agent.moot_fields()["learnable.log_std"] == "with learnable.continuous = tanh_normal"


# --- minibatches ------------------------------------------------------------------------------------


def walked(n, size, passes, weight=None, unroll=1):
    """The indices of every step, with their weights, as lists."""
    zeros = jnp.zeros(n)
    samples = RolloutSamples(jnp.arange(n)[:, None], zeros, zeros, zeros, zeros, None, weight)
    seen = []

    def step(params, moments_, batch):
        w = jnp.ones(len(batch.observation)) if batch.weight is None else batch.weight
        jax.debug.callback(
            lambda i, w: seen.append(i[w > 0].tolist()), batch.observation[:, 0], w, ordered=True
        )
        return params + 1, moments_, {"count": w.sum()}

    plan = Minibatches(n, size, passes, weight, unroll)
    run = jax.jit(lambda: plan.run_passes(step, (0, 0), samples, jax.random.key(0), None))
    steps, _, metrics = run()
    jax.effects_barrier()
    assert steps == len(seen)
    np.testing.assert_allclose(metrics["count"], np.mean([len(x) for x in seen]))
    return seen


@pytest.mark.parametrize(
    ("n", "size", "used", "lengths"),
    [(12, 4, 12, [4, 4, 4]), (14, 4, 14, [4, 4, 6]), (12, 0, 12, [12]), (14, 4, 11, [4, 7]), (14, 4, 3, [3])],
)
def test_each_pass_sees_every_sample_once(n, size, used, lengths):
    weight = None if used == n else (jnp.arange(n) < used).astype(jnp.float32)
    seen = walked(n, size, 2, weight)
    assert [len(x) for x in seen] == lengths * 2
    first, second = seen[: len(lengths)], seen[len(lengths) :]
    for one in (first, second):
        assert sorted(i for minibatch in one for i in minibatch) == list(range(used))
    assert not size or first != second, "each pass has an order of its own"


@pytest.mark.parametrize(
    ("n", "size", "dead", "lengths"),
    [(24, 8, (), [8, 8, 8]), (28, 8, (), [8, 8, 12]), (24, 0, (), [24]), (28, 9, (3, 4, 5, 6, 7), [8, 8, 8])],
)
def test_unrolls_stay_together(n, size, dead, lengths):
    """In minibatches of whole unrolls of 4, of which 9 samples hold two; samples that do not count are left
    out.
    """
    weight = jnp.ones(n).at[jnp.array(dead)].set(0.0) if dead else None
    seen = walked(n, size, 2, weight, unroll=4)
    kept = [i for i in range(n) if i not in dead]
    for one in (seen[: len(lengths)], seen[len(lengths) :]):
        flat = [i for minibatch in one for i in minibatch]
        assert sorted(flat) == kept
        begun = dict.fromkeys(i // 4 for i in flat)
        assert flat == [i for k in begun for i in kept if i // 4 == k], "in the order of time"
        assert [len({i // 4 for i in x}) * 4 for x in one] == lengths
    assert not size or seen[: len(lengths)] != seen[len(lengths) :]


@pytest.mark.parametrize("case", [{"steps": 12}, {"steps": 10}, {"steps": 11, "masked": True}])
def test_advantages_anew(case):
    """Each step on the whole rollout: targets end with unrolls of 4 and follow the critic's own steps."""
    made = rollout(3, **case)
    settings = {"base": {"passes": 1, "batch_size": 0, "discount": 0.9}, "gae": {"decay": 0.8}}
    once = build("ppo", clipped={"unroll": 4}, **settings)
    settings["base"] |= {"passes": 2}
    state, twice = begin(once), build("ppo", clipped={"unroll": 4}, **settings)
    rows = np.ones(made.reward.shape, bool) if made.valid is None else np.asarray(made.valid)

    def error(state):
        """Mean squared error of the critic, from last to first step of every unroll."""
        v, after = (
            np.asarray(once.value({}, state.networks, x)) for x in (made.observation, made.next_observation)
        )
        errors = []
        for e, t in zip(*np.nonzero(rows.T), strict=True):
            error, weight = 0.0, 1.0
            for k in range(t, min(t - t % 4 + 4, rows[:, e].sum())):
                follows = 0.0 if made.terminated[k, e] else 0.9 * after[k, e]
                error += weight * (made.reward[k, e] + follows - v[k, e])
                weight *= 0.9 * 0.8
                if made.terminated[k, e] or made.truncated[k, e]:
                    break
            errors.append(error)
        return np.mean(np.square(errors))

    stepped, first = compiled(once)(state, made, 0.0, jax.random.key(1))
    np.testing.assert_allclose(first["value_loss"], error(state), rtol=1e-4)
    _, both = compiled(twice)(state, made, 0.0, jax.random.key(1))
    np.testing.assert_allclose(2 * both["value_loss"] - first["value_loss"], error(stepped), rtol=1e-4)
    assert abs(error(stepped) / error(state) - 1) > 1e-3


def test_the_first_ratio_is_one():
    """One pass over one minibatch: the loss is -mean A, 0 for standardised advantages, and so is the KL."""
    agent = build("ppo", base={"passes": 1, "batch_size": 0})
    state = begin(agent)
    _, metrics = compiled(agent)(state, rollout(), 0.0, jax.random.key(1))
    assert abs(metrics["approx_kl"]) < 1e-6
    assert metrics["clip_fraction"] == 0.0
    assert abs(metrics["policy_loss"]) < 1e-6


@pytest.mark.slow
def test_target_kl_stops():
    """With a bound that the second step breaks, more passes change nothing."""
    found = []
    for passes in (2, 6):
        base = {"passes": passes, "batch_size": 0, "learning_rate": 0.05}
        agent = build("ppo", base=base, clipped={"target_kl": 1e-6})
        state, metrics = compiled(agent)(begin(agent), rollout(), 0.0, jax.random.key(1))
        found.append(jax.tree.leaves(state.networks))
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
    assert metrics["approx_kl"] > 1e-6


# --- trust region -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damping", "direction", "length", "kl", "gain"),
    [(0.0, 1.0, 0.173205, 0.009975, None), (0.1, 0.769231, 0.197484, 0.007678, 0.100886)],
)
def test_one_trust_region_step(damping, direction, length, kl, gain):
    """One state, three free logits at 0, advantages (1, 0, -1)."""
    advantage, start = jnp.array([1.0, 0.0, -1.0]), jnp.zeros(3)
    p = jax.nn.softmax(start)
    loss = lambda z: -(p * jax.nn.softmax(z) / p * advantage).sum()  # noqa: E731
    far = lambda z: Categorical(None, start).kl(Categorical(None, z))  # noqa: E731
    part = TrustRegion(damping=damping)
    before, gradient = jax.value_and_grad(loss)(start)
    step, found = part.find_step(loss, far, start, before, gradient)
    np.testing.assert_allclose(step, length * direction * np.array([1, 0, -1]), atol=1e-6)
    np.testing.assert_allclose(found.kl, kl, atol=1e-6)
    assert found.accepted
    assert found.tries == 1
    np.testing.assert_allclose(found.params, step, atol=1e-7)
    if gain is not None:
        np.testing.assert_allclose(before - found.loss, gain, atol=1e-6)


def test_a_search_comes_back_within_the_bound():
    """KL = x²/2 + 50 x⁴ is three times δ at the full step √(2δ): the first 0.8^i of it below δ is taken."""
    far = lambda x: (0.5 * x**2 + 50 * x**4).sum()  # noqa: E731
    down = lambda x: -x.sum()  # noqa: E731
    _, found = TrustRegion(damping=0.0).find_step(down, far, jnp.zeros(1), jnp.zeros(()), jnp.array([-1.0]))
    steps = np.sqrt(0.02) * 0.8 ** np.arange(10)
    first = int(np.argmax(0.5 * steps**2 + 50 * steps**4 < 0.01))
    assert first > 1
    assert found.tries == first + 1
    np.testing.assert_allclose(found.params, steps[first], rtol=1e-5)
    assert found.kl < 0.01


def test_a_search_that_finds_nothing_stays():
    """A loss that rises whatever one does: all tries are made and the parameters stay."""
    start = jnp.array([1.0, 2.0])
    part = TrustRegion()
    rising = lambda x: jnp.square(x - start).sum()  # noqa: E731
    _, found = part.find_step(rising, rising, start, jnp.zeros(()), jnp.array([1.0, 0.0]))
    assert not found.accepted
    assert found.tries == 10
    np.testing.assert_array_equal(found.params, start)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS])
def test_trpo_stays_within_its_bound(spec):
    agent = build("trpo", spec, trust_region={"max_kl": 0.02})
    state, update = begin(agent), compiled(agent)
    for number in range(3):
        made = rollout(number, spec)
        after, metrics = update(state, made, 0.0, jax.random.key(1))
        old, new = (agent.get_distribution(agent.acting(s), made.observation) for s in (state, after))
        assert 0 < old.kl(new).mean() < 0.02
        np.testing.assert_allclose(old.kl(new).mean(), metrics["kl"], rtol=1e-3)
        assert metrics["step_taken"] == 1.0
        assert metrics["surrogate_gain"] > 0.0
        assert not np.array_equal(state.networks.critic[1].weight, after.networks.critic[1].weight)
        state = after


# --- the whole update -------------------------------------------------------------------------------


RECIPES = ("ppo", "a2c", "reinforce", "trpo")


@pytest.mark.parametrize("recipe", slow_except(["ppo"], RECIPES))
def test_rows_that_are_no_steps_do_not_count(recipe):
    """What stands in them changes nothing, be it as wild as it likes."""
    agent = build(f"{recipe}+normalise+scale_rewards")
    state, made = begin(agent, envs=E), rollout(masked=True)
    wild = made._replace(
        observation=jnp.where(made.valid[..., None], made.observation, 1e6),
        next_observation=jnp.where(made.valid[..., None], made.next_observation, -1e6),
        reward=jnp.where(made.valid, made.reward, 1e6),
    )
    update = lambda made: compiled(agent)(state, made, 0.0, jax.random.key(1))[0]  # noqa: E731
    for a, b in zip(jax.tree.leaves(update(made)), jax.tree.leaves(update(wild)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_time_limit_does_not_cut_the_bootstrap():
    """The update of a truncated step rests on the value of its true last observation."""
    agent = build("a2c", base={"entropy_coefficient": 0.0})
    state = begin(agent)
    made = rollout()
    ends = jnp.zeros((T, E), bool).at[5, 0].set(True)
    target = {}
    for name in ("terminated", "truncated"):
        cut = made._replace(terminated=jnp.zeros_like(ends), truncated=jnp.zeros_like(ends))._replace(
            **{name: ends}
        )
        v = agent.value(state.part_states, state.networks, cut.observation)
        after = agent.value(state.part_states, state.networks, cut.next_observation)
        f = lambda x: x.astype(jnp.float32)  # noqa: E731
        steps = Trajectory(cut.reward, v, after, f(cut.terminated), f(ends.at[-1].set(True)), None, f(ends))
        target[name] = GAE().estimate(None, agent.base, steps)[1]
        expected = made.reward[5, 0] + (0.0 if name == "terminated" else 0.99 * after[5, 0])
        np.testing.assert_allclose(target[name][5, 0], expected, rtol=1e-5)
        said = compiled(agent)(state, cut, 0.0, jax.random.key(1))[1]["return_target"]
        np.testing.assert_allclose(said, target[name].mean(), rtol=1e-4)


def test_annealing_follows_progress():
    agent = build("a2c")
    state = begin(agent)
    update = compiled(agent)
    moved = [
        update(state, rollout(), progress, jax.random.key(1))[0].networks.torso.layers[0].weight
        - state.networks.torso.layers[0].weight
        for progress in (0.0, 0.5, 1.0)
    ]
    np.testing.assert_allclose(moved[1], 0.5 * moved[0], atol=1e-6)
    np.testing.assert_array_equal(moved[2], 0.0)


def test_scaled_rewards():
    """Rewards a thousand times as large make the same update."""
    agent = build("ppo+scale_rewards", scale_rewards={"clip": None})
    state, made = begin(agent, envs=E), rollout()
    update = lambda made: compiled(agent)(state, made, 0.0, jax.random.key(1))[0].networks  # noqa: E731
    a, b = update(made), update(made._replace(reward=1000.0 * made.reward))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-4)


@pytest.mark.slow
def test_the_sum_that_scales_rewards_goes_on_over_rollouts():
    """Unless its episode is over, or, with whole episodes, all begin anew."""
    agent = build("a2c+scale_rewards")
    state, made = begin(agent, envs=E), rollout()
    never = jnp.zeros((T, E), bool)
    made = made._replace(reward=jnp.ones((T, E)), terminated=never, truncated=never.at[-1, 0].set(True))
    total = np.zeros(E)
    for _ in range(2):
        state, _ = compiled(agent)(state, made, 0.0, jax.random.key(1))
        for _ in range(T):
            total = 0.99 * total + 1.0
        total[0] = 0.0
        np.testing.assert_allclose(state.part_states["scale_rewards"][1], total, rtol=1e-5)
    whole = build("reinforce+scale_rewards")
    after = compiled(whole)(begin(whole, envs=E), made, 0.0, jax.random.key(1))[0]
    np.testing.assert_array_equal(after.part_states["scale_rewards"][1], np.zeros(E))


@pytest.mark.parametrize(
    ("recipe", "settings", "why"),
    [
        ("trpo+etf", {"etf": {"bound": "l2"}}, "a trust region has no L2 term in its loss; use etf.bound"),
        ("trpo", {"learnable": {"bound": "l2"}}, "use learnable.bound = ball or sphere"),
        (
            "reinforce+scale_rewards",
            {"scale_rewards": {"what": "returns"}},
            "there is no critic; use rewards",
        ),
        ("ppo", {"base": {"batch_size": 1}}, "base.batch_size is 1; take at least 2, 0 for the whole"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(recipe, settings, why):
    with pytest.raises(UsageError, match=why):
        agents.build(recipe, settings)


PICTURE = Spec(40 * 40, 1, choices=2, frame=(40, 40))


@pytest.mark.parametrize(
    ("recipe", "spec", "settings"),
    [
        (
            "ppo",
            DISCRETE,
            {
                "learnable": {"width": 64, "feature_energy": 1.0, "l2": 0.3, "log_std": -2.0}
                | {"continuous": "tanh_normal"},
                "plain": {"images": "flat", "image_hidden": (7,)},
            },
        ),
        ("ppo", PICTURE, {"base": {"actor_hidden": (7,), "critic_hidden": (9,), "activation": "silu"}}),
        (
            "reinforce",
            DISCRETE,
            {"base": {"value_coefficient": 9.0, "critic_hidden": (7,), "shared_torso": True}},
        ),
        ("trpo+etf", DISCRETE, {"base": {"value_coefficient": 9.0}, "etf": {"l2": 0.3}}),
        ("ppo+carsm", DISCRETE, {"base": {"value_coefficient": 9.0}}),
    ],
)
def test_fields_that_do_nothing_are_named(recipe, spec, settings):
    """With other values of them, start and update are the same programs."""

    def program(given):
        base = {"rollout": 8, "batch_size": 0, "passes": 1} | given.get("base", {})
        agent = agents.build(recipe, given | {"base": base}).on(spec)
        assert {f"{part}.{field}" for part in settings for field in settings[part]} <= {*agent.moot_fields()}
        state, obs = jax.eval_shape(agent.init, jax.random.key(0)), jnp.zeros((4, 2, spec.row_size))
        zeros, never = jnp.zeros((4, 2)), jnp.zeros((4, 2), bool)
        made = Transition(obs, jnp.zeros((4, 2, spec.action_size)), zeros, never, never, obs)
        made = (
            jax.make_jaxpr(agent.init)(jax.random.key(0)),
            jax.make_jaxpr(agent.update)(state, made, 0.0, jax.random.key(0)),
        )
        return re.sub("0x[0-9a-f]+", "", str(made))

    assert program(settings) == program({})


@pytest.mark.parametrize("spec", [Spec(4, 1, choices=1), Spec(4, 2, factors=(3, 1))])
def test_a_fixed_layer_needs_a_choice(spec):
    with pytest.raises(UsageError, match="values to choose from, and an action of this environment has one"):
        agents.build("ppo+etf").on(spec)


def test_scaled_returns():
    """The critic learns R / σ and says v = σ v̂ to the estimator; σ moves after its use."""
    agent = build("ppo+scale_rewards", scale_rewards={"what": "returns"})
    state, made = begin(agent, envs=E), rollout()
    seen = Moments(jnp.zeros(1), jnp.array([25.0]), jnp.array(10.0))
    state = state._replace(part_states=state.part_states | {"scale_rewards": (seen, jnp.zeros(E))})
    after, metrics = compiled(agent)(state, made, 0.0, jax.random.key(1))
    v, v_next = (
        agent.value(state.part_states, state.networks, x) for x in (made.observation, made.next_observation)
    )
    f = lambda x: x.astype(jnp.float32)  # noqa: E731
    ended = f((made.terminated | made.truncated).at[-1].set(True))
    returns = gae(made.reward, 5 * v, 5 * v_next, f(made.terminated), ended, 0.99, 0.95) + 5 * v
    np.testing.assert_allclose(metrics["return_target"], returns.mean() / 5, rtol=1e-4)
    moved = after.part_states["scale_rewards"][0]
    expected = add_batch(seen, returns.reshape(-1, 1))
    np.testing.assert_allclose(moved.var, expected.var, rtol=1e-4)


def test_normalised_observations():
    """Statistics stand still in an update and move at its end; what is learned depends on them alone."""
    agent = build("ppo+normalise")
    state, made = begin(agent), rollout()
    after, _ = compiled(agent)(state, made, 0.0, jax.random.key(1))
    m = after.part_states["normalise"].extra
    np.testing.assert_allclose(m.mean, made.observation.reshape(-1, 5).mean(0), atol=1e-5)
    np.testing.assert_allclose(m.var, made.observation.reshape(-1, 5).var(0), atol=1e-4)
    dist = agent.get_distribution(agent.acting(after), made.observation)
    plain = build("ppo")
    z = (made.observation - m.mean) / (jnp.sqrt(m.var) + 1e-8)
    expected = plain.get_distribution(plain.acting(after)._replace(part_states={}), z)
    np.testing.assert_allclose(dist.logits, expected.logits, atol=1e-6)


@pytest.mark.parametrize("recipe", ["ppo", slow("a2c")])
def test_a_shared_torso_learns_from_both(recipe):
    agent = build(recipe, base={"shared_torso": True})
    state = begin(agent)
    assert state.networks.critic[0] is None
    made = rollout()
    views = agent.apply_networks(state.part_states, state.networks, made.observation)
    x = state.networks.torso(made.observation)
    out = state.networks.critic[1]
    np.testing.assert_allclose(views.value, (x @ out.weight.T + out.bias)[..., 0], rtol=1e-5)
    after, _ = compiled(agent)(state, made, 0.0, jax.random.key(1))
    assert not np.array_equal(after.networks.torso.layers[0].weight, state.networks.torso.layers[0].weight)


def test_exploration():
    """A share ε of the actions is uniform, whatever the policy says; the mode and samples of it are not."""
    agent = build("ppo", base={"exploration": 0.3})
    state = begin(agent)
    sure = eqx.tree_at(lambda n: n.head.layer.bias, state.networks, jnp.array([50.0, 0.0, 0.0]))
    acting = agent.acting(state._replace(networks=sure))
    obs = jnp.zeros((20_000, 5))
    action = agent.act(acting, None, obs, None, 0, jax.random.key(2), "explore")[0][:, 0]
    np.testing.assert_allclose([(action == k).mean() for k in range(K)], [0.8, 0.1, 0.1], atol=0.02)
    for mode in ("evaluate", "sample"):
        assert (agent.act(acting, None, obs, None, 0, jax.random.key(2), mode)[0] == 0).all()
    with pytest.raises(UsageError, match="discrete"):
        agent.on(CONTINUOUS)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ppo", "trpo+normalise", "ppo+etf", "a2c+cosine"])
def test_two_seeds_in_one_program_equal_two_runs(recipe):
    agent, made = build(recipe), [rollout(0), rollout(1)]
    keys = [jax.random.key(k) for k in (0, 1)]
    states = [agent.init(key) for key in keys]
    stack = partial(jax.tree.map, lambda *x: jnp.stack(x))
    update = lambda state, made, key: agent.update(state, made, 0.0, key)[0].networks  # noqa: E731
    together = jax.jit(jax.vmap(update))(stack(*states), stack(*made), stack(*keys))
    alone = stack(*(jax.jit(update)(*x) for x in zip(states, made, keys, strict=True)))
    for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("recipe", "draws"), [("ppo", 10), slow("reinforce+etf", 2)])
def test_no_random_key_is_used_twice(recipe, draws, monkeypatch):
    """Over two updates and two choices: each key is drawn from once, and none that is makes further keys."""
    agent, drawn, folded = dataclasses.replace(build(recipe)), Counter(), Counter()
    state = begin(agent)

    def watch(name, seen):
        original = getattr(jax.random, name)

        def watched(key, *args, **kwargs):
            jax.debug.callback(lambda data: seen.update([tuple(data.tolist())]), jax.random.key_data(key))
            return original(key, *args, **kwargs)

        monkeypatch.setattr(jax.random, name, watched)

    for name in ("normal", "uniform", "randint", "split", "bernoulli", "categorical", "permutation"):
        watch(name, drawn)
    watch("fold_in", folded)
    key, made = jax.random.key(1), rollout(masked="reinforce" in recipe)
    update = jax.jit(agent.update)
    for step in range(2):
        state, _ = update(state, made, 0.0, key)
        agent.act(agent.acting(state), None, made.observation[0], None, step, key, "explore")
    jax.effects_barrier()
    assert len(drawn) == 2 * (draws + 1), "fewer or more draws than the method has"
    assert max(drawn.values()) == 1
    assert not drawn.keys() & folded.keys()


# --- recipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "settings", "sentence"),
    [
        ("ppo+sale", {}, "'sale' does not fit 'ppo': it is a part of off-policy agents, such as td3"),
        ("td7+etf", {}, "'etf' does not fit 'td7': it is a part of on-policy agents, such as ppo"),
        ("reinforce+periodic", {}, "on-policy ones take etf"),
        ("ppo+etf+cosine", {}, "both fill one place"),
        ("etf", {}, "'etf' is a part: write ppo"),
        ("ppo+etv", {}, "near to it: etf"),
        ("ppo", {"base": {"batch_size": 5000}}, "base.batch_size is 5000 and base.rollout 2048"),
        ("ppo", {"etf": {}}, "do not belong to 'ppo'; write ppo"),
        ("ppo", {"clipped": {"bound": 0.0}}, "clipped.bound is 0.0; it must be above 0"),
        ("trpo", {"base": {"shared_torso": True}}, "an actor of its own"),
        ("trpo", {"base": {"entropy_coefficient": 0.1}}, "no entropy bonus"),
        ("trpo", {"base": {"batch_size": 64}}, "one step on a whole rollout"),
        ("ppo+etf", {"etf": {"feature_energy": -1}}, "etf.feature_energy is -1"),
    ],
)
def test_refused(recipe, settings, sentence):
    with pytest.raises(UsageError) as error:
        agents.build(recipe, settings)
    assert sentence in str(error.value)


def test_settings_and_labels():
    agent = agents.build("ppo+etf", {"etf": {"energy": 2.0}, "base": {"rollout": 256}})
    assert agents.changed_fields(agent) == {"base.rollout": 256, "etf.energy": 2.0}
    assert set(agents.settings_of(agent)) == {"base", "plain", "etf", "gae", "clipped"}
    assert agents.build("trpo").on(Spec(3, 1, choices=2)).task.choices == 2


# --- how networks begin -----------------------------------------------------------------------------


@pytest.mark.slow
def test_orthogonal_layers_of_many_seeds_are_drawn_one_after_the_other():
    """A batch of decompositions can hang on a CPU, and a layer is the same alone and beside others."""

    def draw(key):
        return orthogonal_linear(key, 4, 8, 2.0).weight

    keys = jax.random.split(jax.random.key(0), 3)
    program = str(jax.make_jaxpr(jax.vmap(draw))(keys))
    assert re.findall(r"f32\[([\d,]+)\] \w+:f32\[[\d,]+\] = qr\[", program) == ["8,4"]
    drawn = jax.vmap(draw)(keys)
    np.testing.assert_array_equal(drawn, [draw(key) for key in keys])
    np.testing.assert_allclose(drawn.mT @ drawn, np.broadcast_to(4 * np.eye(4), (3, 4, 4)), atol=1e-5)
