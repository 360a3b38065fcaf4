"""The command `qscape dataset NAME`."""

import dataclasses

from qscape.cli import options
from qscape.cli.running import plain_console, table
from qscape.data import read
from qscape.data.dataset import summarise
from qscape.errors import Conflict
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """Flags of `qscape dataset`."""

    env: str | None = setting(None, "Environment id, if the dataset does not store it.")
    env_args: tuple[str, ...] = setting((), "Arguments of that environment, e.g. continuous=False.")


def main(argv: list[str]) -> int:
    """Print a summary of a dataset."""
    name, given = options.parse_after(DatasetOptions(), argv, "NAME", "qscape dataset")
    if given.env_args and not given.env:
        raise Conflict(
            "--env-args are arguments of --env, which is not there: add it, or leave them out.",
            field="env_args",
        )
    dataset = read(name, given.env, options.env_args(given.env_args))
    console, summary_table = (
        plain_console(),
        table(name, ["", ""], [list(line) for line in summarise(dataset)]),
    )
    summary_table.columns[1].justify = "left"
    console.print(summary_table)
    for note in dataset.notes:
        console.print(note, soft_wrap=True)
    return 0
