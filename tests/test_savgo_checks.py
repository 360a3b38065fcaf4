"""SAVGO's numbers: each equation against values computed apart in float64, each gradient to where it may go.

The learning rule as a whole is compared with a straight-line twin in `test_oracles.py`.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rows import slow
from small import build, same, start
from test_contract import QUICK

from qscape import agents
from qscape.agents import preset
from qscape.errors import UsageError
from qscape.methods import _value_geometry as geometry
from qscape.methods import savgo
from qscape.methods.savgo import SAVGO, SlowEncoder
from qscape.nets import MLP
from qscape.nets.heads import SquashedNormal
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import BootstrapRule, Context, PartState
from qscape.ops.gaussian import log_std_tanh
from qscape.ops.norm import unit
from qscape.ops.quantile import quantile
from qscape.ops.ranking import rank_correlation
from qscape.ops.running import add_row, init_moments, standardise
from qscape.replay.storage import rows_at
from qscape.types import Batch, Event, Spec

close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
U = jnp.array([0.0, 1.0, 2.0, 4.0, 7.0])
NEAR, VALUES = jnp.array([[0.9, 0.5, -0.2]]), jnp.array([[1.0, 2.0, 4.0]])


# --- equations --------------------------------------------------------------------------------------


def test_policy_head():
    log_std = log_std_tanh(jnp.array([-1.0, 0.0, 1.0]), -5.0, 1.0)
    close(log_std, [-4.284782, -2.0, 0.284782])

    class Fixed(SquashedNormal):
        """ε = 1."""

    u = 0.0 + jnp.exp(log_std[1]) * 1.0
    close(u, 0.1353353)
    dist = Fixed(jnp.zeros(1), jnp.zeros(1), log_std[1:2])
    close(jnp.tanh(u), 0.1345150)
    close(dist.log_prob(jnp.tanh(u)[None]), 0.5993204, rtol=1e-5)


def test_smooth_l1_is_the_huber_function_over_b():
    close(geometry.smooth_l1(jnp.array([0.1, 0.2, -0.5]), 0.2), [0.025, 0.1, 0.4])


def test_the_gap_scale_counts_the_diagonal_and_follows_slowly():
    first = geometry.gap_scale(geometry.value_gaps(U))
    close(first, 6.800001)  # 7.000001: without the diagonal
    scale = geometry.update_scale(jnp.zeros(()), first, 0.005)
    assert scale == first
    second = geometry.gap_scale(geometry.value_gaps(2 * U))
    close(geometry.update_scale(scale, second, 0.005), 6.834001)


@pytest.mark.parametrize("n", [2, 5, 100, 1024])
@pytest.mark.parametrize("q", [0.0, 0.3, 0.95, 1.0])
def test_the_quantile_is_numpys(n, q):
    rng = np.random.default_rng(n)
    for x in (rng.exponential(size=n), np.repeat(rng.exponential(size=1), n), rng.integers(0, 3, n)):
        x = x.astype(np.float32)
        close(quantile(jnp.asarray(x), q), np.quantile(x.astype(float), q))


def test_similarity_of_values():
    gaps = geometry.value_gaps(U)
    close(geometry.similarity(gaps, 6.800001, 1.5)[0], [1, 0.887211, 0.680985, 0.097688, -1])
    close(geometry.similarity(gaps, 6.800001, 2.0)[0], [1, 0.956747, 0.826990, 0.307959, -1])
    equal = geometry.value_gaps(jnp.ones(5))
    close(geometry.gap_scale(equal), 1e-6, rtol=1e-4)
    assert (geometry.similarity(equal, geometry.gap_scale(equal), 1.5) == 1.0).all()


def test_bootstrapped_similarity_ends_with_the_row():
    now = geometry.similarity(geometry.value_gaps(U), 6.800001, 1.5)
    halves = jnp.array([[1.0, 0.0]] * 5) * np.sqrt(0.5)  # all z'_i · z'_j = 0.5
    wanted = geometry.bootstrap_similarity(now, halves, jnp.array([0.0, 0, 1, 0, 0]), 0.99, 0.5)
    at = [(0, 1), (0, 2), (2, 0), (0, 4), (4, 2)]
    close([wanted[i] for i in at], [0.691106, 0.587992, 0.340492, -0.2525, 0.116991])


@pytest.mark.parametrize(("exponent", "expected"), [(1.5, 0.4685557), (2.0, 0.4787729)])
def test_encoder_loss(exponent, expected):
    raw = jnp.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    later = unit(jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    gaps = geometry.value_gaps(jnp.array([0.0, 1.0, 3.0]))
    scale = geometry.gap_scale(gaps)
    close(scale, 3.000001)
    now = geometry.similarity(gaps, scale, exponent)
    wanted = geometry.bootstrap_similarity(now, later, jnp.array([0.0, 1.0, 0.0]), 0.99, 0.5)

    def loss(raw):
        return geometry.encoder_loss(unit(raw), wanted, 0.2)

    close(loss(raw), expected)
    if exponent == 1.5:
        off = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
        close([wanted[i] for i in off], [0.657568, -0.5, 0.307550, -0.044331, -0.5, 0.305687], atol=2e-6)
        close(jax.grad(loss)(raw), [[-0.016807, 0.012605], [0, -0.034770], [0.035138, 0]])


def test_temperature():
    steps = jnp.array([0, 5_000, 50_000, 100_000, 150_000, 200_000, 900_000])
    close(
        geometry.anneal_temperature(steps, 1.0, 0.3, 200_000),
        [1, 0.998921, 0.897487, 0.65, 0.402513, 0.3, 0.3],
    )
    close(geometry.anneal_temperature(steps, 0.3, 0.3, 200_000), [0.3] * 7)  # no schedule
    near = jnp.array([[0.2, 0.4, 0.9]])
    close(0.3 + geometry.spread(near), [0.660555])  # 0.594392: divided by K


def climbed(near, adaptive=False, center=False, values=VALUES, uniform=0.05):
    tau = 0.3 + geometry.spread(near)[:, None] if adaptive else 0.3
    return geometry.kernel_value(geometry.kernel_weights(near, tau, uniform), values, center).sum()


def test_kernel():
    weights = geometry.kernel_weights(NEAR, jnp.array(0.3), 0.05)
    close(weights, [[0.753581, 0.210915, 0.035503]])
    close(geometry.kernel_weights(NEAR, jnp.array(0.3), 0.0), [[0.775700, 0.204472, 0.019828]])
    close(weights.sum(), 1.0)
    assert (weights >= 0.05 / 3).all()
    value, slope = jax.value_and_grad(climbed)(NEAR)
    close(value, 1.317425)
    close(slope, [[-0.648378, 0.476585, 0.171793]])
    value, slope = jax.value_and_grad(partial(climbed, adaptive=True))(NEAR)
    close(value, 1.794086)
    close(slope, [[-0.220244, 0.130686, 0.089558]])  # another one: the spread carries no gradient


@pytest.mark.parametrize("adaptive", [False, True])
def test_centring_changes_the_value_and_not_the_gradient(adaptive):
    plain, centred = (
        jax.value_and_grad(partial(climbed, adaptive=adaptive, center=c))(NEAR) for c in (False, True)
    )
    close(centred[0], 0.0)
    close(centred[1], plain[1])


@pytest.mark.parametrize("adaptive", [False, True])
def test_equal_values_and_equal_cosines(adaptive):
    equal = jax.grad(partial(climbed, adaptive=adaptive, values=jnp.full((1, 3), 2.0)))(NEAR)
    close(equal, np.zeros((1, 3)))
    slope = jax.grad(partial(climbed, adaptive=adaptive))(jnp.full((1, 3), 0.5))
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0.1
    uniform = jax.grad(partial(climbed, adaptive=adaptive, uniform=1.0))(NEAR)
    assert (uniform == 0.0).all()


@pytest.mark.slow
def test_rank_correlation_is_scipys():
    from scipy.stats import spearmanr

    x, y = np.random.default_rng(0).normal(size=(2, 300)).round(1)  # with ties
    y = (y - x).round(1)
    close(rank_correlation(jnp.asarray(x), jnp.asarray(y)), spearmanr(x, y).statistic)
    assert rank_correlation(jnp.ones(5), jnp.arange(5.0)) == 0.0
    close(rank_correlation(jnp.array([3.0, 4.0]), jnp.array([1.0, 9.0])), 1.0)


def test_normaliser():
    seen, mean, var, now = init_moments(1), [], [], []
    for x in (2.0, 4.0, 6.0):
        seen = add_row(seen, jnp.array([x]))
        mean, var = [*mean, seen.mean[0]], [*var, seen.var[0]]
        now.append(standardise(seen, jnp.array([x]))[0])
    close(mean, [1.999800, 2.999850, 3.999867])
    close(var, [0.00049991, 1.00044996, 2.66714441], rtol=2e-5)
    close(
        now, [0.0089442, 0.9999250, 1.2247168], rtol=2e-4
    )  # the first: a difference of nearly equal numbers


@pytest.mark.parametrize("constant", [0.0, 3.0, -1e4])
def test_a_constant_observation_stays_finite_and_small(constant):
    """The first change after that is a huge number; `normalise.clip` bounds it."""
    x = jnp.array([constant])
    seen = jax.lax.fori_loop(0, 5_000, lambda _, m: add_row(m, x), init_moments(1))
    assert np.abs(standardise(seen, x)) < 0.1
    changed = standardise(seen, x + 1.0 + abs(constant))
    assert np.isfinite(changed)
    part = agents.build("sac+savgo+normalise", {"normalise": {"clip": 10.0}}).normaliser
    assert np.abs(part.apply(PartState(extra=seen), x + 1.0 + abs(constant))) <= 10.0


# --- the part ---------------------------------------------------------------------------------------


def stub(dist: Any, value: Any, spec: Spec, env_steps: Any = 0) -> Context:
    """Functions of known policies and values."""

    def missing(*args: Any) -> Any:
        raise AssertionError("SAVGO has no use for this")

    no, steps = jnp.array(False), jnp.asarray(env_steps)
    event = Event(steps, steps, no, no)
    blank = dict.fromkeys(Context.__dataclass_fields__, missing)
    known = {"policy": dist, "q_target": value, "event": event, "spec": spec, "base": Base(), "table": None}
    return Context(**blank | known)


def normal(mean: Any, log_std: Any) -> SquashedNormal:
    return SquashedNormal(jnp.zeros((*jnp.shape(mean)[:-1], 1)), jnp.asarray(mean), jnp.asarray(log_std))


def test_the_target_pays_for_entropy():
    class Sure(SquashedNormal):
        def sample(self, key):
            return jnp.zeros((1, 1)), jnp.array([-1.0])

    part, own = SAVGO(), PartState(actor_params=jnp.log(0.5))
    context = stub(None, lambda obs, action: [], Spec(1, 1))
    policy = lambda obs: Sure(jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.zeros((1, 1)))  # noqa: E731
    _, bonus = part.next_action(policy, own, context, jnp.zeros((1, 1)), jax.random.key(0))
    agent = agents.build("sac+savgo")
    rule = BootstrapRule(None, None, lambda qs: agent.bootstrap.value(PartState(), qs, None))
    one = jnp.ones((1, 1))
    heads = jnp.array([[[3.0], [2.0]]])
    y = [
        agent.value.target(heads, rule, bonus, Batch(one, one, one[0], jnp.array([d]), one, 0.99))[0, 0]
        for d in (0.0, 1.0)
    ]
    close(y, [3.475, 1.0])


def test_the_temperature_falls_where_the_policy_is_random_enough():
    slope = jax.grad(lambda t: SAVGO().tuning(t, jnp.array([-1.0]), Spec(1, 6))[0])(jnp.zeros(()))
    close(slope, 7.0)
    optimiser = agents.build("sac+savgo").optimiser("savgo.actor_params")
    step, _ = optimiser.update(slope, optimiser.init(jnp.zeros(())), jnp.zeros(()))
    close(step, -1e-3)


def test_the_slow_encoder_follows():
    own = PartState(params=jnp.array(2.0), extra=SlowEncoder(jnp.array(1.0), jnp.array(3.0)))
    after = SAVGO().post_update(own, None, None)
    close((after.extra.encoder, after.extra.scale), (1.005, 3.0))


def test_optimisers():
    """L2 passes through Adam: nearly a sign step. The clip comes before."""
    agent = agents.build("sac+savgo").on(Spec(17, 6))
    weights = jnp.array([0.05, 0.001])
    optimiser = agent.optimiser("critics")
    step, _ = optimiser.update(jnp.zeros(2), optimiser.init(weights), weights)
    close(step, [-2.994e-4, -2.727e-4], rtol=2e-4)
    for name in ("critics", "actor", "savgo.params", "savgo.actor_params"):
        optimiser, zero = agent.optimiser(name), jnp.zeros(2)
        _, (*_, adam) = optimiser.update(jnp.array([30.0, 40.0]), optimiser.init(zero), zero)
        init_moments = next(
            s for s in jax.tree.leaves(adam, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")
        )
        close(jnp.linalg.norm(init_moments.mu), 0.5)  # a tenth of 5


def test_networks_have_the_published_sizes():
    def sizes(spec):
        state = jax.eval_shape(agents.build("sac+savgo").on(spec).init, jax.random.key(0))
        trees = (state.actor, state.critics, state.part_states["savgo"].params)
        return [sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree)) for tree in trees]

    assert sizes(Spec(17, 6)) == [139_276, 144_386, 203_520]
    assert sizes(Spec(348, 17)) == [229_666, 319_490, 291_072]


@pytest.mark.parametrize("recipe", [slow("sac"), "sac+sale"])
def test_a_state_is_embedded_once_for_all_its_actions(recipe):
    """Q at one state [B, 1, S] and K actions [B, K, A] is Q at the state repeated, with fewer products."""
    agent = build(recipe, 16)
    state = agent.init(jax.random.key(0))
    no = jnp.array(False)
    q = agent.functions(state, Event(state.updates, state.env_steps, no, no)).q
    k_obs, k_action = jax.random.split(jax.random.key(1))
    obs, action = jax.random.normal(k_obs, (4, 1, 5)), jax.random.uniform(k_action, (4, 8, 3))
    once, many = (obs, action), (jnp.repeat(obs, 8, 1), action)
    for a, b in zip(q(*once), q(*many), strict=True):
        assert a.shape == (4, 8)
        close(a, b, rtol=1e-4)
    costs = [jax.jit(q).lower(*at).compile().cost_analysis()["flops"] for at in (once, many)]
    assert costs[0] < costs[1]


@pytest.mark.parametrize(("scale", "expected"), [slow("unit", 0.5), ("released", 0.2)])
def test_candidates_in_units_of_the_environment(scale, expected):
    bound = np.full(1, 0.4, np.float32)
    part, spec = SAVGO(jitter=0.0, action_scale=scale, candidates=2), Spec(1, 1, low=-bound, high=bound)
    seen: dict[str, Any] = {}

    class Recorded(SAVGO):
        def embed(self, encoder, obs, action):
            seen.setdefault(encoder, []).append(action)
            return unit(jnp.ones((*action.shape[:-1], 2)))

    part = Recorded(**dataclasses.asdict(part))
    sharp = lambda obs: normal(jnp.full((len(obs), 1), np.arctanh(0.5)), jnp.full((len(obs), 1), -30.0))  # noqa: E731

    def value(obs, action):
        seen.setdefault("critic", []).append(action)
        return [action.sum(-1)]

    own = PartState(params="online", actor_params=jnp.zeros(()), extra=SlowEncoder("slow", jnp.zeros(())))
    batch = Batch(*(jnp.full(s, 0.5) for s in ((2, 1), (2, 1), (2,), (2,), (2, 1))), 0.99)
    context = stub(sharp, value, spec)
    part.learn("online", own, context, batch, jax.random.key(0))
    close(seen["online"][0], 0.5)  # the stored action
    close(seen["slow"][0], expected)  # the next one
    close(seen["critic"][0], 0.5)
    seen.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(savgo, "stop", lambda x: x)
        part.loss(sharp, value, own.actor_params, own, context, batch, jax.random.key(0))
    close(seen["online"][0], 0.5)  # the policy's own
    close(seen["slow"][0], expected)
    close(seen["critic"][0], expected)


# --- where gradients go -----------------------------------------------------------------------------


def compiled(program, *args):
    """What a program gives, compiled as quickly as can be."""
    return jax.jit(program).lower(*args).compile(compiler_options=QUICK)(*args)


class Scene(NamedTuple):
    """An agent, its batch, and its losses as functions of all that they could move."""

    agent: Any
    batch: Batch
    moved: tuple[Any, ...]  # actor, critics, their targets, encoder, its slow copy, log α

    def context(self, actor, critics, targets) -> Context:
        zero, no = jnp.zeros((), jnp.int32), jnp.array(False)
        event = Event(zero + 1, zero + 60_000, no, no)
        state = self.agent.init(jax.random.key(0))._replace(
            actor=actor, critics=critics, critics_target=targets
        )
        return self.agent.functions(state, event)

    def climb(self, part, context, learned, slow, tuned):
        own = PartState(learned, tuned, SlowEncoder(slow, jnp.ones(())))
        return part.loss(context.policy, context.q, tuned, own, context, self.batch, jax.random.key(5))[0]

    def gradients(self, part, which="climb"):
        def loss(moved):
            *nets, learned, slow, tuned = moved
            context = self.context(*nets)
            if which == "climb":
                return self.climb(part, context, learned, slow, tuned)
            own = PartState(learned, tuned, SlowEncoder(slow, jnp.ones(())))
            return part.learn(learned, own, context, self.batch, jax.random.key(5))[0]

        names = ("actor", "critics", "critics_target", "encoder", "slow_encoder", "log_alpha")
        return dict(zip(names, compiled(jax.grad(loss), self.moved), strict=True))


@pytest.fixture(scope="module")
def scene() -> Scene:
    run = start(build("sac+savgo", 16))
    # A sharp kernel over wide draws of large values, and little entropy: otherwise an untrained kernel pulls
    # by no more than rounding.
    part = dataclasses.replace(run.agent.policy_loss, tau=0.003, tau_end=0.003, jitter=0.5)
    agent, state = dataclasses.replace(run.agent, policy_loss=part), run.state
    i = jnp.arange(16)
    batch = rows_at(agent.layout(1), run.storage, run.replay_state, i, *agent.sampling_options)
    other = agent.init(jax.random.key(7))  # slow copies that differ from their originals
    mine = state.part_states["savgo"]
    slow = jax.tree.map(lambda x: 3.0 * x, other.critics), other.part_states["savgo"].params
    moved = (state.actor, state.critics, slow[0], mine.params, slow[1], mine.actor_params - 7.0)
    return Scene(agent, batch, moved)


def zero(tree) -> bool:
    return all((np.asarray(x) == 0.0).all() for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("fields", [slow({}), {"adaptive": True, "center": True, "variant": "v1"}])
def test_the_climb_moves_actor_and_temperature_alone(scene, fields):
    found = scene.gradients(dataclasses.replace(scene.agent.policy_loss, **fields))
    assert {name for name, g in found.items() if not zero(g)} == {"actor", "log_alpha"}


@pytest.mark.parametrize("fields", [{}, {"variant": "v1"}])
def test_the_encoders_loss_moves_the_encoder_alone(scene, fields):
    found = scene.gradients(dataclasses.replace(scene.agent.policy_loss, **fields), "learn")
    assert {name for name, g in found.items() if not zero(g)} == {"encoder"}


def test_values_that_are_compared(scene):
    """v2 adds the reward to the discounted value at (s, a) itself; a real end leaves the reward alone."""
    context, batch = scene.context(*scene.moved[:3]), scene.batch._replace(terminated=jnp.arange(16) % 2.0)
    q = jnp.minimum(*context.q_target(batch.observation, batch.action))
    v2 = jnp.where(batch.terminated > 0, batch.reward, batch.reward + 0.99 * q)
    part = scene.agent.policy_loss
    close(part.compared_values(context, batch), v2)
    close(dataclasses.replace(part, variant="v1").compared_values(context, batch), q)


def actor_gradient(scene, part, change=lambda context: context):
    """The gradient of the climb for the actor alone, as one vector."""

    def loss(actor, batch, critics, targets, learned, slow, tuned):
        context = change(scene.context(actor, critics, targets))
        return scene._replace(batch=batch).climb(part, context, learned, slow, tuned)

    actor, *rest = scene.moved
    return flat(compiled(jax.grad(loss), actor, scene.batch, *rest))


def entropy_gradient(scene, value=lambda context, obs, action: jnp.zeros(())):
    """That of mean(α log π - value) at the same draws."""
    actor, critics, targets, *_, tuned = scene.moved
    k_own, _ = jax.random.split(jax.random.key(5))

    def loss(actor, batch):
        context, obs = scene.context(actor, critics, targets), batch.observation
        action, log_prob = context.policy(obs).sample(k_own)
        return (jnp.exp(tuned) * log_prob - value(context, obs, action)).mean()

    return flat(compiled(jax.grad(loss), actor, scene.batch))


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def apart(x: np.ndarray, y: np.ndarray) -> float:
    """How far x is from y, relative to y."""
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def test_only_the_values_of_the_candidates_count_not_their_slopes(scene):
    part = scene.agent.policy_loss
    plain = actor_gradient(scene, part)

    def flattened(context):  # the same numbers, of a function without a slope
        return context._replace(q_target=lambda *at: jax.lax.stop_gradient(context.q_target(*at)))

    assert np.array_equal(plain, actor_gradient(scene, part, flattened))
    assert (
        apart(actor_gradient(scene, part, lambda context: context._replace(q_target=context.q)), plain) > 0.01
    )


def test_uniform_weights_leave_only_the_entropy(scene):
    part, entropy = scene.agent.policy_loss, entropy_gradient(scene)
    assert apart(actor_gradient(scene, dataclasses.replace(part, uniform=1.0)), entropy) < 1e-5
    assert apart(actor_gradient(scene, part), entropy) > 0.01


def test_the_hybrid_mixes_the_kernels_gradient_with_sacs(scene):
    kernel, mixed, slope = (
        actor_gradient(scene, dataclasses.replace(scene.agent.policy_loss, policy_gradient=w))
        for w in (0.0, 0.25, 1.0)
    )
    assert apart(kernel, slope) > 0.01
    assert apart(mixed, 0.75 * kernel + 0.25 * slope) < 1e-4
    # SAC's, by the lesser of the online critics.
    sac = entropy_gradient(scene, lambda context, obs, action: jnp.minimum(*context.q(obs, action)))
    assert apart(slope, sac) < 1e-4


def test_the_adaptive_temperature_carries_gradient(scene):
    """The first variant's climb, written out."""
    part = dataclasses.replace(scene.agent.policy_loss, adaptive=True, tau=0.05, tau_end=0.05, uniform=0.2)
    _, k_candidates = jax.random.split(jax.random.key(5))
    *_, learned, slow, _ = scene.moved

    def by_hand(stopped):
        def climbed(context, obs, action):
            mean, log_std = (jnp.repeat(x[:, None], 8, 1) for x in jax.tree.leaves(context.policy(obs))[1:])
            k_policy, k_jitter = jax.random.split(k_candidates)
            drawn = jnp.tanh(mean + jnp.exp(log_std) * jax.random.normal(k_policy, mean.shape))
            drawn = jnp.clip(drawn + 0.5 * jax.random.normal(k_jitter, mean.shape), -1.0, 1.0)
            many = jnp.repeat(obs[:, None], 8, 1)
            there, value = jax.lax.stop_gradient(
                (unit(slow(jnp.concatenate([many, drawn], -1))), jnp.minimum(*context.q_target(many, drawn)))
            )
            here = unit(learned(jnp.concatenate([obs, action], -1)))
            cosine = (here[:, None] * there).sum(-1)
            tau = 0.05 + jnp.std(cosine, axis=1, ddof=1, keepdims=True)
            weight = jnp.exp(cosine / (jax.lax.stop_gradient(tau) if stopped else tau))
            weight = 0.8 * weight / weight.sum(-1, keepdims=True) + 0.2 / 8
            return (weight * value).sum(-1).mean()

        return entropy_gradient(scene, climbed)

    found = actor_gradient(scene, part)
    assert apart(found, by_hand(stopped=False)) < 1e-3
    assert apart(found, by_hand(stopped=True)) > 1e-2


