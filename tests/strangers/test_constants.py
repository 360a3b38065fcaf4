"""What an environment holds and never changes is saved once: for all copies, saves, milestones and seeds."""

import os
import shutil

import gymnasium as gym
import numpy as np
import pytest
import tiny

import qscape as qs
from qscape.cli import main
from qscape.envs import make
from qscape.envs.snapshot import Snapshot, restore, take
from qscape.errors import RunError
from qscape.jobs.parcel import Packer, unpack
from qscape.run import saves

SIZE = 2**21  # bytes of the constant array


class Data(tiny.Clock):
    """Holds data that its steps read, in one of several forms, beside a count that moves."""

    def __init__(self, how="array", moves=False):
        super().__init__(length=8)
        numbers = np.random.default_rng(0).normal(size=SIZE // 8)
        self.how, self.moves = how, moves
        self.data = {
            "array": numbers,
            "list": numbers[: SIZE // 20].tolist(),
            "nested": numbers[: 4 * (SIZE // 80)].reshape(4, -1).tolist(),
            "text": "abcdefgh" * (SIZE // 8),
            "bytes": numbers.tobytes(),
            "dict": {"a": numbers[: SIZE // 16], "b": {"c": numbers[SIZE // 16 :]}},
            "view": numbers[10:-10],
            "times": np.arange(SIZE // 8).astype("datetime64[s]"),
        }[how]

    def step(self, action):
        shown, reward, *ends, info = super().step(action)
        if self.moves:
            self.data[self.now] += 1.0
        reward = {"array": lambda: self.data[self.now]}.get(self.how, lambda: reward)()
        return shown, float(reward), *ends, info


if "Data-v0" not in gym.registry:
    gym.register("Data-v0", "strangers.test_constants:Data")
ID = "strangers.test_constants:Data-v0"
FORMS = ["array", "list", "nested", "text", "bytes", "dict", "view", "times"]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Other processes find this module."""
    monkeypatch.setenv("PYTHONPATH", f"{tiny.TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def size(folder):
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def train(place, *more):
    small = tiny.flags("td3", warmup=10, replay_capacity=100)
    argv = ["train", "td3", "--env", ID, "--eval-every", "0", "--quiet", "--save-every", "20", *small]
    assert main([*argv, "--out", str(place), *map(str, more)]) == 0
    return place / "0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 40 steps."""
    return train(tmp_path_factory.mktemp("constants"), "--steps", 40)


@pytest.mark.parametrize("how", FORMS)
def test_constant_data_is_in_a_run_folder_once(how, tmp_path):
    """Of two copies, four saves and one that was set aside; and it comes back to the bit."""
    adapter, other = make(lambda: Data(how), 2, seed=1), make(lambda: Data(how), 2, seed=9)
    adapter.reset()
    action = np.zeros((2, 1), np.float32)
    for step in range(1, 5):
        adapter.step(action)
        shot = take(adapter)
        assert shot.meta["exact"], shot.meta["why"]
        trees, meta = {"environment": shot.arrays}, {"environment": shot.meta}
        save = saves.write(tmp_path / "saves", str(step), trees, meta, shared=["environment"])
    shared = tmp_path / "saves" / "shared"
    assert len([*shared.glob("*.npy")]) == 1
    assert size(shared) < 1.3 * SIZE
    assert size(tmp_path) - size(shared) < 0.2 * SIZE
    kept = Snapshot(saves.read_arrays(save, "environment"), saves.read_meta(save)["environment"])
    assert restore(other, kept) == ""
    for one, copy in zip(adapter.env.envs, other.env.envs, strict=True):
        assert repr(one.data) == repr(copy.data)
        assert how == "dict" or np.array_equal(one.data, copy.data)
    saves.prune(tmp_path / "saves", 1)
    assert size(shared) > 0.5 * SIZE
    saves.check(save)


def test_a_run_of_the_command_line_holds_it_once(tmp_path):
    more = ["--steps", 60, "--envs", 2, "--keep-saves", 4, "--milestones", 0.2]
    folder = train(tmp_path / "a", *more)
    assert len(saves.names(folder / "saves")) >= 4
    assert size(folder / "saves" / "shared") < 1.01 * SIZE
    assert size(folder) - size(folder / "saves" / "shared") < 2**20  # networks, replays, logs
    part = train(tmp_path / "b", *more[2:], "--steps", 30)
    assert main(["resume", str(part), "--steps", "60", "--quiet"]) == 0
    for name in ("state", "environment"):
        one, other = (saves.read_arrays(f / "saves" / "000000060", name) for f in (folder, part))
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_seeds_of_a_group_share_the_disk(tmp_path):
    train(tmp_path, "--steps", 40, "--seeds", 0, 1, "--seeds-as", "processes")
    train(tmp_path, "--steps", 20, "--seeds", 2)
    files = [*tmp_path.glob("*/saves/shared/*.npy")]
    assert len(files) == 3
    assert len({file.stat().st_ino for file in files}) == 1


def test_data_that_changes_is_kept_for_each_save_and_no_longer(tmp_path):
    folder = train(tmp_path, "--env.moves", True, "--steps", 100, "--keep-saves", 2)
    names = saves.names(folder / "saves")
    assert len([*(folder / "saves" / "shared").glob("*.npy")]) == len(names)
    assert main(["resume", str(folder), "--steps", "120", "--quiet"]) == 0


def test_saves_that_were_set_aside_keep_their_data(tmp_path):
    folder = train(tmp_path, "--env.moves", True, "--steps", 60, "--keep-saves", 9)
    assert main(["resume", str(folder), "--save", "54", "--steps", "58", "--quiet"]) == 0
    aside = next((folder / "aside").glob("*/000000060"))
    assert saves.read_arrays(aside, "environment")
    saves.check(aside)


def test_a_parcel_carries_them_before_the_save(trained, tmp_path):
    parcel = Packer(trained).pack()
    (tmp_path / "b").mkdir()
    unpack(parcel, tmp_path / "b")
    saves.check(tmp_path / "b" / "saves" / "000000040")
    assert qs.load(tmp_path / "b").env_steps == 40


@pytest.mark.parametrize("what", ["gone", "cut", "changed"])
def test_a_damaged_constant_is_one_sentence(what, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "0")
    (file,) = (folder / "saves" / "shared").glob("*.npy")
    data = file.read_bytes()
    file.unlink()
    if what != "gone":
        file.write_bytes(data[:-9] if what == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RunError, match=r"\.npy (cannot be read|is damaged)"):
        saves.check(folder / "saves" / "000000040")
    assert main(["resume", str(folder), "--steps", "60", "--quiet"]) == 1
