"""`qscape check` says what is wrong with each of many environments, and nothing of a sound one."""

import functools
import json
import threading

import pytest
from gymnasium.vector import AutoresetMode
from strangers import checked

import qscape as qs
from qscape.cli import main
from qscape.envs.checks import CheckedEnv, check_answers, open_first, run_checks
from qscape.errors import UsageError
from qscape.jobs.check import find_recipes


def findings(env, **of):
    """What the checks of an environment find, by their names, in this process."""
    subject = CheckedEnv(env, {}, **of)
    adapter, found = open_first(subject)
    if adapter is not None:
        found += [*run_checks(subject, adapter), *find_recipes(subject, adapter)]
    return {finding.name: finding for finding in found}


@pytest.mark.parametrize("env", [checked.Sound, checked.Global])
def test_nothing_is_wrong_with_a_sound_environment(env):
    found = findings(env)
    assert {finding.verdict for finding in found.values()} == {"ok"}
    assert [finding.remedy for finding in found.values()] == [""] * len(found)
    assert {"spaces", "equal seeds", "save and restore", "number of copies", "recipes"} <= found.keys()
    assert "success is reported" in found["infos"].detail


WRONG = {  # environment: the check that finds it, its verdict, and a word of the remedy or of what is wrong
    checked.Outside: ("observations inside their bounds", "warn", "observation[0]"),
    checked.Clock: ("precision", "warn", "observation[1]"),
    checked.Metres: ("scale of observations", "warn", "normalise"),
    checked.Still: ("scale of observations", "warn", "nothing can be seen"),
    checked.NotANumber: ("finite numbers", "FAIL", "reward is nan"),
    checked.Endless: ("finite numbers", "FAIL", "observation[0] is inf"),
    checked.Dear: ("scale of rewards", "warn", "reward_scale"),
    checked.Cheap: ("scale of rewards", "warn", "reward_scale"),
    checked.Free: ("scale of rewards", "warn", "are 0"),
    checked.Forever: ("ends of episodes", "warn", "max-episode-steps"),
    checked.LimitIsTerminal: ("ends of episodes", "warn", "exactly 20 steps"),
    checked.Unseeded: ("equal seeds", "warn", "first observation"),
    checked.FreshAfterTheFirst: ("equal seeds", "warn", "without a new seed"),
    checked.Remembers: ("equal seeds", "warn", "starts elsewhere"),
    checked.Shared: ("equal seeds", "warn", "differs"),
    checked.Handle: ("save and restore", "warn", "handle"),
    checked.Unkept: ("save and restore", "warn", "generator"),
    checked.Single: ("number of copies", "FAIL", "only 1 can be open"),
    checked.Fixed: ("scale of actions", "warn", "dimension 1"),
    checked.Unbounded: ("spaces", "FAIL", "unbounded"),
    checked.Told: ("spaces", "FAIL", "Text"),
    checked.WrongShape: ("steps", "FAIL", "observation"),
    checked.Raises: ("steps", "FAIL", "the gripper is stuck"),
    checked.Exits: ("random steps", "FAIL", "ended the program"),
}


@pytest.mark.parametrize(("env", "judged"), [(checked.Compiles, True), (checked.Slow, False)])
def test_scales_are_judged_from_many_steps_alone(env, judged, monkeypatch):
    monkeypatch.setattr("qscape.envs.checks.SHARE", 0.2)
    subject = CheckedEnv(env, {})
    adapter, _ = open_first(subject)
    found = {finding.name: finding.verdict for finding in check_answers(subject, adapter, 50)}
    assert ("scale of observations" in found) == ("ends of episodes" in found) == judged
    assert (found.get("scales") == "skip") != judged


@pytest.mark.parametrize("env", WRONG)
def test_what_is_wrong_is_found_and_nothing_else(env):
    name, verdict, word = WRONG[env]
    checked.Single.opened = 0
    found = findings(env)
    assert found[name].verdict == verdict
    assert word in str(found[name])
    others = {other for other, finding in found.items() if finding.verdict in ("warn", "FAIL")} - {name}
    assert others <= ALSO.get(env, set())


ALSO = {  # what follows from the flaw
    checked.Shared: {"save and restore"},
    checked.Unseeded: {"save and restore"},
    checked.FreshAfterTheFirst: {"save and restore"},
    checked.Forever: {"scale of observations"},
}


def test_buffers_and_infos_are_told():
    assert "share memory" in findings(checked.Reuses)["buffers"].detail
    assert "an array of its own" in findings(checked.Sound)["buffers"].detail


