"""The driven program: the same run, to the bit, with the environment called from within."""

import dataclasses
import re
import threading
from functools import partial

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TransformReward
from rows import slow
from tiny import Clock, python, settings

from qscape import agents
from qscape.envs import adapter as adapters
from qscape.envs import make
from qscape.errors import RunError
from qscape.offpolicy.plain import EveryStep
from qscape.offpolicy.sockets import EpisodeEnd
from qscape.run import Plan, callbacks
from qscape.run import events as ev
from qscape.run.drive import MOST
from qscape.run.engines import replay
from qscape.run.training import make_session, make_shared_session

STEPS = 400


@pytest.fixture
def driven(monkeypatch):
    """Runs take to the driven program early, however short they are."""
    take_early(monkeypatch)


def take_early(monkeypatch):
    monkeypatch.setattr(replay, "LONG", 0)
    monkeypatch.setattr(replay, "CHUNK", 20)
    monkeypatch.setattr(adapters, "HOST_ONLY", (*adapters.HOST_ONLY, "tiny"))


def begun(recipe="td3", env=Clock, envs=1, steps=STEPS, evaluated=True, **base):
    plan = Plan(
        recipe,
        "Clock",
        steps,
        envs=envs,
        settings=settings(recipe, warmup=50, **base),
        eval_every=150,
        eval_episodes=2,
        log_every=70,
    )
    built = agents.build(recipe, plan.settings)
    return make_session(plan, built, make(env, envs), make(env, 2, seed=9) if evaluated else None)


def told(trainer, until=STEPS):
    """The events of a run, without what depends on the clock."""
    return [said(event) for event in trainer.events(until) if not isinstance(event, ev.Progressed)]


def said(event):
    values = {k: v for k, v in event._asdict().items() if k != "seconds"}
    if isinstance(event, ev.Logged):
        values["metrics"] = {k: v for k, v in event.metrics.items() if k != "steps_per_second"}
    return type(event).__name__, values


def leaves(trainer, seed=0):
    arrays = jax.tree.map(jnp.asarray, trainer.save(seed).arrays)
    return [
        (jax.tree_util.keystr(path), np.asarray(jax.random.key_data(x) if "key" in str(x.dtype) else x))
        for path, x in jax.tree_util.tree_leaves_with_path(arrays)
    ]


CASES = {
    "td3": ("td3", {}),
    "sac, three environments that fall out of step": ("sac+lap", {"envs": 3}),
    "fewer updates than steps, columns in replay": ("td3+savo", {"updates_per_step": 0.29}),
    "more updates than steps, running normalisation": ("sac+normalise+reward_scale", {"updates_per_step": 2}),
    "Pendulum, three of them": ("td3", {"env": "Pendulum-v1", "envs": 3}),
    "between episodes": ("td7", {}),
    "between the episodes of three environments, which update statistics": (
        "td3+checkpoints+normalise",
        {"envs": 3},
    ),
    "three environments, each with noise of its own": (
        "td3",
        {"envs": 3, "exploration": "per_environment"},
    ),
}


