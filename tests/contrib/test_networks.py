"""Networks of 2024 to 2026 against numbers computed apart from the code, and their place in an agent."""

import dataclasses
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_except
from small import S, build, start

from qscape import agents
from qscape.agents import EXPANSIONS
from qscape.contrib import _residual as residual
from qscape.errors import UsageError
from qscape.nets.batch_norm import BatchNorm, Statistics, is_statistics, split_statistics
from qscape.nets.heads import Point
from qscape.nets.layers import LayerNorm, UnitLinear, project
from qscape.offpolicy import update
from qscape.offpolicy.sockets import PartState, Regulariser
from qscape.ops.gaussian import LOG_STD_BOUNDS
from qscape.ops.running import Moments, add_batch, add_row, init_moments
from qscape.run.plan import part_notes
from qscape.types import Batch, Event, Spec

KEY = jax.random.key(0)
CHEETAH = Spec(17, 6)
BATCH_NORMALISED = ("crossq", "crossq_wn", "xqc")
NETWORKS = ("simba", "simbav2", "bronet", *BATCH_NORMALISED)


def close(found, expected, rtol=2e-5, atol=2e-6):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=rtol, atol=atol)


def parameters(net):
    return sum(x.size for x in jax.tree.leaves(split_statistics(net)[0]))


def unit_layers(net):
    found = jax.tree.leaves(net, is_leaf=lambda x: isinstance(x, UnitLinear))
    return [x for x in found if isinstance(x, UnitLinear)]


def lengths(net):
    return np.concatenate([np.linalg.norm(layer.weight, axis=1) for layer in unit_layers(net)])


# --- sizes of the papers, at 17 observations and 6 actions ---------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "critic", "actor"),
    [
        ("sac+crossq", 4_255_791, 74_542),
        ("sac+crossq_wn", 277_551, None),
        ("sac+simba", 4_215_297, 136_076),
        ("sac+simbav2+c51", 4_526_693, 168_716),
        ("sac+xqc+c51", 854_163, 206_126),
        ("sac+bronet+quantile", 1_119_332, None),
    ],
)
def test_parameters_are_as_many_as_in_the_papers(recipe, critic, actor):
    more = {"quantile": {"quantiles": 100}} if "quantile" in recipe else {}
    nets = agents.build(recipe, more).on(CHEETAH).nets
    assert parameters(jax.eval_shape(nets.critic, KEY)) == critic
    if actor is not None:
        assert parameters(jax.eval_shape(nets.actor, KEY)) == actor


# --- batch normalisation (section 1, checks 2 to 5 and 7) ------------------------------------------------

COLUMN = jnp.array([[1.0], [2.0], [3.0], [4.0]])


def seen(norm, mean, variance, batches):
    new = Statistics(jnp.array([mean]), jnp.array([variance]), jnp.array(batches))
    return eqx.tree_at(lambda m: m.statistics, norm, new)


def test_a_batch_is_normalised_by_itself_and_then_by_what_was_seen():
    y, norm = BatchNorm(1).train(COLUMN)
    close(y[:, 0], [-1.341104, -0.447035, 0.447035, 1.341104])
    close(norm.statistics.mean, [0.025])
    close(norm.statistics.variance, [1.0025])
    assert int(norm.statistics.batches) == 1
    close(norm(COLUMN)[:, 0], [0.973298, 1.971553, 2.969807, 3.968062])


def test_a_spread_far_from_zero_is_not_lost():
    column = 1e5 + 10.0 * COLUMN
    y, norm = BatchNorm(1).train(column)
    close(norm.statistics.variance, [0.99 + 0.01 * np.var(np.asarray(column, np.float64))])
    close(y[:, 0], [-1.341637, -0.447212, 0.447212, 1.341637], rtol=1e-4)


def test_halves_of_a_joint_batch_are_normalised_together():
    halves = jnp.array([[0.0], [2.0]]), jnp.array([[4.0], [6.0]])
    together, _ = BatchNorm(1).train(jnp.concatenate(halves))
    close(together[:, 0], [-1.341507, -0.447169, 0.447169, 1.341507])
    for half in halves:
        close(BatchNorm(1).train(half)[0][:, 0], [-0.9995, 0.9995], atol=1e-5)


