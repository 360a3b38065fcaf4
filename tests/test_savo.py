"""SAVO equals its straight-line file, and its parts give the numbers that the method asks for."""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow, slow_except
from small import AS_USERS, A, S, Says, build, randomised, same, start

import reference.savo
from qscape import agents
from qscape.errors import UsageError
from qscape.methods._list_encoder import SUMMARISERS, Conditioned, _make_film
from qscape.nets import Conditioning
from qscape.nets.mlp import Torso
from qscape.offpolicy import update
from qscape.offpolicy.exploration import epsilon, sample_noise
from qscape.offpolicy.sockets import ActingStep, Context, PartState
from qscape.offpolicy.state import State
from qscape.ops.nearest import ActionTable
from qscape.run.plan import Plan, prepare
from qscape.types import Batch, Event, Spec

KEY, NO = jax.random.key(0), jnp.array(False)


def make(recipe: str = "td3+savo", spec: Spec | None = None, base: dict | None = None, **settings: Any):
    """A small agent; `settings` are those of its maximiser."""
    widths = {"actor_hidden": (16, 16), "critic_hidden": (16, 16), "batch_size": 16}
    part = recipe.split("+")[-1]
    agent = agents.build(recipe, {"base": widths | (base or {}), part: settings})
    return agent.on(spec or Spec(S, A))


def state_of(agent, seed: int = 0) -> State:
    """A state of random numbers, in no time: initialising it would compile every draw."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        size = leaf.shape[-1] ** -0.5 if leaf.ndim > 1 else 0.3
        drawn = rng.uniform(-size, size, leaf.shape).astype(np.float32)
        return jnp.asarray(drawn if leaf.dtype == np.float32 else np.zeros(leaf.shape, leaf.dtype))

    return randomised(jax.eval_shape(agent.init, jax.random.key(0)), draw, rng)


def functions(agent, state=None, q=None, env_steps: int = 0) -> Context:
    """The agent's functions; on a landscape of one's own where `q` is given."""
    state = state_of(agent) if state is None else state
    counters = jnp.asarray(1), jnp.asarray(env_steps)
    context = agent.functions(state, Event(*counters, NO, NO))
    if q is None:
        return context
    context = context._replace(q=q, q_target=q)
    return context._replace(policy=agent.selector.policy(state.actor, state.part(agent.selector), context))


def batch_of(obs, action, proposals) -> Batch:
    zeros = jnp.zeros(len(obs))
    return Batch(obs, action, zeros, zeros, obs, 0.99, {"proposals": proposals})


def flat_batch(seed: int, size: int = 8, length: int = 3, width: int = A) -> Batch:
    k_obs, k_action, k_list = jax.random.split(jax.random.key(seed), 3)
    draw = partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    obs = jax.random.normal(k_obs, (size, S))
    return batch_of(obs, draw(k_action, (size, width)), draw(k_list, (size, length, width)))


# --- the straight-line file ---------------------------------------------------------------------------


def by_name(run) -> dict[str, Any]:
    """What the agent carries, under the names that the oracle gives it."""
    state = run.state
    known = {"actors": state.actor, "critics": state.critics, "critics_target": state.critics_target}
    known |= {"surrogates": state.part_states["savo"].params, "updates": state.updates}
    names = {"actors": "actor", "critics": "critics", "surrogates": "savo.params"}
    known |= {f"{name}_adam": state.optimisers[mine] for name, mine in names.items()}
    assert len(jax.tree.leaves(known)) == len(jax.tree.leaves(state)) - 1, "all but env_steps is compared"
    return known


def oracle(run) -> reference.savo.State:
    """The straight-line state with the agent's numbers."""
    own = reference.savo.init(jax.random.key(9), S, A, hidden=run.agent.base.actor_hidden)

    def graft(mine, theirs):
        theirs = jax.tree.leaves(theirs)
        assert [x.shape for x in jax.tree.leaves(mine)] == [x.shape for x in theirs]
        return jax.tree.unflatten(jax.tree.structure(mine), theirs)

    return own._replace(**{name: graft(getattr(own, name), part) for name, part in by_name(run).items()})


@pytest.fixture(scope="module")
def started():
    """A run and its memory as the oracle sees it."""
    run = start(build("td3+savo"), options=AS_USERS)
    layout = run.agent.layout(1)
    kept = run.storage[: len(run.memory.obs), layout.slices["proposals"]].reshape(-1, 3, A)
    return run, reference.savo.Transitions(*run.memory, kept)


@pytest.mark.slow
def test_agent_equals_its_oracle_to_the_bit(started):
    run, memory = started
    update = partial(reference.savo.update, batch_size=run.agent.base.batch_size)
    update = jax.jit(update, compiler_options=AS_USERS)
    theirs = oracle(run)
    for number in range(1, 301):
        run, theirs = run.step(), update(theirs, memory, run.key)
        differs = [name for name, part in by_name(run).items() if not same(part, getattr(theirs, name))]
        assert not differs, f"at update {number}"


