"""A run over two processes: equal to one process with two devices, and what happens if one is missing."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import slow_except
from tiny import environment

from qscape import cli
from qscape.errors import Mismatch, QscapeError, Unreachable, UsageError
from qscape.jobs import roll_call
from qscape.jobs.roll_call import RollCall
from qscape.jobs.worker import Job
from qscape.run import saves
from qscape.run.plan import Plan
from qscape.run.processes import Place, read_place

STEPS = 768
PACE = ["--eval-every", 384, "--eval-episodes", 3, "--save-every", 128, "--log-every", 128]
PACE += ["--keep-saves", 20]
SMALL = ["--envs", 8, "--base.actor-hidden", 16, "--base.critic-hidden", 16, "--base.batch-size", 32]
RECIPES = {
    "fast_td3": ["--env", "point:make", "--base.replay-capacity", 800, "--base.warmup", 4],
    "ppo": ["--env", "jax/CartPole-v1", "--base.rollout", 128, "--base.passes", 2],
}
TOLERANCE = 1e-6  # of the change by learning


def flags(recipe, steps=STEPS):
    return ["train", recipe, *RECIPES[recipe], *SMALL, *PACE, "--steps", steps]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def start(argv, devices=1, cwd=None):
    """Start a command as a process whose host counts as so many devices, in the folder `cwd`."""
    given = environment()
    if devices > 1:
        more = f"--xla_force_host_platform_device_count={devices}"
        given["XLA_FLAGS"] = f"{given.get('XLA_FLAGS', '')} {more}"
    command = [sys.executable, "-m", "qscape", *map(str, argv)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=given, cwd=cwd)


def start_pair(argv, cwd=(None, None)):
    """Start a command in two processes that share its run; `cwd`: the folder of each."""
    port = free_port()
    return [start([*argv, "--processes", f"127.0.0.1:{port},2,{k}"], cwd=cwd[k]) for k in (0, 1)]


def end(process):
    """Return the exit status of a process and what it printed."""
    out, errors = process.communicate(timeout=300)
    return process.returncode, out + errors


def children(process):
    """Return the ids of the processes that a process has started."""
    return [int(k) for k in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for_save(folder, number):
    """Wait until a run has written so many saves."""
    for _ in range(24_000):
        if len(saves.names(folder / "saves")) >= number:
            return
        time.sleep(0.01)
    raise AssertionError(f"{folder} has {saves.names(folder / 'saves')}")


def read(folder, tree, at=-1):
    place = folder / "saves"
    return saves.read_arrays(place / saves.names(place)[at], tree)


def change(folder, other, tree):
    """Return by how much two runs differ, relative to how much the first one changed."""
    begun, ended, there = read(folder, tree, 0), read(folder, tree), read(other, tree)
    learned = difference = 0.0
    for name, array in ended.items():
        if array.dtype.kind == "f":
            learned += np.nansum(np.square(array - begun[name], dtype=float))
            difference += np.nansum(np.square(array - there[name], dtype=float))
        else:
            np.testing.assert_array_equal(array, there[name], name)
    assert learned > 0
    return (difference / learned) ** 0.5


@pytest.fixture(scope="module", params=slow_except(["fast_td3"], RECIPES))
def made(request, tmp_path_factory):
    """The folders of a run over two processes, and of the same run on two devices of one."""
    place = tmp_path_factory.mktemp("processes")
    argv = flags(request.param)
    pair = start_pair([*argv, "--out", place / "two"])
    alone = start([*argv, "--out", place / "one", "--devices", 2], devices=2)
    for process in (*pair, alone):
        status, said = end(process)
        assert status == 0, said
    return request.param, place / "one" / "0", place / "two" / "0"


def test_two_processes_make_the_run_of_two_devices(made):
    _, one, two = made
    assert saves.names(one / "saves") == saves.names(two / "saves")
    for tree in ("acting", "state"):
        assert change(one, two, tree) <= TOLERANCE
    for tree in ("replay", "loop", "environment"):
        here, there = read(one, tree), read(two, tree)
        assert here.keys() == there.keys()
        for name, array in here.items():
            np.testing.assert_allclose(array, there[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for name in ("evaluations.csv", "metrics.jsonl"):
        assert len((one / name).read_text().splitlines()) == len((two / name).read_text().splitlines())


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one_and_in_two(made, tmp_path):
    """Whatever number of processes wrote a save, any number reads it."""
    alone = tmp_path / "alone"
    shutil.copytree(made[2], alone / "0")
    status, said = end(start(["resume", alone, "--steps", STEPS + 256, "--trust"]))
    assert status == 0, said
    assert saves.names(alone / "0" / "saves")[-1] == f"{STEPS + 256:09d}"
    for process in start_pair(["resume", alone, "--steps", STEPS + 512, "--trust"]):
        status, said = end(process)
        assert status == 0, said
    assert saves.names(alone / "0" / "saves")[-1] == f"{STEPS + 512:09d}"


def shards_of(folder):
    """Return the names of the saves whose replay is in shards."""
    return sorted(path.parent.name for path in (folder / "saves").glob("*/*.orbax"))


@pytest.mark.slow
def test_each_process_saves_its_own_rows(made, tmp_path):
    """The same bits as without shards; any number of processes goes on from them, and writes either form."""
    recipe, _, two = made
    if recipe == "ppo":
        pytest.skip("it has no replay")
    folder = tmp_path / "two" / "0"
    argv = [*flags(recipe), "--save-shards", "--out", "two"]  # that of process 0, wherever the other one is
    for process in start_pair(argv, (tmp_path, tmp_path.parent)):
        status, said = end(process)
        assert status == 0, said
    names = saves.names(folder / "saves")
    assert names == saves.names(two / "saves")
    assert shards_of(folder) == names[-2:]
    for name in names[-2:]:
        saves.check(folder / "saves" / name)
        found = {
            path.parent.name for path in (folder / "saves" / name).rglob("ocdbt.process_*/manifest.ocdbt")
        }
        assert found == {"ocdbt.process_0", "ocdbt.process_1"}
    for tree in ("state", "replay", "loop", "environment"):
        for name, array in read(two, tree).items():
            np.testing.assert_array_equal(array, read(folder, tree)[name], name)
    whole = tmp_path / "whole" / "0"
    shutil.copytree(two, whole)
    goes_on = [
        (folder, 256, 1, []),
        (folder, 512, 2, []),
        (whole, 256, 2, ["--save-shards", True]),
        (whole, 512, 2, []),
    ]
    for run, more, processes, further in goes_on:
        argv = ["resume", run, "--steps", STEPS + more, "--trust", *further]
        for process in start_pair(argv) if processes == 2 else [start(argv)]:
            status, said = end(process)
            assert status == 0, said
        assert len(shards_of(run)) == (2 if processes == 2 else 0)
        saves.check(run / "saves" / saves.names(run / "saves")[-1])
    older, newest = shards_of(whole)
    for file in (whole / "saves" / newest).rglob("ocdbt.process_1/d/*"):  # that process 0 does not read
        file.unlink()
    for process in start_pair(["resume", whole, "--steps", STEPS + 768, "--trust"]):
        status, said = end(process)
        assert status == 0, said
    assert [path.name for path in (whole / "aside").iterdir()] == [older]


@pytest.mark.slow
def test_killed_processes_go_on_as_if_nothing_had_happened(made, tmp_path):
    recipe, _, two = made
    if recipe == "ppo":
        pytest.skip("the replay is what may be lost")
    folder = tmp_path / "0"
    pair = start_pair([*flags(recipe), "--out", tmp_path])
    while not all(workers := [children(process) for process in pair]):
        time.sleep(0.1)
    wait_for_save(folder, 1)
    for pid in [pid for of_one in workers for pid in of_one] + [process.pid for process in pair]:
        os.kill(pid, signal.SIGKILL)
    for process in pair:
        assert end(process)[0] == -signal.SIGKILL
    assert int(saves.names(folder / "saves")[-1]) < STEPS
    for process in start_pair(["resume", tmp_path, "--trust"]):
        status, said = end(process)
        assert status == 0, said
    for tree in ("state", "replay", "environment"):
        for name, array in read(two, tree).items():
            np.testing.assert_array_equal(array, read(folder, tree)[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_the_others_end_when_a_process_dies(dead, tmp_path):
    pair = start_pair([*flags("fast_td3", 10**6), "--save-every", 128, "--out", tmp_path])
    wait_for_save(tmp_path / "0", 2)
    (worker,) = children(pair[dead])
    os.kill(worker, signal.SIGKILL)
    statuses, said = zip(*map(end, pair), strict=True)
    assert statuses == (1, 1)
    assert f"process {dead} of 2" in said[1 - dead]
    assert "The last save stays" in said[1 - dead]
    assert "was killed (SIGKILL)" in said[dead]
    for name in saves.names(tmp_path / "0" / "saves"):
        saves.check(tmp_path / "0" / "saves" / name)


@pytest.mark.slow
def test_a_request_to_one_process_stops_all(tmp_path):
    pair = start_pair([*flags("ppo", 10**7), "--out", tmp_path])
    wait_for_save(tmp_path / "0", 1)
    pair[1].send_signal(signal.SIGINT)
    assert [end(process)[0] for process in pair] == [130, 130]
    newest = tmp_path / "0" / "saves" / saves.names(tmp_path / "0" / "saves")[-1]
    saves.check(newest)
    assert saves.read_meta(newest)["numbers"]["env_steps"] % 128 == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["ppo", *RECIPES["ppo"], "--envs", 9], "9 environments cannot be split evenly over 2 devices"),
        (["ppo", "--env", "CartPole-v1"], "--processes splits a program that holds the environments"),
        (["td7", "--env", "point:make", "--envs", 8], "which --processes does not split"),
    ],
)
def test_runs_that_cannot_be_split_are_refused_in_all(argv, says, tmp_path):
    for process in start_pair(["train", *argv, "--steps", 512, "--out", tmp_path]):
        status, said = end(process)
        assert status == 2
        assert says in said


@pytest.mark.slow
def test_a_full_disk_ends_all_and_keeps_what_was_saved(tmp_path):
    """Process 0 may write files of 300 kB only, and the replay outgrows them."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000));"
    code += "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    code += "from qscape.cli import main; sys.exit(main(sys.argv[1:]))"
    port, argv = free_port(), [*flags("fast_td3", 10**5), "--base.replay-capacity", 80_000, "--out", tmp_path]
    argv += ["--save-every", 2_048]
    command = [sys.executable, "-c", code, *map(str, argv), "--processes", f"127.0.0.1:{port},2,0"]
    pipe = subprocess.PIPE
    first = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment())
    other = start([*argv, "--processes", f"127.0.0.1:{port},2,1"])
    status, said = end(first)
    assert status == 1
    assert "earlier saves are untouched" in said
    status, said = end(other)
    assert status == 1
    assert "process 0 of 2" in said
    kept = saves.names(tmp_path / "0" / "saves")
    assert kept
    for name in kept:
        saves.check(tmp_path / "0" / "saves" / name)


