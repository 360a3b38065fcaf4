"""Adam and the plain options of off-policy agents."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import same

from qscape import agents
from qscape.errors import UsageError
from qscape.jobs.ranges import find_ranges
from qscape.nets import ACTIVATIONS, Torso
from qscape.nets.batch_norm import BatchNorm, split_statistics
from qscape.nets.layers import LayerNorm, UnitLinear
from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import Soft
from qscape.ops.adam import make_adam
from qscape.run.plan import Plan, label, prepare
from qscape.types import Spec


@pytest.mark.parametrize("count", [0, 1, 9, 999, 100_000])
def test_bias_correction_is_exact_to_rounding(count):
    """Adam in float64, from moments of the same numbers: one step from `count` steps made."""
    optimiser, gradient = make_adam(1.0), 0.3
    state = optimiser.init(jnp.zeros(()))
    moments = state[0]._replace(count=jnp.int32(count), mu=jnp.float32(0.01), nu=jnp.float32(2e-4))
    step, _ = optimiser.update(jnp.float32(gradient), (moments, *state[1:]))
    mean = (0.9 * 0.01 + 0.1 * gradient) / (1 - 0.9 ** (count + 1))
    square = (0.999 * 2e-4 + 1e-3 * gradient**2) / (1 - 0.999 ** (count + 1))
    np.testing.assert_allclose(step, -mean / (np.sqrt(square) + 1e-8), rtol=5e-7)


def steps(optimiser, gradients, value=0.0):
    """The values of one parameter after each step, from `value`."""
    state, values = optimiser.init(jnp.float32(value)), [jnp.float32(value)]
    for gradient in gradients:
        step, state = optimiser.update(jnp.float32(gradient), state, values[-1])
        values.append(values[-1] + step)
    return np.array(values[1:])


def rates(number=5, *, delayed=False, start, **fields):
    """The learning rates of the first steps of an optimiser."""
    optimiser = Base(**fields).optimiser(start, delayed=delayed)
    return -np.diff(steps(optimiser, number * [1.0]), prepend=0.0)


@pytest.mark.parametrize(("b1", "then"), [(0.5, -0.000667), (0.9, -0.000947)])
def test_b1_of_actor_and_critics(b1, then):
    agent = agents.build("sac", {"base": {"adam_b1": b1, "actor_learning_rate": 1e-3}})
    np.testing.assert_allclose(steps(agent.optimiser("actor"), [1, -1]), [-0.001, then], atol=5e-7)
    temperature = steps(agent.optimiser("soft.actor_params"), [1, -1])
    np.testing.assert_allclose(temperature, [-3e-4, 0.3 * -0.000947], atol=5e-7)  # keeps b1 = 0.9


def test_decoupled_decay_is_a_factor_and_l2_is_normalised_away():
    base = {"critic_learning_rate": 1e-4, "critic_weight_decay": 0.01}
    for decay, expected in (("decoupled", 0.999999), ("l2", 0.9999)):
        agent = agents.build("td3", {"base": base | {"decay": decay}})
        (value,) = steps(agent.optimiser("critics"), [0], 1.0)
        np.testing.assert_allclose(value, expected, rtol=0, atol=6e-8)
    # The decay follows the schedule: factors 1 − η λ with η = 0.1, 0.05.
    fields = {"decay": "decoupled", "schedule": "linear", "rate_end": 0.0, "schedule_updates": 2}
    optimiser = Base(**fields).optimiser(0.1, 1.0)
    np.testing.assert_allclose(steps(optimiser, [0, 0, 0], 1.0), [0.9, 0.855, 0.855], rtol=1e-6)


@pytest.mark.parametrize("what", ["all", "weights"])
def test_decay_skips_unit_rows_and_running_statistics(what):
    unit = UnitLinear(jnp.eye(2), jnp.ones(2))
    nets = {"unit": unit, "linear": eqx.nn.Linear(2, 2, key=jax.random.key(0)), "norm": BatchNorm(2)}
    trained, statistics = split_statistics(nets)
    base = Base(decay="decoupled", decay_what=what)
    optimiser = base.optimiser(0.1, 1.0)
    nothing = jax.tree.map(jnp.zeros_like, trained)
    step, _ = optimiser.update(nothing, optimiser.init(trained), trained)
    after = eqx.combine(optax.apply_updates(trained, step), statistics)
    vectors = 0.9 if what == "all" else 1.0
    np.testing.assert_array_equal(after["unit"].weight, unit.weight)
    np.testing.assert_allclose(after["unit"].bias, vectors * unit.bias)
    np.testing.assert_allclose(after["linear"].weight, 0.9 * nets["linear"].weight, rtol=1e-6)
    np.testing.assert_allclose(after["linear"].bias, vectors * nets["linear"].bias, rtol=1e-6)
    np.testing.assert_allclose(after["norm"].scale, vectors * nets["norm"].scale)
    assert same(after["norm"].statistics, nets["norm"].statistics)


def test_learning_rates_follow_the_schedule():
    simbav2 = rates(start=1e-4, schedule="linear", rate_end=0.5, schedule_updates=4)
    np.testing.assert_allclose(simbav2, [1e-4, 8.75e-5, 7.5e-5, 6.25e-5, 5e-5], rtol=1e-4)
    linear = rates(start=3e-4, schedule="linear", rate_end=0.1, schedule_updates=4)
    np.testing.assert_allclose(linear[1], 2.325e-4, rtol=1e-5)
    cosine = rates(6, start=3e-4, schedule="cosine", rate_end=0.1, schedule_updates=4)
    expected = [3e-4, 2.604594e-4, 1.65e-4, 0.695406e-4, 3e-5, 3e-5]
    np.testing.assert_allclose(cosine, expected, rtol=2e-5)


def test_the_horizon_of_a_delayed_actor():
    """XQC: 12 updates stand for 2 million; the actor steps at every third."""
    fields = {"schedule": "linear", "rate_end": 0.1, "schedule_updates": 12, "policy_delay": 3}
    critics = rates(13, start=3e-4, **fields)
    np.testing.assert_allclose(critics[[0, 3, 6, 12]], [3e-4, 2.325e-4, 1.65e-4, 3e-5], rtol=1e-4)
    xqc = rates(start=3e-4, delayed=True, actor_horizon="updates", **fields)
    np.testing.assert_allclose(xqc[[0, 1, 2, 4]], [3e-4, 2.775e-4, 2.55e-4, 2.1e-4], rtol=1e-4)
    own = rates(start=3e-4, delayed=True, **fields)
    np.testing.assert_allclose(own[[0, 1, 2, 4]], [3e-4, 2.325e-4, 1.65e-4, 3e-5], rtol=1e-4)


def test_a_run_gives_the_schedule_its_length():
    asked = {"base": {"schedule": "linear", "updates_per_step": 2.0}}
    plan, agent, notes = prepare(Plan("sac", "Pendulum-v1", 60_000, settings=asked))
    assert agent.base.schedule_updates == 120_000 == plan.settings["base"]["schedule_updates"]
    assert "base.schedule_updates = 120000 updates, of a run of 60000" in notes
    assert agents.build(plan.recipe, plan.settings).base == agent.base  # as a resumed run is built
    alone = agents.build("sac", asked)
    with pytest.raises(UsageError, match=r"base.schedule is linear and nothing says how long the run is"):
        alone.on(Spec(3, 1)).init(jax.random.key(0))


def test_every_optimiser_follows_the_schedule():
    fields = {"schedule": "linear", "rate_end": 0.0, "schedule_updates": 2}
    agent = agents.build("sac+sale", {"base": fields})
    for name in ("actor", "critics", "soft.actor_params", "sale.params"):
        *_, third, fourth = steps(agent.optimiser(name), 4 * [1.0])
        assert third == fourth, name


# --- layers ------------------------------------------------------------------------------------------


def test_layer_norm():
    found = LayerNorm(4)(jnp.array([[1.0, 2.0, 3.0, 4.0]]))
    np.testing.assert_allclose(found, [[-1.341635, -0.447212, 0.447212, 1.341635]], atol=1e-6)
    torso = Torso(jax.random.key(0), (3, 4, 5), "relu", normalise=True)
    torso = eqx.tree_at(lambda m: m.norms[1].shift, torso, jnp.full(5, 2.0))
    given = x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    for layer, shift in zip(torso.layers, (0.0, 2.0), strict=True):
        h = x @ np.array(layer.weight).T + np.array(layer.bias)
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5) + shift
        x = np.maximum(h, 0)
    np.testing.assert_allclose(torso(given), x, atol=1e-5)


def test_xavier_s_weights_are_uniform_and_biases_zero():
    state = agents.build("redq").on(Spec(17, 7)).init(jax.random.key(0))
    hidden, out = state.critics[3].body.torso.layers[1], state.critics[3].body.out
    for layer, bound in ((hidden, (6 / 512) ** 0.5), (out, (6 / 257) ** 0.5)):
        assert bound * 0.97 < jnp.abs(layer.weight).max() <= bound
        np.testing.assert_allclose(layer.weight.std(), bound / 3**0.5, rtol=0.1)
        assert not layer.bias.any()


def test_networks_have_the_layers_of_the_base():
    sizes = {"actor_hidden": (32, 32), "critic_hidden": (64,)}
    base = {"critic_norm": "layer", "actor_norm": "none", "init": "orthogonal"} | sizes
    agent = agents.build("sac", {"base": base}).on(Spec(17, 7))
    state = agent.init(jax.random.key(0))
    hidden, out = state.critics[0].body.torso, state.critics[0].body.out
    assert isinstance(hidden, Torso)
    assert len(hidden.norms) == 1
    assert state.actor.torso.norms == ()
    square = state.actor.torso.layers[1].weight
    np.testing.assert_allclose(square.T @ square, 2 * np.eye(32), atol=1e-5)
    tall = hidden.layers[0].weight  # [64, 24]
    np.testing.assert_allclose(jnp.square(tall).sum(-1).mean(), 2 * 24 / 64, rtol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(out.weight), 1.0, rtol=1e-5)
    mean = state.actor.head.mean.weight
    np.testing.assert_allclose(mean @ mean.T, 1e-4 * np.eye(7), atol=1e-8)
    biases = (hidden.layers[0].bias, out.bias, state.actor.head.mean.bias, state.actor.head.log_std.bias)
    assert not any(bias.any() for bias in biases)


@pytest.mark.parametrize("recipe", ["sac+xqc", "sac+simba", "sac", "sac+droq"])
def test_networks_with_layers_of_their_own_say_so(recipe):
    _, _, notes = prepare(Plan(recipe, "Pendulum-v1", 60_000, settings={"base": {"actor_norm": "layer"}}))
    note = f"{recipe[4:]} makes layers of its own, without base.actor_norm"
    assert (note in notes) == (recipe in ("sac+xqc", "sac+simba"))


def test_new_activations():
    x = jnp.array([-1.0, 0.0, 1.0])
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), [-0.158808, 0.0, 0.841192], atol=1e-6)
    np.testing.assert_allclose(ACTIVATIONS["mish"](x), [-0.303401, 0.0, 0.865098], atol=1e-6)


def test_loss_of_the_temperature_by_alpha():
    """Its slope is α (H − H̄): 0.5 · (1 − (−3)) for A = 6 and a target of −A/2."""
    part = Soft(temperature_loss="alpha", entropy_per_action=-0.5)
    slope = jax.grad(lambda t: part.tuning(t, jnp.array([-1.5, -0.5]), Spec(1, 6))[0])(jnp.log(0.5))
    np.testing.assert_allclose(slope, 0.5 * (1.0 + 3.0), rtol=1e-6)


# --- the discount by the time limit ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "discount"), [(1000, 0.995), (500, 0.99), (50, 0.95), (5, 0.95), (200, 0.975)]
)
def test_the_discount_follows_the_time_limit(limit, discount):
    agent = agents.build("td3", {"base": {"discount_rule": "time_limit"}})
    bound = agent.on(Spec(3, 1, time_limit=limit))
    assert bound.base.discount == pytest.approx(discount)
    assert bound.sampling_options[1] == bound.base.discount
    again = bound.on(Spec(3, 1))  # an environment without a limit, to evaluate in
    assert again.base.discount == bound.base.discount


def test_a_discount_that_was_given_wins_over_the_rule_of_a_recipe():
    agent = agents.build("simbav2", {"base": {"discount": 0.9}})
    assert agent.on(Spec(3, 1, time_limit=200)).base.discount == 0.9
    assert label(agent) == "simbav2[base.discount=0.9,base.discount_rule=fixed]"
    both = {"base": {"discount": 0.9, "discount_rule": "time_limit"}}
    for recipe in ("simbav2", "td3"):
        with pytest.raises(UsageError, match=r"base.discount_rule time_limit, which replaces it"):
            agents.build(recipe, both)
    rule = {"base": {"discount_rule": "time_limit"}}  # wins over the discount of a preset
    made = prepare(Plan("sac", "Swimmer-v5", 60_000, settings=rule, preset="tuned"))[1]
    assert made.base.discount_rule == "time_limit"
    searched = [r.field for r in find_ranges(Plan("simbav2", "Pendulum-v1", 60_000))]
    assert "base.discount" not in searched
    assert "base.critic_learning_rate" in searched


def test_no_rule_without_a_time_limit():
    agent = agents.build("td3", {"base": {"discount_rule": "time_limit"}})
    with pytest.raises(UsageError, match="no known time limit: give it one"):
        agent.on(Spec(3, 1))
