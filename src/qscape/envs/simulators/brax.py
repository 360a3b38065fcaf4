"""`brax/ant` and the others: the environments of Brax (Freeman et al., arXiv 2106.13281)."""

import importlib
import inspect
import warnings
from typing import Any, ClassVar

import numpy as np

from qscape.envs.simulators.base import Simulated, StateEnv, draw_bodies

TIME_LIMIT = 1000  # of Brax's own training


class BraxEnv(StateEnv):
    """An environment of Brax. It terminates where Brax says done, and is truncated after 1000 steps."""

    MODEL: ClassVar[str] = "sys"

    def draw(self, state: Simulated) -> np.ndarray | None:
        """Return the image of MuJoCo's renderer; None for `brax/fast`, which has no bodies."""
        if self.model is None:
            return None
        inner = self.layout.unpack(state.leaves).pipeline_state
        return draw_bodies(self.sim.sys.mj_model, qpos=inner.q, qvel=inner.qd)


def list_names() -> list[str]:
    """Return names in Brax's registry."""
    return [*importlib.import_module("brax.envs")._envs]


def list_arguments(name: str) -> list[str]:
    """Return arguments of an environment."""
    base: Any = importlib.import_module("brax.envs.base").PipelineEnv
    own = [*inspect.signature(importlib.import_module("brax.envs")._envs[name]).parameters.values()]
    more = inspect.signature(base).parameters.values() if any(p.kind == p.VAR_KEYWORD for p in own) else ()
    known = {p.name for p in (*own, *more) if p.kind != p.VAR_KEYWORD and p.name != "sys"}
    return ["observation", *sorted(known)]


def load(name: str, args: dict[str, Any]) -> BraxEnv:
    """Return the environment of this name; `args` go to its constructor."""
    key = args.pop("observation", None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Brax System")  # that Brax is not developed further
        sim = importlib.import_module("brax.envs").get_environment(name, **args)
    return BraxEnv.wrap(sim, TIME_LIMIT, key)
