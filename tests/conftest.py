"""How every test runs: on the CPU, with compiled programs kept between runs."""

import os
from pathlib import Path

from browser import chromium, visit  # noqa: F401  fixtures: one browser for all files of tests
from hypothesis import settings

# Read by jax when it is imported, here and in the processes that tests start. One cache per worker:
# jax does not write its entries atomically, so two workers must not share one.
_worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
_cache = Path(__file__).parent.parent / ".pytest_cache" / "jax" / _worker
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_cache)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"  # jax's own 1.0 leaves most of ours out

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
