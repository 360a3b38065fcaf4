"""Results of inspection commands, kept in the run folder as RUN/inspect/NAME.json for `qscape.report`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qscape.errors import RunError


def write_findings(folder: Path | str, name: str, found: Mapping[str, Any]) -> Path:
    """Write results to RUN/inspect/NAME.json and return the path. NaN becomes null.

    Raises:
        RunError: the file cannot be written.
    """
    file = Path(folder) / "inspect" / f"{name}.json"
    write_atomically(file, to_json(found).encode())
    return file


def write_atomically(file: Path, data: bytes) -> None:
    """Write a file completely or not at all, creating its folder.

    Raises:
        RunError: the file cannot be written.
    """
    aside = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        aside.replace(file)
    except OSError as problem:
        raise RunError(f"{file} cannot be written ({problem.strerror}).") from problem


def to_json(found: Mapping[str, Any]) -> str:
    """Format nested dictionaries and lists as JSON, one line for each key; NaN and infinity become null."""
    lines = (
        f" {json.dumps(k)}: {json.dumps(_replace_non_finite(v), allow_nan=False)}" for k, v in found.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _replace_non_finite(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {key: _replace_non_finite(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_replace_non_finite(value) for value in found]
    return None if isinstance(found, float) and not np.isfinite(found) else found
