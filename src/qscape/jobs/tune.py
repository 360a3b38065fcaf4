"""Hyperparameter search with Optuna: workers run the trials, and SQLite stores them.

DIR/study.db                    every trial: its fields, its learning curve, its state
DIR/trials/<number>/<seed>      its run folders
DIR/workers.log                 standard error of the workers

With a journal (`Search.journal`), that file stands for study.db, and several processes, also of several
machines, make the trials of one search. Each trial has an owner, which shows in the journal that it lives. A
trial whose owner was not seen to live for `DEAD` seconds goes to another process: it goes on from its last
save where both see the same folder, and else begins again. Nobody waits for a process that died.
"""

import contextlib
import json
import math
import os
import platform
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import filelock
import numpy as np

from qscape.envs import make as make_adapter
from qscape.errors import CannotRead, CannotWrite, Taken, need_extra
from qscape.jobs.pool import Failure, LocalWorker, Pool
from qscape.jobs.progress import is_final
from qscape.jobs.ranges import Range
from qscape.jobs.trials import Search, State, Trial, next_job
from qscape.jobs.worker import Job
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run.logs import read_evaluation_means
from qscape.run.plan import prepare

with need_extra("qscape tune", "tune"):
    import optuna

from optuna.storages.journal import JournalFileBackend
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

