"""BRO's explorer, against numbers computed apart from it (Nauman et al. 2024, arXiv 2405.16158)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import build, same, start
from test_savo import flat_batch, functions, state_of

from qscape import agents
from qscape.contrib.dual_policy import Multipliers, bounded, unbounded
from qscape.errors import UsageError
from qscape.types import Spec

S, A, RATE = 5, 3, 3e-5
TABLE = Spec(S, A, np.random.default_rng(0).uniform(-1, 1, (40, A)).astype(np.float32))


def make(spec: Spec | None = None, base: dict | None = None, **settings):
    small = {"actor_hidden": (8,), "critic_hidden": (8, 8), "batch_size": 16} | (base or {})
    return agents.build("bro+dual_policy", {"base": small, "quantile": {"quantiles": 5}} | settings).on(
        spec or Spec(S, A)
    )


def part_of(agent, state, optimism: float = 1.0, weight: float = 0.25):
    """The part's state with random weights, and optimism and weight that have not moved yet."""
    free = jnp.array([unbounded(optimism), unbounded(weight)], jnp.float32)
    part = state.part_states["dual_policy"]
    fresh = jax.tree.map(jnp.zeros_like, part.extra.optimiser)  # Adam's moments start at 0
    return part._replace(extra=Multipliers(free, fresh))


def shift_by_numpy(explorer, obs, mean) -> np.ndarray:
    """f(s, μ): a layer, layer norm, ReLU, a residual block, and a linear layer without bias."""

    def layer(linear, x):
        return x @ np.asarray(linear.weight).T + (0.0 if linear.bias is None else np.asarray(linear.bias))

    def normed(norm, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6)
        return scaled * np.asarray(norm.scale) + np.asarray(norm.shift)

    torso = explorer.torso
    (block,) = torso.blocks
    h = np.maximum(normed(torso.norm, layer(torso.embed, np.concatenate([obs, mean], -1))), 0)
    inner = np.maximum(normed(block.first_norm, layer(block.first, h)), 0)
    return layer(explorer.out, h + normed(block.second_norm, layer(block.second, inner)))


def test_the_numbers_of_the_paper():
    np.testing.assert_allclose(bounded(jnp.array([0.143841, -0.015578])), [1.0, 0.25], rtol=1e-5)
    np.testing.assert_allclose([unbounded(1.0), unbounded(0.25)], [0.143841, -0.015578], atol=1e-6)
    part = make().selector
    assert (part.optimism, part.kl_weight, part.kl_target, part.std_factor) == (1.0, 0.25, 0.05, 0.75)
    full = agents.build("bro+dual_policy").on(Spec(17, 6))
    explorer = jax.eval_shape(full.init, jax.random.key(0)).part_states["dual_policy"].params
    count = sum(leaf.size for leaf in jax.tree.leaves(explorer))
    assert count == (17 + 6 + 1) * 256 + 2 * 256 + 2 * (257 * 256 + 2 * 256) + 6 * 256


@pytest.mark.parametrize("optimism", [1.0, 30.0])
def test_the_loss_is_the_upper_bound_and_the_divergence(optimism):
    agent = make()
    state, batch, key = state_of(agent), flat_batch(0), jax.random.key(3)
    context, part = functions(agent, state), part_of(agent, state, optimism)
    loss, metrics, _ = agent.selector.learn(part.params, part, context, batch, key)

    obs = np.asarray(batch.observation)
    policy = context.policy(batch.observation)
    mean, std = np.asarray(policy.mean), np.exp(np.asarray(policy.log_std))
    shift = shift_by_numpy(part.params, obs, mean)
    action = np.tanh(mean + shift + 0.75 * std * np.asarray(jax.random.normal(key, mean.shape)))
    first, second = (np.asarray(critic.outputs(obs, jnp.asarray(action), [])) for critic in state.critics)
    assert first.shape == (8, 5)
    upper = (first + second) / 2 + optimism * np.abs(first - second) / 2
    # The divergence of two normals with the deviations σ_o / 0.75 and σ, in full.
    wide = (0.75 * std) / 0.75
    kl = (np.log(std / wide) + (wide**2 + shift**2) / (2 * std**2) - 0.5).sum(-1).mean()
    np.testing.assert_allclose(loss, 0.25 * kl - upper.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["explorer_kl"], kl, rtol=1e-4)
    np.testing.assert_allclose([metrics["optimism"], metrics["kl_weight"]], [optimism, 0.25], rtol=1e-4)


