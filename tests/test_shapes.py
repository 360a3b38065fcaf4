"""Annotated shapes and types are a contract: they hold in an update of every recipe."""

import json

import pytest
from tiny import TESTS, python


@pytest.fixture(scope="module")
def traced():
    """Errors by recipe, from tests/shapes.py in a process that checks annotations."""
    path = str(TESTS / "shapes.py")
    return json.loads(python(f"import runpy; runpy.run_path({path!r}, run_name='__main__')"))


@pytest.mark.slow
@pytest.mark.long
def test_shapes_hold_in_an_update_of_every_recipe(traced):
    import contrib.test_contract
    import test_contract

    assert traced["traced"] > 2 * len(test_contract.TABLE | contrib.test_contract.TABLE)
    assert {name: error for name, error in traced["errors"].items() if "target [B]" not in name} == {}


@pytest.mark.slow
@pytest.mark.long
def test_a_wrong_shape_is_caught(traced):
    error = traced["errors"]["update with a target [B]"]
    assert "qscape.offpolicy.update._targets.<locals>.value" in error
    assert "f32[8]" in error
