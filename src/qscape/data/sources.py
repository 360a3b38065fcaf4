"""Read datasets: Minari by name or folder, and HDF5 files in the layout of D4RL."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from qscape.data.dataset import HDF5, Dataset, check_dataset, require_action_box
from qscape.envs.build import build_env
from qscape.envs.kept_spaces import order_like
from qscape.envs.precision import Precision, judge_columns, watched
from qscape.envs.spaces import ActionBox, box_leaves, is_image, make_flatten
from qscape.errors import (
    BadFile,
    CannotRead,
    Mismatch,
    NotFound,
    UnfitEnv,
    Unreachable,
    UsageError,
    WrongValue,
    need_extra,
)
from qscape.trusted import list_code, refuse_untrusted

NEEDED = ("observations", "actions", "rewards", "terminals")
# What reading a damaged or malformed file may raise, in h5py, Minari (which may lack pyarrow) and numpy.
MALFORMED = (
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    ImportError,
)
# Returns of a random and of an expert policy: public tables of the D4RL package (Fu et al. 2020).
D4RL = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
}


def read(
    name: str,
    env: str | None = None,
    env_args: Mapping[str, Any] | None = None,
    like: Mapping[str, Any] | None = None,
) -> Dataset:
    """Read and check the dataset called `name`.

    Args:
        name: name of a Minari dataset (downloaded if it is not on this machine), the folder of one, or an
            HDF5 file in the layout of D4RL.
        env: id of the environment to evaluate in; None: the one that the dataset names, if it does.
        env_args: arguments of that environment.
        like: `EnvAdapter.spaces`, in whose order the entries of a Dict become a row; None: that of `env`, or
            of the dataset.

    Raises:
        UsageError: no such dataset, a missing package, other spaces than those of `env`, or invalid data.
        RunError: the dataset is damaged or could not be downloaded.
    """
    if name.endswith(HDF5):
        return check_dataset(_read_hdf5(Path(name), env, dict(env_args or {})))
    return check_dataset(_read_minari(name, env, dict(env_args or {}), like))


class Origin(NamedTuple):
    """The environment a dataset was recorded in; fields as in `Dataset`."""

    env: str | None
    env_args: dict[str, Any]
    reference: tuple[float, float] | None
    notes: list[str]


def read_origin(name: str, chosen: str | None = None) -> Origin:
    """Read a dataset's environment and reference returns, without its transitions. Raises as `read`.

    `chosen`: the environment that the user named; None: none.
    """
    if name.endswith(HDF5):
        return Origin(None, {}, _d4rl_reference(Path(name), chosen), _nameless(None, name))
    metadata = _open_minari(_import_package("minari"), name).storage.metadata
    env, env_args, notes = _recover_env(metadata, name)
    return Origin(env, env_args, _minari_reference(metadata), notes)


def spaces_of(name: str) -> tuple[gym.Space, gym.Space]:
    """Return the observation and action space of the dataset called `name`. Raises as `read`."""
    found = read(name) if name.endswith(HDF5) else _open_minari(_import_package("minari"), name)
    return found.observation_space, found.action_space


def _d4rl_reference(file: Path, env: str | None) -> tuple[float, float] | None:
    """Return reference returns of the D4RL task in a file's name; None: it is not the environment's."""
    named = re.split(r"[^a-z0-9]+", file.name.lower())  # such as hopper_medium-v2.hdf5
    id_ = env and env.rpartition(":")[2].lower()
    return next((D4RL[task] for task in D4RL if task in named and (not id_ or id_.startswith(task))), None)


def _minari_reference(metadata: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return reference returns in a Minari dataset's metadata; None if it has none that give a score."""
    pair = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    low, high = (float(x) if isinstance(x, int | float) else math.nan for x in pair)
    return (low, high) if math.isfinite(high - low) and low != high else None


def _import_package(name: str) -> Any:
    """Return the package, or a UsageError that says how to install it."""
    with need_extra(f"a dataset ({name})", "offline"):
        return __import__(name)


# --- Minari -------------------------------------------------------------------------------------------


