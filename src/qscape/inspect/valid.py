"""The actions that an environment accepts, where it restricts them (`envs/restricted.py`)."""

from typing import NamedTuple

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from qscape.envs.restricted import Restricted
from qscape.inspect.trained_agent import TrainedAgent
from qscape.ops import landscape as ops


class Balls(NamedTuple):
    """The valid part of [-1, 1]^A: the union of closed balls."""

    centres: Float[np.ndarray, "n A"]
    radii: Float[np.ndarray, " n"]


def find_valid_balls(trained: TrainedAgent) -> Balls | None:
    """Return the balls of valid actions; None if the environment accepts every action."""
    adapter = trained.make()
    env = adapter.env
    try:
        while isinstance(env, gym.Wrapper):
            if isinstance(env, Restricted):
                return Balls(env.centres, env.radii)
            env = env.env
        return None
    finally:
        adapter.close()


def valid_intervals(plane: ops.Plane, balls: Balls | None) -> Float[np.ndarray, "K 2"]:
    """Compute the valid intervals of a line; empty for a plane and if every action is valid."""
    if balls is None or len(plane.axes) > 1:
        return np.zeros((0, 2))
    return ops.intersect_balls(plane, *balls)
