"""What environments that nobody here wrote say is taken as they say it, or a sentence says why not."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import tiny
from gymnasium import spaces

import qscape as qs
from qscape.agents import build
from qscape.cli import main
from qscape.data import read, sources
from qscape.envs import kept_spaces, make
from qscape.envs.restricted import Restricted
from qscape.envs.spaces import true_bounds
from qscape.errors import RunError, UsageError
from qscape.export import convert, policy
from qscape.inspect.smoothness import measure_observation_scale
from qscape.inspect.trained_agent import ObservationNoise
from qscape.methods.value_clip import Bounds, ValueClip
from qscape.offpolicy.sockets import EpisodeEnd, PartState, StepEnd
from qscape.run import events as ev
from qscape.run.folder import read_record, write_record
from qscape.run.policy import LoadedPolicy
from qscape.types import Event

SMALL = tiny.settings("td3")

# --- A3: bounds that are finite by name only ------------------------------------------------------

SINGLE, DOUBLE = float(np.finfo(np.float32).max), float(np.finfo(np.float64).max)
ENDLESS = {  # (low, high, dtype) of a Box, and its true bounds
    "single": (-SINGLE, SINGLE, np.float32, -np.inf, np.inf),
    "nearly": (-0.9 * SINGLE, 0.5 * SINGLE, np.float32, -np.inf, np.inf),
    "double": (-DOUBLE, DOUBLE, np.float64, -np.inf, np.inf),
    "single in double": (-SINGLE, SINGLE, np.float64, -np.inf, np.inf),
    "half": (-65504.0, 65504.0, np.float16, -np.inf, np.inf),
    "above": (0.0, SINGLE, np.float32, 0.0, np.inf),
    "below": (-1e38, 3.0, np.float64, -np.inf, 3.0),
    "infinite above": (-2.0, np.inf, np.float32, -2.0, np.inf),
    "whole": (-(2**31), 2**31 - 1, np.int32, -np.inf, np.inf),
    "long": (0, 2**63 - 1, np.int64, 0.0, np.inf),
    "unsigned": (0, 2**32 - 1, np.uint32, 0.0, np.inf),
}


def wide(low, high, dtype):
    """Return a Box of two entries, of which the second has these bounds."""
    given = np.array([0, low], dtype), np.array([1, high], dtype)
    return spaces.Box(*given, dtype=dtype)


class Wide(tiny.Clock):
    """Has the spaces that it is given."""

    def __init__(self, seen=None, done=None):
        super().__init__(length=6)
        self.observation_space = seen or self.observation_space
        self.action_space = done or self.action_space

    def shown(self):
        return np.arange(*self.observation_space.shape).astype(self.observation_space.dtype)


@pytest.mark.parametrize("which", ENDLESS)
def test_actions_without_a_bound_are_refused_with_the_remedy(which):
    *given, _, _ = ENDLESS[which]
    with pytest.raises(UsageError, match=r"dimension 1 of the action is unbounded \(from .*TransformAction"):
        qs.TD3(lambda: Wide(done=wide(*given)))


@pytest.mark.parametrize("which", ENDLESS)
def test_observations_without_a_bound_are_accepted_and_have_none(which):
    low, high, dtype, least, most = ENDLESS[which]
    adapter = make(lambda: Wide(seen=wide(low, high, dtype)))
    np.testing.assert_array_equal(adapter.observation_bounds, [[0, least], [1, most]])
    assert adapter.reset().tolist() == [[0, 1]]
    noise = ObservationNoise(0.5, np.float32([1, 1])).make_filter(adapter, 0)(np.float32([[0, 1]]))
    assert np.isfinite(noise).all()


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(-1e9, 1e9, np.float32), (0, 255, np.uint8), (-(2**15), 2**15 - 1, np.int16), (-1e4, 1e4, np.float16)],
)
def test_large_bounds_stay_bounds(low, high, dtype):
    box = spaces.Box(low, high, (2,), dtype)
    np.testing.assert_array_equal(true_bounds(box), [[low] * 2, [high] * 2])
    assert make(lambda: Wide(done=box)).actions(np.ones((1, 2), np.float32)).tolist() == [[high] * 2]


def test_wrappers_that_need_bounds_refuse_those_by_name_too():
    done = wide(*ENDLESS["single"][:3])
    with pytest.raises(UsageError, match="divides a bounded Box of actions"):
        make(lambda: Wide(done=done), env_args={"action_levels": 3})
    with pytest.raises(UsageError, match="only a bounded Box of actions"):
        Restricted(Wide(done=done), np.zeros((1, 2)), np.ones(1))


# --- A5: "none yet" is no number ------------------------------------------------------------------


def assess(returns, **fields):
    """The best score, and which returns passed their assessment, of policies with these returns."""
    agent = build("td3+checkpoints", {"checkpoints": fields, "base": {"warmup": 10}})
    state, passed = agent.schedule.start(), []
    for k, ret in enumerate(returns):
        state, _, _ = agent.schedule.updates_due(state, StepEnd(10), agent.base)
        state = state | {"age": 10}
        state, _, keep = agent.schedule.updates_due(state, EpisodeEnd(10, ret, 10 * k), agent.base)
        passed.append(keep)
    return state["best"], passed


@pytest.mark.parametrize("scale", [1.0, 1e7, 1e8, 3e8, 1e12, 1e30])
@pytest.mark.parametrize("sign", [-1, 1])
def test_first_policy_is_kept_whatever_its_return(scale, sign):
    returns = [sign * scale * x for x in (3.0, 4.0, 2.0)]
    best, passed = assess(returns, switch=10**6)
    assert passed == [True, sign > 0, sign < 0]
    assert best == max(returns)


def test_switch_before_the_first_assessment_leaves_none():
    assert assess([-3e9], switch=5, early_episodes=2)[0] is None
    assert assess([-3e9, -3e9, -4e9], switch=15, early_episodes=1, late_episodes=1)[0] == -3e9 * 0.9


def test_save_of_version_0_2_without_an_assessment_has_none():
    agent = build("td3+checkpoints", {"base": {"warmup": 10}})
    state = agent.schedule.start() | {"best": -1e8, "age": 5}
    state, _, keep = agent.schedule.updates_due(state, EpisodeEnd(5, -2e9, 5), agent.base)
    assert (keep, state["best"]) == (True, -2e9)


@pytest.mark.parametrize("scale", [1.0, 1e9, 1e20])
@pytest.mark.parametrize("sign", [-1, 1])
def test_clip_bounds_are_those_of_the_targets_alone(scale, sign):
    targets = np.float32([[2.0, 3.0], [5.0, 4.0]]) * np.float32(sign * scale)
    empty = ValueClip().init(None, None, None, None, None)
    made = ValueClip().post_update(empty, targets, Event(1, 1, True, np.True_)).extra
    assert (float(made.low), float(made.high)) == (float(targets.min()), float(targets.max()))
    clipped = ValueClip().bound(PartState(extra=made), np.float32([-math.inf, math.inf]))
    np.testing.assert_array_equal(clipped, [targets.min(), targets.max()])


class Costly(tiny.Clock):
    """Costs a billion in every step."""

    def step(self, action):
        shown, _, terminated, truncated, info = super().step(action)
        return shown, -1e9, terminated, truncated, info


def test_td7_gets_a_policy_where_returns_lie_beyond_a_hundred_million(tmp_path):
    small = tiny.settings("td7", warmup=20)
    model = qs.Model("td7", lambda: Costly(length=10), eval_every=0, **small).learn(120)
    assert model.trainer.learner.schedule["best"] == -1e10
    again = qs.load(model.save(tmp_path / "0"), env=Costly)
    assert again.trainer.learner.schedule["best"] == -1e10
    bounds = next(
        s.extra for s in model.trainer.learner.state.part_states.values() if isinstance(s.extra, Bounds)
    )
    assert float(bounds.run_max) <= -1e9


def test_save_before_the_first_assessment_goes_on(tmp_path):
    small = tiny.settings("td7", warmup=20)
    model = qs.Model("td7", lambda: Costly(length=10), eval_every=0, **small)
    again = qs.load(model.save(tmp_path / "0"), env=lambda: Costly(length=10))
    assert again.learn(60).trainer.learner.schedule["best"] == -1e10


# --- A17: absolute numbers in other units ---------------------------------------------------------

RANGES = {  # low and high of an action
    "usual": (-1.0, 1.0),
    "PushT": (0.0, 512.0),
    "hundreds": (-131.0, 131.0),
    "millions": (-1e6, 3e6),
    "tiny": (-1e-6, 1e-6),
    "far from 0": (1000.0, 1001.0),
}


@pytest.mark.parametrize("which", RANGES)
def test_export_judges_actions_by_their_range(which, tmp_path):
    low, high = RANGES[which]
    half = (high - low) / 2
    made = qs.Model("td3", lambda: Wide(done=spaces.Box(low, high, (2,), np.float32)), eval_every=0, **SMALL)
    source = source_of(made)
    act = policy.make_policy_function(source.loaded)
    rounded = 4 * float(np.finfo(np.float32).eps) * max(abs(low), abs(high))

    def check(share):
        moved = convert.to_onnx(lambda obs: act(obs) + np.float32(share * half), 3, {})
        return policy.check_onnx(moved.SerializeToString(), source)

    assert check(0.0).difference <= 1e-5 * half + rounded
    with pytest.raises(RunError, match=r"of half an action's range"):
        check(3e-5 + 2 * rounded / half)
    if rounded < 1e-7 * half:
        check(7e-6)


def source_of(model):
    """Return what `check_onnx` needs of a model: its policy, and a hundred observations."""
    trainer = model.trainer or model._untrained()
    loaded = LoadedPolicy(trainer.learner.programs, trainer.best, model.adapter, 0, "current")
    seen = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    return policy.PolicySource(Path("run"), {}, loaded, [], seen)


@pytest.mark.parametrize(
    ("scale", "mean"), [(1.0, 0.0), (1e-8, 0.0), (1e-6, 1e-3), (1.0, 1e6), (1e4, 0.0), (1.0, -3e5)]
)
def test_dataset_cuts_episodes_at_jumps_in_the_units_of_each_entry(scale, mean, tmp_path):
    rng = np.random.default_rng(0)
    states = mean + scale * rng.uniform(-1, 1, (2, 6, 2))  # two episodes of five steps
    states[0, -1], states[1, 0] = mean - scale, mean + scale
    rows = {
        "observations": states[:, :-1].reshape(10, 2),
        "next_observations": states[:, 1:]
        .reshape(10, 2)
        .astype(np.float32),  # rounded on the way to the file
        "actions": np.zeros((10, 1)),
        "rewards": np.ones(10),
        "terminals": np.zeros(10),
    }
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, column in rows.items():
            file[name] = column
    assert read(str(tmp_path / "a.hdf5")).lengths.tolist() == [5, 5]


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e-12, 1e6])
def test_noise_has_the_scale_of_what_it_disturbs(scale):
    rows = np.float32(scale * np.array([[1.0, 3.0], [2.0, 3.0], [3.0, 3.0]]))
    played = SimpleNamespace(observation=rows)
    run = SimpleNamespace(
        agent=SimpleNamespace(task=SimpleNamespace(observation_size=2)), rollouts=lambda *_: [played]
    )
    found = measure_observation_scale(run)
    np.testing.assert_allclose(found, [scale * (2 / 3) ** 0.5, 1e-6], rtol=1e-5)


def test_bounds_of_a_small_action_are_compared_by_their_size():
    one, other = (spaces.Box(-x, x, (1,), np.float64) for x in (1e-9, 2e-9))
    assert sources._have_equal_bounds(one, one)
    assert not sources._have_equal_bounds(one, other)
    records = [kept_spaces.describe_space(space) for space in (one, other)]
    assert not kept_spaces.are_equal(*records)


# --- A13: --quiet shows warnings ------------------------------------------------------------------


@pytest.fixture(scope="module")
def unkept(tmp_path_factory):
    """A run of 40 steps, saved every 10, in an environment whose state cannot be saved."""
    place = tmp_path_factory.mktemp("quiet")
    argv = ["train", "td3", "--env", "tiny:Unkept-v0", "--steps", 40, "--save-every", 10, "--eval-every", 0]
    assert (
        main([*map(str, argv), *tiny.flags("td3", warmup=20), "--out", str(place / "runs"), "--quiet"]) == 0
    )
    return place / "runs" / "0"


def resume_quietly(folder, capsys, *flags):
    capsys.readouterr()
    code = main(["resume", str(folder), "--quiet", *flags])
    return code, capsys.readouterr().out


def test_quiet_resume_says_that_a_new_episode_began(unkept, tmp_path, capsys):
    folder = Path(shutil.copytree(unkept, tmp_path / "0"))
    code, said = resume_quietly(folder, capsys, "--steps", "60")
    assert (code, "a new episode begins" in said, "replay: " in said) == (0, True, False)
    assert said.splitlines()[-1].startswith("done: ")


def test_quiet_resume_says_that_a_save_was_damaged(unkept, tmp_path, capsys):
    folder = Path(shutil.copytree(unkept, tmp_path / "0"))
    file = folder / "saves" / "000000040" / "replay.npz"
    file.write_bytes(file.read_bytes()[:-50])
    code, said = resume_quietly(folder, capsys, "--steps", "60")
    assert code == 0
    assert "is truncated" in said
    assert "The run goes back to the save of step 36" in said
    assert "what is newer than step 36 was moved to" in said


def test_quiet_resume_says_that_threads_and_versions_are_others(unkept, tmp_path, capsys, monkeypatch):
    folder = Path(shutil.copytree(unkept, tmp_path / "0"))
    record = read_record(folder)
    write_record(folder, record | {"versions": record["versions"] | {"numpy": "0.1"}})
    monkeypatch.setenv("NPROC", "7")
    _, said = resume_quietly(folder, capsys, "--steps", "50")
    assert "continued with NPROC=7" in said
    assert "numpy was 0.1" in said


def test_quiet_resume_says_that_lines_of_a_log_were_damaged(unkept, tmp_path, capsys):
    folder = Path(shutil.copytree(unkept, tmp_path / "0"))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("{no line\n")
    _, said = resume_quietly(folder, capsys, "--steps", "50")
    assert "metrics.jsonl" in said


def test_warnings_of_a_start_reach_the_pool_as_they_are():
    started = ev.Started(5, 10, "td3", "E", 0, ["a", "b"], ["b"])
    assert ev.from_json(json.loads(json.dumps(ev.to_json(started)))) == started


def test_loud_run_prints_each_note_once(unkept, tmp_path, capsys):
    folder = Path(shutil.copytree(unkept, tmp_path / "0"))
    assert main(["resume", str(folder), "--steps", "50"]) == 0
    assert capsys.readouterr().out.count("a new episode begins") == 1
