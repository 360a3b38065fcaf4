"""Studies: what a file asks for, what is missing, and that a study ends whatever happens to it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from study_files import STUDIES
from tiny import SIZES, assert_same_run, environment, evaluations

from qscape.cli import main
from qscape.cli.study import StudyBoard
from qscape.errors import UsageError, WrongVersion
from qscape.jobs.pool import Failure, LocalWorker, Pool
from qscape.jobs.progress import LOSSES, StudyProgress, list_differences
from qscape.jobs.study import names_of_studies, read_study
from qscape.jobs.worker import Job
from qscape.run import Plan, train
from qscape.run import folder as folders
from qscape.run.events import Ended, Logged, Progressed, Saved, Started
from qscape.run.plan import folder_name, prepare, to_json

SMALL = [f"{k} = {list(v) if isinstance(v, tuple) else v}" for k, v in SIZES.items()]
LINES = "\n".join(SMALL)
TEXT = f"""\
[budgets.quick]
steps = 2_000
seeds = 2
eval_every = 1_000
eval_episodes = 2
save_every = 250

[budgets.full]
steps = 2_500
seeds = [0, 1]
eval_every = 1_000
eval_episodes = 2

[[agents]]
recipe = "td3"
base = {{ warmup = 50, {", ".join(SMALL)} }}

[[agents]]
recipe = "sac"
[agents.base]
warmup = 60
{LINES}

[[environments]]
id = "tiny:Clock-v0"
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to be in, with the study in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # for workers
    Path("tiny.toml").write_text(TEXT)
    return tmp_path


def study(text=TEXT, budget="quick", runs="runs"):
    Path("tiny.toml").write_text(text)
    return read_study(Path("tiny.toml"), budget, Path(runs))


def states(progress):
    return [s.state for s in progress.runs]


# --- the file ------------------------------------------------------------------------------------------


def test_rows_of_a_file(place):
    rows = study().rows
    assert [(r.plan.recipe, r.plan.seed) for r in rows] == [("td3", 0), ("sac", 0), ("td3", 1), ("sac", 1)]
    plan, folder = rows[0]
    assert folder == Path("runs/tiny/tiny-Clock-v0", plan.label, "0")
    assert plan.label.startswith("td3[base.batch_size=16,")
    assert (plan.steps, plan.eval_every, plan.save_every) == (2_000, 1_000, 250)
    assert rows[1].plan.settings["base"]["warmup"] == 60
    assert study(budget="full").rows[0].plan.steps == 2_500

    named = TEXT.replace('id = "', 'args = { length = 20 }\nsteps = { quick = 900 }\nid = "')
    named = 'name = "other"\n' + named.replace('recipe = "sac"', 'recipe = "sac"\nsteps = 800')
    rows = study(named, runs="x").rows
    assert rows[0].folder == Path("x/other/tiny-Clock-v0(length=20)", rows[0].plan.label, "0")
    assert [r.plan.steps for r in rows[:2]] == [900, 800]
    assert [r.plan.steps for r in study(named, "full").rows[:2]] == [2_500, 800]

    plan = study(TEXT.replace('id = "', 'envs = 3\neval_episodes = 7\nid = "')).rows[0].plan
    assert (plan.envs, plan.eval_episodes) == (3, 7), "the environment's own win over the budget's"
    more = TEXT.replace('recipe = "sac"', 'recipe = "sac"\nenvs = 2').replace('id = "', 'envs = 3\nid = "')
    assert [r.plan.envs for r in study(more).rows[:2]] == [3, 2], "the agent's win over the environment's"


def test_entries_of_one_budget_only(place):
    """What is of another budget need not even exist on this machine."""
    more = '\n[[environments]]\nid = "NoSuch-v0"\nbudgets = ["full"]\n'
    assert {r.plan.env for r in study(TEXT + more).rows} == {"tiny:Clock-v0"}
    with pytest.raises(UsageError, match="NoSuch-v0"):
        study(TEXT + more, "full")
    fewer = TEXT.replace('recipe = "sac"', 'recipe = "sac"\nbudgets = ["full"]')
    assert {r.plan.recipe for r in study(fewer).rows} == {"td3"}
    assert {r.plan.recipe for r in study(fewer, "full").rows} == {"td3", "sac"}


def test_an_environment_with_a_dataset_is_one_of_its_own(place):
    data = '\n[[environments]]\nid = "tiny:Clock-v0"\ndataset = "some/clock_medium.hdf5"\n'
    rows = study(TEXT.replace('recipe = "sac"', 'recipe = "td3+bc"') + data).rows
    assert [r.plan.dataset for r in rows if "[clock_medium]" in str(r.folder)] == [
        "some/clock_medium.hdf5"
    ] * 4
    assert len({r.folder for r in rows}) == len(rows) == 8


