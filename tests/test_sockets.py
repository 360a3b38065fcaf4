"""The sockets hold for methods to come: small but real parts fill them without a change to the trunk.

Each toy here is the skeleton of a published method: what it needs of its surroundings is there, its finer
points are not. PAVE and ASAP regularise, SAVO maximises with a list of actors, Greedy-AC and SAVGO improve.
"""

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, PyTree
from small import same
from test_contract import QUICK, watched

from qscape.agents import build
from qscape.nets import MLP, Actor, Context, Critic, dense
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import Soft, uniform_action
from qscape.offpolicy.sockets import Fns, Improvement, Maximiser, Nets, Own, Regulariser
from qscape.offpolicy.state import State
from qscape.replay.memory import Rows
from qscape.run.programs import Programs
from qscape.types import Batch, Columns, Dist, Event, Key, Metrics, Policy, QFn, Scalar, Spec

S, A, E, WIDTH, UPDATES = 5, 3, 2, 8, 10
# Nothing is fused: a part that is added cannot change how the numbers of the others are rounded.
UNFUSED = QUICK | {"xla_disable_hlo_passes": "fusion"}
stop = jax.lax.stop_gradient


# --- PAVE: mixed and second derivatives of the critics ---------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Smooth(Regulariser):
    """Penalises how ∂Q/∂a changes with the observation, and positive curvature along random directions."""

    name: ClassVar[str] = "smooth"
    weight: float = 1.0

    def critic(self, own: Own, fns: Fns, batch: Batch, key: Key) -> tuple[Scalar, Metrics]:
        obs, action = batch.observation, batch.action
        k_noise, k_direction = jax.random.split(key)
        near = obs + 0.1 * jax.random.normal(k_noise, obs.shape)
        direction = jax.random.rademacher(k_direction, action.shape, float)

        def slopes(obs: Array, action: Array) -> Array:  # [heads, B, A]
            value, back = jax.vjp(lambda a: jnp.stack(fns.q(obs, a)), action)
            return jax.vmap(lambda one: back(jnp.broadcast_to(one[:, None], value.shape))[0])(
                jnp.eye(len(value))
            )

        here, turned = jax.jvp(lambda a: slopes(obs, a), (action,), (direction,))
        mixed = jnp.square(here - slopes(near, action)) + jnp.square(
            here - slopes(batch.next_observation, action)
        )
        curved = jax.nn.relu((turned * direction).sum(-1) + 0.1)
        loss = mixed.mean((1, 2)).sum() + curved.mean(1).sum()
        return self.weight * loss, {"smooth": loss}


# --- ASAP: a head of its own on the actor's features, and a slow copy of both ----------------------------


@dataclasses.dataclass(frozen=True)
class Foresee(Regulariser):
    """A head predicts the next action from the actor's features; the policy is drawn to its slow copy."""

    name: ClassVar[str] = "foresee"
    derived: ClassVar[frozenset[str]] = frozenset({"previous_observation"})
    weight: float = 1.0
    rate: float = 0.01

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> Own:
        head = eqx.nn.Linear(base.actor_hidden[-1], spec.action_size, key=key)
        return Own(tuned=head, rest=(actor, head))

    def actor(self, tuned: PyTree, own: Own, fns: Fns, batch: Batch, key: Key) -> tuple[Scalar, Metrics]:
        now = fns.policy(batch.observation)
        later = fns.policy(batch.next_observation).mode()
        before = fns.policy(batch.extra["previous_observation"]).mode()
        weight = stop(jnp.tanh(jnp.square(1.0 / (later - before + 1e-4))))
        bend = (jnp.square(2 * now.mode() - later - before) * weight).mean()
        slow_actor, slow_head = own.rest
        slow = stop(dense(slow_head, fns.bind(slow_actor)(batch.observation).features))
        guess = dense(tuned, now.features)
        foreseen = jnp.square(later - slow).mean() + jnp.square(guess - stop(later)).mean()
        return self.weight * (bend + foreseen), {"bend": bend, "foreseen": foreseen}

    def after(self, own: Own, aux: Any, actor: PyTree, event: Event) -> Own:
        moved = jax.tree.map(lambda s, x: s + self.rate * (x - s), own.rest, (actor, own.tuned))
        return own._replace(rest=moved)


