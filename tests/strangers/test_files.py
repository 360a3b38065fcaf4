"""What files keep of environments that nobody here wrote comes back equal, or a sentence says why not."""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import json
import pathlib
import re
import shutil
import types
import uuid
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import tiny
from gymnasium import spaces, wrappers
from strangers.given import Given, Keyed, Shown

import qscape as qs
from qscape.cli import main, options
from qscape.cli.train import read_config
from qscape.data import read
from qscape.envs import kept_spaces, make, snapshot
from qscape.errors import QscapeError, UsageError
from qscape.inspect.trained_agent import load_trained_agent
from qscape.jobs.worker import Job
from qscape.report import environment_label
from qscape.report.records import read_findings
from qscape.report.runs import RunRecord, find_runs, identify_run, name_runs, note_missing
from qscape.run import record
from qscape.run.folder import read_plan, read_record
from qscape.run.plan import Plan, prepare
from qscape.run.policy import evaluate_run, load_policy
from qscape.run.record import record_dataset
from qscape.sealed import read_json, seal, unseal
from qscape.values import NoValue, decode, encode

UTC = datetime.UTC
SMALL = tiny.settings("td3")
ARGS = {
    "size": (3, 4),
    "gains": {0: 0.25, (1, 1): 4.0},
    "place": Path("maps/one"),
    "banned": frozenset({1, 5}),
    "key": b"\x02\x03",
}
TOTAL = 12 + 0.25 + 4 + 3 + 6 + 5  # size 3 · 4, gains, len("one"), banned, key


class Level(enum.IntEnum):
    HARD = 2


class Word(str):
    pass


@dataclasses.dataclass
class Track:
    width: float = 1.0


# --- B1: values that JSON has not -----------------------------------------------------------------

KEPT = [
    (),
    (1, (2, [3, ()])),
    {1: "a", "1": "b", None: 0, (1, 2): [{}]},
    {"$tuple": [1]},
    {"$unknown": 1},
    {"a": {"$set": 1, "b": 2}},
    set(),
    {1, "a", (2, 3)},
    frozenset({b"\x00", 2.5}),
    b"\xff\x00",
    bytearray(b"ab"),
    2 - 3j,
    range(2, 20, 3),
    slice(None, 4),
    pathlib.Path("a/b"),
    pathlib.PureWindowsPath("C:\\a"),
    datetime.date(2024, 2, 29),
    datetime.time(23, 59, 1, 5, tzinfo=UTC),
    datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=-3))),
    datetime.timedelta(days=-1, microseconds=3),
    decimal.Decimal("1.10"),
    fractions.Fraction(1, 3),
    uuid.UUID(int=5),
    float("inf"),
    -0.0,
    10**3000,
    "\ud800 and \x00",
    np.float32(0.1),
    np.bool_(True),
    np.arange(6, dtype=">i2").reshape(2, 3),
    np.zeros((0, 3), np.float16),
    np.array([1 + 2j]),
    np.array(["2024-01-01"], "datetime64[s]"),
]


def is_same(one, other):
    """Are two values equal and of the same types, at any depth?"""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return [*map(repr, one.items())] == [*map(repr, other.items())]
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return (one == other and repr(one) == repr(other)) or (isinstance(one, set | frozenset) and one == other)


@pytest.mark.parametrize("value", KEPT, ids=lambda value: repr(value)[:30])
def test_value_comes_back_equal_from_a_plan_a_job_and_a_flag(value):
    plan = Plan(recipe="td3", env="Given-v0", steps=1, env_args={"x": value})
    for again in (
        decode(json.loads(json.dumps(encode(value)))),
        Job.from_json(json.loads(json.dumps(Job("train", Path("a"), plan).to_json()))).plan.env_args["x"],
        options.env_args([options.env_pair("x", value)])["x"],
    ):
        assert is_same(value, again), again


