"""SALE's options, each against a few lines of its own: what encoders learn, which copies feed whom, and what
the networks see of them."""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rows import slow
from test_savo import A, S, functions, make, state_of

from qscape.methods.sale import SALE, Encoder, EncoderStatistics
from qscape.offpolicy import update
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.sockets import PartState
from qscape.types import Batch, Event

KEY, NO = jax.random.key(0), jnp.array(False)
WIDTH, ACTOR, CRITIC = 6, (10, 7), (9, 5)
NORMS = {
    "avg_l1": lambda x: x / jnp.abs(x).mean(-1, keepdims=True),
    "layer": lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5),
    "none": lambda x: x,
}


def normed(norm, x, seen):
    """Batch normalisation goes by the statistics seen; where there are none, by those of x."""
    if norm != "batch":
        return NORMS[norm](x)
    mean, variance = (x.mean(0), x.var(0)) if seen is None else seen
    return (x - mean) / jnp.sqrt(variance + 1e-5)


def sale(**settings):
    """A small agent, its state of random numbers, and a batch."""
    base = {"actor_hidden": ACTOR, "critic_hidden": CRITIC}
    agent = make("td3+sale", base=base, width=WIDTH, hidden=(8,), **settings)
    rng = np.random.default_rng(1)
    obs, further, successor = jnp.asarray(rng.normal(size=(3, 8, S)), jnp.float32)
    action, reward = jnp.asarray(rng.uniform(-1, 1, (8, A)), jnp.float32), jnp.arange(8.0) / 4
    return agent, state_of(agent), Batch(obs, action, reward, NO, further, 0.99, {"successor": successor})


def cat(*parts):
    return jnp.concatenate(parts, -1)


def linear(layer, x):
    return x @ layer.weight.T + layer.bias


def layers(torso, x, activation):
    for layer in torso.layers:
        x = activation(linear(layer, x))
    return x


def mlp(net, x):
    return linear(net.out, layers(net.torso, x, jax.nn.elu))


def embeddings(part):
    """z_s and z_sa, by the part's settings."""

    def z_s(encoder, s):
        return normed(part.state_norm, mlp(encoder.f, s), encoder.seen and encoder.seen.state)

    def z_sa(encoder, s, a):
        z = mlp(encoder.g, cat(z_s(encoder, s), a))
        return normed(part.pair_norm, z, encoder.seen and encoder.seen.pair)

    return z_s, z_sa


def inputs(wanted, **parts):
    """Those of a trunk that are wanted, in the order in which they stand here."""
    return cat(*(part() for name, part in parts.items() if name in wanted))


def phi(net, part, encoder, x):
    layer = net.stage.linear
    if part.input_norm != "batch":
        return NORMS[part.input_norm](linear(layer, x))
    mean, covariance = encoder.seen.inputs
    mean, covariance = mean[: x.shape[1]], covariance[: x.shape[1], : x.shape[1]]
    variance = jnp.diag(layer.weight @ covariance @ layer.weight.T)
    return (linear(layer, x) - linear(layer, mean)) / jnp.sqrt(variance + 1e-5)


def q(net, part, encoder, s, a):
    z_s, z_sa = embeddings(part)
    x = inputs(
        part.critic_inputs,
        sa=lambda: phi(net, part, encoder, cat(s, a)),
        zsa=lambda: z_sa(encoder, s, a),
        zs=lambda: z_s(encoder, s),
    )
    return mlp(net.body, x)[:, 0]


def pi(net, part, encoder, s):
    z_s, _ = embeddings(part)
    x = inputs(part.actor_inputs, s=lambda: phi(net, part, encoder, s), zs=lambda: z_s(encoder, s))
    return jnp.tanh(linear(net.head.out, layers(net.torso, x, jax.nn.relu)))


