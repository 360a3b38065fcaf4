"""The maximisers and improvements that SAVO is compared with, and agents on action tables."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow
from small import Says
from test_savo import A, S, flat_batch, functions, grown, make, state_of, two_peaks

from qscape import agents
from qscape.envs import make as make_adapter
from qscape.errors import UsageError
from qscape.nets import heads
from qscape.offpolicy import update
from qscape.offpolicy.sockets import PartState
from qscape.run.plan import Plan, prepare
from qscape.run.programs import evaluation_key
from qscape.types import Batch, Event, Spec

ITEMS = np.random.default_rng(0).uniform(-1, 1, (40, A)).astype(np.float32)
TABLE = Spec(S, A, ITEMS)
ONE = Spec(S, 1)


def rows_of(actions) -> np.ndarray:
    """Which rows of the table these are [...]; all of them have to be, to the bit."""
    equal = (np.asarray(actions)[..., None, :] == ITEMS).all(-1)
    assert equal.any(-1).all()
    return equal.argmax(-1)


# --- wolpertinger ---------------------------------------------------------------------------------------


def test_wolpertinger_draws_around_its_actor():
    agent = make("td3+wolpertinger", spec=Spec(S, 2), candidates=4)
    state, obs = state_of(agent), jnp.zeros((5000, S))
    context = functions(agent, state)
    options = agent.selector.propose(state.actor, context, obs, jax.random.key(0))
    own = context.bind(state.actor)(obs).mode()
    np.testing.assert_array_equal(options[0].mode(), own)
    for drawn in options[1:]:
        off = np.asarray(drawn.mode() - own)
        assert abs(off.std() - 0.1) < 0.005
        assert abs(off.mean()) < 0.01


def test_wolpertinger_takes_the_nearest_items_and_evaluates_without_chance():
    agent = make("td3+wolpertinger", spec=TABLE)
    state, obs = state_of(agent), jax.random.normal(jax.random.key(1), (50, S))
    context = functions(agent, state)
    raw = context.bind(state.actor)(obs).raw.mode()
    options = agent.selector.propose(state.actor, context, obs, jax.random.key(0))
    found = np.stack([rows_of(option.mode()) for option in options], 1)
    distances = np.linalg.norm(ITEMS[None] - np.asarray(raw)[:, None], axis=-1)
    np.testing.assert_array_equal(found, np.argsort(distances, 1, kind="stable")[:, :3])
    acting, first = agent.acting(state), jnp.ones(50, bool)
    action, *_ = agent.act(acting, None, obs, first, 0, jax.random.key(5))
    again, *_ = agent.act(acting, None, obs, first, 0, jax.random.key(6))
    np.testing.assert_array_equal(action, again)


def test_the_noise_falls_over_a_share_of_the_run_that_begins_with_a_policy_too():
    _, agent, notes = prepare(Plan("td3+ou", "Pendulum-v1", 60_000, start="runs/a"))
    assert (agent.base.epsilon_decay, agent.base.warmup) == (10_000, 0)
    assert notes[-2:] == [
        "a policy is there already: base.warmup = 0",
        "base.epsilon_decay = 10000 steps, of a run of 60000",
    ]


def test_wolpertinger_needs_as_many_items_as_candidates():
    with pytest.raises(UsageError, match=r"wolpertinger.candidates is 50; .* only 40 actions"):
        make("td3+wolpertinger", spec=TABLE, candidates=50)


def test_only_the_chosen_action_is_disturbed():
    """One process of noise, not one for each candidate."""
    for recipe, processes in (("td3+wolpertinger", 1), ("td3+cem", 1), ("td3+ensemble", 4), ("td3+joint", 4)):
        agent = make(recipe)
        assert agent.selector.init_noise(agent.task, 2, agent.base).shape == (2, processes, A)
        assert agent.selector.columns(agent.task) == {}


# --- ensemble and joint ---------------------------------------------------------------------------------


def loss_of_climb(agent, state, batch, q=None):
    def loss(actor, i):
        context = functions(agent, state._replace(actor=actor), q)
        policy, hill = agent.selector.actor_objectives(actor, PartState(), context, batch)[i]
        return agent.policy_loss.loss(policy, hill, None, PartState(), context, batch, jax.random.key(0))[0]

    return loss


@pytest.mark.slow
def test_members_climb_alone_and_target_members_are_smoothed_and_judged_by_the_online_critic():
    agent = make("td3+ensemble")
    state, batch = state_of(agent), flat_batch(0)
    loss = loss_of_climb(agent, state, batch)
    for i in range(3):
        assert [grown(member) for member in jax.grad(loss)(state.actor, i)] == [j == i for j in range(3)]
    state, obs, key = (
        state._replace(actor_target=state_of(agent, 1).actor),
        jnp.zeros((300, S)),
        jax.random.key(0),
    )
    context = functions(agent, state)
    policy = agent.selector.target_policy(state.actor, state.actor_target, PartState(), context, obs, key)(
        obs
    )
    members = np.stack([context.bind(member)(obs).mode() for member in state.actor_target])
    off = np.asarray(policy.proposals) - members
    assert np.abs(off).max() <= 0.5 + 1e-6
    assert min(off.reshape(3, -1).std(1)) > 0.1
    assert np.abs(off[0] - off[1]).max() > 0.1, "each has noise of its own"
    each = np.stack([context.q(obs, a)[0] for a in policy.proposals])
    np.testing.assert_array_equal(context.q(obs, policy.mode())[0], each.max(0))


def test_without_target_actors_the_online_members_are_smoothed():
    agent = make("td3+ensemble", base={"target_actor": False})
    state, obs, key = state_of(agent), jnp.zeros((300, S)), jax.random.key(0)
    context = functions(agent, state)
    policy = agent.selector.target_policy(state.actor, None, PartState(), context, obs, key)(obs)
    off = np.asarray(policy.proposals) - np.stack(
        [context.bind(member)(obs).mode() for member in state.actor]
    )
    assert 0.1 < off.std() < 0.25


@pytest.mark.parametrize(("climbs_by", "moved"), [("max", 1), ("mean", 3)])
def test_joint_moves_the_winning_part_of_its_output(climbs_by, moved):
    agent = make("td3+joint", spec=ONE, climbs_by=climbs_by)
    state, batch = state_of(agent), flat_batch(0, size=1, width=1)
    q = lambda obs, action: [-((action[..., 0] - 0.7) ** 2)]  # noqa: E731
    loss = loss_of_climb(agent, state, batch, q)
    count = len(agent.selector.actor_objectives(state.actor, PartState(), functions(agent, state, q), batch))
    total = lambda actor: sum(loss(actor, i) for i in range(count))  # noqa: E731
    slope = np.abs(jax.grad(total)(state.actor).head.out.bias)
    assert (slope > 0).sum() == moved
    proposals = agent.selector.proposals(
        state.actor, PartState(), functions(agent, state, q), batch.observation
    )
    gaps = (np.asarray(proposals).ravel() - 0.7) ** 2
    expected = gaps.min() if climbs_by == "max" else gaps.mean()
    np.testing.assert_allclose(total(state.actor), expected, rtol=1e-5)
    if climbs_by == "max":
        assert slope.argmax() == gaps.argmin()


# --- cem ------------------------------------------------------------------------------------------------


def test_cem_finds_the_higher_peak():
    """On the two peaks, started at N(0, 0.5²), without a floor of the spread: 97.1% of 1000 draws."""
    agent = make("td3+cem", spec=ONE, least_spread=0.0)
    context, obs = functions(agent, q=two_peaks), jnp.zeros((1, S))
    search = jax.jit(jax.vmap(lambda key: two_peaks(obs, agent.selector.search(context, obs, key))[0]))
    found = search(jax.random.split(jax.random.key(0), 1000))
    assert abs((np.asarray(found) >= 1.99).mean() - 0.971) < 0.015
    assert np.asarray(found).max() <= 2.0 + 1e-6


def test_cem_narrows_down_to_the_higher_peak(monkeypatch):
    """The mean that two rounds leave is worth 1.9 or more in 99.0% of 1000 draws. A third round tells it:
    it draws nothing but the mean, and is liked best."""
    agent, rounds = make("td3+cem", spec=ONE, least_spread=0.0, rounds=3), []
    draw = jax.random.normal

    def drawn(key, shape):
        rounds.append(shape)
        return draw(key, shape) if len(rounds) < 3 else jnp.zeros(shape)

    def q(obs, action):
        return [two_peaks(obs, action)[0] + 9.0 * (len(rounds) == 3)]

    monkeypatch.setattr(jax.random, "normal", drawn)
    context, obs = functions(agent, q=q), jnp.zeros((1, S))
    search = jax.jit(jax.vmap(lambda key: two_peaks(obs, agent.selector.search(context, obs, key))[0]))
    left = search(jax.random.split(jax.random.key(0), 1000))
    assert len(rounds) == 3
    assert abs((np.asarray(left) >= 1.9).mean() - 0.99) < 0.015


def test_cem_has_no_actor_and_evaluates_with_a_fixed_key():
    agent = make("td3+cem")
    state, obs = state_of(agent), jax.random.normal(jax.random.key(1), (4, S))
    assert state.actor is None
    act = partial(agent.act, agent.acting(state), None, obs, jnp.ones(4, bool))
    first, second = (act(3, evaluation_key())[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


# --- greedy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["td3+greedy_ac", "td3+greedy_td3"])
def test_the_best_draws_are_followed(recipe):
    agent = make(recipe, spec=ONE)
    state, batch = state_of(agent), flat_batch(0, width=1)
    context, part, obs = functions(agent, state, two_peaks), agent.policy_loss, batch.observation
    proposer = context.bind(state.part_states[part.name].actor_params)(obs)
    best = part.best_draws(proposer, context.q, context, obs, jax.random.key(0))
    drawn = jax.vmap(lambda k: proposer.sample(k)[0])(jax.random.split(jax.random.key(0), 30))
    order = np.argsort(-np.asarray(two_peaks(obs, drawn)[0]), axis=0)[:3]
    np.testing.assert_allclose(best, np.take_along_axis(np.asarray(drawn), order[..., None], 0), rtol=1e-6)

    def loss(actor, tuned):
        now = functions(agent, state._replace(actor=actor), two_peaks)
        return part.loss(now.bind(actor), now.q, tuned, PartState(), now, batch, jax.random.key(0))[0]

    def step(_, actor):
        gradient = jax.grad(loss)(actor, state.part_states[part.name].actor_params)
        return jax.tree.map(lambda x, g: x - 0.02 * g, actor, gradient)

    after = jax.jit(lambda actor: jax.lax.fori_loop(0, 60, step, actor))(state.actor)
    gaps = [np.abs(context.bind(actor)(obs).mode() - best.mean(0)).mean() for actor in (state.actor, after)]
    assert gaps[1] < 0.5 * gaps[0]


def test_greedy_ac_starts_with_a_copy_and_greedy_td3_with_a_policy_of_its_own():
    ac, td3 = make("td3+greedy_ac"), make("td3+greedy_td3")
    state = ac.init(jax.random.key(0))
    for x, y in zip(
        jax.tree.leaves(state.actor),
        jax.tree.leaves(state.part_states["greedy_ac"].actor_params),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
    assert (ac.base.critics, ac.base.policy_delay, ac.base.target_actor) == (1, 1, False)
    shapes = jax.eval_shape(td3.init, jax.random.key(0))
    assert hasattr(shapes.part_states["greedy_td3"].actor_params.head, "log_std")
    assert (td3.base.critics, td3.base.policy_delay, td3.base.target_actor) == (2, 2, True)


def test_the_entropy_of_the_proposal_policy_is_kept():
    """The score function's mean over many draws is the gradient of −H, computed on a grid."""
    agent = make("td3+greedy_ac", spec=ONE, entropy=1.0)
    part = agent.policy_loss
    dist = functions(agent).bind(state_of(agent).actor)(jnp.zeros((1, S)))

    def of(log_std):
        return eqx.tree_at(lambda d: d.log_std, dist, log_std)

    def estimate(key):
        empty = jnp.zeros((1, 1, 1))
        following = lambda x: part.proposal_loss(of(x), empty, key) + of(x).log_prob(empty).mean()  # noqa: E731
        return jax.grad(following)(dist.log_std)

    grid = jnp.linspace(-0.9999, 0.9999, 20_001)[:, None, None]

    def minus_entropy(log_std):
        log_prob = of(log_std).log_prob(grid)
        return (jnp.exp(log_prob) * log_prob).sum() * (grid[1, 0, 0] - grid[0, 0, 0])

    mean = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 20_000)).mean(0)
    np.testing.assert_allclose(mean, jax.grad(minus_entropy)(dist.log_std), atol=0.05)


