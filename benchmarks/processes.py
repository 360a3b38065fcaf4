"""Measure what a second process gains: one process on one core against two on one core each.

    python benchmarks/processes.py
    python benchmarks/processes.py ppo --rounds 1 --steps 8192        # a quick test
    python benchmarks/processes.py --communication                    # computes, measures nothing

Each process has as many environments and rows of a batch in both arms, so two processes make twice the steps
with as many updates: 2 is the most that can be gained. Every process has one XLA thread and one core
(`taskset`), 0 and 1 unless --cores says otherwise; nothing else may use them.

A round gives each arm one run of `qscape train`, the arms in turn first. A rate is the steps of a run by the
time of its log lines, without the first third of them: there programs are compiled, and chunks find their
length. Every run, with the load of other processes during it, goes to benchmarks/results/processes.

`--communication` prints the bytes that processes send each other for an update, and the time that it takes
by a formula: a ring sums n arrays in 2 (n - 1) messages, in which every process sends 2 (n - 1) / n of the
bytes.
"""

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import jax
from throughput import QUIET, busy_seconds, machine

from qscape.agents import build
from qscape.types import Spec

RESULTS = Path(__file__).resolve().parent / "results" / "processes"
ENVS, ROWS = 128, 4_096  # of a process
RUNS = {
    "fast_td3": ["--env", "brax/inverted_pendulum", "--base.warmup", "10"],
    "ppo": ["--env", "brax/inverted_pendulum", "--base.passes", "4"],
}
ARMS = {"one process": 1, "two processes": 2}
NEVER = str(10**9)
HOSTS = 2, 8, 64
NETWORKS = {"10 Gbit/s": (1.25e9, 50e-6), "100 Gbit/s": (12.5e9, 10e-6)}  # bytes and seconds of a message


def command(recipe: str, count: int, steps: int, envs: int, rows: int, out: Path) -> list[str]:
    """Return the command of a run over so many processes, without that of the place of each."""
    lines = str(steps * count // 30)
    sizes = ["--envs", str(envs * count), "--base.batch-size", str(rows * count)]
    if recipe == "ppo":
        sizes += ["--base.rollout", str(4 * rows * count)]
    pace = ["--eval-every", "0", "--save-every", NEVER, "--log-every", lines, "--steps", str(steps * count)]
    return ["-m", "qscape", "train", recipe, *RUNS[recipe], *sizes, *pace, "--out", str(out), "--quiet"]


def take_turn(recipe: str, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Make one run over so many processes, each on a core of its own, and return its rate."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        given = command(recipe, count, options.steps, options.envs, options.rows, Path(folder))
        environment = {**os.environ, "NPROC": "1", "JAX_PLATFORMS": "cpu"}
        busy, begun = busy_seconds(), time.perf_counter()
        usage = os.times()
        started = []
        for k, core in enumerate(options.cores[:count]):
            place = ["--processes", f"127.0.0.1:{port},{count},{k}"] if count > 1 else []
            pinned = ["taskset", "--cpu-list", str(core), sys.executable, *given, *place]
            started.append(subprocess.Popen(pinned, env=environment))
        if any(process.wait() for process in started):
            raise SystemExit(f"{recipe} over {count} processes failed")
        took, now, own = time.perf_counter() - begun, busy_seconds(), os.times()
        lines = (Path(folder) / "0" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    used = own.children_user + own.children_system - usage.children_user - usage.children_system
    others = None if busy is None or now is None else max(0.0, now - busy - used) / took
    counted = rows[len(rows) // 3 :]
    at = [row["step"] for row in [rows[len(rows) // 3 - 1], *counted]]
    made = [after - before for before, after in itertools.pairwise(at)]
    seconds = sum(n / row["steps_per_second"] for n, row in zip(made, counted, strict=True))
    rate = sum(made) / seconds
    return {"steps": sum(made), "seconds": seconds, "steps_per_second": rate, "cores_used_by_others": others}


def measure(recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return all turns of one recipe, and the ratio of the arms in each round."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for number in range(options.rounds):
        for name in [*ARMS][:: 1 if number % 2 == 0 else -1]:
            turns[name].append(take_turn(recipe, ARMS[name], options))
            print(f"{recipe}, {name}: {turns[name][-1]['steps_per_second']:,.0f} steps/s", flush=True)
    one, two = ([turn["steps_per_second"] for turn in made] for made in turns.values())
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    print(f"{recipe}: two processes make {statistics.median(ratios):.2f} times the steps of one")
    disturbed = sum((t["cores_used_by_others"] or 0) > QUIET for made in turns.values() for t in made)
    if disturbed:
        print(f"  disturbed turns: {disturbed} of {2 * options.rounds}")
    return {"recipe": recipe, "ratio": statistics.median(ratios), "ratios": ratios, "turns": turns}


def count_bytes(recipe: str, spec: Spec, rows: int) -> float:
    """Return the bytes that are summed over all processes for an update; of PPO for one minibatch."""
    given: dict[str, Any] = {"batch_size": rows} | ({"rollout": 4 * rows} if recipe == "ppo" else {})
    agent: Any = build(recipe, {"base": given}).on(spec)

    def size(tree: Any) -> int:
        return sum(4 * prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    if recipe == "ppo":
        state = jax.eval_shape(partial(agent.init, envs=1), jax.random.key(0))
        # The rollout is gathered, which costs half of a sum, once for all of its minibatches.
        gathered = 4 * rows * (spec.observation_size + spec.action_size + 5)
        return size(state.networks) + gathered / 2 / agent.base.passes
    state = jax.eval_shape(agent.init, jax.random.key(0))
    read = 4 * rows * agent.layout(1).width
    return size(state.critics) + size(state.actor) / agent.base.policy_delay + read


def compute_communication() -> None:
    """Print a table of bytes and times of an update."""
    spec = Spec(17, 6, None, -jax.numpy.ones(6), jax.numpy.ones(6))  # of HalfCheetah-v5
    head = [f"{hosts} processes, {name}" for hosts in HOSTS for name in NETWORKS]
    print("recipe | rows of a batch | MB summed | " + " | ".join(f"ms, {name}" for name in head))
    for recipe, rows in (("fast_td3", 32_768), ("ppo", 32_768)):
        size = count_bytes(recipe, spec, rows)
        times = [
            1e3 * (2 * (hosts - 1) * latency + 2 * (hosts - 1) / hosts * size / speed)
            for hosts in HOSTS
            for speed, latency in NETWORKS.values()
        ]
        print(f"{recipe} | {rows:,} | {size / 1e6:.1f} | " + " | ".join(f"{ms:.1f}" for ms in times))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=[*RUNS], metavar="RECIPE")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=131_072, help="of each process")
    parser.add_argument("--envs", type=int, default=ENVS, help="of each process")
    parser.add_argument("--rows", type=int, default=ROWS, help="of a batch, for each process")
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1))
    parser.add_argument("--communication", action="store_true", help="compute it, and measure nothing")
    options = parser.parse_args()
    if options.communication:
        compute_communication()
        return
    about: dict[str, Any] = {"command": ["benchmarks/processes.py", *sys.argv[1:]], "task": vars(options)}
    about["machine"] = machine(1)
    about["cases"] = [measure(recipe, options) for recipe in options.recipes]
    about["machine"]["load_after"] = os.getloadavg()
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(about, indent=1) + "\n")
    print(f"raw data: {file}")


if __name__ == "__main__":
    main()
