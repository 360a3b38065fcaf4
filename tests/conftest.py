"""Settings of all tests: JAX runs on the CPU and keeps compiled programs between test runs."""

import os
import sys
from pathlib import Path

import pytest
from browser import chromium, visit  # noqa: F401  fixtures: one browser for all files of tests
from hypothesis import settings

# JAX reads these variables when it is imported, here and in processes that tests start. Each worker has its
# own cache, since JAX does not write cache entries atomically; so has each virtual environment, as `make
# test-oldest` and `make test-newest` have other versions of JAX.
_worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
_cache = Path(__file__).parent.parent / ".pytest_cache" / "jax" / Path(sys.prefix).name / _worker
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_cache)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"  # by default 1.0, above most of ours

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# Tests that `make test` leaves out because of their duration: see measure_slow.py.
_listed = frozenset(Path(__file__).with_name("slow.txt").read_text().splitlines())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the list as slow, before `-m` chooses by marks."""
    for item in items:
        if item.nodeid in _listed:
            item.add_marker(pytest.mark.slow)
