"""Measure updates per second of several seeds in one vmapped program, counted over all seeds.

    python benchmarks/seeds.py --seeds 1 8 32

The script is made for accelerators. On a CPU, one process per seed is faster than one vmapped program. The
agents are TD3 and TD7 (without checkpoints) with the sizes of HalfCheetah-v5, batch size 256, on a resident
replay of random transitions, in bursts of one compiled call. All contenders take turns, and the script
prints medians over the turns. The raw seconds go to benchmarks/results/seeds.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from updates import CONTENDERS, SPEC, filled

from qscape.agents import build
from qscape.offpolicy.state import SEED_AXES
from qscape.run.programs import EMPTY
from qscape.run.seeds import SeedPrograms

RECIPES, TURNS, SECONDS = ("td3", "td7"), 5, 2.0


class Contender:
    """One agent with `seeds` seeds in one vmapped program."""

    def __init__(self, name: str, seeds: int) -> None:
        agent: Any = build(*CONTENDERS[name]).on(SPEC)
        layout = agent.layout()
        self.programs, self.seeds = SeedPrograms(agent, layout), seeds
        self.key = jax.random.split(jax.random.key(0), seeds)
        state = jax.jit(jax.vmap(agent.init, out_axes=SEED_AXES))(self.key)
        storage, replay_state = jax.tree.map(
            lambda x: jnp.tile(x, (seeds, *[1] * jnp.ndim(x))), filled(agent, layout)
        )
        metrics = jnp.full((seeds, len(self.programs.metrics)), jnp.nan)
        self.carry = EMPTY._replace(
            state=jax.tree.map(jnp.copy, state), storage=storage, replay_state=replay_state, metrics=metrics
        )
        self.count = 10
        self.turn()
        self.count = max(10, int(SECONDS / self.turn() * seeds))

    def turn(self) -> float:
        """Run one burst; return seconds per update and seed."""
        begun, count = time.perf_counter(), self.count
        carry = self.programs.learn(self.carry, np.int32(count), np.int32(0), self.key)
        self.carry = jax.block_until_ready(carry)
        return (time.perf_counter() - begun) / count / self.seeds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 8, 32])
    counts, load = parser.parse_args().seeds, os.getloadavg()
    contenders = {f"{name}, {n} seeds": Contender(name, n) for name in RECIPES for n in counts}
    turns = [{name: one.turn() for name, one in contenders.items()} for _ in range(TURNS)]
    seconds = {name: [turn[name] for turn in turns] for name in contenders}
    for name, values in seconds.items():
        first = seconds[f"{name.split(',')[0]}, {counts[0]} seeds"]
        rate, gain = 1 / statistics.median(values), statistics.median(first) / statistics.median(values)
        print(f"{name:16} {rate:10,.0f} updates/s   {gain:5.2f} times {counts[0]} seeds")
    file = Path(__file__).parent / "results" / "seeds" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "command": f"python benchmarks/seeds.py --seeds {' '.join(map(str, counts))}",
        "device": jax.devices()[0].device_kind,
        "NPROC": os.environ.get("NPROC"),
        "load before": load,
        "jax": jax.__version__,
    }
    file.write_text(json.dumps({**about, "seconds an update of a seed": seconds}, indent=1) + "\n")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
