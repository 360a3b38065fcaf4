"""JAX's generator of random bits on a CPU: the same numbers by programs that compile sooner.

JAX writes the 20 rounds of Threefry on a CPU as a loop, of which XLA makes ten kernels. Written out, the
rounds are one kernel, which compiles in a quarter of the time. Bits are integers, so nothing is rounded; but
what is computed from them in the same program may become other kernels, which round differently. So only
draws that are a program of their own take such keys: those of the networks of a new run.
"""

import math
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl
from jaxtyping import Array, UInt32

from qscape.types import Key

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = 0x1BD11BDA
MOST = 2**32  # numbers of one draw


def write_out(key: Key, most: int) -> Key:
    """Return a key that draws the same numbers by rounds that are written out.

    On other devices than CPUs the key itself is returned, and so is one of another generator.

    Args:
        key: the key.
        most: the most numbers that are drawn at once.
    """
    usual = str(jax.random.key_impl(key)) == "threefry2x32"
    usual = usual and getattr(jax.config, "jax_threefry_partitionable", True)
    if not usual or jax.default_backend() != "cpu" or most >= MOST:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_generator())


def threefry(
    key: UInt32[Array, " 2"], x1: UInt32[Array, "*n"], x2: UInt32[Array, "*n"]
) -> tuple[UInt32[Array, "*n"], UInt32[Array, "*n"]]:
    """Return two words of random bits for each pair of counters, by Threefry-2x32 with 20 rounds."""
    keys = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(PARITY)
    x1, x2 = x1 + keys[0], x2 + keys[1]
    for block in range(5):
        for rotation in ROTATIONS[block % 2]:
            x1 = x1 + x2
            x2 = x1 ^ ((x2 << rotation) | (x2 >> (32 - rotation)))
        x1 = x1 + keys[(block + 1) % 3]
        x2 = x2 + keys[(block + 2) % 3] + jnp.uint32(block + 1)
    return x1, x2


def _count(key: UInt32[Array, " 2"], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return two words of random bits for each place of an array of this shape."""
    places = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return threefry(key, jnp.zeros_like(places), places)


@partial(jax.jit, static_argnums=(1, 2))
def _bits(key: UInt32[Array, " 2"], width: int, shape: tuple[int, ...]) -> Array:
    one, other = _count(key, shape)
    return (one ^ other).astype(f"uint{width}")


@partial(jax.jit, static_argnums=1)
def _split(key: UInt32[Array, " 2"], shape: tuple[int, ...]) -> UInt32[Array, "*shape 2"]:
    return jnp.stack(_count(key, shape), -1)


@jax.jit
def _fold_in(key: UInt32[Array, " 2"], data: Any) -> UInt32[Array, " 2"]:
    word = jnp.asarray(data, jnp.uint32)
    return jnp.stack(threefry(key, jnp.zeros_like(word), word))


def _seed(seed: Any) -> UInt32[Array, " 2"]:
    return jnp.stack([jnp.zeros((), jnp.uint32), jnp.asarray(seed, jnp.uint32)])


@cache
def _generator() -> Any:
    return define_prng_impl(
        key_shape=(2,), seed=_seed, split=_split, random_bits=_bits, fold_in=_fold_in,
        name="threefry2x32_written_out", tag="fryw",
    )  # fmt: skip
