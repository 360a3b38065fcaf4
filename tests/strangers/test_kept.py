"""What environments of other packages hold is no obstacle to an exact resume, or the save says what is."""

import collections
import copy
import datetime
import io
import itertools
import json
import math
import pathlib
import types
from fractions import Fraction

import gymnasium as gym
import mujoco
import numpy as np
import pandas
import pytest
from gymnasium import spaces

from qscape.envs import make
from qscape.envs.snapshot import Snapshot, remember, restore, take

MODEL = (
    "<mujoco><worldbody><body name='b' pos='0 0 1'><freejoint/><geom size='.1'/></body></worldbody></mujoco>"
)


class Base(gym.Env):
    """Shows a number of what it holds; episodes have seven steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self):
        self.at = 0
        self.build()

    def build(self):
        """Make what the constructor makes."""

    def start(self):
        """Make what a reset makes."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        self.start()
        return np.array([self.show()]), {}

    def step(self, action):
        self.at += 1
        return np.array([self.show()]), 0.0, False, self.at == 7, {}


class Frame(Base):
    def build(self):
        days = pandas.date_range("2020", periods=50, tz="UTC")
        self.prices = pandas.DataFrame({"a": np.arange(50.0), "b": ["x", "y"] * 25}, index=days)
        self.volume, self.kinds = self.prices["a"] * 2, self.prices["b"].astype("category")
        self.window = self.prices.iloc[3:9]

    def show(self):
        return (
            self.prices["a"].iloc[self.at]
            + self.volume.iloc[self.at]
            + len(self.kinds)
            + self.window["a"].sum()
        )


class Bytes(Base):
    def start(self):
        self.map, self.board = b"SFFH" * 4, bytearray(16)

    def show(self):
        self.board[self.at] += 1
        self.map = self.map[1:] + self.map[:1]
        return float(self.map[0] + sum(self.board))


class Iterators(Base):
    def build(self):
        self.turns, self.count = itertools.cycle([1.0, 2.0, 5.0]), itertools.count(3, 2)
        self.rows, self.left = iter([float(x) for x in range(99)]), iter(range(99))

    def show(self):
        return next(self.turns) + next(self.count) + next(self.rows) + next(self.left)


class Views(Base):
    def build(self):
        self.state = np.zeros((3, 4), order="F")
        self.pos, self.vel, self.turned = self.state[0], self.state[1:, ::2], self.state.T
        self.zero = np.broadcast_to(np.float64(2), (5,))
        self.hidden = np.arange(12.0).reshape(3, 4)[1]

    def show(self):
        self.pos += 1
        self.vel[:, 1] += self.pos[2]
        self.turned[3, 2] -= 3
        self.hidden[0] += 0.5
        return self.state.sum() + self.vel.sum() + self.zero.sum() + self.hidden.sum()


class Texts(Base):
    def build(self):
        self.names, self.raw = np.array(["ab", "c"]), np.array([b"x", b"yz"])
        self.days = np.array(["2020-01-01", "2021-05-05"], "datetime64[D]")
        self.rows = np.zeros(2, [("at", float, (2,)), ("n", int)])

    def show(self):
        self.names[self.at % 2] = "cd"[self.at % 2]
        self.raw = self.raw[::-1].copy()
        self.days += np.timedelta64(1, "D")
        self.rows["at"][0, 1] += 1
        return float(
            self.days.astype(int).sum() + self.rows["at"].sum() + len(self.raw[0]) + len(self.names[0])
        )


class Values(Base):
    def start(self):
        self.z, self.part, self.day = 1j, Fraction(1, 3), datetime.datetime(2020, 1, 1)
        self.place, self.span, self.tags = pathlib.Path("a"), range(3), frozenset({1, 2})
        self.seen = {0}

    def show(self):
        self.z *= 1j
        self.part += Fraction(1, 7)
        self.day += datetime.timedelta(hours=1)
        self.span = range(self.span.stop + 1)
        self.seen.add(len(self.seen))
        return self.z.real + float(self.part) + self.day.hour + len(self.span) + len(self.seen)


class Objects(Base):
    def build(self):
        self.table = np.array([{"a": 1}, (2, 3), "x"], object)
        self.mask = np.ma.masked_array([1.0, 2.0], mask=[False, True])
        self.matrix = np.asmatrix(np.eye(2))

    def show(self):
        return float(self.table[0]["a"] + self.mask.sum() + self.matrix.sum() + self.at)


class Nested(Base):
    """Holds an environment that is EzPickle's, and a wrapped one."""

    def build(self):
        self.inner, self.other = gym.make("Hopper-v5").unwrapped, gym.make("Pendulum-v1")
        self.last = 0.0

    def start(self):
        self.last = float(self.inner.reset(seed=int(self.np_random.integers(99)))[0].sum())
        self.other.reset(seed=3)

    def show(self):
        return self.last

    def step(self, action):
        self.last = float(self.inner.step(np.full(3, 0.3))[0].sum() + self.other.step(np.zeros(1))[0].sum())
        return super().step(action)


class Simulated(Base):
    """Holds views of MuJoCo's memory, and the description of its model."""

    def build(self):
        self.spec_, self.model = mujoco.MjSpec.from_string(MODEL), mujoco.MjModel.from_xml_string(MODEL)
        self.data = mujoco.MjData(self.model)
        self.place, self.qvel, self.types = self.model.body_pos[1], self.data.qvel, self.model.jnt_type

    def start(self):
        mujoco.mj_resetData(self.model, self.data)

    def show(self):
        self.place[0] += 0.25
        mujoco.mj_step(self.model, self.data)
        return float(self.place.sum() + self.qvel.sum() + self.types.sum())


