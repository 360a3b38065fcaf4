"""Sinks write a run's events: metrics.jsonl, evaluations.csv and TensorBoard. `trackers` has further ones."""

import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qscape.errors import CannotWrite, RunError
from qscape.run import events as ev
from qscape.run.files import write_whole
from qscape.run.logs import EVALUATION_COLUMNS, Log, read_evaluations, read_metrics

# To draw networks, tensorboardX imports PyTorch where it is installed: 2 s and 200 MB that no run needs.
_hidden = "torch" not in sys.modules
if _hidden:
    sys.modules["torch"] = None  # type: ignore[assignment]
try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2
    from tensorboardX.summary import scalar
finally:
    if _hidden:
        del sys.modules["torch"]

_proto: Any = event_pb2  # generated code: its classes are created at run time


@runtime_checkable
class Sink(Protocol):
    """The interface of a writer of events; a run calls it with each event before the user sees the event."""

    def __call__(self, event: ev.RunEvent) -> None:
        """Write an event."""
        ...

    def close(self) -> None:
        """Finish writing; called once, at the end of the run."""
        ...


class FolderSink:
    """Writes metrics.jsonl, evaluations.csv and TensorBoard events into a run folder.

    Attributes:
        notes: sentences for the user about damaged lines that were dropped.
    """

    def __init__(self, folder: Path, step: int = -1, probed: Sequence[str] = ()) -> None:
        """Open the files of a run folder.

        Args:
            folder: the run folder.
            step: the step that the run continues from; lines of later steps are dropped, since the run
                repeats these, and damaged lines. -1: drop all lines.
            probed: columns that probes add to evaluations.csv.

        Raises:
            RunError: the folder cannot be written.
        """
        self.folder = folder
        try:
            self.notes = _truncate_after(folder, step, probed)
            self.metrics = (folder / "metrics.jsonl").open("a")
            self.evaluations = (folder / "evaluations.csv").open("a", newline="")
            self.rows = csv.writer(self.evaluations)
            if self.evaluations.tell() == 0:
                self.rows.writerow((*EVALUATION_COLUMNS, *probed))
            # EventsWriter writes in this thread. SummaryWriter has a thread of its own, which dies if the
            # disk is full; the next write then blocks forever.
            self.board = EventsWriter(str(folder / "events"))
            begun = _proto.SessionLog(status=_proto.SessionLog.START)
            self.board.write_event(_proto.Event(step=step + 1, file_version="brain.Event:2"))
            self.board.write_event(_proto.Event(step=step + 1, session_log=begun))
        except OSError as problem:
            raise CannotWrite(f"{folder} cannot be written ({problem.strerror}).") from problem

    def __call__(self, event: ev.RunEvent) -> None:
        try:
            self._write(event)
        except OSError as problem:
            raise self._write_error(problem) from problem

    def _write(self, event: ev.RunEvent) -> None:
        if isinstance(event, ev.Logged):
            line = {"step": event.step, "updates": event.updates, **event.metrics}
            self.metrics.write(json.dumps(line) + "\n")
            self.metrics.flush()
            for name, value in event.metrics.items():
                self._write_scalar(f"train/{name}", value, event.step)
            self.board.flush()
        elif isinstance(event, ev.Evaluated):
            for k, (ret, length) in enumerate(zip(event.returns, event.lengths, strict=True)):
                success = event.successes[k] if event.successes else ""
                row = (event.step, event.policy, k, ret, length, success, round(event.seconds, 3))
                self.rows.writerow((*row, *(values[k] for values in event.probes.values())))
            self.evaluations.flush()
            for name, value in evaluation_means(event).items():
                self._write_scalar(name, value, event.step)
            self.board.flush()

    def _write_scalar(self, name: str, value: float, step: int) -> None:
        event = _proto.Event(wall_time=time.time(), step=step, summary=scalar(name, value))
        self.board.write_event(event)

    def close(self) -> None:
        try:
            for file in (self.metrics, self.evaluations, self.board):
                file.close()
        except OSError as problem:
            raise self._write_error(problem) from problem

    def _write_error(self, problem: OSError) -> RunError:
        return CannotWrite(f"{self.folder} cannot be written ({problem.strerror}); the last save stays.")


def evaluation_means(event: ev.Evaluated) -> dict[str, float]:
    """Return the means over episodes, by the names under which loggers show them."""
    means = {} if event.success is None else {"success": event.success}
    means["return"] = event.mean
    means |= {name: sum(values) / len(values) for name, values in event.probes.items()}
    return {f"evaluation/{name}_{event.policy}": mean for name, mean in means.items()}


def _truncate_after(folder: Path, step: int, probed: Sequence[str]) -> list[str]:
    """Drop the lines of steps after `step`, damaged ones, and half a line of a killed run.

    Returns:
        Sentences about the damaged lines.
    """
    notes = []
    log: Log[Any]
    for log in (read_metrics(folder), read_evaluations(folder, probed)):
        if log.file.exists():
            kept = [line for line, row in log.lines if int(row["step"]) <= step]
            head = [log.head] if log.head else []
            write_whole(log.file, "".join(f"{line}\n" for line in [*head, *kept]).encode())
            notes += log.notes
    return notes
