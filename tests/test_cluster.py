"""Studies on a local Ray: what a killed worker costs, what comes back, and who may listen."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import SIZES, assert_same_run, environment

from qscape.errors import RunError, UsageError
from qscape.jobs import parcel as parcels
from qscape.jobs.cluster import Cluster
from qscape.jobs.parcel import Packer, unpack
from qscape.jobs.study import read_study
from qscape.run import Plan, saves, train

SMALL = ", ".join(f"{name} = {[*v] if isinstance(v, tuple) else v}" for name, v in SIZES.items())
TEXT = f"""\
[budgets.full]
steps = 3_000
seeds = 2
eval_every = 1_000
eval_episodes = 2
save_every = 250

[[agents]]
recipe = "td3"
base = {{ warmup = 50, {SMALL} }}

[[environments]]
id = "tiny:Clock-v0"
"""
OWN_TOKEN = {
    "RAY_AUTH_TOKEN": "only-for-this-test-0123456789abcdef"
}  # else Ray writes one into the home folder
APART = """
import sys
from pathlib import Path
from qscape.jobs.cluster import Cluster
from qscape.jobs.pool import Pool
from qscape.jobs.progress import StudyProgress
from qscape.jobs.study import read_study
from qscape.trusted import trust

trust("tiny:Clock-v0")
progress = StudyProgress(read_study(Path("tiny.toml")))
folder = progress.study.folder
folder.mkdir(parents=True)
with Cluster("auto", folder, 2) as cluster:
    cluster.marker.unlink()  # as on a machine that does not see this disk
    for k, told in Pool(progress.jobs(), cluster.workers, cluster.start).events():
        progress.runs[k].take(told)
print(*[s.state for s in progress.runs])
"""


def start(where, *command):
    """A process of its own session in a folder with the study."""
    where.mkdir()
    (where / "tiny.toml").write_text(TEXT)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=where,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment()
        | OWN_TOKEN
        | {"TMPDIR": str(where), "RAY_TMPDIR": "/tmp"},  # its sockets need short paths
        start_new_session=True,
    )


def ended(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


@pytest.fixture(scope="module")
def ray():
    """A machine on which Ray starts at all; some containers refuse it what it needs."""
    pytest.importorskip("ray", reason="the extra cluster is missing")
    code = "import ray; ray.init(_node_ip_address='127.0.0.1', include_dashboard=False, num_cpus=1)"
    try:
        command = [sys.executable, "-c", code]
        subprocess.run(command, env=os.environ | OWN_TOKEN, timeout=180, capture_output=True, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as problem:
        pytest.skip(f"Ray itself does not start here: {problem}")


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The runs of an undisturbed study without Ray."""
    where = tmp_path_factory.mktemp("cluster") / "calm"
    ended(start(where, "-m", "qscape", "study", "run", "tiny.toml", "--trust"))
    return [row.folder for row in read_study(where / "tiny.toml", runs=where / "runs").rows]


def assert_equal(calm, runs):
    for one in calm:
        assert_same_run(one, runs / one.relative_to(one.parents[3]))


