#!/usr/bin/env bash
# OpenVINO 2026.4.1 and tract 0.23.9: NaN in an ONNX model becomes an ordinary number, where ONNX Runtime keeps it.
#
# Both compute Relu, Max, Min and Clip of NaN as the bound. tract's Tanh and Sigmoid of NaN are the least value of their
# range. OpenVINO's Max keeps NaN if it is the second operand, and its Exp of NaN is infinite. A network with ReLU therefore answers a broken
# sensor with an action that looks like any other. ONNX does not say what these operators do with NaN; its own reference keeps it.
#
# Seen with openvino 2026.4.1, tract 0.23.9, onnxruntime 1.32.0, onnx 1.23.2, Python 3.11:
#
#     of NaN       reference  ONNX Runtime  OpenVINO     tract
#     Relu               nan           nan      0.00      0.00
#     Max(x, 0)          nan           nan      0.00      0.00
#     Max(0, x)          nan           nan       nan      0.00
#     Min(x, 1)          nan           nan      1.00      1.00
#     Clip               nan           nan      0.00      0.00
#     Tanh               nan           nan       nan     -1.00
#     Sigmoid            nan           nan       nan      0.00
#     Exp                nan           nan       inf       nan
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
from onnx.reference import ReferenceEvaluator

onnxruntime.set_default_logger_severity(3)
# NaN stands between numbers, so that code for several numbers at once is used.
x = np.array([[0.5, -2.0, np.nan, 1.0, 3.0, -1.0, 0.0, 2.0]], np.float32)
CASES = {
    "Relu": ("Relu", ["x"]),
    "Max(x, 0)": ("Max", ["x", "zero"]),
    "Max(0, x)": ("Max", ["zero", "x"]),
    "Min(x, 1)": ("Min", ["x", "one"]),
    "Clip": ("Clip", ["x", "zero", "one"]),
    "Tanh": ("Tanh", ["x"]),
    "Sigmoid": ("Sigmoid", ["x"]),
    "Exp": ("Exp", ["x"]),
}
SEEN = {  # OpenVINO, tract
    "Relu": (0, 0),
    "Max(x, 0)": (0, 0),
    "Max(0, x)": (np.nan, 0),
    "Min(x, 1)": (1, 1),
    "Clip": (0, 0),
    "Tanh": (np.nan, -1),
    "Sigmoid": (np.nan, 0),
    "Exp": (np.inf, np.nan),
}
print("of NaN       reference  ONNX Runtime  OpenVINO     tract")
holds = True
for name, (op, inputs) in CASES.items():
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 8]) for n in ("x", "y")]
    fixed = [
        numpy_helper.from_array(np.float32(value), n) for n, value in (("zero", 0), ("one", 1)) if n in inputs
    ]
    graph = helper.make_graph([helper.make_node(op, inputs, ["y"])], "g", info[:1], info[1:], fixed)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, "model.onnx")
    core = openvino.Core()
    found = [
        ReferenceEvaluator(model).run(None, {"x": x})[0],
        onnxruntime.InferenceSession("model.onnx").run(None, {"x": x})[0],
        core.compile_model(core.read_model("model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0],
        tract.onnx().load("model.onnx").into_model().into_runnable().run([x])[0].to_numpy(),
    ]
    at = [float(y[0, 2]) for y in found]
    print(f"{name:10} {at[0]:11.2f} {at[1]:13.2f} {at[2]:9.2f} {at[3]:9.2f}")
    others = np.delete(np.concatenate(found), 2, axis=1)  # of all other numbers they say the same
    holds &= bool(np.allclose(others, others[0], atol=1e-4))
    holds &= bool(np.allclose(at, (np.nan, np.nan, *SEEN[name]), atol=1e-4, equal_nan=True))
sys.exit(0 if holds else 3)
PYTHON_END
