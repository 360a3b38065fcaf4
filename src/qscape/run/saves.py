"""Saves: trees of arrays and a JSON note, written atomically and read back without running code.

A save is a folder:

    saves/100000/save.json     format, version, trees with leaves and checksums, `meta`, its checksum
    saves/100000/acting.npz    one uncompressed file per tree; `numpy.load` opens it as well
    saves/100000/replay.orbax/ the replay, of which each process wrote its rows (`qscape.run.shards`)
    saves/shared/1f0c….npy     a large array of an environment, once for all saves; its name is its SHA-256

`save.json` alone decides what a save is: it is written after every file that it names, and a file that it
does not name belongs to no save. So a process killed at any moment leaves every earlier save readable, also
the one that it was replacing. One process at a time may write to a folder of saves; any number may read.

The checksum of a leaf is the CRC-32 of its zip member. It is computed while the member is written, in one
pass, and is the fastest checksum of the standard library (2.4 GB/s on one core; BLAKE2b 0.7, SHA-256 1.4).
"""

import collections
import contextlib
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any, NotRequired, TypeAlias, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import PyTree
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from qscape.errors import CannotRead, CannotWrite, DamagedSave, ForeignSave, RunError
from qscape.run import shards
from qscape.run.files import delete, refuse_link, remove_leftovers, sync, unused_name, write_whole
from qscape.sealed import read_json, seal, unseal

FORMAT = "qscape-save"
VERSION = 2  # the one format that is read and written; 1 had other names of leaves
PIECE = 2**22  # bytes of a large leaf that are in memory at once
RECORD = "save.json"
SHARED = "shared"  # the folder of arrays that several saves have
LARGE = 2**16  # bytes from which an array is shared
_Json: TypeAlias = dict[str, Any]


class _Leaf(TypedDict):
    """A leaf in `save.json`.

    Attributes:
        name, shape, dtype, crc32: what the array is, and the checksum of its member; 0 if it has none.
        impl: of a key.
        content: the name of its file in the folder `SHARED`, if it is there.
        rings: checksums of its rings, if it is in the shards of the tree.
        length: rows of each ring there.
    """

    name: str
    shape: list[int]
    dtype: str
    crc32: int
    impl: NotRequired[str]
    content: NotRequired[str]
    rings: NotRequired[list[int]]
    length: NotRequired[int]


class _Tree(TypedDict):
    """A tree in `save.json`: name and size of its file, its leaves, and the folder of those in shards."""

    file: str
    bytes: int
    shards: NotRequired[str]
    leaves: list[_Leaf]


class _Record(TypedDict):
    """The content of `save.json`."""

    format: str
    version: int
    trees: dict[str, _Tree]
    meta: _Json


class OtherFormatError(RunError):
    """A save that another version of qscape wrote in another format."""


@dataclasses.dataclass(frozen=True, eq=False)
class Large:
    """A leaf that is too large to be copied in memory, so it is written and read in pieces: the replay.

    Attributes:
        shape: shape of the whole array; at least two axes.
        dtype: numeric dtype of numpy.
        pieces: yields the array from its beginning, in C order, as blocks of rows `[n, shape[-1]]`; a block
            does not reach across two indices of the leading axes.
        split: returns rings `[E * C, W]` that are split over devices, of which the array is the first rows
            `[E, n, W]`: then each process writes its own in shards. None: one process writes the array.
        read_split: of an array that was read from shards, returns these rings, split as it is asked to; given
            C, too, the rings of another length are refused.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Callable[[], Iterator[np.ndarray]]
    split: Callable[[], jax.Array] | None = None
    read_split: Callable[..., jax.Array] | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the whole array, which needs its full size in memory."""
        nothing = np.zeros((0, self.shape[-1]), dtype or self.dtype)
        return np.concatenate([nothing, *self.pieces()], dtype=nothing.dtype).reshape(self.shape)


