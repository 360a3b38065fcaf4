"""qscape: reinforcement learning that learns, shapes and searches the action-value landscape.

    import qscape as qs
    model = qs.TD7("HalfCheetah-v5", seed=0).learn(100_000)
    action, _ = model.predict(observation)

Everything is loaded on first use, so that `import qscape` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qscape.agents import agent, register
    from qscape.errors import QscapeError, RunError, UsageError
    from qscape.inspect.landscape import landscape
    from qscape.model import A2C, PPO, REINFORCE, SAC, TD3, TD7, TRPO, Model, load
    from qscape.report.runs import load_runs
    from qscape.run import Plan, resume, train
    from qscape.types import Spec

_PLACES = {
    "agent": ("qscape.agents", "agent"),
    "QscapeError": ("qscape.errors", "QscapeError"),
    "RunError": ("qscape.errors", "RunError"),
    "UsageError": ("qscape.errors", "UsageError"),
    "A2C": ("qscape.model", "A2C"),
    "PPO": ("qscape.model", "PPO"),
    "REINFORCE": ("qscape.model", "REINFORCE"),
    "SAC": ("qscape.model", "SAC"),
    "TD3": ("qscape.model", "TD3"),
    "TD7": ("qscape.model", "TD7"),
    "TRPO": ("qscape.model", "TRPO"),
    "Model": ("qscape.model", "Model"),
    "landscape": ("qscape.inspect.landscape", "landscape"),
    "load": ("qscape.model", "load"),
    "load_runs": ("qscape.report.runs", "load_runs"),
    "Plan": ("qscape.run", "Plan"),
    "register": ("qscape.agents", "register"),
    "resume": ("qscape.run", "resume"),
    "train": ("qscape.run", "train"),
    "Spec": ("qscape.types", "Spec"),
}

__all__ = [
    "A2C",
    "PPO",
    "REINFORCE",
    "SAC",
    "TD3",
    "TD7",
    "TRPO",
    "Model",
    "Plan",
    "QscapeError",
    "RunError",
    "Spec",
    "UsageError",
    "agent",
    "landscape",
    "load",
    "load_runs",
    "register",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'qscape' has no attribute '{name}'")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