def test_a_kernel_batch_takes_the_first_states(scene):
    part = dataclasses.replace(scene.agent.policy_loss, kernel_batch=4)
    obs = scene.batch.observation
    pulls = []
    for seen in (obs, obs.at[4:].add(1.0), obs.at[:4].add(1.0)):
        other = scene._replace(batch=scene.batch._replace(observation=seen))
        pulls.append(actor_gradient(other, part) - entropy_gradient(other))
    assert apart(pulls[1], pulls[0]) < 1e-4
    assert apart(pulls[2], pulls[0]) > 0.1


@pytest.mark.slow
def test_candidates_in_blocks_are_the_same_candidates(scene, monkeypatch):
    part, entropy = scene.agent.policy_loss, entropy_gradient(scene)
    whole = actor_gradient(scene, part) - entropy
    monkeypatch.setitem(savgo.ROWS, "cpu", 5 * part.candidates)  # 5, 5, 5 and 1 states
    assert apart(actor_gradient(scene, part) - entropy, whole) < 1e-4


# --- the order of one update ------------------------------------------------------------------------


def first_update(**fields: Any):
    """What one update leaves behind; `fields` of the base, or of savgo and polyak by dict."""
    of_parts = {name: fields.pop(name, {}) for name in ("savgo", "polyak")}
    agent = build("sac+savgo", 8, **fields)
    agent = dataclasses.replace(
        agent,
        policy_loss=dataclasses.replace(agent.policy_loss, **of_parts["savgo"]),
        target_update=dataclasses.replace(agent.target_update, **of_parts["polyak"]),
    )
    run = start(agent)
    return compiled(
        partial(agent.update, agent.layout(1)), run.state, run.storage, run.replay_state, run.key
    )[0]


