"""Rows of parametrised tests that `make test` leaves out and `make test-all` runs."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """A row of `pytest.mark.parametrize` that is marked slow."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_except(quick: Collection[Any], rows: Iterable[Any]) -> list[Any]:
    """The rows, all marked slow but the quick ones; a quick row that does not exist is an error."""
    rows = [*rows]
    assert all(row in rows for row in quick), [row for row in quick if row not in rows]
    return [row if row in quick else slow(row) for row in rows]
