"""Evaluation: whole episodes with the deterministic policy, in an environment apart from training.

On JAX-native environments all episodes run side by side in one compiled program (`qscape.run.episodes`), on
others step by step through the adapter. The episodes are the same in both ways.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.utils.seeding import np_random
from jaxtyping import Float, UInt32

from qscape.envs import EnvAdapter, Episode
from qscape.envs.native import JaxEnv
from qscape.errors import BrokenEnv
from qscape.run.episodes import Steps, play_policy
from qscape.run.programs import Acts, act_evaluating
from qscape.tracking import count
from qscape.types import Transition

LONGEST = 100_000  # maximal steps of an evaluation episode in an environment without a time limit
SEED = 1000  # seed of the first evaluation environment

ObservationFilter = Callable[[np.ndarray], np.ndarray]  # [E, S] -> [E, S]


class Rollout(NamedTuple):
    """A whole episode of n steps.

    Attributes:
        observation: raw observation before each step.
        action: action of each step, in [-1, 1].
        reward: reward of each step.
        terminated: did the episode end in a terminal state, not by a truncation?
        episode: return, length and success.
    """

    observation: Float[np.ndarray, "n S"]
    action: Float[np.ndarray, "n A"]
    reward: Float[np.ndarray, " n"]
    terminated: bool
    episode: Episode


class Asked(NamedTuple):
    """Which episodes of which policy are to be run; the arguments of `evaluate`."""

    programs: Acts
    acting: Any
    adapter: EnvAdapter
    episodes: int
    seed: int


def list_successes(done: Sequence[Episode]) -> list[float]:
    """Return the success of each episode, 1 or 0; an empty list if no episode reports success.

    Some environments report success in successful episodes only. So, if any episode reports it, an episode
    without a report counts as a failure.
    """
    reported = any(episode.success is not None for episode in done)
    return [float(episode.success or 0) for episode in done] if reported else []


def evaluate(
    programs: Acts,
    acting: Any,
    adapter: EnvAdapter,
    episodes: int,
    seed: int = SEED,
    mode: str = "evaluate",
) -> list[Episode]:
    """Run whole episodes with the policy; the same episodes at every call with the same seed.

    Sub-environment i of E runs episodes i, i + E, ...: a fixed share. Otherwise short episodes would be
    counted more often than long ones. JAX-native environments are not stepped themselves: a program plays
    the episodes that they would.

    Args:
        programs: the programs of the agent.
        acting: the acting state of the policy.
        adapter: the evaluation environments, which are seeded again.
        episodes: number of episodes.
        seed: sub-environment i is seeded with `seed + i`.
        mode: "evaluate" (the deterministic policy) or "sample" (samples of an on-policy agent's policy).

    Returns:
        The episodes, in the order of their numbers.

    Raises:
        RunError: an episode does not end, or the environment returned NaN.
    """
    asked = Asked(programs, acting, adapter, episodes, seed)
    if adapter.jax_env is not None and episodes > 0:
        return _play_episodes(asked, adapter.jax_env, mode=mode)[0][0]
    done: list[list[Episode]] = [[] for _ in range(adapter.envs)]
    for _, ended in _walk_episodes(asked, mode=mode):
        for episode in ended:
            done[episode.env].append(episode)
    return [done[k % adapter.envs][k // adapter.envs] for k in range(episodes)]


def evaluate_policies(
    programs: Acts, acting: Any, adapter: EnvAdapter, episodes: int, policies: Sequence[str]
) -> list[list[Episode]]:
    """Run the episodes of `evaluate` with each of several policies, all in one call of one program.

    Args:
        acting: the acting states of the policies, with a leading axis.
        adapter: environments in JAX.
        policies: their names, for errors.
    """
    assert adapter.jax_env is not None
    asked = Asked(programs, acting, adapter, episodes, SEED)
    return _play_episodes(asked, adapter.jax_env, policies=policies)[0]


def rollouts(
    programs: Acts,
    acting: Any,
    adapter: EnvAdapter,
    episodes: int,
    seed: int = SEED,
    observation_filter: ObservationFilter | None = None,
) -> list[Rollout]:
    """Run the episodes of `evaluate` and record every step.

    Args:
        programs, acting, adapter, episodes, seed: as for `evaluate`.
        observation_filter: maps the observations [E, S] to those that the policy sees, e.g. by adding noise;
            None: the policy sees them unchanged. The recorded observations are always the unchanged ones.
    """
    asked = Asked(programs, acting, adapter, episodes, seed)
    env = adapter.jax_env if observation_filter is None else None
    if env is not None and episodes > 0:
        (ended,), steps_of_each = _play_episodes(asked, env, record=True)
        return [Rollout(*steps, episode) for steps, episode in zip(steps_of_each, ended, strict=True)]
    steps: list[list[tuple]] = [[] for _ in range(adapter.envs)]
    done: list[list[Rollout]] = [[] for _ in range(adapter.envs)]
    for new, ended in _walk_episodes(asked, observation_filter):
        for i in np.flatnonzero(new.valid).tolist():
            steps[i].append((new.observation[i], new.action[i], new.reward[i]))
        for episode in ended:
            seen, did, got = map(np.stack, zip(*steps[episode.env], strict=True))
            terminated = bool(new.terminated[episode.env])
            done[episode.env].append(Rollout(seen, did, got, terminated, episode))
        for i in np.flatnonzero(new.terminated | new.truncated).tolist():
            steps[i].clear()
    return [done[k % adapter.envs][k // adapter.envs] for k in range(episodes)]


def _play_episodes(
    asked: Asked, env: JaxEnv, record: bool = False, mode: str = "evaluate", policies: Sequence[str] = ()
) -> tuple[list[list[Episode]], list[Steps]]:
    """Return each policy's episodes on a JAX-native environment, and their steps if they are recorded.

    `policies`: the names of several policies; empty: `asked.acting` is that of one.
    """
    programs, acting, adapter, episodes, seed = asked
    envs, agent = adapter.envs, programs.agent
    seeds = episode_seeds(envs, episodes, seed)
    about: Any = {"record": record, "name": adapter.env_id, "envs": envs, "mode": mode, "policies": policies}
    played = play_policy(agent, env, acting, seeds, **about)
    reports = env.reports_success

    def gather(ret: np.ndarray, length: np.ndarray, success: np.ndarray) -> list[Episode]:
        reported = success.astype(float).tolist() if reports else [None] * episodes
        numbers = zip(length.tolist(), ret.tolist(), reported, strict=True)
        return [Episode(k % envs, *of) for k, of in enumerate(numbers)]

    return list(map(gather, *map(np.atleast_2d, played[:3]))), played.steps


def episode_seeds(envs: int, episodes: int, seed: int) -> UInt32[np.ndarray, " n"]:
    """Return the seeds of the first episodes of E copies of a `GymnasiumEnv`, in the order of `evaluate`.

    Gymnasium seeds copy i with `seed + i`; a copy draws the seed of each of its episodes.
    """
    generators = [np_random(seed + i)[0] for i in range(envs)]
    drawn = [generators[k % envs].integers(2**32, dtype=np.uint32) for k in range(episodes)]
    return np.array(drawn, np.uint32)


def _walk_episodes(
    asked: Asked, observation_filter: ObservationFilter | None = None, mode: str = "evaluate"
) -> Iterator[tuple[Transition, list[Episode]]]:
    """Yield the transition of all sub-environments, and the episodes that ended with it.

    Episodes beyond an environment's share are not among these. Stops when all episodes were yielded.
    """
    programs, acting, adapter, episodes, seed = asked
    share = [len(range(i, episodes, adapter.envs)) for i in range(adapter.envs)]
    adapter.reseed(seed)
    obs = adapter.reset()
    choose = act_evaluating(programs, acting, adapter.envs, mode)
    first = np.ones(adapter.envs, bool)
    t = 0
    with count(episodes, "episodes") as tick:
        while any(share):
            action = choose(obs if observation_filter is None else observation_filter(obs), first, t)
            step = adapter.step(action)
            if t >= LONGEST:
                refuse_endless(adapter, adapter.longest)
            ended = [e for e in step.finished if share[e.env] > 0]
            for episode in ended:
                share[episode.env] -= 1
                tick()
            yield step.transition, ended
            obs, first, t = step.observation, step.transition.starts_episode, t + 1


def refuse_endless(adapter: EnvAdapter, steps: int) -> None:
    """Raise a RunError if an episode has lasted too many steps and no time limit will end it."""
    if steps > LONGEST and adapter.time_limit is None:
        raise BrokenEnv(
            f"{adapter.env_id}: an episode has not ended in {LONGEST:,} steps and has no time limit; "
            "set max_episode_steps in env_args, or wrap it in gymnasium.wrappers.TimeLimit."
        )
