"""The claim of `make demo`: what bears it out, what does not, and what says nothing."""

import math
import re
import sys
from pathlib import Path

import pytest
from runs_on_disk import write_run

from qscape.jobs.study import find_study, read_study

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))
import demo  # noqa: E402

SM = {"td3": [0.8, 0.9, 1.0, 0.8, 0.9], "td3+pave": [0.4, 0.5, 0.4, 0.5, 0.4]}
RETURNS = {"td3": [-170.0] * 5, "td3+pave": [-175.0] * 5}


def figures(sm=SM, returns=RETURNS):
    return {recipe: {"sm": sm[recipe], "return": returns[recipe]} for recipe in SM}


def write_demo(folder, sm=SM, returns=RETURNS, **how):
    for recipe, of in sm.items():
        for seed, value in enumerate(of):
            points = {0: [-1_400.0], 10: [returns[recipe][seed]]}
            place = folder / recipe / str(seed)
            write_run(place, label=recipe, seed=seed, returns=points, sm={0: 9.0, 10: value}, **how)


def test_runs_that_bear_the_claim_out():
    verdict = demo.judge(figures())
    assert verdict.borne_out
    assert "sm 0.40 with PAVE and 0.90 without, lower in 5 of 5 seeds, 0.50 times as" in verdict.because
    assert "return -175 with PAVE and -170 without" in verdict.because


def test_runs_that_do_not_bear_the_claim_out():
    rough = demo.judge(figures(SM | {"td3+pave": SM["td3"]}))
    assert not rough.borne_out
    assert "lower in 0 of 5 seeds, 1.00 times as high" in rough.because
    once = demo.judge(figures(SM | {"td3+pave": [0.1, 0.1, 0.1, 0.9, 0.1]}))
    assert not once.borne_out, "lower in 4 of 5 is chance in 6 of 32 tries"
    little = demo.judge(figures(SM | {"td3+pave": [0.9 * value for value in SM["td3"]]}))
    assert not little.borne_out
    unlearnt = demo.judge(figures(returns=RETURNS | {"td3+pave": [-1_400.0] * 5}))
    assert not unlearnt.borne_out, "a policy that does nothing is smooth"
    one = demo.judge(figures(returns=RETURNS | {"td3+pave": [-175.0] * 4 + [-500.0]}))
    assert one.borne_out, "the interquartile mean forgives one"


@pytest.mark.parametrize("missing", [math.nan, math.inf])
def test_a_figure_that_is_missing_bears_nothing_out(missing):
    verdict = demo.judge(figures(SM | {"td3": [*SM["td3"][:4], missing]}))
    assert verdict == (
        False,
        "only 4 of 5 pairs of runs have figures; `make demo` goes on with what is missing.",
    )


def test_too_few_seeds_bear_nothing_out():
    few = {recipe: of[:4] for recipe, of in SM.items()}
    verdict = demo.judge(figures(few, {recipe: of[:4] for recipe, of in RETURNS.items()}))
    assert (verdict.borne_out, verdict.because[:25]) == (False, "only 4 of 5 pairs of runs")


def test_figures_are_those_of_the_last_evaluations(tmp_path):
    write_demo(tmp_path / "runs")
    assert demo.measure(tmp_path / "runs") == figures()
    assert demo.judge(demo.measure(tmp_path / "runs", [*range(6)])).because.startswith("only 5 of 6 pairs")
    write_demo(tmp_path / "stopped", steps=20)  # at step 10
    assert "only 0 of 5 pairs" in demo.judge(demo.measure(tmp_path / "stopped")).because
    assert "only 0 of 5 pairs" in demo.judge(demo.measure(tmp_path / "nothing")).because


def test_the_exit_status_tells_the_verdict_if_it_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(sys, "argv", ["demo.py", "--check"])
    assert demo.main() == 1, "there are no runs"
    write_demo(tmp_path / "runs")
    assert demo.main() == 0
    past = len(demo.read_tries()[demo.DESIGN :])
    assert re.search(rf"This run bears it out: .*\nOf {past} recorded tries", capsys.readouterr().out)
    write_demo(tmp_path / "others", SM | {"td3+pave": SM["td3"]})
    monkeypatch.setattr(demo, "RUNS", tmp_path / "others")
    assert demo.main() == 1
    assert "This run does NOT bear it out" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    assert demo.main() == 0


def test_recorded_tries_are_those_of_the_study():
    """Their seeds are others, each try is there once, and the claim holds in at least 19 of 20."""
    seeds = sorted({row.plan.seed for row in read_study(find_study("make-demo")).rows})
    tries = demo.read_tries()
    for number, each in enumerate(tries, 1):
        assert (each["try"], each["seeds"]) == (number, [number * len(seeds) + seed for seed in seeds])
    counted = tries[demo.DESIGN :]
    assert sum(demo.judge(each).borne_out for each in counted) >= len(counted) - 1
