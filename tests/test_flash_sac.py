"""FlashSAC against numbers computed apart from the code: networks, noise, temperature, targets, updates."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refused import refused
from rows import slow
from small import A, S, build, same, start
from tiny import assert_same_run, settings, stop_at

import reference.flash_sac as straight
from qscape import agents
from qscape.contrib.c51 import C51, AtomTarget
from qscape.contrib.flashsac import FlashNorm, PostNorm
from qscape.contrib.reward_scale import RewardScale
from qscape.errors import UsageError
from qscape.nets.batch_norm import split_statistics
from qscape.nets.heads import SquashedNormal
from qscape.nets.layers import OfGivenLength, UnitLinear, project
from qscape.offpolicy import update
from qscape.offpolicy.base import Base
from qscape.offpolicy.exploration import draw_repeats, hold_noise, init_held_noise
from qscape.offpolicy.plain import MinTarget, Polyak, Soft
from qscape.offpolicy.sockets import BootstrapRule, PartState
from qscape.ops.adam import make_adam
from qscape.ops.gaussian import LOG_STD_BOUNDS
from qscape.replay import rows_at
from qscape.run import Plan, resume, saves, train
from qscape.types import Batch, Event, Spec, Transition, stream

KEY = jax.random.key(0)
COLUMN = jnp.array([[1.0], [2.0], [3.0], [4.0]])
FULL = {"base": {"schedule_updates": 1_000}}


def close(found, expected, atol=2e-6, rtol=2e-6):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=rtol, atol=atol)


def of_given_length(tree):
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, OfGivenLength))
    return [x for x in found if isinstance(x, OfGivenLength)]


def lengths(tree):
    """The lengths of all rows of weights, and those of norms over √n."""
    rows, norms = [], []
    for part in of_given_length(tree):
        if isinstance(part, UnitLinear):
            rows.append(np.linalg.norm(part.weight, axis=-1))
        else:
            vectors = jax.tree.leaves(split_statistics(part)[0])
            norms.append(np.linalg.norm(np.concatenate(vectors)) / len(vectors[0]) ** 0.5)
    return np.concatenate(rows), np.array(norms)


# --- networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "actor", "critic", "total"),
    [(Spec(17, 6), 268_590, 1_085_843, 2_440_276), (Spec(376, 17), 318_098, 1_181_303, 2_680_704)],
)
def test_parameters_are_as_many_as_in_the_release(spec, actor, critic, total):
    """Check 1."""
    nets = agents.build("flash_sac", FULL).on(spec).nets

    def count(make):
        trained = split_statistics(jax.eval_shape(make, KEY))[0]
        return sum(x.size for x in jax.tree.leaves(trained))

    assert (count(nets.actor), count(nets.critic)) == (actor, critic)
    assert actor + 2 * critic == total


def test_the_running_variance_is_that_of_a_sample():
    """Check 2: 1.0025 would lack the factor 4/3."""
    y, norm = FlashNorm(1).train(COLUMN)
    close(y[:, 0], [-1.341635, -0.447212, 0.447212, 1.341635])
    close([*norm.statistics.mean, *norm.statistics.variance], [0.025, 1.006667])
    close(norm(COLUMN)[:, 0], [0.971761, 1.968440, 2.965118, 3.961796])


def random_batch(rows=8):
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(rows, S)), rng.uniform(-1, 1, (rows, A)), np.zeros(rows), np.zeros(rows)
    return Batch(*map(jnp.float32, columns), jnp.float32(rng.normal(3.0, 1.0, (rows, S))), discount=0.9)


def test_the_actor_s_loss_normalises_it_by_both_states():
    """Check 3."""
    close(FlashNorm(1).train(COLUMN)[0][:2, 0], [-1.341635, -0.447212])
    close(FlashNorm(1).train(COLUMN[:2])[0][:, 0], [-0.999980, 0.999980])
    agent, batch = build("td3+flashsac", 8), random_batch()
    state = agent.init(KEY)
    event = Event(jnp.asarray(1), jnp.asarray(0), jnp.array(True), jnp.array(False))
    stage, obs = update.Stage(agent, batch, event, KEY), batch.observation
    seen = stage.context(state, trains_actors=True).policy(obs).mode()
    together = state.actor.train(jnp.concatenate([obs, batch.next_observation]), [])
    close(seen, together[0].mode()[:8])
    assert np.abs(seen - state.actor.train(obs, [])[0].mode()).max() > 0.01
    refreshed = update._refresh_actors(stage, state)
    assert same(split_statistics(refreshed)[1], split_statistics(together[1])[1])
    assert same(stage.context(state).policy(obs).mode(), state.actor(obs, []).mode())


def test_scale_and_shift_of_a_norm_are_projected_together():
    """Check 4."""
    large = jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0])
    found = project([eqx.tree_at(lambda m: (m.scale, m.shift), FlashNorm(2), large)])[0]
    close(found.scale, [0.848528, 0.0])
    close(found.shift, [0.0, 1.131371])


def test_the_norm_behind_the_blocks():
    """Check 5: ε is inside the root."""
    close(PostNorm(2)(jnp.array([3.0, 4.0])), [0.848528, 1.131371])
    close(PostNorm(4)(jnp.array([0.0, 0.0, 0.0, 0.004]))[-1], 1.788854)
    large = eqx.tree_at(lambda m: m.weight, PostNorm(2), jnp.array([3.0, 4.0]))
    close(project(large).weight, [0.848528, 1.131371])


def test_a_fresh_network():
    """Check 6: it is projected, no block lowers an entry, and logits are bounded by √D."""
    nets = agents.build("flash_sac", FULL).on(Spec(17, 6)).nets
    actor, critic = jax.jit(nets.actor)(KEY), jax.jit(nets.critic)(KEY)
    for net in (actor, critic):
        for now, then in zip(jax.tree.leaves(net), jax.tree.leaves(jax.jit(project)(net)), strict=True):
            close(now, then, atol=1e-6)
    obs, action = 10 * jax.random.normal(KEY, (64, 17)), jax.random.uniform(KEY, (64, 6), minval=-1.0)
    pair, torso = jnp.concatenate([obs, action], -1), critic.body.torso
    h = pair @ torso.embed.weight.T
    after = torso.blocks[0].follow(h, lambda norm, x: norm(x))
    assert (after >= h).all()
    assert (after > h).any()
    for features in (torso(pair), torso.train(pair)[0]):
        close(jnp.square(features).mean(-1), 1.0, atol=1e-4)
    assert np.abs(critic.outputs(obs, action, [])).max() <= 16.0
    raw = actor.torso(obs) @ actor.head.log_std.weight.T
    assert np.abs(raw).max() <= 11.313709


# --- acting and the temperature ---------------------------------------------------------------------------


def test_the_bounds_of_sigma():
    """Check 7."""
    bound = partial(LOG_STD_BOUNDS["tanh"], low=-10.0, high=2.0)
    close(bound(jnp.array([-1.0, 0.0, 1.0])), [-8.569565, -4.0, 0.569565])
    close(bound(jnp.array([0.365991])), [math.log(0.15)], atol=2e-5)
    policy = SquashedNormal(jnp.zeros(1), jnp.array([0.2]), jnp.array([math.log(0.15)]))
    action = policy.at(jnp.ones(1))
    close(action, [0.336376])
    close(policy.log_prob(action), 0.598259, atol=1e-5)
    base = agents.build("flash_sac").base
    assert (base.log_std_bound, base.log_std_min, base.log_std_max) == ("tanh", -10.0, 2.0)


def test_the_target_entropy_is_that_of_a_deviation():
    """Check 8."""
    soft = agents.build("flash_sac").policy_loss
    found = [soft.aim(Spec(5, size)) for size in (3, 6, 17)]
    close(found, [-1.434544, -2.869089, -8.129085])
    task, start_at = Spec(5, 6), jnp.log(0.01)
    slope = jax.grad(lambda x: soft.tuning(x, jnp.ones(4), task)[0])(start_at)
    close(slope, 0.0186909)
    adam = make_adam(soft.learning_rate)
    step, _ = adam.update(slope, adam.init(start_at))
    close([start_at, start_at + step], [-4.605170, -4.605470])


def test_of_two_wishes_for_the_entropy_one_is_refused():
    assert Soft(target_std=0.15, target_entropy=-1.0).aim(Spec(5, 6)) == -1.0
    moot = agents.build("flash_sac").moot_fields()
    assert moot["soft.entropy_per_action"] == "beside soft.target_std"
    fixed = agents.build("flash_sac", {"soft": {"target_entropy": -1.0}}).moot_fields()
    assert fixed["soft.target_std"] == "beside soft.target_entropy"
    with refused("out-of-range", "target_std", part="soft", field="target_std"):
        agents.build("sac", {"soft": {"target_std": 0.0}})


def test_how_long_noise_is_kept():
    """Check 9."""
    edges = jnp.array([0.63, 0.64, 0.8, 0.9, 0.99, 0.0, 1.0 - 1e-7])
    np.testing.assert_array_equal(draw_repeats(edges, 16, 2.0), [1, 2, 3, 5, 13, 1, 16])
    u = (jnp.arange(200_000) + 0.5) / 200_000
    shares = np.bincount(draw_repeats(u, 16, 2.0), minlength=17)[1:] / 200_000
    close(shares[[0, 1, 2, 3, 15]], [0.631175, 0.157794, 0.070131, 0.039448, 0.002466], atol=1e-5)
    close(np.cumsum(shares)[:4], [0.631175, 0.788969, 0.859099, 0.898548], atol=2e-5)

    base = Base(head="gaussian", noise_repeat=16)

    def step(held, number):
        held = hold_noise(base, held, jax.random.fold_in(KEY, number))
        return held, held.noise[:, 0]

    _, drawn = jax.lax.scan(step, init_held_noise(base, 2, 1), jnp.arange(40_000))
    kept = drawn[1:] == drawn[:-1]
    close(kept[:, 0].mean(), 0.531359, atol=0.01)
    assert (kept[:, 0] == kept[:, 1]).all(), "one k for all environments"
    assert (drawn[:, 0] != drawn[:, 1]).all(), "each with noise of its own"
    close([drawn.mean(), drawn.std()], [0.0, 1.0], atol=0.03)


def acting_key(number):
    return stream(jax.random.fold_in(KEY, number), "single.act.explore")


def exploring(agent, state, steps, held=None, first=(), key=KEY):
    """The actions of some steps at one observation, and the noise after them."""
    acting, obs = agent.acting(state), jnp.ones((2, S))
    act = jax.jit(partial(agent.act, mode="explore"))
    held, actions = agent.selector.init_noise(agent.task, 2, agent.base) if held is None else held, []
    for number in steps:
        action, _, held = act(acting, held, obs, jnp.full(2, number in first), number, key)
        actions.append(np.asarray(action))
    return np.stack(actions), held


def test_repeated_noise_moves_the_actions_of_one_state_alike(tmp_path):
    """Check 15: it survives an episode's end and a save; without it nothing changes to the bit."""
    agent = build("sac+xqc", 8, noise_repeat=16)
    state = agent.init(KEY)
    actions, held = exploring(agent, state, range(40))
    again, _ = exploring(agent, state, range(40), first={*range(40)})
    np.testing.assert_array_equal(actions, again)
    noise, left = jnp.zeros((2, A)), jnp.zeros((), jnp.int32)
    policy = state.actor(jnp.ones((2, S)), [])
    for number, action in enumerate(actions):
        noise, left = straight.hold(noise, left, number, KEY)
        close(action, jnp.tanh(policy.mean + jnp.exp(policy.log_std) * noise), atol=1e-6)
    renewed = (actions[1:] != actions[:-1]).any((1, 2))
    assert 5 <= renewed.sum() <= 34

    before, held = exploring(agent, state, range(17))
    saves.write(tmp_path, "17", {"loop": held}, {})
    back = saves.read(tmp_path / "17", {"loop": jax.eval_shape(lambda: held)})[0]["loop"]
    after, _ = exploring(agent, state, range(17, 40), back)
    np.testing.assert_array_equal(np.concatenate([before, after]), actions)
    evaluated = agent.act(agent.acting(state), back, jnp.ones((2, S)), jnp.zeros(2, bool), 5, KEY)
    np.testing.assert_array_equal(evaluated[0], policy.mode())
    assert same(evaluated[2], back)

    plain = build("sac+xqc", 8)
    assert plain.selector.init_noise(plain.task, 2, plain.base) is None
    fresh, none = exploring(plain, state, range(3))
    assert none is None
    for number, action in enumerate(fresh):
        key = jax.random.split(acting_key(number))[0]
        np.testing.assert_array_equal(action, jax.jit(lambda p, k: p.sample(k)[0])(policy, key))


