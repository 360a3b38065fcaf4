"""Saves whose replay is in shards: rows that each process writes by itself, with a checksum for each ring."""

import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qscape import cli
from qscape.errors import DamagedSave, ForeignSave, MissingPackage, RunError
from qscape.run import saves, shards
from qscape.sealed import seal, unseal

pytest.importorskip("orbax.checkpoint")
RINGS, LENGTH, USED, WIDTH = 4, 50, 30, 3
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(params=[np.float32, np.uint32])
def rows(request):
    """The rows of all rings; beyond those in use, too."""
    drawn = np.random.default_rng(0).integers(0, 2**31, (RINGS * LENGTH, WIDTH))
    return (drawn / 2**31).astype(np.float32) if request.param is np.float32 else drawn.astype(np.uint32)


def replay(rows):
    """Return the tree of a replay whose rows are split."""
    used = rows.reshape(RINGS, LENGTH, WIDTH)[:, :USED]
    array = jnp.asarray(rows)
    storage = saves.Large(used.shape, rows.dtype, lambda: iter(used), lambda: array)
    return {"storage": storage, "size": USED * jnp.ones(3)}


def template(rows):
    return {"storage": saves.Large((RINGS, USED, WIDTH), rows.dtype, lambda: iter([])), "size": jnp.zeros(3)}


def write(folder, rows, name="100"):
    return saves.write(folder, name, {"replay": replay(rows), "state": {"x": np.arange(3.0)}}, {"a": 1})


def data_files(path):
    return [file for file in path.rglob("d/*") if file.is_file()]


def test_rows_come_back_whole_and_split(rows, tmp_path):
    path = write(tmp_path, rows)
    read, meta = saves.read(path, {"replay": template(rows)})
    storage = read["replay"]["storage"]
    assert meta == {"a": 1}
    np.testing.assert_array_equal(np.asarray(storage), rows.reshape(RINGS, LENGTH, WIDTH)[:, :USED])
    np.testing.assert_array_equal(storage.read_split(HERE, LENGTH), rows)
    assert storage.read_split(HERE).dtype == rows.dtype
    np.testing.assert_array_equal(read["replay"]["size"], USED)
    arrays = saves.read_arrays(path, "replay")
    np.testing.assert_array_equal(arrays["storage"], np.asarray(storage))
    saves.check(path)


def test_each_ring_has_its_checksum(rows, tmp_path):
    path = write(tmp_path, rows)
    leaves = unseal((path / saves.RECORD).read_bytes())["trees"]["replay"]["leaves"]
    (rings,) = (leaf["rings"] for leaf in leaves if "rings" in leaf)
    assert rings == [zlib.crc32(ring.tobytes()) for ring in np.split(rows, RINGS)]