# --- SAVO: a list of actors, surrogates conditioned on earlier proposals ----------------------------------


class Conditioned(eqx.Module):
    """An actor or critic, each hidden layer modulated by a summary of the proposals made before."""

    net: Actor | Critic
    summary: MLP
    film: list[eqx.nn.Linear]

    def __init__(self, key: Key, net: Actor | Critic, spec: Spec) -> None:
        k_summary, k_film = jax.random.split(key)
        trunk = net.trunk if isinstance(net, Actor) else net.body.trunk
        widths = [layer.out_features for layer in trunk.layers]
        keys = jax.random.split(k_film, len(widths))
        self.net = net
        self.summary = MLP(k_summary, (spec.observation_size + spec.action_size, WIDTH, WIDTH), "relu")
        self.film = [eqx.nn.Linear(WIDTH, 2 * w, key=k) for w, k in zip(widths, keys, strict=True)]

    def context(self, obs: Array, earlier: Array) -> Context:
        """`earlier` `[B, j, A]`, summed up over j."""
        obs = jnp.broadcast_to(obs[:, None], (*earlier.shape[:-1], obs.shape[-1]))
        z = self.summary(jnp.concatenate([obs, earlier], -1)).mean(1)
        return Context(film=[tuple(jnp.split(dense(layer, z), 2, -1)) for layer in self.film])


@dataclasses.dataclass(frozen=True)
class Listed(Maximiser):
    """Two actors; the second climbs a surrogate of max(Q, Q of the first's proposal); Q1 picks."""

    name: ClassVar[str] = "listed"

    def columns(self, spec: Spec) -> Columns:
        return {"proposals": (2, spec.action_size)}

    def actors(self, key: Key, nets: Nets, spec: Spec) -> PyTree:
        k_first, k_second, k_film = jax.random.split(key, 3)
        return [nets.actor(k_first), Conditioned(k_film, nets.actor(k_second), spec)]

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> Own:
        k_net, k_film = jax.random.split(key)
        return Own(learned=Conditioned(k_film, nets.critic(k_net), spec))

    def propose(self, actor: PyTree, fns: Fns, obs: Array) -> list[Dist]:
        first, second = actor
        one = fns.bind(first)(obs)
        return [one, fns.bind(second.net)(obs, second.context(obs, stop(one.mode())[:, None]))]

    def pick(self, fns: Fns, obs: Array, actions: list[Array]) -> Array:
        """Index `[B]` of the proposal that Q1 likes best."""
        return stop(jnp.stack([fns.q(obs, action)[0] for action in actions])).argmax(0)

    def policy(self, actor: PyTree, own: Own, fns: Fns) -> Policy:
        def best(obs: Array) -> Dist:
            dists = self.propose(actor, fns, obs)
            second = self.pick(fns, obs, [dist.mode() for dist in dists])[:, None] == 1
            return jax.tree.map(lambda x, y: jnp.where(second, y, x), *dists)

        return best

    def climbs(self, actor: PyTree, own: Own, fns: Fns, batch: Batch) -> list[tuple[Policy, QFn]]:
        surrogate = own.learned

        def value(obs: Array, action: Array) -> list[Array]:
            earlier = stop(self.propose(actor, fns, obs)[0].mode())[:, None]
            return [fns.bind(surrogate.net)(obs, action, surrogate.context(obs, earlier))]

        return [(fns.bind(actor[0]), fns.q), (lambda obs: self.propose(actor, fns, obs)[1], value)]

    def target(
        self, actor: PyTree, actor_target: PyTree, own: Own, fns: Fns, next_obs: Array, key: Key
    ) -> Policy:
        return self.policy(actor, own, fns)  # the online actors, picked by the online Q1; no smoothing

    def learn(self, learned: PyTree, own: Own, fns: Fns, batch: Batch, key: Key) -> tuple[Scalar, Metrics]:
        obs, proposals = batch.observation, batch.extra["proposals"]

        def least(action: Array) -> Array:
            return jnp.stack(fns.q(obs, action)).min(0)

        bar, loss = least(proposals[:, 0]), jnp.zeros(())
        for action in (batch.action, proposals[:, 1]):
            guess = fns.bind(learned.net)(obs, action, learned.context(obs, proposals[:, :1]))
            loss += jnp.square(guess - stop(jnp.maximum(least(action), bar))).mean()
        return loss, {"surrogate_loss": loss}

    def memory(self, spec: Spec, envs: int, base: Base | None = None) -> Array:
        return jnp.zeros((envs, 3, spec.action_size))

    def act(
        self, actor: PyTree, own: Own, fns: Fns, memory: PyTree, obs: Array, first: Array, key: Key, mode: str
    ) -> tuple[Array, dict[str, Array], PyTree]:
        if mode == "warm_up":
            drawn = uniform_action(fns.spec, jnp.stack([obs] * 3, 1), key)
            return drawn[:, 0], {"proposals": drawn[:, 1:]}, memory
        proposals = jnp.stack([dist.mode() for dist in self.propose(actor, fns, obs)], 1)
        if mode == "explore":  # one Ornstein-Uhlenbeck process per actor and one for the choice
            noise = jnp.where(first[:, None, None], 0.0, memory)
            memory = 0.85 * noise + 0.2 * jax.random.normal(key, noise.shape)
            proposals = jnp.clip(proposals + memory[:, :2], -1.0, 1.0)
        index = self.pick(fns, obs, list(jnp.moveaxis(proposals, 1, 0)))
        action = jnp.take_along_axis(proposals, index[:, None, None], 1)[:, 0]
        if mode == "explore":
            action = jnp.clip(action + memory[:, 2], -1.0, 1.0)
        return action, {"proposals": proposals}, memory