def test_a_dataset_is_found_from_everywhere(place, monkeypatch):
    """Its path is from the current folder, as that of `qscape train`."""
    file = place / "some/clock_medium.hdf5"
    file.parent.mkdir()
    file.touch()
    data = '\n[[environments]]\nid = "tiny:Clock-v0"\ndataset = "some/clock_medium.hdf5"\n'
    rows = study(TEXT.replace('recipe = "sac"', 'recipe = "td3+bc"') + data).rows
    (row,) = [r for r in rows if "[clock_medium]" in str(r.folder)][:1]
    assert row.plan.dataset == str(file)
    plan, agent, _ = prepare(row.plan)
    before = to_json(plan, agent) | {"dataset": "some/clock_medium.hdf5"}
    assert not list_differences(row, before, plan.steps), "from a run of an earlier version"


def test_agents_get_conv_where_an_environment_shows_images(place):
    """The rows are what the runs become: else finished runs count as other ones."""
    both = study(TEXT + '\n[[environments]]\nid = "tiny:Picture-v0"\n').rows
    assert {(r.plan.env, r.plan.recipe) for r in both} == {
        ("tiny:Clock-v0", "td3"),
        ("tiny:Clock-v0", "sac"),
        ("tiny:Picture-v0", "td3+conv"),
        ("tiny:Picture-v0", "sac+conv"),
    }
    assert all(r.folder.parent.name.startswith(f"{r.plan.recipe}[") for r in both)


def test_a_preset_fills_what_the_file_leaves_open(place):
    text = TEXT.replace("tiny:Clock-v0", "Pendulum-v1").replace("base = {", 'preset = "paper"\nbase = {')
    plan = study(text).rows[0].plan
    assert plan.preset == "paper"
    assert plan.label.startswith("td3[preset=paper,base.batch_size=16,")
    assert "discount" not in plan.label
    assert prepare(plan)[0].settings["base"]["discount"] == 0.98


REFUSED = [
    ('recipe = "sac"', 'recipe = "sacc"', 'recipe = "sacc"', "There is no agent 'sacc'; near to it: sac"),
    ('recipe = "td3"', 'recipe = "td3+lapp"', 'recipe = "td3+lapp"', "There is no part 'lapp' (in 'td3+"),
    ('recipe = "td3"', 'recpe = "td3"', "[[agents]]", "[[agents]] needs a recipe"),
    ("warmup = 60", "warmpu = 60", "warmpu", "base has no field 'warmpu'; near to it: warmup"),
    ("warmup = 60", 'warmup = "x"', 'warmup = "x"', "base.warmup is 'x'; it must be of type int"),
    ("warmup = 60", "warmup = 2_000", "#2 [[agents]]", "--base.warmup 2000 leaves no update in"),
    ("base = {", "lap = { alpha = 1.0 }\nbase = {", "lap = {", "'lap' do not belong to 'td3'; write td3+lap"),
    ("base = {", "stpes = 3\nbase = {", "stpes", "there is no key 'stpes' in agents; near to it: steps"),
    ("base = {", "base = 3 #", "base = 3", "base is 3; it must be a table of its fields"),
    ("base = {", "envs = 0\nbase = {", "envs = 0", "envs is 0; it must be at least 1"),
    ("base = {", "envs = 3_000_000_000\nbase = {", "envs =", "agents.envs is 3000000000; a whole number"),
    ("Clock-v0", "Clok-v0", "id =", "environments.id: "),
    ("tiny:Clock-v0", "Pendulum", "id =", "environments.id: Pendulum lacks its version: write Pendulum-v1"),
    ('id = "', 'args = { tall = 1 }\nid = "', "args =", "environments.args: tiny:Clock-v0 cannot"),
    ('id = "', 'dataset = "a.hdf5"\nenvs = 4\nid = "', "envs =", "environments.envs: nothing is stepped"),
    ('id = "', 'envs = 3_000_000_000\nid = "', "envs =", "environments.envs is 3000000000; a whole number"),
    ('id = "', 'dataset = "local/none-v0"\nid = "', "dataset =", "environments.dataset: there is no dataset"),
    ('id = "', 'arg = { tall = 1 }\nid = "', "arg =", "no key 'arg' in environments; near to it: args"),
    ("[budgets.full]", "[budgets.huge]", "[budgets.huge]", "no key 'huge' in budgets; there are quick"),
    ("[budgets.quick]", "nmae = 'x'\n[budgets.quick]", "nmae", "there is no key 'nmae'; near to it: name"),
    ("[budgets.quick]", "name = 'a/b'\n[budgets.quick]", "name", "name is 'a/b'; it names a folder"),
    ("[budgets.quick]", "name = 3\n[budgets.quick]", "name", "name is 3; it must be a string"),
    ("seeds = 2", "seeds = [\n  0,\n  0,\n]", "seeds = [", "seeds = [0, 0]: give how many, or a list"),
    ("seeds = 2", "seeds = 0", "seeds = 0", "seeds = 0: give how many"),
    ("seeds = 2", "", "[budgets.quick]", "[budgets.quick] needs seeds"),
    ("base = {", 'preset = "papr"\nbase = {', "preset", "there is no preset 'papr'; near to it: paper"),
    ("base = {", 'preset = 3\nbase = {', "preset", "preset is 3; it must be a string"),
    ("base = {", 'preset = "paper"\nbase = {', "preset", "has no settings for td3 on tiny:Clock"),
    ('id = "', 'budgets = ["ful"]\nid = "', "budgets =", "budgets is ['ful']; it must be a list of"),
    ('id = "', 'budgets = "quick"\nid = "', "budgets =", "budgets is 'quick'; it must be a list of"),
    ('id = "', 'budgets = ["full"]\nid = "', "[[environments]]", "no [[environments]] is left for"),
    ("steps = 2_000", "steps = 0", "steps = 0", "steps is 0; it must be at least 1"),
    ("steps = 2_000", "steps = 3e3", "steps = 3e3", "steps is 3000.0; it must be a whole number"),
    ("steps = 2_000", "", "[budgets.quick]", "[budgets.quick] needs steps"),
    ('recipe = "sac"', 'recipe = "td3"', "#2 [[agents]]", "stands there twice, first in line 14"),
    ('Clock-v0"', 'Clock-v0"\n[[environments]]\nid = "tiny:Clock-v0"', "#2 [[environments]]", "twice"),
    ('[[environments]]\nid = "tiny:Clock-v0"', "", "[budgets.quick]", "a study needs [[environments]]"),
    ("[[environments]]", "[environments]", "[environments]", "a study needs [[environments]]"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "where", "why"), REFUSED, ids=lambda x: str(x)[:30])
