"""The replay of a save in shards: each process writes the rows that its devices hold, by Orbax.

Process 0 gathers and writes what all other saves hold. Here the rows of the replay stay where they are: a
folder in Orbax's format holds the shards of all processes, and any number of devices reads it. All processes
write to, and read from, a disk that they share.

Orbax (0.12.8) compares no checksum of what it reads, so a save has one for each ring of the replay: a device
holds whole rings, and can compare what it has read.
"""

import errno
import gc
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from qscape.errors import CannotWrite, DamagedSave, need_extra
from qscape.run.files import sync
from qscape.run.processes import any_of, word_of_first

ENDING = ".orbax"  # of the folder of a tree's shards
PATIENCE = 20.0  # seconds until a folder that one process made is seen by all


def load_orbax() -> Any:
    """Return the package. Raises UsageError if it is not installed."""
    with need_extra("Saves in shards (--save-shards)", "shards", field="save_shards"):
        import orbax.checkpoint

        return orbax.checkpoint


def write(folder: Path | None, arrays: Mapping[str, Array], rings: Mapping[str, int]) -> dict[str, list[int]]:
    """Write arrays whose leading axis is split over devices; all processes call it together.

    Args:
        folder: the new folder, which process 0 names; None in the others. The one above it is there.
        arrays: arrays [E * C, W] by name.
        rings: E of each.

    Returns:
        For each array the CRC-32 of each ring of C rows.

    Raises:
        OSError: the disk is full, or the folder cannot be written. RunError: a process does not see it.
    """
    place = Path(word_of_first(str(folder.absolute()) if folder else ""))
    if any_of(not _appears(place.parent)):
        raise CannotWrite(
            f"{place.parent} is not there for all processes, and with --save-shards each writes into it; "
            "choose an --out on a disk that they share, or leave --save-shards out."
        )
    orbax = load_orbax()
    try:
        with orbax.Checkpointer(orbax.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)) as writer:
            writer.save(place, args=orbax.args.PyTreeSave({**arrays}))
    except ValueError as problem:  # what tensorstore makes of the system's errors
        found = re.search(r"os_error_code='(\d+)'", str(problem))
        why = os.strerror(int(found[1])) if found else _first_line(problem)
        raise OSError(int(found[1]) if found else errno.EIO, why, str(place)) from problem
    gc.collect()  # cycles in Orbax keep a copy of the arrays on the host
    if folder is not None:
        for path in (folder, *folder.rglob("*")):
            sync(path)
    return {name: _sum_rings(array, rings[name]) for name, array in arrays.items()}


def read(folder: Path, name: str, sums: Sequence[int], like: jax.ShapeDtypeStruct) -> Array:
    """Read one array, and compare the checksums of the rings that this process gets.

    Args:
        folder: a folder that `write` wrote.
        name: name of the array.
        sums: what `write` returned of it.
        like: its shape [E * C, W] and dtype, and the sharding that it gets; all processes ask for the same.

    Raises:
        UsageError: the extra is not installed. RunError: in one of the processes the folder cannot be read or
            a ring is damaged; then all raise it.
    """
    load_orbax()  # not to read by it: its processes wait for each other, also for one that has failed
    array, wrong = None, ""
    try:
        rows = _open(folder, name)
        if (rows.shape, rows.dtype.numpy_dtype) != (like.shape, like.dtype):
            raise ValueError(f"{name} has the shape {rows.shape}, not {like.shape}")
        pieces = lambda at: np.asarray(rows[at].read().result())  # noqa: E731
        array = jax.make_array_from_callback(like.shape, like.sharding, pieces)
    except (MemoryError, jax.errors.JaxRuntimeError):  # no fault of the folder
        raise
    except Exception as problem:  # whatever tensorstore makes of a damaged folder
        wrong = f"cannot be read ({_first_line(problem)})"
    else:
        found = (ring for ring, found in _own_sums(array, len(sums)) if found != sums[ring])
        if (ring := next(found, None)) is not None:
            wrong = f"{name}: ring {ring} does not match its checksum"
    if any_of(bool(wrong)):
        raise DamagedSave(f"{folder} {wrong or 'is damaged, as another process found'}; use another save.")
    assert array is not None
    return array


def _open(folder: Path, name: str) -> Any:
    """Open an array that Orbax wrote: Zarr in OCDBT."""
    import tensorstore

    base = {"driver": "file", "path": f"{folder.absolute()}{os.sep}"}
    place = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    return tensorstore.open({"driver": "zarr", "kvstore": place}, open=True, read=True).result()


def _appears(folder: Path) -> bool:
    """Return whether a folder that another process has made is there, as soon as a network shows it."""
    end = time.monotonic() + PATIENCE
    while not (there := folder.is_dir()) and time.monotonic() < end:
        time.sleep(PATIENCE / 100)
    return there


def _sum_rings(array: Array, rings: int) -> list[int]:
    """Return the checksum of each ring of an array, of which every process has some."""
    own = np.zeros(rings, np.uint32)
    for ring, found in _own_sums(array, rings):
        own[ring] = found
    if jax.process_count() > 1:
        own = np.asarray(multihost_utils.process_allgather(own)).max(0)
    return own.tolist()


def _own_sums(array: Array, rings: int) -> Iterator[tuple[int, int]]:
    """Yield the number and the checksum of each ring that a device of this process holds."""
    size = len(array) // rings
    for shard in array.addressable_shards:
        first = (shard.index[0].start or 0) // size
        rows = np.ascontiguousarray(shard.data)
        for k in range(len(rows) // size):
            yield first + k, zlib.crc32(rows[k * size : (k + 1) * size].data)


def share_of_each(rings: int) -> Sharding | None:
    """Return a sharding of rings over as many devices as can hold equal shares, as many in each process.

    None if the processes cannot: a run with so many rings is refused there.
    """
    of_each = [[d for d in jax.devices() if d.process_index == k] for k in range(jax.process_count())]
    for count in range(min(map(len, of_each)), 0, -1):
        if rings % (count * len(of_each)) == 0:
            chosen = [device for devices in of_each for device in devices[:count]]
            return NamedSharding(Mesh(np.array(chosen), ("rings",)), P("rings"))
    return None


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]
