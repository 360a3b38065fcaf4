"""PPO learns from a rollout what Stable-Baselines3's PPO learns from it: the same parameters to 1e-6."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qscape.agents import build
from qscape.envs import make
from qscape.types import Transition

sb3 = pytest.importorskip("stable_baselines3")

ENVS, STEPS, PASSES = 8, 256, 3
LAYERS = (  # in the order of our leaves: actor, head, critic
    "mlp_extractor.policy_net.0",
    "mlp_extractor.policy_net.2",
    "action_net",
    "mlp_extractor.value_net.0",
    "mlp_extractor.value_net.2",
    "value_net",
)


@pytest.mark.parametrize("env", ["CartPole-v1", "LunarLander-v3"])
def test_one_update_equals_theirs(env):
    """All samples in one minibatch, so that the order in which they are drawn plays no part."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import Logger

    size = ENVS * STEPS
    theirs = sb3.PPO(
        "MlpPolicy",
        make_vec_env(env, ENVS, seed=0),
        n_steps=STEPS,
        batch_size=size,
        n_epochs=PASSES,
        seed=0,
        device="cpu",
    )
    theirs.set_logger(Logger(None, []))
    _, callback = theirs._setup_learn(10 * size, None)
    before = parameters(theirs)
    theirs.collect_rollouts(theirs.env, callback, theirs.rollout_buffer, STEPS)
    buffer = theirs.rollout_buffer
    seen = np.concatenate([buffer.observations, theirs._last_obs[None]])
    begun = np.concatenate([buffer.episode_starts, theirs._last_episode_starts[None]])
    ended = jnp.asarray(begun[1:] > 0)
    rollout = Transition(
        observation=jnp.asarray(seen[:-1]),
        action=jnp.asarray(buffer.actions, jnp.float32),
        reward=jnp.asarray(buffer.rewards),
        terminated=ended,
        truncated=jnp.zeros_like(ended),
        next_observation=jnp.asarray(seen[1:]),
    )
    theirs.train()

    ours = build("ppo", {"base": {"rollout": size, "batch_size": size, "passes": PASSES}})
    ours = ours.on(make(env, ENVS, index_actions=True).spec)
    state = ours.init(jax.random.key(0), ENVS)
    leaves, tree = jax.tree.flatten(state.networks)
    state = state._replace(networks=tree.unflatten(fit(before, leaves)))
    moved = jax.tree.leaves(jax.jit(ours.update)(state, rollout, 0.0, jax.random.key(1))[0].networks)
    wanted = fit(parameters(theirs), leaves)
    for one, other, first in zip(moved, wanted, fit(before, leaves), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
        assert np.abs(other - first).max() > 1e-5


def parameters(model):
    """Weights and biases, layer by layer."""
    state = model.policy.state_dict()
    return [state[f"{layer}.{kind}"].numpy().copy() for layer in LAYERS for kind in ("weight", "bias")]


def fit(values, leaves):
    """Their arrays in the places of ours, which must have their shapes."""
    for value, leaf in zip(values, leaves, strict=True):
        assert value.shape == leaf.shape
    return [jnp.asarray(value) for value in values]