def test_greedy_ac_explores_by_a_draw_from_its_policy(monkeypatch):
    agent = make("td3+greedy_ac")
    state, obs, first = state_of(agent), jax.random.normal(jax.random.key(1), (9, S)), jnp.ones(9, bool)
    noise_state = agent.selector.init_noise(agent.task, 9, agent.base)
    said = functions(agent, state).bind(state.actor)(obs)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype=float: jnp.full(shape, 1.5))
    for mode, draw in (("explore", 1.5), ("evaluate", 0.0)):
        action, *_ = agent.act(agent.acting(state), noise_state, obs, first, 0, jax.random.key(2), mode)
        np.testing.assert_allclose(action, np.tanh(said.mean + draw * np.exp(said.log_std)), atol=1e-6)


@pytest.mark.parametrize("spec", [Spec(S, A), slow(TABLE)])
def test_greedy_td3_climbs_q_as_well_where_it_is_asked_to(spec):
    """−mean Q_1(s, μ(s)) / sg(mean |Q_1|) is added; Q_1 is below 0 at some states and above at others."""
    plain, climbing = (make("td3+greedy_td3", spec=spec, draws=10, add_dpg=add) for add in (False, True))
    state, batch = state_of(plain), flat_batch(0)
    q = lambda obs, action: [jnp.sin(action.sum(-1) + obs.sum(-1)), 5.0 * action.sum(-1)]  # noqa: E731

    def loss(agent, actor):
        context, tuned = (
            functions(agent, state._replace(actor=actor), q),
            state.part_states["greedy_td3"].actor_params,
        )
        return agent.policy_loss.loss(
            context.policy, q, tuned, PartState(), context, batch, jax.random.key(0)
        )[0]

    def value(actor):
        policy = functions(plain, state._replace(actor=actor), q).policy
        return q(batch.observation, policy(batch.observation).mode())[0]

    values = value(state.actor)
    size = np.abs(values).mean()
    assert size > 1.1 * abs(values.mean())
    added = lambda actor: loss(climbing, actor) - loss(plain, actor)  # noqa: E731
    expected = lambda actor: -value(actor).mean() / size  # noqa: E731
    both = jax.jit(lambda actor: [jax.value_and_grad(f)(actor) for f in (added, expected)])(state.actor)
    for x, y in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


