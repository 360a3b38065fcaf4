"""The training loop and the run folder: what is done when, and what is written."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from rows import slow
from tiny import Clock, arrays, evaluations, settings

from qscape import agents
from qscape.agents import build
from qscape.envs import EnvAdapter, make
from qscape.errors import RunError, UsageError
from qscape.replay.storage import Rows, rows_at
from qscape.run import Plan, chunks, saves, train
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run.engines.replay import ReplayLearner
from qscape.run.evaluation import evaluate
from qscape.run.plan import prepare
from qscape.run.policy import evaluate_run
from qscape.run.training import make_session


def test_pytorch_is_not_imported_with_the_writer_of_tensorboard(tmp_path):
    """Where it is installed, a run would wait for it; and who wants it afterwards still gets it."""
    (tmp_path / "torch.py").write_text("Tensor = object")
    check = "import sys, qscape.run.sinks; assert 'torch' not in sys.modules; import torch; torch.Tensor"
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", check], env=os.environ | {"PYTHONPATH": paths}, check=True)


class Seen:
    """What a trainer's environment saw: counters, observations and actions, before each of its steps."""

    def __init__(self, trainer):
        self.steps, self.updates, self.observations, self.actions = [], [], [], []
        step = trainer.adapter.step

        def watched(action):
            self.observations.append(np.array(trainer.adapter.observation)[~resetting(trainer)])
            self.steps.append(trainer.env_steps)
            self.updates.append(trainer.updates)
            self.actions.append(np.array(action))
            assert trainer.learner.pending == 0
            return step(action)

        trainer.adapter.step = watched


def resetting(trainer):
    return trainer.adapter.statistics.resetting


def run(recipe, steps, envs=1, length=30, extra=None, autoreset=AutoresetMode.SAME_STEP, **base):
    """A run in memory on the clock, and what it saw."""
    plan = Plan(recipe, "Clock", steps, envs=envs, settings=settings(recipe, **base) | (extra or {}))
    adapter = make(partial(Clock, length), envs, autoreset=autoreset)
    trainer = make_session(plan, build(recipe, plan.settings), adapter)
    seen = Seen(trainer)
    *_, end = trainer.events(steps)
    assert isinstance(end, ev.Ended)
    assert end.updates == trainer.updates == int(trainer.learner.state.updates)
    return trainer, seen


# --- what is done when -------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["td3", slow("sac")])
def test_one_update_a_step_from_the_step_after_the_warm_up(recipe):
    """No update in 50 random steps; the action of step t is chosen after the update of step t - 1."""
    trainer, seen = run(recipe, 200, warmup=50)
    assert seen.steps == list(range(200))
    assert seen.updates == [max(0, t - 50) for t in range(200)]
    assert trainer.updates == 150


