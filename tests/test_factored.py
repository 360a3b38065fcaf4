"""Factored discrete actions: products of heads, tables of off-policy agents, and whole runs."""

import itertools
import json
from functools import partial

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dials import SIZES, Dials
from dials import make as make_dials
from gymnasium import spaces
from rollouts import FACTORED, E, S, T, begin, build, compiled, rollout
from rows import slow_except
from test_envs import Echo
from test_native_offpolicy import Line

import qscape as qs
from qscape.cli import main
from qscape.envs import make
from qscape.envs.levels import discretise
from qscape.envs.simulators import make_gymnasium
from qscape.errors import RunError, UsageError
from qscape.nets.distributions import Categorical, FactoredCategorical
from qscape.ops.etf import is_simplex_etf
from qscape.run import saves, scan
from qscape.run.engines.rollout import RolloutPrograms
from qscape.run.evaluation import evaluate

SMALL = {"actor_hidden": (16,), "critic_hidden": (16,)}
ON = SMALL | {"rollout": 128, "batch_size": 64, "passes": 4, "learning_rate": 0.01}
# What a step is worth depends on its action alone.
OFF = {"actor_hidden": (64, 64), "critic_hidden": (64, 64), "batch_size": 128, "warmup": 200}
OFF |= {"discount": 0.0, "exploration_noise": 0.3}
JOINT = np.array([*itertools.product(*map(range, SIZES))])  # all 18 actions


# --- the distribution ------------------------------------------------------------------------------------


def random_product(seed):
    """A product of independent distributions, and the probabilities [18] of all its actions."""
    rng = np.random.default_rng(seed)
    logits = [rng.normal(size=n) * 2 for n in SIZES]
    dist = FactoredCategorical.from_factors(
        [Categorical(jnp.zeros(4), jnp.asarray(x, jnp.float32)) for x in logits]
    )
    factors = [np.exp(x) / np.exp(x).sum() for x in logits]
    return dist, np.array([np.prod([p[i] for p, i in zip(factors, a, strict=True)]) for a in JOINT])


def test_the_product_is_the_joint_distribution():
    """Log-probability, entropy, KL, mode and sampling against an enumeration of all actions, in float64."""
    (dist, p), (other, q) = random_product(0), random_product(1)
    np.testing.assert_allclose(jax.vmap(dist.log_prob)(jnp.asarray(JOINT, jnp.float32)), np.log(p), rtol=1e-5)
    np.testing.assert_allclose(dist.entropy(), -(p * np.log(p)).sum(), rtol=1e-5)
    np.testing.assert_allclose(dist.kl(other), (p * np.log(p / q)).sum(), rtol=1e-5)
    np.testing.assert_array_equal(dist.mode(), JOINT[p.argmax()])
    n = 20_000
    drawn, log_prob = jax.vmap(dist.sample)(jax.random.split(jax.random.key(0), n))
    found = (np.asarray(drawn)[:, None] == JOINT).all(-1)
    assert found.sum() == n, "an action that does not exist"
    np.testing.assert_allclose(found.mean(0), p, atol=4 * np.sqrt(0.25 / n))
    np.testing.assert_allclose(log_prob, np.log(p)[found.argmax(1)], rtol=1e-4, atol=1e-5)


def test_gradients_do_not_see_values_that_do_not_exist():
    dist, p = random_product(2)
    gradient = jax.grad(lambda z: FactoredCategorical(dist.features, z).entropy())(dist.logits)
    assert np.isfinite(gradient).all()
    assert (gradient[1, SIZES[1] :] == 0).all()
    score = jax.grad(lambda z: FactoredCategorical(dist.features, z).log_prob(jnp.zeros(3)))(dist.logits)
    marginal = [p[JOINT[:, 0] == i].sum() for i in range(3)]  # ∂ log π / ∂ z_0 = 1 - π for the action taken
    np.testing.assert_allclose(score[0], np.eye(3)[0] - marginal, atol=1e-5)


# --- heads -----------------------------------------------------------------------------------------------


