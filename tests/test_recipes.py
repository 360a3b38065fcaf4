"""The recipe grammar: what a recipe expands to, whose word wins, what is refused and with which words."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, get_args, get_type_hints

import numpy as np
import pytest
from small import fits

import qscape as qs
from qscape.agents import (
    BASES,
    EXPANSIONS,
    PARTS,
    Expansion,
    build,
    changed_fields,
    list_overrides,
    onpolicy,
    parse,
    parts_of,
    settings_of,
)
from qscape.agents.other_names import DIFFERENCES, OTHER_NAMES
from qscape.agents.settings import convert
from qscape.cli.options import TrainOptions
from qscape.errors import UsageError
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import BootstrapValue, Regulariser
from qscape.onpolicy.sockets import ActionRefiner
from qscape.run.plan import Plan, label, prepare
from qscape.types import Spec, setting

PAIRS = [(base, part) for base in BASES for part in PARTS if fits(f"{base}+{part}")]


def filling(agent) -> dict[str, Any]:
    """What sits in an agent's sockets, and its base; where several parts have room, the set of them."""
    fields = {f.name: getattr(agent, f.name) for f in dataclasses.fields(agent)}
    fields = {name: value for name, value in fields.items() if name not in ("recipe", "spec")}
    return {name: frozenset(x) if isinstance(x, tuple) else x for name, x in fields.items()}


def all_parts(base: str) -> list[str]:
    """Every part that goes on a base together with those before it."""
    found: list[str] = []
    for part in PARTS:
        found += [part] if fits("+".join([base, *found, part])) else []
    return found


# --- expansion ------------------------------------------------------------------------------------------


def test_td7_is_its_five_parts():
    assert parse("td7") == ("td3", ("sale", "lap", "periodic", "value_clip", "checkpoints"))
    assert filling(build("td7")) == filling(build(EXPANSIONS["td7"].recipe))
    assert filling(build("td7+normalise")) == filling(build(f"{EXPANSIONS['td7'].recipe}+normalise"))


@pytest.mark.parametrize("name", EXPANSIONS)
def test_a_named_recipe_is_its_parts_with_its_settings(name):
    expansion = EXPANSIONS[name]
    named = build(name)
    assert filling(named) == filling(build(expansion.recipe, expansion.settings))
    assert changed_fields(named) == {}, "its settings are its defaults"
    assert label(named) == name


