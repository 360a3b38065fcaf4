"""Goals relabelled in hindsight, against rows relabelled by hand on a small task."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from goal_envs import NEAR, Judged, Line
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rows import slow, slow_except
from runs_on_disk import write_run
from test_drive import leaves, take_early, told
from tiny import Rooms, assert_same_run, settings, stop_at

import qscape as qs
from qscape import agents
from qscape.cli import main as qscape
from qscape.cli import tune
from qscape.cli.study import line, runs_table
from qscape.contrib.her import HER
from qscape.envs import adapter as adapters
from qscape.envs import goals, make
from qscape.envs.goals import GoalFunction
from qscape.envs.lag import NO_LAG, Lag
from qscape.errors import RunError, UsageError
from qscape.jobs.progress import RunProgress
from qscape.jobs.study import Row
from qscape.jobs.trials import Search, Trial
from qscape.offpolicy.sockets import EpisodeEnd, StepEnd
from qscape.replay.storage import rows_at
from qscape.run import Plan, resume, train
from qscape.run import events as ev
from qscape.run.folder import read_record
from qscape.run.sinks import evaluation_means
from qscape.run.training import make_session, make_shared_session


def fixed_goals(part: HER, rng: np.random.Generator, length: int) -> list[np.ndarray]:
    """Two copies: one goal for all rows, and pairs of rows with the goal of their second one."""
    steps = np.arange(length)
    return [np.full(length, length - 1), np.minimum(steps // 2 * 2 + 1, length - 1)]


def begun(
    recipe: str = "td3+her",
    envs: int = 1,
    steps: int = 60,
    env_class: type = Line,
    own: dict[str, Any] | None = None,
    mode: AutoresetMode = AutoresetMode.SAME_STEP,
    vectorise: Any = "sync",
    parts: dict[str, Any] | None = None,
    lag: Lag = NO_LAG,
    **base: Any,
) -> Any:
    """A run in memory; `own`: the environment's arguments."""
    wanted = settings(recipe, **{"warmup": 20} | base) | (parts or {})
    plan = Plan(recipe, "Line", steps, envs=envs, settings=wanted, eval_every=0, log_every=10**6)
    env = f"goal_envs:Goal{env_class.__name__}-v0" if vectorise == "async" else env_class
    if env is env_class:
        env = lambda **args: env_class(**args)  # noqa: E731
    adapter = make(env, envs, own, autoreset=mode, vectorise=vectorise, lag=lag)
    return make_session(plan, agents.build(recipe, wanted), adapter)


def follow(session: Any) -> list[list[dict[str, Any]]]:
    """Record, for each environment, its steps as the environment gave them, while the session runs."""
    taken: list[list[dict[str, Any]]] = [[] for _ in range(session.adapter.envs)]
    step = session.adapter.step

    def recorded(action: np.ndarray) -> Any:
        made = step(action)
        new = made.transition
        for e in np.flatnonzero(new.valid).tolist():
            columns = ("observation", "action", "reward", "terminated", "truncated", "next_observation")
            taken[e].append({name: np.array(getattr(new, name)[e]) for name in columns})
        return made

    session.adapter.step = recorded
    return taken


def rows_of(session: Any, env: int, n_step: int = 1, discount: float = 1.0) -> list[dict[str, np.ndarray]]:
    """The rows of a ring in the order in which they were written, without heads and pads."""
    learner = session.learner
    layout, state = learner.layout, learner.carry.replay_state
    assert int(state.size[env]) < layout.ring, "the ring must not be full for this"
    i = env * layout.ring + np.arange(int(state.size[env]))
    if not layout.stores_next:
        words = np.asarray(learner.storage)[i, layout.slices["valid"].start]
        i = i[np.asarray(words.view(np.float32) if words.dtype != np.float32 else words) > 0]
    batch = rows_at(layout, learner.storage, state, i, n_step, discount)
    ends = np.asarray(learner.storage)[i, layout.slices["truncated"].start]
    ends = ends.view(np.float32) if ends.dtype != np.float32 else ends
    columns = {name: np.asarray(getattr(batch, name)) for name in batch._fields if name != "extra"}
    columns["discount"] = np.broadcast_to(columns["discount"], len(i))
    columns["truncated"] = ends
    return [{name: column[k] for name, column in columns.items()} for k in range(len(i))]


