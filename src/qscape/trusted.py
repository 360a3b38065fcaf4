"""Which modules a file may name.

A run folder, a dataset or a study file may come from somebody else. It names its environment, its parts and
its probes, and `module:Name` among them is code. A file alone never makes qscape import a module. It may name

- what the user named in this process, on the command line or with `trust`;
- a module that is imported already, since nothing is imported then;
- a plug-in: a module that an installed package declares for qscape or for Gymnasium;
- anything, once the user has said so: `--trust`, or `trust("*")`.

What may be named is imported by `import_named`, which looks in the current folder as well. For the
classes that a flag names, `import_class` calls it.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from qscape.errors import Conflict, NotFound, UnknownName, Untrusted, WrongValue, describe_import

GROUPS = ("qscape.parts", "gymnasium.envs")  # entry points of plug-ins
PLUGINS = ("gymnasium_robotics", "ale_py")  # packages of environments that qscape has extras for
PLACE = re.compile(r"[A-Za-z_][\w.]*:\w[\w./-]*")  # an argument that names code

EVERYTHING = "*"

_places: set[str] = set()
_parts: list[str] = []


def trust(*places: str) -> None:
    """Allow files to name code, in this process and in its workers.

    Call it before a run is loaded that names a module of yours: `qs.trust("mypackage.walk:Walk-v0")`.

    Args:
        places: what files may name, such as `module:Id`; "*" allows every module.
    """
    _places.update(places)


def trusts_everything() -> bool:
    """Return whether files may name every module."""
    return EVERYTHING in _places


def trusted_places() -> list[str]:
    """Return the places that were passed to `trust`, for worker processes."""
    return sorted(_places)


def keep_parts(*places: str) -> None:
    """Remember the places that `--parts` named, for `parts_flag`."""
    _parts.extend(place for place in places if place not in _parts)


def parts_flag() -> str:
    """Return what a command needs for the parts of this process: " --parts module:Class", or ""."""
    return f" --parts {','.join(_parts)}" if _parts else ""


def flag() -> str:
    """Return what a command needs that continues what this process does, with " --trust" if it has code."""
    return parts_flag() + (" --trust" if _places else "")


def list_code(env: str, env_args: Mapping[str, Any], probe: Iterable[str]) -> Iterator[str]:
    """Yield what names code among an environment, its arguments and the probes of a run.

    An environment may take an argument for the id of another one, and Gymnasium imports what stands before a
    colon before it looks at the rest. So malformed places count too.
    """
    yield from (name for name in (env, *probe) if ":" in name)
    yield from _places_in(env_args)


def refuse_untrusted(places: Iterable[str], file: object) -> None:
    """Raise an error if a file names code that it may not name. Nothing is imported.

    Args:
        places: what the file names, such as `module:Id`.
        file: the file or folder, for the error.

    Raises:
        UsageError: the user has not allowed one of the places.
    """
    for place in places:
        module = place.partition(":")[0]
        if not (trusts_everything() or place in _places or module in sys.modules or module in _plugins()):
            raise Untrusted(
                f"{file} names {place}, and a file does not make qscape import a module: if you trust that "
                f"code, add --trust to the command, or call qs.trust({place!r}) in Python."
            )


def import_named(module: str) -> ModuleType:
    """Return a module that the user named or trusts; one that Python does not find, of the current folder.

    So `module:Name` works beside `module.py`. Other imports never look there, neither those of installed
    modules nor those that a file asks for.

    Raises:
        Exception: what the module raises; ModuleNotFoundError if there is none.
    """
    here = os.getcwd()
    if module in sys.modules or _is_importable(module) or here in sys.path:
        return importlib.import_module(module)
    sys.path.append(here)
    try:
        importlib.invalidate_caches()  # the file may be newer than the caches of the import system
        return importlib.import_module(module)
    finally:
        sys.path.remove(here)


def check_class_names(flag: str, names: Sequence[str], known: Iterable[str]) -> None:
    """Refuse names that are neither known nor `module:Class`, without importing anything.

    Args:
        flag: the flag that they were given to, without its dashes.
        names: the names.
        known: those of qscape's own classes.

    Raises:
        UsageError: a name is unknown or given twice.
    """
    for name in names:
        if not name.isprintable():
            raise WrongValue(f"--{flag} {name!r}: a name holds no control characters.", field=flag)
        if name not in known and ":" not in name:
            raise UnknownName(
                f"--{flag} {name} is unknown; choose {', '.join(known)}, or your own module:Class.",
                field=flag,
            )
    if len(set(names)) < len(names):
        raise Conflict(f"--{flag} {' '.join(names)}: name each once.", field=flag)


def import_class(flag: str, place: str) -> Any:
    """Return what a flag names as `module:Class`.

    Raises:
        UsageError: there is no such module or class.
    """
    module, _, attribute = place.partition(":")
    try:
        return getattr(import_named(module), attribute)
    except Exception as problem:  # a module of the user's may raise anything
        raise NotFound(
            f"--{flag} {place} cannot be loaded {describe_import(problem, place)}.", field=flag
        ) from problem


def _places_in(value: Any) -> Iterator[str]:
    """Yield the strings in nested arguments that name code."""
    if isinstance(value, str):
        if PLACE.fullmatch(value) or (value.find(":") > 0 and _is_importable(value.partition(":")[0])):
            yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _places_in(pair)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _places_in(item)


def _is_importable(module: str) -> bool:
    """Return whether there is a module of this name, without importing it. For C:/data there is none."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):  # of a module without a specification, which is imported already
        return True


@functools.cache
def _plugins() -> frozenset[str]:
    """Return the modules of plug-ins that are installed."""
    points = [point for group in GROUPS for point in importlib.metadata.entry_points(group=group)]
    return frozenset([*PLUGINS, *(point.module for point in points)])
