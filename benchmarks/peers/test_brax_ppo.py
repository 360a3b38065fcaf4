"""PPO here beside Brax's loss on the same rollout with the same weights: what is equal, and what differs.

pytest -s benchmarks/peers/test_brax_ppo.py        # -s: the measured differences
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qscape.agents import build
from qscape.onpolicy.descent import estimate_anew
from qscape.onpolicy.sockets import RolloutSamples, Successors
from qscape.ops.running import Moments
from qscape.types import Spec, Transition

pytest.importorskip("brax")

T, E, S, A, U = 20, 64, 6, 2, 5
DISCOUNT, ENTROPY, SCALE = 0.97, 0.01, 10.0
ACTOR, CRITIC = (32,) * 4, (256,) * 5
BASE = {
    "rollout": T * E,
    "batch_size": 0,
    "passes": 1,
    "discount": DISCOUNT,
    "gradient_clip": None,
    "optimiser_epsilon": 1e-8,
    "actor_hidden": ACTOR,
    "critic_hidden": CRITIC,
    "activation": "silu",
    "value_coefficient": 0.25,  # theirs: 0.5 · 0.5
}


def make(decay=0.95, entropy=0.0, truncated=False, seed=0):
    """Our agent, its state and a rollout, with weights and statistics that are not those of the start."""
    settings = {
        "base": BASE | {"entropy_coefficient": entropy},
        "clipped": {"unroll": U, "bound": 0.3},
        "gae": {"decay": decay},
        "learnable": {"continuous": "tanh_normal"},
    }
    agent = build("ppo+normalise", settings).on(Spec(S, A))
    state, rng = agent.init(jax.random.key(seed), E), np.random.default_rng(seed)
    shake = lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
    statistics = Moments(
        jnp.asarray(rng.normal(size=S), jnp.float32), jnp.asarray(rng.uniform(0.5, 2, S), jnp.float32), 9.0
    )
    own = state.part_states["normalise"]._replace(extra=statistics)
    state = state._replace(networks=jax.tree.map(shake, state.networks), part_states={"normalise": own})
    path = rng.normal(size=(T + 1, E, S)).astype(np.float32)
    u = 0.7 * rng.normal(size=(T, E, A)).astype(np.float32)
    ends = rng.random((T, E))
    rollout = Transition(
        observation=jnp.asarray(path[:-1]),
        action=jnp.tanh(jnp.asarray(u)),
        reward=jnp.asarray(rng.normal(0.5, 1.0, (T, E)), jnp.float32),
        terminated=jnp.asarray(ends < 0.05),
        truncated=jnp.asarray((ends > 0.95) & truncated),
        next_observation=jnp.asarray(path[1:]),
    )
    return agent, state, rollout, u


def theirs(agent, state, rollout, u, decay, entropy, scale=1.0):
    """Brax's networks, parameters, statistics and data, and its loss as a function of the parameters."""
    from brax.training import types
    from brax.training.acme import running_statistics
    from brax.training.agents.ppo import losses, networks

    nets = networks.make_ppo_networks(
        S, A, preprocess_observations_fn=running_statistics.normalize, policy_hidden_layer_sizes=ACTOR
    )
    params = losses.PPONetworkParams(policy=to_flax(actor_of(state)), value=to_flax(critic_of(state)))
    seen = state.part_states["normalise"].extra
    statistics = running_statistics.NestedMeanStd(mean=seen.mean, std=jnp.sqrt(seen.var))
    dist = nets.parametric_action_distribution
    logits = nets.policy_network.apply(statistics, params.policy, rollout.observation)
    done = rollout.terminated | rollout.truncated
    data = types.Transition(
        observation=rollout.observation,
        action=rollout.action,
        reward=rollout.reward,
        discount=1.0 - done,
        next_observation=rollout.next_observation,
        extras={
            "policy_extras": {
                "raw_action": jnp.asarray(u),
                "log_prob": dist.log_prob(logits, u),
                "distribution_params": logits,
            },
            "state_extras": {"truncation": rollout.truncated.astype(jnp.float32)},
        },
    )

    def cut(x):
        """[T, E, ...] to unrolls [T/U · E, U, ...], as its trainer hands them to the loss."""
        x = x.reshape(-1, U, *x.shape[1:])
        return jnp.swapaxes(x, 1, 2).reshape(-1, U, *x.shape[3:])

    data = jax.tree.map(cut, data)

    def loss(params, key):
        return losses.compute_ppo_loss(
            params,
            statistics,
            data,
            key,
            nets,
            entropy_cost=entropy,
            discounting=DISCOUNT,
            reward_scaling=scale,
            gae_lambda=decay,
        )

    return nets, params, statistics, data, loss


def actor_of(state):
    return [*state.networks.torso.layers, state.networks.head.layer[0]]


def critic_of(state):
    torso, out = state.networks.critic
    return [*torso.layers, out]


def to_flax(layers):
    """Our layers as parameters of their network."""
    return {"params": {f"hidden_{k}": {"kernel": x.weight.T, "bias": x.bias} for k, x in enumerate(layers)}}


def gradient_of_ours(agent, state, rollout):
    """The gradient of the whole rollout: Adam's first moment after one step is a tenth of it. And metrics."""
    after, metrics = jax.jit(agent.update)(state, rollout, 0.0, jax.random.key(1))
    mean = jax.tree.map(lambda x: 10 * x, after.optimisers["networks"][0].mu)
    made = state._replace(networks=mean)
    return to_flax(actor_of(made)), to_flax(critic_of(made)), metrics


