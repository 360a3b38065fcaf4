"""`qscape tune --storage`: several processes share the trials of a search, and one that dies stops nobody."""

import shutil
import time

import optuna
import pytest
from tiny import environment, flags, start

from qscape.cli import main
from qscape.jobs import tune

RANGES = '"base.warmup" = {low = 20, high = 200}\n'


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with ranges."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    (tmp_path / "ranges.toml").write_text(RANGES)
    return tmp_path


def command(out, *more, trials=3, steps=240):
    """`tune td3` with small networks, one worker and a shared journal."""
    given = [
        "tune",
        "td3",
        "--env",
        "Pendulum-v1",
        "--steps",
        steps,
        "--eval-every",
        60,
        "--eval-episodes",
        1,
    ]
    given += [*flags("td3"), "--trials", trials, "--workers", 1, "--ranges", "ranges.toml"]
    return [str(x) for x in (*given, "--storage", "journal.log", "--out", out, *more)]


def read(here):
    backend = optuna.storages.journal.JournalFileBackend(str(here / "journal.log"))
    return optuna.load_study(
        study_name="qscape", storage=optuna.storages.JournalStorage(backend)
    ).get_trials()


def test_two_processes_share_the_trials(here):
    both = [start(*command(out)) for out in ("one", "two")]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    trials = read(here)
    assert [t.state.name for t in trials] == ["COMPLETE"] * 3
    assert all("best: trial" in out for out, _ in said)
    made = [sorted(p.name for p in (here / out / "trials").glob("*")) for out in ("one", "two")]
    assert sorted(made[0] + made[1]) == ["0", "1", "2"]  # each by one process


@pytest.mark.parametrize("same_folder", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_killed_process_stops_nobody(here, monkeypatch, capsys, same_folder):
    first = start(*command("one", trials=2, steps=2000))
    deadline = time.monotonic() + 120
    while not [*here.glob("one/trials/0/0/saves/*/save.json")]:
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.2)
    first.kill()
    first.communicate()
    monkeypatch.setattr(tune, "DEAD", 3.0)
    assert main(command("one" if same_folder else "two", trials=2, steps=2000)) == 0
    assert [t.state.name for t in read(here)] == ["COMPLETE"] * 2
    assert "best: trial" in capsys.readouterr().out
    for out in ("one", "two"):
        shutil.rmtree(here / out, ignore_errors=True)


def test_what_is_no_journal_is_refused(here, capsys):
    journal = here / "journal.log"
    journal.write_text("notes of mine\n")
    assert main(command("one")) == 2
    assert journal.read_text() == "notes of mine\n"
    journal.unlink()
    journal.mkdir()
    assert main(command("one")) == 2
    journal.rmdir()
    (here / "one" / "thesis").mkdir(parents=True)
    assert main(command("one")) == 2
    assert not journal.exists()
    assert capsys.readouterr().err.count("\n") == 3
