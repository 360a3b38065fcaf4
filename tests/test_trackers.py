"""Trackers: what they are sent, that a resumed run goes on in the same one, and that none ends a run."""

import dataclasses
import sys
import types
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from tiny import settings, stop_at

from qscape.errors import RunError
from qscape.run import Plan, events, resume, trackers, train
from qscape.run import folder as folders
from qscape.run.trackers import Tracking, begin_trackers

TRACKING = Tracking("cranes", "nightly", ("smooth", "short"))


def plan():
    small = settings("td3", warmup=20)
    return Plan("td3", "Clock-v0", 60, seed=3, eval_every=30, eval_episodes=1, log_every=20, settings=small)


class Own:
    """A sink of the user, with an id."""

    made: ClassVar[list] = []

    def __init__(self, run):
        self.id, self.run, self.events, self.closed = "mine", run, [], 0
        self.made.append(self)

    def __call__(self, event):
        self.events.append(event)

    def close(self):
        self.closed += 1


class Broken(Own):
    """Loses its server at the second log line."""

    def __call__(self, event):
        if isinstance(event, events.Logged) and event.step > 20:
            raise ConnectionError("no route to\nhost")


class Unfinished(Own):
    def close(self):
        raise TimeoutError("still sending")


class Absent(Own):
    def __init__(self, run):
        raise ConnectionError("no key")


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """The module `mine`, which a user would have installed."""
    module = types.ModuleType("mine")
    vars(module).update(Own=Own, Broken=Broken, Unfinished=Unfinished, Absent=Absent)
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.setattr(Own, "made", [])


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in of the package: what `init` and `log` were called with."""
    calls = SimpleNamespace(begun=[], sent=[])
    stand_in = SimpleNamespace(
        init=lambda **given: calls.begun.append(given),
        define_metric=lambda name, step_metric: None,
        log=calls.sent.append,
        finish=lambda: calls.sent.append({"step": "end"}),
        Video=lambda file, format: (Path(file).read_bytes()[4:8], format),
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return calls


@pytest.fixture
def trackio(monkeypatch):
    """A stand-in of the package: what `init` and `log` were called with."""
    calls = SimpleNamespace(begun=[], sent=[])

    def log(metrics, step=None):
        assert "step" not in metrics, "which trackio renames"
        calls.sent.append((step, metrics))

    stand_in = SimpleNamespace(init=lambda **given: calls.begun.append(given), log=log, finish=lambda: None)
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    return calls


@pytest.fixture
def mlflow(monkeypatch):
    """A stand-in of the package: the calls of its client."""
    calls = []

    class Client:
        def create_run(self, experiment_id, run_name, tags):
            calls.append(("create", experiment_id, tags))
            return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

        def update_run(self, run_id, status):
            calls.append(("update", run_id, status))

        def log_batch(self, run_id, metrics=(), params=()):
            calls.append(("log", run_id, {m[0]: m[3] for m in metrics}, dict(params)))

        def set_terminated(self, run_id):
            calls.append(("end", run_id))

    stand_in = SimpleNamespace(
        MlflowClient=Client, set_experiment=lambda name: SimpleNamespace(experiment_id=f"e-{name}")
    )
    entities = SimpleNamespace(Metric=lambda *of: of, Param=lambda *of: of)
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return calls


def test_a_tracker_that_fails_says_so_once_and_ids_come_back(tmp_path, wandb, mlflow):
    """Without a run: its events, twice."""
    names = ["wandb", "mlflow", "mine:Own", "mine:Absent", "mine:Broken"]
    record = {"label": "td3", "seed": 3, "env": "a/b:Clock-v0"}
    told = []
    for _ in range(2):
        trackers, record = begin_trackers(names, tmp_path, record)
        for tracker in trackers:
            for step in (20, 40, 60):
                tracker(events.Logged(step, 0, {"loss": 0.5}))
            told += tracker.take_warnings()
            tracker.close()
    assert [sentence.split(" (")[0] for sentence in told] == [
        "--log mine:Absent cannot begin",
        "--log mine:Broken failed",
    ] * 2
    one, other = wandb.begun
    assert one["id"] == other["id"] == record["tracking"]["ids"]["wandb"]
    assert (one["project"], one["group"], one["name"]) == ("qscape-a-b-Clock-v0", "td3", "td3/3")
    assert wandb.sent[:2] == [{"train/loss": 0.5, "step": 20}, {"train/loss": 0.5, "step": 40}]
    assert [call[:2] for call in mlflow if call[0] in ("create", "update")] == [
        ("create", "e-qscape-a-b-Clock-v0"),
        ("update", "r1"),
    ]
    assert [sink.run.id for sink in Own.made if type(sink) is Own] == ["", "mine"]


def test_trackio_finds_a_run_again_among_others_of_its_label(tmp_path, trackio):
    record = {"label": "td3", "seed": 3, "env": "Clock-v0"}

    def begin(of):
        (tracker,), begun = begin_trackers(["trackio"], tmp_path, of)
        tracker(events.Logged(20, 0, {"loss": 0.5}))
        return begun

    begin(begin(record))
    begin(record)
    assert [begun["resume"] for begun in trackio.begun] == ["never", "allow", "never"]
    one, same, another = (begun["name"] for begun in trackio.begun)
    assert one == same != another
    assert one.startswith("td3/3-")
    assert trackio.sent == [(20, {"train/loss": 0.5})] * 3


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_runs_and_no_tracker_ends_it(tmp_path, wandb, mlflow):
    good, bad = ["mine:Own", "wandb", "mlflow"], ["mine:Absent", "mine:Broken", "mine:Unfinished"]
    with pytest.warns(UserWarning, match=r"Unfinished could not finish \(TimeoutError: still sending\)"):
        first = [*train(plan(), tmp_path, trackers=good + bad, tracking=TRACKING, on_trainer=stop_at(40))]
    told = [line for event in first if isinstance(event, events.Logged) for line in event.warnings]
    assert told == [
        "--log mine:Absent cannot begin (ConnectionError: no key): the run goes on without it.",
        "--log mine:Broken failed (ConnectionError: no route to host): the run goes on without it.",
    ]
    record = folders.read_record(tmp_path)
    assert record["tracking"]["ids"] == {
        "mine:Own": "mine",
        "wandb": wandb.begun[0]["id"],
        "mlflow": "r1",
    } | (dict.fromkeys(["mine:Broken", "mine:Unfinished"], "mine"))
    record["tracking"]["ids"]["antigravity:Sink"] = "x"  # a file makes qscape import no module
    folders.write_record(tmp_path, record)
    begun, *_ = Own.made
    Own.made.clear()
    second = [*resume(tmp_path, trackers=good)]
    assert "antigravity" not in sys.modules
    assert not folders.unfinished(tmp_path)

    (again,) = Own.made
    assert [type(e) for e in begun.events + again.events] == [type(e) for e in first + second]
    assert (begun.closed, again.closed, begun.run.id, again.run.id) == (1, 1, "", "mine")
    assert begun.run[:5] == again.run[:5]  # all but run.json and the id
    assert begun.run.name.endswith("/3")
    assert (begun.run.project, begun.run.group, begun.run.tags) == ("cranes", "nightly", ("smooth", "short"))

    one, other = wandb.begun
    assert one["id"] == other["id"]
    assert one["resume"] == other["resume"] == "allow"
    assert (one["project"], one["group"], one["tags"]) == ("cranes", "nightly", ["smooth", "short"])
    assert [s["step"] for s in wandb.sent if len(s) == 1 or "train/critic_loss" in s] == [
        40,
        "end",
        60,
        "end",
    ]
    assert [s["step"] for s in wandb.sent if "evaluation/return_current" in s] == [0, 30, 60]

    assert [call for call in mlflow if call[0] != "log"] == [
        ("create", "e-cranes", {"group": "nightly", "smooth": "true", "short": "true"}),
        ("end", "r1"),
        ("update", "r1", "RUNNING"),
        ("end", "r1"),
    ]
    sent = [call for call in mlflow if call[0] == "log"]
    assert {name: value for call in sent for name, value in call[3].items()}[
        "settings.base.batch_size"
    ] == "16"
    name = "evaluation/return_current"
    assert [call[2][name] for call in sent if name in call[2]] == [0, 30, 60]

    folders.write_record(tmp_path, record | {"tracking": {"ids": [1]}})
    with pytest.raises(RunError, match=r"run.json cannot be read"):
        folders.read_record(tmp_path)


@pytest.mark.slow
def test_videos_are_sent_after_saves(tmp_path, wandb):
    pace = {"eval_every": 0, "save_every": 30, "milestones": 1.0}
    short = Plan("td3", "Pendulum-v1", 30, settings=settings("td3", warmup=20), **pace)
    list(train(short, tmp_path / "a", trackers=["wandb"], tracking=Tracking(videos=True)))
    assert [sent for sent in wandb.sent if "video" in sent] == [{"video": (b"ftyp", "mp4"), "step": 30}]
    wandb.sent.clear()
    unseen = dataclasses.replace(plan(), save_every=20, milestones=1.0)  # that environment has no pictures
    seen = list(train(unseen, tmp_path / "b", trackers=["wandb"], tracking=Tracking(videos=True)))
    assert not [sent for sent in wandb.sent if "video" in sent]
    told = [line for event in seen if isinstance(event, events.Logged) for line in event.warnings]
    assert len(told) == 1
    assert told[0].startswith("--log-videos: no video can be made, so none is sent (qscape: ")


def test_a_video_that_takes_for_ever_ends_no_run(tmp_path, wandb, monkeypatch):
    monkeypatch.setattr(trackers, "FILMING", 0.01)
    often = dataclasses.replace(plan(), save_every=20)
    seen = [*train(often, tmp_path / "run", trackers=["wandb"], tracking=Tracking(videos=True))]
    assert isinstance(seen[-1], events.Ended)
    told = [line for event in seen if isinstance(event, events.Logged) for line in event.warnings]
    assert told == ["--log-videos: no video can be made, so none is sent (it took more than 0.01 seconds)."]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_packages_themselves(name, tmp_path, monkeypatch):
    """W&B offline and MLflow in a folder, where they are installed."""
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = tmp_path / "run"
    seen = [*train(plan(), run, trackers=[name], tracking=TRACKING, on_trainer=stop_at(40))]
    seen += resume(run, trackers=[name])
    assert not [e for e in seen if isinstance(e, events.Logged) and e.warnings]
    assert not [note for e in seen if isinstance(e, events.Started) for note in e.notes if "--log" in note]
    known = folders.read_record(run)["tracking"]["ids"][name]
    if name == "wandb":
        found = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
        assert len(found) == 2
        assert all(path.endswith(f"-{known}") for path in found)
    else:
        client = import_module("mlflow").MlflowClient()
        steps = [m.step for m in client.get_metric_history(known, "evaluation/return_current")]
        assert steps == [0, 30, 60]
        assert client.get_run(known).info.status == "FINISHED"
