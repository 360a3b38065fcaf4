"""`--overlap`: updates while environments step; the action at step t is from the updates due up to t - 2."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow
from tiny import Clock, assert_same_run, numbers, settings, stop_at

import qscape as qs
from qscape import agents
from qscape.envs import adapter as adapters
from qscape.envs import make
from qscape.errors import RunError, UsageError
from qscape.jobs.study import read_study
from qscape.offpolicy.cycle import Carry
from qscape.run import Plan
from qscape.run import events as ev
from qscape.run.engines import replay
from qscape.run.plan import prepare
from qscape.run.training import make_session, make_shared_session, resume, train
from reference import overlap as reference

TD7 = "td3+sale+lap+periodic+value_clip"
WARM_UP = 20


class Lazy(Clock):
    """Sleeps for some time of its own in every step."""

    def step(self, action):
        time.sleep(0.004 * self.np_random.random())
        return super().step(action)


def begun(recipe="td3", env=Clock, envs=1, overlap=True, steps=10_000, evaluated=False, **base):
    given = settings(recipe, warmup=WARM_UP, **base)
    paced = {"eval_every": 17, "eval_episodes": 1, "log_every": 13} if evaluated else {"eval_every": 0}
    plan = Plan(recipe, "Clock", steps, envs=envs, settings=given, overlap=overlap, **paced)
    judges = make(env, seed=9) if evaluated else None
    return make_session(plan, agents.build(recipe, given), make(env, envs), judges)


def advance(session, until):
    return list(session.events(until))


class Straight:
    """The functions of an agent for the straight-line loop, compiled as those of a run are.

    The replay is a carry without parameters. Programs take the buffers that they are given: they get copies.
    """

    def __init__(self, session):
        learner = session.learner
        self.programs, self.agent, self.key = learner.programs, learner.agent, learner.seeds.key
        self.envs, self.schedule = session.plan.envs, learner.agent.schedule.start()
        carry = learner.carry._replace(storage=jax.block_until_ready(learner.storage))
        self.parameters, self.replay = carry.state, carry._replace(state=None)
        self.session = session

    def choose(self, parameters, observation, t):
        mode = "warm_up" if t * self.envs < WARM_UP else "explore"
        acting, first = self.agent.acting(parameters), np.zeros(self.envs, bool)
        steps = np.int32(t * self.envs)
        action, *_ = self.programs.act(acting, None, observation, first, steps, self.key, mode=mode)
        return np.asarray(action)

    def insert(self, replay, action, step):
        return self.programs.insert(copied(replay), step.transition, step.observation)

    def updates_due(self, t):
        if t * self.envs < WARM_UP:
            return 0
        made = (t + 1) * self.envs - -(-WARM_UP // self.envs) * self.envs  # since the warm-up
        ratio = self.agent.base.updates_per_step
        return int(made * ratio) - int((made - self.envs) * ratio)

    def learn(self, parameters, replay, t):
        carry = copied(replay._replace(state=parameters))
        carry = self.programs.learn(carry, np.int32(1), np.int32((t + 1) * self.envs), self.key)
        return carry.state, carry._replace(state=None)

    def train(self, steps):
        adapter = self.session.adapter
        adapter.reset()
        functions = self.choose, self.insert, self.updates_due, self.learn
        parameters, replay = reference.train(adapter, self.parameters, self.replay, steps, *functions)
        return replay._replace(state=parameters)


def copied(carry: Carry) -> Carry:
    return jax.tree.map(jnp.copy, carry)


def learnt(carry):
    """All arrays that training changes."""
    kept = carry.state, carry.storage, carry.replay_state, carry.metrics, carry.guard
    named = jax.tree_util.tree_leaves_with_path(kept)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in named}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


CASES = {
    "td3": ("td3", {}),
    "three environments that fall out of step": ("td3", {"envs": 3}),
    "two updates a step, of three environments": ("td3", {"envs": 3, "updates_per_step": 2}),
    "half an update a step": ("td3", {"updates_per_step": 0.5}),
}
MORE = {
    "td7 without checkpoints": (TD7, {}),
    "two updates a step": ("td3", {"updates_per_step": 2}),
    "half an update a step, of three environments": ("td3", {"envs": 3, "updates_per_step": 0.5}),
    "sac": ("sac", {}),
}


@pytest.mark.parametrize("case", [*CASES, *(slow(case) for case in MORE)])
def test_a_run_equals_the_straight_line_loop_to_the_bit(case):
    recipe, how = (CASES | MORE)[case]
    steps = 48
    straight = Straight(begun(recipe, **how)).train(steps)
    run = begun(recipe, env=Lazy, **how)
    advance(run, steps * run.plan.envs)
    assert run.updates == int(straight.state.updates) > 10
    assert_equal(learnt(run.learner.carry), learnt(straight))


# --- what a run promises besides ---------------------------------------------------------------------


def test_what_is_due_is_made_with_the_newest_parameters_and_changes_nothing():
    plain, run = begun(updates_per_step=2), begun(updates_per_step=2, evaluated=True)
    advance(plain, 60)
    evaluated = []
    for event in run.events(60):
        if isinstance(event, ev.Evaluated | ev.Logged):
            due = 2 * max(0, event.step - WARM_UP)
            assert (run.updates, run.learner.pending) == (due, 0)
            assert int(run.learner.state.updates) == due
            evaluated += [event.step] if isinstance(event, ev.Evaluated) else []
    assert evaluated == [0, 17, 34, 51, 60]
    assert_equal(learnt(run.learner.carry), learnt(plain.learner.carry))


@pytest.mark.parametrize("overlap", [True, False])
def test_updates_are_under_way_while_the_environment_steps(overlap):
    run, under_way = begun(overlap=overlap, updates_per_step=100), []
    step = run.adapter.step

    def watched(action):
        under_way.append(not run.learner.carry.metrics.is_ready())
        return step(action)

    run.adapter.step = watched
    advance(run, WARM_UP + 12)
    assert any(under_way) is overlap
    assert run.updates == 1_200


def test_a_run_with_overlap_is_no_program_that_calls_environments(monkeypatch):
    """In one, the environments would step while nothing else happens."""
    monkeypatch.setattr(replay, "LONG", 0)
    monkeypatch.setattr(replay, "CHUNK", 5)
    monkeypatch.setattr(adapters, "HOST_ONLY", (*adapters.HOST_ONLY, "tiny"))
    run = begun()
    advance(run, 40)
    assert run.adapter.is_host_only
    assert run.engine.driver is None


PLAN = Plan(
    "td3",
    "tiny:Clock-v0",
    90,
    settings=settings("td3", warmup=WARM_UP),
    eval_every=25,
    eval_episodes=1,
    log_every=19,
    save_every=40,
    overlap=True,
)


@pytest.mark.parametrize(("place", "counters"), [("see", (1, True)), ("step", (1, False))])
def test_a_resumed_run_equals_an_uninterrupted_one(place, counters, tmp_path):
    """Stopped before the updates that are due begin, with the next action chosen, or without."""
    one, other = tmp_path / "whole", tmp_path / "resumed"
    list(train(PLAN, one))
    list(train(PLAN, other, on_trainer=stop_at(53, place)))
    assert (numbers(other)["pending"], numbers(other)["chosen"]) == counters
    list(resume(other))
    assert_same_run(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["td3+normalise+her", "sac+lap+her"])
def test_relabelled_episodes_resume_to_the_bit(recipe, tmp_path):
    line = {"env": "goal_envs:GoalLine-v0", "settings": settings(recipe, warmup=WARM_UP)}
    plan = Plan(recipe, steps=90, eval_every=0, save_every=40, overlap=True, **line)
    one, other = tmp_path / "whole", tmp_path / "resumed"
    list(train(plan, one))
    list(train(plan, other, on_trainer=stop_at(53, "see")))
    list(resume(other))
    assert_same_run(one, other)


def test_learning_in_pieces_is_learning_at_once():
    def model():
        more = {"base": settings("td3", warmup=WARM_UP)["base"]}
        return qs.TD3("tiny:Clock-v0", overlap=True, eval_every=0, **more)

    once, pieces = model().learn(60), model().learn(33).learn(27)
    assert once.trainer.updates == 40
    assert_equal(learnt(pieces.trainer.learner.carry), learnt(once.trainer.learner.carry))


def test_an_error_of_the_environment_leaves_a_run_that_can_be_used():
    run = begun(env=partial(Clock, fail_at=45))
    with pytest.raises(RunError, match=r"reward.* is nan in environment 0"):
        advance(run, 60)
    assert run.env_steps == 44
    assert run.updates == int(run.learner.state.updates) == 44 - WARM_UP
    assert run.learner.pending == 0


@pytest.mark.slow
def test_processes_of_environments_make_the_same_run():
    here, there = (begun(env="tiny:Clock-v0", envs=2) for _ in range(2))
    apart = make("tiny:Clock-v0", 2, vectorise="async")
    there = make_session(there.plan, agents.build("td3", there.plan.settings), apart)
    try:
        for run in (here, there):
            advance(run, 60)
        assert_equal(learnt(there.learner.carry), learnt(here.learner.carry))
    finally:
        apart.close()


@pytest.mark.slow
def test_seeds_side_by_side_learn_as_they_do_alone():
    given = settings("td3", warmup=WARM_UP)
    plans = [Plan("td3", "Clock", 40, seed=seed, settings=given, overlap=True) for seed in (3, 5)]
    alone = [make_session(p, agents.build("td3", given), make(Clock, seed=p.seed)) for p in plans]
    for run in alone:
        advance(run, 40)
    both = make_shared_session(plans, agents.build("td3", given), [make(Clock, seed=p.seed) for p in plans])
    list(both.seed_events(40))
    assert both.updates == alone[0].updates == 20
    for k, run in enumerate(alone):
        for name in ("actor", "critics"):
            found, wanted = (getattr(p, name) for p in (both.learner.policies(k)["current"], run.best))
            for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)


# --- refusals ----------------------------------------------------------------------------------------

HOW = {"overlap": True, "eval_every": 0}
REFUSED = {
    "bursts after episodes": (
        lambda: prepare(Plan("td7", "Pendulum-v1", 10_000, **HOW)),
        "checkpoints do not follow from steps alone",
        "checkpoints",
    ),
    "rollouts": (
        lambda: prepare(Plan("ppo", "Pendulum-v1", 10_000, **HOW)),
        "ppo learns from rollouts",
        None,
    ),
    "a model of rollouts": (lambda: qs.PPO("Pendulum-v1", **HOW), "ppo learns from rollouts", None),
    "one program": (lambda: Plan("td3", "Pendulum-v1", 100, loop="compiled", **HOW), "--loop compiled", None),
    "a dataset": (lambda: Plan("td3", "", 100, dataset="local/x-v0", **HOW), "--dataset", None),
    "an environment in JAX": (
        lambda: qs.TD3("mineworld/MineWorld-v0", **HOW).learn(2_000),
        "MineWorld-v0 is in JAX",
        None,
    ),
    "no truth value": (lambda: qs.TD3("Pendulum-v1", overlap="yes"), "True or False", None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_where_it_makes_no_sense(case):
    attempt, why, part = REFUSED[case]
    with pytest.raises(UsageError, match=why) as raised:
        attempt()
    assert (raised.value.field, raised.value.part) == ("overlap", part)


def test_a_study_has_agents_with_and_without_it(tmp_path):
    file = tmp_path / "both.toml"
    agents_of = [f'[[agents]]\nrecipe = "td3"\n{more}' for more in ("", "overlap = true")]
    budget = "[budgets.full]\nsteps = 60_000\nseeds = 1"
    file.write_text("\n".join([budget, *agents_of, '[[environments]]\nid = "Pendulum-v1"']))
    plans = [row.plan for row in read_study(file).rows]
    assert {plan.label: plan.overlap for plan in plans} == {"td3": False, "td3[overlap=True]": True}
    file.write_text(file.read_text().replace("= true", "= 1"))
    with pytest.raises(UsageError, match=r"overlap is 1; it must be true or false"):
        read_study(file)
