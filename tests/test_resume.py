"""An interrupted run that goes on ends as if it had never stopped: every array, number and line of it."""

import contextlib
import dataclasses
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rows import long, slow
from tiny import (
    arrays,
    assert_same_run,
    evaluations,
    flags,
    metrics,
    numbers,
    python,
    settings,
    start,
    stop_at,
)

import qscape as qs
from qscape.cli import main as qscape
from qscape.errors import RunError, UsageError
from qscape.replay import storage
from qscape.run import Plan, resume, saves, train
from qscape.run import events as ev
from qscape.run import folder as folders


def whole(plan: Plan, folder: Path) -> list[ev.RunEvent]:
    return list(train(plan, folder))


def interrupted(plan: Plan, folder: Path, steps: int, where: str = "step") -> None:
    """Begin a run, or go on with it, and stop it there; `where` "": at its first save."""
    hold = stop_at(steps, where) if where else stop_at_save
    *_, end = resume(folder, on_trainer=hold) if folder.exists() else train(plan, folder, on_trainer=hold)
    assert isinstance(end, ev.Ended)
    assert end.interrupted


def stop_at_save(trainer: Any) -> None:
    saver = trainer.seeds[0].saver

    def stopping(*args: Any) -> Path:
        trainer.stop()
        return saver(*args)

    trainer.seeds[0].saver = stopping


PENDULUM = Plan(  # one burst of 400 updates after step 600, across the synchronisation at 250
    "td7",
    "Pendulum-v1",
    700,
    settings=settings("td7", warmup=100) | {"checkpoints": {"early_episodes": 2}},
    eval_every=250,
    eval_episodes=2,
    log_every=37,
    save_every=190,
)
CHEETAH = Plan(  # a replay that is overwritten; synchronisation at step 300, an episode's end every 100
    "td3+sale+lap",
    "HalfCheetah-v5",
    370,
    env_args={"max_episode_steps": 100},
    settings=settings("td3+sale+lap", warmup=50, replay_capacity=200, next_observation="derived"),
    eval_every=150,
    eval_episodes=2,
    log_every=37,
    save_every=100,
)
LAP = settings("td3+lap", warmup=50, replay_capacity=200, next_observation="derived")
SIMPLER = dataclasses.replace(CHEETAH, recipe="td3+lap+reward_scale", settings=LAP)  # no embeddings
HALF = dataclasses.replace(
    SIMPLER,
    env="Pendulum-v1",
    env_args={"max_episode_steps": 100},
    settings={"base": {**LAP["base"], "replay_observations": "bfloat16"}},
)
VECTOR = Plan(
    "sac+normalise",
    "Pendulum-v1",
    300,
    envs=3,
    env_args={"max_episode_steps": 30},
    settings=settings("sac+normalise", warmup=60, n_step=3),
    eval_every=110,
    eval_episodes=2,
    log_every=37,
    save_every=100,
)
FAST = dataclasses.replace(  # noise of its own for each environment
    VECTOR, recipe="fast_td3", settings=settings("fast_td3", warmup=20, updates_per_step=4)
)
CLOCK = Plan(
    "td3",
    "tiny:Clock-v0",
    300,
    settings=settings("td3", warmup=50),
    eval_every=100,
    eval_episodes=2,
    log_every=50,
    save_every=60,
)


CARTPOLE = Plan(
    "dqn+lap",
    "CartPole-v1",
    300,
    settings=settings("dqn+lap", warmup=50, updates_per_step=1.0),
    eval_every=110,
    eval_episodes=2,
    log_every=37,
    save_every=100,
)


