"""A small factored task: turn every dial to the value that the observation shows. `dials:make` makes it."""

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from qscape.envs.native import GymnasiumEnv, JaxEnv, Outcome

SIZES = (3, 2, 3)


class Dials(JaxEnv):
    """The reward is the share of right dials; the first counts twice. Every step draws a new goal.

    The least value of a dial is `start`, or the action is binary if `binary`.
    """

    sizes: tuple[int, ...] = eqx.field(static=True, default=SIZES)
    start: int = eqx.field(static=True, default=0)
    binary: bool = eqx.field(static=True, default=False)

    @property
    def observation_space(self):
        return spaces.Box(-1.0, 1.0, (len(self.sizes),), np.float32)

    @property
    def action_space(self):
        if self.binary:
            return spaces.MultiBinary(len(self.sizes))
        return spaces.MultiDiscrete(self.sizes, start=[self.start] * len(self.sizes))

    def draw_goal(self, key):
        return jax.random.randint(key, (len(self.sizes),), 0, jnp.array(self.sizes))

    def show(self, goal):
        return 2.0 * goal / jnp.maximum(jnp.array(self.sizes) - 1, 1) - 1.0

    def reset(self, key):
        goal = self.draw_goal(key)
        return (goal, jnp.int32(0)), self.show(goal)

    def step(self, state, action, key):
        goal, step = state
        right = (action - self.start == goal).astype(jnp.float32)
        weight = jnp.ones(len(self.sizes)).at[0].set(2.0)
        goal, step = self.draw_goal(key), step + 1
        over = step >= self.time_limit
        no = jnp.bool_(False)
        outcome = Outcome(self.show(goal), (right * weight).sum() / weight.sum(), no, over, no)
        return (goal, step), outcome


def make(sizes=SIZES, start=0, binary=False, native=True, render_mode=None) -> gym.Env:
    """The task as a Gymnasium environment; unless `native`, within a wrapper that is stepped on the host."""
    env: gym.Env = GymnasiumEnv(Dials(tuple(sizes), start, binary, time_limit=8), render_mode)
    env = gym.wrappers.TimeLimit(env, 8)
    return env if native else gym.wrappers.TransformReward(env, float)
