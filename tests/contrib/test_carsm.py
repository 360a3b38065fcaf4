"""CARSM: the swap estimator against exact gradients and against numbers made by hand, and the agent."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts import FACTORED, begin, build, rollout

import qscape as qs
from qscape import agents
from qscape.contrib._swap import draw_noise, pairs_of, swap_gradient, swapped_actions
from qscape.errors import UsageError
from qscape.nets.distributions import FactoredCategorical
from qscape.onpolicy.sockets import RolloutSamples, Transitions
from qscape.types import Spec

PHI, F = np.array([0.3, -0.5, 1.0, 0.0]), np.array([1.0, 3.0, -2.0, 0.5])
SMALL = {"actor_hidden": (16,), "critic_hidden": (16,)}


def everything(*sizes):
    return np.arange(max(sizes)) < np.array(sizes)[:, None]


def estimate(key, logits, value_of, valid):
    """Actions, gradients and the noise of N draws; `value_of` maps actions [..., K] to values."""
    action = jax.random.categorical(jax.random.fold_in(key, 0), jnp.where(valid, logits, -1e9))
    noise = draw_noise(jax.random.fold_in(key, 1), logits, action, valid)
    swapped = swapped_actions(noise, logits, valid)
    return action, swap_gradient(noise, action, swapped, value_of(action), value_of(swapped), valid), noise


def test_a_case_by_hand():
    noise, valid = jnp.array([[0.1, 0.2, 0.3, 0.4]]), everything(4)
    action = jnp.array([0])
    swapped = swapped_actions(noise, jnp.asarray(PHI[None], jnp.float32), valid)
    np.testing.assert_array_equal(pairs_of(4), [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])
    np.testing.assert_array_equal(swapped[:, 0], [2, 2, 3, 2, 0, 0])
    value = jnp.asarray(F, jnp.float32)
    g = swap_gradient(noise, action, swapped, value[0], value[swapped[:, 0]], valid)
    np.testing.assert_allclose(g[0], [0.3, -0.075, -0.375, 0.15], atol=1e-6)
    # The return replaces the critic where the action stays as it is: (1, 3), (2, 3) and the diagonal.
    other = swap_gradient(noise, action, swapped, jnp.float32(7.0), value[swapped[:, 0]], valid)
    by_pair = {**{(c, c): 7.0 for c in range(4)}, (1, 3): 7.0, (2, 3): 7.0}
    by_pair |= {(0, 1): -2.0, (0, 2): -2.0, (0, 3): 0.5, (1, 2): -2.0}
    table = np.array([[by_pair[min(c, j), max(c, j)] for j in range(4)] for c in range(4)])
    weight = 1 / 4 - np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(other[0], (table - table.mean(0)) @ weight, atol=1e-6)


def test_the_noise_is_dirichlet_and_gives_the_action():
    n, logits = 40_000, jnp.asarray(PHI[None], jnp.float32)
    valid = everything(4)
    action = jax.random.categorical(jax.random.key(0), jnp.broadcast_to(logits, (n, 1, 4)))
    noise = draw_noise(jax.random.key(1), jnp.broadcast_to(logits, (n, 1, 4)), action, valid)
    again = jnp.where(valid, jnp.log(noise) - logits, jnp.inf).argmin(-1)
    assert (again == action).mean() > 0.9999
    drawn = np.asarray(noise)[:, 0]
    np.testing.assert_allclose(drawn.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(drawn.mean(0), 0.25, atol=4 * 0.194 / n**0.5)  # Dirichlet(1): var 3 / 80
    np.testing.assert_allclose(np.cov(drawn.T), (np.eye(4) - 0.25) / 20, atol=1.5e-3)


def exact_gradient(logits, sizes, value_of):
    """∂ Σ_a π(a) f(a) / ∂ φ by enumeration, in float64: π_k(c) (E[f | a_k = c] - E[f])."""
    actions = np.array([*itertools.product(*map(range, sizes))])
    marginals = [np.exp(row[:n]) / np.exp(row[:n]).sum() for row, n in zip(logits, sizes, strict=True)]
    p = np.prod([m[actions[:, k]] for k, m in enumerate(marginals)], 0)
    f = value_of(actions)
    gradient = np.zeros_like(logits)
    for k, n in enumerate(sizes):
        for c in range(n):
            at = actions[:, k] == c
            gradient[k, c] = (p[at] * f[at]).sum() - marginals[k][c] * (p * f).sum()
    return gradient


@pytest.mark.parametrize("sizes", [(4,), (3, 3), (4, 2, 3)])
def test_the_estimator_is_unbiased_and_less_variable(sizes):
    """Against the exact gradient, and the variance against that of REINFORCE without a baseline."""
    rng = np.random.default_rng(1)
    logits, table = rng.normal(size=(len(sizes), max(sizes))), rng.normal(size=sizes) * 2
    if sizes == (4,):
        logits, table = PHI[None], F
    valid, n = everything(*sizes), 200_000
    values = jnp.asarray(table, jnp.float32)
    draw = jax.jit(
        lambda key: estimate(
            key,
            jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (n, *logits.shape)),
            lambda a: values[tuple(jnp.moveaxis(a, -1, 0))],
            valid,
        )[:2]
    )
    action, g = jax.tree.map(lambda x: np.asarray(x, np.float64), draw(jax.random.key(2)))
    exact = exact_gradient(logits, sizes, lambda a: table[tuple(a.T)])
    if sizes == (4,):
        np.testing.assert_allclose(exact[0], [0.311949, 0.353936, -0.808872, 0.142987], atol=1e-6)
    error = g.std(0) / n**0.5
    assert (np.abs(g.mean(0) - exact) < 4.5 * error + 1e-6).all()
    assert (g[:, ~valid] == 0).all()
    np.testing.assert_allclose(g.sum(-1), 0, atol=1e-4)
    soft = np.where(valid, np.exp(logits), 0)
    score = (action[..., None] == np.arange(max(sizes))) - soft / soft.sum(-1, keepdims=True)
    f = table[tuple(action.astype(int).T)]
    reinforce = np.where(valid, score, 0) * f[:, None, None]
    assert g.var(0).sum() < 0.85 * reinforce.var(0).sum()
    if sizes == (4,):
        np.testing.assert_allclose((g.var(0).sum(), reinforce.var(0).sum()), (0.743, 1.133), atol=0.02)
        np.testing.assert_allclose((g == 0).all((-1, -2)).mean(), 0.05, atol=0.01)


# --- the agent -------------------------------------------------------------------------------------------


def make_agent(**fields):
    fields = {"critic_steps": 3, "memory": 200, "replayed": 16, "value_samples": 4} | fields
    return build("ppo+carsm", FACTORED, carsm=fields, base={"learning_rate": 0.01, "anneal": False})


def parts_of_an_update(agent, seed=0):
    """Context, state and samples with which `improve` is called, for a random rollout."""
    state, batch = begin(agent), rollout(seed, FACTORED)
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    obs, action = flat(batch.observation), flat(batch.action)
    n = len(obs)
    target = jnp.asarray(np.random.default_rng(5).normal(size=n), jnp.float32)
    samples = RolloutSamples(obs, action, jnp.zeros(n), jnp.zeros(n), target, jnp.zeros(n), None)
    after = Transitions(obs, flat(batch.reward), jnp.zeros(n), flat(batch.next_observation))
    return agent.make_context(state, 0.25, jax.random.key(3)), state, samples, after


def test_the_actor_ascends_the_values_of_its_critic():
    """The mean gradient over the noise is that of the exact E_π[Q] + entropy, with the printed factors."""
    agent = make_agent()
    context, state, samples, _ = parts_of_an_update(agent)
    part, networks = agent.policy_update, state.networks
    one = jax.tree.map(lambda x: x[:1], samples._replace(weight=None))
    n = 4_000
    dist = context.distribution((networks.torso, networks.head), one.observation)
    action = jax.vmap(lambda k: dist.sample(k)[0][0])(jax.random.split(jax.random.key(8), n))
    q = part.action_values(context.spec, networks.critic, one.observation[0], action)
    many = jax.tree.map(lambda x: jnp.repeat(x, n, 0), one)._replace(action=action, target=q)
    found, _ = jax.jit(lambda key: part._actor_gradient(context, networks, many, 0.5, key))(jax.random.key(4))
    joint = np.array([*itertools.product(range(3), range(2), range(3))])
    all_q = part.action_values(context.spec, networks.critic, one.observation[0], jnp.asarray(joint))

    def exact(actor):
        dist = context.distribution(actor, one.observation[0])
        p = jnp.exp(jax.vmap(dist.log_prob)(jnp.asarray(joint, jnp.float32)))
        entropy = -(p * jnp.log(p)).sum()
        return -(p * all_q).sum() / 8 - 0.5 * 0.01 * entropy / 3  # 8 values in 3 factors

    wanted = jax.grad(exact)((networks.torso, networks.head))
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=0.1 * scale)


def test_returns_are_those_of_the_trajectory(monkeypatch):
    """With gae.decay = 1, G_t = r_t + γ G_{t+1} within an episode, though V is a mean over drawn actions."""
    agent = build("ppo+carsm", FACTORED, gae={"decay": 1.0}, carsm={"value_samples": 3})
    seen = []

    def improve(self, context, state, samples, transitions):
        seen.append(samples)
        return state, {"entropy": jnp.zeros(())}

    monkeypatch.setattr(type(agent.policy_update), "improve", improve)
    given = rollout(spec=FACTORED)
    ends = np.asarray(given.terminated | given.truncated)
    after = given.next_observation.at[:-1].set(
        jnp.where(ends[:-1, :, None], given.next_observation[:-1], given.observation[1:])
    )
    agent.update(begin(agent), given._replace(next_observation=after), 0.0, jax.random.key(3))
    target = np.asarray(seen[0].target).reshape(ends.shape)
    going_on = ~ends[:-1]
    assert going_on.sum() > 50
    wanted = np.asarray(given.reward)[:-1] + agent.base.discount * target[1:]
    np.testing.assert_allclose(target[:-1][going_on], wanted[going_on], atol=1e-4)


@pytest.mark.slow
def test_the_critic_learns_from_returns_and_one_step_targets():
    """The first step of the critic is Adam's on the union's loss, computed apart from the code."""
    agent = make_agent(critic_steps=1, value_samples=1, replayed=7)
    context, state, samples, after = parts_of_an_update(agent)
    part = agent.policy_update
    new, metrics = jax.jit(partial(part.improve, context))(state, samples, after)
    k_rows, k_values, _ = jax.random.split(context.key, 3)
    n = len(samples.target)
    at = jax.random.randint(k_rows, (7,), 0, n)  # the memory held nothing before, so its rows are these
    networks, q = state.networks, lambda c, o, a: part.action_values(context.spec, c, o, a)
    dist = context.distribution((networks.torso, networks.head), after.next_observation[at])
    drawn, _ = dist.sample(jax.random.split(k_values, 1)[0])
    bootstrap = 0.99 * q(networks.critic, after.next_observation[at], drawn)

    def loss(critic):
        first = samples.target - q(critic, samples.observation, samples.action)
        later = after.reward[at] + bootstrap - q(critic, samples.observation[at], samples.action[at])
        return (jnp.square(first).sum() + jnp.square(later).sum()) / (n + 7)

    value, gradient = jax.value_and_grad(loss)(networks.critic)
    np.testing.assert_allclose(metrics["value_loss"], value, rtol=1e-5)
    moved = jax.tree.map(lambda p, g: p - 0.01 * g / (jnp.abs(g) + 1e-8), networks.critic, gradient)
    for a, b in zip(jax.tree.leaves(new.networks.critic), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)
    own = new.part_states["carsm"]
    halfway = jax.tree.map(lambda a, b: a + 0.005 * (b - a), networks.critic, new.networks.critic)
    for a, b in zip(jax.tree.leaves(own.target), jax.tree.leaves(halfway), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert (int(own.written), float(own.entropy)) == (n, 1 - 0.5 * 0.25)
    np.testing.assert_array_equal(own.memory.action[:n], samples.action)
    assert own.memory.weight.sum() == n


@pytest.mark.parametrize("what", ["rewards", "returns"])
def test_earlier_transitions_are_in_the_units_of_now(what, monkeypatch):
    """They are remembered as the environment gave them, and the critic sees them by today's statistics."""
    settings = {"replayed": 300, "critic_steps": 1, "value_samples": 1}
    agent = build("ppo+carsm+normalise+scale_rewards", FACTORED, carsm=settings, scale_rewards={"what": what})
    part, seen = type(agent.policy_update), []
    update_critic = part._update_critic

    def spy(self, context, critic, target, moments, batch):
        seen.append([np.asarray(x) for x in batch])
        return update_critic(self, context, critic, target, moments, batch)

    monkeypatch.setattr(part, "_update_critic", spy)
    state, given = begin(agent, envs=4), []
    for seed in range(2):
        batch = rollout(seed, FACTORED)
        over = jnp.ones_like(batch.terminated)  # so that a target is the reward alone
        obs, reward = 50 + 4 * batch.observation, 30 * batch.reward
        given.append((obs.reshape(-1, obs.shape[-1]), reward.reshape(-1)))
        batch = batch._replace(observation=obs, reward=reward, terminated=over)
        before, (state, _) = state, agent.update(state, batch, 0.0, jax.random.key(3))
    raw, reward = (np.concatenate(x) for x in zip(*given, strict=True))
    n = len(given[0][1])
    moments = before.part_states["normalise"].extra
    np.testing.assert_allclose(moments.mean, raw[:n].mean(0), rtol=1e-3)
    for drawn in seen[1][0][n:]:  # each is a row of one of both rollouts, by the statistics of the first
        wanted = (raw - np.asarray(moments.mean)) / np.sqrt(np.asarray(moments.var))
        assert np.abs(wanted - drawn).max(-1).min() < 1e-3
    # Every return is a reward here. Rewards are divided by what this rollout counts for, returns are not.
    known = reward if what == "rewards" else reward[:n]
    wanted = reward / known.std()
    assert max(np.abs(wanted - drawn).min() for drawn in seen[1][2][n:]) < 1e-3
    assert seen[1][2][n:].std() == pytest.approx(1, abs=0.2)


