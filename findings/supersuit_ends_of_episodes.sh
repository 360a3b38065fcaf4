#!/usr/bin/env bash
# SuperSuit 3.11.0: black_death tells of no end of an episode unless every agent is terminated and truncated at once.
#
# The wrapper keeps agents that have gone as rows of zeros, and says that the episode is over if `terminations &
# truncations` holds for all agents that are left. Of an episode in which all agents are truncated, or all terminated,
# it reports False in the last step. Its agents stay, and the next step, which has no agents any more, is "all of none":
# True. That step is told as terminated and truncated, with a reward of 0 and an observation of zeros. So an episode is
# a step too long, and a time limit looks like a real end.
# pettingzoo_env_to_vec_env_v1 makes a gymnasium.vector.VectorEnv of it. That resets in the step of the end and returns
# the first observation of the next episode, without an autoreset_mode in its metadata that would say so; Gymnasium's
# default is to reset in the step after. The last observation is in a list of infos as "terminal_observation".
#
# Seen with supersuit 3.11.0, pettingzoo 1.27.0, gymnasium 1.4.0, Python 3.11. Two agents, truncated after 3 steps:
#
#     without the wrapper: 3 steps, terminated False, truncated True
#     with black_death:    4 steps, terminated True, truncated True, observation 0
#     as a vector env:     step 4 returns the start of another episode: True; autoreset_mode: None
#
# Exits 0 while it is so, with another number when it has changed or the installation fails. PYTHON chooses the interpreter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"

"$python" -m pip install --quiet --disable-pip-version-check supersuit==3.11.0 pettingzoo==1.27.0 gymnasium==1.4.0

"$python" -W ignore - <<'PYTHON_END'
import sys

import gymnasium
import numpy as np
import supersuit
from pettingzoo import ParallelEnv


class Counter(ParallelEnv):
    """Two agents see the number of steps made, 7 at a start; after 3 steps both are truncated."""

    metadata = {"name": "counter", "render_modes": []}
    render_mode = None

    def __init__(self):
        self.possible_agents = ["one", "two"]
        self.steps = 0

    def observation_space(self, agent):
        return gymnasium.spaces.Box(0, 10, (1,), np.float32)

    def action_space(self, agent):
        return gymnasium.spaces.Discrete(2)

    def of_each(self, value):
        return dict.fromkeys(self.possible_agents, value)

    def see(self):
        return {agent: np.float32([self.steps or 7]) for agent in self.possible_agents}

    def reset(self, seed=None, options=None):
        self.agents, self.steps = list(self.possible_agents), 0
        return self.see(), {agent: {} for agent in self.agents}

    def step(self, actions):
        if not actions:  # as environments of PettingZoo answer when no agent is left
            return {}, {}, {}, {}, {}
        self.steps += 1
        late = self.steps >= 3
        if late:
            self.agents = []
        infos = {agent: {} for agent in self.possible_agents}
        return self.see(), self.of_each(1.0), self.of_each(False), self.of_each(late), infos


def play(env):
    env.reset(seed=0)
    steps = 0
    while env.agents and steps < 10:
        seen, _, terminated, truncated, _ = env.step(dict.fromkeys(env.agents, 0))
        steps += 1
    return steps, bool(terminated["one"]), bool(truncated["one"]), float(seen["one"][0])


bare, wrapped = play(Counter()), play(supersuit.black_death_v3(Counter()))
vector = supersuit.pettingzoo_env_to_vec_env_v1(supersuit.black_death_v3(Counter()))
vector.reset(seed=0)
for _ in range(wrapped[0]):
    seen, _, terminated, truncated, infos = vector.step(np.zeros(2, int))
other, mode = float(seen[0][0]) == 7, vector.metadata.get("autoreset_mode")

print(f"without the wrapper: {bare[0]} steps, terminated {bare[1]}, truncated {bare[2]}")
print(f"with black_death:    {wrapped[0]} steps, terminated {wrapped[1]}, truncated {wrapped[2]}, observation {wrapped[3]:g}")
print(f"as a vector env:     step {wrapped[0]} returns the start of another episode: {other}; autoreset_mode: {mode}")
same = bare[:3] == (3, False, True) and wrapped == (4, True, True, 0.0) and other and mode is None
same = same and isinstance(vector, gymnasium.vector.VectorEnv) and "terminal_observation" in infos[0]
sys.exit(0 if same else "changed: ends of episodes are told apart, or the reset mode is declared")
PYTHON_END
