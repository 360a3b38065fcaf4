"""Runs as tables, statistics against hand-computed cases and rliable's own numbers, pictures."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from runs_on_disk import write_run

import qscape as qs
from qscape.cli import main
from qscape.errors import UsageError
from qscape.report import charts, curves, figures, interactive, references, rliable, statistics, tables
from qscape.report.runs import read_runs

RLIABLE = json.loads(Path(__file__).with_name("rliable_numbers.json").read_text(encoding="utf-8"))


# --- runs as one table --------------------------------------------------------------------------------


def test_one_row_for_each_run_evaluation_and_policy(tmp_path):
    write_run(tmp_path / "a/0", label="td3", returns={0: [1, 3], 10: [5, 7]})
    write_run(tmp_path / "a/1", label="td7", seed=1, returns={10: [2, 2]}, kept={10: [8, 10]})
    frame = qs.load_runs(tmp_path)
    head = [
        "run",
        "recipe",
        "label",
        "env",
        "seed",
        "step",
        "policy",
        "return",
        "length",
        "success",
        "episodes",
    ]
    assert list(frame.columns) == [*head, "budget", "dataset", "ended_by", "envs"]
    rows = frame[["label", "seed", "step", "policy", "return", "episodes"]].values.tolist()
    assert rows == [
        ["td3", 0, 0, "current", 2.0, 2],
        ["td3", 0, 10, "current", 6.0, 2],
        ["td7", 1, 10, "current", 2.0, 2],
        ["td7", 1, 10, "kept", 9.0, 2],
    ]
    assert frame["success"].isna().all()
    assert (frame["length"] == 7).all()


def test_patterns_folders_and_brackets_find_each_run_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = "td3[base.discount=0.9]"
    write_run(f"runs/Ant-v5/{odd}/0", label=odd)
    write_run("runs/Ant-v5/td3/0", label="td3")
    Path("runs/Ant-v5/td3/0/saves").mkdir()
    for paths in (
        "runs",
        "runs/**",
        "runs/*/*/0/run.json",
        ["runs/Ant-v5", Path("runs/Ant-v5/td3/0"), "runs/**"],
    ):
        assert sorted(set(qs.load_runs(paths)["label"])) == ["td3", odd], paths
        assert len(qs.load_runs(paths)) == 4  # two evaluations each
    assert set(qs.load_runs(f"runs/Ant-v5/{odd}")["label"]) == {odd}
    for nothing, why in (
        ("nowhere", "is no run and holds none"),
        ("runs/*.txt", "matches no run"),
        ("runs/Ant-v5/td3/0/saves", "is no run and holds none"),
    ):
        with pytest.raises(UsageError, match=why):
            qs.load_runs(["runs", nothing])


def test_seeds_and_groups_may_be_links_and_links_may_lead_in_a_circle(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"disk/{seed}", seed=seed)
    (tmp_path / "runs/td3").mkdir(parents=True)
    (tmp_path / "runs/td3/0").symlink_to(tmp_path / "disk/0")
    (tmp_path / "runs/more").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/up").symlink_to(tmp_path)
    frame = qs.load_runs(tmp_path / "runs")
    assert frame.groupby("seed").size().tolist() == [2, 2, 2]


def test_environment_arguments_make_another_task(tmp_path):
    write_run(tmp_path / "0", env="Ant-v5", env_args={"use_contact_forces": True})
    frame = qs.load_runs(tmp_path)
    assert set(frame["env"]) == {"Ant-v5(use_contact_forces=True)"}
    assert isinstance(references.normalise(statistics.final_scores(frame), "best"), str)


def test_a_dataset_makes_another_task_with_the_scores_of_its_environment(tmp_path):
    """Such as two sets of D4RL in one study: with the same seeds they are not one run twice."""
    for data, last in (("expert", 3234.3), ("medium", 1500.0)):
        file = {"dataset": f"data/hopper_{data}-v2.hdf5"}
        for seed in range(2):
            write_run(
                tmp_path / data / str(seed), env="Hopper-v5", seed=seed, returns={10: [last]}, record=file
            )
    frame = qs.load_runs(tmp_path)
    made = tables.compare(frame, normalise="d4rl")
    assert made.per_env["env"].tolist() == ["Hopper-v5[hopper_expert-v2]", "Hopper-v5[hopper_medium-v2]"]
    assert made.scores["td3"][:, 0] == pytest.approx(1.0)
    panels = figures.draw_overview(made.rows).axes
    assert [ax.get_xlabel() for ax in panels] == ["updates", "updates"]


def test_datasets_of_one_last_name_are_other_tasks(tmp_path):
    names = ("mujoco/hopper/medium-v0", "local/hopper/medium-v0", "/data/noise0.5", "/data/noise0.9")
    for k, name in enumerate(names):
        write_run(tmp_path / str(k), env="Hopper-v5", record={"dataset": name})
    tasks = {f"Hopper-v5[{name.removeprefix('/data/')}]" for name in names}
    assert set(qs.load_runs(tmp_path)["env"]) == tasks
    assert {references.strip_version(task) for task in tasks} == {"Hopper"}


def test_files_of_one_name_in_two_folders_are_told(tmp_path):
    for seed in range(2):
        write_run(tmp_path / str(seed), env="Hopper-v5", seed=seed, record={"dataset": f"/{seed}/hopper.h5"})
    with pytest.warns(UserWarning, match=r"Hopper-v5\[hopper\] stands for 2 datasets, .* /0/hopper.h5, /1/"):
        assert set(qs.load_runs(tmp_path)["env"]) == {"Hopper-v5[hopper]"}


def break_run_json(folder: Path) -> None:
    (folder / "run.json").write_text((folder / "run.json").read_text()[:-20])


def drop_a_key(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    del record["steps"]
    (folder / "run.json").write_text(json.dumps(record))


def put_nan(folder: Path) -> None:
    with (folder / "evaluations.csv").open("a") as file:
        file.write("20,current,0,nan,7,,0.1\n")


ODD_ARGS = '{"recipe": "a", "env": "b", "env_args": [1], "seed": 0, "steps": 10}'


def damage_a_line(folder: Path) -> None:
    with (folder / "evaluations.csv").open("a") as file:
        file.write("garbage,1\n")


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (break_run_json, "run.json is broken"),
        (lambda f: (f / "run.json").unlink(), "it has no run.json"),
        (lambda f: (f / "run.json").write_text("[]"), "run.json is broken"),
        (drop_a_key, "it has no 'steps'"),
        (lambda f: (f / "evaluations.csv").unlink(), "it has no evaluations.csv"),
        (lambda f: (f / "evaluations.csv").write_text(""), "evaluations.csv is empty"),
        (lambda f: (f / "evaluations.csv").write_text("step,policy,return,length,success\n"), "no eval"),
        (lambda f: (f / "evaluations.csv").write_text("step,policy,return\n1,current,much\n"), "'much'"),
        (lambda f: (f / "evaluations.csv").write_text("step,policy\n1,current\n"), "it has no 'return'"),
        (lambda f: (f / "evaluations.csv").write_bytes(b"\xff\xfe\n"), "decode"),
        (put_nan, "not finite"),
        (damage_a_line, "evaluations.csv is damaged in line 4 ("),
        (lambda f: (f / "run.json").write_text(ODD_ARGS), "no object of names"),
    ],
)  # fmt: skip
def test_a_broken_folder_is_skipped_and_named(tmp_path, harm, why):
    write_run(tmp_path / "good/0")
    write_run(tmp_path / "bad/1", seed=1)
    harm(tmp_path / "bad/1")
    frame, (sentence,), _ = read_runs(tmp_path)
    assert set(frame["seed"]) == {0}
    assert sentence.startswith(f"skipped {tmp_path / 'bad/1'}: ")
    assert why in sentence
    with pytest.warns(UserWarning, match="skipped .*bad/1"):
        qs.load_runs(tmp_path)
    with pytest.raises(UsageError, match=r"no complete run in 1 folder\(s\): skipped .*bad/1"):
        qs.load_runs(tmp_path / "bad")


@pytest.mark.parametrize("stray", ["evaluations.csv", "metrics.jsonl"])
def test_a_stray_file_hides_no_runs_below_it(tmp_path, stray):
    """As earlier versions let `compare --csv STUDY/evaluations.csv` write one."""
    write_run(tmp_path / "study/td3/0")
    (tmp_path / "study" / stray).write_text("env,label\n")
    frame, notes, _ = read_runs(tmp_path)
    assert set(frame["run"]) == {str(tmp_path / "study/td3/0")}
    assert notes == [f"skipped {tmp_path / 'study'}: it has no run.json"]


def test_half_an_evaluation_of_a_killed_run_does_not_count(tmp_path):
    write_run(tmp_path / "0", returns={0: [1, 1, 1], 10: [3, 3, 3]})
    with (tmp_path / "0/evaluations.csv").open("a") as file:
        file.write("20,current,0,9.0,7,,0.1\n20,current,1,9")
    frame = qs.load_runs(tmp_path)
    assert frame[["step", "return"]].values.tolist() == [[0, 1.0], [10, 3.0]]


# --- scores -------------------------------------------------------------------------------------------


@pytest.fixture
def five(tmp_path):
    """Five runs whose last evaluation is not their best, one of them with a kept policy."""
    for seed, last in enumerate([10.0, 20.0, 30.0, 40.0, 100.0]):
        kept = {10: [7.0], 20: [200.0]} if seed == 4 else None
        write_run(tmp_path / str(seed), seed=seed, returns={0: [0.0], 10: [50.0], 20: [last]}, kept=kept)
    return qs.load_runs(tmp_path)


def test_final_best_and_the_mean_of_the_last_are_kept_apart(five):
    current = statistics.select_policy(five, "current")
    assert statistics.final_scores(current)["score"].tolist() == [10, 20, 30, 40, 100]
    assert statistics.final_scores(current, 2)["score"].tolist() == [30, 35, 40, 45, 75]
    assert statistics.best_scores(current)["score"].tolist() == [50, 50, 50, 50, 100]
    with pytest.raises(UsageError, match=r"--final 4 needs 4 evaluations .* has 3; use --final 3 or less"):
        statistics.final_scores(current, 4)


def test_the_kept_policy_counts_where_there_is_one(five):
    rows = statistics.select_policy(five)
    assert rows.groupby("seed")["policy"].agg(set).tolist() == [{"current"}] * 4 + [{"kept"}]
    assert statistics.final_scores(rows)["score"].tolist() == [10, 20, 30, 40, 200]


def test_numbers_by_hand():
    scores = np.array([[10.0], [20.0], [30.0], [40.0], [100.0]])
    found = statistics.estimate_aggregates(scores / 100)
    assert found["iqm"].value == pytest.approx(0.3)  # one of five is cut at each end
    assert found["mean"].value == pytest.approx(0.4)
    assert found["median"].value == pytest.approx(0.4)  # over tasks of the mean over runs: one task
    assert found["optimality_gap"].value == pytest.approx(0.6)
    assert (
        statistics.estimate_aggregates(np.array([[1.0], [2.0], [9.0]]))["iqm"].value == 4.0
    )  # nothing is cut
    x, y = np.array([1.0, 3.0]), np.array([2.0, 3.0, 0.0])
    # 1 beats 0; 3 beats 2 and 0 and draws with 3: 3.5 of 6
    assert statistics.probability_of_improvement([x], [y]).value == pytest.approx(3.5 / 6)
    # a second task, with other numbers of seeds, counts as much: all of y are beaten there
    more = statistics.probability_of_improvement([x, y + 9], [y, x])
    assert more.value == pytest.approx((3.5 / 6 + 1) / 2)
    taus = np.array([0.0, 0.15, 0.4, 2.0])
    profile = statistics.performance_profile(scores / 100, taus)
    assert profile.value.tolist() == [1.0, 0.8, 0.2, 0.0]


@pytest.mark.parametrize("runs", RLIABLE["runs"])
def test_metrics_equal_rliable(runs):
    theirs = RLIABLE["runs"][runs]
    x, y = np.array(theirs["x"]), np.array(theirs["y"])
    found = statistics.estimate_aggregates(x)
    assert {name: one.value for name, one in found.items()} == pytest.approx(theirs["aggregates"], rel=1e-12)
    improvement = statistics.probability_of_improvement(x.T, y.T).value
    assert improvement == pytest.approx(theirs["improvement"], rel=1e-12)
    curve = statistics.performance_profile(x, np.array(RLIABLE["taus"]))
    np.testing.assert_allclose(curve.value, theirs["profile"], rtol=1e-12)


@pytest.mark.parametrize("runs", RLIABLE["runs"])
def test_intervals_under_rliable_s_name_equal_its_own_after_its_seed(runs):
    """Rliable's own after `np.random.seed(0)`, which alone sets its random numbers."""
    theirs, reps = RLIABLE["runs"][runs], RLIABLE["reps"]
    x, y = np.array(theirs["x"]), np.array(theirs["y"])
    found = [*rliable.estimate_aggregates(x, reps).values()]
    bounds = [[one.low for one in found], [one.high for one in found]]
    np.testing.assert_allclose(bounds, theirs["aggregates_interval"], rtol=1e-12)

    def wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([statistics.probability_of_improvement(a.T, b.T).value])

    pair = rliable.bootstrap([x[:, :1], y[:, :1]], wins, reps)
    assert pair.value == pytest.approx(theirs["improvement_on_first_task"], rel=1e-12)
    bounds = theirs["improvement_on_first_task_interval"]
    np.testing.assert_allclose([pair.low, pair.high], bounds, rtol=1e-12)
    taus = np.array(RLIABLE["taus"])
    profile = rliable.bootstrap([x], lambda x: statistics.performance_profile(x, taus).value, reps)
    np.testing.assert_allclose([profile.low, profile.high], theirs["profile_interval"], rtol=1e-12)


