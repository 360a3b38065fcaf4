"""Presets: settings of papers and of others who searched, by agent, part and environment.

A row holds the settings of a base alone, or of a base with one part. A recipe takes the rows of its base and
of its parts from one paper. Of the papers that have some of these rows, the first by this order is taken:

1. papers with a row for a policy loss or a selector of the recipe;
2. papers with settings for the environment;
3. the paper with the most rows.

Parts that this paper does not have take their fields from other papers; a policy loss or a selector that it
does not have is refused, if it has others. A user's value wins over all of them.
"""

from typing import Any

from qscape.agents.building import build
from qscape.agents.grammar import nearest
from qscape.agents.plugins import contrib_table
from qscape.agents.recipes import PARTS, Settings
from qscape.agents.settings import merge_settings
from qscape.agents.sources import Paper
from qscape.agents.tuned import TUNED
from qscape.errors import UnfitAgent, UnknownName


def _flags_of(paper: Paper, base: str, env: str) -> str:
    """Return the flags with which a source trains in an environment, in brackets; "" if it names none."""
    meant = paper.meant_for.get((base, env), "")
    return f" ({meant})" if meant.startswith("--") else ""


def _moves(part: str) -> bool:
    """Return whether a part of this name trains the policy, or selects actions, in a way of its own."""
    return part in PARTS and PARTS[part].socket in ("policy_loss", "selector")


def preset(name: str, recipe: str, env: str) -> tuple[Settings, str]:
    """Return the settings of a preset for a recipe in an environment.

    Args:
        name: name of the preset, such as "paper".
        recipe: base and parts joined by +.
        env: id of the environment.

    Returns:
        The settings by part, and the papers that they are from.

    Raises:
        UsageError: the preset is unknown, or has no settings for this recipe or environment.
    """
    if name not in PRESETS:
        raise UnknownName(f"There is no preset '{name}'; {nearest(name, PRESETS)}.", field="preset")
    agent = build(recipe)
    base, *parts = agent.recipe.split("+")

    def fit(paper: Paper) -> tuple[bool, bool, bool, int]:
        known = paper.known(base, parts)
        has_environment = bool(known) and all((base, part, env) in paper.rows for part in known)
        return any(known), any(map(_moves, known)), has_environment, len(known)

    paper = max(PRESETS[name], key=fit)
    known = paper.known(base, parts)
    if not known:
        bases = ", ".join(dict.fromkeys(b for p in PRESETS[name] for b, _, _ in p.rows))
        raise UnfitAgent(
            f"The preset '{name}' has no settings for {base} agents; it has them for {bases}.", field="preset"
        )
    movers = dict.fromkeys(p for b, p, _ in paper.rows if b == base and _moves(p))
    for part in parts if movers else []:
        if part not in known and _moves(part):  # it decides what settings of the base mean: noise, targets
            there = ", ".join(f"{base}+{other}" for other in movers)
            raise UnfitAgent(
                f"The preset '{name}' has no settings for {base}+{part}; it has them for {there}.",
                field="preset",
            )
    found: Settings = {}
    for part in known:
        if (base, part, env) not in paper.rows:
            row = "+".join(filter(None, [base, part]))
            rows = [e for b, p, e in paper.rows if (b, p) == (base, part)]
            there = ", ".join(f"{e}{_flags_of(paper, base, e)}" for e in rows)
            raise UnfitAgent(
                f"The preset '{name}' has no settings for {row} on {env}; it has them on {there}.",
                field="preset",
            )
        found = merge_settings(found, paper.rows[base, part, env])
    sources = [paper.source]
    for part in [part for part in parts if part not in known]:
        for other in PRESETS[name]:
            if fields := other.rows.get((base, part, env), {}).get(part):
                found, sources = merge_settings(found, {part: fields}), [*sources, f"{part}: {other.source}"]
    if meant := paper.meant_for.get((base, env)):
        sources.append(f"meant for: {meant}")
    present = {"base", *agent.parts}  # a part of the recipe may have replaced one of the base
    given = {part: fields for part, fields in found.items() if part in present}
    return given, "; ".join(sources)


# --- Lee et al. 2026: PAVE and the methods it is compared with --------------------------------------------

