"""What a user sees while something runs: bars with the time left, an estimate, or nothing."""

import contextlib
import io
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from rich.console import Console
from runs_on_disk import write_run

from qscape import agents
from qscape.cli import main, running, tune
from qscape.cli.running import Screen
from qscape.cli.tune import SearchBoard
from qscape.envs import make
from qscape.jobs.trials import Search, Trial
from qscape.jobs.worker import Job
from qscape.run import events as ev
from qscape.run import session
from qscape.run.plan import Plan
from qscape.run.training import make_session
from qscape.tracking import track


@pytest.fixture
def clock(monkeypatch):
    """Time that a test sets by its attribute `now`."""
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    return made


def started(evals_every=0, **how):
    """Return a screen on which a run of 10,000 steps has begun."""
    screen = Screen(**how)
    screen.show(0, ev.Started(0, 10_000, "td3", "Hopper-v5", 0, [], evals_every=evals_every))
    return screen


def go_on(screen, clock, step, updates, seconds, rate):
    """Let a run make steps at a rate, with an event in every second, and updates if it has made some."""
    for _ in range(seconds):
        clock.now, step, updates = clock.now + 1.0, step + rate, updates and updates + rate
        screen.show(0, ev.Progressed(step, updates, 3 * 2**30, 0))
    return step


def test_the_bar_knows_the_time_left_of_a_slow_run(clock, capsys):
    screen = started()
    step = go_on(screen, clock, 0, 0, seconds=10, rate=100)  # random steps are fast
    bar, column = screen.progress.tasks[0], running.TimeLeftColumn()
    assert column.render(bar).plain == "-:--:--"
    step = go_on(screen, clock, step, 1, seconds=60, rate=5)
    assert bar.completed == step
    assert bar.fields["left"] == pytest.approx((10_000 - step) / 5, abs=1)
    assert column.render(bar).plain == "0:29:00"
    assert capsys.readouterr().out.count("about 0:29") == 1  # said once


def test_nothing_is_said_of_the_time_left_before_it_is_known(clock, capsys):
    """A run of 1,000 random steps, 30 s of compilation, 50 steps a second, and evaluations of 20 s."""
    screen = started(evals_every=1_000)

    def evaluate(step, seconds):
        clock.now += seconds
        screen.show(0, ev.Evaluated(step, "current", [1.0], [1], [], {}, seconds))

    evaluate(0, 35)  # compiled
    step = go_on(screen, clock, 0, 0, seconds=1, rate=1_000)
    evaluate(step, 20)
    clock.now += 30
    step = go_on(screen, clock, step, 1, seconds=10, rate=50)
    clock.now += 25  # a further program is compiled
    step = go_on(screen, clock, step, 600, seconds=10, rate=50)
    assert "about" not in capsys.readouterr().out
    evaluate(step, 20)
    step = go_on(screen, clock, step, 1_100, seconds=1, rate=50)
    truth = (10_000 - step) / 50 + 8 * 20
    assert screen.progress.tasks[0].fields["left"] == pytest.approx(truth, rel=0.01)
    assert capsys.readouterr().out.count("about 0:05:") == 1


def test_after_a_quarter_the_time_left_is_said_without_an_evaluation(clock, capsys):
    screen = started(evals_every=5_000)
    step = go_on(screen, clock, 0, 1, seconds=24, rate=100)
    assert "about" not in capsys.readouterr().out
    go_on(screen, clock, step, 3_000, seconds=2, rate=100)
    assert "about 0:01:15 left at 100.0 steps/s" in capsys.readouterr().out


def test_the_estimate_counts_all_runs_of_the_command(clock, capsys):
    screen = started(runs=5, workers=2)
    go_on(screen, clock, 0, 1, seconds=10, rate=100)
    said = capsys.readouterr().out
    assert "about 0:01:33 left at 100.0 steps/s, 3.0 GiB of memory" in said
    assert "5 runs, 2 at a time: about 0:04:39" in said


def test_a_quiet_screen_tells_warnings_only(clock, capsys):
    screen = started(quiet=True)
    go_on(screen, clock, 0, 1, seconds=10, rate=100)
    screen.show(0, ev.Evaluated(1_000, "current", [1.0], [1], [], {}, 0.1))
    assert capsys.readouterr().out == ""
    screen.show(0, ev.Logged(1_000, 10, {"steps_per_second": 1.0}, ["something is wrong"]))
    assert "something is wrong" in capsys.readouterr().out


def test_a_second_ctrl_c_and_failures_are_not_told_as_runs_that_never_started(capsys):
    screen = started(runs=3, workers=2)
    screen.interrupted = True
    screen.print_summary([Job("resume", Path(f"runs/{k}")) for k in range(3)], failed={1: "why"})
    assert capsys.readouterr().out.splitlines()[-2:] == ["ended at once: runs/0", "not started: runs/2"]