# --- the action at s' -----------------------------------------------------------------------------------


def targets(agent, state, next_obs):
    """The critics' targets y [B] of transitions to these observations, which no reward is paid for."""
    still, nothing = jnp.zeros_like(next_obs), jnp.zeros(len(next_obs))
    batch = Batch(still, jnp.zeros((len(still), agent.task.action_size)), nothing, nothing, next_obs, 1.0)
    event = Event(jnp.asarray(1), jnp.asarray(0), jnp.array(False), jnp.array(False))
    now = update.Stage(agent, batch, event, jax.random.key(0))
    return np.asarray(update._fixed_targets(now, state, update._look_ahead(now, state)))[:, 0]


def nearest(action, count=1):
    gaps = np.linalg.norm(ITEMS - np.asarray(action)[:, None], axis=-1)
    return [ITEMS[row] for row in np.argsort(gaps, 1)[:, :count].T]


def smoothed(said, normal):
    return np.clip(heads.unsnap(said).mode() + np.clip(0.2 * normal, -0.5, 0.5), -1, 1)


def ensemble(context, state, obs, normal):
    return [smoothed(context.bind(member)(obs), normal) for member in state.actor_target]


def wolpertinger(context, state, obs, normal):
    own = smoothed(context.bind(state.actor_target)(obs), normal)
    return [own, np.clip(own + 0.1 * normal, -1, 1)] if context.table is None else nearest(own, 3)