SMOOTH = {"actor_activation": "silu", "critic_activation": "silu"}  # for all agents of the paper
FAST = {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "warmup": 10_000}
TD3_BASE = SMOOTH | FAST | {"actor_hidden": (400, 300), "critic_hidden": (400, 300)}
SHORT = {"discount": 0.98, "replay_capacity": 200_000}  # TD3 on the two smaller tasks
SAC_BASE = SMOOTH | FAST | {"batch_size": 100, "log_std_min": -20.0, "critic_loss_scale": 0.5}
SAC_ARM = {"base": SAC_BASE, "soft": {"temperature": 0.2}, "every_step": {"every": 50}}

LUNAR, PENDULUM, REACHER = "LunarLander-v3", "Pendulum-v1", "Reacher-v5"
ANT, HOPPER, WALKER, HUMANOID = "Ant-v5", "Hopper-v5", "Walker2d-v5", "Humanoid-v5"
ENVIRONMENTS = (LUNAR, PENDULUM, REACHER, ANT, HOPPER, WALKER, HUMANOID)

# (λ1, λ2, λ3) on TD3 and on SAC. Humanoid is in the released settings and not in the paper's tables.
PAVE_WEIGHTS = {
    LUNAR: ((0.1, 0.1, 0.01), (0.1, 0.5, 0.05)),
    PENDULUM: ((2.0, 0.005, 2.0), (0.1, 0.005, 0.5)),
    REACHER: ((0.1, 0.1, 0.01), (0.1, 0.0005, 1.0)),
    ANT: ((0.1, 0.005, 0.5), (0.1, 0.0005, 1.0)),
    HOPPER: ((0.1, 0.005, 0.5), (2.0, 0.0005, 3.0)),
    WALKER: ((0.1, 0.1, 0.01), (2.0, 0.005, 2.0)),
    HUMANOID: ((0.1, 0.005, 0.5), (0.1, 0.0005, 1.0)),
}
# (λS, λT) on TD3, and λS on SAC, where λT is 0.5; λP is always 2.
ASAP_WEIGHTS = {
    LUNAR: ((0.03, 0.005), 10.0),
    PENDULUM: ((0.03, 0.005), 5.0),
    REACHER: ((0.1, 0.1), 5.0),
    ANT: ((0.3, 0.05), 30.0),
    HOPPER: ((0.3, 0.07), 10.0),
    WALKER: ((0.3, 0.05), 5.0),
    HUMANOID: ((0.3, 0.05), 5.0),
}
LIPSNET = {"weight": 1e-5, "epsilon": 1e-4, "initial": 50.0, "width": 32}


def _pave(env: str, arm: int) -> dict[str, float]:
    names = ("mixed_partial", "vector_field", "curvature")
    return dict(zip(names, PAVE_WEIGHTS[env][arm], strict=True)) | {"sigma": 0.01, "delta": 1.0}


def _caps(env: str) -> dict[str, float]:
    temporal, spatial = (1.0, 5.0) if env == PENDULUM else (0.1, 0.5)
    return {"temporal": temporal, "spatial": spatial, "sigma": 0.2}


def _asap(env: str, arm: int) -> dict[str, float]:
    on_td3, spatial = ASAP_WEIGHTS[env]
    spatial, temporal = (spatial, 0.5) if arm else on_td3
    return {"prediction": 2.0, "spatial": spatial, "temporal": temporal, "rate": 0.01}


def _l2c2(env: str) -> dict[str, float]:
    lower, upper = (1.0, 100.0) if env == PENDULUM else (0.1, 10.0)
    return {"sigma": 1.0, "lower": lower, "upper": upper, "beta": 0.1}


def _smooth_control() -> dict[tuple[str, str, str], Settings]:
    """Return the rows of Lee et al. 2026."""
    rows: dict[tuple[str, str, str], Settings] = {}
    for env in ENVIRONMENTS:
        rows["td3", "", env] = {"base": TD3_BASE | (SHORT if env in (LUNAR, PENDULUM) else {})}
        rows["sac", "", env] = SAC_ARM
        for arm, base in enumerate(("td3", "sac")):
            rows[base, "pave", env] = {"pave": _pave(env, arm)}
            rows[base, "caps", env] = {"caps": _caps(env)}
            rows[base, "grad", env] = {"grad": {"temporal": 1.0}}
            rows[base, "asap", env] = {"asap": _asap(env, arm)}
            small = {"actor_hidden": (64, 64), "critic_hidden": (64, 64)} if base == "td3" else {}
            rows[base, "lipsnet", env] = {"base": small, "lipsnet": dict(LIPSNET)}
        rows["sac", "l2c2", env] = {"l2c2": _l2c2(env)}
    return rows


