"""Hidden layers with batch normalisation: CrossQ and XQC, and what FlashSAC shares with them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Float

from qscape.nets.batch_norm import BatchNorm
from qscape.nets.layers import Inputs, Linear, dense, join_inputs
from qscape.nets.mlp import ACTIVATIONS, Conditioning
from qscape.types import Key

T = TypeVar("T", bound="NormalisedTorso")


class NormalisedTorso(eqx.Module):
    """Hidden layers with batch normalisations that move when the layers are trained."""

    def list_norms(self) -> tuple[BatchNorm, ...]:
        """Return all batch normalisations in the order in which they are applied."""
        raise NotImplementedError

    def features(self, x: Array, normalise: Callable[[Any, Array], Array]) -> Array:
        """Return the features; `normalise` applies a batch normalisation to its input."""
        raise NotImplementedError

    def __call__(self, x: Inputs, conditioning: Conditioning | None = None) -> Float[Array, "*b h"]:
        return self.features(join_inputs(x), lambda norm, x: norm(x))

    def train(self: T, x: Inputs) -> tuple[Float[Array, "*b h"], T]:
        """Return the features, normalised by the batch; and the hidden layers with new running statistics."""
        moved = []

        def normalise(norm: BatchNorm, x: Array) -> Array:
            y, new = norm.train(x)
            moved.append(new)
            return y

        features = self.features(join_inputs(x), normalise)
        return features, eqx.tree_at(lambda m: m.list_norms(), self, tuple(moved))


class BatchNormTorso(NormalisedTorso):
    """Batch normalisation of the input, then linear layers with activation and batch normalisation.

    Attributes:
        layers: the linear layers.
        norms: of the input, and of each layer.
        activation: a key of `ACTIVATIONS`.
        before: normalises before the activation (XQC); else after it (CrossQ).
    """

    layers: tuple[Linear, ...]
    norms: tuple[BatchNorm, ...]
    activation: str = eqx.field(static=True)
    before: bool = eqx.field(static=True)

    def __init__(
        self,
        key: Key,
        sizes: Sequence[int],
        activation: str,
        make_layer: Callable[[Key, int, int], Linear],
        make_norm: Callable[[int], BatchNorm],
        before: bool,
    ) -> None:
        """`sizes` are the input size and the widths of the layers."""
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = tuple(make_layer(*one) for one in zip(keys, sizes[:-1], sizes[1:], strict=True))
        self.norms = tuple(map(make_norm, sizes))
        self.activation, self.before = activation, before

    def list_norms(self) -> tuple[BatchNorm, ...]:
        return self.norms

    def features(self, x: Array, normalise: Callable[[Any, Array], Array]) -> Array:
        act, (first, *norms) = ACTIVATIONS[self.activation], self.norms
        x = normalise(first, x)
        for layer, norm in zip(self.layers, norms, strict=True):
            h = dense(layer, x)
            x = act(normalise(norm, h)) if self.before else normalise(norm, act(h))
        return x
