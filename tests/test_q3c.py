"""Q3C: numbers by hand of wire fitting, of its losses and schedules, and what its agent does."""

import importlib.util
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refused import refused
from rows import slow
from small import build, same, start

from qscape import agents
from qscape.agents import PRESETS, preset
from qscape.agents.settings import merge_settings
from qscape.contrib.control_points import WireCritic
from qscape.contrib.presets import Q3C_TASKS
from qscape.errors import UsageError
from qscape.inspect.landscape import SurveyedState
from qscape.inspect.survey import Surveyor
from qscape.nets import InputStage
from qscape.offpolicy.base import delayed_rate
from qscape.offpolicy.plain import ScalarValue
from qscape.offpolicy.sockets import StepEnd
from qscape.offpolicy.state import PartState
from qscape.ops.td import td_target
from qscape.ops.wire import SEPARATIONS, interpolate, wire_weights
from qscape.report.marks import list_gaps, list_marks
from qscape.types import Event, Spec

POINTS, HEIGHTS = jnp.array([[-0.5], [0.0], [0.8]]), jnp.array([1.0, 3.0, 2.0])
PLANAR, ON_PLANE = (
    jnp.array([[0.1, 0.2], [-0.3, 0.4], [0.9, -0.9], [0.0, -0.5]]),
    jnp.array([10.0, 12.0, -5.0, 11.0]),
)
RUN = {"schedule_updates": 250_000}


def at(actions, smoothing=0.1, nearest=3, normalise=True, points=POINTS, heights=HEIGHTS):
    """Q at actions of one dimension, or at the origin of more."""
    actions = jnp.asarray(actions, jnp.float32)
    return interpolate(heights, wire_weights(points, heights, actions, smoothing, normalise), nearest)


def near(found, *wanted):
    np.testing.assert_allclose(np.ravel(found), wanted, rtol=0, atol=2e-6 * max(1, *map(abs, wanted)))


# --- interpolation ----------------------------------------------------------------------------------


def test_check_1_values_and_weights():
    actions = jnp.array([[-1.0], [-0.5], [0.0], [0.4], [0.8], [1.0]])
    near(at(actions), 1.553689, 1.588334, 2.999986, 2.425330, 2.045381, 2.045823)
    near(wire_weights(POINTS, HEIGHTS, actions[3], 0.1, True), 1.098900, 6.249961, 4.761883)


def test_check_2_without_smoothing():
    actions = [[-1.0], [-0.5], [0.0], [0.4], [0.8], [1.0]]
    near(at(actions, 0.0), 1.434885, 1.000017, 2.999981, 2.365168, 2.000002, 2.021009)


def test_check_3_options():
    near(at([0.4], normalise=False), 2.474451)
    near(at([0.4], nearest=2), 2.567567)
    near(at([0.4], nearest=2, normalise=False), 2.619047)
    near(at([0.4], 0.0, nearest=2), 2.5)


def test_check_4_the_nearest_are_those_of_greatest_weight():
    near(wire_weights(POINTS, HEIGHTS, jnp.array([-0.3]), 1.0, True), 0.961538, 11.110988, 0.584795)
    near(at([-0.3], 1.0, nearest=1), 3.0)


def test_check_5_scale():
    near(at([0.4], heights=10 * HEIGHTS), 24.253299)
    near(at([0.4], heights=10 * HEIGHTS, normalise=False), 27.892565)


def test_check_6_two_dimensions():
    plane = partial(at, [0.0, 0.0], points=PLANAR, heights=ON_PLANE)
    near(plane(0.01, 4), 10.099066)
    near(plane(1.0, 4), 10.405816)
    near([plane(c, 4, normalise=False) for c in (0.01, 1.0)], 10.152762, 11.496657)
    near([plane(c, 2) for c in (0.01, 1.0)], 10.339848, 10.802818)
    near([plane(c, 3) for c in (0.01, 1.0)], 10.435539, 10.851178)


