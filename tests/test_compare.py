"""`qscape compare`, `qscape plot` and the example notebook."""

import csv
import io
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from runs_on_disk import write_run

from qscape.cli import main
from qscape.errors import UsageError
from qscape.report import curves, figures, interactive, references, statistics, tables
from qscape.report.runs import find_runs, load_runs

ROOT = Path(__file__).parent.parent
ENVS = ("Ant-v5", "Hopper-v5")


def run(*argv) -> int:
    """A command line in this process."""
    return main([*map(str, argv)])


def group(
    folder: str,
    *,
    label: str,
    env: str = "Ant-v5",
    seeds: int = 5,
    last: float = 1000.0,
    to: int = 100_000,
    **more,
) -> None:
    """Seeds of an agent whose final returns are `last`, `last` + 10, ... and whose best is 5 above."""
    for seed in range(seeds):
        end = last + 10 * seed
        write_run(
            f"{folder}/{env}/{label.replace('/', '-')}/{seed}", label=label, env=env, seed=seed,
            returns={0: [0.0, 0.0], to // 2: [end + 5, end + 5], to: [end, end]}, **more,
        )  # fmt: skip


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two agents with five seeds in two environments; the working directory."""
    monkeypatch.chdir(tmp_path)
    for env in ENVS:
        group("runs", label="td3", env=env)
        group("runs", label="td7", env=env, last=2000.0)
    return tmp_path


@pytest.fixture
def says(capsys):
    """Run a command line that works; what it prints, with spaces as one."""

    def run_it(*argv) -> str:
        capsys.readouterr()
        assert run(*argv) == 0
        return " ".join(capsys.readouterr().out.split())

    return run_it


@pytest.fixture
def refused(capsys):
    """Run a command line that is refused with one sentence."""

    def run_it(*argv) -> str:
        capsys.readouterr()
        assert run(*argv) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    return run_it


def test_tables_of_a_comparison(runs, says):
    out = says("compare", "runs")
    # of 1000 ... 1040 one is cut at each end; the standard deviation is that of a sample
    assert re.search(
        r"td3 current 5 100,000 1,020\.0 \[1,0\d\d\.\d, 1,0\d\d\.\d\] 1,020\.0 ± 15\.8 1,025\.0", out
    )
    assert out.index("Ant-v5: evaluation return") < out.index("Hopper-v5: evaluation return")
    assert "Normalised final scores; 0: random policy, 1: TD3 after 1M steps" in out
    assert "td3 > td7 2 0.00 [0.00, 0.23]" in out
    assert "no ranking claim" not in out
    out = says("compare", "runs", "--best", "--csv", "best.csv", "--json", "best.json")
    assert "Normalised best scores" in out
    assert re.search(r"td3 current 5 100,000 1,025\.0 \[1,0\d\d\.\d, .{7}\] 1,025\.0 ± 15\.8 1,020\.0", out)
    assert "Ant-v5: evaluation return; best: highest evaluation of each run; final: last evaluation" in out
    with Path("best.csv").open() as file:
        assert {row["score"] for row in csv.DictReader(file)} == {"best"}
    assert json.loads(Path("best.json").read_text())["score"] == "best"
    assert "td3 current 5 100,000 1,022.5" in says("compare", "runs", "--final", 2, "--latex", "two.tex")
    assert "% A final score is the mean of the last 2 evaluations." in Path("two.tex").read_text()


def test_no_aggregate_without_reference_scores_for_all(runs, says):
    group("runs", label="td3", env="Pendulum-v1", last=-200.0)
    out = says("compare", "runs")
    assert "No aggregate over environments" in out
    assert "Normalised" not in out


def test_scores_normalised_by_the_best_agent_here(tmp_path, monkeypatch, says):
    """SAVO's tasks have no scores of others: 0 is our random policy, 1 the best mean of the comparison."""
    monkeypatch.chdir(tmp_path)
    for env, low in (("restricted/Hopper-v0", 18.52), ("recsim/10k-v0", 1.62)):
        group(f"runs/{env[:6]}", label="td3", env=env, last=low - 20.0)  # on average the random policy's
        group(f"runs/{env[:6]}", label="savo", env=env, last=low + 80.0)
    assert "no reference score of recsim/10k-v0, restricted/Hopper-v0; --normalise best" in says(
        "compare", "runs"
    )
    out = says("compare", "runs", "--normalise", "best", "--json", "made.json", "--png", "made.png")
    assert "Normalised final scores; 0: random policy, 1: the best agent here" in out
    td3, savo = sorted(json.loads(Path("made.json").read_text())["aggregate"], key=lambda row: row["mean"])
    assert (td3["label"], savo["label"]) == ("td3", "savo")
    assert td3["mean"] == pytest.approx(0.0, abs=1e-9)
    assert savo["mean"] == pytest.approx(1.0)
    assert savo["optimality_gap"] == pytest.approx((0.2 + 0.1) / 5)  # seeds at 0.8, 0.9, 1.0 and above


def test_nobody_above_the_random_policy(tmp_path, monkeypatch, says):
    monkeypatch.chdir(tmp_path)
    group("runs", label="td3", env="Pendulum-v1", last=-1600.0)
    out = says("compare", "runs", "--normalise", "best")
    assert "No aggregate over environments: no agent is above the random policy in Pendulum-v1." in out


def test_success_rates(tmp_path, monkeypatch, says, refused):
    monkeypatch.chdir(tmp_path)
    for seed, rate in enumerate(([0, 1], [1, 1])):
        points = {0: [5.0, 5.0], 10: [9.0, 9.0]}
        write_run(
            f"runs/{seed}", env="AdroitHandDoor-v1", seed=seed, returns=points, success={0: [0, 0], 10: rate}
        )
    files = ["--html", "made.html", "--png", "made.png", "--csv", "made.csv", "--json", "made.json"]
    out = says("compare", "runs", "--metric", "success", *files)
    with Path("made.csv").open() as file:
        assert {row["metric"] for row in csv.DictReader(file)} == {"success"}
    assert json.loads(Path("made.json").read_text())["metric"] == "success"
    assert "AdroitHandDoor-v1: success rate (%); final: last evaluation" in out
    assert "75.0 ± 35.4" in out
    assert "All scores are success rates in percent, not returns." in out
    page = Path("made.html").read_text()
    assert "success rate (%) (IQM)" in page
    assert "evaluation return" not in page
    assert "best final success rate (%) 100.0 (td3, seed 1)" in says("plot", "runs", "--metric", "success")
    assert "9.0" in says("compare", "runs")
    assert "published curves are of returns" in refused(
        "compare", "runs", "--metric", "success", "--reference", "sac"
    )
    write_run("runs/2", env="Ant-v5")
    assert "Ant-v5 reports no success" in refused("compare", "runs", "--metric", "success")
    assert "Ant-v5 reports no success" in refused("plot", "runs", "--metric", "success")


def test_an_agent_that_ran_in_some_environments_only(runs, says):
    group("runs", label="sac", env="Ant-v5")
    out = says("compare", "runs")
    assert "sac is not in the aggregate: it has no run in Hopper-v5." in out
    assert "sac > td3 1 0.50" in out


def test_fewer_than_five_seeds_claim_nothing(tmp_path, monkeypatch, says):
    monkeypatch.chdir(tmp_path)
    group("runs", label="td3", seeds=3)
    group("runs", label="sac", seeds=1)
    group("runs", label="td7", seeds=5)
    out = says("compare", "runs")
    assert "Ant-v5: sac 1 seed, td3 3 seeds: no ranking claim (fewer than 5)." in out
    assert "sac current 1 100,000 1,000.0 1,000.0 1,005.0" in out  # one run: no interval, no deviation


def test_few_runs_have_a_range_and_no_interval_in_every_file(tmp_path, monkeypatch, says):
    monkeypatch.chdir(tmp_path)
    group("runs", label="td3", seeds=3)
    group("runs", label="td7", seeds=5, last=2000.0)
    group("runs", label="sac", seeds=5)
    ends = ("csv", "json", "latex", "png", "html")
    out = says("compare", "runs", *(part for end in ends for part in (f"--{end}", f"c.{end}")))
    assert "final IQM [95%] (range)" in out
    assert "td3 current 3 100,000 1,010.0 (1,000.0 to 1,020.0) 1,010.0 ± 10.0 1,015.0" in out
    assert re.search(r"td7 current 5 100,000 2,020\.0 \[2,000\.4, 2,039\.6\]", out)
    assert "td3 > td7 1 0.00 " in out
    rows = {row["label"]: row for row in csv.DictReader(Path("c.csv").read_text().splitlines())}
    assert (rows["td3"]["final_iqm_low"], rows["td3"]["final_iqm_high"]) == ("", "")
    assert (rows["td3"]["final_min"], rows["td3"]["final_max"]) == ("1000.0", "1020.0")
    assert rows["td3"]["final_runs"] == "1000.0 1010.0 1020.0"
    assert float(rows["td7"]["final_iqm_low"]) == pytest.approx(2000.4, abs=0.1)
    made = json.loads(Path("c.json").read_text())
    few, many = made["per_env"][1:]
    assert (few["label"], few["final_iqm_low"], few["final_iqm_high"]) == ("td3", None, None)
    assert few["final_runs"] == [1000.0, 1010.0, 1020.0]
    assert many["final_iqm_high"] == pytest.approx(2039.6, abs=0.1)
    (leader,) = made["leaders"]
    assert (leader["env"], leader["x"], leader["y"], leader["better"]) == ("Ant-v5", "td7", "sac", True)
    pair = {(row["x"], row["y"]): row["probability_low"] for row in made["improvement"]}
    assert pair[("td3", "td7")] is None
    assert pair[("sac", "td7")] == 0.0
    tex = Path("c.latex").read_text()
    assert "td3 & $1010.0$ ($1000.0$ to $1020.0$)" in tex
    assert "td7 & $2020.0$ [$2000.4$, $2039.6$]" in tex
    page = Path("c.html").read_text()
    assert "(1,000.0 to 1,020.0)" in page
    assert "2,000.4 to 2,039.6" in page
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")


def test_few_runs_are_drawn_one_by_one(tmp_path):
    for label, seeds in (("few", 3), ("many", 5)):
        for seed in range(seeds):
            returns = {0: [1.0 * seed], 10: [5.0 * seed]}
            write_run(tmp_path / label / str(seed), label=label, seed=seed, returns=returns)
    rows = load_runs(tmp_path)
    ax = figures.draw_learning_curves(rows)
    drawn = [line.get_ydata().tolist() for line in ax.get_lines()]
    assert drawn == [[0.0, 0.0], [1.0, 5.0], [2.0, 10.0], [1.0, 5.0], [2.0, 10.0]]
    assert len(ax.collections) == 1  # the band of the others
    chart = interactive.render_chart(curves.learning_curves_chart(rows))
    shown = [(line.legendgroup[:4], line.fill, line.y.tolist()) for line in chart.data]
    assert [line for line in shown if line[0] == "few "] == [("few ", None, y) for y in drawn[:4]]
    assert [fill for name, fill, _ in shown if name == "many"] == ["toself", None]
    alone = figures.draw_learning_curves(rows[rows["label"] == "few"])
    assert "band" not in alone.get_ylabel()


def test_unequal_budgets_are_refused_unless_asked_for(runs, says, refused):
    group("runs", label="sac", to=50_000)
    why = "Budgets in Ant-v5 differ (sac 50,000 steps; td3 100,000 steps; td7 100,000 steps)"
    assert f"{why}: compare equal ones, or add --unequal." in refused("compare", "runs")
    assert f"{why}: longer runs have the advantage." in says("compare", "runs", "--unequal")


def test_unequal_budgets_of_one_agent(runs, says, refused):
    write_run("runs/Ant-v5/td3/9", seed=9, returns={0: [1.0], 7: [2.0]})
    assert "td3 7 and 100,000 steps" in refused("compare", "runs")
    out = says("compare", "runs", "--unequal")
    assert "; the curve of td3 ends where the shortest of its runs does." in out


def test_an_unfinished_run_is_left_out_and_named(runs, says, refused):
    write_run("runs/Ant-v5/td3/9", seed=9, returns={0: [1.0], 7: [9000.0]}, steps=100_000)
    out = says("compare", "runs")
    assert "left out runs/Ant-v5/td3/9: unfinished, at 7 of 100,000 steps (--unequal takes it)." in out
    assert "td3 current 5" in out
    assert "td3 current 6" in says("compare", "runs", "--unequal")
    assert "No run is finished" in refused("compare", "runs/Ant-v5/td3/9")


def test_the_same_run_twice_is_refused(runs, refused, says):
    assert "td3 current 5" in says("compare", "runs", runs / "runs", "runs/Ant-v5/td3/0", "runs/**")
    write_run("more/0", label="td3", seed=0)
    why = "are the same agent, environment and seed: leave one of them out"
    assert why in refused("compare", "runs", "more")
    assert why in refused("plot", "runs", "more")


def test_a_broken_folder_is_skipped_and_named(runs, says):
    Path("runs/Ant-v5/td3/0/run.json").write_text("{")
    assert "skipped runs/Ant-v5/td3/0: run.json is broken" in says("compare", "runs")
    assert "skipped runs/Ant-v5/td3/0: run.json is broken" in says("plot", "runs")


def test_kept_and_current_policies(tmp_path, monkeypatch, says):
    monkeypatch.chdir(tmp_path)
    for seed in range(5):
        write_run(f"runs/{seed}", label="td7", seed=seed, returns={10: [1.0]}, kept={10: [8.0]})
    assert "td7 kept 5 10 8.0" in says("compare", "runs")
    assert "td7 current 5 10 1.0" in says("compare", "runs", "--policy", "current")
    assert "both.png: 5 run(s)" in says("plot", "runs", "--policy", "both", "--png", "both.png")


def test_published_curves_stand_apart_with_version_and_source(runs, says, refused):
    out = says(
        "compare",
        "runs",
        "--reference",
        "sac,TD3,savgo",
        "--json",
        "c.json",
        "--latex",
        "c.tex",
        "--smooth",
        0.85,
    )
    assert "SAVGO on Ant-v5 published 10 100,000 - 673.0 -" in out
    assert "All returns are smoothed: 0.85 of the past" in out
    assert "TD3 on Ant-v1 published 10 100,000" in out
    assert "SAC on Ant-v4 published 10 100,000 754.6 747.2 ± 528.3 -" in out
    assert (
        "TD3, published: 10 episodes every 5k steps, no noise; source sfujim/TD3 learning_curves (MIT)."
        in out
    )
    assert "not like for like" in out
    lines = Path("c.tex").read_text()
    assert "$673.0$ (Ant-v5, mean)" in lines
    assert "$754.6$ (Ant-v4)" in lines
    says("compare", "runs", "--reference", "sac", "--best", "--latex", "best.tex")
    assert "$754.6$ (Ant-v4, final)" in Path("best.tex").read_text()
    sources = {row["source"] for row in json.loads(Path("c.json").read_text())["published"]}
    assert sources == {
        "sfujim/TD3 learning_curves",
        "DAVIAN-Robotics/SimbaV2 results/baseline/sac.csv",
        "arXiv 2605.00787 learning curves, evaluated every 5k steps",
    }
    assert "There is no published curve 'tdd'; did you mean td3" in refused(
        "compare", "runs", "--reference", "tdd"
    )


def test_published_curves_that_do_not_fit_are_named(tmp_path, monkeypatch, says):
    monkeypatch.chdir(tmp_path)
    group("runs", label="td3", to=20_000)
    group("runs", label="td3", env="Pendulum-v1", to=20_000)
    out = says("compare", "runs", "--reference", "td3", "--png", "c.png")
    assert "No published curve of td3 for Pendulum-v1." in out
    assert "No published figure of td3 for Ant-v5 at 20,000 steps or before 50,000." in out


def test_published_curves_of_steps_stand_not_beside_updates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, record in (("steps", {}), ("updates", {"dataset": "mujoco/ant/medium-v0"})):
        write_run(folder, env="Ant-v5", returns={0: [1.0], 100_000: [9.0]}, record=record)
    for folder, beside in (("steps", True), ("updates", False)):
        made = tables.compare(load_runs(folder), reference=["td3"])
        assert len(made.published) == beside
        published = references.load_published(["td3"])
        (panel,) = figures.draw_overview(made.rows, published=published).axes
        chart = curves.learning_curves_chart(made.rows, published=published)
        for names in ([line.get_label() for line in panel.lines], [trace.name for trace in chart.traces]):
            assert any("published" in name for name in names) == beside


def test_files(runs, says):
    out = says(
        "compare", "runs", "--csv", "o/c.csv", "--latex", "o/c.tex", "--json", "o/c.json", "--png", "o/c.png",
        "--reference", "td3",
    )  # fmt: skip
    assert out.endswith("written: o/c.csv written: o/c.tex written: o/c.json written: o/c.png")
    rows = list(csv.DictReader(Path("o/c.csv").read_text().splitlines()))
    assert [(r["env"], r["label"], r["policy"]) for r in rows[:2]] == [
        ("Ant-v5", "td3", "current"), ("Ant-v5", "td7", "current")
    ]  # fmt: skip
    assert (rows[0]["seeds"], rows[0]["final_iqm"], rows[0]["best_iqm"]) == ("5", "1020.0", "1025.0")
    assert [(r["env"], r["source"]) for r in rows if r["policy"] == "published"] == [
        (f"{task}-v1", "sfujim/TD3 learning_curves") for task in ("Ant", "Hopper")
    ]
    found = json.loads(Path("o/c.json").read_text())
    tables_of_it = {"per_env", "aggregate", "improvement", "leaders", "published"}
    assert set(found) == tables_of_it | {"score", "metric", "notes"}
    assert found["per_env"][0]["final_mean"] == 1020.0
    assert [row["label"] for row in found["aggregate"]] == ["td3", "td7"]
    tex = Path("o/c.tex").read_text()
    assert r" & Ant-v5 & Hopper-v5 \\" in tex
    assert re.search(r"^td3 & \$1020\.0\$ \[\$10\d\d\.\d\$, \$10\d\d\.\d\$\] & ", tex, re.MULTILINE)
    assert "TD3, published & $" in tex
    assert Path("o/c.png").read_bytes().startswith(b"\x89PNG")
    assert Path("o/c.png").stat().st_size > 20_000


def test_a_hostile_label_stays_text(tmp_path, monkeypatch, says):
    monkeypatch.chdir(tmp_path)
    label = "<script>$x_1$ [red]&\n\\input{x}"
    group("runs", label=label, seeds=2)
    out = says("compare", "runs", "--csv", "c.csv", "--latex", "c.tex", "--png", "c.png", "--json", "c.json")
    assert "<script>$x_1$ [red]&" in out
    assert next(csv.DictReader(io.StringIO(Path("c.csv").read_text())))["label"] == label.replace("\n", " ")
    tex = Path("c.tex").read_text()
    assert r"\textless{}script\textgreater{}\$x\_1\$ [red]\&" in tex
    body = [line for line in tex.splitlines() if not line.startswith("%")]
    assert not any("\\input" in line or "<script>" in line for line in body)
    assert Path("c.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["nowhere"], "nowhere is no run and holds none"),
        ([], "needs RUNS first"),
        (["runs", "--final", 0], "--final is 0; it must be at least 1"),
        (["runs", "--final", 9], "use --final 3 or less"),
        (["runs", "--policy", "kept", "--pgn", "x"], "has no flag --pgn; did you mean --png?"),
        (["runs", "--png", "c.txt"], "c.txt: .txt is not an image format"),
        (["runs", "--png", "c"], "--png c has no suffix, which selects the format; write c.png."),
    ],
)
def test_bad_input(runs, refused, argv, why):
    assert why in refused("compare", *argv)


