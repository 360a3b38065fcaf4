"""Compare training speed with other libraries: environment steps per second, updates included.

    python benchmarks/throughput.py --quick
    python benchmarks/throughput.py --seeds
    python benchmarks/throughput.py --on-policy

Every contender is a process of its own (`peers/__main__.py`) that waits on a pipe until its turn. Each
round gives every contender one turn, in an order that rotates. The script reports medians over rounds and
their ratios. It writes every turn, with the load of other processes during it, to a JSON file. See
`benchmarks/README.md`.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peers import BATCH, CAPACITY, ENV, MODULES, OFF_POLICY, ON_POLICY, WARM_UP, WIDTHS, PPOTask
from peers.process import ContenderError, Worker

RESULTS = Path(__file__).resolve().parent / "results" / "throughput"
FULL, QUICK = (11, 3.0), (5, 1.2)  # number of rounds, target seconds per turn

# Pairs whose ratio is shown.
RATIOS = (
    ("qscape-td3", "sb3-td3"),
    ("qscape-td3", "sbx-td3"),
    ("qscape-td3", "cleanrl-td3"),
    ("qscape-td3", "torch-td3"),
    ("qscape-td3", "qscape-td3-assembled-scan"),
    ("qscape-sac", "sb3-sac"),
    ("qscape-sac", "sbx-sac"),
    ("qscape-sac", "rlblox-sac"),
    ("qscape-sac", "qscape-sac-assembled-scan"),
    ("qscape-td7", "torch-td7"),
    ("qscape-td7", "rlblox-td7"),
    ("qscape-td7", "qscape-td7-assembled-scan"),
    ("qscape-td7-checkpoints", "torch-td7-checkpoints"),
    ("qscape-td7-checkpoints", "qscape-td7"),
    ("qscape-crossq", "sbx-crossq"),
    ("qscape-simba", "sbx-simba"),
    ("qscape-flash_sac", "torch-flash_sac"),
    ("qscape-td3-assembled-scan", "qscape-td3-scan"),
    ("qscape-td7-assembled-scan", "qscape-td7-scan"),
    ("qscape-ppo", "sb3-ppo"),
    ("qscape-ppo-scan", "sb3-ppo"),
    ("qscape-ppo-tuned", "sb3-ppo-tuned"),
    ("qscape-ppo-tuned-scan", "sb3-ppo-tuned"),
)
AT_ONCE = (2, 4, 8)  # processes of `--seeds`
QUIET = 0.2  # a turn is disturbed if other processes use more of a core than this


def start(name: str, *arguments: Any, report: dict[str, Any]) -> Worker | None:
    """Start a contender; if it fails, print and record the reason and return None."""
    try:
        worker = Worker(name, *arguments)
    except ContenderError as error:
        drop(name, error, report)
        return None
    seconds = (worker.ready[key] for key in ("process_seconds", "first_updates_seconds"))
    print("{:26} ready in {:4.1f} s, first updates {:4.1f} s".format(name, *seconds), flush=True)
    return worker


def drop(name: str, error: ContenderError, report: dict[str, Any]) -> None:
    report["left_out"][name] = str(error)
    print(f"{name:26} left out: {error}", flush=True)


def busy_seconds() -> float | None:
    """Return the processor seconds that the whole machine has worked since it started (Linux)."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def turn(workers: Sequence[Worker], seconds: float, rate: float | None = None) -> dict[str, Any]:
    """Run the workers at the same time; steps per second are all their steps over the longest duration.

    `rate`: steps per second of all of them in their last turn together, so that all work as long.
    """
    busy = busy_seconds()
    for worker in workers:
        worker.start_turn(seconds, rate and rate / len(workers))
    answers = [worker.end_turn() for worker in workers]
    now = busy_seconds()
    steps = sum(answer["steps"] for answer in answers)
    longest = max(answer["seconds"] for answer in answers)
    own, warm = (sum(answer[of] for answer in answers) for of in ("cpu_seconds", "warm_cpu_seconds"))
    others = None if busy is None or now is None else max(0.0, now - busy - own - warm) / longest
    return {
        "steps": steps,
        "seconds": longest,
        "cpu_seconds": own,
        "steps_per_second": steps / longest,
        "cores_used_by_others": others,
        "peak_memory_mb": max(answer["peak_memory_mb"] for answer in answers),
    }


