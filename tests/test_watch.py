"""`qscape watch`: what it shows is what the run's files say."""

import csv
import math
import re
import shutil
import sys

import numpy as np
import pytest
from runs_on_disk import write_run

from qscape import report
from qscape.cli import main, watch
from qscape.inspect.trained_agent import load_trained_agent

TINY = ["--base.actor-hidden", "8", "--base.critic-hidden", "8", "--base.batch-size", "8"]
RUN = [
    "train", "td3", "--env", "Pendulum-v1", "--steps", "400", "--base.warmup", "250", "--eval-every", "200",
    "--eval-episodes", "2", "--log-every", "100", *TINY,
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("watch") / "r"
    assert main([*RUN, "--out", str(out)]) == 0
    return out / "0"


def test_what_is_shown_is_what_the_files_say(run, capsys):
    assert main(["watch", str(run), "--once", "--show", "critic_loss"]) == 0
    out = capsys.readouterr().out
    with (run / "evaluations.csv").open() as file:
        last = [float(row["return"]) for row in csv.DictReader(file) if row["step"] == "400"]
    assert len(last) == 2
    assert f"{np.mean(last):,.1f}" in out
    for said in ("400", "done", "evaluation return", "critic_loss", "save of step 400", "the actor"):
        assert said in out


def test_the_slice_is_the_critics_q(run):
    slices = watch.QSlice(run, 0)
    slices.chart(80, 12)
    title, ((_, x, q), (_, (at,), (value,), _)) = slices.drawn
    subject = load_trained_agent(run)
    adapter = subject.make()
    obs = np.asarray(adapter.reset(), np.float32)
    adapter.close()
    heads = subject.require_q("a test")(np.repeat(obs, len(x), 0), np.asarray(x, np.float32)[:, None])
    np.testing.assert_allclose(q, heads[0], rtol=1e-5, atol=1e-6)  # TD3's actor climbs the first critic
    assert at == pytest.approx(float(subject.act(obs)[0, 0]), abs=1e-6)
    assert min(q) - 1e-6 <= value <= max(q) + 1e-6
    assert "400" in title


@pytest.mark.slow
def test_a_newer_save_is_drawn_without_building_the_agent_again(run, tmp_path):
    copy = tmp_path / "0"
    shutil.copytree(run, copy)
    (newest,) = (p for p in (copy / "saves").iterdir() if p.name == "000000400")
    newest.rename(tmp_path / "later")
    slices = watch.QSlice(copy, 0)
    slices.chart(80, 12)
    first, subject = slices.drawn, slices.trained
    (tmp_path / "later").rename(newest)
    slices.chart(80, 12)
    assert slices.drawn[0] != first[0]
    assert slices.drawn[1] != first[1]
    assert slices.trained is subject


def test_a_run_that_is_being_written(run, tmp_path, capsys):
    copy = tmp_path / "0"
    shutil.copytree(run, copy)
    for name in ("metrics.jsonl", "evaluations.csv"):
        file = copy / name
        file.write_text(file.read_text()[:-9])  # half a line
        if name == "metrics.jsonl":  # null: not finite
            file.write_text(
                re.sub(r'"steps_per_second": [^,}]+', '"steps_per_second": null', file.read_text())
            )
    assert main(["watch", str(copy), "--once"]) == 0
    shutil.rmtree(copy / "saves")
    (copy / "evaluations.csv").unlink()
    (copy / "metrics.jsonl").unlink()
    capsys.readouterr()
    assert main(["watch", str(copy), "--once"]) == 0
    out = capsys.readouterr().out
    for said in ("evaluation return: nothing yet", "there is no save yet", "stopped"):
        assert said in out


@pytest.mark.slow
def test_an_agent_without_q_is_watched_all_the_same(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "ppo"
    flags = ["--steps", "64", "--base.rollout", "32", "--base.batch-size", "16", "--eval-episodes", "1"]
    assert main(["train", "ppo", "--env", "CartPole-v1", *flags, "--out", str(folder)]) == 0
    capsys.readouterr()
    assert main(["watch", str(folder), "--once"]) == 0
    out = capsys.readouterr().out
    assert "has no Q(s, a)" in out
    slices = watch.QSlice(folder / "0", 0)
    assert "has no Q(s, a)" in slices.chart(80, 12).plain
    monkeypatch.setattr(slices, "_build_agent", lambda: pytest.fail("the agent is built at every look"))
    assert "has no Q(s, a)" in slices.chart(80, 12).plain
    empty = [line.split(":")[0].strip() for line in out.splitlines() if "nothing yet" in line]
    assert set(empty) <= {"evaluation return", "q"}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--every", "0"], "must be a number above 0"),
        (["--every", "inf"], "must be a number above 0"),
        (["--evry", "1"], "--every"),
    ],
)
def test_bad_flags_are_usage_errors(run, flags, says, capsys):
    assert main(["watch", str(run), "--once", *flags]) == 2
    assert says in capsys.readouterr().err


