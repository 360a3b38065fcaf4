"""Run an exported policy with only numpy and onnxruntime, for example on a robot or behind a web server.

    python run_policy.py policy.onnx
    python run_policy.py policy.onnx --observations observations.npy

The policy takes raw observations, one per row, and returns actions in the environment's units. The file
contains the normalisation, squashing and scaling.
"""

import argparse
import json
import time

import numpy as np
import onnxruntime as ort


def load(file: str) -> tuple[ort.InferenceSession, dict]:
    """Load a policy.

    Returns:
        A session on one thread, which is the fastest for a small policy, and the metadata of the policy.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["policy"])


def act(session: ort.InferenceSession, observation: np.ndarray) -> np.ndarray:
    """Return the action for one observation `[S]`, or the actions for a batch `[B, S]`."""
    rows = np.atleast_2d(np.asarray(observation, np.float32))
    actions = np.asarray(session.run(None, {"observation": rows})[0])
    return actions if np.ndim(observation) == 2 else actions[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Run an exported policy.")
    parser.add_argument("file")
    parser.add_argument("--observations", help="a .npy file [B, S]; without it zeros")
    given = parser.parse_args()
    session, about = load(given.file)
    size = about["observation"]["size"]
    print(f"{about['label']} on {about['env']}: {size} numbers in, action {about['action']['shape']} out")
    rows = np.load(given.observations) if given.observations else np.zeros((3, size), np.float32)
    for row, action in zip(rows, act(session, rows), strict=True):
        print(np.round(row, 3), "->", action)
    seconds = []
    for _ in range(1_000):
        start = time.perf_counter()
        act(session, rows[0])
        seconds.append(time.perf_counter() - start)
    print(f"one action takes {1e3 * np.median(seconds):.3f} ms")


if __name__ == "__main__":
    main()
