"""Record episodes of a policy as a Minari dataset."""

import warnings
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from qscape.envs.build import build_env
from qscape.errors import CannotWrite, MissingPackage, OutOfRange, Taken, UnfitEnv, WrongValue
from qscape.run.evaluation import refuse_endless
from qscape.run.folder import read_plan
from qscape.run.policy import LoadedPolicy, load_policy
from qscape.run.programs import act_evaluating

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

    The dataset stores the environment's registration, unless that holds a class object, which cannot be
    written as JSON.

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
        UsageError: a package is missing, the name is taken or malformed, or the environment does not fit.
        RunError: the run has no readable save, or the dataset cannot be written.
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
    plan, loaded = read_plan(folder), load_policy(folder, current=current)
    if loaded.adapter.spec.table is not None or loaded.adapter.spec.index_sizes is not None:
        raise UnfitEnv(f"{plan.env} has discrete actions; only continuous actions are recorded.")
    env = minari.DataCollector(_drop_unwritable_spec(build_env(plan.env, dict(plan.env_args))))
    rng = np.random.default_rng([seed, 1])  # the seed alone would draw the numbers of the first reset again
    try:
        for k in range(episodes):
            _record_episode(env, loaded, kind, noise, seed + k, rng)
        how = f"{kind} {noise:g}" if kind == "noisy" else kind
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # author and similar fields are not given
            return env.create_dataset(
                dataset,
                algorithm_name=f"{plan.label or plan.recipe}, {how}",
                description=f"{episodes} episodes of {folder} at step {loaded.step}, recorded by qscape",
            )
    except OSError as problem:
        raise CannotWrite(f"the dataset {dataset} cannot be written ({problem.strerror}).") from problem
    finally:
        env.close()
        loaded.adapter.close()


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
    """Return the environment, without its registration if that cannot be written as JSON."""
    try:
        if env.spec is not None:
            env.spec.to_json()
    except (TypeError, ValueError):
        return _WithoutSpec(env)
    return env


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
