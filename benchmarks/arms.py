"""Which run a published number needs: the arm of a study, its command, and what it costs.

The study files of the package are the only list of arms. A number finds its arm by the recipe and by the
settings that the file names; whoever runs the study with `--budget paper` makes the runs that the ledger
looks for.
"""

import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from blocks import RESULTS, ROOT
from published import Row
from recorded import read_json

from qscape.cli.tune import flag
from qscape.jobs.study import BUNDLED, read_study
from qscape.run.plan import Plan

# The studies of each table. Budget `paper` repeats the table, `short` is what a machine of two cores affords.
STUDIES = {
    ("TD7", "Table 1"): ("td7",),
    ("TD7", "abstract"): ("td7",),
    ("TD7", "run time"): ("td7",),
    ("TD7", "Table 2 (D4RL)"): ("td7-d4rl",),
    ("PAVE", "Table: TD3"): ("pave",),
    ("PAVE", "Table: SAC"): ("pave",),
    ("PAVE", "Table: geometry (TD3)"): ("pave",),
    ("PAVE", "Table: geometry during training (TD3)"): ("pave",),
    ("PAVE", "Table: ablation"): ("pave-ablation",),
    ("PAVE", "Table: other regularisers"): ("pave-regularisers",),
    ("SAVGO", "Table 1"): ("savgo", "savgo-ant", "savgo-ablations", "savgo-baselines"),
    ("SAVGO", "Figure: learning curves"): (
        "savgo",
        "savgo-ant",
        "savgo-ablations",
        "savgo-baselines",
        "savgo-redq",
    ),
    ("SAVGO", "Figure: K"): ("savgo-ablations",),
    ("SAVGO", "Figure: λ"): ("savgo-ablations",),
    ("SAVGO", "Figure: components"): ("savgo-ablations",),
    ("SAVO", "Table 1"): ("savo-actors",),
    ("SAVO", "Figure 8 (order of the curves)"): ("savo", "savo-discrete"),
    ("ACPG", "Table: scores"): (
        "acpg",
        "acpg-cartpole-pixels",
        "acpg-carracing",
        "acpg-atari",
        "acpg-atari-trpo",
    ),
    ("ACPG", "Table: exploration"): ("acpg-exploration",),
}
ENVIRONMENTS = {
    "Pendulum": "Pendulum-v1",
    "LunarLander": "LunarLander-v3",
    "RecSim": "recsim/10k-v0",
    "RecSim-Data": "recsim/DataSynthetic-v0",
    "MineWorld": "mineworld/MineWorld-v0",
    "CartPole": "CartPole-v1",
    "CarRacing": "CarRacing-v3",
    **{game: f"ALE/{game}-v5" for game in ("Pong", "Enduro", "Qbert")},
}
UNNAMED = ("sum of", "mean of", "a ")  # tasks that begin so are several, or one that a paper does not name
FRAMES = 10_000_000  # steps of a run on images whose length the paper does not state: assumed
SEEDS_UNSTATED = 5


def env_of(task: str) -> str:
    """Return the environment of a task of the papers."""
    if task.startswith("restricted "):
        return f"restricted/{task.split()[1]}-v0"
    if task == "CartPole (CNN)":
        return "pixels/CartPole-v1"
    name = task.split(" ")[0]  # "Hopper medium" is a dataset of Hopper, "Pong (CNN)" a network for Pong
    return ENVIRONMENTS.get(name, f"{name}-v5")


def dataset_of(row: Row) -> str:
    """Return the file of a task of D4RL; "" if the task is an environment."""
    return f"{re.sub('[ -]', '_', row.task.lower())}-v2.hdf5" if "D4RL" in row.table else ""


@functools.cache
def plans(study: str) -> list[Plan]:
    """Return one plan of each arm of a study with the budget `paper`."""
    file = next(f for f in (BUNDLED / f"{study}.toml", ROOT / "studies" / f"{study}.toml") if f.exists())
    return [row.plan for row in read_study(file, "paper").rows if row.plan.seed == 0]