def test_quiet_training_prints_its_last_line(tmp_path, capsys):
    argv = ["train", "td3", "--env", "tiny:Clock-v0", "--steps", "60", "--quiet", "--base.warmup", "20"]
    assert main([*argv, "--out", str(tmp_path / "a"), *tiny.flags("td3")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("done: ")


def test_a_run_tells_its_progress(monkeypatch):
    monkeypatch.setattr(session, "SECOND", 0.0)
    plan = Plan("td3", "Clock", 40, settings=tiny.settings("td3", warmup=20))
    told = [*make_session(plan, agents.build("td3", plan.settings), make(tiny.Clock)).events(40)]
    told = [event for event in told if isinstance(event, ev.Progressed)]
    assert {event.step for event in told} == {*range(41)}
    assert told[-1].updates == 20
    assert told[-1].memory > 2**20
    assert ev.from_json(ev.to_json(told[-1])) == told[-1]


@pytest.mark.parametrize("terminal", [True, False])
def test_long_loops_show_a_bar_on_a_terminal_only(terminal, capsys, monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: terminal and self.stderr))
    assert [*track([1, 2], "saves")] == [1, 2]
    with running.show_tracks():
        assert [*track([1, 2, 3], "saves")] == [1, 2, 3]
        assert [[*track(range(k), "landscapes")] for k in track([1, 2], "saves")] == [[0], [0, 1]]
    out, err = capsys.readouterr()
    assert out == ""
    assert ("saves" in err) == terminal


def test_comparing_shows_its_progress(tmp_path, capsys, monkeypatch):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed)
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: self.stderr))
    assert main(["compare", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "runs to read" in err
    assert "runs to read" not in out


def test_one_piece_has_no_bar_because_it_has_no_pace(capsys, monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: self.stderr))
    with running.show_tracks():
        assert [*track(["run"], "lonely")] == ["run"]
        assert [*track([1, 2], "saves")] == [1, 2]
    err = capsys.readouterr().err
    assert "saves" in err
    assert "lonely" not in err


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """The folder of two trained seeds, and what their training printed."""
    folder = tmp_path_factory.mktemp("group")
    argv = ["train", "td3", "--env", "tiny:Clock-v0", "--steps", "60", "--base.warmup", "20"]
    argv += ["--seeds", "0", "1", "--seeds-as", "vmap", "--out", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([*argv, *tiny.flags("td3")]) == 0
    return folder, said.getvalue()


def test_training_ends_by_naming_what_shows_it(group):
    folder, said = group
    views = said.splitlines()[-2:]
    assert views == [
        f"to look at it: qscape compare {folder}",
        f"to look at it: qscape landscape {folder / '0'} --trust",
    ]


@pytest.mark.parametrize(
    ("argv", "bars"),
    [
        (["evaluate", "--episodes", "2"], ["runs", "episodes"]),
        (["smoothness", "--episodes", "2"], ["runs", "episodes"]),
        (["plot"], ["runs to read"]),
    ],
    ids=["evaluate", "smoothness", "plot"],
)
def test_commands_that_take_time_show_bars(group, argv, bars, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: self.stderr))
    monkeypatch.chdir(tmp_path)
    assert main([argv[0], str(group[0]), *argv[1:]]) == 0
    out, err = capsys.readouterr()
    for bar in bars:
        assert bar in err
        assert f"{bar} " not in out


def test_a_check_shows_the_time_that_has_passed(capsys):
    terminal = Console(force_terminal=True, width=80)
    with running.show_elapsed(terminal, "checks, at most 60 seconds"):
        terminal.print("ok  spaces")
    out = capsys.readouterr().out
    assert "checks, at most 60 seconds" in out
    assert "0:00:0" in out
    with running.show_elapsed(Console(), "checks"):
        pass
    assert capsys.readouterr().out == ""


def test_compare_draws_curves_in_a_terminal_only(tmp_path, capsys, monkeypatch):
    for label, end in (("td3", -100.0), ("sac", -300.0)):
        write_run(tmp_path / label, label=label, returns={0: [-900.0], 500: [-500.0], 1_000: [end]})
    assert main(["compare", str(tmp_path)]) == 0
    plain = capsys.readouterr().out
    assert "┤" not in plain
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: not self.stderr))
    assert main(["compare", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("interquartile mean") == 1
    assert "┤" in shown
    assert re.search(r"\n *0 +.* 1000 *\n", shown)  # the steps


def test_a_search_tells_the_time_left(tmp_path, monkeypatch):
    plan = Plan("td3", "Clock", 100)
    search = Search(plan, [], tmp_path)
    board, now = SearchBoard(search, 4, Console()), [0.0]
    board.tuner = SimpleNamespace(
        trials={0: Trial(search, 0, {}, "done")}, best=None
    )  # of an earlier process
    monkeypatch.setattr(tune.time, "monotonic", lambda: now[0])
    assert board.left() is None
    board.tuner.trials[1] = trial = Trial(search, 1, {})
    now[0], trial.made[0] = 10.0, 50
    assert board.left() == pytest.approx(50.0)  # half a trial took 10 seconds; 2.5 are left
    trial.state = "pruned"
    assert board.left() == pytest.approx(20.0)
    board.tuner.trials |= {2: Trial(search, 2, {}, "done"), 3: Trial(search, 3, {}, "done")}
    assert board.left() is None
