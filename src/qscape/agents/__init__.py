"""Recipes: build agents from a base and parts, with the settings of papers."""

from qscape.agents import onpolicy, plugins
from qscape.agents.other_names import ours
from qscape.agents.presets import PRESETS, Settings, merge_settings, preset
from qscape.agents.recipes import (
    BASE_HELP,
    BASES,
    EXPANSIONS,
    PARTS,
    Agent,
    Override,
    agent,
    apply_overrides,
    build,
    changed_fields,
    nearest,
    parse,
    parts_of,
    recipe_for_dataset,
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
    "Override",
    "Settings",
    "agent",
    "apply_overrides",
    "build",
    "changed_fields",
    "merge_settings",
    "nearest",
    "onpolicy",
    "ours",
    "parse",
    "parts_of",
    "plugins",
    "preset",
    "recipe_for_dataset",
    "register",
    "register_all_installed",
    "register_named",
    "settings_of",
]
