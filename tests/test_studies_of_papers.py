"""The studies of five papers: budget `paper` has the arms, steps, seeds and environments of their numbers."""

import csv
import functools
import json
import re
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from qscape.jobs.study import find_study, names_of_studies, read_study
from qscape.run.plan import prepare

pytest.importorskip("Box2D")
pytest.importorskip("ale_py")
ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "benchmarks" / "published.csv"
if not PUBLISHED.exists():
    pytest.skip("a source distribution has no published numbers", allow_module_level=True)

SAVGO = {"Ant": "savgo-ant", "HalfCheetah": "savgo-ablations", "Humanoid": "savgo-ablations"}
IDS = {"Pendulum": "Pendulum-v1", "LunarLander": "LunarLander-v3", "MineWorld": "mineworld/MineWorld-v0"}
IDS |= {"RecSim": "recsim/10k-v0", "RecSim-Data": "recsim/DataSynthetic-v0"}
IDS |= {"CartPole": "CartPole-v1", "CarRacing": "CarRacing-v3"}
IDS |= {game: f"ALE/{game}-v5" for game in ("Pong", "Enduro", "Qbert")}
NOT_IN_QSCAPE = ("TD3+OFE", "CQL", "X-QL", "TD3, spectral norm", "TD3, gradient penalty")
TERMS = {"MPR": "mixed_partial", "VFC": "vector_field", "Curv": "curvature"}
OF_SAVGO = {"fixed τ = 1": "tau_end=1.0", "random frozen encoder": "frozen=True", "β = 1": "gap_scale=1.0"}
OF_SAVGO |= {"uniform weights": "uniform=1.0"}
BASELINES = {
    "PPO": "ppo",
    "TD3": "td3[base.warmup=10000,base.exploration_noise=0.0]",
    "SAC": "sac[base.warmup=10000]",
    "TQC": "tqc[base.warmup=10000,base.critic_hidden=256x256,base.critics=2]",
}


def arm(paper, table, task, agent):
    """The study of a published agent, and its label."""
    of = {"TD7": of_td7, "PAVE": of_pave, "SAVGO": of_savgo, "SAVO": of_savo, "ACPG": of_acpg}
    return of[paper](table, task, agent)


def of_td7(table, task, agent):
    if "D4RL" in table:
        known = {"TD7": "td7_offline", "TD3+BC": "td3+bc+normalise", "IQL": "iql"}
        return "td7-d4rl", known[agent]
    return "td7", agent.lower() + ("[preset=paper]" if agent == "TQC" else "")


def of_pave(table, task, agent):
    name, _, terms = agent.partition(", ")
    off = [f"pave.{field}=0.0" for term, field in TERMS.items() if terms and term not in terms.split("+")]
    study = {"Table: ablation": "pave-ablation", "Table: other regularisers": "pave-regularisers"}
    return study.get(table, "pave"), f"{name.lower()}[{','.join(['preset=paper', *off])}]"


def of_savgo(table, task, agent):
    name, _, variant = agent.partition(", ")
    if name == "REDQ":
        return "savgo-redq", "redq[preset=paper]"
    if name != "SAVGO":
        return "savgo-baselines", BASELINES[name]
    axis, _, value = variant.partition(" = ")
    fields, of_task = [], 128 if task == "HalfCheetah" else 256
    if axis in ("K", "λ"):
        candidates, exponent = (int(value), 1.5) if axis == "K" else (256, float(value))
        fields += [f"savgo.candidates={candidates}"] if candidates != of_task else []
        fields += [f"savgo.exponent={exponent}"] if exponent != 1.5 else []
    elif variant:
        fields = [f"savgo.{OF_SAVGO[variant]}"]
    recipe = "sac+savgo" if task == "Ant" else "sac+savgo+normalise"
    study = "savgo-ablations" if variant else SAVGO.get(task, "savgo")
    return study, f"{recipe}[{','.join(['preset=paper', *fields])}]"


def of_savo(table, task, agent):
    recipe = {"TD3": "td3+ou", "Wolpertinger": "td3+wolpertinger", "SAVO": "td3+savo"}[agent]
    if task.startswith("restricted"):
        return "savo", f"{recipe}[preset=paper,base.epsilon_decay=0.25]"
    return "savo-discrete", f"{recipe}[preset=paper]"


