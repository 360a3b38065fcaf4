"""The contract of parts for those of `qscape.contrib`: each row goes through the checks of `contract`.

A part is in the table by being in `qscape.contrib.PARTS`; `test_the_table_holds_every_choice` says which of
its choices still need a row.
"""

import re
from typing import Any

import contract
import numpy as np
from contract import (  # noqa: F401  the checks
    WIDTH,
    assert_equal_ends,
    assert_follows,
    case,
    make,
    pytest_generate_tests,
    test_a_save_goes_on_to_the_bit,
    test_every_number_is_finite,
    test_every_part_has_a_quick_row,
    test_no_random_key_is_used_twice,
    test_only_what_may_move_moves,
    test_schedules_speak_json,
    test_the_table_holds_every_choice,
)
from small import CONTRIB_PARTS, fits

from qscape.offpolicy.state import State

ROOM = "qscape.contrib"
TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    recipe: (recipe, {})
    for base in ("td3", "sac", "dqn")
    for recipe in (f"{base}+{part}" for part in CONTRIB_PARTS)
    if fits(recipe)
} | {
    "eas: evaluations, imitated on sac": (
        "sac+eas+imitate",
        {"eas": {"apply_at": "act", "fitness": "min", "pulls_by": "particle", "includes_own": False}},
    ),
    "eas: targets, imitated": (
        "td3+eas+imitate+normalise",
        {"eas": {"apply_at": "all", "trust": 0.2}, "base": {"warmup": 0, "next_observation": "derived"}},
    ),
    "esa: evaluations, without units": (
        "sac+esa",
        {"esa": {"apply_at": "act", "scales_by_spread": False, "guard": True}},
    ),
    "esa: targets": (
        "td3+esa",
        {"esa": {"apply_at": "all"}, "base": {"epsilon_mode": "greedy"} | {"epsilon_end": 0.1}},
    ),
    "plain options, scaled rewards": (
        "sac+reward_scale",
        {
            "base": {
                "discount_rule": "time_limit",
                "init": "orthogonal",
                "decay": "decoupled",
                "decay_what": "weights",
                "schedule": "linear",
                "schedule_updates": 20,
                "actor_horizon": "updates",
                "policy_delay": 2,
            }
            | {f"{net}_norm": "layer" for net in ("actor", "critic")}
            | {f"{net}_weight_decay": 1e-2 for net in ("actor", "critic")}
            | {"actor_activation": "gelu", "critic_activation": "mish"},
            "soft": {"temperature_loss": "alpha"},
            "reward_scale": {"bound": None},
        },
    ),
    "plain options, scaled rewards in priorities": (
        "td3+lap+reward_scale",
        {
            "base": {
                "schedule": "cosine",
                "schedule_updates": 20,
                "actor_activation": "mish",
                "critic_activation": "gelu",
            }
        },
    ),
    "smooth actors with l2c2, as released": (
        "sac+caps+grad+asap+l2c2+jacobian+normalise",
        {part: {"across_resets": True} for part in ("grad", "asap")} | {"base": {"n_step": 2}},
    ),
    "pave on atoms": ("td7+c51+pave", {"c51": {"atoms": 11, "low": -20.0, "high": 20.0}}),
    "savo on bins": (
        "td3+savo+hl_gauss+own_target",
        {"savo": {"list_length": 2}, "hl_gauss": {"atoms": 11}},
    ),
    "quantiles as in bro": ("sac+quantile+mean_target", {"quantile": {"quantiles": 5, "loss_sum": "sum"}}),
    "implicit, with bins": ("iql+hl_gauss", {"hl_gauss": {"atoms": 11}}),
    "redq with four": ("sac+redq+c51", {"base": {"critics": 4}, "c51": {"atoms": 11}}),
    "dropout, own bins": ("sac+droq+hl_gauss+own_target", {"hl_gauss": {"atoms": 11}}),
    "dropout on sale": ("td3+sale+droq+pave", {"droq": {"rate": 0.1}}),
    "batch norm, as in xqc's code": (
        "sac+crossq_wn",
        {
            "crossq_wn": {"target_critics": False, "renorm_after": None, "project_last": True},
            "soft": {"density": "released"},
        },
    ),
    "crossq with targets on sale": (
        "td3+sale+crossq",
        {"crossq": {"target_critics": True, "renorm_after": None}},
    ),
    "xqc, free outputs": ("sac+xqc+c51", {"xqc": {"project_last": False}, "c51": {"atoms": 11}}),
    "flashsac, its noise and its aim": (
        "flash_sac",
        {"base": {"schedule_updates": 20, "noise_repeat": 3}, "c51": {"atoms": 11}},
    ),
    "flashsac on sale, several steps": (
        "td7+flashsac+pave",
        {"base": {"n_step": 3, "next_observation": "derived"}},
    ),
    "simbav2 with savo and pave": ("sac+simbav2+c51+savo+pave", {"c51": {"atoms": 11}}),
    "simba on td7": ("td7+simba+pave", {}),
    "bro": ("bro+dual_policy", {"quantile": {"quantiles": 5}, "resets": {"at": (4,)}, "base": {"warmup": 1}}),
    "savgo, as released": ("sac+savgo+crossq", {"savgo": {"density": "released"}}),
    "fast on proposals": ("td3+savo+fast", {"savo": {"list_length": 2}}),
    "fast on atoms and a geometry": ("fast_sac+savgo", {"c51": {"atoms": 11}}),
    "fast on sale": ("td7+fast+pave", {}),
    "dqn: dueling, on atoms": (
        "dqn+c51+polyak+lap",
        {"per_action": {"dueling": True}, "c51": {"atoms": 11}, "base": {"n_step": 3}},
    ),
    "hindsight: final goals, half of the rows": (
        "td3+lap+her+normalise",
        {"her": {"strategy": "final", "relabels": 2, "ratio": 0.5}, "base": {"n_step": 3}},
    ),
    "hindsight: goals of an episode": ("sac+lap+her", {"her": {"strategy": "episode"}}),
    "rip": ("rip", {"base": {"critic_activation": "leaky_relu"}}),
    "implicit: without noise, on bins": (
        "td3+implicit+hl_gauss",
        {"implicit": {"noise_size": 0, "critics_see_noise": True, "evaluation": "zero"}}
        | {"hl_gauss": {"atoms": 11}},
    ),
    "rip of a gaussian, sale": ("sac+sale+rip", {}),
    "lsflow": ("lsflow", {}),
    "q3c": ("q3c+lap", {"base": {"schedule_updates": 20}}),
    "q3c: nearest pairs, a smoothing that stays": (
        "q3c+redq+simba",
        {"base": {"schedule": "constant", "critics": 3}, "separate": {"kind": "near_pairs"}}
        | {"control_points": {"decay": "constant", "normalise": False}},
    ),
    "q3c: scaled rewards, mean targets, resets": (
        "q3c+reward_scale+mean_target+resets",
        {"base": {"schedule_updates": 20}, "resets": {"every": 4}},
    ),
    "q3c: maximin, linear": (
        "q3c+bronet+normalise",
        {"base": {"schedule": "constant", "n_step": 2}, "separate": {"kind": "maximin"}}
        | {"control_points": {"decay": "linear", "smoothing_steps": 100, "smoothing": 0.1}},
    ),
    "lsflow on sale, more dimensions": ("td3+sale+lsflow+pave", {"lsflow": {"extra_dimensions": 2}}),
    "dpo: samples": ("td3+sale+dpo", {"dpo": {"evaluation": "sample"}}),
    "images through dropout": ("sac+conv+droq+c51+redq", {"c51": {"atoms": 11}, "base": {"n_step": 3}}),
    "images through batch norm": (
        "sac+conv+crossq+resets",
        {"resets": {"every": 4}, "base": {"policy_delay": 2}},
    ),
}
# Every network, value, rule of targets and `fast` under TD7, PAVE, SAVO and SAVGO.
MODERN = (
    *("simba", "simbav2", "bronet", "crossq", "crossq_wn", "xqc", "flashsac", "droq", "redq", "fast"),
    *("c51", "hl_gauss", "mean_target", "own_target", "reward_scale"),
)
UNDER = {
    recipe: (recipe, {"c51": {"atoms": 11}} if part == "c51" else {})
    for part in MODERN
    for recipe in (f"td7+{part}", f"td3+pave+{part}", f"td3+savo+{part}", f"sac+savgo+{part}")
    if fits(recipe)
}
TABLE |= UNDER
# A row of every part, the cheapest where several hold the same code.
QUICK_ROWS = (
    *("sac+lipsnet", "dqn: dueling, on atoms"),
    *(f"td3+{part}" for part in ("crossq", "crossq_wn", "xqc", "flashsac", "simba", "simbav2", "dpo", "esa")),
    "eas: targets, imitated",
    "smooth actors with l2c2, as released",
    "dropout, own bins",
    "quantiles as in bro",
    "redq with four",
    "rip",
    "lsflow",
    "q3c",
    "implicit: without noise, on bins",
    "hindsight: final goals, half of the rows",
    "plain options, scaled rewards",
    "bro",
    "fast on proposals",
)
# Parts on sac and dqn that stand on td3, too.
AGAIN = [
    row
    for row, (recipe, _) in TABLE.items()
    if recipe == row not in QUICK_ROWS
    and re.match(r"(sac|dqn)\+\w+$", row)
    and re.sub(r"^\w+", "td3", row) in TABLE
]
AGAIN += UNDER

