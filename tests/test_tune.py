"""`qscape tune`: fields and their ranges, trials that are runs, and a search that goes on after any end."""

import contextlib
import csv
import dataclasses
import math
import shlex
import shutil
import signal
import sqlite3
import sys
import time
from pathlib import Path
from statistics import mean

import numpy as np
import optuna
import pytest
from refused import refused
from tiny import SIZES, environment, evaluations, flags, start

from qscape.agents import build, settings_of
from qscape.cli import main, options
from qscape.cli.tune import flag, train_command
from qscape.errors import Taken, UsageError
from qscape.jobs import tune
from qscape.jobs.progress import LOSSES
from qscape.jobs.ranges import Range, find_ranges
from qscape.jobs.trials import Search, Trial, next_job
from qscape.jobs.tune import NAME, find_influences, open_search
from qscape.jobs.worker import Job
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run.plan import Plan

# Fields that are searched here are not compiled into programs, so that all trials run the same ones.
RANGES = """
"base.warmup" = {low = 20, high = 200}
[base]
updates_per_step = {choices = [0.5, 1.0]}
"""
STEPS, EVERY = 240, 60
PENDULUM = ["--env", "Pendulum-v1", "--steps", STEPS, "--eval-every", EVERY, "--eval-episodes", 1]


def command(out, *more, trials=2):
    """`tune td3` with small networks, one worker."""
    given = ["tune", "td3", *PENDULUM, *flags("td3"), "--trials", trials, "--workers", 1, "--out", out, *more]
    return [str(x) for x in given]