@pytest.mark.parametrize(
    ("mean", "variance", "y"),
    [
        (2.0, 4.0, [-0.500175, -0.000100, 0.499975, 1.000050]),
        (-4.0, 0.04, [0.971586, 3.645260, 6.318933, 8.992607]),  # both corrections meet their bounds
    ],
)
def test_batch_renormalisation_after_its_start(mean, variance, y):
    norm = seen(BatchNorm(1, renorm_after=100), mean, variance, 100)
    close(norm.train(COLUMN)[0][:, 0], y)
    plain = seen(BatchNorm(1, renorm_after=100), mean, variance, 99)
    close(plain.train(COLUMN)[0], BatchNorm(1).train(COLUMN)[0])


def test_the_sum_over_a_batch_has_no_gradient_in_training_and_one_in_evaluation():
    norm = BatchNorm(1)
    in_training = jax.grad(lambda x: norm.train(x)[0].sum())(COLUMN)
    close(in_training, np.zeros((4, 1)), atol=1e-5)
    close(jax.grad(lambda x: norm(x).sum())(COLUMN), np.full((4, 1), 0.9995), rtol=1e-5)


# --- residual networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "norms"), [("sac+simba", 3), ("sac+bronet", 5)])
def test_layer_norms_have_the_epsilon_of_flax(recipe, norms):
    torso = build(recipe, 16).nets.critic(KEY).body.torso
    leaves = jax.tree.leaves(torso, is_leaf=lambda x: isinstance(x, LayerNorm))
    found = [x for x in leaves if isinstance(x, LayerNorm)]
    assert len(found) == norms
    for norm in found:
        close(norm(jnp.zeros(16).at[15].set(0.004))[-1], 0.00375 / (9.375e-7 + 1e-6) ** 0.5)


def test_a_simba_block_with_a_zero_layer_is_the_identity():
    block = residual.SimbaBlock(KEY, 8, "relu")
    block = eqx.tree_at(lambda b: b.down.weight, block, jnp.zeros((8, 32)))
    x = jax.random.normal(KEY, (3, 8))
    np.testing.assert_array_equal(block(x), x)


def test_the_sphere():
    shifted = residual.to_sphere(jnp.array([[3.0, 0, 4, 3], [0, 0, 0, 3]]))
    close(shifted, [[0.514496, 0, 0.685994, 0.514496], [0, 0, 0, 1]])
    h, m = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    close(residual.to_sphere(h + (m - h) / 3), [0.894427, 0.447214])
    assert np.isfinite(jax.grad(lambda x: residual.to_sphere(x).sum())(jnp.zeros(3))).all()


@pytest.mark.parametrize(
    ("width", "blocks", "embed", "inner", "step"),
    [(512, 2, 0.0625, 0.03125, 1 / 3), (128, 1, 0.125, 0.0625, 1 / 2)],
)
def test_scalers_start_as_the_paper_says(width, blocks, embed, inner, step):
    torso = residual.SphereTorso(KEY, 4, (width,) * blocks, "relu")
    one = jnp.ones(width)
    close(torso.scaler(one), np.full(width, embed))
    close(torso.blocks[0].scaler(jnp.ones(4 * width)), np.full(4 * width, inner))
    close(torso.blocks[0].step(one), np.full(width, step))
    close(torso.blocks[0].step.parameter, np.full(width, width**-0.5))


def test_projection_divides_rows_by_their_lengths():
    layer = UnitLinear(jnp.array([[3.0, 4.0], [1.0, 0.0]]), jnp.array([12.0, 0.0]))
    close(project(layer).weight, [[0.6, 0.8], [1.0, 0.0]])
    close(project([layer])[0].bias, [12.0, 0.0])


def test_a_block_of_xqc_does_not_depend_on_the_size_of_its_weights():
    nets = build("sac+xqc", 16).on(Spec(3, 1)).nets
    torso = nets.critic(KEY).body.torso
    big = eqx.tree_at(lambda t: t.layers[1].weight, torso, replace_fn=lambda w: 10 * w)
    x = jax.random.normal(KEY, (64, 4))
    close(big.train(x)[0], torso.train(x)[0], rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("recipe", "layer", "variance"),
    [
        ("sac+crossq", lambda torso: torso.layers[0], 1.0),  # LeCun
        ("sac+simba", lambda torso: torso.blocks[0].up, 2.0),  # He
    ],
)
def test_weights_start_normal_and_cut_at_two_deviations(recipe, layer, variance):
    """As Flax draws them: the cut makes the deviation .8796 times smaller, which is made good before."""
    weight = layer(agents.build(recipe).on(CHEETAH).nets.critic(KEY).body.torso).weight
    close(weight.var() * weight.shape[1], variance, rtol=0.01)
    assert 2.25 < np.abs(weight).max() / weight.std() < 2.29
    np.testing.assert_array_equal(layer(build(recipe).nets.critic(KEY).body.torso).bias, 0.0)


