"""Whole episodes of a policy, side by side inside one compiled program, on environments that are pure JAX.

    played = play_policy(agent, env, agent.acting(state), seeds=range(100))

An episode depends on its seed and the policy alone. It is the episode that the environment's Gymnasium face
(`envs.native.GymnasiumEnv`) plays with this seed.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from qscape.agents import Agent
from qscape.envs.adapter import describe_not_finite
from qscape.envs.native import JaxEnv, reset_all, step_all, step_key
from qscape.errors import NotFinite
from qscape.onpolicy.agent import Agent as OnPolicyAgent
from qscape.run.programs import evaluation_key
from qscape.run.scan import to_env_action

BUFFER_BYTES = 1 << 30  # of one call; more episodes are played in several calls


class Steps(NamedTuple):
    """The steps of an episode of t steps.

    Attributes:
        observation: raw observation before each step.
        action: the agent's action of each step: in [-1, 1], or the index of a discrete action.
        reward: reward of each step.
        terminated: did the episode end in a terminal state, not by its time limit?
    """

    observation: Float[np.ndarray, "t S"]
    action: Float[np.ndarray, "t A"]
    reward: Float[np.ndarray, " t"]
    terminated: bool


class Played(NamedTuple):
    """Results of n episodes, of one policy or of each of k.

    Attributes:
        ret: undiscounted return.
        length: number of steps.
        success: did any step report success? Always False if the environment reports none.
        steps: the steps of each episode; [] if they were not asked for.
    """

    ret: Float[np.ndarray, "*k n"]
    length: Int[np.ndarray, "*k n"]
    success: Bool[np.ndarray, "*k n"]
    steps: list[Steps]


class Walk(NamedTuple):
    """n episodes between two steps; finished ones stand still.

    Attributes:
        made: steps made so far by every unfinished episode.
        state: the environments' states, with a leading axis n.
        noise_state: the state of the exploration noise, which acting needs.
        observation: what the agent acts on next.
        action: the agent's last actions.
        running: is the episode unfinished?
        terminated: did it end in a terminal state?
        broken: did the last step of the episode give NaN or infinity?
        length: steps of the episode.
        success: did any of them report success?
        rewards: of each step; 0 after the episode's end.
        observations, actions: of each step, as in `Steps`. They are always recorded: another program would
            round in another way, and a measurement of the steps must not change the returns.
    """

    made: Int[Array, ""]
    state: PyTree
    noise_state: PyTree
    observation: Float[Array, "n S"]
    action: Float[Array, "n A"]
    running: Bool[Array, " n"]
    terminated: Bool[Array, " n"]
    broken: Bool[Array, " n"]
    length: Int[Array, " n"]
    success: Bool[Array, " n"]
    rewards: Float[Array, "T n"]
    observations: Float[Array, "T n S"]
    actions: Float[Array, "T n A"]


def play_policy(
    agent: Agent,
    env: JaxEnv,
    acting: Any,
    seeds: Iterable[int],
    *,
    record: bool = False,
    name: str | None = None,
    envs: int = 1,
    mode: str = "evaluate",
    policies: Sequence[str] = (),
) -> Played:
    """Play one episode for each seed with the policy, or with each of several.

    A policy that draws random numbers in evaluations too (`cem`) draws them for all episodes together.

    Args:
        agent: bound to its task.
        env: the environment; its time limit ends an episode.
        acting: the acting state of the policy; of several, its arrays have a leading axis of policies.
        seeds: of the episodes, from 0 to 2**32 - 1.
        record: return every step, which one policy alone can.
        name: of the environment, for errors; None: its class.
        envs: number of environments that the episodes are of in turn, for errors.
        mode: "evaluate" (the deterministic policy) or "sample" (samples of an on-policy agent's policy).
        policies: the names of several policies, for errors; empty: there is one, without that axis.

    Raises:
        RunError: an action, observation or reward is NaN or infinite.
    """
    rows = max(1, len(policies))
    seed = np.asarray(list(seeds), np.uint32)
    size = agent.task.row_size + agent.task.action_size + 1
    most = max(1, BUFFER_BYTES // (4 * env.time_limit * size * rows))
    calls = max(1, -(-len(seed) // most))
    each = -(-len(seed) // calls)
    play = _compile(agent, mode, len(policies))
    ret, length, success, steps = [], [], [], []
    for start in range(0, len(seed), max(1, each)):
        own = seed[start : start + each]
        # The last call is filled up, so that all of them are one compiled program.
        filled = np.concatenate([own, np.repeat(own[-1:], each - len(own))])
        walk = play(env, acting, np.tile(filled, rows))
        _check_finite(walk, name or type(env).__name__, start, envs, agent.task.observation_size, policies)
        made = int(walk.made)
        rewards = np.asarray(walk.rewards)[:made]
        # In double precision and one after the other, as the adapter adds them.
        total = np.add.accumulate(rewards, axis=0, dtype=np.float64)[-1]
        for kept, values in ((ret, total), (length, walk.length), (success, walk.success)):
            kept.append(np.asarray(values).reshape(rows, each)[:, : len(own)])
        if record:
            observations, actions = np.asarray(walk.observations), np.asarray(walk.actions)
            terminated = np.asarray(walk.terminated).tolist()
            for i, t in enumerate(length[-1][0].tolist()):
                taken = (observations[:t, i], actions[:t, i], rewards[:t, i])
                # Copied, since views would keep all buffers alive.
                steps.append(Steps(*map(np.copy, taken), terminated=terminated[i]))

    def join(parts: list[np.ndarray]) -> np.ndarray:
        joined = np.concatenate(parts, axis=1)
        return joined if policies else joined[0]

    return Played(join(ret), join(length), join(success), steps)


@lru_cache(maxsize=8)  # bounded, because a compiled program keeps its agent alive
def _compile(agent: Agent, mode: str, policies: int) -> Any:
    """Compile `_play` for an agent and a mode; once for each number of episodes and kind of environment."""
    return jax.jit(partial(_play, agent, mode, policies))


def _play(
    agent: Agent, mode: str, policies: int, env: JaxEnv, acting: Any, seeds: UInt32[Array, " n"]
) -> Walk:
    """Play until all episodes are finished, or until one gives NaN or infinity.

    Of k > 0 policies, the first plays the first n / k episodes, and so on; 0: one policy, without an axis.
    """
    task, n, limit = agent.task, len(seeds), env.time_limit
    keys, fixed = jax.vmap(jax.random.key)(seeds), evaluation_key()
    kind = jnp.uint8 if task.frame and agent.index_actions else jnp.float32

    def to_rows(observation: Array) -> Array:
        return observation.reshape(n, -1).astype(kind)

    def act(acting: Any, noise_state: Any, observation: Array, t: Array) -> tuple[Array, Any]:
        first = jnp.full(len(observation), t == 0)
        action, _, noise_state = agent.act(acting, noise_state, observation, first, t, fixed, mode)
        return action, noise_state

    def act_each(acting: Any, noise_state: Any, observation: Array, t: Array) -> tuple[Array, Any]:
        of_each = observation.reshape(policies, n // policies, -1)
        action, noise_state = jax.vmap(act, (0, 0, 0, None))(acting, noise_state, of_each, t)
        return action.reshape(n, -1), noise_state

    def step(walk: Walk) -> Walk:
        running, t = walk.running, walk.made
        choose = act_each if policies else act
        action, noise_state = choose(acting, walk.noise_state, walk.observation, t)
        step_keys = jax.vmap(step_key, (0, None))(keys, t + 1)
        state, outcome = step_all(env, walk.state, to_env_action(agent, env, action), step_keys)
        observation, reward = to_rows(outcome.observation), outcome.reward.astype(jnp.float32)
        is_finite = _all_finite(action) & _all_finite(observation) & jnp.isfinite(reward)
        return Walk(
            made=t + 1,
            state=_choose_rows(running, state, walk.state),
            noise_state=noise_state,
            observation=_choose_rows(running, observation, walk.observation),
            action=action,
            # The face truncates by the time limit alone, so `outcome.truncated` is not asked.
            running=running & ~outcome.terminated & (t + 1 < limit),
            terminated=walk.terminated | (running & outcome.terminated),
            broken=running & ~is_finite,
            length=walk.length + running,
            success=walk.success | (running & outcome.success),
            rewards=walk.rewards.at[t].set(jnp.where(running, reward, 0.0)),
            observations=walk.observations.at[t].set(walk.observation),
            actions=walk.actions.at[t].set(action),
        )

    state, first = reset_all(env, keys)
    observation = to_rows(first)
    noise_state = None
    if not isinstance(agent, OnPolicyAgent):
        noise_state = agent.selector.init_noise(task, n // max(1, policies), agent.base)
    if policies:
        noise_state = jax.tree.map(lambda x: jnp.tile(x, (policies, *[1] * x.ndim)), noise_state)
    begin = Walk(
        made=jnp.int32(0),
        state=state,
        noise_state=noise_state,
        observation=observation,
        action=jnp.zeros((n, task.action_size)),
        running=jnp.ones(n, bool),
        terminated=jnp.zeros(n, bool),
        broken=~_all_finite(observation),
        length=jnp.zeros(n, jnp.int32),
        success=jnp.zeros(n, bool),
        rewards=jnp.zeros((limit, n)),
        observations=jnp.zeros((limit, n, task.row_size), kind),
        actions=jnp.zeros((limit, n, task.action_size)),
    )
    return jax.lax.while_loop(lambda walk: walk.running.any() & ~walk.broken.any(), step, begin)


def _all_finite(rows: Float[Array, "n w"]) -> Bool[Array, " n"]:
    """Return whether all numbers of each row are finite."""
    return jnp.isfinite(rows).all(1)


def _choose_rows(which: Bool[Array, " n"], new: PyTree, old: PyTree) -> PyTree:
    """Return the rows of `new` where `which` is true, and those of `old` elsewhere."""
    return jax.vmap(lambda one, new, old: jax.tree.map(partial(jnp.where, one), new, old))(which, new, old)


def _check_finite(walk: Walk, name: str, start: int, envs: int, seen: int, policies: Sequence[str]) -> None:
    """Raise a RunError if an action, observation or reward is NaN or infinite.

    Args:
        walk: the episodes when the program ended.
        name: of the environment.
        start: number of the first episode.
        envs: number of environments that the episodes are of in turn.
        seen: entries of an observation, behind which its mask stands.
        policies: the names of several policies.
    """
    if not np.asarray(walk.broken).any():
        return
    made = int(walk.made)
    fields = {"reset observation": walk.observation}
    if made:
        reward = walk.rewards[made - 1]
        fields = {"the agent's action": walk.action, "observation": walk.observation, "reward": reward}
    for field, values in fields.items():
        rows = np.asarray(values)
        wrong = ~np.isfinite(rows) & np.asarray(walk.broken).reshape(-1, *[1] * (rows.ndim - 1))
        if wrong.any():
            row, *index = np.argwhere(wrong)[0].tolist()
            policy, episode = divmod(row, len(rows) // max(1, len(policies)))
            number = start + episode
            value = float(rows[(row, *index)])
            why = describe_not_finite(
                name, field, index, value, number % envs, made, number // envs + 1, seen
            )
            raise NotFinite(f"{policies[policy]}: {why}" if policies else why)
