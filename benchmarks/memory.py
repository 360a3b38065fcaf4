"""Measure peak memory with a full replay buffer of 1M rows, beside Stable-Baselines3.

    python benchmarks/memory.py --python sb3=/other/venv/bin/python   # about 40 minutes
    python benchmarks/memory.py --rows 20000 --envs HalfCheetah-v5    # a quick test

Each contender is a process of its own: TD3, networks 256-256, batch size 256, as many random steps as the
buffer has rows, then 500 steps with an update each. `qscape` is `qscape train`, whose last save writes the
buffer too, and `derived` the same with `--base.next-observation derived`; `sb3` saves nothing. A first,
uncounted process with few steps fills the cache of compiled programs. Peak memory is the greatest resident
set of the process and its children. Writes what it measured into benchmarks/results/memory.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results" / "memory.json"
UPDATES = 500
LIBRARIES = ("qscape", "derived", "sb3")


def train_qscape(env: str, rows: int, filled: int, *flags: str) -> None:
    """Train as the command line does; `filled` rows of the buffer are filled by random steps."""
    from qscape.cli import main

    with tempfile.TemporaryDirectory() as place:
        sizes = ["--base.warmup", filled, "--base.replay-capacity", rows, "--steps", filled + UPDATES]
        seldom = ["--eval-every", 0, "--log-every", rows, "--save-every", rows + UPDATES, "--quiet"]
        if code := main(["train", "td3", "--env", env, *map(str, (*sizes, *seldom)), *flags, "--out", place]):
            sys.exit(code)


def train_derived(env: str, rows: int, filled: int) -> None:
    """Train without keeping an observation twice."""
    train_qscape(env, rows, filled, "--base.next-observation", "derived")


def train_sb3(env: str, rows: int, filled: int) -> None:
    """Train with the same sizes in Stable-Baselines3."""
    from stable_baselines3 import TD3

    widths = {"net_arch": [256, 256]}
    sizes = {"buffer_size": rows, "learning_starts": filled, "batch_size": 256, "policy_kwargs": widths}
    TD3("MlpPolicy", env, device="cpu", seed=0, **sizes).learn(filled + UPDATES, log_interval=None)


def measure(python: str, library: str, env: str, sizes: list[int], cache: str) -> float:
    """Return the peak memory of one process, in MB; `sizes`: rows of the buffer and those to fill."""
    given = [python, __file__, "--child", library, *map(str, sizes), "--envs", env]
    process = subprocess.Popen(given, env=os.environ | {"XDG_CACHE_HOME": cache}, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{library} in {env} failed with exit status {code}")
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5", "Humanoid-v5"], metavar="ENV")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--python", action="append", default=[], metavar="LIBRARY=PATH")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        library, rows, filled = options.child
        {"qscape": train_qscape, "derived": train_derived, "sb3": train_sb3}[library](
            options.envs[0], int(rows), int(filled)
        )
        return
    other = dict(given.split("=", 1) for given in options.python)
    pythons = {library: other.get(library, sys.executable) for library in options.libraries}
    found: dict[str, dict[str, list[float]]] = json.loads(RESULTS.read_text())["peak_mb"]
    with tempfile.TemporaryDirectory() as cache:
        for env in options.envs:
            for library in set(pythons) - {"sb3"}:
                measure(pythons[library], library, env, [options.rows, 1_000], cache)
            measured = {library: [] for library in pythons}
            for _ in range(options.rounds):
                for library, python in pythons.items():
                    measured[library].append(
                        measure(python, library, env, [options.rows, options.rows], cache)
                    )
            found[env] = {**found.get(env, {}), **measured}
            medians = {library: sorted(of)[len(of) // 2] for library, of in found[env].items()}
            print(env, *(f"{library} {mb:,.0f} MB" for library, mb in medians.items()), flush=True)
    if options.rows == 1_000_000:
        RESULTS.write_text(json.dumps({"rows": options.rows, "peak_mb": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