@pytest.mark.parametrize(
    ("recipe", "mean", "log_std"), [("sac+simba", 1.0, 1.0), ("sac+bronet", 2**0.5, 1.0)]
)
def test_output_layers_start_orthogonal(recipe, mean, log_std):
    nets = agents.build(recipe).on(CHEETAH).nets
    head = nets.actor(KEY).head
    for layer, gain in ((head.mean, mean), (head.log_std, log_std), (nets.critic(KEY).body.out, mean)):
        rows = layer.weight @ layer.weight.T
        close(rows, gain**2 * np.eye(len(rows)), atol=1e-5)
        np.testing.assert_array_equal(layer.bias, 0.0)


# --- in an agent ------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["sac+simbav2+c51", "sac+xqc+c51", "sac+crossq_wn", "td7+simbav2"])
def test_weight_vectors_have_length_one_at_the_start_and_after_every_update(recipe):
    run = start(build(recipe, 16))
    trees = [run.state.actor, run.state.critics]
    for _ in range(3):
        run = run.step()
        trees += [run.state.actor, run.state.critics]
    assert len(lengths(trees[0])) > 16
    for tree in trees:
        close(lengths(tree), 1.0, rtol=1e-6)


def statistics(tree):
    return [x for x in jax.tree.leaves(tree, is_leaf=is_statistics) if is_statistics(x)]


def batches(tree):
    return [int(x.batches) for x in statistics(tree)]


@pytest.mark.parametrize(
    ("recipe", "actor"),
    [
        ("sac+crossq", 2),
        ("td3+crossq", 2),
        ("td7+crossq", 2),
        ("sac+xqc+c51", 6),
        ("sac+crossq+pave", 2),
        ("td3+crossq+savo", 2),
    ],
)
def test_statistics_move_with_the_step_of_their_network_alone(recipe, actor):
    """Six updates, of which the third and the sixth move the actor. Acting and regularisers move nothing."""
    run = start(build(recipe, 16))
    for _ in range(6):
        run = run.step()
    assert set(batches(run.state.critics)) == {6}
    assert set(batches(run.state.actor)) == {actor}


@pytest.mark.parametrize("recipe", ["td3+crossq", "td3+crossq_wn", "td3+xqc"])
def test_critics_and_their_targets_are_normalised_by_the_rows_of_both_states(recipe):
    """Targets and TD errors of one step equal those of `train` on the 2B rows (s, a) and (s', a')."""
    run = start(build(recipe, 8, target_noise=0.0, exploration_noise=0.0))
    agent, rng = run.agent, np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(8, S)), rng.normal(2.0, size=(8, S))
    action = rng.uniform(-1, 1, (8, 3))
    reward, terminated = rng.normal(size=8), np.arange(8) == 3
    columns = map(jnp.float32, (obs, action, reward, terminated, next_obs))
    batch, state = Batch(*columns, discount=0.9), run.state
    if state.critics_target:  # other weights than those of the critics
        other = agent.init(jax.random.key(5)).critics
        state = state._replace(critics_target=other)
    now = jnp.asarray(1), jnp.asarray(0), jnp.array(True), jnp.array(False)
    stage = update.Stage(agent, batch, Event(*now), KEY)
    after, y, td_error = update._step_critics(stage, state)[:3]

    following = agent.functions(state, stage.event).policy(batch.next_observation).mode()
    rows = [jnp.concatenate(x) for x in ((batch.observation, batch.next_observation), (action, following))]
    online = [critic.train(*rows, [])[0][:8, 0] for critic in state.critics]
    valued = [critic.train(*rows, [])[0][8:, 0] for critic in state.critics_target or state.critics]
    expected = reward + 0.9 * (1 - terminated) * np.min(valued, 0)
    close(y[:, 0], expected, rtol=1e-4, atol=1e-5)
    close(td_error, np.stack(online, 1) - expected[:, None], rtol=1e-4, atol=1e-5)
    assert set(batches(after.critics)) == {1}
    assert set(batches(after.critics_target)) <= {0}, "until the targets follow"