def test_every_factor_has_a_simplex_of_its_own():
    agent = build("ppo+etf", FACTORED)
    pairs, triples = begin(agent).part_states["etf"]
    assert (pairs.shape, triples.shape) == ((1, 2, 16), (2, 3, 16))
    for layer in [*pairs, *triples]:
        assert is_simplex_etf(np.asarray(layer), 1.0)
    assert not np.allclose(triples[0], triples[1]), "they are drawn independently"
    agent.check_part_states({"etf": (pairs, triples)})
    with pytest.raises(RunError, match="no simplex ETF"):
        agent.check_part_states({"etf": (pairs, triples.at[1].mul(1.1))})
    with pytest.raises(UsageError, match=r"etf needs at least 2 features for 3 actions, and there are 1"):
        build("ppo+etf", FACTORED, etf={"width": 1})


def test_a_factor_sees_its_own_head_only():
    """The probabilities of factor k are those of a head of its own with the parameters of that factor."""
    agent = build("ppo+etf", FACTORED)
    state = begin(agent)
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(7, S)), jnp.float32)
    dist = agent.apply_networks(state.part_states, state.networks, obs).dist
    features = state.networks.torso(obs)
    for factor, (stack, row) in enumerate([(1, 0), (0, 0), (1, 1)]):  # sizes 3, 2, 3
        pick = lambda tree, stack=stack, row=row: jax.tree.map(lambda x: x[row], tree[stack])  # noqa: E731
        layers = pick(state.networks.head), pick(state.part_states["etf"])
        alone, _ = agent.head.distribution(*layers, features)
        size = SIZES[factor]
        np.testing.assert_allclose(dist.logits[:, factor, :size], alone.logits, rtol=1e-5)
        assert (dist.logits[:, factor, size:] < -1e8).all()


@pytest.mark.parametrize("recipe", slow_except(["ppo+etf"], ["ppo+etf", "a2c", "trpo+cosine", "reinforce"]))
def test_an_update_raises_what_was_good(recipe):
    """Right values of each factor are rewarded; after a few updates each factor prefers them."""
    settings = {"base": {"batch_size": 0, "passes": 1, "episodes": 0, "discount": 0.0, "learning_rate": 0.03}}
    updates = 15
    if recipe == "trpo+cosine":  # its steps are bounded, and these actions are not its own
        settings["trust_region"], updates = {"max_kl": 0.2}, 90
    agent = build(recipe, FACTORED, **settings)
    state, right = begin(agent), np.array([2, 0, 1])
    for seed in range(updates):
        batch = rollout(seed, FACTORED)
        reward = (np.asarray(batch.action) == right).sum(-1)
        state, metrics = compiled(agent)(
            state, batch._replace(reward=jnp.asarray(reward, jnp.float32)), 0.0, jax.random.key(0)
        )
    assert all(np.isfinite(x) for x in metrics.values())
    assert 0 < metrics["entropy_share"] <= 1 + 1e-6
    dist = agent.get_distribution(agent.acting(state), rollout(99, FACTORED).observation.reshape(T * E, S))
    assert (np.asarray(dist.mode()) == right).mean(0).min() > 0.9


def test_random_actions_are_uniform_in_every_factor():
    agent = build("ppo", FACTORED, base={"exploration": 1.0})
    acting = agent.acting(begin(agent))
    drawn, _, _ = agent.act(acting, None, jnp.zeros((6_000, S)), None, 0, jax.random.key(0), "explore")
    shares = (np.asarray(drawn)[:, None] == JOINT).all(-1).mean(0)
    np.testing.assert_allclose(shares, 1 / 18, atol=0.015)


# --- the environment's actions ---------------------------------------------------------------------------

FACTORED_SPACES = [
    (spaces.MultiDiscrete([3, 1, 4]), (3, 1, 4), [2, 0, 1], [2, 0, 1]),
    (spaces.MultiDiscrete([3, 4], start=[-1, 5]), (3, 4), [2, 0], [1, 5]),
    (spaces.MultiDiscrete([[2, 3], [4, 5]]), (2, 3, 4, 5), [1, 2, 3, 4], [[1, 2], [3, 4]]),
    (spaces.MultiBinary(3), (2, 2, 2), [1, 0, 1], [1, 0, 1]),
    (spaces.MultiBinary([2, 2]), (2, 2, 2, 2), [1, 0, 0, 1], [[1, 0], [0, 1]]),
]


