#!/usr/bin/env bash
# Gymnasium's vector environments with autoreset in the same step give the first observation of the next episode as `final_obs`
# of the one that ended, if the environment returns one array that it writes into.
#
# `step` returns the last observation of an episode, `reset` follows at once and writes into the same array, and `final_obs` still
# is that array. `copy=True`, the default, copies the batch of observations and not `final_obs`. Environments that keep one array
# for their observation are common, since it saves an allocation a step, and without a vector environment around them they are
# right as long as the caller reads before the next call. Who bootstraps from `final_obs` at a time limit learns the value of a
# first observation instead. With the autoreset of the next step, the default, nothing is overwritten.
#
# Seen with gymnasium 1.4.0, numpy 2.4.6, Python 3.11; the episode ends at 3.0, and the next one begins at 0.0:
#
#     SyncVectorEnv: final_obs 0.0
#     AsyncVectorEnv: final_obs 0.0
#
# Exits 0 while it is so, with another number when it has changed or the installation fails. PYTHON chooses the interpreter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6

cat > "$folder/ends.py" << 'PROGRAM'
import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv


class Counter(gymnasium.Env):
    """Shows the number of steps so far, in one array; an episode has three."""

    observation_space = gymnasium.spaces.Box(0, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.shown = np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shown[:] = 0
        return self.shown, {}

    def step(self, action):
        self.shown += 1
        return self.shown, 0.0, False, bool(self.shown[0] == 3), {}


if __name__ == "__main__":
    for kind in (SyncVectorEnv, AsyncVectorEnv):
        envs = kind([Counter], autoreset_mode=AutoresetMode.SAME_STEP)
        envs.reset(seed=0)
        for _ in range(3):
            *_, info = envs.step(np.zeros(1, int))
        print(f"{kind.__name__}: final_obs {float(info['final_obs'][0][0])}")
        envs.close()
PROGRAM
said=$("$python" -W ignore "$folder/ends.py")
echo "$said"
[ "$(grep -c "final_obs 0.0" <<< "$said")" = 2 ] || { echo "changed: final_obs is the last observation" >&2; exit 1; }
