"""One cycle of off-policy training, as three pure functions on one value.

    carry = insert(agent, layout, carry, transition, observation)    # the transition enters replay
    carry = learn(agent, layout, carry, updates, env_steps, key)     # gradient updates from replay
    carry = choose(agent, carry, env_steps, key)                     # the next action

Between `choose` and `insert` the environments execute `carry.action`. Every off-policy loop of the library
runs these three functions. The host loop compiles each by itself (`run.engines.replay`). The driven program
puts them into a while_loop that calls the environments (`run.drive`). JAX environments run with them in a
scan (`run.scan`). Several seeds run them under vmap (`run.seeds`).
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from qscape.offpolicy.agent import Agent
from qscape.offpolicy.state import SEED_AXES, State
from qscape.offpolicy.update import update
from qscape.ops import finite
from qscape.replay.storage import Layout, ReplayState, Storage
from qscape.types import Key, Transition

HostOrDevice: TypeAlias = Array | np.ndarray


class Carry(NamedTuple):
    """Everything that one cycle of training hands to the next.

    A compiled program that needs only some fields gets None for the others.

    Attributes:
        state: networks, optimiser states and counters.
        storage: packed transitions of the replay.
        replay_state: write positions, sizes and priorities of the replay.
        noise_state: state of the exploration noise; None if the noise has no state.
        metrics: newest value of each metric, in the order of `metric_names`; NaN before its first value.
        observation: the current observations, in the environment's units.
        first: True where an episode begins with this observation.
        action: the chosen actions in [-1, 1]; None on the host until they are chosen.
        columns: further replay columns that the action selector emitted with these actions.
        guard: the first update at which each quantity of `ops.finite.guard_names` was not finite, 0: none;
            None: nothing is watched.
        resetting: True where the next step only resets the environment, whatever the action; None: nowhere.
    """

    state: State
    storage: Storage
    replay_state: ReplayState
    noise_state: PyTree
    metrics: Float[Array, " M"]
    observation: Float[HostOrDevice, "E S"]
    first: Bool[HostOrDevice, " E"]
    action: Float[Array, "E A"]
    columns: dict[str, Array]
    guard: Int[Array, " K"] | None = None
    resetting: Bool[HostOrDevice, " E"] | None = None


# in_axes and out_axes of `vmap` for a carry whose leaves have a leading axis of seeds.
CARRY_AXES = Carry(SEED_AXES, *[0] * (len(Carry._fields) - 1))  # type: ignore[arg-type]


def insert(
    agent: Agent,
    layout: Layout,
    carry: Carry,
    transition: Transition,
    observation: Float[HostOrDevice, "E S"],
) -> Carry:
    """Write the transition of every environment into replay, and set the next observation.

    Args:
        agent: bound to its task; static, as is `layout`.
        layout: how a transition is packed into a row.
        carry: the carry with `storage` and `replay_state`.
        transition: what `carry.action` did at `carry.observation`, with `carry.columns`.
        observation: what the agent acts on next; the first one of a new episode where one begins.

    Returns:
        The carry with new `storage`, `replay_state`, `observation` and `first`.
    """
    storage, replay_state = agent.insert(layout, carry.storage, carry.replay_state, transition)
    first = transition.starts_episode
    return carry._replace(storage=storage, replay_state=replay_state, observation=observation, first=first)


def learn(
    agent: Agent,
    layout: Layout,
    carry: Carry,
    updates: Int[ArrayLike, ""],
    env_steps: Int[ArrayLike, ""],
    key: Key,
    stride: int = 0,
) -> Carry:
    """Make a number of updates from replay; the storage is only read.

    Args:
        agent: bound to its task; static, as is `layout`.
        layout: how a transition is packed into a row.
        carry: the carry with `state`, `storage`, `replay_state` and `metrics`.
        updates: how many updates. A traced number, so that one compiled program makes any number of them.
        env_steps: environment steps made so far; hyperparameters that change over a run follow them.
        key: the run's key; it never advances, each update folds in its own number.
        stride: environment steps between two of these updates (1 when learning from a dataset; static).

    Returns:
        The carry with new `state`, `replay_state`, `metrics` and `guard`.
    """
    names, one_update = metric_names(agent, layout), _compiled_update(agent, layout)

    def one(i: Array, changing: Any) -> tuple[State, ReplayState, Array, Array | None]:
        state, replay_state, values, guard = changing
        state = state._replace(env_steps=env_steps + stride * i)
        state, replay_state, metrics, of_actors = one_update(state, carry.storage, replay_state, key)
        if agent.base.policy_delay > 1:  # between two steps of the actors their metrics stay
            moved = agent.base.actor_moves(state.updates)
            before = {name: values[k] for k, name in enumerate(names)}
            of_actors = {name: jnp.where(moved, new, before[name]) for name, new in of_actors.items()}
        metrics |= of_actors
        values = jnp.stack([metrics[name] for name in names]).astype(jnp.float32)
        if guard is not None:
            guard = finite.watch(guard, state.optimisers, names, values, state.updates)
        return state, replay_state, values, guard

    state = carry.state._replace(env_steps=jnp.asarray(env_steps, jnp.int32))
    changing = state, carry.replay_state, carry.metrics, carry.guard
    # A loop even for one update: inside a loop XLA reads the storage in place.
    state, replay_state, metrics, guard = jax.lax.fori_loop(0, updates, one, changing)
    return carry._replace(state=state, replay_state=replay_state, metrics=metrics, guard=guard)


def choose(
    agent: Agent, carry: Carry, env_steps: Int[Array, ""], key: Key, warm_up: bool | Array = False
) -> Carry:
    """Choose the next actions by the exploring policy, or uniformly in the warm-up.

    Before that, the normaliser's statistics are updated by the observations.

    Args:
        agent: bound to its task; static.
        carry: the carry with `state`, `noise_state`, `observation`, `first` and `resetting`.
        env_steps: environment steps made so far; the same key and number of steps give the same actions.
        key: the run's key.
        warm_up: whether to act uniformly; a traced value compiles both ways of choosing.

    Returns:
        The carry with new `state`, `noise_state`, `action` and `columns`.
    """
    observation, first = jnp.asarray(carry.observation), jnp.asarray(carry.first)
    state = agent.see(carry.state, observation, carry.resetting)

    def act(mode: str) -> tuple[Array, dict[str, Array], PyTree]:
        return agent.act(agent.acting(state), carry.noise_state, observation, first, env_steps, key, mode)

    if isinstance(warm_up, bool):
        action, columns, noise_state = act("warm_up" if warm_up else "explore")
    else:
        action, columns, noise_state = jax.lax.cond(warm_up, lambda: act("warm_up"), lambda: act("explore"))
    return carry._replace(state=state, noise_state=noise_state, action=action, columns=columns)


@lru_cache(maxsize=32)
def metric_names(agent: Agent, layout: Layout) -> tuple[str, ...]:
    """Return the names of an update's metrics, sorted: the order of `Carry.metrics`."""
    *_, metrics, of_actors = jax.eval_shape(_compiled_update(agent, layout), *shapes(agent, layout))
    return tuple(sorted([*metrics, *of_actors]))


@lru_cache(maxsize=32)
def shapes(agent: Agent, layout: Layout) -> tuple[State, Storage, ReplayState, Key]:
    """Return what an update takes, with a `jax.ShapeDtypeStruct` for each array."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    replay = jax.eval_shape(partial(agent.init_replay, layout))
    return jax.eval_shape(agent.init, key), *replay, key


@lru_cache(maxsize=32)
def _compiled_update(agent: Agent, layout: Layout) -> Callable[..., Any]:
    """Return the jitted update, which is traced once for its metrics' names and all programs with it."""
    return jax.jit(partial(update, agent, layout))
