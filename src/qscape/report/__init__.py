"""Tables, statistics and plots of run folders. Reads files only; never imports jax."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qscape.errors import MissingPackage
from qscape.values import show_args
from qscape.versions import find_wrong_versions


@contextlib.contextmanager
def require_extra(what: str) -> Iterator[None]:
    """Turn an import error inside the `with` block into a sentence that names the missing extra.

    Args:
        what: the feature that needs the packages, in the plural.

    Raises:
        UsageError: a package of the extra `report` is missing.
    """
    try:
        yield
    except ImportError as problem:
        wrong = "; ".join(find_wrong_versions("matplotlib", "pandas", "plotly", "plotext"))
        raise MissingPackage(wrong or f'{what} need the extra: pip install "qscape[report]".') from problem


# How sensors and actuators lag: fields of run.json with their defaults, those of `qscape.envs.lag.Lag`.
LAG = {"history": 1, "action_delay": 0, "observation_delay": 0}
LAG |= {"observation_noise": 0.0, "dropout": 0.0, "observe_actions": True}


def changed_lag(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return how sensors and actuators lag in a run: the fields of run.json that are not as usual."""
    return {name: record[name] for name, usual in LAG.items() if record.get(name, usual) != usual}


def environment_label(record: Mapping[str, Any]) -> str:
    """Format the environment's id with its arguments, and how its sensors and actuators lag.

    Another of these is another environment. `record`: run.json, or a mapping with its `env` and `env_args`.
    """
    args = show_args(record.get("env_args"))
    args |= changed_lag(record)
    values = ",".join(f"{name}={value}" for name, value in sorted(args.items()))
    return f"{record['env']}({values})" if values else record["env"]


def task_label(record: Mapping[str, Any]) -> str:
    """Format the environment and, behind it in brackets, the dataset that a run learned from, if it did.

    A dataset of Minari has its whole name, a file or folder the last part of its path.
    """
    env, dataset = environment_label(record), record.get("dataset")
    if not dataset:
        return env
    path = Path(dataset)
    if path.suffix in (".hdf5", ".h5"):
        return f"{env}[{path.stem}]"
    return f"{env}[{path.name if path.is_absolute() else dataset}]"


def name_steps(task: str) -> str:
    """Name what the steps of a task from `task_label` are: on a dataset each one is an update."""
    return "updates" if task.endswith("]") else "environment steps"
