"""The golden runs of save format 1 (and one of format 2 that was written beside them).

Their folders lie beside this file; `tests/test_golden_format_1.py` reads them. No version writes format 1
any more.
"""

import dataclasses
from pathlib import Path
from typing import Any

from golden.make import EPISODES, collapse, embedding, first_evaluation, landscape

import qscape as qs

NETWORKS = {"actor_hidden": (8, 8), "critic_hidden": (8, 8), "batch_size": 16}
OFF_POLICY = NETWORKS | {"replay_capacity": 500, "warmup": 60, "actor_learning_rate": 3e-3}
PACE: dict[str, Any] = {
    "steps": 375,
    "seed": 3,
    "eval_every": 130,
    "eval_episodes": EPISODES,
    "log_every": 25,
    "save_every": 130,
    "keep_saves": 1,
    "milestones": 0.5,
}


def begin_with(folder: Path) -> dict[str, float]:
    """The first evaluation of a new run that begins with the networks of a run: `qscape train --from`."""
    plan = qs.Plan(
        "sac+normalise+lap",
        "Pendulum-v1",
        env_args={"max_episode_steps": 40},
        envs=2,
        settings={"base": OFF_POLICY | {"warmup": 0, "n_step": 3, "next_observation": "derived"}},
        **PACE | {"steps": 100},
    )
    return first_evaluation(dataclasses.replace(plan, start=str(folder)), folder.parent / "new")


MEASURES = {
    "td7": landscape,
    "sac+savgo": embedding,
    "ppo+etf+normalise+scale_rewards": collapse,
    "sac+normalise+lap": begin_with,
}
