"""Labels of agents: settings that all agents share stand once above, and an agent keeps its colour."""

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping

COLOURS = 7  # of the palette
LONGEST = 60  # characters of a shown name, if fewer can tell agents apart


def shorten_labels(labels: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Take the settings that all agents share out of their labels; a single agent keeps its own.

    Of a name that is still longer than `LONGEST` the settings stay that fit, those first that fewest agents
    have; `…` stands for the others. `describe_shortened` says what they are.

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
    return _abbreviate(names), shared


def _abbreviate(names: Mapping[str, str]) -> dict[str, str]:
    """Shorten the names that are too long; those that would then be equal stay as they are."""
    parts = {name: _split_label(name) for name in names.values()}
    having = Counter(field for _, fields, _ in parts.values() for field in fields)
    short = {}
    for name, (recipe, fields, rest) in parts.items():
        kept, room = set[str](), LONGEST - len(f"{recipe}[…]{rest}")
        for field in sorted(fields, key=having.__getitem__):
            if len(field) + 1 <= room:
                kept.add(field)
                room -= len(field) + 1
        left = [field for field in fields if field in kept]
        is_long = len(name) > LONGEST and fields
        short[name] = f"{recipe}[{','.join([*left, '…'])}]{rest}" if is_long else name
    times = Counter(short.values())
    return {label: short[name] if times[short[name]] == 1 else name for label, name in names.items()}


def describe_shortened(names: Mapping[str, str], shared: Iterable[str] = ()) -> list[str]:
    """Return a sentence for each name in which `…` stands for settings.

    The arguments are what `shorten_labels` returned.
    """
    return [
        f"{name} is {_join_label(*_split_label(label), [*shared])}."
        for label, name in names.items()
        if name.rpartition("]")[0].endswith("…")
    ]


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
