"""Recipes: which part sits in which socket, with the paper's settings."""

from qscape.agents.recipes import (
    BASES,
    EXPANSIONS,
    PARTS,
    Move,
    build,
    changed,
    nearest,
    overridden,
    parse,
    settings_of,
)

__all__ = [
    "BASES",
    "EXPANSIONS",
    "PARTS",
    "Move",
    "build",
    "changed",
    "nearest",
    "overridden",
    "parse",
    "settings_of",
]
