"""Simulators of other packages as `JaxEnv`: `brax/ant`, `playground/CheetahRun`, `gymnax/CartPole-v1`.

`load(env_id, args)` makes the `JaxEnv`, `SimulatorEnv` its Gymnasium face. Nothing of a package is imported
before one of its ids is used.
"""

import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import io
import json
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from qscape.envs.native import GymnasiumEnv, JaxEnv, JaxWrapper
from qscape.envs.simulators.pool import make_pool
from qscape.errors import (
    MissingPackage,
    OutOfRange,
    QscapeError,
    UnknownField,
    UnknownName,
    UnmakeableEnv,
    WrongValue,
)

# prefix of the ids, which is the name of the extra and of the module here: the package to import
PACKAGES = {"brax": "brax", "playground": "mujoco_playground", "gymnax": "gymnax", "craftax": "craftax"}

COMMON = ["max_episode_steps", "start_pool", "render_mode"]  # arguments of all simulators


class SimulatorEnv(GymnasiumEnv):
    """The Gymnasium face of a `JaxEnv` that was not written for it: `render_mode` only if it can draw."""

    def __init__(self, native: JaxEnv, render_mode: str | None = None):
        inner = native
        while isinstance(inner, JaxWrapper):
            inner = inner.inner
        draws = type(inner).draw is not JaxEnv.draw and getattr(inner, "model", inner) is not None
        if render_mode and not draws:
            raise WrongValue(
                f"{type(inner).__name__} has no render_mode {render_mode!r}: it draws no pictures"
            )
        modes: dict[str, Any] = {"render_modes": ["rgb_array"] if draws else []}
        self.metadata = GymnasiumEnv.metadata | modes | {"render_fps": getattr(inner, "render_fps", 30)}
        super().__init__(native, render_mode)


def is_simulator(env_id: Any) -> bool:
    """Is it an id of one of these packages?"""
    return isinstance(env_id, str) and env_id.partition("/")[0] in PACKAGES and "/" in env_id


def make_gymnasium(native: JaxEnv, render_mode: str | None = None) -> gym.Env:
    """The Gymnasium environment of a `JaxEnv`, which truncates episodes where the `JaxEnv` does."""
    return gym.wrappers.TimeLimit(SimulatorEnv(native, render_mode), native.time_limit)


def make(env_id: str, render_mode: str | None = None, **args: Any) -> gym.Env:
    """The Gymnasium environment of an id; arguments as in `load`. `max_episode_steps` -1: without a limit."""
    if args.get("max_episode_steps") == -1:
        return SimulatorEnv(load(env_id, args | {"max_episode_steps": None}), render_mode)
    return make_gymnasium(load(env_id, args), render_mode)


def load(env_id: str, args: Mapping[str, Any]) -> JaxEnv:
    """The `JaxEnv` of an id. Equal ids and arguments share one, and so the programs compiled for it.

    Args:
        env_id: `package/name`.
        args: arguments of the environment; `max_episode_steps`; `start_pool`, see `make_pool`.

    Raises:
        UsageError: a package is missing, or there is no such environment or argument.
    """
    given = dict(args)
    limit = given.pop("max_episode_steps", None)
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise OutOfRange(f"max_episode_steps is {limit!r}: it has to be 1 or more", field="env_args")
    try:
        return _load_limited(env_id, json.dumps(given, sort_keys=True), limit)
    except TypeError as problem:
        if "JSON" not in str(problem):
            raise
        raise WrongValue(f"{env_id} takes numbers, words and lists: {problem}", field="env_args") from problem


@functools.lru_cache(maxsize=16)
def _load_limited(env_id: str, given: str, limit: int | None) -> JaxEnv:
    made = _load(env_id, given)
    return made if limit is None else dataclasses.replace(made, time_limit=limit)


@functools.lru_cache(maxsize=16)
def _load(env_id: str, given: str) -> JaxEnv:
    args, (prefix, _, name) = json.loads(given), env_id.partition("/")
    package = _import_adapter(env_id, prefix)
    names = package.list_names()
    if name not in names:
        lower = {known.lower(): known for known in names}
        near = difflib.get_close_matches(name.lower(), lower, n=3)
        close = f"near to it: {', '.join(f'{prefix}/{lower[n]}' for n in near)}"
        raise UnknownName(
            f"no environment is called {env_id!r}; {close if near else prefix + ' has ' + ', '.join(names)}",
            field="env",
        )
    starts = args.pop("start_pool", 0)
    known = package.list_arguments(name)
    for arg in args:
        if arg not in known:
            raise UnknownField(
                f"{env_id} takes no {arg!r}; it takes {', '.join([*COMMON, *known])}",
                field="env_args",
            )
    shown = args.copy()
    try:
        made = package.load(name, args)
    except QscapeError:
        raise
    except Exception as problem:
        raise UnmakeableEnv(
            f"{env_id} cannot be made with env_args {shown}: {problem}", field="env_args"
        ) from problem
    return make_pool(made, starts) if starts else made


def list_ids(prefix: str) -> list[str]:
    """All ids of an installed package."""
    return [f"{prefix}/{name}" for name in _import_adapter(prefix, prefix).list_names()]


def find_near(env_id: str) -> list[str]:
    """Ids near to one whose prefix is nearly that of an installed package, such as Brax/ant."""
    prefix, _, name = env_id.partition("/")
    for known in difflib.get_close_matches(prefix.lower(), PACKAGES, n=1, cutoff=0.7):
        if is_installed(known):
            lower = {known_id.lower(): known_id for known_id in list_ids(known)}
            return [lower[near] for near in difflib.get_close_matches(f"{known}/{name}".lower(), lower, n=3)]
    return []


def is_installed(prefix: str) -> bool:
    """Can the package of these ids be imported?"""
    return importlib.util.find_spec(PACKAGES[prefix]) is not None


def _import_adapter(env_id: str, prefix: str) -> Any:
    if not is_installed(prefix):
        raise MissingPackage(
            f'{env_id} needs a package that is not installed: pip install "qscape[{prefix}]"'
        )
    try:
        adapter = importlib.import_module(f"qscape.envs.simulators.{prefix}")
        with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that Warp is not installed
            adapter.list_names()
    except Exception as problem:  # beside a version of JAX that does not fit, also other errors
        raise UnmakeableEnv(
            f'{env_id} cannot be imported ({problem}): pip install "qscape[{prefix}]"'
        ) from problem
    return adapter
