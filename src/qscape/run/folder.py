"""Run folders: plain files that describe the run, written so that a crash at any moment loses no save.

RUN/run.json            agent, every field of every part, environment, seed, versions, machine, command, time
RUN/metrics.jsonl       one line per logging interval
RUN/evaluations.csv     step, policy, episode, return, length, success, seconds
RUN/saves/<steps>/      acting state, full state, replay (newest two only), environment
RUN/aside/<steps>/      what was newer than the save to which `resume` went back
RUN/events.out.*        TensorBoard
"""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import itertools
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import filelock
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from qscape import trusted
from qscape.agents import Agent, plugins, register
from qscape.data import RECORDED
from qscape.data.dataset import HDF5
from qscape.envs import EnvAdapter, snapshot
from qscape.envs.kept_spaces import refuse_other_spaces
from qscape.envs.spaces import fingerprint, refuse_other_table
from qscape.errors import (
    CannotRead,
    CannotWrite,
    Conflict,
    DamagedSave,
    InUse,
    Mismatch,
    NoSave,
    NotFinite,
    NotFound,
    QscapeError,
    RunError,
    Taken,
    UnmakeableEnv,
    Untrusted,
)
from qscape.run import processes, saves
from qscape.run.engines.base import SavedSeed
from qscape.run.files import delete, refuse_link, sync, write_whole
from qscape.run.plan import REPLAYS, Plan, fill_defaults, from_json, to_json
from qscape.run.session import Session
from qscape.sealed import seal, unseal
from qscape.values import NoValue

RECORD = "run.json"
LOGS = ("metrics.jsonl", "evaluations.csv")
SAVES = "saves"
SET_ASIDE = "aside"
LOCK = ".lock"
NEW = ".new"  # `replace` writes the new run here
OLD = ".old"  # `replace` moves the old run here before it deletes it
COMMAND = "QSCAPE_COMMAND"  # environment variable with the user's command line, for workers
PACKAGES = ("jax", "equinox", "optax", "gymnasium", "mujoco", "numpy")
# Recorded if installed: their rewards differ between versions.
EXTRAS = ("gymnasium-robotics", "ale-py", "gymnax")


class _Tracking(TypedDict):
    """The JSON of `trackers.Tracking`."""

    project: str
    group: str
    tags: list[str]
    videos: NotRequired[bool]
    ids: dict[str, str]


class Resumed(TypedDict):
    """An entry of `resumed` in run.json.

    Attributes:
        at: the step from which the run went on.
        of: the total of steps that it had before.
        notes: what was said then, such as that the environment began a new episode.
        together: the seeds with which it shares one program from there on; absent if it goes on alone.
    """

    at: int
    of: int
    notes: list[str]
    together: NotRequired[list[int]]


class _Origin(TypedDict, total=False):
    """What run.json holds beside the plan: `origin()`, and what runs and versions of qscape add."""

    versions: dict[str, str]
    source: str
    machine: dict[str, Any]
    threads: str | None
    command: str
    date: str
    moved: list[str]
    parts: list[str]
    plugins: dict[str, str]
    together: list[int]
    goals: bool
    saved: bool
    ended_by: str
    imported: str
    tracking: _Tracking
    resumed: list[Resumed]
    seconds: float
    processor_seconds: float


class _Environment(TypedDict):
    """The JSON of an environment's snapshot; `world` where the run holds the environments' states."""

    exact: NotRequired[bool]
    why: NotRequired[str]
    seed: NotRequired[int]
    autoreset: NotRequired[Any]
    episodes: NotRequired[list[int]]
    layers: NotRequired[dict[str, dict[str, Any]]]
    world: NotRequired[bool]


class Meta(TypedDict):
    """The `meta` of a run's saves.

    Attributes:
        qscape: version that wrote the save.
        milestone: whether the save is never deleted.
        numbers: the loop's counters.
        environment: the JSON of the environments' snapshot.
        table: fingerprint of the action table.
        spaces: of an observation and of an action (`qscape.envs.kept_spaces`).
        threads: NPROC; None if it was not set.
    """

    qscape: str
    milestone: bool
    numbers: dict[str, Any]
    environment: _Environment
    table: NotRequired[list[float]]
    spaces: NotRequired[dict[str, Any]]
    threads: str | None


