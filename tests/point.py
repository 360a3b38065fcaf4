"""A small task in JAX with one bounded action, for runs inside one program. `point:make` makes it."""

from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array

from qscape.envs.native import GymnasiumEnv, JaxEnv, Outcome


class Place(NamedTuple):
    x: Array
    steps: Array


class Point(JaxEnv):
    """Move a point to 1; beyond 2 the episode is terminated, after `time_limit` steps truncated."""

    @property
    def observation_space(self):
        return spaces.Box(-9.0, 9.0, (2,), np.float32)

    @property
    def action_space(self):
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, key):
        state = Place(jax.random.uniform(key), jnp.int32(0))
        return state, self.show(state)

    def show(self, state):
        return jnp.array([state.x, jnp.sin(3.0 * state.x)])

    def step(self, state, action, key):
        state = Place(state.x + 0.3 * action[0] + 0.05 * jax.random.normal(key), state.steps + 1)
        late, no = state.steps >= self.time_limit, jnp.bool_(False)
        return state, Outcome(self.show(state), -jnp.abs(state.x - 1.0), state.x > 2, late, no)


def make(render_mode=None) -> gym.Env:
    """Return the task as a Gymnasium environment."""
    return gym.wrappers.TimeLimit(GymnasiumEnv(Point(time_limit=9), render_mode), 9)
