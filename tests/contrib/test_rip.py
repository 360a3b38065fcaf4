"""RIP: the implicit policy, its target, the discriminator and the loss, by numbers computed apart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import build as small_agent
from small import same
from test_offline import BATCH, CLOCK, datasets, write  # noqa: F401  (a fixture)
from test_offline import episodes as random_episodes
from test_savo import flat_batch, functions, make, state_of

from qscape.agents import build
from qscape.cli import main
from qscape.contrib.rip import RIP, cross_entropy, logits
from qscape.errors import UsageError
from qscape.nets import MLP
from qscape.nets.heads import Point
from qscape.offpolicy.sockets import PartState
from qscape.ops.td import huber_loss
from qscape.replay.storage import Rows
from qscape.types import Event, Spec

KEY, NO = jax.random.key(0), jnp.array(False)
OBS = jax.random.normal(jax.random.key(3), (6, 5))


def at_update(context, update: int):
    """The context of another update."""
    return context._replace(event=Event(jnp.asarray(update), jnp.asarray(0), NO, NO))


# --- the implicit policy --------------------------------------------------------------------------------


def test_the_noise_has_half_the_observation_s_length_and_is_bounded():
    assert [build("td3+implicit").selector.length(Spec(n, 1)) for n in (1, 4, 17, 99)] == [0, 2, 8, 10]
    agent = make("td3+implicit", noise_clip=0.5)
    state = state_of(agent)
    inputs = state.actor.torso.layers[0].weight.shape[1]
    assert inputs == 5 + 2
    seen = []

    def network(noise):
        seen.append(noise)
        return Point(noise, noise)

    policy = functions(agent, state).policy
    dist = policy(OBS)
    type(dist)(network, (4000, 2), 0.5).sample(KEY)
    drawn = np.asarray(seen[0])
    assert np.abs(drawn).max() == 0.5
    assert abs((np.abs(drawn) == 0.5).mean() - 0.617) < 0.02  # P(|ε| > 0.5)
    a, b = (np.asarray(dist.sample(jax.random.key(k))[0]) for k in range(2))
    assert np.abs(a - b).min() > 1e-6
    with pytest.raises(TypeError, match="no density"):
        dist.log_prob(OBS)


def test_without_noise_it_is_a_deterministic_actor():
    agent = make("td3+implicit", noise_size=0, target_samples=1, least_weight=1.0)
    state = state_of(agent)
    context = functions(agent, state)
    plain = functions(small_agent("td3", 16), state)  # the same layers
    wanted = plain.policy(OBS).mode()
    np.testing.assert_array_equal(context.policy(OBS).mode(), wanted)
    np.testing.assert_array_equal(context.policy(OBS).sample(KEY)[0], wanted)
    value = agent.selector.next_value(PartState(), context, OBS, KEY)
    target = plain.policy_target(OBS).mode()
    np.testing.assert_allclose(value, jnp.stack(plain.q_target(OBS, target)).min(0), rtol=1e-5)


def test_the_value_of_the_next_state_mixes_the_twins_and_drops_what_is_too_large():
    agent = make("td3+implicit", target_samples=4)
    twins = lambda obs, action: [0 * action[..., 0] + x for x in (1.0, 3.0)]  # noqa: E731
    context = functions(agent)._replace(q_target=twins)
    value = lambda part: part.next_value(PartState(), context, OBS, KEY)  # noqa: E731
    np.testing.assert_allclose(value(agent.selector), 1.5)  # 0.75 · 1 + 0.25 · 3
    np.testing.assert_allclose(value(make("td3+implicit", value_limit=1.5).selector), 0.0)


@pytest.mark.parametrize("sees", [False, True])
def test_all_perturbed_states_but_the_first_carry_noise(sees):
    settings = {"state_noise": 0.1, "state_noise_clip": 0.15, "critics_see_noise": sees}
    agent, rows = make("td3+implicit", target_samples=2000, **settings), []
    obs = jnp.zeros((1, 5))

    def policy(obs):
        rows.append(obs)
        return Point(obs, jnp.zeros((*obs.shape[:-1], 3)))

    def q(obs, action):
        rows.append(jnp.broadcast_to(obs, (*action.shape[:-1], 5)))
        return [action[..., 0]]

    context = functions(agent)._replace(policy_target=policy, q_target=q)
    agent.selector.next_value(PartState(), context, obs, KEY)
    near, judged = map(np.asarray, rows)
    np.testing.assert_array_equal(judged, near if sees else np.zeros_like(near))
    np.testing.assert_array_equal(near[0], 0.0)
    drawn = np.clip(0.1 * np.random.default_rng(0).normal(size=100_000), -0.15, 0.15)
    assert near[1:].std() == pytest.approx(drawn.std(), rel=0.02)
    assert np.abs(near).max() == pytest.approx(0.15)


def test_an_evaluation_samples_or_takes_no_noise():
    first, keys = jnp.ones(6, bool), jax.random.split(KEY)
    for evaluation, equal in (("sample", False), ("zero", True)):
        agent = make("td3+implicit", evaluation=evaluation)
        state = state_of(agent)
        a, b = (agent.act(agent.acting(state), None, OBS, first, 0, key)[0] for key in keys)
        assert np.array_equal(a, b) is equal
        if equal:
            np.testing.assert_array_equal(a, functions(agent, state).policy(OBS).mode())


@pytest.mark.parametrize(
    ("recipe", "settings", "says"),
    [
        ("sac+implicit", {}, "write td3\\+implicit"),
        ("td3+implicit+bc", {}, "bc improves a mode only"),
        ("iql+implicit", {}, "iql and implicit both value the next state"),
        ("td3+implicit+value_clip", {}, "value_clip would not be used"),
        ("td3+implicit+c51", {}, "implicit values the next state by a number, and c51"),
        ("td3+implicit+crossq", {}, "implicit has no a'"),
        ("td3+implicit", {"base": {"target_noise": 0.2}}, "base.target_noise = 0 with implicit"),
    ],
)
def test_what_an_implicit_policy_is_refused_with(recipe, settings, says):
    with pytest.raises(UsageError, match=says):
        build(recipe, settings)


# --- the discriminator ------------------------------------------------------------------------------------


def numpy_logits(params: MLP, obs, action):
    """Layers by hand: leaky ReLU of slope 0.01, and arctanh of the action."""
    x = np.concatenate([obs, np.arctanh(action)], -1).astype(np.float64)
    for layer in (*params.torso.layers, params.out):
        x = x @ np.asarray(layer.weight, np.float64).T + np.asarray(layer.bias)
        x = x if layer is params.out else np.where(x > 0, x, 0.01 * x)
    return x[:, 0]


def numpy_cross_entropy(logit, label):
    probability = 1 / (1 + np.exp(-logit))
    return -(label * np.log(probability) + (1 - label) * np.log(1 - probability)).mean()


def test_the_discriminator_s_loss_and_the_policy_s():
    agent = make("td3+rip", least_label=1.0, imitation_updates=7)
    part, batch, drawn = (
        agent.policy_loss,
        flat_batch(0),
        np.float32(np.random.default_rng(1).normal(size=(8, 3))),
    )
    drawn = np.tanh(drawn)
    state = state_of(agent).part(part)._replace(extra=jnp.float32(2.0))
    obs, q = np.asarray(batch.observation), lambda obs, action: [action.sum(-1), 2.0 * action.sum(-1)]
    context = functions(agent)._replace(policy=lambda obs: Point(obs, jnp.asarray(drawn)), q=q)
    of_data = numpy_logits(state.params, obs, np.asarray(batch.action))
    of_policy = numpy_logits(state.params, obs, drawn)

    def least_q(action):
        return np.minimum(action.sum(-1), 2.0 * action.sum(-1))

    loss, *_ = part.learn(state.params, state, context, batch, KEY)
    wanted = 0.5 * (numpy_cross_entropy(of_data, 1.0) + numpy_cross_entropy(of_policy, 0.0))
    assert float(loss) == pytest.approx(wanted, rel=1e-5)
    smooth, *_ = RIP(least_label=0.8).learn(state.params, state, context, batch, KEY)
    label = np.asarray(jax.random.uniform(jax.random.split(KEY)[1], (8,), minval=0.8))
    wanted = 0.5 * (numpy_cross_entropy(of_data, label) + numpy_cross_entropy(of_policy, 0.0))
    assert float(smooth) == pytest.approx(wanted, rel=1e-5)
    assert 0.8 <= label.min() <= label.max() <= 1.0

    for update, weight in ((7, 0.0), (8, 10.0)):
        now = at_update(context, update)
        *_, average = part.learn(state.params, state, now, batch, KEY)
        least = np.abs(least_q(np.asarray(batch.action))).mean()
        assert float(average) == pytest.approx(2.0 + (0.005 * (least - 2.0) if weight else 0.0))
        loss, _ = part.loss(now.policy, q, None, state, now, batch, KEY)
        wanted = numpy_cross_entropy(of_policy, 1.0) - weight / 2.0 * least_q(drawn).mean()
        assert float(loss) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_the_best_discriminator_measures_the_jensen_shannon_divergence():
    """With D* = p / (p + q) the loss is log 2 − JS(p, q)."""
    p, q = np.array([6, 3, 1, 2]), np.array([1, 3, 6, 2])
    best = np.log(p / q)
    of_data, of_policy = jnp.repeat(best, p), jnp.repeat(best, q)
    loss = 0.5 * (cross_entropy(of_data, 1.0) + cross_entropy(of_policy, 0.0))
    p, q = p / p.sum(), q / q.sum()
    middle = 0.5 * (p + q)
    divergence = 0.5 * (p * np.log(p / middle)).sum() + 0.5 * (q * np.log(q / middle)).sum()
    assert float(loss) == pytest.approx(np.log(2) - divergence, rel=1e-6)


def test_actions_at_their_bounds_have_finite_logits():
    params = make("td3+rip").policy_loss.init(KEY, None, Spec(5, 3), build("td3").base, None).params
    assert np.isfinite(logits(params, OBS, jnp.ones((6, 3)))).all()


# --- the update -------------------------------------------------------------------------------------------


def filled(agent, obs, action, reward):
    """A replay that holds these transitions [N, ...]; each ends its episode."""
    layout = agent.layout(1)
    over, gone = jnp.ones((len(obs), 1), bool), jnp.zeros((len(obs), 1), bool)
    rows = Rows(
        *(jnp.asarray(x)[:, None] for x in (obs, action, reward)), over, gone, jnp.asarray(obs)[:, None], {}
    )

    def insert(carry, row):
        return agent.insert(layout, *carry, row, jnp.array([True])), None

    return jax.jit(lambda: jax.lax.scan(insert, agent.init_replay(layout), rows)[0])()


def make_learner(agent, obs, action, reward):
    """A function from a number of updates to the state after them; compiled once."""
    storage, replay = filled(agent, obs, action, reward)
    state = agent.init(KEY)

    def once(_, carry):
        return agent.update(agent.layout(1), carry[0], storage, carry[1], KEY)[:2]

    program = jax.jit(lambda updates: jax.lax.fori_loop(0, updates, once, (state, replay))[0])
    return lambda updates: program(jnp.int32(updates))


def bandit(number: int = 512):
    """One state, and actions near −0.6 and 0.6 of which the positive ones are rewarded."""
    rng = np.random.default_rng(0)
    action = np.clip(rng.choice([-0.6, 0.6], number) + 0.05 * rng.normal(size=number), -1, 1)
    action = np.float32(action[:, None])
    return np.zeros((number, 2), np.float32), action, np.float32(action[:, 0] > 0)


FAST = {"actor_learning_rate": 2e-3, "critic_learning_rate": 5e-3, "batch_size": 128, "replay_capacity": 512}
FAST |= {"actor_hidden": (32, 32), "critic_hidden": (32, 32)}


def small_rip(**rip):
    settings = {"learning_rate": 2e-3, "hidden": (32, 32)} | rip
    parts = {"implicit": {"noise_size": 1, "target_samples": 2}, "rip": settings}
    return build("rip", {"base": FAST} | parts).on(Spec(2, 1))


def drawn_actions(agent, state) -> np.ndarray:
    return np.asarray(functions(agent, state).policy(jnp.zeros((2000, 2))).sample(KEY)[0])[:, 0]


def test_the_critics_wait_for_the_imitation():
    agent = small_rip(imitation_updates=3)
    after = make_learner(agent, *bandit())
    before, after, later = after(0), after(3), after(4)
    assert same(before.critics, after.critics)
    for a, b in zip(
        jax.tree.leaves(before.critics_target), jax.tree.leaves(after.critics_target), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)  # Polyak's average of equal numbers rounds
    assert same(before.optimisers["critics"], after.optimisers["critics"])
    assert not same(before.actor, after.actor)
    assert after.part_states["rip"].extra == 1.0
    assert not same(before.critics, later.critics)


@pytest.mark.slow
def test_both_modes_are_imitated_and_then_the_better_one_is_taken():
    imitates = small_rip()
    state = make_learner(imitates, *bandit())(3000)
    drawn = drawn_actions(imitates, state)
    for mode in (-0.6, 0.6):
        assert (np.abs(drawn - mode) < 0.2).mean() > 0.25
    improves = small_rip(imitation_updates=500, initial_average=1.0)
    state = make_learner(improves, *bandit())(2500)
    drawn = drawn_actions(improves, state)
    assert (drawn > 0.3).mean() > 0.9


# --- the recipe -------------------------------------------------------------------------------------------


def test_the_recipe_has_the_settings_of_the_release():
    agent = build("rip")
    base = agent.base
    assert set(agent.parts) >= {"implicit", "rip"}
    assert (base.batch_size, base.actor_hidden, base.actor_activation) == (512, (400, 300), "leaky_relu")
    assert (base.critic_loss, base.huber_threshold, base.actor_objective) == ("huber", 500.0, "min")
    assert (base.policy_delay, base.discount, agent.target_update.rate) == (2, 0.99, 0.005)
    gradients = [jnp.array([1.0]), jnp.array([-1.0])]
    for name, rate in (("actor", 2e-4), ("rip.params", 2e-4), ("critics", 3e-4)):
        b1 = 0.9 if name == "critics" else 0.4
        wanted, mine = optax.adam(rate, b1=b1), agent.optimiser(name)
        at, here = wanted.init(gradients[0]), mine.init(gradients[0])
        for gradient in gradients:
            (a, at), (b, here) = wanted.update(gradient, at), mine.update(gradient, here)
            np.testing.assert_allclose(a, b, rtol=1e-4)


def test_huber_s_loss():
    """δ = 2: 0.5 · 1 + 2 · (3 − 1), summed over critics."""
    assert float(huber_loss(jnp.array([[1.0, -3.0]]), 2.0)) == pytest.approx(0.5 + 4.0)


@pytest.mark.slow
def test_rip_on_a_dataset_is_saved_resumed_and_not_exported(tmp_path, capsys):
    name, out = write("test/rip-v0", random_episodes()), tmp_path / "run"
    small = ["--base.actor-hidden", "8", "--base.critic-hidden", "8", "--base.batch-size", "8"]
    small += ["--implicit.target-samples", "3", "--rip.imitation-updates", "5", "--rip.hidden", "8"]
    argv = ["train", "rip", "--dataset", name, "--eval-every", "10", "--eval-episodes", "1", *small]
    assert main([*argv, "--steps", "20", "--out", str(out)]) == 0
    assert main(["resume", str(out / "0"), "--steps", "30"]) == 0
    capsys.readouterr()
    assert main(["export", str(out / "0"), "--onnx", str(tmp_path / "a.onnx"), "--episodes", "1"]) == 2
    assert "samples its actions" in capsys.readouterr().err
