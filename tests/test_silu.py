"""SiLU's derivatives in closed form, against those of JAX's own and against numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qscape.ops.silu import silu


@pytest.fixture
def double():
    """In float64."""
    with jax.enable_x64(True):
        yield


def derivatives(function, x):
    """The function and its first four derivatives at every x."""
    rows = []
    for _ in range(5):
        rows.append(jax.vmap(function)(x))
        function = jax.grad(function)
    return np.stack(rows)


@pytest.mark.slow
def test_derivatives_are_those_of_x_times_sigmoid(double):
    x = jnp.linspace(-30.0, 30.0, 1201)
    np.testing.assert_allclose(derivatives(silu, x), derivatives(jax.nn.silu, x), rtol=1e-12, atol=1e-12)


def test_numbers(double):
    """At 0: 0, 1/2, 1/2, 0, -1/2 (series x/2 + x²/4 - x⁴/48 + ...)."""
    np.testing.assert_allclose(derivatives(silu, jnp.zeros(1))[:, 0], [0.0, 0.5, 0.5, 0.0, -0.5], atol=1e-15)


def test_slopes(double):
    """Second derivatives change their sign at ±2.399357; the least is at ±3.436."""
    np.testing.assert_allclose(derivatives(silu, jnp.ones(1))[1:3, 0], [0.927671, 0.302366], atol=5e-7)
    second = derivatives(silu, jnp.array([2.399356, 2.399358, -2.399356, -2.399358, 3.436, -3.436]))[2]
    assert (np.sign(second[:4]) == [1, -1, 1, -1]).all()
    np.testing.assert_allclose(second[4:], -0.036914, atol=5e-7)
    assert derivatives(silu, jnp.linspace(-30.0, 30.0, 6001))[2].min() > -0.0369145


def test_far_from_zero_in_single_precision():
    x = jnp.array([-200.0, 200.0])
    np.testing.assert_array_equal(derivatives(silu, x)[:3], [[0.0, 200.0], [0.0, 1.0], [0.0, 0.0]])


def test_forward_over_reverse():
    x = jnp.linspace(-3.0, 3.0, 7)
    ours, theirs = (
        jax.jvp(jax.grad(lambda x, f=f: (f(x) ** 2).sum()), (x,), (x,))[1] for f in (silu, jax.nn.silu)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
