"""One contract for every part of the core: each row is an agent that goes through the same checks.

A new part is in the table by being in `qscape.agents.PARTS`; `test_the_table_holds_every_choice` says which
of its choices still need a row.
"""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import (  # noqa: F401  the checks
    CAPACITY,
    FRAME,
    QUICK,
    SAME_HLO,
    SYNC,
    WIDTH,
    assert_equal_ends,
    case,
    close,
    fresh,
    make,
    memory,
    pytest_generate_tests,
    test_a_save_goes_on_to_the_bit,
    test_every_number_is_finite,
    test_every_part_has_a_quick_row,
    test_no_random_key_is_used_twice,
    test_only_what_may_move_moves,
    test_schedules_speak_json,
    test_the_table_holds_every_choice,
)
from rows import slow, slow_except
from small import CORE_PARTS, fits

from qscape.offpolicy.sockets import EpisodeEnd, StepEnd
from qscape.offpolicy.state import SEED_AXES
from qscape.types import Transition

ROOM = "qscape"
EVERYTHING = "sale+lap+periodic+value_clip+checkpoints+normalise"

AS_RELEASED: dict[str, Any] = {"film": "released", "summary_width": 4, "summary_hidden": 8}
AS_RELEASED |= {"next_q": "target", "surrogate_loss": "mean", "noise": "proposals"}
RELEASED_BASE: dict[str, Any] = {"target_actor": True, "target_noise": 0.2, "actor_norm": "last"}
RELEASED_BASE |= {"init": "small", "gradient_clip": 1.0, "critic_clip": "each", "epsilon_mode": "increment"}

