"""LSFlow: the sphere, the flow, weights and targets, by numbers computed apart from the code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_probes import NETS, choices, learn, values
from test_savo import flat_batch, functions, make, state_of

from qscape.agents import build
from qscape.contrib import _sphere as sphere
from qscape.contrib import lsflow
from qscape.contrib.lsflow import FlowState, LSFlow, flow_target, integrate, time_features, trimmed_mean
from qscape.errors import UsageError
from qscape.types import Event, Spec

KEY, NO = jax.random.key(0), jnp.array(False)


def directions(*shape: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=shape)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def slerp(p: np.ndarray, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The point at a share t of the great circle from p to x, by sines."""
    angle = np.arccos((p * x).sum(-1, keepdims=True))
    return (np.sin((1 - t) * angle) * p + np.sin(t * angle) * x) / np.sin(angle)


# --- the sphere -----------------------------------------------------------------------------------------


def test_the_maps_of_the_sphere_are_each_other_s_inverses():
    with jax.enable_x64(True):
        p, x = directions(2, 100, 7)
        tangent = np.asarray(sphere.logarithm(jnp.asarray(p), jnp.asarray(x)))
        np.testing.assert_allclose((tangent * p).sum(-1), 0.0, atol=1e-12)
        np.testing.assert_allclose(sphere.exponential(jnp.asarray(p), jnp.asarray(tangent)), x, atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(tangent, axis=-1), np.arccos((p * x).sum(-1)), rtol=1e-12)
        p, x = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
        np.testing.assert_allclose(sphere.logarithm(p, x), [0.0, np.pi / 2], atol=1e-15)
        middle = sphere.exponential(p, 0.5 * sphere.logarithm(p, x))
        np.testing.assert_allclose(middle, [0.707107, 0.707107], atol=1e-6)
        np.testing.assert_allclose(sphere.exponential(p, jnp.zeros(2)), p)
        assert np.isfinite(sphere.logarithm(p, p)).all()


@pytest.mark.parametrize(("size", "cosine"), [(20, 0.777), (40, 0.651), (100, 0.472)])
def test_noise_on_the_sphere_is_as_wide_as_computed(size, cosine):
    point = jnp.asarray(directions(4000, size), jnp.float32)
    moved = sphere.perturb_direction(point, 28.0, KEY)
    np.testing.assert_allclose(jnp.linalg.norm(moved, axis=-1), 1.0, atol=1e-5)
    assert float((point * moved).sum(-1).mean()) == pytest.approx(cosine, abs=0.004)


# --- the flow -------------------------------------------------------------------------------------------


def test_the_velocity_of_a_great_circle():
    """z_t by sines; u* is tangent, points to the end, and is as long as the whole way at every t."""
    start, end = directions(2, 64, 4)
    t = np.linspace(0.1, 0.9, 64)
    with jax.enable_x64(True):
        z, u = (np.asarray(x) for x in flow_target(*map(jnp.asarray, (start, end, t))))
    np.testing.assert_allclose(z, slerp(start, end, t[:, None]), atol=1e-10)
    np.testing.assert_allclose((z * u).sum(-1), 0.0, atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(u, axis=-1), np.arccos((start * end).sum(-1)), rtol=1e-9)
    ahead = slerp(start, end, t[:, None] + 1e-6)
    np.testing.assert_allclose((ahead - z) / 1e-6, u, atol=1e-4)


def test_heun_s_steps():
    """Against steps by hand, and on a rotation, whose end is known."""
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    start = directions(5, 3)

    def along(z, v):
        length = np.linalg.norm(v, axis=-1, keepdims=True)
        moved = z * np.cos(length) + v / length * np.sin(length)
        return moved / np.linalg.norm(moved, axis=-1, keepdims=True)

    def by_hand(steps):
        z, dt = start, 1.0 / steps
        for i in range(steps):
            here = (1 + i * dt) * z @ turn.T
            there = (1 + (i + 1) * dt) * along(z, dt * here) @ turn.T
            z = along(z, dt * 0.5 * (here + there))
        return z

    with jax.enable_x64(True):
        flow = lambda z, t: (1.0 + t) * z @ jnp.asarray(turn).T  # noqa: E731
        for steps in (3, 36):
            np.testing.assert_allclose(integrate(flow, jnp.asarray(start), steps), by_hand(steps), atol=1e-12)
        end = np.asarray(integrate(flow, jnp.asarray(start), 2000))
    c, s = np.cos(1.5), np.sin(1.5)  # the angle is the integral of 1 + t
    turned = start @ np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]).T
    np.testing.assert_allclose(end, turned, atol=1e-3)


