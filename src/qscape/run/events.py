"""What a run tells while it goes on. The command line, loggers, tuners and notebooks consume these."""

from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args


class Started(NamedTuple):
    """The run begins (or goes on, from `step`); `notes` are sentences for the user."""

    step: int
    steps: int
    label: str
    env: str
    seed: int
    notes: list[str]


class EpisodeDone(NamedTuple):
    """A training episode is over."""

    step: int
    env: int
    length: int
    ret: float
    success: float | None


class Logged(NamedTuple):
    """A logging interval is over."""

    step: int
    updates: int
    metrics: dict[str, float]


class Evaluated(NamedTuple):
    """An evaluation is over. `policy` is "current", or "kept" for a schedule that keeps the best one."""

    step: int
    policy: str
    returns: list[float]
    lengths: list[int]
    successes: list[float]
    probes: dict[str, list[float]]  # what probes measured, for each episode
    seconds: float

    @property
    def mean(self) -> float:
        """Mean undiscounted return."""
        return sum(self.returns) / len(self.returns)


class Saved(NamedTuple):
    """A save is complete."""

    step: int
    path: Path


class Ended(NamedTuple):
    """The run is over, or was `interrupted` after saving what there is to go on from."""

    step: int
    updates: int
    seconds: float
    interrupted: bool


class Measured(NamedTuple):
    """What a run costs, in seconds: to begin, per environment step, update and episode of an evaluation."""

    begin: float
    step: float
    update: float
    episode: float


RunEvent: TypeAlias = Started | EpisodeDone | Logged | Evaluated | Saved | Ended | Measured


def to_json(event: RunEvent) -> dict[str, Any]:
    """The event as a flat JSON object with its `kind`."""
    fields = {k: str(v) if isinstance(v, Path) else v for k, v in event._asdict().items()}
    return {"kind": type(event).__name__} | fields


def from_json(data: dict[str, Any]) -> RunEvent:
    """The event that `to_json` wrote."""
    kinds = {cls.__name__: cls for cls in get_args(RunEvent)}
    fields = dict(data)
    cls = kinds[fields.pop("kind")]
    if "path" in fields:
        fields["path"] = Path(fields["path"])
    return cls(**fields)
