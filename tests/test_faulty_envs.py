"""Environments that raise where nobody expects it: one sentence, or what they raised, after a save."""

import shutil
import sys

import faulty
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Clock, flags, settings

from qscape.cli import main
from qscape.envs import make
from qscape.envs.snapshot import take
from qscape.envs.world import reset_world, step_world
from qscape.errors import RunError, UsageError
from qscape.jobs.pool import LocalWorker
from qscape.jobs.worker import Job
from qscape.run import Plan, resume, saves, train
from qscape.run.engines.replay import SeedAdapters


class Broken(Clock):
    """Raises in its constructor, or in `close`; or has no spaces."""

    def __init__(self, where: str = "constructor"):
        super().__init__()
        self.where = where
        if where == "constructor":
            raise KeyError("a \x1b[31mred\x07\ntext")
        if where.endswith("_space"):
            delattr(self, where)

    def close(self):
        if self.where == "close":
            raise OSError("no display")


class Exits(Clock):
    """Raises `exit` in its step number `at`, counted over all episodes of a copy, as each has a `count`."""

    exit: BaseException = SystemExit(7)
    at = 0
    count = 0

    def step(self, action):
        Exits.count += 1
        if Exits.count == Exits.at:
            raise self.exit
        return super().step(action)


class Twins(Clock):
    """Every further one has other spaces."""

    made = 0

    def __init__(self):
        super().__init__()
        Twins.made += 1
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (Twins.made,), np.float32)


class Returns(Clock):
    """Returns something of another form."""

    def __init__(self, what: str):
        super().__init__()
        self.what = what

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        return observation if self.what == "reset" else (observation, info)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.what == "step":
            return observation, reward, terminated, info
        if self.what == "shape":
            observation = np.zeros(9, np.float32)
        reward = np.array([reward, 0.0]) if self.what == "reward" else reward
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("shape", r"; observations must have the shape of observation_space, and reset must return"),
        ("reset", r"; .*reset must return \(observation, info\)"),
        ("step", r"step \(observation, reward, terminated, truncated, info\)\.$"),
        ("reward", r"^Returns: the reward is \[.*\], 2 numbers"),
    ],
)
def test_what_is_returned_in_another_form_is_explained(what, why):
    adapter = make(Returns(what))
    action = np.zeros((1, adapter.spec.action_size), np.float32)
    with pytest.raises(RunError, match=why):
        adapter.reset() if what == "reset" else adapter.step(action)


for made in (Broken, Exits):
    gym.register(f"{made.__name__}-v0", made, disable_env_checker=True)


def test_a_constructor_that_raises():
    with pytest.raises(UsageError) as caught:
        make("Broken-v0")
    why = r"Broken-v0 cannot be made (KeyError: 'a \x1b[31mred\x07\ntext', raised in "
    assert str(caught.value).startswith(why)
    with pytest.raises(UsageError, match=r"cannot be made 3 times \(RuntimeError: "):
        make(Twins, envs=3)


@pytest.mark.parametrize("space", ["observation_space", "action_space"])
def test_a_missing_space(space):
    with pytest.raises(UsageError, match=f"Broken has no {space}: set self.{space} = gymnasium.spaces.Box"):
        make(Broken(space))


def test_an_error_in_close_is_one_sentence_and_hides_no_other(tmp_path):
    plan = Plan("td3", "Broken-v0", 40, env_args={"where": "close"}, settings=settings("td3", warmup=20))
    with pytest.raises(RunError, match=r"Broken-v0 broke when it was closed \(OSError: no display\)"):
        list(train(plan, tmp_path / "a"))
    assert saves.names(tmp_path / "a" / "saves")[-1] == "000000040"

    def fail(trainer):
        trainer.adapter.step = lambda action: 1 / 0

    with pytest.raises(ZeroDivisionError):
        list(train(plan, tmp_path / "b", on_trainer=fail))


@pytest.mark.parametrize("raised", [SystemExit(7), KeyboardInterrupt()], ids=repr)
def test_an_environment_that_exits_is_saved_first(raised, tmp_path, monkeypatch):
    monkeypatch.setattr(Exits, "exit", raised)
    monkeypatch.setattr(Exits, "count", 0)
    monkeypatch.setattr(Exits, "at", 61)
    plan = Plan("td3", "Exits-v0", 100, eval_every=0, save_every=1000, settings=settings("td3", warmup=20))
    with pytest.raises(type(raised)) as caught:
        list(train(plan, tmp_path / "run"))
    assert caught.value is raised
    assert saves.names(tmp_path / "run" / "saves")[-1] == "000000060"
    started, *_, ended = resume(tmp_path / "run")
    assert started.step == 60
    assert "it was interrupted in the middle of a step" in " ".join(started.notes)
    assert (ended.step, ended.updates) == (100, 80)


