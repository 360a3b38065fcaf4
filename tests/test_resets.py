"""Networks that begin anew: when, which of them, and what goes on as if nothing had happened."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import long
from small import fits, make_spec, same, start
from test_savo import NO, make, state_of
from tiny import assert_same_run, settings, stop_at

from qscape import agents
from qscape.errors import UsageError
from qscape.methods.resets import Resets
from qscape.offpolicy.base import Base
from qscape.run import Plan, resume, train
from qscape.types import Event, stream

MANY = ["sac", "td7", "bc", "iql", "td3+savo+pave", "sac+savgo", "td3+lap+normalise"]
MANY += [f"td3+{name}" for name in agents.PARTS if fits(f"td3+{name}+resets")]


def at(update: int) -> Event:
    return Event(jnp.asarray(update), jnp.asarray(0), NO, NO)


@pytest.mark.parametrize(
    ("every", "updates_per_step", "updates"),
    [(3, 1.0, [4, 7, 10]), (300, 0.01, [4, 7, 10]), (4, 0.5, [3, 5, 7, 9]), (1, 0.01, [*range(2, 11)])],
)
def test_resets_come_every_so_many_environment_steps(every, updates_per_step, updates):
    part, base = Resets(every=every), Base(updates_per_step=updates_per_step)
    old, new = jnp.array(0), jnp.array(1)
    found = [number for number in range(1, 11) if part.reset(old, lambda: new, at(number), base)]
    assert found == updates


def test_resets_at_given_environment_steps():
    """BRO makes ten updates a step after 2,500, and resets before those of step 15,001 and so on."""
    agent = agents.build("bro")
    old, new = jnp.array(0), jnp.array(1)
    updates = [10 * (step - 2_500) for step in (15_000, 50_000, 250_000, 500_000, 750_000, 1_000_000)]
    near = [number + k for number in updates for k in (-1, 0, 1, 2)]
    due = [number for number in near if agent.reset.reset(old, lambda: new, at(number), agent.base)]
    assert due == [number + 1 for number in updates]
    assert due[-1] == 9_975_001, "a run of a million steps ends one update before"


def test_nothing_is_reset_that_has_not_learned():
    """A time within the random phase would be that of the first update."""
    part, base = Resets(at=(15_000, 50_000)), Base(warmup=20_000)
    due = [k for k in (1, 2, 30_001) if part.reset(jnp.array(0), lambda: jnp.array(1), at(k), base)]
    assert due == [30_001]


def test_seeds_side_by_side_are_reset_together():
    """The number of the update is no array of seeds, so that nothing is made anew where nothing is reset."""
    part, seeds = Resets(every=3), jnp.arange(2)
    one = lambda old, event: part.reset(old, lambda: -old, event, Base())  # noqa: E731
    assert " cond[" in str(jax.make_jaxpr(jax.vmap(one, (0, None)))(seeds, at(4)))


@pytest.mark.slow
def test_an_update_begins_with_the_reset():
    """Up to it nothing differs; then it is the update of fresh networks on the same replay."""
    base = {"replay_capacity": 1024, "actor_hidden": (8, 8), "critic_hidden": (8, 8)}
    run, twin = start(make("td3+lap+resets", base=base, every=3)), start(make("td3+lap", base=base))
    for _ in range(3):
        run, twin = run.step(), twin.step()
        assert same(run.state, twin.state)
        assert same(run.replay_state, twin.replay_state)
    key = stream(jax.random.fold_in(run.key, 4), "resets.restart")
    fresh = jax.jit(run.agent.reinitialise)(run.state, key)
    run, twin = run.step(), twin._replace(state=fresh).step()
    for mine, expected in zip(jax.tree.leaves(run.state), jax.tree.leaves(twin.state), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-7)
    assert run.state.updates == 4


def test_all_that_is_learned_begins_anew_and_the_rest_goes_on():
    agent = make("td3+normalise")
    state = state_of(agent)._replace(updates=jnp.array(7), env_steps=jnp.array(70))
    anew = jax.jit(agent.reinitialise)
    fresh, other = anew(state, jax.random.key(1)), anew(state, jax.random.key(2))
    new = Resets(every=1).reset(state, lambda: fresh, at(5), agent.base)
    assert same(new, fresh)
    assert same((new.updates, new.env_steps, new.part_states), (7, 70, state.part_states))
    assert same((new.actor_target, new.critics_target), (new.actor, new.critics))
    assert not any(leaf.any() for leaf in jax.tree.leaves(new.optimisers))
    networks = [jax.tree.leaves((each.actor, each.critics)) for each in (state, new, other)]
    for leaves in zip(*networks, strict=True):
        assert len({np.asarray(leaf).tobytes() for leaf in leaves}) == 3, "other draws each time"


@pytest.mark.parametrize("recipe", ["td3+ensemble", "td3+savo", "sac+savo"])
def test_only_the_last_layers_begin_anew(recipe):
    agent = make(recipe)
    state, fresh = state_of(agent), state_of(agent, 1)
    new = Resets(every=1, what="last").reset(state, lambda: fresh, at(5), agent.base)
    assert same((new.critics_target, new.optimisers), (new.critics, fresh.optimisers))
    assert (new.actor_target is None) == (state.actor_target is None)
    assert new.actor_target is None or same(new.actor_target, new.actor)
    trees = [
        jax.tree_util.tree_leaves_with_path((x.actor, x.critics, x.part_states)) for x in (state, fresh, new)
    ]
    taken = {}
    for (path, old), (_, anew), (_, now) in zip(*trees, strict=True):
        name = jax.tree_util.keystr(path)
        taken[name] = np.array_equal(now, anew)
        assert taken[name] or np.array_equal(now, old)
    assert {name for name in taken if taken[name]} == {
        name for name in taken if ".head." in name or ".body.out." in name
    }
    assert sum(taken[name] for name in taken if ".params" in name) == (4 if "savo" in recipe else 0)


@pytest.mark.parametrize("what", ["all", "last"])
@pytest.mark.parametrize("recipe", MANY)
def test_every_agent_keeps_its_shape(recipe, what):
    agent = agents.build(f"{recipe}+resets", {"resets": {"what": what}})
    images = {"observation_size": 1600, "frame": (40, 40)} if "conv" in agent.parts else {}
    agent = agent.on(dataclasses.replace(make_spec(agent), **images))
    state = jax.eval_shape(agent.init, jax.random.key(0))

    def reset(state):
        return agent.reset.reset(
            state, lambda: agent.reinitialise(state, jax.random.key(1)), at(1), agent.base
        )

    assert jax.eval_shape(reset, state) == state


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "what"), [("sac+resets", "all"), long("td3+savo+resets", "last")])
def test_a_resumed_run_equals_an_uninterrupted_one(recipe, what, tmp_path):
    """Resets after 40 and 80 steps of learning; the run stops before, between and after them."""
    few = {"savo": {"list_length": 2}} if "savo" in recipe else {}
    plan = Plan(
        recipe,
        "tiny:Clock-v0",
        160,
        settings=settings(recipe, warmup=50) | few | {"resets": {"every": 40, "what": what}},
        eval_every=100,
        eval_episodes=2,
        log_every=50,
        save_every=60,
    )
    one, other = tmp_path / "whole", tmp_path / "resumed"
    list(train(plan, one))
    list(train(plan, other, on_trainer=stop_at(80)))
    for steps in (100, 140):
        list(resume(other, on_trainer=stop_at(steps)))
    list(resume(other))
    assert_same_run(one, other)


@pytest.mark.parametrize(
    ("recipe", "settings", "why"),
    [
        ("td3+resets", {"resets": {"every": 0}}, "resets.every is 0; it must be at least 1"),
        ("td3+resets", {"resets": {"what": "first"}}, "must be one of 'all', 'last'"),
        ("td3+resets+resets", {}, "there twice"),
        ("ppo+resets", {}, "does not fit 'ppo'"),
    ],
)
def test_what_cannot_be_is_refused(recipe, settings, why):
    with pytest.raises(UsageError, match=why):
        agents.build(recipe, settings)
