#!/usr/bin/env bash
# robosuite 1.5.2, as pip installs it, neither imports its Gymnasium wrapper nor makes an environment.
#
# Two requirements are missing in its metadata. `robosuite.wrappers`, which has GymWrapper, imports h5py for another
# wrapper of the module, and h5py is not named. And mujoco>=3.3.0 has no upper bound, so pip takes MuJoCo 4: from 3.12 on
# the type of a joint equals none of the kinds that robosuite compares it with, and making a task fails with a bare
# AssertionError; 3.10 and 3.11 lack MjData.qM, which its controllers read. With 3.9.0 it works. The numbers of the first
# steps are not compared here.
#
# Seen with robosuite 1.5.2, mujoco 4.0.0, 3.11.0 and 3.9.0, Python 3.11:
#
#     as pip installs it: ModuleNotFoundError: No module named 'h5py'
#     with h5py: AssertionError
#     with mujoco 3.11: AttributeError: 'MjData' object has no attribute 'qM'. Did you mean: 'M'?
#     with mujoco 3.9: makes Lift
#
# Exits 0 while it is so, with another number when it has changed or the installation fails. PYTHON chooses the interpreter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"

install() {
  "$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "$@" 2>/dev/null
}

try() {
  "$folder/env/bin/python" -c '
import robosuite
from robosuite.wrappers import GymWrapper
env = robosuite.make("Lift", robots="Panda", has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False)
GymWrapper(env).reset()
print("makes Lift")' 2>&1 | tail -n 1 || true
}

install robosuite==1.5.2 gymnasium==1.4.0 mujoco==4.0.0 mujoco-core==4.0.0 mujoco-studio==4.0.0
plain=$(try)
install h5py
newest=$(try)
"$folder/env/bin/python" -m pip uninstall --quiet --yes mujoco mujoco-core mujoco-studio
install mujoco==3.11.0
middle=$(try)
install mujoco==3.9.0
older=$(try)
echo "as pip installs it: $plain"
echo "with h5py: $newest"
echo "with mujoco 3.11: $middle"
echo "with mujoco 3.9: $older"
[[ $plain == ModuleNotFoundError*h5py* && $newest == AssertionError* && $middle == AttributeError*qM* && $older == "makes Lift" ]]
