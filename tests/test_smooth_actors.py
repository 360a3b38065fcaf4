"""CAPS, GRAD, ASAP, L2C2, LipsNet, `jacobian`: terms on rows worked out by hand, and where observations come
from.
"""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow
from small import A, S, same, start
from small import build as small
from test_contract import QUICK

from qscape.agents import build
from qscape.contrib.jacobian import ActionJacobian
from qscape.contrib.l2c2 import L2C2
from qscape.errors import UsageError
from qscape.methods.asap import ASAP
from qscape.methods.caps import CAPS
from qscape.methods.grad import GRAD
from qscape.offpolicy import update
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Context, PartState
from qscape.ops.running import Moments
from qscape.ops.smooth import second_difference
from qscape.replay.storage import rows_at
from qscape.types import Batch, Event, Spec, Transition

# One row: the deterministic action in the previous state, in the state, and in its successor.
BEFORE, NOW, AFTER = 0.0, 1.0, 2.0
NOTHING = PartState()
ACTIONS = {BEFORE: [0.0, 0.4], NOW: [0.1, 0.2], AFTER: [0.3, -0.1]}


def mode(obs):
    """The actions above, by the first number of the observation."""
    return jnp.select([obs == key for key in ACTIONS], [jnp.array(a) for a in ACTIONS.values()])


def policy(obs, slope=1.0, features=None):
    action = slope * mode(obs)
    return SimpleNamespace(mode=lambda: action, features=action if features is None else features)


def fns_of(policy, **more):
    base = Base(head=more.pop("head", "deterministic"))
    known = {"policy": policy, "base": base, "spec": Spec(1, 2)} | more
    return Context(**dict.fromkeys(Context.__dataclass_fields__) | known)


def batch_of(now=NOW):
    row = jnp.full((1, 1), now)
    extra = {"successor": row * 0 + AFTER, "previous_observation": row * 0 + BEFORE}
    extra["last_observation"] = row * 0 + NOW
    return Batch(row, jnp.zeros((1, 2)), jnp.zeros(1), jnp.zeros(1), row * jnp.nan, 0.99, extra)


def term(part, policy=policy, actor_params=None, state=NOTHING, **more):
    return part.actor(actor_params, state, fns_of(policy, **more), batch_of(), jax.random.key(0))


# --- values -------------------------------------------------------------------------------------------


def test_caps():
    loss, said = term(CAPS(temporal=2.0, spatial=0.0))
    assert said.keys() == {"caps_temporal"}
    assert said["caps_temporal"] == pytest.approx(0.0325)
    assert loss == pytest.approx(0.065)


def test_caps_nearby(monkeypatch):
    """A policy linear in the state with noise of 1: ½ (σ · slope)²."""
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.ones(shape, dtype))

    def linear(obs):
        return SimpleNamespace(mode=lambda: 3.0 * obs)

    loss, said = term(CAPS(temporal=0.0, spatial=5.0), linear)
    assert said["caps_spatial"] == pytest.approx(0.5 * 0.6**2)
    assert loss == pytest.approx(5 * 0.5 * 0.6**2)
    of_slopes = term(ActionJacobian(weight=5 * 0.2**2 / 2), linear)[0]  # λS σ² / 2A, with A = 1
    assert loss == pytest.approx(of_slopes)


def test_grad():
    loss, said = term(GRAD(temporal=3.0))
    assert said["grad_temporal"] == pytest.approx(0.00499833, rel=1e-5)
    assert loss == pytest.approx(0.01499499, rel=1e-5)


@pytest.mark.parametrize(
    ("displacement", "weight"), [(0.05, 1.0), (0.5, 0.999327), (1.0, 0.761510), (2.0, 0.244895)]
)
def test_the_weight_of_the_second_difference(displacement, weight):
    """On actions 0, x, d the term is ½ (2x - d)² · w(d), whose slope in d knows nothing of the slope of w."""

    def bent(d):
        return second_difference(jnp.zeros((1, 1)), jnp.full((1, 1), 0.3), d)

    d = jnp.full((1, 1), displacement)
    assert bent(d) == pytest.approx(0.5 * (0.6 - displacement) ** 2 * weight, rel=2e-5)
    assert jax.grad(bent)(d) == pytest.approx(-(0.6 - displacement) * weight, rel=2e-5)


