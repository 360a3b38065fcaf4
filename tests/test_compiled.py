"""Runs on environments in JAX as one program: exact chunks, resuming, seeds, schedules and refusals."""

import dataclasses
import json
from functools import partial

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from rows import slow, slow_except
from test_native_offpolicy import Beside, Line

from qscape.cli import main
from qscape.envs import make
from qscape.envs.native import GymnasiumEnv, JaxEnv, Outcome, step_autoreset
from qscape.envs.world import reset_world, step_world
from qscape.errors import RunError, UsageError
from qscape.masks import ActionMask
from qscape.run import events as ev
from qscape.run import training
from qscape.run.chunks import ChunkLength
from qscape.run.engines.replay import ReplayEngine
from qscape.run.engines.scan import ReplayScan, RolloutScan
from qscape.run.plan import Plan, prepare
from qscape.types import stream

TINY = {"actor_hidden": (8,), "critic_hidden": (8,), "batch_size": 8, "replay_capacity": 2_000}
OFF = {"base": {**TINY, "warmup": 20}}
ON = {"base": {"actor_hidden": (8,), "critic_hidden": (8,), "rollout": 32, "passes": 2, "batch_size": 16}}


class LineEnv(GymnasiumEnv):
    """The Gymnasium face of a point on a line."""

    def __init__(self):
        super().__init__(Line())


gym.register("compiled/Line-v0", LineEnv, max_episode_steps=9)


def plan_of(recipe, env, steps, settings, **more):
    more = {"eval_every": 0, "log_every": 10_000, "save_every": 10_000} | more
    return Plan(recipe, env, steps, settings=settings, **more)


def make_session(plan):
    plan, agent, _ = prepare(plan)
    adapter, eval_adapter = training.open_adapters(plan, agent)
    return training.make_session(plan, agent, adapter, eval_adapter)


def trained(plan, most=None):
    """A trainer that made all steps, in chunks of at most `most` steps."""
    trainer = make_session(plan)
    if most:
        trainer.engine.length.most = trainer.engine.length.steps = most
    events = list(trainer.events(plan.steps))
    return trainer, events


def assert_equal(x, y):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


CASES = {
    "replay": plan_of("td3+lap+normalise+reward_scale", "compiled/Line-v0", 80, OFF, envs=2),
    "episodes": plan_of("td3+checkpoints", "compiled/Line-v0", 140, OFF, envs=2),
    "indices": plan_of("dqn", "jax/CartPole-v1", 120, OFF, envs=2),
    "rollouts": plan_of("ppo", "jax/CartPole-v1", 200, ON, envs=2),
}


def state_of(trainer):
    """Everything that a run carries, without the storage's unused rows."""
    if isinstance(trainer.engine, RolloutScan):
        return trainer.learner.state, trainer.engine.worlds.now, trainer.learner.values
    return trainer.learner.carry, trainer.engine.worlds.now


@pytest.mark.parametrize("name", slow_except(["replay"], CASES))
def test_a_chunk_of_n_steps_equals_n_chunks_of_one(name):
    (one, told), (many, also) = trained(CASES[name], 1), trained(CASES[name])
    assert_equal(state_of(one), state_of(many))
    assert (one.env_steps, one.updates) == (many.env_steps, many.updates)
    assert one.updates > 3
    ended = [[e for e in events if isinstance(e, ev.EpisodeDone)] for events in (told, also)]
    assert ended[0] == ended[1]
    assert len(ended[0]) > 3


def test_checkpoints_decide_as_in_the_host_loop():
    """The rule for many environments is that of the host: same bursts at the same steps, same kept policy."""
    short = dataclasses.replace(CASES["episodes"], steps=80)  # before rounding errors change a decision
    plan, agent, _ = prepare(short)
    program, _ = trained(plan)
    beside = Beside(Line(), plan.envs, jax.random.key(plan.seed))
    host = training.make_session(dataclasses.replace(plan, loop="host"), agent, beside)
    list(host.events(plan.steps))
    assert (host.env_steps, host.updates) == (program.env_steps, program.updates)
    assert host.updates > 20
    close = partial(np.testing.assert_allclose, rtol=2e-2, atol=5e-3)
    jax.tree.map(close, host.learner.state.actor, program.learner.state.actor)
    jax.tree.map(close, host.kept, program.kept)
    for name in ("steps", "age", "episodes"):
        assert host.learner.schedule[name] == program.learner.schedule[name]
    close(host.learner.schedule["returns"], program.learner.schedule["returns"])


