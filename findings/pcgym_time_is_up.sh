#!/usr/bin/env bash
# pcgym 0.1.8 says `terminated` where the time of an episode is up, one step before the N that was asked for, and its
# environments cannot be pickled.
#
# An episode of N = 20 ends after 19 steps with terminated=True and truncated=False, however good the control is. Who
# bootstraps by Gymnasium's rule (not after terminated) learns that a plant at its set point is worth less the later it is.
# After a reset the environment holds symbols of CasADi, whose pickling raises a bare Exception outside of a context of
# CasADi's own, though copy.deepcopy works. Who saves environments by pickle, and expects its errors, ends there.
#
# Seen with pcgym 0.1.8, casadi 3.8.2, gymnasium 1.4.0, Python 3.11:
#
#     step 19: terminated True, truncated False
#     copied: yes
#     pickled: Exception
#
# Exits 0 while it is so, with another number when it has changed or the installation fails. PYTHON chooses the interpreter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check pcgym==0.1.8 casadi==3.8.2 gymnasium==1.4.0 2>/dev/null
said=$("$folder/env/bin/python" -W ignore - <<'PYTHON'
import copy
import pickle

import numpy as np
from pcgym import make_env

task = {
    "model": "cstr", "N": 20, "tsim": 26, "SP": {"Ca": [0.85] * 20}, "x0": np.array([0.8, 330.0, 0.85]),
    "o_space": {"low": np.array([0.7, 300.0, 0.8]), "high": np.array([1.0, 350.0, 0.9])},
    "a_space": {"low": np.array([295.0]), "high": np.array([302.0])},
    "normalise_a": True, "normalise_o": True, "integration_method": "casadi",
}
env = make_env(task)
env.reset()
terminated = truncated = False
steps = 0
while not (terminated or truncated):
    _, _, terminated, truncated, _ = env.step(np.zeros(1))
    steps += 1
print(f"step {steps}: terminated {terminated}, truncated {truncated}")
copy.deepcopy(env)
print("copied: yes")
try:
    pickle.dumps(env)
    print("pickled: yes")
except Exception as problem:
    print(f"pickled: {type(problem).__name__}")
PYTHON
)
echo "$said"
[[ $said == *"step 19: terminated True, truncated False"*"copied: yes"*"pickled: Exception" ]]