PAVE_TERMS = {"MPR": "mixed_partial", "VFC": "vector_field", "Curv": "curvature"}
CANDIDATES = {
    "HalfCheetah": 128,
    "Humanoid": 256,
    "Ant": 256,
    "Swimmer": 128,
    "Reacher": 128,
    "InvertedDoublePendulum": 32,
}
ATARI_MLP = {"plain": {"image_hidden": [256, 128, 256]}}
SAVGO_VARIANTS: dict[str, dict[str, Any]] = {
    "fixed τ = 1": {"tau_end": 1.0},
    "random frozen encoder": {"frozen": True},
    "β = 1": {"gap_scale": 1.0},
    "uniform weights": {"uniform": 1.0},
}


def arm_of(paper: str, task: str, agent: str) -> tuple[str, dict[str, Any] | None] | None:
    """Return the recipe of an agent of a paper's tables and the settings that its study names.

    Settings of None fit any: the study has one arm of the recipe. The whole is None if qscape does not have
    the agent.
    """
    name, _, variant = agent.partition(", ")
    if paper == "PAVE":
        terms = variant.split("+") if variant else [*PAVE_TERMS]
        if not {*terms} <= {*PAVE_TERMS}:
            return None  # gradient penalty and spectral norm
        off = {field: 0.0 for term, field in PAVE_TERMS.items() if term not in terms}
        recipe = name.lower()
        return recipe, {"pave": off} if off else {}
    if paper == "SAVO":
        agents = {"TD3": "td3+ou", "Wolpertinger": "td3+wolpertinger", "SAVO": "td3+savo"}
        return agents[name], {"base": {"epsilon_decay": 0.25}} if task.startswith("restricted") else {}
    if paper == "SAVGO" and name == "SAVGO":
        recipe = "sac+savgo" if task == "Ant" else "sac+savgo+normalise"
        return recipe, {"savgo": fields} if (fields := savgo_fields(task, variant)) else {}
    if paper == "ACPG":
        algorithm, *rest = name.split("+")
        recipe = {"A3C": "a2c"}.get(algorithm, algorithm.lower()) + ("+etf" if rest else "")
        return recipe, acpg_settings(task, variant)
    known = {
        **{of: of.lower() for of in ("TD3", "SAC", "TD7", "TQC", "REDQ", "PPO", "IQL")},
        "TD3+BC": "td3+bc+normalise",
    }
    return (known[agent], None) if agent in known else None


def acpg_settings(task: str, variant: str) -> dict[str, Any]:
    """Return the settings for a network on images and for ε, the rate of random actions."""
    if variant:
        epsilon = float(variant.removeprefix("ε = "))
        return {"base": {"exploration": epsilon}} if epsilon else {}
    if task == "CarRacing (MLP)":
        return {"plain": {"images": "flat"}}
    return ATARI_MLP if task.endswith("(MLP)") and not task.startswith("CartPole") else {}


def savgo_fields(task: str, variant: str) -> dict[str, Any]:
    """Return the fields of SAVGO in its tables, sweeps and ablations."""
    name, _, value = variant.partition(" = ")
    if not variant and task in ("HalfCheetah", "Humanoid"):  # where its study sweeps these fields
        return {"candidates": CANDIDATES[task], "exponent": 1.5}
    if not variant:
        return {}
    if name == "K":
        return {"candidates": int(value), "exponent": 1.5}
    if name == "λ":
        return {"candidates": 256, "exponent": float(value)}
    return SAVGO_VARIANTS[variant]


def plan_of(row: Row, agent: str) -> Plan | None:
    """Return the plan of an agent of a row; None if no run can give the number.

    Raises:
        LookupError: the row's study does not have exactly one such arm.
    """
    unnamed = row.task.startswith(UNNAMED) or row.table == "run time"  # which is that of a certain GPU
    arm = None if unnamed else arm_of(row.paper, row.task, agent)
    if arm is None:
        return None
    recipe, settings = arm
    found = [
        plan
        for study in STUDIES[row.paper, row.table]
        for plan in plans(study)
        if (plan.recipe, plan.env, Path(plan.dataset).name) == (recipe, env_of(row.task), dataset_of(row))
        if settings is None or plan.settings == settings
    ]
    if len(found) != 1:
        raise LookupError(f"{row.paper}, {row.table}: {len(found)} arms for {agent} on {row.task}")
    return found[0]


