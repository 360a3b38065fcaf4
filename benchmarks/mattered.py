"""Measure how often `qscape tune` names the fields that mattered, and how often fields that did not.

    python benchmarks/mattered.py            # a quarter of an hour on one core
    python benchmarks/mattered.py --tables   # the table of docs/how-to/tune.md alone

Searches of 20, 50 and 100 trials by the sampler of `qscape tune`, in which the score depends on no field, on
one alone, on one beside noise, or on two of them; or in which all trials tie. For each the script records
what Optuna's PED-ANOVA gives by itself, as qscape printed it before, and what `find_influences` names. Writes
results/mattered.json, and the table of docs/how-to/tune.md from it.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from blocks import RESULTS, ROOT, table, write_table

from qscape.jobs import tune

PAGE = ROOT / "docs" / "how-to" / "tune.md"
FILE = RESULTS / "mattered.json"
SEARCHES, TRIALS, FIELDS = 60, (20, 50, 100), (2, 5)

Score = Callable[[np.ndarray, np.random.Generator], float]
SCORES: dict[str, tuple[int, Score]] = {  # how many fields matter, and the score of values in [0, 1]
    "none": (0, lambda x, rng: rng.normal()),
    "one": (1, lambda x, rng: -((x[0] - 0.7) ** 2)),
    "one, with noise": (1, lambda x, rng: -12 * (x[0] - 0.7) ** 2 + rng.normal()),
    "two": (2, lambda x, rng: -((x[0] - 0.7) ** 2) - (x[1] - 0.3) ** 2),
    "none, all tie": (0, lambda x, rng: 1.0),
}


def search(score: Score, trials: int, fields: int, seed: int) -> optuna.Study:
    """Make a search like one of `qscape tune`, with fields from 0 to 1."""
    rng = np.random.default_rng(seed)
    study = optuna.create_study(direction="maximize")
    for number in range(trials):
        study.sampler = tune._make_sampler(seed, number)
        trial = study.ask()
        values = np.array([trial.suggest_float(f"x{k}", 0.0, 1.0) for k in range(fields)])
        study.tell(trial, score(values, rng))
    return study


def judge(kind: str, trials: int, fields: int) -> dict[str, Any]:
    """Return what is said of the searches of one kind."""
    mattering, score = SCORES[kind]
    right = {f"x{k}" for k in range(mattering)}
    first, largest, named = [], [], []
    for seed in range(SEARCHES):
        study = search(score, trials, fields, seed)
        shares = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
        first.append(next(iter(shares)))
        largest.append(max(shares.values()))
        named.append(tune.find_influences(study, fewest=2))
    return {
        "score depends on": kind,
        "fields": fields,
        "trials": trials,
        "PED-ANOVA alone": {
            "median of the largest share": statistics.median(largest),
            "largest share above 0.8": float(np.mean(np.array(largest) > 0.8)),
            "first is right": float(np.mean([name in right for name in first])),
        },
        "qscape": {
            "a right field named": float(np.mean([bool(right & {*(one or ())}) for one in named])),
            "all right fields named": float(np.mean([right <= {*(one or ())} for one in named])),
            "a wrong field named": float(np.mean([bool({*(one or ())} - right) for one in named])),
            "first is right": float(np.mean([next(iter(one or ()), None) in right for one in named])),
        },
    }


def mattered_table(found: dict[str, Any]) -> str:
    """Format the results."""
    rows = []
    for row in found["searches"]:
        alone, ours = row["PED-ANOVA alone"], row["qscape"]
        matter = not row["score depends on"].startswith("none")
        rows.append(
            [
                row["score depends on"],
                str(row["fields"]),
                str(row["trials"]),
                f"{alone['median of the largest share']:.2f}",
                f"{alone['first is right']:.2f}" if matter else "–",
                f"{ours['a right field named']:.2f}" if matter else "–",
                f"{ours['a wrong field named']:.2f}",
            ]
        )
    names = ["score depends on", "fields", "trials", "largest share alone", "its field is right"]
    return table([*names, "a right field named", "a wrong field named"], rows)


def simulate() -> dict[str, Any]:
    """Run all searches."""
    kinds = [(kind, n, k) for k in FIELDS for kind in SCORES for n in TRIALS]
    about = {"searches": SEARCHES, "shuffles": tune.SHUFFLES, "optuna": optuna.__version__}
    return {"about": about, "searches": [judge(*kind) for kind in kinds]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="write the table of the recorded results")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    if not parser.parse_args().tables:
        FILE.write_text(json.dumps(simulate(), indent=1) + "\n", encoding="utf-8")
    write_table(PAGE, "mattered", mattered_table(json.loads(FILE.read_text())))
