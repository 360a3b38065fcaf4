"""What environments answer: infos of any kind, success, rewards, flags, reset modes. Values are by hand."""

import contextlib
import functools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from qscape.envs import make
from qscape.envs.adapter import find_reset_mode
from qscape.errors import RunError, UsageError


class Stranger(gym.Env):
    """Counts its steps; an episode has five. What it answers is chosen by `says(copy, step)`."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    made = 0

    def __init__(self, says=lambda copy, step: {}, reward=1.0, ends=False, shows=None):
        self.copy, Stranger.made = Stranger.made, Stranger.made + 1
        self.says, self.reward, self.ends, self.shows = says, reward, ends, shows
        self.at, self.kept = 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self.observe(), self.says(self.copy, 0)

    def step(self, action):
        self.kept.append(action)
        self.at += 1
        return self.observe(), self.reward, self.ends, self.at == 5, self.says(self.copy, self.at)

    def observe(self):
        return np.full(1, self.at, np.float32) if self.shows is None else self.shows


class Odd:
    """No number, no array, and its text raises."""

    def __repr__(self):
        raise RuntimeError("no text")


# What copy c says in step t. Gymnasium packs the copies' values into one array of the first one's kind.
INFOS = {
    "type of copies": lambda c, t: {"x": 1 if c else "one"},
    "type of steps": lambda c, t: {"x": t if t % 2 else f"{t}"},
    "shape of copies": lambda c, t: {"x": np.zeros(2 + c)},
    "axes of copies": lambda c, t: {"x": np.zeros((2,) * (c + 1))},
    "shape of steps": lambda c, t: {"x": np.zeros(t)},
    "length of lists": lambda c, t: {"x": [0] * (c + t)},
    "dict or number": lambda c, t: {"x": {"y": c} if c else 3},
    "deep dicts": lambda c, t: {"x": {"y": {"z": np.zeros(1 + c)}}},
    "keys that are no text": lambda c, t: {c: 1, (t, "a"): 2, None: 3},
    "none or number": lambda c, t: {"x": None if c else 1.0},
    "too large for int64": lambda c, t: {"x": 0 if c == 0 else 2**70},
    "negative after unsigned": lambda c, t: {"x": np.uint8(1) if c == 0 else np.int64(-5)},
    "complex after real": lambda c, t: {"x": 1.0 if c == 0 else 1j},
    "object without text": lambda c, t: {"x": Odd()},
    "empty arrays": lambda c, t: {"x": np.zeros(0) if c == 0 else np.zeros(3)},
    "records": lambda c, t: {"x": np.zeros(1, [("a", int)]) if c == 0 else np.zeros(1)},
    "own final_obs": lambda c, t: {"final_obs": "mine", "final_info": 7},
}
WAYS = ["one", "sync", *(f"given {mode.name}" for mode in AutoresetMode), "wrapped"]


def edge(way, says=lambda c, t: {}, **answers):
    """An adapter of two strangers, or of one."""
    Stranger.made = 0
    build = functools.partial(Stranger, says, **answers)
    if way.startswith("given"):
        return make(SyncVectorEnv([build] * 2, autoreset_mode=AutoresetMode[way.split()[1]]), 2)
    if way == "wrapped":
        inner = SyncVectorEnv([build] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
        return make(gym.wrappers.vector.RecordEpisodeStatistics(inner), 2)
    return make(build, 1 if way == "one" else 2)


def play(adapter, steps=13):
    """Episodes of an adapter."""
    adapter.reset()
    size = adapter.envs, adapter.spec.action_size
    return [e for _ in range(steps) for e in adapter.step(np.zeros(size, np.float32)).finished]


@pytest.mark.parametrize("kind", INFOS)
@pytest.mark.parametrize("way", WAYS)
def test_infos_may_be_anything(way, kind):
    if way == "wrapped" and kind in ("own final_obs", "keys that are no text"):
        pytest.skip("Gymnasium's wrapper itself reads these")
    with contextlib.closing(edge(way, INFOS[kind])) as adapter:
        episodes = play(adapter)
    assert {(e.length, e.ret, e.success) for e in episodes} == {(5, 5.0, None)}
    assert len(episodes) == 2 * adapter.envs


def _many(c, t):
    """All kinds at once that can be sent to another process."""
    left_out = ("object without text", "own final_obs")
    return {f"{k}.{key}": v for k, f in INFOS.items() if k not in left_out for key, v in f(c, t).items()}


def test_infos_of_other_processes_may_be_anything():
    with contextlib.closing(make(functools.partial(Process, _many), 2, vectorise="async")) as adapter:
        assert {(e.length, e.ret, e.success) for e in play(adapter)} == {(5, 5.0, 0.25)}


class Process(Stranger):
    """A stranger in a process of its own, which knows its number by its seed."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.copy = seed
        return super().reset(seed=seed)

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, info | {"success": [0, 0.25][self.at % 2]}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", ["success", "is_success"])
def test_success_keeps_its_fraction(way, key):
    """One copy reports whole numbers and one a fraction, and no step is rounded to the kind of another."""
    with contextlib.closing(edge(way, functools.partial(_succeeds, key))) as adapter:
        best = {e.env: e.success for e in play(adapter)}
    assert best == ({0: 0.0} if way == "one" else {0: 0.0, 1: 0.6})


