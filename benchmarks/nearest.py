"""Measure speed and recall of the search for the nearest row of an action table.

    NPROC=1 python benchmarks/nearest.py                   # both, for 10,000, 100,000 and 500,000 rows
    NPROC=1 python benchmarks/nearest.py --only recall     # some minutes; load does not change it
    NPROC=1 python benchmarks/nearest.py --only speed      # two minutes, on a machine that does nothing else
    NPROC=1 python benchmarks/nearest.py 10000             # one size; prints and records nothing

The table holds RecSim's items, scaled to [-1, 1]. The 256 queries lie beside items ("near") or anywhere
("uniform"). Recall is measured against distances in float64. Recall and speed each renew their part of
benchmarks/results/nearest.json and leave the other one: how much farther than the nearest row each found row
is (0: it is the nearest), or the seconds of every turn.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import measured
import numpy as np
from jaxtyping import Float

from qscape.ops.nearest import ActionTable

SIZES = [10_000, 100_000, 500_000]
PROBES = (8, 16, 32)
QUERIES, CHECKED, TURNS = 256, 64, 5


def items(n: int) -> Float[np.ndarray, "n 30"]:
    """Draw items from a Gaussian around each of 30 categories; scale each dimension to [-1, 1]."""
    rows = np.random.default_rng(0).normal(0.0, 0.1**0.5, (n, 30))
    rows[np.arange(n), np.arange(n) % 30] += 1.0
    low, span = rows.min(0), np.ptp(rows, axis=0)
    return (2.0 * (rows - low) / span - 1.0).astype(np.float32)


def searches(sizes: list[int]) -> Iterator[tuple[dict[str, Any], ActionTable, np.ndarray]]:
    """Yield every search: what it is, the table and the queries."""
    for n in sizes:
        rows, rng = items(n), np.random.default_rng(1)
        beside = rows[rng.integers(0, n, QUERIES)] + rng.normal(0.0, 0.1, (QUERIES, 30))
        kinds = {"near": beside, "uniform": rng.uniform(-1.0, 1.0, (QUERIES, 30))}
        tables = [
            (ActionTable(rows), 0),
            *((ActionTable(rows, "clustered", probes), probes) for probes in PROBES),
        ]
        for table, probes in tables:
            for kind, queries in kinds.items():
                search = {"rows": n, "search": table.search, "probes": probes, "queries": kind}
                yield search, table, np.clip(queries, -1.0, 1.0).astype(np.float32)


def recall(table: ActionTable, queries: np.ndarray) -> dict[str, list[float]]:
    """Return how much farther the found rows are than the nearest ones, as shares of the least distance."""
    some = queries[:CHECKED].astype(np.float64)
    found = np.asarray(jax.jit(table.nearest)(queries))[:CHECKED, 0]
    wide = table.rows.astype(np.float64)
    distance = [np.linalg.norm(wide - x, axis=1) for x in some]
    farther = [d[i] / d.min() - 1.0 for d, i in zip(distance, found, strict=True)]
    return {"farther": [float(f"{share:.7g}") for share in farther]}


def speed(table: ActionTable, queries: np.ndarray) -> dict[str, list[float]]:
    """Return the seconds that all queries take in each turn."""
    find = jax.jit(table.nearest)
    return {"seconds": measured.time_turns(lambda: find(queries), TURNS)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts: dict[str, Callable[[ActionTable, np.ndarray], dict[str, list[float]]]] = {
        "recall": recall,
        "speed": speed,
    }
    parser.add_argument("rows", type=int, nargs="*", metavar="ROWS", help="sizes of tables; records nothing")
    parser.add_argument("--only", choices=parts, help="measure only this (default: both)")
    given = parser.parse_args()
    for part in [given.only] if given.only else parts:
        load, made = os.getloadavg(), []
        for search, table, queries in searches(given.rows or SIZES):
            found = parts[part](table, queries)
            made.append(search | found)
            print(*search.values(), *(f"{name}: {np.mean(of):.4f}" for name, of in found.items()), flush=True)
        if not given.rows:
            measured.renew_part("nearest", part, load=load, seeds={"items": 0, "queries": 1}, searches=made)


if __name__ == "__main__":
    main()