def test_rliable_s_intervals_repeat_and_leave_the_global_state_alone():
    x = np.random.default_rng(0).normal(size=(5, 2))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    found = rliable.estimate_aggregates(x, 200)["iqm"]
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert rliable.estimate_aggregates(x, 200)["iqm"] == found
    assert found.low < found.value < found.high
    assert np.isnan(rliable.bootstrap([x[:1]], np.mean).low)


# --- intervals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("runs", "trimmed"), [(5, 0), (7, 0), (8, 1), (10, 1), (13, 2), (20, 4)])
def test_the_interval_of_the_interquartile_mean_against_scipy(runs, trimmed):
    """Tukey-McLaughlin's, whose error trims one run fewer at each end than the mean."""
    x = np.random.default_rng(runs).normal(size=runs).round(1)
    found = statistics.estimate_aggregates(x[:, None])["iqm"]
    assert found.value == pytest.approx(scipy.stats.trim_mean(x, 0.25))
    winsorised = np.asarray(scipy.stats.mstats.winsorize(x, (trimmed / runs, trimmed / runs)))
    kept = runs - 2 * trimmed
    error = winsorised.std(ddof=1) / (kept / runs * np.sqrt(runs))
    low, high = scipy.stats.t.interval(0.95, kept - 1, found.value, error)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_interval_of_a_mean_over_one_task_is_student_s():
    x = np.random.default_rng(0).normal(size=6)
    found = statistics.estimate_aggregates(x[:, None])
    known = scipy.stats.ttest_1samp(x, 0).confidence_interval(0.95)
    for name in ("mean", "median"):  # over one task they are the same
        assert (found[name].low, found[name].high) == pytest.approx((known.low, known.high))
    clipped = scipy.stats.ttest_1samp(1 - np.minimum(x, 1), 0).confidence_interval(0.95)
    gap = found["optimality_gap"]
    assert (gap.low, gap.high) == pytest.approx((clipped.low, clipped.high))


