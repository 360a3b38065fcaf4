"""Environments with image observations, preprocessed as usual: four grey frames of 84 × 84, uint8.

Atari as in Mnih et al. (2015), with Gymnasium's wrappers where they exist, and CarRacing; `rendered` has the
pictures of any other environment. Networks divide bytes by 255.
"""

import copy
import importlib.util
import math
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import (
    AtariPreprocessing,
    FrameStackObservation,
    GrayscaleObservation,
    ResizeObservation,
    TimeLimit,
    TransformReward,
)

from qscape.errors import MissingPackage


def atari(
    env_id: str,
    training: bool = False,
    sticky: float = 0.0,
    max_episode_steps: int | None = None,
    **args: Any,
) -> gym.Env:
    """An Atari game: up to 30 no-ops after a reset, each action for 4 frames, FIRE if the game waits for it.

    Args:
        env_id: `ALE/...`.
        training: a lost life ends the episode, and rewards are replaced by their signs. Evaluations play
            whole games with true scores.
        sticky: probability that the emulator repeats the last action (0.25 by default in ids v5).
        max_episode_steps: actions after which an episode is truncated; None or -1: as the emulator says.
        args: arguments of `gymnasium.make`.

    Raises:
        UsageError: OpenCV is missing.
    """
    need_opencv(env_id, "atari")
    env = gym.make(env_id, frameskip=1, repeat_action_probability=sticky, **args)
    env = AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=84)
    if training:
        env = LifeEnds(env)
    if "FIRE" in env.unwrapped.get_action_meanings():  # pyright: ignore[reportAttributeAccessIssue]
        env = FireFirst(env)
    if max_episode_steps not in (None, -1):
        env = TimeLimit(env, max_episode_steps)
    if training:
        env = TransformReward(env, lambda reward: float(np.sign(float(reward))))
    return FrameStackObservation(env, 4)


def car_racing(env_id: str, continuous: bool = True, **args: Any) -> gym.Env:
    """CarRacing, each action for 4 frames, with rewards summed.

    Raises:
        UsageError: OpenCV is missing.
    """
    need_opencv(env_id, "box2d")
    env = Repeat(gym.make(env_id, continuous=continuous, **args), 4)
    return FrameStackObservation(ResizeObservation(GrayscaleObservation(env), (84, 84)), 4)


def need_opencv(env_id: str, extra: str) -> None:
    """Raise a UsageError if OpenCV is missing; `extra` is the extra of qscape that installs it."""
    if importlib.util.find_spec("cv2") is None:
        raise MissingPackage(f'the pictures of {env_id} need OpenCV: pip install "qscape[{extra}]"')


class LifeEnds(gym.Wrapper):
    """End the episode when a life is lost. Only then, `reset` continues the same game."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.lives, self.lost = 0, False

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        lives, self.lives = self.lives, info["lives"]
        self.lost = 0 < self.lives < lives and not (terminated or truncated)
        return observation, reward, terminated or self.lost, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        if self.lost and seed is None:
            observation, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                observation, info = self.env.reset(options=options)
        else:
            observation, info = self.env.reset(seed=seed, options=options)
        self.lost, self.lives = False, info["lives"]
        return observation, info


class FireFirst(gym.Wrapper):
    """Press FIRE after a reset, and after a lost life if the game goes on; some games wait for it."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.lives = 0

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        lives, self.lives = self.lives, info["lives"]
        if 0 < self.lives < lives and not (terminated or truncated):
            observation, more, terminated, truncated, info = self._fire()
            reward = float(reward) + float(more)
        return observation, reward, terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.env.reset(seed=seed, options=options)
        observation, _, terminated, truncated, info = self._fire()
        if terminated or truncated:
            observation, info = self.env.reset(options=options)
        self.lives = info["lives"]
        return observation, info

    def _fire(self) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        meanings = self.env.unwrapped.get_action_meanings()  # pyright: ignore[reportAttributeAccessIssue]
        return self.env.step(meanings.index("FIRE"))


class Repeat(gym.Wrapper):
    """Repeat each action for `times` steps; rewards are summed, and the last observation is returned.

    A time limit in its `spec` counts steps of this wrapper.
    """

    def __init__(self, env: gym.Env, times: int):
        super().__init__(env)
        self.times = times

    @property
    def spec(self) -> EnvSpec | None:
        spec = copy.copy(self.env.spec)
        if spec is not None and spec.max_episode_steps is not None:
            spec.max_episode_steps = math.ceil(spec.max_episode_steps / self.times)
        return spec

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, total, terminated, truncated, info = self.env.step(action)
        for _ in range(self.times - 1):
            if terminated or truncated:
                break
            observation, reward, terminated, truncated, info = self.env.step(action)
            total = float(total) + float(reward)
        return observation, total, terminated, truncated, info
