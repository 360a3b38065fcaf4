"""An ONNX graph that is built from a jaxpr.

Values that depend on no input are computed here and stored as constants, so that weights are stored
transposed, as the matrix products need them. Unused values are dropped.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import helper, numpy_helper

from qscape.errors import Unexportable, WrongVersion
from qscape.export.values import GraphArray, same_shape

try:  # the one file that uses jax.extend
    from jax.extend.core import ClosedJaxpr, Literal  # pyright: ignore[reportPrivateImportUsage]
except ImportError as problem:
    raise WrongVersion(
        f"JAX {jax.__version__} has no ClosedJaxpr and Literal in jax.extend.core, which the export to ONNX "
        "needs: take the JAX that qscape asks for (pip install --upgrade qscape), or write arrays with --npz."
    ) from problem

RANDOM = ("random_bits", "threefry2x32", "random_wrap", "random_fold_in", "random_split", "random_seed")


class Graph:
    """Nodes and constants collected while a jaxpr is walked.

    Args:
        conversions: by primitive, the function (graph, equation, inputs) that adds its nodes and returns its
            outputs.
        calls: primitives that only call another jaxpr.

    Attributes:
        batch: the symbolic batch size.
        nodes: the ONNX nodes.
        constants: the ONNX initialisers.
        count: counter for unique names.
    """

    def __init__(
        self, batch: Any, conversions: Mapping[str, Callable[..., Any]], calls: Collection[str]
    ) -> None:
        self.batch, self.conversions, self.calls = batch, conversions, calls
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.count = 0

    # --- walking the jaxpr ------------------------------------------------------------------------

    def run(self, closed: ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
        """Convert a jaxpr and return its outputs. What is no `GraphArray`, in or out, is a constant."""
        jaxpr = closed.jaxpr
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        known |= dict(zip(jaxpr.invars, inputs, strict=True))
        for equation in _needed_equations(jaxpr):
            given = [v.val if isinstance(v, Literal) else known[v] for v in equation.invars]
            known |= dict(zip(equation.outvars, self._equation(equation, given), strict=True))
        return [v.val if isinstance(v, Literal) else known[v] for v in jaxpr.outvars]

    def _equation(self, equation: Any, given: list[Any]) -> list[Any]:
        primitive, params = equation.primitive.name, equation.params
        if primitive in self.calls:
            inner = next(params[name] for name in ("jaxpr", "call_jaxpr", "call") if name in params)
            closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            return self.run(closed, given)
        static = all(isinstance(d, int) for v in equation.outvars for d in v.aval.shape)
        if static and primitive != "dim_as_value" and not any(isinstance(x, GraphArray) for x in given):
            outputs = equation.primitive.bind(*given, **params)
            return list(outputs) if equation.primitive.multiple_results else [outputs]
        if primitive in RANDOM:
            raise Unexportable(
                "this policy samples its actions, which a file cannot do; export a deterministic one."
            )
        if primitive not in self.conversions:
            raise Unexportable(f"this policy computes '{primitive}', which qscape cannot write as ONNX.")
        outputs = self.conversions[primitive](self, equation, given)
        return outputs if isinstance(outputs, list) else [outputs]

    # --- used by the conversions ------------------------------------------------------------------

    def node(self, op: str, inputs: list[str], out: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        self.count += 1
        out = out or f"x{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [out], name=f"{op}_{self.count}", **attributes))
        return out

    def constant(self, array: Any) -> str:
        """Return the name of a constant; equal constants are stored once."""
        if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            raise Unexportable("this policy needs a random key when it acts, which a file cannot hold.")
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"c{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(np.array(array), self._known[key]))
        return self._known[key]

    def loose(self, x: Any) -> GraphArray:
        """Return x as a `GraphArray`, which may still lack a broadcast."""
        return x if isinstance(x, GraphArray) else GraphArray(self.constant(x), np.shape(x))

    def whole(self, x: Any, aval: Any) -> str:
        """Return the name of x, broadcast to the full shape of its aval."""
        value = self.loose(x)
        if same_shape(value.shape, aval.shape):
            return value.name
        return self.node("Expand", [value.name, self.shape(aval.shape)])

    def shape(self, dims: Sequence[Any]) -> str:
        """Return the name of a shape as a tensor; the batch may be symbolic."""
        if all(isinstance(d, int) for d in dims):
            return self.constant(np.array(dims, np.int64))
        parts = [self.constant(np.array([d], np.int64)) if isinstance(d, int) else self.rows(d) for d in dims]
        return self.node("Concat", parts, axis=0)

    def rows(self, dim: Any) -> str:
        """Return the name of the batch size as a tensor [1]."""
        if str(dim) != str(self.batch):
            raise Unexportable(
                f"this policy makes an array of {dim} rows, which qscape cannot write as ONNX."
            )
        return self.node("Shape", ["observation"], start=0, end=1)

    def reshape(self, name: str, shape: Sequence[Any]) -> str:
        """Reshape `name`; at most one dimension of `shape` may be symbolic."""
        dims = [d if isinstance(d, int) else -1 for d in shape]
        if dims.count(-1) > 1:
            raise Unexportable(f"this policy makes an array of shape {shape}, which ONNX cannot write.")
        return self.node("Reshape", [name, self.constant(np.array(dims, np.int64))])


def _needed_equations(jaxpr: Any) -> list[Any]:
    """Select the equations that the outputs depend on."""
    wanted = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars):
            kept.append(equation)
            wanted.update(v for v in equation.invars if not isinstance(v, Literal))
    return kept[::-1]
