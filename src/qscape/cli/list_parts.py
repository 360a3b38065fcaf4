"""`qscape list`: agents, parts, presets, environments and studies."""

import re
from itertools import takewhile
from pathlib import Path

import gymnasium as gym
from rich.table import Table

from qscape.agents import (
    BASE_HELP,
    BASES,
    EXPANSIONS,
    PARTS,
    PRESETS,
    SOCKET_MEANS,
    onpolicy,
    plugins,
    register_all_installed,
)
from qscape.cli import COMMANDS
from qscape.cli.running import plain_console, table
from qscape.envs import simulators
from qscape.errors import UnknownName
from qscape.jobs.study import BUNDLED, names_of_studies

SECTIONS = ("agents", "parts", "presets", "envs", "studies")


def main(argv: list[str]) -> int:
    """Print the sections that the user names, or all of them; see `COMMANDS` for the usage."""
    if {"-h", "--help"} & {*argv}:
        print(f"usage: qscape list {COMMANDS['list'][1]}")
        return 0
    for section in argv:
        if section not in SECTIONS:
            raise UnknownName(f"qscape list takes {', '.join(SECTIONS)}, not '{section}'.")
    console = plain_console()
    wanted = argv or list(SECTIONS)
    if "agents" in wanted:
        rows = [[name, "", BASE_HELP[name]] for name in BASES]
        rows += [[name, expansion.recipe, expansion.help] for name, expansion in EXPANSIONS.items()]
        console.print(_left(table("Agents, off-policy", ["name", "is", "what"], rows)))
        rows = [[name, BASE_HELP[name]] for name in onpolicy.BASES]
        console.print(_left(table("\nAgents, on-policy", ["name", "what"], rows)))
    if "parts" in wanted:
        problems = register_all_installed()
        for family, parts, means in (
            ("off-policy", PARTS, SOCKET_MEANS),
            ("on-policy", onpolicy.PARTS, onpolicy.SOCKET_MEANS),
        ):
            rows = [
                [
                    f"+{name}",
                    means[cls.socket],
                    (cls.__doc__ or "").split("\n")[0],
                    plugins.ORIGINS.get(name, "qscape"),
                ]
                for name, cls in parts.items()
            ]
            title = f"\nParts of {family} agents; what does not fit together is refused in a sentence"
            console.print(_left(table(title, ["name", "where it fits", "what", "from"], rows)))
        for problem in problems:
            console.print(f"not usable: {problem}", soft_wrap=True)
    if "presets" in wanted:
        rows = [
            [name, ", ".join(bases), ", ".join(envs), paper.source]
            for name, papers in PRESETS.items()
            for paper in papers
            for envs, bases in paper.environments().items()
        ]
        columns = ["name", "agents", "environments", "from"]
        console.print(_left(table("\nPresets, for --preset NAME", columns, rows)))
    if "envs" in wanted:
        groups: dict[str, list[str]] = {}
        for spec in gym.registry.values():
            if not isinstance(spec.entry_point, str):  # an old id whose only effect is an error
                continue
            family = str(spec.entry_point).split(":")[0].split(".")
            groups.setdefault(".".join(family[:3]), []).append(spec.id)
        rows = [[family, ", ".join(sorted(ids))] for family, ids in sorted(groups.items())]
        rows += [[f"extra {name}", _list_simulator(name, "envs" in argv)] for name in simulators.PACKAGES]
        console.print(_left(table("\nEnvironments", ["from", "ids"], rows)))
    if "studies" in wanted:
        rows = [[name, _first_comment(BUNDLED / f"{name}.toml")] for name in names_of_studies()]
        console.print(_left(table("\nStudies, for qscape study run NAME", ["name", "what"], rows)))
    return 0


def _first_comment(file: Path) -> str:
    """Return the first sentence of the comment that a study file begins with."""
    lines = takewhile(lambda line: line.strip("# "), file.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.strip("# ") for line in lines)
    return re.split(r"(?<=[^l][.?]) ", text)[0]


def _list_simulator(name: str, fully: bool) -> str:
    """Name the environments of a simulator, if it is installed; `fully` because its import takes seconds."""
    if not simulators.is_installed(name):
        return f'{name}/...: pip install "qscape[{name}]"'
    return ", ".join(simulators.list_ids(name)) if fully else f"{name}/...: see qscape list envs"


def _left(made: Table) -> Table:
    """Align all columns of a table to the left, and return it."""
    for column in made.columns:
        column.justify, column.overflow = "left", "fold"
    return made