# --- learning ---------------------------------------------------------------------------------------------


def test_learning_rates_fall_by_a_cosine():
    """Check 10: the actor, which steps half as often, ends in its middle."""
    agent = agents.build("flash_sac", FULL)
    for name, at, expected in (
        ("critics", [0, 250, 500, 750, 1_000], [3e-4, 2.780330e-4, 2.25e-4, 1.719670e-4, 1.5e-4]),
        ("actor", [0, 500], [3e-4, 2.25e-4]),
        ("soft.actor_params", [0, 500], [3e-4, 2.25e-4]),
    ):
        optimiser, one = agent.optimiser(name), jnp.ones(())
        found = []
        for number in at:
            state = jax.tree.map(
                lambda x: jnp.full_like(x, number) if x.dtype == jnp.int32 else jnp.ones_like(x),  # noqa: B023
                optimiser.init(one),
            )
            later = optax.tree_utils.tree_set(state, mu=one, nu=one)
            found.append(optimiser.update(one, later)[0])
        share = [(1 - 0.9 ** (n + 1)) / (1 - 0.999 ** (n + 1)) ** 0.5 for n in at]
        close(-np.array(found) * share, expected, rtol=1e-4, atol=0)


def test_rewards_are_scaled_by_the_larger_of_two():
    """Check 11, with the count that starts at 1e-4 once."""
    scaling, base = agents.build("flash_sac").scaling, Base()
    assert isinstance(scaling, RewardScale)
    state, divisors, sums = scaling.init_state(1), [], []
    for reward, over in ((1.0, False), (1.0, False), (10.0, True), (1.0, False), (1.0, False)):
        state = scaling.observe(state, jnp.array([reward]), jnp.array([over]), jnp.ones(1, bool), base)
        sums.append(state.sums[0])
        divisors.append(scaling.divisor(state))
    close(sums, [1.0, 1.99, 10.0, 10.9, 11.791])
    close(divisors, [0.2, 0.495151, 4.029630, 4.502464, 4.651324], atol=2e-5)


