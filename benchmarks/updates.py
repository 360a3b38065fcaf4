"""Measure the cost of one update of each method beside its base: time, products, and share of the peak.

    NPROC=1 python benchmarks/updates.py [NAME ...]
    python benchmarks/updates.py --count        # operations alone, without timing

The sizes are those of HalfCheetah-v5 (17 observations, 6 actions): batch size 256, networks 256-256, random
transitions. All contenders take turns, one block of updates each, so that a disturbance affects all of
them. The script prints medians over the turns and writes the raw seconds to benchmarks/results/updates.
GFLOP are those of the matrix products, counted in the traced program: bodies of loops as often as they run,
a delayed actor step in its share of the updates. `--count` writes this count and XLA's own of all operations,
both of an update with the actor's step, to results/update_counts.json. XLA computes less where only a
part of a product is read, counts what is no product, and counts the body of a loop once. The peak is the
fastest product of float32 matrices that the same process finds on the same number of threads, in turns with
the contenders.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from throughput import machine

from qscape.agents import build
from qscape.types import Spec, Transition

SPEC = Spec(17, 6, time_limit=1_000)
ROWS, BLOCK, TURNS = 4096, 12, 7  # 12 updates: the same number of actor steps in each block, or a multiple
WIDE = {"actor_hidden": (256, 256, 256), "critic_hidden": (512, 512, 512, 512, 512)}
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
    "td3+rip": ("td3+rip", {}),
    "td3+sale": ("td3+sale", {}),
    "td3+lap": ("td3+lap", {}),
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
    "sac+c51": ("sac+c51", {}),
    "sac+hl_gauss": ("sac+hl_gauss", {}),
    "tqc": ("tqc", {}),
    "crossq": ("crossq", {}),
    "simba": ("simba", {}),
    "simbav2": ("simbav2", {"base": {"schedule_updates": 100_000}}),
    "xqc": ("xqc", {"base": {"schedule_updates": 100_000}}),
    "bro": ("bro", {}),
    # What BRO's time goes into: its critics without quantiles, and plain layers as wide and deep as its own.
    "bro, one value": ("sac+bronet+mean_target", {"base": {"batch_size": 128}}),
    "sac, as wide as bro, batch 128": ("sac", {"base": WIDE | {"batch_size": 128}}),
    "sac, as wide as bro": ("sac", {"base": WIDE}),
    "redq": ("redq", {}),
    "droq": ("droq", {}),
    "crossq_wn": ("crossq_wn", {}),
    "fast_td3, batch 256": ("fast_td3", {"base": {"batch_size": 256}}),
    "fast_sac, batch 256": ("fast_sac", {"base": {"batch_size": 256}}),
}
PEAK = ((256, 256, 256), (512, 512, 512), (256, 512, 2048), (1024, 1024, 1024))  # sizes of products


class Contender:
    """Runs updates of one agent on a resident replay, in blocks of one compiled call."""

    def __init__(self, recipe: str, settings: dict[str, Any]) -> None:
        agent = build(recipe, settings).on(SPEC)
        layout, update = agent.layout(), update_of(agent)
        self.key = jax.random.key(1)
        self.storage, index = filled(agent, layout)
        self.moved = jax.tree.map(jnp.copy, (agent.init(jax.random.key(0)), index))
        self.updates = math.lcm(BLOCK, agent.base.policy_delay)

        @partial(jax.jit, donate_argnums=0)
        def block(moved: Any, rows: Any, key: Any) -> Any:
            return jax.lax.fori_loop(0, self.updates, lambda _, moved: update(moved, rows, key), moved)

        self.block: Callable[..., Any] = block
        arguments = self.moved, self.storage, self.key
        self.gflop = products(update, *arguments, taken=1 / agent.base.policy_delay) / 1e9
        self.turn()

    def turn(self) -> float:
        """Run one block; return seconds per update."""
        begun = time.perf_counter()
        self.moved = jax.block_until_ready(self.block(self.moved, self.storage, self.key))
        return (time.perf_counter() - begun) / self.updates


def update_of(agent: Any) -> Callable[..., Any]:
    """Return an agent's update as a function of state and replay index, rows and key."""
    layout = agent.layout()
    return lambda moved, rows, key: agent.update(layout, moved[0], rows, moved[1], key)[:2]


def count(recipe: str, settings: dict[str, Any]) -> dict[str, float]:
    """Count the GFLOP of an update with the actor's step: of its products, and of all operations by XLA."""
    agent = build(recipe, settings).on(SPEC)
    key = jax.random.key(0)
    rows, index = jax.eval_shape(partial(agent.init_replay, agent.layout()))
    arguments = (jax.eval_shape(agent.init, key), index), rows, key
    quick = {"xla_backend_optimization_level": 0}  # of the machine's code, not of the program
    compiled = jax.jit(update_of(agent)).lower(*arguments).compile(compiler_options=quick)
    return {
        "products": products(update_of(agent), *arguments) / 1e9,
        "XLA": compiled.cost_analysis()["flops"] / 1e9,
    }


def products(program: Callable[..., Any], *arguments: Any, taken: float = 1.0) -> float:
    """Count the floating-point operations of the products in a program, in loops as often as they run.

    Args:
        program: a function to trace, with arguments for it. What its results do not need is not counted.
        taken: the share of calls in which a conditional takes its dearer branch.
    """
    jaxpr = jax.make_jaxpr(program)(*arguments).jaxpr
    return _products(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0], taken)


