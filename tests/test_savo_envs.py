"""The environments of SAVO: restricted actions, MineWorld, RecSim, MovieLens. Exact numbers."""

import heapq
import re
import zipfile
from functools import lru_cache

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.envs.mujoco.hopper_v4 import HopperEnv
from gymnasium.envs.mujoco.inverted_pendulum_v4 import InvertedPendulumEnv
from gymnasium.utils.env_checker import check_env
from jax.tree_util import Partial
from scipy.linalg import solve_discrete_are
from scipy.sparse.csgraph import connected_components

from qscape.envs import make, movielens
from qscape.envs.mineworld import (
    BARRIERS,
    Miner,
    MineWorld,
    draw_map,
    guide,
    list_tools,
    make_action_table,
    observe,
)
from qscape.envs.native import play
from qscape.envs.recsim import RecSim, User, drift_taste, greedy
from qscape.envs.recsim_data import RecSimData, RecSimDataEnv, oracle, popular
from qscape.envs.restricted import INTERVALS, Restricted, restrict
from qscape.envs.snapshot import restore, take
from qscape.errors import UsageError

KEY = jax.random.key(0)
RESTRICTED = [
    f"restricted/{n}-v0" for n in ("Hopper", "Walker2d", "InvertedPendulum", "InvertedDoublePendulum")
]


def uniform(env):
    return lambda state, seen, key: jax.random.randint(key, (), 0, env.action_space.n)


# Restricted actions


def restricted(env_id, **args):
    env = gym.make(env_id, **args)
    while not isinstance(env, Restricted):
        env = env.env
    return env


@pytest.mark.parametrize("env_id", [*RESTRICTED, "restricted/Any-v0"])
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*(minimum|maximum) value is")
def test_restricted_environments_are_proper_ones(env_id):
    assert make(env_id).time_limit == 1000
    check_env(restricted(env_id), skip_render_check=True)


# By seed: how many of the million points are valid, into how many pieces the balls fall, and is 0 valid?
HOPPER, WALKER = RESTRICTED[:2]
BALLS = {
    HOPPER: [
        (316_980, 4, True),
        (336_796, 3, False),
        (278_201, 3, True),
        (281_016, 2, True),
        (360_691, 2, False),
        (295_175, 3, True),
    ],
    WALKER: [
        (270_443, 1, True),
        (321_625, 1, False),
        (289_222, 2, True),
        (340_835, 1, True),
        (366_968, 1, True),
        (310_068, 1, True),
    ],
}


@lru_cache
def million(size):
    """The points that are counted, [10⁶, D]."""
    return np.random.default_rng(0).uniform(-1, 1, size=(10**6, size))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("env_id", BALLS)
def test_the_balls_of_every_seed(env_id, seed):
    env = restricted(env_id, seed=seed)
    c, r, points = env.centres, env.radii, million(env.centres.shape[1])
    # |p - c|² ≤ r² as one matrix product.
    valid = (points @ (2 * c.T) >= np.square(points).sum(1)[:, None] + (np.square(c).sum(1) - r**2)).any(1)
    pieces, _ = connected_components(np.linalg.norm(c[:, None] - c, axis=-1) < r[:, None] + r)
    assert (valid.sum(), pieces, env.is_valid(np.zeros(c.shape[1]))) == BALLS[env_id][seed]
    assert [env.is_valid(point) for point in points[:200]] == valid[:200].tolist()


@pytest.mark.parametrize(
    ("env_id", "radii", "centres", "pattern"),
    [
        (
            HOPPER,
            {0: 0.452364, 1: 0.540093, 2: 0.378832, 9: 0.355512},
            {0: (0.507026, 0.076287, -0.340537), 9: (0.057179, -0.081328, -0.875301)},
            "00000101001111111100",
        ),
        (
            WALKER,
            {0: 0.902364, 1: 0.990093, 2: 0.828832},
            {0: (0.500729, -0.439182, -0.029618, 0.961474, 0.923314, 0.449580)},
            "00000101011000100001",
        ),
    ],
)
def test_the_balls_of_the_registered_seed(env_id, radii, centres, pattern):
    env = restricted(env_id)
    np.testing.assert_allclose(env.radii[list(radii)], list(radii.values()), atol=1e-6)
    np.testing.assert_allclose(env.centres[list(centres)], list(centres.values()), atol=1e-6)
    points = million(env.centres.shape[1])
    assert "".join("01"[env.is_valid(point)] for point in points[:20]) == pattern
    for point in points[:200]:
        moved = env.project(point)
        outside = (np.linalg.norm(env.centres - point, axis=1) - env.radii).min()
        assert (np.linalg.norm(env.centres - moved, axis=1) - env.radii).min() < 1e-12
        assert np.linalg.norm(moved - point) == pytest.approx(max(outside, 0), abs=1e-12)
        assert (np.abs(moved) <= 1).all()


def test_the_intervals_of_the_pendulums():
    centres, halves = [-0.80, -0.45, -0.15, 0.20, 0.50, 0.85], [0.08, 0.06, 0.04, 0.05, 0.07, 0.08]
    for env_id in RESTRICTED[2:]:
        env = restricted(env_id)
        np.testing.assert_array_equal(env.centres[:, 0], centres)
        np.testing.assert_array_equal(env.radii, halves)
    assert INTERVALS[:, 1].sum() == pytest.approx(0.38)  # of half the length of [-1, 1]
    ends = np.sort(np.concatenate([INTERVALS[:, 0] - INTERVALS[:, 1], INTERVALS[:, 0] + INTERVALS[:, 1]]))
    assert (np.diff(ends) > 0).all()
    for action in (-0.875, -0.8, -0.191 + 0.002, 0.2, 0.5, 0.9):
        assert env.is_valid([action]), action
    for action in (-0.7, 0, 0.26, 1):
        assert not env.is_valid([action]), action