TIME_LIMIT = {"discount_rule": "time_limit", "updates_per_step": 2.0, "policy_delay": 1, "batch_size": 256}
TEMPERATURE = {"initial_temperature": 0.01, "entropy_per_action": -0.5, "temperature_loss": "alpha"}
PAPERS: dict[
    str, dict[str, dict]
] = {  # what the papers and their code say, not what the table of recipes says
    "crossq": {
        "base": {"critic_hidden": (2048, 2048), "actor_hidden": (256, 256), "critics": 2, "discount": 0.99}
        | {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "adam_b1": 0.5, "policy_delay": 3}
        | {"warmup": 5000, "critic_loss_scale": 0.5, "actor_objective": "min", "updates_per_step": 1.0}
        | {"log_std_min": -20.0, "log_std_bound": "clip", "target_actor": False},
        "soft": {"learning_rate": 1e-3, "initial_temperature": 1.0, "entropy_per_action": -1.0}
        | {"temperature_loss": "alpha", "adam_b1": 0.9},
    },
    "crossq_wn": {
        "base": {"critic_hidden": (512, 512), "critic_learning_rate": 3e-4, "adam_b1": 0.9, "policy_delay": 3}
        | {"updates_per_step": 5.0, "critic_weight_decay": 0.01, "decay": "decoupled", "warmup": 5000}
        | {"actor_learning_rate": 3e-4, "decay_what": "weights"},
        "soft": {"learning_rate": 1e-4, "initial_temperature": 1.0, "entropy_per_action": -0.5},
        "polyak": {"rate": 0.005},
    },
    "simba": {
        "base": TIME_LIMIT
        | {"critic_hidden": (512, 512), "actor_hidden": (128,), "critic_weight_decay": 0.01, "warmup": 5000}
        | {"actor_weight_decay": 0.01, "decay": "decoupled", "decay_what": "all", "critic_loss_scale": 1.0}
        | {"actor_learning_rate": 1e-4, "critic_learning_rate": 1e-4, "log_std_bound": "tanh"}
        | {"log_std_min": -10.0},
        "soft": TEMPERATURE | {"learning_rate": 1e-4},
        "normalise": {"epsilon_under_root": True},
    },
    "simbav2": {
        "base": TIME_LIMIT
        | {"critic_hidden": (512, 512), "actor_hidden": (128,), "schedule": "linear", "rate_end": 0.5}
        | {"critic_weight_decay": 0.0, "critic_learning_rate": 1e-4, "warmup": 5000}
        | {"actor_weight_decay": 0.0, "actor_learning_rate": 1e-4, "log_std_bound": "tanh"},
        "soft": TEMPERATURE | {"learning_rate": 1e-4},
        "c51": {"low": -5.0, "high": 5.0, "atoms": 101},
        "reward_scale": {"bound": 5.0},
    },
    "xqc": {
        "base": TIME_LIMIT
        | {"critic_hidden": (512,) * 4, "actor_hidden": (256,) * 4, "policy_delay": 3, "policy_phase": 1}
        | {"schedule": "linear", "rate_end": 0.1, "critic_learning_rate": 3e-4, "log_std_min": -10.0}
        | {"actor_learning_rate": 3e-4, "warmup": 5000, "target_actor": False},
        "soft": TEMPERATURE | {"learning_rate": 3e-4},
        "c51": {"low": -5.0, "high": 5.0, "atoms": 101},
        "reward_scale": {"bound": None},
    },
    "bro": {
        "base": {"batch_size": 128, "updates_per_step": 10.0, "warmup": 2500, "actor_objective": "mean"}
        | {"critic_hidden": (512, 512), "critic_weight_decay": 1e-4, "decay": "decoupled", "discount": 0.99}
        | {"actor_hidden": (256,), "actor_learning_rate": 3e-4, "critic_learning_rate": 3e-4}
        | {"log_std_bound": "tanh", "log_std_min": -10.0, "adam_b1": 0.9},
        "soft": {"initial_temperature": 1.0, "entropy_per_action": -0.5, "temperature_loss": "alpha"}
        | {"adam_b1": 0.5},
        "quantile": {"quantiles": 100, "loss_sum": "sum", "drop": None},
    },
    "tqc": {
        "base": {"critics": 5, "critic_hidden": (512,) * 3, "actor_hidden": (256, 256), "log_std_min": -20.0}
        | {"actor_objective": "mean", "critic_learning_rate": 3e-4, "updates_per_step": 1.0},
        "soft": {"initial_temperature": 1.0, "entropy_per_action": -1.0, "learning_rate": 3e-4},
        "quantile": {"quantiles": 25, "drop": 2, "loss_sum": "mean"},
    },
    "redq": {
        "base": {"critics": 10, "updates_per_step": 20.0, "policy_delay": 20, "actor_objective": "mean"}
        | {"critic_hidden": (256, 256), "init": "xavier", "critic_learning_rate": 3e-4},
        "redq": {"subset": 2},
    },
    "droq": {
        "base": {"critics": 2, "updates_per_step": 20.0, "policy_delay": 20, "actor_objective": "mean"}
        | {"batch_size": 256, "critic_learning_rate": 3e-4, "actor_learning_rate": 3e-4, "discount": 0.99}
        | {"warmup": 5000},
        "droq": {"rate": 0.01},
    },
}


@pytest.mark.parametrize("name", PAPERS)
def test_named_recipes_have_the_settings_of_the_papers(name):
    agent = build(name)
    parts = agent.parts | {"base": agent.base}
    for part, fields in PAPERS[name].items():
        assert {field: getattr(parts[part], field) for field in fields} == fields, part


