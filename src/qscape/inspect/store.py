"""Results of inspection commands, kept in the run folder as RUN/inspect/NAME.json for `qscape.report`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qscape.errors import CannotWrite, RunError
from qscape.run.files import refuse_link, write_whole


def write_findings(folder: Path | str, name: str, findings: Mapping[str, Any]) -> Path:
    """Write results to RUN/inspect/NAME.json and return the path. NaN becomes null.

    Raises:
        RunError: the file cannot be written, or RUN/inspect is a link.
    """
    file = Path(folder) / "inspect" / f"{name}.json"
    refuse_link(file.parent)
    write_atomically(file, to_json(findings).encode())
    return file


def keep_findings(
    folder: Path, name: str, findings: Mapping[str, Any], needed: bool = False
) -> tuple[list[Path], list[str]]:
    """Like `write_findings`, but a folder that cannot be written, such as somebody else's run, is no error.

    Args:
        needed: it is an error all the same, since further files go to that folder.

    Returns:
        The file, and no sentence; or no file, and a sentence for the user that says why.
    """
    try:
        return [write_findings(folder, name, findings)], []
    except RunError as problem:
        if needed:
            raise
        return [], [f"the findings are not kept in the run's folder: {problem}"]


def write_atomically(file: Path, data: bytes) -> None:
    """Write a file completely or not at all, creating its folder.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, data)
    except OSError as problem:
        raise CannotWrite(f"{file} cannot be written ({problem.strerror}).") from problem


def to_json(findings: Mapping[str, Any]) -> str:
    """Format nested dictionaries and lists as JSON, one line for each key; NaN and infinity become null."""
    lines = (
        f" {json.dumps(k)}: {json.dumps(_replace_non_finite(v), allow_nan=False)}"
        for k, v in findings.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
