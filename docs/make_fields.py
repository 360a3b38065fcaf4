"""Write docs/reference/fields.md: every field of the base and of every part, as the code has them.

python docs/make_fields.py
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from qscape.agents import BASES, PARTS, build
from qscape.agents import onpolicy as on_policy
from qscape.agents.recipes import SOCKET_MEANS
from qscape.errors import UsageError
from qscape.offpolicy import plain
from qscape.onpolicy.descent import Clipped
from qscape.onpolicy.heads import Learnable
from qscape.onpolicy.plain import GAE, MonteCarlo, Plain
from qscape.onpolicy.trust_region import TrustRegion
from qscape.run.plan import Plan

PAGE = Path(__file__).parent / "reference" / "fields.md"
HEAD = """# Fields

Made by `python docs/make_fields.py` from the code; do not edit.

A field is a flag (`--sale.width 128`), a setting in Python (`sale={"width": 128}`) and an entry of
`run.json`. On the command line `_` is written `-`, several values are separated by spaces
(`--base.actor-hidden 64 64`), and what is on by default is switched off by `no-` (`--lap.no-prioritised`).
A part's flags exist where the part is in the recipe. A user's value wins over what a part moves, and that
wins over the base.
"""


def shown(value: Any) -> str:
    """A value as a table cell."""
    return f"`{value!r}`"


def cell(text: str) -> str:
    """Text that no table breaks at."""
    return text.replace("|", "\\|")


def table(names: list[str], rows: list[list[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fields_of(part: Any, prefix: str) -> str:
    """A table of a dataclass' fields."""
    rows = [
        [f"`{prefix}{f.name}`", shown(getattr(part, f.name)), cell(f.metadata["help"])]
        for f in dataclasses.fields(part)
        if "help" in f.metadata
    ]
    return table(["field", "default", "what"], rows) if rows else "No fields."


def base_table(bases: dict[str, Any]) -> str:
    """The base's fields with the default of each base agent."""
    rows = []
    for f in dataclasses.fields(next(iter(bases.values())).base):
        defaults = [shown(getattr(agent.base, f.name)) for agent in bases.values()]
        rows.append([f"`base.{f.name}`", *defaults, cell(f.metadata["help"])])
    return table(["field", *(f"`{name}`" for name in bases), "what"], rows)


def moves_table() -> str:
    """What each part moves in the base, on which of the two."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, cls in PARTS.items():
        for base in ("td3", "sac"):
            with contextlib.suppress(UsageError):
                for field, value in cls().overrides(build(f"{base}+{name}")).items():
                    found.setdefault((f"`+{name}`", f"`base.{field}`", shown(value)), []).append(f"`{base}`")
    return table(["part", "field", "becomes", "on"], [[*moved, ", ".join(on)] for moved, on in found.items()])


def part_sections(parts: dict[str, type], socket_means: dict[str, str], house: str = "") -> list[str]:
    """A section for each part with fields of its own."""
    sections = []
    for name, cls in parts.items():
        summary = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        means = socket_means[cls.socket]
        sections += [f"\n## {house}`+{name}`: {means}\n", f"{summary}\n", fields_of(cls(), f"{name}.")]
    return sections


def page() -> str:
    """The whole page."""
    sections = [
        HEAD,
        "## The base\n",
        base_table(BASES),
        "\n## What parts move in the base\n",
        moves_table(),
        "\n## Polyak averaging (every agent without `periodic`)\n",
        fields_of(plain.Polyak(), "polyak."),
        "\n`sac` has `'always'` for `polyak.when`.",
        "\n## Updates (every agent without `checkpoints`)\n",
        fields_of(plain.EveryStep(), "every_step."),
        "\n## Soft improvement (`sac`)\n",
        fields_of(plain.Soft(), "soft."),
    ]
    sections += part_sections(PARTS, SOCKET_MEANS)
    sections += [
        "\n## The on-policy base\n",
        base_table(on_policy.BASES),
    ]
    for part in (Plain(), GAE(), MonteCarlo(), Learnable(), Clipped(), TrustRegion()):
        summary = " ".join((type(part).__doc__ or "").split("\n\n")[0].split())
        sections += [
            f"\n## `{part.name}`, where a recipe has it\n",
            f"{summary}\n",
            fields_of(part, f"{part.name}."),
        ]
    sections += part_sections(on_policy.PARTS, on_policy.SOCKET_MEANS, "on-policy ")
    sections += [
        "\n## The run\n",
        "Flags of `qscape train` and fields of `qscape.Plan`, beside recipe, environment, steps and seed.\n",
        fields_of(Plan("td3", "Pendulum-v1", 1), ""),
    ]
    return "\n".join(sections) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
