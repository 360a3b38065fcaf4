"""Which actions an environment accepts, where it restricts them (`envs/restricted.py`)."""

from typing import NamedTuple

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from qscape.envs.restricted import Restricted
from qscape.inspect.subject import Subject
from qscape.ops import landscape as ops


class Balls(NamedTuple):
    """The valid part of [-1, 1]^A: what lies in any of the closed balls."""

    centres: Float[np.ndarray, "n A"]
    radii: Float[np.ndarray, " n"]


def valid_balls(subject: Subject) -> Balls | None:
    """The balls that an agent's environment accepts; None: it accepts all actions."""
    adapter = subject.make()
    env = adapter.env
    try:
        while isinstance(env, gym.Wrapper):
            if isinstance(env, Restricted):
                return Balls(env.centres, env.radii)
            env = env.env
        return None
    finally:
        adapter.close()


def valid_on(plane: ops.Plane, balls: Balls | None) -> Float[np.ndarray, "K 2"]:
    """The intervals of a line that are accepted; none of a plane, and none where everything is accepted."""
    if balls is None or len(plane.axes) > 1:
        return np.zeros((0, 2))
    return ops.intersect_balls(plane, *balls)
