"""The assembled agents equal the straight-line files in `reference/` to the bit; rules of the update."""

import dataclasses
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow
from small import AS_USERS, CAPACITY, TRANSITIONS, A, S, build, same, start

import reference.crossq
import reference.dqn
import reference.flash_sac
import reference.pave
import reference.q3c
import reference.sac
import reference.savgo
import reference.simbav2
import reference.td3
import reference.td7
from qscape.agents import EXPANSIONS
from qscape.methods.checkpoints import Checkpoints
from qscape.nets.batch_norm import is_statistics, split_statistics
from qscape.offpolicy.sockets import Regulariser
from qscape.offpolicy.state import SEED_AXES

TD7_UPDATE = "td3+sale+lap+periodic+value_clip"
ORACLES = {
    "td3": reference.td3,
    "td3+pave": reference.pave,
    "sac": reference.sac,
    "td7": reference.td7,
    "dqn": reference.dqn,
    "q3c": reference.q3c,
    "sac+crossq": reference.crossq,
    "sac+simbav2+c51": reference.simbav2,
    "sac+flashsac+c51": reference.flash_sac,
    TD7_UPDATE: reference.td7,
}
ORACLES |= {"sac+savgo": reference.savgo}
SIMBAV2 = EXPANSIONS["simbav2"].settings["soft"]
FLASH_SAC = {part: EXPANSIONS["flash_sac"].settings[part] for part in ("soft", "polyak")}
FALLING = {"schedule": "linear", "rate_end": 0.5, "schedule_updates": reference.simbav2.UPDATES}
DELAYED = {"schedule_updates": round(reference.q3c.STEPS * reference.q3c.UPDATES_PER_STEP)}
PARTS = {
    "sac+crossq": EXPANSIONS["crossq"].settings,
    "sac+simbav2+c51": {"soft": SIMBAV2},
    "sac+flashsac+c51": FLASH_SAC,
}
# Fields of the base that an oracle has as constants.
BASE = {
    "dqn": {"n_step": 1},
    "q3c": DELAYED,
    "sac+simbav2+c51": FALLING,
    "sac+flashsac+c51": FALLING | {"schedule": "cosine", "actor_horizon": "updates", "noise_repeat": 16},
}


