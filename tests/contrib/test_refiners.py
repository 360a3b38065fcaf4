"""EAS, its imitation of winners, and ESA: the numbers of their equations, computed apart from the code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow
from small import build, start
from test_savo import A, S, functions, make, state_of

from qscape import agents as recipes
from qscape.contrib import esa
from qscape.contrib._extremum import update_spread
from qscape.errors import UsageError
from qscape.nets.heads import Point
from qscape.offpolicy.sockets import PartState
from qscape.onpolicy.sockets import RolloutSamples
from qscape.replay.storage import Layout, ReplayState
from qscape.replay.uniform import sample_uniformly
from qscape.types import Batch, Spec

ONE, KEY = Spec(S, 1), jax.random.key(0)
ITEMS = np.random.default_rng(0).uniform(-1, 1, (40, A)).astype(np.float32)


def hill(centre):
    """Q = −‖a − c‖², for one or for each state's c; the second critic has its peak at −c."""
    centre = jnp.asarray(centre, jnp.float32)

    def q(obs, action):
        return [-jnp.square(action - sign * centre).sum(-1) for sign in (1.0, -1.0)]

    return q


def refine(agent, q, action, key=KEY, state=None):
    action = jnp.asarray(action, jnp.float32)
    obs = jnp.zeros((*action.shape[:-1], S))
    context = functions(agent, q=q)
    part_state = state or PartState()
    return np.asarray(
        jax.jit(lambda action: agent.selector.refine(part_state, context, obs, action, key))(action)
    )


# --- eas: the swarm -------------------------------------------------------------------------------------


def test_a_move_of_the_swarm_by_hand(monkeypatch):
    """Two particles, Q = −(a − 0.5)², from a = 0; normal draws are 1, uniform ones 0.5 of their range.

    Particle 1 is a itself, particle 2 starts at clip(0 + 0.1) = 0.1 and is the swarm's best; speeds start at
    the middle of ±0.1, 0. First move: v_1 = 1.5 · 0.5 · (0 − 0) + 1.5 · 0.5 · (0.1 − 0) = 0.075, v_2 = 0.
    Second: v_1 = 1.2 · 0.075 + 0 + 0.75 · (0.1 − 0.075) = 0.10875, clipped to 0.1, x_1 = 0.175. Third: x_1 is
    best of all, v_1 = 1.2 · 0.1 → 0.1, x_1 = 0.275.
    """
    cases = [(rounds, None, best) for rounds, best in enumerate((0.1, 0.1, 0.175, 0.275))]
    cases.append((3, 0.15, 0.15))
    agents = [
        make("td3+eas", spec=ONE, particles=2, rounds=rounds, trust=trust) for rounds, trust, _ in cases
    ]
    context = functions(agents[0], q=hill(0.5))
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.ones(shape))
    middle = lambda key, shape, minval=0.0, maxval=1.0: jnp.full(shape, (minval + maxval) / 2)  # noqa: E731
    monkeypatch.setattr(jax.random, "uniform", middle)
    for agent, (*_, best) in zip(agents, cases, strict=True):
        winner = agent.selector.refine(PartState(), context, jnp.zeros((1, S)), jnp.zeros((1, 1)), KEY)
        np.testing.assert_allclose(winner, [[best]], atol=1e-6)


@pytest.mark.parametrize(("size", "share"), [(1, 0.994), slow(3, 0.992), (6, 0.937)])
def test_the_swarm_closes_the_published_share_of_the_gap(size, share):
    """Q = −‖a − c‖², a and c uniform in [−.5, .5]^A: shares of the gap closed, measured apart in numpy."""
    agent = make("td3+eas", spec=Spec(S, size))
    action, centre = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 1000, size))
    winner = refine(agent, hill(centre), action)
    before, after = (np.square(x - centre).sum(-1) for x in (action, winner))
    assert (after <= before + 1e-6).all()  # rounding: a is a particle
    assert abs((1 - after / before).mean() - share) < 0.02
    np.testing.assert_array_equal(winner, refine(agent, hill(centre), action))


