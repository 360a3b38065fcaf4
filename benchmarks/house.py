"""Compare two source trees of qscape: how fast they start and train, how much memory they take.

    git worktree add /tmp/before v0.2.0
    python benchmarks/house.py /tmp/before/src src                    # 11 rounds, about an hour and a half
    python benchmarks/house.py /tmp/before/src src --rounds 5 --only first_step import help train_help
    python benchmarks/house.py --counts src                           # seconds; needs no quiet machine

Each measurement is a process of its own, with one of the trees in PYTHONPATH. In a round, each case is
measured in both trees, one right after the other, and every second round begins with the other tree. The
script prints the median over rounds of the ratio within a round (second tree to first) with a 95% bootstrap
interval, the medians of both trees, and how many turns other processes disturbed.

    first_step      seconds from `qscape train td7+savo+pave --env Pendulum-v1` to the first call of the
                    environment's `step`. Neither tree knows of the measurement: the process replaces
                    `PendulumEnv.step`, when that module is imported, by a function that prints the time and
                    ends the process. The cache of compiled programs holds what an uncounted start left in it.
    import          seconds of `python -c "import qscape"`
    help            seconds of `qscape --help`
    train_help      seconds of `qscape train --help`
    td3, sac, td7   environment steps per second of `qscape train` on Pendulum-v1, updates included, over the
                    second half of the run's log lines
    td3_16          the same as td3 in 16 environments of Gymnasium
    envs            the same of PPO in 64 environments in JAX: gymnax/Pendulum-v1, or jax/CartPole-v1
    seeds           the same of five seeds of SAC (without gymnax: DQN) in one program, steps of all seeds
    savo            the same as td3 of TD3 with SAVO on Hopper-v5
    savo_released   the same with `--preset released`, in the first tree without it if that has no such preset
    savo_recsim     the same of two seeds of SAVO in 16 environments of recsim/10k-v0, steps of both seeds

The column memory is the ratio of peak memory, the resident set of these processes; both are below the
values.

`--counts` counts what needs no quiet machine: how often an agent is built, a recipe parsed and a plan
prepared until the first step of that command, the files that are opened until then (of the cache of
compiled programs, code, others), lines by folder, the classes of `run/`, and the first words of docstrings.
At b527c2e, an agent is built 7 times, a recipe parsed 19 times and a plan prepared twice; the cache takes
71 of the opened files. All counts of that commit are in results/house/counts-b527c2e.json.
"""

import argparse
import ast
import importlib.abc
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parent / "results" / "house"
COMMAND = ["train", "td7+savo+pave", "--env", "Pendulum-v1"]
STEPS = {"td3": 12_000, "td3_16": 24_000, "sac": 12_000, "td7": 12_000}  # of a seed
STEPS |= {"envs": 1_000_000, "seeds": 3_000}
STEPS |= {"savo": 400, "savo_released": 400, "savo_recsim": 640}
SEEDS = 5
LINES = 20  # of metrics.jsonl in a run whose steps per second are measured
QUIET = 0.2  # a turn is disturbed if other processes use more of a core than this
DRAWS = 10_000  # of the bootstrap
HAS_GYMNAX = importlib.util.find_spec("gymnax") is not None
COUNTED = ("build", "parse", "prepare")  # functions whose calls are counted, and the packages they are in
COUNTED_IN = ("qscape.agents.", "qscape.run.")


class Turn(NamedTuple):
    """One measurement: seconds or steps per second, peak memory in MB, cores that others used."""

    value: float
    memory: float
    others: float | None


# --- what is measured ---------------------------------------------------------------------------------


