"""On-policy training inside one compiled program, on environments that are pure JAX functions.

agent = qs.agent("ppo").on(scan.spec_of(env, index_actions=True))
train = jax.jit(partial(scan_rollouts.train, agent, envs=8, updates=200))
state, history = train(env, key)                                              # one seed
state, history = jax.vmap(train, (None, 0))(env, jax.random.split(key, 10))   # ten seeds in parallel
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from qscape.envs.native import JaxEnv
from qscape.envs.world import (
    EpisodeEnds,
    EpisodeLog,
    World,
    empty_log,
    is_finite,
    log_ends,
    reset_world,
    step_world,
)
from qscape.onpolicy.agent import Agent
from qscape.onpolicy.state import ActingState, State
from qscape.run.scan import to_env_action
from qscape.types import Key, Metrics, Scalar, Transition, stream


def collect(
    agent: Agent, env: JaxEnv, acting: ActingState, world: World, env_steps: Int[Array, ""], key: Key
) -> tuple[World, Transition, EpisodeEnds]:
    """Collect a rollout with the current policy.

    With `base.episodes` all environments are reset first, and each runs its share of the episodes.

    Args:
        agent: bound to its task; static.
        env: the environment.
        acting: the acting state of the policy.
        world: the states of the E environments.
        env_steps: environment steps made so far; step t of the rollout draws its random numbers from
            `env_steps` + t E.
        key: the run's key.

    Returns:
        The environments after the rollout, the rollout [T, E, ...], and the ends of episodes in it.
    """
    base, envs = agent.base, len(world.length)
    rows = -(-base.rollout // envs)
    left = None
    if base.episodes:
        share = [len(range(i, base.episodes, envs)) for i in range(envs)]
        rows = min(rows, max(share) * env.time_limit)
        left = jnp.array(share)
        world = reset_world(env, envs, stream(jax.random.fold_in(key, env_steps), "world.begin"))

    def step(carry: tuple, t: Array) -> tuple[tuple, tuple]:
        world, left = carry
        at = env_steps + t * envs
        action = agent.act(acting, None, world.observation, jnp.zeros(envs, bool), at, key, "explore")[0]
        after, outcome, ended = step_world(env, world, to_env_action(agent, env, action), at, key)
        valid = None if left is None else left > 0
        row = Transition(
            world.observation,
            action,
            outcome.reward,
            outcome.terminated,
            outcome.truncated & ~outcome.terminated,
            outcome.observation,
            valid,
        )
        if valid is not None:
            ended = ended._replace(done=ended.done & valid)
        return (after, None if left is None else left - ended.done), (row, ended)

    if left is None:
        (world, _), (rollout, ended) = jax.lax.scan(step, (world, None), jnp.arange(rows))
        return world, rollout, ended

    # The loop ends when the last environment has run its share; later rows stay zero, so they are not valid.
    shapes = jax.eval_shape(step, (world, left), jnp.int32(0))[1]
    blank = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), shapes)

    def further(carry: tuple) -> tuple:
        t, inner, made = carry
        inner, row = step(inner, t)
        return t + 1, inner, jax.tree.map(lambda all_, one: all_.at[t].set(one), made, row)

    def unfinished(carry: tuple) -> Array:
        return (carry[0] < rows) & (carry[1][1] > 0).any()

    _, (world, _), (rollout, ended) = jax.lax.while_loop(unfinished, further, (0, (world, left), blank))
    return world, rollout, ended


class RolloutRun(NamedTuple):
    """A run between two updates.

    Attributes:
        state: networks, optimiser states and counters.
        world: the environments.
    """

    state: State
    world: World


class RolloutHistory(NamedTuple):
    """Measurements of an update and its rollout; `run_updates` stacks them along a leading axis.

    Attributes:
        metrics: the metrics of the update.
        returned: mean return of the episodes that ended in the rollout; NaN if none ended.
        episodes: number of episodes that ended in the rollout.
        env_steps: environment steps made before the rollout.
    """

    metrics: Metrics
    returned: Scalar
    episodes: Int[Array, ""]
    env_steps: Int[Array, ""]


def start(agent: Agent, env: JaxEnv, key: Key, *, envs: int) -> RolloutRun:
    """Return a run before its first step; the agent is bound: `agent.on(scan.spec_of(env, True))`."""
    return RolloutRun(agent.init(key, envs), reset_world(env, envs, stream(key, "world.begin")))


def run_updates(
    agent: Agent, env: JaxEnv, run: RolloutRun, key: Key, *, updates: int, total: int
) -> tuple[RolloutRun, RolloutHistory]:
    """Collect `updates` rollouts and make the update after each, in a run of `total` updates.

    Returns:
        The run after these updates, and the history with a row for each of them.
    """

    def rollout_and_update(run: RolloutRun, _: None) -> tuple[RolloutRun, RolloutHistory]:
        steps, progress = run.state.env_steps, run.state.updates / total
        run, metrics, _rollout, ended = _rollout_and_update(agent, env, run, progress, key)
        return run, RolloutHistory(metrics, ended.mean_return(), ended.num_episodes(), steps)

    return jax.lax.scan(rollout_and_update, run, None, updates)


def run_chunk(
    agent: Agent,
    env: JaxEnv,
    run: RolloutRun,
    metrics: Float[Array, " M"],
    key: Key,
    updates: Int[ArrayLike, ""],
    until: Float[ArrayLike, ""],
    *,
    room: int,
) -> tuple[RolloutRun, Float[Array, " M"], EpisodeLog]:
    """Collect `updates` rollouts and make the update after each, in a run of `until` environment steps.

    A chunk of n rollouts equals n chunks of one to the bit: the number is an argument of one program.

    Args:
        agent, env, run, key: as for `run_updates`.
        metrics: the metrics of the last update, in the order of `metric_names`; NaN before the first.
        updates: how many rollouts.
        until: environment steps of the whole run; schedules follow the fraction of them that is made.
        room: the number of episodes that the log can hold; static.

    Returns:
        The run after the chunk, the metrics of its last update, and the episodes that ended in it. A rollout
        with NaN or infinity changes no network: what it did to them would look like divergence.
    """

    def further(
        k: Array, carry: tuple[RolloutRun, Array, EpisodeLog]
    ) -> tuple[RolloutRun, Array, EpisodeLog]:
        run, metrics, log = carry
        steps = run.state.env_steps
        progress = jnp.minimum(steps / until, 1.0)
        after, values, rollout, ended = _rollout_and_update(agent, env, run, progress, key)
        finite = is_finite(rollout.next_observation, rollout.reward) & jnp.isfinite(rollout.observation).all()
        learnt = after.state, jnp.stack([values[name] for name in sorted(values)])
        state, metrics = jax.tree.map(partial(jnp.where, finite), learnt, (run.state, metrics))
        run = RolloutRun(state._replace(env_steps=after.state.env_steps), after.world)
        return run, metrics, log_ends(log, (steps - begun) // envs, ended, finite)

    begun, envs = run.state.env_steps, len(run.world.length)
    return jax.lax.fori_loop(0, updates, further, (run, metrics, empty_log(room)))


def metric_names(agent: Agent, env: JaxEnv, run: RolloutRun, key: Key) -> list[str]:
    """Return the names of an update's metrics, sorted; `run` and `key` may be shapes."""
    made = partial(_rollout_and_update, agent)
    return sorted(jax.eval_shape(made, env, run, jnp.float32(0), key)[1])


