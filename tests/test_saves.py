"""Saves come back exactly, survive kill -9 and a full disk, notice damage, and never run code."""

import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qscape.errors import RunError
from qscape.run import saves

DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "int4", "uint4"]
DTYPES += ["float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"]


def same(a, b) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def small(folder: Path, name: str = "10") -> Path:
    tree = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "n": np.int32(7)}
    return saves.write(folder, name, {"state": tree, "replay": {"rows": np.ones((5, 2))}}, {"qscape": "0.1"})


def reseal(path: Path, **changes) -> None:
    """Edits save.json like a careful adversary: with a fitting checksum."""
    record = json.loads((path / "save.json").read_text()) | changes
    del record["crc32"]
    record["crc32"] = crc32(json.dumps(record).encode())
    (path / "save.json").write_text(json.dumps(record))


# --- round trips ------------------------------------------------------------------------------------------


@st.composite
def arrays(draw) -> np.ndarray:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    values = np.random.default_rng(draw(st.integers(0, 2**32))).normal(size=shape) * 2
    if dtype.kind in "fc" and values.size > 2:
        values.flat[:3] = np.nan, np.inf, -0.0
    array = np.abs(values).astype(dtype) if dtype.name.startswith("u") else values.astype(dtype)
    return draw(st.sampled_from([array, array.T, array[..., ::2] if shape else array]))


