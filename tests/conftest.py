"""How every test runs: on the CPU, with compiled programs kept between runs."""

import os
from pathlib import Path

import pytest
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

# What is compared to the bit, learned in many updates or measured here, with the machine code that users run.
OPTIMISED = {
    "test_drive",
    "test_lap",
    "test_onpolicy",
    "test_onpolicy_oracles",
    "test_oracles",
    "test_probes",
    "test_resume",
    "test_seeds",
    "test_silu",
}


@pytest.fixture(autouse=True, scope="module")
def machine_code(request):
    """Most tests pass their time compiling. Outside `OPTIMISED` LLVM optimises less: 40% of it is saved."""
    import jax

    quick = request.path.stem not in OPTIMISED
    if quick != jax.config.read("jax_disable_most_optimizations"):
        jax.config.update("jax_disable_most_optimizations", quick)
        jax.clear_caches()  # they do not tell one from the other
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(quick)))  # processes that tests start
        yield
