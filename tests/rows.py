"""Marks rows of parametrised tests as slow: `make test` skips them, `make test-all` runs them.

Some slow rows are long, too, and `make test-slow` compiles them quickly: those that take a minute or more,
and combinations whose parts other rows show.
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


def slow_except(quick: Collection[Any], rows: Iterable[Any], longest: Collection[Any] = ()) -> list[Any]:
    """Return the rows, all marked slow, or long if in `longest`, except the quick ones.

    Every quick and every long row must be among the rows.
    """
    rows = [*rows]
    named = [*quick, *longest]
    assert all(row in rows for row in named), [row for row in named if row not in rows]
    return [row if row in quick else long(row) if row in longest else slow(row) for row in rows]
