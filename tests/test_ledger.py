"""The ledger of published numbers: its rules, with numbers made by hand, and its pages."""

import importlib
import math
import re
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from study_files import STUDIES

from qscape.errors import UsageError
from qscape.sealed import seal, unseal

ROOT = Path(__file__).parent.parent
if not (ROOT / "benchmarks" / "results" / "learning").exists():
    pytest.skip("a source distribution has no recorded runs", allow_module_level=True)
sys.path.append(str(ROOT / "benchmarks"))
import action_collapse  # noqa: E402
import blocks  # noqa: E402
import collect  # noqa: E402
import ledger  # noqa: E402
import published  # noqa: E402
import recorded  # noqa: E402
import speed_table  # noqa: E402
import updates  # noqa: E402
import verdicts  # noqa: E402


def ours(half=10.0, seeds=5, mean=100.0):
    return verdicts.Ours(mean, half / 2.776, half, seeds, 1_000, mean - half, mean + half)


@pytest.mark.parametrize(
    ("measured", "error", "share", "same", "verdict"),
    [
        (None, 0.0, 1.0, True, "not run"),
        (ours(seeds=4), 0.0, 1.0, True, "too short"),
        (ours(), 0.0, 0.89, True, "too short"),
        (ours(), 0.0, 0.9, False, "reproduced"),
        (ours(half=20.0), 0.0, 1.0, True, "reproduced"),
        (ours(half=20.1), 0.0, 1.0, True, "undecided"),  # an interval as wide as that fits anything
        (ours(mean=110.0), 0.0, 1.0, True, "reproduced"),
        (ours(mean=110.1), 0.0, 1.0, True, "undecided"),
        (ours(mean=100.0), 9.0, 1.0, True, "undecided"),  # the published number is uncertain, too
        (ours(mean=100.0), 8.8, 1.0, True, "reproduced"),
        (ours(half=2.776, mean=79.0), 6.92, 1.0, True, "contradicted"),  # three standard errors of 7
        (ours(half=2.776, mean=79.1), 6.92, 1.0, True, "undecided"),
        (ours(half=2.776, mean=79.0), 6.92, 1.0, False, "not seen"),  # another protocol contradicts nothing
    ],
)
def test_verdicts_on_numbers(measured, error, share, same, verdict):
    assert verdicts.judge(measured, 100.0, error, error, share, same=same) == verdict


def test_a_number_that_is_near_with_the_largest_error_is_contradicted_by_nothing():
    far = ours(half=2.776, mean=79.0)
    assert verdicts.judge(far, 100.0, 1.0, 6.92, 1.0, same=True) == "contradicted"
    assert verdicts.judge(far, 100.0, 1.0, 7.0, 1.0, same=True) == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "sign", "seeds", "share", "same", "verdict"),
    [
        (0.1, 2.0, 1.0, 5, 1.0, True, "reproduced"),
        (-2.0, -0.1, -13.0, 5, 0.9, True, "reproduced"),
        (-2.0, -0.1, 1.0, 5, 1.0, True, "contradicted"),
        (-2.0, -0.1, 1.0, 5, 1.0, False, "not seen"),
        (-0.1, 2.0, 1.0, 5, 1.0, True, "undecided"),
        (0.1, 2.0, 1.0, 4, 1.0, True, "too short"),
        (0.1, 2.0, 1.0, 5, 0.5, True, "too short"),
    ],
)
def test_verdicts_on_effects(low, high, sign, seeds, share, same, verdict):
    assert verdicts.judge_effect(low, high, sign, seeds=seeds, share=share, same=same) == verdict


def test_cartpole_is_judged_at_the_papers_length():
    """Rollouts beyond the step, and a solution that came later, count for nothing."""
    curve = {
        "steps": [100, 200, 300, 400, 500],
        "return": [10.0, 20.0, 60.0, 30.0, 500.0],
        "episodes": [8] * 5,
    }
    row = {"solved_at": 500, "curve": curve}
    found = {name: measure(row, 400) for name, measure in verdicts.CARTPOLE.items()}
    assert found == {"best return": 45.0, "final return": pytest.approx(110 / 3), "epoch solved": 0.4}
    assert verdicts.CARTPOLE["epoch solved"](row, 1000) == 0.5


