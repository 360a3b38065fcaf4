"""`qscape.contrib` comes in by the door of other packages' parts; the core works where its folder is not."""

import dataclasses
import os
import shutil
import subprocess
import sys

import pytest
import tiny
from small import CONTRIB_PARTS, CORE_PARTS
from test_plugins import SOURCE

from qscape import agents, contrib
from qscape.agents import onpolicy, plugins
from qscape.errors import UsageError

SRC = tiny.TESTS.parent / "src" / "qscape"


def test_its_parts_are_registered_as_those_of_qscape():
    names = {cls.name for cls in contrib.PARTS}
    assert {cls for table in (agents.PARTS, onpolicy.PARTS) for cls in table.values()} >= {*contrib.PARTS}
    assert names == {*CONTRIB_PARTS, "carsm"}
    assert len(CORE_PARTS) + len(CONTRIB_PARTS) == len(agents.PARTS)
    assert not names & plugins.ORIGINS.keys()
    assert not names & {*CORE_PARTS}


def test_it_comes_in_by_the_door_that_checks_plugins(monkeypatch):
    """What no part of another package may be is refused here, too."""
    bare = type("Bare", (contrib.PARTS[1],), {"name": "bare"})
    taken = dataclasses.dataclass(frozen=True)(type("Taken", (contrib.PARTS[1],), {"name": "lap"}))
    for cls, sentence in (
        (bare, "Bare is no frozen dataclass"),
        (taken, "'lap' is taken by a part of qscape"),
    ):
        monkeypatch.setattr(contrib, "PARTS", (cls,))
        with pytest.raises(UsageError, match=sentence):
            plugins.register_contrib((dict(agents.PARTS), dict(onpolicy.PARTS)))


@pytest.mark.parametrize("name", ["c51", "esa", "carsm", "crossq"])
def test_its_names_are_taken(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"other_{name}.py").write_text(SOURCE.replace('"penalty"', f'"{name}"'))
    with pytest.raises(UsageError, match=f"its name '{name}' is taken by a part of qscape"):
        agents.register(f"other_{name}:Penalty")


# --- without its folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """Runs a command of a copy of the package without `contrib`; returns exit code, output and errors."""
    home = tmp_path_factory.mktemp("core")
    shutil.copytree(SRC, home / "qscape", ignore=shutil.ignore_patterns("contrib", "__pycache__"))
    assert not (home / "qscape" / "contrib").exists()

    def run(*argv: str) -> tuple[int, str, str]:
        paths = os.pathsep.join([str(home), str(tiny.TESTS)])
        done = subprocess.run(
            [sys.executable, "-m", "qscape", *argv],
            capture_output=True,
            text=True,
            cwd=home,
            env=tiny.environment() | {"PYTHONPATH": paths},
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


def test_the_core_lists_its_parts_alone(core):
    code, shown, _ = core("list")
    assert code == 0
    listed = {line.split()[0] for line in shown.splitlines() if line.strip()}
    assert {"+pave", "+savo", "+savgo", "+sale", "+etf", "td7", "tqc"} <= listed
    assert not {"+c51", "+esa", "+carsm", "crossq", "simbav2", "fast_td3"} & listed
    assert core("list", "presets")[0] == 0


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("td3+c51", "There is no part 'c51' (in 'td3+c51'); "),
        ("ppo+carsm", "There is no part 'carsm' (in 'ppo+carsm'); "),
        ("simbav2", "There is no agent 'simbav2'; "),
    ],
)
def test_what_is_missing_is_an_unknown_name(core, recipe, sentence):
    code, _, told = core("train", recipe, "--env", "tiny:Clock-v0")
    assert code == 2
    assert told.startswith(f"qscape: {sentence}")
    assert told.count("\n") == 1


@pytest.mark.parametrize("recipe", ["td3", pytest.param("td7+savo+pave", marks=pytest.mark.slow), "ppo"])
def test_the_core_trains(core, recipe, tmp_path):
    sizes = ["--base.actor-hidden", "8", "--base.critic-hidden", "8", "--base.batch-size", "8"]
    sizes += ["--base.rollout", "32"] if recipe == "ppo" else ["--base.warmup", "40"]
    argv = ["--env", "tiny:Clock-v0", "--steps", "160", "--eval-every", "0", *sizes, "--out", str(tmp_path)]
    code, shown, told = core("train", recipe, *argv)
    assert code == 0, told
    assert "160 steps" in shown