# name: (recipe, settings); what is not named here is the recipe's default.
TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    recipe: (recipe, {})
    for recipe in (
        "td3",
        "sac",
        "td7",
        "td7_offline",
        "drqv2",
        "bc",
        "iql",
        "dqn",
        *(
            f"{base}+{part}"
            for base in ("td3", "sac", "dqn")
            for part in CORE_PARTS
            if fits(f"{base}+{part}")
        ),
        "td7+pave",
        "td3+savo+pave",
        "td7+savo+pave",
        "td7+savo",
    )
} | {
    "savo: lstm, fresh points, stored lists": (
        "td3+savo",
        {
            "savo": {
                "list_length": 2,
                "summariser": "lstm",
                "conditioning": "both",
                "surrogate_points": "fresh",
                "actor_list": "replay",
                "select_q": "min",
                "straight_through": False,
            },
            "base": {"epsilon_mode": "greedy", "epsilon_end": 0.1, "nearest": "clustered"},
        },
    ),
    "savo: transformer, present choice": (
        "sac+savo",
        {
            "savo": {
                "list_length": 2,
                "summariser": "transformer",
                "summarisers": "shared",
                "summary_width": 8,
                "conditioning": "concat",
                "surrogate_points": "current",
            }
        },
    ),
    "savo: no approximation, no earlier proposals": (
        "td3+savo",
        {"savo": {"conditioning": "none", "surrogate": "exact"}, "base": {"target_noise": 0.2}},
    ),
    "savo: as released": ("td3+savo", {"savo": AS_RELEASED, "base": RELEASED_BASE}),
    "savo: as released, on td7": (
        "td7+savo+pave",
        {"savo": AS_RELEASED | {"list_length": 2}, "base": RELEASED_BASE},
    ),
    "savo: as released, one actor": (
        "td3+savo",
        {"savo": AS_RELEASED | {"list_length": 1}, "base": RELEASED_BASE},
    ),
    "savo: as released, on a table": (
        "td3+savo",
        {"savo": AS_RELEASED | {"raw_vectors": True}, "base": RELEASED_BASE | {"target_noise": 0.0}},
    ),
    "savo: as released, refined, on a table and sac": (
        "sac+savo+lap",
        {
            "savo": AS_RELEASED
            | {"raw_vectors": True, "next_q": "online", "list_length": 2}
            | {"surrogate_points": "current"},
            "base": {"actor_norm": "last", "init": "small", "gradient_clip": 1.0, "critic_clip": "each"},
        },
    ),
    "ensemble: as released": (
        "td3+ensemble",
        {
            "ensemble": {"next_q": "target", "noise": "proposals", "smoothing": "choice"},
            "base": RELEASED_BASE,
        },
    ),
    "joint: as released": (
        "td3+joint",
        {
            "joint": {"climbs_by": "critic", "noise": "proposals"},
            "base": {"target_actor": True, "init": "small"},
        },
    ),
    "joint: mean": ("td3+joint", {"joint": {"climbs_by": "mean"}}),
    "wolpertinger: at the proposal": ("td3+wolpertinger", {"wolpertinger": {"straight_through": False}}),
    "resets: all networks": ("td3+savo+resets", {"savo": {"list_length": 2}, "resets": {"every": 4}}),
    "resets: last layers": ("sac+resets", {"resets": {"every": 4, "what": "last"}}),
    "greedy and dpg": ("td3+ou+greedy_td3", {"greedy_td3": {"add_dpg": True}}),
    "sale: s' and reward": (
        "td3+sale",
        {
            "sale": {
                "target": "next_observation",
                "predict_reward": True,
                "critic_inputs": ["zsa", "zs"],
                "actor_inputs": ["zs"],
                "input_width": 6,
                "state_norm": "layer",
                "pair_norm": "avg_l1",
                "input_norm": "none",
            }
        },
    ),
    "sale: fixed copy, cosine": (
        "td3+sale",
        {
            "sale": {
                "target": "fixed_embedding",
                "loss": "cosine",
                "critic_inputs": ["sa"],
                "actor_inputs": ["s"],
                "state_norm": "none",
                "pair_norm": "layer",
                "input_norm": "layer",
            },
            "base": {"actor_objective": "first"},
        },
    ),
    "sale: next pair, current encoder": (
        "td3+sale",
        {"sale": {"target": "next_pair", "frozen": False, "critic_inputs": ["sa", "zsa"]}},
    ),
    "sale: batch normalisation": (
        "td3+sale",
        {"sale": {f"{what}_norm": "batch" for what in ("state", "pair", "input")}},
    ),
    "sale: end to end": ("sac+sale", {"sale": {"end_to_end": 1.0, "critic_inputs": ["sa", "zs"]}}),
    "sale: only z_sa": ("sac+sale", {"sale": {"target": "next_pair", "critic_inputs": ["zsa"]}}),
    "least of two, checkpoints by the mean": (
        "td7",
        {
            "base": {"actor_objective": "min"},
            "checkpoints": {
                "criterion": "mean",
                "lower_negative_bars": True,
                "late_episodes": 2,
                "switch": 1,
            },
        },
    ),
    "lap: uniform": ("td3+lap", {"lap": {"prioritised": False}, "base": {"critic_loss": "mse"}}),
    "everything, n-step, derived": (
        f"sac+{EVERYTHING}",
        {
            "base": {"n_step": 3, "next_observation": "derived"},
            "normalise": {"clip": 5.0, "epsilon_under_root": True},
        },
    ),
    "n-step": ("td3", {"base": {"n_step": 3, "actor_activation": "elu", "critic_activation": "silu"}}),
    "pal": (
        "td3+lap",
        {
            "base": {"critic_loss": "pal", "critic_loss_scale": 0.5, "critic_activation": "tanh"},
            "lap": {"alpha": 1.0, "min_priority": 0.1, "reset_highest": False},
        },
    ),
    "derived, clip and decay": (
        "td3",
        {
            "base": {"next_observation": "derived", "actor_activation": "tanh", "gradient_clip": 1.0}
            | {"replay_observations": "bfloat16"}
            | {"critic_weight_decay": 1e-2, "actor_weight_decay": 1e-2},
        },
    ),
    "no delay, one critic": ("td3", {"base": {"policy_delay": 1, "critics": 1, "target_noise": 0.0}}),
    "three critics": (
        "td3",
        {
            "base": {"critics": 3, "actor_objective": "mean", "target_actor": False, "init": "xavier"},
            "polyak": {"when": "always"},
        },
    ),
    "noise that is kept, and an entropy by a deviation": (
        "sac",
        {"base": {"noise_repeat": 3, "noise_repeat_power": 0.0}, "soft": {"target_std": 0.15}},
    ),
    "fixed temperature": (
        "sac",
        {"soft": {"temperature": 0.2}, "base": {"log_std_bound": "tanh", "actor_activation": "silu"}},
    ),
    "pave: two terms on some rows": (
        "sac+sale+pave",
        {"pave": {"curvature": 0.0, "fraction": 0.4}, "base": {"n_step": 3, "next_observation": "derived"}},
    ),
    "savgo: as released first, on pave": (
        "sac+savgo+pave",
        {
            "savgo": {
                "variant": "v1",
                "exponent": 2.0,
                "adaptive": True,
                "center": True,
                "action_scale": "released",
                "kernel_batch": 4,
                "policy_gradient": 0.5,
                "temperature": 0.2,
                "target_entropy": -1.0,
            },
            "base": {"bootstrap_at_time_limits": False},
        },
    ),
    "savgo: a random geometry on sale": (
        "sac+sale+savgo",
        {
            "savgo": {"frozen": True, "gap_scale": 1.0, "temperature_loss": "alpha", "target_std": 0.15},
            "base": {"policy_delay": 2},
        },
    ),
    "savgo on quantiles": (
        "sac+savgo+quantile+lap",
        {"quantile": {"quantiles": 5, "drop": 1}, "savgo": {"kernel_batch": 4}},
    ),
    "dqn: the target chooses": (
        "dqn+quantile",
        {"argmax": {"double": False}, "quantile": {"quantiles": 5}, "base": {"critics": 2}},
    ),
    "images on proposals": ("td3+conv+ensemble+lap+pave+grad", {}),
    "images without an actor": ("td3+conv+cem", {}),
    "delayed sac": (
        "sac",
        {
            "soft": {"target_entropy": -1.0, "density": "released"},
            "base": {"policy_delay": 2, "actor_objective": "first", "exploration_noise": 0.1},
            "polyak": {"when": "actor"},
        },
    ),
    "resets: at a step": ("sac+resets", {"resets": {"at": (4,)}, "base": {"warmup": 1}}),
    "many environments": (
        "td3",
        {
            "base": {"counts": "vector_steps", "exploration": "per_environment", "actor_output_std": 0.01}
            | {"actor_activation": "leaky_relu", "critic_activation": "leaky_relu", "actor_adam_b1": 0.4}
        },
    ),
    "plain options": (
        "sac",
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
        },
    ),
    "plain options, with priorities": (
        "td3+lap",
        {
            "base": {
                "schedule": "cosine",
                "schedule_updates": 20,
                "actor_activation": "mish",
                "critic_activation": "gelu",
            }
        },
    ),
    "smooth actors, as released": (
        "sac+caps+grad+asap+normalise",
        {part: {"across_resets": True} for part in ("grad", "asap")} | {"base": {"n_step": 2}},
    ),
    "quantiles, summed": (
        "sac+quantile",
        {"quantile": {"quantiles": 5, "loss_sum": "sum"}}
        | {"base": {"schedule": "delayed", "schedule_updates": 20, "warmup": 5}},
    ),
    "savgo, densities as released": ("sac+savgo", {"savgo": {"density": "released"}}),
    "dqn: dueling": ("dqn+polyak+lap", {"per_action": {"dueling": True}, "base": {"n_step": 3}}),
}
UNDER = {
    f"{recipe}+quantile": (f"{recipe}+quantile", {})
    for recipe in ("td7", "td3+pave", "td3+savo", "sac+savgo")
}
TABLE |= UNDER
# What `make test` compiles: a row of every part, the cheapest where several hold the same code.
QUICK_ROWS = (
    *("td3", "sac", "td7", "td7_offline", "bc", "iql", "sac+savgo", "dqn: dueling"),
    *(f"td3+{part}" for part in ("sale", "lap", "checkpoints", "conv", "normalise", "pave", "caps", "cem")),
    *(f"td3+{part}" for part in ("greedy_ac", "ensemble", "joint")),
    "savo: no approximation, no earlier proposals",
    "wolpertinger: at the proposal",
    "resets: last layers",
    "everything, n-step, derived",
    "derived, clip and decay",
    "no delay, one critic",
    "smooth actors, as released",
    "greedy and dpg",
    "quantiles, summed",
    "plain options",
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
THOROUGH = "everything, n-step, derived"  # for the checks that take seconds


@pytest.mark.parametrize("rate", [1.0, 0.75, 1.5])
def test_no_burst_leaves_less_than_no_step(rate):
    """A save refuses negative counters."""
    agent, rng, made = (
        make("td3+checkpoints", {"base": {"updates_per_step": rate}}),
        np.random.default_rng(0),
        0,
    )
    counters = agent.schedule.start()
    for length in rng.integers(1, 300, 2_000).tolist():
        counters, *_ = agent.schedule.updates_due(counters, StepEnd(length), agent.base)
        ended = EpisodeEnd(length, rng.uniform(-100, 0), made)
        counters, updates, _ = agent.schedule.updates_due(counters, ended, agent.base)
        assert counters["steps"] >= 0
        made += updates
    assert made > 100_000


# --- checks that take seconds: for few rows ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["td3+lap"])
def test_compiled_equals_uncompiled(name):
    agent = make(*TABLE[name])
    layout = agent.layout(1)
    rows, index = memory(agent)
    update = partial(agent.update, layout)
    state, key = agent.init(jax.random.key(0)), jax.random.key(1)
    together, apart = (state, index), (state, index)
    jitted = jax.jit(update).lower(state, rows, index, key).compile(compiler_options=QUICK)
    for _ in range(2):
        together = jitted(together[0], rows, together[1], key)
        with jax.disable_jit():
            apart = update(apart[0], rows, apart[1], key)
    close(together, apart)


@pytest.mark.slow
@pytest.mark.parametrize("name", [THOROUGH])
def test_two_seeds_in_one_program_equal_two_runs(name):
    agent = make(*TABLE[name])
    update = partial(agent.update, agent.layout(1))
    runs = [(agent.init(jax.random.key(n)), *memory(agent, n), jax.random.key(n + 1)) for n in (0, 1)]
    state, rows, index, key = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
    state = state._replace(updates=runs[0][0].updates, env_steps=runs[0][0].env_steps)
    both = jax.jit(jax.vmap(update, in_axes=(SEED_AXES, 0, 0, 0), out_axes=(SEED_AXES, 0, 0)))
    both = both.lower(state, rows, index, key).compile(compiler_options=QUICK)
    one = jax.jit(update).lower(*runs[0]).compile(compiler_options=QUICK)
    apart = [(run[0], run[2]) for run in runs]
    for _ in range(SYNC):
        state, index, _ = both(state, rows, index, key)
        apart = [one(s, run[1], i, run[3])[:2] for (s, i), run in zip(apart, runs, strict=True)]
    assert state.updates.shape == () == state.env_steps.shape  # unbatched, so that `cond` stays `cond`
    for n, alone in enumerate(apart):
        close(jax.tree.map(lambda leaf, n=n: leaf[n] if leaf.ndim else leaf, (state, index)), alone)


@pytest.mark.parametrize("name", ["td3", slow("td7"), slow(THOROUGH)])
def test_no_program_copies_the_replay(name):
    agent = make(*TABLE[name])
    programs, carry, key = fresh(agent)
    rows, three, steps, no = carry.storage, np.int32(3), np.int32(0), np.zeros(1, bool)
    obs, reward = carry.observation, np.zeros(1, np.float32)
    new = Transition(obs, carry.action, reward, no, no, obs, np.ones(1, bool), carry.columns)
    calls = {
        "step": (programs.step, np.int32(1), steps, key),
        "learn": (programs.learn, three, steps, key),
        "insert": (programs.insert, new, obs),
    }
    lowered = {
        name: program.compiled.lower(*program.arguments(carry, *args))
        for name, (program, *args) in calls.items()
    }
    for program, each in lowered.items():
        compiled = each.compile(compiler_options=SAME_HLO)
        shapes = re.findall(r"= \w+\[([\d,]+)\]\S* copy(?:-start)?\(", compiled.as_text())
        sizes = [int(np.prod([int(d) for d in shape.split(",")])) for shape in shapes]
        assert max(sizes, default=0) < CAPACITY, f"{program} copies {max(sizes)} numbers"
        assert compiled.memory_analysis().temp_size_in_bytes < rows.nbytes, f"{program} makes another replay"


@pytest.mark.parametrize("name", ["td3", slow("sac"), slow("td7")])
def test_an_update_copies_no_network(name):
    """What learns and what follows it is written in place; only the body of a sync makes copies."""
    recipe, settings = TABLE[name]
    rows = {"batch_size": 2 * WIDTH}  # so that no array of a batch has the shape of a layer
    programs, carry, key = fresh(make(recipe, settings | {"base": settings.get("base", {}) | rows}))
    arguments = programs.learn.arguments(carry, np.int32(3), np.int32(0), key)
    text = programs.learn.compiled.lower(*arguments).compile(compiler_options=SAME_HLO).as_text()
    copy = re.compile(rf"= f32\[{WIDTH},{WIDTH}\]\S* copy\(")
    blocks = re.split(r"\n\n(?=%?\w)", text)
    copying = [
        block.split(" ", 1)[0]
        for block in blocks
        if copy.search(block) and "fused" not in block.split(" ", 1)[0]
    ]
    assert len(blocks) > 10
    assert len(copying) == (2 if name == "td7" else 0), copying


# --- settings with which a part does nothing -----------------------------------------------------------

NEUTRAL = {
    "periodic at every update is polyak with rate 1": (
        ("td3+periodic", {"base": {"sync_every": 1}}),
        ("td3", {"base": {"sync_every": 1}, "polyak": {"rate": 1.0, "when": "always"}}),
    ),
    "checkpoints leave the update alone": (
        ("td3+checkpoints", {}),
        ("td3", {"base": {"warmup_to_episode_end": True}}),
    ),
    "a normaliser that saw nothing": (("td3+normalise", {}), ("td3", {})),
    "a gradient clip out of reach": (("td3", {"base": {"gradient_clip": 1e9}}), ("td3", {})),
    "a learned temperature that may not move": (
        ("sac", {"soft": {"learning_rate": 1e-30, "initial_temperature": 0.25}}),
        ("sac", {"soft": {"temperature": 0.25}}),
    ),
}


@pytest.mark.parametrize(
    "name",
    slow_except(["periodic at every update is polyak with rate 1", "a normaliser that saw nothing"], NEUTRAL),
)
def test_neutral_settings_change_nothing(name):
    assert_equal_ends(*NEUTRAL[name])
