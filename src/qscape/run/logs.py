"""Reads metrics.jsonl and evaluations.csv of a run folder, without the lines that are damaged."""

import contextlib
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Generic, NamedTuple, TypeVar

from qscape.sealed import read_json

EVALUATION_COLUMNS = ("step", "policy", "episode", "return", "length", "success", "seconds")
_COUNTS, _NUMBERS = ("step", "episode", "length"), ("return", "seconds")

Row = TypeVar("Row")


@dataclass(frozen=True)
class Log(Generic[Row]):
    """The lines of a log.

    Attributes:
        file: its path; a missing file counts as empty.
        head: the line of column names; "" for metrics.jsonl.
        lines: the intact lines, each with its content.
        damaged: numbers of the damaged lines, from 1. Half a line at the end is none: a killed run leaves it.
    """

    file: Path
    head: str
    lines: list[tuple[str, Row]]
    damaged: list[int]

    @property
    def notes(self) -> list[str]:
        """A sentence that says which lines are damaged; no sentence if none is."""
        if not self.damaged:
            return []
        numbers = ", ".join(map(str, self.damaged[:10])) + (", ..." if len(self.damaged) > 10 else "")
        return [f"{self.file}: {len(self.damaged)} damaged lines are left out (line {numbers})"]


def read_metrics(folder: Path) -> Log[dict[str, Any]]:
    """Read metrics.jsonl: numbers, or None, by name, with the whole number `step`."""
    file = folder / "metrics.jsonl"
    return Log(file, "", *_parse(_lines(file), _metrics_row, 1))


def read_evaluations(folder: Path, probed: Sequence[str] = ()) -> Log[dict[str, str]]:
    """Read evaluations.csv: the texts of each row by column.

    Args:
        folder: the run folder.
        probed: columns that probes add, in case that the line of column names is damaged.
    """
    file = folder / "evaluations.csv"
    lines = _lines(file)
    first = lines[0].decode(errors="replace").rstrip("\r") if lines else ""
    intact = tuple(first.split(",")[: len(EVALUATION_COLUMNS)]) == EVALUATION_COLUMNS
    head = first if intact else ",".join((*EVALUATION_COLUMNS, *probed))
    columns = head.split(",")
    kept, damaged = _parse(lines[1:], lambda line: _evaluation_row(line, columns), 2)
    return Log(file, head, kept, damaged if intact or not lines else [1, *damaged])


class EvaluationMeans(NamedTuple):
    """The means over the episodes of one evaluation.

    Attributes:
        step: environment steps so far.
        policy: "current" or "kept".
        ret: the return.
        success: the share of successful episodes; None if no episode reported success.
    """

    step: int
    policy: str
    ret: float
    success: float | None


def read_evaluation_means(folder: Path) -> list[EvaluationMeans]:
    """Read the means of every evaluation in a run folder, in their order in the file."""
    by_evaluation: dict[tuple[int, str], list[dict[str, str]]] = {}
    with contextlib.suppress(OSError):
        for _, row in read_evaluations(folder).lines:
            by_evaluation.setdefault((int(row["step"]), row["policy"]), []).append(row)
    return [
        EvaluationMeans(step, policy, mean(float(row["return"]) for row in rows), _mean_success(rows))
        for (step, policy), rows in by_evaluation.items()
    ]


def _mean_success(rows: Sequence[dict[str, str]]) -> float | None:
    """Return the share of successful episodes; one without a report counts as a failure beside others."""
    reported = [row["success"] for row in rows]
    return mean(float(success or 0) for success in reported) if any(reported) else None


def _lines(file: Path) -> list[bytes]:
    """Return the lines of a file that ended with a newline."""
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


def _parse(
    lines: Sequence[bytes], read: Callable[[str], Row], first: int
) -> tuple[list[tuple[str, Row]], list[int]]:
    """Return the lines that `read` accepts, with what it returns, and the numbers of the others."""
    kept, damaged = [], []
    for number, line in enumerate(lines, first):
        try:
            text = line.decode().rstrip("\r")
            kept.append((text, read(text)))
        except (ValueError, csv.Error):
            damaged.append(number)
    return kept, damaged


def _metrics_row(line: str) -> dict[str, Any]:
    row = read_json(line)
    if type(row.get("step")) is not int:
        raise ValueError("a line without a step")
    if not all(value is None or type(value) in (int, float) for value in row.values()):
        raise ValueError("a value that is no number")
    return row


def _evaluation_row(line: str, columns: Sequence[str]) -> dict[str, str]:
    (values,) = csv.reader([line])
    row = dict(zip(columns, values, strict=True))
    for name in _COUNTS:
        int(row[name])
    for name in _NUMBERS:
        float(row[name])
    return row