def test_the_features_of_time():
    t = np.float32([0.0, 0.1, 0.7, 1.0])
    angle = np.float64(t)[:, None] * np.pi * 2.0 ** np.arange(16)
    wanted = np.concatenate([np.sin(angle), np.cos(angle)], -1)
    np.testing.assert_allclose(time_features(jnp.asarray(t)), wanted, atol=1e-6)


def test_a_velocity_is_tangent_and_a_drawn_point_lies_on_the_sphere():
    agent = make("td3+lsflow", hidden=(16,), flow_steps=5)
    state, obs = state_of(agent).part(agent.selector), jax.random.normal(KEY, (6, 5))
    z = jnp.asarray(directions(3, 6, 4), jnp.float32)
    u = state.params(obs[None], z, jnp.float32(0.3))
    np.testing.assert_allclose((u * z).sum(-1), 0.0, atol=1e-5)
    points = agent.selector.draw(state.params, agent.task, obs, 3, KEY)
    assert points.shape == (3, 6, 4)
    np.testing.assert_allclose(jnp.linalg.norm(points, axis=-1), 1.0, atol=1e-5)


def test_the_flow_learns_a_point(monkeypatch):
    """With equal weights and one end, all drawn points come to lie there."""
    part = LSFlow(hidden=(32, 32), flow_steps=12, log_factor=-30.0)
    end = jnp.asarray(directions(3), jnp.float32)
    agent = make("td3+lsflow", spec=Spec(5, 2), hidden=(32, 32), flow_steps=12, log_factor=-30.0)
    context, batch = functions(agent), flat_batch(0, size=64, width=2)
    state = part.init(KEY, None, agent.task, agent.base, None)
    before = part.draw(state.params, agent.task, batch.observation, 8, KEY)
    monkeypatch.setattr(
        LSFlow, "draw", lambda self, flow, spec, obs, number, key: jnp.broadcast_to(end, (1, len(obs), 3))
    )
    optimiser = optax.adam(3e-3)

    def step(number, carry):
        params, moments = carry
        key = jax.random.fold_in(KEY, number)
        gradient = jax.grad(lambda p: part.learn(p, state, context, batch, key)[0])(params)
        updates, moments = optimiser.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    start = (state.params, optimiser.init(state.params))
    params, _ = jax.jit(lambda: jax.lax.fori_loop(0, 600, step, start))()
    monkeypatch.undo()
    after = part.draw(params, agent.task, batch.observation, 8, jax.random.key(1))
    assert float((before * end).sum(-1).mean()) < 0.5
    assert float((after * end).sum(-1).mean()) > 0.97


# --- weights and targets --------------------------------------------------------------------------------


def test_the_trimmed_mean_drops_the_three_least_of_sixteen():
    values = jnp.asarray(np.random.default_rng(0).permutation(16), jnp.float32)
    assert float(trimmed_mean(values, 0.2)) == 9.0
    assert float(trimmed_mean(values, 0.0)) == 7.5


def test_the_weights_of_the_flow():
    value = np.array([-9.0, 0.0, 1.0, 2.0, 90.0])
    extra = FlowState(None, jnp.float32(0.5), jnp.float32(2.0))
    for update, temperature in ((0, 2.0), (5_000, 1.4), (20_000, 0.8)):
        score = 0.5 * (value - 0.5) / 2.0 + 0.5 * (value - value.mean()) / value.std()
        wanted = np.minimum(np.exp(np.exp(-0.5) * np.clip(score, -3, 3) / temperature), 4.0)
        found = LSFlow().weights(jnp.asarray(value, jnp.float32), extra, jnp.asarray(update))
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert wanted.max() == 4.0


