"""Evaluation episodes inside one compiled program: the same as step by step through the Gymnasium face."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit, TransformReward
from jaxtyping import Array
from rows import slow

from qscape import agents
from qscape.envs import make
from qscape.envs.cartpole import CartPole
from qscape.envs.native import GymnasiumEnv, JaxEnv, Outcome, find_jax_env, reset_all, step_all, step_key
from qscape.errors import RunError, UsageError
from qscape.run import episodes
from qscape.run.evaluation import episode_seeds, evaluate, evaluate_policies, rollouts
from qscape.run.policy import make_programs

NETS = {"actor_hidden": (16, 16), "critic_hidden": (16, 16)}


class Place(NamedTuple):
    x: Array
    steps: Array
    start: Array


class Gusts(JaxEnv):
    """A wind moves a point [2], and the action in [0.5, 2] pushes it; beyond 3 the episode is terminated.

    With `bad`, a number is not finite at the reset or in the fourth step of episodes that start above `edge`.
    A step after the end of an episode has the reward NaN.
    """

    reports_success = True
    bad: str = eqx.field(static=True, default="")
    edge: Array = eqx.field(default_factory=lambda: jnp.float32(0.5))
    time_limit: int = eqx.field(static=True, kw_only=True, default=12)

    @property
    def observation_space(self):
        return spaces.Box(-9.0, 9.0, (2,), np.float32)

    @property
    def action_space(self):
        return spaces.Box(0.5, 2.0, (1,), np.float32)

    def reset(self, key):
        x = jax.random.uniform(key, (2,))
        place = Place(x, jnp.int32(0), x[1])
        return place, jnp.where((self.bad == "reset") & (x[1] > self.edge), jnp.inf, x)

    def step(self, state, action, key):
        wind = jax.random.normal(key, (2,))
        after = state.x[0] > 3
        state = Place(state.x + 0.2 * action[0] + 0.3 * wind, state.steps + 1, state.start)
        wrong = (state.steps == 4) & (state.start > self.edge)
        seen = jnp.where(wrong & (self.bad == "observation"), jnp.nan, state.x)
        wrong = (wrong & (self.bad == "reward")) | after
        reward = jnp.where(wrong, jnp.nan, -jnp.abs(action[0] - wind[0]))
        end = state.x[0] > 3
        return state, Outcome(seen, reward, end, state.steps >= self.time_limit, end & (wind[1] > 0))


def gusts(limit=12, bad="", edge=0.5):
    return TimeLimit(GymnasiumEnv(Gusts(bad, jnp.float32(edge))), limit)


def test_a_step_has_none_of_the_keys_that_a_reset_makes():
    """`split(key, n)[i]` is `fold_in(key, i)`."""
    key = jax.random.key(3)
    made = {bytes(np.asarray(jax.random.key_data(k))) for k in jax.random.split(key, 8)}
    assert bytes(np.asarray(jax.random.key_data(jax.random.fold_in(key, 1)))) in made
    steps = [jax.random.key_data(step_key(key, jnp.uint32(k))) for k in range(1, 9)]
    assert len(made | {bytes(np.asarray(k)) for k in steps}) == 16


TASKS = {
    "gusts": (gusts, {}),
    "cart": ("jax/CartPole-v1", {"max_episode_steps": 60}),
    "recsim": ("recsim/10k-v0", {"max_episode_steps": 7}),
    "mines": ("mineworld/MineWorld-v0", {"max_episode_steps": 15}),
    "cliff": ("cliff/IdealCliffWalking-v0", {"max_episode_steps": 9, "cliff_mode": "restart"}),
}


@lru_cache
def policy(task, recipe, envs=3, **base):
    """An untrained policy with larger weights, so that its actions differ between observations."""
    agent = agents.build(recipe, {"base": NETS | base})
    env_id, args = TASKS[task]
    adapter = make(env_id, envs, args, index_actions=agent.index_actions)
    agent = agent.on(adapter.spec)
    acting = jax.jit(lambda key: agent.acting(agent.init(key)))(jax.random.key(3))
    acting = jax.tree.map(lambda x: 3 * x, acting)
    if task == "mines":  # most policies use one tool for ever
        drawn = np.random.default_rng({"ppo": 131, "td3": 113}[recipe])
        acting = jax.tree.map(lambda x: x + np.float32(drawn.normal(size=x.shape)), acting)
    return make_programs(agent), acting, adapter


def step_by_step(programs, acting, adapter, count, seed):
    """`rollouts` through the Gymnasium face: a program cannot call a filter of observations."""
    return rollouts(programs, acting, adapter, count, seed, observation_filter=lambda seen: seen)


CASES = [
    ("gusts", "td3+normalise", 3),
    slow("gusts", "ppo+normalise", 3),
    ("cart", "ppo+etf", 1),
    ("recsim", "td3", 3),
    slow("recsim", "td3+savo", 3),
    slow("recsim", "ppo", 3),
    slow("mines", "td3", 3),
    ("mines", "ppo", 3),
    ("cliff", "reinforce", 3),
]


@pytest.mark.parametrize(("task", "recipe", "envs"), CASES)
def test_the_episodes_are_those_of_the_gymnasium_face(task, recipe, envs):
    programs, acting, adapter = policy(task, recipe, envs)
    expected = step_by_step(programs, acting, adapter, 8, seed=5)
    found = rollouts(programs, acting, adapter, 8, seed=5)
    shown = np.concatenate([e.action for e in expected])
    assert len(np.unique(shown, axis=0)) > 1, "else a wrong order of episodes would not be seen"
    assert len({e.observation.tobytes() for e in expected}) > 3
    for one, other in zip(found, expected, strict=True):
        assert (one.episode.env, one.episode.length) == (other.episode.env, other.episode.length)
        assert one.episode.success == other.episode.success
        assert one.terminated == other.terminated
        for name in ("observation", "action", "reward"):
            a, b = getattr(one, name), getattr(other, name)
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert one.episode.ret == sum(one.reward.tolist()), "in double precision, in order"
    if task in ("cart", "recsim"):
        assert {one.terminated for one in found} == {task == "cart"}
    assert evaluate(programs, acting, adapter, 8, seed=5) == [one.episode for one in found]
    if task in ("recsim", "cliff", "cart"):
        assert [e.episode.ret for e in found] == [e.episode.ret for e in expected]


def test_more_episodes_than_fit_are_played_in_several_calls_of_one_program(monkeypatch):
    programs, acting, adapter = policy("gusts", "td3+normalise", 3)
    whole = rollouts(programs, acting, adapter, 7, seed=5)
    traced = []
    play = episodes._play
    monkeypatch.setattr(episodes, "_play", lambda *args: traced.append(len(args[-1])) or play(*args))
    monkeypatch.setattr(episodes, "BUFFER_BYTES", 3 * 4 * 12 * (2 + 1 + 1))
    episodes._compile.cache_clear()
    parts = rollouts(programs, acting, adapter, 7, seed=5)
    episodes._compile.cache_clear()
    assert traced == [3]
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_allclose(one.observation, other.observation, rtol=1e-5, atol=1e-6)
        assert one.episode[:2] == other.episode[:2]


def test_a_program_is_compiled_once_and_the_environments_are_not_stepped(monkeypatch):
    programs, acting, adapter = policy("cliff", "reinforce", 3)
    traced = []
    play = episodes._play
    monkeypatch.setattr(episodes, "_play", lambda *args: traced.append(len(args[-1])) or play(*args))
    monkeypatch.setattr(adapter.env.envs[0].unwrapped, "step", None)
    episodes._compile.cache_clear()
    first, second = (evaluate(programs, acting, adapter, 100, seed) for seed in (5, 6))
    assert first != second
    evaluate(programs, jax.tree.map(jnp.negative, acting), adapter, 100, 5)
    episodes._compile.cache_clear()
    assert traced == [100]
    assert [episode.env for episode in first] == [k % 3 for k in range(100)]


@pytest.mark.parametrize(
    ("recipe", "base"), [("td3+normalise", {}), slow("td3", {"exploration": "ou"})], ids=["", "noise state"]
)
def test_several_policies_play_the_episodes_that_each_plays_alone(recipe, base, monkeypatch):
    programs, acting, adapter = policy("gusts", recipe, 3, **base)
    alone = [jax.tree.map(lambda x, by=by: by * x, acting) for by in (1.0, 0.1, 3.0)]
    together = jax.tree.map(lambda *of_each: jnp.stack(of_each), *alone)
    expected = [evaluate(programs, one, adapter, 7) for one in alone]
    assert len({e.ret for episodes in expected for e in episodes}) > 7, "else an order would not be seen"
    for bytes_of_a_call in (1 << 30, 9 * 4 * 12 * (2 + 1 + 1)):
        monkeypatch.setattr(episodes, "BUFFER_BYTES", bytes_of_a_call)
        found = evaluate_policies(programs, together, adapter, 7, ["a", "b", "c"])
        for one, other in zip(found, expected, strict=True):
            assert [e._replace(ret=0) for e in one] == [e._replace(ret=0) for e in other]
            np.testing.assert_allclose([e.ret for e in one], [e.ret for e in other], rtol=1e-4)


def test_of_several_policies_the_one_that_is_not_finite_is_named():
    programs, acting, adapter = policy("gusts", "td3+normalise", 3)
    policies = jax.tree.map(lambda x: jnp.stack([x, x * jnp.nan]), acting)
    with pytest.raises(
        RunError, match=r"^seed 4: .*the agent's action.* is nan .*environment 0, step 1 of its"
    ):
        evaluate_policies(programs, policies, adapter, 7, ["seed 3", "seed 4"])


def test_finished_episodes_stand_still():
    programs, acting, adapter = policy("gusts", "td3+normalise", 3)
    seeds = jnp.asarray(episode_seeds(3, 8, 5))
    play = jax.jit(partial(episodes._play, programs.agent, "evaluate", 0))
    walk = play(find_jax_env(adapter.env), acting, seeds)
    assert walk.length.tolist() == walk.state.steps.tolist()
    assert len(set(walk.length.tolist())) > 1


@pytest.mark.parametrize(
    ("bad", "where"), [("reset", "step 0"), ("observation", "step 4"), ("reward", "step 4")]
)
def test_numbers_that_are_not_finite_are_told_as_by_the_adapter(bad, where, monkeypatch):
    """In the episode with the highest start alone; every call plays three episodes."""
    programs, acting, adapter = policy("gusts", "td3+normalise", 2)
    starts = [e.observation[0, 1] for e in rollouts(programs, acting, adapter, 7, 9)]
    edge, number = np.sort(starts)[-2:].mean(), int(np.argmax(starts))
    told = []
    monkeypatch.setattr(episodes, "BUFFER_BYTES", 3 * 4 * 12 * (2 + 1 + 1))
    for play in (step_by_step, rollouts):
        with pytest.raises(RunError) as error:
            play(programs, acting, make(lambda: gusts(bad=bad, edge=edge), 2), 7, 9)
        told.append(str(error.value))
    assert told[0] == told[1]
    assert number >= 3
    assert f"environment {number % 2}, {where} of its episode {number // 2 + 1}:" in told[0]


class Mistaken(Gusts):
    """Changes what `reset` returns, or a field of what `step` does."""

    seen: tuple = eqx.field(static=True, default=(2,))
    change: Any = eqx.field(static=True, default=lambda outcome: outcome)

    @property
    def observation_space(self):
        return spaces.Box(-10.0, 10.0, self.seen, np.float32)

    def step(self, state, action, key):
        state, outcome = super().step(state, action, key)
        return state, self.change(outcome)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"seen": (1, 2)}, r"Mistaken: environments in JAX show vectors, .* has the shape \(1, 2\): flatten"),
        ({"seen": (3,)}, r"Mistaken.reset: observation is float32\[2\]; it must be float32\[3\]"),
        (
            {"change": lambda o: o._replace(reward=o.reward[None])},
            r"step: reward is float32\[1\]; .*float32\[\]",
        ),
        (
            {"change": lambda o: o._replace(terminated=1.0 * o.success)},
            r"terminated is float32\[\]; .* bool\[\]",
        ),
        ({"change": lambda o: o._replace(success=None)}, r"success is None; it must be bool\[\]"),
        ({"change": tuple}, r"Mistaken\.step must return \(state, Outcome\)"),
    ],
)
def test_what_an_environment_returns_in_another_form_is_said(wrong, why):
    env, keys = Mistaken(**wrong), jax.random.split(jax.random.key(0), 3)
    with pytest.raises(UsageError, match=why):
        jax.eval_shape(lambda: step_all(env, reset_all(env, keys)[0], jnp.zeros((3, 1)), keys))


def test_a_start_has_the_types_that_a_step_leaves():
    """A literal's type is weak, and each of both would need a program of its own."""

    class Literal(Gusts):
        def reset(self, key):
            state, seen = super().reset(key)
            return state._replace(steps=jnp.asarray(0), start=jnp.asarray(0.5)), seen

    start = jax.eval_shape(partial(reset_all, Literal()), jax.random.split(jax.random.key(0), 3))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(start))


