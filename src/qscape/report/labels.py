"""Labels of agents: settings that all agents share stand once above, and an agent keeps its colour."""

import itertools
import re
import zlib
from collections.abc import Iterable, Mapping

COLOURS = 7  # of the palette


def shorten_labels(labels: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Take the settings that all agents share out of their labels; a single agent keeps its own.

    Args:
        labels: such as `td3[base.batch_size=64,pave.sigma=0.1]`, also with a policy's name behind.

    Returns:
        The shown name of every label, and the shared settings, such as `base.batch_size=64`.
    """
    parts = {label: _split_label(label) for label in labels}
    first, *rest = [fields for _, fields, _ in parts.values()]
    agents = {(recipe, *fields) for recipe, fields, _ in parts.values()}
    shared = [field for field in first if all(field in fields for fields in rest)] if len(agents) > 1 else []
    names = {label: _join_label(*part, shared) for label, part in parts.items()}
    if len({*names.values()}) < len(names):  # the same fields in another order
        return {label: label for label in parts}, []
    return names, shared


def _split_label(label: str) -> tuple[str, list[str], str]:
    """Split a label into the recipe, the fields, and what follows them."""
    found = re.fullmatch(r"([^\[\]]*)\[(.*)\]([^\]]*)", label, re.DOTALL)
    if found is None:
        return label, [], ""
    return found[1], re.split(r",(?=[a-z_0-9]+(?:\.[a-z_0-9]+)?=)", found[2]), found[3]


def _join_label(recipe: str, fields: Iterable[str], rest: str, without: Iterable[str]) -> str:
    own = ",".join(field for field in fields if field not in without)
    return recipe + (f"[{own}]" if own else "") + rest


def describe_shared(shared: Iterable[str]) -> str:
    """Describe the settings that left the labels, in a sentence; "" if there are none."""
    listed = ", ".join(shared)
    return f"All agents have {listed}." if listed else ""


def number_agents(labels: Iterable[str], names: Mapping[str, str] = {}) -> dict[str, int]:
    """Give each agent of a picture a number, by which it gets its colour and line.

    The number follows from the label, so an agent keeps its colour in all pictures. Only if two agents of a
    picture had one colour, the later of them by name gets the next one that is free.

    Args:
        labels: full labels.
        names: the shown name of a label, if it is another.

    Returns:
        The number of each shown name. Numbers k and k + `COLOURS` mean the same colour and other lines.
    """
    wanted = {label: zlib.crc32(label.encode()) % COLOURS for label in sorted(set(labels))}
    first = {number: label for label, number in reversed(wanted.items())}
    numbers = {label: number for number, label in first.items()}
    for label in [label for label in wanted if label not in numbers]:
        every = (
            COLOURS * k + (wanted[label] + j) % COLOURS for k in itertools.count() for j in range(COLOURS)
        )
        numbers[label] = next(n for n in every if n not in numbers.values())
    return {names.get(label, label): numbers[label] for label in wanted}
