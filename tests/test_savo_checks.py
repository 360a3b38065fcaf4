"""Climbing on exact and on smooth surrogates: the toy of two peaks, over 100 seeds."""

from functools import lru_cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from test_savo import batch_of, functions, make, state_of, two_peaks

from qscape.offpolicy.sockets import Own
from qscape.types import Spec

SEEDS, STEPS, PACE = 100, 4000, 0.005
CENTRES, WIDTH = np.linspace(-1.2, 1.2, 25), 0.15


class Bumps(eqx.Module):
    """Ψ̂(a) = w·φ(a) + b with 25 Gaussians φ, a row of weights for each seed; a surrogate to SAVO."""

    w: Array
    b: Array

    @property
    def net(self):
        return self

    def context(self, obs, earlier):
        return None

    def __call__(self, obs, action, context=None):
        return (self.w * phi(action)).sum(1) + self.b


def phi(action):
    return jnp.exp(-((action - CENTRES) ** 2) / (2 * WIDTH**2))


@lru_cache
def climb(surrogate: str, noise: float = 0.1) -> np.ndarray:
    """a_0 and a_1 at the end, [2, seeds]: a_0 starts on the lower peak, a_1 anywhere.

    Proposals are moved by hand along the slopes of what `climbs` says they climb, and the weights by those
    of `learn`'s loss. In double precision: some seeds end at either peak by a hair.
    """
    random = [np.random.default_rng(seed) for seed in range(SEEDS)]
    begin = np.array([g.uniform(-1, 1) for g in random])
    draws = np.stack([g.standard_normal((STEPS, 2)) for g in random], 1)  # [steps, seeds, 2]
    agent = make(spec=Spec(1, 1), list_length=2, surrogate=surrogate, actor_list="replay")
    part, state = agent.maximiser, state_of(agent)
    fns = functions(agent, state, two_peaks)._replace(bind=lambda module: module)
    obs = jnp.zeros((SEEDS, 1))

    def slope(i, a, learned):
        batch = batch_of(obs, a[0], jnp.stack(list(a), 1))
        hill = part.climbs(state.actor, Own(learned=learned), fns, batch)[i][1]
        return jax.grad(lambda x: hill(obs, x)[0].sum())(a[i])

    def fitted(bumps, a, x):
        """One normalised step towards max{Q(x), Q(a_0)}: `learn` with x as both of its points."""
        batch = batch_of(obs, x, jnp.stack([a[0], x], 1))
        down = jax.grad(lambda learned: part.learn(learned, Own(), fns, batch, None)[0])([bumps])[0]
        size = SEEDS / 4  # the loss is a mean over seeds, of twice δ²: its slope is -4 δ φ / seeds
        scale = 0.2 / (1 + jnp.square(phi(x)).sum(1))
        return Bumps(bumps.w - size * scale[:, None] * down.w, bumps.b - size * 0.05 * down.b)

    def step(carry, drawn):
        a, bumps = carry
        if surrogate == "learned":
            near = jnp.clip(a + noise * drawn.T[..., None], -1, 1)
            chosen = part.pick(fns, obs, near)[:, None]
            bumps = fitted(bumps, a, jnp.where(chosen == 0, near[0], near[1]))
            bumps = fitted(bumps, a, near[1])
        moved = jnp.stack([a[i] + PACE * slope(i, a, [bumps]) for i in (0, 1)])
        return (jnp.clip(moved, -1, 1), bumps), None

    a = jnp.stack([jnp.full((SEEDS, 1), -0.5), jnp.asarray(begin)[:, None]])
    start = a, Bumps(jnp.zeros((SEEDS, len(CENTRES))), jnp.zeros(SEEDS))
    (a, _), _ = jax.jit(lambda start, draws: jax.lax.scan(step, start, draws))(start, jnp.asarray(draws))
    return np.asarray(a[..., 0])


def solved(a: np.ndarray) -> int:
    """In how many seeds one of the proposals is near the higher peak."""
    return int((np.asarray(two_peaks(None, jnp.asarray(a)[..., None])[0]).max(0) >= 1.9).sum())


def test_an_exact_surrogate_is_climbed_only_from_above_its_floor():
    """a_1 finds the higher peak if it starts above the floor: 17.7 % of the line, 19 of these 100 seeds."""
    with jax.enable_x64(True):
        a = climb("exact")
    assert solved(a) == 19
    np.testing.assert_allclose(a[0], -0.5, atol=1e-6)
    begin = np.array([np.random.default_rng(seed).uniform(-1, 1) for seed in range(SEEDS)])
    assert (a[1] != begin).sum() == 19, "on the floor nothing moves"


def test_a_smooth_surrogate_helps_and_guarantees_nothing():
    """With a surrogate that is fitted where actions are, 80 of these 100 seeds; 57 with twice the noise."""
    with jax.enable_x64(True):
        assert solved(climb("learned")) == 80
        assert solved(climb("learned", 0.2)) == 57
        np.testing.assert_allclose(climb("learned")[0], -0.5, atol=1e-6)