def _products(jaxpr: Any, taken: float) -> float:
    total = 0.0
    for one in jaxpr.eqns:
        if one.primitive.name == "dot_general":
            (summed, _), _ = one.params["dimension_numbers"]
            inner = np.prod([one.invars[0].aval.shape[axis] for axis in summed])
            total += 2.0 * inner * np.prod(one.outvars[0].aval.shape)
            continue
        inside = [_products(program, taken) for program in _inside(one.params)]
        if one.primitive.name == "cond":
            total += taken * max(inside) + (1 - taken) * min(inside)
        else:
            total += sum(inside) * one.params.get("length", 1)
    return total


def _inside(params: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the programs among the parameters of an operation."""
    for value in params.values():
        for each in value if isinstance(value, tuple) else (value,):
            if hasattr(program := getattr(each, "jaxpr", each), "eqns"):
                yield program


class Peak:
    """Products of one size, one after the other."""

    def __init__(self, rows: int, inner: int, columns: int) -> None:
        self.operations = 2 * rows * inner * columns
        random = np.random.default_rng(0)
        a, b = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((rows, inner), (inner, columns)))
        self.count = max(4, int(2e10 / self.operations))

        @jax.jit
        def run(a: Any, b: Any) -> Any:
            def body(_: Any, a: Any) -> Any:
                product = a @ b
                return a + 1e-9 * product[:, :1]

            return jax.lax.fori_loop(0, self.count, body, a)

        self.run = lambda: jax.block_until_ready(run(a, b))
        self.run()

    def turn(self) -> float:
        """Return GFLOP/s."""
        begun = time.perf_counter()
        self.run()
        return self.count * self.operations / (time.perf_counter() - begun) / 1e9


def filled(agent: Any, layout: Any) -> Any:
    """Fill a replay with `ROWS` random transitions."""
    random = np.random.default_rng(0)
    shapes = {"observation": 17, "action": 6, "next_observation": 17}
    draws = {k: random.normal(size=(ROWS, 1, n)).clip(-1, 1).astype(np.float32) for k, n in shapes.items()}
    columns = {k: random.uniform(-1, 1, (ROWS, 1, *s)).astype(np.float32) for k, s in layout.columns}
    never = np.zeros((ROWS, 1), bool)
    reward = random.normal(size=(ROWS, 1)).astype(np.float32)
    new = Transition(**draws, reward=reward, terminated=never, truncated=never, columns=columns)

    def insert(replay: Any, one: Transition) -> tuple[Any, None]:
        return agent.insert(layout, *replay, one), None

    return jax.jit(lambda replay: jax.lax.scan(insert, replay, new)[0])(agent.init_replay(layout))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of: {'; '.join(CONTENDERS)} (default: all)"
    )
    parser.add_argument("--count", action="store_true", help="count operations, without timing")
    given = parser.parse_args()
    asked = given.names
    if unknown := {*asked} - {*CONTENDERS}:
        parser.error(f"there is no contender {', '.join(sorted(unknown))}")
    names = [name for name in CONTENDERS if not asked or name in asked]
    if given.count and asked:
        parser.error("--count counts all contenders; leave the names out")
    if given.count:
        file = Path(__file__).parent / "results" / "update_counts.json"
        counts = {name: count(*CONTENDERS[name]) for name in names}
        about = {"command": "python benchmarks/updates.py --count", "jax": jax.__version__}
        file.write_text(json.dumps({**about, "gflop with the actor's step": counts}, indent=1) + "\n")
        print(f"written: {file}")
        return
    load = os.getloadavg()
    contenders = {name: Contender(*CONTENDERS[name]) for name in names}
    peaks, found = [Peak(*sizes) for sizes in PEAK], []
    turns = []
    for _ in range(TURNS):
        found.append([peak.turn() for peak in peaks])
        turns.append({name: one.turn() for name, one in contenders.items()})
    peak = max(statistics.median(rates) for rates in zip(*found, strict=True))
    seconds = {name: [turn[name] for turn in turns] for name in names}
    ms = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    print(f"peak {peak:.0f} GFLOP/s")
    print(f"{'':36}{'ms':>8}{'GFLOP':>8}{'GFLOP/s':>9}{'of peak':>8}{'x base':>8}")
    for name, one in contenders.items():
        base = name.split("+")[0].split(",")[0]
        base = base if base in ("td3", "td7") else "sac"
        ratio = f"{ms[name] / ms[base]:8.2f}" if base in ms else ""
        rate = 1e3 * one.gflop / ms[name]
        print(f"{name:36}{ms[name]:8.2f}{one.gflop:8.2f}{rate:9.0f}{rate / peak:8.2f}{ratio}")
    place = Path(__file__).parent / "results" / "updates"
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    about = {
        "command": " ".join(["python", "benchmarks/updates.py", *sys.argv[1:]]),
        "NPROC": os.environ.get("NPROC"),
        "load before": load,
        "jax": jax.__version__,
        "machine": machine(int(os.environ.get("NPROC", os.cpu_count() or 1))),
        "products": PEAK,
        "GFLOP/s of the products": found,
    }
    gflop = {name: one.gflop for name, one in contenders.items()}
    file.write_text(json.dumps({**about, "gflop": gflop, "seconds an update": seconds}, indent=1) + "\n")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
