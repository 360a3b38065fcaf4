"""Any environment that draws, seen by its pictures: the ids `pixels/...`."""

import re
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import (
    AddRenderObservation,
    FrameStackObservation,
    GrayscaleObservation,
    ResizeObservation,
)

from qscape.envs.build import build_env
from qscape.envs.pixels import need_opencv
from qscape.errors import MissingPackage, UnfitEnv, UsageError, describe
from qscape.system import draw_without_screen


def rendered(env: str = "CartPole-v1", limited: bool = True, **args: Any) -> gym.Env:
    """`pixels/Any-v0`: an environment that shows what it draws instead of its observation, a frame a step.

    Args:
        env: id of the environment; further arguments are that environment's.
        limited: keep the environment's own time limit? False if `max_episode_steps` replaces it.

    Raises:
        UsageError: OpenCV or a package for drawing is missing, or the environment draws no pictures.
    """
    need_opencv(env, "pixels")
    draw_without_screen()
    try:
        made = build_env(env, {"render_mode": "rgb_array"} | args, limited)
        pictures = ResizeObservation(AddRenderObservation(made), (84, 84))
        return FrameStackObservation(GrayscaleObservation(pictures), 4)
    except UsageError as problem:
        if re.search("argument 'render_mode'|no render_mode", str(problem)):
            raise UnfitEnv(f"{env} draws no pictures that an agent could see") from problem
        raise
    except gym.error.DependencyNotInstalled as problem:
        raise MissingPackage(f'{env} draws with a missing package: pip install "qscape[pixels]"') from problem
    except Exception as problem:
        raise UnfitEnv(f"{env} draws no pictures that an agent could see ({describe(problem)})") from problem
