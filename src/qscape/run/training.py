"""train and resume: a run folder, a trainer and the sinks, held together."""

import contextlib
import dataclasses
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from qscape.agents import Agent, build
from qscape.envs import EnvAdapter
from qscape.errors import RunError, UsageError
from qscape.onpolicy.agent import Agent as OnPolicyAgent
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run import probes
from qscape.run.loop import Loop, Saver, open_adapter, open_adapters
from qscape.run.offline import OfflineTrainer, take_over
from qscape.run.plan import Plan, prepare
from qscape.run.rollouts import RolloutTrainer
from qscape.run.seeds import Seeds
from qscape.run.sinks import TRACKERS, FolderSink, Sink, refuse_missing
from qscape.run.trainer import Trainer

OnTrainer = Callable[[Loop], Any]


def set_up_jax() -> None:
    """Keep compiled programs between processes, so that a second start is faster; and on an accelerator
    multiply in full float32, unless the user said otherwise: products rounded to TF32, JAX's default there,
    move PAVE's terms by 0.6%, and SAVGO's cosines by as much as they differ."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qscape" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if jax.config.values["jax_default_matmul_precision"] is None and jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", "float32")


def trainer_of(
    plan: Plan,
    agent: Agent,
    adapter: EnvAdapter,
    eval_adapter: EnvAdapter | None = None,
    saver: Saver | None = None,
) -> Loop:
    """The loop that fits an agent."""
    if isinstance(agent, OnPolicyAgent):
        return RolloutTrainer(plan, agent, adapter, eval_adapter, saver)
    if plan.dataset:
        return OfflineTrainer(plan, agent, adapter, eval_adapter, saver)
    return Trainer(plan, agent, adapter, eval_adapter, saver)


def train(
    plan: Plan,
    folder: str | Path,
    *,
    overwrite: bool = False,
    trackers: Sequence[str] = (),
    on_trainer: OnTrainer = lambda trainer: None,
) -> Iterator[ev.RunEvent]:
    """Run a plan into a folder; yields what happens.

    Args:
        folder: made if it is not there; one that holds a run is refused unless `overwrite`.
        trackers: "wandb", "trackio".
        on_trainer: gets the trainer before it starts, e.g. to be able to stop it.

    Raises:
        UsageError: a plan that cannot be. RunError: what broke while running.
    """
    set_up_jax()
    refuse_missing(trackers)
    folder = Path(folder)
    plan, agent, notes = prepare(plan)
    folders.refuse_taken(folder, overwrite)  # before a lock is written into it
    adapter, eval_adapter = open_adapters(plan, agent)
    trainer = trainer_of(plan, agent, adapter, eval_adapter, partial(folders.save, folder))
    if plan.start:
        notes += take_over(trainer, plan)
    with folders.locked(folder):
        folders.create(folder, plan, trainer.agent, overwrite)
        on_trainer(trainer)
        yield from _recorded_events(trainer, folder, plan, notes, trackers)


def train_together(
    plans: Sequence[Plan],
    places: Sequence[Path],
    *,
    overwrite: bool = False,
    trackers: Sequence[str] = (),
    on_trainer: OnTrainer = lambda trainer: None,
) -> Iterator[tuple[int, ev.RunEvent]]:
    """Run plans that differ in their seed only, in one vmapped program; arguments as of `train`.

    Each is a run with a folder of its own, which `resume` takes on by itself. What breaks one ends all.

    Yields:
        The number of a plan and what happens in its run.

    Raises:
        UsageError: plans that cannot be, or seeds that cannot be one program. RunError: what broke.
    """
    set_up_jax()
    refuse_missing(trackers)
    fits = [prepare(plan) for plan in plans]
    plans, (_, agent, notes) = [fit[0] for fit in fits], fits[0]
    for place in places:
        folders.refuse_taken(place, overwrite)
    adapter, eval_adapter = open_adapters(plans[0], agent)  # evaluations of all seeds are the same episodes
    adapters = [adapter, *(open_adapter(plan, agent) for plan in plans[1:])]
    savers = [partial(folders.save, place) for place in places]
    trainer = Seeds(plans, agent, adapters, eval_adapter, savers)
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(folders.locked(place))
        for plan, place in zip(plans, places, strict=True):
            folders.create(place, plan, trainer.agent, overwrite)
            record = {"together": [plan.seed for plan in plans]}
            folders.write_record(place, folders.read_record(place) | record)
        on_trainer(trainer)
        sinks = [_sinks(trainer, *of, trackers) for of in zip(places, plans, strict=True)]
        try:
            for k, event in trainer.seed_events(plans[0].steps):
                for sink in sinks[k]:
                    sink(event)
                yield k, _noted(event, notes)
        finally:
            _close([sink for of in sinks for sink in of], trainer.adapter, trainer.eval_adapter)
    _refuse_no_update(trainer)


def resume(
    folder: str | Path,
    steps: int | None = None,
    *,
    trackers: Sequence[str] = (),
    on_trainer: OnTrainer = lambda trainer: None,
    trusted: bool = False,
) -> Iterator[ev.RunEvent]:
    """Continue the run in a folder from its newest save, or from the start if it has no save yet.

    Args:
        steps: a new total; None: what the run was started with.
        trusted: the user named the environment and the probes, as in a study file, so that modules of the
            current directory may be imported.

    Raises:
        UsageError: the run has made these steps already. RunError: no run, or no readable save.
    """
    set_up_jax()
    refuse_missing(trackers)
    folder = Path(folder)
    folders.read_record(folder)  # refuses what is no run, before a lock is written into it
    with folders.locked(folder):
        record = folders.read_record(folder)
        plan = folders.read_plan(folder)
        folders.refuse_nameless(folder, plan)
        if not trusted:
            folders.refuse_local_code(folder, plan)
        if steps is not None:
            plan = dataclasses.replace(plan, steps=steps)
        made = folders.steps_made(folder)
        if (steps or made) < made or not folders.unfinished(folder, steps):
            more = f"qscape resume {shlex.quote(str(folder))} --steps {2 * made}"
            raise UsageError(f"{folder} has made its {made} steps; to continue, ask for more: {more}.")
        agent = build(plan.recipe, plan.settings)
        adapter, eval_adapter = open_adapters(plan, agent)
        trainer = trainer_of(plan, agent, adapter, eval_adapter, partial(folders.save, folder))
        newest = folders.newest_save(folder, "replay")
        notes = [] if newest else ["there is no save yet: the run starts again"]
        if newest:
            notes = folders.load_into(trainer, newest)
        elif plan.start:
            notes += take_over(trainer, plan)
        folders.write_record(folder, record | {"steps": plan.steps})
        on_trainer(trainer)
        yield from _recorded_events(trainer, folder, plan, notes, trackers)


def _recorded_events(
    trainer: Loop, folder: Path, plan: Plan, notes: list[str], trackers: Sequence[str]
) -> Iterator[ev.RunEvent]:
    """Yield the trainer's events after every sink wrote them."""
    sinks: list[Sink] = []
    try:
        sinks += _sinks(trainer, folder, plan, trackers)
        for event in trainer.events(plan.steps):
            for sink in sinks:
                sink(event)
            yield _noted(event, notes)
    finally:
        _close(sinks, trainer.adapter, trainer.eval_adapter)
    _refuse_no_update(trainer)