def _succeeds(key, c, t):
    return {key: [0, np.array([t * 0.2 - 0.4])][c % 2]}


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (True, 1.0),
        (np.bool_(False), 0.0),
        (np.float32(0.5), 0.5),
        ([1], 1.0),
        (np.array(0.25), 0.25),
        (np.array([[0.75]]), 0.75),
        (None, None),
        ([], None),
        ([None], None),
    ],
)
def test_forms_of_success(value, read):
    for way in ("one", "sync", "wrapped"):
        assert {e.success for e in play(edge(way, lambda c, t: {"success": value}))} == {read}


@pytest.mark.parametrize("value", ["yes", {"a": 1}, 1j, Odd()])
def test_success_that_is_no_number(value):
    for way in ("one", "sync", "wrapped"):
        adapter = edge(way, lambda c, t: {"is_success": value})
        with pytest.raises(RunError):
            play(adapter)


@pytest.mark.parametrize(
    "reward", [np.ones(1), np.ones((1, 1)), [1], np.float32(1), np.array(1), 1, True, np.int8(1)]
)
@pytest.mark.parametrize("way", WAYS)
def test_a_reward_of_one_entry_is_a_number(way, reward):
    if way == "wrapped" and np.ndim(reward):
        return  # Gymnasium packs these before they can be read
    with contextlib.closing(edge(way, reward=reward)) as adapter:
        assert {e.ret for e in play(adapter)} == {5.0}


@pytest.mark.parametrize("reward", [np.ones(2), [1.0, 2.0], None, "1", 1j, np.ma.masked, [], {"a": 1.0}])
@pytest.mark.parametrize("way", ["one", "sync", "given NEXT_STEP"])
def test_other_rewards_are_refused_in_the_same_words(way, reward):
    words = set()
    for one in ("one", way):
        with pytest.raises(RunError) as caught:
            play(edge(one, reward=reward))
        words.add(str(caught.value))
    assert len(words) == 1
    assert "broke" not in words.pop()


@pytest.mark.parametrize("flag", [None, "no", 2, np.zeros(2, bool), []])
def test_flags_must_be_flags(flag):
    for way in ("one", "sync"):
        with pytest.raises(RunError):
            play(edge(way, ends=flag))


@pytest.mark.parametrize("flag", [0, 0.0, np.bool_(False), np.zeros(1, bool), np.array(0)])
def test_forms_of_flags(flag):
    for way in ("one", "sync"):
        assert {e.length for e in play(edge(way, ends=flag))} == {5}