def test_the_loss_of_the_flow(monkeypatch):
    """mean w ‖u − u*‖² at the points, starts and times that were drawn; u* from sines."""
    agent = make("td3+lsflow", hidden=(16,))
    part, batch = agent.selector, flat_batch(0)
    state, seen = state_of(agent).part(part), []
    end = np.float32(directions(8, 4, seed=1))
    q = lambda obs, action: [action.sum(-1), action.sum(-1) + 1.0]  # noqa: E731
    context = functions(agent)._replace(q_target=q)
    monkeypatch.setattr(LSFlow, "draw", lambda self, *args: jnp.asarray(end)[None])
    drawing = lsflow.flow_target
    monkeypatch.setattr(lsflow, "flow_target", lambda *args: (seen.append(args), drawing(*args))[1])
    loss, _, extra = part.learn(state.params, state, context, batch, KEY)
    start, _, t = map(np.asarray, seen[0])
    assert 0.1 <= t.min() <= t.max() <= 0.9
    inside = np.clip(t[:4] + t[4:], 0.9, 1.1)  # pairs t and 1 − t, before they are clipped
    np.testing.assert_allclose(inside, 1.0, atol=0.1 + 1e-6)
    value = np.clip(2.0 * end[:, :3], -1, 1).sum(-1)  # √4, three of four entries
    assert float(extra.mean) == pytest.approx(0.95 * float(state.extra.mean) + 0.05 * value.mean(), rel=1e-4)
    assert float(extra.std) == pytest.approx(0.95 * float(state.extra.std) + 0.05 * value.std(), rel=1e-4)
    z = slerp(start, end, t[:, None])
    angle = np.arccos((start * end).sum(-1, keepdims=True))
    cosine = (z * end).sum(-1, keepdims=True)
    wanted = angle * (end - cosine * z) / np.sqrt(1 - cosine**2)
    u = np.asarray(state.params(batch.observation, jnp.asarray(z, jnp.float32), jnp.asarray(t)))
    weight = np.asarray(part.weights(jnp.asarray(value), extra, jnp.asarray(1)))
    assert float(loss) == pytest.approx((weight * np.square(u - wanted).sum(-1)).mean(), rel=1e-3)


def test_the_value_of_the_next_state_is_the_trimmed_mean_of_the_least_twin(monkeypatch):
    agent = make("td3+lsflow", reward_updates=2, hidden=(16,))
    part, obs = agent.selector, jnp.zeros((1, 5))
    listed = jnp.arange(16.0)[:, None]
    context = functions(agent)._replace(q_target=lambda obs, action: [listed + 1.0, listed])
    for update, wanted in ((2, 0.0), (3, 9.0)):
        now = context._replace(event=Event(jnp.asarray(update), jnp.asarray(0), NO, NO))
        np.testing.assert_allclose(part.next_value(state_of(agent).part(part), now, obs, KEY), wanted)


# --- acting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_every_action_can_be_reached(extra):
    part, spec = LSFlow(extra_dimensions=extra), Spec(5, 3)
    points = directions(20_000, 3 + extra)
    action = np.asarray(part.decode(jnp.asarray(points), spec))
    np.testing.assert_allclose(action, np.clip(np.sqrt(3 + extra) * points[:, :3], -1, 1), atol=1e-6)
    inside = (np.abs(action) < 0.3).all(-1).any()
    assert inside == (extra > 0)  # on the sphere itself no action is small


