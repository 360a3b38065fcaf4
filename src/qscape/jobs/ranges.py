"""The ranges of a hyperparameter search: those that the fields define themselves, or those of a TOML file.

"base.discount" = {low = 0.9, high = 0.999}
"lap.alpha" = {choices = [0.2, 0.4, 0.6]}
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qscape.agents import PARTS, Agent, flatten, nearest, onpolicy, settings_of
from qscape.errors import Conflict, MissingArgument, NothingToDo, UnknownField, UsageError
from qscape.jobs.toml import Source, Where
from qscape.run.plan import Plan, prepare


class Range(NamedTuple):
    """The values of one field that a search tries: `choices`, or numbers from `low` to `high`.

    Attributes:
        field: the field, as `part.field`.
        low, high: bounds, both included; None with choices.
        log: whether the logarithm is drawn uniformly.
        choices: the values; empty for a range of numbers.
    """

    field: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the field is searched in whole numbers."""
        return isinstance(self.low, int)

    def holds(self, value: Any) -> bool:
        """Return whether a value lies in the range."""
        if self.choices:
            return value in self.choices
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high  # type: ignore[operator]

    def to_json(self) -> dict[str, Any]:
        """Return the range as the value of its field in a TOML file."""
        if self.choices:
            return {"choices": json.loads(json.dumps(self.choices))}
        return {"low": self.low, "high": self.high} | ({"log": True} if self.log else {})


def find_ranges(plan: Plan, fields: Sequence[str] = (), file: Path | None = None) -> list[Range]:
    """Find the ranges of a search.

    Args:
        plan: the run to tune; the fields in its settings are fixed.
        fields: the fields to search, as `part.field`. Empty, and no file: all fields that define a range, are
            not fixed, and have a value in their range (SAC's exploration noise is off and so not searched),
            without those that do nothing in the recipe, those whose range it refuses, and a discount that
            follows from the time limit.
        file: TOML with ranges of further fields, or other ranges of these; None: no file.

    Raises:
        UsageError: an unknown field, a field that is fixed or has no range, or an invalid range.
    """
    agent = prepare(plan)[1]
    present, own = flatten(settings_of(agent)), _own_ranges(agent)
    fixed = {*flatten(plan.settings)}
    found: dict[str, Range] = {}
    if not fields and file is None:
        moot = {*agent.moot_fields()}
        if present.get("base.discount_rule") == "time_limit":
            moot.add("base.discount")
        free = {n: r for n, r in own.items() if n not in fixed | moot and r.holds(present[n])}
        found = {n: r for n, r in free.items() if _why_refused(plan, r) is None}
    listed = dict(_from_file(plan, file, present, fixed)) if file else {}
    for name in fields:
        if problem := _refusal(name, agent, present, fixed):
            raise UnknownField(f"--fields {name}: {problem}.")
        if name not in own and name not in listed:
            raise MissingArgument(
                f"--fields {name}: it has no range of its own; give one with --ranges, in a TOML file: "
                f'"{name}" = {{low = ..., high = ...}} or {{choices = [...]}}.',
                field="fields",
            )
        if name in own and name not in listed:
            if problem := _why_refused(plan, own[name]):
                raise Conflict(f"--fields {name}: {problem}")
            found[name] = own[name]
    found |= listed
    if not found:
        raise NothingToDo(
            f"No field of {plan.recipe} is left to search; name some with --fields or --ranges."
        )
    return [*found.values()]


def _own_ranges(agent: Agent) -> dict[str, Range]:
    """Return the ranges in the metadata of the fields (`setting(..., tune=...)`), by `part.field`."""
    found = {}
    for part_name, part in {"base": agent.base, **agent.parts}.items():
        for field in dataclasses.fields(part):
            name, tune = f"{part_name}.{field.name}", field.metadata.get("tune")
            if tune and tune[0] == "choice":
                found[name] = Range(name, choices=tuple(tune[1:]))
            elif tune:
                found[name] = Range(name, tune[0], tune[1], log="log" in tune[2:])
    return found


def _refusal(name: str, agent: Agent, present: Mapping[str, Any], fixed: set[str]) -> str | None:
    """Return the reason why a field cannot be searched, or None."""
    part = name.partition(".")[0]
    if part in PARTS | onpolicy.PARTS and part not in agent.parts:
        return f"it belongs to {part}; write {agent.recipe}+{part}"
    if name not in present:
        beside = [other for other in present if other.startswith(f"{part}.")]
        return f"there is no such field; {nearest(name, beside or present)}"
    if name in fixed:
        return f"--{name.replace('_', '-')} fixes it; leave out one of the two"
    return None


def _why_refused(plan: Plan, range_: Range) -> str | None:
    """Return why the agent cannot take all values of a field's own range, or None if it can."""
    try:
        _typed_ends(plan, range_)
    except UsageError as problem:
        return str(problem)
    return None


def _typed_ends(plan: Plan, range_: Range) -> list[Any]:
    """Return the choices, or both ends, of a range as the field's type.

    Raises:
        UsageError: the agent refuses one of them.
    """
    name, values = range_.field, range_.choices or (range_.low, range_.high)
    return [flatten(settings_of(prepare(_with(plan, name, value))[1]))[name] for value in values]


def _from_file(
    plan: Plan, file: Path, present: Mapping[str, Any], fixed: set[str]
) -> Iterator[tuple[str, Range]]:
    """Read the ranges in a TOML file; `base.discount = ...` and `"base.discount" = ...` are the same."""
    source, agent = Source.read(file), prepare(plan)[1]
    places: dict[str, Where] = {}
    for key, value in source.data.items():
        below = {} if "." in key or not isinstance(value, dict) else value
        places |= {f"{key}.{field}": (key, field) for field in below} or {key: (key,)}
    for name, where in places.items():
        if problem := _refusal(name, agent, present, fixed):
            raise source.error(where, f"{name}: {problem}")
        found = _read(source, where, name)
        try:
            typed = _typed_ends(plan, found)
        except UsageError as problem:
            raise source.error(where, str(problem), problem) from problem
        ends = {"choices": tuple(typed)} if found.choices else {"low": typed[0], "high": typed[1]}
        yield name, found._replace(**ends)


def _read(source: Source, where: Where, name: str) -> Range:
    """Read the range of one field."""
    if not isinstance(source.at(where), dict):
        raise source.error(where, f"{name} is {source.at(where)!r}; write {{low = ..., high = ...}}")
    given = source.table(where, ("low", "high", "log", "choices"))
    choices, low, high, log = (given.get(key) for key in ("choices", "low", "high", "log"))
    if choices is not None:
        if len(given) > 1 or not isinstance(choices, list) or not choices:
            raise source.error(where, f"{name}: choices is a list with something in it, and stands alone")
        return Range(name, choices=tuple(choices))
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (low, high))
    if low is None or high is None or not numbers or not low < high:
        raise source.error(where, f"{name} needs a number low, and a greater one high, or choices")
    if not isinstance(log, bool | None) or (log and low <= 0):
        raise source.error(where, f"{name}: log is true or false, and a log range begins above 0")
    return Range(name, low, high, bool(log))


def _with(plan: Plan, name: str, value: Any) -> Plan:
    return dataclasses.replace(plan, settings=with_fields(plan.settings, {name: value}), label="")


def with_fields(settings: Mapping[str, Mapping[str, Any]], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the values of further fields, which are given by `part.field`."""
    made = {part: dict(of) for part, of in settings.items()}
    for name, value in fields.items():
        part, _, field = name.partition(".")
        made.setdefault(part, {})[field] = value
    return made
