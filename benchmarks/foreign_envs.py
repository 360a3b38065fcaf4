"""Environments of other packages that an id is not enough for: functions that make them.

    qscape train ppo --env foreign_envs:minigrid

Each function imports its package by itself, so that others may be missing.
docs/how-to/environments.md says why a function is needed.
"""

import importlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, PyTree

from qscape.envs.native import JaxEnv, Outcome
from qscape.masks import ActionMask
from qscape.types import Key

# --- Gymnasium ----------------------------------------------------------------------------------------------


def minigrid(name: str = "MiniGrid-Empty-5x5-v0") -> gym.Env:
    """Return a grid without the text of its mission: 7 × 7 cells before the agent, three numbers each."""
    wrappers: Any = importlib.import_module("minigrid.wrappers")
    return gym.wrappers.FlattenObservation(wrappers.ImgObsWrapper(gym.make(name)))


def mo_gymnasium(name: str = "mo-halfcheetah-v5", weights: tuple[float, ...] = (1.0, 0.1)) -> gym.Env:
    """Return an environment of several objectives, whose reward is their weighted sum."""
    package: Any = importlib.import_module("mo_gymnasium")
    return package.wrappers.LinearReward(package.make(name), np.array(weights))


def trading(rows: int = 500, seed: int = 0) -> gym.Env:
    """Return a market whose price is a slow wave with noise, and whose features are its last changes."""
    pandas: Any = importlib.import_module("pandas")
    importlib.import_module("gym_trading_env")
    noise = np.random.default_rng(seed).normal(0, 0.002, rows)
    close = 100 * np.exp(0.1 * np.sin(np.arange(rows) / 15) + np.cumsum(noise))
    frame = pandas.DataFrame({"close": close}, pandas.date_range("2024-01-01", periods=rows, freq="h"))
    frame["feature_change"] = frame["close"].pct_change()
    frame["feature_slow"] = frame["close"].pct_change(10)
    return gym.make("TradingEnv", df=frame.dropna(), positions=[-1, 0, 1], verbose=0)


class Limited(gym.Wrapper):
    """An environment that says `terminated` only where its time is up, as if its future ended there."""

    def step(self, action):
        observation, reward, ended, truncated, info = self.env.step(action)
        return observation, reward, False, ended or truncated, info


