#!/usr/bin/env bash
# gymnax 1.0.1 cannot be imported after `pip install gymnax`.
#
# `import gymnax` imports gymnax.utils.load_mnist, which imports `six`, and gymnax does not declare six. Until
# python-dateutil 2.9, six came by chance (gymnax > matplotlib > python-dateutil > six). python-dateutil 4.0 no
# longer needs six, so nothing installs it. With six beside it, the import works.
#
# Seen with gymnax 1.0.1, matplotlib 3.11.2, pandas 3.1.1, python-dateutil 4.0.0, Python 3.11 and 3.13:
#
#     import gymnax, as pip installs it: ModuleNotFoundError: No module named 'six'
#     import gymnax, with six 1.17.0: 26 environments
#
# Exits 0 while it is so, with another number when it has changed or the installation fails. PYTHON chooses the interpreter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"

"$python" -m pip install --quiet --disable-pip-version-check gymnax==1.0.1 jax==0.10.2 jaxlib==0.10.2 \
  flax==0.12.8 gymnasium==1.3.0 matplotlib==3.11.2 pandas==3.1.1 python-dateutil==4.0.0 seaborn==0.13.2

try() { "$python" -c 'import gymnax; print(len(gymnax.registered_envs), "environments")' 2>&1 | tail -n 1; }

bare=$(try) || true
echo "import gymnax, as pip installs it: $bare"
"$python" -m pip install --quiet --disable-pip-version-check six==1.17.0
mended=$(try) || true
echo "import gymnax, with six 1.17.0: $mended"

[ "$bare" = "ModuleNotFoundError: No module named 'six'" ] || { echo "changed: it can be imported" >&2; exit 1; }
[ "$mended" = "26 environments" ] || { echo "changed: six is not all that is missing" >&2; exit 1; }
