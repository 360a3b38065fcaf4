"""Primitives that run other jaxprs: branches, and loops of a known length."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from qscape.errors import Unexportable
from qscape.export.graph import Graph
from qscape.export.values import GraphArray, broadcast_shape


def convert_cond(graph: Graph, equation: Any, given: list[Any]) -> list[Any]:
    """Convert `cond`: one branch if the index is constant, else all branches and a selection."""
    which, operands = given[0], given[1:]
    branches = equation.params["branches"]
    if not isinstance(which, GraphArray):
        return graph.run(branches[int(np.clip(which, 0, len(branches) - 1))], operands)
    made = [graph.run(branch, operands) for branch in branches]
    chosen = [graph.loose(x) for x in made[0]]
    for k, outputs in enumerate(made[1:], start=1):
        at = graph.constant(np.array(k, equation.invars[0].aval.dtype))
        later = graph.node("GreaterOrEqual", [which.name, at])
        pairs = zip(chosen, map(graph.loose, outputs), strict=True)
        chosen = [
            GraphArray(graph.node("Where", [later, y.name, x.name]), broadcast_shape([x, y]))
            for x, y in pairs
        ]
    return chosen


def unroll_scan(graph: Graph, equation: Any, given: list[Any]) -> list[Any]:
    """Convert `scan` by unrolling its loop.

    Its inputs are constants, what is carried, and columns, of which the body takes a row. JAX names their
    numbers differently from version to version, so they are counted: only a column loses an axis.
    """
    params, body = equation.params, equation.params["jaxpr"]
    pairs = zip(equation.outvars, body.out_avals, strict=True)
    carried = sum(whole.aval.ndim == row.ndim for whole, row in pairs)
    pairs = zip(equation.invars, body.in_avals, strict=True)
    fixed = sum(whole.aval.ndim == row.ndim for whole, row in pairs) - carried
    consts, carry, columns = given[:fixed], given[fixed : fixed + carried], given[fixed + carried :]
    avals = [v.aval for v in equation.invars[fixed + carried :]]
    collected: list[list[Any]] = []
    if not isinstance(params["length"], int):
        raise Unexportable(
            "this policy loops over the rows of a batch, whose number an ONNX file leaves open."
        )
    steps = range(params["length"])
    for k in reversed(steps) if params["reverse"] else steps:
        rows = [_take_row(graph, x, aval, k) for x, aval in zip(columns, avals, strict=True)]
        outputs = graph.run(body, [*consts, *carry, *rows])
        carry = outputs[:carried]
        collected.append(outputs[carried:])
    collected = collected[::-1] if params["reverse"] else collected
    outs = equation.outvars[carried:]
    return [*carry, *(_stack_rows(graph, [row[j] for row in collected], v.aval) for j, v in enumerate(outs))]


def _take_row(graph: Graph, x: Any, aval: Any, k: int) -> Any:
    if not isinstance(x, GraphArray):
        return jnp.asarray(x)[k]
    at = graph.constant(np.array(k, np.int64))
    return GraphArray(graph.node("Gather", [graph.whole(x, aval), at], axis=0), aval.shape[1:])


def _stack_rows(graph: Graph, rows: list[Any], aval: Any) -> GraphArray:
    axis = graph.constant(np.array([0], np.int64))
    inner = aval.update(shape=aval.shape[1:])
    names = [graph.node("Unsqueeze", [graph.whole(row, inner), axis]) for row in rows]
    return GraphArray(graph.node("Concat", names, axis=0), aval.shape)


CONTROL = {"cond": convert_cond, "scan": unroll_scan}
