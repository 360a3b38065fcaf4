"""Train and resume runs: connect a run folder, a trainer and the sinks of its events."""

import contextlib
import dataclasses
import os
import shlex
import sys
import time
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
from qscape.run.compiled import CompiledRollouts, CompiledTrainer
from qscape.run.files import refuse_links, remove_leftovers
from qscape.run.loop import Loop, Saver, adapt_to_images, may_compile, open_adapter, open_adapters
from qscape.run.offline import OfflineTrainer, take_over
from qscape.run.plan import Plan, Prepared, prepare, to_json
from qscape.run.rollouts import RolloutTrainer
from qscape.run.seeds import CompiledSeeds, RolloutSeeds, Seeds
from qscape.run.sinks import FolderSink, Sink
from qscape.run.trackers import Tracker, Tracking, begin_trackers, refuse_missing
from qscape.run.trainer import Trainer

OnTrainer = Callable[[Loop], Any]


def set_up_jax() -> None:
    """Set JAX's compilation cache and matrix precision, unless the user has set them. Called by every run.

    The cache keeps compiled programs between processes, so that later runs start faster. On an accelerator,
    matrix products are computed in full float32. JAX's default there is TF32, which changes PAVE's terms by
    0.6%, and SAVGO's cosines by as much as they differ from each other.

    Raises:
        UsageError: `JAX_PLATFORMS` names devices that this machine does not have.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qscape" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        backend = jax.default_backend()
    except RuntimeError as problem:
        wanted = jax.config.values["jax_platforms"]
        raise UsageError(
            f"JAX finds no device of JAX_PLATFORMS={wanted} here; unset it, or set cpu ({problem})."
        ) from problem
    if jax.config.values["jax_default_matmul_precision"] is None and backend != "cpu":
        jax.config.update("jax_default_matmul_precision", "float32")


def trainer_of(
    plan: Plan,
    agent: Agent,
    adapter: EnvAdapter,
    eval_adapter: EnvAdapter | None = None,
    saver: Saver | None = None,
) -> Loop:
    """Make the loop for an agent: from rollouts, from a dataset, or from replay; compiled as a whole or not.

    Raises:
        UsageError: `plan.loop` is "compiled", and the run cannot be compiled as a whole.
    """
    on_policy = isinstance(agent, OnPolicyAgent)
    if may_compile(plan) and adapter.jax_env is not None:
        kind: Any = CompiledRollouts if on_policy else CompiledTrainer
        return kind(dataclasses.replace(plan, loop="compiled"), agent, adapter, eval_adapter, saver)
    if plan.loop == "compiled":
        raise UsageError(f"--loop compiled needs an environment in JAX, which {adapter.env_id} is not.")
    if plan.devices > 1:
        raise UsageError(
            f"--devices {plan.devices} needs an environment in JAX, which {adapter.env_id} is not: what the "
            "host steps trains on one device."
        )
    kind = RolloutTrainer if on_policy else OfflineTrainer if plan.dataset else Trainer
    return kind(dataclasses.replace(plan, loop="host"), agent, adapter, eval_adapter, saver)


def train(
    plan: Plan,
    folder: str | Path,
    *,
    overwrite: bool = False,
    trackers: Sequence[str] = (),
    tracking: Tracking | None = None,
    on_trainer: OnTrainer = lambda trainer: None,
    prepared: Prepared | None = None,
) -> Iterator[ev.RunEvent]:
    """Train a plan and write the run into a folder. A generator: the run proceeds as its events are consumed.

    Args:
        plan: the plan; `prepare` completes it.
        folder: the run folder; created if it does not exist.
        overwrite: delete a run that is in the folder; otherwise such a folder is refused.
        trackers: further loggers: "wandb", "trackio", "mlflow", or your own "module:Class".
        tracking: how these name and sort the run. None: by the environment and the agent.
        on_trainer: called with the trainer before it starts, e.g. to stop it later.
        prepared: what `prepare` returned for the plan; None: it is not prepared yet.

    Yields:
        The events of the run, after they were written to the folder.

    Raises:
        UsageError: the plan is impossible, or the folder is taken. RunError: the run failed.
    """
    set_up_jax()
    refuse_missing(trackers)
    folder = Path(folder)
    given = plan
    plan, agent, notes = prepared or prepare(given)
    folders.refuse_taken(folder, overwrite)  # before a lock file is written into it
    with contextlib.ExitStack() as stack:
        adapter, eval_adapter = _open(stack, plan, agent)
        given, changes = adapt_to_images(given, adapter)
        if changes:
            plan, agent, notes = prepare(given)
            notes = changes + notes
        trainer = trainer_of(plan, agent, adapter, eval_adapter, partial(folders.save, folder))
        if plan.start:
            notes = notes + take_over(trainer, plan)
        with folders.locked(folder, new=True):
            folders.create(folder, trainer.plan, trainer.agent, overwrite, _name_in_trackers(tracking))
            on_trainer(trainer)
            yield from _recorded_events(trainer, folder, plan, notes, trackers)


def train_together(
    plans: Sequence[Plan],
    places: Sequence[Path],
    *,
    overwrite: bool = False,
    trackers: Sequence[str] = (),
    tracking: Tracking | None = None,
    on_trainer: OnTrainer = lambda trainer: None,
    prepared: Prepared | None = None,
) -> Iterator[tuple[int, ev.RunEvent]]:
    """Train plans that differ in their seed only, in one vmapped program.

    Every plan gets a run folder of its own, which `resume` continues alone. An error in one run ends all.

    Args:
        plans: the plans, equal but for the seed.
        places: the run folder of each plan.
        overwrite, trackers, tracking, on_trainer: as for `train`.
        prepared: what `prepare` returned for the first plan; None: it is not prepared yet.

    Yields:
        The index of a plan and an event of its run.

    Raises:
        UsageError: the plans are impossible, or their seeds cannot share a program. RunError: a run failed.
    """
    set_up_jax()
    refuse_missing(trackers)
    first, seeds = plans[0], [plan.seed for plan in plans]
    plan, agent, notes = prepared or prepare(first)
    for place in places:
        folders.refuse_taken(place, overwrite)
    with contextlib.ExitStack() as stack:
        # The evaluations of all seeds are the same episodes.
        adapter, eval_adapter = _open(stack, plan, agent)
        first, changes = adapt_to_images(first, adapter)
        if changes:
            plan, agent, notes = prepare(first)
            notes = changes + notes
        plans = [dataclasses.replace(plan, seed=seed) for seed in seeds]
        adapters = [adapter]
        for plan in plans[1:]:
            adapters.append(open_adapter(plan, agent))
            stack.callback(close_all, adapters[-1])
        savers = [partial(folders.save, place) for place in places]
        kind: Any = Seeds
        if may_compile(plans[0]) and adapter.jax_env is not None:
            kind = RolloutSeeds if isinstance(agent, OnPolicyAgent) else CompiledSeeds
        loop = "host" if kind is Seeds else "compiled"
        plans = [dataclasses.replace(plan, loop=loop) for plan in plans]
        trainer = kind(plans, agent, adapters, eval_adapter, savers)
        for place in places:
            stack.enter_context(folders.locked(place, new=True))
        for plan, place in zip(plans, places, strict=True):
            further = {"together": seeds} | _name_in_trackers(tracking)
            folders.create(place, plan, trainer.agent, overwrite, further)
        on_trainer(trainer)
        begun = time.process_time()
        sinks = [_sinks(trainer, *of, trackers) for of in zip(places, plans, strict=True)]
        try:
            for k, event in trainer.seed_events(plans[0].steps):
                for sink in sinks[k]:
                    sink(event)
                if isinstance(event, ev.Ended):
                    share = (time.process_time() - begun) / len(places)
                    folders.record_end(places[k], event.seconds, share)
                yield k, _noted(event, notes, sinks[k])
        finally:
            close_all(*(sink for of in sinks for sink in of))
    _refuse_no_update(trainer)


def resume(
    folder: str | Path,
    steps: int | None = None,
    *,
    save: int | None = None,
    empty_replay: bool = False,
    trackers: Sequence[str] = (),
    on_trainer: OnTrainer = lambda trainer: None,
) -> Iterator[ev.RunEvent]:
    """Continue the run in a folder from its newest save, or from the start if it never had one.

    If the newest save is damaged, the run goes back to the one before it, which also holds a replay, and a
    note of `Started` says so. Saves that are newer than the one from which the run goes on are moved to
    RUN/aside.

    Args:
        folder: the run folder.
        steps: new total of environment steps; None: the total that the run was started with.
        save: continue from the save of this step; None: from the newest.
        empty_replay: continue with the networks alone. Off-policy agents fill the replay before they learn.
        trackers: as for `train`; each goes on with the run that it began.
        on_trainer: as for `train`.

    Yields:
        The events of the run, after they were written to the folder.

    Raises:
        UsageError: the run has made these steps already, or has no save of that step. RunError: there is no
            run, none of its saves can be used, or the run failed.
    """
    set_up_jax()
    refuse_missing(trackers)
    folder = Path(folder)
    folders.read_record(folder)  # refuses a folder without a run before a lock file is written into it
    with folders.locked(folder):
        refuse_links(folder)
        remove_leftovers(folder)
        record = folders.read_record(folder)
        plan = folders.read_plan(folder)
        folders.refuse_unmakeable(folder, plan)
        if steps is not None:
            plan = dataclasses.replace(plan, steps=steps)
        newest, notes = folders.choose_save(folder, save, empty_replay)
        made = folders.steps_made(newest)
        if (steps or made) < made or not folders.unfinished(folder, steps, newest):
            command = f"qscape resume {shlex.quote(str(folder))}"
            if made < record["steps"]:
                raise UsageError(f"{folder} has made {made} of {record['steps']} steps; continue: {command}.")
            more = f"{command} --steps {2 * made}"
            raise UsageError(f"{folder} has made its {made} steps; to continue, ask for more: {more}.")
        agent = build(plan.recipe, plan.settings)
        if newest and not made and steps is not None and plan.typed is not None:
            # Saved untrained by `Model.save`: what the user did not give follows from the run's length.
            plan, agent, more = prepare(dataclasses.replace(plan, settings=plan.typed))
            notes, record = notes + more, record | to_json(plan, agent)
        with contextlib.ExitStack() as stack:
            adapter, eval_adapter = _open(stack, plan, agent)
            trainer = trainer_of(plan, agent, adapter, eval_adapter, partial(folders.save, folder))
            if newest:
                notes += folders.load_into(trainer, newest, empty_replay)
                if changes := folders.list_changes(record, folders.origin()):
                    notes.append(f"since the run began, {', '.join(changes)}: numbers may differ")
                if aside := folders.set_aside(folder, newest):
                    notes.append(f"what is newer than step {made:,} was moved to {aside}")
            else:
                notes.append("there is no save yet: the run starts again")
                if plan.start:
                    notes += take_over(trainer, plan)
            went_on: folders.Resumed = {"at": trainer.env_steps, "of": record["steps"], "notes": notes}
            resumed = [*record.get("resumed", []), went_on]
            folders.write_record(folder, record | {"steps": plan.steps, "resumed": resumed})
            on_trainer(trainer)
            yield from _recorded_events(trainer, folder, plan, notes, trackers)


def _open(
    stack: contextlib.ExitStack, plan: Plan, agent: Agent | OnPolicyAgent
) -> tuple[EnvAdapter, EnvAdapter | None]:
    """Open the training and evaluation environments of a plan. The stack closes them."""
    adapters = open_adapters(plan, agent)
    stack.callback(close_all, *adapters)
    return adapters


def _recorded_events(
    trainer: Loop, folder: Path, plan: Plan, notes: list[str], trackers: Sequence[str]
) -> Iterator[ev.RunEvent]:
    """Yield the trainer's events after every sink wrote them."""
    sinks: list[Sink] = []
    begun = time.process_time()
    try:
        sinks += _sinks(trainer, folder, plan, trackers)
        notes = [*notes, *(note for sink in sinks if isinstance(sink, FolderSink) for note in sink.notes)]
        for event in trainer.events(plan.steps):
            for sink in sinks:
                sink(event)
            if isinstance(event, ev.Ended):
                folders.record_end(folder, event.seconds, time.process_time() - begun)
            yield _noted(event, notes, sinks)
    finally:
        close_all(*sinks)
    _refuse_no_update(trainer)


