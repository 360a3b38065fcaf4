"""Presets: whose word wins, what is refused, what is stored, and that the tables say what the paper says."""

import json
from functools import cache
from pathlib import Path

import gymnasium as gym
import pytest
from study_files import STUDIES
from tiny import flags

import qscape as qs
from qscape.agents import PRESETS, build, preset
from qscape.agents.presets import merge_settings
from qscape.agents.sources import Paper
from qscape.cli import main
from qscape.cli.tune import train_command
from qscape.errors import UsageError
from qscape.jobs.study import read_study
from qscape.jobs.trials import Search, Trial
from qscape.offpolicy.plain import EveryStep
from qscape.offpolicy.sockets import EpisodeEnd, StepEnd
from qscape.run.plan import Plan, from_json, prepare, to_json

# γ, replay, PAVE's weights on TD3 and on SAC; ASAP's λS, λT on TD3 and λS on SAC; CAPS' λT, λS.
TABLE = """
LunarLander-v3  0.98   200_000   0.1  0.1    0.01   0.1  0.5     0.05   0.03  0.005  10   0.1  0.5
Pendulum-v1     0.98   200_000   2.0  0.005  2.0    0.1  0.005   0.5    0.03  0.005  5    1.0  5.0
Reacher-v5      0.99  1_000_000  0.1  0.1    0.01   0.1  0.0005  1.0    0.1   0.1    5    0.1  0.5
Ant-v5          0.99  1_000_000  0.1  0.005  0.5    0.1  0.0005  1.0    0.3   0.05   30   0.1  0.5
Hopper-v5       0.99  1_000_000  0.1  0.005  0.5    2.0  0.0005  3.0    0.3   0.07   10   0.1  0.5
Walker2d-v5     0.99  1_000_000  0.1  0.1    0.01   2.0  0.005   2.0    0.3   0.05   5    0.1  0.5
Humanoid-v5     0.99  1_000_000  0.1  0.005  0.5    0.1  0.0005  1.0    0.3   0.05   5    0.1  0.5
"""
ROWS = {line.split()[0]: [*map(float, line.split()[1:])] for line in TABLE.strip().splitlines()}


def made(recipe, env, settings=None, steps=1_000_000, name="paper"):
    """The agent of a plan with a preset."""
    return prepare(Plan(recipe, env, steps, settings=settings or {}, preset=name))[1]


@pytest.mark.parametrize("env", ROWS)
def test_the_tables_of_lee_et_al(env):
    discount, replay, *weights = ROWS[env]
    td3 = made("td3+pave+caps+grad+asap", env)
    base, parts = td3.base, td3.parts
    assert (base.discount, base.replay_capacity, base.batch_size, base.warmup) == (
        discount,
        replay,
        256,
        10_000,
    )
    assert base.actor_hidden == base.critic_hidden == (400, 300)
    assert base.actor_activation == base.critic_activation == "silu"
    assert base.actor_learning_rate == base.critic_learning_rate == 1e-3
    assert (base.policy_delay, base.target_noise, base.target_noise_clip) == (2, 0.2, 0.5)
    assert (base.exploration_noise, base.critic_loss_scale, td3.target_update.rate) == (0.1, 1.0, 0.005)
    pave, caps, asap = parts["pave"], parts["caps"], parts["asap"]
    assert [pave.mixed_partial, pave.vector_field, pave.curvature] == weights[:3]
    assert (pave.sigma, pave.delta, pave.fraction) == (0.01, 1.0, 1.0)
    assert [caps.temporal, caps.spatial] == weights[9:]
    assert (caps.sigma, parts["grad"].temporal) == (0.2, 1.0)
    assert [asap.prediction, asap.spatial, asap.temporal, asap.rate] == [2.0, *weights[6:8], 0.01]

    sac = made("sac+pave+caps+grad+asap+l2c2", env)
    base, parts = sac.base, sac.parts
    assert (base.discount, base.replay_capacity, base.batch_size, base.warmup) == (
        0.99,
        1_000_000,
        100,
        10_000,
    )
    assert base.actor_hidden == base.critic_hidden == (256, 256)
    assert base.actor_activation == base.critic_activation == "silu"
    assert base.actor_learning_rate == base.critic_learning_rate == 1e-3
    assert (base.critic_loss_scale, base.log_std_min, base.log_std_max) == (0.5, -20.0, 2.0)
    assert (sac.policy_loss.temperature, sac.schedule.every, base.updates_per_step) == (0.2, 50, 1.0)
    pave, asap, l2c2 = parts["pave"], parts["asap"], parts["l2c2"]
    assert [pave.mixed_partial, pave.vector_field, pave.curvature] == weights[3:6]
    assert [asap.prediction, asap.spatial, asap.temporal] == [2.0, weights[8], 0.5]
    last = [1.0, 100.0] if env == "Pendulum-v1" else [0.1, 10.0]
    assert [l2c2.sigma, l2c2.lower, l2c2.upper, l2c2.beta] == [1.0, *last, 0.1]


