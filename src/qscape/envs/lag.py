"""Sensors and actuators that lag: delays, noise, missing measurements, and stacks of what was seen and done.

In step t an environment gets the action that was chosen `action_delay` steps earlier. What it then shows is
measured: noise is added, and with probability `dropout` the measurement is missing, and the last one stands
for it. An agent sees the measurement of `observation_delay` steps earlier, stacked with the `history` - 1
measurements before it, the oldest first. Behind them stand the past actions: all those that acted between
the measurements of the stack, and those that wait to act or to be seen.

An episode begins as if its first measurement had been seen ever before, while the neutral action acted: the
one nearest to zero in the environment's units, and of a discrete set the first.

Entries that critics alone see, action masks and the two goals of a task with goals pass as they are. Rewards
and ends of episodes are those of the true state.

`LaggedEnv` does this to a Gymnasium environment, `JaxLag` to one in JAX; on the same draws they are equal to
the bit. `RowStack` is the part that a policy carries where a world lags by itself: in `predict` and exports.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, PyTree

from qscape.envs.levels import LevelSpace
from qscape.envs.masks import KEY, declared_by
from qscape.envs.native import GymnasiumEnv, JaxWrapper, Outcome, find_jax_env
from qscape.envs.simulators import make_gymnasium
from qscape.envs.spaces import ActionBox, FactoredActions, is_image, make_action_map, to_numbers
from qscape.errors import MootSetting, OutOfRange, UnfitEnv
from qscape.ops.shift import height_axis
from qscape.types import Key, setting, stream

ACTIONS = "past_actions"  # the key of past actions in a Dict of observations
IMAGE = "image"  # that of an image that the environment shows alone
GOALS = frozenset(("achieved_goal", "desired_goal"))  # beside "observation", those of a task with goals

Keys = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lag:
    """How sensors and actuators lag, and what an agent sees of the past. The defaults change nothing."""

    history: int = setting(1, "Observations that the agent sees, stacked, with the actions between them.")
    action_delay: int = setting(0, "Steps after which a chosen action acts.")
    observation_delay: int = setting(0, "Steps after which a measurement is seen.")
    observation_noise: float = setting(
        0.0, "Standard deviation of noise on every entry of an observation, in the entry's units."
    )
    dropout: float = setting(0.0, "Probability that a measurement is missing; then the last one is repeated.")
    observe_actions: bool = setting(
        True, "With a history or a delay: show the past actions beside the observations."
    )

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            UsageError: a field is out of its range, or does nothing.
        """
        for name, least in (("history", 1), ("action_delay", 0), ("observation_delay", 0)):
            if (value := getattr(self, name)) < least:
                flag = f"--{name.replace('_', '-')}"
                raise OutOfRange(f"{flag} is {value}; it must be {least} or more.", field=name)
        if not 0 <= self.observation_noise < np.inf:
            raise OutOfRange(
                f"--observation-noise is {self.observation_noise}; it must be a number, 0 or more.",
                field="observation_noise",
            )
        if not 0 <= self.dropout < 1:
            raise OutOfRange(f"--dropout is {self.dropout}; it must lie in [0, 1).", field="dropout")
        if not self.observe_actions and self.history + self.action_delay + self.observation_delay == 1:
            raise MootSetting(
                "--no-observe-actions does nothing without --history or a delay; leave it out.",
                field="observe_actions",
            )

    @property
    def lag(self) -> "Lag":
        """These fields alone, of a dataclass that has others too."""
        return Lag(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Lag)})

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        fields = dataclasses.fields(Lag)
        return {f.name: v for f in fields if (v := getattr(self, f.name)) != f.default}

    @property
    def past(self) -> int:
        """The number of past actions that the agent sees."""
        return self.history - 1 + self.action_delay + self.observation_delay if self.observe_actions else 0

    @property
    def queue(self) -> int:
        """The number of past actions that are kept."""
        return max(self.past, self.action_delay)

    @property
    def line(self) -> int:
        """The number of measurements that are kept."""
        return self.history + self.observation_delay


NO_LAG = Lag()


# --- the rules, on arrays of numpy and of JAX ---------------------------------------------------------