def run_folders(path: Path) -> list[Path]:
    """Return the run folders at a path: the path itself, or the folders of the seeds in a group.

    Raises:
        UsageError: the path is no run folder and holds none.
    """
    for left in (path / OLD, *path.glob(f"*/{OLD}")):
        heal(left.parent)
    if (path / RECORD).exists():
        return [path]
    found = sorted(p.parent for p in path.glob(f"*/{RECORD}"))
    if not found:
        if deeper := next(path.glob(f"*/*/{RECORD}"), None) or next(path.glob(f"*/*/*/{RECORD}"), None):
            raise NotFound(
                f"{path} is no run and no group of seeds, but holds some; name one, e.g. "
                f"{deeper.parent.parent}."
            )
        raise NotFound(
            f"{path} is no run and holds none: there is no {RECORD} in it or in a folder below it."
        )
    return sorted(found, key=lambda p: (not p.name.isdigit(), int(p.name) if p.name.isdigit() else 0, p.name))


def one_run(path: Path) -> Path:
    """Return the run folder at a path; a group with one seed counts as that run.

    Raises:
        UsageError: the path holds no run, or several.
    """
    runs = run_folders(path)
    if len(runs) > 1:
        raise Conflict(f"{path} holds {len(runs)} runs; name one, e.g. {runs[0]}.")
    return runs[0]


def refuse_taken(folder: Path, overwrite: bool = False) -> None:
    """Raise an error if no new run may be written into a folder.

    Raises:
        UsageError: the folder holds a run and `overwrite` is False, it holds something else, or it lies in a
            run, where nothing would find it.
    """
    heal(folder)
    for above in folder.parents[:2]:  # --out RUN or --out RUN/NAME, and in it the folder of the seed
        if (above / RECORD).exists():
            raise Taken(f"{above} is a run itself, and no folder of runs; choose another --out.", field="out")
    ours = (LOCK, NEW, f".{RECORD}.tmp")  # of a process that was killed before it wrote run.json
    if not folder.is_dir() or all(p.name.startswith(ours) for p in folder.iterdir()):
        return
    if not (folder / RECORD).exists():
        raise Taken(f"{folder} exists and is no run; choose another folder.", field="out")
    if not overwrite:
        raise Taken(
            f"{folder} holds a run already; continue it: qscape resume {shlex.quote(str(folder))}, or add "
            "--overwrite.",
            field="out",
        )


def create(
    folder: Path, plan: Plan, agent: Agent, overwrite: bool = False, further: Mapping[str, Any] | None = None
) -> None:
    """Create the folder of a new run and write its run.json.

    Args:
        folder: the run folder; created if it does not exist.
        plan: the completed plan.
        agent: the plan's agent; run.json lists all of its fields.
        overwrite: delete a run that is in the folder.
        further: entries of run.json that no plan has, e.g. `imported`, the library that trained its networks.

    Raises:
        UsageError: the folder is taken. RunError: it cannot be written.
    """
    refuse_taken(folder, overwrite)
    try:
        _empty(folder)
    except OSError as problem:
        raise CannotWrite(
            f"{folder} cannot be emptied ({problem.strerror}); choose another --out."
        ) from problem
    write_record(folder, _describe(plan, agent) | dict(further or {}))


def _describe(plan: Plan, agent: Agent) -> dict[str, Any]:
    """Return what run.json says of a new run; `agent`: bound to its task."""
    has_goals = agent.spec is not None and agent.spec.goal_size is not None
    return to_json(plan, agent) | origin() | ({"goals": True} if has_goals else {})