def test_check_7_the_maximum_is_a_point_but_for_a_leak():
    exact = HEIGHTS.max()
    for smoothing, leak in ((0.1, 1.4327e-5), (0.0, 1.9125e-5)):  # near 3, float32 has steps of 2.4e-7
        assert exact - at([0.0], smoothing) == pytest.approx(leak, abs=3e-7)
    grid = np.linspace(-1, 1, 20_001, dtype=np.float32)
    for smoothing in (0.1, 0.0):
        q = np.asarray(at(grid[:, None], smoothing))
        assert q.max() <= 3.0
        assert abs(grid[q.argmax()]) < 1e-3
    q = np.asarray(at(grid[:, None], 0.1), np.float64)
    rises = np.sign(np.diff(q))[np.abs(np.diff(q)) > 1e-6]  # the top is flat, and rounding is not a peak
    assert (np.diff(rises) < 0).sum() == 1


def test_check_8_degenerate_points_are_finite():
    level = jnp.full(3, 2.0)
    for points, heights in ((POINTS, level), (0 * POINTS, HEIGHTS), (0 * POINTS, level)):
        for nearest in (1, 3):
            q = partial(at, smoothing=0.1, nearest=nearest)
            of = jax.grad(lambda p, y, a, q=q: q(a, points=p, heights=y), argnums=(0, 1, 2))
            found = of(points, heights, jnp.array([0.4]))
            assert all(np.isfinite(x).all() for x in found)
    near(at([[-0.7], [0.0], [0.3]], heights=level), 2.0, 2.0, 2.0)
    for apart in SEPARATIONS.values():
        assert np.isfinite(jax.grad(lambda p, apart=apart: apart(p).sum())(jnp.zeros((2, 3, 1)))).all()


def test_check_9_gradients():
    of = jax.grad(lambda y, p, a: at(a, points=p, heights=y), argnums=(0, 1, 2))
    by_heights, by_points, by_action = of(HEIGHTS, POINTS, jnp.array([0.4]))
    near(by_heights, 0.110647, 0.535977, 0.353377)
    near(by_points, -0.255819, 1.482834, 0.637092)
    near(by_action, -1.864107)


# --- losses and schedules ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ([[-0.5], [0.0], [0.8]], (1.339742, -0.6, -0.600001)),
        ([[-0.5], [0.0], [0.8], [0.9]], (2.640753, -0.3, -0.300001)),
        (PLANAR, (1.170026, -0.577160, -0.646606)),
    ],
)
def test_check_10_separations(points, wanted):
    near([apart(jnp.asarray(points)) for apart in SEPARATIONS.values()], *wanted)


class Told(WireCritic):
    """A critic whose points and heights, in place of its networks, are given."""

    def propose(self, obs):
        shape = obs.shape[:-1]
        return jnp.tile(self.proposer, (*shape, 1, 1)), jnp.tile(self.body, (*shape, 1))


def told(points, heights):
    points, heights = jnp.asarray(points), jnp.asarray(heights)
    return Told(InputStage(), heights, ScalarValue(), points, 3, 3, True)


def test_check_11_targets(monkeypatch):
    """The first target critic chooses; both value its point, with noise, and the lesser value counts."""
    agent = agents.build(
        "q3c", {"base": RUN, "control_points": {"points": 3, "nearest": 3, "smoothing": 0.1}}
    ).on(Spec(2, 1))
    state = agent.init(jax.random.key(0))
    targets = [told(POINTS, HEIGHTS), told([[-0.9], [0.1], [0.7]], [1.0, 2.5, 4.0])]
    state = state._replace(critics_target=targets)
    number, no = jnp.int32(1), jnp.array(False)
    context = agent.functions(state, Event(number, number, no, no))
    obs = jnp.zeros((1, 2))

    def look(drawn):
        monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.full(shape, drawn / 0.2))
        policy = agent.selector.target_policy(None, None, PartState(), context, obs, jax.random.key(0))
        action = policy(obs).mode()
        qs = jnp.stack(context.q_target(obs, action), -1)
        value = agent.bootstrap.value(PartState(), qs, jax.random.key(0))[:, 0]
        targets = [float(td_target(0.5, over, 0.99, value)[0]) for over in (0.0, 1.0)]
        return [*action.ravel(), *qs.ravel(), *targets]

    near(look(0.0), 0.0, 2.999986, 2.571335, 3.045622, 0.5)
    near(look(0.7), 0.5, 2.256466, 3.715700, 2.733901, 0.5)


