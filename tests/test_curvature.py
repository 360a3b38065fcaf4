"""Second derivatives of Q: closed forms, float64, kinks of ReLU, and the command that draws them."""

import csv
import dataclasses
import io
import json
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from matplotlib import image
from small import Says

import qscape as qs
from qscape import cli
from qscape.inspect.curvature import WIDTH, CurvatureProgram, measure_curvature
from qscape.inspect.trained_agent import critic_values, load_trained_agent, make_trained_agent
from qscape.report.curvature import draw_curvature
from qscape.report.curvature_page import render_page, to_csv
from qscape.run import train
from qscape.run.plan import Plan
from qscape.types import Spec

H = np.float32([[-2, 0.5], [0.5, -1]])
K = np.float32([[1, 2, 0], [0, -1, 3]])  # [A, S]
NORM = ((15 + 41**0.5) / 2) ** 0.5  # of K: the root of the larger eigenvalue of K Kᵀ = [[5, -2], [-2, 10]]
C = np.float32([0.3, -0.2])
TASK = Spec(3, 2)


def quadratic(obs, a):
    """Q = ½ aᵀ H a + aᵀ K s + aᵀ c: H_aa is H, and H_sa is K."""
    return ((a @ H) * a).sum(-1) / 2 + (a * (obs @ K.T)).sum(-1) + a @ C


def small(recipe="td3", spec=TASK, rough=1.0, critics=None, **base):
    """An untrained agent; `rough`: how many times the usual weights; `critics`: others than its own."""
    sizes = {"actor_hidden": (8,), "critic_hidden": (24, 24), **base}
    agent = qs.agent(recipe, {"base": sizes}).on(spec)
    acting = jax.tree.map(lambda x: rough * x, agent.acting(agent.init(jax.random.key(2))))
    return agent, acting if critics is None else acting._replace(critics=critics)


def points(n):
    rng = np.random.default_rng(0)
    return tuple(rng.uniform(-0.9, 0.9, (n, size)).astype(np.float32) for size in (3, 2))


# --- numbers ----------------------------------------------------------------------------------------------


def test_a_quadratic_critic_has_its_own_matrices():
    agent, acting = small(critics=[Says(quadratic)] * 2)
    found = CurvatureProgram(agent)(acting, *points(70))  # more than are computed at a time
    np.testing.assert_allclose(found.mixed, NORM, rtol=1e-4)
    np.testing.assert_allclose(found.eigenvalue, -0.792893, rtol=2e-3)
    assert set(found.strongest.tolist()) == {2 * 2 + 1}, "∂²Q/∂s₂∂a₁ is 3"


def test_which_critics_are_differentiated_is_told():
    other = Says(lambda obs, a: 10 + 2 * quadratic(obs, a))
    agent, acting = small(critics=[Says(quadratic), other])
    mixed = {q: CurvatureProgram(agent, q)(acting, *points(5)).mixed for q in ("first", "mean", "min")}
    for q, times in (("first", 1.0), ("mean", 1.5), ("min", 1.0)):
        np.testing.assert_allclose(mixed[q], times * NORM, rtol=1e-4)
    with pytest.raises(qs.UsageError, match="q is 'second'"):
        CurvatureProgram(agent, "second")


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_numbers_are_differences_of_q_in_float64(activation):
    agent, acting = small(rough=4.0, critic_activation=activation)
    obs, action = points(6)
    found = CurvatureProgram(agent)(acting, obs, action)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if eqx.is_inexact_array(x) else x, acting)
        q = jax.jit(lambda rows: critic_values(agent, exact, rows[:, :3], rows[:, 3:])[0])
        step, across = 1e-7 * np.eye(5), WIDTH / 2 * np.eye(5)[3:]
        for k, row in enumerate(np.concatenate([obs, action], 1).astype(np.float64)):
            ends = [(a, b) for a in (1, -1) for b in (1, -1)]
            rows = [[[row + a * u + b * v for a, b in ends] for v in across] for u in step]
            values = np.asarray(q(jnp.asarray(np.reshape(rows, (-1, 5))))).reshape(5, 2, 4)
            h = values @ [1, -1, -1, 1] / (2 * 1e-7 * WIDTH)
            np.testing.assert_allclose(found.mixed[k], np.linalg.norm(h[:3], ord=2), rtol=1e-3, atol=1e-5)
            largest = np.linalg.eigvalsh((h[3:] + h[3:].T) / 2)[-1]
            np.testing.assert_allclose(found.eigenvalue[k], largest, rtol=1e-3, atol=1e-3)
    assert found.mixed.max() > 1