def test_settings_of_the_temperature_go_to_the_part_that_has_it():
    agent = build("simbav2+savgo")
    assert (agent.policy_loss.initial_temperature, agent.policy_loss.entropy_per_action) == (0.01, -0.5)
    own = build("simbav2+savgo", {"savgo": {"initial_temperature": 0.3}})
    assert (own.policy_loss.initial_temperature, own.policy_loss.entropy_per_action) == (0.3, -0.5)


def test_a_users_word_wins_over_a_named_recipe(monkeypatch, toys):
    settings = {
        "base": {"discount": 0.7, "policy_delay": 5},
        "quantile": {"quantiles": 30},
        "soft": {"temperature": 0.3},
    }
    monkeypatch.setitem(EXPANSIONS, "mine", Expansion("sac+quantile+calm", "", settings))
    agent = build("mine")
    assert (agent.base.discount, agent.base.policy_delay, agent.value.quantiles) == (0.7, 5, 30)
    assert [str(m) for m in list_overrides(agent) if m.by == "mine"] == [
        "mine sets base.discount = 0.7 (was 0.9)",
        "mine sets base.policy_delay = 5 (was 3)",
    ]
    own = build("mine", {"base": {"discount": 0.5}, "quantile": {"quantiles": 10}})
    assert (own.base.discount, own.value.quantiles) == (0.5, 10)
    assert changed_fields(own) == {"base.discount": 0.5, "quantile.quantiles": 10}
    assert build("mine+rough").base.policy_delay == 4, "a part that the user adds comes later"
    assert "soft" not in build("mine+greedy_ac").parts, "the settings of a part that was replaced are dropped"


@pytest.mark.parametrize(
    ("recipe", "as_written"), [(" TD3 + Lap ", "td3+lap"), ("SAC", "sac"), ("Td7+NORMALISE", "td7+normalise")]
)
def test_case_and_blanks_do_not_matter(recipe, as_written):
    assert build(recipe).recipe == as_written
    assert filling(build(recipe)) == filling(build(as_written))


@pytest.mark.parametrize("base", BASES)
def test_the_order_of_parts_in_different_sockets_does_not_matter(base):
    """Except for a field of the base that two parts override: the later one wins."""
    parts = all_parts(base)
    forwards, backwards = (build("+".join([base, *order])) for order in (parts, reversed(parts)))
    moved = Counter(field for part in forwards.parts.values() for field in part.overrides(forwards))
    disputed = {field: getattr(forwards.base, field) for field, times in moved.items() if times > 1}
    settled = {"base": dataclasses.replace(backwards.base, **disputed)}
    assert filling(forwards) == filling(backwards) | settled


def test_every_part_goes_on_some_base():
    """Alone, or as Q3C's three parts together."""
    together = {"control_points", "best_point", "separate"}
    assert {part for _, part in PAIRS} == {*PARTS} - together
    assert filling(build("q3c")).keys() >= {PARTS[name].socket for name in together - {"separate"}}


@pytest.mark.parametrize(("base", "part"), PAIRS)
def test_a_part_changes_its_socket_and_what_it_overrides_and_nothing_else(base, part):
    plain, more = filling(build(base)), filling(build(f"{base}+{part}"))
    kind = PARTS[part]
    several = f"{kind.socket}s" in plain
    slot = f"{kind.socket}s" if several else kind.socket
    for name in plain.keys() - {slot, "base"}:
        assert plain[name] == more[name]
    assert more[slot] == (plain[slot] | {kind()} if several else kind())
    moved = dict(kind().overrides(build(f"{base}+{part}")))
    assert more["base"] == dataclasses.replace(plain["base"], **moved)


def test_the_bases_are_what_their_papers_say():
    td3, sac = build("td3"), build("sac")
    assert td3.base == Base()
    assert (td3.policy_loss.name, td3.target_update.when, td3.base.head) == ("dpg", "actor", "deterministic")
    assert (sac.policy_loss.name, sac.target_update.when, sac.base.head) == ("soft", "always", "gaussian")
    assert (sac.base.warmup, sac.base.policy_delay, sac.base.actor_objective) == (5_000, 1, "min")
    assert (sac.base.log_std_min, sac.base.log_std_max, sac.target_update.rate) == (-5.0, 2.0, 0.005)


