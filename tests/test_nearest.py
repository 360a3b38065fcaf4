"""The search in an action table: exact, or as good as it says; gradients pass straight through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qscape.ops import nearest as module
from qscape.ops.nearest import ActionTable

# The 42 of 63 tools that turn one complex mine (0..6) into a basic one (7..14) or into nothing (15).
CHOSEN = np.sort(np.random.default_rng(0).choice(63, 42, replace=False))


def mineworld() -> np.ndarray:
    """MineWorld's 54 actions: (kind, direction, mine before, mine after), in [0, 1]."""
    moves = [(1, d, 0, 0) for d in range(4)]
    basic = [(0, 0, before, 15) for before in range(7, 15)]
    tools = [(0, 0, index // 9, 7 + index % 9) for index in CHOSEN]
    return np.array(moves + basic + tools, np.float32) / np.array([1, 3, 15, 15], np.float32)


def by_hand(rows: np.ndarray, x: np.ndarray, k: int) -> np.ndarray:
    """The k nearest rows, in float64."""
    distances = np.square(rows.astype(np.float64)[None] - x.astype(np.float64)[:, None]).sum(-1)
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


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