REFUSED = [
    Level.HARD,
    Word("a"),
    Track(),
    collections.OrderedDict(a=1),
    collections.deque([1]),
    types.SimpleNamespace(a=1),
    lambda: 1,
    Track,
    object(),
    np.random.default_rng(0),
    np.array([object()]),
    np.array(["a"]),
    np.longdouble(1),
    np.ma.array([1, 2], mask=[True, False]),
    datetime.datetime(2024, 1, 1, tzinfo=type("Zone", (datetime.tzinfo,), {})()),
    ...,
    10**5000,
    (cycle := []).append(cycle) or cycle,
]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("nested", [False, True])
def test_value_of_another_type_is_refused_before_training(value, nested):
    given = {"deep": [value]} if nested else value
    with pytest.raises(UsageError, match=r"^env_args: x is .*run\.json cannot give back") as caught:
        Plan(recipe="td3", env="Given-v0", steps=1, env_args={"x": given})
    assert caught.value.field == "env_args"


def test_model_of_an_id_refuses_what_its_save_could_not_give_back():
    with pytest.raises(UsageError, match=r"place is <Level\.HARD: 2>, of the type .*Level, which run"):
        qs.Model("td3", "strangers.given:Given-v0", env_args={**ARGS, "place": Level.HARD})


def test_arguments_come_back_in_every_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pairs = [options.env_pair(name, value) for name, value in ARGS.items()]
    train = ["train", "td3", "--env", "strangers.given:Given-v0", "--steps", "40", "--eval-episodes", "1"]
    assert main([*train, *tiny.flags("td3"), "--out", "runs", "--env-args", *pairs]) == 0
    assert read_plan(Path("runs/0")).env_args == ARGS
    assert tiny.evaluations(Path("runs/0"))[-1]["return"] == str(10 * TOTAL)
    assert environment_label(read_record(Path("runs/0"))).count("size=(3, 4)") == 1
    assert main(["resume", "runs/0", "--steps", "60"]) == 0
    assert main(["train", "--config", "runs/0/run.json", "--out", "again", "--seeds", "1"]) == 0
    assert read_plan(Path("again/1")).env_args == ARGS
    assert main(["reproduce", "runs/0"]) == 0
    assert qs.load("runs/0").adapter.env.unwrapped.total == TOTAL


def test_study_gives_an_environment_the_dates_of_its_file(tmp_path, capsys):
    file = tmp_path / "dates.toml"
    file.write_text(
        "[budgets.quick]\nsteps = 40\nseeds = 1\n[[agents]]\nrecipe = 'td3'\n"
        "[[environments]]\nid = 'strangers.given:Given-v0'\nargs = {size = 2024-02-29}\n"
    )
    qs.trust("strangers.given:Given-v0")
    assert main(["study", "run", str(file), "--budget", "quick"]) == 2
    assert "these are [<class 'datetime.date'>" in capsys.readouterr().err


def test_function_takes_anything_and_its_run_says_what(tmp_path):
    model = qs.Model("td3", lambda level: Given(), env_args={"level": Level.HARD}, eval_every=0, **SMALL)
    folder = model.save(tmp_path / "0")
    assert read_plan(folder).env_args == {"level": NoValue("<Level.HARD: 2>")}
    with pytest.raises(UsageError, match=r"qs.load\("):
        qs.load(folder)
    assert qs.load(folder, env=Given).predict(np.zeros(1, np.float32))[0].shape == (1,)


def test_function_of_an_id_is_recorded_as_that_id_alone(tmp_path):
    model = qs.Model("td3", lambda g: gym.make("Pendulum-v1"), env_args={"g": [9]}, eval_every=0, **SMALL)
    folder = model.save(tmp_path / "0")
    assert (read_plan(folder).env, read_plan(folder).env_args) == ("Pendulum-v1", {})
    assert qs.load(folder).adapter.env_id == "Pendulum-v1"