def test_agent_builds():
    assert filling(qs.agent("td7")) == filling(build("td7"))
    assert qs.agent("td3+sale+lap", {"lap": {"alpha": 0.6}}).replay.alpha == 0.6


# --- whose word wins --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Calm(Regulariser):
    """Moves two fields of the base."""

    name: ClassVar[str] = "calm"
    weight: float = setting(0.5, "A weight.")

    def overrides(self, agent: Any) -> Mapping[str, Any]:
        return {"policy_delay": 3, "discount": 0.9}


@dataclasses.dataclass(frozen=True)
class Rough(BootstrapValue):
    """Moves a field that `Calm` moves as well, and does not go with replay by priorities."""

    name: ClassVar[str] = "rough"

    def overrides(self, agent: Any) -> Mapping[str, Any]:
        return {"policy_delay": 4}

    def conflict(self, agent: Any) -> str | None:
        return "rough shakes the priorities; leave lap out." if "lap" in agent.parts else None


@pytest.fixture
def toys(monkeypatch):
    for kind in (Calm, Rough):
        monkeypatch.setitem(PARTS, kind.name, kind)


def test_user_wins_over_part_wins_over_base(toys):
    assert build("td3").base.policy_delay == 2
    assert build("td3+calm").base.policy_delay == 3
    agent = build("td3+calm", {"base": {"policy_delay": 7}})
    assert (agent.base.policy_delay, agent.base.discount) == (7, 0.9)
    back = build("td3+calm", {"base": {"policy_delay": 2}})
    assert back.base.policy_delay == 2, "a base's default, said by the user, is a user's word"


@pytest.mark.parametrize(("recipe", "delay"), [("td3+calm+rough", 4), ("td3+rough+calm", 3)])
def test_the_part_named_later_wins_and_every_move_is_told(toys, recipe, delay):
    agent = build(recipe)
    moves = list_overrides(agent)
    assert agent.base.policy_delay == delay
    first, last = (move for move in moves if move.field == "policy_delay")
    assert (first.before, first.after, last.before, last.after) == (2, 7 - delay, 7 - delay, delay)
    assert str(last) == f"{recipe.split('+')[-1]} sets base.policy_delay = {delay} (was {7 - delay})"
    assert [(m.field, m.after) for m in moves if m.field != "policy_delay"] == [("discount", 0.9)]


@dataclasses.dataclass(frozen=True)
class Short(ActionRefiner):
    """Moves two fields that are valid together only."""

    name: ClassVar[str] = "short"

    def overrides(self, agent: Any) -> Mapping[str, Any]:
        return {"rollout": 32, "batch_size": 32}


def test_the_base_is_checked_once_all_have_spoken(monkeypatch):
    monkeypatch.setitem(onpolicy.PARTS, "short", Short)
    base = build("ppo+short").base
    assert (base.rollout, base.batch_size) == (32, 32)
    assert build("ppo+short", {"base": {"rollout": 16, "batch_size": 8}}).base.rollout == 16
    with pytest.raises(UsageError, match=r"base.batch_size is 32 and base.rollout 16") as refused:
        build("ppo+short", {"base": {"discount": 0.9, "rollout": 16}})
    assert (refused.value.part, refused.value.field) == ("base", "rollout")


def test_notes_of_a_run_tell_the_moves_that_hold():
    def notes(**base):
        return prepare(Plan("td3+lap", "Pendulum-v1", 100_000, settings={"base": base}))[2]

    assert notes() == ["lap sets base.critic_loss = lap_huber (was mse)"]
    assert notes(critic_loss="mse") == []