def _read_minari(
    name: str, env: str | None, env_args: dict[str, Any], order: Mapping[str, Any] | None
) -> Dataset:
    """Return a Minari dataset, not checked yet."""
    minari = _import_package("minari")
    _import_package("h5py")
    source = _open_minari(minari, name)
    observations, actions = source.observation_space, source.action_space
    metadata, notes = source.storage.metadata, []
    if env is None:
        env, env_args, notes = _recover_env(metadata, name)
    else:
        observations = _check_spaces(name, observations, actions, env, env_args)
    box = require_action_box(actions, name)
    refuse_images(observations, name)
    if order is not None:
        observations = order_like(observations, order["observation"])
    size, flatten = make_flatten(observations, name)
    precision = Precision(box_leaves(observations, (), name))
    flatten = watched(flatten, precision)
    try:
        columns = [_episode_columns(e, size, flatten, box) for e in source.iterate_episodes()]
    except MALFORMED as problem:  # the metadata is intact, the file of the arrays is damaged
        raise CannotRead(f"{name} cannot be read as a Minari dataset: {_first_line(problem)}.") from problem
    if not columns:
        raise BadFile(f"{name} holds no episode: there is nothing to learn from.")
    return Dataset(
        name,
        *(np.concatenate(column) for column in zip(*columns, strict=True)),
        observation_space=observations,
        action_space=actions,
        env=env,
        env_args=env_args,
        reference=_minari_reference(metadata),
        notes=(*notes, *filter(None, [precision.warning(name, "the recording")])),
    )


def _open_minari(minari: Any, name: str) -> Any:
    """Open a Minari dataset by name or folder; download it if it is not on this machine."""
    folder = Path(name)
    try:
        if folder.is_dir() and (folder.is_absolute() or name.startswith(".") or not _is_local(minari, name)):
            return minari.MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)
        if not re.search(r"-v\d+$", name):
            near = ", ".join(minari.list_local_datasets()) or "none yet"
            raise WrongValue(
                f"'{name}' is no dataset: names end with a version, like local/pendulum-v0; "
                f"on this machine there are: {near}.",
                field="dataset",
            )
        if _is_local(minari, name):
            return minari.load_dataset(name)
        if name.startswith("local/"):  # the namespace of what was recorded here
            near = ", ".join(minari.list_local_datasets()) or "none yet"
            raise NotFound(f"there is no dataset {name} on this machine; there are: {near}.", field="dataset")
    except MALFORMED as problem:
        raise CannotRead(f"{name} cannot be read as a Minari dataset: {_first_line(problem)}.") from problem
    return _download(minari, name)


def _is_local(minari: Any, name: str) -> bool:
    return name in minari.list_local_datasets()


def _download(minari: Any, name: str) -> Any:
    """Download a dataset with Minari's own client, which shows its progress."""
    try:
        return minari.load_dataset(name, download=True)
    except Exception as problem:  # of the network, the hub or the client
        raise Unreachable(
            f"the dataset {name} is not on this machine and could not be downloaded "
            f"({_first_line(problem)}); record one with 'qscape record', or name the folder of one."
        ) from problem


def _first_line(problem: BaseException) -> str:
    """Return the type and the first line of an error."""
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0]}" if text else type(problem).__name__


def _recover_env(metadata: Mapping[str, Any], name: str) -> tuple[str | None, dict[str, Any], list[str]]:
    """Return id and arguments of the environment to evaluate in, and notes; id None if it cannot be made."""
    text = metadata.get("eval_env_spec") or metadata.get("env_spec")
    if text is None:
        return None, {}, _nameless(None, name)
    try:
        spec = EnvSpec.from_json(text)
        args = dict(spec.kwargs)
    except Exception as problem:  # of JSON, of the types of its fields or of the form of its id
        why = _first_line(problem)
        raise CannotRead(f"{name} names an environment that cannot be read ({why}).") from problem
    if spec.additional_wrappers:  # they may change rewards and spaces, and making them again would run code
        wrappers = ", ".join(wrapper.name for wrapper in spec.additional_wrappers)
        note = f"{name} was recorded in {spec.id} with the wrappers {wrappers}, which are not made again"
        return None, {}, [f"{note}, so nothing is evaluated; add an environment with --env."]
    known = gym.registry.get(spec.id)
    if spec.max_episode_steps is not None and (
        known is None or known.max_episode_steps != spec.max_episode_steps
    ):
        args["max_episode_steps"] = spec.max_episode_steps
    args.pop("render_mode", None)
    try:
        refuse_untrusted(list_code(spec.id, args, ()), name)
        build_env(spec.id, args).close()
    except UsageError as problem:
        return None, {}, [f"nothing is evaluated: {problem}"]
    return spec.id, args, []