@pytest.mark.parametrize(
    "forged",
    [{"$path": 3}, {"$tuple": 1}, {"$new": 1}, {"$array": ["|O", [1], ""]}, {"$dict": [[[], 1]]}, "a"],
)
def test_forged_arguments_are_a_broken_run(forged, tmp_path):
    folder = qs.Model("td3", "strangers.given:Given-v0", eval_every=0, **SMALL).save(tmp_path / "0")
    record = unseal((folder / "run.json").read_bytes())
    (folder / "run.json").write_bytes(seal(record | {"env_args": forged if forged == "a" else {"x": forged}}))
    with pytest.raises(QscapeError, match=r"run.json cannot be read"):
        qs.load(folder)


# --- B2: the spaces of a save ---------------------------------------------------------------------


def nested():
    env = Keyed()
    parts = {
        "speed": env.observation_space["speed"],
        "more": spaces.Dict({"angle": env.observation_space["angle"]}),
    }
    return wrappers.TransformObservation(
        env, lambda o: {"speed": o["speed"], "more": {"angle": o["angle"]}}, spaces.Dict(parts)
    )


def flat():
    env = Keyed()
    box = spaces.Box(-10, 10, (4,), np.float32)
    return wrappers.TransformObservation(env, lambda o: np.concatenate([*o.values()]), box)


