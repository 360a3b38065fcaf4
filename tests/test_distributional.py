"""Critics that compute a distribution: projections, losses and targets by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rows import slow
from tiny import Clock, settings

from qscape import agents
from qscape.cli import main
from qscape.contrib.c51 import C51
from qscape.contrib.hl_gauss import HLGauss
from qscape.envs import make
from qscape.errors import UsageError
from qscape.methods.quantile import Quantile
from qscape.methods.value_clip import Bounds, ValueClip
from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import MinTarget, ScalarValue
from qscape.offpolicy.sockets import BootstrapRule, PartState
from qscape.ops.distributional import (
    cross_entropy,
    gaussian_histogram,
    project_onto_atoms,
    quantile_huber_loss,
    quantile_levels,
)
from qscape.run import Plan
from qscape.run.plan import part_notes
from qscape.run.training import make_session
from qscape.types import Batch, Event

ATOMS = C51(low=-2.0, high=2.0, atoms=5)


def transitions(reward, terminated=0.0, discount=0.9) -> Batch:
    """Transitions with these rewards [B]; nothing else of them is read."""
    reward = jnp.atleast_1d(jnp.asarray(reward, float))
    ends = jnp.broadcast_to(jnp.asarray(terminated, float), reward.shape)
    nothing = jnp.zeros((len(reward), 0))
    return Batch(nothing, nothing, reward, ends, nothing, discount)


def rule_of(part=None, state=None, seed=0) -> BootstrapRule:
    """The rule of a `bootstrap` part as the update makes it; the minimum of the critics if none is given."""
    part, state, key = part or MinTarget(), state or PartState(), jax.random.key(seed)
    return BootstrapRule(
        lambda qs: part.weights(state, qs, key),
        lambda value: part.bound(state, value),
        lambda qs: part.value(state, qs, key),
    )


def logits(probabilities) -> jax.Array:
    """Outputs [1, 1, n] of one critic at one row."""
    return jnp.log(jnp.asarray(probabilities, float) + 1e-30)[None, None]


# --- C51 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "batch", "bonus", "expected", "mean"),
    [
        ([0, 0, 1, 0, 0], transitions(0.3), None, [0, 0, 0.7, 0.3, 0], 0.3),
        ([0.2] * 5, transitions(0.5), None, [0.06, 0.22, 0.22, 0.22, 0.28], 0.44),
        ([0.2] * 5, transitions(0.25, terminated=1.0), None, [0, 0, 0.75, 0.25, 0], 0.25),
        ([0.2] * 5, transitions(0.5), -1.0, [0.26, 0.22, 0.22, 0.22, 0.08], -0.36),
        ([0.1, 0.2, 0.3, 0.4, 0.0], transitions(0.0, discount=1.0), None, [0.1, 0.2, 0.3, 0.4, 0.0], 0.0),
    ],
    ids=["between atoms", "clipped", "terminal", "bonus", "on atoms"],
)
def test_atoms_are_moved_and_projected(probabilities, batch, bonus, expected, mean):
    bonus = None if bonus is None else jnp.array([bonus])
    target = ATOMS.target(logits(probabilities), rule_of(), bonus, batch)
    np.testing.assert_allclose(target.probabilities[0, 0], expected, atol=1e-6)
    np.testing.assert_allclose(ATOMS.target_mean(target), mean, atol=1e-6)


def test_the_share_beyond_the_support():
    """Of the atoms −1.3, −0.4, 0.5, 1.4, 2.3 the last lies beyond."""
    target = ATOMS.target(logits([0.2] * 5), rule_of(), None, transitions(0.5))
    np.testing.assert_allclose(target.clipped, 0.2, atol=1e-6)
    _, metrics = ATOMS.loss(logits([0, 0, 0, 0, 1]), target, Base())
    np.testing.assert_allclose([*metrics.values()], [1.0, 0.2], atol=1e-6)
    assert [*metrics] == ["saturated_values", "clipped_targets"]
    assert ATOMS.loss(logits([0, 0, 0, 0.1, 0.9]), target, Base())[1]["saturated_values"] == 0.0


# Positions between atoms, beyond the ends, and at atoms, where rounding may split or drop an entry.
RLAX_ROWS = [np.random.default_rng(0).uniform(-3.0, 3.0, (50, 11)), np.tile(np.linspace(-2, 2, 11), (3, 1))]


@pytest.mark.parametrize("positions", RLAX_ROWS, ids=["anywhere", "at atoms"])
def test_projections_equal_those_of_rlax(positions):
    """Of C51, and of one number (two-hot); a position among 11 atoms is rounded to an ulp of 10."""
    rlax = pytest.importorskip("rlax")
    ulp, positions = np.spacing(np.float32(10.0)), jnp.asarray(positions, jnp.float32)
    atoms = jnp.linspace(-2.0, 2.0, 11)
    p = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(11), len(positions)), jnp.float32)
    theirs = jax.vmap(rlax.categorical_l2_project, (0, 0, None))(positions, p, atoms)
    np.testing.assert_allclose(project_onto_atoms(p, positions, -2.0, 2.0), theirs, rtol=0, atol=ulp)
    number = positions[:, 3]
    two_hot = project_onto_atoms(jnp.eye(11)[jnp.zeros(len(number), int)], number[:, None] + 0 * p, -2.0, 2.0)
    ulp += 1e-5 / 0.4  # which rlax adds to the distance of two atoms
    np.testing.assert_allclose(two_hot, rlax.transform_to_2hot(number, -2.0, 2.0, 11), rtol=0, atol=ulp)


def test_any_projection_keeps_the_sum_and_within_the_support_the_mean():
    rng = np.random.default_rng(0)
    p, positions = rng.dirichlet(np.ones(11), 50), rng.uniform(-3.0, 3.0, (50, 11))
    found = np.asarray(project_onto_atoms(jnp.array(p), jnp.array(positions), -2.0, 2.0))
    clipped = np.clip(positions, -2.0, 2.0)
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose((found * np.linspace(-2, 2, 11)).sum(-1), (p * clipped).sum(-1), atol=1e-5)
    # by the formula of the paper, with its repair for positions on an atom
    place = (clipped + 2.0) / 0.4
    lower, upper = np.floor(place).astype(int), np.ceil(place).astype(int)
    slow = np.zeros((50, 11))
    for row in range(50):
        for k in range(11):
            slow[row, lower[row, k]] += p[row, k] * (
                upper[row, k] - place[row, k] or lower[row, k] == upper[row, k]
            )
            slow[row, upper[row, k]] += p[row, k] * (place[row, k] - lower[row, k])
    np.testing.assert_allclose(found, slow, atol=1e-5)


def test_the_gradient_of_q_is_a_covariance():
    part = C51(low=-1.0, high=1.0, atoms=3)
    raw = logits([0.25, 0.5, 0.25])[0, 0]
    slope = jax.grad(lambda a: part.read(raw + a * jnp.array([0.0, 0.0, 1.0])))(0.0)
    np.testing.assert_allclose(slope, 0.25, atol=1e-6)


def test_uniform_logits():
    part = C51()
    raw = jnp.zeros((4, 2, 101))
    np.testing.assert_allclose(part.read(raw), 0.0, atol=1e-6)
    target = part.target(raw, rule_of(), None, transitions(jnp.zeros(4), discount=1.0))
    loss, _ = part.loss(raw, target, Base())
    np.testing.assert_allclose(loss, 2 * 4.615121, rtol=1e-6)  # ln 101 of each critic


def test_the_gradient_by_logits_is_at_most_root_two():
    first, last = jnp.array([30.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 1.0])
    gradient = jax.grad(lambda raw: cross_entropy(raw, last))(first)
    np.testing.assert_allclose(gradient, [1.0, 0.0, -1.0], atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(gradient), 1.414214, rtol=1e-6)


def test_the_critic_with_the_smaller_mean_gives_the_distribution():
    one, two = jnp.array([0.0, 0.0, 0.5, 0.5, 0.0]), jnp.array([0.4, 0.0, 0.0, 0.0, 0.6])  # means 0.5 and 0.4
    raw = jnp.log(jnp.stack([one, two])[None] + 1e-30)
    target = ATOMS.target(raw, rule_of(), None, transitions(0.0, discount=1.0))
    np.testing.assert_allclose(target.probabilities[0, 0], two, atol=1e-6)


# --- HL-Gauss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "around", "mean"),
    [
        (0.25, {17: 0.000428, 18: 0.022321, 19: 0.229742, 20: 0.495015, 21: 0.229742, 22: 0.022321}, 0.25),
        (0.0, {17: 0.003799, 18: 0.087381, 19: 0.408789, 20: 0.408789, 21: 0.087381, 22: 0.003799}, 0.0),
        (0.1, {}, 0.100002),
        (9.9, {}, 9.624943),
        (10.0, {}, 9.654927),
        (1e9, {}, 9.654927),
    ],
)
def test_histograms_of_a_number(y, around, mean):
    part = HLGauss(low=-10.0, high=10.0, atoms=40)
    found = gaussian_histogram(jnp.array(y), -10.0, 10.0, 40, 0.75 * 0.5)
    np.testing.assert_allclose(found.sum(), 1.0, atol=1e-6)
    np.testing.assert_allclose((found * part.points).sum(), mean, atol=2e-6)
    for bin, share in around.items():
        np.testing.assert_allclose(found[bin], share, atol=1e-6)


def test_the_least_cross_entropy_is_the_entropy():
    part = HLGauss(low=-10.0, high=10.0, atoms=40)
    best = gaussian_histogram(jnp.array(0.25), -10.0, 10.0, 40, 0.75 * 0.5)
    loss, metrics = part.loss(logits(best), jnp.array([[0.25]]), Base())
    np.testing.assert_allclose(loss, 1.200301, rtol=1e-5)
    assert (metrics["saturated_values"], metrics["clipped_targets"]) == (0.0, 0.0)
    assert part.loss(logits(best), jnp.array([[10.5]]), Base())[1]["clipped_targets"] == 1.0


# --- quantiles ------------------------------------------------------------------------------------------


def test_quantile_regression():
    quantiles, y = jnp.array([[[0.0, 1.0]]]), jnp.array([[[0.5, 2.0]]])
    np.testing.assert_allclose(quantile_huber_loss(quantiles, y[..., :1]), [[0.03125, 0.03125]])
    np.testing.assert_allclose(quantile_huber_loss(quantiles, y[..., 1:]), [[0.375, 0.375]])
    np.testing.assert_allclose(Quantile(quantiles=2).loss(quantiles, y, Base())[0], 0.203125)
    np.testing.assert_allclose(Quantile(quantiles=2, loss_sum="sum").loss(quantiles, y, Base())[0], 0.40625)
    np.testing.assert_allclose(quantile_levels(25)[jnp.array([0, 24])], [0.02, 0.98], rtol=1e-6)


def test_loss_over_critics():
    """Of two equal critics the mean is that of one (TQC), and the sum is twice that of one (BRO)."""
    quantiles, y = jnp.array([[[0.0, 1.0]] * 2]), jnp.array([[[0.5, 2.0]]])
    np.testing.assert_allclose(Quantile(quantiles=2).loss(quantiles, y, Base())[0], 0.203125)
    np.testing.assert_allclose(Quantile(quantiles=2, loss_sum="sum").loss(quantiles, y, Base())[0], 0.8125)


TWO = jnp.array([[[1.0, 2.0, 9.0], [0.0, 3.0, 4.0]]])


def test_the_truncated_mixture():
    batch = transitions(0.5, discount=0.5)
    kept = Quantile(quantiles=3, drop=1).target(TWO, rule_of(), jnp.array([1.0]), batch)
    np.testing.assert_allclose(kept[0, 0], 0.5 + 0.5 * (jnp.array([0.0, 1.0, 2.0, 3.0]) + 1.0))
    np.testing.assert_allclose(
        Quantile(quantiles=3, drop=0).target(TWO, rule_of(), None, batch).shape, (1, 1, 6)
    )
    alone = Quantile(quantiles=3, drop=1).target(TWO, rule_of(), None, transitions(0.0, discount=1.0))
    assert Quantile().target_mean(alone) == 1.5


@pytest.mark.parametrize(
    ("rows", "heads"), [(3, 1), slow(16, 2), (37, 2), slow(300, 1)]
)  # less than a piece to larger pieces
def test_the_gradient_of_the_quantile_loss(rows, heads):
    """Against automatic differentiation of the formula on all pairs at once."""
    own, y, weights = (
        jax.random.normal(jax.random.key(i), shape) * 2
        for i, shape in enumerate([(rows, 2, 5), (rows, heads, 7), (2, 5)])
    )

    def formula(own):
        difference = y[..., None, :] - own[..., None]
        huber = optax.huber_loss(difference)
        level = (jnp.arange(5)[:, None] + 0.5) / 5
        return (weights * (jnp.abs(level - (difference < 0)) * huber).mean((0, -1))).sum()

    wanted = jax.value_and_grad(formula)(own)
    found = jax.jit(jax.value_and_grad(lambda own: (weights * quantile_huber_loss(own, y)).sum()))(own)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5, atol=1e-8)
    several = jax.vmap(quantile_huber_loss, (0, None))(jnp.stack([own, own + 1]), y)
    np.testing.assert_allclose(several[1], quantile_huber_loss(own + 1, y), rtol=1e-6)


def test_without_a_pool_the_critic_with_the_smaller_mean_gives_the_quantiles():
    found = Quantile(quantiles=3).target(TWO, rule_of(), None, transitions(0.0, discount=1.0))
    np.testing.assert_allclose(found[0, 0], TWO[0, 1])
    assert Quantile().target_mean(found) == pytest.approx(7 / 3)


def test_two_quantile_pools_are_refused():
    with pytest.raises(UsageError, match="nothing would be left; drop fewer"):
        agents.build("sac+quantile", {"quantile": {"drop": 25}})
    with pytest.raises(UsageError, match="pools the target critics, which value_clip would weigh"):
        agents.build("sac+quantile+value_clip", {"quantile": {"drop": 2}})


# --- a distribution at a point is a number --------------------------------------------------------------


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize(
    "part",
    [C51(low=-30.0, high=30.0, atoms=61), HLGauss(low=-30.0, high=30.0), Quantile(quantiles=4)],
    ids=lambda part: part.name,
)
def test_the_target_of_points_is_that_of_the_scalar_agent(part, clips):
    rng, rows = np.random.default_rng(0), 20
    q = rng.integers(-9, 10, (rows, 2)).astype(np.float32)
    discount = jnp.asarray(rng.uniform(0.9, 1.0, rows))
    batch = transitions(rng.normal(size=rows), rng.random(rows) < 0.2, discount)
    bonus = jnp.asarray(rng.normal(size=rows))
    raw = jnp.asarray(np.repeat(q[..., None], 4, -1))
    if isinstance(part, C51):
        raw = 1e3 * jax.nn.one_hot(jnp.asarray(q + 30, int), 61)
        np.testing.assert_allclose(part.read(raw), q, atol=1e-5)
    elif isinstance(part, HLGauss):
        # This part reads numbers, and no distribution is moved: its reading stands for them.
        raw = jnp.asarray(rng.normal(size=(rows, 2, 101)))
        q = np.asarray(part.read(raw))
    rule = rule_of()
    if clips:
        bounds = Bounds(*(jnp.array(x) for x in (-4.0, 4.0, -4.0, 4.0)))
        rule = rule_of(ValueClip(), PartState(extra=bounds))
    expected = ScalarValue().target(jnp.asarray(q)[..., None], rule, bonus, batch)
    found = part.target(raw, rule, bonus, batch)
    np.testing.assert_allclose(part.target_mean(found), expected, atol=1e-4)
    assert np.asarray(expected).shape == (rows, 1)


@pytest.mark.parametrize("part", [C51(low=-20.0, high=120.0), Quantile()], ids=lambda part: part.name)
def test_value_clip_does_not_bias_the_mean_of_a_distribution(part):
    """One state for ever, fitted exactly: rewards have the mean 1, so Q is near 1 / (1 - 0.9).

    Atoms and quantiles above the greatest target are not clipped, which would hold Q down. C51 spreads even
    a constant reward over atoms.
    """
    batch = transitions(np.ones(10) if isinstance(part, C51) else 10.0 * (np.arange(10) == 0), discount=0.9)

    def learn(bootstrap):
        @jax.jit
        def update(outputs, state, synced):
            target = part.target(jnp.tile(outputs, (10, 2, 1)), rule_of(bootstrap, state), None, batch)
            event = Event(jnp.array(0), jnp.array(0), jnp.array(True), synced)
            state = bootstrap.post_update(state, part.target_mean(target), event)
            if isinstance(part, C51):
                return jnp.log(target.probabilities.mean((0, 1)) + 1e-30), state
            return jnp.quantile(target, quantile_levels(part.outputs)), state

        outputs = jnp.zeros(part.outputs)
        state = bootstrap.init(jax.random.key(0), None, None, None, None)
        for k in range(240):
            outputs, state = update(outputs, state, k % 2 == 1)
        return float(part.read(outputs))

    free, clipped = learn(MinTarget()), learn(ValueClip())
    assert free == pytest.approx(10.0, abs=1.5)
    assert clipped == pytest.approx(free, abs=0.02)


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "settings", "sentence"),
    [
        ("td3+c51", {"c51": {"low": 5.0}}, "c51.low is 5.0; it must be below c51.high = 5.0."),
        ("td3+c51", {"c51": {"atoms": 1}}, "c51.atoms is 1; a distribution needs at least 2."),
        ("td3+hl_gauss", {"hl_gauss": {"sigma": 0.0}}, "hl_gauss.sigma is 0.0; it must"),
        ("iql+c51", {}, "iql values the next state by a number, and c51 learns from a distribution"),
        ("sac+c51+quantile", {}, "c51 and quantile both fill one place"),
    ],
)
def test_refusals(recipe, settings, sentence):
    with pytest.raises(UsageError) as told:
        agents.build(recipe, settings)
    assert sentence in str(told.value)


def test_the_action_gradient_is_a_covariance_and_bounded_by_the_support():
    """∂Q/∂a = Cov(z, ∂logit/∂a) under p, at most (high − low)/4 times the range of ∂logit/∂a."""
    rng, part = np.random.default_rng(0), C51(low=-2.0, high=6.0, atoms=11)
    weight, bias, bend = 3.0 * rng.normal(size=(3, 11, 40))

    def logits(action):
        return weight * action + bias + bend * action**2

    actions = jnp.asarray(rng.uniform(-1, 1, 40), jnp.float32)
    found = jax.vmap(jax.grad(lambda a, k: part.read(logits(a)[:, k])))(actions, jnp.arange(40))
    slope = weight + 2.0 * bend * np.asarray(actions)
    p = np.exp(np.asarray(logits(actions), float))
    p, z = p / p.sum(0), np.linspace(-2.0, 6.0, 11)
    covariance = z @ (p * slope) - (z @ p) * (p * slope).sum(0)
    np.testing.assert_allclose(found, covariance, rtol=1e-3, atol=1e-4)
    assert (np.abs(covariance) <= (6.0 + 2.0) / 4 * np.ptp(slope, 0)).all()


# --- a support that is too narrow -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saturated", "clipped", "warns"),
    [(0.0, 0.4, False), (0.5, 0.0, False), (0.02, 0.3, True), (0.0, 0.6, True), (None, None, False)],
)
def test_a_support_that_cannot_hold_the_returns(saturated, clipped, warns):
    metrics = {"saturated_values": saturated, "clipped_targets": clipped} if clipped is not None else {}
    said = C51().warning(metrics)
    assert (said is not None) == warns
    if said:
        near = f" and {saturated:.0%} of the values near its ends, where they tell no actions apart"
        beyond = f"c51: {clipped:.0%} of the critics' targets lie beyond the support [-5, 5]"
        assert said.startswith(f"{beyond}{near if saturated else ''}; widen it (--c51.low, --c51.high)")
    assert Quantile().warning(metrics) is None, "quantiles have no support"


@pytest.mark.parametrize("atoms", [slow(2), 11, slow(25), 101])
def test_bins_that_fit_targets_far_beyond_their_end_are_saturated(atoms):
    """Few bins put the mean of the last histogram far inside: 11 bins on ±5 reach 4.373, 101 reach 4.932."""
    part = HLGauss(atoms=atoms)
    fitted = jnp.log(part.histogram(jnp.array(1e9)) + 1e-30)
    _, metrics = part.loss(fitted[None, None], jnp.array([[1e9]]), Base())
    assert (metrics["saturated_values"], metrics["clipped_targets"]) == (1.0, 1.0)
    assert part.warning({name: float(value) for name, value in metrics.items()}) is not None
    middle = jnp.log(part.histogram(jnp.array(0.0)) + 1e-30)
    assert part.loss(middle[None, None], jnp.array([[0.0]]), Base())[1]["saturated_values"] == 0.0


def test_a_warning_comes_once():
    plan = Plan("td3+hl_gauss", "Clock", 10, settings=settings("td3", warmup=5))
    run = make_session(plan, agents.build(plan.recipe, plan.settings), make(Clock))
    narrow = {"saturated_values": 1.0, "clipped_targets": 1.0}
    said = [run._new_warnings(run.seeds[0], metrics) for metrics in ({}, narrow, narrow)]
    assert [len(sentences) for sentences in said] == [0, 1, 0]


@pytest.mark.slow
def test_a_run_tells_once_that_its_support_is_too_narrow(tmp_path, capsys):
    sizes = (
        "--base.actor-hidden 8 --base.critic-hidden 8 --base.batch-size 16 --base.critic-learning-rate 0.01"
    )
    command = f"train td3+c51 --env Pendulum-v1 --steps 600 --log-every 100 --eval-every 0 {sizes}"
    assert main([*command.split(), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("lie beyond the support [-5, 5]") == 1


def test_a_loss_that_is_not_used_is_told():
    said = ["c51 has a loss of its own: base.critic_loss = lap_huber is not used"]
    assert part_notes(agents.build("td3+lap+c51")) == said
    assert part_notes(agents.build("td3+lap")) == part_notes(agents.build("td3+c51")) == []