@pytest.mark.slow
def test_xqc_s_actor_steps_at_the_first_update_and_then_at_each_third():
    """Its temperature with it; its statistics move at all ten updates."""
    run = start(build("sac+xqc", 16, policy_phase=EXPANSIONS["xqc"].settings["base"]["policy_phase"]))
    steps = []
    for number in range(1, 11):
        before, run = run.state, run.step()
        of = (split_statistics(state.actor)[0].head.mean.weight for state in (before, run.state))
        alpha = (state.part_states["soft"].actor_params for state in (before, run.state))
        moved = [not np.array_equal(*pair) for pair in (of, alpha)]
        steps += [number] * all(moved)
        assert all(moved) == any(moved)
    assert steps == [1, 4, 7, 10]
    assert set(batches(run.state.actor)) == {10}


def contexts_of(agent, state):
    """The networks as everybody sees them, and as the actors' own loss does."""
    event = Event(jnp.asarray(1), jnp.asarray(0), jnp.array(True), jnp.array(False))
    return [agent.functions(state, event, trains_actors) for trains_actors in (False, True)]


def random_batch():
    rng = np.random.default_rng(0)
    columns = rng.normal(3.0, size=(64, S)), rng.uniform(-1, 1, (64, 3)), np.zeros(64), np.zeros(64)
    return Batch(*map(jnp.float32, columns), jnp.float32(rng.normal(size=(64, S))), discount=0.9)


def test_savo_s_later_actors_improve_on_the_proposals_that_they_see_when_they_act():
    """Only the actor that improves is normalised by the batch, not the proposals before it."""
    agent, batch = build("td3+crossq+savo", 16), random_batch()
    savo, state = agent.selector, agent.init(KEY)
    seen, training = (
        savo.actor_objectives(state.actor, state.part(savo), context, batch)
        for context in contexts_of(agent, state)
    )
    obs, action = batch.observation, batch.action
    for number, ((policy, q), (other, other_q)) in enumerate(zip(seen, training, strict=True)):
        apart = np.abs(policy(obs).mode() - other(obs).mode()).max()
        assert apart > 0.01 if number == 0 else apart == 0
        np.testing.assert_array_equal(np.stack(q(obs, action)), np.stack(other_q(obs, action)))


@dataclasses.dataclass(frozen=True)
class Onlooker(Regulariser):
    """Adds nothing, and tells in a metric what the networks that it sees compute."""

    name: ClassVar[str] = "onlooker"

    def actor(self, actor_params, state, context, batch, key):
        return jnp.zeros(()), {"seen_actions": context.policy(batch.observation).mode()}

    def critic(self, state, context, batch, key):
        return jnp.zeros(()), {"seen_values": jnp.stack(context.q(batch.observation, batch.action))}


def test_regularisers_see_running_statistics():
    """PAVE, CAPS and others: no batch normalises what they compute."""
    agent, batch = build("td3+crossq", 16), random_batch()
    state = agent.init(KEY)
    settled, training = contexts_of(agent, state)
    agent = dataclasses.replace(agent, regularisers=(Onlooker(),))
    stage = update.Stage(agent, batch, settled.event, KEY)
    metrics = update._step_critics(stage, state)[3]
    metrics |= update._actor_loss(stage, state, state.actor, {})[1]
    obs = batch.observation
    close(metrics["seen_actions"], settled.policy(obs).mode())
    close(metrics["seen_values"], jnp.stack(settled.q(obs, batch.action)))
    assert np.abs(metrics["seen_actions"] - training.policy(obs).mode()).max() > 0.01


def test_slow_copies_have_the_actor_s_statistics():
    run = start(build("sac+crossq+asap", 8, policy_delay=1)).step().step()
    slow = run.state.part_states["asap"].extra.actor
    assert batches(slow) == batches(run.state.actor) == [2, 2, 2]
    moved, own = (split_statistics(x)[0].torso.layers[0].weight for x in (slow, run.state.actor))
    assert not np.array_equal(moved, own)


