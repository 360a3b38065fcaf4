"""The areas by name, and one trial of an area."""

import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from faults import damage, environments, fuzz, processes, soak
from faults.trial import Bench, Failed, Skipped

Area = Callable[[random.Random, Path, Bench], str]
AREAS: dict[str, Area] = {
    "kills": processes.kills,
    "signals": processes.signals,
    "limits": processes.limits,
    "full-disks": processes.full_disks,
    "concurrency": processes.concurrency,
    "damage": damage.damage,
    "fuzz": fuzz.fuzz,
    "environments": environments.faulty_environments,
    "soak": soak.soak,
}


class Result(NamedTuple):
    """What a trial was about, why it failed ("": it survived), and whether it was skipped."""

    what: str
    problem: str = ""
    skipped: bool = False


def try_once(area: str, seed: int, trial: int, place: Path, bench: Bench) -> Result:
    """Make a trial, which its area, seed and number determine but for the time that things take.

    Args:
        area: its name.
        seed: that of the program.
        trial: its number in the area.
        place: a folder that does not exist; it stays if the trial fails.
        bench: the runs without a fault.
    """
    place.mkdir(parents=True)
    again = f"python -m tests.faults --area {area} --seed {seed} --trial {trial}"
    try:
        what = AREAS[area](random.Random(f"{area}/{seed}/{trial}"), place, bench)
    except Skipped as why:
        result = Result(str(why), skipped=True)
    except Failed as failed:
        shown = f"\n  {failed.command}" if failed.command else ""
        return Result(area, f"{failed}{shown}\n  {again} ({place})")
    except Exception:
        return Result(area, f"{traceback.format_exc(limit=-6)}\n  {again} ({place})")
    else:
        result = Result(what)
    shutil.rmtree(place)
    return result