def target(probabilities, reward, bonus=None, terminated=0.0):
    """The target distribution of one row."""
    nothing = jnp.zeros((1, 0))
    batch = Batch(nothing, nothing, jnp.array([reward]), jnp.array([terminated]), nothing, 0.99)
    least, state = MinTarget(), PartState()
    rule = BootstrapRule(
        lambda qs: least.weights(state, qs, KEY), lambda value: value, lambda qs: least.value(state, qs, KEY)
    )
    raw = jnp.log(jnp.asarray(probabilities) + 1e-30)[None, None]
    part = agents.build("flash_sac").value
    assert part == C51()
    found = part.target(raw, rule, None if bonus is None else jnp.array([bonus]), batch)
    return found.probabilities[0, 0], part.target_mean(found)[0, 0]


def test_the_target_distribution():
    """Check 12."""
    zero = jnp.zeros(101).at[50].set(1.0)
    found, mean = target(zero, 0.234, bonus=0.05)
    close(mean, 0.2835, atol=1e-5)
    close(found[52:54], [0.165, 0.835], atol=1e-5)
    close(target(zero, 7.0, terminated=1.0)[0][100], 1.0)
    found, mean = target(jnp.full(101, 1 / 101), 0.5)
    close(mean, 0.487525, atol=1e-5)
    close(found[100], 0.054950, atol=1e-6)


