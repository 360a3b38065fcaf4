"""What scripts that measure share: which runs of a study are finished, and the files of results."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
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
    file.write_text(json.dumps(_source() | about, indent=1) + "\n")
    print(f"written: {file}")


def renew_part(name: str, part: str, **about: Any) -> None:
    """Renew one part of results/NAME.json, as `write` writes a file; its other parts stay as they are."""
    file = RESULTS / f"{name}.json"
    parts = json.loads(file.read_text()) if file.exists() else {}
    text = json.dumps(parts | {part: _source() | about}, indent=1)
    lists_in_a_line = re.sub(r"\[[^][{}\"]*\]", lambda numbers: "".join(numbers[0].split()), text)
    file.write_text(lists_in_a_line + "\n")
    print(f"written: {part} of {file}")


def time_turns(program: Callable[[], Any], turns: int) -> list[float]:
    """Run a compiled program once to warm up, then time it; return the seconds of every turn."""
    jax.block_until_ready(program())
    seconds = []
    for _ in range(turns):
        begun = time.perf_counter()
        jax.block_until_ready(program())
        seconds.append(round(time.perf_counter() - begun, 6))
    return seconds


def _source() -> dict[str, Any]:
    """Describe where the numbers come from: versions, source, machine, date and command."""
    return origin() | {"command": strip_places(" ".join(["python", *sys.argv]))}