def test_of_a_smooth_critic_they_are_its_derivatives():
    agent, acting = small(rough=2.0, critic_activation="silu")
    obs, action = points(6)
    found = CurvatureProgram(agent)(acting, obs, action)
    second = jax.hessian(lambda x: critic_values(agent, acting, x[None, :3], x[None, 3:])[0][0])
    h = jax.vmap(second)(np.concatenate([obs, action], 1))
    np.testing.assert_allclose(found.mixed, np.linalg.norm(h[:, :3, 3:], ord=2, axis=(1, 2)), rtol=0.01)
    largest = np.linalg.eigvalsh(h[:, 3:, 3:])[:, -1]
    np.testing.assert_allclose(found.eigenvalue, largest, rtol=0.01, atol=0.002)


def test_a_kink_of_relu_counts_once_within_the_width():
    """relu(2a + 1.5s) has no second derivative; over its kink ∂Q/∂s grows by 1.5 and ∂Q/∂a by 2."""
    kink = Says(lambda obs, a: jax.nn.relu(2 * a[..., 0] + 1.5 * obs[..., 0]))
    agent, acting = small(spec=Spec(1, 1), critics=[kink, kink])
    second = jax.hessian(lambda x: critic_values(agent, acting, x[None, :1], x[None, 1:])[0][0])
    assert not second(jnp.float32([0.0, 0.005])).any()
    action = np.float32([WIDTH * (k - 5) + 0.005 for k in range(11)])[:, None]  # one width apart
    found = CurvatureProgram(agent)(acting, np.zeros((11, 1), np.float32), action)
    assert (found.mixed > 0).sum() == 1
    np.testing.assert_allclose(found.mixed.sum() * WIDTH, 1.5, rtol=1e-5)
    np.testing.assert_allclose(found.eigenvalue.sum() * WIDTH, 2.0, rtol=1e-5)


# --- what is measured -------------------------------------------------------------------------------------


def rooms(name="quadratic", scale=1.0, recipe="td3"):
    """A trained agent in an environment of seven numbers and two actions, with a known critic."""
    critic = Says(lambda obs, a: scale * (quadratic(obs[..., :3], a) + a[..., 0] * obs[..., 3] ** 2))
    agent, acting = small(recipe, Spec(7, 2), critics=[critic, critic])
    return dataclasses.replace(make_trained_agent(agent, acting, "tiny:Rooms-v0", step=5), name=name)


def test_two_agents_are_measured_at_the_same_states_on_the_same_axes():
    found = measure_curvature(rooms(), 6, points=9, episodes=2, other=rooms("twice", 2.0))
    other = found["other"]
    assert found["place"] == other["place"]
    assert found["width"] == WIDTH
    np.testing.assert_allclose(np.divide(other["mixed"], found["mixed"]), 2, rtol=1e-3)
    np.testing.assert_allclose(other["eigenvalue"], -2 * 0.792893, rtol=5e-3)
    assert found["summary"]["concave"] == 1.0
    assert found["summary"]["mixed"]["max"] == pytest.approx(found["mixed"].max())
    places = [place for _, place in sorted(zip(found["mixed"], found["place"], strict=True))]
    drawn = [surface["place"] for surface in found["surfaces"]]
    assert drawn == ["{}:{}".format(*places[k]) for k in (2, 4, 5)], "the median, the 90% and the largest"
    for here, there in zip(found["surfaces"], other["surfaces"], strict=True):
        assert here["dimensions"] == there["dimensions"]
        for mine, its in zip(here["grid"], there["grid"], strict=True):
            np.testing.assert_array_equal(mine, its)