def _empty(folder: Path) -> None:
    """Delete everything in a folder except its lock; run.json last, since it marks the folder as a run."""
    paths = [p for p in folder.iterdir() if p.name != LOCK] if folder.is_dir() else []
    for path in sorted(paths, key=lambda p: p.name == RECORD):
        delete(path)


def replace(folder: Path, session: Session) -> None:
    """Replace the content of a folder by the run of a session with one save; called by `Model.save`.

    The old content stays in place until the new run is written completely.

    Raises:
        UsageError: the folder holds something that is no run, or several processes share the run. RunError:
            it cannot be written.
    """
    if jax.process_count() > 1:
        raise Conflict(
            "Model.save writes the run of one process, and several share this one; train it by "
            "qscape.run.train(plan, folder) in each, or by qscape train --processes."
        )
    refuse_taken(folder, overwrite=True)
    new, old = folder / NEW, folder / OLD
    with locked(folder):
        plan = dataclasses.replace(session.plan, steps=max(session.env_steps, 1))
        try:
            if new.is_symlink() or new.exists():
                delete(new)
            write_record(new, _describe(plan, session.agent))
            save(new, session, milestone=False)
            old.mkdir()
            _finish_replacing(folder)
        except BaseException as problem:
            if not old.exists():
                shutil.rmtree(new, ignore_errors=True)
            if isinstance(problem, OSError):
                raise CannotWrite(f"{folder} cannot be written ({problem.strerror}).") from problem
            raise


def heal(folder: Path) -> None:
    """Finish a `Model.save` that was interrupted between two renames. Does nothing to other folders.

    Called when a run folder is opened. Its writer, if it still lives, holds the folder's lock.

    Raises:
        RunError: the folder cannot be written.
    """
    if not (folder / OLD).is_dir() or in_use(folder):
        return
    refuse_link(folder / OLD)
    refuse_link(folder / NEW)
    with locked(folder):
        try:
            _finish_replacing(folder)
        except OSError as problem:
            raise CannotWrite(
                f"{folder} holds a run that was saved only in part, and cannot be written "
                f"({problem.strerror}); make it writable."
            ) from problem


def _finish_replacing(folder: Path) -> None:
    """Move the old run to `OLD`, the new one from `NEW` into its place, and delete the old one.

    It starts when the new run is complete and `OLD` exists, and goes on where a killed process stopped.
    """
    new, old = folder / NEW, folder / OLD
    parts = (SAVES, RECORD)  # of a new run, in the order in which they are moved; run.json marks a run
    if all((new / name).exists() for name in parts):  # otherwise nothing of the old run is left in its place
        present = [p for p in folder.iterdir() if p.name not in (LOCK, NEW, OLD)]
        for path in sorted(present, key=lambda p: p.name == RECORD):
            path.rename(old / path.name)
    for name in parts:
        if (new / name).exists():
            (new / name).rename(folder / name)
    sync(folder)
    if new.exists():
        delete(new)
    delete(old)


def origin() -> dict[str, Any]:
    """Describe where the numbers of a run come from: versions, source, machine, threads, command and date.

    Switches of JAX that change what is drawn are properties of the machine, unless they are as usual.
    """
    usual = {"jax_threefry_partitionable": True, "jax_default_prng_impl": "threefry2x32"}
    switches = {name: getattr(jax.config, name, value) for name, value in usual.items()}
    return origin_of_code() | {
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "device": jax.devices()[0].device_kind,
            **{name: value for name, value in switches.items() if value != usual[name]},
        },
        "threads": os.environ.get("NPROC"),
        "command": command(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def origin_of_code() -> dict[str, Any]:
    """Return the versions of packages by name, and the checksum of qscape's own files."""
    versions = {"python": platform.python_version(), "qscape": importlib.metadata.version("qscape")}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    for name in EXTRAS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"versions": versions, "source": _source()}


