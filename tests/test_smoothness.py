"""Smoothness of actions, the geometry of Q along rollouts, noise on observations: calls, probes, command."""

import itertools
import json
import shutil
import sys
import types

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from refused import refused
from rich.console import Console
from rich.table import Table
from tiny import Clock, assert_same_run, evaluations, settings, stop_at

from qscape import agents
from qscape.cli import main
from qscape.cli.smoothness import print_findings
from qscape.envs import Episode
from qscape.errors import UsageError
from qscape.inspect import geometry, smoothness, trained_agent
from qscape.jobs.study import read_study
from qscape.ops import spectrum
from qscape.report import smoothness as report
from qscape.report.runs import load_runs
from qscape.run.evaluation import Rollout
from qscape.run.plan import Plan
from qscape.run.probes import PolicyEvaluation, Probes
from qscape.run.training import resume, train
from qscape.types import Spec

# --- sm and its companions: numbers of a direct sum, and of the paper's description ---------------------


def cosine(n, k, amplitude=1.0, phase=0.0, offset=0.0):
    return (offset + amplitude * np.cos(2 * np.pi * k * np.arange(n) / n + phase))[:, None]


def direct_sm(actions):
    """sm by its definition, the transform written out as a sum."""
    n, t = len(actions), np.arange(len(actions))
    total = np.zeros(actions.shape[1])
    for k in range(n // 2):
        y = np.abs((actions * np.exp(-2j * np.pi * k * t / n)[:, None]).sum(0))
        total += k / n * y
    return (2 / n * total).mean()


@pytest.mark.parametrize(
    ("n", "k", "amplitude", "value"),
    [
        (200, 10, 1, 0.05),
        (200, 10, 2, 0.1),
        (1000, 125, 1, 0.125),
        (201, 10, 1, 10 / 201),
        (64, 16, 0.5, 0.125),
    ],
)
def test_sm_of_cosines(n, k, amplitude, value):
    assert spectrum.sm(cosine(n, k, amplitude)) == pytest.approx(value, abs=1e-10)
    assert spectrum.sm(cosine(n, k, amplitude, phase=0.7, offset=3.0)) == pytest.approx(value, abs=1e-10)
    both = np.hstack([cosine(n, k, amplitude), np.ones((n, 1))])
    assert spectrum.sm(both) == pytest.approx(value / 2, abs=1e-10)


def test_sm_of_other_signals():
    def step(n):
        return np.eye(n)[:, [n // 3]]

    assert spectrum.sm(cosine(200, 10) + cosine(200, 40, 0.5)) == pytest.approx(0.15)
    assert spectrum.sm(np.ones((200, 2))) == pytest.approx(0, abs=1e-15)
    assert spectrum.sm(step(4)) == pytest.approx(0.125)
    assert spectrum.sm(step(200)) == pytest.approx(0.2475)
    assert spectrum.sm((np.arange(200) >= 100)[:, None]) == pytest.approx(0.185609, abs=1e-6)
    assert spectrum.sm(np.linspace(-1, 1, 200)[:, None]) == pytest.approx(0.368984, abs=1e-6)


def test_sm_does_not_see_a_flip_at_every_step_but_the_other_measures_do():
    chatter = (-1.0) ** np.arange(200)[:, None]
    assert spectrum.sm(chatter) == 0.0  # the Nyquist bin of an even length is left out
    assert spectrum.sm((-1.0) ** np.arange(201)[:, None]) == pytest.approx(1.164666, abs=1e-6)
    assert spectrum.action_change(chatter) == 1.0
    assert spectrum.oscillation(2 * chatter) == 4.0
    frequency, amplitude = spectrum.amplitudes(chatter)
    assert frequency[-1] == 0.5
    assert amplitude[-1] == pytest.approx(1.0)


def test_the_mean_is_in_no_spectrum_of_episodes_of_other_lengths():
    wave = [0.8 + cosine(n, n // 5, 0.1) for n in (200, 20)]  # one frequency, on both grids
    found = smoothness._mean_spectrum(wave)
    at = np.array(found["frequency"])
    expected = np.interp(at, [0.15, 0.195, 0.2, 0.205, 0.25], [0, 0, 0.1, 0, 0])
    short = np.interp(at, [0.15, 0.2, 0.25], [0, 0.1, 0])  # bins of a short episode are wide
    expected = (expected + short) / 2
    expected[0] = 0.8
    np.testing.assert_allclose(np.ravel(found["amplitude"]), expected, atol=1e-6)
    records = [{"spectrum": smoothness._mean_spectrum([x])} for x in wave]
    seen = np.mean([report._interpolate_spectrum(at[1:], record) for record in records], axis=0)
    np.testing.assert_allclose(np.ravel(seen), expected[1:], atol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_episodes_too_short_for_a_spectrum_score_zero(n):
    assert spectrum.sm(np.arange(float(n))[:, None] ** 2) == pytest.approx(0, abs=1e-15)
    if n < 2:
        assert spectrum.action_change(np.ones((n, 1))) == spectrum.oscillation(np.ones((n, 1))) == 0.0
        with pytest.raises(ValueError, match=f"of {n} step"):
            spectrum.amplitudes(np.ones((n, 1)))


signals = st.tuples(st.integers(4, 40), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-3, 3, width=32))
)


@given(signals, st.floats(-4, 4), st.floats(-5, 5))
def test_properties_of_sm(x, scale, offset):
    score = spectrum.sm(x)
    assert score == pytest.approx(direct_sm(x), abs=1e-9)
    assert spectrum.sm(scale * x + offset) == pytest.approx(abs(scale) * score, abs=1e-9)
    assert spectrum.sm(x[::-1]) == pytest.approx(score, abs=1e-9)
    assert spectrum.sm(np.roll(x, 3, axis=0)) == pytest.approx(score, abs=1e-9)
    assert score == pytest.approx(np.mean([spectrum.sm(x[:, [i]]) for i in range(x.shape[1])]), abs=1e-12)


@given(signals)
def test_properties_of_the_spectrum_and_of_the_changes(x):
    n = len(x)
    frequency, amplitude = spectrum.amplitudes(x)
    assert amplitude[0] == pytest.approx(np.abs(x.mean(0)))
    power = amplitude**2 / 2
    power[0] *= 2
    if n % 2 == 0:
        power[-1] *= 2
    np.testing.assert_allclose(power.sum(0), (x**2).mean(0), atol=1e-9)  # Parseval
    half = n // 2
    assert (frequency[:half, None] * amplitude[:half]).sum(0).mean() == pytest.approx(
        spectrum.sm(x), abs=1e-12
    )
    changes = [abs(x[t, i] - x[t - 1, i]) for t in range(1, n) for i in range(x.shape[1])]
    assert spectrum.action_change(x, span=6.0) == pytest.approx(np.mean(changes) / 6.0)
    norms = [np.sqrt(((x[t] - x[t - 1]) ** 2).sum()) for t in range(1, n)]
    assert spectrum.oscillation(x) == pytest.approx(np.mean(norms))


# --- the geometry of known critics ----------------------------------------------------------------------

H, K, C = np.array([[-2, 0.5], [0.5, -1]]), np.array([[1.0, 2, 0], [0, -1, 3]]), np.array([0.3, -0.2])


class Quadratic(eqx.Module):
    """Q = ½ aᵀHa + aᵀKs + aᵀc."""

    h: jax.Array
    k: jax.Array
    c: jax.Array

    def __call__(self, obs, action, embeddings, context=None, key=None):
        half = 0.5 * jnp.einsum("...i,ij,...j->...", action, self.h, action)
        return half + jnp.einsum("...i,ij,...j->...", action, self.k, obs) + action @ self.c


class Unit(eqx.Module):
    """Q = f(2a + 1.5s)."""

    f: object = eqx.field(static=True)

    def __call__(self, obs, action, embeddings, context=None, key=None):
        return self.f(2 * action + 1.5 * obs).sum(-1)


def with_critics(critics, s=3, a=2, recipe="td3", low=-1.0, high=1.0):
    """An agent with critics of our own, for an environment of its spaces."""
    env = lambda: Spaces(s, a, low, high)  # noqa: E731
    agent = agents.build(recipe, settings(recipe))
    agent = agent.on(Spec(s, a, None, np.full(a, low, np.float32), np.full(a, high, np.float32)))
    acting = agent.acting(agent.init(jax.random.key(0)))
    return trained_agent.make_trained_agent(agent, acting._replace(critics=critics), env)


class Spaces(gym.Env):
    """Random observations; episodes of six steps, and of two from a seed that is a multiple of 5."""

    def __init__(self, s=3, a=2, low=-1.0, high=1.0):
        self.observation_space = spaces.Box(-0.5, 0.5, (s,), np.float32)
        self.action_space = spaces.Box(low, high, (a,), np.float32)
        self.length = self.now = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.length = 2 if seed % 5 == 0 else 6
        self.now = 0
        return self.observation(), {}

    def observation(self):
        return self.np_random.uniform(-0.5, 0.5, self.observation_space.shape).astype(np.float32)

    def step(self, action):
        self.now += 1
        return self.observation(), float(-(action**2).sum()), False, self.now == self.length, {}


def rollout(obs, action):
    obs, action = np.asarray(obs, np.float32), np.asarray(action, np.float32)
    return Rollout(obs, action, np.zeros(len(obs), np.float32), True, Episode(0, len(obs), 0.0, None))


def episodes_of(seed, s=3, a=2, lengths=(7, 1, 4)):
    rng = np.random.default_rng(seed)
    return [rollout(rng.normal(size=(n, s)), rng.uniform(-1, 1, (n, a))) for n in lengths]


def quadratic():
    return Quadratic(*(jnp.asarray(x, jnp.float32) for x in (H, K, C)))


def test_geometry_of_a_quadratic_critic():
    done = episodes_of(0)
    # The second critic is another one: only the first is looked at.
    other = jax.tree.map(lambda x: 7 * x, quadratic())
    found = geometry.measure_geometry(with_critics([quadratic(), other]), done)
    assert found["mixed_norm_sup"] == pytest.approx(3.271324, abs=1e-5)
    assert found["mixed_norm_mean"] == pytest.approx(3.271324, abs=1e-5)
    assert found["lambda_max_mean"] == pytest.approx(-0.792893, abs=1e-5)
    assert found["lambda_min_mean"] == pytest.approx(-2.207107, abs=1e-5)
    assert found["trace_abs_min"] == found["trace_abs_mean"] == pytest.approx(3.0)
    assert found["negative_definite"] == found["trace_concave"] == 1.0
    # ‖∂π/∂s‖ of the greedy policy, -H⁻¹K, is at most sup ‖H_sa‖ / μ; -μ is the greatest eigenvalue of H_aa.
    bound = found["mixed_norm_sup"] / -found["lambda_max_mean"]
    slope = np.linalg.norm(-np.linalg.solve(H, K), 2)
    assert (bound, slope) == (pytest.approx(4.125808, abs=1e-5), pytest.approx(3.575510, abs=1e-5))
    cosines = []
    for r in done:
        g = r.action @ H.T + r.observation @ K.T + C
        for x, y in itertools.pairwise(g):
            cosines.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    assert len(cosines) == 6 + 0 + 3
    assert 0 < np.mean(np.array(cosines) < 0) < 1
    assert found["gradient_cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert found["gradient_cosine_median"] == pytest.approx(np.median(cosines), abs=1e-5)
    assert found["gradient_cosine_std"] == pytest.approx(np.std(cosines), abs=1e-5)
    assert found["gradient_flips"] == pytest.approx(np.mean(np.array(cosines) < 0))


def test_geometry_of_a_saddle_and_of_a_flat_critic():
    saddle = eqx.tree_at(lambda q: q.h, quadratic(), jnp.diag(jnp.array([2.0, -5.0])))
    found = geometry.measure_geometry(with_critics([saddle]), episodes_of(1))
    assert (found["negative_definite"], found["trace_concave"]) == (0.0, 1.0)
    flat = geometry.measure_geometry(
        with_critics([jax.tree.map(jnp.zeros_like, quadratic())]), episodes_of(1)
    )
    assert flat["negative_definite"] == 0.0
    assert np.isnan(flat["gradient_flips"])  # a gradient of zero has no direction


def test_geometry_of_one_unit_in_both_units():
    at_zero = [rollout([[0.0]], [[0.0]])]
    silu = with_critics([Unit(jax.nn.silu)], 1, 1)
    found = geometry.measure_geometry(silu, at_zero)
    assert (found["mixed_norm_sup"], found["trace_abs_mean"]) == pytest.approx((1.5, 2.0))
    relu = geometry.measure_geometry(with_critics([Unit(jax.nn.relu)], 1, 1), episodes_of(2, 1, 1))
    assert geometry.is_piecewise_linear(relu)
    assert not geometry.is_piecewise_linear(found)
    # A box of ±2: fed environment units, the critic is looked at where 2 · (2a) + 1.5 s is.
    wide = with_critics([Unit(jnp.square)], 1, 1, low=-2.0, high=2.0)
    wide = trained_agent.make_trained_agent(
        wide.agent, wide.acting._replace(critics=[Unit(lambda x: x**3)]), wide.make
    )
    done = [rollout([[0.2]], [[0.5]])]
    for environment_units, x in ((False, 2 * 0.5 + 0.3), (True, 2 * 1.0 + 0.3)):
        found = geometry.measure_geometry(wide, done, environment_units)
        assert found["mixed_norm_sup"] == pytest.approx(6 * x * 2 * 1.5, rel=1e-5)
        assert found["trace_abs_mean"] == pytest.approx(6 * x * 4, rel=1e-5)


def test_derivatives_are_those_of_raw_observations_where_an_agent_normalises_them():
    made = with_critics([quadratic()], recipe="td3+normalise")
    name = made.agent.normaliser.name
    rng = np.random.default_rng(3)
    own = made.acting.part_states[name]
    for _ in range(20):
        own = made.agent.normaliser.update_statistics(
            own, jnp.asarray(rng.normal(2.0, [1, 3, 9], (5, 3)), jnp.float32)
        )
    acting = made.acting._replace(part_states={name: own})
    found = geometry.GeometryProbe(made.agent).measure(acting, episodes_of(0))
    # The slope of the normaliser, by differences of its own values.
    near, far = (made.agent.normaliser.apply(own, jnp.full((1, 3), x)) for x in (0.0, 1.0))
    slope = np.asarray(far - near)[0]
    assert slope.max() > 2 * slope.min()
    assert found["mixed_norm_sup"] == pytest.approx(np.linalg.norm(K * slope, 2), rel=1e-4)


def test_many_points_are_taken_in_chunks():
    made = with_critics([Unit(jax.nn.silu)], 1, 1)
    diagnostics = geometry.GeometryProbe(made.agent)
    n = geometry.CHUNK + 3
    obs, action = np.linspace(-3, 3, n)[:, None], np.linspace(1, -1, n)[:, None] ** 3
    at = diagnostics.points(made.acting, obs.astype(np.float32), action.astype(np.float32))
    x = 2 * action[:, 0] + 1.5 * obs[:, 0]
    s = 1 / (1 + np.exp(-x))
    second = s * (1 - s) * (2 + x * (1 - 2 * s))
    np.testing.assert_allclose(at.trace, 4 * second, atol=1e-5)
    np.testing.assert_allclose(at.mixed_norm, np.abs(3 * second), atol=1e-5)
    np.testing.assert_allclose(at.gradient[:, 0], 2 * (s + x * s * (1 - s)), atol=1e-5)
    assert diagnostics.program._cache_size() == 1


def test_an_agent_without_q_has_smooth_actions_and_no_geometry():
    made = with_critics([])
    assert made.q is None
    with refused("unfit-agent", "td3", "Q(s, a)"):
        geometry.measure_geometry(made, episodes_of(0))
    found = smoothness.measure_smoothness(made, 2)
    assert found["geometry"] is None
    assert found["notes"][-1].startswith("no Q(s, a)")
    assert len(found["per_episode"]["sm"]) == 2
    assert np.isnan(report.summarise([found])["geometry.gradient_flips"][0])


def test_a_flat_q_has_a_row_of_its_geometry(monkeypatch):
    found = smoothness.measure_smoothness(with_critics([jax.tree.map(jnp.zeros_like, quadratic())]), 2)
    assert np.isnan(found["geometry"]["gradient_flips"])
    found["env"], printed = "Spaces-v0", []
    monkeypatch.setattr("qscape.cli.smoothness.print_table", lambda _, title, *table: printed.append(title))
    print_findings(Console(), report.summarise([found]), report.summarise_noise([found]), [])
    assert [title.partition(": ")[2] for title in printed] == [
        "smoothness of actions",
        "Q along the rollouts",
    ]


def test_agents_of_another_kind():
    spec = Spec(3, 2, None, np.float32([-1, -1]), np.float32([1, 1]))
    agent = agents.build("ppo").on(spec)
    made = trained_agent.make_trained_agent(agent, agent.init(jax.random.key(0)), lambda: Spaces())
    found = smoothness.measure_smoothness(made, 2)  # a policy that has a value V(s) and no Q(s, a)
    assert made.q is None
    assert found["geometry"] is None
    done = made.rollouts(2)
    assert found["per_episode"]["sm"] == pytest.approx([direct_sm(np.clip(r.action, -1, 1)) for r in done])
    choices = agents.build("ppo").on(Spec(3, 1, choices=4))
    with refused("unfit-agent", "ppo", "4"):
        smoothness.SmoothnessProbe(choices)
    with refused("unfit-agent", "ppo", "Q(s, a)"):
        geometry.GeometryProbe(agent)
    with refused("unfit-agent", "dqn", "4"):
        geometry.GeometryProbe(agents.build("dqn").on(Spec(3, 1, choices=4)))


# --- rollouts, and noise on what the policy sees --------------------------------------------------------


@pytest.fixture(scope="module")
def clock():
    """An untrained agent on the clock, whose observations do not depend on actions."""
    agent = agents.build("td3", settings("td3")).on(Spec(3, 1, None, np.float32([-1]), np.float32([1])))
    state = agent.init(jax.random.key(1))
    return trained_agent.make_trained_agent(agent, state, lambda: Clock(length=8))


def test_rollouts_are_whole_episodes_each_from_its_own_environment(clock):
    done = clock.rollouts(13, seed=3)
    # Sub-environment i of 10 has seed 3 + i and an episode of 8 + 5 · ((3 + i) mod 3) steps.
    for k, r in enumerate(done):
        born, length = 3 + k % 10, 8 + 5 * (k % 10 % 3)
        expected = [[born, 1 + k // 10, t] for t in range(length)]
        np.testing.assert_array_equal(r.observation, expected)
        assert r.action.shape == (length, 1)
        assert r.reward.sum() == pytest.approx(r.episode.ret, abs=1e-4)
        assert r.reward[2] == pytest.approx(0.3 - (r.action[2, 0] - 0.3) ** 2, abs=1e-5)
        np.testing.assert_allclose(clock.act(r.observation), r.action, atol=1e-6)
    with refused("out-of-range", "0", field="episodes"):
        clock.rollouts(0)


def test_noise_falls_on_what_the_policy_sees_and_on_nothing_else(clock):
    scale = np.array([5.0, 0.1, 2.0])
    noise = trained_agent.ObservationNoise(0.1, scale)
    quiet, noisy, again = (clock.rollouts(3, seed=2, noise=n) for n in (None, noise, noise))
    for a, b, c in zip(quiet, noisy, again, strict=True):
        np.testing.assert_array_equal(a.observation, b.observation)
        assert np.abs(a.action - b.action).max() > 1e-4
        np.testing.assert_array_equal(b.action, c.action)


def test_noise_is_uniform_scaled_and_clipped_to_the_space():
    made = with_critics([], s=3)
    adapter = made.make(envs=4)
    sense = trained_agent.ObservationNoise(0.2, np.array([1.0, 0.1, 10.0])).make_filter(adapter, seed=5)
    obs = np.tile(np.float32([0.0, 0.45, 0.1]), (4, 1))
    seen = np.stack([sense(obs) for _ in range(500)])  # [500, 4, 3]
    assert seen.min() >= -0.5
    assert seen.max() <= 0.5
    first, second = seen[..., 0], seen[..., 1] - 0.45
    for noise, most in ((first, 0.2), (second, 0.02)):
        assert np.abs(noise).max() < most + 1e-6
        assert noise.std() == pytest.approx(most / np.sqrt(3), rel=0.05)
        assert noise.mean() == pytest.approx(0, abs=0.03 * most)
    assert np.unique(first).size > 1900  # fresh for each step and environment
    assert np.mean(seen[..., 2] == 0.5) == pytest.approx(0.4, abs=0.04)  # 0.1 + U(-2, 2) clipped at 0.5
    adapter.close()


def test_the_scale_of_the_noise(clock):
    scale = smoothness.measure_observation_scale(clock, episodes=4, seed=2)
    # Seeds 2 … 5: episodes of 18, 8, 13, 18 steps, all of them the first.
    born = np.repeat([2, 3, 4, 5], [18, 8, 13, 18])
    now = np.concatenate([np.arange(n) for n in (18, 8, 13, 18)])
    np.testing.assert_allclose(scale, [born.std(), 1e-6, now.std()], rtol=1e-6)
    found = smoothness.measure_robustness(clock, scale, (0.5, 1.0), episodes=2, seed=2)
    assert list(found) == ["0", "0.5", "1"]
    calm = [spectrum.sm(r.action) for r in clock.rollouts(2, seed=2)]
    assert found["0"]["sm"] == pytest.approx(calm)
    noisy = clock.rollouts(2, seed=2, noise=trained_agent.ObservationNoise(1.0, scale))
    assert found["1"]["sm"] == pytest.approx([spectrum.sm(r.action) for r in noisy])
    assert np.all(np.array(found["1"]["sm"]) > calm)
    for sigma in (-1, np.inf):
        with pytest.raises(UsageError, match=f"sigma is {sigma}; it must be above 0 and finite"):
            smoothness.measure_robustness(clock, scale, (sigma,), episodes=2)
    with refused("mismatch", " 3 ", " 2"):
        smoothness.measure_robustness(clock, scale[:2], episodes=2)


def test_measures_are_in_the_environments_units():
    made = with_critics([], a=2, low=-1.0, high=3.0)
    action = np.float32([[-1, 1], [1, 1], [-1, 0], [0, 0.5]])
    found = smoothness.measure_episodes(made.agent, [rollout(np.zeros((4, 3)), action)])
    units = 1 + 2 * action
    assert found["sm"] == [pytest.approx(direct_sm(units))]
    assert found["oscillation"] == [pytest.approx(np.mean([4, np.sqrt(16 + 4), np.sqrt(4 + 1)]))]
    assert found["action_change"] == [pytest.approx((4 + 4 + 2 + 2 + 1) / 6 / 4)]


def test_an_episode_too_short_for_a_spectrum():
    made = with_critics([])
    with refused("unfit-env", "2 step", ": 4 "):
        smoothness.measure_smoothness(made, 1)  # seed 1000: two steps
    found = smoothness.measure_smoothness(made, 3)
    assert found["notes"][0] == "1 of 3 episodes are too short for a spectrum; they count as sm 0."
    assert found["per_episode"]["length"] == [2, 6, 6]
    assert found["per_episode"]["sm"][0] == 0.0
    assert len(found["spectrum"]["frequency"]) == 4


# --- probes of a run ------------------------------------------------------------------------------------

PROBES = ("smoothness", "geometry")
COLUMNS = ["sm", "action_change", "oscillation", "mixed_norm_sup", "negative_definite", "gradient_flips"]


def plan(seed=0, probe=PROBES, **fields):
    asked = {"steps": 90, "eval_every": 40, "eval_episodes": 3, "log_every": 40, "save_every": 45} | fields
    smooth = settings("td3", warmup=20, critic_activation="elu")
    return Plan(recipe="td3", env="Pendulum-v1", seed=seed, settings=smooth, probe=probe, **asked)


def go(runs, **kwargs):
    return list(runs)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Two finished seeds with probes; copy before you write to them."""
    place = tmp_path_factory.mktemp("smoothness") / "group"
    for seed in (0, 1):
        go(train(plan(seed), place / str(seed)))
    return place


@pytest.mark.slow
def test_probes_measure_the_episodes_of_the_evaluation(group):
    rows = [r for r in evaluations(group / "0") if r["step"] == "90"]
    assert list(rows[0])[-6:] == COLUMNS
    seen = trained_agent.load_trained_agent(group / "0")
    done = seen.rollouts(3)
    assert [float(r["return"]) for r in rows] == pytest.approx([x.reward.sum() for x in done], rel=1e-5)
    assert [float(r["sm"]) for r in rows] == pytest.approx([direct_sm(2 * x.action) for x in done], rel=1e-5)
    changes = [np.abs(np.diff(x.action, axis=0)).mean() / 2 for x in done]
    assert [float(r["action_change"]) for r in rows] == pytest.approx(changes)
    assert min(changes) > 0
    found = geometry.measure_geometry(seen, done)
    for name in COLUMNS[3:]:
        assert [float(r[name]) for r in rows] == pytest.approx([found[name]] * 3, rel=1e-5)
    assert found["mixed_norm_sup"] > 0


def test_a_probe_may_return_an_array_of_the_number_of_episodes(monkeypatch):
    class Lengths:
        columns = ("length", "one")
        found = np.array([4.0, 6.0])

        def __init__(self, agent):
            pass

        def __call__(self, evaluation):
            return {"length": self.found, "one": 1}

    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(Lengths=Lengths))
    probes, two = Probes(["mine:Lengths"], None), PolicyEvaluation(None, [None, None])
    assert probes(two) == {"length": [4.0, 6.0], "one": [1.0, 1.0]}
    Lengths.found = np.zeros(3)
    with refused("run", "length", "(3,)", "2"):
        probes(two)


def test_the_table_of_runs_has_what_probes_measured(group, tmp_path):
    go(train(plan(probe=(), steps=30), tmp_path / "plain"))
    frame = load_runs([group, tmp_path / "plain"])
    last = frame[(frame["run"] == str(group / "0")) & (frame["step"] == 90)].iloc[0]
    rows = [r for r in evaluations(group / "0") if r["step"] == "90"]
    assert last["sm"] == pytest.approx(np.mean([float(r["sm"]) for r in rows]))
    assert frame[frame["run"] == str(tmp_path / "plain")]["sm"].isna().all()
    assert "seconds" not in frame


def test_probes_change_nothing_else_and_come_back_after_resume(group, tmp_path):
    go(train(plan(probe=()), tmp_path / "plain"))
    plain = evaluations(tmp_path / "plain")
    assert plain == [{k: v for k, v in row.items() if k not in COLUMNS} for row in evaluations(group / "0")]
    go(train(plan(), tmp_path / "broken", on_trainer=stop_at(60)))
    assert len(evaluations(tmp_path / "broken")) < len(plain)
    go(resume(tmp_path / "broken"))
    assert_same_run(group / "0", tmp_path / "broken")


def test_a_probe_of_ones_own(tmp_path, monkeypatch):
    class Length:
        columns = ("longest",)

        def __init__(self, agent):
            self.size = agent.task.action_size

        def __call__(self, look):
            return {"longest": max(len(r.action) for r in look.rollouts) * self.size}

    module = types.ModuleType("own_probe")
    module.Length = Length
    monkeypatch.setitem(sys.modules, "own_probe", module)
    events = go(train(plan(probe=("own_probe:Length",), steps=30), tmp_path / "own"))
    assert [e.probes for e in events if hasattr(e, "probes")] == [{"longest": [200.0] * 3}] * 2
    assert [row["longest"] for row in evaluations(tmp_path / "own")] == ["200.0"] * 6


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"probe": ("smothness",)}, "--probe smothness is unknown; choose smoothness, geometry"),
        ({"probe": ("geometry", "geometry")}, "--probe geometry geometry: name each once"),
        ({"eval_every": 0}, "--probe smoothness geometry measures evaluations, but --eval-every is 0"),
        ({"probe": ("nowhere:Probe",)}, r"--probe nowhere:Probe cannot be loaded \(.*\); .* PYTHONPATH says"),
        ({"probe": ("math:Probe",)}, r"--probe math:Probe cannot be loaded \([^)]*\)\.$"),
    ],
)
def test_probes_that_cannot_be(tmp_path, fields, why):
    with pytest.raises(UsageError, match=why):
        go(train(plan(**fields), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_study_names_probes(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text(
        '[budgets.quick]\nsteps = 9000\nseeds = 1\nprobe = ["smoothness"]\n'
        '[[agents]]\nrecipe = "td3"\n[[environments]]\nid = "Pendulum-v1"\n'
    )
    assert read_study(file, "quick").rows[0].plan.probe == ("smoothness",)
    file.write_text(file.read_text().replace("smoothness", "smooth"))
    with refused("unknown-name", "s.toml", "line 4", "smooth", "smoothness", field="probe"):
        read_study(file, "quick")


# --- the command ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def said(group, tmp_path_factory):
    """What the command prints and writes of two seeds."""
    out = tmp_path_factory.mktemp("said")
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("rich.console.Console.print", lambda self, *a, **k: printed.append(a))
        files = ["--json", out / "all.json", "--png", out / "traces.png"]
        noise = ["--robustness", "--sigmas", 0.1, "--noise-episodes", 2]
        argv = ["smoothness", group, "--episodes", 3, *noise, *files]
        assert main([str(a) for a in argv]) == 0
    return out, json.loads((out / "all.json").read_text()), printed


def test_the_command_over_seeds(group, said):
    _, found, printed = said
    assert [r["name"] for r in found["runs"]] == [str(group / "0"), str(group / "1")]
    for k, record in enumerate(found["runs"]):
        assert json.loads((group / str(k) / "inspect/smoothness.json").read_text()) == record
        done = trained_agent.load_trained_agent(group / str(k)).rollouts(3)
        assert record["per_episode"]["sm"] == pytest.approx([direct_sm(2 * r.action) for r in done])
        np.testing.assert_allclose(record["trace"], 2 * done[0].action, atol=1e-6)
        assert record["dataset"] == ""
        assert record["robustness"]["scale_from"] == str(group / "0")  # the first run's, for all
        assert record["robustness"]["scale"] == found["runs"][0]["robustness"]["scale"]
    (row,) = found["summary"]
    sm = np.array([r["per_episode"]["sm"] for r in found["runs"]])
    assert (row["seeds"], row["episodes"]) == (2, 6)
    assert row["sm"] == pytest.approx(sm.mean())  # of two runs nothing is cut
    assert (row["sm_low"], row["sm_high"]) == (None, None)  # of fewer than five
    assert (row["sm_min"], row["sm_max"]) == pytest.approx((sm.mean(1).min(), sm.mean(1).max()))
    assert (row["sm_mean"], row["sm_std"]) == pytest.approx((sm.mean(), sm.std()))
    sup = [r["geometry"]["mixed_norm_sup"] for r in found["runs"]]
    assert row["geometry.mixed_norm_sup"] == pytest.approx(np.mean(sup))
    other = [r["geometry_environment_units"]["mixed_norm_sup"] for r in found["runs"]]
    assert row["geometry_environment_units.mixed_norm_sup"] == pytest.approx(np.mean(other))
    assert other != sup
    assert [r["sigma"] for r in found["under_noise"]] == [0.0, 0.1]
    assert any("2 seeds: no ranking claim" in note for note in found["notes"])
    low, high = sorted(sm.mean(1))
    table = next(a[0] for a in printed if a and isinstance(a[0], Table))
    cells = [cell for column in table.columns for cell in column.cells]
    assert any(str(cell).endswith(f" ({low:.3g} to {high:.3g})") for cell in cells)


def test_the_picture_and_the_table(said):
    out, found, printed = said
    assert (out / "traces.png").read_bytes().startswith(b"\x89PNG")
    titles = [a[0].title for a in printed if a and isinstance(a[0], Table)]
    assert titles == [
        "Pendulum-v1: smoothness of actions",
        "Pendulum-v1: Q along the rollouts",
        "Pendulum-v1: Q along the rollouts, fed actions in the environment's units as the paper's authors do",
        "Pendulum-v1: noise on the observations",
    ]
    figure = report.draw_smoothness(found["runs"])
    left, right = figure.axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), np.array(found["runs"][0]["trace"])[:, 0])
    assert left.get_ylim() == pytest.approx((-2.16, 2.16))
    both = [np.array(r["spectrum"]["amplitude"])[1:, 0] for r in found["runs"]]
    np.testing.assert_allclose(right.lines[0].get_ydata(), np.mean(both, axis=0), atol=1e-7)


def test_one_run_has_its_interval_over_episodes(said):
    _, found, _ = said
    one = found["runs"][0]
    few = report.summarise([one]).iloc[0]
    assert (few["episodes"], few["sm_min"]) == (3, min(one["per_episode"]["sm"]))
    assert np.isnan(few["sm_low"])
    more = {name: [*values, *np.add(values, 0.1)] for name, values in one["per_episode"].items()}
    row = report.summarise([{**one, "per_episode": more}]).iloc[0]
    known = scipy.stats.ttest_1samp(more["sm"], 0).confidence_interval(0.95)
    assert (row["sm_low"], row["sm_high"]) == pytest.approx((known.low, known.high))
    assert report.list_notes([one])[-1].endswith("one seed, so intervals are over its episodes.")
    assert report.summarise_noise([{**one, "robustness": None}]).empty


def test_a_folder_that_cannot_be_written_loses_no_number(group, tmp_path, capsys):
    shutil.copytree(group / "0", tmp_path / "0", ignore=shutil.ignore_patterns("inspect"))
    (tmp_path / "0/inspect").write_text("a file where the folder would be")
    assert main(["smoothness", str(tmp_path), "--episodes", "1"]) == 0
    out, err = capsys.readouterr()
    assert "Pendulum-v1: smoothness of actions" in out
    assert (
        f"the findings are not kept in the run's folder: {tmp_path / '0/inspect/smoothness.json'} cannot"
        in out
    )
    assert "written:" not in out
    assert not err


@pytest.mark.parametrize(
    ("argv", "code", "why"),
    [
        (["nowhere"], 2, "nowhere is no run and holds none"),
        ([], 2, "needs RUN first"),
        (["GROUP", "--episodes", "0"], 2, "--episodes is 0; it must be at least 1"),
        (["GROUP", "--noise-episodes", "0"], 2, "--noise-episodes is 0; it must be at least 1"),
        (["GROUP", "--robustness", "--sigmas", "0"], 2, "the noise's sigma is 0.0; it must be above 0"),
        (["GROUP", "--robustness", "--sigmas"], 2, "--sigmas names no amplitude"),
        (["GROUP", "--sigmas", "0.3"], 2, "--sigmas needs --robustness"),
        (["GROUP", "--robust"], 2, "did you mean --robustness"),
        (["EMPTY"], 1, "has lost its saves"),
    ],
)
def test_what_the_command_refuses(group, tmp_path, capsys, argv, code, why):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/run.json").write_text((group / "0/run.json").read_text())
    places = {"GROUP": str(group), "EMPTY": str(tmp_path / "empty")}
    assert main(["smoothness", *(places.get(a, a) for a in argv)]) == code
    err = capsys.readouterr().err
    assert why in err
    assert err.count("\n") == 1


def test_a_seed_counts_once(said):
    _, found, _ = said
    copied = [*found["runs"], {**found["runs"][1], "name": "copy"}]
    with refused("conflict", "/1", "copy"):
        report.summarise(copied)
    assert len(report.summarise([*copied[:2], {**copied[2], "dataset": "data/mine.hdf5"}])) == 2
    in_memory = [{**record, "seed": None} for record in copied]
    assert report.summarise(in_memory)["seeds"].tolist() == [3]


@pytest.mark.slow
def test_a_run_whose_actions_are_choices_is_left_out(group, tmp_path, capsys):
    small = {"base": {"actor_hidden": (8,), "critic_hidden": (8,), "rollout": 16, "batch_size": 8}}
    plan = Plan("ppo", "CartPole-v1", 40, settings=small, eval_every=0, save_every=1_000)
    go(train(plan, tmp_path / "ppo"))
    assert main(["smoothness", str(tmp_path / "ppo"), "--episodes", "1"]) == 2
    assert "the actions of ppo are choices among 2" in capsys.readouterr().err
    argv = ["smoothness", str(group / "0"), str(tmp_path / "ppo"), "--episodes", "1"]
    assert main(argv) == 0
    assert "left out: the actions of ppo are choices among 2" in capsys.readouterr().out
