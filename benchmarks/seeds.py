"""Measure updates per second of several seeds in one vmapped program, counted over all seeds.

    python benchmarks/seeds.py             # on an accelerator: 1, 8 and 32 seeds, float32 and TF32
    python benchmarks/seeds.py --small     # the same in small, on a CPU: 1 and 2 seeds, float32

The script is made for accelerators: on a CPU, one process per seed is faster than one vmapped program. The
agents have the sizes of HalfCheetah-v5, batch size 256, and learn on a resident replay of random transitions,
in bursts of one compiled call. All contenders take turns. Then runs of one seed are measured whose
environments the host steps, beside the same in one program (environment steps per second, updates included).
The script prints medians over the turns. The raw seconds, and the bytes of each contender, go to
benchmarks/results/seeds.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from compiled import QScape, off_policy
from throughput import machine
from updates import CONTENDERS, SPEC, filled

from qscape.agents import build
from qscape.offpolicy.state import SEED_AXES
from qscape.run.programs import EMPTY
from qscape.run.seeds import SeedPrograms

AGENTS = ("td3", "sac", "td7", "td3+pave", "sac+savgo, K 32")
SMALL = ("td3", "sac", "td7", "td3+pave", "sac+savgo, K 8")
TASK, ENVS = "gymnax/Pendulum-v1", 16
TURNS, SECONDS = 5, 2.0


class Contender:
    """One agent with `seeds` seeds in one vmapped program."""

    def __init__(self, name: str, seeds: int, precision: str, seconds: float) -> None:
        agent: Any = build(*CONTENDERS[name]).on(SPEC)
        layout = agent.layout()
        self.programs, self.seeds, self.precision = SeedPrograms(agent, layout), seeds, precision
        self.key = jax.random.split(jax.random.key(0), seeds)
        state = jax.jit(jax.vmap(agent.init, out_axes=SEED_AXES))(self.key)
        storage, replay_state = jax.tree.map(
            lambda x: jnp.tile(x, (seeds, *[1] * jnp.ndim(x))), filled(agent, layout)
        )
        metrics = jnp.full((seeds, len(self.programs.metrics)), jnp.nan)
        self.carry = EMPTY._replace(
            state=jax.tree.map(jnp.copy, state), storage=storage, replay_state=replay_state, metrics=metrics
        )
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.carry))
        self.count = 4
        self.turn()
        self.count = max(4, int(seconds / self.turn() / seeds))

    def turn(self) -> float:
        """Run one burst; return seconds per update of a seed."""
        begun, count = time.perf_counter(), self.count
        with jax.default_matmul_precision(self.precision):
            carry = self.programs.learn(self.carry, np.int32(count), np.int32(0), self.key)
        self.carry = jax.block_until_ready(carry)
        return (time.perf_counter() - begun) / count / self.seeds


class Run:
    """A run of one seed, stepped by the host or in one program."""

    def __init__(self, recipe: str, loop: str, seconds: float) -> None:
        self.run = QScape(recipe, TASK, ENVS, off_policy(256, 1 / ENVS), loop=loop)
        self.count = 16 * ENVS
        self.turn()
        self.count = max(self.count, int(seconds / self.turn()))

    def turn(self) -> float:
        """Return seconds per environment step."""
        made = self.run.steps(self.count)
        return made["wall"] / made["steps"]


def play(contenders: dict[str, Any]) -> dict[str, list[float]]:
    """Give all contenders their turns."""
    turns = [{name: one.turn() for name, one in contenders.items()} for _ in range(TURNS)]
    return {name: [turn[name] for turn in turns] for name in contenders}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", nargs="+", choices=CONTENDERS, help="others than the usual five")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--small", action="store_true", help="in small, for a CPU")
    parser.add_argument("--updates-only", action="store_true", help="no runs, only updates in float32")
    options = parser.parse_args()
    agents, seconds = (SMALL, 0.5) if options.small else (AGENTS, SECONDS)
    agents = options.agents or agents
    counts = options.seeds or ([1, 2] if options.small else [1, 8, 32])
    device, about = jax.devices()[0], machine(int(os.environ.get("NPROC", os.cpu_count() or 1)))
    narrow = device.platform == "cpu" or options.updates_only
    precisions = ("float32",) if narrow else ("float32", "tensorfloat32")
    updates, size = {}, {}
    for name in agents:  # one agent at a time, since the replays of all may not fit into the memory
        made = {
            f"{name}, seeds {n}, {precision}": Contender(name, n, precision, seconds)
            for n in counts
            for precision in precisions
        }
        updates |= play(made)
        size |= {case: one.bytes for case, one in made.items()}
        for case in made:
            first, here = (statistics.median(updates[k]) for k in (next(iter(made)), case))
            size_mb = size[case] / 1e6
            print(
                f"{case:36} {1 / here:10,.0f} updates/s {first / here:6.2f} times the first {size_mb:,.0f} MB"
            )
    runs = {
        f"{name}, {loop}": Run(name, loop, seconds)
        for name in ("td3", "sac")
        if not options.updates_only
        for loop in ("host", "compiled")
    }
    steps = play(runs)
    for case, values in steps.items():
        print(f"{case:36} {1 / statistics.median(values):10,.0f} steps/s of {ENVS} x {TASK}")
    file = Path(__file__).parent / "results" / "seeds" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    memory = device.memory_stats() or {}
    report = {
        "command": shlex.join(["python", "benchmarks/seeds.py", *sys.argv[1:]]),
        "device": device.device_kind,
        "machine": about,
        "jax": jax.__version__,
        "peak bytes of the device": memory.get("peak_bytes_in_use"),
        "bytes": size,
        "seconds an update of a seed": updates,
        "seconds an environment step": steps,
    }
    file.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
