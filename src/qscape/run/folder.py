"""Run folders: plain files that describe the run, written so that a crash at any moment loses no save.

RUN/run.json            agent, every field of every part, environment, seed, versions, machine, command
RUN/metrics.jsonl       one line per logging interval
RUN/evaluations.csv     step, policy, episode, return, length, success, seconds
RUN/saves/<steps>/      acting state, full state, replay (newest only), environment
RUN/events.out.*        TensorBoard
"""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from qscape import trusted
from qscape.agents import Agent, plugins, register
from qscape.envs import snapshot
from qscape.envs.spaces import fingerprint, refuse_other_table
from qscape.errors import RunError, UsageError
from qscape.run import saves
from qscape.run.loop import Loop
from qscape.run.plan import Plan, from_json, to_json

RECORD = "run.json"
ASIDE = f".{RECORD}.tmp"  # run.json while it is written
LOCK = ".lock"
NEW = ".new"  # `replace` writes the new run here
OLD = ".old"  # `replace` moves the old run here before it deletes it
COMMAND = "QSCAPE_COMMAND"  # environment variable with the user's command line, for workers
PACKAGES = ("jax", "equinox", "optax", "gymnasium", "mujoco", "numpy")
EXTRAS = ("gymnasium-robotics", "ale-py")  # recorded if installed: their rewards differ between versions