def by_hand(steps: list[dict[str, Any]], own: dict[str, Any]) -> list[dict[str, Any]]:
    """Relabel the steps of an environment in plain Python: all rows in the order in which replay has them."""
    place = {"achieved": 0, "desired": 1}  # entries of an observation: keys in alphabetic order
    rows, episode = [], []
    for step in steps:
        rows.append(dict(step))
        episode.append(step)
        if not (step["terminated"] or step["truncated"]):
            continue
        length = len(episode)
        after = [one["next_observation"][place["achieved"]] for one in episode]
        for copy in fixed_goals(HER(), np.random.default_rng(), length):
            for t, one in enumerate(episode):
                row, goal = dict(one), after[copy[t]]
                for name in ("observation", "next_observation"):
                    row[name] = one[name].copy()
                    row[name][place["desired"]] = goal
                reached = abs(float(after[t]) - float(goal)) <= NEAR
                cost = 0.125 * (t + 1) if "info" in own.get("way", "rows") else 0.0
                row["reward"] = (0.0 if reached else -1.0) - cost
                fell = own.get("falls", False) and t == 4
                row["terminated"] = (own.get("ends", False) and reached) or fell
                stretch_ends = t == length - 1 or copy[t] != copy[t + 1]
                row["truncated"] = stretch_ends and not row["terminated"]
                rows.append(row)
        episode = []
    return rows


def sums(rows: list[dict[str, Any]], n: int, discount: float) -> list[dict[str, Any]]:
    """The rows with n-step rewards, by a plain loop; the last row may be in the middle of an episode."""
    summed = []
    for t, row in enumerate(rows):
        total, k = 0.0, 0
        while True:
            one = rows[t + k]
            total, k = total + discount**k * float(one["reward"]), k + 1
            if k == n or one["terminated"] or one["truncated"] or t + k == len(rows):
                break
        found = {"reward": total, "terminated": one["terminated"], "discount": discount**k}
        summed.append(dict(row) | found | {"next_observation": one["next_observation"]})
    return summed