def _sinks(trainer: Loop, folder: Path, plan: Plan, trackers: Sequence[str]) -> list[Sink]:
    """Open the sinks of a run: its folder and the trackers. Lines of steps beyond the save are dropped."""
    begun = -1 if trainer.fresh else trainer.env_steps
    written = FolderSink(folder, begun, probes.probe_columns(plan.probe))
    record = folders.read_record(folder)
    further, known = begin_trackers(trackers, folder, record)
    if further and known != record:
        folders.write_record(folder, known)
    return [written, *further]


def _name_in_trackers(tracking: Tracking | None) -> dict[str, Any]:
    """Return the entry of run.json that says how trackers name a new run; none if nobody said so."""
    return {} if tracking is None else {"tracking": dataclasses.asdict(tracking)}


def _noted(event: ev.RunEvent, notes: list[str], sinks: Sequence[Sink]) -> ev.RunEvent:
    """Add notes to a `Started` event, and warnings of trackers to a `Logged` event."""
    if isinstance(event, ev.Started):
        return event._replace(notes=[*notes, *event.notes])
    if not isinstance(event, ev.Logged):
        return event
    warned = [sentence for sink in sinks if isinstance(sink, Tracker) for sentence in sink.take_warnings()]
    return event._replace(warnings=[*event.warnings, *warned])


def close_all(*resources: EnvAdapter | Sink | None) -> None:
    """Close environments and sinks, even if one raises an error; the error of a run itself stays the one."""
    broken = sys.exception()
    with contextlib.ExitStack() as stack:
        if broken is not None:
            stack.enter_context(contextlib.suppress(Exception))
        for resource in resources:
            if resource is not None:
                stack.callback(resource.close)


def no_update(trainer: Loop) -> str:
    """Return a sentence that says why a run ended without an update; "" if it made some, or has not ended."""
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