# --- SAVGO: the released variant behind each published row ------------------------------------------------

# Candidates of each task (Gymnasium -v5). The published rows of the first two are the second variant's.
SAVGO_V2 = {"HalfCheetah-v5": 128, HUMANOID: 256}
SAVGO_V1 = {ANT: 256, WALKER: 64, HOPPER: 64, "Swimmer-v5": 128, REACHER: 128}
SAVGO_V1 |= {"InvertedPendulum-v5": 64, "InvertedDoublePendulum-v5": 32}
# Truncation cuts the bootstrap, and candidates enter the networks in the environment's units.
RELEASED = {"bootstrap_at_time_limits": False, "warmup": 5_000}


def _savgo() -> dict[tuple[str, str, str], Settings]:
    """Return the rows of SAVGO."""
    rows: dict[tuple[str, str, str], Settings] = {}
    for env, candidates in (SAVGO_V1 | SAVGO_V2).items():
        first = env in SAVGO_V1
        part = {"variant": "v1", "exponent": 2.0} if first else {"variant": "v2", "exponent": 1.5}
        part |= {"adaptive": first, "candidates": candidates, "action_scale": "released"}
        rows["sac", "", env] = {}
        rows["sac", "savgo", env] = {"base": RELEASED, "savgo": part}
    return rows


# --- SAVO: the protocol of its comparisons, the same for every method -------------------------------------

# Table 2; a warm-up of 10,000 steps is inferred. Its epochs imply 0.133 updates per step on MuJoCo, its
# algorithm makes one.
ON_MUJOCO = {"warmup": 10_000, "replay_capacity": 500_000}
ON_MINES = ON_MUJOCO | {"actor_hidden": (128, 64, 64, 32), "critic_hidden": (128, 128)}
ON_MINES |= {"updates_per_step": 0.01, "epsilon_decay": 0.5}
ON_ITEMS = {"warmup": 10_000, "actor_hidden": (64, 32, 32, 16), "critic_hidden": (64, 32)}
ON_ITEMS |= {"updates_per_step": 0.02, "epsilon_decay": 1.0}
OF_TEXT = ("Hopper", "Walker2d", "InvertedPendulum", "InvertedDoublePendulum")
OF_RELEASE = (*OF_TEXT, "HalfCheetah", "Ant")
RESTRICTED = [f"restricted/{name}-v0" for name in OF_TEXT] + [f"restricted/{name}-v1" for name in OF_RELEASE]
DEXTEROUS = [f"AdroitHand{name}-v1" for name in ("Door", "Pen", "Hammer")]
RECSIM = [f"recsim/{name}-v0" for name in ("10k", "100k", "500k", "Data", "DataSynthetic")]
RECSIM += ["recsim/500-v1", "recsim/10k-v1"]
# Unrestricted tasks, on which the paper shows that SAVO loses nothing; the paper uses version 4.
STANDARD = [f"{name}-v{n}" for name in ("Ant", "HalfCheetah", "Hopper", "Walker2d") for n in (4, 5)]
STANDARD += [f"InvertedPendulum-v{n}" for n in (4, 5)]
COMPARED = ("savo", "ou", "wolpertinger", "ensemble", "joint", "cem", "greedy_ac", "greedy_td3")


def _savo() -> dict[tuple[str, str, str], Settings]:
    """Return the rows of SAVO and the methods that it is compared with."""
    tasks = dict.fromkeys([*RESTRICTED, *STANDARD, *DEXTEROUS], ON_MUJOCO) | dict.fromkeys(RECSIM, ON_ITEMS)
    tasks |= {f"mineworld/MineWorld-v{n}": ON_MINES for n in (0, 1)}
    rows: dict[tuple[str, str, str], Settings] = {}
    for env, base in tasks.items():
        rows["td3", "", env] = rows["sac", "", env] = {"base": base}
        rows |= {("td3", part, env): {} for part in COMPARED}
        rows["sac", "savo", env] = {}
    return rows


