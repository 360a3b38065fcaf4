"""Train and resume runs: connect a run folder, a session and the sinks of its events."""

import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax

from qscape import kept_programs
from qscape.agents import Agent, build
from qscape.envs import EnvAdapter
from qscape.errors import Conflict, Mismatch, NothingToDo, NoUpdate, WrongVersion
from qscape.onpolicy.agent import Agent as OnPolicyAgent
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run import probes, processes
from qscape.run.adapters import adapt_to_images, open_adapter, open_adapters
from qscape.run.engines import make_engine, name_loop
from qscape.run.engines.dataset import DatasetEngine
from qscape.run.files import refuse_links, remove_leftovers
from qscape.run.groups import choose_saves, sharing
from qscape.run.plan import Plan, Prepared, moot_notes, prepare, to_json
from qscape.run.session import Saver, Session
from qscape.run.shards import load_orbax
from qscape.run.sinks import FolderSink, Sink
from qscape.run.start import take_over
from qscape.run.trackers import Tracker, Tracking, begin_trackers, refuse_missing

OnTrainer = Callable[[Session], Any]

# Switches of JAX for the whole process with which no run works: the values that work, and why.
SWITCHES: dict[str, tuple[tuple[Any, ...], str]] = {
    "jax_enable_x64": ((False,), "networks, replay and saves are of float32 and int32"),
    "jax_debug_nans": (
        (False,),
        "metrics are NaN before their first value; a run that diverges says so itself",
    ),
    "jax_disable_jit": ((False,), "a run is made of compiled programs"),
    "jax_numpy_dtype_promotion": (("standard",), "counters and numbers of the host meet float32"),
    "jax_numpy_rank_promotion": (("allow", "warn"), "biases and bounds are broadcast over batches"),
    "jax_transfer_guard": (
        (None, "allow", "log"),
        "the host hands observations to the device and reads actions",
    ),
}


