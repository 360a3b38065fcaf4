"""A long run: memory, descriptors and threads do not grow."""

import os
import random
import signal
import time
from pathlib import Path
from typing import NamedTuple

import tiny

from faults.trial import Bench, Failed, Skipped, check, newest, start, untouched, wait

SECONDS = 40.0
GROWTH = 30  # MiB in the second half of a run


class _Use(NamedTuple):
    memory: float
    descriptors: int
    threads: int


def _use(process: int) -> _Use:
    proc = Path("/proc") / str(process)
    pages = int((proc / "statm").read_text().split()[1])
    return _Use(
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        len(os.listdir(proc / "fd")),
        len(os.listdir(proc / "task")),
    )


def soak(rng: random.Random, place: Path, bench: Bench) -> str:
    """A run that saves, logs and evaluates all the time uses no more at its end than in its middle."""
    if not Path("/proc/self/statm").exists():
        raise Skipped("the memory of a process is not known here")
    name = rng.choice(["td3", "td7"])
    argv = ["train", name, "--env", "tiny:Clock-v0", "--steps", "10000000", *tiny.flags(name, warmup=50)]
    argv += [
        "--eval-episodes",
        "2",
        "--save-every",
        "50",
        "--log-every",
        "20",
        "--eval-every",
        "50",
        "--milestones",
        "1",
        "--out",
    ]
    argv += [str(place / "run")]
    with untouched(place, place / "run", argv):
        process = start(argv, place)
        while newest(place / "run") < 500 and process.poll() is None:
            time.sleep(0.1)
        if process.poll() is not None:
            raise Failed(f"it ended: {wait(process)}", argv)
        time.sleep(SECONDS / 2)
        middle = _use(process.pid)
        time.sleep(SECONDS / 2)
        end = _use(process.pid)
        process.send_signal(signal.SIGINT)
        check(wait(process), argv, codes=(130,))
    grown = _Use(*(b - a for a, b in zip(middle, end, strict=True)))
    if grown.memory > GROWTH or grown.descriptors > 3 or grown.threads > 0:
        raise Failed(f"grown in {SECONDS / 2:.0f} s: {grown}", argv)
    return f"{name}: {grown.memory:+.1f} MiB, {newest(place / 'run')} steps"
