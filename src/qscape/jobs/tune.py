"""Hyperparameter search with Optuna: workers run the trials, and SQLite stores them.

DIR/study.db                    every trial: its fields, its learning curve, its state
DIR/trials/<number>/<seed>      its run folders
DIR/workers.log                 standard error of the workers
"""

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from qscape.envs import make as make_adapter
from qscape.errors import CannotRead, CannotWrite, MissingPackage, Taken
from qscape.jobs.pool import Failure, LocalWorker, Pool
from qscape.jobs.progress import is_final
from qscape.jobs.ranges import Range
from qscape.jobs.trials import Search, State, Trial, next_job
from qscape.jobs.worker import Job
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run.logs import read_mean_returns
from qscape.run.plan import prepare

try:
    import optuna
except ImportError as problem:
    raise MissingPackage('qscape tune needs the extra: pip install "qscape[tune]".') from problem

from optuna.trial import TrialState

STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
DB, NAME = "study.db", "qscape"
ENOUGH = 50  # finished trials from which `find_influences` says what mattered: a tenth of them are five
SHUFFLES = 100  # of the scores, which show how large a distance is by chance
CHANCE = 0.02  # share of shuffles that go further; a search that learns from scores misleads twice as often

Show: TypeAlias = Callable[[Trial], None]
Warn: TypeAlias = Callable[[Trial, int, str], None]


