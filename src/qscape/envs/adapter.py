"""The edge between agents and Gymnasium: units, shapes, resets and the checks at the border.

Inside qscape an observation is a float32 vector and an action a vector in [-1, 1]^A. What an environment
makes of that, how it resets itself and how many of it run side by side is known here and nowhere else.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from jaxtyping import Bool, Float

from qscape.envs.build import build_env
from qscape.envs.spaces import action_map, flattening, is_image, leaves, other_table
from qscape.errors import QscapeError, RunError, UsageError
from qscape.types import Spec


class Episode(NamedTuple):
    """A finished episode; `ret` is the undiscounted return, `success` None where nothing reports it."""

    env: int
    length: int
    ret: float
    success: float | None


class Step(NamedTuple):
    """What E environments answered. The arrays are new in every step: nobody writes to them later.

    Attributes:
        next_observation: the true successor: where an episode ended, its last observation.
        terminated: a real end; the bootstrap is cut.
        truncated: a time limit or the like; the bootstrap is not cut.
        observation: what the agent acts on next: where an episode ended, the first observation of the new
            one (under next-step autoreset that comes one step later, in a row that is not `valid`).
        valid: False for a row that only reset (next-step autoreset): it is no transition and no
            environment step.
        finished: the episodes that ended in this step.
    """

    next_observation: Float[np.ndarray, "E S"]
    reward: Float[np.ndarray, " E"]
    terminated: Bool[np.ndarray, " E"]
    truncated: Bool[np.ndarray, " E"]
    observation: Float[np.ndarray, "E S"]
    valid: Bool[np.ndarray, " E"]
    finished: list[Episode]

    @property
    def begins(self) -> Bool[np.ndarray, " E"]:
        """Does the next action open an episode? Under next-step autoreset also the one that only resets."""
        return self.terminated | self.truncated | ~self.valid


@dataclasses.dataclass
class EpisodeStatistics:
    """What the edge remembers between two steps, a row per environment; a snapshot holds it."""

    observation: np.ndarray  # [E, S], what the agent acts on next
    steps: int  # taken so far
    began: np.ndarray  # the number of steps when the episode began
    ret: np.ndarray  # of the episode so far
    success: np.ndarray  # the best the episode reported so far, NaN where it reported none
    episodes: np.ndarray  # finished so far
    resetting: np.ndarray  # will the next step only reset?


# Where nothing calls JAX: environments, and wrappers that run nobody else's code.
HOST_ONLY = (
    *(f"gymnasium.envs.{kind}." for kind in ("classic_control", "box2d", "mujoco", "toy_text")),
    "gymnasium.core",
    "gymnasium.wrappers.common",
    "gymnasium_robotics.",
    "qscape.envs.restricted",
)


def make(
    env_id: str | Callable[..., gym.Env] | gym.Env | VectorEnv,
    envs: int = 1,
    env_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    autoreset: AutoresetMode = AutoresetMode.SAME_STEP,
    asynchronous: bool = False,
    by_index: bool = False,
) -> "EnvAdapter":
    """The edge of an environment.

    Args:
        env_id: an id (`HalfCheetah-v5`, `module:Env-v0`), a function that makes an environment, an
            environment, or a vector environment of any autoreset mode.
        envs: E, how many run side by side.
        env_args: arguments of the environment, and of `gymnasium.make` (`render_mode`, `max_episode_steps`).
        seed: sub-environment i is seeded with `seed + i`, once.
        autoreset: mode of the vector environment that is built for E > 1.
        by_index: discrete actions are taken by their index, as on-policy agents do.
        asynchronous: one process per sub-environment (pays only where a step takes milliseconds).

    Raises:
        UsageError: for an unknown id, a missing package, wrong `env_args`, or spaces that do not fit.
    """
    args = dict(env_args or {})
    if envs < 1:
        raise UsageError(f"envs is {envs}: at least one environment is needed")
    if isinstance(env_id, gym.Env | VectorEnv):
        if args or envs not in (1, getattr(env_id, "num_envs", 1)):
            raise UsageError(
                "an environment that is made already takes no env_args and cannot be multiplied: "
                "give its id or a function that makes it"
            )
        return EnvAdapter(env_id, seed=seed, by_index=by_index)

    def build() -> gym.Env:
        return build_env(env_id, args)

    first = build()
    name = env_id if isinstance(env_id, str) else None
    if envs == 1:
        return EnvAdapter(first, seed=seed, env_id=name, by_index=by_index)
    if asynchronous:
        first.close()
        # Not forked: jax runs threads, and a fork of those may hang.
        many: VectorEnv = AsyncVectorEnv([build] * envs, autoreset_mode=autoreset, context="forkserver")
    else:
        many = SyncVectorEnv([lambda: first, *[build] * (envs - 1)], autoreset_mode=autoreset)
    adapter = EnvAdapter(many, seed=seed, env_id=name, one=first, by_index=by_index)
    if not asynchronous and len(adapter.environments) < envs:
        raise UsageError(
            f"{envs} environments are needed side by side, but the function gave {adapter.env_id} at every "
            "call: let it make a new one"
        )
    return adapter


class EnvAdapter:
    """E environments behind one border. Made by `make`.

    Attributes:
        env: the Gymnasium environment, plain or vector.
        env_id: the id that makes it, or the name of its class where none does.
        envs: E.
        spec: what an agent has to know of the task.
        seed: of the first reset.
        time_limit: steps after which an episode is truncated, or None.
        reward_threshold: the return at which the task counts as solved, or None.
        tally: what it remembers between two steps.
    """

    def __init__(
        self,
        env: gym.Env | VectorEnv,
        *,
        seed: int = 0,
        env_id: str | None = None,
        one: gym.Env | None = None,
        by_index: bool = False,
    ):
        """Wraps `env`; `one` of its sub-environments tells what a vector environment does not."""
        self.env, self.seed = env, seed
        if isinstance(env, VectorEnv):
            if one is None and isinstance(env.unwrapped, SyncVectorEnv):
                one = env.unwrapped.envs[0]
            self.envs, space, actions = env.num_envs, env.single_observation_space, env.single_action_space
        else:
            one = env
            self.envs, space, actions = 1, env.observation_space, env.action_space
        about: Any = one or env
        registered = about.spec
        self.env_id = env_id or _id_of(about, env) or _class_name(about)
        self.reward_threshold = registered.reward_threshold if registered else None
        self.time_limit = _time_limit(about)
        size, flatten = flattening(space, self.env_id, images=by_index)
        convert = functools.partial(
            action_map, actions, unwrapped=about.unwrapped, env_id=self.env_id, by_index=by_index
        )
        action_size, table, self._to_env = convert(envs=self.envs)
        if table is not None and isinstance(env.unwrapped, SyncVectorEnv):
            bare: list[Any] = [one.unwrapped for one in env.unwrapped.envs]
            first, *others = (one.action_table for one in bare)
            if not all(np.array_equal(first, other) for other in others):
                raise UsageError(other_table(self.env_id))
        self._space, self._flatten = space, flatten
        self._convert = functools.lru_cache(lambda rows: convert(envs=rows)[2])
        bounds = (actions.low.ravel(), actions.high.ravel()) if isinstance(actions, Box) else (None, None)
        choices = int(actions.n) if by_index and isinstance(actions, Discrete) else None
        frame = space.shape if is_image(space) else None
        self.spec = Spec(size, action_size, table, *bounds, choices=choices, frame=frame)
        self._source = _Plain(env, flatten) if isinstance(env, gym.Env) else _Vector(env, flatten)
        self._action_shape = (self.envs, action_size)
        self._seeded = False
        kind = np.uint8 if frame else np.float32
        self._start(np.zeros((self.envs, size), kind), np.zeros(self.envs, np.int64))

    @property
    def is_host_only(self) -> bool:
        """Is it known that no step calls JAX? A step that does hangs when JAX itself waits for it."""
        many: Any = self.env.envs if isinstance(self.env, SyncVectorEnv) else [self.env]
        return self.spec.table is None and all(map(_is_host_only, many))

    @property
    def environments(self) -> set[int]:
        """The `id` of each environment itself, without wrappers."""
        bare = self.env.unwrapped
        return {id(one.unwrapped) for one in (bare.envs if isinstance(bare, SyncVectorEnv) else [bare])}

    @property
    def autoreset(self) -> str:
        """How a vector environment resets itself; "" of a plain one, which the edge resets."""
        return "" if isinstance(self._source, _Plain) else self._source.mode.value

    @property
    def longest(self) -> int:
        """Steps of the longest episode that is under way."""
        return int(self.tally.steps - self.tally.began.min())

    @property
    def resets_later(self) -> bool:
        """Are there rows that only reset (next-step autoreset)?"""
        return self._source.resets_later

    @property
    def observation(self) -> Float[np.ndarray, "E S"]:
        """What the agent acts on next."""
        return self.tally.observation

    @property
    def leaves(self) -> list[tuple[tuple[str, ...], Box]]:
        """The boxes of the observation and the keys to them, in the order of a row."""
        return leaves(self._space, (), self.env_id, images=self.spec.frame is not None)

    @property
    def observation_bounds(self) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
        """Lowest and highest observation of the environment's space, infinite where it has no bound."""
        boxes = [box for _, box in self.leaves]
        low, high = (
            np.concatenate([getattr(box, bound).ravel() for box in boxes]).astype(np.float32)
            for bound in ("low", "high")
        )
        return low, high

    def reset(self) -> Float[np.ndarray, "E S"]:
        """Begins new episodes everywhere (unfinished ones are forgotten); seeds at the first call.

        Raises:
            RunError: the environment raises something, or an observation is NaN or infinite.
        """
        seed = None if self._seeded else self.seed
        self._seeded = True
        self._start(self._asked(self._source.reset, seed), self.tally.episodes)
        self._check(self.tally.observation, "reset observation")
        return self.tally.observation

    def reseed(self, seed: int) -> None:
        """Makes the next `reset` seed the sub-environments again, with `seed + i`."""
        self.seed, self._seeded = seed, False

    def step(self, action: Float[np.ndarray, "E A"]) -> Step:
        """One step everywhere, and the resets that follow from it. `action` lies in [-1, 1].

        Raises:
            RunError: the environment raises something, or an action, an observation or a reward is NaN or
                infinite.
        """
        action = np.asarray(action)
        if action.shape != self._action_shape:
            raise UsageError(f"{self.env_id} takes actions {self._action_shape}, not {action.shape}")
        tally = self.tally
        valid = ~tally.resetting
        tally.steps += 1
        self._check(action, "the agent's action")
        after, reward, terminated, truncated, now, success = self._asked(
            self._source.step, self._to_env(action), valid
        )
        tally.ret = tally.ret + reward
        self._check(after, "observation")
        self._check(reward, "reward")
        if success is not None:
            tally.success = np.fmax(tally.success, success)
        finished: list[Episode] = []
        ended = terminated | truncated
        if np.count_nonzero(ended):
            finished = self._finish(ended)
            if now is not after:
                self._check(now, "reset observation")
        tally.observation = now
        if self._source.resets_later:
            tally.resetting = ended
        return Step(after, reward.astype(np.float32), terminated, truncated, now, valid, finished)

    def render_frame(self) -> np.ndarray:
        """The picture `[H, W, 3]` of the first environment, made with `render_mode="rgb_array"`."""
        if self.env.render_mode != "rgb_array":
            raise UsageError(f'{self.env_id} has no pictures: make it with render_mode="rgb_array"')
        try:
            frame = self.env.render()
        except gym.error.DependencyNotInstalled as problem:
            raise UsageError(
                f'{self.env_id} draws with a missing package: pip install "qscape[video]"'
            ) from problem
        return np.asarray(frame[0] if frame is not None and isinstance(self.env, VectorEnv) else frame)

    def observations(self, observation: Any) -> tuple[Float[np.ndarray, "n S"], bool]:
        """Observations of the environment's space as rows, and whether there was a batch axis.

        Raises:
            UsageError: the shape is neither that of one observation nor that of a batch, or a number is NaN
                or infinite.
        """
        path, box = self.leaves[0]
        leaf = observation
        for key in path:
            leaf = leaf[key]
        shape = np.shape(leaf)
        batched = shape != box.shape
        if batched and shape[1:] != box.shape:
            raise UsageError(f"{self.env_id} has observations {box.shape}, not {shape}")
        rows = self._flatten(observation, shape[0] if batched else 1)
        if not np.isfinite(rows).all():
            row, number = np.argwhere(~np.isfinite(rows))[0].tolist()
            raise UsageError(f"observation[{number}] is {rows[row, number]}: no action follows from that")
        return rows, batched

    def actions(self, action: Float[np.ndarray, "n A"]) -> np.ndarray:
        """Actions in [-1, 1] as the environment takes them, a row each."""
        return self._convert(len(action))(action)

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()

    def _start(self, observation: np.ndarray, episodes: np.ndarray) -> None:
        n = self.envs
        self.tally = EpisodeStatistics(
            observation=observation,
            steps=0,
            began=np.zeros(n, np.int64),
            ret=np.zeros(n),
            success=np.full(n, np.nan),
            episodes=episodes,
            resetting=np.zeros(n, bool),
        )

    def _finish(self, ended: np.ndarray) -> list[Episode]:
        tally, finished = self.tally, []
        for i in np.flatnonzero(ended).tolist():
            success = float(tally.success[i])
            length = int(tally.steps - tally.began[i])
            finished.append(Episode(i, length, float(tally.ret[i]), None if np.isnan(success) else success))
        tally.began[ended] = tally.steps + self._source.resets_later
        tally.ret[ended], tally.success[ended] = 0.0, np.nan
        tally.episodes[ended] += 1
        return finished

    def _asked(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What the environment answers; its errors become one sentence, with the cause behind it."""
        try:
            return call(*arguments)
        except QscapeError:
            raise
        except Exception as problem:
            step = self.tally.steps - self.tally.began.max()
            what = f"{type(problem).__name__}: {problem}".rstrip(".: ")
            raise RunError(f"{self.env_id} broke in step {step} of an episode ({what}).") from problem

    def _check(self, rows: np.ndarray, field: str) -> None:
        if np.count_nonzero(np.isfinite(rows)) == rows.size:  # ndarray.all costs a microsecond more
            return
        row, *index = np.argwhere(~np.isfinite(rows))[0].tolist()
        where = f"{field}[{index[0]}]" if index else field
        raise RunError(
            f"{self.env_id}: {where} is {rows[(row, *index)]} in environment {row}, step "
            f"{self.tally.steps - self.tally.began[row]} of its episode {self.tally.episodes[row] + 1}: "
            "nothing can be learnt from it"
        )


class _Plain:
    """One environment, reset by hand: no vector environment, so nothing to pay for one."""

    resets_later = False

    def __init__(self, env: gym.Env, flatten: Callable[[Any, int], np.ndarray]):
        self.env, self.flatten = env, flatten

    def reset(self, seed: int | None) -> np.ndarray:
        return self.flatten(self.env.reset(seed=seed)[0], 1)

    def step(self, action: np.ndarray, valid: np.ndarray) -> tuple:
        observation, reward, terminated, truncated, info = self.env.step(action[0])
        after = now = self.flatten(observation, 1)
        if terminated or truncated:
            now = self.flatten(self.env.reset()[0], 1)
        success = info.get("success", info.get("is_success"))
        return (
            after,
            self._reward(reward),
            np.array([bool(terminated)]),
            np.array([bool(truncated)]),
            now,
            None if success is None else np.array([float(np.ravel(success)[0])]),
        )

    def _reward(self, reward: Any) -> np.ndarray:
        """[1]"""
        if np.ndim(reward):
            raise RunError(f"{self.env}: the reward is {reward!r}; it must be a number")
        return np.array([float(reward)])


class _Vector:
    """A vector environment of any autoreset mode."""

    def __init__(self, env: VectorEnv, flatten: Callable[[Any, int], np.ndarray]):
        self.env, self.flatten = env, flatten
        if "autoreset_mode" not in env.metadata:
            raise UsageError(f'{env} does not say how it resets: set metadata["autoreset_mode"]')
        self.mode = AutoresetMode(env.metadata["autoreset_mode"])
        self.resets_later = self.mode is AutoresetMode.NEXT_STEP

    def reset(self, seed: int | None) -> np.ndarray:
        return self.flatten(self.env.reset(seed=seed)[0], self.env.num_envs)

    def step(self, action: np.ndarray, valid: np.ndarray) -> tuple:
        observation, reward, terminated, truncated, info = self.env.step(action)
        # Whatever a row says that only resets, it is not part of an episode.
        reward = np.where(valid, reward, 0.0)
        terminated, truncated = np.asarray(terminated) & valid, np.asarray(truncated) & valid
        ended = terminated | truncated
        after = now = self.flatten(observation, self.env.num_envs)
        success = np.where(valid, self._success(info), np.nan)
        if self.mode is AutoresetMode.SAME_STEP and ended.any():
            after = now.copy()
            for i in np.flatnonzero(ended):
                after[i] = self.flatten(info["final_obs"][i], 1)[0]
            success = np.where(ended, self._success(info.get("final_info", {})), success)
        elif self.mode is AutoresetMode.DISABLED and ended.any():
            begun = self.flatten(self.env.reset(options={"reset_mask": ended})[0], self.env.num_envs)
            now = np.where(ended[:, None], begun, after)
        return after, reward, terminated, truncated, now, success

    def _success(self, info: dict[str, Any]) -> np.ndarray:
        """[E], NaN where an environment reports none."""
        reported = np.full(self.env.num_envs, np.nan)
        for key in ("is_success", "success"):
            if key in info:
                told, values = np.asarray(info.get(f"_{key}", True)), np.asarray(info[key])
                if values.dtype == object:  # arrays of one number, None where an environment told none
                    values = np.array([np.nan if v is None else np.ravel(v)[0] for v in values], float)
                values = values.astype(float).reshape(len(reported), -1)[:, 0]
                reported = np.where(told, values, reported)
        return reported


def _id_of(about: Any, env: gym.Env | VectorEnv) -> str:
    """The id that makes this very environment: with no arguments, time limit or wrappers of its own."""
    spec = about.spec
    known = gym.registry.get(spec.id) if spec else None
    if spec is None or known is None or isinstance(env, VectorWrapper):
        return ""
    made = {"render_mode", "num_envs", "vectorization_mode"}  # what `make` and `make_vec` note besides
    own, usual = ({k: v for k, v in s.kwargs.items() if k not in made} for s in (spec, known))
    same = own.keys() == usual.keys() and all(np.array_equal(own[k], usual[k]) for k in own)
    same = same and spec.max_episode_steps == known.max_episode_steps and not spec.additional_wrappers
    return spec.id if same else ""


def _class_name(about: Any) -> str:
    """The name of an environment that no id makes; not one for which Gymnasium would make its own."""
    name = type(about.unwrapped).__name__
    return f"{name}_" if name in {spec.name for spec in gym.registry.values()} else name


def _time_limit(about: Any) -> int | None:
    if about.spec is not None and about.spec.max_episode_steps is not None:
        return about.spec.max_episode_steps
    name = "_max_episode_steps"  # of a TimeLimit around an environment that is not registered
    return (
        about.get_wrapper_attr(name) if isinstance(about, gym.Env) and about.has_wrapper_attr(name) else None
    )


def _is_host_only(env: Any) -> bool:
    """Is that known of an environment and of all its wrappers?"""
    known = type(env).__module__.startswith(HOST_ONLY)
    return known and (env.unwrapped is env or _is_host_only(env.env))
