"""Annotated shapes and types are a contract: they hold in an update of every recipe."""

import json

import pytest
from tiny import TESTS, python

WRONG = "update with a target [B]"
SOME = (
    "update td7",
    "act td7",
    "update sac+savgo",
    "update everything, n-step, derived",
    "update ppo on a box",
)


def trace(*names):
    """Errors by row, from tests/shapes.py in a process that checks annotations."""
    path = str(TESTS / "shapes.py")
    run = f"import runpy, sys; sys.argv[1:] = {names}; runpy.run_path({path!r}, run_name='__main__')"
    return json.loads(python(run))


@pytest.fixture(scope="module")
def traced():
    return trace()


def test_shapes_hold_in_some_updates_and_a_wrong_one_is_caught():
    found = trace(*SOME, WRONG)
    assert found["traced"] == len(SOME) + 1
    assert found["errors"].keys() == {WRONG}


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
    error = traced["errors"][WRONG]
    assert "qscape.offpolicy.update._targets.<locals>.value" in error
    assert "f32[8]" in error
