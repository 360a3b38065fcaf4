#!/usr/bin/env bash
# gymnax 1.0.1: at the end of an episode, GymnaxToGymWrapper.step returns the first observation of the NEXT episode.
#
# The wrapper is a gymnasium.Env, whose step returns the observation that the action led to, and whose user calls
# reset after an end. The wrapper resets by itself and returns the observation after it, with terminated or truncated
# True; the true last one is only in info["final_observation"], a key that no consumer of a gymnasium.Env reads. An
# agent that bootstraps at a time limit, as it should, takes the value of an unrelated start, in every episode.
# Making one also writes into the class attribute gymnasium.Env.metadata, so that every other environment
# without metadata of its own bears its name.
#
# Seen with gymnax 1.0.1, gymnasium 1.3.0, jax 0.10.2, Python 3.11 and 3.13. Pendulum-v1 at its limit, action 2:
#
#     truncated at step 200, terminated False
#     observation in step 200:  a start of another episode, far from the step before: True
#     final_observation:        one step from the step before: True
#     gymnasium.Env.metadata before: {'render_modes': []}
#     gymnasium.Env.metadata after:  {'render_modes': [], 'name': 'Pendulum-v1'}
#
# Exits 0 while it is so, with another number when it has changed or the installation fails. PYTHON chooses the interpreter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"

"$python" -m pip install --quiet --disable-pip-version-check gymnax==1.0.1 jax==0.10.2 jaxlib==0.10.2 \
  flax==0.12.8 gymnasium==1.3.0 six==1.17.0

JAX_PLATFORMS=cpu "$python" - <<'PYTHON_END'
import sys

import gymnasium
import gymnax
import numpy as np
from gymnax.wrappers import GymnaxToGymWrapper

before = dict(gymnasium.Env.metadata)
env = GymnaxToGymWrapper(*gymnax.make("Pendulum-v1"), seed=0)
after = dict(gymnasium.Env.metadata)

env.reset(seed=0)
step, last, terminated, truncated = 0, None, False, False
while not (terminated or truncated):
    previous = last
    observation, _, terminated, truncated, info = env.step(np.float32([2.0]))
    last, step = np.asarray(observation), step + 1
final = np.asarray(info["final_observation"])
# In a step of 0.05 s the speed of the pendulum, the third number, changes by at most 0.05 * (3 * g / 2 + 3 * 2).
most = 0.05 * (15 + 6) + 1e-3
other_episode = abs(last[2] - previous[2]) > most and abs(last[2]) <= 1
one_step = abs(final[2] - previous[2]) <= most

print(f"truncated at step {step}, terminated {bool(terminated)}")
print(f"observation in step {step}:  a start of another episode, far from the step before: {bool(other_episode)}")
print(f"final_observation:        one step from the step before: {bool(one_step)}")
print(f"gymnasium.Env.metadata before: {before}")
print(f"gymnasium.Env.metadata after:  {after}")
same = truncated and not terminated and other_episode and one_step
same = same and "name" not in before and after.get("name") == "Pendulum-v1"
sys.exit(0 if same else "changed: the wrapper now returns the true last observation, or leaves metadata alone")
PYTHON_END