def _rollout_and_update(
    agent: Agent, env: JaxEnv, run: RolloutRun, progress: Array, key: Key
) -> tuple[RolloutRun, Metrics, Transition, EpisodeEnds]:
    """Collect a rollout and learn from it; `progress` is the fraction of the run made before."""
    state, world = run
    acting, steps = agent.acting(state), state.env_steps
    world, rollout, ended = collect(agent, env, acting, world, steps, key)
    valid = rollout.valid
    made = rollout.reward.size if valid is None else valid.any(1).sum() * valid.shape[1]
    state, metrics = agent.update(state, rollout, progress, key)
    return RolloutRun(state._replace(env_steps=steps + made), world), metrics, rollout, ended


def train(agent: Agent, env: JaxEnv, key: Key, *, envs: int, updates: int) -> tuple[State, RolloutHistory]:
    """Train for `updates` rollouts of E environments, each followed by an update.

    Args:
        agent: bound to its task; static.
        env: the environment.
        key: the key of this run; with `vmap` one for each seed.
        envs: E, the number of environments.
        updates: number of rollouts and updates.

    Returns:
        The last state, and the history with a row for each update.
    """
    run = start(agent, env, key, envs=envs)
    run, history = run_updates(agent, env, run, key, updates=updates, total=updates)
    return run.state, history