def test_files_that_cannot_be_written(runs, capsys):
    Path("file").write_text("")
    for flag in ("--csv", "--png", "--html"):
        assert run("compare", "runs", flag, f"file/c.{flag[2:]}") == 1
        assert f"file/c.{flag[2:]} cannot be written (" in capsys.readouterr().err


def test_missing_extras_are_named(runs):
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "from qscape.cli import main; sys.exit(main(['compare', 'runs']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == 'qscape: Tables of runs need the extra: pip install "qscape[report]".\n'


@pytest.mark.slow
def test_pages_need_plotly_and_nothing_else_does(runs):
    code = (
        "import sys; sys.modules['plotly'] = None\n"
        "from qscape.cli import main; sys.exit(main(['compare', 'runs', *sys.argv[1:]]))"
    )
    for more, status in (([], 0), (["--html", "r.html"], 2)):
        done = subprocess.run([sys.executable, "-c", code, *more], capture_output=True, text=True)
        assert done.returncode == status
        said = 'qscape: Pages need the extra: pip install "qscape[report]".\n' if status else ""
        assert done.stderr == said


def test_load_runs_does_not_import_jax(runs):
    code = "import sys, qscape as qs; print(len(qs.load_runs('runs')), 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["60", "False"], done.stderr


@pytest.mark.slow
def test_the_example_notebook_runs(tmp_path):
    """Every cell, in order, with fewer steps; what it leaves behind is there."""
    book = nbformat.read(ROOT / "examples/compare.ipynb", as_version=4)
    nbformat.validate(book)
    assert all(not cell.outputs for cell in book.cells if cell.cell_type == "code"), "clear the outputs"
    code = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    assert "STEPS = 3_000" in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace("STEPS = 3_000", "STEPS = 60")],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "agg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/notebook/curves.png").stat().st_size > 5_000
    assert "no ranking claim" in done.stdout