@pytest.mark.parametrize(("target", "sign"), [(1e-6, -1.0), (1e6, 1.0)])
def test_optimism_falls_and_the_weight_rises_where_the_policies_are_too_far_apart(target, sign):
    agent = make(dual_policy={"kl_target": target})
    state = state_of(agent)
    part = part_of(agent, state)
    learn = partial(agent.selector.learn, part.params, part)
    *_, after = learn(functions(agent, state), flat_batch(0), jax.random.key(0))
    # Adam's first step is the learning rate, in the direction of the gradient.
    np.testing.assert_allclose(after.free - part.extra.free, [sign * RATE, -sign * RATE], rtol=2e-3)


@pytest.mark.parametrize("spec", [Spec(S, A), TABLE])
def test_the_explorer_explores_and_the_policy_is_evaluated(spec, monkeypatch):
    agent = make(spec)
    state, obs = state_of(agent), jax.random.normal(jax.random.key(1), (9, S))
    context, explorer = functions(agent, state), state.part_states["dual_policy"].params
    policy = context.policy(obs)
    policy = policy if spec.table is None else policy.raw
    mean = policy.mean + shift_by_numpy(explorer, np.asarray(obs), np.asarray(policy.mean))
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype=float: jnp.full(shape, 1.5))
    expected = {
        "explore": np.tanh(mean + 1.5 * 0.75 * np.exp(policy.log_std)),
        "evaluate": np.tanh(policy.mean),
    }
    assert np.abs(expected["explore"] - expected["evaluate"]).max() > 0.1
    for mode, action in expected.items():
        seen, *_ = agent.act(agent.acting(state), None, obs, jnp.ones(9, bool), 0, jax.random.key(2), mode)
        if spec.table is not None:
            action = spec.table[np.square(spec.table - action[:, None]).sum(-1).argmin(1)]
        np.testing.assert_allclose(seen, action, atol=1e-5)


def test_the_policy_and_the_critics_learn_the_same_whatever_the_explorer_is():
    sizes = {"quantile": {"quantiles": 5}, "resets": {"at": (10**6,)}}
    run = start(build("bro+dual_policy", 8, sizes, warmup=1))
    own = run.state.part_states["dual_policy"]
    moved = own._replace(params=jax.tree.map(lambda x: x + 1.0, own.params))
    other = run._replace(state=run.state.with_part("dual_policy", moved)).step()
    run = run.step()
    assert same((run.state.actor, run.state.critics), (other.state.actor, other.state.critics))
    assert not same(run.state.part_states["dual_policy"].params, own.params)
    assert not same(run.state.part_states["dual_policy"].extra, own.extra)


def test_the_explorer_learns_to_go_where_the_critics_differ_as_far_as_the_divergence_allows():
    """Critics ±exp(a): their mean is 0, and they differ most at great actions."""
    agent = make(base={"log_std_min": -1.0, "log_std_max": 0.0}, dual_policy={"learning_rate": 0.003})
    state, obs = agent.init(jax.random.key(0)), flat_batch(0).observation
    differ = lambda obs, action: [sign * jnp.exp(action) for sign in (1.0, -1.0)]  # noqa: E731
    context = functions(agent, state)._replace(levels=differ)
    optimiser = agent.optimiser("dual_policy.params")

    def step(carry, key):
        part, moments = carry
        batch = flat_batch(0)._replace(observation=jax.random.normal(key, (32, S)))

        def loss(params):
            value, *others = agent.selector.learn(params, part, context, batch, key)
            return value, others

        gradient, (metrics, extra) = jax.grad(loss, has_aux=True)(part.params)
        updates, moments = optimiser.update(gradient, moments, part.params)
        params = optax.apply_updates(part.params, updates)
        return (part._replace(params=params, extra=extra), moments), metrics

    part = state.part_states["dual_policy"]
    keys = jax.random.split(jax.random.key(1), 3000)
    (part, _), metrics = jax.jit(partial(jax.lax.scan, step))((part, optimiser.init(part.params)), keys)
    explorer, policy = agent.selector.behaviour_policy(part.params, context)(obs), context.policy(obs)
    shift = (explorer.mean - policy.mean) / jnp.exp(policy.log_std)
    assert (shift > 0).all()
    assert shift.mean() > 0.1
    assert abs(metrics["explorer_kl"][-1000:].mean() / A - 0.05) < 0.02


@pytest.mark.parametrize(
    ("recipe", "base", "reason"),
    [
        ("td3+dual_policy", {}, "base.head = gaussian, as sac has it"),
        ("sac+dual_policy", {"critics": 1}, "base.critics = 2 or more"),
        ("crossq+dual_policy", {}, "dual_policy trains a second policy, and crossq keeps"),
        ("sac+savo+dual_policy", {}, "both fill one place"),
    ],
)
def test_what_does_not_go_with_it_is_refused(recipe, base, reason):
    with pytest.raises(UsageError, match=reason):
        agents.build(recipe, {"base": base})
