"""The product of a batch with a weight matrix, with a gradient of the weight that is fast on CPUs.

By default, the gradient of x wᵀ with respect to w is dyᵀ x, which sums over the leading axis of both factors.
That is the one form of a matrix product for which XLA does not call its fast library on CPUs. Here dyᵀ is
materialised first. With layers of width 256 an update takes 4% (SAC) to 12% (TD3+PAVE) less time. The numbers
are the same up to the order of summation.
"""

from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
from jax.lax import dot_general, optimization_barrier
from jaxtyping import Array, Float

ROWS = 8192  # for larger batches, materialising dyᵀ costs more than it saves


@jax.custom_jvp
def product(x: Float[Array, "*b i"], w: Float[Array, "o i"]) -> Float[Array, "*b o"]:
    """Return x wᵀ. It is differentiable any number of times, in forward and reverse mode."""
    # Not x @ w.T: if x is one row, XLA would materialise wᵀ first.
    return dot_general(x, w, (((x.ndim - 1,), (1,)), ((), ())))


def direct_product(x: Float[Array, "*b i"], w: Float[Array, "o i"]) -> Float[Array, "*b o"]:
    """Return x wᵀ, with the gradient of the weight as automatic differentiation writes it.

    It is for layers before a batch normalisation. There XLA fuses the materialising of dyᵀ with the
    derivative of the normalisation, and so reads several large arrays column by column, which costs more
    than the fast form of the product saves.
    """
    return dot_general(x, w, (((x.ndim - 1,), (1,)), ((), ())))


def _jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Any]:
    """Return the product and its directional derivative dx wᵀ + x dwᵀ."""
    (x, w), (dx, dw) = primals, tangents
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(product(dx, w))
    if not isinstance(dw, SymbolicZero):
        parts.append(_product_in_weight(x, dw))
    y = product(x, w)
    return y, sum(parts[1:], parts[0]) if parts else SymbolicZero(jax.typeof(y))


product.defjvp(_jvp, symbolic_zeros=True)


def _product_in_weight(x: Array, dw: Array) -> Array:
    """Return x dwᵀ, written such that its transpose in reverse mode is (dyᵀ) x with dyᵀ materialised."""
    rows = x.reshape(-1, x.shape[-1])
    if len(dw) == 1 or len(rows) > ROWS or jax.default_backend() != "cpu":
        return x @ dw.T
    # The barrier keeps XLA from folding the transposition back into the product.
    return optimization_barrier(dw @ rows.T).T.reshape(*x.shape[:-1], -1)