def test_a_changed_bit_is_found(rows, tmp_path):
    """Orbax 0.12.8 itself gives such rows without a word."""
    path = write(tmp_path, rows)
    largest = max(data_files(path), key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    storage = saves.read(path, {"replay": template(rows)})[0]["replay"]["storage"]
    for attempt in (lambda: saves.check(path), storage.pieces().__next__, lambda: storage.read_split(HERE)):
        with pytest.raises(RunError):
            attempt()
    saves.check(path, skip=("replay",))


def test_exchanged_rings_are_found(rows, tmp_path):
    """Whole rings of another save are no bits that changed."""
    path, other = write(tmp_path, rows), write(tmp_path, np.roll(rows, LENGTH, 0), "200")
    (path / "replay.orbax").rename(tmp_path / "aside")
    (other / "replay.orbax").rename(path / "replay.orbax")
    with pytest.raises(DamagedSave):
        saves.check(path)


@pytest.mark.parametrize("missing", ["replay.orbax", "replay.orbax/manifest.ocdbt", "replay.orbax/d"])
def test_what_is_missing_is_said(missing, rows, tmp_path):
    path = write(tmp_path, rows)
    (path / missing).rename(tmp_path / "aside")
    with pytest.raises(DamagedSave) as refused:
        saves.check(path)
    assert "replay.orbax cannot be read" in str(refused.value)


def test_other_sizes_are_refused(rows, tmp_path):
    path, other = write(tmp_path, rows), template(rows)
    other["storage"] = saves.Large((RINGS, USED + 1, WIDTH), rows.dtype, lambda: iter([]))
    with pytest.raises(ForeignSave):
        saves.read(path, {"replay": other})
    with pytest.raises(ForeignSave):
        saves.read(path, {"replay": template(rows)})[0]["replay"]["storage"].read_split(HERE, LENGTH + 1)


def test_a_save_of_the_same_step_replaces_the_shards(rows, tmp_path):
    write(tmp_path, rows)
    path = write(tmp_path, rows[::-1].copy())
    saves.check(path)
    np.testing.assert_array_equal(
        saves.read_arrays(path, "replay")["storage"], rows[::-1].reshape(RINGS, LENGTH, WIDTH)[:, :USED]
    )
    assert len([*path.glob("*.orbax")]) == 1
    whole = {"storage": rows.reshape(RINGS, LENGTH, WIDTH)[:, :USED]}
    saves.write(tmp_path, "100", {"replay": whole}, {})
    assert not [*path.glob("*.orbax")]
    saves.check(path)


def test_dropping_the_replay_deletes_its_shards(rows, tmp_path):
    path = write(tmp_path, rows)
    saves.drop(path, "replay")
    assert not [*path.glob("*.orbax")]
    assert saves.tree_names(path) == ["state"]
    saves.check(path)


FULL = """
import resource, signal, sys
from pathlib import Path
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
from qscape.errors import CannotWrite
from qscape.run import saves
rows = np.random.default_rng(0).random((20_000, 8), np.float32)
storage = saves.Large((4, 5_000, 8), rows.dtype, lambda: iter([]), lambda: jnp.asarray(rows))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    saves.write(Path(sys.argv[1]), "100", {"replay": {"storage": storage}}, {})
except CannotWrite as problem:
    print(problem)
"""


def test_a_full_disk_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True)
    assert "free space on that disk" in done.stdout
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["../100/replay.orbax", "replay"])
def test_shards_elsewhere_are_refused(name, rows, tmp_path):
    path = write(tmp_path, rows)
    record = unseal((path / saves.RECORD).read_bytes(), required=True)
    record["trees"]["replay"]["shards"] = name
    (path / saves.RECORD).write_bytes(seal(record))
    with pytest.raises(DamagedSave):
        saves.check(path)


@pytest.mark.parametrize(
    "wrong",
    [{"rings": []}, {"rings": [1]}, {"length": 0}, {"length": None}, {"shape": [4, 30]}, {"shape": []}],
)
def test_forged_shards_are_one_sentence(wrong, rows, tmp_path):
    path = write(tmp_path, rows)
    record = unseal((path / saves.RECORD).read_bytes(), required=True)
    (leaf,) = (leaf for leaf in record["trees"]["replay"]["leaves"] if "rings" in leaf)
    leaf |= {name: value for name, value in wrong.items() if value is not None}
    for name in (name for name, value in wrong.items() if value is None):
        del leaf[name]
    (path / saves.RECORD).write_bytes(seal(record))
    with pytest.raises(DamagedSave):
        saves.check(path)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["td3", "--env", "Pendulum-v1"], "by --processes or --devices"),
        (["ppo", "--env", "jax/CartPole-v1", "--devices", "2"], "has none"),
    ],
)
def test_runs_without_shards_are_refused(argv, says, tmp_path, capsys):
    where = ["--out", str(tmp_path / "run"), "--steps", "500"]
    assert cli.main(["train", *argv, "--save-shards", *where]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run" / "0" / "run.json").exists()


def test_without_orbax_the_extra_is_named(rows, tmp_path, monkeypatch):
    """A save that cannot be read for that is not called damaged."""
    path = write(tmp_path, rows)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    for attempt in (shards.load_orbax, lambda: saves.check(path)):
        with pytest.raises(MissingPackage) as refused:
            attempt()
        assert refused.value.field == "save_shards"
        assert "qscape[shards]" in str(refused.value)