def test_a_refusal_names_the_line(place, old, new, where, why):
    text = TEXT.replace(old, new, 1)
    if old == 'recipe = "sac"' and "td3" in new:
        text = text.replace("warmup = 60", "warmup = 50")
    with pytest.raises(UsageError) as refused:
        study(text)
    file, line, said = re.fullmatch(r"(\S+), line (\d+): (.*)", str(refused.value)).groups()
    assert file == "tiny.toml"
    assert why in said
    number = int(where[1]) if where[0] == "#" else 1
    found = [
        n for n, x in enumerate(text.splitlines(), 1) if x.startswith(where[3:] if number > 1 else where)
    ]
    assert int(line) == found[number - 1]


def test_a_field_that_does_nothing_is_no_agent_of_its_own(place):
    with pytest.raises(UsageError, match=r"line 16: base.ou_rate does nothing without Ornstein-Uhlenbeck"):
        study(TEXT.replace("warmup = 50", "ou_rate = 0.3, warmup = 50"))


def test_a_study_shows_warnings_of_its_runs(place, capsys):
    board = StudyBoard(study(), Console(width=200))
    board.take(0, Logged(100, 0, {"steps_per_second": 9.0}, ["the support is too narrow"]))
    assert re.search(r"Clock-v0 td3\S* seed 0: the support is too narrow", capsys.readouterr().out)


def test_fields_that_fit_together_only_are_an_agent(place):
    """100 elites are more than the usual 64 samples."""
    text = TEXT.replace('recipe = "sac"', 'recipe = "td3+cem"\ncem = { samples = 128, elites = 100 }', 1)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("actor_"))  # cem has none
    assert any(row.plan.settings.get("cem") == {"samples": 128, "elites": 100} for row in study(text).rows)


def test_a_label_too_long_for_a_folder_is_cut(tmp_path):
    label = f"td3[{'base.actor_hidden=256x256,' * 12}]"
    names = {folder_name(label), folder_name(label + " ")}
    assert len(names) == 2
    assert all(name.startswith(label[:240]) and len(name.encode()) <= 250 for name in names)
    assert folder_name("td3+pave") == "td3+pave"


def test_files_that_are_none(place, capsys):
    assert main(["study", "run", "no.toml"]) == 2
    assert "no.toml cannot be read (No such file" in capsys.readouterr().err
    Path("bad.toml").write_text("steps = 3\nseeds = = 4")
    assert main(["study", "status", "bad.toml"]) == 2
    assert "bad.toml is no TOML: Invalid value (at line 2" in capsys.readouterr().err
    Path("tiny.toml").write_text(TEXT.replace("[budgets.full]", "[budgets.quick.x]"))
    assert main(["study", "run", "tiny.toml"]) == 2
    Path("tiny.toml").write_text(TEXT[: TEXT.index("[budgets.full]")] + TEXT[TEXT.index("[[agents]]") :])
    assert main(["study", "status", "tiny.toml"]) == 0
    assert "tiny (quick): 4 waiting of 4 runs" in capsys.readouterr().out, "the only budget needs no flag"
    assert main(["study", "run", "tiny.toml", "--budget", "full"]) == 2
    assert (
        "no budget 'full', only quick; take another --budget, or add [budgets.full]"
        in capsys.readouterr().err
    )
    for argv, why in (
        (["run"], "qscape study run needs a study first"),
        (
            ["run", "dmo"],
            "no file dmo and no study of that name in the package; near to it: demo, make-demo; more are",
        ),
        (["start"], "qscape study has no 'start'"),
        (["run", "tiny.toml", "--budget", "quick", "--workers", "0"], "--workers is 0"),
        (["run", "tiny.toml", "--worker", "1"], "did you mean --workers"),
        (
            ["run", "tiny.toml", "--budget", "fast"],
            "--budget is 'fast'; it is one of quick, short, full, paper.",
        ),
    ):
        assert main(["study", *argv]) == 2
        assert why in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_studies_of_this_project():
    pendulum = read_study(STUDIES["pendulum"]).rows
    assert [r.plan for r in pendulum if r.plan.recipe == "td7"] == [
        Plan(
            "td7",
            "Pendulum-v1",
            20_000,
            seed=seed,
            settings={"base": {"warmup": 1_000}},
            eval_every=2_500,
            eval_episodes=100,
            label="td7[base.warmup=1000]",
        )
        for seed in range(5)
    ]
    assert {r.plan.recipe for r in pendulum} == {"td3", "sac", "td7"}
    mujoco = read_study(STUDIES["mujoco"], "short").rows
    assert len({r.folder for r in mujoco}) == 36
    assert {r.plan.recipe for r in mujoco} == {"td3", "td7", "sac"}
    assert Plan("td7", "Hopper-v5", 100_000, label="td7") in [r.plan for r in mujoco]
    pave = read_study(STUDIES["pave"], "quick").rows
    assert [r.plan.label for r in pave] == [
        f"{base}{part}[preset=paper]"
        for base in ("td3", "sac")
        for part in ("", "+caps", "+grad", "+asap", "+pave")
    ]
    assert {(r.plan.env, r.plan.steps) for r in pave} == {("Pendulum-v1", 10_000)}


