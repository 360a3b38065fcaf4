"""Environments that break their protocol, in every kind of loop."""

import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tiny

from faults.trial import Bench, Failed, call, check, untouched
from qscape.run import saves

FLAWS: dict[str, Any] = {
    "constructor": KeyError("a \x1b[31mred\x07\ntext"),
    "reset": ValueError("no map"),
    "step": RuntimeError("the simulator is gone"),
    "close": OSError("no display"),
    "memory": MemoryError(),
    "recursion": RecursionError("maximum depth"),
    "exit": SystemExit(7),
    "interrupt": KeyboardInterrupt(),
    "assert": AssertionError(),
    "stop": StopIteration(),
    **dict.fromkeys(
        ["four", "none", "shape", "dtype", "list", "text reward", "no reward", "huge reward", "nan reward",
         "inf observation", "array reward", "text end", "no info", "info list", "no observation_space",
         "no action_space", "odd reset", "far observation", "array end", "objects"]
    ),
}  # fmt: skip


class Faulty(tiny.Clock):
    """A clock with one flaw, from its 120th step on (or in its constructor, `reset` or `close`)."""

    def __init__(self, flaw: str = "step", at: int = 120):
        super().__init__()
        self.flaw, self.at = flaw, at
        if flaw == "constructor":
            raise FLAWS[flaw]
        if flaw.startswith("no ") and flaw.endswith("_space"):
            delattr(self, flaw[3:])

    def reset(self, *, seed=None, options=None):
        shown, info = super().reset(seed=seed)
        if self.flaw == "reset" and self.life >= self.at:
            raise FLAWS["reset"]
        return shown if self.flaw == "odd reset" and self.life >= self.at else (shown, info)  # type: ignore[return-value]

    def step(self, action) -> Any:
        shown, reward, terminated, truncated, info = super().step(action)
        if self.life < self.at:
            return shown, reward, terminated, truncated, info
        if isinstance(problem := FLAWS[self.flaw], BaseException) and self.flaw not in ("reset", "close"):
            raise problem
        broken = {
            "four": (shown, reward, terminated, info),
            "none": None,
            "shape": (shown[:2], reward, terminated, truncated, info),
            "dtype": (shown.astype(object), reward, terminated, truncated, info),
            "list": ([*map(float, shown)], reward, terminated, truncated, info),
            "text reward": (shown, "much", terminated, truncated, info),
            "no reward": (shown, None, terminated, truncated, info),
            "huge reward": (shown, 1e300, terminated, truncated, info),
            "nan reward": (shown, np.nan, terminated, truncated, info),
            "array reward": (shown, np.zeros(3), terminated, truncated, info),
            "inf observation": (shown * np.inf, reward, terminated, truncated, info),
            "far observation": (shown + np.float32(3e38), reward, terminated, truncated, info),
            "text end": (shown, reward, "no", truncated, info),
            "array end": (shown, reward, np.array([False, True]), truncated, info),
            "no info": (shown, reward, terminated, truncated, None),
            "info list": (shown, reward, terminated, truncated, [1]),
            "objects": (object(), reward, terminated, truncated, info),
        }
        return broken.get(self.flaw, (shown, reward, terminated, truncated, info))

    def close(self):
        if self.flaw == "close":
            raise FLAWS["close"]


if "Faulty-v0" not in gym.registry:
    gym.register("Faulty-v0", Faulty, disable_env_checker=True)

JAX = (
    "bounds",
    "weak",
    "dtype",
    "vmap",
    "limit",
    "nan",
    "half",
    "early",
    "never",
    "mixed",
)  # tests/faulty.py
TD3 = tiny.flags("td3", warmup=50)
HOST = {
    "host": ["td3", *TD3],
    "vector": ["td3", *TD3, "--envs", "3"],
    "td7": ["td7", *tiny.flags("td7", warmup=50)],
    "on-policy": ["ppo", "--base.rollout", "32", "--base.batch-size", "32"],
    "vmap": ["td3", *TD3, "--seeds", "0", "1", "--seeds-as", "vmap"],
}


def faulty_environments(rng: random.Random, place: Path, bench: Bench) -> str:
    """One sentence, or what the environment raised; saves that were made before stay whole."""
    group = place / "run"
    pace = [
        "--steps",
        "300",
        "--save-every",
        "50",
        "--eval-every",
        "100",
        "--eval-episodes",
        "2",
        "--out",
        group,
    ]
    if rng.random() < 0.2:
        flaw, loop = rng.choice(JAX), "compiled"
        argv = ["train", "td3", *TD3, "--envs", "2", "--env", "faulty:make", "--env-args", f"flaw={flaw}"]
    else:
        flaw, loop = rng.choice([*FLAWS]), rng.choice([*HOST])
        argv = [
            "train",
            *HOST[loop],
            "--env",
            "faults.environments:Faulty-v0",
            "--env-args",
            f"flaw={flaw}",
            f"at={rng.choice([1, 60, 120, 170])}",
        ]
    argv += pace
    with untouched(place, group, argv):
        try:
            done = call(*argv)
        except KeyboardInterrupt:
            raise Failed("KeyboardInterrupt passed through the command", argv) from None
    codes = {"exit": (7, 0, 1), "interrupt": (130, 0)}.get(flaw, (0, 1, 2))
    check(done, argv, codes)
    for run in group.glob("*"):
        for name in saves.names(run / "saves"):
            saves.check(run / "saves" / name)
    return f"{flaw} in {loop}: {done.code}"
