"""Make one Gymnasium environment from an id or a function, with errors in one sentence."""

import contextlib
import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import numbers
import os
import re
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import jax
from gymnasium.envs.registration import load_env_creator

from qscape.envs import pixels, simulators
from qscape.envs.levels import discretise
from qscape.envs.native import find_jax_env, with_time_limit
from qscape.envs.own import find_maker, make_own
from qscape.envs.registered import IDS
from qscape.errors import (
    LONGEST_TEXT,
    MissingPackage,
    OutOfRange,
    QscapeError,
    UnfitEnv,
    UnknownName,
    UnmakeableEnv,
    UsageError,
    WrongEnv,
    WrongValue,
    WrongVersion,
    describe,
    describe_import,
    show,
)
from qscape.trusted import import_named

# package: (extra of qscape that installs it, ids that need it, does importing it register them?)
_PACKAGES = {
    "Box2D": ("box2d", r"LunarLander|BipedalWalker|CarRacing", False),
    "gymnasium_robotics": (
        "robotics",
        r"gymnasium_robotics:|Fetch|HandManip|HandReach|Adroit|PointMaze|AntMaze|FrankaKitchen",
        True,
    ),
    "ale_py": ("atari", r"ale_py:|ALE/", True),
}

# module: ids without it in front; pip installs it with dashes. docs/how-to/environments.md has more of them
_OTHERS = {
    "flappy_bird_gymnasium": r"FlappyBird",
    "gym_aloha": r"gym_aloha/",
    "gym_anytrading": r"(stocks|forex)-v",
    "gym_pusht": r"gym_pusht/",
    "highway_env": r"(highway|racetrack|parking|merge|roundabout|intersection)(-\w+)*-v",
    "metaworld": r"Meta-World/",
    "minigrid": r"(MiniGrid|BabyAI)-",
    "miniworld": r"MiniWorld-",
    "mo_gymnasium": r"mo-",
    "myosuite": r"myo[A-Z]",
    "panda_gym": r"Panda",
    "shimmy": r"dm_control/",
}

# Packages that allow a MuJoCo that is too new for them: the first one, and what they raise. Seen with
# gymnasium-robotics 1.4.2, Meta-World 3.1.1 and robosuite 1.5.2.
_TOO_NEW: dict[str, tuple[str, type[Exception] | tuple[type[Exception], ...]]] = {
    "gymnasium-robotics": ("3.12", AssertionError),
    "metaworld": ("3.12", Exception),
    "robosuite": ("3.10", (AssertionError, AttributeError)),
}

_MAKERS = ("qscape.envs", "gymnasium.envs.registration")  # which call the constructors of environments

CRITIC_ONLY = "critic_observation"  # the argument that names what critics alone see
LEVELS = "action_levels"  # the argument that divides a Box of actions into levels

NO_LIMIT = {"max_episode_steps": -1}  # as Gymnasium writes it

OWN_ARGS = (CRITIC_ONLY, LEVELS)  # what `build_env` does with them, no other program does


