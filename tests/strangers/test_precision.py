"""Observations whose mean is large beside their spread are named, with what to subtract; others are not."""

import h5py
import numpy as np
import pytest
import tiny
from gymnasium import spaces

import qscape as qs
from qscape.data import read
from qscape.envs import make
from qscape.envs.precision import Precision

STEPS = 300


class Far(tiny.Clock):
    """Shows numbers around `mean`, of a dtype; the first entry is an ordinary one."""

    def __init__(self, mean=1.7e9, spread=10.0, dtype="float64", form="box"):
        super().__init__(length=50)
        self.mean, self.spread, self.dtype, self.form = mean, spread, np.dtype(dtype), form
        line = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        if self.dtype.kind in "iu":
            info = np.iinfo(self.dtype)
            line = spaces.Box(info.min, info.max, (2,), self.dtype)
        self.observation_space = (
            line if form == "box" else spaces.Dict(a=line, b=spaces.Dict(c=spaces.Box(-1, 1, (1,))))
        )

    def shown(self):
        noise = self.np_random.normal(size=2) if self.np_random else np.zeros(2)
        row = np.array([noise[0], self.mean + self.spread * noise[1]]).astype(self.dtype)
        return row if self.form == "box" else {"a": row, "b": {"c": np.zeros(1, np.float32)}}


def told(envs=1, steps=STEPS, **given):
    """What an adapter says after steps, asked twice."""
    adapter = make(lambda: Far(**given), envs, seed=3)
    adapter.reset()
    for _ in range(steps // envs):
        adapter.step(np.zeros((envs, 1), np.float32))
    return adapter.take_warnings() + adapter.take_warnings()


FAR = {
    "clock": {"mean": 1.7e9, "spread": 10.0},
    "map": {"mean": -5.2e6, "spread": 3.0},
    "price": {"mean": 1e5, "spread": 0.5},
    "whole": {"mean": 1.7e12, "spread": 1000.0, "dtype": "int64"},
    "small whole": {"mean": 2e9, "spread": 50.0, "dtype": "int32"},
    "small": {"mean": 1e-3, "spread": 1e-9},
    "huge": {"mean": 1e30, "spread": 1e20},
    "dict": {"form": "dict"},
}
NEAR = {
    "none": {"mean": 0.0, "spread": 1.0},
    "within": {"mean": 5e3, "spread": 1.0},
    "constant": {"mean": 1e9, "spread": 0.0},
    "wide": {"mean": 1e9, "spread": 1e9},
    "whole": {"mean": 100, "spread": 20.0, "dtype": "int64"},
    "tiny": {"mean": 1e-9, "spread": 1e-9},
}


@pytest.mark.parametrize("which", FAR)
@pytest.mark.parametrize("envs", [1, 3])
def test_an_entry_that_float32_loses_is_named_once_with_what_to_subtract(which, envs):
    (sentence,) = told(envs, **FAR[which])
    name = "a[1]" if which == "dict" else "observation[1]"
    assert f"Far_: {name} lies around" in sentence or f": {name} lies around" in sentence
    mean = FAR[which].get("mean", 1.7e9)
    subtract = float(sentence.split("subtract ")[1].split(" in")[0])
    assert subtract == pytest.approx(mean, rel=1e-4)
    step = float(sentence.split("steps of ")[1].split(" there")[0])
    assert step == pytest.approx(abs(float(np.spacing(np.float32(mean)))), rel=0.1)


@pytest.mark.parametrize("which", NEAR)
def test_nothing_is_said_of_others(which):
    assert told(**NEAR[which]) == []


def test_a_clock_that_only_counts_up_is_named():
    precision = Precision([((), spaces.Box(0, np.inf, (1,), np.float64))])
    for t in range(2_000):
        precision.see(np.array([1.7e9 + t]), 1)
    assert "observation[0]" in precision.warning("E")
    assert precision.seen == 1_000


def test_too_few_observations_are_not_judged():
    assert told(steps=20) == []


def test_subtracting_in_the_environment_is_the_remedy():
    import gymnasium as gym

    def mended():
        env = Far()
        return gym.wrappers.TransformObservation(
            env, lambda x: x - np.array([0, 1.7e9]), env.observation_space
        )

    adapter = make(mended, seed=3)
    rows = [adapter.reset(), *(adapter.step(np.zeros((1, 1), np.float32)).observation for _ in range(200))]
    assert adapter.take_warnings() == []
    assert 8 < np.std(np.concatenate(rows)[:, 1]) < 12


def test_a_model_warns_in_learn():
    small = tiny.settings("td3", warmup=10)
    with pytest.warns(UserWarning, match=r"observation\[1\] lies around 1\.7e\+09"):
        qs.Model("td3", Far, eval_every=0, **small).learn(120)


@pytest.mark.parametrize("which", ["clock", "within"])
def test_a_file_is_judged_by_its_own_numbers(which, tmp_path):
    rng = np.random.default_rng(0)
    mean, spread = (1.7e9, 10.0) if which == "clock" else (5e3, 1.0)
    rows = {
        "observations": np.stack([rng.normal(size=3_000), mean + spread * rng.normal(size=3_000)], 1),
        "actions": np.zeros((3_000, 1)),
        "rewards": np.ones(3_000),
        "terminals": np.zeros(3_000),
        "timeouts": np.arange(3_000) % 50 == 49,
    }
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, column in rows.items():
            file[name] = column
    notes = [note for note in read(str(tmp_path / "a.hdf5")).notes if "lies around" in note]
    assert len(notes) == (which == "clock")
    assert all("observation[1]" in note and "in the file" in note for note in notes)