@pytest.mark.parametrize(
    "shown", [np.ones(1, complex), np.ma.array([1.0], mask=[True]), np.array(["1"]), np.array([b"1"])]
)
def test_observations_that_would_lose_something(shown):
    for way in ("one", "sync", "given NEXT_STEP"):
        with pytest.raises(RunError):
            edge(way, shows=shown).reset()


def test_each_copy_gets_an_action_of_its_own():
    adapter = edge("sync")
    adapter.reset()
    actions = np.array([[0.5], [-0.5]], np.float32)
    adapter.step(actions)
    one, other = (env.kept[0] for env in adapter.env.envs)
    assert one.base is None
    assert not np.shares_memory(one, other)
    assert (one, other) == (0.5, -0.5)


class ByHand(gym.vector.VectorEnv):
    """Two counters whose reset mode is written in one of the ways that packages write it."""

    single_observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    single_action_space = spaces.Box(-1, 1, (1,), np.float32)
    num_envs = 2

    def __init__(self, mode, said):
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, 2)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, 2)
        self.mode, self.at = mode, np.zeros(2)
        if said == "attribute":
            self.autoreset_mode = mode
        if said in (
            "attribute",
            "class's dictionary",
        ):  # as ale-py: it may be Gymnasium's own, of all classes
            self.metadata["autoreset_mode"] = mode
        if said == "own dictionary":
            self.metadata = {"autoreset_mode": mode}
        if said == "text":
            self.metadata = {"autoreset_mode": mode.value}

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(2, bool))
        self.at = np.where(mask, 0, self.at)
        return self.shown(), {}

    def step(self, actions):
        over = self.at == 3
        self.at = np.where(over & (self.mode is AutoresetMode.NEXT_STEP), 0, self.at + 1)
        ends, info = self.at == 3, {}
        if self.mode is AutoresetMode.SAME_STEP and ends.any():
            info = {"final_obs": list(self.shown()), "_final_obs": ends}
            self.at = np.where(ends, 0, self.at)
        return self.shown(), np.ones(2), ends, np.zeros(2, bool), info

    def shown(self):
        return self.at[:, None].astype(np.float32)


@pytest.fixture
def clean():
    """Gymnasium's dictionary of all classes without one of their own, as it was."""
    before = dict(gym.vector.VectorEnv.metadata)
    yield
    gym.vector.VectorEnv.metadata.clear()
    gym.vector.VectorEnv.metadata.update(before)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("said", ["attribute", "own dictionary", "text"])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_vector_environment_is_read_in_its_own_mode_beside_others(mode, said):
    adapter = make(ByHand(mode, said), 2)
    others = [ByHand(other, way) for other in AutoresetMode for way in ("attribute", "class's dictionary")]
    assert all(find_reset_mode(env) is env.mode for env in others[::2])
    assert find_reset_mode(gym.vector.VectorWrapper(ByHand(mode, said))) is mode
    adapter.reset()
    before, rows = adapter.observation, []
    for _ in range(9):
        step = adapter.step(np.zeros((2, 1), np.float32))
        made = step.transition
        valid = np.full(2, True) if made.valid is None else made.valid
        after = made.next_observation
        rows += [(b, a) for b, a, v in zip(before[:, 0], after[:, 0], valid, strict=True) if v]
        before = step.observation
    assert set(rows) == {(0, 1), (1, 2), (2, 3)}


@pytest.mark.usefixtures("clean")
def test_what_another_wrote_into_gymnasiums_dictionary_is_no_word():
    gym.vector.VectorEnv.metadata["autoreset_mode"] = AutoresetMode.SAME_STEP
    with pytest.raises(UsageError):
        make(ByHand(AutoresetMode.NEXT_STEP, "nowhere"), 2)
    with pytest.raises(UsageError):
        make(ByHand(AutoresetMode.NEXT_STEP, "class's dictionary"), 2)
