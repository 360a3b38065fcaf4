"""Packs the files of a run folder, to send them to a machine that does not see its disk."""

from pathlib import Path
from typing import NamedTuple

from qscape.errors import RunError
from qscape.run.files import remove_leftovers, unused_name, write_whole
from qscape.run.saves import RECORD, SHARED  # the first makes a folder a save, so it is written last


class Parcel(NamedTuple):
    """Changes of a run folder since the last parcel.

    Attributes:
        names: names of all files in the folder, relative to it.
        files: content of the new and changed files, by name.
    """

    names: list[str]
    files: dict[str, bytes]


class Packer:
    """Packs a run folder repeatedly while a run writes to it. An unchanged file is packed once.

    Attributes:
        folder: the run folder.
        sent: size and modification time of every file at the last call, by name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: dict[str, tuple[int, int]] = {}

    def pack(self) -> Parcel:
        """Return the changed files since the last call, without links and hidden files (locks)."""
        while True:
            try:
                return self._pack()
            except FileNotFoundError:  # the run removed an old save meanwhile
                continue

    def _pack(self) -> Parcel:
        names, files, stamps = [], {}, {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            if path.is_dir() or path.is_symlink() or any(part.startswith(".") for part in name.parts):
                continue
            about = path.stat()
            stamps[str(name)] = (about.st_size, about.st_mtime_ns)
            names.append(str(name))
            if self.sent.get(str(name)) != stamps[str(name)]:
                files[str(name)] = path.read_bytes()
        self.sent = stamps
        return Parcel(names, files)


def unpack(parcel: Parcel, folder: Path) -> None:
    """Write a parcel into a run folder, in an order in which `resume` works after a crash at any moment.

    Files outside of the saves are written first. New saves follow; each is renamed into place when it is
    complete. Changes of older saves are last. Files that the parcel does not name are deleted from the saves.

    Raises:
        RunError: a name of the parcel leaves the folder.
    """
    for name in (*parcel.files, *parcel.names):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise RunError(f"a worker sent {name!r}, a file outside of the run folder {folder}.")
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder / "saves")
    groups: dict[Path, dict[str, bytes]] = {}
    for name, data in parcel.files.items():
        path = Path(name)
        groups.setdefault(path.parent, {})[path.name] = data
    new = {place for place in groups if not (folder / place).exists()}
    for place in sorted(groups, key=lambda p: (len(p.parts), p.name != SHARED, p not in new, p)):
        files = dict(sorted(groups[place].items(), key=lambda item: item[0] == RECORD))
        if place in new:
            aside = unused_name(folder / place)
            aside.mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                write_whole(aside / name, data)
            aside.rename(folder / place)
        else:
            for name, data in files.items():
                write_whole(folder / place / name, data)
    for path in (folder / "saves").glob("*/*"):
        if str(path.relative_to(folder)) not in parcel.names and not path.parent.name.startswith("."):
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