# --- the roll call, in threads of one process ---------------------------------------------------------


def job(**changes):
    plan = Plan(recipe="ppo", env="jax/CartPole-v1", steps=100, **changes)
    return Job("train", Path("runs/x"), plan)


def call(numbers, jobs=None, seconds=2.0, count=2, port=None):
    """Let processes with these numbers call the roll in threads; return each one's error, or its place."""
    port = port or free_port()
    results: list[Any] = [None] * len(numbers)

    def meet(k, number):
        place = Place(f"127.0.0.1:{port}", count, number, seconds)
        try:
            with RollCall(place, (jobs or {}).get(k, job())) as met:
                results[k] = met.job.place
        except QscapeError as problem:
            results[k] = problem

    threads = [threading.Thread(target=meet, args=pair) for pair in enumerate(numbers)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    return results


def test_processes_meet_in_any_order():
    places = call([2, 0, 1], count=3, seconds=30.0)
    assert [place.number for place in places] == [2, 0, 1]
    assert len({place.address for place in places}) == 1


def test_a_process_that_never_joins_is_named():
    one, other = call([0, 2], count=4, seconds=3.0)
    assert isinstance(one, Unreachable)
    assert "processes 1, 3 of 4 have not joined within 3 seconds" in str(one)
    assert str(other) == str(one)
    (alone,) = call([1], seconds=0.5)
    assert isinstance(alone, Unreachable)
    assert "process 0 of 2 does not answer" in str(alone)


def test_processes_that_differ_are_refused(monkeypatch):
    one, other = call([0, 1], {1: job(envs=4)}, seconds=30.0)
    assert isinstance(one, Mismatch)
    assert isinstance(other, Mismatch)
    assert "envs is 4 and 1" in str(one)
    code = roll_call.origin_of_code()
    answers = iter([code, {**code, "versions": {**code["versions"], "jax": "0.1"}}])
    monkeypatch.setattr(roll_call, "origin_of_code", lambda: next(answers))
    one, other = call([0, 1], seconds=30.0)
    assert "jax is 0.1 and" in str(one)
    assert str(other) == str(one)


def test_two_processes_of_one_number_are_refused():
    results = call([0, 1, 1], count=3, seconds=30.0)
    assert all(isinstance(result, Mismatch) for result in results)
    assert "two processes say that they are process 1" in str(results[0])


def test_a_second_process_0_is_refused():
    with socket.create_server(("", 0)) as taken:
        (refused,) = call([0], port=taken.getsockname()[1])
    assert isinstance(refused, Unreachable)
    assert "cannot listen at port" in str(refused)


def test_a_stranger_at_the_port_disturbs_nobody():
    port = free_port()

    def disturb():
        time.sleep(0.3)
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(0.2)
        results.extend(call([1], port=port, seconds=30.0))

    results = []
    thread = threading.Thread(target=disturb)
    thread.start()
    (first,) = call([0], port=port, seconds=30.0)
    thread.join()
    assert first.address == results[0].address


def test_a_process_that_is_gone_is_named(monkeypatch):
    monkeypatch.setattr(roll_call, "GRACE", 0.0)
    port, gone = free_port(), threading.Event()
    thread = threading.Thread(target=die, args=(port,))
    thread.start()
    with RollCall(Place(f"127.0.0.1:{port}", 2, 0, 30.0), job()) as met:
        met.watch(gone.set)
        assert gone.wait(30.0)
        assert "process 1 of 2" in met.find_gone()
    thread.join()


def die(port):
    with pytest.raises(KeyError), RollCall(Place(f"127.0.0.1:{port}", 2, 1, 30.0), job()):
        raise KeyError


def test_a_process_that_says_farewell_is_not_missed():
    port, gone = free_port(), []
    thread = threading.Thread(target=call, args=([1],), kwargs={"port": port, "seconds": 30.0})
    thread.start()
    with RollCall(Place(f"127.0.0.1:{port}", 2, 0, 30.0), job()) as met:
        met.watch(lambda: gone.append(True))
        thread.join()
        time.sleep(0.3)
        assert not met.gone
    assert not gone


SLURM = {"SLURM_JOB_ID": "70001", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("node7", "node7"), ("node[012-015,31]", "node012"), ("a1,b[2-3]", "a1"), ("gpu-[3,5]", "gpu-3")],
)
def test_the_place_of_a_task_of_slurm(nodes, host, monkeypatch):
    for name, value in (SLURM | {"SLURM_STEP_NODELIST": nodes}).items():
        monkeypatch.setenv(name, value)
    assert read_place("slurm", 9.0) == Place(f"{host}:{61_440 + 70_001 % 4_096}", 8, 3, 9.0)


@pytest.mark.parametrize("text", ["slurm", "node1", "node1:9,2", "node1:0,2,0", "node1:9,1,0", "node1:9,2,2"])
def test_places_that_cannot_be_are_refused(text, monkeypatch):
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError) as refused:
        read_place(text, 1.0)
    assert refused.value.field == "processes"


def test_several_seeds_are_refused(capsys):
    argv = ["train", "ppo", "--env", "jax/CartPole-v1", "--seeds", "0", "1", "--processes", "x:1,2,0"]
    assert cli.main(argv) == 2
    assert "--processes splits one run" in capsys.readouterr().err