def play(entries: dict[str, list[Worker]], rounds: int, seconds: float, report: dict[str, Any]) -> None:
    """Play all rounds. Each round gives every entry one turn; round r starts with entry r.

    The first, uncounted round finds out how many steps fit into a turn. An entry that fails drops out.
    """
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in entries}
    for number in range(-1, rounds):
        names = list(entries)
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            if name not in entries:  # it shared a process that failed
                continue
            try:
                last = turns[name][-1]["steps_per_second"] if turns[name] else None
                turns[name].append({"round": number, **turn(entries[name], seconds, last)})
            except ContenderError as error:
                drop(name, error, report)
                broken = entries[name]
                for other in [n for n, workers in entries.items() if any(w in workers for w in broken)]:
                    entries.pop(other)
                for worker in broken:
                    worker.close()
        if not entries:
            break
    for name, workers in entries.items():
        turns[name].pop(0)
        rates = [each["steps_per_second"] for each in turns[name]]
        report["contenders"][name] = {
            "median": statistics.median(rates),
            "min": min(rates),
            "max": max(rates),
            "started": [worker.ready for worker in workers],
            "turns": turns[name],
        }


def ratio(report: dict[str, Any], above: str, below: str) -> dict[str, Any] | None:
    """Return the ratio of two contenders' medians, and the range of the ratio over single rounds."""
    pair = [report["contenders"].get(name) for name in (above, below)]
    if None in pair:
        return None
    over, under = ([each["steps_per_second"] for each in entry["turns"]] for entry in pair)
    single = [a / b for a, b in zip(over, under, strict=True)]
    return {
        "of": above,
        "to": below,
        "ratio": pair[0]["median"] / pair[1]["median"],
        "min": min(single),
        "max": max(single),
    }