def test_the_intervals_over_tasks_have_welch_s_degrees_of_freedom():
    """The sum over two tasks is spread as the difference that Welch's test is of."""
    x = np.random.default_rng(0).normal(size=(7, 2)) * [1.0, 4.0]
    found = statistics.estimate_aggregates(x)["mean"]
    known = scipy.stats.ttest_ind(x[:, 0], -x[:, 1], equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low / 2, known.high / 2))
    three = np.concatenate([x, x[:, :1] + 9.0], axis=1)  # the task in the middle is the first or the second
    middle = statistics.estimate_aggregates(three)["median"]
    order = np.argsort(three.mean(0))
    alone = statistics.estimate_aggregates(three[:, [order[1]]])["mean"]
    assert tuple(middle) == pytest.approx(tuple(alone))
    assert statistics.estimate_aggregates(x)["median"].low == pytest.approx(found.low)


def test_the_interquartile_mean_over_tasks_by_hand():
    """Of 5 × 2 scores two are cut at each end, and none for the error: one run of each task fewer."""
    x = np.array([[0.0, 10.0], [1.0, 12.0], [2.0, 14.0], [3.0, 16.0], [9.0, 30.0]])
    found = statistics.estimate_aggregates(x)["iqm"]
    assert found.value == pytest.approx((2 + 3 + 9 + 10 + 12 + 14) / 6)
    half = statistics.estimate_aggregates(x)["mean"]
    assert found.high - found.value == pytest.approx(half.high - half.value)