# --- Greedy-AC: a proposal policy is tuned along with the actor -------------------------------------------


@dataclasses.dataclass(frozen=True)
class Likely(Improvement):
    """The policy is fitted to the best of many draws from a second policy, which follows more slowly."""

    name: ClassVar[str] = "likely"
    draws: int = 8
    keep: int = 2

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> Own:
        return Own(tuned=actor)

    def loss(
        self, policy: Policy, q: QFn, tuned: PyTree, own: Own, fns: Fns, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics]:
        obs = batch.observation
        proposer, (k_draw, k_entropy) = fns.bind(tuned)(obs), jax.random.split(key)
        drawn = stop(jax.vmap(lambda k: proposer.sample(k)[0])(jax.random.split(k_draw, self.draws)))
        value = q(jnp.broadcast_to(obs, (self.draws, *obs.shape)), drawn)[0]  # [N, B]
        best = jnp.argsort(-value, axis=0)[: self.keep]
        best = jnp.take_along_axis(drawn, best[..., None], 0)
        fit, follow = -policy(obs).log_prob(best).mean(), -proposer.log_prob(best).mean()
        log_prob = proposer.log_prob(stop(proposer.sample(k_entropy)[0]))
        entropy = -(log_prob * stop(log_prob)).mean()
        return fit + follow - 0.01 * entropy, {"fit": fit, "follow": follow}

    def target_values(
        self, policy: Policy, own: Own, fns: Fns, next_obs: Array, key: Key
    ) -> tuple[list[Array], None]:
        return fns.q_target(next_obs, policy(next_obs).sample(key)[0]), None


# --- SAVGO: an encoder learns the geometry of values, a kernel in it moves the policy -----------------------


