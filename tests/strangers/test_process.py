"""What holds for a whole process or machine works, or a sentence says at the start why not."""

import shutil
import signal
import time
from pathlib import Path

import jax
import pytest
import tiny

import qscape as qs
from qscape.cli import main
from qscape.envs.simulators import playground
from qscape.errors import RunError, UsageError
from qscape.run import folder as folders
from qscape.run import saves
from qscape.run.stopping import StopOnSignal

SMALL = tiny.settings("td3", warmup=20)

# --- C1: switches of JAX --------------------------------------------------------------------------

BROKEN = {
    "jax_enable_x64": True,
    "jax_debug_nans": True,
    "jax_disable_jit": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_transfer_guard": "disallow",
}
WORKING = {"jax_threefry_partitionable": False, "jax_default_prng_impl": "rbg"}


@pytest.fixture
def switch():
    """A function that sets a switch of JAX for this test."""
    before = {}

    def set_switch(name, value):
        before.setdefault(name, getattr(jax.config, name))
        jax.config.update(name, value)

    yield set_switch
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder with one save, of this process."""
    place = tmp_path_factory.mktemp("process") / "0"
    return qs.Model("td3", "tiny:Clock-v0", eval_every=0, **SMALL).learn(30).save(place)


def contents(folder):
    """The bytes of every file in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", BROKEN)
def test_switch_with_which_no_run_works_is_refused_at_the_start(name, switch, saved, capsys, tmp_path):
    switch(name, BROKEN[name])
    what = rf"{name.upper()} is {BROKEN[name]}.*Unset the variable, or call jax\.config\.update"
    for start in (lambda: qs.TD3("tiny:Clock-v0"), lambda: qs.load(saved), lambda: qs.PPO("tiny:Clock-v0")):
        with pytest.raises(UsageError, match=what):
            start()
    for argv in (
        ["evaluate", str(saved)],
        ["resume", str(saved), "--steps", "60"],
        ["export", str(saved), "--onnx", "a"],
    ):
        assert main(argv) == 2
        assert name.upper() in capsys.readouterr().err
    before = contents(saved)
    train = ["train", "td3", "--env", "tiny:Clock-v0", "--steps", "30", "--out", str(tmp_path / "a")]
    assert main(train) == 2
    assert not (tmp_path / "a").exists() or not [*(tmp_path / "a").rglob("run.json")]
    assert contents(saved) == before


def test_precision_that_the_device_does_not_compute_is_refused_before_anything_is_written(
    switch, capsys, tmp_path
):
    folder = tmp_path / "0"
    argv = ["train", "td3", "--env", "tiny:Clock-v0", "--steps", "30", "--out", str(folder)]
    switch("jax_default_matmul_precision", "F16_F16_F32")
    assert main(argv) == 2
    assert "JAX_DEFAULT_MATMUL_PRECISION is F16_F16_F32" in capsys.readouterr().err
    assert not folder.exists()
    switch("jax_default_matmul_precision", "highest")
    qs.TD3("tiny:Clock-v0", eval_every=0, **SMALL).learn(30)


@pytest.mark.parametrize("name", WORKING)
def test_saves_move_between_both_positions_of_a_switch(name, switch, saved, tmp_path):
    usual = getattr(jax.config, name)
    switch(name, WORKING[name])
    folder = qs.load(saved).learn(5).save(tmp_path / "0")
    switch(name, usual)
    assert qs.load(folder).learn(5).env_steps == 40


@pytest.mark.parametrize("name", WORKING)
def test_switch_that_changes_what_is_drawn_is_recorded_and_told(name, switch):
    usual = folders.origin()
    switch(name, WORKING[name])
    assert folders.list_changes(usual, folders.origin()) == [
        f"{name} was not recorded and is {WORKING[name]}"
    ]


# --- C3: ends of a run ----------------------------------------------------------------------------