def test_lipsnet_has_small_networks_on_td3():
    agent = made("td3+pave+lipsnet", "Hopper-v5")
    assert agent.base.actor_hidden == agent.base.critic_hidden == (64, 64)
    assert (agent.base.critic_activation, agent.parts["pave"].curvature) == ("silu", 0.5)
    assert made("sac+lipsnet", "Hopper-v5").base.actor_hidden == (256, 256)
    lipsnet = agent.representation
    assert [lipsnet.weight, lipsnet.epsilon, lipsnet.initial, lipsnet.width] == [1e-5, 1e-4, 50.0, 32]


def test_every_arm_shares_its_base():
    arms = [made(recipe, "Hopper-v5").base for recipe in ("td3", "td3+caps", "td3+pave", "td3+pave+caps")]
    assert arms == arms[:1] * 4
    arms = [made(recipe, "Hopper-v5").base for recipe in ("sac", "sac+asap", "sac+pave")]
    assert arms == arms[:1] * 3


# --- whose word wins --------------------------------------------------------------------------------------


def test_user_wins_over_preset_wins_over_part_and_base():
    said = {"base": {"critic_activation": "tanh", "discount": 0.5}, "pave": {"curvature": 3.0}}
    agent = made("td3+pave", "Pendulum-v1", said)
    assert (agent.base.critic_activation, agent.base.discount) == ("tanh", 0.5)
    assert (agent.base.actor_activation, agent.base.replay_capacity) == ("silu", 200_000)
    assert (agent.parts["pave"].curvature, agent.parts["pave"].mixed_partial) == (3.0, 2.0)
    assert made("td3+lap", "Hopper-v5").base.critic_loss == "lap_huber", (
        "what the preset leaves open is the part's"
    )
    assert said == {"base": {"critic_activation": "tanh", "discount": 0.5}, "pave": {"curvature": 3.0}}


def test_a_short_run_fits_the_presets_warm_up_but_not_the_users():
    _, agent, notes = prepare(Plan("td3", "Pendulum-v1", 1_000, preset="paper"))
    assert agent.base.warmup == 200
    assert notes[0].startswith(
        "preset paper (Lee et al. 2026, arXiv 2601.22970): base.actor_activation = silu, "
    )
    assert "base.warmup = 200 (a fifth of it) instead of 10000" in notes[-1]
    with pytest.raises(UsageError, match="warmup 10000 leaves no update"):
        prepare(Plan("td3", "Pendulum-v1", 1_000, preset="paper", settings={"base": {"warmup": 10_000}}))