def test_the_package_has_demonstrations_and_five_main_tables(place, capsys):
    """Of every other study, one sentence tells the file, if it is here, or where such files are."""
    assert names_of_studies() == ["acpg", "demo", "make-demo", "pave", "savgo", "savo", "td7"]
    assert {*names_of_studies(), "mujoco", "pave-ablation"} < {*STUDIES}
    assert main(["study", "run", "mujoco"]) == 2
    assert "package; there are acpg, demo" in (said := capsys.readouterr().err)
    assert "more are files of the repository, studies/NAME.toml." in said
    file = Path("studies/mujoco.toml")
    file.parent.mkdir()
    shutil.copy(STUDIES["mujoco"], file)
    assert main(["study", "run", "mujoco"]) == 2
    assert capsys.readouterr().err.endswith(f"mujoco is no part of the package; write its file, {file}.\n")
    assert main(["study", "status", str(file), "--budget", "short"]) == 0
    assert "mujoco (short): 36 waiting of 36 runs" in capsys.readouterr().out


def test_every_study_of_this_project_plans_a_quick_run():
    pytest.importorskip("Box2D")
    pytest.importorskip("ale_py")
    for file in STUDIES.values():
        assert read_study(file, "quick").rows


@pytest.mark.slow
@pytest.mark.parametrize("file", STUDIES.values(), ids=STUDIES)
def test_every_study_of_this_project_plans_its_whole_length(file):
    pytest.importorskip("Box2D")
    pytest.importorskip("ale_py")
    for budget in {"short", "full", "paper"} & {*tomllib.loads(file.read_text())["budgets"]}:
        try:
            rows = read_study(file, budget).rows
        except WrongVersion as problem:  # Fetch of Gymnasium-Robotics is not made with MuJoCo 3.12 and later
            pytest.skip(str(problem))
        assert len({row.folder for row in rows}) == len(rows) > 0


def test_the_plan_of_a_study_is_printed_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "status", str(STUDIES["td7-design"]), "--budget", "short"]) == 0
    said = capsys.readouterr().out
    assert "td7-design (short): 18 waiting of 18 runs" in said
    assert "HalfCheetah-v5" in said
    assert not [*tmp_path.iterdir()]


def test_the_full_comparison_of_pave():
    pytest.importorskip("Box2D")
    rows = read_study(STUDIES["pave"], "paper").rows
    steps = {r.plan.env: r.plan.steps for r in rows}
    assert steps == {
        "Pendulum-v1": 100_000,
        "LunarLander-v3": 500_000,
        "Reacher-v5": 500_000,
        "Ant-v5": 1_000_000,
        "Hopper-v5": 1_000_000,
        "Walker2d-v5": 1_000_000,
    }
    assert len({r.folder for r in rows}) == len(rows) == 10 * 6 * 5


# --- a study that nothing happened to, and what its folders say ----------------------------------------


def start(*argv, **where):
    command = [sys.executable, "-m", "qscape", "study", *map(str, argv), "--trust"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment(), **where)


