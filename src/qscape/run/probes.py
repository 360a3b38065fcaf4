"""Probes: further measurements of every evaluation of a run, on the episodes that it runs anyway.

A probe is a class with `columns`, made once for an agent and called after each evaluation. Those of
`qscape.inspect` are named in `PROBES` and imported on use, since `inspect` is a layer above `run`. A name of
the form `module:Class` is a probe of the user's own.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from qscape.errors import UsageError
from qscape.run.evaluation import Rollout

PROBES = {
    "smoothness": "qscape.inspect.smoothness:SmoothnessProbe",
    "geometry": "qscape.inspect.geometry:GeometryProbe",
    "collapse": "qscape.inspect.collapse:CollapseProbe",
    "landscape": "qscape.inspect.survey:LandscapeProbe",
}


class PolicyEvaluation(NamedTuple):
    """The input of a probe: a policy and its evaluation, step by step.

    Attributes:
        acting: the acting state of the evaluated policy.
        rollouts: the episodes of the evaluation.
    """

    acting: Any
    rollouts: list[Rollout]


@runtime_checkable
class Probe(Protocol):
    """The interface of a probe. Made by `Class(agent)` with an agent bound to its task.

    Attributes:
        columns: the columns that it adds to evaluations.csv.
    """

    columns: tuple[str, ...]

    def __call__(self, evaluation: PolicyEvaluation) -> Mapping[str, float | Sequence[float]]:
        """Measure an evaluation: for each column one number, or one for each episode."""
        ...


class Probes:
    """All probes of one run, called as one."""

    def __init__(self, names: Sequence[str], agent: Any) -> None:
        """Raises UsageError: a name leads to no probe."""
        self.probes: list[Probe] = [load_probe(name)(agent) for name in names]

    def __call__(self, evaluation: PolicyEvaluation) -> dict[str, list[float]]:
        """Return for each column a number for every episode; a number of the whole evaluation is repeated."""
        columns: dict[str, list[float]] = {}
        for probe in self.probes:
            measured, n = probe(evaluation), len(evaluation.rollouts)
            for name in probe.columns:
                value = measured[name]
                whole = not isinstance(value, Sequence)
                columns[name] = [float(value)] * n if whole else [float(x) for x in value]
        return columns


def probe_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that the named probes add to evaluations.csv."""
    return tuple(column for name in names for column in load_probe(name).columns)


def check_names(names: Sequence[str]) -> None:
    """Refuse names that cannot be probes, without loading any.

    Raises:
        UsageError: a name is unknown or given twice.
    """
    for name in names:
        if name not in PROBES and ":" not in name:
            raise UsageError(
                f"--probe {name} is unknown; choose {', '.join(PROBES)}, or your own module:Class."
            )
    if len(set(names)) < len(names):
        raise UsageError(f"--probe {' '.join(names)}: name each probe once.")


def load_probe(name: str) -> Any:
    """Import the class of a probe.

    Raises:
        UsageError: there is no such module or class.
    """
    module, _, attribute = PROBES.get(name, name).partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as problem:
        raise UsageError(f"--probe {name} cannot be loaded ({problem}).") from problem
