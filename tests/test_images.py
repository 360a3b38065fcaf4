"""Images: convolutions against XLA's own, bytes that stay bytes, and a policy that learns from pictures."""

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from qscape import agents
from qscape.envs import make
from qscape.errors import UsageError
from qscape.nets.conv import Convolutions, image_layout, min_image_size, patches
from qscape.run.plan import Plan
from qscape.run.training import make_session
from qscape.types import Spec

SMALL = ((4, 4, 2), (6, 3, 1))  # channels, kernel, stride


@pytest.mark.parametrize(("kernel", "stride"), [(8, 4), (4, 2), (3, 1), (3, 2), (2, 2)])
def test_patches_make_a_convolution(kernel, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 21, 18, 3)).astype(np.float32)
    found = np.asarray(patches(jnp.asarray(x), kernel, stride))
    h, w = (21 - kernel) // stride + 1, (18 - kernel) // stride + 1
    assert found.shape == (2, h, w, kernel * kernel * 3)
    for i in range(h):
        for j in range(w):
            window = x[1, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            np.testing.assert_array_equal(np.sort(found[1, i, j]), np.sort(window.ravel()))
    # A kernel learned in the order of the patches is some kernel: the order is the same everywhere.
    marks = jnp.arange(kernel * kernel * 3, dtype=jnp.float32).reshape(1, kernel, kernel, 3)
    order = np.asarray(patches(marks, kernel, stride))[0, 0, 0].astype(int)
    weight = rng.normal(size=(5, kernel, kernel, 3)).astype(np.float32)
    ours = found @ weight.reshape(5, -1)[:, order].T
    theirs = jax.lax.conv_general_dilated(
        x, weight.transpose(1, 2, 3, 0), (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_channels_first_or_last():
    net = Convolutions(jax.random.key(0), (4, 20, 16), (8,), SMALL)
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 20, 16), np.uint8)
    last = Convolutions(jax.random.key(0), (20, 16, 4), (8,), SMALL)
    ours, theirs = net(image.reshape(3, -1)), last(image.transpose(0, 2, 3, 1).reshape(3, -1))
    np.testing.assert_array_equal(ours, theirs)
    assert ours.shape == (3, 8)
    assert net(image.reshape(3, 1, -1)).shape == (3, 1, 8)
    white = Convolutions(jax.random.key(0), (20, 16), (8,), SMALL)
    assert white.frame == (20, 16, 1)
    assert image_layout((96, 96, 3)) == (False, (96, 96, 3))


@pytest.mark.slow
def test_the_nature_network():
    net = Convolutions(jax.random.key(0), (4, 84, 84), (512,))
    assert net.torso.layers[0].weight.shape == (512, 3136)
    assert [x.weight.shape for x in net.kernels] == [(32, 256), (64, 512), (64, 576)]
    assert min_image_size() == 36
    np.testing.assert_allclose(net.kernels[0].weight @ net.kernels[0].weight.T, 2 * np.eye(32), atol=1e-4)
    with pytest.raises(ValueError, match="smaller than 36"):
        Convolutions(jax.random.key(0), (4, 35, 84), (512,))


class Bars(gym.Env):
    """Shows a white bar on the left or on the right of two frames; the right action is its side."""

    observation_space = spaces.Box(0, 255, (2, 36, 36), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.side = int(self.np_random.integers(2))
        return self.shown(), {}

    def shown(self):
        picture = np.zeros((2, 36, 36), np.uint8)
        picture[:, :, 18 * self.side : 18 * self.side + 18] = 255
        return picture

    def step(self, action):
        return self.shown(), float(action == self.side), True, False, {}


@pytest.mark.parametrize(
    "settings",
    [{"plain": {"image_hidden": (1,)}}, {"plain": {"images": "flat"}, "base": {"actor_hidden": (1,)}}],
)
def test_a_simplex_on_too_few_features_of_pictures_is_refused(settings):
    spec = Spec(2 * 36 * 36, 1, choices=3, frame=(2, 36, 36))
    agent = agents.build("ppo+etf", {"etf": {"projector": "none"}} | settings)
    why = r"features for 3 actions, and there are 1; raise plain.image_hidden \(.* flat: base.actor_hidden\)"
    with pytest.raises(UsageError, match=why):
        agent.on(spec).init(jax.random.key(0), 1)


def test_flat_pictures():
    """Hidden layers on pixels that are divided by 255, against the product of matrices."""
    spec = Spec(2 * 4 * 4, 1, choices=3, frame=(2, 4, 4))  # smaller than the convolutions need
    settings = {"plain": {"images": "flat"}, "base": {"actor_hidden": (5,), "critic_hidden": (6,)}}
    agent = agents.build("a2c", settings).on(spec)
    state = agent.init(jax.random.key(0), 1)
    layer = state.networks.torso.torso.layers[0]
    assert layer.weight.shape == (5, 32)
    picture = np.random.default_rng(0).integers(0, 256, (3, 32), dtype=np.uint8)
    wanted = np.tanh(picture / 255.0 @ np.asarray(layer.weight).T + np.asarray(layer.bias))
    found = agent.get_distribution(agent.acting(state), jnp.asarray(picture)).features
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.slow
def test_a_policy_learns_from_pictures():
    base = {"rollout": 64, "batch_size": 32, "passes": 4, "learning_rate": 3e-3}
    agent = agents.build("ppo+etf", {"base": base, "plain": {"image_hidden": (16,)}})
    trainer = make_session(
        Plan("ppo+etf", "Bars", 512, eval_every=0), agent, make(Bars, 4, index_actions=True)
    )
    assert trainer.adapter.observation.dtype == np.uint8
    for _ in trainer.events(512):
        pass
    assert trainer.engine.buffer.columns["observation"].dtype == np.uint8
    assert trainer.engine.buffer.columns["next_observation"].dtype == np.uint8
    assert trainer.learner.state.networks.critic[0] is None, "one torso for both"
    pictures = []
    for side in (0, 1):
        env = Bars()
        env.side = side
        pictures.append(env.shown().ravel())
        rows, several = trainer.adapter.observations(env.shown())
        assert not several
        np.testing.assert_array_equal(rows[0], pictures[-1])
    dist = trainer.agent.get_distribution(trainer.learner.acting, np.stack(pictures))
    assert dist.mode()[:, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("recipe", "spec", "sentence"),
    [
        ("ppo", Spec(1, 1, choices=2, frame=(4, 35, 35)), "images of at least 36 × 36"),
        ("ppo+normalise", Spec(1, 1, choices=2, frame=(4, 84, 84)), "normalise is for vectors"),
    ],
)
def test_refused(recipe, spec, sentence):
    with pytest.raises(UsageError, match=sentence):
        agents.build(recipe).on(spec)


def test_trpo_keeps_actor_and_critic_apart():
    spec = Spec(2 * 36 * 36, 1, choices=2, frame=(2, 36, 36))
    assert not agents.build("trpo").on(spec).has_shared_torso
    assert agents.build("a2c").on(spec).has_shared_torso
    assert not agents.build("a2c", {"base": {"shared_torso": False}}).on(spec).has_shared_torso
    assert not agents.build("a2c").on(Spec(3, 1, choices=2)).has_shared_torso
