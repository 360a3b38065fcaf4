"""Calls from within a compiled program to Python: the one file that uses JAX's two experimental callbacks.

Where this JAX has not the one that is needed, the host makes every step: `missing` says so.
"""

import contextlib
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array

io_callback: Any = None
buffer_callback: Any = None
with contextlib.suppress(ImportError):
    from jax.experimental import io_callback
with contextlib.suppress(ImportError):
    from jax.experimental.buffer_callback import buffer_callback

Answer: TypeAlias = tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]


def missing() -> str | None:
    """Return a sentence on what this JAX lacks for the program that calls environments; None: nothing."""
    on_cpu = jax.default_backend() == "cpu"
    if (buffer_callback if on_cpu else io_callback) is not None:
        return None
    name = "buffer_callback.buffer_callback" if on_cpu else "io_callback"
    return f"JAX {jax.__version__} has no jax.experimental.{name}: the host makes every step, which is slower"


def call_environments(environments: Callable[..., None], answer: Answer) -> Callable[[Array], Any]:
    """Return the call of the environments for a compiled program: it takes an action and returns an answer.

    Args:
        environments: takes arrays to write its answer into, and an action.
        answer: shapes and types of the answer.
    """
    on_cpu = jax.default_backend() == "cpu"
    return _ask_in_place(environments, answer) if on_cpu else _ask_by_copies(environments, answer)


def _ask_in_place(environments: Callable[..., None], answer: Answer) -> Callable[[Array], Any]:
    """Return the call of the environments on a CPU: they write into the memory of the program."""

    def call(_: object, out: tuple[object, object], action: object) -> None:
        # XLA reuses the memory of the arrays, so the environment gets a copy of the action.
        environments(np.asarray(out[0]), np.asarray(out[1]), np.asarray(action).copy())

    return buffer_callback(call, answer, has_side_effect=True)


def _ask_by_copies(environments: Callable[..., None], answer: Answer) -> Callable[[Array], Any]:
    """Return the call of the environments on an accelerator: their answer is copied to it."""

    def call(action: Array) -> tuple[np.ndarray, ...]:
        out = tuple(np.empty(one.shape, one.dtype) for one in answer)
        environments(*out, np.asarray(action))
        return out

    return lambda action: io_callback(call, answer, action)