def by_name(run):
    """What an agent carries, under the names that the oracles give it."""
    state, priorities = run.state, run.replay_state.priorities
    carried = jax.tree.leaves((state, priorities))
    known = {
        "actor": split_statistics(state.actor)[0],
        "actor_seen": split_statistics(state.actor)[1],
        "actor_target": state.actor_target,
        "critics": split_statistics(state.critics)[0],
        "critics_seen": split_statistics(state.critics)[1],
        "critics_target": split_statistics(state.critics_target)[0],
        "critics_target_seen": split_statistics(state.critics_target)[1],
        "actor_adam": state.optimisers.get("actor"),
        "critics_adam": state.optimisers["critics"],
        "updates": state.updates,
    }
    if "soft" in state.part_states:
        known |= {
            "log_alpha": state.part_states["soft"].actor_params,
            "alpha_adam": state.optimisers["soft.actor_params"],
        }
    if "sale" in state.part_states:
        fixed, fixed_target, _ = state.part_states["sale"].extra
        known |= {
            "encoder": state.part_states["sale"].params,
            "encoder_adam": state.optimisers["sale.params"],
        }
        known |= {"encoder_fixed": fixed, "encoder_fixed_target": fixed_target}
    if "savgo" in state.part_states:
        mine = state.part_states["savgo"]
        known |= {"log_alpha": mine.actor_params, "alpha_adam": state.optimisers["savgo.actor_params"]}
        known |= {"encoder": mine.params, "encoder_adam": state.optimisers["savgo.params"]}
        known |= {"encoder_target": mine.extra.encoder, "gap_scale": mine.extra.scale}
    if "control_points" in state.part_states:
        smoothing = state.part_states["control_points"].extra
        assert smoothing.steps == reference.q3c.STEPS
        known |= {"smoothing": smoothing.now}
        carried = carried[1:]  # the steps, which stay
    if "value_clip" in state.part_states:
        names = ("target_min", "target_max", "clip_low", "clip_high")
        known |= dict(zip(names, state.part_states["value_clip"].extra, strict=True))
    if priorities is not None:
        known["priorities"] = priorities.tree[priorities.tree.size // 2 :]
        known["max_priority"] = priorities.max_priority
    named = jax.tree.leaves(known)
    assert len(named) == len(carried) - 1, "all but env_steps is compared"
    # SAC has no target actor, DQN no actor, and only CrossQ and FlashSAC have running statistics.
    return {name: part for name, part in known.items() if jax.tree.leaves(part)}


def with_batches(networks, batches):
    """Networks whose running statistics took in so many batches."""

    def seen(node):
        return node._replace(batches=jnp.array(batches)) if is_statistics(node) else node

    return jax.tree.map(seen, networks, is_leaf=is_statistics)


def oracle(run):
    """The straight-line twin of a run: its update, and its state with the agent's numbers."""
    flat_file, base = ORACLES[run.agent.recipe], run.agent.base
    more = {}
    if flat_file is reference.td7:
        filled = jnp.where(jnp.arange(CAPACITY) < TRANSITIONS, 1.0, 0.0)
        more = {"priorities": filled, "embedding": base.actor_hidden[0]}
    if flat_file is reference.savgo:
        part = run.agent.policy_loss
        more = {"encoder_hidden": part.hidden, "embedding": part.embedding}
    if hasattr(flat_file, "Network"):  # its critics have a size of their own
        more = {"critic_hidden": base.critic_hidden}
    own = flat_file.init(jax.random.key(9), S, A, hidden=base.actor_hidden, **more)

    def graft(mine, theirs):
        theirs = jax.tree.leaves(theirs)
        assert [x.shape for x in jax.tree.leaves(mine)] == [x.shape for x in theirs]
        return jax.tree.unflatten(jax.tree.structure(mine), theirs)

    state = own._replace(**{name: graft(getattr(own, name), part) for name, part in by_name(run).items()})
    sizes = {"batch_size": base.batch_size}
    if flat_file in (reference.savgo, reference.q3c):
        state = state._replace(env_steps=run.state.env_steps)
    if flat_file is reference.savgo:
        sizes["candidates"] = run.agent.policy_loss.candidates
    return jax.jit(partial(flat_file.update, **sizes), compiler_options=AS_USERS), state


# 520 updates of TD7 cross two hard synchronisations, so that every copy has moved.
@pytest.mark.parametrize(
    ("recipe", "size", "updates"),
    [
        ("td3", 32, 300),
        ("td3+pave", 32, 300),
        ("sac", 32, 300),
        ("dqn", 32, 300),
        ("sac+savgo", 32, 300),
        ("q3c", 32, 60),
        ("td7", 32, 520),
        slow("sac+crossq", 32, 100),
        slow("sac+simbav2+c51", 32, 100),
        slow("sac+flashsac+c51", 32, 100),
        (TD7_UPDATE, 32, 20),
        slow("td3", 256, 20),
        slow("td3+pave", 256, 6),
        slow("sac", 256, 20),
        slow("dqn", 256, 20),
        slow("q3c", 256, 20),
        slow("sac+savgo", 256, 6),
        slow("td7", 256, 20),
    ],
)
def test_agent_equals_its_oracle_to_the_bit(recipe, size, updates):
    run = start(build(recipe, size, PARTS.get(recipe), **BASE.get(recipe, {})), options=AS_USERS)
    # In the middle of schedules; CrossQ's statistics are corrected after 20 more steps of a network.
    actor, critics = with_batches((run.state.actor, run.state.critics), 99_980)
    run = run._replace(state=run.state._replace(actor=actor, critics=critics, env_steps=jnp.array(60_000)))
    flat_update, flat_state = oracle(run)
    for number in range(1, updates + 1):
        run = run.step()
        flat_state = flat_update(flat_state, run.memory, run.key)
        differs = [name for name, part in by_name(run).items() if not same(part, getattr(flat_state, name))]
        assert not differs, f"at update {number}"
    assert int(flat_state.updates) == updates


NETWORKS = slow("sac+crossq"), slow("sac+simbav2+c51"), slow("sac+flashsac+c51")


@pytest.mark.parametrize(
    "recipe", ["td3", slow("sac"), slow("sac+savgo"), slow("td7"), "dqn", "q3c", *NETWORKS]
)
def test_acting_equals_its_oracle(recipe):
    more = {"epsilon_decay": float(reference.dqn.EPSILON_STEPS)} if recipe == "dqn" else {}
    more |= BASE.get(recipe, {})
    sync = {"dqn": 128, "td7": 1}.get(recipe, 250)
    run = start(build(recipe, sync_every=sync, **more))
    for _ in range(2):
        run = run.step()
    _, flat_state = oracle(run)
    obs, key, step = run.memory.obs[:4], jax.random.key(3), 6_000 if recipe == "dqn" else 17
    acting = run.agent.acting(run.state)
    for mode, expected in (
        ("evaluate", jax.jit(ORACLES[recipe].act)(flat_state, obs)),
        ("explore", jax.jit(ORACLES[recipe].explore)(flat_state, obs, step, key)),
    ):
        act = jax.jit(partial(run.agent.act, mode=mode))
        action, columns, _ = act(acting, None, obs, jnp.zeros(4, bool), step, key)
        assert columns == {}
        # Far from the edge of tanh nothing but rounding may differ.
        np.testing.assert_allclose(action, expected, rtol=0, atol=1e-6)


# --- rules of the trunk -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Nothing(Regulariser):
    """Every default of a part, and nothing else."""

    name = "nothing"


@pytest.mark.parametrize("change", [{"regularisers": (Nothing(),)}, {"schedule": Checkpoints()}])
def test_a_part_with_only_defaults_costs_nothing(change):
    plain = build("td3")
    runs = [start(agent) for agent in (plain, dataclasses.replace(plain, **change))]
    programs = [
        run.program.lower(run.state, run.storage, run.replay_state, run.key).compile() for run in runs
    ]
    costs = [program.cost_analysis() for program in programs]
    assert costs[0]["flops"] == costs[1]["flops"]
    for _ in range(4):
        runs = [run.step() for run in runs]
    assert same(*((run.state, run.replay_state) for run in runs))


def test_networks_start_the_same_whatever_parts_are_added():
    plain, more = (build(recipe).init(jax.random.key(0)) for recipe in ("td3", "td3+lap+periodic+value_clip"))
    assert same((plain.actor, plain.critics), (more.actor, more.critics))


@pytest.mark.parametrize(
    ("recipe", "draws"), [slow("td3", 2), ("sac", 3), slow("sac+savgo", 10), slow("td7", 2)]
)
def test_no_random_key_is_used_twice(recipe, draws, monkeypatch):
    """Over two updates: each key is drawn from once, and no key that is drawn from makes further keys."""
    run, drawn, folded = start(build(recipe, 4)), Counter(), Counter()

    def watch(name, seen):
        original = getattr(jax.random, name)

        def watched(key, *args, **kwargs):
            jax.debug.callback(lambda data: seen.update([tuple(data.tolist())]), jax.random.key_data(key))
            return original(key, *args, **kwargs)

        monkeypatch.setattr(jax.random, name, watched)

    for name in ("normal", "uniform", "randint", "split", "bernoulli", "permutation", "choice"):
        watch(name, drawn)
    watch("fold_in", folded)
    for _ in range(2):
        run = run.step()
    jax.effects_barrier()
    assert len(drawn) == 2 * draws, "fewer or more draws than the method has"
    assert max(drawn.values()) == 1
    assert not drawn.keys() & folded.keys()


@pytest.mark.parametrize("recipe", ["td3", slow("sac"), slow("td7")])
def test_two_seeds_in_one_program_equal_two_runs(recipe):
    """Batched matrix products may round differently, so to 1e-4, and 1e-5: 3% of one Adam step."""
    agent = build(recipe, sync_every=4)
    runs = [start(agent, seed) for seed in (0, 1)]
    stack = partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    counters = {"updates": runs[0].state.updates, "env_steps": runs[0].state.env_steps}
    state = stack(*(run.state for run in runs))._replace(**counters)
    rows, index, key = (
        stack(*(getattr(run, name) for run in runs)) for name in ("storage", "replay_state", "key")
    )
    axes = {"in_axes": (SEED_AXES, 0, 0, 0), "out_axes": (SEED_AXES, 0)}
    both = jax.jit(jax.vmap(lambda *args: agent.update(agent.layout(1), *args)[:2], **axes))
    for _ in range(6):
        state, index = both(state, rows, index, key)
        runs = [run.step() for run in runs]
    assert state.updates.shape == ()  # unbatched, so that `cond` stays `cond`
    alone = stack(*((run.state._replace(updates=0, env_steps=0), run.replay_state) for run in runs))
    together = (state._replace(updates=jnp.zeros(2), env_steps=jnp.zeros(2)), index)
    for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