# --- SAVO as released: the settings to which its code resolves where nothing else is given -----------------

# Every network's gradient is clipped, the twins' each by itself. Decays of ε are shares of the run: with the
# code's 500,000 steps the noise would stay near its maximum for the whole of a short run.
RELEASED_BASE: dict[str, Any] = {
    "warmup": 10_000,
    "actor_norm": "last",
    "init": "small",
    "gradient_clip": 1.0,
    "critic_clip": "each",
    "exploration": "ou",
    "exploration_noise": 0.2,
    "epsilon_mode": "increment",
    "epsilon_end": 0.01,
    "target_actor": True,
}
ON_RELEASED_MUJOCO = {"replay_capacity": 500_000, "target_noise": 0.2, "target_noise_clip": 0.5}
# Smoothing is in the environment's units, which are ±3 here.
ON_FORCES = {name: ON_RELEASED_MUJOCO[name] / 3 for name in ("target_noise", "target_noise_clip")}
Q3C = "USC-Lira/Q3C at 4a5456b"
LONG = ("HalfCheetah", "Ant")  # 3M steps of training, where the others have 2M, and 1M without restriction


# The code does not settle updates per transition, and allows .02 to 1. Its parser gives discrete tasks one
# actor unless told otherwise, without successors; here they have the paper's three.
ON_TABLES = {"target_noise": 0.0, "updates_per_step": 0.02}
ON_FIELDS = {"replay_capacity": 500_000, "actor_hidden": (128, 64, 64, 32), "critic_hidden": (128, 128)}
ON_FIELDS |= {"epsilon_decay": 0.5}
ON_SESSIONS = {"actor_hidden": (64, 32, 32, 16), "critic_hidden": (64, 32)}
RELEASED_TABLES = {
    "mineworld/MineWorld-v1": ON_TABLES | ON_FIELDS,
    "recsim/10k-v1": ON_TABLES | ON_SESSIONS | {"epsilon_start": 0.5, "epsilon_decay": 1.0},
    "recsim/500-v1": ON_TABLES | ON_SESSIONS | {"epsilon_end": 0.0, "epsilon_decay": 0.5},
}


def _savo_released(refined: bool) -> dict[tuple[str, str, str], Settings]:
    """Return the rows of the released SAVO, or of its variant in which online critics choose and value."""
    tasks: dict[str, dict[str, Any]] = {}
    for name in OF_RELEASE:
        forces = ON_FORCES if name == "InvertedPendulum" else {}
        usual = 1 / 6 if name in LONG else 1 / 2
        for env in (f"restricted/{name}-v1", f"{name}-v4", f"{name}-v5"):
            decay = 1 / 4 if usual == 1 / 2 and env.startswith("restricted") else usual
            tasks[env] = ON_RELEASED_MUJOCO | forces | {"epsilon_decay": decay}
    tasks |= RELEASED_TABLES
    critics = {"next_q": "online" if refined else "target", "noise": "proposals"}
    rows: dict[tuple[str, str, str], Settings] = {}
    for env, base in tasks.items():
        wide = any(name in env for name in ("Walker2d", *LONG))
        on_table = env in RELEASED_TABLES
        rows["td3", "", env] = {"base": RELEASED_BASE | base}
        rows["td3", "savo", env] = {
            "savo": {
                "film": "released",
                "raw_vectors": on_table,
                "summary_width": 32 if env.startswith("recsim") else 16,
                "summary_hidden": 256 if wide else 64,
                "surrogate_loss": "mean",
            }
            | critics
        }
        rows["td3", "ou", env] = {}
        rows["td3", "ensemble", env] = {"ensemble": critics | {"smoothing": "choice"}}
        # Joint does not smooth its target here.
        rows["td3", "joint", env] = {
            "base": {"target_noise": 0.0},
            "joint": {"climbs_by": "critic", "noise": "proposals"},
        }
        scale = 3 if "InvertedPendulum-" in env else 1  # the spread is in the environment's units, too
        near = {"straight_through": False} if on_table else {"spread": 0.01 / scale}
        rows["td3", "wolpertinger", env] = {"wolpertinger": near}
    return rows


# --- ACPG: the paper's settings; if it gives none, those of Tianshou, on which it builds ------------------

