"""Parts of other packages: how they are found, imported and checked.

A part from outside qscape is named in a recipe in one of two ways:

- by its name, where an installed package declares it as an entry point of the group `qscape.parts`
  (`td3+action_change`);
- by its place, `module:Class` (`td3+mypackage.penalty:ActionChange`).

A recipe from a run folder never imports a module. Only `register` imports `module:Class`. It is called for
names that the user typed: in the recipe of a command, of `qs.Model` or `qs.agent`, in `--parts` and in
`qs.register`; and for those of files after `--trust`. Parts that installed packages declare as entry points
are imported for every recipe.

The parts of `qscape.contrib` come in by the same door (`register_contrib`).
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import jax.numpy as jnp

from qscape.errors import (
    NotFound,
    QscapeError,
    Taken,
    Untrusted,
    UsageError,
    WrongPart,
    WrongValue,
    describe,
    describe_import,
)
from qscape.offpolicy import sockets as off_policy
from qscape.onpolicy import sockets as on_policy
from qscape.replay.base import Replay
from qscape.trusted import import_named
from qscape.types import Part

GROUP = "qscape.parts"
OWN = "qscape"  # the origin of its own parts
CONTRIB = "qscape.contrib"
PLACE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # module:Class
NAME = re.compile(r"[a-z][a-z0-9_]*")
# Keys of settings, of `qs.Model` and of studies, and flags of the commands: no part can have these names.
RESERVED = frozenset(
    ("base", "recipe", "env", "id", "seed", "seeds", "seeds_as", "steps", "envs", "env_args",
     "eval_env", "eval_every", "eval_episodes", "log_every", "save_every", "keep_saves",
     "milestones", "probe", "preset", "budgets", "config", "dataset", "from_", "keep_data", "out", "overlap",
     "overwrite", "log", "log_project", "log_group", "log_tags", "log_videos", "loop", "vectorise",
     "history", "action_delay", "observation_delay", "observation_noise", "dropout", "observe_actions",
     "stop_at", "stop_times", "patience", "processes", "join_seconds",
     "devices", "quiet", "parts", "trials", "fields", "ranges", "metric", "workers", "debug", "help")
)  # fmt: skip
LOSSES = {  # by socket, the methods that return a loss and metrics (`learn` returns extra state as well)
    "regulariser": ("critic", "actor", "learn"),
    "policy_loss": ("loss", "learn"),
    "representation": ("penalty", "learn"),
    "selector": ("learn",),
}


def _by_socket(candidates: Iterable[Any]) -> dict[str, type]:
    """Return the candidates that define a socket, by the socket's name."""
    return {cls.socket: cls for cls in candidates if "socket" in getattr(cls, "__dict__", ())}


# By socket, the class that a part must subclass: for off-policy agents, and for on-policy agents.
INTERFACES: tuple[dict[str, type], dict[str, type]] = (
    _by_socket([*vars(off_policy).values(), Replay]),
    _by_socket(vars(on_policy).values()),
)

ORIGINS: dict[str, str] = {}  # by name of a registered part: "mypackage 0.1", or module:Class
PLACES: dict[str, str] = {}  # by module:Class, the name of the part that was registered from there


