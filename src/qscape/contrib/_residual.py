"""Hidden layers with residual blocks: SimBa, SimbaV2 and BroNet.

Called in place of a `Torso`. They take no conditioning: the networks of parts are plain (`Nets`).
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.nets.initial import he_linear
from qscape.nets.layers import Inputs, LayerNorm, UnitLinear, dense, join_inputs, start_unit
from qscape.nets.mlp import ACTIVATIONS, Conditioning
from qscape.nets.orthogonal import orthogonal_linear
from qscape.types import Key

EPSILON = 1e-6  # of layer norms: Flax's
SHIFT = 3.0  # the constant coordinate that SimbaV2 appends to its input
# The fields of the base that SimBa and SimbaV2 set alike.
SIMBA_SIZES: dict[str, Any] = {
    "actor_hidden": (128,),
    "critic_hidden": (512, 512),
    "actor_learning_rate": 1e-4,
    "critic_learning_rate": 1e-4,
}


class SimbaBlock(eqx.Module):
    """x + down(act(up(LayerNorm x))), with four times the width between."""

    norm: LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    activation: str = eqx.field(static=True)

    def __init__(self, key: Key, width: int, activation: str) -> None:
        k_up, k_down = jax.random.split(key)
        self.norm, self.activation = LayerNorm(width, EPSILON), activation
        self.up = he_linear(k_up, width, 4 * width)
        self.down = he_linear(k_down, 4 * width, width)

    def __call__(self, x: Float[Array, "*b h"]) -> Float[Array, "*b h"]:
        return x + dense(self.down, ACTIVATIONS[self.activation](dense(self.up, self.norm(x))))


class SimbaTorso(eqx.Module):
    """A linear layer, residual blocks and a layer norm (SimBa, arXiv 2410.09754)."""

    embed: eqx.nn.Linear
    blocks: tuple[SimbaBlock, ...]
    norm: LayerNorm

    def __init__(self, key: Key, size: int, widths: Sequence[int], activation: str) -> None:
        """`widths`: one entry, always the same, for each block."""
        k_embed, *keys = jax.random.split(key, len(widths) + 1)
        self.embed = orthogonal_linear(k_embed, size, widths[0], 1.0)
        self.blocks = tuple(SimbaBlock(k, widths[0], activation) for k in keys)
        self.norm = LayerNorm(widths[0], EPSILON)

    def __call__(self, x: Inputs, conditioning: Conditioning | None = None) -> Float[Array, "*b h"]:
        h = dense(self.embed, x)
        for block in self.blocks:
            h = block(h)
        return self.norm(h)


class BroBlock(eqx.Module):
    """x + LayerNorm(second(act(LayerNorm(first(x)))))."""

    first: eqx.nn.Linear
    first_norm: LayerNorm
    second: eqx.nn.Linear
    second_norm: LayerNorm
    activation: str = eqx.field(static=True)

    def __init__(self, key: Key, width: int, activation: str) -> None:
        k_first, k_second = jax.random.split(key)
        self.first = orthogonal_linear(k_first, width, width, 2**0.5)
        self.second = orthogonal_linear(k_second, width, width, 2**0.5)
        self.first_norm, self.second_norm = LayerNorm(width, EPSILON), LayerNorm(width, EPSILON)
        self.activation = activation

    def __call__(self, x: Float[Array, "*b h"]) -> Float[Array, "*b h"]:
        h = ACTIVATIONS[self.activation](self.first_norm(dense(self.first, x)))
        return x + self.second_norm(dense(self.second, h))


class BroTorso(eqx.Module):
    """A normalised layer and residual blocks with two layer norms (BRO, arXiv 2405.16158)."""

    embed: eqx.nn.Linear
    norm: LayerNorm
    blocks: tuple[BroBlock, ...]
    activation: str = eqx.field(static=True)

    def __init__(self, key: Key, size: int, widths: Sequence[int], activation: str) -> None:
        """`widths`: one entry, always the same, for each block."""
        k_embed, *keys = jax.random.split(key, len(widths) + 1)
        self.embed = orthogonal_linear(k_embed, size, widths[0], 2**0.5)
        self.norm = LayerNorm(widths[0], EPSILON)
        self.blocks = tuple(BroBlock(k, widths[0], activation) for k in keys)
        self.activation = activation

    def __call__(self, x: Inputs, conditioning: Conditioning | None = None) -> Float[Array, "*b h"]:
        h = ACTIVATIONS[self.activation](self.norm(dense(self.embed, x)))
        for block in self.blocks:
            h = block(h)
        return h


def to_sphere(x: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
    """Return x / max(‖x‖, 1e-8): the point of the unit sphere in the direction of x."""
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-16))


class Scaler(eqx.Module):
    """A learned factor for each feature, which starts at `start` and learns at the speed of `scale`.

    The parameter starts at `scale`, and the factor is the parameter times start / scale (SimbaV2, Eq. 6).
    """

    parameter: Float[Array, " n"]
    ratio: float = eqx.field(static=True)

    def __init__(self, size: int, start: float, scale: float) -> None:
        self.parameter, self.ratio = jnp.full(size, scale, jnp.float32), start / scale

    def __call__(self, x: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
        return self.parameter * self.ratio * x


class SphereBlock(eqx.Module):
    """h ← U(h + β (m − h)): a step on the unit sphere towards what a small network computes from h."""

    up: UnitLinear
    scaler: Scaler
    down: UnitLinear
    step: Scaler
    activation: str = eqx.field(static=True)

    def __init__(self, key: Key, width: int, blocks: int, activation: str) -> None:
        k_up, k_down = jax.random.split(key)
        self.up, self.down = unit_linear(k_up, width, 4 * width), unit_linear(k_down, 4 * width, width)
        start = (2 / width) ** 0.5 / 2
        self.scaler = Scaler(4 * width, start, start)
        self.step = Scaler(width, 1 / (blocks + 1), width**-0.5)
        self.activation = activation

    def __call__(self, h: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
        inner = ACTIVATIONS[self.activation](self.scaler(dense(self.up, h))) + 1e-8
        return to_sphere(h + self.step(to_sphere(dense(self.down, inner)) - h))


class SphereTorso(eqx.Module):
    """Features on the unit sphere, by linear layers with unit rows (SimbaV2, arXiv 2502.15280)."""

    embed: UnitLinear
    scaler: Scaler
    blocks: tuple[SphereBlock, ...]

    def __init__(self, key: Key, size: int, widths: Sequence[int], activation: str) -> None:
        """`widths`: one entry, always the same, for each block."""
        k_embed, *keys = jax.random.split(key, len(widths) + 1)
        start = (2 / widths[0]) ** 0.5
        self.embed, self.scaler = unit_linear(k_embed, size + 1, widths[0]), Scaler(widths[0], start, start)
        self.blocks = tuple(SphereBlock(k, widths[0], len(widths), activation) for k in keys)

    def __call__(self, x: Inputs, conditioning: Conditioning | None = None) -> Float[Array, "*b h"]:
        x = join_inputs(x)
        x = to_sphere(jnp.concatenate([x, jnp.full((*x.shape[:-1], 1), SHIFT, x.dtype)], -1))
        h = to_sphere(self.scaler(dense(self.embed, x)))
        for block in self.blocks:
            h = block(h)
        return h


class SphereOutput(eqx.Module):
    """The output layer of SimbaV2: two linear layers with unit rows, a scaler between, and a bias."""

    first: UnitLinear
    scaler: Scaler
    second: UnitLinear

    def __init__(self, key: Key, size: int, outputs: int) -> None:
        k_first, k_second = jax.random.split(key)
        self.first, self.scaler = unit_linear(k_first, size, size), Scaler(size, 1.0, 1.0)
        self.second = unit_linear(k_second, size, outputs, bias=True)

    def __call__(self, x: Inputs) -> Float[Array, "*b o"]:
        return dense(self.second, self.scaler(dense(self.first, x)))


def unit_linear(key: Key, size: int, outputs: int, bias: bool = False) -> UnitLinear:
    """Return a linear layer with unit rows, from an orthogonal start; the bias starts at 0."""
    weight = orthogonal_linear(key, size, outputs, 1.0).weight
    return start_unit(UnitLinear(weight, jnp.zeros(outputs) if bias else None))
