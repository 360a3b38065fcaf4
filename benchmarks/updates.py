"""Measure the cost of one update of each method beside its base: time, FLOPs and GFLOP/s.

    NPROC=1 python benchmarks/updates.py [NAME ...]

The sizes are those of HalfCheetah-v5 (17 observations, 6 actions): batch size 256, networks 256-256, random
transitions. All contenders take turns, one block of updates each, so that a disturbance affects all of
them. The script prints medians over the turns and writes the raw seconds to benchmarks/results/updates.
FLOPs are XLA's count of an update with the actor's step. XLA counts the body of a loop once, so the count
for SAVGO, which processes its candidates in blocks, does not contain all of them.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qscape.agents import build
from qscape.replay.storage import Rows
from qscape.types import Spec

SPEC = Spec(17, 6)
ROWS, BLOCK, TURNS = 4096, 12, 7  # 12 updates: the same number of actor steps in each block
SILU = {"actor_activation": "silu", "critic_activation": "silu"}
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "td3": ("td3", {}),
    "td3, silu": ("td3", {"base": SILU}),
    "td3+caps": ("td3+caps", {}),
    "td3+grad": ("td3+grad", {}),
    "td3+asap": ("td3+asap", {}),
    "td3+pave": ("td3+pave", {}),
    "td3+pave, fraction 0.25": ("td3+pave", {"pave": {"fraction": 0.25}}),
    "td3+savo": ("td3+savo", {}),
    "td7": ("td3+sale+lap+periodic+value_clip", {}),
    "td7+pave": ("td3+sale+lap+periodic+value_clip+pave", {}),
    "sac": ("sac", {}),
    "sac+savgo, K 8": ("sac+savgo", {"savgo": {"candidates": 8}}),
    "sac+savgo, K 32": ("sac+savgo", {"savgo": {"candidates": 32}}),
    "sac+savgo, K 32, kernel batch 64": ("sac+savgo", {"savgo": {"candidates": 32, "kernel_batch": 64}}),
    "sac+savgo, K 32, policy delay 4": (
        "sac+savgo",
        {"savgo": {"candidates": 32}, "base": {"policy_delay": 4}},
    ),
    "sac+savgo, K 128": ("sac+savgo", {}),
    "sac+savgo, K 128, kernel batch 64": ("sac+savgo", {"savgo": {"kernel_batch": 64}}),
}


class Contender:
    """Runs updates of one agent on a resident replay, in blocks of one compiled call."""

    def __init__(self, recipe: str, settings: dict[str, Any]) -> None:
        agent = build(recipe, settings).on(SPEC)
        layout = agent.layout()
        self.key = jax.random.key(1)
        self.storage, index = filled(agent, layout)
        self.moved = jax.tree.map(jnp.copy, (agent.init(jax.random.key(0)), index))

        def update(moved: Any, rows: Any, key: Any) -> Any:
            return agent.update(layout, moved[0], rows, moved[1], key)[:2]

        @partial(jax.jit, donate_argnums=0)
        def block(moved: Any, rows: Any, key: Any) -> Any:
            return jax.lax.fori_loop(0, BLOCK, lambda _, moved: update(moved, rows, key), moved)

        self.block: Callable[..., Any] = block
        cost: Any = jax.jit(update).lower(self.moved, self.storage, self.key).compile().cost_analysis()
        self.gflop = cost["flops"] / 1e9
        self.turn()

    def turn(self) -> float:
        """Run one block; return seconds per update."""
        begun = time.perf_counter()
        self.moved = jax.block_until_ready(self.block(self.moved, self.storage, self.key))
        return (time.perf_counter() - begun) / BLOCK


def filled(agent: Any, layout: Any) -> Any:
    """Fill a replay with `ROWS` random transitions."""
    random = np.random.default_rng(0)
    shapes = {"observation": 17, "action": 6, "next_observation": 17}
    draws = {k: random.normal(size=(ROWS, 1, n)).clip(-1, 1).astype(np.float32) for k, n in shapes.items()}
    columns = {k: random.uniform(-1, 1, (ROWS, 1, *s)).astype(np.float32) for k, s in layout.columns}
    never = np.zeros((ROWS, 1), bool)
    reward = random.normal(size=(ROWS, 1)).astype(np.float32)
    new = Rows(
        draws["observation"], draws["action"], reward, never, never, draws["next_observation"], columns
    )

    def insert(replay: Any, one: Rows) -> tuple[Any, None]:
        return agent.replay.insert(layout, *replay, one, jnp.array([True])), None

    return jax.jit(lambda replay: jax.lax.scan(insert, replay, new)[0])(agent.replay.init(layout))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of: {'; '.join(CONTENDERS)} (default: all)"
    )
    asked = parser.parse_args().names
    if unknown := {*asked} - {*CONTENDERS}:
        parser.error(f"there is no contender {', '.join(sorted(unknown))}")
    names = [name for name in CONTENDERS if not asked or name in asked]
    load = os.getloadavg()
    contenders = {name: Contender(*CONTENDERS[name]) for name in names}
    turns = [{name: one.turn() for name, one in contenders.items()} for _ in range(TURNS)]
    seconds = {name: [turn[name] for turn in turns] for name in names}
    ms = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    print(f"{'':36}{'ms':>8}{'GFLOP':>8}{'GFLOP/s':>9}{'x base':>8}")
    for name, one in contenders.items():
        base = name.split("+")[0].split(",")[0]
        ratio = f"{ms[name] / ms[base]:8.2f}" if base in ms else ""
        print(f"{name:36}{ms[name]:8.2f}{one.gflop:8.2f}{1e3 * one.gflop / ms[name]:9.0f}{ratio}")
    place = Path(__file__).parent / "results" / "updates"
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    about = {
        "command": " ".join(["python", "benchmarks/updates.py", *sys.argv[1:]]),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "NPROC": os.environ.get("NPROC"),
        "load before": load,
        "jax": jax.__version__,
    }
    gflop = {name: one.gflop for name, one in contenders.items()}
    file.write_text(json.dumps({**about, "gflop": gflop, "seconds an update": seconds}, indent=1) + "\n")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
