"""The recipe grammar `base+part+part` and the tables behind it.

A new method is one file in `methods/` and one line in `PARTS`.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from qscape.errors import UsageError
from qscape.methods.checkpoints import Checkpoints
from qscape.methods.normalise import Normalise
from qscape.methods.periodic import Periodic
from qscape.methods.sale import SALE
from qscape.methods.value_clip import ValueClip
from qscape.offpolicy import plain
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.base import Base
from qscape.replay.lap import LAP

TD3 = Agent(recipe="td3")
SAC = Agent(
    recipe="sac",
    base=Base(
        head="gaussian",
        warmup=5_000,
        policy_delay=1,
        actor_objective="min",
        target_actor=False,
        target_noise=0.0,
        exploration_noise=0.0,
    ),
    improvement=plain.Soft(),
    follow=plain.Polyak(when="always"),
)

BASES: dict[str, Agent] = {"td3": TD3, "sac": SAC}
BASE_HELP = {
    "td3": "Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018).",
    "sac": "Soft actor-critic with a learned temperature (Haarnoja et al. 2018).",
    "td7": "TD3 with state-action embeddings, prioritised replay and checkpoints (Fujimoto et al. 2023).",
}
EXPANSIONS: dict[str, str] = {"td7": "td3+sale+lap+periodic+value_clip+checkpoints"}
PARTS: dict[str, type] = {cls.name: cls for cls in (SALE, LAP, Periodic, ValueClip, Checkpoints, Normalise)}
SOCKET_MEANS = {
    "representation": "builds the networks",
    "replay": "chooses what is replayed",
    "target": "makes the bootstrap value",
    "follow": "moves the target networks",
    "improvement": "improves the policy",
    "maximiser": "chooses the action",
    "schedule": "decides when updates happen",
    "normaliser": "normalises observations",
}


class Move(NamedTuple):
    """A field of the base that a part moved, for the user to see."""

    field: str
    before: Any
    after: Any
    by: str

    def __str__(self) -> str:
        return f"{self.by} sets base.{self.field} = {self.after} (was {self.before})"


def parse(recipe: str) -> tuple[str, list[str]]:
    """Base and parts of a recipe, with expansions such as td7 written out.

    Raises:
        UsageError: an unknown name (the nearest ones are offered) or a part named twice.
    """
    names = [name.strip().lower() for name in recipe.split("+")]
    head = EXPANSIONS.get(names[0], names[0]).split("+")
    if head[0] not in BASES:
        hint = (
            f"'{names[0]}' is a part: write td3+{names[0]}"
            if names[0] in PARTS
            else nearest(names[0], known_agents())
        )
        raise UsageError(f"There is no agent '{names[0]}'; {hint}.")
    for name in names[1:]:
        if name not in PARTS:
            hint = f"'{name}' is an agent and comes first" if name in known_agents() else nearest(name, PARTS)
            raise UsageError(f"There is no part '{name}' (in '{recipe}'); {hint}.")
        if name in head:
            why = (
                f"{names[0]} already has it"
                if name not in names[: names.index(name)]
                else "it is there twice"
            )
            raise UsageError(f"'{name}' cannot be added in '{recipe}': {why}; leave it out.")
        if names.count(name) > 1:
            raise UsageError(f"'{name}' cannot be added in '{recipe}': it is there twice; leave one out.")
    return head[0], head[1:] + names[1:]


def known_agents() -> list[str]:
    """Names a recipe may begin with."""
    return [*BASES, *EXPANSIONS]


def nearest(name: str, known: Iterable[str]) -> str:
    """The nearest names, or all of them, for an error's end."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"near to it: {', '.join(close)}" if close else f"there are {', '.join(known)}"


