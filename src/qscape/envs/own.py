"""Environments that a function or class makes, by the id `module:make`."""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from qscape.envs import simulators
from qscape.envs.native import JaxEnv
from qscape.envs.simulators.pool import make_pool
from qscape.errors import UnfitEnv, WrongEnv
from qscape.trusted import import_named


def find_maker(env_id: str) -> Callable[..., Any] | None:
    """Return the function or class that `module:make` names; None if the id is one that Gymnasium knows.

    A run folder may come from somebody else, and it names its environment and the arguments. So only what
    declares that it makes an environment is called: a subclass of `JaxEnv` or `gymnasium.Env`, or a function
    whose annotation says that it returns one.

    Raises:
        UsageError: the module holds something of this name that does not make an environment.
    """
    module, _, name = env_id.partition(":")
    if not module or not name.isidentifier() or name in gym.registry:
        return None
    try:
        maker = getattr(import_named(module), name, None)
    except ImportError:
        return None  # Gymnasium's error says what is missing
    if maker is None or name in gym.registry:
        return None
    made = maker if inspect.isclass(maker) else _returned(maker)
    if not (inspect.isclass(made) and issubclass(made, JaxEnv | gym.Env)):
        raise WrongEnv(
            f"{env_id} is neither a subclass of JaxEnv or gymnasium.Env, nor a function that is annotated "
            "to return one, like `def make() -> gymnasium.Env`"
        )
    if maker.__module__.partition(".")[0] in ("gymnasium", "qscape") and not inspect.isclass(maker):
        raise WrongEnv(f"{env_id} makes environments of any id: write that id instead")
    return maker


def _returned(maker: Any) -> Any:
    """Return the return annotation of a function; None if there is none."""
    try:
        return typing.get_type_hints(maker).get("return")
    except (TypeError, NameError):
        return None


def make_own(
    maker: Callable[..., Any],
    *,
    max_episode_steps: int | None = None,
    start_pool: int = 0,
    render_mode: str | None = None,
    **args: Any,
) -> gym.Env:
    """Return the Gymnasium environment that `maker` makes.

    Args:
        maker: as `find_maker` returns it.
        max_episode_steps: steps after which an episode is truncated; None: as the environment says; -1: no
            limit is added.
        start_pool: draw the starts of episodes from so many that are computed once, if it is a `JaxEnv`.
        render_mode: as in Gymnasium.
        args: arguments of `maker`.
    """
    if render_mode is not None and "render_mode" in inspect.signature(maker).parameters:
        args["render_mode"] = render_mode
    env, unlimited = maker(**args), max_episode_steps == -1
    if isinstance(env, JaxEnv):
        if max_episode_steps is not None and not unlimited:
            env = dataclasses.replace(env, time_limit=max_episode_steps)
        env = make_pool(env, start_pool) if start_pool else env
        face = simulators.SimulatorEnv if unlimited else simulators.make_gymnasium
        return face(env, render_mode)
    if start_pool:
        raise UnfitEnv("start_pool needs an environment in JAX", field="env_args")
    if isinstance(env, gym.Env) and max_episode_steps is not None and not unlimited:
        return gym.wrappers.TimeLimit(env, max_episode_steps)
    return env