@pytest.mark.slow
def test_acting_equals_its_oracle(started):
    run, memory = started
    obs, key, step = memory.obs[:4], jax.random.key(3), 200_000
    acting, theirs = run.agent.acting(run.state), oracle(run)
    before, first = 0.3 * jax.random.normal(key, (4, 4, A)), jnp.array([True, False, False, False])
    act = jax.jit(run.agent.act, static_argnames="mode")
    action, *_ = act(acting, before, obs, first, step, key, mode="evaluate")
    np.testing.assert_allclose(action, jax.jit(reference.savo.act)(theirs, obs), rtol=0, atol=1e-6)
    mine = act(acting, before, obs, first, step, key, mode="explore")
    expected = jax.jit(reference.savo.explore)(theirs, before, obs, first, step, key)
    for x, y in zip((mine[0], mine[1]["proposals"], mine[2]), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_one_actor_is_td3_without_target_actor_and_smoothing():
    """To the bit, given the same parameters; acting has two noises instead of one."""
    alone = start(dataclasses.replace(make(list_length=1, base={"replay_capacity": 1024})))
    plain = start(make("td3+ou", base={"replay_capacity": 1024, "target_actor": False, "target_noise": 0.0}))
    assert "savo" not in alone.state.part_states
    state = alone.state
    actor = jax.tree.unflatten(jax.tree.structure(plain.state.actor), jax.tree.leaves(state.actor))
    moments = jax.tree.unflatten(
        jax.tree.structure(plain.state.optimisers), jax.tree.leaves(state.optimisers)
    )
    plain = plain._replace(
        state=plain.state._replace(
            actor=actor, critics=state.critics, critics_target=state.critics_target, optimisers=moments
        )
    )
    for _ in range(6):
        alone, plain = alone.step(), plain.step()
    assert same(alone.state, plain.state)


# --- surrogates ----------------------------------------------------------------------------


def two_peaks(obs, action):
    """peaks at −0.5 (height 1) and 0.6 (height 2)."""
    a = action[..., 0]
    return [jnp.exp(-((a + 0.5) ** 2) / 0.045) + 2.0 * jnp.exp(-((a - 0.6) ** 2) / 0.045)]


@pytest.mark.slow
def test_the_exact_surrogate_is_flat_below_the_best_proposal():
    agent = make(spec=Spec(S, 1), list_length=2, surrogate="exact", actor_list="replay")
    state, points = state_of(agent), jnp.array([-0.7, -0.5, -0.3, 0.0, 0.4, 0.45, 0.5, 0.7])
    obs = jnp.zeros((8, S))
    batch = batch_of(obs, jnp.zeros((8, 1)), jnp.full((8, 2, 1), -0.5))
    context = functions(agent, state, two_peaks)
    _, hill = agent.selector.actor_objectives(state.actor, PartState(), context, batch)[1]
    value = hill(obs, points[:, None])[0]
    slope = jax.grad(lambda a: hill(obs, a[:, None])[0].sum())(points)
    np.testing.assert_allclose(value[:5], 1.0, atol=1e-6)
    np.testing.assert_array_equal(slope[jnp.array([0, 2, 3, 4])], 0.0)
    np.testing.assert_allclose(slope[jnp.array([1, 5, 6, 7])], [0, 8.087075, 7.117666, -7.117666], atol=2e-5)
    grid = jnp.linspace(-1.0, 1.0, 2001)[:, None]
    on_grid = agent.selector.actor_objectives(
        state.actor, PartState(), context, batch_of(jnp.zeros((2001, S)), grid, jnp.full((2001, 2, 1), -0.5))
    )[1][1]
    assert (
        int((on_grid(jnp.zeros((2001, S)), grid)[0] == two_peaks(None, jnp.array([[-0.5]]))[0]).sum()) == 1648
    )


def test_at_a_tie_the_whole_gradient_passes():
    """Where Q equals τ the slope is that of Q, not half of it."""
    agent = make(spec=Spec(S, 1), list_length=2, surrogate="exact", actor_list="replay")
    state, at = state_of(agent), jnp.full((1, 1), 0.45)
    batch = batch_of(jnp.zeros((1, S)), at, jnp.full((1, 2, 1), 0.45))
    hill = agent.selector.actor_objectives(
        state.actor, PartState(), functions(agent, state, two_peaks), batch
    )[1][1]
    slope = jax.grad(lambda a: hill(batch.observation, a)[0].sum())(at)
    np.testing.assert_allclose(slope, [[8.087075]], atol=2e-5)


def table_q(obs, action):
    """Q_1 and Q_2 of the three proposals −1, −0.5, 0, and q = 0.4, 1.1, 2.0 of 0.25, 0.5, 1."""
    places = jnp.array([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0])
    first, second = jnp.array([1.2, 0.7, 1.6, 0.4, 1.1, 2.0]), jnp.array([1.0, 0.9, 1.5, 0.4, 1.1, 2.0])
    return [jnp.interp(action[..., 0], places, first), jnp.interp(action[..., 0], places, second)]


@pytest.mark.parametrize(("executed", "goal"), [(0.25, 1.0), (0.5, 1.1), (1.0, 2.0)])
def test_surrogates_regress_to_the_truncated_least_critic(executed, goal):
    """A surrogate that says c everywhere has the loss (c − T(a))² + (c − T(a_i))², summed over i."""
    agent = make(spec=Spec(S, 1))
    state = state_of(agent)
    proposals = jnp.array([-1.0, -0.5, 0.0]).reshape(1, 3, 1)
    batch = batch_of(jnp.zeros((1, S)), jnp.full((1, 1), executed), proposals)
    own = state.part_states["savo"]
    for says in (0.0, 0.8):
        constant = jax.tree.map(jnp.zeros_like, own.params)
        biases = lambda nets: [net.net.body.out.bias for net in nets]  # noqa: E731
        constant = eqx.tree_at(biases, constant, [jnp.array([says])] * 2)
        loss, _, _ = agent.selector.learn(
            constant, own, functions(agent, state, table_q), batch, jax.random.key(0)
        )
        at_proposals = (says - 1.0) ** 2 + (says - 1.5) ** 2  # T_1(a_1) = max(.7, 1), T_2(a_2) = max(1.5, 1)
        np.testing.assert_allclose(loss, 2 * (says - goal) ** 2 + at_proposals, rtol=1e-6)


@pytest.mark.parametrize(("points", "executed"), [slow("fresh", "stored"), ("current", "chosen")])
def test_surrogates_at_the_present_actors_proposals(points, executed):
    agent = make(surrogate_points=points)
    state, batch = state_of(agent, 1), flat_batch(0)
    context, own, obs = functions(agent, state), state.part_states["savo"], batch.observation
    loss, _, _ = agent.selector.learn(own.params, own, context, batch, jax.random.key(0))
    fresh = [dist.mode() for dist in agent.selector.propose(state.actor, context, obs)]
    q = lambda action: np.min(context.q(obs, action), 0)  # noqa: E731
    done = batch.action if executed == "stored" else context.policy(obs).mode()
    expected = 0.0
    for i in (1, 2):
        floor = np.max([q(a) for a in fresh[:i]], 0)
        net = own.params[i - 1]
        for action in (done, fresh[i]):
            guess = context.bind(net.net)(obs, action, net.conditioning(obs, jnp.stack(fresh[:i])))
            expected += np.square(guess - np.maximum(q(action), floor)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def grown(tree) -> bool:
    return any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("settings", [slow({}), slow({"actor_list": "replay"}), {"conditioning": "concat"}])
def test_each_actor_is_moved_by_its_own_climb_alone(settings):
    agent = make(**settings)
    state, batch = state_of(agent), flat_batch(0)
    own = state.part_states["savo"]

    def loss(networks, i):
        actor, critics, surrogates = networks
        context = functions(agent, state._replace(actor=actor, critics=critics))
        mine = own._replace(params=surrogates)
        policy, q = agent.selector.actor_objectives(actor, mine, context, batch)[i]
        return -q(batch.observation, policy(batch.observation).mode())[0].mean()

    for i in range(3):
        gradient = jax.grad(loss)((state.actor, state.critics, own.params), i)[0]
        assert [grown(part) for part in gradient] == [j == i for j in range(3)]
        if i and settings.get("conditioning") != "none":
            assert grown(gradient[i].summary), "the summariser belongs to its actor"


@pytest.mark.slow
def test_surrogates_move_nothing_but_themselves():
    agent = make()
    state, batch = state_of(agent), flat_batch(0)
    own = state.part_states["savo"]

    def loss(networks):
        critics, actor, learned = networks
        context = functions(agent, state._replace(critics=critics, actor=actor))
        return agent.selector.learn(learned, own, context, batch, jax.random.key(0))[0]

    critics, actor, learned = jax.grad(loss)((state.critics, state.actor, own.params))
    assert (grown(critics), grown(actor)) == (False, False)
    assert [grown(part.summary) and grown(part.film) for part in learned] == [True, True]


@pytest.mark.slow
def test_on_the_floor_an_exact_surrogate_moves_nobody():
    """Q of every second proposal lies below that of the first: no gradient, to the last bit."""
    agent = make(spec=Spec(S, 1), list_length=2, surrogate="exact")
    state, obs = state_of(agent), jnp.zeros((4, S))
    first = functions(agent, state).bind(state.actor[0])(obs).mode()[0, 0]
    q = lambda obs, action: [-jnp.abs(action[..., 0] - first)]  # noqa: E731

    def loss(actor):
        context = functions(agent, state._replace(actor=actor), q)
        policy, hill = agent.selector.actor_objectives(
            actor, PartState(), context, batch_of(obs, None, None)
        )[1]
        return -hill(obs, policy(obs).mode())[0].mean()

    assert not grown(jax.grad(loss)(state.actor)[1])
    learned = make(spec=Spec(S, 1), list_length=2)  # a learned one has a slope there
    own = state_of(learned).part_states["savo"]

    def slope(actor):
        context = functions(learned, state._replace(actor=actor), q)
        policy, hill = learned.selector.actor_objectives(actor, own, context, batch_of(obs, None, None))[1]
        return -hill(obs, policy(obs).mode())[0].mean()

    assert grown(jax.grad(slope)(state.actor)[1])


@pytest.mark.slow
@pytest.mark.parametrize("actor_list", ["fresh", "replay"])
def test_which_list_actors_climb_after(actor_list):
    """ν_i and Ψ̂_i both know the present actors' proposals, or those that are stored; the first i of them."""
    agent = make(actor_list=actor_list)
    state, batch = state_of(agent), flat_batch(0)
    part, own, obs = agent.selector, state.part_states["savo"], batch.observation

    def losses(actor, proposals):
        context, here = functions(agent, state._replace(actor=actor)), batch_of(obs, batch.action, proposals)
        return [
            agent.policy_loss.loss(policy, hill, None, PartState(), context, here, jax.random.key(0))[0]
            for policy, hill in part.actor_objectives(actor, own, context, here)
        ]

    def expected(actor, proposals):
        context, seen = functions(agent, state), jnp.moveaxis(proposals, 1, 0)
        said = [-context.q(obs, context.bind(actor[0])(obs).mode())[0].mean()]
        for i, (module, surrogate) in enumerate(zip(actor[1:], own.params, strict=True), 1):
            if actor_list == "fresh":
                seen = jax.lax.stop_gradient(jnp.stack([d.mode() for d in part.propose(actor, context, obs)]))
            action = context.bind(module.net)(obs, module.conditioning(obs, seen[:i])).mode()
            told = surrogate.conditioning(obs, seen[:i])
            said.append(-context.bind(surrogate.net)(obs, action, told).mean())
        return said

    def both(actor, proposals):
        gradients = [jax.grad(lambda x, f=f: sum(f(x, proposals)))(actor) for f in (losses, expected)]
        return gradients, losses(actor, proposals), expected(actor, proposals)

    both, stored = jax.jit(both), batch.extra["proposals"]
    (mine, theirs), said, wanted = both(state.actor, stored)
    np.testing.assert_allclose(said, wanted, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7)
    for place in range(3):
        after = both(state.actor, stored.at[:, place].multiply(-1.0))[1]
        changed = [bool(x != y) for x, y in zip(after, said, strict=True)]
        assert changed == [actor_list == "replay" and i > place for i in range(3)]


# --- choosing ----------------------------------------------------------------------------------


def test_ties_go_to_the_first():
    agent = make(spec=Spec(S, 1))
    context = functions(agent, q=lambda obs, action: [jnp.round(action[..., 0])])
    pick = agent.selector.choose(
        context, jnp.zeros((2, S)), jnp.array([[1.0, 2.0], [2.0, 2.0], [2.0, 2.0]])[..., None]
    )
    np.testing.assert_array_equal(pick, [1, 0])


def test_every_action_of_a_joint_actor_begins_as_that_of_an_actor_of_its_own():
    for base in ({"init": "xavier"}, {"actor_output_std": 0.0}):
        out = make("td3+joint", base=base).init(jax.random.key(0)).actor.head.out
        assert out.weight.shape[0] == out.bias.size == 3 * A
        assert not out.bias.any()
        bound = np.sqrt(6 / (out.weight.shape[1] + A)) if "init" in base else 0.0
        assert 0.9 * bound <= np.abs(out.weight).max() <= bound


@pytest.mark.parametrize("recipe", ["sac+savo", "sac+ensemble"])
def test_the_density_of_the_released_code_is_everywhere(recipe):
    """Also in the entropy of the critics' target, for a choice among proposals."""
    exact = make(recipe)
    released = dataclasses.replace(exact.policy_loss, density="released")
    agents = [exact, dataclasses.replace(exact, policy_loss=released)]
    obs = 30 * jax.random.normal(jax.random.key(1), (50, S))
    state, found = state_of(exact), []
    for agent in agents:
        context = functions(agent, state)
        of_selector, of_loss = state.part(agent.selector), state.part(agent.policy_loss)
        policy = agent.selector.target_policy(
            state.actor, state.actor_target, of_selector, context, obs, jax.random.key(2)
        )
        found.append(agent.policy_loss.next_action(policy, of_loss, context, obs, jax.random.key(3))[1])
    assert (found[1] > found[0] + 0.1).any(), "in the tails, the released density is lower"
    assert (found[1] > found[0] - 0.01).all()


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        slow("td3+savo", {}),
        ("td3+savo", {"select_q": "min"}),
        ("sac+savo", {}),
        ("td3+ensemble", {}),
        ("td3+joint", {}),
    ],
)
def test_the_choice_is_the_best_of_the_proposals(recipe, settings):
    agent = make(recipe, **settings)
    state = state_of(agent)
    obs = jax.random.normal(jax.random.key(1), (1000, S))
    acting, context = agent.acting(state), functions(agent, state)
    action, *_ = agent.act(acting, None, obs, jnp.ones(1000, bool), 0, jax.random.key(2))
    proposals = agent.proposals(acting, obs)
    assert proposals.shape == (1000, 3, A)
    critics = 2 if settings else 1
    q = lambda a: np.min(context.q(obs, a)[:critics], 0)  # noqa: E731
    each = np.stack([q(proposals[:, i]) for i in range(3)])
    np.testing.assert_array_equal(q(action), each.max(0))
    assert len(np.unique(each.argmax(0))) > 1, "the choice is none if one of them always wins"