def run_folders(path: Path) -> list[Path]:
    """Return the run folders at a path: the path itself, or the folders of the seeds in a group.

    Raises:
        UsageError: the path is no run folder and holds none.
    """
    if (path / RECORD).exists():
        return [path]
    found = sorted(p.parent for p in path.glob(f"*/{RECORD}"))
    if not found:
        if deeper := next(path.glob(f"*/*/{RECORD}"), None) or next(path.glob(f"*/*/*/{RECORD}"), None):
            raise UsageError(
                f"{path} is no run and no group of seeds, but holds some; name one, e.g. "
                f"{deeper.parent.parent}."
            )
        raise UsageError(
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
        raise UsageError(f"{path} holds {len(runs)} runs; name one, e.g. {runs[0]}.")
    return runs[0]


def refuse_taken(folder: Path, overwrite: bool = False) -> None:
    """Raise an error if no new run may be written into a folder.

    Raises:
        UsageError: the folder holds a run and `overwrite` is False, or it holds something else.
    """
    if not folder.is_dir() or all(p.name in (LOCK, ASIDE, NEW, OLD) for p in folder.iterdir()):
        return
    if not (folder / RECORD).exists():
        raise UsageError(f"{folder} exists and is no run; choose another --out.")
    if not overwrite:
        raise UsageError(
            f"{folder} holds a run already; continue it with 'qscape resume {folder}', or add --overwrite."
        )


def create(folder: Path, plan: Plan, agent: Agent, overwrite: bool = False) -> None:
    """Create the folder of a new run and write its run.json.

    Args:
        folder: the run folder; created if it does not exist.
        plan: the completed plan.
        agent: the plan's agent; run.json lists all of its fields.
        overwrite: delete a run that is in the folder.

    Raises:
        UsageError: the folder is taken. RunError: it cannot be written.
    """
    refuse_taken(folder, overwrite)
    try:
        _empty(folder)
    except OSError as problem:
        raise RunError(f"{folder} cannot be emptied ({problem.strerror}); choose another --out.") from problem
    write_record(folder, to_json(plan, agent) | origin())


def _empty(folder: Path) -> None:
    """Delete everything in a folder except its lock; run.json last, since it marks the folder as a run."""
    paths = [p for p in folder.iterdir() if p.name != LOCK] if folder.is_dir() else []
    for path in sorted(paths, key=lambda p: p.name == RECORD):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def replace(folder: Path, trainer: Loop) -> None:
    """Replace the content of a folder by a trainer's run with one save; called by `Model.save`.

    The old content stays in place until the new run is written completely.

    Raises:
        UsageError: the folder holds something that is no run. RunError: it cannot be written.
    """
    refuse_taken(folder, overwrite=True)
    new, old = folder / NEW, folder / OLD
    with locked(folder):
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        plan = dataclasses.replace(trainer.plan, steps=max(trainer.env_steps, 1))
        try:
            write_record(new, to_json(plan, trainer.agent) | origin())
            save(new, trainer, milestone=False)
        except BaseException as problem:
            shutil.rmtree(new, ignore_errors=True)
            if isinstance(problem, OSError):
                raise RunError(f"{folder} cannot be written ({problem.strerror}).") from problem
            raise
        try:  # the old run is deleted only after the new one is in place
            old.mkdir()
            for path in [p for p in folder.iterdir() if p.name not in (LOCK, NEW, OLD)]:
                path.rename(old / path.name)
            for path in new.iterdir():
                path.rename(folder / path.name)
            new.rmdir()
        except OSError as problem:
            raise RunError(f"{folder} cannot be written ({problem.strerror}).") from problem
        shutil.rmtree(old, ignore_errors=True)


def origin() -> dict[str, Any]:
    """Describe where the numbers of a run come from: versions, machine, threads and command."""
    versions = {"python": platform.python_version(), "qscape": importlib.metadata.version("qscape")}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    for name in EXTRAS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "versions": versions,
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "device": jax.devices()[0].device_kind,
        },
        "threads": os.environ.get("NPROC"),
        "command": command(),
    }


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
    """Write run.json atomically: a crash leaves the old file or the new one.

    Raises:
        RunError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / ASIDE
        aside.write_text(json.dumps(record, indent=1) + "\n")
        aside.replace(folder / RECORD)
    except OSError as problem:
        raise RunError(f"{folder} cannot be written ({problem.strerror}); choose another --out.") from problem


def read_record(folder: Path) -> dict[str, Any]:
    """Read run.json, without importing the parts that it names.

    Raises:
        RunError: the file is missing or broken.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        from_json(record)
        dict(record.get("plugins", {}))
    except (OSError, ValueError, TypeError, KeyError) as problem:
        raise RunError(
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
            raise UsageError(f"{folder} was trained with {plugins.missing(name, origin)}", part=name)
    return from_json(record)


def refuse_nameless(folder: Path, plan: Plan) -> None:
    """Raise an error if the run's environment was an object; run.json then holds its class name, not an id.

    Raises:
        UsageError: the environment has to be passed in Python.
    """
    named = {spec.name for spec in gym.registry.values()}
    if plan.env.isidentifier() and plan.env not in named:
        raise UsageError(
            f"{folder} ran in {plan.env}, which no id makes: "
            f"give it in Python, qs.load({str(folder)!r}, env=...)."
        )


def refuse_untrusted(folder: Path, plan: Plan) -> None:
    """Raise an error if the run names code that this process may not import (see `qscape.trusted`).

    Called before the environment and the probes of a run folder are made.

    Raises:
        UsageError: its environment, an argument of that or a probe is such code.
    """
    trusted.refuse_untrusted(trusted.list_code(plan.env, plan.env_args, plan.probe), folder)


LOCK_PATIENCE = 1.0  # seconds to wait for a lock; `in_use` in another process holds it for a moment


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run folder for this process. The system releases the lock however the process ends.

    Raises:
        RunError: another process holds the lock, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK).open("w")
    except OSError as problem:
        raise RunError(f"{folder} cannot be written ({problem.strerror}); choose another --out.") from problem
    with handle:
        until = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as problem:
                if time.monotonic() > until:
                    raise RunError(
                        f"{folder} is in use by another process; wait for it or choose another --out."
                    ) from problem
                time.sleep(0.05)
        yield


def in_use(folder: Path) -> bool:
    """Return whether another process holds the lock of a run folder.

    Raises:
        RunError: the lock file cannot be read.
    """
    try:
        with (folder / LOCK).open() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as problem:
        raise RunError(f"{folder} cannot be read ({problem.strerror}).") from problem
    return False


