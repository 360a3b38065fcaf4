"""The axis of seeds: runs that differ in their seed only share one program.

Every array of such runs has a leading axis of seeds, and the programs are mapped over it by `vmap`. The
counters are the same for all seeds and have no such axis. A mapped program computes what the program of one
seed does, but for rounding: XLA makes other kernels of it, which sum in another order.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from qscape.types import Key


class Seeds:
    """The axis of seeds in the arrays of an engine. One seed has none, and all methods are the identity.

    Attributes:
        numbers: the seeds.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = tuple(numbers)

    @functools.cached_property
    def key(self) -> Key:
        """The key of the run, made from the seed; of several seeds an array of keys."""
        return self.join([jax.random.key(number) for number in self.numbers])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the axis adds to an array: () or (seeds,)."""
        return () if len(self.numbers) == 1 else (len(self.numbers),)

    def __len__(self) -> int:
        return len(self.numbers)

    def map(self, function: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
        """Map a function over the seeds by `vmap`; its axes are those of `in_axes` and `out_axes`."""
        return jax.vmap(function, in_axes, out_axes) if self.shape else function

    def take(self, tree: PyTree, seed: int, axes: Any = 0) -> Any:
        """Return the arrays of one seed; `axes` as for `map`, None where all seeds share an array."""
        if not self.shape:
            return tree
        return _by_axes(lambda axis, x: x if axis is None else jax.tree.map(lambda y: y[seed], x), axes, tree)

    def join(self, trees: Sequence[PyTree], axes: Any = 0) -> Any:
        """Return the arrays of all seeds from those of each: the inverse of `take`."""
        first, *others = trees
        if not others:
            return first

        def stack(axis: int | None, *of_each: PyTree) -> PyTree:
            return of_each[0] if axis is None else jax.tree.map(lambda *x: jnp.stack(x), *of_each)

        return _by_axes(stack, axes, first, *others)

    def tile(self, tree: PyTree) -> Any:
        """Return arrays that are the same for all seeds, once for each."""
        return (
            jax.tree.map(lambda x: jnp.tile(x, (*self.shape, *[1] * jnp.ndim(x))), tree)
            if self.shape
            else tree
        )


ONE = Seeds([0])  # for programs of a single seed


def _by_axes(function: Callable[..., Any], axes: Any, *trees: PyTree) -> Any:
    """Map a function of an axis and of the subtrees that have it; `axes` is a prefix of the trees."""
    return jax.tree.map(function, axes, *trees, is_leaf=lambda axis: axis is None)