def test_an_evaluation_before_the_first_is_none():
    steps = {"step": np.array([5000, 10_000])}
    assert (recorded.at(steps, 7000), recorded.at(steps, 10_000)) == (0, 1)
    with pytest.raises(ValueError, match="no evaluation at or before step 1000"):
        recorded.at(steps, 1000)


def test_a_seed_is_solved_after_the_rollout_that_solves_it():
    curve = {"steps": [800, 1600, 2400], "episodes": [60, 60, 60]}
    assert action_collapse.find_solved(**curve, **{"return": [100.0, 480.0, 480.0]}) == 2400
    assert action_collapse.find_solved(**curve, **{"return": [500.0, 480.0, 100.0]}) == 1600
    assert action_collapse.find_solved(**curve, **{"return": [0.0, 0.0, 500.0]}) is None


def test_our_interval_is_over_seeds_and_first_states():
    found = verdicts.summarise(np.arange(1.0, 6.0), 10)
    assert (found.mean, found.seeds, found.steps, found.least, found.greatest) == (3.0, 5, 10, 1.0, 5.0)
    assert found.error == pytest.approx(math.sqrt(0.5))
    assert found.half == pytest.approx(2.776445 * math.sqrt(0.5))
    assert verdicts.interval(found) == "3.00 [1.04, 4.96]"
    # Five seeds that agree, and two first states that do not: all of the error is that of the states.
    found = verdicts.summarise(np.array([[0.0, 2.0]] * 5), 10)
    assert found.error == pytest.approx(1.0)
    assert found.half == pytest.approx(12.706205)
    # Both: variances 1/2 with four degrees of freedom and 1 with one, by Welch and Satterthwaite.
    found = verdicts.summarise(np.arange(5.0)[:, None] + [0.0, 2.0], 10)
    assert found.error == pytest.approx(math.sqrt(1.5))
    freedom = 1.5**2 / (0.5**2 / 4 + 1)
    assert found.half == pytest.approx(scipy.stats.t.ppf(0.975, freedom) * math.sqrt(1.5))


def test_few_seeds_have_a_range():
    found = verdicts.summarise(np.array([1.0, 2.0, 6.0]), 10)
    assert math.isnan(found.half)
    assert verdicts.interval(found) == "3.00 (1.00 to 6.00)"
    assert verdicts.interval(verdicts.summarise(np.array([[1.0, 2.0]]), 10)) == "1.50"


def test_a_difference_has_welch_s_interval():
    a, b = np.array([1.0, 2.0, 3.0, 4.0, 9.0]), np.arange(5.0, 11.0)
    known = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert verdicts.welch(a, b) == pytest.approx((a.mean() - b.mean(), known.low, known.high))
    gap, *bounds = verdicts.welch(a[:4], b)
    assert gap == pytest.approx(2.5 - 7.5)
    assert np.isnan(bounds).all()


@pytest.mark.parametrize(
    ("text", "spread", "kind", "seeds", "error"),
    [
        ("15031 ± 392", 392.0, "half of the 95% interval over runs", 10, 200.0),
        ("7.0 ± 3", 3.0, "standard deviation over runs", 9, 1.0),
        ("7.0 ± 10", 10.0, "standard deviation over all episodes", 10, 1.0),
        ("9360 ± 0", 0.0, "standard deviation over runs", 10, 1 / math.sqrt(12)),
        ("0.95", math.nan, "", 5, 0.01 / math.sqrt(12)),
    ],
)
def test_the_error_of_a_published_number(text, spread, kind, seeds, error):
    row = published.Row("P", "T", "task", "A", "return", 0.0, spread, kind, seeds, 1_000, "", "", "", text)
    assert row.error == pytest.approx(error, rel=2e-3)
    largest = error * (math.sqrt(10) if "episodes" in kind else 1)  # ten episodes of a run count as one
    assert row.largest_error == pytest.approx(largest, rel=2e-3)


