"""What all areas share: processes, loops, reference runs and the checks after a fault."""

import contextlib
import io
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import tiny

from qscape.cli import main
from qscape.run import folder as folders
from qscape.run import saves, train

PATIENCE = 300  # seconds after which a command counts as hung
# Runs of a few hundred steps are driven as one program too if such a program is worth while from 60 steps on.
DRIVEN = (
    "import sys, qscape.run.engines.replay as r; r.LONG = 60; from qscape.cli import main; sys.exit(main())"
)


class Failed(Exception):
    """A promise that was broken. `command`: the command line that shows it."""

    def __init__(self, problem: str, command: Sequence[object] = ()) -> None:
        super().__init__(problem)
        self.command = shlex.join(["qscape", *map(str, command)]) if command else ""


class Skipped(Exception):
    """This machine does not allow the trial."""


class Done(NamedTuple):
    """A command that ended: its exit code, and what it printed."""

    code: int
    text: str


class Loop(NamedTuple):
    """A kind of loop: the arguments of `qscape train` without --seeds and --out, and how it is started."""

    argv: list[str]
    seeds: tuple[int, ...] = (0,)
    driven: bool = False

    def train(self, group: Path, seeds: Sequence[int]) -> list[str]:
        return ["train", *self.argv, "--seeds", *map(str, seeds), "--out", str(group)]


_PACE = ["--save-every", "40", "--eval-every", "100", "--eval-episodes", "2", "--log-every", "50"]
_TD3 = ["td3", "--env", "tiny:Clock-v0", *tiny.flags("td3", warmup=50), *_PACE]
_CARTPOLE = ["ppo", "--base.rollout", "64", "--base.actor-hidden", "16", "--base.critic-hidden", "16", *_PACE]


