"""Marks rows of parametrised tests as slow: `make test` skips them, `make test-all` runs them.

Rows of slow tests that take a minute or more are long, too: `make test-slow` skips those.
"""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """Return a row of `pytest.mark.parametrize` that is marked slow."""
    return pytest.param(*values, marks=pytest.mark.slow)


def long(*values: Any) -> Any:
    """Return a row of `pytest.mark.parametrize` that is marked slow and long."""
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.long])


def slow_except(quick: Collection[Any], rows: Iterable[Any]) -> list[Any]:
    """Return the rows, all marked slow except the quick ones; every quick row must be among the rows."""
    rows = [*rows]
    assert all(row in rows for row in quick), [row for row in quick if row not in rows]
    return [row if row in quick else slow(row) for row in rows]
