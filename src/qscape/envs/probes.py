"""Probes: environments so small that the right Q and the best action are known.

Each isolates one thing an agent has to do. A broken loss, a wrong discount or a bootstrap that is cut at a
time limit shows as a wrong number within seconds. All have one observation and one action in [-1, 1]. The
idea of a ladder of such environments: Jones, "Debugging Reinforcement Learning Systems" (2021).
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Probe(gym.Env):
    """What the probes share: spaces, and an episode of one step that ends for real.

    A probe says what it shows (`draw`), what it pays (`reward`), which value is right (`q`) and which
    action is best (`best`, None where all are equal). `q` and `best` take arrays.
    """

    def __init__(self):
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.shown = 0.0

    def draw(self) -> float:
        """The first observation of an episode."""
        return 0.0

    def reward(self, action: float) -> float:
        raise NotImplementedError

    def advance(self) -> tuple[bool, bool]:
        """Moves to the next observation; says whether the episode is terminated, truncated."""
        return True, False

    @staticmethod
    def q(observation: np.ndarray, action: np.ndarray, discount: float) -> np.ndarray:
        """The value of the best policy, `[B]`, for observations and actions `[B]`."""
        raise NotImplementedError

    @staticmethod
    def best(observation: np.ndarray) -> np.ndarray | None:
        """The best action, `[B]`."""
        return None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.shown = self.draw()
        return np.array([self.shown], np.float32), {}

    def step(self, action: np.ndarray):
        reward = self.reward(float(action[0]))
        terminated, truncated = self.advance()
        return np.array([self.shown], np.float32), reward, terminated, truncated, {}


class ProbeValue(Probe):
    """One step, reward 1: Q = 1 everywhere. Wrong: the critic's loss or its optimiser."""

    def reward(self, action):
        return 1.0

    @staticmethod
    def q(observation, action, discount):
        return np.ones_like(observation)


class ProbeObservation(Probe):
    """One step, shows -1 or 1 and pays it: Q(s, a) = s. Wrong: the path of the observation."""

    def draw(self):
        return float(self.np_random.choice([-1.0, 1.0]))

    def reward(self, action):
        return self.shown

    @staticmethod
    def q(observation, action, discount):
        return np.array(observation)


class ProbeDiscount(Probe):
    """Two steps, shows 0 then 1, pays 0 then 1: Q(0, a) = γ, Q(1, a) = 1. Wrong: the bootstrap."""

    def reward(self, action):
        return self.shown

    def advance(self):
        terminated, self.shown = self.shown == 1.0, 1.0
        return terminated, False

    @staticmethod
    def q(observation, action, discount):
        return np.where(np.asarray(observation) < 0.5, discount, 1.0)


class ProbeAction(Probe):
    """One step, pays -(a - 0.5)²: Q is that, the best action 0.5. Wrong: the actor's climb."""

    def reward(self, action):
        return -((action - 0.5) ** 2)

    @staticmethod
    def q(observation, action, discount):
        return -((np.asarray(action) - 0.5) ** 2)

    @staticmethod
    def best(observation):
        return np.full_like(observation, 0.5)


class ProbePolicy(ProbeObservation):
    """One step, shows s = -1 or 1, pays -(a - s/2)²: Q is that, the best action s/2.

    Wrong, where `ProbeAction` is right: the actor does not see the observation the critic sees.
    """

    def reward(self, action):
        return -((action - self.shown / 2) ** 2)

    @staticmethod
    def q(observation, action, discount):
        return -((np.asarray(action) - np.asarray(observation) / 2) ** 2)

    @staticmethod
    def best(observation):
        return np.asarray(observation) / 2


class ProbeTimeLimit(Probe):
    """Shows 0 and pays 1 in every step, and is truncated (never terminated) after 2 to `longest` steps.

    The episode goes on for the critic: Q = 1 / (1 - γ). An agent that cuts the bootstrap at truncation
    learns 1 / (1 - γ p) with p the share of steps that are not the last, longest / (longest + 2): with
    γ = 0.9 and 5 steps 2.8 instead of 10.
    """

    def __init__(self, longest: int = 5):
        super().__init__()
        self.longest = longest
        self.left = longest

    def draw(self):
        self.left = int(self.np_random.integers(2, self.longest + 1))
        return 0.0

    def reward(self, action):
        return 1.0

    def advance(self):
        self.left -= 1
        return False, self.left == 0

    @staticmethod
    def q(observation, action, discount):
        return np.full_like(observation, 1 / (1 - discount))


PROBES: dict[str, type[Probe]] = {
    f"qscape/{probe.__name__}-v0": probe
    for probe in (ProbeValue, ProbeObservation, ProbeDiscount, ProbeAction, ProbePolicy, ProbeTimeLimit)
}


def register() -> None:
    """Registers the probes with Gymnasium."""
    for env_id, probe in PROBES.items():
        if env_id not in gym.registry:
            gym.register(env_id, f"{probe.__module__}:{probe.__name__}")
