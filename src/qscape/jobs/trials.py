"""The trials of a hyperparameter search. A trial is one run, or several that differ in their seed only."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, Literal, TypeAlias

from qscape.agents import flatten
from qscape.envs.lag import Lag
from qscape.errors import RunError, Taken
from qscape.jobs.ranges import Range, with_fields
from qscape.jobs.worker import Job
from qscape.offpolicy.agent import Agent as OffPolicyAgent
from qscape.report.numbers import format_return
from qscape.run import folder as folders
from qscape.run.plan import Plan, prepare, to_json
from qscape.values import encode_args

State: TypeAlias = Literal["running", "done", "pruned", "failed"]
Metric: TypeAlias = Literal["final", "best"]


@dataclasses.dataclass(frozen=True)
class Search:
    """The definition of a search.

    Attributes:
        plan: the plan of every trial, except for its seed and the searched fields.
        ranges: the searched fields with their ranges.
        folder: the folder of the search.
        seeds: runs per trial, with the seeds 0, 1, ...
        metric: the objective of a trial: the last or the highest evaluation of its learning curve.
        seed: seed of the sampler.
        journal: the file in which several processes share the trials; None: one process holds the folder.
        by_success: whether a trial's score is its success, from 0 to 1, and not its return.
    """

    plan: Plan
    ranges: list[Range]
    folder: Path
    seeds: int = 1
    metric: Metric = "final"
    seed: int = 0
    journal: Path | None = None
    by_success: bool = False

    @property
    def measure(self) -> str:
        """The name of what an evaluation measures."""
        return "success" if self.by_success else "return"

    def show(self, score: float | None) -> str:
        """Format a score: 95%, or a return; - without one."""
        if self.by_success and score is not None:
            return f"{score:.0%}"
        return format_return(score)

    def identity(self) -> dict[str, Any]:
        """Return everything that must be equal for trials to belong to one search."""
        plan = self.plan
        fields: dict[str, Any] = {"recipe": plan.recipe, "seeds": self.seeds, "metric": self.metric}
        fields["seed"] = self.seed
        fields |= {k: getattr(plan, k) for k in ("env", "steps", "eval_every", "eval_episodes")}
        fields["env_args"] = encode_args(plan.env_args)
        fields |= {"preset": plan.preset} if plan.preset else {}
        fields |= {"measure": self.measure} if self.by_success else {}
        fields |= plan.lag.changes
        fields |= flatten(plan.settings)
        fields |= {f"range of {r.field}": r.to_json() for r in self.ranges}
        return json.loads(json.dumps(fields))


class Trial:
    """One trial: its fields, its runs and their learning curves.

    Attributes:
        search: the search it belongs to.
        number: Optuna's number of the trial.
        fields: values of the searched fields, as `part.field`.
        state: "running", "done", "pruned" or "failed".
        why: the reason of a failure.
        ending: the state that the trial gets once its workers have ended.
        reported: the points of the learning curve that Optuna knows, step -> score.
        step: the last reported step.
        score: return or success at `step`; of a finished trial the objective. None before the first
            evaluation.
        waiting, running, done: seeds of its runs by state.
        curves: the learning curve of each seed, step -> score.
        made: the environment steps of each seed in this process.
        losses: the workers that each seed lost since its last save.
    """

    def __init__(
        self,
        search: Search,
        number: int,
        fields: Mapping[str, Any],
        state: State = "running",
        reported: Mapping[int, float] | None = None,
        worth: float | None = None,
        why: str = "",
    ) -> None:
        self.search, self.number, self.fields = search, number, dict(fields)
        self.state: State = state
        self.ending: State = "done"
        self.why = why
        self.reported = dict(reported or {})
        self.step = max(self.reported, default=0)
        self.score = self.reported.get(self.step) if worth is None else worth
        self.waiting = [*range(search.seeds)] if state == "running" else []
        self.running: set[int] = set()
        self.done: set[int] = set()
        self.curves: list[dict[int, float]] = [{} for _ in range(search.seeds)]
        self.made = [0] * search.seeds
        self.losses = [0] * search.seeds

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The fixed settings of the search and the fields of this trial, by part."""
        return with_fields(self.search.plan.settings, self.fields)

    @property
    def progress(self) -> float:
        """The share of the trial's steps that were made; 1 once it has ended."""
        return sum(self.made) / (len(self.made) * self.search.plan.steps) if self.state == "running" else 1.0

    def plan(self, seed: int) -> Plan:
        """Return the plan of one of its runs."""
        return dataclasses.replace(self.search.plan, seed=seed, settings=self.settings, label="")

    def folder(self, seed: int) -> Path:
        """Return the folder of one of its runs."""
        return self.search.folder / "trials" / str(self.number) / str(seed)

    @cached_property
    def judged_by(self) -> tuple[str, int]:
        """The policy whose evaluations count, and the first step that counts (after the warm-up)."""
        _, agent, _ = prepare(self.plan(0))
        field, wait = agent.base.find_learning_start()
        keeps = isinstance(agent, OffPolicyAgent) and agent.schedule.keeps_best_policy
        # On-policy, the first update is made before the evaluation at step `wait`; off-policy, after it.
        return "kept" if keeps else "current", wait if field == "rollout" else wait + 1

    def add_evaluation(
        self, seed: int, step: int, policy: str, ret: float, success: float | None = None
    ) -> None:
        """Add the mean return and the success of one evaluation of one run; success None: none reported."""
        counted, first = self.judged_by
        if policy == counted and step >= first:
            self.curves[seed][step] = (success or 0.0) if self.search.by_success else ret

    def curve(self) -> dict[int, float]:
        """Return the learning curve, step -> mean score of the seeds, at steps that all seeds reached."""
        steps = sorted(set.intersection(*(set(curve) for curve in self.curves)))
        return {step: mean(curve[step] for curve in self.curves) for step in steps}

    def worth(self) -> float:
        """Compute the objective of a trial whose runs are all done; NaN without an evaluation that counts."""
        curve = self.curve()
        if not curve:
            return math.nan
        return curve[max(curve)] if self.search.metric == "final" else max(curve.values())

    def take_new_points(self) -> dict[int, float]:
        """Return the points of the learning curve that were not reported yet, and mark them as reported."""
        new = {step: score for step, score in self.curve().items() if step not in self.reported}
        self.reported |= new
        if new:
            self.step = max(new)
            self.score = new[self.step]
        return new

    @property
    def is_over(self) -> bool:
        """Whether no worker runs, and either all runs are done or the trial was pruned or failed."""
        return not self.running and (self.ending != "done" or len(self.done) == self.search.seeds)


# The entries of run.json that tell a trial's run from that of another search; "typed" has the trial's fields.
IDENTITY = ("recipe", "typed", "preset", "env", "env_args", "steps", "seed", "eval_every", "eval_episodes")
IDENTITY += tuple(field.name for field in dataclasses.fields(Lag))


def next_job(folder: Path, plan: Plan) -> Job | None:
    """Return the job that is left for a run; None if the run is finished. A broken folder is overwritten.

    Raises:
        UsageError: the folder holds the run of another search.
    """
    if (folder / folders.RECORD).exists():
        with contextlib.suppress(RunError):
            record = folders.read_record(folder)
            if differ := _list_differences(record, plan):
                raise Taken(
                    f"{folder} holds a run of another search ({', '.join(differ)} differ); choose another "
                    "--out."
                )
            return Job("resume", folder) if folders.unfinished(folder) else None
    return Job("train", folder, plan, overwrite=True)


def _list_differences(record: Mapping[str, Any], plan: Plan) -> list[str]:
    """Return the names in `IDENTITY` under which the run.json of a run says something else than a plan."""
    wanted = json.loads(json.dumps(to_json(*prepare(plan)[:2])))
    return [name for name in IDENTITY if record.get(name) != wanted[name]]
