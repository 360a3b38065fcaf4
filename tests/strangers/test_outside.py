"""State outside the instance: each copy has its own, saves hold it, and the caller's stays as it was."""
# ruff: noqa: NPY002 (the global generator is what is tested)

import contextlib
import functools
import random
from collections import deque

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from qscape.envs import make
from qscape.envs.snapshot import restore, take

BOX, SPACE = spaces.Box(-1, 1, (1,), np.float32), spaces.Dict(a=spaces.Box(0, 1, (1,), np.float64))
RNG, OLD, LIST, TABLE, ARRAY, COUNT, ITEMS, QUEUE = (
    np.random.default_rng(3),
    np.random.RandomState(3),
    [0.0],
    {"n": 0, "deep": [1]},
    np.zeros(2),
    0,
    {0},
    deque([0.0], maxlen=3),
)


class Base(gym.Env):
    """Shows a number that it keeps or draws somewhere else, in the reset and in each of seven steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = BOX
    level, seen, rng, drawn = 0, [], np.random.default_rng(5), 0

    def __init__(self, late=0):
        self.at, self.late, self.calls = 0, late, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self.show(), {}

    def step(self, action):
        self.at += 1
        return self.show(), 0.0, False, self.at == 7, {}

    def show(self):
        self.calls += 1
        return np.array([self.draw() if self.calls > self.late else 0.0], np.float64)


def count():
    """Add one to a number of this module."""
    global COUNT
    COUNT += 1
    return COUNT


def grow(items):
    """Append to a list, and return how long it is."""
    items.append(0.0)
    return float(len(items))


class NumpyLegacy(Base):
    def draw(self):
        return np.random.normal()  # draws two numbers and keeps one


class Python(Base):
    def draw(self):
        return random.gauss(0, 1) + random.random()


class Both(Base):
    def draw(self):
        return random.random() + np.random.choice(50) + np.random.rand()


class Reseeds(Base):
    def reset(self, *, seed=None, options=None):
        np.random.shuffle(np.arange(9))
        return super().reset(seed=seed)

    draw = NumpyLegacy.draw


class Sampled(Base):
    def draw(self):
        return self.action_space.sample()[0]


class OwnSpace(Base):
    def __init__(self, late=0):
        super().__init__(late)
        self.observation_space = spaces.Box(-1, 1, (1,), np.float64)

    def draw(self):
        return self.observation_space.sample()[0]


class GlobalSpace(Base):
    def draw(self):
        return SPACE.sample()["a"][0]


class ClassCounter(Base):
    def draw(self):
        type(self).level += 1
        return self.level


class BaseCounter(Base):
    def draw(self):
        Base.drawn += 1
        return Base.drawn


class ClassList(Base):
    def draw(self):
        return grow(self.seen)


class ClassGenerator(Base):
    def draw(self):
        return self.rng.normal()


class Renewed(Base):
    goal = None

    def draw(self):
        if Renewed.goal is None or self.at == 3:
            Renewed.goal = np.full(1, self.np_random.normal())
        Renewed.goal += 1
        return Renewed.goal[0]


class GlobalGenerator(Base):
    def draw(self):
        return RNG.normal() + OLD.normal()


class GlobalCounter(Base):
    def draw(self):
        return count()


class GlobalList(Base):
    def draw(self):
        return grow(LIST)


class GlobalDict(Base):
    def draw(self):
        TABLE["n"] += 1
        TABLE["deep"].append(TABLE["n"])
        return sum(TABLE["deep"])


class GlobalArray(Base):
    def draw(self):
        ARRAY[1] += 0.5
        return ARRAY.sum()


class GlobalSet(Base):
    def draw(self):
        ITEMS.add(len(ITEMS))
        return len(ITEMS)


class GlobalDeque(Base):
    def draw(self):
        QUEUE.append(QUEUE[-1] + 1.0)
        return sum(QUEUE)


class ByItsNumber(Base):
    """Draws a goal of its own when it is made."""

    def __init__(self, late=0):
        super().__init__(late)
        self.goal = np.random.normal() + random.random()

    def draw(self):
        return self.goal


KEPT = [
    NumpyLegacy, Python, Both, Reseeds, Sampled, OwnSpace, GlobalSpace, ClassCounter, BaseCounter, ClassList,
    ClassGenerator, Renewed, GlobalGenerator, GlobalCounter, GlobalList, GlobalDict, GlobalArray, GlobalSet,
    GlobalDeque, ByItsNumber,
]  # fmt: skip


def play(adapter, steps, first=True):
    """What each copy shows `[steps, E]`."""
    rows = [adapter.reset()] if first else []
    action = np.zeros((adapter.envs, 1), np.float32)
    return np.array([*rows, *(adapter.step(action).observation for _ in range(steps))])[..., 0]


@pytest.fixture(autouse=True)
def untouched():
    """Nothing outside is changed by a test."""
    np.random.seed(11)
    random.seed(11)
    np.random.normal()  # one number is kept
    before = outside()
    yield
    assert outside() == before


def outside():
    """What is outside, as text."""
    spaces_ = [space.np_random.bit_generator.state for space in (BOX, SPACE, SPACE["a"])]
    of_class = (
        Base.level,
        Base.seen,
        Base.rng.bit_generator.state,
        Base.drawn,
        ClassCounter.level,
        Renewed.goal,
    )
    here = RNG.bit_generator.state, OLD.get_state(), LIST, TABLE, ARRAY, COUNT, ITEMS, QUEUE
    return repr((np.random.get_state(), random.getstate(), spaces_, of_class, here))


@pytest.mark.parametrize("kind", KEPT)
def test_a_seed_gives_the_same_numbers_alone_in_a_group_and_again(kind):
    alone = [play(make(kind, seed=s), 20)[:, 0] for s in (4, 5)]
    np.testing.assert_array_equal(play(make(kind, 2, seed=4), 20), np.stack(alone, 1))
    with contextlib.closing(make(kind, seed=9)) as other:
        play(other, 3)
        np.testing.assert_array_equal(play(make(kind, seed=5), 20)[:, 0], alone[1])


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("envs", [1, 2])
def test_a_restored_copy_goes_on_to_the_bit(kind, envs):
    adapter = make(kind, envs, seed=4)
    play(adapter, 10)
    snapshot = take(adapter)
    assert snapshot.meta["exact"], snapshot.meta["why"]
    on = play(adapter, 20, first=False)
    other = make(kind, envs, seed=77)
    assert restore(other, snapshot) == ""
    np.testing.assert_array_equal(play(other, 20, first=False), on)


@pytest.mark.parametrize("kind", [NumpyLegacy, Python, ClassCounter, GlobalGenerator])
def test_environments_in_processes_and_given_ones_keep_theirs_too(kind):
    alone = np.stack([play(make(kind, seed=s), 10)[:, 0] for s in (4, 5)], 1)
    with contextlib.closing(make(kind, 2, seed=4, vectorise="async")) as adapter:
        np.testing.assert_array_equal(play(adapter, 10), alone)
        snapshot = take(adapter)
        on = play(adapter, 9, first=False)
    with contextlib.closing(make(kind, 2, seed=7, vectorise="async")) as adapter:
        assert restore(adapter, snapshot) == ""
        np.testing.assert_array_equal(play(adapter, 9, first=False), on)
    given = SyncVectorEnv([kind] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    np.testing.assert_array_equal(play(make(given, seed=4), 10), alone)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_wrapped_vector_environments_repeat_themselves_and_go_on(mode):
    def wrapped():
        inner = SyncVectorEnv([Both] * 2, autoreset_mode=mode)
        return make(gym.wrappers.vector.RecordEpisodeStatistics(inner), seed=4)

    one, other = wrapped(), wrapped()
    np.testing.assert_array_equal(play(one, 20), play(other, 20))


def test_what_a_callback_sets_reaches_every_copy():
    adapter = make(ClassCounter, 2, seed=4)
    play(adapter, 3)
    ClassCounter.level = 100
    assert play(adapter, 2, first=False).tolist() == [[101, 101], [102, 102]]
    assert ClassCounter.level == 100
    del ClassCounter.level


def test_a_first_change_late_in_training_is_told_once():
    adapter = make(functools.partial(Python, 600), seed=4)
    play(adapter, 500)
    assert adapter.take_warnings() == []
    before = random.getstate()
    play(adapter, 600, first=False)
    random.setstate(before)  # what was drawn before anybody looked
    (sentence,) = adapter.take_warnings()
    assert "changed random late in training" in sentence
    assert adapter.take_warnings() == []


def test_spaces_that_an_environment_seeds_are_left_alone():
    class Seeded(OwnSpace):
        def __init__(self):
            super().__init__()
            self.observation_space.seed(3)

    wanted = spaces.Box(-1, 1, (1,), np.float64, seed=3)
    assert play(make(Seeded, seed=4), 2).ravel().tolist() == [
        np.float32(wanted.sample()[0]) for _ in range(3)
    ]


def test_seed_of_the_global_generators_is_that_of_the_reset():
    wanted = np.random.RandomState(4)
    assert play(make(NumpyLegacy, seed=4), 3).ravel().tolist() == [
        np.float32(wanted.normal()) for _ in range(4)
    ]