@pytest.mark.parametrize("name", slow_except(["replay"], CASES))
def test_resuming_in_an_episode_changes_no_bit(name, tmp_path):
    plan = CASES[name]
    half = dataclasses.replace(plan, steps=plan.steps // 2 + 2)
    whole, _ = trained(plan)
    folder, found = tmp_path / "run", []
    for _ in training.train(half, folder):
        pass
    for _ in training.resume(folder, plan.steps, on_trainer=found.append):
        pass
    assert json.loads((folder / "run.json").read_text())["loop"] == "compiled"
    if name == "rollouts":  # the learning rate follows the length of the run, which was another
        assert found[0].env_steps == whole.env_steps
        return
    assert_equal(state_of(whole), state_of(found[0]))
    assert not np.isin(np.asarray(found[0].engine.worlds.now.length), 0).all(), "in the middle of episodes"


@pytest.mark.slow
def test_resuming_rollouts_changes_no_bit(tmp_path):
    plan = dataclasses.replace(CASES["rollouts"], save_every=64)
    whole, _ = trained(plan)
    folder, stopped, found = tmp_path / "run", [], []
    for event in training.train(plan, folder, on_trainer=stopped.append):
        if isinstance(event, ev.Saved):
            stopped[0].stop()
    assert stopped[0].env_steps < whole.env_steps
    for _ in training.resume(folder, on_trainer=found.append):
        pass
    assert_equal(state_of(whole), state_of(found[0]))


def test_many_environments_restart_as_one_does():
    env, key = Line(), jax.random.key(3)
    world = reset_world(env, 5, key)
    world = world._replace(state=world.state._replace(steps=jnp.array([8, 0, 3, 8, 0])))
    action = jnp.full((5, 1), 1.5)
    after, outcome, ended = jax.jit(step_world)(env, world, action, jnp.int32(7), key)
    keys = jax.random.split(stream(jax.random.fold_in(key, 7), "world.step"), 5)
    state, observation, alone = jax.vmap(partial(step_autoreset, env))(world.state, action, keys)
    wanted = state, observation, alone
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6), (after.state, after.observation, outcome), wanted
    )
    assert ended.done.tolist() == [True, False, False, True, False]
    assert ended.length.tolist() == [1] * 5, "the world counts for itself"


@pytest.mark.parametrize("name", [slow("replay"), "rollouts"])
def test_seeds_in_one_program_equal_single_runs(name, tmp_path):
    plan = dataclasses.replace(CASES[name], eval_every=100, eval_episodes=2)
    plans = [dataclasses.replace(plan, seed=seed) for seed in (0, 1)]
    places, found = [tmp_path / "0", tmp_path / "1"], []
    told = list(training.train_together(plans, places, on_trainer=found.append))
    assert {k for k, _ in told} == {0, 1}
    other = None
    (session,) = found
    for k, seed in enumerate(plans):
        single, events = trained(seed)
        assert (session.env_steps, session.updates) == (single.env_steps, single.updates)
        close = partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4)
        for field in ("actor", "critics") if name == "replay" else ("networks",):
            own, shared = (getattr(run.learner.state, field) for run in (single, session))
            jax.tree.map(close, own, jax.tree.map(lambda leaf, k=k: leaf[k], shared))
        ended = [e for e in events if isinstance(e, ev.EpisodeDone)]
        mine = [e for n, e in told if n == k and isinstance(e, ev.EpisodeDone)]
        assert [e[:3] for e in ended] == [e[:3] for e in mine]
        seen = [e for e in events if isinstance(e, ev.Evaluated)]
        mine = [e for n, e in told if n == k and isinstance(e, ev.Evaluated)]
        assert [(e.step, e.lengths) for e in seen] == [(e.step, e.lengths) for e in mine]
        close([e.returns for e in seen], [e.returns for e in mine])
        assert mine[-1].returns != other, "each seed has evaluations of its own"
        other = mine[-1].returns
        record = json.loads((places[k] / "run.json").read_text())
        assert (record["loop"], record["seed"]) == ("compiled", k)
    for _ in training.resume(places[1], 2 * plan.steps):  # each alone
        pass


class Broken(Line):
    """Its observation is NaN from the sixth step of an episode on."""

    def step(self, state, action, key):
        after, outcome = super().step(state, action, key)
        bad = jnp.where(after.steps > 5, jnp.nan, 0.0)
        return after, outcome._replace(observation=outcome.observation + bad)