contract.SMALL |= {
    "rip": {"imitation_updates": 0, "hidden": (WIDTH,)},
    "implicit": {"target_samples": 3, "value_limit": 3.0},
    "lsflow": {
        "hidden": (WIDTH,),
        "flow_steps": 2,
        "candidates": 3,
        "target_samples": 5,
        "reward_updates": 1,
    },
    "dpo": {"hidden": (WIDTH,)},
    "control_points": {"points": 5, "nearest": 3},
}


# --- how what a part carries in `extra` moves ----------------------------------------------------------


def esa_moves(was: Any, now: Any, new: State, syncs: bool) -> None:
    assert now > 0
    assert was != now


def rip_moves(was: Any, now: Any, new: State, syncs: bool) -> None:
    assert abs(now - was) > 0.0


def lsflow_moves(was: Any, now: Any, new: State, syncs: bool) -> None:
    moves = int(new.updates) % 2 == 0
    assert_follows(was.slow, now.slow, new.part_states["lsflow"].params if moves else was.slow)
    assert (now.mean, now.std) != (was.mean, was.std)


def dual_policy_moves(was: Any, now: Any, new: State, syncs: bool) -> None:
    step = np.abs(now.free - was.free)
    assert ((step > 0) & (step < 1e-4)).all()


def dpo_moves(was: Any, now: Any, new: State, syncs: bool) -> None:
    assert_follows(was, now, new.part_states["dpo"].params.normaliser)


def control_points_moves(was: Any, now: Any, new: State, syncs: bool) -> None:
    assert now.steps == was.steps
    falls = now.steps > 1 and new.env_steps > 0  # the row whose smoothing stays counts no steps
    assert 0 < now.now < was.now if falls else now.now == was.now


contract.RULES |= {
    "control_points": control_points_moves,
    "esa": esa_moves,
    "rip": rip_moves,
    "lsflow": lsflow_moves,
    "dual_policy": dual_policy_moves,
    "dpo": dpo_moves,
}


# --- settings with which a part does nothing -----------------------------------------------------------


def test_target_critics_that_are_the_critics_change_nothing():
    copied = {"crossq": {"target_critics": True}, "polyak": {"rate": 1.0, "when": "always"}}
    assert_equal_ends(("sac+crossq", copied), ("sac+crossq", {}))