def list_changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a phrase on each version and each property of the machine that differs between two records."""
    missing = "not recorded"
    old, new = ({**r.get("versions", {}), **r.get("machine", {})} for r in (was, now))
    return [
        f"{name} was {old.get(name, missing)} and is {new.get(name, missing)}"
        for name in [*old, *(name for name in new if name not in old)]
        if old.get(name) != new.get(name)
    ]


@functools.cache
def _source() -> str:
    """Return the SHA-256 of qscape's own files: it tells changes that the version does not."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def record_end(folder: Path, seconds: float, processor_seconds: float, why: str = "") -> None:
    """Add to run.json how long a run took; called when it ends, also after an interrupt.

    Args:
        folder: the run folder.
        seconds: duration of the run, with earlier processes.
        processor_seconds: time of all cores in this process; added to that of earlier processes.
        why: the rule by which an evaluation ended it early, or "".

    Raises:
        RunError: run.json cannot be read or written.
    """
    record = read_record(folder)
    record.pop("ended_by", None)
    spent = record.get("processor_seconds", 0.0) + processor_seconds
    times = {"seconds": round(seconds, 3), "processor_seconds": round(spent, 3)}
    write_record(folder, record | times | ({"ended_by": why} if why else {}))


def command() -> str:
    """Return the command line that the user typed, quoted for a shell."""
    return os.environ.get(COMMAND) or shlex.join(["qscape", *sys.argv[1:]])


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write run.json with its checksum: a crash leaves the old file or the new one.

    Raises:
        RunError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / RECORD, seal(record))
    except OSError as problem:
        raise CannotWrite(
            f"{folder} cannot be written ({problem.strerror}); choose another folder."
        ) from problem


def read_record(folder: Path) -> dict[str, Any]:
    """Read run.json and check its types, without importing the parts that it names.

    Raises:
        RunError: the file is missing, damaged, or of another form.
    """
    heal(folder)
    try:
        record = fill_defaults(unseal((folder / RECORD).read_bytes()))
        record["label"] = from_json(record).label or record["recipe"]
        hints = _Origin.__annotations__
        check_type({name: record[name] for name in hints if name in record}, _Origin)
    except (OSError, ValueError, TypeError, KeyError, TypeCheckError, QscapeError) as problem:
        raise CannotRead(
            f"{folder / RECORD} cannot be read ({problem}): this is no run, or a broken one."
        ) from problem
    return record


def read_plan(folder: Path) -> Plan:
    """Read the plan of the run in a folder. A part `module:Class` is imported only after `trusted.trust()`.

    Raises:
        UsageError: the run has a part of another package, and that is neither registered in this process nor
            installed. RunError: run.json is missing or broken.
    """
    record = read_record(folder)
    for name, origin in record.get("plugins", {}).items():
        if name not in plugins.ORIGINS and name not in plugins.entry_points():
            if ":" in origin and trusted.trusts_everything():
                register(origin)
                continue
            raise Untrusted(f"{folder} was trained with {plugins.missing(name, origin)}", part=name)
    return from_json(record)


def refuse_unmakeable(folder: Path, plan: Plan) -> None:
    """Raise an error if this process cannot or may not make the environment and the probes of a run.

    Called before they are made.

    Raises:
        UsageError: the environment was an object, so that run.json holds its class name and no id; or the
            environment, an argument of it or a probe is code that this process may not import (see
            `qscape.trusted`).
    """
    named = {spec.name for spec in gym.registry.values()}
    if plan.env.isidentifier() and plan.env not in named:
        raise UnmakeableEnv(
            f"{folder} ran in {plan.env}, which no id makes: "
            f"give it in Python, qs.load({str(folder)!r}, env=...)."
        )
    if unknown := [name for name, value in plan.env_args.items() if isinstance(value, NoValue)]:
        raise UnmakeableEnv(
            f"{folder} ran with {unknown[0]} = {plan.env_args[unknown[0]].text}, which no file holds: "
            f"give its environment in Python, qs.load({str(folder)!r}, env=...)."
        )
    trusted.refuse_untrusted(trusted.list_code(plan.env, plan.env_args, plan.probe), folder)


LOCK_PATIENCE = 1.0  # seconds to wait for a lock
LOOK_PATIENCE = 0.05  # seconds to wait before a folder counts as in use: another `in_use` holds it for less