def set_up_jax() -> None:
    """Set JAX's compilation cache and matrix precision, unless the user has set them. Called by every run.

    The cache keeps compiled programs between processes, so that later runs start faster. On an accelerator,
    matrix products are computed in full float32. JAX's default there is TF32, which changes PAVE's terms by
    0.6%, and SAVGO's cosines by as much as they differ from each other.

    Raises:
        UsageError: `JAX_PLATFORMS` names devices that this machine does not have, the device cannot compute
            products as `JAX_DEFAULT_MATMUL_PRECISION` asks, or a switch of JAX for the whole process is set
            with which no run works.
    """
    refuse_switches()
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(kept_programs.find_folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        backend = jax.default_backend()
    except RuntimeError as problem:
        wanted = jax.config.values["jax_platforms"]
        raise WrongVersion(
            f"JAX finds no device of JAX_PLATFORMS={wanted} here; unset it, or set cpu ({problem})."
        ) from problem
    precision = jax.config.values["jax_default_matmul_precision"]
    if precision is None and backend != "cpu":
        jax.config.update("jax_default_matmul_precision", "float32")
    elif precision is not None:
        refuse_precision(precision, backend)


def refuse_precision(precision: str, backend: str) -> None:
    """Raise a UsageError if the device does not compute products of float32 in this precision of JAX."""
    number = jax.ShapeDtypeStruct((1,), "float32")
    try:
        jax.jit(jax.lax.dot).lower(number, number)
    except ValueError as problem:
        raise Conflict(
            f"JAX_DEFAULT_MATMUL_PRECISION is {precision}, and JAX computes no such products on {backend}; "
            "unset it, or set float32."
        ) from problem


def refuse_switches() -> None:
    """Raise a UsageError if a switch of JAX for the whole process is set with which no run works."""
    for name, (works, why) in SWITCHES.items():
        if (value := getattr(jax.config, name, works[0])) not in works:
            raise Conflict(
                f"{name.upper()} is {value} for all of this process, and qscape does not run with it: {why}. "
                f"Unset the variable, or call jax.config.update({name!r}, {works[0]!r}) before."
            )


def make_session(
    plan: Plan,
    agent: Agent,
    adapter: EnvAdapter,
    eval_adapter: EnvAdapter | None = None,
    saver: Saver | None = None,
) -> Session:
    """Make the session of one run; `make_engine` chooses how it advances.

    Raises:
        UsageError: `plan.loop` is "compiled", and the run cannot be compiled as a whole.
    """
    return make_shared_session([plan], agent, [adapter], eval_adapter, [] if saver is None else [saver])


def make_shared_session(
    plans: Sequence[Plan],
    agent: Agent,
    adapters: Sequence[EnvAdapter],
    eval_adapter: EnvAdapter | None = None,
    savers: Sequence[Saver] = (),
) -> Session:
    """Make the session of runs that differ in their seed only, in one program.

    Raises:
        UsageError: as for `make_session`, or the seeds cannot share a program.
    """
    engine = make_engine(plans, agent, adapters)
    plans = [dataclasses.replace(plan, loop=name_loop(engine)) for plan in plans]
    return Session(plans, engine, adapters, eval_adapter, savers)


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
        on_trainer: called with the session before it starts, e.g. to stop it later.
        prepared: what `prepare` returned for the plan; None: it is not prepared yet.

    Yields:
        The events of the run, after they were written to the folder.

    Raises:
        UsageError: the plan is impossible, or the folder is taken. RunError: the run failed.
    """
    options: Any = {"overwrite": overwrite, "trackers": trackers, "tracking": tracking, "prepared": prepared}
    yield from _alone(train_together([plan], [Path(folder)], on_trainer=on_trainer, **options))


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
    """Train plans that differ in their seed only, in one program.

    Every plan gets a run folder of its own; `resume_together` continues them in one program again. An error
    in one run ends all.

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
    _refuse_shards(plan, agent)
    warned = moot_notes(agent.moot_fields(), plan.typed or {})
    own = places if processes.writes() else []
    for place in own:
        folders.refuse_taken(place, overwrite)  # before a lock file is written into it
    with contextlib.ExitStack() as stack:
        adapter, eval_adapter = _open(stack, plan, agent)
        first, changes = adapt_to_images(first, adapter)
        if changes:
            plan, agent, notes = prepare(first)
            notes = changes + notes
        plans = [dataclasses.replace(plan, seed=seed) for seed in seeds]
        adapters = [adapter, *(_open_further(stack, plan, agent) for plan in plans[1:])]
        savers = [partial(folders.save, place) for place in places]
        session = make_shared_session(plans, agent, adapters, eval_adapter, savers)
        if plans[0].start:
            notes = notes + take_over(session, plans[0])
        for place in own:
            stack.enter_context(folders.locked(place, new=True))
        together = {"together": seeds} if len(plans) > 1 else {}
        for plan, place in zip(plans, own, strict=bool(own)):
            plan = dataclasses.replace(plan, loop=session.plan.loop)
            folders.create(place, plan, session.agent, overwrite, together | _name_in_trackers(tracking))
        on_trainer(session)
        yield from _recorded_events(session, places, plans, notes, warned, trackers)


def resume(
    folder: str | Path,
    steps: int | None = None,
    *,
    save: int | None = None,
    empty_replay: bool = False,
    save_shards: bool | None = None,
    trackers: Sequence[str] = (),
    on_trainer: OnTrainer = lambda trainer: None,
) -> Iterator[ev.RunEvent]:
    """Continue the run in a folder from its newest save, or from the start if it never had one.

    If the newest save is damaged, the run goes back to the one before it, which also holds a replay, and a
    note of `Started` says so. Saves that are newer than the one from which the run goes on are moved to
    RUN/aside. A run that shared one program with other seeds goes on alone, and a note says that its last
    digits differ then; `resume_together` continues all of them.

    Args:
        folder: the run folder.
        steps: new total of environment steps; None: the total that the run was started with.
        save: continue from the save of this step; None: from the newest.
        empty_replay: continue with the networks alone. Off-policy agents fill the replay before they learn.
        save_shards: whether each process saves its own rows of the replay from now on. None: as the run did;
            one device of one process writes whole saves.
        trackers: as for `train`; each goes on with the run that it began.
        on_trainer: as for `train`.

    Yields:
        The events of the run, after they were written to the folder.

    Raises:
        UsageError: the run has made these steps already, or has no save of that step. RunError: there is no
            run, none of its saves can be used, or the run failed.
    """
    options: Any = {"save": save, "empty_replay": empty_replay, "save_shards": save_shards}
    options["trackers"] = trackers
    yield from _alone(resume_together([Path(folder)], steps, on_trainer=on_trainer, **options))


def resume_together(
    places: Sequence[Path],
    steps: int | None = None,
    *,
    save: int | None = None,
    empty_replay: bool = False,
    save_shards: bool | None = None,
    trackers: Sequence[str] = (),
    on_trainer: OnTrainer = lambda trainer: None,
) -> Iterator[tuple[int, ev.RunEvent]]:
    """Continue runs that share one program, as `resume` continues one.

    They go on from the newest save that all of them have: a process may have been killed when only some of
    them had saved.

    Args:
        places: the run folder of each seed, in the order of `together` in run.json; or of one run.
        steps, save, empty_replay, save_shards, trackers, on_trainer: as for `resume`.

    Yields:
        The index of a run and one of its events.

    Raises:
        UsageError: as for `resume`. RunError: as for `resume`, or they have no whole save of the same step.
    """
    set_up_jax()
    refuse_missing(trackers)
    for place in places:
        folders.read_record(place)  # refuses a folder without a run before a lock file is written into it
    own = places if processes.writes() else []
    with contextlib.ExitStack() as stack:
        for place in own:
            stack.enter_context(folders.locked(place))
            refuse_links(place)
            remove_leftovers(place)
        chosen = choose_saves(places, save, empty_replay, steps)
        newest = [path for path, _ in chosen]
        begun = [_continue(place, steps, path) for place, path in zip(places, newest, strict=True)]
        records, plans = [record for record, _ in begun], [plan for _, plan in begun]
        notes = [*dict.fromkeys(note for _, why in chosen for note in why)]
        fitted: list[str] = []
        seeds = [plan.seed for plan in plans]
        if others := [str(seed) for seed in sharing(records[0]) if seed not in seeds]:
            those = f"seed{'s' if len(others) > 1 else ''} {', '.join(others)}"
            notes.append(f"it shared one program with {those} and goes on alone: the last digits differ")
        agent = build(plans[0].recipe, plans[0].settings)
        if save_shards is not None:
            plans = [dataclasses.replace(plan, save_shards=save_shards) for plan in plans]
        if save_shards or _is_split(plans[0]):
            _refuse_shards(plans[0], agent)
        made = folders.steps_made(newest[0])
        if newest[0] and not made and steps is not None and plans[0].typed is not None:
            # Saved untrained by `Model.save`: what the user did not give follows from the run's length.
            fits = [prepare(dataclasses.replace(plan, settings=plan.typed or {})) for plan in plans]
            plans, (_, agent, more) = [fit[0] for fit in fits], fits[0]
            fitted = more
            records = [record | to_json(p, agent) for record, p in zip(records, plans, strict=True)]
        adapter, eval_adapter = _open(stack, plans[0], agent)
        adapters = [adapter, *(_open_further(stack, plan, agent) for plan in plans[1:])]
        savers = [partial(folders.save, place) for place in places]
        for made_for, path in zip(adapters, newest, strict=True):
            if path is not None:
                folders.fit(made_for, path)  # before a dataset is read in the order of its keys
        session = make_shared_session(plans, agent, adapters, eval_adapter, savers)
        if not processes.same(made):
            raise Mismatch(
                f"{places[0]}: the processes do not see the same saves, here the newest is of step {made:,}; "
                "give all of them the same folder, on a disk that they share."
            )
        if any(newest):
            notes += folders.load_into(session, *filter(None, newest), empty_replay=empty_replay)
            if changes := folders.list_changes(records[0], folders.origin()):
                notes.append(f"since the run began, {', '.join(changes)}: numbers may differ")
            asides = [
                folders.set_aside(place, path) for place, path in zip(own, newest, strict=bool(own)) if path
            ]
            for aside in filter(None, asides):
                notes.append(f"what is newer than step {made:,} was moved to {aside}")
        else:
            notes.append("there is no save yet: the run starts again")
            if plans[0].start:
                notes = notes + take_over(session, plans[0])
        warned, notes = notes, fitted + notes
        for place, plan, record in zip(own, plans, records, strict=bool(own)):
            went_on: folders.Resumed = {"at": session.env_steps, "of": record["steps"], "notes": notes}
            if len(seeds) > 1:
                went_on["together"] = seeds
            resumed = [*record.get("resumed", []), went_on]
            goes_on = {"steps": plan.steps, "save_shards": plan.save_shards, "resumed": resumed}
            folders.write_record(place, record | goes_on)
        on_trainer(session)
        yield from _recorded_events(session, places, plans, notes, warned, trackers)


def _continue(folder: Path, steps: int | None, newest: Path | None) -> tuple[dict[str, Any], Plan]:
    """Return the record of a run that goes on from the save `newest`, and its plan up to `steps`."""
    record = folders.read_record(folder)
    plan = folders.read_plan(folder)
    folders.refuse_unmakeable(folder, plan)
    if steps is not None:
        plan = dataclasses.replace(plan, steps=steps)
    made = folders.steps_made(newest)
    if (steps or made) < made or not folders.unfinished(folder, steps, newest):
        command = f"qscape resume {shlex.quote(str(folder))}"
        if newest and steps is None and folders.stopped_early(newest):
            raise NothingToDo(
                f"{folder} ended at step {made} by --stop-at or --patience; to continue, ask for more: "
                f"{command} --steps {max(2 * made, record['steps'])}.",
                field="steps",
            )
        if made < record["steps"]:
            raise NothingToDo(f"{folder} has made {made} of {record['steps']} steps; continue: {command}.")
        more = f"{command} --steps {2 * made}"
        raise NothingToDo(
            f"{folder} has made its {made} steps; to continue, ask for more: {more}.", field="steps"
        )
    return record, plan


def _is_split(plan: Plan) -> bool:
    """Return whether several devices hold the replay of a run."""
    return plan.devices > 1 or jax.process_count() > 1


def _refuse_shards(plan: Plan, agent: Agent | OnPolicyAgent) -> None:
    """Raise a UsageError if a run was asked for shards and cannot save its replay in them."""
    if not plan.save_shards:
        return
    if not _is_split(plan):
        raise Conflict(
            "--save-shards is for a replay that several devices hold, by --processes or --devices; here one "
            "does: leave it out, or take --no-save-shards if a file gives it.",
            field="save_shards",
        )
    if isinstance(agent, OnPolicyAgent):
        raise Conflict(
            f"--save-shards saves a replay, and {agent.recipe} has none; leave it out.", field="save_shards"
        )
    load_orbax()


def _alone(events: Iterator[tuple[int, ev.RunEvent]]) -> Iterator[ev.RunEvent]:
    """Yield the events of a session of one run."""
    with contextlib.closing(cast(Generator, events)):
        for _, event in events:
            yield event


def _open(
    stack: contextlib.ExitStack, plan: Plan, agent: Agent | OnPolicyAgent
) -> tuple[EnvAdapter, EnvAdapter | None]:
    """Open the training and evaluation environments of a plan. The stack closes them."""
    adapters = open_adapters(plan, agent)
    stack.callback(close_all, *adapters)
    return adapters


def _open_further(stack: contextlib.ExitStack, plan: Plan, agent: Agent | OnPolicyAgent) -> EnvAdapter:
    """Open the training environments of a further seed, which evaluates in those of the first."""
    adapter = open_adapter(plan, agent)
    stack.callback(close_all, adapter)
    return adapter


def _recorded_events(
    session: Session,
    places: Sequence[Path],
    plans: Sequence[Plan],
    notes: list[str],
    warned: list[str],
    trackers: Sequence[str],
) -> Iterator[tuple[int, ev.RunEvent]]:
    """Yield the session's events after every sink of their seed wrote them.

    `notes`: sentences for the user; `warned`: those among them that are warnings.
    """
    sinks: list[list[Sink]] = []
    begun = time.process_time()
    try:
        for place, plan in zip(places, plans, strict=True):
            sinks.append(_sinks(session, place, plan, trackers) if processes.writes() else [])
        written = [note for of in sinks for sink in of if isinstance(sink, FolderSink) for note in sink.notes]
        notes, warned = [*notes, *written], [*warned, *written]
        if isinstance(session.engine, DatasetEngine):
            warned += session.engine.data.notes
        for k, event in session.seed_events(plans[0].steps):
            for sink in sinks[k]:
                sink(event)
            if isinstance(event, ev.Ended) and processes.writes():
                share = (time.process_time() - begun) / len(places)
                folders.record_end(places[k], event.seconds, share, event.why)
            yield k, _noted(event, notes, warned, sinks[k])
    finally:
        close_all(*(sink for of in sinks for sink in of))
    _refuse_no_update(session)


def _sinks(session: Session, folder: Path, plan: Plan, trackers: Sequence[str]) -> list[Sink]:
    """Open the sinks of a run: its folder and the trackers. Lines of steps beyond the save are dropped."""
    begun = -1 if session.fresh else session.env_steps
    written = FolderSink(folder, begun, probes.probe_columns(plan.probe))
    record = folders.read_record(folder)
    further, known = begin_trackers(trackers, folder, record)
    if further and known != record:
        folders.write_record(folder, known)
    return [written, *further]


def _name_in_trackers(tracking: Tracking | None) -> dict[str, Any]:
    """Return the entry of run.json that says how trackers name a new run; none if nobody said so."""
    return {} if tracking is None else {"tracking": dataclasses.asdict(tracking)}


def _noted(event: ev.RunEvent, notes: list[str], warned: list[str], sinks: Sequence[Sink]) -> ev.RunEvent:
    """Add notes to a `Started` event, and warnings of trackers to a `Logged` event."""
    if isinstance(event, ev.Started):
        return event._replace(notes=[*notes, *event.notes], warnings=[*warned, *event.warnings])
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


def no_update(session: Session) -> str:
    """Return a sentence that says why a run ended without an update; "" if it made some, or has not ended."""
    if session.updates or not session.finished:
        return ""
    base = session.agent.base
    field, _ = base.find_learning_start()
    value = getattr(base, field)
    ended = f"the run ended after {session.env_steps} steps without one update: "
    if getattr(base, "warmup_to_episode_end", False) and session.env_steps > value:
        return (
            f"{ended}the random phase lasts until an episode has ended after base.warmup = {value}, and "
            "updates come with the episodes after that; give it more steps, or episodes a time limit "
            "(max_episode_steps)."
        )
    return (
        f"{ended}none was due after base.{field} = {value}; give it more steps or a smaller --base.{field}."
    )


def _refuse_no_update(session: Session) -> None:
    if why := no_update(session):
        raise NoUpdate(why)
