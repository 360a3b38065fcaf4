"""Trackers: Weights & Biases, trackio, MLflow and sinks of the user, beside the files of a run folder.

A tracker never ends a run: if it fails, the run says so once and goes on without it.
"""

import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qscape.errors import (
    WrongPart,
    WrongValue,
    describe,
    need_extra,
    one_line,
)
from qscape.run import events as ev
from qscape.run.sinks import Sink, evaluation_means
from qscape.trusted import check_class_names, import_class

LONGEST = {"project": 128, "group": 128, "tags": 64}  # characters that Weights & Biases takes
PARAMETERS = 100  # that MLflow takes in one request
CHARACTERS = 500  # of a parameter's value in MLflow
FILMING = 600.0  # seconds that the video of an episode may take: the run waits for it


@dataclasses.dataclass(frozen=True)
class Tracking:
    """How trackers name and sort a run; run.json stores it.

    Attributes:
        project: the project, or the experiment of MLflow; "": qscape-ENV.
        group: runs that belong together; "": the agent's label, so that it holds all seeds.
        tags: words to search for.
        videos: send a video of an episode after every save (Weights & Biases alone).
        ids: each tracker's id of this run, by the tracker's name, so that a resumed run goes on there.

    Raises:
        UsageError: a name is empty, too long or not printable.
    """

    project: str = ""
    group: str = ""
    tags: tuple[str, ...] = ()
    videos: bool = False
    ids: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for flag, most in LONGEST.items():
            value = getattr(self, flag)
            for word in value if flag == "tags" else filter(None, [value]):
                if not (word.isprintable() and 0 < len(word) <= most):
                    raise WrongValue(
                        f"--log-{flag} {word!r}: give 1 to {most} characters without control characters.",
                        field=f"log_{flag}",
                    )

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Tracking":
        """Return what `dataclasses.asdict` made a mapping of."""
        return Tracking(**{**data, "tags": tuple(data.get("tags", ()))})


class TrackedRun(NamedTuple):
    """A run as a tracker begins it: `Class(run)`.

    Attributes:
        folder: the run folder.
        name: the agent's label and the seed.
        project, group, tags, videos: as in `Tracking`, with the defaults filled in.
        config: run.json.
        id: the tracker's attribute `id` when it began this run; "" in a new run, and if it had none.
    """

    folder: Path
    name: str
    project: str
    group: str
    tags: tuple[str, ...]
    videos: bool
    config: Mapping[str, Any]
    id: str


class WandbSink:
    """Sends events to Weights & Biases. Needs the extra `loggers`."""

    def __init__(self, run: TrackedRun) -> None:
        self.wandb: Any = importlib.import_module("wandb")
        self.id = run.id or uuid.uuid4().hex[:8]
        self.wandb.init(
            project=run.project,
            name=run.name,
            group=run.group,
            tags=[*run.tags],
            config=dict(run.config),
            id=self.id,
            resume="allow",
            allow_val_change=bool(run.id),  # such as more steps
        )
        self.wandb.define_metric("*", step_metric="step")
        self.folder, self.videos, self.warnings = run.folder, run.videos, list[str]()

    def __call__(self, event: ev.RunEvent) -> None:
        if numbers := _numbers(event):
            self.wandb.log(numbers | {"step": event.step})
        if self.videos and isinstance(event, ev.Saved):
            with tempfile.TemporaryDirectory() as place:
                if film := self._film(Path(place) / "episode.mp4"):
                    self.wandb.log({"video": self.wandb.Video(str(film), format="mp4"), "step": event.step})

    def _film(self, film: Path) -> Path | None:
        """Return a video of an episode by the newest save, or None, and from then on no more."""
        # In a process of its own: the renderer of the environment cannot end the run.
        command = [sys.executable, "-P", "-m", "qscape", "video", str(self.folder), "--mp4", str(film)]
        # The run may hold nearly all memory of an accelerator.
        env = os.environ | {"JAX_PLATFORMS": "cpu"}
        try:
            done = subprocess.run(
                [*command, "--trust"],
                capture_output=True,
                text=True,
                errors="replace",
                env=env,
                timeout=FILMING,
            )
        except subprocess.TimeoutExpired:
            why = f"it took more than {FILMING:g} seconds"
        else:
            if done.returncode == 0:
                return film
            why = one_line(done.stderr.strip().rpartition("\n")[2])
        self.videos = False
        self.warnings.append(f"--log-videos: no video can be made, so none is sent ({why}).")
        return None

    def close(self) -> None:
        self.wandb.finish()


class TrackioSink:
    """Sends events to trackio, which finds a run by its name. Needs the extra `loggers`."""

    def __init__(self, run: TrackedRun) -> None:
        self.trackio: Any = importlib.import_module("trackio")
        self.id = run.id or f"{run.name}-{uuid.uuid4().hex[:8]}"  # a name of its own among runs of one label
        resume = "allow" if run.id else "never"
        self.trackio.init(project=run.project, name=self.id, config=dict(run.config), resume=resume)

    def __call__(self, event: ev.RunEvent) -> None:
        if numbers := _numbers(event):
            self.trackio.log(numbers, step=event.step)

    def close(self) -> None:
        self.trackio.finish()


