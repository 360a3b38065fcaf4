"""What scripts share that measure the finished runs of a study: which these are, and the file of results."""

import json
import sys
from pathlib import Path
from typing import Any

from blocks import RESULTS, strip_places

from qscape.report.runs import find_runs
from qscape.run.folder import origin, unfinished


def finished(runs: Path) -> tuple[list[Path], list[str]]:
    """Return the finished runs in a folder, and the names of the others, which are printed."""
    folders = find_runs(runs)
    left_out = [str(folder.relative_to(runs)) for folder in folders if unfinished(folder)]
    for name in left_out:
        print(f"left out, not finished: {name}", flush=True)
    return [folder for folder in folders if not unfinished(folder)], left_out


def write(what: str, name: str, **about: Any) -> None:
    """Write results/WHAT/NAME.json: versions, machine and command, and what was measured."""
    file = RESULTS / what / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    command = {"command": strip_places(" ".join(["python", *sys.argv]))}
    file.write_text(json.dumps(origin() | command | about, indent=1) + "\n")
    print(f"written: {file}")
