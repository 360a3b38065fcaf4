"""Replay with observations in bfloat16 against replay of observations that numpy rounded before."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from rows import slow
from test_replay import assert_copies_nothing_of

from qscape.agents import build
from qscape.errors import RunError
from qscape.methods.lap import LAP
from qscape.replay import Layout, Uniform, rows_at, storage
from qscape.replay.storage import OBSERVATIONS, cut
from qscape.types import Spec, Transition

A = 2
COLUMNS = (("extra", (3,)),)
TIE = np.array([0x3F808000, 0x3F818000, 0xC0018000], np.uint32).view(np.float32)  # between two bfloat16
SPECIAL = np.concatenate(
    [TIE, np.nextafter(TIE, np.float32(9)), [0.0, -0.0, 1e-40, -3e-45, 1e38, 3.4e38, np.inf, -np.inf, 255.0]]
).astype(np.float32)


def layouts(size: int, envs: int, ring: int, stores_next: bool = True) -> tuple[Layout, Layout]:
    """Return the layouts of a replay in float32 and of one in bfloat16."""
    whole = Layout(size, A, COLUMNS, stores_next, envs, envs * ring)
    return whole, dataclasses.replace(whole, observations="bfloat16")


def rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def random_steps(size: int, envs: int, steps: int, seed: int = 0) -> list[Transition]:
    """Draw steps of episodes of about four steps; after an end an environment sometimes stands still."""
    random, steps_made, ended = np.random.default_rng(seed), [], np.zeros(envs, bool)
    for _ in range(steps):
        ends = random.uniform(size=envs) < 0.25
        terminated = ends & (random.uniform(size=envs) < 0.5)
        mask = ~ended | (random.uniform(size=envs) < 0.5)
        new = Transition(
            observation=random.normal(size=(envs, size)).astype(np.float32) * 100,
            action=random.normal(size=(envs, A)).astype(np.float32),
            reward=random.normal(size=envs).astype(np.float32),
            terminated=terminated,
            truncated=ends & ~terminated,
            next_observation=random.normal(size=(envs, size)).astype(np.float32) * 100,
            valid=mask,
            columns={"extra": random.normal(size=(envs, 3)).astype(np.float32)},
        )
        steps_made.append(new)
        ended = np.where(mask, ends, ended)
    return steps_made


def same_bits(one, other) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("stores_next", [True, False], ids=["stored", "derived"])
@pytest.mark.parametrize("size", [1, len(SPECIAL) - 1, len(SPECIAL)])
def test_observations_come_back_as_numpy_rounds_them(size, stores_next):
    _, half = layouts(size, 1, 4, stores_next)
    rows, index = Uniform().init(half)
    zero, no = np.zeros(1, np.float32), np.zeros(1, bool)
    action = np.array([[np.nextafter(np.float32(1), np.float32(0)), -1e-3]], np.float32)
    observation, after = SPECIAL[None, :size], SPECIAL[None, ::-1][:, :size]
    columns = {"extra": np.full((1, 3), 0.3, np.float32)}
    new = Transition(observation, action, zero + 0.1, no, no, after, columns=columns)
    rows, index = jax.jit(partial(Uniform().insert, half))(rows, index, new)
    assert rows.dtype == np.uint32
    batch = jax.jit(lambda rows, index: rows_at(half, rows, index, jnp.zeros(1, jnp.int32), 1, 0.9))(
        rows, index
    )
    same_bits(batch.observation, rounded(observation))
    same_bits(batch.next_observation, rounded(after))
    same_bits(batch.action, action)
    same_bits(batch.reward, zero + 0.1)
    same_bits(batch.extra["extra"], np.full((1, 3), 0.3, np.float32))


# Half of the combinations, in which each two choices stand together, are quick.
@pytest.mark.parametrize(
    ("replay", "size", "stores_next", "n_step"),
    [
        (Uniform(), 5, True, 1),
        (Uniform(), 5, False, 3),
        (LAP(), 4, True, 3),
        (LAP(), 4, False, 1),
        slow(Uniform(), 5, True, 3),
        slow(Uniform(), 5, False, 1),
        slow(LAP(), 4, True, 1),
        slow(LAP(), 4, False, 3),
    ],
)
def test_all_equals_a_replay_of_rounded_observations(replay, size, stores_next, n_step):
    envs, ring = 3, 11
    both = layouts(size, envs, ring, stores_next)
    inserts = [jax.jit(partial(replay.insert, layout)) for layout in both]
    cuts = [jax.jit(partial(cut, layout)) for layout in both]
    samples = [jax.jit(partial(replay.sample, layout, batch_size=16)) for layout in both]

    def read(layout, rows, index):
        at, names = jnp.arange(envs * ring), OBSERVATIONS | {"truncated"}
        return [
            rows_at(layout, rows, index, at, n_step, 0.9, names, bootstrap_at_time_limits=flag)
            for flag in (True, False)
        ]

    reads = [jax.jit(partial(read, layout)) for layout in both]
    held = [replay.init(layout) for layout in both]
    for k, new in enumerate(random_steps(size, envs, 40)):
        early = new._replace(
            observation=rounded(new.observation), next_observation=rounded(new.next_observation)
        )
        held = [insert(*one, step) for insert, one, step in zip(inserts, held, (early, new), strict=True)]
        if k == 25:
            held = [end(*one) for end, one in zip(cuts, held, strict=True)]
        same_bits(held[0][1], held[1][1])
        same_bits(*[sample(*one, jax.random.key(k)) for sample, one in zip(samples, held, strict=True)])
        if k % 5 == 4:
            same_bits(*[look(*one) for look, one in zip(reads, held, strict=True)])


@pytest.mark.parametrize("stores_next", [True, False], ids=["stored", "derived"])
def test_inserting_and_reading_copy_nothing(stores_next):
    _, half = layouts(5, 3, 30_000, stores_next)
    rows, index = Uniform().init(half)
    new = random_steps(5, 3, 1)[0]
    insert = jax.jit(partial(Uniform().insert, half), donate_argnums=(0, 1))
    compiled = insert.lower(rows, index, new).compile()
    assert_copies_nothing_of(half.capacity, compiled)
    assert compiled.memory_analysis().alias_size_in_bytes >= half.nbytes

    def sample(rows, index, key):
        i = Uniform().sample(half, rows, index, key, 64)
        return rows_at(half, rows, index, i, 3, 0.99, {"previous_observation"})

    assert_copies_nothing_of(half.capacity, jax.jit(sample).lower(rows, index, jax.random.key(0)).compile())


def test_its_pieces_make_it_again():
    _, half = layouts(5, 3, 11)
    rows = jax.random.bits(jax.random.key(0), (33, half.width), jnp.uint32)
    pieces = list(storage.pieces(half, rows, 7, 4 * 4 * half.width))
    again = storage.restored(half, 7, pieces)
    assert again.dtype == np.uint32
    before, after = (np.asarray(x).reshape(3, 11, -1) for x in (rows, again))
    np.testing.assert_array_equal(after[:, :7], before[:, :7])
    assert not after[:, 7:].any()


def test_the_bytes_of_a_row(monkeypatch):
    base = {"replay_observations": "bfloat16", "replay_capacity": 1_000}
    for next_observation, width in (("stored", 9 + 9 + 6 + 3), ("derived", 9 + 6 + 4)):  # 17 entries: 9 words
        agent = build("td3", {"base": base | {"next_observation": next_observation}}).on(Spec(17, 6))
        layout = agent.layout()
        assert layout.nbytes == 4 * 1_000 * width == agent.replay.init(layout)[0].nbytes
    assert build("td3").on(Spec(17, 6)).layout().dtype == np.float32
    monkeypatch.setattr(storage, "_available_bytes", lambda: 1_000)
    whole, half = layouts(17, 1, 100)
    with pytest.raises(RunError, match=r"or --base\.replay-observations bfloat16"):
        storage.check_memory(whole)
    with pytest.raises(RunError) as error:
        storage.check_memory(half)
    assert "bfloat16" not in str(error.value)
