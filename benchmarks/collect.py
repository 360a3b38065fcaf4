"""Copy the raw data of a study's finished runs to benchmarks/results/learning.

python benchmarks/collect.py runs/pendulum
"""

import argparse
import json
import shutil
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "learning"
FILES = ("run.json", "evaluations.csv", "metrics.jsonl")


def main() -> None:
    """Copy run.json, evaluations.csv and metrics.jsonl of every finished run; name the unfinished ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    runs = parser.parse_args().runs
    for record in sorted(runs.glob("**/run.json")):
        folder, plan = record.parent, json.loads(record.read_text())
        if not (folder / "saves" / f"{plan['steps']:09d}" / "save.json").exists():
            print(f"left out, not finished: {folder}")
            continue
        place = RESULTS / runs.name / folder.relative_to(runs)
        place.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(folder / name, place / name)


if __name__ == "__main__":
    main()
