"""The edge: transitions across resets, units of actions, shapes of observations, and what it refuses."""

import contextlib
import multiprocessing
import os
import sys
import threading
from importlib.metadata import version
from itertools import pairwise
from types import SimpleNamespace

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st
from refused import refused
from rows import slow

from qscape.envs import EnvAdapter, make
from qscape.envs.build import build_env, refuse_without_version
from qscape.envs.probes import PROBES
from qscape.envs.snapshot import restore, take


class Counter(gym.Env):
    """Shows (episode, step), so that a transition across a reset cannot be missed.

    Lengths of 1 to 6 are drawn from the seed; odd episodes are terminated, even ones truncated. With `reuse`
    one array is written again and again; one info always is. What a reset informs of must not be taken for a
    success.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, reuse=False):
        self.episode, self.reuse, self.shown, self.info = 0, reuse, np.zeros(2, np.float32), {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.at = self.episode + 1, 0
        self.length = int(self.np_random.integers(1, 7))
        self.info.clear()
        self.info["success"] = 9.0
        return self.show(), self.info

    def step(self, action):
        self.at += 1
        over, odd = self.at == self.length, self.episode % 2 == 1
        reward = 0.1 * self.episode + float(action[0])
        self.info["success"] = float(self.length - self.at == 1)
        return self.show(), reward, over and odd, over and not odd, self.info

    def show(self):
        if not self.reuse:
            self.shown = np.zeros(2, np.float32)
        self.shown[:] = self.episode, self.at
        return self.shown


def by_hand(seed, actions):
    """The transitions and episodes of one `Counter`, without any edge."""
    env, rows, episodes = Counter(), [], []
    observation, told = env.reset(seed=seed)[0], []
    rewards = []
    for action in actions:
        after, reward, terminated, truncated, info = env.step(action)
        rows.append((*observation, action[0], reward, *after, terminated, truncated))
        rewards.append(reward)
        told.append(float(info["success"]))
        observation = after
        if terminated or truncated:
            episodes.append((len(rewards), sum(rewards), max(told)))
            observation, rewards, told = env.reset()[0], [], []
    return np.array(rows, np.float32), episodes


def edge_of(way, envs):
    """An edge of `envs` counters: built by `make`, in a mode or not, or around a given vector environment."""
    who, _, mode = way.partition(" ")
    if who == "given":
        vector = SyncVectorEnv([Counter] * envs, copy=False, autoreset_mode=AutoresetMode[mode])
        return make(vector, seed=5)
    return make(Counter, envs, seed=5, **({"autoreset": AutoresetMode[mode]} if mode else {}))


WAYS = ["built", *(f"{who} {mode.name}" for who in ("built", "given") for mode in AutoresetMode)]


@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_every_transition_is_the_one_a_loop_by_hand_sees(way, envs):
    adapter = edge_of(way, envs)
    random = np.random.default_rng(0)
    rows, actions, episodes = ([[] for _ in range(envs)] for _ in range(3))
    observation = adapter.reset()
    assert observation.dtype == np.float32
    for _ in range(80):
        action = random.uniform(-1, 1, (envs, 1)).astype(np.float32)
        step = adapter.step(action)
        new = step.transition
        np.testing.assert_array_equal(new.observation, observation)
        np.testing.assert_array_equal(new.action, action)
        for i in np.flatnonzero(new.valid):
            ends = new.terminated[i], new.truncated[i]
            row = (*observation[i], action[i, 0], new.reward[i], *new.next_observation[i], *ends)
            rows[i].append(row)
            actions[i].append(action[i])
        for episode in step.finished:
            episodes[episode.env].append(episode)
        observation = step.observation
        np.testing.assert_array_equal(observation, adapter.observation)
        opens = observation[:, 1] == 0  # no step of the episode is made yet
        np.testing.assert_array_equal(new.starts_episode, opens | new.terminated | new.truncated)
    kinds = [array.dtype for array in (*new[:-1], observation)]
    assert kinds == [*[np.float32] * 3, bool, bool, np.float32, bool, np.float32]
    for i in range(envs):
        expected, ended = by_hand(5 + i, actions[i])
        np.testing.assert_array_equal(np.array(rows[i], np.float32), expected)
        assert expected[:, 6].any(), "no terminated episode was met"
        assert expected[:, 7].any(), "no truncated episode was met"
        assert [e.length for e in episodes[i]] == [length for length, _, _ in ended]
        np.testing.assert_allclose([e.ret for e in episodes[i]], [ret for _, ret, _ in ended], rtol=1e-12)
        assert [e.success for e in episodes[i]] == [success for _, _, success in ended]
    later = "NEXT" in way and (envs > 1 or way.startswith("given"))
    assert all(len(r) == 80 for r in rows) is not later, "only next-step autoreset spends steps on resets"


def test_an_info_may_hold_dicts():
    """`RecordEpisodeStatistics` gives {"episode": {"r": ...}} with the last step of an episode."""
    adapter = make(lambda: gym.wrappers.RecordEpisodeStatistics(Counter()), 2)
    adapter.reset()
    assert sum(len(adapter.step(np.zeros((2, 1), np.float32)).finished) for _ in range(12)) > 2


def test_environments_may_write_to_the_array_they_gave():
    adapter = make(lambda: Counter(reuse=True), seed=5)
    kept = [(adapter.reset(), None)]
    steps = (adapter.step(np.zeros((1, 1))) for _ in range(20))
    kept += [(step.observation, step.transition.next_observation) for step in steps]
    for (before, _), (now, after) in pairwise(kept):
        assert after[0, 0] == before[0, 0]
        assert after[0, 1] == before[0, 1] + 1
        assert now[0, 1] == 0 or now is after


class Reusing(Counter):
    """Writes to the same array again and again, also to that of its mask, which leaves 8 - step actions."""

    action_space = spaces.Discrete(8)
    masks_actions = True

    def __init__(self):
        super().__init__(reuse=True)
        self.mask = np.zeros(8, bool)

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], self.tell()

    def step(self, action):
        return *super().step([action])[:4], self.tell()

    def tell(self):
        self.mask[:] = np.arange(8) >= self.at
        return {"action_mask": self.mask}


@pytest.mark.parametrize("how", ["given", "sync", "async"])
def test_what_ends_an_episode_is_kept_across_the_reset(how):
    envs = SyncVectorEnv([Reusing] * 2, autoreset_mode=AutoresetMode.SAME_STEP) if how == "given" else Reusing
    way = {} if how == "given" else {"vectorise": how}
    with contextlib.closing(make(envs, 2, seed=5, index_actions=True, **way)) as adapter:
        before, ends, mask = adapter.reset(), 0, adapter.spec.mask
        for _ in range(12):
            step = adapter.step(np.full((2, 1), 7))
            new = step.transition
            after = new.next_observation
            np.testing.assert_array_equal(after[:, :2], before[:, :2] + [0, 1])
            valid = np.asarray(mask.unpack(after[:, 2:])).sum(1)
            np.testing.assert_array_equal(valid[~new.terminated], 8 - after[~new.terminated, 1])
            before, ends = step.observation, ends + new.truncated
        assert ends.all(), "no truncated episode was met"


@pytest.mark.parametrize("envs", [1, 2])
def test_seeds_count_up_and_are_used_once(envs):
    adapter = make("Pendulum-v1", envs, seed=8)
    first, second = adapter.reset(), adapter.reset()
    expected = [gym.make("Pendulum-v1").reset(seed=8 + i)[0] for i in range(envs)]
    np.testing.assert_array_equal(first, expected)
    assert (first != second).any(), "every reset would begin the same episode"
    adapter.reseed(8)
    np.testing.assert_array_equal(adapter.reset(), expected)


def test_a_reset_forgets_the_unfinished_episode():
    adapter = make("qscape/ProbeDiscount-v0")
    adapter.reset()
    adapter.step(np.zeros((1, 1)))
    adapter.reset()
    finished = [episode for _ in range(2) for episode in adapter.step(np.zeros((1, 1))).finished]
    assert [(e.length, e.ret, e.success) for e in finished] == [(2, 1.0, None)]


def test_asynchronous_environments_do_what_synchronous_ones_do():
    """Also after a snapshot was put back in the middle of their episodes."""
    args = {"max_episode_steps": 7}
    both = [make("Pendulum-v1", 2, args, seed=3, vectorise=how) for how in ("sync", "async")]
    np.testing.assert_array_equal(*(adapter.reset() for adapter in both))
    walk = np.random.default_rng(0).uniform(-1, 1, (20, 2, 1)).astype(np.float32)
    for k, action in enumerate(walk):
        sync, other = (adapter.step(action) for adapter in both)
        for a, b in zip(jax.tree.leaves(sync), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)
        if k == 9:
            saved = take(both[1])
    assert saved.meta["exact"], saved.meta["why"]
    assert both[1].time_limit == 7
    assert both[1].is_host_only
    assert restore(both[1], saved) == ""
    assert both[1].statistics.episodes.tolist() == [1, 1]
    for action in walk[10:]:
        again = both[1].step(action)
    for a, b in zip(jax.tree.leaves(sync), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    both[1].close()
    assert not any(process.is_alive() for process in both[1].env.processes)


def test_a_reset_that_another_process_still_owes_begins_new_episodes():
    """Under next-step autoreset; otherwise the restored environment would be stepped past its end."""
    made = make(Counter, 2, seed=5, autoreset=AutoresetMode.NEXT_STEP, vectorise="async")
    with contextlib.closing(made) as adapter:
        adapter.reset()
        for _ in range(9):
            adapter.step(np.zeros((2, 1), np.float32))
            owed, saved = adapter.statistics.resetting.any(), take(adapter)
            assert saved.meta["exact"] is not bool(owed)
            if owed:
                assert "waits for its reset" in saved.meta["why"]
                break
        assert restore(adapter, saved) == saved.meta["why"]
        assert (adapter.observation[:, 1] == 0).all()


class Faulty(Counter):
    """Breaks in a way that no pickle can tell, in one of its copies or in all."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        if how == "make" and multiprocessing.parent_process() is not None:
            raise OSError("the port is taken")

    def step(self, action):
        class Local(Exception):
            pass

        if self.how == "step":
            raise Local("the arm\nfell off")
        os._exit(3)