BEAT = 20.0  # seconds between two signs of life of a process in a journal
DEAD = 120.0  # seconds without one after which its trials go to others
OWNER = "owner"  # of a trial, the name of its process; "": it has left the trial

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
        trials: all trials by number, with those of other processes.
        handles: Optuna's handles of this process's running trials, by number.
        changes: a phrase on each package whose version is another one than when the search began.
    """

    def __init__(self, search: Search, study: "optuna.Study", show: Show, warn: Warn) -> None:
        self.search, self.study, self.show, self.warn = search, study, show, warn
        now = folders.origin()["versions"]
        began = study.user_attrs.get("versions", now)  # an earlier version did not keep them
        self.changes = folders.list_changes({"versions": began}, {"versions": now})
        self.handles: dict[int, optuna.Trial] = {}
        self.trials: dict[int, Trial] = {}
        self.name = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._alive: dict[
            str, tuple[Any, float]
        ] = {}  # by process, its last sign of life and when it was seen
        self._read_at = -math.inf
        if search.journal is None:
            for record in study.get_trials():
                if record.state != TrialState.WAITING:
                    self.trials[record.number] = self._reopen(record, own=True)

    def _reopen(self, record: "optuna.trial.FrozenTrial", own: bool) -> Trial:
        """Restore a trial of another process; one that was running goes on here if it is this one's `own`."""
        search, number = self.search, record.number
        if record.state == TrialState.RUNNING and own:
            self.study.sampler = _make_sampler(search.seed, number)
            self.handles[number] = handle = optuna.Trial(self.study, record._trial_id)
            fields = {r.field: _suggest(handle, r) for r in search.ranges}
        else:
            # One that begins right now in another process may have no fields yet.
            known = (r for r in search.ranges if r.field in record.params)
            fields = {r.field: _decode_choice(r, record.params[r.field]) for r in known}
        why = record.user_attrs.get("why", "")
        trial = Trial(
            search, number, fields, STATES[record.state], record.intermediate_values, record.value, why
        )
        trial.waiting = trial.waiting if own else []
        return trial

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
        with self._living():
            for k, event in pool.events():
                trial, seed = self.trials[k // self.search.seeds], k % self.search.seeds
                if self._apply(trial, seed, event):
                    for other in trial.running:
                        pool.running[trial.number * self.search.seeds + other].stop()
        return not pool.stopping

    @contextlib.contextmanager
    def _living(self) -> Iterator[None]:
        """Show other processes that this one lives; at the end leave them its running trials."""
        if self.search.journal is None:
            yield
            return
        over, storage = threading.Event(), self.study._storage

        def beat() -> None:
            number = 0
            while True:
                with contextlib.suppress(OSError):  # the disk may be full, or the machine off the network
                    storage.set_study_user_attr(self.study._study_id, f"alive {self.name}", number)
                if over.wait(BEAT):
                    return
                number += 1

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            for number, handle in self.handles.items():
                if not self._is_lost(self.trials[number]):
                    handle.set_user_attr(OWNER, "")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time begin a trial, or take one over."""
        journal = self.search.journal
        with filelock.FileLock(f"{journal}.begin"):
            self._read_others()
            yield

    def _read_others(self) -> None:
        """Read the trials of other processes, and their signs of life."""
        now = self._read_at = time.monotonic()
        for name, sign in self.study.user_attrs.items():
            if name.startswith("alive "):
                owner = name.removeprefix("alive ")
                if self._alive.get(owner, (None, 0.0))[0] != sign:
                    self._alive[owner] = sign, now
        for record in self.study.get_trials(deepcopy=False):
            known = self.trials.get(record.number)
            if record.state == TrialState.WAITING or record.number in self.handles:
                continue
            trial = self._reopen(record, own=False)
            self.trials[record.number] = trial
            if known is None or known.state != trial.state:
                self.show(trial)

    def _take_over(self) -> bool:
        """Take over a running trial whose process has left it or has died. Return whether there was one."""
        now = time.monotonic()
        for record in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = record.user_attrs.get(OWNER)
            if record.number in self.handles:
                continue
            # A trial without owner has only begun: it is judged from the moment at which it was first seen.
            name = f"trial {record.number}" if owner is None else owner
            _, seen = self._alive.setdefault(name, (None, now))
            if owner == "" or now - seen > DEAD:
                self.trials[record.number] = self._reopen(record, own=True)
                self.handles[record.number].set_user_attr(OWNER, self.name)
                self.show(self.trials[record.number])
                return True
        return False

    def _is_lost(self, trial: Trial) -> bool:
        """Return whether another process has taken a trial over, since this one seemed to have died."""
        if self.search.journal is None:
            return False
        record = self.study._storage.get_trial(self.handles[trial.number]._trial_id)
        return record.state.is_finished() or record.user_attrs.get(OWNER) != self.name

    def _jobs(self, trials: int) -> Iterator[tuple[int, Job] | None]:
        """Yield runs for a pool; None while workers of an earlier process hold all runs that are left."""
        while True:
            job = next(
                (j for t in self.of("running") if t.ending == "done" for j in self._list_jobs(t)), None
            )
            waiting = any(t.waiting for t in self.of("running") if t.ending == "done")
            if job is None and not waiting:
                if self.search.journal is not None:
                    if time.monotonic() - self._read_at < 1.0:
                        yield None
                    with self._alone():
                        begun = self._take_over()
                        if not begun and (begun := len(self.trials) < trials):
                            self._begin_trial()
                    if begun:
                        continue
                    if self.of("running"):  # others make them, and may die
                        yield None
                        continue
                if len(self.trials) >= trials:
                    return
                self._begin_trial()
            else:
                yield job

    def _begin_trial(self) -> None:
        """Start a trial; its fields depend only on the seed of the search and on the trials before it."""
        self.study.sampler = _make_sampler(self.search.seed, len(self.trials))
        handle = self.study.ask()
        if self.search.journal is not None:
            handle.set_user_attr(OWNER, self.name)
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
                for means in read_evaluation_means(folder):
                    trial.add_evaluation(seed, *means)
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
            trial.add_evaluation(seed, event.step, event.policy, event.mean, event.success)
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
        if self._is_lost(trial):
            return True
        handle, new = self.handles[trial.number], trial.take_new_points()
        for step, score in new.items():
            handle.report(score, step)
        return bool(new) and max(new) < self.search.plan.steps and handle.should_prune()

    def _finish(self, trial: Trial) -> None:
        """Report the result of a trial to Optuna, once it has ended."""
        if not trial.is_over:
            return
        if self._is_lost(trial):
            del self.handles[trial.number]
            trial.waiting = []
            return
        self._report(trial)  # points that an earlier process did not report
        worth = trial.worth() if trial.ending == "done" else 0.0
        if not math.isfinite(worth):
            trial.ending, trial.why = "failed", f"its {self.search.measure} is {worth}"
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old versions of Optuna say that it may change
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
    """Open a new or an existing search and lock its folder, unless processes share it by a journal.

    Args:
        search: the definition of the search.
        show: called with every trial that starts or ends.
        warn: called with a trial, the seed of one of its runs, and a warning of that run.

    Raises:
        UsageError: the folder holds something else, or another search.
        RunError: another process uses it, or its database cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if search.journal is not None:
        with _open_journal(search) as study:
            yield Tuner(search, study, show, warn)
        return
    folder = search.folder
    foreign = folder.exists() and (
        not folder.is_dir() or any(p.name != folders.LOCK for p in folder.iterdir())
    )
    if foreign and not (folder / DB).exists():
        raise Taken(f"{folder} exists and holds no search; choose another --out.")
    with folders.locked(folder, new=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield Tuner(search, _open_study(search, f"sqlite:///{folder / DB}", folder / DB), show, warn)
        except optuna.exceptions.StorageInternalError as problem:
            why = str(problem.__cause__ or problem).splitlines()[0]
            raise CannotWrite(
                f"{folder / DB} cannot be written ({why}); finished trials are kept: free some space, then "
                "the same command continues."
            ) from problem


@contextlib.contextmanager
def _open_journal(search: Search) -> "Iterator[optuna.Study]":
    """Open the study of a search whose trials several processes share by a journal. Errors: `open_search`."""
    journal, folder = search.journal, search.folder
    assert journal is not None
    if (folder / DB).exists():
        raise Taken(f"{folder} holds a search with a database of its own; choose another --out.")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = {name for name in names if not name.startswith((journal.name, "workers.log"))}
    if (folder.exists() and not folder.is_dir()) or (others and "trials" not in others):
        raise Taken(f"{folder} exists and holds no search; choose another --out.")
    try:
        for place in (folder, journal.parent):
            place.mkdir(parents=True, exist_ok=True)
        _refuse_no_journal(journal)
        with warnings.catch_warnings(), filelock.FileLock(f"{journal}.begin"):
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            backend = JournalFileBackend(str(journal))
            study = _open_study(search, optuna.storages.JournalStorage(backend), journal)
        yield study
    except OSError as problem:
        if problem.filename not in (None, str(journal), f"{journal}.begin", str(journal.parent)):
            raise
        raise CannotWrite(f"{journal} cannot be written ({problem.strerror}).") from problem


def _refuse_no_journal(file: Path) -> None:
    """Raise a UsageError if there is a file that Optuna did not write as a journal."""
    if file.is_dir():
        raise Taken(
            f"--storage {file} is a folder; name a file, such as {file / 'journal.log'}.", field="storage"
        )
    if not file.exists() or not file.stat().st_size:
        return
    with file.open("rb") as lines:
        first = lines.readline()
    try:
        known = "op_code" in json.loads(first)
    except (ValueError, TypeError):
        known = False
    if not known:
        raise Taken(
            f"--storage {file} exists and is no journal of Optuna; choose another file.", field="storage"
        )


def _open_study(search: Search, storage: Any, file: Path) -> "optuna.Study":
    """Open Optuna's study; the first trial of a new one is the recipe with its default fields.

    `file`: where it is stored, for errors.
    """
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=NAME,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(),
            load_if_exists=True,
        )
    except Exception as problem:  # errors of Optuna and SQLAlchemy have no common base class
        why = str(problem).splitlines()[0]
        flag = "--out" if search.journal is None else "--storage"
        raise CannotRead(f"{file} cannot be used ({why}); choose another {flag}.") from problem
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
        place, flag = (search.folder, "--out") if search.journal is None else (file, "--storage")
        raise Taken(f"{place} holds another search: {', '.join(differ)}; choose another {flag}.")
    return study


def _default_fields(search: Search) -> dict[str, Any]:
    """Return the recipe's own values of the searched fields, without those outside of their ranges."""
    plan, agent, _ = prepare(search.plan)
    base: Any = agent.base
    searched = {r.field for r in search.ranges}
    if "base.discount" in searched and getattr(base, "discount_rule", None) == "time_limit":
        args, index_actions = dict(plan.env_args), agent.index_actions
        adapter = make_adapter(plan.env, env_args=args, index_actions=index_actions, lag=plan.lag)
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