def build(recipe: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Agent:
    """The agent called `recipe`, e.g. `td3+sale+lap`, bound to no task yet.

    Args:
        recipe: base and parts joined by +.
        settings: fields by part, e.g. `{"base": {"discount": 0.98}, "lap": {"alpha": 0.6}}`. They win over
            what parts override, and that wins over the base.

    Raises:
        UsageError: an unknown name or field, or a combination that cannot be.
    """
    base_name, names = parse(recipe)
    agent = BASES[base_name]
    settings = dict(settings or {})
    sockets: dict[str, Any] = {}
    for name in names:
        part = PARTS[name]()
        _place(sockets, part, recipe)
    agent = dataclasses.replace(
        agent, recipe="+".join(n.strip().lower() for n in recipe.split("+")), **sockets
    )
    _known_settings(agent, settings)
    agent = dataclasses.replace(
        agent,
        **{slot: _with_settings(part, settings) for slot, part in _filled(agent).items()},
    )
    base, _ = overridden(agent)
    agent = dataclasses.replace(agent, base=replaced(base, "base", settings.get("base", {})))
    present = frozenset(agent.parts)
    for part in agent.parts.values():
        why = part.objection(present, agent.base)
        if why:
            raise UsageError(f"'{recipe}' cannot be: {why}")
    return agent


def overridden(agent: Agent) -> tuple[Base, list[Move]]:
    """The base after all parts' overrides, and every field they moved; the later part wins."""
    base_name, names = parse(agent.recipe)
    base, moves, parts = BASES[base_name].base, [], agent.parts
    for part in sorted(parts.values(), key=lambda p: names.index(p.name) if p.name in names else -1):
        for field, value in part.overrides(frozenset(parts)).items():
            before = getattr(base, field)
            if before != value:
                moves.append(Move(field, before, value, part.name))
                base = dataclasses.replace(base, **{field: value})
    return base, moves


def _place(sockets: dict[str, Any], part: Any, recipe: str) -> None:
    """Put a part into its socket; two in one socket is refused."""
    if part.socket == "regulariser":
        sockets["regularisers"] = (*sockets.get("regularisers", ()), part)
    elif part.socket == "modifier":
        sockets["modifiers"] = (*sockets.get("modifiers", ()), part)
    elif part.socket in sockets:
        other = sockets[part.socket].name
        raise UsageError(
            f"'{recipe}' cannot be: {other} and {part.name} both fill one place "
            f"(what {SOCKET_MEANS[part.socket]}); keep one of them."
        )
    else:
        sockets[part.socket] = part


def _filled(agent: Agent) -> dict[str, Any]:
    """Sockets of an agent with what sits in them."""
    skip = {"recipe", "base", "spec"}
    return {f.name: getattr(agent, f.name) for f in dataclasses.fields(agent) if f.name not in skip}


def _with_settings(part: Any, settings: Mapping[str, Mapping[str, Any]]) -> Any:
    if isinstance(part, tuple):
        return tuple(_with_settings(p, settings) for p in part)
    return replaced(part, part.name, settings.get(part.name, {}))


def _known_settings(agent: Agent, settings: Mapping[str, Any]) -> None:
    for name, fields in settings.items():
        if not isinstance(fields, Mapping):
            raise UsageError(f"Settings of '{name}' are {fields!r}; they must be fields with values.")
        if name != "base" and name not in agent.parts:
            fits = f"write {agent.recipe}+{name}" if name in PARTS else nearest(name, ["base", *agent.parts])
            raise UsageError(f"Settings of '{name}' do not belong to '{agent.recipe}'; {fits}.")


def replaced(part: Any, name: str, fields: Mapping[str, Any]) -> Any:
    """The dataclass with fields replaced; unknown ones and values of another type are refused."""
    known = {f.name for f in dataclasses.fields(part)}
    hints = get_type_hints(type(part))
    values = {}
    for field, value in fields.items():
        if field not in known:
            raise UsageError(f"{name} has no field '{field}'; {nearest(field, known)}.")
        values[field] = coerced(f"{name}.{field}", hints[field], value)
    return dataclasses.replace(part, **values) if values else part


def coerced(label: str, hint: Any, value: Any) -> Any:
    """A value from JSON, TOML or a caller as the field's type.

    Raises:
        UsageError: it cannot be that type.
    """
    options = get_args(hint)
    origin = get_origin(hint)
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(coerced(label, options[0], v) for v in value)
    elif str(origin) == "typing.Literal":
        if value in options:
            return value
        raise UsageError(f"{label} is {value!r}; it must be one of {', '.join(map(repr, options))}.")
    elif options:  # float | None and the like
        if value is None and type(None) in options:
            return None
        return coerced(label, next(o for o in options if o is not type(None)), value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise UsageError(f"{label} is {value!r}; it must be of type {getattr(hint, '__name__', hint)}.")


def settings_of(agent: Agent) -> dict[str, dict[str, Any]]:
    """Every field of the base and of every part, as it is stored with a run."""
    named: dict[str, Any] = {"base": agent.base, **agent.parts}
    found = {name: dataclasses.asdict(part) for name, part in named.items()}
    return {name: fields for name, fields in found.items() if fields}


def changed(agent: Agent) -> dict[str, Any]:
    """Fields that differ from the recipe's defaults, as `part.field`: what enters a run's label."""
    plain_ = settings_of(build(agent.recipe))
    return {
        f"{name}.{field}": value
        for name, fields in settings_of(agent).items()
        for field, value in fields.items()
        if plain_[name][field] != value
    }
