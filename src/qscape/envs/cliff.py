"""Ideal Cliff Walking: eight cells, four actions, each optimal in two of them.

A grid that shows the geometry of an optimal policy: each cell has a unique optimal action, and the optimal
policy visits all cells equally often. After the cliff grid of Zhou et al., "Imitate Optimal Policy: Prevail
and Induce Action Collapse in Policy Gradient" (arXiv 2509.02737). The paper does not print its grid; this one
has all the properties that it names.

             E8   E9
      X  [0] [1] [2] [3]  X        E: exits, X: cliff (also above and below the outer cells)
      X  [4] [5] [6] [7]  X
             E10  E11
"""

from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, Int

from qscape.envs.native import GymnasiumEnv, JaxEnv, Outcome
from qscape.errors import OutOfRange, WrongValue
from qscape.types import Key

CLIFF = 12
# Successors of each cell under up, right, down, left: 0-7 are cells, 8-11 exits, 12 the cliff.
NEXT = np.array(
    [
        [CLIFF, 1, 4, CLIFF],
        [8, 2, 5, 0],
        [9, 3, 6, 1],
        [CLIFF, CLIFF, 7, 2],
        [0, 5, CLIFF, CLIFF],
        [1, 6, 10, 4],
        [2, 7, 11, 5],
        [3, CLIFF, CLIFF, 6],
    ]
)
START = np.array([0, 3, 4, 7])  # from these outer cells, the optimal policy visits all eight equally often
MODES = ("terminate", "restart", "wall")


class Walker(NamedTuple):
    """State of the environment: the current cell, and the steps of the episode. Snapshots store this name."""

    cell: Int[Array, ""]
    steps: Int[Array, ""]


class IdealCliffWalking(JaxEnv):
    """Walk to an exit. The observation is the cell, one-hot [8]; the actions are up, right, down, left.

    Each move has reward -1.

    Attributes:
        cliff_mode: what stepping on the cliff does. "terminate": reward -10, the episode ends. "restart":
            reward -100, back to a start cell. "wall": reward -1, the position does not change. The optimal
            actions are the same in all modes.
    """

    cliff_mode: str = eqx.field(static=True, default="terminate")
    time_limit: int = eqx.field(static=True, kw_only=True, default=100)

    def __post_init__(self):
        if self.cliff_mode not in MODES:
            raise WrongValue(f"cliff_mode is {', '.join(MODES)}, not {self.cliff_mode!r}", field="env_args")

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (8,), np.float32)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(4)

    def reset(self, key: Key) -> tuple[Walker, Float[Array, "8"]]:
        """A start cell, uniform over the four outer cells."""
        cell = _draw_start_cell(key)
        return Walker(cell, jnp.int32(0)), jax.nn.one_hot(cell, 8)

    def step(self, state: Walker, action: Int[Array, ""], key: Key) -> tuple[Walker, Outcome]:
        """One move."""
        cell = jnp.asarray(NEXT)[state.cell, action]
        fell, steps = cell == CLIFF, state.steps + 1
        terminated = (cell >= 8) & ~fell
        reward = jnp.float32(-1)
        if self.cliff_mode == "terminate":
            terminated, reward = terminated | fell, jnp.where(fell, -10.0, reward)
        elif self.cliff_mode == "restart":
            cell = jnp.where(fell, _draw_start_cell(key), cell)
            reward = jnp.where(fell, -100.0, reward)
        else:
            cell = jnp.where(fell, state.cell, cell)
        # A terminal observation is all zero: one-hot of a number beyond the eight.
        outcome = Outcome(
            jax.nn.one_hot(cell, 8), reward, terminated, steps >= self.time_limit, jnp.bool_(False)
        )
        return Walker(cell, steps), outcome

    def optimal_q(self, discount: float = 0.95) -> Float[np.ndarray, "8 4"]:
        """Optimal action values Q*(s, a) by dynamic programming, in float64 and without the time limit.

        Raises:
            UsageError: they do not converge at this discount.
        """
        reward, successor = self.make_model()
        q = np.zeros((8, 4))
        for _ in range(10_000):
            before, q = q, reward + discount * successor @ q.max(1)
            if np.array_equal(before, q):
                return q
        raise OutOfRange(
            f"the values of Ideal Cliff Walking do not converge at discount {discount}", field="discount"
        )

    def policy_q(self, policy: Float[Array, "8 4"], discount: float = 0.95) -> Float[Array, "8 4"]:
        """Action values Q^π(s, a) of a policy's probabilities [8, 4], exact and without the time limit.

        v solves v = Σ_a π(a|s) (r(s, a) + γ Σ_s' p(s'|s, a) v(s')).
        """
        reward, successor = self.make_model()
        moves = jnp.einsum("sa,sat->st", policy, successor)
        value = jnp.linalg.solve(jnp.eye(8) - discount * moves, (policy * reward).sum(1))
        return reward + discount * successor @ value

    def make_model(self) -> tuple[Float[np.ndarray, "8 4"], Float[np.ndarray, "8 4 8"]]:
        """The rewards r(s, a), and the probability of each cell as successor; the rest terminates."""
        fell = NEXT == CLIFF
        cost = {"terminate": -10.0, "restart": -100.0, "wall": -1.0}[self.cliff_mode]
        cells = np.arange(8)
        successor = (NEXT[..., None] == cells).astype(float)
        if self.cliff_mode == "restart":
            successor[fell] = np.isin(cells, START) / len(START)
        elif self.cliff_mode == "wall":
            successor[fell] = np.eye(8)[np.nonzero(fell)[0]]
        return np.where(fell, cost, -1.0), successor

    def draw(self, state: Walker) -> np.ndarray:
        """An image: cells white, exits green, the cliff brown, the agent blue; 32 pixels per cell."""
        picture = np.full((4, 6, 3), (120, 90, 60), np.uint8)
        picture[1:3, 1:5] = 255
        picture[0, 2:4] = picture[3, 2:4] = (60, 160, 80)
        cell = int(state.cell)
        exits = {8: (0, 2), 9: (0, 3), 10: (3, 2), 11: (3, 3)}
        at = (1 + cell // 4, 1 + cell % 4) if cell < 8 else exits.get(cell, (0, 0))
        picture[at] = (40, 80, 200)
        picture = picture.repeat(32, 0).repeat(32, 1)
        picture[::32] = picture[:, ::32] = 200
        return picture


def _draw_start_cell(key: Key) -> Int[Array, ""]:
    """A uniformly random outer cell."""
    return jnp.asarray(START)[(len(START) * jax.random.uniform(key)).astype(jnp.int32)]


class IdealCliffWalkingEnv(GymnasiumEnv):
    """`cliff/IdealCliffWalking-v0`."""

    metadata: dict[str, Any] = GymnasiumEnv.metadata | {"render_fps": 4}

    def __init__(
        self,
        cliff_mode: Literal["terminate", "restart", "wall"] = "terminate",
        render_mode: str | None = None,
    ):
        super().__init__(IdealCliffWalking(cliff_mode), render_mode)
