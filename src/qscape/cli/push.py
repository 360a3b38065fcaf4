"""The command `qscape push RUN --repo OWNER/NAME`."""

import dataclasses
from pathlib import Path

from qscape.cli import options
from qscape.cli.running import plain_console
from qscape.errors import MissingArgument
from qscape.run.training import set_up_jax
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class PushOptions:
    """Flags of `qscape push`."""

    repo: str | None = setting(None, "Repository on the Hugging Face hub, OWNER/NAME; created if missing.")
    private: bool = setting(False, "Make a new repository private.")
    episodes: int = setting(10, "Number of evaluation episodes for the card and its pictures.")


def main(argv: list[str]) -> int:
    """Upload a run with its card."""
    path, given = options.parse_after(PushOptions(), argv, "RUN", "qscape push")
    if not given.repo or given.repo.count("/") != 1:
        raise MissingArgument("qscape push RUN needs a repository: add --repo OWNER/NAME.", field="repo")
    set_up_jax()
    from qscape.export.hub import push_run

    address, notes = push_run(Path(path), given.repo, private=given.private, episodes=given.episodes)
    for line in (*notes, f"{address}: qs.load('hub:{given.repo}'), or qscape pull {given.repo}"):
        plain_console().print(line, soft_wrap=True)
    return 0
