"""The adapter between agents and Gymnasium environments: units, shapes, resets and checks.

Inside qscape an observation is a float32 vector [S] and an action a vector in [-1, 1]^A. Only this module
knows the environment's units, how it resets itself, and how many copies run side by side.

How an episode ends:
    Terminated: the task is over (the robot fell, the goal is reached). No reward follows, so the target is r
    alone: the bootstrap is cut.
    Truncated: a time limit or the like stopped an episode that could have continued. The target is
    r + γ V(s'), so the bootstrap is not cut, and s' must be the true last observation.

How an environment resets itself:
    Gymnasium's vector environments reset finished sub-environments by themselves (autoreset), in three modes.
    Same step: `step` resets at once and returns the first observation of the new episode; the last one is in
    `info["final_obs"]`. Next step: `step` returns the last observation, and the following `step` ignores its
    action and only resets. Disabled: the caller resets. `EnvAdapter.step` hides this: `Step.next_observation`
    is always the true successor, and `Step.observation` is what the agent acts on next.
"""

import contextlib
import dataclasses
import functools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from jaxtyping import Bool, Float, Int

from qscape.envs.answers import (
    SUCCESS,
    UNREAD,
    pack_infos,
    read_flag,
    read_reward,
    read_rewards,
    read_success,
)
from qscape.envs.build import build_env
from qscape.envs.goals import ACHIEVED, DESIRED, GoalFunction, Goals, has_goals, refuse_goals
from qscape.envs.kept_spaces import describe_space, order_like
from qscape.envs.lag import NO_LAG, JaxLag, Lag, RowStack, add_lag, find_lag, refuse_longer
from qscape.envs.masks import MaskReader, declared_by, describe_no_action, find_mask
from qscape.envs.native import GymnasiumEnv, find_jax_env, with_time_limit
from qscape.envs.outside import Outside, own_generators
from qscape.envs.patience import Call
from qscape.envs.precision import Precision, watched
from qscape.envs.spaces import (
    box_leaves,
    describe_other_table,
    index_sizes,
    is_image,
    make_action_map,
    make_flatten,
    put_image_first,
    split_space,
    true_bounds,
)
from qscape.envs.workers import EnvPoolEnv, WorkerError, Workers
from qscape.errors import (
    BrokenEnv,
    Conflict,
    Mismatch,
    MissingPackage,
    NotFinite,
    OutOfRange,
    QscapeError,
    UnmakeableEnv,
    WrongEnv,
    WrongValue,
    describe,
)
from qscape.types import Spec, Transition


class Episode(NamedTuple):
    """A finished episode.

    Attributes:
        env: index of the environment, from 0.
        length: number of steps.
        ret: undiscounted return.
        success: the best success that the environment reported during it (0 to 1); None if it reports none.
    """

    env: int
    length: int
    ret: float
    success: float | None


class Step(NamedTuple):
    """The result of one step of E environments. The arrays are new in every step and never written to later.

    Attributes:
        transition: what goes into replay. Its rows are not `valid` where an environment only reset itself
            (next-step autoreset).
        observation: what the agent acts on next. Where an episode ended, the first observation of the new
            one. Under next-step autoreset it is still the last one, and the following row, not `valid`,
            resets.
        finished: the episodes that ended in this step.
    """

    transition: Transition
    observation: Float[np.ndarray, "E S"]
    finished: list[Episode]


@dataclasses.dataclass
class EpisodeStatistics:
    """State of an `EnvAdapter` between two steps. Snapshots store it under these names.

    Attributes:
        observation: what the agent acts on next.
        steps: calls of `step` since the last reset.
        began: the number of steps when the current episode began.
        ret: undiscounted return of the current episode so far.
        success: the best success that the current episode reported so far; NaN if none.
        episodes: number of finished episodes.
        resetting: will the next step only reset (next-step autoreset)?
    """

    observation: Float[np.ndarray, "E S"]
    steps: int
    began: Int[np.ndarray, " E"]
    ret: Float[np.ndarray, " E"]
    success: Float[np.ndarray, " E"]
    episodes: Int[np.ndarray, " E"]
    resetting: Bool[np.ndarray, " E"]


# Modules whose environments and wrappers never call JAX.
HOST_ONLY = (
    *(f"gymnasium.envs.{kind}." for kind in ("classic_control", "box2d", "mujoco", "toy_text")),
    "gymnasium.core",
    "gymnasium.wrappers.common",
    "qscape.envs.lag",
    "qscape.envs.levels",
    "qscape.envs.reach",
    "gymnasium_robotics.",
    "qscape.envs.restricted",
    "qscape.envs.workers",  # whose environments may call JAX, in other processes
)


