"""What was found of a run, kept in its folder as RUN/inspect/NAME.json, for `report` and others to read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qscape.errors import RunError


def write(folder: Path | str, name: str, found: Mapping[str, Any]) -> Path:
    """Write what was found of a run to RUN/inspect/NAME.json, whole or not at all; NaN becomes null.

    Raises:
        RunError: it cannot be written.
    """
    file = Path(folder) / "inspect" / f"{name}.json"
    write_whole(file, to_json(found).encode())
    return file


def write_whole(file: Path, data: bytes) -> None:
    """Write a file whole or not at all, and the folder it lies in.

    Raises:
        RunError: it cannot be written.
    """
    aside = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        aside.replace(file)
    except OSError as problem:
        raise RunError(f"{file} cannot be written ({problem.strerror}).") from problem


def to_json(found: Mapping[str, Any]) -> str:
    """JSON of nested dictionaries and lists, a line for each key; what is no finite number becomes null."""
    lines = (f" {json.dumps(k)}: {json.dumps(_finite(v), allow_nan=False)}" for k, v in found.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _finite(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {key: _finite(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not np.isfinite(found) else found