@contextlib.contextmanager
def locked(folder: Path, new: bool = False) -> Iterator[None]:
    """Lock a run folder for this process. The system releases the lock however the process ends.

    Args:
        folder: the run folder.
        new: whether a command writes something new there, for which its --out can name another folder.

    Raises:
        RunError: another process holds the lock, its file is a link, or the folder cannot be written.
    """
    refuse_link(folder / LOCK)
    other = "choose another --out" if new else ""
    lock = filelock.FileLock(folder / LOCK, thread_local=False)  # does not follow links either
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_PATIENCE)
    except filelock.Timeout as problem:
        wait = f"wait for it, or {other}" if new else "wait until it ends"
        raise InUse(f"{folder} is in use by another process; {wait}.") from problem
    except OSError as problem:
        why = f"{folder} cannot be written ({problem.strerror}); {other or 'make it writable'}."
        raise CannotWrite(why) from problem
    try:
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Return whether another process holds the lock of a run folder.

    False for a folder whose lock this user may not open: then nothing else may be written there either.
    """
    if not (folder / LOCK).is_file():
        return False
    try:
        with filelock.FileLock(folder / LOCK, timeout=LOOK_PATIENCE, poll_interval=0.01, thread_local=False):
            return False
    except filelock.Timeout:
        return True
    except OSError:
        return False


# --- saves ----------------------------------------------------------------------------------------


def save(folder: Path, session: Session, milestone: bool, seed: int = 0) -> Path:
    """Write a save of a run; delete the replay of all but the newest two, and saves beyond `keep_saves`.

    Milestones stay, and saves that cannot be read. Of several processes that share a run, all call this
    together, and process 0 writes; shards of the replay are written by all.

    The lines of the log that precede the save are on the disk before it is.

    Args:
        folder: the run folder.
        session: the run, between two steps.
        milestone: whether this save is never deleted.
        seed: index of the seed, if the session holds several.

    Returns:
        The folder of the save.

    Raises:
        RunError: the networks hold NaN, or the disk is full. Earlier saves stay.
    """
    acting = session.learner.policies(seed)["current"]
    if any(np.isnan(x).any() for x in jax.tree.leaves(acting) if jnp.issubdtype(x.dtype, jnp.floating)):
        raise NotFinite(
            f"{folder}: its networks hold NaN at step {session.env_steps}, after {session.updates} updates; "
            "earlier saves stay. A smaller learning rate or --base.gradient-clip may help."
        )
    name, place = f"{session.env_steps:09d}", folder / SAVES
    content = session.save(seed)
    if not processes.writes():
        saves.join_in(place, name, content.arrays)
        return place / name
    meta = {
        "qscape": importlib.metadata.version("qscape"),
        "milestone": milestone or _is_milestone(place / name),  # it may replace a save of the same step
        "numbers": content.counters,
        "environment": content.environment.meta,
        "table": fingerprint(session.adapter.spec.table),
        **_keep_spaces(session),
        "threads": os.environ.get("NPROC"),
    }
    for log in LOGS:
        with contextlib.suppress(FileNotFoundError):
            sync(folder / log)
    trees = {**content.arrays, "environment": content.environment.arrays}
    path = saves.write(place, name, trees, meta, shared=["environment"])
    for older in saves.names(place)[: -min(REPLAYS, session.plan.keep_saves)]:
        with contextlib.suppress(RunError):  # a damaged old save must not end the run
            saves.drop(place / older, "replay")
    saves.prune(place, session.plan.keep_saves, lambda n: _is_milestone(place / n))
    if (folder / RECORD).exists() and not (record := read_record(folder)).get("saved"):
        write_record(folder, record | {"saved": True})
    return path


def _keep_spaces(session: Session) -> dict[str, Any]:
    """Return the entry of a save on the spaces of a run; none on a file that does not say them."""
    plan = session.plan
    unknown = plan.env == RECORDED and plan.dataset.endswith(HDF5)
    return {} if unknown else {"spaces": session.adapter.spaces}


def _is_milestone(path: Path) -> bool:
    try:
        return path.exists() and read_meta(path)["milestone"]
    except RunError:
        return True  # it may have been one; what cannot be read is not deleted


def read_meta(path: Path) -> Meta:
    """Read the `meta` of a run's save.

    Raises:
        RunError: the JSON of the save is damaged, of another program or of a newer version.
    """
    meta = saves.read_meta(path)
    try:
        check_type(meta, Meta, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        numbers = meta["numbers"]
        check_type(numbers["finished"], bool)
        for name in ("env_steps", "updates"):
            _check_like(numbers[name], 0, name)
    except (KeyError, ValueError, TypeCheckError) as problem:
        raise DamagedSave(f"{path / saves.RECORD} is damaged ({problem}); use another save.") from problem
    return cast(Meta, meta)


def _check_like(value: Any, like: Any, name: str) -> None:
    """Raise a ValueError if a value from JSON has another form than `like`, or is no possible count.

    A list may have any length; its entries are numbers. Where `like` is None, for "none yet", the value may
    be a number too.
    """
    if like is None:
        if value is not None:
            _check_like(value, 0.0, name)
    elif isinstance(like, dict):
        if not isinstance(value, dict) or value.keys() != like.keys():
            raise ValueError(f"{name} has other entries than {', '.join(like)}")
        for key in like:
            _check_like(value[key], like[key], f"{name}.{key}")
    elif isinstance(like, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} is no list")
        for entry in value:
            _check_like(entry, 0.0, f"an entry of {name}")
    elif isinstance(like, bool) or isinstance(value, bool):
        if type(value) is not type(like):
            raise ValueError(f"{name} is {value!r}")
    elif isinstance(like, int):
        # Counters of a schedule may be fractions, and older versions rounded some to just below 0.
        kind, least = (int | float, -1e-6) if ".schedule." in name else (int, 0)
        if not isinstance(value, kind) or not least <= value < (2**63 if ".due." in name else 2**31):
            raise ValueError(f"{name} is {value!r}")
    elif not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}")


def newest_save(folder: Path, tree: str = "acting") -> Path | None:
    """Return the newest save that holds the tree called `tree`, or None.

    Raises:
        RunError: a save that is newer has no save.json, or its JSON is damaged, of another program or of a
            newer version.
    """
    for path in _newest_first(folder):
        if tree in _tree_names(path):
            return path
    return None


def _tree_names(path: Path) -> list[str]:
    """Return the names of a save's trees; raises RunError if it cannot be read."""
    if not (path / saves.RECORD).exists():
        raise DamagedSave(f"{path} has no {saves.RECORD}, so it is no complete save; move it elsewhere.")
    return saves.tree_names(path)


