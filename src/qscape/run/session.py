"""The session of a run: when it evaluates, logs, saves and stops. How it advances is its engine's.

    choose the first action
    until all steps are made:
        evaluate, log and save, if due
        let the engine advance, at most to the step at which something is due again

Runs that differ in their seed only may share a session, and so their engine: it advances them all, and what
is due is made for one seed after the other. So run folders do not differ from those of single runs.
"""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from qscape.envs import EnvAdapter, Episode
from qscape.envs.patience import Alarm, Call, Caller, Hung, Patience, describe_hung
from qscape.envs.repeats import name_check, seed_resets, warn_of_starts, watch_saves
from qscape.envs.snapshot import remember
from qscape.envs.spaces import fingerprint, refuse_other_table
from qscape.envs.workers import has_died
from qscape.errors import BrokenEnv, NotFinite, RunError
from qscape.ops.finite import LOSSES
from qscape.run import events as ev
from qscape.run.engines.base import Engine, Limit, Progress, SavedSeed
from qscape.run.evaluation import evaluate, evaluate_policies, list_successes, rollouts
from qscape.run.plan import Plan, moot_notes, score
from qscape.run.probes import PolicyEvaluation, Probes
from qscape.run.processes import any_of, first_of
from qscape.system import peak_memory

LONG_EPISODE = 1_000  # steps of an environment without a known limit in which an episode should have ended
WITNESSED = 10  # the step in which a snapshot is verified, unless the first save comes before it
GRACE = 5.0  # seconds in which a call that was interrupted has to end
SECOND = 1.0  # between two `Progressed` events
Saver: TypeAlias = Callable[["Session", bool, int], Path]


@dataclasses.dataclass
class Judge:
    """Decides by evaluations when a run ends early, of `Plan.stop_at` and `Plan.patience`.

    Attributes:
        reached: evaluations in a row that reached `stop_at`.
        best: the best evaluation so far; None before the first that counts.
        since: evaluations since then.
        stopped: whether the run has ended early.
    """

    reached: int = 0
    best: float | None = None
    since: int = 0
    stopped: bool = False

    def judge(self, plan: Plan, ret: float) -> str:
        """Take in the mean return of an evaluation; return why the run ends, or ""."""
        self.reached = self.reached + 1 if plan.stop_at is not None and ret >= plan.stop_at else 0
        if self.best is None or ret > self.best:
            self.best, self.since = ret, 0
        else:
            self.since += 1
        why = ""
        if plan.stop_at is not None and self.reached >= plan.stop_times:
            times = f" {plan.stop_times} times in a row" if plan.stop_times > 1 else ""
            why = f"--stop-at: evaluations reached {plan.stop_at:g}{times}"
        elif plan.patience is not None and self.since >= plan.patience:
            why = f"--patience: no new best in {plan.patience} evaluations"
        self.stopped = bool(why)
        return why


@dataclasses.dataclass
class OneSeed:
    """What a session keeps of one seed.

    Attributes:
        plan: the plan of its run.
        adapter: its training environments.
        saver: writes its saves; None: nothing is saved.
        returns: returns of the episodes since the last log line.
        rate: the step and the time of the last log line.
        score: normalised score of the last evaluation; None before the first, or without reference returns.
        warned: parts whose warning the user has read; "environment" and "episodes" for the session's own.
        ended: did an episode of training end in this process?
        judge: decides when the run ends early.
    """

    plan: Plan
    adapter: EnvAdapter
    saver: Saver | None
    returns: list[float] = dataclasses.field(default_factory=list)
    rate: tuple[int, float] = (0, 0.0)
    score: float | None = None
    warned: set[str] = dataclasses.field(default_factory=set)
    ended: bool = False
    judge: Judge = dataclasses.field(default_factory=Judge)


