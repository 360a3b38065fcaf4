"""`playground/CheetahRun` and the others: MuJoCo Playground (Zakka et al., arXiv 2502.08844)."""

import dataclasses
import importlib
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Bool

from qscape.envs.simulators.base import Simulated, StateEnv, draw_bodies
from qscape.errors import WrongValue

SUCCESS = "reward/success"  # name among the metrics


class PlaygroundEnv(StateEnv):
    """An environment of MuJoCo Playground. The limit is its `episode_length`; NaN in its data terminates."""

    MODEL: ClassVar[str] = "_mjx_model"

    def draw(self, state: Simulated) -> np.ndarray | None:
        """Return the image of MuJoCo's renderer."""
        data = self.layout.unpack(state.leaves).data
        place = {name: getattr(data, name) for name in ("qpos", "qvel", "mocap_pos", "mocap_quat")}
        return draw_bodies(self.sim.mj_model, **place)


class SuccessEnv(PlaygroundEnv):
    """An environment of MuJoCo Playground whose metrics tell success."""

    reports_success: ClassVar[bool] = True

    def _success(self, state: Any) -> Bool[Array, ""]:
        return state.metrics[SUCCESS] > 0


def list_names() -> list[str]:
    """Return names in Playground's registry."""
    return [*importlib.import_module("mujoco_playground").registry.ALL_ENVS]


def list_arguments(name: str) -> list[str]:
    """Return entries of an environment's configuration; those of a part of it are written `part.entry`."""
    return ["observation", *_flatten(_config(name))]


def load(name: str, args: dict[str, Any]) -> PlaygroundEnv:
    """Return the environment of this name; `args` override its configuration.

    MJX computes the physics in JAX, also where Playground's own default is Warp.

    Raises:
        UsageError: `impl` asks for other physics. Warp's data of E copies are arrays without a leading
            axis, so states cannot be mapped over, picked and replaced as those of a `JaxEnv` are.
    """
    if (impl := args.get("impl", "jax")) != "jax":
        raise WrongValue(
            f"playground/{name} with impl {impl!r} cannot be trained here, on no device: in its "
            "arrays one copy cannot be reset apart from the others; leave impl out, or say jax",
            field="env_args",
        )
    key, config = args.pop("observation", None), _config(name)
    overrides = ({"impl": "jax"} if "impl" in config else {}) | args
    registry: Any = importlib.import_module("mujoco_playground").registry
    config.update_from_flattened_dict(overrides)
    repeat = int(config.get("action_repeat", 1))
    limit = -(-int(config.episode_length) // repeat)
    made = PlaygroundEnv.wrap(registry.load(name, config=config), limit, key, repeat)
    if SUCCESS not in _metrics(made):
        return made
    return SuccessEnv(**{field.name: getattr(made, field.name) for field in dataclasses.fields(made)})


def _metrics(env: StateEnv) -> list[str]:
    """Return names of the metrics that an environment keeps."""
    shapes: Any = env.layout.shapes
    return [*env.layout.unpack(shapes).metrics]


def _config(name: str) -> Any:
    return importlib.import_module("mujoco_playground").registry.get_default_config(name)


def _flatten(config: Any, prefix: str = "") -> list[str]:
    names = []
    for entry, value in config.items():
        names += _flatten(value, f"{prefix}{entry}.") if hasattr(value, "items") else [prefix + entry]
    return names