def greedy_td3(context, state, obs, normal):
    return [smoothed(context.bind(state.actor_target)(obs), normal)]


def greedy_ac(context, state, obs, normal):
    said = heads.unsnap(context.bind(state.actor)(obs))
    return [np.tanh(said.mean + normal * np.exp(said.log_std))]


def joint(context, state, obs, normal):
    return np.split(heads.unsnap(context.bind(state.actor)(obs)).mode(), 3, -1)


@pytest.mark.parametrize("normal", [1.0, -4.0])
@pytest.mark.parametrize("spec", [Spec(S, A), TABLE], ids=["box", "table"])
@pytest.mark.parametrize("candidates", [ensemble, wolpertinger, greedy_td3, greedy_ac, joint])
def test_which_action_is_valued_at_the_next_state(monkeypatch, candidates, spec, normal):
    """Of the target actors, where there are any, and smoothed, where the method smooths; the online Q_1
    chooses. Every draw from N(0, 1) is one number here, and target critics say the action's first entry."""
    agent = make(f"td3+{candidates.__name__}", spec=spec)
    place = jnp.linspace(-1, 1, 64)
    liked = lambda obs, a: -((a[..., 0] - obs[..., 0]) ** 2)  # noqa: E731
    critics = [Says(liked), Says(lambda *args: -40.0 - 9.0 * liked(*args))][: agent.base.critics]
    others = [Says(lambda obs, a: a[..., 0]) for _ in critics]
    state = state_of(agent)._replace(critics=critics, critics_target=others)
    obs = jnp.stack([place] + [0.0 * place] * (S - 1), 1)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype=float: jnp.full(shape, normal))
    options = candidates(functions(agent, state), state, obs, normal)
    options = np.stack(options if spec.table is None else [nearest(x)[0] for x in options])[..., 0]
    best = np.square(options - place).argmin(0)
    assert len(options) == 1 or len(np.unique(best)) > 1, "the choice is none if one of them always wins"
    np.testing.assert_allclose(targets(agent, state, obs), options[best, np.arange(64)], atol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "settings"), [("td3+wolpertinger", {"spread": 0.0}), ("td3+greedy_td3", {})]
)
def test_smoothing_is_drawn_anew_for_every_row(recipe, settings):
    agent = make(recipe, spec=ONE, **settings)
    state, obs = state_of(agent), jnp.zeros((2000, S))
    state = state._replace(critics_target=[Says(lambda obs, a: a[..., 0])] * 2)
    off = targets(agent, state, obs) - functions(agent, state).bind(state.actor_target)(obs).mode()[0]
    assert 0.18 < off.std() < 0.21
    assert 0.49 < np.abs(off).max() <= 0.5 + 1e-6


