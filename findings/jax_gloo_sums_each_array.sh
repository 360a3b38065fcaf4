#!/usr/bin/env bash
# Between processes on CPU, JAX sums a tree of arrays with one Gloo call for each array, so its price is the number of arrays.
#
# XLA combines the sums of a tree, such as the gradients of a network, into one all-reduce with a tuple of operands; on GPU and
# TPU that is one message. XLA's Gloo collectives on CPU walk over the operands and wait for each. 32 arrays of 64 numbers take
# many times as long as one array of the same 2,048, and a network of 24 small arrays spends more time on messages than on work.
# Concatenating the gradients before the sum takes the difference away.
#
# Seen with jax and jaxlib 0.10.2, NumPy 2.4.6, Python 3.11, two processes on two cores of one machine:
#
#     32 arrays of 64 numbers take 10 to 40 times as long as one of 2,048
#
# Exits 0 while the ratio is 4 or more, with another number when it has changed or the installation fails. PYTHON chooses the
# interpreter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

cat > "$folder/sums.py" << 'PROGRAM'
import sys
import time

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
split = PartitionSpec("process")
mesh = Mesh(np.array(jax.devices()), ("process",))
TIMES = 40


def seconds(arrays, size):
    """Seconds of one sum of a tuple of arrays over both processes, the least of 25 tries."""
    place = NamedSharding(mesh, split)
    ones = tuple(
        jax.make_array_from_callback((2, size), place, lambda _: np.ones((1, size), np.float32)) for _ in range(arrays)
    )

    def repeat(own):
        def once(own, _):
            return tuple(x * 0.5 for x in jax.lax.psum(own, "process")), None

        return jax.lax.scan(once, own, None, length=TIMES)[0]

    run = jax.jit(jax.shard_map(repeat, mesh=mesh, in_specs=split, out_specs=split, check_vma=False))
    jax.block_until_ready(run(ones))
    tries = []
    for _ in range(25):
        begun = time.perf_counter()
        jax.block_until_ready(run(ones))
        tries.append((time.perf_counter() - begun) / TIMES)
    return min(tries)


many, one = seconds(32, 64), seconds(1, 2048)
if sys.argv[2] == "0":
    print(f"32 arrays of 64: {1e6 * many:.0f} us; one of 2,048: {1e6 * one:.0f} us; ratio {many / one:.1f}")
PROGRAM

port=$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
JAX_PLATFORMS=cpu "$python" "$folder/sums.py" "$port" 1 > /dev/null 2>&1 &
said=$(JAX_PLATFORMS=cpu "$python" "$folder/sums.py" "$port" 0 2> /dev/null | tail -n 1)
wait $!
echo "$said"
awk -v ratio="${said##* }" 'BEGIN { exit !(ratio >= 4) }' || { echo "changed: a tree costs as much as one array" >&2; exit 1; }
