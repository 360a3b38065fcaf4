"""Training inside one program on several devices: as on one, and without moving the replay."""

import json

import pytest
from rows import slow_except
from tiny import TESTS, python

CASES = ("td3", "sac", "td7", "rows", "half", "ppo", "a2c")
TOLERANCE = (
    1e-3  # largest |a - b| / (|a| + 0.01) after 36 updates; sums over a batch are added in another order
)


def run(case: str):
    """Run tests/on_devices.py in a process with four devices."""
    path = str(TESTS / "on_devices.py")
    script = f"import runpy, sys; sys.argv = ['', {case!r}]; runpy.run_path({path!r}, run_name='__main__')"
    return json.loads(python(script))


@pytest.fixture(scope="module", params=slow_except(["ppo"], CASES))
def made(request):
    return run(request.param)


def test_four_devices_make_the_run_of_one(made):
    assert made["difference"] < TOLERANCE
    assert made["learned"] > 10 * TOLERANCE


def test_a_chunk_returns_what_the_next_one_takes(made):
    """Nothing is compiled again, and the memory of the run before is used again."""
    assert (made["traced"], made["compiled"], made["reused"], made["kept"]) == (1, 1, True, True)
    assert made["split"] == [False, True]


def test_devices_send_each_other_gradients_and_what_they_learn_from(made):
    """Every gradient once, the rows of a batch or rollout once, single numbers: nothing of replay's size."""
    assert {kind for kind, _ in made["collectives"]} <= {"all-reduce", "all-gather"}
    summed, gathered = (
        sum(size for found, size in made["collectives"] if found == kind)
        for kind in ("all-reduce", "all-gather")
    )
    if "read" in made:
        needed = made["gradients"] + made["read"]
        assert needed <= summed < needed + 100
        assert gathered <= 160, "the priorities of a batch, or rewards and ends of episodes"
    else:
        assert made["gradients"] <= summed < made["gradients"] + 100
        assert made["observations"] <= gathered < 3 * made["observations"]


@pytest.fixture(scope="module")
def parts():
    return run("parts")


def test_meshes_that_cannot_be_are_refused(parts):
    refused = parts["refuse"]
    assert refused["envs"].startswith(
        "6 environments cannot be split evenly over 4 devices; choose a multiple"
    )
    assert refused["batch"].startswith("30 rows of a batch cannot be split evenly over 4 devices")
    assert refused["count"] == "5 devices are asked for and JAX sees 4 (cpu); choose from 1 to 4."
    assert refused["fits"] == ""


def test_split_storage_is_saved_and_restored_by_rings(parts):
    whole = {"pieces": True, "restored": True, "rest": 0.0, "split": True}
    assert parts["save"] == {"float32": whole, "bfloat16": whole}


def test_a_loop_on_each_device_waits_for_no_other(parts):
    assert parts["iterate"] == {
        "all": {"same": True, "collectives": 1},
        "each": {"same": True, "collectives": 0},
    }