def table(start):
    env = wrappers.TransformAction(
        Keyed(), lambda a: np.float32([a - start - 1]), spaces.Discrete(3, start=start)
    )
    env.unwrapped.action_table = np.float32([[-1], [0], [1]])
    return env


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run folder in `Keyed`, and the action of its policy in the first state."""
    model = qs.Model("td3", Keyed, eval_every=0, **SMALL)
    shown = Keyed().show()
    return model.save(tmp_path_factory.mktemp("kept") / "0"), model.predict(shown)[0]


def test_keys_in_another_order_give_the_same_policy_in_every_way_of_loading(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    id_, turned = "strangers.given:Keyed-v0", ("angle", "speed")
    train = ["train", "td3", "--env", id_, "--steps", "40", *tiny.flags("td3"), "--eval-episodes", "1"]
    assert main([*train, "--out", "runs"]) == 0
    trained = load_policy(Path("runs/0"))
    assert [path[0] for path, _ in trained.adapter.leaves] == ["speed", "angle"]
    wanted = [e.ret for e in evaluate_run(Path("runs/0"), 1)[2]]
    gym.registry["Keyed-v0"].kwargs["order"] = turned  # as where a set has another order in another process
    try:
        assert list(gym.make(id_).observation_space) == [*turned]
        assert [path[0] for path, _ in load_policy(Path("runs/0")).adapter.leaves] == ["speed", "angle"]
        assert [e.ret for e in evaluate_run(Path("runs/0"), 1)[2]] == wanted
        assert [r.episode.ret for r in load_trained_agent("runs/0").rollouts(1)] == wanted
        loaded = qs.load("runs/0")
        assert loaded.evaluate(1) == wanted
        assert [r.episode.ret for r in loaded.trained_agent.rollouts(1)] == wanted
        assert main([*train, "--out", "more", "--from", "runs/0"]) == 0
        assert tiny.evaluations(Path("more/0"))[0]["return"] == str(wanted[0])
        assert main(["resume", "runs/0", "--steps", "80"]) == 0
    finally:
        del gym.registry["Keyed-v0"].kwargs["order"]
    assert main([*train, "--out", "straight"]) == 0
    assert main(["resume", "straight/0", "--steps", "80"]) == 0
    tiny.assert_same_run(Path("runs/0"), Path("straight/0"))


def test_evaluation_environment_with_keys_in_another_order_is_read_in_that_of_training():
    there = Keyed(order=("angle", "speed"))
    model = qs.Model("td3", Keyed(), eval_env=there, eval_every=0, **SMALL)
    straight = qs.Model("td3", Keyed(), eval_env=Keyed(), eval_every=0, **SMALL)
    assert model.evaluate(1) == straight.evaluate(1)


OTHERS = {
    "bounds of actions": (lambda: Keyed(high=2.0), "Box(-2.0, 2.0, (1,), float32)"),
    "bounds of observations": (lambda: Keyed(seen=5.0), "Box(-5.0, 5.0, (2,), float32)"),
    "dtype": (lambda: Keyed(dtype="float64"), "(2,), float64)"),
    "a renamed key": (lambda: Keyed(order=("speed", "place")), "place: Box"),
    "another nesting": (nested, "more: Dict(angle: Box"),
    "a Box for a Dict": (flat, "Box(-10.0, 10.0, (4,), float32)"),
    "an action of another kind": (lambda: table(0), "Discrete(3, int64)"),
}


@pytest.mark.parametrize("which", OTHERS)
def test_other_spaces_are_refused_with_both_written_out(which, kept):
    make, shown = OTHERS[which]
    with pytest.raises(UsageError, match="other spaces") as caught:
        qs.load(kept[0], env=make())
    assert shown in str(caught.value)
    assert "Box(-10.0, 10.0, (2,), float32)" in str(caught.value) or "Box(-1.0, 1.0, (1,)" in str(
        caught.value
    )


def test_other_spaces_are_accepted_by_a_word(kept):
    folder, action = kept
    model = qs.load(folder, env=Keyed(high=2.0), other_spaces=True)
    np.testing.assert_array_equal(model.predict(Keyed().show())[0], 2 * action)


def test_another_start_of_discrete_actions_is_refused(tmp_path):
    folder = qs.Model("td3", lambda: table(0), eval_every=0, **SMALL).save(tmp_path / "0")
    with pytest.raises(UsageError, match=r"Discrete\(3, start=1, int64\), and were Discrete\(3, int64\)"):
        qs.load(folder, env=table(1))


def test_command_refuses_and_the_flag_accepts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kept_spaces, "_others", False)
    env = "strangers.given:Keyed-v0"
    qs.Model("td3", env, eval_every=0, **SMALL).save("runs/0")
    gym.registry["Keyed-v0"].kwargs["high"] = 2.0
    try:
        for argv in (
            ["evaluate", "runs"],
            ["record", "runs", "--dataset", "local/a-v0"],
            ["smoothness", "runs"],
        ):
            assert main([*argv, "--episodes", "1"]) == 2
            assert "--other-spaces" in capsys.readouterr().err
        assert main(["resume", "runs/0", "--steps", "30"]) == 2
        assert main(["train", "td3", "--env", env, "--steps", "30", "--from", "runs/0", "--out", "more"]) == 2
        assert main(["evaluate", "runs", "--episodes", "1", "--other-spaces"]) == 0
        assert Job.from_json(Job("resume", Path("a")).to_json()).kind == "resume"
    finally:
        del gym.registry["Keyed-v0"].kwargs["high"]


def test_another_number_of_environments_is_named_with_the_way_on(kept):
    many = gym.vector.SyncVectorEnv([Keyed] * 2, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    with pytest.raises(QscapeError, match=r"is of 1 environments .* here there are 2.* --from .* --envs 2"):
        qs.load(kept[0], env=many)


def test_save_without_spaces_is_loaded_as_before(kept, tmp_path):
    folder = Path(shutil.copytree(kept[0], tmp_path / "old"))
    file = folder / "saves" / "000000000" / "save.json"
    record = unseal(file.read_bytes())
    assert {"observation", "action"} == record["meta"].pop("spaces").keys()
    file.write_bytes(seal(record))
    assert qs.load(folder, env=Keyed(seen=5.0)).predict(Keyed().show())[0] == kept[1]


@pytest.mark.parametrize(
    "forged", [{}, {"observation": {}}, {"observation": {"kind": "Dict", "parts": 3}}, 3]
)
def test_forged_spaces_are_a_damaged_save(forged, kept, tmp_path):
    folder = Path(shutil.copytree(kept[0], tmp_path / "forged"))
    file = folder / "saves" / "000000000" / "save.json"
    record = unseal(file.read_bytes())
    record["meta"]["spaces"] = forged
    file.write_bytes(seal(record))
    with pytest.raises(QscapeError, match="damaged"):
        qs.load(folder, env=Keyed())


SPACES = [
    spaces.Box(-np.inf, np.inf, (3,), np.float64),
    spaces.Box(np.float32([-1, 0]), np.float32([1, np.inf])),
    spaces.Box(0, 255, (4, 5), np.uint8),
    spaces.Box(np.arange(5_000.0), np.arange(5_000.0) + 1, dtype=np.float64),
    spaces.Discrete(4, start=-2),
    spaces.MultiDiscrete([2, 3], start=[1, 0]),
    spaces.MultiBinary((2, 2)),
    spaces.Dict(a=spaces.Tuple([spaces.Discrete(2), spaces.Text(3)]), b=spaces.Box(0, 1, ())),
]


@pytest.mark.parametrize("at", range(len(SPACES)))
def test_record_of_a_space_equals_itself_alone(at):
    records = [json.loads(json.dumps(kept_spaces.describe_space(space))) for space in SPACES]
    assert [kept_spaces.are_equal(records[at], other) for other in records] == [
        k == at for k in range(len(SPACES))
    ]
    assert kept_spaces.show_space(records[at]).startswith(type(SPACES[at]).__name__)


# --- B3: recorded episodes ------------------------------------------------------------------------

STEPS = np.arange(7, dtype=np.float32)
TENTHS = np.float32(0.1 * np.arange(7))
ROWS = {  # what training sees in the 7 states of an episode of `Shown`
    "buffer": np.stack([STEPS, TENTHS], 1),
    "list": np.stack([STEPS, TENTHS], 1),
    "wide": np.stack([STEPS, TENTHS], 1),
    "dict": np.stack([STEPS, TENTHS, STEPS, np.full(7, 7, np.float32)], 1),
    "scalar": np.stack([STEPS, STEPS, TENTHS], 1),
}


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """A folder of datasets of this test alone."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path