def _episode_columns(episode: Any, size: int, flatten: Any, box: ActionBox) -> tuple[np.ndarray, ...]:
    """Return the columns of a `Dataset` from one Minari episode of T steps and T + 1 observations of `size`
    numbers.

    Raises:
        ValueError: an array of the episode has another shape.
    """
    n = len(episode.rewards)
    observation = flatten(episode.observations, n + 1).reshape(n + 1, size)
    action = box.to_unit(np.asarray(episode.actions, np.float64).reshape(n, len(box.low)))
    terminated = np.array(episode.terminations, bool).reshape(n)
    truncated = np.array(episode.truncations, bool).reshape(n)
    if n and not terminated[-1]:
        truncated[-1] = True  # an episode without an end was cut off
    reward = np.asarray(episode.rewards, np.float32).reshape(n)
    return observation[:-1], action.astype(np.float32), reward, terminated, truncated, observation[1:]


def _check_spaces(
    name: str, observations: Any, actions: Any, env: str, env_args: dict[str, Any]
) -> gym.Space:
    """Raise a UsageError if the environment's spaces differ from the dataset's.

    Returns:
        The environment's observation space, in which the entries of a Dict may have another order.
    """
    made = build_env(env, env_args)
    for what, here, there in (
        ("observations", observations, made.observation_space),
        ("actions", actions, made.action_space),
    ):
        same = _shapes(here) == _shapes(there)
        if what == "actions" and isinstance(here, spaces.Box):
            same = same and isinstance(there, spaces.Box) and _have_equal_bounds(here, there)
        if not same:
            raise Mismatch(f"{name} has {what} {here}, {env} has {there}; name the one it was recorded in.")
    made.close()
    return made.observation_space


def refuse_images(space: gym.Space, name: str) -> None:
    """Raise a UsageError if observations of this space, of a dataset or environment, hold an image."""
    if any(is_image(box) for _, box in box_leaves(space, (), name, images=True)):
        raise UnfitEnv(
            f"{name} has images as observations, and agents learn from datasets of vectors only: "
            "learn in the environment."
        )


def _have_equal_bounds(one: spaces.Box, other: spaces.Box) -> bool:
    """Return whether the bounds of two Boxes of one shape are equal, but for rounding."""
    return all(np.allclose(*of, rtol=1e-5, atol=0) for of in ((one.low, other.low), (one.high, other.high)))


def _shapes(space: gym.Space) -> Any:
    """Return the shape of a space; of a Dict, which has none, the shapes of its entries by key."""
    is_dict = isinstance(space, spaces.Dict)
    return {key: _shapes(entry) for key, entry in space.items()} if is_dict else space.shape


# --- HDF5 ---------------------------------------------------------------------------------------------


