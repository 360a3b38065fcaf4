"""Environments of which `qscape check` has to say what is wrong with each; `Sound` has nothing wrong."""

import ctypes
import functools
import os
import time

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv


class Sound(gym.Env):
    """A point that is pushed along a line; an episode has 20 steps, or ends when the point is far away."""

    def __init__(self):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.place, self.now = 0.0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.now = self.np_random.uniform(-1, 1), 0
        return self.show(), self.info()

    def step(self, action):
        self.place += 0.5 * float(action[0]) + self.np_random.normal(0, 0.01)
        self.now += 1
        return self.show(), self.reward(), *self.ends(), self.info()

    def show(self):
        return np.array([self.place, self.now / 20], np.float32)

    def reward(self):
        return -abs(self.place)

    def ends(self):
        return abs(self.place) > 3, self.now == 20

    def info(self):
        return {"success": abs(self.place) < 0.1}


class Compiles(Sound):
    """Takes longer over the first step of each copy than over all others."""

    compiled = False

    def step(self, action):
        time.sleep(0 if self.compiled else 0.4)
        self.compiled = True
        return super().step(action)


class Slow(Sound):
    """Takes so long over a step that a few are all that there is time for."""

    def step(self, action):
        time.sleep(0.05)
        return super().step(action)


class Outside(Sound):
    """Shows more than its bounds."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-0.5, 0.5, (2,), np.float32)


class Clock(Sound):
    """Shows the seconds since 1970 in float64."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def show(self):
        return np.array([self.place, 1.7e9 + self.now])


class Metres(Sound):
    """Shows a place in millimetres beside a share."""

    def show(self):
        return np.array([1000 * self.place, self.now / 20], np.float32)


class Still(Sound):
    """Shows the same in every step."""

    def show(self):
        return np.ones(2, np.float32)


class NotANumber(Sound):
    """Has a reward that is no number in its fifth step."""

    def reward(self):
        return np.nan if self.now == 5 else 0.0


class Endless(Sound):
    """Shows infinity in its fifth step."""

    def show(self):
        return np.array([np.inf if self.now == 5 else 0.0, 0.0], np.float32)


class Dear(Sound):
    """Pays thousands."""

    def reward(self):
        return 4000.0 * super().reward()


class Cheap(Sound):
    """Pays millionths."""

    def reward(self):
        return 1e-6 * super().reward()


class Free(Sound):
    """Pays nothing."""

    def reward(self):
        return 0.0


class Forever(Sound):
    """Has no end and no limit."""

    def ends(self):
        return False, False


class LimitIsTerminal(Sound):
    """Says of a time limit that the task is over."""

    def ends(self):
        return self.now == 20, False


class Unseeded(Sound):
    """Draws its starts from entropy."""

    def reset(self, *, seed=None, options=None):
        super().reset()
        self.place = np.random.default_rng().uniform(-1, 1)
        return self.show(), {}


class FreshAfterTheFirst(Sound):
    """Heeds a seed, and draws entropy in resets without one."""

    def reset(self, *, seed=None, options=None):
        self.np_random = np.random.default_rng(seed)
        self.place, self.now = self.np_random.uniform(-1, 1), 0
        return self.show(), {}


class Remembers(Sound):
    """Starts where the last episode ended, whatever the seed."""

    def __init__(self):
        super().__init__()
        self.last = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.last += 0.01
        self.place = self.last
        return self.show(), {}


class Global(Sound):
    """Draws from `np.random`, which is one for all copies."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            np.random.seed(seed)  # noqa: NPY002
        return super().reset(seed=seed)

    def step(self, action):
        self.place += np.random.normal(0, 0.1)  # noqa: NPY002
        return super().step(action)


class Engine:
    """A physics engine that gives out numbers, as PyBullet's clients are."""

    def __init__(self):
        self.places = []


ENGINE = Engine()


class Handle(Sound):
    """Keeps its place in an engine, of which it has a number."""

    def __init__(self):
        self.number = len(ENGINE.places)
        ENGINE.places.append(0.0)
        super().__init__()

    @property
    def place(self):
        return ENGINE.places[self.number]

    @place.setter
    def place(self, value):
        ENGINE.places[self.number] = value


class Table(Sound):
    """Keeps its place in a table of the class, by its number; each copy gets a table of its own."""

    table: dict[int, float] = {}  # noqa: RUF012

    def __init__(self):
        self.number = len(Table.table)
        super().__init__()

    @property
    def place(self):
        return Table.table[self.number]

    @place.setter
    def place(self, value):
        Table.table[self.number] = value


