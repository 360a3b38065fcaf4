"""A run says once what its environment does not keep, does not repeat, or does not end."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from strangers import checked

from qscape.cli import main
from qscape.envs import make, snapshot
from qscape.envs.patience import Call, Patience
from qscape.envs.repeats import SaveWitness, compare_steps, make_draw, seed_resets, warn_of_starts
from qscape.errors import UsageError
from qscape.run import events as ev
from qscape.run import saves
from qscape.run import session as session_module
from qscape.run.plan import Plan, prepare
from qscape.run.training import make_session


def run(env, recipe="td3", steps=60, saver=None, eval_envs=2, args=None, **fields):
    """The events of a run in memory; `saver`: called at every save with the session."""
    base = {"warmup": 20, **fields}
    plan, agent, _ = prepare(
        Plan(
            recipe,
            "",
            steps,
            settings=tiny.settings(recipe, **base),
            eval_every=10**6,
            log_every=20,
            save_every=15,
        )
    )
    adapter = make(env, 1, args)
    other = make(env, eval_envs, args, seed=1000) if eval_envs else None
    session = make_session(plan, agent, adapter, other, saver)
    return list(session.events(steps)), session


def warnings(events):
    return [w for event in events if isinstance(event, ev.Started | ev.Logged) for w in event.warnings]


def keep(kept):
    """A saver that keeps snapshots."""

    def save(session, milestone, seed):
        kept.append(session.save(seed).environment)
        return None

    return save


@pytest.mark.parametrize("envs", [1, 3])
def test_a_save_that_only_says_exact_says_so_no_longer(envs):
    kept = []
    events, _ = run(checked.Handle, saver=keep(kept), eval_envs=envs)
    told = warnings(events)
    assert len(told) == 1
    assert "no save sees" in told[0]
    assert "check" in told[0]
    assert [save.meta["exact"] for save in kept] == [False] * len(kept)
    assert all("no save sees" in save.meta["why"] for save in kept)


@pytest.mark.parametrize("env", [checked.Sound, checked.Reuses, checked.Unkept])
def test_a_true_save_stays_one_and_evaluations_are_not_disturbed(env):
    kept = []
    events, _ = run(env, saver=keep(kept))
    assert warnings(events) == []
    assert {save.meta["exact"] for save in kept} == {env is not checked.Unkept}
    alone, _ = run(env)  # without saves nothing is verified

    def returns(of):
        return [event.returns for event in of if isinstance(event, ev.Evaluated)]

    assert returns(events) == returns(alone)
    assert len(returns(events)) == 2


def test_learning_in_pieces_asks_once(monkeypatch):
    asked, taken = [], []
    monkeypatch.setattr(session_module, "seed_resets", lambda *adapters: asked.append(adapters) or [])
    take = snapshot.take_first
    monkeypatch.setattr(snapshot, "take_first", lambda adapter: taken.append(adapter) or take(adapter))
    _, session = run(checked.Sound, steps=30, saver=keep([]))
    assert (len(asked), len(taken)) == (1, 2)  # the environment of training and that of evaluations
    for until in (45, 60):
        list(session.events(until))
    assert (len(asked), len(taken)) == (1, 2)


def test_the_other_environment_gets_its_own_state_back():
    adapter, other = make(checked.Sound), make(checked.Sound, seed=7)
    for one in (adapter, other):
        one.reset()
        one.step(np.ones((1, 1), np.float32))
    before = snapshot.take(other)
    adapter.witness, draw = SaveWitness(other, after=3), make_draw()
    for _ in range(5):
        adapter.step(draw(adapter))
    after = snapshot.take(other)
    assert adapter.witness is None
    assert adapter.unkept == ""
    assert before.meta == after.meta
    for name, array in before.arrays.items():
        np.testing.assert_array_equal(after.arrays[name], array)


@pytest.mark.parametrize("envs", [1, 2])
def test_starts_that_differ_are_told_with_the_argument_that_helps(envs):
    told = warnings(run(checked.Stored, eval_envs=envs)[0])
    assert len(told) == 1
    assert "--env.seed 0" in told[0]
    assert "check" in told[0]
    assert warnings(run(checked.Stored, args={"seed": 0})[0]) == []
    told = warnings(run(checked.Unseeded)[0])
    assert "self.np_random" in told[0]


def test_starts_that_are_equal_are_not_told():
    adapter, other = make(checked.Sound), make(checked.Sound, seed=1000)
    adapter.reset()
    assert warn_of_starts(adapter, other) == []
    assert warn_of_starts(adapter, None) == []


def play_starts(env, asks=True, steps=70):
    """First observations of all episodes of two environments, and their adapter."""
    adapter, other = make(env, 2, seed=5), make(env, 3, seed=1000)
    if asks:
        assert seed_resets(adapter, other) == []
    starts = [adapter.reset()]
    for _ in range(steps):
        step = adapter.step(np.zeros((2, 1), np.float32))
        starts += [step.observation] if step.finished else []
    return np.stack(starts), adapter


def test_each_episode_gets_a_seed_where_resets_draw_entropy():
    fresh = checked.FreshAfterTheFirst
    assert not np.array_equal(play_starts(fresh, asks=False)[0], play_starts(fresh, asks=False)[0])
    starts, adapter = play_starts(fresh)
    assert np.array_equal(starts, play_starts(fresh)[0])
    assert len(np.unique(starts[..., 0])) == starts[..., 0].size  # no episode is played twice
    again = make(fresh, 2, seed=5)
    assert snapshot.restore(again, snapshot.take(adapter)) == ""
    assert compare_steps(adapter, again, make_draw(), 60) is None


@pytest.mark.parametrize("env", [checked.Sound, "Pendulum-v1"])
def test_no_episode_gets_another_start_where_resets_go_on_with_their_seed(env):
    starts, adapter = play_starts(env)
    assert adapter.given_seeds is None
    assert np.array_equal(starts, play_starts(env, asks=False)[0])


def test_nothing_is_learned_and_the_run_says_so():
    events, session = run(checked.Forever, "td7", steps=1_060, eval_envs=0, warmup=50)
    told = [w for w in warnings(events) if "episode has ended" in w]
    assert session.updates == 0
    assert len(told) == 1
    assert "max-episode-steps" in told[0]
    assert "check" in told[0]
    events, session = run(checked.Sound, "td7", steps=1_060, warmup=50)
    assert warnings(events) == []
    assert session.updates > 0


# --- environments that do not return, or whose process dies -----------------------------------------

SHORT = ["--steps", "200", "--eval-every", "0", "--save-every", "150", "--step-seconds", "2.5"]


def train(tmp_path, what, *flags):
    """The arguments of a run on `Late`."""
    env = ["--env", "strangers.checked:CheckedLate-v0", "--env.what", what, "--out", str(tmp_path / "runs")]
    return ["train", "td3", *env, *SHORT, *tiny.flags("td3", warmup=20), *flags]


def saved(tmp_path):
    """The environment's part of the newest save, and the steps that were made."""
    folder = tmp_path / "runs" / "0"
    path = folder / "saves" / saves.names(folder / "saves")[-1]
    meta = saves.read_meta(path)
    return meta["environment"], meta["numbers"]["env_steps"]


