"""The recipe grammar `base+part+part` and the tables behind it.

A method of the core is one file in `methods/` and one line in `PARTS`. Parts of `qscape.contrib` and of other
packages are added when a recipe names them (see `plugins`).
"""

import contextlib
import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np

from qscape.agents import onpolicy, plugins
from qscape.agents.other_names import OTHER_AGENTS, difference, ours
from qscape.errors import UsageError
from qscape.methods.asap import ASAP
from qscape.methods.bc import BC, Clone
from qscape.methods.caps import CAPS
from qscape.methods.cem import CEM
from qscape.methods.checkpoints import Checkpoints
from qscape.methods.conv import Conv
from qscape.methods.dqn import Argmax, PerAction
from qscape.methods.ensemble import Ensemble
from qscape.methods.grad import GRAD
from qscape.methods.greedy_ac import GreedyAC
from qscape.methods.greedy_td3 import GreedyTD3
from qscape.methods.iql import IQL
from qscape.methods.joint import Joint
from qscape.methods.lap import LAP
from qscape.methods.normalise import Normalise
from qscape.methods.ou import OU
from qscape.methods.pave import PAVE
from qscape.methods.periodic import Periodic
from qscape.methods.quantile import Quantile
from qscape.methods.resets import Resets
from qscape.methods.sale import SALE
from qscape.methods.savgo import SAVGO
from qscape.methods.savo import SAVO
from qscape.methods.value_clip import ValueClip
from qscape.methods.wolpertinger import Wolpertinger
from qscape.offpolicy import plain
from qscape.offpolicy.agent import Agent as OffPolicyAgent
from qscape.offpolicy.base import Base as OffPolicyBase
from qscape.onpolicy.agent import Agent as OnPolicyAgent
from qscape.onpolicy.base import Base as OnPolicyBase
from qscape.trusted import trust, trusts_everything

Agent: TypeAlias = OffPolicyAgent | OnPolicyAgent
Base: TypeAlias = OffPolicyBase | OnPolicyBase
Settings: TypeAlias = Mapping[str, Mapping[str, Any]]  # fields by part

TD3 = OffPolicyAgent(recipe="td3")
SAC = OffPolicyAgent(
    recipe="sac",
    base=OffPolicyBase(
        head="gaussian",
        warmup=5_000,
        policy_delay=1,
        actor_objective="min",
        target_actor=False,
        target_noise=0.0,
        exploration_noise=0.0,
    ),
    policy_loss=plain.Soft(),
    target_update=plain.Polyak(when="always"),
)

# For learning from datasets; in an environment they explore with TD3's noise.
IMITATION = OffPolicyAgent(recipe="bc", base=OffPolicyBase(policy_delay=1), policy_loss=BC(alpha=0.0))
IMPLICIT = OffPolicyAgent(
    recipe="iql",
    base=OffPolicyBase(policy_delay=1, target_actor=False, target_noise=0.0),
    policy_loss=IQL(),
    target_update=plain.Polyak(when="always"),
)

DQN = OffPolicyAgent(
    recipe="dqn",
    base=OffPolicyBase(
        critics=1,
        critic_loss="huber",
        batch_size=64,
        n_step=3,
        warmup=1_000,
        replay_capacity=100_000,
        updates_per_step=0.5,
        sync_every=128,
        critic_learning_rate=1e-3,
        gradient_clip=10.0,
        policy_delay=1,
        target_actor=False,
        target_noise=0.0,
        exploration_noise=0.0,
        epsilon_mode="greedy",
        epsilon_end=0.04,
        epsilon_decay=0.16,
    ),
    representation=PerAction(),
    selector=Argmax(),
    target_update=Periodic(),
)

BASES: dict[str, OffPolicyAgent] = {
    "td3": TD3,
    "sac": SAC,
    "bc": IMITATION,
    "iql": IMPLICIT,
    "dqn": DQN,
}


class Expansion(NamedTuple):
    """An agent that has a name of its own: a base with parts, and the settings of a paper.

    Attributes:
        recipe: base and parts joined by +.
        help: what it is and where it comes from, for lists.
        settings: fields by part that differ from the defaults of base and parts. They win over what its parts
            override; parts that a user adds, and a user's own values, win over them.
    """

    recipe: str
    help: str
    settings: Settings = MappingProxyType({})