@pytest.mark.slow
def test_next_actions_come_from_online_actors_and_the_online_first_critic():
    """On TD7 on the fixed view; only the values are the target's."""
    agent = make("td7+savo")
    state = state_of(agent)
    assert state.actor_target is None
    other = state_of(agent, 1)
    (fixed, *_), (_, *others) = (each.part_states["sale"].extra for each in (state, other))
    sale = state.part_states["sale"]._replace(extra=(fixed, *others))
    moved = state._replace(
        critics_target=other.critics_target, part_states=state.part_states | {"sale": sale}
    )
    obs, key, part = jax.random.normal(jax.random.key(2), (64, S)), jax.random.key(3), agent.selector
    context = functions(agent, moved)
    chosen = part.target_policy(moved.actor, None, moved.part_states["savo"], context, obs, key)(obs).mode()
    context = functions(agent, state)
    proposals = [dist.mode() for dist in part.propose(state.actor, context, obs)]
    best = np.stack([context.q(obs, a)[0] for a in proposals]).argmax(0)
    np.testing.assert_array_equal(chosen, np.stack(proposals)[best, np.arange(64)])
    assert len(np.unique(best)) > 1


def test_the_target_is_made_of_the_lesser_target_critic():
    """y = r + γ (1 − d) min(Q_1′, Q_2′), where the online critics say something else."""
    agent = make(spec=Spec(3, A))
    says = {"critics": ([7.0, 7, 7], [9.0, 9, 9]), "critics_target": ([3.0, 1, 4], [2.5, 1.5, 5])}
    critics = {
        name: [Says(lambda obs, a, v=v: obs @ jnp.array(v)) for v in values] for name, values in says.items()
    }
    reward, terminated = jnp.array([1.0, 0, -1]), jnp.array([0.0, 0, 1])
    batch = Batch(jnp.zeros((3, 3)), jnp.zeros((3, A)), reward, terminated, jnp.eye(3), 0.99)
    now = update.Stage(agent, batch, Event(jnp.asarray(1), jnp.asarray(0), NO, NO), jax.random.key(0))
    state = state_of(agent)._replace(**critics)
    y = update._fixed_targets(now, state, update._look_ahead(now, state))[:, 0]
    np.testing.assert_allclose(y, [3.475, 0.99, -1.0], rtol=1e-6)


