"""Run folders as one pandas table: a row for each run, evaluation and policy."""

import glob
import io
import json
import os
import warnings
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

from qscape.errors import UsageError
from qscape.report import environment_label, require_extra

with require_extra("Tables of runs"):
    import numpy as np
    import pandas as pd

MARKS = {"run.json", "evaluations.csv", "metrics.jsonl"}  # one of them makes a folder a run, or half of one

MEANS = ("return", "length", "success")  # of the episodes of an evaluation
COUNTS = ("step", "episode", "seconds")  # what else is there of every run; further columns are a probe's
TYPES: dict[Hashable, Any] = {"step": "int64", **dict.fromkeys(MEANS, "float64")}

Paths = str | Path | Iterable[str | Path]


def load_runs(runs: Paths) -> pd.DataFrame:
    """The evaluations of runs: `qs.load_runs("runs/**")`.

    `runs`: one or more run folders, folders that hold some at any depth, or glob patterns.

    Columns: run (folder), recipe, label, env, seed, step, policy ("current", or "kept" where checkpoints keep
    one), return, length and success (means over the episodes of one evaluation; success is NaN where the
    environment reports none), the means of what probes measured, such as sm (NaN for runs without), episodes,
    budget (the steps the run was asked for).

    Folders that are broken or half written are left out, with a Python warning that names each.

    Raises:
        UsageError: no run is found.
    """
    frame, skipped = read_runs(runs)
    for sentence in skipped:
        warnings.warn(sentence, stacklevel=2)
    return frame


def read_runs(runs: Paths) -> tuple[pd.DataFrame, list[str]]:
    """What `load_runs` gives, and a sentence for each folder that was left out.

    Raises:
        UsageError: no run is found, or none that is whole.
    """
    frames, skipped = [], []
    for folder in find_runs(runs):
        try:
            frames.append(_read_run(folder))
        except (OSError, ValueError, KeyError, TypeError) as problem:
            why = f"it has no {problem}" if isinstance(problem, KeyError) else _describe_problem(problem)
            skipped.append(f"skipped {folder}: {why}")
    if not frames:
        raise UsageError(f"There is no whole run among {len(skipped)} folder(s): {'; '.join(skipped)}.")
    frame = pd.concat(frames, ignore_index=True)
    order = ["env", "label", "seed", "run", "policy", "step"]
    return frame.sort_values(order, kind="stable", ignore_index=True), skipped


def find_runs(runs: Paths) -> list[Path]:
    """Folders that hold a run or a part of one, each once.

    Raises:
        UsageError: there is none at one of the paths.
    """
    found: dict[Path, Path] = {}
    for path in [runs] if isinstance(runs, str | Path) else runs:
        # Labels hold square brackets: a path that exists is no pattern.
        roots = [Path(path)] if Path(path).exists() else map(Path, glob.glob(str(path), recursive=True))
        inside = [folder for root in roots for folder in _find_below(root)]
        if not inside:
            raise UsageError(
                f"{path} is no run and holds none: there is no run.json in it or in a folder below it."
            )
        for folder in inside:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _find_below(root: Path) -> Iterator[Path]:
    if root.name in MARKS and root.is_file():
        yield root.parent
    for place, folders, files in os.walk(root):
        if MARKS & set(files):
            folders.clear()
            yield Path(place)
        folders[:] = sorted(f for f in folders if not f.startswith("."))


def read_episodes(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """run.json and evaluations.csv of one run, a row for each episode, without what was broken off.

    Raises:
        ValueError, KeyError, TypeError or OSError where it is broken.
    """
    record = json.loads((folder / "run.json").read_text())
    if not isinstance(record, dict):
        raise ValueError("run.json is broken")
    text = (folder / "evaluations.csv").read_text()
    whole = text[: text.rfind("\n") + 1]  # a run that is being written, or was killed, may end in half a line
    if not whole:
        raise ValueError("evaluations.csv is empty")
    rows = pd.read_csv(io.StringIO(whole), dtype=TYPES)
    if not np.isfinite(rows["return"]).all():
        raise ValueError("evaluations.csv holds a return that is no finite number")
    if rows.empty:
        raise ValueError("it holds no evaluation yet")
    sizes = rows.groupby(["step", "policy"])["return"].transform("size")
    if sizes.iloc[-1] < sizes.max():  # broken off in the middle of its last evaluation
        rows = rows.iloc[: -sizes.iloc[-1]]
    return record, rows


def _read_run(folder: Path) -> pd.DataFrame:
    """The evaluations of one run, a row for each; raises what `read_episodes` raises."""
    record, rows = read_episodes(folder)
    probed = [name for name in rows.select_dtypes("number") if name not in (*MEANS, *COUNTS)]
    points = rows.groupby(["step", "policy"], as_index=False).agg(
        **{name: (name, "mean") for name in (*MEANS, *probed)},  # type: ignore[arg-type]
        episodes=("return", "size"),
    )
    head = identify_run(folder, record)
    return pd.DataFrame(head, index=points.index).join(points).assign(budget=int(record["steps"]))


def identify_run(folder: Path | str, record: dict[str, Any]) -> dict[str, Any]:
    """What says which run a row is of: run, recipe, label, env, seed."""
    return {
        "run": str(folder),
        "recipe": record["recipe"],
        "label": str(record.get("label") or record["recipe"]),
        "env": environment_label(record),
        "seed": int(record["seed"]),
    }


def _describe_problem(problem: Exception) -> str:
    if isinstance(problem, FileNotFoundError):
        return f"it has no {Path(str(problem.filename)).name}"
    if isinstance(problem, json.JSONDecodeError):
        return "run.json is broken"
    return str(problem).strip().split("\n")[0]