def test_hint_at_an_empty_replay_repeats_the_steps(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "0"))
    saves.drop(folder / "saves" / "000000030", "replay")
    with pytest.raises(RunError, match=r"qscape resume \S+ --steps 90 --empty-replay"):
        folders.choose_save(folder, steps=90)
    with pytest.raises(RunError, match=r"--steps 90 --save 30 --empty-replay"):
        folders.choose_save(folder, 30, steps=90)
    with pytest.raises(RunError, match=r"qscape resume \S+ --empty-replay( --trust)?\.$"):
        folders.choose_save(folder)


class Training:
    """What `StopOnSignal` knows of a session."""

    over = False

    def __init__(self):
        self.stops = 0

    def stop(self):
        self.stops += 1


@pytest.mark.parametrize("last", [False, True])
def test_second_interrupt_ends_at_once_before_the_save_and_does_nothing_after_it(last):
    # A shell that starts a test run in its background has it ignore interrupts.
    found, before = signal.getsignal(signal.SIGINT), signal.default_int_handler
    signal.signal(signal.SIGINT, before)
    try:
        trainer = Training()
        with StopOnSignal(signal.SIGINT, last=last) as asked:
            asked.attach(trainer)
            signal.raise_signal(signal.SIGINT)
            trainer.over = True
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        assert (trainer.stops, asked.asked) == (1, True)
        if last:
            signal.raise_signal(signal.SIGINT)
        else:
            assert signal.getsignal(signal.SIGINT) is before
        signal.signal(signal.SIGINT, before)
        with pytest.raises(KeyboardInterrupt):
            interrupt_twice(last)
    finally:
        signal.signal(signal.SIGINT, found)


def interrupt_twice(last):
    """Interrupt a run that has not saved."""
    with StopOnSignal(signal.SIGINT, last=last) as asked:
        asked.attach(Training())
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_run_is_over_once_it_has_saved(tmp_path):
    model = qs.Model("td3", "tiny:Clock-v0", eval_every=0, **SMALL)
    assert model.save(tmp_path / "0")
    assert not model.trainer.over
    told = []
    model.learn(25, callback=lambda _, event: told.append((type(event).__name__, model.trainer.over)))
    assert ("Started", False) in told
    assert ("Ended", True) in told


def test_many_interrupts_leave_a_save_one_exit_status_and_no_noise(tmp_path):
    argv = ["td3", "--env", "tiny:Clock-v0", "--steps", 10**6, "--eval-every", 0, "--out", tmp_path / "runs"]
    process = tiny.start("train", *argv, *tiny.flags("td3", warmup=50), cwd=tmp_path)
    log, place = tmp_path / "runs" / "0" / "metrics.jsonl", tmp_path / "runs" / "0" / "saves"
    wait_until(lambda: log.is_file() and log.stat().st_size, process)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: saves.names(place), process)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    out, said = process.communicate()
    assert process.returncode == 130
    assert said in ("", "qscape: interrupted.\n")
    assert "Traceback" not in out
    assert len(saves.names(place)) == 1


def wait_until(true, process):
    """Wait until a function returns something true; a process that ends before is an error."""
    for _ in range(6_000):
        if true() or process.poll() is not None:
            break
        time.sleep(0.02)
    assert true(), process.communicate()


# --- C2: other physics of Playground --------------------------------------------------------------


@pytest.mark.parametrize("impl", ["warp", "Warp", "cpp", "", 3])
def test_physics_of_playground_other_than_those_of_jax_are_refused_truly(impl):
    with pytest.raises(UsageError, match="leave impl out, or say jax") as caught:
        playground.load("CheetahRun", {"impl": impl})
    assert caught.value.field == "env_args"


def test_physics_of_jax_are_asked_for_as_before(monkeypatch):
    asked = []
    monkeypatch.setattr(playground, "_config", asked.append)
    for args in ({}, {"impl": "jax"}):
        with pytest.raises(TypeError):  # this one is no configuration
            playground.load("CheetahRun", args)
    assert asked == ["CheetahRun"] * 2
