"""Record episodes of a policy as a Minari dataset."""

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from qscape.data import read
from qscape.data.dataset import require_action_box
from qscape.data.sources import refuse_images
from qscape.envs import EnvAdapter
from qscape.envs.answers import read_flag, read_reward
from qscape.envs.build import build_env
from qscape.envs.kept_spaces import order_like
from qscape.envs.lag import NO_LAG
from qscape.envs.outside import Outside
from qscape.envs.spaces import make_flatten
from qscape.errors import (
    BrokenEnv,
    CannotWrite,
    Inexact,
    MissingPackage,
    OutOfRange,
    QscapeError,
    Taken,
    UnfitEnv,
    WrongValue,
    describe,
)
from qscape.run.evaluation import refuse_endless
from qscape.run.folder import read_plan
from qscape.run.policy import LoadedPolicy, load_policy
from qscape.run.programs import act_evaluating
from qscape.tracking import track
from qscape.values import encode

Kind = Literal["trained", "noisy", "random"]


def record_dataset(
    folder: Path,
    dataset: str,
    episodes: int,
    kind: Kind = "trained",
    noise: float = 0.1,
    seed: int = 0,
    current: bool = False,
) -> Any:
    """Record whole episodes in a run's environment as a Minari dataset, and return it.

    The dataset stores the environment's registration, unless that holds arguments that JSON would change. It
    holds what training sees, to the bit: observations are copied, and the dataset is read again and compared.

    Args:
        folder: a run folder.
        dataset: name of the new dataset, like local/pendulum-v0.
        episodes: number of episodes.
        kind: "trained" acts as `evaluate` does; "noisy" adds N(0, noise²) to that, in units of [-1, 1];
            "random" is uniform in the action box.
        noise: standard deviation for "noisy".
        seed: episode k resets its environment with seed + k.
        current: take the current policy even if the checkpoint schedule keeps a better one.

    Raises:
        UsageError: a package is missing, the name is taken or malformed, or the environment does not fit: its
            actions are discrete, or its observations are images or others that Minari does not give back.
        RunError: the run has no readable save, the environment broke or returned an observation that its
            space cannot hold, or the dataset cannot be written, or not read.
    """
    try:
        import minari
    except ImportError as problem:
        raise MissingPackage('recording needs packages: pip install "qscape[offline]".') from problem
    if episodes < 1:
        raise OutOfRange(f"--episodes is {episodes}; it must be at least 1.", field="episodes")
    if not 0 <= noise < np.inf:
        raise OutOfRange(f"--noise is {noise}; it must be a number, 0 or more.", field="noise")
    _refuse_taken_name(minari, dataset)
    plan = read_plan(folder)
    if plan.lag != NO_LAG:
        raise UnfitEnv(
            f"{folder} acts on stacks of measurements, and a dataset holds what an environment shows: record "
            "a run without --history, delays, noise and dropout."
        )
    loaded = load_policy(folder, current=current)
    if loaded.adapter.spec.table is not None or loaded.adapter.spec.index_sizes is not None:
        raise UnfitEnv(f"{plan.env} has discrete actions; only continuous actions are recorded.")
    rng = np.random.default_rng([seed, 1])  # the seed alone would draw the numbers of the first reset again
    with contextlib.ExitStack() as stack:
        loaded.adapter.close()  # of some environments only one may exist; its map of actions is needed
        opened = [_drop_unwritable_spec(build_env(plan.env, dict(plan.env_args)))]
        stack.callback(lambda: opened[-1].close())  # with those that it wraps
        env = _Copying(opened[0], loaded.adapter)
        _try_storage(env)
        try:
            collector = minari.DataCollector(env)
            opened.append(collector)
            for k in track(range(episodes), "episodes"):
                _record_episode(collector, loaded, kind, noise, seed + k, rng)
            how = f"{kind} {noise:g}" if kind == "noisy" else kind
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # author and similar fields are not given
                made = collector.create_dataset(
                    dataset,
                    algorithm_name=f"{plan.label or plan.recipe}, {how}",
                    description=f"{episodes} episodes of {folder} at step {loaded.step}, recorded by qscape",
                )
        except QscapeError:
            raise
        except Exception as problem:  # of the disk, of Minari or of HDF5
            why = (problem.strerror if isinstance(problem, OSError) else None) or describe(problem)
            raise CannotWrite(f"the dataset {dataset} cannot be written ({why}).") from problem
        try:
            _compare(dataset, env)
        except QscapeError as problem:
            minari.delete_dataset(dataset)
            raise Inexact(
                f"the dataset {dataset} was not kept, since reading it back failed: {problem}"
            ) from problem
        return made