def test_the_interval_of_a_profile_is_wilson_s():
    scores = np.arange(10.0).reshape(5, 2)
    found = statistics.performance_profile(scores, np.array([-1.0, 2.5, 9.0]))
    for above, low, high in zip((10, 7, 0), found.low, found.high, strict=True):
        known = scipy.stats.binomtest(above, 10).proportion_ci(0.95, method="wilson")
        assert (low, high) == pytest.approx((known.low, known.high), abs=1e-9)


def test_the_interval_of_a_probability_solves_newcombe_s_equation():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.3, 1.0, 8), rng.normal(size=6)
    found = statistics.probability_of_improvement([x], [y])
    assert found.value == scipy.stats.mannwhitneyu(x, y).statistic / 48
    for bound in (found.low, found.high):
        more = (7 - 1) * ((1 - bound) / (2 - bound) + bound / (1 + bound))
        variance = bound * (1 - bound) * (1 + more) / 48
        far = abs(found.value - bound) - 0.5 / 48
        assert far == pytest.approx(scipy.stats.norm.ppf(0.975) * variance**0.5)
    twice = statistics.probability_of_improvement([x, x], [y, y])
    assert found.low < twice.low < twice.value == found.value < twice.high < found.high


def test_agents_that_never_lose_are_better_and_not_certain_to_be():
    x = np.arange(5.0)
    found = statistics.probability_of_improvement([x + 9], [x])
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.5 < found.low < 0.65
    assert statistics.is_better(found)
    assert not statistics.is_better(statistics.probability_of_improvement([x], [x + 9]))


def test_fewer_than_five_runs_have_no_interval_and_no_claim():
    x = np.random.default_rng(0).normal(size=(5, 3))
    for runs, has in ((5, True), (4, False), (2, False), (1, False)):
        some = x[:runs]
        parts = [
            *statistics.estimate_aggregates(some).values(),
            statistics.performance_profile(some, np.array([0.0])),
            statistics.estimate_columns(some),
            statistics.probability_of_improvement(some.T, some.T - 99),
        ]
        for part in parts:
            assert np.isfinite(part.value).all()
            assert np.isfinite([part.low, part.high]).all() == has
            assert np.isnan([part.low, part.high]).any() != has
        assert statistics.is_better(parts[-1]) == has


