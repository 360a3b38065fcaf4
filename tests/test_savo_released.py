"""SAVO as its authors released it: the numbers of its agent, and its straight-line file."""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import AS_USERS, CAPACITY, A, S, build, fill, same, start, transitions
from test_savo import NO, batch_of, flat_batch, functions, grown, make, state_of

import reference.savo_released as reference
from qscape import agents
from qscape.errors import UsageError
from qscape.nets import Conditioning, Torso
from qscape.nets.layers import SampleNorm
from qscape.offpolicy.base import Base, clip_each
from qscape.offpolicy.exploration import epsilon, sample_noise
from qscape.ops.devices import split_batch
from qscape.replay.storage import rows_at
from qscape.run.plan import Plan, prepare
from qscape.types import Event, Spec, stream

RELEASED = {"film": "released", "summary_width": 16, "summary_hidden": 64, "surrogate_loss": "mean"}
RELEASED |= {"next_q": "target", "noise": "proposals"}
OF_BASE = {"target_actor": True, "target_noise": 0.2, "actor_norm": "last", "init": "small"}
OF_BASE |= {"gradient_clip": 1.0, "critic_clip": "each", "epsilon_mode": "increment"}
TASKS = ["InvertedPendulum", "InvertedDoublePendulum", "Hopper", "Walker2d", "HalfCheetah", "Ant"]


def released(spec: Spec | None = None, base: dict | None = None, **settings: Any):
    """A small agent with the options of the release."""
    return make(spec=spec, base=OF_BASE | (base or {}), **(RELEASED | settings))


# --- the straight-line file ---------------------------------------------------------------------------


def graft(mine, theirs):
    theirs = jax.tree.leaves(theirs)
    assert [x.shape for x in jax.tree.leaves(mine)] == [x.shape for x in theirs]
    return jax.tree.unflatten(jax.tree.structure(mine), theirs)


def by_name(run) -> dict[str, Any]:
    """What the agent carries, under the names that the straight-line file gives it."""
    state = run.state
    known = {"actors": state.actor, "actors_target": state.actor_target, "updates": state.updates}
    known |= {"critics": state.critics, "critics_target": state.critics_target}
    known |= {"surrogates": state.part_states["savo"].params}
    names = {"actors": "actor", "critics": "critics", "surrogates": "savo.params"}
    known |= {f"{name}_adam": state.optimisers[mine] for name, mine in names.items()}
    assert len(jax.tree.leaves(known)) == len(jax.tree.leaves(state)) - 1, "all but env_steps is compared"
    return known


def started(**of_table: Any):
    """A run of the agent, the memory and the state of the straight-line file."""
    base = OF_BASE | ({"target_noise": 0.0} if of_table else {})
    run = start(build("td3+savo", 32, {"savo": RELEASED | of_table}, **base), options=AS_USERS)
    layout = run.agent.layout(1)
    kept = run.storage[: len(run.memory.obs), layout.slices["proposals"]].reshape(-1, 3, A)
    sizes, hidden = (S, A), run.agent.base.actor_hidden
    own = reference.init(jax.random.key(9), *sizes, hidden=hidden, on_table=bool(of_table))
    own = own._replace(**{name: graft(getattr(own, name), part) for name, part in by_name(run).items()})
    return run, reference.Transitions(*run.memory, kept), own


@pytest.mark.slow
@pytest.mark.parametrize("on_table", [False, True])
def test_the_agent_equals_its_oracle_to_the_bit(on_table):
    run, memory, theirs = started(**({"raw_vectors": True} if on_table else {}))
    update = partial(reference.update, batch_size=run.agent.base.batch_size)
    if on_table:
        table = jnp.asarray(run.agent.task.table)
        update = partial(reference.update_table, table=table, batch_size=run.agent.base.batch_size)
    update = jax.jit(update, compiler_options=AS_USERS)
    for number in range(1, 101):
        run, theirs = run.step(), update(theirs, memory, key=run.key)
        differs = [name for name, part in by_name(run).items() if not same(part, getattr(theirs, name))]
        assert not differs, f"at update {number}"


@pytest.mark.slow
def test_acting_equals_its_oracle():
    run, memory, theirs = started()
    decay = {"epsilon_decay": float(reference.EPSILON_DECAY), "warmup": reference.WARMUP}
    agent = dataclasses.replace(run.agent, base=dataclasses.replace(run.agent.base, **decay))
    obs, key, step = memory.obs[:4], jax.random.key(3), 20_000
    before, first = 0.3 * jax.random.normal(key, (4, 3, A)), jnp.array([True, False, False, False])
    act = jax.jit(agent.act, static_argnames="mode")
    mine = act(agent.acting(run.state), before, obs, first, step, key, mode="explore")
    expected = jax.jit(reference.explore)(theirs, before, obs, first, step, key)
    for x, y in zip((mine[0], mine[1]["proposals"], mine[2]), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


# --- exploration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "decay", "at"),
    [
        (1.0, 0.01, 500_000, {1: 1.0, 250_000: 0.50500099, 500_000: 0.01, 2_000_000: 0.01}),
        (0.5, 0.01, 10_000_000, {5_000_000: 0.25500002}),
    ],
)
def test_epsilon_at_the_steps_of_the_release(start, end, decay, at):
    """Its row of N values has the first at step 1 and the last at step N."""
    base = Base(epsilon_start=start, epsilon_end=end, epsilon_decay=decay - 1, warmup=1)
    for step, value in at.items():
        assert epsilon(base, step) == pytest.approx(value, abs=5e-8)


