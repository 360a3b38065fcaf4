"""Probes: further measures of every evaluation of a run, taken on the episodes that it runs anyway.

A probe is a class with `columns`, made once for an agent and called after each evaluation. Those of `inspect`
are named in `PROBES`, not imported: this room stands below it, and a run without probes loads none. A name of
the form `module:Class` is a probe of the user's own.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from qscape.errors import UsageError
from qscape.run.evaluation import Rollout

PROBES = {
    "smoothness": "qscape.inspect.smoothness:Smoothness",
    "geometry": "qscape.inspect.geometry:Geometry",
    "collapse": "qscape.inspect.collapse:Probe",
    "landscape": "qscape.inspect.survey:Gaps",
}


class Look(NamedTuple):
    """What a probe is given: a policy and its evaluation, step by step."""

    acting: Any
    rollouts: list[Rollout]


@runtime_checkable
class Probe(Protocol):
    """Measures an evaluation. Made by `Class(agent)`, the agent bound to its task."""

    columns: tuple[str, ...]  # of evaluations.csv

    def __call__(self, look: Look) -> Mapping[str, float | Sequence[float]]:
        """For each column one number of the evaluation, or one for each of its episodes."""
        ...


class Probes:
    """The probes of one run as one."""

    def __init__(self, names: Sequence[str], agent: Any) -> None:
        """Raises UsageError: one of the names leads to no probe."""
        self.probes: list[Probe] = [load(name)(agent) for name in names]

    def __call__(self, look: Look) -> dict[str, list[float]]:
        """Of each column a number for every episode; one of the whole evaluation is repeated."""
        found: dict[str, list[float]] = {}
        for probe in self.probes:
            said, n = probe(look), len(look.rollouts)
            for name in probe.columns:
                value = said[name]
                one = not isinstance(value, Sequence)
                found[name] = [float(value)] * n if one else [float(x) for x in value]
        return found


def columns(names: Sequence[str]) -> tuple[str, ...]:
    """What the probes of these names add to evaluations.csv."""
    return tuple(column for name in names for column in load(name).columns)


def check(names: Sequence[str]) -> None:
    """Refuse names that can be no probe, without loading any.

    Raises:
        UsageError: an unknown name, or one that stands there twice.
    """
    for name in names:
        if name not in PROBES and ":" not in name:
            raise UsageError(
                f"--probe {name} is unknown; there are {', '.join(PROBES)}, or your own module:Class."
            )
    if len(set(names)) < len(names):
        raise UsageError(f"--probe {' '.join(names)}: name each probe once.")


def load(name: str) -> Any:
    """The class of a probe.

    Raises:
        UsageError: there is no such module or class in it.
    """
    module, _, attribute = PROBES.get(name, name).partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as problem:
        raise UsageError(f"--probe {name} cannot be loaded ({problem}).") from problem