def difference(x, y):
    """The length of the difference of two trees by the length of the second."""
    pairs = list(zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))
    off = sum(float(jnp.square(a - b).sum()) for a, b in pairs)
    return (off / sum(float(jnp.square(b).sum()) for _, b in pairs)) ** 0.5


def test_everything_is_equal_if_lambda_is_1_and_nothing_is_truncated():
    """Losses and the gradient of all weights. λ = 1, since their actor's advantages differ from GAE's."""
    agent, state, rollout, u = make(decay=1.0)
    *_, params, _, _, loss = theirs(agent, state, rollout, u, 1.0, 0.0)
    (_, wanted), gradient = jax.value_and_grad(loss, has_aux=True)(params, jax.random.key(0))
    actor, critic, metrics = gradient_of_ours(agent, state, rollout)
    # Their standard deviation of advantages is the population's, ours the sample's.
    assert difference(actor, gradient.policy) < 1e-3
    assert difference(critic, gradient.value) < 1e-4
    np.testing.assert_allclose(metrics["value_loss"] * 0.25, wanted["v_loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["policy_loss"], wanted["policy_loss"], atol=1e-5)


def test_targets_are_equal_and_their_advantages_weigh_what_follows_by_one_more():
    """Targets are v + Σ (γλ)^l δ, as here; their advantage is r + γ target' - v: later δ weigh 1 / λ more."""
    from brax.training.agents.ppo import losses

    agent, state, rollout, u = make()
    nets, params, statistics, data, _ = theirs(agent, state, rollout, u, 0.95, 0.0)
    in_time = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), data)
    value = nets.value_network.apply(statistics, params.value, in_time.observation)
    last = nets.value_network.apply(statistics, params.value, in_time.next_observation[-1])
    zero = jnp.zeros_like(value)
    target, advantage = losses.compute_gae(
        zero, 1 - in_time.discount, in_time.reward, value, last, 0.95, DISCOUNT
    )
    context = agent.make_context(state, 0.0, jax.random.key(0))
    flat = lambda x: x.T.reshape(-1, *x.shape[2:])  # noqa: E731
    rows = lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])  # noqa: E731
    end = zero.at[-1].set(1.0)
    terminated = 1.0 - in_time.discount
    after = Successors(
        flat(in_time.reward),
        context.normalise(rows(in_time.next_observation)),
        flat(terminated),
        flat(jnp.maximum(end, terminated)),
    )
    observation = context.normalise(rows(in_time.observation))
    nothing = flat(zero)
    samples = RolloutSamples(
        observation, rows(in_time.action), nothing, nothing, nothing, nothing, None, after
    )
    ours = context.apply_networks(state.networks, observation).value
    np.testing.assert_allclose(ours, flat(value), rtol=1e-4, atol=1e-5)
    made = estimate_anew(context, state.networks, samples, ours, U)
    np.testing.assert_allclose(made.target, flat(target), rtol=1e-4, atol=1e-4)
    delta = in_time.reward + DISCOUNT * in_time.discount * jnp.concatenate([value[1:], last[None]]) - value
    np.testing.assert_allclose(
        delta + (made.advantage.reshape(-1, U).T - delta) / 0.95, advantage, rtol=1e-3, atol=1e-4
    )
    print(f"\nadvantages correlate by {np.corrcoef(made.advantage, flat(advantage))[0, 1]:.4f}")


def test_entropy_is_the_mean_of_theirs():
    agent, state, rollout, u = make(entropy=ENTROPY)
    *_, params, _, _, loss = theirs(agent, state, rollout, u, 0.95, ENTROPY)
    keys = jax.random.split(jax.random.key(0), 64)
    drawn = jax.jit(jax.vmap(lambda key: loss(params, key)[1]["entropy_loss"]))(keys) / -ENTROPY
    metrics = gradient_of_ours(agent, state, rollout)[2]
    np.testing.assert_allclose(metrics["entropy"], drawn.mean(), atol=4 * drawn.std() / 8)


@pytest.mark.parametrize(
    "what", ["λ = 0.95", "truncated", "rewards times 10", "advantages once", "advantages once, λ = 0.8"]
)
def test_what_differs(what):
    """How far our gradient is from theirs, by the length of theirs, and how their directions agree."""
    truncated, scale = what == "truncated", SCALE if "times" in what else 1.0
    agent, state, rollout, u = make(0.8 if "0.8" in what else 0.95, truncated=truncated)
    if "once" in what:
        update = dataclasses.replace(agent.policy_update, unroll=0)
        agent = dataclasses.replace(agent, policy_update=update)
    *_, params, _, _, loss = theirs(agent, state, rollout, u, 0.95, 0.0, scale)
    gradient = jax.grad(lambda p: loss(p, jax.random.key(0))[0])(params)
    actor, critic, _ = gradient_of_ours(agent, state, rollout)
    found = []
    for ours, other in ((actor, gradient.policy), (critic, gradient.value)):
        a, b = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in (ours, other))
        found += [difference(ours, other), float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))]
    print(
        f"\n{what}: actor off by {found[0]:.3f}, cosine {found[1]:.4f}; critic {found[2]:.3f}, {found[3]:.4f}"
    )
    assert all(np.isfinite(found))