def test_target_smoothing_comes_after_the_choice():
    agent = make(base={"target_noise": 0.2})
    state, obs, key = state_of(agent), jnp.zeros((64, S)), jax.random.key(3)
    context = functions(agent, state)
    smoothed = agent.selector.target_policy(state.actor, None, state.part_states["savo"], context, obs, key)(
        obs
    ).mode()
    off = np.abs(smoothed - context.policy(obs).mode())
    assert off.max() <= 0.5 + 1e-6
    assert 0.1 < off.std() < 0.3


def test_sac_stores_samples_and_judges_by_modes():
    agent = make("sac+savo")
    state, obs = state_of(agent), jax.random.normal(jax.random.key(1), (64, S))
    context, own = functions(agent, state), state.part_states["savo"]
    step = ActingStep(obs, jnp.ones(64, bool), None, jax.random.key(2), "explore")
    action, columns, _ = agent.selector.act(state.actor, own, context, step)
    modes = [dist.mode() for dist in agent.selector.propose(state.actor, context, obs)]
    best = np.stack([context.q(obs, a)[0] for a in modes]).argmax(0)
    np.testing.assert_array_equal(action, columns["proposals"][np.arange(64), best])
    assert np.abs(columns["proposals"] - np.stack(modes, 1)).min() > 0