def close(x, y):
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target": "fixed_embedding"},
        slow({"target": "next_observation"}),
        {"target": "next_pair"},
        {"predict_reward": True},
        {"loss": "cosine"},
        {"loss": "cosine", "state_norm": "none"},
        slow({"loss": "cosine", "target": "next_observation", "predict_reward": True}),
        {"state_norm": "layer"},
        {"pair_norm": "avg_l1"},
        {"pair_norm": "layer", "target": "next_pair"},
        {"state_norm": "batch", "pair_norm": "batch"},
        slow({"state_norm": "batch", "target": "fixed_embedding"}),
        slow({"input_norm": "batch", "target": "next_pair", "pair_norm": "batch"}),
    ],
    ids=str,
)
def test_what_the_encoders_learn(settings):
    agent, state, batch = sale(**settings)
    part, own, (obs, action, reward, *_) = agent.representation, state.part_states["sale"], batch
    (z_s, z_sa), s2 = embeddings(part), batch.extra["successor"]
    goal = {
        "next_embedding": lambda: z_s(own.params, s2),
        "fixed_embedding": lambda: z_s(own.extra[0], s2),
        "next_observation": lambda: s2,
        "next_pair": lambda: z_sa(own.params, s2, pi(state.actor_target, part, own.extra[1], s2)),
    }[part.target]()

    def expected(encoder):
        pair = z_sa(encoder, obs, action)
        guess = linear(encoder.observation, pair) if part.target == "next_observation" else pair
        if part.loss == "cosine":
            cosine = (guess * goal).sum(1) / jnp.sqrt((guess**2).sum(1) * (goal**2).sum(1))
            loss = (1 - cosine).mean()
        else:
            loss = ((guess - goal) ** 2).mean()
        told = ((linear(encoder.reward, pair)[:, 0] - reward) ** 2).mean() if part.predict_reward else 0.0
        return loss + told

    context = functions(agent, state)

    def learn(encoder):
        return part.learn(encoder, own, context, batch, KEY)[0]

    close(*jax.jit(lambda x: [jax.value_and_grad(loss)(x) for loss in (learn, expected)])(own.params))


VIEWS = [
    ({}, ("f", "f_t", "f_t-1")),
    ({"frozen": False}, ("f", "f", "f")),
    ({"end_to_end": 0.5}, ("f", "f", "f_t")),
    ({"end_to_end": 0.5, "frozen": False}, ("f", "f", "f")),
]


@pytest.mark.parametrize(("settings", "views"), VIEWS)
def test_which_encoder_is_seen(settings, views):
    f, *copies = (Encoder(name, None, None, None) for name in ("f", "f_t", "f_t-1"))
    own = PartState(f, extra=(*copies, None))
    assert (
        tuple(SALE(**settings).encoder_params(own, which).f for which in ("online", "fixed", "target"))
        == views
    )


@pytest.mark.parametrize(
    ("settings", "views"),
    [
        *VIEWS,
        *(({f"{what}_norm": "batch" for what in ("state", "pair", "input")} | s, v) for s, v in VIEWS[1:]),
        *(
            (settings, VIEWS[0][1])
            for settings in (
                *({"critic_inputs": some} for some in (("sa",), ("zsa",), ("sa", "zsa"), ("zsa", "zs"))),
                *({"actor_inputs": some} for some in (("s",), ("zs",))),
                {"critic_inputs": ("zs", "sa"), "actor_inputs": ("zs", "s")},
                *({"state_norm": norm} for norm in ("layer", "none")),
                *({"pair_norm": norm} for norm in ("avg_l1", "layer")),
                *({"input_norm": norm} for norm in ("layer", "none")),
                {"input_width": 4},
                *({f"{what}_norm": "batch"} for what in ("state", "pair", "input")),
            )
        ),
    ],
    ids=str,
)
def test_what_the_networks_see(settings, views):
    """The critics [φ(s, a), z_sa, z_s] and the actor [φ(s), z_s], of which an ablation leaves some out."""
    agent, state, (obs, action, *_) = sale(**settings)
    part, own, context = agent.representation, state.part_states["sale"], functions(agent, state)
    current = eqx.tree_at(lambda e: e.seen, own.params, own.extra[2], is_leaf=lambda x: x is None)
    fixed, target = ({"f": current, "f_t": own.extra[0], "f_t-1": own.extra[1]}[v] for v in views[1:])
    close(context.q(obs, action), [q(net, part, fixed, obs, action) for net in state.critics])
    close(context.q_target(obs, action), [q(net, part, target, obs, action) for net in state.critics_target])
    close(context.policy(obs).mode(), pi(state.actor, part, fixed, obs))
    close(context.policy_target(obs).mode(), pi(state.actor_target, part, target, obs))
    critic, actor = state.critics[0], state.actor
    for wanted, (first, *others), hidden, stage, body in (
        (part.critic_inputs, ("sa", "zsa", "zs"), CRITIC, critic.stage, critic.body.torso),
        (part.actor_inputs, ("s", "zs"), ACTOR, actor.stage, actor.torso),
    ):
        width = settings.get("input_width", hidden[0]) if first in wanted else 0
        assert width == (0 if stage.linear is None else len(stage.linear.weight))
        assert body.layers[0].weight.shape == (hidden[0], width + WIDTH * sum(x in wanted for x in others))


