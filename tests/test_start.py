"""What a start compiles, and that the cache of compiled programs changes no number."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from qscape.nets import initial

ROOT = Path(__file__).resolve().parents[1]
DRAWN = {
    "he": initial.he_linear,
    "lecun": initial.lecun_linear,
    "xavier": initial.xavier_linear,
    "normal": lambda key, size, outputs: initial.normal_linear(key, size, outputs, 0.1),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_layer_draws_nothing_that_it_throws_away(name):
    """Each draw of another shape is a program of its own, which takes a quarter of a second to compile."""
    key = jax.random.key(0)
    drawn = str(jax.make_jaxpr(lambda key: DRAWN[name](key, 3, 4))(key))
    assert drawn.count("random_bits") == 1
    layer = DRAWN[name](key, 3, 4)
    assert layer.weight.shape == (4, 3)
    assert np.std(layer.weight) > 0.0
    assert layer.bias.tobytes() == np.zeros(4, np.float32).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "most"), [("td3", 38), ("simba", 68)])
def test_a_start_compiles_no_more_and_a_warm_cache_changes_no_number(recipe, most, tmp_path):
    spec = importlib.util.find_spec("qscape")
    assert spec is not None
    assert spec.origin is not None
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(spec.origin).parents[1]),
        "JAX_PLATFORMS": "cpu",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    found = []
    for _ in ("cold", "warm"):
        command = [sys.executable, ROOT / "benchmarks/start.py", f"{recipe}:Pendulum-v1"]
        command += ["--child", "qscape", "--begun", str(time.time())]
        made = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        found.append(json.loads(made.stdout.splitlines()[-1]))
    cold, warm = found
    assert cold["networks"] == warm["networks"]
    assert cold["total"]["compiled"] == warm["total"]["compiled"] <= most
    assert [*cold["phases"]][-1] == "first update"
    assert [*tmp_path.glob("qscape/xla/*")]
