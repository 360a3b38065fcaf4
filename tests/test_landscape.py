"""The landscape: peaks, gaps and searches against functions whose optima are known, and the command."""

import csv
import dataclasses
import json
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array
from rows import slow
from small import Says

import qscape as qs
from qscape import cli
from qscape.envs import Episode
from qscape.envs.restricted import INTERVALS, draw_balls
from qscape.inspect import landscape, survey
from qscape.inspect.landscapes import measure_landscapes
from qscape.inspect.planes import make_plane, share_plane
from qscape.inspect.trained_agent import load_trained_agent, make_trained_agent
from qscape.offpolicy import plain
from qscape.ops import landscape as ops
from qscape.report import landscapes, marks
from qscape.run import train
from qscape.run.evaluation import Rollout
from qscape.run.plan import Plan
from qscape.types import Spec

LINE = np.linspace(-1, 1, 2001)


def two_peaks(a):
    """The spec's toy: peaks of height 1 at -0.5 and of height 2 at 0.6."""
    return np.exp(-((a + 0.5) ** 2) / 0.045) + 2 * np.exp(-((a - 0.6) ** 2) / 0.045)


def counted(values, adapters, share=0.0):
    least = ops.prominence_threshold(np.nanmin(values), np.nanmax(values), share)
    return ops.find_peaks(values, adapters).above(least)


VALLEY = two_peaks(0.0346824)  # the lowest of all


# --- peaks ------------------------------------------------------------------------------------------------


def test_peaks_of_the_toy_and_of_its_truncations():
    adapters = ops.grid_edges((2001,))
    found = counted(two_peaks(LINE), adapters)
    np.testing.assert_allclose(LINE[found.node], [0.6, -0.5], atol=1e-12)
    np.testing.assert_allclose(found.prominence, [2 - VALLEY, 1 - VALLEY], atol=1e-6)
    first = np.maximum(two_peaks(LINE), two_peaks(-0.5))
    assert LINE[counted(first, adapters).node].tolist() == [pytest.approx(0.6)]
    assert len(counted(np.maximum(first, two_peaks(0.6)), adapters).node) == 0


@pytest.mark.parametrize(
    ("heights", "where"),
    [
        ([0, 1, 0, 2, 0], [3, 1]),
        ([3, 1, 0, 1, 2], [0, 4]),  # both ends
        ([0, 2, 2, 2, 0, 1, 1], [[1, 2, 3], [5, 6]]),  # plateaus, one at the end
        ([0, 1, 1, 2, 1, 1, 0], [3]),  # shoulders are none
        ([5, 5, 5, 5], []),  # a plain is none
        ([1, 1, 0, 1, 1], [[0, 1], [3, 4]]),  # two of one height
        ([0, 1, 2, 3], [3]),
        ([0, 2, np.nan, 2, 3], [4, 1]),  # nobody walks through what is not there
    ],
)
def test_peaks_by_hand(heights, where):
    found = ops.find_peaks(np.array(heights, float), ops.grid_edges((len(heights),))).node
    assert len(found) == len(where)
    for node, allowed in zip(found, where, strict=True):
        assert node in np.atleast_1d(allowed)


