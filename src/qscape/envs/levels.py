"""Bounded Box actions as a product of discrete sets: C equally spaced levels in every dimension.

a_k of {0, ..., C - 1} becomes low_k + a_k (high_k - low_k) / (C - 1), as in "Discrete Action On-Policy
Learning with Action-Value Critic" (arXiv 2002.03534).
"""

from typing import Any

import equinox as eqx
import gymnasium as gym
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, PyTree

from qscape.envs.native import JaxWrapper, Outcome, find_jax_env
from qscape.envs.simulators import make_gymnasium
from qscape.envs.spaces import ActionBox, is_bounded
from qscape.errors import OutOfRange, UnfitEnv
from qscape.types import Key


class LevelSpace(spaces.MultiDiscrete):
    """The product of discrete sets that replaces a Box.

    Attributes:
        box: the Box.
        levels: C, in every dimension.
    """

    def __init__(self, box: spaces.Box, levels: int):
        super().__init__(np.full(box.shape, levels))
        self.box, self.levels = box, levels

    def to_units(self, action: Any, dtype: Any = np.float64) -> Any:
        """Return levels `[*b, *shape]` in the units of the Box, computed in `dtype`;
        of numpy or JAX arrays.
        """
        box = ActionBox.from_space(self.box, dtype)
        unit = 2.0 * action.reshape(-1, len(box.low)) / (self.levels - 1) - 1.0
        return box.to_env(unit).reshape(action.shape)


class JaxLevels(JaxWrapper):
    """The environment `inner` with `levels` levels in every dimension of its action."""

    levels: int = eqx.field(static=True)

    @property
    def action_space(self) -> LevelSpace:
        return LevelSpace(self.inner.action_space, self.levels)  # pyright: ignore[reportArgumentType]

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, Outcome]:
        """Make a step with the levels in the environment's units."""
        units = self.action_space.to_units(action)
        return self.limited.step(state, jnp.asarray(units, jnp.float32), key)


class Levels(gym.ActionWrapper):
    """A Gymnasium environment with `levels` levels in every dimension of its action."""

    def __init__(self, env: gym.Env, levels: int):
        super().__init__(env)
        self.action_space: LevelSpace = LevelSpace(env.action_space, levels)  # pyright: ignore[reportArgumentType]

    def action(self, action: Any) -> np.ndarray:
        return self.action_space.to_units(np.asarray(action)).astype(self.action_space.box.dtype)


def discretise(env: gym.Env, levels: int, env_id: str) -> gym.Env:
    """Return the environment with `levels` levels in every dimension of its action; in JAX if it is in JAX.

    Raises:
        UsageError: `levels` is below 2, or the actions are not a bounded Box of floats.
    """
    if not isinstance(levels, int) or levels < 2:
        raise OutOfRange(f"action_levels is {levels!r}: it has to be a number of 2 or more", field="env_args")
    space = env.action_space
    if not is_bounded(space) or not np.issubdtype(space.dtype, np.floating):
        raise UnfitEnv(
            f"action_levels divides a bounded Box of actions, and {env_id} has {space}: leave it out",
            field="env_args",
        )
    native = find_jax_env(env)
    if native is None:
        return Levels(env, levels)
    return make_gymnasium(JaxLevels(native, levels, time_limit=native.time_limit), env.render_mode)
