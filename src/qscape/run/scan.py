"""Off-policy training inside one compiled program, on environments that are pure JAX functions.

agent = qs.agent("td3+savo").on(scan.spec_of(env))
train = jax.jit(partial(scan.train, agent, envs=16, steps=100_000))
run, history = train(env, key)                                             # one seed
run, history = jax.vmap(train, (None, 0))(env, jax.random.split(key, 5))   # five seeds in parallel

A scan over the cycle of `qscape.offpolicy.cycle`, in the order of the host loop (`run.engines.replay`): act,
step, insert, update. All seeds make the same number of updates after each step; the numbers are known before
the program runs (`update_counts`).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box, Discrete
from jaxtyping import Array, ArrayLike, Float, Int

from qscape.agents import Agent as AnyAgent
from qscape.envs.native import JaxEnv
from qscape.envs.native import Outcome as EnvOutcome
from qscape.envs.spaces import ActionBox, FactoredActions, index_sizes, make_action_map
from qscape.envs.world import (
    EpisodeEnds,
    EpisodeLog,
    World,
    any_seed,
    empty_log,
    is_finite,
    log_ends,
    reset_world,
    step_world,
)
from qscape.errors import UnfitAgent
from qscape.offpolicy import cycle
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.assembly import make_action_table
from qscape.offpolicy.cycle import CARRY_AXES, Carry, Outcome
from qscape.offpolicy.sockets import StepEnd
from qscape.offpolicy.state import State
from qscape.types import Key, Metrics, Scalar, Spec, stream


class Run(NamedTuple):
    """A run between two steps.

    Attributes:
        carry: the state of training; its action is that of the last step.
        world: the environments.
    """

    carry: Carry
    world: World

    @property
    def state(self) -> State:
        """Networks, optimiser states and counters."""
        return self.carry.state


# in_axes and out_axes of `vmap` for a run whose leaves have a leading axis of seeds.
RUN_AXES = Run(CARRY_AXES, 0)  # type: ignore[arg-type]


class History(NamedTuple):
    """Measurements after a step of the E environments; `run_steps` stacks them along a leading axis [T].

    Attributes:
        metrics: newest value of every metric; NaN before its first value.
        returned: mean return of the episodes that ended in this step; NaN if none ended.
        episodes: number of episodes that ended in this step.
        env_steps: environment steps so far, over all environments.
        updates: updates so far.
    """

    metrics: Metrics
    returned: Scalar
    episodes: Int[Array, ""]
    env_steps: Int[Array, ""]
    updates: Int[Array, ""]


def spec_of(env: JaxEnv, index_actions: bool = False) -> Spec:
    """Return the task of a JAX environment for `Agent.on`. Call it outside of jit: it reads the action table.

    Args:
        env: the environment.
        index_actions: `Agent.index_actions`; True for on-policy agents, whose discrete action is its index.

    Raises:
        UsageError: the actions are neither a bounded Box, a Discrete set nor a product of such sets; without
            `index_actions` a Discrete set needs a valid table, and a product must not be too large for one.
    """
    space = env.action_space
    size, table, _ = make_action_map(space, 1, env, type(env).__name__, index_actions)
    bounds = (space.low.ravel(), space.high.ravel()) if isinstance(space, Box) else (None, None)
    seen = int(env.observation_space.shape[0])
    return Spec(
        seen,
        size,
        table,
        *bounds,
        **index_sizes(space, index_actions),
        actor_size=env.actor_size,
        time_limit=env.time_limit,
        mask=env.mask,
    )


def update_counts(agent: Agent, *, envs: int, steps: int) -> Int[np.ndarray, " T"]:
    """Return how many updates follow each step of E environments, until `steps` environment steps were made.

    Args:
        agent: an off-policy agent.
        envs: E, the number of environments.
        steps: environment steps of the run, over all environments.

    Returns:
        The number of updates after each of the T = ceil(steps / E) steps.

    Raises:
        UsageError: the agent learns when episodes end, which is not known before the program runs.
    """
    if not agent.schedule.learns_by_steps or agent.base.warmup_to_episode_end:
        raise UnfitAgent(
            f"{agent.recipe} learns when episodes end; inside one program updates come by steps: leave "
            "checkpoints out (td7 then is td3+sale+lap+periodic+value_clip), and base.warmup_to_episode_end."
        )
    agent = _count_steps(agent, envs)
    counters, counts = agent.schedule.start(), []
    for made in range(0, steps, envs):
        updates = 0
        if made >= agent.base.warmup:
            counters, updates, _ = agent.schedule.updates_due(counters, StepEnd(envs), agent.base)
        counts.append(updates)
    return np.array(counts, np.int32)


def _count_steps(agent: Agent, envs: int) -> Agent:
    """Return the agent with environment steps in place of steps of all E environments in its settings."""
    return dataclasses.replace(agent, base=dataclasses.replace(agent.base, **agent.base.scale_to_envs(envs)))


def start(agent: Agent, env: JaxEnv, key: Key, *, envs: int) -> Run:
    """Return a run before its first step; `agent` is bound to its task, `agent.on(spec_of(env))`.

    Call it under jit: then every array of the run has a buffer of its own and may be donated to `run_steps`.
    """
    agent = _count_steps(agent, envs)
    layout, task = agent.layout(envs), agent.task
    storage, replay_state = agent.init_replay(layout)
    world = reset_world(env, envs, stream(key, "world.begin"))
    carry = Carry(
        state=agent.init(key),
        storage=storage,
        replay_state=replay_state,
        noise_state=agent.selector.init_noise(task, envs, agent.base),
        metrics=jnp.full(len(cycle.metric_names(agent, layout)), jnp.nan, jnp.float32),
        observation=world.observation,
        first=jnp.ones(envs, bool),
        action=jnp.zeros((envs, task.action_size)),
        columns={name: jnp.zeros((envs, *shape)) for name, shape in layout.columns},
    )
    return Run(carry, world)


def run_steps(
    agent: Agent, env: JaxEnv, run: Run, key: Key, counts: Int[ArrayLike, " T"]
) -> tuple[Run, History]:
    """Make T steps of all environments, and the updates that follow each step.

    Under `vmap` use `RUN_AXES` for the run and None for `counts`. If the counters differed between seeds, XLA
    would compute both branches of every `cond`, and the maximal number of updates after every step.

    Args:
        agent: bound to its task; static.
        env: the environment.
        run: the run so far.
        key: the run's key, the same at every call; it never advances.
        counts: the next T rows of `update_counts`.

    Returns:
        The run after these steps, and the history with a row for each of them.
    """
    envs = len(run.world.length)
    agent = _count_steps(agent, envs)
    names = cycle.metric_names(agent, agent.layout(envs))
    warmup = jnp.int32(agent.base.warmup)

    def step(run: Run, updates: Array) -> tuple[Run, History]:
        run, _, ended = _step(agent, env, run, warmup, key)
        run = _learn(agent, run, updates, key)
        state, metrics = run.state, {name: run.carry.metrics[k] for k, name in enumerate(names)}
        return run, History(
            metrics, ended.mean_return(), ended.num_episodes(), state.env_steps, state.updates
        )

    return jax.lax.scan(step, run, jnp.asarray(counts))


def run_chunk(
    agent: Agent,
    env: JaxEnv,
    run: Run,
    key: Key,
    counts: Int[ArrayLike, " most"],
    steps: Int[ArrayLike, ""],
    warmup: Int[ArrayLike, ""],
    *,
    room: int,
    until_end: bool = False,
) -> tuple[Run, Int[Array, ""], EpisodeLog]:
    """Make up to `steps` steps of all environments, and the updates that follow each step.

    A chunk of n steps equals n chunks of one step to the bit: the number of steps is an argument of one
    program. Under `vmap` the same axes serve as for `run_steps`; `steps` and `warmup` are shared.

    Args:
        agent, env, run, key: as for `run_steps`.
        counts: the number of updates after each step, at least `steps` of them.
        steps: how many steps.
        warmup: environment steps before which actions are uniform.
        room: the number of episodes that the log can hold; static.
        until_end: return after the first step in which an episode ends; static. A schedule that waits for
            ends of episodes decides then on the host.

    Returns:
        The run after the chunk, the number of steps made, and the episodes that ended in them. The chunk ends
        with a step that gave NaN or infinity: an update from that would look like divergence.
    """
    counts, steps = jnp.asarray(counts), jnp.asarray(steps)

    def further(made: Array, run: Run, log: EpisodeLog) -> tuple[Array, Run, EpisodeLog]:
        begun = run.world.observation  # after a reset only this one shows that no action is valid
        run, outcome, ended = _step(agent, env, run, jnp.asarray(warmup), key)
        finite = is_finite(outcome.observation, outcome.reward) & jnp.isfinite(begun).all()
        run = _learn(agent, run, jnp.where(any_seed(~finite), 0, counts[made]), key)
        return made + 1, run, log_ends(log, made, ended, finite)

    def unfinished(made: Array, run: Run, log: EpisodeLog) -> Array:
        more = (made < steps) & ~any_seed(~log.finite)
        return more & (log.ended == 0) if until_end else more

    start = jnp.int32(0), run, empty_log(room)
    made, run, log = jax.lax.while_loop(lambda c: unfinished(*c), lambda c: further(*c), start)
    return run, made, log


def _step(
    agent: Agent, env: JaxEnv, run: Run, warmup: Array, key: Key
) -> tuple[Run, EnvOutcome, EpisodeEnds]:
    """Choose actions, step all environments and insert the transitions. `_learn` follows."""
    carry, world = run
    layout, steps = agent.layout(len(world.length)), carry.state.env_steps
    carry = cycle.choose(agent, carry, steps, key, steps < warmup)
    world, outcome, ended = step_world(env, world, to_env_action(agent, env, carry.action), steps, key)
    answer = Outcome(
        outcome.observation,
        outcome.reward,
        outcome.terminated,
        outcome.truncated,
        world.observation,
        jnp.ones(layout.envs, bool),
    )
    return Run(cycle.insert(agent, layout, carry, answer), world), outcome, ended


def _learn(agent: Agent, run: Run, updates: Array, key: Key) -> Run:
    """Count the step and make the updates that follow it."""
    layout = agent.layout(len(run.world.length))
    steps = run.state.env_steps + layout.envs
    return run._replace(carry=cycle.learn(agent, layout, run.carry, updates, steps, key))


def train(agent: Agent, env: JaxEnv, key: Key, *, envs: int, steps: int) -> tuple[Run, History]:
    """Train for `steps` environment steps, counted over all E environments.

    Args:
        agent: bound to its task; static. Fields that are a fraction of a run are scaled to `steps`.
        env: the environment.
        key: the key of this run; with `vmap` one for each seed.
        envs: E, the number of environments.
        steps: environment steps of the run.

    Returns:
        The run at its end, and the history with a row for each step of the E environments.

    Raises:
        UsageError: the agent learns when episodes end.
    """
    agent = _count_steps(agent, envs)
    base = dataclasses.replace(agent.base, **agent.base.scale_to_run(steps))
    agent = dataclasses.replace(agent, base=base)
    counts = update_counts(agent, envs=envs, steps=steps)
    return run_steps(agent, env, start(agent, env, key, envs=envs), key, counts)


def to_env_action(agent: AnyAgent, env: JaxEnv, action: Float[Array, "E A"]) -> Array:
    """Convert an agent's actions to the environment's: indices of discrete sets, or vectors of its Box.

    The agent's actions are rows of the action table, indices (`Spec.index_sizes`), or vectors in [-1, 1].
    """
    spec, space = agent.task, env.action_space
    if (factored := FactoredActions.from_space(space)) is not None:
        convert = factored.from_unit if spec.factors is None else factored.from_indices
        return convert(action).astype(jnp.int32)
    if isinstance(space, Discrete):
        if spec.choices is not None:
            return action[:, 0].astype(jnp.int32) + int(space.start)
        assert isinstance(agent, Agent)
        table = make_action_table(spec, agent.base.nearest, agent.base.nearest_probes)
        assert table is not None
        # `index` finds the equal row; a search for the nearest one would be slower.
        return table.index(action) + int(space.start)
    assert isinstance(space, Box)
    box = ActionBox.from_space(space, np.float32)
    units = box.to_env(action)
    return (units.astype(jnp.int32) if box.is_integer else units).reshape(-1, *space.shape)
