"""Settings of an agent: fields by part, their types, and whose value of a field wins."""

import contextlib
import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np

from qscape.agents import onpolicy
from qscape.agents.grammar import expand, nearest, parse, split
from qscape.agents.other_names import difference, ours
from qscape.agents.recipes import BASES, EXPANSIONS, Agent, Base, Settings
from qscape.errors import Conflict, UnknownField, UsageError, WrongPart, WrongValue

COUNTED = "warmup", "updates_per_step"  # fields in the unit of `base.counts`


def settings_of(agent: Agent) -> dict[str, dict[str, Any]]:
    """Return all fields of the base and of the parts, by part: the `settings` of run.json."""
    named: dict[str, Any] = {"base": agent.base, **agent.parts}
    found = {name: dataclasses.asdict(part) for name, part in named.items()}
    return {name: fields for name, fields in found.items() if fields}


def flatten(settings: Settings) -> dict[str, Any]:
    """Return the values of settings by `part.field`."""
    return {f"{part}.{field}": value for part, fields in settings.items() for field, value in fields.items()}


def merge_settings(first: Settings, second: Settings) -> dict[str, dict[str, Any]]:
    """Merge two settings; if both have a field, the second wins."""
    both = {part: {**first.get(part, {}), **fields} for part, fields in second.items()}
    return {**{part: dict(fields) for part, fields in first.items()}, **both}


def named_settings(agent: Agent) -> Settings:
    """Return the settings of the `Expansion` that a recipe begins with, for the parts that the agent has.

    A part of the recipe may have taken the place of one of the base. One that has a temperature itself, such
    as `savgo`, gets the settings of the temperature.
    """
    name = split(agent.recipe)[0]
    found = EXPANSIONS[name].settings if name in EXPANSIONS else {}
    known = {part: fields for part, fields in found.items() if part == "base" or part in agent.parts}
    improves = getattr(agent, "policy_loss", None)
    if "soft" in found and improves and improves.has_temperature:
        known[improves.name] = found["soft"]
    return known


class Override(NamedTuple):
    """A field of the base that a part changed; runs print these.

    Attributes:
        field: name of the field.
        before: its value without the part.
        after: the part's value.
        by: name of the part, or of the `Expansion`.
    """

    field: str
    before: Any
    after: Any
    by: str

    def __str__(self) -> str:
        return f"{self.by} sets base.{self.field} = {self.after} (was {self.before})"


def list_overrides(agent: Agent) -> list[Override]:
    """Return all overrides of the base in their order; of two overrides of a field the later one wins.

    They come from parts and, after the parts that it stands for, from the settings of an `Expansion`. A part
    that sets `base.counts` also sets the fields in that unit; what others would set counts environment steps.

    Raises:
        UsageError: a part overrides a field that the base does not have.
    """
    base_name, names = parse(agent.recipe)
    first = split(agent.recipe)[0]
    base: Any = (BASES | onpolicy.BASES)[base_name].base
    moves: list[Override] = []
    moved: dict[str, Any] = {}
    turns: list[tuple[float, str, Mapping[str, Any]]] = [
        (names.index(part.name) if part.name in names else -1, part.name, part.overrides(agent))
        for part in agent.parts.values()
    ]
    turns.append((len(expand(first)) - 1.5, first, named_settings(agent).get("base", {})))
    counter = next((by for _, by, fields in turns if "counts" in fields), None)
    for _, by, fields in sorted(turns, key=lambda turn: turn[0]):
        for field, value in fields.items():
            if counter not in (None, by) and field in COUNTED:
                continue
            if not hasattr(base, field):
                known = [f.name for f in dataclasses.fields(base)]
                raise WrongPart(f"{by} overrides base.{field}; {nearest(field, known)}.", by)
            before = moved.get(field, getattr(base, field))
            if before != value:
                moves.append(Override(field, before, value, by))
                moved[field] = value
    return moves


def set_fields(
    part: Any, name: str, fields: Mapping[str, Any], overrides: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """Return a part (or base) with some of its fields set to other values.

    Args:
        part: a dataclass.
        name: its name in settings, for messages.
        fields: values by field, of Python, JSON, TOML or NumPy.
        overrides: values of further fields, over which `fields` win. All are checked together.

    Raises:
        UsageError: a field is unknown or cannot take its value; the error's `part` and `field` name it.
    """
    known = [f.name for f in dataclasses.fields(part)]
    hints = get_type_hints(type(part))
    values = {}
    for field, value in fields.items():
        if field not in known:
            if names := ours(field, (f"{name}.{other}" for other in known)):
                written = " and ".join(sorted(names))
                hint = f"what others call {field} is {written} here{difference(field, names)}"
            else:
                hint = nearest(field, known)
            raise UnknownField(f"{name} has no field '{field}'; {hint}.", name, field)
        try:
            values[field] = convert(f"{name}.{field}", hints[field], value)
        except UsageError as problem:
            raise problem.saying(str(problem), name, field) from problem
    made = {**overrides, **values}
    try:
        return dataclasses.replace(part, **made) if made else part
    except UsageError as problem:
        raise problem.saying(str(problem), name, _refused_field(part, values, overrides)) from problem


def _refused_field(part: Any, values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str | None:
    """Return the field at fault: the first one without which the part accepts the other values, or None."""
    for field in values:
        with contextlib.suppress(UsageError):
            others = {other: v for other, v in values.items() if other != field}
            dataclasses.replace(part, **{**overrides, **others})
            return field
    return None


def convert(label: str, hint: Any, value: Any) -> Any:
    """Convert a value from JSON, TOML or a caller to the type of a field.

    Args:
        label: the field, for the message.
        hint: its annotation: float, int, bool, str, `T | None`, `Literal[...]` or `tuple[T, ...]`.
        value: the value. Lists become tuples; whole floats become integers where `hint` is int; NumPy's
            numbers become Python's.

    Raises:
        UsageError: the value cannot be converted.
    """
    options = get_args(hint)
    origin = get_origin(hint)
    value = value.item() if isinstance(value, np.generic) else value
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(convert(label, options[0], v) for v in value)
    elif str(origin) == "typing.Literal":
        if value in options:
            return value
        raise WrongValue(f"{label} is {value!r}; it must be one of {', '.join(map(repr, options))}.")
    elif options:  # float | None and the like
        if value is None and type(None) in options:
            return None
        return convert(label, next(o for o in options if o is not type(None)), value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise WrongValue(f"{label} is {value!r}; it must be of type {getattr(hint, '__name__', hint)}.")


def with_own_discount(base: Base, given: Mapping[str, Any]) -> Base:
    """Return the base, with the rule `fixed` if a discount was given: it wins over the rule of a recipe.

    Raises:
        UsageError: the rule that would replace the discount was given too.
    """
    if "discount" not in given or getattr(base, "discount_rule", "fixed") == "fixed":
        return base
    if "discount_rule" in given:
        raise Conflict(
            f"base.discount is {base.discount} and base.discount_rule time_limit, which replaces it; leave "
            "one of them out.",
            "base",
            "discount",
        )
    return dataclasses.replace(base, discount_rule="fixed")
