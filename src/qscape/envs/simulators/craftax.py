"""`craftax/Craftax-Symbolic-v1` and the others: Craftax (Matthews et al., arXiv 2402.16801)."""

import importlib
from typing import Any

from qscape.envs.simulators.gymnax import GymnaxEnv, wrap

LIMIT = "max_timesteps"
NAMES = [
    "Craftax-Symbolic-v1",
    "Craftax-Pixels-v1",
    "Craftax-Classic-Symbolic-v1",
    "Craftax-Classic-Pixels-v1",
]


def list_names() -> list[str]:
    """Return names that Craftax's `make_craftax_env_from_name` knows; pictures are flattened to vectors."""
    importlib.import_module("craftax.craftax_env")
    return NAMES


def list_arguments(name: str) -> list[str]:
    """Return parameters of an environment."""
    return sorted({*vars(_make(name).default_params)} - {LIMIT})


def load(name: str, args: dict[str, Any]) -> GymnaxEnv:
    """Return the environment of this name; `args` are parameters of it."""
    sim = _make(name)
    return wrap(sim, sim.default_params.replace(**args), LIMIT)


def _make(name: str) -> Any:
    return importlib.import_module("craftax.craftax_env").make_craftax_env_from_name(name, auto_reset=False)
