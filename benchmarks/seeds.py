"""Measure updates per second of several seeds in one vmapped program, counted over all seeds.

    python benchmarks/seeds.py             # on an accelerator: 1, 8 and 32 seeds, float32 and TF32
    python benchmarks/seeds.py --small     # the same in small, on a CPU: 1 and 2 seeds, float32
    python benchmarks/seeds.py --parts host brax   # steps of HalfCheetah-v5 by the host, and runs on brax/ant

The script is made for accelerators: on a CPU, one process per seed is faster than one vmapped program. The
agents have the sizes of HalfCheetah-v5, batch size 256, and learn on a resident replay of random transitions,
in bursts of one compiled call. All contenders take turns. Then runs of one seed are measured whose
environments the host steps, beside the same in one program (environment steps per second, updates included).
The part `host` steps HalfCheetah-v5 on the host: each step calls several programs, or one program calls the
environments (`run.drive`); seconds are the median between two steps, divided by the seeds.
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
from compiled import QScape, off_policy, on_policy
from throughput import machine
from updates import CONTENDERS, SPEC, filled

from qscape.agents import build
from qscape.offpolicy.state import SEED_AXES
from qscape.run.adapters import open_adapter
from qscape.run.engines import replay
from qscape.run.plan import Plan, prepare
from qscape.run.programs import EMPTY, Programs
from qscape.run.seeds import Seeds
from qscape.run.training import make_shared_session

AGENTS = ("td3", "sac", "td7", "td3+pave", "sac+savgo, K 32")
SMALL = ("td3", "sac", "td7", "td3+pave", "sac+savgo, K 8")
TASK, ENVS = "gymnax/Pendulum-v1", 16
CHEETAH, HOST = "HalfCheetah-v5", ("td3", "sac", "td7 without checkpoints", "td7")
BRAX = {
    "ppo, brax/ant, 2,048 environments": ("ppo", "brax/ant", 2048, on_policy(40_960, 8192, 4)),
    "td3, brax/ant, 128 environments, an update in 16 steps": (
        "td3",
        "brax/ant",
        128,
        off_policy(256, 1 / 16),
    ),
}
PARTS = ("updates", "programs", "host", "brax")
TURNS, SECONDS = 5, 2.0


def recipe_of(name: str) -> str:
    """Return the recipe of a contender."""
    return "td3+sale+lap+periodic+value_clip" if name == "td7 without checkpoints" else name


class Contender:
    """One agent with `seeds` seeds in one vmapped program."""

    def __init__(self, name: str, seeds: int, precision: str, seconds: float) -> None:
        agent: Any = build(*CONTENDERS[name]).on(SPEC)
        layout = agent.layout()
        self.programs, self.seeds, self.precision = (
            Programs(agent, layout, Seeds(range(seeds))),
            seeds,
            precision,
        )
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

    def __init__(self, seconds: float, *how: Any, **options: Any) -> None:
        self.run = QScape(*how, **options)
        self.count = 4096
        self.turn()
        self.count = max(self.count, int(seconds / self.turn()))

    def turn(self) -> float:
        """Return seconds per environment step."""
        made = self.run.steps(self.count)
        return made["wall"] / made["steps"]


class HostRun:
    """Off-policy runs of one or more seeds on HalfCheetah-v5, which the host steps."""

    def __init__(self, recipe: str, seeds: int, drives: bool, steps: int) -> None:
        plans = [
            prepare(Plan(recipe, CHEETAH, 10**9, seed=k, settings={"base": {"warmup": 300}}, eval_every=0))
            for k in range(seeds)
        ]
        agent, adapters = plans[0][1], [open_adapter(*one[:2]) for one in plans]
        self.run: Any = make_shared_session([plan for plan, *_ in plans], agent, adapters)
        self.drives, self.seeds, self.steps = drives, seeds, steps
        self.bursts = agent.schedule.learns_between_episodes
        self.times: list[float] = []
        adapter = self.run.engine.adapter
        self.step, adapter.step = adapter.step, self.timed
        self.train(3000 if self.bursts else 600)  # 250 updates are made before one program takes over
        assert (self.run.engine.driver is not None) == drives

    def train(self, until: int) -> None:
        replay.LONG = 0 if self.drives else 10**12
        for _ in self.run.events(until):
            pass

    def timed(self, action: np.ndarray) -> Any:
        self.times.append(time.perf_counter())
        return self.step(action)

    def turn(self) -> float:
        """Return seconds per environment step of a seed."""
        self.times.clear()
        begun = time.perf_counter()
        self.train(self.run.env_steps + self.steps)
        if self.bursts:  # an episode has 1,000 steps, and a turn one burst of updates
            return (time.perf_counter() - begun) / self.steps
        return float(np.median(np.diff(self.times))) / self.seeds


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
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:2])
    options = parser.parse_args()
    agents, seconds = (SMALL, 0.5) if options.small else (AGENTS, SECONDS)
    agents = options.agents or agents
    counts = options.seeds or ([1, 2] if options.small else [1, 8, 32])
    device, about = jax.devices()[0], machine(int(os.environ.get("NPROC", os.cpu_count() or 1)))
    precisions = ("float32",) if device.platform == "cpu" else ("float32", "tensorfloat32")
    updates, size = {}, {}
    for name in (
        agents if "updates" in options.parts else ()
    ):  # one agent at a time, since the replays of all may not fit into the memory
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
    steps: dict[str, list[float]] = {}
    if "programs" in options.parts:
        made = {
            f"{name}, {loop}": Run(seconds, name, TASK, ENVS, off_policy(256, 1 / ENVS), loop=loop)
            for name in ("td3", "sac")
            for loop in ("host", "compiled")
        }
        steps |= play(made)
    if "host" in options.parts:
        for name in (one for one in HOST if one in (options.agents or HOST)):
            made = {
                f"{name}, {CHEETAH}, seeds {n}, {kind}": HostRun(recipe_of(name), n, drives, 1000)
                for n in ([1] if name == "td7" else options.seeds or (1, 5))  # its bursts share no program
                for kind, drives in (("several programs a step", False), ("one program", True))
            }
            steps |= play(made)
    if "brax" in options.parts:
        made = {name: Run(seconds, *how) for name, how in BRAX.items()}
        steps |= play(made)
    for case, values in steps.items():
        print(f"{case:60} {1 / statistics.median(values):10,.0f} steps/s")
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
