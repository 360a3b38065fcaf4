"""The product of a batch with a weight matrix: derivatives as of x @ w.T, in the form that is fast."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow

from qscape.ops import product as module
from qscape.ops.product import product


def plain(x, w):
    return x @ w.T


def problem(shape=(5, 4), out=6):
    k_x, k_w = jax.random.split(jax.random.key(0))
    return jax.random.normal(k_x, shape), jax.random.normal(k_w, (out, shape[-1]))


def energy(multiply):
    """Curved in both arguments."""
    return lambda x, w: jnp.sum(jnp.tanh(multiply(jnp.sin(x), w)) ** 2)


def of_a_derivative(multiply):
    """A number made of a Hessian-vector product in x, as PAVE's terms are; its gradient is of third order."""

    def squared(x, w):
        slope = jax.grad(energy(multiply))
        return jnp.sum(jax.jvp(lambda x: slope(x, w), (x,), (x,))[1] ** 2)

    return squared


@pytest.mark.parametrize(("shape", "out"), [slow((5, 4), 6), ((3, 5, 4), 6), slow((5, 4), 1), slow((4,), 6)])
@pytest.mark.parametrize("function", [energy, of_a_derivative])
def test_derivatives_are_those_of_the_plain_product(shape, out, function):
    x, w = problem(shape, out)
    for derive in (jax.grad, jax.jacfwd):
        ours = derive(function(product), (0, 1))(x, w)
        theirs = derive(function(plain), (0, 1))(x, w)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), ours, theirs)


def test_vmapped_over_weights():
    x, w = problem()
    many = jnp.stack([w, 2 * w])
    ours = jax.vmap(jax.grad(energy(product), 1), (None, 0))(x, many)
    singly = jnp.stack([jax.grad(energy(plain), 1)(x, one) for one in many])
    np.testing.assert_allclose(ours, singly, rtol=1e-5, atol=1e-6)


def contracted(multiply, rows):
    """The axes over which the left sides are summed, in the compiled gradient of the weight."""
    x, w = problem((rows, 32), 64)
    text = jax.jit(jax.grad(energy(multiply), 1)).lower(x, w).compile().as_text()
    return set(re.findall(r" dot\(.*lhs_contracting_dims=\{(\d)\}", text))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="is about XLA on a CPU")
def test_the_gradient_is_in_the_fast_form():
    assert contracted(plain, 256) == {"0", "1"}  # should this fail, XLA may have learnt: measure again
    assert contracted(product, 256) == {"1"}
    assert contracted(product, module.ROWS + 1) == {"0", "1"}  # too many rows to write them out