def test_an_invalid_action_does_the_null_action_and_costs_what_was_asked_for():
    """The simulation is the one of the base under the null action; Hopper's control cost is the request's."""
    for env_id, base, invalid, valid, null in [
        ("restricted/InvertedPendulum-v0", InvertedPendulumEnv, [0.0], [0.6], [-1.0]),
        ("restricted/Hopper-v0", HopperEnv, [0.9, 0.9, 0.9], [0.5, 0.1, -0.3], [0, 0, 0]),
    ]:
        env, plain = restricted(env_id), base()
        for action, done in ((invalid, null), (valid, valid), (invalid, null)):
            env.reset(seed=4)
            plain.reset(seed=4)
            shown, reward, *_, info = env.step(np.array(action, np.float32))
            wanted, paid, *_ = plain.step(np.array(done, np.float32))
            np.testing.assert_array_equal(shown, wanted)
            asked = 1e-3 * np.square(action).sum() if base is HopperEnv else 0
            did = 1e-3 * np.square(done).sum() if base is HopperEnv else 0
            assert reward == pytest.approx(paid - asked + did, abs=1e-9)
            assert info["valid"] == (done is valid)
    env, plain = restricted("restricted/InvertedPendulum-v0", null_action="normalised"), InvertedPendulumEnv()
    env.reset(seed=4)
    plain.reset(seed=4)
    np.testing.assert_array_equal(env.step(np.zeros(1, np.float32))[0], plain.step(np.array([-3.0]))[0])


def gain(env, angles):
    """LQR of the upright state: A and B by central differences over one control step."""
    base, h = env.unwrapped, 1e-5
    n = base.model.nq

    def step(state, force):
        base.reset()
        base.set_state(state[:n], state[n:])
        base.do_simulation(np.array([force]), base.frame_skip)
        return np.concatenate([base.data.qpos, base.data.qvel])

    a = np.stack([(step(h * e, 0) - step(-h * e, 0)) / (2 * h) for e in np.eye(2 * n)], 1)
    b = ((step(np.zeros(2 * n), h) - step(np.zeros(2 * n), -h)) / (2 * h))[:, None]
    p = solve_discrete_are(a, b, np.diag([1.0] + [10.0] * angles + [0.1] * n), np.array([[0.1]]))
    return np.linalg.solve(0.1 + b.T @ p @ b, b.T @ p @ a)[0]


@pytest.mark.parametrize(
    ("name", "angles", "wanted", "naive"),
    [("InvertedPendulum", 1, 1000.0, 4.8), ("InvertedDoublePendulum", 2, 9358.5, 33.2)],
)
def test_the_restricted_pendulums_can_be_solved(name, angles, wanted, naive):
    """Ten episodes of a linear controller whose force is moved to the nearest valid one; without that it
    falls at once."""
    env = gym.make(f"restricted/{name}-v0")
    inner, k = restricted(f"restricted/{name}-v0"), gain(env, angles)
    high = env.action_space.high[0]

    def returns(project):
        total = []
        for seed in range(10):
            env.reset(seed=seed)
            ended, ret = False, 0.0
            while not ended:
                data = env.unwrapped.data
                force = np.clip(-k @ np.concatenate([data.qpos, data.qvel]) / high, -1, 1, dtype=float)
                action = inner.project(np.array([force])) if project else np.array([force])
                # Not onto the very border, where rounding to float32 decides.
                centre = INTERVALS[np.abs(INTERVALS[:, 0] - action[0]).argmin(), 0]
                action += (1e-6 * np.sign(centre - action)) if project else 0
                _, reward, *over, _ = env.step((action * high).astype(np.float32))
                ret, ended = ret + reward, any(over)
            total.append(ret)
        return np.mean(total)

    assert returns(True) == pytest.approx(wanted, rel=0.01)
    assert returns(False) == pytest.approx(naive, rel=0.01)


def test_any_environment_can_be_restricted():
    env = restrict("Pendulum-v1", count=3, low=0.1, high=0.2, seed=5)
    env.reset(seed=0)
    plain = gym.make("Pendulum-v1")
    plain.reset(seed=0)
    inside = (env.centres[0] * 2).astype(np.float32)  # of ±2
    np.testing.assert_array_equal(env.step(inside)[0], plain.step(inside)[0])
    outside = np.array([2.0], np.float32)
    assert not env.is_valid(outside / 2)
    assert env.step(outside)[1] == plain.step(np.zeros(1, np.float32))[1]
    with pytest.raises(UsageError, match=r"bounded Box of actions.*CartPole-v1 has Discrete"):
        make("restricted/Any-v0", env_args={"env": "CartPole-v1"})
    with pytest.raises(UsageError, match="0 balls"):
        restrict("Pendulum-v1", count=0)
    with pytest.raises(UsageError, match="do not lie in 1 dimensions"):
        Restricted(plain, np.zeros((3, 2)), np.ones(3))
    with pytest.raises(UsageError, match="raw or normalised"):
        make("restricted/InvertedPendulum-v0", env_args={"null_action": "zero"})


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"env": "Pendulun-v1"}, "no environment is called 'Pendulun-v1'; near to it: Pendulum-v1"),
        ({"env": "Pendulum-v1", "mass": 3}, r"^Pendulum-v1 cannot be made with env_args \{'mass': 3\}"),
        ({"env": "nowhere:Thing-v0"}, "nowhere:Thing-v0 cannot be made"),
        ({"env": "a:b:c"}, "'a:b:c' names no environment"),
        ({"seed": -3}, r"^restricted/Any-v0 cannot be made with env_args \{'seed': -3\} \(ValueError"),
    ],
)
def test_why_an_environment_cannot_be_restricted(args, why):
    with pytest.raises(UsageError, match=why):
        make("restricted/Any-v0", env_args=args)


