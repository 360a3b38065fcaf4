"""Versions of other packages that qscape does not support are named, with the command that mends it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs_on_disk import write_run

from qscape.versions import find_wrong_versions

SOURCE = Path(__file__).parent.parent / "src"


def write_package(place: Path, name: str, version: str, code: str | None = None) -> None:
    """Write a package as pip installs it, so that Python finds this version first."""
    info = place / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if code is not None:
        (place / f"{name}.py").write_text(code)


def run(place: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(place), str(SOURCE)])
    return subprocess.run(
        [sys.executable, *command], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )


def test_the_versions_of_this_environment_are_right():
    assert find_wrong_versions() == []


@pytest.mark.parametrize(
    ("name", "version"), [("plotly", "5.24.1"), ("jax", "0.99.0"), ("optuna", "3.6.0"), ("gymnax", "0.0.8")]
)
def test_a_wrong_version_is_told_with_its_range_and_the_command(name, version, tmp_path, monkeypatch):
    write_package(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    (said,) = find_wrong_versions()
    assert f"{name} {version}" in said
    assert f'pip install "{name}<' in said
    assert ">=" in said
    assert find_wrong_versions("numpy") == []


def test_a_command_that_breaks_at_an_old_package_names_it(tmp_path):
    write_run(tmp_path / "run" / "0", label="td3", returns={10: [1.0], 20: [2.0]})
    write_package(tmp_path / "old", "plotext", "5.3.2", "def clear_figure(): pass\n")
    watch = ("-m", "qscape", "watch", str(tmp_path / "run" / "0"), "--once")
    done = run(tmp_path / "old", *watch)
    assert done.returncode == 2, done.stderr
    assert "plotext 5.3.2" in done.stderr
    assert 'pip install "plotext<7,>=6.1"' in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run(tmp_path / "old", *watch, "--debug").stderr


def test_a_command_that_breaks_for_another_reason_shows_it(tmp_path):
    write_run(tmp_path / "run" / "0", label="td3", returns={10: [1.0], 20: [2.0]})
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "plotext.py").write_text("raise ZeroDivisionError\n")
    done = run(tmp_path / "old", "-m", "qscape", "watch", str(tmp_path / "run" / "0"), "--once")
    assert "ZeroDivisionError" in done.stderr
