"""A little of every area of `python -m tests.faults`."""

import pytest
from faults import soak
from faults.areas import AREAS, try_once
from faults.trial import Bench

TRIALS = dict.fromkeys(AREAS, 1) | {"damage": 6, "fuzz": 2, "environments": 3}
SEED = 27


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("whole"))
    made.loops = {name: made.loops[name] for name in ("host", "compiled")}  # the others cost minutes
    return made


@pytest.mark.slow
@pytest.mark.parametrize("area", AREAS)
def test_an_area_survives(area, bench, tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "SECONDS", 10)
    for trial in range(TRIALS[area]):
        what, problem, skipped = try_once(area, SEED, trial, tmp_path / str(trial), bench)
        if skipped:
            pytest.skip(what)
        assert not problem, problem