@pytest.mark.parametrize(
    ("how", "code", "field", "named"),
    [
        slow("make", "unmakeable-env", "envs", ("Faulty", "the port is taken")),
        ("step", "broken-env", None, ("step 1", "(Local: the arm fell off)")),
        slow("exit", "broken-env", None, ("environment", "code 3")),
        slow("send", "conflict", "envs", ("2", "pickle")),
    ],
)
def test_a_faulty_environment_in_another_process_is_one_sentence(how, code, field, named, capfd):

    def run():
        args = {"how": threading.Lock() if how == "send" else how}
        with contextlib.closing(make(Faulty, 2, args, vectorise="async")) as adapter:
            adapter.reset()
            adapter.step(np.zeros((2, 1)))

    with refused(code, *named, field=field):
        run()
    assert not multiprocessing.active_children()
    assert "Error" not in capfd.readouterr().err  # no traceback of a process


class Echo(gym.Env):
    """Ends after one step and remembers the action it got."""

    def __init__(self, action_space, observation_space=None, observation=None, reward=0.0, table=None):
        self.action_space = action_space
        box = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.observation_space = box if observation_space is None else observation_space
        self.shown = np.zeros(3) if observation is None else observation
        self.reward = reward
        if table is not None:
            self.action_table = table

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros_like(self.shown) if isinstance(self.shown, np.ndarray) else self.shown, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.got = action
        return self.shown, self.reward, False, False, {}


