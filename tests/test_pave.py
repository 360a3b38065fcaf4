"""PAVE's terms: their values against closed forms, their gradients against finite differences, and what they
leave alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rows import slow
from small import A, S, same, start
from small import build as small
from test_contract import QUICK

from qscape.agents import build, list_overrides
from qscape.errors import UsageError
from qscape.methods.pave import PAVE, action_gradients
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Context, PartState
from qscape.run.plan import Plan, part_notes, prepare
from qscape.types import Batch, Event, Spec

# Two critics Q = ½ aᵀHa + aᵀKs + aᵀc; rows of states, successors, noise and directions.
H = np.array([[-2.0, 0.5], [0.5, -1.0]])
K = np.array([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]])
STATES = np.array([[1, 0, 0], [0, 1, 1], [-1, 2, 0.5], [0.25, -0.5, 0]])
AFTER = np.array([[1, 1, 0], [0, 0, 1], [-1, 2, 0.5], [0, 0, 0]])
NOISE = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, -1, 1]])  # in units of σ
SIGNS = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
ACTIONS = np.array([[0.1, 0.2], [-0.7, 0.9], [0.0, 0.0], [1.0, -1.0]])
TERMS = ("mixed_partial", "vector_field", "curvature")


def quadratic(h=H, k=K, c=(0.3, -0.2)):
    """The heads of two equal quadratic critics."""

    def q(obs, action):
        value = 0.5 * ((action @ h) * action).sum(-1) + (action * (obs @ k.T)).sum(-1) + action @ jnp.array(c)
        return [value, value]

    return q


def terms(q, part=PAVE(), obs=STATES, action=ACTIONS, after=AFTER, key=0):  # noqa: B008
    """PAVE's addition to the critics' loss, and what it says of its terms."""
    batch = Batch(*map(jnp.asarray, (obs, action)), *[jnp.zeros(len(obs))] * 2, jnp.asarray(after), 0.99, {})
    batch = batch._replace(extra={"successor": batch.next_observation})
    blank = dict.fromkeys(Context.__dataclass_fields__)
    context = Context(**blank | {"q": q, "base": Base(critic_activation="silu")})
    total, said = part.critic(PartState(), context, batch, jax.random.key(key))
    return float(total), {name.removeprefix("pave_"): float(value) for name, value in said.items()}


@pytest.fixture
def drawn(monkeypatch):
    """Noise and directions are the rows above."""
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype=float: jnp.asarray(NOISE, dtype))
    monkeypatch.setattr(jax.random, "rademacher", lambda key, shape, dtype=float: jnp.asarray(SIGNS, dtype))


@pytest.fixture
def double():
    """In float64."""
    with jax.enable_x64(True):
        yield


# --- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [ACTIONS, 0 * ACTIONS])
@pytest.mark.parametrize(("delta", "curvature"), [(1.0, 0.0), (2.5, 0.5), (5.0, 4.0)])
def test_terms_of_quadratic_critics(double, drawn, action, delta, curvature):
    part = PAVE(mixed_partial=3.0, vector_field=5.0, curvature=7.0, delta=delta)
    total, said = terms(quadratic(), part, action=action)
    expected = {"mixed_partial": 8.0e-4, "vector_field": 2.703125, "curvature": curvature}
    for name, value in expected.items():
        assert said[name] == pytest.approx(value, rel=1e-12, abs=1e-14), name
    weighted = 3.0 * 8.0e-4 + 5.0 * 2.703125 + 7.0 * curvature
    assert total == said["loss"] == pytest.approx(weighted, rel=1e-12)
    assert said["curvature_active"] == np.mean(np.array([-2, -4, -4, -2]) > -delta)


def test_the_mixed_partial_in_expectation(double):
    """2 σ² |K|² / d_a with |K|² = 15, for two critics."""
    obs = np.zeros((200_000, 3))
    said = terms(quadratic(), PAVE(vector_field=0, curvature=0), obs, np.zeros((len(obs), 2)), obs)[1]
    assert said["mixed_partial"] == pytest.approx(1.5e-3, rel=0.02)


def test_curvature_is_of_a_trace_and_not_of_single_directions(double, drawn):
    """A saddle of trace -3 passes; a traceless matrix costs 7 for half of the directions."""
    only = PAVE(mixed_partial=0, vector_field=0)
    saddle, traceless = np.diag([2.0, -5.0]), np.array([[0.0, 3.0], [3.0, 0.0]])
    assert terms(quadratic(saddle), only)[1]["curvature"] == 0
    assert terms(quadratic(traceless), only)[1]["curvature"] == pytest.approx(2 * 3.5)


@pytest.mark.parametrize(("h", "value", "slope"), [(-0.25, 1.0, 2.0), (-0.5, 0.0, 0.0), (-1.0, 0.0, 0.0)])
def test_the_hinge_and_its_gradient(double, drawn, h, value, slope):
    def curvature(diagonal):
        q = quadratic(jnp.diag(diagonal))
        batch = Batch(*map(jnp.asarray, (STATES, ACTIONS)), *[jnp.zeros(4)] * 2, jnp.asarray(AFTER), 0.99)
        context = Context(**dict.fromkeys(Context.__dataclass_fields__) | {"q": q})
        return PAVE(mixed_partial=0, vector_field=0, curvature=1.0).critic(
            PartState(),
            context,
            batch._replace(extra={"successor": batch.next_observation}),
            jax.random.key(0),
        )[0]

    diagonal = jnp.full(2, h)
    assert curvature(diagonal) == pytest.approx(value)
    np.testing.assert_allclose(jax.grad(curvature)(diagonal), [slope, slope])


def test_one_silu_unit(double, monkeypatch):
    def q(obs, action):
        return [jax.nn.silu(2.0 * action + 1.5 * obs)[:, 0]] * 2

    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.ones(shape, dtype))
    zero, one = np.zeros((1, 1)), np.ones((1, 1))
    assert action_gradients(q, jnp.zeros((1, 1)), jnp.zeros((1, 1)))[0] == pytest.approx(1.0)
    said = terms(q, PAVE(), zero, zero, one)[1]
    assert said["curvature"] == pytest.approx(6.0)
    assert said["mixed_partial"] == pytest.approx(4.49966e-4, rel=1e-6)
    assert said["vector_field"] == pytest.approx(2.343995, rel=1e-6)


def test_critics_are_summed_and_each_by_itself(double):
    """With Q and 3 Q: 1 + 9 times the mixed terms of one critic; where Q curves up, a sum of two hinges."""

    def heads(*scales):
        one = quadratic(np.array([[2.0, 0.5], [0.5, 1.0]]))
        return lambda obs, action: [scale * one(obs, action)[0] for scale in scales]

    single, both = (terms(heads(*scales))[1] for scales in ((1.0,), (1.0, 3.0)))
    for name in ("mixed_partial", "vector_field"):
        assert both[name] == pytest.approx(10 * single[name])
    assert both["curvature"] == pytest.approx(4 * (single["curvature"] - 1) + 2)
    assert both["curvature_active"] == single["curvature_active"] == 1


def test_the_sign_of_the_direction_does_not_matter(double, drawn, monkeypatch):
    q = silu_critics(0)
    before = terms(q)[1]
    monkeypatch.setattr(jax.random, "rademacher", lambda key, shape, dtype=float: -jnp.asarray(SIGNS, dtype))
    assert terms(q)[1] == before


def test_the_order_of_the_batch_does_not_matter(double, drawn, monkeypatch):
    q, order = silu_critics(0), np.array([2, 0, 3, 1])
    before = terms(q)[1]
    for name, rows in (("normal", NOISE), ("rademacher", SIGNS)):
        monkeypatch.setattr(jax.random, name, lambda key, shape, dtype, x=rows: jnp.asarray(x[order], dtype))
    after = terms(q, obs=STATES[order], action=ACTIONS[order], after=AFTER[order])[1]
    assert after == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize(("fraction", "rows"), [(0.5, 2), (0.25, 1), (0.01, 1)])
def test_a_fraction_is_the_first_rows(double, monkeypatch, fraction, rows):
    for name, x in (("normal", NOISE), ("rademacher", SIGNS)):
        monkeypatch.setattr(
            jax.random, name, lambda key, shape, dtype, x=x: jnp.asarray(x[: shape[0]], dtype)
        )
    first = (x[:rows] for x in (STATES, ACTIONS, AFTER))
    assert terms(silu_critics(0), PAVE(fraction=fraction)) == terms(silu_critics(0), PAVE(), *first)


def silu_critics(seed, size=8):
    """Two random critics of one hidden layer."""
    rng = np.random.default_rng(seed)
    w, v = rng.normal(size=(2, size, 5)), rng.normal(size=(2, size))

    def q(obs, action):
        x = jnp.concatenate([obs, action], -1)
        return [jax.nn.silu(x @ w[j].T) @ v[j] for j in (0, 1)]

    return q


def test_a_term_of_no_weight_is_not_computed():
    _, context, batch = parts_of(start(small("td3+pave", 32)))
    key = jax.random.key(0)

    def cost(*weights):
        part = PAVE(**dict(zip(TERMS, weights, strict=True)))
        program = jax.jit(lambda batch: part.critic(PartState(), context, batch, key)).lower(batch)
        return program.compile(QUICK).cost_analysis()["flops"]

    assert PAVE(mixed_partial=0, vector_field=0, curvature=0).critic(PartState(), context, batch, key) is None
    mixed, field, bent, everything = cost(1, 0, 0), cost(0, 1, 0), cost(0, 0, 1), cost(1, 1, 1)
    # Two gradients, two gradients, one and its turn; together three and a turn: that at (s, a) is made once.
    assert mixed == pytest.approx(field, rel=0.05)
    assert bent == pytest.approx(mixed, rel=0.2)
    assert everything == pytest.approx(2 * mixed, rel=0.1)


# --- gradients ------------------------------------------------------------------------------------------


def parts_of(run, dtype=jnp.float32):
    """State, functions and a batch of a small agent."""
    agent, memory = run.agent, run.memory
    cast = partial(jax.tree.map, lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x)
    state, no = cast(run.state), jnp.array(False)
    context = agent.functions(state, Event(state.updates, state.env_steps, no, no))
    batch = Batch(*cast(tuple(x[:16] for x in memory)), 0.99)
    return state, context, batch._replace(extra={"successor": batch.next_observation})


@pytest.mark.parametrize(
    ("recipe", "terms"), [*(("td3+pave", [term]) for term in TERMS), slow("td7+pave", TERMS)], ids=str
)
def test_gradients_equal_finite_differences(double, recipe, terms):
    """Through second derivatives, and through SALE's frozen encoders. δ is far from every row's hinge."""
    run = start(small(recipe, 16))
    state, context, batch = parts_of(run, jnp.float64)
    part = PAVE(**dict.fromkeys(TERMS, 0.0) | dict.fromkeys(terms, 1.0), sigma=0.1, delta=50.0)
    flat, back = jax.flatten_util.ravel_pytree(state.critics)

    def loss(flat):
        changed = context._replace(q=run.agent.functions(state._replace(critics=back(flat)), context.event).q)
        return part.critic(PartState(), changed, batch, jax.random.key(2))[0]

    # Critics that are rough enough for the terms to be seen.
    flat = flat * 3.0
    aside = jax.random.normal(jax.random.key(3), flat.shape, flat.dtype)
    loss, gradient = (jax.jit(f).lower(flat).compile(QUICK) for f in (loss, jax.grad(loss)))
    by_hand = (loss(flat + 1e-5 * aside) - loss(flat - 1e-5 * aside)) / 2e-5
    assert abs(by_hand) > 1e-6
    np.testing.assert_allclose(gradient(flat) @ aside, by_hand, rtol=1e-6)


@pytest.mark.slow
def test_piecewise_linear_critics_have_no_curvature():
    run = start(small("td3+pave", 16, critic_activation="relu"))
    state, context, batch = parts_of(run)

    def loss(critics):
        changed = context._replace(q=run.agent.functions(state._replace(critics=critics), context.event).q)
        return PAVE(mixed_partial=0, vector_field=0, curvature=1.0).critic(
            PartState(), changed, batch, jax.random.key(0)
        )[0]

    value, gradient = jax.value_and_grad(loss)(state.critics)
    assert value == 2.0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


# --- what PAVE leaves alone -----------------------------------------------------------------------------

NONE = {"pave": dict.fromkeys(TERMS, 0.0)}
SMOOTH = {"actor_activation": "silu", "critic_activation": "silu"}
UNFUSED = QUICK | {"xla_disable_hlo_passes": "fusion"}  # what is added cannot change how the rest is rounded


def lived(recipe, updates, settings=None, **base):
    """The states of a short life."""
    sizes = {"actor_hidden": (16, 16), "critic_hidden": (16, 16), "batch_size": 16, "replay_capacity": 1024}
    agent = build(recipe, {"base": sizes | base, **(settings or {})}).on(Spec(S, A))
    run = start(agent)
    program = run.program.lower(run.state, run.storage, run.replay_state, run.key).compile(UNFUSED)
    run, states = run._replace(program=program), []
    for _ in range(updates):
        run = run.step()
        states.append(run.state)
    return states


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "base"), [("td3", SMOOTH), ("sac", SMOOTH | {"critic_loss_scale": 0.5})])
def test_no_weight_is_the_base_to_the_bit(recipe, base):
    plain, more = lived(recipe, 40, **base), lived(f"{recipe}+pave", 40, NONE)
    assert same(plain, more)


def test_the_scale_of_the_critics_loss_is_that_of_its_gradient():
    """Adam's steps hardly show it, its first moment does."""
    one, quarter = (
        optax.tree_utils.tree_get(lived("td3", 1, critic_loss_scale=x)[0].optimisers["critics"], "mu")
        for x in (1.0, 0.25)
    )
    assert same(jax.tree.map(lambda x: 0.25 * x, one), quarter)


