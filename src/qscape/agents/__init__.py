"""Recipes: which part sits in which socket, with the paper's settings."""

from qscape.agents import onpolicy, plugins
from qscape.agents.other_names import ours
from qscape.agents.presets import PRESETS, Settings, merged, preset
from qscape.agents.recipes import (
    BASE_HELP,
    BASES,
    EXPANSIONS,
    PARTS,
    Agent,
    Move,
    agent,
    build,
    changed,
    nearest,
    on_dataset,
    overridden,
    parse,
    parts_of,
    register,
    register_all_installed,
    register_named,
    settings_of,
)

__all__ = [
    "BASES",
    "BASE_HELP",
    "EXPANSIONS",
    "PARTS",
    "PRESETS",
    "Agent",
    "Move",
    "Settings",
    "agent",
    "build",
    "changed",
    "merged",
    "nearest",
    "on_dataset",
    "onpolicy",
    "ours",
    "overridden",
    "parse",
    "parts_of",
    "plugins",
    "preset",
    "register",
    "register_all_installed",
    "register_named",
    "settings_of",
]
