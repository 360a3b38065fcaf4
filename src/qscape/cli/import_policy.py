"""The command `qscape import FILE --env ID --out RUN`."""

import dataclasses
from pathlib import Path

from qscape.cli import options
from qscape.cli.running import plain_console
from qscape.export.stable_baselines import convert_file
from qscape.run.training import set_up_jax
from qscape.system import file_name
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """Flags of `qscape import`."""

    env: str = setting("", "Id of the environment that the policy was trained in.")
    env_args: tuple[str, ...] = setting((), "Arguments of the environment, e.g. continuous=False.")
    out: str | None = setting(None, "Run folder to write; None: runs/ENV/NAME/0.")
    overwrite: bool = setting(False, "Replace an existing run.")


def main(argv: list[str]) -> int:
    """Convert a Stable-Baselines3 TD3 or SAC file to a run folder."""
    needs = "the environment it was trained in, e.g. --env Pendulum-v1"
    file, given = options.parse_after(ImportOptions(), argv, "FILE", "qscape import", env=needs)
    name = Path("runs") / file_name(given.env) / Path(file).stem / "0"
    folder = Path(given.out) if given.out else name
    set_up_jax()
    off = convert_file(Path(file), given.env, folder, options.env_args(given.env_args), given.overwrite)
    plain_console().print(
        f"{folder}: acts like {file}, largest difference {off:.1e} on 1,000 observations",
        soft_wrap=True,
    )
    return 0
