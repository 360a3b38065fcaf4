"""A stand-in environment for a dataset that names none: it has the dataset's spaces and cannot be stepped."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces.utils import flatdim, unflatten

from qscape.data.sources import spaces_of
from qscape.errors import BrokenEnv


class Recorded(gym.Env):
    """`qscape/Recorded-v0`: the observation and action space of a dataset.

    `reset` returns an observation of zeros; `step` raises a RunError.
    """

    def __init__(self, dataset: str) -> None:
        """`dataset` is a name or path, as for `qscape.data.read`."""
        self.dataset = dataset
        self.observation_space, self.action_space = spaces_of(dataset)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        zeros = np.zeros(flatdim(self.observation_space), np.float32)
        return unflatten(self.observation_space, zeros), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        raise BrokenEnv(
            f"{self.dataset} is a dataset without an environment: there is nowhere to act in; "
            "name one with --env when training."
        )
