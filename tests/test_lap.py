"""The sum tree and loss-adjusted replay."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_replay import Reference, Step, assert_copies_nothing_of, make_layout, pack, valid_rows

from qscape.methods.lap import LAP
from qscape.ops import sum_tree
from qscape.replay import Layout, ReplayState, rows_at
from qscape.types import Event

LEAVES, BATCH = 16, 6
write, find = jax.jit(sum_tree.set), jax.jit(sum_tree.find)


def event(synced: bool) -> Event:
    return Event(jnp.array(250), jnp.array(250), jnp.array(True), jnp.array(synced))


def tree_of(priorities) -> jax.Array:
    return write(
        sum_tree.create(len(priorities)), jnp.arange(len(priorities)), jnp.array(priorities, jnp.float32)
    )


def priorities_of(index: ReplayState, n: int) -> np.ndarray:
    tree = index.priorities.tree
    return np.asarray(tree[tree.size // 2 :][:n])


def filled(lap: LAP, layout: Layout, n: int):
    rows, index = lap.init(layout)
    insert = jax.jit(partial(lap.insert, layout))
    for k in range(n):
        rows, index = insert(rows, index, pack([Step(float(k), 0.0, False, False)]))
    return rows, index


writes = st.lists(
    st.tuples(
        st.lists(st.integers(0, LEAVES - 1), min_size=BATCH, max_size=BATCH),
        st.lists(st.floats(0, 2.0**20, width=32, allow_subnormal=False), min_size=BATCH, max_size=BATCH),
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=60)
@given(writes)
def test_every_node_is_the_exact_sum_of_its_children(batches):
    tree, leaves = sum_tree.create(13), np.zeros(LEAVES, np.float32)
    for i, p in batches:
        tree = write(tree, jnp.array(i), jnp.array(p, jnp.float32))
        for place, value in zip(i, p, strict=True):  # the last one wins
            leaves[place] = value
    nodes = np.asarray(tree)
    np.testing.assert_array_equal(nodes[LEAVES:], leaves)
    np.testing.assert_array_equal(nodes[1:LEAVES], nodes[2::2] + nodes[3::2])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 8), min_size=LEAVES - 1, max_size=LEAVES - 1),
    st.lists(st.integers(0, 1023), min_size=BATCH, max_size=BATCH),
)
def test_find_agrees_with_a_cumulative_sum(priorities, u):
    priorities = np.array([*priorities, 256 - sum(priorities)])  # a dyadic total: all is exact, ties are ties
    u = np.array(u) / 1024
    expected = np.searchsorted(np.cumsum(priorities), u * 256, side="left")
    expected = np.where(u == 0, np.flatnonzero(priorities)[0], expected)
    np.testing.assert_array_equal(find(tree_of(priorities), jnp.array(u, jnp.float32)), expected)


def test_find_c4():
    tree = tree_of([1, 2, 1, 5, 1, 0, 0, 0])
    u = [0, 0.05, 0.1, 0.1000001, 0.3, 0.35, 0.4, 0.9, 0.999999]
    assert find(tree, jnp.array(u)).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 4]


def test_find_ties_go_left():
    tree = tree_of([1, 2, 1, 3, 1, 0, 0, 0])
    after = np.nextafter(np.float32([0.125, 0.375, 0.5, 0.875]), np.float32(1))
    assert find(tree, jnp.array([0.125, 0.375, 0.5, 0.875])).tolist() == [0, 1, 2, 3]
    assert find(tree, jnp.array(after)).tolist() == [1, 2, 3, 4]


def test_find_never_returns_an_empty_leaf():
    priorities = np.where(np.arange(64) % 3 == 1, 0.1, 0.0)
    u = jnp.array([0.0, *np.random.default_rng(0).random(2000), 1 - 2.0**-24, 1.0], jnp.float32)
    assert set(np.asarray(find(tree_of(priorities), u)) % 3) == {1}


def test_a_million_leaves_are_drawn_by_their_priority():
    n, draws = 2**20, 2**20
    priorities = np.where(np.arange(n) % 2 == 0, 15.8, 1.3).astype(np.float32)
    priorities[n // 2 :] *= 3
    i = np.asarray(jax.jit(sum_tree.sample, static_argnums=2)(tree_of(priorities), jax.random.key(0), draws))
    # 128 groups by the way down: 32 at the top, two in the middle (the second uniform), even or odd.
    group = 4 * (np.arange(n) // (n // 32)) + 2 * (np.arange(n) % 1024 // 512) + np.arange(n) % 2
    p = np.bincount(group, priorities.astype(np.float64))
    expected = draws * p / p.sum()
    observed = np.bincount(group[i], minlength=128)
    # One statistic for all groups: of 128 separate 4-sigma bounds one breaks in 0.8% of fair samples.
    chi_square, freedom = np.sum((observed - expected) ** 2 / expected), 127
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_a_bulk_write_whose_keys_need_more_than_32_bits():
    n = 2**17
    i = np.random.default_rng(0).integers(0, n, n)
    p = np.arange(n, dtype=np.float32)
    expected = np.zeros(n, np.float32)
    expected[i] = p  # numpy: the last one wins
    np.testing.assert_array_equal(write(sum_tree.create(n), jnp.array(i), jnp.array(p))[n:], expected)


def test_priorities_c3():
    _, index = filled(LAP(), make_layout(1, 10, stores_next=True), 8)
    errors = [[0.2, 0.7], [1.0, 0.3], [2.0, -5.0], [-32, 1], [100, 3], [1.5, 0], [0, 2], [10, 10]]
    index = LAP().update_priorities(index, jnp.arange(8), jnp.array(errors))
    expected = [1, 1, 1.90365394, 4, 6.30957344, 1.17607902, 1.31950791, 2.51188643]
    np.testing.assert_allclose(priorities_of(index, 8), expected, rtol=1e-6)
    assert priorities_of(index, 8)[3] == 4
    assert index.priorities.max_priority == priorities_of(index, 8)[4]


def test_draws_c4():
    lap = LAP(alpha=1.0)
    layout = make_layout(1, 8, stores_next=True)
    rows, index = filled(lap, layout, 5)
    wanted = np.array([1, 2, 1, 5, 1])
    index = lap.update_priorities(index, jnp.arange(5), jnp.stack([jnp.array(wanted), jnp.zeros(5)], 1))
    n = 400_000
    i = jax.jit(partial(lap.sample, layout, batch_size=n))(rows, index, jax.random.key(0))
    frequency, p = np.bincount(i, minlength=8) / n, np.array([*wanted / 10, 0, 0, 0])
    np.testing.assert_allclose(frequency, p, rtol=0, atol=4 * np.sqrt(p * (1 - p) / n).max())
    assert (frequency[5:] == 0).all()


def test_max_priority_c5():
    lap = LAP(alpha=1.0)
    layout = make_layout(1, 4, stores_next=True)

    insert, update = jax.jit(partial(lap.insert, layout)), jax.jit(lap.update_priorities)

    def add(rows, index):
        return insert(rows, index, pack([Step(0.0, 0.0, False, False)]))

    def put(index, i, p):
        return update(index, jnp.array(i), jnp.array(p)[:, None])

    rows, index = filled(lap, layout, 2)
    assert priorities_of(index, 2).tolist() == [1, 1]
    index = put(index, [0, 1], [2.5, 1.2])
    rows, index = add(rows, index)
    np.testing.assert_array_equal(priorities_of(index, 3), np.float32([2.5, 1.2, 2.5]))
    index = put(index, [0, 2], [1.1, 1.3])
    np.testing.assert_array_equal(priorities_of(index, 3), np.float32([1.1, 1.2, 1.3]))
    index = lap.post_update(index, event(synced=False))
    assert index.priorities.max_priority == 2.5
    never = dataclasses.replace(lap, reset_highest=False)
    assert never.post_update(index, event(synced=True)).priorities.max_priority == 2.5
    index = lap.post_update(index, event(synced=True))
    assert index.priorities.max_priority == np.float32(1.3)
    rows, index = add(*add(rows, index))
    np.testing.assert_array_equal(priorities_of(index, 4), np.float32([1.3, 1.2, 1.3, 1.3]))
    assert (index.position.item(), index.size.item()) == (1, 4)
    index = put(index, [1, 1], [3.0, 7.0])
    assert priorities_of(index, 4)[1] == 7
    index = put(index, [1, 1], [7.5, 3.0])  # the maximum sees the row that lost, as in the released code
    assert priorities_of(index, 4)[1] == 3
    assert index.priorities.max_priority == 7.5


@pytest.mark.parametrize("stores_next", [True, False], ids=["stored", "derived"])
@pytest.mark.parametrize("envs", [1, 3])
def test_exactly_the_valid_rows_have_a_priority(envs, stores_next):
    lap, ring = LAP(), 7
    layout = make_layout(envs, ring, stores_next=stores_next)
    references = [Reference(e, ring, stores_next, np.random.default_rng(e)) for e in range(envs)]
    rows, index = lap.init(layout)
    insert, update = jax.jit(partial(lap.insert, layout)), jax.jit(lap.update_priorities)
    everything = jnp.arange(envs * ring)
    for _ in range(40):
        before = priorities_of(index, envs * ring)
        steps = [reference.step() for reference in references]
        idle = np.repeat([step is None for step in steps], ring)
        rows, index = insert(rows, index, pack(steps))
        after = priorities_of(index, envs * ring)
        valid = valid_rows(layout, rows, index)
        np.testing.assert_array_equal(after > 0, valid)
        np.testing.assert_array_equal(after[idle], before[idle])
        # New rows have the running maximum; updating all rows must not wake a pad or the head.
        index = update(index, everything, jnp.full((envs * ring, 2), 40.0))
        np.testing.assert_array_equal(priorities_of(index, envs * ring) > 0, valid)
        changed = after != before
        assert set(after[changed & valid]) <= {np.float32(40) ** np.float32(0.4), np.float32(1)}


def test_new_rows_get_the_running_maximum_when_they_overwrite():
    lap, layout = LAP(alpha=1.0), make_layout(1, 4, stores_next=False)
    rows, index = filled(lap, layout, 6)
    valid = np.flatnonzero(valid_rows(layout, rows, index))
    index = jax.jit(lap.update_priorities)(index, jnp.array(valid), jnp.full((len(valid), 2), 9.0))
    rows, index = jax.jit(partial(lap.insert, layout))(rows, index, pack([Step(0.0, 0.0, False, False)]))
    assert sorted(priorities_of(index, 4)) == [0, 9, 9, 9]


def test_without_priorities_it_is_uniform_with_the_loss():
    lap, layout = LAP(prioritised=False), make_layout(1, 4, stores_next=True)
    rows, index = filled(lap, layout, 3)
    assert index.priorities is None
    assert lap.post_update(index, event(True)) is index
    assert lap.update_priorities(index, jnp.arange(2), jnp.ones((2, 2))) is index
    i = lap.sample(layout, rows, index, jax.random.key(0), 300)
    assert set(np.asarray(i)) == {0, 1, 2}
    assert LAP().overrides(None) == lap.overrides(None) == {"critic_loss": "lap_huber"}


def one_update(lap: LAP, layout: Layout, rows, index: ReplayState, key) -> ReplayState:
    i = lap.sample(layout, rows, index, key, 64)
    batch = rows_at(layout, rows, index, i, 1, 0.99)
    index = lap.update_priorities(index, i, batch.reward[:, None] - batch.next_observation)
    return lap.post_update(index, event(synced=False)._replace(synced=index.position[0] == 0))


def test_neither_insert_nor_update_copies_rows_or_tree():
    lap, layout = LAP(), make_layout(2, 30_000, stores_next=False)
    rows, index = lap.init(layout)
    new = pack([Step(1.0, 0.0, False, False)] * 2)
    insert = jax.jit(partial(lap.insert, layout), donate_argnums=(0, 1))
    assert_copies_nothing_of(layout.capacity, insert.lower(rows, index, new).compile())

    scratch = index.priorities.tree.nbytes  # a synchronisation uses half of that to find the maximum
    call = jax.jit(partial(one_update, lap, layout), donate_argnums=1)
    assert_copies_nothing_of(layout.capacity, call.lower(rows, index, jax.random.key(0)).compile(), scratch)

    def many(rows, index, key):
        def body(index, k):
            return one_update(lap, layout, rows, index, jax.random.fold_in(key, k)), None

        return jax.lax.scan(body, index, jnp.arange(10))[0]

    scan = jax.jit(many, donate_argnums=1)
    assert_copies_nothing_of(layout.capacity, scan.lower(rows, index, jax.random.key(0)).compile(), scratch)