def test_labels_and_records(tmp_path):
    said = {"pave": {"curvature": 0.5}}
    plan, agent, _ = prepare(Plan("td3+pave", "Hopper-v5", 100_000, settings=said, preset="paper"))
    assert plan.label == "td3+pave[preset=paper]", "the paper's own value is no change"
    plan = Plan("td3+pave", "Hopper-v5", 100_000, settings={"pave": {"sigma": 0.5}}, preset="paper")
    plan, agent, _ = prepare(plan)
    assert plan.label == "td3+pave[preset=paper,pave.sigma=0.5]"
    record = json.loads(json.dumps(to_json(plan, agent)))
    assert record["preset"] == "paper"
    again = from_json(record)  # as a resumed run reads it, whatever presets say by then
    assert build(again.recipe, again.settings).base == agent.base
    assert prepare(again)[0].label == plan.label


def test_parts_that_are_not_there_are_left_out():
    """SAC's update schedule and temperature belong to parts that a recipe may replace."""
    agent = made("sac+checkpoints+pave", "Hopper-v5")
    assert agent.schedule.name == "checkpoints"
    assert (agent.policy_loss.temperature, agent.base.batch_size) == (0.2, 100)


def test_a_recipe_gets_the_paper_that_knows_its_parts(monkeypatch):
    other = Paper("Somebody", {("sac", "lap", "Hopper-v5"): {"lap": {"alpha": 0.9}}})
    monkeypatch.setitem(PRESETS, "paper", [*PRESETS["paper"], other])
    assert preset("paper", "sac", "Hopper-v5")[1].startswith("Lee")
    assert preset("paper", "sac+pave", "Hopper-v5")[1].startswith("Lee")
    for recipe in ("td3", "sac", "td3+savo+pave"):  # of papers that know as much, the one of the environment
        assert preset("paper", recipe, "restricted/Hopper-v0")[1].startswith("SAVO")
    assert preset("paper", "sac", "Swimmer-v5")[1].startswith("SAVGO")
    for recipe in ("sac+savgo+pave+caps", "sac+pave+savgo"):  # of the part that moves the policy
        given, source = preset("paper", recipe, "Walker2d-v5")
        assert source.startswith("SAVGO, arXiv 2605.00787; pave: Lee")
        assert given["base"] == {"bootstrap_at_time_limits": False, "warmup": 5_000}
        assert (given["savgo"]["candidates"], given["pave"]["curvature"]) == (64, 2.0)
        assert "soft" not in given
    assert made("sac+savgo+pave", "Walker2d-v5").base.log_std_min == -5.0
    for recipe in ("td3+savo", "sac+pave+savo", "td3+wolpertinger"):
        assert preset("paper", recipe, "Hopper-v5")[1].startswith("SAVO")
        assert made(recipe, "Ant-v4").base.replay_capacity == 500_000
    given, source = preset("paper", "sac+savgo+pave", "Swimmer-v5")  # for which PAVE has nothing
    assert (given.keys(), source) == ({"base", "savgo"}, "SAVGO, arXiv 2605.00787")
    monkeypatch.setitem(PRESETS, "paper", [other])
    assert preset("paper", "SAC+lap+normalise", "Hopper-v5") == ({"lap": {"alpha": 0.9}}, "Somebody")
    assert merge_settings({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}, "b": {}}) == {
        "a": {"x": 1, "y": 3},
        "b": {},
    }


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "recipe", "env", "sentence"),
    [
        ("papr", "td3", "Pendulum-v1", "There is no preset 'papr'; near to it: paper."),
        (
            "paper",
            "td3+pave",
            "Swimmer-v5",
            "The preset 'paper' has no settings for td3 on Swimmer-v5; it has them on LunarLander-v3, "
            "Pendulum-v1, Reacher-v5, Ant-v5, Hopper-v5, Walker2d-v5, Humanoid-v5.",
        ),
        (
            "paper",
            "td7+pave",
            "Hopper-v5",
            "The preset 'paper' has no settings for td7 agents; it has them for td3, sac, ",
        ),
        ("paper", "td3+paev", "Hopper-v5", "There is no part 'paev'"),
        (
            "tuned",
            "td3",
            "LunarLanderContinuous-v3",
            "The preset 'tuned' has no settings for td3 on LunarLanderContinuous-v3; it has them on "
            "MountainCarContinuous-v0, Pendulum-v1, LunarLander-v3 (--env-args continuous=True), Bip",
        ),
        (
            "paper",  # not the settings of a paper that knows neither SAVO nor its networks
            "td3+savo",
            "Reacher-v5",
            "The preset 'paper' has no settings for td3 on Reacher-v5; it has them on restricted/Hopper-v0, ",
        ),
    ],
)
def test_refusals(name, recipe, env, sentence):
    with pytest.raises(UsageError) as error:
        preset(name, recipe, env)
    assert str(error.value).startswith(sentence)


