"""Measure how long one action takes in C and in ONNX Runtime, on one thread, in one run.

    python benchmarks/c_policy.py
    python benchmarks/c_policy.py td3 td7 --hidden 256 --rounds 5

Policies have random weights and see observations of HalfCheetah's size (17 numbers in, 6 out). The header is
compiled with -O2 alone. C and ONNX Runtime take turns: each round times 5,000 single actions of both, after
as many that are not counted. p50 and p99 are over all rounds. An action in ONNX Runtime is a call from
Python, as in `qscape export --onnx`; what a call costs is measured by a model that only adds one. Writes
benchmarks/results/c_policy.json.
"""

import argparse
import json
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

RESULTS = Path(__file__).resolve().parent / "results" / "c_policy.json"
ACTIONS = 5_000  # of each round
OBSERVATION, ACTION = 17, 6
TARGET = 0.6  # of ONNX Runtime's median
PROGRAM = """#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <time.h>
#include "policy.h"
int main(void) {
    static float rows[ROWS][POLICY_OBSERVATION_SIZE];
    static double seconds[ROWS];
    float action[POLICY_ACTION_SIZE];
    volatile float kept;
    struct timespec begun, ended;
    FILE *in = fopen("in", "rb"), *out = fopen("out", "wb");
    if (!in || !out || fread(rows, sizeof rows, 1, in) != 1) return 1;
    for (int turn = 0; turn < 2; ++turn) {
        for (int k = 0; k < ROWS; ++k) {
            clock_gettime(CLOCK_MONOTONIC, &begun);
            policy_act(rows[k], action);
            clock_gettime(CLOCK_MONOTONIC, &ended);
            kept = action[0];
            seconds[k] = (double)(ended.tv_sec - begun.tv_sec);
            seconds[k] += 1e-9 * (double)(ended.tv_nsec - begun.tv_nsec);
        }
    }
    (void)kept;
    return fwrite(seconds, sizeof seconds, 1, out) != 1 || fclose(out) != 0;
}
"""


def make_model(recipe: str, hidden: int) -> onnx.ModelProto:
    """Return the model of a policy with random weights."""
    import jax

    from qscape import agents
    from qscape.export.convert import to_onnx
    from qscape.run.programs import evaluation_key
    from qscape.types import Spec

    settings = {"base": {"actor_hidden": (hidden, hidden)}}
    agent = agents.build(recipe, settings).on(Spec(OBSERVATION, ACTION))
    acting = agent.acting(agent.init(jax.random.key(0)))

    def policy(obs: jax.Array) -> jax.Array:
        first = jax.numpy.ones(obs.shape[0], bool)
        return agent.act(acting, None, obs, first, 0, evaluation_key(), "evaluate")[0]

    return to_onnx(policy, OBSERVATION, {})


def time_c(folder: Path, program: Path) -> np.ndarray:
    """Return the seconds of each action in C."""
    subprocess.run([program], cwd=folder, check=True)
    return np.fromfile(folder / "out", np.float64)


def time_onnx(session: ort.InferenceSession, rows: np.ndarray) -> np.ndarray:
    """Return the seconds of each action in ONNX Runtime."""
    inputs = [{"observation": rows[k : k + 1]} for k in range(len(rows))]
    seconds = np.empty(len(rows))
    for _ in range(2):
        for k, given in enumerate(inputs):
            begun = time.perf_counter()
            session.run(None, given)
            seconds[k] = time.perf_counter() - begun
    return seconds


def open_session(data: bytes) -> ort.InferenceSession:
    """Return a session on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def empty_model() -> bytes:
    """Return a model that does next to nothing: what a call costs."""
    import jax.numpy as jnp

    from qscape.export.convert import to_onnx

    return to_onnx(lambda obs: obs + jnp.float32(1.0), OBSERVATION, {}).SerializeToString()


def measure(recipe: str, hidden: int, rounds: int) -> dict[str, object]:
    """Measure one recipe; microseconds."""
    from qscape.export.c_header import make_header

    model = make_model(recipe, hidden)
    header = make_header(model, "policy", {"label": recipe, "env": "none", "step": 0})
    rows = np.random.default_rng(0).normal(size=(ACTIONS, OBSERVATION)).astype(np.float32)
    sessions = [open_session(model.SerializeToString()), open_session(empty_model())]
    taken: dict[str, list[np.ndarray]] = {"c": [], "onnx": [], "call": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "policy.h").write_text(header.text)
        (folder / "main.c").write_text(PROGRAM.replace("ROWS", str(ACTIONS)))
        rows.tofile(folder / "in")
        program = folder / "timed"
        compiler = ["gcc", "-std=c99", "-O2", "main.c", "-o", program, "-lm"]
        subprocess.run(compiler, cwd=folder, check=True)
        for _ in range(rounds):
            taken["c"].append(time_c(folder, program))
            for kind, session in zip(("onnx", "call"), sessions, strict=True):
                taken[kind].append(time_onnx(session, rows))
    found: dict[str, object] = {"recipe": recipe, "hidden": hidden, "rounds": rounds}
    for kind, seconds in taken.items():
        p50, p99 = np.percentile(np.concatenate(seconds) * 1e6, [50, 99])
        found[kind] = {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}
    ratio = found["c"]["p50"] / found["onnx"]["p50"]  # type: ignore[index]
    return found | {
        "ratio": round(ratio, 3),
        "constant_bytes": header.constant_bytes,
        "stack_bytes": header.stack_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["td3", "sac", "td7", "td3+savo"])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    gcc = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
    rows = []
    for recipe in given.recipes:
        row = measure(recipe, given.hidden, given.rounds)
        rows.append(row)
        c, model, call = (row[kind] for kind in ("c", "onnx", "call"))
        said = "met" if row["ratio"] <= TARGET else "missed"  # type: ignore[operator]
        print(f"{recipe}: C {c}, ONNX Runtime {model} (an empty call {call}); ratio {row['ratio']}: {said}")
    about = {
        "machine": platform.machine(),
        "gcc": gcc.splitlines()[0],
        "onnxruntime": ort.__version__,
        "microseconds": rows,
    }
    RESULTS.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