def test_without_the_own_action_the_winner_can_be_worse():
    action, centre = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 500, 1))
    agent = make("td3+eas", spec=ONE, includes_own=False, rounds=0, particles=2)
    winner = refine(agent, hill(centre), action)
    assert (np.abs(winner - centre) > np.abs(action - centre)).any()


def test_the_fitness_may_be_the_minimum_of_the_critics():
    """min(−(a − .8)², −(a + .8)²) is greatest at 0, −(a − .8)² at .8."""
    for fitness, best in (("q1", 0.8), ("min", 0.0)):
        agent = make("td3+eas", spec=ONE, fitness=fitness, pulls_by="particle", rounds=20)
        winner = refine(agent, hill(0.8), np.full((50, 1), 0.3))
        assert np.abs(np.median(winner) - best) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["td3+eas", "td3+esa"])
def test_refined_actions_are_rows_of_the_table(recipe):
    agent = make(recipe, spec=Spec(S, A, ITEMS))
    state, obs = state_of(agent), jax.random.normal(KEY, (20, S))
    noise = agent.selector.init_noise(agent.task, 20, agent.base)
    action, *_ = agent.act(agent.acting(state), noise, obs, jnp.ones(20, bool), 30_000, KEY, "explore")
    assert (np.asarray(action)[:, None] == ITEMS).all(-1).any(-1).all()


def test_apply_at_says_which_actions_are_refined(monkeypatch):
    """Training's, evaluations' too, or also those that the target values."""
    obs, first = jax.random.normal(KEY, (7, S)), jnp.ones(7, bool)
    for where, expected in (("collect", (1, 0, 0)), ("act", (1, 1, 0)), ("all", (1, 1, 1))):
        agent = make("td3+eas", apply_at=where, base={"target_noise": 0.0, "exploration_noise": 0.0})
        state = state_of(agent)
        with monkeypatch.context() as patch:
            moved = lambda self, state, context, obs, action, key: action + 100.0  # noqa: E731
            patch.setattr(type(agent.selector), "refine", moved)
            context = functions(agent, state)
            found = [
                agent.act(agent.acting(state), None, obs, first, 0, KEY, mode)[0]
                for mode in ("explore", "evaluate")
            ]
            policy = agent.selector.target_policy(
                state.actor, state.actor_target, PartState(), context, obs, KEY
            )
            found.append(policy(obs).mode())
            count = agent.selector.proposals(state.actor, PartState(), context, obs).shape[-2]
        assert tuple(int(np.abs(x).max() > 50) for x in found) == expected
        assert count == (1 if where == "collect" else 2)
        assert agent.selector.has_single_policy == (where == "collect")


def test_the_target_of_a_stochastic_policy_is_not_refined():
    with pytest.raises(UsageError, match="write td3\\+eas"):
        recipes.build("sac+eas", {"eas": {"apply_at": "all"}})


# --- imitate --------------------------------------------------------------------------------------------


def archive(obs, action, filled=1.0):
    nothing, empty = jnp.zeros(len(obs)), jnp.zeros_like(action)
    columns = {"observation": obs, "action": action, "filled": jnp.full(len(obs), filled)}
    extra = {f"imitate.{name}": value for name, value in columns.items()}
    return Batch(jnp.zeros_like(obs), empty, nothing, nothing, obs, 0.99, extra)