@pytest.mark.parametrize(("head", "squash"), [("deterministic", jnp.tanh), ("gaussian", lambda x: x)])
def test_asap(head, squash):
    """Heads that multiply the features, which are the action itself, by 2 (online) and 3 (slow)."""

    def linear(scale):
        layer = eqx.nn.Linear(2, 2, key=jax.random.key(0))
        weights = lambda x: (x.weight, x.bias)  # noqa: E731
        return eqx.tree_at(weights, layer, (scale * jnp.eye(2), jnp.zeros(2)))

    own = PartState(actor_params=linear(2.0), extra=("slow actor", linear(3.0)))
    slow = {"policy_of": lambda actor: (lambda obs: policy(obs, 0.5)) if actor == "slow actor" else None}

    def loss(scale, part):
        return term(part, lambda obs: policy(obs, scale), own.actor_params, own, head=head, **slow)

    total, said = loss(1.0, ASAP(prediction=5.0, spatial=7.0, temporal=11.0))
    now, after = (np.array(ACTIONS[key]) for key in (NOW, AFTER))
    spatial = float(0.5 * np.square(after - squash(3.0 * 0.5 * now)).mean())
    prediction = float(0.5 * np.square(squash(2.0 * now) - after).mean())
    assert said["asap_spatial"] == pytest.approx(spatial, rel=1e-5)
    assert said["asap_prediction"] == pytest.approx(prediction, rel=1e-5)
    assert said["asap_temporal"] == pytest.approx(0.00499833, rel=1e-5)
    assert total == pytest.approx(5 * prediction + 7 * spatial + 11 * 0.00499833, rel=1e-5)

    # The policy is drawn to what was foreseen, which stands; the features learn to foresee what stands.
    drawn = jax.grad(lambda x: loss(x, ASAP(prediction=0, spatial=1.0, temporal=0))[0])(1.0)
    assert drawn == pytest.approx(float((after * (after - squash(3.0 * 0.5 * now))).mean()), rel=1e-5)
    learned = jax.grad(lambda x: loss(x, ASAP(prediction=1.0, spatial=0, temporal=0))[0])(1.0)
    slope = np.array([jax.grad(squash)(x) for x in 2.0 * now])
    assert learned == pytest.approx(float((2 * now * slope * (squash(2.0 * now) - after)).mean()), rel=1e-5)


def jacobian_term(part, act, obs, spec):
    """The penalty of a policy that is a function of observations, and its metric."""
    context = fns_of(lambda obs: SimpleNamespace(mode=lambda: act(obs)), spec=spec)
    return part.actor(None, NOTHING, context, batch_of()._replace(observation=obs), None)


@pytest.mark.parametrize("squash", [lambda x: x, jnp.tanh])
def test_jacobian_of_a_linear_policy(squash):
    """On a = f(s Kᵀ) the mean of Σ f'ₖ² |Kₖ|², without f the Frobenius norm; and its slope in the scale."""
    gains = jnp.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    obs = 0.3 * jax.random.normal(jax.random.key(0), (5, 3))

    def loss(scale):
        return jacobian_term(
            ActionJacobian(weight=0.25), lambda s: squash(scale * s @ gains.T), obs, Spec(3, 2)
        )

    slopes = np.array([[jax.grad(squash)(x) for x in row] for row in obs @ gains.T])
    square = (slopes**2 @ np.square(gains).sum(1)).mean()
    assert squash is jnp.tanh or square == pytest.approx(15.25)
    total, said = loss(1.0)
    assert said == {"jacobian_square": pytest.approx(square, rel=1e-5)}
    assert total == pytest.approx(0.25 * square, rel=1e-5)
    if squash is not jnp.tanh:
        assert jax.grad(lambda scale: loss(scale)[0])(1.0) == pytest.approx(0.5 * square, rel=1e-5)


@pytest.mark.parametrize("recipe", ["td3", slow("sac+normalise"), "td7"])
def test_jacobian_against_differences(recipe):
    """Of real actors, also through SALE's encoder; critics' own entries of the observation do not count."""
    spec = Spec(5, 2, actor_size=None if recipe == "td7" else 3)
    sizes = {"actor_hidden": (16, 16), "critic_hidden": (16, 16), "actor_activation": "silu"}
    agent = build(f"{recipe}+jacobian", {"base": sizes, "jacobian": {"weight": 1.0}}).on(spec)
    state, no = agent.init(jax.random.key(1)), jnp.array(False)
    context = agent.functions(state, Event(state.updates, state.env_steps, no, no))
    obs = jax.random.normal(jax.random.key(2), (8, 5))
    square = 0.0
    for step in 0.02 * jnp.eye(5):
        change = (context.policy(obs + step).mode() - context.policy(obs - step).mode()) / 0.04
        square += float(jnp.square(change).sum(-1).mean())
        assert (not change.any()) == (agent.task.actor_size == 3 and bool(step[3:].any()))
    (part,), batch = agent.regularisers, batch_of()._replace(observation=obs)
    assert part.actor(None, NOTHING, context, batch, None)[0] == pytest.approx(square, rel=5e-3)


