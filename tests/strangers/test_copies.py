"""Environments of which only one may exist: made when needed, or the error names the way."""

import contextlib
import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import tiny

import qscape as qs
from qscape.cli import main
from qscape.envs import make
from qscape.errors import QscapeError, UsageError
from qscape.run.record import record_dataset

SMALL = tiny.settings("td3", warmup=10)
PORT = "QSCAPE_TEST_PORT"  # a file: it exists while one of them is open, also in other processes


class Licensed(tiny.Clock):
    """Only one may exist at a time, in all processes: once it is made, or reset (`late`)."""

    def __init__(self, late=False):
        super().__init__(length=8)
        self.late, self.held = late, False
        if not late:
            self.take()

    def take(self):
        try:
            os.close(os.open(os.environ[PORT], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise OSError(98, "Address already in use") from None
        self.held = True

    def reset(self, *, seed=None, options=None):
        if not self.held:
            self.take()
        return super().reset(seed=seed)

    def step(self, action):
        shown, _, *ends, info = super().step(action)
        return shown, 1.0, *ends, info

    def close(self):
        if self.held:
            Path(os.environ[PORT]).unlink()
        self.held = False


if "Licensed-v0" not in gym.registry:
    gym.register("Licensed-v0", "strangers.test_copies:Licensed")
ID = "strangers.test_copies:Licensed-v0"


@pytest.fixture(autouse=True)
def port(tmp_path, monkeypatch):
    """The place of the one environment; it is free after each test."""
    place = tmp_path / "port"
    monkeypatch.setenv(PORT, str(place))
    monkeypatch.setenv("PYTHONPATH", f"{tiny.TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return place


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the command line without evaluations."""
    place = tmp_path_factory.mktemp("copies")
    os.environ[PORT] = str(place / "port")
    assert main([*train(), "--eval-every", "0", "--out", str(place / "runs")]) == 0
    assert not (place / "port").exists()
    return place / "runs" / "0"


def train():
    return ["train", "td3", "--env", ID, "--steps", "40", "--quiet", *tiny.flags("td3", warmup=10)]


def said(capsys, *argv):
    """Exit code of a command and what it says."""
    capsys.readouterr()
    code = main([*map(str, argv)])
    shown = capsys.readouterr()
    return code, shown.out + shown.err


@pytest.mark.parametrize("late", [False, True])
def test_training_with_evaluations_names_the_flag(late, port, tmp_path, capsys):
    code, text = said(capsys, *train(), "--env.late", late, "--out", tmp_path / "a")
    assert code in (1, 2)
    assert "Address already in use" in text
    assert "only one may exist at a time, --eval-every 0 makes one suffice" in " ".join(text.split())
    assert not port.exists()
    with pytest.raises(QscapeError, match="eval_every=0 makes one suffice"):
        qs.TD3(lambda: Licensed(late), **SMALL).learn(40)


@pytest.mark.parametrize("late", [False, True])
def test_several_copies_name_the_flag(late, capsys, tmp_path):
    argv = *train(), "--env.late", late, "--eval-every", 0, "--envs", 2, "--out", tmp_path / "a"
    code, text = said(capsys, *argv)
    assert code in (1, 2)
    assert "--envs 1 makes one suffice" in " ".join(text.split())


@pytest.mark.parametrize("late", [False, True])
def test_python_makes_one_where_nothing_is_evaluated(late, port, tmp_path):
    model = qs.TD3(lambda: Licensed(late), eval_every=0, **SMALL)
    model.learn(30)
    assert port.exists()
    with pytest.raises(QscapeError, match="only one may exist at a time"):
        model.evaluate(1)
    model.adapter.close()
    assert model.evaluate(1) == [8.0 + 5 * (1000 % 3)]


def test_python_makes_as_few_as_asked():
    made = []

    def build():
        made.append(tiny.Clock(8))
        return made[-1]

    model = qs.TD3(build, eval_every=0, **SMALL)
    assert len(made) == 1
    model.evaluate(3)
    assert len(made) == 4
    made.clear()
    qs.TD3(build, eval_every=50, eval_episodes=2, **SMALL)
    assert len(made) == 3


def test_commands_make_one_at_a_time(trained, port, tmp_path, capsys):
    for argv in (
        ["evaluate", trained, "--episodes", 1],
        ["resume", trained, "--steps", 60],
        ["smoothness", trained, "--episodes", 1],
        ["export", trained, "--npz", tmp_path / "a.npz", "--episodes", 1],
    ):
        code, text = said(capsys, *argv)
        assert code == 0, (argv, text)
        assert not port.exists()
    for argv in (
        ["evaluate", trained],
        ["smoothness", trained],
        ["export", trained, "--npz", tmp_path / "b.npz"],
    ):
        code, text = said(capsys, *argv)
        assert code in (1, 2)
        assert "--episodes 1 makes one suffice" in " ".join(text.split())
        assert not port.exists()


def test_record_closes_one_before_it_opens_the_next(trained, port, tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    record_dataset(trained, "test/licensed-v0", 1)
    assert not port.exists()


def open_and_reset(opened, late):
    """Open two in processes of their own, and reset them."""
    opened.append(make(lambda: Licensed(late), 2, vectorise="async"))
    opened[0].reset()


@pytest.mark.parametrize("late", [False, True])
def test_processes_hold_as_many_as_asked(late, port):
    opened: list = []
    with pytest.raises(UsageError if not late else QscapeError, match="envs=1 makes one suffice"):
        open_and_reset(opened, late)
    for adapter in opened:
        adapter.close()
    port.unlink(missing_ok=True)
    opened = []

    def build():
        opened.append(tiny.Clock(8))
        return opened[-1]

    with contextlib.closing(make(build, 1, vectorise="async")) as adapter:
        adapter.reset()
    assert len(opened) == 1


def test_load_makes_one(trained, port):
    model = qs.load(trained)
    assert port.exists()
    assert model.predict(np.zeros(3, np.float32))[0].shape == (1,)
    model.adapter.close()


class Bare(tiny.Clock):
    """Declares no metadata, as robosuite's wrapper does."""

    metadata = None  # type: ignore[assignment]


def limited():
    return gym.wrappers.TimeLimit(Bare(), 5)


@pytest.mark.parametrize("vectorise", ["sync", "async"])
@pytest.mark.parametrize("env", [Bare, limited])
def test_copies_need_no_metadata(env, vectorise):
    with contextlib.closing(make(env, 2, vectorise=vectorise)) as adapter:
        assert adapter.reset().shape == (2, 3)
