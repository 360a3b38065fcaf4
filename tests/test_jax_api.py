"""Names of JAX that may move without notice: each has one owner, and qscape trains without it."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from test_drive import begun, leaves, take_early, told

from qscape.run import callbacks
from qscape.run import events as ev


@pytest.mark.parametrize("name", ["io_callback", "buffer_callback"])
def test_this_jax_has_the_callback(name):
    assert getattr(callbacks, name) is not None, f"JAX {jax.__version__} has moved {name} (run/callbacks.py)"


@pytest.mark.parametrize("name", ["ClosedJaxpr", "Literal"])
def test_this_jax_has_the_type_of_the_export(name):
    core = pytest.importorskip("jax.extend.core", reason="")
    assert hasattr(core, name), f"JAX {jax.__version__} has moved jax.extend.core.{name} (export/graph.py)"


def test_without_the_callback_the_host_makes_the_same_steps_and_says_so(monkeypatch):
    take_early(monkeypatch)
    driven = begun()
    expected = told(driven)
    assert driven.engine.driver is not None
    name = "buffer_callback" if jax.default_backend() == "cpu" else "io_callback"
    monkeypatch.setattr(callbacks, name, None)
    hosted = begun()
    found = told(hosted)
    assert hosted.engine.driver is None
    notes, before = found[0][1].pop("notes"), expected[0][1].pop("notes")
    assert [note for note in notes if note not in before] == [callbacks.missing()]
    assert name in str(callbacks.missing())
    np.testing.assert_equal(found, expected)
    for (path, a), (_, b) in zip(leaves(hosted), leaves(driven), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)


def test_a_short_run_has_no_note_on_the_callback(monkeypatch):
    monkeypatch.setattr(callbacks, "buffer_callback", None)
    started = next(event for event in begun().events(1) if isinstance(event, ev.Started))
    assert callbacks.missing() not in started.notes


def test_without_the_types_the_export_names_them():
    pytest.importorskip("onnx")
    code = """if True:
        import sys
        import qscape.export.policy  # with Equinox, which needs the module too
        from qscape.errors import UsageError
        sys.modules["jax.extend.core"] = None
        try:
            import qscape.export.convert
        except UsageError as problem:
            print(problem)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "jax.extend.core" in done.stdout
    assert jax.__version__ in done.stdout