def test_which_recipes_fit():
    assert "td3, sac, td7, ppo" in findings(checked.Sound)["recipes"].detail
    found = findings(checked.Choice)["recipes"].detail
    fits = found.partition(" fit")[0].split(", ")
    assert {"dqn", "ppo"} <= {*fits}
    assert not {"td3", "sac", "td7"} & {*fits}
    assert "not td3 (" in found


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("kind", ["Gymnasium's", "own"])
def test_vector_environments(kind, mode):
    make = (
        functools.partial(checked.many, mode=mode) if kind == "own" else functools.partial(checked.Own, mode)
    )
    if kind == "own" or mode is not AutoresetMode.DISABLED:
        found = findings(make)
        assert "FAIL" not in {finding.verdict for finding in found.values()}
        assert mode.value in found["spaces"].detail
        assert found["equal seeds"].verdict == "ok"


def test_several_environments_side_by_side():
    found = findings(checked.Sound, envs=3)
    assert {finding.verdict for finding in found.values()} == {"ok"}
    for kept_nowhere in (checked.Unkept, checked.Handle):
        assert findings(kept_nowhere, envs=2)["save and restore"].verdict == "warn"
    for outside in (checked.Global, checked.Table):  # each copy has such state of its own
        assert {finding.verdict for finding in findings(outside, envs=2).values()} == {"ok"}


def test_environment_in_jax_gets_the_conformance_suite():
    found = findings("jax/CartPole-v1")
    names = [name for name in found if name.startswith("in JAX")]
    assert len(names) > 5
    assert "FAIL" not in {finding.verdict for finding in found.values()}


# --- in a process of its own ----------------------------------------------------------------------

QUICK = {"seconds": 19.0, "step_seconds": 2.0}  # too short to train, which takes a program to compile


@pytest.mark.parametrize(
    ("env", "where"),
    [(checked.Hangs, "step"), (checked.HangsInReset, "reset"), (checked.HangsWhenMade, "its constructor")],
)
def test_what_hangs_is_named(env, where):
    report = qs.check_env(env, **QUICK)
    assert not report.sound
    assert report.findings[-1].name == "returns"
    assert f"{env.__name__} did not return from {where} within 2 seconds" in report.findings[-1].detail


def test_what_ends_its_process_is_named():
    report = qs.check_env(checked.Dies, **QUICK)
    assert not report.sound
    assert report.findings[-1].name == "process"
    assert "SIGABRT" in report.findings[-1].detail


def test_what_is_given_may_be_anything_that_training_takes():
    class Local(checked.Sound):
        pass

    for env in (lambda: Local(), checked.Sound(), checked.many(n=2)):
        report = qs.check_env(env, **QUICK)
        assert report.sound, str(report)
        assert len(report.findings) > 10


def test_what_cannot_be_sent_is_refused():
    env = checked.Sound()
    env.file = threading.Lock()
    with pytest.raises(UsageError, match="give its id or a function"):
        qs.check_env(env, **QUICK)


@pytest.mark.parametrize(
    "wrong",
    [{"seconds": 0}, {"step_seconds": -1}, {"envs": 0}, {"vectorise": "envpool"}, {"env_args": {"a": 1}}],
)
def test_wrong_arguments(wrong):
    env = checked.Sound() if "env_args" in wrong else checked.Sound
    with pytest.raises(UsageError):
        qs.check_env(env, **wrong)


def test_command_prints_lines_and_writes_json(tmp_path, capsys):
    argv = ["check", "CheckedDear-v0", "--seconds", "19", "--json", str(tmp_path / "a" / "found.json")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "warn  scale of rewards" in out
    assert out.splitlines()[-1].startswith("CheckedDear-v0: training is sound, with 1 warning")
    written = json.loads((tmp_path / "a" / "found.json").read_text())
    assert written["sound"]
    assert {"name", "verdict", "detail", "remedy"} == {*written["findings"][0]}
    assert main(["check", "CheckedUnbounded-v0"]) == 1
    assert main(["check", "NoSuchEnv-v0"]) == 2
    assert main(["check"]) == 2


def test_speed_is_measured_by_training():
    report = qs.check_env("CheckedSound-v0", seconds=200.0)  # so much only beside other work
    speed = {finding.name: finding for finding in report.findings}["speed"]
    assert speed.verdict == "ok"
    assert "an update of td3" in speed.detail
