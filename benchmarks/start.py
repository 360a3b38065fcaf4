"""Measure what a user waits for from `qscape train` to the first update, phase by phase.

    python benchmarks/start.py
    python benchmarks/start.py td3:Pendulum-v1 simba:HalfCheetah-v5 --rounds 5
    git worktree add /tmp/before v0.2.0
    python benchmarks/start.py --against /tmp/before            # the same of another source tree, in turns
    python benchmarks/start.py --sbx /venv/bin/python           # and of SBX, where it has the agent

Each start is a process of its own that runs the command line with 256 random steps and ends after one
update. "cold" begins with an empty cache of compiled programs, "warm" with what the cold start left there,
as the second seed of a group or the next run of the day does. Cases and trees take turns.

A phase has two durations: seconds on the clock, and processor seconds, user and system, of all threads.
Where other processes work too, only processor seconds tell something. `peak_memory_mb` is the peak of the
resident set so far; `traced`, `lowered` and `compiled` are how many functions JAX handled, programs that
came from the cache included. `networks` is a checksum of the state after the update: equal numbers, to the
bit, have equal ones. Without NPROC=1 the first update compiles in a thread while networks and random steps
are made, so its seconds count for these phases. Raw data go to benchmarks/results/start.

    imports        the interpreter, JAX, the package
    plan           reading the command and making the agent without arrays
    environment    making the environments of training and evaluation
    agent          networks, optimisers, the run folder
    random steps   until the first update is called
    first update   one update; TD7's first burst is cut to one
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "start"
DEFAULT = tuple(
    f"{recipe}:Pendulum-v1" for recipe in ("td3", "sac", "td7", "td7+savo+pave", "crossq", "simba", "simbav2")
)
RANDOM_STEPS = 256
COUNTED = {  # of JAX's monitoring
    "/jax/core/compile/jaxpr_trace_duration": "traced",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowered",
    "/jax/core/compile/backend_compile_duration": "compiled",
}
SBX = {  # agents that SBX has too: class, policy
    "td3": ("TD3", "MlpPolicy"),
    "sac": ("SAC", "MlpPolicy"),
    "crossq": ("CrossQ", "MlpPolicy"),
    "simba": ("SAC", "SimbaPolicy"),
}


class Watch:
    """Notes when a phase ends. All values count from the command on; `end` makes them those of each phase."""

    def __init__(self, begun: float) -> None:
        self.begun, self.counts = begun, dict.fromkeys(COUNTED.values(), 0)
        self.marks: dict[str, dict[str, float]] = {}

    def listen(self) -> None:
        """Count what JAX traces, lowers and compiles from now on."""
        import jax

        def count(event: str, *_: Any, **__: Any) -> None:
            if event in COUNTED:
                self.counts[COUNTED[event]] += 1

        jax.monitoring.register_event_duration_secs_listener(count)

    def mark(self, phase: str) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        unit = 1e6 if sys.platform == "darwin" else 1e3  # of ru_maxrss
        self.marks.setdefault(phase, {
            "seconds": time.time() - self.begun,
            "cpu_seconds": used.ru_utime + used.ru_stime,
            **self.counts,
            "peak_memory_mb": used.ru_maxrss / unit,
        })  # fmt: skip

    def end(self, **more: Any) -> NoReturn:
        """Print the values of each phase and of all, and `more`, and end the process."""
        before, phases = dict.fromkeys(next(iter(self.marks.values())), 0.0), {}
        for phase, mark in self.marks.items():
            phases[phase] = {name: value - before[name] for name, value in mark.items()}
            phases[phase]["peak_memory_mb"] = mark["peak_memory_mb"]
            before = mark
        print(json.dumps({"phases": phases, "total": before, **more}), flush=True)
        os._exit(0)


def start_qscape(recipe: str, env: str, watch: Watch) -> None:
    """Train by the command line. The package does not know of the measurement: its functions are replaced."""
    import jax
    import numpy as np

    watch.listen()
    from qscape.cli import main
    from qscape.run import programs, training

    package: Any = training
    of_programs: Any = programs.Programs
    watch.mark("imports")
    opened = package.open_adapters
    name = "make_shared_session" if hasattr(package, "make_shared_session") else "trainer_of"  # of 0.2
    made, init = getattr(package, name), of_programs.__init__

    def open_adapters(*given: Any) -> Any:
        watch.mark("plan")
        adapters = opened(*given)
        watch.mark("environment")
        return adapters

    def make(*given: Any) -> Any:
        session = made(*given)
        jax.block_until_ready(getattr(session, "learner", session).state)
        watch.mark("agent")
        return session

    class Once:
        def __init__(self, program: Any) -> None:
            self.program = program

        def __getattr__(self, name: str) -> Any:
            return getattr(self.program, name)

        def __call__(self, carry: Any, _: Any, *others: Any) -> NoReturn:
            watch.mark("random steps")
            state = jax.block_until_ready(self.program(carry, np.int32(1), *others).state)
            watch.mark("first update")
            leaves = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))
            watch.end(networks=hashlib.sha256(leaves).hexdigest())

    def begin(self: Any, *given: Any) -> None:
        init(self, *given)
        self.learn, self.step = Once(self.learn), Once(self.step)

    package.open_adapters = open_adapters
    setattr(package, name, make)
    of_programs.__init__ = begin
    with tempfile.TemporaryDirectory() as place:
        short = ["--base.warmup", str(RANDOM_STEPS), "--steps", "100000", "--quiet", "--out", place]
        sys.argv = ["qscape", "train", recipe, "--env", env, *short]
        sys.exit(f"the run ended without an update: {main()}")


def start_sbx(recipe: str, env: str, watch: Watch) -> None:
    """Train SBX's agent with its defaults."""
    watch.listen()
    import sbx
    from stable_baselines3.common.callbacks import BaseCallback

    watch.mark("imports")
    kind, policy = SBX[recipe]
    model = getattr(sbx, kind)(policy, env, learning_starts=RANDOM_STEPS)
    watch.mark("agent")

    class Steps(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == RANDOM_STEPS:
                watch.mark("random steps")
            return True

    model.learn(RANDOM_STEPS + 1, callback=Steps())
    watch.mark("first update")
    watch.end()


def start(case: str, who: str, python: str, source: Path | None, cache: str) -> dict[str, Any]:
    """Start a process and return what it measured.

    Args:
        case: RECIPE:ENV.
        who: "qscape" or "sbx".
        python: the interpreter.
        source: the folder with the package; None: the installed one.
        cache: the folder of the cache of compiled programs.
    """
    environment = os.environ | {
        "XDG_CACHE_HOME": cache,
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "ignore",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if source is not None:
        environment["PYTHONPATH"] = str(source)
    command = [python, __file__, case, "--child", who, "--begun", str(time.time())]
    made = subprocess.run(command, env=environment, capture_output=True, text=True)
    if made.returncode:
        sys.exit(f"{case} of {who} with {source or python} failed: {made.stderr[-2000:]}")
    return json.loads(made.stdout.splitlines()[-1])


def show(case: str, who: str, kind: str, starts: list[dict[str, Any]]) -> None:
    """Print the medians of one case: processor seconds of each phase, and the values of all."""

    def median(name: str, phase: str = "") -> float:
        return statistics.median((each["phases"][phase] if phase else each["total"])[name] for each in starts)

    phases = [f"{phase} {median('cpu_seconds', phase):.2f}" for phase in starts[0]["phases"]]
    total = {name: median(name) for name in starts[0]["total"]}
    print(
        f"{case} {who} {kind}: {total['cpu_seconds']:.2f} s of processors ({', '.join(phases)}), "
        f"{total['seconds']:.1f} s, {total['compiled']:.0f} programs, {total['peak_memory_mb']:,.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=DEFAULT, metavar="RECIPE:ENV")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, metavar="TREE", help="another source tree, with src/qscape")
    parser.add_argument("--sbx", metavar="PYTHON", help="an interpreter that has SBX")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        recipe, env = options.cases[0].split(":", 1)
        {"qscape": start_qscape, "sbx": start_sbx}[options.child](recipe, env, Watch(options.begun))
        return
    from throughput import machine

    contenders: dict[str, tuple[str, str, Path | None]] = {
        "here": ("qscape", sys.executable, HERE.parent / "src")
    }
    if options.against:
        contenders["against"] = "qscape", sys.executable, options.against.resolve() / "src"
    if options.sbx:
        contenders["sbx"] = "sbx", options.sbx, None
    about = {"command": sys.argv, "machine": machine(int(os.environ.get("NPROC", os.cpu_count() or 1)))}
    starts: dict[str, dict[str, dict[str, list[Any]]]] = {}
    for number in range(options.rounds):
        for case in options.cases:
            for name, given in list(contenders.items())[:: 1 if number % 2 == 0 else -1]:
                if name == "sbx" and case.split(":")[0] not in SBX:
                    continue
                of_case = starts.setdefault(case, {}).setdefault(name, {"cold": [], "warm": []})
                with tempfile.TemporaryDirectory() as cache:
                    for made in of_case.values():  # cold, then warm
                        made.append(start(case, *given, cache))
    about["machine"]["load_after"] = os.getloadavg()
    for case, names in starts.items():
        for name, kinds in names.items():
            for kind, made in kinds.items():
                show(case, name, kind, made)
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps({**about, "starts": starts}, indent=1) + "\n")
    print(f"raw data: {file}")


if __name__ == "__main__":
    main()
