"""Off-policy training wholly inside one compiled program, on environments that are pure JAX functions.

agent = qs.agent("td3+savo").on(native.spec_of(env))
train = jax.jit(partial(native.train, agent, envs=16, steps=100_000))
run, history = train(env, key)                                     # one seed
run, history = jax.vmap(train, (None, 0))(env, jax.random.split(key, 5))      # five of them side by side

The steps are those of the ordinary loop (`run.trainer`), in its order: act, step, insert, update. Which step
is followed by how many updates is the same for all seeds, and known before the program runs (`timetable`).
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box, Discrete
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from qscape.envs.native import JaxEnv
from qscape.envs.spaces import ActionBox, make_action_map
from qscape.envs.world import World, reset_world, step_world
from qscape.errors import UsageError
from qscape.offpolicy.agent import Agent, action_table
from qscape.offpolicy.plain import EveryStep
from qscape.offpolicy.sockets import StepEnd
from qscape.offpolicy.state import SEED_AXES, ActingState, State
from qscape.replay.storage import Layout, ReplayState, Rows, Storage
from qscape.types import Key, Metrics, Scalar, Spec, stream


class Run(NamedTuple):
    """A run between two steps."""

    state: State
    replay: tuple[Storage, ReplayState]
    noise_state: PyTree  # what acting remembers: the state of the noise
    world: World
    metrics: Metrics  # the newest of every metric, NaN before there is one


# in_axes and out_axes of `vmap` for a run whose leaves lead with a seed axis.
RUN_AXES = Run(SEED_AXES, 0, 0, 0, 0)  # type: ignore[arg-type]


class History(NamedTuple):
    """Numbers of each step of the E environments; what is learned in it comes at its end."""

    metrics: Metrics
    returned: Scalar  # mean return of the episodes that ended in it; NaN where none did
    episodes: Int[Array, ""]  # how many these were
    env_steps: Int[Array, ""]  # made by its end, all environments together
    updates: Int[Array, ""]  # likewise


def spec_of(env: JaxEnv) -> Spec:
    """What an agent has to know of an environment. Ask outside of jit: it looks at the action table.

    Raises:
        UsageError: the actions are neither a bounded Box nor a Discrete set with a good table.
    """
    space = env.action_space
    size, table, _ = make_action_map(space, 1, env, type(env).__name__)
    bounds = (space.low.ravel(), space.high.ravel()) if isinstance(space, Box) else (None, None)
    return Spec(int(env.observation_space.shape[0]), size, table, *bounds)


def timetable(agent: Agent, *, envs: int, steps: int) -> Int[np.ndarray, " T"]:
    """How many updates follow each step of E environments, until `steps` environment steps were made.

    Raises:
        UsageError: the agent learns when episodes end, which nobody knows before the program runs.
    """
    if not isinstance(agent.schedule, EveryStep) or agent.base.warmup_to_episode_end:
        raise UsageError(
            f"{agent.recipe} learns when episodes end; inside one program updates come by steps: leave "
            "checkpoints out (td7 then is td3+sale+lap+periodic+value_clip), and base.warmup_to_episode_end."
        )
    part_state, due = agent.schedule.start(), []
    for made in range(0, steps, envs):
        updates = 0
        if made >= agent.base.warmup:
            part_state, updates, _ = agent.schedule.due(part_state, StepEnd(envs), agent.base)
        due.append(updates)
    return np.array(due, np.int32)


def start(agent: Agent, env: JaxEnv, key: Key, *, envs: int) -> Run:
    """A run before its first step; `agent` is bound to its task, `agent.on(native.spec_of(env))`.

    Jit it, so that every array of the run has a buffer of its own, and `further` may be given it to keep.
    """
    layout, state = agent.layout(envs), agent.init(key)
    replay = agent.replay.init(layout)
    said = jax.eval_shape(partial(agent.update, layout), state, *replay, key)[2]
    metrics = {name: jnp.full((), jnp.nan) for name in said}
    noise_state = agent.selector.init_noise(agent.task, envs, agent.base)
    return Run(state, replay, noise_state, reset_world(env, envs, stream(key, "world.begin")), metrics)


def further(agent: Agent, env: JaxEnv, run: Run, key: Key, due: Int[ArrayLike, " T"]) -> tuple[Run, History]:
    """The next T steps of all environments, and the updates that are due after each.

    Under `vmap` use `RUN_AXES` for the run and None for `due`: counters that differ from seed to seed would
    make XLA compute both branches of every `cond`, and as many updates after each step as after any.

    Args:
        agent: bound to its task; static.
        key: the run's key, always the same; it never advances.
        due: the next rows of the `timetable`.
    """
    layout = agent.layout(len(run.world.length))
    return jax.lax.scan(partial(_step, agent, layout, env, key), run, jnp.asarray(due))


def train(agent: Agent, env: JaxEnv, key: Key, *, envs: int, steps: int) -> tuple[Run, History]:
    """A whole run of `steps` environment steps, those of all E environments counted.

    Args:
        agent: bound to its task; static. Fields that are a share of a run are shares of this one.
        key: of this run; with `vmap` one for each seed.

    Returns:
        The run at its end, and the history with a row for each step of the E environments.

    Raises:
        UsageError: the agent learns when episodes end.
    """
    base = dataclasses.replace(agent.base, **agent.base.scale_to_run(steps))
    agent = dataclasses.replace(agent, base=base)
    due = timetable(agent, envs=envs, steps=steps)
    return further(agent, env, start(agent, env, key, envs=envs), key, due)


def policy(agent: Agent, env: JaxEnv, acting: ActingState) -> Partial:
    """The policy as `envs.native.play` wants it: without noise, for one environment."""
    return Partial(_choose, agent, env, acting)


def _step(
    agent: Agent, layout: Layout, env: JaxEnv, key: Key, run: Run, due: Int[Array, ""]
) -> tuple[Run, History]:
    """One step of every environment into replay, then the updates that are due."""
    world, steps = run.world, run.state.env_steps
    state = agent.see(run.state, world.observation)

    def act(mode: str) -> tuple[Array, dict[str, Array], PyTree]:
        acting, first = agent.acting(state), world.length == 0
        return agent.act(acting, run.noise_state, world.observation, first, steps, key, mode)

    random = steps < agent.base.warmup
    action, columns, noise_state = jax.lax.cond(random, lambda: act("warm_up"), lambda: act("explore"))
    world, outcome, ended = step_world(env, world, in_units(agent, env, action), steps, key)
    new = Rows(
        run.world.observation,
        action,
        outcome.reward,
        outcome.terminated,
        outcome.truncated,
        outcome.observation,
        columns,
    )
    storage, replay_state = agent.replay.insert(layout, *run.replay, new, jnp.ones(layout.envs, bool))

    def update(_: Array, carry: tuple[State, ReplayState, Metrics]) -> tuple[State, ReplayState, Metrics]:
        state, replay_state, before = carry
        state, replay_state, said = agent.update(layout, state, storage, replay_state, key)
        # -inf marks what this update did not compute (the actor's, between its delayed steps).
        said = {name: jnp.where(jnp.isneginf(new), before[name], new) for name, new in said.items()}
        return state, replay_state, said

    # A loop even where one update is due: in a loop XLA reads the replay in place.
    state = state._replace(env_steps=steps + layout.envs)
    state, replay_state, metrics = jax.lax.fori_loop(0, due, update, (state, replay_state, run.metrics))
    told = History(metrics, ended.mean_return(), ended.num_episodes(), state.env_steps, state.updates)
    return Run(state, (storage, replay_state), noise_state, world, metrics), told


def in_units(agent: Agent, env: JaxEnv, action: Float[Array, "E A"]) -> Array:
    """Actions as the environment takes them: indices of the table's rows, or vectors of its Box."""
    spec, base, space = agent.task, agent.base, env.action_space
    table = action_table(spec, base.nearest, base.nearest_probes)
    if table is not None and isinstance(space, Discrete):
        # No search: what is done is the row that replay holds, to the bit.
        return table.index(action) + int(space.start)
    assert isinstance(space, Box)
    box = ActionBox.from_space(space, np.float32)
    units = box.to_env(action)
    return (units.astype(jnp.int32) if box.is_integer else units).reshape(-1, *space.shape)


def _choose(
    agent: Agent, env: JaxEnv, acting: ActingState, state: PyTree, observation: Array, key: Key
) -> Array:
    noise_state, first = agent.selector.init_noise(agent.task, 1, agent.base), jnp.ones(1, bool)
    fixed = jax.random.key(0)  # as evaluations have it
    action = agent.act(acting, noise_state, observation[None], first, 0, fixed, "evaluate")[0]
    return in_units(agent, env, action)[0]