def test_a_window_of_rewards_that_a_time_limit_cuts():
    """Check 14: the factor is γ to the number of rewards; the release has γ³ also here."""
    agent = agents.build("td3", {"base": {"n_step": 3, "replay_capacity": 8}}).on(Spec(1, 1))
    layout = agent.layout(1)
    storage = agent.init_replay(layout)
    for step in range(4):
        obs = jnp.full((1, 1), float(step))
        ends = jnp.zeros(1, bool), jnp.array([step == 1])
        new = Transition(obs, obs, jnp.ones(1), *ends, obs + 1)
        storage = agent.insert(layout, *storage, new)
    batch = rows_at(layout, *storage, jnp.zeros(1, jnp.int32), 3, 0.99)
    close([*batch.reward, *batch.discount, *batch.terminated], [1.99, 0.9801, 0.0])


def test_half_the_sum_is_the_mean_over_two_critics():
    """Check 16: and Adam makes nearly the same step of both."""
    part, base = C51(), agents.build("td3+flashsac").base
    assert base.critic_loss_scale == 0.5
    raw = jax.random.normal(KEY, (4, 2, 101))
    wanted = jax.nn.softmax(jax.random.normal(jax.random.key(1), (4, 1, 101)))
    made = AtomTarget(wanted, jnp.zeros(()))
    mean = jax.grad(lambda raw: -(wanted * jax.nn.log_softmax(raw)).sum(-1).mean())(raw)
    summed = jax.grad(lambda raw: part.loss(raw, made, base)[0])(raw)
    close(base.critic_loss_scale * summed, mean, atol=1e-8)
    adam = make_adam(3e-4)
    steps = [adam.update(gradient, adam.init(raw))[0] for gradient in (mean, summed)]
    large = np.abs(mean) > 1e-4  # beside Adam's ε of 1e-8
    assert large.mean() > 0.5
    close(steps[0][large], steps[1][large], atol=0, rtol=1e-4)


