"""The functional layer: agent state, replay and update as plain values and pure functions.

The task is a point in the plane. An action moves the point, and the reward is minus its squared distance from
the origin. There is no environment: the program inserts random transitions into the replay. It then trains
two seeds, first one after the other, and then both in one program, with `vmap` over a seed axis.

    python examples/functional.py
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp

import qscape as qs
from qscape.offpolicy.state import SEED_AXES
from qscape.types import Transition

SIZE = 2  # dimensions of an observation, and of an action
TRANSITIONS = 2_000
SMALL = {"actor_hidden": (64, 64), "critic_hidden": (64, 64), "replay_capacity": 2_048}

agent = qs.agent("td3+lap", {"base": SMALL}).on(qs.Spec(SIZE, SIZE))
layout = agent.layout(envs=1)


@jax.jit
def fill(key):
    """Fill a replay with random transitions.

    Returns:
        The storage (packed rows) and the replay state (write positions, sizes and priorities).
    """
    k_place, k_action = jax.random.split(key)
    place = jax.random.uniform(k_place, (TRANSITIONS, 1, SIZE), minval=-1.0, maxval=1.0)
    action = jax.random.uniform(k_action, (TRANSITIONS, 1, SIZE), minval=-1.0, maxval=1.0)
    moved = place + 0.5 * action
    never = jnp.zeros((TRANSITIONS, 1), bool)
    # A time limit ends the episode after every transition. It does not cut the bootstrap.
    rows = Transition(place, action, -jnp.square(moved).sum(-1), never, ~never, moved)

    def insert(carry, row):
        return agent.insert(layout, *carry, row), None

    return jax.lax.scan(insert, agent.init_replay(layout), rows)[0]


def train(update, state, storage, replay_state, key, updates):
    """Apply `updates` updates to `state`; returns the new state and the metrics of the last update.

    The key stays the same, because every update folds its own number into it.
    """
    metrics = {}
    for _ in range(updates):
        state, replay_state, metrics = update(state, storage, replay_state, key)
    return state, metrics


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=1_000)
    updates = parser.parse_args().updates
    keys = jax.random.split(jax.random.key(0), 2)

    # One seed after the other.
    update = jax.jit(partial(agent.update, layout))
    runs = [train(update, agent.init(key), *fill(key), key, updates) for key in keys]
    place = jnp.array([[0.4, -0.4]])
    for state, metrics in runs:
        first = jnp.array([True])
        action, _, _ = agent.act(agent.acting(state), None, place, first, 0, keys[0], mode="evaluate")
        x, y = action[0].tolist()
        loss = metrics["critic_loss"]
        print(f"{state.updates} updates, critic loss {loss:.4f}: at (0.4, -0.4) it goes ({x:+.2f}, {y:+.2f})")

    # Both seeds in one program. Every leaf of the state has a leading seed axis, except the two counters.
    states = jax.vmap(agent.init, out_axes=SEED_AXES)(keys)
    together = jax.jit(
        jax.vmap(partial(agent.update, layout), in_axes=(SEED_AXES, 0, 0, 0), out_axes=(SEED_AXES, 0, 0))
    )
    few = min(updates, 10)
    both, _ = train(together, states, *jax.vmap(fill)(keys), keys, few)
    for seed, key in enumerate(keys):
        alone, _ = train(update, agent.init(key), *fill(key), key, few)
        pairs = zip(jax.tree.leaves(both.critics), jax.tree.leaves(alone.critics), strict=True)
        largest = max(float(jnp.abs(x[seed] - y).max()) for x, y in pairs)
        print(f"seed {seed}: after {few} updates the critics of both ways differ by {largest:.1e} at most")


if __name__ == "__main__":
    main()