def test_q_that_is_not_finite_is_told():
    with pytest.raises(qs.RunError, match="not finite"):
        measure_curvature(rooms(scale=np.inf), 6, points=9, episodes=2)


def test_a_surface_varies_the_two_entries_that_it_names():
    trained = rooms()
    found = measure_curvature(trained, 8, ["0:3"], "3,0", points=9, episodes=2)
    (surface,) = found["surfaces"]
    x, y = surface["grid"]
    state = trained.rollouts(10)[0].observation[3]
    slope = 4 * x[:, None] ** 2  # the larger eigenvalue of [[5 + slope, -2], [-2, 10]]
    largest = (15 + slope + np.sqrt((slope - 5) ** 2 + 16)) / 2
    np.testing.assert_allclose(np.square(surface["mixed"]), np.tile(largest, 9), rtol=1e-3)
    assert (surface["dimensions"], surface["mixed"].shape) == ((3, 0), (9, 9))
    np.testing.assert_allclose([y[0], y[-1]], [-1, 1])
    assert surface["state"] == state[3]
    moved = np.tile(state, (9, 1))
    moved[:, 3] = x
    np.testing.assert_allclose(surface["policy"], np.asarray(trained.act(moved))[:, 0], atol=1e-6)
    np.testing.assert_allclose(surface["action"], np.asarray(trained.act(state[None]))[0, 0], atol=1e-6)
    np.testing.assert_allclose(surface["eigenvalue"], -0.792893, rtol=5e-3)
    seen = np.stack([row for r in trained.rollouts(2) for row in r.observation])
    assert seen[:, 3].min() <= x[0] < x[-1] <= seen[:, 3].max()


def test_an_entry_that_never_varies_is_drawn_around_its_value():
    agent, acting = small(spec=Spec(3, 1), critics=[Says(lambda obs, a: a[..., 0] * obs[..., 0])] * 2)
    trained = make_trained_agent(agent, acting, "tiny:Clock-v0")
    found = measure_curvature(trained, 4, points=3, episodes=1)  # observation 0 is the seed of the episode
    (surface,) = found["surfaces"][:1]
    assert surface["dimensions"] == (0, 0)
    np.testing.assert_allclose(surface["grid"][0], surface["state"] + np.array([-1, 0, 1]))
    np.testing.assert_allclose(surface["mixed"], 1, rtol=1e-3)


def discrete(recipe, env):
    return qs.Model(recipe, env, base={"actor_hidden": (4,), "critic_hidden": (4,)}).trained_agent


@pytest.mark.parametrize(
    ("make", "more", "why"),
    [
        (lambda: discrete("ppo", "CartPole-v1"), {}, "ppo has no Q"),
        (lambda: qs.Model("dqn", "CartPole-v1").trained_agent, {}, "dqn chooses among discrete actions"),
        (rooms, {"plane": "pca"}, r"--plane pca: with --kind curvature it is I,J, a dimension of the"),
        (rooms, {"plane": "1"}, "it is I,J"),
        (rooms, {"plane": "7,0"}, "--plane 7,0: the observation has dimensions 0 to 6"),
        (rooms, {"plane": "0,2"}, "--plane 0,2: the action has dimensions 0 to 1"),
        (rooms, {"points": 1}, "--grid is 1; it must be at least 2"),
        (rooms, {"states": 0}, "--states is 0"),
    ],
)
def test_what_is_refused(make, more, why):
    with pytest.raises(qs.UsageError, match=why):
        measure_curvature(make(), **more)


def test_images_are_refused():
    subject = rooms()
    agent = dataclasses.replace(subject.agent, spec=Spec(48, 2, frame=(4, 4, 3)))
    with pytest.raises(qs.UsageError, match="quadratic sees images"):
        measure_curvature(dataclasses.replace(subject, agent=agent))


# --- picture and page -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    """Two agents, of which the second has four times the curvature of the first."""
    other = rooms("other", 4.0, "td3+lap")
    return measure_curvature(rooms(), 6, ["0:3", "1:2"], "3,0", points=9, episodes=2, other=other)


