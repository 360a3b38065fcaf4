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

from qscape.envs.native import ActionSpace, JaxWrapper, Outcome, find_jax_env
from qscape.envs.simulators import make_gymnasium
from qscape.envs.spaces import ActionBox
from qscape.errors import UsageError
from qscape.types import Key


class JaxLevels(JaxWrapper):
    """The environment `inner` with `levels` levels in every dimension of its action."""

    levels: int = eqx.field(static=True)

    @property
    def action_space(self) -> ActionSpace:
        return _levels_of(self.inner.action_space, self.levels)

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, Outcome]:
        """A step with the levels in the environment's units."""
        units = _to_units(self.inner.action_space, self.levels, action)
        return self.limited.step(state, jnp.asarray(units, jnp.float32), key)


class Levels(gym.ActionWrapper):
    """A Gymnasium environment with `levels` levels in every dimension of its action."""

    def __init__(self, env: gym.Env, levels: int):
        super().__init__(env)
        self.levels, self.action_space = levels, _levels_of(env.action_space, levels)

    def action(self, action: Any) -> np.ndarray:
        space = self.env.action_space
        return _to_units(space, self.levels, np.asarray(action)).astype(space.dtype)


def discretise(env: gym.Env, levels: int, env_id: str) -> gym.Env:
    """The environment with `levels` levels in every dimension of its action; in JAX if it is in JAX.

    Raises:
        UsageError: `levels` is below 2, or the actions are not a bounded Box of floats.
    """
    if not isinstance(levels, int) or levels < 2:
        raise UsageError(f"action_levels is {levels!r}: it has to be a number of 2 or more", field="env_args")
    space = env.action_space
    is_box = isinstance(space, spaces.Box) and space.is_bounded() and np.issubdtype(space.dtype, np.floating)
    if not is_box:
        raise UsageError(
            f"action_levels divides a bounded Box of actions, and {env_id} has {space}: leave it out",
            field="env_args",
        )
    native = find_jax_env(env)
    if native is None:
        return Levels(env, levels)
    return make_gymnasium(JaxLevels(native, levels, time_limit=native.time_limit), env.render_mode)


def _levels_of(space: Any, levels: int) -> spaces.MultiDiscrete:
    """The product of discrete sets that replaces a Box."""
    return spaces.MultiDiscrete(np.full(space.shape, levels))


def _to_units(space: Any, levels: int, action: Any) -> Any:
    """Levels of the shape of the Box, in its units."""
    unit = 2.0 * action.reshape(-1) / (levels - 1) - 1.0
    return ActionBox.from_space(space, np.float64).to_env(unit).reshape(space.shape)
