"""Relabelled rows in replay: copies of the newest episode's rows, with another goal and its rewards."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Bool, Float, Int

from qscape.offpolicy.agent import Agent
from qscape.offpolicy.cycle import Carry
from qscape.replay.storage import Layout, neighbour, rows_at, write_rows
from qscape.types import Transition


class Relabelled(NamedTuple):
    """T rows for each of E environments, to be written one after the other; or those of one environment.

    Attributes:
        back: how many rows before the last row of the environment's newest episode the copied row stands.
        goal: the goal of the copy.
        reward: the reward for that goal.
        terminated: whether the row is terminal for that goal.
        truncated: whether the row ends an episode or a stretch of rows that share a goal, and is not
            terminal.
        valid: False where there is no row to write.
    """

    back: Int[Any, "*T E"]
    goal: Float[Any, "*T E G"]
    reward: Float[Any, "*T E"]
    terminated: Bool[Any, "*T E"]
    truncated: Bool[Any, "*T E"]
    valid: Bool[Any, "*T E"]


def relabel(agent: Agent, layout: Layout, first: int, carry: Carry, new: Relabelled) -> Carry:
    """Write relabelled rows into replay; the normaliser's statistics see their observations.

    Jit it with `carry.storage` and `carry.replay_state` donated. What scales rewards sees real rewards only.

    Args:
        agent: bound to its task; static, as are `layout` and `first`.
        layout: how a transition is packed into a row.
        first: the entry of an observation at which the goal begins.
        carry: the carry with `storage` and `replay_state`, and `state` if the agent normalises observations.
            The newest row of each environment with valid rows is the last one of an episode.
        new: the rows.

    Returns:
        The carry with new `storage` and `replay_state`, and with a new `state` if it had one.
    """
    behind = 1 if layout.stores_next else 2  # behind an episode that ended lies a pad
    newest = neighbour(layout, write_rows(layout, carry.replay_state)[0], -behind)
    at = neighbour(layout, newest, -new.back)
    # All rows are read before the first is written, so that XLA writes to the storage in place.
    real = rows_at(layout, carry.storage, carry.replay_state, at.reshape(-1), 1, 1.0)
    columns = jax.tree.map(
        lambda x: x.reshape(*at.shape, *x.shape[1:]),
        (real.observation, real.action, real.next_observation, dict(real.extra)),
    )
    goal = slice(first, first + new.goal.shape[-1])

    def write(carry: Carry, rows: tuple) -> tuple[Carry, None]:
        (observation, action, after, extra), row = rows
        seen, after = (x.at[:, goal].set(row.goal) for x in (observation, after))
        made = Transition(seen, action, row.reward, row.terminated, row.truncated, after, row.valid, extra)
        storage, replay_state = agent.replay.insert(layout, carry.storage, carry.replay_state, made)
        state = carry.state if carry.state is None else agent.see(carry.state, seen, ~row.valid)
        return carry._replace(state=state, storage=storage, replay_state=replay_state), None

    return jax.lax.scan(write, carry, (columns, new))[0]