class MLflowSink:
    """Sends events to MLflow, where MLFLOW_TRACKING_URI says. Needs the extra `mlflow`.

    A project is an experiment there, a tag is a tag of the value "true", and the group is the tag "group".
    """

    def __init__(self, run: TrackedRun) -> None:
        # By default, MLflow waits several minutes for a server that does not answer, at every event.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        mlflow: Any = importlib.import_module("mlflow")
        self.entities: Any = importlib.import_module("mlflow.entities")
        self.client = mlflow.MlflowClient()
        if run.id:
            self.id = run.id
            self.client.update_run(self.id, status="RUNNING")
            return
        experiment = mlflow.set_experiment(run.project)
        tags = {"group": run.group, **dict.fromkeys(run.tags, "true")}
        made = self.client.create_run(experiment.experiment_id, run_name=run.name, tags=tags)
        self.id = made.info.run_id
        flat = [*_flatten(run.config)]
        for k in range(0, len(flat), PARAMETERS):
            params = [self.entities.Param(name, value) for name, value in flat[k : k + PARAMETERS]]
            self.client.log_batch(self.id, params=params)

    def __call__(self, event: ev.RunEvent) -> None:
        if numbers := _numbers(event):
            now = int(1000 * time.time())
            metrics = [self.entities.Metric(name, x, now, event.step) for name, x in numbers.items()]
            self.client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        self.client.set_terminated(self.id)


TRACKERS: dict[str, tuple[Callable[[TrackedRun], Sink], str, str]] = {  # class, package, extra
    "wandb": (WandbSink, "wandb", "loggers"),
    "trackio": (TrackioSink, "trackio", "loggers"),
    "mlflow": (MLflowSink, "mlflow", "mlflow"),
}


class Tracker:
    """A sink that cannot end the run: after its first error it does nothing.

    Attributes:
        id: the attribute `id` of the sink, or "".
    """

    def __init__(self, name: str, run: TrackedRun) -> None:
        """Begin a run, or go on with it if `run` has an id.

        Args:
            name: a name in `TRACKERS`, or `module:Class`.
            run: the run.
        """
        self.name = name
        self.sink: Sink | None = None
        self.warnings: list[str] = []  # sentences that the user has not seen
        try:
            self.sink = load_tracker(name)(run)
        except Exception as problem:  # any: no key, no network, an invalid name
            self._give_up("cannot begin", problem)
        self.id = str(getattr(self.sink, "id", ""))

    def __call__(self, event: ev.RunEvent) -> None:
        try:
            if self.sink is not None:
                self.sink(event)
        except Exception as problem:
            self._give_up("failed", problem)

    def take_warnings(self) -> list[str]:
        """Return the sentences that were not returned before."""
        taken, self.warnings = self.warnings, []
        if isinstance(self.sink, WandbSink):
            taken, self.sink.warnings = taken + self.sink.warnings, []
        return taken

    def close(self) -> None:
        """Finish. An error becomes a warning."""
        try:
            if self.sink is not None:
                self.sink.close()
        except Exception as problem:
            self._give_up("could not finish", problem)
        for sentence in self.take_warnings():
            warnings.warn(sentence, stacklevel=2)

    def _give_up(self, how: str, problem: Exception) -> None:
        self.sink = None
        self.warnings.append(f"--log {self.name} {how} ({describe(problem)}): the run goes on without it.")


def begin_trackers(
    names: Sequence[str], folder: Path, record: Mapping[str, Any]
) -> tuple[list[Tracker], dict[str, Any]]:
    """Make the trackers of a run.

    Args:
        names: names in `TRACKERS`, or `module:Class`; the user's, never a file's.
        folder: the run folder.
        record: the content of run.json.

    Returns:
        The trackers, and the record with their ids.
    """
    tracking = Tracking.from_json(record.get("tracking", {}))
    run = TrackedRun(
        folder,
        name=f"{record['label']}/{record['seed']}",
        # Weights & Biases refuses these characters.
        project=tracking.project or "qscape-" + re.sub(r"[/\\#?%:]", "-", record["env"]),
        group=tracking.group or record["label"][: LONGEST["group"]],
        tags=tracking.tags,
        videos=tracking.videos,
        config=record,
        id="",
    )
    trackers = [Tracker(name, run._replace(id=tracking.ids.get(name, ""))) for name in names]
    ids = {**tracking.ids, **{tracker.name: tracker.id for tracker in trackers if tracker.id}}
    return trackers, {**record, "tracking": dataclasses.asdict(dataclasses.replace(tracking, ids=ids))}


def load_tracker(name: str) -> Callable[[TrackedRun], Sink]:
    """Return the class of a tracker by its name in `TRACKERS` or by `module:Class`, and import its package.

    Raises:
        UsageError: the extra is missing, or there is no such module or class.
    """
    if name in TRACKERS:
        cls, package, extra = TRACKERS[name]
        with need_extra(f"--log {name}", extra, field="log"):
            importlib.import_module(package)
        return cls
    found = import_class("log", name)
    if not (inspect.isclass(found) and issubclass(found, Sink)):
        raise WrongPart(
            f"--log {name} is no sink: it must be a class with the methods __call__ and close.", field="log"
        )
    return found


def refuse_missing(names: Sequence[str]) -> None:
    """Raise an error for trackers that cannot be loaded; called before anything is written.

    Raises:
        UsageError: a name is unknown, an extra is missing, or a module cannot be imported.
    """
    check_class_names("log", names, TRACKERS)
    for name in names:
        load_tracker(name)


def _numbers(event: ev.RunEvent) -> dict[str, float]:
    """Return the numbers of an event by the names under which trackers show them; most events have none."""
    if isinstance(event, ev.Logged):
        return {f"train/{name}": value for name, value in event.metrics.items()}
    return evaluation_means(event) if isinstance(event, ev.Evaluated) else {}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of nested mappings as text, by names such as "settings.base.discount"."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)[:CHARACTERS]
