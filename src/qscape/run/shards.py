"""The replay of a save in shards: each process writes the rows that its devices hold, by Orbax.

Process 0 gathers and writes what all other saves hold. Here the rows of the replay stay where they are: a
folder in Orbax's format holds the shards of all processes, and any number of devices reads it. All processes
write to, and read from, a disk that they share.

Orbax (0.12.8) compares no checksum of what it reads, so a save has one for each ring of the replay: a device
holds whole rings, and can compare what it has read.
"""

import errno
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from qscape.errors import CannotRead, DamagedSave, need_extra
from qscape.run.files import sync
from qscape.run.processes import any_of, word_of_first

ENDING = ".orbax"  # of the folder of a tree's shards


def load_orbax() -> Any:
    """Return the package. Raises UsageError if it is not installed."""
    with need_extra("Saves in shards (--save-shards)", "shards", field="save_shards"):
        import orbax.checkpoint

        return orbax.checkpoint


def write(folder: Path | None, arrays: Mapping[str, Array], rings: Mapping[str, int]) -> dict[str, list[int]]:
    """Write arrays whose leading axis is split over devices; all processes call it together.

    Args:
        folder: the new folder, which process 0 names; None in the others.
        arrays: arrays [E * C, W] by name.
        rings: E of each.

    Returns:
        For each array the CRC-32 of each ring of C rows.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    orbax, place = load_orbax(), Path(word_of_first(str(folder or "")))
    try:
        with orbax.Checkpointer(orbax.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)) as writer:
            writer.save(place.absolute(), args=orbax.args.PyTreeSave({**arrays}))
    except ValueError as problem:  # what tensorstore makes of the system's errors
        found = re.search(r"os_error_code='(\d+)'", str(problem))
        code = int(found[1]) if found else errno.EIO
        raise OSError(code, os.strerror(code), str(place)) from problem
    if folder is not None:
        for file in folder.rglob("*"):
            sync(file)
    return {name: _sum_rings(array, rings[name]) for name, array in arrays.items()}


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


def read(folder: Path, name: str, sums: Sequence[int], like: jax.ShapeDtypeStruct) -> Array:
    """Read one array, and compare the checksums of the rings that this process gets.

    Args:
        folder: a folder that `write` wrote.
        name: name of the array.
        sums: what `write` returned of it.
        like: its shape [E * C, W] and dtype, and the sharding that it gets; all processes ask for the same.

    Raises:
        UsageError: Orbax is not installed. RunError: the folder cannot be read, or a ring is damaged.
    """
    orbax = load_orbax()
    item: dict[str, Any] = {name: like}
    how = {name: orbax.ArrayRestoreArgs(sharding=like.sharding, global_shape=like.shape, dtype=like.dtype)}
    try:
        with orbax.Checkpointer(orbax.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)) as reader:
            asked = orbax.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
            array = reader.restore(folder.absolute(), args=asked)[name]
    except MemoryError:
        raise
    except Exception as problem:  # whatever Orbax and tensorstore raise on a damaged folder
        why = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise CannotRead(f"{folder} cannot be read ({why}); use another save.") from problem
    wrong = [ring for ring, found in _own_sums(array, len(sums)) if found != sums[ring]]
    if any_of(bool(wrong)):
        which = f"ring {wrong[0]}" if wrong else "a ring that another process reads"
        raise DamagedSave(f"{folder}, {name}: {which} does not match its checksum; use another save.")
    return array


def share_of_each(rings: int) -> Sharding | None:
    """Return a sharding in which every process gets its share of rings; None if these cannot be divided."""
    processes = jax.process_count()
    if processes == 1:
        return SingleDeviceSharding(jax.local_devices()[0])
    if rings % processes:
        return None
    first = [next(d for d in jax.devices() if d.process_index == k) for k in range(processes)]
    return NamedSharding(Mesh(np.array(first), ("rings",)), P("rings"))
