"""Running mean and variance."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

# The rows before a new one weigh no more than this many, so that older ones are slowly forgotten. Float32
# cannot count beyond 2²⁴, and the variance would grow without bound there.
FULL = 2.0**20


class Moments(NamedTuple):
    """Running statistics of vectors.

    Attributes:
        mean, var: of the vectors so far; the variance is the population's (ddof 0).
        seen: how many vectors these are, but at most as many as `FULL` additions like the last one.
    """

    mean: Float[Array, " S"]
    var: Float[Array, " S"]
    seen: Float[Array, ""]


def init_moments(size: int) -> Moments:
    """Return initial statistics of vectors of length `size`: mean 0, variance 1, count 1e-4."""
    return Moments(jnp.zeros(size), jnp.ones(size), jnp.array(1e-4, jnp.float32))


def add_row(m: Moments, x: Float[Array, " S"]) -> Moments:
    """Add one vector, by the parallel-variance rule with a batch of one."""
    delta, seen = x - m.mean, m.seen + 1.0
    var = (m.var * m.seen + jnp.square(delta) * m.seen / seen) / seen
    return Moments(m.mean + delta / seen, var, jnp.minimum(seen, FULL))


def add_rows(m: Moments, x: Float[Array, "E S"], weight: Float[Array, " E"] | None = None) -> Moments:
    """Add E vectors. Those of weight 0 do not count; None: all count."""
    return add_row(m, x[0]) if len(x) == 1 and weight is None else add_batch(m, x, weight)


def add_batch(m: Moments, x: Float[Array, "B S"], weight: Float[Array, " B"] | None = None) -> Moments:
    """Add a whole batch by the parallel-variance rule (Chan et al. 1979). Rows of weight 0 do not count.

    The vectors before it weigh at most as much as 2²⁰ such batches.
    """
    weights = jnp.ones(len(x)) if weight is None else weight
    count = weights.sum()
    mean = weights @ x / jnp.maximum(count, 1.0)
    var = weights @ jnp.square(x - mean) / jnp.maximum(count, 1.0)
    seen, delta = m.seen + count, mean - m.mean
    total = jnp.maximum(seen, 1e-8)
    spread = m.var * m.seen + var * count + jnp.square(delta) * m.seen * count / total
    most = jnp.where(count > 0, FULL * count, jnp.inf)
    var = jnp.where(seen > 0, spread / total, m.var)
    return Moments(m.mean + delta * count / total, var, jnp.minimum(seen, most))


def standardise(
    m: Moments, x: Float[Array, "*b S"], epsilon: float = 1e-8, under_root: bool = False
) -> Float[Array, "*b S"]:
    """Return (x - mean) / (√var + ε), or / √(var + ε), unclipped."""
    deviation = jnp.sqrt(m.var + epsilon) if under_root else jnp.sqrt(m.var) + epsilon
    return (x - m.mean) / deviation