@dataclasses.dataclass(frozen=True)
class Kernel(Soft):
    """Candidate actions are weighed by how near they are, to the policy's own, in a learned embedding."""

    name: ClassVar[str] = "kernel"
    candidates: int = 4
    pace: float = 1e-3

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> Own:
        encoder = MLP(key, (spec.observation_size + spec.action_size, WIDTH, WIDTH), "relu")
        tuned = super().init(key, nets, spec, base, actor).tuned
        return Own(learned=encoder, tuned=tuned, rest={"slow": encoder, "scale": jnp.ones(())})

    def embed(self, encoder: MLP, obs: Array, action: Array) -> Array:
        z = encoder(jnp.concatenate([obs, action], -1))
        return z / jnp.sqrt(jnp.maximum(jnp.square(z).sum(-1, keepdims=True), 1e-24))

    def learn(self, learned: PyTree, own: Own, fns: Fns, batch: Batch, key: Key) -> tuple[Scalar, Metrics]:
        obs, action, next_obs = batch.observation, batch.action, batch.next_observation
        value = jnp.stack(fns.q_target(obs, action)).min(0)
        value = batch.reward + batch.discount * (1 - batch.terminated) * value
        gap = jnp.abs(value[:, None] - value)
        scale = 0.995 * own.rest["scale"] + 0.005 * jnp.quantile(gap, 0.95)
        z_next = self.embed(own.rest["slow"], next_obs, fns.policy(next_obs).sample(key)[0])
        later = batch.discount * (1 - batch.terminated)[:, None] * (z_next @ z_next.T)
        goal = stop(0.5 * (1 - 2 * jnp.clip(gap / scale, 0, 1) ** 1.5) + 0.5 * later)
        z = self.embed(learned, obs, action)
        loss = jnp.square(z @ z.T - goal).mean()
        return loss, {"geometry_loss": loss, "scale": stop(scale)}

    def loss(
        self, policy: Policy, q: QFn, tuned: PyTree, own: Own, fns: Fns, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics]:
        obs, (k_candidates, k_own) = batch.observation, jax.random.split(key)
        keys = jax.random.split(k_candidates, self.candidates)
        drawn = stop(jax.vmap(lambda k: fns.policy(obs).sample(k)[0])(keys))  # [K, B, A]
        many = jnp.broadcast_to(obs, (self.candidates, *obs.shape))
        value = stop(jnp.stack(fns.q_target(many, drawn)).min(0))
        action, log_prob = policy(obs).sample(k_own)
        near = self.embed(own.learned, obs, action) * stop(self.embed(own.rest["slow"], many, drawn))
        temperature = 0.3 + 0.7 * jnp.exp(-fns.event.env_steps / 1e5)
        weights = jax.nn.softmax(near.sum(-1) / temperature, 0)
        climbed = (weights * value).sum(0).mean()
        soft = -(tuned * stop(log_prob - fns.spec.action_size)).mean()
        return (self.alpha(tuned) * log_prob).mean() - climbed + soft, {"climbed": climbed}

    def after(self, own: Own, aux: Any, actor: PyTree, event: Event) -> Own:
        slow = jax.tree.map(lambda s, x: s + 0.005 * (x - s), own.rest["slow"], own.learned)
        scale = own.rest["scale"] if aux is None else aux["scale"]
        return own._replace(rest={"slow": slow, "scale": scale})

    def learning_rates(self, base: Base) -> tuple[float, float]:
        return self.pace, self.learning_rate


# --- running them ---------------------------------------------------------------------------------------

GAUSSIAN = {"head": "gaussian", "critics": 1, "policy_delay": 1, "target_noise": 0.0, "target_actor": False}
LISTED = {"target_noise": 0.0, "target_actor": False}
TOYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # recipe, fields of the base, sockets
    "pave": ("td3", {"critic_activation": "silu"}, {"regularisers": (Smooth(),)}),
    "pave on sale": ("td7", {}, {"regularisers": (Smooth(),)}),
    "asap": ("td3", {}, {"regularisers": (Foresee(),)}),
    "asap on sale and sac": ("sac+sale+normalise", {}, {"regularisers": (Foresee(),)}),
    "savo": ("td3", LISTED, {"maximiser": Listed()}),
    "savo on td7": ("td7", LISTED, {"maximiser": Listed()}),
    "savo on sac": ("sac", {}, {"maximiser": Listed()}),
    "greedy-ac": ("td3", GAUSSIAN, {"improvement": Likely()}),
    "savgo": ("sac", {"gradient_clip": 5.0, "critic_weight_decay": 1e-4}, {"improvement": Kernel()}),
    "savgo on sale": ("sac+sale+lap", {}, {"improvement": Kernel()}),
}


def toy(recipe: str, base: Mapping[str, Any] = {}, sockets: Mapping[str, Any] = {}) -> Agent:
    """The recipe's agent, small, with other parts in some sockets."""
    sizes = {"batch_size": 16, "replay_capacity": 256, "sync_every": 4}
    settings = {"base": sizes | {f"{net}_hidden": (WIDTH, WIDTH) for net in ("actor", "critic")} | base}
    if "sale" in build(recipe).parts:
        settings["sale"] = {"width": WIDTH, "hidden": (WIDTH,)}
    return dataclasses.replace(build(recipe, settings), **sockets).on(Spec(S, A))