@pytest.mark.parametrize(
    ("decay", "wanted"),
    [
        ("quadratic", (0.1, 0.05625, 0.025, 0.001, 0.0)),
        ("linear", (0.1, 0.075, 0.05, 0.01, 0.0)),
        ("constant", (0.1,) * 5),
    ],
)
def test_check_12_smoothing_falls_with_the_run(decay, wanted):
    agent = build("q3c", 8, {"control_points": {"smoothing": 0.1, "decay": decay}}, **RUN)
    part, state = agent.representation, agent.init(jax.random.key(0)).part_states["control_points"]
    near(state.extra.now, 0.1)
    no = jnp.array(False)
    events = [Event(no, jnp.int32(t * 10_000), no, no) for t in (0, 25, 50, 90, 100)]
    near([part.encoder_params(part.post_update(state, None, e), "target") for e in events], *wanted)


def test_check_13_rates():
    wanted = 1e-3, 9.49679e-4, 8.83496e-4, 6.67862e-4, 4.58296e-4, 1e-4
    shares = 0, 25, 50, 90, 99, 100
    rates = [delayed_rate(1e-3, 0.1, 0.0, 250_000, jnp.float32(2_500 * p - 1)) for p in shares]
    np.testing.assert_allclose(rates, wanted, rtol=2e-5)
    # In a run the random phase has passed before the first update, and the last one is at its end.
    base = agents.build("q3c", {"base": RUN}).base
    rate = base._scheduled(1e-3, False)
    np.testing.assert_allclose(rate(jnp.int32(242_499)), 1e-4, rtol=1e-3)  # in float32 p is 1e-7 off
    np.testing.assert_allclose(rate(jnp.int32(0)), 1e-3 * (0.1 + 0.9 * (1 - 30_004 / 1e6) ** 0.2), rtol=1e-6)
    assert not rate(jnp.int32(300_000)) < 1e-4 * (1 - 1e-6)


def test_check_14_updates_of_hopper():
    settings, source = preset("released", "q3c", "Hopper-v4")
    agent = agents.build("q3c", settings)
    base, counters, made, first = agent.base, agent.schedule.start(), 0, None
    assert "--steps 1000000 --envs 4 --eval-every 10000" in source
    for t in range(base.warmup + 4, 1_000_001, 4):
        counters, due, _ = agent.schedule.updates_due(counters, StepEnd(4), base)
        made, first = made + due, first or (t if due else None)
    assert (made, first) == (242_500, 30_004)


@pytest.mark.parametrize(
    ("sizes", "wanted"), [((17, 6, 20), (163_620, 130_201, 587_642)), ((27, 8, 30), (None, None, 677_482))]
)
def test_check_15_parameters(sizes, wanted):
    observation, action, count = sizes
    agent = agents.build("q3c", {"base": RUN, "control_points": {"points": count}})
    state = jax.eval_shape(agent.on(Spec(observation, action)).init, jax.random.key(0))

    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    critic = state.critics[0]
    found = size(critic.proposer), size(critic.body), size(state.critics)
    assert state.actor is None
    assert [x for x, y in zip(found, wanted, strict=True) if y] == [y for y in wanted if y]


# --- the agent --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """A small agent after a few updates."""
    run = start(build("q3c", 16, **RUN, exploration_noise=0.0))
    for _ in range(5):
        run = run.step()
    return run


