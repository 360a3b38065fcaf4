"""Breaks things at random, in one area after the other, and prints how many trials each area survived."""

import argparse
import itertools
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/, where `tiny` is

from faults.areas import AREAS, try_once
from faults.trial import Bench, set_up

parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
parser.add_argument("--minutes", type=float, default=60.0, help="how long to try")
parser.add_argument("--area", nargs="+", choices=[*AREAS], default=[*AREAS], help="which areas")
parser.add_argument("--seed", type=int, default=0, help="another seed tries other faults")
parser.add_argument("--trial", type=int, help="this trial alone, as a failure names it")
given = parser.parse_args()

set_up()
place = Path(tempfile.mkdtemp(prefix="qscape-faults-"))
bench = Bench(place / "whole")
end = time.monotonic() + 60 * given.minutes
tried, survived = Counter[str](), Counter[str]()
for trial in itertools.count() if given.trial is None else [given.trial]:
    for area in given.area:
        if time.monotonic() > end:
            break
        what, problem, skipped = try_once(area, given.seed, trial, place / f"{area}-{trial}", bench)
        tried[area] += not skipped
        survived[area] += not skipped and not problem
        state = "skipped" if skipped else "FAILED" if problem else "survived"
        print(f"{area:<13}{trial:>4}  {state:<9} {problem or what}", flush=True)
    if time.monotonic() > end:
        break

print(f"\n{'area':<13}{'tried':>9}{'survived':>9}")
for area in given.area:
    print(f"{area:<13}{tried[area]:>9}{survived[area]:>9}")
sys.exit(tried != survived)
