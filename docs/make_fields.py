"""Write docs/reference/fields.md: every field of the base and of every part, with default and meaning.

python docs/make_fields.py
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from qscape.agents import BASES, EXPANSIONS, PARTS, build
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
The flags of a part exist where the part is in the recipe. A user's value wins over what a part overrides, and
that wins over the base.
"""


def format_value(value: Any) -> str:
    """Format a default as a table cell."""
    return f"`{value!r}`"


def escape(text: str) -> str:
    """Escape the character that separates cells."""
    return text.replace("|", "\\|")


def format_table(names: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table from the names of its columns and its rows."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_of_fields(part: Any, prefix: str) -> str:
    """Make the table of the fields of a part; `prefix` comes before each name."""
    rows = [
        [f"`{prefix}{f.name}`", format_value(getattr(part, f.name)), escape(f.metadata["help"])]
        for f in dataclasses.fields(part)
        if "help" in f.metadata
    ]
    return format_table(["field", "default", "what"], rows) if rows else "No fields."


def table_of_base(bases: dict[str, Any]) -> str:
    """Make the table of the fields of the base, with the default of each agent."""
    rows = []
    for f in dataclasses.fields(next(iter(bases.values())).base):
        defaults = [format_value(getattr(agent.base, f.name)) for agent in bases.values()]
        rows.append([f"`base.{f.name}`", *defaults, escape(f.metadata["help"])])
    return format_table(["field", *(f"`{name}`" for name in bases), "what"], rows)


def table_of_overrides() -> str:
    """Make the table of the fields of the base that each part overrides on td3 and on sac."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, cls in PARTS.items():
        for base in ("td3", "sac"):
            with contextlib.suppress(UsageError):
                for field, value in cls().overrides(build(f"{base}+{name}")).items():
                    key = (f"`+{name}`", f"`base.{field}`", format_value(value))
                    found.setdefault(key, []).append(f"`{base}`")
    rows = [[*override, ", ".join(on)] for override, on in found.items()]
    return format_table(["part", "field", "becomes", "on"], rows)


def table_of_expansions() -> str:
    """Make the table of the agents that are a base with parts and settings."""
    rows = []
    for name, expansion in EXPANSIONS.items():
        fields = [
            f"`{part}.{field}` {format_value(value)}"
            for part, of in expansion.settings.items()
            for field, value in of.items()
        ]
        rows.append([f"`{name}`", f"`{expansion.recipe}`", ", ".join(fields), escape(expansion.help)])
    return format_table(["agent", "is", "with", "what"], rows)


def sections_of_parts(parts: dict[str, type], socket_means: dict[str, str], family: str = "") -> list[str]:
    """Make a section for each part; `family` is "on-policy " or empty."""
    sections = []
    for name, cls in parts.items():
        summary = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        means = socket_means[cls.socket]
        sections += [f"\n## {family}`+{name}`: {means}\n", f"{summary}\n", table_of_fields(cls(), f"{name}.")]
    return sections


def make_page() -> str:
    """Make the whole page."""
    sections = [
        HEAD,
        "## The base\n",
        table_of_base(BASES),
        "\n## What parts override in the base\n",
        table_of_overrides(),
        "\n## Agents that are a base with parts and settings\n",
        table_of_expansions(),
        "\n## Polyak averaging (every agent without `periodic`)\n",
        table_of_fields(plain.Polyak(), "polyak."),
        "\n`sac` has `'always'` for `polyak.when`.",
        "\n## Updates (every agent without `checkpoints`)\n",
        table_of_fields(plain.EveryStep(), "every_step."),
        "\n## Soft improvement (`sac`)\n",
        table_of_fields(plain.Soft(), "soft."),
    ]
    sections += sections_of_parts(PARTS, SOCKET_MEANS)
    sections += [
        "\n## The on-policy base\n",
        table_of_base(on_policy.BASES),
    ]
    for part in (Plain(), GAE(), MonteCarlo(), Learnable(), Clipped(), TrustRegion()):
        summary = " ".join((type(part).__doc__ or "").split("\n\n")[0].split())
        sections += [
            f"\n## `{part.name}`, where a recipe has it\n",
            f"{summary}\n",
            table_of_fields(part, f"{part.name}."),
        ]
    sections += sections_of_parts(on_policy.PARTS, on_policy.SOCKET_MEANS, "on-policy ")
    sections += [
        "\n## The run\n",
        "Flags of `qscape train` and fields of `qscape.Plan`, beside recipe, environment, steps and seed.\n",
        table_of_fields(Plan("td3", "Pendulum-v1", 1), ""),
    ]
    return "\n".join(sections) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
    print(PAGE)
