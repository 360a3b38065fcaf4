"""The command `qscape resume RUN`."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qscape.cli import options
from qscape.cli.running import run_all, run_among
from qscape.errors import Conflict, NothingToDo, RunError
from qscape.jobs.worker import Job
from qscape.run.folder import run_folders, unfinished
from qscape.run.groups import group_runs
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class ResumeOptions(options.Shared):
    """Flags of `qscape resume`."""

    steps: int | None = setting(None, "New total of environment steps; None: the total at the start.")
    save: int | None = setting(None, "Continue from the save of this step; None: from the newest.")
    empty_replay: bool = setting(False, "Continue with the networks alone, if no save has a replay.")
    save_shards: bool | None = setting(
        None, "Whether each process saves its own rows of the replay from now on. None: as the run did."
    )
    log: tuple[str, ...] = setting((), "Loggers to go on with: wandb, trackio, mlflow, module:Class.")
    quiet: bool = setting(False, "Show no progress, only warnings, failures and the last lines.")


def main(argv: list[str]) -> int:
    """Continue a run, or every unfinished run of a group. Seeds that shared one program share it again."""
    path, rest = options.positional(argv, "RUN", "qscape resume")
    _refuse_changes(rest, path)
    given = options.parse(ResumeOptions(), rest, "qscape resume RUN")
    folders = run_folders(Path(path))
    names = "steps", "save", "empty_replay", "save_shards"
    shared: dict[str, Any] = {name: getattr(given, name) for name in names}
    if (place := given.place) is not None:
        if len(folders) > 1:
            raise Conflict(
                f"--processes splits one run, and {path} holds {len(folders)}; name one, e.g. {folders[0]}.",
                field="processes",
            )
        return run_among(Job("resume", folders[0], trackers=list(given.log), **shared), place, given.quiet)
    several = len(folders) > 1 and given.save is None  # a group: only its unfinished runs
    groups = group_runs(folders, given.save, given.empty_replay)
    if given.log:
        groups = [[folder] for folder in folders]  # a logger takes one run in a process
    if several:
        groups = [group for group in groups if any(_goes_on(folder, given.steps) for folder in group)]
        if not groups:
            more = "add more with --steps" if given.steps is None else f"--steps {given.steps} is no more"
            raise NothingToDo(f"every run in {path} has finished its steps; {more}.")
    jobs = [[Job("resume", f, trackers=list(given.log), **shared) for f in group] for group in groups]
    alone = [job for group in jobs if len(group) == 1 for job in group]
    for group in [*(group for group in jobs if len(group) > 1), *([alone] if alone else [])]:
        if code := run_all(group, together=group is not alone, quiet=given.quiet):
            return code
    return 0


def _refuse_changes(argv: Sequence[str], path: str) -> None:
    """Raise UsageError for the first flag of `qscape train` that would change what a run is."""
    own = options.flags_of({"": ResumeOptions()})
    for flag in (arg.partition("=")[0].replace("_", "-") for arg in argv if arg.startswith("--")):
        if flag not in own and ("." in flag or flag in options.flags_of({"": options.TrainOptions()})):
            run = shlex.quote(str(run_folders(Path(path))[0]))
            raise Conflict(
                f"qscape resume does not take {flag}, since a run goes on as it began; this begins a new "
                "run, of an off-policy agent with its networks: "
                f"qscape train --config {run}/run.json --from {run} --out NEW {flag}",
                field=flag.lstrip("-").replace("-", "_"),
            )


def _goes_on(folder: Path, steps: int | None) -> bool:
    """Return whether a run is unfinished. Also if its run.json is broken: its job then says so, and the
    others go on.
    """
    try:
        return unfinished(folder, steps)
    except RunError:
        return True