def test_intervals_hold_the_true_value_as_often_as_they_say():
    """A small version of benchmarks/coverage.py: 20,000 samples, so a share is sure to 0.004."""
    rng = np.random.default_rng(0)
    for runs in (5, 10):
        normal = statistics.estimate_columns(rng.normal(size=(runs, 20_000)))
        assert 0.93 < np.mean((normal.low < 0) & (normal.high > 0)) < 0.96
    stuck = (rng.random((10, 20_000)) > 0.2) + rng.normal(0.0, 0.1, (10, 20_000))
    many = np.sort((rng.random(400_000) > 0.2) + rng.normal(0.0, 0.1, 400_000))
    found = statistics.estimate_columns(stuck)
    true = many[100_000:300_000].mean()
    assert 0.93 < np.mean((found.low < true) & (found.high > true)) < 0.96


@pytest.mark.parametrize("runs", [5, 6, 8])
def test_better_is_as_rare_as_the_exact_test_allows(runs):
    """All orders of the runs of two equal agents are equally likely: those called better are one in forty."""
    orders = np.array([*itertools.combinations(range(2 * runs), runs)]).T
    others = np.array([sorted({*range(2 * runs)} - {*order}) for order in orders.T]).T
    said = statistics.is_better(statistics.probability_of_improvement([orders], [others]))
    assert 0.01 < said.mean() <= 0.025


def test_equal_agents_are_rarely_called_better():
    """In 0.05 of cases one of two is, and the best of ten less often."""
    x = np.random.default_rng(0).normal(size=(5, 10, 4_000))
    pairs = [statistics.probability_of_improvement([x[:, a]], [x[:, b]]) for a, b in ((0, 1), (1, 0))]
    assert 0.02 < sum(np.mean(statistics.is_better(pair)) for pair in pairs) < 0.06
    first, second = np.argsort(-statistics.estimate_columns(x.reshape(5, -1)).value.reshape(10, -1), axis=0)[
        :2
    ]
    at = np.arange(4_000)
    best = statistics.probability_of_improvement([x[:, first, at]], [x[:, second, at]])
    assert np.mean(statistics.is_better(best)) < 0.01


# --- curves -------------------------------------------------------------------------------------------


def rows_of(*runs: dict[int, float]) -> pd.DataFrame:
    """Evaluations of runs that are given as step: return."""
    lines = [
        {"env": "Ant-v5", "label": "td3", "seed": seed, "run": str(seed), "step": step, "return": value}
        for seed, run in enumerate(runs)
        for step, value in run.items()
    ]
    return pd.DataFrame(lines)


def test_a_common_grid_makes_nothing_up():
    rows = rows_of({0: 1.0, 10: 2.0, 20: 3.0}, {5: 10.0, 15: 20.0})
    grid = statistics.common_grid(rows)
    assert grid.tolist() == [0, 5, 10, 15, 20]
    values = statistics.align_to_grid(rows, grid)
    nan = np.nan
    np.testing.assert_array_equal(values, [[1, 1, 2, 2, 3], [nan, 10, 10, 20, nan]])
    curve = statistics.estimate_columns(values)
    np.testing.assert_array_equal(curve.value, [nan, 5.5, 6.0, 11.0, nan])
    thin = statistics.common_grid(rows_of(dict.fromkeys(range(1000), 0.0)), points=5)
    assert len(thin) == 5
    assert (thin[0], thin[-1]) == (0, 999)


def test_curves_are_interquartile_means_point_by_point():
    theirs = RLIABLE["curve"]
    values = np.array(theirs["values"])
    found = statistics.estimate_columns(values)
    np.testing.assert_allclose(found.value, theirs["iqm"], rtol=1e-12)
    resampled = rliable.bootstrap([values], lambda x: statistics.estimate_columns(x).value, RLIABLE["reps"])
    np.testing.assert_allclose([resampled.low, resampled.high], theirs["interval"], rtol=1e-12)
    one = statistics.estimate_aggregates(values[:, 2:3])["iqm"]
    assert (found.low[2], found.high[2]) == (one.low, one.high)
    assert (found.low < found.value).all()
    assert (found.value < found.high).all()


# --- references ---------------------------------------------------------------------------------------


def test_smoothed_returns():
    """0.85 of the past, per run and policy, in the order of the steps."""
    frame = pd.DataFrame(
        {
            "run": ["a", "a", "b", "a", "a"],
            "policy": ["current", "current", "current", "current", "kept"],
            "step": [5, 0, 0, 10, 0],
            "return": [20.0, 10.0, 3.0, 0.0, 7.0],
        }
    )
    assert statistics.smooth_returns(frame, 0.85)["return"].tolist() == pytest.approx(
        [11.5, 10.0, 3.0, 9.775, 7.0]
    )
    assert statistics.smooth_returns(frame, 0.0) is frame
    with pytest.raises(UsageError, match=r"--smooth is 1.0; it must lie in \[0, 1\)"):
        statistics.smooth_returns(frame, 1.0)