CLIFF = "cliff/IdealCliffWalking-v0"
PICTURES = [f"ALE/{game}-v5" for game in ("Breakout", "Pong", "Enduro", "Qbert")]
PICTURES += ["CarRacing-v3", "pixels/CartPole-v1"]
PPO_PICTURES: Settings = {
    "base": {
        "rollout": 1_000,
        "batch_size": 256,
        "passes": 4,
        "learning_rate": 2.5e-4,
        "anneal": True,
        "value_coefficient": 0.25,
        "entropy_coefficient": 0.01,
    },
    "clipped": {"bound": 0.1, "value_bound": 0.1},
}
PPO_CARTPOLE: Settings = {
    "base": {"rollout": 2_000, "activation": "relu", "optimiser_epsilon": 1e-8},
    "clipped": {"normalise_advantages": False},
}
A2C_CARTPOLE: Settings = {
    "base": {
        "discount": 0.9,
        "rollout": 16,
        "optimiser": "adam",
        "learning_rate": 1e-3,
        "anneal": False,
        "optimiser_epsilon": 1e-8,
        "gradient_clip": None,
        "entropy_coefficient": 0.0,
        "activation": "relu",
    },
    "gae": {"decay": 1.0},
}


def _action_collapse() -> dict[tuple[str, str, str], Settings]:
    """Return the rows of ACPG."""
    rows: dict[tuple[str, str, str], Settings] = {
        ("reinforce", "", "CartPole-v1"): {},  # these are the defaults
        ("ppo", "", "CartPole-v1"): PPO_CARTPOLE,
        ("a2c", "", "CartPole-v1"): A2C_CARTPOLE,
        ("trpo", "", "CartPole-v1"): {},
    }
    rows |= {(base, "", CLIFF): {} for base in ("reinforce", "a2c", "ppo", "trpo")}
    for env in PICTURES:
        rows["ppo", "", env], rows["trpo", "", env] = PPO_PICTURES, {"base": {"rollout": 1_000}}
        rows["reinforce", "", env], rows["a2c", "", env] = {"base": {"passes": 4}}, {}
    return rows


# --- TQC: quantiles left out per critic. The paper uses versions 2 and 3 of the environments ----------------

TRUNCATED = {"HalfCheetah": 0, "Hopper": 5, "Walker2d": 2, "Ant": 2, "Humanoid": 2}


def _tqc() -> dict[tuple[str, str, str], Settings]:
    """Return the rows of TQC."""
    return {
        ("tqc", "", f"{name}-v{version}"): {"quantile": {"drop": drop}}
        for name, drop in TRUNCATED.items()
        for version in (4, 5)
    }


# --- our own record: one recipe, but not where TD7's own settings reached more ------------------------------

RECORD: Settings = {
    "base": {
        "warmup": 5_000,
        "updates_per_step": 2.0,
        "n_step": 3,
        "exploration_noise": 0.2,
        "critic_norm": "layer",
    },
    "checkpoints": {"early_episodes": 3},
}
BEST: dict[tuple[str, str, str], Settings] = {
    ("td7", "", env): {} if env == "HalfCheetah-v5" else RECORD
    for env in (HOPPER, WALKER, ANT, "HalfCheetah-v5", "Ant-v4")
}


def _of_contrib(name: str) -> list[Paper]:
    """Return the sources that `qscape.contrib` has for a preset."""
    return [Paper(*source) for source in dict(contrib_table("PRESETS")).get(name, ())]


PRESETS: dict[str, list[Paper]] = {
    "paper": [
        Paper("Lee et al. 2026, arXiv 2601.22970", _smooth_control()),
        Paper("SAVGO, arXiv 2605.00787", _savgo()),
        Paper("ACPG, arXiv 2509.02737, and Tianshou", _action_collapse()),
        Paper("SAVO, arXiv 2410.11833", _savo()),
        Paper("TQC, arXiv 2005.04269", _tqc()),
        *_of_contrib("paper"),
    ],
    "released": [
        Paper(f"SAVO's code, {Q3C}", _savo_released(refined=False)),
        *_of_contrib("released"),
    ],
    "refined": [Paper(f"savo_refined of SAVO's code, {Q3C}", _savo_released(refined=True))],
    "tuned": TUNED,
    "best": [Paper("qscape, docs/methods/record.md", BEST)],
}