# --- saves ----------------------------------------------------------------------------------------


def save(folder: Path, trainer: Loop, milestone: bool) -> Path:
    """Write a save of a run; delete the replay of earlier saves, and saves beyond `keep_saves`.

    Args:
        folder: the run folder.
        trainer: the run, between two steps.
        milestone: whether this save is never deleted.

    Returns:
        The folder of the save.

    Raises:
        RunError: the networks hold NaN, or the disk is full. Earlier saves stay.
    """
    if any(
        np.isnan(x).any() for x in jax.tree.leaves(trainer.acting) if jnp.issubdtype(x.dtype, jnp.floating)
    ):
        raise RunError(
            f"{folder}: its networks hold NaN at step {trainer.env_steps}, after {trainer.updates} updates; "
            "earlier saves stay. A smaller learning rate or --base.gradient-clip may help."
        )
    name, place = f"{trainer.env_steps:09d}", folder / "saves"
    shot = trainer.snapshot()
    meta = {
        "qscape": importlib.metadata.version("qscape"),
        "milestone": milestone or _is_milestone(place / name),  # it may replace a save of the same step
        "numbers": trainer.counters(),
        "environment": shot.meta,
        "table": fingerprint(trainer.adapter.spec.table),
        "threads": os.environ.get("NPROC"),
    }
    path = saves.write(place, name, trainer.arrays() | {"environment": shot.arrays}, meta)
    for older in saves.names(place):
        with contextlib.suppress(RunError):  # a damaged old save must not end the run
            if older != name and "replay" in saves.tree_names(place / older):
                saves.drop(place / older, "replay")
    saves.prune(place, trainer.plan.keep_saves, lambda n: _is_milestone(place / n))
    return path


def _is_milestone(path: Path) -> bool:
    try:
        return path.exists() and saves.read_meta(path)["milestone"]
    except RunError:
        return False


def newest_save(folder: Path, tree: str = "acting") -> Path | None:
    """Return the newest save that holds the tree called `tree`, or None.

    Raises:
        RunError: the JSON of a save is damaged, of another program or of a newer version.
    """
    place = folder / "saves"
    for name in reversed(saves.names(place)) if place.exists() else []:
        if tree in saves.tree_names(place / name):
            return place / name
    return None


def steps_made(folder: Path) -> int:
    """Return the steps of the newest save with a replay, from which `resume` continues; 0 without a save."""
    newest = newest_save(folder, "replay")
    return saves.read_meta(newest)["numbers"]["env_steps"] if newest else 0


def unfinished(folder: Path, steps: int | None = None) -> bool:
    """Return whether a run was interrupted or has made fewer than `steps` steps.

    `steps`: a total of environment steps; None: the total that the run was started with.
    """
    newest = newest_save(folder, "replay")
    if newest is None:
        return True
    made = saves.read_meta(newest)["numbers"]
    return not made["finished"] or made["env_steps"] < (steps or read_record(folder)["steps"])


def load_into(trainer: Loop, path: Path) -> list[str]:
    """Restore a save into a trainer that has made no step.

    Returns:
        Notes for the user, such as why the environment starts a new episode.

    Raises:
        RunError: the save is damaged, of another program, or of another agent.
    """
    meta = saves.read_meta(path)
    numbers = meta["numbers"]
    refuse_other_table(trainer.adapter.env_id, meta.get("table"), trainer.adapter.spec.table)
    trees, _ = saves.read(path, trainer.templates(numbers))
    trainer.restore(trees, numbers)
    why = trainer.restore_environments(
        snapshot.Snapshot(saves.read_arrays(path, "environment"), meta["environment"])
    )
    notes = [why] if why else []
    if why:
        trainer.on_environment_restart()
    if meta["threads"] != os.environ.get("NPROC"):
        was, now = meta["threads"] or "all", os.environ.get("NPROC") or "all"
        notes.append(f"saved with NPROC={was}, continued with NPROC={now}: the last digits may differ")
    return notes