@pytest.mark.parametrize(
    ("what", "call"), [("sleep", "its step"), ("loop", "its step"), ("reset", "its reset")]
)
def test_a_run_whose_environment_hangs_is_saved_and_ends_with_a_sentence(tmp_path, capsys, what, call):
    assert main(train(tmp_path, what, "--quiet")) == 1
    told = capsys.readouterr().err
    assert f"CheckedLate-v0 did not return from {call} within 2.5 seconds" in told
    assert "--step-seconds" in told
    assert "qscape check strangers.checked:CheckedLate-v0" in told
    environment, steps = saved(tmp_path)
    assert not environment["exact"]
    assert 29 <= steps < 60
    again = ["resume", str(tmp_path / "runs" / "0"), "--trust", "--quiet", "--steps", str(steps + 15)]
    assert main(again) == 0


def test_a_process_that_no_signal_reaches_is_saved_and_ends(tmp_path):
    process = tiny.start(*train(tmp_path, "lock"))
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "CheckedLate-v0 did not return from its step within 2.5 seconds" in told
    assert saved(tmp_path)[1] == 29


@pytest.mark.parametrize(("what", "why"), [("abort", "was killed (SIGABRT)"), ("sleep", "did not return")])
def test_environments_in_processes_of_their_own(tmp_path, capsys, what, why):
    assert main(train(tmp_path, what, "--quiet", "--envs", "2", "--vectorise", "async")) == 1
    assert why in capsys.readouterr().err
    environment, steps = saved(tmp_path)
    assert not environment["exact"]
    assert steps == 58


def test_patience_counts_each_call_and_not_the_run():
    calls, one = [], SimpleNamespace(env_id="x", called=None)
    with Patience(lambda: [one], 0.4, lambda *call: calls.append(call)):
        for k in range(8):
            one.called = Call("step", k)
            time.sleep(0.1)
        one.called = None
        time.sleep(0.6)
        assert calls == []
        one.called = Call("reset", 9.0)
        time.sleep(0.8)
    assert [call.what for _, call in calls] == ["reset"]
    with Patience(lambda: [one], 0, lambda *call: calls.append(call)):  # as long as it likes
        time.sleep(0.3)
    assert len(calls) == 1


@pytest.mark.parametrize("wrong", [-1.0, float("inf"), float("nan")])
def test_patience_is_a_number_of_seconds(wrong):
    with pytest.raises(UsageError):
        Plan("td3", "Pendulum-v1", 10, step_seconds=wrong)
