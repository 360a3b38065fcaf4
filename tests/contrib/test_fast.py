"""FastTD3 and FastSAC: the numbers of their papers' code, and noise of its own for each environment."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import fill, same, transitions

from qscape import agents
from qscape.agents import EXPANSIONS
from qscape.errors import UsageError
from qscape.methods.normalise import Normalise
from qscape.offpolicy.base import Base
from qscape.offpolicy.exploration import init_noise, sample_noise
from qscape.offpolicy.sockets import PartState
from qscape.onpolicy.base import Base as OnPolicyBase
from qscape.ops.running import Moments
from qscape.replay.storage import Rows, rows_at
from qscape.run import scan
from qscape.run.plan import Plan, prepare
from qscape.types import Spec

TINY = {"actor_hidden": (8, 8), "critic_hidden": (8, 8), "batch_size": 8, "replay_capacity": 1024}
QUICK = {"xla_backend_optimization_level": 0}


def count(net) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(net))


@pytest.mark.parametrize(
    ("recipe", "sizes", "critic", "actor"),
    [
        ("fast_td3", (17, 6), 706_661, 174_214),
        ("fast_td3", (151, 61), 900_197, 249_917),
        ("fast_sac", (17, 6), 409_829, None),
    ],
)
def test_the_number_of_parameters(recipe, sizes, critic, actor):
    state = jax.eval_shape(agents.build(recipe).on(Spec(*sizes)).init, jax.random.key(0))
    assert [count(net) for net in state.critics] == [critic, critic]
    assert actor in (count(state.actor), None)
    assert (state.actor_target is None, len(state.critics_target)) == (True, 2)


@pytest.mark.parametrize(
    ("envs", "rows", "per_step", "trained"),
    [(128, 256, 0.015625, 512), (1024, 32, 0.001953, 64), (4096, 8, None, 16)],
)
def test_updates_follow_the_number_of_environments(envs, rows, per_step, trained):
    _, agent, notes = prepare(Plan("fast_td3", "Any-v0", 100 * envs, envs=envs))
    base = agent.base
    assert base.batch_size / envs == rows
    assert per_step is None or base.updates_per_step == pytest.approx(per_step, abs=1e-6)
    assert base.batch_size * base.updates_per_step == trained
    assert (base.warmup, base.counts) == (10 * envs, "steps")
    assert any(f"base.warmup = {10 * envs}" in note for note in notes)
    np.testing.assert_array_equal(scan.update_counts(agent, envs=envs, steps=12 * envs), [0] * 10 + [2, 2])
    again = Plan("fast_td3", "Any-v0", 100 * envs, envs=envs, settings=agents.settings_of(agent))
    assert prepare(again)[1].base == base  # as when the run is resumed


def test_what_counts_steps_of_all_environments_is_converted_wherever_they_are_known():
    agent = agents.build("fast_td3", {"base": {"warmup": 2, "updates_per_step": 3.0}})
    assert scan.update_counts(agent, envs=4, steps=16).tolist() == [0, 0, 3, 3]
    plan, agent, _ = prepare(
        Plan("fast_sac", "Any-v0", 1000, envs=4, settings={"base": {"updates_per_step": 1.0}})
    )
    assert agent.base.updates_per_step == 0.25
    assert plan.label == "fast_sac[base.updates_per_step=1.0]"
    assert OnPolicyBase().scale_to_envs(8) == Base().scale_to_envs(8) == {}
    with pytest.raises(UsageError, match="leaves no update in 16 steps"):
        prepare(Plan("fast_td3", "Any-v0", 16, envs=8, settings={"base": {"warmup": 2}}))


@pytest.mark.parametrize("recipe", ["fast_td3+crossq", "fast_td3+xqc", "fast_td3+redq", "xqc+fast"])
def test_what_other_parts_count_in_environment_steps_gives_way(recipe):
    base = agents.build(recipe).base
    papers = agents.build("xqc+fast" if recipe == "xqc+fast" else "fast_td3").base
    assert (base.counts, base.warmup, base.updates_per_step) == ("vector_steps", 10, papers.updates_per_step)
    assert base.updates_per_step == (8.0 if recipe == "xqc+fast" else 2.0)


def test_fast_td3_with_networks_on_the_unit_sphere():
    agent = agents.build("fast_td3+simbav2").on(Spec(17, 6))
    assert (agent.base.critic_weight_decay, agent.base.actor_weight_decay) == (0.0, 0.0)


def test_the_memory_of_a_replay():
    """HumanoidBench: 51,200 rows for each of 128 environments, 151 observations, 61 actions."""
    capacity, sizes = 51_200 * 128, []
    for kept in ("stored", "derived"):
        base = {"replay_capacity": capacity, "next_observation": kept}
        agent = agents.build("fast_td3", {"base": base}).on(Spec(151, 61))
        storage, _ = jax.eval_shape(partial(agent.init_replay, agent.layout(128)))
        sizes.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(storage)) / 1e9)
    assert sizes == pytest.approx([9.59, 5.66], abs=0.01)


def test_decay_alone_shrinks_all_weights():
    agent = agents.build("fast_td3").on(Spec(3, 1))
    optimiser = agent.optimiser("actor")
    params = {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    no = jax.tree.map(jnp.zeros_like, params)

    def step(carry, _):
        params, moments = carry
        change, moments = optimiser.update(no, moments, params)
        return (jax.tree.map(jnp.add, params, change), moments), params

    (after, _), path = jax.lax.scan(step, (params, optimiser.init(params)), length=1000)
    for leaf, way in zip(jax.tree.leaves(after), jax.tree.leaves(path), strict=True):
        np.testing.assert_allclose(way[1], 0.99997, rtol=1e-7)
        np.testing.assert_allclose(leaf, 0.970445, rtol=3e-5)


def test_how_actors_start():
    agent = agents.build("fast_sac", {"base": TINY}).on(Spec(4, 3))
    state = agent.init(jax.random.key(0))
    dist = state.actor(jnp.ones((2, 4)), [])
    np.testing.assert_array_equal(dist.mode(), np.zeros((2, 3)))
    np.testing.assert_allclose(jnp.exp(dist.log_std), 0.082085, rtol=1e-5)
    assert state.part_states["soft"].actor_params == pytest.approx(-6.907755)
    assert agent.policy_loss.target_entropy is None
    assert agent.policy_loss.entropy_per_action == 0.0
    wide = TINY | {"actor_hidden": (512,)}
    out = agents.build("fast_td3", {"base": wide}).on(Spec(4, 40)).init(jax.random.key(0)).actor.head.out
    assert float(out.weight.std()) == pytest.approx(0.01, rel=0.05)
    assert not out.bias.any()


def test_the_reward_of_three_steps_ends_with_the_episode():
    agent = agents.build("fast_td3", {"base": {"discount": 0.97, "n_step": 3, "replay_capacity": 8}})
    agent = agent.on(Spec(1, 1))
    layout = agent.layout(1)
    one = jnp.ones((1, 1))
    for truncated, mask in ((False, 0.0), (True, 1.0)):
        storage, replay_state = agent.init_replay(layout)
        for t in range(3):
            ends = jnp.array([t == 1 and not truncated]), jnp.array([t == 1 and truncated])
            row = Rows(one * t, one, jnp.ones(1), *ends, one * (t + 1), {})
            storage, replay_state = agent.insert(layout, storage, replay_state, row, jnp.array([True]))
        batch = rows_at(layout, storage, replay_state, jnp.zeros(1, jnp.int32), *agent.sampling_options)
        assert batch.reward.item() == pytest.approx(1.97)
        assert 1.0 - batch.terminated.item() == mask
        assert batch.next_observation.item() == 2.0
        if truncated:
            assert batch.discount.item() == pytest.approx(0.9409)


def test_the_actor_moves_at_the_second_and_the_sixth_of_eight_updates():
    agent = agents.build("fast_sac", {"base": TINY, "c51": {"atoms": 5}}).on(Spec(5, 3))
    state = agent.init(jax.random.key(0))
    memory = fill(agent, *transitions(0))
    update = jax.jit(
        lambda state: agent.update(agent.layout(1), state, *memory, jax.random.key(1))[::2],
        compiler_options=QUICK,
    )
    moved = []
    for number in range(8):
        before, (state, metrics) = state, update(state)
        moved += [] if same(before.actor, state.actor) else [number]
        assert not same(before.critics, state.critics)
        assert number not in moved or all(np.isfinite(value) for value in metrics.values())
    assert moved == [1, 5]


def noise_of(base: Base, envs: int, steps: int, firsts=(), shape=()):
    """The noise and its state at each step; `firsts` are (step, environment) of later beginnings."""
    context = SimpleNamespace(base=base)
    state, found = init_noise(base, envs, *shape, 2), []
    for t in range(steps):
        first = jnp.array([t == 0 or (t, e) in firsts for e in range(envs)])
        noise, state = sample_noise(context, state, first, (envs, *shape, 2), jax.random.key(t))
        found.append((noise, state))
    return [np.stack(x) for x in zip(*found, strict=True)]


def test_every_environment_draws_its_noise_when_an_episode_begins():
    base = Base(exploration="per_environment", noise_min=0.1, noise_max=0.5)
    noise, sizes = noise_of(base, 3, 4, {(2, 1)})
    sizes = sizes[..., 0]
    assert len(np.unique(sizes[0])) == 3
    np.testing.assert_array_equal(sizes[:, [0, 2]], sizes[[0] * 4][:, [0, 2]])
    assert sizes[1, 1] == sizes[0, 1] != sizes[2, 1] == sizes[3, 1]
    assert noise.shape == (4, 3, 2)
    _, drawn = noise_of(base, 4000, 1)
    assert 0.1 <= drawn.min() < 0.101
    assert 0.499 < drawn.max() <= 0.5
    assert drawn.mean() == pytest.approx(0.3, abs=0.01)
    noise, sizes = noise_of(base, 4000, 1, shape=(3,))
    np.testing.assert_allclose((noise / sizes).std(), 1.0, rtol=0.02)
    assert sizes.shape == (1, 4000, 1, 1)


def test_noise_that_was_not_drawn_in_the_random_phase_is_drawn_after_it():
    base = Base(exploration="per_environment", noise_min=0.1)
    no = jnp.zeros(2, bool)
    context = SimpleNamespace(base=base)
    for before in (init_noise(base, 2, 1), None):
        noise, state = sample_noise(context, before, no, (2, 1), jax.random.key(0))
        assert (state > 0.1).all()
        assert noise.all()
    assert init_noise(None, 2, 1) is None
    with pytest.raises(UsageError, match=r"base\.noise_min is 0\.5; it must be at most noise_max = 0\.4"):
        Base(noise_min=0.5)


def test_epsilon_is_added_to_the_standard_deviation():
    state = PartState(extra=Moments(jnp.zeros(2), jnp.array([0.0, 4.0]), jnp.array(10.0)))
    obs = jnp.array([0.001, 2.01])
    np.testing.assert_allclose(Normalise(epsilon=0.01).apply(state, obs), [0.1, 1.0], rtol=1e-5)
    assert Normalise().epsilon == 1e-8


@pytest.mark.parametrize("recipe", ["fast_td3", "fast_sac"])
def test_the_settings_of_the_papers(recipe):
    agent = agents.build(recipe)
    base, target = agent.base, agent.target_update
    assert (base.decay, base.decay_what, base.exploration_noise > 0) == (
        "decoupled",
        "all",
        recipe == "fast_td3",
    )
    if recipe == "fast_td3":
        assert (base.batch_size, base.updates_per_step, base.policy_delay) == (32_768, 2.0, 2)
        assert (base.target_noise, base.noise_min, base.noise_max) == (0.001, 0.001, 0.4)
        assert (base.critic_weight_decay, base.actor_weight_decay, base.discount) == (0.1, 0.1, 0.99)
        assert (target.rate, target.when, base.actor_objective) == (0.1, "always", "min")
        assert (agent.value.low, agent.value.high, agent.value.atoms) == (-250.0, 250.0, 101)
    else:
        assert (base.batch_size, base.updates_per_step, base.policy_delay) == (8192, 8.0, 4)
        assert (base.critic_weight_decay, base.actor_weight_decay, base.discount) == (0.001, 0.001, 0.97)
        assert (target.rate, target.when, base.actor_objective) == (0.125, "always", "mean")
        assert (agent.value.low, agent.value.high, base.adam_b2) == (-20.0, 20.0, 0.95)
    assert "fast" in EXPANSIONS[recipe].recipe