def machine(threads: int) -> dict[str, Any]:
    """Describe the machine and its load, for the report."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return {
        "cpu": found[1] if found else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
        "load_before": os.getloadavg(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the commit of the source tree, or None if git does not know it."""
    command = ["git", "-C", str(RESULTS.parents[1]), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def show(report: dict[str, Any]) -> None:
    """Print medians, ratios and load."""
    print(f"\n{'steps/s':28}{'median':>8}{'min':>8}{'max':>8}   disturbed turns")
    for name, entry in report["contenders"].items():
        others = [each["cores_used_by_others"] for each in entry["turns"]]
        noise = "unknown" if None in others else f"{sum(used > QUIET for used in others)} of {len(others)}"
        print(f"{name:28}{entry['median']:8.1f}{entry['min']:8.1f}{entry['max']:8.1f}   {noise}")
    if report["ratios"]:
        print(f"\n{'ratio of medians':44}{'':8}single rounds")
    for each in report["ratios"]:
        span = f"{each['min']:.2f} to {each['max']:.2f}"
        print(f"{each['of'] + ' / ' + each['to']:44}{each['ratio']:6.2f}  {span}")
    used = [each["cores_used_by_others"] or 0 for e in report["contenders"].values() for each in e["turns"]]
    if sum(cores > QUIET for cores in used) > len(used) / 5:
        print("\nThe machine was busy with other things: these ratios mean little. Repeat when it is quiet.")
    before, after = report["machine"]["load_before"], report["machine"]["load_after"]
    print(f"\nload average before {before[0]:.2f}, after {after[0]:.2f}")


def measure_peers(options: argparse.Namespace, rounds: int, seconds: float, report: dict[str, Any]) -> None:
    """Measure one process for each contender, one at a time."""
    workers = {
        name: worker
        for name in options.only
        if (worker := start(name, options.python(name), options.threads, report=report))
    }
    run_and_close({name: [worker] for name, worker in workers.items()}, rounds, seconds, report)
    report["ratios"] = [found for pair in RATIOS if (found := ratio(report, *pair))]


def measure_seeds(options: argparse.Namespace, rounds: int, seconds: float, report: dict[str, Any]) -> None:
    """Measure processes of one thread at once against one process of two threads: seeds one after the other.

    The same processes serve for 2, 4 and 8 at once.
    """
    entries: dict[str, list[Worker]] = {}
    for name in options.only:
        python = options.python(name)
        many = [worker for _ in range(max(AT_ONCE)) if (worker := start(name, python, 1, report=report))]
        single = start(name, python, 2, report=report)
        if single and len(many) == max(AT_ONCE):
            entries[_seeds(name, 1)] = [single]
            entries |= {_seeds(name, count): many[:count] for count in AT_ONCE}
    run_and_close(entries, rounds, seconds, report)
    contenders = report["contenders"]
    pairs = [(_seeds(n, count), _seeds(n, 1)) for n in options.only for count in AT_ONCE]
    if "sb3-td3" in options.only:
        pairs += [(_seeds("qscape-td3", count), _seeds("sb3-td3", count)) for count in (1, *AT_ONCE)]
    report["ratios"] = [found for pair in pairs if (found := ratio(report, *pair))]
    for name in contenders:
        peak = [each["peak_memory_mb"] for each in contenders[name]["turns"]]
        contenders[name]["peak_memory_mb_of_a_process"] = max(peak)
        print(f"{name:28} at most {max(peak):,.0f} MB a process")


def _seeds(name: str, count: int) -> str:
    return f"{name} {count} x 1 thread" if count > 1 else f"{name} 1 x 2 threads"


def run_and_close(
    entries: dict[str, list[Worker]], rounds: int, seconds: float, report: dict[str, Any]
) -> None:
    try:
        if entries:
            play(entries, rounds, seconds, report)
    finally:
        for worker in {id(w): w for workers in entries.values() for w in workers}.values():
            worker.close()


def interpreter(given: Sequence[str]) -> Callable[[str], str]:
    """Parse ["sbx=/venv/bin/python"]; return a function from a contender to its interpreter.

    An entry can name a contender or a library, such as `sbx` for `sbx-td3`.
    """
    table = dict(item.split("=", 1) for item in given)
    return lambda name: table.get(name) or table.get(name.split("-")[0]) or sys.executable


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument(
        "--seeds", action="store_true", help="2, 4 and 8 processes of one thread against one of two"
    )
    parser.add_argument(
        "--on-policy", action="store_true", help="PPO on CartPole-v1, not off-policy agents on HalfCheetah-v5"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="of every contender (with --seeds always 1 and 2)"
    )
    parser.add_argument("--only", metavar="NAME,NAME", help=f"some of {', '.join(MODULES)}")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="interpreter of a contender, or of a family (sbx=/other/bin/python); repeatable",
    )
    parser.add_argument("--out", type=Path, help="JSON file (default: a new one in results/throughput)")
    options = parser.parse_args()
    everyone = list(ON_POLICY if options.on_policy else OFF_POLICY)
    if options.seeds:
        everyone = ["qscape-ppo"] if options.on_policy else ["qscape-td3", "qscape-td7", "sb3-td3"]
    options.only = options.only.split(",") if options.only else everyone
    if unknown := set(options.only) - set(MODULES):
        parser.error(f"no contender {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    if wrong := [item for item in options.python if "=" not in item]:
        parser.error(f"--python takes NAME=PATH, not {wrong[0]}")
    if options.threads < 1:
        parser.error(f"--threads is {options.threads}; at least 1 is needed")
    options.python = interpreter(options.python)
    return options


def main() -> int:
    options = parse()
    rounds, seconds = QUICK if options.quick else FULL
    mode = ("on-policy-" if options.on_policy else "") + ("seeds" if options.seeds else "peers")
    mode += "-quick" if options.quick else ""
    task = {"env": ENV, "batch": BATCH, "widths": WIDTHS, "replay": CAPACITY, "random_steps": WARM_UP}
    if options.on_policy:
        task = {name: PPOTask.of(name)._asdict() for name in options.only}
    report: dict[str, Any] = {
        "command": [  # interpreters stand where this machine has them, which means nothing elsewhere
            "benchmarks/throughput.py",
            *(re.sub(r"=.*/.*", "=PYTHON", argument) for argument in sys.argv[1:]),
        ],
        "mode": mode,
        "machine": machine(options.threads),
        "task": task,
        "rounds": rounds,
        "seconds_per_turn": seconds,
        "left_out": {},
        "contenders": {},
    }
    (measure_seeds if options.seeds else measure_peers)(options, rounds, seconds, report)
    report["machine"]["load_after"] = os.getloadavg()
    if not report["contenders"]:
        print("no contender ran", file=sys.stderr)
        return 1
    show(report)
    path = options.out or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}-{mode}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"raw data: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
