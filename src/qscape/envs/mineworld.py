"""MineWorld: a walk through four barriers of mines, each of a type that only some of 50 tools fit.

The discrete task of SAVO (Jain et al., arXiv 2410.11833): 4 moves and 50 pick-axes in one action set, told
apart by a representation [54, 4]. The paper names the rules; map, choice of tools and their order are ours.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int

from qscape.envs.native import GymnasiumEnv, JaxEnv, Outcome
from qscape.errors import OutOfRange
from qscape.types import Key

SIZE, GOAL, NO_MINE, COMPLEX, HORIZON = 11, 9, 15, 7, 100  # mine types 0-6 are complex, 7-14 basic
MOVES = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])  # (x, y): right, down, left, up


def list_tools() -> Int[np.ndarray, "50 2"]:
    """The tools, a row each: (mine type that the tool fits, mine type that it becomes).

    8 basic tools remove a mine (type 15: none); 42 of the 63 possible complex tools change its type.
    """
    pool = [(before, after) for before in range(COMPLEX) for after in range(COMPLEX, NO_MINE + 1)]
    chosen = np.sort(np.random.default_rng(0).choice(len(pool), 42, replace=False))
    basic = [(before, NO_MINE) for before in range(COMPLEX, NO_MINE)]
    return np.array(basic + [pool[i] for i in chosen])


def make_action_table(extra_dims: int = 0) -> Float[np.ndarray, "54 d"]:
    """The action table, a row per action: (is it a move?, direction / 3, fitting type / 15, new type / 15).

    `extra_dims` columns of noise follow, uniform in [0, 1].
    """
    table = np.zeros((54, 4))
    table[:4, 0], table[:4, 1] = 1, np.arange(4) / 3
    table[4:, 2:] = list_tools() / 15
    extra = np.random.default_rng(1234).uniform(0, 1, (54, extra_dims))
    return np.concatenate([table, extra], axis=1).astype(np.float32)


def draw_map(random: np.random.Generator) -> Int[np.ndarray, "11 11"]:
    """A random map [y, x] of mine types; two of three columns and two of three rows are barriers."""
    xs, ys = (np.sort(random.choice([3, 5, 7], 2, replace=False)) for _ in range(2))
    types = random.integers(0, NO_MINE, (SIZE, SIZE))
    return np.where(_barriers(xs, ys), types, NO_MINE)


def _barriers(xs: np.ndarray, ys: np.ndarray) -> Bool[np.ndarray, "11 11"]:
    inside = np.zeros((SIZE, SIZE), bool)
    inside[1:-1, 1:-1] = True
    mined = np.zeros((SIZE, SIZE), bool)
    mined[:, xs], mined[ys] = True, True
    return mined & inside


# Every pair of barriers that a layout may have: columns and rows without 3, without 5, without 7.
_LINES = [np.array(pair) for pair in ([5, 7], [3, 7], [3, 5])]
BARRIERS = np.array([[_barriers(xs, ys) for ys in _LINES] for xs in _LINES])
_FITS, _BECOMES = np.array(
    [(-1, -1)] * 4 + [tuple(tool) for tool in list_tools()]
).T  # by action; moves fit nothing


class Miner(NamedTuple):
    """State of MineWorld. Snapshots store it under this name.

    Attributes:
        mines: mine types [y, x]; 15 where there is none.
        place: the miner's (x, y).
        direction: 0 right, 1 down, 2 left, 3 up.
        steps: steps of the episode so far.
    """

    mines: Int[Array, "11 11"]
    place: Int[Array, "2"]
    direction: Int[Array, ""]
    steps: Int[Array, ""]


class MineWorld(JaxEnv):
    """Walk through four barriers of mines to the goal, in 100 steps.

    Observation [23]: place (2), direction, which of the four neighbours are free (4), one-hot of the mine in
    front (15), is the goal in front? Reward: 0.1 for each step closer, each fitting tool and each removed
    mine, and up to 10 at the goal. Success: the goal is reached.

    Attributes:
        table: the action table, see `make_action_table`.
    """

    reports_success = True
    table: Float[Array, "54 d"] = eqx.field(default_factory=lambda: jnp.asarray(make_action_table()))
    time_limit: int = eqx.field(static=True, kw_only=True, default=HORIZON)

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (23,), np.float32)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(54)

    @property
    def action_table(self) -> Float[np.ndarray, "54 d"]:
        return np.asarray(self.table)

    def reset(self, key: Key) -> tuple[Miner, Float[Array, "23"]]:
        """A random map, with the miner in the upper left corner, facing right."""
        drawn = jax.random.uniform(key, (SIZE * SIZE + 2,))  # one draw, because each takes time to compile
        types = (NO_MINE * drawn[2:]).astype(jnp.int32).reshape(SIZE, SIZE)
        column, row = (3 * drawn[:2]).astype(jnp.int32)
        return self.reset_to_map(jnp.where(jnp.asarray(BARRIERS)[column, row], types, NO_MINE))

    def reset_to_map(self, mines: Int[Array, "11 11"]) -> tuple[Miner, Float[Array, "23"]]:
        """The start of an episode on a given map."""
        state = Miner(jnp.asarray(mines, jnp.int32), jnp.array([1, 1]), jnp.int32(0), jnp.int32(0))
        return state, observe(state)

    def reset_from_options(self, options: dict[str, Any]) -> tuple[Miner, Array] | None:
        """`options={"layout": 10000}` starts on the map of numpy's generator 10000."""
        if "layout" not in options:
            return None
        return self.reset_to_map(jnp.asarray(draw_map(np.random.default_rng(options["layout"]))))

    def step(self, state: Miner, action: Int[Array, ""], key: Key) -> tuple[Miner, Outcome]:
        """A move turns the miner and walks one cell if it is free; a tool works on the mine in front."""
        moves, direction = action < 4, jnp.where(action < 4, action, state.direction)
        front = state.place + jnp.asarray(MOVES)[direction]
        x, y = front
        mine = state.mines[y, x]
        matched = ~moves & (mine == jnp.asarray(_FITS)[action])
        becomes = jnp.where(matched, jnp.asarray(_BECOMES)[action], mine)
        place = jnp.where(moves & _is_free(state.mines, front), front, state.place)
        after = Miner(state.mines.at[y, x].set(becomes), place, direction, state.steps + 1)
        reached = (place == GOAL).all()
        removed = matched & (becomes == NO_MINE)
        closer = (place - state.place).sum()  # Manhattan: the goal is the lower right corner
        reward = 0.1 * (closer + matched + removed)
        reward += jnp.where(reached, 10 * (1 - 0.9 * after.steps / HORIZON), 0)
        limit = after.steps >= self.time_limit
        return after, Outcome(observe(after), reward.astype(jnp.float32), reached, limit, reached)

    def draw(self, state: Miner) -> np.ndarray:
        """An image: walls grey, free cells white, a colour per mine type, goal green, miner blue."""
        cell = 24
        wheel = np.arange(NO_MINE)[:, None] / NO_MINE + np.array([0, 1 / 3, 2 / 3])
        colours = (160 + 80 * np.sin(2 * np.pi * wheel)).astype(np.uint8)
        colours[:COMPLEX] //= 2  # complex types are dark
        picture = np.concatenate([colours, np.full((1, 3), 255, np.uint8)])[np.asarray(state.mines)]
        picture[[0, -1]] = picture[:, [0, -1]] = 110
        picture[GOAL, GOAL] = (60, 180, 80)
        picture = picture.repeat(cell, 0).repeat(cell, 1)
        picture[::cell] = picture[:, ::cell] = 200
        x, y = np.asarray(state.place) * cell
        dx, dy = MOVES[int(state.direction)] * 7
        picture[y + 6 : y + 19, x + 6 : x + 19] = (40, 80, 200)
        picture[y + dy + 10 : y + dy + 15, x + dx + 10 : x + dx + 15] = (220, 40, 40)
        return picture