@pytest.mark.parametrize(("space", "sizes", "index", "action"), FACTORED_SPACES)
def test_indices_become_actions(space, sizes, index, action):
    adapter = make(Echo(space), index_actions=True)
    assert (adapter.spec.factors, adapter.spec.choices, adapter.spec.table) == (sizes, None, None)
    assert adapter.spec.action_size == len(sizes)
    (found,) = adapter.actions(np.array([index], np.float32))
    assert space.contains(found)
    np.testing.assert_array_equal(found, action)


@pytest.mark.parametrize(("space", "sizes", "index", "action"), FACTORED_SPACES)
def test_off_policy_agents_see_a_table_of_all_actions(space, sizes, index, action):
    adapter = make(Echo(space))
    table = adapter.spec.table
    assert table.shape == (np.prod(sizes), len(sizes))
    assert np.abs(table).max() == 1
    found = adapter._convert(len(table))(table)
    assert all(space.contains(a) for a in found)
    assert len(np.unique(found.reshape(len(table), -1), axis=0)) == len(table), "every action has one row"
    row = [2 * i / (n - 1) - 1 if n > 1 else 0.0 for i, n in zip(index, sizes, strict=True)]
    assert (np.abs(table - row).max(1) < 1e-6).any()
    np.testing.assert_array_equal(adapter.actions(np.array([row], np.float32) * 0.999)[0], action)


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("td3", {}),
        ("td3+eas", {"eas": {"particles": 1, "rounds": 0}}),
        ("td3+esa", {"esa": {"steps": 0}}),
        ("td3+implicit", {"implicit": {"noise_size": 0}}),
    ],
)
def test_noise_moves_actions_between_rows_that_lie_far_apart(recipe, more):
    """Noise of 0.1 on a row of {-1, 1}² would never reach another one; on the proposal it does near 0."""
    spec = make(Echo(spaces.MultiBinary(2))).spec
    agent = qs.agent(recipe, {"base": {"actor_hidden": (16,), "critic_hidden": (16,)}} | more).on(spec)
    acting = agent.acting(agent.init(jax.random.key(0)))
    obs = np.random.default_rng(0).normal(size=(2000, spec.observation_size)).astype(np.float32)
    greedy, exploring = (
        agent.act(acting, None, obs, np.zeros(2000, bool), 0, jax.random.key(1), mode)[0]
        for mode in ("evaluate", "explore")
    )
    assert set(np.unique(exploring)) == {-1.0, 1.0}
    assert 0.01 < (greedy != exploring).any(-1).mean() < 0.9


def test_levels_of_a_box():
    """low + a (high - low) / (C - 1), on the host and in JAX."""
    echo = Echo(spaces.Box(np.float32([-1, 10]), np.float32([3, 20]), dtype=np.float32))
    adapter = make(discretise(echo, 5, "Echo"), index_actions=True)
    assert adapter.spec.factors == (5, 5)
    adapter.reset()
    adapter.step(np.array([[1.0, 4.0]]))
    np.testing.assert_allclose(echo.got, [0, 20])
    pendulum = make("Pendulum-v1", env_args={"action_levels": 3})
    np.testing.assert_allclose(pendulum.spec.table, [[-1], [0], [1]])
    assert pendulum.is_host_only is False, "it has a table"
    assert make("Pendulum-v1", env_args={"action_levels": 3}, index_actions=True).is_host_only

    line = make_gymnasium(Line())
    native = make(discretise(line, 3, "Line"), index_actions=True).jax_env
    assert native.action_space == spaces.MultiDiscrete([3])
    state, _ = native.reset(jax.random.key(0))
    for level, units in enumerate((0.5, 1.25, 2.0)):
        found = native.step(state, jnp.array([level]), jax.random.key(1))
        wanted = Line().step(state, jnp.array([units]), jax.random.key(1))
        np.testing.assert_allclose(found[1].reward, wanted[1].reward, rtol=1e-5)
        np.testing.assert_allclose(found[1].observation, wanted[1].observation, rtol=1e-5)


@pytest.mark.parametrize(
    ("env", "levels", "why"),
    [
        ("Pendulum-v1", 1, "a number of 2 or more"),
        ("CartPole-v1", 3, r"divides a bounded Box .* Discrete\(2\)"),
    ],
)
def test_bad_levels(env, levels, why):
    with pytest.raises(UsageError, match=why):
        make(env, env_args={"action_levels": levels})


# --- whole runs ------------------------------------------------------------------------------------------


