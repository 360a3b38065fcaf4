"""Convolutions over images."""

from collections.abc import Sequence
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.nets.layers import dense
from qscape.nets.mlp import Torso
from qscape.nets.orthogonal import orthogonal_linear, orthogonal_torso
from qscape.types import Key

Layer: TypeAlias = tuple[int, int, int]  # channels, kernel, stride
NATURE: tuple[Layer, ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # Mnih et al. 2015


class Convolutions(eqx.Module):
    """Square convolutions without padding, each followed by a ReLU, then linear layers with one each.

    An image comes as a row of its bytes, and is divided by 255 here and nowhere before. A convolution is a
    matrix product of `patches`: on a CPU, inside loops, that is many times faster than XLA's own. Weights
    start orthogonal with gain √2.
    """

    kernels: tuple[eqx.nn.Linear, ...]  # [out, kernel² · channels]
    torso: Torso
    frame: tuple[int, int, int] = eqx.field(static=True)  # height, width, channels
    first: bool = eqx.field(static=True)  # do the bytes of a channel lie together?
    layers: tuple[Layer, ...] = eqx.field(static=True)

    def __init__(
        self, key: Key, shape: Sequence[int], widths: Sequence[int], layers: Sequence[Layer] = NATURE
    ) -> None:
        """`shape` of the image: channels first, last or none; `widths` of the linear layers.

        Raises:
            ValueError: the image is smaller than what the kernels need.
        """
        keys = jax.random.split(key, len(layers) + 1)
        self.first, self.frame = layout(shape)
        if least(layers) > min(self.frame[:2]):
            raise ValueError(f"an image {tuple(shape)} is smaller than {least(layers)} × {least(layers)}")
        size, channels, kernels = self.frame[:2], self.frame[2], []
        for (out, kernel, stride), k in zip(layers, keys[:-1], strict=True):
            kernels.append(orthogonal_linear(k, kernel * kernel * channels, out, 2.0**0.5))
            size, channels = tuple((n - kernel) // stride + 1 for n in size), out
        self.kernels, self.layers = tuple(kernels), tuple(layers)
        self.torso = orthogonal_torso(keys[-1], (size[0] * size[1] * channels, *widths), "relu")

    def __call__(self, x: Array) -> Float[Array, "*b h"]:
        height, width, channels = self.frame
        rows = (
            x.reshape(-1, channels, height, width) if self.first else x.reshape(-1, height, width, channels)
        )
        h = (rows.transpose(0, 2, 3, 1) if self.first else rows).astype(jnp.float32) / 255.0
        for linear, (_, kernel, stride) in zip(self.kernels, self.layers, strict=True):
            h = jax.nn.relu(dense(linear, patches(h, kernel, stride)))
        return self.torso(h.reshape(*x.shape[:-1], -1))


def patches(x: Float[Array, "b H W c"], kernel: int, stride: int) -> Float[Array, "b h w p"]:
    """The pixels under a square kernel at every place it comes to; p = kernel² · c.

    Where the stride divides the kernel the image is cut into blocks first, and the p pixels come block by
    block; else row by row.
    """
    b, _, _, c = x.shape
    h, w = ((n - kernel) // stride + 1 for n in x.shape[1:3])
    if kernel % stride == 0:
        x = x[:, : (h - 1) * stride + kernel, : (w - 1) * stride + kernel]
        blocks = x.reshape(b, x.shape[1] // stride, stride, x.shape[2] // stride, stride, c)
        x = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, *blocks.shape[1:4:2], stride * stride * c)
        kernel, stride = kernel // stride, 1
    rows, columns = (h - 1) * stride + 1, (w - 1) * stride + 1
    windows = [
        x[:, i : i + rows : stride, j : j + columns : stride] for i in range(kernel) for j in range(kernel)
    ]
    return jnp.concatenate(windows, -1)


def layout(shape: Sequence[int]) -> tuple[bool, tuple[int, int, int]]:
    """Are channels first, and (height, width, channels) of an image; the smaller end is the channels."""
    if len(shape) == 2:
        return False, (shape[0], shape[1], 1)
    first = shape[0] < shape[-1]
    return first, (shape[1], shape[2], shape[0]) if first else (shape[0], shape[1], shape[2])


def least(layers: Sequence[Layer] = NATURE) -> int:
    """The height and width below which nothing is left behind the last convolution."""
    size = 1
    for _, kernel, stride in reversed(layers):
        size = (size - 1) * stride + kernel
    return size