class Trace(NamedTuple):
    """What a short life of an agent left behind."""

    agent: Agent
    states: list[State]  # before each update and after the last
    actions: list[np.ndarray]
    columns: list[dict[str, np.ndarray]]
    rows: np.ndarray
    metrics: dict[str, float]
    drawn: Mapping
    folded: Mapping


def live(agent: Agent, updates: int = UPDATES, options: Mapping[str, Any] = QUICK) -> Trace:
    """Random steps in two environments, then updates and steps in turn, by the programs of a run."""
    layout = agent.layout(E)
    programs, rng = Programs(agent, layout), np.random.default_rng(0)
    state, (rows, index) = agent.init(jax.random.key(0)), agent.replay.init(layout)
    key, noise = jax.random.key(1), agent.maximiser.memory(agent.task, E, agent.base)
    metrics = programs.blank_metrics(state, rows, index, key)
    states, actions, columns, step = [], [], [], None
    obs, first = rng.normal(size=(E, S)).astype(np.float32), np.ones(E, bool)
    with watched() as (drawn, folded):
        for t in range(20 + updates):
            if t < 20:
                state, now = programs.see(state, obs), (obs, first, np.int32(t), key)
                action, column, noise = programs.act(agent.acting(state), noise, *now, mode="warm_up")
            else:
                args = (state, rows, index, noise, metrics, obs, first, np.int32(t), key)
                step = step or programs.step.lower(*args).compile(compiler_options=options)
                states.append(jax.tree.map(np.array, state))
                state, index, noise, metrics, action, column = step(*args)
            actions.append(np.array(action))
            columns.append(jax.tree.map(np.array, dict(column)))
            after = rng.normal(size=(E, S)).astype(np.float32)
            ended = rng.random((2, E)) < 0.1
            reward = rng.normal(size=E).astype(np.float32)
            new = Rows(obs, action, reward, ended[0], ended[1] & ~ended[0], after, column)
            rows, index = programs.insert(rows, index, new, np.ones(E, bool))
            obs, first = after, ended.any(0)
        jax.effects_barrier()
    said = dict(zip(programs.metrics, np.asarray(metrics).tolist(), strict=True))
    states.append(jax.tree.map(np.array, state))
    return Trace(agent, states, actions, columns, np.array(rows), said, +drawn, +folded)


@cache
def life(name: str) -> Trace:
    """The life of a toy of the table."""
    return live(toy(*TOYS[name]))


@pytest.fixture(params=TOYS)
def lived(request) -> Trace:
    return life(request.param)


def test_a_toy_lives_under_jit(lived):
    for leaf in jax.tree.leaves((lived.states, lived.actions, lived.columns, lived.metrics)):
        assert np.isfinite(leaf).all()
    assert all(np.abs(action).max() <= 1.0 and action.shape == (E, A) for action in lived.actions)
    assert lived.states[-1].updates == UPDATES
    assert max(lived.drawn.values()) == 1
    assert not lived.drawn.keys() & lived.folded.keys()


def test_all_that_a_toy_carries_moves_in_its_turn(lived):
    """`learned` at every update, `tuned` with the actor, and all of it in the end."""
    delay = lived.agent.base.policy_delay
    for number, (old, new) in enumerate(zip(lived.states[:-1], lived.states[1:], strict=True), 1):
        assert same(old.actor, new.actor) == (number % delay != 0)
        for name, own in old.own.items():
            if own.learned is not None:
                assert not same(own.learned, new.own[name].learned)
            if own.tuned is not None:
                assert same(own.tuned, new.own[name].tuned) == (number % delay != 0)
    start, end = lived.states[0], lived.states[-1]
    still = [
        jax.tree_util.keystr(path)
        for (path, x), y in zip(jax.tree.leaves_with_path(start), jax.tree.leaves(end), strict=True)
        if np.array_equal(x, y) and x.size > 1
    ]
    assert not still


