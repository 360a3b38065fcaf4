"""A jax function of one array as an ONNX graph.

The function is traced once with a symbolic number of rows; each equation of its jaxpr becomes ONNX nodes by
the table in `primitives`. What depends on no input is computed here and now and stored as a constant, so that
weights arrive transposed as the products need them. What no output needs is left out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax.export import symbolic_shape
from jax.extend.core import ClosedJaxpr, Literal
from onnx import TensorProto, helper, numpy_helper

from qscape.errors import UsageError
from qscape.export.control import CONTROL
from qscape.export.primitives import CALLS, TABLE
from qscape.export.values import Value, element_type, same_shape

OPSET = 18
IR = 8  # the format that opset 18 came with: the oldest readers can still read it
RANDOM = ("random_bits", "threefry2x32", "random_wrap", "random_fold_in", "random_split", "random_seed")


def to_onnx(
    function: Callable[[jax.Array], jax.Array], size: int, metadata: dict[str, str], name: str = "policy"
) -> onnx.ModelProto:
    """The model of `function`, from "observation" float32 [batch, size] to "action" [batch, ...].

    Args:
        metadata: notes that the file carries.

    Raises:
        UsageError: the function does something this file has no ONNX nodes for.
    """
    (batch,) = symbolic_shape("batch")
    try:
        traced = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, size), jnp.float32))
    except (TypeError, ValueError) as problem:
        raise UsageError(
            f"this policy's code asks for the number of rows, which a file leaves open ({problem})."
        ) from problem
    graph = Graph(batch)
    (result,) = graph.run(traced, [Value("observation", (batch, size))])
    (aval,) = traced.out_avals
    graph.node("Identity", [graph.whole(result, aval)], out="action")
    dims = lambda shape: ["batch" if d is batch or str(d) == "batch" else int(d) for d in shape]  # noqa: E731
    made = helper.make_graph(
        graph.nodes,
        name,
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", size])],
        [helper.make_tensor_value_info("action", element_type(aval.dtype), dims(aval.shape))],
        graph.constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    model.producer_name = "qscape"
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


class Graph:
    """Nodes and constants while a jaxpr is walked."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.count = 0

    # --- walking the jaxpr ------------------------------------------------------------------------

    def run(self, closed: ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a jaxpr; an input or output that is no `Value` is a constant array."""
        jaxpr = closed.jaxpr
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        known |= dict(zip(jaxpr.invars, inputs, strict=True))
        for equation in _needed_equations(jaxpr):
            given = [v.val if isinstance(v, Literal) else known[v] for v in equation.invars]
            known |= dict(zip(equation.outvars, self._equation(equation, given), strict=True))
        return [v.val if isinstance(v, Literal) else known[v] for v in jaxpr.outvars]

    def _equation(self, equation: Any, given: list[Any]) -> list[Any]:
        primitive, params = equation.primitive.name, equation.params
        if primitive in CALLS:
            inner = next(params[name] for name in ("jaxpr", "call_jaxpr", "call") if name in params)
            closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            return self.run(closed, given)
        static = all(isinstance(d, int) for v in equation.outvars for d in v.aval.shape)
        if static and primitive != "dim_as_value" and not any(isinstance(x, Value) for x in given):
            found = equation.primitive.bind(*given, **params)
            return list(found) if equation.primitive.multiple_results else [found]
        if primitive in CONTROL:
            return CONTROL[primitive](self, equation, given)
        if primitive in RANDOM:
            raise UsageError(
                "this policy draws at random when it acts, which a file cannot; export one that does not."
            )
        if primitive not in TABLE:
            raise UsageError(f"this policy computes '{primitive}', which qscape cannot write as ONNX.")
        found = TABLE[primitive](self, equation, given)
        return found if isinstance(found, list) else [found]

    # --- what the table builds with ---------------------------------------------------------------

    def node(self, op: str, inputs: list[str], out: str | None = None, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        self.count += 1
        out = out or f"x{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [out], name=f"{op}_{self.count}", **attributes))
        return out

    def constant(self, array: Any) -> str:
        """The name of a constant; equal ones are stored once."""
        if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            raise UsageError("this policy needs a random key when it acts, which a file cannot hold.")
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"c{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(np.array(array), self._known[key]))
        return self._known[key]

    def loose(self, x: Any) -> Value:
        """x as a value that may still lack a broadcast."""
        return x if isinstance(x, Value) else Value(self.constant(x), np.shape(x))

    def whole(self, x: Any, aval: Any) -> str:
        """The name of x in the full shape of its aval."""
        value = self.loose(x)
        if same_shape(value.shape, aval.shape):
            return value.name
        return self.node("Expand", [value.name, self.shape(aval.shape)])

    def shape(self, dims: Sequence[Any]) -> str:
        """The name of a shape as a tensor; at most the batch in it is symbolic."""
        if all(isinstance(d, int) for d in dims):
            return self.constant(np.array(dims, np.int64))
        parts = [self.constant(np.array([d], np.int64)) if isinstance(d, int) else self.rows(d) for d in dims]
        return self.node("Concat", parts, axis=0)

    def rows(self, dim: Any) -> str:
        """The batch size as a tensor [1]."""
        if str(dim) != str(self.batch):
            raise UsageError(f"this policy makes an array of {dim} rows, which qscape cannot write as ONNX.")
        return self.node("Shape", ["observation"], start=0, end=1)

    def reshape(self, name: str, shape: Sequence[Any]) -> str:
        """`name` in a shape of which at most one dimension is symbolic."""
        dims = [d if isinstance(d, int) else -1 for d in shape]
        if dims.count(-1) > 1:
            raise UsageError(f"this policy makes an array of shape {shape}, which ONNX cannot write.")
        return self.node("Reshape", [name, self.constant(np.array(dims, np.int64))])


def _needed_equations(jaxpr: Any) -> list[Any]:
    """The equations that the outputs depend on."""
    wanted = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars):
            kept.append(equation)
            wanted.update(v for v in equation.invars if not isinstance(v, Literal))
    return kept[::-1]
