"""The search in an action table: exact, or as good as it says; gradients pass straight through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qscape.errors import UsageError
from qscape.ops import nearest as module
from qscape.ops.nearest import ActionTable

# The 42 of 63 tools that turn one complex mine (0..6) into a basic one (7..14) or into nothing (15).
CHOSEN = np.sort(np.random.default_rng(0).choice(63, 42, replace=False))


def mineworld() -> np.ndarray:
    """MineWorld's 54 actions: (kind, direction, mine before, mine after), in [0, 1]."""
    moves = [(1, d, 0, 0) for d in range(4)]
    basic = [(0, 0, before, 15) for before in range(7, 15)]
    list_tools = [(0, 0, index // 9, 7 + index % 9) for index in CHOSEN]
    return np.array(moves + basic + list_tools, np.float32) / np.array([1, 3, 15, 15], np.float32)


def by_hand(rows: np.ndarray, x: np.ndarray, k: int) -> np.ndarray:
    """The k nearest rows, in float64."""
    distances = np.square(rows.astype(np.float64)[None] - x.astype(np.float64)[:, None]).sum(-1)
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


@pytest.mark.slow
def test_mineworld_has_the_published_neighbours():
    rows = mineworld()
    np.testing.assert_allclose(
        rows[[1, 4, 53]], [[1, 1 / 3, 0, 0], [0, 0, 7 / 15, 1], [0, 0, 0.4, 1]], atol=1e-6
    )
    queries = np.float32([[0.9, 0.4, 0.1, 0.1], [0, 0, 0.47, 0.98], [0.1, 0.2, 0.05, 0.7], [0.45, 0, 0, 0.3]])
    table = ActionTable(rows)
    index = table.nearest(jnp.asarray(queries))[:, 0]
    np.testing.assert_array_equal(index, [1, 4, 21, 12])
    distances = np.linalg.norm(table.at(index) - queries, axis=1)
    np.testing.assert_allclose(distances, [0.1856, 0.0203, 0.2267, 0.4799], atol=5e-5)
    np.testing.assert_array_equal(table.nearest(jnp.asarray(queries[0]), 3), [1, 2, 0])
    assert int(table.nearest(jnp.full(4, 0.5))[0]) == 46  # as near as 47


@pytest.mark.parametrize("k", [1, 4])
def test_an_exact_search_is_exact_over_chunks(k, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 64)
    monkeypatch.setattr(module, "QUERIES", 16)  # 50 of them: four blocks of 13, two of them padding
    rng = np.random.default_rng(0)
    rows, x = (rng.uniform(-1, 1, (n, 7)).astype(np.float32) for n in (333, 50))
    rows[300] = rows[5]  # an equal in a later chunk
    x[0] = rows[5]
    found = jax.jit(lambda x: ActionTable(rows).nearest(x, k))(x)
    np.testing.assert_array_equal(found, by_hand(rows, x, k))
    assert int(found[0, 0]) == 5
    assert ActionTable(rows).nearest(jnp.asarray(x).reshape(5, 10, 7), k).shape == (5, 10, k)


def test_what_fills_the_last_chunk_is_never_found(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 64)
    rows = np.random.default_rng(0).uniform(0.5, 1, (67, 3)).astype(np.float32)
    rows[64:] = rows[64]  # equals in a last chunk of three rows, so that differences decide
    x = np.float32([[0, 0, 0], [0.5, 0.5, 0.5]])
    np.testing.assert_array_equal(ActionTable(rows).nearest(jnp.asarray(x)), by_hand(rows, x, 1))


def test_an_exact_search_is_exact_at_ten_thousand():
    rng = np.random.default_rng(1)
    rows, x = (rng.uniform(-1, 1, (n, 30)).astype(np.float32) for n in (10_000, 150))
    np.testing.assert_array_equal(ActionTable(rows).nearest(jnp.asarray(x)), by_hand(rows, x, 1))


def test_rows_that_a_product_cannot_tell_apart():
    """10,000 numbers between -1 and 1: neighbours differ by 2e-4, their products by less than 3e-8."""
    rows = np.linspace(-1.0, 1.0, 10_000, dtype=np.float32)[:, None]
    x = np.random.default_rng(0).uniform(-1, 1, (500, 1)).astype(np.float32)
    x[:100] = rows[::100]
    found = ActionTable(rows).nearest(jnp.asarray(x))
    np.testing.assert_array_equal(found, by_hand(rows, x, 1))


def uneven(n: int, d: int, far: float) -> np.ndarray:
    """n rows scaled to [-1, 1], all but one of them in a corner that is 1/`far` of its width."""
    rows = np.random.default_rng(0).normal(size=(n, d))
    rows[n // 2] = far
    return (2 * (rows - rows.min(0)) / np.ptp(rows, axis=0) - 1).astype(np.float32)


@pytest.mark.parametrize(("d", "far"), [(1, 1e4), (3, -999.0), (20, 1e4)])
@pytest.mark.parametrize("k", [1, 3])
def test_one_far_row_presses_the_others_into_a_corner(d, far, k):
    rows = uneven(2000, d, far)
    beside = np.random.default_rng(1).normal(size=(300, d)) * np.delete(rows, 1000, 0).std(0) * 0.3
    x = np.concatenate([rows[:300], (rows[300:600] + beside).astype(np.float32)])
    found = jax.jit(lambda x: ActionTable(rows).nearest(x, k))(x)
    np.testing.assert_array_equal(found, by_hand(rows, x, k))


def test_products_alone_tell_these_rows_apart(monkeypatch):
    """Around the median they do: the comparison by differences is for few."""
    monkeypatch.setattr(module, "ROUNDING", 0.0)
    monkeypatch.setattr(module, "QUERIES", 1)
    rows = uneven(2000, 20, 1e4)
    found = jax.jit(lambda x: ActionTable(rows).nearest(x))(rows[:300])
    np.testing.assert_array_equal(found, by_hand(rows, rows[:300], 1))


@pytest.mark.parametrize("k", [1, 3])
def test_rows_that_no_product_tells_apart_are_compared_by_differences(k, monkeypatch):
    """A narrow cluster far from the median row, in two chunks: more rows within rounding than any few."""
    monkeypatch.setattr(module, "CHUNK", 1024)
    monkeypatch.setattr(module, "QUERIES", 1)  # each decides for itself
    rng = np.random.default_rng(0)
    spread = rng.uniform(-1, 1, (1100, 20))
    rows = np.concatenate([spread, 0.9 + 1e-5 * rng.normal(size=(900, 20))]).astype(np.float32)
    x = np.concatenate([rows[1100:], rows[:100]])
    found = jax.jit(lambda x: ActionTable(rows).nearest(x, k))(x)
    np.testing.assert_array_equal(found, by_hand(rows, x, k))


def test_a_search_of_several_seeds_is_one_search():
    """Under `vmap`, a `cond` that became a select would compare all rows by differences every time."""
    table = ActionTable(uneven(100, 3, 50.0))
    x = jnp.zeros((5, 4, 3))
    assert "cond[" in str(jax.make_jaxpr(jax.vmap(table.nearest))(x))
    np.testing.assert_array_equal(jax.vmap(table.nearest)(x), table.nearest(x))


@pytest.mark.parametrize("n", [1, 2, 1000, 1025])
def test_rows_are_looked_up_to_the_bit(n):
    rows = np.random.default_rng(0).integers(-2, 3, (n, 9)).astype(np.float32)  # often equal in the first
    rows[:, 4] = np.random.default_rng(1).permutation(n) * np.float32(1e-12)
    table = ActionTable(rows, "clustered", 1)
    order = np.random.default_rng(2).permutation(n)
    np.testing.assert_array_equal(jax.jit(table.index)(rows[order]), order)
    assert table.index(jnp.asarray(rows)[:, None]).shape == (n, 1)


def test_a_clustered_search_finds_as_many_as_are_asked_for():
    """One probe, and clusters of 4 to 13 rows: as many are looked into as surely hold k rows."""
    rows = mineworld()
    table = ActionTable(rows, "clustered", 1)
    for k in (5, 20, 54):
        found = np.asarray(table.nearest(jnp.asarray(rows), k))
        assert all(len(set(row)) == k for row in found.tolist())
    for search in ("exact", "clustered"):
        with pytest.raises(UsageError, match="The 55 nearest of 54 actions are asked for; there are too few"):
            ActionTable(rows, search).nearest(jnp.zeros(4), 55)


def test_a_clustered_search_finds_most_and_all_when_it_looks_everywhere():
    rng = np.random.default_rng(2)
    centres = rng.uniform(-1, 1, (30, 8))
    rows = (centres[rng.integers(0, 30, 4000)] + rng.normal(0, 0.1, (4000, 8))).astype(np.float32)
    x = jnp.asarray(rows[rng.integers(0, 4000, 200)] + rng.normal(0, 0.05, (200, 8)), jnp.float32)
    exact = by_hand(rows, np.asarray(x), 3)
    few, everywhere = (ActionTable(rows, "clustered", probes) for probes in (8, 10_000))
    np.testing.assert_array_equal(everywhere.nearest(x, 3), exact)
    recall = (np.asarray(few.nearest(x))[:, 0] == exact[:, 0]).mean()
    one = (np.asarray(ActionTable(rows, "clustered", 1).nearest(x))[:, 0] == exact[:, 0]).mean()
    assert one < recall < 1.0 or recall == 1.0
    assert recall > 0.9
    assert sorted(few.clusters.order[:4000].tolist()) == list(range(4000))


def test_the_gradient_passes_straight_through():
    table, w = ActionTable(mineworld()), jnp.array([1.0, -2.0, 3.0, 0.5])
    x = jnp.array([0.9, 0.4, 0.1, 0.1])
    value, slope = jax.value_and_grad(lambda x: w @ table.snap(x))(x)
    np.testing.assert_allclose(value, w @ table.rows[1], rtol=1e-6)
    np.testing.assert_array_equal(slope, w)
    np.testing.assert_array_equal(table.snap(x), table.rows[1])  # the row itself, to the bit
    curved = jax.grad(lambda x: (table.snap(x) ** 2).sum())(x)
    np.testing.assert_allclose(curved, 2 * table.rows[1], rtol=1e-6)  # at the row, not at x
