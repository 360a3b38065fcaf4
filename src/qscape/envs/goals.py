"""Environments with goals: what is achieved and desired in each step, and the rewards for other goals.

Such an environment shows a Dict of `observation`, `achieved_goal` and `desired_goal`, and has a method
`compute_reward(achieved_goal, desired_goal, info)`, as those of Gymnasium-Robotics. It may have a method
`compute_terminated` of the same arguments. Goals are kept as the environment gives them, floats in float64:
what networks see is rounded to float32, and a reward for a rounded goal may be another one.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from jaxtyping import Bool, Float

from qscape.envs.answers import read_reward
from qscape.envs.spaces import is_image
from qscape.errors import BrokenEnv, NotFinite, UnfitEnv, describe
from qscape.values import decode, encode

ACHIEVED, DESIRED = "achieved_goal", "desired_goal"
KEYS = ("observation", ACHIEVED, DESIRED)
TRIED = 3  # rows by which it is found out whether a function takes several at once
WATCHED = 100  # first relabelled episodes by which it is found out whether hindsight teaches anything
MOST_ALIKE = 0.8  # share of them that may have the same reward in all copies, without a word


def has_goals(space: gym.Space) -> bool:
    """Return whether an observation has the three keys of an environment with goals."""
    return isinstance(space, gym.spaces.Dict) and all(key in space.spaces for key in KEYS)


def refuse_goals(space: gym.Space, env_id: str) -> None:
    """Refuse goals that no reward can be computed from by distance: other spaces than Boxes of numbers.

    Raises:
        UnfitEnv: a goal is an image or no Box, or the two goals have different shapes.
    """
    if not isinstance(space, gym.spaces.Dict) or not has_goals(space):
        return
    for key in (ACHIEVED, DESIRED):
        part = space.spaces[key]
        if not isinstance(part, gym.spaces.Box) or is_image(part):
            what = f"an image {part.shape}" if is_image(part) else f"a {type(part).__name__}"
            raise UnfitEnv(
                f"{env_id}: its {key} is {what}, and goals are vectors of numbers: give a Box, such as the "
                "position of what an image shows, or a one-hot vector of a discrete goal"
            )
    achieved, desired = space.spaces[ACHIEVED].shape, space.spaces[DESIRED].shape
    if achieved != desired:
        raise UnfitEnv(
            f"{env_id}: its achieved_goal is {achieved} and its desired_goal {desired}; what is achieved has "
            "to be a possible goal, so both need one shape"
        )


class GoalEpisode(NamedTuple):
    """What hindsight needs of an episode of L steps, or of its last L ones.

    Attributes:
        env: index of the environment.
        achieved: what was achieved after each step [L, *shape].
        desired: the goal in each step [L, *shape].
        infos: what `step` returned as info.
        terminated: whether the step terminated the episode [L].
        success: the success that the environment reported in the step [L]; NaN: none.
    """

    env: int
    achieved: np.ndarray
    desired: np.ndarray
    infos: Sequence[Mapping[str, Any]]
    terminated: Bool[np.ndarray, " L"]
    success: Float[np.ndarray, " L"]


class _WatchedInfo(dict):
    """An info that tells whether anything in it was read."""

    was_read = False

    def _noted(name: str) -> Callable[..., Any]:  # type: ignore[misc]
        def method(self: "_WatchedInfo", *arguments: Any) -> Any:
            self.was_read = True
            return getattr(dict, name)(self, *arguments)

        return method

    __getitem__, __contains__ = _noted("__getitem__"), _noted("__contains__")
    __iter__, __len__ = _noted("__iter__"), _noted("__len__")
    get, keys, values, items, copy = map(_noted, ("get", "keys", "values", "items", "copy"))


class GoalFunction:
    """A method of an environment with goals, `compute_reward` or `compute_terminated`, for many rows at once.

    Attributes:
        name: of the method.
        env_id: name of the environment, for errors.
        has_infos: whether the environment's infos are known here; those of other processes are not.
        takes_rows: whether the method takes several rows at once, with an array of infos; None: unknown.
        reads_infos: whether the method has ever read an info.
    """

    def __init__(self, function: Callable[..., Any], name: str, env_id: str, has_infos: bool = True) -> None:
        self.function, self.name, self.env_id, self.has_infos = function, name, env_id, has_infos
        self.takes_rows: bool | None = None
        self.reads_infos = False

    def __call__(
        self, achieved: np.ndarray, desired: np.ndarray, infos: Sequence[Mapping[str, Any]]
    ) -> Float[np.ndarray, " N"]:
        """Return what the method says of N rows, as numbers.

        Raises:
            RunError: the method fails, or returns something else than a finite number for each row.
            UsageError: it reads infos, which are not known here.
        """
        watched, failed = [_WatchedInfo(info) for info in infos], None
        values = np.zeros(len(infos))
        try:
            values = self._compute(achieved, desired, watched)
        except Exception as problem:
            failed = problem
        self.reads_infos |= any(info.was_read for info in watched)
        if self.reads_infos and not self.has_infos:
            raise UnfitEnv(
                f"{self.env_id}: {self.name} reads the info, and environments in processes of their own do "
                "not send theirs: leave --vectorise async out",
                field="vectorise",
            )
        if failed is not None:
            raise BrokenEnv(
                f"{self.env_id}: {self.name}(achieved_goal, desired_goal, info) broke for a relabelled goal "
                f"({describe(failed)})"
            ) from failed
        if not np.isfinite(values).all():
            at = int(np.argmin(np.isfinite(values)))
            raise NotFinite(
                f"{self.env_id}: {self.name} is {values[at]} for the achieved_goal {achieved[at]} and the "
                f"desired_goal {desired[at]}: nothing can be learnt from it"
            )
        return values

    def _compute(
        self, achieved: np.ndarray, desired: np.ndarray, infos: Sequence[Mapping[str, Any]]
    ) -> Float[np.ndarray, " N"]:
        if self.takes_rows is None and len(infos) >= TRIED:
            self.takes_rows = self._try_rows(achieved[:TRIED], desired[:TRIED], infos[:TRIED])
        if self.takes_rows:
            return self._of_rows(achieved, desired, infos)
        return self._one_by_one(achieved, desired, infos)

    def _try_rows(self, achieved: np.ndarray, desired: np.ndarray, infos: Sequence[Any]) -> bool:
        """Return whether the method says the same of rows together as of one after the other."""
        apart = self._one_by_one(achieved, desired, infos)
        try:
            return bool(np.allclose(self._of_rows(achieved, desired, infos), apart, rtol=1e-5, atol=1e-6))
        except Exception:  # whatever it says of an array
            return False

    def _of_rows(
        self, achieved: np.ndarray, desired: np.ndarray, infos: Sequence[Any]
    ) -> Float[np.ndarray, " N"]:
        packed = np.empty(len(infos), object)
        packed[:] = infos
        return np.asarray(self.function(achieved, desired, packed), np.float64).reshape(len(infos))

    def _one_by_one(
        self, achieved: np.ndarray, desired: np.ndarray, infos: Sequence[Any]
    ) -> Float[np.ndarray, " N"]:
        rows = zip(achieved, desired, infos, strict=True)
        return np.array([read_reward(self.function(*row), self.env_id) for row in rows])


class _Step(NamedTuple):
    """A step of an environment; fields as those of `GoalEpisode`."""

    achieved: np.ndarray
    desired: np.ndarray
    info: Mapping[str, Any]
    terminated: bool
    success: float


class Goals:
    """The goals of E environments, as they were given since their episodes began.

    Attributes:
        first: entry of a flat observation at which the desired goal begins.
        size: entries of a goal.
        rewards: `compute_reward` of each environment.
        ends: `compute_terminated` of each environment; None: they have none.
        differing: the first reward of a step that is not what `compute_reward` says, and what that says; ():
            there was none in the first whole episode; None: no whole episode has ended.
        crowded: steps of the first episode whose copies did not all fit into replay; None: all did.
        alike: for each of the first relabelled episodes whether all its copies had one and the same reward.
    """

    def __init__(
        self,
        first: int,
        size: int,
        rewards: Sequence[GoalFunction],
        ends: Sequence[GoalFunction] | None = None,
    ) -> None:
        self.first, self.size, self.rewards, self.ends = first, size, rewards, ends
        self._finished: list[tuple[int, list[_Step]]] = []
        self._now: list[tuple[np.ndarray, np.ndarray] | None] = [None for _ in rewards]
        self._steps: list[list[_Step]] = [[] for _ in rewards]
        self.differing: tuple[float, ...] | None = None
        self.crowded: int | None = None
        self.alike: list[bool] = []
        self._told: set[str] = set()
        self._given: list[list[float]] = [[] for _ in rewards]  # rewards of the running episodes

    def begin(self, env: int, observation: Mapping[str, Any]) -> None:
        """Note the goals with which an episode begins; steps of one that did not end are dropped."""
        self._now[env], self._steps[env], self._given[env] = _read_goals(observation), [], []

    def step(
        self,
        env: int,
        observation: Mapping[str, Any],
        info: Mapping[str, Any],
        terminated: bool,
        truncated: bool,
        success: float | None,
        reward: float,
    ) -> None:
        """Note what a step returned; `success`: what it reported, None: nothing."""
        now = self._now[env]
        assert now is not None, "an environment steps before its first reset"
        after = _read_goals(observation)
        reported = np.nan if success is None else success
        self._steps[env].append(_Step(after[0], now[1], dict(info), bool(terminated), reported))
        self._now[env] = after
        self._given[env].append(reward)
        if terminated or truncated:
            if self.differing is None and len(self._given[env]) == len(self._steps[env]):
                self.differing = self._compare(env)
            self._finished.append((env, self._steps[env]))
            self._steps[env] = []

    def _compare(self, env: int) -> tuple[float, ...]:
        """Return `differing`, of the episode of an environment: a wrapper may change what `step` gives."""
        if not self.rewards[env].has_infos:
            return ()
        episode, given = _make_episode(env, self._steps[env]), np.array(self._given[env])
        said = self.rewards[env](episode.achieved, episode.desired, episode.infos)
        wrong = ~np.isclose(said, given, rtol=1e-4, atol=1e-5)
        return (float(given[wrong][0]), float(said[wrong][0])) if wrong.any() else ()

    def take_finished(self) -> list[GoalEpisode]:
        """Return the episodes that ended since the last call."""
        finished, self._finished = self._finished, []
        return [_make_episode(*of) for of in finished]

    def note_rewards(self, rewards: Float[np.ndarray, " N"]) -> None:
        """Note the rewards of an episode's copies, if it is one of the first."""
        if len(self.alike) < WATCHED:
            self.alike.append(bool(np.ptp(rewards) == 0.0))

    def forget(self) -> None:
        """Drop all steps so far, which are not in replay."""
        self._steps, self._finished = [[] for _ in self._steps], []

    def notes(self) -> list[str]:
        """Try the methods on the newest goals of the first environment; return sentences for the user."""
        if self._now[0] is None:
            return []
        achieved, desired = self._now[0]
        rows = np.stack([achieved, desired, achieved]), np.stack([desired, desired, achieved])
        with contextlib.suppress(BrokenEnv):  # a reset has not the infos of a step: tried again later
            self.rewards[0](*rows, [{}] * TRIED)
        if self.rewards[0].takes_rows is not False:
            return []
        return ["compute_reward takes one goal at a time: it is called for every relabelled row"]

    def take_warnings(self, env_id: str) -> list[str]:
        """Return sentences that the user has not seen: what falls of what relabelled transitions promise."""
        found = {}
        if self.differing:
            given, said = self.differing
            found["differing"] = (
                f"{env_id}: a step gave the reward {given:g}, and compute_reward says {said:g} of its "
                "goals: relabelled transitions have the latter; a wrapper that changes rewards has to have a "
                "compute_reward that changes them, too"
            )
        if self.crowded is not None:
            found["crowded"] = (
                f"{env_id}: an episode of {self.crowded:,} steps got fewer relabelled copies than asked for: "
                "they have to fit into its environment's part of replay; set a larger base.replay_capacity"
            )
        if len(self.alike) == WATCHED and sum(self.alike) > MOST_ALIKE * WATCHED:
            found["alike"] = (
                f"{env_id}: in {sum(self.alike)} of the first {WATCHED} episodes all relabelled transitions "
                "have one reward, as what was achieved hardly changed: hindsight teaches nothing there, and "
                "only a policy that goes on exploring meets what would, as sac does with "
                "soft.temperature = 0.1"
            )
        new = [text for name, text in found.items() if name not in self._told]
        self._told |= found.keys()
        return new

    # --- saving and resuming ------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return the goals of running episodes, and of those that were not taken yet, as JSON data."""
        keeps = any(one.reads_infos or one.takes_rows is None for one in self._functions)
        return {
            "now": [encode(goals) for goals in self._now],
            "steps": [_write_steps(steps, keeps) for steps in self._steps],
            "finished": [[env, _write_steps(steps, keeps)] for env, steps in self._finished],
            "functions": [[one.takes_rows, one.reads_infos] for one in self._functions],
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on with the episodes that `to_json` returned."""
        self._now = [decode(goals) for goals in saved["now"]]
        self._steps = [_read_steps(steps) for steps in saved["steps"]]
        self._finished = [(env, _read_steps(steps)) for env, steps in saved["finished"]]
        for one, (takes, reads) in zip(self._functions, saved["functions"], strict=True):
            one.takes_rows, one.reads_infos = takes, reads

    @property
    def _functions(self) -> list[GoalFunction]:
        return [*self.rewards, *(self.ends or ())]


def _make_episode(env: int, steps: Sequence[_Step]) -> GoalEpisode:
    achieved, desired, infos, terminated, success = zip(*steps, strict=True)
    return GoalEpisode(
        env, np.stack(achieved), np.stack(desired), infos, np.array(terminated), np.array(success)
    )


def _write_steps(steps: Sequence[_Step], keeps_infos: bool) -> Any:
    """Return steps as JSON data, a value for each field; None: there are none."""
    if not steps:
        return None
    _, *columns = _make_episode(0, steps)
    achieved, desired, infos, terminated, success = columns
    kept = [_storable(info) for info in infos] if keeps_infos else None
    return encode([achieved, desired, kept, terminated, success])


def _read_steps(data: Any) -> list[_Step]:
    if data is None:
        return []
    achieved, desired, infos, terminated, success = decode(data)
    rest = infos or [{}] * len(achieved), terminated.tolist(), success.tolist()
    return [*map(_Step, achieved, desired, *rest)]


def _read_goals(observation: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return copies of what is achieved and of what is desired; environments may write to their arrays."""
    return copy_goal(observation[ACHIEVED]), copy_goal(observation[DESIRED])


def copy_goal(goal: Any) -> np.ndarray:
    """Return a copy of a goal; floats become float64."""
    array = np.array(goal)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _storable(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file can hold of an info."""
    kept = {}
    for key, value in info.items():
        with contextlib.suppress(TypeError):
            encode({key: value})
            kept[key] = value
    return kept
