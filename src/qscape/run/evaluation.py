"""Evaluation: whole episodes with the deterministic policy, in an environment of their own."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from qscape.envs import EnvAdapter, Episode, Step
from qscape.errors import RunError
from qscape.run.programs import Acts, act_evaluating

LONGEST = 100_000  # steps of an evaluation episode after which an environment without a time limit is refused
SEED = 1000

ObservationFilter = Callable[[np.ndarray], np.ndarray]  # [E, S] -> [E, S]


class Rollout(NamedTuple):
    """A whole episode of n steps; `episode` holds its return, length and success."""

    observation: Float[np.ndarray, "n S"]  # raw, before each step
    action: Float[np.ndarray, "n A"]  # in [-1, 1]
    reward: Float[np.ndarray, " n"]
    episode: Episode


def list_successes(done: Sequence[Episode]) -> list[float]:
    """Return the success of each episode; empty if no episode reports it.

    Some environments report success only in successful episodes: among others, an episode without a report
    counts as a failure.
    """
    reported = any(episode.success is not None for episode in done)
    return [float(episode.success or 0) for episode in done] if reported else []


def evaluate(
    programs: Acts, acting: Any, adapter: EnvAdapter, episodes: int, seed: int = SEED
) -> list[Episode]:
    """Run whole episodes with the deterministic policy; the same episodes at every call with the same seed.

    Sub-environment i of E runs episodes i, i + E, ...: a fixed share, so that short episodes are not counted
    more often than long ones. Sub-environment i is seeded with `seed + i`.
    """
    done: list[list[Episode]] = [[] for _ in range(adapter.envs)]
    for _, _, _, ended in _walk_episodes(programs, acting, adapter, episodes, seed):
        for episode in ended:
            done[episode.env].append(episode)
    return [done[k % adapter.envs][k // adapter.envs] for k in range(episodes)]


def rollouts(
    programs: Acts,
    acting: Any,
    adapter: EnvAdapter,
    episodes: int,
    seed: int = SEED,
    sense: ObservationFilter | None = None,
) -> list[Rollout]:
    """Run the episodes of `evaluate` and record every step.

    `sense`: a function of the observations [E, S] whose result the policy sees, e.g. noise; None: unchanged.
    The environment and the recorded observations are not affected.
    """
    steps: list[list[tuple]] = [[] for _ in range(adapter.envs)]
    done: list[list[Rollout]] = [[] for _ in range(adapter.envs)]
    for obs, action, step, ended in _walk_episodes(programs, acting, adapter, episodes, seed, sense):
        for i in np.flatnonzero(step.valid).tolist():
            steps[i].append((obs[i], action[i], step.reward[i]))
        for episode in ended:
            seen, did, got = map(np.stack, zip(*steps[episode.env], strict=True))
            done[episode.env].append(Rollout(seen, did, got, episode))
        for i in np.flatnonzero(step.terminated | step.truncated).tolist():
            steps[i].clear()
    return [done[k % adapter.envs][k // adapter.envs] for k in range(episodes)]


def _walk_episodes(
    programs: Acts,
    acting: Any,
    adapter: EnvAdapter,
    episodes: int,
    seed: int,
    sense: ObservationFilter | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, Step, list[Episode]]]:
    """Yield observations, actions and step of all sub-environments, and the counted episodes that ended."""
    share = [len(range(i, episodes, adapter.envs)) for i in range(adapter.envs)]
    adapter.reseed(seed)
    obs = adapter.reset()
    choose = act_evaluating(programs, acting, adapter.envs)
    first = np.ones(adapter.envs, bool)
    t = 0
    while any(share):
        action = choose(obs if sense is None else sense(obs), first, t)
        step = adapter.step(action)
        if t >= LONGEST:
            refuse_endless(adapter, adapter.longest)
        ended = [e for e in step.finished if share[e.env] > 0]
        for episode in ended:
            share[episode.env] -= 1
        yield obs, action, step, ended
        obs, first, t = step.observation, step.begins, t + 1


def refuse_endless(adapter: EnvAdapter, steps: int) -> None:
    """Raise a RunError if an episode has lasted too many steps and no time limit will end it."""
    if steps > LONGEST and adapter.time_limit is None:
        raise RunError(
            f"{adapter.env_id}: an episode has not ended in {LONGEST:,} steps and has no time limit; "
            "set max_episode_steps in env_args, or wrap it in gymnasium.wrappers.TimeLimit."
        )