def test_an_override_that_changes_nothing_is_no_move():
    assert list_overrides(build("td3")) == []
    assert [str(m) for m in list_overrides(build("sac+lap"))] == [
        "lap sets base.critic_loss = lap_huber (was mse)"
    ]


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("td8", "There is no agent 'td8'; near to it: td7, td3."),
        ("", "There is no agent ''; there are td3, sac, bc, iql, dqn, td7, td7_offline, tqc, drqv2,"),
        ("lap", "There is no agent 'lap'; 'lap' is a part: write td3+lap."),
        ("td3+lab", "There is no part 'lab' (in 'td3+lab'); near to it: lap."),
        ("td3+", "A name of 'td3+' is empty: write one + before each part, as in td3+pave."),
        ("td3+sac", "There is no part 'sac' (in 'td3+sac'); 'sac' is an agent and comes first."),
        ("td7+lap", "'lap' cannot be added in 'td7+lap': td7 already has it; leave it out."),
        ("td3+lap+lap", "'lap' cannot be added in 'td3+lap+lap': it is there twice; leave one out."),
        ("td7+lap+lap", "'lap' cannot be added in 'td7+lap+lap': td7 already has it; leave it out."),
        (
            "td3+value_clip+rough",
            "'td3+value_clip+rough' cannot be: value_clip and rough both fill one place "
            "(what makes the bootstrap value); keep one of them.",
        ),
        ("td3+lap+rough", "'td3+lap+rough' cannot be: rough shakes the priorities; leave lap out."),
    ],
)
def test_refused_recipes(toys, recipe, sentence):
    with pytest.raises(UsageError) as error:
        build(recipe)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("recipe", "settings", "sentence"),
    [
        ("td3", {"lap": {"alpha": 1}}, "Settings of 'lap' do not belong to 'td3'; write td3+lap."),
        (
            "td7",
            {"polyak": {"rate": 0.1}},
            "Settings of 'polyak' do not belong to 'td7'; leave that out, since 'td7+polyak' cannot be: "
            "periodic and polyak both fill one place (what moves the target networks).",
        ),
        ("td3", {"bass": {}}, "Settings of 'bass' do not belong to 'td3'; near to it: base."),
        ("td3", {"gamma": 0.9}, "There is no keyword 'gamma'; write base={'discount': ...}."),
        ("td3", {"tau": 0.9}, "There is no keyword 'tau'; write polyak={'rate': ...}."),
        ("td3", {"learning_starts": 9}, "There is no keyword 'learning_starts'; write base={'warmup': ..."),
        (
            "td3",
            {"buffer_size": 9},
            "There is no keyword 'buffer_size'; write base={'replay_capacity': ...}.",
        ),
        ("td3", {"n_envs": 9}, "There is no keyword 'n_envs'; write envs=...."),
        (
            "td3",
            {"net_arch": [9]},
            "There is no keyword 'net_arch'; write base={'actor_hidden': ..., 'critic_hidden'",
        ),
        (
            "td3",
            {"policy_kwargs": {}},
            "There is no keyword 'policy_kwargs'; write base={'actor_hidden': ..., ",
        ),
        ("td3", {"batch_size": 9}, "There is no keyword 'batch_size'; write base={'batch_size': ...}."),
        (
            "ppo",
            {"num_steps": 9},
            "There is no keyword 'num_steps'; write base={'rollout': ...} (steps of all",
        ),
        (
            "ppo",
            {"base": {"num_steps": 9}},
            "base has no field 'num_steps'; what others call num_steps is base.rollout here (steps of all",
        ),
        ("ppo", {"lr": 9}, "There is no keyword 'lr'; write base={'learning_rate': ...}."),
        (
            "td3",
            {"base": {"gamma": 1}},
            "base has no field 'gamma'; what others call gamma is base.disc",
        ),
        ("td3", {"discount": 0.9}, "There is no keyword 'discount'; write base={'discount': ...}."),
        (
            "td3",
            {"base": {"discnt": 1}},
            "base has no field 'discnt'; near to it: discount, discount_rule, init.",
        ),
        (  # in the order of their declaration
            "td3+pave",
            {"pave": {"zzz": 1}},
            "pave has no field 'zzz'; there are mixed_partial, vector_field, curvature, sigma",
        ),
        ("td3", {"base": {"discount": "x"}}, "base.discount is 'x'; it must be of type float."),
        ("td3", {"base": {"discount": True}}, "base.discount is True; it must be of type float."),
        ("td3", {"base": {"discount": 2.0}}, "base.discount is 2.0; it must lie in [0, 1]."),
        ("td3", {"base": {"discount": float("nan")}}, "base.discount is nan; it must lie in [0, 1]."),
        ("td3", {"base": {"batch_size": 2.5}}, "base.batch_size is 2.5; it must be of type int."),
        ("td3", {"base": {"batch_size": True}}, "base.batch_size is True; it must be of type int."),
        ("td3", {"base": {"batch_size": 0}}, "base.batch_size is 0; it must be at least 1."),
        ("td3", {"base": {"warmup": -1}}, "base.warmup is -1; it must be a number, 0 or more."),
        ("td3", {"base": {"actor_learning_rate": 0}}, "base.actor_learning_rate is 0.0; it must be a number"),
        ("td3", {"base": {"target_actor": 1}}, "base.target_actor is 1; it must be of type bool."),
        ("td3", {"base": {"actor_hidden": []}}, "base.actor_hidden is ()"),
        ("td3", {"base": {"actor_hidden": 256}}, "base.actor_hidden is 256; it must be of type tuple"),
        ("td3", {"base": {"actor_hidden": [8, "8"]}}, "base.actor_hidden is '8'; it must be of type int."),
        (
            "td3",
            {"base": {"critic_loss": "l1"}},
            "base.critic_loss is 'l1'; it must be one of 'mse', 'lap_huber', 'pal', 'huber'.",
        ),
        (
            "sac",
            {"soft": {"temperature": -1}},
            "soft.temperature is -1.0; it must be a number, 0 or more, or None.",
        ),
        ("td3+sale", {"sale": {"critic_inputs": ["s"]}}, "sale.critic_inputs is ('s',)"),
        ("td3+sale", {"sale": {"critic_inputs": ["zs"]}}, "sale.critic_inputs is only zs: critics would not"),
        (
            "td3+sale",
            {"sale": {"predict_reward": True}, "base": {"n_step": 3}},
            "'td3+sale' cannot be: sale.predict_reward asks for the reward of one step, and base.n_step 3",
        ),
        (
            "td3",
            {"base": {"epsilon_mode": "greedy"}},
            "base.epsilon_mode is greedy and base.epsilon_end 1: all actions would be random for ever",
        ),
        (
            "iql+savo",
            {},
            "'iql+savo' cannot be: iql does not climb the slope of Q, and savo's actors climb that",
        ),
        ("td3", {"base": 3}, "Settings of 'base' are 3; they must be"),
    ],
)
def test_refused_settings(recipe, settings, sentence):
    with pytest.raises(UsageError) as error:
        build(recipe, settings)
    assert str(error.value).startswith(sentence)