def ended(process, code=0):
    out, err = process.communicate(timeout=150)
    assert process.returncode == code, out + err
    assert "Traceback" not in out + err
    return out


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The folder of an undisturbed study, and what it said."""
    where = tmp_path_factory.mktemp("study")
    (where / "tiny.toml").write_text(TEXT)
    said = ended(start("run", "tiny.toml", "--budget", "quick", "--workers", 2, cwd=where))
    return where, said


def assert_equal_to(calm, runs):
    rows = read_study(calm / "tiny.toml", "quick", calm / "runs").rows
    assert len(rows) == 4
    for row in rows:
        other = runs / row.folder.relative_to(calm / "runs")
        assert_same_run(row.folder, other)
        assert {int(r["step"]) for r in evaluations(other)} == {0, 1_000, 2_000}
        assert len(evaluations(other)) == 6  # each of two episodes once


@pytest.mark.slow
def test_a_study_runs_all_and_repeats_nothing(calm, place, capsys):
    folder, said = calm
    assert "tiny (quick): 4 waiting of 4 runs" in said
    lines = said.splitlines()
    assert [sum(x.startswith(state) for x in lines) for state in ("running ", "done ")] == [4, 4]

    shutil.copytree(folder / "runs", "runs")
    before = {f: f.stat().st_mtime_ns for f in Path("runs").rglob("*")}
    assert main(["study", "run", "tiny.toml", "--budget", "quick"]) == 0
    assert "tiny (quick): 4 done of 4 runs" in capsys.readouterr().out
    assert main(["study", "status", "tiny.toml", "--budget", "quick"]) == 0
    assert len(re.findall(r"done +2,000 +2,000", capsys.readouterr().out)) == 4
    assert {f: f.stat().st_mtime_ns for f in Path("runs").rglob("*")} == before


@pytest.mark.slow
def test_the_log_of_a_finished_run_tells_the_time_that_is_left(calm, place):
    """1,000 random steps at once, then 50 a second; three runs of 2,000 steps are left."""
    shutil.copytree(calm[0] / "runs", "runs")
    first, *others = study().rows
    for row in others:
        shutil.rmtree(row.folder)
    lines = [{"step": 500 * k, "updates": 9, "steps_per_second": 50 if k > 2 else 1e6} for k in range(1, 5)]
    (first.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    board = StudyBoard(study(), Console(width=200))
    assert states(board.progress) == ["done", *["waiting"] * 3]
    assert board.left() == pytest.approx(3 * 2_000 / 50)


@pytest.mark.slow
def test_what_is_there_decides_what_is_left(calm, place):
    shutil.copytree(calm[0] / "runs", "runs")
    rows = study().rows
    progress = StudyProgress(study(budget="full"))
    assert states(progress) == ["waiting"] * 4  # longer now
    job = progress.runs[0].job
    assert (job.kind, job.steps, progress.runs[0].step) == ("resume", 2_500, 2_000)

    shutil.rmtree(rows[0].folder / "saves")  # left out of an archive
    assert states(StudyProgress(study())) == ["done"] * 4
    assert states(StudyProgress(study(budget="full"))) == ["waiting"] * 4
    log = rows[0].folder / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))  # lost before it was finished
    (rows[1].folder / "run.json").write_text('{"recipe": "td3"')
    for path in rows[2].folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (rows[2].folder / "thesis.txt").write_text("the only copy")
    shutil.rmtree(rows[3].folder)
    progress = StudyProgress(study())
    assert states(progress) == ["waiting", "failed", "failed", "waiting"]
    kinds = [s.job and s.job.kind for s in progress.runs]
    assert kinds == ["resume", None, None, "train"]
    assert "run.json cannot be read" in progress.runs[1].why
    assert "exists and is no run" in progress.runs[2].why
    for leftover in (folders.LOCK, ".run.json.tmp-1f"):  # of a run that was killed as it began
        rows[3].folder.mkdir(exist_ok=True)
        (rows[3].folder / leftover).write_text("")
    assert states(StudyProgress(study()))[3] == "waiting"


@pytest.mark.slow
def test_another_run_in_the_place_is_never_touched(calm, place):
    shutil.copytree(calm[0] / "runs", "runs")
    progress = StudyProgress(study(TEXT.replace("eval_episodes = 2", "eval_episodes = 3")))
    assert states(progress) == ["failed"] * 4
    assert "holds another run: eval_episodes is 2 there and 3 here; move it" in progress.runs[0].why
    progress = StudyProgress(
        study(TEXT.replace("eval_episodes = 2", 'eval_episodes = 2\nprobe = ["smoothness"]'))
    )
    assert states(progress) == ["failed"] * 4
    assert "probe is [] there and ['smoothness'] here" in progress.runs[0].why
    record = folders.read_record(study().rows[0].folder)
    record["settings"]["base"]["discount"] = 0.5  # e.g. the default of another version
    folders.write_record(study().rows[0].folder, record)
    progress = StudyProgress(study())
    assert states(progress) == ["failed", "done", "done", "done"]
    assert "base.discount is 0.5 there and 0.99 here" in progress.runs[0].why


def test_a_warm_up_that_was_fitted_to_a_short_run(place):
    """A quick run without a warm-up of its own is not the beginning of a full one, and says so."""
    text = TEXT.replace("warmup = 50, ", "").replace("steps = 2_500", "steps = 60_000")
    quick = study(text).rows[0]
    *_, _ = train(Plan(**{**vars(quick.plan), "steps": 100, "save_every": None}), quick.folder)
    short = text.replace("steps = 2_000", "steps = 100")
    assert states(StudyProgress(study(short)))[0] == "done"
    there = StudyProgress(study(text, "full")).runs[0]
    assert there.state == "failed"
    assert "base.warmup is 20 there and 25000 here" in there.why


@pytest.mark.parametrize(
    ("recipe", "fields", "same"),
    [
        ("ppo", "anneal = true", False),
        ("ppo", "anneal = false", True),
        ("ppo+carsm", "anneal = false", False),
        ("ppo+carsm", "anneal = false }\ncarsm = { entropy_decay = 0.0", True),
    ],
)
def test_a_run_that_anneals_is_of_one_length(place, recipe, fields, same):
    """Its rate fell to 0 over the short run; in the long one it would jump back up."""
    before = TEXT[TEXT.index("[[agents]]") : TEXT.index("[[environments]]")]
    agent = f'[[agents]]\nrecipe = "{recipe}"\nbase = {{ rollout = 64, {fields} }}\n'
    text = TEXT.replace(before, agent).replace("tiny:Clock-v0", "CartPole-v1")
    quick, full = (study(text, budget).rows[0] for budget in ("quick", "full"))
    for there, here in ((quick, full), (full, quick)):
        plan, made, _ = prepare(there.plan)
        differ = list_differences(here, to_json(plan, made), here.plan.steps)
        lengths = f"is {there.plan.steps} there and {here.plan.steps} here"
        assert differ == ([] if same else [f"the length of annealing {lengths}"])
        assert not list_differences(there, to_json(plan, made), there.plan.steps)


def test_a_discount_that_follows_from_the_time_limit_is_the_same_run(place):
    text = TEXT.replace("warmup = 50", 'discount_rule = "time_limit", warmup = 50')
    text = text.replace("tiny:Clock-v0", "Pendulum-v1").replace("steps = 2_000", "steps = 100")
    row = study(text).rows[0]
    *_, _ = train(row.plan, row.folder)
    assert folders.read_record(row.folder)["settings"]["base"]["discount"] == 0.975
    assert states(StudyProgress(study(text)))[0] == "done"


@pytest.mark.slow
def test_a_changed_field_makes_a_new_run_and_says_which(calm, place):
    shutil.copytree(calm[0] / "runs", "runs")
    progress = StudyProgress(study(TEXT.replace("warmup = 60", "warmup = 70")))
    assert states(progress) == ["done", "waiting", "done", "waiting"]
    (line,) = progress.describe_changes()
    assert line.startswith("sac[")
    assert line.endswith(": base.warmup is 70, not 60")
    progress = StudyProgress(study(TEXT.replace('id = "', 'args = { length = 20 }\nid = "')))
    assert states(progress) == ["waiting"] * 4


# --- side by side --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_locked_run_waits(calm, place):
    shutil.copytree(calm[0] / "runs", "runs")
    for row in study().rows[:2]:
        shutil.rmtree(row.folder)
    told = []
    with folders.locked(study().rows[0].folder):
        progress = StudyProgress(study(), notice=told.append)
        assert states(progress) == ["elsewhere", "waiting", "done", "done"]
        jobs = progress.jobs()
        k, job = next(jobs)
        assert (k, job.kind) == (1, "train")
        assert next(jobs) is None
        with folders.locked(study().rows[1].folder):
            progress.runs[1].take(None)  # its worker gave up: another process came first
            assert states(progress)[1] == "elsewhere"
            assert next(jobs) is None
        assert told == []
    k, job = next(jobs)
    assert (k, job.kind) == (0, "train")
    assert states(progress) == ["running", "elsewhere", "done", "done"]
    shutil.copytree(calm[0] / "runs", "runs", dirs_exist_ok=True)  # the other one ended it
    assert next(jobs) is None
    progress.runs[0].take(None)
    assert states(progress) == ["done"] * 4
    assert next(jobs, "over") == "over"


def test_a_lost_worker_is_replaced_until_nothing_comes_of_it(place):
    standing = StudyProgress(study()).runs[0]
    for k in range(LOSSES + 1):
        standing.state = "running"
        if k == 1:
            standing.take(Saved(500, Path()))
        standing.take(Failure("its process was killed (SIGKILL)", lost=True))
        assert standing.state == "running"  # until its worker is gone
        standing.take(None)
        assert standing.state == ("waiting" if k < LOSSES else "failed")
    assert standing.why == "its process was killed (SIGKILL)"
    standing.state = "running"
    standing.take(Failure("NaN"))
    standing.take(None)
    assert (standing.state, standing.why) == ("failed", "NaN")


def test_a_worker_that_came_second_does_not_fail_a_run(place):
    """Another process began the same run and was interrupted, so the folder is free again."""
    progress = StudyProgress(study())
    run, jobs = progress.runs[0], progress.jobs()
    assert next(jobs)[1].kind == "train"
    plan, agent, _ = prepare(run.row.plan)
    folders.create(run.row.folder, plan, agent)
    run.take(Failure("it holds a run already", status=UsageError.status))
    run.take(None)
    assert (run.state, run.why) == ("waiting", "")
    assert next(jobs)[1].kind == "resume"
    run.take(Failure("NaN"))
    run.take(None)
    assert (run.state, run.why) == ("failed", "NaN")


def test_a_run_that_fails_after_its_begin_is_not_made_again(place):
    progress = StudyProgress(study())
    run = progress.runs[0]
    next(progress.jobs())
    plan, agent, _ = prepare(run.row.plan)
    folders.create(run.row.folder, plan, agent)
    run.take(Started(0, 2_000, "td3", "Clock", 0, []))
    run.take(Failure("NaN"))
    run.take(None)
    assert (run.state, run.why) == ("failed", "NaN")


class Scripted:
    """A worker that tells what it is given."""

    def __init__(self, job):
        self.job = job

    def events(self):
        if self.job.steps == 13:
            raise OSError("broken")
        yield {"kind": "Logged", "step": self.job.steps, "updates": 0, "metrics": {}}
        yield {"kind": "Failed", "why": "x", "lost": True}

    def stop(self): ...
    def kill(self): ...


def test_the_pool_asks_again_and_survives_a_broken_worker():
    given = iter([(0, Job("resume", Path(), steps=1)), None, None, (7, Job("resume", Path(), steps=13))])
    told = list(Pool(given, 1, Scripted).events())
    assert told == [
        (0, Logged(1, 0, {})),
        (0, Failure("x", lost=True)),
        (0, None),
        (7, Failure("OSError: broken")),
        (7, None),
    ]


def test_the_pool_asks_once_a_second_and_when_a_worker_ends():
    """An answer reads the folders of runs elsewhere, so events must not wait for one each."""
    asked = []

    def jobs():
        for k in (5, 6):
            yield k, Job("resume", Path(), steps=1)
        while pool.running:
            asked.append(len(told))
            yield None

    told, pool = [], Pool(jobs(), 3, Scripted)
    begun = time.monotonic()
    for event in pool.events():
        told += [event]
    assert len(told) == 6
    assert asked == [0, [event for _, event in told].index(None) + 1]
    assert time.monotonic() - begun < 0.9


def descendants(pid):
    """Processes below one, by their parents."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what, seconds=90):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def saves(runs):
    return len([*runs.rglob("save.json")])


