"""The command `qscape resume RUN`."""

import dataclasses
from pathlib import Path

from qscape.cli import options
from qscape.cli.running import run_all
from qscape.errors import UsageError
from qscape.jobs.worker import Job
from qscape.run.folder import run_folders, unfinished
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `qscape resume`."""

    steps: int | None = setting(None, "New total of environment steps; None: the total at the start.")
    log: tuple[str, ...] = setting((), "Further loggers: wandb, trackio.")


def main(argv: list[str]) -> int:
    """Continue a run, or every unfinished run of a group."""
    path, rest = options.positional(argv, "RUN", "qscape resume")
    given = options.parse(options.flags_of(Options()), rest, "qscape resume RUN")
    folders = run_folders(Path(path))
    if len(folders) > 1:  # a group: only its unfinished runs
        folders = [f for f in folders if unfinished(f, given.steps)]
        if not folders:
            raise UsageError(f"every run in {path} has finished its steps; add more with --steps.")
    return run_all([Job("resume", f, steps=given.steps, trackers=list(given.log)) for f in folders])