def strict_maxima(grid):
    """Heights of the plateaus that all their neighbours are below, by flooding, cell by cell."""
    found, seen = [], set()
    cells = set(np.ndindex(grid.shape))
    for cell in cells:
        if cell in seen:
            continue
        plateau, around, todo = {cell}, set(), [cell]
        while todo:
            x, y = todo.pop()
            for near in {(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & cells - plateau:
                if grid[near] == grid[cell]:
                    plateau.add(near)
                    todo.append(near)
                else:
                    around.add(near)
        seen |= plateau
        if around and all(grid[near] < grid[cell] for near in around):
            found.append(grid[cell])
    return sorted(found, reverse=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=30, max_size=30))
def test_peaks_on_any_plane_are_its_strict_maxima(heights):
    grid = np.array(heights, float).reshape(5, 6)
    assert grid.ravel()[ops.find_peaks(grid.ravel(), ops.grid_edges((5, 6))).node].tolist() == strict_maxima(
        grid
    )


def test_a_grid_has_each_pair_of_neighbours_once():
    pairs = {frozenset(pair) for pair in ops.grid_edges((3, 4)).tolist()}
    assert len(pairs) == len(ops.grid_edges((3, 4))) == 3 * 3 + 2 * 4 + 2 * (2 * 3)
    near = {k for pair in pairs if 5 in pair for k in pair} - {5}
    assert near == {0, 1, 2, 4, 6, 8, 9, 10}  # 5 is the cell in row 1, column 1


def test_prominence_is_the_way_down_to_the_pass():
    # Tops of 5, 4 and 3; passes of 1 (5-4), 2 (4-3), 0 (5-3); the lowest ground is at -1.
    pairs = np.array([[0, 1], [1, 2], [0, 2]])
    found = ops.find_prominences(
        np.array([5.0, 4, 3]), np.array([0.0, -1, 0.5]), pairs, np.array([1.0, 2.0, 0.0])
    )
    assert found.tolist() == [6, 3, 1]


def test_ripples_do_not_count():
    wavy = two_peaks(LINE) + 0.003 * np.sin(200 * LINE)
    adapters = ops.grid_edges((2001,))
    assert len(counted(wavy, adapters).node) > 10
    assert len(counted(wavy, adapters, ops.PROMINENT).node) == 2
    noise = np.random.default_rng(0).choice([-1, 0, 1], 2001) * np.float64(np.spacing(np.float32(1000)))
    assert len(counted(1000 - np.square(LINE) + noise, adapters).node) == 1  # float32 rounds it like this


def test_nearest_edges_are_the_nearest():
    points = np.random.default_rng(1).normal(size=(150, 3)).astype(np.float32)
    far = np.linalg.norm(points[:, None] - points, axis=-1)
    near = np.argsort(far, axis=1)[:, 1:4]
    expected = {frozenset((i, j)) for i in range(150) for j in near[i].tolist()}
    found = ops.nearest_edges(points, 3)
    assert {frozenset(pair) for pair in found.tolist()} == expected
    assert len(found) == len(expected)
    few = np.arange(0, 150, 7)  # among some of the points: as if there were no others
    among = ops.nearest_edges(points, 3, np.isin(np.arange(150), few))
    assert {frozenset(pair) for pair in among.tolist()} == {
        frozenset(few[pair].tolist()) for pair in ops.nearest_edges(points[few], 3)
    }


# --- climbing, lines and planes ---------------------------------------------------------------------------


def test_climbing_ends_on_the_peak_of_its_own_slope():
    def q(a):
        a = a[:, 0]
        return jnp.exp(-((a + 0.5) ** 2) / 0.045) + 2 * jnp.exp(-((a - 0.6) ** 2) / 0.045)

    start = jnp.array([-0.9, -0.4, -0.2, 0.0, 0.05, 0.1, 0.3])[:, None]
    end, value = ops.ascend_gradient(q, start)
    np.testing.assert_allclose(end[:, 0], [-0.5] * 4 + [0.6] * 3, atol=2e-3)
    np.testing.assert_allclose(value, [1] * 4 + [2] * 3, atol=1e-4)


@pytest.mark.slow
def test_climbing_stays_in_the_box_and_never_goes_down():
    peak = jnp.array([2.0, 0.3, -0.7])  # outside: the best of the box is on its face
    value_of = lambda a: -jnp.square(a - peak).sum(-1)  # noqa: E731
    start = jax.random.uniform(jax.random.key(0), (20, 3), minval=-1.0, maxval=1.0)
    end, value = ops.ascend_gradient(value_of, start)
    np.testing.assert_allclose(end, jnp.broadcast_to(jnp.array([1.0, 0.3, -0.7]), end.shape), atol=1e-3)
    np.testing.assert_allclose(value, -1.0, atol=1e-5)
    assert (ops.ascend_gradient(value_of, start, steps=1)[1] >= value_of(start)).all()
    steep = lambda a: 100 * a[:, 0] - jnp.square(a[:, 1:] - peak[1:]).sum(-1)  # noqa: E731
    end, _ = ops.ascend_gradient(steep, start)  # the way along a face that Q would climb on through
    np.testing.assert_allclose(end, jnp.broadcast_to(jnp.array([1.0, 0.3, -0.7]), end.shape), atol=0.01)


def test_the_plane_through_three_proposals():
    points = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0]])
    plane = ops.Plane(points[0], ops.span_axes(points, 2), ("", ""))
    np.testing.assert_allclose(plane.axes, [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(plane.coordinates(points), [[0, 0], [1, 0], [1, 1]])
    same = ops.span_axes(np.array([[0.2, 0, 0.5]] * 2 + [[0.2, 0, 1.0]]), 2)  # two are one point
    np.testing.assert_allclose(same, [[0, 0, 1], [1, 0, 0]])


def test_a_plane_reaches_to_the_faces_of_the_box():
    diagonal = ops.Plane(np.array([0.5, 0.0, 0.0]), np.array([[0.6, 0.8, 0], [0, 0, 1.0]]), ("", ""))
    x, y = diagonal.grid(5)
    # Along (0.6, 0.8) from (0.5, 0): the first face ahead is that of dimension 0, behind that of dimension 1.
    np.testing.assert_allclose([x[0], x[-1], y[0], y[-1]], [-1.25, 0.5 / 0.6, -1, 1])
    line = ops.Plane(np.array([0.0, 0.7]), np.array([[1.0, 0.0]]), ("",))
    np.testing.assert_allclose(line.grid(3)[0], [-1, 0, 1])
    np.testing.assert_allclose(line.at(np.array([[0.5]])), [[0.5, 0.7]])
    np.testing.assert_allclose(line.distance(np.array([[0.1, -0.2]])), [0.9])


def test_the_part_of_a_line_that_lies_in_balls():
    line = ops.Plane(np.zeros(1), np.eye(1), ("",))
    found = ops.intersect_balls(line, INTERVALS[::-1, :1], INTERVALS[::-1, 1])
    ends = [[-0.88, -0.72], [-0.51, -0.39], [-0.19, -0.11], [0.15, 0.25], [0.43, 0.57], [0.77, 0.93]]
    np.testing.assert_allclose(found, ends)
    centres, radii = draw_balls(3, 10, (0.35, 0.55), seed=1)  # those of Hopper
    for k in range(5):
        rng = np.random.default_rng(k)
        line = ops.Plane(rng.uniform(-0.5, 0.5, 3), ops.span_axes(rng.normal(size=(2, 3)), 1), ("",))
        x = np.linspace(*line.grid(2)[0], 999)
        far = np.linalg.norm(line.at(x[:, None])[:, None] - centres, axis=-1)
        found = ops.intersect_balls(line, centres, radii)
        inside = ((found[:, 0] <= x[:, None]) & (x[:, None] <= found[:, 1])).any(1)
        np.testing.assert_array_equal(inside, (far <= radii).any(1))
        assert (found[1:, 0] > found[:-1, 1]).all()


def test_principal_directions():
    rng = np.random.default_rng(2)
    points = rng.normal(size=(4000, 1)) * [[0.8, 0.0, -0.6]] + 0.1 * rng.normal(size=(4000, 1)) * [
        [0, 1.0, 0]
    ]
    axes = ops.principal_axes(points + 7.0, 2)
    np.testing.assert_allclose(axes, [[0.8, 0, -0.6], [0, 1, 0]], atol=0.01)


# --- agents with a Q that is known ------------------------------------------------------------------------


class Hills(eqx.Module):
    """Q(s, a) = Σ_k h_k exp(-‖a - c_k‖² / w), whatever the state."""

    centres: Array
    heights: Array
    width: Array

    def __call__(self, obs, action, embeddings, context=None, key=None):
        far = jnp.square(action[..., None, :] - self.centres).sum(-1)
        return (self.heights * jnp.exp(-far / self.width)).sum(-1)


@dataclasses.dataclass(frozen=True)
class Listed(plain.Single):
    """Proposes the actor's action and two fixed ones, and takes the last."""

    name: ClassVar[str] = "listed"

    def proposals(self, actor, own, context, obs):
        mode = context.bind(actor)(obs).mode()
        return jnp.stack([mode, jnp.full_like(mode, 0.6), jnp.full_like(mode, 0.2)], -2)

    def act(self, actor, own, context, step):
        return self.proposals(actor, own, context, step.observation)[..., -1, :], {}, step.noise_state


def standing(action, hills, table=None, selector=None, **base):
    """A small td3 whose actor always does `action`, with the critics `hills`."""
    sizes = {"actor_hidden": (4,), "critic_hidden": (4,), **base}
    agent = qs.agent("td3", {"base": sizes}).on(Spec(2, len(action), table=table))
    agent = agent if selector is None else dataclasses.replace(agent, selector=selector)
    acting = agent.acting(agent.init(jax.random.key(0)))
    parts = lambda actor: (actor.head.out.weight, actor.head.out.bias)  # noqa: E731
    bias = jnp.arctanh(jnp.asarray(action, jnp.float32))
    actor = eqx.tree_at(parts, acting.actor, (jnp.zeros_like(parts(acting.actor)[0]), bias))
    return agent, acting._replace(actor=actor, critics=[Hills(*map(jnp.asarray, h)) for h in hills])


TOY = (np.array([[-0.5], [0.6]], np.float32), np.array([1.0, 2.0], np.float32), np.float32(0.045))
BUMP = (np.zeros((1, 3), np.float32), np.ones(1, np.float32), np.float32(0.3))
STATES = np.zeros((2, 2), np.float32)


@pytest.fixture(scope="module")
def toy():
    agent, acting = standing([-0.5], [TOY, TOY])
    return survey.Surveyor(agent), acting


def moved_to(acting, action):
    bias = jnp.arctanh(jnp.asarray([action], jnp.float32))
    return acting._replace(actor=eqx.tree_at(lambda a: a.head.out.bias, acting.actor, bias))


def test_the_search_finds_the_peak_that_climbing_from_the_actor_misses(toy):
    surveyor, acting = toy
    climbed = ops.ascend_gradient(lambda a: acting.critics[0](None, a, ()), jnp.array([[-0.5]]))[1]
    assert climbed[0] == pytest.approx(1.0)
    found = surveyor(acting, STATES)
    np.testing.assert_allclose(found.best, [[0.6]] * 2, atol=1e-3)
    np.testing.assert_allclose(found.gap, [1.0] * 2, atol=1e-5)
    np.testing.assert_allclose(found.span, 2 - VALLEY, atol=1e-4)
    assert found.optima.tolist() == found.all_optima.tolist() == [2, 2]


def test_the_gap_is_nothing_at_the_optimum_and_the_difference_elsewhere(toy):
    surveyor, acting = toy
    for action in (0.6, 0.3, -1 + 1e-6):
        found = surveyor(moved_to(acting, action), STATES)
        gap = found.gap
        assert (gap >= 0).all()
        np.testing.assert_allclose(gap, 2 - two_peaks(action), atol=1e-5)
        np.testing.assert_array_equal(found.gaps[:, 0], gap)  # the one proposal is what is done


def test_the_range_of_q_reaches_the_lowest_corner_of_many_dimensions():
    """Random points alone do not: with six dimensions the worst action had a gap of 113% of their range."""
    agent, acting = standing([-0.9] * 6, [TOY, TOY])
    found = survey.Surveyor(agent)(acting._replace(critics=[Says(lambda obs, a: a.sum(-1))] * 2), STATES)
    np.testing.assert_allclose(found.span, 12, rtol=1e-5)
    np.testing.assert_allclose(found.share(found.gap), 11.4 / 12, rtol=1e-5)


def test_gaps_of_a_flat_q_are_no_share_of_it():
    agent, acting = standing([-0.9], [TOY, TOY])
    flat = Says(lambda obs, a: 1000 + 1e-4 * jnp.sin(50 * a[..., 0]))
    found = survey.Surveyor(agent)(acting._replace(critics=[flat] * 2), STATES)
    assert (found.gap > 0).all()
    assert (found.share(found.gap) == 0).all()
    assert (found.true_span() == 0).all()


def test_states_are_picked_evenly_over_all_steps():
    def walked(first, n):
        obs = first + np.arange(n, dtype=np.float32)[:, None]
        return Rollout(obs, obs, obs[:, 0], True, Episode(0, n, 0.0, None))

    episodes = [walked(0.0, 3), walked(10.0, 6)]
    places, obs = survey.pick_states(episodes, 3)
    assert places == [(0, 0), (1, 1), (1, 5)]
    assert obs.tolist() == [[0.0], [11.0], [15.0]]
    assert len(survey.pick_states(episodes, 50)[0]) == 9


def test_each_proposal_has_its_own_gap_and_the_chosen_action_too():
    agent, acting = standing([-0.5], [TOY], selector=Listed())
    found = survey.Surveyor(agent)(acting, STATES)
    expected = [2 - two_peaks(a) for a in (-0.5, 0.6, 0.2)]
    np.testing.assert_allclose(found.gaps, [expected] * 2, atol=1e-5)
    np.testing.assert_allclose(found.gap, expected[2], atol=1e-5)
    said = survey.summarise(found)
    assert [p["gap"]["mean"] for p in said["proposals"]] == pytest.approx(expected, abs=1e-5)
    assert said["action"]["share"]["p90"] == pytest.approx(expected[2] / (2 - VALLEY), abs=1e-4)
    assert (said["several"], said["rank"], said["optima"]["max"]) == (1.0, None, 2.0)


@pytest.mark.slow
def test_the_heads_become_what_is_asked_for():
    low = (TOY[0], np.array([1.6, 0.8], np.float32), TOY[2])
    best = {}
    for which in ("objective", "first", "min"):
        agent, acting = standing([0.0], [TOY, low], actor_objective="mean")
        found = survey.Surveyor(agent, which)(acting, STATES)
        best[which] = (round(float(found.best[0, 0]), 2), round(float(found.best_q[0]), 3))
    assert best == {
        "objective": (0.6, 1.4), "first": (0.6, 2.0), "min": (-0.5, 1.0),
    }  # fmt: skip


@pytest.mark.slow
def test_four_dimensions_are_searched_by_climbing():
    centres = np.array([[0.7, -0.7, 0.5, 0.0], [-0.6, 0.6, -0.4, 0.3], [0.0, 0.8, 0.8, -0.8]], np.float32)
    heights = np.array([3.0, 2.0, 1.0], np.float32)
    agent, acting = standing(centres[1], [(centres, heights, np.float32(0.3))])
    found = survey.Surveyor(agent)(acting, STATES[:1])
    np.testing.assert_allclose(found.best, centres[:1], atol=0.02)
    far = np.square(centres[:, None] - centres).sum(-1)
    at_peaks = (heights * np.exp(-far / 0.3)).sum(1)  # the peaks hardly overlap
    assert found.gap[0] == pytest.approx(at_peaks[0] - at_peaks[1], abs=1e-3)
    assert found.optima[0] == 3


def test_a_table_is_looked_at_entry_by_entry():
    table = np.random.default_rng(3).uniform(-1, 1, (300, 2)).astype(np.float32)
    hills = (
        np.array([[0.5, 0.5], [-0.6, 0.0]], np.float32),
        np.array([2.0, 1.0], np.float32),
        np.float32(0.2),
    )
    agent, acting = standing([-0.5, 0.1], [hills], table=table)
    raw, _ = standing([-0.5, 0.1], [hills], table=table, selector=Listed())  # it proposes what is no row
    proposed = survey.Surveyor(raw)(acting, STATES[:1]).proposals[0]
    rows = [np.square(table - a).sum(1).argmin() for a in ([-0.5, 0.1], [0.6, 0.6], [0.2, 0.2])]
    np.testing.assert_array_equal(proposed, table[rows])
    surveyor = survey.Surveyor(agent)
    found = surveyor(acting, STATES[:1])
    q = (hills[1] * np.exp(-np.square(table[:, None] - hills[0]).sum(-1) / 0.2)).sum(1)
    chosen = np.square(table - [-0.5, 0.1]).sum(1).argmin()
    np.testing.assert_array_equal(found.action[0], table[chosen])
    np.testing.assert_array_equal(found.best[0], table[q.argmax()])
    assert found.rank[0] == 1 + (q > q[chosen]).sum() > 1
    assert found.gap[0] == pytest.approx(q.max() - q[chosen], abs=1e-6)
    near = np.argsort(np.square(table[:, None] - table).sum(-1), axis=1)[:, 1:11]
    joined = np.zeros((300, 300), bool)
    joined[np.arange(300)[:, None], near] = True
    tops = [(q[(joined | joined.T)[k]] < q[k]).all() for k in range(300)]
    assert found.all_optima[0] == sum(tops)
    subject = make_trained_agent(agent, acting, "tiny:Clock-v0")
    seen = landscape.landscape(subject, STATES[0], surveyor=surveyor)
    assert seen.kind == "table"
    assert seen.q == pytest.approx(q, abs=1e-5)
    assert f"rank {found.rank[0]:.0f} of 300" in seen.plot().get_title().replace("\n", " ")
    with pytest.raises(qs.UsageError, match="one of 300 actions"):
        landscape.landscape(subject, STATES[0], "pca", surveyor=surveyor)


def test_a_landscape_shows_q_where_it_says(toy):
    surveyor, acting = toy
    subject = make_trained_agent(surveyor.agent, acting, "tiny:Clock-v0")
    seen = landscape.landscape(subject, STATES[0], surveyor=surveyor, points=401)
    (x,) = seen.grid
    assert (seen.kind, len(x), seen.gap) == ("line", 401, pytest.approx(1.0, abs=1e-5))
    np.testing.assert_allclose(seen.q, two_peaks(x), atol=1e-5)
    np.testing.assert_allclose(seen.optima[:, 0], [0.6, -0.5], atol=0.006)
    drawn = seen.plot()
    curve = drawn.lines[0]
    np.testing.assert_allclose(curve.get_ydata(), two_peaks(curve.get_xdata()), atol=1e-5)
    marks = {c.get_label(): c.get_offsets().data for c in drawn.collections}
    np.testing.assert_allclose(marks["the agent's action"], [[-0.5, 1]], atol=1e-5)
    np.testing.assert_allclose(marks["best found"], [[0.6, 2]], atol=2e-3)


def test_the_agents_action_is_marked_where_a_refiner_moved_it(toy):
    surveyor, acting = toy
    subject = make_trained_agent(surveyor.agent, acting, "tiny:Clock-v0")
    fields = landscape.landscape(subject, STATES[0], surveyor=surveyor, points=11).to_dict()
    done = {"action": np.array([0.6]), "action_q": 2.0}
    mark = marks.list_marks(fields | {"survey": fields["survey"] | done})[-1]
    assert (mark.kind, mark.name, mark.at.tolist(), mark.q.tolist()) == (
        "action", "the agent's action", [[0.6]], [2.0],
    )  # fmt: skip


# --- what SAVO's actors climb ------------------------------------------------------------------------------


def test_floors_are_the_best_of_what_was_proposed_before():
    np.testing.assert_array_equal(
        ops.proposal_floors(np.array([[1.0, 0.5, 2.0, 3.0], [0.0, -1.0, 4.0, 1.0]])), [[1, 1, 2], [0, 0, 4]]
    )


def successive(spec, recipe="td3+savo", rough=1.0, **savo):
    """A small agent with SAVO, whose networks are random; `rough`: how many times the usual weights."""
    small = {"actor_hidden": (16, 16), "critic_hidden": (32, 32)}
    agent = qs.agent(recipe, tiny.settings(recipe, **small) | {"savo": savo}).on(spec)
    acting = agent.acting(agent.init(jax.random.key(1)))
    return agent, jax.tree.map(lambda x: rough * x, acting)


ROWS = np.random.default_rng(5).uniform(-1, 1, (200, 3)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "spec", "savo"),
    [
        ("td3+savo", Spec(2, 1), {}),
        ("td3+savo", Spec(2, 2), {"surrogate": "exact"}),
        ("td7+savo", Spec(2, 1), {"conditioning": "both"}),
        ("td3+savo", Spec(2, 3, table=ROWS), {"list_length": 2}),
        ("td3+savo", Spec(2, 3, table=ROWS), {"raw_vectors": True}),
    ],
)
def test_surrogates_are_what_the_actors_climb(recipe, spec, savo):
    agent, acting = successive(spec, recipe, rough=2.0, **savo)
    obs = np.array([0.3, -0.7], np.float32)
    seen = landscape.landscape(make_trained_agent(agent, acting, "tiny:Clock-v0"), obs, points=11)
    at = (
        ROWS
        if spec.table is not None
        else seen.plane.at(np.stack(np.meshgrid(*seen.grid, indexing="ij"), -1))
    )
    rows = np.float32(at).reshape(-1, spec.action_size)
    own, context, _ = agent._acting_context(acting, jnp.asarray(obs[None]), jnp.zeros((), jnp.int32))
    selectors = {"learned": agent.selector}
    if savo.get("raw_vectors"):  # which know no exact surrogate; Ψ_0 is Q
        np.testing.assert_array_equal(seen.surrogates[0].exact, seen.q)
    else:
        selectors["exact"] = dataclasses.replace(agent.selector, surrogate="exact")
    for kind, selector in selectors.items():
        hills = [q for _, q in selector.actor_objectives(acting.actor, own, context, None)]
        hills = hills if savo.get("raw_vectors") else hills[1:]  # the first actor climbs Q
        assert len(seen.surrogates) == len(hills) == survey.surrogates.count_surrogates(agent)
        for surrogate, hill in zip(seen.surrogates, hills, strict=True):
            if savo.get("surrogate") == "exact" and kind == "learned":
                assert surrogate.learned is None
                continue
            climbed = hill(np.repeat(obs[None], len(rows), 0), rows)[0]
            np.testing.assert_allclose(getattr(surrogate, kind).ravel(), climbed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "spec", [slow(Spec(2, 1)), slow(Spec(2, 2)), slow(Spec(2, 3)), Spec(2, 3, table=ROWS)]
)
def test_no_exact_surrogate_has_more_optima_than_the_one_before(spec):
    agent, acting = successive(spec, rough=4.0, list_length=4)
    found = survey.Surveyor(agent)(acting, np.random.default_rng(0).normal(size=(12, 2)))
    for first, counts in ((found.optima, found.exact_optima), (found.all_optima, found.all_exact_optima)):
        counts = np.concatenate([first[:, None], counts], 1)
        assert counts.shape == (12, 4)
        assert (np.diff(counts, axis=1) <= 0).all()
        assert counts[:, 0].max() > 1
        assert counts[:, -1].mean() < counts[:, 0].mean(), "some peaks are gone"
    assert found.learned_optima.shape == (12, 3)
    assert (found.learned_optima <= found.all_learned_optima).all()
    said = survey.summarise(found)["surrogates"]
    assert [s["exact_optima"]["mean"] for s in said] == found.exact_optima.mean(0).tolist()
    assert [s["learned_optima"]["max"] for s in said] == found.learned_optima.max(0).tolist()


def test_a_surveyor_without_surrogates_draws_none():
    agent, acting = successive(Spec(2, 2))
    subject = make_trained_agent(agent, acting, "tiny:Clock-v0")
    surveyor = survey.Surveyor(agent, with_surrogates=False)
    seen = landscape.landscape(subject, STATES[0], points=5, surveyor=surveyor)
    assert seen.surrogates == ()
    assert seen.survey.proposals.shape[1] > 1, "SAVO's proposals are there"


@pytest.mark.slow
@pytest.mark.parametrize("spec", [Spec(2, 2), Spec(2, 3, table=ROWS)])
def test_surrogates_of_planes_and_tables_have_panels_of_their_own(spec):
    seen = []
    for savo in ({}, {"list_length": 2, "surrogate": "exact"}):  # the second draws less
        subject = make_trained_agent(*successive(spec, rough=2.0, **savo), "tiny:Clock-v0")
        seen.append(landscape.landscape(subject, STATES[0], points=21).to_dict())
    shown = [ax for ax in landscapes.draw_surrogates(seen).axes if ax.get_title()]
    names = [ax.get_title().split("\n")[0] for ax in shown]
    exact = [rf"$\Psi_{{{i}}} = \max(Q, \tau_{{{i}}})$ and proposal {i}" for i in (1, 2)]
    fitted = [rf"learned $\hat{{\Psi}}_{{{i}}}$ and proposal {i}" for i in (1, 2)]
    ends = ["Q and proposal 0", "Q and all proposals"]
    assert sorted(names) == sorted([*ends, *exact, *fitted, *ends, exact[0]])
    colours = {name: ax.collections[0] for name, ax in zip(names[:6], shown, strict=False)}
    assert len({(c.norm.vmin, c.norm.vmax) for c in colours.values()}) == 1, "one scale"
    if spec.table is not None:
        first, _ = seen[0]["surrogates"]
        for name, kind in ((exact[0], "exact"), (fitted[0], "learned")):
            np.testing.assert_allclose(sorted(colours[name].get_array()), sorted(first[kind]), rtol=1e-6)


@pytest.mark.parametrize("list_length", [1, 3])
def test_with_raw_vectors_the_first_actor_has_a_surrogate_too(list_length):
    options = {"raw_vectors": True, "list_length": list_length}
    agent, acting = successive(Spec(2, 3, table=ROWS), rough=2.0, **options)
    seen = landscape.landscape(make_trained_agent(agent, acting, "tiny:Clock-v0"), STATES[0], points=21)
    found = seen.survey
    assert found.exact_optima.shape == found.learned_optima.shape == (1, list_length)
    assert found.exact_optima[0, 0] == found.optima[0]
    titles = [ax.get_title().split("\n")[0] for ax in landscapes.draw_surrogates([seen.to_dict()]).axes]
    learned = [rf"learned $\hat{{\Psi}}_{{{i}}}$ and proposal {i}" for i in range(list_length)]
    exact = [rf"$\Psi_{{{i}}} = \max(Q, \tau_{{{i}}})$ and proposal {i}" for i in range(1, list_length)]
    ends = ["Q and proposal 0", "Q and all proposals"]
    assert sorted(filter(None, titles)) == sorted([*ends, *exact, *learned])
    assert json.loads(json.dumps(seen.surrogates[0].floor)) == np.nanmin(seen.q)


def test_the_axes_of_the_plane_of_proposals_say_where_they_lead():
    agent, acting = standing([0.2, 0.1, 0.0], [BUMP])
    alone = survey.Surveyor(agent)(acting, STATES[:1])
    several = alone._replace(proposals=np.concatenate([alone.proposals, alone.proposals + 0.3], 1))
    for found, first in ((alone, "best found"), (several, "next")):
        plane = make_plane(None, found, None)
        assert plane.names[0] == f"from the first proposal to the {first}"
        towards = found.best[0] if first == "best found" else found.proposals[0, 1]
        np.testing.assert_allclose(plane.coordinates(towards)[1:], 0, atol=1e-6)


def test_planes_of_an_action_in_a_corner_show_more_than_the_corner():
    agent, acting = standing([0.2, 0.1, 0.0], [BUMP])
    found = survey.Surveyor(agent)(acting, STATES[:1])
    best, taken = np.array([[-0.5, 0.2, 0.0]]), np.random.default_rng(4).uniform(-1, 1, (500, 3))
    for corner in np.array(list(np.ndindex(2, 2, 2))) * 2.0 - 1:
        near = corner * (1 - 1e-5 * np.array([[0, 0, 0], [1, 0, 2], [0, 2, 1]]))
        here = found._replace(action=corner[None], proposals=near[None], best=best)
        planes = {name: make_plane(name, here, taken) for name in ("random", "pca", "proposals")}
        planes["shared"] = share_plane(None, here, here._replace(action=near[1:2]), taken)
        for plane in planes.values():
            assert min(map(np.ptp, plane.grid(5))) > 0.5
        for name in ("proposals", "shared"):
            assert planes[name].names[0].endswith("to the best found")
            np.testing.assert_allclose(planes[name].coordinates(best)[0, 1], 0, atol=1e-6)
    inner = make_plane("random", found, taken)
    np.testing.assert_array_equal(inner.origin, found.action[0])


@pytest.mark.slow
def test_planes_of_three_dimensions():
    centres = np.array([[0.5, 0.5, -0.5], [-0.5, -0.5, 0.2]], np.float32)
    hills = (centres, np.array([2.0, 1.0], np.float32), np.float32(0.3))
    agent, acting = standing(centres[1], [hills], selector=Listed())
    surveyor, subject = survey.Surveyor(agent), make_trained_agent(agent, acting, "tiny:Clock-v0")
    taken = np.random.default_rng(4).normal(size=(2000, 3)) * [1.0, 0.1, 0.5]

    def look(plane):
        return landscape.landscape(subject, STATES[0], plane, points=41, taken=taken, surveyor=surveyor)

    for plane in ("0,2", "1", "pca", "random", None):
        seen = look(plane)
        at = seen.plane.at(np.stack(np.meshgrid(*seen.grid, indexing="ij"), -1))
        q = (hills[1] * np.exp(-np.square(at[..., None, :] - centres).sum(-1) / 0.3)).sum(-1)
        outside = (np.abs(at) > 1 + 1e-6).any(-1)
        np.testing.assert_allclose(seen.q, np.where(outside, np.nan, q), atol=1e-5)
        # The plane goes through the first proposal or the action, and is flat, square and of unit length.
        anchor = seen.survey.proposals[0, 0] if plane is None else seen.survey.action[0]
        np.testing.assert_allclose(seen.plane.distance(anchor), 0, atol=1e-6)
        np.testing.assert_allclose(seen.plane.axes @ seen.plane.axes.T, np.eye(len(seen.grid)), atol=1e-6)
    through = look(None)
    np.testing.assert_allclose(through.plane.distance(through.survey.proposals[0]), 0, atol=1e-6)
    # The arrows are the slope of Q, here by small differences.
    u, du = through.arrows[:, :2], 1e-4
    for axis in (0, 1):
        step = du * np.eye(2)[axis]
        ahead, behind = (
            (hills[1] * np.exp(-np.square(through.plane.at(x)[:, None] - centres).sum(-1) / 0.3)).sum(-1)
            for x in (u + step, u - step)
        )
        np.testing.assert_allclose(through.arrows[:, 2 + axis], (ahead - behind) / (2 * du), atol=1e-3)
    np.testing.assert_allclose(np.abs(look("pca").plane.axes[0]), [1, 0, 0], atol=0.1)


def test_a_slanted_plane_needs_a_grid_with_points_in_the_box():
    agent, acting = standing([-0.5, 0.2, 0.1], [BUMP, BUMP])
    subject = make_trained_agent(agent, acting, "tiny:Clock-v0")
    surveyor = survey.Surveyor(agent)
    for plane in (None, "proposals", "random", "pca"):
        with pytest.raises(qs.UsageError, match="--grid is 4; it must be at least 5, because the corners"):
            landscape.landscape(subject, STATES[0], plane, points=4)
    for plane, points, least in (("random", 5, 6), ("0,2", 2, 4)):
        seen = landscape.landscape(subject, STATES[0], plane, points=points, surveyor=surveyor)
        assert np.isfinite(seen.q).sum() >= least


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    """A short run of SAVO where only some intervals of the action are valid."""
    folder = tmp_path_factory.mktemp("runs") / "pendulum" / "0"
    settings = tiny.settings("td3+savo", warmup=20)
    plan = Plan("td3+savo", "restricted/InvertedPendulum-v0", steps=60, settings=settings, eval_every=0)
    for _ in train(plan, folder):
        pass
    return folder


@pytest.mark.slow
def test_the_command_shows_what_savo_climbs_where_choosing_gains_most(pendulum, capsys):
    argv = ["landscape", str(pendulum), "--state-from", "0:0", "widest", "--states", "4", "--episodes", "3"]
    assert cli.main([*argv, "--grid", "201"]) == 0
    out = capsys.readouterr().out
    rows = [line.split()[:2] for line in out.splitlines() if line.startswith("Ψ")]
    assert rows == [["Ψ1", "exact"], ["Ψ1", "learned"], ["Ψ2", "exact"], ["Ψ2", "learned"]]
    found = json.loads((pendulum / "inspect" / "landscape.json").read_text())
    gained = {}
    for e, episode in enumerate((subject := load_trained_agent(pendulum)).rollouts(3)):
        proposals = subject.agent.proposals(subject.acting, episode.observation)
        q = [subject.q(episode.observation, proposals[:, i])[0] for i in range(3)]
        gained |= {f"{e}:{t}": gain for t, gain in enumerate(np.max(q, axis=0) - q[0])}
    first, *gaining = [seen["place"] for seen in found["landscapes"]]
    assert (first, len(set(gaining))) == ("0:0", 5)
    highest = np.sort([*gained.values()])[::-1][:5]
    np.testing.assert_allclose([gained[place] for place in gaining], highest, atol=1e-5)
    for seen in found["landscapes"]:
        np.testing.assert_allclose(np.mean(seen["valid"], 1), INTERVALS[:, 0], atol=1e-6)
        np.testing.assert_allclose(np.diff(seen["valid"])[:, 0], 2 * INTERVALS[:, 1], atol=1e-6)
        before = seen["survey"]["optima"]
        for surrogate, count in zip(seen["surrogates"], seen["survey"]["exact_optima"], strict=True):
            np.testing.assert_allclose(surrogate["exact"], np.maximum(seen["q"], surrogate["floor"]))
            assert count <= before
            before = count
    figure = landscapes.draw_surrogates(found["landscapes"][:2])
    panels = np.reshape(figure.axes, (2, 4))
    for seen, line in zip(found["landscapes"], panels, strict=False):
        drawn = [{str(x.get_label()): x.get_ydata() for x in ax.lines} for ax in line]
        assert [ax.get_ylim() for ax in line] == [line[0].get_ylim()] * 4
        for i, surrogate in enumerate(seen["surrogates"], 1):
            np.testing.assert_allclose(line[i].lines[0].get_ydata(), surrogate["exact"])
            np.testing.assert_allclose(drawn[i]["learned surrogate"], surrogate["learned"])
            (mark,) = [c for c in line[i].collections if c.get_label() == f"proposal {i}"]
            height = max(seen["survey"]["proposals_q"][: i + 1])
            np.testing.assert_allclose(mark.get_offsets()[0, 1], height, rtol=1e-5)
        for ax, shown in ((line[0], {"proposal 0"}), (line[3], {f"proposal {k}" for k in range(3)})):
            assert {c.get_label() for c in ax.collections if "proposal" in c.get_label()} == shown
        assert sum("valid" in str(p.get_label()) or not p.get_label() for p in line[0].patches) == len(
            INTERVALS
        )
    assert (pendulum / "inspect" / "landscape-surrogates.png").stat().st_size > 10_000
    assert qs.landscape(pendulum, "0:0", points=11).valid.shape == (6, 2)


@pytest.mark.slow
def test_the_first_actor_of_savo_can_act_alone(pendulum):
    subject = load_trained_agent(pendulum)
    alone = dataclasses.replace(subject, acting=subject.acting._replace(actor=subject.acting.actor[:1]))
    obs = subject.rollouts(1)[0].observation
    first = subject.agent.proposals(subject.acting, obs)[:, 0]
    np.testing.assert_allclose(alone.act(obs), first, atol=1e-6)
    assert len(alone.rollouts(2)) == 2


# --- the command, the library call and the probe ----------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run with two action dimensions whose evaluations were probed."""
    folder = tmp_path_factory.mktemp("runs") / "rooms" / "0"
    plan = Plan(
        "td3", "tiny:Rooms-v0", steps=60, settings=tiny.settings("td3", warmup=20), eval_every=60,
        eval_episodes=3, probe=("landscape",),
    )  # fmt: skip
    for _ in train(plan, folder):
        pass
    return folder


def searched_by_hand(subject, obs, steps=301):
    """Highest Q of critic 1 on a grid, and Q at the agent's action."""
    line = np.linspace(-1, 1, steps, dtype=np.float32)
    at = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    q = subject.q(np.repeat(obs[None], len(at), 0), at)[0]
    own = subject.q(obs[None], subject.act(obs[None]))[0]
    return float(q.max()), float(q.min()), float(own[0])


@pytest.mark.slow
def test_the_command_tells_gaps_and_draws(run, capsys):
    assert cli.main(["landscape", str(run), "--states", "6", "--episodes", "2", "--grid", "31"]) == 0
    out = capsys.readouterr().out
    assert "mean gap" in out
    assert "local optima" in out
    found = json.loads((run / "inspect" / "landscape.json").read_text())
    subject = load_trained_agent(run)
    episodes = subject.rollouts(2)
    assert len(found["place"]) == 6
    for (episode, step), gap in zip(found["place"], found["gap"], strict=True):
        best, low, own = searched_by_hand(subject, episodes[episode].observation[step])
        assert gap == pytest.approx(best - own, abs=0.01 * (best - low))
    share = np.array(found["gap_share"])
    assert found["summary"]["action"]["share"]["max"] == pytest.approx(share.max(), rel=1e-4)
    drawn = {tuple(map(int, x["place"].split(":"))) for x in found["landscapes"]}
    assert tuple(found["place"][int(share.argmax())]) in drawn
    assert np.shape(found["landscapes"][0]["q"]) == (31, 31)
    assert found["landscapes"][0]["plane"]["names"] == ["action dimension 0", "action dimension 1"]
    from matplotlib import image

    picture = image.imread(run / "inspect" / "landscape.png")
    assert picture.shape[0] > 300
    assert picture.std() > 0.05  # not blank
    assert not [*run.glob("inspect/*surrogates*")]


@pytest.mark.slow
def test_a_state_can_be_chosen(run, tmp_path, capsys):
    files = ["--json", str(tmp_path / "a" / "x.json"), "--png", str(tmp_path / "a" / "x.svg")]
    argv = ["landscape", str(run), "--state-from", "1:7", "0:0", "--states", "1", "--episodes", "1"]
    assert cli.main([*argv, "--plane", "1", "--grid", "11", *files]) == 0
    found = json.loads((tmp_path / "a" / "x.json").read_text())
    assert [x["place"] for x in found["landscapes"]] == ["1:7", "0:0"]
    subject = load_trained_agent(run)
    obs = subject.rollouts(2)[1].observation[7]
    shown = found["landscapes"][0]
    at = np.tile(np.float32(shown["survey"]["action"]), (11, 1))
    at[:, 1] = np.linspace(-1, 1, 11)
    q = subject.q(np.repeat(obs[None], 11, 0), at)[0]
    np.testing.assert_allclose(shown["q"], q, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "a" / "x.svg").read_text().startswith("<?xml")
    seen = qs.landscape(run, "1:7", "1", points=11)
    np.testing.assert_allclose(seen.q, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--state-from", "0:20"], "episode 0 has 20 steps, 0 to 19"),
        (["--state-from", "seven"], "not EPISODE:STEP"),
        (["--state-from", "widest"], "has one proposal and nothing to choose"),
        (["--plane", "0,2"], "dimensions 0 to 1"),
        (["--plane", "1,1"], "each once"),
        (["--plane", "sideways"], "pca, proposals, random"),
        (["--states", "0"], "at least 1"),
        (["--grid", "1"], "--grid is 1"),
        (["--png", "a.xyz"], "--png a.xyz: .xyz is not an image format; choose"),
        (["--episodes", "0", "--state-from", "1:0"], "--episodes is 0"),
    ],
)
def test_what_the_command_refuses(run, flags, says, capsys):
    assert cli.main(["landscape", str(run), *flags]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_one_dimension_has_no_plane_and_no_q_no_landscape():
    agent = qs.agent("td3", tiny.settings("td3"))
    subject = make_trained_agent(agent, agent.on(Spec(3, 1)).init(jax.random.key(0)), "tiny:Clock-v0")
    for plane in ("pca", "0,1", "random"):
        with pytest.raises(qs.UsageError, match="one dimension"):
            measure_landscapes(subject, plane=plane)
    blind = qs.Model("a2c", "CartPole-v1", base={"actor_hidden": (4,)})
    for refused in (
        lambda: measure_landscapes(blind.trained_agent),
        lambda: qs.landscape(blind, np.zeros(4)),
    ):
        with pytest.raises(qs.UsageError, match="has no Q"):
            refused()


@pytest.mark.parametrize("recipe", ["td3", slow("td3+c51"), slow("td3+quantile")])
def test_a_model_in_memory_can_be_looked_at(recipe):
    model = qs.Model(recipe, "Pendulum-v1", seed=3, **tiny.settings("td3"))
    seen = qs.landscape(model, np.array([1.0, 0.0, 0.5]), points=5)
    q = model.trained_agent.q(np.tile(np.float32([1.0, 0.0, 0.5]), (5, 1)), np.linspace(-1, 1, 5)[:, None])[0]
    np.testing.assert_allclose(seen.q, q, rtol=1e-4, atol=1e-6)
    assert qs.landscape(model, "0:3", points=5).place == "0:3"


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (np.zeros(5), r"Pendulum-v1 has observations \(3,\), not \(5,\)"),
        (np.zeros((2, 3)), "the state is a batch of 2; a landscape needs one observation"),
        ([0.0, np.nan, 0.0], "the state's number 1 is nan"),
        ({"angle": 1.0}, "Pendulum-v1"),
        ([[0.0], [1.0, 2.0]], r"Pendulum-v1 has observations \(3,\), not this list"),
    ],
)
def test_a_state_that_is_no_single_observation(state, why):
    model = qs.Model("td3", "Pendulum-v1", seed=3, **tiny.settings("td3"))
    with pytest.raises(qs.UsageError, match=why):
        qs.landscape(model, state, points=5)