def differing(one, other) -> set[str]:
    """Networks and optimisers that differ."""
    flat = [
        {"actor": s.actor, "critics": s.critics, "targets": s.critics_target}
        | {
            "encoder": s.part_states["savgo"].params,
            "slow": s.part_states["savgo"].extra,
            "alpha": s.part_states["savgo"].actor_params,
        }
        | {f"{k}: adam": v for k, v in s.optimisers.items()}
        for s in (one, other)
    ]

    def close(x, y):  # constants alone may make XLA sum in another order
        return np.abs(x - y).max() <= 1e-6 * np.abs(x).max()

    leaves = [{name: jax.tree.leaves(x) for name, x in networks.items()} for networks in flat]
    return {name for name in leaves[0] if not all(map(close, leaves[0][name], leaves[1][name]))}


@pytest.mark.slow
def test_the_memory_of_an_update_at_256_candidates():
    """77 MiB as XLA plans it; all candidates at once would take 322 MiB."""
    agent = agents.build("sac+savgo", {"savgo": {"candidates": 256}}).on(Spec(17, 6))
    layout, key = agent.layout(1), jax.random.key(0)
    replay = jax.eval_shape(lambda: agent.init_replay(layout))
    update = jax.jit(partial(agent.update, layout))
    planned = update.lower(jax.eval_shape(agent.init, key), *replay, key).compile().memory_analysis()
    assert 2**20 < planned.temp_size_in_bytes < 150 * 2**20


