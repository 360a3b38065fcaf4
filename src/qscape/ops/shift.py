"""Random shifts of images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.types import Key


def random_shift(
    key: Key, images: Float[Array, "B S"], shape: Sequence[int], most: int
) -> Float[Array, "B S"]:
    """Shift each image by whole pixels, drawn uniformly from -most to most along height and width.

    DrQ's augmentation (arXiv 2004.13649): pad by `most` pixels, repeating the border, and crop at random. All
    channels of an image, which are the frames of a stack, move together.

    Args:
        images: flat images.
        shape: of one image: [H, W], with channels first or last.
    """
    at = height_axis(shape)
    offset = jax.random.randint(key, (len(images), 2), -most, most + 1)

    def shift(image: Array, by: Array) -> Array:
        for axis in (0, 1):
            size = shape[at + axis]
            # Beyond the border stands the pixel at the border.
            image = jnp.take(image, jnp.clip(jnp.arange(size) + by[axis], 0, size - 1), axis=at + axis)
        return image

    return jax.vmap(shift)(images.reshape(-1, *shape), offset).reshape(images.shape)


def height_axis(shape: Sequence[int]) -> int:
    """Return the axis of an image's height: 1 behind channels, else 0. The smaller outer axis is the
    channels.
    """
    return int(len(shape) == 3 and shape[0] < shape[-1])