def test_the_memory_is_a_ring():
    part = agents.build("ppo+carsm", {"carsm": {"memory": 5}}).policy_update
    spec = Spec(1, 1, choices=3)
    _, own = part.init_critic(jax.random.key(0), spec, agents.build("ppo").base)
    row = lambda x: own.memory._replace(**{f: _like(getattr(own.memory, f), x) for f in own.memory._fields})  # noqa: E731
    for first, count in ((0, 3), (3, 4), (7, 8)):
        memory, written = part._remember(own, row(np.arange(first, first + count)))
        own = own._replace(memory=memory, written=written)
        newest = range(max(0, first + count - 5), first + count)
        assert sorted(np.asarray(memory.reward)[: min(5, first + count)]) == [*newest]
        assert all(memory.reward[i % 5] == i for i in newest)


def _like(ring, numbers):
    return jnp.asarray(np.asarray(numbers, np.float32).reshape(-1, *[1] * (ring.ndim - 1)))


@pytest.mark.parametrize(
    ("recipe", "spec", "fields", "why"),
    [
        ("ppo+carsm", Spec(3, 2), {}, "needs discrete actions, .* action_levels=11"),
        ("ppo+carsm", Spec(84 * 84 * 4, 1, choices=3, frame=(4, 84, 84)), {}, "takes vectors"),
        ("ppo+carsm", Spec(3, 1, choices=900), {}, "404,550 swaps of 900 values"),
        ("ppo+carsm", FACTORED, {"exploration": 0.1}, "base.exploration = 0"),
        ("a2c+carsm", FACTORED, {"passes": 2}, "one step on a whole rollout"),
        ("trpo+carsm", FACTORED, {}, "place of the trust region, .* write ppo.carsm"),
        (
            "reinforce+carsm",
            FACTORED,
            {},
            "bootstrapped with its critic, not by monte_carlo; write ppo.carsm",
        ),
    ],
)
def test_refusals(recipe, spec, fields, why):
    with pytest.raises(UsageError, match=why):
        agents.build(recipe, {"base": fields}).on(spec)


def test_values_that_do_not_exist_are_never_taken():
    """A padded value of a factor has noise 0, and no swap leads to it."""
    valid = everything(2, 4)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(500, 2, 4)), jnp.float32)
    dist = FactoredCategorical(jnp.zeros((500, 2, 1)), jnp.where(valid, logits, -1e9))
    action = dist.sample(jax.random.key(0))[0].astype(int)
    noise = draw_noise(jax.random.key(1), dist.logits, action, valid)
    swapped = swapped_actions(noise, dist.logits, valid)
    assert (noise[:, 0, 2:] == 0).all()
    assert swapped[..., 0].max() == 1
    assert swapped[..., 1].max() == 3


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ppo+carsm", "ppo+carsm+etf"])
def test_carsm_turns_dials(recipe):
    """8 steps of reward 1 are the best; a random policy has 3.0."""
    settings = {
        "base": SMALL | {"rollout": 256, "discount": 0.5},
        "carsm": {"critic_steps": 20, "replayed": 256, "value_samples": 10, "memory": 2_000},
    }
    model = qs.Model(recipe, "dials:make", seed=0, eval_every=0, **settings).learn(20_000)
    assert np.mean(model.evaluate(20)) > 6