def loops(place: Path) -> dict[str, Loop]:
    """Return the kinds of loops by name; a dataset is written into `place`."""
    data = place / "clock.hdf5"
    if not data.exists():
        place.mkdir(parents=True, exist_ok=True)
        rng, n = np.random.default_rng(0), 200
        arrays = {
            "observations": rng.normal(size=(n, 3)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (n, 1)).astype(np.float32),
            "rewards": rng.normal(size=n),
            "terminals": np.arange(n) % 20 == 19,
            "timeouts": np.zeros(n, bool),
        }
        with h5py.File(data, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    offline = ["bc", "--dataset", str(data), "--env", "tiny:Clock-v0", *tiny.flags("bc"), *_PACE]
    return {
        "host": Loop([*_TD3, "--steps", "400"]),
        "driven": Loop([*_TD3, "--steps", "800"], driven=True),
        "compiled": Loop([*_CARTPOLE, "--env", "jax/CartPole-v1", "--envs", "4", "--steps", "2000"]),
        "seeds": Loop([*_TD3, "--steps", "300"], seeds=(0, 1)),
        "on-policy": Loop([*_CARTPOLE, "--env", "CartPole-v1", "--steps", "600", "--loop", "host"]),
        "offline": Loop([*offline, "--steps", "300"]),
    }


class Bench:
    """The reference runs, made when they are needed first.

    Args:
        place: a folder of its own, which stays for all trials.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.loops = loops(place)
        self.seconds: dict[str, float] = {}

    def whole(self, name: str) -> Path:
        """Return the group of the loop `name` that was trained without a fault."""
        group = self.place / name
        if name not in self.seconds:
            begun, loop = time.monotonic(), self.loops[name]
            done = wait(start(loop.train(group, loop.seeds), self.place, loop.driven))
            if done.code:
                raise Failed(f"the run without a fault ended with {done}", loop.train(group, loop.seeds))
            self.seconds[name] = time.monotonic() - begun
        return group

    def half(self) -> Path:
        """Return a run of the loop "host" that was interrupted at step 218."""
        place = self.place / "half" / "0"
        if not place.exists():
            plan = folders.read_plan(self.whole("host") / "0")
            list(train(plan, place, on_trainer=tiny.stop_at(217)))
        return place


def start(argv: Sequence[object], cwd: Path, driven: bool = False) -> subprocess.Popen[str]:
    """Start `qscape ARGV` in the folder `cwd`."""
    program = ["-c", DRIVEN] if driven else ["-m", "qscape"]
    pipe = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = [sys.executable, *program, *map(str, argv)]
    return subprocess.Popen(command, text=True, env=tiny.environment(), cwd=cwd, **pipe)


def wait(process: subprocess.Popen[str], patience: float = PATIENCE) -> Done:
    """Wait for the end of a process; one that hangs is killed, and has the exit code -9."""
    try:
        text, _ = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        text = process.communicate()[0] + "\nit hung and was killed"
    return Done(process.returncode, text)


class _Hung(BaseException):
    pass


def call(*argv: object) -> Done:
    """Run `qscape ARGV` in this process. An error that it does not handle is a traceback in its text."""

    def hang(*_: object) -> None:
        raise _Hung

    out = io.StringIO()
    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(PATIENCE)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                code: Any = main([*map(str, argv)])
            except SystemExit as exit:
                code = exit.code or 0
            except _Hung:
                code = -9
                print("it hung and was stopped")
            except Exception as problem:
                code = 1
                traceback.print_exception(problem, limit=-4)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Done(code, out.getvalue())


def check(done: Done, argv: Sequence[object], codes: Sequence[int] = (0, 1, 2)) -> None:
    """Raise Failed if a command printed a traceback, or ended with another code than these."""
    if "Traceback (most recent call last)" in done.text:
        raise Failed(f"a traceback: ...{done.text[-1500:]}", argv)
    if done.code not in codes:
        raise Failed(f"exit code {done.code}, not one of {[*codes]}: ...{done.text[-600:]}", argv)
    if done.code in (1, 2) and "qscape: " not in done.text and "different" not in done.text:
        raise Failed(f"exit code {done.code} without a sentence: ...{done.text[-600:]}", argv)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder but locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != folders.LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@contextlib.contextmanager
def untouched(place: Path, but: Path, argv: Sequence[object] = ()) -> Iterator[None]:
    """Check that files of `place` outside of the folder `but` are the same after the block."""

    def others() -> dict[str, bytes]:
        inside = str(but.relative_to(place))
        return {k: v for k, v in contents(place).items() if not k.startswith(inside)}

    before = others()
    yield
    if (after := others()) != before:
        changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        raise Failed(f"files outside of the run were touched: {changed}", argv)


def wait_until_free(group: Path) -> None:
    """Wait until no process holds a lock in a group: workers of a killed command save and end."""
    until = time.monotonic() + 60
    while any(folders.in_use(lock.parent) for lock in group.glob(f"*/{folders.LOCK}")):
        if time.monotonic() > until:
            raise Failed(f"a worker still holds {group} a minute after its parent died")
        time.sleep(0.1)


def next_command(loop: Loop, group: Path) -> list[str]:
    """Return the command that goes on with a group after a fault; [] if all of its runs have finished."""
    missing = [seed for seed in loop.seeds if not (group / str(seed) / folders.RECORD).exists()]
    if missing:
        return loop.train(group, missing)
    places = [group / str(seed) for seed in loop.seeds]
    left = [place for place in places if folders.unfinished(place)]
    return ["resume", str(group if len(left) > 1 else left[0]), "--trust"] if left else []


def go_on(loop: Loop, group: Path, cwd: Path) -> subprocess.Popen[str] | None:
    """Start the command that goes on with a group; None if it has finished."""
    argv = next_command(loop, group)
    return start(argv, cwd, loop.driven) if argv else None


def finish(bench: Bench, name: str, group: Path, cwd: Path) -> None:
    """Go on with a group to its end, and compare it to the bit with the runs without a fault.

    Raises:
        Failed: a command failed, a run began again although it had saved, or a number differs.
    """
    loop, whole = bench.loops[name], bench.whole(name)
    wait_until_free(group)
    while argv := next_command(loop, group):
        saved = any(saves.names(group / str(seed) / folders.SAVES) for seed in loop.seeds)
        done = wait(start(argv, cwd, loop.driven))
        check(done, argv, codes=(0,))
        if saved and len(loop.seeds) == 1 and "starts again" in done.text:
            raise Failed("a run that had saved was started again", argv)
    for seed in loop.seeds:
        try:
            tiny.assert_same_run(group / str(seed), whole / str(seed))
        except AssertionError as problem:
            raise Failed(
                f"{group / str(seed)} differs from {whole / str(seed)}: {str(problem)[:600]}"
            ) from None


def newest(group: Path) -> int:
    """Return the step of the newest save in a group; -1 without one."""
    return max((int(n) for p in group.glob("*/saves") for n in saves.names(p)), default=-1)


def wait_for_moment(rng: random.Random, process: subprocess.Popen[str], group: Path, seconds: float) -> None:
    """Wait until a random moment of a run: of its whole time, or soon after one of its saves."""
    until = time.monotonic() + rng.uniform(0, 1.1 * seconds)
    after = newest(group) + rng.randint(1, 300) if rng.random() < 0.6 else None
    until += PATIENCE / 3 if after else 0
    while process.poll() is None and time.monotonic() < until:
        if after and newest(group) >= after:
            time.sleep(rng.uniform(0, 0.05))
            return
        time.sleep(0.002)


def set_up() -> None:
    """Set up this process as the tests are: one thread, a cache of programs, the tests on the path."""
    os.environ["NPROC"] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    cache = Path(tempfile.gettempdir()) / "qscape-faults-cache"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