# --- networks --------------------------------------------------------------------------------------


def test_film_stands_before_the_activation():
    trunk = Torso(jax.random.key(0), (1, 2), "relu")
    layer = lambda net: (net.layers[0].weight, net.layers[0].bias)  # noqa: E731
    trunk = eqx.tree_at(layer, trunk, (jnp.zeros((2, 1)), jnp.array([1.0, -2.0])))
    film = [(jnp.array([[0.5, -0.5]]), jnp.array([[0.1, 0.3]]))]
    np.testing.assert_allclose(trunk(jnp.zeros((1, 1)), Conditioning(film=film)), [[1.6, 0.0]], atol=1e-7)


def told(agent, state, obs, earlier) -> list[np.ndarray]:
    """What the last actor and the last surrogate say after these earlier proposals."""
    context, actor, surrogate = functions(agent, state), state.actor[-1], state.part_states["savo"].params[-1]
    action = context.bind(actor.net)(obs, actor.conditioning(obs, earlier)).mode()
    return [action, context.bind(surrogate.net)(obs, action, surrogate.conditioning(obs, earlier))]


def knows(agent, state) -> bool:
    """The check of the conditioning: do actor and surrogate depend on the earlier proposals?"""
    batch = flat_batch(0)
    earlier = jnp.moveaxis(batch.extra["proposals"], 1, 0)[:2]
    there, elsewhere = (told(agent, state, batch.observation, x) for x in (earlier, -earlier))
    gaps = [np.abs(x - y).max() for x, y in zip(there, elsewhere, strict=True)]
    return all(gap > 1e-5 for gap in gaps)