def test_names_of_other_libraries_lead_to_fields_that_exist():
    recipes = ("td3", "sac", "dqn", "ppo", "a2c", "trpo", "tqc", "td3+c51")
    known = {f"{p}.{f}" for r in recipes for p, fields in settings_of(build(r)).items() for f in fields}
    known |= {field.name for field in dataclasses.fields(TrainOptions)}
    known |= {"progress", "episodes"}  # of methods
    assert {field for fields in OTHER_NAMES.values() for field in fields} <= known
    assert all(field in OTHER_NAMES[name] for name, field in DIFFERENCES)


def outcome(recipe: str) -> dict[str, Any] | None:
    """The base that a recipe builds; None where the recipe is refused."""
    try:
        return dataclasses.asdict(build(recipe).base)
    except UsageError:
        return None


@pytest.mark.parametrize("part", PARTS)
def test_a_part_under_another_name_is_accepted_and_refused_like_the_original(part, monkeypatch):
    """Parts ask for each other's capabilities, never for names. Settings of a name do not count here."""
    twin = type(f"{PARTS[part].__name__}2", (PARTS[part],), {"name": f"{part}2", "__doc__": "A twin."})
    monkeypatch.setitem(PARTS, f"{part}2", dataclasses.dataclass(frozen=True)(twin))
    for base in ("dqn",) if part == "polyak" else ("td3", "sac"):  # which have polyak already
        others = [other for other in PARTS if other not in (part, f"{part}2")]
        for rest in ("", *(f"+{other}" for other in others)):
            assert outcome(f"{base}+{part}2{rest}") == outcome(f"{base}+{part}{rest}"), (
                f"{base}+{part}2{rest}"
            )


