"""Evaluation: whole episodes with the deterministic policy, in an environment of its own."""

import numpy as np

from qscape.envs import Edge, Episode
from qscape.offpolicy.state import Acting
from qscape.run.programs import Programs, act_evaluating

SEED = 1000


def evaluate(
    programs: Programs, acting: Acting, edge: Edge, episodes: int, seed: int = SEED
) -> list[Episode]:
    """`episodes` whole episodes; the same ones at every call with the same seed.

    Sub-environment i of E runs episodes i, i + E, ...: a fixed share, so that short episodes are not
    counted more often than long ones. Sub-environment i is seeded with `seed + i`.
    """
    share = [len(range(i, episodes, edge.envs)) for i in range(edge.envs)]
    edge.reseed(seed)
    obs = edge.reset()
    choose = act_evaluating(programs, acting, edge.envs)
    first = np.ones(edge.envs, bool)
    done: list[list[Episode]] = [[] for _ in range(edge.envs)]
    t = 0
    while any(len(d) < n for d, n in zip(done, share, strict=True)):
        step = edge.step(choose(obs, first, t))
        obs, first, t = step.observation, step.terminated | step.truncated, t + 1
        for episode in step.finished:
            if len(done[episode.env]) < share[episode.env]:
                done[episode.env].append(episode)
    return [done[k % edge.envs][k // edge.envs] for k in range(episodes)]
