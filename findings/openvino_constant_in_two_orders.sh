#!/usr/bin/env bash
# OpenVINO 2026.4.1: a square constant that a model multiplies by both as it is and transposed is transposed in both.
#
# A layer and its derivative, or tied weights, give an ONNX model with x·Wᵀ and x·W of one initialiser W. If W is square, the
# CPU plugin computes x·Wᵀ for both, without a word, whichever node comes first, and with Transpose and MatMul as with Gemm's
# transB. With two initialisers of equal numbers both products are right, and so they are in ONNX Runtime.
#
# Seen with openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2, Python 3.11. W is [4, 4], two outputs, largest errors:
#
#     ONNX Runtime:              x·Wᵀ 0.0, x·W 0.0
#     OpenVINO:                  x·Wᵀ 0.0, x·W 3.3; its x·W equals x·Wᵀ: True
#     OpenVINO, W stored twice:  x·Wᵀ 0.0, x·W 0.0
#
# Exits 0 while it is so, with another number when it has changed or the installation fails. PYTHON chooses the interpreter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"

"$python" -m pip install --quiet --disable-pip-version-check openvino==2026.4.1 onnxruntime==1.32.0 onnx==1.23.2

"$python" -W ignore - <<'PYTHON_END'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
x, w = rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=(4, 4)).astype(np.float32)
wanted = (x @ w.T, x @ w)


def build(second):
    """The two products; `second` is the initialiser of x·W."""
    nodes = [
        helper.make_node("Transpose", ["W"], ["Wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "Wt"], ["transposed"]),
        helper.make_node("MatMul", ["x", second], ["plain"]),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]
    out = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in ("transposed", "plain")]
    names = dict.fromkeys(["W", second])
    graph = helper.make_graph(nodes, "g", given, out, [numpy_helper.from_array(w, n) for n in names])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def by_openvino(model):
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # elsewhere products may be of bfloat16
    found = core.compile_model(core.read_model(model), "CPU", exact)(x)
    return found[0], found[1]


def errors(found):
    return [float(np.abs(a - b).max()) for a, b in zip(found, wanted)]


right = errors(onnxruntime.InferenceSession(build("W")).run(None, {"x": x}))
found = by_openvino(build("W"))
twice = errors(by_openvino(build("V")))
print(f"ONNX Runtime:              x·Wᵀ {right[0]:.1f}, x·W {right[1]:.1f}")
same = np.allclose(found[1], wanted[0], atol=1e-5)
print(f"OpenVINO:                  x·Wᵀ {errors(found)[0]:.1f}, x·W {errors(found)[1]:.1f}; its x·W equals x·Wᵀ: {same}")
print(f"OpenVINO, W stored twice:  x·Wᵀ {twice[0]:.1f}, x·W {twice[1]:.1f}")
holds = max(right) < 1e-5 and errors(found)[0] < 1e-5 and same and max(twice) < 1e-5
sys.exit(0 if holds else 3)
PYTHON_END
