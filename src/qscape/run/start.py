"""Start a run from the networks of another run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from qscape.agents import build
from qscape.data import RECORDED, read
from qscape.errors import ForeignSave, Mismatch, UnfitAgent
from qscape.offpolicy.agent import Agent
from qscape.run import saves
from qscape.run.engines.base import copy_buffers
from qscape.run.engines.dataset import (
    DatasetEngine,
    count_held,
    fill_replay,
    refuse_columns,
    refuse_privileged,
)
from qscape.run.engines.replay import ReplayLearner
from qscape.run.folder import fit, newest_save, no_save, one_run, read_meta, read_plan
from qscape.run.plan import Plan
from qscape.run.session import Session


def take_over(session: Session, plan: Plan) -> list[str]:
    """Start a session from the networks, optimiser states and statistics of the run `plan.start`.

    Called once, before the first step. Leaves that the other run does not have keep their initial values;
    slow copies of the actor start as copies of the loaded actor. The counters start at 0. With
    `plan.keep_data` the dataset of the other run is inserted into replay.

    Args:
        session: a session that has made no step.
        plan: its plan; `start` names a run folder.

    Returns:
        Sentences for the user: where the networks come from, and which parts start with initial values.

    Raises:
        UsageError: the agent is on-policy, the folder holds no run, the run has no dataset to keep, or its
            networks have other sizes or learned in other spaces.
        RunError: the run has no readable save, or its networks have other activation functions.
    """
    learner = session.learner
    if not isinstance(learner, ReplayLearner):
        raise UnfitAgent(f"--from begins off-policy agents, and {plan.recipe} is none.", field="start")
    run = one_run(Path(plan.start))
    source, save = read_plan(run), newest_save(run, "state")
    if save is None:
        raise no_save(run)
    for adapter in session.adapters:
        fit(adapter, save)
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
            raise Mismatch(
                f"{run} ({source.recipe} on {source.env}) does not fit '{plan.recipe}' on {plan.env}: {name} "
                f"{theirs}, {[*own.shape]} here; use its recipe and sizes"
                f"{'.' if same else ', and an environment like its own.'}",
                field="start",
            )
        fresh.add(_what(name))
        return own

    actor = jax.tree_util.tree_map_with_path(leaf, learner.state).actor
    _refuse_other_functions(run, source, learner.agent)
    around = learner.agent.init(learner.seeds.key, actor)
    begun = jax.tree_util.tree_map_with_path(leaf, around)
    if "critics_target" in fresh and not any(name.startswith("critics_target/") for name in found):
        begun = begun._replace(critics_target=begun.critics)  # that run kept none; ours begin as copies
        fresh.discard("critics_target")
    learner.state = copy_buffers(begun._replace(optimisers=_restart_schedules(begun.optimisers)))
    replay_state = learner.carry.replay_state
    kept = jax.tree_util.tree_map_with_path(leaf, {"scaling": replay_state.scaling})
    learner.carry = learner.carry._replace(replay_state=replay_state._replace(**copy_buffers(kept)))
    if learner.kept is not None:
        learner.kept = learner.programs.copy(learner.acting)
    notes = [f"starts from {run} at step {read_meta(save)['numbers']['env_steps']:,}"]
    if fresh - taken:
        notes.append(f"not in that run, newly initialised: {', '.join(sorted(fresh - taken))}")
    afresh = learner.agent.normalises and learner.agent.normaliser.name in fresh - taken
    if afresh and isinstance(session.engine, DatasetEngine):
        learner.state = learner.programs.see(learner.state, session.engine.data.observation)
    return notes + (_keep(learner, source, run, afresh, session.adapter.spaces) if plan.keep_data else [])


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
            raise ForeignSave(
                f"{run} ({source.recipe}) was trained with base.{name} = {there}; here it is {here}, "
                f"with which its networks are other functions: set it to {there}.",
                field="start",
            )
    there, here = (getattr(of.value, "name", None) for of in (other, agent))
    if there != here:
        raise ForeignSave(
            f"{run} ({source.recipe}) has critics of the kind {there}; here they are {here}, which are other "
            f"functions: use its recipe.",
            field="start",
        )
    for name in ("low", "high"):
        there, here = (getattr(of.value, name, None) for of in (other, agent))
        if there != here:
            raise ForeignSave(
                f"{run} ({source.recipe}) has a support of values whose {name} is {there}; here it is "
                f"{here}, with which its critics are other functions: set it to {there}.",
                field="start",
            )


def _what(name: str) -> str:
    """Return the part that a leaf belongs to: `sale` for part_states/sale/params/f, `actor` for actor/x."""
    first, *rest = name.split("/")
    return rest[0] if first in ("part_states", "optimisers") and rest else first


def _keep(
    learner: ReplayLearner, source: Plan, run: Path, unseen: bool, spaces: Mapping[str, Any]
) -> list[str]:
    """Insert the dataset of the other run into replay.

    Args:
        source: the plan of the other run, in the folder `run`.
        unseen: whether the normaliser has no statistics yet; then they are computed from the dataset.
        spaces: of the run's environments, in whose order the entries of a Dict become a row.

    Returns:
        A sentence for the user.
    """
    if not source.dataset:
        raise UnfitAgent(
            f"--keep-data: {run} was not trained on a dataset, so it has none to keep.", field="keep_data"
        )
    refuse_columns(learner.layout, learner.agent.recipe)
    refuse_privileged(learner.agent)
    known = source.env != RECORDED
    env, args = (source.env, source.env_args) if known else (None, None)
    data = read(source.dataset, env, args, spaces)
    fill_replay(learner, data)
    if unseen:
        learner.state = learner.programs.see(learner.state, data.observation)
    kept = count_held(learner.layout, data)
    return [f"its dataset is in the replay: {kept:,} of {len(data):,} transitions of {source.dataset}"]
