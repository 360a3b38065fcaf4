"""MineWorld: a walk through four barriers of mines, each of a type that only some of 50 tools fit.

The discrete task of SAVO (Jain et al., arXiv 2410.11833): 4 moves and 50 pick-axes in one action set, told
apart by a representation [54, 4]. The paper names the rules; in version v0, map, choice of tools and their
order are ours. Version v1 is the task of the authors' released code: a random field without barriers, its
tools, rewards and observations.
"""

from typing import Any, ClassVar, NamedTuple

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
    """Return the tools, a row each: (mine type that the tool fits, mine type that it becomes).

    8 basic tools remove a mine (type 15: none); 42 of the 63 possible complex tools change its type.
    """
    pool = [(before, after) for before in range(COMPLEX) for after in range(COMPLEX, NO_MINE + 1)]
    chosen = np.sort(np.random.default_rng(0).choice(len(pool), 42, replace=False))
    basic = [(before, NO_MINE) for before in range(COMPLEX, NO_MINE)]
    return np.array(basic + [pool[i] for i in chosen])


def make_action_table(
    extra_dims: int = 0, tools: Int[np.ndarray, "50 2"] | None = None
) -> Float[np.ndarray, "54 d"]:
    """Return the action table, a row per action: (is it a move?, direction / 3, fitting type / 15, new type /
    15).

    `extra_dims` columns of noise follow, uniform in [0, 1]. The tools are those of `list_tools` or the given
    ones.
    """
    table = np.zeros((54, 4))
    table[:4, 0], table[:4, 1] = 1, np.arange(4) / 3
    table[4:, 2:] = (list_tools() if tools is None else tools) / 15
    extra = np.random.default_rng(1234).uniform(0, 1, (54, extra_dims))
    return np.concatenate([table, extra], axis=1).astype(np.float32)


def draw_map(random: np.random.Generator) -> Int[np.ndarray, "11 11"]:
    """Return a random map [y, x] of mine types; two of three columns and two of three rows are barriers."""
    xs, ys = (np.sort(random.choice([3, 5, 7], 2, replace=False)) for _ in range(2))
    types = random.integers(0, NO_MINE, (SIZE, SIZE))
    return np.where(_barriers(xs, ys), types, NO_MINE)


def _barriers(xs: np.ndarray, ys: np.ndarray) -> Bool[np.ndarray, "11 11"]:
    inside = np.zeros((SIZE, SIZE), bool)
    inside[1:-1, 1:-1] = True
    mined = np.zeros((SIZE, SIZE), bool)
    mined[:, xs], mined[ys] = True, True
    return mined & inside


# The tools of the released code, in its order.
RELEASED_TOOLS = np.array(
    [
        *[(0, 12), (1, 11), (2, 12), (3, 7), (4, 8), (5, 8), (6, 7)],
        *[(before, NO_MINE) for before in range(COMPLEX, NO_MINE)],
        *[(6, 12), (0, 14), (5, 11), (4, 7), (6, 8), (1, 8), (1, 13), (3, 12), (2, 8), (2, 11), (3, 10)],
        *[(0, 9), (5, 7), (5, 10), (0, 7), (0, 13), (2, 13), (3, 9), (2, 9), (5, 14), (4, 14), (4, 12)],
        *[(0, 10), (0, 8), (6, 10), (5, 9), (4, 10), (1, 14), (2, 7), (1, 7), (4, 13), (3, 13), (3, 11)],
        *[(3, 14), (6, 11)],
    ]
)


# Every pair of barriers that a layout may have: columns and rows without 3, without 5, without 7.
_LINES = [np.array(pair) for pair in ([5, 7], [3, 7], [3, 5])]
BARRIERS = np.array([[_barriers(xs, ys) for ys in _LINES] for xs in _LINES])


def _by_action(tools: Int[np.ndarray, "50 2"]) -> Int[np.ndarray, "54 2"]:
    """Return the types that each action fits and makes; moves fit nothing."""
    return np.concatenate([np.full((4, 2), -1), tools])