HOW: dict[str, dict[str, Any]] = {
    "next observations stored": {},
    "derived, in priorities": {"recipe": "sac+her+lap", "next_observation": "derived"},
    "three environments, which differ in length": {"envs": 3, "steps": 150},
    "three that reset a step later": {"envs": 3, "steps": 150, "mode": AutoresetMode.NEXT_STEP},
    "three that are told to reset": {"envs": 3, "steps": 150, "mode": AutoresetMode.DISABLED},
    "that end at the goal": {"own": {"ends": True}, "next_observation": "derived"},
    "that fall, and end at the goal": {"own": {"ends": True, "falls": True}},
    "that fall": {"own": {"falls": True}},
    "one goal at a time": {"own": {"way": "one"}},
    "infos of rows": {"own": {"way": "infos"}},
    "one info at a time": {"own": {"way": "one info"}},
    "infos of rows, that end at the goal": {"own": {"way": "infos", "ends": True, "length": 14}},
    "goals in float32": {"own": {"dtype": "float32"}},
    "an environment that says which goals end it": {"env_class": Judged, "own": {"ends": True}},
    "columns of replay": {"recipe": "td3+savo+her"},
    "sensors that lag": {"lag": Lag(history=2, observation_delay=1)},
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_rows_are_those_relabelled_by_hand(how, monkeypatch):
    monkeypatch.setattr(HER, "draw_goals", fixed_goals)
    session = begun(**how)
    taken = follow(session)
    if how.get("env_class") is not Judged:  # as after a goal that was reached
        own, known = how.get("own", {}), session.engine.hindsight.success[0]
        cost = np.full(1, -2.0 if "info" in own.get("way", "rows") else 0.0)
        known.observe(
            SimpleNamespace(success=np.ones(1), terminated=np.array([own.get("ends", False)])), cost, cost
        )
    list(session.events(session.until))
    for env, steps in enumerate(taken):
        expected = by_hand(steps, how.get("own", {}))
        for n in (1, 3):
            found, want = rows_of(session, env, n, 0.9), sums(expected, n, 0.9)
            assert len(found) == len(want) > len(steps)
            for t, (row, should) in enumerate(zip(found, want, strict=True)):
                for name in row:
                    np.testing.assert_allclose(
                        row[name], np.float32(should[name]), rtol=1e-6, atol=1e-6, err_msg=f"{t} {name} {n}"
                    )


def test_relabelled_rows_in_half_the_memory(monkeypatch):
    """The goal is rounded as an observation is; the rest of the row is that of the real one to the bit."""
    monkeypatch.setattr(HER, "draw_goals", fixed_goals)
    session = begun(replay_observations="bfloat16")
    taken = follow(session)
    list(session.events(60))
    expected = by_hand(taken[0], {})
    for row, should in zip(rows_of(session, 0), expected, strict=True):
        rounded = np.asarray(jax.numpy.asarray(should["observation"], jax.numpy.bfloat16), np.float32)
        np.testing.assert_array_equal(row["observation"], rounded)
        assert row["reward"] == should["reward"]


def test_the_goals_of_each_strategy_have_their_probabilities():
    length, draws = 4, 4_000
    counts = {}
    for strategy in ("future", "final", "episode"):
        part, rng = HER(strategy=strategy, relabels=2), np.random.default_rng(0)
        drawn = np.array([copy for _ in range(draws) for copy in part.draw_goals(rng, length)])
        assert drawn.shape == (2 * draws, length)
        counts[strategy] = np.stack([(drawn == j).mean(0) for j in range(length)], 1)  # [row, goal]
    future = np.triu(np.ones((length, length)))
    np.testing.assert_allclose(counts["future"], future / future.sum(1, keepdims=True), atol=0.02)
    np.testing.assert_allclose(counts["episode"], np.full((length, length), 0.25), atol=0.02)
    np.testing.assert_array_equal(counts["final"], np.eye(length)[[-1] * length])


@pytest.mark.parametrize(("relabels", "ratio"), [(4, None), (4, 0.8), (4, 0.6), (1, 0.2), (2, 0.0)])
def test_the_share_of_relabelled_rows(relabels, ratio):
    part, rng = HER(relabels=relabels, ratio=ratio), np.random.default_rng(0)
    copies = [len(part.draw_goals(rng, 5)) for _ in range(3_000)]
    share = np.mean(copies) / (1 + np.mean(copies))
    assert share == pytest.approx(relabels / (relabels + 1) if ratio is None else ratio, abs=0.01)
    assert max(copies) - min(copies) <= 1


def test_a_share_that_the_copies_cannot_make_is_refused():
    with pytest.raises(UsageError, match="relabels") as raised:
        HER(relabels=1, ratio=0.6)
    assert (raised.value.part, raised.value.field) == ("her", "ratio")


CASES = {
    "td3": ("td3+her", {}),
    "sac, lap, three environments, n steps": ("sac+lap+her", {"envs": 3, "n_step": 3}),
    "statistics of observations": ("td3+normalise+her", {"next_observation": "derived"}),
    "between episodes": ("td7+her", {}),
}


# The quick compiler of `make test` rounds otherwise in the driven program, with and without relabelled rows.
@pytest.mark.parametrize(
    "case", slow_except([CASES["td3"], CASES["between episodes"]], CASES.values()), ids=CASES
)
def test_the_driven_program_is_the_host_loop(case, monkeypatch):
    recipe, how = case
    how = how | {"steps": 260, "parts": {"checkpoints": {"early_episodes": 2}} if "td7" in recipe else {}}
    monkeypatch.setattr(adapters, "HOST_ONLY", (*adapters.HOST_ONLY, "goal_envs"))
    apart = begun(recipe, **how)
    heard = told(apart, 260)
    take_early(monkeypatch)
    monkeypatch.setattr(adapters, "HOST_ONLY", (*adapters.HOST_ONLY, "goal_envs"))
    driven = begun(recipe, **how)
    assert str(told(driven, 260)) == str(heard)
    assert apart.engine.driver is None
    assert driven.engine.driver is not None
    for (name, one), (_, other) in zip(leaves(apart), leaves(driven), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_two_seeds_of_a_program_relabel_like_one(monkeypatch):
    """Replay holds the rows that the runs of one seed would hold, but for rounding."""
    monkeypatch.setattr(HER, "draw_goals", fixed_goals)
    recipe, wanted = "td3+her", settings("td3+her", warmup=200)  # random actions only, which rounding spares
    plans = [Plan(recipe, "Line", 40, seed=seed, settings=wanted, eval_every=0) for seed in (0, 1)]
    agent = agents.build(recipe, wanted)
    shared = make_shared_session(plans, agent, [make(lambda: Line(), seed=seed) for seed in (0, 1)])
    list(shared.events(40))
    for k, plan in enumerate(plans):
        alone = make_session(plan, agent, make(lambda: Line(), seed=k))
        list(alone.events(40))
        np.testing.assert_array_equal(shared.learner.storage[k], alone.learner.storage)


@pytest.mark.parametrize("recipe", ["td3+normalise+her", slow("sac+lap+her")])
@pytest.mark.parametrize("way", ["rows", "infos", slow("one info")])
def test_a_run_goes_on_in_the_middle_of_an_episode(recipe, way, tmp_path):
    """Stopped at step 45 of episodes of 10: goals and infos of its first half are known after it."""
    plan = Plan(
        recipe,
        "goal_envs:GoalLine-v0",
        90,
        envs=2,
        env_args={"length": 10, "way": way},
        settings=settings(recipe, warmup=30),
        eval_every=40,
        eval_episodes=1,
        log_every=20,
        save_every=1000,
    )
    list(train(plan, tmp_path / "whole"))
    *_, end = train(plan, tmp_path / "parts", on_trainer=stop_at(45))
    assert isinstance(end, ev.Ended)
    assert end.interrupted
    list(resume(tmp_path / "parts"))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_an_episode_whose_last_step_was_cut_is_not_relabelled(monkeypatch):
    """Environment 0 ends its episode in the step in which environment 1 breaks: replay lacks that step."""

    class Breaking(Line):
        breaks = True

        def step(self, action):
            if self.length == 8 and self.now == 5 and Breaking.breaks:
                Breaking.breaks = False
                raise OSError("the cable fell off")
            return super().step(action)

    monkeypatch.setattr(HER, "draw_goals", fixed_goals)
    session = begun(env_class=Breaking, envs=2, steps=100)
    taken = follow(session)
    with pytest.raises(RunError, match="cable"):
        list(session.events(100))
    cut = len(taken[0])
    list(session.events(100))
    assert cut == 5 < len(taken[0])
    for steps in taken:
        steps[4] = steps[4] | {"truncated": True}
    for env, steps in enumerate(taken):
        expected = steps[:5] + by_hand(steps[5:], {})
        for row, should in zip(rows_of(session, env), expected, strict=True):
            for name in ("observation", "reward", "terminated", "truncated"):
                np.testing.assert_array_equal(row[name], np.float32(should[name]), err_msg=name)


def test_statistics_see_relabelled_goals(monkeypatch):
    """Of each entry: the mean over what was acted on and over the relabelled rows."""
    monkeypatch.setattr(HER, "draw_goals", fixed_goals)
    session = begun("td3+normalise+her", steps=48)
    taken = follow(session)
    list(session.events(48))
    seen = [row["observation"] for row in by_hand(taken[0], {})] + [session.adapter.observation[0]]
    moments = session.learner.state.part_states["normalise"].extra
    np.testing.assert_allclose(moments.mean, np.mean(seen, 0), rtol=1e-4, atol=1e-4)
    plain = begun("td3+normalise", steps=48)
    list(plain.events(48))
    assert not np.allclose(plain.learner.state.part_states["normalise"].extra.mean, moments.mean, atol=1e-3)


def test_the_same_goals_in_single_and_double_precision_succeed_alike():
    """A goal is kept as it was given: rounded to float32, one at the very rim would be missed."""
    rim = np.float64(1.0) + NEAR
    line = Line()
    reward = GoalFunction(line.compute_reward, "compute_reward", "Line")
    achieved, desired = np.array([[1.0], [1.0], [1.0]]), np.array([[rim], [rim], [rim]])
    assert abs(1.0 - rim) <= NEAR
    assert abs(1.0 - float(np.float32(rim))) > NEAR
    np.testing.assert_array_equal(reward(achieved, desired, [{}] * 3), [0.0] * 3)
    runs = {}
    for dtype in ("float32", "float64"):
        session = begun(own={"dtype": dtype}, steps=60, warmup=100)
        list(session.events(60))
        runs[dtype] = [row["reward"] for row in rows_of(session, 0)]
    assert runs["float32"] == runs["float64"]


def test_methods_of_rows_are_called_once_and_others_for_each_row():
    calls = {}
    for way in ("rows", "one"):
        line = Line(way=way)
        line.calls = 0
        reward = GoalFunction(line.compute_reward, "compute_reward", "Line")
        rows = np.linspace(0, 1, 50)[:, None]
        found = reward(rows, rows[::-1], [{}] * 50)
        np.testing.assert_array_equal(found, np.where(np.abs(rows - rows[::-1])[:, 0] <= NEAR, 0.0, -1.0))
        calls[way] = line.calls
    assert calls["rows"] <= 8
    assert calls["one"] >= 50
    notes = {way: [*begun_notes(way)] for way in ("rows", "one")}
    assert not any("one goal at a time" in note for note in notes["rows"])
    assert any("one goal at a time" in note for note in notes["one"])


def begun_notes(way: str) -> list[str]:
    started = next(iter(begun(own={"way": way}, steps=4).events(4)))
    return started.notes


class Tenfold(gym.RewardWrapper):
    """Gives ten times the rewards that `compute_reward` knows."""

    def __init__(self, **given):
        super().__init__(Line(**given))

    def reward(self, reward):
        return 10 * float(reward)

    def compute_reward(self, *given):
        return self.unwrapped.compute_reward(*given)  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", [None, *AutoresetMode])
@pytest.mark.parametrize("way", ["rows", "infos"])
def test_rewards_of_steps_that_compute_reward_does_not_know_are_told_once(mode, way):
    how = {"own": {"way": way}} | ({} if mode is None else {"envs": 2, "mode": mode})
    for env_class, told_of in ((Line, 0), (Tenfold, 1)):
        session = begun(env_class=env_class, **how)
        told = [text for event in session.events(60) for text in getattr(event, "warnings", ())]
        assert len([text for text in told if "compute_reward" in text]) == told_of
        assert session.engine.adapter.take_warnings() == []
        assert len(session.engine.hindsight.goals[0].differing) == 2 * told_of


def test_copies_for_which_replay_has_no_room_are_told_once():
    for capacity, told_of in ((200, 0), (64, 1)):
        session = begun(own={"length": 20}, steps=90, replay_capacity=capacity)
        told = [text for event in session.events(90) for text in getattr(event, "warnings", ())]
        assert len([text for text in told if "base.replay_capacity" in text]) == told_of
        assert session.engine.hindsight.goals[0].crowded == (20 if told_of else None)


class Untouched(Line):
    """What is achieved is where something lies that the point moves in the one episode of `moved` alone."""

    def __init__(self, moved: int = -1, **given):
        super().__init__(**given)
        self.moved, self.played = moved, -1

    def reset(self, *, seed=None, options=None):
        self.played += 1
        return super().reset(seed=seed, options=options)

    def shown(self):
        lies = float(self.now if self.played == self.moved else 0.0)
        return super().shown() | {"achieved_goal": np.array([lies], self.dtype)}


@pytest.mark.parametrize(("moved", "share", "told_of"), [(-1, 0.8, 1), (3, 0.8, 0), (3, 0.7, 1)])
def test_episodes_that_teach_hindsight_nothing_are_told_once(moved, share, told_of, monkeypatch):
    monkeypatch.setattr(goals, "WATCHED", 5)
    monkeypatch.setattr(goals, "MOST_ALIKE", share)
    session = begun(env_class=Untouched, own={"moved": moved}, steps=90)
    told = [text for event in session.events(90) for text in getattr(event, "warnings", ())]
    assert session.engine.hindsight.goals[0].alike.count(False) == (moved > 0)
    assert len([text for text in told if "hindsight teaches nothing" in text]) == told_of


def test_environments_in_processes_relabel_unless_infos_are_needed():
    session = begun(envs=2, vectorise="async", steps=40)
    try:
        list(session.events(40))
        size = int(session.learner.carry.replay_state.size.sum())
        assert size > 100  # 40 real rows, and four copies of all episodes that ended
    finally:
        session.adapter.close()
    reads = begun(envs=2, vectorise="async", steps=40, own={"way": "infos"})
    try:
        with pytest.raises(UsageError) as raised:
            list(reads.events(40))
        assert raised.value.field == "vectorise"
    finally:
        reads.adapter.close()


def test_which_success_ends_episodes_is_learnt_from_them():
    """Before any goal was reached no relabelled row is terminal; then they are, if the real one was."""
    for ends in (False, True):
        session = begun(own={"ends": ends, "length": 20}, steps=200, warmup=500)
        known = session.engine.hindsight.success[0]
        assert known.ends is None
        list(session.events(200))
        assert known.ends is ends
        assert known.shortfall == 0.0
        terminal = [row["terminated"] for row in rows_of(session, 0)]
        assert any(terminal) == ends


def test_checkpoints_judge_by_success_where_goals_are_relabelled(monkeypatch):
    agent: Any = agents.build("td7+her", {"checkpoints": {"early_episodes": 4}})
    schedule, base = agent.schedule, agent.base
    state = schedule.start()

    def play(*episodes: tuple[float | None, float]) -> list[bool]:
        """Whether the policy is kept after each episode of (success, return)."""
        nonlocal state
        kept = []
        for success, ret in episodes:
            state = schedule.updates_due(state, StepEnd(10), base)[0] | {"age": 10}
            end = EpisodeEnd(10, ret, 100, success)
            state, _, keep = schedule.updates_due(json.loads(json.dumps(state)), end, base)
            kept.append(keep)
        return kept

    assert play((1, -9.0), (0, -10.0), (1, -3.0), (0, -10.0)) == [False, False, False, True]
    assert state["best"] == 0.5
    assert play((0, -1.0), (0, -1.0), (0, -1.0)) == [False] * 3  # at most a quarter: ended early
    assert state["returns"] == []
    assert play((1, -50.0), (1, -50.0), (1, -50.0), (0, -50.0))[-1]
    assert state["best"] == 0.75

    state = schedule.start()  # an environment that reports success when it is reached, and positive returns
    assert play((None, 30.0), (None, 40.0), (None, 50.0), (None, 60.0))[-1]
    assert state["best"] == 30.0
    state = schedule.updates_due(state, EpisodeEnd(20, 70.0, 100, 1.0, True), base)[0]  # of an older policy
    assert state["best"] == 0.0
    assert play((0, 30.0), (1, 30.0), (0, 30.0), (0, 30.0))[-1]
    assert state["best"] == 0.25
    told = []
    session = begun("td7+her", own={"ends": True}, steps=60)
    asked = type(session.agent.schedule).updates_due
    monkeypatch.setattr(
        type(session.agent.schedule), "updates_due", lambda *args: told.append(args[2]) or asked(*args)
    )
    list(session.events(60))
    assert {event.success for event in told if isinstance(event, EpisodeEnd)} <= {0.0, 1.0}
    assert any(isinstance(event, EpisodeEnd) for event in told)


def test_the_program_that_relabels_does_not_copy_the_replay():
    session = begun(steps=30, replay_capacity=200_000)
    list(session.events(30))
    hindsight = session.engine.hindsight
    program, carry = hindsight._compiled(), session.learner.carry
    rows = hindsight._pack({}, 16)
    text = program.compiled.lower(*program.arguments(carry, rows)).compile().as_text()
    shape = "f32[" + ",".join(map(str, session.learner.storage.shape)) + "]"
    copies = [line for line in text.splitlines() if shape in line.split("=")[-1][:60] and " copy(" in line]
    assert shape in text
    assert copies == []


def test_observations_without_goals_are_left_alone():
    adapter = make(lambda: Rooms())
    assert adapter.spec.goal_size is None
    assert adapter.goals is None
    with pytest.raises(UsageError, match="compute_reward") as caught:
        make_session(
            Plan("td3+her", "Rooms", 10, settings=settings("td3+her")),
            agents.build("td3+her", settings("td3+her")),
            adapter,
        )
    assert caught.value.part == "her"
    flat = make(lambda: gym.wrappers.FlattenObservation(Line()))
    assert flat.spec.goal_size is None
    assert make(lambda: Line()).spec.goal_size == 1


REFUSED = {
    "no goals": ("td3+her", "Pendulum-v1", []),
    "no method": ("td3+her", "goal_envs:GoalAimless-v0", []),
    "images": ("td3+her", "goal_envs:GoalSeen-v0", []),
    "one of five": ("td3+her", "goal_envs:GoalNamed-v0", []),
    "of two shapes": ("td3+her", "goal_envs:GoalWide-v0", []),
    "time limits that end": ("td3+her", "goal/Reach-v0", ["--base.no-bootstrap-at-time-limits"]),
    "a replay that is too small": ("td3+her", "goal/Reach-v0", ["--base.replay-capacity", "200"]),
    "on-policy": ("ppo+her", "goal/Reach-v0", []),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_relabelled_is_refused_in_a_sentence(case, capsys, tmp_path):
    recipe, env, flags = case
    status = qscape(["train", recipe, "--env", env, "--steps", "100", "--out", str(tmp_path), *flags])
    assert status == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert "Traceback" not in said


def test_success_comes_first_in_progress_and_compare(capsys, tmp_path):
    plan = Plan(
        "td3+her",
        "goal/Reach-v0",
        120,
        settings=settings("td3+her", warmup=60),
        eval_every=60,
        eval_episodes=4,
    )
    events = list(train(plan, tmp_path / "her" / "0"))
    evaluated = [event for event in events if isinstance(event, ev.Evaluated)]
    assert all(event.by_success for event in evaluated)
    assert evaluated[-1].success == np.mean(evaluated[-1].successes)
    list(train(dataclasses.replace(plan, seed=1), tmp_path / "her" / "1"))
    capsys.readouterr()
    assert qscape(["compare", str(tmp_path / "her")]) == 0
    assert "success rate (%)" in capsys.readouterr().out
    assert qscape(["compare", str(tmp_path / "her"), "--metric", "return"]) == 0
    assert "success rate (%)" not in capsys.readouterr().out
    assert qscape(["watch", str(tmp_path / "her"), "--once"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split()[-3:] == ["success", "return", "state"]
    assert "evaluation success" in said
    assert qscape(["evaluate", str(tmp_path / "her"), "--episodes", "4"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[1].split()[:5] == ["run", "policy", "step", "success", "return"]
    assert f"mean over 2 runs: success {evaluated[-1].success:.0%}, return " in said
    assert [*evaluation_means(evaluated[-1])] == ["evaluation/success_current", "evaluation/return_current"]


def test_success_comes_first_in_studies(tmp_path):
    told = {"record": {"goals": True}, "success": {10: [1.0, 0.0, 0.0, 0.0]}, "returns": {10: [-20.0] * 4}}
    runs = []
    cases = {"aims": told, "has none": told | {"record": {}}, "is silent": told | {"success": None}}
    for name, about in cases.items():
        runs.append(RunProgress(Row(Plan("td3", "Line", 10, label=name), tmp_path / "Line" / name / "0")))
        write_run(runs[-1].row.folder, **about)
        runs[-1].refresh()
    assert [run.success for run in runs] == [0.25, None, None]
    labels = {run.row.plan.label: run.row.plan.label for run in runs}
    shown = runs_table(runs, labels)
    assert [str(column.header) for column in shown.columns][-3:] == ["success", "return", "left"]
    assert [*shown.columns[-3].cells] == ["25%", "", ""]
    assert [*shown.columns[-2].cells] == ["-20.0"] * 3
    assert "success" not in [column.header for column in runs_table(runs[1:], labels).columns]
    for run in runs:
        run.state = "done"
    assert line(runs[0], labels).endswith("0 steps, success 25%, return -20.0")
    assert line(runs[1], labels).endswith("0 steps, return -20.0")


def test_a_run_saved_from_python_says_that_its_environment_sets_goals(tmp_path):
    for recipe, env, has_goals in (("ppo", "goal_envs:GoalLine-v0", True), ("td3", "Pendulum-v1", None)):
        folder = qs.Model(recipe, env, eval_every=0).save(tmp_path / recipe)
        assert read_record(folder).get("goals") is has_goals


def test_trials_are_judged_by_success(tmp_path):
    assert tune.reports_success(make("goal/Reach-v0"))
    assert not tune.reports_success(make("Pendulum-v1"))
    assert not tune.reports_success(make(lambda: Line(reports=False)))
    searches = [Search(Plan("td3", "Line", 100), [], tmp_path, by_success=by) for by in (True, False)]
    assert searches[0].identity() == searches[1].identity() | {"measure": "success"}
    for search, worth, said in zip(searches, (0.75, -3.0), ("success 75%", "return -3.00"), strict=True):
        trial = Trial(search, 0, {})
        first = trial.judged_by[1]
        trial.add_evaluation(0, first, "current", -2.0, None)
        trial.add_evaluation(0, first + 1, "current", -3.0, 0.75)
        assert trial.curve() == {first: -2.0 * (not search.by_success), first + 1: worth}
        trial.state, trial.score = "done", trial.worth()
        assert trial.score == worth
        board = tune.SearchBoard(search, 1, Console())
        board.tuner = SimpleNamespace(trials={0: trial}, best=trial, of=lambda *states: [])  # type: ignore[assignment]
        assert f"done     {said}; best so far: trial 0, {said.split()[1]}" in board.line(trial)
        assert [column.header for column in board.table([trial]).columns][3] == said.split()[0]


@pytest.mark.slow
def test_hindsight_learns_what_sparse_rewards_hide():
    """A point reaches its goals after a few thousand steps; without relabelled rows it does not."""
    reached = {}
    for recipe in ("td3+her", "td3"):
        sizes = {"actor_hidden": (32, 32), "critic_hidden": (32, 32), "batch_size": 64}
        wanted = {"base": sizes | {"warmup": 1_000, "replay_capacity": 100_000}}
        plan = Plan(
            recipe,
            "goal/Reach-v0",
            6_000,
            settings=wanted,
            eval_every=6_000,
            eval_episodes=20,
            log_every=10**6,
        )
        session = make_session(
            plan, agents.build(recipe, wanted), make("goal/Reach-v0"), make("goal/Reach-v0", seed=9)
        )
        *_, last = (event for event in session.events(6_000) if isinstance(event, ev.Evaluated))
        reached[recipe] = last.success
    assert reached["td3+her"] >= 0.8
    assert reached["td3"] <= 0.5