@pytest.mark.slow
def test_order_of_one_update():
    """Encoder, then actor on the stepped encoder; the critics' step is felt in the next update only."""
    usual = first_update()
    assert differing(usual, first_update(critic_learning_rate=1e-30)) == {"critics", "targets"}
    by_encoder = differing(usual, first_update(savgo={"encoder_learning_rate": 0.1}))
    assert by_encoder >= {"encoder", "slow", "actor: adam"}
    assert not by_encoder & {"critics", "targets", "critics: adam", "savgo.params: adam"}
    rates = {"polyak": {"rate": 0.5}, "savgo": {"encoder_rate": 0.5}}
    assert differing(usual, first_update(**rates)) == {"targets", "slow"}


def test_a_time_limit_ends_the_return_if_asked():
    run = start(build("sac+savgo", 8))
    i = jnp.arange(700)
    plain, asked = (
        rows_at(run.agent.layout(1), run.storage, run.replay_state, i, n_step, 0.99, {"truncated"}, flag)
        for n_step, flag in ((1, True), (1, False))
    )
    assert 0 < plain.extra["truncated"].sum() < 700
    assert same(plain.terminated, run.memory.terminated)
    assert same(asked.terminated, jnp.maximum(plain.terminated, plain.extra["truncated"]))
    assert agents.build("sac").sampling_options[-1]
    assert not agents.build("sac", {"base": {"bootstrap_at_time_limits": False}}).sampling_options[-1]


