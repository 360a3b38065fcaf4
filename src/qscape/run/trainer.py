"""The training loop: one object that holds everything a run is, and tells what happens as it goes on.

Exact semantics: the action at step t comes from the parameters after the updates of step t - 1, and an
update sees every transition up to its step.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qscape.envs import Edge
from qscape.envs import make as make_edge
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.sockets import EpisodeEnd, StepEnd
from qscape.offpolicy.state import Acting
from qscape.replay.memory import GIB, Rows
from qscape.run import events as ev
from qscape.run.evaluation import evaluate
from qscape.run.plan import Plan
from qscape.run.programs import Programs

CHUNK = 250  # updates between two looks at whether to stop


class Trainer:
    """A run in memory. `events(until)` takes it on; it may be taken on again after that.

    Attributes:
        plan, agent: what is run; the agent is bound to the environment's task.
        edge: the training environment.
        env_steps, updates: made so far.
        state, rows, index, kept: what was learned, the replay, and the kept acting state (or None).
    """

    def __init__(
        self,
        plan: Plan,
        agent: Agent,
        edge: Edge,
        eval_edge: Edge | None = None,
        saver: "Callable[[Trainer, bool], Path] | None" = None,
    ):
        """`eval_edge` None: no evaluation while training; `saver` None: nothing is saved. The saver is
        called with the trainer and whether this save is one to keep for good."""
        self.plan, self.agent, self.edge = plan, agent.on(edge.spec), edge
        self.eval_edge, self.saver = eval_edge, saver
        self.layout = self.agent.layout(edge.envs)
        self.programs = Programs(self.agent, self.layout)
        self.key = jax.random.key(plan.seed)
        self.rows, self.index = self.agent.replay.init(self.layout)
        self.state = self.agent.init(self.key)
        self.memory = self.agent.maximiser.memory(self.agent.task, edge.envs)
        self.metrics = self.programs.blank_metrics(self.state, self.rows, self.index, self.key)
        self.schedule = self.agent.schedule.start(self.agent.base, edge.envs)
        self.kept = self.programs.keep(self.agent.acting(self.state)) if self.agent.schedule.keeps else None
        self.action: Any = None  # for the present observation; None: not chosen yet
        self.columns: dict[str, Any] = {}
        self.first = np.ones(edge.envs, bool)
        self.env_steps = self.updates = self.pending = 0
        self.learning = self.agent.base.warmup == 0
        self.returns: list[float] = []  # of the episodes since the last log line
        self.due = {
            "log": plan.log_every,
            "evaluate": 0,
            "save": plan.saves_every,
            "milestone": plan.milestone_every,
        }
        self.finished = False  # were all steps that were asked for made, and their updates?
        self.seconds = 0.0  # of training in earlier processes
        self.fresh = True
        self._stop = False

    @property
    def acting(self) -> Acting:
        """The current acting state; its arrays live until the next update."""
        return self.agent.acting(self.state)

    @property
    def best(self) -> Acting:
        """What evaluation and export use: the kept acting state where the schedule keeps one."""
        return self.acting if self.kept is None else self.kept

    def stop(self) -> None:
        """Ask the run to save and end at the next step."""
        self._stop = True

    def events(self, until: int) -> Iterator[ev.RunEvent]:
        """Train until `until` environment steps were made; yields what happens.

        Raises:
            RunError: the environment gave NaN, the disk is full; the last save stays.
        """
        self.finished = False
        begun = time.perf_counter() - self.seconds
        self._rate = (self.env_steps, time.perf_counter())
        if self.fresh:
            self.edge.reset()
            self.fresh = False
        yield ev.Started(
            self.env_steps, until, self.plan.label, self.edge.env_id, self.plan.seed, self._notes()
        )
        while not self._stop:
            if self.action is None:
                self._advance()
                continue
            self.seconds = time.perf_counter() - begun
            yield from self._boundary(last=self.env_steps >= until)
            if self.env_steps >= until:
                self.finished = True
                break
            yield from self._environment_step()
        self.seconds = time.perf_counter() - begun
        if self.saver is not None:
            yield ev.Saved(self.env_steps, self.saver(self, self.finished))
        yield ev.Ended(self.env_steps, self.updates, self.seconds, not self.finished)
        self._stop = False  # not before: what is asked before the first step counts

    def _notes(self) -> list[str]:
        gib = self.layout.nbytes / GIB
        return [f"replay: {self.layout.envs * self.layout.ring:,} transitions, {gib:.2f} GiB"]

    def _environment_step(self) -> Iterator[ev.RunEvent]:
        """One step of every sub-environment, into replay; what the schedule asks for becomes pending."""
        before = self.edge.observation
        action = np.asarray(self.action)  # the only wait for the device
        step = self.edge.step(action)
        rows = Rows(  # numpy: the insert moves it to the device
            before, action, step.reward, step.terminated, step.truncated, step.next_observation, self.columns
        )
        self.rows, self.index = self.programs.insert(self.rows, self.index, rows, step.valid)
        base = self.agent.base
        warm = self.env_steps >= base.warmup  # was this step one past the random phase?
        made = int(np.count_nonzero(step.valid))
        self.env_steps += made
        self.first = step.terminated | step.truncated
        was_learning = self.learning
        if warm and not base.warmup_to_episode_end:
            was_learning = self.learning = True
        if was_learning:
            self._schedule(StepEnd(made))
        for episode in step.finished:
            self.returns.append(episode.ret)
            if was_learning:
                self._schedule(
                    EpisodeEnd(episode.env, episode.length, episode.ret, self.updates + self.pending)
                )
            if warm:
                self.learning = True
        self.action, self.columns = None, {}
        for episode in step.finished:  # told last, so that who is told finds, and may save, a whole step
            yield ev.EpisodeDone(self.env_steps, *episode)

    def _schedule(self, event: StepEnd | EpisodeEnd) -> None:
        self.schedule, updates, keep = self.agent.schedule.due(self.schedule, event, self.agent.base)
        if keep:
            self.kept = self.programs.keep(self.acting)
        self.pending += updates

    def _advance(self) -> None:
        """Make the pending updates (at most a chunk of them), then choose the next action."""
        obs, first, steps = self.edge.observation, self.first, np.int32(self.env_steps)
        warm_up = not (self.learning or self._explores_next())
        if self.pending == 1 and not warm_up:
            self.state, self.index, self.memory, self.metrics, self.action, self.columns = self.programs.step(
                self.state, self.rows, self.index, self.memory, self.metrics, obs, first, steps, self.key
            )
            self.updates, self.pending = self.updates + 1, 0
            return
        if self.pending:
            n = min(self.pending, CHUNK)
            self.state, self.index, self.metrics = self.programs.burst(
                self.state, self.rows, self.index, self.metrics, steps, self.key, np.int32(n)
            )
            jax.block_until_ready(self.metrics)  # so that a request to stop is seen in time
            self.updates, self.pending = self.updates + n, self.pending - n
            if self.pending:
                return
        self.state = self.programs.see(self.state, obs)
        mode = "warm_up" if warm_up else "explore"
        self.action, self.columns, self.memory = self.programs.act(
            self.acting, self.memory, obs, first, steps, self.key, mode=mode
        )

    def _explores_next(self) -> bool:
        """Is the next step past the random phase, where that phase ends at a step?"""
        base = self.agent.base
        return not base.warmup_to_episode_end and self.env_steps >= base.warmup

    def _boundary(self, last: bool) -> Iterator[ev.RunEvent]:
        """Evaluate, log and save, where one of these is due at this step."""
        plan = self.plan
        if self.eval_edge is not None and plan.eval_every and self._is_due("evaluate", plan.eval_every, last):
            yield from self.evaluations(self.eval_edge)
        if self._is_due("log", plan.log_every, last):
            yield self._log()
        milestone = self._is_due("milestone", plan.milestone_every, last)
        due = self._is_due("save", plan.saves_every, False) or milestone
        if due and self.saver is not None and not last:
            yield ev.Saved(self.env_steps, self.saver(self, milestone))

    def _is_due(self, what: str, every: int, last: bool) -> bool:
        """Whether `what` is due at this step (each at most once), and when it is due again."""
        if self.env_steps < self.due[what] and not last:
            return False
        self.due[what] = (self.env_steps // every + 1) * every
        return True

    def evaluations(self, edge: Edge) -> Iterator[ev.Evaluated]:
        """Evaluate the current policy, and beside it the kept one where the schedule keeps one."""
        policies = {"current": self.acting} | ({} if self.kept is None else {"kept": self.kept})
        for name, acting in policies.items():
            start = time.perf_counter()
            done = evaluate(self.programs, acting, edge, self.plan.eval_episodes)
            successes = [e.success for e in done if e.success is not None]
            seconds = time.perf_counter() - start
            yield ev.Evaluated(
                self.env_steps, name, [e.ret for e in done], [e.length for e in done], successes, seconds
            )

    def _log(self) -> ev.Logged:
        now = time.perf_counter()
        steps, then = self._rate
        values = np.asarray(self.metrics)
        said = {k: float(v) for k, v in zip(self.programs.metrics, values, strict=True) if not np.isnan(v)}
        said["steps_per_second"] = (self.env_steps - steps) / max(now - then, 1e-9)
        if self.returns:
            said["return"] = float(np.mean(self.returns))
        self.returns, self._rate = [], (self.env_steps, now)
        return ev.Logged(self.env_steps, self.updates, said)

    # --- saving and going on ----------------------------------------------------------------------

    def trees(self) -> dict[str, Any]:
        """Everything on the device, by tree. Of a replay that is not full only the rows in use."""
        used = self._used_rows()
        rings = self.rows.reshape(self.layout.envs, self.layout.ring, -1)
        trees: dict[str, Any] = {
            "acting": self.acting,
            "state": self.state,
            "replay": {"rows": rings[:, :used], "index": self.index},
            "loop": {
                "memory": self.memory,
                "columns": self.columns,
                "metrics": self.metrics,
                "first": self.first,
                "key": self.key,
            }
            | ({} if self.action is None else {"action": self.action}),
        }
        return trees | ({} if self.kept is None else {"kept": self.kept})

    def numbers(self) -> dict[str, Any]:
        """Everything on the host, JSON-able."""
        return {
            "env_steps": self.env_steps,
            "updates": self.updates,
            "pending": self.pending,
            "learning": self.learning,
            "returns": self.returns,
            "due": self.due,
            "schedule": self.schedule,
            "finished": self.finished,
            "seconds": self.seconds,
            "chosen": self.action is not None,
            "used_rows": self._used_rows(),
        }

    def _used_rows(self) -> int:
        """Rows of each ring that a save holds: those in use, and the head and pad behind them."""
        return int(min(self.layout.ring, np.max(np.asarray(self.index.size)) + 2))

    def put_back(self, trees: dict[str, Any], numbers: dict[str, Any]) -> None:
        """Take over what `trees` and `numbers` gave in another process."""
        own = lambda tree: jax.tree.map(lambda x: jnp.array(x, copy=True), tree)  # noqa: E731 (donated later)
        self.state = own(trees["state"])
        rings = self.rows.reshape(self.layout.envs, self.layout.ring, -1)
        rings = rings.at[:, : numbers["used_rows"]].set(trees["replay"]["rows"])
        self.rows, self.index = rings.reshape(self.rows.shape), own(trees["replay"]["index"])
        loop = own(trees["loop"])
        self.memory, self.columns, self.metrics = loop["memory"], loop["columns"], loop["metrics"]
        self.first, self.action = np.asarray(loop["first"]), loop.get("action")
        self.kept = own(trees["kept"]) if "kept" in trees else None
        counters = ("env_steps", "updates", "pending", "learning", "finished", "seconds")
        for name in (*counters, "returns", "due", "schedule"):
            setattr(self, name, numbers[name])
        self.fresh = False


def open_edges(plan: Plan) -> tuple[Edge, Edge | None]:
    """Training and evaluation environments of a plan. The latter has seeds of its own, 1000 + i."""
    edge = make_edge(plan.env, plan.envs, dict(plan.env_args), seed=plan.seed)
    if not plan.eval_every:
        return edge, None
    return edge, make_edge(plan.env, min(plan.eval_episodes, 10), dict(plan.env_args), seed=1000)
