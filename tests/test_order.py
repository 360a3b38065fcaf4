"""The random order of minibatches is the stable order of its draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qscape.ops.order import MOST, argsort_draws


@pytest.mark.parametrize("n", [1, 2, 3, 500, 512, 513, 2_048, 5_001, MOST, MOST + 1])
def test_order_of_draws(n):
    keys = jax.random.split(jax.random.key(n), 20)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (n,)))(keys)
    np.testing.assert_array_equal(jax.jit(jax.vmap(argsort_draws))(draws), jnp.argsort(draws, axis=-1))
    np.testing.assert_array_equal(jax.jit(argsort_draws)(draws[0]), jnp.argsort(draws[0]))


@pytest.mark.parametrize("values", [2, 50])
def test_equal_and_reversed_draws(values):
    """Many equal draws keep their order; draws that agree in their leading bits are ordered by the rest."""
    n = 2_048
    same = jnp.asarray(np.random.default_rng(0).integers(0, values, n) / 64, jnp.float32)
    np.testing.assert_array_equal(argsort_draws(same), jnp.argsort(same))
    near = 0.5 + jnp.arange(n, dtype=jnp.float32)[::-1] / 2**23
    np.testing.assert_array_equal(argsort_draws(near), jnp.argsort(near))
