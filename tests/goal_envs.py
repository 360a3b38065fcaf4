"""A small task with goals for tests, whose `compute_reward` can be written in several ways."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

NEAR = 0.2


class Line(gym.Env):
    """A point on a line moves by a quarter of the action; episodes of different seeds differ in length.

    Args:
        length: steps of an episode of seed 0; seed s has 2 (s mod 3) more.
        dtype: of the goals that it shows; rewards are computed from these.
        ends: terminate where the goal is reached.
        reports: report success.
        way: how `compute_reward` is written: "rows" (one goal or many), "one" (a single goal), "infos" (it
            subtracts `info["cost"]` of one info or many), "one info" (of a single one).
        falls: terminate, without success, at the fifth step.
    """

    def __init__(
        self,
        length: int = 6,
        dtype: str = "float64",
        ends: bool = False,
        reports: bool = True,
        way: str = "rows",
        falls: bool = False,
    ):
        place = spaces.Box(-9.0, 9.0, (1,), np.dtype(dtype).type)
        self.observation_space: Any = spaces.Dict(
            {
                "observation": spaces.Box(-99.0, 99.0, (3,), np.float64),
                "desired_goal": place,
                "achieved_goal": place,
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.given, self.length, self.dtype = length, length, dtype
        self.ends, self.reports, self.way, self.falls = ends, reports, way, falls
        self.x, self.goal, self.now, self.calls = 0.0, 0.0, 0, 0

    def compute_reward(self, achieved_goal, desired_goal, info):
        self.calls += 1
        if self.way == "one":
            assert np.shape(achieved_goal) == (1,)
            return 0.0 if abs(achieved_goal[0] - desired_goal[0]) <= NEAR else -1.0
        reward = np.where(np.abs(achieved_goal - desired_goal)[..., 0] <= NEAR, 0.0, -1.0)
        if self.way == "one info":
            return float(reward) - info["cost"]
        if self.way == "infos":
            costs = info["cost"] if isinstance(info, dict) else np.array([one["cost"] for one in info])
            return reward - costs
        return reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.length = self.given + 2 * (seed % 3)
        self.x, self.goal, self.now = 0.0, float(self.np_random.uniform(-0.5, 0.5)), 0
        return self.shown(), {}

    def shown(self) -> dict[str, np.ndarray]:
        return {
            "desired_goal": np.array([self.goal], self.dtype),
            "achieved_goal": np.array([self.x], self.dtype),
            "observation": np.array([self.x, self.now, 7.0]),
        }

    def step(self, action) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x, self.now = self.x + 0.25 * float(action[0]), self.now + 1
        shown, info = self.shown(), {"cost": 0.125 * self.now, "unread": object()}
        calls = self.calls
        reward = self.compute_reward(shown["achieved_goal"], shown["desired_goal"], info)
        self.calls = calls
        reached = bool(np.abs(shown["achieved_goal"] - shown["desired_goal"])[0] <= NEAR)
        if self.reports:
            info["is_success"] = reached
        fell = self.falls and self.now == 5
        return shown, float(reward), (reached and self.ends) or fell, self.now == self.length, info


class Judged(Line):
    """Says itself which goals end an episode."""

    def compute_terminated(self, achieved_goal, desired_goal, info):
        return bool(self.ends and abs(achieved_goal[0] - desired_goal[0]) <= NEAR)


class Seen(Line):
    """Has images as goals."""

    def __init__(self):
        super().__init__()
        image = spaces.Box(0, 255, (4, 4), np.uint8)
        parts: dict[str, Any] = {**self.observation_space.spaces, "desired_goal": image}
        self.observation_space = spaces.Dict(parts)


class Named(Line):
    """Has one of five goals."""

    def __init__(self):
        super().__init__()
        parts: dict[str, Any] = {"achieved_goal": spaces.Discrete(5), "desired_goal": spaces.Discrete(5)}
        self.observation_space = spaces.Dict({**self.observation_space.spaces, **parts})


class Wide(Line):
    """Achieves what cannot be desired."""

    def __init__(self):
        super().__init__()
        parts: dict[str, Any] = {"achieved_goal": spaces.Box(-1.0, 1.0, (2,))}
        self.observation_space = spaces.Dict({**self.observation_space.spaces, **parts})


class Aimless(Line):
    """Has goals, and no method that rewards other ones."""

    compute_reward: Any = None


for _made in (Line, Judged, Seen, Named, Wide, Aimless):
    if f"{_made.__name__}-v0" not in gym.registry:
        gym.register(f"Goal{_made.__name__}-v0", _made)  # type: ignore[arg-type]