@pytest.mark.parametrize("summariser", slow_except(["deepset", "lstm"], SUMMARISERS))
@pytest.mark.parametrize("conditioning", ["film", "concat", "both"])
def test_later_networks_know_what_was_proposed(summariser, conditioning):
    agent = make(summariser=summariser, conditioning=conditioning)
    assert knows(agent, state_of(agent))


def test_without_conditioning_the_check_fails():
    none = make(conditioning="none")
    assert not knows(none, state_of(none))
    agent = make()
    state = state_of(agent)

    def deaf(module: Conditioned) -> Conditioned:
        return eqx.tree_at(lambda x: x.film, module, jax.tree.map(jnp.zeros_like, module.film))

    own = state.part_states["savo"]
    state = state._replace(
        actor=[state.actor[0], *map(deaf, state.actor[1:])],
        part_states=state.part_states | {"savo": own._replace(params=[deaf(x) for x in own.params])},
    )
    assert not knows(agent, state)
    batch = flat_batch(0)  # and then each is its network without a context
    earlier = jnp.moveaxis(batch.extra["proposals"], 1, 0)[:2]
    plain = functions(agent, state).bind(state.actor[-1].net)(batch.observation).mode()
    np.testing.assert_array_equal(told(agent, state, batch.observation, earlier)[0], plain)


@pytest.mark.parametrize(
    ("summariser", "sees_order"), [("deepset", False), slow("transformer", False), ("lstm", True)]
)
def test_only_the_lstm_sees_the_order(summariser, sees_order):
    net = SUMMARISERS[summariser](jax.random.key(0), 4)
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    gap = np.abs(net(x) - net(x[:, ::-1])).max()
    assert net(x).shape == (2, 64)
    assert (gap > 1e-4) if sees_order else (gap < 1e-6)


def deepset(net, h):
    return h.mean(0)


def lstm(net, h):
    """Two layers, each in both directions; mean over places and directions. Gates are i, f, g, o."""

    def run(cell, places):
        hidden, inner, said = np.zeros(64), np.zeros(64), []
        for x in places:
            i, f, g, o = np.split(cell.weight_ih @ x + cell.weight_hh @ hidden + cell.bias, 4)
            inner = inner / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
            hidden = np.tanh(inner) / (1 + np.exp(-o))
            said.append(hidden)
        return np.array(said)

    for forwards, backwards in net.cells:
        h = np.concatenate([run(forwards, h), run(backwards, h[::-1])[::-1]], 1)
    assert len(net.cells) == 2
    return (h[:, :64] + h[:, 64:]).mean(0) / 2


def transformer(net, h):
    """One block of four heads and a feed-forward layer of 128, each normalised before, none after."""

    def normalised(norm, x):
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        return x * np.asarray(norm.weight) + norm.bias

    query, key, value = np.split(linear(net.attention, normalised(net.norms[0], h)), 3, 1)
    told = []
    for head in np.split(np.arange(64), 4):
        score = np.exp(query[:, head] @ key[:, head].T / 4)
        told.append(score / score.sum(1, keepdims=True) @ value[:, head])
    h = h + linear(net.joined, np.concatenate(told, 1))
    assert net.forward.torso.layers[0].weight.shape == (128, 64)
    return (h + two(net.forward, normalised(net.norms[1], h))).mean(0)


def linear(layer, x):
    return x @ np.asarray(layer.weight).T + layer.bias


def two(net, x):
    (hidden,) = net.torso.layers
    return linear(net.out, np.maximum(linear(hidden, x), 0))