def test_the_picture_has_one_scale_for_both_agents_and_says_what_it_shows(found):
    figure = draw_curvature(found)
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert len(panels) == 2 * 4, "states; both quantities of both agents"
    for k, row in enumerate((panels[:4], panels[4:])):
        meshes = [ax.collections[0] for ax in row]
        assert meshes[0].norm is meshes[1].norm
        assert meshes[2].norm is meshes[3].norm
        for mesh, (agent, kind) in zip(
            meshes,
            [(a, kind) for kind in ("mixed", "eigenvalue") for a in (found, found["other"])],
            strict=True,
        ):
            np.testing.assert_allclose(mesh.get_array(), np.transpose(agent["surfaces"][k][kind]), rtol=1e-6)
        least, most = meshes[2].norm.vmin, meshes[2].norm.vmax
        assert least == -most, "zero has the colour of the middle"
        assert most == pytest.approx(4 * 0.792893, rel=0.02)
    said = figure.get_suptitle().replace("\n", " ")
    assert f"over a width of {WIDTH:g} of each action dimension" in said
    assert "ReLU" in said
    alone = draw_curvature({name: value for name, value in found.items() if name != "other"})
    assert len([ax for ax in alone.axes if ax.get_title()]) == 2 * 2


def test_the_page_shows_the_same(found, tmp_path, visit):
    text = render_page(found)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    (tmp_path / "page.html").write_text(text)
    page = visit(tmp_path / "page.html", width=375)
    for name, agent in (("mixed-1-0", found), ("mixed-1-1", found["other"])):
        z = page.evaluate(f"[...charts['{name}']._fullData[0].z].map((row) => [...row])")
        np.testing.assert_allclose(z, np.transpose(agent["surfaces"][1]["mixed"]), rtol=1e-5)
    ends = page.evaluate("[0, 1].map((a) => charts[`mixed-1-${a}`]._fullData[0].zmax)")
    assert ends[0] == ends[1]
    assert f"over a width of {WIDTH:g} of each action dimension" in page.locator("main").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_the_file_of_numbers(found):
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert len(rows) == 2 * 6
    np.testing.assert_allclose([float(row["mixed"]) for row in rows[6:]], found["other"]["mixed"], rtol=1e-6)


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short runs with two action dimensions; the second has a seed of its own."""
    place = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        plan = Plan(
            "td3", "tiny:Rooms-v0", steps=40, seed=seed, settings=tiny.settings("td3", warmup=20),
            eval_every=0,
        )  # fmt: skip
        for _ in train(plan, place / str(seed) / "0"):
            pass
    return [place / str(seed) / "0" for seed in (0, 1)]


def test_the_command_writes_numbers_picture_and_page(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    argv = ["landscape", *map(str, runs), "--kind", "curvature", "--states", "5", "--episodes", "2"]
    assert cli.main([*argv, "--grid", "7", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert out.count("largest eigenvalue of ∂²Q/∂a²") == 2
    assert "the eigenvalue is negative in" in out
    assert page.exists()
    assert image.imread(runs[0] / "inspect" / "curvature.png").std() > 0.05  # not blank
    found = [json.loads((run / "inspect" / "curvature.json").read_text()) for run in runs]
    assert found[0]["other"] == found[1]
    assert not [*runs[0].glob("inspect/landscape*")]
    obs = [load_trained_agent(runs[0]).rollouts(2)[e].observation[t] for e, t in found[0]["place"]]
    for run, told in zip(runs, found, strict=True):
        subject = load_trained_agent(run)
        program = CurvatureProgram(subject.agent)
        seen = program(subject.acting, np.stack(obs), subject.act(np.stack(obs)))
        np.testing.assert_allclose(told["mixed"], seen.mixed, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(told["eigenvalue"], seen.eigenvalue, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--over-training"], "--over-training follows Q over actions"),
        (["--plane", "0,9"], "the action has dimensions 0 to 1"),
        (["--state-from", "0:9999"], "episode 0 has"),
        (["--kind", "curves"], "curvature"),
    ],
)
def test_what_the_command_refuses(runs, flags, says, capsys):
    assert cli.main(["landscape", str(runs[0]), "--kind", "curvature", *flags]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert len(told.strip().splitlines()) == 1