def test_a_kept_policy_beside_the_current_one(tmp_path):
    write_run(tmp_path / "a", label="td7", returns={0: [1.0], 10: [2.0]}, kept={0: [1.0], 10: [5.0]})
    write_run(tmp_path / "b", label="td3", returns={0: [0.0], 10: [3.0]})
    rows = statistics.label_policies(load_runs(tmp_path))
    last = rows[rows["step"] == 10].set_index("label")["return"].to_dict()
    assert last == {"td7, current policy": 2.0, "td7, kept policy": 5.0, "td3": 3.0}
    file = tmp_path / "p.png"
    assert main(["plot", str(tmp_path), "--policy", "both", "--png", str(file)]) == 0
    assert file.stat().st_size > 10_000


def test_files_of_a_run_and_folders_are_not_written_over(tmp_path, capsys):
    write_run(tmp_path / "a")
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    for argv, why in (
        (
            ["--csv", tmp_path / "a" / "evaluations.csv"],
            "has the name of a file of a run, which only training",
        ),
        (["--json", tmp_path / "a" / "run.json"], "has the name of a file of a run"),
        (["--csv", tmp_path / "evaluations.csv"], "has the name of a file of a run"),
        (["--json", tmp_path / "new" / "run.json"], "has the name of a file of a run"),
        (["--csv", tmp_path / "a"], "is a folder; name a file"),
        (["--csv", f"{tmp_path}/new/"], "is a folder; name a file"),
        (["--csv", tmp_path / "x", "--json", tmp_path / "x"], "x is named for two results; give each a file"),
        (["--json", "-"], "- is no file name; /dev/stdout prints a result"),
    ):
        assert main(["compare", str(tmp_path / "a"), *map(str, argv)]) == 2
        assert why in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before


