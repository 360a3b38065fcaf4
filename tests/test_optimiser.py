"""Adam and the plain options of off-policy agents."""

import jax.numpy as jnp
import numpy as np
import pytest

from qscape.ops.adam import make_adam


@pytest.mark.parametrize("count", [0, 1, 9, 999, 100_000])
def test_bias_correction_is_exact_to_rounding(count):
    """Adam in float64, from moments of the same numbers: one step from `count` steps made."""
    optimiser, gradient = make_adam(1.0), 0.3
    state = optimiser.init(jnp.zeros(()))
    moments = state[0]._replace(count=jnp.int32(count), mu=jnp.float32(0.01), nu=jnp.float32(2e-4))
    step, _ = optimiser.update(jnp.float32(gradient), (moments, *state[1:]))
    mean = (0.9 * 0.01 + 0.1 * gradient) / (1 - 0.9 ** (count + 1))
    square = (0.999 * 2e-4 + 1e-3 * gradient**2) / (1 - 0.999 ** (count + 1))
    np.testing.assert_allclose(step, -mean / (np.sqrt(square) + 1e-8), rtol=5e-7)
