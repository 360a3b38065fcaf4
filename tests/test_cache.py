"""The folder of compiled programs: what is shown and removed, and what damage does to a run."""

import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
from tiny import environment

from qscape import kept_programs
from qscape.cli import main
from qscape.run import saves


@pytest.fixture
def folder(tmp_path, monkeypatch):
    place = tmp_path / "xla"
    place.mkdir()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(place))
    return place


def fill(folder):
    """Write three entries, one of them cut short, and two files that are none."""
    whole = zlib.compress(b"a program" * 1_000)
    (folder / "jit_update-1-cache").write_bytes(whole)
    (folder / "jit_update-1-atime").write_bytes(b"12345678")
    (folder / "jit_act-2-cache").write_bytes(kept_programs.ZSTANDARD + b"...")
    (folder / "jit_act-3-cache").write_bytes(whole[:-2])
    (folder / "notes.txt").write_text("mine")
    (folder / "sub-cache").mkdir()
    return 2 * len(whole) - 2 + len(kept_programs.ZSTANDARD) + 3


def test_programs_are_counted_and_damaged_ones_are_found(folder):
    size = fill(folder)
    kept = kept_programs.look(folder)
    assert (kept.programs, kept.nbytes) == (3, size)
    assert kept.damaged == (folder / "jit_act-3-cache",)
    assert kept.newest == max(entry.stat().st_mtime for entry in folder.glob("jit*-cache"))


def test_a_folder_that_is_not_there_is_empty(tmp_path):
    assert kept_programs.look(tmp_path / "none") == kept_programs.Kept(tmp_path / "none", 0, 0, None, ())
    assert kept_programs.clear(tmp_path / "none") == 0


def test_clear_removes_programs_and_nothing_else(folder):
    fill(folder)
    (folder / "link-cache").symlink_to(folder / "notes.txt")
    assert kept_programs.clear(folder) == 3
    assert sorted(path.name for path in folder.iterdir()) == ["link-cache", "notes.txt", "sub-cache"]


def test_the_command_shows_and_clears(folder, capsys):
    fill(folder)
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert str(folder) in shown
    assert "3 compiled programs" in shown
    assert "damaged, so compiled anew at every start: 1;" in shown
    assert main(["cache", "--clear"]) == 0
    assert main(["cache"]) == 0
    assert "0 compiled programs" in capsys.readouterr().out.splitlines()[-1]
    assert main(["cache", "all"]) == 2


def test_a_storage_elsewhere_is_not_called_empty(monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/xla")
    assert main(["cache"]) == 2
    assert "gs://bucket/xla" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["", None])
def test_the_folder_is_in_the_users_cache(given, monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if given is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert kept_programs.find_folder() == tmp_path / ".cache" / "qscape" / "xla"


def read_state(place):
    return saves.read_arrays(place / saves.names(place)[-1], "state")


@pytest.mark.slow
def test_no_number_depends_on_the_cache(tmp_path):
    """Two processes fill one folder at once; then its entries are damaged; then it cannot be a folder."""
    cache = tmp_path / "cache"

    def start(name):
        given = environment() | {"XDG_CACHE_HOME": str(cache)}
        given.pop("JAX_COMPILATION_CACHE_DIR", None)
        command = ["train", "td3", "--env", "Pendulum-v1", "--steps", "300", "--base.warmup", "200"]
        command += ["--eval-every", "300", "--eval-episodes", "1", "--out", str(tmp_path / name)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-m", "qscape", *command], stdout=pipe, stderr=pipe, text=True, env=given
        )

    def end(process):
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, out + errors
        return errors

    for process in [start("one"), start("two")]:
        end(process)
    kept = kept_programs.look(cache / "qscape" / "xla")
    assert kept.programs > 10
    assert not kept.damaged
    cut = [*kept.folder.glob("*-cache")]
    for k, entry in enumerate(cut):
        content = entry.read_bytes()
        entry.write_bytes(b"" if k % 2 else content[: len(content) // 2])
    assert len(kept_programs.look(kept.folder).damaged) == len(cut)
    assert "Error reading persistent compilation cache entry" in end(start("damaged"))
    shutil.rmtree(cache)
    cache.write_text("no folder")
    end(start("none"))
    found = [read_state(tmp_path / name / "0" / "saves") for name in ("one", "two", "damaged", "none")]
    for other in found[1:]:
        for name, array in found[0].items():
            np.testing.assert_array_equal(other[name], array, name)