class Thing:
    def __init__(self, n):
        self.n, self.moved = n, np.zeros(1)


class Wall(Thing):
    pass


class Shuffled(Base):
    """Its things stand elsewhere after each reset, and some of them in a second list."""

    def build(self):
        self.things = [Thing(float(n)) if n % 2 else Wall(float(n)) for n in range(6)]

    def start(self):
        self.np_random.shuffle(self.things)
        self.active = [thing for thing in self.things if self.np_random.random() < 0.5]
        self.first = self.things[0]
        self.pairs = {thing.n: thing for thing in self.active}

    def show(self):
        for thing in self.active:
            thing.moved += thing.n
        self.first.n += 0.5
        return sum((i + 1) * float(t.moved[0] + t.n) for i, t in enumerate(self.things)) + len(self.pairs)


class Grows(Base):
    """Makes things during an episode."""

    def build(self):
        self.things = [Thing(0.0)]

    def start(self):
        self.things = [Thing(0.0)]

    def show(self):
        self.things.append(Thing(self.np_random.normal()))
        return sum(thing.n for thing in self.things)


class Constants(Base):
    """Whatever a constructor may make and nobody changes."""

    def build(self):
        self.frames = [pandas.DataFrame({"a": [1.0, math.nan]}), pandas.Series(["u", None])]
        self.named = collections.OrderedDict(a=pandas.Index([1, 2]))

    def show(self):
        return float(self.frames[0]["a"].iloc[0] + self.at + len(self.named))


KEPT = [Frame, Bytes, Iterators, Views, Texts, Values, Objects, Nested, Simulated, Shuffled, Grows, Constants]


def play(adapter, steps, first=False):
    """What an adapter shows."""
    rows = [adapter.reset()] if first else []
    action = np.zeros((adapter.envs, 1), np.float32)
    return np.array([*rows, *(adapter.step(action).observation for _ in range(steps))])[..., 0]


def through_a_file(snapshot):
    """A snapshot as saves hold it."""
    assert all(array.dtype.kind in "biufc" for array in snapshot.arrays.values())
    file = io.BytesIO()
    np.savez(file, **snapshot.arrays)
    file.seek(0)
    return Snapshot(dict(np.load(file, allow_pickle=False)), json.loads(json.dumps(snapshot.meta)))


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("envs", [1, 2])
@pytest.mark.parametrize("steps", [3, 11])
def test_a_restored_copy_goes_on_to_the_bit(kind, envs, steps):
    adapter, other = make(kind, envs, seed=4), make(kind, envs, seed=77)
    play(adapter, 0, first=True)
    remember(adapter)
    play(adapter, steps)
    snapshot = through_a_file(take(adapter))
    assert snapshot.meta["exact"], snapshot.meta["why"]
    on = play(adapter, 25)
    assert restore(other, snapshot) == ""
    np.testing.assert_array_equal(play(other, 25), on)
    again = make(kind, envs, seed=5)
    play(again, 9, first=True)
    assert restore(again, snapshot) == ""
    np.testing.assert_array_equal(play(again, 25), on)


class Log(Frame):
    """Appends to a table."""

    def show(self):
        self.prices.loc[self.prices.index[-1] + pandas.Timedelta(days=1)] = [1.0, "z"]
        return float(len(self.prices))


class Random(Frame):
    """Makes another table in each copy."""

    def build(self):
        self.prices = pandas.DataFrame({"a": np.random.default_rng().normal(size=3)})

    def show(self):
        return self.prices["a"].iloc[0]


class Half:
    """Tells pickle half of what it holds."""

    def __init__(self):
        self.n = 0

    def __getstate__(self):
        return {}


class Hides(Base):
    def build(self):
        self.half = np.array([Half()], object)

    def show(self):
        self.half[0].n += 1
        return float(self.half[0].n)


@pytest.mark.parametrize("kind", [Log, Hides])
def test_a_save_says_what_has_changed_and_can_only_be_compared(kind):
    adapter = make(kind, seed=4)
    play(adapter, 0, first=True)
    remember(adapter)
    play(adapter, 3)
    assert not take(adapter).meta["exact"]
    assert "cannot be resumed exactly" in take(adapter).meta["why"]


def test_what_another_copy_holds_differently_begins_a_new_episode():
    adapter = make(Random, seed=4)
    play(adapter, 3, first=True)
    assert "holds something else after a reset" in restore(make(Random, seed=4), take(adapter))


class Generated(Base):
    def build(self):
        self.rows = (float(x) for x in range(99))

    def show(self):
        return next(self.rows)


def test_an_iterator_that_does_not_tell_what_it_holds_is_named(monkeypatch):
    """From Python 3.14 on, those of itertools do not tell; a generator stands for them."""
    monkeypatch.setattr("qscape.envs.snapshot._ITERATORS", (types.GeneratorType,))
    adapter = make(Generated, seed=4)
    play(adapter, 3, first=True)
    meta = take(adapter).meta
    assert not meta["exact"]
    assert "rows" in meta["why"]


def test_a_snapshot_leaves_iterators_and_views_as_they_are():
    one, other = make(Iterators, seed=4), make(Iterators, seed=4)
    play(one, 2, first=True)
    play(other, 2, first=True)
    copy.deepcopy(take(other))
    np.testing.assert_array_equal(play(one, 9), play(other, 9))