def test_winners_are_imitated_and_losers_are_not():
    """Q = −‖a‖². Row 1: a_e is worse; row 2: better, distance (.5², .3², 0) / 3; row 3: equal."""
    agent = make("td3+imitate", weight=2.0)
    mine = jnp.array([[0.1, 0.1, 0.1], [0.5, 0.5, 0.0], [0.2, 0.2, 0.2]])
    winners = jnp.array([[0.9, 0.1, 0.1], [0.0, 0.2, 0.0], [0.2, 0.2, 0.2]])
    (part,) = agent.regularisers
    context = functions(agent, q=hill(0.0))

    def loss(action, filled=1.0):
        says = context._replace(policy=lambda obs: Point(obs, action))
        return part.actor(None, PartState(), says, archive(jnp.zeros((3, S)), winners, filled), KEY)

    value, metrics = loss(mine)
    np.testing.assert_allclose(value, 2.0 * (0.25 + 0.09) / 3 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["imitated"], 1 / 3, rtol=1e-6)
    slope = jax.grad(lambda action: loss(action)[0])(mine)
    by_hand = np.zeros((3, 3))
    by_hand[1] = 2.0 * 2.0 * np.array([0.5, 0.3, 0.0]) / 3 / 3
    np.testing.assert_allclose(slope, by_hand, atol=1e-7)
    assert loss(mine, filled=0.0)[0] == 0.0


@pytest.mark.parametrize("stores_next", [True, slow(False)])
def test_the_newest_rows_are_sampled(stores_next):
    """Two rings of ten rows, of which the second has been written 13 times."""
    layout = Layout(2, 1, (), stores_next, 2, 20)
    rows = jnp.ones((20, layout.width))
    index = ReplayState(jnp.array([4, 3], jnp.int32), jnp.array([4, 10], jnp.int32))
    for newest, expected in ((3, {1, 2, 3, 10, 11, 12}), (5, {0, 1, 2, 3, 10, 11, 12, 18, 19}), (0, {3, 12})):
        drawn = sample_uniformly(layout, rows, index, KEY, 500, jnp.int32(newest))
        assert set(np.asarray(drawn).tolist()) == expected
    one = Layout(2, 1, (), stores_next, 1, 10)
    index = ReplayState(jnp.array([2], jnp.int32), jnp.array([10], jnp.int32))
    drawn = sample_uniformly(one, rows[:10], index, KEY, 500, jnp.int32(4))
    assert set(np.asarray(drawn).tolist()) == {0, 1, 8, 9}


def test_an_update_imitates_once_the_archive_holds_a_batch():
    """After a random phase of 50 steps, with batches of 32, the archive is used from step 82 on."""
    agent = build("eas_td3", warmup=50, actor_hidden=(8,), critic_hidden=(8,))
    run, found = start(agent), {}
    update = jax.jit(
        lambda state: agent.update(agent.layout(1), state, run.storage, run.replay_state, run.key)
    )
    for steps in (60, 81, 82, 500):
        state = run.state._replace(env_steps=jnp.int32(steps), updates=jnp.int32(1))
        found[steps] = float(update(state)[2]["imitated"])
    assert found[60] == found[81] == 0.0
    assert 0.0 < found[82] < 1.0
    assert 0.0 < found[500] < 1.0


def test_eas_td3_has_the_settings_of_its_source():
    agent = recipes.build("eas_td3")
    assert (agent.base.actor_hidden, agent.base.critic_hidden) == ((400, 300), (400, 300))
    assert (agent.base.batch_size, agent.base.warmup, agent.base.exploration_noise) == (100, 25_000, 0.1)
    with pytest.raises(UsageError, match="no actor"):
        recipes.build("td3+cem+imitate")


# --- esa ------------------------------------------------------------------------------------------------

UNSCALED = {"scales_by_spread": False, "bound": 9.0}


def seek(q, action, size=1, **fields):
    return refine(make("td3+esa", spec=Spec(S, size), **(UNSCALED | fields)), q, action)


def test_the_loop_on_a_quadratic_by_hand():
    """Q = −(a − .3)² from a = 0: v after t = 1..5, and after 20, 100 and 400 steps; the same at −.4."""
    trace = [seek(hill(0.3), [[0.0]], steps=n)[0, 0] for n in range(1, 6)]
    np.testing.assert_allclose(trace, [0.0, -0.000450, 0.009520, 0.009185, 0.014875], atol=1e-6)
    for centre, after in ((0.3, (0.0626, 0.2081, 0.2969)), (-0.4, (-0.0812, -0.2769, -0.3972))):
        found = [seek(hill(centre), [[0.0]], steps=n)[0, 0] for n in (20, 100, 400)]
        np.testing.assert_allclose(found, after, atol=1e-4)