def test_published_curves_come_with_their_source():
    frame = references.load_published(["td3", "simbav2-utd2"])
    last = frame[(frame["env"] == "HalfCheetah-v1") & (frame["step"] == 1_000_000)].iloc[0]
    assert (last["method"], last["seeds"], last["mean"]) == ("TD3", 10, 9566.6)
    assert last["source"] == "sfujim/TD3 learning_curves"
    assert last["licence"] == "MIT"
    assert "10 episodes every 5k steps" in last["protocol"]
    assert set(frame[frame["name"] == "simbav2-utd2"]["protocol"]) == {"their authors' protocol"}
    everything = references.load_published(references.published_names())
    of_2026 = 50 + 200 + 55 + 5 + 20  # FlashSAC, FoG, PPO, TD-MPC2, TD7; SimbaV2 and XQC are there already
    assert len(everything) == 1040 + 99 + of_2026
    means_alone = ["sd", "iqm", "min", "max"]  # of SAVGO's figures; of one seed there is no deviation
    assert everything.drop(columns=means_alone).notna().all(axis=None)
    assert (
        everything[everything["source"].str.contains("2605.00787") ^ everything["iqm"].notna()].shape[0]
        == 1139 + of_2026
    )
    flash = everything[(everything["name"] == "flashsac-utd1") & (everything["env"] == "HalfCheetah-v4")]
    assert flash["mean"].iloc[0] == 9815.1
    assert set(flash["licence"]) == {"MIT"}
    assert set(everything[everything["name"] == "td-mpc2"]["seeds"]) == {"?"}
    assert set(everything[everything["name"] == "xqc"]["source"]) == {"danielpalenicek/xqc results/xqc.csv"}
    savgo = everything[(everything["name"] == "savgo") & (everything["env"] == "Walker2d-v5")]
    assert savgo["curve"].tolist()[:4] == [251, 874, 1907, 3021]
    assert {"sac", "crossq", "drq", "bro-utd10", "redq-utd20"} <= set(references.published_names())
    with pytest.raises(UsageError, match="no published curve 'simba'; did you mean simbav2-utd2"):
        references.load_published(["simba"])


@pytest.mark.parametrize(("env", "said"), [("Ant-v5", True), ("Ant-v4", False)])
def test_the_legend_names_another_version_of_the_environment(env, said):
    curve = references.select_published(references.load_published(["flashsac-utd1"]), env)
    name = references.name_curve(curve.iloc[0], env)
    assert (f"ours {env}" in name) == said
    assert "published: Ant-v4" in name
    assert "5 seeds" in name


def test_the_legend_names_source_and_licence():
    published = references.load_published(["flashsac-utd1"])
    [curve] = curves._list_published(published, "HalfCheetah-v4", 1e6)
    about = published.iloc[0]
    assert (about["licence"], about["source"] in curve.name) == ("MIT", True)
    assert curve.name.endswith("(MIT)")


def test_normalised_scores_of_the_td7_paper():
    """From its table at 1M steps: TD7 1.5706 of TD3, task by task as computed from the same columns."""
    td7 = {"HalfCheetah": 17434, "Hopper": 3512, "Walker2d": 6097, "Ant": 8509, "Humanoid": 7429}
    scores = pd.DataFrame({"env": [f"{task}-v5" for task in td7], "score": list(map(float, td7.values()))})
    found = references.normalise(scores)["score"].to_numpy()
    np.testing.assert_allclose(found, [1.6315, 1.0892, 1.5455, 2.1383, 1.4488], atol=5e-5)
    assert found.mean() == pytest.approx(1.5706, abs=5e-5)
    expert = pd.DataFrame({"env": ["Hopper-v5"], "score": [3234.3]})
    assert references.normalise(expert, "d4rl")["score"].item() == pytest.approx(1.0)
    said = references.normalise(pd.DataFrame({"env": ["Ant-v5", "Pendulum-v1"], "score": 1.0}))
    assert said == (
        "No aggregate over environments: no reference score of Pendulum-v1; --normalise best would do."
    )
    table = references.reference_scores()
    assert table[table["table"] != "best"]["source"].str.contains("arXiv").all()
    assert not table.duplicated(["table", "task"]).any()


# --- comparisons --------------------------------------------------------------------------------------


def test_labels_are_broken_between_fields():
    label = "td7[base.actor_hidden=32x32,base.critic_hidden=32x32,base.batch_size=128,sale.width=64]"
    lines = figures.wrap_label(label).split("\n")
    assert len(lines) == 2
    assert lines[0].endswith(",")
    assert "".join(lines).replace(" ", "") == label


def test_unequal_seeds_over_environments_take_the_fewest(tmp_path):
    for env, n in (("Ant-v5", 6), ("Hopper-v5", 5)):
        for seed in range(n):
            write_run(tmp_path / env / str(seed), env=env, seed=seed, returns={10: [100.0 * (seed + 1)]})
    made = tables.compare(qs.load_runs(tmp_path))
    assert made.scores["td3"].shape == (5, 2)
    assert "td3: the aggregate takes 5 seeds of each environment" in " ".join(made.notes)
    assert made.per_env["seeds"].tolist() == [6, 5]