def push(kept: Any, new: Any, xp: Any) -> Any:
    """Return `[n, ...]` without its oldest entry and with a new one behind the others."""
    return xp.concatenate([kept[1:], new[None]]) if len(kept) else kept


def delay(queue: Any, action: Any, steps: int) -> Any:
    """Return the action that acts: the one that was chosen `steps` steps earlier.

    `queue`: the actions that were chosen before this one, the newest last.
    """
    return queue[len(queue) - steps] if steps else action


def measure(last: Any, true: Any, noise: Any, missing: Any, xp: Any) -> Any:
    """Return a measurement.

    Args:
        last: the measurement before it.
        true: what the environment shows.
        noise: what is added; None: nothing.
        missing: is the measurement missing? None: never.
        xp: numpy or jax.numpy.
    """
    seen = true if noise is None else true + noise
    return seen if missing is None else xp.where(missing, last, seen)


class ActionCode(NamedTuple):
    """How past actions are shown: a Box as [-1, 1]^A, an action of a table as its row, others as one-hot.

    Attributes:
        size: entries of one action.
        low: the least value of an entry; the greatest is 1.
        neutral: the action that acts before an episode's first one.
        encode: from actions [n, ...] of the environment to [n, size], float32; of numpy or JAX arrays.
    """

    size: int
    low: float
    neutral: np.ndarray
    encode: Callable[[Any, Any], Any]


def read_table(space: gym.Space, env: Any, env_id: str) -> Float[np.ndarray, "N a"] | None:
    """Return the action table by which actions are shown, scaled to [-1, 1]; None where there is none.

    Args:
        space: of one action.
        env: the bare environment, or a `JaxEnv`; it may have an `action_table`.
        env_id: name of the environment, for errors.
    """
    if not isinstance(space, spaces.Discrete) or getattr(env, "action_table", None) is None:
        return None
    return make_action_map(space, 1, env, env_id)[1]


def make_code(space: gym.Space, table: Float[Any, "N a"] | None) -> ActionCode:
    """Return how the actions of a space are shown; `table`: see `read_table`."""
    if isinstance(space, LevelSpace):
        high = np.float32(2 / (space.levels - 1))
        size = int(np.prod(space.shape))

        def of_levels(action: Any, xp: Any) -> Any:
            return xp.asarray(action, np.float32).reshape(-1, size) * high - 1

        values = np.stack([space.to_units(np.full(space.shape, level)) for level in range(space.levels)])
        return ActionCode(size, -1.0, np.abs(values).argmin(0).astype(space.dtype), of_levels)
    if (factored := FactoredActions.from_space(space)) is not None:
        sizes, neutral = factored.sizes, factored.start.reshape(factored.shape).astype(space.dtype)
        starts = factored.start
    elif isinstance(space, spaces.Discrete):
        neutral = np.asarray(space.start, space.dtype)
        if table is not None:

            def of_table(action: Any, xp: Any) -> Any:
                return xp.asarray(table)[xp.asarray(action).reshape(-1) - int(space.start)]

            return ActionCode(table.shape[1], -1.0, neutral, of_table)
        sizes, starts = (int(space.n),), np.array([space.start])
    else:
        assert isinstance(space, spaces.Box)
        box = ActionBox.from_space(space, np.float32)
        scale = np.where(box.half_width > 0, 1 / np.where(box.half_width > 0, box.half_width, 1), 1)
        centre, scale = box.centre, scale.astype(np.float32)

        def of_box(action: Any, xp: Any) -> Any:
            return (xp.asarray(action, np.float32).reshape(-1, len(centre)) - centre) * scale

        neutral = np.clip(np.zeros(space.shape), space.low, space.high).astype(space.dtype)
        return ActionCode(len(centre), -1.0, neutral, of_box)
    owner = np.repeat(
        np.arange(len(sizes)), sizes
    )  # the factor of each entry, and the value that it stands for
    value = np.concatenate([np.arange(n) + start for n, start in zip(sizes, starts, strict=True)])

    def one_hot(action: Any, xp: Any) -> Any:
        return (xp.asarray(action).reshape(-1, len(sizes))[:, owner] == value).astype(np.float32)

    return ActionCode(len(owner), 0.0, neutral, one_hot)