def test_a_dimension_that_is_not_there_is_told(run, capsys):
    assert main(["watch", str(run), "--once", "--dim", "3"]) == 2
    assert "dimensions 0 to 0" in capsys.readouterr().err


def test_a_metric_that_is_not_logged_is_answered_with_those_that_are(run, capsys):
    assert main(["watch", str(run), "--once", "--show", "nope"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "no run has logged nope yet; --show takes " in out
    assert "critic_loss" in out
    assert main(["watch", str(run), "--once", "--show", "critic_loss"]) == 0
    assert "no run has logged" not in capsys.readouterr().out


def test_no_curve_is_black_which_a_dark_terminal_hides():
    from qscape.report.terminal import COLOURS, Curve, render_chart

    curves = [Curve(f"seed {k}", [0, 10], [k, k]) for k in range(len(COLOURS))]
    shown = set(re.findall(r"38;2;(\d+;\d+;\d+)m", render_chart("return", "steps", curves, 60, 14, (0, 10))))
    assert len(shown) == len(COLOURS)
    assert "0;0;0" not in shown


def test_the_return_is_that_of_the_kept_policy(tmp_path):
    write_run(tmp_path / "0", label="td7", returns={10: [1.0, 3.0]}, kept={10: [8.0, 9.0]})
    assert float(watch.RunView(tmp_path / "0").row()[-2]) == 8.5


def test_the_axis_of_a_constant_negative_return_points_up():
    from qscape.report.terminal import Curve, render_chart

    drawn = render_chart("return", "steps", [Curve("a", [0, 1], [-200.0, -200.0])], 60, 10, (0, 1))
    plain = re.sub(r"\x1b\[[\d;]*m", "", drawn)
    ticks = [float(tick) for tick in re.findall(r"^ *(-[\d.]+)┤", plain, re.MULTILINE)]
    assert len(ticks) > 1
    assert ticks == sorted(ticks, reverse=True)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_left_out_of_a_chart(wrong):
    from qscape.report.terminal import Curve, render_chart

    curves = [Curve("a", [0, 1, 2], [1.0, wrong, 5.0]), Curve("b", [0, 1], [wrong, wrong])]
    drawn = render_chart("return", "steps", curves, 60, 14, (0, 2))
    rest = [Curve("a", [0, 2], [1.0, 5.0]), Curve("b", [], [])]
    assert drawn == render_chart("return", "steps", rest, 60, 14, (0, 2))
    assert "⠤" in drawn


def test_without_the_extra_it_says_so(run, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "qscape.report.terminal", raising=False)
    monkeypatch.delattr(report, "terminal", raising=False)
    monkeypatch.setitem(sys.modules, "plotext", None)
    assert main(["watch", str(run), "--once"]) == 2
    said = 'Charts in the terminal need the extra: pip install "qscape[report]".'
    assert said in capsys.readouterr().err