def walk(size: float, draws, start=0.0, first=False):
    """The noise of a process with ε = `size` after these draws of a standard normal distribution."""
    settings = {"exploration": "ou", "exploration_noise": 0.2, "epsilon_mode": "increment"}
    settings |= {"epsilon_start": size, "epsilon_end": size}
    context = functions(agents.build("td3", {"base": settings}).on(Spec(2, 1)))
    x, seen, real = jnp.full((1, 1), start), [], jax.random.normal
    for draw in draws:
        jax.random.normal = lambda key, shape, draw=draw: jnp.full(shape, draw)
        try:
            noise, x = sample_noise(context, x, jnp.array([first]), (1, 1), jax.random.key(0))
        finally:
            jax.random.normal = real
        np.testing.assert_array_equal(noise, x)
        seen.append(float(noise[0, 0]))
    return seen


def test_epsilon_scales_the_increments():
    assert walk(0.5, [1, 0, 0]) == pytest.approx([0.1, 0.0925, 0.0855625], abs=1e-7)
    assert walk(0.5, [1], start=5.0, first=True) == pytest.approx([0.1], abs=1e-7), "an episode begins at 0"


@pytest.mark.parametrize(
    ("size", "std"), [(1.0, 0.379663), (0.5, 0.263181), (0.1, 0.115906), (0.01, 0.036529)]
)
def test_how_far_the_noise_strays(size, std):
    """x ← k x + n with std(n) = 0.2 ε settles at 0.2 ε / √(1 − k²)."""
    kept, drawn = walk(size, [0], start=1.0)[0], walk(size, [1])[0]
    assert drawn / np.sqrt(1 - kept**2) == pytest.approx(std, rel=2e-4)


def test_only_a_process_has_increments():
    with pytest.raises(UsageError, match="exploration = ou") as refused:
        agents.build("td3", {"base": {"epsilon_mode": "increment"}})
    assert refused.value.field == "epsilon_mode"


def test_one_noise_for_each_proposal_and_none_for_the_choice():
    """The executed action is one of the stored proposals, and the process of every proposal is its own."""
    agent, obs = released(), jnp.ones((64, 5))
    state = state_of(agent)
    before = agent.selector.init_noise(agent.task, 64, agent.base)
    assert before.shape == (64, 3, 3)
    first = jnp.zeros(64, bool)
    acting, key = agent.acting(state), jax.random.key(0)
    action, columns, after = agent.act(acting, before, obs, first, 0, key, "explore")
    proposals = columns["proposals"]
    assert (np.abs(proposals - action[:, None]).max(-1) == 0).any(1).all()
    quiet = agent.proposals(agent.acting(state), obs)  # later actors see proposals without noise
    np.testing.assert_allclose(proposals, np.clip(quiet + after, -1, 1), atol=1e-6)
    q = functions(agent, state).q
    best = np.argmax([q(obs, a)[0] for a in jnp.moveaxis(proposals, 1, 0)], 0)
    np.testing.assert_array_equal(action, proposals[jnp.arange(64), best])


# --- networks ---------------------------------------------------------------------------------------------


def test_film_follows_the_activation():
    torso = Torso(jax.random.key(0), (1, 3), "relu")
    weights = jnp.array([[1.0], [-2], [0.5]]), jnp.zeros(3)
    torso = eqx.tree_at(lambda t: (t.layers[0].weight, t.layers[0].bias), torso, weights)
    film = [(jnp.array([0.5, 2.0, -1.0]), jnp.array([0.1, 0.3, 0.2]))]
    np.testing.assert_allclose(
        torso(jnp.ones(1), Conditioning(None, film, True)), [0.6, 0.3, -0.3], atol=1e-7
    )
    none = [(jnp.zeros(3), jnp.zeros(3))]
    np.testing.assert_array_equal(torso(jnp.ones(1), Conditioning(None, none, True)), 0.0)


def test_the_norm_of_the_features():
    norm = SampleNorm(jax.random.key(0), 4)
    assert ((norm.scale >= 0) & (norm.scale <= 1)).all()
    assert np.ptp(norm.scale) > 0
    norm = eqx.tree_at(lambda n: n.scale, norm, jnp.ones(4))
    np.testing.assert_allclose(
        norm(jnp.array([0.0, 1, 2, 5])), [-0.9258158, -0.4629079, 0, 1.3887237], atol=1e-6
    )
    slope = jax.grad(lambda x: norm(x).sum())(jnp.zeros(4))
    assert np.isfinite(slope).all(), "features that are all 0 have a gradient"
    torso = Torso(jax.random.key(0), (2, 8, 8), "relu", normalise_last=True)
    plain = eqx.tree_at(lambda t: t.last, torso, None)
    x = jnp.array([0.3, -1.0])
    np.testing.assert_array_equal(torso(x), torso.last(plain(x)))


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_numbers_of_parameters_on_hopper():
    """The release also makes a norm of the first hidden layer, of 2 · 256 parameters, that it never uses."""
    agent = prepare(Plan("td3+savo", "restricted/Hopper-v1", 100_000, preset="released"))[1].on(Spec(11, 3))
    state = jax.eval_shape(agent.init, jax.random.key(0))
    unused = 512
    assert [count(part) + unused for part in state.actor] == [70_659, 88_067 + 10_320, 88_067 + 10_320]
    assert count(state.actor) + 3 * unused == 267_433
    assert [count(part) for part in state.critics] == [69_889] * 2
    surrogates = state.part_states["savo"].params
    assert count(surrogates) + 69_889 == 265_123, "the first entry of its list of critics is Q_1"