# --- what each of them may touch ------------------------------------------------------------------------


def differing(one: Trace, other: Trace, number: int) -> set[str]:
    """What is not the same to the bit after `number` updates, by name."""
    x, y = (trace.states[number] for trace in (one, other))
    pairs = {name: (getattr(x, name), getattr(y, name)) for name in ("actor", "actor_target")}
    pairs |= {name: (getattr(x, name), getattr(y, name)) for name in ("critics", "critics_target")}
    pairs |= {name: (x.own[name], y.own[name]) for name in x.own.keys() & y.own.keys()}
    shared = x.optimisers.keys() & y.optimisers.keys()
    pairs |= {f"{name}: adam": (x.optimisers[name], y.optimisers[name]) for name in shared}
    return {name for name, pair in pairs.items() if not same(*pair)}


@cache
def regularised(smooth: float | None = None, foresee: float | None = None) -> Trace:
    """TD3 with both regularisers at these weights, or without."""
    weights = ((Smooth, smooth), (Foresee, foresee))
    parts = tuple(kind(weight=weight) for kind, weight in weights if weight is not None)
    return live(toy("td3", {"critic_activation": "silu"}, {"regularisers": parts}), options=UNFUSED)


def test_parts_of_no_weight_change_no_bit():
    """Their random numbers come from streams of their own; all others stay what they were."""
    base, more = regularised(), regularised(0.0, 0.0)
    assert base.drawn.keys() <= more.drawn.keys()
    assert [differing(base, more, number) for number in range(UPDATES + 1)] == [set()] * (UPDATES + 1)
    assert same(base.actions, more.actions)


def test_a_critic_regulariser_reaches_the_critics_alone():
    assert differing(regularised(), regularised(1.0, 0.0), 1) == {"critics", "critics: adam"}


def test_an_actor_regulariser_reaches_the_actor_alone():
    base, more = regularised(), regularised(0.0, 1.0)
    assert differing(base, more, 1) == set()
    assert differing(base, more, 2) == {"actor", "actor: adam", "actor_target"}


def test_the_mixed_derivatives_are_those_of_the_critics():
    """Against finite differences of the numbers that the critics give, through SALE."""
    agent = toy("td7", {"critic_activation": "silu"})
    state = agent.init(jax.random.key(0))
    no = jnp.array(False)
    fns = agent.functions(state, Event(state.updates, state.env_steps, no, no))
    obs, action, aside = jax.random.normal(jax.random.key(1), (3, 4, WIDTH))
    obs, action, aside = obs[:, :S], action[:, :A] / 3, aside[:, :A]

    def slope(action: Array) -> Array:
        return jax.grad(lambda a: fns.q(obs, a)[0].sum())(action)

    turned = jax.jvp(slope, (action,), (aside,))[1]
    by_hand = (slope(action + 1e-2 * aside) - slope(action - 1e-2 * aside)) / 2e-2
    assert np.abs(turned).max() > 1e-3
    np.testing.assert_allclose(turned, by_hand, atol=5e-4)  # ELU's slope has a kink


def test_the_slow_copy_follows_head_and_actor():
    states = life("asap").states
    slow = states[0].own["foresee"].rest
    assert same(slow, (states[0].actor, states[0].own["foresee"].tuned)), "it begins equal"
    for state in states[1:]:
        online = (state.actor, state.own["foresee"].tuned)
        slow = jax.tree.map(lambda s, x: s + Foresee.rate * (x - s), slow, online)
        for x, y in zip(jax.tree.leaves(state.own["foresee"].rest), jax.tree.leaves(slow), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)


def test_proposals_travel_through_replay():
    lived = life("savo")
    layout = lived.agent.layout(E)
    rings = lived.rows.reshape(E, layout.ring, -1)[:, : 20 + UPDATES]
    kept = rings[..., layout.slices["proposals"]].reshape(E, -1, 2, A)
    np.testing.assert_array_equal(kept, np.stack([c["proposals"] for c in lived.columns], 1))
    np.testing.assert_array_equal(rings[..., layout.slices["action"]], np.stack(lived.actions, 1))