@pytest.mark.parametrize(
    ("env_id", "limit"),
    [("Pendulum-v1", 100), ("Pendulum-v1", 300), ("faulty:make", 30), ("faulty:Careless", 30)],
)
def test_a_time_limit_is_put_in_the_place_of_the_inner_one(env_id, limit):
    """Pendulum-v1 has one of 200, faulty:make one of 20."""
    adapter = make("restricted/Any-v0", env_args={"env": env_id, "max_episode_steps": limit})
    adapter.reset()
    lengths = [episode.length for _ in range(limit) for episode in adapter.step(np.zeros((1, 1))).finished]
    assert lengths == [limit] == [adapter.time_limit]
    own = {"Pendulum-v1": 200, "faulty:make": 20}.get(env_id)
    assert make("restricted/Any-v0", env_args={"env": env_id}).time_limit == own


class Shaped(gym.Env):
    """Shows the action that it took, of a shape and with bounds."""

    def __init__(self, low, high):
        self.action_space = gym.spaces.Box(np.float32(low), np.float32(high))
        self.observation_space = gym.spaces.Box(-9, 9, self.action_space.shape, np.float32)

    def step(self, action):
        return np.asarray(action), 0.0, False, False, {}


def test_an_action_dimension_without_width():
    env = Restricted(Shaped([-1, 0.5], [1, 0.5]), np.zeros((1, 2)), np.array([0.3]), null=[-1, 0.5])
    seen, _, _, _, info = env.step(np.float32([0.2, 0.5]))
    assert info["valid"]
    assert seen.tolist() == pytest.approx([0.2, 0.5])
    seen, _, _, _, info = env.step(np.float32([0.4, 0.5]))
    assert not info["valid"]
    assert seen.tolist() == [-1, 0.5]


