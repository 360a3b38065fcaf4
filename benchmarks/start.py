"""Measure the seconds from a command to its first update, and where they go.

    python benchmarks/start.py
    python benchmarks/start.py td3:Pendulum-v1 td7:HalfCheetah-v5 --rounds 5

Each start is a process of its own that does what `qscape train` does, with 256 random steps. "cold" begins
with an empty cache of compiled programs, "warm" with what the cold start left there, as the second seed of
a group or the next run of the day does. Agents take turns. Raw seconds go to benchmarks/results/start.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results" / "start"
DEFAULT = ("td3:Pendulum-v1", "sac:HalfCheetah-v5", "td7:Pendulum-v1")
RANDOM_STEPS = 256
PHASES = ("imports", "environment and agent", "initial state", "random steps", "first update")
DURATIONS = {  # of JAX's monitoring
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling or reading the cache",
}


def child(recipe: str, env: str, begun: float) -> dict[str, float]:
    """Start a run in this process; return the seconds of each phase."""
    marks = [begun]
    import jax

    from qscape.run import Plan
    from qscape.run.adapters import open_adapters
    from qscape.run.plan import prepare
    from qscape.run.training import make_session, set_up_jax

    spent = dict.fromkeys(DURATIONS.values(), 0.0)

    def listen(event: str, seconds: float, **_: object) -> None:
        if event in DURATIONS:
            spent[DURATIONS[event]] += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    marks.append(time.time())
    set_up_jax()
    settings = {"base": {"warmup": RANDOM_STEPS}}
    plan, agent, _ = prepare(Plan(recipe, env, steps=100_000, settings=settings, eval_every=0))
    adapters = open_adapters(plan, agent)
    marks.append(time.time())
    trainer = make_session(plan, agent, *adapters)
    jax.block_until_ready(trainer.learner.state)
    marks.append(time.time())
    until = RANDOM_STEPS
    for _ in trainer.events(until):
        pass
    marks.append(time.time())
    while not trainer.updates:  # TD7 waits for the end of an episode
        until += 1
        for _ in trainer.events(until):
            pass
    jax.block_until_ready(trainer.learner.state)
    marks.append(time.time())
    phases = {name: b - a for name, a, b in zip(PHASES, marks, marks[1:], strict=False)}
    return {**phases, "total": marks[-1] - begun, **{f"of it {name}": s for name, s in spent.items()}}


def start(case: str, cache: str) -> dict[str, float]:
    """Start a process and return what it measured."""
    environment = os.environ | {
        "XDG_CACHE_HOME": cache,
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "ignore",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, __file__, "--child", case, "--begun", str(time.time())]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(made.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=DEFAULT, metavar="RECIPE:ENV")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(*options.child.split(":", 1), options.begun)))
        return
    from throughput import machine

    about = {"command": sys.argv, "machine": machine(int(os.environ.get("NPROC", os.cpu_count() or 1)))}
    starts: dict[str, dict[str, list[dict[str, float]]]] = {
        c: {"cold": [], "warm": []} for c in options.cases
    }
    for _ in range(options.rounds):
        for case in options.cases:
            with tempfile.TemporaryDirectory() as cache:
                for kind in ("cold", "warm"):
                    starts[case][kind].append(start(case, cache))
    about["machine"]["load_after"] = os.getloadavg()
    for case, kinds in starts.items():
        for kind, made in kinds.items():
            medians = {name: statistics.median(each[name] for each in made) for name in made[0]}
            print(f"{case} {kind}: " + ", ".join(f"{name} {s:.2f} s" for name, s in medians.items()))
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps({**about, "starts": starts}, indent=1) + "\n")
    print(f"raw data: {file}")


if __name__ == "__main__":
    main()
