"""E copies of a `JaxEnv` side by side, as training inside one compiled program steps them."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from qscape.envs.native import JaxEnv, Outcome, reset_all, step_all
from qscape.errors import WrongEnv
from qscape.ops.devices import on_each_device, replicate
from qscape.types import Key, Scalar, stream


class World(NamedTuple):
    """The state of E environments and of their current episodes.

    Attributes:
        state: the environments' states, with a leading axis E.
        observation: what the agent acts on next.
        ret: undiscounted return of the current episode so far.
        length: steps of the current episode so far; 0 if the next action starts it.
        success: did the current episode report success so far?
    """

    state: PyTree
    observation: Float[Array, "E S"]
    ret: Float[Array, " E"]
    length: Int[Array, " E"]
    success: Bool[Array, " E"]


class EpisodeEnds(NamedTuple):
    """Which episodes ended in a step (or in T steps), and their statistics.

    Attributes:
        done: did the episode end in this step?
        ret: undiscounted return of the episode up to this step.
        length: steps of the episode up to this step.
        success: did the episode report success up to this step?
    """

    done: Bool[Array, "*T E"]
    ret: Float[Array, "*T E"]
    length: Int[Array, "*T E"]
    success: Bool[Array, "*T E"]

    def num_episodes(self) -> Int[Array, ""]:
        """The number of episodes that ended."""
        return self.done.sum()

    def mean_return(self) -> Scalar:
        """Mean return of the episodes that ended; NaN if none did."""
        return jnp.where(self.done, self.ret, 0.0).sum() / self.num_episodes()


class EpisodeLog(NamedTuple):
    """The episodes that ended in a compiled chunk of training, in the order of their ends.

    Attributes:
        ended: how many episodes ended.
        rows: one row for each: step of the chunk, environment, length, return, success. As float32 they are
            exact up to 2^24; one array takes one scatter. Rows from `ended` on are unused.
        finite: were all observations and rewards of the chunk finite?
    """

    ended: Int[Array, ""]
    rows: Float[Array, "room 5"]
    finite: Bool[Array, ""]


def empty_log(room: int) -> EpisodeLog:
    """Return a log without episodes, with room for so many."""
    return EpisodeLog(jnp.int32(0), jnp.zeros((room, 5)), jnp.bool_(True))


def log_ends(
    log: EpisodeLog, step: Int[ArrayLike, ""], ended: EpisodeEnds, finite: Bool[Array, ""]
) -> EpisodeLog:
    """Add the episodes that ended in one step or in T steps of a chunk.

    Args:
        log: the episodes so far.
        step: the step of the chunk, or the first of the T steps.
        ended: which episodes ended, [E] or [T, E].
        finite: were all observations and rewards of these steps finite?
    """
    ended = replicate(ended)  # several devices all keep the log
    envs = ended.done.shape[-1]
    done, ret, length, success = (x.reshape(-1) for x in (ended.done, ended.ret, ended.length, ended.success))
    index = jnp.arange(len(done))
    columns = step + index // envs, index % envs, length, ret, success
    where = jnp.where(done, log.ended + jnp.cumsum(done) - 1, len(log.rows))
    rows = log.rows.at[where].set(jnp.stack([jnp.float32(x) for x in columns], -1), mode="drop")
    return EpisodeLog(log.ended + done.sum(), rows, log.finite & finite)


def is_finite(observation: Array, reward: Array) -> Bool[Array, ""]:
    """Return whether all observations and rewards of one or several steps are finite."""
    return jnp.isfinite(observation).all() & jnp.isfinite(reward).all()


def reset_world(env: JaxEnv, envs: int, key: Key) -> World:
    """Start an episode in each of `envs` environments."""
    state, observation = reset_all(env, jax.random.split(key, envs))
    return World(state, observation, jnp.zeros(envs), jnp.zeros(envs, jnp.int32), jnp.zeros(envs, bool))


def step_world(
    env: JaxEnv, world: World, action: Array, env_steps: Int[Array, ""], key: Key
) -> tuple[World, Outcome, EpisodeEnds]:
    """Step E environments; those whose episode ended start a new one (same-step autoreset).

    Args:
        env: the environment.
        world: the state of its E copies.
        action: `[E, ...]`, in the environment's units.
        env_steps: environment steps made so far; folded into the key.
        key: the run's key, which never changes.

    Returns:
        The new world, the outcomes (with the true successors), and which episodes ended.
    """
    keys = jax.random.split(stream(jax.random.fold_in(key, env_steps), "world.step"), len(world.length))
    # On several devices a simulator's loops would otherwise wait for the slowest environment of all of them.
    state, observation, outcome = on_each_device(partial(_step_rows, env), world.state, action, keys)
    done = outcome.terminated | outcome.truncated
    ended = EpisodeEnds(done, world.ret + outcome.reward, world.length + 1, world.success | outcome.success)
    world = World(
        state,
        observation,
        jnp.where(done, 0.0, ended.ret),
        jnp.where(done, 0, ended.length),
        ended.success & ~done,
    )
    return world, outcome, ended


def _step_rows(env: JaxEnv, state: PyTree, action: Array, keys: Key) -> tuple[PyTree, Array, Outcome]:
    """Step environments and reset those whose episode ended: states, observations and outcomes."""
    key_step, key_reset = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    state, outcome = step_all(env, state, action, key_step)
    done = outcome.terminated | outcome.truncated
    after = state, outcome.observation

    _refuse_other_types(env, jax.eval_shape(partial(reset_all, env), key_reset), after)

    def restart() -> tuple[PyTree, Array]:
        new = reset_all(env, key_reset)
        return jax.tree.map(lambda x, y: jnp.where(done.reshape(-1, *[1] * (x.ndim - 1)), x, y), new, after)

    # A reset may cost as much as many steps, so it is computed only in steps in which an episode ends.
    state, observation = jax.lax.cond(any_seed(done), restart, lambda: after)
    return state, observation, outcome


def _refuse_other_types(env: JaxEnv, start: PyTree, after: PyTree) -> None:
    """Raise UsageError if `reset` and `step` give states or observations of other shapes or dtypes."""
    one, other = (
        {jax.tree_util.keystr(at): f"{x.dtype}{[*x.shape[1:]]}" for at, x in jax.tree.leaves_with_path(tree)}
        for tree in (start, after)
    )
    for at in [*one, *other]:
        if one.get(at) != other.get(at):
            what = "an observation" if at == "[1]" else f"a state ({at.removeprefix('[0]') or 'itself'})"
            raise WrongEnv(
                f"{type(env).__name__}: {what} is {one.get(at, 'absent')} after `reset` and "
                f"{other.get(at, 'absent')} after `step`; both must give the same."
            )


@jax.custom_batching.custom_vmap
def any_seed(flags: Bool[Array, "*n"]) -> Bool[Array, ""]:
    """Return whether a flag is true; under `vmap` over seeds, whether one is in any seed.

    A predicate for each seed would turn a `cond` into a `select`, which computes both branches in every step.
    """
    return flags.any()


@any_seed.def_vmap
def _any_batched(axis_size: int, is_batched: list[bool], flags: Array) -> tuple[Array, bool]:
    return flags.any(), False