def save_untrained(place, how):
    args = {"eval_every": 0, "env_args": {"how": how}}
    recipe = "sac+conv" if how == "picture" else "td3"
    return qs.Model(recipe, "strangers.given:Shown-v0", **args, **tiny.settings(recipe)).save(place / "run")


@pytest.mark.parametrize("how", ROWS)
def test_recorded_episodes_hold_what_training_sees(how, recordings):
    record_dataset(save_untrained(recordings, how), "local/a-v0", 2)
    found = read("local/a-v0")
    np.testing.assert_array_equal(found.observation, np.concatenate([ROWS[how][:-1]] * 2))
    np.testing.assert_array_equal(found.next_observation, np.concatenate([ROWS[how][1:]] * 2))
    np.testing.assert_array_equal(
        found.reward, np.float32(np.arange(1, 7) / 3).repeat(2).reshape(6, 2).T.ravel()
    )
    assert (found.env, found.env_args) == ("Shown-v0", {"how": how})


@pytest.mark.parametrize(
    ("how", "why"),
    [("picture", "has images as observations"), ("slash", "which Minari cannot store")],
)
def test_observations_that_no_dataset_gives_back_are_refused_before_an_episode(
    how, why, recordings, monkeypatch
):
    folder = save_untrained(recordings, how)
    monkeypatch.setattr(Shown, "step", lambda self, action: pytest.fail("an episode was played"))
    with pytest.raises(UsageError, match=why):
        record_dataset(folder, "local/a-v0", 1)
    assert not [*(recordings / "datasets").glob("local/*/")]


def test_number_that_the_space_cannot_hold_ends_recording_with_a_sentence(recordings):
    with pytest.raises(
        QscapeError, match=r"shows 0.5 at observation\[0\], which Box\(0, 100, \(2,\), int32\)"
    ):
        record_dataset(save_untrained(recordings, "fraction"), "local/a-v0", 1)