@pytest.mark.slow
def test_a_study_that_is_interrupted_killed_and_doubled_ends_like_a_calm_one(calm, place):
    runs = place / "runs"
    argv = ["run", "tiny.toml", "--budget", "quick", "--workers", 2]
    first = start(*argv)
    wait_for(lambda: saves(runs) >= 1)
    first.send_signal(signal.SIGINT)
    said = ended(first, 130)
    assert "to continue: qscape study run tiny.toml --budget quick --workers 2 --trust" in said

    second, before = start(*argv), saves(runs)
    wait_for(lambda: saves(runs) > before)
    workers = descendants(second.pid)
    assert len(workers) == 2
    os.kill(second.pid, signal.SIGKILL)
    os.kill(workers[0], signal.SIGKILL)  # the other one saves and ends
    second.communicate()
    wait_for(lambda: not any(map(alive, workers)), 30)
    assert "done" not in {s.state for s in StudyProgress(study()).runs[2:]}  # in the middle

    both = [start(*argv), start(*argv)]
    for process in both:
        assert "4 done of 4 runs" in ended(process)
    assert_equal_to(calm[0], runs)


@pytest.mark.slow
def test_a_worker_whose_parent_is_gone_saves_and_ends(place):
    """Its pipes are closed then, by whatever ended the parent; the run itself would take an hour."""
    plan = Plan(
        "td3", "tiny:Clock-v0", 10_000_000, settings=study().rows[0].plan.settings, save_every=9_999_999
    )
    worker = LocalWorker(Job("train", Path("run"), plan), log=Path("log"))
    assert next(d for d in worker.events() if d["kind"] == "Logged")["step"] > 0
    for pipe in (worker.process.stdin, worker.process.stdout):
        pipe.close()
    assert worker.process.wait(timeout=30) == 0
    (save,) = Path("run/saves").iterdir()
    assert int(save.name) > 0
    assert folders.unfinished(Path("run"))
    assert not folders.in_use(Path("run"))
    assert "Traceback" not in Path("log").read_text()


