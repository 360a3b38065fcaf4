"""The recipe grammar `base+part+part`: which names a recipe may have, and what they stand for."""

import difflib
import functools
from collections.abc import Iterable
from typing import Any

from qscape.agents import onpolicy, plugins
from qscape.agents.other_names import OTHER_AGENTS
from qscape.agents.recipes import BASES, EXPANSIONS, PARTS
from qscape.errors import Conflict, UnfitAgent, UnknownRecipe, UsageError
from qscape.trusted import trust, trusts_everything


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


@functools.lru_cache(maxsize=1_024)
def parse(recipe: str) -> tuple[str, tuple[str, ...]]:
    """Return the base and the names of the parts of a recipe, with expansions such as td7 written out.

    Imports parts of installed packages; a part `module:Class` must be registered already.

    Raises:
        UsageError: an unknown name (the nearest ones are offered) or a part named twice.
    """
    names = split(recipe)
    if "" in names[1:]:
        raise UnknownRecipe(f"A name of '{recipe}' is empty: write one + before each part, as in td3+pave.")
    names[1:] = [_registered_name(name) for name in names[1:]]
    head = expand(names[0])
    if head[0] not in BASES | onpolicy.BASES:
        base = next((b for b in ("td3", "ppo") if names[0] in parts_of(b)), None)
        if base:
            hint = f"'{names[0]}' is a part: write {base}+{names[0]}"
        else:
            hint = OTHER_AGENTS.get(names[0]) or nearest(names[0], known_agents())
        raise UnknownRecipe(f"There is no agent '{names[0]}'; {hint}.")
    for name in names[1:]:
        fitting = parts_of(head[0])
        if name not in fitting:
            if name in PARTS | onpolicy.PARTS:
                other = "ppo" if name in onpolicy.PARTS else "td3"
                raise Conflict(
                    f"'{name}' does not fit '{names[0]}': it is a part of {_family(other)} agents, such as "
                    f"{other}+{name}; {_family(head[0])} ones take {', '.join(fitting)}.",
                    part=name,
                )
            known = name in known_agents()
            hint = f"'{name}' is an agent and comes first" if known else nearest(name, fitting)
            if not known and not difflib.get_close_matches(name, fitting, cutoff=0.6):  # no slip of the pen
                hint += "; a part of your own is written module:Class"
            raise UnknownRecipe(f"There is no part '{name}' (in '{recipe}'); {hint}.", part=name)
        if name in head:
            raise Conflict(
                f"'{name}' cannot be added in '{recipe}': {names[0]} already has it; leave it out.", part=name
            )
        if names.count(name) > 1:
            raise Conflict(
                f"'{name}' cannot be added in '{recipe}': it is there twice; leave one out.", part=name
            )
    return head[0], (*head[1:], *names[1:])


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
        raise UnfitAgent(
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


def expand(name: str) -> list[str]:
    """Return the base and the parts that the first name of a recipe stands for."""
    return EXPANSIONS[name].recipe.split("+") if name in EXPANSIONS else [name]


def known_agents() -> list[str]:
    """Return the names that a recipe can begin with."""
    return [*BASES, *EXPANSIONS, *onpolicy.BASES]


@functools.cache
def _taken() -> frozenset[str]:
    """Return the names of agents and of their parts, which no part from outside may have."""
    agents: list[Any] = [*BASES.values(), *onpolicy.BASES.values()]
    return frozenset([*known_agents(), *(name for agent in agents for name in agent.parts)])


def _family(base: str) -> str:
    """Return "on-policy" or "off-policy", for messages."""
    return "on-policy" if base in onpolicy.BASES else "off-policy"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the most similar known names, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"near to it: {', '.join(close)}" if close else f"there are {', '.join(known)}"