def _refuse_taken_name(minari: Any, dataset: str) -> None:
    """Raise a UsageError if a dataset's name is taken, or if Minari does not accept it."""
    try:
        minari.dataset.minari_dataset.parse_dataset_id(dataset)
    except (ValueError, TypeError) as problem:  # TypeError: the version is missing
        raise WrongValue(
            f"--dataset {dataset} is not a valid dataset name: write one like local/pendulum-v0.",
            field="dataset",
        ) from problem
    if dataset in minari.list_local_datasets():
        raise Taken(
            f"the dataset {dataset} exists; choose another name, or delete it: minari delete {dataset}.",
            field="dataset",
        )


class _WithoutSpec(gym.Wrapper):
    """An environment without its registration."""

    spec = None  # type: ignore[assignment]


def _drop_unwritable_spec(env: gym.Env) -> gym.Env:
    """Return the environment, without its registration if JSON does not give back its arguments."""
    try:
        if env.spec is not None:
            read_back = EnvSpec.from_json(env.spec.to_json()).kwargs
            if encode(dict(read_back)) != encode(dict(env.spec.kwargs)):
                return _WithoutSpec(env)
    except Exception:  # of JSON, of a class among the arguments or of `encode`
        return _WithoutSpec(env)
    return env


class _Copying(gym.Wrapper):
    """An environment whose observations are new arrays of its space, with all numbers that training sees.

    An environment may return lists, other dtypes, or in every step the array that it writes to.

    Attributes:
        name: of the environment, for errors.
        flatten: makes the row that networks see of an observation.
        episodes: what was played: the rows, actions, rewards, and both flags of every episode.
    """

    def __init__(self, env: gym.Env, adapter: EnvAdapter) -> None:
        super().__init__(env)
        self.name, space = adapter.env_id, order_like(env.observation_space, adapter.spaces["observation"])
        refuse_images(space, self.name)
        self.order = adapter.spaces
        _, self.flatten = make_flatten(space, self.name)
        self.outside = Outside(env)
        self.episodes: list[_Episode] = []

    @property
    def spec(self) -> EnvSpec | None:
        """The registration of the environment itself, to which copying adds nothing."""
        return self.env.spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        observation, info = self._call(self.outside.reset, self.env, seed)
        self.episodes.append(_Episode([], [], [], []))
        return self._keep(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._call(
            self.outside.call, self.env.step, action
        )
        reward = read_reward(reward, self.name)
        terminated, truncated = (read_flag(flag, self.name) for flag in (terminated, truncated))
        episode = self.episodes[-1]
        episode.actions.append(np.array(action))
        episode.rewards.append(reward)
        episode.terminated.append(terminated)
        return self._keep(observation), reward, terminated, truncated, info

    def _call(self, call: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """Call the environment; its error becomes a RunError."""
        try:
            return call(*args, **keywords)
        except QscapeError:
            raise
        except Exception as problem:
            at = len(self.episodes[-1].rewards) + 1 if call.__name__ == "call" else 0
            raise BrokenEnv(
                f"{self.name} broke in step {at} of an episode ({describe(problem)})."
            ) from problem

    def _keep(self, observation: Any) -> Any:
        """Return an observation as a new one of the space; keep its row."""
        try:
            made = _as_element(self.observation_space, observation)
            row, own = self.flatten(observation, 1), self.flatten(made, 1)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as problem:
            raise BrokenEnv(
                f"{self.name} returned an observation that is none of {self.observation_space} "
                f"({describe(problem)})."
            ) from problem
        if not np.array_equal(row, own, equal_nan=True):
            at = int(np.argmax(row != own))
            raise BrokenEnv(
                f"{self.name} shows {row[0, at]:g} at observation[{at}], which {self.observation_space} "
                "cannot hold: a dataset would have another number there. Give the space a floating dtype."
            )
        self.episodes[-1].rows.append(row)
        return made


class _Episode(NamedTuple):
    """What was played in an episode: one row more than steps."""

    rows: list[np.ndarray]
    actions: list[np.ndarray]
    rewards: list[float]
    terminated: list[bool]


def _as_element(space: gym.Space, value: Any) -> Any:
    """Return an observation as a new element of its space, a Box or a Dict of Boxes, without further keys."""
    if isinstance(space, gym.spaces.Dict):
        return {key: _as_element(part, value[key]) for key, part in space.spaces.items()}
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # of numbers that the dtype cannot hold, told by `_keep`
        return np.array(value).astype(space.dtype).reshape(space.shape or ())


def _try_storage(env: _Copying) -> None:
    """Write and read two observations of an environment's space, before an episode is played.

    Raises:
        UsageError: Minari does not give them back.
    """
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    space, actions = copy.deepcopy(env.observation_space), copy.deepcopy(env.action_space)
    drawn = [space.sample() for _ in range(2)]
    try:
        with tempfile.TemporaryDirectory() as place:
            storage = MinariStorage.new(place, observation_space=space, action_space=actions)
            buffer = EpisodeBuffer(id=0, observations=drawn[0]).add_step_data(
                {"observation": drawn[1], "action": actions.sample(), "info": {}}  # type: ignore[typeddict-item]
                | {"reward": 0.0, "terminated": True, "truncated": False}
            )
            storage.update_episodes([buffer])
            found = next(iter(storage.get_episodes([0])))["observations"]
            same = np.array_equal(env.flatten(found, 2), np.concatenate([env.flatten(x, 1) for x in drawn]))
            why = "" if same else "they come back as others"
    except Exception as problem:  # of Minari, of HDF5 or of JSON
        why = describe(problem)
    if why:
        raise UnfitEnv(f"{env.name} has observations {space}, which Minari cannot store ({why}).")


def _compare(dataset: str, env: _Copying) -> None:
    """Raise a RunError if a dataset that was read from the disk differs from what was played."""
    found = read(dataset, like=env.order)
    box = require_action_box(env.action_space, dataset)
    actions = np.concatenate(
        [np.array(e.actions, np.float64).reshape(len(e.actions), -1) for e in env.episodes]
    )
    played = {
        "observation": np.concatenate([np.concatenate(e.rows[:-1]) for e in env.episodes]),
        "next_observation": np.concatenate([np.concatenate(e.rows[1:]) for e in env.episodes]),
        "action": np.clip(box.to_unit(actions).astype(np.float32), -1.0, 1.0),
        "reward": np.array([reward for e in env.episodes for reward in e.rewards], np.float32),
        "terminated": np.array([flag for e in env.episodes for flag in e.terminated]),
    }
    for column, rows in played.items():
        there = getattr(found, column)
        if there.shape != rows.shape or not np.array_equal(there, rows):
            raise Inexact(f"its column {column} holds other numbers than were played.")


def _record_episode(
    env: gym.Env, loaded: LoadedPolicy, kind: Kind, noise: float, seed: int, rng: np.random.Generator
) -> None:
    """Record one episode, from reset to its end."""
    adapter, choose = loaded.adapter, act_evaluating(loaded.programs, loaded.acting, 1)
    observation, _ = env.reset(seed=seed)
    step, over = 0, False
    while not over:
        if kind == "random":
            action = rng.uniform(-1.0, 1.0, (1, adapter.spec.action_size)).astype(np.float32)
        else:
            action = choose(adapter.observations(observation)[0], np.array([step == 0]), step)
        if kind == "noisy":
            action = np.clip(action + noise * rng.standard_normal(action.shape), -1.0, 1.0).astype(np.float32)
        observation, _, terminated, truncated, _ = env.step(adapter.actions(action)[0])
        step, over = step + 1, terminated or truncated
        refuse_endless(adapter, step)
