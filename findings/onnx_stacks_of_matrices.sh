#!/usr/bin/env bash
# OpenVINO 2026.4.1 and tract 0.23.9: each refuses one of the two ways to multiply rows by a stack of constant matrices.
#
# An ensemble of three layers is MatMul of rows [batch, 4] and weights [3, 4, 5], which broadcasts the rows, or the same after an
# Expand of the rows to [3, batch, 4]. ONNX Runtime takes both. With a batch of unknown size OpenVINO's CPU plugin compiles the
# first and fails when it runs; tract fails to optimise the second. With a batch that the file fixes both take the first.
# So no file of an ensemble with an open batch is read by all three.
#
# Seen with openvino 2026.4.1, tract 0.23.9, onnxruntime 1.32.0, onnx 1.23.2, Python 3.11:
#
#                             ONNX Runtime  OpenVINO  tract
#     open batch, broadcast   right         refused   right
#     open batch, Expand      right         right     refused
#     batch of 2, broadcast   right         right     right
#
# Exits 0 while it is so, with another number when it has changed or the installation fails. PYTHON chooses the interpreter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"

"$python" -m pip install --quiet --disable-pip-version-check \
    openvino==2026.4.1 tract==0.23.9 onnxruntime==1.32.0 onnx==1.23.2

cd "$folder"
"$python" -W ignore - <<'PYTHON_END'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
import tract
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
x, w = rng.normal(size=(2, 4)).astype(np.float32), rng.normal(size=(3, 4, 5)).astype(np.float32)


def save(batch, expand):
    nodes = [helper.make_node("MatMul", ["rows" if expand else "x", "W"], ["y"])]
    fixed = [numpy_helper.from_array(w, "W")]
    if expand:
        nodes.insert(0, helper.make_node("Expand", ["x", "shape"], ["rows"]))
        fixed.append(numpy_helper.from_array(np.array([3, 1, 1]), "shape"))
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, batch, 5])]
    graph = helper.make_graph(nodes, "g", given, out, fixed)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, "model.onnx")


def by_openvino():
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model("model.onnx"), "CPU", exact)(x)[0]


RUNTIMES = [
    lambda: onnxruntime.InferenceSession("model.onnx").run(None, {"x": x})[0],
    by_openvino,
    lambda: tract.onnx().load("model.onnx").into_model().into_runnable().run([x])[0].to_numpy(),
]


def outcome(run):
    try:
        found = run()
    except Exception:  # each has its own type
        return "refused"
    return "right" if np.allclose(found, x @ w, atol=1e-5) else "wrong"


CASES = {
    "open batch, broadcast": ("batch", False, ["right", "refused", "right"]),
    "open batch, Expand": ("batch", True, ["right", "right", "refused"]),
    "batch of 2, broadcast": (2, False, ["right", "right", "right"]),
}
print(f"{'':24}ONNX Runtime  OpenVINO  tract")
holds = True
for name, (batch, expand, seen) in CASES.items():
    save(batch, expand)
    found = [outcome(run) for run in RUNTIMES]
    print(f"{name:24}{found[0]:14}{found[1]:10}{found[2]}")
    holds &= found == seen
sys.exit(0 if holds else 3)
PYTHON_END