def test_the_episode_after_an_exit_is_resumed_exactly(monkeypatch):
    monkeypatch.setattr(Exits, "exit", KeyboardInterrupt())
    monkeypatch.setattr(Exits, "count", 0)
    monkeypatch.setattr(Exits, "at", 3)
    adapter = make("Exits-v0")
    adapter.reset()
    action = np.zeros((1, 1), np.float32)
    with pytest.raises(KeyboardInterrupt):
        [adapter.step(action) for _ in range(5)]
    adapter.step(action)
    assert not take(adapter).meta["exact"]
    while not adapter.step(action).finished:
        pass
    assert take(adapter).meta["exact"]


def test_an_exit_is_no_end_of_a_run(tmp_path, monkeypatch, capsys):
    """Also with code 0, and of a worker that ends without a word."""
    monkeypatch.setattr(Exits, "exit", SystemExit(0))
    monkeypatch.setattr(Exits, "count", 0)
    monkeypatch.setattr(Exits, "at", 10)
    argv = ["train", "td3", "--env", "Exits-v0", "--steps", "100", "--eval-every", "0", "--quiet"]
    assert main([*argv, *flags("td3", warmup=20), "--out", str(tmp_path / "run")]) == 1
    assert "the environment ended the program (SystemExit: 0)" in capsys.readouterr().err
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    (told,) = LocalWorker(Job("resume", tmp_path)).events()
    assert told == {"kind": "Failed", "why": "its process ended with code 0", "lost": True}


def test_an_exit_in_one_seed_ends_the_step_of_all(monkeypatch):
    """No seed's environment is resumed exactly, as some of them have made a step more than their networks."""
    monkeypatch.setattr(Exits, "count", 0)
    monkeypatch.setattr(Exits, "at", 2)
    together = SeedAdapters([make(Exits, seed=seed) for seed in (0, 1)])
    together.reset()
    action = np.zeros((2, 1, 1), np.float32)
    together.step(action)
    with pytest.raises(SystemExit):
        together.step(action)
    assert [adapter.interrupted for adapter in together.each] == ["SystemExit: 7"] * 2


def test_a_jax_environment_whose_steps_give_other_types():
    env, key = faulty.Walk("half"), jax.random.key(0)
    with pytest.raises(
        UsageError, match=r"an observation is float32\[1\] after `reset` and float16\[1\] after"
    ):
        jax.eval_shape(lambda: step_world(env, reset_world(env, 2, key), jnp.zeros((2, 1)), 0, key))


class Mistaken(faulty.Walk):
    """Its code is wrong: JAX meets that while it traces a program."""

    where: str = "step"

    def reset(self, key):
        if self.where == "reset":
            raise ValueError("no\nstart")
        return super().reset(key)

    def step(self, state, action, key):
        return super().step(state, action @ jnp.zeros(7), key)


def test_an_error_while_a_jax_environment_is_traced_is_one_sentence():
    def step():
        env = Mistaken()
        return step_world(
            env, reset_world(env, 2, jax.random.key(0)), jnp.zeros((2, 1)), 0, jax.random.key(0)
        )

    with pytest.raises(
        RunError, match=r"^Mistaken.step broke while JAX traced it \(TypeError: dot_general .*\)\."
    ):
        jax.eval_shape(step)
    with pytest.raises(RunError, match=r"^Mistaken.reset broke while JAX traced it \(ValueError: no\)\."):
        jax.eval_shape(lambda: reset_world(Mistaken(where="reset"), 2, jax.random.key(0)))


@pytest.mark.slow
def test_an_environment_that_exits_inside_a_program(tmp_path, monkeypatch):
    """Of the driven program, which calls the environments from XLA's thread."""
    from qscape.envs import adapter
    from qscape.run.engines import replay

    monkeypatch.setattr(replay, "CHUNK", 5)
    monkeypatch.setattr(replay, "LONG", 10)
    monkeypatch.setattr(adapter, "HOST_ONLY", (*adapter.HOST_ONLY, Exits.__module__))
    monkeypatch.setattr(Exits, "count", 0)
    monkeypatch.setattr(Exits, "at", 61)
    plan = Plan("td3", "Exits-v0", 200, eval_every=0, save_every=1000, settings=settings("td3", warmup=20))
    seen = []
    with pytest.raises(SystemExit):
        list(train(plan, tmp_path / "run", on_trainer=seen.append))
    assert seen[0].engine.driver is not None
    assert saves.names(tmp_path / "run" / "saves")[-1] == "000000060"
    monkeypatch.setattr(Exits, "step", Clock.step)  # the count goes on where the save has it
    *_, ended = resume(tmp_path / "run")
    assert (ended.step, ended.updates) == (200, 180)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["export", "run", "--onnx", ""], "--onnx is empty"),
        (["train", "td3", "--env", "", "--steps", "10"], "--env is empty"),
        (["evaluate", ""], "qscape evaluate needs RUN first"),
        (["train", "td3", "--env", "Pendulum-v1", "--out", "a\0b", "--steps", "10"], "holds a NUL byte"),
        (["evaluate", "a\0b"], r"a\x00b is no run|holds a NUL byte"),  # by the version of Python
    ],
)
def test_empty_words_and_nul_bytes(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert any(words in err for words in says.split("|"))
    assert err.count("\n") == 1
