"""The command `qscape reproduce RUN`."""

import dataclasses
import os
from pathlib import Path

from qscape.cli import options
from qscape.cli.running import plain_console, run_all
from qscape.errors import one_line
from qscape.jobs.reproduce import reproduce
from qscape.jobs.worker import INTERRUPTED, Job
from qscape.run.folder import read_record, run_folders
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class ReproduceOptions:
    """Flags of `qscape reproduce`."""

    out: str | None = setting(None, "Folder for the folders of the new runs; None: a temporary one.")


def main(argv: list[str]) -> int:
    """Run a run, or every seed of a group, again; return 0 if all numbers are equal, else 1."""
    path, given = options.parse_after(ReproduceOptions(), argv, "RUN", "qscape reproduce")
    threads = {read_record(folder).get("threads") for folder in run_folders(Path(path))}
    if len(threads) == 1:  # JAX has not begun: it takes the number of threads with which the runs were made
        (number,) = threads
        os.environ.pop("NPROC", None)
        os.environ.update({"NPROC": number} if number else {})

    def run_jobs(jobs: list[Job], together: bool) -> None:
        side_by_side = together or threads == {"1"}  # worker processes have one thread
        for group in [jobs] if side_by_side else [[job] for job in jobs]:
            if run_all(group, together) == INTERRUPTED:
                raise KeyboardInterrupt

    console, found = plain_console(), reproduce(path, given.out, run_jobs=run_jobs)
    for each in found:
        compared = f"{each.evaluations:,} evaluations and {each.lines:,} lines of metrics"
        state = f"equal: {compared}" if each.equal else f"different: {'; '.join(each.differences)}"
        console.print(f"{each.folder} and {each.again} are {one_line(state)}", soft_wrap=True)
        if not each.equal:
            causes = each.causes or ["nothing that is recorded differs: versions, source, machine, threads"]
            for cause in causes:
                console.print(f"  {one_line(cause)}", soft_wrap=True)
    return 0 if all(each.equal for each in found) else 1
