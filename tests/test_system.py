"""Without the functions that Linux has and others have not, everything still works."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest

from qscape import system
from qscape.run.folder import read_record
from qscape.run.plan import folder_name
from qscape.run.stopping import StopOnSignal


def test_cores_are_counted_everywhere(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3, 4}, raising=False)
    assert system.count_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert system.count_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert system.count_cores() == 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("td3+lap[lap.alpha=0.6]", "td3+lap[lap.alpha=0.6]"),
        ("td3+package.penalty:Penalty", "td3+package.penalty-Penalty"),
        ("ALE/Pong-v5", "ALE-Pong-v5"),
        (r'a\b*c?d"e<f>g|h', "a-b-c-d-e-f-g-h"),
        ("a. ", "a-"),
        ("1\n2", "1-2"),
    ],
)
def test_names_are_allowed_everywhere(text, name):
    assert system.file_name(text) == name
    assert folder_name(text) == name


def test_processes_are_never_forked(monkeypatch):
    assert system.start_method() in ("forkserver", "spawn")
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert system.start_method() == "spawn"


@pytest.mark.parametrize("windows", [False, True])
def test_a_process_can_signal_itself(monkeypatch, windows):
    monkeypatch.setattr(system, "WINDOWS", windows)
    seen = []
    known = {
        signal.SIGTERM: lambda number, frame: seen.append(number),
        signal.SIGINT: signal.default_int_handler,
    }
    before = {number: signal.signal(number, handler) for number, handler in known.items()}
    try:
        system.signal_self(signal.SIGTERM)
        time.sleep(0.01)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert seen == [signal.SIGTERM]


@pytest.mark.parametrize("windows", [False, True])
def test_a_worker_is_asked_to_stop(monkeypatch, windows):
    """On Windows by the end of its standard input, which it takes for the end of its parent process."""
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    code = "import sys; sys.stdin.read(); print('saved')"
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, **system.detached())
    monkeypatch.setattr(system, "WINDOWS", windows)
    assert system.detached() == ({"creationflags": 512} if windows else {"start_new_session": True})
    system.ask_to_stop(worker)
    assert worker.stdout.read() == (b"saved\n" if windows else b"")
    assert worker.wait() == (0 if windows else -signal.SIGTERM)


@pytest.mark.slow
def test_training_needs_no_function_of_linux(tmp_path):
    """Nor the modules that Windows has not."""
    code = (
        "import os, sys, multiprocessing\n"
        "for name in ('sched_getaffinity', 'fork', 'forkpty', 'setsid', 'killpg', 'getuid'):\n"
        "    delattr(os, name)\n"
        "for name in ('fcntl', 'resource', 'termios', 'pwd', 'grp'):\n"
        "    sys.modules[name] = None\n"
        "from qscape.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    argv = ["train", "td3", "--env", "Pendulum-v1", "--steps", "60", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "0")["steps"] == 60


def test_a_request_to_stop_that_python_swallowed_is_not_lost():
    """Python ignores errors in callbacks of its garbage collector, one of which is JAX's."""
    trainer = Mock()
    with StopOnSignal(signal.SIGTERM) as asked:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        asked.attach(trainer)
    trainer.stop.assert_called_once_with()


def test_a_worker_that_is_asked_twice_still_saves():
    """By a pool that stops, and by the end of that pool; only a second Ctrl-C ends a run at once."""
    trainer, seen = Mock(over=False), []
    known = {
        signal.SIGTERM: lambda number, frame: seen.append(number),
        signal.SIGINT: signal.default_int_handler,
    }
    before = {number: signal.signal(number, handler) for number, handler in known.items()}
    try:
        with StopOnSignal(signal.SIGTERM, signal.SIGINT) as asked:
            asked.attach(trainer)
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                signal.raise_signal(number)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert trainer.stop.call_count == 3
    assert not seen