@pytest.mark.parametrize("flag", ["--csv", "--html", "--png"])
def test_a_file_that_cannot_be_written_whole_stays_as_it_was(flag, tmp_path, capsys):
    """A limit on the size of files fails like a full disk: in the middle of a write."""
    write_run(tmp_path / "a")
    file = tmp_path / "out" / f"old.{flag[2:]}"
    file.parent.mkdir()
    file.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        code = run("compare", tmp_path / "a", flag, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    assert f"{file} cannot be written (File too large)" in capsys.readouterr().err
    assert file.read_text() == "old"
    assert [*file.parent.iterdir()] == [file]


def test_brackets_of_labels_in_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        write_run(f"runs/Ant-v5/td3[base.warmup=10,lap.alpha=0.6]/{seed}", seed=seed)
    write_run("runs/Ant-v5/a/0")
    for pattern, found in (
        ("runs/*/td3[base.warmup=10,lap.alpha=0.6]", 2),
        ("runs/Ant-v5/td3[base.warmup=10,lap.alpha=0.6]/*", 2),
        ("runs/**/[a-b]", 1),
        ("runs/Ant-v5/td3[[]*/0", 1),
    ):
        assert len(find_runs(pattern)) == found
    with pytest.raises(UsageError, match=r"runs/\*/td9 matches no run, nor a folder with one below it"):
        find_runs("runs/*/td9")