def build_env(env_id: str | Callable[..., gym.Env], args: dict[str, Any], limited: bool = True) -> gym.Env:
    """Make one environment.

    Args:
        env_id: a registered id, one of a simulator (`brax/ant`), `module:make` with a function or class that
            makes an environment, or a function that returns an environment.
        args: arguments of the environment and of `gymnasium.make`, and `critic_observation`: a key of a Dict
            of observations, or several, which critics alone see; and `action_levels`: divide every dimension
            of a bounded Box of actions into so many levels, which makes them MultiDiscrete.
        limited: keep the time limit? False if a wrapper sets its own; for ids only.

    Raises:
        UsageError: the id is unknown, a package is missing, or the arguments are wrong.
    """
    hidden, levels = args.get(CRITIC_ONLY), args.get(LEVELS)
    args = {k: v for k, v in args.items() if k not in OWN_ARGS} | ({} if limited else NO_LIMIT)
    _import_registering_package(env_id)
    _redirect_mujoco_warnings(env_id)
    name = env_id if isinstance(env_id, str) else getattr(env_id, "__name__", repr(env_id))
    if name in IDS:
        _refuse_other_types(name, args)
    try:
        if isinstance(env_id, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[^:]+", env_id):
            import_named(env_id.partition(":")[0])
        with _own_devices():
            env = _env_creator(env_id, args)(**args) if isinstance(env_id, str) else env_id(**args)
    except QscapeError:
        raise
    except (gym.error.Error, ImportError) as problem:
        raise _explain_failure(name, problem) from problem
    except Exception as problem:
        if not name.strip(" :") or (isinstance(env_id, str) and name.count(":") > 1):
            raise UnknownName(f"'{name}' names no environment", field="env") from problem
        if (older := _needs_older_mujoco(problem, name)) is not None:
            package, first = older
            versions = [f"{p} {importlib.metadata.version(p)}" for p in (package, "mujoco")]
            raise WrongVersion(
                f"{name} cannot be made with {' and '.join(versions)} ({describe(problem)}); {package} "
                f'needs an older MuJoCo: pip install "mujoco<{first}"'
            ) from problem
        if not _is_about_arguments(problem, args):
            given = f" with env_args {args}" if args else ""
            why = f"{describe(problem)}, raised in {_place(problem)}"
            raise UnmakeableEnv(f"{name} cannot be made{given} ({why})") from problem
        said = show(problem, str, LONGEST_TEXT)
        raise UnmakeableEnv(
            f"{name} cannot be made with env_args {args}: {said}{_list_arguments(env_id)}",
            field="env_args",
        ) from problem
    if not isinstance(env, gym.Env):
        raise WrongEnv(f"{name} made a {type(env).__name__}, not a gymnasium.Env")
    if not isinstance(env.metadata, Mapping):  # robosuite's is None, of which Gymnasium would make a dict
        env.metadata = {}
    if limited and args.items() >= NO_LIMIT.items() and find_jax_env(env) is not None:
        raise OutOfRange(
            f"{name} is in JAX, whose environments have a limit: max_episode_steps has to be 1 or more",
            field="env_args",
        )
    env = with_time_limit(env) if limited else env
    if levels is not None:
        env = discretise(env, levels, name)
    if hidden is not None:
        env.privileged_keys = hidden  # pyright: ignore[reportAttributeAccessIssue] (the adapter asks for it)
    return env


@contextlib.contextmanager
def _own_devices() -> Iterator[None]:
    """Let `jax.devices` name the devices of this process alone inside the `with` block.

    MJX puts a model on the first of `jax.devices()`, which is one of process 0 if several share a run.
    """
    if not jax.distributed.is_initialized():  # which starts no device, as counting the processes would
        yield
        return
    all_devices, jax.devices = jax.devices, lambda backend=None: jax.local_devices(backend=backend)
    try:
        yield
    finally:
        jax.devices = all_devices


def training_args(env_id: str, args: dict[str, Any]) -> dict[str, Any]:
    """Return `args` and those for training only.

    In Atari with pictures, a lost life then ends the episode, and rewards are replaced by their signs.
    """
    pictured = re.match(r"(ale_py:)?ALE/", env_id) and "obs_type" not in args
    return {"training": True} | args if pictured else args


def refuse_other_rewards(env_id: str, args: dict[str, Any]) -> None:
    """Raise UsageError if Q is of other rewards than episodes of evaluations show."""
    if training_args(env_id, args) != args:
        raise UnfitEnv(
            f"the bias of Q cannot be measured on {env_id}: agents learn from the signs of its rewards, and "
            "evaluations show the rewards."
        )


def _env_creator(env_id: str, args: dict[str, Any]) -> Callable[..., gym.Env]:
    """Return a function that makes the environment: `gymnasium.make`,
    or the usual preprocessing of pictures.
    """
    if simulators.is_simulator(env_id):
        return functools.partial(simulators.make, env_id)
    if (maker := find_maker(env_id)) is not None:
        return functools.partial(make_own, maker)
    if re.match(r"(ale_py:)?ALE/", env_id) and "obs_type" not in args:
        return functools.partial(pixels.atari, env_id)
    if re.match("CarRacing", env_id):
        return functools.partial(pixels.car_racing, env_id)
    if re.match("restricted/Any-|pixels/", env_id) and "max_episode_steps" in args:  # not the inner limit
        return functools.partial(gym.make, env_id, limited=False)
    if re.match("restricted/|mineworld/|recsim/", env_id):
        return functools.partial(_make_either_version, env_id)
    return functools.partial(gym.make, env_id)


def _make_either_version(env_id: str, **args: Any) -> gym.Env:
    """Make a task of which v0 is by SAVO's text and v1 as released: Gymnasium would call v0 out of date."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)
        return gym.make(env_id, **args)


def _import_registering_package(env_id: str | Callable[..., gym.Env]) -> None:
    """Import the package that registers an id, if it is installed."""
    for package, (_, ids, registers) in _PACKAGES.items():
        needed = registers and isinstance(env_id, str) and re.match(ids, env_id)
        if needed and importlib.util.find_spec(package) is not None:
            try:
                importlib.import_module(package)
            except Exception as problem:
                _import_mujoco()  # the usual cause, which has a sentence of its own
                raise UnmakeableEnv(
                    f"{env_id} cannot be made: importing {package} fails ({describe(problem)})"
                ) from problem


def _import_mujoco() -> Any:
    """Import MuJoCo, if it is installed.

    Raises:
        UsageError: it is installed and cannot be imported.
    """
    if not importlib.util.find_spec("mujoco"):
        return None
    try:
        return importlib.import_module("mujoco")
    except ImportError as problem:
        version = importlib.metadata.version("mujoco")
        packages = " ".join(f"{name}=={version}" for name in ("mujoco", "mujoco-core", "mujoco-studio"))
        why = describe(problem.__cause__ or problem)
        raise WrongVersion(
            f"MuJoCo {version} is installed and cannot be imported ({why}). "
            "An upgrade from MuJoCo 3 to 4 in one environment leaves it so; this mends it: "
            f"pip install --force-reinstall --no-deps {packages}"
        ) from problem


def refuse_without_version(env_id: str) -> None:
    """Raise UsageError for a new run on `Pendulum`: Gymnasium takes the newest version, later another one."""
    _import_registering_package(env_id)
    if not env_id or env_id in gym.registry:  # "": a dataset names it
        return
    if versions := [spec for spec in gym.registry.values() if spec.id.rpartition("-v")[0] == env_id]:
        newest = max(versions, key=lambda spec: spec.version or 0)
        raise UnknownName(f"{env_id} lacks its version: write {newest.id}", field="env")


def _redirect_mujoco_warnings(env_id: str | Callable[..., gym.Env]) -> None:
    """Make MuJoCo's warnings Python warnings. By default MuJoCo prints them and writes MUJOCO_LOG.TXT."""
    spec = gym.registry.get(env_id.rpartition(":")[2]) if isinstance(env_id, str) else None
    place = env_id if simulators.is_simulator(env_id) else spec.entry_point if spec else ""
    if not importlib.util.find_spec("mujoco"):
        return
    if re.search("mujoco|restricted|gymnasium_robotics|brax/|playground/", str(place)):
        mujoco = _import_mujoco()

        def warn(message: str) -> None:
            if "settotalmass" not in message:  # a deprecation in Gymnasium's own models
                warnings.warn(f"MuJoCo: {message}", stacklevel=2)

        mujoco.set_mju_user_warning(warn)


def _frames(problem: BaseException) -> list[types.FrameType]:
    """Return the frames that an error passed, from the one that caught it to the one that raised it."""
    return [frame for frame, _ in traceback.walk_tb(problem.__traceback__)]


def _module(frame: types.FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_about_arguments(problem: Exception, args: Mapping[str, Any]) -> bool:
    """Return whether an error may come from the arguments: the call itself failed, or what it called at once.

    An error from deeper inside a constructor is about something else: a missing file, a package, a port.
    """
    own = [frame for frame in _frames(problem) if not _module(frame).startswith(_MAKERS)]
    if not own:  # nothing of the environment ran
        return isinstance(problem, TypeError) or bool(args)
    return (
        bool(args)
        and len(own) == 1
        and isinstance(problem, ValueError | TypeError | KeyError | AssertionError)
    )


def _place(problem: BaseException) -> str:
    """Return where an error was raised: `module, line 3`."""
    frame, line = [*traceback.walk_tb(problem.__traceback__)][-1]
    return f"{_module(frame)}, line {line}"


def _needs_older_mujoco(problem: Exception, name: str) -> tuple[str, str] | None:
    """Return the package that an installed MuJoCo is too new for, and the first that is; None for others."""
    passed = {_module(frame).partition(".")[0] for frame in _frames(problem)}
    robotics = re.match(_PACKAGES["gymnasium_robotics"][1], name) is not None
    package = "gymnasium-robotics" if robotics else next(iter(passed & _TOO_NEW.keys()), None)
    if package is None or not importlib.util.find_spec("mujoco"):
        return None
    first, kinds = _TOO_NEW[package]
    installed, bound = (
        [int(part) for part in re.findall(r"\d+", of)[:2]]
        for of in (importlib.metadata.version("mujoco"), first)
    )
    return (package, first) if isinstance(problem, kinds) and (robotics or installed >= bound) else None


def _asked_inside(problem: Exception, env_id: str) -> str | None:
    """Return the id that a function of the user asked Gymnasium for; None if that is `env_id` itself."""
    for frame in reversed(_frames(problem)):
        if _module(frame) == "gymnasium.envs.registration" and frame.f_code.co_name == "make":
            asked = frame.f_locals.get("id")
            return asked if isinstance(asked, str) and not env_id.endswith(asked) else None
    return None


_NEEDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a text",
    types.NoneType: "None",
}


def _refuse_other_types(env_id: str, args: dict[str, Any]) -> None:
    """Refuse a value that is not of the type which an environment of the project declares for its argument.

    Raises:
        UsageError: there is one.
    """
    creator: Any = load_env_creator(f"qscape.envs.{IDS[env_id][0]}")
    hints = typing.get_type_hints(creator.__init__ if inspect.isclass(creator) else creator)
    for name, value in args.items():
        allowed: tuple[Any, ...] = typing.get_args(hints.get(name)) or (hints.get(name),)
        if set(allowed) <= set(_NEEDS) and not any(_is_of(value, kind) for kind in allowed):
            needs = " or ".join(_NEEDS[kind] for kind in allowed)
            raise WrongValue(
                f"{env_id}: {name} is {show(value, repr, LONGEST_TEXT)}; it must be {needs}", field="env_args"
            )


def _is_of(value: Any, kind: type) -> bool:
    """Return whether a value is of a type of `_NEEDS`; True and False are no numbers."""
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real  # of NumPy, too
        return isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, (str, os.PathLike) if kind is str else kind)