def no_save(folder: Path, which: str = "yet") -> RunError:
    """Return the error for a run that has no save `which` could be used."""
    has_none = f"{folder} has no save {which}"
    if in_use(folder):
        return NoSave(f"{has_none}; it is being trained, so wait until it saves.")
    if lost_saves(folder):
        return _lost(folder)
    return NoSave(f"{has_none}; continue training first: qscape resume {shlex.quote(str(folder))}.")


def lost_saves(folder: Path) -> bool:
    """Return whether a run has saved, and has no saves now: they were deleted, or left out of an archive."""
    return not _newest_first(folder) and bool(read_record(folder).get("saved"))


def _lost(folder: Path, why: str = "") -> RunError:
    """Return the error for a run that had saves, none of which can be used."""
    seed = read_record(folder)["seed"]
    begin = f"qscape train --config {shlex.quote(str(folder / RECORD))} --seeds {seed} --out NEW"
    return NoSave(f"{why or f'{folder} has lost its saves.'} Nothing was changed. To begin again: {begin}.")


def _has_networks(path: Path) -> bool:
    """Return whether a save is whole except for its replay."""
    with contextlib.suppress(RunError):
        read_meta(path)
        saves.check(path, skip=("replay",))
        return True
    return False


def _newest_first(folder: Path) -> list[Path]:
    """Return the folders of saves, also of damaged ones, the newest first."""
    return [folder / SAVES / name for name in reversed(saves.folder_names(folder / SAVES))]


