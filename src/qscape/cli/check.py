"""The command `qscape check ENV`."""

import dataclasses
import json
from typing import Literal

from qscape.cli import options
from qscape.cli.output import save_text
from qscape.cli.running import plain_console, show_elapsed
from qscape.jobs.check import SECONDS, STEP_SECONDS, check_env
from qscape.trusted import list_code, trust
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """Flags of `qscape check`."""

    envs: int = setting(1, "Environments side by side, as in training.")
    env_args: tuple[str, ...] = setting(
        (), "Arguments of the environment, e.g. continuous=False; --env.continuous False is the same."
    )
    vectorise: Literal["sync", "async"] = setting(
        "sync", "How they are stepped: in turn, or a process for each."
    )
    seconds: float = setting(SECONDS, "The most seconds of all checks; what does not fit is skipped.")
    step_seconds: float = setting(STEP_SECONDS, "Seconds that one step, reset or constructor may take.")
    json: str | None = setting(None, "Write the findings as JSON.")


def main(argv: list[str]) -> int:
    """Check an environment; return 0 if agents can be trained on it, 1 if not."""
    env, given = options.parse_after(CheckOptions(), argv, "ENV", "qscape check")
    trust(*list_code(env, {}, ()))
    console = plain_console()
    with show_elapsed(console, f"checks, at most {given.seconds:g} seconds"):
        report = check_env(
            env,
            options.env_args(given.env_args),
            envs=given.envs,
            vectorise=given.vectorise,
            seconds=given.seconds,
            step_seconds=given.step_seconds,
            on_finding=lambda finding: console.print(str(finding), soft_wrap=True),
        )
    console.print(report.summary, soft_wrap=True)
    if given.json:
        save_text(json.dumps(report.to_json(), indent=2), given.json)
    return 0 if report.sound else 1
