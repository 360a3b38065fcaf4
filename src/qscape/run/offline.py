"""Learning from a dataset, and starting a run from the networks of another run.

On a dataset, a step of the run is an update. No environment is stepped for training; the environment only
evaluates.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from qscape.agents import build
from qscape.data import RECORDED, Dataset, normalised_score, read
from qscape.envs import EnvAdapter
from qscape.envs.snapshot import Snapshot
from qscape.errors import RunError, UsageError
from qscape.offpolicy import cycle
from qscape.offpolicy.agent import Agent
from qscape.replay.storage import Layout, ReplayState, Rows
from qscape.run import events as ev
from qscape.run import saves
from qscape.run.folder import newest_save, no_save, one_run, read_meta, read_plan
from qscape.run.loop import Saver, copy_buffers
from qscape.run.plan import Plan
from qscape.run.programs import LEARNED, Program
from qscape.run.trainer import Trainer

FILL = 4_096  # transitions inserted in one call


class OfflineTrainer(Trainer):
    """A run of an off-policy agent on a dataset.

    The replay holds the dataset from the start and never changes. It is not saved, since the dataset has it.

    Attributes:
        data: the dataset.
        checksum: of its transitions.
        score: normalised score of the last evaluation; None before the first, or without reference returns.
    """

    def __init__(
        self,
        plan: Plan,
        agent: Agent,
        adapter: EnvAdapter,
        eval_adapter: EnvAdapter | None = None,
        saver: Saver | None = None,
    ):
        known = plan.env != RECORDED
        data = read(plan.dataset, plan.env if known else None, plan.env_args if known else None)
        super().__init__(plan, _holding(agent, data, plan), adapter, eval_adapter, saver)
        refuse_columns(self.layout, self.agent.recipe)
        refuse_privileged(self.agent)
        refuse_newest(self.agent)
        self.data, self.score = data, None
        self.checksum = checksum(data)
        learn = partial(cycle.learn, self.agent, self.layout, stride=1)
        self.programs.learn = Program(learn, LEARNED, ("storage",))
        _fill_replay(self, data)
        if self.agent.normalises:
            self.state = self.programs.see(self.state, data.observation)

    def _notes(self) -> list[str]:
        n, episodes, held = len(self.data), len(self.data.lengths), _held(self.layout, self.data)
        too_small = f"only the last {held:,} of {n:,} transitions are in the replay"
        # That it names no environment was said when the run was planned.
        further = self.data.notes[1:] if self.plan.env == RECORDED else self.data.notes
        return [
            f"dataset: {n:,} transitions, {episodes:,} episodes, mean return {self.data.returns.mean():,.1f}",
            *further,
            *([f"{too_small}: base.replay_capacity = {self.layout.capacity:,}"] if held < n else []),
            "a step is an update; the environment only evaluates"
            if self.eval_adapter
            else "a step is an update; nothing is evaluated",
        ]

    def _prepare(self) -> bool:
        return True

    def _environment_step(self) -> Iterator[ev.RunEvent]:
        """Make updates until an evaluation, a log line or a save is due, but at most a chunk of them."""
        self.env_steps += self._learn(self._next_due() - self.env_steps)
        yield from ()

    def evaluations(self, adapter: EnvAdapter) -> Iterator[ev.Evaluated]:
        for event in super().evaluations(adapter):
            self.score = score(self.plan, event.mean)
            yield event

    def _log(self) -> ev.Logged:
        logged = super()._log()
        if self.score is not None:
            logged.metrics["normalised_score"] = self.score
        return logged

    def _used_rows(self) -> int:
        """Return 0: a save holds no replay rows, since the dataset has them."""
        return 0

    def counters(self) -> dict[str, Any]:
        return super().counters() | {"dataset": self.checksum}

    def restore(self, arrays: dict[str, Any], counters: dict[str, Any]) -> None:
        if counters["dataset"] not in (0, self.checksum):  # its rows would be others than the save says
            raise RunError(
                f"{self.plan.dataset} holds other transitions than when the run was saved: put the old ones "
                "back, or begin a new run from this one's networks: --from RUN --dataset DATASET."
            )
        super().restore(arrays, counters)

    def snapshot(self) -> Snapshot:
        """Return an empty snapshot: no environment is stepped for training."""
        return Snapshot({}, {})

    def restore_environments(self, saved: Snapshot) -> str:
        self.adapter.reset()  # as before the first step of a run; a loaded model hands it to the user
        return ""


def checksum(data: Dataset) -> int:
    """Return a checksum of a dataset's transitions, of 31 bits: counters of a save are below 2³¹."""
    total = 0
    for name in ("observation", "action", "reward", "terminated", "truncated", "next_observation"):
        total = crc32(np.ascontiguousarray(getattr(data, name)).data, total)
    return total >> 1