@pytest.mark.parametrize(
    ("plan", "stops"),
    [
        slow(PENDULUM, [(333, "step"), (600, "learn")]),
        slow(CHEETAH, [(149, "step"), (299, "step")]),  # in an episode, and at the end of one
        (SIMPLER, [(149, "step"), (299, "step")]),
        (HALF, [(299, "step")]),
        slow(VECTOR, [(180, "step")]),  # between an episode's end and the log line that tells of it
        slow(FAST, [(200, "step")]),
        (CARTPOLE, [(180, "step")]),
    ],
    ids=[
        "pendulum-td7",
        "cheetah-td3+sale+lap",
        "cheetah-td3+lap+reward_scale",
        "pendulum-bfloat16",
        "vector-sac+normalise",
        "vector-fast_td3",
        "cartpole-dqn+lap",
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(plan, stops, tmp_path):
    one, other = tmp_path / "whole", tmp_path / "resumed"
    end = whole(plan, one)[-1]
    assert isinstance(end, ev.Ended)
    assert end.updates >= 240
    assert not end.interrupted
    for steps, where in stops:
        interrupted(plan, other, steps, where)
        if where == "learn":
            assert (numbers(other)["pending"], numbers(other)["chosen"]) == (392, False)  # after one call
    list(resume(other))
    assert_same_run(one, other)


@pytest.mark.slow
def test_the_burst_that_ends_a_run_may_be_interrupted_too(tmp_path):
    """No environment step is left then, but updates, an evaluation and a log line are."""
    one, other = tmp_path / "whole", tmp_path / "resumed"
    steps = 330  # learning begins after the first episode of 30; then ten are assessed
    small = settings("td3+checkpoints", warmup=20) | {"checkpoints": {"early_episodes": 10}}
    plan = Plan("td3+checkpoints", "tiny:Clock-v0", steps, settings=small, eval_every=200, eval_episodes=2)
    whole(plan, one)
    assert numbers(one)["updates"] == 300
    interrupted(plan, other, steps, "learn")
    assert (numbers(other)["updates"], numbers(other)["env_steps"]) == (8, steps)
    list(resume(other))
    assert_same_run(one, other)
    with pytest.raises(UsageError, match="has made its 330 steps"):
        list(resume(other))


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("resume") / "clock"
    whole(CLOCK, folder)
    return folder


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    """The same, stopped at step 170; copy it before you write to it."""
    folder = tmp_path_factory.mktemp("resume") / "clock"
    interrupted(CLOCK, folder, 170)
    return folder


def test_what_was_written_after_the_last_save_is_made_again(clock, broken_off, tmp_path):
    """As after kill -9: lines beyond the newest save, and half a line."""
    folder = shutil.copytree(broken_off, tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 200, "updates": 1}\n{"step": 25')
    with (folder / "evaluations.csv").open("a") as file:
        file.write("200,current,0,1.0,30,,0.1\n200,curr")
    list(resume(folder))
    assert_same_run(folder, clock)


def test_a_run_cannot_be_made_shorter_than_it_is(broken_off, tmp_path):
    folder = shutil.copytree(broken_off, tmp_path / "a run")
    with pytest.raises(UsageError, match=r"has made 171 of 300 steps; continue: qscape resume '.*/a run'\."):
        list(resume(folder, steps=100))
    assert json.loads((folder / "run.json").read_text())["steps"] == 300


def test_one_save_is_one_replay(clock, tmp_path):
    whole(dataclasses.replace(CLOCK, keep_saves=1), tmp_path / "run")
    kept = [
        name for name in saves.names(tmp_path / "run" / "saves") if "replay" in trees(tmp_path / "run", name)
    ]
    assert kept == ["000000300"]


def test_a_run_in_a_run_is_refused(clock, tmp_path):
    folder = shutil.copytree(clock, tmp_path / "run")
    for place in (folder / "0", folder / "again" / "0"):
        with pytest.raises(UsageError, match="run is a run itself, and no folder of runs; choose another --"):
            list(train(CLOCK, place))


def test_a_stop_before_the_first_step_leaves_a_milestone_one(tmp_path):
    folder = tmp_path / "run"
    events = train(CLOCK, folder)
    while not isinstance(next(events), ev.Saved):
        pass
    events.close()  # as killed behind its first save, at a tenth of the run
    (name,) = saves.names(folder / "saves")
    assert saves.read_meta(folder / "saves" / name)["milestone"]
    list(resume(folder, on_trainer=lambda trainer: trainer.stop()))
    assert saves.names(folder / "saves") == [name]
    assert saves.read_meta(folder / "saves" / name)["milestone"]


def test_a_damaged_older_save_ends_no_healthy_run(broken_off, tmp_path, clock):
    folder = shutil.copytree(broken_off, tmp_path / "run")
    oldest = saves.names(folder / "saves")[0]
    assert oldest != saves.names(folder / "saves")[-1]
    (folder / "saves" / oldest / "save.json").write_text("{")
    list(resume(folder))
    assert arrays(folder) == arrays(clock)
    assert (folder / "saves" / oldest / "save.json").read_text() == "{"  # it may have been one to keep


@pytest.mark.parametrize("derived", [False, slow(True)])
def test_episodes_that_cannot_be_taken_on_are_cut_in_the_replay(derived, tmp_path, monkeypatch):
    """As in environments of Box2D: what follows the newest row is no successor of it."""
    next_observation = "derived" if derived else "stored"
    small = settings("td3", warmup=30, next_observation=next_observation)
    folder = tmp_path / "run"
    interrupted(Plan("td3", "tiny:Clock-v0", 200, settings=small, eval_every=0), folder, 70)

    def restore(adapter, shot):
        adapter.reset()
        return "the environment could not be put back"

    monkeypatch.setattr(folders.snapshot, "restore", restore)
    seen = {}

    def keep(trainer):
        seen["trainer"] = trainer

    list(resume(folder, on_trainer=keep))
    trainer = seen["trainer"]
    layout, ends = trainer.learner.layout, []
    rows, size = np.asarray(trainer.learner.storage), int(trainer.learner.carry.replay_state.size[0])
    columns = layout.slices
    for at in range(size - 1):
        row = {name: rows[at, where] for name, where in columns.items()}
        if derived and not row["valid"][0]:
            continue
        after = rows[at + 1, columns["observation"]] if derived else row["next_observation"]
        moved = after - row["observation"]
        assert np.array_equal(moved, [0, 0, 1]), f"row {at} leads from one episode into another"
        ends.append(row["terminated"][0] + row["truncated"][0])
    made = [row for row in range(size) if not derived or rows[row, columns["valid"]][0]]
    assert len(made) == 200
    assert ends[70] == 1.0, "cut where the save was made"


@pytest.mark.slow
def test_a_run_from_another_one_that_has_no_save_yet_begins_from_it_again(clock, tmp_path):
    folder = tmp_path / "tuned"
    plan = dataclasses.replace(CLOCK, start=str(clock), steps=60)
    whole(plan, tmp_path / "whole")
    events = train(plan, folder)
    next(events)
    events.close()  # as killed before its first save
    shutil.rmtree(folder / "saves", ignore_errors=True)
    list(resume(folder))
    assert arrays(folder) == arrays(tmp_path / "whole")


def test_a_run_can_be_made_longer(clock, tmp_path):
    folder = tmp_path / "run"
    whole(dataclasses.replace(CLOCK, steps=200), folder)
    with pytest.raises(UsageError, match=r"has made its 200 steps.*--steps 400"):
        list(resume(folder))
    list(resume(folder, steps=300))
    assert arrays(folder) == arrays(clock)
    assert evaluations(folder) == evaluations(clock)
    assert metrics(folder) == metrics(clock)


@pytest.mark.slow
def test_a_run_without_a_save_starts_again(clock, tmp_path):
    folder = tmp_path / "run"
    events = train(CLOCK, folder)
    while not isinstance(next(events), ev.Evaluated):
        pass
    events.close()  # dies before the first save
    assert not (folder / "saves").exists()
    started, *_ = resume(folder)
    assert isinstance(started, ev.Started)
    assert "there is no save yet: the run starts again" in started.notes
    assert_same_run(folder, clock)


def test_another_number_of_threads_is_said(broken_off, tmp_path, monkeypatch):
    folder = shutil.copytree(broken_off, tmp_path / "run")
    monkeypatch.setenv("NPROC", "7")  # jax has read it long ago
    started = next(iter(resume(folder)))
    assert isinstance(started, ev.Started)
    assert any("NPROC=7: the last digits may differ" in note for note in started.notes)


def test_another_version_or_machine_is_said(broken_off, tmp_path):
    folder = shutil.copytree(broken_off, tmp_path / "run")
    assert not [note for note in notes_of(folder) if "since the run began" in note]
    record = folders.read_record(folder)
    record["versions"]["mujoco"], record["machine"]["device"] = "3.0.0", "abacus"
    folders.write_record(folder, record)
    (note,) = [note for note in notes_of(folder) if "since the run began" in note]
    assert "mujoco was 3.0.0 and is " in note
    assert "device was abacus and is cpu: numbers may differ" in note


def test_a_request_to_stop_before_the_first_step_counts(broken_off, tmp_path):
    folder = shutil.copytree(broken_off, tmp_path / "run")
    *_, end = resume(folder, on_trainer=lambda trainer: trainer.stop())
    assert isinstance(end, ev.Ended)
    assert (end.step, end.interrupted) == (171, True)


# --- memory ---------------------------------------------------------------------------------------------

CAPACITY = 1_237  # of no other replay here
ODD = dataclasses.replace(CLOCK, settings=settings("td3", warmup=50, replay_capacity=CAPACITY))


def taken() -> bool:
    """Is there a replay of that size?"""
    gc.collect()
    return any(CAPACITY in x.shape for x in jax.live_arrays())


@pytest.mark.slow
def test_the_memory_of_a_replay_is_told_before_it_is_taken(tmp_path):
    for begin in partial(train, ODD, tmp_path / "run"), partial(resume, tmp_path / "run", 500):
        held = []
        events = begin(on_trainer=held.append)
        started = next(events)
        assert isinstance(started, ev.Started)
        assert "replay: 1,237 transitions, 0.00 GiB" in started.notes
        assert not taken()
        rest = [next(events)]
        while isinstance(rest[-1], ev.Progressed) and rest[-1].step == started.step:
            rest.append(next(events))  # on a busy machine the first program takes more than a second
        assert taken()
        at = held[0].learner.storage.unsafe_buffer_pointer()
        rest += events
        assert sum(isinstance(event, ev.Saved) for event in rest) > 2
        assert held[0].learner.storage.unsafe_buffer_pointer() == at, (
            "the insert after a save copied the replay"
        )


def test_a_replay_that_does_not_fit_is_refused_before_anything_is_made(broken_off, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_available_bytes", lambda: 1_000)
    folder = shutil.copytree(broken_off, tmp_path / "run")
    for events in train(ODD, tmp_path / "new"), resume(folder):
        with pytest.raises(RunError, match=r"GiB are available; use --base.replay-capacity below"):
            next(events)
    assert not (tmp_path / "new").exists()


def test_a_container_has_less_memory_than_its_machine(tmp_path):
    for name, value in (("max", "5000"), ("current", "4000"), ("stat", "anon 1000\ninactive_file 700")):
        (tmp_path / f"memory.{name}").write_text(f"{value}\n")
    assert storage._container_bytes_left(tmp_path) == [1_700]
    (tmp_path / "memory.max").write_text("max\n")
    assert storage._container_bytes_left(tmp_path) == storage._container_bytes_left(tmp_path / "none") == []


def test_a_model_saved_over_the_run_that_it_came_from_keeps_its_replay(broken_off, tmp_path):
    """Its rows are read when they are needed: by then their file is gone."""
    folder = shutil.copytree(broken_off, tmp_path / "run")
    before = arrays(folder)
    qs.load(folder).save(folder)
    assert arrays(folder) == before


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are not known here")
def test_a_resumed_run_does_not_hold_the_file_of_its_replay(broken_off, tmp_path):
    """A deleted file that is open keeps its space on the disk; on NFS its folder cannot be deleted."""
    folder = shutil.copytree(broken_off, tmp_path / "run")
    saved = next(event for event in resume(folder) if isinstance(event, ev.Saved))
    assert saved.step < 300
    held = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [file for file in held if "replay" in file and str(folder) in file]


# A process by itself: what others compiled and freed would blur how much it grows.
HEAVY = r"""
import json, re
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
from tiny import settings

from qscape import agents
from qscape.envs import make
from qscape.run import Plan
from qscape.run import folder as folders
from qscape.run.training import make_session

class Wide(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (5_000,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.now = 0
        return np.zeros(5_000, np.float32), {}

    def step(self, action):
        self.now += 1
        return np.full(5_000, self.now, np.float32), 0.0, False, self.now == 100, {}

def status(field):
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

def grown(do):
    Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM is the peak
    before = status("VmRSS")
    do()
    return status("VmHWM") - before

def begun():
    edge = make(Wide, 1)
    edge.env_id = "Wide"
    return make_session(plan, agents.build("td3", plan.settings), edge)

def train(trainer, steps):
    for _ in trainer.events(trainer.env_steps + steps):
        pass

def go_on(trainer):
    folders.load_into(trainer, folders.newest_save(folder, "replay"))
    train(trainer, 10)

folder = Path("FOLDER")
plan = Plan("td3", "Wide", 10**6, settings=settings("td3", warmup=10**6, replay_capacity=4_000))
one, other = begun(), begun()
train(one, 3_200)
folders.create(folder, plan, one.agent)
sizes = {"replay": one.learner.layout.nbytes}
sizes["save"] = grown(lambda: folders.save(folder, one, False))
sizes["train"] = grown(lambda: train(one, 10))
sizes["save again"] = grown(lambda: folders.save(folder, one, False))
sizes["resume"] = grown(lambda: go_on(other)) - one.learner.layout.nbytes
rows, again = (np.asarray(of.learner.storage)[:3_200] for of in (one, other))
sizes["same"] = bool((rows == again).all())
print(json.dumps(sizes))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is not known here")
def test_neither_a_save_nor_a_resume_makes_a_second_replay(tmp_path):
    sizes = json.loads(python(HEAVY.replace("FOLDER", str(tmp_path / "run"))))
    assert sizes.pop("same")
    assert sizes.pop("replay") > 150 * 2**20
    assert {what: grown for what, grown in sizes.items() if grown > 64 * 2**20} == {}


# --- damaged saves --------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run folder but its lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != folders.LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def lose_replays(folder: Path) -> None:
    for name in saves.names(folder / "saves"):
        saves.drop(folder / "saves" / name, "replay")


def notes_of(folder: Path, **how: Any) -> list[str]:
    """The notes with which a run goes on; it is stopped there."""
    events = resume(folder, **how)
    started = next(events)
    events.close()
    assert isinstance(started, ev.Started)
    return started.notes


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "replay": (lambda save: flip(save / "replay.npz"), r"Leaf storage in .*171/replay\.npz does not match"),
    "networks": (lambda save: flip(save / "state.npz"), r"171/state\.npz"),
    "save.json": (lambda save: flip(save / "save.json"), r"171/save\.json is"),
    "no save.json": (
        lambda save: (save / "save.json").unlink(),
        "171 has no save.json, so it is no complete",
    ),
    "no replay": (lambda save: saves.drop(save, "replay"), "171 has no replay"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_newest_save_gives_way_to_the_one_before(what, broken_off, tmp_path):
    folder = shutil.copytree(broken_off, tmp_path / "run")
    damage, said = DAMAGE[what]
    damage(folder / "saves" / "000000171")
    damaged = contents(folder / "saves" / "000000171")
    notes = notes_of(folder)
    assert re.search(rf"{said}.*The run goes back to the save of step 150", notes[0])
    assert f"what is newer than step 150 was moved to {folder}/aside/000000150" in notes
    assert contents(folder / "aside" / "000000150" / "000000171") == damaged
    assert (folder / "aside" / "000000150" / "metrics.jsonl").exists()


def test_a_run_without_its_newest_save_ends_as_if_nothing_had_happened(broken_off, clock, tmp_path):
    folder = shutil.copytree(broken_off, tmp_path / "run")
    shutil.rmtree(folder / "saves" / "000000171")
    started, *_ = resume(folder)
    assert isinstance(started, ev.Started)
    assert started.step == 150
    assert_same_run(folder, clock)


def test_a_run_goes_on_from_the_save_that_the_user_names(broken_off, clock, tmp_path, capsys):
    folder = shutil.copytree(broken_off, tmp_path / "run")
    with pytest.raises(UsageError, match=r"no save of step 7; it has 30, 60, 90, 120, 150, 171"):
        list(resume(folder, save=7))
    assert qscape(["resume", str(folder), "--save", "150"]) == 0
    assert f"what is newer than step 150 was moved to {folder}/aside/000000150" in capsys.readouterr().out
    assert_same_run(folder, clock)
    assert saves.tree_names(folder / "aside" / "000000150" / "000000171")
    with pytest.raises(RunError, match=r"060 has no replay.*resume .* --save 60 --empty-replay"):
        list(resume(folder, save=60))


def test_a_run_that_cannot_go_on_is_not_begun_again(broken_off, tmp_path, capsys):
    """Not without a word, and nothing is erased."""
    folder = shutil.copytree(broken_off, tmp_path / "run")
    lose_replays(folder)
    before = contents(folder)
    assert qscape(["resume", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "171 has no replay. Nothing was changed." in said
    assert f"qscape resume {folder} --empty-replay" in said
    assert contents(folder) == before
    shutil.rmtree(folder / "saves")
    before = contents(folder)
    with pytest.raises(RunError, match=r"has lost its saves\. Nothing was changed\. .* --seeds 0 --out"):
        list(resume(folder))
    assert contents(folder) == before


ROLLOUTS = {"actor_hidden": (8,), "critic_hidden": (8,), "rollout": 64}
UNLEARNED = {
    "off-policy": ("td3", "Pendulum-v1", {"warmup": 50}),
    "compiled": ("td3", "recsim/10k-v0", {"warmup": 50}),
    "on-policy": ("ppo", "Pendulum-v1", ROLLOUTS),
    "on-policy, compiled": ("ppo", "jax/CartPole-v1", ROLLOUTS),
}


@pytest.mark.parametrize("case", UNLEARNED)
def test_a_model_saved_before_it_learned_is_resumed(case, tmp_path):
    """Also one that was loaded and saved again; both are the run that begins with these steps."""
    recipe, env, base = UNLEARNED[case]
    small = settings(recipe, **base) if recipe == "td3" else {"base": base}
    first = qs.Model(recipe, env, seed=3, eval_every=0, **small).save(tmp_path / "first")
    second = qs.load(first).save(tmp_path / "second")
    assert (numbers(first), arrays(first)) == (numbers(second), arrays(second))
    plan = dataclasses.replace(folders.read_plan(first), steps=100)
    whole(plan, tmp_path / "whole")
    for folder in (first, second):
        begun, *_ = resume(folder, 100)
        assert isinstance(begun, ev.Started)
        assert not [note for note in begun.notes if "episode" in note]
        assert arrays(folder) == arrays(tmp_path / "whole")


@pytest.mark.parametrize("loop", ["host", slow("compiled"), slow("on-policy")])
def test_a_run_goes_on_with_its_networks_alone(loop, broken_off, tmp_path):
    """The policy fills the replay before updates go on; a second interruption changes nothing."""
    folder = tmp_path / "run"
    if loop == "host":
        shutil.copytree(broken_off, folder)
    else:
        recipe, env = ("ppo", "jax/CartPole-v1") if loop == "on-policy" else ("td3", "recsim/10k-v0")
        small = {"base": {"rollout": 64}} if loop == "on-policy" else settings("td3", warmup=50)
        interrupted(Plan(recipe, env, 300, settings=small, eval_every=0, save_every=60), folder, 0, "")
    lose_replays(folder)
    made = numbers(folder)
    list(resume(folder, empty_replay=True, on_trainer=lambda trainer: trainer.stop()))
    *_, end = resume(folder)
    assert end.step >= 300
    assert not end.interrupted
    if loop != "on-policy":
        refill = numbers(folder)["refill"]
        assert refill == made["env_steps"] + 50
        assert end.updates == made["updates"] + 300 - refill
    assert len([name for name in saves.names(folder / "saves") if "replay" in trees(folder, name)]) == 2


def test_damaged_lines_of_the_logs_are_dropped_with_a_word(broken_off, clock, tmp_path, capsys):
    folder = shutil.copytree(broken_off, tmp_path / "run")
    wanted = metrics(folder)
    for log, line in LINES:
        lines = (folder / log).read_bytes().split(b"\n")
        lines.insert(line - 1, lines[line - 1].replace(b",", b"\xff", 1))
        (folder / log).write_bytes(b"\n".join(lines))
    said = [f"{folder}/{log}: 1 damaged lines are left out (line {k})" for log, k in LINES]
    assert qscape(["watch", str(folder), "--once"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert all("".join(note.split()) in shown for note in said)
    notes = notes_of(folder)
    assert [note for note in notes if "damaged" in note] == said
    assert metrics(folder) == wanted
    list(resume(folder))
    assert_same_run(folder, clock)


def test_damaged_column_names_are_written_again(broken_off, tmp_path):
    folder = shutil.copytree(broken_off, tmp_path / "run")
    wanted = evaluations(folder)
    text = (folder / "evaluations.csv").read_bytes()
    (folder / "evaluations.csv").write_bytes(text.replace(b"step", b"stop", 1))
    assert any("evaluations.csv: 1 damaged lines" in note for note in notes_of(folder))
    assert evaluations(folder) == wanted


LINES = (("metrics.jsonl", 2), ("evaluations.csv", 3))


def trees(folder: Path, name: str) -> list[str]:
    return saves.tree_names(folder / "saves" / name)


# --- processes ------------------------------------------------------------------------------------------


@pytest.fixture
def begin():
    """Starts `qscape ARGV` as a process, which a failing test does not leave behind."""
    begun = []

    def beginning(*argv):
        begun.append(start(*argv))
        return begun[-1]

    yield beginning
    for process in begun:
        for end in (process.terminate, process.terminate, process.kill):  # asked twice, it ends its workers
            with contextlib.suppress(subprocess.TimeoutExpired):
                end()
                process.communicate(timeout=5)
                break


def wait_for_save(process, folder: Path, beyond: int) -> None:
    """Until a save beyond that many steps is whole; the process must still be at work."""
    until = time.monotonic() + 120
    while not any(int(name) > beyond for name in saves.names(folder / "saves")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_several_seeds_kill_and_ctrl_c(tmp_path, begin):
    """Two seeds side by side in processes of their own; seed 1 alone, killed, interrupted by Ctrl-C and
    resumed twice, equals the one of the two."""
    argv = ["td3", "--env", "Pendulum-v1", "--steps", 1500, *flags("td3", warmup=100)]
    argv += ["--save-every", 60, "--eval-every", 500, "--eval-episodes", 2]
    pair = begin("train", *argv, "--seeds", 0, 1, "--out", tmp_path / "pair")
    out, err = pair.communicate()
    assert pair.returncode == 0, err
    assert out.count("done: ") == 2
    a, b = (tmp_path / "pair" / seed for seed in "01")
    assert arrays(a, {"state"}) != arrays(b, {"state"})

    alone = tmp_path / "alone" / "1"
    killed = begin("train", *argv, "--seeds", 1, "--out", alone.parent)
    wait_for_save(killed, alone, 0)
    killed.kill()
    killed.communicate()
    died_at = int(saves.names(alone / "saves")[-1])
    assert died_at < 1500

    stopped = begin("resume", alone)
    wait_for_save(stopped, alone, died_at)
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate()
    assert stopped.returncode == 130, err
    assert f"qscape resume {alone}" in out
    assert "Traceback" not in err
    assert died_at < numbers(alone)["env_steps"] < 1500

    resumed = begin("resume", alone)
    resumed.communicate()
    assert resumed.returncode == 0
    assert_same_run(alone, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", [long("td3"), long("td7"), "ppo"])
def test_a_killed_run_in_one_program_is_resumed_to_the_bit(name, tmp_path, begin):
    """Its environments are in JAX; TD7's bursts wait for ends of episodes."""
    argv = {
        "td3": ["recsim/10k-v0", "--envs", 4, "--steps", 1200, *flags("td3", warmup=100)],
        "td7": ["recsim/10k-v0", "--envs", 4, "--steps", 1200, *flags("td7", warmup=100), "--sale.width", 8],
        "ppo": ["jax/CartPole-v1", "--envs", 4, "--steps", 6000, "--base.rollout", 64],
    }[name]
    argv = ["train", name, "--env", *argv, "--save-every", 100, "--eval-every", 1000, "--eval-episodes", 2]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _, err = begin(*argv, "--out", whole).communicate()
    assert folders.read_record(whole / "0")["loop"] == "compiled", err
    process = begin(*argv, "--out", killed)
    wait_for_save(process, killed / "0", 0)
    process.kill()
    process.communicate()
    assert folders.unfinished(killed / "0")
    process = begin("resume", killed / "0")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert_same_run(killed / "0", whole / "0")


def test_ctrl_c_reaches_every_seed(tmp_path, begin):
    """Sent to the command alone, as a batch system does; of more seeds than cores the last is never begun."""
    argv = ["td3", "--env", "Pendulum-v1", "--steps", 100_000, *flags("td3", warmup=100), "--save-every", 60]
    seeds = range(len(os.sched_getaffinity(0)) + 1)
    group = begin("train", *argv, "--eval-every", 0, "--seeds", *seeds, "--out", tmp_path)
    for seed in seeds[:-1]:
        wait_for_save(group, tmp_path / str(seed), 0)
    group.send_signal(signal.SIGINT)
    out, err = group.communicate(timeout=60)
    assert group.returncode == 130, err
    assert "Traceback" not in err
    for seed in seeds[:-1]:
        assert f"interrupted: {tmp_path / str(seed)}" in out
        assert f"to continue: qscape resume {tmp_path / str(seed)}" in out
        assert not numbers(tmp_path / str(seed))["finished"]
    assert f"not started: {tmp_path / str(seeds[-1])}" in out
    assert not (tmp_path / str(seeds[-1])).exists()
