"""Recipes: build agents from a base and parts, with the settings of papers."""

from qscape.agents import onpolicy, plugins
from qscape.agents.building import advise_part, agent, build, changed_fields, with_base
from qscape.agents.grammar import (
    nearest,
    parse,
    parts_of,
    recipe_for_dataset,
    recipe_for_images,
    register,
    register_all_installed,
    register_named,
)
from qscape.agents.other_names import ELSEWHERE, OTHER_POLICIES, difference, ours
from qscape.agents.presets import PRESETS, preset
from qscape.agents.recipes import (
    BASE_HELP,
    BASES,
    EXPANSIONS,
    PARTS,
    SOCKET_MEANS,
    Agent,
    Expansion,
    Settings,
)
from qscape.agents.settings import Override, flatten, list_overrides, merge_settings, set_fields, settings_of

__all__ = [
    "BASES",
    "BASE_HELP",
    "ELSEWHERE",
    "EXPANSIONS",
    "OTHER_POLICIES",
    "PARTS",
    "PRESETS",
    "SOCKET_MEANS",
    "Agent",
    "Expansion",
    "Override",
    "Settings",
    "advise_part",
    "agent",
    "build",
    "changed_fields",
    "difference",
    "flatten",
    "list_overrides",
    "merge_settings",
    "nearest",
    "onpolicy",
    "ours",
    "parse",
    "parts_of",
    "plugins",
    "preset",
    "recipe_for_dataset",
    "recipe_for_images",
    "register",
    "register_all_installed",
    "register_named",
    "set_fields",
    "settings_of",
    "with_base",
]