def score(plan: Plan, ret: float) -> float | None:
    """Return the normalised score 100 · (ret − random) / (expert − random), or None.

    None: the plan has no reference returns, which a dataset may provide.
    """
    return None if plan.reference is None else normalised_score(ret, plan.reference)


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
        raise UsageError(
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
            raise UsageError(
                f"{part.name} learns from the newest steps, and a dataset has none: leave it out."
            )


def refuse_privileged(agent: Agent) -> None:
    """Refuse a dataset for a task in which critics see more than actors.

    Raises:
        UsageError: it is such a task, and the entries of a dataset's observation have an order of their own.
    """
    if agent.task.actor_size is not None:
        raise UsageError(
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


def _held(layout: Layout, data: Dataset) -> int:
    """Return how many transitions of a dataset, its last ones, fit into a replay (see `fill`)."""
    pads = np.zeros(len(data), bool) if layout.stores_next else data.ends  # a row behind every episode
    at = np.cumsum(1 + pads) - pads
    return int((at[-1] + pads[-1] - at < layout.ring).sum())


def _fill_replay(trainer: Trainer, data: Dataset) -> None:
    storage, replay_state = trainer.storage, trainer.carry.replay_state
    storage, replay_state = fill(trainer.agent, trainer.layout, storage, replay_state, data)
    trainer.carry = trainer.carry._replace(storage=storage, replay_state=replay_state)


def _insert(
    agent: Agent, layout: Layout, rows: Array, replay_state: ReplayState, columns: list[Array], real: Array
) -> tuple[Array, ReplayState]:
    """Insert the transitions in `columns` one after the other; padding, where `real` is False, is skipped."""
    first = jnp.arange(layout.envs) == 0

    def one(
        carry: tuple[Array, ReplayState], step: tuple[list[Array], Array]
    ) -> tuple[tuple[Array, ReplayState], None]:
        row, counts = step
        spread = Rows(*(jnp.broadcast_to(c, (layout.envs, *c.shape)) for c in row), columns={})
        return agent.insert(layout, *carry, spread, first & counts), None

    return jax.lax.scan(one, (rows, replay_state), (columns, real))[0]


# --- a run from another -------------------------------------------------------------------------------


def take_over(trainer: Any, plan: Plan) -> list[str]:
    """Start a trainer from the networks, optimiser states and statistics of the run `plan.start`.

    Called once, before the first step. Leaves that the other run does not have keep their initial values;
    slow copies of the actor start as copies of the loaded actor. The counters start at 0. With
    `plan.keep_data` the dataset of the other run is inserted into replay.

    Args:
        trainer: a trainer that has made no step.
        plan: its plan; `start` names a run folder.

    Returns:
        Sentences for the user: where the networks come from, and which parts start with initial values.

    Raises:
        UsageError: the agent is on-policy, the folder holds no run, the run has no dataset to keep, or its
            networks have other sizes.
        RunError: the run has no readable save, or its networks have other activation functions.
    """
    if not isinstance(trainer, Trainer):
        raise UsageError(f"--from begins off-policy agents, and {plan.recipe} is none.")
    run = one_run(Path(plan.start))
    source, save = read_plan(run), newest_save(run, "state")
    if save is None:
        raise no_save(run)
    found, taken, fresh = saves.read_arrays(save, "state"), set(), set()
    scales = (item for item in saves.read_arrays(save, "loop").items() if item[0].startswith("scaling/"))
    found |= dict(scales)

    def leaf(path: Any, own: Array) -> Array:
        """Return the saved leaf at this path, or `own` if the other run has no leaf of this shape.

        Raises UsageError for a leaf of the actor or the critics that the other run does not have.
        """
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in ("updates", "env_steps"):
            return own
        other = found.get(name)
        if other is not None and other.shape == own.shape:
            taken.add(_what(name))
            return jnp.asarray(other, own.dtype)
        if name.split("/")[0] in ("actor", "critics"):
            theirs = "is not there" if other is None else f"is {[*other.shape]} there"
            same = source.env == plan.env
            raise UsageError(
                f"{run} ({source.recipe} on {source.env}) does not fit '{plan.recipe}' on {plan.env}: {name} "
                f"{theirs}, {[*own.shape]} here; use its recipe and sizes"
                f"{'.' if same else ', and an environment like its own.'}"
            )
        fresh.add(_what(name))
        return own

    actor = jax.tree_util.tree_map_with_path(leaf, trainer.state).actor
    _refuse_other_functions(run, source, trainer.agent)
    around = trainer.agent.init(trainer.key, actor)
    begun = jax.tree_util.tree_map_with_path(leaf, around)
    if "critics_target" in fresh and not any(name.startswith("critics_target/") for name in found):
        begun = begun._replace(critics_target=begun.critics)  # that run kept none; ours begin as copies
        fresh.discard("critics_target")
    trainer.state = copy_buffers(begun._replace(optimisers=_restart_schedules(begun.optimisers)))
    replay_state = trainer.carry.replay_state
    kept = jax.tree_util.tree_map_with_path(leaf, {"scaling": replay_state.scaling})
    trainer.carry = trainer.carry._replace(replay_state=replay_state._replace(**copy_buffers(kept)))
    if trainer.kept is not None:
        trainer.kept = trainer.programs.copy(trainer.acting)
    notes = [f"starts from {run} at step {read_meta(save)['numbers']['env_steps']:,}"]
    if fresh - taken:
        notes.append(f"not in that run, newly initialised: {', '.join(sorted(fresh - taken))}")
    afresh = trainer.agent.normalises and trainer.agent.normaliser.name in fresh - taken
    if afresh and isinstance(trainer, OfflineTrainer):
        trainer.state = trainer.programs.see(trainer.state, trainer.data.observation)
    return notes + (_keep(trainer, source, run, afresh) if plan.keep_data else [])


def _restart_schedules(optimisers: PyTree) -> PyTree:
    """Return the states of optimisers with learning rates at the start of their schedules."""

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def restart(node: Any) -> Any:
        return node._replace(count=jnp.zeros_like(node.count)) if is_schedule(node) else node

    return jax.tree.map(restart, optimisers, is_leaf=is_schedule)


def _refuse_other_functions(run: Path, source: Plan, agent: Agent) -> None:
    """Raise a RunError if the other run's networks have other activations, another head or other critics.

    With the same weights they would be other functions.
    """
    other, base = build(source.recipe, source.settings), agent.base
    theirs = other.base
    names = ["actor_activation", "actor_norm", "actor_projection", "critic_activation", "critic_norm", "head"]
    if base.head == "gaussian":
        names += ["log_std_bound", "log_std_min", "log_std_max"]
    for name in names:
        there, here = getattr(theirs, name), getattr(base, name)
        if there != here:
            raise RunError(
                f"{run} ({source.recipe}) was trained with base.{name} = {there}; here it is {here}, "
                f"with which its networks are other functions: set it to {there}."
            )
    there, here = (getattr(of.value, "name", None) for of in (other, agent))
    if there != here:
        raise RunError(
            f"{run} ({source.recipe}) has critics of the kind {there}; here they are {here}, which are other "
            f"functions: use its recipe."
        )
    for name in ("low", "high"):
        there, here = (getattr(of.value, name, None) for of in (other, agent))
        if there != here:
            raise RunError(
                f"{run} ({source.recipe}) has a support of values whose {name} is {there}; here it is "
                f"{here}, with which its critics are other functions: set it to {there}."
            )


def _what(name: str) -> str:
    """Return the part that a leaf belongs to: `sale` for part_states/sale/params/f, `actor` for actor/x."""
    first, *rest = name.split("/")
    return rest[0] if first in ("part_states", "optimisers") and rest else first


def _keep(trainer: Trainer, source: Plan, run: Path, unseen: bool) -> list[str]:
    """Insert the dataset of the other run into replay.

    Args:
        source: the plan of the other run, in the folder `run`.
        unseen: whether the normaliser has no statistics yet; then they are computed from the dataset.

    Returns:
        A sentence for the user.
    """
    if not source.dataset:
        raise UsageError(f"--keep-data: {run} was not trained on a dataset, so it has none to keep.")
    refuse_columns(trainer.layout, trainer.agent.recipe)
    refuse_privileged(trainer.agent)
    known = source.env != RECORDED
    data = read(source.dataset, source.env if known else None, source.env_args if known else None)
    _fill_replay(trainer, data)
    if unseen:
        trainer.state = trainer.programs.see(trainer.state, data.observation)
    kept = _held(trainer.layout, data)
    return [f"its dataset is in the replay: {kept:,} of {len(data):,} transitions of {source.dataset}"]
