"""How target critics together value the next state, and critics with dropout: REDQ, DroQ, BRO, FastSAC."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import build, same, start
from test_distributional import TWO, rule_of, transitions

from qscape import agents
from qscape.contrib import _dropout as dropout
from qscape.contrib.c51 import C51
from qscape.contrib.mean_target import MeanTarget
from qscape.contrib.own_target import OwnTarget
from qscape.contrib.redq import REDQ
from qscape.errors import UsageError
from qscape.methods.quantile import Quantile
from qscape.nets import Torso
from qscape.offpolicy.plain import MinTarget, ScalarValue
from qscape.offpolicy.sockets import PartState
from qscape.run.plan import part_notes
from qscape.types import Event

QS = jnp.array([[1.0, 2.0], [4.0, 3.0]])


# --- which critics learn from which ---------------------------------------------------------------------


def test_redq_with_all_critics_is_the_minimum():
    qs, key = jax.random.normal(jax.random.key(0), (50, 2)), jax.random.key(1)
    assert same(REDQ().value(PartState(), qs, key), MinTarget().value(PartState(), qs, key))
    assert same(REDQ().weights(PartState(), qs, key), MinTarget().weights(PartState(), qs, key))


def test_redq_draws_a_subset_for_the_whole_batch():
    qs = jnp.tile(jnp.arange(10.0), (3, 1))
    keys = jax.random.split(jax.random.key(0), 10_000)
    least = jax.jit(jax.vmap(lambda key: REDQ().value(PartState(), qs, key)))(keys)
    assert (least == least[:, :1]).all(), "every row has the same subset"
    # Critic 1 is the first here, and the least: it is in if it is the value.
    np.testing.assert_allclose((least[:, 0, 0] == 0.0).mean(), 0.2, atol=0.012)
    counts = np.bincount(np.asarray(least[:, 0, 0], int), minlength=10) / 10_000
    np.testing.assert_allclose(counts, (9 - np.arange(10)) / 45, atol=0.015)


def test_the_mean_target():
    assert MeanTarget().value(PartState(), QS, jax.random.key(0)).tolist() == [[1.5], [3.5]]
    batch, rule = transitions(0.0, discount=1.0), rule_of(MeanTarget())
    assert Quantile(quantiles=3).target(TWO, rule, None, batch)[0, 0].tolist() == [0.5, 2.5, 6.5]
    raw = jnp.log(jnp.array([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]) + 1e-30)
    mixture = C51(low=-1.0, high=1.0, atoms=3).target(raw, rule, None, batch)
    np.testing.assert_allclose(mixture.probabilities[0, 0], [0.5, 0.0, 0.5], atol=1e-6)


def test_own_targets():
    assert OwnTarget().value(PartState(), QS, jax.random.key(0)).tolist() == QS.tolist()
    rule = rule_of(OwnTarget())
    y = ScalarValue().target(
        QS[..., None], rule, jnp.array([0.0, 1.0]), transitions([1.0, 2.0], discount=0.5)
    )
    assert y.tolist() == [[1.5, 2.0], [4.5, 4.0]]
    same_rows = Quantile(quantiles=3).target(TWO, rule, None, transitions(0.0, discount=1.0))
    assert same_rows.tolist() == TWO.tolist()
    part, raw = C51(low=-1.0, high=1.0, atoms=3), jnp.log(jnp.array([[[0.8, 0.1, 0.1], [0.3, 0.4, 0.3]]]))
    own = part.target(raw, rule, None, transitions(0.0, discount=1.0))
    np.testing.assert_allclose(own.probabilities, jax.nn.softmax(raw), atol=1e-6)
    assert part.target_mean(own).shape == (1, 2)


@pytest.mark.parametrize("value", ["scalar", "c51", "hl_gauss", "quantile"])
@pytest.mark.parametrize("rule", ["mean_target", "own_target", "redq"])
def test_every_rule_fits_every_value(rule, value):
    recipe = f"sac+{rule}" + ("" if value == "scalar" else f"+{value}")
    agent = build(recipe, 8, policy_delay=1)
    rows, critics = 4, agent.base.critics

    def step(raw):
        batch = transitions(jnp.ones(rows))
        target = agent.value.target(raw, rule_of(agent.bootstrap), jnp.ones(rows), batch)
        mean = agent.value.target_mean(target)
        return mean, agent.value.loss(raw, target, agent.base)[0], agent.value.read(raw) - mean

    raw = jax.ShapeDtypeStruct((rows, critics, agent.value.outputs), jnp.float32)
    mean, loss, td_error = jax.eval_shape(step, raw)
    assert mean.shape == (rows, critics if rule == "own_target" else 1)
    assert (loss.shape, td_error.shape) == ((), (rows, critics))


def test_redq_overrides_and_refuses():
    base = agents.build("redq").base
    assert (base.critics, base.actor_objective) == (10, "mean")
    assert (base.updates_per_step, base.policy_delay) == (20, 20)
    with pytest.raises(UsageError, match="draw at most as many"):
        agents.build("redq", {"base": {"critics": 1}})
    assert part_notes(agents.build("redq")) == []
    told = "targets move at one update in 20, with the actor; polyak.when = always: at each one"
    assert part_notes(agents.build("td3+redq")) == [told]


def test_twenty_updates_move_targets_twenty_times_and_the_actor_once():
    run = start(build("redq", 8, critic_hidden=(8,), actor_hidden=(8,), critics=3))
    moves = {"actor": 0, "critics_target": 0, "part_states": 0}
    for _ in range(20):
        after = run.step()
        for name in moves:
            moves[name] += not same(getattr(run.state, name), getattr(after.state, name))
        run = after
    assert moves == {"actor": 1, "critics_target": 20, "part_states": 1}


# --- dropout --------------------------------------------------------------------------------------------


def test_kept_units_are_scaled():
    found = dropout.drop(jnp.ones((100, 100)), 0.01, jax.random.key(0))
    assert {round(float(x), 6) for x in jnp.unique(found)} == {0.0, 1.010101}
    np.testing.assert_allclose((found == 0).mean(), 0.01, atol=0.004)
    assert same(dropout.drop(found, 0.5, None), found)


def critic_and_rows(recipe: str, **settings):
    agent = build(recipe, 32, settings)
    critic = agent.nets.critic(jax.random.key(0))
    obs, action = jax.random.normal(jax.random.key(1), (16, 5)), jnp.zeros((16, 3))
    return critic, lambda key: critic(obs, action, [], key=key)


def test_forwards_with_two_keys_differ():
    critic, at = critic_and_rows("sac+droq", droq={"rate": 0.2})
    one, two = jax.random.split(jax.random.key(2))
    assert not same(at(one), at(two))
    assert not same(at(one), at(None))
    layers = critic.body.torso.plain
    assert (len(layers.layers), len(layers.norms)) == (2, 2)
    assert isinstance(critic_and_rows("sac+redq")[0].body.torso, Torso)


def test_a_layer_is_linear_dropout_norm_activation():
    plain = Torso(jax.random.key(0), (3, 4), "relu", normalise=True)
    torso = dropout.DropoutTorso(plain, 0.5)
    x, key = jnp.array([[1.0, -2.0, 0.5]]), jax.random.key(3)
    h = x @ plain.layers[0].weight.T + plain.layers[0].bias
    h = dropout.drop(h, 0.5, jax.random.split(key, 1)[0])
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(torso(x, None, key), jnp.maximum(h, 0.0), rtol=1e-5)


@pytest.mark.parametrize(("recipe", "others"), [("sac+droq", False), ("sac+droq+pave", True)])
def test_who_sees_dropout(monkeypatch, recipe, others):
    """Both critics' two layers in the target, in the loss and where the actor climbs; nobody else."""
    seen, drop = [], dropout.drop

    def watch(x, rate, key):
        seen.append(key)
        return drop(x, rate, key)

    monkeypatch.setattr(dropout, "drop", watch)
    agent = build(recipe, 8, policy_delay=1)
    run = start(agent)
    jax.eval_shape(run.program, run.state, run.storage, run.replay_state, run.key)
    assert sum(key is not None for key in seen) == 2 * 2 * 3
    assert any(key is None for key in seen) == others
    seen.clear()
    numbers, no = (jnp.zeros((), jnp.int32),) * 2, (jnp.array(False),) * 2
    context = agent.functions(run.state, Event(*numbers, *no))
    jax.eval_shape(context.q, jnp.zeros((2, 5)), jnp.zeros((2, 3)))
    jax.eval_shape(context.q_target, jnp.zeros((2, 5)), jnp.zeros((2, 3)))
    assert seen == [None] * 8