def test_the_best_candidate_is_perturbed_and_the_critics_learn_at_what_was_intended():
    agent = make("td3+lsflow", hidden=(16,), flow_steps=3, candidates=5)
    part, state, obs = agent.selector, state_of(agent), jax.random.normal(KEY, (4, 5))
    own, near = state.part(part), jnp.asarray([0.3, -0.2, 0.5])
    q = lambda obs, action: [-jnp.square(action - near).sum(-1), 9.0 + 0 * action[..., 0]]  # noqa: E731
    context = functions(agent, state)._replace(q=q)
    act = lambda mode: part.act(None, own, context, None, obs, jnp.ones(4, bool), KEY, mode)  # noqa: E731
    executed, columns, _ = act("explore")
    evaluated, *_ = act("evaluate")
    intended = columns["intended_action"]
    np.testing.assert_array_equal(evaluated, intended)
    drawn = np.asarray(
        part.decode(part.draw(own.params, agent.task, obs, 5, jax.random.split(KEY, 3)[0]), agent.task)
    )
    best = np.square(drawn - np.asarray(near)).sum(-1).argmin(0)
    np.testing.assert_array_equal(intended, drawn[best, np.arange(4)])
    assert np.abs(np.asarray(executed - intended)).max() > 0.01
    batch = flat_batch(0)._replace(extra={"intended_action": jnp.full((8, 3), 0.5)})
    np.testing.assert_array_equal(part.training_batch(batch).action, 0.5)
    warm, columns, _ = act("warm_up")
    np.testing.assert_array_equal(warm, columns["intended_action"])


@pytest.mark.parametrize(
    ("recipe", "settings", "says"),
    [
        ("sac+lsflow", {}, "write td3\\+lsflow"),
        ("td3+lsflow+caps", {}, "lsflow has no actor that caps could act on"),
        ("td3+lsflow+redq", {}, "redq would not be used"),
        ("td3+lsflow+quantile", {}, "lsflow values the next state by a number"),
        ("td3+lsflow", {"base": {"target_noise": 0.2}}, "base.target_noise = 0 with lsflow"),
        ("td3+lsflow", {"base": {"epsilon_mode": "greedy", "epsilon_end": 0.1}}, "epsilon_mode = noise"),
    ],
)
def test_what_a_flow_is_refused_with(recipe, settings, says):
    with pytest.raises(UsageError, match=says):
        build(recipe, settings)


def test_tasks_that_a_flow_does_not_fit():
    with pytest.raises(UsageError, match="solvers for discrete actions are left out"):
        make("td3+lsflow", spec=Spec(5, 3, np.zeros((9, 3), np.float32)))
    with pytest.raises(UsageError, match="a sphere for one action entry has two points"):
        make("td3+lsflow", spec=Spec(5, 1), extra_dimensions=0)


def test_the_recipe_has_the_paper_s_settings():
    agent = build("lsflow")
    base = agent.base
    assert (base.batch_size, base.warmup, base.critic_loss, base.huber_threshold) == (64, 1_000, "huber", 5.0)
    assert (base.target_actor, base.target_noise, base.exploration_noise) == (False, 0.0, 0.0)
    gradient = jnp.array([300.0, 400.0])
    for name, norm in (("lsflow.params", 5.0), ("critics", 10.0)):
        wanted = optax.chain(optax.clip_by_global_norm(norm), optax.adam(4e-4))
        at, here = wanted.init(gradient), agent.optimiser(name).init(gradient)
        for scale in (1.0, 0.001):  # the bound shows in the second step
            (a, at), (b, here) = (
                wanted.update(scale * gradient, at),
                agent.optimiser(name).update(scale * gradient, here),
            )
            np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.slow
def test_the_probe_of_actions_is_learned():
    """The action 0.5 is best everywhere; Q is that of perturbed actions."""
    base = NETS | {"warmup": 200, "critic_learning_rate": 3e-3, "replay_capacity": 4096, "discount": 0.8}
    flow = {"hidden": (32, 32), "flow_steps": 6, "learning_rate": 3e-3, "rate": 0.05, "precision": 100.0}
    settings = {"base": base, "lsflow": flow | {"temperature_updates": 500, "temperature_end": 0.2}}
    trainer = learn("lsflow", "qscape/ProbeAction-v0", 1_500, settings)
    shown = np.zeros(20, np.float32)
    chosen = choices(trainer, shown)
    assert np.abs(chosen - 0.5).mean() < 0.15
    at = values(trainer, shown[:2], np.float32([0.5, -0.5]))
    assert (at[0] > at[1]).all()
