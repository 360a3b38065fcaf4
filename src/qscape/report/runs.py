"""Run folders as one pandas table: a row for each run, evaluation and policy."""

import glob
import io
import os
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from qscape.errors import NotFound, one_line
from qscape.report import require_extra, task_label
from qscape.sealed import read_json, unseal
from qscape.tracking import track

with require_extra("Tables of runs"):
    import numpy as np
    import pandas as pd

MARKS = {"run.json", "evaluations.csv", "metrics.jsonl"}  # a folder with one of them is a run or part of one

STUDY = "study.json"  # in the folder of a study; lists its runs
NAMED = 8  # missing runs that a sentence names
MEANS = ("return", "length", "success")  # averaged over the episodes of an evaluation
COUNTS = ("step", "episode", "seconds")  # the other columns of every run; further columns belong to probes
TYPES: dict[Hashable, Any] = {"step": "int64", **dict.fromkeys(MEANS, "float64")}

Paths = str | Path | Iterable[str | Path]


class _Planned(TypedDict):
    """A run of a study, in study.json."""

    folder: str
    seed: int
    label: str
    env: str
    steps: int


class _Study(TypedDict):
    """The content of study.json."""

    name: str
    budget: str
    runs: list[_Planned]


class RunRecord(NamedTuple):
    """A run folder.

    Attributes:
        folder: its path.
        env: environment id with arguments and dataset.
        label: name of the agent in tables.
        seed: the run's seed.
        record: run.json.
        episodes: evaluations.csv: a row for each episode of the complete evaluations.
        findings: contents of RUN/inspect/NAME.json, by name, once `records.read_findings` read them.
    """

    folder: str
    env: str
    label: str
    seed: int
    record: Mapping[str, Any]
    episodes: pd.DataFrame
    findings: Mapping[str, Mapping[str, Any]] = {}


class RunFolders(NamedTuple):
    """What `read_runs` read.

    Attributes:
        frame: a row for each run, evaluation and policy, as `load_runs` returns it.
        skipped: a sentence for each skipped folder or doubtful task.
        runs: the complete runs, in the order in which they were found.
    """

    frame: pd.DataFrame
    skipped: list[str]
    runs: list[RunRecord]


def load_runs(runs: Paths) -> pd.DataFrame:
    """Load the evaluations of runs as a pandas DataFrame: `qs.load_runs("runs/**")`.

    Folders that are broken or incomplete are skipped, with a Python warning for each.

    Args:
        runs: one or more run folders, folders that hold some at any depth, or glob patterns.

    Returns:
        Columns run (folder), recipe, label, env (with its arguments and the dataset), seed, step, policy
        ("current", or "kept" if checkpoints keep one); return, length and success (means over
        the episodes of one evaluation; success is NaN if the environment reports none); the means of probe
        columns such as sm (NaN for runs without the probe); episodes; budget (the steps that the run was
        started with); dataset (as the run was given it; "" without one); ended_by ("" of a run that was not
        ended early); envs (the number of environments side by side).

    Raises:
        UsageError: no run is found.
    """
    read = read_runs(runs)
    for sentence in read.skipped:
        warnings.warn(sentence, stacklevel=2)
    return read.frame


def read_runs(runs: Paths) -> RunFolders:
    """Read run folders, each once: their records, their episodes, and the table that `load_runs` returns.

    Raises:
        UsageError: no run is found, or no complete one.
    """
    read, frames, folders = [], [], find_runs(runs)
    skipped = note_missing(runs, folders)
    for folder in track(folders, "runs to read"):
        try:
            run = _read_run(folder)
            frames.append(_average_episodes(run))
            read.append(run)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:  # of any damage
            why = f"it has no {problem}" if isinstance(problem, KeyError) else _describe_problem(problem)
            skipped.append(f"skipped {folder}: {why}")
    if not frames:
        raise NotFound(f"There is no complete run in {len(skipped)} folder(s): {'; '.join(skipped)}.")
    frame = pd.concat(frames, ignore_index=True)
    skipped += _note_shared_names(frame)
    order = ["env", "label", "seed", "run", "policy", "step"]
    return RunFolders(frame.sort_values(order, kind="stable", ignore_index=True), skipped, read)


