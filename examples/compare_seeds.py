"""Compare recipes over several seeds, with the events that `qscape.train` yields.

Each run gets its own run folder, as on the command line, so `qscape plot`, `evaluate` and `resume` work on
it. This program trains one run after the other. `qscape train --seeds 0 1 2` trains seeds side by side.

    python examples/compare_seeds.py
    python examples/compare_seeds.py --recipes td3 td3+lap sac --steps 20000 --seeds 0 1 2
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

import qscape as qs
from qscape.run.events import Ended, Evaluated


def final_return(recipe: str, env: str, steps: int, seed: int, out: Path) -> float:
    """Train one run and return the mean return of its last evaluation.

    Args:
        recipe: base and parts, such as `td3+lap`.
        env: Gymnasium id of the environment.
        steps: environment steps of the run, with an evaluation after each quarter.
        seed: of the run.
        out: folder for all runs; this one goes to `out/recipe/seed` and replaces a run that is there.
    """
    plan = qs.Plan(recipe, env, steps, seed=seed, eval_every=max(steps // 4, 1))
    last = float("nan")
    for event in qs.train(plan, out / recipe / str(seed), overwrite=True):
        if isinstance(event, Evaluated):  # with checkpoints, the event of the kept policy comes last
            last = event.mean
        elif isinstance(event, Ended):
            print(
                f"{recipe} seed {seed}: {event.updates} updates in {event.seconds:.0f} s, return {last:.1f}"
            )
    return last


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipes", nargs="+", default=["td3", "td3+lap"])
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    args = parser.parse_args()

    for recipe in args.recipes:
        returns = [final_return(recipe, args.env, args.steps, seed, args.out) for seed in args.seeds]
        spread = f" ± {stdev(returns):.1f} (standard deviation)" if len(returns) > 1 else ""
        print(f"{recipe}: {mean(returns):.1f}{spread} over {len(returns)} seed(s)")
    print(f"curves: qscape plot {' '.join(str(args.out / r) for r in args.recipes)} --png curves.png")


if __name__ == "__main__":
    main()