def until_first_step(counting: bool) -> None:
    """Run COMMAND in this process until the environment's first step; print what was found, end the process.

    Args:
        counting: count calls and opened files as well, which takes time.
    """
    calls: Counter[str] = Counter()
    opened: list[str] = []

    def count(frame: Any, event: str, _: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and frame.f_code.co_name in COUNTED and module.startswith(COUNTED_IN):
            calls[f"{module}.{frame.f_code.co_qualname}"] += 1

    def listen(event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(given[0], str | os.PathLike):
            opened.append(os.fspath(given[0]))

    def first_step(*_: Any) -> None:
        now = time.time()
        found: dict[str, Any] = {"first_step": now}
        if counting:
            sys.setprofile(None)
            found |= {"calls": dict(sorted(calls.items())), "opened": opened.copy()}
        print(json.dumps(found), flush=True)
        os._exit(0)

    class Finder(importlib.abc.MetaPathFinder):
        """Finds the module of Pendulum-v1 as usual, and replaces `step` of what it holds."""

        def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
            if name != "gymnasium.envs.classic_control.pendulum":
                return None
            sys.meta_path.remove(self)
            spec: Any = importlib.util.find_spec(name)
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                module.PendulumEnv.step = first_step

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, Finder())
    if counting:
        sys.addaudithook(listen)
        sys.setprofile(count)
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        from qscape.cli import main

        sys.exit(f"the run ended without a step: {main(COMMAND)}")


def train(case: str, steps: int) -> None:
    """Train in this process as `qscape train` does, and print environment steps per second."""
    from qscape.cli import main

    env = "Pendulum-v1"
    more = ["--envs", "1"]
    recipe = case
    if case == "td3_16":
        recipe, more = "td3", ["--envs", "16"]
    elif case == "envs":
        recipe, env, more = "ppo", "gymnax/Pendulum-v1" if HAS_GYMNAX else "jax/CartPole-v1", ["--envs", "64"]
    elif case in ("savo", "savo_released"):
        recipe, env = "td3+savo", "Hopper-v5"
        more += ["--base.warmup", str(steps // 4)]
        if case == "savo_released" and has_released(recipe, env):
            more += ["--preset", "released"]
    elif case == "savo_recsim":
        recipe, env = "td3+savo", "recsim/10k-v0"
        more = ["--envs", "16", "--seeds", "0", "1", "--seeds-as", "vmap", "--base.warmup", str(steps // 4)]
    elif case == "seeds":
        recipe, env = ("sac", "gymnax/Pendulum-v1") if HAS_GYMNAX else ("dqn", "jax/CartPole-v1")
        more = ["--seeds", *map(str, range(SEEDS)), "--seeds-as", "vmap"]
    with tempfile.TemporaryDirectory() as place:
        often = [
            "--eval-every",
            "0",
            "--log-every",
            str(steps // LINES),
            "--save-every",
            str(steps),
            "--quiet",
        ]
        given = ["train", recipe, "--env", env, "--steps", str(steps), *more, *often, "--out", place]
        if code := main(given):
            sys.exit(code)
        rates = []
        for file in Path(place).glob("*/metrics.jsonl"):
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            spent = [1 / line["steps_per_second"] for line in lines[len(lines) // 2 :]]  # of equal intervals
            rates.append(len(spent) / sum(spent))
        print(json.dumps({"rate": sum(rates)}), flush=True)


def has_released(recipe: str, env: str) -> bool:
    """Return whether the tree in use has a preset `released` for a recipe in an environment."""
    from qscape.agents.presets import preset
    from qscape.errors import UsageError

    try:
        preset("released", recipe, env)
    except UsageError:
        return False
    return True


CASES: dict[str, list[str]] = {  # arguments of Python
    "first_step": [__file__, "--child", "first_step"],
    "import": ["-c", "import qscape"],
    "help": ["-m", "qscape", "--help"],
    "train_help": ["-m", "qscape", "train", "--help"],
    **{name: [__file__, "--child", name] for name in STEPS},
}


def measure(case: str, tree: Path, cache: Path, scale: float) -> Turn:
    """Run a case in a process of its own with the source folder `tree`."""
    from throughput import busy_seconds

    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "XDG_CACHE_HOME": str(cache),
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "ignore",
        "HOUSE_SCALE": str(scale),
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        busy, begun, clock = busy_seconds(), time.perf_counter(), time.time()
        process = subprocess.Popen(
            [sys.executable, *CASES[case]], env=environment, stdout=out, stderr=err, cwd=cache
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds, now = time.perf_counter() - begun, busy_seconds()
        out.seek(0)
        err.seek(0)
        if process.returncode:
            sys.exit(f"{case} with {tree} failed: {err.read()[-2000:]}")
        last = out.read().strip().splitlines()[-1:]
    value = seconds
    if case == "first_step":
        value = json.loads(last[0])["first_step"] - clock
    elif case in STEPS:
        value = json.loads(last[0])["rate"]
    others = None
    if busy is not None and now is not None:
        others = max(0.0, now - busy - used.ru_utime - used.ru_stime) / seconds
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return Turn(value, used.ru_maxrss * unit / 1e6, others)


# --- comparing ----------------------------------------------------------------------------------------


def bootstrap(ratios: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95% interval of the median of ratios, by resampling rounds."""
    drawn = random.Random(seed)
    medians = sorted(statistics.median(drawn.choices(ratios, k=len(ratios))) for _ in range(DRAWS))
    return medians[int(0.025 * DRAWS)], medians[int(0.975 * DRAWS) - 1]


def compare(trees: Sequence[Path], cases: Sequence[str], rounds: int, scale: float) -> dict[str, Any]:
    """Measure all cases in both trees, in turns, and print each case's ratio after the last round."""
    turns: dict[str, list[list[Turn]]] = {case: [[], []] for case in cases}
    with tempfile.TemporaryDirectory() as place:
        caches = [Path(place) / str(k) for k in range(len(trees))]
        for cache in caches:
            cache.mkdir()
        for case in cases:
            for tree, cache in zip(trees, caches, strict=True):  # fills the caches and is not counted
                measure(case, tree, cache, min(scale, 0.05))
            print(f"{case} is ready", flush=True)
        for number in range(rounds):
            for case in cases:
                for k in (0, 1) if number % 2 == 0 else (1, 0):
                    turns[case][k].append(measure(case, trees[k], caches[k], scale))
            print(f"round {number + 1} of {rounds}, load {os.getloadavg()[0]:.2f}", flush=True)
    found = {}
    print(
        f"\n{'case':12}{'first':>10}{'second':>10}{'ratio':>8}  {'95% interval':18}{'memory':>8}  disturbed"
    )
    for case, (first, second) in turns.items():
        report: dict[str, Any] = {"turns": [[turn._asdict() for turn in of] for of in (first, second)]}
        for what in ("value", "memory"):
            pairs = [(getattr(a, what), getattr(b, what)) for a, b in zip(first, second, strict=True)]
            ratios = [b / a for a, b in pairs]
            medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
            report[what] = {
                "medians": medians,
                "ratio": statistics.median(ratios),
                "interval": bootstrap(ratios),
            }
        value, memory = report["value"], report["memory"]
        disturbed = sum((turn.others or 0.0) > QUIET for turn in (*first, *second))
        low, high = value["interval"]
        print(
            f"{case:12}{value['medians'][0]:10.3f}{value['medians'][1]:10.3f}{value['ratio']:8.3f}  "
            f"[{low:.3f}, {high:.3f}]    {memory['ratio']:8.3f}  {disturbed} of {2 * rounds}"
        )
        print(f"{'':12}{memory['medians'][0]:7,.0f} MB{memory['medians'][1]:7,.0f} MB")
        found[case] = report
    return found


# --- counting -----------------------------------------------------------------------------------------


def count(tree: Path) -> dict[str, Any]:
    """Return the counts of a source folder; see the docstring of this file."""
    package = tree / "qscape"
    files = {file: file.read_text() for file in sorted(package.rglob("*.py"))}
    lines: Counter[str] = Counter()
    moods: Counter[str] = Counter()
    classes = []
    for file, text in files.items():
        inside = file.relative_to(package)
        folder = inside.as_posix().rpartition("/")[0].partition("/")[0]
        lines[folder or "."] += text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and folder == "run":
                classes.append(f"{inside.as_posix()}: {node.name}({', '.join(map(ast.unparse, node.bases))})")
            if isinstance(node, ast.FunctionDef) and (said := ast.get_docstring(node)):
                moods[_mood(said)] += 1
    return {
        "start": _count_start(tree),
        "files": len(files),
        "lines": sum(lines.values()),
        "lines_by_folder": dict(lines.most_common()),
        "classes_of_run": len(classes),
        "classes": classes,
        "docstrings_of_functions": dict(moods.most_common()),
    }


def _mood(docstring: str) -> str:
    """Return how the docstring of a function begins."""
    first = docstring.split()[0].rstrip(".,:")
    if first in ("Return", "Returns"):
        return first
    return "an article" if first in ("The", "A", "An") else "another word"


def _count_start(tree: Path) -> dict[str, Any]:
    """Return what happens until the first step of COMMAND, with a full cache of compiled programs."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"PYTHONPATH": str(tree), "XDG_CACHE_HOME": cache, "JAX_PLATFORMS": "cpu"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        said = ""
        for _ in range(2):
            command = [sys.executable, __file__, "--child", "count"]
            made = subprocess.run(command, env=environment, capture_output=True, text=True)
            if made.returncode:
                sys.exit(made.stderr)
            said = made.stdout
        found = json.loads(said.splitlines()[-1])
        cached = [file for file in found["opened"] if file.startswith(cache)]
        code = [file for file in found["opened"] if file.endswith((".py", ".pyc", ".so"))]
        own = [file for file in code if file.startswith(str(tree))]
    return {
        "calls": found["calls"],
        "opened": len(found["opened"]),
        "opened_of_the_cache": len(cached),
        "opened_code": len(code),
        "opened_code_of_qscape": len(own),
        "opened_others": len(found["opened"]) - len(code) - len(cached),
    }


def show(counts: dict[str, Any]) -> Iterator[str]:
    """Yield the counts as lines of text, without the list of classes."""
    for name, value in counts.items():
        if isinstance(value, dict):
            yield f"{name}:"
            yield from (f"  {key}: {json.dumps(of)}" for key, of in value.items())
        elif name != "classes":
            yield f"{name}: {value}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "trees", nargs="*", type=Path, metavar="SRC", help="two source folders, before and after"
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], help="some of the cases")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the steps of training runs")
    parser.add_argument("--counts", type=Path, metavar="SRC", help="count in this source folder instead")
    parser.add_argument("--out", type=Path, help="JSON file (default: a new one in results/house)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.child and not options.counts and len(options.trees) != 2:
        parser.error("two source folders are needed, or --counts with one")
    for tree in [*options.trees, *filter(None, [options.counts])]:
        if not (tree / "qscape" / "__init__.py").exists():
            parser.error(f"{tree} holds no package qscape")
    return options


def main() -> None:
    options = parse()
    if options.child in ("first_step", "count"):
        until_first_step(options.child == "count")
    elif options.child:
        train(options.child, int(STEPS[options.child] * float(os.environ["HOUSE_SCALE"])))
    elif options.counts:
        counts = count(options.counts.resolve())
        print("\n".join(show(counts)))
        if options.out:
            options.out.write_text(json.dumps(counts, indent=1) + "\n")
    else:
        from throughput import machine

        about = machine(int(os.environ.get("NPROC", os.cpu_count() or 1)))
        found = compare(
            [tree.resolve() for tree in options.trees], options.only, options.rounds, options.scale
        )
        about["load_after"] = os.getloadavg()
        file = options.out or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps({"machine": about, "rounds": options.rounds, "cases": found}, indent=1) + "\n"
        )
        print(f"raw data: {file}")


if __name__ == "__main__":
    main()
