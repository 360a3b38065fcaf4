"""Results of commands as files: pictures, pages, tables."""

import io
import os
from pathlib import Path
from typing import Any

from qscape.errors import Conflict, WrongValue
from qscape.inspect.store import write_atomically

OF_A_RUN = ("run.json", "evaluations.csv", "metrics.jsonl")  # files that only its training writes


def save_figure(figure: Any, file: str) -> None:
    """Write a matplotlib figure.

    Raises:
        UsageError: the suffix names no image format.
        RunError: the file cannot be written.
    """
    refuse_ending(file)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=Path(file).suffix[1:].lower(), dpi=150)
    _save(drawn.getvalue(), file)


def refuse_ending(file: str) -> None:
    """Refuse a file name before the figure is computed.

    Raises:
        UsageError: the suffix names no image format.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    ending = Path(file).suffix
    if not ending:
        raise WrongValue(
            f"--png {file} has no suffix, which selects the format; write {file}.png.", field="png"
        )
    if ending[1:].lower() not in known:
        raise WrongValue(
            f"--png {file}: {ending} is not an image format; choose {', '.join(known)}.", field="png"
        )


def save_text(text: str, file: str) -> None:
    """Write a text file, creating its folder.

    Raises:
        RunError: the file cannot be written.
    """
    _save(text.encode(), file)


def refuse_same(*files: str | None) -> None:
    """Refuse two results in one file, of which only the last would stay, and a hyphen as a name.

    Raises:
        UsageError: they are.
    """
    named = [Path(file).resolve() for file in files if file]
    if "-" in files:
        raise WrongValue("- is no file name; /dev/stdout prints a result.")
    if twice := [path for k, path in enumerate(named) if path in named[:k]]:
        raise Conflict(f"{twice[0]} is named for two results; give each a file.")


def _save(data: bytes, file: str) -> None:
    """Write a file completely or not at all, creating its folder.

    Raises:
        UsageError: the file is a folder, or has the name of a file of a run.
        RunError: the file cannot be written; one that was there stays.
    """
    path = Path(file)
    if file.endswith(("/", os.sep)) or path.is_dir():
        raise WrongValue(f"{file} is a folder; name a file.")
    if path.name in OF_A_RUN:
        raise WrongValue(
            f"{file} has the name of a file of a run, which only training writes; name another one."
        )
    if path.exists() and not path.is_file():  # e.g. /dev/stdout
        path.write_bytes(data)
    else:
        write_atomically(path.resolve() if path.is_symlink() else path, data)
