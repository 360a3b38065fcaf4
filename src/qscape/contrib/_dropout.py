"""Hidden layers with dropout, for critics of DroQ."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.nets.layers import Inputs, dense
from qscape.nets.mlp import ACTIVATIONS, Conditioning, Torso
from qscape.types import Key, split_key


class DropoutTorso(eqx.Module):
    """The hidden layers of a torso with dropout behind each linear layer, before its layer norm.

    Called in place of a `Torso`, without conditioning.

    Attributes:
        plain: the hidden layers.
        rate: the probability that a unit is dropped.
    """

    plain: Torso
    rate: float = eqx.field(static=True)

    def __call__(
        self, x: Inputs, conditioning: Conditioning | None = None, key: Key | None = None
    ) -> Float[Array, "*b h"]:
        """Features of the last layer at inputs `[*b, i]`; `key` draws the masks, None: nothing is dropped."""
        layers, norms = self.plain.layers, self.plain.norms
        for j, (layer, k) in enumerate(zip(layers, split_key(key, len(layers)), strict=True)):
            h = drop(dense(layer, x), self.rate, k)
            x = ACTIVATIONS[self.plain.activation](norms[j](h) if norms else h)
        assert not isinstance(x, tuple)
        return x


def drop(x: Float[Array, "*b h"], rate: float, key: Key | None) -> Float[Array, "*b h"]:
    """Sets units to 0 with probability `rate` and divides the others by 1 − rate; key None: returns x."""
    if key is None:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0)