class Shared(Sound):
    """All copies add to one number of an object of the module."""

    def step(self, action):
        ENGINE.count = getattr(ENGINE, "count", 0) + 1
        self.place += 0.01 * (ENGINE.count % 7)
        return super().step(action)


class Unkept(Sound):
    """Holds a generator, which no snapshot can capture."""

    def __init__(self):
        super().__init__()
        self.handle = (number for number in (1, 2))


class Single(Sound):
    """Only one may be open at a time."""

    opened = 0

    def __init__(self):
        super().__init__()
        if Single.opened:
            raise OSError("address in use: port 5555")
        Single.opened += 1

    def close(self):
        Single.opened -= 1


class Reuses(Sound):
    """Writes every observation into one array."""

    def __init__(self):
        super().__init__()
        self.shown = np.zeros(2, np.float32)

    def show(self):
        self.shown[:] = super().show()
        return self.shown


class Fixed(Sound):
    """Has an action whose bounds are equal."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Box(np.float32([-1, 3]), np.float32([1, 3]))


class Unbounded(Sound):
    """Has actions without a bound."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)


class Told(Sound):
    """Shows text."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Text(9)


class WrongShape(Sound):
    """Shows three numbers where the space has two."""

    def show(self):
        return np.zeros(3, np.float32)


class Raises(Sound):
    """Raises an error in its fifth step."""

    def reward(self):
        if self.now == 5:
            raise RuntimeError("the gripper is stuck")
        return 0.0


class Choice(Sound):
    """Has three actions by index."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Discrete(3)

    def step(self, action):
        return super().step([action - 1.0])


class Hangs(Sound):
    """Does not return from its fifth step."""

    def reward(self):
        if self.now == 5:
            time.sleep(1000)
        return 0.0


class HangsInReset(Sound):
    """Does not return from its first reset."""

    def __init__(self):
        super().__init__()
        self.resets = 0

    def reset(self, *, seed=None, options=None):
        self.resets += 1
        while self.resets == 1:
            time.sleep(0.01)
        return super().reset(seed=seed)


class HangsWhenMade(Sound):
    """Does not return from its constructor."""

    def __init__(self):
        super().__init__()
        time.sleep(1000)


class Dies(Sound):
    """Ends its process in its fifth step."""

    def reward(self):
        if self.now == 5:
            os.abort()
        return 0.0


class Exits(Sound):
    """Calls `sys.exit` in its fifth step."""

    def reward(self):
        if self.now == 5:
            raise SystemExit(0)
        return 0.0


def many(kind=Sound, mode=AutoresetMode.NEXT_STEP, n=3):
    """Make a vector environment."""
    return SyncVectorEnv([kind] * n, autoreset_mode=mode)


class Own(VectorEnv):
    """A vector environment that is no one of Gymnasium's."""

    def __init__(self, mode=AutoresetMode.SAME_STEP):
        self.inner = many(Sound, mode)
        self.num_envs, self.metadata = 3, {"autoreset_mode": mode}
        for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
            setattr(self, name, getattr(self.inner, name))

    def reset(self, **options):
        return self.inner.reset(**options)

    def step(self, actions):
        return self.inner.step(actions)


for _made in (Sound, Dear, Unbounded, Hangs):
    if f"Checked{_made.__name__}-v0" not in gym.registry:
        gym.register(f"Checked{_made.__name__}-v0", functools.partial(_made))


class Stored(gym.Env):
    """Shows the goal that its constructor drew from entropy, unless it is given a seed."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, seed=None):
        self.goal, self.now = np.random.default_rng(seed).uniform(), 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        return np.array([self.goal], np.float32), {}

    def step(self, action):
        self.now += 1
        return np.array([self.goal], np.float32), 0.0, False, self.now == 20, {}


class Late(Sound):
    """Does something in its 30th step, over all episodes.

    Args:
        what: "sleep", "loop", "lock" (in C, where no signal reaches it), "abort" or "reset" (sleeps there).
    """

    def __init__(self, what="sleep"):
        super().__init__()
        self.what, self.life = what, 0

    def reset(self, *, seed=None, options=None):
        if self.what == "reset" and self.life >= 30:
            time.sleep(1000)
        return super().reset(seed=seed)

    def reward(self):
        self.life += 1
        if self.life == 30 and self.what != "reset":
            self.go()
        return 0.0

    def go(self):
        if self.what == "abort":
            os.abort()
        if self.what == "lock":
            lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(128)
            lock(mutex)
            lock(mutex)
        if self.what == "loop":
            while True:
                pass
        time.sleep(1000)


gym.registry.pop("CheckedLate-v0", None)
gym.register("CheckedLate-v0", Late)
