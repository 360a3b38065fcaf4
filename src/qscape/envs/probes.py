"""Probe environments: so small that the correct Q and the best action are known.

Each tests one thing an agent has to do. A broken loss, a wrong discount or a bootstrap that is cut at a time
limit shows as a wrong number within seconds. Observations and actions are one number in [-1, 1]. The idea is
from Jones, "Debugging Reinforcement Learning Systems" (2021).
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from qscape.errors import OutOfRange


class ProbeEnv(gym.Env):
    """Base class of the probes: the spaces, and an episode of one step that terminates.

    A subclass defines the first observation (`draw_observation`), the reward, the correct value `q` and the
    best action. `q` and `best_action` take arrays. Snapshots store the attribute `shown`, the current
    observation.
    """

    def __init__(self):
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.shown = 0.0

    def draw_observation(self) -> float:
        """The first observation of an episode."""
        return 0.0

    def reward(self, action: float) -> float:
        """The reward of an action at the current observation."""
        raise NotImplementedError

    def move(self) -> tuple[bool, bool]:
        """Move to the next observation; returns (terminated, truncated)."""
        return True, False

    @staticmethod
    def q(observation: np.ndarray, action: np.ndarray, discount: float) -> np.ndarray:
        """Q*(s, a) `[B]` for observations and actions `[B]`."""
        raise NotImplementedError

    @staticmethod
    def best_action(observation: np.ndarray) -> np.ndarray | None:
        """The best action `[B]` at observations `[B]`; None if all actions are equal."""
        return None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.shown = self.draw_observation()
        return np.array([self.shown], np.float32), {}

    def step(self, action: np.ndarray):
        reward = self.reward(float(action[0]))
        terminated, truncated = self.move()
        return np.array([self.shown], np.float32), reward, terminated, truncated, {}


class ProbeValue(ProbeEnv):
    """One step with reward 1: Q = 1 everywhere. If wrong, suspect the critic's loss or its optimiser."""

    def reward(self, action):
        return 1.0

    @staticmethod
    def q(observation, action, discount):
        return np.ones_like(observation)


class ProbeObservation(ProbeEnv):
    """One step with observation and reward s = -1 or 1: Q(s, a) = s. If wrong: the observation's path."""

    def draw_observation(self):
        return float(self.np_random.choice([-1.0, 1.0]))

    def reward(self, action):
        return self.shown

    @staticmethod
    def q(observation, action, discount):
        return np.array(observation)


class ProbeDiscount(ProbeEnv):
    """Two steps, observations and rewards 0 and 1: Q(0, a) = γ, Q(1, a) = 1. If wrong: the bootstrap."""

    def reward(self, action):
        return self.shown

    def move(self):
        terminated, self.shown = self.shown == 1.0, 1.0
        return terminated, False

    @staticmethod
    def q(observation, action, discount):
        return np.where(np.asarray(observation) < 0.5, discount, 1.0)


class ProbeAction(ProbeEnv):
    """One step with reward Q = -(a - 0.5)²; the best action is 0.5. If wrong: the actor's loss."""

    def reward(self, action):
        return -((action - 0.5) ** 2)

    @staticmethod
    def q(observation, action, discount):
        return -((np.asarray(action) - 0.5) ** 2)

    @staticmethod
    def best_action(observation):
        return np.full_like(observation, 0.5)


class ProbePolicy(ProbeObservation):
    """One step, observation s = -1 or 1, reward Q = -(a - s/2)²; the best action is s/2.

    If wrong while `ProbeAction` is right: the actor sees another observation than the critic.
    """

    def reward(self, action):
        return -((action - self.shown / 2) ** 2)

    @staticmethod
    def q(observation, action, discount):
        return -((np.asarray(action) - np.asarray(observation) / 2) ** 2)

    @staticmethod
    def best_action(observation):
        return np.asarray(observation) / 2


class ProbeTimeLimit(ProbeEnv):
    """Observation 0 and reward 1 in every step; truncated (never terminated) after 2 to `longest` steps.

    Truncation does not end the task: Q = 1 / (1 - γ). An agent that cuts the bootstrap at truncation learns 1
    / (1 - γ p) instead, with p = longest / (longest + 2) the share of steps that are not the last: 2.8
    instead of 10 for γ = 0.9 and 5 steps.
    """

    def __init__(self, longest: int = 5):
        super().__init__()
        if longest < 2:
            raise OutOfRange(f"longest is {longest}: an episode has two steps or more")
        self.longest = longest
        self.left = longest

    def draw_observation(self):
        self.left = int(self.np_random.integers(2, self.longest + 1))
        return 0.0

    def reward(self, action):
        return 1.0

    def move(self):
        self.left -= 1
        return False, self.left == 0

    @staticmethod
    def q(observation, action, discount):
        return np.full_like(observation, 1 / (1 - discount))


PROBES: dict[str, type[ProbeEnv]] = {
    f"qscape/{probe.__name__}-v0": probe
    for probe in (ProbeValue, ProbeObservation, ProbeDiscount, ProbeAction, ProbePolicy, ProbeTimeLimit)
}


def register() -> None:
    """Register the probes with Gymnasium. Called when `qscape.envs` is imported."""
    for env_id, probe in PROBES.items():
        if env_id not in gym.registry:
            gym.register(env_id, f"{probe.__module__}:{probe.__name__}")
