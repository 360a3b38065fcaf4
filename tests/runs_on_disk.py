"""Run folders with evaluations that a test chooses, as `qscape train` writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qscape.run.sinks import EVALUATION_COLUMNS

Points = Mapping[int, Sequence[float]]  # returns of the episodes of each evaluation, by step


def write_run(
    folder: Path | str,
    *,
    label: str = "td3",
    env: str = "Ant-v5",
    seed: int = 0,
    returns: Points = {0: [1.0], 10: [2.0]},  # noqa: B006
    kept: Points | None = None,
    steps: int | None = None,
    env_args: Mapping[str, Any] | None = None,
) -> Path:
    """Write run.json and evaluations.csv. `steps` None: the run ended at its last evaluation."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    record = {
        "recipe": label.split("[")[0],
        "label": label,
        "env": env,
        "seed": seed,
        "steps": steps or max(returns),
        "env_args": dict(env_args or {}),
    }
    (folder / "run.json").write_text(json.dumps(record))
    lines = [",".join(EVALUATION_COLUMNS)]
    for policy, points in (("current", returns), ("kept", kept or {})):
        for step, values in points.items():
            lines += [f"{step},{policy},{k},{value},7,,0.1" for k, value in enumerate(values)]
    (folder / "evaluations.csv").write_text("\n".join(lines) + "\n")
    return folder