def test_actions_that_are_not_finite_are_told():
    programs, acting, adapter = policy("gusts", "td3+normalise", 3)
    with pytest.raises(RunError, match=r"the agent's action\[0\] is nan in environment 0, step 1 of its"):
        evaluate(programs, jax.tree.map(lambda x: x * np.nan, acting), adapter, 4)


def test_without_a_time_limit_of_gymnasium_episodes_end_where_those_of_the_jax_env_do():
    """Python's steps would never truncate; evaluations and compiled runs do."""

    def bare():
        return GymnasiumEnv(Gusts(time_limit=3))

    for given, envs in ((bare(), 1), (bare, 1), (bare, 2), (gym.vector.SyncVectorEnv([bare, bare]), 2)):
        adapter = make(given, envs)
        adapter.reset()
        ended = [adapter.step(np.zeros((envs, 1), np.float32)).transition.truncated.all() for _ in range(3)]
        assert (adapter.time_limit, ended) == (3, [False, False, True])
    assert make(lambda: TimeLimit(bare(), 9)).jax_env.time_limit == 9, "their own limit stays"


def test_an_object_of_an_id_without_a_limit_has_that_id(monkeypatch):
    """A run folder can name it: the id makes the environment with the same limit."""
    spec = EnvSpec("episodes/Bare-v0", lambda: GymnasiumEnv(Gusts(time_limit=3)))
    monkeypatch.setitem(gym.registry, spec.id, spec)
    assert [(one.env_id, one.time_limit) for one in (make(gym.make(spec.id)), make(spec.id))] == [
        (spec.id, 3)
    ] * 2
    assert make(gym.make(spec.id, max_episode_steps=2)).env_id != spec.id


def test_only_environments_that_are_stepped_as_they_are_have_a_jax_env():
    assert find_jax_env(TimeLimit(gusts(9), 20)).time_limit == 9
    assert find_jax_env(make(gusts, 3).env).time_limit == 12
    assert find_jax_env(TransformReward(gusts(), lambda reward: 2 * reward)) is None
    assert find_jax_env(RecordEpisodeStatistics(gusts())) is None, "the user reads them"

    class Slower(GymnasiumEnv):
        def step(self, action):
            return super().step(0.5 * action)

    assert find_jax_env(Slower(Gusts())) is None
    others = iter([CartPole(), CartPole(time_limit=3), Gusts(), Gusts(edge=jnp.float32(0.1))])
    for _ in range(2):
        env = gym.vector.SyncVectorEnv([lambda: GymnasiumEnv(next(others))] * 2)
        assert find_jax_env(env) is None