def test_dataset_that_reads_back_as_another_is_not_kept(recordings, monkeypatch):
    folder = save_untrained(recordings, "buffer")
    keep = record._Copying._keep
    monkeypatch.setattr(
        record._Copying, "_keep", lambda self, shown: self.__dict__.setdefault("first", keep(self, shown))
    )
    with pytest.raises(QscapeError, match=r"was not kept, .* its column observation holds other numbers"):
        record_dataset(folder, "local/a-v0", 1)
    assert not [*(recordings / "datasets").glob("local/*/")]


def test_error_of_the_environment_is_told_with_its_step(recordings, monkeypatch):
    folder = save_untrained(recordings, "buffer")
    monkeypatch.setattr(Shown, "step", lambda self, action: 1 / 0)
    with pytest.raises(QscapeError, match=r"broke in step 1 of an episode \(ZeroDivisionError"):
        record_dataset(folder, "local/a-v0", 1)


def test_arguments_that_json_would_change_are_not_stored_with_a_dataset(recordings):
    folder = qs.Model("td3", "strangers.given:Given-v0", env_args=ARGS, eval_every=0, **SMALL).save(
        recordings / "0"
    )
    assert record_dataset(folder, "local/a-v0", 1).env_spec is None


# --- B5: JSON of another form ---------------------------------------------------------------------

DEEP = "[" * 100_000
OTHER = ["", "[]", "3", '"text"', "null", "{", '{"a": 1e999999', DEEP, '{"a":' * 100_000, "\x00", "NaN"]


@pytest.mark.parametrize("text", [*OTHER, "{} {}"], ids=lambda text: text[:12])
def test_reader_refuses_what_is_no_object(text):
    with pytest.raises(ValueError, match=r"^.*\S"):
        read_json(text)


@pytest.mark.parametrize("name", ["smoothness", "landscape", "embedding", "collapse"])
@pytest.mark.parametrize("text", OTHER, ids=lambda text: text[:12])
def test_findings_of_another_form_are_left_out_with_a_sentence(name, text, kept, tmp_path):
    folder = Path(shutil.copytree(kept[0], tmp_path / "run"))
    (folder / "inspect").mkdir()
    (folder / "inspect" / f"{name}.json").write_text(text)
    (run,), skipped = read_findings([RunRecord(str(folder), "E", "td3", 0, {}, pd.DataFrame())])
    assert not run.findings
    assert skipped == [f"skipped {folder}/inspect/{name}.json: it is broken."]


PLANNED = {"folder": "a/0", "seed": 0, "label": "td3", "env": "E", "steps": 5}