def mean_return(model):
    return np.mean(model.evaluate(20))


@pytest.mark.parametrize("native", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_ppo_turns_dials(native):
    """8 steps of reward 1 are the best; a random policy has 3.0."""
    env = {"env_args": {"native": native, "start": 4}}
    model = qs.Model("ppo+etf", "dials:make", **env, seed=0, eval_every=0, base=ON).learn(4_000)
    assert mean_return(model) > 6.5


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["td3+savo", "td3+wolpertinger"])
def test_off_policy_agents_turn_dials(recipe):
    """A random policy has 3.0 and the best 8.0."""
    model = qs.Model(recipe, "dials:make", seed=0, eval_every=0, base=OFF).learn(4_000)
    assert mean_return(model) > 6.5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("factored")
    small = ["--base.actor-hidden", "16", "--base.critic-hidden", "16", "--base.rollout", "64"]
    argv = ["train", "ppo+etf", "--env", "dials:make", "--env-args", "native=False", "--steps", "200"]
    assert main([*argv, "--out", str(out), "--eval-every", "0", *small]) == 0
    return out / "0"


def test_a_run_is_saved_evaluated_and_resumed(run, capsys):
    assert main(["evaluate", str(run), "--episodes", "2"]) == 0
    assert main(["collapse", str(run)]) == 2
    assert "3 action layers here, one for each factor" in capsys.readouterr().err
    assert main(["smoothness", str(run)]) == 2
    assert "choices among 3 × 2 × 3" in capsys.readouterr().err
    assert main(["resume", str(run), "--steps", "300"]) == 0
    first, *_, last = (
        saves.read_arrays(run / "saves" / name, "acting") for name in saves.names(run / "saves")
    )
    for name in ("part_states/etf/0", "part_states/etf/1"):
        assert first[name].tobytes() == last[name].tobytes()


def test_sampled_evaluations(run, capsys):
    assert main(["evaluate", str(run), "--episodes", "2", "--sample"]) == 0
    assert "2 episodes, sampled policy" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--sample", "--bias"]) == 2


def test_samples_are_those_of_the_policy():
    """A random policy has a return of 3.0 when it is sampled, on the host as in a program."""
    agent = build("ppo", scan.spec_of(Dials(time_limit=8), index_actions=True))
    acting = agent.acting(begin(agent))
    for native in (True, False):
        adapter = make(partial(make_dials, native=native), 50, index_actions=True)
        done = evaluate(RolloutPrograms(agent), acting, adapter, 200, mode="explore")
        # Mean 8 (2 / 3 + 1 / 2 + 1 / 3) / 4 = 3.0; the standard error is about 0.06.
        assert abs(np.mean([e.ret for e in done]) - 3.0) < 0.3


def test_export(run, tmp_path):
    """The command compares the file with the library on 1,000 observations."""
    ort = pytest.importorskip("onnxruntime")
    file = tmp_path / "policy.onnx"
    assert main(["export", str(run), "--onnx", str(file)]) == 0
    session = ort.InferenceSession(file)
    obs = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    (found,) = session.run(None, {"observation": obs})
    assert found.shape == (50, 3)
    assert spaces.MultiDiscrete([50, *SIZES]).contains(np.array([0, *found[0]]))
    about = json.loads({x.key: x.value for x in _metadata(file)}["policy"])
    assert about["action"]["index_sizes"] == [*SIZES]


def _metadata(file):
    import onnx

    return onnx.load(file).metadata_props


def test_native_and_host_steps_agree():
    """Actions of an agent mean the same inside a program and on the host."""
    env = Dials(SIZES, 4, time_limit=8)
    agent = build("ppo", scan.spec_of(env, index_actions=True))
    inside = scan.to_env_action(agent, env, jnp.asarray(JOINT, jnp.float32))
    adapter = make(lambda: make_dials(start=4), 18, index_actions=True)
    np.testing.assert_array_equal(inside, adapter.actions(JOINT.astype(np.float32)))
    assert isinstance(adapter.env, gym.vector.VectorEnv)
    table = build_off_policy(scan.spec_of(env))
    np.testing.assert_array_equal(scan.to_env_action(table, env, table.task.table), JOINT + 4)


def build_off_policy(spec):
    return qs.agent("td3").on(spec)
