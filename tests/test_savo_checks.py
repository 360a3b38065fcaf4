"""The toy of two peaks: its landscape and its truncations, and climbing on exact and on smooth surrogates."""

from collections.abc import Callable
from functools import lru_cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from jaxtyping import Array, Float
from scipy.ndimage import gaussian_filter1d
from test_contract import QUICK
from test_savo import batch_of, functions, make, state_of, two_peaks

from qscape import agents
from qscape.envs.native import JaxEnv, Outcome
from qscape.offpolicy.sockets import PartState
from qscape.ops import landscape as ops
from qscape.run import scan
from qscape.types import Spec

SEEDS, STEPS, PACE = 100, 4000, 0.005
CENTRES, WIDTH = np.linspace(-1.2, 1.2, 25), 0.15
LINE = np.linspace(-1, 1, 2001)


# --- the landscape, in double precision -------------------------------------------------------------------


def psi(*earlier: float) -> Callable[[Float[Array, " N"]], Float[Array, " N"]]:
    """What SAVO's next actor climbs after these proposals: Q after none, then the exact Ψ_1, Ψ_2."""
    agent = make(spec=Spec(1, 1), list_length=3, surrogate="exact", actor_list="replay")
    part, state = agent.selector, state_of(agent)
    context = functions(agent, state, two_peaks)
    listed = jnp.array([*earlier, *[0.0] * (3 - len(earlier))])[:, None]

    def value(a):
        obs, action = jnp.zeros((len(a), 1)), jnp.asarray(a)[:, None]
        batch = batch_of(obs, action, jnp.broadcast_to(listed, (len(a), 3, 1)))
        return part.actor_objectives(state.actor, PartState(), context, batch)[len(earlier)][1](obs, action)[
            0
        ]

    return value


def slope(value, a) -> Float[Array, " N"]:
    return jax.grad(lambda x: value(x).sum())(jnp.asarray(a))


def ascended(value, start) -> Float[Array, " N"]:
    """Where 20,000 steps along the slope end."""
    step = lambda _, a: a + PACE * slope(value, a)  # noqa: E731
    return jax.jit(lambda a: jax.lax.fori_loop(0, 20_000, step, a))(jnp.array(start))


def optima(grid, values) -> np.ndarray:
    """The places of the strict local optima, the highest first."""
    found = ops.find_peaks(values, ops.grid_edges(values.shape))
    return grid[found.above(ops.prominence_threshold(values.min(), values.max())).node]


@pytest.mark.slow
def test_the_two_peaks():
    with jax.enable_x64(True):
        q = psi()
        np.testing.assert_allclose(q([-0.5, 0.6, 0, 0.4]), [1, 2, 0.0045368, 0.8222246], atol=5e-8)
        np.testing.assert_allclose(slope(q, [-0.4, 0.3]), [-3.558833, 3.608917], atol=5e-7)
        ends = ascended(q, [-0.9, -0.4, -0.2, 0, 0.05, 0.1, 0.3])
        np.testing.assert_allclose(ends, [-0.5] * 4 + [0.6] * 3, atol=5e-7)
        np.testing.assert_allclose(optima(LINE, np.asarray(q(LINE))), [0.6, -0.5], atol=1e-12)


def test_how_likely_a_uniform_start_reaches_the_higher_peak():
    """What lies right of the valley at 0.0346824: 48.266% of [-1, 1]."""
    with jax.enable_x64(True):
        start = np.array([-1, *np.linspace(0.03, 0.04, 2001), 1])
        high = np.asarray(ascended(psi(), start)) > 0.5
    assert (np.diff(high.astype(int)) >= 0).all(), "one place parts the two"
    valley = start[high.argmax()]
    assert valley == pytest.approx(0.0346824, abs=5e-6)
    assert (1 - valley) / 2 == pytest.approx(0.48266, abs=5e-6)


def test_where_the_exact_surrogate_has_a_slope():
    """Beyond the lower peak exactly on [0.4233885, 0.7766115], and from there the way leads to the top."""
    with jax.enable_x64(True):
        first = psi(-0.5)
        np.testing.assert_array_equal(slope(first, [-0.7, -0.3, 0.0, 0.4233875, 0.7766125]), 0.0)
        rising, falling = slope(first, [0.4233895, 0.7766105])
        assert rising > 1 > -1 > falling
        assert ascended(first, [0.45])[0] == pytest.approx(0.6, abs=5e-7)