def find_runs(runs: Paths) -> list[Path]:
    """Find the folders that hold a run or part of one, each once.

    Raises:
        UsageError: one of the paths holds none.
    """
    folders: dict[Path, Path] = {}
    for path in _list_paths(runs):
        inside = [folder for root in _match(path) for folder in _find_below(root)]
        if not inside and not Path(path).exists() and glob.has_magic(str(path)):
            raise NotFound(f"{path} matches no run, nor a folder with one below it.")
        if not inside:
            raise NotFound(
                f"{path} is no run and holds none: there is no run.json in it or in a folder below it."
            )
        for folder in inside:
            folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


def name_runs(runs: Paths, folders: Iterable[Path]) -> tuple[set[Path], str]:
    """Tell the runs that a user named from those that lie somewhere below a folder that was named.

    A run is named by its folder, by that of its group of seeds, or by a pattern that matches one of them.

    Args:
        runs: the paths that the user gave.
        folders: what `find_runs` found at them.

    Returns:
        The folders that were named, and a sentence on the others; "" if there are none.
    """
    matched = (root for path in _list_paths(runs) for root in _match(path))
    roots = {(root.parent if root.is_file() else root).resolve() for root in matched}
    named = {folder for folder in folders if {folder.resolve(), folder.resolve().parent} & roots}
    below = [folder for folder in folders if folder not in named]
    if not below:
        return named, ""
    where = ", ".join(str(path) for path in _list_paths(runs))
    return named, (
        f"{len(below)} run{'s' if len(below) > 1 else ''} found below {where}: nothing is written into a run "
        f"that was not named; to keep the findings there, name it or its group, e.g. {below[0].parent}."
    )


def _list_paths(runs: Paths) -> list[str | Path]:
    return [runs] if isinstance(runs, str | Path) else [*runs]


def _match(path: str | Path) -> list[Path]:
    """List the files and folders that a path or a pattern names.

    Labels contain brackets, so a path wins over a pattern, and brackets are plain text if nothing else fits.
    """
    if Path(path).exists():
        return [Path(path)]
    patterns = str(path), str(path).replace("[", "[[]")
    return [*map(Path, next(filter(None, (glob.glob(p, recursive=True) for p in patterns)), []))]


def note_missing(runs: Paths, found: Iterable[Path]) -> list[str]:
    """Write a sentence for each study among the paths of which runs have no folder yet.

    Args:
        runs: the paths that the user named; a study is known by the study.json of its folder.
        found: the run folders below them.
    """
    paths = [place.resolve() for path in _list_paths(runs) for place in _match(path)]
    there, notes = {folder.resolve() for folder in found}, []
    for file in dict.fromkeys(f for path in paths for f in [*_studies_above(path), *path.glob(f"*/{STUDY}")]):
        try:
            study = read_json(file.read_bytes(), _Study)
            planned = {(file.parent / run["folder"]).resolve(): run for run in study["runs"]}
            missing = [
                f"{run['label']} on {run['env']} seed {run['seed']}"
                for folder, run in planned.items()
                if folder not in there and any(map(folder.is_relative_to, paths))
            ]
        except (OSError, ValueError):
            notes.append(f"skipped {file}: it is broken.")
            continue
        if missing:
            rest = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            listed = one_line(", ".join(missing[:NAMED]))
            notes.append(
                f"{file.parent}: {len(missing)} of the {len(planned)} runs of the study are missing: "
                f"{listed}{rest}."
            )
    return notes


def _studies_above(path: Path) -> Iterator[Path]:
    """Yield the file of the study that a folder is, or is a part of."""
    return (place / STUDY for place in (path, *path.parents) if (place / STUDY).is_file())