def test_published_numbers_are_there_once():
    rows = published.read_published()
    assert len({(*row[:5], row.steps) for row in rows}) == len(rows)
    assert {row.paper for row in rows} == {"TD7", "PAVE", "SAVGO", "SAVO", "ACPG"}
    cell = {(*row[:5], row.steps): row for row in rows}
    pave = cell["PAVE", "Table: TD3", "Pendulum", "TD3+PAVE", "sm", 100_000]
    assert (pave.mean, pave.spread, pave.seeds) == (0.351, 0.118, 5)
    assert cell["TD7", "Table 1", "Humanoid", "TD7", "return", 5_000_000].text == "10281 ± 588"


def test_products_are_counted_as_often_as_they_run():
    a, b, c = np.ones((3, 4)), np.ones((2, 4, 5)), np.ones((5, 4))

    def program(x):
        x, _ = jax.lax.scan(lambda x, _: (x @ b[0] @ c, None), x, length=7)  # 7 (2·3·4·5 + 2·3·5·4)
        unused = x @ b[1]  # noqa: F841
        y = jax.vmap(lambda one: x @ one)(b)  # 2·2·3·4·5
        return jax.lax.cond(y.sum() > 0, lambda: x @ b[0], lambda: jnp.zeros((3, 5)))  # 2·3·4·5 in a third

    assert updates.products(program, a, taken=1 / 3) == pytest.approx(7 * 240 + 240 + 120 / 3)


@pytest.mark.parametrize("script", sorted(x.stem for x in (ROOT / "benchmarks").glob("*.py")))
def test_benchmarks_can_be_imported(script):
    importlib.import_module(script)


def test_a_gap_is_written_where_optima_have_no_count(monkeypatch, tmp_path, capsys):
    gaps, written = importlib.import_module("optimality_gap"), []
    percent = {"share": {"mean": 0.25}}
    folders = [tmp_path / "a" / str(seed) for seed in (0, 1)]

    def history(folder, current):
        if folder.name == "1":
            raise UsageError(f"{folder} has one save only")
        return [SimpleNamespace(agent=None, acting=None, step=7, rollouts=lambda n: [])]

    monkeypatch.setattr(sys, "argv", ["optimality_gap.py", str(tmp_path)])
    monkeypatch.setattr(gaps.measured, "finished", lambda runs: (folders, []))
    monkeypatch.setattr(gaps.measured, "write", lambda *args, **about: written.append(about))
    monkeypatch.setattr(gaps, "load_trained_agent", lambda folder, current: folder)
    monkeypatch.setattr(gaps, "load_history", history)
    monkeypatch.setattr(gaps, "Surveyor", lambda agent, with_surrogates: lambda acting, obs: None)
    monkeypatch.setattr(gaps, "pick_states", lambda rollouts, n: ([], None))
    found = {"action": percent, "proposals": [percent], "optima": None}
    monkeypatch.setattr(gaps, "summarise", lambda survey: found)
    gaps.main()
    assert written[0]["left_out"] == ["a/1"]
    assert written[0]["measured"] == {"a": [{"seed": 0, "step": 7} | found]}
    out = capsys.readouterr().out
    assert f"left out: {folders[1]} has one save only\n" in out
    assert out.endswith("a: 1 seeds, gap 0.250, of the first proposal 0.250\n")


def test_every_table_has_a_study_with_three_budgets():
    rows = published.read_published()
    for study in {row.study for row in rows} - {""}:
        assert {*tomllib.loads(STUDIES[study].read_text())["budgets"]} >= {"quick", "short", "paper"}, study


NO_ARM = {  # agents of published numbers that no study of qscape has
    ("TD7", "TD3+OFE"),
    ("TD7", "CQL"),
    ("TD7", "X-QL"),
    ("PAVE", "TD3, gradient penalty"),
    ("PAVE", "TD3, spectral norm"),
}