COUNTED = "warmup", "updates_per_step"  # fields in the unit of `base.counts`
EXPANSIONS: dict[str, Expansion] = {
    "td7": Expansion(
        "td3+sale+lap+periodic+value_clip+checkpoints",
        "TD3 with state-action embeddings, prioritised replay and checkpoints (Fujimoto et al. 2023).",
    ),
    "td7_offline": Expansion(
        "td3+sale+lap+periodic+value_clip+clone",
        "TD7 on a dataset: behaviour cloning in, checkpoints out (Fujimoto et al. 2023).",
    ),
    "tqc": Expansion(
        "sac+quantile",
        "SAC with a truncated mixture of quantile critics (Kuznetsov et al. 2020, arXiv 2005.04269).",
        {
            "base": {"critics": 5, "critic_hidden": (512, 512, 512), "actor_objective": "mean"}
            | {"log_std_min": -20.0},
            "quantile": {"drop": 2},
        },
    ),
    "drqv2": Expansion(
        "td3+conv",
        "TD3 from images, with random shifts and noise that decays (Yarats et al. 2021, arXiv 2107.09645).",
        {
            # Table 4 of the paper and the released config.yaml; `conv` holds the encoder's own.
            "base": {"n_step": 3, "warmup": 2_000, "updates_per_step": 0.5, "policy_delay": 1}
            | {"actor_learning_rate": 1e-4, "critic_learning_rate": 1e-4}
            | {"actor_hidden": (1024, 1024), "critic_hidden": (1024, 1024)}
            | {"target_actor": False, "target_noise_clip": 0.3, "actor_objective": "min"}
            # The schedule of the paper's easy tasks: from 1.0 to 0.1.
            | {"exploration_noise": 1.0, "epsilon_end": 0.1, "epsilon_decay": 100_000.0},
            "polyak": {"rate": 0.01, "when": "always"},
        },
    ),
} | {name: Expansion(*row) for name, row in plugins.contrib_table("AGENTS").items()}
BASE_HELP = {
    "td3": "Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018).",
    "sac": "Soft actor-critic with a learned temperature (Haarnoja et al. 2018).",
    "bc": "Behaviour cloning: the actor imitates the data, the critics judge it.",
    "iql": "Implicit Q-learning (Kostrikov et al. 2021).",
    "dqn": "Deep Q-network for a few discrete actions (Mnih et al. 2015).",
    **{name: expansion.help for name, expansion in EXPANSIONS.items()},
    **onpolicy.BASE_HELP,
}
PARTS: dict[str, type] = {
    cls.name: cls
    for cls in (
        SALE,
        Conv,
        LAP,
        Periodic,
        plain.Polyak,
        ValueClip,
        Checkpoints,
        Normalise,
        PAVE,
        CAPS,
        GRAD,
        ASAP,
        SAVGO,
        SAVO,
        OU,
        Wolpertinger,
        Ensemble,
        CEM,
        Joint,
        GreedyAC,
        GreedyTD3,
        Resets,
        BC,
        Clone,
        IQL,
        Quantile,
    )
}
SOCKET_MEANS = {
    "representation": "embeds what networks see",
    "network": "makes hidden layers and outputs",
    "value": "represents the value of a critic",
    "replay": "chooses what is replayed",
    "bootstrap": "makes the bootstrap value",
    "target_update": "moves the target networks",
    "policy_loss": "improves the policy",
    "selector": "chooses the action",
    "regulariser": "adds to the losses",
    "modifier": "sets fields of the base",
    "schedule": "decides when updates happen",
    "reset": "re-initialises networks",
    "normaliser": "normalises observations",
    "scaling": "scales rewards",
}


# Keywords of `qs.Model` and `qs.Plan` for which other libraries have other names.
KEYWORDS = ("env", "envs", "steps", "eval_every", "eval_episodes")


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


def register(part: type | str) -> type:
    """Register a part from outside qscape in this process, so that recipes can name it.

    Args:
        part: a class (a frozen dataclass that subclasses the interface of its socket), or its place
            `module:Class`, which is imported.

    Returns:
        The class.

    Raises:
        UsageError: the class cannot be imported, is no part, or its name is taken.
    """
    return plugins.register(part, (PARTS, onpolicy.PARTS), _taken())


@functools.cache
def _taken() -> frozenset[str]:
    """Return the names of agents and of their parts, which no part from outside may have."""
    agents: list[Any] = [*BASES.values(), *onpolicy.BASES.values()]
    return frozenset([*known_agents(), *(name for agent in agents for name in agent.parts)])


def register_named(recipe: str) -> None:
    """Import the parts that a recipe names as `module:Class`.

    Called with what the user wrote, never with a recipe that comes from the file of a run.

    Raises:
        UsageError: one of them cannot be imported, or is no part.
    """
    for name in split(recipe)[1:]:
        if ":" in name:
            trust(name)
            if name not in plugins.PLACES:
                register(name)


