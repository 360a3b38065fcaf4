#!/usr/bin/env bash
# dm-control 1.0.50, as pip installs it, loads no task of its suite: it takes MuJoCo 4, in which a field of its models is gone.
#
# dm-control asks for mujoco>=3.17.0 without an upper bound, so pip takes MuJoCo 4. The package lists the fields of MuJoCo's
# structures in a table that was made from MuJoCo 3, and reads every one of them when it loads a model. MuJoCo 4 has no
# MjModel.flex_vertedge any more. Importing works, loading any task raises AttributeError. With mujoco<4 the same works.
# What builds on it fails with it: `pip install shimmy[dm-control]` makes no environment.
#
# Seen with dm-control 1.0.50, mujoco 4.0.0 and 3.17.0, Python 3.11:
#
#     as pip installs it: AttributeError: 'MjModel' object has no attribute 'flex_vertedge'
#     with mujoco 3: loads
#
# Exits 0 while it is so, with another number when it has changed or the installation fails. PYTHON chooses the interpreter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

try() { # the name of a virtual environment, and what pip installs into it
  "${PYTHON:-python3}" -m venv "$folder/$1"
  "$folder/$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}" 2>/dev/null
  "$folder/$1/bin/python" -c '
from dm_control import suite
suite.load("cartpole", "balance").reset()
print("loads")' 2>&1 | tail -n 1 || true
}

newest=$(try newest dm-control==1.0.50 mujoco==4.0.0 mujoco-core==4.0.0 mujoco-studio==4.0.0)
older=$(try older dm-control==1.0.50 mujoco==3.17.0)
echo "as pip installs it: $newest"
echo "with mujoco 3: $older"
[[ $newest == AttributeError*"no attribute 'flex_vertedge'"* && $older == loads ]]
