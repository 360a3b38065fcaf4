"""CartPole as pure JAX functions: the transitions of Gymnasium's CartPole-v1, in float32.

Barto, Sutton, Anderson (1983). Gymnasium integrates in float64 and shows float32; a step from the same state
differs from it by rounding only.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, Int

from qscape.envs.native import GymnasiumEnv, JaxEnv, Outcome
from qscape.types import Key

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
X_LIMIT, ANGLE_LIMIT = 2.4, 12 * 2 * np.pi / 360


class Cart(NamedTuple):
    """State of CartPole. Snapshots store it under this name.

    Attributes:
        physics: position (m), velocity (m/s), angle (rad), angular velocity (rad/s).
        steps: steps of the episode so far.
    """

    physics: Float[Array, "4"]
    steps: Int[Array, ""]


class CartPole(JaxEnv):
    """Balance a pole on a cart that is pushed left (0) or right (1). The reward is 1 per step."""

    time_limit: int = eqx.field(static=True, kw_only=True, default=500)

    @property
    def observation_space(self) -> spaces.Box:
        high = np.array([X_LIMIT * 2, np.inf, ANGLE_LIMIT * 2, np.inf], np.float32)
        return spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(2)

    def reset(self, key: Key) -> tuple[Cart, Float[Array, "4"]]:
        """Return a state with all four numbers uniform in ±0.05."""
        physics = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return Cart(physics, jnp.int32(0)), physics

    def step(self, state: Cart, action: Int[Array, ""], key: Key) -> tuple[Cart, Outcome]:
        """Take one Euler step of 0.02 s. It terminates beyond 12 degrees or 2.4 m."""
        _, speed, angle, spin = state.physics
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        push = jnp.where(action == 1, FORCE, -FORCE)
        total, moment = CART + POLE, POLE * HALF_LENGTH
        drive = (push + moment * spin**2 * sin) / total
        spin_rate = (GRAVITY * sin - cos * drive) / (HALF_LENGTH * (4 / 3 - POLE * cos**2 / total))
        acceleration = drive - moment * spin_rate * cos / total
        physics = state.physics + SECONDS * jnp.stack([speed, acceleration, spin, spin_rate])
        steps = state.steps + 1
        fallen = (jnp.abs(physics[0]) > X_LIMIT) | (jnp.abs(physics[2]) > ANGLE_LIMIT)
        outcome = Outcome(physics, jnp.float32(1), fallen, steps >= self.time_limit, jnp.bool_(False))
        return Cart(physics, steps), outcome

    def draw(self, state: Cart) -> np.ndarray:
        """Return the cart on its track, 4.8 units wide."""
        height, width, scale = 200, 480, 100  # pixels, pixels per unit
        row, column = np.mgrid[:height, :width]
        x, y = (column - width / 2) / scale, (150 - row) / scale  # the axle is at height 0
        cart, _, angle, _ = (float(v) for v in state.physics)
        along = (x - cart) * np.sin(angle) + y * np.cos(angle)
        across = (x - cart) * np.cos(angle) - y * np.sin(angle)
        picture = np.full((height, width, 3), 255, np.uint8)
        picture[np.abs(y + 0.1) < 0.01] = 0
        picture[(np.abs(x - cart) < 0.25) & (np.abs(y) < 0.1)] = 60
        picture[(np.abs(across) < 0.04) & (along > 0) & (along < 2 * HALF_LENGTH)] = (202, 152, 101)
        return picture


class CartPoleEnv(GymnasiumEnv):
    """`jax/CartPole-v1`: `CartPole` as a Gymnasium environment."""

    metadata: dict[str, Any] = GymnasiumEnv.metadata | {"render_fps": 50}

    def __init__(self, render_mode: str | None = None):
        super().__init__(CartPole(), render_mode)