def register_all_installed() -> list[str]:
    """Register the parts that installed packages declare.

    Returns:
        The errors of the parts that cannot be used.
    """
    problems = []
    for name in plugins.entry_points():
        try:
            plugins.register_installed(name, (PARTS, onpolicy.PARTS), _taken())
        except UsageError as problem:
            problems.append(str(problem))
    return problems


def split(recipe: str) -> list[str]:
    """Return the names in a recipe, without blanks and in lower case; `module:Class` keeps its case."""
    names = [name.strip() for name in recipe.split("+")]
    return [name if ":" in name else name.lower() for name in names]


def parse(recipe: str) -> tuple[str, list[str]]:
    """Return the base and the names of the parts of a recipe, with expansions such as td7 written out.

    Imports parts of installed packages; a part `module:Class` must be registered already.

    Raises:
        UsageError: an unknown name (the nearest ones are offered) or a part named twice.
    """
    names = split(recipe)
    if "" in names[1:]:
        raise UsageError(f"A name of '{recipe}' is empty: write one + before each part, as in td3+pave.")
    names[1:] = [_registered_name(name) for name in names[1:]]
    head = _expand(names[0])
    head[1:] = [_registered_name(name) for name in head[1:]]
    if head[0] not in BASES | onpolicy.BASES:
        base = next((b for b in ("td3", "ppo") if is_part(names[0]) and names[0] in parts_of(b)), None)
        if base:
            hint = f"'{names[0]}' is a part: write {base}+{names[0]}"
        else:
            hint = OTHER_AGENTS.get(names[0]) or nearest(names[0], known_agents()) + _or_of_contrib()
        raise UsageError(f"There is no agent '{names[0]}'; {hint}.")
    for name in names[1:]:
        fitting = parts_of(head[0])
        if name not in fitting:
            register_all_installed()  # the error lists all parts
            if name in PARTS | onpolicy.PARTS:
                other = "ppo" if name in onpolicy.PARTS else "td3"
                raise UsageError(
                    f"'{name}' does not fit '{names[0]}': it is a part of {_family(other)} agents, such as "
                    f"{other}+{name}; {_family(head[0])} ones take {', '.join(fitting)}.",
                    part=name,
                )
            known = name in known_agents()
            hint = f"'{name}' is an agent and comes first" if known else nearest(name, fitting)
            if not known and not difflib.get_close_matches(name, fitting, cutoff=0.6):  # no slip of the pen
                hint += "; a part of your own is written module:Class"
            hint += "" if known else _or_of_contrib()
            raise UsageError(f"There is no part '{name}' (in '{recipe}'); {hint}.", part=name)
        if name in head:
            raise UsageError(
                f"'{name}' cannot be added in '{recipe}': {names[0]} already has it; leave it out.", part=name
            )
        if names.count(name) > 1:
            raise UsageError(
                f"'{name}' cannot be added in '{recipe}': it is there twice; leave one out.", part=name
            )
    return head[0], head[1:] + names[1:]


def _registered_name(name: str) -> str:
    """Return the name of a part that a recipe gives by name or place; register it if it is installed.

    Raises:
        UsageError: it is a place `module:Class` that was not registered.
    """
    if ":" in name and trusts_everything():
        register_named(f"+{name}")
    if name in plugins.PLACES:
        return plugins.PLACES[name]
    installed = plugins.register_installed(name, (PARTS, onpolicy.PARTS), _taken())
    if installed is None and ":" in name:
        raise plugins.not_loaded(name)
    return installed or name


def is_part(name: str) -> bool:
    """Return whether there is a part of this name, for agents of whatever kind; it is registered then.

    Raises:
        UsageError: an installed package declares it, and it cannot be used.
    """
    return _registered_name(name) in PARTS | onpolicy.PARTS


def _or_of_contrib() -> str:
    """Return the end of an error about an unknown name where the folder of `qscape.contrib` was removed."""
    if plugins.contrib_table("PARTS"):
        return ""
    return f"; or it belongs to {plugins.CONTRIB}, which is not installed here: install qscape again"


def _expand(name: str) -> list[str]:
    """Return the base and the parts that the first name of a recipe stands for."""
    return EXPANSIONS[name].recipe.split("+") if name in EXPANSIONS else [name]


def known_agents() -> list[str]:
    """Return the names that a recipe can begin with."""
    return [*BASES, *EXPANSIONS, *onpolicy.BASES]


