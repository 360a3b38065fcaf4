"""Convolutional networks on images."""

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
    """Square convolutions without padding, then linear layers, each followed by a ReLU.

    An input is an image as a flat row of bytes [*b, S]; it is divided by 255 here. A convolution is a matrix
    product with `patches`: on a CPU, inside loops, that is many times faster than XLA's convolution. Weights
    are orthogonal with gain √2.

    Attributes:
        kernels: the convolutions as linear layers, with weights [out, kernel² · channels].
        torso: the linear layers.
        frame: height, width and channels of the image.
        first: is the channel the image's first axis?
        layers: channels, kernel size and stride of each convolution.
    """

    kernels: tuple[eqx.nn.Linear, ...]
    torso: Torso
    frame: tuple[int, int, int] = eqx.field(static=True)
    first: bool = eqx.field(static=True)
    layers: tuple[Layer, ...] = eqx.field(static=True)

    def __init__(
        self, key: Key, shape: Sequence[int], widths: Sequence[int], layers: Sequence[Layer] = NATURE
    ) -> None:
        """`shape` is that of the image, with channels first, last or none; `widths` are of the linear layers.

        Raises:
            ValueError: the image is too small for the kernels.
        """
        keys = jax.random.split(key, len(layers) + 1)
        self.first, self.frame = image_layout(shape)
        if min_image_size(layers) > min(self.frame[:2]):
            raise ValueError(
                f"an image {tuple(shape)} is smaller than {min_image_size(layers)} × {min_image_size(layers)}"
            )
        size, channels, kernels = self.frame[:2], self.frame[2], []
        for (out, kernel, stride), k in zip(layers, keys[:-1], strict=True):
            kernels.append(orthogonal_linear(k, kernel * kernel * channels, out, 2.0**0.5))
            size, channels = tuple((n - kernel) // stride + 1 for n in size), out
        self.kernels, self.layers = tuple(kernels), tuple(layers)
        self.torso = orthogonal_torso(keys[-1], (size[0] * size[1] * channels, *widths), "relu")

    def __call__(self, x: Array) -> Float[Array, "*b h"]:
        """Features at images `[*b, S]`, rows of bytes."""
        height, width, channels = self.frame
        rows = (
            x.reshape(-1, channels, height, width) if self.first else x.reshape(-1, height, width, channels)
        )
        h = (rows.transpose(0, 2, 3, 1) if self.first else rows).astype(jnp.float32) / 255.0
        for linear, (_, kernel, stride) in zip(self.kernels, self.layers, strict=True):
            h = jax.nn.relu(dense(linear, patches(h, kernel, stride)))
        return self.torso(h.reshape(*x.shape[:-1], -1))


def patches(x: Float[Array, "b H W c"], kernel: int, stride: int) -> Float[Array, "b h w p"]:
    """The pixels under a square kernel at each of its positions; p = kernel² · c.

    If the stride divides the kernel size, the pixels are in the order of blocks of stride × stride, else of
    rows.
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


def image_layout(shape: Sequence[int]) -> tuple[bool, tuple[int, int, int]]:
    """Is the channel axis first?, and (height, width, channels). The smaller outer axis is the channels."""
    if len(shape) == 2:
        return False, (shape[0], shape[1], 1)
    first = shape[0] < shape[-1]
    return first, (shape[1], shape[2], shape[0]) if first else (shape[0], shape[1], shape[2])


def min_image_size(layers: Sequence[Layer] = NATURE) -> int:
    """The least height and width of an image for which the last convolution has an output."""
    size = 1
    for _, kernel, stride in reversed(layers):
        size = (size - 1) * stride + kernel
    return size
