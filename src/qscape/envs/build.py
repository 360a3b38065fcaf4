"""One Gymnasium environment of an id, and a clear sentence where there is none."""

import difflib
import importlib
import importlib.util
import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from qscape.errors import UsageError

# package: (extra of qscape that brings it, ids that need it, how such an id has to be written)
_PACKAGES = {
    "Box2D": ("box2d", r"LunarLander|BipedalWalker|CarRacing", ""),
    "gymnasium_robotics": (
        "robotics",
        r"gymnasium_robotics:|Fetch|HandManip|HandReach|Adroit|PointMaze|AntMaze|FrankaKitchen",
        "gymnasium_robotics:",
    ),
    "ale_py": ("atari", r"ale_py:|ALE/", "ale_py:"),
}


def build_env(env_id: str | Callable[..., gym.Env], args: dict[str, Any]) -> gym.Env:
    """One environment, or a UsageError that says what is wrong with the id or the arguments."""
    _hear_mujoco(env_id)
    name = env_id if isinstance(env_id, str) else getattr(env_id, "__name__", repr(env_id))
    try:
        env = gym.make(env_id, **args) if isinstance(env_id, str) else env_id(**args)
    except (gym.error.Error, ImportError) as problem:
        raise UsageError(_why_not(name, problem)) from problem
    except Exception as problem:
        if not args and not isinstance(problem, TypeError):
            raise
        raise UsageError(
            f"{name} cannot be made with env_args {args}: {problem}{_accepted(env_id)}"
        ) from problem
    if not isinstance(env, gym.Env):
        raise UsageError(f"{name} made a {type(env).__name__}, not a gymnasium.Env")
    return env


def _hear_mujoco(env_id: str | Callable[..., gym.Env]) -> None:
    """Let MuJoCo's warnings be Python's; by itself it prints them and leaves a MUJOCO_LOG.TXT behind."""
    spec = gym.registry.get(env_id) if isinstance(env_id, str) else None
    if spec is not None and "mujoco" in str(spec.entry_point) and importlib.util.find_spec("mujoco"):
        mujoco: Any = importlib.import_module("mujoco")

        def warn(message: str) -> None:
            if "settotalmass" not in message:  # deprecated, in Gymnasium's own models: nobody's fault here
                warnings.warn(f"MuJoCo: {message}", stacklevel=2)

        mujoco.set_mju_user_warning(warn)


def _accepted(env_id: str | Callable[..., gym.Env]) -> str:
    """The arguments an environment names, for the end of a sentence."""
    # Without the module: making the environment has imported it.
    entry: Any = gym.spec(env_id.rpartition(":")[2]).entry_point if isinstance(env_id, str) else env_id
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    named = [
        parameter.name
        for parameter in inspect.signature(creator).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    return f"; it takes {', '.join(named)}" if named else ""


def _why_not(env_id: str, problem: Exception) -> str:
    """The sentence for an id that Gymnasium could not make."""
    for package, (extra, ids, prefix) in _PACKAGES.items():
        if re.match(ids, env_id) and importlib.util.find_spec(package) is None:
            written = f", then write {prefix}{env_id.removeprefix(prefix)}" if prefix else ""
            return f'{env_id} needs a package that is not installed: pip install "qscape[{extra}]"{written}'
    if not isinstance(problem, gym.error.UnregisteredEnv) and not str(problem).startswith("Malformed"):
        return f"{env_id} cannot be made: {problem}"
    newest: dict[str, Any] = {}  # one id a name: the highest version
    for spec in gym.registry.values():
        key = f"{spec.namespace or ''}/{spec.name}".lower()
        if key not in newest or (spec.version or 0) > (newest[key].version or 0):
            newest[key] = spec
    asked = re.sub(r"-v\d+$", "", env_id.rpartition(":")[2].lower())
    near = difflib.get_close_matches(asked if "/" in asked else f"/{asked}", newest, n=3)
    if near:
        return f"no environment is called {env_id!r}; near to it: {', '.join(newest[key].id for key in near)}"
    return f"no environment is called {env_id!r}; one of another package is written package:Name-v0"
