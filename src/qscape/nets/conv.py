"""Convolutional networks on images."""

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.nets.layers import Inputs, LayerNorm, concatenate_inputs, dense
from qscape.nets.mlp import Conditioning, InputStage, Torso
from qscape.nets.orthogonal import orthogonal_linear, orthogonal_torso
from qscape.ops.shift import height_axis
from qscape.types import Key

Layer: TypeAlias = tuple[int, int, int]  # channels, kernel, stride
NATURE: tuple[Layer, ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # Mnih et al. 2015


class Convolutions(eqx.Module):
    """Square convolutions without padding, then linear layers, each followed by a ReLU.

    An input is an image as a flat row of bytes [*b, S]; it is divided by 255 here, and `offset` is added. A
    convolution is a matrix product with `patches`: on a CPU, inside loops, that is many times faster than
    XLA's convolution. Weights are orthogonal with gain √2.

    Attributes:
        kernels: the convolutions as linear layers, with weights [out, kernel² · channels].
        torso: the linear layers; without any the features are the last convolution's outputs.
        frame: height, width and channels of the image.
        first: is the channel the image's first axis?
        layers: channels, kernel size and stride of each convolution.
        offset: what is added to the image after the division.
    """

    kernels: tuple[eqx.nn.Linear, ...]
    torso: Torso
    frame: tuple[int, int, int] = eqx.field(static=True)
    first: bool = eqx.field(static=True)
    layers: tuple[Layer, ...] = eqx.field(static=True)
    offset: float = eqx.field(static=True)

    def __init__(
        self,
        key: Key,
        shape: Sequence[int],
        widths: Sequence[int],
        layers: Sequence[Layer] = NATURE,
        offset: float = 0.0,
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
        channels, kernels = self.frame[2], []
        for (out, kernel, _), k in zip(layers, keys[:-1], strict=True):
            kernels.append(orthogonal_linear(k, kernel * kernel * channels, out, 2.0**0.5))
            channels = out
        self.kernels, self.layers, self.offset = tuple(kernels), tuple(layers), offset
        size = prod(self.output_size(shape, layers)) * channels
        self.torso = orthogonal_torso(keys[-1], (size, *widths), "relu")

    @property
    def pixels(self) -> int:
        """S, the numbers of one image."""
        return prod(self.frame)

    @staticmethod
    def output_size(shape: Sequence[int], layers: Sequence[Layer]) -> tuple[int, int]:
        """Return height and width of the last convolution's outputs at an image of this shape."""
        height, width = image_layout(shape)[1][:2]
        for _, kernel, stride in layers:
            height, width = ((n - kernel) // stride + 1 for n in (height, width))
        return height, width

    def __call__(self, x: Inputs, conditioning: Conditioning | None = None) -> Float[Array, "*b h"]:
        """Return features at images `[*b, S]`, rows of bytes; images take no conditioning."""
        assert not isinstance(x, tuple)
        assert conditioning is None
        height, width, channels = self.frame
        rows = (
            x.reshape(-1, channels, height, width) if self.first else x.reshape(-1, height, width, channels)
        )
        h = (rows.transpose(0, 2, 3, 1) if self.first else rows).astype(jnp.float32) / 255.0 + self.offset
        for linear, (_, kernel, stride) in zip(self.kernels, self.layers, strict=True):
            h = jax.nn.relu(dense(linear, patches(h, kernel, stride)))
        return self.torso(h.reshape(*x.shape[:-1], -1))


class Pixels(eqx.Module):
    """Hidden layers on the pixels of an image: a flat row of bytes [*b, S], which is divided by 255 here."""

    torso: Torso

    def __call__(self, x: Array) -> Float[Array, "*b h"]:
        return self.torso(x.astype(jnp.float32) / 255.0)


class ImageStage(InputStage):
    """The first stage of a network on images: h = tanh(LayerNorm(Linear features)) in the image's place.

    Attributes:
        scaled: the layer norm.
        pixels: how many of the first entries of an observation are the image, which is left out.
    """

    scaled: LayerNorm
    pixels: int = eqx.field(static=True)

    def __init__(self, key: Key, features: int, width: int, pixels: int) -> None:
        super().__init__()
        self.linear = orthogonal_linear(key, features, width, 1.0)
        self.scaled, self.pixels = LayerNorm(width), pixels

    def __call__(self, x: Inputs, *others: Array | None) -> Inputs:
        """Return the torso's input at x `[*b, i]`, which begins with an observation, and at the image's
        features.

        Args:
            others: the features, then further inputs (None: left out).
        """
        features, *further = [o for o in others if o is not None]
        obs, *rest = x if isinstance(x, tuple) else (x,)
        assert self.linear is not None
        h = jnp.tanh(self.scaled(dense(self.linear, features)))
        rest_of = jax.lax.slice_in_dim(obs, self.pixels, None, axis=-1)
        vector = [rest_of] if obs.shape[-1] > self.pixels else []
        return concatenate_inputs([h, *vector, *rest, *further])


def patches(x: Float[Array, "b H W c"], kernel: int, stride: int) -> Float[Array, "b h w p"]:
    """Return the pixels under a square kernel at each of its positions; p = kernel² · c.

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
    # Not x[:, i::stride], which is a gather for some strides: that has no ONNX.
    windows = [
        jax.lax.slice(x, (0, i, j, 0), (b, i + rows, j + columns, x.shape[3]), (1, stride, stride, 1))
        for i in range(kernel)
        for j in range(kernel)
    ]
    return jnp.concatenate(windows, -1)


def image_layout(shape: Sequence[int]) -> tuple[bool, tuple[int, int, int]]:
    """Return whether the channel axis is first, and (height, width, channels). The smaller outer axis is the
    channels.
    """
    if len(shape) == 2:
        return False, (shape[0], shape[1], 1)
    first = height_axis(shape) == 1
    return first, (shape[1], shape[2], shape[0]) if first else (shape[0], shape[1], shape[2])


def describe_small_image(shape: Sequence[int]) -> str | None:
    """Return why the convolutions of the Nature DQN cannot see an image of this shape; None if they can."""
    if len(shape) > 3:
        return f"its convolutions take one axis of channels, and images are {tuple(shape)}: stack grey ones."
    if min(image_layout(shape)[1][:2]) >= min_image_size():
        return None
    least = f"{min_image_size()} × {min_image_size()}"
    return (
        f"its convolutions need images of at least {least}, and these are {tuple(shape)}; boards become "
        "vectors by gymnasium.wrappers.FlattenObservation."
    )


def min_image_size(layers: Sequence[Layer] = NATURE) -> int:
    """Return the least height and width of an image for which the last convolution has an output."""
    size = 1
    for _, kernel, stride in reversed(layers):
        size = (size - 1) * stride + kernel
    return size
