"""Several seeds of one agent in one vmapped program.

A step of this loop is a step of every seed, and the compiled programs work on all seeds at once. Environments
in JAX are in these programs; others step one after the other, on the host. Every array of a run has a leading
axis of seeds here. The counters are the same for all seeds and have no such axis. An evaluation in JAX plays
the episodes of all seeds together. Evaluations on the host, logs and saves are made for one seed at a time,
from its arrays: run folders do not differ from those of single runs, and each can be resumed alone.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qscape.envs import EnvAdapter, Episode, Step
from qscape.envs.world import EpisodeLog
from qscape.errors import RunError, UsageError
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.cycle import CARRY_AXES, Carry
from qscape.offpolicy.state import SEED_AXES, State
from qscape.ops.finite import guard_names
from qscape.replay import storage as ring_buffer
from qscape.replay.storage import Layout
from qscape.run import events as ev
from qscape.run.compiled import CompiledRollouts, CompiledTrainer, InProgram
from qscape.run.evaluation import evaluate_policies
from qscape.run.loop import Loop, Saver, copy_buffers
from qscape.run.plan import Plan
from qscape.run.programs import EMPTY, Act, Programs
from qscape.run.rollouts import RolloutPrograms
from qscape.run.trainer import Trainer
from qscape.types import Key


def why_not_together(plan: Plan, agent: Any) -> str | None:
    """Return why seeds of an agent cannot share one program, as the end of a sentence; None if they can.

    The sentence begins with "Several seeds in one program need".
    """
    if plan.devices > 1:
        return "one device, or the seeds one after the other"
    if plan.dataset or plan.start:
        return "an agent that learns from an environment, from the start"
    if plan.vectorise == "envpool":  # the seeds would make their steps at different times
        return "environments that reset in the step that ends an episode, not in the next one as EnvPool's do"
    if not isinstance(agent, Agent):
        if plan.loop == "host":
            return "an off-policy agent, or an environment in JAX"
        return "rollouts of a fixed number of steps" if agent.base.episodes else None
    if not agent.schedule.learns_by_steps or agent.base.warmup_to_episode_end:
        return "updates at the same steps in every seed, not when an episode ends"
    return None


class SeedPrograms(Programs):
    """The programs of a run, vmapped over seeds.

    The counters are not batched: a batched predicate would turn every `cond` into a `select`.
    """

    def __init__(self, agent: Agent, layout: Layout) -> None:
        super().__init__(agent, layout)
        if agent.normalises:
            see = jax.vmap(agent.see, in_axes=(SEED_AXES, 0, None), out_axes=SEED_AXES)
            self.see = jax.jit(see, donate_argnums=0)
        self.act = Act(self._act)

    def map(self, function: Callable[..., Carry], *axes: int | None) -> Callable[..., Carry]:
        def mapped(carry: Carry, *args: Any) -> Carry:
            fields = CARRY_AXES if carry.state is not None else CARRY_AXES._replace(state=None)
            return jax.vmap(function, in_axes=(fields, *axes), out_axes=fields)(carry, *args)

        return mapped

    def _act(self, acting: Any, noise_state: Any, obs: Any, first: Any, env_steps: Any, key: Key, mode: str):
        act = partial(self.agent.act, mode=mode)
        return jax.vmap(act, in_axes=(0, 0, 0, 0, None, 0))(acting, noise_state, obs, first, env_steps, key)


class SeedAdapters:
    """The environments of all seeds as one adapter, whose arrays have a leading axis of seeds.

    Attributes:
        each: the adapter of every seed.
        finished: for every seed, the episodes that ended in the last step.
    """

    resetting, has_reset_rows = None, False  # environments of several seeds reset in an episode's last step

    def __init__(self, adapters: Sequence[EnvAdapter]) -> None:
        self.each = adapters
        self.envs, self.spec, self.env_id = adapters[0].envs, adapters[0].spec, adapters[0].env_id
        self.finished: list[list[Any]] = []

    @property
    def observation(self) -> np.ndarray:
        """The current observations [seeds, E, S]."""
        return np.stack([adapter.observation for adapter in self.each])

    @property
    def is_host_only(self) -> bool:
        """Is it known that no step calls JAX?"""
        return all(adapter.is_host_only for adapter in self.each)

    @property
    def interrupted(self) -> str:
        """What ended a call of an environment from within; "" as long as there was none."""
        return next((adapter.interrupted for adapter in self.each if adapter.interrupted), "")

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
            except RunError as problem:
                raise RunError(f"seed {adapter.seed}: {problem}") from problem
            except (SystemExit, KeyboardInterrupt):
                for other in self.each:  # some have made a step that the networks have not seen
                    other.interrupted = adapter.interrupted
                raise
        self.finished = [step.finished for step in steps]
        arrays = map(np.stack, zip(*(step[:-1] for step in steps), strict=True))
        return Step(*arrays, finished=list(chain(*self.finished)))

    def close(self) -> None:
        for adapter in self.each:
            adapter.close()


class SeedGroup(Loop):
    """Runs that differ in their seed only, all at the same step.

    Attributes:
        of: index of the seed whose event `events` yielded last; None: the event is of all seeds.
        paths: folder of the last save of every seed.
        next: the step at which an evaluation, a log line or a save is due.
        runs: the run of every seed, as its evaluations, logs and saves see it.

    Raises:
        UsageError: seeds of this agent cannot share one program.
    """

    key: Any

    def __init__(
        self,
        plans: Sequence[Plan],
        agent: Any,
        adapters: Sequence[EnvAdapter],
        eval_adapter: EnvAdapter | None = None,
        savers: Sequence[Saver] = (),
    ) -> None:
        if why := why_not_together(plans[0], agent):
            raise UsageError(f"Several seeds in one program need {why}.")
        self.plans, self.savers, self.adapters = plans, savers, adapters
        self.paths: list[Path] = []
        self.of: int | None = None
        self.next = 0
        adapter = self._join(adapters)
        super().__init__(plans[0], agent, adapter, eval_adapter, self._save if savers else None)
        self.runs = [self._run(k) for k in range(len(plans))]

    def _join(self, adapters: Sequence[EnvAdapter]) -> Any:
        """Return the adapter that all seeds share."""
        return adapters[0]

    def _run(self, k: int) -> Any:
        """Make the run of seed k, for its evaluations, logs and saves; its `read` copies the arrays."""
        raise NotImplementedError

    def seed_keys(self) -> Key:
        """Return the key of every seed."""
        return jnp.stack([jax.random.key(plan.seed) for plan in self.plans])

    def seed_events(self, until: int) -> Iterator[tuple[int, ev.RunEvent]]:
        """Train like `events`; yield every event with the index of its seed."""
        for event in self.events(until):
            whose = range(len(self.plans)) if self.of is None else [self.of]
            for k in whose:
                if isinstance(event, ev.Started):
                    yield k, event._replace(seed=self.plans[k].seed)
                elif isinstance(event, ev.Saved) and self.of is None:
                    yield k, event._replace(path=self.paths[k])
                else:
                    yield k, event

    def run(self, k: int) -> Any:
        """Return the run of seed k, with its current arrays and counters."""
        run = self.runs[k]
        run.read()
        for name in ("env_steps", "updates", "finished", "seconds", "fresh"):
            setattr(run, name, getattr(self, name))
        if run._rate[1] < self._rate[1]:
            run._rate = self._rate
        return run

    def evaluated(self, k: int, adapter: EnvAdapter) -> list[Episode]:
        """Return the evaluation episodes of seed k in JAX; those of all seeds are played when seed 0 asks."""
        if k == 0:
            policies = [self.run(i).acting for i in range(len(self.plans))]
            acting = jax.tree.map(lambda *of_each: jnp.stack(of_each), *policies)
            names = [f"seed {plan.seed}" for plan in self.plans]
            programs, episodes = self.runs[0].programs, self.plan.eval_episodes
            self._evaluated = evaluate_policies(programs, acting, adapter, episodes, names)
        return self._evaluated[k]

    def _refuse_divergence(self) -> None:
        for k in range(len(self.plans)):
            self.run(k)._refuse_divergence()

    def _boundary(self, last: bool) -> Iterator[ev.RunEvent]:
        if self.env_steps < self.next and not last:
            return
        for k in range(len(self.plans)):
            self.of = k
            yield from Loop._boundary(self.run(k), last)
        self.of, self.due = None, dict(self.runs[0].due)
        self.next = self._next_due()

    def _save(self, _: Any, milestone: bool) -> Path:
        self.paths = [save(self.run(k), milestone) for k, save in enumerate(self.savers)]
        return self.paths[0]


class OneSeed(Loop):
    """The run of one seed of a group, for its evaluations, logs and saves; the group makes its steps."""

    def __init__(self, seeds: Any, k: int) -> None:
        self.seeds, self.k = seeds, k
        saver = seeds.savers[k] if seeds.savers else None
        super().__init__(seeds.plans[k], seeds.agent, seeds.adapters[k], seeds.eval_adapter, saver)
        self.probes, self._rate = seeds.probes, (0, 0.0)

    def _evaluate(self, acting: Any, adapter: EnvAdapter) -> list[Episode]:
        if adapter.jax_env is None:
            return super()._evaluate(acting, adapter)
        return self.seeds.evaluated(self.k, adapter)


class Seeds(SeedGroup, Trainer):
    """Off-policy runs of several seeds, whose environments step on the host."""

    adapter: Any

    def _join(self, adapters: Sequence[EnvAdapter]) -> Any:
        return SeedAdapters(adapters)

    def _run(self, k: int) -> "SeedRun":
        return SeedRun(self, k)

    def _start(self) -> Carry:
        count = len(self.plans)
        ring_buffer.check_memory(self.layout, count)
        self.alone = Programs(self.agent, self.layout)  # programs of a single seed, for its evaluations
        self.programs = SeedPrograms(self.agent, self.layout)
        self.key = self.seed_keys()
        self._allocate = partial(ring_buffer.create, self.layout, count)
        replay_state = jax.vmap(lambda _: self.agent.init_replay_state(self.layout))

        def tile(x: Any) -> Any:
            return jnp.tile(x, (count, *[1] * jnp.ndim(x)))

        state = copy_buffers(jax.jit(jax.vmap(self.agent.init, out_axes=SEED_AXES))(self.key))
        return Carry(
            state=state,
            storage=None,  # type: ignore[arg-type]
            replay_state=jax.jit(replay_state)(jnp.arange(count)),
            noise_state=jax.tree.map(tile, self.programs.init_noise(self.envs)),
            metrics=tile(jnp.full(len(self.programs.metrics), jnp.nan, jnp.float32)),
            observation=None,  # type: ignore[arg-type]
            first=np.ones((count, self.envs), bool),
            action=None,  # type: ignore[arg-type]
            columns={},
            guard=tile(jnp.zeros(len(guard_names(state.optimisers)), jnp.int32)),
        )

    def _count_step(self, step: Step) -> None:
        super()._count_step(step._replace(valid=step.valid[0]))  # counts the steps of one seed, not of all

    def _keep_returns(self, finished: Sequence[Episode]) -> None:
        for run, ended in zip(self.runs, self.adapter.finished, strict=True):
            run._keep_returns(ended)

    def _episode_events(self, finished: Any) -> Iterator[ev.EpisodeDone]:
        for k, episodes in enumerate(self.adapter.finished):
            self.of = k
            yield from super()._episode_events(episodes)
        self.of = None


class SeedRun(OneSeed, Trainer):
    """The run of one seed of `Seeds`.

    Its storage is the storage of all seeds, which is not copied; `first_ring` says where its rows begin.
    """

    def __init__(self, seeds: Seeds, k: int) -> None:
        super().__init__(seeds, k)
        self.first_ring = k * seeds.envs

    def _start(self) -> Carry:
        self.programs = self.seeds.alone
        self._allocate = lambda: self.seeds.storage
        return EMPTY

    def read(self) -> None:
        """Copy the current arrays (without the storage) and the counters of a trainer from `Seeds`."""
        self.carry = of_seed(self.k, self.seeds.carry._replace(storage=None))
        for name in ("pending", "learning", "schedule"):
            setattr(self, name, getattr(self.seeds, name))


class SeedsInProgram(SeedGroup, InProgram):
    """Several seeds whose environments are in the program too."""

    def _map(self, function: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
        return jax.vmap(function, in_axes, out_axes)

    def _finished(self, log: EpisodeLog, steps_before: int) -> Iterator[ev.EpisodeDone]:
        log = jax.tree.map(np.asarray, log)
        for k, run in enumerate(self.runs):
            self.of, run.env_steps = k, self.env_steps
            yield from run._finished(jax.tree.map(lambda x, k=k: x[k], log), steps_before)
        self.of = None


class CompiledSeeds(SeedsInProgram, Seeds, CompiledTrainer):
    """Off-policy runs of several seeds, with their environments, in one program."""

    _join = SeedGroup._join

    def _run(self, k: int) -> "CompiledSeedRun":
        return CompiledSeedRun(self, k)


class CompiledSeedRun(SeedRun, CompiledTrainer):
    """The run of one seed of `CompiledSeeds`."""

    def read(self) -> None:
        super().read()
        self.world = jax.tree.map(lambda x: x[self.k], self.seeds.world)


class RolloutSeeds(SeedsInProgram, CompiledRollouts):
    """On-policy runs of several seeds, with their environments, in one program."""

    def _start(self) -> None:
        self.alone = RolloutPrograms(self.agent)
        self.key = self.seed_keys()
        super()._start()
        self.alone.metrics = self.programs.metrics

    def _run(self, k: int) -> "RolloutSeedRun":
        return RolloutSeedRun(self, k)


class RolloutSeedRun(OneSeed, CompiledRollouts):
    """The run of one seed of `RolloutSeeds`."""

    def _start(self) -> None:
        self.programs = self.seeds.alone

    def read(self) -> None:
        """Copy the current arrays from `RolloutSeeds`."""
        seeds = self.seeds
        run = seeds.state, seeds.world, seeds.metrics
        self.state, self.world, self.metrics = jax.tree.map(lambda x: x[self.k], run)


def of_seed(k: int, carry: Carry) -> Carry:
    """Return the carry of seed k from a carry whose arrays have a leading axis of seeds."""

    def take(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[k], tree)

    parts = zip(State._fields, SEED_AXES, carry.state, strict=True)
    state = carry.state._replace(**{name: take(part) for name, axis, part in parts if axis is not None})
    return Carry(state, *map(take, carry[1:]))