# --- updates in bursts, which SAC's protocol asks for ------------------------------------------------------


def test_updates_every_so_many_steps():
    schedule, base = EveryStep(every=50), build("sac").base
    own, made = schedule.start(), []
    for _ in range(120):
        own, updates, keep = schedule.updates_due(own, StepEnd(1), base)
        made.append(updates)
        assert not keep
    assert [step for step, n in enumerate(made, 1) if n] == [50, 100]
    assert set(made) == {0, 50}
    assert schedule.updates_due(own, EpisodeEnd(10, 1.0, 100), base)[1] == 0
    own, updates, _ = schedule.updates_due(own, StepEnd(45), base)  # 165 steps: those up to the 150th are due
    assert updates == 50
    with pytest.raises(UsageError, match=r"every_step.every is 0; it must be at least 1"):
        EveryStep(every=0)


# --- the faces ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_command_line_and_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [*flags("sac+pave"), "--eval-every", "0", "--steps", "260", "--base.warmup", "100"]
    assert main(["train", "sac+pave", "--env", "Pendulum-v1", "--preset", "paper", *small, "--out", "a"]) == 0
    said = capsys.readouterr().out
    assert "preset paper (Lee et al. 2026" in said
    record = json.loads(Path("a/0/run.json").read_text())
    assert record["preset"] == "paper"
    assert record["settings"]["pave"]["curvature"] == 0.5
    assert record["settings"]["base"]["batch_size"] == 16
    assert "150 updates" in said, "three bursts of 50"
    assert main(["resume", "a", "--steps", "310"]) == 0
    assert "200 updates" in capsys.readouterr().out
    assert main(["train", "--config", "a/0/run.json", "--out", "b"]) == 0
    again = json.loads(Path("b/0/run.json").read_text())
    assert (again["settings"], again["label"]) == (record["settings"], record["label"])
    capsys.readouterr()
    assert main(["train", "td3", "--env", "Pendulum-v1", "--preset", "peper"]) == 2
    assert "There is no preset 'peper'; near to it: paper." in capsys.readouterr().err


def test_a_search_keeps_its_preset():
    """It is part of what makes trials comparable, and of the command that makes the best one again."""
    plan = Plan("td3+pave", "Pendulum-v1", 1_000, preset="paper")
    search = Search(plan, [], Path("runs/x"))
    assert search.identity()["preset"] == "paper"
    command = train_command(Trial(search, 0, {"pave.curvature": 0.5}))
    assert command[command.index("--preset") + 1] == "paper"
    assert command[command.index("--pave.curvature") + 1] == "0.5"
    assert "--pave.mixed-partial" not in command


def test_python():
    model = qs.Model("td3+pave", "Pendulum-v1", preset="paper", base={"replay_capacity": 500})
    agent = model._untrained().agent
    assert (agent.base.discount, agent.base.replay_capacity) == (0.98, 500)
    assert agent.parts["pave"].curvature == 2.0
    with pytest.raises(UsageError, match="no settings for td3 on MountainCarContinuous-v0"):
        qs.Model("td3", "MountainCarContinuous-v0", preset="paper")