def command_of(row: Row, agent: str) -> str:
    """Return the command that makes a run of an agent of a row; "" if no run can give the number."""
    plan = plan_of(row, agent)
    if plan is None:
        return ""
    words = ["qscape train", plan.recipe]
    words += ["--dataset", Path(plan.dataset).name] if plan.dataset else []
    words += ["--env", plan.env]
    args = [f"{name}={value}" for name, value in plan.env_args.items()]
    words += ["--env-args", *args] if args else []
    words += ["--steps", str(row.steps or plan.steps)]
    words += ["--envs", str(plan.envs)] if plan.envs > 1 else []
    words += ["--preset", plan.preset] if plan.preset else []
    for part, fields in plan.settings.items():
        for field, value in fields.items():
            words += flag(f"{part}.{field}", value, isinstance(value, bool))
    return " ".join(words)


# --- what a row would cost ----------------------------------------------------------------------------

STEP = 3e-4  # seconds of an environment step with the choice of its action, MuJoCo, one core
STEP_OF = {"MineWorld": 3e-5, "RecSim": 8e-4, "RecSim-Data": 8e-4}  # the same, with 20 or 16 environments
CAR = 2e-2  # the same of CarRacing, four frames: assumed, not measured
UPDATES_PER_STEP = {"MineWorld": 0.01, "RecSim": 0.02, "RecSim-Data": 0.02}
CHEAP = {"ou", "wolpertinger", "bc", "normalise"}  # parts that cost an update next to nothing


@functools.cache
def update_seconds() -> dict[str, float]:
    """Return the median seconds of an update by agent, on one core of the slower machine.

    Agents that were measured on the faster machine alone cost as much more here as TD3 does.
    """
    slow, fast = (
        {name: float(np.median(times)) for name, times in read_json(file)["seconds an update"].items()}
        for file in ("updates/20261121-100318.json", "updates/20261123-135211.json")
    )
    return {name: seconds * slow["td3"] / fast["td3"] for name, seconds in fast.items()} | slow


def cost_of_update(plan: Plan, task: str) -> float | None:
    """Return the seconds of one update of an arm; None if it is not measured."""
    known = {"iql": update_seconds()["td3"], **update_seconds()}
    if "savgo" in plan.recipe:
        per_candidate = (known["sac+savgo, K 128"] - known["sac+savgo, K 32"]) / 96
        candidates = plan.settings.get("savgo", {}).get("candidates") or CANDIDATES.get(task, 64)
        return known["sac+savgo, K 32"] + (candidates - 32) * per_candidate
    base, *parts = (part for part in plan.recipe.split("+") if part not in CHEAP)
    if not all(name in known for name in (base, *(f"td3+{part}" for part in parts))):
        return None
    return known[base] + sum(known[f"td3+{part}"] - known["td3"] for part in parts)


@functools.cache
def on_policy_seconds(task: str) -> float:
    """Return the seconds of an environment step of an on-policy agent, with its share of the updates."""
    if task.startswith("CarRacing"):
        return CAR
    if re.match("Pong|Enduro|Qbert", task):
        return sum(float(np.median(s)) for s in read_json("on_policy/atari.json")["seconds_a_step"].values())
    name = "CartPole-v1" if task.startswith("CartPole") else "HalfCheetah-v5"
    lines = map(json.loads, (RESULTS / "on_policy" / "returns.jsonl").read_text().splitlines())
    ours = [r["cpu_seconds"] / r["steps"] for r in lines if (r["library"], r["task"]) == ("qscape", name)]
    return float(np.median(ours))


def hours(row: Row) -> dict[str, float] | None:
    """Return the core-hours of all runs behind a row, by agent; None: no such run, or its cost is unknown."""
    found = {}
    for agent in row.agents:
        plan = plan_of(row, agent)
        seconds = math.nan if plan is None else seconds_of_run(row, plan)
        if math.isnan(seconds):
            return None
        found[agent] = (row.seeds or SEEDS_UNSTATED) * seconds / 3600
    return found


def seconds_of_run(row: Row, plan: Plan) -> float:
    """Return the core-seconds of one run of a row; NaN if the cost of its update is unknown."""
    steps = row.steps or FRAMES
    if row.paper == "ACPG" or plan.recipe == "ppo":
        return steps * on_policy_seconds(row.task)
    update = cost_of_update(plan, row.task)
    step = 0.0 if plan.dataset else STEP_OF.get(row.task, STEP)
    updates = UPDATES_PER_STEP.get(row.task, 0.133 if row.paper == "SAVO" else 1.0)
    return math.nan if update is None else steps * (step + updates * update)
