"""The command `qscape cache`."""

import dataclasses
import datetime
import os

from qscape import kept_programs
from qscape.cli import options
from qscape.errors import WrongValue
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class CacheOptions:
    """Flags of `qscape cache`."""

    clear: bool = setting(False, "Remove all compiled programs; the next runs compile anew.")


def main(argv: list[str]) -> int:
    """Print what the folder of compiled programs holds, or clear it."""
    given = options.parse(CacheOptions(), argv, "qscape cache")
    if "://" in (place := os.environ.get("JAX_COMPILATION_CACHE_DIR", "")):
        raise WrongValue(
            f"JAX_COMPILATION_CACHE_DIR is {place}, and qscape cache reads folders of this machine only; "
            "look at it with the tools of that storage."
        )
    folder = kept_programs.find_folder()
    if given.clear:
        print(f"{folder}: {kept_programs.clear(folder):,} compiled programs removed")
        return 0
    kept = kept_programs.look(folder)
    newest = ""
    if kept.newest is not None:
        when = datetime.datetime.fromtimestamp(kept.newest).astimezone()
        newest = f", the newest of {when:%Y-%m-%d %H:%M}"
    print(f"{folder}: {kept.programs:,} compiled programs, {kept.nbytes / 1e6:,.1f} MB{newest}")
    if kept.damaged:
        print(f"damaged, so compiled anew at every start: {len(kept.damaged):,}; to remove all: --clear")
    return 0
