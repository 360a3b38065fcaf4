"""Observation spaces as flat vectors, and the map between [-1, 1]^A and an environment's actions."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Int

from qscape.envs.native import GymnasiumEnv
from qscape.errors import BrokenEnv, Mismatch, UnfitEnv, WrongEnv

LARGEST_PRODUCT = 500_000  # actions of a product of discrete sets in a table
DARKEST = 128  # an image has a bound of at least this
ENDLESS = 1e30  # a bound from here on, or from half of what its dtype holds, is finite by name only


def true_bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of a Box in float64; ±inf where they are near the greatest number of its dtype.

    Libraries write the greatest float for "no bound", also in one direction only. Whole numbers of 8 and 16
    bits have bounds: those of images and of counters.
    """
    kind: Any = np.dtype(space.dtype)
    least = ENDLESS
    if kind.kind == "f":
        least = min(least, float(np.finfo(kind).max) / 2)
    elif kind.kind in "iu" and kind.itemsize >= 4:
        least = float(np.iinfo(kind).max) / 2
    low, high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))
    return np.where(low <= -least, -np.inf, low), np.where(high >= least, np.inf, high)


def is_bounded(space: spaces.Space) -> TypeGuard[spaces.Box]:
    """Return whether a space is a Box with bounds in every dimension, and not by name only."""
    return isinstance(space, spaces.Box) and bool(np.isfinite(true_bounds(space)).all())