def moved(x: PyTree, y: PyTree) -> bool:
    """Do they differ by more than rounding? (Adam's first step changes a network by a thousandth.)"""
    x, y = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (x, y))
    return bool(np.linalg.norm(x - y) > 1e-4 * np.linalg.norm(x))


def test_each_climb_moves_its_own_actor_and_only_the_first_tunes():
    """SAVO on SAC, with and without the second climb: the temperature follows the first actor alone."""

    @dataclasses.dataclass(frozen=True)
    class Alone(Listed):
        def climbs(self, actor, own, fns, batch):
            return super().climbs(actor, own, fns, batch)[:1]

    start, both = life("savo on sac").states[:2]
    alone = live(toy("sac", {}, {"maximiser": Alone()}), 1).states[1]
    for pick, expected in (
        (lambda state: state.actor[0], (True, False)),
        (lambda state: state.actor[1], (True, True)),
        (lambda state: state.optimisers["soft.tuned"], (True, False)),
        (lambda state: state.own["listed"].learned, (True, False)),
        (lambda state: state.critics, (True, False)),
    ):
        mine, other = pick(both), pick(alone)
        assert (moved(pick(start), mine), moved(mine, other)) == expected
    assert same(alone.actor[1], start.actor[1])


def test_surrogates_learn_from_the_stepped_critics():
    still = live(toy("sac", {"critic_learning_rate": 1e-12}, {"maximiser": Listed()}), 1)
    assert "listed.learned: adam" in differing(life("savo on sac"), still, 1)


def test_acting_by_proposals_picks_what_q1_likes_and_noise_dies_with_the_episode():
    agent = toy("td3", LISTED, {"maximiser": Listed()})
    state, programs = agent.init(jax.random.key(0)), Programs(agent, agent.layout(4))
    acting, memory = agent.acting(state), 0.1 * jnp.ones((4, 3, A))
    obs, key = jax.random.normal(jax.random.key(1), (4, S)), jax.random.key(2)
    action, columns, kept = programs.act(acting, memory, obs, np.zeros(4, bool), 0, key, mode="evaluate")
    fns = agent.functions(state, Event(*[jnp.zeros((), jnp.int32)] * 2, *[jnp.array(False)] * 2))
    values = np.stack([fns.q(obs, columns["proposals"][:, i])[0] for i in range(2)], 1)
    best = np.take_along_axis(np.array(columns["proposals"]), values.argmax(1)[:, None, None], 1)[:, 0]
    np.testing.assert_allclose(action, best, atol=1e-6)
    assert same(kept, memory)
    first = np.array([True, False, True, False])
    _, _, kept = programs.act(acting, memory, obs, first, 0, key, mode="explore")
    _, _, from_zero = programs.act(acting, 0 * memory, obs, first, 0, key, mode="explore")
    changed = np.abs(np.array(kept) - np.array(from_zero)).max((1, 2))
    np.testing.assert_allclose(changed, np.where(first, 0.0, 0.085), atol=1e-6)


def test_the_proposal_policy_has_a_loss_of_its_own():
    start, *_, end = life("greedy-ac").states
    assert same(start.own["likely"].tuned, start.actor), "it begins as a copy"
    assert moved(end.own["likely"].tuned, end.actor)
    assert {"fit", "follow"} <= life("greedy-ac").metrics.keys()


def test_savgos_steps_follow_each_other():
    """The critics' step changes nothing else in its update; the encoder's changes the actor's.

    To the bit: the programs that are compared differ in one constant only.
    """

    def first(part: Kernel, **base: Any) -> Trace:
        recipe, fields, _ = TOYS["savgo"]
        return live(toy(recipe, fields | base, {"improvement": part}), 1)

    usual, critics = life("savgo"), {"critics", "critics_target"}
    assert differing(usual, first(Kernel(), critic_learning_rate=1e-12), 1) == critics
    differs = differing(usual, first(Kernel(pace=1e-12)), 1)
    assert differs >= {"kernel", "actor: adam"}
    assert not differs & {*critics, "critics: adam", "kernel.learned: adam"}


def test_what_learn_found_reaches_after():
    """SAVGO's running scale of value gaps is made in `learn` and kept by `after`."""
    lived = life("savgo")
    assert lived.states[-1].own["kernel"].rest["scale"] == np.float32(lived.metrics["scale"])
