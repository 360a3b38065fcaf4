"""Training from replay: the host loop of every off-policy agent.

Exact semantics: the action at step t comes from the parameters after the updates of step t - 1, and an
update sees every transition up to its step. What a step computes is in `qscape.offpolicy.cycle`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qscape.envs import EnvAdapter, Episode, Step
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.cycle import Carry, Outcome
from qscape.offpolicy.sockets import EpisodeEnd, StepEnd
from qscape.offpolicy.state import State
from qscape.ops.finite import guard_names
from qscape.replay import storage as ring_buffer
from qscape.replay.storage import GIB, Storage
from qscape.run import events as ev
from qscape.run.chunks import ChunkLength
from qscape.run.drive import MOST, Driver
from qscape.run.loop import Loop, Saver, copy_buffers
from qscape.run.plan import REPLAYS, Plan
from qscape.run.programs import Programs
from qscape.run.saves import PIECE, Large

CHUNK = 250  # maximal number of updates in one call
LONG = 10_000  # remaining steps above which compiling the whole cycle into one program saves time


class Trainer(Loop):
    """A run of an off-policy agent in memory: the host loop around `offpolicy.cycle`.

    Attributes:
        carry: the state of training. Its storage is None before the first use, its action None before it is
            chosen, its observation None before the environment was reset or restored.
        kept: the acting state that the schedule keeps, or None.
        schedule: counters of the agent's schedule.
        pending: updates to make before the next action.
        chunk: how many of them one call may make; few if they are slow.
        refill: step at which updates begin again, if the run was resumed with an empty replay; else 0.
        learning: whether the warm-up is over.
        driver: the whole cycle as one program; None until it is worth compiling.
        reach: how many steps the driven program may make in its next call; few if episodes are short.
        discount_rule: `base.discount_rule` before the agent was bound to its task.
        first_ring: index of this run's first ring in the storage; above 0 if several seeds share a storage.
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
        self.layout = self.agent.layout(self.envs)
        self.carry = self._start()
        self.schedule = self.agent.schedule.start()
        self.kept = self.programs.copy(self.acting) if self.agent.schedule.keeps_best_policy else None
        self.pending = self.refill = 0
        self.chunk = ChunkLength(CHUNK)
        self.learning = self.agent.base.warmup == 0
        self.driver: Driver | None = None
        self.reach = MOST
        self.discount_rule = agent.base.discount_rule

    def _start(self) -> Carry:
        """Compile the programs and make the initial carry, without the storage."""
        ring_buffer.check_memory(self.layout)
        self.programs = Programs(self.agent, self.layout)
        self._allocate: Callable[[], Storage] = partial(ring_buffer.create, self.layout)
        state = self.agent.init(self.key)
        return Carry(
            state=state,
            storage=None,  # type: ignore[arg-type]
            replay_state=self.agent.init_replay_state(self.layout),
            noise_state=self.programs.init_noise(self.envs),
            metrics=jnp.full(len(self.programs.metrics), jnp.nan, jnp.float32),
            observation=None,  # type: ignore[arg-type]
            first=np.ones(self.envs, bool),
            action=None,  # type: ignore[arg-type]
            columns={},
            guard=jnp.zeros(len(guard_names(state.optimisers)), jnp.int32),
        )

    @property
    def state(self) -> State:
        """Networks, optimiser states and counters."""
        return self.carry.state

    @state.setter
    def state(self, state: State) -> None:
        self.carry = self.carry._replace(state=state)

    @property
    def metrics(self) -> Array:
        """The newest value of every metric, in the order of `programs.metrics`."""
        return self.carry.metrics

    @property
    def guard(self) -> Array:
        """The first update at which each quantity of `guard_names` was not finite; 0: none."""
        assert self.carry.guard is not None
        return self.carry.guard

    @property
    def storage(self) -> Storage:
        """Replay storage, allocated on first access, after its size was logged."""
        if self.carry.storage is None:
            self.carry = self.carry._replace(storage=self._allocate())
        return self.carry.storage

    def _prepare(self) -> bool:
        if self.carry.observation is None:
            self.carry = self.carry._replace(
                observation=self.adapter.observation, resetting=self.adapter.resetting
            )
        if self.carry.action is not None:
            return True
        self._advance()
        return False

    def _notes(self) -> list[str]:
        gib, devices = self.layout.nbytes / GIB, self.plan.devices
        each = f", {gib / devices:.2f} on each of {devices} devices" if devices > 1 else ""
        notes = []
        if self.discount_rule == "time_limit":
            base, limit = self.agent.base, self.agent.task.time_limit
            notes.append(f"base.discount = {base.discount:g}, by the time limit of {limit} steps")
        notes.append(f"replay: {self.layout.envs * self.layout.ring:,} transitions, {gib:.2f} GiB{each}")
        if self.saver is not None and self._used_rows() and gib >= 1:
            saved = min(REPLAYS, self.plan.keep_saves)
            notes.append(
                f"saves hold the replay {saved} times, and once more while one is written: up to "
                f"{(saved + 1) * gib:.1f} GiB on the disk"
            )
        return notes

    def _take_memory(self) -> None:
        jax.block_until_ready(self.storage)

    def _environment_step(self) -> Iterator[ev.RunEvent]:
        """Take one step of every environment; many steps if the whole cycle runs as one program."""
        if self._drives():
            yield from self._drive()
            return
        step = self.adapter.step(np.asarray(self.carry.action))  # np.asarray waits for the device
        self.carry = self.programs.insert(self.carry, Outcome(*step[:-1]))
        self._count_step(step)
        self.carry = self.carry._replace(
            observation=step.observation,
            first=step.starts_episode,
            resetting=self.adapter.resetting,
            action=None,
            columns={},
        )
        yield from self._episode_events(step.finished)

    def _count_step(self, step: Step) -> None:
        """Count a step of the adapter's environments."""
        self._keep_returns(step.finished)
        self._count(int(np.count_nonzero(step.valid)), step.finished)

    def _keep_returns(self, finished: Sequence[Episode]) -> None:
        """Keep the returns of the episodes that ended in a step, for the next log line."""
        self.returns += [episode.ret for episode in finished]

    def _count(self, made: int, finished: Sequence[Episode]) -> None:
        """Update the host's counters, and add the updates that the schedule makes due to `pending`.

        Args:
            made: environment steps that were made side by side.
            finished: the episodes that ended with them.
        """
        base = self.agent.base
        warm = self.env_steps >= max(base.warmup, self.refill)  # was this step one past the random phase?
        self.env_steps += made
        was_learning = self.learning
        if warm and not base.warmup_to_episode_end:
            was_learning = self.learning = True
        if was_learning:
            self._schedule(StepEnd(made))
        for episode in finished:
            if was_learning:
                self._schedule(EpisodeEnd(episode.length, episode.ret, self.updates + self.pending))
            if warm:
                self.learning = True

    def _drives(self) -> bool:
        """Return whether the whole cycle runs as one program; compile it when it becomes worth it.

        It does if updates follow every step or come between episodes alone, every row of the environments is
        a step, they never call JAX, and many steps are left.
        """
        if self.driver is None and self.updates >= CHUNK and self.until - self.env_steps >= LONG:
            simple = self.adapter.is_host_only and not self.adapter.has_reset_rows
            schedule = self.agent.schedule
            if simple and (schedule.learns_by_steps or schedule.learns_between_episodes):
                self.driver = Driver(self.programs, self.adapter, lambda: self._stop)
        return self.driver is not None and self.learning

    def _drive(self) -> Iterator[ev.RunEvent]:
        """Run the driven program until an episode ends or something is due."""
        assert self.driver is not None
        schedule, base, envs = self.agent.schedule, self.agent.base, self.envs
        steps = min(MOST, self.reach, -(-(self._next_due() - self.env_steps) // envs))
        updates, counters = np.zeros(MOST, np.int32), [self.schedule]
        for k in range(steps):  # what the schedule makes of steps is known before they are made
            after, updates[k], _ = schedule.updates_due(counters[-1], StepEnd(envs), base)
            counters.append(after)
        self.carry, made = self.driver(self.carry, updates, steps, self.env_steps, self.key)
        self.reach = 2 * made + 8
        self.env_steps += envs * made
        self.schedule, self.updates = counters[made], self.updates + int(updates[:made].sum())
        finished = self.driver.finished()
        self._keep_returns(finished)
        for episode in finished:
            self._schedule(EpisodeEnd(episode.length, episode.ret, self.updates + self.pending))
        if finished and self.driver.waits:
            self.carry = self.carry._replace(action=None, columns={})
        yield from self._episode_events(finished)

    def _schedule(self, event: StepEnd | EpisodeEnd) -> None:
        """Ask the schedule how many updates are due after an event, and whether to keep the policy."""
        self.schedule, updates, keep = self.agent.schedule.updates_due(self.schedule, event, self.agent.base)
        if keep:
            self.kept = self.programs.copy(self.acting)
        self.pending += updates

    def _advance(self) -> None:
        """Make the pending updates (at most a chunk of them), then choose the next action."""
        steps = np.int32(self.env_steps)
        warm_up = not (self.learning or self.refill or self._explores_next())
        if self.pending == 1 and not warm_up:
            self.carry = self.programs.step(self.carry, np.int32(1), steps, self.key)
            self.updates, self.pending = self.updates + 1, 0
            return
        if self.pending:
            self._learn_pending()
            if self.pending:
                return
        observation, first, noise_state = self.carry.observation, self.carry.first, self.carry.noise_state
        self.state = self.programs.see(self.state, observation, self.carry.resetting)
        mode = "warm_up" if warm_up else "explore"
        action, columns, noise_state = self.programs.act(
            self.acting, noise_state, observation, first, steps, self.key, mode=mode
        )
        self.carry = self.carry._replace(action=action, columns=columns, noise_state=noise_state)

    def _learn_pending(self) -> None:
        """Make the pending updates, but at most a chunk of them."""
        self.pending -= self._learn(self.pending)

    def _learn(self, most: int) -> int:
        """Make up to `most` updates, but at most a chunk of them. Returns their number."""
        n, begun = min(most, self.chunk.steps), time.perf_counter()
        self.carry = self.programs.learn(self.carry, np.int32(n), np.int32(self.env_steps), self.key)
        jax.block_until_ready(self.metrics)
        self.chunk.took(time.perf_counter() - begun, n)
        self.updates += n
        return n

    def _explores_next(self) -> bool:
        """Return whether the next action is past a warm-up that ends at a fixed step."""
        base = self.agent.base
        return not base.warmup_to_episode_end and self.env_steps >= base.warmup

    # --- saving and resuming ------------------------------------------------------------------------

    def arrays(self) -> dict[str, Any]:
        """Return all arrays; of a replay that is not full, only the rows in use.

        What scales rewards is in the tree "loop", since networks that learned from scaled rewards need it
        also where there is no replay.
        """
        carry = self.carry
        scaling, replay_state = carry.replay_state.scaling, carry.replay_state._replace(scaling=None)
        loop = {"noise_state": carry.noise_state, "columns": carry.columns, "metrics": carry.metrics}
        loop |= {"first": np.asarray(carry.first), "key": self.key}
        loop |= {} if scaling is None else {"scaling": scaling}
        arrays: dict[str, Any] = {
            "acting": self.acting,
            "state": carry.state,
            "replay": {"storage": self._large(self._used_rows()), "replay_state": replay_state},
            "loop": loop | ({} if carry.action is None else {"action": carry.action}),
        }
        return arrays | ({} if self.kept is None else {"kept": self.kept})

    def counters(self) -> dict[str, Any]:
        return super().counters() | {
            "pending": self.pending,
            "refill": self.refill,
            "learning": self.learning,
            "schedule": self.schedule,
            "chosen": self.carry.action is not None,
            "used_rows": self._used_rows(),
            "scaling_in_loop": True,
        }

    def templates(self, counters: dict[str, Any]) -> dict[str, Any]:
        templates, layout = self.arrays(), self.layout
        templates["replay"]["storage"] = self._large(counters["used_rows"])
        if counters["chosen"]:
            action = np.zeros((layout.envs, layout.action_size), np.float32)
            columns = {k: np.zeros((layout.envs, *s), np.float32) for k, s in layout.columns}
            templates["loop"] |= {"action": action, "columns": columns}
        if not counters["scaling_in_loop"] and "scaling" in templates["loop"]:
            state, scaling = templates["replay"]["replay_state"], templates["loop"].pop("scaling")
            templates["replay"]["replay_state"] = state._replace(scaling=scaling)
        return templates

    def _used_rows(self) -> int:
        """Return the rows of each ring that a save holds: those in use, and the head and pad behind them."""
        return int(min(self.layout.ring, np.max(np.asarray(self.carry.replay_state.size)) + 2))

    def _large(self, used: int) -> Large:
        """Return the first `used` rows of each ring as a leaf that is read only while it is written."""

        def pieces() -> Iterator[np.ndarray]:
            return ring_buffer.pieces(self.layout, self.storage, used, PIECE, self.first_ring)

        return Large((self.layout.envs, used, self.layout.width), self.layout.dtype, pieces)

    def restore(self, arrays: dict[str, Any], counters: dict[str, Any]) -> None:
        loop, replay, used = copy_buffers(arrays["loop"]), arrays.get("replay"), counters["used_rows"]
        replay_state = copy_buffers(replay["replay_state"]) if replay else self.carry.replay_state
        self.carry = Carry(
            state=copy_buffers(arrays["state"]),
            storage=self.carry.storage,
            replay_state=replay_state._replace(scaling=loop.get("scaling", replay_state.scaling)),
            noise_state=loop["noise_state"],
            metrics=loop["metrics"],
            observation=None,  # type: ignore[arg-type]
            first=np.asarray(loop["first"]),
            action=loop.get("action"),
            columns=loop["columns"],
            guard=self.carry.guard,
        )
        if used and replay:  # else the run learns from a dataset, which is in the storage already
            self.carry = self.carry._replace(storage=None)
            pieces = replay["storage"].pieces()  # kept alone: when it ends, the file of the save closes
            self._allocate = lambda: ring_buffer.restored(self.layout, used, pieces)
        self.kept = copy_buffers(arrays["kept"]) if "kept" in arrays else None
        for name in ("pending", "refill", "learning", "schedule"):
            setattr(self, name, counters[name])
        super().restore(arrays, counters)

    def on_empty_replay(self) -> list[str]:
        if not self._used_rows():
            return []  # the run learns from a dataset, which is in the storage
        self.pending, self.learning = 0, False
        self.refill = self.env_steps + max(self.agent.base.warmup, self.agent.base.batch_size)
        return [f"the replay is empty: the policy fills it until step {self.refill:,}, then updates go on"]

    def on_environment_restart(self) -> None:
        cut = jax.jit(partial(ring_buffer.cut, self.layout), donate_argnums=0)
        storage, replay_state = cut(self.storage, self.carry.replay_state)
        self.carry = self.carry._replace(
            storage=storage,
            replay_state=replay_state,
            observation=None,
            first=np.ones(self.envs, bool),
            action=None,
            columns={},
        )