def register(
    part: type | str,
    tables: tuple[dict[str, type], dict[str, type]],
    taken: Collection[str],
    origin: str = "",
    name: str = "",
) -> type:
    """Check a part and add it to the tables of parts, so that recipes can name it.

    Args:
        part: the class, or its place `module:Class`, which is imported.
        tables: the off-policy and the on-policy parts, by name. The class is added to each table whose agents
            have its socket.
        taken: names of agents, and of the parts that agents have by default.
        origin: the package that it comes from, such as "mypackage 0.1"; "": its place is its origin.
        name: the name that an entry point gives the part, which must be its own; "": any name.

    Returns:
        The class.

    Raises:
        UsageError: the class cannot be imported, is no part, or its name is taken.
    """
    cls = import_class(part, origin) if isinstance(part, str) else part
    place = f"{part.__module__}:{part.__qualname__}" if inspect.isclass(part) else str(part)
    label = f"The part '{name or place}'" + (f" of {origin}" if origin else "")
    if problem := _objection(cls, name):
        raise WrongPart(f"{label} cannot be used: {problem}.", part=place)
    own: Any = cls
    homes = [table for table, fits in zip(tables, _fitting(cls), strict=True) if fits]
    for table in homes if origin == OWN else tables:  # qscape itself has two parts named esa
        other = table.get(own.name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            owner = ORIGINS.get(own.name, OWN)
            raise Taken(
                f"{label} cannot be used: its name '{own.name}' is taken by a part of {owner}; "
                "give it another name.",
                part=own.name,
            )
    if own.name in taken and not any(own.name in table for table in tables):
        raise Taken(
            f"{label} cannot be used: its name '{own.name}' is taken by qscape; give it another name.",
            part=own.name,
        )
    _guard(cls)
    for table in homes:
        table[own.name] = cls
    if origin != OWN:
        ORIGINS[own.name] = origin or place
        PLACES[place] = own.name
    return cls


def register_contrib(tables: tuple[dict[str, type], dict[str, type]]) -> None:
    """Register the parts of `qscape.contrib`; `tables` as for `register`."""
    for cls in contrib_table("PARTS"):
        register(cls, tables, (), OWN)


def contrib_table(name: str) -> Any:
    """Return a table of `qscape.contrib` (PARTS, AGENTS or PRESETS); an empty one where that folder is not.

    Nothing else in qscape knows of that package.
    """
    if importlib.util.find_spec(CONTRIB) is None:
        return ()
    return getattr(importlib.import_module(CONTRIB), name)


def import_class(place: str, origin: str = "") -> type:
    """Import the class at `module:Class`; modules of the current directory are found as well.

    Raises:
        UsageError: the text has another form, or the module or class cannot be imported.
    """
    if not PLACE.fullmatch(place):
        raise WrongValue(
            f"'{place}' is not the place of a part; write module:Class, e.g. mypackage.penalty:Penalty.",
            part=place,
        )
    module, _, attribute = place.partition(":")
    label = f"The part '{place}'" + (f" of {origin}" if origin else "")
    try:
        return getattr(import_named(module), attribute)
    except Exception as problem:
        why = f"{label} cannot be imported {describe_import(problem, place)}."
        raise NotFound(why, part=place) from problem


@functools.cache
def entry_points() -> dict[str, list[importlib.metadata.EntryPoint]]:
    """Return the entry points `qscape.parts` of all installed packages, by name, without importing them."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def register_installed(
    name: str, tables: tuple[dict[str, type], dict[str, type]], taken: Collection[str]
) -> str | None:
    """Register the part that an installed package declares under a name (or at a place `module:Class`).

    Args:
        name: the name, or the place.
        tables, taken: as for `register`.

    Returns:
        The part's name; None if no package declares it.

    Raises:
        UsageError: two packages declare the name, or qscape and a package; or the part cannot be used.
    """
    if ":" in name:
        declared = [point for of in entry_points().values() for point in of if point.value == name]
    else:
        declared = entry_points().get(name, [])
    if not declared:
        return None
    owners = [package_of(point) for point in declared]
    if ORIGINS.get(declared[0].name) == owners[0]:
        return declared[0].name
    if len(declared) > 1:
        raise Taken(
            f"The part '{name}' is declared by {' and by '.join(owners)}; uninstall one of them.", part=name
        )
    part: Any = register(declared[0].value, tables, taken, owners[0], declared[0].name)
    return part.name


def package_of(point: importlib.metadata.EntryPoint) -> str:
    """Return the package of an entry point with its version, such as "mypackage 0.1"."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def places() -> list[str]:
    """Return the places `module:Class` of parts that this process registered by place.

    Worker processes register them as well. Classes of the user's script (`__main__`) are left out, since
    other processes cannot import them.
    """
    known = [place for place, name in PLACES.items() if ORIGINS.get(name) == place]
    return [place for place in known if PLACE.fullmatch(place) and not place.startswith("__main__:")]


def not_loaded(place: str) -> UsageError:
    """Return the error for `module:Class` in a recipe if the part was not registered in this process."""
    return Untrusted(f"The part '{place}' is not loaded: {_how_to_allow(place)}", part=place)


def missing(name: str, origin: str) -> str:
    """Describe a run folder's part that is not available and how to load it: the end of an error."""
    if ":" in origin:
        return f"the part '{name}' ({origin}), which is not loaded: {_how_to_allow(origin)}"
    return f"the part '{name}' of {origin}, which is not installed here; install that package."


def _how_to_allow(place: str) -> str:
    """Return the end of an error that says how to load a part `module:Class`."""
    return (
        "a file that names code does not run it; if you trust this code, "
        f"add --parts {place} or --trust to the command, or call qs.register('{place}') in Python."
    )


def _objection(cls: Any, name: str) -> str | None:
    """Return why a class is no valid part, or None. `name`: as for `register`."""
    if not inspect.isclass(cls) or not issubclass(cls, Part):
        return "it is no subclass of a socket's interface, such as qscape.offpolicy.sockets.Regulariser"
    own: Any = cls
    for field in ("name", "socket"):
        if not isinstance(getattr(own, field, None), str):
            return f"{cls.__name__} lacks `{field}`; write {field}: ClassVar[str] = ..."
    if not NAME.fullmatch(own.name) or own.name in RESERVED:
        kind = "reserved" if own.name in RESERVED else "no lower-case word"
        return f"its name '{own.name}' is {kind}; choose another one, such as my_{own.name.lower()}"
    if name and own.name != name:
        return f"its class has the name '{own.name}'; the entry point must have the same"
    known = INTERFACES[0] | INTERFACES[1]
    if own.socket not in {"modifier", *known}:
        return f"there is no socket '{own.socket}'; there are modifier, {', '.join(known)}"
    if not any(_fitting(cls)):
        kind = known[own.socket]
        return f"what fills the socket '{own.socket}' must be a subclass of {kind.__module__}.{kind.__name__}"
    if "__dataclass_fields__" not in vars(cls) or not own.__dataclass_params__.frozen:
        return f"{cls.__name__} is no frozen dataclass; write @dataclasses.dataclass(frozen=True) above it"
    for field in dataclasses.fields(own):
        if field.default is field.default_factory is dataclasses.MISSING:
            return f"its field '{field.name}' has no default; give it one with qscape.types.setting"
    return None


def _fitting(cls: type) -> tuple[bool, bool]:
    """Return whether off-policy agents have a socket for this class, and whether on-policy agents have."""
    own: Any = cls
    off, on = (table.get(own.socket) for table in INTERFACES)
    fits_off = issubclass(cls, off) if off else own.socket == "modifier"
    if own.socket == "normaliser":  # for on-policy agents the methods are enough, without the base class
        return fits_off, all(hasattr(cls, name) for name in vars(on_policy.Normaliser) if name[0] != "_")
    return fits_off, bool(on) and issubclass(cls, on)


# --- checks while a part works ----------------------------------------------------------------------


def _guard(cls: type) -> None:
    """Wrap the methods of a part: their errors name the part, and results of a wrong shape are refused.

    The methods are replaced in the class, once; methods inherited from qscape are not wrapped. The checks run
    while JAX traces a method, so that compiled programs do not change.
    """
    for owner in cls.__mro__:
        if issubclass(owner, Part) and not owner.__module__.startswith("qscape."):
            for name, method in [*vars(owner).items()]:
                if inspect.isfunction(method) and not hasattr(method, "__wrapped__") and name[0] != "_":
                    setattr(owner, name, _guarded(name, method))


def _guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return the wrapped method; `name` is its name in errors."""

    @functools.wraps(method)
    def checked(self: Any, *args: Any, **options: Any) -> Any:
        try:
            result = method(self, *args, **options)
            problem = next(_wrong_shapes(self, name, args, result), None)
        except QscapeError:
            raise
        except Exception as error:
            why = f"The part '{self.name}' fails in {name}: {describe(error)}."
            raise WrongPart(why, part=self.name) from error
        if problem:
            raise WrongPart(f"The part '{self.name}' is wrong in {name}: {problem}.", part=self.name)
        return result

    return checked


def _wrong_shapes(part: Any, method: str, args: tuple[Any, ...], result: Any) -> Iterator[str]:
    """Yield what is wrong with the result of a part's method, for its error."""
    if method in LOSSES.get(part.socket, ()):
        if result is None and method not in ("learn", "loss"):
            return
        length = 3 if method == "learn" else 2
        if not isinstance(result, tuple) or len(result) != length or not isinstance(result[1], dict):
            wanted = "(loss, metrics, extra)" if method == "learn" else "(loss, metrics), a number and a dict"
            yield f"it must return {wanted}, and returns {type(result).__name__}"
            return
        if jnp.shape(result[0]):
            yield f"its loss has the shape {jnp.shape(result[0])} and must be a scalar; take its mean"
        for name, value in result[1].items():
            if jnp.shape(value):
                yield f"its metric '{name}' has the shape {jnp.shape(value)} and must be a scalar"
    elif (part.socket, method) == ("bootstrap", "value") and len(args) > 1:
        if jnp.shape(result) != jnp.shape(args[1][0]):
            yield f"the value has the shape {jnp.shape(result)} and must have {jnp.shape(args[1][0])}"
    elif method == "overrides" and not isinstance(result, dict):
        yield f"it must return a dict of fields of the base, and returns {type(result).__name__}"
