"""`qscape reproduce`: a run is made again from its record and compared with the old numbers."""

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from tiny import settings

import qscape as qs
from qscape.cli import main as qscape
from qscape.jobs.reproduce import _plan, compare_runs
from qscape.run import Plan, folder, resume, train
from qscape.run.training import train_together
from qscape.sealed import seal

CLOCK = Plan(
    "td3",
    "tiny:Clock-v0",
    90,
    settings=settings("td3", warmup=30),
    eval_every=30,
    eval_episodes=2,
    log_every=20,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run that was made longer once."""
    place = tmp_path_factory.mktemp("runs") / "group" / "0"
    list(train(dataclasses.replace(CLOCK, steps=75), place))
    list(resume(place, 90))
    return place


@pytest.fixture(scope="module")
def again(made) -> tuple[int, str]:
    """The exit code and the output of `qscape reproduce`, which makes the run again in `again/0`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = qscape(["reproduce", str(made), "--out", str(made.parents[1] / "again")])
    return code, out.getvalue()


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(made, tmp_path / "group" / "0"))


def edit(run: Path, **fields) -> None:
    (run / folder.RECORD).write_bytes(seal(folder.read_record(run) | fields))


def test_a_run_is_made_again_with_equal_numbers(made, again):
    """Its evaluation at step 75, where it first ended, is made again too."""
    code, out = again
    assert code == 0
    assert "are equal: 5 evaluations and 6 lines of metrics" in out
    assert "75,current" in (made.parents[1] / "again" / "0" / "evaluations.csv").read_text()


def test_a_run_over_processes_is_made_again_on_one_device(run):
    edit(run, save_shards=True)
    assert not _plan(run).save_shards
    edit(run, loop="compiled", devices=2)
    assert _plan(run).save_shards


def test_what_differs_is_said_with_both_numbers(run, made, again):
    record = folder.read_record(run)
    edit(run, versions=record["versions"] | {"jax": "0.1"}, source="0" * 64, threads="7")
    rows = (run / "evaluations.csv").read_text().splitlines()
    first = next(k for k, row in enumerate(rows) if row.startswith("60,"))
    value = rows[first].split(",")[3]
    rows[first] = rows[first].replace(value, "1.5", 1)
    (run / "evaluations.csv").write_text("\n".join(rows) + "\n")
    found = compare_runs(run, made.parents[1] / "again" / "0")
    assert found.differences == [
        "1 of 5 evaluations differ, first at step 60, current policy, episode 0: "
        f"return was 1.5 and is {value}"
    ]
    assert found.causes[0] == f"jax was 0.1 and is {record['versions']['jax']}"
    assert found.causes[1].startswith("NPROC was 7 and is ")
    assert found.causes[2].startswith("qscape's source (SHA-256) was 000000000000 and is ")


def test_an_unfinished_run_is_compared_as_far_as_it_came(run, made, again):
    for log in folder.LOGS:
        lines = (run / log).read_text().splitlines()
        (run / log).write_text("\n".join(lines[:3]) + "\n")
    found = compare_runs(run, made.parents[1] / "again" / "0")
    assert found.equal
    assert found.lines == 3


@pytest.mark.slow
def test_seeds_are_made_again_as_they_were_made(tmp_path):
    """Those that shared a program share one again."""
    places = [tmp_path / "group" / seed for seed in "34"]
    list(train_together([dataclasses.replace(CLOCK, seed=seed) for seed in (3, 4)], places))
    one, other = qs.reproduce(tmp_path / "group", tmp_path / "again")
    assert one.equal
    assert other.equal
    assert folder.read_record(other.again)["together"] == [3, 4]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"dataset": "/gone/data.hdf5", "loop": "host"},
            "the dataset /gone/data.hdf5, from which it learned, is gone",
        ),
        ({"start": "/gone/0"}, "the run /gone/0, from which it learned, is gone"),
        ({"env": "Walk"}, "which no id makes"),
    ],
)
def test_a_run_that_cannot_be_made_again_is_refused(fields, says, run, capsys):
    edit(run, **fields)
    assert qscape(["reproduce", str(run)]) == 2
    assert says in capsys.readouterr().err


def test_a_run_without_numbers_is_refused(run, capsys):
    for log in folder.LOGS:
        (run / log).unlink()
    assert qscape(["reproduce", str(run)]) == 2
    assert "neither evaluations nor metrics" in capsys.readouterr().err


def test_a_saved_model_is_compared_from_where_its_numbers_begin(tmp_path, capsys):
    fields = {"eval_every": 30, "eval_episodes": 2, **settings("td3", warmup=30)}
    qs.TD3("tiny:Clock-v0", **fields).learn(60).save(tmp_path / "saved")
    list(resume(tmp_path / "saved", 90))
    argv = ["reproduce", str(tmp_path / "saved"), "--out", str(tmp_path / "again")]
    assert qscape(argv) == 0
    assert "are equal: 1 evaluations and 1 lines of metrics" in capsys.readouterr().out


def test_run_json_says_when_how_long_and_with_which_source(made):
    record = json.loads((made / "run.json").read_text())
    assert record["date"].startswith("20")
    assert record["seconds"] > 0
    assert record["processor_seconds"] > 0
    assert len(record["source"]) == 64
    assert record["resumed"] == [{"at": 75, "of": 75, "notes": []}]
