"""The command `qscape record RUN --episodes N --dataset NAME`."""

import dataclasses
from pathlib import Path
from typing import Literal

from qscape.cli import options
from qscape.cli.running import plain_console, show_tracks
from qscape.errors import Conflict
from qscape.run.folder import one_run
from qscape.run.record import record_dataset
from qscape.run.training import set_up_jax
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class RecordOptions:
    """Flags of `qscape record`."""

    dataset: str = setting("", "Name of the new Minari dataset, like local/pendulum-v0.")
    episodes: int = setting(10, "Number of episodes to record.")
    policy: Literal["trained", "noisy", "random"] = setting(
        "trained", "Behaviour policy: the trained one, the trained one with noise, or uniform actions."
    )
    noise: float = setting(0.1, "Standard deviation of the noisy policy's noise, in units of [-1, 1].")
    seed: int = setting(0, "Episode k resets the environment with this plus k.")
    current: bool = setting(False, "Use the current policy even if checkpoints keep a better one.")


def main(argv: list[str]) -> int:
    """Record episodes of a run's policy as a Minari dataset."""
    needs = "a name to write to, e.g. --dataset local/pendulum-v0"
    path, given = options.parse_after(RecordOptions(), argv, "RUN", "qscape record", dataset=needs)
    if given.policy != "noisy" and given.noise != RecordOptions.noise:
        raise Conflict(
            "--noise applies to --policy noisy only: add that flag, or leave --noise out.", field="noise"
        )
    set_up_jax()
    args = (given.episodes, given.policy, given.noise, given.seed, given.current)
    with show_tracks():
        made = record_dataset(one_run(Path(path)), given.dataset, *args)
    plain_console().print(
        f"{given.dataset}: {made.total_episodes:,} episodes, {made.total_steps:,} steps, {given.policy}; "
        f"show it with 'qscape dataset {given.dataset}'",
        soft_wrap=True,
    )
    if made.env_spec is None:
        plain_console().print("it does not store its environment: give --env when you train on it")
    return 0