def test_the_loop_on_a_line_by_hand():
    """Q = a: v(20) at three gains of the filter; Q = 5 a moves five times as far, unless scaled."""
    line = lambda slope: lambda obs, action: [slope * action[..., 0]]  # noqa: E731
    found = [seek(line(1.0), [[0.0]], filter_gain=gain)[0, 0] for gain in (0.1, 0.5, 0.9)]
    np.testing.assert_allclose(found, [0.0193, 0.1134, 0.1858], atol=1e-4)
    agent = make("td3+esa", spec=ONE, bound=9.0)
    scaled = [
        refine(agent, line(slope), [[0.0]], state=PartState(extra=jnp.float32(slope)))
        for slope in (1.0, 50.0)
    ]
    np.testing.assert_allclose(scaled, [[[0.1134]]] * 2, atol=1e-4)


def seek_in_numpy(action, centre, ratio):
    """The loop with its default gains on Q = −‖a − c‖², row by row and entry by entry."""
    size = action.shape[-1]
    frequencies = [0.5 + (1.5 * (1 + ratio * i) - 0.5) % (np.pi - 1) for i in range(size)]
    refined = np.array(action)
    for a, c, out in zip(action, centre, refined, strict=True):
        v, x, y = np.zeros(size), 0.0, 0.0
        for t in range(1, 21):
            wave = np.array([np.sin(w * t) for w in frequencies])
            new = -((np.clip(a + v + 0.2 * wave, -1, 1) - c) ** 2).sum()
            y = 0.0 if t == 1 else 0.5 * (y + new - x)
            v, x = np.clip(v + 0.1 * wave * y, -0.3, 0.3), new
        out[:] = np.clip(a + v, -1, 1)
    return refined


def test_one_frequency_for_each_entry_climbs_in_more_draws():
    """−‖a − c‖² in six dimensions against the same loop in numpy. With six frequencies all draws climb."""
    action, centre = np.random.default_rng(2).uniform(-0.5, 0.5, (2, 300, 6))
    for ratio, share in ((0.0, 0.968), (0.37, 1.0)):
        refined = seek(hill(centre), action, size=6, frequency_ratio=ratio, bound=0.3)
        np.testing.assert_allclose(refined, seek_in_numpy(action, centre, ratio), atol=2e-5)
        gains = np.square(action - centre).sum(-1) - np.square(refined - centre).sum(-1)
        assert abs((gains > 0).mean() - share) < 0.03


def test_every_entry_moves_towards_the_peak():
    """−‖a − c‖² in eight dimensions: each entry closes 5% of its distance or more, in the mean."""
    action, centre = np.random.default_rng(3).uniform(-0.5, 0.5, (2, 500, 8))
    left = np.abs(seek(hill(centre), action, size=8, bound=0.3) - centre).mean(0)
    assert (left < 0.95 * np.abs(action - centre).mean(0)).all()


def test_what_does_not_move_stays():
    flat = lambda obs, action: [jnp.ones(action.shape[:-1])]  # noqa: E731
    action = np.float32([[0.4], [-0.9]])
    np.testing.assert_array_equal(seek(flat, action), action)
    np.testing.assert_array_equal(seek(hill(0.3), action, rate=0.0), action)
    together = seek(hill(0.3), action)
    apart = np.concatenate([seek(hill(0.3), row[None]) for row in action])
    np.testing.assert_allclose(together, apart, atol=1e-6)
    assert np.abs(seek(hill(9.0), np.zeros((1, 1)), bound=0.05)) <= 0.05 + 1e-7


