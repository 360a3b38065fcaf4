"""Recipes: which part sits in which socket, with the paper's settings."""

from qscape.agents import onpolicy
from qscape.agents.presets import PRESETS, Settings, merged, preset
from qscape.agents.recipes import (
    BASES,
    EXPANSIONS,
    PARTS,
    Agent,
    Move,
    build,
    changed,
    nearest,
    on_dataset,
    overridden,
    parse,
    parts_of,
    settings_of,
)

__all__ = [
    "BASES",
    "EXPANSIONS",
    "PARTS",
    "PRESETS",
    "Agent",
    "Move",
    "Settings",
    "build",
    "changed",
    "merged",
    "nearest",
    "on_dataset",
    "onpolicy",
    "overridden",
    "parse",
    "parts_of",
    "preset",
    "settings_of",
]
