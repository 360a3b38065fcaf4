"""Compare offline agents with behaviour cloning on a Pendulum dataset of mixed quality.

python benchmarks/offline.py --steps 10000 --seeds 5

The script trains TD3 and records a dataset: a third of the episodes each with the trained policy, the
policy with noise, and random actions. It then trains every recipe on the whole dataset. It prints the mean
of the final evaluation over seeds with a 95% t interval, and writes the settings and the returns of
every final evaluation to benchmarks/results/offline/pendulum.json. Needs the extra `offline`.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import minari
import numpy as np

import qscape as qs
from qscape.report import intervals
from qscape.run.folder import origin
from qscape.run.record import record_dataset

FILE = Path(__file__).parent / "results" / "offline" / "pendulum.json"

RECIPES = ("bc", "td7", "td3+bc", "iql")
MIXTURE = {"trained": 0.0, "noisy": 0.5, "random": 0.0}  # policy: std of its noise


def dataset(folder: Path, episodes: int, steps: int) -> str:
    """Record a dataset of mixed quality and return its name."""
    run = folder / "td3"
    for _ in qs.train(qs.Plan("td3", "Pendulum-v1", steps, eval_every=0), run):
        pass
    parts = [
        record_dataset(run, f"benchmark/{kind}-v0", episodes, kind, noise, seed=1_000 * k)
        for k, (kind, noise) in enumerate(MIXTURE.items())
    ]
    minari.combine_datasets(parts, "benchmark/mixed-v0")
    return "benchmark/mixed-v0"


def main() -> None:
    """Record the dataset, train every recipe, and print one line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000, help="updates of each offline run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=20, help="of each kind in the dataset")
    parser.add_argument("--expert", type=int, default=8_000, help="steps of the TD3 run that is recorded")
    parser.add_argument("--out", type=Path, help="where runs and datasets are kept")
    given = parser.parse_args()
    folder = given.out or Path(tempfile.mkdtemp())
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "datasets")
    name = dataset(folder, given.episodes, given.expert)
    behaviour = [float(e.rewards.sum()) for e in minari.load_dataset(name).iterate_episodes()]
    rows: list[dict[str, Any]] = []
    for recipe in RECIPES:
        finals = []
        for seed in range(given.seeds):
            plan = qs.Plan(recipe, "", given.steps, seed, dataset=name, eval_every=given.steps)
            *_, last = (e for e in qs.train(plan, folder / recipe / str(seed)) if hasattr(e, "returns"))
            finals.append(float(np.mean(last.returns)))
            rows.append({"recipe": recipe, "seed": seed, "returns": [float(x) for x in last.returns]})
        mean, low, high = intervals.estimate(intervals.mean(np.array(finals)[:, None]))
        said = " ".join(f"{x:.1f}" for x in finals)
        print(f"{recipe:8} {mean:9.1f} [{low:.1f}, {high:.1f}]   {said}", flush=True)
    settings = {"steps": given.steps, "expert": given.expert, "episodes": given.episodes, "mixture": MIXTURE}
    about = origin() | settings | {"command": " ".join(["python", *sys.argv]), "behaviour": behaviour}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(about | {"rows": rows}) + "\n")
    print(FILE)


if __name__ == "__main__":
    main()
