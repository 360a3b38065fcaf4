"""Runs that evaluations end early: `--stop-at`, `--stop-times` and `--patience`."""

import csv
import dataclasses
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from qscape.agents import build
from qscape.cli import main
from qscape.errors import NothingToDo, UsageError
from qscape.report.runs import load_runs
from qscape.report.tables import compare
from qscape.run import training
from qscape.run.engines import why_not_together
from qscape.run.events import EpisodeDone
from qscape.run.folder import unfinished
from qscape.run.plan import Plan
from qscape.run.session import Judge, Session

SMALL = {"base": {"actor_hidden": (8,), "critic_hidden": (8,), "batch_size": 8, "warmup": 20}}


class Script(gym.Env):
    """Episodes of one step, whose reward rises and falls with the action."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(np.sin(20 * action[0])), True, False, {}


def plan(**fields):
    about = {"recipe": "td3", "env": f"{__name__}:Script", "steps": 400, "settings": SMALL}
    return Plan(**about | {"eval_every": 20, "eval_episodes": 1, "log_every": 50, "save_every": 50} | fields)


def train(made, folder):
    *_, end = training.train(made, folder)
    return end


def returns(folder: Path) -> list[tuple[int, float]]:
    with (folder / "evaluations.csv").open() as file:
        return [(int(row["step"]), float(row["return"])) for row in csv.DictReader(file)]


def test_the_rules():
    judge = Judge()
    stop = plan(stop_at=2.0, stop_times=2)
    assert [bool(judge.judge(stop, x)) for x in (2, 1, 2, 3)] == [False, False, False, True]
    judge = Judge()
    wait = plan(patience=2)
    assert [bool(judge.judge(wait, x)) for x in (1, 1, 2, 0, 2)] == [False, False, False, False, True]


def test_an_evaluation_that_reaches_the_return_ends_the_run(tmp_path):
    whole = train(plan(), tmp_path / "whole")
    assert (whole.step, whole.why) == (400, "")
    curve = returns(tmp_path / "whole")
    learnt = [(step, ret) for step, ret in curve if step > 20]
    goal = sorted(ret for _, ret in learnt)[len(learnt) // 2]
    expected = next(step for step, ret in learnt if ret >= goal)
    end = train(plan(stop_at=goal), tmp_path / "stopped")
    assert end.step == expected < 400
    assert end.why.startswith("--stop-at")
    assert not end.interrupted
    assert returns(tmp_path / "stopped") == [of for of in curve if of[0] <= expected]
    assert not unfinished(tmp_path / "stopped")
    assert unfinished(tmp_path / "stopped", 400)
    with pytest.raises(NothingToDo):
        list(training.resume(tmp_path / "stopped"))
    assert load_runs(tmp_path)["ended_by"].unique().tolist() == [end.why, ""]
    runs = load_runs(tmp_path)
    runs.loc[runs["run"].str.endswith("whole"), "seed"] = 1
    assert any(f"ended by {end.why}, at {expected}" in note for note in compare(runs).notes)
    *_, end = training.resume(tmp_path / "stopped", 400)
    assert end.step > expected
    assert load_runs(tmp_path / "stopped")["ended_by"].unique().tolist() == [end.why]


def test_a_run_that_goes_on_after_its_end_counts_evaluations_anew(tmp_path):
    rule = {"stop_at": -1.0, "stop_times": 2}
    end = train(plan(**rule), tmp_path)
    *_, again = training.resume(tmp_path, 400)
    assert sum(step > end.step for step, _ in returns(tmp_path)) >= 2
    assert again.why == end.why


@pytest.mark.parametrize("rule", [{"patience": 3}, {"stop_at": -1.0, "stop_times": 5}])
def test_the_end_is_the_same_after_a_resume(tmp_path, rule):
    end = train(plan(**rule), tmp_path / "whole")
    assert 60 < end.step < 400
    sessions: list[Session] = []
    for event in training.train(plan(**rule), tmp_path / "parts", on_trainer=sessions.append):
        if isinstance(event, EpisodeDone) and event.step == end.step - 30:
            sessions[0].stop()
    assert unfinished(tmp_path / "parts")
    *_, again = training.resume(tmp_path / "parts")
    assert again[:2] == end[:2]
    assert again.why == end.why
    assert returns(tmp_path / "parts") == returns(tmp_path / "whole")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"stop_at": float("nan")}, "stop_at"),
        ({"stop_at": float("inf")}, "stop_at"),
        ({"stop_times": 2}, "stop_times"),
        ({"stop_at": 1.0, "stop_times": 0}, "stop_times"),
        ({"patience": 0}, "patience"),
        ({"patience": 2, "eval_every": 0}, "eval_every"),
    ],
)
def test_bad_input(fields, field):
    with pytest.raises(UsageError) as refused:
        plan(**fields)
    assert refused.value.field == field


def test_the_command_says_why_it_ended(tmp_path, capsys):
    flags = "--steps 300 --eval-every 50 --eval-episodes 1 --base.warmup 20 --base.batch-size 8"
    flags += " --base.actor-hidden 8 --base.critic-hidden 8 --stop-at -1 --stop-times 2"
    command = ["train", "td3", "--env", f"{__name__}:Script", "--out", str(tmp_path), *flags.split()]
    assert main(command) == 0
    assert "ended by --stop-at: evaluations reached -1 2 times in a row" in capsys.readouterr().out
    assert main([*command, "--stop-at", "nan"]) == 2
    assert main(["resume", str(tmp_path)]) == 2


def test_seeds_that_end_by_themselves_share_no_program():
    made = dataclasses.replace(plan(), patience=2)
    assert why_not_together(made, build("td3")) is not None
    assert why_not_together(plan(), build("td3")) is None
