"""One contract for every part: each row of the table is an agent that goes through the same checks.

A new part is in the table by being in `PARTS`; `test_the_table_holds_every_choice` says which of its choices
still need a row.
"""

import contextlib
import dataclasses
import json
import re
from collections import Counter
from functools import partial
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rows import slow, slow_except
from small import fill, fits, fusion_emitters, make_spec, same, transitions

from qscape import agents
from qscape.methods.resets import Resets
from qscape.nets.batch_norm import split_statistics
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.cycle import Carry, Outcome
from qscape.offpolicy.sockets import EpisodeEnd, StepEnd
from qscape.offpolicy.state import SEED_AXES, State
from qscape.run import saves
from qscape.run.programs import Programs

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
            for part in agents.PARTS
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
    "fixed temperature": (
        "sac",
        {"soft": {"temperature": 0.2}, "base": {"log_std_bound": "tanh", "actor_activation": "silu"}},
    ),
    "pave: two terms on some rows": (
        "sac+sale+pave",
        {"pave": {"curvature": 0.0, "fraction": 0.4}, "base": {"n_step": 3, "next_observation": "derived"}},
    ),
    "smooth actors, as released": (
        "sac+caps+grad+asap+l2c2+normalise",
        {part: {"across_resets": True} for part in ("grad", "asap")} | {"base": {"n_step": 2}},
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
            "savgo": {"frozen": True, "gap_scale": 1.0, "temperature_loss": "alpha"},
            "base": {"policy_delay": 2},
        },
    ),
    "pave on atoms": ("td7+c51+pave", {"c51": {"atoms": 11, "low": -20.0, "high": 20.0}}),
    "savo on bins": (
        "td3+savo+hl_gauss+own_target",
        {"savo": {"list_length": 2}, "hl_gauss": {"atoms": 11}},
    ),
    "savgo on quantiles": (
        "sac+savgo+quantile+lap",
        {"quantile": {"quantiles": 5, "drop": 1}, "savgo": {"kernel_batch": 4}},
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
    "dqn: the target chooses": (
        "dqn+quantile",
        {"argmax": {"double": False}, "quantile": {"quantiles": 5}, "base": {"critics": 2}},
    ),
    "rip": ("rip", {"base": {"critic_activation": "leaky_relu"}}),
    "implicit: without noise, on bins": (
        "td3+implicit+hl_gauss",
        {"implicit": {"noise_size": 0, "critics_see_noise": True, "evaluation": "zero"}}
        | {"hl_gauss": {"atoms": 11}},
    ),
    "rip of a gaussian, sale": ("sac+sale+rip", {}),
    "lsflow": ("lsflow", {}),
    "lsflow on sale, more dimensions": ("td3+sale+lsflow+pave", {"lsflow": {"extra_dimensions": 2}}),
    "dpo: samples": ("td3+sale+dpo", {"dpo": {"evaluation": "sample"}}),
    "images on proposals": ("td3+conv+ensemble+lap+pave+grad", {}),
    "images without an actor": ("td3+conv+cem", {}),
    "images through dropout": ("sac+conv+droq+c51+redq", {"c51": {"atoms": 11}, "base": {"n_step": 3}}),
    "images through batch norm": (
        "sac+conv+crossq+resets",
        {"resets": {"every": 4}, "base": {"policy_delay": 2}},
    ),
    "delayed sac": (
        "sac",
        {
            "soft": {"target_entropy": -1.0},
            "base": {"policy_delay": 2, "actor_objective": "first", "exploration_noise": 0.1},
            "polyak": {"when": "actor"},
        },
    ),
}
# Every network, value, rule of targets and `fast` under TD7, PAVE, SAVO and SAVGO.
MODERN = (
    *("simba", "simbav2", "bronet", "crossq", "crossq_wn", "xqc", "droq", "redq", "fast"),
    *("c51", "hl_gauss", "quantile", "mean_target", "own_target", "reward_scale"),
)
UNDER = {
    recipe: (recipe, {"c51": {"atoms": 11}} if part == "c51" else {})
    for part in MODERN
    for recipe in (f"td7+{part}", f"td3+pave+{part}", f"td3+savo+{part}", f"sac+savgo+{part}")
    if fits(recipe)
}
TABLE |= UNDER
# What `make test` compiles: a row of every part, the cheapest where several hold the same code.
QUICK_ROWS = (
    *("td3", "sac", "td7", "td7_offline", "bc", "iql", "sac+savgo", "sac+lipsnet", "dqn: dueling, on atoms"),
    *(f"td3+{part}" for part in ("sale", "lap", "checkpoints", "conv", "normalise", "pave", "caps", "cem")),
    *(f"td3+{part}" for part in ("crossq", "crossq_wn", "xqc", "simba", "simbav2")),
    *(f"td3+{part}" for part in ("dpo", "greedy_ac", "ensemble", "joint", "esa")),
    "savo: no approximation, no earlier proposals",
    "wolpertinger: at the proposal",
    "eas: targets, imitated",
    "resets: last layers",
    "everything, n-step, derived",
    "derived, clip and decay",
    "no delay, one critic",
    "smooth actors, as released",
    "dropout, own bins",
    "greedy and dpg",
    "quantiles as in bro",
    "redq with four",
    "rip",
    "lsflow",
    "implicit: without noise, on bins",
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
THOROUGH = "everything, n-step, derived"  # for the checks that take seconds
UPDATES, SYNC = 6, 4
WIDTH, CAPACITY = 8, 1024
FRAME = (2, 2)  # of the rows on images, whose observations are four pixels and one number
# Half the time to compile, and the same HLO: only the machine code made of it is less good.
SAME_HLO = {"xla_backend_optimization_level": 0}
QUICK = SAME_HLO | fusion_emitters(False)  # a third of the time


def make(recipe: str, settings: dict[str, Any]) -> Agent:
    """The agent of a row, small and synchronising often."""
    agent = unbound(recipe, settings)
    frame = FRAME if agent.representation.name == "conv" else None
    return agent.on(make_spec(agent, time_limit=100, frame=frame))


def unbound(recipe: str, settings: dict[str, Any]) -> Agent:
    """The agent of a row before it is bound to its task."""
    small: dict[str, Any] = {
        "base": {"batch_size": WIDTH, "replay_capacity": CAPACITY, "sync_every": SYNC}
        | {f"{net}_hidden": (WIDTH, WIDTH) for net in ("actor", "critic")}
    }
    if "sale" in agents.build(recipe).parts:
        small["sale"] = {"width": WIDTH, "hidden": (WIDTH,)}
    if "savgo" in agents.build(recipe).parts:
        small["savgo"] = {"candidates": 4, "embedding": WIDTH, "hidden": (WIDTH,)}
    small["rip"] = {"imitation_updates": 0, "hidden": (WIDTH,)}
    small["implicit"] = {"target_samples": 3, "value_limit": 3.0}
    small["lsflow"] = {"hidden": (WIDTH,), "flow_steps": 2, "candidates": 3, "target_samples": 5}
    small["lsflow"] |= {"reward_updates": 1}
    small["dpo"] = {"hidden": (WIDTH,)}
    small["conv"] = {"channels": 4, "kernel": 2, "strides": (1,), "width": WIDTH, "shift": 1}
    small = {name: own for name, own in small.items() if name in ("base", *agents.build(recipe).parts)}
    if agents.build(recipe).base.policy_delay > UPDATES:
        small["base"]["policy_delay"] = 2
    merged = {name: small.get(name, {}) | settings.get(name, {}) for name in small | settings}
    return agents.build(recipe, merged)


FILLED: dict[tuple, Any] = {}


def memory(agent: Agent, seed: int = 0) -> tuple[jax.Array, Any]:
    """A filled replay; filling it is compiled once for all rows that share it."""
    kind = (agent.replay, agent.scaling, agent.layout(1), seed)
    if kind not in FILLED:
        FILLED[kind] = fill(agent, *transitions(seed, agent.task.choices))
    return FILLED[kind]


def numpy(tree: Any) -> Any:
    """The tree on the host, in buffers of its own (the originals are donated)."""
    return jax.tree.map(np.array, tree)


def device(tree: Any) -> Any:
    return jax.tree.map(jnp.array, tree)


@contextlib.contextmanager
def watched():
    """Counts, while they run, the keys drawn from and the keys folded in programs traced in here."""
    drawn, folded = Counter(), Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal", "uniform", "randint", "split", "bernoulli", "rademacher", "choice", "fold_in"):
            original, seen = getattr(jax.random, name), folded if name == "fold_in" else drawn

            def watch(key, *args, original=original, seen=seen, **kwargs):
                jax.debug.callback(lambda data: seen.update([tuple(data.tolist())]), jax.random.key_data(key))
                return original(key, *args, **kwargs)

            patch.setattr(jax.random, name, watch)
        yield drawn, folded


class Case(NamedTuple):
    """A row of the table that made its updates."""

    agent: Agent
    go: Any  # one update and the next action: (carry, number) -> carry
    history: list[Carry]  # before the first update and after each, without the storage
    storage: jax.Array
    key: jax.Array
    actions: list[np.ndarray]
    drawn: Counter
    folded: Counter

    @property
    def states(self) -> list[State]:
        """The state before the first update and after each."""
        return [carry.state for carry in self.history]


def seen(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The observation acted on after an update; none is the first of its episode."""
    return np.asarray(transitions(1)[0].obs[number : number + 1]), np.zeros(1, bool)


def fresh(agent: Agent, seed: int = 0) -> tuple[Programs, Carry, jax.Array]:
    """The programs of an agent, a carry with a filled replay, and the run's key."""
    layout = agent.layout(1)
    programs = Programs(agent, layout)
    rows, index = memory(agent, seed)
    state, key = agent.init(jax.random.key(seed)), jax.random.key(seed + 1)
    observation, first = seen(0)
    carry = Carry(
        state=state,
        storage=rows,
        replay_state=device(index),
        noise_state=agent.selector.init_noise(agent.task, 1, agent.base),
        metrics=jnp.full(len(programs.metrics), jnp.nan),
        observation=observation,
        first=first,
        action=np.zeros((1, agent.task.action_size), np.float32),
        columns={name: np.zeros((1, *shape), np.float32) for name, shape in layout.columns},
    )
    return programs, carry, key


@pytest.fixture(scope="module", params=slow_except(QUICK_ROWS, TABLE, AGAIN))
def case(request) -> Case:
    agent = make(*TABLE[request.param])
    programs, carry, key = fresh(agent)
    one = np.int32(1)
    with watched() as (drawn, folded):
        lowered = programs.step.compiled.lower(*programs.step.arguments(carry, one, np.int32(0), key))
        step = lowered.compile(compiler_options=QUICK)

    def go(carry: Carry, number: int) -> Carry:
        observation, first = seen(number)
        carry = carry._replace(observation=observation, first=first)
        changed = step(*programs.step.arguments(carry, one, np.int32(number), key))
        return carry._replace(**dict(zip(programs.step.changes, changed, strict=True)))

    history, actions = [kept(carry)], []
    for number in range(UPDATES):
        carry = go(carry, number)
        history.append(kept(carry))
        actions.append(np.array(carry.action))
    jax.effects_barrier()
    return Case(agent, go, history, carry.storage, key, actions, +drawn, +folded)


def kept(carry: Carry) -> Carry:
    """The carry as numpy arrays, without the storage."""
    return numpy(carry._replace(storage=None))


def test_every_number_is_finite(case):
    for leaf in jax.tree.leaves(
        (
            case.states,
            [c.replay_state for c in case.history],
            case.history[-1].noise_state,
            case.history[-1].metrics,
            case.actions,
        )
    ):
        assert np.isfinite(leaf).all()
    task = case.agent.task
    assert all(action.shape == (1, task.action_size) for action in case.actions)
    if task.choices is None:
        assert np.abs(case.actions).max() <= 1.0
    else:
        assert np.isin(case.actions, task.action_rows).all()
    assert case.states[-1].updates == UPDATES
    types = {leaf.dtype for leaf in jax.tree.leaves([(c.state, c.replay_state) for c in case.history])}
    assert types <= {np.dtype("float32"), np.dtype("int32")}


def test_no_random_key_is_used_twice(case):
    """Over updates and actions: each key is drawn from once, and none that is drawn from makes others."""
    assert len(case.drawn) >= UPDATES
    assert max(case.drawn.values()) == 1
    assert not case.drawn.keys() & case.folded.keys()


def test_only_what_may_move_moves(case):
    """Each network, its optimiser and all that a part carries move when their turn is, and only then."""
    base, follow = case.agent.base, case.agent.target_update
    for number, (old, new) in enumerate(zip(case.states[:-1], case.states[1:], strict=True), 1):
        climbs = (number - base.policy_phase) % base.policy_delay == 0
        syncs = number % base.sync_every == 0
        follows = syncs if follow.name == "periodic" else climbs or follow.when == "always"
        due = {"critics": True, "actor": climbs, "critics_target": follows, "actor_target": follows}
        if jax.tree.leaves(split_statistics(old.critics_target)[1]):
            due["critics_target"] = True  # running statistics are copied at every update
        if not case.agent.network.keeps_target_critics:
            due["critics_target"] = False
        if case.agent.network.refreshes_actor == "always":
            due["actor"] = True
        due |= {
            f"optimisers.{name}": climbs or not name.endswith(("actor", "actor_params"))
            for name in old.optimisers
        }
        due |= {
            f"part_states.{name}.params": True
            for name, own in old.part_states.items()
            if own.params is not None
        }
        due |= {
            f"part_states.{name}.actor_params": climbs
            for name, own in old.part_states.items()
            if own.actor_params is not None
        }
        if not base.target_actor:
            del due["actor_target"]
        if old.actor is None:
            del due["actor"]
        if isinstance(case.agent.reset, Resets) and number == case.agent.reset.every + 1:
            due = {name: due[name] or bool(jax.tree.leaves(pick(old, name))) for name in due}
        moved = {name: not same(*(pick(state, name) for state in (old, new))) for name in due}
        assert moved == due, f"at update {number}"
        assert_slow_copies(old, new, syncs)


def pick(state: State, name: str) -> Any:
    """What stands in the state under a dotted name (of optimisers and parts: with dots of their own)."""
    field, _, rest = name.partition(".")
    if field == "part_states":
        part, _, kind = rest.rpartition(".")
        return getattr(state.part_states[part], kind)
    return getattr(state, field)[rest] if rest else getattr(state, field)


def assert_slow_copies(old: State, new: State, syncs: bool) -> None:
    """What parts carry in `extra` moves by its own rule."""
    rests = {
        name: (own.extra, new.part_states[name].extra)
        for name, own in old.part_states.items()
        if own.extra is not None
    }
    if "sale" in rests:
        (*was, saw), (*now, seen) = rests.pop("sale")
        assert same(
            now, [dataclasses.replace(new.part_states["sale"].params, seen=seen), was[0]] if syncs else was
        )
        assert seen is None or not same(saw, seen)
    if "value_clip" in rests:
        was, now = rests.pop("value_clip")
        assert now.run_min <= was.run_min
        assert now.run_max >= was.run_max
        assert (now.low, now.high) == ((now.run_min, now.run_max) if syncs else (was.low, was.high))
    if "asap" in rests:
        was, now = rests.pop("asap")
        slow = optax.incremental_update(type(was)(new.actor, new.part_states["asap"].actor_params), was, 0.01)
        for a, b in zip(jax.tree.leaves(now), jax.tree.leaves(slow), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    if "esa" in rests:
        was, now = rests.pop("esa")
        assert now > 0
        assert not same(was, now)
    if "savgo" in rests:
        was, now = rests.pop("savgo")
        learned = new.part_states["savgo"].params
        slow = was.encoder if learned is None else optax.incremental_update(learned, was.encoder, 0.005)
        for a, b in zip(jax.tree.leaves(now.encoder), jax.tree.leaves(slow), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        assert (learned is None) == same(now.scale, was.scale)
    if "rip" in rests:
        was, now = rests.pop("rip")
        assert abs(now - was) > 0.0
    if "lsflow" in rests:
        was, now = rests.pop("lsflow")
        learned = new.part_states["lsflow"].params
        moves = int(new.updates) % 2 == 0
        slow = optax.incremental_update(learned, was.slow, 0.005) if moves else was.slow
        for a, b in zip(jax.tree.leaves(now.slow), jax.tree.leaves(slow), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        assert (now.mean, now.std) != (was.mean, was.std)
    if "dual_policy" in rests:
        was, now = rests.pop("dual_policy")
        step = np.abs(now.free - was.free)
        assert ((step > 0) & (step < 1e-4)).all()
    if "dpo" in rests:
        was, now = rests.pop("dpo")
        slow = optax.incremental_update(new.part_states["dpo"].params.normaliser, was, 0.005)
        for a, b in zip(jax.tree.leaves(now), jax.tree.leaves(slow), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    if "normalise" in rests:
        was, now = rests.pop("normalise")
        np.testing.assert_allclose(now.seen, was.seen + 1)
    assert not rests, f"say by which rule these move: {list(rests)}"


def test_a_save_goes_on_to_the_bit(case, tmp_path):
    carry = case.history[-2]
    trees = {
        "state": carry.state,
        "replay_state": carry.replay_state,
        "acting": case.agent.acting(carry.state),
    }
    saves.write(tmp_path, "5", device(trees), {})
    likes = jax.eval_shape(lambda: device(trees))
    back, _ = saves.read(tmp_path / "5", likes)
    assert jax.tree.structure(back) == jax.tree.structure(trees)
    assert same(back, trees)
    acting = back.pop("acting")
    assert same(acting, case.agent.acting(carry.state))
    carry = case.go(device(carry._replace(**back))._replace(storage=case.storage), UPDATES - 1)
    assert same((carry.state, carry.replay_state), (case.states[-1], case.history[-1].replay_state))
    assert same(carry.action, case.actions[-1])


@pytest.mark.parametrize("name", TABLE)
def test_schedules_speak_json(name):
    agent = make(*TABLE[name])
    own, asked = agent.schedule.start(), 0
    for t in range(1, 41):
        for event in (StepEnd(2), *([EpisodeEnd(10, -float(t), asked)] if t % 5 == 0 else [])):
            own, updates, keep = agent.schedule.updates_due(json.loads(json.dumps(own)), event, agent.base)
            assert type(updates) is int
            assert updates >= 0
            assert not keep or agent.schedule.keeps_best_policy
            asked += updates
    assert 40 <= asked / agent.base.updates_per_step <= 80


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


def close(x: Any, y: Any) -> None:
    """Equal but for rounding, which Adam's first steps turn into a few percent of a step of 3e-4."""
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


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
    outcome = Outcome(carry.observation, np.zeros(1, np.float32), no, no, carry.observation, np.ones(1, bool))
    calls = {
        "step": (programs.step, np.int32(1), steps, key),
        "learn": (programs.learn, three, steps, key),
        "insert": (programs.insert, outcome),
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
    programs, carry, key = fresh(make(*TABLE[name]))
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
    "target critics that are the critics": (
        ("sac+crossq", {"crossq": {"target_critics": True}, "polyak": {"rate": 1.0, "when": "always"}}),
        ("sac+crossq", {}),
    ),
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
    """Nothing but the rounding of a program that XLA fuses otherwise."""
    ends = []
    for row in NEUTRAL[name]:
        agent = make(*row)
        rows, index = memory(agent)
        state, key = agent.init(jax.random.key(0)), jax.random.key(1)
        program = jax.jit(lambda *args, agent=agent: agent.update(agent.layout(1), *args)[:2])
        program = program.lower(state, rows, index, key).compile(compiler_options=QUICK)
        for _ in range(SYNC):
            state, index = program(state, rows, index, key)
        targets = state.critics_target or state.critics
        ends.append((state.actor, state.actor_target, state.critics, targets, index))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), *ends)


# --- the table itself ------------------------------------------------------------------------------------


def test_every_part_has_a_quick_row():
    parts = {name for row in QUICK_ROWS for name in make(*TABLE[row]).parts}
    assert parts >= {name for row in TABLE.values() for name in make(*row).parts}


def test_the_table_holds_every_choice():
    """Every option of every field that offers options stands in some row, and every part in two."""
    tried: dict[tuple[type, str], set] = {}
    for row in TABLE.values():
        agent = unbound(*row)
        for part in (agent.base, *agent.parts.values()):
            for field in dataclasses.fields(part):
                tried.setdefault((type(part), field.name), set()).add(getattr(part, field.name))
    missing = {}
    for (kind, field), values in tried.items():
        hint = get_type_hints(kind)[field]
        options = {True, False} if hint is bool else set()
        if str(get_origin(hint)) == "typing.Literal":
            options = set(get_args(hint))
        if type(None) in get_args(hint):
            options, values = {True, False}, {value is None for value in values}
        if options - values:
            missing[f"{kind.__name__}.{field}"] = options - values
    assert not missing