def resumable_saves(folder: Path, empty_replay: bool = False) -> Iterator[Path]:
    """Yield the saves that can be read and have a replay, the newest first. Their arrays are not read.

    `empty_replay`: also those without a replay.
    """
    for path in _newest_first(folder):
        with contextlib.suppress(RunError):
            if (empty_replay or "replay" in _tree_names(path)) and read_meta(path):
                yield path


def resumable_save(folder: Path) -> Path | None:
    """Return the newest save that can be read and has a replay, or None. Its arrays are not read."""
    return next(resumable_saves(folder), None)


def choose_save(
    folder: Path, step: int | None = None, empty_replay: bool = False, steps: int | None = None
) -> tuple[Path | None, list[str]]:
    """Choose the save from which a run goes on: the newest one that is whole and has a replay.

    All of its bytes are read and compared with their checksums.

    Args:
        folder: the run folder.
        step: take the save of this step instead of the newest; None: the newest.
        empty_replay: also take a save without a replay.
        steps: the new total of steps that was asked for, which a command in an error repeats; None: none was.

    Returns:
        The save, or None if the run has not saved yet. A sentence for each newer save that was passed over.

    Raises:
        UsageError: there is no save of this step. RunError: no save is usable, though the run had some, or
            one is of a newer version.
    """
    found, notes = _newest_first(folder), []
    if step is not None:
        there = [str(int(path.name)) for path in reversed(found)]
        found = [path for path in found if int(path.name) == step]
        if not found:
            raise NotFound(
                f"{folder} has no save of step {step}; it has {', '.join(there) or 'none'}.", field="save"
            )
    for path in found:
        try:
            if not empty_replay and "replay" not in _tree_names(path):
                raise NoSave(f"{path} has no replay.")
            read_meta(path)
            saves.check(path, skip=("replay",) if empty_replay else ())
            return path, [f"{why} The run goes back to the save of step {int(path.name)}." for why in notes]
        except saves.OtherFormatError:
            raise
        except RunError as problem:
            notes.append(str(problem))
    if not found and not read_record(folder).get("saved"):
        return None, []
    why = notes[0] if notes else ""
    if not empty_replay and any(map(_has_networks, found)):
        flags = "".join(f" --{name} {n}" for name, n in (("steps", steps), ("save", step)) if n is not None)
        command = f"qscape resume {shlex.quote(str(folder))}{flags} --empty-replay{trusted.flag()}"
        remedy = f"To go on with the networks alone: {command}."
        raise DamagedSave(f"{why} Nothing was changed. {remedy}")
    raise _lost(folder, why)


def set_aside(folder: Path, path: Path) -> Path | None:
    """Move the saves that are newer than `path` to RUN/aside/<its step>, beside copies of the logs.

    Called before a run goes on from `path`, which overwrites them.

    Returns:
        The folder that they are in now, or None if there are none.

    Raises:
        RunError: the folder cannot be written.
    """
    newer = [other for other in _newest_first(folder) if int(other.name) > int(path.name)]
    if not newer:
        return None
    names = itertools.chain([path.name], (f"{path.name}-{n}" for n in itertools.count(2)))
    place = next(p for name in names if not (p := folder / SET_ASIDE / name).exists())
    try:
        place.mkdir(parents=True)
        for log in LOGS:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(folder / log, place / log)
        for other in newer:
            other.rename(place / other.name)
    except OSError as problem:
        raise CannotWrite(f"{folder} cannot be written ({problem.strerror}).") from problem
    return place


def steps_made(path: Path | None) -> int:
    """Return the steps of a save, from which `resume` continues; 0 without a save."""
    return read_meta(path)["numbers"]["env_steps"] if path else 0


