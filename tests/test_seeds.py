"""Several seeds in one vmapped program: the runs that each seed would be by itself, but for rounding."""

import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from rows import long, slow
from tiny import Clock, flags, settings

from qscape import agents
from qscape.cli import main
from qscape.cli import train as command
from qscape.envs import make
from qscape.errors import RunError, UsageError
from qscape.offpolicy.cycle import Outcome
from qscape.replay import storage
from qscape.run import Plan, saves
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run.engines import why_not_together
from qscape.run.training import make_session, make_shared_session

STEPS = 150
SEEDS = (3, 5)  # of the clock: episodes of 30 and of 40 steps


def plan_of(recipe, seed, envs=1, **base):
    return Plan(
        recipe,
        "Clock",
        STEPS,
        seed=seed,
        envs=envs,
        settings=settings(recipe, warmup=50, **base),
        eval_every=60,
        eval_episodes=2,
        log_every=40,
    )


def together(recipe="td3", env=Clock, envs=1, savers=(), **base):
    plans = [plan_of(recipe, seed, envs, **base) for seed in SEEDS]
    adapters = [make(env, envs, seed=seed) for seed in SEEDS]
    return make_shared_session(
        plans, agents.build(recipe, plans[0].settings), adapters, make(Clock, 2, seed=9), savers
    )


def alone(recipe, seed, envs=1, **base):
    plan = plan_of(recipe, seed, envs, **base)
    adapter = make(Clock, envs, seed=seed)
    return make_session(plan, agents.build(recipe, plan.settings), adapter, make(Clock, 2, seed=9))


def without_clock(event):
    return {k: v for k, v in event._asdict().items() if k != "seconds"}


def alike(one, other):
    """Equal, but for rounding: two programs that sum in another order drift apart, in 100 updates so far."""
    one, other = (np.asarray(jax.random.key_data(x) if "key" in str(x.dtype) else x) for x in (one, other))
    np.testing.assert_allclose(one, other, rtol=5e-3, atol=2e-3)


CASES = {
    "td3": ("td3", {}),
    "priorities, running normalisation, three environments": ("sac+lap+normalise+reward_scale", {"envs": 3}),
    "columns in replay, fewer updates than steps": ("td3+savo", {"updates_per_step": 0.5}),
    "more updates than steps, previous observations": ("td3+grad", {"updates_per_step": 2}),
    "three environments, each with noise of its own": (
        "td3+fast",
        {"envs": 3, "counts": "steps", "updates_per_step": 0.5},
    ),
}
ROWS = [
    "td3",
    slow("priorities, running normalisation, three environments"),
    slow("more updates than steps, previous observations"),
    long("columns in replay, fewer updates than steps"),
    long("three environments, each with noise of its own"),
]


@pytest.mark.parametrize("case", ROWS)
def test_each_seed_is_the_run_it_would_be_alone(case):
    recipe, how = CASES[case]
    runs = together(recipe, **how)
    said = [(k, event) for k, event in runs.seed_events(STEPS) if not isinstance(event, ev.Progressed)]
    for k, seed in enumerate(SEEDS):
        single = alone(recipe, seed, **how)
        expected = [event for event in single.events(STEPS) if not isinstance(event, ev.Progressed)]
        heard = [event for number, event in said if number == k]
        assert [type(event) for event in heard] == [type(event) for event in expected]
        for one, other in zip(heard, expected, strict=True):
            if isinstance(one, ev.Logged):
                for name in other.metrics.keys() - {"steps_per_second"}:
                    np.testing.assert_allclose(one.metrics[name], other.metrics[name], rtol=1e-2, atol=1e-2)
            elif isinstance(one, ev.Evaluated):
                np.testing.assert_allclose(one.returns, other.returns, rtol=1e-2)
                assert (one.step, one.lengths) == (other.step, other.lengths)
            elif isinstance(one, ev.EpisodeDone):
                np.testing.assert_allclose(one.ret, other.ret, rtol=1e-2)
                assert one._replace(ret=0) == other._replace(ret=0)
            else:
                assert without_clock(one) == without_clock(other)
        mine, theirs = runs.engine.arrays(k), single.engine.arrays()
        assert jax.tree.structure(mine) == jax.tree.structure(theirs)
        jax.tree.map(alike, *(jax.tree.map(jax.numpy.asarray, trees) for trees in (mine, theirs)))
        numbers = [
            {name: v for name, v in counters.items() if name not in ("seconds", "returns")}
            for counters in (runs.counters(k), single.counters())
        ]
        assert numbers[0] == numbers[1]
        assert runs.updates > 0


def test_seeds_differ():
    runs = together()
    for _ in runs.seed_events(STEPS):
        pass
    one, other = (jax.tree.leaves(runs.learner.policies(k)["current"]) for k in (0, 1))
    assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True) if np.ndim(a) > 1)