def test_check_16_the_action_is_the_point_of_greatest_value(trained):
    agent, state, obs = trained.agent, trained.state, trained.memory.obs[:50]
    no = jnp.array(False)
    context = agent.functions(state, Event(state.updates, state.env_steps, no, no))
    points, heights = context.points(obs)[0]
    values = context.q(obs[:, None], points)[0]
    assert np.array_equal(values.argmax(-1), heights.argmax(-1))
    act = partial(agent.act, agent.acting(state), None, obs, jnp.zeros(50, bool), 0, jax.random.key(0))
    best = np.asarray(points)[np.arange(50), values.argmax(-1)]
    for mode in ("evaluate", "explore"):
        assert np.array_equal(act(mode)[0], best)
    assert np.array_equal(agent.proposals(agent.acting(state), obs), points)
    # A point that is neither the highest, nor the lowest, nor among K does not matter.
    action, row = trained.memory.action[:1], 0
    weights = wire_weights(points[row], heights[row], action[0], 0.01, True)
    out = set(range(20)) - {*np.argsort(weights)[-10:].tolist()} - {int(heights[row].argmax())}
    out -= {int(heights[row].argmin())}
    one = jnp.sign(points[row] - action[0])[min(out)]  # further away
    moved = points[row].at[min(out)].add(0.01 * one)
    q = partial(at, action[0], 0.01, 10, heights=heights[row])
    assert q(points=points[row]) == q(points=moved)


def test_check_17_separation_moves_points_only(trained):
    def moved(weight, scale):
        parts = {"separate": {"weight": weight}}
        agent = build("q3c", 16, parts, **RUN, critic_loss_scale=scale, gradient_clip=None)
        run = start(agent)
        before, after = run.state.critics, run.step().state.critics
        return [not same(getattr(before[0], x), getattr(after[0], x)) for x in ("proposer", "body")]

    assert moved(1.0, 1e-30) == [True, False]
    assert moved(0.0, 0.5) == [True, True]


@pytest.fixture(scope="module")
def two_peaks():
    """The example, as a module."""
    path = Path(__file__).parent.parent / "examples" / "two_peaks.py"
    spec = importlib.util.spec_from_file_location("two_peaks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [0, slow(1)])
def test_check_18_points_find_the_higher_peak_and_an_actor_stays_at_the_lower(seed, two_peaks):
    actor, point = (two_peaks.learn(recipe, seed) for recipe in ("td3", "q3c"))
    lower, higher = (peak[0] for peak in two_peaks.PEAKS)
    assert [actor.start, point.start] == pytest.approx([lower, lower], abs=0.15)
    assert [actor.end, point.end] == pytest.approx([lower, higher], abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("begin", [-0.95, -0.2, 0.1, 0.95])
def test_check_18_from_every_start(begin, two_peaks):
    point = two_peaks.learn("q3c", begin=begin)
    assert point.start == pytest.approx(begin, abs=0.15)
    assert point.end == pytest.approx(two_peaks.PEAKS[1][0], abs=0.15)


# --- the landscape and files ------------------------------------------------------------------------


def test_the_landscape_shows_the_points_and_no_gap_beyond_the_leak(trained):
    """From the critics to the marks in a plot: what is found above the chosen action is within the leak."""
    agent, obs = trained.agent, np.asarray(trained.memory.obs[:8])
    acting = agent.acting(trained.state)
    surveyor = Surveyor(agent)
    survey = surveyor(acting, obs)
    no = jnp.array(False)
    points, heights = agent.functions(trained.state, Event(no, no, no, no)).points(obs)[0]
    smoothing = float(acting.part_states["control_points"].extra.now)
    best = heights.argmax(-1, keepdims=True)
    below = heights.max(-1, keepdims=True) - heights
    apart = jnp.square(points - jnp.take_along_axis(points, best[..., None], -2)).sum(-1)
    flattened = smoothing * below / (heights.max(-1) - heights.min(-1) + 1e-6)[:, None]
    leak = 2e-6 * jnp.where(below > 0, below / (apart + flattened + 2e-6), 0.0).sum(-1)
    assert (survey.gap <= leak + 4e-7 * (1 + jnp.abs(heights).max())).all()
    assert (survey.optima >= 1).all()
    np.testing.assert_allclose(survey.proposals, points, atol=1e-6)
    spot = SurveyedState(surveyor, acting, obs[0], survey.rows(0, 1), "q3c", "", None)
    fields = spot.compute_landscape("0,1", None, 21).to_dict()
    (crowd,) = [mark for mark in list_marks(fields) if mark.kind == "proposal"]
    assert crowd.name.startswith("20 proposals")
    np.testing.assert_allclose(crowd.action, points[0], atol=1e-6)
    assert [*list_gaps({"action": 1, "proposals": [1] * 20})] == ["chosen action"]


def test_an_exported_file_needs_no_interpolation(trained):
    """It acts like the library, by the networks of one critic: without distances, k and C."""
    pytest.importorskip("onnxruntime")
    from test_export import Boxed, assert_acts_like_the_library, source

    from qscape.export import convert, policy

    assert_acts_like_the_library(trained.agent)
    graph = convert.to_onnx(policy.make_policy_function(source(trained.agent, Boxed).loaded), 5, {}).graph
    assert "TopK" not in {node.op_type for node in graph.node}
    size = sum(int(np.prod(of.dims)) for of in graph.initializer)
    critic = sum(leaf.size for leaf in jax.tree.leaves(trained.state.critics[0]))
    assert size < 1.2 * critic


# --- what is refused, and what fits -----------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    ["td3+control_points", "td3+best_point", "td3+separate", "td3+savo+control_points", "q3c+savo"]
    + ["td3+control_points+cem", "sac+control_points+best_point", "dqn+control_points", "dqn+best_point"]
    + [f"q3c+{part}" for part in ("c51", "quantile", "hl_gauss", "crossq", "xqc", "droq", "sale", "conv")]
    + [f"q3c+{part}" for part in ("pave", "caps", "savgo", "fast")],
)
def test_combinations_that_are_refused(recipe):
    with pytest.raises(UsageError) as problem:
        agents.build(recipe)
    assert problem.value.code == "conflict"


@pytest.mark.parametrize(
    "part", ["lap", "normalise", "reward_scale", "redq", "mean_target", "resets", "simba", "bronet"]
)
def test_combinations_that_fit(part):
    agents.build(f"q3c+{part}", {"base": {"n_step": 3}})


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"points": 1, "nearest": 1}, "points"),
        ({"nearest": 21}, "nearest"),
        ({"nearest": 0}, "nearest"),
        ({"smoothing": -0.1}, "smoothing"),
    ],
)
def test_numbers_that_are_refused(settings, field):
    with refused("out-of-range", part="control_points", field=field):
        agents.build("q3c", {"control_points": settings})


