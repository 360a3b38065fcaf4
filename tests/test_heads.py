"""Action heads: the numbers of the ACPG specification, Theorem 1, bounds, and what must never move."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts import DISCRETE, K, begin, build, compiled, rollout
from rows import slow, slow_except

from qscape import agents
from qscape.errors import RunError, UsageError
from qscape.nets.distributions import Categorical
from qscape.ops.bounds import BOUNDS
from qscape.ops.etf import haar_frame, helmert, is_simplex_etf, simplex_etf
from qscape.types import Spec

HEADS = ("etf", "fixed_gaussian", "fixed_orthogonal", "cosine")


def rng():
    return np.random.default_rng(3)


# --- the simplex ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "d", "energy"), [(2, 1, 1), (2, 64, 3), (4, 3, 1), (4, 16, 2), (18, 17, 1), (18, 512, 4)]
)
def test_simplex(k, d, energy):
    w = simplex_etf(k, haar_frame(rng(), d, k - 1), energy)
    np.testing.assert_allclose(np.square(w).sum(1), energy, atol=1e-12)
    cosines = (w @ w.T / energy)[~np.eye(k, dtype=bool)]
    np.testing.assert_allclose(cosines, -1 / (k - 1), atol=1e-12)
    np.testing.assert_allclose(w.sum(0), 0, atol=1e-12)
    np.testing.assert_allclose(np.square(w).sum(), k * energy, atol=1e-11)
    np.testing.assert_allclose(w.T @ w @ w.T, energy * k / (k - 1) * w.T, atol=1e-11)
    assert is_simplex_etf(np.float32(w), energy)
    assert not is_simplex_etf(np.float32(w * 1.01), energy)
    angle = {2: 180.0, 4: 109.4712, 18: 93.3723}[k]
    np.testing.assert_allclose(np.degrees(np.arccos(cosines.clip(-1, 1))), angle, atol=1e-3)


def test_explicit_simplices():
    found = {k: simplex_etf(k, np.eye(k - 1)) for k in (2, 3, 4)}
    np.testing.assert_allclose(found[2], [[1], [-1]], atol=1e-12)
    np.testing.assert_allclose(found[3], [[0.866025, 0.5], [-0.866025, 0.5], [0, -1]], atol=1e-6)
    rows = [[0.816497, 0.471405, 1 / 3], [-0.816497, 0.471405, 1 / 3], [0, -0.942809, 1 / 3], [0, 0, -1]]
    np.testing.assert_allclose(found[4], rows, atol=1e-6)
    np.testing.assert_allclose(helmert(5).T @ np.ones(5), 0, atol=1e-12)


def test_logits_and_gradient():
    w, h = jnp.asarray(simplex_etf(4, np.eye(3)), jnp.float32), jnp.array([1.0, 2.0, -1.0])
    np.testing.assert_allclose(w @ h, [1.425972, -0.207021, -2.218951, 1.0], atol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(w @ h), [0.533447, 0.104206, 0.013935, 0.348412], atol=1e-6)
    gradient = jax.grad(lambda h: Categorical(h, w @ h).log_prob(jnp.zeros(1)))(h)
    np.testing.assert_allclose(gradient, [0.466023, 0.183951, 0.464550], atol=1e-5)


@pytest.mark.parametrize(
    ("k", "scale", "p"),
    [
        (2, 1, 0.880797),
        (3, 3, 0.978265),
        (4, 5, 0.996197),
        (9, 2, 0.542537),
        (18, 5, 0.921355),
        (18, 10, 0.999572),
    ],
)
def test_largest_probability(k, scale, p):
    """1 / (1 + (K - 1) exp(-σ K / (K - 1))) with σ = √(E_H E_W) (arXiv 2509.02737, Section 4)."""
    w = simplex_etf(k, haar_frame(rng(), 32, k - 1))
    at_best = Categorical(jnp.zeros(1), jnp.asarray(scale * w[0] @ w.T))
    np.testing.assert_allclose(jnp.exp(at_best.log_prob(jnp.zeros(1))), p, atol=2e-6)


def test_orthogonal_rows_are_an_etf_in_disguise():
    k, d = 5, 12
    rows, h = haar_frame(rng(), d, k).T, rng().normal(size=(20, d))
    scale = np.sqrt(k / (k - 1))
    centred = scale * (rows - rows.mean(0))
    assert is_simplex_etf(centred, 1.0)
    ours, theirs = (jax.nn.softmax(jnp.asarray(h @ w.T)) for w in (scale * rows, centred))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_orthogonal_rows_at_the_energy_of_the_simplex():
    """`centred`: the rows less their mean are a simplex of the same energy as that of `etf`."""
    for energy in (1.0, 3.0):
        head = agents.build(
            "ppo+fixed_orthogonal", {"fixed_orthogonal": {"energy": energy, "centred": True}}
        ).head
        w = head.draw_layer(rng(), 4, 8)
        assert is_simplex_etf(w - w.mean(0), energy)
        assert head.explain_damage(w) is None
        assert "squared length" in head.explain_damage(1.1 * w)


# --- Theorem 1 --------------------------------------------------------------------------------------


def climb(objective, h, energy, steps=4000, rate=1.0):
    """Projected gradient ascent in the ball."""
    gradient = jax.grad(objective)

    def step(h, _):
        moved = h + rate * gradient(h)
        return moved * jnp.minimum(1.0, jnp.sqrt(energy) / jnp.linalg.norm(moved)), None

    return jax.lax.scan(step, h, None, steps)[0]


@pytest.mark.parametrize(
    ("k", "e_h", "e_w", "p", "logits", "multiplier"),
    [
        (4, 25.0, 1.0, 0.9961966195, (5.0, -5 / 3), 0.0010142348),
        (2, 1.0, 1.0, 0.8807970780, (1.0, -1.0), 0.2384058440),
        (18, 25.0, 4.0, 0.9995715988, (10.0, -10 / 17), 0.0001814405),
    ],
)
def test_theorem(k, e_h, e_w, p, logits, multiplier):
    """The best feature of a state whose optimal action is 0 is √(E_H / E_W) w_0."""
    with jax.enable_x64(True):
        w = jnp.asarray(simplex_etf(k, haar_frame(rng(), k + 3, k - 1), e_w))
        log_p = lambda h: jax.nn.log_softmax(h @ w.T)[0]  # noqa: E731
        h = climb(log_p, jnp.asarray(rng().normal(size=k + 3)), e_h, rate=20.0 * e_h / k)
        assert jnp.linalg.norm(h - jnp.sqrt(e_h / e_w) * w[0]) < 1e-6
        np.testing.assert_allclose(jnp.exp(log_p(h)), p, atol=1e-9)
        np.testing.assert_allclose((h @ w.T)[:2], logits, atol=1e-6)
        # Stationarity: ∇ log π = λ h.
        np.testing.assert_allclose(jax.grad(log_p)(h) @ h / e_h, multiplier, atol=1e-9)


def test_the_full_objective_is_not_aligned():
    """With Q = (1, .9, 0) the best feature leans towards the second action: Theorem 1 is about a*."""
    with jax.enable_x64(True):
        w, q = jnp.asarray(simplex_etf(3, np.eye(2))), jnp.array([1.0, 0.9, 0.0])
        value = lambda h: jax.nn.softmax(h @ w.T) @ q  # noqa: E731
        for scale, cosine in ((1.0, 0.80771), (5.0, 0.98233)):
            h = climb(value, jnp.array([0.3, -0.2]), scale**2, rate=200.0)
            np.testing.assert_allclose(h @ w[0] / jnp.linalg.norm(h), cosine, atol=1e-5)
            if scale == 1.0:
                np.testing.assert_allclose((value(h), value(w[0])), (0.863689, 0.830291), atol=1e-6)


# --- bounds -----------------------------------------------------------------------------------------


def test_ball():
    ball = lambda g: BOUNDS["ball"](g, 1.0)  # noqa: E731
    np.testing.assert_allclose(ball(jnp.array([3.0, 4.0])), [0.6, 0.8], atol=1e-6)
    jacobian = jax.jacobian(ball)
    np.testing.assert_allclose(jacobian(jnp.array([3.0, 4.0])), [[0.128, -0.096], [-0.096, 0.072]], atol=1e-6)
    np.testing.assert_allclose(jacobian(jnp.array([0.3, 0.4])), np.eye(2), atol=1e-6)


@pytest.mark.parametrize("bound", BOUNDS)
def test_no_length_gives_finite_gradients(bound):
    assert np.isfinite(jax.jacobian(lambda g: BOUNDS[bound](g, 25.0))(jnp.zeros(3))).all()


# --- in an agent ------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", slow_except(["ppo"], ["ppo", "a2c", "reinforce", "trpo"]))
@pytest.mark.parametrize("head", ["etf"])
def test_the_fixed_layer_never_moves(recipe, head):
    agent = build(f"{recipe}+{head}")
    state = start = begin(agent)
    w = np.asarray(start.part_states[head])
    for number in range(3):
        made = rollout(number, masked=recipe == "reinforce")
        state, _ = compiled(agent)(state, made, 0.0, jax.random.key(1))
    assert np.asarray(state.part_states[head]).tobytes() == w.tobytes()
    before, after = start.networks.head.projector.weight, state.networks.head.projector.weight
    assert not np.array_equal(before, after), "the projector learns"
    shapes = {x.shape for x in jax.tree.leaves(state.optimisers)}
    assert w.shape == (K, 16)
    assert w.shape not in shapes, "no optimiser has a slot for it"


@pytest.mark.parametrize("head", ["etf", slow("fixed_gaussian"), slow("fixed_orthogonal")])
def test_fixed_layers_are_checked(head):
    agent = build(f"ppo+{head}", **{head: {"energy": 2.0}})
    own = begin(agent).part_states
    agent.check_part_states(own)
    np.testing.assert_allclose(np.square(own[head]).sum(-1), 2.0, rtol=1e-5)
    with pytest.raises(RunError, match="fixed action layer"):
        agent.check_part_states({head: own[head].at[0].multiply(1.1)})
    other = begin(agent, 1).part_states
    assert not np.allclose(own[head], other[head]), "each seed draws its own"


@pytest.mark.slow
def test_seeds_in_one_program_draw_what_they_draw_alone():
    agent = build("ppo+etf")
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(agent.init)(keys).part_states["etf"]
    alone = jnp.stack([agent.init(key).part_states["etf"] for key in keys])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("k", [slow(2), 4, slow(18)])
@pytest.mark.parametrize("head", ["learnable", *HEADS])
def test_the_first_policy_is_nearly_uniform(k, head):
    recipe = "ppo" if head == "learnable" else f"ppo+{head}"
    settings = {head: {"width": 32}} | ({"cosine": {"scale": 0.01, "width": 32}} if head == "cosine" else {})
    agent = agents.build(recipe, settings).on(Spec(6, 1, choices=k))
    state = begin(agent)
    obs = jnp.asarray(rng().normal(size=(64, 6)), jnp.float32)
    entropy = agent.get_distribution(agent.acting(state), obs).entropy() / np.log(k)
    assert (entropy > 0.999).all()


def test_a_common_shift_of_the_rows_changes_nothing():
    w, h = rng().normal(size=(4, 8)), rng().normal(size=(10, 8))
    ours, shifted = (jax.nn.softmax(jnp.asarray(h @ (w + c).T)) for c in (0.0, rng().normal(size=8)))
    np.testing.assert_allclose(ours, shifted, atol=1e-6)


def test_cosine_logits():
    agent = build("ppo+cosine", cosine={"scale": 3.0, "projector": "none"})
    learned = begin(agent).networks.head
    x = jnp.asarray(rng().normal(size=(7, 16)), jnp.float32)
    dist, _ = agent.head.distribution(learned, None, x)
    v, h = np.asarray(learned.layer.rows), np.asarray(x)
    lengths = np.linalg.norm(h, axis=1)[:, None] * np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(dist.logits, 3.0 * (h @ v.T) / lengths, rtol=1e-5)
    longer, _ = agent.head.distribution(learned, None, 10.0 * x)
    np.testing.assert_allclose(longer.logits, dist.logits, rtol=1e-5)
    assert np.isfinite(agent.head.distribution(learned, None, jnp.zeros((1, 16)))[0].logits).all()
    other = learned._replace(
        layer=learned.layer._replace(rows=learned.layer.rows * jnp.array([[1.0], [2], [0.5]]))
    )
    for params in (learned, other):
        layer = agent.head.action_layer(params, None)
        np.testing.assert_allclose(layer, v / np.linalg.norm(v, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.slow
def test_the_l2_term():
    """λ ‖g‖² of each row, and the mean of it in the loss: the projector shrinks where nothing else pulls."""
    agent = build("a2c+etf", etf={"bound": "l2", "l2": 0.5}, base={"entropy_coefficient": 0.0})
    state, made = begin(agent), rollout()
    views = agent.apply_networks(state.part_states, state.networks, made.observation)
    np.testing.assert_allclose(views.penalty, 0.5 * np.square(views.dist.features).sum(-1), rtol=1e-5)
    still = made._replace(reward=0.0 * made.reward, terminated=made.terminated | True)
    where = lambda n: (n.critic[1].weight, n.head.projector.weight)  # noqa: E731
    large = 100.0 * state.networks.head.projector.weight
    flat = eqx.tree_at(where, state.networks, (jnp.zeros((1, 16)), large))
    after, _ = compiled(agent)(state._replace(networks=flat), still, 0.0, jax.random.key(1))
    lengths = [jnp.linalg.norm(n.head.projector.weight) for n in (flat, after.networks)]
    assert lengths[1] < lengths[0]
    bare = build("a2c+etf")
    assert bare.apply_networks(state.part_states, state.networks, made.observation).penalty is None


@pytest.mark.parametrize(
    ("recipe", "settings", "spec", "sentence"),
    [
        (
            "ppo+etf",
            {"etf": {"width": 1}},
            DISCRETE,
            "etf needs at least 2 features for 3 actions, and there are 1",
        ),
        (
            "ppo+etf",
            {"etf": {"projector": "none"}, "base": {"actor_hidden": (16, 1)}},
            DISCRETE,
            "raise base.actor_hidden",
        ),
        ("ppo+fixed_orthogonal", {"fixed_orthogonal": {"width": 2}}, DISCRETE, "at least 3 features"),
        ("trpo+etf", {}, Spec(4, 2), "etf needs discrete actions"),
        ("ppo+cosine", {}, Spec(4, 2), "cosine needs discrete actions"),
    ],
)
def test_tasks_that_do_not_fit(recipe, settings, spec, sentence):
    with pytest.raises(UsageError, match=sentence):
        agents.build(recipe, settings).on(spec)


@pytest.mark.slow
def test_the_learnable_head_takes_the_same_branch():
    """The control of every comparison: one more linear layer and a ball, but a layer that learns."""
    agent = build("ppo", learnable={"projector": "linear", "bound": "ball"})
    head = begin(agent).networks.head
    assert head.projector.weight.shape == (16, 16)
    assert head.layer.weight.shape == (K, 16)
    far = dataclasses.replace(agent, head=dataclasses.replace(agent.head, feature_energy=1e-4))
    dist, _ = far.head.distribution(head, None, jnp.ones((1, 16)))
    np.testing.assert_allclose(jnp.linalg.norm(dist.features), 0.01, rtol=1e-4)
