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
from qscape.run import Plan, programs, train
from qscape.system import count_cores

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


UPDATES = {  # by recipe: fields of the base, of its schedule, and environments
    "td3": ({}, {}, 1),
    "td3+lap": ({"updates_per_step": 2}, {}, 1),
    "td3+pave": ({}, {"every": 4}, 1),
    "sac+normalise": ({}, {}, 2),
    "td7": ({}, {}, 1),
}


@pytest.mark.parametrize("recipe", UPDATES)
def test_the_first_update_is_compiled_by_the_shapes_that_it_has(recipe, tmp_path, monkeypatch, caplog):
    """What a thread compiles is what the first update calls, which compiles nothing itself."""
    fields, schedule, envs = UPDATES[recipe]
    small = {"warmup": 20, "batch_size": 8, "actor_hidden": (8,), "critic_hidden": (8,)}
    settings = {"base": small | fields} | ({"every_step": schedule} if schedule else {})
    plan = Plan(recipe, "Pendulum-v1", 450, envs=envs, settings=settings, eval_every=0)
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(programs, "count_cores", lambda: 2)
    ahead, call, begun, said = programs.Program.compile_ahead, programs.Program.__call__, [], []

    def compile_ahead(self, *args):
        ahead(self, *args)
        begun.append(self)

    def recorded(self, *args):
        if self not in begun or said:
            return call(self, *args)
        self._ahead.join()
        caplog.clear()
        with jax.log_compiles():
            carry = call(self, *args)
        said.append([record.getMessage() for record in caplog.records])
        return carry

    monkeypatch.setattr(programs.Program, "compile_ahead", compile_ahead)
    monkeypatch.setattr(programs.Program, "__call__", recorded)
    for _ in train(plan, tmp_path / "run"):
        pass
    assert len(begun) == 1
    assert said == [[]]


def test_with_one_thread_nothing_is_compiled_beside_the_run(monkeypatch):
    monkeypatch.setenv("NPROC", "1")
    program = programs.Program(lambda carry: carry, ("metrics",), ())
    program.compile_ahead(programs.EMPTY)
    assert program._ahead is None


def test_what_fails_while_it_is_compiled_ahead_is_raised_by_the_call(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(programs, "count_cores", lambda: 2)

    def broken(carry):
        raise ValueError("this part is broken")

    program = programs.Program(broken, ("metrics",), ())
    carry = programs.EMPTY._replace(metrics=np.zeros(3, np.float32))
    program.compile_ahead(carry)
    with pytest.raises(ValueError, match="this part is broken"):
        program(carry)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "most"), [("td3", 26), ("td7", 35), ("simba", 46)])
def test_a_start_compiles_no_more_and_a_warm_cache_changes_no_number(recipe, most, tmp_path):
    spec = importlib.util.find_spec("qscape")
    assert spec is not None
    assert spec.origin is not None
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(spec.origin).parents[1]),
        "JAX_PLATFORMS": "cpu",
    }
    for name in ("JAX_COMPILATION_CACHE_DIR", "NPROC"):
        environment.pop(name, None)
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
    if count_cores() > 1:  # a thread has compiled it before
        assert cold["phases"]["first update"]["compiled"] == 0
    assert [*tmp_path.glob("qscape/xla/*")]
