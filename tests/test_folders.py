"""Run folders: links, checksums, locks, `Model.save` that was interrupted, and signals."""

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny import environment, flags, metrics, numbers, python, settings, stop_at

import qscape as qs
from qscape.agents import build
from qscape.errors import QscapeError, RunError
from qscape.inspect import store
from qscape.jobs.worker import Job, run_job
from qscape.run import Plan, files, resume, saves, stopping, train
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run.adapters import open_adapters
from qscape.run.training import make_session
from qscape.sealed import seal

PLAN = Plan(
    "td3",
    "tiny:Clock-v0",
    120,
    settings=settings("td3", warmup=50),
    eval_every=60,
    eval_episodes=2,
    log_every=20,
    save_every=40,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run that was stopped at step 91; copy it before you write to it."""
    folder = tmp_path_factory.mktemp("folders") / "run"
    list(train(PLAN, folder, on_trainer=stop_at(90)))
    return folder


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_counters_of_a_schedule_may_be_rounded_below_zero():
    """Older versions saved such counters in some bursts of `checkpoints`."""
    folders._check_like(-7.1e-15, 0, "numbers.schedule.steps")
    for value, name in (
        (-1, "numbers.schedule.steps"),
        (-7.1e-15, "numbers.updates"),
        (True, "numbers.updates"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}")):
            folders._check_like(value, 0, name)


# --- links ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [".lock", "metrics.jsonl", "evaluations.csv", "run.json", "saves", "saves/000000080", "saves/new"]
)
def test_nothing_is_written_through_a_link_in_a_run_folder(name, run, tmp_path):
    link, target = run / name, tmp_path / "foreign"
    link.rename(target) if link.exists() else target.mkdir()
    if target.is_dir():
        (target / "thesis.npz").write_text("precious")
    before = {path: path.is_file() and path.read_bytes() for path in [target, *target.rglob("*")]}
    link.symlink_to(target)
    with pytest.raises(RunError, match=rf"{link} is a link, and nothing .* through a link"):
        list(resume(run))
    assert {path: path.is_file() and path.read_bytes() for path in [target, *target.rglob("*")]} == before
    assert link.is_symlink()


def test_a_new_run_and_a_saved_model_write_through_no_link(run, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.npz").write_text("precious")
    for name in (folders.NEW, "saves/000000040"):
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).symlink_to(foreign)
    model = qs.load(run)
    model.save(run)
    assert [path.name for path in foreign.iterdir()] == ["thesis.npz"]
    (run / "inspect").symlink_to(foreign)
    with pytest.raises(RunError, match="inspect is a link"):
        store.write_findings(run, "landscape", {})
    kept, (why,) = store.keep_findings(run, "landscape", {})  # somebody who named another file gets that one
    assert kept == []
    assert why.startswith("the findings are not kept in the run's folder: ")
    with pytest.raises(RunError, match="inspect is a link"):
        store.keep_findings(run, "landscape", {}, needed=True)
    list(train(PLAN, run, overwrite=True, on_trainer=lambda trainer: trainer.stop()))
    assert [path.name for path in foreign.iterdir()] == ["thesis.npz"]
    assert not (run / "inspect").exists()


def test_temporary_files_are_new_files_of_unknown_names(tmp_path, monkeypatch):
    names = {files.unused_name(tmp_path / "run.json") for _ in range(100)}
    assert len(names) == 100
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "guessed")
    (tmp_path / "foreign").write_text("precious")
    files.unused_name(tmp_path / "run.json").symlink_to(tmp_path / "foreign")
    with pytest.raises(RunError, match="cannot be written"):
        folders.write_record(tmp_path, {"a": 1})
    assert (tmp_path / "foreign").read_text() == "precious"


# --- locks ----------------------------------------------------------------------------------------------


def test_a_lock_keeps_its_file_and_says_whether_it_is_held(tmp_path):
    assert not folders.in_use(tmp_path)
    (tmp_path / folders.LOCK).write_text("left as it is")
    with folders.locked(tmp_path):
        assert folders.in_use(tmp_path)
    assert not folders.in_use(tmp_path)
    assert (tmp_path / folders.LOCK).read_text() == "left as it is"


# --- Model.save -----------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
import tiny
import qscape as qs
from qscape.run import files, folder

count, at = 0, int(sys.argv[2])

def killing(call):
    def counted(*args, **options):
        global count
        count += 1
        if count > at:
            os._exit(0)
        return call(*args, **options)
    return counted

model = qs.load(sys.argv[1])
begin = folder._finish_replacing

def replacing(place):
    Path.rename = killing(Path.rename)
    folder.delete = killing(folder.delete)
    begin(place)
    os._exit(9)

folder._finish_replacing = replacing
model.save(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.long
def test_a_model_whose_save_was_killed_between_two_renames_is_healed_when_it_is_opened(made, tmp_path):
    """Every moment: none, some or all of the old files moved away, none, some or all of the new ones in."""
    wanted = saves.read_meta(made / "saves" / "000000091")["numbers"]
    moments = 0
    for at in range(100):
        run = Path(shutil.copytree(made, tmp_path / str(at)))
        code = KILLED.replace("sys.argv[1]", repr(str(run))).replace("sys.argv[2]", repr(str(at)))
        try:
            python(code)
        except AssertionError:  # exit code 9: it was not killed
            break
        moments += 1
        assert (run / folders.OLD).exists()
        assert folders.one_run(run) == run
        assert qs.load(run).env_steps == 91
        assert sorted(p.name for p in run.iterdir()) == [".lock", "run.json", "saves"]
        assert saves.read_meta(run / "saves" / "000000091")["numbers"] == wanted
    assert moments >= 8


@pytest.mark.parametrize("moved", range(3))
def test_an_interrupted_replacement_is_finished(moved, made, run):
    """`moved`: how far it came: before the old run, before the new one, before its run.json."""
    new, old = run / folders.NEW, run / folders.OLD
    for name in ("saves", "run.json"):
        copy = shutil.copytree if name == "saves" else shutil.copyfile
        new.mkdir(exist_ok=True)
        copy(made / name, new / name)
    old.mkdir()
    if moved:
        for path in [p for p in run.iterdir() if p not in (new, old, run / folders.LOCK)]:
            path.rename(old / path.name)
    if moved == 2:
        (new / "saves").rename(run / "saves")
    with folders.locked(run):
        folders.heal(run)  # its writer is at work
        assert old.exists()
    assert folders.run_folders(run.parent) == [run]
    assert sorted(p.name for p in run.iterdir()) == [".lock", "run.json", "saves"]
    assert qs.load(run).env_steps == 91


# --- signals and flushing -------------------------------------------------------------------------------


@pytest.fixture
def attached():
    """SIGHUP as a terminal leaves it, also where the tests themselves run below nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_the_end_of_the_terminal_saves_the_run(run, attached, monkeypatch):
    left = []
    monkeypatch.setattr(stopping, "_leave", left.append)
    events = []
    for event in run_job(Job("resume", run)):
        events.append(event)
        if isinstance(event, ev.Started):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)  # a shell sends another one
    assert isinstance(events[-1], ev.Ended)
    assert events[-1].interrupted
    assert len(left) == 1
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_below_nohup_the_end_of_the_terminal_changes_nothing(run):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for event in run_job(Job("resume", run)):
            if isinstance(event, ev.Started):
                os.kill(os.getpid(), signal.SIGHUP)
        assert not event.interrupted
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_terminal_that_is_closed_leaves_a_save(attached, tmp_path):
    argv = ["train", "td3", "--env", "Pendulum-v1", "--steps", 10**6, *flags("td3", warmup=100)]
    argv += ["--eval-every", 0, "--log-every", 20, "--out", tmp_path]
    argv += ["--save-every", 10**6, "--milestones", 1]
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "qscape", *map(str, argv)]
    process = subprocess.Popen(
        command,
        stdin=end,
        stdout=end,
        stderr=end,
        env=environment(),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(end)
    closing = threading.Event()
    reader = threading.Thread(target=drain, args=(terminal, closing), daemon=True)
    reader.start()
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "0" / "metrics.jsonl").exists() or len(metrics(tmp_path / "0")) < 3:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        closing.set()
        reader.join()
        os.close(terminal)
        process.wait(60)
    finally:
        process.kill()
    assert numbers(tmp_path / "0")["env_steps"] >= 60