def test_an_observation_that_is_nan_ends_the_run():
    gym.register("compiled/Broken-v0", lambda: GymnasiumEnv(Broken()), max_episode_steps=9)
    with pytest.raises(RunError, match=r"compiled/Broken-v0: an observation or a reward is NaN or infinite"):
        trained(plan_of("td3", "compiled/Broken-v0", 40, OFF))


class Unborn(Line):
    """Half of its resets show NaN, though the state is sound."""

    def reset(self, key):
        state, seen = super().reset(key)
        return state, jnp.where(jax.random.uniform(key) < 0.5, jnp.nan, seen)


@pytest.mark.parametrize("recipe", ["td3", "ppo"])
def test_a_reset_that_is_nan_ends_the_run(recipe):
    """The networks learn nothing from it, which would look like divergence."""
    if "compiled/Unborn-v0" not in gym.registry:
        gym.register("compiled/Unborn-v0", lambda: GymnasiumEnv(Unborn()), max_episode_steps=9)
    off = {"base": {**TINY, "warmup": 4}}  # learns before the first reset
    settings = off if recipe == "td3" else {"base": {"rollout": 20, "batch_size": 10}}
    with pytest.raises(RunError, match="an observation or a reward is NaN or infinite"):
        trained(plan_of(recipe, "compiled/Unborn-v0", 80, settings))


class Shifted(gym.RewardWrapper):
    def reward(self, reward):
        return reward + 1


def test_only_the_environment_itself_is_compiled():
    """A wrapper that changes rewards or observations is not in the JAX environment."""
    assert make("compiled/Line-v0").jax_env.time_limit == 9
    assert make(lambda: Shifted(LineEnv())).jax_env is None
    assert make("Pendulum-v1").jax_env is None
    with pytest.raises(UsageError, match=r"--loop compiled needs an environment in JAX.*Pendulum-v1 is not"):
        make_session(plan_of("td3", "Pendulum-v1", 100, OFF, loop="compiled"))
    with pytest.raises(UsageError, match=r"batch_size is 99, more than the 50 transitions that replay holds"):
        prepare(plan_of("td3", "compiled/Line-v0", 9, {"base": {"batch_size": 99, "replay_capacity": 50}}))
    with pytest.raises(UsageError, match=r"--loop quick is unknown"):
        plan_of("td3", "Pendulum-v1", 100, OFF, loop="quick")
    host = make_session(plan_of("td3", "compiled/Line-v0", 100, OFF, loop="host", envs=3))
    assert isinstance(host.engine, ReplayEngine)
    assert host.adapter.envs == 3
    many = make_session(plan_of("td3", "compiled/Line-v0", 100, OFF, envs=3))
    assert isinstance(many.engine, ReplayScan)
    assert (many.adapter.envs, many.engine.envs) == (1, 3)


def test_a_slow_chunk_is_followed_by_a_shorter_one():
    length = ChunkLength(100)
    length.took(9.0, 8)  # compiles
    assert length.steps == 8
    for _ in range(5):
        length.took(0.01, length.steps)
    assert length.steps == 100
    length.took(2.0, 100)
    assert length.steps == 50


class Board(JaxEnv):
    """Four cells, each of which is taken once; at the end no action is valid."""

    time_limit: int = eqx.field(static=True, kw_only=True, default=10)
    observation_space = property(lambda self: spaces.Box(0.0, 1.0, (4,), np.float32))
    action_space = property(lambda self: spaces.Discrete(4))
    mask = property(lambda self: ActionMask(4))

    def reset(self, key):
        return jnp.zeros(4, bool), self.show(jnp.zeros(4, bool))

    def show(self, taken):
        return jnp.concatenate([taken.astype(jnp.float32), self.mask.pack(~taken)])

    def step(self, state, action, key):
        taken = state.at[action].set(True)
        end, never = taken.all(), jnp.bool_(False)
        return taken, Outcome(self.show(taken), jnp.float32(1), end, never, never)


gym.register("compiled/Board-v0", lambda: GymnasiumEnv(Board()))


@pytest.mark.parametrize("loop", ["host", "compiled"])
def test_a_terminal_state_may_allow_no_action(loop):
    plan = plan_of("ppo", "compiled/Board-v0", 64, ON, envs=2, loop=loop, eval_every=64, eval_episodes=2)
    _, events = trained(plan)
    assert [e.returns for e in events if isinstance(e, ev.Evaluated)][-1] == [4.0, 4.0]


