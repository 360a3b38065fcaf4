"""Several seeds of one agent in one vmapped program: what pays on an accelerator.

A step of this loop is a step of every seed. The environments take theirs in turn, on the host; what is
compiled works on all seeds at once. What a single run holds in an array leads with an axis of seeds here, but
for the counters, which are the same for all. Evaluations, logs and saves are those of single runs, each made
from a view of its seed: the folders are no different, and each can be resumed by itself.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qscape.envs import EnvAdapter, Step
from qscape.errors import RunError, UsageError
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.plain import EveryStep
from qscape.offpolicy.state import SEED_AXES, State
from qscape.replay import storage
from qscape.replay.storage import Layout, ReplayState
from qscape.run import events as ev
from qscape.run.loop import Loop, Saver, owned
from qscape.run.plan import Plan
from qscape.run.programs import Act, Programs
from qscape.run.trainer import Trainer
from qscape.types import Key


def lacking(plan: Plan, agent: Any) -> str | None:
    """What seeds of this agent lack to be one program, or None."""
    if not isinstance(agent, Agent) or plan.dataset or plan.start:
        return "an off-policy agent that learns from an environment, from the start"
    if not isinstance(agent.schedule, EveryStep) or agent.base.warmup_to_episode_end:
        return "updates at the same steps in every seed, not when an episode ends"
    return None


class SeedPrograms(Programs):
    """The same programs, vmapped over seeds. Counters are not: a `cond` stays a `cond`."""

    def __init__(self, agent: Agent, layout: Layout) -> None:
        super().__init__(agent, layout)
        state = SEED_AXES
        insert = jax.vmap(partial(agent.replay.insert, layout))
        step = jax.vmap(
            self._step, in_axes=(state, 0, 0, 0, 0, 0, 0, None, 0), out_axes=(state, 0, 0, 0, 0, 0)
        )
        burst = jax.vmap(self._burst, in_axes=(state, 0, 0, 0, None, 0, None), out_axes=(state, 0, 0))
        self.insert = jax.jit(insert, donate_argnums=(0, 1))
        self.step = jax.jit(step, donate_argnums=(0, 2, 3, 4))
        self.burst = jax.jit(burst, donate_argnums=(0, 2, 3))
        if agent.normalises:
            see = jax.vmap(agent.see, in_axes=(state, 0), out_axes=state)
            self.see = jax.jit(see, donate_argnums=0)
        self.act = Act(self._act)

    def _act(self, acting: Any, noise_state: Any, obs: Any, first: Any, env_steps: Any, key: Key, mode: str):
        act = partial(self.agent.act, mode=mode)
        return jax.vmap(act, in_axes=(0, 0, 0, 0, None, 0))(acting, noise_state, obs, first, env_steps, key)

    def blank_metrics(self, state: State, storage: Array, replay_state: ReplayState, key: Key) -> Array:
        one = super().blank_metrics(*jax.eval_shape(partial(_of_seed, 0), state, storage, replay_state, key))
        return jnp.tile(one, (len(storage), 1))


class SeedAdapters:
    """The edge of every seed, as one: arrays lead with an axis of seeds."""

    is_host_only = False  # as far as the loop has to know: there is no program that would call them

    def __init__(self, adapters: Sequence[EnvAdapter]) -> None:
        self.each = adapters
        self.envs, self.spec, self.env_id = adapters[0].envs, adapters[0].spec, adapters[0].env_id
        self.finished: list[list[Any]] = []  # of each seed, the episodes that ended in the last step

    @property
    def observation(self) -> np.ndarray:
        """[seeds, E, S]"""
        return np.stack([adapter.observation for adapter in self.each])

    def reset(self) -> None:
        for adapter in self.each:
            adapter.reset()

    def step(self, action: np.ndarray) -> Step:
        """One step of every seed; `action` is [seeds, E, A]."""
        steps = []
        for adapter, chosen in zip(self.each, action, strict=True):
            try:
                steps.append(adapter.step(chosen))
            except RunError as problem:
                raise RunError(f"seed {adapter.seed}: {problem}") from problem
        self.finished = [step.finished for step in steps]
        return Step(*map(np.stack, zip(*(step[:-1] for step in steps), strict=True)), finished=[])

    def close(self) -> None:
        for adapter in self.each:
            adapter.close()


class Seeds(Trainer):
    """Runs that differ in their seed only, all at the same step.

    Attributes:
        of: whose event it is that `events` has just told; None: of all.

    Raises:
        UsageError: seeds of this agent cannot be one program.
    """

    adapter: Any
    programs: Any

    def __init__(
        self,
        plans: Sequence[Plan],
        agent: Any,
        adapters: Sequence[EnvAdapter],
        eval_adapter: EnvAdapter | None = None,
        savers: Sequence[Saver] = (),
    ) -> None:
        if why := lacking(plans[0], agent):
            raise UsageError(f"Several seeds in one program need {why}.")
        self.plans, self.savers = plans, savers
        self.each_returns: list[list[float]] = [[] for _ in plans]
        self.paths: list[Path] = []  # of the last save of each seed
        self.of: int | None = None
        self.next = 0  # the step at which something is due
        together: Any = SeedAdapters(adapters)
        super().__init__(plans[0], agent, together, eval_adapter, self._save if savers else None)
        self.first = np.ones((len(plans), together.envs), bool)

    def _begin(self) -> None:
        count = len(self.plans)
        storage.check_memory(self.layout, count)
        self.alone = Programs(self.agent, self.layout)  # of one seed, for its evaluations
        self.programs = SeedPrograms(self.agent, self.layout)
        self.key = jnp.stack([jax.random.key(plan.seed) for plan in self.plans])
        self._rows = partial(storage.create, self.layout, count)
        replay_state = jax.vmap(lambda _: self.agent.replay.init_state(self.layout))
        self.replay_state = jax.jit(replay_state)(jnp.arange(count))
        self.state = owned(jax.jit(jax.vmap(self.agent.init, out_axes=SEED_AXES))(self.key))
        one = self.programs.init_noise(self.adapter.envs)
        self.noise_state = jax.tree.map(lambda x: jnp.tile(x, (count, *[1] * jnp.ndim(x))), one)
        rows = jax.eval_shape(self._rows)
        self.metrics = self.programs.blank_metrics(self.state, rows, self.replay_state, self.key)
        self.alone.metrics = self.programs.metrics

    def told(self, until: int) -> Iterator[tuple[int, ev.RunEvent]]:
        """As `events`, with the number of the seed of which each tells."""
        for event in self.events(until):
            whose = range(len(self.plans)) if self.of is None else [self.of]
            for k in whose:
                if isinstance(event, ev.Started):
                    yield k, event._replace(seed=self.plans[k].seed)
                elif isinstance(event, ev.Saved) and self.of is None:
                    yield k, event._replace(path=self.paths[k])
                else:
                    yield k, event

    def view(self, k: int) -> Trainer:
        """The run of seed k as it is now."""
        one = object.__new__(Trainer)
        vars(one).update(vars(self))
        arrays = (self.replay_state, self.noise_state, self.metrics, self.key, self.action, self.columns)
        one.state, *rest = _of_seed(k, self.state, *arrays)
        one.replay_state, one.noise_state, one.metrics, one.key, one.action, one.columns = rest
        one.first_ring = k * self.adapter.envs  # its rows stay where they are, among those of all seeds
        one.plan, one.adapter, one.programs = self.plans[k], self.adapter.each[k], self.alone
        one.first, one.returns, one.due = self.first[k], self.each_returns[k], dict(self.due)
        one.saver = self.savers[k] if self.savers else None
        return one

    def _boundary(self, last: bool) -> Iterator[ev.RunEvent]:
        if self.env_steps < self.next and not last:
            return
        one: Trainer = self
        for k in range(len(self.plans)):
            self.of, one = k, self.view(k)
            yield from Loop._boundary(one, last)
            self.each_returns[k] = one.returns
        self.of, self.due, self._rate = None, one.due, one._rate
        self.next = self._next_due()

    def _count(self, step: Step) -> None:
        super()._count(step._replace(valid=step.valid[0]))  # the steps of each seed, not of all
        for returns, finished in zip(self.each_returns, self.adapter.finished, strict=True):
            returns += [episode.ret for episode in finished]

    def _told(self, finished: Any) -> Iterator[ev.EpisodeDone]:
        for k, episodes in enumerate(self.adapter.finished):
            self.of = k
            yield from super()._told(episodes)
        self.of = None

    def _save(self, _: Any, milestone: bool) -> Path:
        views = (self.view(k) for k in range(len(self.plans)))
        self.paths = [save(one, milestone) for save, one in zip(self.savers, views, strict=True)]
        return self.paths[0]


def _of_seed(k: int, state: State, *others: Any) -> tuple[Any, ...]:
    """What belongs to seed k of a state and of other trees, all of which lead with an axis of seeds."""

    def take(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[k], tree)

    parts = zip(State._fields, SEED_AXES, state, strict=True)
    one = state._replace(**{name: take(part) for name, axis, part in parts if axis is not None})
    return (one, *map(take, others))