def recipe_for_dataset(recipe: str) -> tuple[str, list[str]]:
    """Adapt a recipe to learning from a dataset.

    A dataset has no episodes that assess a policy, so `checkpoints` is removed. td7 gets behaviour cloning.

    Returns:
        The recipe, and a sentence about each change.

    Raises:
        UsageError: an unknown name, or an on-policy agent.
    """
    base, _ = parse(recipe)
    if base in onpolicy.BASES:
        raise UsageError(
            f"{base} learns from its own steps, not from a dataset; take td7, td3+bc, iql or bc."
        )
    first, *rest = split(recipe)
    if first == "td7":
        cloned = "bc" in rest
        first = "td3+sale+lap+periodic+value_clip" if cloned else "td7_offline"
        rest = [name for name in rest if name != "clone"]
        note = "td7 on a dataset: checkpoints out, behaviour cloning in (" + ("bc" if cloned else first) + ")"
        return "+".join([first, *rest]), [note]
    if "checkpoints" in rest:
        rest.remove("checkpoints")
        return "+".join([first, *rest]), ["a dataset has no episodes to assess policies by: checkpoints out"]
    return recipe, []


def recipe_for_images(recipe: str) -> tuple[str, list[str]]:
    """Adapt a recipe to observations with an image: an off-policy agent without a representation gets `conv`.

    Returns:
        The recipe, and a sentence about the change.

    Raises:
        UsageError: an unknown name.
    """
    base, names = parse(recipe)
    if base in onpolicy.BASES or any(PARTS[name].socket == "representation" for name in names):
        return recipe, []
    if BASES[base].representation.takes_images:
        return recipe, []
    return f"{recipe}+conv", [f"observations hold an image: {recipe} becomes {recipe}+conv"]


def parts_of(base: str) -> dict[str, type]:
    """Return the parts, by name, that agents of a base can have."""
    return onpolicy.PARTS if base in onpolicy.BASES else PARTS


