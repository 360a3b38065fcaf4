"""The events of a run. The command line, loggers, studies, searches and callbacks consume them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args


class Started(NamedTuple):
    """The run begins, or continues from `step`.

    Attributes:
        step: environment steps made before.
        steps: total of environment steps to make.
        label: name of the agent in tables.
        env: environment id.
        seed: the run's seed.
        notes: sentences for the user.
        warnings: those among them that say what is other than promised, which --quiet shows too.
        evals_every: steps between evaluations; 0: there are none.
    """

    step: int
    steps: int
    label: str
    env: str
    seed: int
    notes: list[str]
    warnings: Sequence[str] = ()
    evals_every: int = 0


class EpisodeDone(NamedTuple):
    """A training episode has ended.

    Attributes:
        step: environment steps so far.
        env: index of the sub-environment.
        length: steps of the episode.
        ret: undiscounted return.
        success: 1 or 0; None if the environment reports no success.
    """

    step: int
    env: int
    length: int
    ret: float
    success: float | None


class Progressed(NamedTuple):
    """The run goes on; comes about once a second, between steps, for progress bars.

    Attributes:
        step: environment steps so far.
        updates: gradient updates so far.
        memory: the most memory of the machine that the process has held so far, in bytes; 0: unknown.
        device_memory: the most memory of an accelerator, in bytes; 0: there is none.
    """

    step: int
    updates: int
    memory: int
    device_memory: int


class Logged(NamedTuple):
    """A logging interval has ended.

    Attributes:
        step: environment steps so far.
        updates: gradient updates so far.
        metrics: newest value of each metric by name, mean `return` of the interval's episodes, and
            `steps_per_second`.
        warnings: sentences for the user; each comes once in a run.
    """

    step: int
    updates: int
    metrics: dict[str, float]
    warnings: Sequence[str] = ()


class Evaluated(NamedTuple):
    """An evaluation has ended.

    Attributes:
        step: environment steps so far.
        policy: "current", or "kept" for the best policy that the checkpoint schedule keeps.
        returns: undiscounted return of each episode.
        lengths: steps of each episode.
        successes: success of each episode; empty if the environment reports none.
        probes: measurements of probes by column, one number for each episode.
        seconds: duration; where all seeds of a program play together, the first seed's event has it and the
            others' have about 0.
        by_success: whether success is what counts: the environment sets goals.
    """

    step: int
    policy: str
    returns: list[float]
    lengths: list[int]
    successes: list[float]
    probes: dict[str, list[float]]
    seconds: float
    by_success: bool = False

    @property
    def mean(self) -> float:
        """Mean undiscounted return."""
        return sum(self.returns) / len(self.returns)

    @property
    def success(self) -> float | None:
        """Share of successful episodes if `by_success`; None: the return counts, or none is reported."""
        return sum(self.successes) / len(self.successes) if self.by_success and self.successes else None


class Saved(NamedTuple):
    """A save has been written.

    Attributes:
        step: environment steps so far.
        path: folder of the save.
    """

    step: int
    path: Path


class Ended(NamedTuple):
    """The run has ended.

    Attributes:
        step: environment steps so far.
        updates: gradient updates so far.
        seconds: duration.
        interrupted: the run was stopped; it saved its state and can be resumed.
        why: what ended it before all steps were made, of --stop-at and --patience; "": nothing.
    """

    step: int
    updates: int
    seconds: float
    interrupted: bool
    why: str = ""


RunEvent: TypeAlias = Started | EpisodeDone | Progressed | Logged | Evaluated | Saved | Ended


def to_json(event: RunEvent) -> dict[str, Any]:
    """Convert an event to a flat JSON object with its `kind`."""
    fields = {k: str(v) if isinstance(v, Path) else v for k, v in event._asdict().items()}
    return {"kind": type(event).__name__} | fields


def from_json(data: dict[str, Any]) -> RunEvent:
    """Restore the event that `to_json` wrote."""
    kinds = {cls.__name__: cls for cls in get_args(RunEvent)}
    fields = dict(data)
    cls = kinds[fields.pop("kind")]
    if "path" in fields:
        fields["path"] = Path(fields["path"])
    return cls(**fields)
