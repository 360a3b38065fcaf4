"""Write docs/reference/fields.md: every field of the base and of every part, with default and meaning.

python docs/make_fields.py
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from qscape.agents import BASES, EXPANSIONS, PARTS, SOCKET_MEANS, build
from qscape.agents import onpolicy as on_policy
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

<p><input id="find-field" type="search" placeholder="Find a field by name or meaning"
aria-label="Find a field"></p>
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


def block(title: str, *content: str, name: str = "") -> str:
    """Make a block that opens with a click, so that the page stays short. `name`: its anchor."""
    anchor = f' id="{name}"' if name else ""
    parts = (
        f'<details class="fields"{anchor} markdown>',
        f"<summary>{title}</summary>\n",
        *content,
        "\n</details>\n",
    )
    return "\n".join(parts)


def table_of_base(bases: dict[str, Any]) -> str:
    """Make the table of the fields of the base; a default that is not that of all agents says whose it is."""
    rows = []
    for f in dataclasses.fields(next(iter(bases.values())).base):
        agents: dict[str, list[str]] = {}
        for name, agent in bases.items():
            agents.setdefault(format_value(getattr(agent.base, f.name)), []).append(f"`{name}`")
        (most, _), *others = agents.items()
        exceptions = "".join(f"; {', '.join(names)}: {value}" for value, names in others)
        rows.append([f"`base.{f.name}`", most + exceptions, escape(f.metadata["help"])])
    return format_table(["field", "default", "what"], rows)


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


def block_of_part(part: Any, title: str, name: str) -> str:
    """Make the block of one part: what it does, and its fields."""
    summary = " ".join((type(part).__doc__ or "").split("\n\n")[0].split())
    return block(title, f"{summary}\n", table_of_fields(part, f"{name}."), name=name)


def blocks_of_parts(parts: dict[str, type], socket_means: dict[str, str]) -> list[str]:
    """Make a block for each part that a recipe can add."""
    return [
        block_of_part(cls(), f"<code>+{name}</code>: {socket_means[cls.socket]}", name)
        for name, cls in parts.items()
    ]


def make_page() -> str:
    """Make the whole page."""
    own = (Plain(), GAE(), MonteCarlo(), Learnable(), Clipped(), TrustRegion())
    polyak = "`sac` has `'always'` for `polyak.when`."
    sections = [
        HEAD,
        "## Off-policy agents\n",
        block("Agents that are a base with parts and settings", table_of_expansions(), name="agents"),
        block(
            f"The base: {', '.join(f'<code>{name}</code>' for name in BASES)}",
            table_of_base(BASES),
            name="base",
        ),
        block("What parts override in the base", table_of_overrides(), name="overrides"),
        block(
            "Polyak averaging (every agent without <code>periodic</code>)",
            table_of_fields(plain.Polyak(), "polyak."),
            f"\n{polyak}",
            name="polyak",
        ),
        block(
            "Updates (every agent without <code>checkpoints</code>)",
            table_of_fields(plain.EveryStep(), "every_step."),
            name="every_step",
        ),
        block(
            "The deterministic policy gradient (<code>td3</code>)",
            table_of_fields(plain.DPG(), "dpg."),
            name="dpg",
        ),
        block("Soft improvement (<code>sac</code>)", table_of_fields(plain.Soft(), "soft."), name="soft"),
        *blocks_of_parts(PARTS, SOCKET_MEANS),
        "\n## On-policy agents\n",
        block(
            f"The base: {', '.join(f'<code>{name}</code>' for name in on_policy.BASES)}",
            table_of_base(on_policy.BASES),
            name="on-policy-base",
        ),
        *(block_of_part(part, f"<code>{part.name}</code>, where a recipe has it", part.name) for part in own),
        *blocks_of_parts(on_policy.PARTS, on_policy.SOCKET_MEANS),
        "\n## The run\n",
        "Flags of `qscape train` and fields of `qscape.Plan`, beside recipe, environment, steps and seed.\n",
        block("The run", table_of_fields(Plan("td3", "Pendulum-v1", 1), ""), name="run"),
    ]
    return "\n".join(sections) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
    print(PAGE)
