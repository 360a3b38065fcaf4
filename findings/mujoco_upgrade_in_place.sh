#!/usr/bin/env bash
# MuJoCo upgraded in place from 3 to 4 cannot be imported, and the command that its error names does not mend it.
#
# MuJoCo 4 is three packages: mujoco, mujoco-core, mujoco-studio. All write into one folder `mujoco`, in which MuJoCo 3 had
# its own files of the same names. pip first installs the new dependencies and then removes MuJoCo 3 with those files, so
# `mujoco/_specs` of mujoco-core is gone. `pip check` sees versions, not files, and finds nothing. The error advises to
# reinstall the three packages without versions and without dependencies. That takes the newest of each, mujoco 4.0.0 and
# mujoco-core 4.0.1, which refuse to work together. With one version for all three the import works.
#
# Seen with pip 23.2.1, mujoco 3.11.0 to 4.0.0, mujoco-core 4.0.1, Python 3.11:
#
#     after the upgrade: ModuleNotFoundError: No module named 'mujoco._specs'
#     pip check: No broken requirements found.
#     after mujoco 4.0.0 with mujoco-core 4.0.1: ImportError: Version mismatch between 'mujoco' (4.0.0) and 'mujoco-core' (4.0.1)
#     after all three in 4.0.0: 4.0.0
#
# Exits 0 while it is so, with another number when it has changed or the installation fails. PYTHON chooses the interpreter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip --disable-pip-version-check "$@"; }
try() { "$folder/venv/bin/python" -c 'import mujoco; print(mujoco.__version__)' 2>&1 | grep -E 'Error: (No module|Version)|^[0-9]' || true; }

pip install --quiet mujoco==3.11.0 2>/dev/null
pip install --quiet --upgrade mujoco==4.0.0 mujoco-core==4.0.0 mujoco-studio==4.0.0 2>/dev/null
broken=$(try)
check=$(pip check)
pip install --quiet --force-reinstall --no-deps mujoco==4.0.0 mujoco-core==4.0.1 mujoco-studio==4.0.0 2>/dev/null
advised=$(try)
pip install --quiet --force-reinstall --no-deps mujoco==4.0.0 mujoco-core==4.0.0 mujoco-studio==4.0.0 2>/dev/null
mended=$(try)
echo "after the upgrade: $broken"
echo "pip check: $check"
echo "after mujoco 4.0.0 with mujoco-core 4.0.1: $advised"
echo "after all three in 4.0.0: $mended"
[[ $broken == *"mujoco._specs"* && $check == *"No broken"* && $advised == *"Version mismatch"* && $mended == 4.0.0 ]]