def stopped_early(path: Path) -> bool:
    """Return whether an evaluation ended the run of a save before its steps were made."""
    numbers = read_meta(path)["numbers"]
    return numbers["finished"] and bool(numbers.get("judge", {}).get("stopped"))


def unfinished(folder: Path, steps: int | None = None, path: Path | None = None) -> bool:
    """Return whether a run was interrupted or has made fewer than `steps` steps.

    One that an evaluation ended early is finished, unless `steps` asks for more.

    Args:
        folder: the run folder.
        steps: a total of environment steps; None: the total that the run was started with.
        path: the save from which it would go on; None: the newest one that has a replay.
    """
    newest = path or resumable_save(folder)
    if newest is None:
        return True
    made = read_meta(newest)["numbers"]
    if steps is None and stopped_early(newest):
        return False
    return not made["finished"] or made["env_steps"] < (steps or read_record(folder)["steps"])


def fit(adapter: EnvAdapter, path: Path, other_spaces: bool = False) -> None:
    """Prepare an adapter, before its first reset, for the networks of a save.

    `other_spaces`: whether the environment may have other spaces than that of the training.

    Raises:
        UsageError: the environment has other spaces or another action table than that of the training.
        RunError: the save cannot be read.
    """
    meta = read_meta(path)
    if (kept := meta.get("spaces")) is not None:
        with _damage(path):
            adapter.arrange(kept)
            if not other_spaces:
                refuse_other_spaces(adapter.env_id, kept, adapter.spaces)
    refuse_other_table(adapter.env_id, meta.get("table"), adapter.spec.table)


def _refuse_other_number(path: Path, meta: Meta, session: Session) -> None:
    """Raise a UsageError if a run goes on in another number of environments, whose arrays are others."""
    there, here = len(meta["environment"].get("episodes", [])), session.adapter.envs
    if there and there != here and session.adapter.jax_env is None:
        run = shlex.quote(str(path.parents[1]))
        raise Mismatch(
            f"{path} is of {there} environments side by side, and here there are {here}: its replay and its "
            f"episodes fit {there} alone. Give {there}, or begin a run in {here} with its networks: qscape "
            f"train {session.plan.recipe} --from {run} --env {session.adapter.env_id} --envs {here}."
        )


def load_into(
    session: Session, *paths: Path, empty_replay: bool = False, other_spaces: bool = False
) -> list[str]:
    """Restore saves into a session that has made no step.

    Args:
        session: the run.
        paths: the save of each seed, all of the same step.
        empty_replay: leave the replay of the saves out.
        other_spaces: as for `fit`.

    Returns:
        Notes for the user, such as why the environment starts a new episode.

    Raises:
        UsageError: the environments have other spaces, or another number than in training.
        RunError: a save is damaged, of another program, or of another agent.
    """
    own, read, notes = session.counters(), [], []
    for path in paths:
        meta = read_meta(path)
        numbers = {name: value for name, value in meta["numbers"].items() if name in own}
        for adapter in session.adapters:
            fit(adapter, path, other_spaces)
        _refuse_other_number(path, meta, session)
        environment = saves.read_arrays(path, "environment")
        with _damage(path):
            _check_like(numbers, own, "numbers")
            templates = session.engine.templates(numbers)
            if empty_replay:
                del templates["replay"]
            trees, _ = saves.read(path, templates)
        shot = snapshot.Snapshot(environment, cast(Any, meta["environment"]))
        read.append(SavedSeed(trees, numbers, shot))
        if meta["threads"] != os.environ.get("NPROC"):
            was, now = meta["threads"] or "all", os.environ.get("NPROC") or "all"
            notes.append(f"saved with NPROC={was}, continued with NPROC={now}: the last digits may differ")
    with _damage(paths[0]):
        return [*session.restore(read), *dict.fromkeys(notes)]


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what damaged numbers and arrays of a save raise into a RunError."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError) as problem:
        raise DamagedSave(f"{path} is damaged ({problem}); use another save.") from problem