def test_the_runs_of_a_study_feed_every_number_of_its_table(monkeypatch):
    """If the arms of all studies had run to the paper's length, no number would be "not run" but these."""
    steps = np.arange(0, 10_000_001, 50_000)
    columns = {name: np.ones((len(steps), 2)) for name in recorded.COLUMNS} | {"step": steps}
    sides = [side for row in published.read_published() for side in row.sides()]
    arms = {(side.study, side.environment, side.label) for side in sides if side.label}
    runs = [recorded.Run(*arm, 0, columns) for arm in sorted(arms)]
    monkeypatch.setattr(verdicts, "read_runs", lambda: runs)
    monkeypatch.setattr(verdicts, "cartpole_of", lambda *_: (np.ones(5), 1))
    geometry = dict.fromkeys(verdicts.GEOMETRY.values(), 1.0)
    measured = [
        {
            "label": r.label,
            "env": r.env.partition("(")[0],
            "step": step,
            "geometry_environment_units": geometry,
        }
        for r in runs
        for step in (100_000, 200_000, 300_000, 500_000, 600_000, 1_000_000)
    ]
    monkeypatch.setattr(verdicts, "read_json", lambda name: {"runs": measured})
    fed = Counter()
    for side in sides:
        unnamed = side.task.startswith(("sum of", "mean of", "a ")) or side.table == "run time"
        if unnamed or (side.paper, side.agent) in NO_ARM:
            assert (side.study, side.label) == ("", ""), side
        else:
            assert verdicts.values_of(side) is not None, side
            fed[side.paper] += 1
    assert set(fed) == set(ledger.PAPERS)
    assert sum(fed.values()) > 600


def test_a_row_has_the_runs_of_one_agent_and_no_controls():
    rows = published.read_published()
    groups = [group for row in rows for side in row.sides() for group in verdicts.groups_of(side)]
    for runs in groups:
        assert len({run.seed for run in runs}) == len(runs)
    studies = {run.study for runs in groups for run in runs}
    assert "savo-effect" in studies
    assert "savo-controls" not in studies


def test_the_agents_of_an_effect_have_runs_of_one_study(monkeypatch):
    def run(study, row, seed, sm):
        table = {"step": np.array([100_000]), "return": np.zeros((1, 2)), "sm": np.array([[sm, sm]])}
        return recorded.Run(study, row.environment, row.label, seed, table)

    rows = [r for r in published.read_published() if r.table == "Table: TD3" and r.task == "Pendulum"]
    one, two = (
        next(r for r in rows if (r.agent, r.metric) == (agent, "sm")) for agent in ("TD3+PAVE", "TD3+CAPS")
    )
    low = [run("a", one, seed, 0.1 * seed) for seed in range(5)]
    others = [run("b", two, seed, 1 + 0.1 * seed) for seed in range(4)]
    monkeypatch.setattr(verdicts, "read_runs", lambda: low + others)
    assert verdicts.compare(one, one, two, "", -1.0) == []
    both = low + others + [run("a", two, seed, 2 + 0.1 * seed) for seed in range(3)]
    monkeypatch.setattr(verdicts, "read_runs", lambda: both)
    (effect,) = verdicts.compare(one, one, two, "", -1.0)
    assert effect.seeds == (5, 3)
    assert effect.ours == pytest.approx(0.2 - 2.1)
    assert verdicts.values_of(two)[0].mean() == pytest.approx(1.15)  # a number takes the most seeds


@pytest.mark.parametrize(
    ("longer", "until", "steps", "mean"),
    [(2, math.inf, 100, 1.0), (3, math.inf, 300, 3.0), (3, 100, 100, 1.0)],
)
def test_runs_that_reach_the_length_of_the_paper_count(monkeypatch, longer, until, steps, mean):
    row = next(
        r for r in published.read_published() if (r.paper, r.agent, r.steps) == ("TD7", "TD7", 300_000)
    )

    def run(seed, ends):
        step = np.array([k for k in (100, 300) if k <= ends])
        table = {"step": 1000 * step, "return": np.repeat(step[:, None] / 100, 2, axis=1)}
        return recorded.Run("a", row.environment, row.label, seed, table)

    monkeypatch.setattr(
        verdicts, "read_runs", lambda: [run(seed, 300 if seed < longer else 100) for seed in range(5)]
    )
    values, end = verdicts.values_of(row, until=1000 * until)
    assert (end, values.mean(), len(values)) == (1000 * steps, mean, longer if steps == 300 else 5)


def test_pages_are_what_the_ledger_says():
    """Every block is on a page, and the page is what `python benchmarks/ledger.py` would write."""
    pages = {page: page.read_text() for page in blocks.PAGES}
    assert {m[2] for text in pages.values() for m in blocks.BLOCK.finditer(text)} == {*ledger.BLOCKS}
    for page, text in pages.items():
        assert blocks.renew(text, ledger.BLOCKS) == text, f"{page.name}: run python benchmarks/ledger.py"