def _is_free(mines: Int[Array, "11 11"], cell: Int[Array, "... 2"]) -> Bool[Array, "..."]:
    """Is the cell (x, y) inside the border and without a mine?"""
    inside = ((cell >= 1) & (cell <= SIZE - 2)).all(-1)
    return inside & (mines[cell[..., 1], cell[..., 0]] == NO_MINE)


def observe(state: Miner) -> Float[Array, "23"]:
    """[(x - 1)/8, (y - 1)/8, direction/3, 4 flags of free, one-hot of the mine ahead (15), goal ahead?]."""
    around = state.place + jnp.asarray(MOVES)
    front = around[state.direction]
    return jnp.concatenate(
        [
            (state.place - 1) / 8,
            state.direction[None] / 3,
            _is_free(state.mines, around),
            jax.nn.one_hot(state.mines[front[1], front[0]], NO_MINE),  # nothing in front: all zero
            (front == GOAL).all()[None],
        ],
        dtype=jnp.float32,
    )


def guide(env: MineWorld, state: Miner, observation: Array, key: Key) -> Int[Array, ""]:
    """A scripted policy for `play`: moves right or down at random, and uses tools that fit.

    A tool that removes the mine is preferred.
    """
    front = state.place + jnp.asarray(MOVES)[state.direction]
    mine = state.mines[front[1], front[0]]
    fits = jnp.asarray(_FITS) == mine
    best = jnp.argmax(jnp.where(fits, 1 + jnp.asarray(_BECOMES == NO_MINE), 0))
    return jnp.where(mine < NO_MINE, best, _move_to_goal(state, key))


def _move_to_goal(state: Miner, key: Key) -> Int[Array, ""]:
    """A random move towards the goal: right (0) or down (1)."""
    right, down = state.place < GOAL
    chosen = jax.random.bernoulli(key).astype(jnp.int32)
    return jnp.where(right & down, chosen, jnp.where(right, 0, 1))


class MineWorldEnv(GymnasiumEnv):
    """`mineworld/MineWorld-v0`; `extra_dims` as in `make_action_table`."""

    def __init__(self, extra_dims: int = 0, render_mode: str | None = None):
        if extra_dims < 0:
            raise OutOfRange(f"extra_dims is {extra_dims}: it has to be 0 or more", field="env_args")
        super().__init__(MineWorld(jnp.asarray(make_action_table(extra_dims))), render_mode)