# --- a bandit ---------------------------------------------------------------------------------------


class Bandit(NamedTuple):
    policy: Any  # μ and r, before the squash
    encoder: Any
    slow: SlowEncoder
    log_alpha: Any
    optimisers: Any


def play(part: SAVGO, updates: int = 3_000) -> tuple[float, float]:
    """tanh(μ) and σ in the end, where Q(a) = -10 (a - 0.5)² is known and the policy starts at μ = -0.5."""
    encoder = MLP(jax.random.key(0), (1, *part.hidden, part.embedding), "relu")
    policy, log_alpha, spec = jnp.array([-0.5, 0.0]), jnp.zeros(()), Spec(0, 1)
    adams = optax.adam(3e-3), optax.adam(1e-3), optax.adam(1e-3)

    def value(obs, action):
        return [-10.0 * jnp.square(action[..., 0] - 0.5)]

    def said(policy):
        def at(obs):
            mean, raw = (jnp.full((len(obs), 1), x) for x in policy)
            return normal(mean, log_std_tanh(raw, -5.0, 1.0))

        return at

    def update(now: Bandit, number):
        key_batch, key_learn, key_loss = jax.random.split(jax.random.fold_in(jax.random.key(1), number), 3)
        none, ones = jnp.zeros((64, 0)), jnp.ones(64)
        actions = jax.random.uniform(key_batch, (64, 1), minval=-1.0, maxval=1.0)
        batch = Batch(none, actions, 0.0 * ones, ones, none, 0.99)

        def parts(learned):
            return PartState(None if part.frozen else learned, now.log_alpha, now.slow)

        o_policy, o_encoder, o_alpha = now.optimisers
        context = stub(said(now.policy), value, spec, number)
        encoder, slow = now.encoder, now.slow
        if not part.frozen:

            def loss(x):
                value, _, extra = part.learn(x, parts(x), context, batch, key_learn)
                return value, extra

            gradient, slow = jax.grad(loss, has_aux=True)(encoder)
            step, o_encoder = adams[1].update(gradient, o_encoder)
            encoder = optax.apply_updates(encoder, step)
            slow = part.post_update(PartState(encoder, None, slow), None, None).extra

        def climb(policy, log_alpha):
            context = stub(said(policy), value, spec, number)
            return part.loss(context.policy, value, log_alpha, parts(encoder), context, batch, key_loss)[0]

        g_policy, g_alpha = jax.grad(climb, (0, 1))(now.policy, now.log_alpha)
        step, o_policy = adams[0].update(g_policy, o_policy)
        policy = now.policy + step
        step, o_alpha = adams[2].update(g_alpha, o_alpha)
        log_alpha = now.log_alpha + step
        return Bandit(policy, encoder, slow, log_alpha, (o_policy, o_encoder, o_alpha)), None

    opt = adams[0].init(policy), adams[1].init(encoder), adams[2].init(log_alpha)
    begin = Bandit(policy, encoder, SlowEncoder(encoder, jnp.zeros(())), log_alpha, opt)
    end = jax.jit(lambda s: jax.lax.scan(update, s, jnp.arange(updates))[0])(begin)
    mean, raw = end.policy
    return float(jnp.tanh(mean)), float(jnp.exp(log_std_tanh(raw, -5.0, 1.0)))