class Tuner:
    """An open search: asks Optuna for trials, runs them, and reports their results. Made by `open_search`.

    Args:
        search: the definition of the search.
        study: Optuna's study.
        show: called with every trial that starts or ends.
        warn: called with a trial, the seed of one of its runs, and a warning of that run.

    Attributes:
        trials: all trials by number, with those of earlier processes.
        handles: Optuna's handles of the running trials, by number.
        changes: a phrase on each package whose version is another one than when the search began.
    """

    def __init__(self, search: Search, study: "optuna.Study", show: Show, warn: Warn) -> None:
        self.search, self.study, self.show, self.warn = search, study, show, warn
        now = folders.origin()["versions"]
        began = study.user_attrs.get("versions", now)  # an earlier version did not keep them
        self.changes = folders.list_changes({"versions": began}, {"versions": now})
        records = [r for r in study.get_trials() if r.state != TrialState.WAITING]
        self.handles: dict[int, optuna.Trial] = {}
        self.trials = {r.number: self._reopen(r) for r in records}

    def _reopen(self, record: "optuna.trial.FrozenTrial") -> Trial:
        """Restore a trial of an earlier process; one that was running continues under its number."""
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
        """Select the trials in one of these states."""
        return [t for t in self.trials.values() if t.state in states]

    @property
    def best(self) -> Trial | None:
        """The best finished trial; None without one."""
        return max(self.of("done"), key=lambda t: t.score or 0.0, default=None)

    def run(self, trials: int, workers: int) -> bool:
        """Run until `trials` trials have ended, with those of earlier processes.

        Args:
            trials: the total number of trials.
            workers: maximal number of runs in parallel.

        Returns:
            False if the search was interrupted; running trials are saved.
        """
        log = self.search.folder / "workers.log"
        pool = Pool(self._jobs(trials), workers, partial(LocalWorker, log=log))
        for k, event in pool.events():
            trial, seed = self.trials[k // self.search.seeds], k % self.search.seeds
            if self._apply(trial, seed, event):
                for other in trial.running:
                    pool.running[trial.number * self.search.seeds + other].stop()
        return not pool.stopping

    def _jobs(self, trials: int) -> Iterator[tuple[int, Job] | None]:
        """Yield runs for a pool; None while workers of an earlier process hold all runs that are left."""
        while True:
            job = next(
                (j for t in self.of("running") if t.ending == "done" for j in self._list_jobs(t)), None
            )
            waiting = any(t.waiting for t in self.of("running") if t.ending == "done")
            if job is None and not waiting:
                if len(self.trials) >= trials:
                    return
                self._begin_trial()
            else:
                yield job

    def _begin_trial(self) -> None:
        """Start a trial; its fields depend only on the seed of the search and on the trials before it."""
        self.study.sampler = _make_sampler(self.search.seed, len(self.trials))
        handle = self.study.ask()
        fields = {r.field: _suggest(handle, r) for r in self.search.ranges}
        trial = Trial(self.search, handle.number, fields)
        self.handles[handle.number], self.trials[handle.number] = handle, trial
        self.show(trial)

    def _list_jobs(self, trial: Trial) -> Iterator[tuple[int, Job]]:
        """Yield jobs for the unfinished runs of a trial that no worker of an earlier process holds."""
        for seed in [*trial.waiting]:
            folder = trial.folder(seed)
            if folders.in_use(folder):
                continue
            trial.waiting.remove(seed)
            job = next_job(folder, trial.plan(seed))
            if job is None or job.kind == "resume":
                for step, policy, ret in read_mean_returns(folder):
                    trial.add_evaluation(seed, step, policy, ret)
            if job is None:
                trial.done.add(seed)
                self._finish(trial)
            else:
                trial.running.add(seed)
                yield trial.number * self.search.seeds + seed, job

    def _apply(self, trial: Trial, seed: int, event: ev.RunEvent | Failure | None) -> bool:
        """Apply an event of a worker. Returns whether the trial's other workers should stop."""
        before = trial.ending
        if isinstance(event, Failure) and trial.ending == "done":
            trial.losses[seed] += event.lost
            if is_final(event, trial.losses[seed]):
                trial.ending, trial.why = "failed", event.why
        elif isinstance(event, ev.Saved):
            trial.losses[seed] = 0
        elif isinstance(event, ev.Progressed):
            trial.made[seed] = event.step
        elif isinstance(event, ev.Logged | ev.Started):
            for warning in event.warnings:
                self.warn(trial, seed, warning)
        elif isinstance(event, ev.Evaluated):
            trial.made[seed] = event.step
            trial.add_evaluation(seed, event.step, event.policy, event.mean)
            if trial.ending == "done" and self._report(trial):
                trial.ending = "pruned"
        elif isinstance(event, ev.Ended) and not event.interrupted:
            trial.done.add(seed)
        elif event is None:
            trial.running.discard(seed)
            if seed not in trial.done:  # it goes on from its last save, unless the trial has ended
                trial.waiting.append(seed)
            self._finish(trial)
        return trial.ending != before

    def _report(self, trial: Trial) -> bool:
        """Report the new points of a trial's learning curve. Returns whether the trial should be pruned."""
        handle, new = self.handles[trial.number], trial.take_new_points()
        for step, ret in new.items():
            handle.report(ret, step)
        return bool(new) and max(new) < self.search.plan.steps and handle.should_prune()

    def _finish(self, trial: Trial) -> None:
        """Report the result of a trial to Optuna, once it has ended."""
        if not trial.is_over:
            return
        self._report(trial)  # points that an earlier process did not report
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


def find_influences(study: "optuna.Study", fewest: int = ENOUGH) -> dict[str, float] | None:
    """Find the fields by which the best tenth of the finished trials differs from all of them (PED-ANOVA).

    A field's number is the distance between its values in the best tenth and in all trials (Pearson's
    divergence of the two densities), divided by the sum over all fields. It is no share of the variance. A
    field is named if its distance is larger than the largest of all fields in 98% of shuffles of the scores.
    How often that misleads is measured by `benchmarks/mattered.py`.

    Returns:
        The numbers of the named fields, the largest first; empty if none stands out; None if nothing can be
        known, from equal scores or fewer than `fewest` finished trials.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    scores = np.array([t.value for t in trials])
    if len(trials) < fewest or np.ptp(scores) == 0:
        return None
    finished = optuna.create_study()  # in memory, with the finished trials alone, numbered from 0
    finished.add_trials(trials)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()

    def measure(values: np.ndarray) -> dict[str, float]:
        return optuna.importance.get_param_importances(
            finished, evaluator=evaluator, target=lambda t: -float(values[t.number]), normalize=False
        )

    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Optuna, about itself
        found = measure(scores)
        by_chance = [max(measure(rng.permutation(scores)).values()) for _ in range(SHUFFLES)]
    limit, total = np.quantile(by_chance, 1 - CHANCE), sum(found.values())
    return {name: distance / total for name, distance in found.items() if distance > limit}


@contextlib.contextmanager
def open_search(
    search: Search, show: Show = lambda trial: None, warn: Warn = lambda trial, seed, warning: None
) -> Iterator[Tuner]:
    """Open a new or an existing search and lock its folder.

    Args:
        search: the definition of the search.
        show: called with every trial that starts or ends.
        warn: called with a trial, the seed of one of its runs, and a warning of that run.

    Raises:
        UsageError: the folder holds something else, or another search.
        RunError: another process uses it, or its database cannot be read.
    """
    folder = search.folder
    foreign = folder.exists() and (
        not folder.is_dir() or any(p.name != folders.LOCK for p in folder.iterdir())
    )
    if foreign and not (folder / DB).exists():
        raise Taken(f"{folder} exists and holds no search; choose another --out.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with folders.locked(folder, new=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield Tuner(search, _open_study(search), show, warn)
        except optuna.exceptions.StorageInternalError as problem:
            why = str(problem.__cause__ or problem).splitlines()[0]
            raise CannotWrite(
                f"{folder / DB} cannot be written ({why}); finished trials are kept: free some space, then "
                "the same command continues."
            ) from problem


def _open_study(search: Search) -> "optuna.Study":
    """Open Optuna's study; the first trial of a new one is the recipe with its default fields."""
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{search.folder / DB}",
            study_name=NAME,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(),
            load_if_exists=True,
        )
    except Exception as problem:  # errors of Optuna and SQLAlchemy have no common base class
        why = str(problem).splitlines()[0]
        raise CannotRead(f"{search.folder / DB} cannot be used ({why}); choose another --out.") from problem
    there, wanted = study.user_attrs.get("search"), search.identity()
    if there and "seed" not in there:  # a search of an earlier version
        del wanted["seed"]
    if there is None:
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(_default_fields(search))
        study.set_user_attr("search", wanted)
        study.set_user_attr("versions", folders.origin()["versions"])
    elif there != wanted:
        differ = [
            f"{name} is {there.get(name)} there and {wanted.get(name)} here"
            for name in sorted(there.keys() | wanted.keys())
            if there.get(name) != wanted.get(name)
        ]
        raise Taken(f"{search.folder} holds another search: {', '.join(differ)}; choose another --out.")
    return study