class Miner(NamedTuple):
    """State of MineWorld. Snapshots store it under this name.

    Attributes:
        mines: mine types [y, x]; 15 where there is none.
        place: the miner's (x, y).
        direction: 0 right, 1 down, 2 left, 3 up.
        steps: steps of the episode so far.
    """

    mines: Int[Array, "n n"]
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
    effects: ClassVar[Int[np.ndarray, "54 2"]] = _by_action(list_tools())
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
        """Return a random map, with the miner in the upper left corner, facing right."""
        drawn = jax.random.uniform(key, (SIZE * SIZE + 2,))  # one draw, because each takes time to compile
        types = (NO_MINE * drawn[2:]).astype(jnp.int32).reshape(SIZE, SIZE)
        column, row = (3 * drawn[:2]).astype(jnp.int32)
        return self.reset_to_map(jnp.where(jnp.asarray(BARRIERS)[column, row], types, NO_MINE))

    def reset_to_map(self, mines: Int[Array, "11 11"]) -> tuple[Miner, Float[Array, "23"]]:
        """Return the start of an episode on a given map."""
        state = Miner(jnp.asarray(mines, jnp.int32), jnp.array([1, 1]), jnp.int32(0), jnp.int32(0))
        return state, self.observe(state)

    def observe(self, state: Miner) -> Float[Array, "23"]:
        """Return the observation of a state."""
        return observe(state)

    def reward(
        self, closer: Array, matched: Array, removed: Array, reached: Array, steps: Array
    ) -> Float[Array, ""]:
        """Return the reward of a step.

        Args:
            closer: cells that the miner came nearer to the goal.
            matched, removed: did a tool fit, did it remove the mine?
            reached: is the miner at the goal?
            steps: of the episode, with this one.
        """
        return 0.1 * (closer + matched + removed) + jnp.where(reached, 10 * (1 - 0.9 * steps / HORIZON), 0)

    def reset_from_options(self, options: dict[str, Any]) -> tuple[Miner, Array] | None:
        """Start on the map of numpy's generator 10000 for `options={"layout": 10000}`."""
        if "layout" not in options:
            return None
        return self.reset_to_map(jnp.asarray(draw_map(np.random.default_rng(options["layout"]))))

    def step(self, state: Miner, action: Int[Array, ""], key: Key) -> tuple[Miner, Outcome]:
        """Turn the miner by a move, and walk one cell if it is free; a tool works on the mine in front."""
        moves, direction = action < 4, jnp.where(action < 4, action, state.direction)
        front = state.place + jnp.asarray(MOVES)[direction]
        x, y = front
        mine = state.mines[y, x]
        fits, makes = jnp.asarray(self.effects.T)
        matched = ~moves & (mine == fits[action])
        becomes = jnp.where(matched, makes[action], mine)
        place = jnp.where(moves & _is_free(state.mines, front), front, state.place)
        after = Miner(state.mines.at[y, x].set(becomes), place, direction, state.steps + 1)
        reached = (place == find_goal(state)).all()
        removed = matched & (becomes == NO_MINE)
        closer = (place - state.place).sum()  # Manhattan: the goal is the lower right corner
        reward = self.reward(closer, matched, removed, reached, after.steps)
        limit = after.steps >= self.time_limit
        return after, Outcome(self.observe(after), reward.astype(jnp.float32), reached, limit, reached)

    def draw(self, state: Miner) -> np.ndarray:
        """Return an image: walls grey, free cells white, a colour per mine type, goal green, miner blue."""
        cell = 24
        wheel = np.arange(NO_MINE)[:, None] / NO_MINE + np.array([0, 1 / 3, 2 / 3])
        colours = (160 + 80 * np.sin(2 * np.pi * wheel)).astype(np.uint8)
        colours[:COMPLEX] //= 2  # complex types are dark
        picture = np.concatenate([colours, np.full((1, 3), 255, np.uint8)])[np.asarray(state.mines)]
        picture[[0, -1]] = picture[:, [0, -1]] = 110
        picture[find_goal(state), find_goal(state)] = (60, 180, 80)
        picture = picture.repeat(cell, 0).repeat(cell, 1)
        picture[::cell] = picture[:, ::cell] = 200
        x, y = np.asarray(state.place) * cell
        dx, dy = MOVES[int(state.direction)] * 7
        picture[y + 6 : y + 19, x + 6 : x + 19] = (40, 80, 200)
        picture[y + dy + 10 : y + dy + 15, x + dx + 10 : x + dx + 15] = (220, 40, 40)
        return picture


def find_goal(state: Miner) -> int:
    """Return the goal's x and y: the last cell inside the border."""
    return state.mines.shape[0] - 2


def _is_free(mines: Int[Array, "n n"], cell: Int[Array, "... 2"]) -> Bool[Array, "..."]:
    """Return whether the cell (x, y) is inside the border and without a mine."""
    inside = ((cell >= 1) & (cell <= mines.shape[0] - 2)).all(-1)
    return inside & (mines[cell[..., 1], cell[..., 0]] == NO_MINE)


def observe(state: Miner) -> Float[Array, "23"]:
    """Return [(x - 1)/8, (y - 1)/8, direction/3, 4 flags of free, one-hot of the mine ahead (15), goal
    ahead?].
    """
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
    """Return a scripted policy for `play`: moves right or down at random, and uses tools that fit.

    A tool that removes the mine is preferred.
    """
    front = state.place + jnp.asarray(MOVES)[state.direction]
    mine = state.mines[front[1], front[0]]
    fits, makes = jnp.asarray(env.effects.T)
    best = jnp.argmax(jnp.where(fits == mine, 1 + (makes == NO_MINE), 0))
    return jnp.where(mine < NO_MINE, best, _move_to_goal(state, key))


