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
    from qscape.inspect.landscape import Landscape, landscape
    from qscape.inspect.landscapes import measure_landscapes
    from qscape.inspect.smoothness import measure_robustness, measure_smoothness
    from qscape.inspect.trained_agent import TrainedAgent, load_history, load_trained_agent
    from qscape.jobs.check import check_env
    from qscape.jobs.reproduce import reproduce
    from qscape.model import A2C, DQN, PPO, REINFORCE, SAC, TD3, TD7, TRPO, Model, load
    from qscape.offpolicy import sockets
    from qscape.onpolicy import sockets as onpolicy_sockets
    from qscape.report.runs import load_runs
    from qscape.run import Plan, events, resume, train
    from qscape.trusted import trust
    from qscape.types import Batch, Event, Key, Metrics, Part, Scalar, Spec, setting

_MODULES = {
    "events": "qscape.run.events",
    "onpolicy_sockets": "qscape.onpolicy.sockets",
    "sockets": "qscape.offpolicy.sockets",
}
_PLACES = {
    "agent": "qscape.agents",
    "register": "qscape.agents",
    "QscapeError": "qscape.errors",
    "RunError": "qscape.errors",
    "UsageError": "qscape.errors",
    "A2C": "qscape.model",
    "DQN": "qscape.model",
    "PPO": "qscape.model",
    "REINFORCE": "qscape.model",
    "SAC": "qscape.model",
    "TD3": "qscape.model",
    "TD7": "qscape.model",
    "TRPO": "qscape.model",
    "Model": "qscape.model",
    "load": "qscape.model",
    "Landscape": "qscape.inspect.landscape",
    "landscape": "qscape.inspect.landscape",
    "measure_landscapes": "qscape.inspect.landscapes",
    "measure_robustness": "qscape.inspect.smoothness",
    "measure_smoothness": "qscape.inspect.smoothness",
    "TrainedAgent": "qscape.inspect.trained_agent",
    "load_history": "qscape.inspect.trained_agent",
    "load_trained_agent": "qscape.inspect.trained_agent",
    "load_runs": "qscape.report.runs",
    "Plan": "qscape.run",
    "check_env": "qscape.jobs.check",
    "reproduce": "qscape.jobs.reproduce",
    "resume": "qscape.run",
    "train": "qscape.run",
    "trust": "qscape.trusted",
    "Batch": "qscape.types",
    "Event": "qscape.types",
    "Key": "qscape.types",
    "Metrics": "qscape.types",
    "Part": "qscape.types",
    "Scalar": "qscape.types",
    "Spec": "qscape.types",
    "setting": "qscape.types",
}

__all__ = [
    "A2C",
    "DQN",
    "PPO",
    "REINFORCE",
    "SAC",
    "TD3",
    "TD7",
    "TRPO",
    "Batch",
    "Event",
    "Key",
    "Landscape",
    "Metrics",
    "Model",
    "Part",
    "Plan",
    "QscapeError",
    "RunError",
    "Scalar",
    "Spec",
    "TrainedAgent",
    "UsageError",
    "agent",
    "check_env",
    "events",
    "landscape",
    "load",
    "load_history",
    "load_runs",
    "load_trained_agent",
    "measure_landscapes",
    "measure_robustness",
    "measure_smoothness",
    "onpolicy_sockets",
    "register",
    "reproduce",
    "resume",
    "setting",
    "sockets",
    "train",
    "trust",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _PLACES:
        raise AttributeError(f"module 'qscape' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES, *_MODULES])