def test_a_null_action_is_given_flat():
    low, ball = -np.ones((2, 2)), (np.zeros((1, 4)), np.array([0.1]))
    env = Restricted(Shaped(low, -low), *ball, null=[0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(env.step(np.float32(-low))[0], [[0.1, 0.2], [0.3, 0.4]])
    for null in ([0.5], 0.5):
        assert (Restricted(Shaped(low, -low), *ball, null=null).null == np.full((2, 2), 0.5)).all()
    with pytest.raises(UsageError, match="a null action of 2 numbers is none where actions have 4"):
        Restricted(Shaped(low, -low), *ball, null=[0.5, 0.5])


@pytest.mark.parametrize("table", ["cheap", [[1.0], [2.0, 3.0]], len, [["a"], ["b"]]])
def test_an_action_table_that_holds_no_numbers(table):
    class Shelf(Shaped):
        def __init__(self):
            super().__init__([0.0], [1.0])
            self.action_space, self.action_table = gym.spaces.Discrete(2), table

    with pytest.raises(UsageError, match=r"Shelf: action_table is no array \[2, d\] of numbers: "):
        make(Shelf)


def test_arguments_of_a_wrong_value_are_told_with_what_there_are():
    with pytest.raises(UsageError, match=r"^restricted/Hopper-v0 cannot be made with env_args .*'seed': -3"):
        make("restricted/Hopper-v0", env_args={"seed": -3})


def test_a_restricted_edge_is_restored_to_the_bit():
    adapters = [make("restricted/Hopper-v0", seed=seed) for seed in (1, 2)]
    actions = np.random.default_rng(0).uniform(-1, 1, (160, 1, 3))
    adapters[0].reset()
    for action in actions[:70]:
        adapters[0].step(action)
    assert restore(adapters[1], take(adapters[0])) == ""
    ends = 0
    for action in actions[70:]:
        one, other = (adapter.step(action) for adapter in adapters)
        np.testing.assert_array_equal(one.observation, other.observation)
        np.testing.assert_array_equal(one.transition.reward, other.transition.reward)
        ends += len(one.finished)
    assert ends


# Adroit


@pytest.mark.parametrize(
    ("name", "observation", "action"), [("Door", 39, 28), ("Hammer", 46, 26), ("Pen", 45, 24)]
)
def test_adroit_reports_success_and_is_restored_to_the_bit(name, observation, action):
    """It moves the door, the board or the target in MuJoCo's model at every reset."""
    pytest.importorskip("gymnasium_robotics")
    adapters = [make(f"AdroitHand{name}-v1", seed=seed) for seed in (1, 2)]
    assert (adapters[0].spec.observation_size, adapters[0].spec.action_size) == (observation, action)
    assert adapters[0].time_limit == 200
    actions = np.random.default_rng(0).uniform(-1, 1, (330, 1, action))
    adapters[0].reset()
    for row in actions[:130]:
        adapters[0].step(row)
    assert restore(adapters[1], take(adapters[0])) == ""
    episodes = []
    for row in actions[130:]:
        one, other = (adapter.step(row) for adapter in adapters)
        np.testing.assert_array_equal(one.transition.next_observation, other.transition.next_observation)
        np.testing.assert_array_equal(one.transition.reward, other.transition.reward)
        assert one.finished == other.finished
        episodes += one.finished
    assert [(episode.length, episode.success in (0.0, 1.0)) for episode in episodes] == [(200, True)]


# MineWorld


def test_the_tools_and_their_representation():
    pool = "0 1 2 4 5 6 8 9 11 12 14 17 18 20 21 22 24 25 26 28 29 30 34 35 37 38 40 44 45 46 47 48 49 51 54"
    pool = [int(i) for i in (pool + " 55 56 57 58 60 61 62").split()]
    np.testing.assert_array_equal(list_tools()[8:], [(i // 9, 7 + i % 9) for i in pool])
    np.testing.assert_array_equal(list_tools()[:8], [(b, 15) for b in range(7, 15)])
    assert np.bincount(list_tools()[8:, 0]).tolist() == [7, 5, 7, 5, 4, 6, 8]
    removable = {before for before, after in list_tools() if after == 15}
    assert removable == set(range(15)) - {5}
    table = make_action_table()
    assert (table.shape, table.dtype) == ((54, 4), np.float32)
    rows = {
        0: (1, 0, 0, 0),
        1: (1, 1 / 3, 0, 0),
        4: (0, 0, 7 / 15, 1),
        11: (0, 0, 14 / 15, 1),
        12: (0, 0, 0, 7 / 15),
    }
    for row, values in (rows | {53: (0, 0, 0.4, 1)}).items():
        np.testing.assert_allclose(table[row], values, rtol=1e-6)
    apart = np.linalg.norm(table[:, None] - table, axis=-1) + 9 * np.eye(54)
    assert apart.min() == pytest.approx(1 / 15)
    extra = make_action_table(5)
    np.testing.assert_array_equal(extra[:, :4], table)
    np.testing.assert_allclose(extra[0, 4], np.random.default_rng(1234).uniform(), rtol=1e-6)


@pytest.mark.parametrize(
    ("point", "nearest", "distance"),
    [
        ((0.9, 0.4, 0.1, 0.1), 1, 0.1856),
        ((0, 0, 0.47, 0.98), 4, 0.0203),
        ((0.1, 0.2, 0.05, 0.7), 21, 0.2267),
        ((0.45, 0, 0, 0.3), 12, 0.4799),
    ],
)
def test_nearest_actions(point, nearest, distance):
    away = np.linalg.norm(make_action_table() - point, axis=1)
    assert (away.argmin(), round(away.min(), 4)) == (nearest, distance)


def test_layouts():
    for seed, xs, ys, row in [(0, {5, 7}, {3, 7}, {5: 10, 7: 5}), (1, {3, 5}, {3, 5}, {3: 12, 5: 12})]:
        mines = draw_map(np.random.default_rng(seed))
        assert (mines < 15).sum() == 32
        inside = mines[1:-1, 1:-1] < 15
        assert set(np.flatnonzero(inside.all(0)) + 1) == xs
        assert set(np.flatnonzero(inside.all(1)) + 1) == ys
        assert {x: mines[1, x] for x in row} == row
    # What jax draws is of the same kind: each of nine pairs of barriers, all fifteen types.
    states, _ = jax.jit(jax.vmap(MineWorld().reset))(jax.random.split(KEY, 200))
    drawn = {np.packbits(m < 15).tobytes() for m in np.asarray(states.mines)}
    assert drawn == {np.packbits(b).tobytes() for b in BARRIERS.reshape(9, 11, 11)}
    counts = np.bincount(np.asarray(states.mines)[states.mines < 15])
    assert counts.sum() == 200 * 32
    assert (np.abs(counts - 200 * 32 / 15) < 110).all()


@lru_cache
def removers():
    """The actions that remove a mine, by its type; type 5 needs two."""
    remove = {b: [4 + int(np.flatnonzero((list_tools() == (b, 15)).all(1))[0])] for b in range(15) if b != 5}
    first = int(np.flatnonzero((list_tools()[:, 0] == 5) & np.isin(list_tools()[:, 1], list(remove)))[0])
    return remove | {5: [4 + first, *remove[int(list_tools()[first, 1])]]}


def plan(mines):
    """Fewest steps to the goal on a map, and the actions: Dijkstra over places and directions.

    A mine in the way costs a turn (unless one faces it), one tool or, for type 5, two, and the move.
    """
    remove, mines = removers(), mines.tolist()
    heap, done = [(0, 1, 1, 0, ())], set()
    while heap:
        cost, x, y, facing, actions = heapq.heappop(heap)
        if (x, y) == (9, 9):
            return cost, actions
        if (x, y, facing) in done:
            continue
        done.add((x, y, facing))
        for direction, (dx, dy) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
            nx, ny = x + dx, y + dy
            if 1 <= nx <= 9 and 1 <= ny <= 9:
                way = [direction]
                if mines[ny][nx] < 15:
                    turn = [] if direction == facing else [direction]
                    way = [*turn, *remove[mines[ny][nx]], direction]
                heapq.heappush(heap, (cost + len(way), nx, ny, direction, (*actions, *way)))
    raise AssertionError("the goal cannot be reached")


@pytest.fixture(scope="module")
def mine_step():
    return jax.jit(lambda state, action: MineWorld().step(state, action, KEY))


def test_the_shortest_ways_through_mineworld(mine_step):
    """20 steps on layouts 0 to 4, found apart from the environment and then walked in it."""
    for seed in range(5):
        mines = draw_map(np.random.default_rng(seed))
        steps, actions = plan(mines)
        assert steps == len(actions) == 20
        state, _ = MineWorld().reset_to_map(mines)
        total = 0.0
        for i, action in enumerate(actions):
            state, outcome = mine_step(state, action)
            total += float(outcome.reward)
            assert bool(outcome.terminated) == bool(outcome.success) == (i == 19)
        removed = sum(action >= 4 and list_tools()[action - 4, 1] == 15 for action in actions)
        matched = sum(action >= 4 for action in actions)
        assert total == pytest.approx(8.2 + 1.6 + 0.1 * matched + 0.1 * removed, abs=1e-4)
        assert seed != 0 or total == pytest.approx(10.6, abs=1e-4)


def test_how_long_the_shortest_ways_are():
    lengths = [plan(draw_map(np.random.default_rng(seed)))[0] for seed in range(1000)]
    assert (np.mean(lengths), min(lengths), max(lengths)) == (20.004, 20, 21)


@pytest.mark.parametrize(("used", "reward"), [(16, 8.56), (20, 8.2), (50, 5.5), (100, 1.0)])
def test_what_the_goal_pays(used, reward, mine_step):
    free = jnp.full((11, 11), 15)
    state = Miner(free, jnp.array([8, 9]), jnp.int32(0), jnp.int32(used - 1))
    _, outcome = mine_step(state, 0)
    assert float(outcome.reward) == pytest.approx(reward + 0.1, abs=1e-5)  # 0.1: one cell nearer
    assert outcome.terminated
    assert bool(outcome.truncated) == (used == 100)


def test_the_rules_of_mineworld(mine_step):
    mines = np.full((11, 11), 15)
    mines[1, 2], mines[2, 1] = 5, 9  # right and below the start
    state, seen = MineWorld().reset_to_map(mines)
    assert seen.shape == (23,)
    np.testing.assert_allclose(seen, [0, 0, 0, 0, 0, 0, 0, *np.eye(15)[5], 0])
    done = [
        # action, place, direction, mine in front, reward
        (0, (1, 1), 0, 5, 0.0),  # blocked
        (4, (1, 1), 0, 5, 0.0),  # a tool that does not fit
        (4 + int(np.flatnonzero((list_tools() == (5, 9)).all(1))[0]), (1, 1), 0, 9, 0.1),  # turned into 9
        (4 + 2, (1, 1), 0, 15, 0.2),  # removed
        (4 + 2, (1, 1), 0, 15, 0.0),  # nothing left to work on
        (3, (1, 1), 3, 15, 0.0),  # the border: turns only
        (4, (1, 1), 3, 15, 0.0),
        (1, (1, 1), 1, 9, 0.0),
        (0, (2, 1), 0, 15, 0.1),
        (2, (1, 1), 2, 15, -0.1),
    ]
    for action, place, direction, front, reward in done:
        state, outcome = mine_step(state, action)
        assert tuple(state.place.tolist()) == place
        assert state.direction == direction
        assert float(outcome.reward) == pytest.approx(reward, abs=1e-6)
        one_hot = np.asarray(outcome.observation[7:22])
        np.testing.assert_array_equal(one_hot, np.eye(16)[front, :15])
        assert outcome.observation[2] == pytest.approx(direction / 3)
    np.testing.assert_array_equal(outcome.observation[3:7], [1, 0, 0, 0])
    assert (state.mines[1, 2], state.mines[2, 1], state.steps) == (15, 9, 10)
    beside = Miner(jnp.full((11, 11), 15), jnp.array([9, 8]), jnp.int32(1), jnp.int32(0))
    np.testing.assert_allclose(observe(beside), [1, 7 / 8, 1 / 3, 0, 1, 1, 1, *np.zeros(15), 1])


@pytest.mark.slow
def test_scores_in_mineworld():
    env = MineWorld()
    random = play(env, uniform(env), KEY, 100)
    assert random.success.mean() == 0
    assert abs(random.ret.mean() - 0.28) < 0.08
    guided = play(env, Partial(guide, env), KEY, 100)
    assert guided.success.all()
    assert guided.length.min() >= 20


def test_mineworld_reports_success_and_takes_layouts():
    adapter = make("mineworld/MineWorld-v0")
    assert (adapter.spec.table.shape, adapter.spec.table.min(), adapter.spec.table.max()) == ((54, 4), -1, 1)
    env = gym.make("mineworld/MineWorld-v0", extra_dims=5)
    assert env.unwrapped.action_table.shape == (54, 9)
    shown, _ = env.reset(options={"layout": 3})
    np.testing.assert_array_equal(env.unwrapped.state.mines, draw_map(np.random.default_rng(3)))
    assert env.observation_space.contains(shown)
    for action in plan(draw_map(np.random.default_rng(3)))[1]:
        *_, terminated, truncated, info = env.step(action)
    assert (terminated, truncated, info) == (True, False, {"success": True})


# RecSim


@pytest.fixture(scope="module")
def recsim():
    return RecSim.of(10_000)


def test_the_items_of_recsim(recsim):
    table = recsim.action_table
    assert (table.shape, table.dtype) == ((10_000, 30), np.float32)
    np.testing.assert_allclose(table[0, :3], [1.039759, -0.041775, 0.202519], atol=1e-6)
    np.testing.assert_allclose(table[31, :3], [-0.052218, 0.562534, 0.211640], atol=1e-6)
    assert np.linalg.norm(table, axis=1).mean() == pytest.approx(1.98576, abs=1e-5)
    np.testing.assert_allclose([table.min(), table.max()], [-1.452747, 2.232215], atol=1e-6)
    assert RecSim.of(100, 15).action_table.shape == (100, 45)
    np.testing.assert_array_equal(RecSim.of(100, 15).action_table[:, :30], table[:100])
    with pytest.raises(UsageError, match="two at least"):
        make("recsim/10k-v0", env_args={"items": 1})


def test_how_a_click_moves_the_taste():
    for taste, item, delta in ((0.5, 1.0, 0.075), (-0.5, 0.8, 0.156)):
        for towards in (True, False):
            moved = drift_taste(jnp.array([taste]), jnp.array([item]), jnp.bool_(towards))
            assert float(moved[0]) == pytest.approx(taste + delta * (1 if towards else -1))
    # Never past ±1; a taste of 1 stays.
    ends = drift_taste(jnp.array([1.0, 0.5, 0.5]), jnp.array([9.0, 9.0, -9.0]), jnp.bool_(True))
    np.testing.assert_array_equal(ends, [1, 1, 1])
    assert drift_taste(jnp.array([0.5]), jnp.array([9.0]), jnp.bool_(False)) == -1


def test_the_odds_of_a_click_and_of_its_direction(recsim):
    """At score 0 and 2.754, 40,000 draws each; towards the item with probability (score + 1) / 2."""
    item = recsim.items[7]
    step = jax.jit(jax.vmap(lambda state, key: recsim.step(state, 7, key), (None, 0)))
    for score, odds, towards in ((0.0, 0.0758582, 0.5), (2.754, 0.245455, 1.0), (-0.5, None, 0.25)):
        taste = score * item / (item @ item)
        state = User(taste, jnp.int32(0))
        after, outcome = step(state, jax.random.split(KEY, 40_000))
        clicks = np.asarray(outcome.reward) == 1
        if odds:
            assert abs(clicks.mean() - odds) < 0.007
        moved = np.asarray(after.taste)[clicks]
        np.testing.assert_array_equal(
            np.asarray(after.taste)[~clicks], np.broadcast_to(taste, (sum(~clicks), 30))
        )
        along = (np.abs(moved - drift_taste(taste, item, jnp.bool_(True))).max(1) < 1e-6).mean()
        assert abs(along - towards) < 0.05
        assert not outcome.terminated.any()


def test_the_click_model_as_printed():
    """softmax(score, skip) = e^score / (e^score + e^skip), without κ, and a drift of twice the size."""
    env = RecSim.of(60, kappa=1.0, skip=1.0, drift=0.6)
    item = env.items[7]
    taste = 2.0 * item / (item @ item)  # of score 2
    steps = jax.vmap(lambda key: env.step(User(taste, jnp.int32(0)), 7, key))
    after, outcome = jax.jit(steps)(jax.random.split(KEY, 20_000))
    clicks = np.asarray(outcome.reward) == 1
    assert abs(clicks.mean() - np.exp(2) / (np.exp(2) + np.exp(1))) < 0.012
    moved, start = np.asarray(after.taste)[clicks], np.asarray(taste)
    delta = 0.6 * (1 - np.abs(start)) * np.asarray(item) * (np.asarray(item) - start)
    np.testing.assert_allclose(moved, np.broadcast_to(np.clip(start + delta, -1, 1), moved.shape), atol=1e-6)
    for wrong in ({"kappa": -1.0}, {"skip": float("inf")}, {"drift": float("nan")}):
        with pytest.raises(UsageError, match="give finite numbers, kappa and drift not below 0"):
            RecSim.of(60, **wrong)
        with pytest.raises(UsageError, match=r"kappa and drift not below 0|(skip|drift) is .*finite number"):
            make("recsim/10k-v0", env_args={"items": 60, **wrong})


@pytest.mark.slow
def test_scores_in_recsim(recsim):
    random = play(recsim, uniform(recsim), KEY, 4000)
    assert abs(random.ret.mean() - 1.61) < 0.1
    best = play(recsim, Partial(greedy, recsim), KEY, 2000)
    assert abs(best.ret.mean() - 5.36) < 0.1
    assert (random.length == 20).all()


@pytest.mark.slow
def test_half_a_million_items():
    adapter = make("recsim/500k-v0")
    assert adapter.spec.table.shape == (500_000, 30)
    adapter.reset()
    assert adapter.step(adapter.spec.table[[499_999]]).transition.reward in (0, 1)


# RecSim-Data


@pytest.mark.slow
def test_the_stand_in_without_data():
    env = RecSimData.synthetic()
    wide = RecSimData.synthetic(100, extra_dims=15)
    assert wide.action_table.shape == (100, 45)
    assert wide.observation_space.shape == (30,)
    np.testing.assert_array_equal(wide.action_table[:, :30], wide.items)
    assert abs(play(env, uniform(env), KEY, 4000).ret.mean() - 9.8) < 0.4
    assert abs(play(env, Partial(popular, env), KEY, 1000).ret.mean() - 32.4) < 2
    assert abs(play(env, Partial(oracle, env), KEY, 400).ret.mean() - 58.5) < 2.5
    state, seen = env.reset(KEY)
    assert float(jnp.linalg.norm(seen)) == pytest.approx(1, abs=1e-6)
    item, clicked, step = env.items[3], 0, jax.jit(lambda key: env.step(state, 3, key))
    for key in jax.random.split(KEY, 40):
        after, outcome = step(key)
        assert float(outcome.reward) in (0, 5)
        wanted = np.asarray(seen)
        if outcome.reward:
            turned = 0.95 * wanted + 0.05 * item / np.linalg.norm(item)
            wanted, clicked = turned / np.linalg.norm(turned), clicked + 1
        np.testing.assert_allclose(after.taste, wanted, atol=1e-6)
    assert clicked


MOVIES, TAGS, PEOPLE = 40, 36, 80


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A small archive in MovieLens' format, of people who like what lies in their direction."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data") / "ml-25m"
    folder.mkdir()
    ids = 3 * np.arange(MOVIES) + 1
    genome = random.uniform(0, 1, (MOVIES + 1, TAGS))  # the last one nobody rates
    lines = [
        f"{movie},{tag + 1},{genome[row, tag]:.5f}\n"
        for row, movie in enumerate([*ids, 9999])
        for tag in range(TAGS)
    ]
    (folder / "genome-scores.csv").write_text("movieId,tagId,relevance\n" + "".join(lines))
    taste = random.normal(0, 4, (PEOPLE, TAGS))
    lines = []
    for person in range(PEOPLE):
        share = 1.0 if person < 70 else 0.2  # the last ten rate too little
        for row in np.flatnonzero(random.uniform(size=MOVIES) < share * (1 - row_rank()) + 0.05):
            likes = taste[person] @ (genome[row] - 0.5) + random.logistic() > 0
            lines.append(f"{person + 1},{ids[row]},{4.5 if likes else 2.0},1147880044\n")
        lines.append(f"{person + 1},500000,5.0,1147880044\n")  # a movie without a genome
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "".join(lines))
    return folder, genome[:-1], taste, ids


def row_rank():
    """Movies that come later are rated less."""
    return np.arange(MOVIES) / (2 * MOVIES)


def test_a_model_fitted_to_ratings(archive):
    folder, genome, taste, ids = archive
    model = movielens.fit(folder, items=38)
    assert model.items.shape == (38, 30)
    ratings = np.loadtxt(folder / "ratings.csv", delimiter=",", skiprows=1)
    count = {int(i): (ratings[:, 1] == i).sum() for i in ids}
    assert list(model.movies) == sorted(count, key=lambda i: (-count[i], i))[:38]
    assert np.linalg.norm(model.items, axis=1).mean() == pytest.approx(1)
    # Principal components: distances among movies survive 30 of at most 36 dimensions, up to the scale.
    chosen = genome[(model.movies - 1) // 3]
    there, here = (
        np.linalg.norm(v[:, None] - v, axis=-1)[np.triu_indices(38, 1)] for v in (chosen, model.items)
    )
    assert np.corrcoef(there, here)[0, 1] > 0.95
    busy = np.flatnonzero(np.bincount(ratings[:, 0].astype(int)) >= 20)
    assert model.users.shape == (len(busy), 30)
    assert 60 < len(busy) < 80
    np.testing.assert_allclose(np.linalg.norm(model.users, axis=1), 1, atol=1e-6)
    # The fitted users like what the people liked whom they stand for.
    truth = taste[busy - 1] @ (chosen - 0.5).T
    guess = model.bias + model.strength * model.users @ model.items.T
    assert np.corrcoef(truth.ravel(), guess.ravel())[0, 1] > 0.4
    click = 1 / (1 + np.exp(-(model.offset + guess)))
    assert click.mean() == pytest.approx(0.1, abs=1e-6)


@pytest.mark.slow
def test_movielens_as_folder_zip_and_fitted_file(archive, tmp_path, capsys):
    folder, *_ = archive
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as zipped:
        for name in ("ratings.csv", "genome-scores.csv"):
            zipped.write(folder / name, f"ml-25m/{name}")
    assert movielens.main([str(tmp_path / "ml.zip"), str(tmp_path / "fitted.npz")]) == 0
    models = [movielens.load(path) for path in (folder, tmp_path / "ml.zip", tmp_path / "fitted.npz")]
    for model in models[1:]:
        for name in ("movies", "items", "bias", "users", "offset", "strength"):
            np.testing.assert_array_equal(getattr(model, name), getattr(models[0], name))
    assert movielens.load(folder) is movielens.load(str(folder)), "fitted twice"
    few = movielens.load(tmp_path / "fitted.npz", 35)
    np.testing.assert_array_equal(few.items, models[0].items[:35])
    logits = few.offset + few.bias + few.strength * few.users @ few.items.T
    assert (1 / (1 + np.exp(-logits))).mean() == pytest.approx(0.1, abs=1e-6)
    (tmp_path / "folder.npz").mkdir()
    for out in (tmp_path / "no" / "fitted.npz", tmp_path / "folder.npz"):
        assert movielens.main([str(folder), str(out)]) == 2
        assert f"{out} cannot be written: " in capsys.readouterr().err
    assert movielens.main([str(tmp_path / "gone"), str(tmp_path / "new.npz")]) == 2
    assert not (tmp_path / "new.npz").exists()
    env = gym.make("recsim/Data-v0", path=str(tmp_path / "fitted.npz"))
    assert env.unwrapped.action_table.shape == (MOVIES, 30)
    check_env(env.unwrapped)
    native = RecSimData.from_model(models[0])
    assert abs(play(native, uniform(native), KEY, 4000).ret.mean() - 10) < 1.5
    assert play(native, Partial(oracle, native), KEY, 500).ret.mean() > 15
    firsts = {env.reset(seed=i)[0].tobytes() for i in range(30)}
    assert firsts <= {user.tobytes() for user in models[0].users.astype(np.float32)}
    assert len(firsts) > 10


@pytest.mark.parametrize(
    ("file", "line", "text", "why"),
    [
        ("ratings.csv", 0, "user,movie", r"ratings.csv, line 1 is 'user,movie', not 'userId,movieId"),
        ("ratings.csv", 7, "1,2,3.5", r"ratings.csv, line 8 is '1,2,3.5', which is no userId"),
        ("ratings.csv", 9, "1,two,3.5,4", "ratings.csv, line 10 is '1,two"),
        ("ratings.csv", 3, "1,2,7.5,4", "ratings.csv, line 4 "),
        ("ratings.csv", 3, "1,2,nan,4", "ratings.csv, line 4 "),
        ("ratings.csv", 3, "nan,2,3.5,4", "ratings.csv, line 4 "),
        ("ratings.csv", 3, "1,inf,3.5,4", "ratings.csv, line 4 "),
        ("ratings.csv", 3, "1.5,2,3.5,4", "ratings.csv, line 4 "),
        ("ratings.csv", 3, "1,2,3.5,\udcff", "ratings.csv is damaged"),
        ("genome-scores.csv", 20, "1,2,1.5", "genome-scores.csv, line 21 "),
        ("genome-scores.csv", 20, "", "genome-scores.csv lacks scores of movie 1;"),
    ],
)
def test_a_malformed_archive_is_told_by_file_and_line(file, line, text, why, archive, tmp_path):
    for path in archive[0].iterdir():
        lines = path.read_text().splitlines()
        if path.name == file:
            lines[line] = text
        (tmp_path / path.name).write_text("\n".join(lines), errors="surrogateescape")
    with pytest.raises(UsageError, match=why):
        movielens.load(tmp_path)


def small_model(**changes) -> dict:
    """Five movies and three users in two dimensions, as the arrays of a file."""
    rng = np.random.default_rng(0)
    users = rng.normal(size=(3, 2))
    arrays = {
        "movies": np.arange(1, 6),
        "items": rng.normal(size=(5, 2)),
        "bias": np.zeros(5),
        "users": users / np.linalg.norm(users, axis=1, keepdims=True),
        "offset": np.float64(-2.0),
        "strength": np.float64(3.0),
    }
    return arrays | changes


def test_files_that_are_no_fitted_model(tmp_path):
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in ("empty", "one"):
        with pytest.raises(UsageError, match=rf"{name}.npz is no fitted model \(python -m"):
            movielens.load(tmp_path / f"{name}.npz")


@pytest.mark.parametrize(("name", "why"), [("a.npz", "no fitted model"), ("a.zip", "ratings.csv is damaged")])
def test_a_damaged_list_of_the_files_in_an_archive(name, why, tmp_path):
    """It names a way to compress that there is not."""
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for member in ("ratings.csv", "genome-scores.csv", *(f"{key}.npy" for key in small_model())):
            archive.writestr(member, "")
    data = bytearray((tmp_path / name).read_bytes())
    for found in re.finditer(b"PK\x01\x02", bytes(data)):
        data[found.start() + 10] = 99
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=why):
        movielens.load(tmp_path / name)


@pytest.mark.parametrize("items", [6, 1, 0, -5, 2.5])
def test_items_that_a_fitted_file_does_not_have(items, tmp_path):
    file = tmp_path / "fitted.npz"
    np.savez(file, **small_model())
    assert make("recsim/Data-v0", env_args={"path": str(file)}).spec.table.shape == (5, 2)
    assert make("recsim/Data-v0", env_args={"path": str(file), "items": 2}).spec.table.shape == (2, 2)
    known = "items is 6, and .*fitted.npz knows 5 movies"
    why = {6: known, 2.5: "items is 2.5; it must be a whole number"}.get(
        items, f"items is {items}: a whole number"
    )
    with pytest.raises(UsageError, match=why):
        make("recsim/Data-v0", env_args={"path": str(file), "items": items})


def test_an_archive_with_too_few_items(archive):
    with pytest.raises(UsageError, match=f"items is {MOVIES + 1}, and .* knows {MOVIES} movies"):
        movielens.load(archive[0], MOVIES + 1)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"bias": np.zeros(4)}, r"bias is \(4,\), it has to be \(5,\)"),
        ({"items": np.full((5, 2), np.nan)}, "items holds NaN or infinity"),
        ({"offset": np.inf}, "offset holds NaN or infinity"),
        ({"strength": np.ones(2)}, r"strength is \(2,\), it has to be \(\)"),
        ({"users": np.ones((3, 4))}, r"users is \(3, 4\), it has to be \(3, 2\)"),
        ({"users": np.zeros((0, 2))}, r"users is \(0, 2\), it has to be \[M, 2\]"),
        ({"items": np.zeros(5)}, r"items is \(5,\), it has to be \[N, d\]"),
        ({"movies": np.array(["Heat"] * 5)}, "no fitted model .python -m qscape.envs.movielens makes one."),
    ],
)
def test_a_fitted_file_that_is_none(changes, why, tmp_path):
    np.savez(tmp_path / "fitted.npz", **small_model(**changes))
    with pytest.raises(UsageError, match=why):
        make("recsim/Data-v0", env_args={"path": str(tmp_path / "fitted.npz")})