def below(pid):
    """All processes below one that we started: pid and command line."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = {}, [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            waiting.append(child)
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    return found


def kill_one_actor(process, runs):
    """kill -9 of one Ray worker of a study, once every run has a save; returns all processes of the study."""
    until = time.monotonic() + 240
    while len({save.parents[2] for save in runs.rglob("save.json")}) < 2:
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    family = below(process.pid)
    actors = [pid for pid, command in family.items() if command.startswith("ray::Remote")]
    assert len(actors) == 2
    os.kill(actors[0], signal.SIGKILL)
    return family


def listening(family):
    """Local addresses on which processes listen, as the kernel writes them."""
    sockets = set()
    for pid in family:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link)):
                    sockets.add(found[1])
            except OSError:
                continue
    rows = [x.split() for v in ("tcp", "tcp6") for x in Path(f"/proc/net/{v}").read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets]


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_on_a_shared_disk(ray, calm, tmp_path):
    where = tmp_path / "shared"
    command = ["-m", "qscape", "study", "run", "tiny.toml", "--trust", "--ray", "auto", "--workers", "2"]
    process = start(where, *command)
    family = kill_one_actor(process, where / "runs")
    addresses = listening(family)
    out = ended(process)
    assert "lost its worker (ActorDiedError); to be continued" in out or "another process trains" in out
    assert "2 done of 2 runs" in out
    assert_equal(calm, where / "runs")
    assert addresses
    assert set(addresses) <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1
    assert not [p for p in (where / "runs/tiny").iterdir() if p.name.startswith(".seen")]
    assert not any(Path(f"/proc/{pid}").exists() for pid, name in family.items() if "raylet" in name)


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_worker_costs_nothing_where_files_are_sent(ray, calm, tmp_path):
    where = tmp_path / "apart"
    process = start(where, "-c", APART)
    kill_one_actor(process, where / "runs")
    assert ended(process).splitlines()[-1] == "done done"  # Ray says something before
    assert_equal(calm, where / "runs")


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_addresses_that_do_not_answer(ray, tmp_path):
    with pytest.raises(UsageError, match="--ray somewhere is not an address; give HOST:PORT, or auto"):
        Cluster("somewhere", tmp_path)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(RunError, match=r"does not answer as a Ray cluster .*Connection refused"):
            Cluster(f"127.0.0.1:{port}", tmp_path)
        closed.listen()  # and says nothing
        begun = time.monotonic()
        with pytest.raises(RunError, match=f"127.0.0.1:{port} does not answer as a Ray cluster"):
            Cluster(f"127.0.0.1:{port}", tmp_path)
        assert time.monotonic() - begun < 20
    assert not [*tmp_path.iterdir()]


def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'pip install "qscape\[cluster\]"'):
        Cluster("auto", tmp_path)


# --- parcels -------------------------------------------------------------------------------------------


def files(folder):
    found = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found if not p.name.startswith(".")}


def test_parcels_carry_what_changed(tmp_path):
    here, there = tmp_path / "here" / "run", tmp_path / "there"
    plan = Plan(
        "td3", "tiny:Clock-v0", 200, settings={"base": SIZES | {"warmup": 20}}, save_every=50, eval_every=0,
        milestones=1.0,
    )  # fmt: skip
    packer, sent, old = Packer(here), [], set()
    for event in train(plan, here):
        if type(event).__name__ == "Saved":
            parcel = packer.pack()
            unpack(parcel, there)
            assert files(there) == files(here)
            newest = saves.names(there / "saves")[-1]
            assert "replay" in saves.tree_names(there / "saves" / newest)
            sent.append({n for n in parcel.files if n.endswith("acting.npz")})
            assert not sent[-1] & old  # once each
            old |= sent[-1]
    unpack(packer.pack(), there)
    assert files(there) == files(here)
    assert len(saves.names(there / "saves")) == 2
    assert not packer.pack().files


@pytest.mark.slow
def test_a_parcel_that_is_cut_off_leaves_a_run_to_go_on_with(tmp_path, monkeypatch):
    """Whichever file is the last one written: every folder under saves is a whole save or hidden."""
    here = tmp_path / "here"
    plan = Plan("td3", "tiny:Clock-v0", 100, settings={"base": SIZES | {"warmup": 20}}, eval_every=0)
    *_, _ = train(plan, here)
    parcel = Packer(here).pack()
    write = parcels.write_whole
    for last in range(len(parcel.files)):
        there, left = tmp_path / f"there{last}", iter([True] * last)

        def cut(path, data, left=left):
            if not next(left, False):
                raise OSError("cut off")
            return write(path, data)

        monkeypatch.setattr(parcels, "write_whole", cut)
        with pytest.raises(OSError, match="cut off"):
            unpack(parcel, there)
        shown = [p for p in (there / "saves").glob("*") if not p.name.startswith(".")]
        assert all((p / "save.json").exists() for p in shown)
        monkeypatch.setattr(parcels, "write_whole", write)
        unpack(parcel, there)
        assert files(there) == files(here)