@pytest.mark.slow
def test_gradients_reach_the_critics_alone():
    plain, more = lived("td3", 2, **SMOOTH), lived("td3+pave", 2)
    one, other = plain[0], more[0]
    assert not same(one.critics, other.critics)
    assert same(*((s.actor, s.actor_target, s.critics_target, s.optimisers["actor"]) for s in (one, other)))
    # With equal critics the actor's step is the same.
    still = {"critic_learning_rate": 1e-30}
    plain, more = lived("td3", 2, **SMOOTH, **still), lived("td3+pave", 2, **still)
    assert not same(plain[1].optimisers["critics"], more[1].optimisers["critics"])
    assert same(*((s[1].critics, s[1].actor, s[1].optimisers["actor"]) for s in (plain, more)))
    assert not same(more[0].actor, more[1].actor)


# --- recipes ------------------------------------------------------------------------------------------


def test_what_pave_moves():
    def moves(recipe):
        return {m.field: m.after for m in list_overrides(build(recipe)) if m.by == "pave"}

    assert moves("td3+pave") == SMOOTH
    assert moves("sac+pave") == SMOOTH | {"critic_loss_scale": 0.5}
    assert moves("td7+pave") == moves("td3+pave+sale") == {}
    assert build("td7+pave").base.critic_activation == "elu"


