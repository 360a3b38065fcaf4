"""The training loop: one object holds a whole run and yields the events of its training.

All agents share this part: when a run evaluates, logs, saves and stops. `trainer` (off-policy) and `rollouts`
(on-policy) implement how a run steps and learns.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from qscape.agents import Agent, recipe_for_images
from qscape.envs import EnvAdapter, Episode, snapshot
from qscape.envs import make as make_adapter
from qscape.envs.build import training_args
from qscape.envs.snapshot import Snapshot
from qscape.envs.spaces import fingerprint, refuse_other_table
from qscape.errors import RunError
from qscape.ops.finite import LOSSES, guard_names, watch
from qscape.run import events as ev
from qscape.run.evaluation import SEED, evaluate, list_successes, rollouts
from qscape.run.plan import Plan, moot_notes
from qscape.run.probes import PolicyEvaluation, Probes
from qscape.system import peak_memory

SECOND = 1.0  # between two `Progressed` events
COUNTERS = ("env_steps", "updates", "returns", "due", "finished", "seconds", "fresh")  # of every loop
Saver: TypeAlias = Callable[[Any, bool], Path]


class Loop:
    """A run in memory; abstract. `events(until)` trains it up to a step, and may be called again.

    Attributes:
        plan, agent: the plan of the run, and its agent, bound to the environment's task.
        adapter: the training environments.
        eval_adapter: the evaluation environments, or None.
        env_steps, updates: environment steps and updates made so far.
        programs: the compiled functions: `act`, `init_noise`, and the names of the `metrics`.
        state: networks, optimiser states and counters.
        metrics: the newest value of every metric; NaN before the first.
        kept: the acting state that the schedule keeps, or None.
    """

    programs: Any
    state: Any
    metrics: Any
    kept: Any = None
    _shown: Any = None
    _acting: Any = None

    def __init__(
        self,
        plan: Plan,
        agent: Any,
        adapter: EnvAdapter,
        eval_adapter: EnvAdapter | None,
        saver: Saver | None,
    ):
        """Set up a run before its first step.

        Args:
            plan: the completed plan.
            agent: its agent, bound to no task.
            adapter: the training environments.
            eval_adapter: the evaluation environments; None: the run does not evaluate.
            saver: called with the trainer, and with whether this save is a milestone that is never deleted;
                None: the run saves nothing.

        Raises:
            UsageError: the agent does not fit the environment.
        """
        self.plan, self.agent, self.adapter = plan, agent.on(adapter.spec), adapter
        if eval_adapter is not None:
            refuse_other_table(adapter.env_id, fingerprint(adapter.spec.table), eval_adapter.spec.table)
        self.eval_adapter, self.saver = eval_adapter, saver
        self.probes = Probes(plan.probe, self.agent) if plan.probe else None
        self.key = jax.random.key(plan.seed)
        self.env_steps = self.updates = 0
        self.returns: list[float] = []  # returns of the episodes since the last log line
        self.due = {
            "log": plan.logs_every,
            "evaluate": 0,
            "save": plan.saves_every,
            "milestone": plan.milestone_every,
        }
        self.until = plan.steps  # total of environment steps to make
        self.finished = False  # whether these steps and their updates were made
        self.seconds = 0.0  # seconds of training so far, with those in earlier processes
        self._warned: set[str] = set()  # parts whose warning the user has read
        self.fresh = True  # whether the environments were never reset: a model may be saved before it learns
        self._stop = False

    # --- to implement ---------------------------------------------------------------------------------

    @property
    def acting(self) -> Any:
        """The current acting state; the same object as long as `state` is the same object."""
        if self._shown is not self.state:
            self._shown, self._acting = self.state, self.agent.acting(self.state)
        return self._acting

    @property
    def envs(self) -> int:
        """The number of environments that are stepped side by side."""
        return self.adapter.envs

    def _reset_environments(self) -> None:
        """Start an episode in every environment, before the first step of a run."""
        self.adapter.reset()

    def _notes(self) -> list[str]:
        """Return sentences for the user when training starts."""
        raise NotImplementedError

    def _moot_notes(self) -> list[str]:
        """Return notes on the user's settings that do nothing on this task; `prepare` noted the others."""
        anywhere = dataclasses.replace(self.agent, spec=None).moot_fields()
        here = {name: why for name, why in self.agent.moot_fields().items() if name not in anywhere}
        return moot_notes(here, self.plan.typed or {})

    def _take_memory(self) -> None:
        """Allocate the memory that the notes announced."""

    def _prepare(self) -> bool:
        """Make some of the pending updates, and choose an action after the last one.

        Returns:
            Whether everything is done that precedes the next step; if not, it is called again.
        """
        raise NotImplementedError

    def _environment_step(self) -> Iterator[ev.RunEvent]:
        """Take one step of every environment (a driven or offline run: many steps); yield its events."""
        raise NotImplementedError

    def arrays(self) -> dict[str, Any]:
        """Return all arrays of the run, by tree; only the newest save holds the tree "replay"."""
        raise NotImplementedError

    def templates(self, counters: dict[str, Any]) -> dict[str, Any]:
        """Return the structure of the `arrays` in a save with these counters."""
        raise NotImplementedError

    @property
    def guard(self) -> Any:
        """The first update at which each quantity of `guard_names` was not finite, 0: none; here the last."""
        count, names = len(guard_names(self.state.optimisers)), self.programs.metrics
        none = jnp.zeros(count, jnp.int32)
        return watch(none, self.state.optimisers, names, jnp.asarray(self.metrics), self.state.updates)

    # --- what all loops share -----------------------------------------------------------------------

    @property
    def best(self) -> Any:
        """The acting state for evaluation and export: the kept one if the schedule keeps one."""
        return self.acting if self.kept is None else self.kept

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
        self.finished, self.until = False, until
        told = time.perf_counter()
        begun = told - self.seconds
        self._rate = (self.env_steps, time.perf_counter())
        if self.fresh:
            self._reset_environments()
            self.fresh = False
        yield ev.Started(
            self.env_steps,
            until,
            self.plan.label,
            self.adapter.env_id,
            self.plan.seed,
            self._moot_notes() + self._notes(),
        )
        self._take_memory()
        try:
            while not self._stop:
                ready = self._prepare()
                if time.perf_counter() - told >= SECOND:
                    told = time.perf_counter()
                    yield self._progress()
                if not ready:
                    continue
                self.seconds = time.perf_counter() - begun
                yield from self._boundary(last=self.env_steps >= until)
                if self.env_steps >= until:
                    self.finished = True
                    break
                yield from self._environment_step()
        except RunError:  # e.g. that an action is NaN, which may have a deeper cause
            self._refuse_divergence()
            raise
        except (KeyboardInterrupt, SystemExit):
            self._save_if_environment_exits()
            raise
        self.seconds = time.perf_counter() - begun
        if self.saver is not None:
            self._refuse_divergence()
            yield ev.Saved(self.env_steps, self.saver(self, self.finished))
        yield ev.Ended(self.env_steps, self.updates, self.seconds, not self.finished)
        self._stop = False  # reset here, since `stop` may be called before `events`

    def _save_if_environment_exits(self) -> None:
        """Save if an environment raised SystemExit or KeyboardInterrupt; a second Ctrl-C ends without."""
        adapters = [a for a in (self.adapter, self.eval_adapter) if a is not None]
        if self.saver is not None and not self._stop and any(a.interrupted for a in adapters):
            self.saver(self, False)

    def _boundary(self, last: bool) -> Iterator[ev.RunEvent]:
        """Evaluate, log and save, if due at this step; `last`: whether it is the last step of the run."""
        plan = self.plan
        evaluates = self.eval_adapter is not None and plan.evals_every > 0
        times = [step for what, step in self.due.items() if evaluates or what != "evaluate"]
        if last or self.env_steps >= min(times):
            self._refuse_divergence()
        if evaluates and self._is_due("evaluate", plan.evals_every, last):
            assert self.eval_adapter is not None
            yield from self.evaluations(self.eval_adapter)
        if self._is_due("log", plan.logs_every, last):
            yield self._log()
        milestone = self._is_due("milestone", plan.milestone_every, last)
        due = self._is_due("save", plan.saves_every, False) or milestone
        if due and self.saver is not None and not last:
            yield ev.Saved(self.env_steps, self.saver(self, milestone))

    def _refuse_divergence(self) -> None:
        """Raise a RunError if a loss or an optimiser's moments were not finite after an update."""
        guard = np.asarray(self.guard)
        if not self.updates or not guard.any():
            return
        update = int(guard[guard > 0].min())
        wrong = guard_names(self.state.optimisers)[int(np.argmax(guard == update))]
        what = f"the gradient of {wrong.removesuffix('.params')} is not finite, or too large for float32"
        if wrong == LOSSES:
            what = "a loss is infinite"
        shown = self._named_metrics().items()
        losses = [f"{name} is {value}" for name, value in shown if "loss" in name and not np.isfinite(value)]
        fields = [name.replace("_", "-") for name in vars(self.agent.base) if "learning_rate" in name]
        rates = " or ".join(f"--base.{name}" for name in fields)
        raise RunError(
            f"{self.plan.label or self.plan.recipe} diverged at update {update:,}, before step "
            f"{self.env_steps:,}: {', '.join([what, *losses])}. A smaller {rates}, smaller "
            "rewards or --base.gradient-clip 1 usually help; earlier saves stay."
        )

    def _is_due(self, what: str, every: int, last: bool) -> bool:
        """Return whether `what` is due at this step, and set the step at which it is due again."""
        if self.env_steps < self.due[what] and not last:
            return False
        self.due[what] = (self.env_steps // every + 1) * every
        return True

    def _next_due(self) -> int:
        """Return the next step at which an evaluation, a log line, a save or the end of the run is due."""
        return min(self.until, *(step for step in self.due.values() if step > self.env_steps))

    def evaluations(self, adapter: EnvAdapter) -> Iterator[ev.Evaluated]:
        """Evaluate the current policy, and the kept one if the schedule keeps one."""
        policies = {"current": self.acting} | ({} if self.kept is None else {"kept": self.kept})
        for name, acting in policies.items():
            start = time.perf_counter()
            if self.probes is None:
                done, probed = self._evaluate(acting, adapter), {}
            else:
                walked = rollouts(self.programs, acting, adapter, self.plan.eval_episodes)
                # No one knows any more what the rewards were divided by when a policy was kept.
                is_unknown = name == "kept" and "reward_divisor" in self.programs.metrics
                divisor = math.nan if is_unknown else self._reward_divisor()
                evaluation = PolicyEvaluation(acting, walked, divisor)
                done, probed = [r.episode for r in walked], self.probes(evaluation)
            returns, lengths = [e.ret for e in done], [e.length for e in done]
            successes = list_successes(done)
            seconds = time.perf_counter() - start
            yield ev.Evaluated(self.env_steps, name, returns, lengths, successes, probed, seconds)

    def _evaluate(self, acting: Any, adapter: EnvAdapter) -> list[Episode]:
        """Return the evaluation episodes of a policy of this run."""
        return evaluate(self.programs, acting, adapter, self.plan.eval_episodes)

    def _named_metrics(self) -> dict[str, float]:
        """Return the newest value of every metric by name; NaN before the first."""
        return dict(zip(self.programs.metrics, np.asarray(self.metrics).tolist(), strict=True))

    def _reward_divisor(self) -> float:
        """Return what the rewards of the last update were divided by; 1 before it and without scaling."""
        divisor = self._named_metrics().get("reward_divisor", 1.0)
        return divisor if np.isfinite(divisor) else 1.0

    def _progress(self) -> ev.Progressed:
        device = jax.local_devices()[0].memory_stats() or {}
        taken = device.get("peak_bytes_in_use", 0)
        return ev.Progressed(self.env_steps, self.updates, peak_memory(), taken)

    def _log(self) -> ev.Logged:
        now = time.perf_counter()
        steps, then = self._rate
        metrics = {name: value for name, value in self._named_metrics().items() if np.isfinite(value)}
        metrics["steps_per_second"] = (self.env_steps - steps) / max(now - then, 1e-9)
        if self.returns:
            metrics["return"] = float(np.mean(self.returns))
        self.returns, self._rate = [], (self.env_steps, now)
        return ev.Logged(self.env_steps, self.updates, metrics, self._new_warnings(metrics))

    def _new_warnings(self, metrics: dict[str, float]) -> list[str]:
        """Return what parts say about the metrics; a part that has said something is not asked again."""
        found = {
            name: part.warning(metrics) for name, part in self.agent.parts.items() if name not in self._warned
        }
        told = {name: sentence for name, sentence in found.items() if sentence is not None}
        self._warned |= told.keys()
        return [*told.values()]

    def _episode_events(self, finished: list[Episode]) -> Iterator[ev.EpisodeDone]:
        """Yield the ends of episodes. Called last in a step, so that a callback can save a complete step."""
        for episode in finished:
            yield ev.EpisodeDone(self.env_steps, *episode)

    # --- saving and resuming ------------------------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        """Return the host's counters as JSON data."""
        return {name: getattr(self, name) for name in COUNTERS}

    def restore(self, arrays: dict[str, Any], counters: dict[str, Any]) -> None:
        """Continue from the `arrays` and `counters` of a save."""
        for name in COUNTERS:
            setattr(self, name, counters[name])

    def snapshot(self) -> Snapshot:
        """Return the state of the environments, for a save."""
        return snapshot.take(self.adapter)

    def restore_environments(self, saved: Snapshot) -> str:
        """Restore the environments. Returns why they start new episodes instead; "" if they do not."""
        return snapshot.restore(self.adapter, saved)

    def on_environment_restart(self) -> None:
        """Adapt the run to environments that start new episodes, since their state was not restored.

        Called after `restore`.
        """

    def on_empty_replay(self) -> list[str]:
        """Return notes for the user of a run that goes on without the replay of its save.

        Called after `restore`, which got no tree "replay".
        """
        return []


def may_compile(plan: Plan) -> bool:
    """Return whether the run is compiled as a whole if its environment is written in JAX."""
    return plan.loop != "host" and plan.vectorise == "sync" and not plan.dataset and not plan.start


def open_adapters(plan: Plan, agent: Agent) -> tuple[EnvAdapter, EnvAdapter | None]:
    """Open the training and evaluation environments of a plan; the latter have the seeds `SEED` + i.

    Evaluation environments are stepped one after the other, and are Gymnasium's where EnvPool trains.
    """
    adapter = open_adapter(plan, agent)
    if not plan.evals_every:
        return adapter, None
    count, args = min(plan.eval_episodes, 10), dict(plan.env_args)
    with contextlib.ExitStack() as opened:
        opened.callback(adapter.close)  # unless the others open, too
        others = make_adapter(plan.env, count, args, seed=SEED, index_actions=agent.index_actions)
        opened.pop_all()
    return adapter, others


def open_adapter(plan: Plan, agent: Agent) -> EnvAdapter:
    """Open the training environments of a plan.

    Of an environment in JAX only one is opened if the run is compiled: the program holds the copies.
    """
    args = training_args(plan.env, dict(plan.env_args))
    return make_adapter(
        plan.env,
        plan.envs,
        args,
        seed=plan.seed,
        vectorise=plan.vectorise,
        index_actions=agent.index_actions,
        one_if_jax=may_compile(plan),
    )


def adapt_to_images(plan: Plan, adapter: EnvAdapter) -> tuple[Plan, list[str]]:
    """Adapt a plan to an environment that shows images, before `prepare`.

    Returns:
        The plan, and a sentence about what changed; an empty list if nothing did.
    """
    if adapter.spec.frame is None:
        return plan, []
    recipe, notes = recipe_for_images(plan.recipe)
    return dataclasses.replace(plan, recipe=recipe), notes


def copy_buffers(tree: PyTree) -> PyTree:
    """Copy a tree into buffers of its own, which may be donated."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)
