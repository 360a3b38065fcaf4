"""The command `qscape resume RUN`."""

import dataclasses
from pathlib import Path
from typing import Any

from qscape.cli import options
from qscape.cli.running import run_all
from qscape.errors import NothingToDo, RunError
from qscape.jobs.worker import Job
from qscape.run.folder import run_folders, unfinished
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Flags of `qscape resume`."""

    steps: int | None = setting(None, "New total of environment steps; None: the total at the start.")
    save: int | None = setting(None, "Continue from the save of this step; None: from the newest.")
    empty_replay: bool = setting(False, "Continue with the networks alone, if no save has a replay.")
    log: tuple[str, ...] = setting((), "Loggers to go on with: wandb, trackio, mlflow, module:Class.")
    quiet: bool = setting(False, "Show no progress, only warnings, failures and the last lines.")


def main(argv: list[str]) -> int:
    """Continue a run, or every unfinished run of a group."""
    path, rest = options.positional(argv, "RUN", "qscape resume")
    given = options.parse(options.flags_of(ResumeOptions()), rest, "qscape resume RUN")
    folders = run_folders(Path(path))
    if len(folders) > 1 and given.save is None:  # a group: only its unfinished runs
        folders = [f for f in folders if _goes_on(f, given.steps)]
        if not folders:
            more = "add more with --steps" if given.steps is None else f"--steps {given.steps} is no more"
            raise NothingToDo(f"every run in {path} has finished its steps; {more}.")
    shared: dict[str, Any] = {"steps": given.steps, "save": given.save, "empty_replay": given.empty_replay}
    jobs = [Job("resume", f, trackers=list(given.log), **shared) for f in folders]
    return run_all(jobs, quiet=given.quiet)


def _goes_on(folder: Path, steps: int | None) -> bool:
    """Is a run unfinished? Also if its run.json is broken: its job then says so, and the others go on."""
    try:
        return unfinished(folder, steps)
    except RunError:
        return True