def _sinks(trainer: Loop, folder: Path, plan: Plan, trackers: Sequence[str]) -> list[Sink]:
    """Open the sinks of a run: its folder and the trackers."""
    begun = -1 if trainer.fresh else trainer.env_steps
    config = folders.read_record(folder)
    name = f"{config['label']}/{plan.seed}"
    project = "qscape-" + re.sub(r"[/\\#?%:]", "-", plan.env)  # what Weights & Biases refuses in a name
    further = [TRACKERS[tracker](project=project, name=name, config=config) for tracker in trackers]
    return [FolderSink(folder, begun, probes.probe_columns(plan.probe)), *further]


def _noted(event: ev.RunEvent, notes: list[str]) -> ev.RunEvent:
    return event._replace(notes=[*notes, *event.notes]) if isinstance(event, ev.Started) else event


def _close(sinks: Sequence[Sink], *adapters: EnvAdapter | None) -> None:
    with contextlib.ExitStack() as stack:  # close all of them, even if one raises
        for resource in (*adapters, *sinks):
            if resource is not None:
                stack.callback(resource.close)


def no_update(trainer: Loop) -> str:
    """Return why a run ended without one update; "" if it made some, or has not ended."""
    if trainer.updates or not trainer.finished:
        return ""
    base = trainer.agent.base
    field, _ = base.find_learning_start()
    value = getattr(base, field)
    ended = f"the run ended after {trainer.env_steps} steps without one update: "
    if getattr(base, "warmup_to_episode_end", False) and trainer.env_steps > value:
        return (
            f"{ended}the random phase lasts until an episode has ended after base.warmup = {value}, and "
            "updates come with the episodes after that; give it more steps, or episodes a time limit "
            "(max_episode_steps)."
        )
    return (
        f"{ended}none was due after base.{field} = {value}; give it more steps or a smaller --base.{field}."
    )


def _refuse_no_update(trainer: Loop) -> None:
    if why := no_update(trainer):
        raise RunError(why)