@pytest.mark.parametrize("synced", [True, False])
def test_what_batch_normalisation_sees(synced):
    """Moving averages of each batch's statistics; a copy keeps those of its own time."""
    agent, state, batch = sale(state_norm="batch", pair_norm="batch", input_norm="batch")
    own = state.part_states["sale"]
    f = np.asarray(mlp(own.params.f, batch.observation))
    z_s = (f - f.mean(0)) / np.sqrt(f.var(0) + 1e-5)
    g = np.asarray(mlp(own.params.g, cat(z_s, batch.action)))
    x = np.concatenate([batch.observation, batch.action], 1)
    found = EncoderStatistics(
        (f.mean(0), f.var(0)), (g.mean(0), g.var(0)), (x.mean(0), np.cov(x.T, bias=True))
    )
    seen = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, own.extra[2], found)
    event = Event(jnp.asarray(1), jnp.asarray(0), NO, jnp.array(synced))
    after = update._post_update(update.Stage(agent, batch, event, KEY), state, batch.reward).part_states[
        "sale"
    ]
    close(after.extra[2], seen)
    current = dataclasses.replace(own.params, seen=seen)
    close(after.extra[:2], (current, own.extra[0]) if synced else own.extra[:2])
    close(after.params, own.params)


def test_batch_normalised_inputs_have_mean_0_and_variance_1():
    """φ by the statistics of a batch is that batch, normalised."""
    agent, state, batch = sale(input_norm="batch", critic_inputs=("sa",))
    x = np.concatenate([batch.observation, batch.action], 1)
    seen = EncoderStatistics(
        None, None, (jnp.asarray(x.mean(0)), jnp.asarray(np.cov(x.T, bias=True), jnp.float32))
    )
    view = Encoder(None, None, None, None, seen)
    stage = agent.representation.adapt_network(view, state.critics[0]).stage
    found = np.asarray(stage(jnp.asarray(x)))
    raw = np.asarray(linear(state.critics[0].stage.linear, x))
    np.testing.assert_allclose(found, (raw - raw.mean(0)) / raw.std(0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("beta", [None, slow(3.0)])
def test_end_to_end_the_critics_loss_moves_the_encoder_too(monkeypatch, beta):
    """By ∇(critics' loss + β · encoder's loss); None: not at all."""
    monkeypatch.setattr(Agent, "optimiser", lambda *_: optax.sgd(1.0))  # a step is the gradient
    agent, state, batch = sale(end_to_end=beta)
    part, own, (obs, action, y, *_) = agent.representation, state.part_states["sale"], batch
    z_s, z_sa = embeddings(part)
    goal = z_s(own.params, batch.extra["successor"])

    def expected(critics, encoder):
        heads = [q(net, part, own.extra[0] if beta is None else encoder, obs, action) for net in critics]
        loss = ((z_sa(encoder, obs, action) - goal) ** 2).mean()
        return sum(((head - y) ** 2).mean() for head in heads) + (beta or 0) * loss

    now = update.Stage(agent, batch, Event(jnp.asarray(1), jnp.asarray(0), NO, NO), KEY)
    monkeypatch.setattr(update, "_fixed_targets", lambda *_: y[:, None])
    after = jax.jit(lambda state: update._step_critics(now, state)[0])(state)
    before = state.critics, own.params
    step = jax.tree.map(jnp.subtract, before, (after.critics, after.part_states["sale"].params))
    close(step, jax.jit(jax.grad(lambda both: expected(*both)))(before))


@pytest.mark.parametrize("beta", [None, 0.1])
def test_encoders_learn_once_in_an_update(monkeypatch, beta):
    learned, learn = [], SALE.learn
    monkeypatch.setattr(SALE, "learn", lambda *args: learned.append(1) or learn(*args))
    agent, *_ = sale(end_to_end=beta)
    layout = agent.layout(1)
    rows, index = jax.eval_shape(lambda: agent.init_replay(layout))
    jax.eval_shape(partial(agent.update, layout), jax.eval_shape(agent.init, KEY), rows, index, KEY)
    assert len(learned) == 1
