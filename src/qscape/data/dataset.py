"""A dataset as one table of transitions, its checks, and the summary that `qscape dataset` prints."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float

from qscape.envs.spaces import ActionBox, is_bounded
from qscape.errors import BadFile, UnfitEnv

BINS = 20  # equal bins of each action dimension, for `coverage`
HDF5 = (".hdf5", ".h5")  # how the names of files end that do not say the bounds of actions
EDGE = 0.99  # an action in [-1, 1] beyond this counts as one at its bound


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """N transitions, episode after episode; the last one of each is terminated or truncated.

    Attributes:
        name: as the user gave it.
        observation: raw, flattened.
        action: in [-1, 1].
        reward: undiscounted, of one step.
        terminated: True where the episode ended in a terminal state.
        truncated: True where it was cut, by a time limit or because the record stops.
        next_observation: the true successor, also in the last transition of an episode.
        observation_space, action_space: of the environment it was recorded in.
        env, env_args: id and arguments for `gymnasium.make`, or None if the dataset does not name them.
        reference: returns of a random and an expert policy, which score 0 and 100; None if not defined.
        notes: sentences for the user.
    """

    name: str
    observation: Float[np.ndarray, "N S"]
    action: Float[np.ndarray, "N A"]
    reward: Float[np.ndarray, " N"]
    terminated: Bool[np.ndarray, " N"]
    truncated: Bool[np.ndarray, " N"]
    next_observation: Float[np.ndarray, "N S"]
    observation_space: gym.Space
    action_space: spaces.Box
    env: str | None = None
    env_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reference: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def ends(self) -> Bool[np.ndarray, " N"]:
        """True in the last transition of each episode."""
        return self.terminated | self.truncated

    @property
    def returns(self) -> Float[np.ndarray, " episodes"]:
        """Undiscounted return of each episode."""
        starts = np.concatenate([[0], np.flatnonzero(self.ends)[:-1] + 1])
        return np.add.reduceat(self.reward.astype(np.float64), starts)

    @property
    def lengths(self) -> np.ndarray:
        """Number of steps of each episode, `[episodes]`."""
        return np.diff(np.concatenate([[-1], np.flatnonzero(self.ends)]))

    def score(self, ret: float) -> float | None:
        """Return the normalised score of a return; None if the dataset defines no reference returns."""
        return None if self.reference is None else normalised_score(ret, self.reference)


def normalised_score(ret: float, reference: tuple[float, float]) -> float:
    """Return 100 (return − low) / (high − low), for reference returns (low, high), as D4RL defines it."""
    low, high = reference
    return 100.0 * (ret - low) / (high - low)


def check_dataset(dataset: Dataset) -> Dataset:
    """Return the dataset with actions clipped to [-1, 1] (only rounding exceeds it).

    Raises:
        UsageError: it has no transition, holds NaN or infinity, or actions outside their space.
    """
    if not len(dataset):
        raise BadFile(f"{dataset.name} holds no transition: there is nothing to learn from.")
    for column in ("observation", "action", "reward", "next_observation"):
        rows = getattr(dataset, column)
        if not np.isfinite(rows).all():
            row = int(np.argwhere(~np.isfinite(rows))[0][0])
            raise BadFile(
                f"{dataset.name}: {column} holds NaN or infinity in episode {int(dataset.ends[:row].sum())}, "
                f"transition {row}; leave that episode out."
            )
    far = np.abs(dataset.action).max(axis=0)
    if (far > 1.0 + 1e-4).any():
        k = int(far.argmax())
        box = ActionBox.from_space(dataset.action_space, np.float64)
        worst = dataset.action[np.abs(dataset.action[:, k]).argmax(), k] * box.half_width[k] + box.centre[k]
        assumed = dataset.env is None and dataset.name.endswith(HDF5)
        remedy = (
            "name the environment it was recorded in with --env"
            if assumed
            else "record the actions as the environment takes them: clipped to this range"
        )
        raise BadFile(
            f"{dataset.name}: action[{k}] reaches {worst:.4g}, outside its range "
            f"[{box.low[k]:.4g}, {box.high[k]:.4g}]; {remedy}."
        )
    return dataclasses.replace(dataset, action=np.clip(dataset.action, -1.0, 1.0))


def require_action_box(space: gym.Space, name: str) -> ActionBox:
    """Return the bounded box of a dataset's or environment's actions, in float64.

    Raises:
        UsageError: the space is no Box, or an unbounded one.
    """
    if not isinstance(space, spaces.Box):
        raise UnfitEnv(
            f"{name} has {type(space).__name__} actions: offline agents take a bounded Box of actions."
        )
    if not is_bounded(space):
        raise UnfitEnv(f"{name} has unbounded actions: offline agents take a bounded Box of actions.")
    return ActionBox.from_bounds(space.low, space.high)


def summarise(data: Dataset) -> list[tuple[str, str]]:
    """Return the lines that `qscape dataset` prints: pairs (what, how much)."""
    returns, lengths = data.returns, data.lengths
    quantiles = np.percentile(returns, [0, 25, 50, 75, 100])
    terminated, truncated = (int(x.sum()) for x in (data.terminated, data.truncated & ~data.terminated))
    lines = [
        (
            "environment",
            f"{data.env} {dict(data.env_args) or ''}".strip() if data.env else "not known",
        ),
        (
            "size",
            f"{len(data):,} transitions in {len(returns):,} episodes, {_nbytes(data) / 2**20:,.2f} MiB",
        ),
        ("length", f"mean {lengths.mean():,.1f}, from {lengths.min():,} to {lengths.max():,}"),
        ("ends", f"{terminated:,} terminated, {truncated:,} truncated"),
        ("return", f"mean {returns.mean():,.2f}, standard deviation {returns.std():,.2f}"),
        ("", "least {:,.2f}, quartiles {:,.2f} {:,.2f} {:,.2f}, greatest {:,.2f}".format(*quantiles)),
        (
            "reward",
            f"mean {data.reward.mean():.4g}, from {data.reward.min():.4g} to {data.reward.max():.4g}",
        ),
    ]
    if data.reference is not None:
        scores = [data.score(float(x)) for x in (returns.mean(), returns.max())]
        low, high = data.reference
        lines.append(
            ("score", f"mean {scores[0]:.1f}, greatest {scores[1]:.1f} (0 is {low:g}, 100 is {high:g})")
        )
    cover, bound = coverage(data)
    lines += [
        (f"action[{k}]", f"{100 * c:.0f}% of {BINS} equal bins hold some, {100 * b:.1f}% lie at the bounds")
        for k, (c, b) in enumerate(zip(cover, bound, strict=True))
    ]
    rows = zip(data.observation.min(0), data.observation.mean(0), data.observation.max(0), strict=True)
    lines += [
        (f"observation[{k}]", f"from {low:.4g} to {high:.4g}, mean {mean:.4g}")
        for k, (low, mean, high) in enumerate(rows)
    ]
    return lines


def coverage(data: Dataset) -> tuple[Float[np.ndarray, " A"], Float[np.ndarray, " A"]]:
    """Return, by action dimension: share of 20 equal bins that hold an action, and share of actions at a
    bound.
    """
    bins = np.minimum(((data.action + 1.0) / 2.0 * BINS).astype(int), BINS - 1)
    filled = np.array([len(np.unique(column)) / BINS for column in bins.T])
    return filled, (np.abs(data.action) > EDGE).mean(axis=0)


def _nbytes(data: Dataset) -> int:
    """Return bytes of the columns."""
    columns = (data.observation, data.action, data.reward, data.next_observation)
    return sum(x.nbytes for x in columns) + 2 * len(data)
