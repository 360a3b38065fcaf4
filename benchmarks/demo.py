"""The claim of `make demo`: whether the runs just made bear it out, and how many recorded tries did.

    python benchmarks/demo.py              # of the runs in runs/make-demo
    python benchmarks/demo.py --check      # the same, and exit status 1 if they do not bear it out
    python benchmarks/demo.py --record 20  # tries with other seeds, up to 20; it goes on where it stopped

A try is the study `make-demo` with five other seeds: the n-th has the seeds 5n to 5n + 4, and the demo itself
is try 0. The figures of a try are a line of results/demo/tries.jsonl. The first ten are not counted: the
claim was fixed when they had been made.
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from blocks import RESULTS

import qscape as qs
from qscape.errors import NotFound
from qscape.report.intervals import FEWEST, estimate, interquartile_mean, mean

PLAIN, SMOOTH = "td3", "td3+pave"
MEASURES = ("sm", "return")
RUNS = Path("runs") / "make-demo"
TRIES = RESULTS / "demo" / "tries.jsonl"
MOST, LEARNT = 0.8, -600.0
DESIGN = 10  # tries after which the claim was fixed: an earlier one, on returns too, failed in two of them
CLAIM = (
    f"after 8,000 steps PAVE makes TD3's torque oscillate less: the sm of {SMOOTH} is lower in every pair of "
    f"runs with the same seed (of five, by chance once in 32), at most {MOST:g} times that of {PLAIN} in the "
    f"geometric mean, and its return above {LEARNT:g} (untrained, it is about -1,200)."
)

Figures = Mapping[str, Mapping[str, Sequence[float]]]  # recipe -> "sm" or "return" -> a number for each seed


class Verdict(NamedTuple):
    """What runs say of the claim.

    Attributes:
        borne_out: whether they bear it out.
        because: their figures, or what is missing, as a sentence.
    """

    borne_out: bool
    because: str


def judge(figures: Figures) -> Verdict:
    """Compare figures with the claim; a run that is missing or has no finite figure bears nothing out."""
    plain, smooth = (
        {name: np.array(figures[recipe][name], float) for name in MEASURES} for recipe in (PLAIN, SMOOTH)
    )
    finite = np.all([np.isfinite(of) for each in (plain, smooth) for of in each.values()], axis=0)
    if (pairs := int(finite.sum())) < max(FEWEST, len(finite)):
        why = f"only {pairs} of {max(FEWEST, len(finite))} pairs of runs have figures"
        return Verdict(False, f"{why}; `make demo` goes on with what is missing.")
    ratio = estimate(mean(np.log(smooth["sm"] / plain["sm"])[:, None]))
    factor, low, high = (math.exp(x) for x in ratio)
    returns = [float(interquartile_mean(each["return"][:, None]).value) for each in (smooth, plain)]
    lower = int((smooth["sm"] < plain["sm"]).sum())
    because = (
        f"sm {np.median(smooth['sm']):.2f} with PAVE and {np.median(plain['sm']):.2f} without, lower in "
        f"{lower} of {pairs} seeds, {factor:.2f} times as high [95%: {low:.2f}, {high:.2f}]; "
        f"return {returns[0]:.0f} with PAVE and {returns[1]:.0f} without."
    )
    return Verdict(lower == pairs and factor <= MOST and returns[0] > LEARNT, because)


def measure(folder: Path, seeds: Sequence[int] | None = None) -> Figures:
    """Read the last evaluations of finished runs below a folder.

    Args:
        folder: holds the runs of both recipes.
        seeds: of the runs; None: all that one of the recipes has.

    Returns:
        The figures in the order of the seeds, NaN where a run is missing or not finished.
    """
    try:
        rows = qs.load_runs(folder)
    except NotFound:
        return {recipe: {"sm": [], "return": []} for recipe in (PLAIN, SMOOTH)}
    last = rows[rows["step"] >= rows["budget"]].set_index(["recipe", "seed"])
    order = sorted(set(rows["seed"])) if seeds is None else seeds
    return {
        recipe: {
            name: [float(last[name].get((recipe, seed), math.nan)) for seed in order]
            for name in ("sm", "return")
        }
        for recipe in (PLAIN, SMOOTH)
    }


def read_tries() -> list[dict]:
    """Read the recorded tries, in the order in which they were made."""
    return [json.loads(line) for line in TRIES.read_text().splitlines()] if TRIES.exists() else []


def record(tries: int) -> None:
    """Make the tries that are not recorded, one run after the other, and add a line for each.

    Args:
        tries: how many there shall be after those of the design.
    """
    from qscape.jobs.study import find_study, read_study

    for number in range(len(read_tries()) + 1, DESIGN + tries + 1):
        folder = RUNS.with_name("make-demo-tries") / str(number)
        rows = read_study(find_study("make-demo"), "full", folder).rows
        seeds = sorted({row.plan.seed for row in rows})
        others = [number * len(seeds) + seed for seed in seeds]
        for plan, place in rows:
            other = number * len(seeds) + plan.seed
            _finish(dataclasses.replace(plan, seed=other), place.with_name(str(other)))
        figures = measure(folder, others)
        about = {
            "try": number,
            "seeds": others,
            "version": version("qscape"),
            "date": time.strftime("%Y-%m-%d"),
        }
        TRIES.parent.mkdir(parents=True, exist_ok=True)
        with TRIES.open("a") as file:
            file.write(json.dumps({**about, **figures}) + "\n")
        print(f"try {number}: {judge(figures).because}", flush=True)


def _finish(plan: qs.Plan, folder: Path) -> None:
    """Train a run unless it is there; one that was interrupted begins again."""
    rows = qs.load_runs(folder) if (folder / "evaluations.csv").exists() else None
    if rows is None or rows["step"].max() < plan.steps:
        for _ in qs.train(plan, folder, overwrite=folder.exists()):
            pass


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="exit status 1 if the claim is not borne out")
    parser.add_argument("--record", type=int, metavar="TRIES", help="record tries with other seeds")
    given = parser.parse_args()
    if given.record is not None:
        record(given.record)
        return 0
    verdict = judge(measure(RUNS))
    past = [judge(each).borne_out for each in read_tries()[DESIGN:]]
    print(f"The claim: {CLAIM}")
    print(f"This run {'bears it out' if verdict.borne_out else 'does NOT bear it out'}: {verdict.because}")
    print(f"Of {len(past)} recorded tries with other seeds, made after the claim, {sum(past)} bear it out.")
    return int(given.check and not verdict.borne_out)


if __name__ == "__main__":
    sys.exit(main())