@pytest.fixture(scope="module")
def history():
    """A small agent's states before 100 updates and after each."""
    agent = build("sac+flashsac+c51", 8, {"polyak": {"rate": 0.01}, "c51": {"atoms": 11}})
    run = start(agent)
    states = [jax.tree.map(np.array, run.state)]
    for _ in range(100):
        run = run.step()
        states.append(jax.tree.map(np.array, run.state))
    return states


def test_lengths_hold_over_a_hundred_updates(history):
    """Check 6, its second half."""
    for state in (history[1], history[-1]):
        for net in (state.actor, state.critics):
            for found in lengths(net):
                close(found, 1.0, atol=1e-5)
    biases = [critic.body.out.bias for critic in history[-1].critics]
    assert all((bias != 0).all() for bias in biases), "biases of heads are free"
    shifts = [part.shift for part in of_given_length(history[-1].critics) if isinstance(part, FlashNorm)]
    assert all((shift != 0).any() for shift in shifts)


def test_targets_follow_without_being_projected(history):
    """Check 13."""
    moved = Polyak(rate=0.01, when="always").target_update(jnp.full((), 2.0), jnp.ones(()), None)
    close(moved, 1.01)
    before, after = history[-2:]
    follow = optax.incremental_update(
        *(split_statistics(x)[0] for x in (after.critics, before.critics_target)), 0.01
    )
    for found, expected in zip(
        jax.tree.leaves(split_statistics(after.critics_target)[0]), jax.tree.leaves(follow), strict=True
    ):
        close(found, expected, atol=1e-6)
    rows, _ = lengths(after.critics_target)
    assert rows.min() < 1.0 - 1e-5


def test_what_moves_at_which_update(history):
    """Check 17."""

    def moved(pick, number):
        return not same(*(pick(history[n]) for n in (number - 1, number)))

    weights = {
        "actor": lambda state: split_statistics(state.actor)[0],
        "alpha": lambda state: state.part_states["soft"].actor_params,
        "actor's statistics": lambda state: split_statistics(state.actor)[1],
        "critics' statistics": lambda state: split_statistics(state.critics)[1],
    }
    for number in range(1, 7):
        found = {name: moved(pick, number) for name, pick in weights.items()}
        odd = number % 2 == 1
        expected = {"actor": odd, "alpha": odd, "actor's statistics": odd, "critics' statistics": True}
        assert found == expected, number


# --- in an agent ------------------------------------------------------------------------------------------