def stack_frames(frames: Any, image: bool, xp: Any) -> Any:
    """Return the frames [k, ...] of one entry of an observation as one array, the oldest first.

    A single one is returned as it is. Images are stacked along their channels, all else in one vector.
    """
    if len(frames) == 1:
        return frames[0]
    if not image:
        return frames.reshape(-1)
    if frames.ndim == 3:
        return frames
    return xp.concatenate([*frames], axis=0 if height_axis(frames.shape[1:]) else -1)


# --- Gymnasium ---------------------------------------------------------------------------------------


class LaggedEnv(gym.Wrapper):
    """A Gymnasium environment whose sensors and actuators lag; `add_lag` makes it.

    Snapshots store the attributes under these names.

    Attributes:
        lag: how.
        measured: the Boxes of the observation that are measured, with the keys that lead to them.
        seen: the measurements [line, ...] of each of them, the newest last.
        chosen: the last actions that were chosen [queue, ...], the newest last.
        draws: makes the noise and says which measurements are missing; None before the first reset.
    """

    def __init__(self, env: gym.Env, lag: Lag, env_id: str):
        """Wrap an environment whose observation is a Box or a Dict."""
        super().__init__(env)
        self.lag, self.env_id = lag, env_id
        self.code = make_code(env.action_space, read_table(env.action_space, env.unwrapped, env_id))
        space = env.observation_space
        self.measured = [*_list_measured(space, _find_exempt(env))]
        made: dict[Keys, gym.Space] = {path: _stack_box(box, lag) for path, box in self.measured}
        self._alone = isinstance(space, spaces.Box)
        self._pictures = self._alone and is_image(space) and lag.past > 0
        past = spaces.Box(self.code.low, 1.0, (lag.past * self.code.size,), np.float32)
        if self._pictures:
            self.observation_space = spaces.Dict([(IMAGE, made[()]), (ACTIONS, past)])
        elif self._alone:
            self.observation_space = _join_boxes(made[()], past) if lag.past else made[()]
        else:
            self.observation_space = _replace_boxes(space, (), made, past if lag.past else None)
        self.seen: list[np.ndarray] = []
        self.chosen = np.repeat(self.code.neutral[None], lag.queue, 0)
        self.draws: np.random.Generator | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None or self.draws is None:  # numbers of its own: the environment draws as ever
            self.draws = np.random.default_rng(None if seed is None else [seed, crc32(b"lag")])
        self.chosen = np.repeat(self.code.neutral[None], self.lag.queue, 0)
        noise, _ = self.disturb(first=True)
        first = [measure(true, true, e, None, np) for true, e in self._with_noise(observation, noise)]
        self.seen = [np.repeat(one[None], self.lag.line, 0) for one in first]
        return self._show(observation), info

    def step(self, action: Any):
        acting = delay(self.chosen, action, self.lag.action_delay)
        acting = acting.copy() if self.lag.action_delay else acting  # environments keep it
        self.chosen = push(self.chosen, np.asarray(action, self.chosen.dtype), np)
        observation, reward, terminated, truncated, info = self.env.step(acting)
        noise, missing = self.disturb()
        self.seen = [
            push(line, measure(line[-1], true, e, missing, np), np)
            for line, (true, e) in zip(self.seen, self._with_noise(observation, noise), strict=True)
        ]
        return self._show(observation), reward, terminated, truncated, info

    def disturb(self, first: bool = False) -> tuple[list[np.ndarray | None], bool | None]:
        """Return the noise of each measured Box, and is the measurement missing?

        None: there is no noise, or no measurement is ever missing. The `first` one of an episode never is.
        """
        assert self.draws is not None
        noise: list[np.ndarray | None] = [None] * len(self.measured)
        if sigma := self.lag.observation_noise:
            noise = [sigma * self.draws.standard_normal(box.shape) for _, box in self.measured]
        missing = None
        if self.lag.dropout and not first:
            missing = bool(self.draws.random() < self.lag.dropout)
        return noise, missing

    def _with_noise(
        self, observation: Any, noise: Sequence[np.ndarray | None]
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield what the environment shows in each measured Box, and the noise, which whole numbers hold."""
        for (path, box), e in zip(self.measured, noise, strict=True):
            value = observation
            for key in path:
                value = value[key]
            true = to_numbers(value, box.dtype, self.env_id).reshape(box.shape)
            if e is None or np.issubdtype(box.dtype, np.floating):
                yield true, None if e is None else e.astype(box.dtype)
            else:
                yield np.clip(np.rint(true + e), box.low, box.high).astype(box.dtype), None

    def _show(self, observation: Any) -> Any:
        """Return what the agent sees: the stacks and the past actions, and what is not measured."""
        made = {
            path: stack_frames(line[: self.lag.history], is_image(box), np).copy()
            for (path, box), line in zip(self.measured, self.seen, strict=True)
        }
        if not self.lag.past:
            return made[()] if self._alone else _replace_entries(observation, (), made)
        past = self.code.encode(self.chosen, np).reshape(-1)
        if self._pictures:
            return {IMAGE: made[()], ACTIONS: past}
        if self._alone:
            return np.concatenate([made[()].reshape(-1), past])
        return {**_replace_entries(observation, (), made), ACTIONS: past}

    def find_sources(self, raw: Sequence[tuple[Keys, spaces.Box]], seen: Sequence[tuple[Keys, spaces.Box]]):
        """Return the `sources` of a `RowStack`.

        Args:
            raw: the Boxes of the environment's observation, in the order of a row.
            seen: those of this wrapper's.
        """
        sizes = [int(np.prod(box.shape)) for _, box in raw]
        starts = np.cumsum([0, *sizes])
        total, newest = starts[-1], (self.lag.history - 1) * starts[-1]
        at = {
            path: start + np.arange(size).reshape(box.shape)
            for (path, box), start, size in zip(raw, starts, sizes, strict=False)
        }
        boxes, parts = dict(self.measured), []
        past = self.lag.history * total + np.arange(self.lag.past * self.code.size)
        for path, _ in seen:
            path = () if self._pictures and path == (IMAGE,) else path
            if path in boxes:
                frames = np.stack([k * total + at[path] for k in range(self.lag.history)])
                parts.append(stack_frames(frames, is_image(boxes[path]), np).ravel())
            elif path in at:
                parts.append(newest + at[path].ravel())
            if path == (ACTIONS,) or (self._alone and not self._pictures):
                parts.append(past)
        return np.concatenate(parts)


def _find_exempt(env: gym.Env) -> set[str]:
    """Return the keys of a Dict of observations that are not measured."""
    space, declared = env.observation_space, declared_by(env)
    keys = set(space.spaces) if isinstance(space, spaces.Dict) else set()
    hidden = declared("privileged_keys") or ()
    exempt = {hidden} if isinstance(hidden, str) else {*hidden}
    if not isinstance(env.action_space, spaces.Box):
        exempt.add(KEY)
    return exempt | (GOALS if {"observation", *GOALS} <= keys else set())


def _list_measured(space: gym.Space, exempt: set[str], path: Keys = ()) -> Iterator[tuple[Keys, spaces.Box]]:
    """Yield the Boxes of a space that are measured, with the keys that lead to them."""
    if isinstance(space, spaces.Box):
        yield path, space
    for key, part in space.spaces.items() if isinstance(space, spaces.Dict) else ():
        if path or key not in exempt:
            yield from _list_measured(part, exempt, (*path, key))


def _stack_box(box: spaces.Box, lag: Lag) -> spaces.Box:
    """Return the Box of a stack. Noise on floats knows no bounds.

    Raises:
        UsageError: so many channels that they would be read as a side of the image.
    """
    image = is_image(box)
    low, high = (stack_frames(np.repeat(b[None], lag.history, 0), image, np) for b in (box.low, box.high))
    first = box.low.ndim == 2 or height_axis(box.shape)
    if image and low.ndim == 3 and bool(height_axis(low.shape)) != bool(first):
        raise OutOfRange(
            f"--history {lag.history} stacks images {list(box.shape)} to {list(low.shape)}: as many channels "
            "as a side has pixels; use a shorter one.",
            field="history",
        )
    if lag.observation_noise and np.issubdtype(box.dtype, np.floating):
        low, high = np.full_like(low, -np.inf), np.full_like(high, np.inf)
    return spaces.Box(low, high, dtype=box.dtype)  # pyright: ignore[reportArgumentType]


def _join_boxes(*boxes: Any) -> spaces.Box:
    """Return Boxes as one of a vector."""
    low, high = (np.concatenate([getattr(b, name).ravel() for b in boxes]) for name in ("low", "high"))
    return spaces.Box(low, high, dtype=np.result_type(*(b.dtype for b in boxes)))  # pyright: ignore


def _replace_boxes(
    space: gym.Space, path: Keys, made: Mapping[Keys, gym.Space], past: gym.Space | None
) -> gym.Space:
    """Return a space with other Boxes at some paths, and with that of past actions, if there are any."""
    if path in made:
        return made[path]
    if not isinstance(space, spaces.Dict):
        return space
    parts = [(key, _replace_boxes(part, (*path, key), made, None)) for key, part in space.spaces.items()]
    return spaces.Dict(parts + ([] if past is None else [(ACTIONS, past)]))


def _replace_entries(part: Any, path: Keys, made: Mapping[Keys, np.ndarray]) -> Any:
    """Return an observation with other arrays at some paths."""
    if path in made:
        return made[path]
    if not isinstance(part, Mapping):
        return part
    return {key: _replace_entries(value, (*path, key), made) for key, value in part.items()}


# --- JAX ---------------------------------------------------------------------------------------------


class LagState(NamedTuple):
    """State of a `JaxLag`. Snapshots store it under these names.

    Attributes:
        inner: the environment's state.
        seen: the measurements, the newest last.
        chosen: the last actions that were chosen, the newest last.
    """

    inner: PyTree
    seen: Float[Array, "line a"]
    chosen: Array


class JaxLag(JaxWrapper):
    """The environment `inner` whose sensors and actuators lag; the rules are those of `LaggedEnv`."""

    lag: Lag = eqx.field(static=True)
    shown: Float[Array, "N a"] | None  # of `read_table`, which cannot be called within a program

    @property
    def code(self) -> ActionCode:
        """How past actions are shown."""
        return make_code(self.inner.action_space, self.shown)

    @property
    def measured(self) -> int:
        """The number of entries that are measured, the first ones: all that actors see."""
        return self.inner.actor_size or self.inner.observation_space.shape[0]

    @property
    def stacked(self) -> int:
        """The number of entries that measurements and past actions become."""
        return self.lag.history * self.measured + self.lag.past * self.code.size

    @property
    def observation_space(self) -> spaces.Box:
        inner, size, code = self.inner.observation_space, self.measured, self.code
        box = _stack_box(spaces.Box(inner.low[:size], inner.high[:size], dtype=np.float32), self.lag)
        past = spaces.Box(code.low, 1.0, (self.lag.past * code.size,), np.float32)
        return _join_boxes(box, past, spaces.Box(inner.low[size:], inner.high[size:], dtype=np.float32))

    @property
    def actor_size(self) -> int | None:
        return None if self.inner.actor_size is None else self.stacked

    def reset(self, key: Key) -> tuple[LagState, Float[Array, " S"]]:
        return self._begin(*self.inner.reset(key), key)

    def step(self, state: LagState, action: Array, key: Key) -> tuple[LagState, Outcome]:
        acting = delay(state.chosen, action, self.lag.action_delay)
        chosen = push(state.chosen, jnp.asarray(action, state.chosen.dtype), jnp)
        inner, outcome = self.limited.step(state.inner, acting, key)
        noise, missing = self.disturb(key)
        true = outcome.observation[: self.measured]
        seen = push(state.seen, measure(state.seen[-1], true, noise, missing, jnp), jnp)
        state = LagState(inner, seen, chosen)
        return state, outcome._replace(observation=self._show(state, outcome.observation))

    def disturb(self, key: Key) -> tuple[Float[Array, " a"] | None, Bool[Array, ""] | None]:
        """Return the noise, and is the measurement missing? None as in `LaggedEnv.disturb`."""
        noise = missing = None
        if sigma := self.lag.observation_noise:
            noise = sigma * jax.random.normal(stream(key, "lag.noise"), (self.measured,))
        if self.lag.dropout:
            missing = jax.random.uniform(stream(key, "lag.missing")) < self.lag.dropout
        return noise, missing

    def draw(self, state: LagState) -> np.ndarray | None:
        return self.inner.draw(state.inner)

    def reset_from_options(self, options: dict[str, Any]) -> tuple[PyTree, Array] | None:
        start = self.inner.reset_from_options(options)
        return None if start is None else self._begin(*start, jax.random.key(0))

    def find_sources(self) -> np.ndarray:
        """Return the `sources` of a `RowStack`."""
        total, size, lag = self.inner.observation_space.shape[0], self.measured, self.lag
        frames = [k * total + np.arange(size) for k in range(lag.history)]
        past = lag.history * total + np.arange(lag.past * self.code.size)
        return np.concatenate([*frames, past, (lag.history - 1) * total + np.arange(size, total)])

    def _begin(self, inner: PyTree, observation: Array, key: Key) -> tuple[LagState, Float[Array, " S"]]:
        """Return the start of an episode whose environment starts in this state."""
        noise, _ = self.disturb(key)
        true = observation[: self.measured]
        first = measure(true, true, noise, None, jnp)
        chosen = jnp.repeat(jnp.asarray(self.code.neutral)[None], self.lag.queue, 0)
        state = LagState(inner, jnp.tile(first, (self.lag.line, 1)), chosen)
        return state, self._show(state, observation)

    def _show(self, state: LagState, observation: Array) -> Float[Array, " S"]:
        """Return what the agent sees."""
        stack = stack_frames(state.seen[: self.lag.history], False, jnp)
        past = [self.code.encode(state.chosen, jnp).reshape(-1)] if self.lag.past else []
        return jnp.concatenate([stack, *past, observation[self.measured :]])


# --- which environments lag, and the policy's side ------------------------------------------------------


def add_lag(env: gym.Env, lag: Lag, env_id: str, index_actions: bool = False) -> gym.Env:
    """Return an environment whose sensors and actuators lag; in JAX if it is in JAX.

    Args:
        env: the environment; returned as it is if nothing lags.
        lag: how.
        env_id: its name, for errors.
        index_actions: as for `envs.make`.

    Raises:
        UsageError: the environment masks its actions, or has no place for past actions.
    """
    space = env.observation_space
    if lag == NO_LAG or not isinstance(space, spaces.Box | spaces.Dict):  # the adapter takes no other
        return env
    declared, native = declared_by(env), find_jax_env(env)
    keys = space.spaces if isinstance(space, spaces.Dict) else {}
    masks = KEY in keys and not isinstance(env.action_space, spaces.Box)
    masks |= bool(declared("masks_actions")) or declared("max_candidates") is not None
    if lag.action_delay and (masks or (native is not None and native.mask is not None)):
        raise UnfitEnv(
            f"{env_id} says which actions are valid now, and with --action-delay {lag.action_delay} they act "
            "later: leave it out",
            field="action_delay",
        )
    if lag.past and ACTIONS in keys:
        raise UnfitEnv(
            f"{env_id} has a key {ACTIONS} in its observation already: add --no-observe-actions",
            field="observe_actions",
        )
    if lag.past and index_actions and is_image(space):
        raise UnfitEnv(
            f"{env_id} shows an image, beside which dqn and on-policy agents see no past actions: add "
            "--no-observe-actions",
            field="observe_actions",
        )
    if native is None:
        return LaggedEnv(env, lag, env_id)
    table = read_table(native.action_space, native, env_id)
    shown = None if table is None else jnp.asarray(table)
    return make_gymnasium(JaxLag(native, lag, shown, time_limit=native.time_limit), env.render_mode)


def refuse_longer(lag: Lag, time_limit: int | None, env_id: str) -> None:
    """Refuse a delay by which no action acts, or no measurement but the first is seen, in a whole episode.

    Raises:
        UsageError: a delay is as long as an episode, or a history is longer.
    """
    for name, most in (("history", 0), ("action_delay", -1), ("observation_delay", -1)):
        if time_limit is not None and (value := getattr(lag, name)) > time_limit + most:
            raise OutOfRange(
                f"--{name.replace('_', '-')} is {value}, and an episode of {env_id} ends after {time_limit} "
                f"steps; it must be at most {time_limit + most}",
                field=name,
            )


class RowStack(NamedTuple):
    """What a policy carries from step to step in a world that lags by itself: its past, in flat rows.

    The memory [n, W] of n worlds is the last `history` - 1 observations, the oldest first, and behind them
    the past actions, encoded.

    Attributes:
        lag: how the world lagged in training.
        size: S, of a row of the environment's own observation. A mask may stand behind it.
        code: how past actions are shown.
        sources: of each entry of what networks see, its place in (memory's observations, S, past actions).
    """

    lag: Lag
    size: int
    code: ActionCode
    sources: np.ndarray

    @property
    def width(self) -> int:
        """W, the size of the memory."""
        return (self.lag.history - 1) * self.size + self.lag.past * self.code.size

    def see(self, rows: Any, memory: Any, first: Any, xp: Any = np) -> tuple[Any, Any]:
        """Return rows as networks see them, and what `remember` needs of them.

        Args:
            rows: [n, S + M] of the environment's own observations.
            memory: [n, W].
            first: [n], where an episode starts; the memory is not read there.
            xp: numpy or jax.numpy.
        """
        own, older = _columns(rows, 0, self.size, xp), (self.lag.history - 1) * self.size
        begun = [own] * (self.lag.history - 1)
        if self.lag.past:
            neutral = self.code.encode(self.code.neutral[None], np).astype(rows.dtype)
            begun.append(xp.zeros_like(own[:, :1]) + np.tile(neutral, (1, self.lag.past)))
        memory = xp.where(first[:, None], xp.concatenate(begun, 1), memory)
        past = _columns(memory, 0, older, xp), own, _columns(memory, older, self.width, xp)
        held = _join(past, xp)
        seen = xp.take(held, self.sources, 1)
        return _join((seen, _columns(rows, self.size, rows.shape[1], xp)), xp), held

    def begin(self, rows: np.ndarray) -> np.ndarray:
        """Return rows of first observations of episodes as networks see them."""
        return self.see(rows, np.zeros((len(rows), self.width), rows.dtype), np.ones(len(rows), bool))[0]

    def remember(self, held: Any, action: Any, xp: Any = np) -> Any:
        """Return the memory of the next step.

        Args:
            held: of `see`.
            action: [n, ...] in the environment's units, as it was chosen.
            xp: numpy or jax.numpy.
        """
        stacked, size = self.lag.history * self.size, self.size + self.width
        kept = _columns(held, self.size, stacked, xp)
        if not self.lag.past:
            return kept
        past = _columns(held, stacked + self.code.size, size, xp)
        return _join((kept, past, self.code.encode(action, xp)), xp)

    def split(self, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows [n, S + M] and memory [n, W] with which networks see `seen`.

        What they do not see, such as earlier entries that critics alone see, is 0.
        """
        own, mask = seen[:, : len(self.sources)], seen[:, len(self.sources) :]
        held = np.zeros((len(seen), self.size + self.width), seen.dtype)
        held[:, self.sources] = own
        older = (self.lag.history - 1) * self.size
        rows = np.concatenate([held[:, older : older + self.size], mask], 1)
        return rows, np.delete(held, np.s_[older : older + self.size], 1)


def _columns(rows: Any, start: int, stop: int, xp: Any) -> Any:
    """Return columns of rows; in JAX by an operation that an ONNX file has for any number of rows."""
    return rows[:, start:stop] if xp is np else jax.lax.slice_in_dim(rows, start, stop, axis=1)


def _join(parts: Sequence[Any], xp: Any) -> Any:
    """Return arrays [n, ...] side by side, without the empty ones."""
    parts = [part for part in parts if part.shape[1]]
    return xp.concatenate(parts, 1) if len(parts) > 1 else parts[0]


def find_lag(env: Any) -> LaggedEnv | JaxLag | None:
    """Return what makes the sensors and actuators of an environment lag; None if they do not."""
    if isinstance(env, LaggedEnv):
        return env
    bare = getattr(env, "unwrapped", None)
    return bare.native if isinstance(bare, GymnasiumEnv) and isinstance(bare.native, JaxLag) else None
