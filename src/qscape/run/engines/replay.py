"""Off-policy training from replay on environments of Gymnasium: the host loop, or the cycle in one program.

Exact semantics: the action at step t comes from the parameters after the updates of step t - 1, and an
update sees every transition up to its step. With `Plan.overlap` these updates are made while the environments
make step t, whose action then comes from the parameters after the updates of step t - 2. What a step computes
is in `qscape.offpolicy.cycle`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from qscape.envs import EnvAdapter, Episode, Step, snapshot
from qscape.envs.patience import Hung
from qscape.envs.repeats import name_check
from qscape.errors import RunError
from qscape.offpolicy import cycle
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.cycle import CARRY_AXES, Carry
from qscape.offpolicy.sockets import EpisodeEnd, StepEnd
from qscape.offpolicy.state import SEED_AXES, State
from qscape.ops.finite import guard_names
from qscape.ops.threefry import write_out
from qscape.replay import storage as ring_buffer
from qscape.replay.storage import GIB, Storage
from qscape.run import callbacks
from qscape.run.chunks import ChunkLength
from qscape.run.devices import split_rows
from qscape.run.drive import MOST, Driver
from qscape.run.engines.base import EndedEpisode, Learner, Limit, Progress, SavedSeed, copy_buffers
from qscape.run.hindsight import Hindsight
from qscape.run.plan import REPLAYS, Plan
from qscape.run.processes import gather
from qscape.run.programs import Program, Programs
from qscape.run.saves import PIECE, Large
from qscape.run.seeds import Seeds
from qscape.types import Key, Spec

CHUNK = 250  # maximal number of updates in one call
LONG = 10_000  # remaining steps above which compiling the whole cycle into one program saves time


class ReplayLearner(Learner):
    """What an off-policy agent learns, its replay, and the updates that are due; several engines share it.

    Attributes:
        agent: the agent, bound to its task.
        layout: how a transition is packed into a row of the replay.
        seeds: the axis of seeds.
        programs: the compiled functions of one seed.
        mapped: those of all seeds, by which the run learns and acts.
        carry: the state of training. Its storage is None before the first use, its action None before it is
            chosen, its observation None before the environment was reset or restored.
        kept: the acting state that the schedule keeps, or None.
        schedule: counters of the agent's schedule.
        env_steps, updates: made so far.
        pending: updates to make before the next action.
        chunk: how many of them one call may make; few if they are slow.
        refill: step at which updates begin again, if the run was resumed with an empty replay; else 0.
        learning: whether the warm-up is over.
        saves_replay: whether a save holds the rows of the replay.
    """

    saves_replay = True

    def __init__(
        self,
        agent: Agent,
        spec: Spec,
        envs: int,
        seeds: Seeds,
        mesh: Mesh | None = None,
        shards: bool = False,
        ahead: Callable[[Programs], Program] | None = None,
    ) -> None:
        """Compile the programs and make the initial carry, without the storage.

        Args:
            agent: the agent, bound to no task.
            spec: the task.
            envs: E, the number of environments.
            seeds: the axis of seeds.
            mesh: the devices that the run is split over; None: one device.
            shards: whether each process saves its own rows of the replay, if the run is split.
            ahead: names the program of the first update, to compile it while networks and the first steps
                are made; None: it is compiled when it is called.

        Raises:
            UsageError: the agent does not fit the task. RunError: the replay does not fit into memory.
        """
        self.discount_rule = agent.base.discount_rule  # before the agent is bound to its task
        self.agent, self.seeds, self.mesh = agent.on(spec), seeds, mesh
        self.shards = shards and mesh is not None
        self.layout = self.agent.layout(envs)
        with (
            contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
        ):  # the memory of all devices counts
            self.carry = self._start(envs, ahead)
        create = partial(ring_buffer.create, self.layout, *seeds.shape)
        self._allocate: Callable[[], Storage] = create
        if mesh is not None:
            self._allocate = jax.jit(create, out_shardings=split_rows(mesh))
        self.schedule = self.agent.schedule.start()
        self.kept = self.programs.copy(self.acting) if self.agent.schedule.keeps_best_policy else None
        self.env_steps = self.updates = self.pending = self.refill = 0
        self.chunk = ChunkLength(CHUNK)
        self.learning = self.agent.base.warmup == 0

    def _start(self, envs: int, ahead: Callable[[Programs], Program] | None) -> Carry:
        agent, seeds = self.agent, self.seeds
        ring_buffer.check_memory(self.layout, len(seeds))
        self.programs = self.mapped = Programs(agent, self.layout)
        init = self._draw
        if seeds.shape:
            self.mapped = Programs(agent, self.layout, seeds)
            mapped = jax.jit(seeds.map(agent.init, out_axes=SEED_AXES))
            init = lambda key: copy_buffers(mapped(key))  # noqa: E731
        elif ahead is not None:
            self._compile_ahead(ahead(self.programs))
        state = init(seeds.key)
        return Carry(
            state=state,
            storage=None,  # type: ignore[arg-type]
            replay_state=seeds.tile(agent.init_replay_state(self.layout)),
            noise_state=seeds.tile(self.programs.init_noise(envs)),
            metrics=seeds.tile(jnp.full(len(self.programs.metrics), jnp.nan, jnp.float32)),
            observation=None,  # type: ignore[arg-type]
            first=np.ones((*seeds.shape, envs), bool),
            action=None,  # type: ignore[arg-type]
            columns={},
            guard=seeds.tile(jnp.zeros(len(guard_names(state.optimisers)), jnp.int32)),
        )

    def _draw(self, key: Key) -> State:
        """Make the state of a new run; see `ops.threefry`."""
        leaves = jax.tree.leaves(cycle.shapes(self.agent, self.layout)[0])
        return self.agent.init(write_out(key, max(leaf.size for leaf in leaves)))

    def _compile_ahead(self, program: Program) -> None:
        """Compile the program of the first update in a thread, by the shapes of the carry of one seed."""
        agent, envs, task = self.agent, self.layout.envs, self.agent.task
        state, storage, replay_state, key = cycle.shapes(agent, self.layout)
        pixel: Any = jnp.uint8 if agent.index_actions and task.frame is not None else jnp.float32
        shape: Any = jax.ShapeDtypeStruct
        carry = Carry(
            state=state,
            storage=storage,
            replay_state=replay_state,
            noise_state=jax.eval_shape(partial(self.programs.init_noise, envs)),
            metrics=shape((len(self.programs.metrics),), jnp.float32),
            observation=shape((envs, task.row_size), pixel),
            first=np.ones(envs, bool),
            action=None,  # type: ignore[arg-type]
            columns={},
            guard=shape((len(guard_names(state.optimisers)),), jnp.int32),
        )
        program.compile_ahead(carry, np.int32(1), np.int32(1), key)

    @property
    def state(self) -> State:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Networks, optimiser states and counters."""
        return self.carry.state

    @state.setter
    def state(self, state: State) -> None:
        self.carry = self.carry._replace(state=state)

    @property
    def storage(self) -> Storage:
        """Replay storage, allocated on first access, after its size was logged."""
        if self.carry.storage is None:
            self.carry = self.carry._replace(storage=jax.block_until_ready(self._allocate()))
        return self.carry.storage

    def policies(self, seed: int = 0) -> dict[str, Any]:
        kept = {} if self.kept is None else {"kept": self.seeds.take(self.kept, seed)}
        return super().policies(seed) | kept

    @property
    def values(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.carry.metrics

    def guard(self, seed: int = 0) -> dict[str, int]:
        found = np.asarray(self.seeds.take(self.carry.guard, seed)).tolist()
        return dict(zip(guard_names(self.state.optimisers), found, strict=True))

    def notes(self, plan: Plan, saves: bool) -> list[str]:
        """Return sentences on the discount and on the memory that the replay takes."""
        gib, devices = self.layout.nbytes / GIB, 1 if self.mesh is None else self.mesh.size
        each = f", {gib / devices:.2f} on each of {devices} devices" if devices > 1 else ""
        notes = []
        if self.discount_rule == "time_limit":
            base, limit = self.agent.base, self.agent.task.time_limit
            notes.append(f"base.discount = {base.discount:g}, by the time limit of {limit} steps")
        notes.append(f"replay: {self.layout.envs * self.layout.ring:,} transitions, {gib:.2f} GiB{each}")
        if saves and gib >= 1:
            saved = min(REPLAYS, plan.keep_saves)
            notes.append(
                f"saves hold the replay {saved} times, and once more while one is written: up to "
                f"{(saved + 1) * gib:.1f} GiB on the disk"
            )
        return notes

    # --- which updates are due, and making them -----------------------------------------------------

    def count(
        self,
        made: int,
        finished: Sequence[Episode],
        judge: Callable[[Episode], tuple[float | None, bool]] = lambda _: (None, False),
    ) -> None:
        """Count steps, and add the updates that the schedule makes due to `pending`.

        Args:
            made: environment steps that were made side by side, in each seed.
            finished: the episodes that ended with them.
            judge: returns the last two fields of an episode's `EpisodeEnd`.
        """
        base = self.agent.base
        warm = self.env_steps >= max(base.warmup, self.refill)  # was this step one past the random phase?
        self.env_steps += made
        was_learning = self.learning
        if warm and not base.warmup_to_episode_end:
            was_learning = self.learning = True
        if was_learning:
            self.tell_schedule(StepEnd(made))
        for episode in finished:
            if was_learning:
                asked = self.updates + self.pending
                self.tell_schedule(EpisodeEnd(episode.length, episode.ret, asked, *judge(episode)))
            if warm:
                self.learning = True

    def tell_schedule(self, event: StepEnd | EpisodeEnd) -> None:
        """Ask the schedule how many updates are due after an event, and whether to keep the policy."""
        self.schedule, updates, keep = self.agent.schedule.updates_due(self.schedule, event, self.agent.base)
        if keep:
            self.kept = self.programs.copy(self.acting)
        self.pending += updates

    def learn_pending(self) -> None:
        """Make the pending updates, but at most a chunk of them."""
        self.pending -= self.learn(self.pending)

    def learn(self, most: int) -> int:
        """Make up to `most` updates, but at most a chunk of them. Returns their number."""
        n, begun = min(most, self.chunk.steps), time.perf_counter()
        self._begin(n)
        jax.block_until_ready(self.carry.metrics)
        self.chunk.took(time.perf_counter() - begun, n)
        return n

    def begin_pending(self) -> None:
        """Begin all pending updates and do not wait for them: whoever needs their result does."""
        if self.pending:
            self._begin(self.pending)
            self.pending = 0

    def _begin(self, updates: int) -> None:
        steps, key = np.int32(self.env_steps), self.seeds.key
        self.carry = self.mapped.learn(self.carry, np.int32(updates), steps, key)
        self.updates += updates

    # --- saving and resuming ------------------------------------------------------------------------

    def arrays(self, seed: int = 0) -> dict[str, Any]:
        """Return all arrays of a seed; of a replay that is not full, only the rows in use.

        What scales rewards is in the tree "loop", since networks that learned from scaled rewards need it
        also where there is no replay.
        """
        carry = gather(self._of_seed(seed))
        scaling, replay_state = carry.replay_state.scaling, carry.replay_state._replace(scaling=None)
        loop = {"noise_state": carry.noise_state, "columns": carry.columns, "metrics": carry.metrics}
        loop |= {"first": np.asarray(carry.first), "key": self.seeds.take(self.seeds.key, seed)}
        loop |= {} if scaling is None else {"scaling": scaling}
        policies = self.policies(seed)
        arrays: dict[str, Any] = {
            "acting": policies["current"],
            "state": carry.state,
            "replay": {"storage": self._large(self._used_rows(carry), seed), "replay_state": replay_state},
            "loop": loop | ({} if carry.action is None else {"action": carry.action}),
        }
        return arrays | ({"kept": policies["kept"]} if "kept" in policies else {})

    def counters(self, seed: int = 0) -> dict[str, Any]:
        """Return the host's numbers of a seed as JSON data; only the rows in use differ between seeds."""
        return {
            "pending": self.pending,
            "refill": self.refill,
            "learning": self.learning,
            "schedule": self.schedule,
            "chosen": self.carry.action is not None,
            "used_rows": self._used_rows(self._of_seed(seed)),
        }

    def templates(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the structure of the `arrays` in a save with these counters."""
        templates, layout = self.arrays(), self.layout
        templates["replay"]["storage"] = self._large(counters["used_rows"])
        if counters["chosen"]:
            action = np.zeros((layout.envs, layout.action_size), np.float32)
            columns = {k: np.zeros((layout.envs, *s), np.float32) for k, s in layout.columns}
            templates["loop"] |= {"action": action, "columns": columns}
        return templates

    def _of_seed(self, seed: int) -> Carry:
        """Return the carry of one seed, without the storage, which all seeds share."""
        return self.seeds.take(self.carry._replace(storage=None), seed, CARRY_AXES)  # type: ignore[arg-type]

    def _used_rows(self, carry: Carry) -> int:
        """Return the rows of each ring that a save holds: those in use, and the head and pad behind them."""
        if not self.saves_replay:
            return 0
        return int(min(self.layout.ring, np.max(np.asarray(carry.replay_state.size)) + 2))

    def _large(self, used: int, seed: int = 0) -> Large:
        """Return the first `used` rows of each ring as a leaf that is read only while it is written."""

        def pieces() -> Iterator[np.ndarray]:
            return ring_buffer.pieces(self.layout, self.storage, used, PIECE, seed * self.layout.envs)

        shape = self.layout.envs, used, self.layout.width
        return Large(shape, self.layout.dtype, pieces, (lambda: self.storage) if self.shards else None)

    def restore(self, saves: Sequence[SavedSeed]) -> None:
        """Continue from a save of each seed."""
        trees, used = [save.arrays for save in saves], [save.counters["used_rows"] for save in saves]
        loop = copy_buffers(self.seeds.join([arrays["loop"] for arrays in trees]))
        replays = [arrays["replay"] for arrays in trees if "replay" in arrays]
        replay_state = self.carry.replay_state
        if replays:
            replay_state = copy_buffers(self.seeds.join([replay["replay_state"] for replay in replays]))
        self.carry = Carry(
            state=copy_buffers(self.seeds.join([arrays["state"] for arrays in trees], SEED_AXES)),
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
        if replays and all(used):  # else the run learns from a dataset, which is in the storage already
            self.carry = self.carry._replace(storage=None)  # type: ignore[arg-type]
            # Kept alone: when a seed's pieces end, the file of its save closes.
            saved = [(n, replay["storage"].pieces()) for n, replay in zip(used, replays, strict=True)]
            split = None if self.mesh is None else split_rows(self.mesh)
            read_split = replays[0]["storage"].read_split
            self._allocate = lambda: ring_buffer.restored_seeds(self.layout, saved)
            if not self.seeds.shape and read_split is not None:
                here = SingleDeviceSharding(jax.local_devices()[0])
                self._allocate = partial(read_split, split or here, self.layout.ring)
            elif not self.seeds.shape:
                self._allocate = lambda: ring_buffer.restored(self.layout, *saved[0], split)
        self.kept = copy_buffers(trees[0]["kept"]) if "kept" in trees[0] else None
        for name in ("env_steps", "updates", "pending", "refill", "learning", "schedule"):
            setattr(self, name, saves[0].counters[name])

    def empty_replay(self) -> list[str]:
        """Go on with the networks alone: the policy fills the replay first. Return a note for the user."""
        self.pending, self.learning = 0, False
        self.refill = self.env_steps + max(self.agent.base.warmup, self.agent.base.batch_size)
        return [f"the replay is empty: the policy fills it until step {self.refill:,}, then updates go on"]


class SeedAdapters:
    """The environments of all seeds as one adapter, whose arrays have a leading axis of seeds.

    Attributes:
        each: the adapter of every seed.
        finished: for every seed, the episodes that ended in the last step.
    """

    resetting, has_reset_rows = None, False  # environments of several seeds reset in an episode's last step

    def __init__(self, adapters: Sequence[EnvAdapter]) -> None:
        self.each = adapters
        self.envs = adapters[0].envs
        self.finished: list[list[Any]] = []

    @property
    def observation(self) -> np.ndarray:
        """The current observations [seeds, E, S]."""
        return np.stack([adapter.observation for adapter in self.each])

    @property
    def is_host_only(self) -> bool:
        """Is it known that no step calls JAX?"""
        return all(adapter.is_host_only for adapter in self.each)

    def reset(self) -> None:
        for adapter in self.each:
            adapter.reset()

    def step(self, action: np.ndarray) -> Step:
        """Take one step of every seed with the actions [seeds, E, A].

        Returns:
            A step whose arrays have a leading axis of seeds, and whose `finished` is that of all seeds.
        """
        steps = []
        for adapter, chosen in zip(self.each, action, strict=True):
            try:
                steps.append(adapter.step(chosen))
            except (RunError, SystemExit, KeyboardInterrupt, Hung) as problem:
                for other in self.each:  # some have made a step that the networks have not seen
                    other.interrupted = adapter.interrupted
                if not isinstance(problem, RunError):
                    raise
                raise problem.saying(f"seed {adapter.seed}: {problem}") from problem
        self.finished = [step.finished for step in steps]
        each = [(step.transition, step.observation) for step in steps]
        transition, observation = jax.tree.map(lambda *of_each: np.stack(of_each), *each)
        return Step(transition, observation, list(chain(*self.finished)))


class ReplayEngine:
    """Off-policy runs whose environments step on the host.

    Attributes:
        learner: networks, replay and updates.
        envs: E, the number of environments side by side, in each seed.
        adapters: the environments of each seed.
        adapter: those of all seeds as one.
        driver: the whole cycle as one program; None until it is worth compiling.
        reach: how many steps the driven program may make in its next call; few if episodes are short.
        hindsight: relabels episodes, if the agent does; else None.
    """

    def __init__(self, plans: Sequence[Plan], agent: Agent, adapters: Sequence[EnvAdapter]) -> None:
        """Set up a run before its first step; the plans differ in their seed only, and so do the adapters."""
        self.plan, self.adapters, self.seeds = plans[0], adapters, Seeds([plan.seed for plan in plans])
        self.adapter: Any = SeedAdapters(adapters) if self.seeds.shape else adapters[0]
        self.envs = adapters[0].envs
        learns = self.plan.steps > agent.base.find_learning_start()[1] and not self.adapter.has_reset_rows
        ahead = self._first_update if learns else None
        self.learner = ReplayLearner(agent, adapters[0].spec, self.envs, self.seeds, ahead=ahead)
        self.driver: Driver | None = None
        self.reach = MOST
        self.hindsight: Hindsight | None = None
        if self.learner.agent.relabelling.changes_goals:
            self.hindsight = Hindsight(self.learner.mapped, adapters, self.seeds.numbers)

    def _first_update(self, programs: Programs) -> Program:
        """Return the program that is expected to make the first update."""
        schedule = programs.agent.schedule
        _, updates, _ = schedule.updates_due(schedule.start(), StepEnd(self.envs), programs.agent.base)
        return programs.step if updates == 1 and not self.plan.overlap else programs.learn

    @property
    def ready(self) -> bool:
        return self.learner.carry.action is not None and not self.learner.pending

    def notes(self, saves: bool) -> list[str]:
        notes, lack = self.learner.notes(self.plan, saves), callbacks.missing()
        notes += [] if self.hindsight is None else self.hindsight.notes()
        return [*notes, lack] if lack and self.plan.steps >= LONG and self._can_drive() else notes

    def start(self) -> None:
        self.adapter.reset()

    def begin_again(self) -> None:
        self.adapter.reset()
        if self.hindsight is not None:
            self.hindsight.forget()  # an episode may have ended in the cut step, which is not in replay
        self._cut_episodes()

    def advance(self, limit: Limit) -> Progress:
        learner = self.learner
        if learner.carry.observation is None:
            _ = learner.storage  # allocated now
            learner.carry = learner.carry._replace(
                observation=self.adapter.observation, resetting=self.adapter.resetting
            )
        if learner.carry.action is None:
            self._choose()
            if self.ready:
                self._insert_relabelled()
            return Progress()
        if learner.pending and learner.env_steps >= limit.step:
            learner.learn_pending()
            return Progress()
        if self._drives(limit):
            return self._drive(limit)
        learner.begin_pending()  # they are made while the environments step
        step = self.adapter.step(np.asarray(learner.carry.action))  # np.asarray waits for the device
        carry, new = learner.carry, step.transition
        # What the device has is not sent to it again.
        held = new._replace(observation=carry.observation, action=carry.action, columns=carry.columns)
        learner.carry = learner.mapped.insert(carry, held, step.observation)
        valid = new.valid[0] if self.seeds.shape else new.valid  # each seed makes as many steps
        learner.count(int(np.count_nonzero(valid)), step.finished, self._judge)
        learner.carry = learner.carry._replace(
            observation=step.observation,
            first=new.starts_episode,
            resetting=self.adapter.resetting,
            action=None,  # type: ignore[arg-type]
            columns={},
        )
        if learner.agent.schedule.learns_between_episodes or self.plan.overlap:
            self._insert_relabelled()
        return self._progress(step.finished)

    def _insert_relabelled(self) -> None:
        """Write the relabelled rows of episodes that ended in the last step into replay.

        That is after the updates of that step, or before those of a whole episode: where the driven program
        is between two calls. With `Plan.overlap` it is before the updates, which begin with the next step.
        """
        if self.hindsight is not None:
            self.learner.carry = self.hindsight.insert(self.learner.carry, self.learner.env_steps)

    def _judge(self, episode: Episode) -> tuple[float | None, bool]:
        """Return the success by which the schedule judges an episode (None: by returns); is it the first?"""
        return (None, False) if self.hindsight is None else self.hindsight.judge(episode.success)

    def _progress(self, finished: Sequence[Episode]) -> Progress:
        """Return the ends of episodes in the last step."""
        if not finished:
            return Progress()
        each = self.adapter.finished if self.seeds.shape else [finished]
        step = self.learner.env_steps
        return Progress([EndedEpisode(k, step, episode) for k, ended in enumerate(each) for episode in ended])

    def _choose(self) -> None:
        """Make the pending updates (at most a chunk of them), then choose the next action.

        With `Plan.overlap` the action is chosen at once, and the updates stay pending.
        """
        learner, steps, key = self.learner, np.int32(self.learner.env_steps), self.seeds.key
        warm_up = not (learner.learning or learner.refill or self._explores_next())
        if learner.pending and not self.plan.overlap:
            if learner.pending == 1 and not warm_up:
                learner.carry = learner.mapped.step(learner.carry, np.int32(1), steps, key)
                learner.updates, learner.pending = learner.updates + 1, 0
                return
            learner.learn_pending()
            if learner.pending:
                return
        carry = learner.carry
        learner.state = learner.mapped.see(learner.state, carry.observation, carry.resetting)
        mode = "warm_up" if warm_up else "explore"
        action, columns, noise_state = learner.mapped.act(
            learner.acting, carry.noise_state, carry.observation, carry.first, steps, key, mode=mode
        )
        learner.carry = learner.carry._replace(action=action, columns=columns, noise_state=noise_state)

    def _explores_next(self) -> bool:
        """Return whether the next action is past a warm-up that ends at a fixed step."""
        base = self.learner.agent.base
        return not base.warmup_to_episode_end and self.learner.env_steps >= base.warmup

    def _drives(self, limit: Limit) -> bool:
        """Return whether the whole cycle runs as one program; compile it when it becomes worth it.

        It does if updates follow every step or come between episodes alone, every row of the environments is
        a step, they never call JAX, and many steps are left.
        """
        learner = self.learner
        is_worth_it = learner.updates >= CHUNK and limit.total - learner.env_steps >= LONG
        if self.driver is None and is_worth_it and self._can_drive() and not callbacks.missing():
            self.driver = Driver(learner.mapped, self.adapter)
        return self.driver is not None and learner.learning

    def _can_drive(self) -> bool:
        """Return whether the whole cycle of such an agent and environment can be one program."""
        simple = self.adapter.is_host_only and not self.adapter.has_reset_rows and not self.plan.overlap
        schedule = self.learner.agent.schedule
        return simple and (schedule.learns_by_steps or schedule.learns_between_episodes)

    def _drive(self, limit: Limit) -> Progress:
        """Run the driven program until an episode ends or something is due."""
        assert self.driver is not None
        learner, envs = self.learner, self.envs
        schedule, base = learner.agent.schedule, learner.agent.base
        steps = min(MOST, self.reach, -(-(limit.step - learner.env_steps) // envs))
        updates, counters = np.zeros(MOST, np.int32), [learner.schedule]
        for k in range(steps):  # what the schedule makes of steps is known before they are made
            after, updates[k], _ = schedule.updates_due(counters[-1], StepEnd(envs), base)
            counters.append(after)
        learner.carry, made = self.driver(
            learner.carry, updates, steps, learner.env_steps, self.seeds.key, limit.stopped
        )
        self.reach = 2 * made + 8
        learner.env_steps += envs * made
        learner.schedule, learner.updates = counters[made], learner.updates + int(updates[:made].sum())
        finished = self.driver.finished()
        for episode in finished:
            asked = learner.updates + learner.pending
            learner.tell_schedule(EpisodeEnd(episode.length, episode.ret, asked, *self._judge(episode)))
        if finished and self.driver.waits:
            learner.carry = learner.carry._replace(action=None, columns={})  # type: ignore[arg-type]
        self._insert_relabelled()
        return self._progress(finished)

    # --- saving and resuming ------------------------------------------------------------------------

    def counters(self, seed: int = 0) -> dict[str, Any]:
        counters = self.learner.counters(seed)
        return (
            counters if self.hindsight is None else counters | {"goals": len(self.hindsight.to_bytes(seed))}
        )

    def templates(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        templates = self.learner.templates(counters)
        if self.hindsight is not None:
            templates["goals"] = {"json": np.zeros(counters["goals"], np.uint8)}
        return templates

    def save(self, seed: int = 0) -> SavedSeed:
        arrays = self.learner.arrays(seed)
        if self.hindsight is not None:
            arrays["goals"] = {"json": self.hindsight.to_bytes(seed)}
        return SavedSeed(arrays, self.counters(seed), snapshot.take(self.adapters[seed]))

    def restore(self, saves: Sequence[SavedSeed]) -> list[str]:
        self.learner.restore(saves)
        notes = restore_environments(self.adapters, saves)
        has_replay = "replay" in saves[0].arrays
        if self.hindsight is not None:
            self.hindsight.restore([save.arrays["goals"]["json"] for save in saves], goes_on=not notes)
            if not has_replay:
                self.hindsight.forget()
        if notes:
            self._cut_episodes()
        return notes + ([] if has_replay else self.learner.empty_replay())

    def _cut_episodes(self) -> None:
        """Truncate the running episodes: the environments start new ones, as their state was not restored."""
        learner = self.learner
        cut = jax.jit(self.seeds.map(partial(ring_buffer.cut, learner.layout)), donate_argnums=0)
        storage, replay_state = cut(learner.storage, learner.carry.replay_state)
        learner.carry = learner.carry._replace(
            storage=storage,
            replay_state=replay_state,
            observation=None,  # type: ignore[arg-type]
            first=np.ones((*self.seeds.shape, self.envs), bool),
            action=None,  # type: ignore[arg-type]
            columns={},
        )


def restore_environments(adapters: Sequence[EnvAdapter], saves: Sequence[SavedSeed]) -> list[str]:
    """Restore the environments of every seed; if those of one cannot be, all seeds start new episodes.

    Returns:
        A sentence that says why they start new episodes; [] if they do not.
    """
    if saves[0].counters["fresh"]:
        return []
    why = [snapshot.restore(adapter, save.environment) for adapter, save in zip(adapters, saves, strict=True)]
    if any(why):
        for adapter, failed in zip(adapters, why, strict=True):
            if not failed:
                adapter.reset()
    told = dict.fromkeys(filter(None, why))
    return [f"{sentence.rstrip('.')}; {name_check(adapters[0].env_id)}" for sentence in told]