@pytest.mark.slow
def test_a_failing_run_does_not_stop_the_rest(calm, place, capsys):
    """The study of one agent: in one environment it is done, in the other one a reward is NaN."""
    shutil.copytree(calm[0] / "runs", "runs")
    text = (
        TEXT.replace("seeds = 2", "seeds = 1")
        + '[[environments]]\nid = "tiny:Clock-v0"\nargs = {fail_at = 90}\n'
    )
    shutil.rmtree(study(text).rows[0].folder)
    assert main(["study", "run", "tiny.toml", "--budget", "quick"]) == 1
    out, err = capsys.readouterr()
    assert err == "qscape: 2 of 4 runs failed; see above.\n"
    failed = [
        line for line in out.splitlines() if line.startswith("failed runs/tiny/tiny-Clock-v0(fail_at=90)/")
    ]
    assert len(failed) == 2
    assert all("reward is nan in environment 0, step 30 of its episode 3" in line for line in failed)
    assert states(StudyProgress(study(text))) == ["done", "done", "waiting", "waiting"]
    assert_same_run(study().rows[0].folder, calm[0] / study().rows[0].folder)


# --- what it will cost, and how it looks ---------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told to go on; `clock(4)` lets four seconds pass."""
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def go_on(seconds):
        now[0] += seconds

    return go_on


