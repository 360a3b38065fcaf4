"""Agents are made here: a base with the parts of a recipe in its sockets, and with their settings."""

import dataclasses
import functools
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from qscape.agents import onpolicy
from qscape.agents.grammar import nearest, parse, parts_of, register_named, split
from qscape.agents.other_names import difference, ours
from qscape.agents.recipes import BASES, SOCKET_MEANS, Agent, Settings
from qscape.agents.settings import (
    flatten,
    list_overrides,
    merge_settings,
    named_settings,
    set_fields,
    settings_of,
    with_own_discount,
)
from qscape.errors import Conflict, UnknownField, UsageError, WrongValue

# Keywords of `qs.Model` and `qs.Plan` for which other libraries have other names.
KEYWORDS = ("env", "envs", "steps", "eval_every", "eval_episodes")


def agent(recipe: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Agent:
    """`build` for users: imports the parts that the recipe names as `module:Class` first.

    Args:
        recipe: base and parts joined by +, e.g. `td3+sale+lap` or `td3+mypackage.penalty:Penalty`.
        settings: fields by part, e.g. `{"base": {"discount": 0.98}, "lap": {"alpha": 0.6}}`.

    Raises:
        UsageError: an unknown name or field, a part that cannot be imported, or an invalid combination.
    """
    register_named(recipe)
    return build(recipe, settings)


def build(recipe: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Agent:
    """Build the agent of a recipe, e.g. `td3+sale+lap`. It is bound to no task; `Agent.on` binds it.

    Imports parts of installed packages; a part `module:Class` must be registered already. Each agent is built
    once: the same recipe with the same settings returns the same object.

    Args:
        recipe: base and parts joined by +.
        settings: fields by part, e.g. `{"base": {"discount": 0.98}, "lap": {"alpha": 0.6}}`. They win over
            the parts' overrides and the settings of an `Expansion`, which win over the base.

    Raises:
        UsageError: an unknown name or field, or an invalid combination.
    """
    base, names = parse(recipe)
    classes = tuple(parts_of(base)[name] for name in names)  # a notebook may define one again
    settings = settings or {}
    return _build(_Order(recipe, classes, _as_key(settings), settings))


@dataclasses.dataclass(frozen=True)
class _Order:
    """What an agent is built of: two orders are equal if all is equal but the settings, which `key` tells."""

    recipe: str
    classes: tuple[type, ...]
    key: Hashable
    settings: Settings = dataclasses.field(compare=False)


def _as_key(value: Any) -> Hashable:
    """Return settings as a key: values of different types differ, since 1, 1.0 and True are equal in Python.

    Values that cannot be a key have their `repr`; `convert` refuses them all.
    """
    if isinstance(value, Mapping):
        return tuple((name, _as_key(entry)) for name, entry in value.items())
    if isinstance(value, (list, tuple)):
        return (type(value), *map(_as_key, value))
    return type(value), value if isinstance(value, Hashable) else repr(value)


@functools.lru_cache(maxsize=64)
def _build(order: _Order) -> Agent:
    """Build an agent once in a process; see `build`."""
    recipe, settings = order.recipe, order.settings
    agent: Any = (BASES | onpolicy.BASES)[parse(recipe)[0]]
    sockets: dict[str, Any] = {}
    for kind in order.classes:
        _add_to_socket(sockets, kind(), recipe)
    _refuse_defaults(agent, sockets, recipe)
    agent = dataclasses.replace(agent, recipe="+".join(split(recipe)), **sockets)
    _check_settings(agent, settings)
    merged = merge_settings(named_settings(agent), settings)
    agent = dataclasses.replace(
        agent,
        **{slot: _with_settings(part, merged) for slot, part in _filled_sockets(agent).items()},
    )
    given = settings.get("base", {})
    moved = {move.field: move.after for move in list_overrides(agent)}
    base = set_fields(agent.base, "base", given, moved)
    base = with_own_discount(base, given)
    agent = dataclasses.replace(agent, base=base)
    _refuse_conflict(agent)
    return agent


def with_base(agent: Agent, fields: Mapping[str, Any]) -> Agent:
    """Return a built agent with other values of some fields of the base, as if a user had set them.

    Raises:
        UsageError: a field cannot take its value, or the parts do not work with it.
    """
    agent = dataclasses.replace(agent, base=set_fields(agent.base, "base", fields))
    _refuse_conflict(agent)
    return agent


def _refuse_conflict(agent: Agent) -> None:
    """Raise a UsageError if the parts of an agent do not work together."""
    if why := agent.conflict():
        raise Conflict(f"'{agent.recipe}' cannot be: {why}")


def _add_to_socket(sockets: dict[str, Any], part: Any, recipe: str) -> None:
    """Add a part to its socket in `sockets`; raises UsageError if another part fills it."""
    if part.socket == "regulariser":
        sockets["regularisers"] = (*sockets.get("regularisers", ()), part)
    elif part.socket == "modifier":
        sockets["modifiers"] = (*sockets.get("modifiers", ()), part)
    elif part.socket in sockets:
        other = sockets[part.socket].name
        raise Conflict(
            f"'{recipe}' cannot be: {other} and {part.name} both fill one place "
            f"(what {(SOCKET_MEANS | onpolicy.SOCKET_MEANS)[part.socket]}); keep one of them.",
            part=part.name,
        )
    else:
        sockets[part.socket] = part


def _refuse_defaults(base_agent: Agent, sockets: Mapping[str, Any], recipe: str) -> None:
    """Raise a UsageError for a part that the base has by default."""
    for socket, part in sockets.items():
        if type(getattr(base_agent, socket)) is type(part) and not isinstance(part, tuple):
            raise Conflict(
                f"'{part.name}' cannot be added in '{recipe}': {base_agent.recipe} already has it; leave it "
                "out.",
                part=part.name,
            )


def _filled_sockets(agent: Agent) -> dict[str, Any]:
    """Return the sockets of an agent with the parts that fill them."""
    skip = {"recipe", "base", "spec"}
    return {f.name: getattr(agent, f.name) for f in dataclasses.fields(agent) if f.name not in skip}


def _with_settings(part: Any, settings: Mapping[str, Mapping[str, Any]]) -> Any:
    """Set the fields of a part, or of each part in a tuple, by the settings under its name."""
    if isinstance(part, tuple):
        return tuple(_with_settings(p, settings) for p in part)
    return set_fields(part, part.name, settings.get(part.name, {}))


def _check_settings(agent: Agent, settings: Mapping[str, Any]) -> None:
    """Raise a UsageError for settings of a part that the agent does not have, or that are no mapping."""
    for name, fields in settings.items():
        if name == "base" or name in agent.parts:
            if not isinstance(fields, Mapping):
                raise WrongValue(
                    f"Settings of '{name}' are {fields!r}; they must be fields with values.", name
                )
            continue
        known = [*flatten(settings_of(agent))]
        names = ours(name, [*KEYWORDS, *known]) or [n for n in known if n.endswith(f".{name}")]
        if names:
            written = f"{_in_python(names)}{difference(name, names)}"
            raise UnknownField(f"There is no keyword '{name}'; write {written}.", name)
        fits = (
            advise_part(agent.recipe, name)
            if name in parts_of(parse(agent.recipe)[0])
            else nearest(name, ["base", *agent.parts])
        )
        raise UnknownField(f"Settings of '{name}' do not belong to '{agent.recipe}'; {fits}.", name)


def advise_part(recipe: str, part: str) -> str:
    """End an error about settings of a part that a recipe lacks: add it, or why it cannot be added."""
    try:
        build(f"{recipe}+{part}")
    except UsageError as problem:
        return f"leave that out, since {str(problem).partition('; ')[0].rstrip('.')}"
    return f"write {recipe}+{part}"


def _in_python(names: Iterable[str]) -> str:
    """Format fields `part.field` as the keyword arguments that set them, e.g. `base={"discount": ...}`."""
    by_part: dict[str, list[str]] = {}
    for name in names:
        part, _, field = name.rpartition(".")
        by_part.setdefault(part, []).append(field)
    return " and ".join(
        f"{part}={{{', '.join(f'{field!r}: ...' for field in fields)}}}" if part else f"{fields[0]}=..."
        for part, fields in by_part.items()
    )


def changed_fields(agent: Agent, given: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Return the fields of an agent that differ from the defaults, by `part.field`, for the run's label.

    Args:
        agent: the agent, with the settings of a run.
        given: settings that count as defaults, such as those of a preset; None: the recipe's defaults.
    """
    defaults = flatten(settings_of(build(agent.recipe, given)))
    return {name: value for name, value in flatten(settings_of(agent)).items() if defaults[name] != value}
