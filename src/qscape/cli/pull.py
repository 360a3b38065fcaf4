"""The command `qscape pull OWNER/NAME`."""

import dataclasses
import shlex
from pathlib import Path

from qscape.cli import options
from qscape.cli.running import plain_console
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class PullOptions:
    """Flags of `qscape pull`."""

    out: str | None = setting(None, "Run folder to write. None: runs/hub/OWNER/NAME.")


def main(argv: list[str]) -> int:
    """Fetch a run from the hub and check it."""
    name, given = options.parse_after(PullOptions(), argv, "OWNER/NAME", "qscape pull")
    from qscape.export.hub import pull_run

    name = name.removeprefix("hub:")
    folder = Path(given.out) if given.out else Path("runs", "hub", *name.partition("@")[0].split("/"))
    pull_run(name, folder)
    plain_console().print(f"{folder}: qscape evaluate {shlex.quote(str(folder))}", soft_wrap=True)
    return 0
