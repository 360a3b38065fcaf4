"""The tests of `qscape.contrib` are slow ones, for `make test-all` and `make test-slow`.

`make test` runs those that only build the agents of the contract's table.
"""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
QUICK = {"test_every_part_has_a_quick_row", "test_the_table_holds_every_choice"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder as slow, except the quick ones."""
    for item in items:
        if HERE in item.path.parents and getattr(item, "originalname", None) not in QUICK:
            item.add_marker(pytest.mark.slow)