def make(
    env_id: str | Callable[..., gym.Env] | gym.Env | VectorEnv,
    envs: int = 1,
    env_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    autoreset: AutoresetMode = AutoresetMode.SAME_STEP,
    vectorise: Literal["sync", "async", "envpool"] = "sync",
    index_actions: bool = False,
    one_if_jax: bool = False,
    alone: str = "envs=1",
    lag: Lag = NO_LAG,
) -> "EnvAdapter":
    """Make an environment, or E of them, and the adapter around it.

    Args:
        env_id: an id (`HalfCheetah-v5`, `module:Env-v0`), a function that makes an environment, an
            environment, or a vector environment of any autoreset mode.
        envs: E, the number of environments side by side.
        env_args: arguments of the environment, and of `gymnasium.make` (`render_mode`, `max_episode_steps`).
        seed: environment i is seeded with `seed + i` at the first reset.
        autoreset: mode of the vector environment that is built if E > 1.
        vectorise: how E environments are stepped. "sync": one after the other. "async": one process for each;
            pays only if a step takes milliseconds. "envpool": in the threads of EnvPool, whose autoreset
            mode is next step.
        index_actions: pass discrete actions by index, as on-policy agents do.
        one_if_jax: make only one of an environment in JAX, whose copies a compiled program holds.
        alone: what the user may say so that one copy suffices, for errors of environments of which only one
            may exist.
        lag: how sensors and actuators lag.

    Raises:
        UsageError: an unknown id, a missing package, wrong `env_args`, spaces that do not fit, or a lag that
            does not.
    """
    args = dict(env_args or {})
    if envs < 1:
        raise OutOfRange(f"envs is {envs}: at least one environment is needed", field="envs")
    if isinstance(env_id, gym.Env | VectorEnv):
        if args or envs not in (1, getattr(env_id, "num_envs", 1)):
            raise Conflict(
                "an environment that is made already takes no env_args and cannot be multiplied: "
                "give its id or a function that makes it",
                field="env_args",
            )
        if lag != NO_LAG and isinstance(env_id, VectorEnv):
            raise Conflict(f"{_name_flags(lag)}: a vector environment is made already; {_GIVE}", field="env")
        one = with_time_limit(env_id)
        name = None if lag == NO_LAG else _id_of(one, one) or _class_name(one)  # before it is wrapped
        one = _lagged(one, lag, index_actions, name)
        return EnvAdapter(one, seed=seed, env_id=name, index_actions=index_actions)
    if not isinstance(env_id, str) and not callable(env_id):  # such as one of another library
        raise WrongValue(
            f"{env_id!r} is no environment of Gymnasium: give an id, a function that makes one, a "
            "gymnasium.Env, or a gymnasium.vector.VectorEnv",
            field="env",
        )

    if vectorise == "envpool" and lag != NO_LAG:
        raise Conflict(
            f"{_name_flags(lag)}: EnvPool steps environments that do not lag; leave --vectorise envpool out",
            field="vectorise",
        )

    name = env_id if isinstance(env_id, str) else None
    opened: list[gym.Env] = []

    def make_one(copy: int) -> gym.Env:
        with own_generators(seed + copy):
            return _lagged(build_env(env_id, args), lag, index_actions, name)

    def build(copy: int = 0) -> gym.Env:
        opened.append(make_one(copy))
        return opened[-1]

    spec = gym.registry.get(name.rpartition(":")[2]) if name else None

    def build_there(copy: int) -> gym.Env:
        """Make one in another process, which has not run what the user's script registers.

        It is sent there by pickle, so it must not hold `opened`, whose environments need not be picklable.
        """
        if spec is not None:
            gym.registry.setdefault(spec.id, spec)
        return make_one(copy)

    first = build()
    if (envs == 1 and vectorise != "envpool") or (one_if_jax and find_jax_env(first) is not None):
        return EnvAdapter(first, seed=seed, env_id=name, index_actions=index_actions)
    try:
        if vectorise != "sync":
            first.close()  # of some environments only as many may exist as are asked for
        if vectorise == "envpool":
            many: VectorEnv = EnvPoolEnv(env_id, envs, args, first)
        elif vectorise == "async":
            many = Workers([functools.partial(build_there, i) for i in range(envs)], autoreset)
        else:
            others = [functools.partial(build, i) for i in range(1, envs)]
            many = SyncVectorEnv([lambda: first, *others], autoreset_mode=autoreset)
    except UnmakeableEnv as problem:  # the first one could be made
        _close_quietly(opened)
        if vectorise == "envpool":  # one pool makes all copies
            raise
        raise problem.saying(f"{str(problem).rstrip('.')}; {_only_one(alone)}", field="envs") from problem
    except QscapeError:
        _close_quietly(opened)
        raise
    except Exception as problem:  # e.g. copies with different spaces
        _close_quietly(opened)
        raise Conflict(
            f"{env_id} cannot be made {envs} times ({_describe(problem)}); {_only_one(alone)}", field="envs"
        ) from problem
    adapter = EnvAdapter(many, seed=seed, env_id=name, example=first, index_actions=index_actions)
    adapter.alone = alone
    if vectorise == "sync" and len(adapter.environments) < envs:
        raise Conflict(
            f"{envs} environments are needed side by side, but the function gave {adapter.env_id} at every "
            "call: let it make a new one",
            field="envs",
        )
    return adapter


class Witness(Protocol):
    """Looks at steps of an adapter."""

    def __call__(
        self, adapter: "EnvAdapter", action: Float[np.ndarray, "E A"]
    ) -> Callable[[Transition], None] | None:
        """Look at a step before it is made; return what looks at it afterwards, or None."""
        ...


_GIVE = "give the id of an environment, or a function that makes one"


def _lagged(env: gym.Env, lag: Lag, index_actions: bool, name: str | None) -> gym.Env:
    """Return an environment whose sensors and actuators lag. Raises UsageError if they cannot."""
    if lag == NO_LAG:
        return env
    name = name or _class_name(env)
    _find_space(env, "observation_space", name)
    try:
        refuse_longer(lag, _time_limit(env), name)
        return add_lag(env, lag, name, index_actions)
    except QscapeError:
        env.close()
        raise


