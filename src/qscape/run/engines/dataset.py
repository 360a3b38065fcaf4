"""Learning from a dataset: a step of the run is an update.

No environment is stepped for training; the environment only evaluates.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qscape.data import RECORDED, Dataset, read
from qscape.envs import EnvAdapter
from qscape.envs.snapshot import Snapshot
from qscape.errors import ForeignSave, UnfitAgent, UnfitEnv
from qscape.offpolicy import cycle
from qscape.offpolicy.agent import Agent
from qscape.replay.storage import Layout, ReplayState
from qscape.run.engines.base import Limit, Progress, SavedSeed
from qscape.run.engines.replay import ReplayLearner
from qscape.run.plan import Plan
from qscape.run.programs import LEARNED, Program
from qscape.run.seeds import Seeds
from qscape.types import Transition

FILL = 4_096  # transitions inserted in one call


class DatasetEngine:
    """A run of an off-policy agent on a dataset, of one seed.

    The replay holds the dataset from the start and never changes. It is not saved, since the dataset has it.

    Attributes:
        learner: networks, replay and updates.
        envs: E, the number of environments side by side, in each seed.
        data: the dataset.
        checksum: of its transitions.
    """

    ready = True

    def __init__(self, plans: Sequence[Plan], agent: Agent, adapters: Sequence[EnvAdapter]) -> None:
        """Set up a run before its first step, with the dataset in the replay."""
        (self.plan,), (self.adapter,) = plans, adapters
        self.envs = self.adapter.envs
        plan, known = self.plan, self.plan.env != RECORDED
        env, args = (plan.env, plan.env_args) if known else (None, None)
        self.data = read(plan.dataset, env, args, self.adapter.spaces)
        self.seeds = Seeds([plan.seed])
        holding = _holding(agent, self.data, plan)
        self.learner = learner = ReplayLearner(holding, self.adapter.spec, self.envs, self.seeds)
        learner.saves_replay = False
        refuse_columns(learner.layout, learner.agent.recipe)
        refuse_privileged(learner.agent)
        refuse_newest(learner.agent)
        self.checksum = checksum(self.data)
        learn = partial(cycle.learn, learner.agent, learner.layout, stride=1)
        learner.programs.learn = Program(learn, LEARNED, ("storage",))
        fill_replay(learner, self.data)
        if learner.agent.normalises:
            learner.state = learner.programs.see(learner.state, self.data.observation)

    def notes(self, saves: bool) -> list[str]:
        n, episodes = len(self.data), len(self.data.lengths)
        layout, held = self.learner.layout, count_held(self.learner.layout, self.data)
        too_small = f"only the last {held:,} of {n:,} transitions are in the replay"
        # That it names no environment was said when the run was planned.
        further = self.data.notes[1:] if self.plan.env == RECORDED else self.data.notes
        return [
            f"dataset: {n:,} transitions, {episodes:,} episodes, mean return {self.data.returns.mean():,.1f}",
            *further,
            *([f"{too_small}: base.replay_capacity = {layout.capacity:,}"] if held < n else []),
            "a step is an update; the environment only evaluates"
            if self.plan.evals_every
            else "a step is an update; nothing is evaluated",
        ]

    def start(self) -> None:
        self.adapter.reset()

    def begin_again(self) -> None:
        """Begin an episode, which no update sees."""
        self.adapter.reset()

    def advance(self, limit: Limit) -> Progress:
        """Make updates until something is due, but at most a chunk of them."""
        self.learner.env_steps += self.learner.learn(limit.step - self.learner.env_steps)
        return Progress()

    # --- saving and resuming ------------------------------------------------------------------------

    def counters(self, seed: int = 0) -> dict[str, Any]:
        return self.learner.counters() | {"dataset": self.checksum}

    def templates(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        return self.learner.templates(counters)

    def save(self, seed: int = 0) -> SavedSeed:
        """Return the content of a save. Its snapshot is empty: no environment is stepped for training."""
        return SavedSeed(self.learner.arrays(), self.counters(), Snapshot({}, {}))

    def restore(self, saves: Sequence[SavedSeed]) -> list[str]:
        (save,) = saves
        if save.counters["dataset"] not in (0, self.checksum):  # its rows would be others than the save says
            raise ForeignSave(
                f"{self.plan.dataset} holds other transitions than when the run was saved: put the old ones "
                "back, or begin a new run from this one's networks: --from RUN --dataset DATASET."
            )
        self.learner.restore(saves)
        if not save.counters["fresh"]:
            self.adapter.reset()  # as before the first step of a run; a loaded model hands it to the user
        return []


def checksum(data: Dataset) -> int:
    """Return a checksum of a dataset's transitions, of 31 bits: counters of a save are below 2³¹."""
    total = 0
    for name in ("observation", "action", "reward", "terminated", "truncated", "next_observation"):
        total = crc32(np.ascontiguousarray(getattr(data, name)).data, total)
    return total >> 1