def write(
    folder: Path,
    name: str,
    trees: Mapping[str, PyTree],
    meta: Mapping[str, Any],
    shared: Collection[str] = (),
) -> Path:
    """Write the save `folder/name`; an older save of that name stays readable until the new one is whole.

    Arrays are streamed to the disk: host arrays, and jax arrays on the CPU, are not copied, except those in
    shards. Of several processes one calls this, and all others `join_in` with the same trees.

    Args:
        folder: the folder of a run's saves; created if it does not exist.
        name: name of the save: the number of steps, since `names` and `prune` take whole numbers only.
        trees: pytrees by name; every leaf is a numeric array, a typed PRNG key or `Large`.
        meta: JSON data. `meta["qscape"]` is the library's version, which an older library shows in its error.
        shared: names of trees whose large arrays are written once for all saves that have them: constants.

    Returns:
        The folder of the save.

    Raises:
        RunError: the disk is full, the folder cannot be written or is a link, or a folder of this name is no
            save.
        TypeError, ValueError: a leaf is no numeric array, or two leaves of a tree share one name.
    """
    target = folder / name
    temporary = unused_name(target)
    for path in (folder, target, target / RECORD):
        refuse_link(path)
    try:
        with _disk_errors(f"Writing the save {name} in {folder}"):
            if target.exists() and not (target / RECORD).exists():
                raise DamagedSave(f"{target} has no {RECORD}, so it is no complete save; move it elsewhere.")
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            temporary.mkdir()
            record = {"format": FORMAT, "version": VERSION, "trees": {}, "meta": json.loads(json.dumps(meta))}
            for tree_name, tree in trees.items():
                file = temporary / _unused(tree_name, target, temporary)
                leaves = _write_tree(file, tree, folder / SHARED if tree_name in shared else None)
                about = record["trees"][tree_name] = {"file": file.name, "bytes": file.stat().st_size}
                if file.with_suffix(shards.ENDING).exists():
                    about["shards"] = file.with_suffix(shards.ENDING).name
                about["leaves"] = leaves
            write_whole(temporary / RECORD, seal(record))
            sync(temporary)
            if target.exists():
                _replace(target, temporary, record)
            else:
                temporary.rename(target)
            sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def join_in(folder: Path, name: str, trees: Mapping[str, PyTree]) -> None:
    """Do what this process has to do while another one calls `write` with these. Raises RunError like it."""
    with _disk_errors(f"Writing the save {name} in {folder}"):
        for tree in trees.values():
            leaves = _flatten(tree)[0]
            for leaf in leaves.values():
                if isinstance(leaf, Large) and leaf.split is None:
                    collections.deque(leaf.pieces(), maxlen=0)  # they come from all processes
            _write_shards(None, leaves)