def drain(terminal: int, closing: threading.Event) -> None:
    """Read what a process writes to its terminal, which else would block it."""
    os.set_blocking(terminal, False)
    while not closing.is_set():
        with contextlib.suppress(BlockingIOError, OSError):
            os.read(terminal, 10_000)
        time.sleep(0.01)


def test_log_lines_are_on_the_disk_before_the_save_that_follows_them(run, monkeypatch):
    flushed: list[str] = []
    flush = files.os.fsync

    def recording(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    monkeypatch.setattr(files.os, "fsync", recording)
    events = resume(run, on_trainer=lambda trainer: trainer.stop())
    lines = 0
    for event in events:
        if isinstance(event, ev.Started):
            lines = len(flushed)
    names = [Path(path).name for path in flushed[lines:]]
    first = next(k for k, name in enumerate(names) if name.startswith("acting"))
    assert max(map(names.index, folders.LOGS)) < first


# --- checksums and types --------------------------------------------------------------------------------


def test_run_json_has_a_checksum_of_itself(run):
    text = (run / "run.json").read_text()
    assert next(iter(json.loads(text))) == "crc32"
    (run / "run.json").write_text(text.replace('"steps": 120', '"steps": 121'))
    with pytest.raises(RunError, match=r"not match; if it was edited by hand, delete its line"):
        folders.read_record(run)
    edited = [line for line in (run / "run.json").read_text().splitlines() if "crc32" not in line]
    (run / "run.json").write_text("\n".join(edited))
    assert folders.read_record(run)["steps"] == 121
    record = json.loads(text)
    del record["crc32"]  # as version 0.1 wrote it
    (run / "run.json").write_text(json.dumps(record))
    assert folders.read_record(run)["steps"] == 120
    *_, end = resume(run)
    assert not end.interrupted


WRONG = (None, "x", -1, 1.5, 10**30, float("inf"), float("nan"), True, [], {}, [["x"]], {"a": {"b": 1}})


def test_a_wrong_type_in_run_json_is_one_sentence(run):
    record = json.loads((run / "run.json").read_text())
    for name in record.keys() - {"crc32"}:
        for wrong in WRONG:
            (run / "run.json").write_bytes(seal(record | {name: wrong}))
            with contextlib.suppress(QscapeError):
                plan = folders.read_plan(run)
                build(plan.recipe, plan.settings)
    for name, wrong in (("steps", "x"), ("seed", -1), ("env", 1.5), ("probe", [1]), ("together", {})):
        (run / "run.json").write_bytes(seal(record | {name: wrong}))
        with pytest.raises(RunError, match=r"run\.json cannot be read"):
            folders.read_record(run)


@pytest.mark.slow
def test_a_forged_save_is_one_sentence(run):
    file = folders.newest_save(run) / "save.json"
    whole = json.loads(file.read_text())
    adapter, _ = open_adapters(PLAN, build(PLAN.recipe, PLAN.settings))
    trainer = make_session(PLAN, build(PLAN.recipe, PLAN.settings), adapter)
    refused = 0
    meta = ("numbers", "environment", "table", "milestone", "qscape", "threads")
    places = [("meta", name) for name in meta]
    places += [("meta", "numbers", name) for name in whole["meta"]["numbers"]]
    places += [("meta", "environment", name) for name in whole["meta"]["environment"]]
    places += [("trees", "state", name) for name in ("file", "bytes", "leaves")]
    places += [("trees", "state", "leaves", 0, name) for name in ("name", "shape", "dtype", "crc32")]
    for place in places:
        for wrong in WRONG:
            forged = json.loads(json.dumps(whole))
            here = forged
            for key in place[:-1]:
                here = here[key]
            here[place[-1]] = wrong
            file.write_bytes(seal(forged))
            try:
                folders.load_into(trainer, file.parent)
            except QscapeError:
                refused += 1
    assert refused > 0.8 * len(places) * len(WRONG)


def test_an_array_is_not_read_if_its_header_promises_more_than_the_file_holds(tmp_path):
    path = saves.write(tmp_path, "1", {"t": np.zeros(8)}, {})
    record = json.loads((path / "save.json").read_text())
    with zipfile.ZipFile(path / "t.npz") as archive:
        data = archive.read(".npy")
    with zipfile.ZipFile(path / "t.npz", "w") as archive:
        archive.writestr(".npy", data.replace(b"(8,), }" + b" " * 9, b"(8" + b"0" * 9 + b",), }", 1))
        record["trees"]["t"]["leaves"][0]["crc32"] = archive.infolist()[0].CRC
    record["trees"]["t"]["bytes"] = (path / "t.npz").stat().st_size
    (path / "save.json").write_bytes(seal(record))
    with pytest.raises(RunError, match="its header promises another size"):
        saves.read_arrays(path, "t")
