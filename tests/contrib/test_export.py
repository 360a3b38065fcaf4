"""Exported policies of the rows of the contract act like the library's."""

import pytest
from contrib.test_contract import AGAIN, QUICK_ROWS, TABLE, make
from rows import slow_except
from test_export import assert_acts_like_the_library


@pytest.mark.parametrize("row", slow_except(QUICK_ROWS, TABLE, AGAIN))
def test_every_recipe_of_the_contract_acts_like_the_library(row):
    assert_acts_like_the_library(make(*TABLE[row]))