def of_acpg(table, task, agent):
    (name, _, variant), (game, network) = agent.partition(", "), task.split()
    algorithm, *rest = name.split("+")
    recipe = {"A3C": "a2c"}.get(algorithm, algorithm.lower()) + ("+etf" if rest else "")
    if game == "CartPole":
        return "acpg" if network == "(MLP)" else "acpg-cartpole-pixels", f"{recipe}[preset=paper]"
    flag = []
    if network == "(MLP)":
        flag = ["plain.images=flat" if game == "CarRacing" else "plain.image_hidden=256x128x256"]
    if epsilon := float(variant[4:] or 0):
        flag = [f"base.exploration={epsilon}"]
    study = {"CarRacing": "acpg-carracing"}.get(game, "acpg-atari-trpo" if "trpo" in recipe else "acpg-atari")
    study = "acpg-exploration" if table == "Table: exploration" else study
    return study, f"{recipe}[{','.join(['preset=paper', *flag])}]"


def env_of(task):
    if task.startswith("restricted "):
        return f"restricted/{task.split()[1]}-v0"
    if task == "CartPole (CNN)":
        return "pixels/CartPole-v1"
    return IDS.get(task.split(" ")[0], f"{task.split(' ')[0]}-v5")


@functools.cache
def plans(study):
    """Plans of the budget `paper` by environment, dataset and label; seeds."""
    found = defaultdict(list)
    for row in read_study(find_study(study), "paper").rows:
        found[row.plan.env, Path(row.plan.dataset).name, row.plan.label].append(row.plan)
    return found


@functools.cache
def needed():
    """Rows of published.csv by arm: (study, (environment, dataset, label)) -> (seeds, steps) of its rows."""
    found = defaultdict(list)
    with PUBLISHED.open(newline="") as file:
        for row in csv.DictReader(file):
            paper, table, task = row["paper"], row["table"], row["task"]
            for agent in row["agent"].split(" over "):
                if agent in NOT_IN_QSCAPE or task.startswith(("sum of", "mean of", "a MuJoCo task")):
                    continue
                study, label = arm(paper, table, task, agent)
                data = f"{re.sub('[ -]', '_', task.lower())}-v2.hdf5" if "D4RL" in table else ""
                numbers = tuple(int(row[name] or 0) for name in ("seeds", "steps"))
                found[study, (env_of(task), data, label)].append(numbers)
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


@pytest.mark.parametrize("study", [name for name in names_of_studies() if name.startswith("savo")])
def test_environments_and_exploration_of_savo_are_those_of_its_table_2(study):
    if study in ("savo-effect", "savo-controls", "savo-recsim"):  # which are shorter, and have no such budget
        return
    for (env, *_), (plan, *_) in plans(study).items():
        kind, base = env.split("/")[0], prepare(plan)[1].base
        envs, decay = {"mineworld": (20, 5_000_000), "recsim": (16, 10_000_000)}.get(kind, (10, 500_000))
        assert plan.envs == envs, (env, plan.label)
        if base.epsilon_start != base.epsilon_end:
            assert base.epsilon_decay == pytest.approx(decay), (env, plan.label)


def test_recorded_runs_are_arms_of_the_studies_that_they_name():
    """Their environments and labels are those of a study of the package, in one of its budgets."""
    archives = ROOT / "benchmarks" / "results" / "learning"
    if not archives.exists():
        pytest.skip("there are no recorded runs here")
    sys.path.append(str(ROOT / "benchmarks"))
    from collect import read_archive

    for archive in archives.glob("*.tar.xz"):
        study, found = archive.name.partition(".")[0], set()
        if study not in names_of_studies():
            continue
        for budget in tomllib.loads(find_study(study).read_text())["budgets"]:
            found |= {(row.plan.env, row.plan.label) for row in read_study(find_study(study), budget).rows}
        for name, data in read_archive(archive).items():
            if name.endswith("/run.json"):
                run = json.loads(data)
                assert (run["env"], run["label"]) in found, (study, run["label"])
