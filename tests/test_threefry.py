"""The generator of random bits written out: the same bits, in one kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qscape.ops.threefry import MOST, threefry, write_out

DRAWS = {
    "bits": lambda key: jax.random.bits(key, (3, 5)),
    "bytes": lambda key: jax.random.bits(key, (7,), jnp.uint8),
    "uniform": lambda key: jax.random.uniform(key, (257,), minval=-0.1, maxval=0.3),
    "normal": lambda key: jax.random.normal(key, (256, 6)),
    "truncated normal": lambda key: jax.random.truncated_normal(key, -2.0, 2.0, (64, 6)),
    "one number": lambda key: jax.random.uniform(key),
    "orthogonal": lambda key: jax.random.orthogonal(key, 9),
    "randint": lambda key: jax.random.randint(key, (256,), 0, jnp.int32(1000)),
    "split": lambda key: jax.random.key_data(jax.random.split(key, 4)),
    "fold_in": lambda key: jax.random.key_data(jax.random.fold_in(key, 2**32 - 7)),
    "of several keys": lambda key: jax.vmap(lambda k: jax.random.bits(k, (9,)))(jax.random.split(key, 3)),
}


def test_the_words_are_those_of_the_published_vectors():
    """Known answers of Random123 for Threefry-2x32 with 20 rounds."""
    known = {
        (0, 0, 0, 0): (0x6B200159, 0x99BA4EFE),
        (0xFFFFFFFF,) * 4: (0x1CB996FC, 0xBB002BE7),
        (0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3): (0xC4923A9C, 0x483DF7A0),
    }
    for (k1, k2, x1, x2), words in known.items():
        made = threefry(jnp.array([k1, k2], jnp.uint32), jnp.uint32(x1), jnp.uint32(x2))
        assert tuple(int(word) for word in made) == words


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_jax(name):
    key = jax.random.key(3)
    written = write_out(key, 1000)
    assert written.dtype != key.dtype
    assert np.asarray(DRAWS[name](written)).tobytes() == np.asarray(DRAWS[name](key)).tobytes()


def test_the_rounds_are_no_loop():
    key = write_out(jax.random.key(3), 1000)
    compiled = jax.jit(lambda key: jax.random.uniform(key, (64,))).lower(key).compile()
    assert " while(" not in str(compiled.as_text())


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_other_generators_stay(impl):
    key = jax.random.key(3, impl=impl)
    assert write_out(key, 1000).dtype == key.dtype


def test_draws_of_more_numbers_than_a_counter_has_stay_with_jax():
    key = jax.random.key(3)
    assert write_out(key, MOST).dtype == key.dtype
