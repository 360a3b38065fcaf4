"""ELU from a hyperbolic tangent, against exp(x) - 1 in float64 and JAX's own derivatives."""

import jax
import jax.numpy as jnp
import numpy as np

from qscape.ops.elu import elu

FAR = jnp.concatenate([-jnp.logspace(-6, 3, 400), jnp.linspace(-20.0, 20.0, 401)])


def test_it_is_as_exact_as_single_precision_allows():
    x = np.float64(FAR)
    known = np.where(x > 0, x, np.expm1(np.minimum(x, 0.0)))
    np.testing.assert_allclose(elu(FAR), known, rtol=5e-7)
    assert elu(jnp.float32(-1e30)) == -1.0


def test_its_derivatives_are_those_of_jax():
    x = jnp.linspace(-9.0, 9.0, 181) + 0.01
    ours, theirs = elu, jax.nn.elu
    for _ in range(3):
        ours, theirs = jax.grad(ours), jax.grad(theirs)
        np.testing.assert_allclose(jax.vmap(ours)(x), jax.vmap(theirs)(x), atol=3e-7)


def test_numbers():
    """exp(-1) - 1 = -0.632121, and the slope there is exp(-1)."""
    np.testing.assert_allclose(elu(jnp.array([-1.0, 0.0, 2.0])), [-0.632121, 0.0, 2.0], atol=5e-7)
    assert abs(jax.grad(elu)(-1.0) - 0.367879) < 5e-7