def echoed(space, *actions, **more):
    env = Echo(space, **more)
    adapter = make(env)
    adapter.reset()
    answers = []
    for action in actions:
        adapter.step(np.array([action], np.float32))
        answers.append(env.got)
    return adapter, answers


def test_actions_reach_asymmetric_bounds_of_any_shape_and_are_clipped():
    low = np.array([[-1, 0, 10], [-4, -0.5, 2]])
    high = np.array([[1, 8, 30], [-2, 0.25, 2.5]])
    adapter, got = echoed(spaces.Box(low, high, dtype=np.float64), [-1] * 6, [1] * 6, [0] * 6, [3] * 6)
    assert adapter.spec.action_size == 6
    np.testing.assert_allclose(got, [low, high, (low + high) / 2, high])


def test_whole_numbers_are_rounded_to_the_nearest():
    _, got = echoed(spaces.Box(0, 10, (2,), np.int64), [0.09, 0.11], [-1, 1])
    np.testing.assert_array_equal(got, [[5, 6], [0, 10]])
    assert got[0].dtype == np.int64


@given(st.floats(-1, 1, width=32), st.sampled_from([1.0, 0.4, 2.0]), st.integers(1, 4))
def test_actions_stay_inside_and_unit_bounds_change_nothing(action, bound, size):
    _, (got,) = echoed(spaces.Box(-bound, bound, (size,), np.float32), [action] * size)
    assert np.abs(got).max() <= np.float32(bound)
    if bound == 1.0:
        np.testing.assert_array_equal(got, np.full(size, action, np.float32))


