"""Probes: further measurements of every evaluation of a run, on the episodes that it runs anyway.

A probe is a class with `columns`. It is instantiated once for an agent and called after each evaluation. The
probes of `qscape.inspect` are listed by name in `PROBES` and imported on use, since `inspect` is a layer
above `run`. `module:Class` names a probe of the user.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from qscape.errors import RunError, WrongPart
from qscape.run.evaluation import Rollout
from qscape.trusted import import_class

PROBES = {
    "smoothness": "qscape.inspect.smoothness:SmoothnessProbe",
    "geometry": "qscape.inspect.geometry:GeometryProbe",
    "collapse": "qscape.inspect.collapse:CollapseProbe",
    "landscape": "qscape.inspect.survey:LandscapeProbe",
    "bias": "qscape.inspect.bias:BiasProbe",
}


class PolicyEvaluation(NamedTuple):
    """The input of a probe: a policy and its evaluation, step by step.

    Attributes:
        acting: the acting state of the evaluated policy.
        rollouts: the episodes of the evaluation.
        reward_divisor: what the critics' rewards are divided by; 1 without reward scaling, NaN for a kept
            policy with it.
    """

    acting: Any
    rollouts: list[Rollout]
    reward_divisor: float = 1.0


@runtime_checkable
class Probe(Protocol):
    """The interface of a probe. A run makes it with `Class(agent)`; the agent is bound to its task.

    Attributes:
        columns: the columns that it adds to evaluations.csv.
    """

    columns: tuple[str, ...]

    def __call__(self, evaluation: PolicyEvaluation) -> Mapping[str, float | Sequence[float]]:
        """Measure an evaluation.

        Returns:
            For each column one number, or a sequence with one number for each episode.
        """
        ...


class Probes:
    """All probes of one run, called as one."""

    def __init__(self, names: Sequence[str], agent: Any) -> None:
        """Import and make the named probes for an agent. Raises UsageError if one cannot be imported."""
        self.probes: list[Probe] = [load_probe(name)(agent) for name in names]

    def __call__(self, evaluation: PolicyEvaluation) -> dict[str, list[float]]:
        """Return, by column, one number for every episode; a single number is repeated for all episodes."""
        columns: dict[str, list[float]] = {}
        for probe in self.probes:
            measured, n = probe(evaluation), len(evaluation.rollouts)
            for name in probe.columns:
                value = np.asarray(measured[name], float)
                if value.shape not in ((), (n,)):
                    raise RunError(
                        f"a probe gave {name} with shape {value.shape}; give one number, or one for each of "
                        f"the {n} episodes."
                    )
                columns[name] = np.broadcast_to(value, n).tolist()
        return columns


def probe_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that the named probes add to evaluations.csv."""
    return tuple(column for name in names for column in load_probe(name).columns)


def load_probe(name: str) -> Any:
    """Import the class of a probe by its name in `PROBES` or by `module:Class`.

    Raises:
        UsageError: there is no such module or class.
    """
    found = import_class("probe", PROBES.get(name, name))
    if not (inspect.isclass(found) and hasattr(found, "columns")):
        raise WrongPart(
            f"--probe {name} is no probe: it must be a class with the attribute columns.", field="probe"
        )
    return found
