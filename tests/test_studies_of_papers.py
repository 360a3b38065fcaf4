"""The studies of five papers: budget `paper` has the arms, steps, seeds and environments of their numbers."""

import dataclasses
import functools
import json
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from study_files import STUDIES

from qscape.errors import WrongVersion
from qscape.jobs.study import read_study
from qscape.report import task_label
from qscape.run.plan import prepare

pytest.importorskip("Box2D")
pytest.importorskip("ale_py")
ROOT = Path(__file__).parent.parent
if not (ROOT / "benchmarks" / "published.csv").exists():
    pytest.skip("a source distribution has no published numbers", allow_module_level=True)
sys.path.append(str(ROOT / "benchmarks"))
from collect import read_archive  # noqa: E402
from published import read_published  # noqa: E402


def key_of(plan):
    return task_label(dataclasses.asdict(plan)), plan.label


@functools.cache
def plans(study):
    """Plans of the budget `paper`, one for each seed, by environment (with its dataset) and label."""
    found = defaultdict(list)
    for row in read_study(STUDIES[study], "paper").rows:
        found[key_of(row.plan)].append(row.plan)
    return found


@functools.cache
def needed():
    """Rows of published.csv by arm: (study, (environment, label)) -> (seeds, steps) of its rows."""
    found = defaultdict(list)
    for row in read_published():
        for side in row.sides():
            if side.label:
                found[side.study, (side.environment, side.label)].append((row.seeds, row.steps))
    return found


def test_every_published_number_has_an_arm_with_its_seeds_and_steps():
    rows = needed()
    assert len(rows) > 150
    for (study, key), numbers in rows.items():
        runs = plans(study)[key]
        assert runs, (study, key)
        seeds, steps = {seeds for seeds, _ in numbers} - {0}, {steps for _, steps in numbers} - {0}
        assert seeds <= {len(runs)}, (study, key, len(runs))
        assert {run.seed for run in runs} == {*range(len(runs))}
        if steps:
            assert max(steps) == runs[0].steps, (study, key)
            assert not [step for step in steps if step % runs[0].evals_every], (study, key)


def test_the_budgets_have_no_arm_without_a_number():
    """SAVO's studies also repeat figures of which no number is printed."""
    for study in {study for study, _ in needed()} - {"savo", "savo-discrete"}:
        assert {*plans(study)} == {key for of, key in needed() if of == study}, study


def test_runs_on_images_have_ten_environments():
    """On CartPole, one environment plays the eight episodes of an update of REINFORCE."""
    for study in {study for study, _ in needed() if study.startswith("acpg")}:
        for (env, *_), (plan, *_) in plans(study).items():
            alone = env.endswith("CartPole-v1") and plan.recipe.startswith("reinforce")
            assert plan.envs == (1 if alone else 10), (study, plan.label)


def test_cartpole_as_pictures_has_the_papers_protocol():
    """100 epochs of 1,000 steps, a test of ten episodes after each; four passes of REINFORCE on images."""
    found = [plan for plan, *_ in plans("acpg-cartpole-pixels").values()]
    assert sorted(plan.recipe for plan in found) == ["a2c", "a2c+etf", "reinforce", "reinforce+etf"]
    for plan in found:
        assert (plan.steps, plan.evals_every, plan.eval_episodes) == (100_000, 1_000, 10)
        base = prepare(plan)[1].base
        if plan.recipe.startswith("reinforce"):
            assert (base.passes, base.episodes, base.batch_size, base.discount) == (4, 8, 64, 0.95)
        else:
            assert (base.optimiser, base.learning_rate, base.discount) == ("rmsprop", 7e-4, 0.99)


@pytest.mark.parametrize("study", [name for name in STUDIES if name.startswith("savo")])
def test_environments_and_exploration_of_savo_are_those_of_its_table_2(study):
    if study in ("savo-effect", "savo-controls", "savo-recsim") or study.startswith("savo-released"):
        # These are shorter, and have no such budget.
        return
    for (env, *_), (plan, *_) in plans(study).items():
        kind, base = env.split("/")[0], prepare(plan)[1].base
        envs, decay = {"mineworld": (20, 5_000_000), "recsim": (16, 10_000_000)}.get(kind, (10, 500_000))
        assert plan.envs == envs, (env, plan.label)
        if base.epsilon_start != base.epsilon_end:
            assert base.epsilon_decay == pytest.approx(decay), (env, plan.label)


def test_recorded_runs_are_arms_of_the_studies_that_they_name():
    """Their environments and labels are those of a study of this project, in one of its budgets."""
    archives = ROOT / "benchmarks" / "results" / "learning"
    if not archives.exists():
        pytest.skip("there are no recorded runs here")
    for archive in archives.glob("*.tar.xz"):
        study, found = archive.name.partition(".")[0], set()
        if study not in STUDIES:
            continue
        try:
            for budget in tomllib.loads(STUDIES[study].read_text())["budgets"]:
                found |= {(row.plan.env, row.plan.label) for row in read_study(STUDIES[study], budget).rows}
        except WrongVersion:  # Fetch needs an older MuJoCo
            continue
        for name, data in read_archive(archive).items():
            if name.endswith("/run.json"):
                run = json.loads(data)
                assert (run["env"], run["label"]) in found, (study, run["label"])