@pytest.mark.slow
def test_cem_searches_the_online_first_critic_at_the_next_state():
    """And the lesser target critic says what that is worth."""
    agent = make("td3+cem", spec=ONE)
    critics = [
        Says(lambda obs, a: -((a - obs)[..., 0] ** 2)),
        Says(lambda obs, a: -9.0 * ((a + obs)[..., 0] ** 2)),
    ]
    others = [Says(lambda obs, a: 3.0 + a[..., 0]), Says(lambda obs, a: 3.0 - 2.0 * a[..., 0])]
    state = state_of(agent)._replace(critics=critics, critics_target=others)
    places = jnp.linspace(-0.8, 0.8, 9)
    found = targets(agent, state, jnp.tile(places[:, None], (1, S)))
    np.testing.assert_allclose(found, 3.0 + np.minimum(places, -2.0 * places), atol=0.05)


# --- action tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["td3", slow("td3+savo"), "sac+savo", slow("td3+cem"), "td3+greedy_ac"])
def test_actions_are_rows_of_the_table(recipe):
    agent = make(recipe, spec=TABLE) if "+" in recipe else make("td3+ou", spec=TABLE)
    state, obs = state_of(agent), jax.random.normal(jax.random.key(1), (30, S))
    noise_state, first = agent.selector.init_noise(TABLE, 30, agent.base), jnp.zeros(30, bool)
    for mode in ("evaluate", "explore", "warm_up"):
        action, columns, _ = agent.act(
            agent.acting(state), noise_state, obs, first, 0, jax.random.key(2), mode
        )
        rows_of(action)
        if columns:
            rows_of(columns["proposals"])


def test_warm_up_draws_every_item_as_often():
    agent = make(spec=TABLE)
    obs, state = jnp.zeros((8000, S)), state_of(agent)
    action, columns, _ = agent.act(
        agent.acting(state), None, obs, jnp.zeros(8000, bool), 0, jax.random.key(2), "warm_up"
    )
    for drawn in (action, columns["proposals"][:, 2]):
        counts = np.bincount(rows_of(drawn), minlength=40)
        assert counts.min() > 140
        assert counts.max() < 260  # 200 ± 4.3 deviations