@pytest.mark.parametrize(
    "text",
    [
        *OTHER,
        *map(
            json.dumps,
            [
                {},
                {"name": "s", "budget": "full", "runs": {}},
                {"name": "s", "budget": "full", "runs": [3]},
                {"name": "s", "budget": "full", "runs": [PLANNED | {"folder": 3}]},
                {"name": "s", "budget": "full", "runs": [PLANNED | {"label": None}]},
                {"name": 3, "budget": "full", "runs": [PLANNED]},
            ],
        ),
    ],
    ids=lambda text: text[-20:],
)
def test_study_of_another_form_is_told_and_hides_no_run(text, tmp_path):
    (tmp_path / "study.json").write_text(text)
    assert note_missing(tmp_path, []) == [f"skipped {tmp_path / 'study.json'}: it is broken."]


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": 3},
        {"recipe": ["td3"]},
        {"env": None},
        {"steps": "many"},
        {"settings": []},
        {"typed": {"base": 3}},
        {"env_args": [1]},
        {"env_args": {"x": {"$path": 3}}},
        {"start": 1},
        {"envs": "two"},
        {"probe": 3},
    ],
    ids=str,
)
def test_config_of_another_form_is_refused_in_a_sentence(change, kept, tmp_path, capsys):
    record = unseal((kept[0] / "run.json").read_bytes()) | change
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert main(["train", "--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "a")]) == 2
    assert "config.json" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1


@pytest.mark.parametrize("text", OTHER, ids=lambda text: text[:12])
def test_config_that_is_no_json_object_is_refused_in_a_sentence(text, tmp_path, capsys):
    (tmp_path / "config.json").write_text(text)
    assert main(["train", "--config", str(tmp_path / "config.json")]) == 2
    assert "cannot be read as a run.json" in capsys.readouterr().err


def test_record_without_the_fields_that_have_a_default_is_read(kept, tmp_path):
    folder = Path(shutil.copytree(kept[0], tmp_path / "run"))
    record = unseal((folder / "run.json").read_bytes())
    needed = {
        f.name for f in dataclasses.fields(Plan) if f.default is f.default_factory is dataclasses.MISSING
    }
    needed |= {"settings"}  # of the networks that the save holds
    (folder / "run.json").write_bytes(seal({k: v for k, v in record.items() if k in needed}))
    assert read_record(folder)["label"] == "td3"
    assert qs.load(folder, env=Keyed).predict(Keyed().show())[0] == kept[1]
    about = identify_run(folder, unseal((folder / "run.json").read_bytes()))
    assert (about["label"], about["seed"], about["env"]) == ("td3", 0, record["env"])
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "td3", "env": "Keyed-v0", "steps": 5}))
    assert read_config(tmp_path / "config.json")[2].envs == 1


@pytest.mark.parametrize("file", ["run.json", "saves/000000000/save.json"])
@pytest.mark.parametrize("text", OTHER, ids=lambda text: text[:12])
def test_record_and_save_of_another_form_are_refused(file, text, kept, tmp_path):
    folder = Path(shutil.copytree(kept[0], tmp_path / "run"))
    (folder / file).write_text(text)
    with pytest.raises(QscapeError):
        qs.load(folder, env=Keyed)


STATISTICS = {
    "steps": [-1, 1.5, "1", None, True],
    "began": [np.zeros(2, np.int64), np.zeros(1, np.int32), np.array([99]), 0],
    "ret": [np.zeros((1, 1)), np.array([np.nan]), np.zeros(1, np.float32)],
    "observation": [np.zeros((1, 3), np.float32), np.full((1, 4), np.inf, np.float32), np.zeros((1, 4))],
    "episodes": [np.array([-1]), [0]],
    "resetting": [np.zeros(1)],
    "success": [np.zeros(2)],
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, of in STATISTICS.items() for v in of], ids=str)
def test_statistics_of_a_snapshot_are_checked_like_arrays(name, value):
    adapter = make(Keyed)
    adapter.reset()
    adapter.step(np.zeros((1, 1), np.float32))
    shot = snapshot.take(adapter)
    assert snapshot.restore(make(Keyed), shot) == ""
    data = {"array": "forged"} if isinstance(value, np.ndarray) else value
    layers = shot.meta["layers"] | {"adapter": shot.meta["layers"]["adapter"] | {name: data}}
    arrays = shot.arrays | ({"forged": value} if isinstance(value, np.ndarray) else {})
    with pytest.raises(ValueError, match=name if name != "ret" else "ret|return"):
        snapshot.restore(make(Keyed), snapshot.Snapshot(arrays, shot.meta | {"layers": layers}))


# --- B4: learning in pieces -----------------------------------------------------------------------


def learn_in_pieces(recipe, pieces, steps, **settings):
    """Learn `pieces` times; return the model, and the warnings of each call."""
    model, told = qs.Model(recipe, "tiny:Clock-v0", eval_every=0, **settings), []
    for _ in range(pieces):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            model.learn(steps)
        told.append([str(w.message) for w in seen if "decides for all later calls" in str(w.message)])
    return model, told