def test_what_movielens_cannot_be(archive, tmp_path, capsys):
    with pytest.raises(UsageError, match=r"is not at .*nowhere: give the path of ml-25m.zip"):
        make("recsim/Data-v0", env_args={"path": str(tmp_path / "nowhere")})
    with pytest.raises(UsageError, match=r"--env-args path=ml-25m.zip; without data there is"):
        make("recsim/Data-v0")
    with pytest.raises(UsageError, match="holds no ratings"):
        movielens.load(tmp_path)
    (tmp_path / "ml-25m.zip").write_text("<html>not found</html>")
    with pytest.raises(UsageError, match="neither a folder, a zip"):
        movielens.load(tmp_path / "ml-25m.zip")
    (tmp_path / "model.npz").write_text("nothing")
    with pytest.raises(UsageError, match="no fitted model"):
        RecSimDataEnv(str(tmp_path / "model.npz"))
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    with pytest.raises(UsageError, match="holds no rows"):
        movielens.load(tmp_path)
    rows = "".join(f"1,{3 * i + 1},4,0\n" for i in range(MOVIES))
    (tmp_path / "genome-scores.csv").write_bytes((archive[0] / "genome-scores.csv").read_bytes())
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows[: rows.index("1,100,")])
    with pytest.raises(UsageError, match=r"rates 33 movies with genome scores|has no user with 20"):
        movielens.fit(tmp_path, dims=33)
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n" + "".join(f"{i + 1},{3 * i + 1},4,0\n" for i in range(MOVIES))
    )
    with pytest.raises(UsageError, match="no user with 20 ratings"):
        movielens.fit(tmp_path)
    assert movielens.main(["only one"]) == 2
    assert movielens.main([str(tmp_path / "x.zip"), "y.npz"]) == 2
    assert "is not at" in capsys.readouterr().err