@pytest.mark.parametrize(("straight_through", "place"), [(True, "item"), (False, "proposal")])
@pytest.mark.parametrize("recipe", ["td3+savo", "td3+wolpertinger"])
def test_actors_climb_q_at_the_item_or_at_their_proposal(recipe, straight_through, place):
    agent = make(recipe, spec=TABLE, straight_through=straight_through)
    state, batch = state_of(agent), flat_batch(0)
    seen = {}

    def q(obs, action):
        seen["at"] = action
        return [action.sum(-1)]

    policy, hill = agent.selector.actor_objectives(
        state.actor, PartState(), functions(agent, state, q), batch
    )[0]
    hill(batch.observation, policy(batch.observation).mode())
    if place == "item":
        rows_of(seen["at"])
    else:
        with pytest.raises(AssertionError):
            rows_of(seen["at"])


def test_successors_see_items():
    agent = make(spec=TABLE)
    state, obs = state_of(agent), jax.random.normal(jax.random.key(1), (6, S))
    context = functions(agent, state)
    first, second, _ = agent.selector.propose(state.actor, context, obs)
    told = state.actor[1].conditioning(obs, jnp.asarray(ITEMS[rows_of(first.mode())])[None])
    np.testing.assert_array_equal(second.raw.mode(), context.bind(state.actor[1].net)(obs, told).raw.mode())


def test_smoothing_ends_at_an_item():
    agent = make("td3+ou", spec=TABLE)
    state, obs = state_of(agent), jax.random.normal(jax.random.key(1), (40, S))
    context = functions(agent, state)
    policy = agent.selector.target_policy(
        state.actor, state.actor_target, PartState(), context, obs, jax.random.key(0)
    )
    raw = context.policy_target(obs).raw.mode()
    nearest = np.linalg.norm(ITEMS[None] - np.asarray(raw)[:, None], axis=-1).argmin(1)
    assert (rows_of(policy(obs).mode()) != nearest).any()


def test_the_edge_knows_every_row_again():
    """Also rows that no fingerprint knows: those next to a row."""
    import gymnasium as gym

    class Shop(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (2,))
        action_space = gym.spaces.Discrete(300, start=7)
        action_table = np.random.default_rng(0).normal(size=(300, 3))

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            return np.zeros(2, np.float32), float(action), False, False, {}

    adapter = make_adapter(Shop())
    np.testing.assert_array_equal(adapter.actions(adapter.spec.table), 7 + np.arange(300))
    off = np.nextafter(adapter.spec.table, np.float32(0.0))
    np.testing.assert_array_equal(adapter.actions(off), 7 + np.arange(300))


def test_the_chosen_item_carries_the_gradient_of_its_proposal():
    """What regularises the policy would otherwise do nothing where actions are a table."""
    agent = make("td3+wolpertinger", spec=TABLE)
    state, obs = state_of(agent), jax.random.normal(jax.random.key(1), (20, S))

    def total(actor):
        context = functions(agent, state)
        return agent.selector.policy(actor, PartState(), context)(obs).mode().sum()

    assert grown(jax.grad(total)(state.actor))
    rows_of(functions(agent, state).policy(obs).mode())


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "base", "sentence"),
    [
        ("td3+cem+clone", {}, "cem has no actor that clone could act on"),
        ("td3+cem+lipsnet", {}, "cem has no actor that lipsnet could act on"),
        ("bc+cem", {}, "cem has no actor that bc could act on"),
        ("td3+cem", {"target_noise": 0.2}, "cem does not smooth its target"),
        ("td3+joint", {"target_noise": 0.2}, "joint does not smooth its target"),
        ("td3", {"head": "gaussian"}, "nothing would train the spread of base.head = gaussian"),
        ("sac+bc", {}, "write td3\\+bc with base.head = deterministic, or sac"),
    ],
)
def test_what_would_silently_do_nothing_is_refused(recipe, base, sentence):
    with pytest.raises(UsageError, match=sentence):
        agents.build(recipe, {"base": base})
