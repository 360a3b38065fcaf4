"""Seeds that share one program are resumed as such; one that cannot be goes on alone and says so."""

import contextlib
import dataclasses
import shutil
import signal
import time
from pathlib import Path

import pytest
from tiny import arrays, assert_same_run, environment, flags, numbers, settings, start

import qscape as qs
from qscape.cli import main as qscape
from qscape.errors import RunError, UsageError
from qscape.jobs.reproduce import reproduce
from qscape.run import Plan, saves
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run.groups import group_runs, sharing
from qscape.run.training import resume, resume_together, train_together

SEEDS = (3, 5)  # of the clock: episodes of 30 and of 40 steps
CLOCK = Plan(
    "td3",
    "tiny:Clock-v0",
    150,
    settings=settings("td3", warmup=50),
    eval_every=60,
    eval_episodes=2,
    log_every=40,
    save_every=40,
    milestones=1.0,
)


def places(group: Path) -> list[Path]:
    return [group / str(seed) for seed in SEEDS]


def begin(group: Path, until: int = 10**9) -> list[Path]:
    """Train both seeds; leave the run as if killed once the second one has a save of `until` steps."""
    plans = [dataclasses.replace(CLOCK, seed=seed) for seed in SEEDS]
    with contextlib.closing(train_together(plans, places(group))) as events:
        for k, event in events:
            if k == 1 and isinstance(event, ev.Saved) and event.step >= until:
                break
    return places(group)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folders of an undisturbed run of both seeds."""
    return begin(tmp_path_factory.mktemp("seeds") / "whole")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The group of a run that was killed at step 80; copy it before you write to it."""
    group = tmp_path_factory.mktemp("seeds") / "killed"
    begin(group, 80)
    return group


def newest(folder: Path) -> str:
    return saves.names(folder / "saves")[-1]


def notes_of(folder: Path) -> list[str]:
    """The notes of the last time that a run went on, of its run.json."""
    return folders.read_record(folder)["resumed"][-1]["notes"]


def test_a_group_goes_on_in_one_program_to_the_bit(killed, whole, tmp_path):
    group = Path(shutil.copytree(killed, tmp_path / "group"))
    assert qscape(["resume", str(group)]) == 0
    for one, other in zip(places(group), whole, strict=True):
        assert_same_run(one, other)
        assert folders.read_record(one)["resumed"] == [
            {"at": 80, "of": 150, "notes": [], "together": [*SEEDS]}
        ]
        assert sharing(folders.read_record(one)) == [*SEEDS]


@pytest.mark.parametrize("damage", ["gone", "bytes"])
def test_a_group_goes_back_to_the_newest_save_that_all_have(damage, killed, whole, tmp_path):
    """As when the process was killed after the first seed had saved, or when a disk lost bytes of one."""
    group = Path(shutil.copytree(killed, tmp_path / "group"))
    first, last = places(group)
    save = last / "saves" / newest(last)
    if damage == "gone":
        shutil.rmtree(save)
    else:
        file = next(save.glob("state*"))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert group_runs(places(group)) == [[first, last]]
    assert qscape(["resume", str(group)]) == 0
    for one, other in zip(places(group), whole, strict=True):
        assert_same_run(one, other)
        (resumed,) = folders.read_record(one)["resumed"]
        assert resumed["at"] == 40
    said = " ".join(notes_of(first))
    assert ("go back to the save of step 40" in said) == (damage == "bytes")
    assert (first / "aside").exists()  # what the first seed made beyond


def test_seeds_that_share_no_save_go_on_alone_and_say_so(killed, whole, tmp_path):
    """So does one that is resumed by itself, and then the other one; reproduce names the cause."""
    group = Path(shutil.copytree(killed, tmp_path / "group"))
    first, last = places(group)
    shutil.rmtree(first / "saves" / "000000080")
    shutil.rmtree(last / "saves" / "000000040")
    assert group_runs([last, first]) == [[last], [first]]
    with pytest.raises(RunError, match=r"no whole save of the same step.* resume .*/3"):
        [*resume_together([first, last])]
    for runs in group_runs([first, last]):
        [*resume_together(runs)]
    for one, shared in ((first, 5), (last, 3)):
        assert numbers(one)["env_steps"] == CLOCK.steps
        assert f"it shared one program with seed {shared} and goes on alone" in " ".join(notes_of(one))
        assert sharing(folders.read_record(one)) == []
    found = reproduce(group, tmp_path / "again")
    assert [folders.read_record(each.again)["together"] for each in found] == [[*SEEDS]] * 2
    assert_same_run(found[0].again, whole[0])
    for each in found:
        assert each.equal or any("goes on alone" in cause for cause in each.causes)


def test_a_seed_that_went_on_alone_stays_alone(killed, tmp_path, monkeypatch):
    """Its steps are not thrown away for the sake of the others."""
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # where worker processes find the clock
    group = Path(shutil.copytree(killed, tmp_path / "group"))
    first, last = places(group)
    [*resume(last, 120)]
    assert group_runs([first, last]) == [[first], [last]]
    assert qscape(["resume", str(group), "--steps", "130", "--trust"]) == 0
    assert [folders.read_record(place)["resumed"][-1]["at"] for place in (first, last)] == [80, 120]


def test_a_longer_group_is_reproduced_in_one_program(whole, tmp_path):
    group = Path(shutil.copytree(whole[0].parent, tmp_path / "group"))
    assert qscape(["resume", str(group), "--steps", "190"]) == 0
    assert [folders.read_record(place)["resumed"][0]["at"] for place in places(group)] == [150, 150]
    found = qs.reproduce(group, tmp_path / "again")
    assert [each.differences for each in found] == [[], []]
    for each in found:
        assert arrays(each.folder) == arrays(each.again)
        assert sharing(folders.read_record(each.again)) == [*SEEDS]


def test_a_group_that_is_finished_is_refused(whole):
    with pytest.raises(UsageError, match="has made its 150 steps"):
        [*resume_together(whole)]


# --- processes ----------------------------------------------------------------------------------------

KILLED = {
    "off-policy, on the host": ["td3", "--env", "Pendulum-v1", "--steps", 900, *flags("td3", warmup=100)],
    "off-policy, in one program": [
        "td3+lap",
        "--env",
        "recsim/10k-v0",
        *("--envs", 4, "--steps", 1200, *flags("td3+lap", warmup=100)),
    ],
    "on-policy": ["ppo", "--env", "jax/CartPole-v1", *("--envs", 4, "--steps", 6000, "--base.rollout", 64)],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", KILLED)
def test_seeds_in_one_program_survive_kill_9_to_the_bit(case, tmp_path):
    argv = ["train", *KILLED[case], "--seeds", 0, 1, "--seeds-as", "vmap"]
    argv += ["--save-every", 100, "--log-every", 100, "--eval-every", 600, "--eval-episodes", 2]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(*argv, "--out", whole)
    _, err = process.communicate()
    assert process.returncode == 0, err
    process = start(*argv, "--out", killed)
    until = time.monotonic() + 240
    try:
        while not (killed / "1" / "saves").exists() or not saves.names(killed / "1" / "saves"):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert all(folders.unfinished(killed / seed) for seed in "01")
    process = start("resume", killed)
    _, err = process.communicate()
    assert process.returncode == 0, err
    for seed in "01":
        assert folders.read_record(killed / seed)["resumed"][0]["together"] == [0, 1]
        assert_same_run(killed / seed, whole / seed)
