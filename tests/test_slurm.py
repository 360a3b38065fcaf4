"""Studies as SLURM jobs, with submitit's local executor: what comes back, what is stopped, what is lost."""

import json
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest
from test_cluster import start
from tiny import assert_same_run, environment, settings

from qscape.errors import UsageError
from qscape.jobs import slurm
from qscape.jobs.pool import LocalWorker
from qscape.jobs.study import read_study
from qscape.jobs.worker import Job
from qscape.run import Plan, saves, train
from qscape.run import folder as folders

COMMAND = [
    "-m",
    "qscape",
    "study",
    "run",
    "tiny.toml",
    "--trust",
    "--slurm",
    "--slurm-args",
    "cluster=local",
]


def wait_for(process, condition):
    until = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_study_of_slurm_jobs_is_stopped_and_goes_on_to_the_bit(tmp_path):
    pytest.importorskip("submitit", reason="the extra slurm is missing")
    where = tmp_path / "slurm"
    process = start(where, *COMMAND)
    wait_for(process, lambda: any((where / "runs").rglob("save.json")))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "--slurm --slurm-args cluster=local" in out
    for run in (where / "runs").rglob("run.json"):
        assert folders.unfinished(run.parent)
    done = subprocess.run(
        [sys.executable, *COMMAND], cwd=where, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert "2 done of 2 runs" in done.stdout, done.stdout + done.stderr
    assert not [path for path in (where / "runs/tiny/slurm").iterdir() if path.is_dir()]
    (row, _) = read_study(where / "tiny.toml", runs=where / "runs").rows
    list(train(row.plan, tmp_path / "calm"))
    assert_same_run(tmp_path / "calm", row.folder)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["time", "wish", "gone"])
def test_a_node_saves_when_slurm_or_the_head_wants_it_back(how, tmp_path):
    """Before its time limit, when the head asks, and when the head is gone."""
    run, place = tmp_path / "run", tmp_path / "place"
    place.mkdir()
    plan = Plan(
        "td3", "tiny:Clock-v0", 10**6, eval_every=0, save_every=100, settings=settings("td3", warmup=20)
    )
    data = json.dumps(Job("train", run, plan).to_json() | {"trusted": ["tiny:Clock-v0"]})
    code = (
        f"import sys, json; from qscape.jobs import slurm; slurm.PATIENCE = {5 if how == 'gone' else 600}; "
    )
    code += "slurm.work(json.loads(sys.argv[1]), sys.argv[2])"
    process = subprocess.Popen([sys.executable, "-c", code, data, str(place)], env=environment())
    wait_for(process, lambda: (place / "alive").touch() or saves.names(run / "saves"))
    if how == "time":
        process.send_signal(signal.SIGUSR2)
    elif how == "wish":
        (place / "wish").write_text("stop")
    assert process.wait(60) == 0
    lines = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    assert lines.pop() == slurm.END
    if how == "time":
        assert lines.pop() == {
            "kind": "Failed",
            "why": "its SLURM job was told to leave; the run has saved",
            "lost": True,
        }
    assert [line["kind"] for line in lines[-2:]] == ["Saved", "Ended"]
    assert lines[-1]["interrupted"]


def test_a_node_records_the_command_that_the_user_typed(tmp_path, monkeypatch):
    """Not that of submitit or Ray, by which the job came there."""
    monkeypatch.delenv("QSCAPE_COMMAND", raising=False)
    monkeypatch.setattr(sys, "argv", ["qscape", "study", "run", "my study.toml"])
    data = json.loads(json.dumps(Job("train", tmp_path).to_json()))
    monkeypatch.setattr(sys, "argv", ["submitit", "_submit"])
    begin = Mock()
    monkeypatch.setattr(subprocess, "Popen", begin)
    LocalWorker(Job.from_json(data))
    assert begin.call_args.kwargs["env"]["QSCAPE_COMMAND"] == "qscape study run 'my study.toml'"


class Submitted:
    """A SLURM job of a stand-in."""

    job_id, state, cancelled = "77", "NODE_FAIL", 0

    def __init__(self, over):
        self.over = over

    def done(self):
        return self.over

    def cancel(self, check):
        self.cancelled, self.over = 1, True


def worker(tmp_path, submit):
    executor = type("Executor", (), {"submit": lambda self, *of: submit()})()
    cluster = type("Cluster", (), {"folder": tmp_path / "slurm", "executor": executor})()
    return slurm.SlurmWorker(cluster, Job("train", tmp_path / "run"))


def test_a_lost_job_is_continued_and_a_refused_one_is_not(tmp_path, monkeypatch):
    lost = worker(tmp_path, lambda: Submitted(True))
    (lost.place / "events.jsonl").write_text('{"kind": "Started"}\n{"kind": "Sav')
    begun, failed = lost.events()
    assert begun == {"kind": "Started"}
    assert failed["lost"]
    assert "its SLURM job 77 ended (NODE_FAIL)" in failed["why"]

    def refuse():
        raise OSError("sbatch: error: invalid partition")

    (failed,) = worker(tmp_path, refuse).events()
    assert failed == {
        "kind": "Failed",
        "why": "SLURM did not take it (OSError: sbatch: error: invalid partition)",
    }
    waiting = worker(tmp_path, lambda: Submitted(False))
    waiting.stop()  # it waits for a core
    assert waiting.job.cancelled
    assert [*waiting.events()] == []


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        with pytest.raises(UsageError, match=r'pip install "qscape\[slurm\]"'):
            slurm.Slurm(tmp_path)
    pytest.importorskip("submitit", reason="the extra slurm is missing")
    with pytest.raises(UsageError, match="--slurm-args partition is no name=value pair"):
        slurm.Slurm(tmp_path, args=["partition"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no sbatch here"):
        slurm.Slurm(tmp_path)
    for name in ("sbatch", "srun"):  # as on a cluster
        (tmp_path / name).touch(0o755)
    assert slurm.Slurm(tmp_path, args=["partition=cpu", "mem=4GB"]).executor.parameters == {
        "time": 240,
        "cpus_per_task": 1,
        "job_name": "qscape",
        "partition": "cpu",
        "mem": "4GB",
    }
    with pytest.raises(UsageError, match=r"--slurm-args cannot be used .*nonsense"):
        slurm.Slurm(tmp_path, args=["nonsense=1"])
