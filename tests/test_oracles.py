"""The assembled agents equal the straight-line files in `flat/` to the bit, and keep the house's rules."""

import dataclasses
from functools import partial
from typing import NamedTuple

import flat.sac
import flat.td3
import flat.td7
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qscape import agents
from qscape.offpolicy.sockets import Regulariser
from qscape.offpolicy.state import SEED_AXES
from qscape.replay.memory import Rows
from qscape.types import Spec

S, A, TRANSITIONS, CAPACITY = 5, 3, 700, 1024
TD7_UPDATE = "td3+sale+lap+periodic+value_clip"
ORACLES = {"td3": flat.td3, "sac": flat.sac, "td7": flat.td7, TD7_UPDATE: flat.td7}
SMALL, PAPER = 32, 256


class Run(NamedTuple):
    """One agent and all its update needs."""

    agent: agents.recipes.Agent
    update: object  # jitted: (state, rows, index, key) -> (state, index)
    state: object
    rows: jax.Array
    index: object
    memory: flat.td3.Transitions  # the same transitions as inserted


def build(recipe, size):
    """An agent whose widths and batch all have one size."""
    widths = {"actor_hidden": (size, size), "critic_hidden": (size, size)}
    settings = {"base": {"batch_size": size, "replay_capacity": CAPACITY, **widths}}
    if "td7" in recipe or "sale" in recipe:
        settings["sale"] = {"width": size, "hidden": (size, size)}
    return agents.build(recipe, settings).on(Spec(S, A))


def transitions(seed):
    """Random transitions whose TD errors lie on both sides of 1."""
    rng = np.random.default_rng(seed)
    obs, next_obs = rng.normal(size=(2, TRANSITIONS, S))
    action = rng.uniform(-1.0, 1.0, (TRANSITIONS, A))
    reward, ends = rng.normal(0.5, 1.5, TRANSITIONS), rng.random(TRANSITIONS)
    columns = (obs, action, reward, ends < 0.1, next_obs)
    memory = flat.td3.Transitions(*(jnp.asarray(x, jnp.float32) for x in columns))
    return memory, jnp.asarray((ends > 0.1) & (ends < 0.2))  # truncated: the bootstrap goes on


def fill(agent, seed):
    """The agent's replay, filled row by row."""
    memory, truncated = transitions(seed)
    layout = agent.layout(1)
    obs, action, reward, terminated, next_obs = (x[:, None] for x in memory)
    steps = Rows(obs, action, reward, terminated > 0, truncated[:, None], next_obs, {})

    def insert(carry, step):
        return agent.replay.insert(layout, *carry, step, jnp.array([True])), None

    rows, index = jax.jit(lambda: jax.lax.scan(insert, agent.replay.init(layout), steps)[0])()
    return rows, index, memory


def start(recipe, size=SMALL, seed=0):
    agent = build(recipe, size)

    # Without the metrics, which the oracles do not make: XLA would fuse them with what they are made of,
    # and so round SAC's log-probabilities in another way.
    def update(*args):
        return agent.update(agent.layout(1), *args)[:2]

    return Run(agent, jax.jit(update), agent.init(jax.random.key(seed)), *fill(agent, seed))


def by_name(state, index):
    """What the agent carries, under the names that the oracles give it."""
    known = {
        "actor": state.actor,
        "actor_target": state.actor_target,
        "critics": state.critics,
        "critics_target": state.critics_target,
        "actor_adam": state.optimisers["actor"],
        "critics_adam": state.optimisers["critics"],
        "updates": state.updates,
    }
    if "soft" in state.own:
        known |= {"log_alpha": state.own["soft"].tuned, "alpha_adam": state.optimisers["soft.tuned"]}
    if "sale" in state.own:
        fixed, fixed_target = state.own["sale"].rest
        known |= {"encoder": state.own["sale"].learned, "encoder_adam": state.optimisers["sale.learned"]}
        known |= {"encoder_fixed": fixed, "encoder_fixed_target": fixed_target}
    if "value_clip" in state.own:
        names = ("target_min", "target_max", "clip_low", "clip_high")
        known |= dict(zip(names, state.own["value_clip"].rest, strict=True))
    if index.priorities is not None:
        tree = index.priorities.tree
        known |= {"priorities": tree[tree.size // 2 :], "max_priority": index.priorities.max_priority}
    carried = len(jax.tree.leaves(state)) + len(jax.tree.leaves(index.priorities))
    assert len(jax.tree.leaves(known)) == carried - 1, "something is not compared"  # but env_steps
    return {name: part for name, part in known.items() if part is not None}  # SAC has no target actor


def transplant(flat_state, run):
    """The oracle's state with the agent's numbers: same nets, other structure."""
    known = by_name(run.state, run.index)

    def graft(mine, theirs):
        mine_leaves, theirs = jax.tree.leaves(mine), jax.tree.leaves(theirs)
        assert [x.shape for x in mine_leaves] == [x.shape for x in theirs]
        return jax.tree.unflatten(jax.tree.structure(mine), theirs)

    return flat_state._replace(**{name: graft(getattr(flat_state, name), known[name]) for name in known})


def oracle(run, size=SMALL):
    """The straight-line twin of a run: its update and its state."""
    flat_file = ORACLES[run.agent.recipe]
    more = {}
    if flat_file is flat.td7:
        more = {"priorities": jnp.where(jnp.arange(CAPACITY) < TRANSITIONS, 1.0, 0.0), "embedding": size}
    state = flat_file.init(jax.random.key(9), S, A, hidden=(size, size), **more)
    return jax.jit(partial(flat_file.update, batch_size=size)), transplant(state, run)


def differences(run, flat_state):
    """Names of what is not equal to the bit."""
    return [
        name
        for name, mine in by_name(run.state, run.index).items()
        for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(getattr(flat_state, name)), strict=True)
        if not np.array_equal(x, y)
    ]


# 520 updates of TD7 cross two hard synchronisations, so that each copy has moved.
@pytest.mark.parametrize(
    ("recipe", "size", "updates"),
    [
        ("td3", SMALL, 300),
        ("sac", SMALL, 300),
        ("td7", SMALL, 520),
        (TD7_UPDATE, SMALL, 20),
        ("td3", PAPER, 20),
        ("sac", PAPER, 20),
        ("td7", PAPER, 20),
    ],
)
def test_agent_equals_its_straight_line_file_to_the_bit(recipe, size, updates):
    run, key = start(recipe, size), jax.random.key(1)
    flat_update, flat_state = oracle(run, size)
    for number in range(1, updates + 1):
        state, index = run.update(run.state, run.rows, run.index, key)
        run = run._replace(state=state, index=index)
        flat_state = flat_update(flat_state, run.memory, key)
        assert not differences(run, flat_state), f"differs at update {number}"
    assert int(flat_state.updates) == updates