def assert_same_run(recipe, how):
    """Check that the host loop and the driven program make one run: the same events, arrays and counters."""
    apart = begun(recipe, **how)
    heard = told(apart)
    with pytest.MonkeyPatch.context() as patch:
        take_early(patch)
        driven = begun(recipe, **how)
        assert str(told(driven)) == str(heard)
    assert apart.engine.driver is None
    assert driven.engine.driver is not None
    for (name, one), (_, other) in zip(leaves(apart), leaves(driven), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
    numbers = [{k: v for k, v in t.counters().items() if k != "seconds"} for t in (apart, driven)]
    assert numbers[0] == numbers[1]


@pytest.mark.slow  # `make test` compiles in a way in which two programs round differently
@pytest.mark.parametrize("case", CASES)
def test_the_run_is_the_same_to_the_bit(case):
    assert_same_run(*CASES[case])


def test_a_run_of_td3_is_the_same_to_the_bit():
    """In a process that compiles as users do, which `make test` does not."""
    python(
        "import os; os.environ.pop('XLA_FLAGS', 0); import test_drive; test_drive.assert_same_run('td3', {})"
    )


@pytest.mark.slow
@pytest.mark.parametrize("envs", [1, 3])
def test_an_answer_that_is_copied_to_the_program_is_the_same(envs, monkeypatch):
    """As on an accelerator, which cannot share its memory with the environments."""
    take_early(monkeypatch)
    shared, asked = begun(envs=envs), []
    heard = told(shared)

    def by_copies(*how):
        asked.append(how)
        return callbacks._ask_by_copies(*how)

    monkeypatch.setattr(callbacks, "_ask_in_place", by_copies)
    copied = begun(envs=envs)
    assert str(told(copied)) == str(heard)
    assert len(asked) == 1
    for (name, one), (_, other) in zip(leaves(shared), leaves(copied), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def seeds_begun(env=Clock, seeds=(3, 5), **how):
    """Several seeds in one program, whose episodes have other lengths."""
    plans = [Plan("td3", "Clock", STEPS, seed=k, settings=settings("td3", warmup=50), **how) for k in seeds]
    adapters = [make(env, seed=seed) for seed in seeds]
    return make_shared_session(
        plans, agents.build("td3", plans[0].settings), adapters, make(Clock, 2, seed=9)
    )


def seeds_told(runs):
    return [(k, *said(e)) for k, e in runs.seed_events(STEPS) if not isinstance(e, ev.Progressed)]


@pytest.mark.slow
def test_several_seeds_are_the_same_to_the_bit(monkeypatch):
    how = {"eval_every": 150, "eval_episodes": 2, "log_every": 70}
    apart = seeds_begun(**how)
    heard = seeds_told(apart)
    take_early(monkeypatch)
    driven = seeds_begun(**how)
    assert str(seeds_told(driven)) == str(heard)
    assert apart.engine.driver is None
    assert driven.engine.driver is not None
    assert {k for k, name, _ in heard if name == "EpisodeDone"} == {0, 1}
    for k in range(2):
        for (name, one), (_, other) in zip(leaves(apart, k), leaves(driven, k), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


def test_an_environments_nan_inside_the_program_names_the_seed(driven):
    runs = seeds_begun(env=lambda: Clock(30, fail_at=200), eval_every=0)
    with pytest.raises(RunError, match=r"seed 3: Clock_: reward.* is nan .*step 20 of its episode 7"):
        seeds_told(runs)
    assert runs.engine.driver is not None
    assert runs.env_steps == 199


class Bytes(gym.Env):
    """An image of bytes; episodes have 30 steps."""

    observation_space = gym.spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.show(), {}

    def show(self):
        return self.np_random.integers(0, 256, (36, 36, 1)).astype(np.uint8)

    def step(self, action):
        self.t += 1
        return self.show(), float(action), False, self.t == 30, {}


@pytest.mark.slow
def test_images_are_driven_as_bytes(monkeypatch):
    take_early(monkeypatch)
    monkeypatch.setattr(adapters, "HOST_ONLY", (*adapters.HOST_ONLY, Bytes.__module__))
    sizes = {"critic_hidden": (8,), "batch_size": 4, "replay_capacity": 256, "updates_per_step": 0.5}
    plan = Plan("dqn", "Bytes", 120, settings={"base": sizes | {"warmup": 10}}, eval_every=0)
    trainer = make_session(plan, agents.build("dqn", plan.settings), make(Bytes, index_actions=True))
    told(trainer, 120)
    assert trainer.engine.driver is not None
    assert trainer.updates == 55


class PartState(gym.Wrapper):
    """Somebody's wrapper: who knows what it calls."""


@pytest.mark.parametrize(
    ("env", "known"),
    [
        ("HalfCheetah-v5", True),
        ("restricted/Hopper-v0", True),
        ("Pendulum-v1", True),
        ("mineworld/MineWorld-v0", False),
        (lambda: gym.Wrapper(gym.make("Pendulum-v1")), True),
        (lambda: PartState(gym.make("Pendulum-v1")), False),
        (Clock, False),
        (lambda: TransformReward(gym.make("Pendulum-v1"), lambda reward: jnp.tanh(reward)), False),
    ],
)
@pytest.mark.parametrize("envs", [1, 2])
def test_environments_that_may_call_jax_stay_outside(env, known, envs):
    """JAX would wait for the program, and the program for the environment."""
    assert make(env, envs).is_host_only is known


def test_short_runs_are_not_driven():
    trainer = begun()
    told(trainer)
    assert trainer.engine.driver is None


def test_agents_that_learn_between_episodes_make_their_updates_there(driven):
    trainer = begun("td3+checkpoints")
    told(trainer)
    assert trainer.engine.driver is not None
    assert (
        trainer.updates == int(trainer.learner.state.updates) == 11 * 30
    )  # after each of the episodes from 60 to 390


@dataclasses.dataclass(frozen=True)
class Own(EveryStep):
    """A schedule of somebody's own, which counts the episodes."""

    heard: list[int] = dataclasses.field(default_factory=list, hash=False, compare=False)

    def updates_due(self, state, event, base):
        if isinstance(event, EpisodeEnd):
            self.heard.append(event.length)
        return super().updates_due(state, event, base)


def test_schedules_of_ones_own_hear_of_every_episode(driven):
    plan = Plan("td3", "Clock", STEPS, settings=settings("td3", warmup=50), eval_every=0)
    schedule = Own()
    agent = dataclasses.replace(agents.build("td3", plan.settings), schedule=schedule)
    trainer = make_session(plan, agent, make(partial(Clock, 30)))
    told(trainer)
    assert trainer.engine.driver is None
    assert schedule.heard == [30] * 12  # those after the 50 steps of the warm-up


def test_environments_whose_resets_are_rows_are_not_driven(driven):
    many = SyncVectorEnv([Clock, Clock], autoreset_mode=AutoresetMode.NEXT_STEP)
    trainer = begun(env=many, evaluated=False)
    told(trainer)
    assert trainer.updates
    assert trainer.engine.driver is None


def test_most_steps_are_taken_inside_the_program(driven):
    """In a thread that is not the one that trains; and actions stay what they were."""
    trainer, threads, actions, copies = begun(), [], [], []
    step = trainer.adapter.step

    def watched(action):
        threads.append(threading.current_thread() is threading.main_thread())
        actions.append(action)
        copies.append(np.array(action))
        return step(action)

    trainer.adapter.step = watched
    told(trainer)
    assert len(threads) == STEPS
    assert threads[:70] == [True] * 70
    assert not any(threads[75:])
    np.testing.assert_array_equal(actions, copies)


@pytest.mark.parametrize("what", [slow("reward"), "observation"])
def test_an_environments_nan_ends_the_run_with_its_sentence(what, driven):
    trainer = begun(env=partial(Clock, 30, fail_at=200, what=what))
    why = rf"Clock_: {what}.* is nan in environment 0, step 20 of its episode 7"
    with pytest.raises(RunError, match=why):
        told(trainer)
    assert trainer.engine.driver is not None
    assert trainer.env_steps == 199
    assert int(trainer.learner.state.updates) == trainer.updates  # what was learned can still be used
    assert int(trainer.learner.carry.replay_state.size[0]) == 199


def test_a_wish_to_stop_is_seen_at_the_next_step(driven):
    trainer, taken = begun(steps=10**6), []
    step = trainer.adapter.step

    def watched(action):
        taken.append(action)
        if len(taken) == 201:
            trainer.stop()
        return step(action)

    trainer.adapter.step = watched
    *_, end = trainer.events(10**6)
    assert isinstance(end, ev.Ended)
    assert end.interrupted
    assert trainer.env_steps == 201
    assert trainer.learner.carry.action is not None


@pytest.mark.slow
def test_a_stop_from_outside_is_seen_within_moments(driven):
    """The thread that trains waits in the program and hears nothing: the program has to look up by itself."""
    trainer = begun(env=partial(Clock, 10**9), steps=10**6, evaluated=False)
    for _ in trainer.events(100):
        pass
    trainer.due = dict.fromkeys(trainer.due, 10**9)  # no log, no evaluation, no end of an episode
    drive, calls = trainer.engine._drive, []

    def third_time_stop(limit):
        calls.append(trainer.env_steps)
        if len(calls) == 3:
            trainer.stop()
        return drive(limit)

    trainer.engine._drive = third_time_stop
    *_, end = trainer.events(10**6)
    assert end.interrupted
    assert len(calls) == 3


@pytest.mark.slow
def test_the_program_does_not_copy_the_replay(driven):
    trainer = begun("td3+lap", replay_capacity=65_536)
    told(trainer)
    arguments = trainer.learner.carry, np.ones(MOST, np.int32), 1, 0, trainer.learner.seeds.key
    text = trainer.engine.driver.program.lower(*arguments).compile().as_text()
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* copy(?:-start)?\(", text)
    sizes = [int(np.prod([int(d) for d in shape.split(",")])) for shape in shapes]
    assert max(sizes, default=0) < 65_536
