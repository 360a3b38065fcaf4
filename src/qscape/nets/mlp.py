"""Layers, trunks, and the actor and critic every representation is built from."""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.nets.heads import Head
from qscape.nets.layers import Inputs, dense, joined
from qscape.ops.norm import NORMS
from qscape.ops.silu import silu
from qscape.types import Dist, Key

ACTIVATIONS = {"relu": jax.nn.relu, "elu": jax.nn.elu, "silu": silu, "tanh": jnp.tanh}


class Conditioning(NamedTuple):
    """What conditions a network beside its inputs: `concat` joins the trunk's input, `film` holds
    one (scale, shift) pair a hidden layer: activation((1 + scale) * h + shift)."""

    concat: Array | None = None
    film: Sequence[tuple[Array, Array]] | None = None


class Torso(eqx.Module):
    """Linear layers, each followed by the activation, and by a FiLM modulation before it if given.

    Weights and biases start uniform in ±1/√fan_in, which is Equinox's and PyTorch's default.
    """

    layers: tuple[eqx.nn.Linear, ...]
    activation: str = eqx.field(static=True)

    def __init__(self, key: Key, sizes: Sequence[int], activation: str) -> None:
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = tuple(
            eqx.nn.Linear(i, o, key=k) for i, o, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )
        self.activation = activation

    def __call__(self, x: Inputs, conditioning: Conditioning | None = None) -> Float[Array, "*b h"]:
        act = ACTIVATIONS[self.activation]
        film = None if conditioning is None else conditioning.film
        for j, layer in enumerate(self.layers):
            h = dense(layer, x)
            x = act(h if film is None else (1.0 + film[j][0]) * h + film[j][1])
        assert not isinstance(x, tuple)
        return x


class MLP(eqx.Module):
    """A trunk and one linear layer on top."""

    torso: Torso
    out: eqx.nn.Linear

    def __init__(self, key: Key, sizes: Sequence[int], activation: str) -> None:
        k_torso, k_out = jax.random.split(key)
        self.torso = Torso(k_torso, sizes[:-1], activation)
        self.out = eqx.nn.Linear(sizes[-2], sizes[-1], key=k_out)

    def __call__(self, x: Inputs, conditioning: Conditioning | None = None) -> Float[Array, "*b o"]:
        return dense(self.out, self.torso(x, conditioning))


class Stage(eqx.Module):
    """What enters a trunk: the raw input x, or φ = norm(Linear x), or nothing of x; then the embeddings."""

    linear: eqx.nn.Linear | None
    norm: str = eqx.field(static=True)
    keep: bool = eqx.field(static=True)

    def __init__(
        self, key: Key | None = None, x: int = 0, width: int = 0, norm: str = "none", keep: bool = True
    ):
        self.linear = None if key is None else eqx.nn.Linear(x, width, key=key)
        self.norm = norm
        self.keep = keep

    def __call__(self, x: Inputs, *others: Array | None) -> Inputs:
        parts: list[Inputs] = [o for o in others if o is not None]
        if self.keep:
            parts.insert(0, x if self.linear is None else NORMS[self.norm](dense(self.linear, x)))
        return joined(parts)


class Actor(eqx.Module):
    """Observation and its embeddings to a distribution over actions."""

    stage: Stage
    torso: Torso
    head: Head

    def __call__(
        self, obs: Array, embeddings: Sequence[Array], conditioning: Conditioning | None = None
    ) -> Dist:
        extra = None if conditioning is None else conditioning.concat
        return self.head(self.torso(self.stage(obs, *embeddings, extra), conditioning))


class Critic(eqx.Module):
    """Observation, action and their embeddings to one value per row."""

    stage: Stage
    body: MLP

    def __call__(
        self, obs: Array, action: Array, embeddings: Sequence[Array], conditioning: Conditioning | None = None
    ) -> Float[Array, "*b"]:
        extra = None if conditioning is None else conditioning.concat
        x = self.stage(joined([obs, action]), *embeddings, extra)
        return self.body(x, conditioning)[..., 0]
