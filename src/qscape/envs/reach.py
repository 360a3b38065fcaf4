"""A point that has to reach a goal: the smallest task with goals, to try hindsight without a simulator."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from qscape.errors import OutOfRange


class ReachEnv(gym.Env):
    """A point moves in a square, by at most a tenth of its half width in a step.

    The reward is 0 where the point is within `radius` of the goal, else -1: nothing tells the way. The
    interface is that of Gymnasium-Robotics: a Dict of observation, achieved_goal (where the point is) and
    desired_goal, `compute_reward` of one goal or of many, and `info["is_success"]`.

    Args:
        radius: distance at which the goal counts as reached.
        ends_at_goal: end the episode there; else only a time limit ends it.

    Raises:
        UsageError: the radius is not positive.
    """

    def __init__(self, radius: float = 0.1, ends_at_goal: bool = False):
        if not radius > 0:
            raise OutOfRange(f"radius is {radius}; it must be above 0", field="env_args")
        self.radius, self.ends_at_goal = radius, ends_at_goal
        place = spaces.Box(-1.0, 1.0, (2,), np.float64)
        self.observation_space = spaces.Dict(
            {"observation": place, "achieved_goal": place, "desired_goal": place}
        )
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.point, self.goal = np.zeros(2), np.zeros(2)

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        """Return the reward of what is achieved for a goal, or the rewards of rows of them."""
        distance = np.linalg.norm(np.subtract(achieved_goal, desired_goal), axis=-1)
        return np.where(distance <= self.radius, 0.0, -1.0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.point, self.goal = self.np_random.uniform(-1.0, 1.0, (2, 2))
        return self._observe(), {"is_success": self._is_reached()}

    def step(self, action: np.ndarray):
        self.point = np.clip(self.point + 0.1 * np.asarray(action, np.float64), -1.0, 1.0)
        reached = self._is_reached()
        reward = float(self.compute_reward(self.point, self.goal, {}))
        return self._observe(), reward, reached and self.ends_at_goal, False, {"is_success": reached}

    def _is_reached(self) -> bool:
        return bool(self.compute_reward(self.point, self.goal, {}) == 0.0)

    def _observe(self) -> dict[str, np.ndarray]:
        point, goal = self.point.copy(), self.goal.copy()
        return {"observation": point, "achieved_goal": point.copy(), "desired_goal": goal}
