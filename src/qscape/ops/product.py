"""The product of a batch with a weight matrix, and a gradient of the weight that is fast on a CPU.

Differentiated as it stands, x wᵀ gives the weight the gradient dyᵀ x, which sums over the leading axis of
both sides. XLA hands every form of a product to its fast library but that one. Here dyᵀ is written out first:
with layers of 256 an update takes 4% (SAC) to 12% (TD3+PAVE) less time. The numbers are the same up to the
order of summation.
"""

from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
from jax.lax import dot_general, optimization_barrier
from jaxtyping import Array, Float

ROWS = 8192  # beyond, writing out dyᵀ costs more than it saves


@jax.custom_jvp
def product(x: Float[Array, "*b i"], w: Float[Array, "o i"]) -> Float[Array, "*b o"]:
    """x wᵀ. Can be differentiated any number of times, forwards and backwards."""
    # Not x @ w.T: where x is one row, XLA would write wᵀ out first.
    return dot_general(x, w, (((x.ndim - 1,), (1,)), ((), ())))


def _jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Any]:
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
    """x dwᵀ, written so that its transpose, which is what reverse mode makes of it, is (dyᵀ) x."""
    rows = x.reshape(-1, x.shape[-1])
    if len(dw) == 1 or len(rows) > ROWS or jax.default_backend() != "cpu":
        return x @ dw.T
    # The barrier keeps XLA from folding the transposition back into the product.
    return optimization_barrier(dw @ rows.T).T.reshape(*x.shape[:-1], -1)