@pytest.mark.parametrize(
    ("recipe", "env", "part", "field", "value"),
    [
        ("tqc", "Hopper-v5", "quantile", "drop", 5),
        ("tqc", "HalfCheetah-v4", "quantile", "drop", 0),
        ("redq", "Walker2d-v5", "soft", "target_entropy", -3.0),
        ("droq", "Humanoid-v5", "soft", "target_entropy", -2.0),
        ("droq+pave", "Humanoid-v5", "droq", "rate", 0.1),
    ],
)
def test_named_recipes_have_settings_of_their_environments(recipe, env, part, field, value):
    agent = made(recipe, env)
    assert getattr(agent.parts[part], field) == value
    assert agent.base.policy_delay == build(recipe).base.policy_delay


# --- tuned ----------------------------------------------------------------------------------------------


@cache
def brax_tasks():
    from brax import envs

    return {*envs._envs}


@pytest.mark.parametrize("tuned", PRESETS["tuned"], ids=lambda tuned: tuned.source.split(",")[0])
def test_every_tuned_row_is_of_an_environment_and_fits_its_agent(tuned):
    assert {base for base, _, _ in tuned.rows} <= {"td3", "sac", "td7", "ppo"}
    for (base, part, env), settings in tuned.rows.items():
        assert not part
        assert env in gym.registry or env.removeprefix("brax/") in brax_tasks()
        agent = build(base, settings)  # refuses a part or a field that is not there
        for name, fields in settings.items():
            there = agent.base if name == "base" else agent.parts[name]
            assert {field: getattr(there, field) for field in fields} == fields
    assert {(base, env) for base, _, env in tuned.rows} >= set(tuned.meant_for)


def test_numbers_of_braxs_notebook():
    """Ant: 4,096 environments, unrolls of 5, minibatches of 2,048 of them, 32 minibatches, 4 passes."""
    settings, source = preset("tuned", "ppo", "brax/ant")
    assert (
        source
        == "Brax, github.com/google/brax, notebooks/training.ipynb; meant for: ppo+normalise --envs 4096"
    )
    agent = build("ppo+normalise", settings)
    base, parts = agent.base, agent.parts
    assert (base.rollout, base.batch_size, base.passes, base.discount) == (327_680, 10_240, 4, 0.97)
    assert (base.learning_rate, base.entropy_coefficient, base.gradient_clip) == (3e-4, 0.01, None)
    assert (base.actor_hidden, base.critic_hidden, base.activation) == ((32,) * 4, (256,) * 5, "silu")
    clipped, head = parts["clipped"], parts["learnable"]
    assert (parts["gae"].decay, clipped.bound, clipped.unroll, head.log_std) == (0.95, 0.3, 5, -1.0)
    other = build("ppo+normalise", preset("tuned", "ppo", "brax/humanoid")[0])
    humanoid = other.base
    assert other.parts["clipped"].unroll == 10
    assert (humanoid.rollout, humanoid.batch_size, humanoid.passes) == (1024 * 32 * 10, 10_240, 8)
    assert (humanoid.entropy_coefficient, humanoid.discount) == (0.001, 0.97)