def test_half_an_update_per_step():
    trainer, seen = run("td3", 200, warmup=50, updates_per_step=0.5)
    assert seen.updates == [max(0, t - 50) // 2 for t in range(200)]
    assert trainer.updates == 75


def test_td7_begins_at_an_episodes_end_and_trains_between_episodes():
    """The schedule's table in the specification, scaled down: 1,001 steps and a warm-up of 250.

    The random phase ends with the first episode that finishes at a 0-based step >= 250. That episode brings
    no update, and those after it as many as they had steps.
    """
    length, policy_step, updates = 33, 264, 726
    trainer, seen = run("td7", 1_001, length=length, warmup=250)
    assert seen.updates == [max(0, t // length * length - policy_step) for t in range(1_001)]
    assert trainer.updates == updates
    random = jax.jit(partial(trainer.agent.act, trainer.learner.acting, None, mode="warm_up"))
    drawn = [
        bool(
            (
                random(np.zeros((1, 3)), np.zeros(1, bool), np.int32(t), trainer.learner.seeds.key)[0]
                == action
            ).all()
        )
        for t, action in enumerate(seen.actions[: policy_step + 10])
    ]
    assert drawn == [True] * policy_step + [False] * 10


@pytest.mark.parametrize(
    ("envs", "updates_per_step", "autoreset"),
    [
        slow(1, 1.0, AutoresetMode.SAME_STEP),
        (1, 0.5, AutoresetMode.SAME_STEP),
        (3, 1.0, AutoresetMode.SAME_STEP),
        (3, 1.0, AutoresetMode.NEXT_STEP),
        slow(3, 0.5, AutoresetMode.NEXT_STEP),
    ],
)
def test_running_statistics_count_every_observation_acted_on_once(envs, updates_per_step, autoreset):
    """The random phase included, and the action that waits for step 301; 0.0001 is there at the start.

    Last observations of episodes, which the next step only leaves, do not count.
    """
    how = {"warmup": 60, "updates_per_step": updates_per_step}
    trainer, seen = run("td3+normalise", 300, envs=envs, autoreset=autoreset, **how)
    moments = trainer.learner.state.part_states["normalise"].extra
    now = trainer.adapter.observation[~resetting(trainer)]
    acted = np.concatenate([*seen.observations, now])
    assert len(acted) == trainer.env_steps + len(now) == pytest.approx(float(moments.seen) - 1e-4, abs=1e-4)
    np.testing.assert_allclose(moments.mean, acted.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moments.var, acted.var(0), rtol=1e-3, atol=1e-3)


def by_hand(recipe, steps, warmup, lag=0):
    """The loop of an agent that updates at every step. `lag` 1 acts as before the last update."""
    adapter = make(Clock)
    agent = build(recipe, settings(recipe, warmup=warmup)).on(adapter.spec)
    layout, key = agent.layout(), jax.random.key(0)
    act = jax.jit(agent.act, static_argnames="mode")
    insert = jax.jit(partial(agent.insert, layout))
    update = jax.jit(partial(agent.update, layout))
    state, (rows, index) = agent.init(key), agent.init_replay(layout)
    actions, states, first, obs = [], [state], np.ones(1, bool), adapter.reset()
    for t in range(steps):
        mode = "warm_up" if t < warmup else "explore"
        chooser = agent.acting(states[max(0, len(states) - 1 - lag)])
        action = np.asarray(act(chooser, None, obs, first, np.int32(t), key, mode=mode)[0])
        step = adapter.step(action)
        taken = Rows(obs, action, step.reward, step.terminated, step.truncated, step.next_observation, {})
        rows, index = insert(rows, index, taken, step.valid)
        if t >= warmup:
            state, index, _ = update(state._replace(env_steps=jnp.int32(t + 1)), rows, index, key)
            states.append(state)
        obs, first = step.observation, step.terminated | step.truncated
        actions.append(action)
    return np.array(actions), state


@pytest.mark.parametrize("recipe", ["td3", slow("sac")])
def test_the_loop_equals_one_by_hand(recipe):
    """Every action and the last parameters; a policy one update older would be seen at once."""
    trainer, seen = run(recipe, 120, warmup=40)
    actions, state = by_hand(recipe, 120, 40)
    assert np.abs(np.array(seen.actions) - actions).max() < 1e-4
    for a, b in zip(
        jax.tree.leaves(trainer.learner.state.critics), jax.tree.leaves(state.critics), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-4)
    late, _ = by_hand(recipe, 120, 40, lag=1)
    assert np.abs(late[:40] - actions[:40]).max() == 0  # random
    assert np.abs(late[44:] - actions[44:]).max() > 1e-3


@pytest.mark.slow
def test_vector_environments_get_an_update_for_each_step_of_each():
    trainer, seen = run("td3", 300, envs=3, warmup=60)
    assert seen.steps == list(range(0, 300, 3))
    assert seen.updates == [max(0, t - 60) for t in range(0, 300, 3)]
    assert trainer.updates == 240
    assert all(len({tuple(row) for row in action}) == 3 for action in seen.actions[:20])  # random


def test_slow_updates_are_made_in_short_calls(monkeypatch):
    """So that a request to stop is seen in time. Their length changes no number."""
    once, _ = run("td3+checkpoints", 200, warmup=60)
    calls, learn = [], ReplayLearner.learn
    monkeypatch.setattr(
        ReplayLearner, "learn", lambda self, most: calls.append(learn(self, most)) or calls[-1]
    )
    monkeypatch.setattr(chunks, "SECONDS", 0.0)
    again, _ = run("td3+checkpoints", 200, warmup=60)
    assert calls[:5] == [8, 8, 4, 2, 1]
    assert set(calls[5:]) == {1}
    for a, b in zip(jax.tree.leaves(once.learner.state), jax.tree.leaves(again.learner.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_checkpoints_with_vector_environments_train_only_between_episodes():
    """Episodes of 30, 35 and 40 steps. An episode judges only the policy it began with: after a burst the two
    others are under way, judge nobody, and their steps are counted in the next burst."""
    trainer, seen = run("td3+checkpoints", 900, envs=3, warmup=90)
    bursts = np.flatnonzero(np.diff(seen.updates)) + 1
    ends = {t for seed in range(3) for t in range(30 + 5 * seed, 301, 30 + 5 * seed)}
    assert len(bursts) > 3
    assert set(bursts.tolist()) <= ends
    assert trainer.kept is not None
    assert 0 < trainer.updates <= 900 - 90


@pytest.mark.parametrize(
    ("recipe", "next_observation"), [slow("td3+checkpoints", "stored"), ("td3+lap+checkpoints", "derived")]
)
def test_no_transition_in_replay_crosses_a_reset(recipe, next_observation):
    """Three environments with episodes of 30, 35 and 40 steps, a replay that was overwritten, and returns
    over three steps: every row is one piece of one episode. (No update: none could write to a row.)"""
    base = {"replay_capacity": 300, "next_observation": next_observation}
    trainer, _ = run(recipe, 900, envs=3, warmup=900, **base)
    agent, layout, rows, index = (
        trainer.agent,
        trainer.learner.layout,
        trainer.learner.storage,
        trainer.learner.carry.replay_state,
    )
    i = agent.replay.sample(layout, rows, index, jax.random.key(3), 5_000)
    batch = rows_at(layout, rows, index, i, 3, 0.99, {"previous_observation"})
    at, after = np.asarray(batch.observation), np.asarray(batch.next_observation)
    before = np.asarray(batch.extra["previous_observation"])
    seed, episode, now = at.T
    assert set(seed) == {0, 1, 2}
    assert len(set(i.tolist())) > 250
    assert (after[:, :2] == at[:, :2]).all()  # the same environment and episode
    k = after[:, 2] - now
    newest = trainer.adapter.observation[seed.astype(int)]  # there the data end
    length = 30 + 5 * seed
    ends = after[:, 2] == length
    assert (now < length).all()
    assert ((k == 3) | ends | (after == newest).all(1)).all()
    assert ((k >= 1) & (k <= 3)).all()
    assert (np.asarray(batch.terminated) == (ends & (episode % 2 == 1))).all()
    np.testing.assert_allclose(batch.discount, 0.99**k, rtol=1e-6)
    assert (before[:, :2] == at[:, :2]).all()
    assert np.isin(now - before[:, 2], (0, 1)).all()
    assert (before[now == 0] == at[now == 0]).all()


# --- evaluation --------------------------------------------------------------------------------------


def test_evaluations_repeat_the_same_episodes_and_share_them_out():
    adapter, agent = make(Clock, 2, seed=0), build("td3", settings("td3"))
    trainer = make_session(Plan("td3", "Clock", 10), agent, make(Clock))
    first = evaluate(trainer.learner.programs, trainer.learner.acting, adapter, 5, seed=4)
    # Seeds 4 and 5 have episodes of 35 and 40 steps; the first has three of the five, the second two.
    assert [e.length for e in first] == [35, 40, 35, 40, 35]
    assert evaluate(trainer.learner.programs, trainer.learner.acting, adapter, 5, seed=4) == first
    assert [
        e.length for e in evaluate(trainer.learner.programs, trainer.learner.acting, adapter, 3, seed=5)
    ] == [40, 30, 40]


def test_training_is_the_same_with_and_without_evaluation(tmp_path):
    plan = Plan("td3", "Pendulum-v1", 260, settings=settings("td3", warmup=60), eval_episodes=2)
    for every, name in [(0, "without"), (50, "with")]:
        list(train(dataclasses.replace(plan, eval_every=every), tmp_path / name))
    rows = evaluations(tmp_path / "with")
    assert [int(row["step"]) for row in rows[::2]] == [0, 50, 100, 150, 200, 250, 260]
    assert evaluations(tmp_path / "without") == []
    trees = {"state", "replay", "environment"}
    assert arrays(tmp_path / "with", trees) == arrays(tmp_path / "without", trees)


# --- the run folder ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run of TD7 and its events."""
    folder = tmp_path_factory.mktemp("run") / "td7" / "3"
    plan = Plan(
        "td7",
        "tiny:Clock-v0",
        400,
        seed=3,
        env_args={"length": 20},
        settings=settings("td7") | {"checkpoints": {"switch": 900}},
        eval_every=150,
        eval_episodes=3,
        log_every=60,
        save_every=15,
    )
    return folder, plan, list(train(plan, folder))


def test_events_in_their_order(told):
    events = told[2]
    assert isinstance(events[0], ev.Started)
    assert events[0].label.startswith("td7[")
    assert "checkpoints.switch=900" in events[0].label
    assert isinstance(events[-1], ev.Ended)
    assert events[-1].updates == 300  # 80 random steps to an episode's end, then 15 bursts of 20
    steps = [e.step for e in events if not isinstance(e, ev.Started)]
    assert steps == sorted(steps)
    assert [e.step for e in events if isinstance(e, ev.EpisodeDone)] == list(range(20, 401, 20))
    assert all(e.length == 20 for e in events if isinstance(e, ev.EpisodeDone))
    assert [(e.step, e.policy) for e in events if isinstance(e, ev.Evaluated)] == [
        (step, policy) for step in (0, 150, 300, 400) for policy in ("current", "kept")
    ]
    assert [e.step for e in events if isinstance(e, ev.Logged)] == [60, 120, 180, 240, 300, 360, 400]
    assert [ev.from_json(json.loads(json.dumps(ev.to_json(e)))) for e in events] == events


def test_the_short_warm_up_and_moved_fields_are_told(told):
    notes = told[2][0].notes
    assert "the run is short: base.warmup = 80 (a fifth of it) instead of 25000" in notes
    assert "sale sets base.critic_activation = elu (was relu)" in notes
    assert any(note.startswith("replay: 2,000 transitions") for note in notes)


def test_run_json_says_everything(told):
    folder, plan, _ = told
    record = json.loads((folder / "run.json").read_text())
    for name in ("recipe", "env", "steps", "seed", "envs", "eval_every", "eval_episodes", "log_every"):
        assert record[name] == getattr(plan, name)
    assert record["env_args"] == {"length": 20}
    agent = build("td7", plan.settings)
    for name, part in {"base": agent.base, **agent.parts}.items():
        fields = {f.name for f in dataclasses.fields(part)}
        assert record["settings"].get(name, {}).keys() == fields
    assert record["settings"]["checkpoints"]["switch"] == 900
    assert record["settings"]["base"]["warmup"] == 80
    assert record["settings"]["base"]["critic_activation"] == "elu"
    assert "sale sets base.critic_activation = elu (was relu)" in record["moved"]
    assert {"python", "qscape", "jax", "gymnasium", "mujoco", "numpy"} <= record["versions"].keys()
    assert record["machine"].keys() == {"system", "processor", "cores", "device"}
    assert record["command"].startswith("qscape")
    assert "threads" in record
    again = folders.read_plan(folder)
    stored = agents.settings_of(build(again.recipe, again.settings))
    assert json.loads(json.dumps(stored)) == record["settings"]


def test_evaluations_and_metrics_can_be_read_by_anything(told):
    folder, _, events = told
    text = (folder / "evaluations.csv").read_text().splitlines()
    assert text[0] == "step,policy,episode,return,length,success,seconds"
    rows = evaluations(folder)
    assert [(r["step"], r["policy"], r["episode"]) for r in rows[:6]] == [
        ("0", policy, str(k)) for policy in ("current", "kept") for k in range(3)
    ]
    returns = [r for e in events if isinstance(e, ev.Evaluated) for r in e.returns]
    assert [float(r["return"]) for r in rows] == returns
    strict = partial(json.loads, parse_constant=pytest.fail)  # neither NaN nor Infinity is JSON
    lines = [strict(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [60, 120, 180, 240, 300, 360, 400]
    assert [line["updates"] for line in lines] == [0, 20, 80, 140, 200, 260, 300]
    assert {"critic_loss", "actor_loss", "q", "return", "steps_per_second"} <= lines[-1].keys()
    assert lines[0].keys() == {"step", "updates", "return", "steps_per_second"}  # no update yet
    assert len(list(folder.glob("events.out.*"))) == 1


def test_saves_keep_the_last_and_every_tenth_and_two_replays(told):
    folder, *_ = told
    place = folder / "saves"
    assert saves.names(place) == [f"{n:09d}" for n in [*range(40, 361, 40), 390, 400]]
    trees = {name: set(saves.tree_names(place / name)) for name in saves.names(place)}
    common = {"acting", "state", "loop", "environment", "kept"}
    for name in ("000000390", "000000400"):
        assert trees.pop(name) == common | {"replay"}
    assert all(t == common for t in trees.values())
    assert {p.name for p in folder.iterdir() if not p.name.startswith("events.out")} == {
        "run.json", "metrics.jsonl", "evaluations.csv", "saves", ".lock"
    }  # fmt: skip


def test_a_run_can_be_evaluated_by_either_policy(told):
    folder, *_ = told
    rows = [row for row in evaluations(folder) if row["step"] == "400"]
    for current, name in [(False, "kept"), (True, "current")]:
        step, policy, done = evaluate_run(folder, 3, current=current)
        assert (step, policy) == (400, name)
        expected = [float(row["return"]) for row in rows if row["policy"] == name]
        assert [e.ret for e in done] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("unreadable", [False, True])
def test_an_evaluation_that_fails_closes_its_environments(told, monkeypatch, unreadable):
    def fail(*_):
        raise RunError("damaged")

    folder, closed = told[0], []
    monkeypatch.setattr(EnvAdapter, "close", lambda adapter: closed.append(adapter))
    if unreadable:
        monkeypatch.setattr("qscape.run.policy.read_acting", fail)
    with pytest.raises(RunError if unreadable else UsageError):
        evaluate_run(folder, 3, sample=True)
    assert [adapter.envs for adapter in closed] == [3]


def test_the_users_word_wins_and_is_not_called_moved():
    plan = Plan("td7", "Clock", 100_000, settings={"base": {"critic_activation": "relu", "warmup": 9}})
    plan, agent, notes = prepare(plan)
    assert (agent.base.critic_activation, agent.base.warmup) == ("relu", 9)
    assert not any("critic_activation" in note or "short" in note for note in notes)
    assert any("actor_objective = mean" in note for note in notes)


def test_warm_ups_of_short_runs():
    assert prepare(Plan("td3", "Clock", 50_000))[1].base.warmup == 25_000
    assert prepare(Plan("td3", "Clock", 49_999))[1].base.warmup == 9_999
    assert prepare(Plan("sac", "Clock", 10_000))[1].base.warmup == 5_000
    with pytest.raises(UsageError, match=r"--base\.warmup 100 leaves no update in 100 steps"):
        prepare(Plan("td3", "Clock", 100, settings={"base": {"warmup": 100}}))


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path):
    another = folders.locked(tmp_path)
    with folders.locked(tmp_path), pytest.raises(RunError, match="in use by another process"):
        another.__enter__()
    with folders.locked(tmp_path):
        pass


def test_runs_of_a_group_are_found_in_the_order_of_their_seeds(tmp_path):
    for name in ("10", "9", "best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    assert [p.name for p in folders.run_folders(tmp_path)] == ["9", "10", "best"]
    assert folders.one_run(tmp_path / "9") == tmp_path / "9"
    with pytest.raises(UsageError, match="holds 3 runs; name one"):
        folders.one_run(tmp_path)
