"""Convert a jax function of one array to an ONNX model.

The function is traced once with a symbolic batch size. Each equation of its jaxpr becomes ONNX nodes by the
tables in `primitives` and `control`.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import onnx
from jax.export import symbolic_shape
from onnx import TensorProto, helper

from qscape.errors import Unexportable, describe
from qscape.export.control import CONTROL
from qscape.export.graph import Graph
from qscape.export.primitives import CALLS, TABLE
from qscape.export.values import GraphArray, element_type

OPSET = 18
IR = 8  # the IR version of opset 18's first release, for old runtimes


def to_onnx(
    function: Callable[..., jax.Array],
    size: int,
    metadata: dict[str, str],
    name: str = "policy",
    actions: int | None = None,
    memory: int | None = None,
) -> onnx.ModelProto:
    """Convert `function`, from "observation" float32 [batch, size] to "action" [batch, ...].

    With a memory, two arguments follow the observation, "memory" float32 [batch, memory] and "start" bool
    [batch, 1], and the function returns the next memory too, "next_memory".

    Args:
        function: a jax function of a batch of observations.
        size: length of an observation.
        metadata: strings stored in the file.
        name: name of the graph.
        memory: length of a memory; None: there is none.
        actions: length of a further argument "action_mask", bool [batch, actions]; None: there is none.

    Raises:
        UsageError: the function uses an operation without a conversion to ONNX.
    """
    (batch,) = symbolic_shape("batch")
    inputs = {"observation": (size, jnp.float32, TensorProto.FLOAT)}
    if memory is not None:
        inputs["memory"] = (memory, jnp.float32, TensorProto.FLOAT)
        inputs["start"] = (1, jnp.bool_, TensorProto.BOOL)
    if actions is not None:
        inputs["action_mask"] = (actions, jnp.bool_, TensorProto.BOOL)
    try:
        traced = jax.make_jaxpr(function)(
            *(jax.ShapeDtypeStruct((batch, width), dtype) for width, dtype, _ in inputs.values())
        )
    except (TypeError, ValueError) as problem:
        raise Unexportable(
            f"this policy's code needs the batch size, which an ONNX file leaves open ({problem})."
        ) from problem
    graph = Graph(batch, TABLE | CONTROL, CALLS)
    results = graph.run(traced, [GraphArray(name, (batch, width)) for name, (width, *_) in inputs.items()])
    avals = cast(Sequence[Any], traced.out_avals)
    outputs = dict(zip(("action", "next_memory"), zip(results, avals, strict=True), strict=False))
    for out, (result, aval) in outputs.items():
        graph.node("Identity", [graph.whole(result, aval)], out=out)
    dims = lambda shape: ["batch" if d is batch or str(d) == "batch" else int(d) for d in shape]  # noqa: E731
    made = helper.make_graph(
        graph.nodes,
        name,
        [
            helper.make_tensor_value_info(given, kind, ["batch", width])
            for given, (width, _, kind) in inputs.items()
        ],
        [
            helper.make_tensor_value_info(out, element_type(aval.dtype), dims(aval.shape))
            for out, (_, aval) in outputs.items()
        ],
        graph.constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    model.producer_name = "qscape"
    helper.set_model_props(model, metadata)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise Unexportable(f"this policy becomes no valid ONNX file ({describe(problem)}).") from problem
    return model