@pytest.mark.parametrize("middle", [deepset, lstm, transformer])
def test_summarisers_are_what_they_are_called(middle):
    """Between the same layers for each element and the same last layers."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda k: SUMMARISERS[middle.__name__](k, 4), KEY)
    net = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    expected = [two(net.final, middle(net, two(net.element, elements))) for elements in x]
    np.testing.assert_allclose(jax.tree.map(jnp.asarray, net)(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "actor_hidden", "critic_hidden", "counts"),
    [
        ((11, 3), (256, 256), (256, 256), (69_889, 69_635, 149_635, 149_889)),
        ((23, 4), (128, 64, 64, 32), (128, 128), (20_225, 17_700, 69_412, 67_777)),
        ((30, 30), (64, 32, 32, 16), (64, 32), (6_017, 6_158, 41_262, 34_881)),
    ],
)
def test_networks_have_the_papers_sizes(sizes, actor_hidden, critic_hidden, counts):
    agent = make(spec=Spec(*sizes), base={"actor_hidden": actor_hidden, "critic_hidden": critic_hidden})
    state = jax.eval_shape(agent.init, jax.random.key(0))
    trees = state.critics[0], state.actor[0], state.actor[1], state.part_states["savo"].params[0]
    assert tuple(sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees) == counts


def test_one_list_encoder_serves_all_actors_and_one_all_surrogates():
    """A shared encoder equals copies of it in every network, and there are two encoders instead of four."""
    each, shared = make(summary_width=12), make(summary_width=12, summarisers="shared")
    state, batch = state_of(shared), flat_batch(0)

    def copied(first: Conditioned, *rest: Conditioned) -> list[Conditioned]:
        lacks = lambda module: module.summary  # noqa: E731
        return [
            first,
            *(eqx.tree_at(lacks, m, first.summary, is_leaf=lambda x: x is None) for m in rest),
        ]

    own = state.part_states["savo"]
    apart = state._replace(
        actor=[state.actor[0], *copied(*state.actor[1:])],
        part_states={"savo": own._replace(params=copied(*own.params))},
    )
    encoder = 12 * (S + A) + 12 + 3 * (12 * 12 + 12)
    counts = [sum(x.size for x in jax.tree.leaves((s.actor, s.part_states))) for s in (state, apart)]
    assert counts[1] - counts[0] == 2 * encoder
    found = []
    for agent, of in ((shared, state), (each, apart)):
        context = functions(agent, of)
        params = of.part_states["savo"].params
        loss = agent.selector.learn(params, of.part(agent.selector), context, batch, KEY)[0]
        objectives = agent.selector.actor_objectives(of.actor, of.part(agent.selector), context, batch)
        obs = batch.observation
        values = [q(obs, policy(obs).mode())[0] for policy, q in objectives]
        found.append([loss, *values, agent.selector.propose(of.actor, context, obs)[2].mode()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_film_may_start_as_the_identity():
    """With a start of 0, scales and shifts are 0 for every list; a start of 0.2 has twice 0.1's weights."""
    none, usual, double = (_make_film(KEY, 12, 8, start) for start in (0.0, 0.1, 0.2))
    assert not none.weight.any()
    assert none.weight.shape == (16, 12)
    assert not none.bias.any()
    np.testing.assert_allclose(double.weight, 2 * usual.weight, rtol=1e-6)


def test_a_transformer_needs_a_width_for_its_heads():
    with pytest.raises(UsageError, match="summary_width is 30; a transformer with 4 heads"):
        make(summariser="transformer", summary_width=30)


# --- noise -----------------------------------------------------------------------------------------


