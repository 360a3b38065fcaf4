"""Files of a run folder: written completely or not at all, and never through a link."""

import os
import secrets
import shutil
from pathlib import Path

from qscape.errors import CannotWrite

LEFTOVERS = ".*.tmp-*"  # what `unused_name` returns, as a pattern


def unused_name(target: Path, suffix: str = "") -> Path:
    """Return a hidden name beside a file or folder, in which it is written before it is renamed.

    `suffix`: what the name ends in, if a writer chooses the format by it.
    """
    return target.with_name(f".{target.name}.tmp-{secrets.token_hex(8)}{suffix}")


def write_whole(file: Path, data: bytes) -> None:
    """Write a file and flush it to the disk. A crash leaves the old file or the new one.

    A link in the place of the file is replaced; what it points to stays.

    Raises:
        OSError: the file cannot be written.
    """
    aside = unused_name(file)
    try:
        with aside.open("xb") as handle:
            handle.write(data)
        sync(aside)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file's bytes, or the renames in a folder, to the disk (nothing on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete(path: Path) -> None:
    """Delete a file, a folder with its content, or a link; what a link points to stays."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove_leftovers(folder: Path) -> None:
    """Delete what processes that were killed left in a folder under names of `unused_name`."""
    for leftover in folder.glob(LEFTOVERS):
        delete(leftover)


def refuse_link(path: Path) -> None:
    """Raise an error if a path is a link.

    Raises:
        RunError: it is.
    """
    if path.is_symlink():
        raise CannotWrite(
            f"{path} is a link, and nothing in a run folder is written through a link; put what it points to "
            "in its place."
        )


def refuse_links(folder: Path) -> None:
    """Raise an error if a folder holds a link at any depth. The folder itself may be one.

    Raises:
        RunError: it does.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            refuse_link(Path(place) / name)