def test_the_recipes():
    one, many = agents.build("flash_sac"), agents.build("flash_sac_parallel")
    assert {*one.parts} == {*many.parts}
    for agent, fields in (
        (one, (512, 10_000, 1.0, "steps", 1_000_000)),
        (many, (2048, 98, 2.0, "vector_steps", 10_000_000)),
    ):
        base = agent.base
        found = base.batch_size, base.warmup, base.updates_per_step, base.counts, base.replay_capacity
        assert found == fields
        assert (base.noise_repeat, base.policy_delay, base.policy_phase) == (16, 2, 1)
        assert (agent.target_update.rate, agent.policy_loss.initial_temperature) == (0.01, 0.01)
    scaled = many.base.scale_to_envs(1024)
    assert scaled["warmup"] == 98 * 1024 > 100_000
    assert scaled["updates_per_step"] * 1024 == 2.0


@pytest.mark.parametrize(
    ("env", "discount"),
    [("playground/G1JoystickFlatTerrain", 0.97), ("playground/T1JoystickRoughTerrain", 0.97)],
)
def test_the_preset_of_humanoids(env, discount):
    found, source = agents.preset("paper", "flash_sac_parallel", env)
    assert found == {"base": {"discount": discount}}
    assert "2604.04539" in source


@pytest.mark.parametrize(
    "recipe",
    [
        *(f"flash_sac+{part}" for part in ("pave", "caps", "lap", "savo", "savgo", "sale", "grad", "asap")),
        *("td3+flashsac", "td7+flashsac", "td7+flashsac+pave", "td3+flashsac+savo", "dqn+flashsac"),
    ],
)
def test_what_it_goes_with(recipe):
    assert agents.build(recipe).network.name == "flashsac"


def test_pave_bends_the_blocks():
    agent = agents.build("flash_sac+pave", FULL).on(Spec(3, 1))
    for net in (agent.nets.actor(KEY).torso, agent.nets.critic(KEY).body.torso):
        assert {block.activation for block in net.blocks} == {"silu"}
    relu = agents.build("flash_sac+pave", {"base": {"critic_activation": "relu"}})
    assert not any("piecewise linear" in note for part in relu.regularisers for note in part.notes(relu))


@pytest.mark.parametrize(
    ("recipe", "fields", "said"),
    [
        ("flash_sac", {"base": {"critic_hidden": (64, 32)}}, "blocks of flashsac all have one width"),
        ("flash_sac", {"base": {"actor_hidden": (64, 32)}}, "blocks of flashsac all have one width"),
        ("flash_sac", {"base": {"batch_size": 1}}, "base.batch_size is 1; take at least 2"),
        ("flash_sac", {"base": {"noise_repeat": 0}}, "base.noise_repeat is 0; it must be at least 1"),
        ("iql+flashsac", {}, "flashsac trains critics on .* iql has no a'"),
        ("td3+joint+flashsac", {}, "joint splits a linear output layer, which flashsac has not"),
        ("flash_sac+greedy_ac", {}, "greedy_ac"),
        ("flash_sac+dual_policy", {}, "dual_policy trains a second policy, and flashsac keeps"),
        ("flash_sac+xqc", {}, "flashsac and xqc both fill one place"),
    ],
)
def test_what_it_does_not_go_with(recipe, fields, said):
    with pytest.raises(UsageError, match=said):
        agents.build(recipe, fields)


def test_where_repeated_noise_does_nothing():
    moot = agents.build("td3", {"base": {"noise_repeat": 4}}).moot_fields()
    assert moot["base.noise_repeat"] == "with a deterministic policy, base.head = deterministic"
    assert "savo" in agents.build("flash_sac+savo").moot_fields()["base.noise_repeat"]
    assert "base.noise_repeat_power" in agents.build("sac").moot_fields()
    assert not {f for f in agents.build("flash_sac").moot_fields() if "noise_repeat" in f}


@pytest.mark.parametrize("loop", [slow("host"), slow("auto")])
def test_a_resumed_run_keeps_the_noise_to_the_bit(loop, tmp_path):
    """With networks, schedule and noise of FlashSAC; the stop is in the middle of a repetition."""
    small = settings("flash_sac", warmup=20, noise_repeat=16)
    plan = Plan("flash_sac", "tiny:Clock-v0", 120, settings=small, loop=loop)
    [*train(plan, tmp_path / "whole")]
    [*train(plan, tmp_path / "parts", on_trainer=stop_at(71))]
    [*resume(tmp_path / "parts")]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
