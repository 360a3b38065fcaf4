"""The bias of Q against returns that are known."""

import dataclasses

import jax
import numpy as np
import pytest
from small import A, S, Says

from qscape import agents
from qscape.envs import Episode
from qscape.errors import UsageError
from qscape.inspect.bias import BiasProbe, discounted_returns, measure_bias
from qscape.inspect.trained_agent import load_trained_agent, make_trained_agent
from qscape.run import train
from qscape.run.evaluation import Rollout
from qscape.run.events import Evaluated
from qscape.run.plan import Plan
from qscape.run.probes import PolicyEvaluation
from qscape.types import Spec

GAMMA = 0.9


def chain(n: int, reward: float = 1.0, terminated: bool = True) -> Rollout:
    """An episode of n equal rewards; its observations tell how many of them are still to come."""
    left = np.arange(n, 0, -1, dtype=np.float32)
    obs = np.tile(left[:, None], (1, S))
    rewards = np.full(n, reward)
    episode = Episode(0, n, float(rewards.sum()), None)
    return Rollout(obs, np.zeros((n, A), np.float32), rewards, terminated, episode)


def probe(**base):
    """A probe, and an acting state whose first critic is exact for `chain` and whose second says 2 more."""
    agent = agents.build("td3", {"base": {"discount": GAMMA, **base}}).on(Spec(S, A))
    acting = agent.acting(agent.init(jax.random.key(0)))
    exact = lambda obs, a: (1 - GAMMA ** obs[..., 0]) / (1 - GAMMA)  # noqa: E731
    critics = [Says(exact), Says(lambda obs, a: exact(obs, a) + 2.0)]
    return BiasProbe(agent), acting._replace(critics=critics)


def test_returns_by_hand():
    returns, seen = discounted_returns(np.array([1.0, 2.0, 4.0]), 0.5, None)
    assert returns.tolist() == [3.0, 4.0, 4.0]
    assert seen.tolist() == [1.0, 1.0, 1.0]
    returns, seen = discounted_returns(np.array([1.0, 2.0, 4.0]), 0.5, 10.0)
    assert returns.tolist() == [1 + 0.5 * 7, 7.0, 10.0], "the tail takes the place of the last reward"
    assert seen.tolist() == [0.75, 0.5, 0.0]


def test_the_mean_of_the_critics_is_compared_in_episodes_that_ended():
    measured = probe()[0].measure(probe()[1], [chain(700), chain(5)])
    assert measured["q_bias"] == pytest.approx(1.0, abs=1e-4)
    assert measured["q_bias_std"] == pytest.approx(0.0, abs=1e-4)
    size = np.concatenate([(1 - GAMMA ** np.arange(n, 0, -1.0)) / (1 - GAMMA) for n in (700, 5)]).mean()
    assert measured["q_bias_share"] == pytest.approx(1.0 / size, rel=1e-4)


def endless(n: int) -> Rollout:
    """The beginning of an episode that has no end: r = 1 for ever."""
    return chain(n, terminated=False)._replace(observation=np.full((n, S), 1e6, np.float32))


@pytest.mark.parametrize("lengths", [(20,), (3, 50, 2)])
def test_a_truncated_episode_goes_on_by_q(lengths):
    """The critics promise 10, which is right, and 2 more: 1 too much on average, also in short episodes."""
    ours, acting = probe()
    measured = ours.measure(acting, [*map(endless, lengths)])
    assert measured["q_bias"] == pytest.approx(1.0, rel=1e-4)
    assert measured["q_bias_std"] == pytest.approx(0.0, abs=1e-4)
    mixed = ours.measure(acting, [*map(endless, lengths), chain(20)])
    assert mixed["q_bias"] == pytest.approx(1.0, rel=1e-4)
    ours, acting = probe(bootstrap_at_time_limits=False)
    cut = chain(20, terminated=False)
    assert ours.measure(acting, [cut])["q_bias"] == pytest.approx(1.0, abs=1e-4)


def test_a_truncation_after_one_step_says_nothing():
    ours, acting = probe()
    assert np.isnan(list(ours.measure(acting, [endless(1)]).values())).all()


def test_q_of_scaled_rewards_is_compared_in_the_unit_of_rewards():
    ours, acting = probe()
    scaled = [Says(lambda obs, a, c=c: c(obs, a, None) / 4.0) for c in acting.critics]
    whole = ours(PolicyEvaluation(acting, [chain(30)]))
    found = ours(PolicyEvaluation(acting._replace(critics=scaled), [chain(30)], reward_divisor=4.0))
    assert found == pytest.approx(whole, rel=1e-4)


def test_clipped_rewards_are_refused():
    """An Atari agent learns from signs; its own evaluations show the scores."""
    with pytest.raises(UsageError, match="learn from the signs of its rewards"):
        Plan("dqn", "ALE/Pong-v5", 100, probe=("bias",))
    Plan("dqn", "ALE/Pong-v5", 100, env_args={"obs_type": "ram"}, probe=("bias",))
    agent = agents.build("dqn").on(Spec(S, 1, choices=3))
    subject = make_trained_agent(agent, agent.init(jax.random.key(0)), "ALE/Pong-v5")
    subject = dataclasses.replace(subject, record={"env": "ALE/Pong-v5", "env_args": {}})
    with pytest.raises(UsageError, match="learn from the signs of its rewards"):
        measure_bias(subject, [chain(3)])


def test_the_scale_of_rewards_is_read_from_the_save(tmp_path):
    """The last evaluation of training, which knows the scale, measures the same episodes."""
    small = {"base": {"actor_hidden": (8,), "critic_hidden": (8,), "warmup": 50}}
    plan = Plan(
        "td3+reward_scale",
        "Pendulum-v1",
        300,
        settings=small,
        eval_every=300,
        eval_episodes=2,
        probe=("bias",),
    )
    *_, evaluated = (event for event in train(plan, tmp_path / "run") if isinstance(event, Evaluated))
    trained = load_trained_agent(tmp_path / "run")
    measured = measure_bias(trained, trained.rollouts(2))
    assert abs(measured["q_bias"]) > 1
    for name, value in measured.items():
        assert value == pytest.approx(evaluated.probes[name][0], rel=1e-3)
    with pytest.raises(UsageError, match="no save of it tells the scale"):
        measure_bias(dataclasses.replace(trained, record={}), trained.rollouts(2))


@pytest.mark.slow
def test_the_bias_of_a_kept_policy_needs_the_scale_of_its_time(tmp_path):
    small = {"base": {"actor_hidden": (8,), "critic_hidden": (8,), "warmup": 50}}
    asked = {"eval_every": 400, "eval_episodes": 2, "probe": ("bias",), "settings": small}
    plan = Plan("td3+reward_scale+checkpoints", "Pendulum-v1", 800, **asked)
    told = {e.policy: e for e in train(plan, tmp_path / "run") if isinstance(e, Evaluated)}
    assert np.isnan(told["kept"].probes["q_bias"][0])
    assert np.isfinite(told["current"].probes["q_bias"][0])
    for current in (True, False):
        trained = load_trained_agent(tmp_path / "run", current)
        if current:
            assert np.isfinite(measure_bias(trained, trained.rollouts(1))["q_bias"])
            continue
        with pytest.raises(UsageError, match="measure the newest policy with --current"):
            measure_bias(trained, trained.rollouts(1))


def test_agents_without_q_are_refused():
    with pytest.raises(UsageError, match=r"ppo has no Q\(s, a\)"):
        BiasProbe(agents.build("ppo").on(Spec(S, A)))