BANDIT = SAVGO(candidates=32, variant="v1", hidden=(64, 64, 64), embedding=32, tau_horizon=1_000)


@pytest.mark.slow
def test_the_bandit_is_solved():
    action, spread = play(BANDIT)
    assert 0.45 < action < 0.55
    assert spread < 0.25


@pytest.mark.slow
def test_the_bandit_is_not_solved_by_uniform_weights():
    action, spread = play(dataclasses.replace(BANDIT, uniform=1.0, frozen=True))
    assert abs(action) < 0.05
    assert spread > 0.7


@pytest.mark.slow
def test_a_random_geometry_is_worse():
    action, spread = play(dataclasses.replace(BANDIT, frozen=True))
    assert action > 0.6
    assert spread > 0.45


# --- what cannot be ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "fields", "says"),
    [
        ("td3+savgo", {}, "a stochastic base fits: sac+savgo"),
        ("td7+savgo", {}, "a stochastic base fits: sac+savgo"),
        (
            "sac+savgo",
            {"candidates": 1},
            "savgo.candidates is 1; the kernel weighs candidates against each other",
        ),
        ("sac+savgo", {"exponent": 0.0}, "savgo.exponent is 0.0; it must be a number above 0."),
        ("sac+savgo", {"exponent": -1.5}, "savgo.exponent is -1.5"),
        ("sac+savgo", {"tau": 0.0}, "savgo.tau is 0.0; it must be a number above 0."),
        ("sac+savgo", {"tau_end": -0.3}, "savgo.tau_end is -0.3"),
        ("sac+savgo", {"tau": float("nan")}, "savgo.tau is nan"),
        ("sac+savgo", {"uniform": 1.5}, "savgo.uniform is 1.5; it must lie in [0, 1]."),
        ("sac+savgo", {"gap_scale": 0.0}, "savgo.gap_scale is 0.0; it must be a number above 0, or None."),
        ("sac+savgo", {"jitter": -0.1}, "savgo.jitter is -0.1; it must be a number, 0 or more."),
        ("sac+savgo", {"kernel_batch": 0}, "savgo.kernel_batch is 0; it must be at least 1, or None."),
        ("sac+savgo", {"kernel_batch": 257}, "savgo.kernel_batch is 257, but a batch has 256 transitions"),
        (
            "sac+savgo",
            {"hidden": [0]},
            "savgo.hidden is (0,); it has one entry or more, and each must be at least 1.",
        ),
        (
            "sac+savgo",
            {"temperature": -1.0},
            "savgo.temperature is -1.0; it must be a number, 0 or more, or None.",
        ),
    ],
)
def test_what_cannot_be_is_refused(recipe, fields, says):
    with pytest.raises(UsageError) as problem:
        agents.build(recipe, {"savgo": fields})
    assert says in str(problem.value)