def test_what_pave_remarks():
    relu = {"base": {"critic_activation": "relu"}}
    assert (
        part_notes(build("td3+pave"))
        == part_notes(build("td3+pave", relu | {"pave": {"curvature": 0}}))
        == []
    )
    (said,) = part_notes(build("td3+pave", relu))
    assert "piecewise linear: pave.curvature has no gradient" in said
    assert said in prepare(Plan("td3+pave", "Pendulum-v1", 100, settings=relu))[2]
    for curved in ("td7+pave", "td3+c51+pave", "td3+simbav2+pave", "td3+droq+pave"):
        assert "piecewise" not in str(part_notes(build(curved, relu)))
    assert "piecewise linear" in str(part_notes(build("td3+crossq+pave", relu)))
    assert part_notes(build("sac+normalise+pave")) == ["pave.sigma is in units of the normalised observation"]


def test_small_rewards_beside_the_demanded_curvature_are_told():
    """Of Pendulum's returns, of a hundredth of them, and of those that reward_scale divides."""
    part = PAVE()
    assert part.warning({"return": -1391.0}) is None
    assert "returns of 13.9 are small beside pave.delta = 1" in (part.warning({"return": -13.9}) or "")
    assert "returns of 7.95 (divided)" in (part.warning({"return": -1391.0, "reward_divisor": 175.0}) or "")
    assert part.warning({"return": 0.0}) is None, "no reward was seen"
    assert part.warning({}) is None
    for other in (PAVE(delta=0.01), PAVE(curvature=0.0)):
        assert other.warning({"return": -13.9}) is None


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        *(
            ({name: -0.1}, f"pave.{name} is -0.1; it must be a number, 0 or more.")
            for name in (*TERMS, "delta")
        ),
        ({"curvature": float("nan")}, "pave.curvature is nan; it must be a number, 0 or more."),
        ({"sigma": 0}, "pave.sigma is 0.0; it must be a number above 0"),
        ({"sigma": -1}, "pave.sigma is -1.0; it must be a number above 0"),
        ({"fraction": 0}, "pave.fraction is 0.0; it must lie in (0, 1]."),
        ({"fraction": 1.5}, "pave.fraction is 1.5; it must lie in (0, 1]."),
    ],
)
def test_refused_fields(fields, sentence):
    with pytest.raises(UsageError) as error:
        build("td3+pave", {"pave": fields})
    assert str(error.value).startswith(sentence)


def test_tables_of_actions_are_refused():
    with pytest.raises(UsageError, match="pave needs continuous actions"):
        build("td3+pave").on(Spec(4, 1, table=np.array([[-1.0], [1.0]])))
