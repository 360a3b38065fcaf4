"""Settings of the papers behind parts and agents of `qscape.contrib`, by agent, part and environment."""

from collections.abc import Mapping
from typing import Any, NamedTuple

Rows = dict[tuple[str, str, str], Mapping[str, Mapping[str, Any]]]

# REDQ's target entropies, which are MBPO's; DroQ's rates of dropout, which its other code sets to 0.01. The
# papers use versions 2 and 3 of the environments.
TARGET_ENTROPY = {"HalfCheetah": -3.0, "Hopper": -1.0, "Walker2d": -3.0, "Ant": -4.0, "Humanoid": -2.0}
DROPOUT = {"Hopper": 1e-4, "Walker2d": 5e-3, "Ant": 0.01, "Humanoid": 0.1}


def _ensembles() -> tuple[Rows, Rows]:
    """Return the rows of REDQ and of DroQ."""
    redq, droq = {}, {}
    for name, entropy in TARGET_ENTROPY.items():
        for env in (f"{name}-v4", f"{name}-v5"):
            redq["redq", "", env] = {"soft": {"target_entropy": entropy}}
            if name in DROPOUT:
                droq["droq", "", env] = redq["redq", "", env] | {"droq": {"rate": DROPOUT[name]}}
    return redq, droq


REDQ, DROQ = _ensembles()
# Humanoids walking in MuJoCo Playground, with 1,024 environments and what only critics see.
HUMANOIDS = [
    f"playground/{robot}Joystick{ground}Terrain" for robot in ("G1", "T1") for ground in ("Flat", "Rough")
]
FLASH_SAC: Rows = {("flash_sac_parallel", "", env): {"base": {"discount": 0.97}} for env in HUMANOIDS}
CROSSQ: Rows = {("crossq", "", f"Swimmer-v{version}"): {"base": {"discount": 0.9999}} for version in (4, 5)}


class Task(NamedTuple):
    """How Q3C's released code trains on a task.

    Attributes:
        base: fields of the base that differ from those of Hopper.
        points: N and k.
        smoothing: C at the start.
        separation: kind and weight c.
        steps: length of the run.
        env_args: arguments of the environment.
    """

    base: Mapping[str, Any]
    points: tuple[int, int]
    smoothing: float
    separation: tuple[str, float]
    steps: int
    env_args: str = ""


SMALL_TASK = {"replay_capacity": 200_000, "warmup": 1_000}
CAREFUL = {"critic_learning_rate": 3e-4}
EARLY = {"warmup": 10_000}
Q3C_TASKS: dict[str, Task] = {
    "Pendulum-v1": Task(
        SMALL_TASK | {"discount": 0.98, "batch_size": 64}, (3, 3), 0.1, ("repulsion", 0.01), 50_000
    ),
    "restricted/InvertedPendulum-v1": Task(
        SMALL_TASK | {"target_noise": 0.0}, (3, 3), 0.1, ("repulsion", 0.01), 1_000_000, "factor=3"
    ),
    "Hopper": Task({}, (20, 10), 0.01, ("near_pairs", 0.01), 1_000_000),
    "restricted/Hopper-v1": Task({}, (20, 10), 1.0, ("repulsion", 0.1), 2_000_000, "factor=1.25"),
    "BipedalWalker-v3": Task(
        EARLY | CAREFUL | {"discount": 0.98, "replay_capacity": 200_000, "gradient_clip": 1.0},
        *((20, 10), 0.001, ("near_pairs", 1.0), 1_000_000),
    ),
    "Ant": Task(
        EARLY | {"replay_capacity": 500_000, "critic_learning_rate": 5e-4, "gradient_clip": 5.0},
        *((30, 15), 0.001, ("repulsion", 0.1), 3_000_000),
    ),
    "HalfCheetah": Task({}, (20, 10), 0.01, ("repulsion", 1.0), 1_000_000),
    "restricted/HalfCheetah-v1": Task(
        CAREFUL | {"replay_capacity": 1_000_000},
        *((30, 10), 1e-6, ("repulsion", 1.0), 3_000_000, "factor=0.25"),
    ),
    "Swimmer": Task(
        EARLY | {"discount": 0.9999, "replay_capacity": 50_000}, (20, 10), 0.1, ("repulsion", 1.0), 1_000_000
    ),
    "Walker2d": Task(EARLY, (20, 10), 1.0, ("repulsion", 0.1), 1_000_000),
    "restricted/Walker2d-v1": Task(EARLY, (20, 10), 0.1, ("repulsion", 0.1), 3_000_000, "factor=0.25"),
    "AdroitHandHammer-v1": Task(
        CAREFUL | {"warmup": 50_000, "replay_capacity": 1_000_000, "critic_hidden": (256, 256)},
        *((70, 10), 1e-6, ("repulsion", 0.1), 5_000_000),
    ),
}


def _q3c() -> tuple[Rows, dict[tuple[str, str], str]]:
    """Return the rows of Q3C and, by agent and environment, what else its code trains with."""
    rows: Rows = {}
    flags: dict[tuple[str, str], str] = {}
    for name, task in Q3C_TASKS.items():
        (count, nearest), (kind, weight) = task.points, task.separation
        settings = {
            "base": task.base,
            "control_points": {"points": count, "nearest": nearest, "smoothing": task.smoothing},
            "separate": {"kind": kind, "weight": weight},
        }
        args = f" --env-args {task.env_args}" if task.env_args else ""
        for env in [name] if "-v" in name else [f"{name}-v4", f"{name}-v5"]:
            rows["q3c", "", env] = settings
            flags["q3c", env] = f"--steps {task.steps} --envs 4 --eval-every {task.steps // 100}{args}"
    return rows, flags


# By preset, sources as the arguments of `qscape.agents.sources.Paper`: name, rows, what they are meant for.
PRESETS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "paper": (
        ("REDQ, arXiv 2101.05982", REDQ),
        ("DroQ, arXiv 2110.02034", DROQ),
        ("CrossQ, arXiv 1902.05605", CROSSQ),
        ("FlashSAC, arXiv 2604.04539", FLASH_SAC),
    ),
    "released": (("Q3C, USC-Lira/Q3C at 4a5456b", *_q3c()),),
}