# --- fields that do nothing -------------------------------------------------------------------------------


def all_conditions():
    """Every claim of every declared condition, with the part or base it is declared at, and its agent."""
    for base in (*BASES, *onpolicy.BASES):
        for recipe in (base, *(f"{base}+{part}" for part in parts_of(base))):
            if not fits(recipe):
                continue
            agent = build(recipe)
            for part in (agent.base, *agent.parts.values()):
                declared = [part.only_if] if hasattr(part, "only_if") else []
                declared += [field.metadata.get("only_if", {}) for field in dataclasses.fields(part)]
                for condition in itertools.chain(*declared):
                    yield from ((claim, part, agent) for claim in condition.split(" or "))


def test_conditions_of_fields_name_what_exists():
    """A slip of the pen would be None for ever; of all names, one is not of every part of its socket."""
    options, lacking = {}, set()
    for claim, part, agent in all_conditions():
        name, _, wanted = claim.partition("=")
        path = name.removeprefix("not ").removesuffix("!").split(".")
        owner = part if hasattr(part, path[0]) else agent
        for attribute in path[:-1]:
            owner = Spec(3, 1) if attribute == "spec" else getattr(owner, attribute)
        if not hasattr(owner, path[-1]):
            lacking.add(name)
        elif wanted and wanted != "None":
            options.setdefault((name, wanted), []).append(get_type_hints(type(owner))[path[-1]])
    assert lacking == {"target_update.when"}
    for (name, wanted), hints in options.items():
        for hint in hints:
            assert hint is int or wanted in map(str, get_args(hint)), f"{name} is never {wanted}"


@pytest.mark.parametrize(
    ("recipe", "settings", "moot"),
    [
        ("td3", {}, {"base.ou_rate": "without Ornstein-Uhlenbeck noise, base.exploration = ou"}),
        (
            "td3",
            {"base": {"exploration": "ou"}},
            {"base.ou_rate": None, "base.noise_max": "without noise"},
        ),
        ("td3", {"base": {"exploration_noise": 0.0}}, {"base.ou_rate": "without exploration noise, such as"}),
        ("td3", {"base": {"critic_weight_decay": 0.1}}, {"base.decay": None}),
        ("td3", {"base": {"epsilon_start": 0.5}}, {"base.epsilon_decay": None}),
        ("td3", {}, {"base.log_std_min": "with a deterministic policy", "base.actor_hidden": None}),
        ("td3+greedy_td3", {}, {"base.log_std_min": None}),
        ("dqn", {}, {"base.policy_delay": "without an actor", "base.actor_hidden": "with argmax, which has"}),
        (
            "sac",
            {"soft": {"temperature": 0.0}},
            {"soft.adam_b1": "with an α that is fixed"},
        ),
        (
            "sac+savgo",
            {"savgo": {"temperature": 0.1}},
            {"savgo.learning_rate": "with an α that is"},
        ),
        ("sac+crossq", {}, {"polyak.when": "without target networks, of which crossq keeps none"}),
        ("td3+crossq", {"base": {"target_actor": True}}, {"polyak.when": None}),
        ("td3+lap", {"lap": {"prioritised": False}}, {"lap.alpha": "without priorities"}),
        (
            "ppo+etf",
            {"etf": {"bound": "l2"}},
            {"etf.l2": None, "etf.feature_energy": "without a bound"},
        ),
        ("reinforce", {}, {"base.critic_hidden": "without a critic, and monte_carlo needs none"}),
        ("reinforce+esa", {}, {"base.critic_hidden": None}),
        ("ppo", {"base": {"shared_torso": True}}, {"base.critic_hidden": "with a critic that is one layer"}),
    ],
)
def test_fields_that_do_nothing_are_declared_at_the_field(recipe, settings, moot):
    found = build(recipe, settings).moot_fields()
    for name, why in moot.items():
        assert found.get(name, "").startswith(why) if why else name not in found, (name, found.get(name))