def test_first_call_names_what_it_cuts_and_how_to_set_it():
    _, told = learn_in_pieces("td3", 2, 30, **SMALL)
    assert [len(of) for of in told] == [1, 0]
    assert "base.warmup = 6 instead of 25,000" in told[0][0]
    assert told[0][0].endswith("set these yourself: base.warmup = 25,000.")


def test_settings_that_are_given_make_pieces_equal_to_the_whole(tmp_path):
    small = tiny.settings("td3", warmup=20)
    pieces, told = learn_in_pieces("td3", 4, 30, **small)
    whole, _ = learn_in_pieces("td3", 1, 120, **small)
    assert told == [[]] * 4
    one, other = pieces.save(tmp_path / "a"), whole.save(tmp_path / "b")
    assert tiny.arrays(one) == tiny.arrays(other)


@pytest.mark.parametrize(
    ("recipe", "base", "said"),
    [
        ("ppo", {}, "base.rollout = 12 instead of 2,048"),
        (
            "ppo",
            {"rollout": 20, "batch_size": 20, "anneal": True},
            "^What anneals ends with every call of learn",
        ),
        ("ppo", {"rollout": 20, "batch_size": 20}, None),
        ("td3", {"warmup": 20, "schedule": "linear"}, "base.schedule_updates = 60.* all steps, times"),
        ("dqn", {"warmup": 20}, r"base.epsilon_decay = \d+; To learn|base.epsilon_decay = .* of all steps"),
    ],
)
def test_every_setting_that_follows_from_the_length_is_named(recipe, base, said):
    env = "CartPole-v1" if recipe == "dqn" else "tiny:Clock-v0"
    model = qs.Model(recipe, env, eval_every=0, base=base)
    found = model._describe_first_call(60, prepare(model._plan(60)).agent)
    assert re.search(said, found) if said else found == ""


# --- B6: runs below a folder high up --------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Three runs: runs/one/0, runs/one/1 and runs/two/0."""
    root = tmp_path_factory.mktemp("tree") / "runs"
    first = qs.Model("td3", "strangers.given:Keyed-v0", eval_every=0, **SMALL).save(root / "one" / "0")
    for name in ("one/1", "two/0"):
        shutil.copytree(first, root / name)
    return root


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (["{}"], []),
        (["{}/one"], ["one/0", "one/1"]),
        (["{}/one/1"], ["one/1"]),
        (["{}/one/1", "{}"], ["one/1"]),
        (["{}/two", "{}/one/0"], ["one/0", "two/0"]),
        (["{}/*"], ["one/0", "one/1", "two/0"]),
        (["{}/**"], ["one/0", "one/1", "two/0"]),
        (["{}/two/0/run.json"], ["two/0"]),
        (["{}/.."], []),
    ],
)
def test_runs_are_named_by_folder_group_or_pattern(paths, named, tree):
    given = [path.format(tree) for path in paths]
    found = find_runs(given)
    those, said = name_runs(given, found)
    assert sorted(str(path.resolve().relative_to(tree.resolve())) for path in those) == named
    left = len(found) - len(named)
    assert (f"{left} run{'s' * (left > 1)} found below" in said) is (left > 0)


@pytest.mark.parametrize("paths", [["{}"], ["{}/one/1", "{}"]])
def test_smoothness_writes_into_named_runs_alone(paths, tree, tmp_path, capsys):
    root = Path(shutil.copytree(tree, tmp_path / "runs"))
    file = root / "one" / "0" / "run.json"
    file.write_bytes(seal(unseal(file.read_bytes()) | {"seed": 5}))  # else the three would be one run
    shutil.rmtree(root / "two")
    argv = [path.format(root) for path in paths]
    assert main(["smoothness", *argv, "--episodes", "1"]) == 0
    assert "found below" in capsys.readouterr().out
    written = [path.parent.parent.name for path in root.rglob("smoothness.json")]
    assert written == (["1"] if len(paths) > 1 else [])
