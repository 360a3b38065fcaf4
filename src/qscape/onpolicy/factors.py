"""A product of action heads for factored discrete actions (MultiDiscrete, MultiBinary).

π(a | s) = ∏_k π_k(a_k | s). Every factor has a head of its own on the torso's features: projector, bound
and action layer, so that `etf` has one simplex for each factor. Heads of factors with equally many values
are stacked along a leading axis and mapped with `vmap`. The trained parameters and the fixed layers are
tuples of such stacks, ordered by the number of values.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.nets.distributions import Categorical, FactoredCategorical
from qscape.onpolicy.base import Base
from qscape.onpolicy.sockets import ActionHead, Distribution
from qscape.types import Key, Spec

T = TypeVar("T")


def find_misfit(head: ActionHead, spec: Spec, base: Base) -> str | None:
    """Return one sentence that says why a head cannot work on a task or one of its factors;
    None if it works.
    """
    specs = [spec] if spec.factors is None else [spec.of_factor(size) for size in _groups(spec.factors)]
    return next((why for each in specs if (why := head.fits(each, base))), None)


def init_heads(head: ActionHead, key: Key, spec: Spec, base: Base, width: int) -> tuple[PyTree, PyTree]:
    """Return the trained parameters and the fixed layers of one head, or of one head for each factor.

    Arguments, results and errors as in `ActionHead.init`; the fixed layers are None if all are trained.
    """
    if spec.factors is None:
        return head.init(key, spec, base, width)
    keys = jax.random.split(key, len(spec.factors))
    made = [
        jax.vmap(lambda k, size=size: head.init(k, spec.of_factor(size), base, width))(keys[jnp.array(where)])
        for size, where in _groups(spec.factors).items()
    ]
    params, fixed = zip(*made, strict=True)
    return params, fixed if jax.tree.leaves(fixed) else None


def apply_heads(
    head: ActionHead, spec: Spec, params: PyTree, fixed: PyTree, features: Array
) -> tuple[Distribution, Array | None]:
    """Return the distribution at features [*b, F], and a penalty [*b] that is added to the loss, or None.

    `params` and `fixed` are those of `init_heads`. The penalty of a product is the sum over its factors.
    """
    if spec.factors is None:
        return head.distribution(params, fixed, features)
    groups = _groups(spec.factors)
    parts: list[Categorical | None] = [None] * len(spec.factors)
    penalties = []
    for where, stack, layers in zip(groups.values(), params, fixed or (None,) * len(groups), strict=True):
        dist, penalty = jax.vmap(head.distribution, in_axes=(0, 0, None))(stack, layers, features)
        for i, factor in enumerate(where):
            parts[factor] = jax.tree.map(lambda x, i=i: x[i], dist)
        if penalty is not None:
            penalties.append(penalty.sum(0))
    dist = FactoredCategorical.from_factors([part for part in parts if part is not None])
    return dist, jnp.stack(penalties).sum(0) if penalties else None


def explain_damage(head: ActionHead, spec: Spec, fixed: PyTree) -> str | None:
    """Return what is wrong with fixed layers that were read from a save; None if nothing is."""
    layers = [fixed] if spec.factors is None else _split(spec.factors, fixed)
    return next((why for layer in layers if (why := head.explain_damage(layer))), None)


def _groups(factors: tuple[int, ...]) -> dict[int, list[int]]:
    """Return the factors of each size, by size in ascending order."""
    return {size: [k for k, n in enumerate(factors) if n == size] for size in sorted(set(factors))}


def _split(factors: tuple[int, ...], stacks: tuple[T, ...]) -> list[T]:
    """Return the entry of each factor, in order, of stacks by size."""
    found = {
        factor: jax.tree.map(lambda x, i=i: x[i], stack)
        for where, stack in zip(_groups(factors).values(), stacks, strict=True)
        for i, factor in enumerate(where)
    }
    return [found[k] for k in range(len(factors))]
