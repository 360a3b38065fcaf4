"""The bias of Q against returns that are known."""

import jax
import numpy as np
import pytest
from small import A, S, Says

from qscape import agents
from qscape.envs import Episode
from qscape.errors import UsageError
from qscape.inspect.bias import BiasProbe, discounted_returns
from qscape.run.evaluation import Rollout
from qscape.run.probes import PolicyEvaluation
from qscape.types import Spec

GAMMA = 0.9


def chain(n: int, reward: float = 1.0) -> Rollout:
    """An episode of n equal rewards; its observations tell how many of them are still to come."""
    left = np.arange(n, 0, -1, dtype=np.float32)
    obs = np.tile(left[:, None], (1, S))
    rewards = np.full(n, reward)
    return Rollout(obs, np.zeros((n, A), np.float32), rewards, Episode(0, n, float(rewards.sum()), None))


def probe(time_limit: int | None = None, **base):
    """A probe, and an acting state whose first critic is exact for `chain` and whose second says 2 more."""
    agent = agents.build("td3", {"base": {"discount": GAMMA, **base}}).on(Spec(S, A, time_limit=time_limit))
    acting = agent.acting(agent.init(jax.random.key(0)))
    exact = lambda obs, a: (1 - GAMMA ** obs[..., 0]) / (1 - GAMMA)  # noqa: E731
    critics = [Says(exact), Says(lambda obs, a: exact(obs, a) + 2.0)]
    return BiasProbe(agent), acting._replace(critics=critics)


def test_returns_by_hand():
    returns, counts = discounted_returns(np.array([1.0, 2.0, 4.0]), 0.5, None)
    assert returns.tolist() == [3.0, 4.0, 4.0]
    assert counts.all()
    returns, counts = discounted_returns(np.array([1.0, 2.0, 4.0]), 0.5, 10.0)
    assert returns.tolist() == [1 + 0.5 * 7, 7.0, 10.0], "the tail takes the place of the last reward"
    assert counts.tolist() == [True, True, False], "it weighs 1/4, 1/2 and 1"


def test_the_mean_of_the_critics_is_compared_in_episodes_that_ended():
    measured = probe()[0].measure(probe()[1], [chain(700), chain(5)])
    assert measured["q_bias"] == pytest.approx(1.0, abs=1e-4)
    assert measured["q_bias_std"] == pytest.approx(0.0, abs=1e-4)
    size = np.concatenate([(1 - GAMMA ** np.arange(n, 0, -1.0)) / (1 - GAMMA) for n in (700, 5)]).mean()
    assert measured["q_bias_share"] == pytest.approx(1.0 / size, rel=1e-4)


def test_an_episode_that_a_time_limit_cut_goes_on_by_q():
    """The critics promise 10 (r = 1 for ever) and 2 more: the tail repeats a share γᵏ of what is too much."""
    ours, acting = probe(time_limit=20)
    endless = chain(20)._replace(observation=np.full((20, S), 1e6, np.float32))
    left = np.arange(19, -1, -1.0)
    left = left[GAMMA**left <= 0.5]
    measured = ours.measure(acting, [endless])
    assert measured["q_bias"] == pytest.approx((1.0 - GAMMA**left).mean(), rel=1e-4)
    ours, acting = probe(time_limit=20, bootstrap_at_time_limits=False)
    assert ours.measure(acting, [chain(20)])["q_bias"] == pytest.approx(1.0, abs=1e-4)


def test_too_short_a_cut_says_nothing():
    ours, acting = probe(time_limit=3)
    assert np.isnan(list(ours.measure(acting, [chain(3)]).values())).all()


def test_q_of_scaled_rewards_is_compared_in_the_unit_of_rewards():
    ours, acting = probe()
    scaled = [Says(lambda obs, a, c=c: c(obs, a, None) / 4.0) for c in acting.critics]
    whole = ours(PolicyEvaluation(acting, [chain(30)]))
    found = ours(PolicyEvaluation(acting._replace(critics=scaled), [chain(30)], reward_divisor=4.0))
    assert found == pytest.approx(whole, rel=1e-4)


def test_agents_without_q_are_refused():
    with pytest.raises(UsageError, match=r"ppo has no Q\(s, a\)"):
        BiasProbe(agents.build("ppo").on(Spec(S, A)))
