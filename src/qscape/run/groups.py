"""Runs that share one program: which of them go on together, and from which saves."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qscape.errors import NoSave, RunError
from qscape.run import saves
from qscape.run.folder import choose_save, read_record, resumable_saves


def sharing(record: Mapping[str, Any]) -> list[int]:
    """Return the seeds that share one program with a run, its own among them; [] if it runs alone.

    `record`: its run.json. A run that went on alone once shares no program any more.
    """
    latest = record["resumed"][-1] if record.get("resumed") else record
    return latest.get("together", [])


def group_runs(
    folders: Sequence[Path], step: int | None = None, empty_replay: bool = False
) -> list[list[Path]]:
    """Sort runs by how they go on: those that share one program in one list, every other in one of its own.

    Seeds that shared a program share it again if all of them are among the folders, and have a save of the
    same step or none at all.

    Args:
        folders: the run folders.
        step, empty_replay: as for `choose_save`.
    """
    groups: dict[tuple[Path, tuple[int, ...]], dict[int, Path]] = {}
    alone = []
    for folder in folders:
        try:
            record = read_record(folder)
        except RunError:  # who resumes it says so
            alone.append(folder)
            continue
        place = folder.parent if sharing(record) else folder
        groups.setdefault((place, tuple(sharing(record))), {})[record["seed"]] = folder
    found = []
    for (_, seeds), runs in groups.items():
        if seeds and runs.keys() == set(seeds) and _stand_together([*runs.values()], step, empty_replay):
            found.append([runs[seed] for seed in seeds])  # in the order of their arrays
        else:
            alone += runs.values()
    return [*found, *([folder] for folder in folders if folder in alone)]


def _stand_together(folders: Sequence[Path], step: int | None, empty_replay: bool) -> bool:
    """Return whether runs have a save of the same step, of this one if it is not None, or none at all."""
    steps = common_steps(folders, empty_replay)
    if step is not None:
        return step in steps
    return bool(steps) or not any(saves.names(folder / "saves") for folder in folders)


def common_steps(folders: Sequence[Path], empty_replay: bool = False) -> list[int]:
    """Return the steps at which every run has a readable save to go on from, the newest first."""
    steps = [{int(path.name) for path in resumable_saves(folder, empty_replay)} for folder in folders]
    return sorted(set.intersection(*steps), reverse=True)


def choose_saves(
    folders: Sequence[Path],
    step: int | None = None,
    empty_replay: bool = False,
    steps: int | None = None,
) -> list[tuple[Path | None, list[str]]]:
    """Choose the saves from which runs in one program go on: the newest step at which all have a whole one.

    Args:
        folders: the run folders, one or several.
        step, empty_replay, steps: as for `choose_save`.

    Returns:
        What `choose_save` returns, for each run.

    Raises:
        UsageError: as for `choose_save`. RunError: as for `choose_save`, or several runs have no whole save
            of the same step.
    """
    if len(folders) == 1 or step is not None:
        return [choose_save(folder, step, empty_replay, steps) for folder in folders]
    passed_over: list[str] = []
    for common in common_steps(folders, empty_replay):
        try:
            chosen = [choose_save(folder, common, empty_replay, steps) for folder in folders]
        except saves.OtherFormatError:
            raise
        except RunError as problem:
            passed_over.append(str(problem))
            continue
        notes = [f"{why} The runs go back to the save of step {common}." for why in passed_over]
        return [(path, notes) for path, _ in chosen]
    chosen = [choose_save(folder, None, empty_replay, steps) for folder in folders]
    if any(path for path, _ in chosen):
        alone = f"qscape resume {shlex.quote(str(folders[0]))}"
        raise NoSave(
            f"{', '.join(map(str, folders))} have no whole save of the same step, so that one program cannot "
            f"continue them. Nothing was changed. To continue one alone: {alone}."
        )
    return chosen