def test_numbers_of_the_zoo():
    """Read by hand from hyperparams/ppo.yml, sac.yml and td3.yml: n_steps times n_envs is the rollout."""
    _, ppo, notes = prepare(Plan("ppo", "CartPole-v1", 100_000, preset="tuned"))
    assert notes[0].startswith(
        "preset tuned (RL Baselines3 Zoo, github.com/DLR-RM/rl-baselines3-zoo; meant for: ppo --envs 8): "
    )
    base, parts = ppo.base, ppo.parts
    assert (base.rollout, base.batch_size, base.passes, base.discount) == (32 * 8, 256, 20, 0.98)
    assert (base.learning_rate, base.anneal, parts["gae"].decay, parts["clipped"].bound) == (
        1e-3,
        True,
        0.8,
        0.2,
    )
    _, ppo, notes = prepare(Plan("ppo+normalise+scale_rewards", "Hopper-v5", 1_000_000, preset="tuned"))
    assert "meant for: ppo+normalise+scale_rewards)" in notes[0]
    base, parts = ppo.base, ppo.parts
    assert (base.rollout, base.batch_size, base.passes, base.discount) == (512, 32, 5, 0.999)
    assert (base.learning_rate, base.entropy_coefficient) == (9.80828e-5, 0.00229519)
    assert (base.gradient_clip, base.value_coefficient, parts["learnable"].log_std) == (0.7, 0.835671, -2.0)
    _, ppo, notes = prepare(Plan("ppo+normalise+scale_rewards", "Swimmer-v5", 1_000_000, preset="tuned"))
    assert "meant for: ppo+normalise+scale_rewards --envs 4)" in notes[0]
    base, decay = ppo.base, ppo.parts["gae"].decay
    assert (base.rollout, base.batch_size, base.learning_rate) == (4 * 1024, 256, 6e-4)
    assert (base.passes, base.discount, base.actor_hidden, decay) == (10, 0.9999, (64, 64), 0.98)
    _, sac, _ = prepare(Plan("sac", "BipedalWalker-v3", 500_000, preset="tuned"))
    assert (sac.base.actor_hidden, sac.base.actor_learning_rate, sac.base.discount) == (
        (400, 300),
        7.3e-4,
        0.98,
    )
    assert (sac.schedule.every, sac.target_update.rate, sac.base.replay_capacity) == (64, 0.02, 300_000)
    for env in ("Pendulum-v1", "LunarLander-v3", "BipedalWalker-v3"):
        base = build("td3", preset("tuned", "td3", env)[0]).base
        assert (base.discount, base.replay_capacity, base.warmup) == (0.98, 200_000, 10_000)
        assert (base.exploration, base.exploration_noise) == ("gaussian", 0.1)
        assert (base.actor_hidden, base.critic_learning_rate) == ((400, 300), 1e-3)
    base = build("td3", preset("tuned", "td3", "BipedalWalkerHardcore-v3")[0]).base
    assert (base.discount, base.replay_capacity, base.exploration_noise) == (0.99, 1_000_000, 0.1)
    assert (base.actor_learning_rate, base.schedule, base.rate_end) == (7e-4, "linear", 0.0)
    assert preset("tuned", "sac", "Swimmer-v4")[0]["base"] == {"warmup": 10_000, "discount": 0.9999}
    assert preset("tuned", "sac", "Reacher-v5")[1].startswith("qscape")  # the zoo has none


def test_td3_on_mujoco_is_as_its_authors_train_it():
    assert preset("tuned", "td3", "Hopper-v5") == (
        {},
        "TD3, arXiv 1802.09477, and TD7, arXiv 2306.02451: the defaults",
    )
    with pytest.raises(UsageError, match="The preset 'tuned' has no settings for td7 on CarRacing-v3"):
        preset("tuned", "td7", "CarRacing-v3")


def test_list_presets(capsys):
    assert main(["list", "presets"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tuned" in said
    assert "BipedalWalkerHardcore-v3" in said


# --- best -----------------------------------------------------------------------------------------------


def test_the_best_is_the_agent_of_the_record_where_that_won():
    plans = {row.plan.env: row.plan for row in read_study(STUDIES["record"]).rows}
    assert [*plans] == ["Hopper-v5", "Walker2d-v5", "Ant-v5", "HalfCheetah-v5", "Ant-v4"]
    for env, plan in plans.items():
        own = env == "HalfCheetah-v5"  # TD7 with its own settings is better there
        assert (plan.recipe, {} if own else plan.settings) == ("td7", preset("best", "td7", env)[0])
    with pytest.raises(UsageError, match="no settings for td7 on Swimmer-v5; it has them on Hopper-v5, Walk"):
        preset("best", "td7", "Swimmer-v5")
    assert made("td7", "Hopper-v5", name="best").base.updates_per_step == 2.0