def _holding(agent: Agent, data: Dataset, plan: Plan) -> Agent:
    """Return the agent with one update per step, none of them random, and a replay of the dataset's size.

    A replay size that the user set is kept.
    """
    asked = plan.settings.get("base", {})
    rows = len(data) + (len(data.lengths) + 1) * (agent.base.next_observation == "derived")
    capacity = asked.get("replay_capacity", max(rows, 2))
    base = dataclasses.replace(agent.base, replay_capacity=capacity, updates_per_step=1.0, warmup=0)
    return dataclasses.replace(agent, base=base)


def refuse_columns(layout: Layout, recipe: str) -> None:
    """Refuse an agent whose replay has columns that only acting fills; a dataset does not hold them.

    Raises:
        UsageError: the layout has such columns.
    """
    if layout.columns:
        names = ", ".join(name for name, _ in layout.columns)
        raise UnfitAgent(
            f"'{recipe}' replays {names}, which it writes down when it acts; a dataset holds none: "
            "leave that part out."
        )


def refuse_newest(agent: Agent) -> None:
    """Refuse a dataset for a part that learns from what the agent did last.

    Raises:
        UsageError: there is such a part; in a dataset nothing is newer than the rest.
    """
    for part in agent.regularisers:
        if part.newest is not None:
            raise UnfitAgent(
                f"{part.name} learns from the newest steps, and a dataset has none: leave it out.",
                part=part.name,
            )


def refuse_privileged(agent: Agent) -> None:
    """Refuse a dataset for a task in which critics see more than actors.

    Raises:
        UsageError: it is such a task, and the entries of a dataset's observation have an order of their own.
    """
    if agent.task.actor_size is not None:
        raise UnfitEnv(
            "here critics see more than actors, and a dataset does not say which entries of an observation "
            "are whose: learn in the environment."
        )


def fill(
    agent: Agent, layout: Layout, storage: Array, replay_state: ReplayState, data: Dataset
) -> tuple[Array, ReplayState]:
    """Insert a dataset into replay, one transition after the other, as if environment 0 had made them.

    Args:
        agent: bound to its task; its replay inserts.
        layout: how a transition is packed.
        storage: packed rows of the replay; donated.
        replay_state: positions and priorities of the replay; donated.
        data: the dataset; if it is larger than the ring, its last transitions stay.

    Returns:
        The storage and the replay state.
    """
    insert = jax.jit(partial(_insert, agent, layout), donate_argnums=(0, 1))
    for start in range(0, len(data), FILL):
        part = slice(start, start + FILL)
        columns = (
            data.observation,
            data.action,
            data.reward,
            data.terminated,
            data.truncated & ~data.terminated,
            data.next_observation,
        )
        padded = [np.zeros((FILL, *c.shape[1:]), c.dtype) for c in columns]
        for whole, column in zip(padded, columns, strict=True):
            whole[: len(column[part])] = column[part]
        real = np.arange(FILL) < len(data) - start
        storage, replay_state = insert(storage, replay_state, padded, real)
    return storage, replay_state


def count_held(layout: Layout, data: Dataset) -> int:
    """Return how many transitions of a dataset, its last ones, fit into a replay (see `fill`)."""
    pads = np.zeros(len(data), bool) if layout.stores_next else data.ends  # a row behind every episode
    at = np.cumsum(1 + pads) - pads
    return int((at[-1] + pads[-1] - at < layout.ring).sum())


def fill_replay(learner: ReplayLearner, data: Dataset) -> None:
    """Insert a dataset into a learner's replay."""
    storage, replay_state = learner.storage, learner.carry.replay_state
    storage, replay_state = fill(learner.agent, learner.layout, storage, replay_state, data)
    learner.carry = learner.carry._replace(storage=storage, replay_state=replay_state)


def _insert(
    agent: Agent, layout: Layout, rows: Array, replay_state: ReplayState, columns: list[Array], real: Array
) -> tuple[Array, ReplayState]:
    """Insert the transitions in `columns` one after the other; padding, where `real` is False, is skipped."""
    first = jnp.arange(layout.envs) == 0

    def one(
        carry: tuple[Array, ReplayState], step: tuple[list[Array], Array]
    ) -> tuple[tuple[Array, ReplayState], None]:
        row, counts = step
        spread = (jnp.broadcast_to(c, (layout.envs, *c.shape)) for c in row)
        return agent.insert(layout, *carry, Transition(*spread, valid=first & counts)), None

    return jax.lax.scan(one, (rows, replay_state), (columns, real))[0]