def test_truncation_leaves_one_optimum_and_then_none():
    with jax.enable_x64(True):
        np.testing.assert_allclose(optima(LINE, np.asarray(psi(-0.5)(LINE))), [0.6], atol=1e-12)
        assert len(optima(LINE, np.asarray(psi(-0.5, 0.6)(LINE)))) == 0


@pytest.mark.parametrize(
    ("width", "peaks", "slopes_of_q", "slopes"),
    [
        (0.3, [0.601, -0.489], {}, {-0.5: 0.00581, 0.0: 0.27028}),
        (0.2, None, {0.0: -0.00293}, {0.0: 0.10468}),
    ],
)
def test_a_smooth_floor_leans_towards_the_peak_that_is_left(width, peaks, slopes_of_q, slopes):
    """Ψ_1 convolved with a Gaussian, in place of a learned one: one optimum, where a smooth Q keeps two."""
    grid = np.linspace(-3, 3, 6001)
    with jax.enable_x64(True):
        values = [np.asarray(value(np.clip(grid, -1, 1))) for value in (psi(), psi(-0.5))]
    q, first = (gaussian_filter1d(v, width / 0.001, mode="nearest", truncate=8) for v in values)
    assert len(optima(grid, q)) == 2
    if peaks:
        np.testing.assert_allclose(optima(grid, q), peaks, atol=5e-4)
    np.testing.assert_allclose(optima(grid, first), [0.6], atol=5e-4)
    for smooth, wanted in ((q, slopes_of_q), (first, slopes)):
        found = [np.gradient(smooth, grid)[np.abs(grid - at).argmin()] for at in wanted]
        np.testing.assert_allclose(found, list(wanted.values()), atol=5e-6)


# --- climbing, over 100 seeds -----------------------------------------------------------------------------


class Bumps(eqx.Module):
    """Ψ̂(a) = w·φ(a) + b with 25 Gaussians φ, a row of weights for each seed; a surrogate to SAVO."""

    w: Array
    b: Array
    summary: None = None

    @property
    def net(self):
        return self

    def conditioning(self, obs, earlier, shared=None):
        return None

    def __call__(self, obs, action, conditioning=None):
        return (self.w * phi(action)).sum(1) + self.b


def phi(action):
    return jnp.exp(-((action - CENTRES) ** 2) / (2 * WIDTH**2))


@lru_cache
def climb(surrogate: str, noise: float = 0.0) -> np.ndarray:
    """a_0 and a_1 at the end, [2, seeds]: a_0 starts on the lower peak, a_1 anywhere.

    Proposals are moved by hand along the slopes of what `actor_objectives` says, and the weights by those
    of `learn`'s loss. In double precision: some seeds end at either peak by a hair.
    """
    random = [np.random.default_rng(seed) for seed in range(SEEDS)]
    begin = np.array([g.uniform(-1, 1) for g in random])
    draws = np.stack([g.standard_normal((STEPS, 2)) for g in random], 1)  # [steps, seeds, 2]
    agent = make(spec=Spec(1, 1), list_length=2, surrogate=surrogate, actor_list="replay")
    part, state = agent.selector, state_of(agent)
    context = functions(agent, state, two_peaks)._replace(bind=lambda module: module)
    obs = jnp.zeros((SEEDS, 1))

    def slope(i, a, learned):
        batch = batch_of(obs, a[0], jnp.stack(list(a), 1))
        hill = part.actor_objectives(state.actor, PartState(params=learned), context, batch)[i][1]
        return jax.grad(lambda x: hill(obs, x)[0].sum())(a[i])

    def fitted(bumps, a, x):
        """One normalised step towards max{Q(x), Q(a_0)}: `learn` with x as both of its points."""
        batch = batch_of(obs, x, jnp.stack([a[0], x], 1))
        down = jax.grad(lambda learned: part.learn(learned, PartState(), context, batch, None)[0])([bumps])[0]
        size = SEEDS / 4  # the loss is a mean over seeds, of twice δ²: its slope is -4 δ φ / seeds
        scale = 0.2 / (1 + jnp.square(phi(x)).sum(1))
        return Bumps(bumps.w - size * scale[:, None] * down.w, bumps.b - size * 0.05 * down.b)

    def step(carry, drawn):
        a, bumps = carry
        if surrogate == "learned":
            near = jnp.clip(a + noise * drawn.T[..., None], -1, 1)
            chosen = part.choose(context, obs, near)[:, None]
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