def test_a_table_maps_vectors_to_the_nearest_action():
    table = np.array([[0, 5, 100], [10, 5, 100], [10, 5, 300], [0, 5, 300]])
    space = spaces.Discrete(4, start=2)
    adapter, got = echoed(
        space, [-1, 0, -1], [0.9, 0.7, -0.2], [1, 0, 1], [-0.3, 0, 0.1], [0, 0, 0], table=table
    )
    np.testing.assert_array_equal(adapter.spec.table, [[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]])
    assert adapter.spec.action_size == 3
    assert got == [2, 3, 4, 5, 2]  # the last is as near to all: the lowest


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (np.zeros((3, 2)), "[4, d]"),
        (np.zeros(4), "[4, d]"),
        (np.array([[0.0], [1], [2], [np.nan]]), "NaN"),
        (np.array([[0.0, 1], [1, 1], [2, 1], [1, 1]]), "equal"),
    ],
)
def test_bad_tables_are_refused(table, named):
    with refused("wrong-env", "action_table", named):
        make(Echo(spaces.Discrete(4), table=table))


@pytest.mark.parametrize(
    ("env", "newest"), [("Pendulum", "Pendulum-v1"), ("restricted/Hopper", "restricted/Hopper-v1")]
)
def test_a_new_run_needs_the_version_of_its_environment(env, newest):
    with refused("unknown-name", newest, field="env"):
        refuse_without_version(env)
    build_env(env, {}).close()  # what was recorded without one is still made


def test_actions_that_an_argument_makes_a_box_are_told():
    pytest.importorskip("Box2D")
    with refused("unfit-env", "LunarLander-v3", "Discrete", "continuous=True"):
        make("LunarLander-v3")


def test_nested_observations_are_flattened_as_gymnasium_does():
    space = spaces.Dict(
        {
            "z": spaces.Box(-9, 9, (2, 2)),
            "a": spaces.Dict({"y": spaces.Box(-9, 9, ()), "x": spaces.Box(0, 9, (3,), np.int64)}),
        }
    )
    space.seed(0)
    shown = space.sample()
    flat = spaces.utils.flatten(space, shown).astype(np.float32)
    action = spaces.Box(-1, 1, (1,))
    for envs in (1, 2):
        adapter = make(lambda: Echo(action, space, shown), envs)
        assert adapter.spec.observation_size == 8
        np.testing.assert_array_equal(adapter.reset(), [flat] * envs)
        np.testing.assert_array_equal(adapter.step(np.zeros((envs, 1))).observation, [flat] * envs)


BOX = spaces.Box(-1, 1, (1,))