def test_the_guard_keeps_better_actions():
    """At the peak itself every move is worse."""
    assert seek(hill(0.3), [[0.3]])[0, 0] != np.float32(0.3)
    assert seek(hill(0.3), [[0.3]], guard=True)[0, 0] == np.float32(0.3)


def test_the_spread_of_q_is_followed():
    values = jnp.array([1.0, 3.0])  # standard deviation 1
    np.testing.assert_allclose(update_spread(jnp.float32(0.0), values), 1.0)
    np.testing.assert_allclose(update_spread(jnp.float32(5.0), values), 0.99 * 5 + 0.01, rtol=1e-6)


# --- esa on-policy --------------------------------------------------------------------------------------


def on_policy(**fields):
    base = {"actor_hidden": (8,), "critic_hidden": (8,), "rollout": 32, "batch_size": 16, "passes": 2}
    agent = recipes.build("ppo+esa", {"base": base, "esa": UNSCALED | fields}).on(ONE)
    return agent, jax.jit(agent.init)(KEY)


def test_rollouts_are_refined_after_the_first_update(monkeypatch):
    """On a planted Q = −(a − .3)²: v(20) = .0626 from a = 0. Evaluations and samples are never refined."""
    agent, state = on_policy()
    monkeypatch.setattr(esa, "min_value", lambda critics, obs, a: -jnp.square(a - 0.3).sum(-1))
    own, obs, action = state.part_states["esa"], jnp.zeros((3, S)), jnp.zeros((3, 1))
    np.testing.assert_array_equal(agent.refiner.refine(own, obs, action), action)
    learned = own._replace(spread=jnp.float32(1.0))
    np.testing.assert_allclose(agent.refiner.refine(learned, obs, action), 0.0626, atol=1e-4)

    def act(own, mode):
        acting = agent.acting(state._replace(part_states=state.part_states | {"esa": own}))
        return np.asarray(agent.act(acting, None, obs, None, 0, KEY, mode)[0])

    drawn, executed = act(own, "explore"), act(learned, "explore")
    np.testing.assert_allclose(executed, agent.refiner.refine(learned, obs, drawn), atol=1e-6)
    inside = np.abs(drawn) < 0.8  # beyond the box every action is executed as its border
    assert inside.any()
    assert (np.abs(executed - drawn)[inside] > 1e-4).all()
    for mode in ("evaluate", "sample"):
        np.testing.assert_array_equal(act(own, mode), act(learned, mode))


@pytest.mark.slow
def test_the_rollouts_critics_learn_the_targets():
    """The targets are 2 a − 1, on 64 samples of which half do not count."""
    agent, state = on_policy()
    base = dataclasses.replace(agent.base, rollout=64, passes=60)
    k_obs, k_action = jax.random.split(KEY)
    action = jax.random.uniform(k_action, (64, 1), minval=-1.0, maxval=1.0)
    weight = (jnp.arange(64) % 2).astype(jnp.float32)
    target = jnp.where(weight > 0, 2 * action[:, 0] - 1, 100.0)
    nothing = jnp.zeros(64)
    obs = jax.random.normal(k_obs, (64, S))
    samples = RolloutSamples(obs, action, nothing, nothing, target, nothing, weight)
    learn = jax.jit(lambda own: agent.refiner.learn(own, base, jnp.float32(0.01), samples, KEY))
    own = state.part_states["esa"]
    for _ in range(3):
        own, metrics = learn(own)
    values = np.asarray(esa.min_value(own.critics, obs, action))
    assert np.abs(values - target)[1::2].mean() < 0.15
    assert own.spread == metrics["q_spread"] > 0


def test_esa_on_policy_needs_continuous_actions():
    with pytest.raises(UsageError, match="esa probes continuous actions"):
        recipes.build("ppo+esa").on(Spec(S, 1, choices=3))
    with pytest.raises(UsageError, match="esa probes continuous actions"):
        recipes.build("ppo+esa").on(Spec(S, 2, factors=(3, 2)))