class Session:
    """A run in memory, or several that differ in their seed only.

    `events(until)` trains it up to a step, and may be called again.

    Attributes:
        engine: how the run advances; it holds all arrays.
        learner: what is learned, the engine's.
        plan: the plan of the run; of several seeds that of the first one.
        agent: its agent, bound to the environment's task.
        adapter: the training environments; of several seeds those of the first one.
        eval_adapter: the evaluation environments, or None.
        seeds: what the session keeps of each seed.
        due: the step at which each of "log", "evaluate", "save" and "milestone" is due next.
        until: total of environment steps to make.
        finished: whether these steps and their updates were made.
        seconds: seconds of training so far, with those in earlier processes.
        fresh: whether the environments were never reset: a model may be saved before it learns.
        ended_by: why the run ended before its steps were made; "" if it did not.
        over: whether the last call of `events` has made its steps, or has saved after a request to stop.
        leave: ends the process with a sentence, if an environment hangs that nothing can interrupt; None: the
            process is the user's own, and stays.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        engine: Engine,
        adapters: Sequence[EnvAdapter],
        eval_adapter: EnvAdapter | None = None,
        savers: Sequence[Saver] = (),
    ) -> None:
        """Set up a run before its first step.

        Args:
            plans: the completed plan of each seed.
            engine: the engine of all seeds.
            adapters: the training environments of each seed.
            eval_adapter: the evaluation environments, which all seeds share; None: the run does not evaluate.
            savers: one for each seed, called with the session, whether this save is a milestone that is never
                deleted, and the index of the seed. Empty: the run saves nothing.

        Raises:
            UsageError: evaluation environments have another action table.
        """
        plan = plans[0]
        self.plan, self.engine, self.learner = plan, engine, engine.learner
        self.agent, self.adapter, self.eval_adapter = engine.learner.agent, adapters[0], eval_adapter
        if eval_adapter is not None:
            table = fingerprint(self.adapter.spec.table)
            refuse_other_table(self.adapter.env_id, table, eval_adapter.spec.table)
            eval_adapter.arrange(self.adapter.spaces)
        writers = savers or [None] * len(plans)
        self.seeds = [OneSeed(*of) for of in zip(plans, adapters, writers, strict=True)]
        self.probes = Probes(plan.probe, self.agent) if plan.probe else None
        self.due = {
            "log": plan.logs_every,
            "evaluate": 0,
            "save": plan.saves_every,
            "milestone": plan.milestone_every,
        }
        self.until = plan.steps
        self.finished = False
        self.seconds = 0.0
        self.fresh = True
        self.ended_by = ""
        self.over = False
        self.leave: Callable[[str], object] | None = None
        self._stop = self._asked = False
        self._hung = ""
        self._played: list[list[Episode]] = []  # the evaluation episodes of all seeds

    @property
    def adapters(self) -> list[EnvAdapter]:
        """All environments of the run: those of each seed, and those of evaluations."""
        return [one.adapter for one in self.seeds] + ([self.eval_adapter] if self.eval_adapter else [])

    @property
    def env_steps(self) -> int:
        """Environment steps made so far, in each seed."""
        return self.learner.env_steps

    @property
    def updates(self) -> int:
        """Updates made so far, in each seed."""
        return self.learner.updates

    @property
    def kept(self) -> Any:
        """The acting state that the schedule keeps, or None."""
        return self.learner.policies().get("kept")

    @property
    def best(self) -> Any:
        """The acting state for evaluation and export: the kept one if the schedule keeps one."""
        policies = self.learner.policies()
        return policies.get("kept", policies["current"])

    @property
    def saves(self) -> bool:
        """Is the run saved?"""
        return self.seeds[0].saver is not None

    def stop(self, asked: bool = True) -> None:
        """Ask the run to save and end at the next step; False: take that back."""
        self._stop = asked

    def events(self, until: int) -> Iterator[ev.RunEvent]:
        """Train until `until` environment steps were made, counted from the start of the run.

        Yields:
            The events of the run; it proceeds as they are consumed.

        Raises:
            RunError: the environment returned NaN, the disk is full, the replay does not fit into memory or
                is damaged. The last save stays.
            SystemExit, KeyboardInterrupt: the environment raised them; the run has saved.
        """
        for _, event in self.seed_events(until):
            yield event

    def seed_events(self, until: int) -> Iterator[tuple[int, ev.RunEvent]]:
        """Train like `events`; yield events with the index of their seed, one of all once for each."""
        with Alarm() as alarm:

            def hung(caller: Caller, call: Call) -> None:
                self._interrupt(alarm, caller, call)

            try:
                with Patience(lambda: self.adapters, self.plan.step_seconds, hung):
                    yield from self._events(until)
            except Hung:
                self._save_cut_step()
                raise BrokenEnv(self._hung) from None

    def _events(self, until: int) -> Iterator[tuple[int, ev.RunEvent]]:
        self.finished, self.over, self.until, self.ended_by = False, False, until, ""
        told = time.perf_counter()
        begun = told - self.seconds
        for one in self.seeds:
            one.rate = (self.env_steps, told)
        warned = self._moot_notes()
        if self.fresh:
            self.engine.start()
            self.fresh = False
            for one in self.seeds:
                if one.saver is not None and one.adapter.jax_env is None:
                    remember(one.adapter)
            warned += warn_of_starts(self.adapter, self.eval_adapter)
        if not self._asked:  # learning in pieces asks the environments once, too
            self._asked = True
            warned += seed_resets(*(one.adapter for one in self.seeds), self.eval_adapter)
            if self.saves:
                first = min(self.plan.saves_every, self.plan.milestone_every) // self.plan.envs
                for one in self.seeds:
                    watch_saves(one.adapter, self.eval_adapter, max(1, min(WITNESSED, first)))
        broken = [one.adapter.interrupted for one in self.seeds if one.adapter.interrupted]
        if broken:
            self.engine.begin_again()
        warned += [f"a step was not finished ({why}): new episodes begin" for why in broken[:1]]
        notes = warned + self.engine.notes(self.saves)
        evals_every = self.plan.evals_every if self.eval_adapter is not None else 0
        for k, one in enumerate(self.seeds):
            plan = one.plan
            started = self.env_steps, until, plan.label, self.adapter.env_id, plan.seed, notes
            yield k, ev.Started(*started, warned, evals_every)
        limit = Limit(0, until, lambda: self._stop)
        try:
            while not any_of(self._stop):
                if time.perf_counter() - told >= SECOND:
                    told = time.perf_counter()
                    yield from self._each(self._progress())
                if self.engine.ready:
                    self.seconds = time.perf_counter() - begun
                    last = self.env_steps >= until
                    if last or self.env_steps >= limit.step:
                        yield from self._boundary(last)
                        limit = limit._replace(step=self._next_due())
                    if self.env_steps >= until or self.ended_by:
                        self.finished = True
                        break
                progress = self.engine.advance(limit)
                if progress.ended:
                    yield from self._end_episodes(progress)
        except RunError as problem:  # e.g. that an action is NaN, which may have a deeper cause
            self._refuse_divergence()
            if has_died(problem):
                self._save_cut_step()
            raise
        except (KeyboardInterrupt, SystemExit):
            if not self._stop:  # a second Ctrl-C ends without a save
                self._save_cut_step()
            raise
        self.seconds = time.perf_counter() - begun
        if self.saves:
            self._refuse_divergence()
            paths = self._save_all(self.finished)
            self.over = True
            for k, path in enumerate(paths):
                yield k, ev.Saved(self.env_steps, path)
        self.over = True
        made = self.env_steps, self.updates, self.seconds
        yield from self._each(ev.Ended(*made, not self.finished, self.ended_by))
        self._stop = False  # reset here, since `stop` may be called before `events`

    def _each(self, event: ev.RunEvent) -> Iterator[tuple[int, ev.RunEvent]]:
        """Yield an event once for each seed."""
        for k in range(len(self.seeds)):
            yield k, event

    def _moot_notes(self) -> list[str]:
        """Return notes on the user's settings that do nothing on this task; `prepare` noted the others."""
        anywhere = dataclasses.replace(self.agent, spec=None).moot_fields()
        here = {name: why for name, why in self.agent.moot_fields().items() if name not in anywhere}
        return moot_notes(here, self.plan.typed or {})

    def _end_episodes(self, progress: Progress) -> Iterator[tuple[int, ev.EpisodeDone]]:
        """Yield the ends of episodes. The step is complete, so that a callback can save it."""
        for k, _, episode in progress.ended:
            self.seeds[k].returns.append(episode.ret)
            self.seeds[k].ended = True
        for k, step, episode in progress.ended:
            yield k, ev.EpisodeDone(step, *episode)

    def _save_all(self, milestone: bool) -> list[Path]:
        return [one.saver(self, milestone, k) for k, one in enumerate(self.seeds) if one.saver is not None]

    def _interrupt(self, alarm: Alarm, caller: Caller, call: Call) -> None:
        """Interrupt a call of an environment that takes too long, from a thread of its own.

        What cannot be interrupted stays where it is; then the run is saved here.
        """
        what = "its " + call.what if call.what in ("step", "reset") else call.what
        self._hung = (
            f"{describe_hung(caller.env_id, what, self.plan.step_seconds)} (--step-seconds), after "
            f"{self.env_steps:,} steps of training; {name_check(caller.env_id)}"
        )
        alarm.ring(caller, call)
        end = time.monotonic() + GRACE
        while time.monotonic() < end:
            if caller.called is not call:
                return
            time.sleep(GRACE / 50)
        for adapter in self.adapters:
            if adapter is caller:
                adapter.interrupted = "it hung"
        with contextlib.suppress(Exception):  # a compiled program has the arrays: then the last save counts
            self._save_all(False)
        if self.leave is None:
            print(f"qscape: {self._hung}", file=sys.stderr)
        else:
            self.leave(self._hung)

    def _save_cut_step(self) -> None:
        """Save if a call of an environment ended in its middle, and not in its first reset."""
        if not self.fresh and any(adapter.interrupted for adapter in self.adapters):
            self._save_all(False)

    def _boundary(self, last: bool) -> Iterator[tuple[int, ev.RunEvent]]:
        """Evaluate, log and save, if due at this step; `last`: whether it is the last step of the run."""
        plan = self.plan
        self._refuse_divergence()
        evaluates = self.eval_adapter is not None and plan.evals_every > 0 and self._is_due("evaluate", last)
        logs, milestone = self._is_due("log", last), self._is_due("milestone", last)
        saves = self.saves and not last and (self._is_due("save", False) or milestone)
        for k, one in enumerate(self.seeds):
            if evaluates:
                assert self.eval_adapter is not None
                self._postpone("evaluate", plan.evals_every)
                judged = None  # the kept policy, which comes last, if there is one
                for judged in self.evaluations(self.eval_adapter, k):
                    yield k, judged
                if plan.may_stop_early and judged is not None and self.updates:
                    self.ended_by = one.judge.judge(plan, first_of(judged.mean))
                    logs, saves = logs or bool(self.ended_by), saves and not self.ended_by
            if logs:
                self._postpone("log", plan.logs_every)
                yield k, self._log(k)
            if milestone:
                self._postpone("milestone", plan.milestone_every)
            if self._is_due("save", False):
                self._postpone("save", plan.saves_every)
            if saves and one.saver is not None:
                yield k, ev.Saved(self.env_steps, one.saver(self, milestone, k))

    def _refuse_divergence(self) -> None:
        """Raise a RunError if a loss or an optimiser's moments were not finite after an update."""
        for k, one in enumerate(self.seeds):
            guard = {name: update for name, update in self.learner.guard(k).items() if update > 0}
            if not self.updates or not guard:
                continue
            update = min(guard.values())
            wrong = next(name for name in guard if guard[name] == update)
            what = f"the gradient of {wrong.removesuffix('.params')} is not finite, or too large for float32"
            if wrong == LOSSES:
                what = "a loss is infinite"
            shown = self.learner.metrics(k).items()
            losses = [
                f"{name} is {value}" for name, value in shown if "loss" in name and not np.isfinite(value)
            ]
            fields = [name.replace("_", "-") for name in vars(self.agent.base) if "learning_rate" in name]
            rates = " or ".join(f"--base.{name}" for name in fields)
            raise NotFinite(
                f"{one.plan.label or one.plan.recipe} diverged at update {update:,}, before step "
                f"{self.env_steps:,}: {', '.join([what, *losses])}. A smaller {rates}, smaller "
                "rewards or --base.gradient-clip 1 usually help; earlier saves stay."
            )

    def _is_due(self, what: str, last: bool) -> bool:
        return last or self.env_steps >= self.due[what]

    def _postpone(self, what: str, every: int) -> None:
        """Set the step at which `what` is due again."""
        self.due[what] = (self.env_steps // every + 1) * every

    def _next_due(self) -> int:
        """Return the next step at which an evaluation, a log line, a save or the end of the run is due."""
        return min(self.until, *(step for step in self.due.values() if step > self.env_steps))

    def evaluations(self, adapter: EnvAdapter, seed: int = 0) -> Iterator[ev.Evaluated]:
        """Evaluate the current policy of a seed, and the kept one if the schedule keeps one."""
        one = self.seeds[seed]
        for name, acting in self.learner.policies(seed).items():
            start = time.perf_counter()
            if self.probes is None:
                done, probed = self._evaluate(acting, adapter, seed), {}
            else:
                walked = rollouts(self.learner.programs, acting, adapter, self.plan.eval_episodes)
                metrics = self.learner.metrics(seed)
                # No one knows any more what the rewards were divided by when a policy was kept.
                is_unknown = name == "kept" and "reward_divisor" in metrics
                divisor = math.nan if is_unknown else _reward_divisor(metrics)
                evaluation = PolicyEvaluation(acting, walked, divisor)
                done, probed = [r.episode for r in walked], self.probes(evaluation)
            returns, lengths = [e.ret for e in done], [e.length for e in done]
            seconds = time.perf_counter() - start
            by_success = adapter.spec.goal_size is not None
            about = returns, lengths, list_successes(done), probed, seconds, by_success
            event = ev.Evaluated(self.env_steps, name, *about)
            one.score = score(one.plan, event.mean)
            yield event

    def _evaluate(self, acting: Any, adapter: EnvAdapter, seed: int) -> list[Episode]:
        """Return the evaluation episodes of a policy; in JAX all seeds play when the first one asks."""
        programs, episodes = self.learner.programs, self.plan.eval_episodes
        if len(self.seeds) == 1 or adapter.jax_env is None:
            return evaluate(programs, acting, adapter, episodes)
        if seed == 0:
            policies = [self.learner.policies(k)["current"] for k in range(len(self.seeds))]
            stacked = jax.tree.map(lambda *of_each: jnp.stack(of_each), *policies)
            names = [f"seed {one.plan.seed}" for one in self.seeds]
            self._played = evaluate_policies(programs, stacked, adapter, episodes, names)
        return self._played[seed]

    def _progress(self) -> ev.Progressed:
        device = jax.local_devices()[0].memory_stats() or {}
        taken = device.get("peak_bytes_in_use", 0)
        return ev.Progressed(self.env_steps, self.updates, peak_memory(), taken)

    def _log(self, seed: int) -> ev.Logged:
        one, now = self.seeds[seed], time.perf_counter()
        steps, then = one.rate
        metrics = {name: value for name, value in self.learner.metrics(seed).items() if np.isfinite(value)}
        metrics["steps_per_second"] = (self.env_steps - steps) / max(now - then, 1e-9)
        if one.returns:
            metrics["return"] = float(np.mean(one.returns))
        one.returns, one.rate = [], (self.env_steps, now)
        warnings = self._new_warnings(one, metrics)
        metrics |= {} if one.score is None else {"normalised_score": one.score}
        return ev.Logged(self.env_steps, self.updates, metrics, warnings)

    def _new_warnings(self, one: OneSeed, metrics: dict[str, float]) -> list[str]:
        """Return what parts say about the metrics; a part that has said something is not asked again."""
        found = {
            name: part.warning(metrics) for name, part in self.agent.parts.items() if name not in one.warned
        }
        found |= {"environment": self._unkept(one), "episodes": self._waits_for_ends(one)}
        told = {
            name: sentence
            for name, sentence in found.items()
            if sentence is not None and name not in one.warned
        }
        one.warned |= told.keys()
        late = [f"{sentence}; {name_check(one.adapter.env_id)}" for sentence in one.adapter.take_warnings()]
        return [*told.values(), *late]

    def _unkept(self, one: OneSeed) -> str | None:
        """Return the warning that saves do not hold the whole state of the environment; None: they do."""
        if not one.adapter.unkept:
            return None
        goes_on = "a resumed run begins a new episode there"
        return f"{one.adapter.unkept}; {goes_on}; {name_check(one.adapter.env_id)}"

    def _waits_for_ends(self, one: OneSeed) -> str | None:
        """Return the warning that an agent which learns when an episode ends sees none end; None: it does."""
        base, schedule = self.agent.base, getattr(self.agent, "schedule", None)
        waits = getattr(schedule, "learns_between_episodes", False) or getattr(base, "episodes", 0)
        limit = one.adapter.time_limit
        random = max(getattr(base, "warmup", 0), (limit or LONG_EPISODE) * self.plan.envs)
        if self.updates or one.ended or not waits or self.env_steps < random:
            return None
        helps = f"the time limit is {limit:,} steps" if limit else "set one: --env.max-episode-steps 1000"
        return (
            f"no episode has ended in {self.env_steps:,} steps, and {one.plan.recipe} learns when one does: "
            f"nothing is learned yet; {helps}; {name_check(one.adapter.env_id)}"
        )

    # --- saving and resuming ------------------------------------------------------------------------

    def counters(self, seed: int = 0) -> dict[str, Any]:
        """Return the host's numbers of a seed as JSON data."""
        return {
            "env_steps": self.env_steps,
            "updates": self.updates,
            "returns": self.seeds[seed].returns,
            "due": self.due,
            "finished": self.finished,
            "seconds": self.seconds,
            "fresh": self.fresh,
            **({"judge": dataclasses.asdict(self.seeds[seed].judge)} if self.plan.may_stop_early else {}),
            **self.engine.counters(seed),
        }

    def save(self, seed: int = 0) -> SavedSeed:
        """Return the content of a save of a seed."""
        return self.engine.save(seed)._replace(counters=self.counters(seed))

    def restore(self, saves: Sequence[SavedSeed]) -> list[str]:
        """Continue from a save of each seed, all of the same step. Return notes of the engine."""
        for one, save in zip(self.seeds, saves, strict=True):
            one.returns = save.counters["returns"]
            one.judge = Judge(**save.counters.get("judge", {}))
            if one.judge.stopped:  # and is continued, so that evaluations are counted anew
                one.judge = Judge(best=one.judge.best)
        first: Mapping[str, Any] = saves[0].counters
        self.due, self.finished, self.fresh = first["due"], first["finished"], first["fresh"]
        self.seconds = max(save.counters["seconds"] for save in saves)
        return self.engine.restore(saves)


def _reward_divisor(metrics: Mapping[str, float]) -> float:
    """Return what the rewards of the last update were divided by; 1 before it and without scaling."""
    divisor = metrics.get("reward_divisor", 1.0)
    return divisor if np.isfinite(divisor) else 1.0
