"""Hidden layers with dropout, for critics of DroQ."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.nets.layers import Inputs, dense
from qscape.nets.mlp import ACTIVATIONS, Conditioning, Torso
from qscape.nets.residual import LayerNorm
from qscape.types import Key


class DropoutTorso(eqx.Module):
    """Hidden layers that are each linear, dropout, layer norm and activation.

    Called in place of a `Torso`, without conditioning.

    Attributes:
        layers: the linear layers.
        norms: the layer norm behind each of them.
        activation: a key of `ACTIVATIONS`.
        rate: the probability that a unit is dropped.
    """

    layers: tuple[eqx.nn.Linear, ...]
    norms: tuple[LayerNorm, ...]
    activation: str = eqx.field(static=True)
    rate: float = eqx.field(static=True)

    def __init__(self, key: Key, sizes: Sequence[int], activation: str, rate: float) -> None:
        """`sizes` are the input size and the widths of the layers."""
        self.layers = Torso(key, sizes, activation).layers
        self.norms = tuple(LayerNorm(width, epsilon=1e-5) for width in sizes[1:])
        self.activation, self.rate = activation, rate

    def __call__(
        self, x: Inputs, conditioning: Conditioning | None = None, key: Key | None = None
    ) -> Float[Array, "*b h"]:
        """Features of the last layer at inputs `[*b, i]`; `key` draws the masks, None: nothing is dropped."""
        keys = [None] * len(self.layers) if key is None else jax.random.split(key, len(self.layers))
        for layer, norm, k in zip(self.layers, self.norms, keys, strict=True):
            x = ACTIVATIONS[self.activation](norm(drop(dense(layer, x), self.rate, k)))
        assert not isinstance(x, tuple)
        return x


def drop(x: Float[Array, "*b h"], rate: float, key: Key | None) -> Float[Array, "*b h"]:
    """Sets units to 0 with probability `rate` and divides the others by 1 − rate; key None: returns x."""
    if key is None:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0)
