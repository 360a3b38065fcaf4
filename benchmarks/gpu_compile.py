"""Compile programs of whole runs for an NVIDIA H100, on a machine without a GPU; measure the seconds.

    pip install --no-deps --target gpu jax-cuda12-plugin==VERSION jax-cuda12-pjrt==VERSION   # that of jax
    PYTHONPATH=gpu python benchmarks/gpu_compile.py
    PYTHONPATH=gpu python benchmarks/gpu_compile.py fast_td3:1024 sac:1

XLA gets a description of the GPU and compiles to the end; ptxas of CUDA must be on the PATH. On a GPU it also
times variants of products, which takes longer. The environment is gymnax/Pendulum-v1. Each program has a
process and at most LIMIT seconds. Processor seconds count those of ptxas, which other work on the
machine does not change much. They and the memory that a program needs go to benchmarks/results/gpu_compile.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from throughput import machine

RESULTS = Path(__file__).resolve().parent / "results" / "gpu_compile"
RUNS = (
    *("fast_td3:1024", "fast_sac:1024", "td3:1", "sac:1", "td3+sale+lap+periodic+value_clip:1", "simbav2:1"),
    *("xqc:1", "tqc:1", "td3+pave:1", "td3+savo:1", "sac+savgo:1"),
)
ENV = "gymnax/Pendulum-v1"
LIMIT = 300
FLAGS = {  # of XLA
    "none": "",
    "products by cuBLAS": "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0",
}
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
runtime_version { major: 12 minor: 8 }
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def child(recipe: str, envs: int) -> dict[str, float | str]:
    """Compile the program of one run in this process; return seconds and bytes, or what XLA says."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies

    from qscape.run import compiled, scan
    from qscape.run.adapters import open_adapter
    from qscape.run.plan import Plan, prepare

    jax.default_backend = lambda: "gpu"  # functions that have another form on a CPU ask it
    [device] = topologies.get_topology_desc("H100", "cuda", target_config=H100, topology="1x1x1").devices
    there = jax.sharding.SingleDeviceSharding(device)
    plan, agent, _ = prepare(Plan(recipe, ENV, 10**9, envs=envs, eval_every=0))
    env = open_adapter(plan, agent).jax_env
    agent = agent.on(scan.spec_of(env))
    key = jax.random.key(0)
    run = jax.eval_shape(partial(scan.start, agent, env, envs=envs), key)
    arguments = env, run, key, np.zeros(compiled.MOST, np.int32), np.int32(1), np.int32(0)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=there), arguments
    )
    chunk = partial(scan.run_chunk, agent, room=compiled.ROOM)
    lowered = jax.jit(chunk, donate_argnums=1).lower(*shapes)
    begun, used = time.perf_counter(), processor_seconds()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error)}
    return {
        "wall": time.perf_counter() - begun,
        "processor": processor_seconds() - used,
        "temporary bytes": program.memory_analysis().temp_size_in_bytes,
    }


def processor_seconds() -> float:
    """Return the processor seconds of this process and of its ended children, such as ptxas."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(run: str, flags: str) -> dict[str, float | str]:
    """Compile the program of one run in a process of its own."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--child", run], env=env, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not compiled after {LIMIT} s"}
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    """Compile all programs with all flags, print and write the seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", default=RUNS, metavar="RECIPE:ENVIRONMENTS")
    parser.add_argument("--child", metavar="RECIPE:ENVIRONMENTS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        recipe, envs = options.child.split(":")
        print(json.dumps(child(recipe, int(envs))))
        return
    import jax

    about = {
        "command": " ".join(["python", "benchmarks/gpu_compile.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "machine": machine(os.cpu_count() or 1),
        "XLA_FLAGS": FLAGS,
        "runs": {},
    }
    for run in options.runs:
        about["runs"][run] = found = {name: measure(run, flags) for name, flags in FLAGS.items()}
        for name, one in found.items():
            what = one.get("error") or f"{one['wall']:5.0f} s, of a processor {one['processor']:4.0f} s"
            print(f"{run:36}{name:20}{what}", flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(about, indent=1) + "\n")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