@dataclasses.dataclass(frozen=True, eq=False)
class ActionBox:
    """A bounded box of actions, and the map between it and [-1, 1]^A. Works on numpy and JAX arrays.

    Attributes:
        centre: (low + high) / 2 in every dimension.
        half_width: (high - low) / 2.
        low, high: the bounds, in the environment's units.
        is_integer: does the environment take whole numbers?
    """

    centre: Float[np.ndarray, "*rows A"]
    half_width: Float[np.ndarray, "*rows A"]
    low: Float[np.ndarray, "*rows A"]
    high: Float[np.ndarray, "*rows A"]
    is_integer: bool = False

    @classmethod
    def from_bounds(
        cls,
        low: np.ndarray,
        high: np.ndarray,
        dtype: Any = np.float64,
        is_integer: bool = False,
        rows: int | None = None,
    ) -> "ActionBox":
        """Return the box of these bounds.

        Args:
            low, high: bounds of any shape; they are flattened to [A].
            dtype: of the arithmetic. Centre and half width are computed in float64 and then rounded to it.
            is_integer: does the environment take whole numbers?
            rows: repeat the arrays to [rows, A], because broadcasting costs 2 microseconds a step; None: [A].
        """
        low, high = (np.asarray(bound, np.float64).ravel() for bound in (low, high))
        # Written so that bounds of -1 and 1 leave every action unchanged.
        arrays = (x.astype(dtype) for x in (low / 2 + high / 2, high / 2 - low / 2, low, high))
        return cls(*(x if rows is None else np.tile(x, (rows, 1)) for x in arrays), is_integer=is_integer)

    @classmethod
    def from_space(cls, space: spaces.Box, dtype: Any, rows: int | None = None) -> "ActionBox":
        """Return the box of a Gymnasium space; arguments as in `from_bounds`."""
        is_integer = np.issubdtype(space.dtype, np.integer)
        return cls.from_bounds(space.low, space.high, dtype, is_integer, rows)

    def to_env(self, action: Any) -> Any:
        """Return actions [*b, A] in [-1, 1], in the environment's units, clipped to the bounds.

        Whole numbers, if the environment takes them, but not yet of its dtype.
        """
        units = (action * self.half_width + self.centre).clip(self.low, self.high)
        return units.round() if self.is_integer else units

    def to_unit(self, action: Any) -> Any:
        """Return actions [*b, A] in the environment's units, in [-1, 1]; not clipped. 0 where low equals
        high.
        """
        return (action - self.centre) / np.where(self.half_width > 0, self.half_width, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class FactoredActions:
    """A product of discrete sets (MultiDiscrete, MultiBinary). Works on numpy and JAX arrays.

    Attributes:
        sizes: N_k, the number of values of each factor, in the order of a flat action.
        start: the least value of each factor.
        shape: of one action of the environment.
    """

    sizes: tuple[int, ...]
    start: Int[np.ndarray, " K"]
    shape: tuple[int, ...]

    @classmethod
    def from_space(cls, space: spaces.Space) -> "FactoredActions | None":
        """Return the factors of a space; None if it is no such product."""
        if isinstance(space, spaces.MultiBinary):
            size = int(np.prod(space.shape))
            return cls((2,) * size, np.zeros(size, np.int64), tuple(space.shape))
        if isinstance(space, spaces.MultiDiscrete):
            sizes = tuple(int(n) for n in space.nvec.ravel())
            return cls(sizes, np.asarray(space.start, np.int64).ravel(), tuple(space.nvec.shape))
        return None

    def from_indices(self, action: Any) -> Any:
        """Return indices [b, K] as the environment's actions [b, *shape]: whole numbers, not yet of its
        dtype.
        """
        return (action.round() + self.start).reshape(-1, *self.shape)

    def from_unit(self, action: Any) -> Any:
        """Return rows [b, K] of `make_table`, or vectors near them, as the environment's actions [b,
        *shape].
        """
        steps = np.asarray(self.sizes, np.float32) - 1
        return self.from_indices(((action + 1) / 2 * steps).clip(0, steps))

    def make_table(self, env_id: str) -> Float[np.ndarray, "N K"]:
        """Return every action as a row in [-1, 1]^K, equally spaced in each factor; a factor of one value is
        0.

        Raises:
            UsageError: there are more than 500,000 actions.
        """
        count = math.prod(self.sizes)
        if count > LARGEST_PRODUCT:
            raise UnfitEnv(
                f"{env_id} has {count:,} actions, a product of {len(self.sizes)} factors: off-policy agents "
                f"search a table of at most {LARGEST_PRODUCT:,}; on-policy ones (ppo) take any product"
            )
        index = np.indices(self.sizes).reshape(len(self.sizes), -1).T
        steps = np.asarray(self.sizes) - 1
        return np.where(steps > 0, 2 * index / np.maximum(steps, 1) - 1, 0).astype(np.float32)


def list_sizes(space: spaces.Space) -> tuple[int, ...]:
    """Return the number of values of each factor of a discrete action; () for other actions."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    factored = FactoredActions.from_space(space)
    return factored.sizes if factored else ()


def index_sizes(space: spaces.Space, index_actions: bool) -> dict[str, Any]:
    """Return the fields `choices` and `factors` of `Spec` for an action space; arguments as in
    `make_action_map`.
    """
    factored = FactoredActions.from_space(space)
    return {
        "choices": int(space.n) if index_actions and isinstance(space, spaces.Discrete) else None,
        "factors": factored.sizes if index_actions and factored is not None else None,
    }


def is_image(space: spaces.Space) -> bool:
    """Return whether an observation is an image, a uint8 Box with at least two axes and bounds of bytes.

    With smaller bounds it is a board, whose numbers are kinds of pieces: a vector. Divided by 255 they would
    hardly differ.
    """
    if not (isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) >= 2):
        return False
    return int(space.high.max(initial=0)) >= DARKEST


def make_flatten(
    space: spaces.Space, env_id: str, images: bool = False, as_bytes: bool = False
) -> tuple[int, Callable[[Any, int], np.ndarray]]:
    """Return S, and a function from observations to rows.

    Args:
        space: of one observation; a Box or a Dict of Boxes.
        env_id: name of the environment, for errors.
        images: accept an image.
        as_bytes: rows of a space that is an image are uint8; all others are float32.

    Returns:
        The length S of a flat observation, and a function (observations, number of rows) to a new array
        `[rows, S]`.

    Raises:
        UsageError: the space is empty, an image that is not accepted, or of another kind.
    """
    boxes = box_leaves(space, (), env_id, images)
    size = sum(int(np.prod(box.shape)) for _, box in boxes)
    if not size:
        raise UnfitEnv(f"{env_id} has an empty observation: an agent needs at least one number")
    if isinstance(space, spaces.Box):
        kind = np.uint8 if as_bytes and is_image(space) else np.float32
        return size, lambda observation, rows: to_numbers(observation, kind, env_id).reshape(rows, size)

    def flatten(observation: Any, rows: int) -> np.ndarray:
        columns = []
        for path, _ in boxes:
            value = observation
            for key in path:
                value = value[key]
            columns.append(to_numbers(value, np.float32, env_id).reshape(rows, -1))
        return np.concatenate(columns, axis=1)

    return size, flatten


def to_numbers(observation: Any, kind: Any, env_id: str) -> np.ndarray:
    """Return an observation as a new array of dtype `kind`; BrokenEnv if that would lose something."""
    array = np.asarray(observation)
    if array.dtype.kind in "cSUVMm" or isinstance(observation, np.ma.MaskedArray):
        what = f"a {type(observation).__name__} of {array.dtype}"
        hint = "give real and imaginary parts as entries of their own" if array.dtype.kind == "c" else ""
        if isinstance(observation, np.ma.MaskedArray):
            hint = "fill masked entries (observation.filled(0)), and give the mask as entries of its own"
        raise BrokenEnv(f"{env_id}: an observation is {what}; {hint or 'it must hold real numbers'}")
    if np.issubdtype(kind, np.integer) and array.dtype != kind:
        with np.errstate(invalid="ignore"):  # NaN
            whole = array.astype(kind)
        if (lost := array[whole != array]).size:
            raise BrokenEnv(
                f"{env_id}: an observation holds {lost.flat[0]:g}, and its space is of {np.dtype(kind)}: "
                "make it a Box of floats, or give numbers that it contains"
            )
        return whole
    return np.array(array, kind)


def split_space(
    space: spaces.Space, env_id: str, bare: Any, privileged: Any
) -> tuple[spaces.Space, spaces.Space | None]:
    """Find out which part of an observation actors see.

    Args:
        space: of one observation.
        env_id: name of the environment, for errors.
        bare: the environment without its wrappers; a face of a `JaxEnv` may have an `actor_size`.
        privileged: the keys of a Dict that critics alone see, which the environment declares; None: none.

    Returns:
        The space with these keys moved behind all others, and the space of what actors see; None: everything.

    Raises:
        UsageError: the declaration does not fit the space.
    """
    size = bare.actor_size if isinstance(bare, GymnasiumEnv) else None
    if size is not None:
        if space != bare.observation_space or not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise WrongEnv(
                f"{env_id} shows actors the first {size} entries of its observation, and a wrapper changes "
                "these: leave it out"
            )
        return space, spaces.Box(space.low[:size], space.high[:size], dtype=np.float32)
    if privileged is None:
        return space, None
    keys = [privileged] if isinstance(privileged, str) else list(privileged)
    if not isinstance(space, spaces.Dict) or not keys or not set(keys) < set(space.spaces):
        has = f"a Dict of {', '.join(space.spaces)}" if isinstance(space, spaces.Dict) else f"{space}"
        raise WrongEnv(
            f"{env_id} declares privileged_keys {keys}, and its observation is {has}: name one key or more "
            "of a Dict, but not all, and use no wrapper that flattens it"
        )
    seen = [(key, part) for key, part in space.spaces.items() if key not in keys]
    hidden = [(key, part) for key, part in space.spaces.items() if key in keys]
    return spaces.Dict(seen + hidden), spaces.Dict(seen)


def put_image_first(
    space: spaces.Space, actor_space: spaces.Space | None, env_id: str
) -> tuple[spaces.Space, spaces.Space | None, tuple[int, ...] | None]:
    """Find the image of an observation that may hold vectors too.

    Args:
        space: of one observation.
        actor_space: the space of what actors see; None: everything.
        env_id: name of the environment, for errors.

    Returns:
        Both spaces with the image before the vectors, and its shape; None: there is no image.

    Raises:
        UsageError: there are several images, or one that is deep in the Dict or that actors do not see.
    """
    if not isinstance(space, spaces.Dict):
        return space, actor_space, space.shape if is_image(space) else None
    found = [(path, box) for path, box in box_leaves(space, (), env_id, images=True) if is_image(box)]
    if not found:
        return space, actor_space, None
    names = ", ".join(".".join(path) for path, _ in found)
    if len(found) > 1:
        raise UnfitEnv(f"{env_id} shows several images ({names}): make one of them, with more channels")
    (path, box), key = found[0], found[0][0][0]
    if len(path) > 1:
        raise UnfitEnv(f"{env_id} has its image at {names}: an image stands at a key of the outer Dict")
    if isinstance(actor_space, spaces.Dict) and key not in actor_space.spaces:
        raise UnfitEnv(f"{env_id} shows the image {names} to critics only: let actors see it too")

    def first(part: spaces.Dict) -> spaces.Dict:
        return spaces.Dict(sorted(part.spaces.items(), key=lambda entry: entry[0] != key))

    return first(space), first(actor_space) if isinstance(actor_space, spaces.Dict) else None, box.shape


def name_entry(leaves: Sequence[tuple[tuple[str, ...], spaces.Box]], entry: int) -> str:
    """Return the name of a number of a flat observation, such as `observation[2]` or `robot.joints[0]`."""
    for path, box in leaves:
        size = math.prod(box.shape)
        if entry < size:
            return f"{'.'.join(path) or 'observation'}[{entry}]"
        entry -= size
    return f"observation[{entry}]"


def _can_be_flat(space: spaces.Space) -> bool:
    """Return whether Gymnasium's FlattenObservation makes a Box of a space."""
    try:
        return isinstance(spaces.flatten_space(space), spaces.Box)
    except Exception:  # NotImplementedError, of somebody else's space any other
        return False


def box_leaves(
    space: spaces.Space, path: tuple[str, ...], env_id: str, images: bool = False
) -> list[tuple[tuple[str, ...], spaces.Box]]:
    """Return the Boxes of a space with the keys that lead to them, in the order of a flat observation.

    Args:
        space: a Box or a Dict of Boxes.
        path: keys that led to `space`; () at the top.
        env_id: name of the environment, for errors.
        images: accept images.

    Raises:
        UsageError: a part of the space is no Box, or an image that is not accepted.
    """
    if isinstance(space, spaces.Dict):
        parts = space.spaces.items()
        return [leaf for key, part in parts for leaf in box_leaves(part, (*path, key), env_id, images)]
    where = f"the observation of {env_id}" + (f" at {'.'.join(path)!r}" if path else "")
    if not isinstance(space, spaces.Box):
        kind, package = type(space).__name__, type(space).__module__.partition(".")[0]
        if _can_be_flat(space):
            way = "which gymnasium.wrappers.FlattenObservation makes of it"
        elif package == "minigrid":
            way = (
                "and no wrapper of Gymnasium makes one of this; MiniGrid's own ImgObsWrapper and "
                "FlatObsWrapper do, in a function that makes the environment: --env module:make"
            )
        else:
            way = (
                "and no wrapper of Gymnasium makes one of this; leave that part out, or turn it into "
                "numbers, in a function that makes the environment: --env module:make"
            )
        raise UnfitEnv(f"{where} is a {kind}: agents take a Box or a Dict of Boxes, {way}")
    if is_image(space) and not images:
        raise UnfitEnv(
            f"{where} is an image {space.shape} in a Dict: dqn and on-policy agents see a single image, or "
            "vectors; off-policy agents such as sac+conv take a Dict of an image and vectors"
        )
    return [(path, space)]


def make_action_map(
    space: spaces.Space, envs: int, unwrapped: Any, env_id: str, index_actions: bool = False
) -> tuple[int, np.ndarray | None, Callable[[np.ndarray], np.ndarray]]:
    """Return the action size, the action table, and the map from the agent's actions to the environment's.

    Args:
        space: of one environment's action.
        envs: E, the number of rows that the map takes.
        unwrapped: the environment itself; its `action_table` [N, d], if it has one, represents its discrete
            actions.
        env_id: name of the environment, for errors.
        index_actions: pass a discrete action by its index, `[E, 1]`, even if there is a table, and one of a
            product of K discrete sets by its indices, `[E, K]`.

    Returns:
        A; the table `[N, A]` scaled to [-1, 1], or None; and the map from `[E, A]` to the environment's
        actions.

    Raises:
        UsageError: the space is no bounded Box, no Discrete set with a valid table and no product of discrete
            sets, or the product is too large for a table.
    """
    if (factored := FactoredActions.from_space(space)) is not None:
        rows = None if index_actions else factored.make_table(env_id)
        convert = factored.from_indices if index_actions else factored.from_unit
        return len(factored.sizes), rows, lambda action: convert(action).astype(space.dtype)
    table = getattr(unwrapped, "action_table", None)
    if isinstance(space, spaces.Discrete) and index_actions:
        return 1, None, lambda action: np.rint(action[:, 0]).astype(space.dtype) + space.start
    if isinstance(space, spaces.Discrete) and table is not None:
        try:
            numbers = np.asarray(table, np.float64)
        except (TypeError, ValueError) as problem:
            raise WrongEnv(
                f"{env_id}: action_table is no array [{space.n}, d] of numbers: {problem}"
            ) from problem
        return _make_table_map(space, numbers, env_id)
    if not isinstance(space, spaces.Box):
        divided = getattr(unwrapped, "continuous", None) is False  # LunarLander and CarRacing
        raise UnfitEnv(
            f"{env_id} has {type(space).__name__} actions: "
            + (
                "on-policy agents take a bounded Box, Discrete, MultiDiscrete or MultiBinary, and dqn takes "
                "Discrete"
                if index_actions
                else "off-policy agents take a bounded Box, or Discrete where the environment publishes an "
                "attribute `action_table` [N, d], a row per action; dqn and on-policy agents (ppo) take any "
                "Discrete"
            )
            + ("; its argument continuous=True makes them a Box" if divided else "")
        )
    low, high = (bound.ravel() for bound in true_bounds(space))
    shape = (envs, *space.shape)
    unbounded = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
    if len(unbounded) or not low.size:
        what = "the action is empty"
        if low.size:
            k = unbounded[0]
            ends = f"from {space.low.ravel()[k]:.4g} to {space.high.ravel()[k]:.4g}"
            what = f"dimension {k} of the action is unbounded ({ends})"
        raise UnfitEnv(
            f"{env_id}: {what}; give it bounds with gymnasium.wrappers.TransformAction(env, lambda a: a, "
            "Box(low, high)), or leave gymnasium.wrappers.ClipAction out: qscape clips actions"
        )
    box = ActionBox.from_space(space, np.float32 if space.dtype == np.float32 else np.float64, envs)

    def to_env(action: np.ndarray) -> np.ndarray:
        return box.to_env(action).astype(space.dtype, copy=False).reshape(shape)

    return low.size, None, to_env


def fingerprint(table: np.ndarray | None) -> list[float]:
    """Return d numbers that identify an action table [N, d] up to rounding: Σ_n cos(n) R_n / √N;
    [] for None.
    """
    if table is None:
        return []
    return (np.cos(np.arange(1, len(table) + 1)) @ table / len(table) ** 0.5).tolist()


def refuse_other_table(env_id: str, known: Sequence[float] | None, table: np.ndarray | None) -> None:
    """Refuse an environment whose table differs from the one of fingerprint `known`; None: do not compare.

    Raises:
        UsageError: the tables differ, so the same action would mean two things.
    """
    own = fingerprint(table)
    if known is not None and (len(known) != len(own) or not np.allclose(known, own, rtol=0, atol=1e-3)):
        raise Mismatch(describe_other_table(env_id))


def describe_other_table(env_id: str) -> str:
    """Return the error for an environment whose copies have different action tables."""
    return (
        f"{env_id}: action_table differs between copies of the environment (training, evaluation, the run "
        "that was saved), and an action would mean two things; draw it from a fixed seed"
    )


def _make_table_map(
    space: spaces.Discrete, table: np.ndarray, env_id: str
) -> tuple[int, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return d, the table scaled to [-1, 1] per dimension, and the map from rows to the index of the nearest
    row.
    """
    if table.ndim != 2 or len(table) != space.n or not table.size:
        raise WrongEnv(f"{env_id}: action_table is {table.shape}, it has to be [{space.n}, d]")
    if not np.isfinite(table).all():
        raise WrongEnv(f"{env_id}: action_table holds NaN or infinity")
    low, span = table.min(0), np.ptp(table, axis=0)
    varies = span > 0
    scaled = np.where(varies, 2 * (table - low) / np.where(varies, span, 1) - 1, 0).astype(np.float32)
    scaled += 0.0  # turns -0.0 into 0.0, whose bits differ
    hashes = _hash_rows(scaled)
    order = np.argsort(hashes)
    sorted_hashes = hashes[order]
    if (np.diff(sorted_hashes) == 0).any() and len(np.unique(scaled, axis=0)) < len(scaled):
        raise WrongEnv(f"{env_id}: two rows of action_table are equal, an action could never be chosen")

    def to_env(action: np.ndarray) -> np.ndarray:
        # Agents pass rows of the table to the bit: a hash finds these in log N. All others are searched for.
        rows = np.asarray(action, np.float32)
        index = order[np.searchsorted(sorted_hashes, _hash_rows(rows)).clip(max=len(order) - 1)]
        for i in np.flatnonzero((scaled[index] != rows).any(1)):
            index[i] = np.square(scaled - rows[i]).sum(1).argmin()
        return index.astype(space.dtype) + space.start

    return table.shape[1], scaled, to_env


def _hash_rows(rows: np.ndarray) -> np.ndarray:
    """Return a hash of the bits of each float32 row."""
    weights = np.random.default_rng(0).integers(1, 2**63, rows.shape[1], np.uint64)
    return (np.ascontiguousarray(rows).view(np.uint32).astype(np.uint64) * weights).sum(1)
