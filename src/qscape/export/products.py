"""Primitives that ONNX has in another form: general products, indexing and sorting."""

from math import prod
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode
from onnx import TensorProto, helper

from qscape.errors import Unexportable
from qscape.export.graph import Graph
from qscape.export.values import GraphArray, same_shape


def convert_dot_general(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    """Convert to a MatMul of [batch..., free..., contracted] and [batch..., contracted, free].

    Several dimensions of a kind are merged into one first if MatMul does not take them.
    """
    ((left, right), (left_batch, right_batch)) = equation.params["dimension_numbers"]
    a, b = (v.aval for v in equation.invars)
    out = equation.outvars[0].aval
    free = [k for k in range(len(b.shape)) if k not in (*right, *right_batch)]
    outer = [k for k in range(len(a.shape)) if k not in (*left, *left_batch)]
    x = _permute(graph, given[0], a, [*left_batch, *outer, *left])
    y = _permute(graph, given[1], b, [*right_batch, *right, *free])
    if len(left) == 1 and len(free) <= 1 and (not left_batch or len(outer) == len(free) == 1):
        return GraphArray(graph.node("MatMul", [x, y]), out.shape)
    batch = [a.shape[k] for k in left_batch]
    inner = prod(a.shape[k] for k in left)
    x = graph.reshape(x, [*batch, prod(a.shape[k] for k in outer), inner])
    y = graph.reshape(y, [*batch, inner, prod(b.shape[k] for k in free)])
    return GraphArray(graph.reshape(graph.node("MatMul", [x, y]), out.shape), out.shape)


def _permute(graph: Graph, value: Any, aval: Any, order: list[int]) -> str:
    """Return the name of a value with its axes in another order; a constant is stored in that order.

    OpenVINO 2026.4.1 takes the transposed one for both where a square constant is used in both orders
    (findings/openvino_constant_in_two_orders.sh).
    """
    if order == sorted(order):
        return graph.whole(value, aval)
    if not isinstance(value, GraphArray) and same_shape(np.shape(value), aval.shape):
        return graph.constant(np.transpose(value, order))
    return graph.node("Transpose", [graph.whole(value, aval)], perm=order)


def convert_gather(graph: Graph, equation: Any, given: list[Any]) -> GraphArray:
    """Convert indexing: one entry of an axis by a constant index (Gather), or computed indices (GatherND)."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    operand, indices = (v.aval for v in equation.invars)
    out, picked, fixed = equation.outvars[0].aval, numbers.start_index_map, numbers.operand_batching_dims
    whole = [k for k in range(len(operand.shape)) if k not in (*picked, *fixed)]
    if any(sizes[k] != 1 for k in picked) or not same_shape(
        [sizes[k] for k in whole], [operand.shape[k] for k in whole]
    ):
        raise Unexportable("this policy picks entries in a way that qscape cannot write as ONNX.")
    at = given[1]
    if not isinstance(at, GraphArray) and equation.params["mode"] == GatherScatterMode.CLIP:
        at = np.clip(np.asarray(at), 0, [operand.shape[k] - 1 for k in picked])
    if not isinstance(at, GraphArray) and np.size(at) == 1 and not fixed:
        index = graph.constant(np.array(int(np.asarray(at).item()), np.int64))
        entry = graph.node("Gather", [graph.whole(given[0], operand), index], axis=picked[0])
        return GraphArray(graph.reshape(entry, out.shape), out.shape)
    batch = list(numbers.start_indices_batching_dims)
    order = [*batch, *(k for k in range(len(indices.shape) - 1) if k not in batch)]  # batch first
    name = _permute(graph, given[0], operand, [*fixed, *picked, *whole])
    rows = _permute(graph, at, indices, [*order, len(indices.shape) - 1])
    gathered = graph.node(
        "GatherND", [name, graph.node("Cast", [rows], to=TensorProto.INT64)], batch_dims=len(fixed)
    )
    # GatherND puts the axes of the indices first, and jax puts the whole axes where `offset_dims` says.
    kept = [k for k in range(len(operand.shape)) if k not in (*numbers.collapsed_slice_dims, *fixed)]
    of_axis = dict(zip(numbers.offset_dims, kept, strict=True))
    single = [axis for axis, k in of_axis.items() if k in picked]  # picked axes that stay, of size 1
    at_indices = iter(np.argsort(order).tolist())
    back = [
        len(order) + whole.index(of_axis[axis]) if axis in of_axis else next(at_indices)
        for axis in range(len(out.shape))
        if axis not in single
    ]
    moved = gathered if back == sorted(back) else graph.node("Transpose", [gathered], perm=back)
    return GraphArray(graph.reshape(moved, out.shape) if single else moved, out.shape)


def convert_top_k(graph: Graph, equation: Any, given: list[Any]) -> list[GraphArray]:
    """Convert `top_k`: the k largest along an axis and their indices; of equals the first, as in jax."""
    name = graph.whole(given[0], equation.invars[0].aval)
    values, at = _add_top_k(graph, name, equation.params["k"], equation.params.get("axis", -1), largest=1)
    places, where = equation.outvars[1].aval, graph.node("Cast", [at], to=TensorProto.INT32)
    return [GraphArray(values, equation.outvars[0].aval.shape), GraphArray(where, places.shape)]


def convert_sort(graph: Graph, equation: Any, given: list[Any]) -> list[GraphArray]:
    """Convert an ascending sort by the first operand; the other operands are permuted along."""
    avals, axis = [v.aval for v in equation.invars], equation.params["dimension"]
    size = avals[0].shape[axis]
    if equation.params["num_keys"] != 1 or not isinstance(size, int):
        raise Unexportable("this policy sorts in a way that qscape cannot write as ONNX.")
    key, *others = (graph.whole(x, aval) for x, aval in zip(given, avals, strict=True))
    ranked, at = _add_top_k(graph, key, size, axis, largest=0)
    moved = [graph.node("GatherElements", [other, at], axis=axis) for other in others]
    return [
        GraphArray(name, v.aval.shape) for name, v in zip([ranked, *moved], equation.outvars, strict=True)
    ]


def _add_top_k(graph: Graph, name: str, k: int, axis: int, largest: int) -> tuple[str, str]:
    """Add a node for the k largest or smallest along an axis, in order, and their indices (int64)."""
    graph.count += 1
    outs = [f"t{graph.count}", f"i{graph.count}"]
    size = graph.constant(np.array([k], np.int64))
    made = helper.make_node("TopK", [name, size], outs, f"TopK_{graph.count}", axis=axis, largest=largest)
    graph.nodes.append(made)
    return outs[0], outs[1]