def test_statistics_move_also_where_the_critics_wait():
    run = start(build("sac+crossq+rip", 8))
    weight = run.state.critics[0].body.torso.layers[0].weight
    run = run.step()
    np.testing.assert_array_equal(run.state.critics[0].body.torso.layers[0].weight, weight)
    assert set(batches(run.state.critics)) == {1}


def test_crossq_has_no_target_critics_and_crossq_wn_has():
    assert start(build("sac+crossq", 16)).state.critics_target == []
    assert len(start(build("sac+crossq_wn", 16)).state.critics_target) == 2


def test_targets_that_wait_for_an_actor_that_is_not_there_are_said():
    """XQC delays the actor; the targets of Q-networks wait as long, unless told otherwise."""
    said = "targets move at one update in 3 (base.policy_delay); polyak.when = always: at each one"
    assert said in part_notes(build("dqn+polyak+xqc", 16))
    assert said not in part_notes(build("dqn+polyak+xqc", 16, {"polyak": {"when": "always"}}))
    assert part_notes(build("td3+cem", 16)) == part_notes(build("td3", 16))


@pytest.mark.parametrize(
    ("recipe", "parts", "said"),
    [
        ("sac+crossq", {}, False),
        ("td3+crossq+periodic", {}, True),
        ("td3+crossq+periodic", {"crossq": {"target_critics": True}}, False),
        ("sac+crossq_wn+periodic", {}, False),
    ],
)
def test_what_moves_no_targets_is_said(recipe, parts, said):
    notes = " ".join(part_notes(build(recipe, 16, parts)))
    assert "targets move at one update" not in notes
    assert ("crossq keeps no targets of actor and critics, so periodic moves none" in notes) == said


def test_the_rate_of_targets_does_nothing_without_them():
    """So it is neither searched nor accepted in silence."""
    assert {"polyak.rate", "polyak.when"} <= build("sac+crossq", 16).moot_fields().keys()
    for kept in (build("sac+crossq", 16, {"crossq": {"target_critics": True}}), build("sac+xqc", 16)):
        assert "polyak.rate" not in kept.moot_fields()


def test_target_critics_have_the_statistics_of_the_critics():
    run = start(build("sac+xqc", 16))
    for _ in range(3):
        run = run.step()
    for target, online in zip(
        statistics(run.state.critics_target), statistics(run.state.critics), strict=True
    ):
        np.testing.assert_array_equal(target.mean, online.mean)


@pytest.mark.parametrize("network", slow_except(["simba"], NETWORKS))
def test_networks_of_parts_are_plain(network):
    """SAVO's later actors and surrogates are multilayer perceptrons beside any network."""
    run = start(build(f"td3+{network}+savo+c51", 16))
    run = run.step()
    first, *later = run.state.actor
    assert type(first.torso).__name__ != "Torso"
    assert {type(one.net.torso).__name__ for one in later} == {"Torso"}
    surrogates = run.state.part_states["savo"].params
    assert {one.net.body.out.weight.shape[0] for one in surrogates} == {1}


@pytest.mark.parametrize(
    ("recipe", "settings", "says"),
    [
        ("iql+crossq", {}, "crossq trains critics on .* iql has no a'"),
        ("iql+c51", {}, "iql values the next state by a number, and c51 learns from a distribution"),
        ("sac+crossq", {"base": {"batch_size": 1}}, "base.batch_size is 1; take at least 2"),
        ("sac+simba", {"base": {"critic_hidden": (64, 32)}}, "blocks of simba all have one width"),
        ("sac+simba+crossq", {}, "simba and crossq both fill one place"),
        (
            "td7+crossq",
            {"sale": {"input_norm": "batch"}},
            "sale.input_norm = batch and crossq both normalise",
        ),
        ("td3+c51", {"c51": {"low": 5.0}}, "c51.low is 5.0; it must be below c51.high = 5.0"),
        ("td3+joint+simbav2", {}, "joint splits a linear output layer, which simbav2 has not"),
        ("td3+joint+xqc", {}, "joint splits a linear output layer, which xqc has not"),
        ("td3+joint+crossq_wn", {"crossq_wn": {"project_last": True}}, "which crossq_wn has not"),
        ("dqn+xqc", {"per_action": {"dueling": True}}, "per_action.dueling makes output layers of its own"),
        ("td3+c51", {"c51": {"high": math.inf}}, "c51.high is inf; the ends of the support are finite"),
        ("td3+hl_gauss", {"hl_gauss": {"low": -math.inf}}, "hl_gauss.low is -inf; the ends of the support"),
        ("sac+greedy_ac+crossq", {}, "greedy_ac trains a second policy, and crossq keeps"),
    ],
)
def test_combinations_without_sense_are_refused(recipe, settings, says):
    with pytest.raises(UsageError, match=says):
        agents.build(recipe, settings)