def test_claims_on_a_task_hold_until_it_is_known():
    agent = build("ppo")
    assert "plain.images" not in agent.moot_fields()
    assert agent.on(Spec(3, 1, choices=2)).moot_fields()["plain.images"] == "without images"
    pictured = agent.on(Spec(36 * 36 * 3, 1, choices=2, frame=(36, 36, 3))).moot_fields()
    assert pictured["base.actor_hidden"].startswith("with convolutions")
    assert "base.nearest" in build("td3").on(Spec(3, 1)).moot_fields()
    assert "base.nearest" not in build("td3").on(Spec(3, 2, table=np.eye(2, dtype=np.float32))).moot_fields()


# --- settings in and out --------------------------------------------------------------------------------


def test_settings_from_json_take_the_type_of_their_field():
    said = {
        "base": {"actor_hidden": [64, 32], "discount": 1, "batch_size": 128.0, "gradient_clip": 5},
        "sale": {"critic_inputs": ["sa", "zs"], "end_to_end": None},
    }
    agent = build("td3+sale", json.loads(json.dumps(said)))
    base = agent.base
    assert (base.actor_hidden, base.discount, base.batch_size) == ((64, 32), 1.0, 128)
    assert [type(x) for x in (base.discount, base.batch_size, base.gradient_clip)] == [float, int, float]
    assert agent.representation.critic_inputs == ("sa", "zs")
    assert agent.representation.end_to_end is None


def test_convert_is_idempotent():
    for hint, value in ((float, 3), (int, 4.0), (tuple[int, ...], [1, 2]), (float | None, 2), (str, "x")):
        once = convert("x", hint, value)
        assert convert("x", hint, once) == once == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("td3", {}),
        ("sac", {"soft": {"temperature": 0.1}, "base": {"warmup": 10}}),
        (
            "td7",
            {"base": {"actor_activation": "elu"}, "sale": {"hidden": [32]}, "checkpoints": {"switch": 5}},
        ),
        ("+".join(["sac", *all_parts("sac")]), {"normalise": {"clip": 10}, "base": {"critic_loss": "mse"}}),
        ("td3+lap", {"base": {"critic_loss": "mse", "gradient_clip": None}}),
    ],
)
def test_settings_go_round(recipe, settings):
    """Through JSON as well; and what the user said against a part stays said."""
    agent = build(recipe, settings)
    written = settings_of(agent)
    again = build(recipe, json.loads(json.dumps(written)))
    assert filling(again) == filling(agent)
    assert settings_of(again) == written
    assert changed_fields(again) == changed_fields(agent)


def test_fields_that_differ_from_the_recipe_enter_the_label():
    assert changed_fields(build("td7")) == {}
    assert changed_fields(build("td3+lap", {"lap": {"alpha": 0.4}, "base": {"discount": 0.99}})) == {}
    agent = build("td3+lap", {"lap": {"alpha": 0.6}, "base": {"critic_loss": "mse", "actor_hidden": [64, 8]}})
    assert changed_fields(agent) == {
        "base.critic_loss": "mse",
        "base.actor_hidden": (64, 8),
        "lap.alpha": 0.6,
    }
    assert label(agent) == "td3+lap[base.actor_hidden=64x8,base.critic_loss=mse,lap.alpha=0.6]"
    assert label(build("td7")) == "td7"


def test_agents_hold_no_state():
    assert build("td7") is build("td7", {}), "so one object can serve every run"
    assert BASES["td3"].base == Base(), "building must not change the tables"
    build("td3+lap", {"base": {"discount": 0.5}})
    assert BASES["td3"].base == Base()


def test_settings_that_only_python_takes_for_equal_are_not_one_agent():
    assert build("td3", {"base": {"warmup_to_episode_end": True}}).base.warmup_to_episode_end is True
    with pytest.raises(UsageError, match=r"base.warmup_to_episode_end is 1; it must be of type bool"):
        build("td3", {"base": {"warmup_to_episode_end": 1}})
    with pytest.raises(UsageError, match=r"base.discount is array"):
        build("td3", {"base": {"discount": np.zeros(2)}})
    given = {"base": {"discount": 0.5}}
    assert build("td3", given).base.discount == 0.5
    given["base"]["discount"] = 0.6
    assert build("td3", given).base.discount == 0.6