def test_runs_are_not_laid_beside_far_longer_ones():
    """Of TD7's Table 1, with runs of 200,000 steps: Hopper has numbers at 300,000, a million and five."""
    hopper = [e for e in verdicts.ledger()[0] if (e.row.paper, e.row.task) == ("TD7", "Hopper") and e.ours]
    of_td7 = [e for e in hopper if e.row.agent == "TD7"]
    assert [e.row.steps for e in of_td7] == [300_000, 1_000_000, 5_000_000]
    assert [e.row.steps for e in ledger.nearest(of_td7)] == [300_000]
    reached = of_td7[1]._replace(share=1.0)
    assert ledger.nearest([of_td7[0], reached, of_td7[2]]) == [of_td7[0], reached]
    effects = [e for e in verdicts.ledger()[1] if (e.row.task, e.base) == ("Hopper", "TD3")]
    assert [e.row.steps for e in effects] == [5_000_000], "the paper shows none at a million"
    assert ledger.nearest(effects) == []


def test_finished_runs_are_packed_and_others_named(tmp_path):
    for seed, step in ((0, 30), (1, 20)):
        folder = tmp_path / "study" / "env" / "td3" / str(seed)
        (folder / "saves" / f"{step:09d}").mkdir(parents=True)
        (folder / "saves" / f"{step:09d}" / "save.json").touch()
        command = "qscape study run /home/me/a.toml --runs /home/me/runs/b --out c/d"
        (folder / "run.json").write_bytes(seal({"steps": 30, "command": command}))
        for name in ("evaluations.csv", "metrics.jsonl"):
            (folder / name).write_text(f"{name} of {seed}")
    file = tmp_path / "study.tar.xz"
    assert collect.pack(tmp_path / "study", file) == [tmp_path / "study/env/td3/1"]
    first, names = file.read_bytes(), [*collect.read_archive(file)]
    assert names == [f"study/env/td3/0/{name}" for name in ("evaluations.csv", "metrics.jsonl", "run.json")]
    command = unseal(collect.read_archive(file)["study/env/td3/0/run.json"], required=True)["command"]
    assert command == "qscape study run a.toml --runs b --out c/d", "no place of a machine"
    collect.pack(tmp_path / "study", file)
    assert file.read_bytes() == first
    assert collect.pack(tmp_path / "study", file, unfinished=True) == []
    assert len(collect.read_archive(file)) == 6


def test_recorded_runs_lie_in_archives():
    loose = [place.name for place in (ROOT / "benchmarks/results/learning").iterdir() if place.is_dir()]
    assert not loose, "pack them with benchmarks/collect.py"


def test_tables_of_speed_are_those_of_the_recorded_runs():
    page, runs = speed_table.PAGE.read_text(), speed_table.load_runs()
    for name, made in ("speed", speed_table.speed_table(runs)), ("speed-runs", speed_table.runs_table(runs)):
        assert f"<!-- table:{name} -->\n{made}<!-- table end -->" in page, (
            "run python benchmarks/speed_table.py"
        )


def test_speeds_of_the_readme_are_those_of_the_newest_long_run():
    newest = [run for run in speed_table.load_runs() if "quick" not in run["mode"]][-1]
    rows = re.findall(
        r"^\| steps/s of `(\w+)`.*? \| (\d+) \| (.+?) \|",
        (blocks.ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    named = {title: library for library, title in speed_table.LIBRARIES.items()}
    assert [agent for agent, *_ in rows] == ["td3", "sac", "td7"]
    for agent, ours, beside in rows:
        for title, theirs in re.findall(r"(\S[^,]*?) (\d+)(?:, |$)", beside):
            pair = speed_table.compare(newest, agent, named[title])
            assert [f"{x:.0f}" for x in pair] == [ours, theirs]
    assert newest["machine"]["started"][:10] in (blocks.ROOT / "README.md").read_text()


@pytest.mark.parametrize("file", [*collect.RESULTS.glob("*.tar.xz")], ids=lambda file: file.name)
def test_recorded_runs_can_be_read_and_their_commands_name_no_place_of_a_machine(file):
    records = [text for name, text in collect.read_archive(file).items() if name.endswith("run.json")]
    assert [collect.clean(record) for record in records] == records