trees = st.recursive(
    arrays(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abcß._", max_size=3), inner, max_size=3)
        | st.tuples(inner, st.none())
    ),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(trees, trees)
def test_every_dtype_and_shape_comes_back_exactly(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("saves")
    meta = {"step": 3, "best": -float("inf"), "big": 2**200, "list": [1.5, None, "ß"]}
    path = saves.write(folder, "3", {"first": first, "second": second}, meta)
    loaded, note = saves.read(path, {"first": first, "second": second})
    assert note == meta == saves.read_meta(path)
    for tree, name in (first, "first"), (second, "second"):
        assert jax.tree.structure(tree) == jax.tree.structure(loaded[name])
        assert all(jax.tree.leaves(jax.tree.map(same, tree, loaded[name])))
    flat = saves.read_arrays(path, "first")
    assert all(same(a, b) for a, b in zip(jax.tree.leaves(first), flat.values(), strict=True))
    shutil.rmtree(folder)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_modules_and_keys_come_back_as_jax_arrays_from_shapes_alone(tmp_path, impl):
    def init(key):
        nets = eqx.nn.Linear(3, 2, key=key, dtype=jnp.bfloat16)
        return {"nets": [nets, None], "keys": jax.random.split(key, 4), "key": key}

    state = init(jax.random.key(5, impl=impl))
    path = saves.write(tmp_path, "1", {"state": state}, {})
    loaded = saves.read(path, {"state": jax.eval_shape(init, jax.random.key(0, impl=impl))})[0]["state"]
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
        assert isinstance(a, jax.Array)
        assert a.dtype == b.dtype
        key = jnp.issubdtype(b.dtype, jax.dtypes.prng_key)
        assert same(jax.random.key_data(a), jax.random.key_data(b)) if key else same(a, b)
    assert list(saves.read_arrays(path, "state")) == ["key", "keys", "nets/0/weight", "nets/0/bias"]


def test_numpy_opens_the_files_and_byte_order_is_normalised(tmp_path):
    path = saves.write(tmp_path, "1", {"t": {"a": [np.arange(3, dtype=">i4")]}}, {})
    with np.load(path / "t.npz") as file:
        assert file["a/0"].tolist() == [0, 1, 2]
    assert saves.read(path, {"t": {"a": [np.zeros(3, np.int32)]}})[0]["t"]["a"][0].tolist() == [0, 1, 2]


def test_64_bit_leaves_are_never_narrowed(tmp_path):
    path = saves.write(tmp_path, "1", {"t": np.array([2**40 + 1])}, {})
    loaded = saves.read(path, {"t": jax.ShapeDtypeStruct((1,), np.int64)})[0]["t"]
    assert same(loaded, np.array([2**40 + 1]))


def test_only_the_trees_asked_for_are_read(tmp_path):
    path = small(tmp_path)
    (path / "replay.npz").write_bytes(b"")
    assert list(saves.read(path, {"state": {"w": np.zeros((3, 4), np.float32), "n": np.int32(0)}})[0]) == [
        "state"
    ]


def test_leaves_that_are_no_arrays_are_refused_and_leave_nothing_behind(tmp_path):
    for leaf in (
        3.0,
        "text",
        np.array(["text"]),
        np.array([print]),
        np.array(["2020"], "M8[s]"),
        np.zeros(2, "f4,i4"),
    ):
        with pytest.raises(TypeError, match="Leaf a/0"):
            saves.write(tmp_path, "1", {"t": {"a": [leaf]}}, {})
    with pytest.raises(ValueError, match="share one name"):
        saves.write(tmp_path, "1", {"t": {"a/b": np.ones(1), "a": {"b": np.ones(1)}}}, {})
    assert list(tmp_path.iterdir()) == []


# --- leaves that come in pieces ---------------------------------------------------------------------------


def large(whole: np.ndarray, rows: int = 3) -> saves.Large:
    """The same in pieces of at most some rows."""

    def pieces():
        for at in np.ndindex(whole.shape[:-2]):
            matrix = whole[at]
            yield from (matrix[start : start + rows] for start in range(0, len(matrix), rows))

    return saves.Large(whole.shape, whole.dtype, pieces)


@pytest.mark.parametrize("shape", [(7, 5), (1, 7, 5), (3, 8, 5), (2, 0, 5), (2, 3, 1, 4)])
def test_a_large_leaf_is_saved_as_an_array_and_comes_back_in_pieces(tmp_path, monkeypatch, shape):
    whole = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    array, pieces = {"a": whole, "b": np.arange(3)}, {"a": large(whole), "b": np.arange(3)}
    paths = [saves.write(tmp_path, name, {"t": t}, {}) for name, t in (("1", array), ("2", pieces))]
    leaves = [json.loads((path / "save.json").read_text())["trees"]["t"] for path in paths]
    assert leaves[0] == leaves[1]  # checksums among them
    assert same(saves.read_arrays(paths[1], "t")["a"], whole)

    monkeypatch.setattr(saves, "PIECE", 2 * shape[-1] * 4)
    like = {"a": saves.Large(shape, np.dtype(np.float32), lambda: iter(())), "b": np.arange(3)}
    for path in paths:
        loaded = saves.read(path, {"t": like})[0]["t"]
        assert same(loaded["b"], array["b"])
        for _ in range(2):  # as often as one likes
            got = list(loaded["a"].pieces())
            assert all(1 <= len(piece) <= 2 and piece.ndim == 2 for piece in got)
            assert same(np.concatenate([np.zeros((0, shape[-1]), "f4"), *got]), whole.reshape(-1, shape[-1]))
        assert same(loaded["a"], whole)
    with pytest.raises(RunError, match=r"leaf a is float32.* but float64"):
        saves.read(path, {"t": like | {"a": large(whole.astype(float))}})


def test_a_large_leaf_is_there_when_its_save_is_gone(tmp_path):
    whole = np.arange(20.0).reshape(4, 5)
    path = saves.write(tmp_path, "1", {"t": [whole]}, {})
    (leaf,) = saves.read(path, {"t": [large(whole)]})[0]["t"]
    shutil.rmtree(path)
    assert same(leaf, whole)


def test_a_damaged_large_leaf_says_so_when_it_is_read(tmp_path):
    whole = np.arange(20, dtype=np.float32).reshape(4, 5)
    path = saves.write(tmp_path, "1", {"t": {"a": whole}}, {})
    file = path / "t.npz"
    data = bytearray(file.read_bytes())
    data[data.index(np.float32(19).tobytes())] ^= 4
    file.write_bytes(data)
    leaf = saves.read(path, {"t": {"a": large(whole)}})[0]["t"]["a"]
    with pytest.raises(RunError, match=rf"Leaf a in {file} does not match its checksum"):
        list(leaf.pieces())


# --- folders ----------------------------------------------------------------------------------------------


def test_names_prune_drop_and_replace(tmp_path):
    assert saves.names(tmp_path / "nowhere") == []
    for name in "5", "100", "20", "best", "3":
        small(tmp_path, name)
    (tmp_path / "7").mkdir()  # no save.json: no save
    (tmp_path / ".30.tmp-1").mkdir()
    assert saves.names(tmp_path) == ["3", "5", "20", "100"]

    saves.prune(tmp_path, 2, lambda name: name == "3")
    assert saves.names(tmp_path) == ["3", "20", "100"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"3", "20", "100", "best", "7"}
    saves.prune(tmp_path, 9)
    assert saves.names(tmp_path) == ["3", "20", "100"]

    saves.drop(tmp_path / "20", "replay")
    saves.drop(tmp_path / "20", "replay")
    assert {file.name for file in (tmp_path / "20").iterdir()} == {"save.json", "state.npz"}
    assert saves.read_arrays(tmp_path / "20", "state")["n"] == 7

    for value in 1.0, 2.0, 3.0:
        path = saves.write(tmp_path, "20", {"state": np.full(2, value)}, {"value": value})
        assert saves.read(path, {"state": np.zeros(2)})[0]["state"].tolist() == [value, value]
        assert saves.read_meta(path) == {"value": value}
        assert len(list(path.iterdir())) == 2
    saves.prune(tmp_path, 0)
    assert saves.names(tmp_path) == []


def test_something_else_of_the_same_name_is_not_overwritten(tmp_path):
    (tmp_path / "10").mkdir()
    (tmp_path / "10" / "thesis.npz").write_text("precious")
    with pytest.raises(RunError, match=r"10 has no save\.json, so it is no complete save"):
        small(tmp_path)
    assert (tmp_path / "10" / "thesis.npz").read_text() == "precious"


# --- damage -----------------------------------------------------------------------------------------------


def test_no_bit_flip_goes_unnoticed(tmp_path):
    """Every third bit of a small save: either the flip is refused, or it touched no value."""
    want = {"w": np.arange(3, dtype=np.float32)}
    path = saves.write(tmp_path, "1", {"t": want}, {"step": 123})
    refused = {}
    for file in path / "t.npz", path / "save.json":
        data = file.read_bytes()
        for bit in range(0, len(data) * 8, 3):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            try:
                loaded, meta = saves.read(path, {"t": want})
            except RunError:
                refused[file.name] = refused.get(file.name, 0) + 1
            else:
                assert same(loaded["t"]["w"], want["w"])
                assert meta == {"step": 123}
        file.write_bytes(data)
    assert refused["save.json"] > 500
    assert refused["t.npz"] > 300
    assert same(saves.read_arrays(path, "t")["w"], want["w"])


def test_a_flipped_value_names_leaf_and_file(tmp_path):
    path = small(tmp_path)
    file = path / "state.npz"
    data = bytearray(file.read_bytes())
    data[data.index(np.float32(5).tobytes())] ^= 4
    file.write_bytes(data)
    with pytest.raises(RunError, match=rf"Leaf w in {file} does not match its checksum"):
        saves.read_arrays(path, "state")


def test_the_file_of_another_save_is_noticed(tmp_path):
    """Both files are whole and have one size, but the numbers are not those that save.json lists."""
    trees = [{"state": {"w": np.full(3, value)}} for value in (1.0, 2.0)]
    paths = [saves.write(tmp_path, name, tree, {}) for name, tree in zip("12", trees, strict=True)]
    shutil.copy(paths[1] / "state.npz", paths[0] / "state.npz")
    with pytest.raises(RunError, match="another checksum than in save"):
        saves.read_arrays(paths[0], "state")
    assert same(saves.read_arrays(paths[1], "state")["w"], trees[1]["state"]["w"])


def test_truncated_missing_and_foreign_files(tmp_path):
    path = small(tmp_path)
    data = (path / "state.npz").read_bytes()
    (path / "state.npz").write_bytes(data[:-1])
    with pytest.raises(RunError, match=r"state\.npz is truncated: \d+ of \d+ bytes"):
        saves.read_arrays(path, "state")
    (path / "state.npz").unlink()
    with pytest.raises(RunError, match=r"state\.npz cannot be read"):
        saves.read_arrays(path, "state")

    text = (path / "save.json").read_text()
    (path / "save.json").write_text(text[: len(text) // 2])
    with pytest.raises(RunError, match="truncated or damaged"):
        saves.read_meta(path)
    for foreign in "[]", '{"format": "other"}':
        (path / "save.json").write_text(foreign)
        with pytest.raises(RunError, match="not a qscape save"):
            saves.read_meta(path)
    for nothing in tmp_path, tmp_path / "{nowhere}":
        with pytest.raises(RunError, match="not a qscape save"):
            saves.read_meta(nothing)


def test_a_newer_version_says_who_wrote_it(tmp_path):
    path = small(tmp_path)
    reseal(path, version=saves.VERSION + 1, meta={"qscape": "9.9"})
    with pytest.raises(RunError, match=r"qscape 9\.9 in save format 3.*upgrade"):
        saves.read(path, {})
    reseal(path, meta={})
    with pytest.raises(RunError, match="upgrade"):
        saves.read_meta(path)


def test_an_older_format_says_who_wrote_it_and_what_reads_it(tmp_path):
    path = small(tmp_path)
    reseal(path, version=1, meta={"qscape": "0.1.0"})
    with pytest.raises(
        saves.OtherFormatError, match=r"qscape 0\.1\.0 in save format 1, .*qscape 0\.2\.0 reads"
    ):
        saves.read(path, {})


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": np.zeros((3, 4), np.float32)}, "leaf n is only in the save"),
        ({"w": np.zeros((3, 4), np.float32), "n": np.int32(0), "z": np.int8(0)}, "leaf z is not in the save"),
        (
            {"w": np.zeros((3, 5), np.float32), "n": np.int32(0)},
            r"leaf w is float32\[3,4\].* but float32\[3,5\]",
        ),
        (
            {"w": np.zeros((3, 4), np.float16), "n": np.int32(0)},
            r"leaf w is float32\[3,4\].* but float16\[3,4\]",
        ),
        (
            {"w": np.zeros((3, 4), np.float32), "n": jax.random.key(0)},
            r"leaf n is int32\[\].* but key<fry>\[\]",
        ),
    ],
)
def test_a_differing_structure_names_the_first_differing_leaf(tmp_path, like, message):
    with pytest.raises(RunError, match=message):
        saves.read(small(tmp_path), {"state": like})


def test_a_missing_tree_says_what_is_there(tmp_path):
    path = small(tmp_path)
    for read in (lambda: saves.read(path, {"critics": {}}), lambda: saves.read_arrays(path, "critics")):
        with pytest.raises(RunError, match="no tree critics, only state, replay"):
            read()


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["QSCAPE_TEST_TRAP"],)


@pytest.mark.parametrize("kind", ["array of objects", "pickle in place of the file", "dtype object"])
def test_loading_never_runs_code(tmp_path, monkeypatch, kind):
    trap = tmp_path / "sprung"
    monkeypatch.setenv("QSCAPE_TEST_TRAP", str(trap))
    path = saves.write(tmp_path, "1", {"t": np.zeros(8)}, {})
    file = path / "t.npz"
    trees = json.loads((path / "save.json").read_text())["trees"]
    if kind == "array of objects":
        np.savez(file, **{"": np.array([Trap()], object)})
        with zipfile.ZipFile(file) as archive:
            trees["t"]["leaves"][0]["crc32"] = archive.infolist()[0].CRC
    elif kind == "pickle in place of the file":
        file.write_bytes(pickle.dumps(Trap()))
    else:
        trees["t"]["leaves"][0]["dtype"] = "object"
    trees["t"]["bytes"] = file.stat().st_size
    reseal(path, trees=trees)
    for read in (lambda: saves.read_arrays(path, "t"), lambda: saves.read(path, {"t": np.zeros(8)})):
        with pytest.raises(RunError):
            read()
    assert not trap.exists()


# --- full disks and kills ---------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fails_and_leaves_the_earlier_saves(folder: Path, match: str) -> None:
    small(folder, "10")
    before = sorted(folder.rglob("*"))
    for name in "10", "20":  # replacing, and beside
        for rows in 1 << 16, 1 << 19:  # fails when flushing, fails when writing
            with pytest.raises(RunError, match=match):
                saves.write(folder, name, {"a": np.ones(9), "big": np.ones((rows, 4), np.float32)}, {})
    assert sorted(folder.rglob("*")) == before
    assert saves.read_arrays(folder / "10", "state")["n"] == 7
    small(folder, "30")


def test_a_full_disk_leaves_the_earlier_saves(tiny_disk):
    fails_and_leaves_the_earlier_saves(tiny_disk, f"in {tiny_disk} failed .*free space")


def test_a_file_size_limit_leaves_the_earlier_saves(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))  # only the soft one: it is given back
    try:
        fails_and_leaves_the_earlier_saves(tmp_path, f"in {tmp_path} failed .*free space")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_unwritable_folder_says_so(tmp_path):
    (tmp_path / "file").touch()
    for folder in tmp_path / "file", tmp_path / "file" / "below":
        with pytest.raises(RunError, match="make that folder writable"):
            small(folder)


