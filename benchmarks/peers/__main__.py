"""One contender in a process of its own: `python -m peers NAME`, a line of JSON in, a line out.

It waits on a blocking pipe between its turns, so that an idle contender takes no processor time.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from typing import Any

from peers import MODULES

PACKAGES = (
    "torch",
    "stable-baselines3",
    "sbx-rl",
    "rl-blox",
    "flax",
    "jax",
    "equinox",
    "optax",
    "gymnasium",
    "mujoco",
    "numpy",
    "qscape",
)
TRIAL = 60  # steps from which the harness learns the contender's speed


def versions() -> dict[str, str]:
    """The installed packages that matter to a measurement, and the interpreter."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Build the contender, say that it is ready, then answer {"steps": n, "limit": seconds} with a turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=list(MODULES))
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the answers

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        started = time.perf_counter()
        contender = importlib.import_module(f"peers.{MODULES[arguments.name]}").build(arguments.name)
        built = time.perf_counter()
        contender.advance(contender.block)  # compiles; an even block holds both kinds of update
        first_update = time.perf_counter()
        contender.settle()
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        return answer(error=f"{type(error).__name__}: {error}".splitlines()[0], missing=missing)

    def turn(steps: int, limit: float) -> dict[str, Any]:
        """Make the steps, or as many tenths of them as fit into the limit (in seconds).

        A tenth before them is not counted: caches and pages of a process that has slept are cold.
        """
        block, asleep = contender.block, time.process_time()
        chunk = -(-steps // (10 * block)) * block
        contender.advance(chunk)
        before, cpu, clock = contender.updates(), time.process_time(), time.perf_counter()
        made, seconds = 0, 0.0
        while made < steps and seconds < limit:
            contender.advance(min(chunk, steps - made))
            made += min(chunk, steps - made)
            seconds = time.perf_counter() - clock
        return {
            "steps": made,
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu,
            "warm_cpu_seconds": cpu - asleep,
            "updates": contender.updates() - before,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    answer(
        build_seconds=built - started,
        first_updates_seconds=first_update - built,
        block=contender.block,
        every=contender.every,
        trial=turn(-(-TRIAL // contender.block) * contender.block, limit=2.0),
        versions=versions(),
    )
    for line in sys.stdin:
        answer(**turn(**json.loads(line)))


main()