def _name_flags(lag: Lag) -> str:
    """Return the flags of a lag, for errors."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in lag.changes.items())


class EnvAdapter:
    """E Gymnasium environments with one interface: float32 observations [E, S], actions [E, A] in [-1, 1].

    Made by `make`. `reset` once, then `step`: finished episodes restart by themselves. The module's docstring
    explains autoreset, termination and truncation.

    Attributes:
        env: the Gymnasium environment, plain or vector.
        env_id: the id that makes it, or the name of its class if no id does.
        envs: E.
        spec: sizes and bounds that an agent is bound to.
        seed: of the first reset.
        masks: reads which actions are valid; None: all are.
        time_limit: steps after which an episode is truncated; None: no limit is known.
        spaces: the spaces of an observation and of an action as JSON, which saves keep (`kept_spaces`).
        jax_env: the environment as pure functions, if it is written in JAX; else None.
        stack: what a policy carries where the world lags by itself; None: nothing.
        reward_threshold: the return at which the task counts as solved; None: not defined.
        goals: what `follow_goals` notes of the goals; None: nothing.
        statistics: the state between two steps.
        interrupted: what ended a step before its end: an error, `SystemExit` or `KeyboardInterrupt` from
            within, the end of its process, or that it hung; "" if an episode can go on.
        called: the call of the environment that has not returned yet; None: there is none.
        witness: looks at steps (`repeats.SaveWitness`); None: nothing does.
        unkept: a sentence that says why no snapshot holds the whole state; "": as far as is known, each does.
        constants: what `snapshot.remember` found.
        alone: what the user may say so that one copy suffices; "" if there is one copy only.
    """

    def __init__(
        self,
        env: gym.Env | VectorEnv,
        *,
        seed: int = 0,
        env_id: str | None = None,
        example: gym.Env | None = None,
        index_actions: bool = False,
    ):
        """Wrap an environment; call `make` instead.

        Args:
            env: a plain or a vector environment.
            seed: of the first reset.
            env_id: the id that makes it; None: found from its spec.
            example: one of its sub-environments, for the spec and the time limit; None: found if possible.
            index_actions: pass discrete actions by index.
        """
        self.env, self.seed, self.interrupted = env, seed, ""
        self.called: Call | None = None
        self.witness: Witness | None = None
        self.unkept = ""
        self.constants: dict[str, Any] | None = None
        self.alone, self._told_unread, self._told_far = "", False, False
        borrowed: gym.Env | None = None
        if isinstance(env, VectorEnv):
            if example is None and isinstance(env.unwrapped, SyncVectorEnv):
                example = env.unwrapped.envs[0]
            elif example is None and type(env.unwrapped) is AsyncVectorEnv:  # `Workers` copy what they send
                borrowed = example = _make_example(env.unwrapped, env.metadata)
            self.envs, prefix = env.num_envs, "single_"
        else:
            example, self.envs, prefix = env, 1, ""
        space, actions = (
            _find_space(env, f"{prefix}{name}_space", env_id) for name in ("observation", "action")
        )
        about: Any = example or env
        registered = _spec_of(about)
        self.env_id = env_id or _id_of(about, env) or _class_name(about)
        self.reward_threshold = registered.reward_threshold if registered else None
        self.time_limit = _time_limit(about)
        self.jax_env = find_jax_env(env)
        bare, declared = about.unwrapped, declared_by(about)

        def read_space(space: gym.Space, bare: Any = bare) -> _Observations:
            return _read_space(space, actions, self.env_id, bare, declared, index_actions)

        self._read_space, seen = read_space, read_space(space)
        self.masks, frame = seen.masks, seen.frame
        self._as_bytes = index_actions and frame is not None  # as on-policy agents keep images
        self.spaces: dict[str, Any] = {
            "observation": describe_space(space),
            "action": describe_space(actions),
        }
        if (hidden := declared("privileged_keys")) is not None:
            self.spaces["critics_only"] = [hidden] if isinstance(hidden, str) else [*map(str, hidden)]
        self._observation_space = space
        convert = functools.partial(
            make_action_map,
            actions,
            unwrapped=bare,
            env_id=self.env_id,
            index_actions=index_actions,
        )
        action_size, table, self._to_env = convert(envs=self.envs)
        published = table is not None and isinstance(actions, Discrete)
        if published and isinstance(env.unwrapped, SyncVectorEnv | Workers):
            first, *others = env.unwrapped.get_attr("action_table")
            if not all(np.array_equal(first, other) for other in others):
                raise Mismatch(describe_other_table(self.env_id))
        self._space = seen.space
        self._lag = find_lag(about)
        self._convert = functools.lru_cache(lambda rows: convert(envs=rows)[2])
        bounds = (actions.low.ravel(), actions.high.ravel()) if isinstance(actions, Box) else (None, None)
        actor_size = None
        if seen.actor_space is not None:
            actor_size = make_flatten(seen.actor_space, self.env_id, frame is not None)[0]
        self.spec = Spec(
            seen.size,
            action_size,
            table,
            *bounds,
            **index_sizes(actions, index_actions),
            frame=frame,
            actor_size=actor_size,
            time_limit=self.time_limit,
            mask=None if self.masks is None else self.masks.mask,
            goal_size=_goal_size(space, declared),
        )
        if borrowed is not None:
            borrowed.close()
        self._declared, self.goals = declared, None
        self._precision = Precision(() if frame is not None else self.leaves)
        reader = _Reader(
            watched(seen.flatten, self._precision) if frame is None else seen.flatten, self.masks
        )
        if not isinstance(env, VectorEnv):
            self._source = _Copies([env], None, self.env_id, reader)
        elif type(env) is SyncVectorEnv:
            self._source = _Copies(env.envs, find_reset_mode(env), self.env_id, reader)
        else:
            self._source = _Vector(env, self.env_id, reader)
        if isinstance(self._source, _Copies):
            self._source.enter = self._enter
        self._set_raw(seen)
        self._action_shape = (self.envs, action_size)
        self._seeded = False
        kind = np.uint8 if self._as_bytes else np.float32
        self._reset_statistics(np.zeros((self.envs, self.spec.row_size), kind), np.zeros(self.envs, np.int64))

    def arrange(self, kept: Mapping[str, Any]) -> None:
        """Read the keys of a Dict of observations in the order in which a save keeps them.

        Called before the first reset. Nothing changes if there are other keys.

        Args:
            kept: the `spaces` of an adapter, this one's or another one's.
        """
        space = order_like(self._observation_space, kept["observation"])
        if space is self._observation_space:
            return
        seen = self._read_space(space)
        self._observation_space, self.spaces = space, self.spaces | {"observation": describe_space(space)}
        self._space = seen.space
        flatten = seen.flatten
        if self.spec.frame is None:
            self._precision = Precision(self.leaves)
            flatten = watched(flatten, self._precision)
        self._source.read = _Reader(flatten, self.masks)
        self._set_raw(seen)
        if self.goals is not None:
            self.goals.first, _ = self._find_goal()

    def _set_raw(self, seen: "_Observations") -> None:
        """Find out how the environment's own observations become those that networks see, as in `seen`."""
        self._raw, self.stack, lag = seen, None, self._lag
        if lag is None:
            return
        if isinstance(lag, JaxLag):
            self._raw = self._read_space(lag.inner.observation_space, GymnasiumEnv(lag.inner))
            index, code = lag.find_sources(), lag.code
        else:
            self._raw = self._read_space(lag.env.observation_space)
            index = lag.find_sources(self._leaves_of(self._raw.space), self.leaves)
            code = lag.code
        stack = RowStack(lag.lag, self._raw.size, code, index)
        self.stack = stack if stack.width else None

    def follow_goals(self) -> Goals:
        """Note what is achieved and desired from the next reset on, in a task with goals; return that."""
        first, size = self._find_goal()
        inner: Any = self._source.envs if isinstance(self._source, _Copies) else []

        def functions(name: str) -> list[GoalFunction]:
            own = [env.get_wrapper_attr(name) for env in inner] or [self._declared(name)] * self.envs
            has_infos = not isinstance(self.env.unwrapped, Workers)
            return [GoalFunction(function, name, self.env_id, has_infos) for function in own]

        ends = functions("compute_terminated") if self._declared("compute_terminated") else None
        self.goals = Goals(first, size, functions("compute_reward"), ends)
        self._source.goals = self.goals
        return self.goals

    def _find_goal(self) -> tuple[int, int]:
        """Return where the desired goal begins in a flat observation, and how many entries it has."""
        sizes = {path: math.prod(box.shape) for path, box in self.leaves}
        return sum(list(sizes.values())[: list(sizes).index((DESIRED,))]), sizes[(DESIRED,)]

    @property
    def is_host_only(self) -> bool:
        """Is it known that no step calls JAX? A step that does would deadlock inside a compiled program."""
        many: Any = self.env.envs if isinstance(self.env, SyncVectorEnv) else [self.env]
        return self.spec.table is None and all(map(_is_host_only, many))

    @property
    def environments(self) -> set[int]:
        """The Python `id` of each environment without its wrappers, to find out if two adapters share one."""
        bare = self.env.unwrapped
        return {id(env.unwrapped) for env in (bare.envs if isinstance(bare, SyncVectorEnv) else [bare])}

    @property
    def autoreset(self) -> str:
        """Autoreset mode of a vector environment; "" for a plain one, which the adapter resets."""
        return "" if self._source.mode is None else self._source.mode.value

    @property
    def longest(self) -> int:
        """Number of steps of the longest unfinished episode."""
        return int(self.statistics.steps - self.statistics.began.min())

    @property
    def first(self) -> gym.Env | None:
        """The first environment with its wrappers, if this process steps it by itself; else None."""
        return self._source.envs[0] if isinstance(self._source, _Copies) else None

    def reset_first(self, seed: int | None = None) -> np.ndarray:
        """Reset the first environment alone; return its first observation as a row `[S + M]`."""
        return self._source.read.one(*self.outside[0].reset(self.first, seed))[0]

    def step_first(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        """Step the first environment alone, with an action in its units, and do not reset it.

        Returns:
            The next observation as a row `[S + M]`, reward, terminated and truncated.
        """
        assert self.first is not None
        observation, reward, *ends, info = self.outside[0].call(self.first.step, action)
        terminated, truncated = (read_flag(end, self.env_id) for end in ends)
        row = self._source.read.one(observation, info, terminated)[0]
        return row, read_reward(reward, self.env_id), terminated, truncated

    def to_first(self, action: Float[np.ndarray, "E A"]) -> Any:
        """Return the action of the first environment, in its units."""
        return self._to_env(action)[0].copy()

    @property
    def has_reset_rows(self) -> bool:
        """Does the environment return rows that only reset (next-step autoreset)?"""
        return self._source.has_reset_rows

    @property
    def observation(self) -> Float[np.ndarray, "E S"]:
        """The observation that the agent acts on next."""
        return self.statistics.observation

    @property
    def resetting(self) -> Bool[np.ndarray, " E"] | None:
        """Where the next step only resets an environment; None: in none, ever."""
        return self.statistics.resetting if self.has_reset_rows else None

    @property
    def leaves(self) -> list[tuple[tuple[str, ...], Box]]:
        """The Boxes of the observation space and the keys that lead to them, in the order of a flat row."""
        return self._leaves_of(self._space)

    def _leaves_of(self, space: gym.Space) -> list[tuple[tuple[str, ...], Box]]:
        return box_leaves(space, (), self.env_id, images=self.spec.frame is not None)

    @property
    def form(self) -> str:
        """The shapes of the environment's own observation as text: `(3,)`, or `goal (2,), robot.joints (7,)`
        of a Dict.
        """
        leaves = self._leaves_of(self._raw.space)
        return ", ".join(f"{'.'.join(path)} {box.shape}".strip() for path, box in leaves)

    @property
    def actor_leaves(self) -> list[tuple[tuple[str, ...], Box]]:
        """The Boxes that actors see of the environment's own observation, in the order of a flat row."""
        return self._leaves_of(self._raw.actor_space or self._raw.space)

    @property
    def raw_sizes(self) -> tuple[int, int]:
        """Entries of the environment's own observation, and how many of them, the first ones, actors see."""
        raw = self._raw
        if raw.actor_space is None:
            return raw.size, raw.size
        return raw.size, sum(int(np.prod(box.shape)) for _, box in self.actor_leaves)

    @property
    def observation_bounds(self) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
        """Lower and upper bounds of the observation space; ±inf where it is unbounded (`true_bounds`)."""
        bounds = [true_bounds(box) for _, box in self.leaves]
        low, high = (
            np.concatenate([bound.ravel() for bound in of]).astype(np.float32)
            for of in zip(*bounds, strict=True)
        )
        return low, high

    def reset(self) -> Float[np.ndarray, "E S"]:
        """Start new episodes in all environments and return their first observations.

        Unfinished episodes are dropped. The first call seeds the environments.

        Raises:
            RunError: the environment raised an error, or an observation is NaN or infinite.
        """
        seed = None if self._seeded else self.seed
        self._seeded, self.interrupted = True, ""
        self._reset_statistics(self._call_env(self._source.reset, seed), self.statistics.episodes)
        self._check_finite(self.statistics.observation, "reset observation")
        return self.statistics.observation

    def seed_every_reset(self) -> None:
        """Give every reset from now on a seed of its own, for environments that draw entropy without one.

        It follows from the seed of the first reset and the number of resets since then. Does nothing to
        environments that reset themselves.
        """
        if isinstance(self._source, _Copies):
            self._source.gives_seeds = True

    @property
    def given_seeds(self) -> list[int] | None:
        """The seed from which seeds of resets follow, and the number of those given to each environment.

        None: resets get none.
        """
        source = self._source
        gives = isinstance(source, _Copies) and source.gives_seeds
        return [source.seed, *source.given] if gives else None  # pyright: ignore[reportAttributeAccessIssue]

    @given_seeds.setter
    def given_seeds(self, saved: list[int]) -> None:
        self.seed_every_reset()
        if isinstance(self._source, _Copies):
            self._source.seed, *self._source.given = saved

    def reseed(self, seed: int) -> None:
        """Make the next `reset` seed the environments again, environment i with `seed + i`."""
        self.seed, self._seeded = seed, False

    def step(self, action: Float[np.ndarray, "E A"]) -> Step:
        """Step all environments, and reset those whose episode ended.

        Args:
            action: in [-1, 1], or rows of the action table, or indices of discrete actions (`index_actions`).

        Raises:
            UsageError: the action has the wrong shape.
            RunError: the environment raised an error, or an action, observation or reward is NaN or infinite.
        """
        action = np.asarray(action)
        if action.shape != self._action_shape:
            raise Mismatch(f"{self.env_id} takes actions {self._action_shape}, not {action.shape}")
        statistics = self.statistics
        valid = ~statistics.resetting
        statistics.steps += 1
        self._check_finite(action, "the agent's action")
        seen = None if self.witness is None else self.witness(self, action)
        after, reward, terminated, truncated, now, success = self._call_env(
            self._source.step, self._to_env(action), valid
        )
        statistics.ret = statistics.ret + reward
        self._check_finite(after, "observation")
        with np.errstate(over="ignore"):
            learnt = np.asarray(reward, np.float32)
        self._check_finite(learnt, "reward", reward)
        if success is not None:
            statistics.success = np.fmax(statistics.success, success)
        finished: list[Episode] = []
        ended = terminated | truncated
        if np.count_nonzero(ended):
            finished = self._finish_episodes(ended)
            if now is not after:
                self._check_finite(now, "reset observation")
        transition = Transition(statistics.observation, action, learnt, terminated, truncated, after, valid)
        statistics.observation = now
        if seen is not None:
            seen(transition)
        if self._source.has_reset_rows:
            statistics.resetting = ended
        return Step(transition, now, finished)

    @property
    def outside(self) -> list[Outside]:
        """What environments keep outside their instances: one for each copy that is stepped here."""
        return self._source.outside

    def take_warnings(self) -> list[str]:
        """Return sentences that the user has not seen: what falls of what a run promises."""
        late = {name for outside in self.outside for name in outside.late}
        for outside in self.outside:
            outside.late.clear()
        told = []
        if isinstance(self._source, _Copies) and self._source.unread and not self._told_unread:
            self._told_unread = True
            told = [
                f'{self.env_id}: info["{self._source.unread}"] looks like success, and only info["success"] '
                'and info["is_success"] are read: a wrapper can give it that name'
            ]
        if not self._told_far and (far := self._precision.warning(self.env_id)):
            self._told_far = True
            told.append(far)
        if self.goals is not None:
            told += self.goals.take_warnings(self.env_id)
        return told + [
            f"{self.env_id} changed {name} late in training, so runs of one seed may differ: what it keeps "
            "outside its instance is looked for in its first steps; use self.np_random and attributes of self"
            for name in sorted(late)
        ]

    def render_frame(self) -> np.ndarray:
        """Render the first environment as an image `[H, W, 3]`, uint8.

        Raises:
            UsageError: it was not made with `render_mode="rgb_array"`, or a package for rendering is missing.
        """
        if self.env.render_mode != "rgb_array":
            raise Conflict(f'{self.env_id} has no pictures: make it with render_mode="rgb_array"')
        try:
            frame = self.env.render()
        except gym.error.DependencyNotInstalled as problem:
            raise MissingPackage(
                f'{self.env_id} draws with a missing package: pip install "qscape[video]"'
            ) from problem
        picture = np.asarray(frame[0] if frame is not None and isinstance(self.env, VectorEnv) else frame)
        if picture.ndim == 2:
            picture = picture[..., None]
        if picture.ndim != 3 or picture.shape[2] not in (1, 3, 4) or picture.dtype.kind not in "biuf":
            what = f"{picture.dtype}{list(picture.shape)}" if frame is not None else "None"
            raise BrokenEnv(
                f"{self.env_id} renders {what}; a picture is an array [H, W, 3] of bytes, or grey"
            )
        if picture.dtype.kind == "f" or picture.dtype == np.bool_:  # shares of white
            picture = np.clip(picture.astype(np.float64), 0, 1) * 255
        colours = np.repeat(picture, 3, 2) if picture.shape[2] == 1 else picture[..., :3]
        return colours.astype(np.uint8)

    def observations(
        self, observation: Any, action_mask: Any = None, whole: bool = False
    ) -> tuple[Float[np.ndarray, "n S"], bool]:
        """Return observations of the environment's own space as flat rows, and was there a batch axis?

        Where networks see more of the past, `stack` makes of them what networks see. What critics alone see
        may be left out; it becomes zeros, on which no action depends.

        Args:
            observation: of the environment's space, one or a batch.
            action_mask: which actions are valid, [N] or [n, N], of a task with masks; None: the mask in the
                observation, and without one all actions.
            whole: refuse observations without what critics alone see, on which Q depends.

        Raises:
            UsageError: it is neither one observation of the space nor a batch, or a number is not finite.
        """
        try:
            rows, batched = self._flatten_given(observation)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, BrokenEnv) as problem:
            hint = f": {problem} is missing" if isinstance(problem, KeyError) else ""
            if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
                hint = "; of (observation, info), which reset returns, pass the first"
            what = type(observation).__name__
            raise Mismatch(f"{self.env_id} has observations {self.form}, not this {what}{hint}") from problem
        if missing := self._raw.size - rows.shape[1]:
            if whole:
                raise Mismatch(
                    f"this observation of {self.env_id} lacks what critics alone see, and Q depends on it; "
                    "give all of the observation"
                )
            rows = np.pad(rows, [(0, 0), (0, missing)])
        if not np.isfinite(rows).all():
            row, number = np.argwhere(~np.isfinite(rows))[0].tolist()
            raise OutOfRange(f"observation[{number}] is {rows[row, number]}; it must be a finite number")
        return self._add_mask(rows, observation, action_mask), batched

    def _flatten_given(self, observation: Any) -> tuple[np.ndarray, bool]:
        """Return rows of a user's observations, and whether there was a batch axis."""
        flatten, leaves = self._raw.flatten, self._leaves_of(self._raw.space)
        if self._raw.actor_space is not None and self._is_actor_part(observation):
            images = self.spec.frame is not None
            flatten, leaves = make_flatten(self._raw.actor_space, self.env_id, images)[1], self.actor_leaves
        shapes = [
            np.shape(functools.reduce(lambda part, key: part[key], path, observation)) for path, _ in leaves
        ]
        shape, (_, box) = shapes[0], leaves[0]
        batched = shape != box.shape
        if batched and shape[1:] != box.shape:
            raise Mismatch(f"{self.env_id} has observations {box.shape}, not {shape}")
        n = shape[0] if batched else 1
        for other, (path, box) in zip(shapes, leaves, strict=True):
            if math.prod(other) != n * math.prod(box.shape):
                need = (n, *box.shape) if batched else box.shape
                raise WrongValue(f"{self.env_id}: {'.'.join(path)} is {other}; it must be {need}")
        return flatten(observation, n), batched

    def _add_mask(self, rows: np.ndarray, observation: Any, action_mask: Any) -> np.ndarray:
        """Return rows with the masks of their states behind them, if the task has masks."""
        if self.masks is None:
            if action_mask is not None:
                raise Conflict(
                    f"{self.env_id} has no action masks: leave action_mask out", field="action_mask"
                )
            return rows
        actions = self.masks.entries
        if action_mask is None and isinstance(observation, Mapping):
            action_mask = observation.get("action_mask")
        valid = np.ones(actions) if action_mask is None else np.asarray(action_mask)
        if valid.shape not in ((actions,), (1, actions), (len(rows), actions)) or not valid.any(-1).all():
            raise Mismatch(
                f"action_mask is {valid.shape}; it needs {actions} entries for each of {len(rows)} "
                "observations, at least one of them true",
                field="action_mask",
            )
        most = self.masks.mask.candidates
        if most is not None and valid.astype(bool).sum(-1).max() > most:
            raise OutOfRange(
                f"{self.env_id} has at most {most} valid actions in a state: pass action_mask with no more "
                "true entries",
                field="action_mask",
            )
        words = self.masks.pack(np.broadcast_to(valid.astype(bool), (len(rows), actions)))
        if np.isnan(words).any():
            raise OutOfRange(
                "action_mask leaves a part of the action without a valid value", field="action_mask"
            )
        return np.concatenate([rows, words.astype(self.masks.dtype)], axis=1)

    def _is_actor_part(self, observation: Any) -> bool:
        """Return whether something is left out that critics alone see."""
        if isinstance(self._raw.space, gym.spaces.Dict):
            return not self._raw.space.spaces.keys() <= observation.keys()
        return np.shape(observation)[-1:] == (self.raw_sizes[1],)

    def actions(self, action: Float[np.ndarray, "n A"]) -> np.ndarray:
        """Return actions in the environment's units and shape, one for each row of `action` in [-1, 1]."""
        return self._convert(len(action))(action)

    def close(self) -> None:
        """Close the environments.

        Raises:
            RunError: an environment raised an error.
        """
        try:
            self.env.close()
        except Exception as problem:
            raise BrokenEnv(f"{self.env_id} broke when it was closed ({_describe(problem)}).") from problem

    def _reset_statistics(self, observation: np.ndarray, episodes: np.ndarray) -> None:
        """Start the statistics of new episodes in all environments."""
        n = self.envs
        self.statistics = EpisodeStatistics(
            observation=observation,
            steps=0,
            began=np.zeros(n, np.int64),
            ret=np.zeros(n),
            success=np.full(n, np.nan),
            episodes=episodes,
            resetting=np.zeros(n, bool),
        )

    def _finish_episodes(self, ended: np.ndarray) -> list[Episode]:
        """Return the episodes that ended, and new statistics for these environments."""
        statistics, finished = self.statistics, []
        for i in np.flatnonzero(ended).tolist():
            success = float(statistics.success[i])
            length = int(statistics.steps - statistics.began[i])
            finished.append(
                Episode(i, length, float(statistics.ret[i]), None if np.isnan(success) else success)
            )
        statistics.began[ended] = statistics.steps + self._source.has_reset_rows
        statistics.ret[ended], statistics.success[ended] = 0.0, np.nan
        statistics.episodes[ended] += 1
        if ended.all():
            self.interrupted = ""
        return finished

    def _enter(self, what: str) -> None:
        """Note that a call of the environment begins."""
        self.called = Call(what, time.monotonic(), threading.get_ident())

    def _call_env(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call the environment; an error becomes a RunError of one sentence, with the cause attached."""
        self._enter(call.__name__)
        try:
            return call(*arguments)
        except QscapeError as problem:
            self.interrupted = describe(problem)
            raise
        except Exception as problem:
            self.interrupted = describe(problem)
            step = self.statistics.steps - self.statistics.began.max()
            why, hint = _describe(problem), _hint(problem)
            if self.alone and not self.statistics.episodes.any() and step <= 1 and not hint:
                hint = f"; {_only_one(self.alone)}"
            raise BrokenEnv(f"{self.env_id} broke in step {step} of an episode ({why}){hint}.") from problem
        except BaseException as problem:
            self.interrupted = describe(problem)
            raise
        finally:
            self.called = None

    def _check_finite(self, rows: np.ndarray, field: str, given: np.ndarray | None = None) -> None:
        """Raise a RunError if a number is NaN or infinite; `given`: the numbers before they were cast."""
        if np.count_nonzero(np.isfinite(rows)) == rows.size:  # ndarray.all costs a microsecond more
            return
        row, *index = np.argwhere(~np.isfinite(rows))[0].tolist()
        step = int(self.statistics.steps - self.statistics.began[row])
        value = float((rows if given is None else given)[(row, *index)])
        episode = int(self.statistics.episodes[row]) + 1
        seen = self.spec.observation_size
        self.interrupted = f"{field} was not finite"
        raise NotFinite(describe_not_finite(self.env_id, field, index, value, row, step, episode, seen))


class _Observations(NamedTuple):
    """How the observations of a space become rows.

    Attributes:
        space: what networks see, the image first, and what critics alone see last.
        actor_space: the part of it that actors see; None: everything.
        frame: shape of the image; None: there is none.
        size: S.
        flatten: makes rows of observations.
        masks: reads which actions are valid; None: all are.
    """

    space: gym.Space
    actor_space: gym.Space | None
    frame: tuple[int, ...] | None
    size: int
    flatten: Callable[[Any, int], np.ndarray]
    masks: MaskReader | None


def _read_space(
    space: gym.Space,
    actions: gym.Space,
    env_id: str,
    bare: Any,
    declared: Callable[[str], Any],
    index_actions: bool,
) -> _Observations:
    """Return how the observations of a space become rows. Raises UsageError if they cannot."""
    refuse_goals(space, env_id)
    native = bare if isinstance(bare, GymnasiumEnv) else None
    image = index_actions and is_image(space)
    space, masks = find_mask(env_id, space, actions, native, declared, image, index_actions)
    space, actor_space = split_space(space, env_id, bare, declared("privileged_keys"))
    frame = space.shape if is_image(space) else None
    if not index_actions:
        space, actor_space, frame = put_image_first(space, actor_space, env_id)
    as_bytes = index_actions and frame is not None
    size, flatten = make_flatten(space, env_id, frame is not None, as_bytes)
    return _Observations(space, actor_space, frame, size, flatten, masks)


def _goal_size(space: gym.Space, declared: Callable[[str], Any]) -> int | None:
    """Return the entries of a goal; None where the environment has no goals or no reward for other ones."""
    if not has_goals(space) or not callable(declared("compute_reward")):
        return None
    return math.prod(space[DESIRED].shape)  # type: ignore[index]


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Makes rows of what environments return: flat observations, and behind them masks if there are any."""

    flatten: Callable[[Any, int], np.ndarray]
    masks: MaskReader | None

    def one(self, observation: Any, info: Mapping[str, Any], terminated: bool = False) -> np.ndarray:
        """Return the row `[1, S + M]` of one environment; `terminated`: is it a terminal state?"""
        flat = self.flatten(observation, 1)
        if self.masks is None:
            return flat
        words = self.masks.read(
            [observation], {key: [value] for key, value in info.items()}, np.array([True])
        )
        return self.masks.add_words(flat, words, np.array([terminated]))

    def many(
        self, observation: Any, info: Mapping[str, Any], terminated: np.ndarray, needed: np.ndarray
    ) -> np.ndarray:
        """Return the rows `[E, S + M]` of a vector environment.

        Args:
            terminated: [E], which of them are terminal states.
            needed: [E], which of them have a mask; the others' are anything.
        """
        flat = self.flatten(observation, len(needed))
        if self.masks is None:
            return flat
        words = self.masks.read(observation, info, needed)
        return self.masks.add_words(flat, words, terminated)


class _Copies:
    """Environments that this class steps and resets one after the other.

    Gymnasium's vector environment would pack infos and rewards into arrays, which changes or refuses what
    differs between copies, and would give the copies rows of one array of actions.
    """

    def __init__(self, envs: Sequence[gym.Env], mode: AutoresetMode | None, env_id: str, read: _Reader):
        """Take E environments.

        Args:
            envs: the environments.
            mode: of the vector environment that they are from; None: from none.
            env_id: name of the environment, for errors.
            read: makes rows of what they return.
        """
        self.envs, self.mode, self.env_id, self.read = envs, mode, env_id, read
        self.goals: Goals | None = None
        self.outside = [Outside(env) for env in envs]
        self.unread = ""  # what looks like success in the info of an episode's end, and is not read
        self.has_reset_rows = mode is AutoresetMode.NEXT_STEP
        self.gives_seeds = False  # to every reset, not to those alone that were asked for
        self.seed, self.given = 0, [0] * len(envs)  # the seed that was asked for; resets of each since then
        self.enter: Callable[[str], None] = lambda what: None  # told which call begins

    def reset(self, seed: int | None) -> np.ndarray:
        """Return the first observations `[E, S]`."""
        if seed is not None:
            self.seed, self.given = seed, [0] * len(self.envs)
        asked = [None if seed is None else seed + i for i in range(len(self.envs))]
        return np.concatenate([self._reset(i, one) for i, one in enumerate(asked)])

    def _reset(self, i: int, seed: int | None = None) -> np.ndarray:
        """Return the row `[1, S]` of the first observation of environment i."""
        if seed is None and self.gives_seeds:
            self.given[i] += 1
            made = np.random.SeedSequence([self.seed + i, self.given[i]])
            seed = int(made.generate_state(1)[0] >> 1)
        self.enter("reset")
        given = self.outside[i].reset(self.envs[i], seed)
        self.enter("step")
        row = self.read.one(*given)
        if self.goals is not None:
            self.goals.begin(i, given[0])
        return row

    def step(self, action: np.ndarray, valid: np.ndarray) -> tuple:
        """Return (next observation, reward, terminated, truncated, observation, success), as in `Step`.

        Rows that are not `valid` only reset in this step. Success is NaN where none is reported, and None if
        no environment reports any.
        """
        after, now, successes, is_reset = [], [], [], False
        reward = np.zeros(len(valid))
        terminated, truncated = np.zeros(len(valid), bool), np.zeros(len(valid), bool)
        for i, env in enumerate(self.envs):
            if self.has_reset_rows and not valid[i]:
                after.append(self._reset(i))
                now.append(after[-1])
                successes.append(None)
                continue
            given_action = action[i].copy()  # environments keep it
            observation, given, *ends, info = self.outside[i].call(env.step, given_action)
            terminated[i], truncated[i] = (read_flag(end, self.env_id) for end in ends)
            reward[i] = read_reward(given, self.env_id)
            successes.append(read_success(info, self.env_id))  # before a reset that may fill `info` anew
            if successes[-1] is None and not self.unread and (terminated[i] or truncated[i]):
                self.unread = next((key for key in info if isinstance(key, str) and UNREAD.search(key)), "")
            after.append(self.read.one(observation, info, terminated[i]))
            if self.goals is not None:
                self.goals.step(
                    i, observation, info, terminated[i], truncated[i], successes[-1], float(reward[i])
                )
            if not self.has_reset_rows and (terminated[i] or truncated[i]):
                now.append(self._reset(i))
                is_reset = True
            else:
                now.append(after[-1])
        rows = after[0] if len(after) == 1 else np.concatenate(after)
        success = None
        if any(one is not None for one in successes):
            success = np.array([np.nan if one is None else one for one in successes])
        return rows, reward, terminated, truncated, np.concatenate(now) if is_reset else rows, success


class _Vector:
    """Somebody's vector environment; the three autoreset modes look the same from outside."""

    def __init__(self, env: VectorEnv, env_id: str, read: _Reader):
        self.env, self.env_id, self.read = env, env_id, read
        self.goals: Goals | None = None
        self.outside = [Outside(env)]
        self.mode = find_reset_mode(env)
        self.has_reset_rows = self.mode is AutoresetMode.NEXT_STEP
        if isinstance(env.unwrapped, SyncVectorEnv):
            bare: Any = env.unwrapped
            bare._add_info = functools.partial(pack_infos, bare._add_info, bare.num_envs)

    def reset(self, seed: int | None) -> np.ndarray:
        """Return the first observations `[E, S]`."""
        envs = self.env.num_envs
        observation, info = self.outside[0].reset(self.env, seed)
        self._begin(observation, np.ones(envs, bool))
        return self.read.many(observation, info, np.zeros(envs, bool), np.ones(envs, bool))

    def step(self, action: np.ndarray, valid: np.ndarray) -> tuple:
        """Return (next observation, reward, terminated, truncated, observation, success), as in `Step`.

        `valid` is False for rows that only reset in this step; their reward and flags do not count.
        """
        observation, reward, terminated, truncated, info = self.outside[0].call(self.env.step, action)
        reward = np.where(valid, read_rewards(reward, len(valid), self.env_id), 0.0)
        terminated, truncated = np.asarray(terminated) & valid, np.asarray(truncated) & valid
        ended = terminated | truncated
        same_step = self.mode is AutoresetMode.SAME_STEP
        # What same-step autoreset returns of an ended episode is the next one's first observation.
        terminal = terminated & (not same_step)
        after = now = self.read.many(observation, info, terminal, np.ones(len(valid), bool))
        success = np.where(valid, self._success(info), np.nan)
        if same_step and ended.any():
            after = now.copy()
            for i in np.flatnonzero(ended):
                mask = self._final_mask(info, int(i))
                after[i] = self.read.one(info["final_obs"][i], mask, terminated[i])[0]
            success = np.where(ended, self._success(info.get("final_info", {})), success)
        self._note_goals(observation, info, valid, terminated, ended, success, reward)
        if same_step:
            self._begin(observation, ended)
        elif self.mode is AutoresetMode.DISABLED and ended.any():
            again = functools.partial(self.env.reset, options={"reset_mask": ended})
            observation, info = self.outside[0].call(again)
            self._begin(observation, ended)
            first = self.read.many(observation, info, np.zeros(len(ended), bool), ended)
            now = np.where(ended[:, None], first, after)
        return after, reward, terminated, truncated, now, success

    def _begin(self, observation: Any, where: np.ndarray) -> None:
        """Note the goals of the episodes that begin [E]."""
        if self.goals is not None:
            for i in np.flatnonzero(where).tolist():
                self.goals.begin(i, {key: observation[key][i] for key in (ACHIEVED, DESIRED)})

    def _note_goals(
        self,
        observation: Any,
        info: dict[str, Any],
        valid: np.ndarray,
        terminated: np.ndarray,
        ended: np.ndarray,
        success: np.ndarray,
        reward: np.ndarray,
    ) -> None:
        """Note the goals of a step; rows that are not `valid` begin episodes."""
        if self.goals is None:
            return
        self._begin(observation, ~valid)
        for i in np.flatnonzero(valid).tolist():
            seen, given = {key: observation[key][i] for key in (ACHIEVED, DESIRED)}, info
            if ended[i] and self.mode is AutoresetMode.SAME_STEP:
                seen, given = info["final_obs"][i], info.get("final_info", {})
            has = (key for key in given if f"_{key}" in given and _is_given(given, key, i))
            own = {key: given[key][i] for key in has}
            reported = None if np.isnan(success[i]) else float(success[i])
            ends = bool(terminated[i]), bool(ended[i] and not terminated[i])
            self.goals.step(i, seen, own, *ends, reported, float(reward[i]))

    def _final_mask(self, info: dict[str, Any], i: int) -> dict[str, Any]:
        """Return what environment i said of the valid actions of its episode's last state."""
        masks = self.read.masks
        if masks is None or masks.source == "observation":
            return {}
        final, keys = info.get("final_info", {}), (masks.source, f"_{masks.source}")
        return {key: final[key][i] for key in keys if key in final}

    def _success(self, info: dict[str, Any]) -> np.ndarray:
        """Return the success that each environment reports `[E]`; NaN if it reports none."""
        reported = np.full(self.env.num_envs, np.nan)
        for i in range(len(reported)):
            has = {key: info[key][i] for key in SUCCESS if key in info and _is_given(info, key, i)}
            success = read_success(has, self.env_id)
            reported[i] = np.nan if success is None else success
        return reported


def _is_given(info: Mapping[str, Any], key: str, i: int) -> bool:
    """Return whether environment i gave this key of a vector environment's infos."""
    given = np.asarray(info.get(f"_{key}", True))
    return bool(given[i] if given.ndim else given)


def _supersuit(env: Any) -> str:
    """Return the end of an error of a vector environment that SuperSuit makes of several agents."""
    if not type(env).__module__.startswith("supersuit"):
        return ""
    return (
        ". It is SuperSuit's, whose rows are agents and reset in the step in which an episode ends, without "
        "its last observation: make one environment of the agents (docs/how-to/environments.md, Several "
        "agents)"
    )


def find_reset_mode(env: VectorEnv) -> AutoresetMode:
    """Return how a vector environment resets environments whose episode ended.

    The instance's own word comes first, then that of its class. What a class inherits from Gymnasium's
    `VectorEnv` is no word: it is one dictionary of all classes without their own, into which others write.

    Raises:
        UsageError: it does not say, or says something else than the three modes.
    """
    inner: Any = env
    while isinstance(inner, VectorWrapper):
        inner = inner.env
    mode = getattr(inner, "autoreset_mode", None)
    if mode is None:
        owner = next(one for one in (inner, *type(inner).__mro__) if "metadata" in vars(one))
        mode = {} if owner is VectorEnv else vars(owner)["metadata"]
        mode = mode.get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError:
        modes = ", ".join(f"AutoresetMode.{one.name}" for one in AutoresetMode)
        said = "does not say how it resets" if mode is None else f"says that it resets by {mode!r}"
        raise WrongEnv(
            f'{env} {said}: set self.metadata = {{"autoreset_mode": ...}} in its constructor, one of {modes}'
            f"{_supersuit(inner)}"
        ) from None


def describe_not_finite(
    env_id: str, field: str, index: Sequence[int], value: float, row: int, step: int, episode: int, seen: int
) -> str:
    """Return the error for a number that is NaN or infinite.

    Args:
        env_id: name of the environment.
        field: what the number belongs to, e.g. "observation".
        index: its place there; empty for a scalar.
        value: the number.
        row: index of the environment.
        step, episode: when it came, both counted from 1; step 0 is the reset.
        seen: entries of an observation; behind them stands its action mask.
    """
    if "observation" in field and index and index[0] >= seen:
        return describe_no_action(env_id, f" in environment {row}, step {step} of its episode {episode}")
    where = f"{field}[{index[0]}]" if index else field
    large = " (float32 ends at 3.4e38)" if np.isfinite(value) else ""
    return (
        f"{env_id}: {where} is {value}{large} in environment {row}, step {step} of its episode {episode}: "
        "nothing can be learnt from it"
    )


def _close_quietly(envs: Sequence[gym.Env]) -> None:
    """Close environments, whose further errors do not matter, since there is one already."""
    for env in envs:
        with contextlib.suppress(Exception):
            env.close()


def _only_one(alone: str) -> str:
    """Return the end of an error of an environment of which only one may exist."""
    return f"if only one may exist at a time, {alone} makes one suffice"


def _describe(problem: BaseException) -> str:
    """Return `errors.describe` of an environment's error, in this process or in another one."""
    return str(problem) if isinstance(problem, WorkerError) else describe(problem)


def _hint(problem: BaseException) -> str:
    """Return what an environment has to return, if an error tells that it returned something else."""
    text = describe(problem) if isinstance(problem, ValueError) else ""
    if "cannot reshape array" in text:
        shape = "observations must have the shape of observation_space"
        return f"; {shape}, and reset must return (observation, info)"
    if "values to unpack" in text:
        what = "(observation, reward, terminated, truncated, info)"
        return f"; reset must return (observation, info), and step {what}"
    return ""


def _spec_of(about: Any) -> EnvSpec | None:
    """Return Gymnasium's spec of an environment; EnvPool's has another meaning."""
    return about.spec if isinstance(about.spec, EnvSpec) else None


def _find_space(env: gym.Env | VectorEnv, name: str, env_id: str | None) -> Any:
    """Return a space of an environment, or a UsageError if it has none."""
    which = env_id or type(env.unwrapped).__name__
    try:
        space = getattr(env, name)
    except Exception as problem:
        if not (isinstance(problem, AttributeError) and f"no attribute '{name}'" in describe(problem)):
            raise WrongEnv(f"{which}: its {name} cannot be read ({describe(problem)})") from problem
        space = None
    if not isinstance(space, gym.Space) and name.startswith("single_"):
        raise WrongEnv(
            f"{which} is a vector environment ({type(env).__module__}) that does not say the space of one "
            f"row: set its {name}{_supersuit(env)}"
        )
    if not isinstance(space, gym.Space):
        raise WrongEnv(f"{which} has no {name}: set self.{name} = gymnasium.spaces.Box(...)")
    return space


def _id_of(about: Any, env: gym.Env | VectorEnv) -> str:
    """Return the id that makes exactly this environment; "" if arguments, time limit or wrappers differ from
    it.
    """
    spec = _spec_of(about)
    known = gym.registry.get(spec.id) if spec else None
    if spec is None or known is None or isinstance(env, VectorWrapper):
        return ""
    made = {"render_mode", "num_envs", "vectorization_mode"}  # entries that `make` and `make_vec` add
    own, usual = ({k: v for k, v in s.kwargs.items() if k not in made} for s in (spec, known))
    same = own.keys() == usual.keys() and all(np.array_equal(own[k], usual[k]) for k in own)
    limit = known.max_episode_steps
    if limit is None and isinstance(about.unwrapped, GymnasiumEnv):
        limit = about.unwrapped.native.time_limit  # that of `with_time_limit`
    same = same and spec.max_episode_steps == limit and not spec.additional_wrappers
    return spec.id if same else ""


def _class_name(about: Any) -> str:
    """Return a name for an environment that no id makes; it is never a registered name."""
    name = type(about.unwrapped).__name__
    return f"{name}_" if name in {spec.name for spec in gym.registry.values()} else name


def _make_example(env: AsyncVectorEnv, metadata: Mapping[str, Any]) -> gym.Env:
    """Return another one of the environments that a user's `AsyncVectorEnv` has in other processes.

    What they declare, such as masks, cannot be asked for there: an absent attribute ends a process.

    Raises:
        UsageError: it resets in the step that ends an episode. Then an environment that writes into one array
            has already overwritten the last observation, as Gymnasium 1.4 sends it after the reset.
    """
    if metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP:
        raise Conflict(
            "AsyncVectorEnv with AutoresetMode.SAME_STEP may give the first observation of the next episode "
            "as the last one of this: leave the mode out (NEXT_STEP), or pass what makes one environment, "
            'with vectorise="async".',
            field="env",
        )
    return env.env_fns[0]()


def _time_limit(about: Any) -> int | None:
    """Return steps after which an episode is truncated, or None."""
    spec = _spec_of(about)
    if spec is not None and spec.max_episode_steps is not None:
        return spec.max_episode_steps
    name = "_max_episode_steps"  # of a TimeLimit around an environment that is not registered
    return (
        about.get_wrapper_attr(name) if isinstance(about, gym.Env) and about.has_wrapper_attr(name) else None
    )


def _is_host_only(env: Any) -> bool:
    """Return whether the environment and all its wrappers are from modules that never call JAX."""
    known = type(env).__module__.startswith(HOST_ONLY)
    return known and (env.unwrapped is env or _is_host_only(env.env))