def read(path: Path, templates: Mapping[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """Read the trees named in `templates`, and only those, into the structures of `templates`.

    A leaf is returned as a numpy array if its template is one, else as a jax array on the default device
    (64-bit leaves stay numpy arrays where jax would narrow them). If its template is `Large`, the leaf is
    `Large` too: it is read, and its checksum compared, when its `pieces` are consumed. Its file stays open,
    so that the pieces can be read even if the save was deleted meanwhile; shards have to be there then.

    Args:
        path: folder of one save.
        templates: pytrees of arrays, of `jax.ShapeDtypeStruct` or of `Large`, by tree name.

    Returns:
        The trees by name, and `meta`.

    Raises:
        RunError: `path` is no save, is damaged or from a newer qscape, lacks a tree, or a tree differs from
            its template in a name, a shape or a dtype.
    """
    record = _read_record(path)
    trees: dict[str, PyTree] = {}
    for tree_name, template in templates.items():
        leaves, structure = _flatten(template)
        tree = _tree_record(path, record, tree_name)
        saved = {leaf["name"]: leaf for leaf in tree["leaves"]}
        if difference := _first_difference(saved, leaves):
            raise ForeignSave(f"{path}, {tree_name}: {difference}; use the settings it was saved with.")
        with _archive(path, tree) as archive:
            restored = {
                name: _restore(path, archive, leaf, leaves[name])
                if not isinstance(leaves[name], Large)
                else _sharded(path, tree, leaf)
                if "rings" in leaf
                else _large(_archive(path, tree), leaf)
                for name, leaf in saved.items()
            }
        trees[tree_name] = jax.tree_util.tree_unflatten(structure, [restored[leaf] for leaf in leaves])
    return trees, record["meta"]


def read_meta(path: Path) -> dict[str, Any]:
    """Read the `meta` of a save, from its JSON alone. Raises RunError like `read`."""
    return _read_record(path)["meta"]


def read_arrays(path: Path, tree_name: str) -> dict[str, np.ndarray]:
    """Read one tree as numpy arrays by leaf name, such as "critics/0/layers/1/weight"; keys as their data.

    Raises RunError like `read`.
    """
    tree = _tree_record(path, _read_record(path), tree_name)
    with _archive(path, tree) as archive:
        return {
            leaf["name"]: np.asarray(_sharded(path, tree, leaf))
            if "rings" in leaf
            else _read_leaf(path, archive, leaf)
            for leaf in tree["leaves"]
        }


def check(path: Path, skip: Collection[str] = ()) -> None:
    """Read the trees of a save once, in pieces, and compare all checksums. Raises RunError like `read`.

    Of shards each process reads its share, and all call this together.

    `skip`: names of trees that are not read.
    """
    trees = _read_record(path)["trees"]
    for tree in (trees[name] for name in trees if name not in skip):
        with _archive(path, tree) as archive:
            for leaf in tree["leaves"]:
                if "content" in leaf:
                    _read_shared(path, leaf)
                    continue
                if "rings" in leaf:
                    if share := shards.share_of_each(len(leaf["rings"])):
                        _read_rings(path, tree, leaf, share)
                    continue
                with _member(archive, leaf) as member:
                    while member.read(PIECE):
                        pass


def arrays(tree: PyTree) -> dict[str, Any]:
    """Return a tree in memory in the form in which `read_arrays` would return it from a save."""
    return {name: _stored(name, leaf)[1] for name, leaf in _flatten(tree)[0].items()}


def tree_names(path: Path) -> list[str]:
    """Return the names of a save's trees. Raises RunError like `read`."""
    return list(_read_record(path)["trees"])


def names(folder: Path) -> list[str]:
    """Return the names of the complete saves in `folder` that are whole numbers, smallest (oldest) first."""
    return [name for name in folder_names(folder) if (folder / name / RECORD).exists()]


def folder_names(folder: Path) -> list[str]:
    """Return the names in `folder` that are whole numbers, smallest first: saves and remains."""
    found = (path.name for path in folder.glob("*") if path.is_dir())
    return sorted((name for name in found if name.isascii() and name.isdecimal()), key=int)


def prune(folder: Path, keep: int, protect: Callable[[str], bool] = lambda name: False) -> None:
    """Delete old saves of a folder.

    Args:
        folder: the folder of a run's saves.
        keep: number of newest saves to keep.
        protect: takes the name of a save; True: it is kept as well.

    Raises:
        RunError: the folder cannot be written.
    """
    with _disk_errors(f"Removing old saves from {folder}"):
        remove_leftovers(folder)
        for name in names(folder)[: -keep or None]:
            if not protect(name):
                # Renamed first, in one step: a half-deleted folder must not look like a save.
                delete((folder / name).rename(unused_name(folder / name)))
        _prune_shared(folder)


def _prune_shared(folder: Path) -> None:
    """Delete shared arrays that no save of a folder, and none beside it, has.

    Nothing is deleted if one of these saves cannot be read.
    """
    if not (files := {path.stem: path for path in (folder / SHARED).glob("*.npy")}):
        return
    refuse_link(folder / SHARED)
    for record in folder.parent.rglob(f"*/{RECORD}"):
        try:
            trees = _read_record(record.parent)["trees"].values()
        except RunError:
            return
        for leaf in (leaf for tree in trees for leaf in tree["leaves"]):
            files.pop(leaf.get("content", ""), None)
    for file in files.values():
        file.unlink()


def shared_files(path: Path) -> list[Path]:
    """Return the files of the shared arrays that the save at `path` has. Raises RunError like `read`."""
    leaves = (leaf for tree in _read_record(path)["trees"].values() for leaf in tree["leaves"])
    return sorted({_find_shared(path, leaf) for leaf in leaves if "content" in leaf})


def drop(path: Path, tree_name: str) -> None:
    """Delete one tree of the save at `path`; do nothing if the save has no tree of that name.

    Raises RunError if `path` is no readable save or cannot be written.
    """
    record = _read_record(path)
    refuse_link(path)
    with _disk_errors(f"Removing {tree_name} from the save {path}"):
        if record["trees"].pop(tree_name, None):
            write_whole(path / RECORD, seal(record))
            sync(path)
        _remove_unnamed(path, record)


def _flatten(tree: PyTree) -> tuple[dict[str, Any], Any]:
    """Return the leaves of a tree by name, and its structure.

    Raises ValueError if two leaves share one name, TypeError if a leaf is no array.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
    if len(leaves) < len(paths):
        raise ValueError("Two leaves of a tree share one name: a key that holds '/' looks like a branch.")
    for name, leaf in leaves.items():
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"Leaf {name} is a {type(leaf).__name__}, not an array; put it into meta.")
    return leaves, structure


def _stored(name: str, leaf: Any) -> tuple[_Json, np.ndarray | Large]:
    """Return the entry of a leaf in `save.json`, and the array that is written to the file."""
    record: _Json = {"name": name, "shape": list(leaf.shape), "dtype": leaf.dtype.name}
    if isinstance(leaf, Large):
        return record, leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return record | {"impl": str(jax.random.key_impl(leaf))}, np.asarray(jax.random.key_data(leaf))
    array = np.asarray(leaf)
    if array.dtype.isbuiltin == 2:  # bfloat16 and the like: .npy does not know them, so their bits are saved
        return record, array.view(f"u{array.dtype.itemsize}")
    if array.dtype.kind in "biufc":
        return record, array.astype(array.dtype.newbyteorder("="), copy=False)
    raise TypeError(f"Leaf {name} has dtype {array.dtype}, which is not numeric; put it into meta.")


def _restore(path: Path, archive: zipfile.ZipFile, leaf: _Json, like: Any) -> Any:
    """Read a leaf as a key, a numpy array or a jax array, as its template `like` is one."""
    array = _read_leaf(path, archive, leaf)
    if "impl" in leaf:
        return _key(array, leaf)
    if isinstance(like, np.ndarray | np.generic):
        return array
    moved = jax.device_put(array)
    return moved if moved.dtype == array.dtype else array


def _first_difference(saved: Mapping[str, _Json], wanted: Mapping[str, Any]) -> str | None:
    """Describe the first leaf that differs between a save and a template; None if no leaf differs."""

    def show(shape: Any, dtype: str) -> str:
        return f"{dtype}[{','.join(map(str, shape))}]"

    for name, template in wanted.items():
        if name not in saved:
            return f"leaf {name} is not in the save"
        there, here = (
            show(saved[name]["shape"], saved[name]["dtype"]),
            show(template.shape, template.dtype.name),
        )
        keys = there.startswith("key<") and here.startswith(
            "key<"
        )  # they stay of the generator that made them
        if there != here and not (keys and saved[name]["shape"] == list(template.shape)):
            return f"leaf {name} is {there} in the save but {here} here"
    return next((f"leaf {name} is only in the save" for name in saved if name not in wanted), None)


def _write_tree(file: Path, tree: PyTree, shared: Path | None = None) -> list[_Json]:
    """Write the leaves of a tree to a file, and return their entries in `save.json`.

    `shared`: the folder of large arrays that other saves may have, too; None: all are in the file.
    """
    records = []
    with zipfile.ZipFile(file, "x") as archive:
        for name, leaf in _flatten(tree)[0].items():
            record, array = _stored(name, leaf)
            if shared is not None and isinstance(array, np.ndarray) and array.nbytes >= LARGE:
                records.append(record | {"crc32": 0, "content": _share(shared, array)})
                continue
            if isinstance(array, Large) and array.split is not None:
                length = len(array.split()) // array.shape[0]
                records.append(record | {"crc32": 0, "rings": [], "length": length})
                continue
            info = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(info, "w", force_zip64=True) as member:
                if isinstance(array, Large):
                    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
                    np.lib.format.write_array_header_1_0(member, header)
                    for piece in array.pieces():
                        member.write(np.ascontiguousarray(piece).data)
                else:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            records.append(record | {"crc32": info.CRC})
    sync(file)
    sums = _write_shards(file.with_suffix(shards.ENDING), _flatten(tree)[0])
    return [record | {"rings": sums[record["name"]]} if "rings" in record else record for record in records]


def _write_shards(folder: Path | None, leaves: Mapping[str, Any]) -> dict[str, list[int]]:
    """Write the split ones among the leaves of a tree to a folder; return the checksums of their rings."""
    split, rings = {}, {}
    for name, leaf in leaves.items():
        if isinstance(leaf, Large) and leaf.split is not None:
            split[name], rings[name] = leaf.split(), leaf.shape[0]
    return shards.write(folder, split, rings) if split else {}


def _share(folder: Path, array: np.ndarray) -> str:
    """Write an array into a folder, unless it is there; return the name of its file, a checksum of it.

    Runs beside this one (other seeds) may have it; then the file is linked.
    """
    written = io.BytesIO()
    np.lib.format.write_array(written, array, allow_pickle=False)
    name = hashlib.sha256(written.getbuffer()).hexdigest()
    file = folder / f"{name}.npy"
    refuse_link(folder)
    own = file.stat() if file.exists() else None
    if own is not None and own.st_size == written.getbuffer().nbytes and own.st_nlink > 1:
        return name
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.parent.parent.glob(f"*/{folder.parent.name}/{SHARED}/{name}.npy"):
        aside = unused_name(file)
        with contextlib.suppress(OSError):  # e.g. that run has just deleted it
            if other == file or other.is_symlink() or (own is not None and other.stat().st_ino >= own.st_ino):
                continue  # of two that were written at once both runs keep the one with the lower number
            if hashlib.sha256(other.read_bytes()).hexdigest() == name:
                os.link(other, aside)
                aside.replace(file)
                return name
    if own is None or own.st_size != written.getbuffer().nbytes:
        write_whole(file, written.getvalue())
        sync(folder)
    return name


def _find_shared(path: Path, leaf: _Json) -> Path:
    """Return the file of a shared leaf of the save at `path`: beside it, or of the run that it is of."""
    name = f"{leaf['content']}.npy"
    places = [path.parent / SHARED / name, *(up / "saves" / SHARED / name for up in path.parents[1:4])]
    return next((place for place in places if place.exists()), places[0])


def _read_shared(path: Path, leaf: _Json) -> np.ndarray:
    """Read a shared leaf of the save at `path`."""
    file = _find_shared(path, leaf)
    try:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != leaf["content"]:
            raise ValueError("another checksum than its name")
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except OSError as error:
        raise CannotRead(f"{file} cannot be read ({error.strerror}); use another save.") from error
    except ValueError as error:
        raise DamagedSave(f"{file} is damaged ({error}); use another save.") from error


def _tree_record(path: Path, record: _Json, tree_name: str) -> _Json:
    if tree_name not in record["trees"]:
        raise DamagedSave(f"{path} has no tree {tree_name}, only {', '.join(record['trees']) or 'its meta'}.")
    return record["trees"][tree_name]


def _archive(path: Path, tree: _Json) -> zipfile.ZipFile:
    """Open the file of a tree's leaves; it is closed when the last reference to it is gone."""
    file = path / tree["file"]
    try:
        if (size := file.stat().st_size) != tree["bytes"]:
            raise DamagedSave(f"{file} is truncated: {size} of {tree['bytes']} bytes; use another save.")
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("a member is compressed, which qscape never does")
        if sum(member.file_size for member in members) > tree["bytes"]:
            raise ValueError("its members are larger than the file")
        return archive
    except OSError as error:
        raise CannotRead(f"{file} cannot be read ({error.strerror}); use another save.") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DamagedSave(f"{file} is damaged ({error}); use another save.") from error


def _read_leaf(path: Path, archive: zipfile.ZipFile, leaf: _Json) -> np.ndarray:
    """Read a leaf of an open file of the save at `path`; of keys their data."""
    if "content" in leaf:
        return _read_shared(path, leaf).view(leaf["dtype"])
    with _member(archive, leaf) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if "impl" not in leaf:
            array = array.view(leaf["dtype"])
        shape = (_key(array, leaf) if "impl" in leaf else array).shape
        if list(shape) != leaf["shape"]:
            raise ValueError("another shape than in save.json")
        return array


def _key(data: np.ndarray, leaf: _Json) -> jax.Array:
    return jax.random.wrap_key_data(jnp.asarray(data), impl=leaf["impl"])


def _large(archive: zipfile.ZipFile, leaf: _Json) -> Large:
    """Return a leaf of an open file as `Large`, without reading it."""
    shape, dtype = tuple(leaf["shape"]), np.dtype(leaf["dtype"])
    *before, rows, width = shape
    stride = width * dtype.itemsize
    most = max(1, PIECE // stride)

    def pieces() -> Iterator[np.ndarray]:
        with _member(archive, leaf) as member:
            np.lib.format.read_magic(member)
            if np.lib.format.read_array_header_1_0(member) != (shape, False, dtype):
                raise ValueError("another shape or dtype than in save.json")
            for _ in range(prod(before)):
                for start in range(0, rows, most):
                    n = min(most, rows - start)
                    yield np.frombuffer(member.read(n * stride), dtype).reshape(n, width)

    return Large(shape, dtype, pieces)


def _sharded(path: Path, tree: _Json, leaf: _Json) -> Large:
    """Return a leaf that is in shards, without reading it."""
    envs, used, width = leaf["shape"]
    read_split = partial(_read_rings, path, tree, leaf)

    def pieces() -> Iterator[np.ndarray]:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        yield from np.asarray(read_split(here)).reshape(envs, -1, width)[:, :used]

    return Large((envs, used, width), np.dtype(leaf["dtype"]), pieces, read_split=read_split)


def _read_rings(
    path: Path, tree: _Json, leaf: _Json, sharding: Sharding, length: int | None = None
) -> jax.Array:
    """Read the rings of a leaf that is in shards, split as `sharding` says. `length`: that they must have."""
    envs, _, width = leaf["shape"]
    if length not in (None, leaf["length"]):
        raise ForeignSave(
            f"{path}: its replay has rings of {leaf['length']:,} rows and here they have {length:,}; use the "
            "settings it was saved with."
        )
    shape = envs * leaf["length"], width
    like = jax.ShapeDtypeStruct(shape, np.dtype(leaf["dtype"]), sharding=sharding)
    return shards.read(path / tree["shards"], leaf["name"], leaf["rings"], like)


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, leaf: _Json) -> Iterator[IO[bytes]]:
    """Open the file of one leaf; its checksum is compared when it was read to its end.

    The size that its header promises is compared before: a reader takes that much memory.
    """
    try:
        info = archive.getinfo(f"{leaf['name']}.npy")
        if leaf["crc32"] != info.CRC:
            raise ValueError("another checksum than in save.json")
        with archive.open(info) as member:
            if _promised_bytes(member) != info.file_size:
                raise ValueError("its header promises another size")
        with archive.open(info) as member:  # compares what it reads with info.CRC at the member's end
            yield member
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive can make zipfile and numpy raise nearly anything
        raise DamagedSave(
            f"Leaf {leaf['name']} in {archive.filename} does not match its checksum ({error}); use another "
            "save."
        ) from error


def _promised_bytes(member: IO[bytes]) -> int:
    """Return the size of an array's file that its header promises; reads the header alone."""
    reads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = reads[np.lib.format.read_magic(member)](member)
    return member.tell() + prod(shape) * dtype.itemsize


def _read_record(path: Path) -> _Json:
    """Read the `save.json` of a save; raises RunError if it is missing, damaged or of another format."""
    file = path / RECORD
    try:
        record = read_json(data := file.read_bytes(), Any)
    except OSError as error:
        raise _foreign(path, f"{RECORD}: {error.strerror}") from error
    except ValueError as error:
        raise DamagedSave(f"{file} is truncated or damaged ({error}); use another save.") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise _foreign(path, f"its {RECORD} is of another format")
    version = record.get("version")
    if isinstance(version, int) and version != VERSION:
        meta, newer = record.get("meta"), version > VERSION
        unknown = f"({'a newer' if newer else 'an older'} version)"
        writer = meta.get("qscape", unknown) if isinstance(meta, dict) else unknown
        remedy = "upgrade qscape" if newer else "qscape 0.2.0 reads it, and resumes the run in format 2"
        raise OtherFormatError(
            f"{path} was written by qscape {writer} in save format {version}, and this qscape reads format "
            f"{VERSION} alone; {remedy}."
        )
    try:
        record = unseal(data, required=True)
        check_type(record, _Record, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        _refuse_paths(record)
        return record
    except (ValueError, KeyError, TypeError, TypeCheckError) as error:
        raise DamagedSave(f"{file} is damaged ({error}); use another save.") from error


def _refuse_paths(record: _Json) -> None:
    """Raise a ValueError if the file of a tree is not a plain name inside the save."""
    for name, tree in record["trees"].items():
        if not tree["file"].endswith(".npz") or any(sign in tree["file"] for sign in "/\\:"):
            raise ValueError(f"{name} names {tree['file']!r}, a file in another folder")
        folder = tree.get("shards", shards.ENDING)
        if not folder.endswith(shards.ENDING) or any(sign in folder for sign in "/\\:"):
            raise ValueError(f"{name} names {folder!r}, a folder elsewhere")
        for leaf in tree["leaves"]:
            if "rings" in leaf:
                envs, used, _ = leaf["shape"]
                if not ("shards" in tree and len(leaf["rings"]) == envs > 0 and used <= leaf["length"]):
                    raise ValueError(f"{leaf['name']} is not in shards as they are written")
            if not set(leaf.get("content", "")) <= set("0123456789abcdef"):
                raise ValueError(f"{leaf['name']} names {leaf['content']!r}, which is no checksum")


def _foreign(path: Path, reason: str) -> RunError:
    """Return the error for a folder that is no save."""
    return ForeignSave(f"{path} is not a qscape save ({reason}); name a folder like saves/100000.")


def _replace(target: Path, temporary: Path, record: _Json) -> None:
    """Replace the save `target` by the one in `temporary`, whose `save.json` holds `record`."""
    # A rename replaces a file atomically, but not a folder that has content. So the new trees move beside
    # the old ones under unused names, and then the new save.json replaces the old one.
    for name in _named(record):
        (temporary / name).rename(target / name)
    sync(target)
    (temporary / RECORD).replace(target / RECORD)
    sync(target)
    _remove_unnamed(target, record)


def _unused(stem: str, *folders: Path) -> str:
    """Return a file name `stem.npz`, `stem-2.npz`, ... that exists in none of the folders, nor its shards."""
    candidates = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
    taken = {path.stem for folder in folders for path in folder.glob("*")}
    return next(f"{name}.npz" for name in candidates if name not in taken)


def _remove_unnamed(path: Path, record: _Json) -> None:
    """Delete the trees in a save's folder that `record` does not name, and leftovers."""
    remove_leftovers(path)
    named = _named(record)
    for file in (*path.glob("*.npz"), *path.glob(f"*{shards.ENDING}")):
        if file.name not in named:
            delete(file)


def _named(record: _Json) -> set[str]:
    """Return the names of the files, and of the folders of shards, that belong to a save."""
    trees = record["trees"].values()
    return {tree["file"] for tree in trees} | {tree["shards"] for tree in trees if "shards" in tree}


@contextlib.contextmanager
def _disk_errors(action: str) -> Iterator[None]:
    """Turn an OSError of the `with` block into a RunError that begins with `action`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free space on that disk" if full else "make that folder writable"
        raise CannotWrite(
            f"{action} failed ({error.strerror}); {remedy} or choose another, earlier saves are untouched."
        ) from error