def test_a_state_may_be_as_the_environment_gives_it():
    agent = qs.agent("td3", tiny.settings("td3"))
    subject = make_trained_agent(agent, agent.on(Spec(7, 2)).init(jax.random.key(0)), "tiny:Rooms-v0")
    adapter = subject.make()
    given = adapter.env.observation_space.sample()
    row = adapter.observations(given)[0][0]
    seen, same = (landscape.landscape(subject, state, points=5) for state in (given, row))
    np.testing.assert_array_equal(seen.q, same.q)


def test_which_critics_are_looked_at_is_one_of_four():
    model = qs.Model("td3", "Pendulum-v1", seed=3, **tiny.settings("td3"))
    says = "q is 'second'; it must be one of objective, first, min, mean"
    for look in (
        lambda q: qs.landscape(model, np.zeros(3), q=q),
        lambda q: measure_landscapes(model.trained_agent, q=q),
    ):
        with pytest.raises(qs.UsageError, match=says):
            look("second")


def test_evaluations_can_be_probed(run):
    with (run / "evaluations.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) == 60]
    subject = load_trained_agent(run)
    _, obs = survey.pick_states(subject.rollouts(3), survey.PROBED)
    by_hand = np.array([searched_by_hand(subject, one) for one in obs])
    gap, span = by_hand[:, 0] - by_hand[:, 2], by_hand[:, 0] - by_hand[:, 1]
    assert len(rows) == 3
    for row in rows:
        assert float(row["optimality_gap"]) == pytest.approx(gap.mean(), abs=0.01 * span.mean())
        assert float(row["optimality_gap_share"]) == pytest.approx((gap / span).mean(), abs=0.01)
        assert float(row["local_optima"]) >= 1
