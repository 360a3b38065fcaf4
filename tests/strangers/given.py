"""Environments for tests of files and processes, as somebody else may write them."""

from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Given(gym.Env):
    """Takes arguments of types that JSON has not, and raises unless they are of these very types.

    Its observation is the sum of what it was given, so equal arguments show in equal episodes.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, size=(1, 2), gains=None, place=Path("here"), banned=frozenset({3}), key=b"\x00\xff"):
        gains = {0: 0.5, (1, 1): 2.0} if gains is None else gains
        kinds = [type(x) for x in (size, gains, banned, key)]
        if kinds != [tuple, dict, frozenset, bytes] or not isinstance(place, Path):
            raise TypeError(f"these are {kinds} and {type(place)}")
        self.total = size[0] * size[1] + gains[0] + gains[1, 1] + len(place.name) + sum(banned) + sum(key)
        self.now = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        return np.array([self.total], np.float32), {}

    def step(self, action):
        self.now += 1
        return np.array([self.total], np.float32), float(self.total), False, self.now == 10, {}


class Keyed(gym.Env):
    """Shows a Dict of two vectors of one size, whose keys stand in the order that it is given.

    Args:
        order: the keys, in their order.
        high: the bound of actions.
        seen: the bound of observations.
        dtype: of observations.
    """

    def __init__(self, order=("speed", "angle"), high=1.0, seen=10.0, dtype="float32"):
        box = spaces.Box(-seen, seen, (2,), np.dtype(dtype))
        self.observation_space = spaces.Dict([(key, box) for key in order])
        self.action_space = spaces.Box(-high, high, (1,), np.float32)
        self.order, self.now, self.taken = order, 0, []

    def show(self):
        """Return what it shows; the value of a key does not depend on the order of keys."""
        dtype = self.observation_space[self.order[0]].dtype
        return {key: np.array([len(key), self.now / 10], dtype) for key in self.order}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now, self.taken = 0, []
        return self.show(), {}

    def step(self, action):
        self.now += 1
        self.taken.append(float(action[0]))
        return self.show(), float(action[0]), False, self.now == 10, {}


for _made in (Given, Keyed):
    if f"{_made.__name__}-v0" not in gym.registry:
        gym.register(f"{_made.__name__}-v0", _made)


class Shown(gym.Env):
    """Shows the number of the step, in one of several ways that training accepts.

    Args:
        how: "buffer": the array that it writes to in every step; "list", "wide" (float64), "dict" of such;
            "fraction": halves in a space of whole numbers; "scalar": a Box without axes; "slash": a key with
            a slash; "picture".
    """

    def __init__(self, how="buffer"):
        self.how, self.now = how, 0
        line = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        whole = spaces.Box(0, 100, (2,), np.int32)
        self.observation_space = {
            "dict": spaces.Dict(a=line, b=spaces.Dict(c=whole)),
            "fraction": whole,
            "scalar": spaces.Dict(s=spaces.Box(-1.0, 99.0, ()), v=line),
            "slash": spaces.Dict({"a/b": line, "a": line}),
            "picture": spaces.Box(0, 255, (16, 16, 3), np.uint8),
        }.get(how, line)
        self.action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.shown = np.zeros(2, np.float32)

    def show(self):
        """Return the observation of this step."""
        self.shown[:] = self.now, 0.1 * self.now
        if self.how == "list":
            return [self.now, 0.1 * self.now]
        if self.how == "wide":
            return np.array([self.now, 0.1 * self.now])
        if self.how == "dict":
            return {"b": {"c": [self.now, 7]}, "a": self.shown}
        if self.how == "fraction":
            return [self.now / 2, 0]
        if self.how == "scalar":
            return {"s": float(self.now), "v": self.shown}
        if self.how == "slash":
            return {"a/b": self.shown, "a": self.shown}
        return np.full((16, 16, 3), self.now, np.uint8) if self.how == "picture" else self.shown

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        return self.show(), {}

    def step(self, action):
        self.now += 1
        return self.show(), np.float64(self.now) / 3, False, np.bool_(self.now == 6), {}


if "Shown-v0" not in gym.registry:
    gym.register("Shown-v0", "strangers.given:Shown")
