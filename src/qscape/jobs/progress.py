"""The progress of a study: the state of every run, read from its folder, and the jobs that are left."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qscape.agents import flatten
from qscape.envs.lag import Lag
from qscape.errors import NoUpdate, QscapeError, Taken
from qscape.jobs.pace import RemainingTime
from qscape.jobs.pool import Failure
from qscape.jobs.study import Row, Study
from qscape.jobs.worker import Job
from qscape.onpolicy.agent import Agent as OnPolicyAgent
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run.logs import read_evaluation_means, read_metrics
from qscape.run.plan import anywhere, prepare, to_json

State: TypeAlias = Literal["waiting", "elsewhere", "running", "done", "failed"]
LOSSES = 3  # a run fails if it loses this many workers in a row without a new save
# Fields of a plan, beside the settings, in which a run must equal the study's plan to count as its run.
COMPARED = ("env", "env_args", "envs", "seed", "eval_every", "eval_episodes", "probe")
COMPARED += tuple(field.name for field in dataclasses.fields(Lag))


def is_final(failure: Failure, losses: int) -> bool:
    """Return whether a run has failed for good.

    Args:
        failure: the failure of its worker.
        losses: number of workers lost since the last save, with this one.
    """
    return not failure.lost or losses >= LOSSES


@dataclasses.dataclass
class RunProgress:
    """The state of one run of a study.

    Attributes:
        row: the run's plan and folder.
        state: "waiting", "running", "done", "failed", or "elsewhere" (another process uses its folder).
        job: the job that is left while the run is waiting; else None.
        step: environment steps made.
        score: return of the last evaluation; None before the first.
        success: share of successful episodes in it, if the environment sets goals and reports success.
        pace: its speed, of its worker or of the last one, or by the log of a run that ended earlier.
        why: the reason of a failure, or of a lost worker.
        began: whether the worker has begun the run.
        failure: the failure that the worker reported; the state changes once the worker has ended.
        losses: number of workers lost since the last save.
    """

    row: Row
    state: State = "waiting"
    job: Job | None = None
    step: int = 0
    score: float | None = None
    success: float | None = None
    pace: RemainingTime = dataclasses.field(default_factory=RemainingTime)
    why: str = ""
    began: bool = False
    failure: Failure | None = None
    losses: int = 0

    def refresh(self) -> None:
        """Read the state, the steps made, the last scores and the job that is left from the run folder."""
        self.state, self.why, self.job = "waiting", "", None
        try:
            if folders.in_use(self.row.folder):
                self.state = "elsewhere"
            else:
                self._read_folder()
        except QscapeError as problem:  # a broken or incomplete folder
            self.state, self.why = "failed", str(problem)
        self.score = self.success = None
        if means := read_evaluation_means(self.row.folder):
            self.score = means[-1].ret  # of the kept policy if there is one: it comes last
            with contextlib.suppress(QscapeError):
                has_goals = folders.read_record(self.row.folder).get("goals", False)
                self.success = means[-1].success if has_goals else None

    def _read_folder(self) -> None:
        """Set `step`, and `state` or `job`, from a folder that no other process uses.

        Raises:
            UsageError: the folder holds another run. RunError: the run made no update, or cannot be read.
        """
        plan, folder = self.row
        if not (folder / folders.RECORD).exists():
            folders.refuse_taken(folder)
            self.step, self.job = 0, Job("train", folder, plan)
            return
        record = folders.read_record(folder)
        made = _read_counters(folder, record["steps"])
        self.step = made["env_steps"]
        enough = self.step >= plan.steps and (made["finished"] or record["steps"] > plan.steps)
        # Compared at the same length, since the warm-up of a short run depends on its length.
        differ = list_differences(self.row, record, record["steps"] if enough else plan.steps)
        if differ:
            raise Taken(
                f"{folder} holds another run: {', '.join(differ)}; move it away, or choose another --runs."
            )
        if enough and not made["updates"]:
            raise NoUpdate(
                f"{folder} made no update in {self.step} steps; move it away, and give it more steps or a "
                "shorter base.warmup."
            )
        if enough:
            self.state = "done"
            self.pace.speed = self.pace.speed or _read_speed(folder)
        else:
            self.job = Job("resume", folder, steps=plan.steps)

    def take(self, event: ev.RunEvent | Failure | None) -> None:
        """Apply an event of the worker; None: the worker has ended."""
        if event is None:
            self._settle()
        elif isinstance(event, Failure):
            self.failure = event
        elif isinstance(event, ev.Started | ev.Progressed | ev.Logged | ev.Saved | ev.Evaluated | ev.Ended):
            self.began, self.step = True, event.step
            self.pace.take(event)
            if isinstance(event, ev.Evaluated):
                self.score, self.success = event.mean, event.success
            elif isinstance(event, ev.Saved):
                self.losses = 0

    def _settle(self) -> None:
        """Set the state after the worker ended; reads the folder, which another process may have changed."""
        failure, self.failure = self.failure, None
        began, self.began = self.began, False
        before = self._left()
        self.refresh()
        # A worker that found another process in the folder did not begin: its failure is not the run's.
        overtaken = not began and self._left() != before
        if failure and self.state == "waiting" and not overtaken:
            self.losses += failure.lost
            self.why = failure.why
            if is_final(failure, self.losses):
                self.state = "failed"

    def _left(self) -> tuple[str | None, int]:
        """Return the kind of the job that is left, and the steps made: what other processes change."""
        return self.job and self.job.kind, self.step


class StudyProgress:
    """The state of every run of a study.

    Args:
        study: the study.
        notice: called with a run when another process is found to use its folder.
    """

    def __init__(self, study: Study, notice: Callable[[RunProgress], None] = lambda run: None) -> None:
        self.study, self.notice = study, notice
        self.runs = [RunProgress(row) for row in study.rows]
        for run in self.runs:
            run.refresh()

    def jobs(self) -> Iterator[tuple[int, Job] | None]:
        """Yield jobs for a pool; None while all runs that are left run already, here or elsewhere."""
        while any(s.state in ("waiting", "elsewhere", "running") for s in self.runs):
            yield self._next()

    def _next(self) -> tuple[int, Job] | None:
        """Return the index and job of the first run that can start, and mark it as running; else None."""
        for k, run in enumerate(self.runs):
            if run.state in ("waiting", "elsewhere"):
                before = run.state
                run.refresh()  # another process may have changed the folder
                if run.state == "elsewhere" != before:
                    self.notice(run)
                if run.state == "waiting":
                    assert run.job is not None
                    run.state = "running"
                    run.pace.start()
                    return k, run.job
        return None

    def of(self, *states: State) -> list[RunProgress]:
        """Select the runs in one of these states."""
        return [s for s in self.runs if s.state in states]

    def describe_changes(self) -> list[str]:
        """Describe how agents without a run differ from agents of an earlier version of the study file.

        Returns:
            One line for each new agent that has a predecessor with the same recipe.
        """
        labels = {s.row.plan.label for s in self.runs}
        groups = {s.row.folder.parent: s.row for s in self.runs if s.step == 0}
        before: dict[Path, list[dict[str, Any]]] = {}
        lines: dict[str, str] = {}
        for group, row in groups.items():
            if not group.exists() and row.plan.label not in lines:
                if group.parent not in before:
                    before[group.parent] = _read_first_records(group.parent)
                if line := _describe_difference(
                    row, [r for r in before[group.parent] if r["label"] not in labels]
                ):
                    lines[row.plan.label] = line
        return [*lines.values()]


def _read_counters(folder: Path, steps: int) -> Mapping[str, Any]:
    """Read the steps and updates of a run, and whether it finished: from its newest save.

    An archive of results may leave saves out; then the log tells that the run made all its `steps`.
    """
    if folders.lost_saves(folder) and (lines := read_metrics(folder).lines):
        last = lines[-1][1]
        if last["step"] >= steps:
            return {"env_steps": last["step"], "updates": last.get("updates"), "finished": True}
    newest = folders.resumable_save(folder)
    return folders.read_meta(newest)["numbers"] if newest else {"env_steps": 0, "finished": False}


def _read_speed(folder: Path) -> float | None:
    """Read the steps per second of the second half of a log, without evaluations; None if it has none."""
    rates = [line.get("steps_per_second") for _, line in read_metrics(folder).lines]
    late = [rate for rate in rates[len(rates) // 2 :] if rate]
    return len(late) / sum(1 / rate for rate in late) if late else None


def list_differences(row: Row, record: Mapping[str, Any], steps: int) -> list[str]:
    """List the fields in which an existing run differs from its row of a study.

    Args:
        row: the run of the study.
        record: run.json of the existing run.
        steps: total of environment steps at which the plan is compared.

    Returns:
        One phrase for each field; empty if the runs are the same.
    """
    plan, agent, _ = prepare(dataclasses.replace(row.plan, steps=steps))
    wanted, there = _flatten_record(to_json(plan, agent)), _flatten_record(record)
    if isinstance(agent, OnPolicyAgent) and agent.follows_progress:  # a shorter run is no beginning of it
        wanted["the length of annealing"] = row.plan.steps
        there["the length of annealing"] = record["steps"]
    if wanted.get("base.discount_rule") == "time_limit":  # a run records the discount that it came to
        for fields, name in product((wanted, there), ("base.discount", "base.discount_rule")):
            fields.pop(name, None)
    return [
        f"{name} is {there.get(name)} there and {wanted.get(name)} here"
        for name in sorted(wanted.keys() | there.keys())
        if wanted.get(name) != there.get(name)
    ]


def _flatten_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that identify a run: `COMPARED`, the dataset, and the settings as `part.field`."""
    record = json.loads(json.dumps(record))  # tuples become lists
    fields = flatten(record.get("settings") or {})
    dataset = anywhere(record.get("dataset") or "")  # relative in runs of studies of earlier versions
    if dataset:  # a run takes its length, and every step is an update
        for name in ("replay_capacity", "updates_per_step", "warmup"):
            fields.pop(f"base.{name}", None)
    return fields | {name: record.get(name) for name in COMPARED} | {"dataset": dataset}


def _read_first_records(place: Path) -> list[dict[str, Any]]:
    """Read the run.json of one readable run of every label in an environment's folder."""
    records: dict[Path, dict[str, Any]] = {}
    for file in sorted(place.glob(f"*/*/{folders.RECORD}")):
        if file.parent.parent not in records:
            with contextlib.suppress(QscapeError):
                records[file.parent.parent] = folders.read_record(file.parent)
    return [*records.values()]


def _describe_difference(row: Row, records: Sequence[Mapping[str, Any]]) -> str:
    """Describe how a plan differs from the most similar run of its recipe; "" without such a run."""
    plan, agent, _ = prepare(row.plan)
    new = {k: v for k, v in _flatten_record(to_json(plan, agent)).items() if k not in COMPARED}
    candidates = []
    for record in records:
        if record["recipe"] == row.plan.recipe:
            old = _flatten_record(record)
            differ = [f"{k} is {v}, not {old[k]}" for k, v in new.items() if k in old and old[k] != v]
            candidates.append(
                (len(differ), f"{row.plan.label} is new beside {record['label']}: {', '.join(differ)}")
            )
    return min(candidates)[1] if candidates else ""