def _find_below(root: Path) -> Iterator[Path]:
    if root.name in MARKS and root.is_file():
        yield root.parent
    seen = set()  # links may lead in a circle
    for place, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if MARKS & set(files):
            yield Path(place)
        if "run.json" in files:  # a stray file of another name hides no runs below it
            folders.clear()
        folders[:] = sorted(f for f in folders if not f.startswith("."))


def _read_run(folder: Path) -> RunRecord:
    """Read run.json and evaluations.csv of one run.

    Raises:
        ValueError, KeyError, TypeError or OSError: the folder is broken.
    """
    try:
        record = unseal((folder / "run.json").read_bytes())
    except ValueError as problem:
        raise ValueError("run.json is broken") from problem
    text = (folder / "evaluations.csv").read_text()
    whole = text[: text.rfind("\n") + 1]  # the file of a running or killed run may end in half a line
    if not whole:
        raise ValueError("evaluations.csv is empty")
    try:
        rows = pd.read_csv(io.StringIO(whole), dtype=TYPES)
    except ValueError as problem:
        why = str(problem).strip().split("\n")[0]
        raise ValueError(f"evaluations.csv is damaged{_find_damage(whole)} ({why})") from problem
    if not np.isfinite(rows["return"]).all():
        raise ValueError("evaluations.csv holds a return that is not finite")
    if rows.empty:
        raise ValueError("it holds no evaluation yet")
    sizes = rows.groupby(["step", "policy"])["return"].transform("size")
    if sizes.iloc[-1] < sizes.max():  # the last evaluation is incomplete
        rows = rows.iloc[: -sizes.iloc[-1]]
    head = identify_run(folder, record)
    return RunRecord(head["run"], head["env"], head["label"], head["seed"], record, rows)


def _find_damage(text: str) -> str:
    """Return where the first line of another form is, as ` in line 7`; "" if there is none."""
    head, *lines = text.splitlines()
    columns = head.count(",")
    wrong = (k for k, line in enumerate(lines, 2) if line.count(",") != columns or not line[:1].isdigit())
    return next((f" in line {k}" for k in wrong), "")


def _average_episodes(run: RunRecord) -> pd.DataFrame:
    """Return the evaluations of one run, a row for each."""
    record, rows = run.record, run.episodes
    probed = [name for name in rows.select_dtypes("number") if name not in (*MEANS, *COUNTS)]
    points = rows.groupby(["step", "policy"], as_index=False).agg(
        **{name: (name, "mean") for name in (*MEANS, *probed)},  # type: ignore[arg-type]
        episodes=("return", "size"),
    )
    head = identify_run(run.folder, record)
    return (
        pd.DataFrame(head, index=points.index)
        .join(points)
        .assign(budget=int(record["steps"]), dataset=str(record.get("dataset") or ""))
        .assign(ended_by=str(record.get("ended_by") or ""), envs=int(record.get("envs") or 1))
    )


def _note_shared_names(frame: pd.DataFrame) -> list[str]:
    """Write a sentence for each task that stands for several datasets: files of one name in two folders."""
    return [
        f"{env} stands for {len(found)} datasets, whose runs count as one task: {one_line(', '.join(found))}."
        for env, found in frame.groupby("env")["dataset"].unique().items()
        if len(found) > 1
    ]


def identify_run(folder: Path | str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that identify a run: run, recipe, label, env, seed."""
    return {
        "run": str(folder),
        "recipe": one_line(str(record["recipe"])),
        "label": one_line(str(record.get("label") or record["recipe"])),
        "env": one_line(task_label(record)),
        "seed": int(record.get("seed", 0)),
    }


def _describe_problem(problem: Exception) -> str:
    if isinstance(problem, FileNotFoundError):
        return f"it has no {Path(str(problem.filename)).name}"
    return str(problem).strip().split("\n")[0]
