"""The environment of a dataset that has none: its spaces are known, and nothing else."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces.utils import flatdim, unflatten

from qscape.data.sources import spaces_of
from qscape.errors import RunError


class Recorded(gym.Env):
    """Has the spaces of a dataset; cannot be stepped."""

    def __init__(self, dataset: str) -> None:
        """`dataset`: as `qscape.data.read` takes it."""
        self.dataset = dataset
        self.observation_space, self.action_space = spaces_of(dataset)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        zeros = np.zeros(flatdim(self.observation_space), np.float32)
        return unflatten(self.observation_space, zeros), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        raise RunError(
            f"{self.dataset} is a dataset without an environment: there is nowhere to act in; "
            "name one with --env when training."
        )
