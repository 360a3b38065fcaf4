"""Recorded learning runs: equal budgets, all seeds kept, raw data in benchmarks/results/learning.

    python benchmarks/learning.py pendulum          # TD3, SAC, TD7: Pendulum-v1, 20k steps, 5 seeds
    python benchmarks/learning.py mujoco            # TD3, TD7: HalfCheetah-v5, Hopper-v5, 100k steps, 3 seeds
    python benchmarks/learning.py mujoco --collect  # only copy what is finished

One process to a core, one XLA thread each. Started again, it goes on where it was.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from qscape.run.events import Evaluated
from qscape.run.plan import Plan
from qscape.run.pool import Failure, Pool
from qscape.run.worker import Job

RESULTS = Path(__file__).parent / "results" / "learning"
STUDIES = {
    "pendulum": [
        Plan(
            recipe,
            "Pendulum-v1",
            20_000,
            seed=seed,
            settings={"base": {"warmup": 1_000}},
            eval_every=2_500,
            eval_episodes=100,
        )
        for recipe in ("td3", "sac", "td7")
        for seed in range(5)
    ],
    "mujoco": [
        Plan(recipe, env, 100_000, seed=seed)
        for recipe in ("td3", "td7")
        for seed in range(3)
        for env in ("HalfCheetah-v5", "Hopper-v5")
    ],
}


def job_of(plan: Plan, runs: Path) -> Job | None:
    """What is left to do for a plan: train, resume, or nothing."""
    folder = runs / plan.env / plan.recipe / str(plan.seed)
    if not (folder / "run.json").exists():
        return Job("train", folder, plan, overwrite=True)
    return None if finished(folder, plan) else Job("resume", folder)


def finished(folder: Path, plan: Plan) -> bool:
    """Is the last save that of the last step?"""
    return (folder / "saves" / f"{plan.steps:09d}" / "save.json").exists()


def show(job: Job, told: object) -> None:
    """Print an evaluation or a failure."""
    if isinstance(told, Evaluated):
        print(time.strftime("%H:%M:%S"), job.folder, f"{told.step} {told.policy} {told.mean:.1f}", flush=True)
    elif isinstance(told, Failure):
        print(time.strftime("%H:%M:%S"), job.folder, told.why, flush=True)


def collect(plans: list[Plan], runs: Path) -> None:
    """Copy run.json, evaluations and metrics of finished runs."""
    for plan in plans:
        folder = runs / plan.env / plan.recipe / str(plan.seed)
        if finished(folder, plan):
            place = RESULTS / plan.env / plan.recipe / str(plan.seed)
            place.mkdir(parents=True, exist_ok=True)
            for name in ("run.json", "evaluations.csv", "metrics.jsonl"):
                shutil.copy(folder / name, place / name)


def main() -> None:
    """Run what is missing of a study with `--workers` processes, then collect it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("--collect", action="store_true", help="run nothing, copy what is finished")
    args = parser.parse_args()
    plans = STUDIES[args.study]
    waiting = [] if args.collect else [job for plan in plans if (job := job_of(plan, args.runs))]
    for k, told in Pool(iter(enumerate(waiting)), args.workers).events():
        show(waiting[k], told)
    collect(plans, args.runs)
    left = [plan for plan in plans if job_of(plan, args.runs)]
    print(f"{len(plans) - len(left)} of {len(plans)} runs complete")
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
