"""Spaces at the edge: observations as vectors, actions from [-1, 1]^A to the environment's units."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from qscape.errors import UsageError


def is_image(space: spaces.Space) -> bool:
    """Is an observation a picture of bytes?"""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) >= 2


def flattening(
    space: spaces.Space, env_id: str, images: bool = False
) -> tuple[int, Callable[[Any, int], np.ndarray]]:
    """S and the function that makes a new float32 `[rows, S]` of `rows` observations; of `images`, where they
    are allowed, the bytes as they are."""
    if images and is_image(space):
        size = int(np.prod(space.shape or ()))
        return size, lambda observation, rows: np.array(observation, np.uint8).reshape(rows, size)
    boxes = leaves(space, (), env_id)
    size = sum(int(np.prod(box.shape)) for _, box in boxes)
    if not size:
        raise UsageError(f"{env_id} has an empty observation: an agent needs at least one number")
    if isinstance(space, spaces.Box):
        return size, lambda observation, rows: np.array(observation, np.float32).reshape(rows, size)

    def flatten(observation: Any, rows: int) -> np.ndarray:
        columns = []
        for path, _ in boxes:
            value = observation
            for key in path:
                value = value[key]
            columns.append(np.asarray(value, np.float32).reshape(rows, -1))
        return np.concatenate(columns, axis=1)

    return size, flatten


def leaves(
    space: spaces.Space, path: tuple[str, ...], env_id: str, images: bool = False
) -> list[tuple[tuple[str, ...], spaces.Box]]:
    """The boxes of a space and the keys to them, in the order of `gymnasium.spaces.utils.flatten`; with
    `images` a single picture is one of them."""
    if images and isinstance(space, spaces.Box):
        return [(path, space)]
    if isinstance(space, spaces.Dict):
        return [leaf for key, part in space.spaces.items() for leaf in leaves(part, (*path, key), env_id)]
    where = f"the observation of {env_id}" + (f" at {'.'.join(path)!r}" if path else "")
    if not isinstance(space, spaces.Box):
        raise UsageError(
            f"{where} is a {type(space).__name__}: agents take a Box or a Dict of Boxes, "
            "which gymnasium.wrappers.FlattenObservation makes of most spaces"
        )
    if is_image(space):
        raise UsageError(
            f"{where} is an image {space.shape}: off-policy agents take vectors, so an environment fits that "
            "tells its state, or features of the image through gymnasium.wrappers.TransformObservation; "
            "on-policy agents such as ppo see a single image"
        )
    return [(path, space)]


def action_map(
    space: spaces.Space, envs: int, unwrapped: Any, env_id: str, by_index: bool = False
) -> tuple[int, np.ndarray | None, Callable[[np.ndarray], np.ndarray]]:
    """A, the table of a discrete set (or None), and the map from `[E, A]` in [-1, 1] to real actions.

    `by_index`: a discrete action is its index, `[E, 1]`, whether or not there is a table.
    """
    table = getattr(unwrapped, "action_table", None)
    if isinstance(space, spaces.Discrete) and by_index:
        return 1, None, lambda action: np.rint(action[:, 0]).astype(space.dtype) + space.start
    if isinstance(space, spaces.Discrete) and table is not None:
        try:
            numbers = np.asarray(table, np.float64)
        except (TypeError, ValueError) as problem:
            raise UsageError(
                f"{env_id}: action_table is no array [{space.n}, d] of numbers: {problem}"
            ) from problem
        return _table_map(space, numbers, env_id)
    if not isinstance(space, spaces.Box):
        raise UsageError(
            f"{env_id} has {type(space).__name__} actions: "
            + (
                "on-policy agents take a bounded Box or Discrete"
                if by_index
                else "off-policy agents take a bounded Box, or Discrete where the environment publishes an "
                "attribute `action_table` [N, d], a row per action; on-policy ones (ppo) take any Discrete"
            )
        )
    low, high = (np.asarray(bound, np.float64).ravel() for bound in (space.low, space.high))
    shape = (envs, *space.shape)
    unbounded = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
    if len(unbounded) or not low.size:
        what = f"dimension {unbounded[0]} of the action is unbounded" if low.size else "the action is empty"
        raise UsageError(
            f"{env_id}: {what}; give it bounds with gymnasium.wrappers.TransformAction(env, lambda a: a, "
            "Box(low, high)), or leave gymnasium.wrappers.ClipAction out: the edge clips"
        )
    # Written so that bounds of -1 and 1 leave every action as it is; rows of the full shape, because
    # broadcasting them costs 2 microseconds a step.
    dtype = np.float32 if space.dtype == np.float32 else np.float64
    centre, scale, lowest, highest = (
        np.tile(row.astype(dtype), (envs, 1)) for row in (low / 2 + high / 2, high / 2 - low / 2, low, high)
    )
    whole = np.issubdtype(space.dtype, np.integer)

    def to_env(action: np.ndarray) -> np.ndarray:
        units = (action * scale + centre).clip(lowest, highest)
        return (np.rint(units) if whole else units).astype(space.dtype, copy=False).reshape(shape)

    return low.size, None, to_env


def fingerprint(table: np.ndarray | None) -> list[float]:
    """Numbers [d] that are others for another table, whatever the last digits: Σ_n cos(n) R_n / √N."""
    if table is None:
        return []
    return (np.cos(np.arange(1, len(table) + 1)) @ table / len(table) ** 0.5).tolist()


def refuse_other_table(env_id: str, known: Sequence[float] | None, table: np.ndarray | None) -> None:
    """Refuse a copy of an environment with another table than the one of this fingerprint (None: not known).

    Raises:
        UsageError: the same action would mean two things.
    """
    own = fingerprint(table)
    if known is not None and (len(known) != len(own) or not np.allclose(known, own, rtol=0, atol=1e-3)):
        raise UsageError(other_table(env_id))


def other_table(env_id: str) -> str:
    """What is wrong with an environment whose copies have tables of their own."""
    return (
        f"{env_id}: action_table differs between copies of the environment (training, evaluation, the run "
        "that was saved), and an action would mean two things; draw it from a fixed seed"
    )


def _table_map(
    space: spaces.Discrete, table: np.ndarray, env_id: str
) -> tuple[int, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The table scaled to [-1, 1] per dimension, and the index of the nearest row (the lowest of equals)."""
    if table.ndim != 2 or len(table) != space.n or not table.size:
        raise UsageError(f"{env_id}: action_table is {table.shape}, it has to be [{space.n}, d]")
    if not np.isfinite(table).all():
        raise UsageError(f"{env_id}: action_table holds NaN or infinity")
    low, span = table.min(0), np.ptp(table, axis=0)
    varies = span > 0
    scaled = np.where(varies, 2 * (table - low) / np.where(varies, span, 1) - 1, 0).astype(np.float32)
    scaled += 0.0  # makes 0.0 of -0.0, whose bits differ
    prints = _fingerprints(scaled)
    order = np.argsort(prints)
    sorted_prints = prints[order]
    if (np.diff(sorted_prints) == 0).any() and len(np.unique(scaled, axis=0)) < len(scaled):
        raise UsageError(f"{env_id}: two rows of action_table are equal, an action could never be chosen")

    def to_env(action: np.ndarray) -> np.ndarray:
        # Agents say rows of the table to the bit: these are found in log N. Anything else is searched for.
        rows = np.asarray(action, np.float32)
        found = order[np.searchsorted(sorted_prints, _fingerprints(rows)).clip(max=len(order) - 1)]
        for i in np.flatnonzero((scaled[found] != rows).any(1)):
            found[i] = np.square(scaled - rows[i]).sum(1).argmin()
        return found.astype(space.dtype) + space.start

    return table.shape[1], scaled, to_env


def _fingerprints(rows: np.ndarray) -> np.ndarray:
    """A number for each float32 row, from its bits; hardly ever the same for two of them."""
    weights = np.random.default_rng(0).integers(1, 2**63, rows.shape[1], np.uint64)
    return (np.ascontiguousarray(rows).view(np.uint32).astype(np.uint64) * weights).sum(1)