# Imports once, then forks a writer per line of input: "FOLDER CRASH". CRASH is the number of the file
# operation of its second round at which the writer kills itself, or 0 for one that goes on until killed.
WRITERS = """
import itertools, os, signal, sys
from pathlib import Path
import numpy as np
from qscape.run import saves

def work(folder, crash):
    count = itertools.count(1)
    watched = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
    def hook(event, arguments):
        if event in watched and next(count) == crash:
            os.kill(os.getpid(), signal.SIGKILL)
    for n in (1, 2) if crash else itertools.count(1):
        if n == 2:
            sys.addaudithook(hook)
        tree = {"a": np.full(50_000, n), "b": [np.full(3, n)]}
        for name in "7", str(100 + n):
            saves.write(folder, name, {"state": tree, "replay": tree}, {"n": n})
        saves.drop(folder / name, "replay")
        saves.prune(folder, 1, lambda name: name == "7")
        os.write(1, f"{n}\\n".encode())  # in one piece, or not at all

for line in sys.stdin:
    folder, crash = line.split()
    child = os.fork()
    if not child:
        print("pid", os.getpid(), flush=True)
        work(Path(folder), int(crash))
        os._exit(0)
    print("end", os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def writers() -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(WRITERS)]
    source = str(Path(saves.__file__).parents[2])
    with subprocess.Popen(
        command, stdin=-1, stdout=-1, text=True, bufsize=1, env=os.environ | {"PYTHONPATH": source}
    ) as process:
        yield process
        assert process.stdin
        process.stdin.close()


def start(writers, folder: Path, crash: int) -> int:
    writers.stdin.write(f"{folder} {crash}\n")
    return int(writers.stdout.readline().split()[1])


def finish(writers) -> tuple[int, bool]:
    """The last n the writer had finished, and whether it was killed."""
    finished = 0
    while (line := writers.stdout.readline().split())[0] != "end":
        finished = int(line[0])
    return finished, int(line[1]) == signal.SIGKILL


def check(folder: Path, finished: int) -> None:
    """Everything finished is there, everything there is whole, and the next write tidies up."""
    found = saves.names(folder)
    assert found[0] == "7"
    assert int(found[-1]) - 100 in (finished, finished + 1)
    for name in found:
        n = saves.read_meta(folder / name)["n"]
        assert n in (finished, finished + 1) if name == "7" else n == int(name) - 100
        trees = json.loads((folder / name / "save.json").read_text())["trees"]
        assert "state" in trees
        for tree in trees:
            flat = saves.read_arrays(folder / name, tree)
            assert same(flat["a"], np.full(50_000, n))
            assert same(flat["b/0"], np.full(3, n))
    saves.write(folder, "7", {"state": np.ones(1)}, {"n": 0})
    assert {path.name for path in folder.iterdir()} == {*found, "7"}
    assert len(list((folder / "7").iterdir())) == 2


@pytest.mark.slow
def test_killed_at_every_file_operation(tmp_path, writers):
    killed, crash = True, 0
    while killed:
        crash += 1
        folder = tmp_path / str(crash)
        start(writers, folder, crash)
        finished, killed = finish(writers)
        check(folder, finished)
        shutil.rmtree(folder)
    assert finished == 2
    assert crash > 30


def test_killed_at_random_moments(tmp_path, writers):
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        pid = start(writers, folder, 0)
        first = int(writers.stdout.readline())
        time.sleep(random.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        finished, killed = finish(writers)
        assert killed
        check(folder, max(first, finished))
        shutil.rmtree(folder)