def test_a_study_tells_the_time_that_is_left_after_five_seconds(place, clock, capsys):
    """Of two groups with two runs of 2,000 steps, one is measured: 100 steps a second, once it learns."""
    board = StudyBoard(study(), Console(width=200))
    board.workers = 2
    next(board.progress.jobs())

    def tell(seconds, step, updates):
        clock(seconds)
        board.take(0, Progressed(step, updates, 0, 0))
        return capsys.readouterr().out

    board.take(0, Started(0, 2_000, "td3", "Clock", 0, []))
    assert tell(1, 50, 0)  # the line that the run has begun
    assert not tell(6, 99, 0)
    assert not tell(20, 100, 50)  # warm-up and compilation do not count
    assert board.left() is None
    assert not tell(1, 200, 150)
    assert not tell(3, 500, 450)
    assert tell(2, 700, 650) == "about 0:00:36 left with 2 workers (0.02 core-hours)\n"
    assert board.left() == pytest.approx((1_300 + 3 * 2_000) / 100)
    assert not tell(6, 800, 750), "it is told once"

    board.take(0, None)  # lost; the next worker begins with a compilation, and the old speed counts
    next(board.progress.jobs())
    board.take(0, Started(800, 2_000, "td3", "Clock", 0, []))
    board.take(0, Progressed(810, 760, 0, 0))
    clock(60)
    board.take(0, Progressed(811, 761, 0, 0))
    assert board.progress.runs[0].pace.speed == pytest.approx(100)
    clock(5)
    board.take(0, Progressed(861, 811, 0, 0))
    board.progress.runs[1].pace.speed = 1.0
    assert board.progress.runs[0].pace.speed == pytest.approx(10)
    assert board.left() == pytest.approx((1_139 + 2_000) / 10 + 2 * 2_000)


def test_a_study_of_short_runs_tells_the_time_that_is_left_when_the_first_run_ends(place, clock, capsys):
    """A run of 2,000 steps: its worker takes 3 s to start, it compiles for 9 s and learns for 4 s."""
    board = StudyBoard(study(), Console(width=200))
    jobs = board.progress.jobs()
    next(jobs), next(jobs)
    clock(3)
    board.take(0, Started(0, 2_000, "td3", "Clock", 0, []))
    clock(9)
    board.take(0, Progressed(100, 40, 0, 0))
    clock(4)
    assert board.left() is None
    capsys.readouterr()
    board.take(0, Ended(2_000, 1_940, 13.0, False))
    board.progress.runs[0].state = "done"
    assert board.left() == pytest.approx(3 * 7)  # compiled programs are kept for later runs
    board.take(1, Started(0, 2_000, "sac", "Clock", 0, []))
    assert "about 0:00:21 left with 1 worker " in capsys.readouterr().out
    board.progress.runs[1].pace.speed = 1_000.0
    assert board.left() == pytest.approx(2 * 2 + 7), "a group that has no run ended counts by its speed"


def test_the_live_table_fits_on_the_screen(place):
    many = TEXT.replace("seeds = 2", "seeds = 30")
    with open(os.devnull, "w") as nowhere:
        console = Console(force_terminal=True, width=100, height=12, record=True, file=nowhere, markup=False)
        board = StudyBoard(study(many), console)
        standings = board.progress.runs
        standings[41].state, standings[41].pace.speed, standings[41].step = "running", 100.0, 1_000
        standings[17].state, standings[17].why = "failed", "NaN"
        console.print(board.short_table())
    title, head, first, second, *rest = console.export_text().splitlines()
    assert len(rest) == 6
    assert title.startswith("tiny (quick): 1 running, 1 failed, 58 waiting of 60 runs; about 0:19:30 left")
    assert head.split() == [
        "environment",
        "agent",
        "seed",
        "state",
        "steps",
        "of",
        "steps/s",
        "return",
        "left",
    ]
    assert re.match(r"tiny-Clock-v0  sac\[base.* +20  running +1,000 +2,000 +100 +0:00:10$", first)
    assert re.match(r"tiny-Clock-v0  sac\[base.* +8 +failed", second)


@pytest.mark.slow
def test_a_study_learns_from_a_dataset_and_repeats_nothing(tmp_path, monkeypatch, capsys):
    h5py = pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with h5py.File("pendulum_medium.hdf5", "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(600, 3)), rng.uniform(-2, 2, (600, 1))
        file["rewards"], file["terminals"] = rng.normal(size=600), np.zeros(600, bool)
        file["timeouts"] = np.arange(1, 601) % 200 == 0
    Path("offline.toml").write_text(
        "[budgets.quick]\nsteps = 60\nseeds = 1\neval_every = 30\neval_episodes = 1\n"
        '[[agents]]\nrecipe = "td3+bc"\nbase = { updates_per_step = 3 }\n'  # on a dataset 1
        '[[environments]]\nid = "Pendulum-v1"\ndataset = "pendulum_medium.hdf5"\n'
    )
    argv = ["study", "run", "offline.toml", "--budget", "quick", "--workers", "1"]
    assert main(argv) == 0
    assert (
        "done      Pendulum-v1[pendulum_medium] td3+bc[base.updates_per_step=3.0] seed 0  60 steps"
        in capsys.readouterr().out
    )
    assert main(argv) == 0
    assert "1 done of 1 runs" in capsys.readouterr().out
