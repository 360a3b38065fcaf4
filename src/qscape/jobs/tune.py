"""Search of an agent's fields by Optuna: trials that are runs, made by workers, stored in SQLite.

DIR/study.db                    every trial: its fields, its curve, what became of it
DIR/trials/<number>/<seed>      its run folders
DIR/workers.log                 what the workers write to standard error
"""

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from qscape.errors import RunError, UsageError
from qscape.jobs.pool import Failure, LocalWorker, Pool
from qscape.jobs.ranges import Range
from qscape.jobs.trials import Search, State, Trial, next_job, read_evaluations
from qscape.jobs.worker import Job
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run.plan import fitted

try:
    import optuna
except ImportError as problem:
    raise UsageError('qscape tune needs the extra: pip install "qscape[tune]".') from problem

from optuna.trial import TrialState

STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
DB, NAME = "study.db", "qscape"
ENOUGH = 10  # trials from which importances of fields are worth saying


class Tuner:
    """A search that is open: asks Optuna for trials, has them run, and tells it how they went.

    Args:
        study: Optuna's.
        show: gets every trial that begins, or comes to an end.
    """

    def __init__(self, search: Search, study: "optuna.Study", show: Callable[[Trial], None]) -> None:
        self.search, self.study, self.show = search, study, show
        records = [r for r in study.get_trials() if r.state != TrialState.WAITING]
        self.handles: dict[int, optuna.Trial] = {}
        self.trials = {r.number: self._reopened(r) for r in records}

    def _reopened(self, record: "optuna.trial.FrozenTrial") -> Trial:
        """A trial of an earlier process; one that was running then goes on under its number."""
        search, number = self.search, record.number
        if record.state == TrialState.RUNNING:
            self.study.sampler = _make_sampler(search.seed, number)
            self.handles[number] = handle = optuna.Trial(self.study, record._trial_id)
            fields = {r.field: _suggest(handle, r) for r in search.ranges}
        else:
            fields = {r.field: _decode_choice(r, record.params[r.field]) for r in search.ranges}
        why = record.user_attrs.get("why", "")
        return Trial(
            search, number, fields, STATES[record.state], record.intermediate_values, record.value, why
        )

    def of(self, *states: State) -> list[Trial]:
        """The trials in one of these states."""
        return [t for t in self.trials.values() if t.state in states]

    @property
    def best(self) -> Trial | None:
        """The best trial that is done."""
        return max(self.of("done"), key=lambda t: t.score or 0.0, default=None)

    def run(self, trials: int, workers: int) -> bool:
        """Go on until so many trials came to an end. False: it was interrupted; what runs is saved."""
        log = self.search.folder / "workers.log"
        pool = Pool(self._jobs(trials), workers, partial(LocalWorker, log=log))
        for k, event in pool.events():
            trial, seed = self.trials[k // self.search.seeds], k % self.search.seeds
            if self._take(trial, seed, event):
                for other in trial.running:
                    pool.running[trial.number * self.search.seeds + other].stop()
        return not pool.stopping

    def _jobs(self, trials: int) -> Iterator[tuple[int, Job] | None]:
        """Runs to make, for a pool; None while what is left is held by workers of an earlier process."""
        while True:
            job = next((j for t in self.of("running") if t.ending == "done" for j in self._runs(t)), None)
            waiting = any(t.waiting for t in self.of("running") if t.ending == "done")
            if job is None and not waiting:
                if len(self.trials) >= trials:
                    return
                self._ask()
            else:
                yield job

    def _ask(self) -> None:
        """Begin a trial. Its draws depend on nothing but the trials before it."""
        self.study.sampler = _make_sampler(self.search.seed, len(self.trials))
        handle = self.study.ask()
        fields = {r.field: _suggest(handle, r) for r in self.search.ranges}
        trial = Trial(self.search, handle.number, fields)
        self.handles[handle.number], self.trials[handle.number] = handle, trial
        self.show(trial)

    def _runs(self, trial: Trial) -> Iterator[tuple[int, Job]]:
        """Jobs for what is not made yet of a trial, if no worker of an earlier process has it."""
        for seed in [*trial.waiting]:
            folder = trial.folder(seed)
            if folders.in_use(folder):
                continue
            trial.waiting.remove(seed)
            job = next_job(folder, trial.plan(seed))
            if job is None or job.kind == "resume":
                for step, policy, ret in read_evaluations(folder):
                    trial.see(seed, step, policy, ret)
            if job is None:
                trial.done.add(seed)
                self._settle(trial)
            else:
                trial.running.add(seed)
                yield trial.number * self.search.seeds + seed, job

    def _take(self, trial: Trial, seed: int, event: ev.RunEvent | Failure | None) -> bool:
        """Take over what a worker tells. True: the trial's other workers should stop."""
        before = trial.ending
        if isinstance(event, Failure) and trial.ending == "done":
            trial.ending, trial.why = "failed", event.why
        elif isinstance(event, ev.Evaluated):
            trial.see(seed, event.step, event.policy, event.mean)
            if trial.ending == "done" and self._report(trial):
                trial.ending = "pruned"
        elif isinstance(event, ev.Ended) and not event.interrupted:
            trial.done.add(seed)
        elif event is None:
            trial.running.discard(seed)
            self._settle(trial)
        return trial.ending != before

    def _report(self, trial: Trial) -> bool:
        """Report what is new of a trial's curve. Should it be given up?"""
        handle, new = self.handles[trial.number], trial.news()
        for step, ret in new.items():
            handle.report(ret, step)
        return bool(new) and max(new) < self.search.plan.steps and handle.should_prune()

    def _settle(self, trial: Trial) -> None:
        """Tell Optuna what became of a trial, once it is over."""
        if not trial.over:
            return
        self._report(trial)  # what an earlier process did not come to report
        worth = trial.worth() if trial.ending == "done" else 0.0
        if not math.isfinite(worth):
            trial.ending, trial.why = "failed", f"its return is {worth}"
        handle = self.handles.pop(trial.number)
        if trial.ending == "done":
            trial.score = worth
            self.study.tell(handle, worth)
        elif trial.ending == "pruned":
            self.study.tell(handle, state=TrialState.PRUNED)
        else:
            handle.set_user_attr("why", trial.why)
            self.study.tell(handle, state=TrialState.FAIL)
        trial.state = trial.ending
        self.show(trial)

    def importances(self) -> dict[str, float]:
        """How much of what tells good trials apart each field explains; nothing below 10 done trials."""
        if len(self.of("done")) < ENOUGH:
            return {}
        importance = optuna.importance
        return importance.get_param_importances(
            self.study, evaluator=importance.PedAnovaImportanceEvaluator()
        )


@contextlib.contextmanager
def open_search(search: Search, show: Callable[[Trial], None] = lambda trial: None) -> Iterator[Tuner]:
    """Open a search, new or begun before, and hold its folder alone.

    Raises:
        UsageError: the folder holds something else, or a search for something else. RunError: another process
            has it, or its database cannot be read.
    """
    folder = search.folder
    foreign = folder.exists() and (
        not folder.is_dir() or any(p.name != folders.LOCK for p in folder.iterdir())
    )
    if foreign and not (folder / DB).exists():
        raise UsageError(f"{folder} exists and holds no search; choose another --out.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with folders.locked(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield Tuner(search, _open_study(search), show)
        except optuna.exceptions.StorageInternalError as problem:
            why = str(problem.__cause__ or problem).splitlines()[0]
            raise RunError(
                f"{folder / DB} cannot be written ({why}); trials that are done stay: make room, and the "
                "same command goes on."
            ) from problem


def _open_study(search: Search) -> "optuna.Study":
    """Optuna's study of a search; the first trial of a new one is the recipe as it stands."""
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{search.folder / DB}",
            study_name=NAME,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(),
            load_if_exists=True,
        )
    except Exception as problem:  # Optuna's and SQLAlchemy's have no base in common
        why = str(problem).splitlines()[0]
        raise RunError(f"{search.folder / DB} cannot be used ({why}); choose another --out.") from problem
    there, wanted = study.user_attrs.get("search"), search.identity()
    if there is None:
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(_default_fields(search))
        study.set_user_attr("search", wanted)
    elif there != wanted:
        differ = [
            f"{name} is {there.get(name)} there and {wanted.get(name)} here"
            for name in sorted(there.keys() | wanted.keys())
            if there.get(name) != wanted.get(name)
        ]
        raise UsageError(f"{search.folder} holds another search: {', '.join(differ)}; choose another --out.")
    return study


def _default_fields(search: Search) -> dict[str, Any]:
    """The fields as the recipe has them, where they lie in their ranges."""
    agent = fitted(search.plan)[1]
    parts: dict[str, Any] = {"base": agent.base, **agent.parts}
    found = {}
    for r in search.ranges:
        part, _, field = r.field.partition(".")
        value = getattr(parts[part], field)
        if r.holds(value):
            found[r.field] = _encode_choice(value)
    return found


def _make_sampler(seed: int, number: int) -> "optuna.samplers.TPESampler":
    """Optuna's sampler for one trial: a search that is gone on with draws what it would have drawn."""
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=own, constant_liar=True)


def _suggest(handle: "optuna.Trial", r: Range) -> Any:
    """A field's value in a trial: the one it has, or a new one."""
    if r.choices:
        return _decode_choice(r, handle.suggest_categorical(r.field, [_encode_choice(c) for c in r.choices]))
    assert r.low is not None
    assert r.high is not None
    if r.whole:
        return handle.suggest_int(r.field, int(r.low), int(r.high), log=r.log)
    return handle.suggest_float(r.field, r.low, r.high, log=r.log)


def _encode_choice(value: Any) -> Any:
    """A value as Optuna stores it: lists, which it has not, as JSON."""
    return json.dumps(value) if isinstance(value, (list, tuple)) else value


def _decode_choice(r: Range, stored: Any) -> Any:
    """The value that Optuna stored for a field."""
    return next((c for c in r.choices if _encode_choice(c) == stored), stored)
