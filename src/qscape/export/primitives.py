"""The conversions of jax primitives to ONNX nodes: (graph, equation, inputs) -> output."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import lax

from qscape.errors import Unexportable
from qscape.export import products
from qscape.export.graph import Graph
from qscape.export.values import GraphArray, broadcast_shape, element_type


def _elementwise(op: str, **attributes: Any) -> Callable[..., GraphArray]:
    """Make the conversion to an ONNX node that broadcasts its inputs as numpy does."""

    def build(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
        values = [graph.loose(x) for x in given]
        return GraphArray(graph.node(op, [v.name for v in values], **attributes), broadcast_shape(values))

    return build


def _cast(graph: Graph, x: GraphArray, dtype: Any) -> GraphArray:
    return GraphArray(graph.node("Cast", [x.name], to=element_type(dtype)), x.shape)


def _convert(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    return _cast(graph, graph.loose(given[0]), equation.params["new_dtype"])


def _with_one(op: str, before: str | None = None, after: str | None = None) -> Callable[..., GraphArray]:
    """Make the conversion of expm1 or log1p, which ONNX lacks: a function, and adding or subtracting one.

    In float32 the absolute error stays below 1e-7.
    """

    def build(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
        x = graph.loose(given[0])
        one = graph.constant(np.ones((), equation.invars[0].aval.dtype))
        name = graph.node(before, [x.name, one]) if before else x.name
        name = graph.node(op, [name])
        return GraphArray(graph.node(after, [name, one]) if after else name, x.shape)

    return build


def _integer_pow(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    x, y = graph.loose(given[0]), equation.params["y"]
    if y == 2:
        return GraphArray(graph.node("Mul", [x.name, x.name]), x.shape)
    power = graph.constant(np.array(y, equation.invars[0].aval.dtype))
    return GraphArray(graph.node("Pow", [x.name, power]), x.shape)


def _square(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    x = graph.loose(given[0])
    return GraphArray(graph.node("Mul", [x.name, x.name]), x.shape)


def _rsqrt(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    x = graph.loose(given[0])
    return GraphArray(graph.node("Reciprocal", [graph.node("Sqrt", [x.name])]), x.shape)


def _not_equal(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    equal = _elementwise("Equal")(graph, equation, given)
    return GraphArray(graph.node("Not", [equal.name]), equal.shape)


def _round(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    if equation.params["rounding_method"] != lax.RoundingMethod.TO_NEAREST_EVEN:
        raise Unexportable("this policy rounds halves away from zero, which ONNX does not.")
    return _elementwise("Round")(graph, equation, given)


def _select(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    if len(given) != 3:
        raise Unexportable("this policy chooses among more than two arrays, which ONNX does not.")
    which, no, yes = (graph.loose(x) for x in given)
    if equation.invars[0].aval.dtype != np.bool_:
        which = _cast(graph, which, np.bool_)
    return GraphArray(graph.node("Where", [which.name, yes.name, no.name]), broadcast_shape([which, no, yes]))


def _clamp(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    low, x, high = (graph.loose(v) for v in given)
    raised = GraphArray(graph.node("Max", [x.name, low.name]), broadcast_shape([x, low]))
    return GraphArray(graph.node("Min", [raised.name, high.name]), broadcast_shape([raised, high]))


def _broadcast_in_dim(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    """Insert dimensions of size one; the node that needs the full shape repeats them."""
    shape, at = equation.params["shape"], equation.params["broadcast_dimensions"]
    x = graph.loose(given[0])
    if len(x.shape) != len(at):  # a scalar, or a value that lacks leading dimensions
        x = GraphArray(graph.whole(x, equation.invars[0].aval), equation.invars[0].aval.shape)
    if not x.shape:
        return x
    spread = [1] * len(shape)
    for d, target in zip(x.shape, at, strict=True):
        spread[target] = d
    missing = [k for k in range(len(shape)) if k not in at]
    if not missing:
        return GraphArray(x.name, tuple(spread))
    axes = graph.constant(np.array(missing, np.int64))
    return GraphArray(graph.node("Unsqueeze", [x.name, axes]), tuple(spread))


def _reshape(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    name, shape = graph.whole(given[0], equation.invars[0].aval), equation.outvars[0].aval.shape
    return GraphArray(graph.reshape(name, shape), shape)


def _transpose(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    name = graph.whole(given[0], equation.invars[0].aval)
    permutation = list(equation.params["permutation"])
    return GraphArray(graph.node("Transpose", [name], perm=permutation), equation.outvars[0].aval.shape)


def _concatenate(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    names = [graph.whole(x, v.aval) for x, v in zip(given, equation.invars, strict=True)]
    joined = graph.node("Concat", names, axis=equation.params["dimension"])
    return GraphArray(joined, equation.outvars[0].aval.shape)


def _stack(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    axis = graph.constant(np.array([equation.params["axis"]], np.int64))
    names = [graph.whole(x, v.aval) for x, v in zip(given, equation.invars, strict=True)]
    rows = [graph.node("Unsqueeze", [name, axis]) for name in names]
    return GraphArray(
        graph.node("Concat", rows, axis=equation.params["axis"]), equation.outvars[0].aval.shape
    )


def _split(graph: Graph, equation: Any, given: list[Any]) -> list[GraphArray]:
    name, axis = graph.whole(given[0], equation.invars[0].aval), equation.params["axis"]
    ends = np.cumsum([0, *equation.params["sizes"]])
    at = graph.constant(np.array([axis], np.int64))
    return [
        GraphArray(
            graph.node("Slice", [name, *(graph.constant(np.array([k], np.int64)) for k in cut), at]),
            v.aval.shape,
        )
        for *cut, v in zip(ends[:-1], ends[1:], equation.outvars, strict=True)
    ]


def _slice(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    aval = equation.invars[0].aval
    starts, stops = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(starts)
    cut = [
        k
        for k, (a, b, s, d) in enumerate(zip(starts, stops, steps, aval.shape, strict=True))
        if (a, s) != (0, 1) or str(b) != str(d)
    ]
    if any(not isinstance(x, int) for k in cut for x in (starts[k], stops[k])):
        raise Unexportable("this policy cuts its rows apart, which qscape cannot write as ONNX.")
    parts = [graph.constant(np.array([row[k] for k in cut], np.int64)) for row in (starts, stops)]
    parts += [graph.constant(np.array(cut, np.int64))]
    parts += [graph.constant(np.array([steps[k] for k in cut], np.int64))]
    name = graph.whole(given[0], aval)
    return GraphArray(graph.node("Slice", [name, *parts]), equation.outvars[0].aval.shape)


def _reduce(op: str) -> Callable[..., GraphArray]:
    def build(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
        name = graph.whole(given[0], equation.invars[0].aval)
        axes = graph.constant(np.array(equation.params["axes"], np.int64))
        return GraphArray(graph.node(op, [name, axes], keepdims=0), equation.outvars[0].aval.shape)

    return build


def _reduce_bool(op: str) -> Callable[..., GraphArray]:
    """Reduce booleans as the minimum (all) or maximum (any) of zeros and ones."""

    def build(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
        x = _cast(graph, GraphArray(graph.whole(given[0], equation.invars[0].aval), ()), np.dtype(np.int32))
        axes = graph.constant(np.array(equation.params["axes"], np.int64))
        found = GraphArray(graph.node(op, [x.name, axes], keepdims=0), equation.outvars[0].aval.shape)
        return _cast(graph, found, np.dtype(bool))

    return build


def _arg(op: str) -> Callable[..., GraphArray]:
    def build(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
        name = graph.whole(given[0], equation.invars[0].aval)
        found = graph.node(op, [name], axis=equation.params["axes"][0], keepdims=0)  # the first of equals
        return _cast(graph, GraphArray(found, equation.outvars[0].aval.shape), equation.params["index_dtype"])

    return build


def _iota(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    (size,) = equation.params["shape"] if len(equation.params["shape"]) == 1 else (None,)
    if size is None:
        raise Unexportable("this policy numbers its rows in a way that qscape cannot write as ONNX.")
    zero, one = (graph.constant(np.array(k, np.int64)) for k in (0, 1))
    end = graph.node("Squeeze", [graph.rows(size)])
    numbers = GraphArray(graph.node("Range", [zero, end, one]), (size,))
    return _cast(graph, numbers, equation.params["dtype"])


def _dim_as_value(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    return _cast(
        graph, GraphArray(graph.node("Squeeze", [graph.rows(equation.params["dim"])]), ()), np.dtype(np.int32)
    )


def _same_value(graph: Graph, equation: Any, given: list[Any]) -> Any:
    return given[0]


CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vmap_call",
    "remat2",
    "checkpoint",
)
_ELEMENTWISE = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow",
    "neg": "Neg", "abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "exp": "Exp", "log": "Log",
    "sqrt": "Sqrt", "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf", "sin": "Sin", "cos": "Cos",
    "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
    "and": "And", "or": "Or", "not": "Not",
}  # fmt: skip
TABLE: dict[str, Callable[[Graph, Any, list[Any]], Any]] = {
    **{name: _elementwise(op) for name, op in _ELEMENTWISE.items()},
    "add_any": _elementwise("Add"),
    "expm1": _with_one("Exp", after="Sub"),
    "log1p": _with_one("Log", before="Add"),
    "integer_pow": _integer_pow,
    "square": _square,
    "rsqrt": _rsqrt,
    "ne": _not_equal,
    "round": _round,
    "select_n": _select,
    "clamp": _clamp,
    "convert_element_type": _convert,
    "copy": _same_value,
    "stop_gradient": _same_value,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "slice": _slice,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_and": _reduce_bool("ReduceMin"),
    "reduce_or": _reduce_bool("ReduceMax"),
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "dot_general": products.convert_dot_general,
    "gather": products.convert_gather,
    "top_k": products.convert_top_k,
    "sort": products.convert_sort,
    "iota": _iota,
    "dim_as_value": _dim_as_value,
}
