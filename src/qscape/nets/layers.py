"""What all networks are made of."""

import equinox as eqx
from jaxtyping import Array, Float


def dense(layer: eqx.nn.Linear, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
    """Apply a linear layer to a batch as one matrix product (Equinox's own call takes one vector)."""
    assert layer.bias is not None
    return x @ layer.weight.T + layer.bias
