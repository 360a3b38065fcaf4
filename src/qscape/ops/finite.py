"""When a quantity of the training stops being finite: the first update at which it did."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

LOSSES = "losses"  # the last entry of a guard


def guard_names(optimisers: Mapping[str, PyTree]) -> list[str]:
    """Return what the entries of a guard stand for: the optimisers by name, and the losses."""
    return [*sorted(optimisers), LOSSES]


def watch(
    guard: Int[Array, " K"],
    optimisers: Mapping[str, PyTree],
    names: Sequence[str],
    metrics: Float[Array, " M"],
    update: Int[Array, ""],
) -> Int[Array, " K"]:
    """Note the first update at which an optimiser's moments or a loss were not finite.

    Moments are sums of gradients and of their squares. If a gradient was NaN, infinite or too large for
    float32, the second moment never is finite again, and the parameters follow. So one sum over it watches
    gradients, moments and networks.

    Args:
        guard: the first update of each entry of `guard_names` at which it was not finite; 0: none yet.
        optimisers: optimiser states after the update, by name.
        names: names of the metrics.
        metrics: their values after the update; NaN before the first value.
        update: the number of the update, from 1.
    """
    losses = [metrics[k] for k, name in enumerate(names) if "loss" in name]
    bad = [~_is_finite(optimisers[name]) for name in sorted(optimisers)]
    bad.append(jnp.isinf(jnp.stack(losses)).any() if losses else jnp.array(False))
    return jnp.where((guard == 0) & jnp.stack(bad), update, guard)


def _is_finite(optimiser: PyTree) -> Bool[Array, ""]:
    """Return whether an optimiser's second moments are finite; without such moments,
    whether its arrays are.
    """
    leaves = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(optimiser)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    moments = [leaf for path, leaf in leaves if any(getattr(key, "name", "") == "nu" for key in path)]
    return jnp.isfinite(sum((leaf.sum() for leaf in moments or [leaf for _, leaf in leaves]), jnp.zeros(())))