def test_a_stop_is_seen_at_the_next_step():
    runs, heard = together(), []
    for k, event in runs.seed_events(STEPS):
        heard.append((k, event))
        if isinstance(event, ev.EpisodeDone):
            runs.stop()
    ends = [(k, event.step, event.interrupted) for k, event in heard if isinstance(event, ev.Ended)]
    assert ends == [(0, 30, True), (1, 30, True)]


def test_an_environments_nan_names_the_seed():
    with pytest.raises(RunError, match=r"seed 3: Clock_: reward.* is nan .*step 1 of its episode 3"):
        for _ in together(env=lambda: Clock(30, fail_at=61)).seed_events(STEPS):
            pass


def test_memory_for_all_seeds_is_counted(monkeypatch):
    monkeypatch.setattr(storage, "_available_bytes", lambda: 3 * 2_000 * 4 * 9)
    assert alone("td3", 0)
    with pytest.raises(RunError, match="for each of 2 seeds"):
        together(replay_capacity=3_000)


@pytest.mark.slow
def test_the_replay_is_not_copied():
    runs = together("td3+lap", replay_capacity=65_536)
    for _ in runs.seed_events(60):
        pass
    learner = runs.learner
    outcome = Outcome(*runs.engine.adapter.step(np.asarray(learner.carry.action))[:-1])
    key = learner.seeds.key
    calls = (learner.mapped.insert, outcome), (learner.mapped.step, np.int32(1), np.int32(60), key)
    lowered = [program.compiled.lower(*program.arguments(learner.carry, *args)) for program, *args in calls]
    for program in lowered:
        shapes = re.findall(r"= \w+\[([\d,]+)\]\S* copy(?:-start)?\(", program.compile().as_text())
        sizes = [int(np.prod([int(d) for d in shape.split(",")])) for shape in shapes]
        assert max(sizes, default=0) < 65_536


# --- the command line -------------------------------------------------------------------------------


def train(out, *argv, recipe="td3"):
    base = ["train", recipe, "--env", "tiny:Clock-v0", "--steps", "150", "--out", str(out)]
    return main([*base, *flags(recipe, warmup=50), "--eval-every", "60", "--eval-episodes", "2", *argv])


def test_every_seed_has_a_folder_that_can_be_resumed(tmp_path, capsys):
    assert train(tmp_path / "r", "--seeds", "3", "5", "--seeds-as", "vmap") == 0
    assert capsys.readouterr().out.count("done: ") == 2
    for seed in ("3", "5"):
        place = tmp_path / "r" / seed
        assert json.loads((place / "run.json").read_text())["together"] == [3, 5]
        assert saves.read_meta(folders.newest_save(place))["numbers"]["finished"]
        assert (place / "evaluations.csv").read_text().count("\n150,") == 2
    assert main(["resume", str(tmp_path / "r" / "5"), "--steps", "200"]) == 0
    assert saves.read_meta(folders.newest_save(tmp_path / "r" / "5"))["numbers"]["env_steps"] == 200
    assert main(["evaluate", str(tmp_path / "r"), "--episodes", "2"]) == 0


@pytest.mark.parametrize(
    ("recipe", "how", "needs"),
    [
        ("td7", "sync", "not when an episode ends"),
        ("ppo", "sync", "an off-policy agent"),
        ("td3", "envpool", "not in the next one as EnvPool's do"),
    ],
)
def test_what_cannot_be_one_program_is_refused(recipe, how, needs, tmp_path, capsys):
    argv = ["train", recipe, "--env", "Pendulum-v1", "--steps", "150", "--seeds", "0", "1"]
    argv += ["--vectorise", how, "--envs", "2"]
    assert main([*argv, "--seeds-as", "vmap", "--out", str(tmp_path / "r")]) == 2
    assert needs in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("device", "one_program"), [("cpu", False), ("gpu", True)])
def test_it_is_chosen_on_an_accelerator(device, one_program, monkeypatch):
    monkeypatch.setattr(command.jax, "default_backend", lambda: device)

    def chosen(recipe, how, seeds=2, loggers=(), in_jax=False, vectorise="sync"):
        plans = [replace(plan_of(recipe, seed), vectorise=vectorise) for seed in range(seeds)]
        agent = agents.build(recipe, plans[0].settings if recipe != "ppo" else None)
        return command._together(how, plans, agent, in_jax, loggers)

    assert chosen("td3", "auto") is one_program
    assert chosen("td3", "vmap") is True
    assert chosen("td3", "processes") is chosen("td3", "auto", seeds=1) is False
    assert chosen("td7", "auto") is chosen("td7", "auto", in_jax=True) is False
    assert chosen("td3", "auto", in_jax=True) is chosen("ppo", "auto", in_jax=True) is True
    assert chosen("ppo", "auto") is False, "host loops of on-policy agents have no program of many seeds"
    assert chosen("td3", "auto", loggers=["trackio"]) is chosen("td3", "auto", vectorise="envpool") is False
    with pytest.raises(UsageError, match="vmap needs seeds without --log wandb, which takes one run in a p"):
        chosen("td3", "vmap", loggers=["wandb"])
    assert why_not_together(plan_of("td3", 0), agents.build("td3")) is None
