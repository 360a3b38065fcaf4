"""Ways to say to XLA that an array may be overwritten.

XLA writes a new array over an old one only if every reader of the old one comes first, and it believes only
data: an operation comes after another if it is computed from it. Without that it copies the array, at every
update.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

T = TypeVar("T")


def zero_after(tree: PyTree) -> Int[Array, ""]:
    """Return 0, computed from a number of every array; what is computed with it comes after all of them.

    1 if one of these numbers is NaN. (A plain 0 would be folded away.)
    """
    number = sum(x.ravel()[0].astype(jnp.float32) for x in jax.tree.leaves(tree))
    return jnp.where(number == number, 0, 1)


def replace_if(due: Bool[Array, ""], new: Callable[[T], T], old: T) -> T:
    """Return `new(old)` if that is due, else `old`; `jax.lax.cond` copies what an untaken branch
    passes on.
    """
    return jax.lax.fori_loop(0, due.astype(jnp.int32), lambda _, value: new(value), old)