def test_noise_follows_ornstein_and_uhlenbeck(monkeypatch):
    draws = iter([1.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.full(shape, next(draws)))
    context, memory, seen = functions(make(base={"epsilon_end": 1.0})), jnp.zeros((2, 4, A)), []
    for t in range(4):
        first = jnp.array([False, t == 3])
        drawn, memory = sample_noise(context, memory, first, memory.shape, jax.random.key(0))
        seen.append(drawn[:, 0, 0])
    expected = [[0.2, 0.2], [0.17, 0.17], [0.1445, 0.1445], [0.122825, 0.0]]  # the second episode begins anew
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


@pytest.mark.slow
def test_how_far_the_noise_goes_in_the_long_run():
    """0.2 / √(1 − 0.85²) = 0.379663: 60 steps of 600,000 processes, and no episode ends."""
    context, first = functions(make(base={"epsilon_end": 1.0})), jnp.zeros(200_000, bool)

    def step(memory, key):
        return sample_noise(context, memory, first, memory.shape, key)[1], None

    memory, _ = jax.lax.scan(step, jnp.zeros((200_000, A)), jax.random.split(jax.random.key(0), 60))
    assert float(memory.std()) == pytest.approx(0.379663, abs=1e-3)


def test_epsilon_falls_in_a_line_from_the_end_of_the_warm_up():
    base = dataclasses.replace(make().base, warmup=10_000, epsilon_decay=500_000.0)
    for step, expected in ((0, 1.0), (10_000, 1.0), (260_000, 0.505), (510_000, 0.01), (900_000, 0.01)):
        np.testing.assert_allclose(epsilon(base, step), expected, rtol=1e-6)
    assert epsilon(dataclasses.replace(base, epsilon_decay=1 / 6), 260_000) == pytest.approx(0.505)


def test_a_run_knows_how_long_epsilon_falls():
    _, agent, notes = prepare(Plan("td3+savo", "Pendulum-v1", 60_000))
    assert agent.base.epsilon_decay == 10_000
    assert any("base.epsilon_decay = 10000 steps" in note for note in notes)
    asked = {"base": {"epsilon_decay": 700.0}}
    assert prepare(Plan("td3+savo", "Pendulum-v1", 60_000, settings=asked))[1].base.epsilon_decay == 700
    assert prepare(Plan("td3", "Pendulum-v1", 60_000))[1].base.epsilon_decay == 1 / 6


@pytest.mark.parametrize(
    ("recipe", "env", "fields"),
    [
        ("td3+savo", "restricted/InvertedDoublePendulum-v0", (500_000, 1.0, (256, 256), (256, 256), 1 / 6)),
        ("sac+savo", "restricted/Hopper-v0", (500_000, 1.0, (256, 256), (256, 256), 1 / 6)),
        ("td3+ou", "mineworld/MineWorld-v0", (500_000, 0.01, (128, 64, 64, 32), (128, 128), 0.5)),
        ("td3+greedy_ac", "recsim/100k-v0", (1_000_000, 0.02, (64, 32, 32, 16), (64, 32), 1.0)),
    ],
)
def test_every_method_has_the_papers_protocol(recipe, env, fields):
    given, source = agents.preset("paper", recipe, env)
    base = agents.build(recipe, given).base
    widths = base.actor_hidden, base.critic_hidden
    assert (base.replay_capacity, base.updates_per_step, *widths, base.epsilon_decay) == fields
    assert base.warmup == 10_000
    assert "2410.11833" in source


@pytest.mark.slow
def test_epsilon_greedy_is_sometimes_anything():
    agent = make(
        base={"epsilon_mode": "greedy", "epsilon_start": 0.5, "epsilon_end": 0.5, "exploration_noise": 0.0}
    )
    state, obs, first = state_of(agent), jnp.zeros((1000, S)), jnp.ones(1000, bool)
    action, *_ = agent.act(agent.acting(state), None, obs, first, 0, jax.random.key(1), "explore")
    usual = np.all(action == np.median(action, 0), 1)
    assert 0.42 < usual.mean() < 0.58
    assert np.ptp(np.asarray(action)[~usual], axis=0).min() > 1.8


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "settings", "why"),
    [
        ("td3+savo", {"savo": {"list_length": 0}}, "savo.list_length is 0; it must be at least 1"),
        ("td3+ensemble", {"ensemble": {"members": 0}}, "ensemble.members is 0; it must be at least 1"),
        ("td3+savo+cem", {}, "savo and cem both fill one place"),
        ("sac+savo+savgo", {}, "leave one of them out"),
        ("td3+savo+greedy_ac", {}, "leave one of them out"),
        ("td3+greedy_ac+greedy_td3", {}, "both fill one place"),
        ("sac+wolpertinger", {}, "write td3\\+wolpertinger"),
        ("sac+cem", {}, "write td3\\+cem"),
        ("sac+joint", {}, "write td3\\+joint"),
        ("sac+greedy_td3", {}, "write td3\\+greedy_td3"),
        ("td3+cem", {"cem": {"elites": 65}}, "cem.elites is 65; it must be at most cem.samples = 64"),
        ("td3+wolpertinger", {"wolpertinger": {"candidates": 0}}, "at least 1"),
        ("td3+greedy_ac", {"greedy_ac": {"share": 0.01}}, "at least one"),
        ("td3", {"base": {"epsilon_decay": 0.0}}, "must be a number above 0"),
    ],
)
def test_what_cannot_be_is_refused(recipe, settings, why):
    with pytest.raises(UsageError, match=why):
        agents.build(recipe, settings)


def test_an_update_searches_for_the_row_of_each_proposal_once(monkeypatch):
    """Three at s' and three at s: compiled searches are loops, and XLA does not merge two that are equal."""
    searches, nearest = [], ActionTable.nearest
    monkeypatch.setattr(ActionTable, "nearest", lambda *a, **k: searches.append(1) or nearest(*a, **k))
    rows = np.random.default_rng(0).uniform(-1, 1, (20, 2)).astype(np.float32)
    agent = make(spec=Spec(S, 2, table=rows))
    layout = agent.layout()
    storage, index = jax.eval_shape(lambda: agent.init_replay(layout))
    state = jax.eval_shape(agent.init, KEY)
    jax.eval_shape(lambda *moved: agent.update(layout, *moved, KEY), state, storage, index)
    assert len(searches) == 6
