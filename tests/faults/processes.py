"""Faults of processes: kills, signals, limits, full disks, and several processes on one folder."""

import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.trial import (
    Bench,
    Failed,
    Skipped,
    check,
    finish,
    go_on,
    start,
    untouched,
    wait,
    wait_for_moment,
    wait_until_free,
)
from qscape.run import folder as folders


def kills(rng: random.Random, place: Path, bench: Bench) -> str:
    """`kill -9` at one to three random moments, then resume: equal to the bit."""
    name, group = rng.choice([*bench.loops]), place / "run"
    bench.whole(name)
    with untouched(place, group):
        for _ in range(rng.randint(1, 3)):
            process = go_on(bench.loops[name], group, place)
            if process is None:
                break
            wait_for_moment(rng, process, group, bench.seconds[name])
            process.kill()
            wait(process)
            wait_until_free(group)
        finish(bench, name, group, place)
    return name


def signals(rng: random.Random, place: Path, bench: Bench) -> str:
    """SIGINT, SIGTERM or SIGHUP at a random moment: a save and exit code 130, then equal to the bit."""
    name, group = rng.choice([*bench.loops]), place / "run"
    bench.whole(name)
    number = rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    loop = bench.loops[name]
    with untouched(place, group):
        process = start(loop.train(group, loop.seeds), place, loop.driven)
        wait_for_moment(rng, process, group, bench.seconds[name])
        begun = (group / str(loop.seeds[0]) / folders.RECORD).exists()
        process.send_signal(number)
        done = wait(process)
        if begun:  # before, Python itself may print a traceback
            check(done, loop.train(group, loop.seeds), codes=(0, 130, -number))
        if begun and done.code == -number:
            raise Failed(f"{number.name} ended a run without a save", loop.train(group, loop.seeds))
        finish(bench, name, group, place)
    return f"{name} {number.name}"


def limits(rng: random.Random, place: Path, bench: Bench) -> str:
    """A limit of the size of files, of open files, or of processor seconds."""
    name, group = rng.choice([*bench.loops]), place / "run"
    loop = bench.loops[name]
    bench.whole(name)
    if not hasattr(resource, "prlimit"):
        raise Skipped("limits of another process are not known here")
    kind, value = rng.choice(
        [
            ("RLIMIT_FSIZE", rng.randint(1, 400) * 1024),
            ("RLIMIT_NOFILE", rng.randint(30, 80)),
            ("RLIMIT_CPU", rng.randint(3, 20)),
        ]
    )
    with untouched(place, group):
        process = start(loop.train(group, loop.seeds), place, loop.driven)
        resource.prlimit(process.pid, getattr(resource, kind), (value, value))
        done = wait(process)
        killed = (-signal.SIGXCPU, -signal.SIGKILL) if kind == "RLIMIT_CPU" else ()
        check(done, [f"# {kind}={value}", *loop.train(group, loop.seeds)], codes=(0, 1, 2, 130, *killed))
        finish(bench, name, group, place)
    return f"{name} {kind}={value}"


@contextmanager
def _small_disk(place: Path, size: int) -> Iterator[Path]:
    disk = place / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise Skipped("no right to mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def full_disks(rng: random.Random, place: Path, bench: Bench) -> str:
    """A disk that gets full at a random moment, and is made larger."""
    name = rng.choice([*bench.loops])
    loop, whole = bench.loops[name], bench.whole(name)
    used = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) // 1024
    size = rng.randint(8, max(16, int(1.2 * used)))
    with _small_disk(place, size) as disk, untouched(place, disk):
        argv = loop.train(disk / "run", loop.seeds)
        done = wait(start(argv, place, loop.driven))
        check(done, [f"# on a disk of {size} KiB", *argv])
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        finish(bench, name, disk / "run", place)
    return f"{name} on {size} KiB of {used}"


def concurrency(rng: random.Random, place: Path, bench: Bench) -> str:
    """Other commands on the folder of a run at work: it ends as if it were alone."""
    name, group = rng.choice([*bench.loops]), place / "run"
    loop = bench.loops[name]
    bench.whole(name)
    argv = loop.train(group, loop.seeds)
    one = group / str(loop.seeds[0])
    others = [
        argv,
        ["resume", group, "--trust"],
        ["resume", one, "--steps", "1", "--trust"],
        ["evaluate", one, "--episodes", "1", "--trust"],
        ["compare", group],
        ["watch", group, "--once"],
        ["reproduce", one, "--out", "elsewhere", "--trust"],
    ]
    first = start(argv, place, loop.driven)
    if rng.random() < 0.7:
        wait_for_moment(rng, first, group, bench.seconds[name])
    chosen = rng.sample(others, 2)
    running = [(other, start(other, place, loop.driven)) for other in chosen]
    for other, process in running:
        check(wait(process), other)
    done = wait(first)
    check(done, argv)
    if done.code and argv not in chosen:
        raise Failed(f"another command ended a run: ...{done.text[-600:]}", argv)
    shutil.rmtree(place / "elsewhere", ignore_errors=True)
    finish(bench, name, group, place)
    return f"{name} with {' and '.join(other[0] for other in chosen)}"
