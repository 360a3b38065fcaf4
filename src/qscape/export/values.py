"""An array in an ONNX graph under construction."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import helper


class GraphArray(NamedTuple):
    """An array in the graph.

    Attributes:
        name: its name in the graph.
        shape: integers and symbolic dimensions. It may lack a broadcast, which elementwise nodes do
            themselves.
    """

    name: str
    shape: tuple[Any, ...]  # integers, and symbolic dimensions


def same_shape(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are equal, symbolic dimensions included."""
    return len(a) == len(b) and all(str(x) == str(y) for x, y in zip(a, b, strict=True))


def element_type(dtype: Any) -> int:
    """ONNX's number for a dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def broadcast_shape(values: list[GraphArray]) -> tuple[Any, ...]:
    """Broadcast shapes by numpy's rules; a symbolic dimension wins over 1."""
    rank = max(len(v.shape) for v in values)
    padded = [(1,) * (rank - len(v.shape)) + tuple(v.shape) for v in values]
    return tuple(next((d for d in dims if str(d) != "1"), 1) for dims in zip(*padded, strict=True))