def _default_fields(search: Search) -> dict[str, Any]:
    """Return the recipe's own values of the searched fields, without those outside of their ranges."""
    plan, agent, _ = prepare(search.plan)
    base: Any = agent.base
    searched = {r.field for r in search.ranges}
    if "base.discount" in searched and getattr(base, "discount_rule", None) == "time_limit":
        adapter = make_adapter(plan.env, env_args=dict(plan.env_args), index_actions=agent.index_actions)
        base = base.with_time_limit(adapter.spec.time_limit)  # a trial that names γ switches the rule off
        adapter.close()
    parts: dict[str, Any] = {"base": base, **agent.parts}
    fields = {}
    for r in search.ranges:
        part, _, field = r.field.partition(".")
        value = getattr(parts[part], field)
        if r.holds(value):
            fields[r.field] = _encode_choice(value)
    return fields


def _make_sampler(seed: int, number: int) -> "optuna.samplers.TPESampler":
    """Make Optuna's sampler for one trial; a resumed search draws what an uninterrupted one would draw."""
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=own, constant_liar=True)


def _suggest(handle: "optuna.Trial", r: Range) -> Any:
    """Return a field's value in a trial: the stored one, or a new one."""
    if r.choices:
        return _decode_choice(r, handle.suggest_categorical(r.field, [_encode_choice(c) for c in r.choices]))
    assert r.low is not None
    assert r.high is not None
    if r.whole:
        return handle.suggest_int(r.field, int(r.low), int(r.high), log=r.log)
    return handle.suggest_float(r.field, r.low, r.high, log=r.log)


def _encode_choice(value: Any) -> Any:
    """Encode a value for Optuna, which cannot store lists, as JSON."""
    return json.dumps(value) if isinstance(value, (list, tuple)) else value


def _decode_choice(r: Range, stored: Any) -> Any:
    """Return the value that Optuna stored for a field."""
    return next((c for c in r.choices if _encode_choice(c) == stored), stored)