def test_tasks_that_are_refused():
    agent = agents.build("q3c", {"base": RUN})
    table = np.float32([[0.0], [1.0]])
    discrete = Spec(2, 1, table), Spec(2, 1, choices=3), Spec(2, 2, factors=(2, 3))
    for spec in discrete:
        with refused("unfit-agent", part="control_points"):
            agent.on(spec)
    for spec in (Spec(48, 2, frame=(4, 4, 3)), Spec(4, 1, actor_size=2)):
        with refused("unfit-agent"):
            agent.on(spec)
    with refused("conflict"):
        agents.build("q3c", {"base": {"actor_objective": "min"}})


def test_a_run_of_unknown_length_is_refused():
    with refused("conflict", part="control_points", field="smoothing_steps"):
        build("q3c", 8, schedule="constant").init(jax.random.key(0))
    build("q3c", 8, {"control_points": {"decay": "constant"}}, schedule="constant").init(jax.random.key(0))


# --- presets ----------------------------------------------------------------------------------------


def test_every_task_of_the_release_is_a_preset():
    (paper,) = [paper for paper in PRESETS["released"] if any(base == "q3c" for base, _, _ in paper.rows)]
    assert len(Q3C_TASKS) == 12
    assert len(paper.rows) == 17
    for base, _, env in paper.rows:
        settings, _ = preset("released", base, env)
        agent = agents.build(base, merge_settings(settings, {"base": RUN}))
        assert agent.base.updates_per_step == 0.25
    hopper, ant = (
        agents.build("q3c", preset("released", "q3c", env)[0]) for env in ("restricted/Hopper-v1", "Ant-v5")
    )
    assert (hopper.representation.smoothing, hopper.regularisers[0].weight) == (1.0, 0.1)
    assert (ant.representation.points, ant.representation.nearest, ant.base.gradient_clip) == (30, 15, 5.0)
    assert "1.25" in preset("released", "q3c", "restricted/Hopper-v1")[1]
