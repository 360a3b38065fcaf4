"""Measure what the runs of a study cost beside updates and environment steps.

    python benchmarks/study_overhead.py
    python benchmarks/study_overhead.py --recipes td3 sac td7 ppo --seeds 10 --steps 20000 --workers 2
    python benchmarks/study_overhead.py --source /tmp/before/src     # of another source tree

The study is run by `qscape study run`, twice: "cold" begins with an empty cache of compiled programs, "warm"
with what the first one left there. Its workers are watched from outside: a `sitecustomize` module in front of
their path replaces functions of the package by ones that count processor seconds, of all threads.

    imports        the interpreter, JAX, the package
    first calls    the first call of each program: tracing, lowering, compiling or reading the cache
    networks       making the learner, but for the first calls in it
    work           later calls of programs, environment steps, those of evaluations too
    evaluation     the loop of evaluations in Python
    saves          writing saves
    rest           everything else: the plan, the folder, the loop in Python
    study          the process of `qscape study run`, and the ends of the workers

All but "work" is the overhead. Processor seconds do not depend on other processes of the
machine, as seconds on the clock do; both are written to benchmarks/results/study_overhead.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "study_overhead"
PLACE = "QSCAPE_MEASURED"  # the folder into which a watched worker writes what it counted
SITE = f"""
import sys
if "qscape.jobs.worker" in sys.orig_argv:
    sys.path.append({str(HERE)!r})
    import study_overhead
    sys.path.remove({str(HERE)!r})
    study_overhead.watch()
"""


class Account:
    """Processor seconds by what they were spent on; of nested ones, each second counts for the innermost."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.open = ["imports"]
        self.since = 0.0

    def turn(self) -> None:
        now = time.process_time()
        self.seconds[self.open[-1]] = self.seconds.get(self.open[-1], 0.0) + now - self.since
        self.since = now

    def wrap(self, owner: Any, name: str, what: str | Callable[..., str]) -> None:
        """Replace `owner.name` by a function that counts for `what`, or for `what(its arguments)`."""
        inner = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            self.turn()
            self.open.append(what if isinstance(what, str) else what(*args, **options))
            try:
                return inner(*args, **options)
            finally:
                self.turn()
                self.open.pop()

        setattr(owner, name, counted)


def watch() -> None:
    """Count what this worker does from now on, and write it when the process ends."""
    import atexit

    import jax

    from qscape.envs.adapter import EnvAdapter
    from qscape.run import programs, training
    from qscape.run.drive import Driver
    from qscape.run.session import Session

    account = Account()
    account.turn()
    account.open = ["rest"]
    seen: set[Any] = set()

    def program(called: Any, *_: Any, mode: str = "", **__: Any) -> str:
        if (key := (id(called), mode)) in seen:
            return "work"
        seen.add(key)
        return "first calls"

    for kind in (programs.Program, programs.Act, Driver):
        inner = kind.__call__

        def finished(*args: Any, inner: Any = inner, **options: Any) -> Any:
            return jax.block_until_ready(inner(*args, **options))

        kind.__call__ = finished
        account.wrap(kind, "__call__", program)
    account.wrap(EnvAdapter, "step", "work")
    account.wrap(Session, "_evaluate", "evaluation")
    account.wrap(Session, "_save_all", "saves")
    account.wrap(training, "make_shared_session", "networks")

    def write() -> None:
        account.turn()
        file = Path(os.environ[PLACE]) / f"{os.getpid()}.json"
        file.write_text(json.dumps(account.seconds))

    atexit.register(write)


def run_study(given: argparse.Namespace, source: Path, cache: str, place: Path) -> dict[str, Any]:
    """Run the study and return what it cost: in all, and for each run by what it was spent on.

    Args:
        given: the flags.
        source: the folder with the package.
        cache: the folder of the cache of compiled programs.
        place: an empty folder for the runs.
    """
    agents = "".join(f'[[agents]]\nrecipe = "{recipe}"\n' for recipe in given.recipes)
    study = place / "small.toml"
    study.write_text(
        f"[budgets.quick]\nsteps = {given.steps}\nseeds = {given.seeds}\n{agents}"
        f'[[environments]]\nid = "{given.env}"\n'
    )
    site, measured = place / "site", place / "measured"
    for folder in (site, measured):
        folder.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    environment = os.environ | {
        "XDG_CACHE_HOME": cache,
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": f"{site}{os.pathsep}{source}",
        PLACE: str(measured),
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", "qscape", "study", "run", str(study), "--budget", "quick"]
    command += ["--workers", str(given.workers), "--runs", str(place / "runs")]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    made = subprocess.run(command, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if made.returncode:
        sys.exit(f"the study failed: {made.stdout[-2000:]}{made.stderr[-2000:]}")
    runs = [json.loads(file.read_text()) for file in measured.glob("*.json")]
    expected = len(given.recipes) * given.seeds
    if len(runs) != expected:
        sys.exit(f"{len(runs)} of {expected} workers wrote what they counted.")
    return {
        "seconds": time.time() - begun,
        "cpu_seconds": sum(getattr(after, f) - getattr(before, f) for f in ("ru_utime", "ru_stime")),
        "runs": runs,
    }


def show(kind: str, study: dict[str, Any]) -> None:
    """Print the overhead of a study, and the means of its runs."""
    runs, cpu = study["runs"], study["cpu_seconds"]
    spent = {what: statistics.mean(run.get(what, 0.0) for run in runs) for what in names(runs)}
    spent["study"] = cpu / len(runs) - sum(spent.values())
    overhead = sum(seconds for what, seconds in spent.items() if what != "work")
    print(
        f"{kind}: {len(runs)} runs, {cpu:.1f} s of processors, {study['seconds']:.1f} s; "
        f"overhead {overhead * len(runs) / cpu:.0%}, {overhead:.2f} s a run"
    )
    print("  a run: " + ", ".join(f"{what} {seconds:.2f}" for what, seconds in spent.items()))


def names(runs: list[dict[str, float]]) -> list[str]:
    """Return what any of the runs spent time on, in the order of the first."""
    return list(dict.fromkeys(what for run in runs for what in run))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=["td3", "td7"])
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--source", type=Path, default=HERE.parent / "src", help="another source tree")
    given = parser.parse_args()
    from throughput import machine

    studies: dict[str, Any] = {}
    about = {"command": sys.argv, "machine": machine(1)}
    with tempfile.TemporaryDirectory() as cache:
        for kind in ("cold", "warm"):
            with tempfile.TemporaryDirectory() as place:
                studies[kind] = run_study(given, given.source.resolve(), cache, Path(place))
            show(kind, studies[kind])
    about["machine"]["load_after"] = os.getloadavg()
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps({**about, "studies": studies}, indent=1) + "\n")
    print(f"raw data: {file}")


if __name__ == "__main__":
    main()