def _move_to_goal(state: Miner, key: Key) -> Int[Array, ""]:
    """Return a random move towards the goal: right (0) or down (1)."""
    right, down = state.place < find_goal(state)
    chosen = jax.random.bernoulli(key).astype(jnp.int32)
    return jnp.where(right & down, chosen, jnp.where(right, 0, 1))


class MineField(MineWorld):
    """The released task: a walk through a random field of mines, which stay in their cells, to the goal.

    The room has 8 x 8 cells. Which of them are mined, each with probability 0.7, and the first direction are
    drawn from a seed and do not change; the mines' types are drawn in every episode. Observation [23], not
    scaled: place (2), direction, which of the four neighbours are free (4), one-hot of the mine in front
    (16), whose last entry stands for none. Reward: 0.2 for each step closer, 0.05 for a fitting tool, 0.05
    more for a removed mine, and up to 30 at the goal. Success: the goal is reached.

    Attributes:
        mined: the mined cells [y, x].
        direction: of the miner at the start.
    """

    effects: ClassVar[Int[np.ndarray, "54 2"]] = _by_action(RELEASED_TOOLS)
    mined: Bool[Array, "10 10"] = eqx.field(kw_only=True)
    direction: Int[Array, ""] = eqx.field(kw_only=True)

    @classmethod
    def of(cls, extra_dims: int = 0, layout: int = 2022) -> "MineField":
        """Return the task of a seed `layout`, of which the released code's field is another."""
        random = np.random.RandomState(layout)
        mined = np.zeros((10, 10), bool)
        mined[1:-1, 1:-1] = random.random_sample((8, 8)) < 0.7
        mined[1, 1] = mined[-2, -2] = False
        table = jnp.asarray(make_action_table(extra_dims, RELEASED_TOOLS))
        return cls(table, mined=jnp.asarray(mined), direction=jnp.int32(random.randint(4)))

    @property
    def observation_space(self) -> spaces.Box:
        high = np.array([7, 7, 3] + [1] * 20, np.float32)
        return spaces.Box(np.zeros(23, np.float32), high, dtype=np.float32)

    def reset(self, key: Key) -> tuple[Miner, Float[Array, "23"]]:
        """Return the field with new types of mines, and the miner in the upper left corner."""
        types = (NO_MINE * jax.random.uniform(key, self.mined.shape)).astype(jnp.int32)
        return self.reset_to_map(jnp.where(self.mined, types, NO_MINE))

    def reset_to_map(self, mines: Int[Array, "10 10"]) -> tuple[Miner, Float[Array, "23"]]:
        """Return the start of an episode with given mines."""
        state, _ = super().reset_to_map(mines)
        state = state._replace(direction=self.direction)
        return state, self.observe(state)

    def reset_from_options(self, options: dict[str, Any]) -> None:
        """Start a random episode: every one is."""

    def observe(self, state: Miner) -> Float[Array, "23"]:
        """Return [x, y, direction, 4 flags of free, one-hot of the mine ahead (16, the last: none)], not
        scaled.
        """
        around = state.place + jnp.asarray(MOVES)
        front = around[state.direction]
        ahead = jax.nn.one_hot(state.mines[front[1], front[0]], NO_MINE + 1)
        return jnp.concatenate(
            [state.place - 1, state.direction[None], _is_free(state.mines, around), ahead], dtype=jnp.float32
        )

    def reward(
        self, closer: Array, matched: Array, removed: Array, reached: Array, steps: Array
    ) -> Float[Array, ""]:
        at_goal = jnp.where(reached, 30 * (1 - 0.9 * steps / HORIZON), 0)
        return 0.2 * closer + 0.05 * matched + 0.05 * removed + at_goal


class MineFieldEnv(GymnasiumEnv):
    """`mineworld/MineWorld-v1`; `extra_dims` as in `make_action_table`, `layout` the seed of the field."""

    def __init__(self, extra_dims: int = 0, layout: int = 2022, render_mode: str | None = None):
        if extra_dims < 0:
            raise OutOfRange(f"extra_dims is {extra_dims}: it has to be 0 or more", field="env_args")
        if not 0 <= layout < 2**32:
            limit = 2**32 - 1
            raise OutOfRange(
                f"layout is {layout}: a seed is a whole number from 0 to {limit:,}", field="env_args"
            )
        super().__init__(MineField.of(extra_dims, layout), render_mode)


class MineWorldEnv(GymnasiumEnv):
    """`mineworld/MineWorld-v0`; `extra_dims` as in `make_action_table`."""

    def __init__(self, extra_dims: int = 0, render_mode: str | None = None):
        if extra_dims < 0:
            raise OutOfRange(f"extra_dims is {extra_dims}: it has to be 0 or more", field="env_args")
        super().__init__(MineWorld(jnp.asarray(make_action_table(extra_dims))), render_mode)
