"""Measure how long an HTML report takes and how large it is: 100 runs of 200 evaluations of 10 episodes.

    python benchmarks/html_report.py

The script writes run folders of five agents on four environments with five seeds and random returns. It
then times `qscape compare RUNS --html FILE` in a process of its own. It exits with code 1 if that takes
more than 15 s, or if the page is larger than 6 MB.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from runs_on_disk import write_run  # writes the run folders that the tests compare

ENVS = ("Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")
AGENTS = ("td3", "sac", "td7", "td3+pave", "sac+savgo")
SEEDS, EVALUATIONS, EPISODES, EVERY = 5, 200, 10, 5_000
SECONDS, MEGABYTES = 15.0, 6.0


def make(folder: Path) -> None:
    """Write run folders with learning curves that rise with random scatter."""
    rng = np.random.default_rng(0)
    steps = EVERY * np.arange(1, EVALUATIONS + 1)
    for env in ENVS:
        for k, agent in enumerate(AGENTS):
            for seed in range(SEEDS):
                mean = 1000 * (k + 3) * (1 - np.exp(-steps / 300_000)) * rng.uniform(0.8, 1.2)
                returns = mean[:, None] + rng.normal(0, 200, (EVALUATIONS, EPISODES))
                points = dict(zip(steps.tolist(), returns.tolist(), strict=True))
                write_run(folder / env / agent / str(seed), label=agent, env=env, seed=seed, returns=points)


def main() -> int:
    """Write the run folders, time the report, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--html", type=Path, help="keep the report here")
    keep = parser.parse_args().html
    with tempfile.TemporaryDirectory() as place:
        runs, file = Path(place) / "runs", keep or Path(place) / "report.html"
        make(runs)
        began = time.perf_counter()
        command = [sys.executable, "-m", "qscape", "compare", str(runs), "--html", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, megabytes = time.perf_counter() - began, file.stat().st_size / 1e6
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # roughly the time on an idle machine
    cpu = used.ru_utime + used.ru_stime
    print(f"{len(ENVS) * len(AGENTS) * SEEDS} runs of {EVALUATIONS} evaluations of {EPISODES} episodes:")
    print(f"{seconds:.1f} s (limit: {SECONDS:.0f}), {cpu:.1f} s of a core")
    print(f"{megabytes:.2f} MB (limit: {MEGABYTES:.0f})")
    return int(seconds > SECONDS or megabytes > MEGABYTES)


if __name__ == "__main__":
    raise SystemExit(main())
