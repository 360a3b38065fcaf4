"""Training from replay: the loop of every off-policy agent.

Exact semantics: the action at step t comes from the parameters after the updates of step t - 1, and an
update sees every transition up to its step.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from qscape.envs import EnvAdapter, Step
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.plain import EveryStep
from qscape.offpolicy.sockets import EpisodeEnd, StepEnd
from qscape.replay import storage
from qscape.replay.storage import GIB, Rows, Storage
from qscape.run import events as ev
from qscape.run.drive import Cycle, Driver, Due
from qscape.run.loop import Loop, Saver, owned
from qscape.run.plan import Plan
from qscape.run.programs import Programs
from qscape.run.saves import PIECE, Large

CHUNK = 250  # updates between two looks at whether to stop
LONG = 10_000  # steps to go from which on it pays to compile the whole cycle into one program


class Trainer(Loop):
    """A run of an off-policy agent in memory.

    Attributes:
        state, rows, index, kept: what was learned, the replay, and the kept acting state (or None).
        first_ring: where its rings begin in `storage`; not at 0 where these hold the rings of several seeds.
    """

    first_ring = 0

    def __init__(
        self,
        plan: Plan,
        agent: Agent,
        adapter: EnvAdapter,
        eval_adapter: EnvAdapter | None = None,
        saver: Saver | None = None,
    ):
        super().__init__(plan, agent, adapter, eval_adapter, saver)
        self.layout = self.agent.layout(adapter.envs)
        self._begin()
        self.schedule = self.agent.schedule.start()
        self.kept = self.programs.keep(self.agent.acting(self.state)) if self.agent.schedule.keeps else None
        self.action: Any = None  # for the present observation; None: not chosen yet
        self.columns: dict[str, Any] = {}
        self.pending = 0
        self.learning = self.agent.base.warmup == 0
        self.driver: Driver | None = None  # compiled when it pays
        self.halt = 0  # the step at which something is due

    def _begin(self) -> None:
        """Make the programs, and the arrays that they work on but for the rows of the replay."""
        storage.check_memory(self.layout)
        self.programs = Programs(self.agent, self.layout)
        self._rows: Storage | Callable[[], Storage] = partial(storage.create, self.layout)
        self.replay_state = self.agent.replay.init_state(self.layout)
        self.state = self.agent.init(self.key)
        self.noise_state = self.programs.init_noise(self.adapter.envs)
        rows = jax.eval_shape(self._rows)
        self.metrics = self.programs.blank_metrics(self.state, rows, self.replay_state, self.key)

    @property
    def storage(self) -> Storage:
        """The rows of the replay. They take memory from their first use on: once it was told how much."""
        if callable(self._rows):
            self._rows = self._rows()
        return self._rows

    @storage.setter
    def storage(self, rows: Storage) -> None:
        self._rows = rows

    def _prepare(self) -> bool:
        if self.action is not None:
            return True
        self._advance()
        return False

    def _notes(self) -> list[str]:
        gib = self.layout.nbytes / GIB
        return [f"replay: {self.layout.envs * self.layout.ring:,} transitions, {gib:.2f} GiB"]

    def _take_memory(self) -> None:
        jax.block_until_ready(self.storage)

    def _environment_step(self) -> Iterator[ev.RunEvent]:
        """One step of every sub-environment, into replay; what the schedule asks for becomes pending. Or
        many such cycles at once, up to the first step after which something is to be told or done."""
        if self._drives():
            yield from self._drive()
            return
        before = self.adapter.observation
        action = np.asarray(self.action)  # the only wait for the device
        step = self.adapter.step(action)
        rows = Rows(  # numpy: the insert moves it to the device
            before, action, step.reward, step.terminated, step.truncated, step.next_observation, self.columns
        )
        self.storage, self.replay_state = self.programs.insert(
            self.storage, self.replay_state, rows, step.valid
        )
        self._count(step)
        self.action, self.columns = None, {}
        yield from self._told(step.finished)

    def _count(self, step: Step) -> None:
        """What a step changes on the host: counters, and what is due."""
        base = self.agent.base
        warm = self.env_steps >= base.warmup  # was this step one past the random phase?
        made = int(np.count_nonzero(step.valid))
        self.env_steps += made
        self.first = step.starts_episode
        was_learning = self.learning
        if warm and not base.warmup_to_episode_end:
            was_learning = self.learning = True
        if was_learning:
            self._schedule(StepEnd(made))
        for episode in step.finished:
            self.returns.append(episode.ret)
            if was_learning:
                self._schedule(EpisodeEnd(episode.length, episode.ret, self.updates + self.pending))
            if warm:
                self.learning = True

    def _drives(self) -> bool:
        """Is the cycle one program? It becomes one where it is simple enough, and the run long enough."""
        if self.driver is None and self.updates >= CHUNK and self.until - self.env_steps >= LONG:
            simple = isinstance(self.agent.schedule, EveryStep) and self.adapter.is_host_only
            # On an accelerator every answer would have to cross over.
            if simple and jax.default_backend() == "cpu":
                self.driver = Driver(self.programs, self.adapter, self._due)
        return self.driver is not None

    def _drive(self) -> Iterator[ev.RunEvent]:
        assert self.driver is not None
        self.halt = self._next_due()
        replay, seen = (self.storage, self.replay_state), self.adapter.observation
        cycle = Cycle(self.state, replay, self.noise_state, self.metrics, seen, self.action, self.columns)
        cycle = self.driver(cycle, self.key)
        self.state, (self.storage, self.replay_state) = cycle.state, cycle.replay
        self.noise_state, self.metrics = cycle.noise_state, cycle.metrics
        self.action, self.columns = cycle.action, cycle.columns
        yield from self._told(self.driver.finished())

    def _due(self, step: Step) -> Due:
        """What is due after a step; the driven program does it."""
        self._count(step)
        due = Due(self.env_steps, self.pending, self._stop or self.env_steps >= self.halt)
        self.updates, self.pending = self.updates + self.pending, 0
        return due

    def _schedule(self, event: StepEnd | EpisodeEnd) -> None:
        self.schedule, updates, keep = self.agent.schedule.due(self.schedule, event, self.agent.base)
        if keep:
            self.kept = self.programs.keep(self.acting)
        self.pending += updates

    def _advance(self) -> None:
        """Make the pending updates (at most a chunk of them), then choose the next action."""
        obs, first, steps = self.adapter.observation, self.first, np.int32(self.env_steps)
        warm_up = not (self.learning or self._explores_next())
        if self.pending == 1 and not warm_up:
            self.state, self.replay_state, self.noise_state, self.metrics, self.action, self.columns = (
                self.programs.step(
                    self.state,
                    self.storage,
                    self.replay_state,
                    self.noise_state,
                    self.metrics,
                    obs,
                    first,
                    steps,
                    self.key,
                )
            )
            self.updates, self.pending = self.updates + 1, 0
            return
        if self.pending:
            n = min(self.pending, CHUNK)
            self.state, self.replay_state, self.metrics = self.programs.burst(
                self.state, self.storage, self.replay_state, self.metrics, steps, self.key, np.int32(n)
            )
            self.updates, self.pending = self.updates + n, self.pending - n
            jax.block_until_ready(self.metrics)  # so that a request to stop is seen in time
            if self.pending:
                return
        self.state = self.programs.see(self.state, obs)
        mode = "warm_up" if warm_up else "explore"
        self.action, self.columns, self.noise_state = self.programs.act(
            self.acting, self.noise_state, obs, first, steps, self.key, mode=mode
        )

    def _explores_next(self) -> bool:
        """Is the next step past the random phase, where that phase ends at a step?"""
        base = self.agent.base
        return not base.warmup_to_episode_end and self.env_steps >= base.warmup

    # --- saving and going on ----------------------------------------------------------------------

    def arrays(self) -> dict[str, Any]:
        """Of a replay that is not full only the rows in use."""
        trees: dict[str, Any] = {
            "acting": self.acting,
            "state": self.state,
            "replay": {"storage": self._large(self._used_rows()), "replay_state": self.replay_state},
            "loop": {
                "noise_state": self.noise_state,
                "columns": self.columns,
                "metrics": self.metrics,
                "first": self.first,
                "key": self.key,
            }
            | ({} if self.action is None else {"action": self.action}),
        }
        return trees | ({} if self.kept is None else {"kept": self.kept})

    def counters(self) -> dict[str, Any]:
        return super().counters() | {
            "pending": self.pending,
            "learning": self.learning,
            "schedule": self.schedule,
            "chosen": self.action is not None,
            "used_rows": self._used_rows(),
        }

    def templates(self, numbers: dict[str, Any]) -> dict[str, Any]:
        likes, layout = self.arrays(), self.layout
        likes["replay"]["storage"] = self._large(numbers["used_rows"])
        if numbers["chosen"]:
            action = np.zeros((layout.envs, layout.action_size), np.float32)
            likes["loop"]["action"] = action
            likes["loop"]["columns"] = {k: np.zeros((layout.envs, *s), np.float32) for k, s in layout.columns}
        return likes

    def _used_rows(self) -> int:
        """Rows of each ring that a save holds: those in use, and the head and pad behind them."""
        return int(min(self.layout.ring, np.max(np.asarray(self.replay_state.size)) + 2))

    def _large(self, used: int) -> Large:
        """So many rows of each ring, as they are when they are asked for."""

        def pieces() -> Iterator[np.ndarray]:
            return storage.pieces(self.layout, self.storage, used, PIECE, self.first_ring)

        return Large((self.layout.envs, used, self.layout.width), np.dtype(np.float32), pieces)

    def restore(self, trees: dict[str, Any], numbers: dict[str, Any]) -> None:
        self.state, self.replay_state = owned(trees["state"]), owned(trees["replay"]["replay_state"])
        saved, used = trees["replay"]["storage"], numbers["used_rows"]
        if used:  # else they are in the dataset, and here already
            self._rows = lambda: storage.restored(self.layout, used, saved.pieces())
        loop = owned(trees["loop"])
        self.noise_state, self.columns, self.metrics = loop["noise_state"], loop["columns"], loop["metrics"]
        self.first, self.action = np.asarray(loop["first"]), loop.get("action")
        self.kept = owned(trees["kept"]) if "kept" in trees else None
        for name in ("pending", "learning", "schedule"):
            setattr(self, name, numbers[name])
        super().restore(trees, numbers)

    def on_environment_restart(self) -> None:
        cut = jax.jit(partial(storage.cut, self.layout), donate_argnums=0)
        self.storage, self.replay_state = cut(self.storage, self.replay_state)
        self.first, self.action, self.columns = np.ones(self.adapter.envs, bool), None, {}