def _family(base: str) -> str:
    """Return "on-policy" or "off-policy", for messages."""
    return "on-policy" if base in onpolicy.BASES else "off-policy"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the most similar known names, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"near to it: {', '.join(close)}" if close else f"there are {', '.join(known)}"


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

    Imports parts of installed packages; a part `module:Class` must be registered already.

    Args:
        recipe: base and parts joined by +.
        settings: fields by part, e.g. `{"base": {"discount": 0.98}, "lap": {"alpha": 0.6}}`. They win over
            the parts' overrides and the settings of an `Expansion`, which win over the base.

    Raises:
        UsageError: an unknown name or field, or an invalid combination.
    """
    base_name, names = parse(recipe)
    agent: Any = (BASES | onpolicy.BASES)[base_name]
    settings = settings or {}
    sockets: dict[str, Any] = {}
    for name in names:
        part = parts_of(base_name)[name]()
        _add_to_socket(sockets, part, recipe)
    _refuse_defaults(agent, sockets, recipe)
    agent = dataclasses.replace(agent, recipe="+".join(split(recipe)), **sockets)
    _check_settings(agent, settings)
    merged = merge_settings(_named_settings(agent), settings)
    agent = dataclasses.replace(
        agent,
        **{slot: _with_settings(part, merged) for slot, part in _filled_sockets(agent).items()},
    )
    given = settings.get("base", {})
    moved = {move.field: move.after for move in list_overrides(agent)}
    base = set_fields(agent.base, "base", given, moved)
    base = _with_own_discount(base, given)
    agent = dataclasses.replace(agent, base=base)
    if why := agent.conflict():
        raise UsageError(f"'{recipe}' cannot be: {why}")
    return agent


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
    turns.append((len(_expand(first)) - 1.5, first, _named_settings(agent).get("base", {})))
    counter = next((by for _, by, fields in turns if "counts" in fields), None)
    for _, by, fields in sorted(turns, key=lambda turn: turn[0]):
        for field, value in fields.items():
            if counter not in (None, by) and field in COUNTED:
                continue
            if not hasattr(base, field):
                known = [f.name for f in dataclasses.fields(base)]
                raise UsageError(f"{by} overrides base.{field}; {nearest(field, known)}.", by)
            before = moved.get(field, getattr(base, field))
            if before != value:
                moves.append(Override(field, before, value, by))
                moved[field] = value
    return moves


def merge_settings(first: Settings, second: Settings) -> dict[str, dict[str, Any]]:
    """Merge two settings; if both have a field, the second wins."""
    both = {part: {**first.get(part, {}), **fields} for part, fields in second.items()}
    return {**{part: dict(fields) for part, fields in first.items()}, **both}


def _named_settings(agent: Agent) -> Settings:
    """Return the settings of the `Expansion` that a recipe begins with, for the parts that the agent has.

    A part of the recipe may have taken the place of one of the base. One that has a temperature itself, such
    as `savgo`, gets the settings of the temperature.
    """
    name = split(agent.recipe)[0]
    found = EXPANSIONS[name].settings if name in EXPANSIONS else {}
    known = {part: fields for part, fields in found.items() if part == "base" or part in agent.parts}
    improves = getattr(agent, "policy_loss", None)
    if "soft" in found and isinstance(improves, plain.Entropic):
        known[improves.name] = found["soft"]
    return known


def _add_to_socket(sockets: dict[str, Any], part: Any, recipe: str) -> None:
    """Add a part to its socket in `sockets`; raises UsageError if another part fills it."""
    if part.socket == "regulariser":
        sockets["regularisers"] = (*sockets.get("regularisers", ()), part)
    elif part.socket == "modifier":
        sockets["modifiers"] = (*sockets.get("modifiers", ()), part)
    elif part.socket in sockets:
        other = sockets[part.socket].name
        raise UsageError(
            f"'{recipe}' cannot be: {other} and {part.name} both fill one place "
            f"(what {(SOCKET_MEANS | onpolicy.SOCKET_MEANS)[part.socket]}); keep one of them."
        )
    else:
        sockets[part.socket] = part


def _refuse_defaults(base_agent: Agent, sockets: Mapping[str, Any], recipe: str) -> None:
    """Raise a UsageError for a part that the base has by default."""
    for socket, part in sockets.items():
        if type(getattr(base_agent, socket)) is type(part) and not isinstance(part, tuple):
            raise UsageError(
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
                raise UsageError(
                    f"Settings of '{name}' are {fields!r}; they must be fields with values.", name
                )
            continue
        known = [*flatten(settings_of(agent))]
        names = ours(name, [*KEYWORDS, *known]) or [n for n in known if n.endswith(f".{name}")]
        if names:
            written = f"{_in_python(names)}{difference(name, names)}"
            raise UsageError(f"There is no keyword '{name}'; write {written}.", name)
        fits = (
            advise_part(agent.recipe, name)
            if is_part(name) and name in parts_of(parse(agent.recipe)[0])
            else nearest(name, ["base", *agent.parts])
        )
        raise UsageError(f"Settings of '{name}' do not belong to '{agent.recipe}'; {fits}.", name)


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
            raise UsageError(f"{name} has no field '{field}'; {hint}.", name, field)
        try:
            values[field] = convert(f"{name}.{field}", hints[field], value)
        except UsageError as problem:
            raise UsageError(str(problem), name, field) from problem
    made = {**overrides, **values}
    try:
        return dataclasses.replace(part, **made) if made else part
    except UsageError as problem:
        raise UsageError(str(problem), name, _refused_field(part, values, overrides)) from problem


def _with_own_discount(base: Base, given: Mapping[str, Any]) -> Base:
    """Return the base, with the rule `fixed` if a discount was given: it wins over the rule of a recipe.

    Raises:
        UsageError: the rule that would replace the discount was given too.
    """
    if "discount" not in given or getattr(base, "discount_rule", "fixed") == "fixed":
        return base
    if "discount_rule" in given:
        raise UsageError(
            f"base.discount is {base.discount} and base.discount_rule time_limit, which replaces it; leave "
            "one of them out.",
            "base",
            "discount",
        )
    return dataclasses.replace(base, discount_rule="fixed")


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
        raise UsageError(f"{label} is {value!r}; it must be one of {', '.join(map(repr, options))}.")
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
    raise UsageError(f"{label} is {value!r}; it must be of type {getattr(hint, '__name__', hint)}.")


def settings_of(agent: Agent) -> dict[str, dict[str, Any]]:
    """Return all fields of the base and of the parts, by part: the `settings` of run.json."""
    named: dict[str, Any] = {"base": agent.base, **agent.parts}
    found = {name: dataclasses.asdict(part) for name, part in named.items()}
    return {name: fields for name, fields in found.items() if fields}


def flatten(settings: Settings) -> dict[str, Any]:
    """Return the values of settings by `part.field`."""
    return {f"{part}.{field}": value for part, fields in settings.items() for field, value in fields.items()}


def changed_fields(agent: Agent, given: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Return the fields of an agent that differ from the defaults, by `part.field`, for the run's label.

    Args:
        agent: the agent, with the settings of a run.
        given: settings that count as defaults, such as those of a preset; None: the recipe's defaults.
    """
    defaults = flatten(settings_of(build(agent.recipe, given)))
    return {name: value for name, value in flatten(settings_of(agent)).items() if defaults[name] != value}