def _list_arguments(env_id: str | Callable[..., gym.Env]) -> str:
    """Return the names of an environment's arguments, as the end of an error sentence."""
    # Without "module:", which was imported when the environment was made.
    entry: Any = env_id
    if isinstance(env_id, str):
        entry = find_maker(env_id) or gym.spec(env_id.rpartition(":")[2]).entry_point
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    try:
        parameters = inspect.signature(creator).parameters.values()
    except (TypeError, ValueError):  # of a class written in C
        return ""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [parameter.name for parameter in parameters if parameter.kind in kinds]
    return f"; it takes {', '.join(named)}" if named else ""


def _explain_failure(env_id: str, problem: Exception) -> UsageError:
    """Return the error for an id that Gymnasium could not make, or for one that it makes in turn."""
    if (inner := _asked_inside(problem, env_id)) is not None:
        explained = _explain_failure(inner, problem)
        return explained.saying(f"{env_id} makes {inner} inside: {explained}")
    for package, (extra, ids, _) in _PACKAGES.items():
        if re.match(ids, env_id) and importlib.util.find_spec(package) is None:
            why = f'{env_id} needs a package that is not installed: pip install "qscape[{extra}]"'
            return MissingPackage(why, field="env")
    for module, ids in _OTHERS.items():
        bare = re.match(ids, env_id) and isinstance(problem, gym.error.UnregisteredEnv)
        if (bare or env_id.startswith(f"{module}:")) and importlib.util.find_spec(module) is None:
            package = "shimmy[dm-control]" if module == "shimmy" else module.replace("_", "-")
            write = f" and write {module}:{env_id}" if bare else ""
            why = f'{env_id} needs a package that is not installed: pip install "{package}"{write}'
            return MissingPackage(why, field="env")
        if bare:
            return UnknownName(f"{env_id} is of another package: write {module}:{env_id}", field="env")
    if not isinstance(problem, gym.error.UnregisteredEnv) and not str(problem).startswith("Malformed"):
        missing = isinstance(problem, ModuleNotFoundError)
        why = f" {describe_import(problem, env_id)}" if missing else f": {show(problem, str, LONGEST_TEXT)}"
        return UnmakeableEnv(f"{env_id} cannot be made{why}", field="env")
    newest: dict[str, Any] = {}  # for each name, the id of the highest version
    for spec in gym.registry.values():
        key = f"{spec.namespace or ''}/{spec.name}".lower()
        if key not in newest or (spec.version or 0) > (newest[key].version or 0):
            newest[key] = spec
    asked = re.sub(r"-v\d+$", "", env_id.rpartition(":")[2].lower())
    near = difflib.get_close_matches(asked if "/" in asked else f"/{asked}", newest, n=3)
    if near := [newest[key].id for key in near] + simulators.find_near(env_id):
        why = f"near to it: {', '.join(near)}"
    else:
        why = "one of another package is written package:Name-v0"
    return UnknownName(f"no environment is called {env_id!r}; {why}", field="env")