@pytest.mark.parametrize(
    ("action", "observation", "named"),
    [
        (BOX, spaces.Discrete(3), "FlattenObservation"),
        (BOX, spaces.Dict({}), "empty"),
        (spaces.Box(np.array([-1, -np.inf]), np.array([1, 1])), None, "dimension 1 of the action"),
        (spaces.Discrete(3), None, "action_table"),
        (spaces.MultiDiscrete([99, 99, 99]), None, "970,299"),
        (spaces.MultiBinary(19), None, "524,288"),
        (spaces.Tuple([BOX]), None, "Tuple actions"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(action, observation, named):
    with refused("unfit-env", named):
        make(Echo(action, observation))


def test_the_remedy_for_unbounded_actions_works():
    env = Echo(spaces.Box(-np.inf, np.inf, (1,)))
    adapter = make(gym.wrappers.TransformAction(env, lambda a: a, spaces.Box(-3, 5, (1,))))
    adapter.reset()
    adapter.step(np.ones((1, 1)))
    assert env.got == 5


@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize(
    ("observation", "reward", "named"),
    [
        (np.array([0, np.nan, 0]), 0.0, ("observation[1]", "nan", "environment 0", "step 1", "episode 1")),
        (np.array([0, 0, -np.inf]), 0.0, ("observation[2]", "-inf")),
        (None, np.inf, ("reward", "inf", "environment 0")),
    ],
)
def test_numbers_that_are_not_finite_stop_the_run(envs, observation, reward, named):
    adapter = make(lambda: Echo(BOX, observation=observation, reward=reward), envs)
    adapter.reset()
    with refused("not-finite", *named):
        adapter.step(np.zeros((envs, 1)))


def test_the_error_names_the_environment_that_failed():
    rewards = iter([0.0, 0.0, np.nan])
    adapter = make(lambda: Echo(BOX, reward=next(rewards)), 3)
    adapter.reset()
    with refused("not-finite", "reward", "nan", "environment 2"):
        adapter.step(np.zeros((3, 1)))


def test_an_action_that_is_not_finite_or_of_another_shape_is_the_agents_fault():
    adapter = make("qscape/ProbeAction-v0")
    adapter.reset()
    with refused("not-finite", "agent", "action[0]", "nan"):
        adapter.step(np.full((1, 1), np.nan))
    with refused("mismatch", "(1, 1)", "(1,)"):
        adapter.step(np.zeros(1))


@pytest.mark.parametrize(
    ("env_id", "code", "named"),
    [
        ("halfcheeta-v5", "unknown-name", ("HalfCheetah-v5",)),
        ("HOPPER-v9", "unknown-name", ("Hopper-v5",)),
        ("probetimelimit", "unknown-name", ("qscape/ProbeTimeLimit-v0",)),
        ("qwxyz-v0", "unknown-name", ("package:Name-v0",)),
        ("", "unknown-name", ("package:Name-v0",)),
        ("no_such_package:Env-v0", "unmakeable-env", ("'no_such_package'", "in the current folder")),
        ("no_such_package:Env", "unmakeable-env", ("'no_such_package'", "in the current folder")),
        (
            "MiniGrid-Empty-5x5-v0",
            "missing-package",
            ('pip install "minigrid" and write minigrid:MiniGrid-',),
        ),
        ("panda_gym:PandaReach-v3", "missing-package", ('pip install "panda-gym"',)),
        ("Ant-v3", "unmakeable-env", ("Ant-v3",)),  # moved, or, with gymnasium_robotics, registered again
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_unknown_ids_are_answered_with_the_nearest(env_id, code, named):
    with refused(code, *named, field="env"):
        make(env_id)


@pytest.mark.parametrize(
    ("env_id", "package", "extra"),
    [
        ("LunarLanderContinuous-v3", "Box2D", "qscape[box2d]"),
        ("FetchReach-v4", "gymnasium_robotics", "qscape[robotics]"),
        ("ale_py:ALE/Pong-v5", "ale_py", "qscape[atari]"),
    ],
)
def test_a_missing_package_is_answered_with_the_extra(env_id, package, extra, monkeypatch):
    imported = ("gymnasium.envs.box2d", "gymnasium_robotics.")
    for name in [name for name in sys.modules if name.startswith(imported)]:
        monkeypatch.delitem(sys.modules, name)  # another test has imported them with their package
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with refused("missing-package", env_id, extra, field="env"):
        make(env_id)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "FetchReach-v4"])
def test_a_mujoco_that_cannot_be_imported_is_told_with_the_command_that_mends_it(
    env_id, tmp_path, monkeypatch
):
    pytest.importorskip("gymnasium_robotics")
    (tmp_path / "mujoco").mkdir()
    (tmp_path / "mujoco" / "__init__.py").write_text("import mujoco._gone")
    monkeypatch.syspath_prepend(tmp_path)
    broken = ("mujoco", "gymnasium.envs.mujoco", "gymnasium_robotics")
    for name in [name for name in sys.modules if name.startswith(broken)]:
        monkeypatch.delitem(sys.modules, name)
    with refused("wrong-version", "_gone", "pip install ", "mujoco=="):
        make(env_id)


def test_a_robot_that_its_mujoco_cannot_make_is_told_with_the_versions(monkeypatch):
    pytest.importorskip("gymnasium_robotics")

    def fail(env_id, **args):
        raise AssertionError

    monkeypatch.setattr(gym, "make", fail)  # what MuJoCo 3.12 and later do to gymnasium-robotics 1.4.2
    versions = (f"{name} {version(name)}" for name in ("gymnasium-robotics", "mujoco"))
    named = ("HandReach-v3", *versions, "(AssertionError)", "<3.12")
    for args in ({}, {"max_episode_steps": 9}):
        with refused("wrong-version", *named):
            make("HandReach-v3", env_args=args)


def test_wrong_arguments_are_answered_with_the_right_ones():
    with refused("unmakeable-env", "bogus", "ctrl_cost_weight", field="env_args"):
        make("HalfCheetah-v5", env_args={"bogus": 1})
    with refused("unmakeable-env", "shortest", "longest", field="env_args"):
        make(PROBES["qscape/ProbeTimeLimit-v0"], env_args={"shortest": 1})
    with refused("out-of-range", "1"):
        make("qscape/ProbeTimeLimit-v0", env_args={"longest": 1})
    with refused("conflict", field="env_args"):
        make(Counter(), env_args={"reuse": True})
    with refused("conflict", field="env_args"):
        make(Counter(), envs=2)
    with refused("out-of-range", "0", field="envs"):
        make("Pendulum-v1", envs=0)


@pytest.mark.parametrize(
    ("env_id", "wrong", "right"),
    [
        ("recsim/500-v1", {"items": "many"}, {"items": np.int64(64)}),
        ("recsim/500-v1", {"items": 100.5}, {"items": 64, "max_episode_steps": 5}),
        ("recsim/500-v1", {"items": True}, {}),
        ("recsim/10k-v0", {"kappa": float("nan"), "items": 9}, {"kappa": 1, "items": 9}),
        ("restricted/Hopper-v1", {"factor": "abc"}, {"factor": np.float32(2)}),
        ("restricted/Hopper-v1", {"penalty": True}, {"penalty": None}),
        ("restricted/Any-v0", {"env": "Pendulum-v1", "count": "a"}, {"env": "Pendulum-v1"}),
        ("mineworld/MineWorld-v1", {"layout": "x"}, {"layout": 3}),
        ("goal/Reach-v0", {"ends_at_goal": 1}, {"ends_at_goal": True}),
    ],
)
def test_arguments_of_own_environments_have_their_types(env_id, wrong, right):
    with refused("wrong-value", env_id, field="env_args"):
        build_env(env_id, wrong)
    build_env(env_id, right).close()


def test_what_an_edge_tells_of_its_task():
    adapter = make("HalfCheetah-v5")
    assert (adapter.env_id, adapter.envs, adapter.time_limit, adapter.reward_threshold) == (
        "HalfCheetah-v5",
        1,
        1000,
        4800.0,
    )
    assert (adapter.spec.observation_size, adapter.spec.action_size, adapter.spec.table) == (17, 6, None)
    assert make("gymnasium:Pendulum-v1", 2, {"max_episode_steps": 9}).time_limit == 9
    limited = gym.wrappers.TimeLimit(Counter(), 4)
    assert (make(limited).time_limit, make(limited).env_id) == (4, "Counter")
    assert make(Counter).time_limit is None


def test_a_frame_is_a_picture():
    class Painter(Counter):
        render_mode = "rgb_array"

        def render(self):
            return np.full((4, 6, 3), 7, np.uint8)

    for envs in (1, 2):
        adapter = make(Painter, envs)
        adapter.reset()
        assert adapter.render_frame().shape == (4, 6, 3)
    with refused("conflict", 'render_mode="rgb_array"'):
        make(Counter).render_frame()


@pytest.mark.parametrize("env_id", PROBES)
def test_probes_are_proper_environments(env_id):
    env = gym.make(env_id)
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", PROBES)
def test_the_values_of_the_probes_fulfil_the_bellman_equation(env_id):
    """Q(s, a) = r + γ max Q(s', ·), where only a real end cuts the sum, at random actions."""
    probe, discount, adapter = PROBES[env_id], 0.9, make(env_id)
    random, observation = np.random.default_rng(1), adapter.reset()
    best = np.linspace(-1, 1, 401)
    seen = set()
    for _ in range(60):
        action = random.uniform(-1, 1, (1, 1)).astype(np.float32)
        step = adapter.step(action)
        new = step.transition
        later = probe.q(np.full(401, new.next_observation[0, 0]), best, discount).max()
        target = new.reward[0] + discount * later * (not new.terminated[0])
        np.testing.assert_allclose(probe.q(observation[0], action[0], discount), target, rtol=1e-5, atol=1e-6)
        climbed = best[probe.q(np.full(401, observation[0, 0]), best, discount).argmax()]
        if (known := probe.best_action(observation[0])) is not None:
            np.testing.assert_allclose(known, climbed, atol=1e-6)
        seen.add((float(observation[0, 0]), bool(new.terminated[0]), bool(new.truncated[0])))
        observation = step.observation
    assert isinstance(adapter, EnvAdapter)
    if "TimeLimit" in env_id:
        assert seen == {(0.0, False, False), (0.0, False, True)}
    else:
        assert any(terminated for _, terminated, _ in seen)


@pytest.mark.parametrize(
    ("env_id", "envs"), [("Pendulum-v1", 1), ("HalfCheetah-v5", 2), ("CartPole-v1", 3), ("given", 3)]
)
def test_environments_of_envpool_are_those_of_gymnasium(env_id, envs):
    """No transition reaches across a reset, and a seed gives the same episodes again."""
    envpool = pytest.importorskip("envpool")
    args = {"max_episode_steps": 6}
    if env_id == "given":
        made = envpool.make("Pendulum-v1", env_type="gymnasium", num_envs=envs, **args)
        adapter = make(made)
    else:
        adapter = make(env_id, envs, args, seed=3, vectorise="envpool", index_actions=True)
        spec, plain = adapter.spec, make(env_id, envs, args, index_actions=True).spec
        assert (spec.observation_size, spec.action_size, spec.choices, spec.time_limit) == (
            plain.observation_size,
            plain.action_size,
            plain.choices,
            6,
        )
        assert adapter.is_host_only
    action = np.zeros((envs, adapter.spec.action_size), np.float32)
    first = adapter.reset()
    rows = [adapter.step(action) for _ in range(22)]
    assert [e.length for row in rows for e in row.finished] == [6] * 3 * envs
    for k in np.flatnonzero([row.transition.truncated.any() for row in rows]):
        assert (rows[k].transition.next_observation != rows[k + 1].observation).any()
        assert not rows[k + 1].transition.valid.any()
    if env_id != "given":
        adapter.reseed(3)
        np.testing.assert_array_equal(adapter.reset(), first)
        assert "EnvPool" in take(adapter).meta["why"]
    adapter.close()


def test_what_envpool_has_not_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with refused("missing-package", "qscape[envpool]"):
        make("Pendulum-v1", 2, vectorise="envpool")
    other = spaces.Box(-3, 3, (1,))

    class Made:
        single_observation_space, single_action_space = gym.make("Pendulum-v1").observation_space, other

    pool = SimpleNamespace(list_all_envs=lambda: ["Pendulum-v1"], make=lambda *_, **more: Made())
    monkeypatch.setitem(sys.modules, "envpool", pool)
    with refused("unknown-name", "CartPole-v1", field="env"):
        make("CartPole-v1", 2, vectorise="envpool")
    with refused("mismatch", "Pendulum-v1", "action_space"):
        make("Pendulum-v1", 2, vectorise="envpool")
    pool.make = lambda *_, gravity: None
    with refused("unmakeable-env", "Pendulum-v1", "3.0", field="env_args"):
        make("Pendulum-v1", 2, {"g": 3.0}, vectorise="envpool")
