"""Run again what a run folder records, and compare the numbers."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qscape.errors import NotFound, NothingToDo
from qscape.jobs.worker import Job, run_job, run_together
from qscape.run.folder import (
    list_changes,
    read_plan,
    read_record,
    refuse_taken,
    refuse_unmakeable,
    run_folders,
)
from qscape.run.logs import read_evaluations, read_metrics
from qscape.run.plan import Plan

RunJobs = Callable[[list[Job], bool], Any]
Numbers = dict[tuple[Any, ...], Mapping[str, Any]]  # the lines of a log, by what tells them apart


class Reproduction(NamedTuple):
    """A run beside the one that was made again from its record.

    Attributes:
        folder: the run.
        again: the folder of the new run.
        evaluations: number of evaluations that were compared.
        lines: number of lines of metrics that were compared.
        differences: a sentence on each log that differs, with its first number that does; [] if none does.
        causes: if they differ, a sentence on each thing that may be the reason: versions, source, machine,
            threads, interrupts.
    """

    folder: Path
    again: Path
    evaluations: int
    lines: int
    differences: list[str]
    causes: list[str]

    @property
    def equal(self) -> bool:
        """Whether every evaluation and every line of metrics is equal, to the last digit."""
        return not self.differences


def _run_silently(jobs: list[Job], together: bool) -> None:
    for _ in run_together(jobs) if together else (event for job in jobs for event in run_job(job)):
        pass


def reproduce(
    run: str | Path, out: str | Path | None = None, *, run_jobs: RunJobs = _run_silently
) -> list[Reproduction]:
    """Train a run, or every seed of a group, again from its run.json, and compare all that was recorded.

    An unfinished run is made again to its end, and compared as far as it came. A run that was made longer is
    made longer again. Seeds that shared a program share one again.

    Args:
        run: a run folder, or the folder of a group.
        out: folder for the folders of the new runs; None: a new temporary folder.
        run_jobs: runs jobs, in one program if its second argument is True; called several times.

    Returns:
        A comparison for each run.

    Raises:
        UsageError: `run` holds no run, one of its runs cannot be made again, or `out` is taken.
        RunError: a run.json is broken, or a new run failed.
    """
    folders = run_folders(Path(run))
    plans = {folder: _plan(folder) for folder in folders}
    place = Path(tempfile.mkdtemp(prefix="qscape-reproduce-") if out is None else out)
    again = {folder: place / str(plan.seed) for folder, plan in plans.items()}
    for new in again.values():
        refuse_taken(new)
    stages = {folder: _stages(read_record(folder)) for folder in folders}
    for k in range(max(map(len, stages.values()))):
        for jobs, together in _jobs({f: of[k] for f, of in stages.items() if k < len(of)}, plans, again, k):
            run_jobs(jobs, together)
    return [compare_runs(folder, new) for folder, new in again.items()]


def _plan(folder: Path) -> Plan:
    """Return the plan with which a run began. Raises UsageError if the run cannot be made again."""
    plan = read_plan(folder)
    refuse_unmakeable(folder, plan)
    if not (_evaluations(folder) or _metrics(folder)):
        raise NothingToDo(
            f"{folder} cannot be reproduced: it has neither evaluations nor metrics to compare with, like a "
            "model that was saved in Python or imported."
        )
    for what, name in (("the run", plan.start), ("the dataset", plan.dataset)):
        if Path(name).is_absolute() and not Path(name).exists():
            raise NotFound(f"{folder} cannot be reproduced: {what} {name}, from which it learned, is gone.")
    steps = _stages(read_record(folder))[0].steps
    return dataclasses.replace(plan, steps=steps, save_shards=plan.save_shards and plan.devices > 1)


class _Stage(NamedTuple):
    """What one command made of a run.

    Attributes:
        steps: the total of steps up to which it was made.
        together: the seeds with which it shared one program when it began; () if it ran alone.
    """

    steps: int
    together: tuple[int, ...]


def _stages(record: Mapping[str, Any]) -> list[_Stage]:
    """Return the stages of a run, one after the other; several if it was made longer."""
    stages: list[_Stage] = []
    together = tuple(record.get("together", ()))
    for resumed in record.get("resumed", []):
        stages = [s for s in [*stages, _Stage(resumed["of"], together)] if s.steps <= resumed["at"]]
        if resumed["at"] == 0 or (stages and stages[-1].steps == resumed["of"]):  # a stage begins here
            together = tuple(resumed.get("together", ()))
    return [*stages, _Stage(record["steps"], together)]


def _jobs(
    stage: Mapping[Path, _Stage], plans: Mapping[Path, Plan], again: Mapping[Path, Path], number: int
) -> Iterator[tuple[list[Job], bool]]:
    """Yield the jobs of a stage of the new runs: those of separate seeds, and those of seeds in one program.

    `number`: that of the stage; 0 begins the runs.
    """

    def job(place: Path, plan: Plan, steps: int) -> Job:
        return Job("resume", place, steps=steps) if number else Job("train", place, plan)

    alone = [job(again[folder], plans[folder], of.steps) for folder, of in stage.items() if not of.together]
    if alone:
        yield alone, False
    shared = {of: folder for folder, of in stage.items() if of.together}
    for of, folder in shared.items():
        of_seed = {seed: dataclasses.replace(plans[folder], seed=seed) for seed in of.together}
        place = again[folder].parent
        yield [job(place / str(seed), plan, of.steps) for seed, plan in of_seed.items()], True


def _evaluations(folder: Path) -> Numbers:
    rows = (row for _, row in read_evaluations(folder).lines)
    return {(int(r["step"]), r["policy"], int(r["episode"])): _without(r, "seconds") for r in rows}


def _metrics(folder: Path) -> Numbers:
    return {(r["step"],): _without(r, "steps_per_second") for _, r in read_metrics(folder).lines}


def _without(row: Mapping[str, Any], time: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != time}


def compare_runs(folder: Path, again: Path) -> Reproduction:
    """Compare the logs of a run, up to their end, with those of the run that was made again."""
    was, now = read_record(folder), read_record(again)
    read = {"evaluations": _evaluations, "lines of metrics": _metrics}
    logs = {name: (log(folder), log(again)) for name, log in read.items()}
    if max(key[0] for old, _ in logs.values() for key in old) < was["steps"]:  # unfinished
        logs = {
            name: (old, {key: row for key, row in new.items() if old and key <= max(old)})
            for name, (old, new) in logs.items()
        }
    begun = min((resumed["at"] for resumed in was.get("resumed", [])), default=0)
    if not any(key[0] <= begun for old, _ in logs.values() for key in old):  # a model that Python had saved
        logs = {
            name: (old, {key: row for key, row in new.items() if key[0] > begun})
            for name, (old, new) in logs.items()
        }
    differences = [found for name, both in logs.items() if (found := _first_difference(name, *both))]
    evaluations, lines = (len({key[:2] for key in old}) for old, _ in logs.values())
    causes = _causes(was, now) if differences else []
    return Reproduction(folder, again, evaluations, lines, differences, causes)


def _first_difference(name: str, old: Numbers, new: Numbers) -> str:
    """Return a sentence on the first line that differs, with both numbers; "" if all lines are equal.

    Args:
        name: what the lines are called.
        old: the lines of the run.
        new: the lines of the run that was made again.
    """
    keys = sorted(old.keys() | new.keys())
    unequal = [key for key in keys if old.get(key) != new.get(key)]
    if not unequal:
        return ""
    first = unequal[0]
    where = f"step {first[0]:,}" + (f", {first[1]} policy, episode {first[2]}" if len(first) > 1 else "")
    if first not in old or first not in new:
        what = "missing in the run" if first not in old else "missing in the new run"
    else:
        was, now = old[first], new[first]
        column = next(c for c in [*was, *now] if was.get(c) != now.get(c))
        what = f"{column} was {was.get(column, 'missing')} and is {now.get(column, 'missing')}"
    steps, of = len({key[:2] for key in unequal}), len({key[:2] for key in keys})
    return f"{steps} of {of} {name} differ, first at {where}: {what}"


def _causes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a sentence on each thing in which two records differ, or that may make runs differ."""
    found = list_changes(was, now)
    if was.get("threads") != now.get("threads"):
        found.append(f"NPROC was {was.get('threads') or 'not set'} and is {now.get('threads') or 'not set'}")
    if was.get("source") != now.get("source"):
        source = was.get("source", "not recorded")
        found.append(f"qscape's source (SHA-256) was {source[:12]} and is {now['source'][:12]}")
    for resumed in was.get("resumed", []):
        found += [f"at step {resumed['at']:,} the run was resumed: {note}" for note in resumed["notes"]]
    if was.get("start"):
        found.append(f"the run began with the networks of {was['start']}, which may have changed")
    return found