def test_episodes_of_whole_rollouts_end_at_the_steps_that_were_made():
    """Rollouts of whole episodes have room for many more rows than are used."""
    settings = {"base": {"actor_hidden": (8,), "episodes": 4}}
    trainer, events = trained(plan_of("reinforce", "compiled/Board-v0", 64, settings, envs=2), most=4)
    ends = [e.step for e in events if isinstance(e, ev.EpisodeDone)]
    assert ends == [4 * 2 * (k // 2 + 1) for k in range(len(ends))]
    assert ends[-1] == trainer.env_steps == 64


class Echo(JaxEnv):
    """An episode is one step: the reward is highest for the action that equals the observation."""

    time_limit: int = eqx.field(static=True, kw_only=True, default=5)
    discrete: bool = eqx.field(static=True, default=False)

    @property
    def observation_space(self):
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    @property
    def action_space(self):
        return spaces.Discrete(2) if self.discrete else spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, key):
        x = jax.random.uniform(key, (1,), minval=-1.0)
        return x, x

    def step(self, state, action, key):
        reward = (
            (action == (jnp.abs(state[0]) > 0.5)) * 1.0 if self.discrete else -jnp.square(action - state)[0]
        )
        return state, Outcome(state, reward, jnp.bool_(True), jnp.bool_(False), jnp.bool_(False))


gym.register("compiled/Echo-v0", lambda discrete=False: GymnasiumEnv(Echo(discrete=discrete)))
FAST = {"actor_hidden": (32,), "critic_hidden": (32,), "batch_size": 64}
RATES = {"actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3}
PROBES = {
    "td3": ({**FAST, **RATES, "warmup": 200, "replay_capacity": 5_000}, {}, -0.03),
    "sac": ({**FAST, **RATES, "warmup": 200, "replay_capacity": 5_000}, {}, -0.1),
    "ppo": ({**FAST, "rollout": 256, "learning_rate": 1e-2}, {"discrete": True}, 0.9),
}


@pytest.mark.parametrize("recipe", slow_except(["td3"], PROBES))
def test_agents_learn_in_one_program(recipe):
    """A random policy reaches -0.67, or 0.5 with two actions."""
    base, args, enough = PROBES[recipe]
    steps = 2_000 if recipe != "ppo" else 6_000
    plan = plan_of(recipe, "compiled/Echo-v0", steps, {"base": base}, envs=8, env_args=args)
    _, events = trained(dataclasses.replace(plan, eval_every=steps, eval_episodes=50))
    evaluated = [e for e in events if isinstance(e, ev.Evaluated)]
    assert evaluated[-1].mean > enough > evaluated[0].mean


@pytest.mark.slow
def test_ppo_balances_the_pole_of_gymnax():
    pytest.importorskip("gymnax")
    plan = Plan("ppo", "gymnax/CartPole-v1", 30_000, envs=8, eval_every=30_000)
    _, events = trained(plan)
    assert next(e for e in reversed(events) if isinstance(e, ev.Evaluated)).mean > 300


@pytest.mark.slow
@pytest.mark.long
def test_sac_learns_in_brax_and_mixes_with_other_simulators_in_a_study(tmp_path):
    """A random policy balances for 6 steps."""
    pytest.importorskip("brax")
    base = {"actor_hidden": (64, 64), "critic_hidden": (64, 64), "warmup": 1_000}
    pace = {"eval_every": 4_000, "eval_episodes": 5}
    _, events = trained(
        Plan("sac", "brax/inverted_pendulum", 4_000, envs=16, settings={"base": base}, **pace)
    )
    assert next(e for e in reversed(events) if isinstance(e, ev.Evaluated)).mean > 40
    study = """
        [budgets.full]
        seeds = 2
        steps = 200
        [[agents]]
        recipe = "td3"
        base = {warmup = 50, actor_hidden = [8], critic_hidden = [8], batch_size = 16}
        [[environments]]
        id = "brax/fast"
        envs = 4
        [[environments]]
        id = "gymnax/Pendulum-v1"
        envs = 2
    """
    (tmp_path / "two.toml").write_text(study)
    assert main(["study", "run", str(tmp_path / "two.toml"), "--runs", str(tmp_path / "out")]) == 0
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("run.json")]
    assert [record["loop"] for record in records] == ["compiled"] * 4