def test_all_begins_near_zero():
    agent = released(base={"actor_hidden": (256, 256), "critic_hidden": (256, 256)}, spec=Spec(11, 3))
    state, obs = agent.init(jax.random.key(3)), jax.random.normal(jax.random.key(1), (256, 11))
    proposals = agent.proposals(agent.acting(state), obs)
    assert 0 < np.abs(proposals).max() < 0.1
    film = state.actor[1].film[0]
    scale, shift = jnp.split(film.weight, 2)
    for half in (scale, shift):
        np.testing.assert_allclose(half.T @ half, 2 * jnp.eye(16), atol=1e-5)
    assert not film.bias.any()
    hidden, out = state.critics[0].body.torso.layers[1], state.critics[0].body.out
    np.testing.assert_allclose(hidden.weight @ hidden.weight.T, 2 * jnp.eye(256), atol=1e-5)
    assert not hidden.bias.any()
    assert np.linalg.norm(out.weight) == pytest.approx(1e-3, rel=1e-4)
    assert 0 < np.abs(out.bias).max() <= 1 / 16


def test_the_greatest_of_each_feature_describes_the_list():
    agent = released()
    module, obs = state_of(agent).actor[2], jnp.ones((4, 5))
    earlier = jax.random.uniform(jax.random.key(0), (2, 4, 3), minval=-1.0)
    elements = jnp.concatenate([earlier, jnp.broadcast_to(obs, (2, 4, 5))], -1)
    code = module.summary.final(module.summary.element(elements).max(0))
    film = module.conditioning(obs, earlier)
    assert film.follows
    scale = module.film[0].weight @ code[0] + module.film[0].bias
    np.testing.assert_allclose(film.film[0][0][0], scale[: len(scale) // 2], atol=1e-5)
    twice = module.conditioning(obs, jnp.concatenate([earlier, earlier]))
    np.testing.assert_allclose(twice.film[0][0], film.film[0][0], atol=1e-6)


# --- the update -------------------------------------------------------------------------------------------


def values_of(at_list, executed):
    """Critics whose least value is t at the places of three proposals (0, 1, 2) and of an action (3)."""
    places, t = jnp.arange(4.0) / 4, jnp.array([*at_list, executed])
    return lambda obs, action: [jnp.interp(action[..., 0], places, t), 9 + 0 * action[..., 0]]


@pytest.mark.parametrize(
    ("at_list", "executed", "columns"),
    [((1.0, 0.7, 1.5), 0.4, (1, 1.5, 1, 1)), ((0.2, 0.9, 0.5), 1.1, (0.9, 0.9, 1.1, 1.1))],
)
@pytest.mark.parametrize("refined", [False, True])
def test_what_surrogates_regress_to(at_list, executed, columns, refined):
    """Ψ̂_1 and Ψ̂_2 at the list and at the action; the loss is the mean over four columns."""
    agent = released(spec=Spec(5, 1), next_q="online" if refined else "target")
    state = state_of(agent)
    own, surrogates = state.part_states["savo"], len(columns) // 2
    proposals = jnp.arange(3.0).reshape(1, 3, 1) / 4
    batch = batch_of(jnp.zeros((1, 5)), jnp.full((1, 1), 0.75), proposals)
    context, wrong = functions(agent, state), lambda obs, action: [jnp.full(action.shape[:-1], 7.0)] * 2
    right = values_of(at_list, executed)
    critics = {"q": right, "q_target": wrong} if refined else {"q": wrong, "q_target": right}
    context = context._replace(**critics)
    for says in (0.0, 0.8):
        constant = jax.tree.map(jnp.zeros_like, own.params)
        biases = lambda nets: [net.net.body.out.bias for net in nets]  # noqa: E731
        constant = eqx.tree_at(biases, constant, [jnp.array([says])] * surrogates)
        loss, _, _ = agent.selector.learn(constant, own, context, batch, jax.random.key(0))
        np.testing.assert_allclose(loss, np.square(says - np.array(columns)).mean(), rtol=1e-6)


def test_each_actor_is_moved_by_its_own_climb_alone():
    """∂a_1/∂ν_0 is 0, and Ψ̂_2 at a_2 has a gradient into ν_2 only."""
    agent = released()
    state, batch = state_of(agent), flat_batch(0)
    own = state.part_states["savo"]

    def loss(actor, i):
        context = functions(agent, state._replace(actor=actor))
        policy, q = agent.selector.actor_objectives(actor, own, context, batch)[i]
        return -q(batch.observation, policy(batch.observation).mode())[0].mean()

    for i in range(3):
        assert [grown(part) for part in jax.grad(loss)(state.actor, i)] == [j == i for j in range(3)]


@pytest.mark.parametrize("next_q", ["target", "online"])
@pytest.mark.parametrize(("draw", "y"), [(None, 3.9205), (-1.5, 3.8809), (-4.0, 3.7225)])
def test_the_target(monkeypatch, draw, y, next_q):
    """The target actors propose .2, .5, .9; Q'_1 is greatest at .5, the choice is smoothed, γ is .99."""
    agent = released(spec=Spec(5, 1), next_q=next_q, base={"target_noise": 0.0 if draw is None else 0.2})
    state = state_of(agent)
    places = jnp.arctanh(jnp.array([0.2, 0.5, 0.9]))

    def says(module: Any, place: Any) -> Any:
        def out(m: Any) -> Any:
            layer = getattr(m, "net", m).head.out
            return layer.weight, layer.bias

        return eqx.tree_at(out, module, (jnp.zeros_like(out(module)[0]), place[None]))

    target = [says(module, place) for module, place in zip(state.actor_target, places, strict=True)]
    state = state._replace(actor_target=target)
    first = lambda obs, action: [3 - (action[..., 0] - 0.5) ** 2, 3.2 - 0.5 * action[..., 0]]  # noqa: E731
    worst = lambda obs, action: [-v for v in first(obs, action)]  # noqa: E731
    choosing = {"q": first, "q_target": first} if next_q == "online" else {"q": worst, "q_target": first}
    context = functions(agent, state)._replace(**choosing)
    obs = jnp.zeros((1, 5))
    if draw is not None:
        monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.full(shape, draw))
    policy = agent.selector.target_policy(
        state.actor, state.actor_target, state.part_states["savo"], context, obs, jax.random.key(0)
    )
    action = policy(obs).mode()
    expected = 0.5 if draw is None else 0.5 + max(0.2 * draw, -0.5)
    np.testing.assert_allclose(action, [[expected]], atol=1e-6)
    assert 1 + 0.99 * min(v[0] for v in first(obs, action)) == pytest.approx(y, abs=1e-5)


def test_online_critics_choose_among_target_actors_in_the_refined_variant():
    agent = released(next_q="online", base={"target_noise": 0.0})
    state = state_of(agent)
    target = jax.tree.map(lambda x: 0.9 * x, state.actor_target)
    obs, state = jax.random.normal(jax.random.key(0), (200, 5)), state._replace(actor_target=target)
    context = functions(agent, state)
    args = state.actor, state.actor_target, state.part_states["savo"], context, obs, jax.random.key(0)
    proposed = [d.mode() for d in agent.selector.propose(target, context, obs)]
    for chooser, q in (("online", context.q), ("target", lambda *x: [-v for v in context.q(*x)])):
        part = dataclasses.replace(agent.selector, next_q=chooser)
        seen = context._replace(q_target=q)
        policy = part.target_policy(*args[:3], seen, *args[4:])
        index = jnp.argmax(jnp.stack([q(obs, a)[0] for a in proposed]), 0)
        np.testing.assert_array_equal(policy(obs).mode(), jnp.stack(proposed)[index, jnp.arange(200)])


def test_each_critic_is_clipped_by_itself():
    gradients = [{"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([0.3, 0.4])}]
    clip = clip_each(1.0)
    clipped, _ = clip.update(gradients, clip.init(gradients))
    np.testing.assert_allclose(clipped[0]["w"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(clipped[1]["w"], gradients[1]["w"])
    assert "base.critic_clip" in released(base={"gradient_clip": None}).moot_fields()


def test_targets_move_once_in_an_update():
    """The release moves the target of Q_1 twice on MuJoCo, by .009975 in all; that is not copied."""
    agent = released()
    state = state_of(agent)
    one = jax.tree.map(lambda x: x + 1.0, state.critics)
    event = Event(jnp.array(2), jnp.array(0), jnp.array(True), NO)
    moved = agent.target_update.target_update(one, state.critics, event)
    for critic, before in zip(moved, state.critics, strict=True):
        for new, old in zip(jax.tree.leaves(critic), jax.tree.leaves(before), strict=True):
            np.testing.assert_allclose(new - old, 0.005, atol=1e-6)


def test_the_losses_are_means_over_this_many_values():
    """256 for each critic and 256 · 4 for the surrogates, in an update of the preset's networks."""
    # Without smoothing, whose draw would have to be known; with a replay that is filled soon.
    few = {"base": {"target_noise": 0.0, "replay_capacity": CAPACITY}}
    plan = Plan("td3+savo", "Hopper-v5", 100_000, preset="released", settings=few)
    agent = prepare(plan)[1].on(Spec(S, A))
    state, layout, key = state_of(agent), agent.layout(1), jax.random.key(5)
    storage, index = fill(agent, *transitions(0))
    *_, metrics = jax.jit(partial(agent.update, layout))(state, storage, index, key)

    at = stream(jax.random.fold_in(key, 1), f"{agent.replay.name}.sample")
    picked = agent.replay.sample(layout, storage, index, at, agent.base.batch_size)
    batch = split_batch(rows_at(layout, storage, index, picked, *agent.sampling_options))
    obs, action, context = batch.observation, batch.action, functions(agent, state)
    least = lambda o, a: np.min(context.q_target(o, a), 0)  # noqa: E731
    own, next_obs = state.part_states["savo"], batch.next_observation
    policy = agent.selector.target_policy(state.actor, state.actor_target, own, context, next_obs, key)
    following = least(next_obs, policy(next_obs).mode())
    y = np.asarray(batch.reward + 0.99 * (1 - batch.terminated) * following)[:, None]
    errors = [critic.outputs(obs, action, ()) - y for critic in state.critics]
    assert [error.shape for error in errors] == [(256, 1)] * 2
    np.testing.assert_allclose(metrics["critic_loss"], sum(np.square(e).mean() for e in errors), rtol=1e-4)

    listed = jnp.moveaxis(batch.extra["proposals"], 1, 0)
    values, executed, columns = [least(obs, a) for a in listed], least(obs, action), []
    for i, net in enumerate(own.params, 1):
        psi = context.bind(net.net)
        given = net.conditioning(obs, listed[:i], own.params[0].summary)
        floor = np.max(values[:i], 0)
        for point, value in ((listed[i], values[i]), (action, executed)):
            columns.append(psi(obs, point, given) - np.maximum(value, floor))
    table = np.stack(columns, 1)
    assert table.shape == (256, 4)
    np.testing.assert_allclose(metrics["surrogate_loss"], np.square(table).mean(), rtol=1e-4)


def test_critics_of_lists():
    """They are fitted to what target critics say of the executed action; the actor climbs the first."""
    agent = make("td3+joint", climbs_by="critic", base={"target_actor": True})
    state, batch = state_of(agent), flat_batch(0)
    own, obs, part = state.part_states["joint"], batch.observation, agent.selector
    context, listed = functions(agent, state), batch.extra["proposals"].reshape(8, -1)

    loss, _, _ = part.learn(own.params, own, context, batch, jax.random.key(0))
    target = np.min(context.q_target(obs, batch.action), 0)
    each = [net.body(jnp.concatenate([obs, listed[:, :3], listed[:, 3:]], -1))[:, 0] for net in own.params]
    np.testing.assert_allclose(loss, sum(np.square(v - target).mean() for v in each), rtol=1e-5)
    ((policy, climb),) = part.actor_objectives(state.actor, own, context, batch)
    lists = policy(obs).mode()
    assert lists.shape == (8, 9)
    expected = own.params[0].body(jnp.concatenate([obs, lists], -1))[:, 0]
    np.testing.assert_allclose(climb(obs, lists)[0], expected, rtol=1e-5)
    assert agent.layout(1).slices["proposals"] is not None


# --- cem: of the release no settings, and its weights never ------------------------------------------------


def searched(means: np.ndarray, keys, weights: np.ndarray) -> np.ndarray:
    """CEM on -(a - mean)², by numpy: 30 samples, the best three, three rounds; weights from the best on."""
    centre, spread, found = np.zeros(len(means)), np.full(len(means), 0.5), []
    for key in keys:
        drawn = np.asarray(jax.random.normal(key, (30, len(means), 1)))[..., 0]
        drawn = np.clip(centre + spread * drawn, -1, 1)
        value = -np.square(drawn - means)
        best = np.take_along_axis(drawn, np.argsort(-value, 0, kind="stable")[:3], 0)
        centre = weights @ best
        spread = np.maximum(np.sqrt(weights @ np.square(best - centre)), 0.01)
        found.append(best[0])
    values = -np.square(np.array(found) - means)
    return np.take_along_axis(np.array(found), values.argmax(0)[None], 0)[0]


def test_cem_fits_its_elites_without_weights():
    """The release's weights, of the best, second and third elite, favour the worst; that is not copied."""
    inverted = np.log(4 / np.arange(1, 4))[::-1]
    inverted /= inverted.sum()
    np.testing.assert_allclose(inverted, [0.1215323, 0.2928226, 0.5856451], atol=5e-8)

    agent = make("td3+cem", spec=Spec(5, 1), samples=30, elites=3, rounds=3)
    obs = jax.random.uniform(jax.random.key(1), (200, 5), minval=-0.9, maxval=0.9)
    q = lambda obs, action: [-jnp.square(action[..., 0] - obs[..., 0])]  # noqa: E731
    context = functions(agent, q=q)
    mine = agent.selector.search(context, obs, jax.random.key(2))[:, 0]
    by_hand = partial(searched, np.asarray(obs[:, 0]), jax.random.split(jax.random.key(2), 3))
    np.testing.assert_allclose(mine, by_hand(np.full(3, 1 / 3)), atol=1e-5)
    for other in (inverted, inverted[::-1]):
        assert (np.abs(mine - by_hand(other)) > 1e-4).mean() > 0.5, "the search tells weights apart"


# --- action tables ----------------------------------------------------------------------------------------

ROWS = np.array([[-1.0], [-0.5], [0.0], [0.5], [1.0]], np.float32)
ON_ROWS = Spec(5, 1, table=ROWS)


def on_table(**settings: Any):
    return released(spec=ON_ROWS, raw_vectors=True, base={"target_noise": 0.0}, **settings)


@pytest.mark.parametrize(
    ("at_list", "executed", "columns"),
    [((1.0, 0.7, 1.5), 0.4, (1, 1, 1.5, 0.4, 1, 1)), ((0.2, 0.9, 0.5), 1.1, (0.2, 0.9, 0.9, 1.1, 1.1, 1.1))],
)
def test_what_surrogates_on_a_table_regress_to(at_list, executed, columns):
    """Ψ̂_0 takes part, and values are those of the nearest rows, -.5, 0, .5, and of the executed row, 1."""
    agent = on_table()
    state = state_of(agent)
    own, places = state.part_states["savo"], jnp.array([-0.5, 0.0, 0.5, 1.0])
    assert len(own.params) == 3
    proposals = jnp.array([-0.6, 0.2, 0.3]).reshape(1, 3, 1)  # no rows
    batch = batch_of(jnp.zeros((1, 5)), jnp.ones((1, 1)), proposals)
    t = lambda obs, a: [jnp.interp(a[..., 0], places, jnp.array([*at_list, executed])), 9 + 0 * a[..., 0]]  # noqa: E731
    context = functions(agent, state)._replace(q_target=t)
    for says in (0.0, 0.8):
        constant = jax.tree.map(jnp.zeros_like, own.params)
        biases = lambda nets: [getattr(net, "net", net).body.out.bias for net in nets]  # noqa: E731
        constant = eqx.tree_at(biases, constant, [jnp.array([says])] * 3)
        loss, _, _ = agent.selector.learn(constant, own, context, batch, jax.random.key(0))
        np.testing.assert_allclose(loss, np.square(says - np.array(columns)).mean(), rtol=1e-6)


def test_surrogates_on_a_table_see_vectors_that_are_no_rows():
    """Their own input and the list that conditions them; the critics see rows only."""
    agent = on_table()
    state, batch = state_of(agent), flat_batch(0, width=1)
    own, obs, proposals = state.part_states["savo"], batch.observation, batch.extra["proposals"]
    row = jnp.take(ROWS, jnp.arange(8) % 5, 0)
    batch = batch._replace(action=row)
    context = functions(agent, state)
    loss, _, _ = agent.selector.learn(own.params, own, context, batch, jax.random.key(0))
    listed = jnp.moveaxis(proposals, 1, 0)
    nearest = ROWS[np.abs(np.asarray(listed) - ROWS[:, 0]).argmin(-1)]
    t = lambda a: np.min(context.q_target(obs, a), 0)  # noqa: E731
    values, expected = [t(a) for a in nearest], []
    for i in range(3):
        floor = np.max(values[:i], 0) if i else -1e8
        net = own.params[i]
        given = (net.conditioning(obs, listed[:i], own.params[1].summary),) if i else ()
        psi = context.bind(getattr(net, "net", net))
        for at, value in ((listed[i], values[i]), (row, t(row))):
            expected.append(np.square(psi(obs, at, *given) - np.maximum(value, floor)).mean())
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


def test_actors_on_a_table_climb_surrogates_and_never_q():
    agent = on_table()
    state, batch = state_of(agent), flat_batch(0, width=1)
    own, obs = state.part_states["savo"], batch.observation

    def loss(actor, critics, i):
        context = functions(agent, state._replace(actor=actor, critics=critics))
        policy, climb = agent.selector.actor_objectives(actor, own, context, batch)[i]
        return -climb(obs, policy(obs).mode())[0].mean()

    context, listed = functions(agent, state), []
    for i in range(3):
        of_actor, of_critics = jax.grad(loss, argnums=(0, 1))(state.actor, state.critics, i)
        assert [grown(part) for part in of_actor] == [j == i for j in range(3)]
        assert not grown(of_critics)
        policy, climb = agent.selector.actor_objectives(state.actor, own, context, batch)[i]
        action = policy(obs).mode()
        assert not np.isin(np.asarray(action), ROWS).any(), "raw vectors"
        given = (own.params[i].conditioning(obs, jnp.stack(listed), own.params[1].summary),) if i else ()
        psi = context.bind(getattr(own.params[i], "net", own.params[i]))(obs, action, *given)
        np.testing.assert_allclose(climb(obs, action)[0], psi, rtol=1e-5)
        listed.append(action)
    np.testing.assert_allclose(
        agent.listed_proposals(agent.acting(state), obs), jnp.stack(listed, 1), rtol=1e-5, atol=1e-6
    )


def test_noise_on_a_table_is_inside_the_cascade():
    """Later actors see noisy vectors, these are stored, and Q_1 chooses among their rows."""
    agent, obs = on_table(), jax.random.normal(jax.random.key(0), (64, 5))
    state = state_of(agent)
    acting, key, first = agent.acting(state), jax.random.key(1), jnp.zeros(64, bool)
    before = 3 * agent.selector.init_noise(agent.task, 64, agent.base) + 0.4
    action, columns, noise = agent.act(acting, before, obs, first, 0, key, "explore")
    proposals, context = columns["proposals"], functions(agent, state)
    seen: list[Any] = []
    for i, module in enumerate(state.actor):
        given = (module.conditioning(obs, jnp.stack(seen), state.actor[1].summary),) if i else ()
        raw = context.bind(getattr(module, "net", module))(obs, *given).raw.mode()
        seen.append(jnp.clip(raw + noise[:, i], -1, 1))
        np.testing.assert_allclose(proposals[:, i], seen[i], atol=1e-5)
    rows = ROWS[np.abs(np.asarray(proposals) - ROWS[:, 0]).argmin(-1)]
    best = np.argmax([context.q(obs, rows[:, i])[0] for i in range(3)], 0)
    np.testing.assert_array_equal(action, rows[np.arange(64), best])


def test_the_target_on_a_table_is_the_best_row_of_the_target_actors():
    agent, obs = on_table(), jax.random.normal(jax.random.key(0), (64, 5))
    state = state_of(agent)
    state = state._replace(actor_target=jax.tree.map(lambda x: 0.7 * x, state.actor))
    context = functions(agent, state)
    own, key = state.part_states["savo"], jax.random.key(0)
    policy = agent.selector.target_policy(state.actor, state.actor_target, own, context, obs, key)
    listed = agent.listed_proposals(agent.acting(state._replace(actor=state.actor_target)), obs)
    rows = ROWS[np.abs(np.asarray(listed) - ROWS[:, 0]).argmin(-1)]
    best = np.argmax([context.q_target(obs, rows[:, i])[0] for i in range(3)], 0)
    np.testing.assert_array_equal(policy(obs).mode(), rows[np.arange(64), best])


def test_a_single_actor_on_a_table_has_a_surrogate():
    agent = on_table(list_length=1)
    assert len(state_of(agent).part_states["savo"].params) == 1


def test_raw_vectors_are_refused_where_they_mean_nothing():
    with pytest.raises(UsageError, match="actions are continuous"):
        released(raw_vectors=True)
    with pytest.raises(UsageError, match="learned surrogates") as refused:
        make(spec=ON_ROWS, raw_vectors=True, surrogate="exact")
    assert (refused.value.part, refused.value.field) == ("savo", "raw_vectors")


# --- presets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["td3+savo", "td3+ensemble", "td3+wolpertinger", "td3+ou"])
@pytest.mark.parametrize("name", ["released", "refined"])
def test_the_presets_are_those_of_the_release(recipe, name):
    for task in TASKS:
        for env in (f"restricted/{task}-v1", f"{task}-v5"):
            agent = prepare(Plan(recipe, env, 100_000, preset=name))[1]
            base, part = agent.base, agent.selector
            assert (base.target_actor, base.actor_norm, base.init) == (True, "last", "small")
            assert (base.gradient_clip, base.critic_clip, base.epsilon_mode) == (1.0, "each", "increment")
            assert (base.exploration, base.exploration_noise, base.epsilon_end) == ("ou", 0.2, 0.01)
            assert (base.warmup, base.replay_capacity, base.batch_size) == (10_000, 500_000, 256)
            reach = 3 if task == "InvertedPendulum" else 1
            assert base.target_noise == pytest.approx(0.2 / reach)
            assert base.target_noise_clip == pytest.approx(0.5 / reach)
            if recipe == "td3+wolpertinger":
                assert part.spread == pytest.approx(0.01 / reach)
            if recipe in ("td3+savo", "td3+ensemble"):
                assert part.next_q == ("online" if name == "refined" else "target")
                assert part.noise == "proposals"
            if recipe == "td3+savo":
                wide = task in ("Walker2d", "HalfCheetah", "Ant")
                assert part.summary_hidden == (256 if wide else 64)
                assert (part.film, part.summary_width) == ("released", 16)
    for env, begin, end, decay, width in (
        ("mineworld/MineWorld-v1", 1.0, 0.01, 50_000, 16),
        ("recsim/10k-v1", 0.5, 0.01, 100_000, 32),
        ("recsim/500-v1", 1.0, 0.0, 50_000, 32),
    ):
        agent = prepare(Plan(recipe, env, 100_000, preset=name))[1]
        base, part = agent.base, agent.selector
        assert (base.epsilon_start, base.epsilon_end, base.epsilon_decay) == (begin, end, decay)
        assert (base.target_noise, base.updates_per_step, base.target_actor) == (0.0, 0.02, True)
        if recipe == "td3+savo":
            assert (part.raw_vectors, part.summary_width, part.list_length) == (True, width, 3)
    quarter = prepare(Plan(recipe, "restricted/Hopper-v1", 100_000, preset=name))[1]
    assert quarter.base.epsilon_decay == 25_000


# Hidden widths of actors, those of critics and surrogates, transitions in replay.
MUJOCO = (256, 256), (256, 256), 500_000
ITEMS = (64, 32, 32, 16), (64, 32), 1_000_000
FAMILIES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    **dict.fromkeys(("restricted/InvertedPendulum-v1", "restricted/Hopper-v1", "Ant-v5"), MUJOCO),
    "mineworld/MineWorld-v1": ((128, 64, 64, 32), (128, 128), 500_000),
    **dict.fromkeys(("recsim/500-v1", "recsim/10k-v1"), ITEMS),
}


@pytest.mark.parametrize("env", FAMILIES)
def test_the_sizes_of_each_family(env):
    """They are the settings, and those of the networks of td3+savo; the rest is the same everywhere."""
    sizes = {"mineworld": (23, 4), "recsim": (30, 35)}.get(env.split("/")[0], (11, 3))
    rows = np.random.default_rng(0).uniform(-1, 1, (9, sizes[1])).astype(np.float32)
    on_table = env.startswith(("mineworld", "recsim"))
    actor, critic, replay = FAMILIES[env]
    for name in ("released", "refined"):
        for recipe in ("td3+savo", "td3+ensemble", "td3+joint", "td3+wolpertinger", "td3+ou"):
            agent = prepare(Plan(recipe, env, 100_000, preset=name))[1]
            base = agent.base
            assert (base.actor_hidden, base.critic_hidden, base.replay_capacity) == (actor, critic, replay)
            assert (base.actor_learning_rate, base.critic_learning_rate) == (3e-4, 3e-4)
            assert (base.discount, base.batch_size, base.policy_delay) == (0.99, 256, 2)
            assert (agent.target_update.rate, agent.target_update.when) == (0.005, "actor")
            assert (base.critics, base.critic_norm, base.ou_rate) == (2, "none", 0.15)
    agent = prepare(Plan("td3+savo", env, 100_000, preset="released"))[1]
    agent = agent.on(Spec(*sizes, rows if on_table else None))
    state = jax.eval_shape(agent.init, jax.random.key(0))

    def widths(net) -> tuple[int, ...]:
        return tuple(layer.weight.shape[0] for layer in net.torso.layers)

    actors = [getattr(net, "net", net) for net in state.actor]
    assert [widths(net) for net in actors] == [actor] * 3
    surrogates = [getattr(net, "net", net).body for net in state.part_states["savo"].params]
    assert [widths(body) for body in surrogates] == [critic] * (3 if on_table else 2)
    assert [widths(net.body) for net in state.critics] == [critic] * 2


OF_EVERY_TASK = {
    "warmup": 10_000,
    "actor_norm": "last",
    "init": "small",
    "gradient_clip": 1.0,
    "critic_clip": "each",
    "exploration": "ou",
    "exploration_noise": 0.2,
    "epsilon_mode": "increment",
    "target_actor": True,
}


@pytest.mark.parametrize("name", ["released", "refined"])
@pytest.mark.parametrize(
    ("env", "smoothing", "of_task"),
    [
        ("restricted/Hopper-v1", 0.2, {"epsilon_decay": 25_000, "epsilon_end": 0.01}),
        ("restricted/InvertedPendulum-v1", 0.2 / 3, {"epsilon_decay": 25_000, "epsilon_end": 0.01}),
        ("Ant-v5", 0.2, {"epsilon_decay": 16_667, "epsilon_end": 0.01}),
        ("mineworld/MineWorld-v1", 0.0, {"epsilon_decay": 50_000, "epsilon_end": 0.01}),
        ("recsim/10k-v1", 0.0, {"epsilon_start": 0.5, "epsilon_decay": 100_000, "epsilon_end": 0.01}),
        ("recsim/500-v1", 0.0, {"epsilon_decay": 50_000, "epsilon_end": 0.0}),
    ],
)
@pytest.mark.parametrize("recipe", ["td3+joint", "td3+ensemble"])
def test_the_whole_preset_of_joint_and_ensemble(recipe, env, smoothing, of_task, name):
    """Three proposals and one noise for both. A critic of lists climbs for one, and Q_1 for the other; only
    the ensemble smooths, after its choice. No other field is changed."""
    agent, plain = prepare(Plan(recipe, env, 100_000, preset=name))[1], agents.build(recipe)
    actor, critic, replay = FAMILIES[env]
    base = OF_EVERY_TASK | {"epsilon_start": 1.0} | of_task
    base |= {"actor_hidden": actor, "critic_hidden": critic, "replay_capacity": replay}
    base |= {"updates_per_step": 1.0 if FAMILIES[env] == MUJOCO else 0.02}
    base |= {"target_noise": smoothing, "target_noise_clip": 2.5 * smoothing if smoothing else 0.5}
    if recipe == "td3+joint":
        base |= {"target_noise": 0.0}
        part = {"list_length": 3, "climbs_by": "critic", "noise": "proposals"}
    else:
        part = {"members": 3, "noise": "proposals", "smoothing": "choice"}
        part |= {"next_q": "online" if name == "refined" else "target"}
    for mine, default, wanted in ((agent.base, plain.base, base), (agent.selector, plain.selector, part)):
        fields = {f.name: getattr(mine, f.name) for f in dataclasses.fields(mine)}
        for field, value in wanted.items():
            expected = pytest.approx(value) if isinstance(value, float) else value
            assert fields[field] == expected, field
        changed = {k for k, value in fields.items() if value != getattr(default, k)}
        assert changed <= wanted.keys()


@pytest.mark.parametrize(
    ("recipe", "env"),
    [
        ("td3+savo", "Pendulum-v1"),
        ("td7+savo", "Hopper-v5"),
        ("td3+greedy_ac", "Hopper-v5"),  # the settings of the base would undo what the part sets
        ("td3+greedy_td3", "Hopper-v5"),
        ("td3+cem", "Hopper-v5"),
        ("td3+control_points+best_point+separate", "Hopper-v4"),  # Q3C, whose own preset is that of q3c
    ],
)
def test_a_preset_is_refused_where_it_has_no_settings(recipe, env):
    with pytest.raises(UsageError, match="preset 'released' has no settings"):
        prepare(Plan(recipe, env, 100_000, preset="released"))
