"""The folder in which JAX keeps compiled programs, which all runs, studies and processes of a user share.

The name of an entry is a hash of the program, of the versions of JAX and its libraries, of the kind of
device, of the processor's instructions and of the compiler's flags. So an entry of another version or
machine is not found, and the program is compiled anew. An entry that is damaged, as by a full disk or by a
process that was killed while it wrote, is not used either: JAX warns and compiles, but it does not replace
the entry, so every later start compiles again.
"""

import dataclasses
import os
import zlib
from pathlib import Path

ENTRY, OF_ENTRY = "-cache", "-atime"  # how the names end of a program, and of the time of its last use
ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how an entry begins where the package zstandard is installed


@dataclasses.dataclass(frozen=True)
class Kept:
    """What the folder holds.

    Attributes:
        folder: the folder, which may not exist.
        programs: the number of compiled programs.
        nbytes: their size on the disk in bytes.
        newest: when the last one was written, in seconds since the epoch; None if there is none.
        damaged: entries that cannot be read.
    """

    folder: Path
    programs: int
    nbytes: int
    newest: float | None
    damaged: tuple[Path, ...]


def find_folder() -> Path:
    """Return the folder that runs use: `$JAX_COMPILATION_CACHE_DIR`, or qscape/xla in the user's cache."""
    if given := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qscape" / "xla"


def look(folder: Path) -> Kept:
    """Read every entry of a folder; entries that other processes remove meanwhile do not count."""
    sizes, times, damaged = [], [], []
    for entry in _entries(folder, ENTRY):
        try:
            about, content = entry.stat(), entry.read_bytes()
        except FileNotFoundError:
            continue
        sizes.append(about.st_size)
        times.append(about.st_mtime)
        if not _is_whole(content):
            damaged.append(entry)
    return Kept(folder, len(sizes), sum(sizes), max(times, default=None), tuple(damaged))


def clear(folder: Path) -> int:
    """Remove all compiled programs of a folder, nothing else, and return how many there were.

    A run that is under way keeps what it has read.
    """
    removed = 0
    for ending in (ENTRY, OF_ENTRY):
        for entry in _entries(folder, ending):
            entry.unlink(missing_ok=True)
            removed += ending == ENTRY
    return removed


def _entries(folder: Path, ending: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{ending}") if path.is_file() and not path.is_symlink())


def _is_whole(content: bytes) -> bool:
    """Return whether an entry is complete; one of zstandard, which Python cannot read, counts as complete."""
    if content.startswith(ZSTANDARD):
        return True
    try:
        zlib.decompress(content)
    except zlib.error:
        return False
    return True
