"""Choose the tests that `make test` leaves out because of their duration, and write them to tests/slow.txt.

    PYTEST_ADDOPTS=--junitxml=durations.xml make test
    python tests/measure_slow.py durations.xml --minutes 13

The file says how many seconds of one core each quick test took. The slowest of them go to the list until the
others take at most so many minutes. Tests that are in the list already stay there: they did not run. A test
in `KEPT` stays quick, however long it takes. conftest.py marks those of the list as slow.
"""

import argparse
import xml.etree.ElementTree as ET
from pathlib import Path

LIST = Path(__file__).with_name("slow.txt")
MUTANTS_NEED = (  # tests/mutants.py: no other quick test notices them
    "episodes.py::test_the_episodes_are_those_of_the_gymnasium_face[gusts-td3+normalise-3]",
    "onpolicy.py::test_scaled_returns",
    "pave.py::test_the_scale_of_the_critics_loss_is_that_of_its_gradient",
    "run.py::test_the_loop_equals_one_by_hand[td3]",
    "run.py::test_training_is_the_same_with_and_without_evaluation",
    "savgo_checks.py::test_the_hybrid_mixes_the_kernels_gradient_with_sacs",
    "savo.py::test_at_a_tie_the_whole_gradient_passes",
    "savo.py::test_surrogates_regress_to_the_truncated_least_critic",
)
# What every change shows: all ways to train make the same numbers as the straight-line files, to the bit; all
# parts fit each other; shapes hold; old runs load; refusals read as listed; goals are relabelled as by hand.
KEPT = (
    *(f"tests/test_{name}.py" for name in ("compiled", "contract", "contrib", "drive", "engine", "golden")),
    *(f"tests/test_{name}.py" for name in ("onpolicy_oracles", "oracles", "refusals", "shapes", "source")),
    "tests/test_td7_checks.py",
    "tests/contrib/",  # its conftest.py chooses
    "tests/test_goals.py::test_rows_are_those_relabelled_by_hand",
    *(f"tests/test_{name}" for name in MUTANTS_NEED),
)


def read_durations(path: Path) -> dict[str, float]:
    """Return the seconds of each test of a JUnit file, by the test's name as pytest prints it."""
    found: dict[str, float] = {}
    for case in ET.parse(path).getroot().iter("testcase"):
        file = case.attrib["classname"].replace(".", "/") + ".py"
        name = f"{file}::{case.attrib['name']}"
        found[name] = found.get(name, 0.0) + float(case.attrib["time"])
    return found


def choose_slow(seconds: dict[str, float], minutes: float) -> list[str]:
    """Return the tests to leave out, so that the others take at most `minutes`, as far as `KEPT` allows."""
    left = sum(seconds.values())
    chosen = []
    for name in sorted(seconds, key=seconds.__getitem__, reverse=True):
        if left <= 60 * minutes:
            break
        if not name.startswith(KEPT):
            chosen.append(name)
            left -= seconds[name]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose the tests that `make test` leaves out.")
    parser.add_argument("durations", type=Path, help="a JUnit file of `make test`")
    parser.add_argument("--minutes", type=float, default=13.0, help="of one core, for the tests that stay")
    options = parser.parse_args()
    chosen = choose_slow(read_durations(options.durations), options.minutes)
    listed = {*LIST.read_text().splitlines()} if LIST.exists() else set[str]()
    LIST.write_text("".join(f"{name}\n" for name in sorted(listed | {*chosen})))
    print(f"{len(chosen)} tests more are slow, {len(listed | {*chosen})} in all")


if __name__ == "__main__":
    main()