def stirred_tank(steps: int = 100) -> gym.Env:
    """Return a stirred tank, in which cooling keeps a concentration at a set point that changes halfway."""
    pcgym: Any = importlib.import_module("pcgym")
    low, high = np.array([0.7, 300.0, 0.8]), np.array([1.0, 350.0, 0.9])
    task = {
        "model": "cstr",
        "N": steps,
        "tsim": 26,
        "SP": {"Ca": [0.85] * (steps // 2) + [0.9] * (steps - steps // 2)},
        "x0": np.array([0.8, 330.0, 0.8]),
        "o_space": {"low": low, "high": high},
        "a_space": {"low": np.array([295.0]), "high": np.array([302.0])},
        "r_scale": {"Ca": 1e3},
        "normalise_a": True,
        "normalise_o": True,
        "noise": True,
        "noise_percentage": 1e-3,
        "integration_method": "casadi",
    }
    return Limited(pcgym.make_env(task))


def lift(robot: str = "Panda", limit: int = 200) -> gym.Env:
    """Return an arm that lifts a cube, with a dense reward and numbers as observations."""
    suite: Any = importlib.import_module("robosuite")
    wrappers: Any = importlib.import_module("robosuite.wrappers")
    pictures = dict.fromkeys(("has_renderer", "has_offscreen_renderer", "use_camera_obs"), False)
    env = suite.make("Lift", robots=robot, reward_shaping=True, ignore_done=True, **pictures)
    return gym.wrappers.TimeLimit(wrappers.GymWrapper(env), limit)


def tetris() -> gym.Env:
    """Return Tetris, whose board, active piece, holder and queue are numbers behind one another."""
    importlib.import_module("tetris_gymnasium.envs")
    return gym.make("tetris_gymnasium/Tetris")


def join_boxes(boxes: Iterable[spaces.Box]) -> spaces.Box:
    """Return the Box of vectors that lie behind one another."""
    boxes = [*boxes]
    low, high = (np.concatenate([np.ravel(getattr(x, end)) for x in boxes]) for end in ("low", "high"))
    return spaces.Box(low, high, dtype=np.float32)


class Together(gym.Env):
    """All agents of a parallel environment of PettingZoo as one: it sees what all see, and acts for all.

    Its reward is the mean of theirs. An episode ends when the first agent's does.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        names = env.possible_agents
        seen, acts = ([of(x) for x in names] for of in (env.observation_space, env.action_space))
        self.observation_space, self.action_space = join_boxes(seen), join_boxes(acts)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        seen, _ = self.env.reset(seed=seed, options=options)
        return self._join(seen), {}

    def step(self, action: np.ndarray):
        names = self.env.possible_agents
        parts = dict(zip(names, np.split(action, len(names)), strict=True))
        seen, rewards, terminated, truncated, _ = self.env.step({x: parts[x] for x in self.env.agents})
        reward = float(np.mean([*rewards.values()]))
        return self._join(seen), reward, any(terminated.values()), any(truncated.values()), {}

    def _join(self, seen: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.ravel(seen[x]) for x in self.env.possible_agents]).astype(np.float32)


def multiwalker(limit: int = 200) -> gym.Env:
    """Return Multiwalker of PettingZoo, in which two walkers carry a box.

    Its own limit is never reached, since it says `terminated` there.
    """
    game: Any = importlib.import_module("pettingzoo.sisl.multiwalker_v9")
    return gym.wrappers.TimeLimit(Together(game.parallel_env(n_walkers=2, max_cycles=10**9)), limit)


# --- JAX ----------------------------------------------------------------------------------------------------


class Timed(NamedTuple):
    """The state of another package's environment, and the steps made."""

    inner: PyTree
    steps: Array


class Snake(JaxEnv):
    """Snake of Jumanji. Its own time limit, which has a discount of 0 as a real end has, is never reached."""

    sim: Any = eqx.field(static=True)

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(0, 1, (6 * 6 * 5,), np.float32)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(4)

    def reset(self, key: Key) -> tuple[Timed, Array]:
        state, timestep = self.sim.reset(jax.random.key_data(key))
        return Timed(state, jnp.int32(0)), timestep.observation.grid.ravel()

    def step(self, state: Timed, action: Array, key: Key) -> tuple[Timed, Outcome]:
        inner, timestep = self.sim.step(state.inner, action)
        steps = state.steps + 1
        seen, ended = timestep.observation.grid.ravel(), timestep.discount == 0
        return Timed(inner, steps), Outcome(
            seen, timestep.reward, ended, steps >= self.time_limit, jnp.bool_(False)
        )


def jumanji_snake(limit: int = 200) -> JaxEnv:
    """Return Snake of Jumanji on a board of 6 × 6."""
    package: Any = importlib.import_module("jumanji.environments")
    return Snake(package.Snake(6, 6, time_limit=10**9), time_limit=limit)


class Twenty48(JaxEnv):
    """2048 of pgx, with its mask: an invalid move would end the game."""

    sim: Any = eqx.field(static=True)

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(0, 1, (4 * 4 * 31,), np.float32)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(4)

    @property
    def mask(self) -> ActionMask:
        return ActionMask(4)

    def reset(self, key: Key) -> tuple[Timed, Array]:
        state = self.sim.init(jax.random.key_data(key))
        return Timed(state, jnp.int32(0)), self._see(state)

    def step(self, state: Timed, action: Array, key: Key) -> tuple[Timed, Outcome]:
        inner = self.sim.step(state.inner, action, jax.random.key_data(key))
        steps = state.steps + 1
        late = steps >= self.time_limit
        return Timed(inner, steps), Outcome(
            self._see(inner), inner.rewards[0], inner.terminated, late, jnp.bool_(False)
        )

    def _see(self, state: Any) -> Array:
        cells = state.observation.astype(jnp.float32).ravel()
        return jnp.concatenate([cells, self.mask.pack(state.legal_action_mask)])


def pgx_2048(limit: int = 1000) -> JaxEnv:
    """Return 2048 of pgx."""
    package: Any = importlib.import_module("pgx")
    return Twenty48(package.make("2048"), time_limit=limit)


class Grid(JaxEnv):
    """A grid of Navix. `_step` is its step without the reset that `step` makes in the call after an end."""

    reports_success = True
    sim: Any = eqx.field(static=True)

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(0, 255, (int(np.prod(self.sim.observation_space.shape)),), np.float32)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(int(self.sim.action_space.maximum) + 1)

    def reset(self, key: Key) -> tuple[PyTree, Array]:
        timestep = self.sim.reset(jax.random.key_data(key))
        timestep = timestep.replace(info={"return": jnp.float32(0)})
        return timestep, timestep.observation.astype(jnp.float32).ravel()

    def step(self, state: Any, action: Array, key: Key) -> tuple[PyTree, Outcome]:
        after = self.sim._step(state, action.astype(jnp.int32))
        ended, late = after.step_type == 2, after.t >= self.time_limit
        seen = after.observation.astype(jnp.float32).ravel()
        return after, Outcome(seen, after.reward, ended, late, after.reward > 0)


def navix_empty(name: str = "Navix-Empty-Random-6x6-v0") -> JaxEnv:
    """Return a grid of Navix, with the limit that Navix gives it."""
    package: Any = importlib.import_module("navix")
    env = package.make(name, observation_fn=package.observations.symbolic_first_person)
    return Grid(env, time_limit=int(env.max_steps))