def test_improvement_counts_every_seed_where_environments_have_unequal_numbers(tmp_path):
    """a beats b once in five seeds of one environment, always in the one with two: 0.2 and 1."""
    for env, n in (("Ant-v5", 5), ("Hopper-v5", 2)):
        for seed in range(n):
            for label, ret in (("a", 9.0 if seed == 0 or n == 2 else 1.0), ("b", 5.0)):
                folder = tmp_path / env / label / str(seed)
                write_run(folder, env=env, label=label, seed=seed, returns={10: [ret]})
    made = tables.compare(qs.load_runs(tmp_path))
    assert made.improvement["probability"].tolist() == [pytest.approx(0.6)]


def test_success_is_smoothed_as_returns_are_and_silence_is_no_success(tmp_path):
    for seed in range(5):
        write_run(tmp_path / str(seed), label="a", seed=seed, returns={0: [0.0], 10: [1.0]})
    runs = qs.load_runs(tmp_path)
    runs["success"] = np.where(runs["step"] == 10, 1.0, np.nan)
    made = tables.compare(runs, metric="success")
    assert made.rows["return"].tolist() == [0.0, 100.0] * 5
    smooth = tables.compare(runs, metric="success", smooth=0.75)
    assert smooth.per_env["final_iqm"].item() == pytest.approx(25.0)
    assert "All returns are smoothed: 0.75 of the past" in " ".join(smooth.notes)
    with pytest.raises(UsageError, match="reports no success"):
        tables.compare(runs.assign(success=np.nan), metric="success")


def test_best_ranks_by_the_best_evaluation(tmp_path):
    for seed in range(5):
        write_run(tmp_path / "a" / str(seed), label="a", seed=seed, returns={0: [9.0], 10: [1.0]})
        write_run(tmp_path / "b" / str(seed), label="b", seed=seed, returns={0: [0.0], 10: [5.0]})
    runs = qs.load_runs(tmp_path)
    final, best = tables.compare(runs), tables.compare(runs, best=True)
    assert final.per_env[["final_iqm", "best_iqm"]].values.tolist() == [[1, 9], [5, 5]]
    assert final.improvement[["x", "y", "score", "probability"]].values.tolist() == [["a", "b", "final", 0.0]]
    assert best.improvement[["score", "probability"]].values.tolist() == [["best", 1.0]]


def test_a_note_says_that_runs_are_not_evaluated_equally_often(tmp_path):
    """The same noise, looked at twice or twenty times: the best of twenty is higher."""
    rng = np.random.default_rng(0)
    for label, every in (("a", 100), ("b", 10)):
        for seed in range(5):
            returns = {step: [rng.normal()] for step in range(every, 201, every)}
            write_run(tmp_path / label / str(seed), label=label, seed=seed, returns=returns)
    made = tables.compare(qs.load_runs(tmp_path), best=True)
    assert made.improvement["probability"].item() < 0.2
    assert "not evaluated equally often (a 2 evaluations; b 20 evaluations): the best" in made.notes[0]
    assert not [note for note in tables.compare(qs.load_runs(tmp_path / "a")).notes if "equally" in note]


def test_a_note_says_that_seeds_step_other_numbers_of_environments(tmp_path):
    for seed, envs in enumerate((1, 1, 4)):
        write_run(tmp_path / str(seed), seed=seed, record={"envs": envs})
    (note,) = [note for note in tables.compare(qs.load_runs(tmp_path)).notes if "side by side" in note]
    assert "1, 4" in note
    alike = qs.load_runs([tmp_path / "0", tmp_path / "1"])
    assert not [note for note in tables.compare(alike).notes if "side by side" in note]


def test_the_stop_epoch_is_the_first_evaluation_that_is_solved(tmp_path, capsys):
    curves = [[0.0, 9.0, 5.0, 9.0], [9.0, 1.0, 1.0, 9.0], [9.0, 1.0, 8.9, 1.0]]  # the first is at step 0
    for seed, returns in enumerate(curves):
        at = {10 * k: [x] for k, x in enumerate(returns)}
        write_run(tmp_path / "a" / str(seed), label="a", seed=seed, returns=at)
    row = tables.compare(qs.load_runs(tmp_path), threshold=9.0).per_env
    assert row[["stop_epoch", "stopped"]].values.tolist() == [[2.0, 2]]  # 1, 3 and never
    assert main(["compare", str(tmp_path), "--threshold", "9"]) == 0
    assert "2.0 (2 of 3)" in capsys.readouterr().out
    assert main(["compare", str(tmp_path), "--threshold", "nan"]) == 2
    assert "--threshold is nan; it must be a finite return" in capsys.readouterr().err


def test_small_returns_keep_their_decimals_and_paths_their_labels(tmp_path, capsys):
    for label, value in (("td3[base.batch_size=64]", 0.304), ("sac[base.batch_size=64]", 0.312)):
        for seed in range(5):
            write_run(tmp_path / label / str(seed), label=label, seed=seed, returns={0: [0.0], 10: [value]})
    write_run(tmp_path / "td3[base.batch_size=64]" / "9", label="td3[base.batch_size=64]", seed=9, steps=20)
    assert main(["compare", str(tmp_path), "--latex", str(tmp_path / "t.tex")]) == 0
    printed = capsys.readouterr().out
    assert "0.304 [0.304, 0.304]" in printed
    assert "0.312" in printed
    assert "$0.304$ [$0.304$, $0.304$]" in (tmp_path / "t.tex").read_text()
    path = f"{tmp_path}/td3[base.batch_size=64]/9"
    made = tables.compare(qs.load_runs(tmp_path))
    made = made._replace(notes=[f"left out {path}: it is of td3[base.batch_size=64]"])
    assert tables.shorten(made).notes == [f"left out {path}: it is of td3"]