@pytest.fixture
def ranges(tmp_path):
    """Writes a TOML file of ranges."""

    def write(text=RANGES):
        (tmp_path / "ranges.toml").write_text(text)
        return tmp_path / "ranges.toml"

    return write


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, and workers that find the tests' environments and use one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    return tmp_path


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search of two trials that nothing disturbed: its folder, its ranges, and what it printed."""
    place = tmp_path_factory.mktemp("tune")
    (place / "ranges.toml").write_text(RANGES)
    process = start(*command(place / "search", "--ranges", place / "ranges.toml"))
    out, err = process.communicate()
    assert process.returncode == 0, err
    return place / "search", place / "ranges.toml", out


def study(folder):
    """What Optuna has stored."""
    return optuna.load_study(study_name=NAME, storage=f"sqlite:///{folder}/study.db")


def told(folder):
    """Number, state, fields, curve and worth of every trial."""
    trials = study(folder).get_trials()
    return [(t.number, t.state.name, t.params, t.intermediate_values, t.value) for t in trials]


def returns(run, after=0):
    """Mean returns of a run's evaluations, by step."""
    found: dict[int, list[float]] = {}
    with (run / "evaluations.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(int(row["step"]), []).append(float(row["return"]))
    return {step: mean(values) for step, values in found.items() if step > after}


def plan(recipe="td3", **settings):
    return Plan(recipe, "Pendulum-v1", 1_000, settings=settings)


# --- ranges -------------------------------------------------------------------------------------------


def test_ranges_come_from_the_fields_of_the_parts_that_are_present():
    td3 = {r.field: r for r in find_ranges(plan())}
    assert td3["base.discount"] == Range("base.discount", 0.9, 0.999)
    assert td3["polyak.rate"] == Range("polyak.rate", 1e-3, 0.1, log=True)
    assert td3["base.n_step"] == Range("base.n_step", choices=(1, 3, 5))
    assert not any(name.startswith(("lap.", "sale.")) or name == "base.warmup" for name in td3)
    td7 = {r.field for r in find_ranges(plan("td7"))}
    assert {"lap.alpha", "sale.width", "checkpoints.late_episodes"} <= td7
    assert "polyak.rate" not in td7


def test_the_first_trial_has_the_discount_that_follows_from_the_time_limit(tmp_path):
    asked = Plan("simba", "Pendulum-v1", 1_000)
    search = Search(asked, find_ranges(asked, ("base.discount",)), tmp_path, 1, "final", 0)
    assert tune._default_fields(search) == {"base.discount": 0.975}  # 1 - 5 / 200 steps


def test_what_is_fixed_or_off_is_not_searched_unless_it_is_named():
    names = [r.field for r in find_ranges(plan("sac", base={"discount": 0.9}))]
    assert "base.batch_size" in names
    assert not {"base.discount", "base.exploration_noise", "base.target_noise"} & {*names}
    named = find_ranges(plan("sac"), ["base.exploration_noise"])
    assert named == [Range("base.exploration_noise", 0.02, 0.5)]


@pytest.mark.parametrize(
    ("recipe", "out", "within"),
    [
        ("ppo", {"learnable.width", "learnable.feature_energy"}, {"base.passes", "base.value_coefficient"}),
        ("reinforce", {"base.value_coefficient"}, {"base.batch_size"}),
        ("trpo", {"base.passes", "base.entropy_coefficient", "base.value_coefficient"}, {"gae.decay"}),
        ("ppo+carsm", {"base.passes", "base.value_coefficient"}, {"base.entropy_coefficient"}),
        ("a2c+cosine", {"cosine.feature_energy"}, {"cosine.width", "cosine.scale"}),
    ],
)
def test_what_does_nothing_in_a_recipe_or_is_refused_by_it_is_not_searched(recipe, out, within):
    names = {r.field for r in find_ranges(Plan(recipe, "CartPole-v1", 100_000))}
    assert within <= names
    assert not out & names


@pytest.mark.parametrize(
    ("recipe", "settings", "out", "within"),
    [
        ("dqn", {}, {"base.actor_learning_rate", "base.policy_delay"}, {"base.critic_learning_rate"}),
        ("fast_td3", {}, {"base.exploration_noise"}, {"base.actor_learning_rate"}),
        ("bro", {}, {"resets.every"}, {"soft.learning_rate"}),
        ("sac", {"soft": {"temperature": 0.2}}, {"soft.learning_rate"}, {"base.actor_learning_rate"}),
        ("td3+lap", {"lap": {"prioritised": False}}, {"lap.alpha"}, {"base.exploration_noise"}),
    ],
)
def test_what_an_off_policy_agent_lacks_is_not_searched(recipe, settings, out, within):
    names = {r.field for r in find_ranges(plan(recipe, **settings))}
    assert within <= names
    assert not out & names


def test_a_named_field_whose_range_the_recipe_refuses_is_refused():
    with refused("conflict", "base.passes", "trpo"):
        find_ranges(Plan("trpo", "CartPole-v1", 100_000), ["base.passes"])


def test_a_file_gives_ranges_in_the_fields_types(ranges):
    file = ranges(
        """
        "base.discount" = {low = 0, high = 1}
        base.batch_size = {low = 16, high = 64.0, log = true}
        base.gradient_clip = {choices = [0.5, 10]}
        base.actor_hidden = {choices = [[16], [16, 16]]}
        base.actor_activation = {choices = ["relu", "elu"]}
        polyak.rate = {low = 0.01, high = 0.02}
        """
    )
    found = {r.field: r for r in find_ranges(plan(), ["polyak.rate", "base.policy_delay"], file)}
    discount, batch = found["base.discount"], found["base.batch_size"]
    assert (discount.low, discount.high, discount.whole) == (0.0, 1.0, False)
    assert (batch.low, batch.high, batch.whole, batch.log) == (16, 64, True, True)
    assert found["base.gradient_clip"].choices == (0.5, 10.0)
    assert found["base.actor_hidden"].choices == ((16,), (16, 16))
    assert found["polyak.rate"] == Range("polyak.rate", 0.01, 0.02)
    assert found["base.policy_delay"] == Range("base.policy_delay", choices=(1, 2, 4))
    assert len(found) == 7


REFUSED = [
    (
        '"base.discont" = {low = 0.9, high = 0.99}',
        "base.discont: there is no such field; near to it: base.disc",
    ),
    ('"lap.alpha" = {low = 0.0, high = 1.0}', "lap.alpha: it belongs to lap; write td3+lap"),
    (
        '"base.critics" = {low = 1, high = 2}',
        "base.critics: --base.critics fixes it; leave out one of the two",
    ),
    ('"base.discount" = 0.9', "base.discount is 0.9; write {low = ..., high = ...}"),
    ('"base.discount" = {low = 0.9}', "base.discount needs a number low, and a greater one high"),
    ('"base.discount" = {low = 0.9, high = 0.8}', "needs a number low, and a greater one high"),
    ('"base.discount" = {low = 0.9, high = 1.5}', "base.discount is 1.5; it must lie in [0, 1]"),
    ('"base.discount" = {low = 0.0, high = 0.5, log = true}', "a log range begins above 0"),
    (
        '"base.discount" = {low = 0.1, hihg = 0.5}',
        "there is no key 'hihg' in base.discount; near to it: high",
    ),
    ('"base.discount" = {choices = []}', "choices is a list with something in it"),
    ('"base.batch_size" = {low = 1.5, high = 4}', "base.batch_size is 1.5; it must be of type int"),
    ('"base.head" = {choices = ["gausian"]}', "base.head is 'gausian'; it must be one of"),
    ('"base.warmup" = {low = 10, high = 1000}', "--base.warmup 1000 leaves no update in 1000 steps"),
    ('"warmup" = {low = 10, high = 100}', "there is no such field"),
]


@pytest.mark.parametrize(("line", "why"), REFUSED)
def test_a_bad_line_of_the_file_is_refused_by_its_number(ranges, line, why):
    file = ranges(f'\n"polyak.rate" = {{low = 0.1, high = 0.2}}\n{line}\n')
    with pytest.raises(UsageError) as refused:
        find_ranges(plan(base={"critics": 2}), (), file)
    assert str(refused.value).startswith(f"{file}, line 3: ")
    assert why in str(refused.value)


BAD = [
    (["--fields", "base.discont"], "there is no such field; near to it: base.discount"),
    (["--fields", "lap.alpha"], "it belongs to lap; write td3+lap"),
    (["--fields", "base.warmup"], "it has no range of its own; give one with --ranges"),
    (["--fields", "base.discount", "--base.discount", "0.9"], "--base.discount fixes it"),
    (["--ranges", "none.toml"], "none.toml cannot be read"),
    (["--trials", "0"], "--trials is 0; it must be at least 1"),
    (["--workers", "0"], "--workers is 0; it must be at least 1"),
    (["--eval-every", "0"], "--eval-every is 0; it must be at least 1"),
    (["--steps", "0"], "--steps is 0: a run needs at least one environment step"),
    (["--trails", "3"], "has no flag --trails; did you mean --trials"),
    (["--lap.alpha", "0.3"], "--lap.alpha belongs to lap; write td3+lap"),
    (["--env", "Pendulun-v1"], "Pendulun"),
    (["--env", "Pendulum"], "Pendulum lacks its version: write Pendulum-v1"),
]


@pytest.mark.parametrize(("more", "why"), BAD)
def test_what_cannot_be_asked_for_is_refused_in_one_sentence(here, capsys, more, why):
    given = ["--env", "Pendulum-v1", *more] if "--env" not in more else more
    assert main(["tune", "td3", *given]) == 2
    err = capsys.readouterr().err
    assert why in err
    assert err.count("\n") == 1
    assert [*here.iterdir()] == []


def test_a_fixed_field_that_does_nothing_is_told(here, monkeypatch, capsys):
    monkeypatch.setattr("qscape.cli.tune.run", lambda search, *_: 0)
    assert main(["tune", "td3", "--env", "Pendulum-v1", "--base.huber-threshold", "2"]) == 0
    said = "base.huber_threshold does nothing without Huber's loss, base.critic_loss = huber"
    assert capsys.readouterr().out.splitlines() == [said]


def test_arguments_of_the_environment_may_be_flags(here, monkeypatch):
    """`--env.NAME` has a dot, like flags of the agent, and is none."""
    seen = []
    monkeypatch.setattr("qscape.cli.tune.run", lambda search, *_: seen.append(search.plan) or 0)
    given = [
        "--env",
        "Pendulum-v1",
        "--env.g",
        "9.5",
        "--base.discount",
        "0.9",
        "--env-args",
        "render_mode=None",
    ]
    assert main(["tune", "td3", *given]) == 0
    assert seen[0].env_args == {"g": 9.5, "render_mode": None}
    assert seen[0].settings == {"base": {"discount": 0.9}}


def test_a_missing_extra_is_named(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("qscape.jobs.tune", "qscape.cli.tune"):
        monkeypatch.delitem(sys.modules, name)
    assert main(["tune", "td3", "--env", "Pendulum-v1"]) == 2
    assert 'pip install "qscape[tune]"' in capsys.readouterr().err


# --- a search -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trials_are_runs_and_what_optuna_stores_is_what_they_say(searched):
    folder, _, out = searched
    trials = told(folder)
    assert [(number, state) for number, state, *_ in trials] == [(0, "COMPLETE"), (1, "COMPLETE")]
    assert trials[0][2] == {"base.updates_per_step": 1.0, "base.warmup": 48}  # the recipe as it stands
    for number, _, fields, curve, worth in trials:
        run = folder / "trials" / str(number) / "0"
        settings = folders.read_record(run)["settings"]["base"]
        assert settings["warmup"] == fields["base.warmup"]
        assert settings["updates_per_step"] == fields["base.updates_per_step"]
        assert settings["batch_size"] == SIZES["batch_size"]
        assert curve == returns(run, after=fields["base.warmup"])
        assert worth == curve[STEPS]
    best = max(worth for *_, worth in trials)
    assert f"2 of 2 trials; best: trial {[t[-1] for t in trials].index(best)}, {best:,.1f}" in out


@pytest.mark.slow
def test_the_best_command_makes_the_best_trial_again(searched):
    folder, _, out = searched
    said = shlex.split(out.strip().splitlines()[-1])
    assert said[:3] == ["qscape", "train", "td3"]
    again = start(*said[1:])
    assert again.wait() == 0, again.stderr
    best = study(folder).best_trial.number
    assert evaluations(folder / "best" / "0") == evaluations(folder / "trials" / str(best) / "0")


def test_every_kind_of_value_survives_the_command(tmp_path):
    fixed = {
        "base": {"actor_hidden": (16, 8), "gradient_clip": None, "target_actor": False},
        "sale": {"frozen": True, "critic_inputs": ("sa", "zs"), "loss": "cosine"},
    }
    base = Plan("td7", "Pendulum-v1", 500, env_args={"g": 9.5}, settings=fixed)
    fields = {"base.discount": 0.1 + 0.2, "base.actor_learning_rate": 1.7e-05, "sale.hidden": (32,)}
    search = Search(base, find_ranges(base), tmp_path / "a search", seeds=2)
    trial = Trial(search, 0, fields)
    said = shlex.split(shlex.join(train_command(trial)))
    run, settings = options.train_command(said[2], said[3:])
    assert settings_of(build("td7", settings)) == settings_of(build("td7", trial.settings))
    assert settings == trial.settings
    assert (run.env, run.steps, run.seeds, run.out) == (
        "Pendulum-v1",
        500,
        (0, 1),
        f"{tmp_path}/a search/best",
    )
    assert options.env_args(run.env_args) == {"g": 9.5}
    for shared in (True, False, None):  # no switch, since it may be None
        plan = Plan("ppo", "Pendulum-v1", 5_000, settings={"base": {"shared_torso": shared}})
        said = train_command(Trial(Search(plan, find_ranges(plan), tmp_path), 0, {}))
        assert options.train_command(said[2], said[3:])[1] == plan.settings


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_the_command_leaves_out_what_does_nothing_in_its_trial(tmp_path, schedule):
    trial = Trial(Search(plan(), [], tmp_path), 0, {"base.schedule": schedule, "base.rate_end": 0.25})
    said = train_command(trial)
    assert said[said.index("--base.schedule") + 1] == schedule
    assert ("--base.rate-end" in said) == (schedule == "linear"), "train refuses it without a schedule"


@pytest.mark.slow
def test_the_mean_of_its_seeds_counts_for_a_trial(here, ranges):
    more = ["--seeds", 2, "--metric", "best", "--ranges", ranges(), "--workers", 2]
    assert main(command("out", *more, trials=1)) == 0
    ((_, state, fields, curve, worth),) = told(here / "out")
    one, two = (returns(here / "out" / "trials" / "0" / seed, fields["base.warmup"]) for seed in "01")
    assert state == "COMPLETE"
    assert one != two
    assert curve == {step: mean([one[step], two[step]]) for step in one}
    assert worth == max(curve.values())


def test_the_evaluation_after_the_first_rollout_counts(tmp_path):
    """PPO learns from its rollout before it is evaluated; after random steps TD3 has learned nothing."""
    ppo = Plan("ppo", "CartPole-v1", 64, settings={"base": {"rollout": 64, "batch_size": 16}})
    td3 = Plan("td3", "Pendulum-v1", 128, settings={"base": {"warmup": 64}})
    for plan_, counted in ((ppo, {64: 3.0}), (td3, {})):
        trial = Trial(Search(plan_, find_ranges(plan_), tmp_path), 0, {})
        trial.add_evaluation(0, 0, "current", 9.0)
        trial.add_evaluation(0, 64, "current", 3.0)
        assert trial.curve() == counted
        assert trial.worth() == pytest.approx(counted.get(64, math.nan), nan_ok=True)


@pytest.mark.slow
def test_a_failed_trial_is_stored_with_its_reason_and_the_rest_goes_on(here, ranges, capsys):
    file = ranges('"base.replay_capacity" = {choices = [2_000, 2_000_000_000]}\n')
    given = command("out", "--ranges", file)
    at = given.index("--base.replay-capacity")
    assert main([*given[:at], *given[at + 2 :]]) == 0
    small, large = sorted(study("out").get_trials(), key=lambda t: t.params["base.replay_capacity"])
    assert [small.state.name, large.state.name] == ["COMPLETE", "FAIL"]
    assert small.number == 1
    assert "A replay of 2000000000 rows needs" in large.user_attrs["why"]
    assert f"trial   0  failed   {large.user_attrs['why']}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_trial_below_the_median_of_earlier_ones_is_stopped(here, ranges, capsys):
    search = Search(small_plan(), find_ranges(small_plan(), (), ranges()), Path("out"))
    with open_search(search):  # makes the search's database
        pass
    for k in range(50):  # earlier trials, better than Pendulum can be
        distributions = {
            "base.warmup": optuna.distributions.IntDistribution(20, 200),
            "base.updates_per_step": optuna.distributions.CategoricalDistribution([0.5, 1.0]),
        }
        study("out").add_trial(
            optuna.trial.create_trial(
                params={"base.warmup": 30 + 3 * k, "base.updates_per_step": 1.0},
                distributions=distributions,
                value=float(k),
                intermediate_values=dict.fromkeys(range(0, STEPS + 1, EVERY), float(k)),
            )
        )
    assert main(command("out", "--ranges", ranges(), trials=51)) == 0
    waiting = study("out").get_trials()[0]
    assert waiting.state.name == "PRUNED"
    assert list(waiting.intermediate_values) == [EVERY]
    assert waiting.value == returns(here / "out/trials/0/0")[EVERY]
    assert folders.unfinished(here / "out/trials/0/0")
    out = capsys.readouterr().out
    assert "trial   0  pruned   return" in out
    assert "what mattered, of 1, by the best 5 of 50 finished trials: base.warmup 1.00\n" in out


def searched_by_chance(score, trials=50):
    """An in-memory search of two fields at random values, and the score of each trial."""
    rng = np.random.default_rng(0)
    made = optuna.create_study(direction="maximize")
    spread = optuna.distributions.FloatDistribution(0.0, 1.0)
    for _ in range(trials):
        params = dict(zip(("a.x", "b.y"), rng.random(2), strict=True))
        value = score(*params.values(), rng)
        distributions = dict.fromkeys(params, spread)
        made.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    return made


def test_what_mattered_is_named_if_it_stands_out(recwarn):
    one = find_influences(searched_by_chance(lambda x, y, rng: -((y - 0.7) ** 2)))
    assert one is not None
    assert [*one] == ["b.y"]
    assert 0.8 < one["b.y"] < 1
    assert find_influences(searched_by_chance(lambda x, y, rng: rng.normal())) == {}
    assert not recwarn


def test_nothing_is_said_to_have_mattered_where_nothing_can_be_known(recwarn):
    assert find_influences(searched_by_chance(lambda x, y, rng: 1.0)) is None
    assert find_influences(searched_by_chance(lambda x, y, rng: -y, trials=49)) is None
    assert find_influences(searched_by_chance(lambda x, y, rng: -y, trials=50))
    assert not recwarn


def small_plan():
    """The plan of `command`."""
    given = [str(x) for x in flags("td3")]
    settings = options.train_command("td3", given)[1]
    return Plan("td3", "Pendulum-v1", STEPS, settings=settings, eval_every=EVERY, eval_episodes=1)


# --- going on -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_search_that_was_stopped_and_killed_ends_like_one_that_was_not(searched, tmp_path):
    undisturbed, file, _ = searched
    folder = tmp_path / "search"
    given = command(folder, "--ranges", file)
    process = start(*given)
    until(folder / "trials/0/0/evaluations.csv", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert f"to continue: qscape tune td3 {shlex.join(given[2:])}" in out
    assert [state for _, state, *_ in told(folder)] == ["RUNNING"]

    process = start(*given)
    until(folder / "trials/1/0/evaluations.csv", process)
    process.kill()
    process.communicate()
    assert [state for _, state, *_ in told(folder)] == ["COMPLETE", "RUNNING"]

    process = start(*given)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert told(folder) == told(undisturbed)
    for number in "01":
        assert evaluations(folder / "trials" / number / "0") == evaluations(
            undisturbed / "trials" / number / "0"
        )
    before = (folder / "study.db").read_bytes()
    assert main(given) == 0
    assert (folder / "study.db").read_bytes() == before  # nothing is left to do


def test_a_run_that_ended_just_before_the_kill_is_not_made_again(searched, tmp_path):
    undisturbed, file, _ = searched
    folder = tmp_path / "search"
    shutil.copytree(undisturbed, folder)
    with sqlite3.connect(folder / "study.db") as db:  # as if its end had not been stored any more
        (last,) = db.execute("select trial_id from trials where number = 1").fetchone()
        db.execute(
            "update trials set state = 'RUNNING', datetime_complete = null where trial_id = ?", (last,)
        )
        db.execute("delete from trial_values where trial_id = ?", (last,))
        db.execute("delete from trial_intermediate_values where trial_id = ?", (last,))
    record = folder / "trials/1/0/evaluations.csv"
    before = record.stat().st_mtime_ns
    assert main(command(folder, "--ranges", file)) == 0
    assert told(folder) == told(undisturbed)
    assert record.stat().st_mtime_ns == before


def until(path, process):
    """Wait for a file with something in it."""
    patience = time.monotonic() + 120
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < patience
        time.sleep(0.05)


@pytest.mark.parametrize("saves", [True, False])
def test_a_lost_worker_is_replaced_until_nothing_comes_of_it(here, ranges, monkeypatch, saves):
    """As in a study: a trial fails if it loses too many workers in a row without a new save."""
    started = []

    class Lost:
        """A worker that is killed, after a save if it is the second one; the one after `LOSSES` ends well."""

        def __init__(self, job, log):
            started.append(job)

        def events(self):
            if saves and len(started) == 2:
                yield ev.to_json(ev.Saved(120, Path()))
            if len(started) <= LOSSES:
                yield {"kind": "Failed", "why": "its process was killed (SIGKILL)", "lost": True}
                return
            yield ev.to_json(ev.Evaluated(STEPS, "current", [-7.0], [1], [], {}, 0.1))
            yield ev.to_json(ev.Ended(STEPS, 1, 1.0, False))

        def stop(self): ...
        def kill(self): ...

    monkeypatch.setattr(tune, "LocalWorker", Lost)
    with open_search(Search(small_plan(), find_ranges(small_plan(), (), ranges()), Path("out"))) as tuner:
        assert tuner.run(1, 1)
    ((_, state, _, curve, worth),) = told("out")
    if saves:
        assert (len(started), state, curve, worth) == (LOSSES + 1, "COMPLETE", {STEPS: -7.0}, -7.0)
    else:
        assert (len(started), state) == (LOSSES, "FAIL")
        assert tuner.trials[0].why == "its process was killed (SIGKILL)"


def test_warnings_of_runs_are_told(here, ranges, monkeypatch, capsys):
    class Warned:
        def __init__(self, job, log): ...

        def events(self):
            yield ev.to_json(ev.Logged(120, 1, {}, ["the support is too narrow"]))
            yield ev.to_json(ev.Evaluated(STEPS, "current", [-7.0], [1], [], {}, 0.1))
            yield ev.to_json(ev.Ended(STEPS, 1, 1.0, False))

        def stop(self): ...
        def kill(self): ...

    monkeypatch.setattr(tune, "LocalWorker", Warned)
    assert main(command("out", "--ranges", ranges(), "--seeds", 2, trials=1)) == 0
    told = capsys.readouterr().out.splitlines()
    assert [f"trial 0 seed {k}: the support is too narrow" in told for k in range(2)] == [True, True]


def test_flags_of_parts_and_of_the_run():
    assert flag("observe_actions", False, True) == ["--no-observe-actions"]
    assert flag("base.normalise", False, True) == ["--base.no-normalise"]
    assert flag("base.actor_hidden", (8, 4), False) == ["--base.actor-hidden", "8", "4"]


@pytest.mark.slow
def test_what_is_left_of_a_trial_is_read_from_its_run_folder(searched, tmp_path):
    run, asked = tmp_path / "0", small_plan()
    assert next_job(run, asked) == Job("train", run, asked, overwrite=True)
    shutil.copytree(searched[0] / "trials/0/0", run)
    asked = folders.read_plan(run)
    assert next_job(run, asked) is None
    for other in dataclasses.replace(asked, steps=2 * STEPS), small_plan():  # which lacks the trial's fields
        with pytest.raises(Taken):
            next_job(run, other)
    shutil.rmtree(run / "saves")
    assert next_job(run, asked) == Job("resume", run)
    (run / "run.json").write_text("{")
    assert next_job(run, asked) == Job("train", run, asked, overwrite=True)


def test_a_search_that_goes_on_with_other_versions_says_so(here, ranges, capsys):
    base = small_plan()
    with open_search(Search(base, find_ranges(base, (), ranges()), Path("out"))) as tuner:
        assert not tuner.changes
        versions = tuner.study.user_attrs["versions"]
        tuner.study.set_user_attr("versions", versions | {"qscape": "0.0.1", "jax": "0.1"})
    assert main(command("out", "--ranges", ranges(), "--trials", 1)) == 0
    said = f"jax was 0.1 and is {versions['jax']}"
    assert f"qscape was 0.0.1 and is {versions['qscape']}; {said}; another --out begins anew" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_folder_of_something_else_is_refused(here, ranges, capsys):
    base = small_plan()
    search = Search(base, find_ranges(base, (), ranges()), Path("out"))
    with open_search(search):
        pass
    assert main(command("out", "--ranges", ranges(), "--steps", 300)) == 2
    assert (
        "out holds another search: steps is 240 there and 300 here; choose another --out"
        in capsys.readouterr().err
    )
    assert main(command("out", "--ranges", ranges(), "--seed", 7)) == 2
    assert "out holds another search: seed is 0 there and 7 here" in capsys.readouterr().err
    with open_search(search) as tuner:  # as a version that did not keep the seed
        tuner.study.set_user_attr("search", {k: v for k, v in search.identity().items() if k != "seed"})
    with open_search(dataclasses.replace(search, seed=7)):
        pass
    assert main(command("out", "--fields", "base.discount")) == 2
    assert (
        "range of base.discount is None there and {'low': 0.9, 'high': 0.999} here" in capsys.readouterr().err
    )
    with folders.locked(Path("out")):
        assert main(command("out", "--ranges", ranges())) == 1
    assert "out is in use by another process" in capsys.readouterr().err
    (here / "out/study.db").write_text("no database")
    assert main(command("out", "--ranges", ranges())) == 1
    assert "out/study.db cannot be used (" in capsys.readouterr().err
    (here / "else").mkdir()
    (here / "else/notes.txt").write_text("mine")
    assert main(command("else", "--ranges", ranges())) == 2
    assert "else exists and holds no search" in capsys.readouterr().err
    assert dataclasses.replace(search, seeds=2).identity() != search.identity()


def test_a_database_that_fails_during_a_search_is_told(here, ranges):
    base = small_plan()
    search = Search(base, find_ranges(base, (), ranges()), Path("out"))

    def fail():
        with open_search(search) as tuner:
            with contextlib.closing(sqlite3.connect(here / "out/study.db")) as db:
                db.execute("DROP TABLE trials")
            tuner.study.ask()

    with refused("cannot-write", "out/study.db", "no such table"):
        fail()
