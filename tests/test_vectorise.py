"""Runs whose environments are in other processes: the same runs, resumed to the bit, and ended together."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from tiny import Clock, arrays, environment, evaluations, flags, metrics, numbers, settings, stop_at

import qscape as qs
from qscape.envs import EnvAdapter, make
from qscape.errors import RunError, UsageError
from qscape.run import Plan, resume, saves, train, training
from qscape.run import folder as folders
from qscape.run.plan import prepare


def plan(how="async", **more):
    given = {"envs": 2, "eval_every": 50, "eval_episodes": 1, "log_every": 20, "save_every": 40} | more
    return Plan("td3", "Clock-v0", 120, vectorise=how, settings=settings("td3", warmup=20), **given)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"how": "threads"}, "--vectorise threads is unknown; choose sync, async, envpool"),
        ({"envs": 1}, "several environments side by side; add --envs"),
        ({"loop": "compiled"}, "--vectorise async .* --loop compiled; leave one"),
        ({"envs": 1, "dataset": "x", "how": "envpool"}, "--vectorise envpool .* --dataset; leave one"),
    ],
)
def test_what_cannot_be_is_refused(more, sentence):
    with pytest.raises(UsageError, match=sentence):
        plan(**more)


def test_an_environment_that_is_made_cannot_be_sent():
    with pytest.raises(UsageError, match="vectorise='async' makes environments"):
        qs.TD3(Clock(), vectorise="async")


class Locked(Clock):
    """It holds what cannot be sent to another process."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_an_environment_that_cannot_be_pickled_is_made_in_processes():
    """What is sent is how to make it, not the one that was made to learn its spaces."""
    adapter = make(Locked, 2, vectorise="async")
    try:
        assert adapter.reset().shape[0] == 2
    finally:
        adapter.close()


@pytest.mark.slow
def test_a_run_in_processes_is_the_run_of_one_and_resumes_to_the_bit(tmp_path):
    """Stopped in the middle of episodes; the sub-environments end at different steps."""
    one, other = tmp_path / "sync", tmp_path / "async"
    list(train(plan("sync"), one))
    list(train(plan(), other, on_trainer=stop_at(64)))
    assert folders.unfinished(other)
    assert folders.read_plan(other).vectorise == "async"
    started, *_ = resume(other)
    assert not [note for note in started.notes if "exactly" in note]
    assert evaluations(one) == evaluations(other)
    assert metrics(one) == metrics(other)
    assert numbers(one) == numbers(other)
    trees = {"state", "replay", "loop"}  # a vector environment in one process has buffers of its own
    assert arrays(one, trees) == arrays(other, trees)


@pytest.fixture
def still_open(monkeypatch):
    """The adapters that were opened and not closed."""
    found = []
    for name in ("open_adapters", "open_adapter"):
        call = getattr(training, name)

        def opening(*args, call=call):
            made = call(*args)
            found.extend(made if isinstance(made, tuple) else [made])
            return made

        monkeypatch.setattr(training, name, opening)
    close = EnvAdapter.close
    monkeypatch.setattr(EnvAdapter, "close", lambda self: (found.remove(self), close(self)))
    monkeypatch.setattr(folders, "LOCK_PATIENCE", 0.0)
    return found


def fail(*_, **__):
    raise RunError("not so")


@pytest.mark.parametrize("where", ["adapt_to_images", "make_shared_session", "folder", "on_trainer"])
def test_a_run_that_does_not_begin_closes_its_environments(where, tmp_path, monkeypatch, still_open):
    more = {"on_trainer": fail} if where == "on_trainer" else {}
    if where in ("adapt_to_images", "make_shared_session"):
        monkeypatch.setattr(training, where, fail)
    locked = folders.locked(tmp_path) if where == "folder" else contextlib.nullcontext()
    with locked, pytest.raises(RunError, match=r"not so|in use by another process"):
        list(train(plan("sync"), tmp_path, **more))
    assert still_open == []


def test_seeds_that_do_not_begin_together_close_their_environments(tmp_path, monkeypatch, still_open):
    plans = [dataclasses.replace(plan("sync"), seed=seed) for seed in range(3)]
    opening, adapters = training.open_adapter, iter([None, fail])
    monkeypatch.setattr(training, "open_adapter", lambda *args: (next(adapters) or opening)(*args))
    with pytest.raises(RunError, match="not so"):
        list(training.train_together(plans, [tmp_path / str(seed) for seed in range(3)]))
    assert still_open == []


def test_a_run_that_does_not_go_on_closes_its_environments(tmp_path, still_open):
    made, agent, _ = prepare(plan("sync"))
    folders.create(tmp_path, made, agent)
    with pytest.raises(RunError, match="not so"):
        list(resume(tmp_path, on_trainer=fail))
    assert still_open == []


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_kill_end_all_processes(number, tmp_path):
    """Ctrl-C reaches the whole group, as from a terminal, and saves; of a kill only the command knows."""
    (tmp_path / "queue.py").write_text("raise SystemExit('a module of the current folder was imported')")
    argv = ["train", "td3", "--env", "tiny:Clock-v0", "--steps", 10**6, "--envs", 3, "--vectorise", "async"]
    argv += [*flags("td3", warmup=20), "--save-every", 60, "--eval-every", 0, "--out", tmp_path / "runs"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "qscape", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=tmp_path,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while not saves.names(tmp_path / "runs" / "0" / "saves"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number), err
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert "to continue: qscape resume" in out
    until = time.monotonic() + 20
    while alive(process.pid):
        assert time.monotonic() < until
        time.sleep(0.05)


class Declaring(gym.Env):
    """Says which actions are valid, and what critics alone see."""

    masks_actions, privileged_keys = True, ("hidden",)
    action_space = gym.spaces.Discrete(3)

    def __init__(self):
        box = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gym.spaces.Dict({"hidden": box, "seen": box})

    def show(self):
        return {"hidden": np.ones(2, np.float32), "seen": np.zeros(2, np.float32)}, {
            "action_mask": np.array([True, False, True])
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.show()

    def step(self, action):
        seen, info = self.show()
        return seen, 0.0, False, False, info


def test_a_users_asynchronous_environments_declare_what_they_would_in_this_process():
    specs = []
    for kind in (gym.vector.SyncVectorEnv, partial(gym.vector.AsyncVectorEnv, context="forkserver")):
        adapter = EnvAdapter(kind([Declaring] * 2), index_actions=True)
        specs.append((str(adapter.spec), adapter.masks.source, adapter.reset().tolist()))
        adapter.close()
    assert specs[0] == specs[1]
    assert "actor_size=2" in specs[0][0]
    assert "ActionMask(actions=3" in specs[0][0]


def test_a_users_asynchronous_environments_that_lose_last_observations_are_refused():
    mode = gym.vector.AutoresetMode.SAME_STEP
    env = gym.vector.AsyncVectorEnv([Declaring], context="forkserver", autoreset_mode=mode)
    with pytest.raises(UsageError) as refused:
        EnvAdapter(env, index_actions=True)
    env.close()
    assert refused.value.field == "env"
