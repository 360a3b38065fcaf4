"""Where the settings of a preset are from."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from qscape.agents.recipes import Settings

Rows = Mapping[tuple[str, str, str], Settings]


class Paper(NamedTuple):
    """The settings of one source: a paper, or a repository that searched them.

    Attributes:
        source: the paper, as runs print it.
        rows: settings by (base, part, environment); part "" is the base alone.
        meant_for: what else the source trains with, as recipe and flags, by (base, environment).
    """

    source: str
    rows: Rows
    meant_for: Mapping[tuple[str, str], str] = MappingProxyType({})

    def known(self, base: str, parts: list[str]) -> list[str]:
        """Return the parts with rows for this base; "" comes first if the base alone has rows."""
        pairs = {key[:2] for key in self.rows}
        return [part for part in ("", *parts) if (base, part) in pairs]

    def environments(self) -> dict[tuple[str, ...], list[str]]:
        """Return the bases that have rows for the same environments, by these environments."""
        of: dict[str, dict[str, None]] = {}
        for base, _, env in self.rows:
            of.setdefault(base, {})[env] = None
        sharing: dict[tuple[str, ...], list[str]] = {}
        for base, envs in of.items():
            sharing.setdefault(tuple(envs), []).append(base)
        return sharing