@pytest.mark.parametrize("part", [CAPS(spatial=0.0), GRAD(), ASAP(prediction=0.0, spatial=0.0)])
def test_equal_actions_cost_nothing(part):
    still = lambda obs: SimpleNamespace(mode=lambda: jnp.full((1, 2), 0.3), features=None)  # noqa: E731
    assert term(part, still)[0] == 0


@pytest.mark.parametrize("part", [CAPS(spatial=0.0), GRAD()])
def test_gradient_flows_through_every_action(part):
    """Against a finite difference in the scale of the policy; GRAD's weight is the same at both ends."""

    def loss(scale):
        return term(part, lambda obs: policy(obs, scale))[0]

    np.testing.assert_allclose(jax.grad(loss)(1.0), (loss(1.05) - loss(0.95)) / 0.1, rtol=5e-3)


def test_weights_of_zero_leave_terms_out():
    for part in (CAPS(temporal=0, spatial=0), GRAD(temporal=0), ActionJacobian(weight=0)):
        assert term(part) is None
    assert L2C2(beta=0).critic(PartState(), None, None, None) is None


def test_l2c2(monkeypatch):
    """u = ½ everywhere: d = ½ + κ; densities and values by hand."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype, low, high: jnp.full(shape, high / 2))
    kappa, part = 1 / 99, L2C2(beta=0.25)
    weight = kappa * 10.0 / (0.5 + kappa)
    between = (NOW + AFTER) / 2

    def random(obs):  # log-densities 0.3 at the state and -0.5 in between
        log_prob = jnp.where(obs[:, 0] == between, -0.5, jnp.where(obs[:, 0] == NOW, 0.3, jnp.nan))
        return SimpleNamespace(sample=lambda key: (None, log_prob))

    def q(obs, action):
        return [10.0 * obs[:, 0], 4.0 * obs[:, 0] ** 2]

    loss, _ = term(part, random, head="gaussian")
    assert loss == pytest.approx(weight * (1 - np.exp(-0.4)), rel=1e-5)
    value, _ = part.critic(PartState(), fns_of(None, q=q), batch_of(), jax.random.key(0))
    gap = abs(min(10.0, 4.0) - min(15.0, 9.0))
    assert value == pytest.approx(0.25 * weight / (0.5 + kappa) * 0.5 * gap, rel=1e-5)


@pytest.mark.parametrize(("recipe", "squashed"), [slow("td3+lipsnet", 1), ("sac+lipsnet", 2)])
def test_lipsnet(recipe, squashed):
    """Its action row by row, with the Jacobian by forward differentiation; and what its loss gains."""
    settings = {"base": {"actor_hidden": (8, 8)}, "lipsnet": {"initial": 2.0, "weight": 0.5, "epsilon": 0.1}}
    agent = build(recipe, settings).on(Spec(4, 3))
    actor = agent.init(jax.random.key(0)).actor
    obs = jax.random.normal(jax.random.key(1), (6, 4))

    def f(x):
        for layer in actor.torso.layers:
            x = jnp.maximum(layer(x), 0.0)
        return (actor.head.out if squashed == 1 else actor.head.mean)(x)

    def bound(x):
        return jnp.logaddexp(0.0, actor.bound.out(jnp.tanh(actor.bound.torso.layers[0](x)))[0])

    for x, action in zip(obs, actor(obs, []).mode(), strict=True):
        expected = bound(x) * f(x) / (np.linalg.norm(jax.jacfwd(f)(x)) + 0.1)
        for _ in range(squashed):
            expected = jnp.tanh(expected)
        np.testing.assert_allclose(action, expected, atol=1e-5)

    def penalty(actor):
        context = SimpleNamespace(spec=Spec(4, 3))
        batch = batch_of()._replace(observation=obs)
        return agent.representation.penalty(actor, PartState(), context, batch, None)

    gains = np.array([bound(x) for x in obs])
    assert gains.mean() == pytest.approx(2.0, abs=1.0)
    assert float(penalty(actor)[0]) == pytest.approx(0.5 * np.square(gains).mean(), rel=1e-5)
    assert float(penalty([actor, actor])[0]) == pytest.approx(np.square(gains).mean(), rel=1e-5)
    gradient = jax.grad(lambda a: penalty(a)[0])(actor)
    assert np.any(gradient.bound.out.weight)
    assert not np.any(gradient.torso.layers[0].weight)


def test_lipsnet_starts_as_its_paper_says():
    agent = build("td3+lipsnet").on(Spec(200, 100))
    actor = agent.init(jax.random.key(0)).actor
    layers = [*actor.torso.layers, actor.head.out, *actor.bound.torso.layers]
    variances = [2 / 200, 2 / 64, 2 / 164, 2 / 232]  # Kaiming's before ReLU, Xavier's elsewhere
    for layer, variance in zip(layers, variances, strict=True):
        assert np.var(layer.weight) == pytest.approx(variance, rel=0.1)
    assert actor.bound.out.bias == pytest.approx(50.0, abs=0.2)


# --- observations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [GRAD, ASAP])
def test_the_previous_observation(part):
    kept, across = part(), part(across_resets=True)
    assert kept.derived_columns == {"successor", "previous_observation"}
    assert across.derived_columns == {"successor", "last_observation"}
    only = {"prediction": 0.0, "spatial": 0.0} if part is ASAP else {}
    kept, across = part(temporal=1.0, **only), part(temporal=1.0, across_resets=True, **only)
    now = np.array(ACTIONS[NOW])
    as_before = second_difference(*(jnp.asarray([x]) for x in (now, now, ACTIONS[AFTER])))
    assert term(kept)[0] == pytest.approx(0.00499833, rel=1e-5)
    assert term(across)[0] == pytest.approx(float(as_before), rel=1e-5)


@pytest.mark.parametrize("across", [False, True])
def test_no_pair_crosses_a_reset_unless_asked_for(across):
    """A batch of an agent, over two episodes of three steps each."""
    agent = build("td3+grad", {"grad": {"across_resets": across}, "base": {"replay_capacity": 16}})
    agent = agent.on(Spec(1, 1))
    layout = agent.layout(1)
    rows, index = agent.init_replay(layout)
    for t in range(6):
        obs, ends = np.full((1, 1), t + 1.0), np.array([t % 3 == 2])
        new = Transition(obs, obs, obs[0], ends, ~ends & False, obs + 0.5)
        rows, index = agent.insert(layout, rows, index, new)
    batch = rows_at(layout, rows, index, jnp.arange(6), *agent.sampling_options)
    previous = batch.extra[agent.regularisers[0].previous][:, 0]
    np.testing.assert_array_equal(previous, [1, 1, 2, 3 if across else 4, 4, 5])
    np.testing.assert_array_equal(batch.extra["successor"][:, 0], np.arange(6) + 1.5)


def test_all_that_is_observed_is_normalised():
    agent = build("td3+grad+asap+normalise", {"asap": {"across_resets": True}}).on(Spec(1, 2))
    own = PartState(extra=Moments(jnp.array([5.0]), jnp.array([4.0]), jnp.array(9.0)))
    state = SimpleNamespace(part=lambda part: own)
    raw = batch_of()._replace(next_observation=jnp.ones((1, 1)))
    made = update._normalise_batch(agent, state, raw)
    assert made.extra.keys() == agent.derived_columns
    for name, value in made.extra.items():
        np.testing.assert_allclose(value, (raw.extra[name] - 5.0) / 2.0, rtol=1e-6)


# --- what they reach ----------------------------------------------------------------------------------

UNFUSED = QUICK | {"xla_disable_hlo_passes": "fusion"}


def two_updates(recipe, settings=None):
    sizes = {"actor_hidden": (16, 16), "critic_hidden": (16, 16), "batch_size": 16, "replay_capacity": 1024}
    run, states = start(build(recipe, {"base": sizes, **(settings or {})}).on(Spec(S, A))), []
    run = run._replace(
        program=run.program.lower(run.state, run.storage, run.replay_state, run.key).compile(UNFUSED)
    )
    for _ in range(2):
        run = run.step()
        states.append(run.state)
    return states


def test_actors_alone_are_reached_and_only_at_their_steps():
    plain, more = two_updates("td3"), two_updates("td3+caps+grad+asap")
    assert same(*((s[0].critics, s[0].actor, s[0].optimisers["critics"]) for s in (plain, more)))
    assert same(*((s[1].critics, s[1].optimisers["critics"]) for s in (plain, more)))
    assert not same(plain[1].actor, more[1].actor)
    head = [state.part_states["asap"].actor_params for state in more]
    assert not same(*head)


def test_the_slow_copy_follows_at_every_update():
    """It starts equal, stays where the actor does (update 1), and follows where it moves (update 2)."""
    first, second = two_updates("td3+asap")
    starts = (first.actor, first.part_states["asap"].actor_params)
    for state, before in ((first, starts), (second, first.part_states["asap"].extra)):
        online = (state.actor, state.part_states["asap"].actor_params)
        for copy, old, new in zip(
            *map(jax.tree.leaves, (state.part_states["asap"].extra, before, online)), strict=True
        ):
            np.testing.assert_allclose(copy, 0.99 * old + 0.01 * new, rtol=1e-5, atol=1e-8)
    assert not same(starts, (second.actor, second.part_states["asap"].actor_params))


def test_l2c2_against_its_definition():
    """On a real SAC: the weight falls with the distance, and the terms move actor and critics."""
    run = start(small("sac+l2c2", 16))
    no = jnp.array(False)
    context = run.agent.functions(run.state, Event(run.state.updates, run.state.env_steps, no, no))
    batch = Batch(*(x[:16] for x in run.memory), 0.99)
    batch = batch._replace(extra={"successor": batch.next_observation})
    part, key = run.agent.regularisers[0], jax.random.key(0)
    between, weight, distance = part._interpolate(run.agent.task, batch, key)
    share = np.asarray((between - batch.observation) / (batch.next_observation - batch.observation))
    assert np.abs(share).max() <= 1.0 + 1e-4  # the width is 1
    np.testing.assert_allclose(distance, np.abs(share).max(-1) + 1 / 99, rtol=1e-3)
    np.testing.assert_allclose(weight, 10 / 99 / distance, rtol=1e-5)
    assert part.actor(None, PartState(), context, batch, key)[0] > 0
    assert part.critic(PartState(), context, batch, key)[0] > 0


@pytest.mark.parametrize("part", ["caps", "grad", "asap", "jacobian"])
def test_an_actor_is_needed(part):
    with pytest.raises(UsageError, match=f"cem has no actor that {part} could act on"):
        build(f"td3+cem+{part}")


# --- recipes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "settings", "sentence"),
    [
        (
            "td3+l2c2",
            {},
            "'td3+l2c2' cannot be: l2c2 compares the densities of a random policy: write sac+l2c2",
        ),
        ("td3+caps", {"caps": {"temporal": -1}}, "caps.temporal is -1.0; it must be a number, 0 or more."),
        ("td3+caps", {"caps": {"sigma": 0}}, "caps.sigma is 0.0; it must be a number above 0."),
        ("td3+grad", {"grad": {"temporal": -1}}, "grad.temporal is -1.0; it must be a number, 0 or more."),
        (
            "td3+jacobian",
            {"jacobian": {"weight": -1}},
            "jacobian.weight is -1.0; it must be a number, 0 or more.",
        ),
        ("td3+asap", {"asap": {"spatial": -1}}, "asap.spatial is -1.0; it must be a number, 0 or more."),
        ("td3+asap", {"asap": {"rate": 2}}, "asap.rate is 2.0; it must lie in [0, 1]."),
        (
            "td3+lipsnet",
            {"lipsnet": {"weight": -1}},
            "lipsnet.weight is -1.0; it must be a number, 0 or more.",
        ),
        ("td3+lipsnet", {"lipsnet": {"width": 0}}, "lipsnet.width is 0; it must be at least 1."),
        ("td3+lipsnet+sale", {}, "'td3+lipsnet+sale' cannot be: lipsnet and sale both fill one place"),
        ("sac+l2c2", {"l2c2": {"sigma": 0}}, "l2c2.sigma is 0.0; it must be a number above 0."),
        ("sac+l2c2", {"l2c2": {"beta": -1}}, "l2c2.beta is -1.0; it must be a number, 0 or more."),
        ("sac+l2c2", {"l2c2": {"upper": 0.1}}, "l2c2.upper is 0.1; it must be above sigma · lower = 0.1."),
    ],
)
def test_refusals(recipe, settings, sentence):
    with pytest.raises(UsageError) as error:
        build(recipe, settings)
    assert str(error.value).startswith(sentence)