def _read_hdf5(file: Path, env: str | None, env_args: dict[str, Any]) -> Dataset:
    """Read an HDF5 file in D4RL's layout: `terminals` are terminal states, `timeouts` time limits.

    Without `next_observations`, the successor is the following row. The last row of an episode that a time
    limit ended then has no successor and is left out. With `next_observations`, an episode also ends where
    the next row does not start at the successor.
    """
    h5py = _import_package("h5py")
    try:
        with h5py.File(file) as data:
            known = [key for key in (*NEEDED, "timeouts", "next_observations") if key in data]
            arrays = {key: np.asarray(data[key], np.float64) for key in known}
    except FileNotFoundError as problem:
        raise NotFound(f"{file} does not exist.") from problem
    except MALFORMED as problem:
        raise CannotRead(f"{file} cannot be read as HDF5: {_first_line(problem)}.") from problem
    if missing := [key for key in NEEDED if key not in arrays]:
        raise BadFile(f"{file} lacks {', '.join(missing)}: a D4RL file holds {', '.join(NEEDED)}.")
    lengths = {key: len(x) for key, x in arrays.items() if x.ndim}
    if len(set(lengths.values())) > 1 or len(lengths) < len(arrays):
        raise BadFile(f"{file} has arrays of unequal length: {lengths}.")
    if not len(arrays["rewards"]):
        raise BadFile(f"{file} holds no transition: there is nothing to learn from.")
    rows = {key: x.reshape(len(x), -1) for key, x in arrays.items()}
    if rows.get("next_observations", rows["observations"]).shape != rows["observations"].shape:
        raise BadFile(f"{file} has observations and next_observations of unequal size.")
    for key in ("rewards", "terminals", "timeouts"):
        if key in rows and rows[key].shape[1] != 1:
            raise BadFile(f"{file} has {key} of shape {arrays[key].shape}, not one number a row.")
    for key in ("terminals", "timeouts"):  # NaN would count as False
        if key in rows and np.isnan(rows[key]).any():
            row = int(np.isnan(rows[key]).argmax())
            raise BadFile(f"{file}: {key} holds NaN in row {row}; leave that episode out.")
    sizes = rows["observations"].shape[1], rows["actions"].shape[1]
    if env is not None:
        made = build_env(env, env_args)
        observations, actions = made.observation_space, made.action_space
        made.close()
        refuse_images(observations, env)
        if (make_flatten(observations, env)[0], int(np.prod(actions.shape or ()))) != sizes:
            raise Mismatch(
                f"{file} has {sizes[0]} numbers an observation and {sizes[1]} an action, {env} has "
                f"{observations} and {actions}; name the one it was recorded in."
            )
    else:
        observations = spaces.Box(-np.inf, np.inf, (sizes[0],), np.float32)
        actions = spaces.Box(-1.0, 1.0, (sizes[1],), np.float32)
    box = require_action_box(actions, env or str(file))
    return Dataset(
        str(file),
        *_transition_columns(rows, box),
        observation_space=observations,
        action_space=actions,  # type: ignore[arg-type]
        env=env,
        env_args=env_args,
        reference=_d4rl_reference(file, env),
        notes=(
            *_nameless(env, str(file)),
            *_endless(rows, file),
            *judge_columns(rows, spaces.Box(-np.inf, np.inf, (sizes[0],), np.float64), str(file)),
        ),
    )


def _nameless(env: str | None, name: str) -> list[str]:
    """Return a note on a file that names no environment, in a list; an empty list if the user names one."""
    return [] if env else [f"{name} names no environment, so nothing is evaluated; add one with --env."]


def _endless(rows: Mapping[str, np.ndarray], file: Path) -> list[str]:
    """Return a note on a file that does not tell where time limits ended episodes, in a list."""
    if {"timeouts", "next_observations"} & rows.keys():
        return []
    return [
        f"{file} has neither timeouts nor next_observations: only terminals end its episodes, and where a "
        "time limit ended one, the first observation of the next is taken for the one that followed."
    ]


def _rounding_of(rows: np.ndarray) -> np.ndarray:
    """Return how far numbers of a file `[N, S]` may lie from themselves when they were rounded on the way to
    it.

    At most 1e-6 and a share of 1e-5. That would be more than whole steps of entries with a small scale, or a
    small spread around a large mean; there it is a share of 1e-4 of the spread, or what float32 rounds.
    """
    size = np.abs(rows)
    spread = 1e-4 * np.ptp(rows, axis=0) if len(rows) else 0.0
    rounded = np.finfo(np.float32).eps * size
    return np.minimum(1e-6 + 1e-5 * size, np.maximum(spread, rounded))


def _transition_columns(rows: Mapping[str, np.ndarray], box: ActionBox) -> Iterator[np.ndarray]:
    """Return the columns of a `Dataset`, in the order of its fields."""
    n = len(rows["rewards"])
    terminated = rows["terminals"][:, 0] > 0
    truncated = rows["timeouts"][:, 0] > 0 if "timeouts" in rows else np.zeros(n, bool)
    truncated[-1] |= not terminated[-1]
    keep = np.ones(n, bool)
    if "next_observations" in rows:
        following = rows["next_observations"]
        begins = rows["observations"][1:]
        continues = (np.abs(following[:-1] - begins) <= _rounding_of(begins)).all(1)
        truncated[:-1] |= ~continues & ~terminated[:-1]
    else:
        following = np.concatenate([rows["observations"][1:], rows["observations"][-1:]])
        following = np.where(terminated[:, None], rows["observations"], following)  # unused by targets
        keep = terminated | ~truncated
        truncated[:-1] |= ~keep[1:] & ~terminated[:-1]  # the episode now ends one row earlier
    action = box.to_unit(rows["actions"])
    columns = (rows["observations"], action, rows["rewards"][:, 0], terminated, truncated, following)
    for column in columns:
        yield column[keep] if column.dtype == bool else column[keep].astype(np.float32)
