"""Measure speed and recall of the search for the nearest row of an action table.

    python benchmarks/nearest.py [ROWS ...]

The table holds RecSim's items, scaled to [-1, 1]. The 256 queries lie beside items or anywhere. Recall is
measured against distances in float64.
"""

import argparse
import time

import jax
import numpy as np

from qscape.ops.nearest import ActionTable

QUERIES, CHECKED, TURNS = 256, 64, 5


def items(n: int) -> np.ndarray:
    """Draw items [n, 30] from a Gaussian around each of 30 categories; scale each dimension to [-1, 1]."""
    rows = np.random.default_rng(0).normal(0.0, 0.1**0.5, (n, 30))
    rows[np.arange(n), np.arange(n) % 30] += 1.0
    low, span = rows.min(0), np.ptp(rows, axis=0)
    return (2.0 * (rows - low) / span - 1.0).astype(np.float32)


def measure(table: ActionTable, queries: np.ndarray) -> tuple[float, float, float]:
    """Return milliseconds (best turn), recall, and the mean relative excess distance of the found rows."""
    find, seconds = jax.jit(table.nearest), []
    found = np.asarray(find(queries))[:, 0]
    for _ in range(TURNS):
        begun = time.perf_counter()
        find(queries).block_until_ready()
        seconds.append(time.perf_counter() - begun)
    wide, some = table.rows.astype(np.float64), queries[:CHECKED].astype(np.float64)
    distance = [np.linalg.norm(wide - x, axis=1) for x in some]
    reached = np.array([d[i] for d, i in zip(distance, found, strict=False)])
    least = np.array([d.min() for d in distance])
    return 1e3 * min(seconds), float((reached <= least).mean()), float((reached / least).mean() - 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [10_000, 100_000, 500_000]
    parser.add_argument("rows", type=int, nargs="*", default=sizes, metavar="ROWS", help="sizes of tables")
    asked = parser.parse_args()
    print("rows search probes queries ms recall farther")
    for n in asked.rows:
        rows, rng = items(n), np.random.default_rng(1)
        beside = rows[rng.integers(0, n, QUERIES)] + rng.normal(0.0, 0.1, (QUERIES, 30))
        anywhere = rng.uniform(-1.0, 1.0, (QUERIES, 30))
        tables = [ActionTable(rows), *(ActionTable(rows, "clustered", probes) for probes in (8, 16, 32))]
        for table in tables:
            for name, queries in (("near", beside), ("uniform", anywhere)):
                clipped = np.clip(queries, -1.0, 1.0).astype(np.float32)
                ms, recall, farther = measure(table, clipped)
                probes = table.probes if table.search == "clustered" else "-"
                print(f"{n} {table.search} {probes} {name} {ms:.1f} {recall:.2f} {farther:.3f}", flush=True)


if __name__ == "__main__":
    main()