def test_a_hostile_label_stays_text():
    assert tables.escape_latex("<script>_100%$&#{}~^\\") == (
        r"\textless{}script\textgreater{}\_100\%\$\&\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
    )


# --- pictures -----------------------------------------------------------------------------------------


def test_figures_give_back_the_axes_they_take(five, tmp_path):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    mine = Figure()
    ax = mine.subplots()
    rows = statistics.select_policy(five)
    assert figures.draw_learning_curves(rows, ax) is ax
    assert isinstance(figures.draw_learning_curves(rows), Axes)
    ax.set_title("mine")
    mine.savefig(tmp_path / "mine.png")
    assert (tmp_path / "mine.png").stat().st_size > 5_000


def test_what_is_drawn_is_what_was_computed(tmp_path):
    for seed in range(5):
        returns = {0: [0.0], 50_000: [seed * 100.0], 100_000: [seed * 200.0]}
        write_run(tmp_path / str(seed), label="$td3$", env="Ant-v5", seed=seed, returns=returns)
    rows = qs.load_runs(tmp_path)
    published = references.load_published(["td3", "sac"])
    ax = figures.draw_learning_curves(rows, published=published)
    ours, sac, td3 = ax.get_lines()
    assert ours.get_xydata().tolist() == [[0, 0], [50_000, 200], [100_000, 400]]
    assert ours.get_color() in charts.COLOURS
    assert (ours.get_linestyle(), ours.get_label()) == ("-", r"\$td3\$ (5 seeds)")
    for line, env, source in ((sac, "Ant-v4", "SimbaV2"), (td3, "Ant-v1", "sfujim/TD3")):
        assert line.get_color() in charts.GREYS
        assert line.get_linestyle() != "-"
        label = line.get_label()
        assert "published" in label
        assert "seeds" in label
        assert env in label
        assert "ours Ant-v5" in label
        assert source in label
        assert "protocol" in label or "episodes" in label
        assert line.get_xdata().max() == 100_000  # no further than our own runs
    assert len(ax.collections) == 1  # the band
    each = figures.draw_learning_curves(rows, each=True)
    assert len(each.get_lines()) == 6
    assert not each.collections
    assert ax.get_title() == "Ant-v5"
    assert ax.get_xlabel() == "environment steps"
    assert "return" in ax.get_ylabel()


def test_a_curve_of_one_evaluation_is_a_point_with_its_interval(tmp_path):
    """Such as that of runs that have only begun."""
    from matplotlib.collections import PathCollection

    for label, shown in (("begun", {10: 2.0}), ("longer", {0: 1.0, 10: 3.0, 20: 4.0})):
        for seed in range(5):
            returns = {step: [ret + seed] for step, ret in shown.items()}
            write_run(tmp_path / label / str(seed), label=label, seed=seed, returns=returns)
    rows = qs.load_runs(tmp_path)
    for each, curves_of_each in ((False, 1), (True, 6)):
        ax = figures.draw_learning_curves(rows, each=each)
        points = [c.get_offsets().tolist() for c in ax.collections if isinstance(c, PathCollection)]
        assert len(points) == len(ax.get_lines()) == curves_of_each
        assert points[-1] == [[10.0, 4.0]]
    (interval,) = (c for c in figures.draw_learning_curves(rows).collections if hasattr(c, "get_segments"))
    (shown,) = interval.get_segments()
    assert shown[:, 0].tolist() == [10, 10]
    assert shown[0, 1] < 4.0 < shown[1, 1]
    point, *_ = interactive.render_chart(curves.learning_curves_chart(rows)).data
    assert (point.mode, point.error_y.array[0]) == ("markers", shown[1, 1] - 4.0)


def test_more_labels_than_colours_are_told_apart():
    styles = charts.choose_styles([f"agent{k:02}" for k in range(28)])
    assert len({(style.colour, style.dash) for style in styles.values()}) == 28


def test_an_overview_has_a_panel_for_each_environment_and_a_profile(tmp_path):
    for env in ("Ant-v5", "Hopper-v5"):
        for seed in range(3):
            write_run(tmp_path / env / str(seed), env=env, seed=seed, returns={0: [0.0], 10: [100.0 * seed]})
    made = tables.compare(qs.load_runs(tmp_path))
    titles = [ax.get_title() for ax in figures.draw_overview(made.rows, scores=made.scores).axes]
    assert titles == ["Ant-v5", "Hopper-v5", "Performance profile"]
    assert [ax.get_title() for ax in figures.draw_overview(made.rows).axes] == [
        "Ant-v5",
        "Hopper-v5",
    ]