@pytest.mark.slow
def test_a_smooth_surrogate_helps_and_guarantees_nothing():
    """With a surrogate that is fitted where actions are, 80 of these 100 seeds; fewer with more noise."""
    with jax.enable_x64(True):
        assert [solved(climb("learned", noise)) for noise in (0.1, 0.2, 0.3)] == [80, 57, 52]
        np.testing.assert_allclose(climb("learned", 0.1)[0], -0.5, atol=1e-6)


# --- networks, in one program -----------------------------------------------------------------------------


class TwoPeaks(JaxEnv):
    """One step; the reward is the height of the toy."""

    time_limit: int = eqx.field(static=True, kw_only=True, default=1)

    @property
    def observation_space(self):
        return spaces.Box(0.0, 2.0, (1,), np.float32)

    @property
    def action_space(self):
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, key):
        return (), jnp.ones(1)

    def step(self, state, action, key):
        no = jnp.bool_(False)
        return (), Outcome(jnp.ones(1), two_peaks(None, action)[0], ~no, no, no)


def on_the_lower_peak(actor):
    """An actor that says -0.5 nearly everywhere."""
    out = lambda actor: (actor.head.out.weight, actor.head.out.bias)  # noqa: E731
    weight, bias = out(actor)
    return eqx.tree_at(out, actor, (0.01 * weight, jnp.full_like(bias, np.arctanh(-0.5))))


@pytest.mark.slow
def test_later_actors_stay_on_the_floor_of_an_exact_surrogate():
    """The critic learns from random steps; then actors as they began climb it for 300 updates, and the later
    ones, which began between the peaks, do not move. There is no slope, though Q_1 knows the higher peak."""
    base = {"actor_hidden": (32, 32), "critic_hidden": (32, 32), "batch_size": 64, "warmup": 2700}
    base |= {"replay_capacity": 2700, "critic_learning_rate": 3e-3}
    env, key, due = TwoPeaks(), jax.random.key(0), jnp.ones(300, jnp.int32)
    agent = agents.build("td3+savo", {"base": base, "savo": {"surrogate": "exact"}}).on(scan.spec_of(env))

    def start(key):
        run = scan.start(agent, env, key, envs=1)
        first, *later = run.state.actor
        state = run.state._replace(actor=[on_the_lower_peak(first), *later])
        return run._replace(carry=run.carry._replace(state=state))

    def look(state):
        acting = agent.acting(state)
        q = acting.critics[0](jnp.ones((len(LINE), 1)), jnp.asarray(LINE, jnp.float32)[:, None], [])
        return agent.proposals(acting, jnp.ones((1, 1)))[0, :, 0], q

    quick = lambda f, *args: jax.jit(f).lower(*args).compile(compiler_options=QUICK)  # noqa: E731
    begun = run = quick(start, key)(key)
    further = quick(partial(scan.run_steps, agent, env), run, key, due)
    looked = quick(look, run.state)
    for _ in range(8):
        run, _ = further(run, key, due)
    state, new = run.state, begun.state
    optimisers = state.optimisers | {"actor": new.optimisers["actor"]}
    state = state._replace(actor=new.actor, actor_target=new.actor_target, optimisers=optimisers)
    run = run._replace(carry=run.carry._replace(state=state))
    before, q = (np.asarray(x) for x in looked(run.state))
    assert before[0] == pytest.approx(-0.5, abs=0.01)
    assert LINE[q.argmax()] == pytest.approx(0.6, abs=0.05)
    floor, *heights = np.interp(before, LINE, q)
    assert max(heights) < floor - 0.1, "the later actors begin below the first"
    run, _ = further(run, key, due)
    after, _ = looked(run.state)
    assert after[0] == pytest.approx(-0.5, abs=0.05)
    np.testing.assert_allclose(after[1:], before[1:], atol=1e-5)