@pytest.mark.parametrize("recipe", ["td3+joint+xqc", "td3+joint+crossq_wn"])
def test_joint_splits_free_output_layers(recipe):
    agent = agents.build(recipe, {recipe.split("+")[-1]: {"project_last": False}}).on(Spec(3, 1))
    agent.init(jax.random.key(0))


def test_a_note_where_blocks_leave_the_start_of_the_output_out():
    agent = agents.build("td3+simba", {"base": {"actor_output_std": 0.01}})
    assert "simba makes layers of its own, without base.actor_output_std" in agent.network.notes(agent)


def test_a_note_where_normalise_is_redundant():
    agent = build("sac+crossq+normalise", 16)
    assert any("redundant" in note for note in agent.network.notes(agent))


def test_simba_s_moments_and_bound_of_log_std():
    """Section 2, checks 2 and 4: moments of 1, 3, 2 after a start that counts 1e-4, and the tanh bound."""
    moments = init_moments(1)
    for x in (1.0, 3.0, 2.0):
        moments = add_row(moments, jnp.array([x]))
    close(moments.mean, [1.999933])
    close(moments.var, [0.666811])
    close(LOG_STD_BOUNDS["tanh"](jnp.array([0.0, 1.0]), -10.0, 2.0), [-4.0, 0.569565])


@pytest.mark.parametrize("add", [add_row, lambda m, x: add_batch(m, x[None])], ids=["row", "batch"])
def test_moments_stay_right_beyond_what_float32_counts(add):
    """Beyond 2²⁴ rows float32 does not count on: a variance of 9 would be above 10 after 2,000,000 more."""
    rows = 5.0 + 3.0 * jax.random.normal(jax.random.key(0), (1_000_000, 1))
    run = jax.jit(lambda m: jax.lax.scan(lambda m, x: (add(m, x), None), m, rows)[0])
    moments = run(run(Moments(jnp.full(1, 5.0), jnp.full(1, 9.0), jnp.array(2.0**24))))
    close(moments.mean, [5.0], rtol=0.01)
    close(moments.var, [9.0], rtol=0.05)


def test_simba_adds_epsilon_to_the_variance():
    """At x = deviation = 1e-4, x / √(1e-8 + 1e-8) is 0.7071; elsewhere x / (1e-4 + 1e-8) is 0.9999."""
    seen = Moments(jnp.zeros(1), jnp.full(1, 1e-8), jnp.array(1e6))
    for recipe, wanted in (("simba", 0.70711), ("simbav2", 0.70711), ("sac+normalise", 0.99990)):
        part = agents.build(recipe).normaliser
        assert part.apply(PartState(extra=seen), jnp.array([[1e-4]])).item() == pytest.approx(
            wanted, abs=1e-5
        )


def test_simba_s_ddpg_climbs_q_at_noisy_actions():
    agent = build("td3", parts={"dpg": {"noise": 0.8}})
    key, obs = jax.random.key(4), jax.random.normal(KEY, (40, S))
    action = jnp.linspace(-1, 1, 40 * 3).reshape(40, 3)
    state = agent.init(KEY)
    context = agent.functions(state, Event(jnp.zeros(()), jnp.zeros(()), jnp.array(False), jnp.array(False)))
    batch = Batch(obs, action, obs[:, 0], obs[:, 0], obs, 0.99, {})
    policy = lambda obs: Point(obs, action)  # noqa: E731
    q = lambda obs, action: [action.sum(-1)]  # noqa: E731
    loss, _ = agent.policy_loss.loss(policy, q, None, PartState(), context, batch, key)
    noise = np.asarray(jax.random.normal(jax.random.split(key)[1], action.shape))
    climbed = np.clip(np.asarray(action) + 0.8 * noise, -1, 1)
    assert (np.abs(climbed) == 1).mean() > 0.1
    np.testing.assert_allclose(loss, -climbed.sum(-1).mean(), rtol=1e-5)