def test_a_batch_without_pairs_is_refused():
    with pytest.raises(UsageError, match=r"pairs of a batch, and base\.batch_size is 1; take at least 2"):
        agents.build("sac+savgo", {"base": {"batch_size": 1}})


@pytest.mark.parametrize(
    ("env", "variant", "candidates", "exponent", "adaptive"),
    [
        ("HalfCheetah-v5", "v2", 128, 1.5, False),
        ("Humanoid-v5", "v2", 256, 1.5, False),
        ("Ant-v5", "v1", 256, 2.0, True),
        ("Walker2d-v5", "v1", 64, 2.0, True),
        ("Hopper-v5", "v1", 64, 2.0, True),
        ("Swimmer-v5", "v1", 128, 2.0, True),
        ("Reacher-v5", "v1", 128, 2.0, True),
        ("InvertedPendulum-v5", "v1", 64, 2.0, True),
        ("InvertedDoublePendulum-v5", "v1", 32, 2.0, True),
    ],
)
def test_presets(env, variant, candidates, exponent, adaptive):
    settings, source = preset("paper", "sac+savgo+normalise", env)
    assert "2605.00787" in source
    agent = agents.build("sac+savgo+normalise", settings)
    part = agent.policy_loss
    assert (part.variant, part.candidates, part.exponent) == (variant, candidates, exponent)
    assert (part.adaptive, part.action_scale) == (adaptive, "released")
    base = agent.base
    assert (base.bootstrap_at_time_limits, base.warmup, base.batch_size) == (False, 5_000, 256)
    assert (part.learning_rate, part.encoder_learning_rate, part.jitter) == (1e-3, 1e-3, 0.2)


def test_action_tables_are_refused():
    with pytest.raises(UsageError, match="are a table; leave savgo out"):
        agents.build("sac+savgo").on(Spec(2, 2, table=np.eye(2, dtype=np.float32)))
